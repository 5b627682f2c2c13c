"""What prefix caching is worth, and what it costs, in the real engine on this machine.

Worth: time to the first token of long prompts, cold against warm, both in the engine that keeps prefixes, in turns.
Cost: two engines, one that keeps prefixes and one that does not, run the same prompts, which share nothing, in turns.
They run on one runtime: where its memory lies makes more of a difference than what is measured here.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

VOCABULARY = 1000
CHUNK = 2048
SLOTS = 64
CACHE_GIB = 0.5
BATCHES = {1: 6, 8: 4}
"""Sequences at once, and how often a round runs them: small batches are short, and need more runs to be told apart."""

SYSTEM, QUESTION = 10_500, 300
HISTORY, MESSAGE = 10_368, 432
"""Tokens of the prompts, 10,800 in all: a system prompt and a question, or a conversation and its last message."""
COST_PROMPT, COST_ANSWER = 512, 64

BARS = {"exact repeat": 15.0, "partial prefix": 12.0, "cross-prefix": 15.0}
COST_BAR = 0.98


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One request: seconds to its first token, and prompt tokens that were not run for it."""

    seconds: float
    cached: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A cold request and a warm one of the same length, one right after the other."""

    cold: FirstToken
    warm: FirstToken

    @property
    def ratio(self) -> float:
        """How many times sooner the warm one has its first token."""
        return self.cold.seconds / self.warm.seconds


class Engine:
    """vLLM in this process, with the plugin, on the CPU.

    Args:
        checkpoint: folder in Hugging Face layout.
        threads: torch threads.
        caching: whether prefixes are kept.
    """

    def __init__(self, checkpoint: Path, threads: int, caching: bool) -> None:
        from vllm import LLM

        self._engine = LLM(
            model=str(checkpoint),
            dtype="float32",
            max_model_len=12_288,
            max_num_seqs=max(BATCHES),
            max_num_batched_tokens=CHUNK,
            enable_prefix_caching=caching,
            additional_config={"threads": threads, "cache_gib": CACHE_GIB, "num_slots": SLOTS},
            disable_log_stats=True,
        ).llm_engine
        self._count = 0

    @property
    def scheduler(self) -> Any:
        """The live scheduler, for its counters."""
        return self._engine.engine_core.engine_core.scheduler

    def first_token(self, prompt: list[int]) -> FirstToken:
        """Run `prompt` for one token."""
        started = time.perf_counter()
        self._add(prompt, 1)
        (output,) = self._drain()
        return FirstToken(time.perf_counter() - started, output.num_cached_tokens)

    def seconds(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds until all prompts, run together, have `tokens` tokens."""
        started = time.perf_counter()
        for prompt in prompts:
            self._add(prompt, tokens)
        for output in self._drain():
            assert not output.num_cached_tokens, "the prompts share something"
        return time.perf_counter() - started

    def run_on(self, other: Engine) -> None:
        """Run on the runtime of `other`, weights, lanes and KV blocks; one of the two must be idle at any time.

        Either overwrites blocks in which the other keeps prefixes, so what was run before its turn must not come again.
        """
        mine, its = (engine._engine.collective_rpc(_runner)[0] for engine in (self, other))
        mine.runtime = its.runtime

    def close(self) -> None:
        """Give its memory back."""
        self._engine.engine_core.shutdown()

    def _add(self, prompt: list[int], tokens: int) -> None:
        from vllm import SamplingParams

        self._count += 1
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(str(self._count), {"prompt_token_ids": prompt}, params)

    def _drain(self) -> list[Any]:
        """Step until nothing is left; the finished outputs."""
        finished = []
        while self._engine.has_unfinished_requests():
            finished += [output for output in self._engine.step() if output.finished]
        return finished


