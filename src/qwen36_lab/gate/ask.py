"""Asking a server the rows of a suite, over its OpenAI API."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from qwen36_neuron.errors import ConfigError

from .suite import Row, Suite

CONNECT_TIMEOUT = 10.0
_TOO_LONG = re.compile(r"maximum context length|were accepted here|tokens leave|at most \d+ fit")
"""Of a refusal by vLLM or by the chat proxy: the request is too long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to one row.

    Attributes:
        text: of the answer, without what the model thought.
        prompt_tokens, completion_tokens: of the request, as the server counts.
        skipped: why the row lies beyond the envelope; None if it does not.
        error: why there is no answer; None if there is one.
    """

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    skipped: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


class Server:
    """One deployment.

    Args:
        url: its base, without /v1.
        api_key: that it asks for.
        model: which of its models; None for the first.
        timeout: seconds for one answer.
    """

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None, timeout: float = 600.0) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)
        self.url, self._http = base, httpx.Client(base_url=base, headers=headers, timeout=limits, trust_env=False)
        self.model = self._choose(model)

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def answers(self, suite: Suite, at_once: int, tell: Callable[[Row, Answer], None]) -> dict[str, Answer]:
        """Ask every row, so many at a time; by the rows' names, in their order."""

        def one(row: Row) -> Answer:
            answer = self.answer(suite, row)
            tell(row, answer)
            return answer

        with ThreadPoolExecutor(at_once) as pool:
            return dict(zip([row.id for row in suite.rows], pool.map(one, suite.rows), strict=True))

    def answer(self, suite: Suite, row: Row) -> Answer:
        """Ask one row."""
        body = {
            **suite.parameters,
            **row.parameters,
            "model": self.model,
            "messages": list(row.messages),
            "max_completion_tokens": row.max_tokens or suite.completion_tokens,
        }
        try:
            response = self._http.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            return Answer(error=f"{type(error).__name__}: {error}")
        try:
            found = response.json()
        except ValueError:
            return Answer(error=f"HTTP {response.status_code}, which is not JSON")
        if response.status_code != 200:
            return self._refused(response.status_code, found)
        try:
            choice, usage = found["choices"][0], found["usage"]
            text = choice["message"].get("content") or ""
            prompt, completion = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (KeyError, LookupError, TypeError, ValueError, AttributeError):
            return Answer(error="the answer has no choice, or no usage")
        skipped = None
        if prompt > suite.prompt_tokens:
            skipped = f"its prompt has {prompt} tokens, of {suite.prompt_tokens} in the envelope"
        elif choice.get("finish_reason") == "length" and row.max_tokens is None:
            skipped = f"its answer did not end within the envelope's {suite.completion_tokens} tokens"
        return Answer(text, prompt, completion, skipped)

    @staticmethod
    def _refused(status: int, found: Any) -> Answer:
        error = found.get("error") if isinstance(found, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        text = str(message or found)
        if status == 400 and _TOO_LONG.search(text):
            return Answer(skipped=f"the server refuses its length: {text}")
        return Answer(error=f"HTTP {status}: {text}")

    def _choose(self, model: str | None) -> str:
        try:
            response = self._http.get("/v1/models")
            response.raise_for_status()
            known = [str(one["id"]) for one in response.json()["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            problem = f"does not list its models ({error or type(error).__name__})"
            raise ConfigError("url", self.url, problem, "Start the server, or correct the URL") from error
        if model is not None and model not in known:
            raise ConfigError("model", model, "is not served there", f"Known: {', '.join(known)}")
        if not known:
            raise ConfigError("url", self.url, "serves no model", "Start one")
        return model or known[0]
