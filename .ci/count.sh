#!/usr/bin/env bash
# count.sh NAME LOG: adds up the closing lines of the test runners in LOG; fails when nothing ran or something failed.
set -euo pipefail
awk -v name="$1" '
  /^test result: / { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i; if ($(i+1) ~ /^ignored/) s += $i } }
  END { printf "%s: %d passed, %d failed, %d skipped\n", name, p, f, s; exit (f > 0 || p == 0) }' "$2"
