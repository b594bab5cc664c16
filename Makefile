PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -q
DEMO := demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo test test-all test-gpu clean

help:  ## Print this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1@/' | awk -F@ '{ printf "  make %-10s %s\n", $$1, $$2 }'

env: $(VENV)/.installed  ## Create .venv with the pinned dependencies

demo: $(DEMO)/samples/.done $(DEMO)/orbit.mp4  ## Make a data set, train a small model on it, render images and a video
	@echo "The demo's results are in $(DEMO)/: the data set, the run, samples/ and orbit.mp4."

test: env  ## Run the fast tests
	$(PYTEST) -m "not slow and not gpu"

test-all: env  ## Run all tests (those for a GPU are skipped where there is none)
	$(PYTEST)

test-gpu: env  ## Run the tests that need a GPU
	$(PYTEST) -m gpu

clean:  ## Remove the demo's results and caches; keep .venv, data and runs
	rm -rf $(DEMO) .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- The environment. The project itself is not installed: its scripts run in place.

define WRITE_REQUIREMENTS
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open('pyproject.toml', 'rb') as file:
    project = tomllib.load(file)['project']
print(*project['dependencies'], *project['optional-dependencies']['test'], sep='\n')
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

$(DEMO)/dataset.zip: | $(VENV)/.installed
	$(PY) dataset_tool.py demo --dest=$@

$(DEMO)/run/network-snapshot.pkl: | $(DEMO)/dataset.zip
	$(PY) train.py --preset=demo --data=$(DEMO)/dataset.zip --outdir=$(DEMO)/run

$(DEMO)/samples/.done: $(DEMO)/run/network-snapshot.pkl
	$(PY) gen_samples.py --network=$< --seeds=0-15 --outdir=$(@D)
	@touch $@

$(DEMO)/orbit.mp4: $(DEMO)/run/network-snapshot.pkl
	$(PY) gen_videos.py --network=$< --seeds=0-3 --grid=2x2 --output=$@
