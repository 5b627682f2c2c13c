"""The cost model: dependencies, schedules, reports, and the interpreter's own speed; prices are in test_prices."""

import json
import time

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from typer.testing import CliRunner

from nki_kernels import profiling
from nki_kernels.interpreter import PriceList, profile
from nki_kernels.interpreter.cost_table import Costs
from nki_kernels.interpreter.footprint import Box, overlap
from nki_kernels.interpreter.launch import run
from nki_kernels.interpreter.schedule import build, confine, reordered
from nki_kernels.interpreter.sensitivity import Effect, effects, likely

F32, BF16 = nl.float32, nl.bfloat16


def priced(body, *arrays, lnc=None, prices=None):
    def kernel(*args):
        body(*args)
        return args[0]

    jitted = nki.jit(kernel)
    return profile(jitted[lnc] if lnc else jitted, *(arrays or (np.zeros((1, 1), np.float32),)), prices=prices)[1]


def sb(*shape, dtype=F32):
    return nl.zeros(shape, dtype=dtype)


C = Costs()
LOAD = C.tensor_load_cycles / C.tensor_ghz * C.tensor_throttle
"""ns of loading a bfloat16 stationary."""


def moving(n, passes=1.0):
    """ns for which a product of n columns holds TensorE."""
    return C.tensor_issue_ns + n * passes / C.tensor_ghz * C.tensor_throttle


def test_prefill_matmul_by_hand():
    # M = 512, K = 512, N = 1024 in bf16: 4 * 4 * 2 matmuls of 512 columns, each with a load of another stationary.
    def body(x):
        w, y = sb(128, 4, 512, dtype=BF16), sb(128, 4, 1024, dtype=BF16)
        for m in range(4):
            for n in range(2):
                acc = nl.ndarray((128, 512), dtype=F32, buffer=nl.psum)
                for k in range(4):
                    nisa.nc_matmul(acc, w[:, k, m * 128 : m * 128 + 128], y[:, k, n * 512 : n * 512 + 512])

    report = priced(body)
    assert report.busy_us["tensor"] * 1e3 == pytest.approx(32 * (moving(512) + LOAD))
    assert report.flops == 2 * 512 * 512 * 1024


@pytest.mark.parametrize("columns", [32, 16])
@pytest.mark.parametrize("share", [0.25, 0.72, 1.0])
def test_disjoint_array_tiles_overlap_as_far_as_their_share_lets_them(share, columns):
    """Sixteen columns hold as much of the array as 32: it is not divided any further."""

    def body(x):
        w, y = sb(128, columns, dtype=BF16), sb(128, 512, dtype=BF16)
        acc = nl.ndarray((128, 512), dtype=F32, buffer=nl.psum)
        for c in range(4):
            part = acc[nl.ds(32 * c, columns), :]
            nisa.nc_matmul(part, w, y, tile_position=(0, 32 * c), tile_size=(128, columns))

    report = priced(body, prices=PriceList().having(tensor_tile_share=share, tensor_load_cycles=0.0))
    nodes = [n for n in report.nodes if n.instr.op == "nc_matmul"]
    assert nodes[-1].finish - nodes[0].start == pytest.approx((1 + 3 * share) * moving(512))


def test_dma_takes_the_engines_of_its_partitions():
    def load(partitions):
        x = np.zeros((partitions, 1024), np.float32)
        return priced(lambda x: nisa.dma_copy(nl.ndarray(x.shape, dtype=F32), x), x)

    full, eighth = load(128), load(8)
    efficiency = 4096 / (4096 + C.dma_run_bytes)
    assert full.busy_us["dma"] == pytest.approx(8 * 4096 / C.dma_bytes_ns / efficiency / 1e3)
    assert eighth.busy_us["dma"] == pytest.approx(full.busy_us["dma"])
    assert full.hbm_read == 128 * 4096
    assert full.hbm_write == 0
    fixed = C.dma_issue_ns + C.dma_load_start_ns + C.dma_load_notify_ns
    assert full.time_us >= fixed / 1e3 + full.busy_us["dma"]


