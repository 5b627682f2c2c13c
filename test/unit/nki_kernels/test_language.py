"""``nki.language`` functions against numpy, configuration objects, and who provides ``nki``."""

import copy
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest

from nki_kernels.interpreter import KernelError

RNG = np.random.default_rng(3)
X = (RNG.standard_normal((8, 16)) * 4).astype(np.float32)


def run(body, *arrays):
    """``body(*tiles)`` returns an on-chip tensor, whose values come back."""

    def kernel(*args):
        tiles = []
        for a in args:
            tile = nl.ndarray(a.shape, dtype=a.dtype)
            nisa.dma_copy(tile, a)
            tiles.append(tile)
        made = body(*tiles)
        copy = nl.ndarray(made.shape, dtype=nl.float32)
        nisa.tensor_copy(copy, made)
        out = nl.ndarray(made.shape, dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(out, copy)
        return out

    return np.asarray(nki.jit(kernel)(*arrays))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("floor", np.floor), ("ceil", np.ceil), ("trunc", np.trunc), ("negative", np.negative), ("sin", np.sin),
        ("cos", np.cos), ("tan", np.tan), ("exp", np.exp), ("abs", np.abs), ("square", np.square), ("sign", np.sign),
    ],
)  # fmt: skip
def test_unary(name, want):
    np.testing.assert_allclose(run(getattr(nl, name), X), want(X), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "want"),
    [("sum", np.sum), ("max", np.max), ("min", np.min), ("mean", np.mean), ("var", np.var), ("prod", np.prod)],
)
def test_reductions(name, want):
    y = run(lambda x: getattr(nl, name)(x, axis=1), X)
    np.testing.assert_allclose(y, want(X, axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_composites():
    w = RNG.standard_normal((8, 16)).astype(np.float32)
    norm = X / np.sqrt((X * X).mean(axis=1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(run(lambda x, w: nl.rms_norm(x, w, 1, 16), X, w), norm, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(lambda x, y: nl.matmul(x, y, transpose_x=True), X, w), X.T @ w, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run(nl.transpose, X), X.T)
    keep = (RNG.random((8, 16)) < 0.5).astype(np.uint8)
    np.testing.assert_array_equal(run(nl.where, keep, X, w), np.where(keep, X, w))
    column = X[:, :1].copy()
    np.testing.assert_array_equal(run(lambda c: nl.broadcast_to(c, (8, 5)), column), np.tile(column, (1, 5)))
    np.testing.assert_array_equal(run(lambda x: nl.all(x, axis=1), np.abs(X) + 1), np.ones((8, 1)))


def test_identity_and_constants(tmp_path):
    table = RNG.standard_normal((4, 6)).astype(np.float32)
    np.save(tmp_path / "table.npy", table)

    def kernel(x):
        out = nl.ndarray((4, 6), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(out, nl.shared_constant(str(tmp_path / "table.npy")))
        return out

    np.testing.assert_array_equal(nki.jit(kernel)(X), table)
    np.testing.assert_array_equal(run(lambda x: nl.shared_identity_matrix(5, dtype=nl.bfloat16), X), np.eye(5))
    np.testing.assert_array_equal(run(lambda x: nl.shared_identity_matrix(5), X), np.eye(5))


def test_dtypes_are_names_and_keys():
    assert str(nl.float32) == "float32"
    assert {nl.bfloat16: 1}["bfloat16"] == 1
    assert nl.float32 != nl.bfloat16
    assert nl.tile_size.pmax == 128


def test_configuration_objects():
    @dataclass(frozen=True)
    class Frozen(nl.NKIObject):
        width: int
        dtype = nl.float32
        scale: float = 1.0

    class Plain(nl.NKIObject):
        width: int
        depth: int = 3

    f = Frozen(width=4, dtype=nl.bfloat16)
    assert (f.width, f.dtype, f.scale) == (4, nl.bfloat16, 1.0)
    p = Plain(width=2)
    assert (p.width, p.depth) == (2, 3)
    with pytest.raises(TypeError, match="no field 'height'"):
        Plain(height=2)

    def kernel(x, cfg):
        tile = nl.ndarray((8, cfg.width), dtype=nl.float32)
        nisa.dma_copy(tile, cfg.weights)
        nisa.dma_copy(x, tile)
        return x

    class Holder(nl.NKIObject):
        width: int
        weights: object

    y = nki.jit(kernel)(np.zeros((8, 16), np.float32), Holder(width=16, weights=X))
    np.testing.assert_array_equal(y, X)


def test_random_numbers_are_in_range_and_seeded():
    y = run(lambda x: nl.rand((8, 16), nl.float32), X)
    assert y.min() >= 0
    assert y.max() < 1
    assert len(np.unique(y)) > 100


def test_operators_of_two_shapes_are_refused():
    with pytest.raises(KernelError, match="does not broadcast"):
        run(lambda x: nl.broadcast_to(x, (8, 5)), X)


def _python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": f"{folder}:{Path(__file__).parents[3]}", "PATH": "/usr/bin"},
    )  # fmt: skip
    return done.stdout.strip()


def test_a_real_nki_is_left_alone(tmp_path):
    (tmp_path / "nki").mkdir()
    (tmp_path / "nki" / "__init__.py").write_text("REAL = True\n")
    (tmp_path / "nki" / "isa.py").write_text("REAL = True\n")
    code = "from nki_kernels.interpreter import install; a = install(); import nki; print(a, nki.REAL)"
    assert _python(code, tmp_path) == "False True"


def test_an_empty_placeholder_does_not_count_as_nki(tmp_path):
    (tmp_path / "nki").mkdir()
    (tmp_path / "nki" / "__init__.py").write_text("")
    code = "from nki_kernels.interpreter import install; a = install(), install(); import nki.isa; print(a)"
    assert _python(code, tmp_path) == "(True, True)"


def test_every_name_of_the_surface_is_importable():
    for name in (
        "nki", "nki.language", "nki.isa", "nki.isa.constants", "nki.typing", "nki.collectives", "nki.compiler",
        "nki.dtype", "nki.tensor", "nki.language.dtypes",
    ):  # fmt: skip
        assert name in sys.modules
    from nki.collectives import ReplicaGroup
    from nki.isa.constants import dge_mode, matmul_perf_mode, oob_mode
    from nki.language import NKIObject, affine_range, bfloat16, static_range
    from nki.typing import tensor

    assert tensor[128, 2] is tensor
    assert list(affine_range(3)) == list(static_range(3)) == [0, 1, 2]
    assert None not in (ReplicaGroup, dge_mode, matmul_perf_mode, oob_mode, NKIObject, bfloat16)
    assert nisa.vector_engine is nisa.engine.vector


def test_a_field_that_is_never_used_need_not_be_given():
    @dataclass
    class Sizes(nl.NKIObject):
        rows: int
        spare: int
        columns: int = 4

    sizes = Sizes(rows=2)
    assert (sizes.rows, sizes.columns) == (2, 4)
    for use in (lambda v: v + 1, lambda v: range(v), lambda v: v > 0, bool, lambda v: v.shape):
        with pytest.raises(KernelError, match=r"Sizes: operand 'spare'.*never given"):
            use(sizes.spare)


@pytest.mark.parametrize("kind", [nl.bool_, nl.uint32, nl.bfloat16, nl.tfloat32, nl.float8_e5m2])
def test_a_type_stays_itself_when_what_holds_it_is_copied(kind):
    """Configuration objects that name types are copied by kernels that derive one from another."""
    assert copy.deepcopy({"type": kind})["type"] is kind
    assert copy.copy(kind) is kind
    assert pickle.loads(pickle.dumps(kind)) is kind
