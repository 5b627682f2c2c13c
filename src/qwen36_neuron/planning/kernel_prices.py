"""The time of the kernels that graphs call for attention and for rows of few tokens. Modelled.

Fused kernels are priced on all cores of a rank, with the sum over the ranks in them. Of the others it is one core's
share, beside which the rank's other core does the same. All by the interpreter, instruction by instruction; those of
the 27B are recorded (`price_record`), for a fused kernel takes it half a minute.
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
from . import price_record

MLP_TOKENS = 512
"""Tokens that a launch of the FP8 MLP kernel takes at most."""

TOKENS = (1, 8, 40)
"""Tokens at which fused kernels are priced."""

KERNELS = {
    "attention": ("paged_attention",),
    "decode": ("gated_delta_rule_decode",),
    "conv_step": ("causal_conv1d",),
    "verify": ("gated_delta_rule_verify",),
    "conv_verify": ("causal_conv1d_verify",),
    "mlp": ("fp8_mlp",),
    "conv": ("causal_conv1d",),
    "norm": ("gated_rms_norm",),
    "mlp_step": ("decode_mlp",),
    "mlp_and_input": ("decode_mlp_projection",),
    "attention_layer": ("decode_attention",),
    "head": ("decode_head",),
    "input_projection": ("decode_projection",),
    "output_projection": ("decode_projection",),
    "delta_net": ("decode_delta_net",),
}
"""Modules of the kernels that each of `nki_kernels.examples` launches."""

ROWS = (4, 8)
"""Rows at which attention of more than the second is priced: its time grows by the line through both."""

NEAR, FAR = 1024, 4096
"""Tokens held at which attention is priced; with more of them its time grows by the line through both."""

LAYER_ROWS, LAYER_TOKENS, LAYER_HELD = (1, 8), (1, 4), (1024, 8192)
"""Rows, new tokens of each, and tokens held at which a fused attention layer is priced; between and beyond them its
time is taken for linear in each."""

HEAD_PARTS, LARGE_HEAD = (8, 4), 16384
"""Parts of a rank's vocabulary of more tokens at which the head is priced, whose blocks take as long as one another."""


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
        if rows > ROWS[1]:
            (few, _), (many, bound) = (self.attention(count, tokens, held) for count in ROWS)
            return many + (many - few) * (rows - ROWS[1]) / (ROWS[1] - ROWS[0]), bound
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

    def around_the_rule(self, tokens: int) -> tuple[float, str]:
        """Seconds for the convolution of a prompt's chunk and the gated norm of its result."""
        rank = self.model.rank(self.tp)
        conv, bound = self._price("conv", tokens, rank.conv_channels // self.cores)
        return conv + self.gated_norm(tokens)[0], bound

    def gated_norm(self, tokens: int) -> tuple[float, str]:
        """Seconds for the gated norm of so many tokens, and what binds it."""
        return self._price("norm", tokens, self.model.rank(self.tp).num_value_heads // self.cores)

    def fp8_mlp(self, tokens: int) -> tuple[float, str]:
        """Seconds for the MLP kernel of FP8 weights, without norm and sum, and what binds it."""
        launches = -(-tokens // MLP_TOKENS)
        inner = self.model.intermediate_size // self.tp // self.cores
        seconds, bound = self._price("mlp", -(-tokens // launches), self.model.hidden_size, inner)
        return launches * seconds, bound

    def feed_forward(self, tokens: int, codes: bool) -> tuple[float, str]:
        """Seconds for a fused feed-forward block, and what binds it. `codes`: of FP8 weights."""
        model = self.model
        return self._between("mlp_step", tokens, codes, model.hidden_size, model.intermediate_size // self.tp)

    def attention_layer(self, rows: int, tokens: int, held: int, codes: bool) -> tuple[float, str]:
        """Seconds for a fused attention layer, arguments as in `attention`, and what binds it."""
        rank, hidden = self.model.rank(self.tp), self.model.hidden_size
        sizes = codes, hidden, rank.num_query_heads, self.cores, rank.num_kv_heads, self.tp

        def at(rows: int, tokens: int, held: int) -> tuple[float, str]:
            return self._price("attention_layer", tokens, held, rows, *sizes)

        def over(rows: int, tokens: int) -> tuple[float, str]:
            return _line(max(held, LAYER_HELD[0]), LAYER_HELD, lambda held: at(rows, tokens, held))

        def of_row(rows: int) -> tuple[float, str]:
            return _line(tokens, LAYER_TOKENS, lambda tokens: over(rows, tokens))

        return _line(rows, LAYER_ROWS, of_row)

    def head(self, rows: int, codes: bool) -> tuple[float, str]:
        """Seconds for the head of so many rows with its norm, and what binds it."""
        own, hidden, step = self.model.vocab_size // self.tp, self.model.hidden_size, 8 * self.cores
        few, many = (own // part // step * step for part in HEAD_PARTS) if own > LARGE_HEAD else (own, own)

        def at(rows: int) -> tuple[float, str]:
            return _line(own, (few, many), lambda part: self._price("head", rows, codes, hidden, part, self.cores))

        return _between_tokens(rows, at)

    def feed_forward_and_input(self, tokens: int, codes: bool) -> tuple[float, str]:
        """Seconds for a feed-forward block and what the next DeltaNet mixer projects in, as one kernel."""
        sizes = self.model.hidden_size, self.model.intermediate_size // self.tp, *self._input_channels
        return self._between("mlp_and_input", tokens, codes, *sizes)

    def delta_input(self, tokens: int, codes: bool) -> tuple[float, str]:
        """Seconds for what a DeltaNet mixer projects in, with the norm before it, and what binds it."""
        sizes = self.model.hidden_size, *self._input_channels
        return self._between("input_projection", tokens, codes, *sizes, ranked=False)

    def delta_output(self, tokens: int, codes: bool) -> tuple[float, str]:
        """Seconds for what it projects out, with the gated norm before it."""
        rank = self.model.rank(self.tp)
        return self._between("output_projection", tokens, codes, self.model.hidden_size, rank.num_value_heads)

    def delta_net(self, rows: int, codes: bool) -> tuple[float, str] | None:
        """Seconds for a DeltaNet mixer of one token a row behind its input; None for more rows than a launch takes."""
        from nki_kernels.decode_delta_net_plan import sequences_at_once  # imported on use, as the kernels are

        rank, hidden = self.model.rank(self.tp), self.model.hidden_size
        key_heads, heads = rank.num_key_heads, rank.num_value_heads
        if rows > sequences_at_once(key_heads // self.cores, heads // self.cores):
            return None
        return self._price("delta_net", rows, codes, hidden, key_heads, heads, self.tp, self.cores)

    @property
    def _input_channels(self) -> tuple[int, int]:
        """Of a DeltaNet mixer's input projections: q, k, v, z, and the gates."""
        rank = self.model.rank(self.tp)
        return rank.conv_channels + rank.num_value_heads * self.model.value_head_dim, 2 * rank.num_value_heads

    def _between(self, name: str, tokens: int, *sizes: Any, ranked: bool = True) -> tuple[float, str]:
        """A fused kernel's price, which hardly depends on the tokens."""
        placed = (self.tp, self.cores) if ranked else (self.cores,)
        return _between_tokens(tokens, lambda size: self._price(name, size, *sizes, *placed))

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


def _line(size: int, ends: tuple[int, int], at: Callable[[int], tuple[float, str]]) -> tuple[float, str]:
    """A price at `size` by the line through those at two ends; what binds is that of the nearer one."""
    if size in ends:
        return at(size)
    (few, near), (many, far) = map(at, ends)
    bound = near if abs(size - ends[0]) < abs(size - ends[1]) else far
    return few + (many - few) * (size - ends[0]) / (ends[1] - ends[0]), bound


def _between_tokens(tokens: int, at: Callable[[int], tuple[float, str]]) -> tuple[float, str]:
    """The price of so many tokens by the line through two of `TOKENS`."""
    return _line(tokens, TOKENS[:2] if tokens <= TOKENS[1] else TOKENS[1:], at)


@cache
def _price(name: str, sizes: tuple[Any, ...]) -> tuple[tuple[float, float, float], str]:
    """Seconds at each level of the price list, and the binding engine, of one launch: as recorded, or priced now."""
    from nki_kernels import examples  # imported on use, as the kernels are
    from nki_kernels.interpreter import profile

    make: Callable[..., Any] = getattr(examples, name)
    modules = KERNELS[name]
    recorded = price_record.read(name, sizes, modules)
    if recorded is not None:
        return recorded
    example = make(*sizes)
    _, report = profile(example.kernel, *example.args, world=example.ranks, **example.kwargs)
    low, high = report.range_us["time_us"]
    found = (low * 1e-6, report.time_us * 1e-6, high * 1e-6), f"kernel: {report.binds}"
    price_record.add(name, sizes, modules, found)
    return found
