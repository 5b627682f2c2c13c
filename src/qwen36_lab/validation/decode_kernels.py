"""The fused kernels of a decode step among those that are validated: one rank, whose sum over ranks is its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from qwen36_neuron.ops.moe.blocks import Blocks

from .kernels import BLOCK, Case, D

if TYPE_CHECKING:
    from nki_kernels.decode_attention_torch import PackedAttention

ROWS, HIDDEN = 5, 512
BAR = 1e-2
"""Norms and gates are rounded to bfloat16; where the order of a sum turns a rounding, one factor is 2^-8 off."""


def decode_cases(cores: int, random: torch.Generator) -> Iterator[Case]:
    """Each kernel with bfloat16 weights and with FP8 codes."""
    from nki_kernels.decode_attention import decode_attention
    from nki_kernels.decode_attention_torch import decode_attention_torch
    from nki_kernels.decode_attention_torch import pack as pack_attention
    from nki_kernels.decode_delta_net import decode_delta_net
    from nki_kernels.decode_delta_net_torch import decode_delta_net_torch
    from nki_kernels.decode_experts import decode_experts
    from nki_kernels.decode_experts_torch import decode_experts_torch, pack_experts, pack_shared
    from nki_kernels.decode_head import decode_head
    from nki_kernels.decode_head_torch import decode_head_torch, pack_head, pack_scale
    from nki_kernels.decode_mlp import decode_mlp
    from nki_kernels.decode_mlp_projection import decode_mlp_projection
    from nki_kernels.decode_mlp_projection_torch import decode_mlp_projection_torch, pack_blocks, pack_gamma_blocks
    from nki_kernels.decode_mlp_torch import decode_mlp_torch, pack, pack_gamma
    from nki_kernels.decode_projection import gated_norm_projection, norm_projection
    from nki_kernels.decode_projection_torch import (
        gated_norm_projection_torch,
        norm_projection_torch,
        pack_columns,
        pack_rows,
    )
    from nki_kernels.decode_router import decode_router
    from nki_kernels.decode_router_torch import decode_router_torch
    from nki_kernels.prefill_experts import prefill_experts
    from nki_kernels.prefill_experts_torch import prefill_experts_torch

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    def matrix(rows: int, columns: int, codes: bool) -> torch.Tensor:
        """bfloat16, or codes of float8_e4m3 below 16, either sign."""
        if not codes:
            return (0.06 * normal(rows, columns)).to(torch.bfloat16)
        magnitude = torch.randint(0, 0x58, (rows, columns), generator=random, dtype=torch.uint8)
        return magnitude | torch.randint(0, 2, (rows, columns), generator=random, dtype=torch.uint8) << 7

    def head(codes: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits that are so far apart that no rounding changes their order: multiples of one number."""
        signs, levels = normal(HIDDEN).sign(), 1.0 + torch.randperm(120 * cores, generator=random)
        if codes:  # of 1 and -1
            one = torch.where(signs > 0, 0x38, 0xB8).to(torch.uint8)
            return pack_head(one.expand(120 * cores, HIDDEN), cores), pack_scale(levels, cores)
        return pack_head((levels[:, None] * signs).to(torch.bfloat16), cores), None

    def router(experts: int = 64) -> torch.Tensor:
        """Logits as far apart, but so near that eight of them have weights that count."""
        levels = (1.0 + torch.randperm(experts, generator=random)) / experts
        return pack_columns((levels[:, None] * normal(HIDDEN).sign()).to(torch.bfloat16), 1)

    def mixture(codes: bool) -> tuple[torch.Tensor, ...]:
        """16 experts, and a shared one whose channels fill half of a core's partitions."""
        half, scales, of_shared = D // 2 * cores, None, None
        parts = [matrix(16 * n, m, codes) for n, m in ((D, HIDDEN), (D, HIDDEN), (HIDDEN, D))]
        of_all = [matrix(n, m, codes) for n, m in ((half, HIDDEN), (half, HIDDEN), (HIDDEN, half))]
        if codes:
            by_gate, by_up, by_down = (0.01 + 0.01 * normal(16, len(w) // 16).abs() for w in parts)
            scales = by_gate, by_up, by_down
            of_shared = by_gate[0].repeat(2)[:half], by_up[0].repeat(2)[:half], by_down[0]
        gate, up, down = (w.view(16, -1, w.shape[1]) for w in parts)
        shared = pack_shared(of_all[0], of_all[1], of_all[2], cores, of_shared)
        gates = pack_gamma(0.06 * normal(HIDDEN)).to(torch.bfloat16)
        return router(16), pack_experts(gate, up, down, scales), shared, gates

    def attention(layer: PackedAttention, heads: int) -> tuple[torch.Tensor | None, ...]:
        """A token and four drafts of one sequence whose cache begins amid a block; as many key as query heads."""
        angles, held, blocks = 3.0 * normal(ROWS, D // 4), 125, (3, 1, 2)
        caches = [normal(4 * BLOCK, heads, 2 * D) for _ in range(2)]
        places = [blocks[n // BLOCK] * BLOCK + n % BLOCK for n in range(held, held + ROWS)]
        return (
            layer.into, layer.out, layer.q_factor, layer.k_factor, angles.cos(), angles.sin(), *caches,
            torch.tensor([blocks], dtype=torch.int32), torch.tensor([[held]], dtype=torch.int32),
            torch.tensor(places, dtype=torch.int32).view(-1, 1), layer.into_scale, layer.out_scale,
        )  # fmt: skip

    heads, inner, channels = 3 * cores, 3 * D * cores, 300 * cores

    def mixer(key_heads: int) -> tuple[torch.Tensor, ...]:
        """What a DeltaNet mixer of a token of each row goes on from."""
        channels, entries = (2 * key_heads + heads) * D, ROWS + 2
        decays = torch.stack((-normal(heads).exp(), normal(heads)))
        windows, states = normal(entries, 3, channels), normal(entries, heads, D, D)
        windows[0], states[0] = 0.0, 0.0
        inputs = normal(ROWS, channels + heads * D), normal(ROWS, 2 * heads)
        return *inputs, windows, states, normal(channels, 4), decays

    x, gamma = normal(ROWS, HIDDEN), pack_gamma(1 + 0.2 * normal(HIDDEN))
    mixed, gate, factor = normal(ROWS, heads, D), normal(ROWS, heads, D).to(torch.bfloat16), 1 + 0.2 * normal(1, D)
    routed = (x, gamma, router())
    yield Case(f"{ROWS} rows", decode_router, decode_router_torch, (*routed, 8, True), BAR)
    yield Case(f"{ROWS} rows, of all", decode_router, decode_router_torch, (*routed, 8, False), BAR)
    for codes in (False, True):
        name = f"{ROWS} rows, {'float8' if codes else 'bfloat16'}"
        scales = [0.01 + 0.01 * normal(n).abs() for n in (inner, inner, HIDDEN, channels)] if codes else None
        of_columns, of_rows = (scales[n].view(cores, -1) if scales else None for n in (3, 2))
        weights = (matrix(inner, HIDDEN, codes), matrix(inner, HIDDEN, codes), matrix(HIDDEN, inner, codes))
        packed = pack(*weights, cores, None if scales is None else (scales[0], scales[1], scales[2]))
        held = packed.gate_up, packed.down, packed.gate_up_scale, packed.down_scale
        yield Case(name, decode_mlp, decode_mlp_torch, (x, gamma, *held), BAR)
        ahead = pack_gamma_blocks(1 + 0.2 * normal(HIDDEN)), pack_blocks(matrix(channels, HIDDEN, codes), cores)
        chain = (x, gamma, *held[:2], *ahead, *held[2:], of_columns)
        yield Case(name, decode_mlp_projection, decode_mlp_projection_torch, chain, BAR)
        into = pack_columns(matrix(channels, HIDDEN, codes), cores)
        few = pack_columns(matrix(2 * heads, HIDDEN, False), cores)
        yield Case(name, norm_projection, norm_projection_torch, (x, gamma, into, of_columns), BAR)
        beside = (x, gamma, into, of_columns, 1e-6, few, True)
        yield Case(f"{name}, gates", norm_projection, norm_projection_torch, beside, BAR)
        out = pack_rows(matrix(HIDDEN, heads * D, codes), cores)
        args = (x, mixed, gate, factor, out, of_rows)
        yield Case(name, gated_norm_projection, gated_norm_projection_torch, args, BAR)
        # The last row is a dummy, the first leaves a checkpoint.
        read = torch.tensor([[*range(1, ROWS), 0]], dtype=torch.int32)
        write = torch.stack((read, torch.full_like(read, ROWS + 2)), dim=2).view(1, -1)
        write[0, 1], write[0, -2] = ROWS + 1, ROWS + 2
        whole = (x, *mixer(cores), factor, out, read, write, of_rows)
        yield Case(name, decode_delta_net, decode_delta_net_torch, whole, BAR)
        yield Case(name, decode_head, decode_head_torch, (x, gamma, *head(codes)), BAR)
        block = mixture(codes)
        yield Case(name, decode_experts, decode_experts_torch, (x, gamma, *block, 8, True), BAR)
        weights_of, chosen = torch.softmax(normal(40, 16), dim=-1).topk(8)
        prompt = (normal(40, HIDDEN).to(torch.bfloat16), block[1], *Blocks.of(weights_of, chosen, 16))
        what = f"40 tokens, {'float8' if codes else 'bfloat16'}"
        yield Case(what, prefill_experts, prefill_experts_torch, prompt, BAR)
        size = 2 * D
        into, out = matrix(4 * heads * size, HIDDEN, codes), matrix(HIDDEN, heads * size, codes)
        of_layer = (0.01 + 0.01 * normal(4 * heads * size).abs(), scales[2]) if scales else None
        layer = pack_attention(into, out, 1 + 0.2 * normal(size), 1 + 0.2 * normal(size), cores, of_layer)
        yield Case(name, decode_attention, decode_attention_torch, (x, gamma, *attention(layer, heads)), BAR)
