# Everything is installed into .venv; the installer keeps its downloads in the user's cache.
PYTHON ?= python3
BIN := .venv/bin
UV := UV_PYTHON_DOWNLOADS=never $(BIN)/uv

.PHONY: run test slow long production faults check lock reference nightly-year pictures bench bench-gpu install

run: install
	$(BIN)/torchyard run digits

# A file's tests stay together, in one process of up to four. AGAIN=1: what failed last, alone.
PROCESSES = logical
PARALLEL = -n $(PROCESSES) --maxprocesses 4 --dist loadfile
FAILED := --last-failed --last-failed-no-failures none -rfEsp
PYTEST = $(BIN)/pytest $(if $(AGAIN),$(FAILED),$(PARALLEL))

# One process more than processors: while a test waits for a server, another goes on.
test: PROCESSES = $(shell $(BIN)/python -c 'import os; print(min((os.cpu_count() or 1) + 1, 4))')
test: install
	$(PYTEST)

slow: install
	$(PYTEST) -m "slow and not long"

long: install
	$(PYTEST) -m long

# PostgreSQL, an S3 bucket, another host; skipped, with the reason, where something is not installed.
production: install
	$(BIN)/pytest -m production $(if $(AGAIN),$(FAILED))

faults: install
	TORCHYARD_KILLS=$(or $(KILLS),100) $(BIN)/pytest -m faults -s
	$(BIN)/pytest -m "slow or not slow" -k "two_first_runs or two_at_once or two_ups_at_once"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(BIN)/uv
	$(UV) pip compile -q pyproject.toml --group dev --universal --python-version 3.11 \
		--no-header --no-annotate -o requirements.lock
	$(UV) pip compile -q benchmarks/peers.in -c requirements.lock --universal --python-version 3.11 \
		--no-header --no-annotate -o benchmarks/requirements.txt

nightly-year: install
	$(BIN)/python docs/nightly_year.py

# Of the report and of a comparison, for the README; needs Chromium.
pictures: install
	$(BIN)/python docs/pictures.py

reference: install
	$(BIN)/python docs/reference.py

# All rows, or some: make bench ROWS="throughput memory". OPTIONS=--quick tries them.
bench: install benchmarks/.venv/.installed
	$(BIN)/python -m benchmarks.run $(OPTIONS) $(ROWS)

# On a machine with an NVIDIA GPU; see docs/benchmarks.md for what it can run beside.
bench-gpu: install benchmarks/data/cifar10.npz
	$(BIN)/python -m benchmarks.gpu $(OPTIONS)

benchmarks/data/cifar10.npz: | install
	$(BIN)/python -m benchmarks.gpu.data

install: .venv/.installed

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("torchyard needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.9

# One file pins what runs and what tests, so that both see the same versions.
# Compiled once here, as pip does, and not by each first import; where PYTHONDONTWRITEBYTECODE is
# set that would be every import: `torchyard --help` took 0.60 s instead of 0.27.
.venv/.installed: requirements.lock pyproject.toml | $(BIN)/uv
	$(UV) pip install -q -p .venv --compile-bytecode -r requirements.lock
	$(UV) pip install -q -p .venv --no-deps -e .
	$(BIN)/python -m compileall -q core pipelines plugins
	$(BIN)/python -m torchyard.pipelines.services.blank_database
	@touch $@

# What the project is compared with lives apart from it.
benchmarks/.venv/.installed: benchmarks/requirements.txt | $(BIN)/uv
	$(UV) venv -q --allow-existing --python $(BIN)/python benchmarks/.venv
	$(UV) pip install -q -p benchmarks/.venv -r $<
	@touch $@
