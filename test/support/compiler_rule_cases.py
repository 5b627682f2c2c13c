"""For each rule of the real compiler: pieces of kernels that break it, and the nearest ones that do not."""

from collections.abc import Callable

import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl
import numpy as np

F32, BF16, I32 = nl.float32, nl.bfloat16, nl.int32


def sb(*shape, dtype=F32, value=0):
    tile = nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)
    nisa.memset(tile, value)
    return tile


def ps(*shape, dtype=F32):
    return nl.ndarray(shape, dtype=dtype, buffer=nl.psum)


def read(x, index):
    nisa.dma_copy(sb(4, 4), x.ap([[8, 4], [1, 4]], scalar_offset=index, indirect_dim=1))


def turn(rows, dtype, at=0):
    bank = ps(8, 16, dtype=dtype)
    nisa.nc_transpose(bank[:, at : at + rows], sb(rows, 8, dtype=dtype))


def products(x, *accumulate):
    """One product a value into the same tile, which is read after each."""
    bank, out = ps(8, 8), sb(8, 8)
    for how in accumulate:
        nisa.nc_matmul(bank, sb(4, 8), sb(4, 8), **({} if how is None else {"accumulate": how}))
        nisa.tensor_copy(out, bank)


def exchange(x, part):
    whole = sb(4, 8)
    mine = whole[:, 0:4] if part else whole
    into = sb(4, 4) if part else sb(4, 8)
    other = 1 - nl.program_id(0)
    nisa.sendrecv(mine, into, other, other, 0)


def scratch(shape):
    return nl.ndarray(shape, dtype=F32, buffer=nl.hbm)


def moved(t):
    """Two columns of a [4, 8] tensor from an index on."""
    return t.ap([[8, 4], [1, 2]], scalar_offset=sb(1, 1, dtype=I32, value=1), indirect_dim=1)


def act(op, **options):
    nisa.activation(sb(4, 8), op, sb(4, 8), **options)


def squares(op):
    nisa.activation_reduce(sb(4, 8), op, sb(4, 8), nl.add, sb(4, 1))


def pair(op, dtype, engine=nisa.engine.gpsimd):
    nisa.tensor_tensor(sb(4, 8, dtype=dtype), sb(4, 8, dtype=dtype), sb(4, 8, dtype=dtype), op, engine=engine)


def looped(outside, keep=False):
    before, kept = ps(8, 8), []
    for _ in nl.dynamic_range(2):
        bank = before if outside else ps(8, 8)
        nisa.nc_matmul(bank, sb(4, 8), sb(4, 8), accumulate=False)
        nisa.tensor_copy(sb(8, 8), bank)
        kept.append(bank)
    if keep:
        nisa.tensor_copy(sb(8, 8), kept[-1])


def looped_twice():
    kept = []
    for _ in nl.dynamic_range(1):
        kept.append(ps(8, 8))
        nisa.nc_matmul(kept[0], sb(4, 8), sb(4, 8), accumulate=False)
    for _ in nl.dynamic_range(1):
        nisa.nc_matmul(kept[0], sb(4, 8), sb(4, 8), accumulate=True)


def reduce(columns):
    nisa.tensor_reduce(sb(4, 1), nl.add, sb(4, columns), axis=1)


def placed(first, second, buffer=nl.sbuf):
    for i, by_hand in enumerate((first, second)):
        address = (0, 2048 * i) if by_hand else None
        nisa.memset(nl.ndarray((4, 8), dtype=F32, buffer=buffer, address=address), 0)


