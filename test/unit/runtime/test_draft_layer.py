"""The draft layer's memory: drafts are those of one pass over the whole text, however its parts were run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_oracle import DraftOracle

from qwen36_neuron.config import BLOCK_SIZE
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import Commit, DraftRequest, Output, Row, RuntimeConfig, Step, StepError, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime

MOST = 4
VOCAB = 4000
BLOCKS = 8


INTERPRETED = pytest.param("interpreter", marks=pytest.mark.interpreter)


@pytest.fixture(scope="module", params=["torch", "fused", INTERPRETED, "torch mixture", "fused mixture"])
def runtime(request: pytest.FixtureRequest) -> CpuRuntime:
    """By what runs it; of a mixture of experts too."""
    kernels, _, kind = request.param.partition(" ")
    if kernels == "fused":
        pytest.importorskip("numba")
    return opened(request.getfixturevalue(f"tiny_{kind}_checkpoint" if kind else "tiny_checkpoint"), kernels)


def over(names: tuple[str, ...], cases: Iterable[Any], interpreted: Collection[Any]) -> pytest.MarkDecorator:
    """Cases for every runtime; the interpreter, which takes seconds for what others do in milliseconds, has some, and
    so have mixtures."""
    chosen = [
        pytest.param(kernels, *case, id=f"{kernels}-{'-'.join(map(str, case))}", marks=marks)
        for kernels, marks in (
            ("torch", ()),
            ("fused", ()),
            ("interpreter", pytest.mark.interpreter),
            ("torch mixture", ()),
            ("fused mixture", ()),
        )
        for case in cases
        if kernels in ("torch", "fused") or case in interpreted
    ]
    return pytest.mark.parametrize(("runtime", *names), chosen, indirect=["runtime"])


def opened(folder: Path, kernels: str, **changes: object) -> CpuRuntime:
    settings: dict[str, object] = {
        "max_model_len": 512,
        "num_blocks": 65,
        "num_slots": 4,
        "num_lanes": 4,
        "max_drafts": MOST,
        "max_proposals": MOST,
    }
    made = open_runtime(RuntimeConfig(model=folder, kernels=kernels, **(settings | changes)))  # type: ignore[arg-type]
    assert isinstance(made, CpuRuntime)
    return made


@pytest.fixture
def oracle(runtime: CpuRuntime) -> DraftOracle:
    return oracle_of(Path(runtime.config.model))


@cache
def oracle_of(checkpoint: Path) -> DraftOracle:
    """Of a checkpoint, remembering what it has said."""
    return cache(DraftOracle(checkpoint))  # type: ignore[return-value]


def ids(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def blocks_of(lane: int) -> tuple[int, ...]:
    return tuple(range(1 + BLOCKS * (lane - 1), 1 + BLOCKS * lane))


class Sequence_:
    """One lane that runs a text which is known beforehand, in any parts."""

    def __init__(self, runtime: CpuRuntime, text: Sequence[int], lane: int = 1, start: int = 0) -> None:
        self.runtime, self.text, self.lane = runtime, tuple(text), lane
        self.start, self.accepted = start, 0
        self.restore: int | None = None
        self.blocks = blocks_of(lane)

    def row(self, count: int, drafts: int = 0, wrong_at: int | None = None, commits: tuple[Commit, ...] = ()) -> Row:
        """The next `count` tokens and as many drafts, of which all before `wrong_at` are right."""
        end = self.start + count
        proposed = list(self.text[end : end + drafts])
        if wrong_at is not None:
            proposed[wrong_at] = (proposed[wrong_at] + 1) % VOCAB
        row = Row(
            str(self.lane),
            self.lane,
            self.text[self.start : end],
            self.start,
            self.blocks,
            restore=self.restore,
            commits=commits,
            output=Output.TOKEN,
            drafts=tuple(proposed),
        )
        self.accepted = drafts if wrong_at is None else wrong_at
        self.start, self.restore = end + self.accepted, None
        return row

    def run(self, count: int, drafts: int = 0, wrong_at: int | None = None, commits: tuple[Commit, ...] = ()) -> None:
        self.runtime.run(Step((self.row(count, drafts, wrong_at, commits),)))

    def request(self, count: int = MOST) -> DraftRequest:
        known = self.text[self.start - self.accepted : self.start + 1]
        return DraftRequest(str(self.lane), self.lane, known, self.blocks, count)

    def drafts(self, count: int = MOST) -> tuple[int, ...]:
        return self.runtime.draft([self.request(count)])[0]

    def known(self) -> tuple[int, ...]:
        """What is certain, with the token that has not run."""
        return self.text[: self.start + 1]

    def release(self) -> None:
        self.runtime.run(Step((), released_lanes=(self.lane,)))


CUTS = ([1], [2], [63], [64], [65], [130], [1, 1, 1], [5, 1, 60, 1, 3], [64, 64, 1], [63, 1, 1], [100, 30], [1, 127, 2])


@over(("cuts",), [(cuts,) for cuts in CUTS], [([65],), ([5, 1, 60, 1, 3],), ([1, 127, 2],)])
def test_a_prompt_cut_anywhere(runtime: CpuRuntime, oracle: DraftOracle, cuts: list[int]) -> None:
    sequence = Sequence_(runtime, ids(200))
    for count in cuts:
        sequence.run(count)
    assert sequence.drafts() == oracle(sequence.known(), MOST)
    sequence.release()


@over(("silent",), [(count,) for count in (0, 1, 2, 30, 63, 64, 65, 70)], [(1,), (65,)])
def test_after_rows_that_asked_for_no_drafts(runtime: CpuRuntime, oracle: DraftOracle, silent: int) -> None:
    sequence = Sequence_(runtime, ids(200, 1))
    sequence.run(40)
    assert sequence.drafts(2) == oracle(sequence.known(), 2)
    for _ in range(silent):
        sequence.run(1)
    if silent:
        assert sequence.drafts(3) == oracle(sequence.known(), 3)
    sequence.release()


@pytest.mark.parametrize("asked", [True, False], ids=["each step", "at the end"])
@over(("length", "k"), list(product((1, 62, 100), (1, 2, 4))), [(62, 4)])
def test_after_drafts_rejected_at_each_place(
    runtime: CpuRuntime, oracle: DraftOracle, length: int, k: int, asked: bool
) -> None:
    sequence = Sequence_(runtime, ids(300, 2))
    sequence.run(length)
    for place in [*range(k + 1), *range(k, -1, -1)] * 2:
        if asked:
            assert sequence.drafts() == oracle(sequence.known(), MOST)
        sequence.run(1, k, place if place < k else None)
    assert sequence.drafts() == oracle(sequence.known(), MOST)
    sequence.release()


def test_rows_of_all_kinds_together(runtime: CpuRuntime, oracle: DraftOracle) -> None:
    sequences = [Sequence_(runtime, ids(300, 10 + lane), lane) for lane in (1, 2, 3, 4)]
    runtime.run(Step(tuple(s.row(n) for s, n in zip(sequences, (50, 64, 1, 130), strict=True))))
    plans = [(1, 4, 2), (1, 0, None), (33, 0, None), (1, 4, None)]
    for counts in ((4, 1, 0, 2), (0, 4, 3, 3), (2, 2, 2, 2)):
        made = runtime.draft([s.request(n) for s, n in zip(sequences, counts, strict=True)])
        for sequence, count, drafts in zip(sequences, counts, made, strict=True):
            assert drafts == (oracle(sequence.known(), count) if count else ())
        runtime.run(Step(tuple(s.row(*plan) for s, plan in zip(sequences, plans, strict=True))))
        plans = plans[1:] + plans[:1]
    for sequence in sequences:
        sequence.release()


@pytest.mark.parametrize("how", ["prompt", "waiting prompt", "decode", "accepted", "accepted and drafted"])
def test_a_checkpoint_gives_back_the_last_hidden_state(runtime: CpuRuntime, oracle: DraftOracle, how: str) -> None:
    """And a warm start drafts what a cold one does; its prefix's blocks are whole."""
    text = ids(300, 3)
    first = Sequence_(runtime, text)
    commit = (Commit(BLOCK_SIZE, 2),)
    if how in ("prompt", "waiting prompt"):
        first.run(100, commits=commit)
        if how == "prompt":
            first.drafts(1)
    elif how == "decode":
        first.run(60)
        for _ in range(3):
            first.run(1)
        first.run(1, commits=commit)
        first.run(1)
    else:
        first.run(61)
        first.drafts(1)
        first.run(1, 4)
        if how == "accepted and drafted":
            first.drafts(1)
        first.run(1, commits=commit)
    if how != "waiting prompt":
        first.release()
    warm = Sequence_(runtime, text[:BLOCK_SIZE] + ids(100, 4), lane=2, start=BLOCK_SIZE)
    warm.restore, warm.blocks = 2, (blocks_of(1)[0], *blocks_of(2)[1:])
    warm.run(20)
    assert warm.drafts() == oracle(warm.known(), MOST)
    for sequence in (first, warm):
        sequence.release()


