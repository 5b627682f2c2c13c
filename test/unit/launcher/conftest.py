"""A model's folder, and a start of it, as the tests of the launcher share them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_integration.launcher.launch import Launch, prepare
from vllm_integration.launcher.parse import parse

Start = Callable[..., Launch]


@pytest.fixture
def model(tmp_path: Path, published_27b: dict[str, Any]) -> Path:
    folder = tmp_path / "Qwen3.6-27B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_27b))
    return folder


@pytest.fixture
def start(model: Path) -> Start:
    """`start(*words, **environment)`: the start that they ask for."""

    def made(*words: object, **environment: str) -> Launch:
        return prepare(parse(["--model", str(model), *map(str, words)]), environment)[0]

    return made
