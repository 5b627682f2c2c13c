"""SwiGLU MLP whose weights are float8_e4m3 with a scale an output channel."""

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import Bank, identity, make_banks, sbuf, split, turn_into

ROWS = 128
COLUMNS = 512


@nki.jit
def fp8_mlp(
    x: nl.ndarray,
    gate: nl.ndarray,
    up: nl.ndarray,
    down: nl.ndarray,
    gate_scale: nl.ndarray,
    up_scale: nl.ndarray,
    down_scale: nl.ndarray,
) -> nl.ndarray:
    """(silu(x gate) * (x up)) down, every weight being its code times the scale of its output channel.

    Codes multiply bfloat16 activations as they are, exactly; scales go on sums. Every weight is read once. At decode
    that is what it costs: double_row would halve TensorE's time, which is not what binds, and needs float8 activations.

    Dimensions:
        N: tokens, at most 512
        H: hidden size, a multiple of 512
        I: intermediate size of this rank, a multiple of 128; with two cores each takes half, and the results are the
            two parts of a sum, [2, N, H]

    Args:
        x (nl.ndarray): [N, H], bfloat16
        gate (nl.ndarray): [H, I], uint8, float8_e4m3 codes (IEEE-like: largest 240)
        up (nl.ndarray): [H, I], uint8, codes
        down (nl.ndarray): [I, H], uint8, codes
        gate_scale (nl.ndarray): [I, 1], float32
        up_scale (nl.ndarray): [I, 1], float32
        down_scale (nl.ndarray): [1, H], float32

    Returns:
        y (nl.ndarray): [cores, N, H], float32: the sum over its first dimension is the result

    Pseudocode:
        h = silu((x gate) * gate_scale) * ((x up) * up_scale), rounded to bfloat16
        y = (h down) * down_scale
    """
    tokens, hidden = x.shape
    cores = nl.num_programs()
    assert tokens <= COLUMNS, f"{tokens} tokens, at most {COLUMNS}"
    assert hidden % COLUMNS == 0, f"hidden size {hidden} is not a multiple of {COLUMNS}"
    assert gate.shape[1] % (ROWS * cores) == 0, f"{gate.shape[1]} channels are not a multiple of {ROWS * cores}"
    own = gate.shape[1] // cores
    core = nl.program_id(0) if cores > 1 else 0
    first, lines, blocks = core * own, hidden // ROWS, own // ROWS
    y = nl.ndarray((cores, tokens, hidden), dtype=nl.float32, buffer=nl.shared_hbm)

    psum, given = make_banks(), (gate_scale, up_scale)
    turned = _turn(x, psum)
    inner = sbuf(nl.bfloat16, (ROWS, blocks, tokens))
    # Long runs keep the DMA engines efficient: six blocks of columns at a time, then 1,024 columns.
    for part in split(blocks, 6):
        columns = (part[1] - part[0]) * ROWS
        weights = []
        for weight in (gate, up):
            # [h, i] of every line of 128 hidden channels
            pattern = [[weight.shape[1], ROWS], [weight.shape[1] * ROWS, lines], [1, columns]]
            codes = sbuf(nl.uint8, (ROWS, lines, columns))
            nisa.dma_copy(dst=codes, src=weight.ap(pattern=pattern, offset=first + part[0] * ROWS))
            weights.append(codes.view(nl.float8_e4m3))
        for block in range(part[0], part[1]):
            at, column = first + block * ROWS, (block - part[0]) * ROWS
            sums, scales = [], []
            for side in range(2):
                bank, scale = psum.take()[:, 0:tokens], sbuf(nl.float32, (ROWS, 1))
                nisa.dma_copy(dst=scale, src=given[side][at : at + ROWS])
                for n in range(lines):
                    # [h, i] x [h, t] -> [i, t]
                    nisa.nc_matmul(
                        dst=bank, stationary=weights[side][:, n : n + 1, column : column + ROWS],
                        moving=turned[:, n : n + 1], accumulate=n > 0,
                    )  # fmt: skip
                sums.append(bank)
                scales.append(scale)
            opened = sbuf(nl.float32, (ROWS, tokens))
            nisa.activation(dst=opened, op=nl.silu, data=sums[0], scale=scales[0])
            nisa.scalar_tensor_tensor(
                dst=inner[:, block : block + 1], data=sums[1], op0=nl.multiply, operand0=scales[1], op1=nl.multiply,
                operand1=opened,
            )  # fmt: skip
    for part in split(hidden // COLUMNS, 2):
        begin, columns = part[0] * COLUMNS, (part[1] - part[0]) * COLUMNS
        codes, scale = sbuf(nl.uint8, (ROWS, blocks, columns)), sbuf(nl.float32, (ROWS, columns))
        pattern = [[hidden, ROWS], [hidden * ROWS, blocks], [1, columns]]
        nisa.dma_copy(dst=codes, src=down.ap(pattern=pattern, offset=first * hidden + begin))
        nisa.dma_copy(dst=scale, src=down_scale.ap(pattern=[[0, ROWS], [1, columns]], offset=begin))
        weight = codes.view(nl.float8_e4m3)
        for start in range(0, tokens, ROWS):
            rows = min(ROWS, tokens - start)
            out = sbuf(nl.float32, (rows, columns))
            for column in range(0, columns, COLUMNS):
                bank = psum.take()[0:rows]
                for block in range(blocks):
                    # [i, t] x [i, c] -> [t, c]
                    nisa.nc_matmul(
                        dst=bank, stationary=inner[:, block : block + 1, start : start + rows],
                        moving=weight[:, block : block + 1, column : column + COLUMNS], accumulate=block > 0,
                    )  # fmt: skip
                nisa.tensor_tensor(
                    dst=out[:, column : column + COLUMNS], data1=bank, data2=scale[0:rows, column : column + COLUMNS],
                    op=nl.multiply, engine=nisa.engine.vector,
                )  # fmt: skip
            place = y.ap(pattern=[[hidden, rows], [1, columns]], offset=(core * tokens + start) * hidden + begin)
            nisa.dma_copy(dst=place, src=out)
    return y


def _turn(x: nl.ndarray, psum: Bank) -> nl.ndarray:
    """[N, H] of HBM as [h, H / 128, N]."""
    tokens, hidden = x.shape
    lines = hidden // ROWS
    turned, eye = sbuf(x.dtype, (ROWS, lines, tokens)), identity(x.dtype)
    for start in range(0, tokens, ROWS):
        rows = min(ROWS, tokens - start)
        raw = sbuf(x.dtype, (rows, hidden))
        nisa.dma_copy(dst=raw, src=x[start : start + rows])
        for n in range(0, lines, 4):
            bank = psum.take()[:, 0 : 4 * rows]
            for line in range(4):
                at = (n + line) * ROWS
                turn_into(bank[:, line * rows : (line + 1) * rows], raw[:, at : at + ROWS], eye)
            nisa.tensor_copy(dst=turned[:, n : n + 4, start : start + rows], src=bank, engine=nisa.engine.vector)
    return turned
