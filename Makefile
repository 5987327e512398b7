# `make demo` and `make test` are all a newcomer needs; each sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_EXTRAS := compile,loadtest
DEV_EXTRAS := compile,loadtest,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check bench lock clean

demo: $(VENV)/.ready-demo  ## compile the demo family, serve it, send load through a replayed grid day, show the joules
	@$(BIN)/python -m loadtest.demo

test: $(VENV)/.ready-dev check  ## everything that must be green
	$(BIN)/python -m pytest

check: $(VENV)/.ready-dev  ## style, types and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready-demo  ## what the server adds to raw ONNX Runtime, in one interleaved run
	@$(BIN)/python -m loadtest.bench $(BENCH)

lock: $(VENV)/.ready-dev  ## write the versions that are installed now
	@( sed -n '/^#/p' requirements.lock; \
	   $(PIP) freeze --exclude-editable | grep -v ' @ ' | sed 's/+cpu$$//' ) > requirements.lock.new
	@mv requirements.lock.new requirements.lock

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-demo: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) install --quiet --constraint requirements.lock --editable '.[$(DEMO_EXTRAS)]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) install --quiet --constraint requirements.lock --editable '.[$(DEV_EXTRAS)]'
	@touch $@ $(VENV)/.ready-demo

clean:  ## forget what was built (not the environment)
	rm -rf var .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
