"""Scales of FP8 keys and values, one a head: from a checkpoint or a file, and what calibration makes of what it saw.

A number is stored as FP8 of number / scale. Published scales are for the FP8 of GPUs, whose largest number is 448; a
Trn2's is 240 (`ops.fp8`). So they are doubled, as payloads of FP8 weights are halved: what is stored is half as much,
and all but the smallest numbers come out as they would there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..config import ModelConfig
from ..errors import ConfigError
from ..ops.fp8 import LARGEST
from .files import CheckpointFiles
from .names import KVScale, canonical_name, kv_scale

FILE = "kv_scales.safetensors"
"""Where a checkpoint folder has scales that calibration made, beside its own files."""

FORMAT = {"format": "qwen36-kv-scales", "version": "1", "largest": f"{LARGEST:g}"}
"""What calibration says in the metadata of its files. Other files hold scales as they are published."""

ROOM = 2.0
"""Part of the range that calibration leaves free: a larger number than it saw is cut off only beyond twice as much."""

PUBLISHED = 2.0
"""What published scales are multiplied with."""

REMEDY = "Run qwen36 calibrate-kv --model DIR --text FILE --out kv_scales.safetensors, and give it with --kv-scales"
WHY = (
    "needs a scale for each head: with a scale of 1 keys and values are cut off or lost, and text is corrupted "
    "from some 526 tokens on"
)


@dataclass(frozen=True, slots=True)
class KVScales:
    """Scales of a model by decoder layer, fp32 [kv heads] each; the draft layer's is behind all others.

    Attributes:
        source: where they are from, for people.
    """

    keys: Mapping[int, torch.Tensor]
    values: Mapping[int, torch.Tensor]
    source: str

    def digest(self) -> str:
        """Of the numbers alone."""
        found = hashlib.sha256()
        for kind in (self.keys, self.values):
            for layer in sorted(kind):
                found.update(f"{layer}:".encode() + kind[layer].contiguous().numpy().tobytes())
        return found.hexdigest()

    def weights(self, model: ModelConfig, tp: int = 1, rank: int = 0) -> dict[str, torch.Tensor]:
        """Those of one rank by runtime name, as `model.attention.add_kv_scales` adds them."""
        shape = model.rank(tp)
        first = rank // shape.kv_replicas * shape.num_kv_heads
        return {
            f"{'mtp.layer' if layer == model.num_layers else f'layers.{layer}'}.mixer.{name}_scale": scale[
                first : first + shape.num_kv_heads
            ].clone()
            for name, kind in (("k", self.keys), ("v", self.values))
            for layer, scale in kind.items()
        }

    def as_tensors(self, model: ModelConfig) -> dict[str, torch.Tensor]:
        """By canonical name, for a file."""
        return {
            f"{_prefix(layer, model)}.self_attn.{name}_scale": scale.clone()  # a file holds no tensor twice
            for name, kind in (("k", self.keys), ("v", self.values))
            for layer, scale in kind.items()
        }


def load_kv_scales(folder: Path, model: ModelConfig, draft_layer: bool = False, file: Path | None = None) -> KVScales:
    """Of the file that is given, else of the checkpoint, else of the file that is beside it.

    Args:
        draft_layer: those of the multi-token-prediction layer too.
        file: safetensors, as `qwen36 calibrate-kv` writes them, or with the names and meaning of published scales.
    Raises:
        ConfigError: there are none, or none for some layer or head; or one cannot be used.
    """
    if file is not None:
        return _from_file(file, model, draft_layer)
    with CheckpointFiles(folder) as files:
        stored = files.kv_scales()
        if stored:
            source = f"the checkpoint {folder}"
            return _collect(source, {key: read() for key, read in stored.items()}, model, draft_layer, PUBLISHED)
    if (folder / FILE).is_file():
        return _from_file(folder / FILE, model, draft_layer)
    raise ConfigError("kv_cache_dtype", "fp8", WHY + f", and {folder} has none", REMEDY)


def calibrated(largest: Mapping[int, tuple[torch.Tensor, torch.Tensor]], source: str) -> KVScales:
    """Scales for keys and values of which these were the largest magnitudes, fp32 [kv heads] by layer.

    They are powers of two, so that a product with one is exact in any number format; what was largest becomes 60 to 120
    of 240. That costs no accuracy, since all numbers but those below 1/7,680 of the largest keep their four digits.

    Raises:
        ConfigError: a magnitude is infinite or not a number.
    """

    def scale(peak: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(peak).all():
            raise ConfigError("text", source, "gave keys or values that are infinite or not numbers", "Use float32")
        tiny = torch.finfo(torch.float32).tiny
        return torch.where(peak > 0, (peak * (ROOM / LARGEST)).clamp_min(tiny).log2().ceil().exp2(), 1.0)

    keys, values = ({layer: scale(pair[half]) for layer, pair in largest.items()} for half in range(2))
    return KVScales(keys, values, source)


def save_kv_scales(scales: KVScales, model: ModelConfig, file: Path, provenance: Mapping[str, str]) -> None:
    """Write what `load_kv_scales` reads, with where it comes from in the file's metadata."""
    save_file(scales.as_tensors(model), file, {**FORMAT, "digest": scales.digest(), **provenance})


