# Targets set up what they need in .venv/, from the versions pinned in requirements.txt.
PYTHON ?= python3
NEWEST_PYTHON ?= python3.13
BIN := .venv/bin
RECIPE ?= cifar_msdnet
METHOD ?= osgd
SEED ?= 0
FOLDER ?= runs/paper_scale
ALL_EXTRAS := experiments,data,docs,notebooks,test,lint
# A file's tests share what they compile, so they stay together.
PYTEST := pytest -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo benchmark accelerators paper-scale study-smoke docs notebooks test test-guards test-slow test-peer test-onnx test-serve test-accelerators test-newest test-oldest check format lock dist clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

demo: .venv/demo-ready ## Compare SGD, clipped SGD and OSGD on an anytime net, then answer by deadlines (2 minutes)
	$(BIN)/python -m experiments.compare --output runs/demo

benchmark: .venv/ready ## Time training steps of SGD and OSGD against their limits (about 5 minutes)
	$(BIN)/python -m experiments.benchmark steps

accelerators: .venv-tpu/ready .venv-gpu/ready ## Compile training steps for TPU v5e and H100, none needed (about an hour on 2 cores)
	.venv-tpu/bin/python -m experiments.benchmark accelerators
	.venv-gpu/bin/python -m experiments.benchmark accelerators

# Options of each METHOD. `last` has a weight of 0 for each output of the recipe but the last.
OPTIONS_sgd := --optimizer sgd
OPTIONS_clipped := --optimizer sgd --clip-norm 1
OPTIONS_osgd := --optimizer osgd
OPTIONS_pcd := --optimizer pcd
OPTIONS_last = --optimizer sgd --loss-weights \
  $(shell awk '/^outputs = / { for (k = 1; k < $$3; k++) printf "0 "; print 1 }' experiments/app/recipes/$(RECIPE).toml)
OPTIONS_mixed = --optimizer sgd --start-from $(FOLDER)/$(RECIPE)_last_$(SEED)
paper-scale: .venv/ready ## Train a recipe of the paper's scale, on a GPU: RECIPE=cifar_msdnet METHOD=osgd (SEED=…, FOLDER=…, OPTIONS=…)
	$(if $(OPTIONS_$(METHOD)),,$(error METHOD must be sgd, clipped, osgd, pcd, last or mixed, got $(METHOD)))
	$(if $(filter mixed,$(METHOD)),$(MAKE) paper-scale METHOD=last)
	$(BIN)/python -m experiments.train --recipe $(RECIPE) --seed $(SEED) \
	  --workdir $(FOLDER)/$(RECIPE)_$(METHOD)_$(SEED) $(OPTIONS_$(METHOD)) $(OPTIONS)

study-smoke: .venv/ready ## Train a corner of the study again and compare it with what is stored
	$(BIN)/python -m tests.experiments.studies.smoke

# Most programs of the tests run once: compiling them is most of the time, so it is done in haste.
HASTE := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
test: .venv/ready ## Run the tests; those of numbers also fully optimized, as on an older processor
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS="$(HASTE)" $(BIN)/python -m $(PYTEST) -m "not slow"
ifeq ($(shell uname -m),x86_64)
	XLA_FLAGS=--xla_cpu_max_isa=AVX2 $(BIN)/python -m $(PYTEST) -m numerical
endif

test-guards: .venv/ready ## Run the tests of numbers under JAX's strict settings (under a minute)
	JAX_NUMPY_RANK_PROMOTION=raise JAX_NUMPY_DTYPE_PROMOTION=strict JAX_DEBUG_NANS=1 JAX_DEBUG_INFS=1 \
	  JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS="$(HASTE)" $(BIN)/python -m $(PYTEST) -m numerical

test-slow: .venv/ready ## Run the tests that take longer than a minute each
	$(BIN)/python -m pytest -m slow

