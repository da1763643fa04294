# make setup | demo | develop | test | test-slow | image | docs | bench | weights | lint | format | constraints
# PYTHON chooses the interpreter (3.11 or newer), EXTRA the TensorFlow wheel, cpu (default) or gpu, and further extras:
# EXTRA=cpu,itk.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
STAMP := .venv/.setup-$(EXTRA)
DEVELOP_STAMP := .venv/.develop-$(EXTRA)
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: setup demo develop test test-slow image docs bench weights lint format constraints clean

setup: $(STAMP)

# What tests and linters need on top.
develop: $(DEVELOP_STAMP)

# Debian ships python3 without ensurepip: virtualenv, unpacked next to the tree, then makes the environment.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "voxlift needs Python 3.11 or newer, found " + sys.version.split()[0] + ": set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; $(PYTHON) -m pip install --quiet --target .bootstrap virtualenv && PYTHONPATH=.bootstrap $(PYTHON) -m virtualenv --quiet .venv; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) '.[$(EXTRA),dicom]'
	@touch $@

$(DEVELOP_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) '.[$(EXTRA),dev]'
	@touch $(STAMP) $@

demo: setup
	$(BIN)/voxlift demo

test: develop
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: develop
	$(BIN)/python -m pytest -m "slow and not alone" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m "slow and alone"

# The image of the Containerfile, built by buildah, and its test. BUILD_OPTIONS are those of buildah, as for another image
# to build on (--build-arg BASE=IMAGE).
image: develop
	buildah build $(BUILD_OPTIONS) --build-arg EXTRA=$(EXTRA) --build-arg COMMIT="$$(git describe --always --abbrev=40 --dirty)" \
		--tag voxlift:$$($(BIN)/python -c 'from importlib.metadata import version; print(version("voxlift"))') .
	$(BIN)/python -m pytest -m image

# The pages of docs/ as a site in .site; a link that leads nowhere is an error.
docs: setup
	$(PIP) '.[$(EXTRA),docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# Against peers, side by side on this machine; their packages go into an environment of their own.
bench: develop
	$(BIN)/python -m pip install --quiet --constraint constraints.txt zlib-ng
	$(BIN)/python -m benchmarks.volumes
	$(BIN)/python -m benchmarks.sharding
	$(BIN)/python -m benchmarks.step_time
	$(BIN)/python -m benchmarks.variants
	$(BIN)/python -m benchmarks.robustness
	$(BIN)/python -m benchmarks.adaptation
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.dry_run
	$(BIN)/python -m benchmarks.many_volumes

