"""The prices: every law against its published measurement."""

import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from pricing_runs import ALONE, BF16, F32, I32, matmul, node, priced, ps, sb

from nki_kernels.interpreter import PriceList
from nki_kernels.interpreter.cost_table import TABLE

# What a dependent waits for, in ns: fixed + slope * N, as published (voyager's calibration files).
LAWS = {
    "copy fp32": (lambda n: nisa.tensor_copy(sb(128, n), sb(128, n)), 157, 0.52),
    "copy bf16": (lambda n: nisa.tensor_copy(sb(128, n, dtype=BF16), sb(128, n, dtype=BF16)), 156, 0.27),
    "copy fp32 to bf16": (lambda n: nisa.tensor_copy(sb(128, n, dtype=BF16), sb(128, n)), 155, 0.52),
    "copy bf16 to fp32": (lambda n: nisa.tensor_copy(sb(128, n), sb(128, n, dtype=BF16)), 153, 0.80),
    "copy int32": (
        lambda n: nisa.tensor_copy(nl.zeros((128, n), dtype=I32), nl.zeros((128, n), dtype=I32)), 136, 0.67,
    ),
    "copy from psum": (lambda n: nisa.tensor_copy(sb(128, n), ps(128, n)), 158, 1.04),
    "tensor_scalar": (lambda n: nisa.tensor_scalar(sb(128, n), sb(128, n), nl.add, 1.0), 160, 0.52),
    "tensor_tensor": (lambda n: nisa.tensor_tensor(sb(128, n), sb(128, n), sb(128, n), nl.add), 159, 1.04),
    "tensor_tensor bf16": (
        lambda n: nisa.tensor_tensor(*(sb(128, n, dtype=BF16) for _ in range(3)), nl.add), 161, 0.52,
    ),
    "tensor_tensor psum": (lambda n: nisa.tensor_tensor(sb(128, n), ps(128, n), sb(128, n), nl.add), 152, 1.04),
    "tensor_reduce": (lambda n: nisa.tensor_reduce(sb(128, 1), nl.add, sb(128, n), 1), 152, 1.04),
    "scan": (lambda n: nisa.tensor_tensor_scan(*(sb(128, n) for _ in range(3)), 0.0, nl.multiply, nl.add), 158, 2.08),
    "reciprocal": (lambda n: nisa.reciprocal(sb(128, n), nl.ndarray((128, n), dtype=F32)), 154, 6.25),
    "shuffle": (lambda n: nisa.nc_stream_shuffle(sb(32, n), sb(32, n), list(range(32))), 156, 1.05),
    "memset": (lambda n: nisa.memset(nl.ndarray((128, n), dtype=F32), 0.0), 58, 0.83),
    "exp": (lambda n: nisa.activation(sb(128, n), nl.exp, sb(128, n)), 290, 0.83),
    "exp bf16": (lambda n: nisa.activation(sb(128, n, dtype=BF16), nl.exp, sb(128, n, dtype=BF16)), 296, 0.83),
    "exp psum": (lambda n: nisa.activation(sb(128, n), nl.exp, ps(128, n)), 251, 0.97),
    "activation copy": (lambda n: nisa.activation(sb(128, n), nl.copy, sb(128, n)), 202, 0.83),
    "activation copy, scale and bias": (
        lambda n: nisa.activation(sb(128, n), nl.copy, sb(128, n), scale=sb(128, 1), bias=sb(128, 1)), 202 + 182, 0.83,
    ),
    "activation copy psum": (lambda n: nisa.activation(sb(128, n), nl.copy, ps(128, n)), 162, 0.87),
    "scalar copy": (lambda n: nisa.tensor_copy(sb(128, n), sb(128, n), engine=nisa.engine.scalar), 189, 0.83),
    "scalar copy psum": (lambda n: nisa.tensor_copy(sb(128, n), ps(128, n), engine=nisa.engine.scalar), 167, 0.84),
    "affine_select": (
        lambda n: nisa.affine_select(sb(128, n), [[1, n]], 1, sb(128, n), 0.0, cmp_op=nl.greater), 177, 0.85,
    ),
}  # fmt: skip


@pytest.mark.parametrize("n", [128, 512])
@pytest.mark.parametrize("law", LAWS)
def test_a_dependent_waits_as_long_as_was_measured(law, n):
    body, fixed, slope = LAWS[law]

    def run(x):
        if law == "reciprocal":
            ones = nl.ndarray((128, n), dtype=F32)
            nisa.memset(ones, 1.0)
            nisa.reciprocal(sb(128, n), ones)
        else:
            body(n)

    assert priced(run).nodes[-1].timing.ready == pytest.approx(
        fixed + slope * n, rel=0.1
    )  # one number stands for forms that differ by up to 20 ns


