"""Drafts verified by the graphs, against the CPU runtime, whose rows have none."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.buckets import Buckets
from qwen36_neuron.runtime import Commit, Output, Row, RowResult, Sampling, Step
from qwen36_neuron.runtime.neuron import NeuronRuntime

from .support import BLOCKS, TOLERANCE, logits, neuron, snapshot

MOST = 4
WHERE = {lane: range(1 + 8 * (lane - 1), 1 + 8 * lane) for lane in (1, 2, 3, 4)}
BUCKETS = Buckets.grid((128,), (512,), (256, 512))


@pytest.fixture
def load_verifying(load: Callable[..., Any]) -> Callable[..., Any]:
    """A container whose graphs verify drafts."""
    return lambda **changes: load(**({"max_drafts": MOST, "decode_rows": (1,), "buckets": BUCKETS} | changes))


def verifying(container: Any) -> NeuronRuntime:
    return neuron(container, max_drafts=container.app.options.max_drafts)


@pytest.fixture
def drawing_cpu(tiny_checkpoint: Any) -> Any:
    from qwen36_neuron.runtime import RuntimeConfig, open_runtime

    sizes = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}
    return open_runtime(RuntimeConfig(tiny_checkpoint, kernels="torch", sampling_candidates=256, **sizes))


def number(lane: int, position: int) -> float:
    """What the token at a position is drawn by."""
    return random.Random(1000 * lane + position).random()


def sampling(lane: int, position: int, drafts: int) -> Sampling | None:
    """Lanes of odd number draw."""
    if lane % 2 == 0:
        return None
    later = tuple(number(lane, position + 1 + place) for place in range(drafts))
    return Sampling(1.0, number(lane, position), top_k=20, later=later)


@dataclass(slots=True)
class Sequence:
    """A running request: the tokens given so far, how many the lane holds, and those that will follow."""

    text: list[int]
    held: int
    coming: list[int]
    restore: int | None = None


@dataclass(slots=True)
class Drafting:
    """Traffic whose rows have drafts, right and wrong ones, of what the CPU runtime says without any.

    A lane's checkpoint, of its first block, is in the slot of its number until another prompt takes its blocks.
    """

    cpu: Any
    running: dict[int, Sequence] = field(default_factory=dict)
    kept: dict[int, list[int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    random: random.Random = field(default_factory=lambda: random.Random(3))

    def step(self) -> Step:
        ended = [lane for lane, sequence in self.running.items() if not sequence.coming]
        for lane in ended:
            del self.running[lane]
        for lane in WHERE:
            if lane not in self.running and self.random.random() < 0.5:
                self.running[lane] = self._begin(lane)
        rows = [self._row(lane, sequence) for lane, sequence in self.running.items() if self._runs(sequence)]
        return Step(tuple(rows), tuple(ended))

    def take(self, step: Step, results: tuple[RowResult, ...]) -> None:
        """Compare, and go on with what was confirmed."""
        for row, result in zip(step.rows, results, strict=True):
            sequence, found = self.running[row.lane], list(result.tokens)
            assert found == sequence.coming[: len(found)], row
            sequence.coming, sequence.restore = sequence.coming[len(found) :], None
            sequence.text += found
            sequence.held = len(sequence.text) - 1
            self.counts["right"] += len(found) - 1
            self.counts["rejected"] += len(row.drafts) - len(found) + 1

    def _begin(self, lane: int) -> Sequence:
        kept = self.kept.get(lane)
        warm = kept is not None and self.random.random() < 0.7
        count = self.random.choice([1, 2, 5] if warm else [1, 2, 30, 60, 62, 63, 64, 65, 127, 140])
        prompt = [*(kept if warm and kept else []), *(self.random.randrange(4000) for _ in range(count))]
        if not warm:
            self.kept.pop(lane, None)
        self.counts["restores" if warm else "fresh"] += 1
        coming = self._follow(lane, prompt, self.random.randint(4, 40))
        return Sequence(prompt, 64 if warm else 0, coming, lane if warm else None)

    def _runs(self, sequence: Sequence) -> bool:
        """Not every one in every step; a new one at once."""
        return sequence.held in (0, 64) or self.random.random() < 0.8

    def _row(self, lane: int, sequence: Sequence) -> Row:
        most = min(MOST, len(sequence.coming) - 1)
        count = self.random.choice([0, most, self.random.randint(0, most)])
        drafts = tuple((token + (self.random.random() < 0.3)) % 4000 for token in sequence.coming[:count])
        commits: tuple[Commit, ...] = ()
        if lane not in self.kept and len(sequence.text) >= 64:
            commits, self.kept[lane] = (Commit(64, lane),), sequence.text[:64]
            self.counts["commits"] += 1
        tokens, how = sequence.text[sequence.held :], sampling(lane, len(sequence.text), len(drafts))
        return Row(
            str(lane), lane, tokens, sequence.held, WHERE[lane], sequence.restore, commits, sampling=how, drafts=drafts
        )

    def _follow(self, lane: int, prompt: list[int], count: int) -> list[int]:
        """The tokens after a prompt by rows without drafts."""
        text, start = list(prompt), 0
        while len(text) < len(prompt) + count:
            row = Row("cpu", lane, text[start:], start, WHERE[lane], sampling=sampling(lane, len(text), 0))
            start = len(text)
            text += self.cpu.run(Step((row,))).rows[0].tokens
        self.cpu.run(Step((), released_lanes=(lane,)))
        return text[len(prompt) :]


@pytest.mark.parametrize("kernels", ["torch", pytest.param("nki", marks=pytest.mark.interpreter)])
def test_200_steps_with_drafts_give_the_tokens_of_steps_without(
    load_verifying: Callable[..., Any], drawing_cpu: Any, kernels: str
) -> None:
    """Any number of drafts a row, beside rows without, prompts, dummy rows, checkpoints taken and restored."""
    container = load_verifying(kernels=kernels, logical_cores=1)
    runtime, traffic = verifying(container), Drafting(drawing_cpu)
    runtime.warm_up()
    assert set(container.calls) == {(w.tag, i) for w, i in container.routes.values()}
    for _ in range(200):
        step = traffic.step()
        traffic.take(step, runtime.run(step).rows)
    print(dict(traffic.counts))
    assert traffic.counts["right"] >= 200
    assert traffic.counts["rejected"] >= 100
    assert traffic.counts["commits"] >= 5
    assert traffic.counts["restores"] >= 5


def test_logits_are_of_the_last_token_and_of_every_draft(
    load_verifying: Callable[..., Any], cpu: Any, tokens: list[int]
) -> None:
    runtime = verifying(load_verifying())
    runtime.run(Step((Row("a", 1, tokens[:70], 0, BLOCKS, output=Output.NOTHING),)))
    row = Row("a", 1, tokens[70:71], 70, BLOCKS, output=Output.LOGITS, drafts=tuple(tokens[71:74]))
    actual = logits(runtime, row)
    expected = logits(cpu, Row("b", 2, tokens[:74], 0, BLOCKS, output=Output.ALL_LOGITS))[70:]
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("accepted", [0, 2])
def test_every_logit_of_a_row_behind_drafts(
    load_verifying: Callable[..., Any], cpu: Any, tokens: list[int], accepted: int
) -> None:
    runtime = verifying(load_verifying())
    runtime.run(Step((Row("a", 1, tokens[:61], 0, BLOCKS, drafts=tuple(tokens[61:64])),)))
    start = 61 + accepted
    row = Row("a", 1, tokens[start:66], start, BLOCKS, commits=(Commit(64, 1),), output=Output.ALL_LOGITS)
    actual = logits(runtime, row)
    expected = logits(cpu, Row("b", 2, tokens[:66], 0, BLOCKS, output=Output.ALL_LOGITS))[start:]
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE


def test_padding_and_drafts_touch_nothing_but_what_is_pending(
    load_verifying: Callable[..., Any], tokens: list[int]
) -> None:
    """A row without drafts beside an idle lane, at the end of its block: places after its own are padding."""
    container = load_verifying()
    runtime = verifying(container)
    idle = Row("idle", 2, tokens[:70], 0, (20, 21), drafts=tuple(tokens[70:73]))
    runtime.run(Step((idle, Row("a", 3, tokens[:62], 0, (1,), drafts=(5,)))))
    before = snapshot(container)
    runtime.run(Step((Row("a", 3, tokens[62:63], 62, (1,), drafts=(7,)),)))
    for name, state in container.memory.named_parameters():
        touched = 1 if "past_key_values" in name else 3  # the row's block, or its lane; and scratch
        for entry in range(1, len(state)):
            assert torch.equal(state[entry], before[name][entry]) == (entry != touched), (name, entry)


def test_prompts_and_single_tokens_leave_pending_drafts_alone(
    load_verifying: Callable[..., Any], tokens: list[int]
) -> None:
    container = load_verifying()
    runtime = verifying(container)
    runtime.run(Step((Row("a", 1, tokens[:5], 0, BLOCKS, drafts=(1, 2, 3)),)))
    before = snapshot(container)
    runtime.run(Step((Row("b", 2, tokens[:30], 0, (20,)),)))
    runtime.run(Step((Row("b", 2, tokens[30:31], 30, (20,)),)))
    pending = [name for name in before if "inputs" in name or "factors" in name]
    assert len(pending) == 2 * 3
    state = dict(container.memory.named_parameters())
    assert all(torch.equal(state[name], before[name]) for name in pending)


def test_what_a_graph_leaves_undecided_is_drawn_on_the_host(
    load_verifying: Callable[..., Any], drawing_cpu: Any, tokens: list[int]
) -> None:
    """At the place of a draft too, and with that place's number."""
    runtime = verifying(load_verifying(sampling_candidates=32))
    how = Sampling(50.0, 0.99, top_p=0.999, later=(0.5, 0.3))
    prompt = Row("a", 1, tokens[:50], 0, BLOCKS, output=Output.NOTHING)
    for side in (runtime, drawing_cpu):
        side.run(Step((prompt,)))
    text = tokens[:51]
    for place in range(3):
        row = Row("a", 1, text[-1:], len(text) - 1, BLOCKS, sampling=how.at(place))
        text += drawing_cpu.run(Step((row,))).rows[0].tokens
    row = Row("a", 1, tokens[50:51], 50, BLOCKS, sampling=how, drafts=tuple(text[51:53]))
    assert list(runtime.run(Step((row,))).rows[0].tokens) == text[51:]


def test_more_drafts_than_compiled_are_refused(load: Callable[..., Any], load_verifying: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"max_drafts is 0, asked for 2.*compile again"):
        neuron(load(), max_drafts=2)
    container = load_verifying()
    with pytest.raises(ConfigError, match="max_drafts is 4, asked for 5"):
        neuron(container, max_drafts=5)
    assert neuron(container, max_drafts=2).capacity.max_drafts == 2
    assert neuron(container).capacity.max_drafts == 0
