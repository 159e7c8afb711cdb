#!/usr/bin/env bash
# From a clean machine to AI-written code running in isolation: installs what is
# missing, builds, starts the server, makes the templates, runs the main job
# with the official SDKs, and prints how to reach the server.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${HEARTH_DATA:-/var/lib/hearth}
began=$SECONDS
step() { printf '\n==> %s  [%d s]\n' "$*" "$((SECONDS - began))"; }

step "host packages"
deploy/apt-install.sh mmdebstrap erofs-utils ca-certificates

# The SDKs come from the package registries while the compiler is busy.
mkdir -p .cache
log=.cache/sdks.log
examples/demo/sdks.sh >"$log" 2>&1 &
sdks=$!

step "build (the first one compiles gVisor: about two minutes on two cores)"
make build

step "server and templates (the first start makes them: about two minutes)"
if bin/hearth env --data "$data" >/dev/null 2>&1 && bin/hearth sandbox list --data "$data" >/dev/null 2>&1; then
  echo "a server already runs on $data"
else
  bin/hearth up --detach --data "$data" ${HEARTH_LISTEN:+--listen "$HEARTH_LISTEN"}
fi
environment=$(bin/hearth env --data "$data")
eval "$environment"

wait "$sdks" || { cat "$log" >&2; echo "the SDKs could not be installed" >&2; exit 1; }

step "main job: the official Python SDK, a real data set, pandas and matplotlib"
.cache/demo/venv/bin/python examples/demo/analyse.py
step "the same sandbox from the official JavaScript SDK"
(cd .cache/demo/js && node analyse.mjs)

step "done: $((SECONDS - began)) s in all"
cat <<END

The server runs on. With these, any E2B program runs against it:

$environment

bin/hearth doctor says what this host can do; bin/hearth down${HEARTH_DATA:+ --data $data} stops everything.
END
