"""What the kernels of a whole DeltaNet mixer share: a core's heads, its channels, gates, gated norm and the way out.

A core has half of the heads from their convolution to their gated norm. Functions compile into kernels.
"""

from dataclasses import dataclass

import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .decode_sums import project, store_sum
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, sbuf, to_power, turn_into
from .weight_stream import WeightStream, cut, group_width, open_stream


@dataclass
class Mixer(nl.NKIObject):
    """A rank's key and value heads, and one core's part of them.

    Attributes:
        rows: tokens of all sequences.
        channels: of the convolution: queries, keys, values, a head after the other.
        runs: (first, times, step, channels) of these that are this core's, in order: queries with keys, and values.
        gates: the first channel of the output's gates behind them.
    """

    rows: int
    core: int
    cores: int
    key_heads: int
    heads: int
    own_keys: int
    own: int
    channels: int
    runs: list
    gates: int


def make_mixer(x: nl.ndarray, qkvz: nl.ndarray, windows: nl.ndarray, states: nl.ndarray, weight: nl.ndarray) -> Mixer:
    """Its sizes, and whether they fit."""
    heads, channels, cores = states.shape[1], windows.shape[2], nl.num_programs()
    core = nl.program_id(0) if cores > 1 else 0
    key_heads, hidden, rows = (channels - heads * TILE) // (2 * TILE), x.shape[1], x.shape[0]
    assert states.shape[2] == TILE, f"head size is {states.shape[2]}, must be {TILE}"
    assert channels == (2 * key_heads + heads) * TILE, f"{channels} channels are not of whole heads beside {heads}"
    assert heads % key_heads == 0, f"{heads} value heads do not divide among {key_heads} key heads"
    assert key_heads % cores == 0, f"{key_heads} key heads do not divide among {cores} cores"
    assert qkvz.shape[1] == channels + heads * TILE, f"{qkvz.shape[1]} channels are not of {heads} heads"
    assert weight.shape[0] == cores, f"weights are packed for {weight.shape[0]} cores, launched on {cores}"
    assert weight.shape[2] == heads * hidden // cores, f"weights are not of {heads} heads and {hidden} channels"
    own_keys, own = key_heads // cores, heads // cores
    few, many = own_keys * TILE, own * TILE
    runs = [(core * few, 2, key_heads * TILE, few), (2 * key_heads * TILE + core * many, 1, 0, many)]
    return Mixer(
        rows=rows, core=core, cores=cores, key_heads=key_heads, heads=heads, own_keys=own_keys, own=own,
        channels=channels, runs=runs, gates=channels + core * many,
    )  # fmt: skip


