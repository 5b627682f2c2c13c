"""The streaming measure against a direct computation over all logits at once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3_5ForConditionalGeneration

from qwen36_cli import app
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.quality import QualityMeter, compare
from qwen36_neuron.runtime import RuntimeConfig, open_runtime


def logits(seed: int, positions: int, vocab: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    reference = 4.0 * torch.randn(positions, vocab, generator=random, dtype=torch.float64)
    candidate = reference + noise * torch.randn(positions, vocab, generator=random, dtype=torch.float64)
    return reference, candidate, torch.randint(0, vocab, (positions,), generator=random)


@pytest.mark.parametrize("noise", [1e-4, 0.1, 3.0])
@pytest.mark.parametrize("sizes", [[500], [1, 499], [100] * 5])
def test_streamed_equals_direct(noise: float, sizes: list[int]) -> None:
    reference, candidate, targets = logits(1, 500, 60, noise)
    meter = QualityMeter(k=5)
    for a, b, t in zip(reference.split(sizes), candidate.split(sizes), targets.split(sizes), strict=True):
        meter.add(a, b, t)
    made = meter.result()

    p, q = reference.softmax(-1), candidate.softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    ordered = kl.sort().values
    assert made.tokens == 500
    assert made.kl_mean == pytest.approx(float(kl.mean()), rel=1e-6)
    assert made.kl_max == pytest.approx(float(kl.max()), rel=1e-6)
    assert made.kl_median == pytest.approx(float(ordered[249]), rel=0.012)
    assert made.kl_p90 == pytest.approx(float(ordered[449]), rel=0.012)
    assert made.top1_agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    shared = [
        len(set(a.tolist()) & set(b.tolist())) / 5 for a, b in zip(p.topk(5).indices, q.topk(5).indices, strict=True)
    ]
    assert made.coverage == pytest.approx(sum(shared) / 500)
    rows = torch.arange(500)
    assert made.reference_perplexity == pytest.approx(math.exp(-p[rows, targets].log().mean()))
    assert made.candidate_perplexity == pytest.approx(math.exp(-q[rows, targets].log().mean()))


def test_the_same_model_is_no_distance_away() -> None:
    reference, _, targets = logits(2, 50, 30, 0.0)
    meter = QualityMeter()
    meter.add(reference.bfloat16(), reference.bfloat16(), targets)
    made = meter.result()
    assert (made.kl_mean, made.kl_median, made.kl_p90, made.kl_max) == (0.0, 0.0, 0.0, 0.0)
    assert (made.top1_agreement, made.coverage) == (1.0, 1.0)


def test_a_token_that_neither_can_give_adds_nothing() -> None:
    reference = torch.tensor([[0.0, 1.0, -torch.inf]])
    meter = QualityMeter(k=2)
    meter.add(reference, reference, torch.tensor([1]))
    assert meter.result().kl_max == 0.0
    meter.add(torch.tensor([[0.0, 1.0, 2.0]]), reference, torch.tensor([1]))
    assert meter.result().kl_max == math.inf


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="text"):
        QualityMeter().result()
    with pytest.raises(ConfigError, match="candidate"):
        QualityMeter().add(torch.zeros(2, 5), torch.zeros(2, 6), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="k"):
        QualityMeter(k=0)


@pytest.mark.parametrize(("length", "window"), [(200, 200), (200, 96), (193, 96), (65, 64)])
def test_windows_and_chunks_give_every_position_once(tiny_checkpoint: Path, length: int, window: int) -> None:
    tokens = torch.randint(0, 4096, (length,), generator=torch.Generator().manual_seed(3)).tolist()
    runtimes = [
        open_runtime(RuntimeConfig(tiny_checkpoint, max_model_len=256, num_blocks=5, num_lanes=1, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    ]
    meter = QualityMeter()
    done = list(compare(*runtimes, tokens, meter, window, chunk=40))
    made = meter.result()

    model = Qwen3_5ForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    losses = []
    for first in range(0, length - 1, window):
        part = torch.tensor(tokens[first : first + window])
        with torch.no_grad():
            predicted = model(input_ids=part[None]).logits[0, :-1].log_softmax(-1)
        losses.append(-predicted.gather(-1, part[1:, None]).squeeze(-1))
    loss = torch.cat(losses)
    assert made.tokens == len(loss)
    assert made.reference_perplexity == pytest.approx(math.exp(loss.mean()), rel=1e-4)
    assert 0 < made.kl_mean < 0.1
    assert done[-1] in (length, length - 1)


def test_command(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The train leaves at nine and the lake is cold. " * 12)
    options = ["compare", "--reference", str(tiny_checkpoint), "--candidate", str(tiny_checkpoint), "--text", str(text)]
    with pytest.raises(SystemExit) as ended:
        app([*options, "--candidate-dtype", "bfloat16", "--window", "64", "--chunk", "32", "--json"])
    assert not ended.value.code
    made = json.loads(capsys.readouterr().out)
    count = len(AutoTokenizer.from_pretrained(tiny_checkpoint)(text.read_text())["input_ids"])
    windows = [min(64, left) for left in range(count, 0, -64)]
    assert made["tokens"] == sum(n - 1 for n in windows)
    assert 0 < made["kl_mean"] < 0.1
