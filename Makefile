# `make demo` and `make test` set up .venv by themselves; they need Python 3.11 or newer, git, make.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# DVC and the stages find the commands of the environment first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test lint clean
.DEFAULT_GOAL := demo

demo: $(READY)  ## rebuild the whole chain on the embedded dataset
	dvc repro
	@echo
	@echo "The report: file://$(CURDIR)/outputs/demo/report.html"

test: $(READY) lint  ## all tests, linter and type checker
	OMP_NUM_THREADS=1 python -m pytest -n logical --maxprocesses 8 --dist worksteal

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

clean:  ## remove what the chain and the tools made; the environment too
	rm -rf $(VENV) data outputs build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf .dvc/cache .dvc/tmp dvc_plots dvc.lock

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "There is no program $(PYTHON) here. Name a Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dualkd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Use: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV): some minutes, 6.2 GB (torch with its GPU libraries), this once."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $@
