"""Kernels that others measured on a Trainium2, each priced: what was measured, by whom, and how it is modelled here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from nki_kernels.interpreter import PriceList, Report, profile

from . import deltanet, products

BF16 = ml_dtypes.bfloat16
ALONE = PriceList().having("published, rest of the chip idle", tensor_throttle=1.0)
VOYAGER_LAUNCH_US = 9.403
"""What voyager's authors measured a launch to cost on their machine."""
VOYAGER, MEGA = "Joejoedesu/voyager-compiler", "KevGomes1403/nki-moe-megakernel"


@dataclass(frozen=True)
class Times:
    """us: by the order of the program and reordered, at the centre of the list; from cheapest reordered to dearest."""

    program: float
    reordered: float
    low: float
    high: float

    def __add__(self, us: tuple[float, float, float]) -> Times:
        low, centre, high = us
        return Times(self.program + centre, self.reordered + centre, self.low + low, self.high + high)


@dataclass(frozen=True)
class Row:
    """One measurement and its model.

    Attributes:
        name: Kernel and size.
        measured: us, least and most that was reported.
        source: Who measured it, and where that is written.
        how: How it is modelled.
        times: The modelled times.
    """

    name: str
    measured: tuple[float, float]
    source: str
    how: str
    times: Times

    def error(self, modelled: float) -> float:
        """Share by which a time misses the middle of the measured ones."""
        return modelled / (sum(self.measured) / 2) - 1

    @property
    def between(self) -> bool:
        """Whether what was measured lies between the cheapest reordered and the dearest program order."""
        return self.times.low <= self.measured[1] and self.measured[0] <= self.times.high


def times(report: Report) -> Times:
    """Of one launch, without what launching costs."""
    return Times(
        report.time_us, report.reordered_us, report.range_us["reordered_us"][0], report.range_us["time_us"][1]
    )  # fmt: skip


def launch() -> tuple[float, float, float]:
    """us that a launch of its own costs, by the list."""
    price = PriceList().prices["launch_ns"]
    return price.low / 1e3, price.centre / 1e3, price.high / 1e3


def _random(*shape: int, dtype: Any = np.float32, scale: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * scale).astype(dtype)


def _grown(kernel: Any, args: Callable[[int], tuple[Any, ...]], few: int, tokens: int) -> Times:
    """A kernel that does the same for every block of tokens, from `few` tokens and twice as many."""
    one, two = (times(profile(kernel, *args(n), prices=ALONE)[1]) for n in (few, 2 * few))

    def at(a: float, b: float) -> float:
        return a + (b - a) * (tokens - few) / few

    return Times(*(at(getattr(one, k), getattr(two, k)) for k in ("program", "reordered", "low", "high")))


def rebuilt() -> Iterator[Row]:
    """Kernels whose text is not run here: rebuilt from their description."""
    fixed = (VOYAGER_LAUNCH_US,) * 3
    isa = f"{VOYAGER}, docs/trainium-isa-model.md"
    yield Row(
        "product 128 x 128 x 128, float32", (18, 20), isa, "rebuilt, one core, launch 9.4 us",
        times(profile(products.product_128, _random(128, 128), _random(128, 128), prices=ALONE)[1]) + fixed,
    )  # fmt: skip
    shape = "float32, 4,096 tokens"
    yield Row(
        f"SwiGLU 1,024 x 3,072, {shape}", (4082, 4082), isa, "rebuilt, one core",
        _grown(products.swiglu, lambda n: (
            _random(n, 1024), _random(1024, 3072), _random(1024, 3072), _random(3072, 1024)
        ), 512, 4096) + fixed,
    )  # fmt: skip
    alone = "rebuilt, one core; one tile for the weights, as the rate of 4.1 us a product shows"
    yield Row(
        f"add, RMSNorm, product 1,024 x 2,048, {shape}", (4114, 4114), isa, alone,
        _grown(products.add_norm_project, lambda n: (
            _random(n, 1024), _random(n, 1024), _random(1024), _random(1024, 2048)
        ), 128, 4096) + fixed,
    )  # fmt: skip
    yield Row(
        f"product 2,048 x 2,048, add, RMSNorm, {shape}", (8466, 8466), isa, alone,
        _grown(products.project_add_norm, lambda n: (
            _random(n, 2048), _random(n, 2048), _random(2048), _random(2048, 2048)
        ), 128, 4096) + fixed,
    )  # fmt: skip
    _, report = profile(deltanet.deltanet_half[2], *deltanet_inputs())
    yield Row(
        "DeltaNet half-layer, 2 tokens, bfloat16, a rank of 4", (81.7, 81.7),
        f"{MEGA}, nki_kernels/specs/deltanet_decode_opt.md", "rebuilt, two cores", times(report) + launch(),
    )  # fmt: skip


