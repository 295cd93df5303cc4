#!/usr/bin/env bash
# Generates deep copies, client, lister, informer and the CRD from
# pkg/api/v1alpha1 with the standard generators. --check fails on a difference.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
bin=$PWD/.build/tools/gen
mkdir -p "$bin"
for tool in k8s.io/code-generator/cmd/{client-gen,deepcopy-gen,informer-gen,lister-gen} sigs.k8s.io/controller-tools/cmd/controller-gen; do
  (cd hack/tools/gen && go build -o "$bin/" "$tool")
done

module=github.com/dynamig/dynamig
api=pkg/api/v1alpha1
header=hack/boilerplate.go.txt
out=$PWD
if [ "${1:-}" = --check ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
  mkdir -p "$out/$api"
  cp "$api/zz_generated.deepcopy.go" "$out/$api/" # its generator writes in place only
fi

"$bin/deepcopy-gen" --go-header-file "$header" --output-file zz_generated.deepcopy.go "./$api"
"$bin/client-gen" --go-header-file "$header" --clientset-name versioned --input-base "" \
  --input "$module/$api" --output-pkg $module/pkg/generated/clientset --output-dir "$out/pkg/generated/clientset"
"$bin/lister-gen" --go-header-file "$header" \
  --output-pkg $module/pkg/generated/listers --output-dir "$out/pkg/generated/listers" "./$api"
"$bin/informer-gen" --go-header-file "$header" --versioned-clientset-package $module/pkg/generated/clientset/versioned \
  --listers-package $module/pkg/generated/listers \
  --output-pkg $module/pkg/generated/informers --output-dir "$out/pkg/generated/informers" "./$api"
"$bin/controller-gen" crd:headerFile=hack/boilerplate.yaml.txt "paths=./$api" "output:crd:dir=$out/manifests/base/crd"

if [ "$out" != "$PWD" ]; then
  diff "$out/$api/zz_generated.deepcopy.go" "$api/zz_generated.deepcopy.go"
  diff -r pkg/generated "$out/pkg/generated"
  diff manifests/base/crd/dynamig.io_gpunodes.yaml "$out/manifests/base/crd/dynamig.io_gpunodes.yaml"
fi
