"""What the user sets through `--additional-config`: one typed object, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from qwen36_neuron.devices import CHOICES, Device, KernelChoice
from qwen36_neuron.errors import ConfigError

from .speculation.config import LEAST_MATCH, MOST, DraftLimits

NAMED = "checkpoints"
"""Key of a request's `vllm_xargs` under which a client names prefixes to keep, as lengths in tokens."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that vLLM has no flag for.

    Attributes:
        device: "cpu" or "neuron".
        tp_degree: tensor-parallel ranks inside the device; vLLM's own tensor parallelism stays 1.
        num_slots: checkpoint slots for prefix reuse; None for as many as suit the memory of KV. Unused when prefix
            caching is off.
        slots_per_prompt: the most checkpoints that one prompt may ask for.
        cache_gib: memory for KV blocks in GiB, unless --num-gpu-blocks-override says how many.
        artifact: on a Neuron device, the folder of graphs compiled for these sizes.
        kernels: "torch" or "fused", on cpu also "interpreter", on neuron also "nki"; None for fused on cpu where it
            can be had, else torch, and for what the artifact was compiled with on neuron.
        kv_scales: file of the scales of FP8 keys and values (--kv-cache-dtype fp8), as qwen36 calibrate-kv writes it;
            None for those in the checkpoint's folder.
        sampling_candidates: most likely tokens that the device draws from, 0 to sample on the host; None for what the
            artifact was compiled with, and 0 on CPU, where the host is no further away. No seeded token depends on it.
        lazy_logits: on a Neuron device, leave logits there until a request wants them.
        stop_in_reasoning: let a stop string end a request in its reasoning too, as vLLM does; otherwise it is looked
            for in the answer alone.
        allow_unknown_fields: take fields of a request that have no effect here, as vLLM does; else they are refused.
        mtp_drafts: drafts of the checkpoint's own draft layer that a step may verify of a request; set by
            --speculative-config.
        lookup_drafts: drafts that a step may verify of a request out of its own tokens, where they repeat; None for 16
            with --speculative-config, on neuron for as many as that says, 0 for none.
        lookup_match: tokens that must repeat for that; set by --speculative-config.
        adaptive_drafts: give each request as many drafts as they earn; otherwise as many as there are.
        threads: threads that compute; None for one a core that may be used, by affinity and quota, or OMP_NUM_THREADS.
        share_cores: on cpu, compute on fewer threads while other processes keep cores busy.
    """

    device: Device = "cpu"
    tp_degree: int = 1
    num_slots: int | None = None
    slots_per_prompt: int = 16
    cache_gib: float = 2.0
    artifact: str | None = None
    kernels: KernelChoice | None = None
    kv_scales: str | None = None
    sampling_candidates: int | None = None
    lazy_logits: bool = True
    stop_in_reasoning: bool = False
    allow_unknown_fields: bool = False
    mtp_drafts: int = 0
    lookup_drafts: int | None = None
    lookup_match: int = LEAST_MATCH
    adaptive_drafts: bool = True
    threads: int | None = None
    share_cores: bool = True

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Settings:
        """Read vLLM's `additional_config`.

        Raises:
            ConfigError: a key is unknown, or a value cannot be used.
        """
        known = [field.name for field in fields(cls)]
        for key in raw:
            if key not in known:
                raise ConfigError(f"additional_config.{key}", raw[key], "is not known", f"Known: {', '.join(known)}")
        return cls(**raw)

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            self._refuse("device", "is not known", f"Use one of: {', '.join(get_args(Device))}")
        if self.kernels is not None:
            allowed = CHOICES[self.device]
            if self.kernels not in allowed:
                self._refuse(
                    "kernels", f"cannot be used with device={self.device}", f"Use one of: {', '.join(allowed)}"
                )
        for field, minimum in (("tp_degree", 1), ("slots_per_prompt", 1), ("mtp_drafts", 0), ("lookup_match", 1)):
            self._check_integer(field, minimum)
        for field, minimum in (("num_slots", 0), ("threads", 1), ("sampling_candidates", 0), ("lookup_drafts", 0)):
            if getattr(self, field) is not None:
                self._check_integer(field, minimum)
        for field in ("lazy_logits", "stop_in_reasoning", "allow_unknown_fields", "adaptive_drafts", "share_cores"):
            if not isinstance(getattr(self, field), bool):
                self._refuse(field, "must be true or false", "Correct it")
        if not isinstance(self.kv_scales, str | None):
            self._refuse("kv_scales", "must be the path of a file", "Correct it")
        if (self.lookup_drafts or 0) > MOST:
            self._refuse("lookup_drafts", f"must be {MOST} at most", "Lower it")
        if isinstance(self.cache_gib, bool) or not isinstance(self.cache_gib, int | float) or self.cache_gib <= 0:
            self._refuse("cache_gib", "must be a positive number of GiB", "Give how much memory KV blocks may take")

    @property
    def draft_limits(self) -> DraftLimits:
        """What drafts may be made."""
        return DraftLimits(self.mtp_drafts, self.lookup_drafts or 0, self.lookup_match, self.adaptive_drafts)

    @property
    def draft_layer(self) -> bool:
        """Whether the checkpoint's own layer drafts."""
        return self.mtp_drafts > 0

    def _check_integer(self, field: str, minimum: int) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self._refuse(field, f"must be an integer of at least {minimum}", "Correct it")

    def _refuse(self, field: str, problem: str, remedy: str) -> None:
        raise ConfigError(f"additional_config.{field}", getattr(self, field), problem, remedy)
