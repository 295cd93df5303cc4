#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# browser.sh [ARGUMENT of go test]...: tests the monitor's page in headless Chromium,
# on made-up fleets, and on the test cluster where its programs are built
# (.build/tools/bin). Chromium is $DYNAMIG_CHROMIUM, or the one of the PATH, or is
# installed from Debian. DYNAMIG_SCREENSHOTS=DIR keeps screenshots in DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOTOOLCHAIN=local

find_chromium() {
	command -v chromium || command -v chromium-browser || command -v google-chrome || true
}

if [ -z "${DYNAMIG_CHROMIUM:-}" ]; then
	DYNAMIG_CHROMIUM=$(find_chromium)
fi
if [ -z "$DYNAMIG_CHROMIUM" ]; then
	if ! command -v apt-get >/dev/null; then
		echo "Chromium is missing, and so is apt-get: install Chromium and name it in DYNAMIG_CHROMIUM" >&2
		exit 1
	fi
	echo "Installing Debian's chromium (about 300 MB on disk)."
	log=$(mktemp)
	if ! { apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		exit 1
	fi
	rm -f "$log"
	DYNAMIG_CHROMIUM=$(find_chromium)
fi
export DYNAMIG_CHROMIUM DYNAMIG_SCREENSHOTS=${DYNAMIG_SCREENSHOTS:+$(realpath "$DYNAMIG_SCREENSHOTS")}
[ ! -x .build/bin/scheduler ] || [ ! -x .build/tools/bin/kubelet ] || export DYNAMIG_BUILD=$PWD/.build

cd test/e2e/browser
go test -count=1 -timeout=15m "$@" .
