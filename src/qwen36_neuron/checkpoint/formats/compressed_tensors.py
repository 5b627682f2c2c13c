"""The configuration of compressed-tensors checkpoints, which llm-compressor writes.

https://github.com/vllm-project/compressed-tensors: `quantization/quant_config.py`, `quant_scheme.py`, `quant_args.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...errors import ConfigError
from .fields import ROOT, Fields
from .int_quantized import IntQuantized
from .layers import Pattern
from .layout import Layout
from .pack_quantized import WORD, PackQuantized
from .weight import Inputs

METHOD = "compressed-tensors"
PACK, INT = "pack-quantized", "int-quantized"
KV_ALONE = ("dense", "naive-quantized", "float-quantized")
"""Formats of checkpoints in which nothing is quantised but keys and values."""

CLASSES = {"Linear": lambda layer: layer != "embed_tokens", "Embedding": lambda layer: layer == "embed_tokens"}
"""Classes of modules that a group may target, and whether a matrix of the model is in one of them."""

NOTES = frozenset({"global_compression_ratio", "version", "run_compressed"})
"""Keys that say how a checkpoint was made. vLLM says the same of `run_compressed`: it is not used any more."""

HOW_CALIBRATED = frozenset({"observer", "observer_kwargs", "scale_dtype", "zp_dtype"})
"""Keys of a scheme that say how scales were found; their type is that of the stored tensor, and there are no zeros."""

ORDERS = ("weight", "static", False)
"""Values of `actorder` that leave columns in place. With `group` they are permuted, and `weight_g_idx` says how."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers and their layout."""

    classes: tuple[str, ...]
    targets: tuple[Pattern, ...]
    layout: Layout

    def wants(self, layer: str) -> bool:
        """Whether a layer is a target."""
        return any(CLASSES[name](layer) for name in self.classes) or any(each.means(layer) for each in self.targets)


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """Groups of layers, layers that are in none whatever their class, and whether keys and values are FP8."""

    groups: tuple[Group, ...]
    ignored_classes: tuple[str, ...]
    ignored: tuple[Pattern, ...]
    fp8_kv: bool = False

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> CompressedTensors:
        """Read `quantization_config`.

        Raises:
            ConfigError: naming a key whose value is not served, or that is not known.
        """
        fields = Fields(raw)
        fields.one_of("quant_method", (METHOD,))
        fp8_kv = _keys_and_values(fields.take("kv_cache_scheme"), f"{ROOT}.kv_cache_scheme")
        groups = fields.take("config_groups", {})
        alone = fp8_kv and groups == {}
        formats = (PACK, INT, *KV_ALONE) if alone else (PACK, INT)
        given = fields.one_of("format", formats, remedy="Use a W8A16 or W8A8 checkpoint of INT8, or a bf16 one")
        finished = ("compressed", "frozen") if alone else ("compressed",)
        fields.one_of("quantization_status", finished, "compressed", "Save the checkpoint compressed")
        for name in ("sparsity_config", "transform_config"):
            if (found := fields.take(name, {})) not in ({}, {"format": "dense"}):
                raise fields.error(name, found, "is not served", "Use a checkpoint without")
        entries = fields.names("ignore")
        if not isinstance(groups, Mapping) or not (groups or alone):
            raise fields.error("config_groups", groups, "must be an object of groups", "Correct config.json")
        fields.finish(NOTES)
        path = f"{ROOT}.config_groups"
        return cls(
            tuple(_group(Fields(group, f"{path}.{name}"), given) for name, group in groups.items()),
            tuple(entry for entry in entries if entry in CLASSES),
            tuple(Pattern.of(f"{ROOT}.ignore", entry) for entry in entries if entry not in CLASSES),
            fp8_kv,
        )

    @property
    def name(self) -> str:
        """For people."""
        kinds = {type(group.layout): group.layout for group in self.groups}
        words = {PackQuantized: "INT8 weights", IntQuantized: "INT8 weights and inputs"}
        return f"{METHOD}: {', '.join([*(words[kind] for kind in kinds), *(['FP8 keys and values'] * self.fp8_kv)])}"

    @property
    def inputs(self) -> frozenset[Inputs]:
        """See `Format`."""
        return frozenset(group.layout.inputs for group in self.groups)

    def layout(self, layer: str) -> Layout | None:
        """See `Format`. Of groups that a layer is in, one that names it goes before one of its class."""
        if any(CLASSES[name](layer) for name in self.ignored_classes) or any(
            each.means(layer) for each in self.ignored
        ):
            return None
        named = (group.layout for group in self.groups if any(each.means(layer) for each in group.targets))
        found = next(named, None) or next((group.layout for group in self.groups if group.wants(layer)), None)
        if layer == "embed_tokens" and isinstance(found, IntQuantized):
            return replace(found, inputs=Inputs.PLAIN)  # its inputs are tokens
        return found


