"""The graphs with the NKI kernels in them, run by the interpreter: what other files say of plain graphs holds of these.

The tests that are imported run here again, on applications whose options say `kernels="nki"`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nki_kernels.interpreter import launch
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.buckets import Buckets, PrefillBucket
from qwen36_neuron.graph.options import GraphOptions
from qwen36_neuron.nxdi.config import Qwen36InferenceConfig
from qwen36_neuron.runtime import Commit, Output, Row, RuntimeConfig, Step, open_runtime

from .rig.container import CpuContainer
from .support import BLOCKS, TOLERANCE, last, logits, neuron, snapshot
from .test_against_cpu_runtime import (  # noqa: F401
    test_200_steps_of_traffic,
    test_a_checkpoint_continues_bit_for_bit,
    test_every_logit_of_a_prompt,
    test_more_checkpoints_than_a_graph_takes,
)
from .test_hazards import (  # noqa: F401
    test_dummy_rows_touch_nothing,
    test_one_token_suffix,
    test_padding_does_not_advance_the_state,
    test_prior_mask_in_the_prefix_path_without_kernels,
    test_stale_lane,
    test_warm_up_pollution,
)
from .test_runtime import test_opened_from_a_folder, test_results_are_what_was_asked_in_the_order_of_the_rows  # noqa: F401


@pytest.fixture
def make_options(make_options: Callable[..., GraphOptions]) -> Callable[..., GraphOptions]:
    """The tests' options with kernels. The tiny checkpoint has one key head, which two cores cannot share."""
    return lambda **changes: make_options(**({"kernels": "nki", "logical_cores": 1} | changes))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """(kernel, cores) that the interpreter has run."""
    counts: Counter[tuple[str, int]] = Counter()
    run = launch.run

    def counted(kernel: Any, args: Any, kwargs: Any) -> Any:
        counts[kernel.__name__, kernel.lnc] += 1
        return run(kernel, args, kwargs)

    monkeypatch.setattr(launch, "run", counted)
    return counts


def test_two_cores_a_rank(
    demo_checkpoint: Path,
    parallel_state: None,
    make_options: Callable[..., GraphOptions],
    launches: Counter[tuple[str, int]],
    tokens: list[int],
) -> None:
    """As a Trn2 is used: every kernel on both physical cores of a logical one. The larger checkpoint can be shared."""
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM

    options = make_options(logical_cores=2)
    config = Qwen36InferenceConfig.from_checkpoint(demo_checkpoint, options)
    runtime = neuron(CpuContainer(NeuronQwen36ForCausalLM(str(demo_checkpoint), config)))
    sizes = {"max_model_len": 512, "num_lanes": 4, "num_blocks": 65, "num_slots": 4}
    plain = open_runtime(RuntimeConfig(demo_checkpoint, kernels="torch", **sizes))
    for row in (
        last(1, tokens[:100], 0, BLOCKS),
        last(1, tokens[100:290], 100, BLOCKS, commits=(Commit(128, 2), Commit(256, 1))),
        last(1, tokens[290:291], 290, BLOCKS),
        last(2, tokens[128:130], 128, BLOCKS, restore=2),
    ):
        assert (logits(runtime, row) - logits(plain, row)).abs().max() <= TOLERANCE
    assert {cores for _, cores in launches} == {2}


def test_every_operation_of_a_graph_is_a_kernel(
    load: Callable[..., Any], launches: Counter[tuple[str, int]], tokens: list[int]
) -> None:
    runtime = neuron(load())
    runtime.run(Step((Row("a", 1, tokens[:70], 0, BLOCKS),)))
    prefill = {"causal_conv1d": 3, "state_copy": 3, "gated_delta_rule_prefill": 3}
    assert {name: n for (name, _), n in launches.items()} == prefill | {"gated_rms_norm": 3, "paged_attention": 1}
    launches.clear()
    runtime.run(Step((Row("a", 1, tokens[70:71], 70, BLOCKS),)))
    decode = {"causal_conv1d_step": 3, "gated_delta_rule_decode": 3}
    assert {name: n for (name, _), n in launches.items()} == decode | {"gated_rms_norm": 3, "paged_attention": 1}


