# Every target sets up what it needs: a virtual environment with the versions of constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SOURCES := configuration_hymate modeling_hymate hymate_native training tests benchmarks setup.py
DATA ?=
DEMO := runs/demo

.PHONY: install demo test lint format bench clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard hymate_native/*.cpp hymate_native/*.h hymate_native/*.hpp)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf build dist runs *.egg-info
