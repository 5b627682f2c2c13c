"""The Neuron runtime: the step contract, and what happens when the device does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.runtime import (
    Commit,
    DeviceError,
    Output,
    Row,
    RuntimeConfig,
    Step,
    StepError,
    device_thread,
    open_runtime,
)
from qwen36_neuron.runtime.neuron import NeuronRuntime

from .support import BLOCKS, TOLERANCE, last, logits, neuron, runtime_config, snapshot


def test_results_are_what_was_asked_in_the_order_of_the_rows(
    load: Callable[..., Any], cpu: Any, tokens: list[int]
) -> None:
    runtime = neuron(load())
    for side in (runtime, cpu):
        side.run(Step((Row("d", 4, tokens[:9], 0, (40,)), Row("b", 2, tokens[:64], 0, (20, 21)))))
    rows = (
        Row("a", 1, tokens[:70], 0, BLOCKS, output=Output.ALL_LOGITS),
        Row("d", 4, [7], 9, (40,), output=Output.LOGITS),
        Row("c", 3, tokens[:30], 0, (30,), output=Output.NOTHING),
        Row("b", 2, [8], 64, (20, 21), output=Output.TOKEN),
    )
    actual, expected = runtime.run(Step(rows)).rows, cpu.run(Step(rows)).rows
    assert [result.tokens for result in actual] == [result.tokens for result in expected]
    for got, want in zip(actual, expected, strict=True):
        assert (got.logits is None) == (want.logits is None)
        if want.logits is not None:
            assert got.logits.shape == want.logits.shape
            assert got.logits.dtype is torch.float32
            late = slice(1, None) if len(want.logits) > 1 else slice(None)
            assert (got.logits[late] - want.logits[late]).abs().max() <= TOLERANCE


def test_logits_are_fetched_before_the_next_call(
    load: Callable[..., Any], tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device may use the memory of a graph's outputs again. Two rows with a checkpoint each take two calls."""
    from qwen36_neuron.graph.logits import Logits

    container = load(decode_commits=1)
    runtime = neuron(container)
    lanes = ((1, (1,)), (2, (2,)))
    runtime.run(Step(tuple(Row(str(lane), lane, tokens[:63], 0, blocks) for lane, blocks in lanes)))
    before, seen, fetch = len(container.calls), [], Logits.fetch

    def noted(self: Logits) -> torch.Tensor:
        seen.append(len(container.calls) - before)
        return fetch(self)

    monkeypatch.setattr(Logits, "fetch", noted)
    rows = (
        Row(str(lane), lane, [5], 63, blocks, commits=(Commit(64, lane),), output=Output.LOGITS)
        for lane, blocks in lanes
    )
    runtime.run(Step(tuple(rows)))
    assert seen == [1, 2]


