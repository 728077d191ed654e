# make setup | demo | test | test-slow | test-long | test-cluster | test-docker | lint
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow test-long test-cluster test-docker lint

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

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
