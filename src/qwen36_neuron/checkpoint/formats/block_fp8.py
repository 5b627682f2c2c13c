"""FP8 in blocks, as the model's makers publish it: E4M3 up to 448 and a scale for each 128 x 128 numbers.

https://huggingface.co/docs/transformers/quantization/finegrained_fp8. `weight_scale_inv` is what a code is multiplied
with: the inverse of what the weight was multiplied with. Inputs are not rounded here: the scheme's `dynamic` rounding
serves a GPU's matrix units, and what they lose by it is no part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..fp8 import BLOCK
from ..names import canonical_name
from ..sharding import Slice
from .fields import Fields
from .layout import FLOATS, Expected, Layout, Stored, cut, cut_scales, shape_of
from .weight import Inputs, QuantisedWeight

METHOD = "fp8"
WEIGHT, SCALE = ".weight", ".weight_scale_inv"
FP8 = "F8_E4M3"
VOCABULARY = {"lm_head": ("lm_head",), "embed_tokens": ("embed_tokens", "embeddings")}
"""The two matrices of the vocabulary, and the keys that say that they are in FP8 too."""


@dataclass(frozen=True, slots=True)
class BlockFp8:
    """E4M3 codes and scales of blocks."""

    inputs: Inputs = Inputs.PLAIN

    @property
    def endings(self) -> tuple[str, ...]:
        """See `Layout`."""
        return WEIGHT, SCALE

    def tensors(self, shape: tuple[int, int]) -> dict[str, Expected]:
        """`weight` float8_e4m3 [out, in] and `weight_scale_inv` [ceil(out / 128), ceil(in / 128)]."""
        rows, columns = (-(-size // BLOCK) for size in shape)
        return {WEIGHT: Expected((FP8,), shape), SCALE: Expected(FLOATS, (rows, columns))}

    def shape(self, stored: Stored) -> tuple[int, int]:
        """See `Layout`."""
        return shape_of(stored[".weight"])

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Blocks."""
        return BLOCK, BLOCK

    def read(self, stored: Stored, piece: Slice) -> QuantisedWeight:
        """See `Layout.read`."""
        codes = cut(stored[WEIGHT], piece.dim, piece.start, piece.stop)
        return QuantisedWeight(codes, cut_scales(stored[SCALE], piece, BLOCK), (BLOCK, BLOCK), self.inputs)


@dataclass(frozen=True, slots=True)
class Fp8Blocks:
    """All linear layers but those listed; of the vocabulary's matrices, those asked for.

    Attributes:
        kept: names of layers or of what they are in, or their last parts, that are not in FP8.
        vocabulary: layers of VOCABULARY that are.
    """

    kept: tuple[str, ...]
    vocabulary: frozenset[str]

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Fp8Blocks:
        """Read `quantization_config`.

        Raises:
            ConfigError: naming a key whose value is not served, or that is not known.
        """
        fields = Fields(raw)
        fields.one_of("quant_method", (METHOD,))
        remedy = "Use the published FP8 checkpoint, which is in blocks of 128 x 128"
        size = fields.take("weight_block_size")
        if list(size or ()) != [BLOCK, BLOCK]:
            raise fields.error("weight_block_size", size, f"is not served: {[BLOCK, BLOCK]} is", remedy)
        fields.one_of("activation_scheme", ("dynamic",), "dynamic", remedy)
        fields.one_of("fmt", ("e4m3",), "e4m3", remedy)
        fields.one_of("scale_fmt", ("float",), "float", remedy)
        kept = fields.names("modules_to_not_convert") + fields.names("ignored_layers")
        flags = {layer: {fields.flag(key) for key in keys} for layer, keys in VOCABULARY.items()}
        fields.finish()
        asked = frozenset(layer for layer, given in flags.items() if True in given)
        return cls(tuple(name for entry in kept if (name := canonical_name(entry)) is not None), asked)

    @property
    def name(self) -> str:
        """For people."""
        also = f" and {', '.join(sorted(self.vocabulary))}" if self.vocabulary else ""
        return f"{METHOD}: E4M3 in blocks of {BLOCK} x {BLOCK}{also}"

    @property
    def inputs(self) -> frozenset[Inputs]:
        """See `Format`."""
        return frozenset({Inputs.PLAIN})

    @property
    def fp8_kv(self) -> bool:
        """See `Format`."""
        return False

    def layout(self, layer: str) -> Layout | None:
        """See `Format`."""
        if layer in VOCABULARY:
            return BlockFp8() if layer in self.vocabulary and layer not in self.kept else None
        kept = any(layer == name or layer.startswith(f"{name}.") or layer.endswith(f".{name}") for name in self.kept)
        return None if kept else BlockFp8()
