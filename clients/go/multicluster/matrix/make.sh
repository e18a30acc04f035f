#!/bin/sh
# Writes the module files of the other supported versions next to this script. `./dev go --matrix` tests with them.
set -eu
cd "$(dirname "$0")/.."
overlay() {
    name=matrix/$1
    shift
    cp go.mod "$name.mod"
    cp go.sum "$name.sum"
    go get -modfile="$name.mod" "$@"
    go mod tidy -modfile="$name.mod"
}
overlay mcr-0.24.1 sigs.k8s.io/multicluster-runtime@v0.24.1
overlay mcr-0.23.3-controller-runtime-0.24.1 sigs.k8s.io/controller-runtime@v0.24.1
overlay mcr-0.24.1-controller-runtime-0.25.2 sigs.k8s.io/multicluster-runtime@v0.24.1 sigs.k8s.io/controller-runtime@v0.25.2
