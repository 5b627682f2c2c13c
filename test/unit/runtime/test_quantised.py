"""Quantised checkpoints on a CPU against transformers in fp32, which runs the same numbers multiplied out.

Tolerance: 5e-5 on logits of about one, as between the plain and the fused runtime: both sides carry their roundings
through the layers and the states.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen3_5ForConditionalGeneration

pytest.importorskip("compressed_tensors")

from quantised import FORMS, Made, maker

from qwen36_neuron.runtime import DraftRequest, Output, Row, Runtime, RuntimeConfig, Step, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime

TOLERANCE = 5e-5
TOKENS = torch.randint(0, 4000, (150,), generator=torch.Generator().manual_seed(0)).tolist()
CUTS = (100, 40, *[1] * 10)
"""Prefill by a matrix library, prefill by panels, decode."""

SINGLE = 24


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    return maker(tiny_checkpoint, tmp_path_factory)


def opened(folder: Path, kernels: str | None, **more: int) -> Runtime:
    sizes = {"max_model_len": 256, "num_blocks": 9, "num_lanes": 1, **more}
    return open_runtime(RuntimeConfig(model=folder, kernels=kernels, **sizes))  # type: ignore[arg-type]


def served(folder: Path, kernels: str | None = "torch") -> torch.Tensor:
    """Logits after every token, of our runtime."""
    run, start, parts = opened(folder, kernels), 0, []
    for length in CUTS:
        row = Row("test", 1, TOKENS[start : start + length], start, range(1, 5), output=Output.ALL_LOGITS)
        logits = run.run(Step((row,))).rows[0].logits
        assert logits is not None
        parts.append(logits)
        start += length
    return torch.cat(parts)


def alone(folder: Path, kernels: str | None = "torch") -> torch.Tensor:
    """Logits after each token as the only one of its sequence."""
    run, parts = opened(folder, kernels), []
    for token in TOKENS[:SINGLE]:
        logits = run.run(Step((Row("test", 1, [token], 0, [1], output=Output.LOGITS),))).rows[0].logits
        assert logits is not None
        run.run(Step((), released_lanes=(1,)))
        parts.append(logits)
    return torch.cat(parts)


def rounded(module: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """8 bits a token, symmetric, written out."""
    scale = (arguments[0].abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (torch.clamp(torch.round(arguments[0] / scale), -128, 127) * scale,)


@pytest.mark.parametrize("kernels", ["torch", "fused"])
@pytest.mark.parametrize("name", [name for name in FORMS if name != "w8a8"])
def test_logits_are_those_of_transformers(name: str, kernels: str, made: Callable[[str], Made]) -> None:
    if kernels == "fused":
        pytest.importorskip("numba")
    model = Qwen3_5ForConditionalGeneration.from_pretrained(made(name).plain, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0]
    assert (served(made(name).folder, kernels) - expected).abs().max() <= TOLERANCE


def test_inputs_of_w8a8_are_rounded_as_vllm_rounds_them(made: Callable[[str], Made]) -> None:
    """Sequences of one token: where an input falls to the other side of half a step, by the last bit of what went
    before, all that follows is another result. That is about one in a million: most sequences have none.
    """
    model = Qwen3_5ForConditionalGeneration.from_pretrained(made("w8a8").plain, dtype=torch.float32).eval()
    for path, module in model.model.language_model.named_modules():
        if isinstance(module, nn.Linear) and not path.endswith(("in_proj_a", "in_proj_b")):
            module.register_forward_pre_hook(rounded)
    with torch.inference_mode():
        expected = torch.cat([model(torch.tensor([[token]])).logits[0] for token in TOKENS[:SINGLE]])
    found, plain = (alone(folder) for folder in (made("w8a8").folder, made("w8a8").plain))
    close, far = ((each - expected).abs().amax(1) for each in (found, plain))
    assert (close <= TOLERANCE).float().mean() >= 0.75
    assert (far > 100 * TOLERANCE).all(), "rounding makes no difference"


@pytest.mark.parametrize("kernels", ["fused", pytest.param("interpreter", marks=pytest.mark.interpreter)])
def test_w8a8_on_other_kernels(kernels: str, made: Callable[[str], Made]) -> None:
    if kernels == "fused":
        pytest.importorskip("numba")
    folder = made("w8a8").folder
    difference = (alone(folder, kernels) - alone(folder, "torch")).abs().amax(1)
    assert (difference <= TOLERANCE).float().mean() >= 0.75


@pytest.mark.parametrize("name", ["w8a16 channels", "block fp8 and vocabulary"])
def test_drafts_of_a_quantised_checkpoint(name: str, made: Callable[[str], Made]) -> None:
    """The draft layer lies there in plain numbers, and shares a quantised embedding and head."""
    pytest.importorskip("numba")
    drafts = []
    for kernels in ("torch", "fused"):
        run = opened(made(name).folder, kernels, max_drafts=3, max_proposals=3)
        first = run.run(Step((Row("test", 1, TOKENS[:70], 0, range(1, 5)),))).rows[0].tokens
        drafts.append((first, run.draft([DraftRequest("test", 1, first, range(1, 5), 3)])))
    assert drafts[0] == drafts[1]
    assert len(drafts[0][1][0]) == 3


def test_weights_stay_in_their_codes(made: Callable[[str], Made]) -> None:
    """A byte a number and a scale for 128 of them, bfloat16 of what is not quantised: nothing lies there twice."""
    pytest.importorskip("numba")
    from qwen36_neuron.runtime.held import held_bytes

    run = opened(made("block fp8 and vocabulary").folder, "fused")
    assert isinstance(run, CpuRuntime)
    numbers = run.config.model_config().num_parameters()
    assert 1.0 < held_bytes(run.model) / numbers < 1.06
    assert not any(parameter.ndim == 2 and parameter.numel() > 10_000 for parameter in run.model.parameters())
