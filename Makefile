# Each target builds what it needs. PYTHON may name another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

COVERAGE := .venv-coverage

.PHONY: help demo test check format wheel clean coverage-graph

help:
	@echo "make demo    the whole way on scikit-learn's digits, two minutes, no download of data"
	@echo "make test    the tests"
	@echo "make check   format, lint, types, import layers"
	@echo "make format  put the code into shape"
	@echo "make wheel   build dist/*.whl"
	@echo "make coverage-graph  docs/coverage.md: which networks of torchvision, timm and transformers work; an hour"

$(INSTALLED): pyproject.toml constraints.txt tools/coverage/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps --requirement tools/coverage/requirements.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/penjing demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

check: $(INSTALLED)
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel

# PENJING_TORCHVISION_SHIM may name a Python file to run before torchvision is imported; ARGS="--fresh --only resnet18"
coverage-graph: $(COVERAGE)/.installed
	$(COVERAGE)/bin/python tools/coverage/table.py $(ARGS)

$(COVERAGE)/.installed: pyproject.toml constraints.txt tools/coverage/requirements.txt
	$(PYTHON) -m venv $(COVERAGE)
	$(COVERAGE)/bin/pip install --quiet --constraint constraints.txt --editable .
	$(COVERAGE)/bin/pip install --quiet --no-deps --requirement tools/coverage/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(COVERAGE) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
