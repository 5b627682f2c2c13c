"""What a checkpoint's config says of the rotary embedding: its frequencies, plain or scaled by YaRN.

Every key is done or refused by name. YaRN is transformers' (`_compute_yarn_parameters`), from "YaRN: Efficient Context
Window Extension of Large Language Models" (Peng et al., 2023): static, so that a position's angles do not depend on how
long its sequence is, and cached keys stay true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .fields import Fields

ROOT = "rope_parameters."
PLAIN = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
"""Keys of every rope type."""
YARN = (
    *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"),
    *("attention_factor", "mscale", "mscale_all_dim"),
)
KEYS = {"default": PLAIN, "mrope": PLAIN, "yarn": PLAIN + YARN}
"""Rope types that are implemented, and what may be said of each. `mrope` is an older name of the default."""


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """A rotary embedding stretched to `factor` times the positions that the model was trained with.

    Attributes:
        original_positions: those positions.
        beta_fast, beta_slow: turns over them from which on a dimension stays as it is, and up to which it is stretched
            by the whole factor; a ramp between.
        truncate: whether the ramp begins and ends at whole dimensions.
        attention_factor: of cosines and sines, so that scores of rotated dimensions grow by its square.
    """

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def kept(self, theta: float, dim: int) -> list[float]:
        """How much of each of dim / 2 frequencies stays as it is, 1 for all of it, 0 for a stretched one."""

        def dimension(turns: float) -> float:
            """The (fractional) index of the frequency that turns so often over the original positions."""
            return dim * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high += 0.001 * (low == high)
        return [1 - min(max((index - low) / (high - low), 0.0), 1.0) for index in range(dim // 2)]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding on the first `dim` of each head's dimensions; three position axes, interleaved."""

    theta: float
    dim: int
    mrope_section: tuple[int, int, int]
    yarn: YarnConfig | None = None

    @property
    def attention_factor(self) -> float:
        """Of cosines and sines."""
        return 1.0 if self.yarn is None else self.yarn.attention_factor

    def frequencies(self) -> list[float]:
        """Radians a position, dim / 2 of them, in fp64."""
        plain = [self.theta ** (-2 * index / self.dim) for index in range(self.dim // 2)]
        if self.yarn is None:
            return plain
        kept, factor = self.yarn.kept(self.theta, self.dim), self.yarn.factor
        return [part * each + (1 - part) * each / factor for part, each in zip(kept, plain, strict=True)]


def read_rope(read: Fields, max_positions: int) -> RopeConfig:
    """From a text model's fields; `rope_scaling` is what older configurations call `rope_parameters`.

    Args:
        max_positions: `max_position_embeddings`, the original positions where nothing else says them.
    Raises:
        ConfigError: a key is not known, contradicts another one, has no effect, or has a value that cannot be used.
    """
    rope = _joined(read.raw)
    kind = _kind(rope)
    for name in sorted(rope):
        if name not in KEYS[kind] and rope[name] is not None:
            known = ", ".join(KEYS[kind])
            raise ConfigError(f"{ROOT}{name}", rope[name], f"is not read with rope_type {kind}", f"Known: {known}")
    outer = Fields({**read.raw, **rope})
    dim = round(read.size("head_dim", 256) * outer.number("partial_rotary_factor", 0.25))
    theta = outer.number("rope_theta")
    yarn = _yarn(read, rope, theta, max_positions) if kind == "yarn" else None
    return RopeConfig(theta, dim, _section(rope, dim), yarn)


def _joined(raw: Mapping[str, Any]) -> dict[str, Any]:
    parts = []
    for name in ("rope_parameters", "rope_scaling"):
        part = raw.get(name)
        if part is not None and not isinstance(part, Mapping):
            raise ConfigError(name, part, "must be an object", "Correct config.json")
        parts.append(dict(part or {}))
    new, old = parts
    for name, value in old.items():
        if new.get(name, value) != value:
            problem = f"contradicts rope_parameters.{name}={new[name]!r}"
            raise ConfigError(f"rope_scaling.{name}", value, problem, "Give one of the two")
    return {**new, **old}


def _kind(rope: Mapping[str, Any]) -> str:
    """The rope type. Raises ConfigError for one that is not implemented, or for two."""
    new, old = rope.get("rope_type"), rope.get("type")
    kind = new or old or "default"
    if kind not in KEYS:
        remedy = "Use rope_type default, or yarn with a static factor"
        raise ConfigError(f"{ROOT}rope_type", kind, f"is not implemented: {', '.join(KEYS)} are", remedy)
    if new and old and new != old and (new, old) != ("default", "mrope"):
        raise ConfigError(f"{ROOT}type", old, f"contradicts rope_type={new!r}", "Give rope_type alone")
    return str(kind)


def _section(rope: Mapping[str, Any], dim: int) -> tuple[int, int, int]:
    half = dim // 2
    section = rope.get("mrope_section") or ((half + 2) // 3, (half + 1) // 3, half // 3)
    sizes = isinstance(section, list | tuple) and all(type(size) is int and size >= 0 for size in section)
    if not sizes or len(section) != 3 or sum(section) != half:
        problem = f"must be three sizes that add up to {half}"
        raise ConfigError(f"{ROOT}mrope_section", section, problem, "Correct it")
    if not rope.get("mrope_interleaved", True):
        raise ConfigError(f"{ROOT}mrope_interleaved", False, "only True is implemented", "Correct it")
    return section[0], section[1], section[2]


def _yarn(read: Fields, rope: Mapping[str, Any], theta: float, max_positions: int) -> YarnConfig:
    own = Fields(rope, ROOT)
    original = "original_max_position_embeddings"
    outside = read.raw.get(original)
    if outside is not None and rope.get(original, outside) != outside:
        raise own.error(
            original, rope[original], f"contradicts {original}={outside!r} beside it", "Give one of the two"
        )
    factor, fast, slow = own.number("factor"), own.number("beta_fast", 32.0), own.number("beta_slow", 1.0)
    if factor < 1:
        raise own.error("factor", factor, "must be at least 1", "Use the number of times that contexts get longer")
    if fast < slow:
        raise own.error("beta_fast", fast, f"must be at least beta_slow={slow}", "Leave both out for 32 and 1")
    if theta <= 1:
        raise ConfigError("rope_theta", theta, "must be above 1 with rope_type yarn", "Correct config.json")
    return YarnConfig(
        factor=factor,
        original_positions=own.size(original, outside or max_positions),
        attention_factor=_attention_factor(own, factor),
        beta_fast=fast,
        beta_slow=slow,
        truncate=own.flag("truncate", True),
    )


def _attention_factor(own: Fields, factor: float) -> float:
    """Given, or derived of the factor and of both scales. Raises ConfigError for what would have no effect."""
    scales = [name for name in ("mscale", "mscale_all_dim") if own.raw.get(name) is not None]
    if own.raw.get("attention_factor") is not None:
        if scales:
            raise own.error(
                scales[0], own.raw[scales[0]], "has no effect beside attention_factor", "Give one of the two"
            )
        return own.number("attention_factor")
    if len(scales) == 1:
        raise own.error(scales[0], own.raw[scales[0]], "needs mscale and mscale_all_dim both", "Give both, or neither")
    if not scales:
        return _magnitude(factor, 1.0)
    return _magnitude(factor, own.number("mscale")) / _magnitude(factor, own.number("mscale_all_dim"))


def _magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0
