# make demo   compress the bundled model, export it, prove the exports, print what it cost
# make test   run the tests
# make bench  measure what takes minutes; write benchmarks/RESULTS.md and the tables in README and docs
# make bench-all DATA=DIR   measure everything, which takes hours (benchmarks/results.py)
# All install everything into .venv first, and install nothing when that is up to date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One process per core, each with one thread: most tests are too small for more.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# Texts for bench-all: NAME.train.txt and NAME.test.txt.
DATA ?=

.PHONY: install demo bench bench-all test test-slow lint types wheel clean

install: $(STAMP)

# Compiled once here, because PYTHONDONTWRITEBYTECODE makes every later import pay for it again.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[compressed-tensors,eval,genai,gptq,nf4,peft,dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $(STAMP)

demo: install
	$(BIN)/python -m benchmarks.demo

bench: install
	$(BIN)/python -m benchmarks.results --fast

bench-all: install
	$(BIN)/python -m benchmarks.results $(if $(DATA),--data $(DATA))

test: install
	$(PYTEST)

test-slow: install
	$(PYTEST) -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

wheel: install
	$(BIN)/python -m hatchling build -t wheel

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