def test_a_prompt_longer_than_any_bucket(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    from qwen36_neuron.graph.buckets import Buckets, PrefillBucket

    container = load(buckets=Buckets((PrefillBucket(128, 512),), (512,)))
    row = last(1, tokens[:509], 0, BLOCKS)
    assert (logits(neuron(container), row) - logits(cpu, row)).abs().max() <= TOLERANCE
    assert len(container.calls) == 4


def test_rows_take_the_smallest_decode_graph(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    """One row, then two, then four, on graphs of one, two and four rows."""
    container = load(decode_rows=(1, 2))
    runtime = neuron(container)
    runtime.warm_up()
    assert set(container.calls) == {(w.tag, i) for w, i in container.routes.values()}
    assert len(container.routes) == 12 + 3 * 3
    prompts = tuple(
        Row(str(n), n, tokens[n : n + 62], 0, (10 + n, 20 + n), output=Output.NOTHING) for n in (1, 2, 3, 4)
    )
    for side in (runtime, cpu):
        side.run(Step(prompts))
    container.calls.clear()
    for step, lanes in enumerate([(3,), (1, 4), (1, 2, 3, 4)]):
        rows = tuple(
            Row(str(n), n, [step], held, (10 + n, 20 + n), output=Output.LOGITS)
            for n in lanes
            for held in [62 + sum(n in earlier for earlier in [(3,), (1, 4)][:step])]
        )
        actual, expected = runtime.run(Step(rows)).rows, cpu.run(Step(rows)).rows
        for got, want in zip(actual, expected, strict=True):
            assert (got.logits - want.logits).abs().max() <= TOLERANCE
    sizes = [container.app.options.decode_graphs[index][0] for _, index in container.calls]
    assert sizes == [1, 2, 4]


def test_a_refused_step_runs_nothing(load: Callable[..., Any], tokens: list[int]) -> None:
    container = load()
    runtime = neuron(container)
    before = snapshot(container)
    with pytest.raises(StepError):
        runtime.run(Step((last(1, tokens[:20], 0, BLOCKS), last(2, tokens[20:40], 20, BLOCKS))))
    assert not container.calls
    assert all(torch.equal(state, before[name]) for name, state in container.memory.named_parameters())
    runtime.run(Step((last(1, tokens[:20], 0, BLOCKS),)))


def test_a_device_that_hangs(load: Callable[..., Any], tokens: list[int]) -> None:
    container = load()
    runtime = NeuronRuntime(runtime_config(container), container.app, step_timeout=0.2)
    release = threading.Event()
    container.app.context_encoding_model.call = lambda *_: release.wait(30)
    with pytest.raises(DeviceError, match=r"a step of 1 rows and 20 tokens did not end in 0\.2 s"):
        runtime.run(Step((last(1, tokens[:20], 0, BLOCKS),)))
    release.set()
    with pytest.raises(DeviceError, match="out of use since an earlier failure"):
        runtime.run(Step((last(1, tokens[:20], 0, BLOCKS),)))
    runtime.close()


def test_prompt_logprobs_may_take_longer_than_one_step(
    load: Callable[..., Any], tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device runs once a token, and has the step's time for each; a run that hangs among them is still found."""
    clock = [0.0]
    monkeypatch.setattr(device_thread, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    container = load()
    runtime = NeuronRuntime(runtime_config(container), container.app, step_timeout=0.4)
    decode, held = container.app.decode, threading.Event()

    def slow(rows: Any) -> Any:
        clock[0] += 0.3
        return decode(rows)

    container.app.decode = slow
    row = Row("a", 1, tokens[:40], 0, BLOCKS, output=Output.ALL_LOGITS)
    assert runtime.run(Step((row,))).rows[0].logits.shape[0] == 40
    assert clock[0] > 10
    calls = iter(range(40))

    def hangs(rows: Any) -> Any:
        if next(calls) < 5:
            return slow(rows)
        clock[0] += 0.5
        return held.wait()

    container.app.decode = hangs
    with pytest.raises(DeviceError, match=r"did not end in 0\.4 s"):
        runtime.run(Step((row,), released_lanes=(1,)))
    held.set()


def test_a_device_that_fails(load: Callable[..., Any], tokens: list[int]) -> None:
    container = load()
    runtime = neuron(container)

    def fail(*_: Any) -> None:
        raise RuntimeError("NRT_EXEC_HW_ERR_COLLECTIVES")

    container.app.token_generation_model.call = fail
    with pytest.raises(DeviceError, match="NRT_EXEC_HW_ERR_COLLECTIVES"):
        runtime.warm_up()
    with pytest.raises(DeviceError, match="out of use"):
        runtime.run(Step((last(1, tokens[:20], 0, BLOCKS),)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_slots", 5), ("num_lanes", 3), ("num_blocks", 66), ("dtype", "bfloat16"), ("tp_degree", 2)],
)
def test_an_artifact_of_other_sizes_is_refused_by_name(load: Callable[..., Any], field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{field} is .*, asked for {value}"):
        neuron(load(), **{field: value})


def test_a_longer_sequence_than_compiled_for(load: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="max_model_len is 512, asked for 600"):
        neuron(load(), max_model_len=600)


def test_no_artifact(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="artifact"):
        open_runtime(RuntimeConfig(model=tiny_checkpoint, device="neuron", artifact=tiny_checkpoint))


def test_opened_from_a_folder(
    load: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: list[int]
) -> None:
    """As the server does it; only reading compiled graphs from the file is stood in for."""
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM

    from .rig.container import CpuContainer

    made = load()
    made.app.config.save(str(tmp_path))
    (tmp_path / "model.pt").touch()

    def read(app: NeuronQwen36ForCausalLM, folder: str, skip_warmup: bool) -> None:
        assert Path(folder) == tmp_path
        assert skip_warmup, "the runtime warms up by itself, so that failures are seen"
        CpuContainer(app)

    monkeypatch.setattr(NeuronQwen36ForCausalLM, "load", read)
    runtime = open_runtime(runtime_config(made, model=tiny_checkpoint, artifact=tmp_path))
    runtime.warm_up()
    row = last(1, tokens[:20], 0, BLOCKS)
    assert torch.equal(logits(runtime, row), logits(neuron(made), row))
    runtime.close()


@pytest.mark.parametrize("field", ["rms_norm_eps", "vocab_size", "rope"])
def test_an_override_that_contradicts_the_artifact_is_refused(
    load: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM

    from .rig.container import CpuContainer

    made = load()
    made.app.config.save(str(tmp_path))
    (tmp_path / "model.pt").touch()
    monkeypatch.setattr(NeuronQwen36ForCausalLM, "load", lambda app, *_, **__: CpuContainer(app))
    own = ModelConfig.from_pretrained(tiny_checkpoint)
    other = replace(own.rope, theta=5e5) if field == "rope" else getattr(own, field) * 2
    given = {"model": tiny_checkpoint, "artifact": tmp_path}
    open_runtime(runtime_config(made, **given, description=replace(own, eos_token_ids=(1,)))).close()
    with pytest.raises(ConfigError, match=rf"^artifact=.*another network: {field} is .*, asked for"):
        open_runtime(runtime_config(made, **given, description=replace(own, **{field: other})))


def test_fp8_weights_are_not_opened_where_they_would_be_misread(
    load: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM

    made = load()
    made.app.config.neuron_config.qwen36 |= {"weights": "fp8"}
    made.app.config.save(str(tmp_path))
    (tmp_path / "model.pt").touch()
    monkeypatch.setattr(NeuronQwen36ForCausalLM, "load", lambda *_, **__: pytest.fail("was loaded"))
    monkeypatch.delenv("XLA_HANDLE_SPECIAL_SCALAR", raising=False)
    monkeypatch.setenv("UNSAFE_FP8FNCAST", "1")
    with pytest.raises(ConfigError, match=r"environment='XLA_HANDLE_SPECIAL_SCALAR=None'.*misread"):
        open_runtime(runtime_config(made, model=tiny_checkpoint, artifact=tmp_path))
