"""Kernels of aws-neuron/nki-library around attention, routing and output projections, run unchanged."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch
from nki_library_runs import ABSENT, BF16, SRC, at, data, library, same, t, take  # noqa: F401

pytestmark = ABSENT


@pytest.mark.parametrize(("lnc", "d", "b", "n", "s", "h", "transposed"), [
    (1, 128, 4, 2, 1, 1024, False), (2, 64, 3, 5, 2, 1536, False), (2, 128, 3, 2, 5, 1024, True)])  # fmt: skip
def test_output_projection_tkg(lnc, d, b, n, s, h, transposed):
    kernel = take("core.output_projection.output_projection_tkg", "output_projection_tkg")
    ref = take("core.output_projection.output_projection_tkg_torch", "output_projection_tkg_torch_ref")
    a, w, bias = data(1, d, b, n, s, dtype=BF16), data(2, n * d, h, dtype=BF16), data(3, 1, h, dtype=BF16)
    y = at(kernel, lnc)(a, w, bias, TRANSPOSE_OUT=transposed)
    same(y, ref(t(a), t(w), t(bias), TRANSPOSE_OUT=transposed)["out"], 2e-2)


@pytest.mark.parametrize("kind", ["STATIC", "ROW"])
def test_output_projection_tkg_fp8(kind):
    kernel = take("core.output_projection.output_projection_tkg", "output_projection_tkg")
    ref = take("core.output_projection.output_projection_tkg_torch", "output_projection_tkg_torch_ref")
    quant = getattr(take("core.utils.common_types", "QuantizationType"), kind)
    d, b, n, s, h = 128, 4, 2, 1, 1024
    a, w = data(1, d, b, n, s, dtype=BF16), data(2, n * d, h, dtype=ml_dtypes.float8_e4m3)
    bias = data(3, 1, h, dtype=BF16)
    if kind == "STATIC":
        scale, inputs = np.full((128, 1), 0.02, np.float32), np.full((128, 1), 0.03, np.float32)
    else:
        scale, inputs = np.tile(np.abs(data(4, 1, h)) * 0.02, (128, 1)).astype(np.float32), None
    options = {"quantization_type": quant}
    y = at(kernel, 1)(a, w, bias, weight_scale=scale, input_scale=inputs, **options)
    want = ref(t(a), t(w), t(bias), weight_scale=t(scale), input_scale=t(inputs), **options)["out"]
    same(y, want, 6e-2)


@pytest.mark.parametrize(("lnc", "tokens", "hidden", "experts", "k", "options"), [
    (1, 128, 256, 64, 4, {}),
    (1, 20, 512, 128, 8, {"router_pre_norm": False}),
    (1, 32, 512, 64, 4, {"use_column_tiling": True}),
    (2, 256, 256, 128, 8, {"router_pre_norm": False, "shard_on_tokens": True}),
    (1, 128, 256, 64, 4, {"act": "SIGMOID", "use_indirect_dma_scatter": True, "router_pre_norm": False}),
    (1, 256, 256, 64, 4, {"norm_topk_prob": True}),
])  # fmt: skip
def test_router_topk(lnc, tokens, hidden, experts, k, options):
    kernel = take("core.router_topk.router_topk", "router_topk")
    ref = take("core.router_topk.router_topk_torch", "router_topk_torch_ref")
    options = dict(options)
    act = getattr(take("core.utils.common_types", "RouterActFnType"), options.pop("act", "SOFTMAX"))
    x, w, bias = (
        data(1, hidden, tokens, dtype=BF16),
        data(2, hidden, experts, dtype=BF16),
        data(3, 1, experts, dtype=BF16),
    )

    def entry(x, w, bias):
        logits = nl.ndarray((tokens, experts), dtype=nl.float32, buffer=nl.shared_hbm)
        affinities = nl.ndarray((tokens, experts), dtype=nl.float32, buffer=nl.shared_hbm)
        index = nl.ndarray((tokens, k), dtype=nl.uint32, buffer=nl.shared_hbm)
        return kernel(x, w, bias, logits, affinities, index, act, k, 0, 0, **options)

    want = ref(t(x), t(w), t(bias), None, None, None, act, k, 0, 0, **options)
    logits, index, affinities = at(entry, lnc)(x, w, bias)[:3]
    same(logits, want["router_logits"], 1e-4)
    np.testing.assert_array_equal(np.asarray(index).astype(np.int64), want["expert_index"].numpy())
    same(affinities, want["expert_affinities"], 1e-3)


@pytest.mark.parametrize(("lnc", "b", "bkv", "sq", "sk", "d", "options"), [
    (1, 1, 1, 256, 256, 128, {}),
    (2, 2, 1, 200, 200, 64, {"scale": 0.1}),
    (1, 1, 1, 130, 600, 128, {"causal_mask": False}),
    (2, 1, 1, 256, 256, 64, {"tp_out": True}),
    (2, 2, 2, 384, 384, 64, {"sliding_window": 100}),
    (1, 1, 1, 128, 128, 64, {"prior": 512, "used": 300}),
    (1, 1, 1, 256, 256, 128, {"cache_softmax": True}),
])  # fmt: skip
def test_attention_cte(lnc, b, bkv, sq, sk, d, options):
    kernel = take("core.attention.attention_cte", "attention_cte")
    ref = take("core.attention.attention_cte_torch", "attention_cte_torch_ref")
    options = dict(options)
    prior, used = options.pop("prior", None), options.pop("used", None)
    q, k, v = (
        data(1, b, sq, d, dtype=BF16, scale=0.3), data(2, bkv, d, sk, dtype=BF16), data(3, bkv, sk, d, dtype=BF16)
    )  # fmt: skip
    extra: dict[str, Any] = {}
    if prior:
        extra = {
            "k_prior": data(4, bkv, d, prior, dtype=BF16), "v_prior": data(5, bkv, prior, d, dtype=BF16),
            "prior_used_len": np.array([used], dtype=np.int32),
        }  # fmt: skip
    y = at(kernel, lnc)(q, k, v, **extra, **options)
    want = ref(t(q), t(k), t(v), **{n: t(e) for n, e in extra.items()}, **options)
    if options.get("cache_softmax"):
        same(y[0], want[0], 2e-2)
        same(y[1], want[1], 2e-2)
        same(y[2], want[2], 2e-2)
    else:
        same(y, want, 2e-2)


@pytest.mark.parametrize(("rows", "columns"), [(128, 512), (512, 1024)])
def test_dynamic_elementwise_add(rows, columns):
    kernel = take("experimental.dynamic_shapes.dynamic_elementwise_add", "dynamic_elementwise_add")
    a, b = data(1, rows, columns), data(2, rows, columns)
    same(at(kernel, 1)(a, b, np.array([[rows // 128]], dtype=np.int32)), a + b, 1e-6)


def test_stream_shuffle_broadcast():
    broadcast: Callable[..., Any] = take("core.utils.stream_shuffle_broadcast", "stream_shuffle_broadcast")

    def entry(x):
        out = nl.ndarray((100, x.shape[1]), dtype=x.dtype, buffer=nl.shared_hbm)
        row, tile = nl.ndarray((1, x.shape[1]), dtype=x.dtype), nl.ndarray((100, x.shape[1]), dtype=x.dtype)
        nisa.dma_copy(row, x)
        broadcast(row, tile)
        nisa.dma_copy(out, tile)
        return out

    x = data(1, 1, 40)
    same(nki.jit(entry)(x), np.tile(x, (100, 1)), 0)


@pytest.mark.parametrize(("lnc", "rows", "vocab", "k"), [(1, 4, 2048, 16), (2, 6, 3000, 20)])
def test_rotational_topk(lnc, rows, vocab, k):
    kernel, prepare, cleanup, base, make = take(
        "core.topk.rotational_topk",
        "rotational_topk", "prepare_rotational_constants", "cleanup_rotational_constants", "create_topk_config",
        "create_rotational_topk_config",
    )  # fmt: skip
    ref = take("core.topk.torch_ref", "topk_torch_ref")
    x = data(1, rows, vocab)
    plain = base(inp_shape=(rows, 1, vocab), inp_dtype=np.dtype(np.float32), k=k, sorted=True, num_programs=lnc)
    config = prepare(make(inp_shape=x.shape, topk_config=plain))
    try:
        values, places = at(kernel, lnc)(x, config)
    finally:
        cleanup()
    values, places = np.asarray(values).reshape(rows, k), np.asarray(places).reshape(rows, k)
    same(values, ref(t(x), config)["topk_values"], 0)
    np.testing.assert_array_equal(np.take_along_axis(x, places.astype(int), axis=1), values)


@pytest.mark.parametrize(("start", "to", "count"), [(0, 64, 40), (37, 5, 50), (96, 3, 32)])
def test_cross_partition_copy(start, to, count):
    copy = take("core.utils.cross_partition_copy", "cross_partition_copy")

    def entry(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        a, b = nl.ndarray(x.shape, dtype=x.dtype), nl.zeros(x.shape, dtype=x.dtype)
        nisa.dma_copy(a, x)
        copy(a, b, start, to, count, x.shape[1])
        nisa.dma_copy(out, b)
        return out

    x = data(1, 128, 24)
    want = np.zeros_like(x)
    want[to : to + count] = x[start : start + count]
    same(nki.jit(entry)(x), want, 0)


@pytest.mark.parametrize(("lnc", "b", "h", "s", "prior", "d"), [(1, 2, 4, 1, 256, 64), (2, 3, 2, 5, 512, 128)])
def test_attention_tkg(lnc, b, h, s, prior, d):
    kernel, make = take("core.attention.attention_tkg", "attention_tkg", "AttnTKGConfig")
    ref = take("core.attention.attention_tkg_torch", "attention_tkg_torch_ref")
    masks, space = take("core.attention.gen_mask_tkg_torch", "build_full_attention_mask"), take(
        "core.utils.allocator", "SbufManager"
    )  # fmt: skip
    cfg = make(bs=b, q_head=h, s_active=s, curr_sprior=prior, full_sprior=prior, d_head=d, qk_in_sb=True)
    q, k_new = data(1, d, b * h * s, dtype=BF16, scale=0.2), data(2, d, b * s, dtype=BF16)
    v_new, k_old, v_old = (
        data(3, b, 1, s, d, dtype=BF16), data(4, b, 1, d, prior, dtype=BF16), data(5, b, 1, prior, d, dtype=BF16)
    )  # fmt: skip
    seen = torch.tensor([float((37 * i + prior // 2) % (prior - s)) for i in range(b)])
    mask = masks(
        cache_lens=seen, batch=b, num_heads=h, s_active=s, s_ctx=prior, lnc=lnc, block_len=0, include_active_mask=True,
        transposed=True, enable_fa_s_prior_tiling=True,
    ).numpy().astype(np.uint8)  # fmt: skip

    def entry(q, k_new, v_new, k_old, v_old, mask):
        sbm = space(0, nl.tile_size.total_available_sbuf_size - 16 * 1024)
        sbm.open_scope()
        out = nl.ndarray((b, h, d, s), dtype=q.dtype, buffer=nl.shared_hbm)
        q_sb, k_sb = (sbm.alloc_stack(x.shape, dtype=x.dtype, buffer=nl.sbuf) for x in (q, k_new))
        nisa.dma_copy(q_sb, q)
        nisa.dma_copy(k_sb, k_new)
        made, _ = kernel(q_sb, k_sb, v_new, k_old, v_old, mask, out, cfg, sbm)
        sbm.close_scope()
        return made

    y = at(entry, lnc)(q, k_new, v_new, k_old, v_old, mask)
    want, _ = ref[lnc](
        t(q), t(k_new), t(v_new), t(k_old), t(v_old), t(mask), torch.zeros(b, h, d, s), cfg, None
    )  # fmt: skip
    same(y, want, 2e-2)
