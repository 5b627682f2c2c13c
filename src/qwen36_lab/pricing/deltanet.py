"""The DeltaNet half of a layer over two drafted tokens, rebuilt from the published account of one that was measured.

Of KevGomes1403/nki-moe-megakernel, nki_kernels/specs/deltanet_decode_opt.md: Qwen3.6-35B-A3B on one rank of four, two
cores, 81.7 us in phases. Written from what that says of its phases; `marks` tells where each of them ends in the trace.
A core projects its own half of the heads, so nothing but the last sum crosses to the other core.
"""

from __future__ import annotations

from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl

from nki_kernels.interpreter import context

P, TOKENS, HIDDEN, KEY_HEADS, HEADS, TAPS = 128, 2, 2048, 2, 4, 4
"""Partitions and size of a head; drafted tokens; hidden size; key heads and value heads of a core; taps of the conv."""
WIDTH, PARTS, REPEAT = HEADS * P, HIDDEN // P, HEADS // KEY_HEADS
SEGMENTS = (KEY_HEADS, KEY_HEADS, HEADS)
"""Tiles of 128 channels of q, k and v."""
RUNS = (*(n * P for n in SEGMENTS), 16, WIDTH)
"""Columns that a core projects: q, k, v, gates of all heads (a, then b), z."""
OFFSETS = tuple(sum(RUNS[:i]) for i in range(len(RUNS)))
F32, BF16 = nl.float32, nl.bfloat16

marks: list[tuple[str, int]] = []
"""Phase and how long core 0's trace was at its end, of the last run."""


def _mark(phase: str) -> None:
    core = context.current("mark")
    if core.program_id == 0:
        marks.append((phase, len(core.trace)))


def _sb(*shape: int, dtype: Any = F32) -> nl.ndarray:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def _ps(*shape: int, dtype: Any = F32) -> nl.ndarray:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.psum)


@nki.jit
def deltanet_half(
    hidden: nl.ndarray,  # [2, 2048] bf16
    gamma: nl.ndarray,  # [128, 16] f32, a column a block of 128
    weights: nl.ndarray,  # [2 cores, 128, 16 * 1552] bf16, run after run, blocks of 128 rows side by side
    conv_state: nl.ndarray,  # [2 cores, 8, 128 * 3] f32
    conv_weight: nl.ndarray,  # [2 cores, 8, 128 * 4] f32
    gates: nl.ndarray,  # [2 cores, 1, 2 * 8] f32: exp(A_log) and dt_bias of each token and head
    state: nl.ndarray,  # [2 cores, 128, 512] f32
    z_gamma: nl.ndarray,  # [1, 512] f32
    out_weight: nl.ndarray,  # [2 cores, 128, 4 * 2048] bf16
) -> tuple[nl.ndarray, nl.ndarray, nl.ndarray]:
    """Returns what is added to the residual, and both states after each token."""
    me = nl.program_id(0)
    out = nl.ndarray((TOKENS, HIDDEN), dtype=BF16, buffer=nl.shared_hbm)
    states = nl.ndarray((2, TOKENS, P, WIDTH), dtype=F32, buffer=nl.shared_hbm)
    windows = nl.ndarray((2, TOKENS, 8, P * (TAPS - 1)), dtype=F32, buffer=nl.shared_hbm)
    marks[:0] = []
    if me == 0:
        del marks[:]

    x, norm = _sb(P, TOKENS, PARTS, dtype=BF16), _sb(P, PARTS)
    nisa.dma_copy(dst=x, src=hidden.ap([[PARTS, P], [HIDDEN, TOKENS], [1, PARTS]]))
    nisa.dma_copy(dst=norm, src=gamma)
    runs = _load_weights(weights, me)
    taps = _load_taps(conv_weight, conv_state, me)
    before = [_sb(P, WIDTH), _sb(P, WIDTH)]
    start = _sb(P, WIDTH)
    nisa.dma_copy(dst=start, src=state[me])
    projection = _sb(P, HEADS * HIDDEN, dtype=BF16)
    nisa.dma_copy(dst=projection, src=out_weight[me])
    normed = _norm(x, norm)
    _mark("load and norm")

    projected = _sb(TOKENS, sum(RUNS), dtype=BF16)
    for run in (0, 1, 2, 3):
        _project(projected, normed, runs[run], run)
    _mark("in_proj")

    tiles, held = _conv(projected, taps, lambda: _project(projected, normed, runs[4], 4))
    q, q_rows = _unit(tiles[0], P**-0.5)
    k, k_rows = _unit(tiles[1], 1.0)
    _mark("conv and l2norm")

    collected = _recurrence(
        projected, (q, q_rows), (k, k_rows), tiles[2], gates[me], start, before, states[me], z_gamma
    )
    _mark("recurrence")

    _out_proj(out, collected, projection, me)
    _mark("o_proj")
    _store_windows(windows[me], held)
    return out, states, windows


