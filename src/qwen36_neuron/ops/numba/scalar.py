"""What the fused operations share: how they are compiled, and arithmetic that the compiler can do on whole vectors."""

from __future__ import annotations

import ast
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from llvmlite import ir
from numba import config, njit, set_num_threads, types
from numba.extending import intrinsic

Array = np.ndarray[Any, Any]
Function = TypeVar("Function", bound=Callable[..., Any])

f32: Any = np.float32
"""To Numba a type; to a type checker, what makes a number that passes for a float."""

i64: Any = np.int64
"""Likewise of sizes. A plain constant is a type of its own to Numba, which would compile a function anew for each."""

one = f32(1.0)
zero = f32(0.0)


def cache_folder(operations: Path) -> Path:
    """Where compiled code is kept: beside this source, or in the user's cache if that cannot be written.

    Numba looks at the file of a function alone, not at those that its callees and constants are compiled in from, so
    the folder is named by all of them, see `compiled_sources`.

    Args:
        operations: the folder of `ops`.
    """
    digest = hashlib.sha256()
    for source in compiled_sources(operations):
        digest.update(source.read_bytes())
    here = operations / "numba"
    beside = here / "__pycache__"
    folder = beside if os.access(beside if beside.exists() else here, os.W_OK) else Path.home() / ".cache/qwen36-neuron"
    return folder / f"fused-{digest.hexdigest()[:16]}"


def compiled_sources(operations: Path) -> list[Path]:
    """What compiled code is made of: the files of `ops.numba`, those of `ops` that use them, and what both import.

    Whatever is imported by a relative name counts, whether it is a function, a constant or neither.
    """
    shared = operations / "numba"
    imports = {source: _imported(source) for source in operations.rglob("*.py")}
    compiled = {source for source, files in imports.items() if shared in {file.parent for file in (source, *files)}}
    return sorted(compiled.union(*(imports[source] for source in compiled)))


def _imported(source: Path) -> set[Path]:
    """The modules that a file imports from by a relative name, and through the `__init__` of a package."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = source.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            if not module.is_dir():
                found.add(module.with_suffix(".py"))
                continue
            package = module / "__init__.py"
            names = {file for name in node.names if (file := module / f"{name.name}.py").exists()}
            found |= names | {package} | (_imported(package) if package != source else set())
    return found


CACHE_FOLDER = cache_folder(Path(__file__).parents[1])


def compiled(parallel: bool = False, reorder: bool = True, inline: bool = True) -> Callable[[Function], Function]:
    """Compile a function on its first call, and keep the result for the next process.

    Products are fused into sums; a division by zero gives what IEEE says.

    Args:
        reorder: sums may be reordered, without which none over a vector could use vector instructions.
        inline: make the function part of whatever calls it, unless it is parallel.
    """
    options: dict[str, Any] = {
        "parallel": parallel,
        "forceinline": inline and not parallel,
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"contract", "nsz"} | ({"reassoc", "arcp"} if reorder else set()),
    }

    def decorate(function: Function) -> Function:
        previous, config.CACHE_DIR = config.CACHE_DIR, str(CACHE_FOLDER)
        try:
            return njit(function, cache=True, **options)
        except RuntimeError:  # nothing can be written anywhere: compile in every process
            return njit(function, **options)
        finally:
            config.CACHE_DIR = previous

    return decorate


def use_threads(count: int) -> None:
    """Run parallel operations on as many threads as torch has, up to the number of cores."""
    set_num_threads(max(1, min(count, config.NUMBA_NUM_THREADS)))


def array(x: torch.Tensor) -> Array:
    """A tensor's own memory as an array."""
    return x.detach().numpy()


@intrinsic
def float_of_bits(_context: Any, bits: Any) -> Any:
    """The fp32 number with the bits of an int32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def double_of_bits(_context: Any, bits: Any) -> Any:
    """The fp64 number with the bits of an int64."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@compiled(reorder=False)
def exp(x: float) -> float:
    """e^x in fp32, to 2e-7 of itself for x in -87 .. 88, which x is clamped to.

    The library's is a call a number; this is arithmetic, so a loop over it becomes vectors. With n = round(x / ln 2)
    and r = x - n ln 2, ln 2 in two parts so that r is exact, e^r is a polynomial (Cephes, `expf`) and 2^n an exponent.
    """
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = np.floor(x * f32(1.4426950408889634) + f32(0.5))
    r = x - n * f32(0.693359375)
    r = r - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + one
    return p * float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@compiled()
def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return one / (one + exp(-x))


@compiled()
def silu(x: float) -> float:
    """x sigmoid(x)."""
    return x / (one + exp(-x))


@compiled()
def log_decay(a: float, rate: float) -> float:
    """g = A softplus(a), A being `rate`; torch's softplus is the identity above 20."""
    return rate * (a if a > f32(20.0) else f32(math.log1p(math.exp(a))))
