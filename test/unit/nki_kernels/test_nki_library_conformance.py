"""Kernels written by others, run unchanged: aws-neuron/nki-library against its own torch references.

Set NKI_LIBRARY_SRC to the library's ``src/nkilib_src`` folder to run this; nothing of it is kept here. Each kernel runs
at two or more sizes, one with a partial tile, and on two cores where it has a two-core form.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nki.collectives as ncc
import nki.language as nl
import numpy as np
import pytest
import torch
from nki_library_runs import ABSENT, BF16, SRC, at, data, library, same, t, take  # noqa: F401

from nki_kernels.interpreter import ranks

pytestmark = ABSENT


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
    pytest.importorskip("allpairspy", reason="the library's suite makes its cases with it")
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


@pytest.mark.parametrize(("kernel", "lnc", "rows"), [
    ("allgather_sb2sb", 0, 128), ("allgather_sb2sb", 2, 96), ("allgather_sb2sb_tiled", 2, 256)])  # fmt: skip
def test_all_gather_over_ranks(kernel, lnc, rows):
    run = take("experimental.collectives.sb2sb_allgather", kernel)
    xs = [data(r, rows, 48) for r in range(4)]
    group = ncc.ReplicaGroup([[0, 1, 2, 3]])
    for y in ranks(at(run, lnc))(*[(x, group, 4) for x in xs]):
        np.testing.assert_array_equal(y, np.concatenate(xs, axis=1))
