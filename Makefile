# Every target sets up what it needs: a virtual environment with the versions of constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: install demo test lint format bench docs clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard hymate_native/*.cpp hymate_native/*.h hymate_native/*.hpp)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

# Pretraining, fine-tuning and evaluation on simulated stays, from nothing to figures and plots in a few minutes.
demo: install
	rm -rf $(DEMO)
	$(BIN)/hymate prepare synthetic --num-records 3000 --output $(DEMO)/data
	$(BIN)/hymate pretrain --data $(DEMO)/data --output $(DEMO)/pretrained --recipe demo
	$(BIN)/hymate finetune --data $(DEMO)/data --task in_hospital_mortality --output $(DEMO)/mortality \
		--checkpoint $(DEMO)/pretrained --recipe demo
	$(BIN)/hymate evaluate --checkpoint $(DEMO)/mortality --data $(DEMO)/data --task in_hospital_mortality \
		--split test --output $(DEMO)/test.json
	$(BIN)/hymate explain --checkpoint $(DEMO)/mortality --data $(DEMO)/data --task in_hospital_mortality \
		--output $(DEMO)/explanation

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --durations 10

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p $(VENV)/mypy
	ln -sfn $(CURDIR)/training $(VENV)/mypy/hymate_training
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

# Into build/docs; any warning is an error.
docs: install
	$(BIN)/mkdocs build --quiet

clean:
	rm -rf build dist runs *.egg-info
