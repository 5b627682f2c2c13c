"""The model of `qwen36_neuron.model` over fp32 master parameters under their Hugging Face names, for training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from qwen36_neuron.checkpoint.experts import as_held, joined
from qwen36_neuron.checkpoint.names import canonical_name, mtp_shapes, text_shapes
from qwen36_neuron.checkpoint.sharding import arrange
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.model import Qwen36Model
from qwen36_neuron.model.mlp import set_activation
from qwen36_neuron.model.norm import set_gated_norm, set_norm
from qwen36_neuron.ops.mlp import swiglu
from qwen36_neuron.ops.norm import gated_rms_norm, rms_norm

from .experts import Balance, TrainingLayers, set_experts_activation
from .training_state import PLAIN, TrainingState

EMBEDDING = "embed_tokens.weight"
NO_MAPS = (EMBEDDING, "lm_head.weight", "mlp.gate.weight", "shared_expert_gate.weight")
"""Ends of the names of matrices that choose or look up, where an update of all directions alike makes no sense."""


class TrainableModel:
    """Master parameters and the network that runs on what the loader would make of them.

    Attributes:
        parameters: canonical Hugging Face name -> fp32 leaf tensor, the multi-token-prediction layer included; a
            mixture's experts in one tensor, as they are published.
        balance: how evenly a mixture's routers use their experts.
    """

    def __init__(self, config: ModelConfig, seed: int, device: torch.device, compute_dtype: torch.dtype) -> None:
        self.config, self.dtype, self.operations = config, compute_dtype, PLAIN
        generator = torch.Generator().manual_seed(seed)
        shapes = as_held(text_shapes(config) | mtp_shapes(config), ())
        self.parameters = {
            name: _initial(name, shape, config, generator).to(device).requires_grad_() for name, shape in shapes.items()
        }
        with torch.device("meta"):
            self.network = _Call(Qwen36Model(config, TrainingLayers(), include_mtp=True))
        self.balance = Balance(self.network)

    @classmethod
    def from_pretrained(cls, folder: Path) -> TrainableModel:
        """A checkpoint's weights on CPU in fp32."""
        made = cls(ModelConfig.from_pretrained(folder), 0, torch.device("cpu"), torch.float32)
        for stored, tensor in joined(load_file(folder / "model.safetensors")).items():
            name = canonical_name(stored)
            if name is not None:
                made.parameters[name].data.copy_(tensor)
        return made

    @property
    def device(self) -> torch.device:
        return self.parameters[EMBEDDING].device

    def compile(self) -> None:
        """Compile what lies between matrix products, anew for each shape that it is called with."""
        self.operations = PLAIN.compiled()
        set_norm(self.network, torch.compile(rms_norm, dynamic=False))
        set_gated_norm(self.network, torch.compile(gated_rms_norm, dynamic=False))
        compiled = torch.compile(swiglu, dynamic=False)
        set_activation(self.network, compiled)
        set_experts_activation(self.network, compiled)

    def assemble(self) -> Assembled:
        """The runtime's weights as they are now, for the passes of one step; gradients flow back to `parameters`."""
        self.balance.clear()
        return Assembled(self, arrange(self.parameters, self.config, 1, self.dtype, include_mtp=True))


class Assembled:
    """Forward passes of one step over rows of equal length, a multiple of BLOCK_SIZE.

    Args:
        model: whose weights these are.
        weights: by runtime name.
    """

    def __init__(self, model: TrainableModel, weights: dict[str, Tensor]) -> None:
        self._model, self.weights = model, weights

    @property
    def head(self) -> Tensor:
        """The output matrix [vocab, hidden]."""
        return self.weights["lm_head.weight"]

    def hidden(self, tokens: Tensor) -> Tensor:
        """Hidden states after the final norm [rows, tokens, hidden] of int64 tokens [rows, tokens]."""
        return self._call(lambda network: network(tokens, _positions(tokens), self._state()), self.weights)

    def draft_hidden(self, hidden: Tensor, next_tokens: Tensor) -> Tensor:
        """The multi-token-prediction layer: hidden [rows, tokens, hidden] at t and tokens at t + 1 -> its own at t.

        No gradient reaches the embedding, which is the model's.
        """
        weights = self.weights | {EMBEDDING: self.weights[EMBEDDING].detach()}
        return self._call(
            lambda network: network.draft(hidden, next_tokens, _positions(next_tokens), self._state()), weights
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., vocab]."""
        return self._call(lambda network: network.logits(hidden), self.weights)

    def _state(self) -> TrainingState:
        return TrainingState(self._model.operations)

    def _call(self, work: Callable[[Qwen36Model], Tensor], weights: dict[str, Tensor]) -> Tensor:
        named = {f"network.{name}": weight for name, weight in weights.items()}
        result: Tensor = functional_call(self._model.network, named, (work,))
        return result


class _Call(nn.Module):
    """Any method of a network as the `forward` that `functional_call` calls."""

    def __init__(self, network: Qwen36Model) -> None:
        super().__init__()
        self.network = network

    def forward(self, work: Callable[[Qwen36Model], Tensor]) -> Any:
        return work(self.network)


def matrices(model: TrainableModel) -> Iterator[tuple[str, Tensor]]:
    """The weights of the layers' linear maps: those that an orthogonalised optimiser is meant for."""
    for name, parameter in model.parameters.items():
        if parameter.dim() == 2 and not name.endswith(NO_MAPS):
            yield name, parameter


def stacks(model: TrainableModel) -> Iterator[tuple[str, Tensor]]:
    """The weights of a mixture's experts, a matrix an expert."""
    return ((name, parameter) for name, parameter in model.parameters.items() if ".experts." in name)


def _positions(tokens: Tensor) -> Tensor:
    rows, length = tokens.shape
    return torch.arange(length, device=tokens.device).expand(rows, length)


def _initial(name: str, shape: tuple[int, ...], config: ModelConfig, generator: torch.Generator) -> Tensor:
    if name.endswith("A_log"):
        return torch.empty(shape).uniform_(0.0, math.log(16.0), generator=generator)
    if name.endswith("dt_bias"):
        dt = torch.empty(shape).uniform_(math.log(0.001), math.log(0.1), generator=generator).exp()
        return dt + torch.log(-torch.expm1(-dt))
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("linear_attn.norm.weight") else torch.zeros(shape)
    normal = torch.randn(shape, generator=generator)
    if name == "embed_tokens.weight":
        return 0.5 * normal
    fan_in = shape[-1] if ".experts." in name else math.prod(shape[1:])
    scale = 1.0
    if name.endswith(("lm_head.weight", "mlp.gate.weight")):
        scale = 0.1
    elif name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight", "experts.down_proj")):
        scale = 0.5 / math.sqrt(config.num_layers)
    return normal * scale * fan_in**-0.5
