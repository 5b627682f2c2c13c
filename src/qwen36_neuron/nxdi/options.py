"""What an artifact is compiled for: one typed object, validated once, kept inside NxDI's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..cache import CacheSpec
from ..cache.plan import WeightFormat
from ..checkpoint.fp8 import Scales
from ..config import BLOCK_SIZE, ModelConfig
from ..errors import ConfigError
from ..ops.kernels import NeuronKernels, check_choice, check_tokens
from .buckets import Buckets, PrefillBucket

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class NeuronOptions:
    """Sizes that the graphs have for good.

    Attributes:
        max_model_len: tokens that a sequence may hold.
        num_lanes: sequences that may run at once, and the rows of a decode graph.
        num_blocks: KV blocks of BLOCK_SIZE tokens, block 0 being scratch.
        num_slots: state checkpoints, 0 for none.
        buckets: the shapes compiled.
        tp_degree: tensor-parallel ranks, one a logical core.
        dtype: of weights, activations, KV and convolution windows; recurrent states are fp32.
        logical_cores: physical cores that one logical core joins (LNC).
        prefill_commits: checkpoints that one context-encoding call may take. A chunk with more is cut.
        weights: number format of the matrices, a value of `WeightFormat`. The checkpoint must hold them in it.
        scales: of FP8 matrices, a value of `Scales`.
        kernels: "torch" for graphs of plain operations, "nki" for graphs that call the NKI kernels.
        decode_commits: checkpoints that one decode call may take; more rows than this at a block boundary go in a call
            of their own. Every one is written by every call, used or not: 38.5 MB a rank for the 27B at 4 ranks.
    """

    max_model_len: int
    num_lanes: int
    num_blocks: int
    buckets: Buckets
    num_slots: int = 0
    tp_degree: int = 1
    dtype: str = "bfloat16"
    logical_cores: int = 2
    prefill_commits: int = 4
    decode_commits: int = 1
    weights: str = WeightFormat.BF16.value
    scales: str = Scales.CHANNEL.value
    kernels: NeuronKernels = "torch"

    def __post_init__(self) -> None:
        for choice, allowed in (("dtype", list(DTYPES)), ("weights", list(WeightFormat)), ("scales", list(Scales))):
            if getattr(self, choice) not in allowed:
                remedy = f"Use one of: {', '.join(allowed)}"
                raise ConfigError(choice, getattr(self, choice), "is not implemented", remedy)
        for field, minimum in (
            ("max_model_len", 1),
            ("num_lanes", 1),
            ("num_blocks", 2),
            ("num_slots", 0),
            ("tp_degree", 1),
            ("prefill_commits", 1),
            ("decode_commits", 1),
        ):
            value = getattr(self, field)
            if value < minimum:
                raise ConfigError(field, value, f"must be at least {minimum}", "Raise it")
        if self.logical_cores not in (1, 2):
            raise ConfigError("logical_cores", self.logical_cores, "a Trn2 joins 1 or 2 cores", "Use 2")
        check_choice(self.kernels, "neuron")
        check_tokens(self.kernels, [pair.active for pair in self.buckets.prefill])
        needed = -(-self.max_model_len // BLOCK_SIZE) + 1
        if self.num_blocks < needed:
            raise ConfigError(
                "num_blocks",
                self.num_blocks,
                f"cannot hold one sequence of max_model_len={self.max_model_len}",
                f"Use at least {needed}",
            )
        self.buckets.check_covers(self.max_model_len)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def mlp_kernel(self) -> bool:
        """Whether MLPs are the NKI kernel for FP8 weights. It takes bfloat16 and one scale an output channel."""
        fp8 = self.weights != WeightFormat.BF16 and self.scales == Scales.CHANNEL
        return self.kernels == "nki" and fp8 and self.dtype == "bfloat16"

    @property
    def quantised_layers(self) -> bool:
        """Whether any layer is one of NxD's quantised ones: an MLP that is a kernel is none."""
        return self.weights == WeightFormat.FP8 or (self.weights != WeightFormat.BF16 and not self.mlp_kernel)

    @property
    def positions(self) -> int:
        """`max_model_len` rounded up to whole blocks."""
        return -(-self.max_model_len // BLOCK_SIZE) * BLOCK_SIZE

    def cache_spec(self, model: ModelConfig) -> CacheSpec:
        """The memory of one rank."""
        return CacheSpec(model, self.num_blocks, self.num_lanes, self.num_slots, self.torch_dtype, self.tp_degree)

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers."""
        pairs = [[pair.active, pair.prefix] for pair in self.buckets.prefill]
        return asdict(self) | {"buckets": {"prefill": pairs, "decode": list(self.buckets.decode)}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> NeuronOptions:
        """The inverse of `to_json`. Raises ConfigError on a value that cannot be used."""
        pairs = tuple(PrefillBucket(*pair) for pair in raw["buckets"]["prefill"])
        return cls(**{**raw, "buckets": Buckets(pairs, tuple(raw["buckets"]["decode"]))})
