"""The published benchmark of Qwen3.6 deployments, as runs of aiperf: prompts that share a system prompt, and dialogues.

Closed loop: as many streams as the concurrency says, each sends its next request when its last answer is complete.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen36_neuron.errors import ConfigError

AIPERF = "0.13.0"
PUBLISHED: dict[str, dict[str, float]] = {
    "system-prompt": {
        "ttft_ms": 1509, "itl_token_ms": 32.0, "e2e_ms": 5577, "decode_tokens_per_s": 91.3, "tokens_per_s": 5807
    },
    "dialogue": {
        "ttft_ms": 3999, "itl_token_ms": 45.3, "e2e_ms": 9751, "decode_tokens_per_s": 52.5, "tokens_per_s": 7408
    },
}  # fmt: skip
"""Means that were published of both scenarios (8K and 17.5K tokens) for the 27B in W8A8 on eight Ascend 910B4, two
replicas of TP=4 without prefix caching, concurrency 4, three runs of 240 requests."""

_METRICS = {
    "ttft": "time_to_first_token",
    "itl_chunk": "inter_chunk_latency",
    "itl_token": "inter_token_latency",
    "e2e": "request_latency",
}
"""By our names aiperf's, of latencies in ms."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of request.

    Attributes:
        name: of the scenario.
        shared_tokens: of the system prompt that all requests have; 0 for none.
        own_tokens: of what a conversation begins with, which its turns have in common; 0 for none.
        turn_tokens: of each turn's message.
        turns: of a conversation.
    """

    name: str
    shared_tokens: int
    own_tokens: int
    turn_tokens: int
    turns: int


def system_prompt(tokens: int) -> Scenario:
    """Prompts of about `tokens` that share all but a fortieth."""
    tail = max(1, tokens // 40)
    return Scenario("system-prompt", tokens - tail, 0, tail, 1)


def dialogue(tokens: int, output_tokens: int, turns: int = 6) -> Scenario:
    """Conversations whose prompts have about `tokens` on average, answers among them."""
    turn = max(1, tokens // 35)
    grown = turn * (turns + 1) / 2 + output_tokens * (turns - 1) / 2
    own = round(tokens - grown)
    if own < 1:
        problem = f"of {turns} turns grow by {grown:.0f} tokens on average, which leaves nothing to begin with"
        raise ConfigError("dialogue_tokens", tokens, problem, "Ask for longer prompts")
    return Scenario("dialogue", 0, own, turn, turns)


@dataclass(frozen=True, slots=True)
class Load:
    """How a scenario is run.

    Attributes:
        requests: of a run; whole conversations.
        concurrency: streams at once.
        output_tokens: of every answer, whatever the model would say.
        warm_up: requests before those that count.
        seed: of the prompts; one for all runs.
    """

    requests: int = 240
    concurrency: int = 4
    output_tokens: int = 128
    warm_up: int = 4
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is measured.

    Attributes:
        name: in results.
        url: where /v1/chat/completions is.
        model: its served name.
    """

    name: str
    url: str
    model: str


def command(
    aiperf: Path, deployment: Deployment, scenario: Scenario, load: Load, tokenizer: str, out: Path
) -> list[str]:
    """The run as aiperf's command line, without a key.

    Raises:
        ConfigError: the requests are no whole number of conversations.
    """
    conversations, rest = divmod(load.requests, scenario.turns)
    if rest or not conversations:
        problem = f"are not whole dialogues of {scenario.turns} turns"
        raise ConfigError("requests", load.requests, problem, f"Use a multiple of {scenario.turns}")
    shape = ["--num-conversations", conversations, "--session-turns-mean", scenario.turns]
    if scenario.turns == 1:
        shape = ["--request-count", load.requests, "--num-dataset-entries", load.requests]
    if scenario.shared_tokens:
        shape += ["--shared-system-prompt-length", scenario.shared_tokens]
    if scenario.own_tokens:
        shape += ["--user-context-prompt-length", scenario.own_tokens, "--session-turn-delay-mean", 0]
    words: list[Any] = [
        *(aiperf, "profile", "--model", deployment.model, "--url", deployment.url, "--tokenizer", tokenizer),
        *("--endpoint-type", "chat", "--streaming", "--use-server-token-count", "--ui", "none"),
        *shape,
        *("--prompt-input-tokens-mean", scenario.turn_tokens, "--prompt-output-tokens-mean", load.output_tokens),
        *("--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{load.output_tokens}"),
        *("--concurrency", load.concurrency, "--warmup-request-count", load.warm_up, "--random-seed", load.seed),
        *("--output-artifact-dir", out),
    ]
    return [str(word) for word in words]


def read(result: Mapping[str, Any], load: Load) -> dict[str, float]:
    """What a run came to, of aiperf's result: times in ms, rates in tokens a second, requests, cached tokens.

    Raises:
        KeyError: aiperf measured something else.
    """
    found: dict[str, float] = {}
    for name, of in _METRICS.items():
        found[f"{name}_ms"], found[f"{name}_p90_ms"] = result[of]["avg"], result[of]["p90"]
    found["decode_tokens_per_s"] = result["output_token_throughput"]["avg"]
    found["tokens_per_s"] = result["total_token_throughput"]["avg"]
    found["prompt_tokens"] = result["usage_prompt_tokens"]["avg"]
    found["cached_share"] = result.get("overall_usage_prompt_cache_read_pct", {"avg": 0.0})["avg"] / 100
    found["requests"] = result["request_count"]["avg"]
    found["errors"] = load.requests - found["requests"]
    found["tokens_per_answer"] = result["output_sequence_length"]["avg"]
    return found


def run(
    aiperf: Path, deployment: Deployment, scenario: Scenario, load: Load, tokenizer: str, out: Path, key: str | None
) -> dict[str, float]:
    """One run.

    Args:
        key: presented to the deployment.
    Raises:
        ConfigError: aiperf cannot be run, or gave no result; its own words are in the folder's logs.
    """
    words = command(aiperf, deployment, scenario, load, tokenizer, out)
    words += ["--api-key", key] if key else []
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError("aiperf", str(aiperf), f"cannot be run: {error.strerror}", "Leave it out") from error
    file = out / "profile_export_aiperf.json"
    if done.returncode != 0 or not file.is_file():
        said = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "Error" in line]
        problem = f"aiperf gave no result of {scenario.name}: {(said or ['it says nothing'])[-1].strip()}"
        raise ConfigError("base_url", deployment.url, problem, f"See {out / 'logs'}")
    return read(json.loads(file.read_text(encoding="utf-8")), load)


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean over runs and half of their spread, by figure."""
    return {
        name: {"mean": statistics.fmean(values), "spread": (max(values) - min(values)) / 2}
        for name in runs[0]
        for values in [[each[name] for each in runs]]
    }


def install(folder: Path, say: Callable[[str], None]) -> Path:
    """aiperf in an environment of its own, made if it is not there: 1.2 GB, which this project's own never needs.

    Returns:
        Its program.
    Raises:
        ConfigError: pip could not install it.
    """
    program = folder / "bin" / "aiperf"
    if program.is_file():
        return program
    say(f"installing aiperf {AIPERF} into {folder} (1.2 GB)")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", f"aiperf=={AIPERF}"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        problem = (
            f"pip could not install aiperf {AIPERF}: {(done.stderr.strip() or 'it says nothing').splitlines()[-1]}"
        )
        raise ConfigError("aiperf", str(folder), problem, "Install it elsewhere and give --aiperf PROGRAM")
    return program
