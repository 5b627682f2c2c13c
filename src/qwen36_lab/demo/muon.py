"""Muon for stacks of matrices: what `torch.optim.Muon` does to one, done to all experts of a layer at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic iteration, as in torch.optim.Muon and https://kellerjordan.github.io/posts/muon."""

STEPS, EPS, MOMENTUM = 5, 1e-7, 0.95


class StackedMuon(torch.optim.Optimizer):
    """Nesterov momentum made orthogonal, matrix by matrix; the rate matches the size of AdamW's updates.

    Args:
        joined: of [stack, 2 m, n], each two matrices [m, n] one below the other: gates and ups.
        plain: of [stack, m, n].
        lr: as of AdamW.
        weight_decay: decoupled.
    """

    def __init__(self, joined: Iterable[Tensor], plain: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        groups = [{"params": list(joined), "parts": 2}, {"params": list(plain), "parts": 1}]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters that have gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                update = parameter.grad.lerp(momentum, MOMENTUM).unflatten(1, (group["parts"], -1))
                rate = group["lr"] * 0.2 * max(update.shape[-2:]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonal(update).flatten(1, 2), alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearly orthogonal matrices nearest to [..., m, n], in fp32; computed in bfloat16."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)
