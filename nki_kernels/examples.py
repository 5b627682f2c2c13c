"""Arguments of a size that matters for every kernel: one physical core's share of Qwen3.6-27B at TP=4, LNC=2."""

import ml_dtypes
import nki.collectives as ncc
import numpy as np
import torch

from .causal_conv1d import causal_conv1d, causal_conv1d_step
from .causal_conv1d_relations import PAST
from .causal_conv1d_relations import relations as conv_relations
from .causal_conv1d_verify import causal_conv1d_verify
from .decode_attention import decode_attention
from .decode_delta_net import decode_delta_net
from .decode_head import decode_head
from .decode_mlp import decode_mlp
from .decode_mlp_projection import decode_mlp_projection
from .decode_projection import gated_norm_projection, norm_projection
from .delta_rule_relations import relations
from .fp8_mlp import fp8_mlp
from .gated_delta_rule_chunk import gated_delta_rule_chunk
from .gated_delta_rule_decode import gated_delta_rule_decode
from .gated_delta_rule_prefill import gated_delta_rule_prefill
from .gated_delta_rule_verify import gated_delta_rule_verify
from .gated_rms_norm import gated_rms_norm, qk_l2norm
from .paged_attention import paged_attention
from .profiling import Example, register
from .state_copy import state_copy

KEY_HEADS, HEADS, D, CHANNELS = 2, 6, 128, 1280
BF16 = ml_dtypes.bfloat16


def _normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(dtype)


def _delta_rule(
    *rows: int, dtype: type = BF16, key_heads: int = KEY_HEADS, heads: int = HEADS
) -> tuple[np.ndarray, ...]:
    """q, k, v, g, beta of the delta rule for rows of one core's heads."""
    return (
        _normal(*rows, key_heads, D, dtype=dtype),
        _normal(*rows, key_heads, D, dtype=dtype),
        _normal(*rows, heads, D, dtype=dtype),
        -np.exp(_normal(*rows, heads) - 2),
        1 / (1 + np.exp(-_normal(*rows, heads))),
    )


