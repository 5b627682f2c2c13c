"""The network's layers as NxD's parallel layers."""

from __future__ import annotations

import torch
from neuronx_distributed.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear
from neuronx_distributed.parallel_layers.mappings import reduce_from_tensor_model_parallel_region
from torch import nn

from .config import Qwen36NeuronConfig
from .experts import StaticExperts


class NxdLayers:
    """The factory of one rank of a device.

    NxD exchanges layers for quantised ones by their exact type, so its own classes are used, not subclasses.
    """

    def __init__(self, config: Qwen36NeuronConfig) -> None:
        self.tp: int = config.tp_degree
        self.dtype: torch.dtype = config.torch_dtype
        self.reduce_dtype: torch.dtype = config.rpl_reduce_dtype or config.torch_dtype

    def column(self, in_features: int, out_features: int) -> nn.Module:
        return ColumnParallelLinear(in_features, out_features, bias=False, gather_output=False, dtype=self.dtype)

    def row(self, in_features: int, out_features: int, summed: bool = True) -> nn.Module:
        return RowParallelLinear(
            in_features,
            out_features,
            bias=False,
            input_is_parallel=True,
            reduce_output=summed,
            dtype=self.dtype,
            reduce_dtype=self.reduce_dtype,
        )

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        """In the type that NxD's row-parallel layers sum in."""
        summed: torch.Tensor = reduce_from_tensor_model_parallel_region(partial.to(self.reduce_dtype))
        return summed

    def joined(self, in_features: int, out_features: int) -> nn.Module:
        return ColumnParallelLinear(in_features, out_features, bias=False, gather_output=True, dtype=self.dtype)

    def experts(self, count: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """Plain operations; a kernel of experts takes their place here, as a module that is called alike."""
        return StaticExperts(count, hidden_size, intermediate_size // self.tp)

    def embedding(self, vocab_size: int, hidden_size: int) -> nn.Module:
        """Split over the vocabulary, as the head is, so that tied weights are one tensor.

        The rank is a weight of the layer: one graph serves all ranks, so a rank known while tracing would be rank 0.
        """
        return ParallelEmbedding(vocab_size, hidden_size, dtype=self.dtype, use_spmd_rank=True)

    def head(self, hidden_size: int, vocab_size: int) -> nn.Module:
        """Gives a rank's part of the vocabulary, so that candidates are looked for in parts; the model gathers them."""
        return ColumnParallelLinear(hidden_size, vocab_size, bias=False, gather_output=False, dtype=self.dtype)
