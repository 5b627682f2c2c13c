"""What a format is to the loader: for each layer by name, how its matrix is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..sharding import Slice
from .weight import Inputs, QuantisedWeight

FLOATS = ("F32", "BF16", "F16")
"""What scales are stored in, by the file format's names."""

Stored = Mapping[str, Any]
"""The tensors of one layer as safetensors' slices, by what their names have after the layer's."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that a layer must have: one of these types, and this shape."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{' or '.join(self.dtypes)} {self.shape}"


class Layout(Protocol):
    """How a matrix [out, in] is stored."""

    @property
    def inputs(self) -> Inputs:
        """What becomes of the matrix's inputs."""
        ...

    @property
    def endings(self) -> tuple[str, ...]:
        """What the names of a matrix's tensors have after its layer's."""
        ...

    def tensors(self, shape: tuple[int, int]) -> dict[str, Expected]:
        """The tensors of a matrix of this shape, by their endings.

        Raises:
            ValueError: it cannot be stored so; says why.
        """
        ...

    def shape(self, stored: Stored) -> tuple[int, int]:
        """Of the matrix [out, in], from what is stored of it."""
        ...

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that only come together: a part that is read must begin at a multiple."""
        ...

    def read(self, stored: Stored, piece: Slice) -> QuantisedWeight:
        """The rows or columns of a piece that begins, and ends unless the matrix does, at multiples of `steps`.

        Raises:
            ValueError: what is stored is not of the format; says what.
        """
        ...


class Format(Protocol):
    """What a checkpoint's configuration says of its layers."""

    @property
    def name(self) -> str:
        """For people, in a few words."""
        ...

    def layout(self, layer: str) -> Layout | None:
        """How the matrix of a layer of this canonical name is stored; None if it is not quantised."""
        ...

    @property
    def inputs(self) -> frozenset[Inputs]:
        """What becomes of the inputs of quantised layers."""
        ...

    @property
    def fp8_kv(self) -> bool:
        """Whether keys and values are to be FP8, with scales that the checkpoint has."""
        ...


def shape_of(tensor: Any) -> tuple[int, int]:
    """Of a stored matrix."""
    rows, columns = tensor.get_shape()
    return rows, columns


def cut(tensor: Any, dim: int, start: int, stop: int) -> torch.Tensor:
    """Some rows or columns of a stored tensor."""
    index: Any = slice(start, stop)
    piece: torch.Tensor = tensor[index if dim == 0 else (slice(None), index)]
    return piece


def cut_scales(scales: Any, piece: Slice, size: int) -> torch.Tensor:
    """The scales of the blocks of `size` rows or columns that a piece touches; all where there is but one.

    Raises:
        ValueError: one is infinite or not a number.
    """
    one = scales.get_shape()[piece.dim] == 1
    found: torch.Tensor = scales[:] if one else cut(scales, piece.dim, piece.start // size, -(-piece.stop // size))
    if not bool(torch.isfinite(found.float()).all()):
        raise ValueError("has a scale that is infinite or not a number")
    return found


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """The four bytes of each int32, lowest first, as a last dimension: uint8 [..., 4]."""
    return words.contiguous().view(torch.uint8).unflatten(-1, (-1, 4))


def signed(codes: torch.Tensor) -> torch.Tensor:
    """int8 of bytes that hold a number plus 128."""
    return (codes ^ 0x80).view(torch.int8)
