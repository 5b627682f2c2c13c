"""Which tensors of a checkpoint are parts of matrices in INT8 codes."""

from __future__ import annotations

from dataclasses import dataclass

from .files import CheckpointFiles
from .formats.auto_round import GptqPacked
from .formats.int_quantized import IntQuantized
from .formats.pack_quantized import PackQuantized

INT8 = PackQuantized | GptqPacked | IntQuantized
ENDINGS = (".weight_packed", ".weight_scale", ".weight_shape", ".qweight", ".qzeros", ".scales", ".weight")


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor that is a part of a matrix.

    Attributes:
        matrix: canonical name of the matrix; stored: the same as this checkpoint would spell it.
        shape: of the matrix [out, in].
        codes: whether the tensor holds the codes, and not what they mean.
    """

    matrix: str
    stored: str
    shape: tuple[int, int]
    codes: bool


def coded_tensors(files: CheckpointFiles) -> dict[str, Coded]:
    """Every part of every matrix in INT8, by its name in the files.

    Raises:
        CheckpointError: a matrix lacks a part, or parts do not fit one another.
    """
    found: dict[str, Coded] = {}
    for name, stored in files.stored.items():
        for ending in ENDINGS:
            matrix = name.removesuffix(ending) + ".weight"
            layout = files.layout(matrix) if name.endswith(ending) else None
            if isinstance(layout, INT8) and ending in layout.endings:
                plain = stored.removesuffix(ending) + ".weight"
                found[stored] = Coded(matrix, plain, files.quantised_shape(matrix), ending == layout.endings[0])
    return found
