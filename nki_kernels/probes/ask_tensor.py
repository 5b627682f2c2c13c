"""Questions about TensorE and PSUM."""

from __future__ import annotations

import numpy as np

from . import tensor
from .answers import CALIBRATE, KERNELS_TORCH, NOTHING
from .probe import Probe, Run, Timing
from .runs import BF16, BF16_SUM, FP8, FP32, ROWS, given, halves, normal, product, product_of, whole

CODES = np.arange(256, dtype=np.uint8)[np.isfinite(np.arange(256, dtype=np.uint8).view(FP8).astype(np.float32))]

BANKS = (
    Probe(
        "odd_transpose",
        "Do transposes of 3 and of 1 bfloat16 rows into PSUM compile, and give the bits?",
        "the report is right: odd widths go through float32, as they do",
        NOTHING + ": no kernel here does it",
        (
            Run(
                tensor.odd_transposes, given(normal(3, ROWS, dtype=BF16)),
                lambda args, repeats, core: np.concatenate([args[0].T, args[0][:1].T], axis=1),
            ),
        ),
        rules=("odd-transpose",),
    ),
    Probe(
        "psum_view",
        "Can a float32 PSUM bank be viewed and written as bfloat16?",
        "the report is right: banks hold tiles of one type, as they do",
        NOTHING + ": no kernel here does it",
        (Run(tensor.bank_as_another_type, given(normal(ROWS, ROWS, dtype=BF16)), lambda a, r, c: a[0].T),),
        rules=("psum-view",),
    ),
    Probe(
        "psum_two_banks",
        "Can one PSUM tile span two banks?",
        "the report is right: a tile is at most a bank, as they are",
        NOTHING + ": no kernel here does it",
        (
            Run(
                tensor.two_banks, given(normal(ROWS, ROWS, dtype=BF16), normal(ROWS, 1024, dtype=BF16)),
                lambda args, repeats, core: product_of(args[0], args[1]), BF16_SUM,
            ),
        ),
        rules=("psum-tile",),
    ),
    Probe(
        "accumulate_again",
        "Does a product without accumulate= add to a tile that was read, as the second of two equal ones: 1x, 2x?",
        "it begins anew: accumulate=None means something else than the interpreter's",
        NOTHING + ": every kernel here says accumulate=",
        (
            Run(
                tensor.sums_in_turn, given(whole(ROWS, ROWS, dtype=BF16), whole(ROWS, 64, dtype=BF16)),
                lambda args, repeats, core: np.stack([product_of(args[0], args[1]), 2 * product_of(args[0], args[1])]),
            ),
        ),
        rules=("accumulate",),
    ),
    Probe(
        "fp32_products",
        "Are float32 products exact to float32, in how many passes, and with the hint of ones and zeros?",
        "products are rounded to fewer bits: the solve of the delta rule loses its accuracy (README's 1e-5)",
        KERNELS_TORCH,
        (
            Run(
                tensor.product_and_back, given(normal(ROWS, ROWS), normal(ROWS, 256)),
                lambda args, repeats, core: product_of(args[0], args[1])[None], FP32, repeats=1,
            ),
            Run(
                tensor.products, given((normal(ROWS, ROWS) > 0).astype(np.float32), normal(ROWS, 256)),
                lambda args, repeats, core: np.stack([product_of(args[0], args[1])] * 4), FP32, {"onezero": True},
                repeats=4,
            ),
        ),
        (
            Timing(
                "fp32_product", product(tensor.products, ROWS, ROWS, 512, np.float32), "128 x 128 x 512 in float32",
                "tensor_fp32_passes",
            ),
            Timing(
                "fp32_product_onezero",
                product(tensor.products, ROWS, ROWS, 512, np.float32, ones=True, onezero=True),
                "the same with is_stationary_onezero", "tensor_fp32_onezero_passes",
            ),
            Timing(
                "fp32_product_step", product(tensor.products, ROWS, ROWS, 256, np.float32, step=4),
                "128 x 128 x 256 in float32, every fourth column", "tensor_step_factor",
            ),
            Timing(
                "fp32_transpose", Run(tensor.turns, given(normal(ROWS, ROWS)), lambda a, r, c: np.stack([a[0].T] * 4),
                                      repeats=4),
                "a transpose of 128 x 128 in float32", "tensor_fp32_transpose_passes", (64, 2112),
            ),
        ),
    ),
    Probe(
        "bf16_products",
        "What do bfloat16 products cost: by column, issued, at least, and until their result can be read?",
        "wrong values: the installation",
        CALIBRATE,
        timings=(
            Timing(
                "bf16_product", product(tensor.products, ROWS, ROWS, 512, BF16), "128 x 128 x 512 in bfloat16",
                "tensor_throttle", (64, 2112), keeps_high=True,
            ),
            Timing(
                "bf16_product_128", product(tensor.products, ROWS, ROWS, 128, BF16), "128 x 128 x 128 in bfloat16",
                "tensor_issue_ns", (64, 4160),
            ),
            Timing(
                "bf16_product_16", product(tensor.products, ROWS, ROWS, 16, BF16), "128 x 128 x 16 in bfloat16",
                "tensor_min_cycles", (64, 4160),
            ),
            Timing(
                "product_and_back",
                Run(
                    tensor.product_and_back, given(np.eye(ROWS, dtype=BF16), whole(ROWS, 128, dtype=BF16)),
                    lambda args, repeats, core: args[1][None], repeats=4,
                ),
                "a product and its eviction, each after the other", "tensor_ready_ns",
            ),
        ),
    ),
    Probe(
        "same_stationary",
        "Is a stationary that is there already loaded again?",
        "wrong values: the installation",
        CALIBRATE,
        timings=(
            Timing(
                "bf16_two_stationaries", product(tensor.products, ROWS, ROWS, 128, BF16, alternate=True),
                "128 x 128 x 128 in bfloat16, each with another stationary", "tensor_load_cycles", (64, 4160),
            ),
            Timing(
                "fp32_two_stationaries", product(tensor.products, ROWS, ROWS, 128, np.float32, alternate=True),
                "the same in float32", "tensor_fp32_load_cycles", (64, 2112),
            ),
        ),
    ),
    Probe(
        "short_contraction",
        "What does a contraction over 64 rows cost beside one over 128, and do two of them overlap?",
        "wrong values: halves of the array are addressed otherwise; the scan of the delta rule is wrong",
        KERNELS_TORCH,
        (
            Run(
                tensor.halves, given(whole(ROWS, ROWS, dtype=BF16), whole(ROWS, 64, dtype=BF16)), halves(BF16),
                repeats=4,
            ),
        ),
        (
            Timing(
                "fp32_product_64", product(tensor.products, 64, ROWS, 512, np.float32), "64 x 128 x 512 in float32",
                "tensor_short_k_fp32",
            ),
            Timing(
                "bf16_product_64", product(tensor.products, 64, ROWS, 512, BF16), "64 x 128 x 512 in bfloat16",
                "tensor_short_k_bf16", (64, 2112),
            ),
            Timing(
                "bf16_halves",
                Run(
                    tensor.halves, given(whole(ROWS, ROWS, dtype=BF16), whole(ROWS, 512, dtype=BF16)), halves(BF16),
                    repeats=4,
                ),
                "64 x 128 x 512 in bfloat16, on either half of the array in turn", "tensor_tile_share", (64, 2112),
            ),
        ),
    ),
    Probe(
        "fp8_codes",
        "Is float8_e4m3 read with 240 as its largest value?",
        "FP8 weights above that are read as another format",
        "`weights: bf16` in the profile, and convert again",
        (
            Run(
                tensor.codes_of_fp8, given(np.resize(CODES, (ROWS, 256))),
                lambda args, repeats, core: args[0].view(FP8).astype(np.float64),
            ),
        ),
    ),
)  # fmt: skip
