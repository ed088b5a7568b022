# `make help` lists the targets. CI runs `make test` and nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# go.mod names the toolchain; Go 1.21 and later downloads it.
export GOTOOLCHAIN := auto

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PYTHON := .venv/bin/python
FUZZTIME ?= 20s
LENGTH ?= 10m
SEED ?= 0
ARGS ?= up

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: export LOG_FORMAT ?= text
run: setup build ## Set up, build and serve on 127.0.0.1:8080, with a private PostgreSQL in ./data.
	@exec bin/platform serve

# Ctrl-C stops everything. CLUSTER sets flags, such as CLUSTER='-replicas 5 -addr 127.0.0.1:9000'.
.PHONY: cluster
cluster: setup-cluster build ## Serve on 127.0.0.1:8080 with three replicas behind HAProxy and a temporary PostgreSQL.
	go build -trimpath -o bin/cluster ./cmd/trycluster
	@exec bin/cluster -platform bin/platform $(CLUSTER)

.PHONY: test
test: setup-test lint test-go coverage test-python ## Run what CI runs: set-up, lint, all tests, coverage.

# Without symbols, which only a debugger needs, and without gin's MessagePack, which nothing here uses: 6 MB.
.PHONY: build
build: setup-go ## Build bin/platform.
	go build -trimpath -tags nomsgpack -ldflags '-s -w -X main.version=$(VERSION)' -o bin/platform ./cmd/platform

.PHONY: migrate
migrate: build ## Migrate the database of DATABASE_URL; ARGS is 'up' (default), 'down N' or 'status'.
	@bin/platform migrate $(ARGS)

# .ci/check says what it leaves out. BASE is a commit to compare with.
.PHONY: check
check: setup-go setup-postgres .venv/ready ## The quick loop, under a minute: format, vet and test what differs from main.
	@BASE='$(BASE)' .ci/check

.PHONY: lint
lint: setup-go .venv/ready ## Check the Go and Python code: format, vet, staticcheck, ruff, mypy.
	@unformatted=$$(gofmt -l cmd internal migrations); \
	if [ -n "$$unformatted" ]; then echo "gofmt these: $$unformatted"; exit 1; fi
	@! grep -rn '//nolint' cmd internal migrations || { echo "No linter here reads //nolint; say why in a plain comment."; exit 1; }
	go vet ./...
	GOOS=darwin go vet ./internal/embeddedpg ./cmd/platform
	go tool staticcheck ./...
	$(PYTHON) -m ruff check workspace
	$(PYTHON) -m ruff format --check workspace
	cd workspace && ../$(PYTHON) -m mypy --strict .

# -count 1: Go's test cache does not notice a changed or missing PostgreSQL or Python.
.PHONY: test-go
test-go: setup-test ## Run the Go tests, on a temporary PostgreSQL that they start.
	go tool gotestsum --format pkgname-and-test-fails -- -race -count 1 -timeout 12m -covermode atomic -coverprofile coverage.out ./...

# The storage must not lose a file, so the tests must run every statement of it.
COVERED := pendinguploads spool uploadname

.PHONY: coverage
coverage: ## Check that the last `make test-go` covered every statement of the storage.
	@for package in $(COVERED); do \
		awk -v package="internal/$$package" '$$0 ~ "/" package "/[a-z0-9_]+[.]go:" { all += $$(NF-1); if ($$NF == 0) { print "not covered:", $$1; missed += $$(NF-1) } } \
		END { if (!all) { print "no coverage of " package " in coverage.out"; exit 1 } \
		printf "coverage of %s: %.1f%% of %d statements\n", package, 100 * (all - missed) / all, all; exit missed > 0 }' coverage.out; \
	done

.PHONY: test-python
test-python: .venv/ready build ## Run the Python tests, against the compiled platform.
	cd workspace && ../$(PYTHON) -m pytest -q -n 3 --dist worksteal

.PHONY: demo
demo: setup-postgres build .venv/ready ## Demonstrate delivery: a temporary platform, two workspaces, a table of results.
	@exec $(PYTHON) workspace/devtools/demo.py

