# The two commands of the README, and what they stand on. Needs Python 3.11 or later, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pytest-xdist's workers share the cores: more threads in each would only wait for one another.
WORKERS ?= 2

.PHONY: help setup demo test lint format clean

help:
	@echo "make demo    quantize the built-in model of handwritten digits and measure it"
	@echo "make test    run all tests"
	@echo "make lint    ruff and mypy"
	@echo "make format  put the code into ruff's format"
	@echo "make clean   remove the virtual environment and what the demo left"

setup: $(READY)

# Pinned by constraints.txt: the versions that the figures were measured with.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	touch $(READY)

demo: $(READY)
	$(BIN)/mimiq-deploy demo --output demo-run

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-run
