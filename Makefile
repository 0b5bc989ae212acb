# Every target makes its virtual environment when it is missing, or when what it installs has changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
PEERS := .venv-peers

.PHONY: demo test lint exactness faults bench peers gpu-check clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,bench]'
	touch $(STAMP)

# A Ray cluster of two workers on this machine, the main job on the bundled dataset, and the cluster stopped again.
demo: $(STAMP)
	rm -rf $(DEMO)
	DISTGNN_PYTHON=$(BIN)/python cluster/demo.sh $(DEMO)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two files at a time, the long ones first (tests/conftest.py).
test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Every cell of the invariance matrix, of which `make test` runs a pairwise cover, and the other slow tests. Hours.
exactness: $(STAMP)
	DISTGNN_TESTS=all $(BIN)/python -m pytest -q -m slow
	DISTGNN_TESTS=all $(BIN)/python -m pytest -q tests/exactness

# Kills, stalls and starves whatever a run is made of, each in every stage, and prints what happened.
faults: $(STAMP)
	DISTGNN_TESTS=all $(BIN)/python -m pytest -q tests/faults

bench: $(STAMP)
	mkdir -p benchmarks/out
	$(BIN)/python -m benchmarks.quality --json benchmarks/out/quality.json

# PyTorch Geometric with its sampler, in an environment of its own, for --peer-python of the benchmarks; needs a C++
# compiler, and compiles for up to an hour. pyg-lib and GraphBolt are not on PyPI: where you have them, name their
# interpreter instead.
peers: $(PEERS)/.installed

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check setuptools wheel ninja scipy
	grep -v -E 'torch_(scatter|sparse)' $< | $(PEERS)/bin/pip install --quiet --disable-pip-version-check -r /dev/stdin
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -r $<
	touch $@

# For machines with GPUs: do they train as one CPU worker does, and how fast? Ends with status 2 where there is none.
gpu-check: $(STAMP)
	mkdir -p benchmarks/out
	$(BIN)/python -m benchmarks.gpu_check --json benchmarks/out/gpu_check.json

clean:
	rm -rf $(VENV) $(PEERS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis benchmarks/out
