# `make demo` and `make test` are all a newcomer needs; each makes .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN ?= demo-run

.PHONY: demo test lint bench env clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("kiseki needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

env: $(VENV)/.installed

demo: env
	$(BIN)/kiseki demo $(DEMO_RUN)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

bench: env
	@ls bench/*.py | sed 's/^/  $(subst /,\/,$(BIN))\/python /'

clean:
	rm -rf $(VENV) $(DEMO_RUN) .mypy_cache .ruff_cache .pytest_cache .hypothesis
