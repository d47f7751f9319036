#!/usr/bin/env bash
# cluster-tools.sh COMMAND=PACKAGE...: what the nodes of a test cluster are made of. Containers need root, so without it nothing is
# installed, and the tests that need a cluster say that they are skipped.
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
  echo "need: no root, so tests on a real cluster will be skipped" >&2
  exit 0
fi
"$(dirname "$0")/need.sh" "$@"
# Plugins are no commands: Debian has them in a folder of their own.
[ -x /usr/lib/cni/bridge ] || "$(dirname "$0")/need.sh" cni-plugins=containernetworking-plugins
