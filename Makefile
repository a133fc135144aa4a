# Everything runs from its own virtual environment; only Python ≥ 3.11.4, make and a package index are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STACK  := examples/quickstart/stack.yaml

.PHONY: quickstart llama-server test test-fast nightly soak check lint format schemas bench clean

quickstart: $(VENV)/.runs
	@$(BIN)/reconcile apply -f $(STACK)
	@$(BIN)/python examples/quickstart/ask.py --stack $(STACK) --reconcile $(BIN)/reconcile

# Built once, into the user's cache (ten minutes or more); the end-to-end tests and benchmarks find it there by themselves.
llama-server: $(VENV)/.tests
	@$(BIN)/python -m tests.support.llama_server

test: $(VENV)/.tests
	$(BIN)/python -m pytest -n 4 --dist worksteal
	RECONCILER_SOAK=20 $(BIN)/python -m pytest -s tests/gateway/soak.py

test-fast: $(VENV)/.tests
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not slow and not e2e"

# Generated histories and manifests in large numbers, ten minutes of kills, an hour of traffic, two hours in all; the counts stand at the
# end of each.
nightly: $(VENV)/.tests
	RECONCILER_NIGHTLY=1 nice -n 10 $(BIN)/python -m pytest -n 2 tests/core/test_machine.py tests/manifest/test_fuzz.py
	RECONCILER_NIGHTLY=1 $(BIN)/python -m pytest tests/crash/test_chaos.py
	$(MAKE) soak
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[nightly]'
	nice -n 10 $(BIN)/python -m tests.gguf.fuzz_header --runs 2000000

# The gateway under everything at once: an hour, or RECONCILER_SOAK seconds.
soak: $(VENV)/.tests
	nice -n 10 $(BIN)/python -m pytest -s tests/gateway/soak.py

check: lint test

lint: $(VENV)/.tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/reconcile schema | diff -u schemas/stack.schema.json - || \
		{ echo "schemas/stack.schema.json is out of date: run 'make schemas'"; exit 1; }

format: $(VENV)/.tests
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

schemas: $(VENV)/.runs
	$(BIN)/reconcile schema > schemas/stack.schema.json

bench: $(VENV)/.tests
	$(BIN)/python -m benchmarks.run_all

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
		{ echo "Python 3.11.4 or newer is needed; name one with: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "(on Debian and Ubuntu: apt install python3-venv)"; exit 1; }

$(VENV)/.runs: pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.tests: pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV) with what the tests need …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.runs
