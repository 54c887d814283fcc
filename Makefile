# One line per task, each calling the tool itself. CI runs the same targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The run that `make demo` shows.
DEMO = $(BIN)/fl +experiment=demo

# The experiment that `make deploy-demo` shows.
DEPLOY_DEMO = strategy=fedbuff strategy.rule.buffer_size=2 strategy.concurrency=3 strategy.retry_s=1 \
	compressor=ef_topk_int8 data=digits client.local_epochs=5 num_clients=3 num_rounds=12

# What `make deploy-shaped` runs: with rounds, asynchronous, and without a server.
SHAPED = fedavg fedbuff dpsgd
SHAPED_RUN = data=digits model.hidden=[1024] client.local_epochs=5 num_clients=2 num_rounds=6
SHAPED_LINK = --rate 10e6 --delay 0.025

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CORE := $(VENV)/.core

# The first interpreter that starts and is new enough; only looked for when .venv is made.
CHECK_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))
FOUND_PYTHON = $(shell for p in python3.11 python3; do \
	if $$p -c '$(CHECK_PYTHON)' 2>/dev/null; then echo $$p; break; fi; done)
PYTHON ?= $(or $(FOUND_PYTHON),$(error Python 3.11 or newer is needed, and neither python3.11 \
	nor python3 is: install it, or name one with `make PYTHON=/path/to/python ...`))

.PHONY: help install demo deploy-demo deploy-shaped check test test-slow reproduce-quick docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with fl, its dependencies and the developer tools

# On a terminal pip shows what it does; a log gets warnings alone. Modules are compiled when they are
# first imported: most never are.
PIP_INSTALL = $(BIN)/python -m pip install $$(test -t 1 || echo --quiet) --no-compile --constraint constraints.txt

# The group `dev` needs pip 25.1 or later, and a new .venv has the pip that came with Python.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) pip
	$(PIP_INSTALL) --group dev --editable '.[data,ray,sweep]'
	touch $(CORE) $@

# What a user of fl installs, without extras and tools: half of the packages.
$(CORE): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

demo: $(CORE) ## run a small simulation
	$(DEMO)

deploy-demo: install ## run FedBuff on a real SuperLink with three SuperNodes, on this machine
	$(BIN)/python -m fl.deployment $(DEPLOY_DEMO)

deploy-shaped: install ## predict, and run, three strategies on SuperNodes behind links of 10 Mbit/s and 25 ms
	$(BIN)/fl calibrate shaped --nodes 1 -cd build/shaped/conf
	set -e; for strategy in $(SHAPED); do \
		rm -rf build/shaped/$$strategy; \
		$(BIN)/python -m fl.deployment strategy=$$strategy $(SHAPED_RUN) $(SHAPED_LINK) \
			--directory build/shaped/$$strategy; \
		$(BIN)/fl calibrate shaped -cd build/shaped/conf --check build/shaped/$$strategy \
			fleet.down_bps=10e6 fleet.up_bps=10e6 fleet.latency_s=0.025 runtime.together=true; \
	done

check: install ## lint, check the formatting and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict fl benchmarks

test: check ## check, then run the quick tests, on all cores
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal

test-slow: install ## run the tests marked slow
	$(BIN)/pytest -m slow

reproduce-quick: install ## measure again, in minutes, what experiments/quick.py can of the verdicts
	OMP_NUM_THREADS=1 $(BIN)/python experiments/quick.py

docs: install ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install ## run every benchmark script, and print what is left; BENCH=--quick for smaller ones
	set -e; for script in $(filter-out benchmarks/report.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python "$$script" $(BENCH); \
	done
	$(BIN)/python benchmarks/report.py

clean: ## remove .venv, caches and builds; runs in outputs/ and multirun/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
