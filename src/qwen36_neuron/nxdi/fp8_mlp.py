"""The MLP as one NKI kernel that reads FP8 weights as they are."""

from __future__ import annotations

import torch
from neuronx_distributed.parallel_layers.mappings import reduce_from_tensor_model_parallel_region
from torch import nn

from ..config import ModelConfig
from ..graph.options import GraphOptions
from ..model.norm import RMSNorm
from ..ops.mlp.nki import MLP_TOKENS
from ..ops.nki_kernels import NkiKernels

PARTS = ("gate", "up", "down")


class Fp8MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) of one rank, weights input first, a scale an output channel.

    Attributes:
        gate, up: uint8 [hidden, intermediate of the rank], float8_e4m3 codes of at most 240. down: the other way round.
        gate_scale, up_scale: fp32 [intermediate of the rank, 1]. down_scale: fp32 [1, hidden].
    """

    def __init__(self, config: ModelConfig, tp: int, kernels: NkiKernels) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size // tp
        self.kernels = kernels
        for name, shape in zip(PARTS, ((hidden, inner), (hidden, inner), (inner, hidden)), strict=True):
            scale = (1, hidden) if name == "down" else (inner, 1)
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.uint8), requires_grad=False))
            self.register_parameter(f"{name}_scale", nn.Parameter(torch.ones(scale), requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] in and out, the ranks' results added up."""
        codes, scales = (tuple(getattr(self, f"{name}{end}") for name in PARTS) for end in ("", "_scale"))
        rows = x.reshape(-1, x.shape[-1])
        parts = [self.kernels.mlp(piece, codes, scales) for piece in rows.split(MLP_TOKENS)]
        y: torch.Tensor = reduce_from_tensor_model_parallel_region(torch.cat(parts).to(x.dtype).view(x.shape))
        return y

    def add_to(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """As in `model.mlp.MLP`."""
        return x + self(norm(x))


def set_mlp(network: nn.Module, config: ModelConfig, options: GraphOptions) -> None:
    """Put the kernel in the place of every MLP of a network that has no weights yet."""
    for layer in network.layers:  # type: ignore[union-attr]
        layer.mlp = Fp8MLP(config, options.tp_degree, NkiKernels(options.logical_cores))


def lay_out(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A rank's weights with those of every MLP as `Fp8MLP` holds them, from FP8 with a scale a channel.

    The draft layer's is none of them: its weights are bf16.
    """
    out = {}
    for name, tensor in weights.items():
        prefix, _, rest = name.partition(".mlp.")
        match rest if prefix.startswith("layers.") else "":
            case "gate_up_proj.weight":
                for part, half in zip(("gate", "up"), tensor.view(torch.uint8).chunk(2), strict=True):
                    out[f"{prefix}.mlp.{part}"] = half.t().contiguous()
            case "gate_up_proj.scale":
                for part, half in zip(("gate", "up"), tensor.chunk(2), strict=True):
                    out[f"{prefix}.mlp.{part}_scale"] = half.contiguous()
            case "down_proj.weight":
                out[f"{prefix}.mlp.down"] = tensor.view(torch.uint8).t().contiguous()
            case "down_proj.scale":
                out[f"{prefix}.mlp.down_scale"] = tensor.t().contiguous()
            case _:
                out[name] = tensor
    return out