def test_independent_activations_hold_scalar_engine_92_ns_longer_than_their_service():
    def body(x):
        for _ in range(3):
            nisa.activation(nl.ndarray((128, 128), dtype=F32), nl.exp, sb(128, 128))

    starts = [n.start for n in priced(body).nodes if n.instr.op == "activation"]
    assert starts[2] - starts[1] == pytest.approx(199, rel=0.01)  # voyager, N = 128


def test_a_sum_read_out_costs_what_was_measured():
    def body(x):
        nisa.activation_reduce(sb(128, 256), nl.exp, sb(128, 256), nl.add, sb(128, 1))

    last = priced(body).nodes[-1].timing
    assert last.hold == pytest.approx(256 / 1.2 + 201 + 185)
    assert last.ready == pytest.approx(256 / 1.2 + 201 + 279)


def test_a_table_of_functions_is_loaded_when_the_set_changes_and_only_then():
    def body(x):
        t = sb(128, 64)
        for function in (nl.exp, nl.exp, nl.sigmoid, nl.rsqrt, nl.square, nl.exp):
            nisa.activation(nl.ndarray((128, 64), dtype=F32), function, t if function is not nl.rsqrt else ones)
            nisa.tensor_copy(nl.ndarray((128, 64), dtype=F32), t, engine=nisa.engine.scalar)  # needs no table

    ones = None

    def run(x):
        nonlocal ones
        ones = nl.ndarray((128, 64), dtype=F32)
        nisa.memset(ones, 1.0)
        body(x)

    report = priced(run)
    assert report.tables == 4
    assert report.setup_us["tables"] == pytest.approx(4 * 1.283)


def test_whether_copies_need_a_table_is_a_price():
    def body(x):
        t = sb(128, 64)
        for function in (nl.exp, nl.copy) * 3:
            nisa.activation(nl.ndarray((128, 64), dtype=F32), function, t)

    assert priced(body).tables == 6
    assert priced(body, prices=ALONE.having(scalar_plain_table_ns=0.0)).tables == 1


def test_a_table_is_loaded_while_operands_are_awaited():
    def body(x):
        t = sb(128, 64)
        for _ in range(8):
            nisa.tensor_scalar(t, t, nl.add, 1.0)
        nisa.activation(t, nl.exp, t)

    report = priced(body)
    before = node(report, "tensor_scalar")
    assert node(report, "activation").start == pytest.approx(
        before.start + before.timing.ready + TABLE["semaphore_ns"].centre
    )


def test_the_list_scheduler_keeps_a_table_rather_than_alternate():
    def body(x):
        t = sb(128, 64)
        for _ in range(6):
            nisa.activation(nl.ndarray((128, 64), dtype=F32), nl.exp, t)
            nisa.activation(nl.ndarray((128, 64), dtype=F32), nl.sigmoid, t)

    report = priced(body)
    assert report.tables == 12
    assert report.reordered_us < report.time_us - 8 * 1.283


@pytest.mark.parametrize(
    ("k", "n", "dtype", "hold"),
    [(128, 128, F32, 225), (128, 512, F32, 880), (64, 512, F32, 1707), (128, 512, BF16, 213), (128, 128, BF16, 53)],
)
def test_a_product_holds_tensor_engine_as_long_as_was_measured(k, n, dtype, hold):
    report = priced(lambda x: matmul(k, 128, n, dtype))
    assert node(report, "nc_matmul").timing.hold == pytest.approx(hold + (7 if dtype is BF16 else 0), rel=0.02)


def test_a_product_may_be_read_when_it_was_measured_to_be():
    def ready(n, dtype, k=128):
        timing = node(priced(lambda x: matmul(k, 128, n, dtype)), "nc_matmul").timing
        return timing.setup + timing.ready

    assert ready(512, BF16) == pytest.approx(627, rel=0.02)
    assert ready(512, F32) == pytest.approx(184 + 2.53 * 512, rel=0.05)  # in a stream; cold 381 + 2 x service
    assert ready(512, F32, k=64) == pytest.approx(2765, rel=0.02)


def test_a_stationary_is_loaded_unless_it_is_the_one_before_and_unchanged():
    def body(x):
        w, v = sb(128, 128, dtype=BF16), sb(128, 128, dtype=BF16)
        matmul(128, 128, 64, BF16, stationary=w)
        matmul(128, 128, 64, BF16, stationary=w)
        matmul(128, 128, 64, BF16, stationary=v)
        matmul(128, 128, 64, BF16, stationary=w)
        nisa.memset(w, 1.0)
        matmul(128, 128, 64, BF16, stationary=w)
        matmul(128, 64, 64, BF16, stationary=w[:, 0:64])

    loads = [n.setup_ns for n in priced(body).nodes if n.instr.op == "nc_matmul"]
    once = TABLE["tensor_load_cycles"].centre / 2.4
    assert loads == pytest.approx([once, 0, once, once, once, once])


