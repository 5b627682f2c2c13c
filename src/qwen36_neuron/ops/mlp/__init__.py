"""The feed-forward block's activation; compiled forms are in `ops.numba`."""

from .naive import swiglu

__all__ = ["swiglu"]
