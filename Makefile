# Everything a person needs: `make chat` and `make test` set themselves up.
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# The root is the package: a link under its name serves type checkers and machines where nothing is installed.
LINK := .cache/import/lite_llama

.PHONY: chat test gpu-test gpu-sanitize lint format bench clean

chat: $(STAMP)            ## set up and open the app
	$(VENV)/bin/lite-llama-tui

# Three workers for two processors: half of a screen's test is waiting. A file at a time, whose tests share models, in
# the order of their names: the one test that takes longest, of the kernels, then runs beside others.
test: $(DEV_STAMP) lint   ## set up and run lint, types and tests
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not gpu" $(PYTEST_ARGS)

# Where nothing can be installed, with the Python that has PyTorch.
GPU_PYTEST = $(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m pytest -m gpu
gpu-test gpu-sanitize: export PYTHONPATH := .cache/import
gpu-test: $(LINK)         ## kernel and engine tests that need a GPU
	$(GPU_PYTEST) tests/kernels tests/engine $(PYTEST_ARGS)

# Our kernels alone, whose names begin so: what PyTorch launches for the expected results takes long to check. For the
# memory, without PyTorch's own pools, so that a write past a tensor is seen. For races, without the linear layers of 65
# tokens, which are cuBLAS's: it has hazards of its own and cannot run beside kernels that are watched; and without the
# tests of 200,000 draws, ten minutes each, of a sampler that others run.
SANITIZE := compute-sanitizer --error-exitcode 9 --target-processes application-only --kernel-name 'regex=^_[a-z]'
SANITIZE_TESTS = $(GPU_PYTEST) -q $(or $(PYTEST_ARGS),tests/kernels)
gpu-sanitize: $(LINK)     ## kernel tests under NVIDIA's memory and race checkers, hours for all of them
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZE) --tool memcheck $(SANITIZE_TESTS) -k "not graph"
	$(SANITIZE) --tool racecheck $(SANITIZE_TESTS) -k "not graph and not 65-gpu and not follow_the_distribution"

lint: $(DEV_STAMP) $(LINK) ## ruff and pyright
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

$(LINK):
	@mkdir -p $(@D)
	@ln -sfn ../.. $@

clean:
	rm -rf $(VENV) .cache build *.egg-info
