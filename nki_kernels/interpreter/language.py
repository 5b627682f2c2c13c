"""``nki.language``: allocation, program ids, loops, and the convenience functions that allocate their own result."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import context, elementwise, isa
from .alu import OPS, Op
from .dtypes import as_dtype, uint8
from .enums import MemoryRegion
from .errors import fail
from .hardware import TileSize
from .storage import Storage
from .target import current_target
from .tensor import DynSlice, Tensor

_SBUF = MemoryRegion.sbuf


class Unset:
    """A field that the constructor was not given: an error where it is used, as in the compiler, not before."""

    __slots__ = ("_field", "_owner")

    def __init__(self, owner: str, name: str) -> None:
        self._owner, self._field = owner, name

    def _used(self, *_: Any) -> Any:
        fail(self._owner, self._field, "is used and was never given")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._used()

    __bool__ = __call__ = __getitem__ = __iter__ = __len__ = __index__ = __int__ = __float__ = _used
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = __mod__ = _used
    __truediv__ = __rtruediv__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = _used


class NKIObject:
    """Base of a kernel's configuration objects.

    A subclass may be a dataclass; attributes without annotations count as fields all the same, and a field without a
    default need not be given if it is never used. One that is no dataclass is built with its annotations as keywords.
    """

    _nki_object = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        annotations = dict(inspect.get_annotations(cls))
        for key, value in list(cls.__dict__.items()):
            if key.startswith("_") or key in annotations:
                continue
            if callable(value) and not isinstance(value, (Op, type)):
                continue
            if isinstance(value, (staticmethod, classmethod, property)):
                continue
            annotations[key] = type(value)
        cls.__annotations__ = annotations
        for key, kind in annotations.items():
            if not hasattr(cls, key) and "ClassVar" not in str(kind):
                setattr(cls, key, Unset(cls.__name__, key))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fields: list[str] = []
        for base in reversed(type(self).__mro__):
            fields += [f for f in inspect.get_annotations(base) if f not in fields]
        for name, value in zip(fields, args, strict=False):
            setattr(self, name, value)
        for name, value in kwargs.items():
            if fields and name not in fields:
                raise TypeError(f"{type(self).__name__} has no field '{name}'")
            setattr(self, name, value)


class TargetTileSize(TileSize):
    """``nl.tile_size``."""

    @property
    def psum_num_banks(self) -> int:
        """PSUM banks that the kernel may fill."""
        core = context.core_or_none()
        return (current_target() if core is None else core.target).psum_banks


# ---- allocation
def _filled(ins: str, shape: Any, dtype: Any, buffer: MemoryRegion, name: str, value: float) -> Tensor:
    t = context.current(ins).allocate(shape, dtype, buffer, name, None)
    if not t.on_chip:
        fail(ins, "buffer", "only SBUF and PSUM can be filled; use dma_copy for HBM")
    isa.memset(t, int(value) if t.dtype.is_int else float(value))
    return t


def zeros(shape: Any, dtype: Any, buffer: MemoryRegion = _SBUF, name: str = "") -> Tensor:
    """A tensor of zeros."""
    return _filled("zeros", shape, dtype, buffer, name, 0)


def ones(shape: Any, dtype: Any, buffer: MemoryRegion = _SBUF, name: str = "") -> Tensor:
    """A tensor of ones."""
    return _filled("ones", shape, dtype, buffer, name, 1)


def full(shape: Any, fill_value: float, dtype: Any, buffer: MemoryRegion = _SBUF, name: str = "") -> Tensor:
    """A tensor of one value."""
    return _filled("full", shape, dtype, buffer, name, fill_value)


def zeros_like(x: Tensor, dtype: Any = None, buffer: MemoryRegion | None = None, name: str = "") -> Tensor:
    """Zeros with the shape of ``x``."""
    return zeros(x.shape, dtype or x.dtype, buffer or x.buffer, name)


def empty_like(x: Tensor, dtype: Any = None, buffer: MemoryRegion | None = None, name: str = "") -> Tensor:
    """Uninitialised, with the shape of ``x``."""
    return context.current("empty_like").allocate(x.shape, dtype or x.dtype, buffer or x.buffer, name, None)


def shared_constant(constant: Any, dtype: Any = None) -> Tensor:
    """A numpy array, or the path of a ``.npy`` file, as a tensor in shared HBM."""
    context.current("shared_constant")
    if not isinstance(constant, (str, os.PathLike)):
        context.refuse("constant-argument", "shared_constant", "constant", f"is a {type(constant).__name__}")
    data = np.load(constant) if isinstance(constant, (str, os.PathLike)) else np.asarray(constant)
    kind = as_dtype(data.dtype if dtype is None else dtype)
    return Tensor.whole(
        Storage(tuple(data.shape), kind, MemoryRegion.shared_hbm, "", -1, data.astype(kind.numpy, copy=False))
    )


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: Tensor | None = None) -> Tensor:
    """The n x n identity, in SBUF."""
    t = context.current("shared_identity_matrix").allocate((n, n), dtype, _SBUF, "", None) if dst is None else dst
    isa.memset(t, 1 if t.dtype.is_int else 1.0)
    isa.affine_select(t, [[-1, n]], 1, t, 0.0, OPS["equal"])
    return t


def ds(start: int, size: int) -> DynSlice:
    """``size`` elements from ``start``, as an index."""
    if size < 1:
        fail("ds", "size", f"{size} must be positive")
    return DynSlice(start, size)


# ---- program ids and loops
def program_id(axis: int = 0) -> int:
    """0 or 1: which physical core of an LNC2 launch this is."""
    return context.current("program_id").program_id


def num_programs(axes: int = 0) -> int:
    """Programs in the launch."""
    return context.current("num_programs").num_programs


def program_ndim() -> int:
    """1 if the launch named an LNC degree, else 0."""
    return int(context.current("program_ndim").has_grid)


def static_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Python's range: unrolled."""
    return range(start) if stop is None else range(start, stop, step)


