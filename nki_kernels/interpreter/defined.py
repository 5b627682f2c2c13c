"""Which elements of a view have been written: the record is the storage's, in units of bytes."""

from typing import TYPE_CHECKING

import numpy as np

from .errors import UndefinedReadError

if TYPE_CHECKING:
    from .tensor import Tensor


class DefinedElements:
    """Mixed into :class:`~.tensor.Tensor`."""

    __slots__ = ()

    def _mask(self: "Tensor", mask: np.ndarray) -> np.ndarray:  # type: ignore[misc]
        isz = self.dtype.itemsize
        unit = self.storage.unit
        if isz == unit:
            return np.ndarray(self.shape, np.bool_, buffer=mask.data, offset=self.offset, strides=self.strides)
        k = isz // unit
        return np.ndarray(
            (*self.shape, k), np.bool_, buffer=mask.data, offset=self.offset * k,
            strides=(*[s * k for s in self.strides], 1),
        )  # fmt: skip

    def _fine(self: "Tensor") -> None:  # type: ignore[misc]
        if self.dtype.itemsize < self.storage.unit:
            self.storage.split_units(self.dtype.itemsize)

    def defined_mask(self: "Tensor") -> np.ndarray | None:  # type: ignore[misc]
        """Which elements are defined, ``shape``-shaped; None if all are."""
        storage = self.storage
        if storage.defined is None:
            return None
        self._fine()
        mask = self._mask(storage.defined)
        if mask.all():
            if mask.size == storage.defined.size and 0 not in self.strides:
                storage.defined, storage.origin = None, ""
            return None
        return np.asarray(mask.all(axis=-1)) if mask.ndim > self.ndim else mask

    def undefined_text(self: "Tensor") -> str:  # type: ignore[misc]
        """How many elements are undefined, the first of them, and where they came from; empty if all are defined."""
        mask = self.defined_mask()
        if mask is None:
            return ""
        missing, first = int(mask.size - np.count_nonzero(mask)), np.argwhere(~mask)[0].tolist()
        whence = f"came from {self.storage.origin}" if self.storage.origin else "was never written"
        return f"{missing} undefined elements of '{self.name}' {self.shape}: the first, at {first}, {whence}"

    def check_defined(self: "Tensor", ins: str, operand: str) -> None:  # type: ignore[misc]
        """Refuse undefined elements where they would be an address, a branch or an output.

        Raises:
            UndefinedReadError: naming the first of them and where it came from.
        """
        text = self.undefined_text()
        if text:
            raise UndefinedReadError(ins, operand, f"reads {text}")

    def mark_defined(self: "Tensor") -> None:  # type: ignore[misc]
        """Record that every element of the view has been written."""
        storage = self.storage
        if storage.defined is None:
            return
        if self.size * self.dtype.itemsize == storage.raw.size and 0 not in self.strides:
            storage.defined, storage.origin = None, ""
            return
        self._fine()
        self._mask(storage.defined)[...] = True

    def set_defined(self: "Tensor", known: np.ndarray) -> None:  # type: ignore[misc]
        """Make exactly the elements in ``known``, of the view's size, defined."""
        storage = self.storage
        if storage.defined is None:
            storage.defined = np.ones(storage.raw.size // storage.unit, dtype=np.bool_)
        self._fine()
        mask = self._mask(storage.defined)
        mask[...] = known.reshape((*self.shape, 1) if mask.ndim > self.ndim else self.shape)

    def matmul_mask(self: "Tensor") -> np.ndarray:  # type: ignore[misc]
        """Which elements a matmul has written since anything else did (PSUM); writable, ``shape``-shaped or finer."""
        self._fine()
        if self.storage.matmul_written is None:
            self.storage.matmul_written = np.zeros(self.storage.raw.size // self.storage.unit, dtype=np.bool_)
        return self._mask(self.storage.matmul_written)
