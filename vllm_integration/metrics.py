"""What /metrics shows of lanes, blocks and checkpoints.

The numbers live with the scheduler, in the engine's process; Prometheus is asked in the API server's. Between the two
vLLM sends SchedulerStats with every step, a fixed structure without a place for a platform's own numbers, except for
its counts per LoRA adapter: a free mapping from names to integers, which is empty here, since adapters are refused.
The numbers travel there, under names that no adapter can have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from prometheus_client import Counter, Gauge
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

PREFIX = "qwen36:"

GAUGES = {
    "lanes_in_use": "Running-state lanes owned by sequences.",
    "kv_blocks_in_use": "KV blocks owned by sequences; blocks that are merely cached are free.",
    "slots_in_use": "Checkpoint slots that hold a reusable prefix.",
}
TOTALS = {
    "checkpoint_hits": ("kind", "Requests that went on from a checkpoint, by why it was kept."),
    "checkpoint_drops": ("reason", "Checkpoints given up, by why."),
    "checkpoint_copies": ("direction", "Copies between lanes and slots."),
    "checkpoint_copied_bytes": ("direction", "Bytes of these copies, all ranks together."),
    "decode_rows": ("drafts", "Rows of decoding, with speculation on, by how many drafts they had."),
    "prefix_tokens_reused": ("kind", "Prompt tokens that were not run again."),
}
"""Name of the label and help text of each; Prometheus adds `_total` to the name."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What is in use between two steps, and what happened since the start. With nothing running, no lane or block is.

    Attributes:
        lanes_in_use, kv_blocks_in_use, slots_in_use: as GAUGES says.
        totals: by name in TOTALS and value of its label.
    """

    lanes_in_use: int
    kv_blocks_in_use: int
    slots_in_use: int
    totals: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def put(self, stats: SchedulerStats) -> None:
        """Write them into `stats`."""
        carried = stats.running_lora_adapters
        for name in GAUGES:
            carried[PREFIX + name] = getattr(self, name)
        for (name, label), value in self.totals.items():
            carried[f"{PREFIX}{name}:{label}"] = value

    @classmethod
    def take(cls, stats: SchedulerStats) -> Counters | None:
        """Read them from `stats`; None if they come from another platform's engine."""
        carried = stats.running_lora_adapters
        if any(PREFIX + name not in carried for name in GAUGES):
            return None
        totals = {}
        for key, value in carried.items():
            name, _, label = key.removeprefix(PREFIX).partition(":")
            if name in TOTALS:
                totals[name, label] = value
        return cls(**{name: carried[PREFIX + name] for name in GAUGES}, totals=totals)


class CacheMetrics(StatLoggerBase):
    """Entry point of `vllm.stat_logger_plugins`: qwen36:lanes_in_use and so on, labelled by engine."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._engine = str(engine_index)
        self._seen: dict[tuple[str, str], int] = {}

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Show the numbers of the last step."""
        counters = Counters.take(scheduler_stats) if scheduler_stats is not None else None
        if counters is None:
            return
        for name, gauge in _gauges().items():
            gauge.labels(engine=self._engine).set(getattr(counters, name))
        for (name, label), value in counters.totals.items():
            grown = value - self._seen.get((name, label), 0)
            if grown > 0:
                _totals()[name].labels(self._engine, label).inc(grown)
                self._seen[name, label] = value

    def log_engine_initialized(self) -> None:
        """Show zeros before the first step."""
        for gauge in _gauges().values():
            gauge.labels(engine=self._engine).set(0)


@cache
def _gauges() -> dict[str, Gauge]:
    """One gauge a number in use, made once a process."""
    return {
        name: Gauge(PREFIX + name, text, labelnames=["engine"], multiprocess_mode="mostrecent")
        for name, text in GAUGES.items()
    }


@cache
def _totals() -> dict[str, Counter]:
    """One counter a total, made once a process."""
    return {name: Counter(PREFIX + name, text, labelnames=["engine", label]) for name, (label, text) in TOTALS.items()}
