# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
# one per core, but a fit next to a fit on a small machine helps nobody
WORKERS ?= 2

.PHONY: demo test slow check types lint up bench bench-postgres secrets clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	# the CPU build first: the default one brings gigabytes of CUDA libraries
	$(BIN)/python -m pip install --quiet -c constraints.txt torch || exit 1
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[test,dev,examples,bench]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu"

slow: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "slow and not gpu"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.ready
	$(BIN)/mypy

check: lint types

up: $(VENV)/.ready
	$(BIN)/bo up

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/asking.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/scale.py

bench-postgres: $(VENV)/.ready
	$(BIN)/python benchmarks/throughput.py --postgres
	$(BIN)/python benchmarks/heartbeats.py
	$(BIN)/python benchmarks/responsive.py
	$(BIN)/python benchmarks/servers.py
	$(BIN)/python benchmarks/scale.py --postgres
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),10) --restart-postgres

secrets:
	deploy/make_secrets.sh $(or $(SECRETS_DIR),secrets)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
