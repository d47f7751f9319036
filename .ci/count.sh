#!/usr/bin/env bash
# count.sh NAME LOG: adds up the closing lines of the test runners in LOG; fails when nothing ran or something failed. With
# AGAIN=1 the failed ones have passed alone since (again.sh): they count as passed, and their number is said.
set -euo pipefail
awk -v name="$1" -v again="${AGAIN:-0}" '
  /^test result: / { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i; if ($(i+1) ~ /^ignored/) s += $i } }
  END { if (again == 1 && f > 0) { printf "%s: %d of them passed only at the second try\n", name, f; p += f; f = 0 }
        printf "%s: %d passed, %d failed, %d skipped\n", name, p, f, s; exit (f > 0 || p == 0) }' "$2"
