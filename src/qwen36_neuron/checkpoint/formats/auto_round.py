"""AutoRound checkpoints packed as GPTQ's: codes and zeros four in an int32, inputs before outputs.

https://github.com/intel/auto-round: `export/export_to_autoround/export.py`, `qlinear_torch_zp.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..names import canonical_name
from ..sharding import Slice
from .fields import ROOT, Fields, words
from .layers import expression, means
from .layout import FLOATS, Expected, Layout, Stored, cut, cut_scales, shape_of, signed, unpacked
from .weight import Inputs, QuantisedWeight

METHOD = "auto-round"
PACKING = ("auto_round:auto_gptq",)
PLAIN_BITS = 16
WORD = 4
ZERO = 128 - 1
"""What is stored of the zero point of a symmetric matrix of 8 bits: one less than it is."""

NOTES = words(
    """
    autoround_version amp batch_size dataset enable_adam enable_alg_ext enable_minmax_tuning enable_norm_bias_tuning
    enable_quanted_input gradient_accumulate_steps iters low_cpu_mem_usage low_gpu_mem_usage lr minmax_lr model_free
    nblocks not_use_best_mse nsamples scale_dtype seqlen seed supported_types
    """
)
"""Keys that say how a checkpoint was made."""

SCHEME = words(
    """
    bits group_size sym data_type act_bits act_data_type act_group_size act_sym act_dynamic super_bits super_group_size
    static_kv_dtype static_attention_dtype rotation_config
    """
)
"""Keys that say what codes and scales mean, of all layers or in an entry of `extra_config`."""

SPECIAL = set(r"*+?^$()[]{}|\\")
"""Characters that make a key of `extra_config` a regular expression; a dot alone does not."""


@dataclass(frozen=True, slots=True)
class GptqPacked:
    """Symmetric INT8 for weights alone.

    Attributes:
        group: inputs that share a scale; None for one scale an output.
    """

    group: int | None
    inputs: Inputs = Inputs.PLAIN

    @property
    def endings(self) -> tuple[str, ...]:
        """See `Layout`."""
        return ".qweight", ".qzeros", ".scales"

    def tensors(self, shape: tuple[int, int]) -> dict[str, Expected]:
        """`qweight` int32 [in / 4, out], `qzeros` int32 [groups, out / 4], `scales` [groups, out]."""
        rows, columns = shape
        if rows % WORD or columns % WORD:
            raise ValueError(f"has {rows} outputs and {columns} inputs, and both are stored {WORD} in a word")
        groups = 1 if self.group is None else -(-columns // self.group)
        return {
            ".qweight": Expected(("I32",), (columns // WORD, rows)),
            ".qzeros": Expected(("I32",), (groups, rows // WORD)),
            ".scales": Expected(FLOATS, (groups, rows)),
        }

    def shape(self, stored: Stored) -> tuple[int, int]:
        """See `Layout`."""
        count, rows = shape_of(stored[".qweight"])
        return rows, count * WORD

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Groups begin at words; zeros, of four outputs a word, are all alike."""
        return 1, self.group or WORD

    def read(self, stored: Stored, piece: Slice) -> QuantisedWeight:
        """See `Layout.read`."""
        zeros = unpacked(stored[".qzeros"][:])
        if bool((zeros != ZERO).any()):
            other = int(zeros[zeros != ZERO][0]) + 1
            raise ValueError(f"has a zero point of {other} in qzeros, and a symmetric matrix has {ZERO + 1}")
        shape = self.shape(stored)
        across = replace(piece, dim=1 - piece.dim)
        stops = (piece.start, piece.stop) if piece.dim == 0 else (piece.start // WORD, -(-piece.stop // WORD))
        packed = unpacked(cut(stored[".qweight"], across.dim, *stops))  # [in / 4, out, 4]
        codes = signed(packed.permute(1, 0, 2).reshape(packed.shape[1], -1).contiguous())
        columns = self.group or shape[1]
        scales = cut_scales(stored[".scales"], across, (1, columns)[piece.dim]).t().contiguous()
        width = shape[1] if piece.dim == 0 else piece.stop - piece.start
        return QuantisedWeight(codes.narrow(1, 0, width), scales, (1, columns), self.inputs)


@dataclass(frozen=True, slots=True)
class Override:
    """An entry of `extra_config`."""

    matches: Callable[[str], bool]
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class AutoRound:
    """What all layers of the quantised blocks are, but for those with an entry of their own."""

    default: Layout | None
    blocks: tuple[str, ...]
    named: tuple[Override, ...]
    regular: tuple[Override, ...]

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> AutoRound:
        """Read `quantization_config`.

        Raises:
            ConfigError: naming a key whose value is not served, or that is not known.
        """
        fields = Fields(raw)
        fields.one_of("quant_method", (METHOD,))
        fields.one_of("packing_format", PACKING, PACKING[0], "Export the checkpoint as auto_round:auto_gptq")
        fields.one_of("backend", ("auto",), "auto")
        names = fields.take("block_name_to_quantize", fields.take("to_quant_block_names", "layers"))
        blocks = names.split(",") if isinstance(names, str) else names
        if not isinstance(blocks, list) or not all(isinstance(name, str) for name in blocks):
            raise fields.error("block_name_to_quantize", names, "must name blocks of layers", "Correct config.json")
        extra = fields.take("extra_config", {})
        if not isinstance(extra, Mapping):
            raise fields.error("extra_config", extra, "must be an object", "Correct config.json")
        common = {name: fields.take(name) for name in SCHEME}
        fields.finish(NOTES)
        if common["bits"] is None:
            raise fields.error("bits", None, "is missing", "Use the config.json published with the checkpoint")
        default = _layout(Fields(common))
        named, regular = [], []
        for key, entry in extra.items():
            path = f"{ROOT}.extra_config.{key}"
            layout = _layout(Fields({**common, **Fields(entry, path).all(SCHEME)}, path))
            if SPECIAL & set(key):
                regular.append(Override(expression(path, key).search, layout))
            else:
                named.append(Override(_is(key), layout))
        return cls(
            default, tuple(canonical_name(name.strip()) or "visual." for name in blocks), tuple(named), tuple(regular)
        )

    @property
    def name(self) -> str:
        """For people."""
        return f"{METHOD}: INT8 weights"

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
        for override in (*self.named, *self.regular):
            if means(override.matches, layer):
                return override.layout
        return self.default if any(layer.startswith(f"{block}.") for block in self.blocks) else None


def _layout(fields: Fields) -> Layout | None:
    bits = fields.one_of("bits", (8, PLAIN_BITS, 32), remedy="Use an INT8 checkpoint")
    size = fields.take("group_size", -1)
    if bits >= PLAIN_BITS:
        return None
    remedy = "Use an INT8 checkpoint with symmetric groups or channels"
    fields.one_of("data_type", ("int", "int_sym"), "int", remedy)
    fields.one_of("sym", (True,), True, remedy)
    fields.one_of("act_bits", (PLAIN_BITS, 32), PLAIN_BITS, "Use a checkpoint for weights alone")
    if size not in (-1, 0) and (type(size) is not int or size < 0 or size % WORD):
        problem = f"must be -1, or a multiple of {WORD}: codes are stored {WORD} in a word"
        raise fields.error("group_size", size, problem, "Use a checkpoint with groups of 128")
    fields.finish({"act_data_type", "act_group_size", "act_sym", "act_dynamic"})
    return GptqPacked(size if size > 0 else None)


def _is(key: str) -> Callable[[str], bool]:
    """Whether a name is this one, with any prefix."""
    name = canonical_name(key)
    return lambda layer: canonical_name(layer) == name
