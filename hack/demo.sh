#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# demo.sh up|once|stop PORT_BASE: builds what is missing and runs the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1 base=$2
run() { .build/bin/demo --repo . --build .build --port-base "$base" "$@"; }

if [ "$what" = stop ]; then
	[ -x .build/bin/demo ] || { echo "There is no demo to stop: nothing was built yet."; exit 0; }
	run --stop
	exit
fi
# A demo that is still up is replaced, so its ports do not count.
if [ -x .build/bin/demo ] && [ -e .build/demo/cluster.json ]; then
	hack/preflight.sh
	run --stop
fi
hack/preflight.sh $(seq "$base" $((base + 4)))
hack/build-tools.sh
hack/build.sh
case $what in
up) run ;;
once) run --once ;;
*) echo "DEMO is \"$what\"; use up or once." >&2; exit 1 ;;
esac
