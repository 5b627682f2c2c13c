"""Speculation on beside speculation off: the same engine, checkpoint and requests, both sides in one process.

Both sides answer the same requests, a group of those that run together in turns, and must give the same tokens, or the
benchmark ends. In one process they have the same threads, cores and memory: processes of the same side differ by up to
a third from one start to the next. A group's time is the median of its rounds: what else uses a machine comes and goes
within seconds, so sides are compared as near to one another in time as can be. Ratios are of the sums of these times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwen36_lab.demo import evaluation, skills, talk
from qwen36_lab.demo.chat import Conversation

from .http import HttpServer
from .sides import Engine, SideConfig, random_prompts

FAILING = {"temperature": 2.0, "seed": 3, "ignore_eos": True}
"""Tokens drawn almost at random, which no draft foretells."""
PASSAGE = 500


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests and the bar that their ratio is held to.

    Attributes:
        prompts: token ids.
        parameters: of sampling, vLLM's names.
        at_once: requests that run together.
        bar: ratio of tokens a second to reach; of times to the first token, the most that is allowed; None for none.
        side: what is compared with none: "on", or "never" for speculation that is asked for and never drafts.
        first_token: whether it is times to the first token that are compared, over HTTP.
    """

    name: str
    prompts: tuple[tuple[int, ...], ...]
    parameters: dict[str, Any]
    at_once: int
    bar: float | None
    side: str = "on"
    first_token: bool = False

    def groups(self) -> list[Workload]:
        """The requests that run together, one such group each."""
        starts = range(0, len(self.prompts), self.at_once)
        return [replace(self, prompts=self.prompts[at : at + self.at_once]) for at in starts]


@dataclass(slots=True)
class Answers:
    """One run of a group of requests.

    Attributes:
        seconds: in all; first: to the first token of each request.
        tokens: of each request.
        steps: engine steps that it took.
    """

    seconds: float = 0.0
    steps: int = 0
    first: list[float] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)


Pair = tuple[Answers, Answers]
"""A group's answers without speculation and with it."""


class Speculating(Engine):
    """Our engine, with or without speculation, as `SideConfig.engine` says."""

    def answer(self, group: Workload) -> Answers:
        """All requests of a group, together."""
        found, engine = Answers(), self.llm.llm_engine
        names = [self.ask(list(prompt), **group.parameters) for prompt in group.prompts]
        first: dict[str, float] = {}
        ended: dict[str, tuple[int, ...]] = {}
        started = time.perf_counter()
        while engine.has_unfinished_requests():
            outputs = engine.step()
            found.steps += 1
            for output in outputs:
                if output.outputs[0].token_ids:
                    first.setdefault(output.request_id, time.perf_counter() - started)
                if output.finished:
                    ended[output.request_id] = tuple(output.outputs[0].token_ids)
        found.seconds = time.perf_counter() - started
        found.tokens = [ended[name] for name in names]
        found.first = [first[name] for name in names]
        return found


class BothSides:
    """The engines of a process, which answer in turns."""

    def __init__(self, config: SideConfig) -> None:
        off, on = side_configs(config)
        never = replace(off, engine={"speculative_config": NEVER})
        self.sides = {name: Speculating(side) for name, side in (("off", off), ("on", on), ("never", never))}

    def pair(self, group: Workload, off_first: bool) -> Pair:
        """The answers without speculation, and those of the side that is compared with it."""
        order = ("off", group.side) if off_first else (group.side, "off")
        found = {name: self.sides[name].answer(group) for name in order}
        return found["off"], found[group.side]


def workloads(checkpoint: Path, quick: bool) -> list[Workload]:
    """Every bar of speculation on the demo checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    count = 4 if quick else 32
    domain = _domain(tokenizer, count)
    long = {"temperature": 0.0, "max_tokens": 24 if quick else 192}
    failing = {**FAILING, "max_tokens": 16 if quick else 128}
    noise = tuple(map(tuple, random_prompts(7, 8, 64, len(tokenizer) // 2)))
    passage, copying = _passage(tokenizer)
    loads = [
        Workload("its own domain, batch 1", domain[: count // 2], long, 1, 1.8),
        Workload("its own domain, batch 8", domain, long, 8, 1.2),
        Workload("drafts that fail, batch 1", noise[:4], failing, 1, 0.97),
        Workload("drafts that fail, batch 8", noise, failing, 8, 0.97),
        Workload("copying 500 tokens", (passage,), copying, 1, 4.0),
        Workload("no draft at all, batch 1", noise[:4], failing, 1, None, "never"),
        Workload("no draft at all, batch 8", noise, failing, 8, None, "never"),
    ]
    for length in (512,) if quick else (512, 2048, 4096):
        prompts = tuple(map(tuple, random_prompts(length, 2 if quick else 6, length, len(tokenizer) // 2)))
        once = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
        loads.append(Workload(f"first token of {length:,}", prompts, once, 1, 1.05, first_token=True))
    return loads


def first_tokens(server: HttpServer, group: Workload) -> Answers:
    """Times to the first token over HTTP, where the engine's process sends a token before it makes drafts."""
    tokens = group.parameters["max_tokens"]
    return Answers(first=[server.first_token(list(prompt), tokens) for prompt in group.prompts])


