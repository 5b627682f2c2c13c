"""Linear layers for CPU, their weights laid out for the matrix library that this processor runs best.

Decode is bound by streaming the weights, and how fast that goes depends on their layout. Intel's MKL streams a weight
whose inputs are rows at the speed of memory; on other processors its kernels fall back to narrow vectors, and oneDNN's
own packed layout is two to four times faster there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..checkpoint.formats import Inputs, round_inputs
from ..errors import ConfigError
from ..model.layers import Linear, SingleRank
from ..ops.dense import linear, prefers_mkl


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies numbers of this kind here: of 16 bits only with the instructions for it."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class CpuLinear(Linear):
    """y = x W^T with W in the layout that `arrange` gave it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.packed: torch.Tensor | None = None

    def arrange(self) -> None:
        """Move the loaded weight into the better layout; the plain copy is given up."""
        if prefers_mkl() and self.weight.dtype == torch.float32:
            self.weight.data = self.weight.data.t().contiguous().t()
        elif packs(self.weight.dtype):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.data)
            del self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed is None:
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


class PlainLinear(Linear):
    """y = x W^T with W as it was loaded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)


class CpuLayers(SingleRank):
    """The unsplit model with projections of one kind: `CpuLinear` can be arranged, `PlainLinear` stays as it is."""

    def __init__(self, kind: type[Linear] = CpuLinear) -> None:
        self.kind = kind

    def column(self, in_features: int, out_features: int) -> nn.Module:
        return self.kind(in_features, out_features)

    def row(self, in_features: int, out_features: int, summed: bool = True) -> nn.Module:
        return self.kind(in_features, out_features)

    def head(self, hidden_size: int, vocab_size: int) -> nn.Module:
        return self.kind(hidden_size, vocab_size)


def arrange_layers(model: nn.Module) -> None:
    """Arrange every layer of a loaded model that can be."""
    for module in model.modules():
        if isinstance(module, CpuLinear):
            module.arrange()


def round_layer_inputs(model: nn.Module, inputs: Mapping[str, Inputs]) -> None:
    """Have the inputs of layers rounded, as the checkpoint's format asks for.

    Args:
        inputs: what becomes of them, by the runtime name of the layer's weight.
    Raises:
        ConfigError: they are of a mixture's experts.
    """
    for name, kind in inputs.items():
        if ".experts." in name:
            problem = f"has inputs of experts rounded to 8 bits ({name}), which compiled operations alone do"
            raise ConfigError("model", kind.value, problem, "Use kernels=fused with dtype float32")
        assert kind is Inputs.INT8_TOKEN
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(_round)


def _round(_: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (round_inputs(arguments[0]),)
