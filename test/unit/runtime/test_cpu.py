"""The CPU runtime's memory: lanes, slots, blocks and the rows that share them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import Commit, Output, Row, Runtime, RuntimeConfig, Step, StepError, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime, group_rows

BLOCKS = tuple(range(1, 9))


Make = Callable[..., CpuRuntime]


@pytest.fixture(params=["torch", "fused"])
def make(request: pytest.FixtureRequest) -> Make:
    """Opens a runtime on a checkpoint, with plain torch and, where Numba is installed, with fused operations."""
    if request.param == "fused":
        pytest.importorskip("numba")

    def opened(folder: Path, **changes: object) -> CpuRuntime:
        settings: dict[str, object] = {"max_model_len": 512, "num_blocks": 65, "num_slots": 3, "num_lanes": 4}
        config = RuntimeConfig(model=folder, kernels=request.param, **(settings | changes))  # type: ignore[arg-type]
        runtime = open_runtime(config)
        assert isinstance(runtime, CpuRuntime)
        return runtime

    return opened


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 4000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits(runtime: Runtime, row: Row) -> torch.Tensor:
    out = runtime.run(Step((row,))).rows[0].logits
    assert out is not None
    return out


@pytest.mark.parametrize("made", ["tiny", "tiny_mixture"])
def test_restoring_is_continuing_bit_for_bit(made: str, request: pytest.FixtureRequest, make: Make) -> None:
    """Checkpoints taken inside a chunk, at its end and by a decode step, each restored into another lane."""
    checkpoint = request.getfixturevalue(f"{made}_checkpoint")
    runtime = make(checkpoint)
    tokens = ids(203)
    runtime.run(Step((Row("a", 1, tokens[:150], 0, BLOCKS, commits=(Commit(64, 1), Commit(128, 2))),)))
    runtime.run(Step((Row("a", 1, tokens[150:191], 150, BLOCKS),)))
    runtime.run(Step((Row("a", 1, tokens[191:192], 191, BLOCKS, commits=(Commit(192, 3),)),)))
    for slot, boundary in ((3, 192), (2, 128), (1, 64)):  # deepest first: each run writes KV from its boundary on
        cold = make(checkpoint)
        start = 0
        for end in (150, 191, 192) if boundary == 192 else (boundary,):
            cold.run(Step((Row("b", 1, tokens[start:end], start, BLOCKS),)))
            start = end
        expected = logits(cold, Row("b", 1, tokens[boundary:], boundary, BLOCKS, output=Output.ALL_LOGITS))
        warm = Row("c", 3, tokens[boundary:], boundary, BLOCKS, restore=slot, output=Output.ALL_LOGITS)
        actual = logits(runtime, warm)
        if boundary == 192:  # the same cuts, so the same bits
            assert torch.equal(actual, expected)
        assert (actual - expected).abs().max() <= 1e-5


def test_a_mixtures_rows_give_the_same_bits_alone_and_together(tiny_mixture_checkpoint: Path) -> None:
    """Whichever experts the others chose: the compiled form's sums do not depend on them."""
    pytest.importorskip("numba")
    sizes = {"max_model_len": 512, "num_blocks": 65, "num_lanes": 8, "kernels": "fused"}
    prompts = {lane: ids(5 + 9 * lane, lane) for lane in range(1, 9)}
    blocks = {lane: range(8 * lane - 7, 8 * lane + 1) for lane in prompts}
    found = []
    for together in (True, False):
        run = open_runtime(RuntimeConfig(model=tiny_mixture_checkpoint, **sizes))  # type: ignore[arg-type]
        for lane, prompt in prompts.items():
            run.run(Step((Row(str(lane), lane, prompt, 0, blocks[lane]),)))
        rows = [Row(str(n), n, [n], len(prompts[n]), blocks[n], output=Output.LOGITS) for n in prompts]
        steps = [Step(tuple(rows))] if together else [Step((row,)) for row in rows]
        found.append([result.logits for step in steps for result in run.run(step).rows])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_commits_at_the_same_cut_are_the_same_bits(tiny_checkpoint: Path, make: Make) -> None:
    runtime, tokens = make(tiny_checkpoint), ids(100)
    runtime.run(Step((Row("a", 1, tokens[:64], 0, BLOCKS, commits=(Commit(64, 2),)),)))
    expected = logits(runtime, Row("a", 1, tokens[64:], 64, BLOCKS, output=Output.ALL_LOGITS))
    actual = logits(runtime, Row("b", 2, tokens[64:], 64, BLOCKS, restore=2, output=Output.ALL_LOGITS))
    assert torch.equal(actual, expected)


