"""Graphs with the fused kernels of a decode step, run by the interpreter, against the CPU runtime in fp32.

The kernels round norms, gates and what goes into a projection to bfloat16, as bfloat16 graphs do; the bar is 2e-2 of
the largest logit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen36_neuron.checkpoint.conversion import FORMATS, Conversion
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint
from qwen36_neuron.checkpoint.quantiser import Quantiser
from qwen36_neuron.checkpoint.weight_format import WeightFormat
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.sampling import parameter_tensor
from qwen36_neuron.graph.stages import StageKernels
from qwen36_neuron.ops.sampling import UNDECIDED, sample_all
from qwen36_neuron.runtime import Commit, DraftRequest, Row, RuntimeConfig, Sampling, Step, open_runtime

from .rig.container import CpuContainer
from .support import BLOCKS, TRAINED, last, logits, neuron, prompts, snapshot
from .test_kernels import launches  # noqa: F401

BAR = 2e-2
PENDING = ("inputs", "factors")
"""States that only a row with drafts changes."""
SIZES: dict[str, Any] = {"max_model_len": 512, "num_lanes": 2, "num_blocks": 65, "num_slots": 4}
FUSED = ("decode_mlp", "decode_mlp_projection", "norm_projection", "decode_delta_net", "decode_attention")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained checkpoint by number format."""
    made = {WeightFormat.BF16.value: TRAINED}
    for weights in (WeightFormat.FP8_MLP, WeightFormat.FP8):
        made[weights.value] = tmp_path_factory.mktemp("fp8") / weights.value
        Quantiser(Conversion(TRAINED, FORMATS[weights]), made[weights.value]).run()
    return made


