"""A mixture of experts on a CPU with compiled operations: all of its weights in panels, in the numbers they came in."""

from __future__ import annotations

import torch
from torch import nn

from ..checkpoint.formats import Inputs, QuantisedWeight
from ..model.moe import Mixture
from ..model.norm import RMSNorm
from ..ops.moe import numba as compiled
from ..ops.moe.numba import Stack
from ..ops.numba.panels import Packed
from ..ops.numba.projections import Matrix

Stored = torch.Tensor | QuantisedWeight
PARTS = {
    "router.weight",
    "shared_gate.weight",
    "experts.gate_up_proj",
    "experts.down_proj",
    "shared.gate_up_proj.weight",
    "shared.down_proj.weight",
}
"""The weights of one, by their names in it."""


class HeldMixture(nn.Module):
    """`model.moe.Mixture` in fp32; what a token gets is the same to the bit whatever is run beside it."""

    def __init__(self, mixture: Mixture, stored: dict[str, Stored]) -> None:
        """Take in the weights of a block.

        Args:
            stored: by PARTS. A quantised weight of all experts is their matrices one below the other.
        """
        super().__init__()
        count = mixture.router.weight.shape[0]
        gates = [stored[name] for name in ("router.weight", "shared_gate.weight")]
        assert all(isinstance(gate, torch.Tensor) for gate in gates)
        self.held = compiled.Mixture(
            scores=Packed.of(torch.cat([gate.float() for gate in gates if isinstance(gate, torch.Tensor)])),
            gate_up=_stack(stored["experts.gate_up_proj"], count, 2),
            down=_stack(stored["experts.down_proj"], count, 1),
            shared_gate_up=_stack(stored["shared.gate_up_proj.weight"], 1, 2),
            shared_down=_stack(stored["shared.down_proj.weight"], 1, 1),
            top_k=mixture.top_k,
            renormalise=mixture.renormalise,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] in and out."""
        out = torch.zeros(x.shape)
        self.held.add_to(_rows(x), _rows(out))
        return out

    def add_to(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """x + the block of its norm, [batch, tokens, hidden]."""
        out = x.clone(memory_format=torch.contiguous_format)
        self.held.add_to(_rows(norm(x)), _rows(out))
        return out


def _rows(x: torch.Tensor) -> Matrix:
    return Matrix.of(x.contiguous().view(-1, x.shape[-1]))


def _stack(weight: Stored, experts: int, parts: int) -> Stack:
    if isinstance(weight, torch.Tensor):
        return Stack.of(weight.view(experts, -1, weight.shape[-1]), parts)
    rows, rounds = weight.by_rows(), weight.inputs is Inputs.INT8_TOKEN
    codes, scales = (each.reshape(experts, -1, each.shape[1]) for each in (rows.codes, rows.scales))
    held = Stack.of_codes(codes, scales, rows.block[1], parts, rounds)
    if held is not None:
        return held
    whole = Stack.of(weight.dequantise().view(experts, -1, codes.shape[-1]), parts)
    return whole._replace(packed=whole.packed._replace(rounds=rounds))
