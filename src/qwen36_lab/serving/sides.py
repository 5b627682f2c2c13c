"""The sides of the serving benchmark, each in a process of its own so that its memory is its own.

A side answers two questions: how long until the first token of a prompt, and how fast do tokens follow.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

KV_MARGIN = 1.2
"""KV memory over what the sequences of the benchmark hold, so that none is preempted."""


@dataclass(frozen=True, slots=True)
class SideConfig:
    """What every side is built from.

    Attributes:
        checkpoint: folder in Hugging Face layout.
        threads: torch threads.
        max_model_len: longest sequence that will be asked for.
        max_num_seqs: most sequences at once.
        max_num_batched_tokens: tokens of one step of our engine.
        share_cores: whether our engine computes on fewer threads while other processes keep cores busy.
        engine: further arguments of our engine.
    """

    checkpoint: Path
    threads: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    share_cores: bool = True
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decode:
    """How one decode run went.

    Attributes:
        tokens_per_second: over all sequences.
        overhead_ms: of an engine step outside the runtime, mean; None where there is no engine.
        step_ms: of a whole step, mean.
    """

    tokens_per_second: float
    step_ms: float
    overhead_ms: float | None = None


class Side(Protocol):
    """One way of running the checkpoint."""

    def first_token(self, prompt: list[int]) -> float:
        """Seconds from the prompt to its first token."""
        ...

    def decode(self, prompts: list[list[int]], tokens: int) -> Decode:
        """Greedy decode of `tokens` tokens a prompt, all together, timed once every prompt has its first token."""
        ...


class Engine:
    """Our engine: vLLM in this process, with the plugin."""

    def __init__(self, config: SideConfig) -> None:
        from vllm import LLM

        self.llm = LLM(
            model=str(config.checkpoint),
            dtype="float32",
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=True,
            additional_config={
                "threads": config.threads,
                "cache_gib": cache_gib(config),
                "share_cores": config.share_cores,
            },
            disable_log_stats=True,
            **config.engine,
        )
        (self.timer,) = self.llm.collective_rpc(_time_runtime)
        self._count = 0

    def first_token(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self.ask(prompt, max_tokens=1, ignore_eos=True)
        while self.llm.llm_engine.has_unfinished_requests():
            self.llm.llm_engine.step()
        return time.perf_counter() - started

    def decode(self, prompts: list[list[int]], tokens: int) -> Decode:
        engine = self.llm.llm_engine
        for prompt in prompts:
            self.ask(
                prompt, max_tokens=tokens + len(prompts) + 1, ignore_eos=True
            )  # so that nobody ends before the last step that is timed
        begun: set[str] = set()
        while len(begun) < len(prompts):
            begun |= {output.request_id for output in engine.step() if output.outputs[0].token_ids}
        self.timer.seconds = 0.0
        started = time.perf_counter()
        for _ in range(tokens):
            engine.step()
        seconds = time.perf_counter() - started
        inside = self.timer.seconds
        engine.abort_request(list(begun))
        while engine.has_unfinished_requests():
            engine.step()
        return Decode(
            tokens_per_second=len(prompts) * tokens / seconds,
            step_ms=1000 * seconds / tokens,
            overhead_ms=1000 * (seconds - inside) / tokens,
        )

    def ask(self, prompt: list[int], *, choice: str | None = None, **parameters: Any) -> str:
        """Add a request, greedy unless its parameters say otherwise; its id.

        Args:
            choice: the only text that its grammar allows.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        self._count += 1
        grammar = StructuredOutputsParams(choice=[choice]) if choice is not None else None
        params = SamplingParams(**{"temperature": 0.0, "structured_outputs": grammar, **parameters})
        self.llm.llm_engine.add_request(str(self._count), {"prompt_token_ids": prompt}, params)
        return str(self._count)


class TimedRuntime:
    """A runtime that adds up the time spent in `run`."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def run(self, step: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._runtime.run(step)
        finally:
            self.seconds += time.perf_counter() - started


def _time_runtime(worker: Any) -> TimedRuntime:
    """Put a timer before the worker's runtime; in this process, so the timer itself can be given back."""
    worker.runner.runtime = TimedRuntime(worker.runner.runtime)
    timer: TimedRuntime = worker.runner.runtime
    return timer


