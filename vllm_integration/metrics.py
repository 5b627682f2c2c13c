"""What /metrics shows of lanes, blocks and slots.

The counters live with the scheduler, in the engine's process; Prometheus is asked in the API server's. Between the two
vLLM sends SchedulerStats with every step, a fixed structure without a place for a platform's own numbers, except for
its counts per LoRA adapter: a free mapping from names to integers, which is empty here, since adapters are refused.
The counters travel there, under names that no adapter can have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache

from prometheus_client import Gauge
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

PREFIX = "qwen36:"


@dataclass(frozen=True, slots=True)
class Counters:
    """What is in use between two steps. With nothing running, lanes and blocks must be 0.

    Attributes:
        lanes_in_use: running-state lanes owned by sequences.
        kv_blocks_in_use: KV blocks owned by sequences; blocks that are merely cached are free.
        slots_in_use: checkpoint slots that hold a prefix.
    """

    lanes_in_use: int
    kv_blocks_in_use: int
    slots_in_use: int

    def put(self, stats: SchedulerStats) -> None:
        """Write them into `stats`."""
        for name, value in asdict(self).items():
            stats.running_lora_adapters[PREFIX + name] = value

    @classmethod
    def take(cls, stats: SchedulerStats) -> Counters | None:
        """Read them from `stats`; None if they come from another platform's engine."""
        carried = stats.running_lora_adapters
        names = [field.name for field in fields(cls)]
        if any(PREFIX + name not in carried for name in names):
            return None
        return cls(**{name: carried[PREFIX + name] for name in names})


class CacheMetrics(StatLoggerBase):
    """Entry point of `vllm.stat_logger_plugins`: gauges qwen36:lanes_in_use and so on, labelled by engine."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._engine = str(engine_index)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Show the counters of the last step."""
        counters = Counters.take(scheduler_stats) if scheduler_stats is not None else None
        if counters is not None:
            for name, value in asdict(counters).items():
                _gauges()[name].labels(engine=self._engine).set(value)

    def log_engine_initialized(self) -> None:
        """Show zeros before the first step."""
        for gauge in _gauges().values():
            gauge.labels(engine=self._engine).set(0)


@cache
def _gauges() -> dict[str, Gauge]:
    """One gauge a counter, made once a process."""
    help_texts = {
        "lanes_in_use": "Running-state lanes owned by sequences.",
        "kv_blocks_in_use": "KV blocks owned by sequences.",
        "slots_in_use": "Checkpoint slots that hold a reusable prefix.",
    }
    return {
        name: Gauge(PREFIX + name, text, labelnames=["engine"], multiprocess_mode="mostrecent")
        for name, text in help_texts.items()
    }
