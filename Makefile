# Two commands do all: `make demo` (watch the main job) and `make test` (prove it). `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
NEED := .ci/need.sh
LOGS := target/logs
export CARGO_TERM_COLOR ?= auto

# What worlds of network namespaces are made of.
LAB_TOOLS := ip=iproute2 nft=nftables gcc=gcc miniupnpd=miniupnpd-nftables
# What calls services while rules change.
LOAD_TOOLS := h2load=nghttp2-client wrk=wrk
# What a real cluster's nodes are made of.
CLUSTER_TOOLS := containerd=containerd runc=runc iptables=iptables conntrack=conntrack promtool=prometheus
PROGRAMS := -p mesh-proxy -p mesh-controller -p meshctl -p mesh-testkit

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## debug build of all programs
	@$(NEED) gcc=gcc
	@echo "build: compiling (the first build takes some minutes)"
	$(CARGO) build --locked $(PROGRAMS) --bins

.PHONY: demo
demo: ## the main job, self-checking: build, bring up a closed world, steer calls, lose the cloud, clean up
	@$(NEED) $(LAB_TOOLS)
	@$(MAKE) --no-print-directory build
	target/debug/demo $(ARGS)

.PHONY: lab
lab: ## a world of network namespaces to play with (ARGS="down" ends it)
	@$(NEED) $(LAB_TOOLS)
	@$(MAKE) --no-print-directory build
	target/debug/lab $(or $(ARGS),up examples/worlds/two-sites.yaml)

.PHONY: test
test: ## everything: unit, in-process, worlds, real Kubernetes, conformance when CONFORMANCE_VECTORS is set
	@$(NEED) $(LAB_TOOLS) $(LOAD_TOOLS)
	@.ci/cluster-tools.sh $(CLUSTER_TOOLS)
	@mkdir -p $(LOGS)
	@echo "test: the Kubernetes programs (built once, then cached)"
	@mesh-proxy/testkit/kube/build.sh all
	@$(MAKE) --no-print-directory build
	rc=0; export SELVAGE_BIN_DIR=$(CURDIR)/target/debug; \
	$(CARGO) test --locked --workspace --no-fail-fast -- --test-threads=2 --show-output 2>&1 | tee $(LOGS)/test.log | .ci/brief.sh || rc=$$?; \
	again=0; if [ $$rc != 0 ]; then if .ci/again.sh $(LOGS)/test.log; then rc=0; again=1; fi; fi; \
	AGAIN=$$again .ci/count.sh test $(LOGS)/test.log || rc=1; exit $$rc

.PHONY: nat-matrix
nat-matrix: ## every NAT kind against every NAT kind, QUIC and TCP: path reached, first byte, time to upgrade
	@$(NEED) $(LAB_TOOLS)
	@$(MAKE) --no-print-directory build
	target/debug/nat-matrix $(ARGS)

.PHONY: test-unit
test-unit: ## what needs neither namespaces nor other programs
	@mkdir -p $(LOGS)
	rc=0; $(CARGO) test --locked --workspace --lib --bins -- --show-output 2>&1 | tee $(LOGS)/test-unit.log | .ci/brief.sh || rc=$$?; .ci/count.sh test-unit $(LOGS)/test-unit.log || rc=1; exit $$rc

.PHONY: fuzz
fuzz: ## every fuzz target for SECONDS (60) each, another way each time; `make test` runs each for a moment
	@mkdir -p $(LOGS)
	rc=0; SELVAGE_FUZZ_SECONDS=$(or $(SECONDS),60) SELVAGE_FUZZ_SEED=$$RANDOM$$RANDOM $(CARGO) test --locked --workspace --lib --test 'fuzz*' fuzz_ -- --nocapture --test-threads=2 2>&1 | tee $(LOGS)/fuzz.log || rc=$$?; .ci/count.sh fuzz $(LOGS)/fuzz.log || rc=1; exit $$rc

.PHONY: conformance
conformance: ## replay CONFORMANCE_VECTORS; exit 1 if any case fails
	@test -n "$${CONFORMANCE_VECTORS:-}" || { echo "conformance: set CONFORMANCE_VECTORS to the folder with the test data" >&2; exit 2; }
	CONFORMANCE_STRICT=1 $(CARGO) test --locked --workspace --no-fail-fast --test 'conformance*' -- --nocapture --test-threads=1

.PHONY: kube-test
kube-test: ## the mesh and enrolment on a real kube-apiserver, and Gateway API's own suite (SUITE=0: without it; SUITE=HTTPRouteWeight: that test)
	@$(NEED) $(LAB_TOOLS) $(LOAD_TOOLS)
	@mkdir -p $(LOGS)
	@mesh-proxy/testkit/kube/build.sh
	@$(MAKE) --no-print-directory build
	rc=0; export SELVAGE_GATEWAY_CONFORMANCE=$(or $(SUITE),1) SELVAGE_BIN_DIR=$(CURDIR)/target/debug; $(CARGO) test --locked -p mesh-controller --test 'kube*' --test enrol_kube -- --nocapture --test-threads=1 2>&1 | tee $(LOGS)/kube-test.log || rc=$$?; .ci/count.sh kube-test $(LOGS)/kube-test.log || rc=1; exit $$rc

.PHONY: chart-test
chart-test: ## the chart on a real cluster: kubelets, containers, helm install to uninstall, calls without failure (root)
	@$(NEED) $(LAB_TOOLS)
	@.ci/cluster-tools.sh $(CLUSTER_TOOLS)
	@mkdir -p $(LOGS)
	@mesh-proxy/testkit/kube/build.sh all
	@$(MAKE) --no-print-directory build
	rc=0; SELVAGE_BIN_DIR=$(CURDIR)/target/debug $(CARGO) test --locked -p mesh-controller --test 'chart*' -- --nocapture --test-threads=1 2>&1 | tee $(LOGS)/chart-test.log || rc=$$?; .ci/count.sh chart-test $(LOGS)/chart-test.log || rc=1; exit $$rc

.PHONY: lint
lint: ## format, clippy, dependency arrows, lengths of files, licences, stale generated files
	@$(NEED) jq=jq gcc=gcc
	@mkdir -p $(LOGS)
	$(CARGO) fmt --all --check
	@.ci/arrows.sh
	@.ci/lengths.sh
	@command -v cargo-deny >/dev/null || { echo "lint: installing cargo-deny (some minutes, once)"; $(CARGO) install --locked --quiet cargo-deny; }
	$(CARGO) deny --locked check licenses bans sources
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: image
image: ## static programs, OCI archives and bills of materials for amd64 and arm64 in target/image (ARCH=amd64 for one)
	@$(NEED) pip=python3-pip readelf=binutils qemu-aarch64-static=qemu-user-static
	@.ci/image.sh $(ARCH)

.PHONY: bench
bench: ## measure beside direct, haproxy, nginx and Envoy: make bench BENCH=http
	@$(NEED) $(LAB_TOOLS) nginx=nginx-light haproxy=haproxy
	@echo "bench: release build (some ten minutes the first time)"
	$(CARGO) build --locked --release $(PROGRAMS) -p bench --bins
	target/release/bench $(if $(BENCH),--suite $(BENCH)) $(ARGS)

.PHONY: clean
clean: ## remove build output (not the cache of Kubernetes programs)
	$(CARGO) clean
