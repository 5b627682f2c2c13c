"""Engines in this process, on the fake runtime or on the real one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shapes import CONFIG

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
)


@pytest.fixture(scope="session")
def shape_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a config.json and nothing else: what the fake runtime needs."""
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Collects the engines of a test and shuts them down.

    vLLM puts its own configuration classes into transformers' registry, for the whole process; they are taken out
    again, since other tests load the same checkpoints with transformers alone. An engine that starts searches all of
    the process's objects for garbage, four times, so that a server's collections are short: here the objects are those
    of all tests before, and it would take seconds for every engine.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", dict(CONFIG_MAPPING._extra_content))
    monkeypatch.setattr("vllm.v1.engine.core.freeze_gc_heap", lambda: None)
    made: list[Any] = []
    yield made
    for engine in made:
        engine.close()


@pytest.fixture
def fake_engine(shape_only: Path, engines: list[Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes an `Engine` on the fake runtime, from vLLM's arguments."""
    from engine import Engine
    from fake_runtime import FakeRuntime

    monkeypatch.setattr("vllm_integration.worker.open_runtime", FakeRuntime)

    def make(**arguments: Any) -> Engine:
        engines.append(Engine(shape_only, skip_tokenizer_init=True, **arguments))
        return engines[-1]

    return make


@pytest.fixture
def engine(tiny_checkpoint: Path, engines: list[Any]) -> Callable[..., Any]:
    """Makes an `Engine` on the CPU runtime and the tiny checkpoint, from vLLM's arguments."""
    from engine import Engine

    def make(**arguments: Any) -> Engine:
        engines.append(Engine(tiny_checkpoint, **arguments))
        return engines[-1]

    return make
