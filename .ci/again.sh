#!/usr/bin/env bash
# again.sh LOG: runs the failed tests of LOG once more, one at a time and with nothing beside them, and names them. Worlds of
# a dozen processes share the machine with other tests; a fault fails alone too. Fails when one fails again, when more than
# a few failed, or when a test program ended without saying which test it was.
set -euo pipefail
log=$1 most=5
mapfile -t targets < <(sed -n 's/^    `\(-p .*\)`$/\1/p' "$log")
mapfile -t names < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log" | sort -u)
((${#targets[@]} > 0 && ${#names[@]} > 0)) || { echo "again: no failed test has a name" >&2; exit 1; }
((${#names[@]} <= most)) || { echo "again: ${#names[@]} tests failed, at most $most are tried again" >&2; exit 1; }
echo "again: ${#names[@]} failed, each is tried once more alone: ${names[*]}"
second=$(mktemp)
trap 'rm -f "$second"' EXIT
for target in "${targets[@]}"; do
  # The words of a target are arguments.
  # shellcheck disable=SC2086
  ${CARGO:-cargo} test --locked $target -- --exact "${names[@]}" --test-threads=1 2>&1 | tee -a "$second"
done
passed=$(grep -cE '^test .* \.\.\. ok$' "$second" || true)
((passed >= ${#names[@]})) || { echo "again: $passed of ${#names[@]} ran and passed" >&2; exit 1; }
echo "again: passed alone, so the machine was too busy for them: ${names[*]}"
