#!/usr/bin/env bash
# Everything that must hold: formatting, vet, staticcheck, generated code,
# unit, conformance and end-to-end tests with the official SDKs.
set -euo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
step() { printf '\n==> %s  [%d s]\n' "$*" "$((SECONDS - began))"; }

step "host packages"
deploy/apt-install.sh mmdebstrap erofs-utils protobuf-compiler gcc libc6-dev ca-certificates

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

step "tests"
export HEARTH_TEST_BIN=$PWD/bin/hearth
export HEARTH_TEST_CACHE=${HEARTH_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth-test}
echo "official SDKs: $HEARTH_TEST_SDKS"
echo "drivers: gvisor with shared memory, fake"
CGO_ENABLED=1 go test -race -shuffle=on -timeout 20m -json ./... | go run ./test/summary

step "the driver with gVisor as it is published"
export GOFLAGS=$stock
go test -timeout 10m -run 'TestConformance|TestStock' ./internal/driver/gvisor

step "virtual machines, emulated in software"
deploy/apt-install.sh qemu-system-x86 e2fsprogs
HEARTH_TEST_VM=1 go test -count=1 -timeout 10m -run 'TestBoot|TestOutOfMemory|TestBadRoot' ./internal/driver/microvm

step "virtual machines with KVM, in an emulated host"
make test-kvm
