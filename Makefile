# `make run` and `make test` need Python 3.10 or newer and nothing else; both make .venv and install what they use.
PYTHON ?= python3
WORKERS ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
TORCH  := $(shell grep -o '^torch==[0-9.]*' constraints.txt)
META   := settings.ini setup.py pyproject.toml constraints.txt

# For Linux PyPI's PyTorch is the build for NVIDIA cards, of several GB. Where there is no such card, the much smaller one
# for CPUs is taken from PyTorch's own index; if that does not answer, PyPI's. TORCH_INDEX=https://download.pytorch.org/whl/…
# chooses another build, TORCH_INDEX= (empty) PyPI's.
NVIDIA := $(wildcard /proc/driver/nvidia/version)$(shell command -v nvidia-smi)
ifeq ($(shell uname -s)$(NVIDIA),Linux)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
ANSWERS := $(BIN)/python -m pip index versions torch -q --timeout 5 --retries 0 --index-url $(TORCH_INDEX) >/dev/null 2>&1

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run chat test gates notebooks pytest check test-slow test-gpu lab lab-test site outputs readme front export bench clean

export MATPLOTLIBRC := $(CURDIR)/nbs/matplotlibrc
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- the environment -------------------------------------------------------------------------------------------------
# A stamp file per set of packages: nothing is installed again until the files that name the packages change.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); minimind needs Python 3.10 or newer: make PYTHON=python3.x …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }

$(VENV)/.core: $(META) | $(BIN)/python
	@echo "Installing PyTorch and the few packages of the core into $(VENV) (once)"
	@$(PIP) -q --no-index --no-deps $(TORCH) 2>/dev/null || [ -z "$(TORCH_INDEX)" ] || { \
	    $(ANSWERS) && $(PIP) --no-deps --index-url $(TORCH_INDEX) $(TORCH); \
	} || echo "$(TORCH_INDEX) does not answer: PyTorch comes from PyPI, with what NVIDIA cards need (several GB)"
	@$(PIP) $(TORCH) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Installing what the tests need (once)"
	@$(PIP) $(TORCH) -e '.[dev]'
	@touch $@

$(VENV)/.course: $(VENV)/.core
	@echo "Installing JupyterLab (once)"
	@$(PIP) $(TORCH) -e '.[course]'
	@touch $@

# ---- the two commands ------------------------------------------------------------------------------------------------
run: $(VENV)/.core  ## the whole ladder at size ci on the shipped data, ending in a results table (ARGS=… is passed on)
	@$(BIN)/minimind run $(ARGS)

chat: $(VENV)/.core  ## talk to a model (ARGS="runs/ci/sft --temperature 0" is passed on)
	@$(BIN)/minimind chat $(ARGS)

# One thread a process: two processes that each take all cores slow each other down several times over.
test gates notebooks pytest check test-slow lab-test: export OMP_NUM_THREADS := 1
# Tests and chapters show the same numbers on every processor, also on one that is faster in bfloat16.
test gates notebooks pytest check test-slow test-gpu outputs lab-test: export MINIMIND_DTYPE := float32

test: $(VENV)/.dev  ## everything: repository gates, every notebook cell, pytest
	@$(MAKE) --no-print-directory gates
	@$(MAKE) --no-print-directory notebooks
	@$(MAKE) --no-print-directory pytest

gates: $(VENV)/.dev  ## is the repository consistent? (modules = notebooks, README = index, the ladder …)
	@$(BIN)/python -m pytest -q --tb=short tests/test_repo.py

notebooks: $(VENV)/.dev  ## run every cell of every notebook, solutions included
	@echo "nbdev_test over all notebooks"
	@$(BIN)/nbdev_test --n_workers $(WORKERS) --timing

pytest: $(VENV)/.dev  ## tests/, ending in pytest's summary line
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 10 tests

# What takes long or needs an NVIDIA card: pytest's marks, and the notebooks' cells that begin with such a flag.
flagged = $(shell grep -l '^ *".| $(1).n"' nbs/*.ipynb nbs/solutions/*.ipynb)

test-slow: $(VENV)/.dev  ## what `make test` leaves out because it takes hours (ARGS="-k kills" is passed to pytest)
	@for nb in $(call flagged,slow); do echo "$$nb, its slow cells too"; $(BIN)/nbdev_test --path $$nb --flags slow --n_workers 0; done
	@$(BIN)/python -m pytest --slow -m slow --durations 0 tests $(ARGS)

test-gpu: $(VENV)/.dev  ## what needs an NVIDIA card (ARGS="-k packed" is passed to pytest)
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make test-gpu: torch finds no CUDA device here")'
	@$(BIN)/python -m pytest -m gpu --durations 0 tests $(ARGS)
	@for nb in $(call flagged,gpu); do echo "$$nb, its GPU cells too"; $(BIN)/nbdev_test --path $$nb --flags gpu --n_workers 0; done

# ---- work on it ------------------------------------------------------------------------------------------------------
check: $(VENV)/.dev  ## the fast loop: the repository gates, ruff among them
	@$(MAKE) --no-print-directory gates

export: $(VENV)/.dev  ## write the modules from the notebooks
	@$(BIN)/nbdev_export

outputs: $(VENV)/.dev  ## execute all notebooks in place, in order, or the named ones (NB="03 12"), then modules and README
	@$(BIN)/python tools/outputs.py $(NB)
	@$(BIN)/nbdev_export
	@$(BIN)/python tools/readme.py

readme: $(VENV)/.dev  ## write README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

# Jupyter refuses root unless it is told to; in a container or on a rented machine one often is root
LAB := $(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" $(if $(filter 0,$(shell id -u)),--allow-root)

lab: $(VENV)/.course  ## JupyterLab, opened at the first chapter (ARGS="--no-browser --port 8890" is passed on)
	@$(LAB) nbs/00_tour.ipynb $(ARGS)

lab-test: $(VENV)/.course  ## Run All over every chapter, or the named ones (NB="rope 31"), in the environment of `make lab`
	@$(BIN)/python tools/runall.py $(NB)

front: $(VENV)/.dev  ## take the front page's numbers from runs/ci and benchmarks/results, and write README.md
	@$(BIN)/python tools/front.py
	@$(MAKE) --no-print-directory outputs NB=index

site: $(VENV)/.dev  ## the documentation in _site/ (with Quarto where it is installed, else with smalldocs)
	@$(BIN)/python tools/site.py

bench: $(VENV)/.dev  ## measure, and write benchmarks/results/
	@$(BIN)/minimind bench $(ARGS)

clean:  ## remove what was made, keep .venv and runs/
	@rm -rf _proc _site _docs build *.egg-info .pytest_cache .ruff_cache .hypothesis
