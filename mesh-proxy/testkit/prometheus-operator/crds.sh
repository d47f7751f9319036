#!/bin/sh
# Prints the folder with the CRDs of the Prometheus operator: that of the Go module whose version and checksum go.mod and
# go.sum pin, in the module cache. Nothing of it is part of this project.
set -eu
cd "$(dirname "$0")"
command -v go >/dev/null || { echo "prometheus-operator: go is needed to fetch the CRDs (https://go.dev/dl, or apt-get install golang)" >&2; exit 1; }
export GOTOOLCHAIN=local GOWORK=off GOFLAGS=-mod=readonly
dir=$(go mod download -json github.com/prometheus-operator/prometheus-operator | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
[ -d "$dir/example/prometheus-operator-crd" ] || { echo "prometheus-operator: no CRDs in '$dir'" >&2; exit 1; }
echo "$dir/example/prometheus-operator-crd"
