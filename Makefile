# The two commands of the README, and what they stand on. Needs Python 3.11 or later, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pytest-xdist's workers share the cores: more threads in each would only wait for one another.
WORKERS ?= 2
# What stands on the libraries: reading pictures, both CPU engines, and the whole way through the command line.
LOWEST_TESTS := tests/runtime/test_run_directory.py tests/runtime/test_preprocessing.py \
  tests/runtime/test_ort_session.py tests/runtime/test_openvino_session.py \
  tests/runtime/test_report_page.py tests/deploy/test_cli.py tests/deploy/test_pipeline.py

.PHONY: help setup demo test lint format lowest audit clean

help:
	@echo "make demo    quantize the built-in model of handwritten digits and measure it"
	@echo "make test    run all tests"
	@echo "make lint    ruff and mypy"
	@echo "make format  put the code into ruff's format"
	@echo "make lowest  run the main tests with the oldest versions that are promised (a second environment)"
	@echo "make audit   hold constraints.txt against the known vulnerabilities (needs the network)"
	@echo "make clean   remove the virtual environments and what the demo left"

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

# Old versions warn of what has changed since. Packed INT4 needs a later ONNX Runtime, and says so.
lowest:
	$(PYTHON) -m venv .lowest-venv
	.lowest-venv/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[all]' \
	  pytest pytest-timeout
	OMP_NUM_THREADS=1 .lowest-venv/bin/python -m pytest -W default \
	  -k 'not packed_weights and not 2_gib' $(LOWEST_TESTS)

# --strict: without it a package that cannot be looked up counts as one without faults.
audit:
	$(PYTHON) -m venv .audit-venv
	.audit-venv/bin/python -m pip install --quiet pip-audit==2.10.1
	.audit-venv/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

clean:
	rm -rf $(VENV) .lowest-venv .audit-venv demo-run
