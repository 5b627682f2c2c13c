"""The published scenarios: their sizes, aiperf's command line, what is read of its result, and the command."""

from __future__ import annotations

import json
import stat
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import qwen36

from qwen36_lab.serving.scenarios import Deployment, Load, Scenario, command, dialogue, read, summary, system_prompt
from qwen36_neuron.errors import ConfigError

WHERE = Deployment("here", "http://127.0.0.1:9", "demo")
AIPERF = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
def after(word): return words[words.index(word) + 1]
if after("--concurrency") == "13":
    sys.exit("ERROR all 6 requests failed")
out = pathlib.Path(after("--output-artifact-dir"))
out.mkdir(parents=True)
(out / "words.json").write_text(json.dumps(words))
latency = {{"avg": 10.0 * (1 + int(out.name[0])), "p90": 20.0}}
one = {{"avg": 6.0}}
names = "time_to_first_token inter_chunk_latency inter_token_latency request_latency"
rest = "output_token_throughput total_token_throughput usage_prompt_tokens request_count output_sequence_length"
result = {{**{{n: latency for n in names.split()}}, **{{n: one for n in rest.split()}}}}
result["overall_usage_prompt_cache_read_pct"] = {{"avg": 75.0}}
(out / "profile_export_aiperf.json").write_text(json.dumps(result))
"""


@pytest.fixture
def aiperf(tmp_path: Path) -> Path:
    """A program that answers as aiperf does: 10 ms in the first run, 20 in the second."""
    program = tmp_path / "aiperf"
    program.write_text(AIPERF.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def server() -> Iterator[str]:
    """A deployment that says which model it serves."""

    class Models(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "demo"}]}).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Models) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def asked(scenario: Scenario, load: Load = Load()) -> list[str]:  # noqa: B008  frozen
    return command(Path("aiperf"), WHERE, scenario, load, "folder", Path("out"))


def after(words: list[str], word: str) -> str:
    return words[words.index(word) + 1]


def test_prompts_have_the_lengths_that_were_asked_for() -> None:
    first = system_prompt(8000)
    assert (first.shared_tokens, first.turn_tokens, first.turns) == (7800, 200, 1)
    second = dialogue(17500, 128)
    prompts = [second.own_tokens + 500 * turn + 128 * (turn - 1) for turn in range(1, 7)]
    assert sum(prompts) / 6 == 17500
    assert second.turn_tokens == 500
    with pytest.raises(ConfigError, match="dialogue_tokens=300: of 6 turns grow by 348"):
        dialogue(300, 128)


def test_every_run_has_the_same_prompts_and_pinned_answers() -> None:
    for scenario in (system_prompt(8000), dialogue(17500, 128)):
        words = asked(scenario)
        assert words == asked(scenario)
        assert after(words, "--random-seed") == "7"
        assert after(words, "--prompt-output-tokens-mean") == "128"
        assert [words[n + 1] for n, word in enumerate(words) if word == "--extra-inputs"] == [
            "ignore_eos:true",
            "min_tokens:128",
        ]
        assert after(words, "--concurrency") == "4"
        assert after(words, "--warmup-request-count") == "4"


def test_a_run_has_as_many_requests_as_it_says() -> None:
    one = asked(system_prompt(8000), Load(requests=50))
    assert (after(one, "--request-count"), after(one, "--num-dataset-entries")) == ("50", "50")
    assert "--session-turns-mean" not in one
    many = asked(dialogue(17500, 128, turns=5), Load(requests=240))
    assert (after(many, "--num-conversations"), after(many, "--session-turns-mean")) == ("48", "5")
    assert after(many, "--session-turn-delay-mean") == "0"
    for requests in (1, 241):
        with pytest.raises(ConfigError, match="Use a multiple of 6"):
            asked(dialogue(17500, 128), Load(requests=requests))


def test_a_request_that_failed_is_an_error() -> None:
    latency = {"avg": 5.0, "p90": 9.0}
    result = {
        **dict.fromkeys(("time_to_first_token", "inter_chunk_latency"), latency),
        **{key: {"avg": 7.0, "p90": 8.0} for key in ("inter_token_latency", "request_latency")},
        **{key: {"avg": 100.0} for key in ("output_token_throughput", "total_token_throughput")},
        **{key: {"avg": 128.0} for key in ("usage_prompt_tokens", "output_sequence_length")},
        "request_count": {"avg": 238.0},
    }
    found = read(result, Load())
    assert (found["errors"], found["cached_share"]) == (2, 0)
    assert (found["ttft_ms"], found["ttft_p90_ms"], found["itl_token_ms"], found["e2e_p90_ms"]) == (5, 9, 7, 8)
    spread = summary([found, {**found, "ttft_ms": 9.0}])["ttft_ms"]
    assert spread == {"mean": 7.0, "spread": 2.0}


def test_the_command_takes_turns_between_deployments(aiperf: Path, server: str, tmp_path: Path) -> None:
    words = ["bench", "scenarios", "--aiperf", aiperf, "--tokenizer", "folder", "--requests", 6, "--rounds", 2]
    words += ["--base-url", f"one={server}/v1", "--base-url", server, "--out", tmp_path / "out"]
    done = qwen36(*words)
    assert done.exit_code == 0, done.stderr
    lines = [line.rpartition(": ")[0] for line in done.stdout.splitlines() if line.startswith("run ")]
    kinds = [f"{scenario}, {name}" for scenario in ("system-prompt", "dialogue") for name in ("one", server)]
    assert lines == [f"run {number} of 2, {kind}" for number in (1, 2) for kind in kinds]
    written = json.loads((tmp_path / "out" / "scenarios.json").read_text())
    assert written["provenance"]["kind"] == "measured"
    found = written["scenarios"]["dialogue"]["means"][server]
    assert found["ttft_ms"] == {"mean": 15.0, "spread": 5.0}
    assert found["cached_share"]["mean"] == 0.75
    assert "published" in done.stdout


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    words = ["--aiperf", tmp_path / "none", "--tokenizer", "folder", "--base-url", "http://h", "--model", "a"]
    done = qwen36("bench", "scenarios", *words, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "cannot be run: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--base-url", "127.0.0.1:8000"], "is no URL"),
        (["--base-url", "http://127.0.0.1:9"], "does not say which model it serves"),
        (["--base-url", "http://127.0.0.1:9", "--model", "a", "--only", "chat"], "Use system-prompt or dialogue"),
        (["--base-url", "a=http://h", "--base-url", "a=http://i", "--model", "a"], "gives a name twice"),
        (["--base-url", "http://127.0.0.1:9", "--model", "a", "--requests", "7"], "Use a multiple of 6"),
        (["--base-url", "http://h", "--model", "a", "--requests", "6", "--concurrency", "13"], "all 6 requests failed"),
    ],
)
def test_what_cannot_be_run_is_refused(aiperf: Path, tmp_path: Path, words: list[str], told: str) -> None:
    rest = ["--aiperf", str(aiperf), "--tokenizer", "folder", "--out", str(tmp_path / "out")]
    done = qwen36("bench", "scenarios", *words, *rest)
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "out").exists()
