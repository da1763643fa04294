# make setup | demo | test | test-slow | bench | weights | lint | format | constraints
# PYTHON chooses the interpreter (3.11 or newer), EXTRA the TensorFlow wheel: cpu (default) or gpu.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
STAMP := .venv/.setup-$(EXTRA)

export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: setup demo test test-slow bench weights lint format constraints clean

setup: $(STAMP)

# Debian ships python3 without ensurepip: virtualenv, unpacked next to the tree, then makes the environment.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "voxlift needs Python 3.11 or newer, found " + sys.version.split()[0] + ": set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; $(PYTHON) -m pip install --quiet --target .bootstrap virtualenv && PYTHONPATH=.bootstrap $(PYTHON) -m virtualenv --quiet .venv; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRA),dev]'
	@touch $@

demo: setup
	$(BIN)/voxlift demo

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Against peers, side by side on this machine; their packages go into an environment of their own.
bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt zlib-ng
	$(BIN)/python -m benchmarks.volumes
	$(BIN)/python -m benchmarks.sharding
	$(BIN)/python -m benchmarks.step_time
	$(BIN)/python -m benchmarks.variants
	$(BIN)/python -m benchmarks.robustness
	$(BIN)/python -m benchmarks.acquisitions
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.dry_run
	$(BIN)/python -m benchmarks.many_volumes

# The weights that ship, from a fixed seed; about an hour on two CPU cores. Their record is models/weights/README.md.
weights: setup
	for name in universal2x universalthick; do $(BIN)/voxlift train $$name --out .weights/$$name --resume && mv .weights/$$name/model.keras .weights/$$name.keras || exit 1; done
	$(BIN)/python -m tasks.artifacts.shipped .weights/universal2x.keras .weights/universalthick.keras

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Resolves anew and writes what was found: names and versions only.
constraints:
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet '.[$(EXTRA),dev]'
	$(BIN)/python -m pip freeze --exclude voxlift | grep -E '^[A-Za-z0-9._-]+==' | sed 's/+.*//' > constraints.txt

clean:
	rm -rf .venv .bench .bootstrap .mypy_cache .ruff_cache .pytest_cache .hypothesis
