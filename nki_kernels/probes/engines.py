"""Probes of VectorE, ScalarE, GpSimd and the sequencer: how long instructions hold an engine, how long results take."""

import nki
import nki.isa as nisa
import nki.language as nl

from .parts import ROWS, copies, loaded, sbuf, stored


@nki.jit
def vector_scale(x: nl.ndarray, tiles: int, repeats: int = 1) -> nl.ndarray:
    """x [128, n] * 1 in place, `tiles` of them in turn: one is a chain, eight are not -> [cores, tiles, 128, n]."""
    held = copies(x, tiles)
    for n in range(repeats):
        tile = held[n % tiles]
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=1.0, engine=nisa.engine.vector)
    return stored(held)


@nki.jit
def activations(x: nl.ndarray, others: str, tiles: int, repeats: int = 1) -> nl.ndarray:
    """exp(0 * x) in place, every second one replaced by `others`: "exp", "sigmoid", "copy" -> [cores, tiles, 128, n].

    With "sigmoid" every second tile of the result is 1/2, the others 1.
    """
    held = copies(x, tiles)
    for n in range(repeats):
        tile = held[n % tiles]
        if n % 2 == 0 or others == "exp":
            nisa.activation(dst=tile, op=nl.exp, data=tile, scale=0.0)
        elif others == "sigmoid":
            nisa.activation(dst=tile, op=nl.sigmoid, data=tile, scale=0.0)
        else:
            nisa.activation(dst=tile, op=nl.copy, data=tile)
    return stored(held)


@nki.jit
def biased_copy(x: nl.ndarray, bias: nl.ndarray) -> nl.ndarray:
    """x [128, n] + bias [128, 1] by an activation that copies -> [cores, 1, 128, n]."""
    data, add = loaded(x), loaded(bias)
    nisa.activation(dst=data, op=nl.copy, data=data, bias=add)
    return stored([data])


@nki.jit
def sums_read_out(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """Sums over columns of exp(0 * x), x [128, n], in eight tiles in turn -> [cores, 8, 128, 1]."""
    held, sums = copies(x, 8), []
    for _ in range(8):
        sums.append(sbuf(nl.float32, (ROWS, 1)))
    for n in range(8 + repeats):
        tile = held[n % 8]
        nisa.activation_reduce(dst=tile, op=nl.exp, data=tile, scale=0.0, reduce_op=nl.add, reduce_res=sums[n % 8])
    return stored(sums)


@nki.jit
def hand_over(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, n] from VectorE to ScalarE and back, repeated -> [cores, 1, 128, n]."""
    here = loaded(x)
    there = sbuf(x.dtype, x.shape)
    for _ in range(repeats):
        nisa.tensor_copy(dst=there, src=here, engine=nisa.engine.vector)
        nisa.tensor_copy(dst=here, src=there, engine=nisa.engine.scalar)
    return stored([here])


@nki.jit
def gpsimd_copies(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, n] from one tile to the other by GpSimd, four pairs in turn -> [cores, 4, 128, n]."""
    held, other = copies(x, 4), copies(x, 4)
    for n in range(repeats):
        nisa.tensor_copy(dst=other[n % 4], src=held[n % 4], engine=nisa.engine.gpsimd)
    return stored(other)


@nki.jit
def gpsimd_sums(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, n] + x by GpSimd, four pairs in turn -> [cores, 4, 128, n]."""
    held, other = copies(x, 4), copies(x, 4)
    for n in range(4 + repeats):
        nisa.tensor_tensor(dst=other[n % 4], data1=held[n % 4], data2=held[n % 4], op=nl.add, engine=nisa.engine.gpsimd)
    return stored(other)


@nki.jit
def gpsimd_selects(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, n] below its diagonal and on it, zero above, four tiles in turn -> [cores, 4, 128, n]."""
    held = copies(x, 4)
    for n in range(4 + repeats):
        tile = held[n % 4]
        nisa.affine_select(
            dst=tile, pattern=[[-1, x.shape[1]]], channel_multiplier=1, on_true_tile=tile, on_false_value=0.0,
            cmp_op=nl.greater_equal,
        )  # fmt: skip
    return stored(held)


@nki.jit
def partition_sums(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """Sums over the partitions of x [128, n] by GpSimd, four tiles in turn -> [cores, 4, 1, n]."""
    held, sums = copies(x, 4), []
    for _ in range(4):
        sums.append(sbuf(x.dtype, (1, x.shape[1])))
    for n in range(4 + repeats):
        nisa.tensor_partition_reduce(dst=sums[n % 4], op=nl.add, data=held[n % 4])
    return stored(sums)


@nki.jit
def hardware_loop(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, n] from one tile to another, in a loop of the sequencer -> [cores, 1, 128, n]."""
    tile, other = loaded(x), sbuf(x.dtype, x.shape)
    nisa.memset(dst=other, value=0.0)
    for _ in nl.dynamic_range(repeats):
        nisa.tensor_copy(dst=other, src=tile, engine=nisa.engine.vector)
    return stored([other])
