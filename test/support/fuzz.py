"""Bodies made from a server's own OpenAPI schema, valid and not, none of which may be answered 5xx.

`python test/support/fuzz.py http://127.0.0.1:8000 http://127.0.0.1:8001 --cases 1000` tries that many of each kind on
every route of a running server; the first URL is what is tried, the second is vLLM's, which has the schema.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from schemathesis.errors import UnsupportedSchema

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
_HI = [{"role": "user", "content": "Hi"}]
_GOOD: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": _HI, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": _HI, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": _HI},
    "/tokenize": {"messages": _HI},
    "/detokenize": {"tokens": [1, 2]},
}
"""A body of each route that is served. One with all fields at random is refused for the first that is wrong."""

_SMALL = {"max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2, "min_tokens": 1, "n": 2, "best_of": 2}
"""Bounds of what is valid and only takes long."""


@dataclass
class Tried:
    """What became of the cases of one route.

    Attributes:
        statuses: how many were answered with each status.
        failures: body and answer of each that was answered 5xx, or by an event that says so, or not at all.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)


def fuzz(url: str, schema: dict[str, Any], route: str, model: str, cases: int, *, number: int = 0) -> Tried:
    """Send bodies of one route; the same ones for the same `number`.

    Each is a body that is served with some of its fields, or all, from one that the schema allows (`cases` times) or
    forbids (as many).
    """
    tried = Tried()
    operation = schemathesis.openapi.from_dict(schema)[route]["POST"]
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            _each(
                operation.as_strategy(generation_mode=mode),
                cases,
                number,
                lambda body: _try(client, route, model, body, tried),
            )
    return tried


@st.composite
def _made(draw: st.DrawFn, strategy: st.SearchStrategy[Any]) -> Any:
    """A case. Now and then schemathesis breaks a schema in a way that it has no values for: that one is passed over."""
    try:
        return draw(strategy)
    except UnsupportedSchema:
        reject()


def _each(strategy: Any, cases: int, number: int, use: Callable[[Any], None]) -> None:
    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_made(strategy), st.randoms(use_true_random=False), st.sampled_from([1, 1, 2, 3, 100]))
    def run(case: Any, random: Any, most: int) -> None:
        body = case.body
        if isinstance(body, dict):
            kept = random.sample(sorted(body), min(most, len(body)))
            body = {name: body[name] for name in kept}
        use(body)

    run()


def _try(client: httpx.Client, route: str, model: str, body: Any, tried: Tried) -> None:
    if isinstance(body, dict):
        bounds = {key: min(body[key], most) for key, most in _SMALL.items() if type(body.get(key)) is int}
        body = {**_GOOD[route], **body, **bounds, "model": model}
    try:
        raw = json.dumps(body).encode()
    except (TypeError, ValueError):
        return
    try:
        answer = client.post(route, content=raw, headers={"content-type": "application/json"})
    except httpx.TransportError as error:
        tried.failures.append((raw.decode(), repr(error)))
        return
    tried.statuses[answer.status_code] = tried.statuses.get(answer.status_code, 0) + 1
    event = '"code": 500' in answer.text and answer.headers.get("content-type", "").startswith("text/event-stream")
    if answer.status_code >= 500 or event:
        tried.failures.append((raw.decode(), answer.text[:500]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("backend")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--route", choices=ROUTES, action="append")
    options = parser.parse_args()
    schema = httpx.get(f"{options.backend}/openapi.json", timeout=60, trust_env=False).json()
    model = httpx.get(f"{options.url}/v1/models", timeout=60, trust_env=False).json()["data"][0]["id"]
    for route in options.route or ROUTES:
        tried = fuzz(options.url, schema, route, model, options.cases, number=options.number)
        print(route, tried.statuses, len(tried.failures), "failures", flush=True)
        for body, answer in tried.failures[:20]:
            print("   ", body[:600], "->", answer[:300], flush=True)


if __name__ == "__main__":
    main()
