"""A mixture inside compiled code beside the form that routes in torch; ties fall to the first experts."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from bank_cases import normal
from moe_cases import EXPERTS, HIDDEN, ROUTERS, TOP_K, logits_of, weights_of

from qwen36_neuron.ops import moe
from qwen36_neuron.ops.moe.numba import Mixture, Stack
from qwen36_neuron.ops.moe.numba_few import add_mixture, route_row
from qwen36_neuron.ops.numba.panels import Packed
from qwen36_neuron.ops.numba.projections import Matrix
from qwen36_neuron.ops.numba.scalar import array


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("router", ROUTERS)
def test_routes_as_the_definition_does(router: str, renormalise: bool) -> None:
    """Of a row whose best are in ties, the weights agree, and they are those of the experts that are chosen."""
    logits = logits_of(router, 33)
    wanted, which = moe.route(logits, TOP_K, renormalise)
    for row, scores in enumerate(logits):
        weights, chosen = torch.empty(TOP_K), torch.empty(TOP_K, dtype=torch.int64)
        route_row(array(scores.clone()), renormalise, array(weights), array(chosen))
        torch.testing.assert_close(weights, wanted[row], rtol=2e-6, atol=1e-12)
        likely = scores.softmax(-1)
        torch.testing.assert_close(likely[chosen], likely[which[row]], rtol=2e-6, atol=1e-12)
        assert len(set(chosen.tolist())) == TOP_K
    if router == "ties":
        zeros = torch.zeros(EXPERTS)
        route_row(array(zeros), renormalise, array(weights), array(chosen))
        assert chosen.tolist() == list(range(TOP_K))


@pytest.mark.parametrize("tokens", [1, 7])
def test_adds_what_the_other_form_adds(tokens: int) -> None:
    gate_up, down = weights_of()
    shared_gate_up, shared_down = weights_of(1)
    mixture = Mixture(
        Packed.of(normal(EXPERTS + 1, HIDDEN, seed=6)),
        Stack.of(gate_up, 2),
        Stack.of(down),
        Stack.of(shared_gate_up, 2),
        Stack.of(shared_down),
        TOP_K,
        True,
    )
    x = normal(tokens, HIDDEN)
    found, wanted = (Matrix.of(normal(tokens, HIDDEN, seed=9)) for _ in range(2))
    add_mixture(mixture, array(x), found.array)
    mixture.add_to(Matrix.of(x), wanted)
    torch.testing.assert_close(found.tensor, wanted.tensor, rtol=0, atol=4e-6)
