"""Counters survive the way from the engine's process to Prometheus."""

import msgspec
from prometheus_client import REGISTRY
from vllm.v1.metrics.stats import SchedulerStats

from vllm_integration.metrics import CacheMetrics, Counters


def carried(counters: Counters) -> SchedulerStats:
    """What arrives of it on the other side of the socket."""
    stats = SchedulerStats()
    counters.put(stats)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(stats), type=SchedulerStats)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"qwen36:{name}", {"engine": "7", **labels})


def test_they_arrive_as_they_were():
    counters = Counters(3, 40, 5, {("checkpoint_hits", "branch"): 2, ("checkpoint_copied_bytes", "write"): 10**12})
    assert Counters.take(carried(counters)) == counters


def test_another_platforms_statistics_are_left_alone():
    assert Counters.take(SchedulerStats(running_lora_adapters={"sql": 2})) is None
    CacheMetrics(None, 7).record(SchedulerStats(), None)


def test_gauges_follow_and_totals_grow():
    metrics = CacheMetrics(None, 7)
    metrics.log_engine_initialized()
    assert value("lanes_in_use") == 0
    metrics.record(carried(Counters(3, 40, 5, {("checkpoint_hits", "branch"): 2})), None)
    metrics.record(
        carried(Counters(0, 0, 6, {("checkpoint_hits", "branch"): 5, ("checkpoint_drops", "reset"): 1})), None
    )
    metrics.record(None, None)
    assert (value("lanes_in_use"), value("kv_blocks_in_use"), value("slots_in_use")) == (0, 0, 6)
    assert value("checkpoint_hits_total", kind="branch") == 5
    assert value("checkpoint_drops_total", reason="reset") == 1
