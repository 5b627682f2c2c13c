"""NkiTensor: a typed, strided view of an allocation. ``nl.ndarray`` is this class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import context
from .defined import DefinedElements
from .dtypes import DType, as_dtype
from .enums import MemoryRegion
from .errors import fail
from .patterns import contiguous_strides, prod, reshape_strides
from .storage import ON_CHIP, Storage, StorageInfo
from .views import ViewMethods

Access = tuple[StorageInfo, DType, int, tuple[int, ...], tuple[int, ...]]
PMAX = 128


class DynSlice:
    """``nl.ds(start, size)``: ``size`` elements from ``start``."""

    __slots__ = ("size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size


class Tensor(ViewMethods, DefinedElements):
    """A view. Element (i0, i1 ...) is element ``offset + sum(strides[k] * i_k)`` of the storage.

    Attributes:
        shape, strides, offset: In elements of ``dtype``; on chip dimension 0 is the partition.
        dtype: Element type of the view (may differ from the storage's, after ``view``).
        buffer: Memory region.
        reshaped: Came of ``reshape`` of an HBM tensor.
        scalar_offset, vector_offset, indirect_dim, row_elems: Dynamic part of an access pattern; see ``ap``.
    """

    __slots__ = (
        "N",
        "P",
        "_access",
        "_array",
        "_checked",
        "buffer",
        "dtype",
        "indirect_dim",
        "offset",
        "reshaped",
        "row_elems",
        "scalar_offset",
        "shape",
        "storage",
        "strides",
        "vector_offset",
    )  # fmt: skip

    P: int
    N: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: DType
    buffer: MemoryRegion
    storage: Storage
    scalar_offset: Any
    vector_offset: "Tensor | None"
    indirect_dim: int
    row_elems: int
    reshaped: bool
    _array: np.ndarray | None
    _access: Access | None
    _checked: bool

    def __new__(
        cls,
        shape: Sequence[int],
        dtype: Any = None,
        buffer: MemoryRegion = MemoryRegion.sbuf,
        name: str = "",
        address: tuple[int, int] | None = None,
    ) -> "Tensor":
        """``nl.ndarray``: allocate, uninitialised.

        Args:
            shape: On chip at least 2-D, partition first (a one-element 1-D tensor is allowed).
            dtype: Element type.
            buffer: ``nl.sbuf``, ``nl.psum``, ``nl.hbm`` or ``nl.shared_hbm``.
            name: For errors and profiles.
            address: (first partition, byte offset in the partition) for manual placement on chip.
        """
        return context.current("ndarray").allocate(shape, dtype, buffer, name, address)

    @classmethod
    def of(
        cls, storage: Storage, dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
    ) -> "Tensor":
        """A view of ``storage``; all sizes in elements of ``dtype``."""
        self = object.__new__(cls)
        self.storage = storage
        self.buffer = storage.info.buffer
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.scalar_offset = None
        self.vector_offset = None
        self.indirect_dim = 0
        self.row_elems = 0
        self.reshaped = False
        self._array = None
        self._access = None
        self._checked = False
        return self

    @classmethod
    def whole(cls, storage: Storage) -> "Tensor":
        """The view that covers all of ``storage`` in its own shape."""
        return cls.of(storage, storage.dtype, storage.shape, contiguous_strides(storage.shape), 0)

    # ---- description
    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        n = 1
        for s in self.shape:
            n *= s
        return n

    @property
    def name(self) -> str:
        return self.storage.info.name

    @property
    def on_chip(self) -> bool:
        return self.buffer in ON_CHIP

    @property
    def row(self) -> int:
        """Elements of this view's type in a storage row (a partition, on chip)."""
        return self.storage.info.row_bytes // self.dtype.itemsize

    @property
    def start_partition(self) -> int:
        """First partition the view touches (on chip)."""
        return self.storage.info.base_row + (self.offset * self.dtype.itemsize) // self.storage.info.row_bytes

    def get_pattern(self) -> tuple[tuple[int, int], ...]:
        """(stride, count) pairs, outermost first."""
        return tuple(zip(self.strides, self.shape, strict=True))

    def whole_rows(self) -> bool:
        """Whether the view covers every element of each partition that it touches, in order."""
        row = contiguous_strides(self.shape[1:])
        return self.size * self.dtype.itemsize == self.shape[0] * self.storage.info.row_bytes and (
            self.strides[1:] == row
        )

    def is_contiguous(self) -> bool:
        return self.strides == contiguous_strides(self.shape)

    def is_indirect(self) -> bool:
        return self.scalar_offset is not None or self.vector_offset is not None

    def __repr__(self) -> str:
        return f"NkiTensor({self.name}, {self.shape}, {self.dtype}, {self.buffer.value})"

    # ---- data
    @property
    def array(self) -> np.ndarray:
        """numpy view of the elements, sharing memory.

        Raises:
            KernelError: the pattern leaves the storage.
        """
        if self._array is None:
            isz = self.dtype.itemsize
            try:
                self._array = np.ndarray(
                    self.shape,
                    self.dtype.numpy,
                    buffer=self.storage.raw.data,
                    offset=self.offset * isz,
                    strides=[s * isz for s in self.strides],
                )
            except (ValueError, TypeError):
                fail(
                    "access", self.name,
                    f"pattern {self.get_pattern()} at offset {self.offset} leaves its storage of shape "
                    f"{self.storage.shape}",
                )  # fmt: skip
        return self._array

    def access(self) -> Access:
        """What the schedule keeps of this view: allocation, type, byte offset, shape and byte strides."""
        if self._access is None:
            isz = self.dtype.itemsize
            self._access = (
                self.storage.info, self.dtype, self.offset * isz, self.shape, tuple([s * isz for s in self.strides]),
            )  # fmt: skip
        return self._access

    # ---- views
    def __getitem__(self, key: Any) -> "Tensor":
        if self.is_indirect():
            fail("index", self.name, "an access pattern with a dynamic offset cannot be indexed")
        if type(key) is not tuple:
            key = (key,)
        nd = len(self.shape)
        if any(k is Ellipsis for k in key):
            at = next(i for i, k in enumerate(key) if k is Ellipsis)
            key = key[:at] + (slice(None),) * (nd - len(key) + 1) + key[at + 1 :]
        if len(key) > nd:
            fail("index", self.name, f"{len(key)} indices on shape {self.shape}")
        on_chip = self.buffer in ON_CHIP
        shape: list[int] = []
        strides: list[int] = []
        dropped: list[int] = []
        offset = self.offset
        for d in range(nd):
            size, stride = self.shape[d], self.strides[d]
            k = key[d] if d < len(key) else None
            if k is None:
                start, n, step = 0, size, 1
            elif isinstance(k, slice):
                start, n, step = self._slice(k, d, size)
            elif isinstance(k, DynSlice):
                start, n, step = self._slice(slice(k.start, k.start + k.size), d, size)
            elif isinstance(k, (int, np.integer)) and not isinstance(k, bool):
                start = int(k) + size if k < 0 else int(k)
                if not 0 <= start < size:
                    fail("index", self.name, f"index {k} is out of bounds for dimension {d} of size {size}")
                offset += start * stride
                if on_chip and d == 0:
                    shape.append(1)
                    strides.append(stride)
                else:
                    dropped.append(stride)
                continue
            else:
                fail("index", self.name, f"dimension {d} indexed by {type(k).__name__}: use .ap(scalar_offset=...)")
            if on_chip and d == 0 and step != 1:
                fail("index", self.name, f"step {step} on the partition dimension; only step 1 exists")
            offset += start * stride
            shape.append(n)
            strides.append(stride * step)
        while len(shape) < (2 if on_chip and nd > 1 else 1) and dropped:
            shape.append(1)
            strides.append(dropped.pop())
        out = Tensor.of(self.storage, self.dtype, tuple(shape), tuple(strides), offset)
        out.reshaped = self.reshaped
        return out

    def _slice(self, k: slice, d: int, size: int) -> tuple[int, int, int]:
        try:
            start = 0 if k.start is None else int(k.start)
            stop = size if k.stop is None else int(k.stop)
            step = 1 if k.step is None else int(k.step)
        except (TypeError, ValueError):
            fail("index", self.name, f"slice {k} of dimension {d} is not made of integers")
        if start < 0:
            start += size
        if stop < 0:
            stop += size
        if step < 1 or not 0 <= start < stop <= size:
            fail("index", self.name, f"slice {start}:{stop}:{step} is out of bounds for dimension {d} of size {size}")
        return start, -(-(stop - start) // step), step

    def reshape(self, shape: Sequence[int]) -> "Tensor":
        """Same elements, other shape, no copy. On chip the partition dimension stays as it is."""
        new = tuple(int(s) for s in shape)
        if prod(new) != self.size:
            fail("reshape", self.name, f"{self.shape} has {self.size} elements, {new} has {prod(new)}")
        if self.on_chip and new[0] != self.shape[0]:
            fail("reshape", self.name, f"the partition dimension may not change: {self.shape} to {new}")
        strides = reshape_strides(self.shape, self.strides, new)
        if strides is None:
            fail("reshape", self.name, f"{self.get_pattern()} cannot be seen as {new} without a copy")
        out = self._with(new, strides)
        out.reshaped = not self.on_chip and new != self.shape
        return out

    def view(self, dtype: Any) -> "Tensor":
        """Same bytes, other element type; the last dimension must be contiguous."""
        new = as_dtype(dtype)
        old = self.dtype.itemsize
        self._check_psum_view("view", new)
        if new.itemsize == old:
            return Tensor.of(self.storage, new, self.shape, self.strides, self.offset)
        if self.strides[-1] != 1 and self.shape[-1] != 1:
            fail("view", self.name, f"the last dimension must be contiguous, its stride is {self.strides[-1]}")
        scaled = [self.shape[-1] * old, self.offset * old, *[s * old for s in self.strides[:-1]]]
        if any(v % new.itemsize for v in scaled):
            fail("view", self.name, f"{self.shape} of {self.dtype} does not divide into {new}")
        last, offset, *strides = [v // new.itemsize for v in scaled]
        return Tensor.of(self.storage, new, (*self.shape[:-1], last), (*strides, 1), offset)

    def ap(
        self,
        pattern: Sequence[Sequence[int]],
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: "Tensor | None" = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> "Tensor":
        """A hand-made access pattern on the storage. Bounds are checked where it is used, not here.

        Args:
            pattern: (stride, count) pairs, outermost first, in elements of ``dtype``. On chip the first pair is the
                partition's and its stride is the storage's elements a partition. Stride 0 repeats.
            offset: Elements of ``dtype`` after this view's own offset.
            scalar_offset: Register or (1, 1) integer SBUF tensor, added in units of ``prod(shape[indirect_dim + 1:])``
                of the tensor that ``ap`` is called on.
            vector_offset: (P, 1) integer SBUF tensor of row indices; HBM only, DMA only.
            indirect_dim: Dimension that the dynamic offset walks.
            dtype: Element type of the view.
        """
        new = self.dtype if dtype is None else as_dtype(dtype)
        self._check_psum_view("ap", new)
        if scalar_offset is not None and vector_offset is not None:
            fail("ap", self.name, "scalar_offset and vector_offset exclude each other")
        base = self.offset * self.dtype.itemsize // new.itemsize + (0 if offset is None else int(offset))
        shape = tuple(int(c) for _, c in pattern)
        strides = tuple(int(s) for s, _ in pattern)
        row = self.storage.info.row_bytes // new.itemsize
        if self.on_chip and shape[0] > 1 and strides[0] != row:
            fail("ap", self.name, f"partition stride is {strides[0]}, must be the {row} elements of a partition")
        out = Tensor.of(self.storage, new, shape, strides, base)
        if scalar_offset is not None or vector_offset is not None:
            if self.on_chip and (indirect_dim == 0 or vector_offset is not None):
                fail("ap", self.name, "on chip only scalar_offset, on a free dimension")
            if vector_offset is not None and indirect_dim != 0:
                fail("ap", self.name, "vector_offset needs indirect_dim=0")
            out.scalar_offset = scalar_offset
            out.vector_offset = vector_offset
            out.indirect_dim = indirect_dim
            out.row_elems = prod(self.shape[indirect_dim + 1 :])
        return out

    def _check_psum_view(self, what: str, new: DType) -> None:
        if self.buffer is MemoryRegion.psum and new.itemsize != self.storage.dtype.itemsize:
            context.refuse("psum-view", what, self.name, f"a {self.storage.dtype} PSUM tile is viewed as {new}")

    def resolved(self, ins: str, operand: str) -> "Tensor":
        """This view with its scalar offset read and applied; itself when there is none."""
        if self.scalar_offset is None:
            return self
        at = context.scalar_value(ins, operand, self.scalar_offset)
        return Tensor.of(self.storage, self.dtype, self.shape, self.strides, self.offset + at * self.row_elems)

    def _with(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> "Tensor":
        out = Tensor.of(self.storage, self.dtype, shape, strides, self.offset)
        out.scalar_offset, out.vector_offset = self.scalar_offset, self.vector_offset
        out.indirect_dim, out.row_elems = self.indirect_dim, self.row_elems
        out.reshaped = self.reshaped
        return out

    # ---- what the compiler refuses
    def __setitem__(self, key: Any, value: Any) -> None:
        context.current("setitem").copy_into(self[key], value)

    def __bool__(self) -> bool:
        core = context.core_or_none()
        if core is not None and core.target.checks == "compiler":
            return True  # the tensor is given, which is all that AWS's kernels ask
        context.refuse("tensor-truth", "if/while", self.name, "a tensor's value cannot steer Python control flow")
        return fail("if/while", self.name, "a tensor's value cannot steer Python control flow")

    def __iter__(self) -> Any:
        fail("for", self.name, "a tensor cannot be iterated")

    def _operator(self, *_: Any) -> Any:
        fail("operator", self.name, "Python operators on tensors do not compile; use nki.isa or nki.language calls")

    def __eq__(self, other: object) -> bool:
        core = context.core_or_none()
        if other is None and core is not None:
            context.refuse("none-compare", "==", self.name, "a tensor is compared with None")
        return self is other

    __hash__ = object.__hash__

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operator
    __matmul__ = __neg__ = __pow__ = __and__ = __or__ = __xor__ = __lt__ = __le__ = __gt__ = __ge__ = _operator
