"""Readiness follows the backend: up, warm, dead, back; and what /metrics says of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_integration.chat_proxy import backend as backends


@pytest.fixture
def impatient(monkeypatch):
    """Probes that give up early, so that a stalled backend misses them, and late enough for one that is not."""
    monkeypatch.setattr(backends, "_PROBE_TIMEOUT", 0.5)
    monkeypatch.setattr(backends, "_CONFIRM_TIMEOUT", 0.25)


async def health(stack) -> tuple[int, str]:
    response = await stack.client.get("/health")
    return response.status_code, response.json()["status"]


async def test_readiness_follows_the_backend_through_its_life(engine, fakes):
    port = fakes.free_port()
    async with fakes.stack(engine, f"http://127.0.0.1:{port}", ready=False) as stack:
        assert await health(stack) == (503, "starting")
        assert (await stack.chat()).status_code == 503

        engine.warm_up_status = 500
        async with fakes.serving(engine.app, port):
            await stack.until(lambda: engine.warm_ups > 1)  # Up, and the warm-up fails again and again.
            assert await health(stack) == (503, "warming up")
            assert (await stack.chat()).status_code == 503
            assert engine.completions == []
            engine.warm_up_status = 200
            await stack.until(lambda: stack.proxy.backend.state.value == "ready")
            assert await health(stack) == (200, "ready")
            assert (await stack.chat()).status_code == 200

        assert await health(stack) == (503, "backend down")
        refused = await stack.chat()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["type"] == "ServiceUnavailableError"

        warm_ups = engine.warm_ups
        async with fakes.serving(engine.app, port):
            await stack.until(lambda: stack.proxy.backend.state.value == "ready")
            assert engine.warm_ups == warm_ups + 1
            assert await health(stack) == (200, "ready")


async def test_a_backend_that_says_it_is_unwell_is_down(engine, make):
    stack = await make()
    engine.healthy = False
    assert await health(stack) == (503, "backend down")
    engine.healthy = True
    await stack.until(lambda: stack.proxy.backend.state.value == "ready")


async def test_one_missed_probe_changes_nothing(engine, make, impatient):
    stack = await make()
    warm_ups, probes = engine.warm_ups, engine.probes
    engine.stalled = 1
    await stack.until(lambda: engine.probes > probes + 3)
    assert await health(stack) == (200, "ready")
    assert (await stack.chat()).status_code == 200
    assert engine.warm_ups == warm_ups


async def test_a_backend_that_is_silent_for_long_is_reported_and_still_asked(engine, make, impatient):
    stack = await make(health_misses=3)
    warm_ups = engine.warm_ups
    engine.stalled = 10**6
    seen = set()
    async with asyncio.timeout(60):  # No request meanwhile: its answer would show that the backend is alive.
        while (state := (await health(stack))[1]) != "backend does not answer":
            seen.add(state)
    assert seen <= {"ready"}
    assert (await stack.chat()).status_code == 200  # Not refused while it is only slow to answer probes.
    engine.stalled = 0
    await stack.until(lambda: stack.proxy.backend.state.value == "ready")
    assert engine.warm_ups == warm_ups  # It was busy, not started anew: no completion stands between it and READY.


async def test_a_stream_that_flows_shows_that_the_backend_is_alive(engine, make, impatient):
    flowing = True

    async def answer(body, receive, send):
        await engine.start(send)
        while flowing:
            await engine.piece(send, b"data: 1\n\n")
            await asyncio.sleep(0.01)
        await engine.piece(send, b"data: 2\n\n", more=False)

    engine.answer = answer
    stack = await make(health_misses=2)
    async with stack.stream() as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        engine.stalled = 10**6
        probes = engine.probes
        async with asyncio.timeout(60):
            while engine.probes < probes + 4:
                await anext(pieces)
        assert stack.proxy.backend.state.value == "ready"
        flowing = False


async def test_a_port_that_accepts_and_says_nothing_is_silent_and_not_started_anew(engine, fakes, impatient):
    port = fakes.free_port()
    async with fakes.stack(engine, f"http://127.0.0.1:{port}", ready=False, health_misses=2) as stack:
        async with fakes.serving(engine.app, port):
            await stack.until(lambda: stack.proxy.backend.state.value == "ready")
        with socket.socket() as mute:
            mute.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mute.bind(("127.0.0.1", port))
            mute.listen()
            # Between the two nobody listened for a moment, which the proxy may have seen or not.
            await stack.until(lambda: stack.proxy.backend.state.value in ("backend does not answer", "backend down"))


@pytest.mark.parametrize("generated", [0, 7])
async def test_a_backend_that_has_generated_needs_no_warm_up(engine, make, generated):
    engine.metrics = f'vllm:generation_tokens_total{{engine="0"}} {float(generated)}\n'
    await make()
    assert engine.warm_ups == (0 if generated else 1)


async def test_requests_are_served_while_a_restarted_backend_warms_up(engine, fakes):
    port = fakes.free_port()
    async with fakes.stack(engine, f"http://127.0.0.1:{port}", ready=False) as stack:
        async with fakes.serving(engine.app, port):
            await stack.until(lambda: stack.proxy.backend.state.value == "ready")
        assert await health(stack) == (503, "backend down")
        engine.warm_up_status = 500
        async with fakes.serving(engine.app, port):
            await stack.until(lambda: stack.proxy.backend.state.value == "warming up")
            assert await health(stack) == (503, "warming up")
            assert (await stack.chat()).status_code == 200


async def test_a_look_that_fails_does_not_end_the_watch(engine, make, monkeypatch, caplog):
    stack = await make()
    monkeypatch.setattr(stack.proxy.backend, "look", _fail)
    with caplog.at_level(logging.ERROR, "chat_proxy"):
        await stack.until(lambda: "looking at the backend failed" in caplog.text)
    monkeypatch.undo()
    probes = engine.probes
    await stack.until(lambda: engine.probes > probes)


async def _fail() -> None:
    raise RuntimeError("a look went wrong")


async def test_a_death_shows_in_health_before_the_next_look(engine, fakes):
    async with contextlib.AsyncExitStack() as exits:
        backend = contextlib.AsyncExitStack()
        url = await backend.enter_async_context(fakes.serving(engine.app))
        stack = await exits.enter_async_context(fakes.stack(engine, url, health_interval=3600.0))
        await backend.aclose()
        assert await health(stack) == (503, "backend down")


async def test_the_warm_up_presents_the_key(engine, make):
    stack = await make(api_key="right-key")
    assert await health(stack) == (200, "ready")


async def test_metrics_are_the_proxys_and_the_backends_in_one_valid_text(engine, make):
    stack = await make()
    await stack.chat()
    await stack.client.post("/v1/chat/completions", content=b"{")
    response = await stack.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(response.text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}
    route = ("route", "/v1/chat/completions")
    assert samples["qwen36_proxy_requests_total", (route, ("status", "200"))] == 1
    assert samples["qwen36_proxy_requests_total", (route, ("status", "400"))] == 1
    assert samples["qwen36_proxy_rejected_total", (("reason", "json"),)] == 1
    assert samples["qwen36_proxy_requests_in_flight", ()] == 0
    assert samples["qwen36_proxy_backend_ready", ()] == 1
    assert samples["qwen36_proxy_request_bytes_total", (route,)] == len(b'{"messages":[]}') + 1
    assert samples["vllm:x_total", (("engine", "0"),)] == 3


async def test_time_to_first_byte_is_counted_for_streams_alone(engine, make):
    async def answer(body, receive, send):
        await engine.start(send)
        await engine.piece(send, b"data: 1\n\n")
        await engine.piece(send, b"data: 2\n\n", more=False)

    stack = await make()
    await stack.chat()
    assert stack.counted("qwen36_proxy_time_to_first_byte_seconds_count", route="/v1/chat/completions") == 0
    engine.answer = answer
    await stack.chat(stream=True)
    assert stack.counted("qwen36_proxy_time_to_first_byte_seconds_count", route="/v1/chat/completions") == 1


async def test_metrics_are_served_without_a_backend(engine, fakes):
    async with fakes.stack(engine, f"http://127.0.0.1:{fakes.free_port()}", ready=False) as stack:
        text = (await stack.client.get("/metrics")).text
    samples = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert samples["qwen36_proxy_backend_ready"] == 0