def _load_weights(weights: nl.ndarray, me: int) -> list[nl.ndarray]:
    """Every run in transfers of at most 4 KiB a partition."""
    tiles, at = [], 0
    for columns in RUNS:
        tile = _sb(P, PARTS, columns, dtype=BF16)
        flat, size = tile.reshape((P, PARTS * columns)), PARTS * columns
        for piece in range(0, size, 2048):
            some = nl.ds(piece, min(2048, size - piece))
            nisa.dma_copy(dst=flat[:, some], src=weights[me, :, nl.ds(at + piece, min(2048, size - piece))])
        tiles.append(tile)
        at += size
    return tiles


def _load_taps(conv_weight: nl.ndarray, conv_state: nl.ndarray, me: int) -> list[tuple[nl.ndarray, nl.ndarray]]:
    blocks, at = [], 0
    for tiles in SEGMENTS:
        pair = _sb(tiles, P * TAPS), _sb(tiles, P * (TAPS - 1))
        nisa.dma_copy(dst=pair[0], src=conv_weight[me, nl.ds(at, tiles), :])
        nisa.dma_copy(dst=pair[1], src=conv_state[me, nl.ds(at, tiles), :])
        blocks.append(pair)
        at += tiles
    return blocks


def _norm(x: nl.ndarray, gamma: nl.ndarray) -> nl.ndarray:
    """RMSNorm of the tokens, hidden size over the partitions: [128, 16, 2] bf16."""
    squares, part, ones, total = _sb(P, TOKENS, PARTS), _sb(P, TOKENS), _sb(P, P), _ps(P, TOKENS)
    nisa.memset(dst=ones, value=1.0)
    nisa.activation(dst=squares, op=nl.square, data=x)
    nisa.tensor_reduce(dst=part, op=nl.add, data=squares, axis=2)
    nisa.nc_matmul(dst=total, stationary=ones, moving=part, accumulate=False)
    scale, eps, normed = _sb(P, TOKENS), _sb(P, 1), _sb(P, PARTS, TOKENS, dtype=BF16)
    nisa.memset(dst=eps, value=1e-6)
    nisa.activation(dst=scale, op=nl.rsqrt, data=total, scale=1.0 / HIDDEN, bias=eps)
    scaled = _sb(P, TOKENS, PARTS)
    for t in range(TOKENS):
        nisa.tensor_scalar(dst=scaled[:, t, :], data=x[:, t, :], op0=nl.multiply, operand0=scale[:, t : t + 1])
        nisa.tensor_tensor(dst=normed[:, :, t], data1=scaled[:, t, :], data2=gamma, op=nl.multiply)
    return normed


def _project(projected: nl.ndarray, normed: nl.ndarray, weight: nl.ndarray, run: int) -> None:
    sums = _ps(TOKENS, RUNS[run])
    for part in range(PARTS):
        nisa.nc_matmul(dst=sums, stationary=normed[:, part, :], moving=weight[:, part, :], accumulate=part > 0)
    nisa.tensor_copy(
        dst=projected[:, nl.ds(OFFSETS[run], RUNS[run])], src=sums,
        engine=nisa.engine.scalar if run % 2 else nisa.engine.vector,
    )  # fmt: skip