def test_blocks_are_whole_once_they_are_full(tiny_checkpoint: Path) -> None:
    """Their keys are the same, within fp32 rounding of other batch shapes, whoever asked for drafts on the way."""
    kept = []
    for ask in (True, False):
        runtime = opened(tiny_checkpoint, "torch")
        sequence = Sequence_(runtime, ids(200, 5))
        sequence.run(20, commits=())
        for step in range(50):
            if ask:
                sequence.drafts(2)
            sequence.run(1, 2, step % 2) if ask else sequence.run(1)
        layer = runtime.model.config.num_layers
        keys, _ = runtime.cache.positions(layer)
        kept.append(keys[BLOCK_SIZE + 1 : 2 * BLOCK_SIZE].clone())  # block 1; position 0 has no entry
        assert not keys[BLOCK_SIZE].any()
    assert (kept[0] - kept[1]).abs().max() <= 1e-5
    assert kept[0].any(dim=-1).all()


@pytest.mark.interpreter
def test_graphs_write_the_entries_that_are_written_later_on_a_cpu(tiny_checkpoint: Path) -> None:
    """Of all positions that have run, whatever was drafted, and nothing in blocks of others."""
    runtimes = [opened(tiny_checkpoint, kernels) for kernels in ("torch", "interpreter")]
    for runtime in runtimes:
        sequence = Sequence_(runtime, ids(200, 13), lane=2)
        sequence.run(59)
        for wrong_at in (0, 1, 2, None, 1, 0, None, 2):
            sequence.drafts(3)
            sequence.run(1, 3, wrong_at)
        sequence.drafts(3)
        held = sequence.start
    cpu, graphs = runtimes
    layer = cpu.model.config.num_layers
    for expected, actual in zip(cpu.cache.kv[layer], graphs.memory.kv[layer], strict=True):  # type: ignore[attr-defined]
        first = blocks_of(2)[0]
        own = slice(first * BLOCK_SIZE + 1, first * BLOCK_SIZE + held)
        assert (expected.flatten(0, 1)[own] - actual.flatten(0, 1)[own]).abs().max() <= 1e-4
        assert expected.flatten(0, 1)[own].any(dim=-1).all()
        others = [block for block in range(1, 65) if block not in blocks_of(2)[:2]]
        assert not actual[others].any()


