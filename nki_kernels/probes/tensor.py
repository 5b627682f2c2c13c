"""Probes of TensorE and PSUM: what a bank takes, how exact products are, what they and their loads cost."""

import nki
import nki.isa as nisa
import nki.language as nl

from .parts import ROWS, copies, evicted, loaded, me, psum, result, sbuf, stored

HALF = 64
BANK_COLUMNS = 512


@nki.jit
def odd_transposes(x: nl.ndarray) -> nl.ndarray:
    """x [3, 128] and its first row, turned into PSUM of x's type -> [cores, 128, 4]: three columns, then one."""
    data, out = loaded(x), result(ROWS, 4, x.dtype)
    three, one = psum(x.dtype, (ROWS, 3)), psum(x.dtype, (ROWS, 1))
    nisa.nc_transpose(dst=three, data=data)
    nisa.nc_transpose(dst=one, data=data[0:1])
    nisa.dma_copy(dst=out[me(), :, 0:3], src=evicted(three))
    nisa.dma_copy(dst=out[me(), :, 3:4], src=evicted(one))
    return out


@nki.jit
def bank_as_another_type(x: nl.ndarray) -> nl.ndarray:
    """x [128, 128] in 2-byte elements, turned into a float32 bank viewed as x's type -> [cores, 128, 128]."""
    data, out = loaded(x), result(ROWS, ROWS, x.dtype)
    narrow = psum(nl.float32, (ROWS, HALF)).view(x.dtype)
    nisa.nc_transpose(dst=narrow, data=data)
    nisa.dma_copy(dst=out[me()], src=evicted(narrow))
    return out


@nki.jit
def two_banks(a: nl.ndarray, b: nl.ndarray) -> nl.ndarray:
    """a [128, 128]^T @ b [128, 1024] into one tile of two banks -> [cores, 128, 1024]."""
    left, right, out = loaded(a), loaded(b), result(ROWS, 2 * BANK_COLUMNS, nl.float32)
    both = psum(nl.float32, (ROWS, 2 * BANK_COLUMNS))
    for n in range(2):
        part = n * BANK_COLUMNS
        nisa.nc_matmul(
            dst=both[:, part : part + BANK_COLUMNS], stationary=left, moving=right[:, part : part + BANK_COLUMNS],
            accumulate=False,
        )  # fmt: skip
    nisa.dma_copy(dst=out[me()], src=evicted(both))
    return out


@nki.jit
def sums_in_turn(a: nl.ndarray, b: nl.ndarray) -> nl.ndarray:
    """a [128, 128]^T @ b [128, n] twice into one tile without accumulate=, read after each -> [cores, 2, 128, n]."""
    left, right, bank = loaded(a), loaded(b), psum(nl.float32, (a.shape[1], b.shape[1]))
    nisa.nc_matmul(dst=bank, stationary=left, moving=right)
    first = evicted(bank)
    nisa.nc_matmul(dst=bank, stationary=left, moving=right)
    return stored([first, evicted(bank)])


@nki.jit
def products(
    a: nl.ndarray, b: nl.ndarray, alternate: bool = False, onezero: bool = False, step: int = 1, repeats: int = 1
) -> nl.ndarray:
    """Sums of repeats // 4 products a [k, m]^T @ b [k, n] in four banks in turn -> [cores, 4, m, n].

    Args:
        alternate: two equal stationaries in two tiles take turns, so that each product loads its own.
        onezero: a is said to hold ones and zeros alone.
        step: the moving operand is every step-th column of b [k, step * n].
        repeats: products, a multiple of 4.
    """
    lefts, right, columns = copies(a, 2), loaded(b), b.shape[1] // step
    banks, tiles = [], []
    for _ in range(4):
        banks.append(psum(nl.float32, (a.shape[1], columns)))
    for n in range(repeats):
        nisa.nc_matmul(
            dst=banks[n % 4], stationary=lefts[n % 2 if alternate else 0], moving=right[:, 0 : columns * step : step],
            is_stationary_onezero=onezero, accumulate=n >= 4,
        )  # fmt: skip
    for n in range(4):
        tiles.append(evicted(banks[n]))
    return stored(tiles)


@nki.jit
def halves(a: nl.ndarray, b: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """Sums of repeats // 2 products of the upper and lower 64 rows of a [128, m] and b [128, n] -> [cores, 2, m, n].

    The two take turns on the two halves of the array's rows, so that they can overlap.
    """
    left, right = loaded(a), loaded(b)
    upper, lower = psum(nl.float32, (a.shape[1], b.shape[1])), psum(nl.float32, (a.shape[1], b.shape[1]))
    for n in range(repeats // 2):
        nisa.nc_matmul(
            dst=upper, stationary=left[0:HALF], moving=right[0:HALF], tile_position=(0, 0), tile_size=(HALF, ROWS),
            accumulate=n > 0,
        )  # fmt: skip
        nisa.nc_matmul(
            dst=lower, stationary=left[HALF:ROWS], moving=right[HALF:ROWS], tile_position=(HALF, 0),
            tile_size=(HALF, ROWS), accumulate=n > 0,
        )  # fmt: skip
    return stored([evicted(upper), evicted(lower)])


@nki.jit
def product_and_back(a: nl.ndarray, b: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """b [128, n] multiplied by a [128, 128] and evicted to where it was, repeated -> [cores, 1, 128, n]."""
    left, right, bank = loaded(a), loaded(b), psum(nl.float32, (ROWS, b.shape[1]))
    for _ in range(repeats):
        nisa.nc_matmul(dst=bank, stationary=left, moving=right, accumulate=False)
        nisa.tensor_copy(dst=right, src=bank)
    return stored([right])


@nki.jit
def turns(x: nl.ndarray, repeats: int = 1) -> nl.ndarray:
    """x [128, 128] turned into four banks in turn -> [cores, 4, 128, 128]."""
    data, banks, tiles = copies(x, 2), [], []
    for _ in range(4):
        banks.append(psum(x.dtype, (ROWS, ROWS)))
    for n in range(repeats):
        nisa.nc_transpose(dst=banks[n % 4], data=data[n % 2])
    for n in range(4):
        tiles.append(evicted(banks[n]))
    return stored(tiles)


@nki.jit
def codes_of_fp8(x: nl.ndarray) -> nl.ndarray:
    """x, uint8 [128, n], read as float8_e4m3 -> float32 [cores, 128, n]."""
    data, out = loaded(x), result(ROWS, x.shape[1], nl.float32)
    tile = sbuf(nl.float32, x.shape)
    nisa.tensor_copy(dst=tile, src=data.view(nl.float8_e4m3))
    nisa.dma_copy(dst=out[me()], src=tile)
    return out
