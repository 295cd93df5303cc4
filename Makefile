# SPDX-FileCopyrightText: The dynamig Authors
# SPDX-License-Identifier: Apache-2.0

# Everything but native NVML and the race detector is built without cgo. All builds
# use the same flags, so that they share the build cache.
export CGO_ENABLED := 0
export GOTOOLCHAIN := local

BUILD := .build
PROGRAMS := scheduler nodeagent simgpu testcluster
PORT_BASE ?= 16440
DEMO ?= up

.DEFAULT_GOAL := help
.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Start a cluster, watch pods get MIG instances; DEMO=once verifies and tears down
	@hack/demo.sh $(DEMO) $(PORT_BASE)

.PHONY: demo-stop
demo-stop: ## Remove the demo's cluster
	@hack/demo.sh stop $(PORT_BASE)

.PHONY: test
test: unit race integration ## Run all tests: unit, fuzz seeds, race, end to end

.PHONY: unit
unit: ## Run unit tests and fuzz seeds
	@hack/test.sh unit

.PHONY: race
race: ## Run the tests of concurrent packages with the race detector
	@hack/test.sh race

.PHONY: integration
integration: ## Run the end-to-end tests on a real cluster with simulated GPUs
	@hack/test.sh integration

.PHONY: verify
verify: lint test ## What CI runs

.PHONY: lint
lint: ## Run gofmt, vet, staticcheck, logcheck; check generated code and tidiness
	@hack/lint.sh

.PHONY: generate
generate: ## Generate deep copies, client, informer and CRD
	@hack/generate.sh

.PHONY: build
build: ## Build the programs into .build/bin
	@hack/build.sh

.PHONY: fuzz
fuzz: ## Fuzz each parser for FUZZTIME (default 10s)
	@hack/test.sh fuzz

.PHONY: bench-geometry
bench-geometry: ## Time placement decisions
	@go test -run '^$$' -bench . -benchmem ./pkg/geometry/ ./pkg/pool/

.PHONY: bench-packing
bench-packing: ## Compare how policies pack a fleet; writes docs/packing.*; OPENB=DIR adds the openb trace; SAMPLE=1 large fleets
	@go run ./test/packing $(if $(OPENB),-openb '$(OPENB)') $(if $(SAMPLE),-sample)

.PHONY: bench-scheduler
bench-scheduler: ## Compare with the stock scheduler in upstream's scheduler_perf
	@hack/bench-scheduler.sh

.PHONY: bench-monitor
bench-monitor: ## Time a scrape of 1000 half-full nodes
	@go test -run '^$$' -bench Scrape -benchtime 5x ./pkg/monitor/

.PHONY: browser
browser: ## Test the monitor's page in headless Chromium
	@hack/browser.sh

.PHONY: monitor-dev
monitor-dev: ## Show the monitor of a made-up cluster on port 9395, for work on the page
	@go run ./test/fleet/serve

.PHONY: bench-agent
bench-agent: ## Measure the agent's own time, parallel GPUs, memory and growth, with targets
	@go run ./test/benchagent

.PHONY: deploy
deploy: ## Install on the cluster of the current kubeconfig
	@kubectl apply -k manifests/base

.PHONY: clean
clean: demo-stop ## Remove everything that was built
	@rm -rf $(BUILD)
