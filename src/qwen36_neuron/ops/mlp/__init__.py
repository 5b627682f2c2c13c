"""The feed-forward block: its activation, and all of it on a device (`nki`); compiled CPU forms are in `ops.numba`."""

from .naive import swiglu

__all__ = ["swiglu"]
