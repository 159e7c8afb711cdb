#!/usr/bin/env bash
# Installs the Debian packages it is given, those that are missing, without
# asking. Usage: apt-install.sh PACKAGE...
set -euo pipefail
missing=()
for p in "$@"; do
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null)" = "ii " ] || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "==> installing ${missing[*]}" >&2
if [ "$(id -u)" != 0 ]; then
  echo "not root: run 'apt-get install -y ${missing[*]}' yourself, then again" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } </dev/null >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "these packages could not be installed: ${missing[*]}" >&2
  exit 1
fi