@pytest.mark.interpreter
@pytest.mark.parametrize(("length", "accepted"), [(62, 0), (61, 1), (61, 3), (60, 4), (59, 4)])
def test_graphs_keep_the_hidden_state_of_a_checkpoint_among_other_rows(
    tiny_checkpoint: Path, length: int, accepted: int
) -> None:
    """At a boundary that accepted drafts or the row's own token cross: the first entry after it is that of a cold run.

    Its key is one of many, so that a wrong one would hardly show in drafts.
    """
    text, runtime = ids(200, 14), opened(tiny_checkpoint, "interpreter")
    other, first = Sequence_(runtime, ids(200, 15), lane=4), Sequence_(runtime, text, lane=2)
    other.run(30)
    first.run(length)
    runtime.run(Step((other.row(1, 3, 1), first.row(1, MOST, accepted if accepted < MOST else None))))
    runtime.run(Step((other.row(1), first.row(1, commits=(Commit(64, 3),)))))
    warm = Sequence_(runtime, text, lane=3, start=64)
    warm.restore, warm.blocks = 3, (blocks_of(2)[0], *blocks_of(3)[1:])
    warm.run(5)
    cold = opened(tiny_checkpoint, "torch")
    whole = Sequence_(cold, text, lane=3)
    whole.run(69)
    whole.drafts(1)
    for expected, actual in zip(cold.cache.kv[4], runtime.memory.kv[4], strict=True):  # type: ignore[attr-defined]
        block = blocks_of(3)[1]
        assert (expected[block, :5] - actual[block, :5]).abs().max() <= 1e-4


def test_a_lane_is_used_again(runtime: CpuRuntime, oracle: DraftOracle) -> None:
    for seed in (6, 7):
        sequence = Sequence_(runtime, ids(200, seed))
        sequence.run(70)
        sequence.run(1, 3, 1)
        if seed == 7:
            assert sequence.drafts() == oracle(sequence.known(), MOST)
        sequence.release()


def test_drafts_end_where_blocks_and_the_maximum_length_do(runtime: CpuRuntime) -> None:
    sequence = Sequence_(runtime, ids(300, 8))
    sequence.run(61)
    assert len(runtime.draft([replace(sequence.request(), blocks=sequence.blocks[:1])])[0]) == 2
    sequence.release()
    sequence = Sequence_(runtime, ids(513, 8))
    sequence.run(509)
    assert len(sequence.drafts()) == 2
    sequence.release()