def _conv(projected: nl.ndarray, taps: Any, defer: Any) -> tuple[list[nl.ndarray], list[Any]]:
    """Causal convolution and SiLU, channels over the partitions, and back; `defer` fills TensorE meanwhile."""
    tiles, held, at = [], [], 0
    width = TAPS - 1 + TOKENS
    for segment, count in enumerate(SEGMENTS):
        weight, window = _sb(P, count, TAPS), _sb(P, count, width)
        for source, target, steps in ((taps[segment][0], weight, TAPS), (taps[segment][1], window, TAPS - 1)):
            for j in range(steps):
                turned = _ps(P, count)
                nisa.nc_transpose(dst=turned, data=source.ap([[P * steps, count], [steps, P]], offset=j))
                nisa.tensor_copy(dst=target[:, :, j], src=turned)
        for tile in range(count):
            turned = _ps(P, TOKENS, dtype=BF16)
            nisa.nc_transpose(dst=turned, data=projected[:, nl.ds((at + tile) * P, P)])
            nisa.tensor_copy(dst=window[:, tile, TAPS - 1 :], src=turned)
        summed = _sb(P, count, TOKENS)
        for tile in range(count):
            product = _sb(P, TOKENS, TAPS)
            nisa.tensor_tensor(
                dst=product, data2=weight.ap([[count * TAPS, P], [0, TOKENS], [1, TAPS]], offset=tile * TAPS),
                data1=window.ap([[count * width, P], [1, TOKENS], [1, TAPS]], offset=tile * width), op=nl.multiply,
            )  # fmt: skip
            nisa.tensor_reduce(dst=summed[:, tile, :], op=nl.add, data=product, axis=2)
        rows, made = _ps(count * TOKENS, P), _sb(count * TOKENS, P, dtype=BF16)
        nisa.nc_transpose(dst=rows, data=summed.reshape((P, count * TOKENS)))
        nisa.activation(dst=made, op=nl.silu, data=rows)
        tiles.append(made)
        held.append((window, at, count))
        at += count
        if segment == 1:
            defer()
    return tiles, held


def _unit(rows: nl.ndarray, scale: float) -> tuple[nl.ndarray, nl.ndarray]:
    """Rows of unit length times `scale`, as columns and as rows."""
    count = KEY_HEADS * TOKENS
    wide, squares, total, inverse = _sb(count, P), _sb(count, P), _sb(count, 1), _sb(count, 1)
    nisa.tensor_copy(dst=wide, src=rows)
    nisa.tensor_tensor(dst=squares, data1=wide, data2=wide, op=nl.multiply)
    nisa.tensor_reduce(dst=total, op=nl.add, data=squares, axis=1)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=total)
    nisa.tensor_scalar(dst=wide, data=wide, op0=nl.multiply, operand0=inverse, op1=nl.multiply, operand1=scale)
    bank, columns = _ps(P, count), _sb(P, count)
    nisa.nc_transpose(dst=bank, data=wide)
    nisa.tensor_copy(dst=columns, src=bank)
    return columns, wide


def _row(source: nl.ndarray, partition: int, columns: Any, count: int, dtype: Any) -> nl.ndarray:
    """`count` elements of one partition, on partition 0."""
    row = _sb(1, count, dtype=dtype)
    nisa.dma_copy(dst=row, src=source[partition : partition + 1, columns])
    return row


