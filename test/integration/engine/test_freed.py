"""An engine that ended takes its memory with it, though vLLM freezes the heap that it is made on."""

from __future__ import annotations

import gc
import weakref

import pytest
from engine import Engine, greedy


def references(engine: Engine) -> dict[str, weakref.ref]:
    held = {"runtime": engine.runtime, "model": engine.runtime.model, "cache": engine.runtime.cache}
    return {name: weakref.ref(thing) for name, thing in held.items()}


@pytest.mark.parametrize("steps", [0, 1])
def test_a_deleted_engine_is_collected(tiny_checkpoint, engines, steps):
    engine = Engine(tiny_checkpoint, num_gpu_blocks_override=40, additional_config={"kernels": "torch"})
    engine.outputs([[1, 2, 3]] * steps, greedy(2))
    held = references(engine)
    del engine
    gc.collect()
    assert {name for name, reference in held.items() if reference() is not None} == set()


def test_a_shut_down_engine_holds_nothing_large_while_its_user_holds_it(engine):
    made = engine(num_gpu_blocks_override=40, additional_config={"kernels": "torch"})
    made.outputs([[1, 2, 3]], greedy(2))
    held = references(made)
    made.close()
    made.runtime = None
    gc.collect()
    assert {name for name, reference in held.items() if reference() is not None} == set()


def test_an_engine_can_be_printed(fake_engine):
    assert "layers of 64" in repr(fake_engine(num_gpu_blocks_override=40).llm)
