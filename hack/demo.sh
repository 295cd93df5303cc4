#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# demo.sh up|once|stop PORT_BASE: builds what is missing and runs the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1 base=$2
case $what in
up | once | stop) ;;
*) echo "DEMO is \"$what\"; use up or once." >&2; exit 1 ;;
esac
if ! [[ $base =~ ^[0-9]+$ ]] || [ "$base" -lt 1024 ] || [ "$base" -gt 65000 ]; then
	echo "PORT_BASE is \"$base\"; use a number from 1024 to 65000, such as PORT_BASE=17000 make demo." >&2
	exit 1
fi
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
hack/preflight.sh $(seq "$base" $((base + 5)))
hack/build-tools.sh
hack/build.sh
if [ "$what" = once ]; then run --once; else run; fi
