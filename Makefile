# `make` lists the targets. The virtual environment is made on first use, and again when the lock changes.

PYTHON  ?= $(shell command -v python3.11 || command -v python3)
VENV    ?= .venv
WORKERS ?= 4
ARGS    ?=

BIN    := $(VENV)/bin
LOCKED := $(VENV)/.locked
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input
LIGHT  := $(VENV)-light
# What training needs, and the rest does without.
TRAINING := accelerate|datasets|peft|tensorboard|torch|torchvision|transformers|trl
CUDA   := ; platform_system == "Linux" and platform_machine == "x86_64"
SHELL  := /bin/sh

comma  := ,

.DEFAULT_GOAL := help
.PHONY: help demo app app-light notebooks test order docs check screens bench lint audit lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# One line while pip works: how many packages are there, the newest with its size. Errors go past it.
define installed
{ $(1); echo $$? > build/installed; } | awk '\
  /^ *(Downloading|Using cached|Processing) / { printf "\r\033[K  %3d  %s %s %s", ++k, $$2, $$3, $$4; fflush() } \
  /^Installing/ { printf "\r\033[K  %3d packages are fetched and are being unpacked", k; fflush() } END { print "" }'; \
  exit $$(cat build/installed)
endef
define venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "PYTHON = '$(PYTHON)' is no Python 3.11: the lock needs it. Install it, or name it: make PYTHON=path" >&2; exit 2; }
@echo "Into $(1), once: $(2)."
@mkdir -p build && $(PYTHON) -m venv --clear $(1)
endef

# Each stamp is written last, so that an install that broke off is done again from the start.
$(LOCKED): requirements.lock
	$(call venv,$(VENV),all packages of requirements.lock; 3 GB are fetched and 6 GB unpacked on Linux with its CUDA libraries; minutes)
	@$(call installed,$(PIP) install --no-compile -r requirements.lock)
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $@

$(LIGHT)/.ready: requirements.lock pyproject.toml
	$(call venv,$(LIGHT),the dashboard$(comma) notebooks and reports without what training needs; 0.3 GB are fetched and 1 GB unpacked)
	@$(PYTHON) -c 'import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; more = p["optional-dependencies"]; \
	  wanted = [d for d in p["dependencies"] if not re.match(r"($(TRAINING))\b", d)] + more["app"]; \
	  print(*wanted, *(d for d in more["notebooks"] if d.startswith("jupyterlab")), "setuptools", sep="\n")' > $(LIGHT)/wanted
	@$(call installed,$(LIGHT)/bin/python -m pip --disable-pip-version-check --no-input install --no-compile -r $(LIGHT)/wanted -c requirements.lock)
	@$(LIGHT)/bin/python -m pip --disable-pip-version-check -qq install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)  ## all stages on the embedded world; in a terminal as a job beside the dashboard, which opens at once
	@$(BIN)/deepintuit demo --dashboard $(ARGS)

app: $(READY)  ## the dashboard on ./workbench (without one, on the example), or ARGS="--workbench DIR"
	@$(BIN)/deepintuit app $(ARGS)

app-light: $(LIGHT)/.ready  ## the same in an environment of its own without torch: a minute to install; live reasoning is left out
	@$(LIGHT)/bin/deepintuit app $(ARGS)

notebooks: $(READY)  ## the numbered notebooks in JupyterLab, on ./workbench or DEEPINTUIT_HOME
	@$(BIN)/jupyter lab --notebook-dir=notebooks $(ARGS)

# One torch thread a worker: two torch processes with two threads each on two cores are ten times slower.
# A file stays in one worker, so that what its tests share is made once; files come in the order of tests/conftest.py.
# Four workers for two cores: tests wait for browsers, servers and processes of their own.
test: $(READY)  ## all tests; ARGS="-k trace" for some, DEEPINTUIT_THOROUGH=1 for the variants that CI has no time for
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# In two steps: what a progress bar overwrote is taken out of an executed notebook only.
docs: $(READY)  ## run all notebooks and render them to build/docs, with figures and videos; ARGS="notebooks/00*.ipynb"
	@PLOTLY_RENDERER=notebook $(BIN)/jupyter nbconvert --to notebook --execute --output-dir build/notebooks \
	  $(or $(ARGS),notebooks/*.ipynb)
	@$(BIN)/jupyter nbconvert --to html --CoalesceStreamsPreprocessor.enabled=True --output-dir build/docs build/notebooks/*.ipynb

order: $(READY)  ## a seed trained anew with fewer updates holds the order of the stages: five minutes of one core
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_order.py $(ARGS)

check: $(READY)  ## hold README, docs, results, notebooks, lock and metadata to the code
	@$(BIN)/python -m pytest -q -m "not slow" tests/test_docs.py tests/test_packaging.py tests/test_floors.py tests/test_messages.py \
	  tests/test_notebooks.py tests/test_evidence.py $(ARGS)

screens: $(READY)  ## pictures of the dashboard's pages on a finished workbench: ARGS="WORKBENCH"
	@$(BIN)/python docs/screens.py $(ARGS)

bench: $(READY)  ## measure all claims of speed, 15 minutes, and write docs/performance.md; one: BENCH=decode ARGS="FOLDER"
	@$(BIN)/python benchmarks/$(or $(BENCH),all).py $(ARGS)

lint: $(READY)  ## ruff, with the rules of pyproject.toml
	@$(BIN)/ruff check $(ARGS) . && $(BIN)/ruff format --check $(ARGS) .

audit:  ## known vulnerabilities of the locked packages, by pip-audit in an environment of its own
	@$(PYTHON) -m venv build/audit && build/audit/bin/python -m pip --disable-pip-version-check -qq install pip-audit
	@build/audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock

lock: $(READY)  ## resolve pyproject.toml anew and write requirements.lock
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip --disable-pip-version-check -qq install '.[app,notebooks,dev]'
	@{ sed -n '/^#/p' requirements.lock; build/lock/bin/python -m pip freeze --all --exclude pip --exclude wheel --exclude deepintuit \
	  | sed -E '/^(cuda-|nvidia-|triton)/s/$$/ $(CUDA)/'; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock && rm -rf build/lock

clean:  ## remove the environment and caches; workbench/ stays
	@rm -rf $(VENV) $(LIGHT) build dist deepintuit.egg-info .pytest_cache .ruff_cache .hypothesis
