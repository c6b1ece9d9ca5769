# The house in four words: make demo · make test · make check · make test-all.
# Everything is installed by plain pip into .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all check lint clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Diptych needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Try: make demo PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[fast,logs]'
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(PIP) -e '.[fast,logs,test]'
	@touch $@

# Train a small CLIP on emoji, test it on a drawing style it never saw, and write a report (about five minutes).
demo: $(VENV)/installed
	$(BIN)/diptych demo $(DEMO_FLAGS)

# Everything but what takes minutes.
test: $(VENV)/installed-for-tests
	$(BIN)/pytest

test-all: $(VENV)/installed-for-tests
	$(BIN)/pytest -m 'slow or not slow'

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What CI runs, but for the demo.
check: lint test

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
