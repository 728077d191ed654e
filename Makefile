# make setup | demo | test | test-slow | lint
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow lint

setup: .venv/installed

# The stamp is written last, so an installation that broke off is done again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/plast demo

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
