"""A mixture of experts in training: every expert for every token in two products, and how evenly they are chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qwen36_neuron.model.layers import Experts, SingleRank
from qwen36_neuron.model.moe import Mixture
from qwen36_neuron.ops.mlp import swiglu
from qwen36_neuron.ops.moe import route


class TrainingExperts(Experts):
    """`Experts` with static shapes: what a token did not choose counts zero times, and gets no gradient.

    All experts together are as wide as a small model's dense block, so that this costs less than to sort the tokens.
    """

    activation: Callable[[Tensor], Tensor] = staticmethod(swiglu)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """As `Experts.forward`, of which this is the definition written otherwise."""
        count, _, hidden = self.gate_up_proj.shape
        share = torch.zeros(len(x), count, device=x.device).scatter(1, chosen, weights)
        both = (x @ self.gate_up_proj.flatten(0, 1).T).unflatten(1, (count, -1))
        inner = self.activation(both) * share.to(x.dtype).unsqueeze(-1)
        return inner.flatten(1) @ self.down_proj.mT.reshape(-1, hidden)


class TrainingLayers(SingleRank):
    """The unsplit model's layers, with such experts."""

    def experts(self, count: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        return TrainingExperts(count, hidden_size, intermediate_size)


def set_experts_activation(network: nn.Module, activation: Callable[[Tensor], Tensor]) -> None:
    """Have all experts of a network activated by `activation`, [..., 2 n] -> [..., n]."""
    for module in network.modules():
        if isinstance(module, TrainingExperts):
            module.activation = activation


class Balance:
    """What the routers of a network have chosen with gradients since `clear`; nothing for a dense model."""

    def __init__(self, network: nn.Module) -> None:
        self._terms: list[Tensor] = []
        for module in network.modules():
            if isinstance(module, Mixture):
                module.register_forward_pre_hook(self._see)

    def clear(self) -> None:
        """Forget the passes so far."""
        self._terms.clear()

    def loss(self) -> Tensor:
        """experts * sum of (share of the choices) * (mean probability), the mean over layers: 1 where all are even.

        Switch Transformers, Fedus, Zoph and Shazeer, 2022, equation 4, for more than one choice a token.
        """
        return torch.stack(self._terms).mean()

    def _see(self, mixture: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(mixture, Mixture)
        if torch.is_grad_enabled():
            (x,) = arguments
            scores = mixture.scores(x.reshape(-1, x.shape[-1]))
            _, chosen = route(scores.detach(), mixture.top_k, renormalise=False)
            counts = torch.zeros_like(scores).scatter(1, chosen, 1.0).mean(0) / mixture.top_k
            self._terms.append(scores.shape[1] * (counts * scores.softmax(-1).mean(0)).sum())