def test_prompts_beyond_what_may_wait(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = oracle_of(tiny_checkpoint)
    monkeypatch.setattr("qwen36_neuron.runtime.cpu_draft.MOST_OWED", 100 * 256 * 4)
    runtime = opened(tiny_checkpoint, "torch")
    sequence = Sequence_(runtime, ids(300, 9))
    for count in (60, 60, 60, 17):
        sequence.run(count)
    assert sequence.drafts() == oracle(sequence.known(), MOST)
    sequence.release()
    assert runtime._drafts is not None
    assert runtime._drafts._owed == 0


def test_prompts_of_one_length_end_their_last_layer_together(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = oracle_of(tiny_checkpoint)
    runtime, rows_at_once = opened(tiny_checkpoint, "torch"), []
    plain = runtime.model.last_layer

    def last_layer(inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows_at_once.append(len(inputs))
        return plain(inputs, *rest)

    monkeypatch.setattr("qwen36_neuron.runtime.draft_lanes.MOST_AT_ONCE", 2 * 70)
    sequences = [Sequence_(runtime, ids(200, 30 + lane), lane) for lane in range(1, 5)]
    commit = Commit(BLOCK_SIZE, 1)
    runtime.run(Step(tuple(
        sequence.row(count, commits=(commit,) if sequence.lane == 3 else ())
        for sequence, count in zip(sequences, (70, 40, 70, 70), strict=True)
    )))  # fmt: skip
    monkeypatch.setattr(runtime.model, "last_layer", last_layer)
    drafts = runtime.draft([sequence.request() for sequence in sequences])
    assert drafts == tuple(oracle(sequence.known(), MOST) for sequence in sequences)
    assert sorted(rows_at_once) == [1, 1, 2]
    warm = Sequence_(runtime, sequences[2].text, 4, start=BLOCK_SIZE)
    warm.restore, warm.blocks = 1, (blocks_of(3)[0], *blocks_of(4)[1:])
    warm.run(6)
    assert warm.drafts() == oracle(warm.known(), MOST)


def test_what_breaks_the_contract_is_refused(runtime: CpuRuntime) -> None:
    sequence = Sequence_(runtime, ids(300, 11))
    sequence.run(10)
    sequence.run(1, 2, 1)
    good = sequence.request(2)
    for change, problem in (
        ({"lane": 3}, "holds no tokens"),
        ({"tokens": ()}, "do not begin with drafts"),
        ({"tokens": (*good.tokens[:1], 1, 2, 3)}, "do not begin with drafts"),
        ({"tokens": (*good.tokens[:-1], VOCAB + 100_000)}, "token ids"),
        ({"count": MOST + 1}, "can be made"),
        ({"count": -1}, "can be made"),
        ({"blocks": ()}, "cannot hold"),
        ({"blocks": (0,)}, "block 0 is scratch"),
        ({"blocks": (1, 65)}, "block ids"),
        ({"blocks": (1, -1)}, "block ids"),
    ):
        with pytest.raises(StepError, match=problem):
            runtime.draft([replace(good, **change)])  # type: ignore[arg-type]
    with pytest.raises(StepError, match="twice"):
        runtime.draft([good, good])
    runtime.draft([good])
    with pytest.raises(StepError, match="already"):
        runtime.draft([good])
    sequence.start -= 1  # as if another number of drafts had been right
    with pytest.raises(StepError, match="drafts were right"):
        sequence.run(1)
    sequence.release()


def test_a_prefix_whose_blocks_another_request_owes(runtime: CpuRuntime, oracle: DraftOracle) -> None:
    """The slot is of one request and the blocks of another, which ran the same text and never asked for drafts."""
    text = ids(300, 12)
    first, second = Sequence_(runtime, text, lane=1), Sequence_(runtime, text, lane=2)
    first.run(100, commits=(Commit(BLOCK_SIZE, 2),))
    first.drafts(1)
    second.run(100)
    warm = Sequence_(runtime, text, lane=3, start=BLOCK_SIZE)
    warm.restore, warm.blocks = 2, (blocks_of(2)[0], *blocks_of(3)[1:])
    warm.run(20)
    assert warm.drafts() == oracle(warm.known(), MOST)
    for sequence in (first, second, warm):
        sequence.release()


def test_without_a_draft_layer_nothing_is_drafted(tiny_checkpoint: Path) -> None:
    runtime = opened(tiny_checkpoint, "torch", max_proposals=0)
    sequence = Sequence_(runtime, ids(30))
    sequence.run(10)
    with pytest.raises(StepError, match="no draft layer"):
        sequence.drafts()


def test_configurations_that_cannot_work(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="max_proposals=3: are more drafts than the 2"):
        RuntimeConfig(tiny_checkpoint, max_drafts=2, max_proposals=3)
    config = RuntimeConfig(tiny_checkpoint, max_drafts=2, max_proposals=2)
    config = replace(config, description=replace(config.model_config(), num_mtp_layers=0))
    with pytest.raises(ConfigError, match="mtp_num_hidden_layers=0"):
        config.model_config()