def test_every_operation_of_a_verify_graph_is_a_kernel(
    load: Callable[..., Any], launches: Counter[tuple[str, int]], tokens: list[int]
) -> None:
    """Two sequences and rows of padding, which are one launch a layer."""
    container = load(max_drafts=3)
    runtime = neuron(container, max_drafts=3)
    for lane in (1, 2):
        runtime.run(Step((Row("a", lane, tokens[:70], 0, [block + 8 * lane for block in range(2)]),)))
    launches.clear()
    rows = [Row("a", lane, tokens[70:71], 70, [8 * lane, 8 * lane + 1], drafts=(5, 6, 7)[:lane]) for lane in (1, 2)]
    runtime.run(Step(tuple(rows)))
    verify = {"causal_conv1d_verify": 3, "gated_delta_rule_verify": 3}
    assert {name: n for (name, _), n in launches.items()} == verify | {"gated_rms_norm": 3, "paged_attention": 1}


def test_a_commit_writes_its_slot_and_no_other(load: Callable[..., Any], tokens: list[int]) -> None:
    """And nothing writes entry 0, which a row that starts reads as zeros."""
    container = load()
    runtime = neuron(container)
    before = snapshot(container)
    runtime.run(Step((Row("a", 2, tokens[:100], 0, BLOCKS, commits=(Commit(64, 3),)),)))
    runtime.run(Step((Row("a", 2, tokens[100:101], 100, BLOCKS),)))
    slot = container.app.options.num_lanes + 3
    for name, state in container.memory.named_parameters():
        if "past_key_values" not in name:
            changed = [entry for entry in range(len(state)) if not torch.equal(state[entry], before[name][entry])]
            assert changed == [2, slot]
            assert not state[0].any()


def test_bfloat16_states_stay_fp32(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    container = load(dtype="bfloat16")
    row = last(1, tokens[:130], 0, BLOCKS)
    got, want = logits(neuron(container), row), logits(cpu, row)
    assert (got - want).abs().max() <= 0.1  # logits of 1.6 at most, 8 bits of fraction
    assert {bank.dtype for bank in container.memory.recurrent} == {torch.float32}


def test_the_artifact_keeps_the_choice_and_a_start_must_agree(load: Callable[..., Any], tmp_path: Path) -> None:
    container = load()
    container.app.config.save(str(tmp_path))
    assert Qwen36InferenceConfig.load(str(tmp_path)).neuron_config.options.kernels == "nki"
    neuron(container, kernels="nki")
    with pytest.raises(ConfigError, match="kernels is nki, asked for torch"):
        neuron(container, kernels="torch")


def test_what_the_kernels_do_not_take_is_refused(
    make_app: Callable[..., Any], make_options: Callable[..., GraphOptions]
) -> None:
    with pytest.raises(ConfigError, match="1 DeltaNet key heads a rank must be a multiple of 2 on 2 physical cores"):
        make_app(logical_cores=2)
    with pytest.raises(ConfigError, match=r"prefill_buckets=\[192\]"):
        make_options(buckets=Buckets((PrefillBucket(192, 512),), (512,)))
    with pytest.raises(ConfigError, match="does not run on device=neuron"):
        make_options(kernels="interpreter")


def test_output_kinds(load: Callable[..., Any], tokens: list[int]) -> None:
    runtime = neuron(load())
    (result,) = runtime.run(Step((Row("a", 1, tokens[:70], 0, BLOCKS, output=Output.TOKEN),))).rows
    again = logits(neuron(load()), last(1, tokens[:70], 0, BLOCKS))
    assert result.tokens == (int(again.argmax()),)