def test_a_store_that_waits_does_not_hold_up_later_loads_unless_hardware_triggers_it():
    def time_of(mode):
        x = np.zeros((256, 512), np.float32)

        def body(x):
            t, u = sb(128, 512), nl.ndarray((128, 512), dtype=F32)
            for _ in range(20):
                nisa.activation(t, nl.exp, t)
            nisa.dma_copy(x[0:128, :], t, dge_mode=mode)
            nisa.dma_copy(u, x[128:256, :], dge_mode=mode)

        report = priced(body, x)
        return [n.start / 1e3 for n in report.nodes if n.instr.op == "dma_copy"]

    stored, loaded = time_of(nisa.dge_mode.unknown)
    assert loaded == 0 < stored
    stored, loaded = time_of(nisa.dge_mode.hwdge)
    assert loaded >= stored + C.dma_issue_ns / 1e3 - 1e-9


@pytest.mark.parametrize("mode", [nisa.dge_mode.hwdge, nisa.dge_mode.swdge])
def test_a_copy_out_of_bounds_is_issued_and_moves_nothing(mode):
    def body(x, rows):
        index, tile = sb(1, 1, dtype=nl.int32), sb(1, 512)
        nisa.dma_copy(index, rows)
        for _ in range(3):
            out = x.ap(pattern=[[512, 1], [1, 512]], scalar_offset=index, indirect_dim=0)
            nisa.dma_copy(out, tile, oob_mode=nisa.oob_mode.skip, dge_mode=mode)

    x, outside = np.ones((2, 512), np.float32), np.full((1, 1), 2, np.int32)
    report = priced(body, x, outside)
    assert (x == 1).all()
    assert report.hbm_write == 0
    if mode is nisa.dge_mode.hwdge:
        assert report.busy_us["issue"] == pytest.approx(4 * C.dma_issue_ns / 1e3)
    else:
        assert report.busy_us["gpsimd"] == pytest.approx(3 * C.dma_swdge_ns / 1e3)


def test_hbm_bounds_what_the_engines_could_move():
    x = np.zeros((128, 16384), np.float32)
    report = priced(lambda x: nisa.dma_copy(nl.ndarray(x.shape, dtype=F32), x), x)
    assert report.roofline_us >= x.nbytes / C.hbm_bytes_ns / 1e3 - 1e-9


def test_dependent_instructions_wait_and_independent_ones_do_not():
    def chain(x):
        t = sb(128, 128)
        for _ in range(10):
            nisa.tensor_scalar(t, t, nl.add, 1.0)

    def apart(x):
        for _ in range(10):
            t = nl.zeros((128, 128), dtype=F32)
            nisa.tensor_scalar(t, t, nl.add, 1.0)

    def overwrite(x):
        a = sb(128, 128)
        for _ in range(10):
            nisa.memset(a, 1.0)

    a, b = priced(chain), priced(apart)
    service = 128 * C.vector_copy_fp32 / C.vector_ghz
    fill = 128 * C.vector_memset / C.vector_ghz
    first = max(fill + C.vector_memset_ready_ns, fill + C.vector_issue_ns)
    last = max(service, C.min_cycles / C.vector_ghz) + C.vector_issue_ns
    assert a.time_us * 1e3 == pytest.approx(first + 9 * (service + C.vector_ready_ns) + last)
    assert a.path_us["wait"] > 9 * 0.1
    # In program order the fresh zeros sit between, so only the hazard of the pair itself is waited for.
    assert b.reordered_us < b.time_us
    assert b.critical_us * 1e3 == pytest.approx(first + last)
    assert priced(overwrite).path_us.get("wait", 0.0) == 0  # what is written over is not read


def test_engines_overlap_across_a_semaphore():
    def body(x):
        a, b = sb(128, 512), sb(128, 512)
        nisa.activation(a, nl.exp, a)
        nisa.tensor_scalar(b, b, nl.add, 1.0)

    report = priced(body)
    assert report.time_us < report.busy_us["scalar"] + report.busy_us["vector"] + 0.1
    assert set(report.counts) == {"scalar", "vector"}


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (Box(0, 4, 0, 16, 0, 0, True), Box(0, 4, 16, 32, 0, 0, True), False),
        (Box(0, 4, 0, 16, 0, 0, True), Box(2, 8, 8, 32, 0, 0, True), True),
        (Box(0, 4, 0, 60, 8, 4, False), Box(0, 4, 4, 64, 8, 4, False), False),
        (Box(0, 4, 0, 60, 8, 4, False), Box(0, 4, 2, 62, 8, 4, False), True),
        (Box(0, 4, 0, 60, 8, 4, False), Box(0, 4, 12, 16, 0, 0, True), False),
        (Box(0, 4, 0, 60, 8, 4, False), Box(0, 4, 12, 17, 0, 0, True), True),
    ],
)
def test_footprints(a, b, want):
    assert overlap(a, b) is want
    assert overlap(b, a) is want


