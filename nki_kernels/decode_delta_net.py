"""A DeltaNet mixer of a decode step between its input projections and the residual, in one program."""

import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl

from .causal_conv1d_taps import PAST, TAPS, load_taps, silu_rows, sum_taps
from .decode_delta_net_parts import (
    Mixer,
    begin_output,
    exchange,
    gated_columns,
    give,
    load_factors,
    make_gates,
    make_mixer,
    open_gates,
    own_runs,
    run_of,
    run_pattern,
)
from .decode_delta_net_plan import sequences_at_once
from .delta_rule_step import Inputs, Tables, make_columns
from .delta_rule_tiles import BANK_COLUMNS, TILE, Bank, identity, index_tiles, make_banks, sbuf, split
from .gated_delta_rule_decode import Results, Rows, load_state, run_tokens


@nki.jit
def decode_delta_net(
    x: nl.ndarray,
    qkvz: nl.ndarray,
    ba: nl.ndarray,
    windows: nl.ndarray,
    states: nl.ndarray,
    taps: nl.ndarray,
    decays: nl.ndarray,
    factor: nl.ndarray,
    weight: nl.ndarray,
    read: nl.ndarray,
    write: nl.ndarray,
    scale: nl.ndarray = None,
    replica_group: ncc.ReplicaGroup = None,
    ranks: int = 1,
    eps: float = 1e-6,
) -> tuple:
    """`causal_conv1d_step`, gates, `gated_delta_rule_decode`, `gated_norm_projection`: one token of every sequence.

    Nothing between the input projections and the residual leaves SBUF but windows and states, each in place. A core has
    half of the heads until their norm; the cores exchange the normed heads and have half of the output channels each.

    Dimensions:
        B: sequences, as many as `sequences_at_once` says of a core's heads
        H: hidden size
        KH, V: key and value heads of this rank, of 128 channels; V a multiple of KH, KH of the cores
        N: channels of the convolution, (2 KH + V) 128
        C: physical cores, 1 or 2

    Args:
        x (nl.ndarray): [B, H], bfloat16 or float32, the residual
        qkvz (nl.ndarray): [B, N + 128 V], of x's type: q, k, v, and the output's gates
        ba (nl.ndarray): [B, 2 V], of x's type: what write strengths are made of, then decays
        windows (nl.ndarray): [entries, 3, N], of x's type, oldest input first; written in place
        states (nl.ndarray): [entries, V, 128, 128], float32, key dimension first; written in place
        taps (nl.ndarray): [N, 4], of x's type, the convolution's weight
        decays (nl.ndarray): [2, V], float32, minus the decays' rates, and what is added to what decays are made of
        factor (nl.ndarray): [1, 128], float32, the gated norm's full factor
        weight (nl.ndarray): [C, 128, V * H / C], bfloat16, or uint8 float8_e4m3 codes (IEEE-like: largest 240), in the
            order of `pack_rows`
        read (nl.ndarray): [1, B], int32, the entry that holds each sequence's state and window
        write (nl.ndarray): [1, 2 B], int32, of each sequence the entry for state and window behind the token and that
            for a checkpoint of them; past the last: not kept. Entries written are named once
        scale (nl.ndarray): [C, H / C], float32, with codes only
        replica_group (ncc.ReplicaGroup): the ranks that sum; not used by one rank
        ranks (int): how many they are, a power of two
        eps (float): added to the mean of squares

    Returns:
        y (nl.ndarray): [B, H], of x's type
        windows (nl.ndarray): the argument
        states (nl.ndarray): the argument

    Notes:
        Weights are asked for at the start and are there, in FP8, when the heads are; a core multiplies its own heads'
        first, while the others' come over. What is written and asked for by nobody here is sent behind the exchange,
        which the same queue begins.

    Pseudocode:
        q, k, v = causal_conv1d_step(qkvz[:, :N]); z = qkvz[:, N:]
        beta, g = sigmoid(b), rate * softplus(a + bias)
        y = gated_norm_projection(x, gated_delta_rule_decode(q, k, v, g, beta), z)
    """
    of, dt, f32 = make_mixer(x, qkvz, windows, states, weight), x.dtype, nl.float32
    batch, vector, pool = of.rows, nisa.engine.vector, nisa.dge_mode.swdge
    most = sequences_at_once(of.own_keys, of.own)
    assert batch <= most, f"{batch} sequences of {of.own_keys} key and {of.own} value heads a core, at most {most}"
    assert windows.shape[0] == states.shape[0], f"{windows.shape[0]} entries of windows, {states.shape[0]} of states"
    assert ranks in (1, 2, 4, 8, 16, 32, 64), f"{ranks} ranks: a power of two, so that a part of the residual is exact"
    y = nl.ndarray((batch, x.shape[1]), dtype=dt, buffer=nl.shared_hbm)

    eye, psum = identity(dt), make_banks()
    where_from, picks = index_tiles(read, batch, vector), _picks(eye, batch)
    held_taps = load_taps(taps, of.runs)
    joined = sbuf(dt, ((PAST + 1) * batch, (2 * of.own_keys + of.own) * TILE))
    _load(of, joined, qkvz, windows, where_from)
    gates, old = make_gates(of, ba, decays, TILE), []
    columns = make_columns(batch, of.own_keys, of.own)
    nisa.activation(dst=columns.decay, op=nl.exp, data=gates.g)
    tables = Tables(eye=eye, ones=sbuf(f32, (TILE, TILE)))
    nisa.memset(dst=tables.ones, value=1.0, engine=nisa.engine.gpsimd)
    z, column = load_factors(of, qkvz, factor)
    at_hand = Rows(
        first=0, n=batch, steps=1, keys=(0, of.own_keys), values=(of.core * of.own, of.own),
        piece=min(4, (of.own + 2) // 3 if batch == 1 else (of.own + 1) // 2),
    )  # fmt: skip
    for b in range(batch):
        old.append(load_state(at_hand, states, where_from[b]))
    where_to = index_tiles(write, 2 * batch, nisa.engine.gpsimd, pool)
    output = begin_output(of, x, weight, scale)
    output.stream.fetch(len(output.stream.slots))

    summed = sum_taps(joined, picks, held_taps, batch, psum)
    opened = open_gates(of, z, eye, psum)
    mixed = silu_rows(summed, dt, psum).reshape((batch, 2 * of.own_keys + of.own, TILE))
    inputs = Inputs(
        q=mixed[:, 0 : of.own_keys], k=mixed[:, of.own_keys : 2 * of.own_keys], v=mixed[:, 2 * of.own_keys :],
        g=gates.g, beta=gates.beta,
    )  # fmt: skip
    given = sbuf(f32, (TILE, batch, of.own))
    results = Results(o=given, stored=False, lanes=states, where=where_to, places=2)
    run_tokens(at_hand, inputs, columns, old, tables, results, psum)
    parts = exchange(of, gated_columns(of, given, opened, column, eps, tables.ones, psum))
    _leave(of, joined, picks, windows, where_to, psum)
    give(of, output, parts, y, replica_group, ranks, psum)
    return y, windows, states


def _load(of: Mixer, joined: nl.ndarray, qkvz: nl.ndarray, windows: nl.ndarray, where: list) -> None:
    """Rows of all windows, then those of new tokens, of this core's channels."""
    old = PAST * of.rows
    for n in range(len(of.runs)):
        new = qkvz.ap(pattern=run_pattern(of, n, qkvz.shape[1], of.rows), offset=of.runs[n][0])
        nisa.dma_copy(dst=run_of(of, n, joined[old:]), src=new, dge_mode=nisa.dge_mode.swdge)
    at = 0
    for b in range(of.rows):
        for run in own_runs(of):
            dst = joined[PAST * b : PAST * (b + 1), run[1] : run[1] + run[2]]
            nisa.dma_copy(dst=dst, src=_window(of, windows, run, where[b]), dge_mode=_spread(at))
            at = at + 1


def _window(of: Mixer, windows: nl.ndarray, run: tuple, index: nl.ndarray) -> nl.ndarray:
    """Channels of one run of the window that `index` names, [3, channels]."""
    return windows.ap(
        pattern=[[of.channels, PAST], [1, run[2]]], offset=run[0], scalar_offset=index, indirect_dim=0
    )  # fmt: skip


def _spread(at: int) -> nisa.dge_mode:
    """Of many small transfers every other one is GpSimd's to begin."""
    return nisa.dge_mode.swdge if at % 2 == 1 else nisa.dge_mode.unknown


def _picks(eye: nl.ndarray, batch: int) -> nl.ndarray:
    """Zeros and ones by which a product finds the inputs of a token's taps: [4 B, B, 4]."""
    every, pool = TAPS * batch, nisa.engine.gpsimd
    out = sbuf(eye.dtype, (every, batch, TAPS))
    old, new = eye[0:every, 0 : PAST * batch], eye[0:every, PAST * batch : every]
    nisa.tensor_copy(dst=out[:, :, 0:PAST], src=old.reshape((every, batch, PAST)), engine=pool)
    nisa.tensor_copy(dst=out[:, :, PAST:TAPS], src=new.reshape((every, batch, 1)), engine=pool)
    return out


def _leave(of: Mixer, joined: nl.ndarray, picks: nl.ndarray, windows: nl.ndarray, where: list, psum: Bank) -> None:
    """Windows behind the token, each to its two entries: the inputs of a token's last three taps."""
    left, own = sbuf(joined.dtype, (PAST * of.rows, joined.shape[1])), joined.shape[1]
    for part in split(own // TILE, BANK_COLUMNS // TILE):
        # [r, w] x [r, c] -> [w, c]
        begin, end = part[0] * TILE, part[1] * TILE
        bank = psum.take()[0 : PAST * of.rows, 0 : end - begin]
        nisa.nc_matmul(
            dst=bank, stationary=picks[:, :, 1:TAPS], moving=joined[:, begin:end], is_stationary_onezero=True,
            accumulate=False,
        )  # fmt: skip
        nisa.tensor_copy(dst=left[:, begin:end], src=bank, engine=nisa.engine.scalar)
    begun = 0
    for at in range(2 * of.rows):
        b = at // 2
        for run in own_runs(of):
            src = left[PAST * b : PAST * (b + 1), run[1] : run[1] + run[2]]
            dst = _window(of, windows, run, where[at])
            nisa.dma_copy(dst=dst, src=src, oob_mode=nisa.oob_mode.skip, dge_mode=_spread(begun))
            begun = begun + 1
