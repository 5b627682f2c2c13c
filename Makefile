# Two commands do everything on a machine with Python 3.11: `make serve` and `make test`.

PYTHON ?= python3.11
VENV ?= .venv
# Options for the step that installs torch, for machines whose pip would otherwise take an accelerator build:
#   make serve TORCH_PIP_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_PIP_FLAGS ?=
# Wheels that had to be built (vLLM's empty build) are kept here and reused; losing them costs a minute.
WHEELS ?= $(HOME)/.cache/qwen36-neuron/wheels
MODEL ?= assets/demo-checkpoint
# What clients call the model.
NAME ?= $(patsubst %-checkpoint,%,$(notdir $(abspath $(MODEL))))
PORT ?= 8000
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKED := src nki_kernels vllm_integration scripts test

.PHONY: install serve test lint format typecheck bench clean
.DELETE_ON_ERROR:

install: $(READY)

$(READY): scripts/install.sh pyproject.toml requirements/constraints.txt
	PYTHON="$(PYTHON)" VENV="$(VENV)" WHEELS="$(WHEELS)" TORCH_PIP_FLAGS="$(TORCH_PIP_FLAGS)" scripts/install.sh
	touch $@

checkpoints/demo: $(READY)
	$(BIN)/qwen36 make-checkpoint $@ --preset demo

serve: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" scripts/start_vllm_server.sh --device cpu --model $(MODEL) \
	    --served-model-name $(NAME) --max-model-len 16384 --port $(PORT) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	PYTHONPATH=src $(BIN)/lint-imports --no-logo

typecheck: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

bench: $(READY) checkpoints/demo
	$(BIN)/qwen36 bench serving --model checkpoints/demo $(ARGS)

clean:
	rm -rf $(VENV) checkpoints build *.egg-info .pytest_cache .mypy_cache .ruff_cache
