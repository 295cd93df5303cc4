#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# Static checks; each prints what it found and the run goes on to the next.
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOTOOLCHAIN=local
tools=$PWD/.build/tools/lint
mkdir -p "$tools"
failed=0
check() {
	local name=$1 began=$SECONDS
	shift
	if "$@"; then
		echo "$name ok ($((SECONDS - began))s)"
	else
		echo "$name found problems" >&2
		failed=1
	fi
}

for tool in honnef.co/go/tools/cmd/staticcheck sigs.k8s.io/logtools/logcheck; do
	(cd hack/tools/lint && go build -o "$tools/" "$tool") || exit 1
done

formatted() {
	local bad
	bad=$(gofmt -l cmd pkg test)
	[ -z "$bad" ] || { echo "$bad"; return 1; }
}
# What only builds with cgo; the tests for real GPUs are built, not run.
cgo() {
	command -v gcc >/dev/null || { echo "gcc is missing: pkg/nvml/native is not checked"; return 0; }
	local CGO_ENABLED=1 CGO_CFLAGS=-Wno-deprecated-declarations
	export CGO_ENABLED CGO_CFLAGS
	go vet ./pkg/nvml/native/... ./cmd/nodeagent && go vet -tags gpu ./pkg/nvml/native/ && "$tools/staticcheck" ./pkg/nvml/native/...
}
nested="test/promql test/e2e/browser"
vet() { go vet ./... && for module in $nested; do (cd "$module" && go vet .) || return 1; done; }
tidy() { for module in . $nested test/perf; do (cd "$module" && go mod tidy -diff) || return 1; done; }

check gofmt formatted
check vet vet
# What the standard generators write is not ours to change.
check staticcheck "$tools/staticcheck" $(go list ./... | grep -v /pkg/generated/)
check cgo cgo
check logcheck "$tools/logcheck" -check-contextual=true ./cmd/... ./pkg/...
check tidy tidy
check generate hack/generate.sh --check
exit $failed
