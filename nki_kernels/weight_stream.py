"""Weights of a decode step, read once from HBM in pieces ahead of their use, and multiplied as they land.

What is stationary. A load takes TensorE 128 cycles however few columns it has, of which 80 show (32 to 128), so with
few rows the choice is by what it costs to pass a tile of 128 x 128 weights, in modelled cycles of 2.4 GHz, to which the
chip's power limit adds 15 % (it adds nothing to the issue of 17 cycles):

==============================  =====================================  ====================
stationary                      cycles a tile                          weights a ns, a core
==============================  =====================================  ====================
weights, rows move              load 80, rows (64 at least), issue 17  227 (172 to 334)
rows, weights move              (load 80, 512 columns, issue 17) / 4   225 (209 to 244)
rows in turn on column groups   (load 80, 0.72 of 512 and issue) / 4   298 (270 to 333)
HBM brings, 305 bytes a ns                                             152 bfloat16, 305 FP8
==============================  =====================================  ====================

All feed bfloat16. FP8 needs the third: a product of up to 32 rows takes a quarter of the array's columns, one of up to
64 a half, and the next begins on another group after 0.72 of its time. So rows are stationary up to 64 of them, and
their number changes nothing; the first would take longer from 64 rows on, as its columns grow, and the second is what
remains of the third above 64. `double_row` would halve the feed of FP8 and wants the rows in FP8 too, 3 bits of
fraction for activations, where HBM would bind all the same.

Functions are called inside kernels and compile into them.
"""

from dataclasses import dataclass

import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf, to_power

PIECE_BYTES = 8192
"""Bytes a partition of a piece, about: one transfer of long runs; small enough that the first is there soon."""
SLOTS = 12
"""Pieces in flight: what HBM brings while the engines are busy with what lies between products."""


@dataclass
class WeightStream(nl.NKIObject):
    """Pieces of packed weights in the order of their use, through a ring of slots.

    Attributes:
        pieces: (tensor [cores, 128, n] of HBM, first element of a partition, lines, elements a line), in order.
        slots: SBUF tiles that hold a piece each.
        core: Whose part of the tensors.
        until: How many of the pieces may be asked for yet.
        fetched, used: Pieces that have been asked for, and handed out.
    """

    pieces: tuple
    slots: tuple
    core: int
    until: int
    fetched: int = 0
    used: int = 0

    def fetch(self, most: int) -> None:
        """Ask for pieces until `most` are on their way or here."""
        while self.fetched < self.until and self.fetched - self.used < most:
            tensor, first, lines, columns = self.pieces[self.fetched]
            size, row = lines * columns, tensor.shape[2]
            source = tensor.ap(pattern=[[row, TILE], [1, size]], offset=self.core * TILE * row + first)
            nisa.dma_copy(dst=self.slots[self.fetched % SLOTS][:, 0:size], src=source)
            self.fetched = self.fetched + 1

    def take(self) -> nl.ndarray:
        """The next piece [128, lines, columns], as numbers that multiply; the one before is done with."""
        self.fetch(SLOTS)
        _, _, lines, columns = self.pieces[self.used]
        tile = self.slots[self.used % SLOTS][:, 0 : lines * columns].reshape((TILE, lines, columns))
        self.used = self.used + 1
        return tile.view(nl.float8_e4m3) if tile.dtype == nl.uint8 else tile


def open_stream(pieces: list, dtype: nl.dtype, core: int) -> WeightStream:
    """A stream over pieces of one type."""
    largest = 0
    for piece in pieces:
        largest = max(largest, piece[2] * piece[3])
    slots = []
    for _ in range(SLOTS):
        slots.append(sbuf(dtype, (TILE, largest)))
    return WeightStream(pieces=tuple(pieces), slots=tuple(slots), core=core, until=len(pieces))


