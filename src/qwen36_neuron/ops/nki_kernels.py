"""The operations of `kernels` by the NKI kernels: compiled into the graph on a device, run at once by the interpreter.

A kernel writes to the bank that it is given and returns it, which is what makes the two one memory on a device. What
padding and unused checkpoints would write goes past the last entry, where the kernels write nothing. So entry 0 stays
zero for good, and a row that starts its sequence reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .attention.nki import paged_attention_nki
from .banks import Batch, OutputAndBank, OutputAndBanks, Span, Verify
from .causal_conv1d.nki import causal_conv1d_nki, causal_conv1d_step_nki, causal_conv1d_verify_nki
from .gated_delta_rule.nki import gated_delta_rule_prefill_nki, gated_delta_rule_step_nki, gated_delta_rule_verify_nki
from .mlp.nki import fp8_mlp_nki
from .norm.nki import gated_rms_norm_nki


@dataclass(frozen=True, slots=True)
class NkiKernels:
    """`Kernels` whose operations are launched on a device or in the interpreter.

    Attributes:
        cores: physical cores that one logical core joins (LNC). Every kernel is launched on all of them: the compiler
            refuses any other number.
        dma_transposes: the DMA engines transpose what attention of prompts transposes, else TensorE.
    """

    cores: int
    dma_transposes: bool = True

    def launch(self, kernel: Any, *tensors: torch.Tensor | None, **constants: Any) -> Any:
        """See `Launch`."""
        on_cores: Callable[..., Any] = kernel[self.cores]
        return on_cores(*tensors, **constants)

    def conv_prefill(self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, span: Span) -> OutputAndBank:
        return causal_conv1d_nki(self.launch, x, weight, bank, span)

    def conv_decode(self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, batch: Batch) -> OutputAndBank:
        return causal_conv1d_step_nki(self.launch, x, weight, bank, batch)

    def conv_verify(
        self, x: torch.Tensor, weight: torch.Tensor, bank: torch.Tensor, pending: torch.Tensor, rows: Verify
    ) -> OutputAndBanks:
        return causal_conv1d_verify_nki(self.launch, x, weight, bank, pending, rows)

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
        return gated_delta_rule_prefill_nki(self.launch, q, k, v, g, beta, bank, span)

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
        return gated_delta_rule_step_nki(self.launch, q, k, v, g, beta, bank, batch)

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
        return gated_delta_rule_verify_nki(self.launch, self.cores, q, k, v, g, beta, bank, pending, rows)

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
        return paged_attention_nki(self.launch, q, k, v, cache, table, held, self.dma_transposes, begin)

    def gated_norm(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return gated_rms_norm_nki(self.launch, x, gate, weight, eps)

    def mlp(self, x: torch.Tensor, codes: tuple[torch.Tensor, ...], scales: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """`fp8_mlp_nki`."""
        return fp8_mlp_nki(self.launch, x, codes, scales)
