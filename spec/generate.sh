#!/usr/bin/env bash
# Generates internal/gen from the contracts in spec/. Needs protoc (Debian:
# protobuf-compiler); the Go plugins come from tools/go.mod.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
mkdir -p "$out/bin"
go build -modfile=tools/go.mod -o "$out/bin/" \
  google.golang.org/protobuf/cmd/protoc-gen-go \
  connectrpc.com/connect/cmd/protoc-gen-connect-go \
  github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen
PATH="$out/bin:$PATH"
mkdir -p "$out/go"
protoc -I spec/guest --go_out="$out/go" --connect-go_out="$out/go" spec/guest/*.proto
rm -rf internal/gen/guestv1
mkdir -p internal/gen/guestv1
cp -r "$out"/go/hearth/internal/gen/guestv1/. internal/gen/guestv1/
if [ -f spec/openapi.yaml ]; then
  mkdir -p internal/gen/rest
  oapi-codegen -config spec/oapi-codegen.yaml -o internal/gen/rest/rest.gen.go spec/openapi.yaml
fi
