"""What the conformance tests of aws-neuron/nki-library share; nothing of the library is kept here."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import nki
import numpy as np
import pytest
import torch

SRC = os.environ.get("NKI_LIBRARY_SRC")
ABSENT = pytest.mark.skipif(not SRC, reason="NKI_LIBRARY_SRC is not set to nki-library's src/nkilib_src")
BF16 = ml_dtypes.bfloat16


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    """The library on the import path, and the one module of an older compiler that it imports for an annotation."""
    if not SRC:
        yield
        return
    assert Path(SRC, "nkilib").is_dir(), f"NKI_LIBRARY_SRC={SRC} has no nkilib folder"
    sys.path.insert(0, SRC)
    stubs = {"neuronxcc": ModuleType("neuronxcc"), "neuronxcc.nki": ModuleType("neuronxcc.nki")}
    typing_stub = ModuleType("neuronxcc.nki.typing")
    vars(typing_stub)["mutable_tensor"] = object
    stubs["neuronxcc.nki.typing"] = typing_stub
    added = [name for name in stubs if name not in sys.modules]
    sys.modules.update({name: stubs[name] for name in added})
    yield
    sys.path.remove(SRC)
    for name in added:
        del sys.modules[name]


def take(path: str, *names: str) -> Any:
    """Names of a library module."""
    module = importlib.import_module(f"nkilib.{path}")
    found = tuple(getattr(module, n) for n in names)
    return found[0] if len(found) == 1 else found


def data(seed: int, *shape: int, dtype: Any = np.float32, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def t(x: np.ndarray | None) -> torch.Tensor | None:
    """As a float32 (or integer) torch tensor."""
    if x is None:
        return None
    return torch.from_numpy(x.astype(np.float32) if x.dtype.kind in "fV" else np.array(x))


def same(actual: Any, expected: Any, tol: float) -> None:
    """Largest error within ``tol`` of the largest expected magnitude."""
    a = np.asarray(actual).astype(np.float64)
    e = np.asarray(expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected).astype(np.float64)
    a = a.reshape(e.shape)
    assert np.isfinite(a).all()
    error = np.abs(a - e).max() / max(np.abs(e).max(), 1e-30)
    assert error <= tol, f"relative error {error:.3g} > {tol}"


def at(kernel: Any, lnc: int) -> Any:
    """The kernel on ``lnc`` cores; 0 launches without a grid."""
    jitted = kernel if hasattr(kernel, "__getitem__") else nki.jit(kernel)
    return jitted[lnc] if lnc else jitted
