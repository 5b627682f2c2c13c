"""What the network asks of a sequence's memory.

The blocks hold weights and arithmetic only. Whatever reads or writes a cache goes through a `StepState`, which knows
the rows of the step: lanes updated in place on CPU, gathered and returned as aliased outputs on a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from .attention import Attention
    from .deltanet import GatedDeltaNet


def select_tokens(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """One token of each row: x [batch, tokens, ...] and int places [batch] -> [batch, 1, ...]."""
    batch, tokens = x.shape[:2]
    if batch > 1:
        places = places + tokens * torch.arange(batch, device=x.device)
    return x.flatten(0, 1).index_select(0, places).unsqueeze(1)


class StepState(Protocol):
    """The memory of the rows of one call, as the blocks use it: all of a block before its output projection."""

    def delta_net(self, block: GatedDeltaNet, x: torch.Tensor) -> torch.Tensor:
        """Of a DeltaNet block: `block.mix`, whose arguments and result it has, or a faster way to the same."""
        ...

    def attention(
        self,
        block: Attention,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        last: torch.Tensor | None,
    ) -> torch.Tensor:
        """Of an attention block: `block.mix`, whose arguments and result it has, or a faster way to the same."""
        ...


class StateOperations(Protocol):
    """The operations on memory that the blocks' `mix` is made of; [batch, tokens, ...], padded on the right."""

    def convolve(self, layer: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Causal convolution with SiLU that continues each row's window.

        Args:
            layer: index of the decoder layer.
            x: [batch, tokens, channels]; weight: [channels, kernel].
        Returns:
            [batch, tokens, channels].
        """
        ...

    def delta_rule(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        """Gated delta rule that continues each row's recurrent state.

        Args:
            q, k: [batch, tokens, key_heads, dk]; v: [batch, tokens, value_heads, dv].
            g, beta: [batch, tokens, value_heads] fp32.
        Returns:
            [batch, tokens, value_heads, dv] fp32.
        """
        ...

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store the new keys and values, then attend causally to all that each row holds.

        Args:
            q: [batch, tokens, query_heads, head_dim], or [batch, 1, ...], the query of each row's last token alone.
            k, v: [batch, tokens, kv_heads, head_dim], in numbers that the memory holds exactly.
        Returns:
            Of q's shape.
        """
        ...


class Storing(Protocol):
    """What keeps keys and values that nothing asks about yet."""

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store new keys and values, [batch, tokens, kv_heads, head_dim]."""
        ...


class Mixing:
    """The `StepState` that runs blocks operation by operation, of whoever has the operations."""

    __slots__ = ()

    def delta_net(self: StateOperations, block: GatedDeltaNet, x: torch.Tensor) -> torch.Tensor:
        return block.mix(x, self)

    def attention(
        self: StateOperations,
        block: Attention,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        last: torch.Tensor | None,
    ) -> torch.Tensor:
        return block.mix(x, rotary, self, last)
