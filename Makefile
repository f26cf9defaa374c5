# Every target sets up what it needs: a virtual environment with the versions of constraints.txt.
PYTHON ?= python3.11
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: install demo test test-floor lint format bench gpu-check evidence release docs sanitize aarch64 clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml $(CONSTRAINTS) $(wildcard hymate_native/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint $(CONSTRAINTS) setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --no-build-isolation --editable ".[dev]"
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
		--split test --num-records 60 --card --output $(DEMO)/report

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --durations 10

# The same with the oldest transformers that setup.cfg allows: the pins of constraints-floor.txt go before the others.
test-floor: build/constraints-floor.txt
	$(MAKE) test VENV=.venv-floor CONSTRAINTS=$<

build/constraints-floor.txt: constraints-floor.txt constraints.txt
	mkdir -p build
	awk -F == '!pinned[$$1]++' $^ > $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

# On a machine with a GPU, with the Python that holds PyTorch for it: make gpu-check PYTHON=python3 [DATA=prepared folder]
gpu-check:
	PYTHONPATH=.:training $(PYTHON) -m benchmarks.gpu_check $(if $(DATA),--data $(DATA))

# Cross-validation on PhysioNet 2012, into docs/evidence.md: RAW is the download. What is finished is not run again.
RAW ?= downloads/physionet2012
evidence: install
	$(BIN)/python -m experiments.evidence --raw $(RAW)

# The released checkpoints, from the raw download into model_cards/.
release: install
	$(BIN)/python -m experiments.evidence.release --raw $(RAW)

# Into build/docs; any warning is an error.
docs: install
	$(BIN)/mkdocs build --quiet

# The kernels' own tests, without Python: under the address and undefined-behavior sanitizers, and on an emulated ARM.
CHECK_FLAGS := -std=c++17 -fno-exceptions -fno-math-errno -fno-trapping-math -fno-signed-zeros -ffp-contract=fast \
	-fopenmp -Wall -Wextra -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized
CHECK_SOURCES := tests/native/check_kernels.cpp hymate_native/csrc/kernels.cpp

sanitize:
	mkdir -p build
	for level in "" -march=native; do \
		$(CXX) $(CHECK_FLAGS) -O1 -g1 $$level -fsanitize=address,undefined -fno-sanitize-recover=all \
			$(CHECK_SOURCES) -o build/check-kernels-sanitized && build/check-kernels-sanitized || exit 1; \
	done

# Needs Debian's g++-aarch64-linux-gnu and qemu-user.
aarch64:
	mkdir -p build
	aarch64-linux-gnu-g++ $(CHECK_FLAGS) -O3 -static $(CHECK_SOURCES) -o build/check-kernels-aarch64
	qemu-aarch64 build/check-kernels-aarch64

clean:
	rm -rf build dist runs *.egg-info
