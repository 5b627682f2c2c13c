"""Kernels written by others, run unchanged: aws-neuron/nki-library against its own torch references.

Set NKI_LIBRARY_SRC to the library's ``src/nkilib_src`` folder to run this; nothing of it is kept here. Each kernel runs
at two or more sizes, one with a partial tile, and on two cores where it has a two-core form.
"""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch

SRC = os.environ.get("NKI_LIBRARY_SRC")
pytestmark = pytest.mark.skipif(not SRC, reason="NKI_LIBRARY_SRC is not set to nki-library's src/nkilib_src")
BF16 = ml_dtypes.bfloat16


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    """The library on the import path, and the one module of an older compiler that it imports for an annotation."""
    if not SRC:
        yield
        return
    assert Path(SRC, "nkilib").is_dir(), f"NKI_LIBRARY_SRC={SRC} has no nkilib folder"
    sys.path.insert(0, SRC)
    stubs = {"neuronxcc": ModuleType("neuronxcc"), "neuronxcc.nki": ModuleType("neuronxcc.nki")}
    typing_stub = ModuleType("neuronxcc.nki.typing")
    vars(typing_stub)["mutable_tensor"] = object
    stubs["neuronxcc.nki.typing"] = typing_stub
    added = [name for name in stubs if name not in sys.modules]
    sys.modules.update({name: stubs[name] for name in added})
    yield
    sys.path.remove(SRC)
    for name in added:
        del sys.modules[name]


def take(path: str, *names: str) -> Any:
    """Names of a library module."""
    module = importlib.import_module(f"nkilib.{path}")
    found = tuple(getattr(module, n) for n in names)
    return found[0] if len(found) == 1 else found


