"""Probes of the two cores of a logical one: exchanging tiles, and waiting for each other."""

import nki
import nki.isa as nisa
import nki.language as nl

from .parts import loaded, me, result, sbuf, stored


@nki.jit
def exchange_columns(x: nl.ndarray) -> nl.ndarray:
    """Columns 0 ... n / 2 of x [cores, 128, n] to the other core, into a part of its tile -> [cores, 1, 128, n]."""
    half = x.shape[2] // 2
    mine = loaded(x[me()])
    into = sbuf(x.dtype, (x.shape[1], x.shape[2]))
    nisa.memset(dst=into, value=0.0)
    nisa.sendrecv(mine[:, 0:half], into[:, half : 2 * half], 1 - me(), 1 - me(), 0)
    return stored([into])


@nki.jit
def exchanges(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [cores, 128, n] to the other core and back, `repeats` times one way -> [cores, 1, 128, n]."""
    mine = loaded(x[me()])
    theirs = sbuf(x.dtype, (x.shape[1], x.shape[2]))
    for n in range(repeats):
        if n % 2 == 0:
            nisa.sendrecv(mine, theirs, 1 - me(), 1 - me(), 0)
        else:
            nisa.sendrecv(theirs, mine, 1 - me(), 1 - me(), 0)
    return stored([mine])


@nki.jit
def barriers(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [cores, 128, n] in shared memory; the other core's is read after `repeats` barriers -> [cores, 128, n]."""
    shared, out = result(x.shape[1], x.shape[2], x.dtype), result(x.shape[1], x.shape[2], x.dtype)
    nisa.dma_copy(dst=shared[me()], src=loaded(x[me()]))
    for _ in range(repeats):
        nisa.core_barrier(shared, (0, 1))
    nisa.dma_copy(dst=out[me()], src=loaded(shared[1 - me()]))
    return out
