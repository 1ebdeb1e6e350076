# make demo   compress the bundled model, export it, prove the exports, print what it cost
# make test   run the tests
# Both install everything into .venv first, and install nothing when that is up to date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One process per core, each with one thread: most tests are too small for more.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: install demo test test-slow lint types wheel clean

install: $(STAMP)

# Compiled once here, because PYTHONDONTWRITEBYTECODE makes every later import pay for it again.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[compressed-tensors,eval,genai,gptq,nf4,peft,dev]'
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib || true
	touch $(STAMP)

demo: install
	$(BIN)/python -m benchmarks.demo

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