def test_a_reused_lane_and_block_hold_nothing_of_the_past(tiny_checkpoint: Path, make: Make) -> None:
    used, fresh, tokens = make(tiny_checkpoint), make(tiny_checkpoint), ids(70, seed=1)
    used.run(Step((Row("old", 2, ids(300, seed=2), 0, BLOCKS),)))
    row = Row("new", 2, tokens, 0, BLOCKS, output=Output.ALL_LOGITS)
    assert torch.equal(logits(used, row), logits(fresh, row))


def test_idle_lanes_are_untouched_by_a_step(tiny_checkpoint: Path, make: Make) -> None:
    """Padded rows and neighbours must not advance a sequence that is not in the step."""
    runtime, tokens = make(tiny_checkpoint), ids(80, seed=3)
    runtime.run(Step((Row("idle", 2, tokens[:79], 0, (20, 21)),)))
    before = {layer: states.recurrent[2].clone() for layer, states in runtime.cache.banks.items()}
    rows = (Row("a", 1, ids(50), 0, (1,)), Row("b", 3, ids(47), 0, (2,)), Row("c", 4, ids(1), 0, (3,)))
    runtime.run(Step(rows))
    runtime.run(Step((Row("a", 1, [5], 50, (1,)), Row("b", 3, [5], 47, (2,)))))
    for layer, states in runtime.cache.banks.items():
        assert torch.equal(states.recurrent[2], before[layer])


def test_warm_up_leaves_no_trace(tiny_checkpoint: Path, make: Make) -> None:
    runtime = make(tiny_checkpoint)
    runtime.warm_up()
    for states in runtime.cache.banks.values():
        assert not states.recurrent.any()
        assert not states.window.any()
    for keys, values in runtime.cache.kv.values():
        assert not keys[64:].any()
        assert not values[64:].any()


def test_outputs_are_what_was_asked(tiny_checkpoint: Path, make: Make) -> None:
    runtime, tokens = make(tiny_checkpoint), ids(20)
    rows = tuple(
        Row(output.value, lane, tokens, 0, (lane,), output=output) for lane, output in enumerate(Output, start=1)
    )
    nothing, token, last, every = runtime.run(Step(rows)).rows
    assert nothing.tokens == ()
    assert nothing.logits is None
    assert last.logits is not None
    assert every.logits is not None
    assert last.logits.shape == (1, runtime.vocab_size)
    assert every.logits.shape == (20, runtime.vocab_size)
    assert last.logits.dtype is every.logits.dtype is torch.float32
    assert token.tokens == (int(last.logits[0].argmax()),) == (int(every.logits[-1].argmax()),)


def test_results_come_in_the_order_of_the_rows(tiny_checkpoint: Path, make: Make) -> None:
    """Decode and prefill rows of a step run in groups, of several lengths and lanes in any order."""
    runtime, alone = make(tiny_checkpoint), make(tiny_checkpoint)
    prompts = {4: ids(64, 4), 2: ids(1, 2), 3: ids(200, 3), 1: ids(66, 1)}
    rows = tuple(Row(str(lane), lane, prompt, 0, range(10 * lane, 10 * lane + 4)) for lane, prompt in prompts.items())
    together = [result.tokens for result in runtime.run(Step(rows)).rows]
    assert together == [alone.run(Step((row,))).rows[0].tokens for row in rows]


