"""The gated norm on a device, by an NKI kernel."""

from __future__ import annotations

import torch

from nki_kernels.gated_rms_norm import gated_rms_norm

from ..launch import Launch


def gated_rms_norm_nki(
    launch: Launch, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Tensors as in `Kernels.gated_norm`."""
    normed: torch.Tensor = launch(gated_rms_norm, x.flatten(0, 1), gate.flatten(0, 1), weight.view(1, -1), eps=eps)
    return normed.view(gate.shape)
