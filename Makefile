# Everything that is done to this repository is a target here. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
CONTRACT := .cache/contract.binpb
RELEASED := protos/released.binpb
BEFORE := .cache/before

# The first of these that runs and is new enough; `make PYTHON=/path/to/python3 venv` takes another.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)

.PHONY: help
help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: .venv/ready ## Makes .venv with everything that demo and tests need.

# Where Python came without its own pip, or without ensurepip, the pip that is there installs into the new environment.
.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed; install it, or say which: make PYTHON=/path/to/python3"; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version); this takes a minute the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv 2>/dev/null || $(PYTHON) -m venv --clear --without-pip .venv
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then pip="$(BIN)/python -m pip"; \
		else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
		$$pip install --quiet -e '.[embedded,test]'
	@touch $@

.PHONY: demo
demo: .venv/ready ## Takes the iris project from nothing to a prediction; KEEP=1 leaves it running.
	@$(BIN)/python examples/demo.py $(if $(KEEP),--keep)

.PHONY: test
test: .venv/ready ## Runs the tests that need nothing but Python; ARGS="-k word" chooses.
	@$(BIN)/python -m pytest -m "not soak" $(ARGS)

.PHONY: test-real
test-real: .venv/ready ## Runs the tests of real servers that NHA_TEST_* variables name.
	@named=$$(env | sed -n 's/^\(NHA_TEST_[A-Z_]*\)=.*/\1/p' | sort | tr '\n' ' '); \
		if [ -z "$$named" ]; then echo "no NHA_TEST_* variable is set: there is no real server to test on"; \
		else echo "set: $$named"; $(BIN)/python -m pytest -m "not soak" -rs tests/conformance tests/stories $(ARGS); fi

.PHONY: soak
soak: .venv/ready ## Kills parts of a mesh at random, for long; keeps the table in docs/soak.md. RUNS=200 SEED=...
	@$(BIN)/python -m pytest -q -m soak tests/unit
	@$(BIN)/python tests/stories/kills.py --runs $(or $(RUNS),200) $(if $(SEED),--seed $(SEED))

.PHONY: bench
bench: .venv/ready ## Measures against named references; keeps the table in docs/bench.md. ROWS="help list" chooses.
	@$(BIN)/python tests/bench/main.py $(ROWS)

.PHONY: check
check: .venv/ready $(CONTRACT) ## Lint, types, layers, contract, and that what is generated is fresh.
	@$(BIN)/ruff check . || { echo "fix: $(BIN)/ruff check --fix ."; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -n 4
	@$(BIN)/buf lint $(CONTRACT) --config buf.yaml
	@if [ -f $(RELEASED) ]; then $(BIN)/buf breaking $(CONTRACT) --against $(RELEASED) --config buf.yaml \
		|| { echo "the contract of a release is never broken: make the change in a new field, or in noronha.v2"; exit 1; }; \
		else $(MAKE) -s breaking; fi
	@diff -r -q -x __pycache__ .cache/stubs/noronha/v1 protos/python/noronha/v1 || { echo "fix: make protos"; exit 1; }
	@$(BIN)/python -m noronha.cli.reference | diff -q - cli/README.md \
		|| { echo "fix: $(BIN)/python -m noronha.cli.reference > cli/README.md"; exit 1; }
	@$(BIN)/python -m pytest -q tests/architecture

# Before the first release nothing holds a change back, so it is told what it breaks, against where its branch began.
.PHONY: breaking
breaking: $(CONTRACT)
	@base=$$(git merge-base HEAD origin/main 2>/dev/null || git rev-parse -q --verify HEAD 2>/dev/null || true); \
		if [ -z "$$base" ] || git diff --quiet "$$base" -- protos/noronha; then exit 0; fi; \
		rm -rf $(BEFORE); mkdir -p $(BEFORE); git archive "$$base" protos/noronha | tar -x -C $(BEFORE); \
		$(BIN)/python protos/generate.py --sources $(BEFORE)/protos --output $(BEFORE)/stubs \
			--descriptors $(BEFORE)/contract.binpb; \
		$(BIN)/buf breaking $(CONTRACT) --against $(BEFORE)/contract.binpb --config buf.yaml || \
			echo "callers of the contract notice: give each of these a line in CHANGELOG.md that begins with **Breaking:**"

$(CONTRACT): $(wildcard protos/noronha/v1/*.proto) protos/generate.py | .venv/ready
	@mkdir -p .cache
	@$(BIN)/python protos/generate.py --output .cache/stubs --descriptors $@

.PHONY: protos
protos: .venv/ready ## Writes the stubs of the contract anew, with the pinned toolchain (Python 3.10 to 3.12).
	@$(BIN)/python protos/generate.py

.PHONY: release
release: check test ## Checks, tests, and keeps the contract as what later ones are held to.
	@cp $(CONTRACT) $(RELEASED)
	@echo "$(RELEASED) is written; commit it with the release"

.PHONY: clean
clean: ## Removes what was made here: environments, caches, build results.
	@rm -rf .venv .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
