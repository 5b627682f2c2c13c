"""A decode step's router on one rank: norm, an expert's score each, and the few experts of every row."""

import nki
import nki.isa as nisa
import nki.language as nl

from .decode_sums import leave
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf, split
from .weight_stream import group_width, multiply, normed_lines, open_stream

EIGHT = 8
"""Experts that one search finds."""
LINES = 4
"""Of a piece of the weight at most: the last products begin when all but a quarter has landed."""


@nki.jit
def decode_router(
    x: nl.ndarray, gamma: nl.ndarray, weight: nl.ndarray, top_k: int = 8, renormalise: bool = True, eps: float = 1e-6
) -> tuple:
    """The experts of each row, and how much of each: the largest of a softmax over all experts.

    Every rank and every core routes alike, from the whole of the weight: an exchange would take longer than to read a
    megabyte twice. Each core writes its part of the columns. The largest of a softmax are those of its logits, and
    divided by their own sum they are the softmax of these few, so no other logit is raised to a power unless it is
    asked for.

    Dimensions:
        R: rows, at most 64
        H: hidden size, a multiple of 128; L = H / 128 lines
        E: experts, 8 to 512
        K: top_k, 1 to 8, a multiple of the cores

    Args:
        x (nl.ndarray): [R, H], bfloat16 or float32
        gamma (nl.ndarray): [128, L], float32, the norm's full factor
        weight (nl.ndarray): [1, 128, L * E], bfloat16, in the order of `decode_projection_torch.pack_columns`
        top_k (int): experts of a row
        renormalise (bool): a row's weights sum to one
        eps (float): added to the mean of squares

    Returns:
        weights (nl.ndarray): [R, K], float32, in descending order
        experts (nl.ndarray): [R, K], int32; of equal logits the lower number is first

    Pseudocode:
        logits = ((x * gamma) * rsqrt(mean(x * x) + eps), rounded to bfloat16) weight, in float32
        p = softmax(logits); weights, experts = the K largest of p
        if renormalise: weights = weights / sum(weights)
    """
    rows, hidden = x.shape
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, lines = group_width(rows), hidden // TILE
    experts = weight.shape[2] // lines
    assert hidden % TILE == 0, f"hidden size {hidden} is not a multiple of {TILE}"
    assert weight.shape[0] == 1, f"weights are packed for {weight.shape[0]} cores: each reads the whole, pack for 1"
    assert EIGHT <= experts <= BANK_COLUMNS, f"{experts} experts, must be {EIGHT} to {BANK_COLUMNS}"
    assert 1 <= top_k <= EIGHT, f"top_k is {top_k}, must be 1 to {EIGHT}: one search finds so many"
    assert top_k % cores == 0, f"top_k is {top_k}, must be a multiple of the {cores} cores"
    pieces = []
    for piece in split(lines, LINES):
        pieces.append((weight, piece[0] * experts, piece[1] - piece[0], experts))
    stream = open_stream(pieces, weight.dtype, 0)
    banks = []
    for _ in range(2):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    factor = sbuf(nl.float32, (TILE, lines))
    nisa.dma_copy(dst=factor, src=gamma)
    normed, line = normed_lines(x, factor, group, banks[1], eps), 0
    while line < lines:
        weights = stream.take()
        for n in range(weights.shape[1]):
            multiply(
                (banks[0],), 0, (0, experts), normed[:, line : line + 1], group, weights[:, n : n + 1], group, line == 0
            )
            line = line + 1
    logits = sbuf(nl.float32, (rows, experts))
    leave((banks[0],), 0, (0, experts), logits, group, False, logits, logits, 0)
    shares, numbers = choose(logits, top_k, renormalise)
    found = nl.ndarray((rows, top_k), dtype=nl.float32, buffer=nl.shared_hbm)
    chosen = nl.ndarray((rows, top_k), dtype=nl.int32, buffer=nl.shared_hbm)
    own = top_k // cores
    first = core * own
    pattern = [[top_k, rows], [1, own]]
    nisa.dma_copy(dst=chosen.ap(pattern=pattern, offset=first), src=numbers[:, first : first + own])
    nisa.dma_copy(dst=found.ap(pattern=pattern, offset=first), src=shares[:, first : first + own])
    return found, chosen


def choose(logits: nl.ndarray, top_k: int, renormalise: bool) -> tuple:
    """Weights, fp32 [rows, top_k], and experts, int32 [rows, top_k], of logits, fp32 [rows, experts] in SBUF."""
    best, places = search(logits)
    numbers = sbuf(nl.int32, (logits.shape[0], top_k))
    nisa.tensor_copy(dst=numbers, src=places[:, 0:top_k], engine=nisa.engine.gpsimd)
    return weigh(logits, best, top_k, renormalise), numbers


def search(logits: nl.ndarray) -> tuple:
    """The eight largest of each row in descending order, fp32, and where they are, uint32: both [rows, 8]."""
    best, places = sbuf(nl.float32, (logits.shape[0], EIGHT)), sbuf(nl.uint32, (logits.shape[0], EIGHT))
    nisa.max8(dst=best, src=logits)
    nisa.nc_find_index8(dst=places, data=logits, vals=best)
    return best, places


def weigh(logits: nl.ndarray, best: nl.ndarray, top_k: int, renormalise: bool) -> nl.ndarray:
    """Weights of the first top_k of `search`, fp32 [rows, top_k]."""
    rows, vector = logits.shape[0], nisa.engine.vector
    less, total, share = sbuf(nl.float32, (rows, 1)), sbuf(nl.float32, (rows, 1)), sbuf(nl.float32, (rows, 1))
    powers, weights = sbuf(nl.float32, (rows, top_k)), sbuf(nl.float32, (rows, top_k))
    nisa.tensor_scalar(dst=less, data=best[:, 0:1], op0=nl.multiply, operand0=-1.0, engine=vector)
    nisa.activation(dst=powers, op=nl.exp, data=best[:, 0:top_k], bias=less)
    every = powers
    if not renormalise:
        every = sbuf(nl.float32, logits.shape)
        nisa.activation(dst=every, op=nl.exp, data=logits, bias=less)
    nisa.tensor_reduce(dst=total, op=nl.add, data=every, axis=1)
    nisa.reciprocal(dst=share, data=total)
    nisa.tensor_scalar(dst=weights, data=powers, op0=nl.multiply, operand0=share, engine=vector)
    return weights
