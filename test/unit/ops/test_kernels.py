"""Which form of the operations is chosen, and what a form refuses."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from shapes import CONFIG

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.ops.kernels import check_choice, check_shapes, check_tokens, open_kernels


@pytest.mark.parametrize(
    ("choice", "device", "problem"),
    [
        ("nki", "cpu", "does not run on device=cpu. Use one of: torch, fused, interpreter"),
        ("interpreter", "neuron", "does not run on device=neuron. Use one of: torch, nki, fused"),
        ("triton", "cpu", "is not known. Use one of: torch, fused, interpreter"),
    ],
)
def test_a_choice_that_does_not_run_there_is_refused(choice: str, device: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_choice(choice, device)
    assert str(caught.value) == f"kernels={choice!r}: {problem}."


@pytest.mark.interpreter
def test_the_interpreter_is_refused_where_the_real_nki_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen36_neuron.ops.nki_kernels import NkiKernels

    monkeypatch.setitem(sys.modules, "nki", ModuleType("nki"))
    with pytest.raises(ConfigError, match=r"kernels='interpreter'.*Use kernels=torch"):
        open_kernels("interpreter", 1)
    assert isinstance(open_kernels("nki", 2), NkiKernels)


@pytest.mark.interpreter
@pytest.mark.parametrize("by_dma", [True, False])
def test_attention_of_prompts_is_told_who_transposes(by_dma: bool) -> None:
    from qwen36_neuron.ops.attention.nki import paged_attention_nki

    asked: list[dict[str, Any]] = []

    def launch(kernel: Any, *tensors: Any, **constants: Any) -> Any:
        asked.append(constants)
        return tensors[0]

    kernels: Any = open_kernels("interpreter", 1, by_dma)
    x, table, held = torch.zeros(1, 128, 2, 256), torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 1)
    paged_attention_nki(launch, x, x, x, (x, x), table, held, kernels.dma_transposes)
    assert asked == [{"turns_by_dma": by_dma, "begin": 0}]


def test_sizes_that_the_kernels_do_not_take_are_all_named() -> None:
    small = ModelConfig.from_dict(CONFIG)
    check_shapes("torch", small)
    with pytest.raises(ConfigError, match=r"kernels='interpreter'.*Use kernels=torch") as caught:
        check_shapes("interpreter", small)
    for part in ("linear_key_head_dim is 64", "linear_value_head_dim is 64", "head_dim is 64, must be 256"):
        assert part in str(caught.value)


def test_heads_that_two_cores_cannot_share_are_named(published_27b) -> None:
    big = ModelConfig.from_dict(published_27b)
    check_shapes("nki", big, tp=4, cores=2)
    check_shapes("nki", big, tp=8, cores=1)
    check_shapes("nki", big, tp=4, cores=2, mlp=True)
    with pytest.raises(ConfigError, match="2176 intermediate channels a rank must be a multiple of 256"):
        check_shapes("nki", big, tp=8, cores=2, mlp=True)
    published_27b["text_config"] |= {"linear_num_key_heads": 4, "linear_num_value_heads": 12}
    with pytest.raises(ConfigError, match="1 DeltaNet key heads a rank must be a multiple of 2 on 2 physical cores"):
        check_shapes("nki", ModelConfig.from_dict(published_27b), tp=4, cores=2)


def test_more_drafts_than_a_launch_takes_of_one_row_are_refused(published_27b) -> None:
    big = ModelConfig.from_dict(published_27b)
    check_shapes("nki", big, tp=4, cores=2, drafts=41)
    check_shapes("torch", big, tp=4, cores=2, drafts=42)
    with pytest.raises(ConfigError, match="42 drafts a row are more than the 41 of 6 value heads a core"):
        check_shapes("nki", big, tp=4, cores=2, drafts=42)
    with pytest.raises(ConfigError, match="21 drafts a row are more than the 20 of 12 value heads a core"):
        check_shapes("interpreter", big, tp=4, cores=1, drafts=21)


def test_numbers_of_tokens_that_the_kernels_do_not_take_are_named() -> None:
    check_tokens("nki", [64, 128, 512, 1024])
    check_tokens("torch", [192])
    with pytest.raises(ConfigError, match=r"prefill_buckets=\[192, 320\].*multiple of 128"):
        check_tokens("nki", [128, 192, 320])