def run_of(of: Mixer, n: int, tile: nl.ndarray) -> nl.ndarray:
    """The n-th run in a tile [rows, channels] of this core's, [rows, times, channels]."""
    split = 2 * of.own_keys * TILE
    columns = tile[:, 0:split] if n == 0 else tile[:, split:]
    times = of.runs[n][1]
    return columns.reshape((tile.shape[0], times, columns.shape[1] // times))


def run_pattern(of: Mixer, n: int, row: int, rows: int) -> list:
    """Where it is in `rows` rows of HBM, of `row` channels each, from its first channel on."""
    return [[row, rows], [of.runs[n][2], of.runs[n][1]], [1, of.runs[n][3]]]


def own_runs(of: Mixer) -> list:
    """(first channel of HBM, first column of this core's, channels) of each of the three, apart.

    By a step through both queries and keys it could not be told that the cores' parts of a memory that is written are
    not each other's.
    """
    few, many = of.own_keys * TILE, of.own * TILE
    queries, values = of.runs[0], of.runs[1]
    return [(queries[0], 0, few), (queries[0] + queries[2], few, few), (values[0], 2 * few, many)]


@dataclass
class Gates(nl.NKIObject):
    """fp32: log of the decay, and write strength, of this core's heads."""

    g: nl.ndarray
    beta: nl.ndarray


def make_gates(of: Mixer, ba: nl.ndarray, decays: nl.ndarray, every: int) -> Gates:
    """beta = sigmoid(b), g = rate * softplus(a + bias), [128, tokens, heads], every row the same; or by token.

    Args:
        ba: [tokens, 2 heads] of HBM, b of all heads and then a.
        decays: [2, heads] of HBM, fp32, rates and biases.
        every: rows that are the same; 0 for one row a token, [tokens, 1, heads].
    """
    f32, vector, own, wide = nl.float32, nisa.engine.vector, of.own, 2 * of.heads
    parts, tokens = (every, of.rows) if every > 0 else (of.rows, 1)
    by, step = (0, wide) if every > 0 else (wide, 0)
    shape, first = (parts, tokens, own), of.core * own
    raw, held = sbuf(ba.dtype, (parts, tokens, 2, own)), sbuf(f32, (parts, 2, own))
    nisa.dma_copy(
        dst=raw,
        src=ba.ap(pattern=[[by, parts], [step, tokens], [of.heads, 2], [1, own]], offset=first),
        dge_mode=nisa.dge_mode.swdge,
    )
    nisa.dma_copy(dst=held, src=decays.ap(pattern=[[0, parts], [of.heads, 2], [1, own]], offset=first))
    made, over = Gates(g=sbuf(f32, shape), beta=sbuf(f32, shape)), [[2 * own, parts], [0, tokens], [1, own]]
    logits = [[2 * own * tokens, parts], [2 * own, tokens], [1, own]]
    nisa.tensor_tensor(
        dst=made.g, data1=raw.ap(pattern=logits, offset=own), data2=held.ap(pattern=over, offset=own), op=nl.add,
        engine=vector,
    )  # fmt: skip
    nisa.activation(dst=made.g, op=nl.softplus, data=made.g)
    # Of sigmoids that of the decays' table: 1 / (1 + e^-b), zero where the power is infinite.
    nisa.activation(dst=made.beta, op=nl.exp, data=raw.ap(pattern=logits), scale=-1.0)
    nisa.tensor_tensor(dst=made.g, data1=made.g, data2=held.ap(pattern=over), op=nl.multiply, engine=vector)
    to_power(made.beta, made.beta, 1.0, -1.0)
    return made


def load_factors(of: Mixer, qkvz: nl.ndarray, factor: nl.ndarray) -> tuple:
    """What the norm's gates are made of: z [tokens, heads, 128], and the norm's factor as a column."""
    opened, scale = sbuf(qkvz.dtype, (of.rows, of.own, TILE)), sbuf(nl.float32, (TILE, 1))
    src = qkvz.ap(pattern=[[qkvz.shape[1], of.rows], [TILE, of.own], [1, TILE]], offset=of.gates)
    nisa.dma_copy(dst=opened, src=src, dge_mode=nisa.dge_mode.swdge)
    nisa.dma_copy(dst=scale, src=factor.ap(pattern=[[1, TILE], [1, 1]]))
    return opened, scale


def open_gates(of: Mixer, data: nl.ndarray, eye: nl.ndarray, psum: Bank) -> nl.ndarray:
    """silu(z), fp32 [v, tokens, heads], of [tokens, heads, 128]."""
    turned, out = psum.take()[:, 0 : of.rows * of.own], sbuf(nl.float32, (TILE, of.rows, of.own))
    columns = turned.reshape((TILE, of.rows, of.own))
    for h in range(of.own):
        turn_into(columns[:, :, h : h + 1], data[:, h : h + 1].reshape((of.rows, TILE)), eye)
    nisa.activation(dst=out, op=nl.silu, data=turned)
    return out


def gated_columns(
    of: Mixer, given: nl.ndarray, gates: nl.ndarray, factor: nl.ndarray, eps: float, ones: nl.ndarray, psum: Bank
) -> nl.ndarray:
    """The gated norm of the delta rule's output as stationaries, bfloat16 [v, heads * tokens].

    Args:
        given, gates: fp32 [v, tokens, heads].
        factor: fp32 [v, 1], the norm's.
        ones: fp32 [128, 128].
    """
    f32, vector, shape, own = nl.float32, nisa.engine.vector, (TILE, of.rows, of.own), of.own
    squares, root, out = sbuf(f32, shape), sbuf(f32, shape), sbuf(nl.bfloat16, (TILE, own * of.rows))
    nisa.tensor_tensor(dst=squares, data1=given, data2=given, op=nl.multiply, engine=vector)
    total = psum.take()[:, 0 : of.rows * own]
    # Sums over partitions, on every partition: [v, v'] x [v, (t, h)] -> [v', (t, h)]
    nisa.nc_matmul(dst=total, stationary=ones, moving=squares, is_stationary_onezero=True, accumulate=False)
    nisa.scalar_tensor_tensor(
        dst=gates, data=given, op0=nl.multiply, operand0=factor, op1=nl.multiply, operand1=gates
    )  # fmt: skip
    nisa.tensor_scalar(
        dst=root, data=total.reshape(shape), op0=nl.multiply, operand0=1.0 / TILE, op1=nl.add, operand1=eps,
        engine=vector,
    )  # fmt: skip
    to_power(root, root, 0.0, -0.5)
    by_token = out.ap(pattern=[[own * of.rows, TILE], [1, of.rows], [of.rows, own]])
    nisa.tensor_tensor(dst=by_token, data1=gates, data2=root, op=nl.multiply, engine=vector)
    return out


@dataclass
class Output(nl.NKIObject):
    """The output projection of one core: its weights on their way, its part of the residual, its channels' scales."""

    stream: WeightStream
    residual: nl.ndarray
    channel: nl.ndarray
    scaled: bool


def begin_output(of: Mixer, x: nl.ndarray, weight: nl.ndarray, scale: nl.ndarray) -> Output:
    """Weights of this core's heads first: the others' come while the cores exchange them."""
    hidden, scaled = x.shape[1], weight.dtype == nl.uint8
    own, pieces, size = hidden // of.cores, [], 1 if scaled else 2
    for core in (of.core, 1 - of.core) if of.cores > 1 else (0,):
        pieces.extend(cut(weight, core * of.own * own, of.own, own, size))
    out = Output(
        stream=open_stream(pieces, weight.dtype, of.core), residual=sbuf(x.dtype, (of.rows, own)),
        channel=sbuf(nl.float32, (of.rows, own)), scaled=scaled,
    )  # fmt: skip
    nisa.dma_copy(dst=out.residual, src=x.ap(pattern=[[hidden, of.rows], [1, own]], offset=of.core * own))
    if scaled:
        nisa.dma_copy(dst=out.channel, src=scale.ap(pattern=[[0, of.rows], [1, own]], offset=of.core * own))
    return out


def exchange(of: Mixer, mine: nl.ndarray) -> list:
    """Both cores' normed heads, this core's first."""
    if of.cores == 1:
        return [mine]
    theirs, other = sbuf(nl.bfloat16, mine.shape), 1 - of.core
    nisa.sendrecv(src=mine, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
    return [mine, theirs]


def give(
    of: Mixer, output: Output, parts: list, y: nl.ndarray, replica_group: ncc.ReplicaGroup, ranks: int, psum: Bank
) -> None:
    """y [tokens, hidden] of HBM = the residual + the projection of all heads, summed over the ranks.

    parts: bfloat16 [v, heads * tokens], this core's heads, then the other's.
    """
    rows, lines = of.rows, []
    for part in parts:
        for head in range(of.own):
            lines.append(part[:, head * rows : (head + 1) * rows])
    group, own = group_width(rows), output.residual.shape[1]
    most = len(psum.tiles) * BANK_COLUMNS * (TILE // group)
    assert own <= most, f"{own} channels a core do not fit: use two cores"
    partial = sbuf(nl.float32, (rows, own))
    # Codes are all here by then; bfloat16 weights come as fast as they are multiplied.
    tail = 2 if output.scaled else 1
    held = output.scaled, output.channel, output.residual
    project(output.stream, psum.tiles, lines, partial, group, *held, ranks, tail=tail)
    store_sum(y, partial, of.core * own, replica_group, ranks)
