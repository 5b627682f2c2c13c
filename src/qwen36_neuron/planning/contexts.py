"""What one sequence of each length takes beside the weights, derived from the model's sizes. Everything is modelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..checkpoint.weight_format import WeightFormat
from .plan import Plan

LENGTHS = (32768, 131072, 262144, 1048576)
NUMBERS = {"bfloat16": 2, "fp8": 1}
"""What keys and values may be held in, and bytes of a number."""


@dataclass(frozen=True, slots=True)
class Context:
    """One sequence.

    Attributes:
        tokens: its length.
        stretched: longer than the model was trained for, so that YaRN or consent is needed.
        kv_bytes: its keys and values, each head once, by numbers.
        held_bytes: the same as the ranks hold them: a head that several ranks read is on each of them.
        used_bytes: of all ranks by (weights, numbers), with lanes, slots and reserve.
        fits: whether that is no more than the machine has.
    """

    tokens: int
    stretched: bool
    kv_bytes: dict[str, int]
    held_bytes: dict[str, int]
    used_bytes: dict[tuple[str, str], int]
    fits: dict[tuple[str, str], bool]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        pairs = [
            {"weights": weights, "kv": kv, "used_bytes": used, "fits": self.fits[weights, kv]}
            for (weights, kv), used in self.used_bytes.items()
        ]
        kv = {"kv_bytes": self.kv_bytes, "held_bytes": self.held_bytes}
        return {"tokens": self.tokens, "stretched": self.stretched, **kv, "plans": pairs}


def contexts(plan: Plan, lengths: tuple[int, ...] = LENGTHS) -> list[Context]:
    """One sequence of each length on the machine of a plan, with as many slots and the same draft layer."""
    config, replicas = plan.config, plan.config.rank(plan.request.tp).kv_replicas
    found = []
    for tokens in lengths:
        once = {name: tokens * config.kv_bytes_per_token(size) for name, size in NUMBERS.items()}
        plans = {
            (str(weights), name): replace(
                plan,
                request=replace(
                    plan.request,
                    max_model_len=tokens,
                    max_num_seqs=1,
                    num_blocks=None,
                    weights=weights,
                    kv_dtype=torch.bfloat16,
                    fp8_kv=name == "fp8",
                    allow_long=True,
                ),
            )
            for weights in WeightFormat
            for name in NUMBERS
        }
        found.append(
            Context(
                tokens,
                tokens > config.max_position_embeddings,
                once,
                {name: size * replicas for name, size in once.items()},
                {pair: each.used_bytes * plan.request.tp for pair, each in plans.items()},
                {pair: each.fits for pair, each in plans.items()},
            )
        )
    return found
