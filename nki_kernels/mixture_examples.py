"""Arguments of the size of Qwen3.6-35B-A3B at TP=4, LNC=2, for the kernels of a mixture of experts."""

import numpy as np

from .decode_router import decode_router
from .examples import BF16
from .profiling import Example, register

D = 128


def router(rows: int, experts: int = 256, hidden: int = 2048, cores: int = 2) -> Example:
    """The router of a decode step on the cores of a rank."""
    random, lines = np.random.default_rng(0), hidden // D
    x = random.standard_normal((rows, hidden), dtype=np.float32).astype(BF16)
    weight = (0.02 * random.standard_normal((1, D, lines * experts), dtype=np.float32)).astype(BF16)
    note = f"{rows} rows, {experts} experts, hidden {hidden}"
    return Example(decode_router[cores], (x, np.ones((D, lines), dtype=np.float32), weight), note=note)


@register("decode_router")
def router_of_a_token() -> Example:
    """The router of one token."""
    return router(1)
