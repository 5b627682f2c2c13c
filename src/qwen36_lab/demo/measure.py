"""Asks probes of the project's own runtime and of transformers, and scores what comes back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from qwen36_neuron.config import BLOCK_SIZE, ModelConfig
from qwen36_neuron.runtime import RuntimeConfig, open_runtime
from qwen36_neuron.runtime.generate import Generation, generate

from ..reference import transformers_model
from .evaluation import Probe

MOST_TOKENS = 192
CALL = re.compile(
    r"<tool_call>\n<function=(\w+)>\n((?:<parameter=\w+>\n.*?\n</parameter>\n)*)</function>\n</tool_call>"
)
PARAMETER = re.compile(r"<parameter=(\w+)>\n(.*?)\n</parameter>\n")


class OwnRuntime:
    """Greedy answers of the CPU runtime."""

    def __init__(self, model: Path, max_model_len: int) -> None:
        self.stop = ModelConfig.from_pretrained(model).eos_token_ids
        blocks = -(-max_model_len // BLOCK_SIZE) + 1
        self.runtime = open_runtime(RuntimeConfig(model, max_model_len=max_model_len, num_blocks=blocks, num_lanes=1))

    def answer(self, prompt: Sequence[int]) -> list[int]:
        """Tokens up to the end of the turn, which is left out."""
        return list(generate(self.runtime, prompt, Generation(MOST_TOKENS, self.stop)))


class Transformers:
    """The same checkpoint in Hugging Face transformers, fp32 on CPU."""

    def __init__(self, model: Path) -> None:
        self.model = transformers_model(model)

    def agrees(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether greedy decoding after `prompt` gives `answer`: its most likely token at every place is the same."""
        tokens = torch.tensor([*prompt, *answer])[None]
        with torch.no_grad():
            logits = self.model(input_ids=tokens, logits_to_keep=len(answer) + 1).logits[0]
        return logits[:-1].argmax(-1).tolist() == list(answer)


@dataclass(frozen=True, slots=True)
class Score:
    """How one answer did.

    Attributes:
        right: the value asked for is in the answer.
        exact: the answer is the expected one to the letter.
        valid: for tools and JSON, the form alone: parses, with the schema's names and types; otherwise the same as
            `right`.
        text: the answer.
    """

    right: bool
    exact: bool
    valid: bool
    text: str


def score(probe: Probe, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Score:
    """Compare an answer with what the probe expects."""
    text: str = tokenizer.decode(tokens)
    expected: str = tokenizer.decode(probe.reply(tokenizer)[:-1])
    said = text.split("</think>")[-1]
    exact = text == expected
    if probe.kind == "tool":
        return Score(exact, exact, valid_call(said, probe.conversation.tools), text)
    if probe.kind == "json":
        return Score(_loads(said) == _loads(probe.value), exact, _same_form(_loads(said), _loads(probe.value)), text)
    right = probe.value in said
    return Score(right, exact, right, text)


def valid_call(text: str, tools: Sequence[Any]) -> bool:
    """One well-formed call of a known tool, with all its required parameters, each of the type in the schema."""
    match = CALL.fullmatch(text.strip())
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    if match is None or match[1] not in known:
        return False
    given = dict(PARAMETER.findall(match[2]))
    schema = known[match[1]]
    if set(given) - set(schema["properties"]) or set(schema["required"]) - set(given):
        return False
    return all(_has_type(value, schema["properties"][name]) for name, value in given.items())


def _has_type(value: str, schema: dict[str, Any]) -> bool:
    if schema["type"] == "string":
        return value in schema.get("enum", [value])
    wanted = {"integer": int, "boolean": bool}[schema["type"]]
    return type(_loads(value)) is wanted


def _same_form(made: Any, expected: Any) -> bool:
    if not isinstance(made, dict) or set(made) != set(expected):
        return False
    return all(type(made[key]) is type(expected[key]) for key in expected)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
