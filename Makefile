# make setup | demo | test | test-unit | test-slow | test-long | test-cluster | test-docker | mutation | lint
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-unit test-slow test-long test-cluster test-docker mutation lint

setup: .venv/installed

# The stamp is written last, so an installation that broke off is done again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/plast demo

test: setup
	$(BIN)/python -m pytest -m "not slow and not cluster and not docker"

# Starts no process; under two minutes on two cores.
test-unit: setup
	$(BIN)/python -m pytest tests/unit -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not long"

# The 100-kill test.
test-long: setup
	$(BIN)/python -m pytest -m long -s

# As root, with Debian's slurmctld slurmd slurm-client munge; skipped without.
test-cluster: setup
	$(BIN)/python -m pytest -m cluster -rs

# As root, with Debian's buildah debootstrap podman runc; skipped without. PLAST_IMAGES=DIR keeps the layers.
test-docker: setup
	$(BIN)/python -m pytest -m docker -rs

# Breaks the core one line at a time; half an hour. The table goes to mutation/mutation.md.
mutation: setup
	$(BIN)/python tests/mutation.py --out mutation

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
