"""The gated delta rule over whole sequences with gradients, for training: chunks batched, states in one short scan.

Inference has its own forms (`ops.gated_delta_rule`); what differs here is the backward pass. Per chunk of 64 tokens,
with cumulative gates G, U = T (beta v), W = T (beta k e^G) and T = (I + A)^-1, the states follow

    v'_c = U_c - W_c S_c            S_{c+1} = e^{G_last} S_c + (k e^{G_last - G})^T v'_c

and only these two lines depend on the chunk before. Gated DeltaNet, Yang, Kautz and Hatamizadeh, 2024, section 3.
"""

from __future__ import annotations

from typing import Any

import torch

from qwen36_neuron.ops.gated_delta_rule.triangular import unit_lower_inverse


class UnitLowerInverse(torch.autograd.Function):
    """T = (I + A)^-1 for strictly lower A: [..., n, n] -> [..., n, n]. Its gradient is -T^T dT T^T, strictly lower."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor) -> torch.Tensor:
        inverse = unit_lower_inverse(a)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ grads[0] @ inverse.mT).tril_(-1)


class StateScan(torch.autograd.Function):
    """Runs the states through the chunks, chunk-major.

    Args (of `apply`):
        u: [chunks, rows, 64, dv]; rows are sequences times heads.
        w: [chunks, rows, 64, dk].
        k: [chunks, rows, 64, dk], keys decayed to the end of their chunk.
        decay: [chunks, rows], e^{G_last}.
    Returns:
        states: [chunks, rows, dk, dv], the state entering each chunk; the first is zero.
        v: [chunks, rows, 64, dv], the corrected values v'.
    """

    @staticmethod
    def forward(
        ctx: Any, u: torch.Tensor, w: torch.Tensor, k: torch.Tensor, decay: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chunks, rows = decay.shape
        scale = decay[..., None, None]
        states = u.new_zeros(chunks + 1, rows, w.shape[-1], u.shape[-1])
        v = torch.empty_like(u)
        for c in range(chunks):
            torch.baddbmm(u[c], w[c], states[c], alpha=-1, out=v[c])
            torch.mul(states[c], scale[c], out=states[c + 1])
            states[c + 1].baddbmm_(k[c].mT, v[c])
        states = states[:-1]
        ctx.save_for_backward(w, k, decay, states, v)
        return states, v

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        w, k, decay, states, v = ctx.saved_tensors
        grad_states, grad_v = grads
        chunks = decay.shape[0]
        scale = decay[..., None, None]
        # after[c] is the gradient of the state leaving chunk c; nothing reads the last one
        after = torch.zeros_like(states)
        du = torch.empty_like(v)
        for c in reversed(range(chunks)):
            torch.baddbmm(grad_v[c], k[c], after[c], out=du[c])
            if c:
                torch.addcmul(grad_states[c], scale[c], after[c], out=after[c - 1])
                after[c - 1].baddbmm_(w[c].mT, du[c], alpha=-1)
        dw = -(du @ states.mT)
        dk = v @ after.mT
        return du, dw, dk, (after * states).sum((-1, -2))
