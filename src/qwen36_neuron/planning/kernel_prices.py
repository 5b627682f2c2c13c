"""The time of the kernels that graphs with `kernels: nki` call for attention and for rows of few tokens. Modelled.

Each is one physical core's share of a rank's work, priced on the interpreter: instruction by instruction. The cores of
a rank do the same beside one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from nki_kernels.causal_conv1d_relations import sequences_at_once as windows_at_once
from nki_kernels.delta_rule_relations import sequences_at_once as states_at_once
from nki_kernels.interpreter.price_list import LEVELS, Level

from ..config import BLOCK_SIZE, ModelConfig

NEAR, FAR = 1024, 4096
"""Tokens held at which attention is priced; with more of them its time grows by the line through both."""


@dataclass(frozen=True, slots=True)
class KernelPrices:
    """Prices of one layer of one rank.

    Attributes:
        tp, cores: ranks, and physical cores of each.
        level: of the price list.
    """

    model: ModelConfig
    tp: int
    cores: int
    level: Level = "centre"

    def attention(self, rows: int, tokens: int, held: int) -> tuple[float, str]:
        """Seconds for `tokens` new tokens of each row over `held` ones, and the engine that binds."""
        rank = self.model.rank(self.tp)
        groups = max(1, rank.num_kv_heads // self.cores)
        heads = rank.num_query_heads // self.cores // groups

        def at(size: int) -> tuple[float, str]:
            return self._price("attention", tokens, max(BLOCK_SIZE, size), rows, heads)

        if held <= FAR:
            seconds, bound = at(held)
        else:
            (near, _), (far, bound) = at(NEAR), at(FAR)
            seconds = far + (far - near) * (held - FAR) / (FAR - NEAR)
        return groups * seconds, bound

    def states(self, rows: int, tokens: int) -> tuple[float, str]:
        """Seconds for the delta rule and the convolution of `tokens` tokens a row, and the engine that binds the first.

        As graphs call them: of one token, and of several as behind as many drafts that were right. A checkpoint could
        follow, and none does.
        """
        rank = self.model.rank(self.tp)
        key_heads, heads = rank.num_key_heads // self.cores, rank.num_value_heads // self.cores
        channels = rank.conv_channels // self.cores
        if tokens == 1:
            delta, bound = self._price("decode", rows, 1, 0, key_heads, heads)
            return delta + self._price("conv_step", rows, channels)[0], bound
        delta, bound = self._launches(
            rows, states_at_once(tokens, tokens - 1, 1, heads), "verify", tokens, 0, key_heads, heads
        )
        window, _ = self._launches(rows, windows_at_once(tokens, tokens - 1, 1), "conv_verify", tokens, 0, channels)
        return delta + window, bound

    def _launches(self, rows: int, most: int, name: str, *sizes: Any) -> tuple[float, str]:
        """Rows in as many launches as they take, of as many rows each as will do."""
        count = -(-rows // most)
        seconds, bound = self._price(name, -(-rows // count), *sizes)
        return count * seconds, bound

    def _price(self, name: str, *sizes: Any) -> tuple[float, str]:
        times, bound = _price(name, sizes)
        return times[LEVELS.index(self.level)], bound


@cache
def _price(name: str, sizes: tuple[Any, ...]) -> tuple[tuple[float, float, float], str]:
    """Seconds at each level of the price list, and the binding engine, of one launch on one core."""
    from nki_kernels import examples  # imported on use, as the kernels are
    from nki_kernels.interpreter import profile

    make: Callable[..., Any] = getattr(examples, name)
    example = make(*sizes)
    _, report = profile(example.kernel, *example.args, **example.kwargs)
    low, high = report.range_us["time_us"]
    return (low * 1e-6, report.time_us * 1e-6, high * 1e-6), f"kernel: {report.binds}"
