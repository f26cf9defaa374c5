# Every target sets up what it needs: a virtual environment with the versions of constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
CONSTRAINTS := constraints.txt
EXTRAS := dev
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
DEMO := runs/demo
STRESS_SECONDS ?= 7200

.PHONY: install demo test test-floor test-space pictures browser common-tests stress audit lint lint-workflows format bench \
	bench-pipeline gpu-check evidence release docs wheel wheels sanitize aarch64 clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml $(CONSTRAINTS) $(wildcard hymate_native/csrc/*)
	$(BIN)/python --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint $(CONSTRAINTS) setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --no-build-isolation --editable ".[$(EXTRAS)]"
	touch $@

# Pretraining, fine-tuning and evaluation on simulated stays, from nothing to metrics, a report and a page about one
# patient in a few minutes.
DEMO_PATIENT := stay-0002872
demo: install
	rm -rf $(DEMO)
	$(BIN)/hymate prepare synthetic --num-records 3000 --output $(DEMO)/data
	$(BIN)/hymate pretrain --data $(DEMO)/data --output $(DEMO)/pretrained --recipe demo
	$(BIN)/hymate finetune --data $(DEMO)/data --task in_hospital_mortality --output $(DEMO)/mortality \
		--checkpoint $(DEMO)/pretrained --recipe demo --prediction-times 8
	$(BIN)/hymate evaluate --checkpoint $(DEMO)/mortality --data $(DEMO)/data --task in_hospital_mortality \
		--split test --output $(DEMO)/test.json
	$(BIN)/hymate explain --checkpoint $(DEMO)/mortality --data $(DEMO)/data --task in_hospital_mortality \
		--split test --num-records 60 --record-id $(DEMO_PATIENT) --card --output $(DEMO)/report
	@echo "Open $(DEMO)/report/index.html, and $(DEMO)/report/patients/$(DEMO_PATIENT).html for one patient."

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --durations 10

# The same with the oldest transformers that setup.cfg allows: the pins of constraints-floor.txt go before the others.
test-floor: build/constraints-floor.txt
	$(MAKE) test VENV=.venv-floor CONSTRAINTS=$<

# The page of a Space in a browser, in an environment of its own: Gradio wants an older Pillow than everything else.
test-space: browser
	OMP_NUM_THREADS=1 .venv-space/$(notdir $(BIN))/python -m pytest tests/publishing/test_space_page.py

# Pages as the docs show them, after `make demo` and `make release`.
pictures: browser
	.venv-space/$(notdir $(BIN))/python -m experiments.pictures

browser: build/constraints-space.txt
	$(MAKE) install VENV=.venv-space CONSTRAINTS=$< EXTRAS=dev,space
	.venv-space/$(notdir $(BIN))/python -m pip install --quiet --constraint $< playwright

build/constraints-%.txt: constraints-%.txt constraints.txt
	mkdir -p build
	awk -F == '!pinned[tolower($$1)]++' $^ > $@

# transformers' own tests of models, configurations and feature extractors, from the source distribution of the version
# that is pinned. They stay in build/.
common-tests: install
	version=$$($(BIN)/python -c "import transformers; print(transformers.__version__)") && \
	if ! test -d build/transformers-$$version; then \
		mkdir -p build && \
		$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary transformers --dest build \
			transformers==$$version && \
		tar -xzf build/transformers-$$version.tar.gz -C build && touch build/transformers-$$version/tests/__init__.py; \
	fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/common -rs

# What takes too long for `make test`: kills, half precision, long runs, many records, threads.
stress: install
	OMP_NUM_THREADS=1 timeout $(STRESS_SECONDS) $(BIN)/python -m pytest -n 0 --durations 20 tests/stress

# Known vulnerabilities in the versions that are pinned, by PyPI's own database; a package that it lacks is a failure.
# A release that is known to be vulnerable tells whether the database is there.
KNOWN_VULNERABLE := https://pypi.org/pypi/pip/23.0/json
audit: install
	@$(BIN)/python -c "import json, urllib.request as web; assert json.load(web.urlopen('$(KNOWN_VULNERABLE)', timeout=30))['vulnerabilities']" \
		2>/dev/null || { echo "make audit: $(KNOWN_VULNERABLE) lists no vulnerability: this needs PyPI itself, no mirror" >&2; exit 1; }
	$(PYTHON) -m venv build/audit
	build/audit/$(notdir $(BIN))/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/$(notdir $(BIN))/pip-audit --strict --requirement $(CONSTRAINTS) --no-deps --disable-pip

lint: install lint-workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What runs elsewhere, against its schemas.
lint-workflows: install
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml \
		.github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/pre-commit validate-config

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks

# From raw tables to predictions on copies of the MIMIC-IV demo, into docs/speed.md: RAW is the download.
bench-pipeline: install
	$(BIN)/python -m benchmarks.pipeline $(RAW) --write

# On a machine with a GPU, with the Python that holds PyTorch for it: make gpu-check PYTHON=python3 [DATA=prepared folder]
gpu-check:
	PYTHONPATH=.:training $(PYTHON) -m benchmarks.gpu_check $(if $(DATA),--data $(DATA))

# Cross-validation into docs/evidence.md: RAW is the download of STUDY's data. What is finished is not run again.
STUDY = mortality
RAW ?= downloads/physionet2012
evidence: install
	$(BIN)/python -m experiments.evidence --study $(STUDY) --raw $(RAW)

# The released checkpoints, from the raw download of STUDY's data (mortality or sepsis) into model_cards/.
release: install
	$(BIN)/python -m experiments.evidence.release --release $(STUDY) --raw $(RAW)

# Into build/docs; any warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# A wheel for this machine, tested in an environment that has nothing else.
wheel: install
	rm -rf build/wheel dist
	$(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv build/wheel
	build/wheel/$(notdir $(BIN))/python -m pip install --quiet --constraint $(CONSTRAINTS) dist/*.whl
	build/wheel/$(notdir $(BIN))/python tests/support/check_wheel.py

# A wheel to publish, likewise; cibuildwheel builds Linux wheels in a container.
wheels:
	$(PYTHON) -m pip install --quiet cibuildwheel
	$(PYTHON) -m cibuildwheel --output-dir dist

# The kernels' own tests, without Python: under the address and undefined-behavior sanitizers, and on an emulated ARM.
CHECK_FLAGS := -std=c++17 -fno-exceptions -fno-math-errno -fno-trapping-math -fno-signed-zeros -ffp-contract=fast \
	-fopenmp -Wall -Wextra -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized
CHECK_SOURCES := $(wildcard tests/native/*.cpp hymate_native/csrc/*.cpp)

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
