#!/bin/sh
# Makes discoveryv1/ from the proto file. PROTOC is any protoc; that of the Python package grpcio-tools will do:
#   PROTOC="python -m grpc_tools.protoc" go generate
set -eu
cd "$(dirname "$0")"
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
GOBIN=$plugins go install tool
here=$(sed -n 's/^module //p' go.mod)
# shellcheck disable=SC2086  (a command with its arguments)
${PROTOC:-protoc} -I ../../proto \
    --plugin="$plugins/protoc-gen-go" --plugin="$plugins/protoc-gen-go-grpc" \
    --go_out=. --go_opt="module=$here,Mmilo/discovery/v1/discovery.proto=$here/discoveryv1" \
    --go-grpc_out=. --go-grpc_opt="module=$here,Mmilo/discovery/v1/discovery.proto=$here/discoveryv1" \
    milo/discovery/v1/discovery.proto