class Prompts:
    """Prompts of random tokens in the chat template's shape; each part is new unless it is passed in again.

    Args:
        checkpoint: whose tokenizer says which tokens open and close a message.
    """

    def __init__(self, checkpoint: Path) -> None:
        from vllm_integration.worker import message_tokens

        (self._starts,), (self._ends,) = message_tokens(checkpoint)
        self._rng = random.Random(0)

    def text(self, tokens: int) -> list[int]:
        """Plain tokens."""
        return [self._rng.randrange(VOCABULARY) for _ in range(tokens)]

    def message(self, tokens: int) -> list[int]:
        """One message of `tokens` tokens, its marks included."""
        return [self._starts, *self.text(tokens - 2), self._ends]

    def conversation(self, tokens: int) -> list[int]:
        """Messages of MESSAGE tokens each."""
        return [token for _ in range(tokens // MESSAGE) for token in self.message(MESSAGE)]


def first_tokens(engine: Engine, prompts: Prompts) -> dict[str, Pair]:
    """One round: a cold and a warm request for each way to share."""
    found = {}

    prompt = prompts.message(SYSTEM) + prompts.message(QUESTION)
    cold = engine.first_token(prompt)
    found["exact repeat"] = Pair(cold, engine.first_token(prompt))

    history = prompts.conversation(HISTORY)
    cold = engine.first_token(history + prompts.message(MESSAGE))
    found["partial prefix"] = Pair(cold, engine.first_token(history + prompts.message(MESSAGE)))

    system = prompts.message(SYSTEM)
    cold = engine.first_token(system + prompts.message(QUESTION))
    engine.first_token(prompts.message(SYSTEM) + prompts.message(QUESTION))  # another tenant's, in between
    found["cross-prefix"] = Pair(cold, engine.first_token(system + prompts.message(QUESTION)))
    return found


def costs(keeping: Engine, plain: Engine, prompts: Prompts, turn: int) -> dict[int, list[tuple[float, float]]]:
    """One round: seconds of the engine that keeps prefixes and of the one that does not, by batch, in turns."""
    found: dict[int, list[tuple[float, float]]] = {}
    for batch, runs in BATCHES.items():
        found[batch] = []
        for run in range(runs):
            asked = [prompts.text(COST_PROMPT) for _ in range(batch)]
            if (turn + run) % 2:
                mine = keeping.seconds(asked, COST_ANSWER)
                other = plain.seconds(asked, COST_ANSWER)
            else:
                other = plain.seconds(asked, COST_ANSWER)
                mine = keeping.seconds(asked, COST_ANSWER)
            found[batch].append((mine, other))
    return found


def run(checkpoint: Path, threads: int, rounds: int, console: Console) -> dict[str, Any]:
    """Measure, print the tables and return what was found.

    Args:
        checkpoint: folder in Hugging Face layout, with a tokenizer.
        threads: torch threads of either engine.
        rounds: counted rounds; one more comes first and is not counted.
        console: for the tables.
    """
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"Other work is running on this machine (load {load:.1f}); expect worse and noisier figures.")
    _set_environment(threads)
    prompts = Prompts(checkpoint)
    pairs: dict[str, list[Pair]] = {name: [] for name in BARS}
    runs: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
    copies: dict[str, int] = {}
    with _engines(checkpoint, threads) as (keeping, plain):
        for turn in range(rounds + 1):
            console.print(f"round {turn} of {rounds}" if turn else "warming up")
            found = first_tokens(keeping, prompts)
            before = _counts(keeping)
            cost = costs(keeping, plain, prompts, turn)
            if turn:
                for name, pair in found.items():
                    pairs[name].append(pair)
                for batch, seconds in cost.items():
                    runs[batch] += seconds
                for name, count in _counts(keeping).items():
                    copies[name] = copies.get(name, 0) + count - before[name]
        state = keeping.scheduler.slot_manager.statistics.state_bytes
    memory = {"slots": SLOTS, "bytes_per_slot": state, "bytes": SLOTS * state}
    summary = {
        "first_token": {name: _first_token(found) for name, found in pairs.items()},
        "nothing_shared": {str(batch): _cost(batch, found) for batch, found in runs.items()},
        "nothing_shared_copies": copies,
        "slot_memory": memory,
    }
    _show(summary, console)
    samples = {name: [asdict(pair) for pair in found] for name, found in pairs.items()}
    settings = {
        "threads": threads,
        "rounds": rounds,
        "max_num_batched_tokens": CHUNK,
        "dtype": "float32",
        "prompt_tokens": {"exact repeat, cross-prefix": [SYSTEM, QUESTION], "partial prefix": [HISTORY, MESSAGE]},
        "nothing_shared_tokens": {"prompt": COST_PROMPT, "answer": COST_ANSWER},
        "load_average": {"before": load, "after": os.getloadavg()[0]},
    }
    return {
        "settings": settings,
        "summary": summary,
        "samples": {"first_token": samples, "nothing_shared_seconds": {str(batch): runs[batch] for batch in runs}},
    }


def _first_token(pairs: list[Pair]) -> dict[str, Any]:
    return {
        "cold_ms": 1000 * statistics.median(pair.cold.seconds for pair in pairs),
        "warm_ms": 1000 * statistics.median(pair.warm.seconds for pair in pairs),
        "cold_cached_tokens": max(pair.cold.cached for pair in pairs),
        "warm_cached_tokens": min(pair.warm.cached for pair in pairs),
        **_ratios([pair.ratio for pair in pairs]),
    }


def _cost(batch: int, runs: list[tuple[float, float]]) -> dict[str, Any]:
    tokens = batch * (COST_PROMPT + COST_ANSWER)
    return {
        "tokens_per_second_on": tokens / statistics.median(mine for mine, _ in runs),
        "tokens_per_second_off": tokens / statistics.median(other for _, other in runs),
        **_ratios([other / mine for mine, other in runs]),
    }


def _ratios(ratios: list[float]) -> dict[str, Any]:
    """The median of paired ratios and how far the middle half of them lies apart."""
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"ratio": quartiles[1], "ratio_quartiles": [quartiles[0], quartiles[2]], "pairs": len(ratios)}


