"""The compiled experts against fp64, against the definition, and against themselves with other tokens around."""

from __future__ import annotations

import pytest
import torch
from bank_cases import normal
from moe_cases import EXPERTS, HIDDEN, INNER, ROUTERS, TOP_K, exact_experts, logits_of, weights_of
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeSparseMoeBlock

pytest.importorskip("numba")

from qwen36_neuron.checkpoint.formats import QuantisedWeight, round_inputs
from qwen36_neuron.ops import moe
from qwen36_neuron.ops.moe.numba import ROWS, Mixture, Stack, experts, sort_by_expert
from qwen36_neuron.ops.numba.panels import PANEL, Packed
from qwen36_neuron.ops.numba.projections import Matrix
from qwen36_neuron.ops.numba.scalar import array, use_threads

FP8 = torch.float8_e4m3fn


def stacked(gate_up: torch.Tensor, down: torch.Tensor) -> tuple[Stack, Stack]:
    return Stack.of(gate_up, 2), Stack.of(down)


def codes_of(outputs: int, inputs: int, block: tuple[int, int], dtype: torch.dtype, seed: int) -> list[QuantisedWeight]:
    """Weights of every expert: codes of all sizes, a scale a block, numbers of about one over the root of `inputs`."""
    draw, found = torch.Generator().manual_seed(seed), []
    for _ in range(EXPERTS):
        numbers = 2 * torch.rand(outputs, inputs, generator=draw) - 1
        codes = (127 * numbers).round().to(torch.int8) if dtype == torch.int8 else (448 * numbers**3).to(FP8)
        grid = -(-outputs // block[0]), -(-inputs // block[1])
        scales = (0.5 + torch.rand(*grid, generator=draw)) / inputs**0.5 / (74 if dtype == torch.int8 else 170)
        found.append(QuantisedWeight(codes, scales, block))
    return found


def stack_of(weights: list[QuantisedWeight], parts: int = 1, rounds: bool = False) -> Stack:
    rows = [weight.by_rows() for weight in weights]
    codes, scales = torch.stack([row.codes for row in rows]), torch.stack([row.scales for row in rows])
    held = Stack.of_codes(codes, scales, rows[0].block[1], parts, rounds)
    assert held is not None
    assert held.packed.data.itemsize == 1
    return held


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, ROWS, ROWS + 1])
def test_equals_fp64_and_the_definition(router: str, tokens: int) -> None:
    """Decode, rows of drafts and short prompts; one expert has ROWS + 1 tokens where one takes all."""
    x, both, routed = normal(tokens, HIDDEN), weights_of(), moe.route(logits_of(router, tokens), TOP_K, True)
    found = experts(x, *stacked(*both), *routed)
    assert (found - exact_experts(x, *both, *routed)).abs().max() <= 2e-6
    assert (found - moe.experts(x, *both, *routed)).abs().max() <= 2e-6


@pytest.mark.parametrize("hidden", [HIDDEN, PANEL, 2 * PANEL + 1])
@pytest.mark.parametrize("inner", [1, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL])
def test_sizes_that_are_no_whole_panels(hidden: int, inner: int) -> None:
    gate_up, down = normal(EXPERTS, 2 * inner, hidden, seed=1) / 7, normal(EXPERTS, hidden, inner, seed=2) / 6
    x, routed = normal(9, hidden), moe.route(logits_of("random", 9), TOP_K, False)
    found, exact = experts(x, *stacked(gate_up, down), *routed), exact_experts(x, gate_up, down, *routed)
    assert (found - exact).abs().max() <= 4e-6


def test_weights_that_are_bfloat16_are_held_in_half_the_bytes_and_lose_nothing() -> None:
    x, routed = normal(9, HIDDEN), moe.route(logits_of("random", 9), TOP_K, True)
    narrow = [weight.bfloat16() for weight in weights_of()]
    held = stacked(*narrow)
    wide = stacked(*(weight.float() for weight in narrow))
    assert all(stack.packed.data.itemsize == 2 for stack in (*held, *wide))
    found = experts(x, *held, *routed)
    assert torch.equal(found, experts(x, *wide, *routed))
    assert (found - exact_experts(x, *narrow, *routed)).abs().max() <= 2e-6
    assert Stack.of(weights_of()[1]).packed.data.itemsize == 4


@pytest.mark.parametrize("dtype", [torch.int8, FP8])
@pytest.mark.parametrize("block", [(1, 128), (1, 256), (128, 128)])
def test_codes(dtype: torch.dtype, block: tuple[int, int]) -> None:
    """Groups, channels and blocks, where scales are shared by rows; an inner size that ends in half a group.

    Tolerance: 1e-6 of the largest, some twenty roundings of fp32 in two products one after the other.
    """
    hidden, inner = 256, 192
    if block[1] == 256:
        inner = 256  # a channel of both
    gate_up, down = codes_of(2 * inner, hidden, block, dtype, 1), codes_of(hidden, inner, block, dtype, 2)
    x, routed = normal(11, hidden), moe.route(logits_of("random", 11), TOP_K, True)
    plain = [torch.stack([weight.dequantise().float() for weight in each]) for each in (gate_up, down)]
    found, exact = experts(x, stack_of(gate_up, 2), stack_of(down), *routed), exact_experts(x, *plain, *routed)
    assert (found - exact).abs().max() <= 1e-6 * max(1.0, exact.abs().max())


