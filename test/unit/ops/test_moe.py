"""The mixture of experts: the definition against transformers and fp64."""

from __future__ import annotations

import pytest
import torch
from bank_cases import normal
from moe_cases import EXPERTS, HIDDEN, INNER, ROUTERS, TOP_K, exact_experts, logits_of, weights_of
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeSparseMoeBlock, Qwen3_5MoeTopKRouter

from qwen36_neuron.checkpoint.fp8 import quantise_channels
from qwen36_neuron.ops.moe import BlockPlan, Stack, experts, route, static, static_experts
from qwen36_neuron.ops.moe.static import LARGEST_BLOCK


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("tokens", [1, 9])
def test_route_by_its_definition(router: str, renormalise: bool, tokens: int) -> None:
    """Weights of fp64 softmax, as many as asked, of different experts, the largest ones in descending order."""
    logits = logits_of(router, tokens)
    weights, chosen = route(logits, TOP_K, renormalise)
    assert (weights.dtype, chosen.dtype, weights.shape) == (torch.float32, torch.int64, (tokens, TOP_K))
    assert all(len(set(row)) == TOP_K for row in chosen.tolist())
    exact = torch.softmax(logits.double(), -1)
    largest = exact.topk(TOP_K).values
    wanted = largest / largest.sum(-1, keepdim=True) if renormalise else largest
    torch.testing.assert_close(weights.double(), wanted, rtol=2e-6, atol=1e-9)
    torch.testing.assert_close(exact.gather(1, chosen), largest, rtol=1e-6, atol=1e-12)
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("router", ROUTERS)
def test_route_equals_transformers(router: str) -> None:
    """Its choice as well, where experts tie."""
    logits = logits_of(router, 9)
    config = Qwen3_5MoeTextConfig(hidden_size=EXPERTS, num_experts=EXPERTS, num_experts_per_tok=TOP_K)
    theirs = Qwen3_5MoeTopKRouter(config)
    theirs.weight.data = torch.eye(EXPERTS)
    with torch.no_grad():
        _, weights, chosen = theirs(logits)
    found = route(logits, TOP_K, True)
    assert torch.equal(found[1], chosen)
    torch.testing.assert_close(found[0], weights, rtol=1e-6, atol=1e-9)


def test_a_row_is_routed_as_if_alone() -> None:
    logits = logits_of("ties", 40)
    weights, chosen = route(logits, TOP_K, True)
    alone = [route(logits[row : row + 1], TOP_K, True) for row in range(40)]
    assert torch.equal(weights, torch.cat([found[0] for found in alone]))
    assert torch.equal(chosen, torch.cat([found[1] for found in alone]))


@pytest.mark.parametrize("top_k", [0, EXPERTS + 1])
def test_more_experts_than_there_are(top_k: int) -> None:
    with pytest.raises(ValueError, match=rf"top_k is {top_k}, must be from 1 to the number of experts, {EXPERTS}"):
        route(logits_of("random", 2), top_k, True)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("tokens", [1, 9])
def test_experts_by_their_definition(router: str, tokens: int) -> None:
    """fp32 sums of 48 and 40 products: 2e-6 of numbers around 1."""
    x, both = normal(tokens, HIDDEN), weights_of()
    routed = route(logits_of(router, tokens), TOP_K, True)
    found = experts(x, *both, *routed)
    assert (found - exact_experts(x, *both, *routed)).abs().max() <= 2e-6


def test_experts_of_bfloat16() -> None:
    """Two products rounded to 8 bits, summed in fp32: 2 % of what is largest."""
    x, both = normal(9, HIDDEN).bfloat16(), [weight.bfloat16() for weight in weights_of()]
    routed = route(logits_of("random", 9), TOP_K, True)
    found, exact = experts(x, both[0], both[1], *routed), exact_experts(x, both[0], both[1], *routed)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 0.02 * exact.abs().max()


def test_block_equals_transformers() -> None:
    """Router and experts; the shared expert gives nothing, its last projection being zero."""
    config = Qwen3_5MoeTextConfig(
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        shared_expert_intermediate_size=INNER,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
    )
    theirs = Qwen3_5MoeSparseMoeBlock(config)
    gate_up, down = weights_of()
    x, router = normal(9, HIDDEN), normal(EXPERTS, HIDDEN, seed=3)
    with torch.no_grad():
        theirs.gate.weight.copy_(router)
        theirs.experts.gate_up_proj.copy_(gate_up)
        theirs.experts.down_proj.copy_(down)
        theirs.shared_expert.down_proj.weight.zero_()
        wanted = theirs(x[None])[0]
    torch.testing.assert_close(
        experts(x, gate_up, down, *route(x @ router.t(), TOP_K, True)), wanted, rtol=0, atol=2e-6
    )


