"""The draft layer in the graphs, against the CPU runtime's: the same tokens, and the same drafts for the next step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_oracle import DraftOracle

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import (
    Commit,
    DraftRequest,
    Output,
    Row,
    RowResult,
    Runtime,
    RuntimeConfig,
    Step,
    StepError,
    open_runtime,
)
from qwen36_neuron.runtime.neuron import NeuronRuntime

from .support import BLOCKS, TOLERANCE, TRAINED, last, logits, neuron, prompts, snapshot
from .test_drafts import BUCKETS, MOST, WHERE, Drafting, drawing_cpu  # noqa: F401

PROPOSALS = 3
ENTRY_TOLERANCE = 1e-4
"""Of keys and values of the draft layer, which are of 1 to 4; of wrong ones nearly all are off by more than 1."""
SIZES: dict[str, Any] = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}


@pytest.fixture
def load_drafting(load: Callable[..., Any]) -> Callable[..., Any]:
    """A container whose graphs verify drafts and make them."""
    settings = {"max_drafts": MOST, "max_proposals": PROPOSALS, "decode_rows": (1,), "buckets": BUCKETS}
    return lambda **changes: load(**(settings | changes))


def drafting(container: Any) -> NeuronRuntime:
    options = container.app.options
    return neuron(container, max_drafts=options.max_drafts, max_proposals=options.max_proposals)


@pytest.fixture
def drafting_cpu(tiny_checkpoint: Path) -> Runtime:
    return cpu(tiny_checkpoint)


def cpu(checkpoint: Path) -> Runtime:
    """The CPU runtime with a draft layer."""
    settings = {"kernels": "torch", "max_drafts": MOST, "max_proposals": PROPOSALS, "sampling_candidates": 256}
    return open_runtime(RuntimeConfig(checkpoint, **(SIZES | settings)))


def entries(runtime: NeuronRuntime) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the draft layer, which are behind the one attention layer's."""
    keys, values = runtime.app.models[0].model.memory.past_key_values[2:]
    return keys, values


