"""Questions to a running server: does it make sense, how fast does it decode, what does a known prefix save."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import httpx

from qwen36_lab.demo.coherence import loops
from qwen36_lab.demo.filler import sentence

PROMPTS = ("What can you do?", "Tell me a story about a fox.", "Count from 1 to 30.", "What is 17 + 25?")
BLOCK = 64
NOT_REUSED = 2 * BLOCK
"""Tokens of a repeated prompt that may be run again: its last block, and what does not fill one."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked.

    Attributes:
        answer_tokens: of a greedy answer.
        decode_tokens: that every sequence decodes.
        batches: sequences at once.
        prompt_tokens: of the prompt that is repeated.
        repeats: times that every measurement is made; figures are medians.
    """

    answer_tokens: int = 256
    decode_tokens: int = 128
    batches: tuple[int, ...] = (1, 8)
    prompt_tokens: int = 4096
    repeats: int = 3


QUICK = Sizes(answer_tokens=96, decode_tokens=16, batches=(1, 8), prompt_tokens=512)


@dataclass(slots=True)
class Check:
    """What one check found.

    Attributes:
        passed: None if it could not be made.
        figures: measured values.
        problems: why it failed, or could not be made.
    """

    name: str
    passed: bool | None
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Stream:
    """One streamed completion.

    Attributes:
        stamps: seconds from the request to each token's arrival.
        tokens: their ids.
        prompt_tokens, cached_tokens: as the server counts them.
    """

    stamps: list[float]
    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int


class Server:
    """One model behind an OpenAI API.

    Args:
        base_url: without /v1.
        model: the name it is served under; None for the first one.
    """

    def __init__(self, base_url: str, model: str | None, api_key: str) -> None:
        self.http = httpx.Client(
            base_url=base_url, timeout=1800, trust_env=False, headers={"Authorization": f"Bearer {api_key}"}
        )
        self.model = model or self._get("/v1/models").json()["data"][0]["id"]

    def _get(self, path: str) -> httpx.Response:
        response = self.http.get(path)
        response.raise_for_status()
        return response

    def answer(self, text: str, max_tokens: int) -> tuple[str, str]:
        """A greedy answer without thinking, and why it ended."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        response = self.http.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        choice = response.json()["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"]

    def stream(self, prompt: str, tokens: int) -> Stream:
        """`tokens` greedy tokens after a prompt, whatever they are."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "return_token_ids": True,
        }
        stamps: list[float] = []
        ids: list[int] = []
        usage: dict[str, Any] = {}
        started = time.perf_counter()
        with self.http.stream("POST", "/v1/completions", json=body) as response:
            if response.is_error:
                raise httpx.HTTPError(f"{response.status_code}: {response.read().decode()[:500]}")
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                part = json.loads(line.removeprefix("data: "))
                usage = part.get("usage") or usage
                new = [token for choice in part["choices"] for token in choice.get("token_ids") or ()]
                stamps += [time.perf_counter() - started] * len(new)
                ids += new
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Stream(stamps, ids, usage.get("prompt_tokens", 0), cached)


def text_of(server: Server, tokens: int, seed: str) -> str:
    """Text that no server has seen, of about so many tokens."""
    random = Random(seed)
    sample = " ".join(sentence(random) for _ in range(20))
    words = f"{seed}. "
    characters = tokens * len(sample) / max(server.stream(sample, 1).prompt_tokens, 1)
    while len(words) < characters:
        words += sentence(random) + " "
    return words[: int(characters)]


def coherence(server: Server, sizes: Sizes) -> Check:
    """Greedy answers: not empty, no loops, and the same when asked again."""
    answers, problems = [], []
    for question in PROMPTS:
        (text, ended), (again, _) = (server.answer(question, sizes.answer_tokens) for _ in range(2))
        answers.append({"question": question, "answer": text, "ended": ended, "same_again": text == again})
        for wrong, problem in ((not text.strip(), "no answer"), (loops(text), "a loop"), (text != again, "changes")):
            if wrong:
                problems.append(f"{question} {problem}: {text[-80:]!r}")
    return Check("coherence", not problems, {"answers": answers}, problems)


def decode_rate(server: Server, sizes: Sizes, seed: str) -> Check:
    """Tokens a second while all sequences of a batch decode."""
    figures: dict[str, Any] = {}
    problems = []
    for batch in sizes.batches:
        rates, gaps = [], []
        for turn in range(sizes.repeats):
            prompts = [f"{seed}/{batch}/{turn}/{n}: " + sentence(Random(n)) for n in range(batch)]
            with ThreadPoolExecutor(batch) as pool:
                streams = list(pool.map(lambda prompt: server.stream(prompt, sizes.decode_tokens + 1), prompts))
            short = [len(stream.tokens) for stream in streams if len(stream.tokens) != sizes.decode_tokens + 1]
            if short:
                problems.append(f"batch {batch}: asked for {sizes.decode_tokens + 1} tokens, got {short}")
                continue
            begin, end = max(s.stamps[0] for s in streams), min(s.stamps[-1] for s in streams)
            count = sum(begin < stamp <= end for stream in streams for stamp in stream.stamps)
            if end > begin:
                rates.append(count / (end - begin))
                gaps.append(1000 * batch * (end - begin) / count)
        median = {"tokens_per_second": _median(rates), "ms_a_step": _median(gaps), "samples": rates}
        figures[f"batch_{batch}"] = median
        if not rates:
            problems.append(f"batch {batch}: the sequences did not decode at the same time")
    return Check("decode rate", not problems, figures, problems)


def prefix_reuse(server: Server, sizes: Sizes, seed: str) -> Check:
    """Time to the first token of a long prompt that is new, and when it is repeated."""
    cold, warm, problems = [], [], []
    for turn in range(sizes.repeats):
        prompt = text_of(server, sizes.prompt_tokens, f"{seed}/{turn}")
        first, second = server.stream(prompt, 16), server.stream(prompt, 16)
        cold.append(first)
        warm.append(second)
        if first.cached_tokens >= BLOCK:
            problems.append(f"{first.cached_tokens} tokens of a new prompt are said to be cached")
        if second.prompt_tokens - second.cached_tokens > NOT_REUSED:
            problems.append(f"{second.cached_tokens} of {second.prompt_tokens} tokens of a repeated prompt were reused")
    seconds = {
        name: statistics.median(stream.stamps[0] for stream in streams)
        for name, streams in (("cold", cold), ("warm", warm))
    }
    if seconds["warm"] >= seconds["cold"]:
        problems.append(f"a repeated prompt is not faster: {seconds['warm']:.3f} s after {seconds['cold']:.3f} s")
    same = sum(a.tokens == b.tokens for a, b in zip(cold, warm, strict=True))
    figures = {
        "prompt_tokens": [s.prompt_tokens for s in cold],
        "cached_tokens": {"cold": [s.cached_tokens for s in cold], "warm": [s.cached_tokens for s in warm]},
        "first_token_seconds": seconds,
        "speedup": seconds["cold"] / seconds["warm"],
        # Logits differ by the rounding of other cuts, which may turn a near tie: a figure, and no failure.
        "same_tokens": f"{same} of {len(cold)}",
    }
    return Check("prefix reuse", not problems, figures, problems)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
