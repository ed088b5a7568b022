# The front door. `make help` lists what there is; CI runs `make test` and nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# go.mod names the toolchain; an older Go from 1.21 on fetches it.
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
run: setup build ## Set up, build and serve on 127.0.0.1:8080 with a private PostgreSQL under ./data.
	@exec bin/platform serve

# Ctrl-C stops all of it. CLUSTER takes flags, such as CLUSTER='-replicas 5 -addr 127.0.0.1:9000'.
.PHONY: cluster
cluster: setup-cluster build ## Serve on 127.0.0.1:8080 with three replicas behind HAProxy, on one throw-away PostgreSQL.
	go build -trimpath -o bin/cluster ./cmd/trycluster
	@exec bin/cluster -platform bin/platform $(CLUSTER)

.PHONY: test
test: setup-test lint test-go coverage test-python ## Everything that CI runs: set-up, lint, all tests, coverage.

.PHONY: build
build: setup-go ## Build bin/platform.
	go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/platform ./cmd/platform

.PHONY: migrate
migrate: build ## Migrate the database of DATABASE_URL; ARGS='up', 'down 1' or 'status'.
	@bin/platform migrate $(ARGS)

# .ci/check says what it leaves out. BASE is a commit to compare with.
.PHONY: check
check: setup-go setup-postgres .venv/ready ## The quick loop, under a minute: format, vet and test what differs from main.
	@BASE='$(BASE)' .ci/check

.PHONY: lint
lint: setup-go .venv/ready ## Check form and sense of the Go and Python code.
	@unformatted=$$(gofmt -l cmd internal migrations); \
	if [ -n "$$unformatted" ]; then echo "gofmt these: $$unformatted"; exit 1; fi
	go vet ./...
	GOOS=darwin go vet ./internal/embeddedpg ./cmd/platform
	go tool staticcheck ./...
	$(PYTHON) -m ruff check workspace
	$(PYTHON) -m ruff format --check workspace
	cd workspace && ../$(PYTHON) -m mypy --strict .

# Never from the cache: it does not know that PostgreSQL or Python has changed or is gone.
.PHONY: test-go
test-go: setup-test ## The Go tests, on a real PostgreSQL that they start themselves.
	go tool gotestsum --format pkgname-and-test-fails -- -race -count 1 -timeout 12m -covermode atomic -coverprofile coverage.out ./...

# The storage is the part that must not lose a file: there is no line of it that no test runs.
.PHONY: coverage
coverage: ## Check that the last test run covered every statement of internal/pendinguploads.
	@awk '/internal\/pendinguploads\/[a-z_]+\.go:/ { all += $$(NF-1); if ($$NF == 0) { print "not covered:", $$1; missed += $$(NF-1) } } \
	END { if (!all) { print "no coverage of internal/pendinguploads in coverage.out"; exit 1 } \
	printf "coverage of internal/pendinguploads: %.1f%% of %d statements\n", 100 * (all - missed) / all, all; exit missed > 0 }' coverage.out

.PHONY: test-python
test-python: .venv/ready build ## The Python tests, on the platform as it is built.
	cd workspace && ../$(PYTHON) -m pytest -q -n 3 --dist worksteal

.PHONY: demo
demo: setup-postgres build .venv/ready ## See files arrive: a throw-away platform, two workspaces, and a table.
	@exec $(PYTHON) workspace/demo.py

# What is given on make's command line is in the environment of what it runs.
.PHONY: e2e
e2e: .venv/ready ## The same against a platform that runs: BASE_URL=... ADMIN_TOKEN=... [PUSH_LISTEN=host:port].
	@exec $(PYTHON) workspace/demo.py e2e

