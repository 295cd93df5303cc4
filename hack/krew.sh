#!/usr/bin/env bash
# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# krew.sh VERSION URL HOMEPAGE [DIRECTORY]: builds kubectl-mig for every platform of
# manifests/krew/mig.yaml and fills that template in. Archives and manifest are left
# in the directory, .build/krew by default; the archives belong below URL. The first
# time takes several minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 3 ] || [ $# -gt 4 ]; then
	echo "Usage: hack/krew.sh VERSION URL HOMEPAGE [DIRECTORY], such as v0.1.0 and the addresses of the archives and of the project" >&2
	exit 2
fi
version=$1 url=$2 homepage=$3 out=${4:-.build/krew}
if ! [[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+ ]]; then
	echo "VERSION is \"$version\"; krew wants a semantic version with a v, such as v0.1.0" >&2
	exit 2
fi
export CGO_ENABLED=0 GOTOOLCHAIN=local
mkdir -p "$out"
filled=$(sed -e "s|@VERSION@|$version|; s|@HOMEPAGE@|$homepage|; s|@URL@|$url|" manifests/krew/mig.yaml)
for platform in $(sed -n 's/.*SHA256_\([a-z0-9]*_[a-z0-9]*\)@.*/\1/p' manifests/krew/mig.yaml); do
	began=$SECONDS
	work=$(mktemp -d)
	GOOS=${platform%_*} GOARCH=${platform#*_} go build -trimpath -ldflags "-s -w" -o "$work/kubectl-mig" ./cmd/kubectl-mig
	cp LICENSE "$work/"
	tar -C "$work" --sort=name --owner=0 --group=0 --mode=u=rwX,go=rX --mtime=@0 -cf - LICENSE kubectl-mig | gzip -n >"$out/kubectl-mig_$platform.tar.gz"
	rm -rf "$work"
	sum=$(sha256sum "$out/kubectl-mig_$platform.tar.gz" | cut -d ' ' -f 1)
	filled=${filled/@SHA256_$platform@/$sum}
	echo "kubectl-mig_$platform.tar.gz ... $((SECONDS - began))s"
done
echo "$filled" >"$out/mig.yaml"
echo "$out/mig.yaml"
