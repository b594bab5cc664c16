PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -q
DEMO := demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo test test-all test-gpu lint clean

help:  ## Print this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1@/' | awk -F@ '{ printf "  make %-10s %s\n", $$1, $$2 }'

env: $(VENV)/.installed  ## Create .venv with the pinned dependencies

demo: $(DEMO)/.done  ## Make a data set, train both stages on it, render samples, a video and a mesh
	@echo "Made by the demo:"
	@printf '  %-38s %s\n' \
		$(DEMO)/dataset.zip 'the data set: simple heads from known cameras' \
		$(DEMO)/run/reals.png 'real images' \
		$(DEMO)/samples/samples_2d.png 'samples of the 2D branch: a row per subject, a column per view' \
		$(DEMO)/samples/samples_3d.png 'the same subjects and views by the 3D branch' \
		$(DEMO)/samples/samples_3d_depth.png 'their depth: nearer is brighter' \
		$(DEMO)/orbit.mp4 'the 3D branch while the camera moves' \
		$(DEMO)/shapes/ 'a mesh, as PLY and GLB' \
		$(DEMO)/run/ 'the run: log, statistics, sample grids over time, snapshots' \
		$(DEMO)/run/metric-swd256.jsonl 'sliced Wasserstein distance of both branches'

test: env  ## Run the fast tests
	$(PYTEST) -m "not slow and not gpu"

test-all: env  ## Run all tests (those for a GPU are skipped where there is none)
	$(PYTEST)

test-gpu: env  ## Run the tests that need a GPU
	$(PYTEST) -m gpu

lint: env  ## Check style, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:  ## Remove the demo's results and caches; keep .venv, data and runs
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- The environment. The project itself is not installed: its scripts run in place.

define WRITE_REQUIREMENTS
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open('pyproject.toml', 'rb') as file:
    project = tomllib.load(file)['project']
extras = project['optional-dependencies']
print(*project['dependencies'], *extras['test'], *extras['dev'], sep='\n')
endef
export WRITE_REQUIREMENTS

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3 env" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV) (PyTorch is large: this takes a minute or two) ..."
	@$(PY) -c "$$WRITE_REQUIREMENTS" > $(VENV)/requirements.txt
	@$(PY) -m pip install --quiet --no-input --disable-pip-version-check --only-binary=:all: \
		-c constraints.txt -r $(VENV)/requirements.txt
	@touch $@

# ---- The demo. A step whose product exists is not repeated.

# Without a GPU, two processes of one thread each are faster than one of two threads: the networks are small.
PROCESSES := $(shell nvidia-smi -L >/dev/null 2>&1 || { [ "$$(nproc)" -ge 2 ] && echo --gpus=2 --threads=1; })
VIEWS := -0.7/0,-0.35/0,0/0,0.35/0,0.7/0

$(DEMO)/dataset.zip: | $(VENV)/.installed
	@mkdir -p $(DEMO)
	$(PY) dataset_tool.py demo --dest=$@ --images=3000

# An interrupted training goes on where it was.
$(DEMO)/run/.done: | $(DEMO)/dataset.zip
	$(PY) train.py --preset=demo --data=$(DEMO)/dataset.zip --run-dir=$(DEMO)/run $(PROCESSES)
	@touch $@

$(DEMO)/.done: $(DEMO)/run/.done
	$(PY) gen_samples.py --network=$(DEMO)/run --seeds=0-5 --views=$(VIEWS) --depth --outdir=$(DEMO)/samples
	$(PY) gen_samples.py --network=$(DEMO)/run --seeds=1 --branch=3d --shapes --shape-resolution=128 --outdir=$(DEMO)/shapes
	$(PY) gen_videos.py --network=$(DEMO)/run --seeds=0-5 --grid=3x2 --branch=3d --frames=90 --yaw-range=0.7 \
		--upscale=3 --output=$(DEMO)/orbit.mp4
	$(PY) calc_metrics.py --metrics=swd256 --network=$(DEMO)/run
	@touch $@
