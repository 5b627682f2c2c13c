"""AWS's chunked prefill of the gated delta rule, `gdn_cte` of nki-library, beside the fused one: one list, one oracle.

The library's sources lie outside this repository and run as they are. Its kernel with the Schur solve takes normalised
queries and keys, the fused prefill normalises them itself: `qk_l2norm` does it for the former, priced on its own.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nki_kernels import examples
from nki_kernels.gated_rms_norm import qk_l2norm
from nki_kernels.interpreter import PriceList, Target, compiling_for, jit
from nki_kernels.interpreter.context import Core
from nki_kernels.interpreter.cost_table import Costs
from nki_kernels.interpreter.enums import MemoryRegion
from nki_kernels.interpreter.hardware import HW
from nki_kernels.interpreter.launch import run
from nki_kernels.interpreter.price_list import LEVELS
from nki_kernels.interpreter.schedule import build, confine, program_order, reordered
from nki_kernels.interpreter.sensitivity import Effect, likely

TARGET = Target("2.33", checks="compiler")
"""The release that the kernel came with; it stores through reshape(), which user reports alone forbid."""
PACKAGE = "nkilib.experimental.gdn"
ORDERS = ("program", "reordered", "reordered in PSUM")
"""The last: reordered, with the tensors in PSUM taking turns in as many places as fit there. The library's kernel
allocates one for every product, so that without this they may be any number at once; the fused prefill reuses its own.
"""
EPS = 1e-6
Times = dict[str, float]
"""Order -> us."""


@dataclass(frozen=True)
class Schur:
    """The library's kernel.

    Attributes:
        kernel: `gdn_cte_schur`, jitted.
        masks: Its constants, float32 [planes, 128, 128].
        code: sha256 of the syntax of its two modules without docstrings: which text was run.
    """

    kernel: Any
    masks: np.ndarray
    code: str


def load(src: Path) -> Schur:
    """The kernel from the folder that holds `nkilib`, in a checkout `src/nkilib_src`.

    Raises:
        FileNotFoundError: the library there has no such kernel; it came with SDK 2.33.
    """
    files = [src.joinpath(*PACKAGE.split("."), f"{name}.py") for name in ("gdn_cte_schur", "gdn_cte_utils")]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; the kernel came with the nki-library of SDK 2.33")
    sys.path.insert(0, str(src))
    try:
        kernel, utils = (importlib.import_module(f"{PACKAGE}.{file.stem}") for file in files)
    finally:
        sys.path.remove(str(src))
    syntax = "".join(_syntax(file.read_text(encoding="utf-8")) for file in files)
    return Schur(
        jit(kernel.gdn_cte_schur), utils.build_mask_pack(), hashlib.sha256(syntax.encode()).hexdigest()
    )  # fmt: skip


def _syntax(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [x for x in body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]  # type: ignore[attr-defined]
    return ast.dump(tree)


def unit(x: np.ndarray) -> np.ndarray:
    """x / sqrt(|x|^2 + eps) along the last axis, rounded to x's type."""
    wide = x.astype(np.float32)
    return (wide / np.sqrt((wide * wide).sum(-1, keepdims=True) + EPS)).astype(x.dtype)