def _show(summary: dict[str, Any], console: Console) -> None:
    table = Table(title=f"First token of {SYSTEM + QUESTION:,} tokens, medians")
    for title in ("", "cold", "warm", "tokens reused", "ratio (middle half)", "bar"):
        table.add_column(title, justify="left" if not title else "right")
    for name, row in summary["first_token"].items():
        times = [f"{row[side]:,.1f} ms" for side in ("cold_ms", "warm_ms")]
        table.add_row(name, *times, f"{row['warm_cached_tokens']:,}", _spread(row, 1), f"{BARS[name]:.0f}x")
    console.print(table)
    table = Table(title="Nothing shared: prompt and answer tokens per second, medians")
    for title in ("", "prefix caching on", "off", "ratio (middle half)", "bar"):
        table.add_column(title, justify="left" if not title else "right")
    for batch, row in summary["nothing_shared"].items():
        rates = [f"{row['tokens_per_second_' + side]:,.1f}" for side in ("on", "off")]
        table.add_row(f"batch {batch}", *rates, _spread(row, 3), f"{COST_BAR}x")
    console.print(table)
    memory, copies = summary["slot_memory"], summary["nothing_shared_copies"]
    console.print(
        f"{memory['slots']} slots of {memory['bytes_per_slot'] / 2**20:.2f} MiB, {memory['bytes'] / 2**20:.1f} MiB; "
        f"with nothing shared {copies['copies']} states were copied, {copies['bytes'] / 2**20:.1f} MiB"
    )


def _spread(row: dict[str, Any], digits: int) -> str:
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.{digits}f}x ({low:.{digits}f}-{high:.{digits}f}, {row['pairs']} pairs)"


def _counts(engine: Engine) -> dict[str, int]:
    """Copies between lanes and slots so far, and their bytes."""
    totals = engine.scheduler.counters().totals
    return {
        name: sum(count for (total, _), count in totals.items() if total == key)
        for name, key in (("copies", "checkpoint_copies"), ("bytes", "checkpoint_copied_bytes"))
    }


@contextmanager
def _engines(checkpoint: Path, threads: int) -> Iterator[tuple[Engine, Engine]]:
    """The engine that keeps prefixes and the one that does not."""
    with closing(Engine(checkpoint, threads, True)) as keeping, closing(Engine(checkpoint, threads, False)) as plain:
        plain.run_on(keeping)
        yield keeping, plain


def _runner(worker: Any) -> Any:
    """The worker's model runner itself, since it lives in this process."""
    return worker.runner


def _set_environment(threads: int) -> None:
    """What vLLM reads when it is imported: one process, no network, warnings only."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_USE_V2_MODEL_RUNNER="0",
        VLLM_LOGGING_LEVEL="ERROR",
        OMP_NUM_THREADS=str(threads),
    )
