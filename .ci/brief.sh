#!/usr/bin/env bash
# brief.sh: what a test runner says, without the output of tests that passed, which --show-output brings for the log.
exec sed -u -E '/^successes:$/,/^(test result: .*|failures:)$/ { /^(test result: .*|failures:)$/!d }'