def summarize(load: Workload, rounds: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """One row of the result: `rounds` have a pair of answers of each group."""
    if not load.first_token and any(off.tokens != on.tokens for pairs in rounds for off, on in pairs):
        raise RuntimeError(f"{load.name}: speculation changed a token")
    count = len(load.prompts)
    off, on = (sum(map(statistics.median, zip(*_seconds(load, rounds, side), strict=True))) for side in (0, 1))
    each = list(zip(*(map(sum, _seconds(load, rounds, side)) for side in (0, 1)), strict=True))
    ratio, ratios = (on / off, [b / a for a, b in each]) if load.first_token else (off / on, [a / b for a, b in each])
    tokens = sum(len(one) for _, answers in rounds[-1] for one in answers.tokens)
    rates = (1000 * off / count, 1000 * on / count) if load.first_token else (tokens / off, tokens / on)
    row: dict[str, Any] = {
        "workload": load.name,
        "requests": count,
        "at_once": load.at_once,
        "parameters": load.parameters,
        "unit": "ms to the first token" if load.first_token else "tokens a second",
        "off": rates[0],
        "on": rates[1],
        "ratio": ratio,
        "ratio_range": [min(ratios), max(ratios)],
        "bar": load.bar,
        "met": None if load.bar is None else ratio <= load.bar if load.first_token else ratio >= load.bar,
    }
    if not load.first_token:
        steps = [statistics.median(sum(pair[side].steps for pair in pairs) for pairs in rounds) for side in (0, 1)]
        row |= {"tokens": tokens, "steps": {"off": steps[0], "on": steps[1]}}
    return row


def _seconds(load: Workload, rounds: Sequence[Sequence[Pair]], side: int) -> list[list[float]]:
    """What one side took for each group, by round."""
    return [[sum(pair[side].first) if load.first_token else pair[side].seconds for pair in pairs] for pairs in rounds]


def _domain(tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[tuple[int, ...], ...]:
    """Questions that the demo checkpoint was trained to answer, with other contents than it has seen."""
    makers = (
        lambda random: Conversation([talk.story(random)]),
        lambda random: Conversation([skills.lists(random)]),
        lambda random: Conversation([skills.count_up(random)]),
        lambda random: Conversation([talk.fact(random)]),
    )
    prompts = []
    for index in range(count):
        made = makers[index % len(makers)](Random(f"speculation/{index}"))
        prompts.append(tuple(evaluation.Probe("", 0, 0.0, made, "").prompt(tokenizer)))
    return tuple(prompts)


def _passage(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A prompt that quotes a passage, and parameters by which the answer is that passage: its grammar allows no other.

    The checkpoint is too small to copy so much of its own accord. What is compared is the engine's speed. The passage
    is of digits, each of which is one token and nothing else: words a grammar lets a model write in tokens of its own.
    """
    digits = "".join(Random("passage").choices("0123456789", k=PASSAGE))
    asked = f"Repeat exactly: {digits}"
    prompt: list[int] = tokenizer(asked, add_special_tokens=False)["input_ids"]
    return tuple(prompt), {"temperature": 0.0, "max_tokens": 2 * PASSAGE, "choice": digits}


CONFIG = {"method": "mtp", "num_speculative_tokens": 6}
NEVER = {"method": "ngram", "num_speculative_tokens": 1, "prompt_lookup_min": 1 << 20}
"""No text repeats so much: what is left is what speculation costs that does nothing, vLLM's own part and ours."""


def side_configs(base: SideConfig) -> tuple[SideConfig, SideConfig]:
    """Without speculation and with it."""
    return replace(base, engine={}), replace(base, engine={"speculative_config": CONFIG})
