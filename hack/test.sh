#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# test.sh unit|race|integration|fuzz
set -euo pipefail
cd "$(dirname "$0")/.."
export GOTOOLCHAIN=local

# Packages whose code runs in parallel and that do not drag kube-scheduler along:
# the race detector builds everything again.
race="./pkg/geometry/... ./pkg/pool/... ./pkg/nvml/... ./pkg/cdi/... ./pkg/deviceplugin/... ./pkg/agent/... ./pkg/config/... ./pkg/monitor"

case $1 in
unit)
	export CGO_ENABLED=0
	go test $(go list ./... | grep -v -E '/test/(cluster|e2e|crash)$')
	# On its own: it runs programs that go's test cache does not know, and much at once.
	go test -count=1 -timeout=40m ./test/crash/
	# A module of its own: it has Prometheus' engine.
	(cd test/promql && go test -count=1 .)
	;;
race)
	command -v gcc >/dev/null || { echo "gcc is missing; the race detector needs it (on Debian: apt-get install gcc libc6-dev)." >&2; exit 1; }
	export CGO_ENABLED=1 CGO_CFLAGS=-Wno-deprecated-declarations # go-nvml wraps deprecated functions, too
	go test -race $race
	;;
integration)
	export CGO_ENABLED=0
	hack/preflight.sh
	hack/chromium.sh >/dev/null
	hack/build-tools.sh
	hack/build.sh
	export DYNAMIG_BUILD=$PWD/.build DYNAMIG_CLUSTER_TESTS=1
	go test -count=1 -timeout=40m -p 1 ./test/cluster/ ./test/e2e/
	hack/browser.sh
	;;
fuzz)
	export CGO_ENABLED=0
	targets=$(git ls-files '*_test.go' | xargs grep -oE '^func Fuzz[A-Za-z0-9_]+' | sed 's/func //') || { echo "No fuzz target was found; correct hack/test.sh." >&2; exit 1; }
	for target in $targets; do # FILE:NAME
		echo "${target#*:} in $(dirname "$target")"
		go test -run '^$' -fuzz "^${target#*:}\$" -fuzztime "${FUZZTIME:-10s}" "./$(dirname "$target")"
	done
	;;
esac