.PHONY: fuzz
fuzz: setup-test ## Run every fuzz target for FUZZTIME (20s).
	@grep -rlE '^func Fuzz' internal --include '*_test.go' | xargs -n1 dirname | sort -u | while read -r dir; do \
		grep -hoE '^func Fuzz\w+' $$dir/*_test.go | sed 's/func //' | while read -r target; do \
			echo "$$dir $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) ./$$dir; \
		done; \
	done

# Linux; as root it also fills a small file system that it mounts. SEED=0 is a new one.
.PHONY: chaos
chaos: setup build ## Break everything around two platforms for LENGTH (10m), with SEED, and check what they promise.
	go build -trimpath -o bin/chaos ./cmd/chaos
	@bin/chaos -platform bin/platform -length $(LENGTH) -seed $(SEED)

# OLD is a commit whose build the run begins with; its platforms are rolled to the present one and back.
.PHONY: chaos-cluster
chaos-cluster: setup-cluster build ## The same with three platforms behind HAProxy, which are also rolled; from the commit OLD, if given.
	go build -trimpath -o bin/chaos ./cmd/chaos
	@old=(); if [ -n '$(OLD)' ]; then \
		tree=$$(mktemp -d); trap 'git worktree remove --force "$$tree"' EXIT; git worktree add --quiet --detach "$$tree" '$(OLD)'; \
		(cd "$$tree" && go build -trimpath -o '$(CURDIR)/bin/platform-old' ./cmd/platform); old=(-old bin/platform-old); \
	fi; \
	bin/chaos -platform bin/platform -replicas 3 -balancer haproxy "$${old[@]}" -length $(LENGTH) -seed $(SEED)

# BENCH takes flags, such as BENCH='-only upload -rounds 5'; bin/bench -help lists them.
.PHONY: bench
bench: setup build bin/bench ## Measure the platform beside PostgreSQL alone, on a quiet machine.
	@bin/bench -platform bin/platform -json bin/bench.json -svg bin/bench.svg $(BENCH)

.PHONY: bench-growth
bench-growth: setup build bin/bench ## Measure it with a million rows beside it with few.
	@bin/bench -platform bin/platform -growth $(BENCH)

.PHONY: bench-churn
bench-churn: setup build bin/bench ## Measure what 10 x 2 GiB of files that come and go take on disk.
	@bin/bench -platform bin/platform -churn 10

.PHONY: bench-stores
bench-stores: setup build bin/bench bin/versitygw ## Measure large files in a folder and in S3 beside PostgreSQL.
	@bin/bench -platform bin/platform -stores -s3 bin/versitygw $(BENCH)

.PHONY: bench-compare
bench-compare: setup build bin/bench ## Measure it beside the commit BASE.
	@test -n '$(BASE)' || { echo "Say which commit: make bench-compare BASE=HEAD~1"; exit 1; }
	@tree=$$(mktemp -d); trap 'git worktree remove --force "$$tree"' EXIT; git worktree add --quiet --detach "$$tree" '$(BASE)'; \
	(cd "$$tree" && go build -trimpath -o '$(CURDIR)/bin/platform-base' ./cmd/platform); \
	bin/bench -platform bin/platform -base bin/platform-base $(BENCH)

.PHONY: scaling
scaling: setup-go ## Compute docs/scaling.md anew, with the costs that the last `make bench` measured.
	go run ./cmd/scaling -bench bin/bench.json -write

.PHONY: bin/bench
bin/bench:
	go build -trimpath -o bin/bench ./cmd/bench

# Set-up. What is there is left alone; what is missing is installed where the machine has apt,
# and otherwise named in a sentence.

INSTALL = sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	install() { \
		if ! command -v apt-get >/dev/null; then echo "Please install $$1 and try again."; exit 1; fi; shift; \
		echo "Installing $$*"; \
		$$sudo apt-get -qq update; $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$$@" >/dev/null; \
	}

.PHONY: setup
setup: setup-go setup-postgres setup-curl ## Install what `make run` needs and is not there.

.PHONY: setup-go
setup-go:
	@command -v go >/dev/null || { echo "Please install Go 1.21 or later (https://go.dev/dl) and try again."; exit 1; }
	@go version >/dev/null || { echo "The Go toolchain that go.mod names cannot be fetched; install it, or allow go to download it."; exit 1; }

# Debian's package would also make a database of its own and start it: nobody asked for one.
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

# What `make run` prints to paste is curl commands.
.PHONY: setup-curl
setup-curl:
	@$(INSTALL); command -v curl >/dev/null || install curl curl ca-certificates

# What stands around replicas in tests and in `make cluster`. Debian's packages would also start and
# enable services: nobody asked for them.
.PHONY: setup-cluster
setup-cluster: setup
	@$(INSTALL); missing=(); \
	for program in haproxy pgbouncer; do PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v $$program >/dev/null || missing+=($$program); done; \
	[ $${#missing[@]} -gt 0 ] || exit 0; \
	policy=/usr/sbin/policy-rc.d; \
	if command -v apt-get >/dev/null && [ ! -e $$policy ]; then \
		trap '$$sudo rm -f '$$policy EXIT; \
		printf '#!/bin/sh\nexit 101\n' | $$sudo tee $$policy >/dev/null; $$sudo chmod 755 $$policy; \
	fi; \
	install "$${missing[*]}" "$${missing[@]}"; \
	for program in "$${missing[@]}"; do $$sudo update-rc.d $$program disable >/dev/null 2>&1 || true; done

# The S3 server that the tests start. It is no part of the platform, so it is not in go.mod.
VERSITYGW := v1.8.0

bin/versitygw: Makefile
	@echo "Installing versitygw $(VERSITYGW)"
	@GOBIN='$(CURDIR)/bin' go install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW)
	@touch $@

# The race detector needs a C compiler.
.PHONY: setup-test
setup-test: setup-cluster bin/versitygw .venv/ready
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
clean: ## Remove what was built; the data folder stays.
	rm -rf bin .venv coverage.out
