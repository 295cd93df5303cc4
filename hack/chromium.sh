#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# chromium.sh: prints the path of the browser for the tests of the monitor's page:
# $DYNAMIG_CHROMIUM, or the one of the PATH, or Debian's, which is installed then.
set -euo pipefail

find_chromium() {
	command -v chromium || command -v chromium-browser || command -v google-chrome || true
}

refuse() {
	echo "$1; install Chromium and put it into PATH, or name it in DYNAMIG_CHROMIUM." >&2
	exit 1
}

chromium=${DYNAMIG_CHROMIUM:-$(find_chromium)}
if [ -z "$chromium" ]; then
	command -v apt-get >/dev/null || refuse "The tests of the monitor's page need Chromium, and there is no apt-get to install it with"
	echo "Installing Debian's chromium (about 300 MB on disk)." >&2
	log=$(mktemp)
	export DEBIAN_FRONTEND=noninteractive
	if ! { apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
		refuse "apt-get could not install Chromium, which the tests of the monitor's page need ($log has its words)"
	fi
	rm -f "$log"
	chromium=$(find_chromium)
fi
command -v "$chromium" >/dev/null || refuse "'$chromium' is no program that can be run"
echo "$chromium"
