"""Feed-forward blocks and DeltaNet projections of a step of few tokens, residual in, residual out.

`nki` launches the kernels, `packed` is plain operations on the same weights; `sizes` says what the kernels take.
"""

from .sizes import TOKENS, check_fused

__all__ = ["TOKENS", "check_fused"]
