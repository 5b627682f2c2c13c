"""Matrix products inside a compiled function, of matrices small enough to stay in a core's own cache.

A matrix library is called from outside, one product at a time, and every call hands its work out to the threads and
waits for them. Here a thread computes what it needs next from what it computed last. The inner loop is written as LLVM
instructions: a tile of the result is held in vector registers over the whole depth, which no compiler makes of plain
loops.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .scalar import Array, compiled, i64, zero

WIDE = bool(binding.get_host_cpu_features().get("avx512f"))

LANES = 16 if WIDE else 8
"""fp32 numbers of a vector. Where registers are shorter, LLVM makes a vector of several."""

ROWS, COLUMNS = i64(8 if WIDE else 4), i64(2 * LANES)
"""Numbers of a tile: with a row of B and a number of A it nearly fills the registers, 32 of 512 bits or 16 of 256."""

FULL, LOWER = i64(0), i64(1)
"""What a `product`'s A is."""

PADDING = 16
"""Numbers to add to a row of a matrix.

Rows of a power of two bytes would all lie in the same few sets of the processor's cache.
"""

FLAGS = ("contract", "nsz", "reassoc")
"""Of LLVM's arithmetic: a product and a sum become one instruction where there is one."""


class Vectors:
    """Vectors of LANES numbers, in the function that `builder` writes."""

    def __init__(self, builder: Any) -> None:
        self.builder, self.type = builder, ir.VectorType(ir.FloatType(), LANES)
        self.none = ir.Constant(self.type, [0.0] * LANES)

    def at(self, pointer: Any, offset: Any) -> Any:
        """Where the vector lies that begins `offset` numbers after a pointer."""
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), self.type.as_pointer())

    def load(self, place: Any) -> Any:
        return self.builder.load(place, align=4)

    def load_at(self, pointer: Any, offset: Any) -> Any:
        """The vector that begins `offset` numbers after a pointer."""
        return self.load(self.at(pointer, offset))

    def load_narrow(self, pointer: Any, offset: Any) -> Any:
        """The same of numbers of which only the upper halves of their bits are stored, as in bfloat16."""
        stored = ir.VectorType(ir.IntType(16), LANES)
        place = self.builder.bitcast(self.builder.gep(pointer, [offset]), stored.as_pointer())
        bits = self.builder.zext(self.builder.load(place, align=2), ir.VectorType(ir.IntType(32), LANES))
        upper = self.builder.shl(bits, ir.Constant(bits.type, [16] * LANES))
        return self.builder.bitcast(upper, self.type)

    def load_int8(self, pointer: Any, offset: Any) -> Any:
        """The same of numbers that are stored as int8."""
        wide = ir.VectorType(ir.IntType(32), LANES)
        return self.builder.sitofp(self.builder.sext(self._bytes(pointer, offset), wide), self.type)

    def load_fp8(self, pointer: Any, offset: Any) -> Any:
        """The same of E4M3 numbers, over 2^8: their bits are those of a half with the same fields, less that.

        A processor turns halves into fp32 exactly, those too that are not normal.
        """
        sixteen = ir.VectorType(ir.IntType(16), LANES)
        shifted = self.builder.shl(
            self.builder.sext(self._bytes(pointer, offset), sixteen), ir.Constant(sixteen, [7] * LANES)
        )
        halves = self.builder.and_(shifted, ir.Constant(sixteen, [0xBFFF] * LANES))
        return self.builder.fpext(self.builder.bitcast(halves, ir.VectorType(ir.HalfType(), LANES)), self.type)

    def _bytes(self, pointer: Any, offset: Any) -> Any:
        stored = ir.VectorType(ir.IntType(8), LANES)
        place = self.builder.bitcast(self.builder.gep(pointer, [offset]), stored.as_pointer())
        return self.builder.load(place, align=1)

    def spread(self, number: Any) -> Any:
        """The number in every lane."""
        undefined, lane = ir.Constant(self.type, ir.Undefined), ir.IntType(32)
        first = self.builder.insert_element(undefined, number, ir.Constant(lane, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(lane, LANES), [0] * LANES))

    def add_product(self, x: Any, y: Any, total: Any, flags: tuple[str, ...] = FLAGS) -> Any:
        return self.builder.fadd(self.builder.fmul(x, y, flags=flags), total, flags=flags)


class Part(NamedTuple):
    """A matrix in flat contiguous fp32 memory.

    Attributes:
        at: index of its first number; row: numbers from a row to the next; step: from a column to the next.
    """

    memory: Array
    at: int
    row: int
    step: int


