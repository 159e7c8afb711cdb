#!/usr/bin/env bash
# Installs the official E2B SDKs and a data set for the demo into .cache/demo.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=.cache/demo
mkdir -p "$dir/js"
if [ ! -f "$dir/python.done" ]; then
  python3 -m venv "$dir/venv" || { deploy/apt-install.sh python3-venv && python3 -m venv "$dir/venv"; }
  "$dir/venv/bin/pip" install -q e2b-code-interpreter vega_datasets
  touch "$dir/python.done"
fi
cp examples/demo/analyse.mjs "$dir/js/"
if [ ! -d "$dir/js/node_modules/@e2b/code-interpreter" ]; then
  (cd "$dir/js" && echo '{"private":true,"type":"module"}' >package.json && npm install --silent --no-audit --no-fund e2b @e2b/code-interpreter)
fi
