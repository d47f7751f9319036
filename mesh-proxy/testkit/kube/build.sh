#!/bin/sh
# Builds the programs of the test cluster once into a cache folder and prints that folder on standard output; progress goes to
# standard error. Without arguments: the control plane (kubectl, etcd, kube-apiserver, kube-controller-manager). With names:
# those; `all`: also kube-scheduler, kubelet, kube-proxy, helm and coredns. The folder's name holds a hash of what is built and
# with what, so a new version never mixes with an old one. SELVAGE_KUBE_JOBS limits the parallel compilers.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off GOFLAGS=-mod=readonly

command -v go >/dev/null || { echo "kube: go is needed to build the test cluster (https://go.dev/dl, or apt-get install golang)" >&2; exit 1; }
hash_of() { # FOLDER
  { cat "$1/go.mod" "$1/go.sum"; [ ! -f "$1/main.go" ] || cat "$1/main.go"; go version; } | sha256sum | cut -c1-12
}
root=${XDG_CACHE_HOME:-$HOME/.cache}/selvage
dir=$root/kube-$(hash_of .)
# Programs that are modules of their own, because their Kubernetes libraries are of another version. A folder each, and a link
# beside the others.
apart="helm coredns"
home() { # NAME
  echo "$root/$1-$(hash_of "$1")"
}

control="kubectl etcd kube-apiserver kube-controller-manager"
all="$control kube-scheduler kubelet kube-proxy $apart"
case "$*" in "") programs=$control ;; all) programs=$all ;; *) programs=$* ;; esac
for p in $programs; do
  case " $all " in *" $p "*) ;; *) echo "kube: no such program: $p (there are: $all)" >&2; exit 2 ;; esac
done

is_apart() { case " $apart " in *" $1 "*) ;; *) return 1 ;; esac; }
missing() {
  for p in $programs; do
    if is_apart "$p"; then
      # The link may be another version's.
      [ "$(readlink "$dir/$p" 2>/dev/null)" = "$(home "$p")/$p" ] && [ -x "$dir/$p" ] || printf '%s ' "$p"
    else
      [ -x "$dir/$p" ] || printf '%s ' "$p"
    fi
  done
}
if [ -z "$(missing)" ]; then echo "$dir"; exit 0; fi

mkdir -p "$dir"
exec 9>"$dir/.lock"
if ! flock -n 9; then
  echo "kube: another build is running, waiting for it" >&2
  # What is wanted may be there before that build is through.
  until flock -w 2 9; do if [ -z "$(missing)" ]; then echo "$dir"; exit 0; fi; done
fi
wanted=$(missing)
if [ -z "$wanted" ]; then echo "$dir"; exit 0; fi

package() { # NAME
  case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    helm) echo helm.sh/helm/v3/cmd/helm ;;
    coredns) echo . ;;
    *) echo "k8s.io/kubernetes/cmd/$1" ;;
  esac
}
packages() { # the packages of all wanted programs of this folder's module
  for p in $wanted; do is_apart "$p" || package "$p"; done
}

version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}; minor=${minor%%.*}
flags="-s -w"
for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  flags="$flags -X $pkg.gitVersion=$version -X $pkg.gitMajor=1 -X $pkg.gitMinor=$minor"
  flags="$flags -X $pkg.gitCommit=selvage-testkit -X $pkg.gitTreeState=clean -X $pkg.buildDate=1970-01-01T00:00:00Z"
done

# A compiler cache of its own: it makes an interrupted build resume, and goes when the build is done.
# One for each module: who waits for Helm alone does not throw the other away.
export GOCACHE="$dir/go-build"
start=$(date +%s)
echo "kube: building $wanted(Kubernetes $version) into $dir (once; all takes 20 minutes of one core, 5 GB of disk meanwhile)" >&2
log=$dir/build.log
: >"$log"
list=$(packages)
total=0
# shellcheck disable=SC2086 # a list of packages
[ -z "$list" ] || total=$(go list -deps $list 2>>"$log" | wc -l)
for p in $apart; do
  case " $wanted " in *" $p "*) total=$((total + $(cd "$p" && go list -deps "$(package "$p")" 2>>"$log" | wc -l))) ;; esac
done
jobs=${SELVAGE_KUBE_JOBS:+-p $SELVAGE_KUBE_JOBS}

progress() {
  exec 9>&-
  while sleep 10; do
    done_count=$(grep -cE '^[a-zA-Z0-9./_-]+$' "$log" || true)
    echo "kube: $done_count of $total packages, $(($(date +%s) - start)) s" >&2
  done
}
progress & ticker=$!
trap 'kill $ticker 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
one() { # NAME OUTPUT FLAGS
  # shellcheck disable=SC2086 # $jobs is two words on purpose
  if ! nice -n 10 go build -v $jobs -trimpath -ldflags "$3" -o "$2/.$1" "$(package "$1")" 2>>"$log" 9>&-; then
    echo "kube: build of $1 failed; the log is $log, its end:" >&2
    tail -n 20 "$log" >&2
    exit 1
  fi
  mv "$2/.$1" "$2/$1"
  echo "kube: $1 is built, $(($(date +%s) - start)) s" >&2
}
own_flags() { # NAME
  printf '%s' "-s -w"
  [ "$1" = helm ] || return 0
  printf '%s' " -X helm.sh/helm/v3/internal/version.version=$(go list -m -f '{{.Version}}' helm.sh/helm/v3)"
  # What `helm template` and `helm lint` take for the cluster's version when there is none.
  api=$(go list -m -f '{{.Version}}' k8s.io/client-go | cut -d. -f2)
  for pkg in pkg/lint/rules pkg/chartutil; do
    printf '%s' " -X helm.sh/helm/v3/$pkg.k8sVersionMajor=1 -X helm.sh/helm/v3/$pkg.k8sVersionMinor=$api"
  done
}
cached=0
for p in $all; do
  case " $wanted " in *" $p "*) ;; *) continue ;; esac
  if is_apart "$p"; then
    to=$(home "$p")
    mkdir -p "$to"
    if [ ! -x "$to/$p" ]; then
      (cd "$p" && GOCACHE="$to/go-build" && one "$p" "$to" "$(own_flags "$p")")
      cached=$((cached + $(du -sm "$to/go-build" | cut -f1)))
      rm -rf "$to/go-build"
    fi
    ln -sfn "$to/$p" "$dir/$p"
  else
    one "$p" "$dir" "$flags"
  fi
done
if [ -n "$list" ]; then
  cached=$((cached + $(du -sm "$GOCACHE" | cut -f1)))
  rm -rf "$GOCACHE"
fi
echo "kube: done in $(($(date +%s) - start)) s; programs take $(du -smL "$dir" | cut -f1) MB, the compiler caches took $cached MB" >&2
echo "$dir"
