"""A decode step's mixture of experts on one rank: residual in, norm, router, chosen experts, sum, residual out."""

import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .decode_experts_choice import open_choice, own_numbers, own_weights
from .decode_experts_parts import Sum, add_expert, down_banks, expert_slots, finish, load_expert, load_part, open_expert
from .decode_experts_plan import expert_row, inner_of
from .decode_router import EIGHT, LINES, search
from .delta_rule_tiles import BANK_COLUMNS, TILE, sbuf, split
from .weight_stream import group_width, multiply, norm_lines


@nki.jit
def decode_experts(
    x: nl.ndarray,
    gamma: nl.ndarray,
    router: nl.ndarray,
    experts: nl.ndarray,
    shared: nl.ndarray,
    shared_gate: nl.ndarray,
    top_k: int = 8,
    renormalise: bool = True,
    replica_group: ncc.ReplicaGroup = None,
    ranks: int = 1,
    eps: float = 1e-6,
) -> nl.ndarray:
    """x + the mixture of the RMS norm of x, summed over the ranks: rows of one to five tokens of a few sequences.

    Every rank and core routes alike, as in `decode_router`. Of the experts that some row chose each is read once,
    whichever rows have it, by one of the cores, in runs of kilobytes; of others nothing is read. Cores divide the
    experts, exchange half of the channels of what these add up to, and each has half of the sum over ranks, in which
    the residual is. The shared expert, of whose channels each core has its part, is multiplied while the router's
    search finds the others. Rows do not meet: whatever is in padding
    rows, it changes nothing for the rest but the order in which experts add up.

    Dimensions:
        R: rows, at most 64, and such that [H / 128, R] fits in two banks of 512
        H: hidden size, a multiple of 128 times the cores; L = H / 128 lines
        E: experts, 8 to 512
        I: intermediate size of this rank of an expert, a multiple of 32 up to 128, or of 128
        S: the same of the shared expert and of a core
        C: physical cores, 1 or 2

    Args:
        x (nl.ndarray): [R, H], bfloat16 or float32, the residual
        gamma (nl.ndarray): [128, L], float32, the norm's full factor
        router (nl.ndarray): [1, 128, L * E], bfloat16, as of `decode_router`
        experts (nl.ndarray): [E, 128, n], bfloat16, or uint8: float8_e4m3 codes (IEEE-like: largest 240) with their
            scales, in the order of `decode_experts_torch.pack_experts`
        shared (nl.ndarray): [C, 128, n], of the same type, in the order of `pack_shared`
        shared_gate (nl.ndarray): [128, L], bfloat16, in the order of gamma
        top_k (int): experts of a row, 1 to 8, a multiple of the cores
        renormalise (bool): a row's weights sum to one
        replica_group (ncc.ReplicaGroup): the ranks that sum; not used by one rank
        ranks (int): how many they are, a power of two
        eps (float): added to the mean of squares

    Returns:
        y (nl.ndarray): [R, H], of x's type

    Pseudocode:
        n = (x * gamma) * rsqrt(mean(x * x) + eps), rounded to bfloat16
        weights, chosen = decode_router(n); s = sigmoid(n shared_gate)
        h[e] = silu(n gate[e]) * (n up[e]) * the weight of e, rounded to bfloat16; likewise of the shared one by s
        y = sum over ranks of sum over e of h[e] down[e] + x / ranks, in float32
    """
    rows, hidden = x.shape
    cores = nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    group, lines, codes = group_width(rows), hidden // TILE, experts.dtype == nl.uint8
    count = router.shape[2] // lines
    assert hidden % (TILE * cores) == 0, f"hidden size {hidden} is not a multiple of {TILE * cores}"
    assert router.shape[0] == 1, f"the router is packed for {router.shape[0]} cores: each reads the whole, pack for 1"
    assert EIGHT <= count <= BANK_COLUMNS, f"{count} experts, must be {EIGHT} to {BANK_COLUMNS}"
    assert experts.shape[0] == count, f"the router has {count} experts, there are weights of {experts.shape[0]}"
    assert 1 <= top_k <= EIGHT, f"top_k is {top_k}, must be 1 to {EIGHT}: one search finds so many"
    assert top_k % cores == 0, f"top_k is {top_k}, must be a multiple of the {cores} cores"
    assert shared.shape[0] == cores, f"the shared expert is packed for {shared.shape[0]} cores, launched on {cores}"
    assert shared.dtype == experts.dtype, "the shared expert's weights are of another type than the others'"
    assert ranks in (1, 2, 4, 8, 16, 32, 64), f"{ranks} ranks: a power of two, so that a part of the residual is exact"
    of_one = expert_row(inner_of(experts.shape[2], lines, codes), lines, codes)
    of_all = expert_row(inner_of(shared.shape[2], lines, codes), lines, codes)

    banks = []
    for _ in range(3 + down_banks(lines, rows) * (2 if codes else 1)):
        banks.append(nl.ndarray((TILE, BANK_COLUMNS), dtype=nl.float32, buffer=nl.psum))
    data, factor = sbuf(x.dtype, (TILE, rows, lines)), sbuf(nl.float32, (TILE, lines))
    nisa.dma_copy(dst=data, src=x.ap(pattern=[[lines, TILE], [hidden, rows], [1, lines]]))
    nisa.dma_copy(dst=factor, src=gamma)
    scores, gate = [], sbuf(nl.bfloat16, (TILE, lines))
    for part in split(lines, LINES):
        scores.append(sbuf(nl.bfloat16, (TILE, part[1] - part[0], count)))
        size = (part[1] - part[0]) * count
        source = router.ap(pattern=[[lines * count, TILE], [1, size]], offset=part[0] * count)
        nisa.dma_copy(dst=scores[len(scores) - 1], src=source)
    nisa.dma_copy(dst=gate, src=shared_gate)
    of_every_row = load_part(shared, of_all, core)
    normed = norm_lines(data, factor, group, banks[0], eps)
    logits = _logits(normed, scores, rows, group, banks[0])
    total = Sum(
        rows=rows, normed=normed, codes=codes, gates=(banks[1], banks[2]), banks=tuple(banks[3:]),
        total=sbuf(nl.float32, (TILE, lines, rows)), left=[],
    )  # fmt: skip
    own = top_k // cores
    slots = expert_slots(experts.dtype, of_one.size, own if rows == 1 else max(own, 2), own)
    open_expert(total, of_every_row, of_all)
    # Of one row all are found at once; of several, a few at a time, behind the products of those before.
    if rows == 1:
        best, places = search(logits)
        numbers, every = own_numbers(places, core, cores, own), own
        for n in range(len(slots)):
            load_expert(slots[n], experts, of_one, numbers[n], n == 0 or not codes)
        shares = [own_weights(logits, best, top_k, renormalise, core, cores, banks[0])]
    else:
        choice = open_choice(logits, top_k, renormalise, cores, core, banks[0])
        chosen = choice.take()
        numbers, shares, every = chosen.numbers, [chosen.shares], (min(top_k * rows, count) + cores - 1) // cores
        for n in range(len(slots)):
            load_expert(slots[n], experts, of_one, numbers[n], n == 0 or not codes)
    each, loaded = len(numbers), len(slots)
    of_every = _shared_share(normed, gate, rows, banks[0])
    for n in range(every):
        open_expert(total, slots[n % len(slots)], of_one)
        if n == 0:
            add_expert(total, of_every_row, of_all, of_every)
        else:
            add_expert(total, slots[(n - 1) % len(slots)], of_one, shares[(n - 1) // each][:, (n - 1) % each])
            if loaded < every:
                if loaded == len(numbers):
                    chosen = choice.take()
                    numbers.extend(chosen.numbers)
                    shares.append(chosen.shares)
                load_expert(slots[loaded % len(slots)], experts, of_one, numbers[loaded], not codes)
                loaded = loaded + 1
    add_expert(total, slots[(every - 1) % len(slots)], of_one, shares[(every - 1) // each][:, (every - 1) % each])
    y = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    _store_sum(y, finish(total), data, cores, core, replica_group, ranks)
    return y


def _logits(normed: nl.ndarray, scores: list, rows: int, group: int, bank: nl.ndarray) -> nl.ndarray:
    """fp32 [rows, experts] of the router's weight, [128, lines, experts] a piece."""
    count, line = scores[0].shape[2], 0
    for piece in scores:
        for n in range(piece.shape[1]):
            multiply((bank,), 0, (0, count), normed[:, line : line + 1], group, piece[:, n : n + 1], group, line == 0)
            line = line + 1
    out = sbuf(nl.float32, (rows, count))
    nisa.tensor_copy(dst=out, src=bank[0:rows, 0:count], engine=nisa.engine.vector)
    return out


def _shared_share(normed: nl.ndarray, gate: nl.ndarray, rows: int, bank: nl.ndarray) -> nl.ndarray:
    """The sigmoid of the shared expert's gate, fp32 [128, rows], alike on all partitions.

    By exponentials, as the router's weights: a sigmoid would have ScalarE load a table of its own.
    """
    lines, vector = normed.shape[1], nisa.engine.vector
    out, sums = sbuf(nl.float32, (TILE, rows)), bank[:, 0:rows]
    for n in range(lines):
        # The same column for every partition: [h, p] x [h, r] -> [p, r]
        column = gate.ap(pattern=[[lines, TILE], [0, TILE]], offset=n)
        nisa.nc_matmul(dst=sums, stationary=column, moving=normed[:, n : n + 1, 0:rows], accumulate=n > 0)
    nisa.activation(dst=out, op=nl.exp, data=sums, scale=-1.0)
    nisa.tensor_scalar(dst=out, data=out, op0=nl.add, operand0=1.0, engine=vector)
    nisa.reciprocal(dst=out, data=out)
    return out


def _store_sum(
    y: nl.ndarray,
    total: nl.ndarray,
    residual: nl.ndarray,
    cores: int,
    core: int,
    replica_group: ncc.ReplicaGroup,
    ranks: int,
) -> None:
    """y of HBM = the sum over cores and ranks of fp32 total [128, lines, rows], and of residual [128, rows, lines]."""
    lines, rows = total.shape[1], total.shape[2]
    own, vector, hidden = lines // cores, nisa.engine.vector, y.shape[1]
    summed = sbuf(nl.float32, (TILE, rows, own))
    # [p, (n, r)] -> [p, (r, n)]
    mine = total.ap(pattern=[[lines * rows, TILE], [1, rows], [rows, own]], offset=core * own * rows)
    nisa.scalar_tensor_tensor(
        dst=summed, data=residual[:, :, core * own : (core + 1) * own], op0=nl.multiply, operand0=1.0 / ranks,
        op1=nl.add, operand1=mine,
    )  # fmt: skip
    if cores > 1:
        other = 1 - core
        given, theirs = sbuf(nl.float32, (TILE, own * rows)), sbuf(nl.float32, (TILE, own * rows))
        nisa.tensor_copy(dst=given, src=total[:, other * own : (other + 1) * own], engine=nisa.engine.gpsimd)
        nisa.sendrecv(src=given, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
        turned = theirs.ap(pattern=[[own * rows, TILE], [1, rows], [rows, own]])
        nisa.tensor_tensor(dst=summed, data1=summed, data2=turned, op=nl.add, engine=vector)
    out = summed.reshape((TILE, rows * own))
    if ranks > 1:
        out = sbuf(nl.float32, (TILE, rows * own))
        ncc.all_reduce(srcs=[summed.reshape((TILE, rows * own))], dsts=[out], replica_group=replica_group, op=nl.add)
    if y.dtype != nl.float32:
        rounded = sbuf(y.dtype, (TILE, rows * own))
        nisa.tensor_copy(dst=rounded, src=out, engine=vector)
        out = rounded
    place = y.ap(pattern=[[lines, TILE], [hidden, rows], [1, own]], offset=core * own)
    nisa.dma_copy(dst=place, src=out.reshape((TILE, rows, own)))