def data(seed: int, *shape: int, dtype: Any = np.float32, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def t(x: np.ndarray | None) -> torch.Tensor | None:
    """As a float32 (or integer) torch tensor."""
    if x is None:
        return None
    return torch.from_numpy(x.astype(np.float32) if x.dtype.kind in "fV" else np.array(x))


def same(actual: Any, expected: Any, tol: float) -> None:
    """Largest error within ``tol`` of the largest expected magnitude."""
    a = np.asarray(actual).astype(np.float64)
    e = np.asarray(expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected).astype(np.float64)
    a = a.reshape(e.shape)
    assert np.isfinite(a).all()
    error = np.abs(a - e).max() / max(np.abs(e).max(), 1e-30)
    assert error <= tol, f"relative error {error:.3g} > {tol}"


def at(kernel: Any, lnc: int) -> Any:
    """The kernel on ``lnc`` cores; 0 launches without a grid."""
    jitted = kernel if hasattr(kernel, "__getitem__") else nki.jit(kernel)
    return jitted[lnc] if lnc else jitted


@pytest.mark.parametrize(("shape", "dtype", "tol"), [
    ((128, 2048), np.float32, 1e-5), ((200, 2500), np.float32, 1e-5), ((3, 5, 130), BF16, 1e-2)])  # fmt: skip
def test_cumsum(shape, dtype, tol):
    x = data(0, *shape, dtype=dtype)
    y = take("core.cumsum.cumsum", "cumsum")(x)
    same(y, np.cumsum(x.astype(np.float64), axis=-1), tol)


@pytest.mark.parametrize("lnc", [0, 2])
@pytest.mark.parametrize(("d", "b", "h", "s", "contiguous", "relayout"), [
    (128, 1, 2, 64, True, False), (64, 2, 3, 38, True, False), (128, 1, 2, 34, False, False),
    (64, 1, 2, 36, False, True)])  # fmt: skip
def test_rope(d, b, h, s, contiguous, relayout, lnc):
    kernel, ref = take("core.embeddings.rope", "RoPE"), take("core.embeddings.rope_torch", "rope_torch_ref")
    x, cos, sin = data(1, d, b, h, s), data(2, d // 2, b, s), data(3, d // 2, b, s)
    y = at(kernel, lnc)(x, cos, sin, lnc_shard=lnc == 2, contiguous_layout=contiguous, relayout_in_sbuf=relayout)
    same(y, ref(t(x), t(cos), t(sin), contiguous_layout=contiguous)["x_out"], 1e-5)


@pytest.mark.parametrize(("lnc", "b", "hq", "hk", "s", "d", "cache", "backward"), [
    (1, 1, 2, 1, 128, 64, False, False), (2, 2, 3, 1, 512, 96, False, False), (2, 1, 2, 2, 256, 64, True, False),
    (1, 1, 2, 1, 640, 32, False, True)])  # fmt: skip
def test_rope_hf(lnc, b, hq, hk, s, d, cache, backward):
    kernel, ref = take("core.embeddings.rope_hf", "rope_hf"), take("core.embeddings.rope_hf_torch", "rope_hf_torch_ref")
    q, k = data(1, b, hq, s, d), data(2, b, hk, s, d)
    q_out, k_out = np.zeros_like(q), np.zeros_like(k)
    cos, sin, both = data(3, b, s, d), data(4, b, s, d), None
    if cache:
        both, cos, sin = data(5, s, 2 * d), None, None
    want = ref(t(q), t(k), None, None, t(cos), t(sin), t(both), backward)
    at(kernel, lnc)(q, k, q_out, k_out, cos=cos, sin=sin, rope_cache=both, backward=backward)
    same(q_out, want["q_out"], 1e-5)
    same(k_out, want["k_out"], 1e-5)


def _norm(kernel: Any, lnc: int, b: int, s: int, h: int, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, gamma = data(1, b, s, h), data(2, 1, h)

    def entry(x, gamma):
        out = nl.ndarray((128, b * s, h // 128), dtype=x.dtype, buffer=nl.shared_hbm)
        return kernel(x, gamma, out, **options)

    return x, gamma, at(entry, lnc)(x, gamma)


@pytest.mark.parametrize(("lnc", "b", "s", "h"), [(1, 1, 4, 512), (1, 3, 47, 1024), (2, 2, 64, 1024), (2, 1, 5, 512)])
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_norms_tkg(kind, lnc, b, s, h):
    kernel = take(f"core.subkernels.{kind}_tkg", f"{kind}_tkg")
    suffix = "" if lnc == 2 else "_lnc1"
    ref = take(f"core.subkernels.{kind}_torch", f"{kind}_tkg_torch_ref{suffix}")
    x, gamma, y = _norm(kernel, lnc, b, s, h)
    same(y, ref(t(x), t(gamma), None)["out"], 2e-5)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_norms_tkg_sharded_on_the_hidden_dimension(kind):
    kernel = take(f"core.subkernels.{kind}_tkg", f"{kind}_tkg")
    ref = take(f"core.subkernels.{kind}_torch", f"{kind}_tkg_torch_ref")
    x, gamma, y = _norm(kernel, 2, 1, 5, 1024, shard_on_h=True)
    same(y, ref(t(x), t(gamma), None)["out"], 2e-5)


@pytest.mark.parametrize(("lnc", "n", "c", "width", "taps", "stride", "pad"), [
    (1, 1, 16, 128, 7, 1, 0), (2, 2, 70, 300, 64, 1, 10), (2, 1, 16, 256, 200, 2, 10)])  # fmt: skip
def test_depthwise_conv1d(lnc, n, c, width, taps, stride, pad):
    kernel = take("experimental.conv.depthwise_conv1d", "depthwise_conv1d_implicit_gemm")
    img, taps_ = data(1, n, c, 1, width), data(2, c, 1, 1, taps)
    y = at(kernel, lnc)(
        img, taps_, padding=((0, 0), (pad, pad)), stride=(1, stride), rhs_dilation=(1, 1), lhs_dilation=(1, 1),
        feature_group_count=c, batch_group_count=1,
    )  # fmt: skip
    want = torch.nn.functional.conv2d(t(img), t(taps_), stride=(1, stride), padding=(0, pad), groups=c)
    same(y, want, 1e-4)


@pytest.mark.parametrize(("lnc", "positions", "vocab", "per_batch", "chunk"), [
    (2, 64, 4096, 32, 2048), (2, 64, 5000, 16, 2048)])  # fmt: skip
def test_cross_entropy(lnc, positions, vocab, per_batch, chunk):
    forward, backward = take("experimental.loss.cross_entropy", "cross_entropy_forward", "cross_entropy_backward")
    fref, bref = take(
        "experimental.loss.cross_entropy_torch", "cross_entropy_forward_torch_ref", "cross_entropy_backward_torch_ref"
    )
    logits = data(1, positions, vocab, scale=3.0)
    targets = np.random.default_rng(2).integers(0, vocab, positions).astype(np.int32)
    options = {"positions_per_batch": per_batch, "chunk_size": chunk, "dtype": nl.float32}
    loss, lse = at(forward, lnc)(logits, targets, **options)
    want_loss, want_lse = fref(t(logits), torch.from_numpy(targets).long())
    same(loss, want_loss, 1e-5)
    same(lse, want_lse, 1e-5)
    want = bref(t(logits), torch.from_numpy(targets).long(), reduction="mean")
    grad = at(backward, lnc)(logits.copy(), targets, lse, reduction="mean", inplace=False, **options)
    same(grad, want, 1e-4)


def _rms_quant_reference(x: np.ndarray, gamma: np.ndarray, eps: float, norm: bool) -> tuple[np.ndarray, np.ndarray]:
    y = x.astype(np.float64)
    if norm:
        y = y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + eps) * gamma
    scale = np.abs(y).max(axis=-1, keepdims=True) / 240.0
    return y, scale


@pytest.mark.parametrize(("lnc", "b", "s", "h", "norm"), [
    (1, 1, 128, 512, True), (2, 1, 300, 1024, True), (2, 2, 77, 2048, False)])  # fmt: skip
def test_rmsnorm_quant(lnc, b, s, h, norm):
    kernel, make = take("core.rmsnorm.rmsnorm_quant", "rmsnorm_quant_kernel", "RmsNormQuantKernelArgs")
    norms, quants = take("core.utils.common_types", "NormType", "QuantizationType")
    args = make(
        lower_bound=0.0, norm_type=norms.RMS_NORM if norm else norms.NO_NORM, quantization_type=quants.ROW, eps=1e-6
    )
    x, gamma = data(1, b, s, h, dtype=BF16), data(2, h, dtype=BF16)
    out = np.asarray(at(kernel, lnc)(x, gamma, args))
    want, want_scale = _rms_quant_reference(x, gamma.astype(np.float64), 1e-6, norm)
    scale = np.ascontiguousarray(out[..., h:]).view(np.float32)
    same(scale, want_scale, 1e-2)
    same(out[..., :h].astype(np.float32) * scale, want, 0.07)


@pytest.mark.parametrize(("lnc", "b", "cin", "cout", "length", "taps", "stride", "pad", "dilation", "act"), [
    (1, 1, 128, 128, 256, 3, 1, (1, 1), 1, None), (2, 1, 200, 130, 700, 5, 2, (2, 1), 2, "SiLU")])  # fmt: skip
def test_conv1d(lnc, b, cin, cout, length, taps, stride, pad, dilation, act):
    kernel, ref = take("experimental.conv.conv1d", "conv1d"), take("experimental.conv.conv1d_torch", "conv1d_torch_ref")
    fn = getattr(take("core.utils.common_types", "ActFnType"), act) if act else None
    x, w, bias = data(1, b, cin, length), data(2, taps, cin, cout, scale=0.05), data(3, cout)
    options = {"stride": stride, "padding": pad, "dilation": dilation, "activation_fn": fn}
    y = at(kernel, lnc)(x, w, bias, lnc_shard=lnc == 2, **options)
    same(y, ref(t(x), t(w), t(bias), **options)["out"], 1e-4)


@pytest.mark.parametrize(("lnc", "rows", "vocab"), [(1, 1, 4096), (2, 4, 3168), (2, 7, 12000)])
def test_cascaded_max(lnc, rows, vocab):
    x = data(1, rows, vocab)
    values, places = at(take("core.max.cascaded_max", "cascaded_max"), lnc)(x)
    same(values, x.max(axis=-1), 0)
    np.testing.assert_array_equal(np.asarray(places).ravel(), x.argmax(axis=-1))


@pytest.mark.parametrize(("tokens", "columns", "chunk", "start", "count"), [
    (256, 16, None, None, None), (1024, 6, 512, None, None), (512, 16, None, 4, 8)])  # fmt: skip
def test_find_nonzero_indices(tokens, columns, chunk, start, count):
    kernel = take("core.subkernels.find_nonzero_indices", "find_nonzero_indices")
    ref = take("core.subkernels.find_nonzero_indices_torch", "find_nonzero_indices_torch_ref")
    x = (np.random.default_rng(1).random((tokens, columns)) < 0.3).astype(np.float32)
    first = None if start is None else np.array([start], dtype=np.int32)
    want = ref(t(x), t(first), count, chunk)
    indices, counts = at(kernel, 2)(x, col_start_id=first, n_cols=count, chunk_size=chunk)
    np.testing.assert_array_equal(indices, want["indices"].numpy())
    np.testing.assert_array_equal(np.asarray(counts).ravel(), want["nonzero_counts"].numpy())


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


# Folders of the library's own suite, and how many of its "fast" cases run there at least.
SUITE = {
    "core/subkernels/test_indexed_flatten.py": 5,
    "core/utils/test_tp_broadcast.py": 4,
    "core/qkv/test_qkv_tkg.py": 5,
    "core/qkv/test_qkv_cte.py": 15,
}


@pytest.mark.parametrize("path", SUITE)
def test_the_librarys_own_suite(path, tmp_path):
    """With its own parameters, references and tolerances; see test/support/nki_library_suite.py."""
    root, repository = Path(str(SRC)).parents[1], Path(__file__).parents[3]
    if not (root / "test" / "pytest.ini").is_file():
        pytest.skip(f"{root} has no test suite")
    folders = [repository / "test" / "support", repository, root / "src", Path(str(SRC)), root]
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "nki_library_suite", "-p", "no:cacheprovider",
        "-c", str(root / "test" / "pytest.ini"), "--rootdir", str(root), "--test-mode", "simulation",
        "--platform-target", "trn2", "--output-directory", str(tmp_path), "-o", f"log_file={tmp_path}/log.txt",
        "-o", f"artifacts_dir={tmp_path}", "-m", "fast", "--seconds", "60", f"test/integration/nkilib/{path}",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    summary = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", summary)
    assert passed, summary
    assert int(passed[1]) >= SUITE[path], summary
