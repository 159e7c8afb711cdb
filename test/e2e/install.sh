#!/usr/bin/env bash
# Installs the official E2B SDKs into .cache/sdks: npm e2b 2.51.0 and the newest
# with the newest @e2b/code-interpreter, and the newest from PyPI. Beside them a
# Python with the kernel that the code interpreter's tests talk to. Writes
# .cache/sdks/env, which says where they are and which versions they have.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$PWD/.cache/sdks
mkdir -p "$dir"
js() { # js DIRECTORY PACKAGE...
  local at=$dir/$1; shift
  mkdir -p "$at"
  cp test/e2e/js/* "$at/"
  (cd "$at" && npm install --silent --no-audit --no-fund --no-save "$@")
}
version() { node -p "require('$dir/$1/node_modules/$2/package.json').version"; }

js js-pinned e2b@2.51.0 @e2b/code-interpreter@latest
versions=("npm e2b $(version js-pinned e2b)" "@e2b/code-interpreter $(version js-pinned @e2b/code-interpreter)")
dirs=$dir/js-pinned
newest=$(cd "$dir" && npm view --silent e2b version)
if [ "$newest" = "$(version js-pinned e2b)" ]; then
  versions+=("which is the newest")
else
  js js-newest "e2b@$newest" @e2b/code-interpreter@latest @e2b/cli@latest
  versions+=("and newest npm e2b $(version js-newest e2b)")
  dirs=$dirs:$dir/js-newest
fi
venv() { # venv DIRECTORY
  [ -x "$dir/$1/bin/python" ] || python3 -m venv "$dir/$1" || { deploy/apt-install.sh python3-venv && python3 -m venv "$dir/$1"; }
}
venv kernel
"$dir/kernel/bin/pip" install -q bash_kernel 'ipykernel>=6.31,<8' 'jupyter_server>=2.14,<3' 'matplotlib>=3.9,<4' 'numpy>=2,<3' orjson 'pandas>=2.2,<3' pillow
"$dir/kernel/bin/python" -m bash_kernel.install --sys-prefix >/dev/null 2>&1
venv venv
"$dir/venv/bin/pip" install -q --upgrade e2b e2b-code-interpreter
pypi() { "$dir/venv/bin/python" -c "import importlib.metadata as m; print('PyPI $1', m.version('$1'))"; }
versions+=("$(pypi e2b)" "$(pypi e2b-code-interpreter)")
{
  printf 'export HEARTH_TEST_JS=%q\n' "$dirs"
  printf 'export HEARTH_TEST_PYTHON_SDK=%q\n' "$dir/venv/bin/python"
  printf 'export HEARTH_TEST_PYTHON=%q\n' "$dir/kernel/bin/python"
  printf 'export HEARTH_TEST_SDKS=%q\n' "$(IFS=,; echo "${versions[*]}" | sed 's/,/, /g')"
} >"$dir/env"
echo "${versions[*]}"
