"""What a runtime is built from: one typed object, validated once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..checkpoint.formats import format_of
from ..config import BLOCK_SIZE, ModelConfig
from ..devices import FP8_KV, Device, DType, KernelChoice, KVCacheDType
from ..errors import ConfigError
from ..ops.kernels import check_choice
from ..ops.sampling import MOST_CANDIDATES


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """How much a runtime holds and what it runs on.

    Attributes:
        model: checkpoint folder in Hugging Face layout.
        device: "cpu", or "neuron" for a Trn2.
        dtype: of weights, activations and convolution windows. The recurrent state is fp32 always.
        max_model_len: tokens a sequence may hold.
        max_step_tokens: tokens one step may run, over all rows.
        num_lanes: sequences that may run at once.
        num_blocks: KV blocks of 64 tokens, block 0 being scratch.
        num_slots: checkpoint slots, 0 for none.
        tp_degree: tensor-parallel ranks; 1 on CPU.
        artifact: on a Neuron device, the folder of compiled graphs.
        kernels: what runs the operations between the projections: "torch", on a CPU also "fused", for float32, and
            "interpreter", on a Neuron device also "nki". None for "fused" on a CPU where it can be had, else "torch",
            and for what the artifact was compiled with on a device.
        sampling_candidates: most likely tokens that a draw on the device looks at, 0 to give logits instead; None for
            what the artifact was compiled with, and 0 on CPU.
        max_drafts: proposed tokens that a row may have verified; on a Neuron device at most as many as the artifact was
            compiled for.
        max_proposals: drafts that the checkpoint's multi-token-prediction layer makes of a row at once, 0 to leave the
            layer out; on a Neuron device at most as many as the artifact was compiled for.
        lazy_logits: on a Neuron device, leave logits there until a row wants them.
        kv_cache_dtype: of keys and values: "fp8", which is "fp8_e4m3", or the same as `dtype`; "auto" for what the
            checkpoint declares, else `dtype`.
        kv_scales: file of the scales of FP8 keys and values; None for those in the checkpoint's folder.
        description: what the checkpoint's config.json is taken to say, where something was overridden; None for the
            file as it is.
    """

    model: Path
    device: Device = "cpu"
    dtype: DType = "float32"
    max_model_len: int = 4096
    max_step_tokens: int = 2048
    num_lanes: int = 8
    num_blocks: int = 1025
    num_slots: int = 0
    tp_degree: int = 1
    artifact: Path | None = None
    kernels: KernelChoice | None = None
    sampling_candidates: int | None = None
    max_drafts: int = 0
    max_proposals: int = 0
    lazy_logits: bool = True
    kv_cache_dtype: KVCacheDType = "auto"
    kv_scales: Path | None = None
    description: ModelConfig | None = None

    def __post_init__(self) -> None:
        for field, allowed in (("device", Device), ("dtype", DType), ("kv_cache_dtype", KVCacheDType)):
            value = getattr(self, field)
            if value not in get_args(allowed):
                raise ConfigError(field, value, "is not known", f"Use one of: {', '.join(get_args(allowed))}")
        for field, minimum in (
            ("max_model_len", 1),
            ("max_step_tokens", 1),
            ("num_lanes", 1),
            ("num_blocks", 2),
            ("num_slots", 0),
            ("tp_degree", 1),
            ("max_drafts", 0),
            ("max_proposals", 0),
        ):
            value = getattr(self, field)
            if value < minimum:
                raise ConfigError(field, value, f"must be at least {minimum}", "Raise it")
        if (self.num_blocks - 1) * BLOCK_SIZE < self.max_model_len:
            raise ConfigError(
                "num_blocks",
                self.num_blocks,
                f"{self.num_blocks - 1} usable blocks of {BLOCK_SIZE} tokens cannot hold one sequence of max_model_len="
                f"{self.max_model_len}",
                f"Use at least {-(-self.max_model_len // BLOCK_SIZE) + 1}, or lower max_model_len",
            )
        if self.kernels is not None:
            check_choice(self.kernels, self.device)
        if self.device == "cpu" and self.kernels == "fused" and self.dtype != "float32":
            raise ConfigError("kernels", "fused", f"computes in float32, not {self.dtype}", "Use kernels=torch")
        if self.sampling_candidates is not None and not 0 <= self.sampling_candidates <= MOST_CANDIDATES:
            raise ConfigError(
                "sampling_candidates", self.sampling_candidates, f"must be 0 to {MOST_CANDIDATES}", "Use 256, or 0"
            )
        if self.max_drafts >= BLOCK_SIZE:
            problem = f"could cross more than one boundary of {BLOCK_SIZE} tokens at once"
            raise ConfigError("max_drafts", self.max_drafts, problem, f"Use {BLOCK_SIZE - 1} at most")
        if self.max_proposals > self.max_drafts:
            problem = f"are more drafts than the {self.max_drafts} that a row may have verified"
            raise ConfigError("max_proposals", self.max_proposals, problem, "Lower it, or raise max_drafts")
        if self.kv_cache_dtype in get_args(DType) and self.kv_cache_dtype != self.dtype:
            problem = f"keys and values are in FP8, or in the number format of the model, which is {self.dtype}"
            raise ConfigError("kv_cache_dtype", self.kv_cache_dtype, problem, "Use fp8, or change dtype")
        if self.kv_scales is not None and self.kv_cache_dtype in get_args(DType):
            problem = f"is for FP8 keys and values, and kv_cache_dtype={self.kv_cache_dtype}"
            raise ConfigError("kv_scales", str(self.kv_scales), problem, "Use kv_cache_dtype=fp8, or remove it")
        if self.device == "cpu" and self.tp_degree != 1:
            raise ConfigError("tp_degree", self.tp_degree, "the CPU runtime is one rank", "Use 1 with device=cpu")

    @property
    def fp8_kv(self) -> bool:
        """Whether keys and values are FP8. Raises ConfigError where the checkpoint's format is not served."""
        if self.kv_cache_dtype != "auto":
            return self.kv_cache_dtype in FP8_KV
        declared = format_of(Path(self.model))
        return declared is not None and declared.fp8_kv

    @property
    def draft_layer(self) -> bool:
        """Whether the multi-token-prediction layer is held."""
        return self.max_proposals > 0

    def model_config(self) -> ModelConfig:
        """The network: as described, or else as the checkpoint's config.json says. Raises ConfigError."""
        found = self.description or ModelConfig.from_pretrained(self.model)
        if self.draft_layer and found.num_mtp_layers != 1:
            raise ConfigError(
                "mtp_num_hidden_layers",
                found.num_mtp_layers,
                "is not one draft layer",
                "Draft by lookup, or not at all",
            )
        return found
