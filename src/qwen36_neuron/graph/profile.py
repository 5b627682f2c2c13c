"""A named set of sizes to compile for: a YAML file, read into one typed object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ..checkpoint.weight_format import WeightFormat
from ..errors import ConfigError
from .buckets import Buckets, PrefillBucket
from .options import GraphOptions
from .stages import StageKernels

SIZES = (
    "max_model_len",
    "max_num_seqs",
    "num_blocks",
    "slots",
    "tp_degree",
    "logical_cores",
    "prefill_commits",
    "decode_commits",
    "sampling_candidates",
)
OPTIONAL = ("dma_transposes", "max_drafts", "max_proposals", "kv_cache_dtype")
FIELDS = ("description", "weights", "dtype", "kernels", "prefill_buckets", "decode_buckets", "decode_rows", *SIZES)

SHIPPED = Path(__file__).with_name("profiles")
"""Folder of the profiles of the 27B, and of the 35B-A3B as 35b-..., which are part of the package."""


def shipped() -> list[str]:
    """Their names, which end with lengths in K and M of tokens: of each model the shortest sequences first."""
    units = {"k": 10, "m": 20}

    def order(name: str) -> tuple[str, int]:
        model, _, length = name.rpartition("-")
        return model, int(length[:-1]) << units[length[-1]]

    return sorted((file.stem for file in SHIPPED.glob("*.yaml")), key=order)


@dataclass(frozen=True, slots=True)
class Profile:
    """What an artifact is compiled for.

    Attributes:
        name: the file's name without its ending.
        description: for people.
        options: every size that the graphs have, and the number format of the matrices.
    """

    name: str
    description: str
    options: GraphOptions

    @property
    def weights(self) -> WeightFormat:
        """Number format of the matrices."""
        return WeightFormat(self.options.weights)

    @classmethod
    def load(cls, profile: Path | str) -> Profile:
        """Read a profile.

        Args:
            profile: a YAML file, or the name of one that comes with this package, such as 32k.
        Raises:
            ConfigError: there is none, it is not YAML, or a field is missing, unknown or of a wrong value.
        """
        file = Path(profile)
        if not file.is_file() and file.name == str(profile) and not file.suffix:
            file = SHIPPED / f"{profile}.yaml"
        if not file.is_file():
            known = ", ".join(shipped())
            raise ConfigError("profile", str(profile), "no such file", f"Give a YAML file, or one of: {known}")
        try:
            raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ConfigError("profile", str(file), f"is not YAML ({error})", "Correct the file") from error
        if not isinstance(raw, dict):
            raise ConfigError(
                "profile", str(file), "must hold fields and values", f"Start from one of: {SHIPPED}/*.yaml"
            )
        return cls.parse(file.stem, raw)

    @classmethod
    def parse(cls, name: str, raw: Mapping[str, Any]) -> Profile:
        """Build from the fields of the YAML file. Raises ConfigError on a field that cannot be used."""
        for field in raw:
            if field not in FIELDS + OPTIONAL:
                raise ConfigError(field, raw[field], "is not known", f"Known: {', '.join(FIELDS + OPTIONAL)}")
        for field in FIELDS:
            if field not in raw:
                raise ConfigError(field, None, "is missing", f"Add it to profile {name}")
        sizes = {field: _integer(field, raw[field]) for field in SIZES}
        options = GraphOptions(
            max_model_len=sizes["max_model_len"],
            num_lanes=sizes["max_num_seqs"],
            num_blocks=sizes["num_blocks"],
            buckets=Buckets(_pairs(raw["prefill_buckets"]), _whole("decode_buckets", raw["decode_buckets"])),
            decode_rows=_whole("decode_rows", raw["decode_rows"]),
            num_slots=sizes["slots"],
            tp_degree=sizes["tp_degree"],
            dtype=str(raw["dtype"]),
            logical_cores=sizes["logical_cores"],
            prefill_commits=sizes["prefill_commits"],
            decode_commits=sizes["decode_commits"],
            sampling_candidates=sizes["sampling_candidates"],
            max_drafts=_integer("max_drafts", raw.get("max_drafts", 0)),
            max_proposals=_integer("max_proposals", raw.get("max_proposals", 0)),
            weights=str(raw["weights"]),
            kernels=StageKernels.read(raw["kernels"]),
            dma_transposes=raw.get("dma_transposes", True),
            kv_cache_dtype=str(raw.get("kv_cache_dtype", "auto")),
        )
        return cls(name, str(raw["description"]), options)


def _integer(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(field, value, "must be a whole number", "Correct the profile")
    return value


def _pairs(value: object) -> tuple[PrefillBucket, ...]:
    field = "prefill_buckets"
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ConfigError(field, value, "must be pairs of new and prefix tokens", "Write [[512, 0], [512, 4096]]")
    return tuple(PrefillBucket(_integer(field, active), _integer(field, prefix)) for active, prefix in value)


def _whole(field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ConfigError(field, value, "must be a list of whole numbers", "Write [1024, 4096], or []")
    return tuple(_integer(field, number) for number in value)
