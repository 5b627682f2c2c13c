"""Root-mean-square normalisation, plain and gated; `nki` is the device's, compiled CPU forms are in `ops.numba`."""

from .naive import gated_rms_norm, inverse_root, rms_norm

__all__ = ["gated_rms_norm", "inverse_root", "rms_norm"]