@dataclass(slots=True)
class Twins(Drafting):
    """The same traffic on two runtimes, which are asked for drafts after some steps and must give the same.

    Rows then have these drafts, which are hardly ever right, or others, which are right and wrong.
    """

    twin: Any = None
    made: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def ask(self, step: Step, results: tuple[RowResult, ...], runtime: Runtime) -> None:
        """Ask for drafts of some of the sequences that go on."""
        requests = [
            DraftRequest(str(row.lane), row.lane, result.tokens, WHERE[row.lane], self.random.randint(0, PROPOSALS))
            for row, result in zip(step.rows, results, strict=True)
            if self.running[row.lane].coming and self.random.random() < 0.7
        ]
        found = runtime.draft(requests)
        assert found == self.twin.draft(requests), [(r, self.running[r.lane].held) for r in requests]
        assert [len(drafts) for drafts in found] == [request.count for request in requests]
        for request in requests:
            self.compare(request, runtime)
        self.made = {request.lane: drafts for request, drafts in zip(requests, found, strict=True)}
        self.counts["drafts"] += sum(map(len, found))
        self.counts["rows without"] += sum(not drafts for drafts in found)

    def compare(self, request: DraftRequest, runtime: Runtime) -> None:
        """The entries of what has run: one that is wrong among many hardly shows in drafts."""
        if not request.count:  # the CPU runtime may owe some
            return
        sequence, cache = self.running[request.lane], self.twin.cache
        blocks = list(request.blocks[: -(-sequence.held // 64)])
        for mine, theirs in zip(entries(runtime), cache.kv[cache.spec.config.num_layers], strict=True):
            error = (mine[blocks] - theirs[blocks]).flatten(0, 1)[1 : sequence.held].abs().flatten(1).amax(1)
            assert (error <= ENTRY_TOLERANCE).all(), (request, error.nonzero())

    def _row(self, lane: int, sequence: Any) -> Row:
        row = Drafting._row(self, lane, sequence)
        made = self.made.get(lane, ())[: len(row.drafts)]
        if len(made) < len(row.drafts) or self.random.random() < 0.7:
            return row
        self.counts["own"] += 1
        return replace(row, drafts=made)


@pytest.mark.parametrize("kernels", ["torch", pytest.param("nki", marks=pytest.mark.interpreter)])
def test_200_steps_give_the_drafts_of_the_cpu_runtime(
    load_drafting: Callable[..., Any],
    drawing_cpu: Any,  # noqa: F811
    drafting_cpu: Runtime,
    kernels: str,
) -> None:
    """Prompts of any length, lanes used again, checkpoints taken and restored, drafts rejected at any place."""
    container = load_drafting(kernels=kernels, logical_cores=1)
    runtime, traffic = drafting(container), Twins(drawing_cpu, twin=drafting_cpu)
    runtime.warm_up()
    assert set(container.calls) == {(w.tag, i) for w, i in container.routes.values()}
    for _ in range(200):
        step = traffic.step()
        results = runtime.run(step).rows
        assert [row.tokens for row in drafting_cpu.run(step).rows] == [row.tokens for row in results]
        traffic.take(step, results)
        traffic.ask(step, results, runtime)
    print(dict(traffic.counts))
    assert traffic.counts["drafts"] >= 300
    assert traffic.counts["rows without"] >= 30
    assert traffic.counts["own"] >= 10
    assert traffic.counts["right"] >= 200
    assert traffic.counts["rejected"] >= 100
    assert traffic.counts["restores"] >= 5


def speculate(runtime: Runtime, questions: list[list[int]], count: int) -> tuple[list[list[int]], int]:
    """Greedy answers of `count` tokens, each row verifying what the layer drafted; and the steps that it took."""
    lanes = {lane: list(text) for lane, text in enumerate(questions, start=1)}
    ends = {lane: len(text) + count for lane, text in lanes.items()}
    held, drafts, steps = dict.fromkeys(lanes, 0), dict.fromkeys(lanes, ()), 0
    while going := [lane for lane, text in lanes.items() if len(text) < ends[lane]]:
        rows = [
            Row(str(n), n, lanes[n][held[n] :], held[n], WHERE[n], drafts=drafts[n][: ends[n] - len(lanes[n])])
            for n in going
        ]
        results = runtime.run(Step(tuple(rows))).rows
        for lane, result in zip(going, results, strict=True):
            lanes[lane] += result.tokens
            held[lane] = len(lanes[lane]) - 1
        requests = [
            DraftRequest(str(n), n, result.tokens, WHERE[n], PROPOSALS)
            for n, result in zip(going, results, strict=True)
        ]
        drafts |= dict(zip(going, runtime.draft(requests), strict=True))
        steps += 1
    return [text[len(question) :][:count] for text, question in zip(lanes.values(), questions, strict=True)], steps


def test_a_trained_layer_saves_steps(
    parallel_state: None, make_options: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of the CPU runtime without drafts, in as few steps as its own layer takes."""
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    from .rig.container import CpuContainer

    options = make_options(max_drafts=MOST, max_proposals=PROPOSALS, decode_rows=(1,), buckets=BUCKETS)
    config = Qwen36InferenceConfig.from_checkpoint(TRAINED, options)
    runtime = drafting(CpuContainer(NeuronQwen36ForCausalLM(str(TRAINED), config)))
    questions, count = prompts(4), 60
    answers, steps = speculate(runtime, questions, count)
    assert (answers, steps) == speculate(cpu(TRAINED), questions, count)
    plain = open_runtime(RuntimeConfig(TRAINED, kernels="torch", **SIZES))
    for lane, question in enumerate(questions, start=1):
        text, start = list(question), 0
        while len(text) < len(question) + count:
            row = Row("plain", lane, text[start:], start, WHERE[lane])
            start = len(text)
            text += plain.run(Step((row,))).rows[0].tokens
        assert answers[lane - 1] == text[len(question) :]
    print(f"{count} tokens of {len(questions)} rows in {steps} steps")
    assert steps <= 0.75 * count


@pytest.mark.parametrize("length", [1, 2, 62, 63, 64, 65, 66, 127, 128, 129, 200])
def test_a_prompt_cut_at_each_end(
    load_drafting: Callable[..., Any], tiny_checkpoint: Path, tokens: list[int], length: int
) -> None:
    """At one token, and at and beside the boundary in it; against one pass of the layer over the whole text."""
    runtime, oracle = drafting(load_drafting()), DraftOracle(tiny_checkpoint)
    want = oracle(tokens[: length + 1], PROPOSALS)
    boundary = length // 64 * 64
    cuts = {
        (length,),
        *((at, length) for at in (1, boundary - 1, boundary, boundary + 1, length - 1) if 0 < at < length),
    }
    for lane, cut in enumerate(sorted(cuts)):
        number, start = 1 + lane % 4, 0
        for end in cut:
            runtime.run(Step((Row("a", number, tokens[start:end], start, WHERE[number]),)))
            start = end
        request = DraftRequest("a", number, (tokens[length],), WHERE[number], PROPOSALS)
        assert runtime.draft([request]) == (want,), cut
        runtime.run(Step((), released_lanes=(number,)))


@pytest.mark.parametrize("how", ["prompt", "decode", "accepted", "own"])
def test_a_warm_start_drafts_what_a_cold_one_does(
    load_drafting: Callable[..., Any], tiny_checkpoint: Path, tokens: list[int], how: str
) -> None:
    """From a checkpoint that a prompt, a step, or a row behind accepted drafts took, before its own token or after."""
    runtime, oracle = drafting(load_drafting()), DraftOracle(tiny_checkpoint)
    commit = (Commit(64, 2),)
    rows = {
        "prompt": [Row("a", 1, tokens[:70], 0, BLOCKS, commits=commit)],
        "decode": [Row("a", 1, tokens[:63], 0, BLOCKS), Row("a", 1, tokens[63:64], 63, BLOCKS, commits=commit)],
        "accepted": [
            Row("a", 1, tokens[:61], 0, BLOCKS, drafts=tuple(tokens[61:65])),
            Row("a", 1, tokens[65:66], 65, BLOCKS, commits=commit),
        ],
        "own": [
            Row("a", 1, tokens[:61], 0, BLOCKS, drafts=tuple(tokens[61:63])),
            Row("a", 1, tokens[63:64], 63, BLOCKS, commits=commit, drafts=(1, 2)),
        ],
    }[how]
    for row in rows:
        runtime.run(Step((row,)))
    blocks = (BLOCKS[0], *WHERE[3][1:])
    runtime.run(Step((Row("b", 3, tokens[64:84], 64, blocks, restore=2),)))
    found = runtime.draft([DraftRequest("b", 3, (tokens[84],), blocks, PROPOSALS)])
    assert found == (oracle(tokens[:85], PROPOSALS),)
    cold = drafting(load_drafting())
    cold.run(Step((Row("c", 3, tokens[:84], 0, blocks),)))
    for warm_kv, cold_kv in zip(entries(runtime), entries(cold), strict=True):
        assert (warm_kv[blocks[1], :20] - cold_kv[blocks[1], :20]).abs().max() <= ENTRY_TOLERANCE
        assert warm_kv[blocks[1], :20].any(dim=-1).all()


def test_drafting_changes_nothing_but_provisional_entries(load_drafting: Callable[..., Any], tokens: list[int]) -> None:
    """Two rows of four, one of which wants fewer drafts, at the end of their blocks; an idle lane beside them."""
    container = load_drafting()
    runtime = drafting(container)
    runtime.run(
        Step(
            (
                Row("idle", 2, tokens[:70], 0, (20, 21), drafts=tuple(tokens[70:73])),
                Row("a", 3, tokens[:62], 0, (1,)),
                Row("b", 1, tokens[:63], 0, (2, 3)),
            )
        )
    )
    before = snapshot(container)
    requests = [DraftRequest("a", 3, (5,), (1,), 1), DraftRequest("b", 1, (6,), (2, 3), 3)]
    assert [len(drafts) for drafts in runtime.draft(requests)] == [1, 3]
    assert container.calls[-1] == ("draft_model", container.app.options.draft_graphs.index((3, 4, 256)))
    layer = {f"past_key_values.{place}" for place in (2, 3)}  # behind the one attention layer's
    for name, state in container.memory.named_parameters():
        if name not in layer:
            assert torch.equal(state, before[name]), name
            continue
        changed = (state != before[name]).flatten(2).any(2)[1:]
        assert [(1 + block, place) for block, place in changed.nonzero().tolist()] == [(1, 62), (2, 63), (3, 0), (3, 1)]


def test_dummy_rows_of_graphs_with_a_draft_layer_touch_nothing(
    load_drafting: Callable[..., Any], tokens: list[int]
) -> None:
    container = load_drafting()
    runtime = drafting(container)
    first = Row("idle", 2, tokens[:79], 0, (20, 21), drafts=(1, 2))
    runtime.run(Step((first, Row("a", 3, tokens[:50], 0, (1,)), Row("b", 1, tokens[:50], 0, (2,)))))
    for start, drafts in ((50, ()), (51, (7,))):
        before = snapshot(container)
        rows = (Row("a", 3, [5], start, (1,), drafts=drafts), Row("b", 1, [6], start, (2,)))
        runtime.run(Step(rows))
        for name, state in container.memory.named_parameters():
            touched = (1, 2) if "past_key_values" in name else (3, 1)
            for entry in range(1, len(state)):
                if entry not in touched:
                    assert torch.equal(state[entry], before[name][entry]), (name, entry)


def test_stale_memory_is_not_read(load_drafting: Callable[..., Any], tokens: list[int]) -> None:
    """A lane and blocks that others have used; hidden states that are not even finite, and position 0 of anything."""
    used, fresh = load_drafting(), load_drafting()
    for state in used.memory.states():
        state[1:].fill_(7.0)
    for bank in (*used.memory.recurrent, *used.memory.window, *used.memory.hidden, *used.memory.beyond):
        bank[1:].fill_(torch.nan)
    runtimes = [drafting(container) for container in (used, fresh)]
    row, request = last(2, tokens[:130], 0, BLOCKS), DraftRequest("a", 2, (9,), BLOCKS, PROPOSALS)
    assert torch.equal(*(logits(runtime, row) for runtime in runtimes))
    used.memory.past_key_values[2][BLOCKS[0], 0] = 300.0
    used.memory.past_key_values[3][BLOCKS[0], 0] = 300.0
    found = [runtime.draft([request]) for runtime in runtimes]
    assert found[0] == found[1]


def test_drafts_end_where_blocks_and_the_maximum_length_do(
    load_drafting: Callable[..., Any], tokens: list[int]
) -> None:
    runtime = drafting(load_drafting())
    runtime.run(Step((Row("a", 1, tokens[:61], 0, (1,)), Row("b", 2, tokens[:510], 0, range(9, 17)))))
    requests = [DraftRequest("a", 1, (5,), (1,), 3), DraftRequest("b", 2, (6,), range(9, 17), 3)]
    assert [len(drafts) for drafts in runtime.draft(requests)] == [2, 1]


def test_everything_is_of_the_type_that_was_compiled(load_drafting: Callable[..., Any], tokens: list[int]) -> None:
    """bf16, but for recurrent states and what is pending of them; drafts of every kind of call are tokens."""
    container = load_drafting(dtype="bfloat16")
    types = {name: state.dtype for name, state in container.memory.named_parameters()}
    assert types["hidden.0"] is types["beyond.0"] is types["past_key_values.2"] is torch.bfloat16
    runtime = drafting(container)
    rows = [
        Row("a", 1, tokens[:70], 0, BLOCKS, commits=(Commit(64, 1),), drafts=(1, 2)),
        Row("a", 1, tokens[70:71], 70, BLOCKS),
        Row("a", 1, tokens[71:72], 71, BLOCKS, drafts=(3,)),
        Row("b", 2, tokens[64:70], 64, (1, 9, 10), restore=1),
    ]
    for row in rows:
        given = runtime.run(Step((row,))).rows[0].tokens
        (drafts,) = runtime.draft([DraftRequest(row.request_id, row.lane, given, row.blocks, PROPOSALS)])
        assert (len(given), len(drafts)) == (1, PROPOSALS)


def test_logits_with_a_draft_layer_are_those_without(
    load: Callable[..., Any], load_drafting: Callable[..., Any], tokens: list[int]
) -> None:
    """Of a prompt's last layer all tokens are run then, and not the last alone."""
    runtimes = drafting(load_drafting()), neuron(load(max_drafts=MOST, decode_rows=(1,), buckets=BUCKETS))
    for row in (last(1, tokens[:200], 0, BLOCKS), last(1, tokens[200:201], 200, BLOCKS)):
        with_layer, without = (logits(runtime, row) for runtime in runtimes)
        assert (with_layer - without).abs().max() <= TOLERANCE


def test_what_was_not_compiled_is_refused(load: Callable[..., Any], load_drafting: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"max_proposals is 0, asked for 2.*compile again"):
        neuron(load(max_drafts=MOST), max_drafts=2, max_proposals=2)
    container = load_drafting()
    with pytest.raises(ConfigError, match="max_proposals is 3, asked for 4"):
        neuron(container, max_drafts=4, max_proposals=4)
    without = neuron(container, max_drafts=4)
    assert without.capacity.max_proposals == 0
    without.run(Step((Row("a", 1, [1, 2], 0, BLOCKS, output=Output.NOTHING),)))
    with pytest.raises(StepError, match="no draft layer"):
        without.draft([DraftRequest("a", 1, (3,), BLOCKS, 1)])