def test_inputs_that_are_rounded() -> None:
    """To 8 bits a token, of both products, as a format asks for: what is rounded is rounded alike in every form.

    A number at an edge between two codes may fall on either side, a 127th of the largest: 2 % of what comes of it.
    """
    gate_up, down = codes_of(2 * INNER, 128, (1, 128), torch.int8, 1), codes_of(128, INNER, (1, 128), torch.int8, 2)
    x, routed = normal(5, 128), moe.route(logits_of("random", 5), TOP_K, True)
    found = experts(x, stack_of(gate_up, 2, rounds=True), stack_of(down, rounds=True), *routed)
    exact = torch.zeros(5, 128)
    for token in range(5):
        for weight, expert in zip(*(each[token].tolist() for each in routed), strict=True):
            gate, up = (gate_up[expert].dequantise().float() @ round_inputs(x[token])).chunk(2)
            inner = round_inputs(gate * gate.sigmoid() * up)
            exact[token] += weight * (down[expert].dequantise().float() @ inner)
    assert (found - exact).abs().max() <= 0.02 * exact.abs().max()
    unrounded = experts(x, stack_of(gate_up, 2), stack_of(down), *routed)
    assert (found - exact).abs().mean() < 0.1 * (unrounded - exact).abs().mean()


def test_codes_that_cannot_be_held_as_such() -> None:
    """Groups of 24 inputs share their scales within a block of sums."""
    codes, scales = torch.zeros(EXPERTS, 8, 48, dtype=torch.int8), torch.ones(EXPERTS, 8, 2)
    assert Stack.of_codes(codes, scales, 24) is None


@pytest.mark.parametrize("router", ROUTERS)
def test_a_token_gives_the_same_bits_whatever_is_beside_it(router: str) -> None:
    """Alone, with drafts, in a batch, at another place of a longer prompt, on any number of threads."""
    count = 2 * ROWS + 3
    x, held, (weights, chosen) = (
        normal(count, HIDDEN),
        stacked(*weights_of()),
        moe.route(logits_of(router, count), TOP_K, True),
    )
    every = experts(x, *held, weights, chosen)
    for first, last in [(0, 1), (5, 6), (5, 12), (60, 68), (3, count), (count - 9, count)]:
        part = slice(first, last)
        assert torch.equal(experts(x[part], *held, weights[part], chosen[part]), every[part])
    try:
        use_threads(1)
        assert torch.equal(experts(x, *held, weights, chosen), every)
    finally:
        use_threads(torch.get_num_threads())


def test_experts_that_nobody_chose_are_not_read() -> None:
    x, both, routed = normal(3, HIDDEN), weights_of(), moe.route(logits_of("few experts", 3), TOP_K, True)
    assert routed[1].max() < TOP_K
    for weight in both:
        weight[TOP_K:] = torch.nan
    assert torch.isfinite(experts(x, *stacked(*both), *routed)).all()


def test_no_tokens() -> None:
    routed = moe.route(logits_of("random", 0), TOP_K, True)
    assert experts(torch.empty(0, HIDDEN), *stacked(*weights_of()), *routed).shape == (0, HIDDEN)


def test_rows_that_are_no_contiguous_memory() -> None:
    x, both, routed = normal(HIDDEN, 9).t(), weights_of(), moe.route(logits_of("random", 9), TOP_K, True)
    assert torch.equal(experts(x, *stacked(*both), *routed), experts(x.contiguous(), *stacked(*both), *routed))


def test_sorted_pairs() -> None:
    chosen = torch.tensor([[2, 0], [0, 3], [2, 3]])
    pairs, first = sort_by_expert(array(chosen), 5)
    assert pairs.tolist() == [1, 2, 0, 4, 3, 5]
    assert first.tolist() == [0, 2, 2, 4, 6, 6]


def block_of(shared: int) -> tuple[Mixture, Qwen3_5MoeSparseMoeBlock]:
    """A whole block of ours and of transformers, with a shared expert of so many inner channels."""
    config = Qwen3_5MoeTextConfig(
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        shared_expert_intermediate_size=shared,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
    )
    theirs = Qwen3_5MoeSparseMoeBlock(config)
    for seed, parameter in enumerate(theirs.parameters()):
        parameter.requires_grad_(False).copy_(normal(*parameter.shape, seed=seed) / parameter.shape[-1] ** 0.5)
    theirs.gate.weight *= 4  # no near ties
    gate_up = torch.cat((theirs.shared_expert.gate_proj.weight, theirs.shared_expert.up_proj.weight))
    ours = Mixture(
        Packed.of(torch.cat((theirs.gate.weight, theirs.shared_expert_gate.weight))),
        Stack.of(theirs.experts.gate_up_proj, 2),
        Stack.of(theirs.experts.down_proj),
        Stack.of(gate_up[None], 2),
        Stack.of(theirs.shared_expert.down_proj.weight[None]),
        TOP_K,
        True,
    )
    return ours, theirs


@pytest.mark.parametrize("shared", [INNER, 70])
@pytest.mark.parametrize("tokens", [1, 8, 2 * ROWS + 1])
def test_block_equals_transformers(tokens: int, shared: int) -> None:
    ours, theirs = block_of(shared)
    x, out = Matrix.of(normal(tokens, HIDDEN)), Matrix.of(normal(tokens, HIDDEN, seed=9))
    wanted = out.tensor + theirs(x.tensor[None])[0]
    ours.add_to(x, out)
    torch.testing.assert_close(out.tensor, wanted, rtol=0, atol=4e-6)


def test_a_token_of_a_block_gives_the_same_bits_whatever_is_beside_it() -> None:
    ours, _ = block_of(INNER)
    x = normal(2 * ROWS + 1, HIDDEN)
    every = Matrix.of(torch.zeros_like(x))
    ours.add_to(Matrix.of(x), every)
    for first, last in [(0, 1), (3, 10), (70, len(x))]:
        part = Matrix.of(torch.zeros(last - first, HIDDEN))
        ours.add_to(Matrix.of(x[first:last].clone()), part)
        assert torch.equal(part.tensor, every.tensor[first:last])
