"""RMSNorm layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..ops.norm import gated_rms_norm, rms_norm

Norm = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(x, weight, eps) -> the norm."""

GatedNorm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(x, gate, weight, eps) -> the gated norm."""


class RMSNorm(nn.Module):
    """Zero-centred in the checkpoint: the loader stores 1 + weight here, in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.float32), requires_grad=False)
        self.eps = eps
        self.operation: Norm = rms_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operation(x, self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """Normalises the delta rule's output per head, then gates it with silu(z). Its weight is not zero-centred."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps
        self.operation: GatedNorm = gated_rms_norm

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return self.operation(x, gate, self.weight, self.eps)


def set_norm(network: nn.Module, operation: Norm) -> None:
    """Have every plain norm of a network computed by `operation`."""
    for module in network.modules():
        if isinstance(module, RMSNorm):
            module.operation = operation


def set_gated_norm(network: nn.Module, operation: GatedNorm) -> None:
    """Have every gated norm of a network computed by `operation`."""
    for module in network.modules():
        if isinstance(module, GatedRMSNorm):
            module.operation = operation
