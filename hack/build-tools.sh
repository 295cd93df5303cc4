#!/bin/bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# Builds the programs of the test cluster into .build/tools/bin, from the modules
# hack/tools/k8s and hack/tools/node: etcd, the Kubernetes components, containerd,
# runc, the CNI plugins, pause, and a static busybox.
#
# A program that lies in the directory named by $DYNAMIG_ASSETS or
# $KUBEBUILDER_ASSETS is linked from there instead of being built. Nothing is
# installed: two Debian packages are downloaded and unpacked under .build/deb.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/.build/tools/bin
deb=$root/.build/deb
stamps=$root/.build/tools/stamps
log=$root/.build/tools/build.log
assets=${DYNAMIG_ASSETS:-${KUBEBUILDER_ASSETS:-}}
export CGO_ENABLED=0 GOWORK=off
mkdir -p "$bin" "$stamps"

k8s_programs="etcd kube-apiserver kube-controller-manager kubelet kubectl"
node_programs="containerd containerd-shim-runc-v2 ctr runc bridge host-local loopback busybox"
containerd=github.com/containerd/containerd/v2
cni=github.com/containernetworking/plugins/plugins

main() {
	cd "$root"
	. hack/lock.sh
	link_assets
	group k8s "$k8s_programs" hack/tools/k8s/go.mod hack/tools/k8s/go.sum
	group node "$node_programs" hack/tools/node/go.mod hack/tools/node/go.sum
	group pause pause test/cluster/pause/*.go
}

# group NAME PROGRAMS FILE...: builds PROGRAMS unless they are all there and were
# built from the same FILES, by the same Go and the same version of this script.
group() {
	local name=$1 programs=$2 key p
	shift 2
	key=$(go version; cat hack/build-tools.sh "$@" | sha256sum)
	if [ "$key" = "$(cat "$stamps/$name" 2>/dev/null)" ] && have $programs; then
		return
	fi
	for p in $programs; do
		from_assets "$p" || step "$p" "build_$name" "$p"
	done
	echo "$key" >"$stamps/$name"
}

have() {
	local p
	for p; do [ -x "$bin/$p" ] || return 1; done
}

from_assets() { [ -n "$assets" ] && [ -x "$assets/$1" ]; }

# link_assets points to the user's own programs, and forgets links to those that
# are the user's no longer, so that they get built.
link_assets() {
	local p
	for p in $k8s_programs $node_programs pause; do
		if from_assets "$p"; then
			ln -sfn "$(realpath "$assets/$p")" "$bin/$p"
			echo "$p: using $assets/$p, not built"
		elif [ -L "$bin/$p" ]; then
			rm "$bin/$p"
		fi
	done
}

announced=
announce() {
	[ -z "$announced" ] || return 0
	announced=yes
	echo "Building the test cluster's programs into .build/tools/bin."
	echo "The first time takes about 10 minutes on 2 cores and 12 GB of disk; after that nothing is built again."
}

# step PROGRAM COMMAND...: runs COMMAND, says how long it took, and that it still
# runs once a minute. Its output goes to the log, and is shown if it fails.
step() {
	local name=$1 began=$SECONDS rc
	shift
	announce
	# A read with a time-out is the heartbeat: no helper process can be left behind.
	# (COMMAND || ...) would switch off its set -e, hence the plain $?.
	exec 3< <(set +e; (set -e; "$@") </dev/null >"$log" 2>&1; echo $?)
	until read -r -t 60 -u 3 rc; do
		echo "$name: still building ($((SECONDS - began))s)"
	done
	exec 3<&-
	if [ "$rc" != 0 ]; then
		tail -n 30 "$log" >&2
		echo "$name: the build failed after $((SECONDS - began))s; the whole log is $log" >&2
		exit 1
	fi
	echo "$name ... $((SECONDS - began))s"
}

build_k8s() {
	cd "$root/hack/tools/k8s"
	local version component=k8s.io/component-base/version
	if [ "$1" = etcd ]; then
		go build -ldflags "-s -w" -o "$bin/etcd" go.etcd.io/etcd/server/v3
		return
	fi
	version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
	local minor=${version#v1.}
	go build -o "$bin/$1" -ldflags "-s -w -X $component.gitVersion=$version \
		-X $component.gitMajor=1 -X $component.gitMinor=${minor%%.*}" "k8s.io/kubernetes/cmd/$1"
}

build_node() {
	cd "$root/hack/tools/node"
	case $1 in
	containerd)
		go build -o "$bin/$1" -tags "no_btrfs no_zfs no_devmapper" \
			-ldflags "-s -w -X $containerd/version.Version=$(go list -m -f '{{.Version}}' $containerd)" \
			$containerd/cmd/containerd ;;
	containerd-shim-runc-v2 | ctr) go build -ldflags "-s -w" -o "$bin/$1" "$containerd/cmd/$1" ;;
	bridge | loopback) go build -ldflags "-s -w" -o "$bin/$1" "$cni/main/$1" ;;
	host-local) go build -ldflags "-s -w" -o "$bin/$1" "$cni/ipam/$1" ;;
	runc) build_runc ;;
	busybox) copy_busybox ;;
	esac
}

build_pause() { go build -ldflags "-s -w" -o "$bin/pause" ./test/cluster/pause; }

# build_runc links libseccomp statically. Without seccomp every sandbox fails:
# kubelet always asks for the profile RuntimeDefault. The Debian package is
# unpacked, not installed, so a pkg-config of three lines says where it lies.
build_runc() {
	unpack libseccomp-dev
	local lib
	lib=$(echo "$deb"/libseccomp-dev/usr/lib/*/libseccomp.a)
	cat >"$deb/pkg-config" <<-STUB
		#!/bin/sh
		case \$1 in --cflags) echo -I$deb/libseccomp-dev/usr/include ;; --libs) echo $lib ;; esac
	STUB
	chmod +x "$deb/pkg-config"
	PKG_CONFIG=$deb/pkg-config CGO_ENABLED=1 go build -tags seccomp -ldflags "-s -w" \
		-o "$bin/runc" github.com/opencontainers/runc
}

copy_busybox() {
	unpack busybox-static
	install "$deb/busybox-static/bin/busybox" "$bin/busybox"
}

# unpack PACKAGE: downloads a Debian package into .build/deb/PACKAGE.
unpack() {
	[ ! -d "$deb/$1" ] || return 0
	if ! command -v apt-get >/dev/null; then
		echo "apt-get is missing: put runc and a static busybox into a directory and name it in DYNAMIG_ASSETS" >&2
		return 1
	fi
	rm -rf "$deb/download" && mkdir -p "$deb/download" && cd "$deb/download"
	# Quiet: root's downloads are not sandboxed here, which apt warns of each time.
	apt-get -qq download "$1" 2>/dev/null || { apt-get -qq update && apt-get -qq download "$1"; }
	dpkg -x "$1"_*.deb unpacked
	mv unpacked "$deb/$1"
	cd "$root/hack/tools/node"
}

main