def prefill(tokens: int = 512, boundaries: tuple[int, ...] = (), dtype: type = BF16, every: bool = False) -> Example:
    """The fused prefill, with checkpoints after the chunk counts given; `every`: of a graph that could take all."""
    possible = tuple(range(1, tokens // 64 + 1)) if every else boundaries
    wanted = [n if at in boundaries else tokens for n, at in enumerate(possible)]
    bank = np.zeros((len(possible) + 1, HEADS, D, D), dtype=np.float32)
    valid, places = np.array([[0, tokens]], dtype=np.int32), np.array([[*wanted, len(possible)]], dtype=np.int32)
    args = (*_delta_rule(tokens, dtype=dtype), _normal(HEADS, D, D), valid, bank, places)
    kwargs = {"boundaries": possible}
    return Example(
        gated_delta_rule_prefill, args, kwargs, f"{tokens} tokens, {HEADS} value heads, {KEY_HEADS} key heads"
    )


def decode(
    batch: int = 1, steps: int = 1, checkpoints: int | None = None, key_heads: int = KEY_HEADS, heads: int = HEADS
) -> Example:
    """One token, or drafts, for each sequence of a batch; with a checkpoint after it for the first few, if a number."""
    lanes = _normal(batch * (steps if steps > 1 else 0) + batch + 1 + (checkpoints or 0), heads, D, D)
    read = np.arange(1, batch + 1, dtype=np.int32).reshape(1, -1)
    write = read if steps == 1 else np.arange(batch + 1, batch + 1 + batch * steps, dtype=np.int32).reshape(1, -1)
    note = f"{batch} sequences, {steps} tokens each, {heads} value heads, {key_heads} key heads"
    if checkpoints is not None:
        write = np.stack((write, np.full_like(write, len(lanes))), axis=2)
        write[0, :checkpoints, 1] = np.arange(len(lanes) - checkpoints, len(lanes))
        write, note = write.reshape(1, -1), f"{note}, {checkpoints} checkpoints"
    return Example(
        gated_delta_rule_decode,
        (*_delta_rule(batch, steps, key_heads=key_heads, heads=heads), lanes, read, write),
        note=note,
    )


def verify(
    batch: int = 1, tokens: int = 4, checkpoints: int = 0, key_heads: int = KEY_HEADS, heads: int = HEADS
) -> Example:
    """A token and drafts for each sequence of a batch, behind as many drafts that were right; a checkpoint or none."""
    drafts, columns = tokens - 1, D + heads // key_heads * (D + 1)
    table = relations(batch, tokens, drafts, torch.zeros(1, dtype=torch.int32), torch.tensor([checkpoints > 0]))
    states, records = _normal(batch + 2, heads, D, D), 0.1 * _normal(batch + 1, drafts, key_heads, columns)
    states[0], records[0], last = 0.0, 0.0, batch + 1 if checkpoints else batch + 2
    records[..., D + heads // key_heads * D :] = -0.1
    lanes = np.arange(1, batch + 1, dtype=np.int32)
    places = np.concatenate((lanes, [0], lanes, [last], lanes)).astype(np.int32).reshape(1, -1)
    held = np.concatenate((np.arange(drafts, (batch + 1) * drafts), np.zeros(drafts))).astype(np.int32).reshape(-1, 1)
    note = f"{batch} sequences, {tokens} tokens each behind {drafts} drafts, {heads} value heads, {key_heads} key heads"
    args = (*_delta_rule(batch, tokens, key_heads=key_heads, heads=heads), states, records, table.numpy(), places, held)
    return Example(gated_delta_rule_verify, args, note=note)


def attention(
    tokens: int, held: int, batch: int = 1, heads: int = 3, dtype: type = BF16, turns_by_dma: bool = True,
    fp8_kv: bool = False,
) -> Example:  # fmt: skip
    """New tokens of a few query heads over a prefix in the cache, which holds FP8 codes or numbers of `dtype`."""
    blocks = held // 64
    q, k = _normal(batch, tokens, heads, 256, dtype=dtype), _normal(batch, tokens, 1, 256, dtype=dtype)
    cache = _normal(batch * blocks, 64, 1, 256, dtype=ml_dtypes.float8_e4m3fn if fp8_kv else dtype)
    table = np.arange(batch * blocks, dtype=np.int32).reshape(batch, blocks)
    start = np.full((1, batch), held, dtype=np.int32)
    note = f"{batch} sequences, {tokens} new tokens each over {held} held, {heads} query heads, 1 key head"
    note += ", FP8 in the cache" if fp8_kv else ""
    options = {} if turns_by_dma else {"turns_by_dma": False}
    return Example(paged_attention, (q, k, k, cache, cache, table, start), options, note)


register("gated_delta_rule_prefill")(prefill)
register("gated_delta_rule_decode")(decode)
register("gated_delta_rule_verify")(verify)


@register("paged_attention")
def attention_prompt() -> Example:
    """A chunk of 512 tokens over 3,584 in the cache."""
    return attention(512, 3584)


@register("paged_attention_turned_by_tensor_engine")
def attention_prompt_by_tensor_engine() -> Example:
    """The same chunk where the DMA engines are not to turn."""
    return attention(512, 3584, turns_by_dma=False)


@register("paged_attention_decode")
def attention_decode() -> Example:
    """One token over 4,096 in the cache."""
    return attention(1, 4096)


@register("paged_attention_decode_fp8")
def attention_decode_fp8() -> Example:
    """One token over 4,096 in the cache, in FP8."""
    return attention(1, 4096, fp8_kv=True)


@register("gated_delta_rule_chunk")
def chunk() -> Example:
    """One chunk of one head."""
    q, k, v, g, beta = (x[:, 0] for x in _delta_rule(128))
    return Example(
        gated_delta_rule_chunk, (q, k, v, g[:, None], beta[:, None], _normal(D, D)), note="128 tokens, 1 value head"
    )


def mlp(tokens: int, hidden: int = 5120, inner: int = 2176) -> Example:
    """The MLP of one layer: intermediate size 17408 over eight physical cores."""
    codes = np.random.default_rng(0).integers(0, 112, (hidden, inner), dtype=np.uint8)
    scales = (np.full((inner, 1), 1e-3, dtype=np.float32), np.full((1, hidden), 1e-3, dtype=np.float32))
    args = (_normal(tokens, hidden, dtype=BF16), codes, codes, codes.reshape(inner, hidden), scales[0], *scales)
    return Example(fp8_mlp, args, note=f"{tokens} tokens, hidden {hidden}, intermediate {inner}")


@register("fp8_mlp")
def mlp_decode() -> Example:
    """The MLP of one token."""
    return mlp(1)


def mlp_step(
    rows: int, fp8: bool = True, hidden: int = 5120, inner: int = 4352, ranks: int = 4, cores: int = 2
) -> Example:
    """A decode step's feed-forward block on two cores of each rank: intermediate size 17408 over four."""
    lines, blocks = hidden // D, inner // (cores * D)
    codes = np.random.default_rng(0).integers(0, 112, (cores, D, 3 * lines * blocks * D), dtype=np.uint8)
    weights = codes if fp8 else (codes.astype(np.float32) * 1e-3).astype(BF16)
    gate_up, down = weights[:, :, : 2 * lines * blocks * D].copy(), weights[:, :, 2 * lines * blocks * D :].copy()
    scales = (
        np.full((cores, D, 2 * blocks), 1e-3, dtype=np.float32),
        np.full((cores, hidden // cores), 1e-3, dtype=np.float32),
    )
    x, gamma = _normal(rows, hidden, dtype=BF16), np.ones((D, lines), dtype=np.float32)
    kwargs = {"replica_group": ncc.ReplicaGroup([list(range(ranks))]), "ranks": ranks}
    note = f"{rows} rows, {'FP8' if fp8 else 'bfloat16'}, hidden {hidden}, intermediate {inner}, one of {ranks} ranks"
    args = (x, gamma, gate_up, down, *(scales if fp8 else ()))
    return Example(decode_mlp[cores], args, kwargs, note, ranks)


def mlp_and_input(
    rows: int, fp8: bool = True, hidden: int = 5120, inner: int = 4352, channels: int = 4096, gates: int = 24,
    ranks: int = 4, cores: int = 2,
) -> Example:  # fmt: skip
    """A decode step's feed-forward block and the next DeltaNet mixer's input on the cores of a rank."""
    block = mlp_step(rows, fp8, hidden, inner, ranks, cores)
    into = input_projection(rows, fp8, hidden, channels, gates, cores)
    _, gamma, weight, *scale = into.args
    scales = (*block.args[4:], *scale) if fp8 else ()
    args = (*block.args[:4], gamma, weight, *scales)
    note = f"{block.note}, then {weight.shape[2] // gamma.shape[1] * cores} channels"
    return Example(decode_mlp_projection[cores], args, block.kwargs | into.kwargs, note, block.ranks)


@register("decode_mlp_projection")
def mlp_and_input_of_a_token() -> Example:
    """The feed-forward block and the next mixer's input of one token, FP8."""
    return mlp_and_input(1)


def input_projection(
    rows: int, fp8: bool = True, hidden: int = 5120, channels: int = 4096, gates: int = 24, cores: int = 2
) -> Example:
    """A DeltaNet mixer's input on two cores of a rank of four: q, k, v, z, and in bfloat16 twelve heads' gates."""
    weight, scale = _packed(hidden // D * channels // cores, channels // cores, fp8, cores)
    x, gamma = _normal(rows, hidden, dtype=BF16), np.ones((D, hidden // D), dtype=np.float32)
    few, _ = _packed(hidden // D * gates // cores, 0, False, cores)
    note = f"{rows} rows, {'FP8' if fp8 else 'bfloat16'}, hidden {hidden}, {channels} and {gates} channels"
    return Example(
        norm_projection[cores], (x, gamma, weight, *scale), {"few": few, "has_few": True} if gates else {}, note
    )


def output_projection(
    rows: int, fp8: bool = True, hidden: int = 5120, heads: int = 12, ranks: int = 4, cores: int = 2
) -> Example:
    """A DeltaNet mixer's output on two cores of a rank of four, with the sum over ranks."""
    weight, scale = _packed(heads * hidden // cores, hidden // cores, fp8, cores)
    mixed, gate = _normal(rows, heads, D), _normal(rows, heads, D, dtype=BF16)
    args = (_normal(rows, hidden, dtype=BF16), mixed, gate, np.ones((1, D), dtype=np.float32), weight, *scale)
    kwargs = {"replica_group": ncc.ReplicaGroup([list(range(ranks))]), "ranks": ranks}
    note = f"{rows} rows, {'FP8' if fp8 else 'bfloat16'}, hidden {hidden}, {heads} heads, one of {ranks} ranks"
    return Example(gated_norm_projection[cores], args, kwargs, note, ranks)


def delta_net(
    batch: int, fp8: bool = True, hidden: int = 5120, key_heads: int = 4, heads: int = 12, ranks: int = 4,
    cores: int = 2,
) -> Example:  # fmt: skip
    """A DeltaNet mixer of a token a sequence behind its input projections, on two cores of a rank of four."""
    weight, scale = _packed(heads * hidden // cores, hidden // cores, fp8, cores)
    channels, entries = (2 * key_heads + heads) * D, batch + 2
    x, qkvz = _normal(batch, hidden, dtype=BF16), _normal(batch, channels + heads * D, dtype=BF16)
    windows, taps = _normal(entries, PAST, channels, dtype=BF16), _normal(channels, 4, dtype=BF16)
    states, decays = (
        _normal(entries, heads, D, D),
        np.concatenate((-np.exp(_normal(1, heads)), np.ones((1, heads)))).astype(np.float32),
    )
    read = torch.arange(1, batch + 1, dtype=torch.int32).view(1, -1)
    write = torch.stack((read, torch.full_like(read, entries)), dim=2).view(1, -1)
    rows = (each.numpy() for each in (read, write))
    args = (
        x, qkvz, _normal(batch, 2 * heads, dtype=BF16), windows, states, taps, decays,
        np.ones((1, D), dtype=np.float32), weight, *rows, *scale,
    )  # fmt: skip
    kwargs = {"replica_group": ncc.ReplicaGroup([list(range(ranks))]), "ranks": ranks}
    note = f"{batch} sequences, {'FP8' if fp8 else 'bfloat16'}, hidden {hidden}, {heads} heads, one of {ranks} ranks"
    return Example(decode_delta_net[cores], args, kwargs, note, ranks)


@register("decode_delta_net")
def delta_net_of_a_token() -> Example:
    """A DeltaNet mixer of one token behind its input projections, FP8."""
    return delta_net(1)


def _packed(elements: int, channels: int, fp8: bool, cores: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Weights of a rank's cores, and their scales if they are codes."""
    codes = np.random.default_rng(0).integers(0, 112, (cores, D, elements), dtype=np.uint8)
    if fp8:
        return codes, (np.full((cores, channels), 1e-3, dtype=np.float32),)
    return (codes.astype(np.float32) * 1e-3).astype(BF16), ()


def attention_layer(
    tokens: int, held: int, batch: int = 1, fp8: bool = True, hidden: int = 5120, heads: int = 6, cores: int = 2,
    key_heads: int = 1, ranks: int = 4,
) -> Example:  # fmt: skip
    """An attention layer of a decode step on the cores of a rank."""
    rows, blocks, lines = batch * tokens, batch * (held // 64 + 1), hidden // D
    wide = 512 * (heads + key_heads) // cores
    into, into_scale = _packed(lines * wide, wide, fp8, cores)
    out, out_scale = _packed(2 * heads * hidden // cores, hidden // cores, fp8, cores)
    angles, factor = _normal(rows, 32), np.ones((D, 2), dtype=np.float32)
    cache = _normal((blocks + 1) * 64, key_heads, 256, dtype=BF16)
    table = np.arange(1, blocks + 1, dtype=np.int32).reshape(batch, -1)[:, : held // 64].copy()
    places = (table[:, -1:] * 64 + 64 + np.arange(tokens)).astype(np.int32).reshape(-1, 1)
    args = (
        _normal(rows, hidden, dtype=BF16), np.ones((D, lines), dtype=np.float32), into, out, factor, factor,
        np.cos(angles), np.sin(angles), cache, cache.copy(), table, np.full((1, batch), held, dtype=np.int32), places,
        *into_scale, *out_scale,
    )  # fmt: skip
    kwargs = {"replica_group": ncc.ReplicaGroup([list(range(ranks))]), "ranks": ranks}
    weights = "FP8" if fp8 else "bfloat16"
    note = f"{batch} sequences, {tokens} tokens each over {held} held, {weights}, one of {ranks} ranks"
    return Example(decode_attention[cores], args, kwargs, note, ranks)


@register("decode_attention")
def attention_layer_of_a_token() -> Example:
    """An attention layer of one token over 8,192 held, FP8."""
    return attention_layer(1, 8192)


def head(rows: int, fp8: bool = True, hidden: int = 5120, tokens: int = 62080, cores: int = 2) -> Example:
    """The head on the cores of a rank of four."""
    own = tokens // cores
    weight, scale = _packed(hidden // D * own, own, fp8, cores)
    x, gamma = _normal(rows, hidden, dtype=BF16), np.ones((D, hidden // D), dtype=np.float32)
    note = f"{rows} rows, {'FP8' if fp8 else 'bfloat16'}, hidden {hidden}, {tokens} tokens, one of 4 ranks"
    return Example(decode_head[cores], (x, gamma, weight, *scale), note=note)


@register("decode_head")
def head_of_a_token() -> Example:
    """The head of one token, FP8."""
    return head(1)


@register("norm_projection")
def input_of_a_token() -> Example:
    """A DeltaNet mixer's norm and input projection of one token, FP8."""
    return input_projection(1)


@register("gated_norm_projection")
def output_of_a_token() -> Example:
    """A DeltaNet mixer's gated norm and output projection of one token, FP8."""
    return output_projection(1)


@register("decode_mlp")
def mlp_of_a_token() -> Example:
    """The feed-forward block of one token, FP8."""
    return mlp_step(1)


@register("decode_mlp_bf16")
def mlp_of_a_token_bf16() -> Example:
    """The feed-forward block of one token, bfloat16."""
    return mlp_step(1, fp8=False)


@register("decode_mlp_40_rows")
def mlp_of_rows() -> Example:
    """The feed-forward block of five tokens of eight sequences, FP8."""
    return mlp_step(40)


@register("causal_conv1d")
def conv(tokens: int = 512, channels: int = CHANNELS) -> Example:
    """The convolution over a prompt, with the windows of two boundaries."""
    args = (_normal(tokens, channels, dtype=BF16), _normal(3, channels, dtype=BF16), _normal(channels, 4, dtype=BF16))
    bounds = (np.array([[0, tokens]], dtype=np.int32), np.array([[tokens - 64, tokens]], dtype=np.int32))
    return Example(causal_conv1d, (*args, *bounds), note=f"{tokens} tokens, {channels} channels")


def conv_step(batch: int = 8, channels: int = CHANNELS) -> Example:
    """The convolution of one token for each sequence of a batch."""
    index = np.arange(batch, dtype=np.int32).reshape(1, -1)
    x, lanes = _normal(batch, 1, channels, dtype=BF16), _normal(batch, 3, channels, dtype=BF16)
    args = (x, lanes, _normal(channels, 4, dtype=BF16), index, index)
    return Example(causal_conv1d_step, args, note=f"{batch} sequences, {channels} channels")


def conv_verify(
    batch: int = 8, tokens: int = 4, checkpoints: int = 0, channels: int = CHANNELS, dtype: type = BF16
) -> Example:
    """A token and drafts for each sequence of a batch, behind as many drafts that were right; a checkpoint or none."""
    drafts = tokens - 1
    accepted, row = torch.full((batch,), drafts, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    table: np.ndarray = np.asarray(conv_relations(accepted, tokens, drafts, row, row + 1), dtype=dtype)
    x, lanes = _normal(batch, tokens, channels, dtype=dtype), _normal(batch + 2, PAST, channels, dtype=dtype)
    pending, last = _normal(batch + 1, drafts, channels, dtype=dtype), batch + 1 if checkpoints else batch + 2
    own = np.arange(1, batch + 1, dtype=np.int32)
    held = np.concatenate((np.arange(PAST, (batch + 1) * PAST), np.arange(drafts, (batch + 1) * drafts)))
    places = np.concatenate((own, [last], own)).astype(np.int32).reshape(1, -1)
    args = (x, lanes, pending, _normal(channels, 4, dtype=dtype), table, held.astype(np.int32).reshape(-1, 1), places)
    note = f"{batch} sequences, {tokens} tokens each behind {drafts} drafts, {channels} channels"
    return Example(causal_conv1d_verify, args, note=note)


register("causal_conv1d_step")(conv_step)
register("causal_conv1d_verify")(conv_verify)


@register("gated_rms_norm")
def norm(tokens: int = 512, heads: int = HEADS) -> Example:
    """The gated norm of a prompt."""
    args = (_normal(tokens, heads, D), _normal(tokens, heads, D, dtype=BF16), _normal(1, D, dtype=BF16))
    return Example(gated_rms_norm, args, note=f"{tokens} tokens, {heads} heads")


@register("qk_l2norm")
def l2norm() -> Example:
    """The keys of a prompt."""
    return Example(qk_l2norm, (_normal(512, KEY_HEADS, D, dtype=BF16),), note=f"512 tokens, {KEY_HEADS} heads")


@register("state_copy")
def copy() -> Example:
    """One layer's state from a lane to a slot."""
    pairs = np.array([[1], [2]], dtype=np.int32)
    return Example(state_copy, (np.zeros((4, HEADS, D, D), dtype=np.float32), _normal(4, HEADS, D, D), pairs),
                   note=f"1 state of {HEADS} heads")  # fmt: skip