@contextmanager
def no_reorder() -> Iterator[None]:
    """Keep program order; this interpreter always does, its schedule is told."""
    core = context.current("no_reorder")
    core.events.append(("no_reorder",))
    yield


def device_print(print_prefix: str, tensor: Tensor) -> None:
    """Print a tensor's values."""
    print(print_prefix, tensor.array)


# ---- copies
def load(src: Tensor, dtype: Any = None) -> Tensor:
    """HBM to a new SBUF tensor."""
    shape = src.shape if len(src.shape) > 1 else (src.shape[0], 1)
    t = context.current("load").allocate(shape, dtype or src.dtype, _SBUF, "", None)
    isa.dma_copy(t, src)
    return t


def load_transpose2d(src: Tensor, dtype: Any = None) -> Tensor:
    """HBM [m, n] to a new SBUF tensor [n, m]."""
    t = context.current("load_transpose2d").allocate((src.shape[1], src.shape[0]), src.dtype, _SBUF, "", None)
    isa.dma_transpose(t, src)
    if dtype is None or as_dtype(dtype) is t.dtype:
        return t
    out = elementwise.new(t, dtype)
    isa.tensor_copy(out, t)
    return out


def store(dst: Tensor, value: Tensor) -> None:
    """SBUF to HBM."""
    isa.dma_copy(dst, value)


def is_hbm(b: Any) -> bool:
    """Whether a buffer is in HBM."""
    return b in (MemoryRegion.private_hbm, MemoryRegion.shared_hbm)


def is_sbuf(b: Any) -> bool:
    """Whether a buffer is SBUF."""
    return b is MemoryRegion.sbuf


def is_psum(b: Any) -> bool:
    """Whether a buffer is PSUM."""
    return b is MemoryRegion.psum


def is_on_chip(b: Any) -> bool:
    """Whether a buffer is SBUF or PSUM."""
    return is_sbuf(b) or is_psum(b)


# ---- operators as functions
def _binary(op: Op) -> Any:
    def call(x: Any, y: Any, dtype: Any = None) -> Tensor:
        if not isinstance(x, Tensor) or (isinstance(y, Tensor) and y.shape != x.shape):
            fail(f"nl.{op.name}", "x", "two tensors of one shape, or a tensor and a scalar; nothing broadcasts")
        out = elementwise.new(x, dtype)
        if isinstance(y, Tensor):
            isa.tensor_tensor(out, x, y, op)
        else:
            isa.tensor_scalar(out, x, op, y)
        return out

    return call


def _unary(op: Op) -> Any:
    def call(x: Tensor, dtype: Any = None) -> Tensor:
        out = elementwise.new(x, dtype)
        if op.name == "copy":
            isa.tensor_copy(out, x)
        elif op.act is not None:
            isa.activation(out, op, x)
        else:
            isa.tensor_scalar(out, x, op, 0)
        return out

    return call


def _install_wrappers() -> None:
    for op in OPS.values():
        if op.name in ("average", "bypass", "prelu"):
            continue
        if op.name == "sin":
            op.wrapper = elementwise.sin
            continue
        op.wrapper = _unary(op) if op.act is not None or op.unary else _binary(op)


_install_wrappers()
