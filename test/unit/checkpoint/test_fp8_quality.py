"""The figures of the FP8 quality report against their definitions."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from qwen36_neuron.errors import ConfigError

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "fp8_quality.py"


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fp8_quality", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_divergence_and_agreement_of_known_distributions(quality: ModuleType) -> None:
    reference = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.4, 0.4001]]]).log()
    other = torch.tensor([[[0.25, 0.5, 0.25], [0.2, 0.4, 0.4001]]]).log() + 3.0  # a constant changes nothing
    found = quality.compare(reference, other)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert found["kl_max"] == pytest.approx(expected, rel=1e-4)
    assert found["kl_mean"] == pytest.approx(expected / 2, rel=1e-4)
    assert found["top1_agreement"] == 0.5
    assert quality.entropy(torch.zeros(1, 1, 8)) == pytest.approx(math.log(8))


def test_the_same_logits_do_not_differ(quality: ModuleType) -> None:
    logits = torch.randn(2, 5, 11)
    found = quality.compare(logits, logits)
    assert (found["kl_max"], found["top1_agreement"], found["relative_logit_error"]) == (0.0, 1.0, 0.0)


def test_logits_of_sequences_do_not_depend_on_those_before_them(quality: ModuleType, tiny_checkpoint: Path) -> None:
    tokens = torch.randint(0, 1000, (2, 70), generator=torch.Generator().manual_seed(0))
    both, second = quality.all_logits(tiny_checkpoint, tokens), quality.all_logits(tiny_checkpoint, tokens[1:])
    assert torch.equal(both[1], second[0])


def test_halving_loses_nothing_that_shows_and_rescaling_blocks_does(quality: ModuleType, tiny_checkpoint: Path) -> None:
    found = quality.scale_layouts(tiny_checkpoint)
    assert found["halved block"] == pytest.approx(found["published block"], abs=0.01)
    assert found["block, then channel"] < found["published block"] - 2
    assert found["channel"] == pytest.approx(found["published block"], abs=0.5)


def test_a_text_of_ones_own_is_cut_into_sequences_or_refused(
    quality: ModuleType, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("count from one to ten, and back again. " * 200, encoding="utf-8")
    found = quality.text(tiny_checkpoint, 2, file)
    assert found.shape == (2, quality.SEQUENCE)
    assert torch.equal(found[:1], quality.text(tiny_checkpoint, 1, file))
    with pytest.raises(ConfigError, match="sequences"):
        quality.text(tiny_checkpoint, 1000, file)
