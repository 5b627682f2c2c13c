"""Questions about DMA and addresses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import memory
from .answers import CALIBRATE, KERNELS_TORCH, NOTHING
from .probe import Arrays, Probe, Run, Timing
from .runs import BF16, EXACT, ROWS, given, moved, normal, same

INDEX = np.array([[5, 0, 31, 7, 7, 16, 1, 30]], dtype=np.int32)
TABLE = normal(32, 64)
PAIRS = np.array([[3, 9, 0], [1, 2, 31]], dtype=np.int32)
SOME_PAST_THE_END = np.where(np.arange(ROWS) % 5 == 0, 1000, np.arange(ROWS) % 32).astype(np.int32).reshape(ROWS, 1)
ALL_INSIDE = (np.arange(ROWS) * 7 % 32).astype(np.int32).reshape(ROWS, 1)


def _copied_rows(args: Arrays, repeats: int, core: int) -> np.ndarray:
    out = args[0].copy()
    for source, place in args[1].T:
        out[place] = args[0][source]
    return out


def _gathered(args: Arrays, repeats: int, core: int) -> np.ndarray:
    inside = args[1][:, 0] < len(args[0])
    return np.where(inside[:, None], args[0][np.where(inside, args[1][:, 0], 0)], -1.0)[None]


def _by_index(args: Arrays, repeats: int, core: int) -> np.ndarray:
    return args[0][args[1][0]]


def _by_index_in_tiles(args: Arrays, repeats: int, core: int) -> np.ndarray:
    return args[0][args[1][0]][:, None]


def _first_parts(args: Arrays, repeats: int, core: int) -> np.ndarray:
    x = args[0]
    return x[:, :, : x.shape[2] // 2].reshape(1, ROWS, -1)


def _in_all_rows(args: Arrays, repeats: int, core: int) -> np.ndarray:
    return np.stack([[args[0][0]] * ROWS])


def _turned(rows: int, tiles: int) -> Callable[[Arrays, int, int], np.ndarray]:
    """[128, n * rows] as [rows, n * 128], `tiles` times; 0: as it is."""

    def expected(args: Arrays, repeats: int, core: int) -> np.ndarray:
        x = args[0].reshape(ROWS, -1, rows).transpose(2, 1, 0).reshape(rows, -1)
        return np.stack([x] * tiles) if tiles else x

    return expected


def _pieces(kernel: object, count: int, size: int, **options: int) -> Run:
    return Run(kernel, given(normal(ROWS, count, 2 * size)), _first_parts, EXACT, options, repeats=4)


ADDRESSES = (
    Probe(
        "sanity",
        "Does a kernel of three instructions run and give twice its input?",
        "nothing works: the environment, the device or the launch; no other probe means anything",
        "`kernels: torch`",
        (Run(memory.double, given(normal(ROWS, 64)), lambda args, repeats, core: args[0] * np.float32(2)),),
    ),
    Probe(
        "index_in_own_tile",
        "Is an address that lies in a (1, 1) tile of its own read right?",
        "lanes, slots and blocks are read at wrong addresses",
        KERNELS_TORCH,
        (Run(memory.read_by_tiles, given(TABLE, INDEX), _by_index_in_tiles, repeats=4),),
        (
            Timing(
                "dynamic_read", Run(memory.read_by_tiles, given(TABLE, INDEX), _by_index_in_tiles, repeats=4),
                "eight reads of 256 bytes at addresses known at run time", repeats=(8, 136),
            ),
        ),
    ),
    Probe(
        "index_in_slice",
        "Is an address that is a slice of a wider tile read right, alone and inside a larger graph?",
        "the report is right, and the kernels' (1, 1) tiles are needed",
        NOTHING + ": no kernel here does it",
        (Run(memory.read_by_slices, given(TABLE, INDEX), _by_index),),
        rules=("index-tile",),
    ),
    Probe(
        "hbm_to_hbm",
        "Does one transfer between HBM tensors take an address known at run time on each side?",
        "the report is right, and state copies go through SBUF, as they do",
        NOTHING + ": no kernel here does it",
        (Run(memory.copy_within_hbm, given(TABLE, PAIRS), _copied_rows),),
        rules=("dynamic-copy",),
    ),
    Probe(
        "partition_fold",
        "Does a transfer take unequal leading counts, 256 rows of HBM in 128 partitions?",
        "the report is right, and the kernels' equal counts are needed",
        NOTHING + ": no kernel here does it",
        (
            Run(
                memory.fold, given(normal(2 * ROWS, 32)),
                lambda args, repeats, core: args[0].reshape(ROWS, 64),
            ),
        ),
        rules=("dma-leading",),
    ),
    Probe(
        "offset_on_a_slice",
        "Does .ap(offset=) on a slice add to the slice's own offset?",
        "it replaces the offset: the interpreter is wrong, and so is every kernel that patterns a slice",
        KERNELS_TORCH,
        (Run(memory.view_with_offset, given(normal(ROWS, 64)), lambda args, repeats, core: args[0][:, 8:16]),),
    ),
    Probe(
        "store_through_reshape",
        "Does a store through reshape() of an output reach the output?",
        "it goes to a temporary: the report is right",
        NOTHING + ": no kernel here does it",
        (Run(memory.store_through_reshape, given(normal(ROWS, 32)), same()),),
        rules=("reshaped-store",),
    ),
    Probe(
        "gather",
        "Does a gather by one vector of 128 indices read the right rows?",
        "convolution windows are read wrong",
        KERNELS_TORCH,
        (Run(memory.gather, given(TABLE, ALL_INSIDE), _gathered, repeats=4),),
        (
            Timing(
                "gather", Run(memory.gather, given(TABLE, ALL_INSIDE), _gathered, repeats=4),
                "a gather of 128 rows", "dma_indirect_ns",
            ),
        ),
    ),
    Probe(
        "gather_past_the_end",
        "Does a gather leave rows alone whose index is past the end, with oob_mode.skip?",
        "a fault, in a larger graph most of all: the report is right, and indices are clamped, as they are",
        NOTHING + ": no kernel here does it",
        (Run(memory.gather, given(TABLE, SOME_PAST_THE_END), _gathered, repeats=4),),
        rules=("gather-bounds",),
    ),
    Probe(
        "stride_0_broadcast",
        "Does HBM with a step of 0 fill 128 partitions, and what does it cost beside a plain load of as much?",
        "wrong values: weights and tables that every partition needs are wrong",
        KERNELS_TORCH,
        (Run(memory.broadcast_rows, given(normal(1, 512)), _in_all_rows, repeats=4),),
        (
            Timing(
                "broadcast_load",
                Run(memory.broadcast_rows, given(normal(1, 2048)), _in_all_rows, repeats=4),
                "a broadcast of 8 KiB to 128 partitions", repeats=(8, 264),
            ),
        ),
    ),
    Probe(
        "transfers",
        "What do static transfers cost: issue, latency, bandwidth, short runs, descriptors made by software?",
        "wrong values: the installation",
        CALIBRATE,
        timings=(
            Timing("small_load", moved(memory.loads, normal(ROWS, 16), 8), "a load of 8 KiB", "dma_issue_ns"),
            Timing(
                "store_and_load", moved(memory.there_and_back, normal(ROWS, 16)),
                "a store and a load of 8 KiB, each after the other", "dma_load_start_ns", (16, 272),
            ),
            Timing("stream", moved(memory.loads, normal(ROWS, 2048), 8), "a load of 1 MiB", "hbm_bytes_ns", (16, 272)),
            Timing(
                "short_runs", _pieces(memory.pieces_loads, 16, 128), "a load of 1 MiB in runs of 512 bytes",
                "dma_run_bytes", (16, 272),
            ),
            Timing(
                "software_descriptors_few", _pieces(memory.software_loads, 1, 16, pieces=1),
                "a load by 128 descriptors of GpSimd", "dma_swdge_ns",
            ),
            Timing(
                "software_descriptors_many", _pieces(memory.software_loads, 8, 16, pieces=8),
                "a load by 1,024 descriptors of GpSimd", "dma_swdge_row_ns",
            ),
            Timing(
                "dma_transpose",
                Run(
                    memory.transposed_loads, given(normal(512, ROWS, dtype=BF16)),
                    lambda args, repeats, core: args[0].T[None], repeats=4,
                ),
                "a load of 128 KiB, turned on the way", repeats=(16, 272),
            ),
        ),
    ),
    Probe(
        "turned_in_sbuf",
        "Does a DMA transpose from SBUF to SBUF give the bits, in tiles of 128 and of fewer, and what does it cost?",
        "attention of prompts has wrong weights; if it is right and twice as slow, TensorE is faster",
        "`dma_transposes: false` in the profile, and compile again",
        (
            Run(memory.turned_in_sbuf, given(normal(ROWS, 192, dtype=BF16)), _turned(96, 4), EXACT, {"rows": 96},
                repeats=4),
            Run(memory.turned_lines, given(normal(ROWS, 1024, dtype=BF16)), _turned(ROWS, 0)),
        ),
        (
            Timing(
                "turned_in_sbuf",
                Run(memory.turned_in_sbuf, given(normal(ROWS, 1024, dtype=BF16)), _turned(ROWS, 4), repeats=4),
                "256 KiB turned in SBUF", "dma_transpose_sbuf", (16, 272),
            ),
            Timing(
                "turned_in_sbuf_chain", moved(memory.turned_there_and_back, normal(ROWS, 1024, dtype=BF16), 1),
                "the same, each after the other", repeats=(16, 272),
            ),
        ),
    ),
)  # fmt: skip
