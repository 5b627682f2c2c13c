"""What a configuration costs in device memory on a trn2.3xlarge, before anything is compiled. All figures are modelled.

Sizes come from the same tables that loading and allocation go by: the shapes of each rank's weights, and `CacheSpec`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch

from ..cache import CacheSpec
from ..checkpoint.names import mtp_shapes, text_shapes
from ..checkpoint.sharding import Part, rank_weights
from ..checkpoint.weight_format import QUANTISED, WeightFormat
from ..config import BLOCK_SIZE, ModelConfig
from ..errors import ConfigError
from ..graph.profile import Profile
from ..ops.fp8 import STORAGE

GIB, MIB = 1 << 30, 1 << 20
SCALE_BYTES = 4  # one fp32 scale for each output channel of an FP8 matrix


@dataclass(frozen=True, slots=True)
class Machine:
    """The device memory that ranks share.

    Attributes:
        cores: logical cores, one for each rank.
        core_bytes: memory of one logical core.
        reserve_bytes: held back on each logical core for what is neither weights nor cache.
    """

    name: str
    cores: int
    core_bytes: int
    reserve_bytes: int
    reserve_source: str


TRN2_3XLARGE = Machine(
    name="trn2.3xlarge (LNC=2)",
    cores=4,
    core_bytes=24 * GIB,
    reserve_bytes=3 * GIB,
    reserve_source=(
        "estimate: runtime microcode is 96 MiB a physical core (Neuron documentation, Neuron Device Memory), the rest "
        "is for graph code, scratchpad, DMA rings and collectives; one published 27B port with FP8 MLP weights at 128K "
        "tokens peaked at 53.25 GB, about 2 GB a rank over its weights and KV"
    ),
)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is to be held.

    Attributes:
        max_model_len: tokens of the longest sequence.
        max_num_seqs: sequences that run at once, each able to grow to `max_model_len`.
        slots: checkpoint slots.
        kv_dtype: of the convolution windows, and of KV unless `fp8_kv`.
        num_blocks: KV blocks, scratch included, when not enough for every sequence at full length.
        mtp: hold the multi-token-prediction layer and its KV.
        max_drafts: drafts that a row may have verified: what is pending of them is held for every lane.
        fp8_kv: hold keys and values in FP8.
        allow_long: `max_model_len` may be beyond what the model was made for.
    """

    max_model_len: int
    max_num_seqs: int = 1
    slots: int = 0
    tp: int = 4
    weights: WeightFormat = WeightFormat.BF16
    kv_dtype: torch.dtype = torch.bfloat16
    num_blocks: int | None = None
    mtp: bool = False
    max_drafts: int = 0
    fp8_kv: bool = False
    allow_long: bool = False

    def __post_init__(self) -> None:
        for field, minimum in (("max_model_len", 1), ("max_num_seqs", 1), ("slots", 0), ("max_drafts", 0)):
            value = getattr(self, field)
            if value < minimum:
                raise ConfigError(field, value, f"must be at least {minimum}", "Raise it")
        if self.num_blocks is not None and self.num_blocks <= self.blocks_per_sequence:
            raise ConfigError(
                "num_blocks",
                self.num_blocks,
                f"cannot hold one sequence of max_model_len={self.max_model_len}",
                f"Use at least {self.blocks_per_sequence + 1}, or lower max_model_len",
            )

    @property
    def blocks_per_sequence(self) -> int:
        """KV blocks of the longest sequence."""
        return -(-self.max_model_len // BLOCK_SIZE)

    @property
    def blocks(self) -> int:
        """KV blocks to hold, the scratch block included."""
        return self.num_blocks or self.max_num_seqs * self.blocks_per_sequence + 1


@dataclass(frozen=True, slots=True)
class Line:
    """One use of memory."""

    name: str
    rank_bytes: int
    detail: str


@dataclass(frozen=True)
class Plan:
    """The memory that `request` takes of `machine`, rank by rank (all ranks are alike)."""

    config: ModelConfig
    request: PlanRequest
    machine: Machine = TRN2_3XLARGE

    def __post_init__(self) -> None:
        tp = self.request.tp
        if tp > self.machine.cores:
            raise ConfigError(
                "tp", tp, f"{self.machine.name} has {self.machine.cores} logical cores", f"Use {self.machine.cores}"
            )
        self.config.check_length(self.request.max_model_len, self.request.allow_long)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Every use of memory, weights first."""
        return (*self._weight_lines(), *self._cache_lines(), self._reserve_line())

    @property
    def used_bytes(self) -> int:
        """Of one rank, the reserve included."""
        return sum(line.rank_bytes for line in self.lines)

    @property
    def free_bytes(self) -> int:
        """Left over on one rank; negative when it does not fit."""
        return self.machine.core_bytes - self.used_bytes

    @property
    def fits(self) -> bool:
        return self.free_bytes >= 0

    @cached_property
    def limits(self) -> dict[str, int | None]:
        """For each limit, the largest value that fits while the others stay; None when no value does."""
        longest = max(self.config.max_positions, self.request.max_model_len)
        highest = {"max_model_len": longest, "max_num_seqs": 1 << 16, "slots": 1 << 20}
        if self.request.num_blocks is not None:
            highest["num_blocks"] = self.request.num_blocks
        return {field: self._largest(field, value) for field, value in highest.items()}

    def check(self) -> None:
        """Raises ConfigError when it does not fit, with the limits that would."""
        if self.fits:
            return
        fitting = " or ".join(f"{field}={value}" for field, value in self.limits.items() if value is not None)
        raise ConfigError(
            "memory",
            f"{self.used_bytes / GIB:.2f} GiB a rank",
            f"{self.machine.name} has {self.machine.core_bytes / GIB:.0f} GiB a rank",
            f"Lower one limit: {fitting} would fit"
            if fitting
            else "Lowering one limit is not enough: lower several, or store the weights smaller (fp8-mlp, fp8)",
        )

    def _largest(self, field: str, highest: int) -> int | None:
        def fits(value: int) -> bool:
            changed: dict[str, Any] = {field: value}
            try:
                return replace(self, request=replace(self.request, **changed)).fits
            except ConfigError:
                return False

        low = {"slots": 0, "num_blocks": self.request.blocks_per_sequence + 1}.get(field, 1)
        high = highest
        if not fits(low):
            return None
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    def _weight_lines(self) -> list[Line]:
        layout = rank_weights(self.config, self.request.tp, include_mtp=self.request.mtp)
        shapes = text_shapes(self.config) | mtp_shapes(self.config)
        lines = []
        for part in Part:
            size = scales = 0
            formats = set()
            for name, weight in layout.items():
                if weight.part is not part:
                    continue
                shape, in_fp8 = weight.shape(shapes), self._in_fp8(name)
                formats.add("fp8" if in_fp8 else "fp32" if weight.fp32 else "bf16")
                size += prod(shape) * (1 if in_fp8 else 4 if weight.fp32 else 2)
                scales += prod(shape[:-1]) * SCALE_BYTES if in_fp8 else 0
            if size:
                detail = ", ".join(sorted(formats)) + (f", {scales / MIB:.1f} MiB of scales" if scales else "")
                detail += ", whole on every rank" if part is Part.ROUTER else ""
                lines.append(Line(f"weights: {part.value}", size + scales, detail))
        return lines

    def _in_fp8(self, name: str) -> bool:
        return name.endswith(QUANTISED[self.request.weights]) and not name.startswith("mtp.")

    def _cache_lines(self) -> list[Line]:
        request, spec, replicas = self.request, self.spec, self.config.rank(self.request.tp).kv_replicas
        dtype = "fp8_e4m3" if request.fp8_kv else str(request.kv_dtype).removeprefix("torch.")
        token = spec.block_bytes // BLOCK_SIZE
        state = f"{spec.lane_bytes / 1e6:.2f} MB each, fp32 state"
        kv = f"{dtype}, {spec.num_blocks} blocks of {BLOCK_SIZE} tokens, {token} B a token"
        kv += f", each head on {replicas} ranks" if replicas > 1 else ""
        lanes = (request.max_num_seqs + 1) * spec.lane_bytes
        lines = [
            Line("KV", spec.num_blocks * spec.block_bytes, kv),
            Line("running lanes", lanes, f"{request.max_num_seqs} + scratch, {state}"),
        ]
        if request.slots:
            lines.append(Line("checkpoint slots", request.slots * spec.lane_bytes, f"{request.slots}, {state}"))
        if request.max_drafts:
            pending = f"{request.max_drafts} a lane, {request.max_num_seqs} + scratch, factors in fp32"
            lines.append(Line("pending drafts", spec.pending_bytes, pending))
        if request.mtp:
            layer = 2 * prod(spec.kv_shape) * spec.kv_numbers.itemsize
            kept = "its KV, a last hidden state a lane and slot, and one a pending draft"
            lines.append(Line("draft layer cache", layer + replace(spec, draft_layer=True).hidden_bytes, kept))
        return lines

    @property
    def spec(self) -> CacheSpec:
        """The cache that would be allocated on each rank, without the draft layer's."""
        request = self.request
        sizes = request.blocks, request.max_num_seqs, request.slots
        numbers = STORAGE if request.fp8_kv else None
        return CacheSpec(self.config, *sizes, request.kv_dtype, request.tp, request.max_drafts, kv_dtype=numbers)

    def _reserve_line(self) -> Line:
        return Line("reserve", self.machine.reserve_bytes, "graphs, scratchpad, runtime (estimate)")


def plan_profile(profile: Profile, model: ModelConfig, allow_long: bool = False) -> Plan:
    """The device memory of a profile. Raises ConfigError if the model cannot be split or run so."""
    options = profile.options
    model.rank(options.tp_degree)
    request = PlanRequest(
        max_model_len=options.max_model_len,
        max_num_seqs=options.num_lanes,
        slots=options.num_slots,
        tp=options.tp_degree,
        weights=profile.weights,
        kv_dtype=options.torch_dtype,
        num_blocks=options.num_blocks,
        mtp=options.draft_layer,
        max_drafts=options.max_drafts,
        fp8_kv=options.fp8_kv,
        allow_long=allow_long,
    )
    return Plan(model, request)
