"""Feed-forward blocks, attention layers and DeltaNet projections of a step of few tokens, residual in, residual out.

`nki` launches the kernels, `packed` is plain operations on the same weights; `sizes` says what the kernels take.
"""

from .rows import PagedRows
from .sizes import TOKENS, check_fused, joins_projection

__all__ = ["TOKENS", "PagedRows", "check_fused", "joins_projection"]
