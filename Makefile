VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test same chaos fuzz format check bench interop

quickstart: $(VENV)/.installed
	$(BIN)/matryoshka quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

same: $(VENV)/.dev
	$(BIN)/python scripts/same_numbers.py

chaos: $(VENV)/.dev
	$(BIN)/python tests/reliability/chaos.py --every 1

fuzz: $(VENV)/.dev
	$(BIN)/python tests/reliability/fuzz.py --seconds 25

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/step.py --save
	$(BIN)/python benchmarks/scaling.py --save
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/store.py

interop: $(VENV)/.dev
	$(BIN)/python benchmarks/interop.py --real --save

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	touch $@
