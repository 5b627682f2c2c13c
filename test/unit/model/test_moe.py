"""The mixture of experts with hostile routers, against transformers' block in fp32 on the same weights.

Tolerance: 2e-6 of results of about one: sums of 64 to 96 products, added in another order.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3_5MoeForCausalLM
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeSparseMoeBlock

from qwen36_neuron.checkpoint.load import load_weights
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.model import Qwen36Model
from qwen36_neuron.model.moe import Mixture

from .oracle import Shape, build, run_cuts, runtime

TOLERANCE = 2e-6
TOKENS = 67
EXPERTS, HIDDEN = 8, 256


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Qwen3_5MoeSparseMoeBlock, Mixture]:
    """Transformers' block and ours, of the same weights."""
    folder = tmp_path_factory.mktemp("mixture")
    theirs = build(folder, Shape("mixture", experts=EXPERTS))
    config = ModelConfig.from_pretrained(folder)
    ours = Qwen36Model.from_weights(config, load_weights(folder, config))
    assert isinstance(ours.layers[0].mlp, Mixture)
    return theirs.model.layers[0].mlp, ours.layers[0].mlp


ROUTERS = {
    "all alike": torch.zeros(EXPERTS, HIDDEN),
    "pairs alike": torch.randn(EXPERTS // 2, HIDDEN).repeat_interleave(2, 0),
    "three that always win": torch.cat((torch.full((3, HIDDEN), 5.0), torch.zeros(EXPERTS - 3, HIDDEN))),
    "one that takes all": torch.cat((torch.full((1, HIDDEN), 50.0), torch.zeros(EXPERTS - 1, HIDDEN))),
    "scores of thousands": 1e4 * torch.randn(EXPERTS, HIDDEN),
}


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, TOKENS), (8, 1), (3, 5)], ids=str)
def test_hostile_routers(pair: tuple[Qwen3_5MoeSparseMoeBlock, Mixture], name: str, shape: tuple[int, int]) -> None:
    theirs, ours = pair
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*shape, HIDDEN, generator=generator).abs()  # so that a router of one sign decides alike for all
    theirs.gate.weight.data = ours.router.weight.data = ROUTERS[name]
    with torch.inference_mode():
        expected, found = theirs(x), ours(x)
    assert (found - expected).abs().max() <= TOLERANCE
    if name == "three that always win":
        ours.experts.gate_up_proj.data[3:] = torch.nan  # what nobody chose is not touched
        with torch.inference_mode():
            assert torch.equal(ours(x), found)
        ours.experts.gate_up_proj.data = theirs.experts.gate_up_proj.data.clone()


def test_weights_that_are_not_renormalised(pair: tuple[Qwen3_5MoeSparseMoeBlock, Mixture]) -> None:
    """transformers always does; what a config asks for without is the softmax's own probabilities."""
    _, ours = pair
    ours.router.weight.data = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(4))
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(5))
    kept, ours.renormalise = ours.renormalise, False
    with torch.inference_mode():
        found = ours(x)
    ours.renormalise = kept
    expected = ours.gate(x) * ours.shared(x)
    for token, probabilities in enumerate(ours.scores(x).softmax(-1)):
        for expert in probabilities.topk(ours.top_k).indices.tolist():
            gate, up = (ours.experts.gate_up_proj[expert] @ x[token]).chunk(2)
            made = ours.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
            expected[token] += probabilities[expert] * made
    assert (found - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kernels", ["torch", "fused"])
def test_a_router_in_ties_at_any_cut(tmp_path: Path, kernels: str) -> None:
    """Whole and in pieces, prompts and single tokens choose alike: lower numbers go first, whatever runs it."""
    if kernels == "fused":
        pytest.importorskip("numba")
    model = build(tmp_path, Shape("mixture", experts=EXPERTS))
    assert isinstance(model, Qwen3_5MoeForCausalLM)
    for layer in model.model.layers:
        layer.mlp.gate.weight.data.zero_()
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 512, (70,), generator=torch.Generator().manual_seed(6)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
    for cuts in ([70], [64, 1, 5], [1] * 3 + [67]):
        assert (run_cuts(runtime(tmp_path, kernels), tokens, cuts) - expected).abs().max() <= 2e-5
