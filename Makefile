# The commonest targets: make demo · make test · make docs · make check · make test-all.
# Everything is installed by plain pip into .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A process per core, each with one thread but where a test sets more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

PEERS ?= .venv-peers
DATA ?= ../shared/data

.PHONY: demo test test-ci test-peers test-all mutants check lint docs bench clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Diptych needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Try: make demo PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[fast,logs,plots]'
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(PIP) -e '.[test]'
	@touch $@

# Train a small CLIP on emoji, test it on a drawing style it never saw, and write a report (about five minutes).
demo: $(VENV)/installed
	$(BIN)/diptych demo $(DEMO_FLAGS)

# Everything but what takes long: under five minutes on two cores.
test: $(VENV)/installed-for-tests
	$(PYTEST)

# What CI runs: everything but what takes minutes each.
test-ci: $(VENV)/installed-for-tests
	$(PYTEST) -m 'not slow'

test-all: $(VENV)/installed-for-tests
	$(PYTEST) -m 'slow or not slow'

# Would the tests notice? 300 small wrong changes of the core, each against its own tests; about an hour, not part of CI.
# MUTANTS_FLAGS="--module order --all" and the like; survivors go to build/mutants.md.
mutants: $(VENV)/installed-for-tests
	$(BIN)/python scripts/mutants.py $(MUTANTS_FLAGS)

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed-for-docs: $(VENV)/installed
	$(PIP) -e '.[docs]'
	@touch $@

# The documentation site, into site/; a warning is an error.
docs: $(VENV)/installed-for-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What to run before a pull request: CI without the wheel and the demo.
check: lint test docs

# open_clip and others beside ours; torchvision without its CUDA companions (see benchmarks/peers.txt).
$(PEERS)/installed: benchmarks/peers.txt pyproject.toml constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fast]' -r benchmarks/peers.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.29.2 timm==1.0.31 open_clip_torch==3.3.0 \
		clip-benchmark==1.6.2 all-clip==1.3.0
	@touch $@

# The package open_clip beside the real one, in the peers' environment: names, models, tokens, pixels, losses, and programs that use it.
test-peers: $(PEERS)/installed
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m pytest -n auto --dist loadfile -m 'slow or not slow' tests/open_clip

# C1 to C10 against the peers, about ten minutes; DATA is a folder with flickr8k/.
bench: $(PEERS)/installed
	$(PEERS)/bin/python benchmarks/race/run.py $(DATA)

clean:
	rm -rf $(VENV) $(PEERS) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
