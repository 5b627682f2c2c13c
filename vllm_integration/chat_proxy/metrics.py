"""The proxy's own Prometheus metrics, served together with the backend's."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class ProxyMetrics:
    """Counters of one proxy, in a registry of its own.

    Args:
        in_flight: gives the number of requests in flight.
        ready: gives whether the backend is ready.
    """

    def __init__(self, in_flight: Callable[[], float], ready: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "qwen36_proxy_requests",
            "Requests answered; status 499 means that the client left first",
            ("route", "status"),
            registry=registry,
        )
        self.rejected = Counter(
            "qwen36_proxy_rejected", "Answers of the proxy's own making", ("reason",), registry=registry
        )
        self.routed = Counter(
            "qwen36_proxy_routed",
            "Requests beyond what was accepted here, handed to the long-context backend",
            ("route",),
            registry=registry,
        )
        self.ttft = Histogram(
            "qwen36_proxy_time_to_first_byte_seconds",
            "From the request's arrival to the first byte of a streamed answer",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.duration = Histogram(
            "qwen36_proxy_request_duration_seconds",
            "From the request's arrival to the last byte of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.bytes_in = Counter("qwen36_proxy_request_bytes", "Request body bytes", ("route",), registry=registry)
        self.bytes_out = Counter("qwen36_proxy_response_bytes", "Response body bytes", ("route",), registry=registry)
        Gauge("qwen36_proxy_requests_in_flight", "Requests in flight", registry=registry).set_function(in_flight)
        Gauge("qwen36_proxy_backend_ready", "1 when the backend is warm", registry=registry).set_function(ready)

    def render(self, backend: str) -> bytes:
        """The proxy's metrics followed by the backend's, in the text exposition format.

        The names of the proxy's begin with `qwen36_proxy_`, so no family is given twice.
        """
        if backend and not backend.endswith("\n"):
            backend += "\n"
        return generate_latest(self._registry) + backend.encode()