# The weights that ship, from a fixed seed; about eight hours on two CPU cores. Their record is models/weights/README.md.
# Experts go on from the weights for all acquisitions with one alone; those for thick slices take turns with them. Two
# go on with large patches, where few voxels are near an edge, as in a scan, and with anatomy that k-space has imaged, one
# of them with more channels. A folder ships as the mean of its weights: several trainings, with other seeds, of which
# one may start from another.
TRAIN = $(BIN)/voxlift train $(1) --out .weights/$(2) --resume $(3) && mv .weights/$(2)/model.keras .weights/$(2).keras
FROM = --start-from .weights/$(1).keras --set training.steps=$(2) --set training.learning_rate=1e-3 --set augmentation.mistaken=$(3)
ALONE = --set degradation=$(1) --set "augmentation.acquisitions=[$(2)]" --set "augmentation.assumed=[$(1)]"
LARGE = --set training.batch_size=1 --set training.patch=[80,80,80]
SCANNED = $(LARGE) --set augmentation.kspace=0.5
MEAN = $(BIN)/python -m tasks.artifacts.shipped .weights/$(2) .weights/$(1)
WIDE = --set "network.stages=[{filters: 32, kernel_size: [3, 4, 4], strides: [1, 2, 2]}, {filters: 32, kernel_size: [4, 4, 4], strides: [2, 2, 2]}, {filters: 32, kernel_size: [4, 4, 4], strides: [2, 2, 2]}, {filters: 1, kernel_size: [4, 4, 4], strides: [2, 2, 2]}]"
BOXES = {name: box2, depth: {factor: 2}}, thick3x, thick3x, thick4x, thick4x, thick6x, thick6x, {name: box8, depth: {factor: 8}}
weights: setup
	$(call TRAIN,universal2x,universal2x)
	$(call TRAIN,universal2x,kspace1,$(call FROM,universal2x,6000,0) $(call ALONE,kspace2x,kspace2x))
	$(call TRAIN,universal2x,kspace2,$(call FROM,kspace1,2500,0) $(call ALONE,kspace2x,kspace2x) $(LARGE))
	$(call TRAIN,universal2x,kspace3/1,$(call FROM,kspace2,3000,0) $(call ALONE,kspace2x,kspace2x) $(SCANNED))
	$(call TRAIN,universal2x,kspace3/2,$(call FROM,kspace2,6000,0) $(call ALONE,kspace2x,kspace2x) $(SCANNED))
	mkdir -p .weights/kspace4 && $(call MEAN,kspace3,kspace4)
	$(call TRAIN,universal2x,kspace4/2,$(call FROM,kspace4/kspace3,5000,0) $(call ALONE,kspace2x,kspace2x) --set training.seed=1)
	$(call MEAN,kspace4,.)
	$(call TRAIN,universal2x,kspace5,$(call FROM,kspace4,9000,0) $(call ALONE,kspace2x,kspace2x) $(WIDE) --set training.learning_rate=1.5e-3 --set training.seed=3)
	$(call TRAIN,universal2x,kspace2x,$(call FROM,kspace5,6000,0) $(call ALONE,kspace2x,kspace2x) $(WIDE) $(SCANNED) --set training.seed=4)
	$(call TRAIN,universal2x,box1,$(call FROM,universal2x,6000,0) $(call ALONE,box2x,box2x))
	$(call TRAIN,universal2x,box2,$(call FROM,box1,3000,0) $(call ALONE,box2x,box2x) $(LARGE))
	$(call TRAIN,universal2x,box2x/1,$(call FROM,box2,4000,0) $(call ALONE,box2x,box2x) $(SCANNED))
	$(call TRAIN,universal2x,box2x/2,$(call FROM,box2x/1,4000,0) $(call ALONE,box2x,box2x) --set training.seed=1)
	$(call TRAIN,universal2x,iso2x,$(call FROM,universal2x,6000,0) $(call ALONE,iso2x,iso2x))
	$(call TRAIN,universalthick,thick1)
	$(call TRAIN,universalthick,thick2,$(call FROM,thick1,12000,0) $(call ALONE,thick4x,$(BOXES)))
	$(call TRAIN,universalthick,universalthick/1,$(call FROM,thick2,14000,0.3))
	$(call TRAIN,universalthick,universalthick/2,$(call FROM,universalthick/1,8000,0.3) --set training.seed=1)
	$(call TRAIN,universalthick,thick3,$(call FROM,universalthick/1,14000,0) $(call ALONE,thick4x,$(BOXES)))
	$(call TRAIN,universalthick,boxthick/1,$(call FROM,thick3,8000,0) $(call ALONE,thick4x,$(BOXES)) --set training.seed=1)
	$(call TRAIN,universalthick,boxthick/2,$(call FROM,thick3,8000,0) $(call ALONE,thick4x,$(BOXES)) --set training.seed=2)
	$(BIN)/python -m tasks.artifacts.shipped models/weights $(patsubst %,.weights/%.keras,universal2x iso2x kspace2x) $(patsubst %,.weights/%,box2x universalthick boxthick)

lint: develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: develop
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Resolves anew and writes what was found: names and versions only.
constraints:
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet '.[$(EXTRA),dev,docs]'
	$(BIN)/python -m pip freeze --exclude voxlift | grep -E '^[A-Za-z0-9._-]+==' | sed 's/+.*//' > constraints.txt

clean:
	rm -rf .venv .bench .site .bootstrap .mypy_cache .ruff_cache .pytest_cache .hypothesis
