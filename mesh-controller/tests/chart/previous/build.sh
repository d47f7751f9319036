#!/bin/sh
# Builds mesh-controller and mesh-proxy as they were at the commit in `programs`, once, into a cache folder, and prints that
# folder on standard output; progress goes to standard error. Exit code 3, with the reason, where it cannot be done.
# What those programs have of other crates is taken from this tree's target/debug where it was built alike, which leaves
# some three minutes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../../.." && pwd)
commit=$(sed -n '/^[0-9a-f]/{p;q;}' "$here/programs")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/selvage
dir=$cache/previous-$commit
programs="mesh-controller mesh-proxy"
there() { for p in $programs; do [ -x "$dir/$p" ] || return 1; done; }
if there; then echo "$dir"; exit 0; fi

cannot() { echo "previous: $*" >&2; exit 3; }
command -v git >/dev/null || cannot "git is not installed"
command -v cargo >/dev/null || cannot "cargo is not installed"
git -C "$root" cat-file -e "$commit^{commit}" 2>/dev/null || cannot "commit $commit is not in this tree's history (a shallow clone?)"
# Sources, what is compiled and what is linked.
free=$(df -Pk "$(dirname "$cache")" | awk 'NR == 2 { print $4 }')
[ "$free" -gt 4000000 ] || cannot "less than 4 GB of disk are left for it"

mkdir -p "$dir"
exec 9>"$dir/.lock"
flock 9
if there; then echo "$dir"; exit 0; fi
start=$(date +%s)
echo "previous: building $programs of $commit into $dir (once; some minutes)" >&2
source=$dir/source target=$dir/target
rm -rf "$source" "$target"
mkdir -p "$source" "$target/debug"
trap 'rm -rf "$source" "$target"' EXIT
trap 'exit 130' INT TERM
git -C "$root" archive "$commit" | tar -x -C "$source"

# Crates of registries are the same wherever a workspace lies; its own ones must not be taken for those of another time.
built=$root/target/debug
if [ -z "${CARGO_TARGET_DIR:-}" ] && [ -d "$built/.fingerprint" ]; then
  own=$(sed -n 's/^name = "\([a-z0-9_-]*\)"$/\1/p' "$root"/*/Cargo.toml "$root"/*/*/Cargo.toml | sort -u | tr '\n' '|')
  own=${own%|}
  mkdir -p "$target/debug/.fingerprint" "$target/debug/build" "$target/debug/deps"
  for part in .fingerprint build; do
    (cd "$built/$part" && ls | grep -vE "^($own)-[0-9a-f]+$" | xargs cp -a -t "$target/debug/$part")
  done
  own=$(echo "$own" | tr - _)
  (cd "$built/deps" && ls | grep -E '\.(rlib|rmeta|so)$' | grep -vE "^(lib)?($own)-" >"$dir/list")
  # As links, or not at all: it is many gigabytes. Nothing is written into them, a compiler replaces whole files.
  if [ -s "$dir/list" ] && ln "$built/deps/$(head -n 1 "$dir/list")" "$target/probe" 2>/dev/null; then
    (cd "$built/deps" && xargs cp -al -t "$target/debug/deps" <"$dir/list" 2>/dev/null) || true
  else
    rm -rf "$target/debug"
  fi
  rm -f "$dir/list" "$target/probe"
fi
if ! (cd "$source" && nice -n "${NICE:-5}" cargo build --locked --quiet --target-dir "$target" -p mesh-controller -p mesh-proxy --bins 9>&-) >"$dir/build.log" 2>&1; then
  echo "previous: the build failed; the log is $dir/build.log, its end:" >&2
  tail -n 20 "$dir/build.log" >&2
  exit 1
fi
for p in $programs; do
  strip -o "$dir/.$p" "$target/debug/$p" 2>/dev/null || cp "$target/debug/$p" "$dir/.$p"
  mv "$dir/.$p" "$dir/$p"
done
echo "previous: done in $(($(date +%s) - start)) s" >&2
echo "$dir"
