# make demo      bake a LoRA and see what it got    make test       all tests
# make check     formatting, lint, types, tests     make coverage   what the tests leave out
# make newcomer  follow the README in a clone       make bench      measure
# make dist      build and check what is released   make pictures   draw those of docs/
# make fuzz      feed every reader odd bytes (FUZZ_SECONDS=60 each)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo/doraemon

FUZZ_SECONDS ?= 60
FUZZED := header modules keys weights yaml lbwpresets elempresets inspire presets

.PHONY: demo test check coverage newcomer bench dist fuzz pictures lint clean
.DEFAULT_GOAL := test

$(VENV)/runtime.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	$(BIN)/python -m compileall -q lbw_bake  # as pip does for what it copies
	touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[interop,tui,dev]'
	touch $@

demo: $(VENV)/runtime.stamp
	test -f $(DEMO).safetensors || $(BIN)/python examples/make_demo_lora.py $(DEMO).safetensors
	$(BIN)/lbw inspect $(DEMO).safetensors
	$(BIN)/lbw bake $(DEMO).safetensors --preset MIDD -o $(DEMO)-midd.safetensors --force
	$(BIN)/lbw diff $(DEMO).safetensors $(DEMO)-midd.safetensors

# Tests start hundreds of processes, each of which would compile the package where Python is told to keep no bytecode.
test: $(VENV)/dev.stamp
	$(BIN)/python -m compileall -q lbw_bake
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin

check: lint test

coverage: $(VENV)/dev.stamp
	rm -rf .coverage
	mkdir .coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

newcomer:
	tests/newcomer.sh

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks

# The same bytes from the same commit, whenever and wherever it is built.
dist: $(VENV)/dev.stamp
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	for target in $(FUZZED); do $(BIN)/python fuzz/fuzz.py $$target --seconds $(FUZZ_SECONDS) || exit 1; done

pictures: $(VENV)/dev.stamp
	$(BIN)/python examples/make_pictures.py docs/pictures

clean:
	rm -rf $(VENV) demo build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
