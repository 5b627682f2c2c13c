"""`qwen36 generate`: one answer, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoTokenizer

from qwen36_neuron.checkpoint.locate import locate
from qwen36_neuron.config import BLOCK_SIZE, ModelConfig
from qwen36_neuron.devices import CpuKernels
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import RuntimeConfig, open_runtime
from qwen36_neuron.runtime.generate import Generation
from qwen36_neuron.runtime.generate import generate as continued
from qwen36_neuron.runtime.threads import ThreadGovernor, usable_cores

from .compare import KVNumber
from .overrides import long_allowed

DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo-checkpoint"
"""The shipped checkpoint, where the command runs from the repository."""


def generate(
    prompt: Annotated[str, typer.Option(help="What the user says; with --raw, the text to continue.")],
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or Hugging Face id. [default: the demo checkpoint]")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Probability mass that is sampled from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    thinking: Annotated[bool, typer.Option(help="Let the model think before it answers.")] = True,
    raw: Annotated[bool, typer.Option(help="No chat template.")] = False,
    max_model_len: Annotated[int, typer.Option(help="Tokens of prompt and answer together at most.")] = 4096,
    kernels: Annotated[
        CpuKernels | None,
        typer.Option(
            help="Fused operations, plain torch, or the NKI kernels in their interpreter: slow, for proof. "
            "[default: fused where Numba is installed, else torch]"
        ),
    ] = None,
    kv_cache_dtype: Annotated[
        KVNumber, typer.Option(help="Of keys and values: fp8 needs scales; auto is what the checkpoint declares.")
    ] = KVNumber.AUTO,
    kv_scales: Annotated[
        Path | None, typer.Option(help="Scales of FP8 keys and values. [default: the checkpoint's]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that compute at most. [default: one a usable core]")
    ] = None,
    share_cores: Annotated[
        bool, typer.Option(help="Compute on as many threads as other processes leave cores free.")
    ] = True,
) -> None:
    """Generate one answer offline, without a server."""
    folder = _demo_checkpoint() if model is None else locate(model)
    config = ModelConfig.from_pretrained(folder)
    config.check_length(max_model_len, long_allowed())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if raw:
        ids = tokenizer(prompt)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=False,
        )
    how = Generation(max_tokens, config.eos_token_ids, temperature, top_p, seed)
    blocks = -(-max_model_len // BLOCK_SIZE) + 1
    most = threads or min(torch.get_num_threads(), usable_cores())
    torch.set_num_threads(most)
    runtime = open_runtime(
        RuntimeConfig(
            folder,
            max_model_len=max_model_len,
            num_blocks=blocks,
            num_lanes=1,
            kernels=kernels,
            kv_cache_dtype=kv_cache_dtype.value,
            kv_scales=kv_scales,
        )
    )
    governor = ThreadGovernor(most) if share_cores else None
    shown, tokens = "", []
    try:
        for token in continued(runtime, ids, how, governor.before_step if governor else None):
            tokens.append(token)
            text = tokenizer.decode(tokens)
            if not text.endswith("\ufffd"):  # the first bytes of a character whose rest is in the next token
                print(text[len(shown) :], end="", flush=True)
                shown = text
    finally:
        if governor is not None:
            governor.release()
    print(tokenizer.decode(tokens)[len(shown) :])


def _demo_checkpoint() -> Path:
    """The checkpoint in the repository. Raises ConfigError where this is installed without it."""
    if not (DEMO / "config.json").is_file():
        raise ConfigError("model", None, "no checkpoint comes with this installation", "Give --model a folder or an id")
    return DEMO
