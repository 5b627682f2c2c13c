"""The two layouts that mixtures' experts are published in: a tensor for all of them, or three matrices each.

In one tensor for all, `mlp.experts.gate_up_proj` [experts, 2 inner, hidden] with gates before ups and
`mlp.experts.down_proj` [experts, hidden, inner]; in matrices, `mlp.experts.3.gate_proj.weight` [inner, hidden] and so
on, as quantised checkpoints have them. The canonical names, which the rest of the package asks by, are the latter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .names import MTP_PREFIX, Shapes

_NAME = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_OWN = re.compile(r"(.+\.mlp\.experts)\.\d+\..+")
_JOINED = re.compile(r"(.+\.mlp\.experts)\.(?:gate_up|down)_proj")
_HALF = {"gate": 0, "up": 1}


@dataclass(frozen=True, slots=True)
class Place:
    """Where an expert's matrix is in a tensor for all experts: all of its rows, or half of them.

    Attributes:
        name: of that tensor.
        half: 0 for gates, 1 for ups, None for all rows.
    """

    name: str
    expert: int
    half: int | None

    def matrix(self, joined: Any) -> Any:
        """[out, in] of the tensor, or of a safetensors slice of it, of which only these bytes are read."""
        rows = _shape(joined)[1] // (1 if self.half is None else 2)
        return self.rows(joined, 0, rows)

    def rows(self, joined: Any, start: int, stop: int) -> Any:
        """Some rows of the matrix, likewise."""
        first = 0 if self.half is None else self.half * (_shape(joined)[1] // 2)
        return joined[self.expert, first + start : first + stop]


def place(name: str) -> Place | None:
    """Where the tensor of a canonical name is in a tensor for all experts; None if it is not an expert's matrix."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    at, expert, part = found.groups()
    return Place(f"{at}.{'down' if part == 'down' else 'gate_up'}_proj", int(expert), _HALF.get(part))


def matrix(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The tensor of a canonical name, in whichever layout it is there. Raises KeyError if it is in neither."""
    where = None if name in tensors else place(name)
    if where is None:
        return tensors[name]
    held: torch.Tensor = where.matrix(tensors[where.name])
    return held


def joined(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors with all experts' matrices in tensors for all of them, which is how transformers reads them."""
    rest, found = {}, dict[str, dict[tuple[int, int], torch.Tensor]]()
    for name, tensor in tensors.items():
        where = place(name)
        if where is None:
            rest[name] = tensor
        else:
            found.setdefault(where.name, {})[where.expert, where.half or 0] = tensor
    for name, parts in found.items():
        count = 1 + max(expert for expert, _ in parts)
        halves = range(len(parts) // count)
        rest[name] = torch.stack([torch.cat([parts[expert, half] for half in halves]) for expert in range(count)])
    return rest


def members(name: str, shape: tuple[int, ...]) -> list[str]:
    """The names that the matrices in a tensor for all experts have of their own; none for any other tensor."""
    at = _JOINED.fullmatch(name)
    if at is None:
        return []
    kinds = ("down",) if name.endswith("down_proj") else ("gate", "up")
    return [f"{at[1]}.{expert}.{kind}_proj.weight" for expert in range(shape[0]) for kind in kinds]


def apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors with a matrix of its own for each expert's gates, ups and downs."""
    found = {}
    for name, tensor in tensors.items():
        names = members(name, tuple(tensor.shape))
        if not names:
            found[name] = tensor
        for own in names:
            where = place(own)
            assert where is not None
            found[own] = where.matrix(tensor).contiguous()
    return found


def as_held(needed: Shapes, held: Collection[str]) -> Shapes:
    """What is needed, with experts in one tensor where a checkpoint has them so, or has no experts at all.

    Args:
        needed: by canonical name.
        held: canonical names of the checkpoint's tensors.
    Raises:
        ValueError: a layer has experts in both layouts, or some layers in one and some in the other. The draft layer
            may differ from the others: it is often copied as it was.
    """
    one, each = (_layers(held, pattern) for pattern in (_JOINED, _OWN))
    if both := sorted(one & each):
        raise ValueError(_mixed(held, both[0], both[0]))
    text = [sorted(at for at in found if not at.startswith(MTP_PREFIX)) for found in (one, each)]
    if text[0] and text[1]:
        raise ValueError(_mixed(held, text[0][0], text[1][0]))
    shapes: Shapes = {}
    for name, shape in needed.items():
        where = place(name)
        at = "" if where is None else where.name.rpartition(".")[0]
        if where is None or at in each or (text[1] and not at.startswith(MTP_PREFIX)):
            shapes[name] = shape
            continue
        rows = shape[0] * (1 if where.half is None else 2)
        shapes[where.name] = (max(where.expert + 1, shapes.get(where.name, (0,))[0]), rows, shape[1])
    return shapes


def _layers(held: Iterable[str], pattern: re.Pattern[str]) -> set[str]:
    return {found[1] for name in held if (found := pattern.fullmatch(name))}


def _mixed(held: Iterable[str], one: str, each: str) -> str:
    names = sorted(held)
    first = next(name for name in names if (found := _JOINED.fullmatch(name)) and found[1] == one)
    other = next(name for name in names if (found := _OWN.fullmatch(name)) and found[1] == each)
    return f"has experts in one tensor ({first}) and in matrices of their own ({other})"


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape if isinstance(tensor, torch.Tensor) else tensor.get_shape())
