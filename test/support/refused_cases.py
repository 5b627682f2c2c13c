"""What the interpreter refuses whatever the target: an act, and what the message says."""

from collections.abc import Callable

import nki.isa as nisa
import nki.language as nl

F32, BF16, I32, U32, FP8 = nl.float32, nl.bfloat16, nl.int32, nl.uint32, nl.float8_e4m3


def sb(*shape, dtype=F32, value=0):
    tile = nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)
    nisa.memset(tile, value)
    return tile


def ps(*shape, dtype=F32, value=0):
    tile = nl.ndarray(shape, dtype=dtype, buffer=nl.psum)
    nisa.memset(tile, value)
    return tile


def raw(*shape, dtype=F32, buffer=nl.sbuf):
    return nl.ndarray(shape, dtype=dtype, buffer=buffer)


CASES: dict[str, tuple[Callable, str]] = {
    # Shapes and partitions
    "more than 128 partitions": (lambda x: raw(129, 4), r"ndarray.*129 partitions"),
    "one-dimensional on chip": (lambda x: raw(4), r"ndarray.*partition dimension and a free dimension"),
    "int64": (lambda x: raw(4, 4, dtype="int64"), r"ndarray.*'dtype'.*int64"),
    "string buffer": (lambda x: raw(4, 4, buffer="sbuf"), r"ndarray.*'buffer'.*nl.sbuf"),
    "name taken": (
        lambda x: [nl.ndarray((1, 1), dtype=F32, name="a") for _ in range(2)],
        r"ndarray.*'a' is already taken",
    ),
    "psum address inside a bank": (
        lambda x: nl.ndarray((4, 4), dtype=F32, buffer=nl.psum, address=(0, 100)),
        r"ndarray.*beginning of a 2048-byte",
    ),
    "address past the end": (
        lambda x: nl.ndarray((4, 4), dtype=F32, address=(0, 212976)),
        r"ndarray.*needs 212992 bytes.*has 212984",
    ),
    "start partition 16": (
        lambda x: nisa.tensor_copy(sb(32, 4), sb(128, 4)[16:48, :]),
        r"tensor_copy.*'src'.*start partition 16 with 32",
    ),
    "start partition 32 with 64": (
        lambda x: nisa.memset(sb(128, 4)[32:96, :], 0),
        r"memset.*'dst'.*start partition 32 with 64",
    ),
    "start partition by address": (
        lambda x: nisa.memset(nl.ndarray((32, 4), dtype=F32, address=(8, 0)), 0),
        r"memset.*start partition 8",
    ),
    "partition step": (lambda x: sb(128, 4)[0:128:2, :], r"step 2 on the partition dimension"),
    "partition stride": (lambda x: sb(64, 4).ap([[8, 32], [1, 4]]), r"ap.*partition stride is 8, must be the 4"),
    "too many free dimensions": (
        lambda x: nisa.memset(sb(2, 3, 3, 3, 3, 3)[:, 0:2, 0:2, 0:2, 0:2, 0:2], 0),
        r"memset.*5 free dimensions",
    ),
    "free size over 16 bits": (
        lambda x: nisa.memset(raw(1, 70000, dtype=nl.uint8), 0),
        r"memset.*free size 70000 exceeds maximum 65535",
    ),
    "stride over 15 bits": (
        lambda x: nisa.memset(raw(1, 2, 40000, dtype=nl.uint8)[:, :, 0], 0),
        r"memset.*stride 40000 exceeds",
    ),
    "pattern past the partition": (
        lambda x: nisa.memset(sb(4, 8).ap([[8, 4], [1, 9]]), 0),
        r"memset.*'dst'.*past the 8 elements",
    ),
    "slice out of bounds": (lambda x: sb(4, 8)[:, 0:9], r"0:9:1 is out of bounds for dimension 1 of size 8"),
    "index out of bounds": (lambda x: sb(4, 8)[:, 8], r"index 8 is out of bounds"),
    "reshape of partitions": (lambda x: sb(4, 8).reshape((8, 4)), r"reshape.*partition dimension may not change"),
    "reshape of another size": (lambda x: sb(4, 8).reshape((4, 9)), r"reshape.*32 elements.*36"),
    "reshape that needs a copy": (lambda x: sb(4, 8, 8)[:, :, 0:4].reshape((4, 32)), r"reshape.*without a copy"),
    "view of a strided dimension": (
        lambda x: sb(4, 8)[:, 0:8:2].view(BF16),
        r"view.*last dimension must be contiguous",
    ),
    "ap with two dynamic offsets": (
        lambda x: x.ap([[8, 4], [1, 8]], scalar_offset=sb(1, 1, dtype=I32), vector_offset=sb(4, 1, dtype=I32)),
        r"exclude each other",
    ),
    "vector offset on chip": (
        lambda x: sb(4, 8).ap([[8, 4], [1, 8]], vector_offset=sb(4, 1, dtype=I32)),
        r"on chip only scalar_offset",
    ),
    "partitions differ": (
        lambda x: nisa.tensor_copy(sb(4, 8), sb(8, 8)),
        r"tensor_copy.*'src'.*8 partitions, must have 4",
    ),
    "elements differ": (
        lambda x: nisa.tensor_tensor(sb(4, 8), sb(4, 8), sb(4, 4), nl.add),
        r"tensor_tensor.*'data2'.*4 elements.*have 8",
    ),
    "operator on tensors": (lambda x: sb(4, 8) + sb(4, 8), r"operator.*Python operators on tensors"),
    "tensor in an if": (lambda x: bool(sb(1, 1)), r"cannot steer Python control flow"),
    "undefined dma source": (lambda x: nisa.dma_copy(x, raw(4, 8)), r"return.*'x'.*undefined.*dma_copy.*'src'"),
    # TensorE
    "matmul from psum": (lambda x: nisa.nc_matmul(ps(8, 8), ps(4, 8), sb(4, 8)), r"nc_matmul.*'stationary'.*in psum"),
    "matmul into sbuf": (lambda x: nisa.nc_matmul(sb(8, 8), sb(4, 8), sb(4, 8)), r"nc_matmul.*'dst'.*in sbuf"),
    "stationary too wide": (
        lambda x: nisa.nc_matmul(ps(128, 8), sb(4, 129), sb(4, 8)),
        r"nc_matmul.*'stationary'.*129 exceeds maximum 128",
    ),
    "moving too wide": (
        lambda x: nisa.nc_matmul(ps(8, 512), sb(4, 8), sb(4, 513)),
        r"nc_matmul.*'moving'.*513 exceeds maximum 512",
    ),
    "contraction differs": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(4, 8), sb(8, 8)),
        r"nc_matmul.*'moving'.*contracts 8",
    ),
    "product shape": (lambda x: nisa.nc_matmul(ps(8, 4), sb(4, 8), sb(4, 8)), r"nc_matmul.*'dst'.*product is \[8, 8\]"),
    "inputs at different partitions": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(64, 8)[32:64, :], sb(64, 8)[0:32, :]),
        r"nc_matmul.*'moving'.*must agree",
    ),
    "matmul across banks": (
        lambda x: nisa.nc_matmul(ps(8, 1024)[:, 500:520], sb(4, 8), sb(4, 20)),
        r"nc_matmul.*'dst'.*cross a 2048-byte",
    ),
    "matmul into bf16": (
        lambda x: nisa.nc_matmul(ps(8, 8, dtype=BF16), sb(4, 8), sb(4, 8)),
        r"nc_matmul.*'dst'.*must be float32",
    ),
    "mixed fp32 and bf16": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(4, 8), sb(4, 8, dtype=BF16)),
        r"nc_matmul.*'moving'.*must be too",
    ),
    "integer matmul": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(4, 8, dtype=I32), sb(4, 8)),
        r"nc_matmul.*'stationary'.*float type",
    ),
    "e4m3fn matmul": (
        lambda x: nisa.nc_matmul(ps(8, 8), *[sb(4, 8, dtype=nl.float8_e4m3fn) for _ in "ab"]),
        r"nc_matmul.*trn3 only",
    ),
    "accumulate onto memset": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(4, 8), sb(4, 8), accumulate=True),
        r"nc_matmul.*'dst'.*no matmul has written",
    ),
    "double row of bf16": (
        lambda x: nisa.nc_matmul(
            ps(8, 8), *[sb(4, 2, 8, dtype=BF16) for _ in "ab"], perf_mode=nisa.matmul_perf_mode.double_row
        ),
        r"nc_matmul.*double_row needs float8",
    ),
    "double row without pairs": (
        lambda x: nisa.nc_matmul(
            ps(8, 8), *[sb(4, 8, dtype=FP8) for _ in "ab"], perf_mode=nisa.matmul_perf_mode.double_row
        ),
        r"nc_matmul.*double_row needs \[K, 2",
    ),
    "tile of no rows": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(4, 8), sb(4, 8), tile_position=(0, 0), tile_size=(0, 32)),
        r"nc_matmul.*'tile_size'.*row size 0 is not between 1 and 128",
    ),
    "tile of 256": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(4, 8), sb(4, 8), tile_position=(0, 0), tile_size=(128, 256)),
        r"nc_matmul.*'tile_size'.*column size 256 is not between 1 and 128",
    ),
    "tile of 48 that ends at 64": (
        lambda x: nisa.nc_matmul(ps(64, 8)[32:40, :], sb(4, 8), sb(4, 8), tile_position=(0, 32), tile_size=(128, 48)),
        r"nc_matmul.*'tile_position'.*column 32 must be a multiple of the tile's 64",
    ),
    "tile off its grid": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(4, 8), sb(4, 8), tile_position=(0, 16), tile_size=(128, 32)),
        r"nc_matmul.*'tile_position'.*multiple",
    ),
    "tile too small": (
        lambda x: nisa.nc_matmul(ps(64, 8), sb(4, 64), sb(4, 8), tile_position=(0, 0), tile_size=(128, 32)),
        r"nc_matmul.*'tile_size'.*less than the 64",
    ),
    "destination not at the tile's column": (
        lambda x: nisa.nc_matmul(ps(8, 8), sb(4, 8), sb(4, 8), tile_position=(0, 32), tile_size=(128, 32)),
        r"nc_matmul.*'dst'.*tile's column 32",
    ),
    "product at another partition without a tile": (
        lambda x: nisa.nc_matmul(ps(64, 8)[32:40, :], sb(4, 8), sb(4, 8)),
        r"nc_matmul.*'dst'.*without tile_position",
    ),
    "transpose of a type": (
        lambda x: nisa.nc_transpose(ps(8, 4), sb(4, 8, dtype=BF16)),
        r"nc_transpose.*'dst'.*keeps the type",
    ),
    "transpose too big for vector": (
        lambda x: nisa.nc_transpose(sb(64, 32), sb(32, 64)),
        r"nc_transpose.*exceeds \[32, 32\]",
    ),
    "transpose on tensor into sbuf": (
        lambda x: nisa.nc_transpose(sb(8, 4), sb(4, 8), engine=nisa.engine.tensor),
        r"nc_transpose.*writes only PSUM",
    ),
    # ScalarE, VectorE, GpSimd
    "activation of an unknown function": (
        lambda x: nisa.activation(sb(4, 8), nl.add, sb(4, 8)),
        r"activation.*'op'.*not an activation",
    ),
    "activation scale in bf16": (
        lambda x: nisa.activation(sb(4, 8), nl.exp, sb(4, 8), scale=sb(4, 1, dtype=BF16)),
        r"activation.*'scale'.*float32",
    ),
    "activation bias not a column": (
        lambda x: nisa.activation(sb(4, 8), nl.exp, sb(4, 8), bias=sb(4, 2)),
        r"activation.*'bias'.*\[P, 1\]",
    ),
    "activation reduce by max": (
        lambda x: nisa.activation_reduce(sb(4, 8), nl.exp, sb(4, 8), nl.maximum, sb(4, 1)),
        r"'reduce_op'.*nl.add",
    ),
    "sin out of range": (
        lambda x: nisa.activation(sb(4, 8), nl.sin, sb(4, 8, value=9)),
        r"activation.*nl.sin is valid",
    ),
    "log of zero": (
        lambda x: nisa.activation(sb(4, 8), nl.log, sb(4, 8)),
        r"activation.*'data'.*nl.log is valid on \[5.42101e-20",
    ),
    "sqrt of a negative": (
        lambda x: nisa.activation(sb(4, 8), nl.sqrt, sb(4, 8, value=-1)),
        r"activation.*'data'.*nl.sqrt is valid",
    ),
    "reciprocal of zero": (
        lambda x: nisa.activation(sb(4, 8), nl.reciprocal, sb(4, 8)),
        r"activation.*'data'.*nl.reciprocal is valid on \+-",
    ),
    "fp8 transpose without a step": (
        lambda x: nisa.nc_transpose(ps(8, 4, dtype=FP8), sb(4, 8, dtype=FP8)),
        r"nc_transpose.*'dst'.*step 2",
    ),
    "activation from hbm": (lambda x: nisa.activation(sb(4, 8), nl.exp, x), r"activation.*'data'.*in private_hbm"),
    "both inputs in psum": (
        lambda x: nisa.tensor_tensor(sb(4, 8), ps(4, 8), ps(4, 8), nl.add),
        r"tensor_tensor.*'data2'.*both in PSUM",
    ),
    "sbuf inputs at different partitions": (
        lambda x: nisa.tensor_tensor(sb(32, 8), sb(32, 8), sb(64, 8)[32:64, :], nl.add),
        r"tensor_tensor.*'data2'.*same partition",
    ),
    "gpsimd and psum": (
        lambda x: nisa.tensor_copy(sb(4, 8), ps(4, 8), engine=nisa.engine.gpsimd),
        r"tensor_copy.*GpSimd cannot reach",
    ),
    "engine that cannot": (
        lambda x: nisa.tensor_copy(sb(4, 8), sb(4, 8), engine=nisa.engine.tensor),
        r"tensor_copy.*'engine'.*tensor cannot",
    ),
    "raw int engine": (
        lambda x: nisa.tensor_copy(sb(4, 8), sb(4, 8), engine=5),
        r"tensor_copy.*'engine'.*member of nisa.Engine",
    ),
    "bit operator on floats": (
        lambda x: nisa.tensor_tensor(sb(4, 8), sb(4, 8), sb(4, 8), nl.bitwise_and),
        r"tensor_tensor.*integer types",
    ),
    "operand in bf16": (
        lambda x: nisa.tensor_scalar(sb(4, 8), sb(4, 8), nl.add, sb(4, 1, dtype=BF16)),
        r"tensor_scalar.*'operand0'.*float32",
    ),
    "mixed operator kinds": (
        lambda x: nisa.tensor_scalar(sb(4, 8), sb(4, 8), nl.add, 1.0, op1=nl.bitwise_and, operand1=1),
        r"both must be",
    ),
    "square on the alu": (
        lambda x: nisa.tensor_scalar(sb(4, 8), sb(4, 8), nl.square, 0.0),
        r"tensor_scalar.*'op0'.*trn3 only",
    ),
    "tensor_scalar on scalar": (
        lambda x: nisa.tensor_scalar(sb(4, 8), sb(4, 8), nl.maximum, 0.0, engine=nisa.engine.scalar),
        r"tensor_scalar.*on trn2 ScalarE runs only",
    ),
    "tensor_scalar on gpsimd": (
        lambda x: nisa.tensor_scalar(sb(4, 8), sb(4, 8), nl.add, 0.0, engine=nisa.engine.gpsimd),
        r"only for rsqrt",
    ),
    "rsqrt from psum": (
        lambda x: nisa.tensor_scalar(sb(4, 8), ps(4, 8), nl.rsqrt, 0.0),
        r"'data'.*GpSimd cannot reach",
    ),
    "scalar_tensor_tensor from psum twice": (
        lambda x: nisa.scalar_tensor_tensor(sb(4, 8), ps(4, 8), nl.add, 1.0, nl.add, ps(4, 8)),
        r"both in PSUM",
    ),
    "scan from psum twice": (
        lambda x: nisa.tensor_tensor_scan(sb(4, 8), ps(4, 8), ps(4, 8), 0.0, nl.add, nl.add),
        r"both in PSUM",
    ),
    "reduce of the partition": (
        lambda x: nisa.tensor_reduce(sb(4, 1), nl.add, sb(4, 8), axis=0),
        r"tensor_reduce.*'axis'",
    ),
    "reduce of a leading axis": (
        lambda x: nisa.tensor_reduce(sb(4, 3), nl.add, sb(4, 8, 3), axis=1),
        r"tensor_reduce.*trailing",
    ),
    "reduce by a comparison": (lambda x: nisa.tensor_reduce(sb(4, 1), nl.less, sb(4, 8), axis=1), r"cannot reduce"),
    "memset an int with a float": (lambda x: nisa.memset(sb(4, 8, dtype=I32), 1.5), r"memset.*'value'.*no whole"),
    "memset out of range": (lambda x: nisa.memset(sb(4, 8, dtype=nl.uint8), 256), r"memset.*does not fit"),
    "predicate of floats": (
        lambda x: nisa.tensor_copy_predicated(sb(4, 8), sb(4, 8), sb(4, 8)),
        r"tensor_copy_predicated.*'predicate'",
    ),
    "shuffle mask": (lambda x: nisa.nc_stream_shuffle(sb(32, 4), sb(32, 4), [0] * 31), r"nc_stream_shuffle.*32 values"),
    "shuffle of types": (
        lambda x: nisa.nc_stream_shuffle(sb(32, 4), sb(32, 4, dtype=BF16), [0] * 32),
        r"nc_stream_shuffle.*src's type",
    ),
    "iota into psum": (lambda x: nisa.iota(ps(4, 8), [[1, 8]]), r"iota.*'dst'.*in psum"),
    "iota of another size": (lambda x: nisa.iota(sb(4, 8), [[1, 4]]), r"iota.*'pattern'.*4 values, dst has 8"),
    "affine select from psum": (
        lambda x: nisa.affine_select(sb(4, 8), [[1, 8]], 1, ps(4, 8), 0.0),
        r"affine_select.*'on_true_tile'.*in psum",
    ),
    "range select bounds": (
        lambda x: nisa.range_select(sb(4, 8), sb(4, 8), nl.less, nl.less, sb(4, 1, dtype=I32), sb(4, 1)),
        r"range_select.*'bound0'.*float32",
    ),
    "range select fill": (
        lambda x: nisa.range_select(sb(4, 8), sb(4, 8), nl.less, nl.less, sb(4, 1), sb(4, 1), on_false_value=0.0),
        r"range_select.*'on_false_value'",
    ),
    "select predicate": (
        lambda x: nisa.select_reduce(sb(4, 8), sb(4, 8, dtype=U32), sb(4, 8), 0.0),
        r"select_reduce.*'predicate'",
    ),
    "max8 of seven": (lambda x: nisa.max8(sb(4, 8), sb(4, 7)), r"max8.*'src'.*8 to 16384"),
    "find_index8 into int32": (
        lambda x: nisa.nc_find_index8(sb(4, 8, dtype=I32), sb(4, 8), sb(4, 8)),
        r"nc_find_index8.*uint16 or uint32",
    ),
    "gather by int32": (
        lambda x: nisa.nc_n_gather(sb(4, 8), sb(4, 8), sb(4, 8, dtype=I32)),
        r"nc_n_gather.*'indices'.*uint32",
    ),
    "gather out of bounds": (
        lambda x: nisa.nc_n_gather(sb(4, 8), sb(4, 8), sb(4, 8, dtype=U32, value=8)),
        r"nc_n_gather.*out of bounds",
    ),
    "bn_stats too wide": (lambda x: nisa.bn_stats(sb(4, 6), sb(4, 513)), r"bn_stats.*513 exceeds maximum 512"),
    # DMA
    "dma from psum": (lambda x: nisa.dma_copy(x, ps(4, 8)), r"dma_copy.*'src'.*psum, which DMA cannot reach"),
    "dma to psum": (lambda x: nisa.dma_copy(ps(4, 8), x), r"dma_copy.*'dst'.*psum"),
    "dma of another size": (lambda x: nisa.dma_copy(sb(4, 4), x), r"dma_copy.*32 elements.*dst has 16"),
    "hwdge of two types": (
        lambda x: nisa.dma_copy(sb(4, 8, dtype=BF16), x, dge_mode=nisa.dge_mode.hwdge),
        r"dma_copy.*'src'.*hwdge moves bytes",
    ),
    "hwdge by index": (
        lambda x: nisa.dma_copy(sb(4, 8), gather(x), dge_mode=nisa.dge_mode.hwdge),
        r"dma_copy.*no indirect transfer",
    ),
    "dma queue": (
        lambda x: nisa.dma_copy(sb(4, 8), x, engine=nisa.engine.scalar),
        r"dma_copy.*'engine'.*only with dge_mode.hwdge",
    ),
    "index out of bounds in dma": (
        lambda x: nisa.dma_copy(sb(4, 8), gather(x, 4)),
        r"dma_copy.*'src.vector_offset'.*row index 4",
    ),
    "index of floats": (
        lambda x: nisa.dma_copy(sb(4, 8), x.ap([[8, 4], [1, 8]], vector_offset=sb(4, 1))),
        r"int32 or uint32",
    ),
    "scalar offset out of bounds": (
        lambda x: nisa.dma_copy(sb(1, 8), x.ap([[8, 1], [1, 8]], scalar_offset=sb(1, 1, dtype=I32, value=4))),
        r"dma_copy.*scalar_offset reaches",
    ),
    "dma transpose shape": (lambda x: nisa.dma_transpose(sb(4, 8), x), r"dma_transpose.*'dst'.*is \(8, 4\)"),
    "dma transpose axes": (lambda x: nisa.dma_transpose(sb(8, 4), x, axes=(0, 1)), r"dma_transpose.*'axes'"),
    "dma transpose types": (lambda x: nisa.dma_transpose(sb(8, 4, dtype=BF16), x), r"dma_transpose.*'dst'.*src's type"),
    "dma transpose hwdge": (
        lambda x: nisa.dma_transpose(sb(8, 4), x, dge_mode=nisa.dge_mode.hwdge),
        r"dma_transpose.*2-byte",
    ),
    "dma compute by max": (lambda x: nisa.dma_compute(x, [x], nl.maximum), r"dma_compute.*nl.add"),
    "dma compute of 17": (lambda x: nisa.dma_compute(x, [x] * 17, nl.add), r"dma_compute.*17 sources"),
    # Registers, cores, launch
    "arithmetic on a register": (lambda x: nisa.register_alloc(1) + 1, r"arithmetic.*register"),
    "frozen register": (lambda x: [nisa.register_move(i, 1) for i in nl.dynamic_range(1)], r"register_move.*frozen"),
    "register of a float": (lambda x: nisa.register_alloc(1.5), r"register_alloc.*int or None"),
    "sendrecv on one core": (lambda x: nisa.sendrecv(sb(1, 4), sb(1, 4), 1, 1, 0), r"sendrecv.*LNC2 launch"),
    "barrier on sbuf": (lambda x: nisa.core_barrier(sb(1, 4), (0, 1)), r"core_barrier.*'data'.*HBM tensor"),
    "nl functions do not broadcast": (lambda x: nl.add(sb(4, 8), sb(4, 1)), r"nl.add.*nothing broadcasts"),
}


def gather(x, row=0):
    return x.ap([[8, 4], [1, 8]], vector_offset=sb(4, 1, dtype=I32, value=row))
