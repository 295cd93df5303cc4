#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# krew.sh VERSION URL HOMEPAGE: builds kubectl-mig for every platform of
# manifests/krew/mig.yaml and fills that template in. Archives and manifest are left
# in .build/krew; the archives belong below URL. The first time takes several minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -ne 3 ]; then
	echo "Usage: hack/krew.sh VERSION URL HOMEPAGE, such as v0.1.0 and the addresses of the archives and of the project" >&2
	exit 2
fi
version=$1 url=$2 homepage=$3
export CGO_ENABLED=0 GOTOOLCHAIN=local
. hack/lock.sh
out=.build/krew
mkdir -p "$out"
filled=$(sed -e "s|@VERSION@|$version|; s|@HOMEPAGE@|$homepage|; s|@URL@|$url|" manifests/krew/mig.yaml)
for platform in $(sed -n 's/.*SHA256_\([a-z0-9]*_[a-z0-9]*\)@.*/\1/p' manifests/krew/mig.yaml); do
	began=$SECONDS
	work=$(mktemp -d)
	GOOS=${platform%_*} GOARCH=${platform#*_} go build -trimpath -ldflags "-s -w" -o "$work/kubectl-mig" ./cmd/kubectl-mig
	cp LICENSE "$work/"
	tar -C "$work" --sort=name --owner=0 --group=0 --mtime=@0 -cf - LICENSE kubectl-mig | gzip -n >"$out/kubectl-mig_$platform.tar.gz"
	rm -rf "$work"
	sum=$(sha256sum "$out/kubectl-mig_$platform.tar.gz" | cut -d ' ' -f 1)
	filled=${filled/@SHA256_$platform@/$sum}
	echo "kubectl-mig_$platform.tar.gz ... $((SECONDS - began))s"
done
echo "$filled" >"$out/mig.yaml"
echo "$out/mig.yaml"
