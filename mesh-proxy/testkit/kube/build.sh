#!/bin/sh
# Builds the test control plane (etcd, kube-apiserver, kube-controller-manager, kubectl) once into a cache folder and
# prints that folder on standard output; progress goes to standard error. The folder's name holds a hash of what is
# built and with what, so a new version never mixes with an old one. SELVAGE_KUBE_JOBS limits the parallel compilers.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off GOFLAGS=-mod=readonly

command -v go >/dev/null || { echo "kube: go is needed to build the control plane (https://go.dev/dl, or apt-get install golang)" >&2; exit 1; }
hash=$(cat go.mod go.sum | { cat; go version; } | sha256sum | cut -c1-12)
root=${XDG_CACHE_HOME:-$HOME/.cache}/selvage
dir=$root/kube-$hash
programs="kube-apiserver kube-controller-manager kubectl etcd"

complete() { for p in $programs; do [ -x "$dir/$p" ] || return 1; done; }
if complete; then echo "$dir"; exit 0; fi

mkdir -p "$dir"
exec 9>"$dir/.lock"
flock -n 9 || { echo "kube: another build is running, waiting for it" >&2; flock 9; }
if complete; then echo "$dir"; exit 0; fi

version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}; minor=${minor%%.*}
flags="-s -w"
for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  flags="$flags -X $pkg.gitVersion=$version -X $pkg.gitMajor=1 -X $pkg.gitMinor=$minor"
  flags="$flags -X $pkg.gitCommit=selvage-testkit -X $pkg.gitTreeState=clean -X $pkg.buildDate=1970-01-01T00:00:00Z"
done

# A compiler cache of its own: it makes an interrupted build resume, and goes when the build is done.
export GOCACHE="$dir/go-build"
start=$(date +%s)
echo "kube: building Kubernetes $version and etcd into $dir (once; 13 minutes of one core, 3.5 GB of disk meanwhile)" >&2
log=$dir/build.log
: >"$log"
total=$(go list -deps k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-controller-manager \
  k8s.io/kubernetes/cmd/kubectl go.etcd.io/etcd/server/v3 2>>"$log" | wc -l)
jobs=${SELVAGE_KUBE_JOBS:+-p $SELVAGE_KUBE_JOBS}

progress() {
  while sleep 10; do
    done_count=$(grep -cE '^[a-z0-9./_-]+$' "$log" || true)
    echo "kube: $done_count of $total packages, $(($(date +%s) - start)) s" >&2
  done
}
progress & ticker=$!
trap 'kill $ticker 2>/dev/null || true' EXIT INT TERM
one() { # NAME PACKAGE
  # shellcheck disable=SC2086 # $jobs is two words on purpose
  if ! nice -n 10 go build -v $jobs -trimpath -ldflags "$flags" -o "$dir/.$1" "$2" 2>>"$log"; then
    echo "kube: build of $1 failed; the log is $log, its end:" >&2
    tail -n 20 "$log" >&2
    exit 1
  fi
  mv "$dir/.$1" "$dir/$1"
  echo "kube: $1 is built, $(($(date +%s) - start)) s" >&2
}
one kubectl k8s.io/kubernetes/cmd/kubectl
one etcd go.etcd.io/etcd/server/v3
one kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
one kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
cached=$(du -sm "$GOCACHE" | cut -f1)
rm -rf "$GOCACHE"
echo "kube: done in $(($(date +%s) - start)) s; programs take $(du -sm "$dir" | cut -f1) MB, the compiler cache took $cached MB" >&2
echo "$dir"