def test_interleaved_columns_do_not_depend_on_each_other():
    def body(x):
        t = nl.ndarray((128, 64, 2), dtype=F32)
        nisa.memset(t[:, :, 0], 1.0)
        nisa.memset(t[:, :, 1], 1.0, engine=nisa.engine.gpsimd)

    report = priced(body)
    assert all(n.start == 0 for n in report.nodes)


def test_two_cores_meet_at_a_rendezvous():
    def body(x):
        me = nl.program_id(0)
        a, b = sb(128, 64), sb(128, 64)
        for _ in range(1 + 20 * me):
            nisa.tensor_scalar(a, a, nl.add, 1.0)
        nisa.sendrecv(src=a, dst=b, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=0)
        nisa.tensor_scalar(b, b, nl.add, 1.0)

    report = priced(body, lnc=2)
    slow = next(n for n in report.nodes if n.core == 1 and n.instr.op == "sendrecv")
    fast = next(n for n in report.nodes if n.core == 0 and n.instr.op == "sendrecv")
    assert fast.start == pytest.approx(slow.start, abs=300)
    assert report.time_us > 20 * (33 + C.vector_ready_ns) / 1e3 + C.sendrecv_ns / 1e3
    assert report.lnc == 2


def test_a_schedule_keeps_every_promise():
    rng = np.random.default_rng(0)
    tiles_used = 6

    def body(x):
        tiles = [sb(128, 128) for _ in range(tiles_used)]
        for _ in range(150):
            a, b, c = (tiles[i] for i in rng.integers(0, tiles_used, 3))
            if rng.random() < 0.5:
                nisa.activation(a, nl.copy, b)
            else:
                nisa.tensor_tensor(a, b, c, nl.maximum)

    report = priced(body)
    last: dict[str, float] = {}
    for node in report.nodes:
        for dep, lag in node.deps:
            assert node.start >= report.nodes[dep].finish + lag - 1e-6
        engine = node.instr.engine.name
        assert node.start >= last.get(engine, 0.0) - 1e-6
        last[engine] = node.finish
    assert report.critical_us <= report.reordered_us + 1e-9 <= report.time_us + 2e-9
    assert report.roofline_us <= report.reordered_us + 1e-9
    assert sum(report.path_us.values()) == pytest.approx(report.time_us)
    for what, (low, high) in report.range_us.items():
        assert low <= getattr(report, what) <= high


@pytest.mark.parametrize("anew", [True, False])
def test_reordering_within_psum_waits_for_places(anew):
    """Products that need nothing of each other, each evicted by ScalarE, which is slower than TensorE."""

    def body(x):
        w, y, out = sb(128, 128, dtype=BF16), sb(128, 512, dtype=BF16), nl.ndarray((128, 8, 512), dtype=F32)
        kept = nl.ndarray((128, 512), dtype=F32, buffer=nl.psum)
        for at in range(8):
            acc = nl.ndarray((128, 512), dtype=F32, buffer=nl.psum) if anew else kept
            nisa.nc_matmul(acc, w, y)
            nisa.tensor_copy(out[:, at, :], acc, engine=nisa.engine.scalar)

    def end(rooms):
        nodes = build([core], C)
        confine(nodes, rooms, C)
        return reordered(nodes, 1, C)

    core = run(nki.jit(lambda x: body(x) or x), (np.zeros((1, 1), np.float32),), {})[1].cores[0]
    free = reordered(build([core], C), 1, C)
    if anew:
        products = [n for n in build([core], C) if n.instr.op == "nc_matmul"]
        assert end(1) > end(2) >= end(8) == free
        assert end(1) - free > 6 * products[0].ns  # one after another but for the first and the last
    else:
        assert end(1) == free


