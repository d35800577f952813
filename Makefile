# make demo    bake a LoRA and see what it got      make test    all tests
# make check   formatting, lint, types, tests       make bench   measure
# make pictures   draw those of docs/               make fuzz    feed every reader odd bytes (FUZZ_SECONDS=60 each)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo/doraemon

FUZZ_SECONDS ?= 60
FUZZED := header modules keys weights yaml lbwpresets elempresets inspire presets

.PHONY: demo test check bench fuzz pictures lint clean
.DEFAULT_GOAL := test

$(VENV)/runtime.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[interop,dev]'
	touch $@

demo: $(VENV)/runtime.stamp
	test -f $(DEMO).safetensors || $(BIN)/python examples/make_demo_lora.py $(DEMO).safetensors
	$(BIN)/lbw inspect $(DEMO).safetensors
	$(BIN)/lbw bake $(DEMO).safetensors --preset MIDD -o $(DEMO)-midd.safetensors --force
	$(BIN)/lbw diff $(DEMO).safetensors $(DEMO)-midd.safetensors

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks

fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	for target in $(FUZZED); do $(BIN)/python fuzz/fuzz.py $$target --seconds $(FUZZ_SECONDS) || exit 1; done

pictures: $(VENV)/dev.stamp
	$(BIN)/python examples/make_pictures.py docs/pictures

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
