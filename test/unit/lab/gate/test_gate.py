"""The command against a server of its own: what is sent, what is skipped, what the exit status says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from qwen36_cli.app import app

ROWS = [
    {"id": "sum", "prompt": "2+2", "hard": True, "expect": {"exact": "4"}},
    {"id": "long", "prompt": "x" * 90},
]


class Handler(BaseHTTPRequestHandler):
    """Counts a token a character, and says of a prompt what `says` has for it."""

    says: ClassVar[dict[str, Any]] = {}
    asked: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[set[str | None]] = set()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "first"}, {"id": "second"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        self.keys.add(self.headers.get("authorization"))
        prompt = body["messages"][-1]["content"]
        said = self.says.get(prompt, "4")
        if isinstance(said, tuple):
            self._send(*said)
            return
        tokens, most = len(said), body["max_completion_tokens"]
        choice = {"message": {"content": said[:most]}, "finish_reason": "stop" if tokens <= most else "length"}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": min(tokens, most)}
        self._send(200, {"choices": [choice], "usage": usage})

    def _send(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[str]:
    Handler.says, Handler.asked, Handler.keys = {}, [], set()
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "suite.yaml"
    suite = {"envelope": {"prompt_tokens": 100, "completion_tokens": 20}, "rows": ROWS, **changes}
    file.write_text(json.dumps(suite))
    return file


def run(tmp_path: Path, *words: object) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "out" / "gate.json"
    with pytest.raises(SystemExit) as ended:
        app(["gate", "--out", str(out), *map(str, words)])
    return int(ended.value.code or 0), json.loads(out.read_text()) if out.is_file() else {}


def test_a_deployment_is_accepted_for_its_envelope(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    status, result = run(tmp_path, "--candidate", server + "/v1", "--suite", write(tmp_path))
    assert status == 0
    assert result["accepted"] is True
    assert result["envelope"] == {"prompt_tokens": 100, "completion_tokens": 20}
    assert result["candidate"]["model"] == "first"
    assert result["provenance"]["kind"] == "measured"
    assert Handler.keys == {"Bearer secret"}
    assert all(body["max_completion_tokens"] == 20 and body["temperature"] == 0 for body in Handler.asked)


@pytest.mark.parametrize(
    ("said", "state", "word"),
    [
        ("5", "failed", "not"),
        ((500, {"error": {"message": "boom"}}), "error", "boom"),
        ((200, {"choices": []}), "error", "no choice"),
        ((400, {"error": {"message": "The maximum context length is 10"}}), "skipped", "maximum"),
        ((400, {"error": {"message": "temperature must be at most 2"}}), "error", "temperature"),
        ("4" * 21, "skipped", "did not end"),
    ],
)
def test_a_deployment_is_refused_with_the_reason(
    server: str, tmp_path: Path, said: Any, state: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Handler.says = {"2+2": said}
    status, result = run(tmp_path, "--candidate", server, "--suite", write(tmp_path, limits={"skipped": 1}))
    assert status == 1
    row = result["rows"][0]
    assert row["state"] == state
    assert word in row["failures"][0]
    assert "hard rows failed: sum" in result["failures"]
    assert f"sum {state}" in capsys.readouterr().out


def test_a_prompt_beyond_the_envelope_is_skipped_and_said(server: str, tmp_path: Path) -> None:
    rows = [*ROWS, {"id": "beyond", "prompt": "x" * 101}]
    status, result = run(tmp_path, "--candidate", server, "--suite", write(tmp_path, rows=rows))
    assert status == 1
    assert result["failures"] == ["1 rows were skipped, of 0 that may be"]
    assert "101 tokens, of 100" in result["rows"][2]["failures"][0]


def test_a_row_of_a_length_of_its_own_is_judged_by_what_it_has(server: str, tmp_path: Path) -> None:
    rows = [{**ROWS[0], "max_tokens": 1}, ROWS[1]]
    Handler.says = {"2+2": "4444"}
    status, _ = run(tmp_path, "--candidate", server, "--suite", write(tmp_path, rows=rows))
    assert status == 0


def test_an_earlier_result_is_a_reference_for_its_own_suite_alone(server: str, tmp_path: Path) -> None:
    suite = write(tmp_path, limits={"agreement": 1.0})
    status, _ = run(tmp_path, "--candidate", server, "--suite", suite, "--reference", server)
    assert status == 0
    earlier = tmp_path / "earlier.json"
    (tmp_path / "out" / "gate.json").rename(earlier)
    words = ("--candidate", server, "--suite", suite, "--reference", earlier)
    assert run(tmp_path, *words)[0] == 0
    Handler.says = {"x" * 90: "another text"}
    status, result = run(tmp_path, *words)
    assert status == 1
    assert result["measured"]["agreement"] == 0.5
    (tmp_path / "out" / "gate.json").unlink()
    suite.write_text(suite.read_text() + " ")
    assert run(tmp_path, *words) == (2, {})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--reference", "nowhere"), "reference"),
        (("--model", "third"), "Known: first, second"),
        (("--reference-model", "first"), "reference_model"),
        (("--reference", "earlier.json", "--reference-model", "first"), "reference_model"),
        (("--candidate", "http://127.0.0.1:9"), "does not list its models"),
        (("--candidate", "not a url"), "url"),
    ],
)
def test_what_cannot_be_asked_is_named(
    server: str, tmp_path: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = run(tmp_path, "--candidate", server, "--suite", write(tmp_path), *words)
    assert status == 2
    assert says in capsys.readouterr().err


def test_agreement_without_a_reference_is_refused(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write(tmp_path, limits={"agreement": 0.9})
    assert run(tmp_path, "--candidate", server, "--suite", suite)[0] == 2
    assert "limits.agreement" in capsys.readouterr().err
    assert not Handler.asked
