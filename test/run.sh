#!/usr/bin/env bash
# Everything that must hold: formatting, vet, staticcheck, generated code,
# unit, conformance and end-to-end tests with the official SDKs.
set -euo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
step() { printf '\n==> %s  [%d s]\n' "$*" "$((SECONDS - began))"; }

step "host packages"
deploy/apt-install.sh mmdebstrap erofs-utils protobuf-compiler libprotobuf-dev gcc libc6-dev ca-certificates

step "the official SDKs"
test/e2e/install.sh
# shellcheck source=/dev/null
. .cache/sdks/env

step "build"
make build

step "formatting"
unformatted=$(git ls-files '*.go' | grep -v '^internal/gen/' | xargs gofmt -l)
[ -z "$unformatted" ] || { echo "gofmt: $unformatted"; exit 1; }

step "generated code"
before=$(git ls-files -s internal/gen; git diff internal/gen | sha256sum)
spec/generate.sh
after=$(git ls-files -s internal/gen; git diff internal/gen | sha256sum)
[ "$before" = "$after" ] || { echo "internal/gen is not what spec/ says: run 'make generate' and commit"; exit 1; }

step "vet"
go vet ./... # with gVisor as it is published, as plain go build has it
stock=$(go env GOFLAGS)
patched="$stock $(make gvisor)"
export GOFLAGS=$patched # from here on, as bin/hearth is built
go vet ./internal/driver/gvisor/...
step "staticcheck"
GOFLAGS=$stock go tool -modfile=tools/go.mod staticcheck ./... # it cannot do with another go.mod

step "virtual machines with KVM, in an emulated host"
make test-kvm

step "tests"
export HEARTH_TEST_BIN=$PWD/bin/hearth
export HEARTH_TEST_CACHE=${HEARTH_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth-test}
deploy/apt-install.sh qemu-system-x86 e2fsprogs
echo "official SDKs: $HEARTH_TEST_SDKS"
echo "drivers: gvisor with shared memory, gvisor as it is published, qemu emulated, fake"
# All that fails is told, not only what fails first. The emulated machines and
# what is there twice come after the rest: they want the processor for themselves.
{
  failed=0
  CGO_ENABLED=1 go test -race -shuffle=on -timeout 30m -json ./... || failed=1
  GOFLAGS=$stock go test -count=1 -timeout 10m -json -run 'TestConformance|TestStock' ./internal/driver/gvisor || failed=1
  HEARTH_TEST_VM=1 go test -p 1 -count=1 -timeout 15m -json ./internal/driver/microvm ./internal/driver/qemu || failed=1
  exit $failed
} | go run ./test/summary