def test_experts_that_nobody_chose_are_not_read() -> None:
    x, both = normal(3, HIDDEN), weights_of()
    routed = route(logits_of("few experts", 3), TOP_K, True)
    for weight in both:
        weight[TOP_K:] = torch.nan
    assert torch.isfinite(experts(x, *both, *routed)).all()


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 9, 31, 64])
def test_static_experts_by_their_definition(router: str, tokens: int) -> None:
    """A token a block up to as many choices as experts, blocks of several beyond, at and beside where they fill."""
    x, both = normal(tokens, HIDDEN), weights_of()
    routed = route(logits_of(router, tokens), TOP_K, True)
    found = static_experts(x, *(Stack(weight) for weight in both), *routed)
    assert (found.dtype, found.shape) == (torch.float32, x.shape)
    assert (found - exact_experts(x, *both, *routed)).abs().max() <= 2e-6


def test_static_experts_in_runs_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many at once as memory allows, and a remainder."""
    x, (gate_up, down) = normal(40, HIDDEN), weights_of()
    routed = route(logits_of("few experts", 40), TOP_K, True)
    whole = static_experts(x, Stack(gate_up), Stack(down), *routed)
    monkeypatch.setattr(static, "GATHERED_BYTES", 7 * 4 * (gate_up[0].numel() + down[0].numel()))
    torch.testing.assert_close(static_experts(x, Stack(gate_up), Stack(down), *routed), whole, rtol=0, atol=2e-6)


def test_static_experts_of_codes() -> None:
    """The codes' own numbers times their scales: only products are rounded."""
    x, both = normal(9, HIDDEN), weights_of()
    routed = route(logits_of("random", 9), TOP_K, True)
    coded = [[quantise_channels(matrix) for matrix in weight] for weight in both]
    stacks = [Stack(*(torch.stack(part) for part in zip(*pairs, strict=True))) for pairs in coded]
    plain = [stack.weight.float() * stack.scale for stack in stacks if stack.scale is not None]
    found = static_experts(x, *stacks, *routed)
    assert (found - exact_experts(x, plain[0], plain[1], *routed)).abs().max() <= 2e-6


def test_a_token_of_static_experts_is_no_others() -> None:
    """What is not a number in one row, as padding may be, stays there."""
    x, both = normal(24, HIDDEN), weights_of()
    routed = route(logits_of("one expert", 24), TOP_K, True)
    whole = static_experts(x, *(Stack(weight) for weight in both), *routed)
    x[0] = torch.nan
    found = static_experts(x, *(Stack(weight) for weight in both), *routed)
    assert found[0].isnan().all()
    assert torch.equal(found[1:], whole[1:])


@pytest.mark.parametrize("experts_", [4, 64, 256])
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 128, 512, 1000, 1024, 4096])
def test_blocks_are_enough_for_any_routing_and_few(experts_: int, tokens: int) -> None:
    plan, top_k = BlockPlan.of(tokens, experts_, 4), 4
    choices = tokens * top_k
    one_each = [1 + (choices - experts_) // experts_] * experts_ if choices >= experts_ else [1] * choices
    skewed = [tokens] * top_k
    uneven = [1] * (min(experts_, choices) - 1)
    for counts in (one_each, skewed, [*uneven, min(tokens, choices - len(uneven))]):
        assert sum(-(-count // plan.size) for count in counts) <= plan.blocks
    if choices > experts_:
        assert plan.rows <= 5 * choices or plan.size == tokens
        if plan.size < LARGEST_BLOCK and plan.size < tokens:
            assert plan.blocks <= 1.5 * experts_
    else:
        assert plan.rows == choices


def test_1024_tokens_of_the_published_mixture() -> None:
    """380 experts' weights for 256, 24,320 rows for 8,192 choices; every expert for every token would be 262,144."""
    plan = BlockPlan.of(1024, 256, 8)
    assert (plan.size, plan.blocks, plan.rows) == (64, 380, 24320)
