#!/bin/bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# preflight.sh [PORT...]: says in one sentence what this machine lacks for the test
# cluster, and exits 1, before anything is changed. PORTs must be free on 127.0.0.1.
set -euo pipefail

refuse() {
	echo "$1" >&2
	exit 1
}

[ "$(uname -s)" = Linux ] || refuse "The test cluster needs Linux; this is $(uname -s)."
[ "$(id -u)" = 0 ] || refuse "The test cluster needs root for namespaces, mounts and cgroups; run it with sudo."

command -v go >/dev/null || refuse "Go is missing; install Go 1.26 or newer and put it into PATH."
go=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
[[ $go =~ ^go1\.([0-9]+) ]] || refuse "The version of Go is not understood: '$go'; install Go 1.26 or newer."
[ "${BASH_REMATCH[1]}" -ge 26 ] || refuse "Go 1.26 or newer is needed; this is $go."

command -v gcc >/dev/null || refuse "gcc is missing, runc is built with it; on Debian: apt-get install gcc libc6-dev."
command -v ip >/dev/null || refuse "The program ip is missing; on Debian: apt-get install iproute2."
command -v mount >/dev/null || refuse "The program mount is missing, kubelet calls it; on Debian: apt-get install mount."

# used PORT: something listens on it, on 127.0.0.1 or on every address. In
# /proc/net/tcp an address is HEX:PORT and state 0A is LISTEN.
used() {
	cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
		awk -v port="$(printf '%04X' "$1")" '
			$4 == "0A" { split($2, a, ":"); if (a[2] == port && a[1] ~ /^(0100007F|0+|0+FFFF00000100007F|0+01000000)$/) found = 1 }
			END { exit !found }'
}

for port; do
	! used "$port" || refuse "TCP port $port on 127.0.0.1 is in use; stop what listens there or choose another port."
done
