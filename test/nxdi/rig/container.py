"""What NxD's container of compiled graphs does, on a CPU.

On a device every (tag, bucket) is one graph, found by the shapes of its inputs alone; weights and states are shared by
all; an output aliased to a state is written back to it. Here the same module that would be traced is run instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from neuronx_distributed_inference.models.model_wrapper import ModelWrapper
from torch import nn

from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM

Shapes = tuple[tuple[int, ...], ...]


def shapes_of(inputs: Sequence[torch.Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in inputs)


class CpuContainer:
    """Loads an application as `app.load` would; afterwards it is called as after loading.

    Attributes:
        modules: the module of each tag, sharing parameters.
        calls: (tag, bucket index) of every call made.
    """

    def __init__(self, app: NeuronQwen36ForCausalLM, rank: int = 0) -> None:
        self.app = app
        self.calls: list[tuple[str, int]] = []
        self.modules: dict[str, nn.Module] = {}
        self.routes: dict[Shapes, tuple[ModelWrapper, int]] = {}
        self.instances: dict[str, Any] = {}
        weights = app.rank_state_dict(rank)
        shared: dict[str, torch.Tensor] = {}
        for wrapper in app.models:
            instance = wrapper.get_model_instance()
            instance.load_module()
            module = instance.module
            missing, unexpected = module.load_state_dict(weights, strict=False)
            assert not unexpected, unexpected
            assert all(name.startswith("kv_mgr.") for name in missing), missing
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(False)
                parameter.data = shared.setdefault(name, parameter.data)
            self.instances[wrapper.tag], self.modules[wrapper.tag] = instance, module
            for index, example in enumerate(wrapper.input_generator()):
                assert shapes_of(example) not in self.routes, "two graphs with the same shapes"
                self.routes[shapes_of(example)] = (wrapper, index)
            wrapper.model = self
        app.traced_model = self
        app.is_loaded_to_neuron = True

    @property
    def nxd_model(self) -> CpuContainer:
        return self

    def forward(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self(*inputs)

    def forward_ranked(self, inputs: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
        """Outputs a rank, left on the device; this process is one rank, whose inputs are given once a rank."""
        return [self(*inputs[0])] * len(inputs)

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        *integers, last = inputs
        assert all(tensor.dtype is torch.int32 for tensor in integers)
        assert last.dtype in (torch.int32, torch.float32), "only sampling parameters are floating point"
        wrapper, index = self.routes[shapes_of(inputs)]
        self.calls.append((wrapper.tag, index))
        module, aliases = self.instances[wrapper.tag].get(index)
        before = [tensor.clone() for tensor in inputs]
        outputs = module(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True)), "an input was written to"
        for state, position in aliases.items():
            assert outputs[position].shape == state.shape
            assert outputs[position].dtype is state.dtype
            assert outputs[position] is not state, "a state that no call returns has no alias"
        for state, position in aliases.items():
            state.data.copy_(outputs[position])
        returned = set(aliases.values())
        return [output for position, output in enumerate(outputs) if position not in returned]

    @property
    def memory(self) -> Any:
        """The cache manager that holds the states."""
        return next(iter(self.modules.values())).kv_mgr
