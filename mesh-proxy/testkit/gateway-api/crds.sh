#!/bin/sh
# crds.sh [standard|experimental] prints the folder with the CRDs of that channel of Gateway API: that of the Go module
# whose version and checksum go.mod and go.sum pin, in the module cache. Nothing of it is part of this project.
set -eu
cd "$(dirname "$0")"
channel=${1:-standard}
command -v go >/dev/null || { echo "gateway-api: go is needed to fetch the CRDs (https://go.dev/dl, or apt-get install golang)" >&2; exit 1; }
export GOTOOLCHAIN=local GOWORK=off GOFLAGS=-mod=readonly
dir=$(go mod download -json sigs.k8s.io/gateway-api | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
[ -d "$dir/config/crd/$channel" ] || { echo "gateway-api: no CRDs in '$dir'" >&2; exit 1; }
echo "$dir/config/crd/$channel"
