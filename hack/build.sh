#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# Builds the product's programs into .build/bin. The first time takes a few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOTOOLCHAIN=local
began=$SECONDS
mkdir -p .build/bin
go build -o .build/bin/ ./cmd/... ./test/demo
echo "scheduler, nodeagent, kubectl-mig, simgpu, testcluster, demo ... $((SECONDS - began))s"