# make exports the variables of its command line, so demo.py finds BASE_URL and the others in its environment.
.PHONY: e2e
e2e: .venv/ready ## Run the demo against a running platform: BASE_URL=... ADMIN_TOKEN=... [PUSH_LISTEN=host:port].
	@exec $(PYTHON) workspace/devtools/demo.py e2e

.PHONY: fuzz
fuzz: setup-test ## Run every fuzz test for FUZZTIME (default 20s).
	@grep -rlE '^func Fuzz' internal --include '*_test.go' | xargs -n1 dirname | sort -u | while read -r dir; do \
		grep -hoE '^func Fuzz\w+' $$dir/*_test.go | sed 's/func //' | while read -r target; do \
			echo "$$dir $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) ./$$dir; \
		done; \
	done

# Linux only. As root it also mounts a small file system and fills it. SEED=0 chooses a new seed.
.PHONY: chaos
chaos: setup build ## Inject faults into two platforms for LENGTH (default 10m), with SEED, and check that no file is lost.
	go build -trimpath -o bin/chaos ./cmd/chaos
	@bin/chaos -platform bin/platform -length $(LENGTH) -seed $(SEED)

# OLD is a commit: the run starts with its build, and the platforms are rolled to the current build and back.
# The oldest possible OLD is the commit that folded the migrations into 20260701100000_quotas_events_objects.
.PHONY: chaos-cluster
chaos-cluster: setup-cluster build ## Inject faults into three platforms behind HAProxy, with rolling upgrades from the commit OLD, if given.
	go build -trimpath -o bin/chaos ./cmd/chaos
	@old=(); if [ -n '$(OLD)' ]; then \
		tree=$$(mktemp -d); trap 'git worktree remove --force "$$tree"' EXIT; git worktree add --quiet --detach "$$tree" '$(OLD)'; \
		(cd "$$tree" && go build -trimpath -o '$(CURDIR)/bin/platform-old' ./cmd/platform); old=(-old bin/platform-old); \
	fi; \
	bin/chaos -platform bin/platform -replicas 3 -balancer haproxy "$${old[@]}" -length $(LENGTH) -seed $(SEED)

# BENCH sets flags, such as BENCH='-only upload -rounds 5'; bin/bench -help lists them.
.PHONY: bench
bench: setup build bin/bench ## Compare the platform's speed with bare PostgreSQL's. Use an idle machine.
	@bin/bench -platform bin/platform -json bin/bench.json -svg bin/bench.svg $(BENCH)

.PHONY: bench-growth
bench-growth: setup build bin/bench ## Compare the platform's speed with a million rows and with few.
	@bin/bench -platform bin/platform -growth $(BENCH)

.PHONY: bench-churn
bench-churn: setup build bin/bench ## Measure the disk space after 10 x 2 GiB of files were staged and deleted.
	@bin/bench -platform bin/platform -churn 10

.PHONY: bench-stores
bench-stores: setup build bin/bench bin/versitygw ## Compare large files in a folder, in S3 and in PostgreSQL.
	@bin/bench -platform bin/platform -stores -s3 bin/versitygw $(BENCH)

.PHONY: bench-compare
bench-compare: setup build bin/bench ## Compare the platform's speed with that of the commit BASE.
	@test -n '$(BASE)' || { echo "BASE is empty; write, for example, make bench-compare BASE=HEAD~1"; exit 1; }
	@tree=$$(mktemp -d); trap 'git worktree remove --force "$$tree"' EXIT; git worktree add --quiet --detach "$$tree" '$(BASE)'; \
	(cd "$$tree" && go build -trimpath -o '$(CURDIR)/bin/platform-base' ./cmd/platform); \
	bin/bench -platform bin/platform -base bin/platform-base $(BENCH)

.PHONY: scaling
scaling: setup-go ## Update docs/scaling.md with the costs that the last `make bench` measured.
	go run ./cmd/scaling -bench bin/bench.json -write

.PHONY: bin/bench
bin/bench:
	go build -trimpath -o bin/bench ./cmd/bench

# Set-up installs only what is missing. Without apt it prints what to install.

INSTALL = sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	install() { \
		if ! command -v apt-get >/dev/null; then echo "Please install $$1 and try again."; exit 1; fi; shift; \
		echo "Installing $$*"; \
		$$sudo apt-get -qq update; $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$$@" >/dev/null; \
	}; \
	install_stopped() { \
		policy=/usr/sbin/policy-rc.d; \
		if command -v apt-get >/dev/null && [ ! -e $$policy ]; then \
			trap '$$sudo rm -f '$$policy EXIT; \
			printf '\#!/bin/sh\nexit 101\n' | $$sudo tee $$policy >/dev/null; $$sudo chmod 755 $$policy; \
		fi; \
		install "$$@"; shift; \
		for service in "$$@"; do $$sudo update-rc.d $$service disable >/dev/null 2>&1 || true; done; \
	}

.PHONY: setup
setup: setup-go setup-postgres setup-curl ## Install the missing prerequisites of `make run`.

.PHONY: setup-go
setup-go:
	@command -v go >/dev/null || { echo "Please install Go 1.21 or later (https://go.dev/dl) and try again."; exit 1; }
	@go version >/dev/null || { echo "The Go toolchain of go.mod cannot be downloaded; install it, or allow go to download it."; exit 1; }

# create_main_cluster = false: Debian's package would otherwise create and start a database server.
.PHONY: setup-postgres
setup-postgres:
	@$(INSTALL); \
	found=$$(command -v postgres || ls -d /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/local/pgsql/bin/postgres \
		/opt/homebrew/opt/postgresql*/bin/postgres /usr/local/opt/postgresql*/bin/postgres \
		/Applications/Postgres.app/Contents/Versions/*/bin/postgres 2>/dev/null | head -1 || true); \
	if [ -z "$$found" ]; then \
		if command -v apt-get >/dev/null && [ ! -e /etc/postgresql-common/createcluster.conf ]; then \
			install PostgreSQL postgresql-common; \
			echo 'create_main_cluster = false' | $$sudo tee -a /etc/postgresql-common/createcluster.conf >/dev/null; \
		fi; \
		install "the PostgreSQL server, 14 or later," postgresql; \
	fi

# `make run` prints curl commands to paste.
.PHONY: setup-curl
setup-curl:
	@$(INSTALL); command -v curl >/dev/null || install curl curl ca-certificates

# HAProxy and PgBouncer, for tests and `make cluster`. install_stopped keeps Debian's packages from starting
# and enabling services.
.PHONY: setup-cluster
setup-cluster: setup
	@$(INSTALL); missing=(); \
	for program in haproxy pgbouncer; do PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v $$program >/dev/null || missing+=($$program); done; \
	[ $${#missing[@]} -gt 0 ] || exit 0; \
	install_stopped "$${missing[*]}" "$${missing[@]}"

# It checks deploy/prometheus and the queries of deploy/grafana. Debian has it in the package of the server.
.PHONY: setup-promtool
setup-promtool:
	@$(INSTALL); command -v promtool >/dev/null || install_stopped "promtool, which is part of Prometheus," prometheus

# The S3 server that the tests start. The platform does not import it, so it is not in go.mod.
VERSITYGW := v1.8.0

bin/versitygw: Makefile
	@echo "Installing versitygw $(VERSITYGW)"
	@GOBIN='$(CURDIR)/bin' go install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW)
	@touch $@

# The race detector needs a C compiler.
.PHONY: setup-test
setup-test: setup-cluster setup-promtool bin/versitygw .venv/ready
	@$(INSTALL); \
	echo 'int main(void) { return 0; }' | $$(go env CC) -x c -o /dev/null - 2>/dev/null || install "a C compiler" gcc libc6-dev

.venv/ready: workspace/pyproject.toml
	@$(INSTALL); \
	command -v python3 >/dev/null || { echo "Please install Python 3.11 or later and try again."; exit 1; }; \
	python3 -c 'import ensurepip, venv' 2>/dev/null || install "python3-venv" python3-venv
	python3 -m venv --clear .venv
	$(PYTHON) -m pip install -q --disable-pip-version-check -e 'workspace[dev]'
	@touch $@

.PHONY: clean
clean: ## Remove what was built. ./data is kept.
	rm -rf bin .venv coverage.out
