"""A whole mixture model: our CPU runtime and transformers', fp32, prompts and decode steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3_5MoeForConditionalGeneration

from qwen36_neuron.checkpoint.maker import CheckpointSpec
from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.runtime import Output, Row, RuntimeConfig, Step, open_runtime

from .turns import THEIR_FORMS, in_turns

SPEC = CheckpointSpec(
    num_layers=8,
    hidden_size=256,
    intermediate_size=128,
    num_query_heads=4,
    num_kv_heads=2,
    num_key_heads=2,
    num_value_heads=6,
    num_experts=64,
    num_experts_per_tok=8,
    shared_intermediate_size=128,
)
"""The demo's spine with a mixture in every layer."""

CONTEXT = 64
"""Tokens before the first step that is timed."""
MOST_STEPS = 512


class Models:
    """Both sides of a checkpoint.

    Args:
        longest: tokens of the longest prompt.
    """

    def __init__(self, folder: Path, threads: int, longest: int, batch: int = 8) -> None:
        torch.set_num_threads(threads)
        length = max(longest, CONTEXT + MOST_STEPS)
        self._blocks = -(-length // BLOCK_SIZE)
        config = RuntimeConfig(
            folder,
            kernels="fused",
            num_lanes=batch,
            num_blocks=1 + batch * self._blocks,
            max_model_len=self._blocks * BLOCK_SIZE,
            max_step_tokens=length,
        )
        self.ours = open_runtime(config)
        self.ours.warm_up()
        self.theirs = Qwen3_5MoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.vocabulary = self.theirs.config.text_config.vocab_size

    def compare_prompt(self, tokens: int, rounds: int) -> dict[str, float]:
        """`in_turns` of a prompt up to its first token."""
        ids = self._random(1, tokens)[0]
        ours, theirs = (
            partial(self._our_prompt, ids),
            {form: partial(self._their_prompt, ids, form) for form in THEIR_FORMS},
        )
        same = all(ours() == other() for other in theirs.values())
        return {"tokens": tokens, **in_turns(ours, theirs, rounds), "same_token": float(same)}

    def compare_steps(self, batch: int, rounds: int) -> dict[str, float]:
        """`in_turns` of a step of so many sequences, each a token further than the last."""
        ids = self._random(batch, CONTEXT)
        ours, theirs = _OurSteps(self, ids), {form: _TheirSteps(self, ids, form) for form in THEIR_FORMS}
        found = in_turns(ours.run, {form: side.run for form, side in theirs.items()}, rounds)
        ours.close()
        same = all(ours.tokens == side.tokens for side in theirs.values())
        return {"batch": batch, **found, "same_tokens": float(same)}

    def blocks_of(self, lane: int) -> range:
        """Blocks of the cache that are a lane's."""
        return range(1 + (lane - 1) * self._blocks, 1 + lane * self._blocks)

    def _random(self, batch: int, tokens: int) -> torch.Tensor:
        return torch.randint(0, self.vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(tokens))

    def _our_prompt(self, ids: torch.Tensor) -> int:
        row = Row("prompt", 1, ids.tolist(), 0, self.blocks_of(1), output=Output.TOKEN)
        (result,) = self.ours.run(Step((row,), (1,))).rows
        self.ours.run(Step((), released_lanes=(1,)))
        return result.tokens[0]

    def _their_prompt(self, ids: torch.Tensor, form: str) -> int:
        self.theirs.set_experts_implementation(form)
        with torch.inference_mode():
            return int(self.theirs(ids[None], logits_to_keep=1).logits[0, -1].argmax())


class _OurSteps:
    """Greedy steps of our runtime after a prompt each."""

    def __init__(self, models: Models, ids: torch.Tensor) -> None:
        self._models, self._at = models, CONTEXT
        self.tokens: list[list[int]] = []
        self._last: list[int] = []
        for lane, prompt in enumerate(ids.tolist(), 1):
            row = Row(str(lane), lane, prompt, 0, models.blocks_of(lane), output=Output.TOKEN)
            (result,) = models.ours.run(Step((row,), (lane,))).rows
            self._last.append(result.tokens[0])

    def run(self) -> None:
        rows = [
            Row(str(lane), lane, [token], self._at, self._models.blocks_of(lane), output=Output.TOKEN)
            for lane, token in enumerate(self._last, 1)
        ]
        self._last = [result.tokens[0] for result in self._models.ours.run(Step(tuple(rows))).rows]
        self.tokens.append(self._last)
        self._at += 1

    def close(self) -> None:
        lanes = tuple(range(1, len(self._last) + 1))
        self._models.ours.run(Step((), released_lanes=lanes))


class _TheirSteps:
    """The same of transformers' model with its cache."""

    def __init__(self, models: Models, ids: torch.Tensor, form: str) -> None:
        self._models, self._form = models, form
        self.tokens: list[list[int]] = []
        self._cache: Any = None
        self._last = self._forward(ids)

    def run(self) -> None:
        self._last = self._forward(self._last)
        self.tokens.append(self._last[:, 0].tolist())

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        model = self._models.theirs
        model.set_experts_implementation(self._form)
        with torch.inference_mode():
            found = model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = found.past_key_values
        return found.logits[:, -1].argmax(-1, keepdim=True)
