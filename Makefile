# `make demo` serves the demo bundle, `make test` runs every check. Both make their own environment in .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test fast check clients format lock clean

demo: .venv/serve.done
	@$(BIN)/loraplex demo

# Two processes take file after file, in their order: most tests wait, for a server to start or for an answer.
test: check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The tests without those marked slow.
fast: .venv/test.done
	$(BIN)/python -m pytest -m "not slow"

# mypy cannot follow setuptools' editable mapping, so it gets the packages under their import names.
check: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .cache/mypy/loraplex && cd .cache/mypy/loraplex && ln -sfn ../../../server ../../../build ../../../bench ../../../adapters .
	MYPYPATH=.cache/mypy $(BIN)/mypy --cache-dir .cache/mypy_cache -p loraplex.server -p loraplex.build -p loraplex.bench
	MYPYPATH=.cache/mypy $(BIN)/mypy --cache-dir .cache/mypy_cache tests

# Client libraries and suites that nobody here wrote, each in an environment of its own.
clients: .venv/test.done
	$(BIN)/python -m tests.clients

format: .venv/test.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps what is locked as far as pyproject.toml allows; `make lock UPGRADE=--upgrade` takes the newest of everything.
lock: .venv/test.done
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra cuda --extra build --extra bench --extra otel --group test --universal \
	  --python-version 3.11 --no-header --no-annotate $(UPGRADE) --output-file constraints.txt

.venv/python.done:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "loraplex needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/serve.done: .venv/python.done pyproject.toml constraints.txt
	$(INSTALL) --editable '.[cpu]'
	@touch $@

.venv/test.done: .venv/serve.done
	$(INSTALL) --upgrade pip
	$(INSTALL) --editable '.[cpu,build,bench,otel]' --group test
	@touch $@

clean:
	rm -rf .venv .cache loraplex.egg-info
