#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# browser.sh [ARGUMENT of go test]...: tests the monitor's page in headless Chromium,
# on made-up fleets, and on the test cluster where its programs are built
# (make integration does). DYNAMIG_SCREENSHOTS=DIR keeps screenshots in DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOTOOLCHAIN=local

DYNAMIG_CHROMIUM=$(hack/chromium.sh)
export DYNAMIG_CHROMIUM DYNAMIG_SCREENSHOTS=${DYNAMIG_SCREENSHOTS:+$(realpath "$DYNAMIG_SCREENSHOTS")}
[ ! -x .build/bin/scheduler ] || [ ! -x .build/tools/bin/kubelet ] || export DYNAMIG_BUILD=$PWD/.build

cd test/e2e/browser
go test -count=1 -timeout=15m "$@" .