class Transformers:
    """Hugging Face transformers, fp32, its own `generate`."""

    def __init__(self, config: SideConfig) -> None:
        import torch
        from transformers.utils import logging

        from ..reference import transformers_model

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(config.threads)
        self.model = transformers_model(config.checkpoint)

    def first_token(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._generate([prompt], 1, lambda: None)
        return time.perf_counter() - started

    def decode(self, prompts: list[list[int]], tokens: int) -> Decode:
        stamps: list[float] = []
        self._generate(prompts, tokens + 1, lambda: stamps.append(time.perf_counter()))
        seconds = stamps[-1] - stamps[0]
        return Decode(tokens_per_second=len(prompts) * tokens / seconds, step_ms=1000 * seconds / tokens)

    def _generate(self, prompts: list[list[int]], tokens: int, on_token: Callable[[], None]) -> None:
        """Greedy; `on_token` is called after every token of the batch."""
        import torch

        def never_stops(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            on_token()
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        ids = torch.tensor(prompts)
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                stopping_criteria=[never_stops],
            )


SIDES: dict[str, Callable[[SideConfig], Side]] = {"engine": Engine, "transformers": Transformers}


def cache_gib(config: SideConfig) -> float:
    """KV memory in GiB for `max_num_seqs` sequences, one of them as long as allowed."""
    from qwen36_neuron.config import ModelConfig

    per_token = ModelConfig.from_pretrained(config.checkpoint).kv_bytes_per_token(4)
    return max(0.01, KV_MARGIN * per_token * (config.max_model_len + 512 * config.max_num_seqs) / 2**30)


def random_prompts(seed: int, count: int, length: int, vocabulary: int = 1000) -> list[list[int]]:
    """Prompts that share no prefix with those of any other seed."""
    rng = random.Random(seed)
    return [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(count)]


class RemoteSide:
    """A side in a process of its own.

    Args:
        name: a key of SIDES.
        config: what it is built from.
        made_by: what makes it instead; it is imported there.
    """

    def __init__(self, name: str, config: SideConfig, made_by: Callable[[SideConfig], Any] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, config, there, made_by), daemon=True)
        self._process.start()
        self._take()

    def first_token(self, prompt: list[int]) -> float:
        return float(self._ask("first_token", prompt))

    def decode(self, prompts: list[list[int]], tokens: int) -> Decode:
        answer = self._ask("decode", prompts, tokens)
        assert isinstance(answer, Decode)
        return answer

    def peak_memory_mib(self) -> tuple[float, float]:
        """The process's largest resident size in MiB, and how much of that came after its imports."""
        peak, imports = self._ask("memory")
        return peak / 1024, (peak - imports) / 1024

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the side answers."""
        return self._ask(method, *arguments)

    def close(self) -> None:
        self._here.close()
        self._process.join(20)
        self._process.kill()

    def _ask(self, *question: Any) -> Any:
        self._here.send(question)
        return self._take()

    def _take(self) -> Any:
        answer = self._here.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(name: str, config: SideConfig, pipe: Connection, made_by: Callable[[SideConfig], Any] | None = None) -> None:
    """The process of one side: build it, then answer questions until the pipe closes."""
    import torch

    torch.set_num_threads(config.threads)
    imports: Callable[[], object] = {"engine": _import_vllm, "transformers": _import_transformers}[name]
    imports()
    base = _peak_kib()
    try:
        side = (made_by or SIDES[name])(config)
        pipe.send(None)
        while True:
            method, *arguments = pipe.recv()
            pipe.send((_peak_kib(), base) if method == "memory" else getattr(side, method)(*arguments))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the benchmark is over, or was stopped
    except Exception as error:
        pipe.send(RuntimeError(f"{name}: {type(error).__name__}: {error}"))
        raise


def _import_vllm() -> object:
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_USE_V2_MODEL_RUNNER="0",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    from vllm import LLM

    return LLM


def _import_transformers() -> object:
    from transformers import Qwen3_5ForConditionalGeneration

    return Qwen3_5ForConditionalGeneration


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
