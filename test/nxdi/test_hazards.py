"""Every known hazard of running a recurrence under NxDI, one test each, named after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from qwen36_neuron.errors import ConfigError
from qwen36_neuron.graph.buckets import Buckets, PrefillBucket
from qwen36_neuron.graph.inputs import DecodeInputs, DraftInputs, PrefillInputs, VerifyInputs
from qwen36_neuron.nxdi.config import Qwen36NeuronConfig
from qwen36_neuron.nxdi.instance import check_fp32
from qwen36_neuron.runtime import Commit, Row, Step

from .rig.container import shapes_of
from .support import BLOCKS, TOLERANCE, last, logits, neuron, snapshot

DRAFTS = pytest.mark.parametrize("drafts", [{}, {"max_drafts": 2, "max_proposals": 2}], ids=["plain", "drafts"])
EACH_KIND = Buckets.grid((128,), (128,), (128,))
"""Context encoding without and with a prefix, and decoding: larger buckets differ in sizes alone."""


def test_async_look_ahead(make_options: Callable[..., Any]) -> None:
    """NxDI's look-ahead runs a step that it may throw away; a recurrent state would have advanced."""
    with pytest.raises(ConfigError, match=r"async_mode=True.*recurrent state cannot"):
        Qwen36NeuronConfig(make_options(), async_mode=True)


