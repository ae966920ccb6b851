# `make demo` and `make test` install what is missing and work from a clean clone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The local machine needs root: for namespaces of its own and for the container's limits.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E)

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-image demo demo-lineage test lint format lock image-demo image \
	reference-values corpus fuzz bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## install system packages and the virtual environment

setup-test: $(VENV)/ready-test

demo: setup ## train, certify and verify a small model on this machine
	$(ROOT) $(BIN)/python -m examples.demo

demo-lineage: setup ## the same, then fine-tune and evaluate that model, and verify the whole chain
	$(ROOT) $(BIN)/python -m examples.lineage

# One process more than there are cores: a third of the time they wait for servers and machines.
test: export PYTEST_XDIST_AUTO_NUM_WORKERS ?= $(shell expr $$(nproc) + 1)
test: setup-test ## run every test
	$(ROOT) $(BIN)/python -m pytest $(TESTS)

lint: setup ## ruff, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 0 tests/test_imports.py

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

image-demo: setup ## build (or find) the image of the example
	$(ROOT) $(BIN)/python -m examples.images.build

image: setup-image ## build (or find) the measured OS image (MORE="--compare": build twice)
	$(ROOT) $(BIN)/python -m deployments.image.build $(MORE)

reference-values: setup-image ## sign what a machine measures that boots the image (MORE="--key …")
	$(ROOT) $(BIN)/python -m deployments.image.reference $(MORE)

setup-image: setup
	deployments/setup/system.sh deployments/setup/packages-image.txt

lock: setup ## resolve the locked versions anew
	deployments/setup/lock.sh $(BIN)

clean: ## remove the virtual environment and what tools left
	$(ROOT) rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/ready: pyproject.toml requirements/build.txt requirements/all.txt deployments/setup/packages.txt
	deployments/setup/system.sh deployments/setup/packages.txt
	deployments/setup/venv.sh $(PYTHON) $(VENV)
	@touch $@

$(VENV)/ready-test: $(VENV)/ready deployments/setup/packages-test.txt \
		deployments/setup/packages-image.txt deployments/setup/azurite/package-lock.json \
		deployments/setup/docker.sh
	deployments/setup/system.sh deployments/setup/packages-test.txt \
		deployments/setup/packages-image.txt
	deployments/setup/azurite.sh $(VENV)/azurite
	deployments/setup/docker.sh $(VENV)/docker
	@touch $@

corpus: setup ## rebuild the conformance corpus (tests/conformance/cases)
	$(ROOT) $(BIN)/python -m tests.conformance.build

RUNS ?= 1000000
JOBS ?= 4
ENGINE ?= own
fuzz: setup ## fuzz every parser (RUNS=… JOBS=… FUZZ="target …" ENGINE=atheris)
	$(if $(filter atheris,$(ENGINE)),$(BIN)/python -m pip install --quiet atheris==3.0.0)
	$(BIN)/python -m tests.fuzz --runs $(RUNS) --jobs $(JOBS) --engine $(ENGINE) $(FUZZ)

bench: setup-test ## measure everything beside its peers (SUITES="hashing …" BENCH=--quick)
	deployments/setup/system.sh deployments/setup/packages-bench.txt
	$(ROOT) $(BIN)/python -m benchmarks $(SUITES) $(BENCH)