test-peer: .venv-peer/ready ## Compare with TorchJD and with Llama in transformers, in a separate environment (several GB)
	.venv-peer/bin/python -m pytest tests/weightings/test_against_torchjd.py tests/experiments/benchmark/test_peer.py tests/nets/test_against_transformers.py

test-onnx: .venv-onnx/ready ## Run ONNX files under onnxruntime, in a separate environment
	.venv-onnx/bin/python -m pytest tests/serving/test_onnx.py

test-serve: .venv-serve/ready ## Run the server with Ray Serve and ask it as many clients do, under bad requests and lost replicas
	.venv-serve/bin/python -m pytest tests/experiments/serve

test-accelerators: .venv-tpu/ready .venv-gpu/ready ## Check what steps compiled for TPU v5e and H100 send, round and scatter (several GB, no device)
	.venv-tpu/bin/python -m pytest tests/experiments/benchmark/test_accelerators.py
	.venv-gpu/bin/python -m pytest tests/experiments/benchmark/test_accelerators.py

test-newest: ## Run the tests with the newest versions of everything (NEWEST_PYTHON: 3.12 or newer)
	@$(NEWEST_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || \
	  { echo "NEWEST_PYTHON=$(NEWEST_PYTHON) must be a Python 3.12 or newer; give its path" >&2; exit 1; }
	$(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager pip -e '.[$(ALL_EXTRAS)]'
	.venv-newest/bin/python -m $(PYTEST) -m "not slow"

test-oldest: ## Run the tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip uv
	.venv-oldest/bin/uv pip install --quiet --resolution lowest-direct --python .venv-oldest/bin/python \
	  -e '.[$(ALL_EXTRAS)]'
	.venv-oldest/bin/python -m $(PYTEST) -m "not slow" -W default::DeprecationWarning

check: .venv/ready ## Check format, lint, types, layers of imports and avoided phrases
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python -m tests.style

docs: .venv/ready ## Build the documentation site into build/docs
	$(BIN)/python -m sphinx -W --keep-going docs build/docs

notebooks: .venv/ready ## Run the notebooks and store what they show
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

format: .venv/ready ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## Pin the newest versions of everything in requirements.txt
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet -e '.[$(ALL_EXTRAS)]'
	.venv-lock/bin/python -m pip freeze --exclude-editable > requirements.txt
	rm -rf .venv-lock

dist: ## Build the sdist and the wheel into dist/ and check them
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet 'build>=1.2' 'twine>=6.1'
	rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/python -m twine check --strict dist/*

clean: ## Remove the environment, caches and runs
	rm -rf .venv .venv-lock .venv-peer .venv-onnx .venv-serve .venv-tpu .venv-gpu .venv-newest .venv-oldest .venv-dist .pytest_cache .ruff_cache .hypothesis runs build dist

.venv/demo-ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.txt -e '.[experiments]'
	@touch $@

.venv/ready: .venv/demo-ready
	$(BIN)/python -m pip install --quiet --constraint requirements.txt -e '.[$(ALL_EXTRAS)]'
	@touch $@

# Without the pins: jax2onnx wants an older orbax-checkpoint than they have.
.venv-onnx/ready: pyproject.toml
	$(PYTHON) -m venv .venv-onnx
	.venv-onnx/bin/python -m pip install --quiet --upgrade pip
	.venv-onnx/bin/python -m pip install --quiet -e '.[test,onnx]'
	@touch $@

.venv-peer/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet --upgrade pip
	.venv-peer/bin/python -m pip install --quiet --constraint requirements.txt -e '.[experiments,test,peer]'
	@touch $@

.venv-serve/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet --upgrade pip
	.venv-serve/bin/python -m pip install --quiet --constraint requirements.txt -e '.[serve,test,test-serve]'
	@touch $@

.venv-tpu/ready .venv-gpu/ready: .venv-%/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip
	.venv-$*/bin/python -m pip install --quiet --constraint requirements.txt -e '.[experiments,test,$*]'
	@touch $@
