"""A recorded trace: its format, what a replica sees of it, and what could be reused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qwen36_cli.bench.apc import SIZES
from qwen36_lab.apc.mooncake import key, one_in, read
from qwen36_lab.apc.recorded import NAMES, below, run
from qwen36_lab.apc.replay import OURS
from qwen36_lab.apc.simulator import CoveredCache
from qwen36_neuron.apc import BoundaryPlanner, PolicyConfig, PrefillCost, SlotPool
from qwen36_neuron.errors import ConfigError


def written(folder: Path, *rows: tuple[int, int, Sequence[int]]) -> Path:
    """A trace of (prompt tokens, output tokens, ids)."""
    file = folder / "trace.jsonl"
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    lines = [json.dumps(dict(zip(names, (1000 * at, *row), strict=True))) for at, row in enumerate(rows)]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_prompts_share_what_their_ids_do_and_answers_nothing(tmp_path: Path) -> None:
    rows = (1000, 70, [0, 1]), (1400, 70, [0, 2, 3]), (1000, 1, [0, 1]), (1400, 1, [0, 2, 4])
    keyed, left_out = key(read(written(tmp_path, *rows)), 32_768)
    assert left_out == 0
    assert [one.reusable for one in keyed] == [0, 512, 999, 1024]
    for one in keyed:
        assert len(one.path) == one.run_tokens // 64
        assert len(one.request.prompt) == one.prompt_tokens
    first, second, again, _ = keyed
    assert first.prompt_path == again.prompt_path
    assert first.request.prompt == again.request.prompt
    assert first.path[:8] == second.path[:8]
    assert not set(first.path[8:]) & set(second.path[8:])
    assert first.request.prompt[:512] == second.request.prompt[:512]
    assert first.request.prompt[512] != second.request.prompt[512]
    assert not set(first.path[15:]) & set(again.path[15:]), "answers are nobody else's"


@pytest.mark.parametrize("tokens", [63, 64, 65, 511, 512, 513, 575, 576])
@pytest.mark.parametrize("answer", [0, 1, 2, 64, 65])
def test_lengths_at_boundaries(tmp_path: Path, tokens: int, answer: int, cost: PrefillCost) -> None:
    row = tokens, answer, list(range(-(-tokens // 512)))
    keyed, _ = key(read(written(tmp_path, row, row)), 32_768)
    assert len(set(keyed[0].path + keyed[1].path)) == len(keyed[0].path) * 2 - tokens // 64
    cache = CoveredCache("ours", BoundaryPlanner(PolicyConfig(64)), SlotPool(64, cost), 1000)
    assert [cache.serve(one) for one in keyed] == [0, (tokens - 1) // 64 * 64]


def test_what_does_not_fit_is_left_out_and_counted(tmp_path: Path) -> None:
    keyed, left_out = key(read(written(tmp_path, (1000, 24, [0, 1]), (1000, 25, [0, 1]))), 1024)
    assert (len(keyed), left_out) == (1, 1)


def test_conversations_stay_with_their_replica(tmp_path: Path) -> None:
    rows = [(1024, 1, [0, conversation]) for conversation in range(1, 101) for _ in range(3)]
    recorded = read(written(tmp_path, *rows))
    parts = [one_in(recorded, 4, part) for part in range(4)]
    assert sum(map(len, parts)) == 300
    assert all(30 <= len(part) <= 120 and len(part) % 3 == 0 for part in parts)
    assert one_in(recorded, 1) == recorded


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "TypeError"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1}', "hash_ids"),
        ('{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [0]}', "1 hash_ids for 513 tokens"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []}', "out of range"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [-1]}', "out of range"),
    ],
)
def test_a_line_of_another_format_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = written(tmp_path, (5, 1, [0]))
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert f"{file}:2" in str(caught.value)
    assert says in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.jsonl")


def test_all_policies_are_compared_on_one_memory(tmp_path: Path) -> None:
    turns = [
        (600 * turn, 20, [0, *range(10 * talk, 10 * talk + -(-600 * turn // 512) - 1)])
        for turn in (2, 3, 4)
        for talk in (1, 2)
    ]
    result = run(written(tmp_path, *turns), [1, 2], [8], 2.0, SIZES, Console(quiet=True))
    assert [cell["one_in"] for cell in result["cells"]][:1] == [1]
    results: dict[str, Any] = result["cells"][0]["results"]
    assert tuple(results) == NAMES
    assert len({one["reusable"] for one in results.values()}) == 1
    assert results[OURS]["reused"] > 0
    worse = {"one_in": 1, "slots": 8, "results": {OURS: {"reused": 5}, "x": {"reused": 7}, "y": {"reused": 5}}}
    assert below([worse]) == [{"one_in": 1, "slots": 8, "than": "x", "tokens": 2}]
