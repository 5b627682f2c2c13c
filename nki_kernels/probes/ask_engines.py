"""Questions about VectorE, ScalarE, GpSimd, the sequencer and the two cores of a logical one."""

from __future__ import annotations

import numpy as np

from . import cores, engines
from .answers import CALIBRATE, KERNELS_TORCH, NOTHING
from .probe import Probe, Run, Timing
from .runs import EXACT, FP32, FUNCTION, ROWS, constant, given, moved, normal, other_core, per_core, whole

UNITS = (
    Probe(
        "vector_engine",
        "How long does an instruction hold VectorE, and how long until its result can be read?",
        "wrong values: the installation",
        CALIBRATE,
        timings=(
            Timing(
                "vector_independent", moved(engines.vector_scale, normal(ROWS, 128), 8, tiles=8),
                "tensor_scalar of 128 columns, independent", "vector_issue_ns", (64, 4160),
            ),
            Timing(
                "vector_chain", moved(engines.vector_scale, normal(ROWS, 128), tiles=1),
                "the same, each after the other", "vector_ready_ns", (64, 2112),
            ),
        ),
    ),
    Probe(
        "table_switch",
        "What does ScalarE's change of function cost, and an instruction otherwise?",
        "wrong values: functions are off by more than 1e-3 at 0",
        KERNELS_TORCH,
        timings=(
            Timing(
                "exp_independent",
                Run(engines.activations, given(normal(ROWS, 128)), constant(1.0, 128, 8), FUNCTION,
                    {"others": "exp", "tiles": 8}, repeats=4),
                "exp of 128 columns, independent", "scalar_issue_ns", (64, 2112),
            ),
            Timing(
                "exp_chain",
                Run(engines.activations, given(normal(ROWS, 128)), constant(1.0, 128, 1), FUNCTION,
                    {"others": "exp", "tiles": 1}, repeats=4),
                "the same, each after the other", "scalar_function_ready_ns",
            ),
            Timing(
                "exp_and_sigmoid",
                Run(
                    engines.activations, given(normal(ROWS, 128)),
                    lambda args, repeats, core: np.stack([np.full((ROWS, 128), (1.0, 0.5)[n % 2]) for n in range(8)]),
                    FUNCTION, {"others": "sigmoid", "tiles": 8}, repeats=4,
                ),
                "exp and sigmoid in turn", "scalar_table_ns",
            ),
            Timing(
                "exp_and_copy",
                Run(
                    engines.activations, given(np.zeros((ROWS, 128), dtype=np.float32)),
                    lambda args, repeats, core: np.stack([np.full((ROWS, 128), float(n % 2 == 0)) for n in range(8)]),
                    FUNCTION, {"others": "copy", "tiles": 8}, repeats=4,
                ),
                "exp and copy in turn", "scalar_plain_table_ns",
            ),
            Timing(
                "exp_with_sum",
                Run(
                    engines.sums_read_out, given(normal(ROWS, 128)),
                    lambda args, repeats, core: np.full((8, ROWS, 1), 128.0), FUNCTION, repeats=4,
                ),
                "exp of 128 columns with its sum read out", "scalar_reduce_ns",
            ),
        ),
    ),
    Probe(
        "activation_bias",
        "Does an activation that only copies take a tensor as its bias?",
        "the report is right: biases are added by VectorE",
        NOTHING + ": no kernel here does it",
        (
            Run(
                engines.biased_copy, given(normal(ROWS, 64), normal(ROWS, 1, seed=1)),
                lambda args, repeats, core: (args[0].astype(np.float64) + args[1])[None], FP32,
            ),
        ),
        rules=("activation-bias",),
    ),
    Probe(
        "hand_over",
        "How long does a result take from one engine to another?",
        "wrong values: the installation",
        CALIBRATE,
        timings=(
            Timing(
                "vector_and_scalar", moved(engines.hand_over, normal(ROWS, 128)),
                "a copy by VectorE and one by ScalarE, each after the other", "semaphore_ns",
            ),
        ),
    ),
    Probe(
        "gpsimd",
        "What do GpSimd's instructions cost?",
        "wrong values: masks and integer sums are wrong",
        KERNELS_TORCH,
        timings=(
            Timing(
                "gpsimd_copy", moved(engines.gpsimd_copies, normal(ROWS, 512), 4), "a copy of 512 columns",
                "pool_element",
            ),
            Timing(
                "gpsimd_int_sum",
                Run(
                    engines.gpsimd_sums, given(whole(ROWS, 256, dtype=np.int32)),
                    lambda args, repeats, core: np.stack([2 * args[0]] * 4), repeats=4,
                ),
                "a sum of 256 columns of int32", "pool_int",
            ),
            Timing(
                "gpsimd_select",
                Run(
                    engines.gpsimd_selects, given(normal(ROWS, 128)),
                    lambda args, repeats, core: np.stack([np.tril(args[0])] * 4), repeats=4,
                ),
                "affine_select of 128 columns", "pool_fixed_cycles",
            ),
            Timing(
                "gpsimd_partition_sum",
                Run(
                    engines.partition_sums, given(whole(ROWS, 64)),
                    lambda args, repeats, core: np.stack([args[0].sum(0, keepdims=True)] * 4), repeats=4,
                ),
                "a sum over 128 partitions of 64 columns", "pool_gather",
            ),
        ),
    ),
    Probe(
        "gpsimd_fp32_sum",
        "Does GpSimd add float32 tensors?",
        "the report is right: VectorE adds",
        NOTHING + ": no kernel here does it",
        (
            Run(
                engines.gpsimd_sums, given(normal(ROWS, 64)),
                lambda args, repeats, core: np.stack([2 * args[0]] * 4), EXACT, repeats=4,
            ),
        ),
        rules=("gpsimd-arithmetic",),
    ),
    Probe(
        "hardware_loop",
        "What does a turn of a loop of the sequencer cost?",
        "wrong values: such loops are not to be used",
        NOTHING + ": no kernel here has one",
        timings=(
            Timing(
                "loop_turn", moved(engines.hardware_loop, normal(ROWS, 16)), "a turn, with a copy of 16 columns",
                "loop_ns", modelled=(48, 96),
            ),
        ),
        until="2.32",
    ),
    Probe(
        "sendrecv_into_columns",
        "Does sendrecv deliver into a part of a tile's columns?",
        "nothing arrives: the report is right, and whole tiles are needed",
        NOTHING + ": no kernel here does it",
        (
            Run(
                cores.exchange_columns, per_core(ROWS, 64),
                lambda args, repeats, core: np.concatenate(
                    [np.zeros((ROWS, 32)), args[0][1 - core][:, :32]], axis=1
                )[None],
            ),
        ),
        rules=("sendrecv-tile",),
        cores=2,
    ),
    Probe(
        "two_cores",
        "What do an exchange between the two cores and a barrier cost?",
        "wrong values: kernels of two cores that join their halves are wrong",
        "`logical_cores: 1` and `NEURON_LOGICAL_NC_CONFIG=1`, or `kernels: torch`",
        timings=(
            Timing(
                "exchange",
                Run(cores.exchanges, per_core(ROWS, 64), lambda a, repeats, core: a[0][core][None], repeats=4),
                "an exchange of 32 KiB", "sendrecv_ns",
            ),
            Timing(
                "barrier", Run(cores.barriers, per_core(ROWS, 64), other_core, repeats=4), "a barrier",
                "barrier_ns",
            ),
        ),
        cores=2,
    ),
)  # fmt: skip
