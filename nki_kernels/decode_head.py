"""A decode step's head on one rank: norm, logits of its part of the vocabulary, and its most likely tokens."""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from .decode_head_plan import RUN, TOGETHER, runs_of_chunks
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf
from .weight_stream import cut, group_width, multiply, normed_lines, open_stream

BANKS = 4
"""Of PSUM, in turn: a bank is searched while others are filled."""
EIGHT = 8
"""Values that one search finds."""
LEAST = -3.0e38
"""Less than any logit."""


@dataclass
class _Head(nl.NKIObject):
    """What the phases of the kernel share.

    Attributes:
        rows, group: Rows, and the columns of the array that a product of them takes.
        runs: Runs of each chunk of this core's tokens. own, core: How many those are, and whose.
        kept: Candidates of a chunk.
        values, ids: fp32 [128, banks, kept] each, of a bank's chunks on their groups' partitions.
        first_of: fp32 [128, 1], RUN times the number of a partition's chunk in its bank.
    """

    rows: int
    group: int
    runs: list
    own: int
    core: int
    kept: int
    values: nl.ndarray
    ids: nl.ndarray
    first_of: nl.ndarray


@nki.jit
def decode_head(
    x: nl.ndarray, gamma: nl.ndarray, weight: nl.ndarray, scale: nl.ndarray = None, rounds: int = 2, eps: float = 1e-6
) -> tuple:
    """Logits of a rank's part of the vocabulary, and of each chunk of it the most likely tokens.

    A chunk is up to 512 tokens of all over the part, and is searched as it leaves PSUM. A token that is not among those
    found is at most as likely as the least of its chunk's: from the `bounds` follows how many of all candidates, in
    descending order, are surely the most likely ones.

    Dimensions:
        R: rows, at most 64
        H: hidden size, a multiple of 128; L = H / 128 lines
        V: tokens of this rank, a multiple of 8 times the cores, 32 a core at least
        C: physical cores, 1 or 2, of which each has V / C tokens
        M: candidates, 8 * rounds of each chunk
        G: columns of bounds, 4 a core, or 2 above 32 rows

    Args:
        x (nl.ndarray): [R, H], bfloat16 or float32
        gamma (nl.ndarray): [128, L], float32, the norm's full factor
        weight (nl.ndarray): [C, 128, L * V / C], bfloat16, or uint8 float8_e4m3 codes (IEEE-like: largest 240)
        scale (nl.ndarray): [C, V / C], float32, with codes only
        rounds (int): searches for eight candidates each
        eps (float): added to the mean of squares

    Weights and scales in the order of `decode_head_torch`.

    Returns:
        logits (nl.ndarray): [R, V], float32, in order of tokens
        values (nl.ndarray): [R, M], float32, logits of candidates, in descending order within a chunk
        ids (nl.ndarray): [R, M], int32, their tokens, counted from the rank's first
        bounds (nl.ndarray): [R, G * C], float32: no other token's logit is above the largest of them

    Pseudocode:
        logits = ((x * gamma) * rsqrt(mean(x * x) + eps), rounded to bfloat16) weight * scale, in float32
        for each chunk: values, ids = its 8 * rounds largest logits; of equal ones the lower tokens
    """
    rows, hidden = x.shape
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, lines, scaled = group_width(rows), hidden // TILE, weight.dtype == nl.uint8
    own, kept = weight.shape[2] // lines, EIGHT * rounds
    runs, groups = runs_of_chunks(own), TILE // group
    assert weight.shape[0] == cores, f"weights are packed for {weight.shape[0]} cores, launched on {cores}"
    assert own % RUN == 0, f"{own} tokens a core are no multiple of {RUN}"
    assert rounds >= 1, f"{rounds} rounds, must be 1 or more"
    assert kept <= RUN * runs[len(runs) - 1], f"{rounds} rounds find more than a chunk has"
    count = len(runs) // groups
    pieces, first = [], 0
    for block in range(len(runs) // TOGETHER):
        width = RUN * _sum(runs[block * TOGETHER : (block + 1) * TOGETHER])
        pieces.extend(cut(weight, first, lines, width, 1 if scaled else 2))
        first = first + lines * width
    stream = open_stream(pieces, weight.dtype, core)
    banks = []
    for _ in range(BANKS):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    factor, first_of = sbuf(nl.float32, (TILE, lines)), sbuf(nl.float32, (TILE, 1))
    nisa.dma_copy(dst=factor, src=gamma)
    normed = normed_lines(x, factor, group, banks[0], eps)
    stream.fetch(2)
    for n in range(groups):
        nisa.memset(dst=first_of[n * group : (n + 1) * group], value=float(RUN * n), engine=nisa.engine.gpsimd)
    of = _Head(
        rows=rows, group=group, runs=runs, own=own, core=core, kept=kept,
        values=sbuf(nl.float32, (TILE, count, kept)), ids=sbuf(nl.float32, (TILE, count, kept)), first_of=first_of,
    )  # fmt: skip
    logits = nl.ndarray((rows, own * cores), dtype=nl.float32, buffer=nl.shared_hbm)
    values = nl.ndarray((rows, len(runs) * kept * cores), dtype=nl.float32, buffer=nl.shared_hbm)
    ids = nl.ndarray((rows, len(runs) * kept * cores), dtype=nl.int32, buffer=nl.shared_hbm)
    bounds = nl.ndarray((rows, groups * cores), dtype=nl.float32, buffer=nl.shared_hbm)
    at = 0
    for block in range(len(runs) // TOGETHER):
        line, each = 0, TOGETHER // groups
        here = banks[block * each % BANKS : block * each % BANKS + each]
        columns, begin = [], 0
        for chunk in range(TOGETHER):
            columns.append((begin, RUN * runs[block * TOGETHER + chunk]))
            begin = begin + columns[chunk][1]
        while line < lines:
            weights = stream.take()
            for n in range(weights.shape[1]):
                for chunk in range(TOGETHER):
                    multiply(
                        tuple(here), chunk, columns[chunk], normed[:, line : line + 1], group, weights[:, n : n + 1],
                        group, line == 0,
                    )  # fmt: skip
                line = line + 1
        for n in range(each):
            widths = []
            for chunk in range(groups):
                widths.append(columns[n * groups + chunk][1])
            found = _evict(of, here[n], widths, scale, scaled, at)
            _store(of, logits, found, widths, block * TOGETHER + n * groups)
            _search(of, found, block * each + n, rounds)
            at = at + _sum(widths)
    _store_candidates(of, values, ids, bounds, groups)
    return logits, values, ids, bounds


def _sum(numbers: list) -> int:
    out = 0
    for number in numbers:
        out = out + number
    return out


def _evict(of: _Head, bank: nl.ndarray, widths: list, scale: nl.ndarray, scaled: bool, first: int) -> nl.ndarray:
    """A bank's logits, fp32 [128, widest chunk]; scales of its first chunk are at `first` of the core's."""
    wide, group = widths[0], of.group
    out = sbuf(nl.float32, (TILE, wide))
    factors, at = sbuf(nl.float32, (TILE, wide)), first
    for n in range(len(widths)):
        begin, end = n * group, (n + 1) * group
        if widths[n] < wide:
            nisa.memset(dst=out[begin:end, widths[n] : wide], value=LEAST, engine=nisa.engine.gpsimd)
        if scaled:
            source = scale.ap(pattern=[[0, group], [1, widths[n]]], offset=of.core * of.own + at)
            nisa.dma_copy(dst=factors[begin:end, 0 : widths[n]], src=source)
        at = at + widths[n]
    alike = widths[len(widths) - 1] == wide
    for n in range(1 if alike else len(widths)):
        begin, end = (0, TILE) if alike else (n * group, (n + 1) * group)
        dst, sums = out[begin:end, 0 : widths[n]], bank[begin:end, 0 : widths[n]]
        if scaled:
            by = factors[begin:end, 0 : widths[n]]
            nisa.tensor_tensor(dst=dst, data1=sums, data2=by, op=nl.multiply, engine=nisa.engine.vector)
        else:
            nisa.tensor_copy(dst=dst, src=sums, engine=nisa.engine.scalar)
    return out


def _store(of: _Head, logits: nl.ndarray, found: nl.ndarray, widths: list, chunk: int) -> None:
    """A bank's chunks, of which the first has number `chunk`, in order of tokens."""
    for n in range(len(widths)):
        place = logits.ap(
            pattern=[[logits.shape[1], of.rows], [RUN * len(of.runs), widths[n] // RUN], [1, RUN]],
            offset=of.core * of.own + (chunk + n) * RUN,
        )  # fmt: skip
        nisa.dma_copy(dst=place, src=found[n * of.group : n * of.group + of.rows, 0 : widths[n]])


def _search(of: _Head, found: nl.ndarray, bank: int, rounds: int) -> None:
    """The most likely tokens of a bank's chunks."""
    chunks, vector, left = len(of.runs), nisa.engine.vector, found
    places = sbuf(nl.uint32, (TILE, of.kept))
    for n in range(rounds):
        part = of.values[:, bank : bank + 1, n * EIGHT : (n + 1) * EIGHT]
        nisa.max8(dst=part, src=left)
        nisa.nc_find_index8(dst=places[:, n * EIGHT : (n + 1) * EIGHT], data=left, vals=part)
        if n + 1 < rounds:
            rest = sbuf(nl.float32, found.shape)
            nisa.nc_match_replace8(dst=rest, data=left, vals=part, imm=LEAST)
            left = rest
    # Column RUN * i + j of chunk c is token RUN * (i * chunks + c) + j; all are below 2^24.
    inside, run = sbuf(nl.uint32, (TILE, of.kept)), sbuf(nl.float32, (TILE, of.kept))
    nisa.tensor_scalar(dst=inside, data=places, op0=nl.bitwise_and, operand0=RUN - 1, engine=vector)
    nisa.tensor_tensor(dst=run, data1=places, data2=inside, op=nl.subtract, engine=vector)
    nisa.scalar_tensor_tensor(
        dst=run, data=run, op0=nl.multiply, operand0=float(chunks), op1=nl.add, operand1=inside
    )  # fmt: skip
    first = of.core * of.own + bank * (TILE // of.group) * RUN
    nisa.tensor_scalar(
        dst=of.ids[:, bank : bank + 1], data=run, op0=nl.add, operand0=of.first_of, op1=nl.add, operand1=float(first),
        engine=vector,
    )  # fmt: skip


def _store_candidates(of: _Head, values: nl.ndarray, ids: nl.ndarray, bounds: nl.ndarray, groups: int) -> None:
    """Candidates of all chunks in their order, and the largest of what was the least of a chunk's."""
    count, vector = of.values.shape[1], nisa.engine.vector
    whole, least = sbuf(nl.int32, (TILE, count, of.kept)), sbuf(nl.float32, (TILE, 1))
    nisa.tensor_copy(dst=whole, src=of.ids, engine=vector)
    last = of.values.ap(pattern=[[count * of.kept, TILE], [of.kept, count]], offset=of.kept - 1)
    nisa.tensor_reduce(dst=least, op=nl.maximum, data=last, axis=1)
    every, first = values.shape[1], of.core * len(of.runs) * of.kept
    for n in range(groups):
        begin, end = n * of.group, n * of.group + of.rows
        pattern = [[every, of.rows], [groups * of.kept, count], [1, of.kept]]
        nisa.dma_copy(dst=values.ap(pattern=pattern, offset=first + n * of.kept), src=of.values[begin:end])
        nisa.dma_copy(dst=ids.ap(pattern=pattern, offset=first + n * of.kept), src=whole[begin:end])
        place = bounds.ap(pattern=[[bounds.shape[1], of.rows], [1, 1]], offset=of.core * groups + n)
        nisa.dma_copy(dst=place, src=least[begin:end])
