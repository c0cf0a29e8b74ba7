# What a newcomer and the continuous checks run. `make demo` and `make test` need nothing but Python 3.11 or newer, make and a network.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The interpreter for .venv: the first that is new enough and can make virtual environments. `make PYTHON=…` overrides.
PYTHON ?= $(shell bash tests/setup.sh --find-python)
VENV := .venv
BIN := $(VENV)/bin
# A folder of texts for `make demo`, `make demo TEXTS=folder`.
TEXTS ?=
# What `make sim` runs: a scenario's name or all, so many seeds from SEED on, by default ones that nobody ran before.
SCENARIO ?= all
SEEDS ?= 10
SEED ?= $(shell date +%s)
# Examples per decoder for `make fuzz`.
FUZZ_EXAMPLES ?= 5000

.PHONY: help demo test check sim fuzz bench docs venv clean

help: ## say what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

venv: $(VENV)/.installed ## make .venv with the product in it

# Stamps depend on pyproject.toml alone: the product is installed in place, so its sources need no second installation.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with the venv module found: install one, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

.test-env: $(VENV)/.installed-test tests/setup.sh
	bash tests/setup.sh

demo: $(VENV)/.installed ## three peers on this machine find each other and count words together
	$(BIN)/p2pcompute demo $(if $(TEXTS),--texts "$(TEXTS)")

test: .test-env check ## everything that this machine can test
	$(BIN)/python -m pytest -n auto

check: $(VENV)/.installed-test ## style, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sim: $(VENV)/.installed ## whole networks on a virtual clock, with fresh seeds: make sim SEEDS=200 SCENARIO=all-faults
	$(BIN)/python -m p2pcompute.sim --scenario $(SCENARIO) --seed $(SEED) --seeds $(SEEDS) --detail notes

fuzz: $(VENV)/.installed-test ## hostile bytes against every decoder, longer than `make test` does
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -n auto --timeout 1800 tests/fuzz

bench: $(VENV)/.installed ## measure, beside concurrent.futures in the same run
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-test ## write the generated parts of docs/ again
	$(BIN)/python docs/tools/import_diagram.py
	$(BIN)/python docs/tools/protocol.py

clean: ## remove what the other targets made here
	rm -rf .venv .venv-3.* .test-env .test-engines build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
