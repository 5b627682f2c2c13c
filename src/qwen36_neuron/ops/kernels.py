"""The operations that read or write a sequence's memory on a device, and the choice of what runs them.

Every operation on states takes a bank (see `banks`) and gives one back, which is the same memory on a device; the bank
that was given must not be used any more.

There are two forms: plain torch (`torch_kernels`), and the NKI kernels (`nki_kernels`), which run on a Neuron device
and, in the interpreter of the package of that name, on a CPU.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ..config import BLOCK_SIZE, ModelConfig
from ..devices import CHOICES, GraphKernels
from ..errors import ConfigError
from .banks import Batch, OutputAndBank, OutputAndBanks, Span, Verify

HEAD_DIM, STATE_DIM, TAPS = 256, 128, 4
"""Sizes that the NKI kernels are written for: attention heads, DeltaNet heads, the convolution."""

MLP_COLUMNS = 512
"""Hidden channels that the MLP kernel works on at once."""

MOST_PLACES = 1 << 24
"""Whole numbers that fp32 holds exactly: places of the cache are computed in it."""

ROWS = 128
"""Tokens, or channels, of a kernel's tile."""


class Kernels(Protocol):
    """The operations of one rank. Banks are [entries, 3, channels] for windows, [entries, heads, dk, dv] for states.

    Those of pending drafts have zeros at first and hold what the operations put there; the kernels keep the scratch
    lane's zero, as they do the scratch entry of a bank.
    """

    def conv_prefill(self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, span: Span) -> OutputAndBank:
        """Convolution with SiLU: x [1, tokens, channels], weight [channels, 4] -> [1, tokens, channels]."""
        ...

    def conv_decode(self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, batch: Batch) -> OutputAndBank:
        """The same for x [batch, 1, channels]."""
        ...

    def conv_verify(
        self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, pending: torch.Tensor, rows: Verify
    ) -> OutputAndBanks:
        """The same for x [batch, 1 + drafts, channels]: accepted drafts are taken in first, new ones are only kept.

        Args:
            pending: [1 + lanes, most drafts, channels], of x's type.
        """
        ...

    def delta_rule_prefill(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bank: torch.Tensor,
        span: Span,
    ) -> OutputAndBank:
        """Gated delta rule, with q, k, v, g, beta of `StepState.delta_rule`, batch 1 and whole blocks of tokens.

        Returns:
            [1, tokens, value_heads, dv] fp32, meaningless on padding, and the bank.
        """
        ...

    def delta_rule_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bank: torch.Tensor,
        batch: Batch,
    ) -> OutputAndBank:
        """The same for one token a row: [batch, 1, value_heads, dv] fp32."""
        ...

    def delta_rule_verify(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bank: torch.Tensor,
        pending: torch.Tensor,
        rows: Verify,
    ) -> OutputAndBanks:
        """The same for 1 + drafts tokens a row; accepted drafts are taken in first, new ones are only kept.

        Args:
            pending: fp32 [1 + lanes, most drafts, key_heads, `factor_columns`].
        """
        ...

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        table: torch.Tensor,
        held: torch.Tensor,
        begin: int = 0,
    ) -> torch.Tensor:
        """Causal attention of tokens over themselves and over `held` tokens before all of them, which are paged.

        Args:
            q: [batch, tokens, query_heads, head_dim]; k, v: [batch, tokens, kv_heads, head_dim].
            cache: (keys, values), each [blocks, BLOCK_SIZE, kv_heads, head_dim].
            table: int32 [batch, n], blocks of positions 0, 1, ...; n may be 0.
            held: int32 [batch], at most n * BLOCK_SIZE.
            begin: positions before it hold nothing; at most a block, and 0 for calls of a whole tile of tokens.
        Returns:
            [batch, tokens, query_heads, head_dim].
        """
        ...

    def gated_norm(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`ops.norm.gated_rms_norm` of x and gate [batch, tokens, heads, n]."""
        ...


def open_kernels(choice: GraphKernels, cores: int, dma_transposes: bool = True) -> Kernels:
    """The operations in one form.

    Args:
        cores: physical cores that one logical core joins (LNC); the NKI kernels run on all of them.
        dma_transposes: the DMA engines transpose what the NKI kernels of prompts transpose, else TensorE.
    Raises:
        ConfigError: the interpreter is asked for where AWS's own nki is installed, whose place it cannot take.
    """
    if choice == "torch":
        from .torch_kernels import TorchKernels

        return TorchKernels()
    from nki_kernels.interpreter.install import real_nki_present  # imported on use, as the kernels are

    if choice == "interpreter" and real_nki_present():
        problem = "AWS's own nki is installed, whose place the interpreter does not take"
        raise ConfigError("kernels", choice, problem, "Use kernels=torch")
    from .nki_kernels import NkiKernels

    return NkiKernels(cores, dma_transposes)


def check_choice(choice: str, device: str, field: str = "kernels") -> None:
    """Raises ConfigError naming `field` unless `choice` can run on `device`, "cpu" or "neuron"."""
    allowed = CHOICES[device]
    if choice in allowed:
        return
    known = any(choice in names for names in CHOICES.values())
    problem = f"does not run on device={device}" if known else "is not known"
    raise ConfigError(field, choice, problem, f"Use one of: {', '.join(allowed)}")


def check_shapes(
    choice: GraphKernels, model: ModelConfig, tp: int = 1, cores: int = 1, mlp: bool = False, drafts: int = 0
) -> None:
    """Raises ConfigError naming every size of a rank's model that the NKI kernels do not take.

    Args:
        mlp: whether the MLP is a kernel too.
        drafts: that a row may have verified.
    """
    if choice == "torch":
        return
    rank = model.rank(tp)
    wrong = [
        f"{name} is {size}, must be {needed}"
        for name, size, needed in (
            ("linear_key_head_dim", model.key_head_dim, STATE_DIM),
            ("linear_value_head_dim", model.value_head_dim, STATE_DIM),
            ("head_dim", model.head_dim, HEAD_DIM),
            ("linear_conv_kernel_dim", model.conv_kernel, TAPS),
        )
        if size != needed
    ] + [
        f"{size} {name} a rank must be a multiple of {needed} on {cores} physical cores a rank"
        for name, size, needed in (
            ("DeltaNet key heads", rank.num_key_heads, cores),
            ("query heads", rank.num_query_heads, cores),
            ("convolution channels", rank.conv_channels, ROWS * cores),
            ("intermediate channels", model.intermediate_size // tp if mlp else 0, ROWS * cores),
            ("hidden channels", model.hidden_size if mlp else 0, MLP_COLUMNS),
        )
        if size % needed
    ]
    if drafts:
        wrong += _wrong_drafts(drafts, rank.num_value_heads // cores)
    if wrong:
        raise ConfigError("kernels", choice, f"cannot run this model: {'; '.join(wrong)}", "Use kernels=torch")


def _wrong_drafts(drafts: int, heads: int) -> list[str]:
    """Whether a launch takes one row of so many drafts and a checkpoint, on a core of so many value heads."""
    from nki_kernels.causal_conv1d_relations import sequences_at_once as windows_at_once
    from nki_kernels.delta_rule_relations import sequences_at_once as states_at_once

    taken = [n for n in range(BLOCK_SIZE) if windows_at_once(n + 1, n, 1) and states_at_once(n + 1, n, 1, heads)]
    most = max(taken, default=0)
    return [f"{drafts} drafts a row are more than the {most} of {heads} value heads a core"] if drafts > most else []


def check_tokens(choice: GraphKernels, sizes: list[int]) -> None:
    """Raises ConfigError unless the NKI kernels take calls of so many new tokens each."""
    wrong = [size for size in sizes if size > ROWS and size % ROWS]
    if choice != "torch" and wrong:
        problem = f"kernels={choice} take {BLOCK_SIZE} new tokens, or a multiple of {ROWS}"
        raise ConfigError("prefill_buckets", wrong, problem, "Round them up, or use kernels=torch")


def check_places(choice: GraphKernels, num_blocks: int) -> None:
    """Raises ConfigError unless the NKI kernels reach so many KV blocks: they count places in fp32."""
    most = MOST_PLACES // BLOCK_SIZE
    if choice != "torch" and num_blocks > most:
        problem = f"has places of {MOST_PLACES} and more, which the kernels cannot tell apart"
        raise ConfigError("num_blocks", num_blocks, problem, f"Use {most} at most, or kernels=torch")
