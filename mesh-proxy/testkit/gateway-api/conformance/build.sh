#!/bin/sh
# Builds Gateway API's official conformance suite (a test program) and the backend that its manifests run, once, into a
# cache folder, and prints that folder on standard output; progress goes to standard error. go.mod and go.sum pin both.
set -eu
cd "$(dirname "$0")"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off GOFLAGS=-mod=readonly

command -v go >/dev/null || { echo "gateway-api: go is needed to build the conformance suite (https://go.dev/dl)" >&2; exit 1; }
hash=$(cat go.mod go.sum build.sh player/*.go | { cat; go version; } | sha256sum | cut -c1-12)
root=${XDG_CACHE_HOME:-$HOME/.cache}/selvage
dir=$root/gateway-api-$hash
programs="conformance.test echo-basic player"

complete() { for p in $programs; do [ -x "$dir/$p" ] || return 1; done; }
if complete; then echo "$dir"; exit 0; fi

mkdir -p "$dir"
exec 9>"$dir/.lock"
flock -n 9 || { echo "gateway-api: another build is running, waiting for it" >&2; flock 9; }
if complete; then echo "$dir"; exit 0; fi

# A compiler cache of its own: it makes an interrupted build resume, and goes when the build is done.
export GOCACHE="$dir/go-build"
start=$(date +%s)
echo "gateway-api: building the conformance suite into $dir (once; some three minutes of one core)" >&2
jobs=${SELVAGE_KUBE_JOBS:+-p $SELVAGE_KUBE_JOBS}
module=sigs.k8s.io/gateway-api/conformance
# shellcheck disable=SC2086 # $jobs is two words on purpose
nice -n 10 go build $jobs -trimpath -ldflags "-s -w" -o "$dir/.echo-basic" $module/echo-basic
# shellcheck disable=SC2086
nice -n 10 go build $jobs -trimpath -ldflags "-s -w" -o "$dir/.player" ./player
# shellcheck disable=SC2086
nice -n 10 go test -c $jobs -trimpath -ldflags "-s -w" -o "$dir/.conformance.test" $module
mv "$dir/.echo-basic" "$dir/echo-basic"
mv "$dir/.conformance.test" "$dir/conformance.test"
mv "$dir/.player" "$dir/player"
rm -rf "$GOCACHE"
echo "gateway-api: done in $(($(date +%s) - start)) s" >&2
echo "$dir"
