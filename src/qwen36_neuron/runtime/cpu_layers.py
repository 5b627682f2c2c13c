"""Linear layers for CPU, their weights laid out for oneDNN.

oneDNN's own weight layout streams a weight about twice as fast for one row, and four times for eight, as a plain
matrix product does, and decode is bound by exactly that; prefill gains a quarter. `scripts/bench_serving.py` shows it.
"""

from __future__ import annotations

import torch
from torch import nn

from ..model.layers import Linear, SingleRank


class PackedLinear(Linear):
    """y = x W^T with W in oneDNN's layout once `pack` was called."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Move the loaded weight into oneDNN's layout; the plain copy is given up."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.data)
        del self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed is None:
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


class PackedRank(SingleRank):
    """The unsplit model with packed projections."""

    def column(self, in_features: int, out_features: int) -> nn.Module:
        return PackedLinear(in_features, out_features)

    def row(self, in_features: int, out_features: int) -> nn.Module:
        return PackedLinear(in_features, out_features)

    def head(self, hidden_size: int, vocab_size: int) -> nn.Module:
        return PackedLinear(hidden_size, vocab_size)


def pack_layers(model: nn.Module) -> None:
    """Pack every packable layer of a loaded model, if this build of torch has oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.pack()
