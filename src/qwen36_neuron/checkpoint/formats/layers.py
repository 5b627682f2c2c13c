"""How quantisation configurations name layers.

The tools that write them name a layer as it is called in the model class that they loaded: with the prefixes of
conditional generation, of a text-only model, or, in what was written for vLLM, with several projections under the name
that they have there as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import ConfigError
from ..names import canonical_name

PREFIXES = ("", "model.", "model.language_model.", "language_model.", "language_model.model.")
"""What a canonical name may have before it."""

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
"""Projections that vLLM holds as one, by its name for them."""

REGULAR = "re:"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry of a list of layers: a name, or after `re:` an expression that a name must begin with.

    Attributes:
        text: the entry as it was given.
        matches: whether it means a layer of this full name.
    """

    text: str
    matches: Callable[[str], bool]

    @classmethod
    def of(cls, field: str, text: str) -> Pattern:
        """Read an entry of `field`. Raises ConfigError if it is not a name or a valid expression."""
        if not text.startswith(REGULAR):
            name = canonical_name(text)
            return cls(text, lambda layer: canonical_name(layer) == name)
        return cls(text, expression(field, text.removeprefix(REGULAR)).match)

    def means(self, layer: str) -> bool:
        """Whether it means a layer of this canonical name, under any of its spellings."""
        return means(self.matches, layer)


@dataclass(frozen=True, slots=True)
class Expression:
    """A regular expression that has been compiled."""

    compiled: re.Pattern[str]

    def match(self, name: str) -> bool:
        """Whether a name begins with it."""
        return self.compiled.match(name) is not None

    def search(self, name: str) -> bool:
        """Whether a name contains it."""
        return self.compiled.search(name) is not None


def expression(field: str, text: str) -> Expression:
    """Compile a regular expression of `field`. Raises ConfigError if it is none."""
    try:
        return Expression(re.compile(text))
    except re.error as error:
        raise ConfigError(field, text, f"is no regular expression ({error})", "Correct config.json") from error


def means(matches: Callable[[str], bool], layer: str) -> bool:
    """Whether something matches a canonical name, with any prefix, or the name of what it is fused into.

    The latter counts only where none of the projections is meant by its own name: an expression for `in_proj_b`, which
    also fits the beginning of `in_proj_ba`, does not mean `in_proj_a`.
    """
    if any(matches(prefix + layer) for prefix in PREFIXES):
        return True
    parent, _, leaf = layer.rpartition(".")
    for whole, parts in FUSED.items():
        if leaf in parts:
            siblings = [f"{prefix}{parent}.{part}" for prefix in PREFIXES for part in parts]
            spelled = (f"{prefix}{parent}.{whole}" for prefix in PREFIXES)
            return any(map(matches, spelled)) and not any(map(matches, siblings))
    return False
