# Two commands do everything: `make demo` and `make test`. Both make .venv themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STACKS ?= llamacpp vllm transformers sglang
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-stacks lint format bench-memory bench-client bench-tools bench-report bench-search bench-simulated \
        bench-soak pictures build clean

demo: $(VENV)/.demo            ## the main job on this machine: real llama.cpp, three weight formats, a report
	$(BIN)/loadproof demo $(ARGS)

test: $(VENV)/.dev             ## all tests; what the machine lacks is skipped with its reason
	-$(BIN)/loadproof demo --prepare
	$(BIN)/python -m pytest $(ARGS)

test-stacks: $(VENV)/.dev      ## real servers on this CPU, installed first: gigabytes and minutes; STACKS="vllm llamacpp"
	$(BIN)/python tests/stacks/real/install.py $(STACKS)
	LOADPROOF_REAL_STACKS="$(STACKS)" $(BIN)/python -m pytest tests/stacks/real $(ARGS)

lint: $(VENV)/.dev             ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-memory: $(VENV)/.dev     ## the predicted memory bill against public measurements
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-client: $(VENV)/.dev     ## how true and how light the client is, against a server that knows what it sent
	$(BIN)/python -m benchmarks.client $(ARGS)

bench-tools: $(VENV)/.dev      ## other load tools, where installed, beside loadproof load: what they say and what was sent
	$(BIN)/python -m benchmarks.others $(ARGS)

bench-report: $(VENV)/.dev     ## time and memory of the report of a large run: 40 cells, 100,000 requests
	PYTHONPATH=tests $(BIN)/python -m benchmarks.report $(ARGS)

bench-search: $(VENV)/.dev     ## the search on simulated cards whose true break is known
	$(BIN)/python -m benchmarks.search $(ARGS)

bench-soak: $(VENV)/.dev       ## the trends of a soak on simulated cards, stable ones and ones that get slower
	$(BIN)/python -m benchmarks.soak $(ARGS)

bench-simulated: $(VENV)/.dev  ## the simulated card against public measurements
	$(BIN)/python -m benchmarks.simulated $(ARGS)

pictures: $(VENV)/.dev         ## the pictures in docs/, taken of built reports in Chromium
	PYTHONPATH=tests $(BIN)/python -m benchmarks.pictures $(ARGS)

build: $(VENV)/.dev            ## wheel and sdist into dist/
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "loadproof needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PIP) install -U "pip>=25.1"

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(PIP) install -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install --group dev
	@touch $@
