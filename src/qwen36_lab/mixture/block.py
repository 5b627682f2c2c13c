"""A mixture's feed-forward block, router and shared expert included: ours and transformers' on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeSparseMoeBlock

from qwen36_neuron.ops.moe.numba import Mixture, Stack
from qwen36_neuron.ops.numba.panels import Packed
from qwen36_neuron.ops.numba.projections import Matrix
from qwen36_neuron.ops.numba.scalar import use_threads

from .turns import THEIR_FORMS, in_turns


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a block. The shared expert is as large as a routed one, as published."""

    hidden: int
    inner: int
    experts: int = 64
    top_k: int = 8


SIZES = {"small": Sizes(256, 128), "published": Sizes(2048, 512)}
"""`published`: those of Qwen3.6-35B-A3B, but for the number of experts, 256 there."""


class Blocks:
    """The same weights on both sides: random ones, bfloat16 numbers held in fp32, as a checkpoint's are."""

    def __init__(self, sizes: Sizes, threads: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        use_threads(threads)
        self.sizes = sizes
        self.config = Qwen3_5MoeTextConfig(
            hidden_size=sizes.hidden,
            moe_intermediate_size=sizes.inner,
            shared_expert_intermediate_size=sizes.inner,
            num_experts=sizes.experts,
            num_experts_per_tok=sizes.top_k,
        )
        self.theirs = Qwen3_5MoeSparseMoeBlock(self.config).eval().requires_grad_(False)
        for parameter in self.theirs.parameters():
            parameter.copy_((torch.randn_like(parameter) / parameter.shape[-1] ** 0.5).bfloat16())
        experts, shared = self.theirs.experts, self.theirs.shared_expert
        self.ours = Mixture(
            Packed.of(torch.cat((self.theirs.gate.weight, self.theirs.shared_expert_gate.weight))),
            Stack.of(experts.gate_up_proj, 2),
            Stack.of(experts.down_proj),
            Stack.of(torch.cat((shared.gate_proj.weight, shared.up_proj.weight))[None], 2),
            Stack.of(shared.down_proj.weight[None]),
            sizes.top_k,
            True,
        )

    def run_ours(self, x: torch.Tensor) -> torch.Tensor:
        """Of fp32 x [tokens, hidden]."""
        out = torch.zeros_like(x)
        self.ours.add_to(Matrix.of(x), Matrix.of(out))
        return out

    def run_theirs(self, x: torch.Tensor, form: str) -> torch.Tensor:
        """The same in one of THEIR_FORMS."""
        self.config._experts_implementation = form
        with torch.inference_mode():
            found: torch.Tensor = self.theirs(x[None])[0]
        return found

    def compare(self, tokens: int, rounds: int) -> dict[str, float]:
        """`in_turns` of so many tokens, and the largest difference between the sides' results."""
        x = torch.randn(tokens, self.sizes.hidden, generator=torch.Generator().manual_seed(tokens))
        ours, theirs = partial(self.run_ours, x), {form: partial(self.run_theirs, x, form) for form in THEIR_FORMS}
        found = ours()  # warm, and compared
        error = max(float((found - other()).abs().max()) for other in theirs.values())
        return {"tokens": tokens, **in_turns(ours, theirs, rounds), "largest_difference": error}
