#!/usr/bin/env bash
# count.sh NAME LOG: adds up the closing lines of the test runners in LOG; fails when nothing ran or something failed. A test
# that says `skipped: REASON` (in output that --show-output or --nocapture brings) returned early: it counts as skipped, never
# as passed. With AGAIN=1 the failed ones have passed alone since (again.sh): they count as passed, and their number is said.
set -euo pipefail
awk -v name="$1" -v again="${AGAIN:-0}" '
  # A test is known by the heading of its output, or by the start of the line where output is not captured.
  /^---- .* stdout ----$/ { test = $2 }
  /^(successes|failures):$/ { test = "" }
  match($0, /^test [^ ]+ \.\.\. /) { test = $2 }
  /(^|^test [^ ]+ \.\.\. )(skipped: |SKIPPED )/ { key = test == "" ? "line " NR : test; if (!(key in said)) { said[key] = 1; e++ } }
  /^test result: / { test = ""; delete said
    for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i; if ($(i+1) ~ /^ignored/) s += $i } }
  END { if (again == 1 && f > 0) { printf "%s: %d of them passed only at the second try\n", name, f; p += f; f = 0 }
        if (e > p) e = p
        p -= e; s += e
        printf "%s: %d passed, %d failed, %d skipped\n", name, p, f, s; exit (f > 0 || p + e == 0) }' "$2"