@pytest.fixture
def make(parallel_state: None, make_options: Callable[..., Any], folders: dict[str, Path]) -> Callable[..., Any]:
    """A container of an application with fused kernels on two cores."""
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    def make(weights: str = "bf16", **changes: Any) -> CpuContainer:
        settings = {
            "weights": weights,
            "dtype": "bfloat16",
            "kernels": "fused",
            "logical_cores": 2,
            "num_lanes": 2,
        } | changes
        options = make_options(**settings)
        config = Qwen36InferenceConfig.from_checkpoint(folders[weights], options)
        return CpuContainer(NeuronQwen36ForCausalLM(str(folders[weights]), config))

    return make


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Questions of the kind that the checkpoint has seen, one after the other."""
    return [token for prompt in prompts(8) for token in prompt][:120]


@pytest.mark.parametrize("weights", ["bf16", "fp8-mlp", "fp8"])
def test_prompts_and_steps_are_those_of_the_cpu(
    make: Callable[..., Any],
    folders: dict[str, Path],
    text: list[int],
    weights: str,
    launches: Counter[tuple[str, int]],  # noqa: F811
) -> None:
    """A prompt with a checkpoint, a step, a second sequence from the checkpoint, a step of both."""
    runtime, exact = neuron(make(weights)), open_runtime(RuntimeConfig(folders[weights], kernels="torch", **SIZES))
    shared = (BLOCKS[0], 20, 21)
    steps = [
        (last(1, text[:70], 0, BLOCKS, commits=(Commit(64, 2),)),),
        (last(1, text[70:71], 70, BLOCKS),),
        (last(2, text[64:75], 64, shared, restore=2),),
        (last(1, text[71:72], 71, BLOCKS), last(2, text[75:76], 75, shared)),
    ]
    compare(runtime, exact, steps)
    calls, layers = 2, len(runtime.app.config.model_config.layer_types)  # calls of one token a row
    mixers = layers * 3 // 4
    joined = 0 if weights == "fp8-mlp" else mixers - 1  # the first layer has no block before it
    per_call = (layers - joined, joined, mixers - joined, mixers, layers // 4)
    assert {name: launches[name, 2] for name in FUSED} == {
        name: calls * count for name, count in zip(FUSED, per_call, strict=True)
    }
    between = ("causal_conv1d_step", "gated_delta_rule_decode", "gated_norm_projection")
    assert not any(launches[name, 2] for name in between)
    assert launches["gated_rms_norm", 2] == 2 * layers * 3 // 4  # of prompts alone
    assert launches["paged_attention", 2] == 2 * layers // 4
    assert launches["decode_head", 2] == 2 + calls


@pytest.mark.parametrize("verify", ["fused", "nki"])
def test_rows_with_drafts_are_those_of_a_text_without(
    make: Callable[..., Any],
    text: list[int],
    verify: Any,
    launches: Counter[tuple[str, int]],  # noqa: F811
) -> None:
    """Rows of one to five tokens: drafts all right, across a boundary, the second wrong, the first wrong, none.

    With `nki` for this stage alone the weights are those of the fused kernels, read by plain operations.
    """
    stages = StageKernels("nki", "fused", verify)
    runtime = neuron(make(max_drafts=4, kernels=stages), max_drafts=4)
    exact = open_runtime(RuntimeConfig(TRAINED, kernels="torch", **SIZES))
    held = 61
    coming = follow(exact, text[:held], 12)
    line = [*text[:held], *coming]

    def wrong(position: int) -> int:
        return (line[position] + 1) % 2000

    runtime.run(Step((Row("test", 1, line[:held], 0, BLOCKS),)))
    launches.clear()
    crossed = (Commit(64, 3),)
    for at, drafts, commits, right in (
        (61, line[62:66], (), 4),
        (66, [line[67], wrong(68), line[69]], crossed, 1),
        (68, [wrong(69)], (), 0),
        (69, [], (), 0),
    ):
        row = Row("test", 1, line[at : at + 1], at, BLOCKS, drafts=tuple(drafts), commits=commits)
        (found,) = runtime.run(Step((row,))).rows
        assert list(found.tokens) == line[at + 1 : at + 2 + right], at
    layers = len(runtime.app.config.model_config.layer_types)
    steps = 4 if verify == "fused" else 1  # a row without drafts that takes none in is decoded
    assert launches["decode_mlp", 2] + launches["decode_mlp_projection", 2] == steps * layers
    assert launches["decode_mlp_projection", 2] == steps * (layers * 3 // 4 - 1)
    assert launches["decode_attention", 2] == steps * layers // 4
    assert launches["decode_head", 2] == 4
    assert launches["gated_delta_rule_verify", 2] == 3 * layers * 3 // 4
    warm = logits(runtime, last(2, line[64:68], 64, (BLOCKS[0], 20), restore=3))
    cold = logits(exact, last(1, line[:68], 0, BLOCKS))
    assert (warm - cold).abs().max() <= BAR * cold.abs().max()


def follow(runtime: Any, prompt: list[int], count: int) -> list[int]:
    """The most likely tokens after a prompt, by lane 1."""
    out: list[int] = []
    run, start = prompt, 0
    for _ in range(count):
        out.append(int(logits(runtime, last(1, run, start, BLOCKS))[-1].argmax()))
        run, start = out[-1:], start + len(run)
    return out


def compare(runtime: Any, exact: Any, steps: list[tuple[Row, ...]]) -> None:
    """Logits within the bar, and the same most likely token, after every row."""
    for rows in steps:
        for row, got, want in zip(rows, runtime.run(Step(rows)).rows, exact.run(Step(rows)).rows, strict=True):
            assert (got.logits - want.logits).abs().max() <= BAR * want.logits.abs().max(), row
            assert int(got.logits[-1].argmax()) == int(want.logits[-1].argmax()), row


def test_no_weight_is_held_twice(make: Callable[..., Any], folders: dict[str, Path]) -> None:
    """As many bytes as plain graphs hold, whatever the format."""
    for weights in folders:
        fused, plain = (make(weights, kernels=kernels).app.rank_state_dict(0) for kernels in ("fused", "torch"))
        sizes = [sum(tensor.numel() * tensor.itemsize for tensor in held.values()) for held in (fused, plain)]
        assert sizes[0] == sizes[1], weights


def test_states_are_fp32_and_dummy_rows_touch_nothing(make: Callable[..., Any], text: list[int]) -> None:
    """Of two rows of a decode graph one is used: its lane changes, its place in the cache, and no other.

    Likewise where a row verifies fewer drafts than its graph takes.
    """
    container = make(max_drafts=2)
    runtime = neuron(container, max_drafts=2)
    runtime.run(Step((Row("test", 2, text[:66], 0, BLOCKS),)))
    for at, drafts in ((66, ()), (67, tuple(text[68:69]))):
        before = snapshot(container)
        runtime.run(Step((Row("test", 2, text[at : at + 1], at, BLOCKS, drafts=drafts),)))
        written = [BLOCKS[place // 64] * 64 + place % 64 for place in range(at, at + 1 + len(drafts))]
        for name, state in container.memory.named_parameters():
            old, expected = before[name], [2]
            if "past_key_values" in name:
                state, old, expected = state.flatten(0, 1), old.flatten(0, 1), written
            changed = [at for at in range(len(state)) if not torch.equal(state[at], old[at])]
            assert changed == expected or (changed == [] and name.startswith(PENDING)), name
            assert "past_key_values" in name or not state[0].any()
    assert {bank.dtype for bank in container.memory.recurrent} == {torch.float32}


def test_a_prompt_of_one_token_starts_its_sequence(
    make: Callable[..., Any], folders: dict[str, Path], text: list[int]
) -> None:
    """A decode graph runs it: it sees itself alone, whatever its lane and its blocks held."""
    runtime, exact = neuron(make()), open_runtime(RuntimeConfig(TRAINED, kernels="torch", **SIZES))
    runtime.run(Step((Row("test", 1, text[5:75], 0, BLOCKS),)))
    compare(runtime, exact, [(last(1, text[:1], 0, BLOCKS),), (last(1, text[1:2], 1, BLOCKS),)])


def test_draws_are_those_of_the_whole_vocabulary(make: Callable[..., Any], text: list[int]) -> None:
    """Against the definition on the logits of the same call; what the candidates do not tell is left to the host."""
    app = make(sampling_candidates=64).app
    app.prefill(Row("prompt", 1, text[:40], 0, BLOCKS))
    choice, decided, undecided = random.Random(0), 0, 0
    for at in range(40, 60):
        how = Sampling(
            choice.choice((0.5, 2.0, 8.0)), choice.random(), top_k=choice.choice((0, 5, 60)),
            top_p=choice.choice((0.9, 1.0)), min_p=choice.choice((0.0, 0.01)),
        )  # fmt: skip
        (answer,) = app.decode([Row("prompt", 1, text[at : at + 1], at, BLOCKS, sampling=how)])
        logits = answer.logits.fetch()
        if answer.token == UNDECIDED:
            undecided += 1
        else:
            decided += 1
            assert answer.token == int(sample_all(logits, parameter_tensor([how]), logits.shape[1])), at
    assert min(decided, undecided) >= 2, (decided, undecided)
    (answer,) = app.decode([Row("prompt", 1, text[60:61], 60, BLOCKS)])
    assert answer.token == int(answer.logits.fetch().argmax())


def test_drafts_of_the_layer_are_those_of_the_cpu(
    make: Callable[..., Any],
    text: list[int],
    launches: Counter[tuple[str, int]],  # noqa: F811
) -> None:
    """Its head is the kernel, with the layer's own norm in it; the layer itself is not fused."""
    drafting = {"max_drafts": 3, "max_proposals": 3}
    runtime = neuron(make(**drafting), **drafting)
    exact = open_runtime(RuntimeConfig(TRAINED, kernels="torch", **SIZES, **drafting))
    for side in (runtime, exact):
        side.run(Step((Row("test", 1, text[:70], 0, BLOCKS),)))
        side.run(Step((Row("test", 1, text[70:71], 70, BLOCKS, drafts=tuple(text[71:74])),)))
    launches.clear()
    request = DraftRequest("test", 1, tuple(text[71:73]), BLOCKS, 3)
    assert runtime.draft([request]) == exact.draft([request])
    assert launches["decode_head", 2] == 3
    assert not any(launches[name, 2] for name in FUSED)


def test_what_the_kernels_do_not_take_is_refused(
    make_options: Callable[..., Any], parallel_state: None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    options = make_options(dtype="bfloat16", kernels="fused", logical_cores=1, num_blocks=600, num_lanes=64)
    Qwen36InferenceConfig.from_checkpoint(tiny_checkpoint, replace(options, num_lanes=48))
    with pytest.raises(ConfigError, match="64 sequences of 1 key heads a rank are more than 48"):
        Qwen36InferenceConfig.from_checkpoint(tiny_checkpoint, options)
    with pytest.raises(ConfigError, match="num_lanes=65: make 65 tokens a step, of which the fused kernels take 64"):
        replace(options, num_lanes=65)
    for changes, match in (
        ({"intermediate_size": 576}, "576 intermediate channels a rank must be a multiple of 128 on 1 physical"),
        ({"vocab_size": 4100}, "4100 tokens of the vocabulary a rank must be a multiple of 8 on 1 physical"),
    ):
        made = make_checkpoint(tmp_path / next(iter(changes)), replace(PRESETS["tiny"], **changes))
        with pytest.raises(ConfigError, match=match):
            Qwen36InferenceConfig.from_checkpoint(made, replace(options, num_lanes=48))
