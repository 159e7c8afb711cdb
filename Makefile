# make demo   from a clean machine to AI-written code running in isolation
# make test   everything that .ci/run checks
# make test-kvm  the virtual machines' tests with KVM, in an emulated host (part of make test; SUITE=all: an hour of them)
# make build  bin/hearth, the whole product in one file
# make bench  the figures of docs/PERFORMANCE.md, measured on this host beside gVisor as it is published, and its plots (bin/plots)
# make generate  internal/gen, from the contracts in spec/

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
export CGO_ENABLED := 0

.PHONY: build gvisor guest init seccomp sandbox demo test test-kvm bench generate clean FORCE

build: bin/hearth

# The flags with which the go command uses the patched gVisor, made by the first
# use of them: internal/driver/gvisor/patch/README.md.
PATCHED = go run -trimpath ./internal/driver/gvisor/patchtree

# Go's own build cache decides what is stale.
bin/hearth: guest init sandbox FORCE
	@echo "==> building bin/hearth"
	@flags=$$($(PATCHED))
	go build $$flags -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/hearth

# The same with gVisor as it is published, and what its sandboxes are by itself: the reference of benchmarks, not shipped.
bin/hearth-stock: bin/hearth FORCE
	@echo "==> building bin/hearth-stock, with gVisor as it is published"
	@go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/hearth
	go build -trimpath -ldflags '-s -w' -o $@-sandbox ./cmd/hearth-sandbox

# Prints the flags for go commands by hand: GOFLAGS=$(make gvisor) go test ./internal/driver/gvisor
gvisor:
	@$(PATCHED)

# Every sandbox has the guest daemon in memory, so it is built small: without HTTP/2, which it
# does not speak, and without inlining except in what its time is spent in: the runtime, strings, buffers, locks; and with functions packed more closely. docs/PERFORMANCE.md, "What the guest daemon holds".
PLAIN := crypto/... vendor/... encoding/... math/big google.golang.org/protobuf/... regexp/... connectrpc.com/... net net/... mime/... compress/... log/... \
	fmt time reflect os os/... path/... text/... html/... github.com/... hearth/...
SMALL := -tags nethttpomithttp2 $(foreach p,$(PLAIN),-gcflags=$(p)=-l)

# Where it goes; the drivers' tests want one of their own.
GUEST := internal/guest/embedded/bin/hearth-guest

guest:
	@echo "==> building the guest daemon"
	@go build -trimpath $(SMALL) -ldflags '-s -w -funcalign=16' -o $(GUEST) ./cmd/hearth-guest

init:
	@echo "==> building the first program of virtual machines"
	@go build -trimpath -ldflags '-s -w' -o internal/driver/microvm/embedded/bin/hearth-init ./cmd/hearth-init

seccomp:
	@echo "==> precompiling seccomp programs"
	@flags=$$($(PATCHED))
	go run $$flags -trimpath ./internal/driver/gvisor/seccompgen

sandbox: seccomp
	@echo "==> building the program of sandboxes"
	@flags=$$($(PATCHED))
	go build $$flags -trimpath -ldflags '-s -w' -o internal/driver/gvisor/embedded/bin/hearth-sandbox ./cmd/hearth-sandbox

demo:
	@bash examples/demo/run.sh

test:
	@bash test/run.sh

test-kvm: init
	@deploy/apt-install.sh qemu-system-x86 erofs-utils e2fsprogs kmod xz-utils
	@go run ./test/kvm $(if $(filter all,$(SUITE)),-full)

bench: build bin/hearth-stock
	@deploy/apt-install.sh runc mmdebstrap erofs-utils
	@bin/hearth bench
	mkdir -p bin/plots
	bin/hearth bench plot --runs 3 --sandboxes 40 --out bin/plots

generate:
	@deploy/apt-install.sh protobuf-compiler libprotobuf-dev
	@spec/generate.sh

clean:
	rm -rf bin .cache internal/guest/embedded/bin/hearth-guest internal/driver/microvm/embedded/bin/hearth-init internal/driver/gvisor/embedded/bin/hearth-sandbox
