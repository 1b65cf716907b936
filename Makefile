# Everything a person needs: `make chat` and `make test` set themselves up.
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: chat test gpu-test lint format bench clean

chat: $(STAMP)            ## set up and open the app
	$(VENV)/bin/lite-llama-tui

test: $(DEV_STAMP) lint   ## set up and run lint, types and tests
	$(PY) -m pytest -n 2 -m "not gpu" $(PYTEST_ARGS)

gpu-test:                 ## kernel and engine tests that need a GPU
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m pytest -m gpu $(PYTEST_ARGS)

lint: $(DEV_STAMP)        ## ruff and pyright
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(DEV_STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMP)           ## measure speed on this machine
	$(VENV)/bin/lite-llama-tui bench

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lite-llama-tui needs Python 3.11 or newer; run: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install -q -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(STAMP)

clean:
	rm -rf $(VENV) .cache build *.egg-info
