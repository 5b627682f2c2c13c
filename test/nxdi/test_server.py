"""vLLM's engine on device=neuron: the plugin, the runtime and NxDI's code together, against the same on device=cpu."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .support import TRAINED, prompts, save_artifact

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
)

pytest.importorskip("vllm", reason="the engine's tests need vLLM; the others of this folder do not")

SIZES: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 200,
    "num_gpu_blocks_override": 65,
    "enable_prefix_caching": True,
}


def served(
    checkpoint: Path, prompts: list[list[int]], count: int = 10, speculation: Any = None, **settings: Any
) -> tuple[list[list[int]], int, int]:
    """Greedy tokens of all prompts at once, then of the first again; how many of its tokens were reused; steps."""
    from engine import Engine, greedy

    arguments = SIZES if speculation is None else {**SIZES, "speculative_config": speculation}
    engine = Engine(checkpoint, **arguments, additional_config={"num_slots": 4, **settings})
    steps = 0
    run = engine.runtime.run

    def counted(step: Any) -> Any:
        nonlocal steps
        steps += 1
        return run(step)

    engine.runtime.run = counted
    try:
        found = engine.generate(prompts, greedy(count))
        (again,) = engine.outputs(prompts[:1], greedy(count))
        return [*found, list(again.outputs[0].token_ids)], again.num_cached_tokens or 0, steps
    finally:
        engine.close()


def test_the_engine_serves_the_same_tokens(tiny_checkpoint: Path, artifact: Path, tokens: list[int]) -> None:
    """Chunked prefill beside decode, six requests on four lanes, and a prompt that is reused."""
    prompts = [tokens[:300], tokens[:130], tokens[300:301], tokens[200:265], tokens[100:400], tokens[50:113]]
    expected, reused_on_cpu, _ = served(tiny_checkpoint, prompts, kernels="torch")
    actual, reused, _ = served(tiny_checkpoint, prompts, device="neuron", artifact=str(artifact))
    assert actual == expected
    assert reused == reused_on_cpu >= 64


MTP = {"method": "mtp", "num_speculative_tokens": 3}


def test_the_engine_drafts_on_the_device(
    make_options: Callable[..., Any], parallel_state: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the layer of a trained checkpoint, prefix caching and chunked prefill: the same text in fewer steps."""
    from qwen36_neuron.graph.buckets import Buckets

    options = make_options(max_drafts=3, max_proposals=3, buckets=Buckets.grid((128, 256), (512,), (512,)))
    save_artifact(TRAINED, options, tmp_path, monkeypatch)
    questions = prompts(3)
    long = questions[0][:1] + 4 * questions[1][1:] + questions[2][1:]  # of more tokens than a step may run, and a block
    asked = [long, *questions]
    expected, reused_on_cpu, steps = served(TRAINED, asked, 40, kernels="torch")
    settings = {"device": "neuron", "artifact": str(tmp_path), "adaptive_drafts": False}
    actual, reused, fewer = served(TRAINED, asked, 40, MTP, **settings)
    print(f"{steps} steps without drafts, {fewer} with")
    assert actual == expected
    assert reused == reused_on_cpu >= 64
    assert fewer <= 0.75 * steps


def test_requests_of_every_kind_have_their_tokens_with_drafts(
    make_options: Callable[..., Any], parallel_state: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Drawn in the graph and on the host, with a penalty and a grammar: each place is decided as without drafts."""
    from engine import Engine
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from qwen36_neuron.graph.buckets import Buckets

    options = make_options(max_drafts=3, max_proposals=3, buckets=Buckets.grid((128, 256), (512,), (512,)))
    save_artifact(TRAINED, options, tmp_path, monkeypatch)
    common = {"max_tokens": 24, "ignore_eos": True}
    kinds = [
        SamplingParams(temperature=0.0, **common),
        SamplingParams(temperature=1.0, seed=3, top_k=20, **common),
        SamplingParams(temperature=0.8, seed=4, presence_penalty=1.0, **common),
        SamplingParams(temperature=0.0, structured_outputs=StructuredOutputsParams(regex="[a-f ]{30}"), **common),
    ]

    def tokens_of(speculation: Any, **settings: Any) -> list[list[int]]:
        arguments = SIZES if speculation is None else {**SIZES, "speculative_config": speculation}
        engine = Engine(TRAINED, **arguments, additional_config={"num_slots": 4, **settings})
        try:
            for number, (prompt, params) in enumerate(zip(prompts(4), kinds, strict=True)):
                engine.add(str(number), prompt, params)
            engine.drain()
            return [list(engine.finished[str(number)].outputs[0].token_ids) for number in range(4)]
        finally:
            engine.close()

    settings = {"device": "neuron", "artifact": str(tmp_path), "adaptive_drafts": False}
    assert tokens_of(MTP, **settings) == tokens_of(None, kernels="torch")


def test_an_artifact_without_the_draft_layer_is_refused_by_name(
    make_options: Callable[..., Any], parallel_state: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_artifact(TRAINED, make_options(max_drafts=3), tmp_path, monkeypatch)
    with pytest.raises(Exception, match=r"max_proposals is 0, asked for 3") as caught:
        served(TRAINED, prompts(1), 4, MTP, device="neuron", artifact=str(tmp_path))
    assert "compile again" in str(caught.value)