def arguments(
    schur: Schur, q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, beta: np.ndarray, state: np.ndarray
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The kernel's positional and named arguments: heads before tokens, a batch of one, q and k of unit length.

    Args:
        schur: the kernel.
        q, k: [tokens, key heads, 128], of one type, which the kernel computes in.
        v: [tokens, heads, 128], of the same.
        g, beta: float32 [tokens, heads].
        state: float32 [heads, 128, 128], copied.
    """
    tensors = (np.ascontiguousarray(np.swapaxes(x, 0, 1))[None] for x in (unit(q), unit(k), v, g, beta))
    return (*tensors, schur.masks), {"scale": q.shape[-1] ** -0.5, "recurrent_state": state[None].copy()}


def outputs(schur: Schur, *inputs: np.ndarray, cores: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(o [tokens, heads, 128] of v's type, state float32 [heads, 128, 128]) for the inputs of :func:`arguments`."""
    args, kwargs = arguments(schur, *inputs)
    (o, state), _ = run(schur.kernel[cores], args, kwargs, TARGET)
    return np.swapaxes(o[0], 0, 1), state[0]


def traces(schur: Schur, tokens: int, dtype: type) -> dict[str, list[Core]]:
    """One core's launches at the size of the examples: the fused prefill, the library's kernel, the normalisation."""
    fused = examples.prefill(tokens, dtype=dtype)
    q, k, *_ = fused.args
    args, kwargs = arguments(schur, *fused.args[:6])
    # Queries and keys lie side by side where the convolution leaves them, so that one launch does for both.
    both = np.concatenate([q, k], axis=1)
    with compiling_for(TARGET):
        return {
            "fused": run(fused.kernel, fused.args, fused.kwargs, Target())[1].cores,
            "schur": run(schur.kernel, args, kwargs)[1].cores,
            "normalise": run(qk_l2norm, (both,), {})[1].cores,
        }


def psum_places(cores: list[Core]) -> int:
    """Places in PSUM, each of the size of the kernel's largest tensor there."""
    sizes = [
        a[0].row_bytes for c in cores for i in c.trace for a in i.writes if a[0].buffer is MemoryRegion.psum
    ]  # fmt: skip
    return HW.psum_banks * HW.psum_bank_bytes // max(sizes, default=HW.psum_bank_bytes)


def times(cores: list[Core], costs: Costs) -> Times:
    """us by order, with these prices."""
    nodes = build(cores, costs)
    ordered = program_order(nodes, len(cores), costs)
    free = reordered(nodes, len(cores), costs)
    confine(nodes, psum_places(cores), costs)
    confined = min(reordered(nodes, len(cores), costs), ordered)
    # The scheduler is greedy: it may find only under a constraint what it could do without.
    return {k: ns / 1e3 for k, ns in zip(ORDERS, (ordered, min(free, confined), confined), strict=True)}


INCLUDES = {
    "fused": "raw q, k: normalises and scales them, masks padding; g and beta given; state from an input to a bank",
    "schur": "normalised q, k, of heads before tokens: scales q; g and beta given; state in place; no padding",
    "normalise": "q and k in one launch, of tokens before heads; turning them to heads before tokens is not counted",
}
"""What each launch does. None makes g and beta from activations, none writes checkpoints on the way."""
Share = Callable[[dict[str, Times], str], float]
RATIOS: dict[str, Share] = {
    "same work": lambda us, order: (us["schur"][order] + us["normalise"][order]) / us["fused"][order],
    "kernel alone": lambda us, order: us["schur"][order] / us["fused"][order],
}
"""How many times the fused prefill's time the library's kernel takes: with normalising its inputs, or given them so."""


@dataclass(frozen=True)
class Ratio:
    """One of :data:`RATIOS` in one order.

    Attributes:
        centre: At the centre of the price list.
        low, high: With every price at its cheapest, at its dearest, for both alike; either may be the larger.
        likely: Least and most if every price errs on its own.
        most_by: The four prices that change it most, each alone at its two ends.
    """

    centre: float
    low: float
    high: float
    likely: tuple[float, float]
    most_by: dict[str, tuple[float, float]]


def compare(traced: dict[str, list[Core]], prices: PriceList) -> dict[str, Any]:
    """``us``: end of the price list -> launch -> order; ``ratios``: name -> order -> :class:`Ratio`, as plain data."""
    ends = {level: {k: times(v, prices.costs(level)) for k, v in traced.items()} for level in LEVELS}
    alone = {
        name: [
            {k: times(v, replace(prices.costs(), **{name: value})) for k, v in traced.items()}
            for value in ((p.high, p.low) if p.rate else (p.low, p.high))
        ]
        for name, p in prices.prices.items()
        if p.low != p.high
    }

    def ratio(share: Share, order: str) -> Ratio:
        at = {level: share(us, order) for level, us in ends.items()}
        found = [Effect(name, *(share(us, order) for us in pair)) for name, pair in alone.items()]
        found.sort(key=lambda e: -e.spread_us)
        most = {e.name: (e.low_us, e.high_us) for e in found[:4]}
        return Ratio(at["centre"], at["low"], at["high"], likely(at["centre"], found), most)

    return {
        "us": ends,
        "ratios": {name: {order: asdict(ratio(share, order)) for order in ORDERS} for name, share in RATIOS.items()},
    }
