"""The formats of quantised checkpoints, each read by a file of its own and chosen by `quantization_config`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from . import auto_round, block_fp8, compressed_tensors
from .fields import ROOT
from .layout import Expected, Format, Layout
from .weight import Inputs, QuantisedWeight, join, round_inputs

__all__ = [
    "PLACES",
    "ROOT",
    "Expected",
    "Format",
    "Inputs",
    "Layout",
    "QuantisedWeight",
    "declared",
    "format_of",
    "join",
    "methods",
    "read_format",
    "round_inputs",
]

READERS: dict[str, Callable[[Mapping[str, Any]], Format]] = {
    compressed_tensors.METHOD: compressed_tensors.CompressedTensors.read,
    auto_round.METHOD: auto_round.AutoRound.read,
    block_fp8.METHOD: block_fp8.Fp8Blocks.read,
}
"""By `quant_method`."""

ALSO = {auto_round.METHOD: ("inc",)}
"""Further names of a method, by which vLLM's --quantization knows it."""

PLACES = (ROOT, "compression_config")
"""Keys of config.json under which a checkpoint may declare its format."""


def declared(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a parsed config.json says of quantisation, for the whole model or in its text part; None for nothing.

    Raises:
        ConfigError: it is not an object.
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for place in PLACES:
            found = part.get(place)
            if found is not None and not isinstance(found, Mapping):
                raise ConfigError(
                    place, found, "must be an object", "Use the config.json published with the checkpoint"
                )
            if found:
                return found
    return None


def read_format(config: Mapping[str, Any]) -> Format | None:
    """The format that a parsed config.json declares; None for a checkpoint that is not quantised.

    Raises:
        ConfigError: naming the key of `quantization_config` that is not served, its value and what to do.
    """
    raw = declared(config)
    if raw is None:
        return None
    method = raw.get("quant_method")
    reader = READERS.get(str(method))
    if reader is None:
        known = ", ".join(READERS)
        raise ConfigError(
            f"{ROOT}.quant_method", method, f"is not served: {known} are", "Use another checkpoint of the model"
        )
    return reader(raw)


def format_of(folder: Path) -> Format | None:
    """The format of a checkpoint folder; None if it has no config.json, or one that declares none.

    Raises:
        ConfigError: as `read_format`.
    """
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("config.json", str(file), f"is not JSON ({error})", "Download it again") from error
    return read_format(config) if isinstance(config, Mapping) else None


def methods(method: str) -> tuple[str, ...]:
    """The names by which a user may ask for a `quant_method`."""
    return method, *ALSO.get(method, ())
