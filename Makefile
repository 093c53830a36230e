# Everything here runs on a fresh machine that has only Python 3.11+ and make: each target first sets up what it
# needs in .venv. A second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
DEPENDENCIES := pyproject.toml constraints/cpu.txt
EXAMPLE ?= examples/cactus/rgb/000.png
PROMPT ?= a wooden chair
DEMO_OUTPUT ?= outputs/demo
WORKERS ?= 2

# With an NVIDIA GPU: torch's default build and the run-time compiler of our CUDA kernels. Without: the CPU build.
ifneq ($(shell nvidia-smi -L 2>/dev/null),)
CONSTRAINTS :=
CORE_EXTRAS := [cuda,diffusion]
DEV_EXTRAS := [cuda,dev]
else
CONSTRAINTS := -c constraints/cpu.txt
CORE_EXTRAS := [diffusion]
DEV_EXTRAS := [dev]
endif

.PHONY: help demo test test-full lint format bench doctor clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       one picture in, then a sentence, a 3D asset out of each, in $(DEMO_OUTPUT)"
	@echo "make test       lint, types and the tests"
	@echo "make test-full  the same with the full-size networks and long runs"
	@echo "make lint       ruff and mypy only"
	@echo "make format     put the code into the standard format"
	@echo "make bench      speed of the rasterizers on this machine"
	@echo "make doctor     what this machine can do"
	@echo "make clean      remove outputs, caches and $(VENV)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "maquette needs Python 3.11 or newer, '$(PYTHON)' is older: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "== Creating $(VENV) (a few seconds)"
	@$(PYTHON) -m venv $(VENV)

$(CORE): $(DEPENDENCIES) | $(BIN)/python
	@echo "== Installing maquette and PyTorch into $(VENV) (1 to 4 minutes, 1.5 GB; once)"
	@$(PIP) $(CONSTRAINTS) -e '.$(CORE_EXTRAS)'
	@touch $@

$(DEV): $(DEPENDENCIES) | $(BIN)/python
	@echo "== Installing maquette, PyTorch and the development tools into $(VENV) (1 to 5 minutes, 2 GB; once)"
	@$(PIP) $(CONSTRAINTS) -e '.$(DEV_EXTRAS)'
	@touch $(CORE) $@

demo: $(CORE)
	@test -e "$(EXAMPLE)" || { echo "no such example: give a picture, or a folder of views, with make demo EXAMPLE=FILE"; exit 1; }
	@echo '== maquette generate $(EXAMPLE) -o $(DEMO_OUTPUT)/picture'
	@$(BIN)/maquette generate $(EXAMPLE) -o $(DEMO_OUTPUT)/picture
	@echo '== maquette generate --prompt "$(PROMPT)" -o $(DEMO_OUTPUT)/sentence'
	@$(BIN)/maquette generate --prompt "$(PROMPT)" -o $(DEMO_OUTPUT)/sentence

lint: $(DEV)
	@echo "== ruff, mypy (up to a minute)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint
	@echo "== pytest on $(WORKERS) processes (several minutes)"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

test-full: lint
	@echo "== pytest with full-size networks (needs 16 GB of memory, up to an hour)"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --slow

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(CORE)
	@$(BIN)/maquette bench raster

doctor: $(CORE)
	@$(BIN)/maquette doctor

clean:
	rm -rf $(VENV) outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
