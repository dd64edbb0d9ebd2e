# On a machine with git, make and Python 3.11 (with venv): `make quickstart`, `make test`.

PYTHON ?= python3.11
BIN := .venv/bin
OUT ?= quickstart
SOURCES := configs data_gen launch wizard_jax tests benchmarks

.PHONY: quickstart test test-slow check fix lock

quickstart: .venv/.installed
	$(BIN)/wizard quickstart --out $(OUT)

test: check
	$(BIN)/python -m pytest

test-slow: .venv/.installed-tests
	$(BIN)/python -m pytest -m slow

check: .venv/.installed-tests
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

fix: .venv/.installed-tests
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: .venv/.uv
	$(BIN)/uv lock
	! grep -nE 'file://' uv.lock

.venv/.uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	touch $@

.venv/.installed: .venv/.uv pyproject.toml uv.lock
	$(BIN)/uv sync --quiet --frozen --inexact --python $(BIN)/python
	touch $@

# PyTorch is not in the lock: there every build for Linux brings gigabytes of CUDA packages along. Nor is peft, which asks for it.
.venv/.installed-tests: .venv/.installed
	$(BIN)/uv sync --quiet --frozen --inexact --group test --python $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 peft==0.21.2
	touch $@
