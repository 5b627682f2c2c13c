"""Training rows: the same whatever asks for them, as long as they should be, and with answers that can be learned."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwen36_lab.demo import recall
from qwen36_lab.demo.evaluation import ANSWER_ROOM, recall_probes
from qwen36_lab.demo.mixture import CONTEXT_WEIGHT, Rows, Shares
from qwen36_lab.demo.training import TrainingConfig
from qwen36_neuron.checkpoint.names import mtp_shapes, text_shapes
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

ROOT = Path(__file__).parents[4]
CHECKPOINT = ROOT / "assets" / "demo-checkpoint"
CONFIG = ROOT / "scripts" / "train_demo.yaml"
SHARES = Shares(0.5, 0.2, 0.3, 0.1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def test_a_batch_depends_on_its_number_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    rows, again = (Rows(tokenizer, SHARES, 4, 256, 10, "seed") for _ in range(2))
    expected = rows[3]
    _ = again[0]
    for one, other in zip(expected, again[3], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(expected[0], rows[4][0])


def test_rows_are_filled_and_weighted(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens, weights = Rows(tokenizer, SHARES, 16, 512, 1, "seed")[0]
    assert tokens.shape == weights.shape == (16, 513)
    assert weights.unique().tolist() == pytest.approx([0.0, CONTEXT_WEIGHT, 1.0])
    padding = weights == 0
    assert (tokens[padding] == tokenizer.pad_token_id).all()
    assert (~padding).float().mean() > 0.8
    assert (weights == 1.0).any(dim=1).all()


@pytest.mark.parametrize("seed", range(20))
def test_every_fact_is_in_its_text_once(seed: int) -> None:
    random = Random(seed)
    for made in (recall.scattered(random, 4000), recall.entries(random, 4000)):
        assert made.facts
        for fact in made.facts:
            assert fact.value in fact.answer
            if fact.statement:
                assert made.text.count(fact.statement) == 1
        assert len({fact.key for fact in made.facts}) == len(made.facts)


@pytest.mark.parametrize("kind", ["needle", "table"])
def test_probes_fit_their_length_and_hold_their_answer(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    depths = [0.0, 0.5, 1.0]
    probes = list(recall_probes(tokenizer, kind, 1024, depths, 2, seed=1))
    assert [probe.depth for probe in probes] == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    for probe in probes:
        assert 700 < len(probe.prompt(tokenizer)) <= 1024 - ANSWER_ROOM
        text = probe.turn.said
        places = [found.start() / len(text) for found in re.finditer(re.escape(probe.value), text)]
        assert min(abs(place - probe.depth) for place in places) < 0.25
        assert len(probe.reply(tokenizer)) <= ANSWER_ROOM


def test_committed_run_describes_the_committed_checkpoint(tokenizer: PreTrainedTokenizerBase) -> None:
    run, model = TrainingConfig.read(CONFIG), ModelConfig.from_pretrained(CHECKPOINT)
    assert len(tokenizer) == model.vocab_size == run.model["vocab_size"]
    assert (model.hidden_size, model.num_layers) == (run.model["hidden_size"], run.model["num_layers"])
    assert model.key_head_dim == model.value_head_dim == 128
    assert model.head_dim == 256
    assert mtp_shapes(model)
    assert text_shapes(model)
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 25e6


def test_learning_rate_rises_holds_and_falls_to_zero() -> None:
    run = TrainingConfig.read(CONFIG)
    assert run.rate(0) == 1 / run.warm_up
    assert run.rate(run.warm_up) == run.rate(run.steps // 2) == 1.0
    assert 0 < run.rate(run.steps - 1) < 0.01


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.read_text() + "\nlearning_rate: 1\n")
    with pytest.raises(ConfigError, match="config"):
        TrainingConfig.read(file)
