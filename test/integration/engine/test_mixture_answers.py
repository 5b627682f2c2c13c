"""The trained mixture (assets/demo-moe-checkpoint) answers: drafts change nothing, and right answers stay right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine import Engine
from recorder import Recorder
from transformers import AutoTokenizer
from vllm import SamplingParams

MIXTURE = Path(__file__).parents[3] / "assets" / "demo-moe-checkpoint"
ASKED = {
    "What is 17 + 25?": "17 + 25 = 42",
    "What is the capital of France?": "The capital of France is Paris.",
}


@pytest.mark.parametrize("speculation", [None, {"method": "mtp", "num_speculative_tokens": 3}])
def test_the_mixture_answers(engines: list[Any], speculation: dict[str, Any] | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MIXTURE)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for question in ASKED
    ]
    settings = {"adaptive_drafts": False} if speculation else {}
    served = Engine(MIXTURE, speculative_config=speculation, additional_config=settings, num_gpu_blocks_override=100)
    engines.append(served)
    recorder = served.worker.runner.runtime = Recorder(served.runtime)
    answers = served.generate(prompts, SamplingParams(temperature=0.0, max_tokens=80, detokenize=False))
    for answer, expected in zip(answers, ASKED.values(), strict=True):
        _, thoughts, said = tokenizer.decode(answer, skip_special_tokens=True).rpartition("</think>")
        assert thoughts, "the answer did not end its thoughts"
        assert said.strip() == expected
    drafted = [row for rows in recorder.rows.values() for row in rows if row.drafts]
    assert bool(drafted) == bool(speculation)
    steps = max(map(len, recorder.rows.values()))
    assert steps <= max(map(len, answers)) * (0.5 if speculation else 1.0)  # drafts that are right save steps
