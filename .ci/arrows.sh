#!/usr/bin/env bash
# The dependency arrows of the workspace, checked on what cargo resolves:
# pure crates reach no runtime, no cluster client, no tunnel and no store; each heavy dependency has one home.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v jq >/dev/null || { echo "arrows: installing jq" >&2; apt-get install -y -q jq >/dev/null; }
meta=$(mktemp)
trap 'rm -f "$meta"' EXIT
cargo metadata --format-version 1 --locked >"$meta"

# CRATE reaches DEP through normal (not dev, not build) dependencies?
reaches() {
  jq -r --arg from "$1" --arg to "$2" '
    (.packages | map({key: .id, value: .name}) | from_entries) as $name
    | (.resolve.nodes | map({key: .id, value: [.deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg]}) | from_entries) as $edges
    | (.packages[] | select(.name == $from and .source == null) | .id) as $start
    | {seen: {($start): true}, todo: [$start]}
    | until(.todo | length == 0;
        . as $s
        | ([.todo[] | $edges[.] // [] | .[]] | unique | map(select($s.seen[.] | not))) as $next
        | {seen: ($s.seen + ($next | map({key: ., value: true}) | from_entries)), todo: $next})
    | any(.seen | keys[]; $name[.] == $to)' "$meta"
}
checks=0 bad=0
forbid() { # CRATE DEP...
  local crate=$1 dep
  shift
  for dep in "$@"; do
    checks=$((checks + 1))
    case $(reaches "$crate" "$dep") in
      false) ;;
      true) echo "arrows: $crate must not reach $dep"; bad=$((bad + 1)) ;;
      *) echo "arrows: crate $crate is not in the workspace"; bad=$((bad + 1)) ;;
    esac
  done
}
for pure in mesh-api mesh-core istio-compat mesh-index; do
  forbid "$pure" tokio kube-client libp2p rusqlite hyper
done
forbid mesh-net kube-client libp2p rusqlite
forbid node-rt kube-client libp2p rusqlite mesh-core mesh-api
forbid mesh-ca tokio kube-client libp2p rusqlite
forbid mesh-tunnel kube-client rusqlite mesh-core
forbid mesh-proxy kube-client istio-compat mesh-controller mesh-index mesh-testkit
forbid mesh-controller libp2p rusqlite mesh-proxy mesh-testkit
forbid meshctl libp2p rusqlite mesh-proxy
echo "arrows: $((checks - bad)) passed, $bad failed, 0 skipped"
[ "$bad" = 0 ]
