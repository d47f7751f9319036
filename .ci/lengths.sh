#!/usr/bin/env bash
# A file that is read in one go: no source file, of product or of tests, has more than 500 lines. Unit tests at the end of a
# file do not count.
set -euo pipefail
cd "$(dirname "$0")/.."
find . -path ./target -prune -o -name '*.rs' -print0 | xargs -0 -n 100000 awk -v most=500 '
  function say() {
    files++
    if (lines > most) { printf "lengths: %s has %d lines, more than %d\n", name, lines, most; long++ }
  }
  FNR == 1 { if (name) say(); name = FILENAME; lines = 0; counts = 1; before = "" }
  before == "#[cfg(test)]" && /^mod [a-z_]+ \{/ { counts = 0; lines-- }
  counts { lines++ }
  { before = $0 }
  END { say(); printf "lengths: %d files, %d too long\n", files, long; exit long > 0 }'
