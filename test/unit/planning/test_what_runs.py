"""A call is counted with what the network runs, on tensors without values: of the last layer of a prompt, little."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qwen36_neuron.config import LayerType, ModelConfig
from qwen36_neuron.graph.buckets import PrefillBucket
from qwen36_neuron.graph.profile import Profile
from qwen36_neuron.model.decoder import Qwen36Model
from qwen36_neuron.model.state import Mixing
from qwen36_neuron.planning.delta_rule import RowByRow
from qwen36_neuron.planning.estimate import Estimate
from qwen36_neuron.planning.rates import Phase

PROFILE = Path(__file__).resolve().parents[3] / "profiles" / "128k.yaml"
NEW, HELD = 512, 1536
ENDS = {LayerType.ATTENTION: 8, LayerType.DELTANET: 6}
"""Layers of a network that ends in one kind."""


@dataclass
class Asked(Mixing):
    """A memory that does nothing, and counts the queries that ask it."""

    queries: int = 0

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        return v

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        self.queries += q.shape[1]
        return q


@dataclass
class Run:
    """A prefill chunk of `NEW` tokens through the network, and the estimate of the same."""

    estimate: Estimate
    flops: int
    queries: int
    summed: int

    def phase(self, name: str) -> Phase:
        phases = self.estimate.prefill_phases(PrefillBucket(NEW, HELD))
        (found,) = (phase for phase in phases if phase.name == name)
        return found


@pytest.fixture(params=ENDS, ids=str)
def run(request: pytest.FixtureRequest, published_27b: dict[str, Any]) -> Run:
    published_27b["text_config"]["num_hidden_layers"] = ENDS[request.param]
    config = ModelConfig.from_dict(published_27b)
    assert config.layer_types[-1] is request.param
    sizes = Profile.load(PROFILE)
    memory, tokens_out = Asked(), []
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = Qwen36Model(config)
        for name, module in model.named_modules():
            if name.endswith(("o_proj", "out_proj", "down_proj")):
                module.register_forward_hook(lambda _, __, out: tokens_out.append(out.shape[1]))
        tokens, last = torch.zeros(1, NEW, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        model.logits(model(tokens, torch.zeros(1, NEW, dtype=torch.int64), memory, last))
    alone = replace(sizes, options=replace(sizes.options, tp_degree=1))
    return Run(Estimate(alone, config, RowByRow()), counter.get_total_flops(), memory.queries, sum(tokens_out))


def test_products(run: Run) -> None:
    assert run.phase("weights").flops == pytest.approx(run.flops, rel=5e-4)  # but for the convolution's four taps


def test_scores(run: Run) -> None:
    model = run.estimate.model
    scores = run.queries * model.num_query_heads * (NEW + HELD)
    assert run.phase("attention").flops == 4 * scores * model.head_dim


def test_sums_over_the_ranks(run: Run) -> None:
    options = run.estimate.profile.options
    run.estimate = replace(run.estimate, profile=replace(run.estimate.profile, options=replace(options, tp_degree=4)))
    (decode,) = (phase for phase in run.estimate.decode_phases(1, HELD) if phase.name == "collectives")
    of_one_token = decode.hbm_bytes / (2 * run.estimate.model.num_layers)  # a row of one token passes every sum
    assert run.phase("collectives").hbm_bytes == pytest.approx(run.summed * of_one_token)


def test_what_a_token_more_reads_and_writes_between_the_products(run: Run) -> None:
    """In all layers but the last, as much as a decoded token; there, what comes before its result is asked for."""
    model, estimate = run.estimate.model, run.estimate
    short, long = (
        sum(
            phase.hbm_bytes
            for phase in estimate.prefill_phases(PrefillBucket(size, HELD))
            if phase.name == "activations"
        )
        for size in (NEW, NEW + 128)
    )
    (decode,) = (phase for phase in estimate.decode_phases(1, HELD) if phase.name == "activations")
    hidden, inner = model.hidden_size, model.intermediate_size
    skipped = 2 * (8 * hidden + 7 * inner)  # second norm, two additions and the MLP
    if model.layer_types[-1] is LayerType.ATTENTION:
        skipped += (
            2 * 5 * 2 * model.num_query_heads * model.head_dim
        )  # queries and gates, after the projection's output
    assert (long - short) / 128 == pytest.approx(decode.hbm_bytes - skipped)