def _example():
    @nki.jit
    def kernel(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        t = nl.ndarray(x.shape, dtype=x.dtype)
        nisa.dma_copy(t, x)
        nisa.activation(t, nl.exp, t)
        nisa.dma_copy(out, t)
        return out

    return profiling.Example(kernel, (np.zeros((128, 256), np.float32),), note="128 x 256")


def test_the_profile_command_writes_json_timeline_and_plot(tmp_path, monkeypatch):
    monkeypatch.setitem(profiling.REGISTRY, "exp", _example)
    shown = CliRunner().invoke(profiling.app, ["profile", "exp", "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "modelled" in shown.output
    assert "128 x 256" in shown.output
    data = json.loads((tmp_path / "exp.json").read_text())
    assert data["modelled"] is True
    assert data["busy_us"]["scalar"] * 1e3 == pytest.approx(256 / 1.2 + C.scalar_issue_ns + C.scalar_table_ns)
    assert data["range_us"]["time_us"][0] < data["time_us"] < data["range_us"]["time_us"][1]
    assert data["prices"] == "published"
    events = json.loads((tmp_path / "exp.trace.json").read_text())["traceEvents"]
    assert [e["name"] for e in events if e["ph"] == "X"] == ["dma_copy", "activation", "dma_copy"]
    assert all(e["dur"] > 0 for e in events if e["ph"] == "X")
    assert (tmp_path / "exp.png").read_bytes()[:4] == b"\x89PNG"


def test_the_prices_that_a_time_depends_on_are_named(monkeypatch):
    monkeypatch.setitem(profiling.REGISTRY, "exp", _example)
    shown = CliRunner().invoke(profiling.app, ["profile", "exp", "--uncertain"])
    assert shown.exit_code == 0, shown.output
    listed = [line for line in shown.output.splitlines() if " to " in line and "ns: " in line]
    assert "hbm_bytes_ns" in shown.output  # 128 KiB in and out
    assert "dma_issue_ns" in listed[0] or "hbm_bytes_ns" in listed[0]
    assert "tensor_load_cycles" not in shown.output  # no product in it
    example = _example()
    _, launch = run(example.kernel, example.args, example.kwargs)
    found = effects(launch.cores)
    assert [e.spread_us for e in found] == sorted((e.spread_us for e in found), reverse=True)
    assert all(e.low_us < e.high_us for e in found)
    low, high = likely(10.0, [Effect("a", 7.0, 14.0), Effect("b", 6.0, 13.0), Effect("c", 10.0, 10.0)])
    assert (low, high) == pytest.approx((5.0, 15.0))


def test_an_unknown_kernel_is_named_with_those_there_are(monkeypatch):
    monkeypatch.setattr(profiling, "load_all", lambda: {"exp": _example})
    shown = CliRunner().invoke(profiling.app, ["profile", "nothing"])
    assert shown.exit_code == 2
    assert "exp" in shown.output


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setitem(profiling.REGISTRY, "exp", _example)
    with pytest.raises(ValueError, match="already registered"):
        profiling.register("exp")(_example)


def test_fast_enough_to_be_used():
    """As many instructions of as large tiles as a fused prefill of 512 tokens and six heads has, run and priced."""

    def kernel(x):
        tiles = [sb(128, 128) for _ in range(6)]
        w = sb(128, 128, dtype=BF16)
        for i in range(500):
            t = tiles[i % 6]
            acc = nl.ndarray((128, 128), dtype=F32, buffer=nl.psum)
            low = nl.ndarray((128, 128), dtype=BF16)
            nisa.tensor_copy(low, t)
            nisa.nc_matmul(acc, w, low)
            nisa.scalar_tensor_tensor(t, t, nl.multiply, 0.5, nl.add, acc)
            nisa.activation(low, nl.exp, t, scale=0.01)
            nisa.tensor_tensor(t, t, low, nl.multiply)
            nisa.tensor_scalar(t, t, nl.minimum, 1.0)
        return x

    start = time.process_time()
    _, report = profile(nki.jit(kernel), np.zeros((1, 1), np.float32))
    assert report.instructions > 3000
    assert time.process_time() - start < 10