@intrinsic
def _tile(_context: Any, a: Any, b: Any, depth: Any, scales: Any, first: Any, keep: Any, c: Any) -> Any:
    """C = keep C + diag(scales) A B of the ROWS x COLUMNS numbers that c, a `Part`, begins with.

    A is [ROWS, depth] at part a and B [depth, COLUMNS] at part b, whose step, like c's, is 1; the scale of the first
    row is number `first` of the array. If `keep` is 0, C is not read.
    """
    signature = types.void(a, b, types.intp, scales, types.intp, types.float32, c)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, depth, scales, first, keep, c = arguments
        a_type, b_type, _, scales_type, _, _, c_type = signature.args
        vectors, integer = Vectors(builder), ir.IntType(64)

        def pointer(array_type: Any, array: Any, at: Any) -> Any:
            return builder.gep(context.make_array(array_type)(context, builder, array).data, [at])

        def place(part_type: Any, part: Any) -> tuple[Any, Any, Any]:
            """Of a part: a pointer to its first number, its row and its step."""
            memory, at, row, step = cgutils.unpack_tuple(builder, part)
            return pointer(part_type.types[0], memory, at), row, step

        def rows(start: Any, apart: Any) -> list[Any]:
            return [builder.gep(start, [builder.mul(apart, ir.Constant(integer, i))]) for i in range(ROWS)]

        (a_start, a_row, a_step), (b_start, b_row, _), (c_start, c_row, _) = (
            place(kind, part) for kind, part in ((a_type, a), (b_type, b), (c_type, c))
        )
        halves = [ir.Constant(integer, 0), ir.Constant(integer, LANES)]
        factors = rows(a_start, a_row)
        sums = [[cgutils.alloca_once_value(builder, vectors.none) for _ in halves] for _ in range(ROWS)]
        with cgutils.for_range(builder, depth, intp=integer) as loop:
            row = builder.gep(b_start, [builder.mul(loop.index, b_row)])
            parts = [vectors.load(vectors.at(row, half)) for half in halves]
            for start, totals in zip(factors, sums, strict=True):
                factor = vectors.spread(builder.load(builder.gep(start, [builder.mul(loop.index, a_step)])))
                for part, total in zip(parts, totals, strict=True):
                    builder.store(vectors.add_product(factor, part, builder.load(total)), total)

        old, kept = cgutils.alloca_once_value(builder, vectors.none), vectors.spread(keep)
        reads = builder.fcmp_unordered("!=", keep, ir.Constant(ir.FloatType(), 0.0))
        scale = rows(pointer(scales_type, scales, first), ir.Constant(integer, 1))
        for start, row, totals in zip(scale, rows(c_start, c_row), sums, strict=True):
            factor = vectors.spread(builder.load(start))
            for half, total in zip(halves, totals, strict=True):
                target = vectors.at(row, half)
                with builder.if_then(reads):
                    builder.store(builder.fmul(kept, vectors.load(target), flags=FLAGS), old)
                builder.store(vectors.add_product(factor, builder.load(total), builder.load(old)), target, align=4)
        return context.get_dummy_value()

    return signature, generate


@compiled()
def whole(x: Array) -> Part:
    """A contiguous matrix [rows, width]."""
    return Part(x.reshape(x.size), 0, x.shape[1], 1)


@compiled()
def transpose(x: Array) -> Part:
    """A contiguous matrix, transposed."""
    return Part(x.reshape(x.size), 0, 1, x.shape[1])


@compiled()
def below(x: Part, rows: int, columns: int) -> Part:
    """What lies so many rows below and columns right of the first number."""
    return Part(x.memory, x.at + rows * x.row + columns * x.step, x.row, x.step)


@compiled(inline=False)
def product(
    a: Part, b: Part, depth: int, scales: Array, keep: float, c: Part, rows: int, columns: int, shape: int
) -> None:
    """C = keep C + diag(scales) A B; if `keep` is 0, C is not read.

    Args:
        a: [rows, depth]; b: [depth, columns] and c: [rows, columns], both of step 1; scales: [rows].
        shape: FULL, or LOWER for a lower triangular A, which must be zero above its diagonal as far as a tile reaches,
            ROWS - 1 numbers.
    """
    whole_rows, whole_columns = rows - rows % ROWS, columns - columns % COLUMNS
    for j in range(0, whole_columns, COLUMNS):
        for i in range(0, whole_rows, ROWS):
            deep = min(depth, i + ROWS) if shape == LOWER else depth
            _tile(below(a, i, 0), below(b, 0, j), deep, scales, i, keep, below(c, i, j))
    for i in range(rows):  # what is left at the right and at the bottom
        for j in range(whole_columns if i < whole_rows else 0, columns):
            total = zero
            for k in range(min(depth, i + 1) if shape == LOWER else depth):
                total += a.memory[a.at + i * a.row + k * a.step] * b.memory[b.at + k * b.row + j]
            at = c.at + i * c.row + j
            c.memory[at] = scales[i] * total + (keep * c.memory[at] if keep != zero else zero)
