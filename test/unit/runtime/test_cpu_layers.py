"""The layouts of a projection's weight all give the product."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from qwen36_neuron.ops import dense
from qwen36_neuron.ops.dense import linear, prefers_mkl
from qwen36_neuron.runtime import cpu_layers
from qwen36_neuron.runtime.cpu_layers import CpuLayers, arrange_layers
from qwen36_neuron.runtime.cpu_memory import keep_freed_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mkl", [True, False])
def test_every_layout_is_the_same_product(mkl: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layers, "prefers_mkl", lambda: mkl)
    layer = CpuLayers().column(48, 80)
    weight = torch.randn(80, 48).to(dtype)
    layer.load_state_dict({"weight": weight}, assign=True)
    arrange_layers(layer)
    for shape in ((1, 1, 48), (3, 7, 48)):
        x = torch.randn(shape).to(dtype)
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, weight), **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_as_they_are_where_the_processor_has_no_instructions_for_them(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN refuses to pack them there."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    layer = CpuLayers().column(48, 80)
    weight = torch.randn(80, 48).to(dtype)
    layer.load_state_dict({"weight": weight}, assign=True)
    arrange_layers(layer)
    x = torch.randn(3, 48).to(dtype)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, weight))


@pytest.mark.parametrize("mkl", [True, False])
def test_a_weight_as_it_was_loaded(mkl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is part of a larger one."""
    monkeypatch.setattr(dense, "prefers_mkl", lambda: mkl)
    weight = torch.randn(80, 48)
    for part in (weight, weight[16:40]):
        for shape in ((1, 1, 48), (3, 7, 48)):
            x = torch.randn(shape)
            torch.testing.assert_close(linear(x, part), x @ part.t(), rtol=1e-5, atol=1e-5)


def test_a_tied_embedding_keeps_its_own_layout() -> None:
    weight = torch.randn(32, 16)
    layers = CpuLayers()
    embedding, head = layers.embedding(32, 16), layers.head(16, 32)
    for module in (embedding, head):
        module.load_state_dict({"weight": weight}, assign=True)
    arrange_layers(torch.nn.ModuleList((embedding, head)))
    assert torch.equal(embedding(torch.tensor([3])), weight[3:4])


def test_the_processor_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for vendor, expected in (("GenuineIntel", torch.backends.mkl.is_available()), ("AuthenticAMD", False)):
        info = tmp_path / vendor
        info.write_text(f"processor : 0\nvendor_id : {vendor}\n")
        monkeypatch.setattr(dense, "CPUINFO", info)
        prefers_mkl.cache_clear()
        assert prefers_mkl() is expected
    monkeypatch.setattr(dense, "CPUINFO", tmp_path / "missing")
    prefers_mkl.cache_clear()
    assert not prefers_mkl()
    prefers_mkl.cache_clear()


def test_the_allocator_says_whether_it_took_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # a C library without mallopt
    assert keep_freed_memory() is False
