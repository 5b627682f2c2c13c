"""Quantised mixtures of experts on a CPU against transformers in fp32, which runs the same numbers multiplied out.

Tolerance: 5e-5 on logits of about one, as of quantised dense checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

pytest.importorskip("compressed_tensors")

from quantised import FORMS, Made, configure, make, maker

from qwen36_lab.reference import transformers_model
from qwen36_neuron.checkpoint.experts import joined
from qwen36_neuron.checkpoint.formats import round_inputs
from qwen36_neuron.checkpoint.load import load_inputs
from qwen36_neuron.checkpoint.maker import PRESETS, make_checkpoint, write_weights
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.model.layers import Experts
from qwen36_neuron.ops.mlp import swiglu
from qwen36_neuron.runtime import DraftRequest, Output, Row, Runtime, RuntimeConfig, Step, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime
from qwen36_neuron.runtime.cpu_layers import round_layer_inputs

TOLERANCE = 5e-5
TOKENS = torch.randint(0, 1000, (120,), generator=torch.Generator().manual_seed(0)).tolist()
CUTS = (80, 30, *[1] * 10)
SPEC = replace(
    PRESETS["tiny-moe"],
    vocab_size=1024,
    intermediate_size=128,
    shared_intermediate_size=128,
    num_experts=4,
    num_mtp_layers=1,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source"), SPEC)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    return maker(source, tmp_path_factory)


def opened(folder: Path, kernels: str, **more: object) -> Runtime:
    pytest.importorskip("numba") if kernels == "fused" else None
    sizes = {"max_model_len": 256, "num_blocks": 9, "num_lanes": 1, **more}
    return open_runtime(RuntimeConfig(model=folder, kernels=kernels, **sizes))  # type: ignore[arg-type]


def served(folder: Path, kernels: str) -> torch.Tensor:
    """Logits after every token."""
    run, start, parts = opened(folder, kernels), 0, []
    for length in CUTS:
        row = Row("test", 1, TOKENS[start : start + length], start, range(1, 5), output=Output.ALL_LOGITS)
        logits = run.run(Step((row,))).rows[0].logits
        assert logits is not None
        parts.append(logits)
        start += length
    return torch.cat(parts)


@pytest.mark.parametrize("kernels", ["torch", "fused"])
@pytest.mark.parametrize("name", ["w8a16 groups", "w8a16 channels", "auto-round", "block fp8 and vocabulary"])
def test_logits_are_those_of_transformers(name: str, kernels: str, made: Callable[[str], Made]) -> None:
    model = transformers_model(made(name).plain)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([TOKENS])).logits[0]
    assert (served(made(name).folder, kernels) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["w8a16 groups", "block fp8"])
def test_experts_stay_in_their_codes(name: str, made: Callable[[str], Made]) -> None:
    """A byte a number: all that is larger is what the format leaves out, and scales."""
    pytest.importorskip("numba")
    from qwen36_neuron.runtime.held_mixture import HeldMixture

    run = opened(made(name).folder, "fused")
    assert isinstance(run, CpuRuntime)
    for layer in run.model.layers:
        assert isinstance(layer.mlp, HeldMixture)
        for stack in (layer.mlp.held.gate_up, layer.mlp.held.down):
            assert stack.packed.data.itemsize == 1
            assert stack.nbytes <= 1.04 * stack.packed.data.size


@pytest.mark.parametrize("name", ["w8a16 groups", "auto-round"])
def test_drafts(name: str, made: Callable[[str], Made]) -> None:
    """The draft layer's experts, plain in the one and quantised in the other."""
    drafts = []
    for kernels in ("torch", "fused"):
        run = opened(made(name).folder, kernels, max_drafts=3, max_proposals=3)
        first = run.run(Step((Row("test", 1, TOKENS[:70], 0, range(1, 5)),))).rows[0].tokens
        drafts.append((first, run.draft([DraftRequest("test", 1, first, range(1, 5), 3)])))
    assert drafts[0] == drafts[1]
    assert len(drafts[0][1][0]) == 3


def test_experts_in_one_tensor_are_as_they_were_in_a_quantised_checkpoint(
    source: Path, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """A tool that quantises linear layers leaves them: they are none. The same numbers as in matrices of their own."""
    folder = make(source, tmp_path, replace(FORMS["w8a16 groups"](), kept=r"^model\.visual|^mtp|linear_attn|experts"))
    expected = served(folder.plain, "torch")
    tensors = load_file(folder.folder / "model.safetensors")
    write_weights(folder.folder, joined(tensors))
    for kernels in ("torch", "fused"):
        assert (served(folder.folder, kernels) - expected).abs().max() <= TOLERANCE


def test_experts_that_are_missing_in_their_format_are_named(made: Callable[[str], Made], source: Path) -> None:
    """A configuration that does not say that they are quantised, and one that does where they are not."""
    folder = made("w8a16 channels").folder
    config = FORMS["w8a16 channels"]().config
    try:
        configure(folder, config | {"ignore": [*config["ignore"], "re:.*experts.*"]})
        with pytest.raises(ConfigError, match=r"missing: .*experts\.0\.\w+_proj\.weight\n(?s:.*)unknown: .*experts"):
            opened(folder, "torch")
    finally:
        configure(folder, config)


def rounded_experts(self: Experts, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """`Experts.forward` a token and an expert at a time, with what goes into each product rounded to 8 bits."""
    out = torch.zeros_like(x)
    for token, expert, weight in (
        (t, int(e), w) for t in range(len(x)) for e, w in zip(chosen[t], weights[t], strict=True)
    ):
        inner = swiglu(F.linear(round_inputs(x[token : token + 1]), self.gate_up_proj[expert]))
        out[token] += weight * F.linear(round_inputs(inner), self.down_proj[expert])[0]
    return out


def test_inputs_of_experts_are_rounded_by_the_compiled_form_alone(
    made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences of one token: where an input falls to the other side of half a step, all that follows is another
    result. That is about one in a million, so most sequences have none."""
    folder, plain = made("w8a8").folder, made("w8a8").plain
    with pytest.raises(ConfigError, match=r"int8 a token.*experts\.gate_up_proj.*kernels=fused"):
        opened(folder, "torch")
    run, reference = opened(folder, "fused"), opened(plain, "torch")
    assert isinstance(reference, CpuRuntime)
    monkeypatch.setattr(Experts, "forward", rounded_experts)
    inputs = load_inputs(folder, reference.config.model_config())
    round_layer_inputs(reference.model, {name: kind for name, kind in inputs.items() if ".experts." not in name})
    differences = []
    for token in TOKENS[:16]:
        step = Step((Row("test", 1, [token], 0, [1], output=Output.LOGITS),))
        found, expected = (each.run(step).rows[0].logits for each in (run, reference))
        assert found is not None
        assert expected is not None
        differences.append((found - expected).abs().max() <= TOLERANCE)
        for each in (run, reference):
            each.run(Step((), released_lanes=(1,)))
    assert torch.stack(differences).float().mean() >= 0.75
