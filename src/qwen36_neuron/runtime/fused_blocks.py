"""The feed-forward block of a layer, dense or a mixture of experts, as fused calls of a few rows."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.moe.numba import Mixture
from ..ops.numba.projections import Matrix, Norm, Weight, norm_swiglu, project_add
from ..ops.numba.rows import normalise


@dataclass(frozen=True, slots=True)
class DenseBlock:
    """down(silu(gate) * up). Weights are [out, in], gates before ups."""

    gate_up: Weight
    down: Weight

    @property
    def inner(self) -> int:
        """Channels between the two."""
        return self.down.inputs

    def add_to(self, residual: Matrix, norm: Norm, normed: Matrix, inner: Matrix) -> None:
        """residual += block(norm(residual)).

        Args:
            normed: [rows, hidden]; inner: [rows, `inner`]: both overwritten.
        """
        norm_swiglu(residual, norm, self.gate_up, normed, inner)
        project_add(inner, self.down, residual)


@dataclass(frozen=True, slots=True)
class MixtureBlock:
    """A mixture of experts, which has memory of its own for what lies between its weights."""

    mixture: Mixture
    inner = 0

    def add_to(self, residual: Matrix, norm: Norm, normed: Matrix, inner: Matrix) -> None:
        """As `DenseBlock.add_to`; `inner` is not used."""
        normalise(residual.array, *norm, normed.array)
        self.mixture.add_to(normed, residual)