def _keys_and_values(raw: object, path: str) -> bool:
    """Whether keys and values are FP8, with stored scales."""
    if raw is None:
        return False
    fields = Fields(raw, path)
    remedy = "Set kv_cache_scheme to null in config.json: KV is then held in the model's number format"
    for name, served in (("num_bits", 8), ("type", "float"), ("symmetric", True), ("dynamic", False)):
        found = fields.take(name, {"symmetric": True, "dynamic": False}.get(name))
        if found != served:
            raise fields.error(name, found, f"is not served: {served!r} is", remedy)
    fields.one_of("strategy", ("tensor", "attn_head"), "tensor", remedy)
    fields.finish({*HOW_CALIBRATED, "group_size", "block_structure", "actorder"})
    return True


def _group(fields: Fields, given: str) -> Group:
    kind = fields.one_of("format", (PACK, INT), given)
    targets = fields.names("targets")
    if (outputs := fields.take("output_activations")) is not None:
        raise fields.error("output_activations", outputs, "is not served", "Use a checkpoint without")
    inputs = _inputs(fields.take("input_activations"), f"{fields.path}.input_activations")
    weights = fields.take("weights")
    if weights is None:
        raise fields.error("weights", None, "is missing: a group without quantised weights", "Correct config.json")
    group = _weights(Fields(weights, f"{fields.path}.weights"))
    if kind == PACK and inputs is not Inputs.PLAIN:
        raise fields.error("format", kind, "has no rounded inputs", "Correct config.json")
    fields.finish()
    known = tuple(entry for entry in targets if entry in CLASSES)
    named = tuple(entry for entry in targets if entry not in CLASSES)
    for entry in named:
        if entry.isidentifier() and entry[0].isupper():
            problem = f"is a class of modules that the model's matrices are not of: {', '.join(CLASSES)} are"
            raise fields.error("targets", entry, problem, "Use another checkpoint of the model")
    layout: Layout = PackQuantized(group) if kind == PACK else IntQuantized(group, inputs)
    return Group(known, tuple(Pattern.of(f"{fields.path}.targets", entry) for entry in named), layout)


def _weights(fields: Fields) -> int | None:
    """The inputs that share a scale, None for a scale an output."""
    remedy = "Use an INT8 checkpoint with symmetric groups or channels"
    fields.one_of("num_bits", (8,), 8, remedy)
    fields.one_of("type", ("int",), "int", remedy)
    fields.one_of("symmetric", (True,), True, remedy)
    fields.one_of("dynamic", (False,), False, remedy)
    fields.one_of("actorder", ORDERS, None, "Use a checkpoint whose actorder is weight, static or null")
    size = fields.take("group_size", -1)
    default = "channel" if size == -1 else "group"
    strategy = fields.one_of("strategy", ("group", "channel"), default, remedy)
    fields.finish({*HOW_CALIBRATED, "block_structure"})
    if strategy == "channel":
        if size != -1:
            raise fields.error("group_size", size, "contradicts strategy='channel'", "Correct config.json")
        return None
    if type(size) is not int or size <= 0 or size % WORD:
        problem = f"must be a positive multiple of {WORD}: codes are stored {WORD} in a word"
        raise fields.error("group_size", size, problem, "Use a checkpoint with groups of 128")
    return size


def _inputs(raw: object, path: str) -> Inputs:
    if raw is None:
        return Inputs.PLAIN
    fields = Fields(raw, path)
    remedy = "Use a checkpoint with dynamic symmetric INT8 a token, or one for weights alone"
    for name, value in (
        ("num_bits", 8),
        ("type", "int"),
        ("symmetric", True),
        ("dynamic", True),
        ("strategy", "token"),
    ):
        found = fields.take(name, {"num_bits": 8, "type": "int", "symmetric": True}.get(name))
        if found != value:
            raise ConfigError(f"{path}.{name}", found, f"is not served: {value!r} is", remedy)
    fields.finish({*HOW_CALIBRATED, "group_size", "block_structure", "actorder"})
    return Inputs.INT8_TOKEN
