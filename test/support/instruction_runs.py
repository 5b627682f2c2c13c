"""Running an instruction on arrays: in from HBM, the instruction, out to HBM."""

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np

F32, BF16, I32, U32 = nl.float32, nl.bfloat16, nl.int32, nl.uint32
RNG = np.random.default_rng(0)


def rand(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def run(body, *arrays, out=None, dtype=F32):
    """Load arrays into SBUF, run ``body(dst, *tiles)``, return dst as stored in ``dtype``."""
    shape = out or arrays[0].shape

    def kernel(*args):
        result = nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)
        tiles = []
        for a in args:
            tile = nl.ndarray(a.shape, dtype=a.dtype)
            nisa.dma_copy(tile, a)
            tiles.append(tile)
        dst = nl.ndarray(shape, dtype=dtype)
        body(dst, *tiles)
        nisa.dma_copy(result, dst)
        return result

    return np.asarray(nki.jit(kernel)(*arrays))


def psum_of(tile, dtype=F32):
    out = nl.ndarray(tile.shape, dtype=dtype, buffer=nl.psum)
    nisa.tensor_copy(out, tile)
    return out