def _recurrence(
    projected: nl.ndarray, q: Any, k: Any, v_rows: nl.ndarray, gates: nl.ndarray, start: nl.ndarray,
    work: list[nl.ndarray], states: nl.ndarray, z_gamma: nl.ndarray,
) -> nl.ndarray:  # fmt: skip
    """Both tokens' delta rule and gated norm; the state [128, 512] is the moving operand, q and k one stationary."""
    count, me = TOKENS * HEADS, nl.program_id(0)
    constants, gamma = _sb(1, 2 * count), _sb(1, WIDTH)
    nisa.dma_copy(dst=constants, src=gates)
    nisa.dma_copy(dst=gamma, src=z_gamma)
    raw = _sb(1, 2, count)
    for t in range(TOKENS):
        for which in range(2):
            columns = nl.ds(OFFSETS[3] + which * 2 * HEADS + me * HEADS, HEADS)
            row = _row(projected, t, columns, HEADS, BF16)
            nisa.tensor_copy(dst=raw[:, which, nl.ds(t * HEADS, HEADS)], src=row)
    beta, rate, decay = _sb(1, count), _sb(1, count), _sb(1, count)
    nisa.activation(dst=beta, op=nl.sigmoid, data=raw[:, 1, :])
    nisa.tensor_tensor(dst=rate, data1=raw[:, 0, :], data2=constants[:, nl.ds(count, count)], op=nl.add)
    nisa.activation(dst=rate, op=nl.softplus, data=rate)
    nisa.tensor_tensor(dst=rate, data1=rate, data2=constants[:, nl.ds(0, count)], op=nl.multiply)
    nisa.activation(dst=decay, op=nl.exp, data=rate, scale=-1.0)
    ones, spread = _sb(1, P), _ps(P, count)
    nisa.memset(dst=ones, value=1.0)
    nisa.nc_matmul(dst=spread, stationary=ones, moving=decay, accumulate=False)

    # k beta as rows on partition 0, and q . k beta, for every token and value head.
    flat_k, flat_q = _sb(1, KEY_HEADS * TOKENS, P), _sb(1, KEY_HEADS * TOKENS, P)
    for row in range(KEY_HEADS * TOKENS):
        nisa.dma_copy(dst=flat_k[:, row, :], src=k[1][row : row + 1, :])
        nisa.dma_copy(dst=flat_q[:, row, :], src=q[1][row : row + 1, :])
    weighted, dots, products = _sb(1, count, P), _sb(1, count), _sb(1, count, P)
    for t in range(TOKENS):
        some = nl.ds(t * HEADS, HEADS)
        for source, by, target in ((flat_k, beta, weighted), (flat_q, weighted, products)):
            rows = source.ap([[KEY_HEADS * TOKENS * P, 1], [TOKENS * P, KEY_HEADS], [0, REPEAT], [1, P]], offset=t * P)
            other = (
                by.ap([[count, 1], [REPEAT, KEY_HEADS], [1, REPEAT], [0, P]], offset=t * HEADS)
                if by is beta else by[:, some, :]
            )  # fmt: skip
            nisa.tensor_tensor(dst=target[:, some, :], data1=rows, data2=other, op=nl.multiply)
    nisa.tensor_reduce(dst=dots, op=nl.add, data=products, axis=2)
    pair = _sb(P, KEY_HEADS * TOKENS, 2)
    nisa.tensor_copy(dst=pair[:, :, 0], src=k[0])
    nisa.tensor_copy(dst=pair[:, :, 1], src=q[0])

    collected = _sb(TOKENS, WIDTH, dtype=BF16)
    held = start
    waiting: list[tuple[nl.ndarray, nl.ndarray]] = []
    for t in range(TOKENS):
        now, grown = work[t % 2], spread.ap([[count, P], [1, HEADS], [0, P]], offset=t * HEADS)
        nisa.tensor_tensor(dst=now, data1=held, data2=grown, op=nl.multiply)
        read = _ps(2, WIDTH)
        for head in range(KEY_HEADS):
            columns = nl.ds(head * REPEAT * P, REPEAT * P)
            nisa.nc_matmul(
                dst=read[:, columns], stationary=pair[:, head * TOKENS + t, :], moving=now[:, columns], accumulate=False
            )
        value, delta = _sb(1, HEADS, P, dtype=BF16), _sb(1, WIDTH)
        for head in range(HEADS):
            at = head * TOKENS + t
            nisa.dma_copy(dst=value[:, head, :], src=v_rows[at : at + 1, :])
        nisa.tensor_tensor(dst=delta, data1=value, data2=read[0:1, :], op=nl.subtract)
        update = _ps(P, WIDTH)
        for head in range(HEADS):
            columns = nl.ds(head * P, P)
            nisa.nc_matmul(
                dst=update[:, columns], stationary=weighted[:, t * HEADS + head, :], moving=delta[:, columns],
                accumulate=False,
            )  # fmt: skip
        nisa.tensor_tensor(dst=now, data1=now, data2=update, op=nl.add)
        nisa.dma_copy(dst=states[t], src=now)
        held = now
        # A token's norm passes behind the next one's update, as the measured kernel's did.
        for read_before, delta_before in waiting:
            _gated(collected, read_before, delta_before, dots, projected, gamma, t - 1)
        waiting = [(read, delta)]
    for read_before, delta_before in waiting:
        _gated(collected, read_before, delta_before, dots, projected, gamma, TOKENS - 1)
    return collected


