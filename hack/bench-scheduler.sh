#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# bench-scheduler.sh [RUNS] [performance|large]: compares scheduling MIG instances
# with the stock scheduler, on 100 and 1000 nodes; with "large" on 5000. Each run is
# a process of its own; the table has medians over RUNS (default 1). Results stay in
# .build/perf/TIME. Needs about 2 GB of memory, 6 GB for "large".
#
# Further flags for the benchmark, such as -perf-cpuprofile, go into BENCH_FLAGS.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-1} label=${2:-performance}
export CGO_ENABLED=0 GOTOOLCHAIN=local

usage() {
	echo "$1 Usage: hack/bench-scheduler.sh [RUNS] [performance|large]" >&2
	exit 2
}
[[ $runs =~ ^[1-9][0-9]*$ ]] || usage "'$runs' is not a number of runs."
[[ $label = performance || $label = large ]] || usage "'$label' is not a set of workloads."

tools=$PWD/.build/tools/bin
[ -x "$tools/etcd" ] || hack/build-tools.sh
export PATH=$tools:$PATH

perf=$PWD/.build/perf
results=$perf/$(date +%Y%m%dT%H%M%S)
mkdir -p "$results"
. hack/lock.sh
began=$SECONDS
echo "Building the benchmark; the first time takes about 7 minutes on 2 cores."
(cd test/perf && go test -c -o "$perf/perf.test" . && go build -o "$perf/table" ./table)
echo "benchmark ... $((SECONDS - began))s"
flock -u 9

# etcd waits for the disk with every write: a tmpfs takes that out.
if [ -d /dev/shm ] && [ -w /dev/shm ]; then
	TMPDIR=$(mktemp -d /dev/shm/dynamig-perf.XXXXXX)
else
	TMPDIR=$(mktemp -d)
	echo "There is no tmpfs at /dev/shm: the speed of the disk will be part of the figures."
fi
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

# bench RUN: one run. Its output is shown as far as it tells what is being done.
bench() {
	local log=$results/run-$1.log began=$SECONDS
	echo "Run $1 of $runs; its output goes to $log"
	if ! (cd test/perf && "$perf/perf.test" -test.run '^$' -test.bench '^BenchmarkPerfScheduling$' -test.benchtime 1ns \
		-test.timeout 2h -perf-scheduling-label-filter "$label" -data-items-dir "$results/run-$1" \
		${BENCH_FLAGS:-}) 2>&1 | tee "$log" | sed -un 's/^Workload: BenchmarkPerfScheduling\//  /p'; then
		grep -A 1 'FATAL ERROR' "$log" >&2 || tail -n 20 "$log" >&2
		echo "The benchmark failed after $((SECONDS - began))s; the whole log is $log" >&2
		return 1
	fi
	echo "run $1 ... $((SECONDS - began))s"
}

for ((i = 1; i <= runs; i++)); do
	bench "$i"
done
"$perf/table" "$results"/run-*/ | tee "$results/table.txt"