def test_warm_up_pollution(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    """NxDI's own warm-up runs every bucket on its example inputs, and may do so between requests."""
    container = load()
    runtime = neuron(container)
    runtime.run(Step((Row("a", 1, tokens[:100], 0, BLOCKS, commits=(Commit(64, 1),)),)))
    before = snapshot(container)
    container.calls.clear()
    container.app.warmup()
    runtime.warm_up()
    assert len(container.calls) == 2 * len(container.routes)
    for name, state in container.memory.named_parameters():
        assert torch.equal(state[1:], before[name][1:]), name
    cpu.run(Step((Row("a", 1, tokens[:100], 0, BLOCKS, commits=(Commit(64, 1),)),)))
    for row in (last(1, tokens[100:140], 100, BLOCKS), last(2, tokens[:70], 0, range(20, 24))):
        assert (logits(runtime, row) - logits(cpu, row)).abs().max() <= TOLERANCE


def test_stale_lane(load: Callable[..., Any], tokens: list[int]) -> None:
    """A lane, and blocks, that another sequence has used; what they hold is not even finite."""
    used, fresh = load(), load()
    for state in used.memory.states():
        state[1:].fill_(7.0)
    for bank in (*used.memory.recurrent, *used.memory.window):
        bank[1:].fill_(torch.nan)
    for row in (last(2, tokens[:130], 0, BLOCKS), last(3, tokens[:1], 0, BLOCKS)):
        assert torch.equal(logits(neuron(used), row), logits(neuron(fresh), row))


@pytest.mark.parametrize("prefix", [64, 128])
def test_one_token_suffix(load: Callable[..., Any], cpu: Any, tokens: list[int], prefix: int) -> None:
    """A reused prefix and one more token: too short for context encoding, so the decode graph must restore."""
    container = load()
    runtime = neuron(container)
    for side in (runtime, cpu):
        side.run(Step((Row("a", 1, tokens[:130], 0, BLOCKS, commits=(Commit(prefix, 1),)),)))
        side.run(Step((Row("b", 2, tokens[200:300], 0, range(20, 28)),)))
    row = last(2, tokens[prefix : prefix + 1], prefix, BLOCKS, restore=1)
    assert (logits(runtime, row) - logits(cpu, row)).abs().max() <= TOLERANCE
    assert container.calls[-1][0] == container.app.token_generation_model.tag
    assert (
        logits(runtime, last(2, tokens[:1], 0, BLOCKS)) - logits(cpu, last(2, tokens[:1], 0, BLOCKS))
    ).abs().max() <= 5e-5


def test_computed_prefix_is_not_fed_again(make_app: Callable[..., Any], tokens: list[int]) -> None:
    """NxDI fills a bucket with tokens from before the chunk; ours holds the chunk, zeros and nothing else."""
    wrapper = make_app().context_encoding_model
    start = 150
    inputs = wrapper.lay_out([Row("a", 1, [n + 1 for n in tokens[start:247]], start, BLOCKS)])
    lead = start % 64
    assert inputs.tokens.shape == (1, 128)
    assert inputs.tokens[0, lead : lead + 97].tolist() == [n + 1 for n in tokens[start:247]]
    assert not inputs.tokens[0, :lead].any()
    assert not inputs.tokens[0, lead + 97 :].any()
    assert inputs.table[0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [128, 256, 512])
def test_padding_does_not_advance_the_state(load: Callable[..., Any], cpu: Any, tokens: list[int], size: int) -> None:
    """33 tokens in buckets of up to 512: the state stops, and the window ends, at the last of them."""
    container = load(buckets=Buckets((PrefillBucket(size, 512),), (512,)))
    step = Step((Row("a", 1, tokens[:33], 0, BLOCKS),))
    neuron(container).run(step)
    cpu.run(step)
    memory = container.memory
    for index, states in enumerate(cpu.cache.banks.values()):
        assert (memory.recurrent[index][1] - states.recurrent[1]).abs().max() <= TOLERANCE
        assert (memory.window[index][1] - states.window[1]).abs().max() <= TOLERANCE


def test_dummy_rows_touch_nothing(load: Callable[..., Any], tokens: list[int]) -> None:
    """NxDI pads a batch with the ids of idle sequences and a copy of the first row."""
    container = load()
    runtime = neuron(container)
    runtime.run(Step((Row("idle", 2, tokens[:79], 0, (20, 21)), Row("a", 3, tokens[:50], 0, (1,)))))
    before = snapshot(container)
    runtime.run(Step((Row("a", 3, [5], 50, (1,)),)))
    for name, state in container.memory.named_parameters():
        touched = 1 if "past_key_values" in name else 3  # the row's block, or its lane; and scratch
        for entry in range(1, len(state)):
            assert torch.equal(state[entry], before[name][entry]) == (entry != touched), (name, entry)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_casting_of_state_and_a_log(load: Callable[..., Any], dtype: str) -> None:
    """NxDI casts every float parameter to the model's type, recurrent state, A, dt_bias and norms among them."""
    module = next(iter(load(dtype=dtype).modules.values()))
    types = {name: parameter.dtype for name, parameter in module.named_parameters()}
    kept = [name for name, found in types.items() if found is torch.float32]
    if dtype == "bfloat16":
        endings = (".A", ".dt_bias", "norm.weight")
        states = [name for name in kept if name.startswith("kv_mgr.recurrent.")]
        weights = [name for name in kept if name.endswith(endings) and "mixer.norm" not in name]
        assert sorted(kept) == sorted(states + weights)
        assert types["network.layers.0.mixer.norm.weight"] is torch.bfloat16
        assert types["network.layers.0.mixer.conv_weight"] is torch.bfloat16
        assert types["kv_mgr.window.0"] is types["kv_mgr.past_key_values.0"] is torch.bfloat16
    module.network.layers[0].mixer.A.data = module.network.layers[0].mixer.A.data.to(torch.bfloat16)
    with pytest.raises(TypeError, match=r"layers\.0\.mixer\.A is torch\.bfloat16"):
        check_fp32(module)


def test_casting_everything_is_refused(make_options: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="cast_type='config'"):
        Qwen36NeuronConfig(make_options(), cast_type="config")


@DRAFTS
def test_no_shape_or_branch_depends_on_data(make_app: Callable[..., Any], drafts: dict[str, int]) -> None:
    """Every graph runs on tensors without values: whatever needs one (item, nonzero, a mask as an index) raises."""
    for wrapper in make_app(buckets=EACH_KIND, max_model_len=128, **drafts).models:
        instance = wrapper.get_model_instance()
        instance.load_module()
        for index, example in enumerate(wrapper.input_generator()):
            module, aliases = instance.get(index)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                outputs = module(*(mode.from_tensor(tensor) for tensor in example))
            for state, place in aliases.items():
                assert outputs[place].shape == state.shape
                assert outputs[place].dtype == state.dtype


FIELDS: dict[str, tuple[str, ...]] = {
    "context_encoding_model": PrefillInputs._fields,
    "token_generation_model": DecodeInputs._fields,
    "speculation_model": VerifyInputs._fields,
    "draft_model": DraftInputs._fields,
}


@DRAFTS
def test_unused_inputs(make_app: Callable[..., Any], drafts: dict[str, int]) -> None:
    """An input that a graph does not use is dropped while tracing, and the others then arrive in the wrong places."""
    for wrapper in make_app(buckets=EACH_KIND, max_model_len=128, **drafts).models:
        instance = wrapper.get_model_instance()
        instance.load_module()
        fields = FIELDS[wrapper.tag]
        for index, example in enumerate(wrapper.input_generator()):
            module, _ = instance.get(index)
            graph = make_fx(lambda *inputs, module=module: module(*inputs), tracing_mode="real")(*example).graph
            graph.eliminate_dead_code()
            unused = [
                fields[place]
                for place, node in enumerate(node for node in graph.nodes if node.op == "placeholder")
                if not node.users
            ]
            assert not unused, (wrapper.tag, wrapper.neuron_config.buckets[index], unused)


def test_prior_mask_in_the_prefix_path_without_kernels(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    """NxDI's plain prefix attention does not mask prefix slots that a row does not hold; here those are large."""
    container = load(buckets=Buckets((PrefillBucket(128, 512),), (512,)))
    runtime = neuron(container)
    for side in (runtime, cpu):
        side.run(Step((Row("a", 1, tokens[:70], 0, BLOCKS),)))
    for state in container.memory.past_key_values:
        state[0].fill_(50.0)
        state[2, 70 - 64 :].fill_(50.0)
        state[3:].fill_(50.0)
    for row in (last(1, tokens[70:90], 70, BLOCKS), last(1, tokens[90:91], 90, BLOCKS)):
        assert (logits(runtime, row) - logits(cpu, row)).abs().max() <= TOLERANCE


def test_bucket_equal_to_the_speculation_length(load: Callable[..., Any], cpu: Any, tokens: list[int]) -> None:
    """NxDI tells context encoding from speculation by the number of tokens; ours goes by the stage it was built for."""
    container = load()
    for module in container.modules.values():
        module.speculation_length = 128
        assert module._is_for_speculation(torch.zeros(1, 128)), "the hazard is not what it was"
    row = last(1, tokens[:128], 0, BLOCKS)
    assert (logits(neuron(container), row) - logits(cpu, row)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("lanes", [1, 4])
def test_distinct_shapes_a_bucket(make_app: Callable[..., Any], lanes: int) -> None:
    """The device finds a graph by the shapes of its inputs alone; of two equal ones the last would win silently."""
    app = make_app(num_lanes=lanes)
    shapes = [shapes_of(example) for wrapper in app.models for example in wrapper.input_generator()]
    assert len(set(shapes)) == len(shapes) == 12 + 3
    drafting = make_app(num_lanes=lanes, max_drafts=2, max_proposals=2)
    shapes = [shapes_of(example) for wrapper in drafting.models for example in wrapper.input_generator()]
    assert len(set(shapes)) == len(shapes) == 12 + 3 + 3 + 2 * 3
    with pytest.raises(ConfigError, match="hide each other"):
        Buckets((PrefillBucket(128, 0), PrefillBucket(128, 0)), (256,))


@DRAFTS
def test_states_are_aliased_in_the_first_context_encoding_bucket(
    make_app: Callable[..., Any], drafts: dict[str, int]
) -> None:
    """States are allocated from there alone; and every graph must give back the same number of other outputs."""
    app = make_app(buckets=EACH_KIND, max_model_len=128, **drafts)
    config = app.config.model_config
    expected = 2 * len(config.attention_layers) + (4 if drafts else 2) * len(config.deltanet_layers)
    expected += 2 + 2 if drafts else 0  # the draft layer's keys and values, and hidden states
    for wrapper in app.models:
        instance = wrapper.get_model_instance()
        instance.load_module()
        for index, example in enumerate(wrapper.input_generator()):
            module, aliases = instance.get(index)
            outputs = module(*example)
            assert [aliases[state] for state in module.kv_mgr.states()] == list(range(2, 2 + expected))
            assert len(outputs) == 2 + expected
    assert app.models[0].tag == "context_encoding_model"


def test_combined_kv_allocation_has_pairs_only(make_app: Callable[..., Any]) -> None:
    """NxD can allocate neighbours under `past_key_values` together, if they are of one type and size."""
    instance = make_app(dtype="bfloat16").context_encoding_model.get_model_instance()
    instance.load_module()
    states = instance.module.kv_mgr.past_key_values
    assert len(states) == 2 * len(instance.config.model_config.attention_layers)
    for keys, values in zip(states[::2], states[1::2], strict=True):
        assert keys.shape == values.shape
        assert keys.dtype == values.dtype


def test_a_commit_writes_its_slot_and_no_other(load: Callable[..., Any], tokens: list[int]) -> None:
    """Some ports rewrite the whole bank of checkpoints at every step."""
    container = load()
    runtime = neuron(container)
    before = snapshot(container)
    runtime.run(Step((Row("a", 2, tokens[:100], 0, BLOCKS, commits=(Commit(64, 3),)),)))
    slot = container.app.options.num_lanes + 3
    for name, state in container.memory.named_parameters():
        if "past_key_values" not in name:
            changed = [entry for entry in range(1, len(state)) if not torch.equal(state[entry], before[name][entry])]
            assert changed == [2, slot]
    calls = [node for node in _graph_of(container).nodes if "index_copy" in str(node.target)]
    assert len(calls) == len(list(container.memory.states()))


def _graph_of(container: Any) -> Any:
    wrapper = container.app.token_generation_model
    module, _ = container.instances[wrapper.tag].get(0)
    return make_fx(lambda *inputs: module(*inputs), tracing_mode="real")(*wrapper.input_generator()[0]).graph