def _from_file(file: Path, model: ModelConfig, draft_layer: bool) -> KVScales:
    try:
        with safe_open(file, framework="pt") as opened:
            about: dict[str, str] = opened.metadata() or {}
            found: dict[KVScale, torch.Tensor] = {}
            for stored in opened.keys():  # noqa: SIM118 - not a mapping
                place = kv_scale(canonical_name(stored) or "")
                if place is None:
                    raise ConfigError("kv_scales", str(file), f"{stored} is no scale of keys or values", REMEDY)
                found[place] = opened.get_tensor(stored)
    except (SafetensorError, OSError) as error:
        raise ConfigError("kv_scales", str(file), f"cannot be read ({error})", "Give a safetensors file") from error
    ours = about.get("format") == FORMAT["format"]
    if ours and {name: about.get(name) for name in FORMAT} != FORMAT:
        raise ConfigError("kv_scales", str(file), f"is of another release: {about}", REMEDY)
    factor = 1.0 if ours else PUBLISHED
    return _collect(str(file), found, model, draft_layer, factor)


def _collect(
    source: str, stored: Mapping[KVScale, torch.Tensor], model: ModelConfig, draft_layer: bool, factor: float
) -> KVScales:
    layers = {f"layers.{layer}": layer for layer in model.attention_layers}
    if draft_layer:
        layers["mtp.layers.0"] = model.num_layers
    known = {*layers, *(f"mtp.layers.{n}" for n in range(model.num_mtp_layers))}
    if unknown := sorted({place.layer for place in stored} - known):
        raise ConfigError("kv_scales", source, f"has scales of {', '.join(unknown)}, which hold no KV", REMEDY)
    for place, tensor in stored.items():
        if place.kind in ("k_zero_point", "v_zero_point") and bool(tensor.float().any()):
            problem = f"{place.layer} has a {place.kind} that is not 0: KV is quantised symmetrically"
            raise ConfigError("kv_scales", source, problem, REMEDY)
    given: dict[str, dict[int, torch.Tensor]] = {"k": {}, "v": {}}
    lacking: list[str] = []
    for prefix, layer in layers.items():
        for name, kind in given.items():
            found = next((place for each in (name, "kv") if (place := KVScale(prefix, each)) in stored), None)
            if found is None:
                lacking.append(f"{prefix}.self_attn.{name}_scale")
            else:
                scale = _heads(source, f"{prefix}.self_attn.{name}_scale", stored[found], model.num_kv_heads)
                kind[layer] = scale
    if lacking:
        raise ConfigError("kv_cache_dtype", "fp8", f"{WHY}, and {source} lacks {', '.join(lacking[:4])}", REMEDY)
    every = torch.cat([scale for kind in given.values() for scale in kind.values()])
    if factor == PUBLISHED and bool((every == 1.0).all()):
        raise ConfigError("kv_cache_dtype", "fp8", f"{WHY}, and those of {source} are all 1", REMEDY)
    keys, values = ({layer: scale * factor for layer, scale in kind.items()} for kind in given.values())
    return KVScales(keys, values, source)


def _heads(source: str, name: str, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """fp32 [heads] of a scale for all heads or one for each."""
    scale = tensor.float().flatten()
    if scale.numel() not in (1, heads):
        problem = f"{name} has {scale.numel()} numbers, must have 1 or {heads}"
        raise ConfigError("kv_scales", source, problem, REMEDY)
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ConfigError("kv_scales", source, f"{name} is {scale.tolist()}, must be positive", REMEDY)
    return scale.expand(heads).clone()


def _prefix(layer: int, model: ModelConfig) -> str:
    return "mtp.layers.0" if layer == model.num_layers else f"layers.{layer}"