def test_a_refused_step_runs_nothing(tiny_checkpoint: Path, make: Make) -> None:
    runtime, tokens = make(tiny_checkpoint), ids(30)
    runtime.run(Step((Row("a", 1, tokens[:20], 0, (1,)),)))
    good = Row("b", 2, tokens, 0, (2,))
    with pytest.raises(StepError):
        runtime.run(Step((good, Row("a", 1, tokens[20:], 21, (1,)))))
    for states in runtime.cache.banks.values():
        assert not states.recurrent[2].any()
    runtime.run(Step((Row("a", 1, tokens[20:], 20, (1,)),)))


def test_grouping_pads_little_and_never_mixes_alignments() -> None:
    def row(lane: int, tokens: int, start: int = 0) -> Row:
        return Row(str(lane), lane, [0] * tokens, start, (1,))

    groups = group_rows([row(1, 100), row(2, 90), row(3, 9), row(4, 1, 5), row(5, 1), row(6, 95, 33), row(7, 20, 64)])
    lanes = [[r.lane for r in group] for group in groups]
    assert lanes == [[4, 5], [1, 2], [7], [3], [6]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "gpu"),
        ("dtype", "float16"),
        ("num_lanes", 0),
        ("num_blocks", 8),
        ("tp_degree", 4),
    ],
)
def test_bad_configuration_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        RuntimeConfig(model=tmp_path, **{"max_model_len": 512, field: value})  # type: ignore[arg-type]


def test_the_neuron_device_is_refused_where_there_is_no_runtime_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='neuron'"):
        open_runtime(RuntimeConfig(model=tmp_path, device="neuron", tp_degree=4))


def test_the_last_layer_runs_for_the_tokens_that_are_asked_of(tiny_checkpoint: Path, make: Make) -> None:
    """A batch of unequal rows, asked for all logits and for the last ones: the same, and the same memory afterwards."""
    whole, last = make(tiny_checkpoint), make(tiny_checkpoint)
    lengths = (70, 64, 65)
    found: dict[Output, list[torch.Tensor]] = {}
    for runtime, output in ((whole, Output.ALL_LOGITS), (last, Output.LOGITS)):
        rows = tuple(
            Row(str(n), n + 1, ids(length, seed=n), 0, (2 * n + 1, 2 * n + 2), output=output)
            for n, length in enumerate(lengths)
        )
        first = runtime.run(Step(rows)).rows
        then = tuple(
            Row(str(n), n + 1, [7], end, (2 * n + 1, 2 * n + 2), output=output) for n, end in enumerate(lengths)
        )
        found[output] = [row.logits[-1:] for row in (*first, *runtime.run(Step(then)).rows) if row.logits is not None]
    assert len(found[Output.LOGITS]) == 6
    for actual, expected in zip(found[Output.LOGITS], found[Output.ALL_LOGITS], strict=True):
        assert (actual - expected).abs().max() <= 1e-5  # other matrix shapes, so other roundings
    assert not torch.equal(found[Output.LOGITS][0], found[Output.LOGITS][1])


def test_a_prompt_whose_rows_want_nothing_leaves_the_memory_of_one_that_does(tiny_checkpoint: Path, make: Make) -> None:
    runtime, tokens = make(tiny_checkpoint), ids(130, seed=5)
    runtime.run(Step((Row("a", 1, tokens[:129], 0, (1, 2, 3)),)))
    runtime.run(Step((Row("b", 2, tokens[:129], 0, (4, 5, 6), output=Output.LOGITS),)))
    quiet, asked = (
        logits(runtime, Row(name, lane, tokens[129:], 129, blocks, output=Output.LOGITS))
        for name, lane, blocks in (("a", 1, (1, 2, 3)), ("b", 2, (4, 5, 6)))
    )
    assert torch.equal(quiet, asked)
