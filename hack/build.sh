#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# Builds the product's programs into .build/bin. The first time takes a few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOTOOLCHAIN=local
. hack/lock.sh
began=$SECONDS
mkdir -p .build/bin
# What the scheduler's log and metrics say of kube-scheduler, as upstream's own build.
kubernetes=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
base=k8s.io/component-base/version
go build -ldflags "-X $base.gitVersion=$kubernetes -X $base.gitMajor=1 -X $base.gitMinor=$(echo "$kubernetes" | cut -d . -f 2) -X $base.gitCommit=" \
	-o .build/bin/ $(go list ./cmd/... | grep -v /cmd/nodeagent$) ./test/demo
# The agent's driver for real GPUs needs a C compiler.
if command -v gcc >/dev/null; then
	export CGO_ENABLED=1 CGO_CFLAGS=-Wno-deprecated-declarations
else
	echo "gcc is missing: nodeagent is built for simulated GPUs only (on Debian: apt-get install gcc libc6-dev)" >&2
fi
go build -o .build/bin/ ./cmd/nodeagent
echo "scheduler, nodeagent, kubectl-mig, simgpu, testcluster, demo ... $((SECONDS - began))s"
