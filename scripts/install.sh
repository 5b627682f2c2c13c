#!/usr/bin/env bash
# Makes the environment that `make` uses: torch first, then vLLM's build without any accelerator, then this project.
#
#   PYTHON            interpreter to build it from (3.11)
#   VENV              where to put it
#   WHEELS            where built wheels are kept between environments
#   TORCH_PIP_FLAGS   pip options that give a CPU build of torch, where pip would not by itself
set -euo pipefail
cd "$(dirname "$0")/.."

: "${PYTHON:=python3.11}" "${VENV:=.venv}" "${WHEELS:=$HOME/.cache/qwen36-neuron/wheels}" "${TORCH_PIP_FLAGS:=}"
TORCH=2.13.0
VLLM=0.29.0

command -v "$PYTHON" >/dev/null || PYTHON=python3
"$PYTHON" -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else 1)' || {
    echo "install: needs Python 3.11 or 3.12, $PYTHON is $("$PYTHON" -V 2>&1). Set PYTHON=/path/to/python3.11." >&2
    exit 1
}

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
constraints=requirements/constraints.txt

say() { printf '==> %s\n' "$*"; }

say "environment in $VENV"
"$PYTHON" -m venv "$VENV"
pip="$VENV/bin/pip"
"$pip" install -q -U pip

# torch comes first and alone: once it is there, nothing that follows asks for another build of it.
say "torch $TORCH"
# shellcheck disable=SC2086  # several options
"$pip" install -q $TORCH_PIP_FLAGS "torch==$TORCH"
if [ "$("$VENV/bin/python" -c 'import torch; print(torch.version.cuda or "")')" != "" ]; then
    echo "install: pip took a CUDA build of torch. Remove $VENV and give pip the options for a CPU build, e.g." >&2
    echo "  make install TORCH_PIP_FLAGS=\"--index-url https://download.pytorch.org/whl/cpu\"" >&2
    exit 1
fi

say "build tools"
"$pip" install -q -c "$constraints" setuptools setuptools-scm setuptools-rust wheel jinja2 packaging ninja cmake

# vLLM's own wheel brings CUDA. Built with target `empty` it is pure Python; its Rust parts are optional and skipped.
mkdir -p "$WHEELS"
if ! compgen -G "$WHEELS/vllm-$VLLM-*.whl" >/dev/null; then
    say "building vLLM $VLLM without an accelerator"
    CARGO_NET_OFFLINE=true VLLM_VERSION_OVERRIDE="$VLLM" VLLM_TARGET_DEVICE=empty \
        "$pip" wheel -q --no-deps --no-build-isolation --no-binary vllm -w "$WHEELS" "vllm==$VLLM"
fi

say "vLLM, this project and its tools"
"$pip" install -q -c "$constraints" "$WHEELS/vllm-$VLLM-"*.whl
"$pip" install -q -c "$constraints" --no-build-isolation -e '.[serve,cpu,dev]'
# xgrammar asks for triton, a gigabyte that only GPUs use; it runs without.
"$pip" uninstall -q -y triton >/dev/null 2>&1 || true

say "done: $(du -sh "$VENV" | cut -f1) in $VENV"