def _gated(
    collected: nl.ndarray, read: nl.ndarray, delta: nl.ndarray, dots: nl.ndarray, projected: nl.ndarray,
    gamma: nl.ndarray, t: int,
) -> None:  # fmt: skip
    """o = (state before) q + (q . k beta) delta, its gated norm, and its place among the tokens."""
    both, query, o = _sb(32, WIDTH), _sb(32, WIDTH), _sb(1, WIDTH)
    nisa.tensor_copy(dst=both[0:2, :], src=read, engine=nisa.engine.scalar)
    nisa.nc_stream_shuffle(dst=query[0:1, :], src=both[0:2, :], shuffle_mask=[1] + [255] * 31)
    scale = dots.ap([[TOKENS * HEADS, 1], [1, HEADS], [0, P]], offset=t * HEADS)
    nisa.tensor_tensor(dst=o, data1=delta, data2=scale, op=nl.multiply)
    nisa.tensor_tensor(dst=o, data1=o, data2=query[0:1, :], op=nl.add)
    squares, total, inverse = _sb(1, WIDTH), _sb(1, HEADS), _sb(1, HEADS)
    nisa.activation(dst=squares, op=nl.square, data=o)
    nisa.tensor_reduce(dst=total, op=nl.add, data=squares.reshape((1, HEADS, P)), axis=2)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=total, scale=1.0 / P)
    by_head = inverse.ap([[HEADS, 1], [1, HEADS], [0, P]])
    nisa.tensor_tensor(dst=o, data1=o, data2=by_head, op=nl.multiply)
    nisa.tensor_tensor(dst=o, data1=o, data2=gamma, op=nl.multiply)
    z, gate = _row(projected, t, nl.ds(OFFSETS[4], WIDTH), WIDTH, BF16), _sb(1, WIDTH)
    nisa.activation(dst=gate, op=nl.silu, data=z)
    done = _sb(1, WIDTH, dtype=BF16)
    nisa.tensor_tensor(dst=done, data1=o, data2=gate, op=nl.multiply)
    nisa.dma_copy(dst=collected[t : t + 1, :], src=done)


def _out_proj(out: nl.ndarray, collected: nl.ndarray, weight: nl.ndarray, me: int) -> None:
    """This core's heads' part of the output, and the other's half of it added to one's own."""
    turned = _sb(P, HEADS, TOKENS, dtype=BF16)
    for head in range(HEADS):
        bank = _ps(P, TOKENS, dtype=BF16)
        nisa.nc_transpose(dst=bank, data=collected[:, nl.ds(head * P, P)])
        nisa.tensor_copy(dst=turned[:, head, :], src=bank)
    part = _sb(TOKENS, HIDDEN, dtype=BF16)
    for block in range(4):
        sums = _ps(TOKENS, 512)
        for head in range(HEADS):
            columns = nl.ds(head * HIDDEN + block * 512, 512)
            nisa.nc_matmul(dst=sums, stationary=turned[:, head, :], moving=weight[:, columns], accumulate=head > 0)
        nisa.tensor_copy(dst=part[:, nl.ds(block * 512, 512)], src=sums)
    half = HIDDEN // 2
    mine, theirs = nl.ds(me * half, half), nl.ds((1 - me) * half, half)
    sent, received, whole = (_sb(TOKENS, half, dtype=BF16) for _ in range(3))
    nisa.tensor_copy(dst=sent, src=part[:, theirs])
    nisa.sendrecv(src=sent, dst=received, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=0)
    nisa.tensor_tensor(dst=whole, data1=part[:, mine], data2=received, op=nl.add)
    nisa.dma_copy(dst=out[:, mine], src=whole)


def _store_windows(windows: nl.ndarray, held: list[Any]) -> None:
    steps = TAPS - 1
    for window, at, count in held:
        for t in range(TOKENS):
            block = _sb(count, P, steps)
            for j in range(steps):
                bank = _ps(count, P)
                nisa.nc_transpose(dst=bank, data=window[:, :, t + 1 + j])
                nisa.tensor_copy(dst=block[:, :, j], src=bank)
            nisa.dma_copy(dst=windows[t, nl.ds(at, count), :], src=block.reshape((count, P * steps)))
