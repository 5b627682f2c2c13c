"""Layers that hold what is stored and nothing else, codes or bfloat16: what few rows read is all that there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..checkpoint.formats import Inputs
from ..checkpoint.load import stored_weights
from ..config import ModelConfig
from ..model import Qwen36Model
from ..model.attention import add_kv_scales
from ..model.layers import Experts
from ..model.moe import Mixture
from ..ops.numba.held import Table, take_rows
from ..ops.numba.panels import Packed
from ..ops.numba.projections import Weight
from ..ops.numba.scalar import array
from .held_mixture import PARTS, HeldMixture, Stored


class HeldLinear(nn.Module):
    """y = x W^T, fp32, with W in panels alone."""

    held: Weight

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()

    def hold(self, weight: Stored) -> None:
        """Take a weight in."""
        self.held = Weight(_packed(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.held.product(x)


class HeldEmbedding(nn.Module):
    """Rows by token id, multiplied out when they are asked for."""

    held: Table

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def hold(self, weight: Stored) -> None:
        """Take a weight in."""
        self.held = _table(weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out = torch.empty(*tokens.shape, self.hidden_size)
        take_rows(self.held, np.ascontiguousarray(array(tokens.flatten())), array(out.flatten(0, -2)))
        return out


class HeldLayers:
    """The unsplit model of such layers."""

    tp = 1

    def column(self, in_features: int, out_features: int) -> nn.Module:
        return HeldLinear(in_features, out_features)

    def row(self, in_features: int, out_features: int, summed: bool = True) -> nn.Module:
        return HeldLinear(in_features, out_features)

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        return partial

    def joined(self, in_features: int, out_features: int) -> nn.Module:
        return HeldLinear(in_features, out_features)

    def experts(self, count: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """What a `HeldMixture` takes the place of when the weights are there."""
        return Experts(count, hidden_size, intermediate_size)

    def embedding(self, vocab_size: int, hidden_size: int) -> nn.Module:
        return HeldEmbedding(vocab_size, hidden_size)

    def head(self, hidden_size: int, vocab_size: int) -> nn.Module:
        return HeldLinear(hidden_size, vocab_size)


def load_held(
    folder: Path, config: ModelConfig, include_mtp: bool, kv_scales: dict[str, torch.Tensor] | None = None
) -> Qwen36Model:
    """The network of a quantised checkpoint, or of a mixture of experts.

    Of its matrices one at a time is in memory as it is stored; of a mixture's experts, those of one layer.

    Args:
        kv_scales: of FP8 keys and values, by runtime name.

    Raises:
        CheckpointError, ConfigError: as `load_weights`.
    """
    with torch.device("meta"):
        model = Qwen36Model(config, HeldLayers(), include_mtp=include_mtp)
        if kv_scales:
            add_kv_scales(model)
    rest = dict(kv_scales or {})
    waiting: dict[str, dict[str, Stored]] = {}
    for name, stored in stored_weights(folder, config, include_mtp):
        block, _, part = name.partition(".mlp.")
        if config.moe is not None and part:
            parts = waiting.setdefault(f"{block}.mlp", {})
            parts[part] = stored
            if len(parts) == len(PARTS):
                _hold_mixture(model, f"{block}.mlp", waiting.pop(f"{block}.mlp"))
            continue
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, HeldLinear | HeldEmbedding):
            layer.hold(stored)
        else:
            assert isinstance(stored, torch.Tensor)
            rest[name] = stored
    model.load_state_dict(rest, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _hold_mixture(model: nn.Module, path: str, stored: dict[str, Stored]) -> None:
    mixture = model.get_submodule(path)
    assert isinstance(mixture, Mixture)
    model.set_submodule(path, HeldMixture(mixture, stored))


def held_bytes(model: nn.Module) -> int:
    """Memory of a network's weights, however they are held."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    layers = [layer for layer in model.modules() if isinstance(layer, HeldLinear | HeldEmbedding)]
    packed = [layer.held.packed if isinstance(layer, HeldLinear) else layer.held for layer in layers]
    mixtures = [layer.held for layer in model.modules() if isinstance(layer, HeldMixture)]
    return sum(tensors.values()) + sum(held.nbytes for held in (*packed, *mixtures))


def _packed(weight: Stored) -> Packed:
    if isinstance(weight, torch.Tensor):
        return Packed.of(weight)
    rows, rounds = weight.by_rows(), weight.inputs is Inputs.INT8_TOKEN
    held = Packed.of_codes(rows.codes, rows.scales, rows.block[1], rounds)
    return Packed.of(weight.dequantise())._replace(rounds=rounds) if held is None else held


def _table(weight: Stored) -> Table:
    if isinstance(weight, torch.Tensor):
        return Table.of(weight)
    held = Table.of_codes(weight.codes, weight.scales, weight.block)
    return Table.of(weight.dequantise()) if held is None else held