def deltanet_inputs() -> tuple[Any, ...]:
    """Arguments of `deltanet_half`."""
    positive = np.abs(_random(2, 1, 8, scale=1.0)) + 0.1
    return (
        _random(2, 2048, dtype=BF16, scale=1.0), 1 + _random(128, 16), _random(2, 128, 16 * 1552, dtype=BF16),
        _random(2, 8, 384), _random(2, 8, 512), np.concatenate([positive, positive], axis=2), _random(2, 128, 512),
        1 + _random(1, 512), _random(2, 128, 8192, dtype=BF16),
    )  # fmt: skip


PHASES = {"load and norm": 7.0, "in_proj": 14.0, "conv and l2norm": 16.8, "recurrence": 19.25, "o_proj": 8.7}
"""us of the half-layer's phases as measured; before them 12.6 us, after them 3.4."""


def phases() -> dict[str, tuple[float, float]]:
    """Of the half-layer in program order: (measured, modelled) us from one phase's last instruction to the next's."""
    _, report = profile(deltanet.deltanet_half[2], *deltanet_inputs())
    nodes = [n for n in report.nodes if n.core == 0]
    found, at, before = {}, 0, 0.0
    for phase, end in deltanet.marks:
        last = max(n.finish for n in nodes[at:end] if n.transfer is None) / 1e3
        found[phase] = (PHASES[phase], last - before)
        at, before = end, last
    return found


ATTENTION = {
    "v12e": 65.33, "v13_planA": 64.01, "v13_planB": 61.43, "v13_planC": 64.15, "v13_BC": 59.47, "v14_planG": 67.69,
    "v14_planH": 61.43, "v14_planI": 76.72,
}  # fmt: skip
"""us, of kernels/attn_tkg/OPTIMIZATION_LOG.md at 6df2105, whose bytes read from HBM are those of these files."""
EXPERTS = {"kernel_v28f": 98.15, "kernel_v29j": 100.05, "kernel_v29k": 98.99, "kernel_v29m": 100.98}
"""us, of kernels/moe_fused_tkg/moe_fused_optimization_log.md at 6df2105; older ones return private HBM, refused."""


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public(checkout: Path) -> Iterator[Row]:
    """The kernels in a checkout of the megakernel's repository at 6df2105, run as they are.

    Raises:
        FileNotFoundError: a kernel is not there.
    """
    log = f"{MEGA} at 6df2105, kernels/"
    attention = _attention_inputs()
    for name, us in ATTENTION.items():
        module = _module(checkout / "kernels" / "attn_tkg" / "agents" / f"{name}.py")
        kernel = [v for k, v in vars(module).items() if k.startswith("qwen3_attn")][-1]
        _, report = profile(kernel, *attention)
        yield Row(
            f"attention, 1 token over 640, {name}", (us, us), log + "attn_tkg", "run as it is, one core",
            times(report) + launch(),
        )  # fmt: skip
    experts = _expert_inputs()
    for name, us in EXPERTS.items():
        kernel = _module(checkout / "kernels" / "moe_fused_tkg" / "versions" / f"{name}.py").qwen3_moe_fused_tkg
        _, report = profile(kernel[2], *experts)
        yield Row(
            f"8 of 128 experts, 1 token, {name}", (us, us), log + "moe_fused_tkg", "run as it is, two cores",
            times(report) + launch(),
        )  # fmt: skip


def _attention_inputs() -> tuple[Any, ...]:
    hidden, dim, held, heads = 2048, 128, 640, 8

    def bf16(*shape: int) -> np.ndarray:
        return _random(*shape, dtype=BF16)

    return (
        bf16(1, 1, hidden), bf16(heads * dim, hidden), bf16(dim, hidden), bf16(dim, hidden), bf16(heads * dim, hidden),
        bf16(dim), bf16(dim), bf16(1, 1, held, dim), bf16(1, 1, held, dim), bf16(1, dim), bf16(1, dim),
        np.array([[320]], dtype=np.int32),
    )  # fmt: skip


def _expert_inputs() -> tuple[Any, ...]:
    hidden, experts, inner = 2048, 128, 192
    return (
        _random(1, 1, hidden, dtype=BF16), _random(1, hidden, dtype=BF16) + BF16(1),
        _random(hidden, experts, dtype=BF16),
        _random(experts, hidden, 2 * inner, dtype=BF16), _random(experts, inner, hidden, dtype=BF16),
    )  # fmt: skip


def rounded(row: Row) -> Row:
    """For a report: to the digits that were reported."""
    digits = 0 if row.measured[0] > 1000 else 1
    values = (round(getattr(row.times, k), digits) for k in ("program", "reordered", "low", "high"))
    return replace(row, times=Times(*values))
