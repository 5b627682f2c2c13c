"""What an artifact is compiled for: one typed object, validated once, kept inside NxDI's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..cache import CacheSpec
from ..checkpoint.fp8 import Scales
from ..checkpoint.weight_format import WeightFormat
from ..config import BLOCK_SIZE, ModelConfig
from ..devices import FP8_KV, GraphKernels, NeuronKernels
from ..errors import ConfigError
from ..ops.attention import MOST_POSITIONS
from ..ops.fp8 import STORAGE
from ..ops.fused import TOKENS, check_fused, joins_projection
from ..ops.kernels import check_places, check_shapes, check_tokens
from ..ops.sampling import MOST_CANDIDATES
from .buckets import Buckets, PrefillBucket
from .stages import StageKernels

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """Sizes that the graphs have for good.

    Attributes:
        max_model_len: tokens that a sequence may hold.
        num_lanes: sequences that may run at once, and the rows of the largest decode graphs.
        num_blocks: KV blocks of BLOCK_SIZE tokens, block 0 being scratch.
        num_slots: state checkpoints, 0 for none.
        buckets: the shapes compiled.
        tp_degree: tensor-parallel ranks, one a logical core.
        dtype: of weights, activations and convolution windows; recurrent states are fp32.
        logical_cores: physical cores that one logical core joins (LNC).
        prefill_commits: checkpoints that one context-encoding call may take. A chunk with more is cut.
        weights: number format of the matrices, a value of `WeightFormat`. The checkpoint must hold them in it.
        scales: of FP8 matrices, a value of `Scales`.
        kernels: "torch" for graphs of plain operations, "nki" or "fused" for graphs that call NKI kernels, or one of
            these for each stage: see `StageKernels`.
        decode_commits: checkpoints that one decode call may take; more rows than this at a block boundary go in a call
            of their own. Every one is written by every call, used or not: 38.5 MB a rank for the 27B at 4 ranks.
        decode_rows: rows of smaller decode graphs, ascending. Every row of a graph is computed, in use or not, so a
            sequence alone is faster in a graph of one row. Each makes as many graphs as there are decode buckets.
        dma_transposes: the DMA engines transpose what the kernels of prompts transpose, else TensorE, which is slower.
        sampling_candidates: most likely tokens that a draw in a graph looks at; 0 for graphs that draw none.
        max_drafts: drafts that a row may have verified; 0 for none. Above 0 there is a verify graph of 1 + max_drafts
            tokens a row beside each decode graph.
        max_proposals: drafts that the checkpoint's own draft layer makes of a row at once, at most max_drafts; 0 for
            graphs without that layer. Above 0 there is a draft graph of 1, one of 2, ... beside each decode graph.
        kv_cache_dtype: of keys and values: "fp8", which is "fp8_e4m3", or "auto" for `dtype`. Scales are weights.
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
    kernels: NeuronKernels | StageKernels = "torch"
    dma_transposes: bool = True
    sampling_candidates: int = 256
    decode_rows: tuple[int, ...] = ()
    max_drafts: int = 0
    max_proposals: int = 0
    kv_cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        for choice, allowed in (
            ("dtype", list(DTYPES)),
            ("weights", list(WeightFormat)),
            ("scales", list(Scales)),
            ("kv_cache_dtype", ["auto", *FP8_KV]),
        ):
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
            ("sampling_candidates", 0),
            ("max_drafts", 0),
            ("max_proposals", 0),
        ):
            value = getattr(self, field)
            if value < minimum:
                raise ConfigError(field, value, f"must be at least {minimum}", "Raise it")
        if self.max_model_len > MOST_POSITIONS:
            problem = f"is beyond the {MOST_POSITIONS} positions that a graph's rotary embedding reaches"
            raise ConfigError("max_model_len", self.max_model_len, problem, "Lower it")
        rows = self.decode_rows
        if list(rows) != sorted(set(rows)) or any(not 1 <= count < self.num_lanes for count in rows):
            problem = f"must ascend from 1 and stay below the {self.num_lanes} rows that there are graphs for anyway"
            raise ConfigError("decode_rows", list(rows), problem, "Use [1]")
        if self.sampling_candidates > MOST_CANDIDATES:
            problem = f"is more than the {MOST_CANDIDATES} that a graph sums up"
            raise ConfigError("sampling_candidates", self.sampling_candidates, problem, "Use 256")
        if not isinstance(self.dma_transposes, bool):
            raise ConfigError("dma_transposes", self.dma_transposes, "must be true or false", "Use true")
        if self.max_drafts >= BLOCK_SIZE:
            problem = f"could cross more than one boundary of {BLOCK_SIZE} tokens at once"
            raise ConfigError("max_drafts", self.max_drafts, problem, f"Use {BLOCK_SIZE - 1} at most")
        if self.max_proposals > self.max_drafts:
            problem = f"are more drafts than the {self.max_drafts} that a row may have verified"
            raise ConfigError("max_proposals", self.max_proposals, problem, "Lower it, or raise max_drafts")
        if self.logical_cores not in (1, 2):
            raise ConfigError("logical_cores", self.logical_cores, "a Trn2 joins 1 or 2 cores", "Use 2")
        if not isinstance(self.kernels, StageKernels):
            StageKernels.read(self.kernels)
        check_tokens(self._form, [pair.active for pair in self.buckets.prefill])
        check_places(self._form, self.num_blocks)
        self._check_fused()
        needed = -(-self.max_model_len // BLOCK_SIZE) + 1
        if self.num_blocks < needed:
            raise ConfigError(
                "num_blocks",
                self.num_blocks,
                f"cannot hold one sequence of max_model_len={self.max_model_len}",
                f"Use at least {needed}",
            )
        self.buckets.check_covers(self.max_model_len)

    def _check_fused(self) -> None:
        """Raises ConfigError naming what the fused kernels do not take, whatever the model."""
        if not self.stages.fused:
            return
        if self.dtype != "bfloat16":
            remedy = "Use bfloat16, or kernels: nki"
            raise ConfigError("dtype", self.dtype, "the fused kernels multiply bfloat16 or FP8 weights", remedy)
        if self.weights != WeightFormat.BF16 and self.scales != Scales.CHANNEL:
            problem = "the fused kernels take FP8 weights with one scale an output channel"
            raise ConfigError("scales", self.scales, problem, "Convert with scales of channels, or use kernels: nki")
        if self.fused_tokens > TOKENS:
            stage = "decode" if self.num_lanes > TOKENS and self.stages.decode == "fused" else "verify"
            problem = f"make {self.fused_tokens} tokens a step, of which the fused kernels take {TOKENS}"
            field, value = "num_lanes", self.num_lanes
            if stage == "verify":
                field, value = "max_drafts", self.max_drafts
            raise ConfigError(field, value, problem, f"Lower it, or say {stage}: nki in the profile's kernels")

    def joined_layers(self, model: ModelConfig) -> list[int]:
        """DeltaNet layers whose input projections are in one kernel with the feed-forward block before.

        Where both are of one number format, and not too wide; ascending.
        """
        sizes = self.tp_degree, self.logical_cores, self.fused_tokens
        if not self.stages.fused or self.weights == WeightFormat.FP8_MLP or not joins_projection(model, *sizes):
            return []
        return [layer for layer in model.deltanet_layers if layer]

    def check_model(self, model: ModelConfig) -> None:
        """Raises ConfigError naming every size of a rank's model that the kernels do not take."""
        sizes = self.tp_degree, self.logical_cores
        if model.moe is not None and self.stages.fused:
            problem = "the fused kernels have dense feed-forward blocks, and the model is a mixture of experts"
            raise ConfigError("kernels", str(self.kernels), problem, "Use kernels: nki or torch")
        if model.moe is not None and self.weights != WeightFormat.BF16 and self.scales != Scales.CHANNEL:
            problem = "a graph's experts take FP8 weights with one scale an output channel"
            raise ConfigError("scales", self.scales, problem, "Convert with --scales channel")
        check_shapes(self._form, model, *sizes, self.mlp_kernel and model.moe is None, self.max_drafts)
        if self.stages.fused:
            check_fused(model, *sizes, self.fused_tokens, *self._attention_sizes)

    @property
    def stages(self) -> StageKernels:
        """The kernels of each stage."""
        return StageKernels.of(self.kernels)

    @property
    def _form(self) -> GraphKernels:
        """Of the operations on memory, which all stages have in common."""
        return "torch" if self.stages.prefill == "torch" else "nki"

    @property
    def fused_tokens(self) -> int:
        """Tokens of the largest step of fused kernels, 0 without any."""
        stages, drafts = self.stages, self.max_drafts
        decoded = self.num_lanes if stages.decode == "fused" else 0
        return max(decoded, self.num_lanes * (1 + drafts) if stages.verify == "fused" and drafts else 0)

    @property
    def _attention_sizes(self) -> tuple[int, int]:
        """Sequences of a step of fused attention layers, and tokens of each at most; 0 without such layers."""
        if not self.fused_attention:
            return 0, 0
        return self.num_lanes, 1 + self.max_drafts if self.stages.verify == "fused" else 1

    @property
    def fused_attention(self) -> bool:
        """Whether attention layers are held as their fused kernel takes them, which reads no FP8 keys and values."""
        return self.stages.fused and not self.fp8_kv

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def mlp_kernel(self) -> bool:
        """Whether MLPs are the NKI kernel for FP8 weights. It takes bfloat16 and one scale an output channel.

        Not where weights are held as fused kernels take them, in an order of their own.
        """
        fp8 = self.weights != WeightFormat.BF16 and self.scales == Scales.CHANNEL
        return self.stages.prefill == "nki" and not self.stages.fused and fp8 and self.dtype == "bfloat16"

    @property
    def quantised_layers(self) -> bool:
        """Whether plain operations read FP8: NxD's quantised layers, or of prompts the weights of fused kernels."""
        return self.weights == WeightFormat.FP8 or (self.weights != WeightFormat.BF16 and not self.mlp_kernel)

    @property
    def fp8_kv(self) -> bool:
        """Whether keys and values are FP8."""
        return self.kv_cache_dtype in FP8_KV

    @property
    def kv_dtype(self) -> torch.dtype | None:
        """The type of keys and values, where it is not `torch_dtype`."""
        return STORAGE if self.fp8_kv else None

    @property
    def reads_fp8(self) -> bool:
        """Whether plain operations have FP8 numbers, which the compiler must be told to read as its own."""
        return self.quantised_layers or self.fp8_kv

    @property
    def positions(self) -> int:
        """`max_model_len` rounded up to whole blocks."""
        return -(-self.max_model_len // BLOCK_SIZE) * BLOCK_SIZE

    @property
    def decode_graphs(self) -> list[tuple[int, int]]:
        """(rows, tokens held) of every decode graph, in the order in which they are compiled: all lanes first.

        Those of the verify graphs too.
        """
        return [(rows, size) for rows in (self.num_lanes, *self.decode_rows) for size in self.buckets.decode]

    @property
    def draft_graphs(self) -> list[tuple[int, int, int]]:
        """(drafts, rows, tokens held) of every draft graph."""
        return [(drafts, *graph) for drafts in range(1, self.max_proposals + 1) for graph in self.decode_graphs]

    @property
    def draft_layer(self) -> bool:
        """Whether the graphs hold the checkpoint's own draft layer."""
        return self.max_proposals > 0

    def decode_rows_for(self, count: int) -> int:
        """Rows of the smallest decode graph that takes `count` rows, at most num_lanes."""
        return next((rows for rows in self.decode_rows if rows >= count), self.num_lanes)

    def cache_spec(self, model: ModelConfig) -> CacheSpec:
        """The memory of one rank."""
        sizes = self.num_blocks, self.num_lanes, self.num_slots
        drafts = self.max_drafts, self.draft_layer
        return CacheSpec(model, *sizes, self.torch_dtype, self.tp_degree, *drafts, self.kv_dtype)

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers."""
        pairs = [[pair.active, pair.prefix] for pair in self.buckets.prefill]
        shapes = {"prefill": pairs, "decode": list(self.buckets.decode)}
        return asdict(self) | {"buckets": shapes, "decode_rows": list(self.decode_rows)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> GraphOptions:
        """The inverse of `to_json`. Raises ConfigError on a value that cannot be used."""
        pairs = tuple(PrefillBucket(*pair) for pair in raw["buckets"]["prefill"])
        changed = {"buckets": Buckets(pairs, tuple(raw["buckets"]["decode"])), "decode_rows": tuple(raw["decode_rows"])}
        return cls(**{**raw, **changed, "kernels": StageKernels.read(raw["kernels"])})