def crowded(x, used, dynamic):
    """``used`` bytes a partition of SBUF are live around a DMA."""
    tile = sb(4, used // 4 - 2)
    index = sb(1, 1, dtype=I32)
    nisa.dma_copy(sb(4, 1), x.ap([[8, 4], [1, 1]], scalar_offset=index if dynamic else None, indirect_dim=1))
    nisa.tensor_copy(tile, tile)


def gather(x, index):
    return x.ap([[8, 4], [1, 8]], vector_offset=index)


def ramp(rows, columns):
    tile = nl.ndarray((rows, columns), dtype=F32)
    nisa.iota(tile, [[1, columns]], channel_multiplier=columns)
    return tile


def counted(rows, first=1):
    tile = nl.ndarray((rows, 1), dtype=I32)
    nisa.iota(tile, [[0, 1]], offset=first, channel_multiplier=1)
    return tile


def part(position, size, n=8):
    """A product on a part of the array."""
    rows = slice(position[1], position[1] + n)
    nisa.nc_matmul(ps(128, 8)[rows, :], sb(8, n), sb(8, 8), tile_position=position, tile_size=size)


def both_write(same, barrier=False):
    shared, me = nl.ndarray((4, 8), dtype=F32, buffer=nl.shared_hbm), nl.program_id(0)
    if barrier and me == 1:
        nisa.core_barrier(shared, (0, 1))
    nisa.dma_copy(shared, sb(4, 8, value=1.0 if same else float(me)))
    if barrier and me == 0:
        nisa.core_barrier(shared, (0, 1))


def both_write_over(mine):
    """Each core its own number first, then `mine` of it."""
    shared, me = nl.ndarray((4, 8), dtype=F32, buffer=nl.shared_hbm), nl.program_id(0)
    nisa.dma_copy(shared, sb(4, 8, value=float(me)))
    nisa.dma_copy(shared[0:2], sb(2, 8, value=mine(me)))
    nisa.dma_copy(shared[2:4], sb(2, 8, value=mine(me)))


ALONE = ncc.ReplicaGroup([[0]])


def summed(src, dst, replica_group=ALONE):
    ncc.all_reduce([src], [dst], replica_group, nl.add)


def named(name, shape=(4, 8), buffer=nl.hbm):
    return nl.ndarray(shape, dtype=F32, buffer=buffer, name=name)


# Rule: [(what breaks it, match)], [what does not]. Each runs with the argument x, float32 [4, 8].
CASES: dict[str, tuple[list[tuple[Callable, str]], list[Callable]]] = {
    "index-tile": (
        [
            (lambda x: read(x, sb(1, 4, dtype=I32)[0:1, 1:2]), r"dma_copy: operand 'src.scalar_offset'.*element 1 of"),
            (lambda x: read(x, sb(1, 4, dtype=I32)[0:1, 0:1]), r"element 0 of '.*' \(1, 4\).*\(1, 1\) tile of its own"),
            (lambda x: read(x, sb(4, 1, dtype=I32).ap([[1, 1], [1, 1]], offset=2)), r"element 2 of"),
        ],
        [lambda x: read(x, sb(1, 1, dtype=I32)), lambda x: read(x, nisa.register_alloc(1))],
    ),
    "array-tile": (
        [
            (lambda x: part((0, 0), (16, 32)), r"nc_matmul: operand 'tile_size'.*row size 16 is not 32, 64 or 128"),
            (lambda x: part((0, 64), (128, 48), 32), r"column size 48 is not 32, 64 or 128: name the next larger size"),
        ],
        [lambda x: part((0, 96), (32, 32)), lambda x: part((0, 64), (128, 64), 32)],
    ),
    "odd-transpose": (
        [
            (lambda x: turn(3, BF16), r"3 elements.*even number of rows, or through a float32 tile"),
            (lambda x: turn(2, BF16, at=1), r"from byte 2 of a 4-byte word"),
            (
                lambda x: nisa.nc_matmul(
                    ps(8, 3, dtype=BF16), sb(3, 8, dtype=BF16), sb(3, 3, dtype=BF16), is_transpose=True
                ),
                r"nc_matmul: operand 'dst'.*3 elements",
            ),
        ],
        [
            lambda x: turn(2, BF16), lambda x: turn(4, BF16, at=6), lambda x: turn(1, F32),
            lambda x: turn(3, F32, at=1),
            lambda x: nisa.nc_transpose(sb(8, 3, dtype=BF16), sb(3, 8, dtype=BF16)),
        ],
    ),
    "transpose-of-one": (
        [
            (lambda x: turn(1, BF16), r"nc_transpose: operand 'dst'.*1 elements a partition of bfloat16"),
            (lambda x: turn(1, nl.float8_e4m3), r"1 elements a partition of float8_e4m3"),
        ],
        [lambda x: turn(1, F32), lambda x: turn(2, BF16)],
    ),
    "psum-view": (
        [
            (lambda x: ps(8, 8).view(BF16), r"view: .*'psum.*float32 PSUM tile is viewed as bfloat16.*of the type"),
            (lambda x: ps(8, 8, dtype=BF16).view(F32), r"bfloat16 PSUM tile is viewed as float32"),
            (lambda x: ps(8, 8).ap([[16, 8], [1, 16]], dtype=BF16), r"ap: .*viewed as bfloat16"),
        ],
        [lambda x: ps(8, 8).view(I32), lambda x: sb(8, 8).view(BF16), lambda x: ps(8, 8, dtype=BF16)],
    ),
    "psum-tile": (
        [
            (lambda x: ps(128, 1024), r"ndarray: operand 'shape'.*4096 bytes a partition.*one tile a bank"),
            (lambda x: ps(4, 2, 513, dtype=BF16), r"2052 bytes"),
        ],
        [lambda x: ps(128, 512), lambda x: ps(128, 1024, dtype=BF16)],
    ),
    "dma-leading": (
        [
            (lambda x: nisa.dma_copy(sb(8, 4), x.reshape((4, 2, 4))), r"dma_copy: .*'src'.*\(4, 2, 4\).*\(8, 4\)"),
            (lambda x: nisa.dma_copy(x.reshape((2, 16)), sb(4, 8)), r"src is \(4, 8\), dst is \(2, 16\)"),
            (lambda x: nisa.dma_copy(sb(4, 8), x.reshape((32,))), r"\(32,\).*reshape or .ap"),
        ],
        [
            lambda x: nisa.dma_copy(sb(8, 4), x.reshape((8, 4))), lambda x: nisa.dma_copy(sb(4, 2, 4), x),
            lambda x: nisa.dma_copy(scratch((2, 16)), x),
        ],
    ),
    "dma-flat": (
        [
            (lambda x: nisa.dma_copy(sb(1, 32), x.reshape((32,))), r"\(32,\).*reshape or .ap"),
            (lambda x: nisa.dma_copy(scratch((32,)), sb(1, 32)), r"dst is \(32,\).*reshape or .ap"),
        ],
        [lambda x: nisa.dma_copy(sb(1, 32), x.reshape((1, 32)))],
    ),
    "constant-argument": (
        [(lambda x: nl.shared_constant(np.eye(4, dtype=np.float32)), r"shared_constant.*is a ndarray.*an argument")],
        [lambda x: x],
    ),
    "tensor-truth": (
        [(lambda x: bool(x), r"if/while: operand 'x'.*cannot steer.*explicit flag")],
        [lambda x: len(x.shape)],
    ),
    "collective-io": (
        [(lambda x: summed(x, named("total", buffer=nl.shared_hbm)), "'x' is an argument")],
        [lambda x: summed(named("part"), named("total"))],
    ),
    "collective-name": (
        [
            (lambda x: summed(scratch((4, 8)), named("total")), r"'srcs'.*\(4, 8\) in private_hbm has no name"),
            (lambda x: summed(named("part"), scratch((4, 8))), "'dsts'"),
        ],
        [lambda x: summed(named("part"), named("total")), lambda x: summed(sb(4, 8), sb(4, 8))],
    ),
    "collective-tile": (
        [
            (lambda x: summed(sb(4, 8), sb(4, 16)[:, 0:8]), "all_reduce: operand 'dsts'.*part of each row"),
            (lambda x: summed(sb(4, 16)[:, 8:16], sb(4, 8)), "'srcs'.*part of each row"),
            (lambda x: summed(named("part", (4, 16))[:, 0:8], named("total")), "'srcs'.*part of each row of 'part'"),
        ],
        [
            lambda x: summed(sb(64, 8)[32:64, :], sb(32, 8)),
            lambda x: summed(named("part", (8, 8))[0:4, :], named("total")),
        ],
    ),
    "replica-group": (
        [(lambda x: summed(sb(4, 8), sb(4, 8), ncc.ReplicaGroup([[0]])), "made inside the kernel: make it where")],
        [lambda x: summed(sb(4, 8), sb(4, 8))],
    ),
    "accumulate": (
        [
            (lambda x: products(x, None, None), r"nc_matmul: operand 'dst'.*finished sum.*accumulate=False"),
            (lambda x: products(x, False, None), r"finished sum"),
        ],
        [lambda x: products(x, None), lambda x: products(x, None, False), lambda x: products(x, False, True, False)],
    ),
    "dynamic-copy": (
        [
            (
                lambda x: nisa.dma_copy(
                    scratch((8, 8)).ap([[8, 2], [1, 8]], scalar_offset=sb(1, 1, dtype=I32)),
                    x.ap([[8, 2], [1, 8]], scalar_offset=sb(1, 1, dtype=I32)),
                ),
                r"dma_copy: operand 'dst': 'x' and 'private_hbm.*' both have a dynamic offset: read into SBUF",
            )
        ],
        [
            lambda x: nisa.dma_copy(scratch((2, 8)), x.ap([[8, 2], [1, 8]], scalar_offset=sb(1, 1, dtype=I32))),
            lambda x: nisa.dma_copy(sb(2, 8), x.ap([[8, 2], [1, 8]], scalar_offset=sb(1, 1, dtype=I32))),
        ],
    ),
    "sendrecv-tile": (
        [(lambda x: exchange(x, True), r"sendrecv: operand 'src'.*part of each partition.*tiles of their own")],
        [lambda x: exchange(x, False)],
    ),
    "memset-float": (
        [(lambda x: nisa.memset(sb(4, 8, dtype=I32), 0.0), r"memset: operand 'value': 0.0 is a float, dst is int32")],
        [lambda x: nisa.memset(sb(4, 8, dtype=I32), 0), lambda x: nisa.memset(sb(4, 8), 0)],
    ),
    "activation-bias": (
        [(lambda x: act(nl.copy, bias=sb(4, 1)), r"activation: operand 'bias'.*tensor \(4, 1\).*NCC_IBVF043")],
        [lambda x: act(nl.copy, bias=1.0), lambda x: act(nl.relu, bias=sb(4, 1))],
    ),
    "activation-square-sum": (
        [(lambda x: squares(nl.square), r"activation_reduce: operand 'op'.*square.*tensor_reduce.*NCC_IXCG864")],
        [lambda x: squares(nl.exp), lambda x: act(nl.square)],
    ),
    "gpsimd-arithmetic": (
        [
            (lambda x: pair(nl.add, F32), r"tensor_tensor: .*'engine'.*gpsimd, for nl.add of float32.*NCC_IBIR766"),
            (lambda x: pair(nl.multiply, BF16), r"nl.multiply of bfloat16"),
        ],
        [lambda x: pair(nl.add, I32), lambda x: pair(nl.power, F32), lambda x: pair(nl.add, F32, nisa.engine.vector)],
    ),
    "psum-loop": (
        [
            (lambda x: looped(outside=True), r"nc_matmul: operand 'psum.*outside the device loop.*NCC_IBIR092"),
            (lambda x: looped(outside=False, keep=True), r"tensor_copy: operand 'psum.*outside the device loop"),
            (lambda x: looped_twice(), r"outside the device loop"),
        ],
        [lambda x: looped(outside=False), lambda x: [products(x, False) for _ in range(2)]],
    ),
    "reduce-size": (
        [(lambda x: reduce(16385), r"tensor_reduce: operand 'data'.*16385 elements a partition.*in pieces")],
        [lambda x: reduce(16384)],
    ),
    "mixed-placement": (
        [
            (lambda x: placed(True, False), r"sbuf: '.*' has an address and '.*' has none.*NCC_EGCA111"),
            (lambda x: placed(True, False, nl.psum), r"psum: '.*' has an address"),
        ],
        [lambda x: placed(True, True), lambda x: placed(False, False)],
    ),
    "dma-scratch": (
        [(lambda x: crowded(x, 212984 - 16380, True), r"16380 bytes a partition are free.*dma_copy.*dynamic address")],
        [lambda x: crowded(x, 212984 - 16384 - 64, True), lambda x: crowded(x, 212984 - 256, False)],
    ),
    "dynamic-sbuf": (
        [
            (
                lambda x: nisa.tensor_copy(sb(4, 2), moved(sb(4, 8))),
                r"tensor_copy: operand 'src'.*value of run time.*NCC_INLA001",
            )
        ],
        [lambda x: nisa.dma_copy(sb(4, 2), moved(x))],
    ),
    "dynamic-transpose": (
        [
            (
                lambda x: nisa.dma_transpose(sb(2, 4), moved(x)),
                r"dma_transpose: operand 'src'.*dynamic offset: copy with the offset first",
            )
        ],
        [lambda x: nisa.dma_transpose(sb(8, 4), x)],
    ),
    "reshaped-store": (
        [
            (lambda x: nisa.dma_copy(scratch((4, 8)).reshape((8, 4)), sb(8, 4)), r"dma_copy: .*'dst'.*reshape\(\)"),
            (lambda x: nisa.dma_copy(scratch((4, 8)).reshape((8, 4))[0:2], sb(2, 4)), r"write through slices"),
        ],
        [
            lambda x: nisa.dma_copy(scratch((4, 8)).ap([[4, 8], [1, 4]]), sb(8, 4)),
            lambda x: nisa.dma_copy(sb(4, 8).reshape((4, 2, 4)), x),
            lambda x: nisa.dma_copy(sb(8, 4), x.reshape((8, 4))),
        ],
    ),
    "gather-bounds": (
        [
            (
                lambda x: nisa.dma_copy(sb(4, 8), gather(x, counted(4)), oob_mode=nisa.oob_mode.skip),
                r"dma_copy: operand 'src.vector_offset'.*1 of 4 are out of bounds: clamp the indices",
            )
        ],
        [
            lambda x: nisa.dma_copy(sb(4, 8), gather(x, counted(4, 0))),
            lambda x: nisa.dma_copy(sb(4, 8), gather(x, counted(4, 4)), oob_mode=nisa.oob_mode.skip),
            lambda x: nisa.dma_copy(gather(scratch((4, 8)), counted(4)), sb(4, 8), oob_mode=nisa.oob_mode.skip),
        ],
    ),
    "scatter-twice": (
        [
            (
                lambda x: nisa.dma_copy(gather(scratch((4, 8)), sb(4, 1, dtype=I32)), ramp(4, 8)),
                r"dma_copy: operand 'dst.vector_offset'.*24 elements get two values.*distinct scratch rows",
            )
        ],
        [
            lambda x: nisa.dma_copy(gather(scratch((4, 8)), sb(4, 1, dtype=I32)), sb(4, 8)),
            lambda x: nisa.dma_copy(gather(scratch((4, 8)), counted(4, 0)), ramp(4, 8)),
        ],
    ),
    "written-twice": (
        [
            (lambda x: both_write(False), r"dma_copy: operand 'dst'.*other values from core 0 since the last"),
            (lambda x: both_write_over(lambda me: 3.0 + me), r"dma_copy: operand 'dst'.*other values from core 0"),
        ],
        [
            lambda x: both_write(True),
            lambda x: both_write(False, barrier=True),
            lambda x: both_write_over(lambda me: 3.0),
        ],
    ),
}  # fmt: skip
BREAKS = [(rule, act, match) for rule, (bad, _) in CASES.items() for act, match in bad]
KEEPS = [(rule, act) for rule, (_, good) in CASES.items() for act in good]
