"""View methods of NkiTensor that came with NKI 0.5: named steps instead of index expressions and access patterns.

A kernel that must run on 0.3 uses ``[...]``, ``reshape``, ``ap`` and ``view`` instead.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .context import check_span
from .errors import NotSimulatedError, fail
from .patterns import prod

if TYPE_CHECKING:
    from .tensor import Tensor


class ViewMethods:
    """Mixed into :class:`~.tensor.Tensor`."""

    __slots__ = ()

    def _dim(self: "Tensor", what: str, dim: int, free_only: bool = True) -> int:  # type: ignore[misc]
        nd = len(self.shape)
        if not -nd <= dim < nd:
            fail(what, self.name, f"dimension {dim} of shape {self.shape}")
        dim %= nd
        if free_only and dim == 0 and self.on_chip:
            fail(what, self.name, "dimension 0 is the partition")
        return dim

    def slice(self: "Tensor", dim: int, start: int, end: int, step: int = 1) -> "Tensor":  # type: ignore[misc]
        """Elements ``start:end:step`` of one dimension."""
        check_span("slice")
        dim = self._dim("slice", dim, free_only=False)
        return self[(slice(None),) * dim + (slice(start, end, step),)]

    def select(self: "Tensor", dim: int, index: Any) -> "Tensor":  # type: ignore[misc]
        """One index of a dimension, which is dropped; a (1, 1) tensor makes the index dynamic."""
        check_span("select")
        from .tensor import Tensor

        dim = self._dim("select", dim, free_only=isinstance(index, Tensor))
        if not isinstance(index, Tensor):
            return self[(slice(None),) * dim + (int(index),)]
        rest = [(s, n) for d, (s, n) in enumerate(self.get_pattern()) if d != dim]
        out = self.ap(rest, scalar_offset=index, indirect_dim=dim)
        out.row_elems = self.strides[dim]
        return out

    def vector_select(self: "Tensor", dim: int = 0, vector_offset: Any = None) -> "Tensor":  # type: ignore[misc]
        """Rows by an index tensor."""
        check_span("vector_select")
        rows = [(s, n) for s, n in self.get_pattern()]
        rows[0] = (rows[0][0], vector_offset.size)
        return self.ap(rows, vector_offset=vector_offset, indirect_dim=dim)

    def permute(self: "Tensor", dims: Sequence[int]) -> "Tensor":  # type: ignore[misc]
        """Dimensions in another order; the partition stays first."""
        check_span("permute")
        order = tuple(dims)
        if sorted(order) != list(range(len(self.shape))):
            fail("permute", self.name, f"{order} is not an order of {len(self.shape)} dimensions")
        if self.on_chip and order[0] != 0:
            fail("permute", self.name, "the partition must stay dimension 0")
        return self._with(tuple(self.shape[d] for d in order), tuple(self.strides[d] for d in order))

    def broadcast(self: "Tensor", dim: int, size: int) -> "Tensor":  # type: ignore[misc]
        """Repeat a dimension of size 1 by stride 0."""
        check_span("broadcast")
        dim = self._dim("broadcast", dim)
        if self.shape[dim] != 1:
            fail("broadcast", self.name, f"dimension {dim} has size {self.shape[dim]}, must be 1")
        shape, strides = list(self.shape), list(self.strides)
        shape[dim], strides[dim] = size, 0
        return self._with(tuple(shape), tuple(strides))

    def expand_dim(self: "Tensor", dim: int) -> "Tensor":  # type: ignore[misc]
        """Insert a dimension of size 1."""
        check_span("expand_dim")
        if dim == 0 and self.on_chip:
            fail("expand_dim", self.name, "dimension 0 is the partition")
        shape, strides = list(self.shape), list(self.strides)
        shape.insert(dim, 1)
        strides.insert(dim, 1)
        return self._with(tuple(shape), tuple(strides))

    def squeeze_dim(self: "Tensor", dim: int) -> "Tensor":  # type: ignore[misc]
        """Drop a dimension of size 1."""
        check_span("squeeze_dim")
        dim = self._dim("squeeze_dim", dim)
        if self.shape[dim] != 1:
            fail("squeeze_dim", self.name, f"dimension {dim} has size {self.shape[dim]}, must be 1")
        return self._with(self.shape[:dim] + self.shape[dim + 1 :], self.strides[:dim] + self.strides[dim + 1 :])

    def reshape_dim(self: "Tensor", dim: int, shape: Sequence[int]) -> "Tensor":  # type: ignore[misc]
        """Split one dimension."""
        check_span("reshape_dim")
        dim = self._dim("reshape_dim", dim)
        if prod(shape) != self.shape[dim]:
            fail("reshape_dim", self.name, f"dimension {dim} has size {self.shape[dim]}, {tuple(shape)} differs")
        steps = [self.strides[dim] * prod(shape[i + 1 :]) for i in range(len(shape))]
        return self._with(
            self.shape[:dim] + tuple(shape) + self.shape[dim + 1 :],
            self.strides[:dim] + tuple(steps) + self.strides[dim + 1 :],
        )

    def flatten_dims(self: "Tensor", start: int, end: int) -> "Tensor":  # type: ignore[misc]
        """Merge dimensions ``start`` to ``end``, both included; they must be contiguous with each other."""
        check_span("flatten_dims")
        start, end = self._dim("flatten_dims", start), self._dim("flatten_dims", end)
        for d in range(start, end):
            if self.strides[d] != self.strides[d + 1] * self.shape[d + 1]:
                fail("flatten_dims", self.name, f"dimensions {d} and {d + 1} of {self.get_pattern()} do not merge")
        merged = prod(self.shape[start : end + 1])
        return self._with(
            (*self.shape[:start], merged, *self.shape[end + 1 :]),
            (*self.strides[:start], self.strides[end], *self.strides[end + 1 :]),
        )

    def rearrange(self: "Tensor", *_: Any, **__: Any) -> "Tensor":  # type: ignore[misc]
        """Not simulated: its pattern language is not specified precisely."""
        raise NotSimulatedError("rearrange", self.name, "is not simulated; use reshape_dim, permute and flatten_dims")

    def indirect(self: "Tensor", *_: Any, **__: Any) -> "Tensor":  # type: ignore[misc]
        """trn3 only."""
        raise NotSimulatedError("indirect", self.name, "exists on trn3 only")