def test_a_transpose_of_128_x_128_issues_as_often_as_was_measured():
    def body(x):
        for _ in range(3):
            nisa.nc_transpose(nl.ndarray((128, 128), dtype=F32, buffer=nl.psum), sb(128, 128))

    starts = [n.start for n in priced(body).nodes if n.instr.op == "nc_transpose"]
    assert starts[2] - starts[1] == pytest.approx(168, rel=0.15)  # all of a load shows there, 80 cycles of it elsewhere


def test_a_decode_projection_keeps_tensor_engine_as_long_as_was_measured():
    """mega: 64 products of N = 256, 256, 512 and 16 for 16 parts of a row; TensorE was busy 11.2 us."""

    def body(x):
        rows = sb(128, 16, 2, dtype=BF16)
        for n in (256, 256, 512, 16):  # column by column, so that every product loads its stationary
            for at in range(16):
                matmul(128, 2, n, BF16, stationary=rows[:, at, :])

    assert priced(body, prices=PriceList()).busy_us["tensor"] == pytest.approx(11.2, rel=0.15)


def test_a_moving_operand_with_gaps_is_slower():
    def body(x):
        nisa.nc_matmul(nl.ndarray((128, 128), dtype=F32, buffer=nl.psum), sb(128, 128), sb(128, 128, 4)[:, :, 0])

    assert node(priced(body), "nc_matmul").timing.hold == pytest.approx(3.75 * 128, rel=0.02)


@pytest.mark.parametrize(("step", "factor"), [(1, 1), (3, 1), (4, 2), (16, 2), (20, 2.45), (24, 2.9), (32, 2.9)])
def test_elements_apart_pass_more_slowly(step, factor):
    def body(x):
        nisa.activation(sb(128, 512), nl.copy, sb(128, 512, step)[:, :, 0])

    hold = node(priced(body), "activation").timing.hold
    assert hold == pytest.approx(512 / 1.2 * factor + 92)


def test_a_transpose_on_vector_engine_pays_for_another_pair_of_quadrants():
    def body(x):
        a, b = sb(128, 32), nl.ndarray((128, 32), dtype=F32)
        for source in (0, 0, 32):
            nisa.nc_transpose(b[0:32], a[source : source + 32], engine=nisa.engine.vector)

    found = [n.setup_ns + n.timing.hold for n in priced(body).nodes if n.instr.op == "nc_transpose"]
    assert found == pytest.approx([234, 93, 234])


def load(x):
    nisa.dma_copy(nl.ndarray(x.shape, dtype=F32), x)


def test_a_small_load_and_a_small_store_take_what_was_measured():
    x = np.zeros((1, 16), np.float32)
    assert priced(load, x).time_us == pytest.approx(1.96, rel=0.02)

    def store(x):
        nisa.dma_copy(x, sb(1, 16))

    report = priced(store, x)
    assert report.time_us - report.nodes[-1].start / 1e3 == pytest.approx(1.69, rel=0.02)


def test_a_small_packet_takes_what_it_was_seen_to():
    """mega: packets under 64 bytes, 2,703 on each engine, kept it busy 28 us."""
    x = np.zeros((128, 128, 16), np.float32)
    report = priced(lambda x: nisa.dma_copy(sb(128, 128, 8), x[:, :, 0:8]), x)  # 8 partitions an engine, 32 bytes each
    assert report.busy_us["dma"] / (8 * 128) == pytest.approx(28 / 2703, rel=0.05)


def test_static_transfers_share_one_resource_that_issues_them():
    x = np.zeros((64, 4), np.float32)

    def body(x):
        for i in range(64):
            nisa.dma_copy(nl.ndarray((1, 4), dtype=F32), x[i : i + 1])

    report = priced(body, x)
    assert report.busy_us["issue"] == pytest.approx(64 * 0.6)
    assert report.time_us == pytest.approx(64 * 0.6 + 1.36, rel=0.02)


def test_gpsimd_makes_descriptors_in_the_time_that_was_measured():
    x = np.zeros((128, 8, 512), np.float32)

    def body(x):
        nisa.dma_copy(sb(128, 4, 256), x[:, 0:4, 0:256], dge_mode=nisa.dge_mode.swdge)

    report = priced(body, x)
    assert node(report, "dma_copy").timing.hold == pytest.approx(650 + 512 * 0.85)  # mega: 1.09 us for 512 runs
    assert "issue" not in report.busy_us


def test_hbm_moves_what_a_core_was_seen_to_sustain():
    x = np.zeros((128, 32768), np.float32)
    report = priced(load, x)
    assert x.nbytes / 318 < report.time_us * 1e3 < x.nbytes / 267