def cut(tensor: nl.ndarray, first: int, lines: int, columns: int, itemsize: int) -> list:
    """Pieces, as equal as will do, of `lines` consecutive lines from element `first` of a partition on."""
    most, out = max(1, PIECE_BYTES // (columns * itemsize)), []
    count = (lines + most - 1) // most
    for piece in range(count):
        begin, end = piece * lines // count, (piece + 1) * lines // count
        out.append((tensor, first + begin * columns, end - begin, columns))
    return out


def group_width(rows: int) -> int:
    """Columns of the array that a product of `rows` stationary rows takes."""
    assert rows <= 64, f"{rows} rows, at most 64: more are a prefill's"
    return 32 if rows <= 32 else 64


def columns_of(width: int) -> list:
    """(first, columns) of the chunks of a line that are a product each."""
    out = []
    for first in range(0, width, BANK_COLUMNS):
        out.append((first, min(BANK_COLUMNS, width - first)))
    return out


def multiply(
    banks: tuple, chunk: int, columns: tuple, rows: nl.ndarray, count: int, weights: nl.ndarray, group: int, first: bool
) -> None:
    """Add rows [k, count]^T @ weights [k, columns] to a chunk's sums, in its group's partitions of its bank.

    Args:
        columns: (first, columns) of the chunk in the line of weights [k, 1, n].
        first: Nothing has been added before.
    """
    groups = TILE // group
    place = (chunk % groups) * group
    # [k, r] x [k, c] -> [r, c]
    nisa.nc_matmul(
        dst=banks[chunk // groups][place : place + count, 0 : columns[1]], stationary=rows,
        moving=weights[:, :, columns[0] : columns[0] + columns[1]], tile_position=(0, place), tile_size=(TILE, group),
        accumulate=not first,
    )  # fmt: skip


def normed_lines(x: nl.ndarray, gamma: nl.ndarray, group: int, bank: nl.ndarray, eps: float) -> nl.ndarray:
    """The RMS norm of rows as stationaries: bfloat16 [128, lines, group], zero beyond the rows.

    Args:
        x: [rows, hidden] of HBM. Hidden channel p * lines + n lies on partition p of line n, so a row comes in runs of
            `lines` channels.
        gamma: SBUF fp32 [128, lines], the full factor.
        bank: PSUM fp32 [128, 512], overwritten.
    """
    rows, hidden = x.shape
    lines = hidden // TILE
    data = sbuf(x.dtype, (TILE, rows, lines))
    nisa.dma_copy(dst=data, src=x.ap(pattern=[[lines, TILE], [hidden, rows], [1, lines]]))
    return norm_lines(data, gamma, group, bank, eps)


def norm_lines(data: nl.ndarray, gamma: nl.ndarray, group: int, bank: nl.ndarray, eps: float) -> nl.ndarray:
    """The same of rows in SBUF, [128, rows, lines], whichever channel lies where."""
    rows, lines = data.shape[1], data.shape[2]
    hidden = TILE * lines
    f32, vector = nl.float32, nisa.engine.vector
    out = sbuf(nl.bfloat16, (TILE, lines, group))
    nisa.memset(dst=out, value=0.0, engine=nisa.engine.gpsimd)
    ones = sbuf(f32, (TILE, TILE))
    nisa.memset(dst=ones, value=1.0, engine=nisa.engine.gpsimd)
    squares, sums, root = sbuf(f32, (TILE, rows, lines)), sbuf(f32, (TILE, rows)), sbuf(f32, (TILE, rows))
    nisa.tensor_tensor(dst=squares, data1=data, data2=data, op=nl.multiply, engine=vector)
    nisa.tensor_reduce(dst=sums, op=nl.add, data=squares, axis=2)
    # Sums over partitions, on every partition: [p, p'] x [p, r] -> [p', r]
    total = bank[:, 0:rows]
    nisa.nc_matmul(dst=total, stationary=ones, moving=sums, is_stationary_onezero=True, accumulate=False)
    scaled = squares
    every_row = gamma.ap(pattern=[[lines, TILE], [0, rows], [1, lines]])
    nisa.tensor_tensor(dst=scaled, data1=data, data2=every_row, op=nl.multiply, engine=vector)
    nisa.tensor_scalar(dst=root, data=total, op0=nl.multiply, operand0=1.0 / hidden, engine=vector)
    to_power(root, root, eps, -0.5)
    nisa.tensor_tensor(
        dst=out.ap(pattern=[[lines * group, TILE], [1, rows], [group, lines]]), data1=scaled,
        data2=root.ap(pattern=[[rows, TILE], [1, rows], [0, lines]]), op=nl.multiply, engine=vector,
    )  # fmt: skip
    return out
