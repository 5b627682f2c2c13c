"""A vLLM engine in this process, driven step by step, with the memory's invariants checked after each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fake_runtime import FakeRuntime
from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput
from vllm.v1.core.kv_cache_utils import get_block_hash

from qwen36_lab.reference import transformers_model
from qwen36_neuron.config import BLOCK_SIZE
from vllm_integration.scheduler import SlotScheduler
from vllm_integration.worker import Worker


class Engine:
    """Wraps LLM. `runtime`, `scheduler` and `worker` are the live objects."""

    def __init__(self, model: Path, **arguments: Any) -> None:
        settings = {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 8, "enable_prefix_caching": False}
        self.llm = LLM(model=str(model), seed=0, disable_log_stats=True, **{**settings, **arguments})
        self.engine = self.llm.llm_engine
        core = self.engine.engine_core.engine_core
        self.scheduler: SlotScheduler = core.scheduler
        self.worker: Worker = core.model_executor.driver_worker.worker
        self.runtime: Any = self.worker.runtime
        self.finished: dict[str, RequestOutput] = {}
        self._ids: dict[str, str] = {}
        self._contents: dict[bytes, int] = {}

    def close(self) -> None:
        self.engine.engine_core.shutdown()

    def add(self, request_id: str, tokens: Sequence[int], params: SamplingParams, priority: int = 0) -> None:
        self._ids[request_id] = self.engine.add_request(
            request_id, {"prompt_token_ids": list(tokens)}, params, priority=priority
        )

    def abort(self, request_id: str) -> None:
        self.engine.abort_request([self._ids[request_id]], internal=True)

    def step(self) -> list[RequestOutput]:
        """One engine step; what came out of it."""
        outputs = self.engine.step()
        self.check()
        for output in outputs:
            if output.finished:
                self.finished[output.request_id] = output
        return outputs

    def drain(self) -> None:
        """Step until nothing is left, then require that nothing is held."""
        while self.engine.has_unfinished_requests():
            self.step()
        self.step()
        counters = self.scheduler.counters()
        assert (counters.lanes_in_use, counters.kv_blocks_in_use) == (0, 0), counters

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams | None = None) -> list[list[int]]:
        """Greedy tokens of all prompts at once, or as `params` say."""
        return [list(output.outputs[0].token_ids) for output in self.outputs(prompts, params)]

    def outputs(self, prompts: Sequence[Sequence[int]], params: SamplingParams | None = None) -> list[RequestOutput]:
        """The finished outputs of all prompts, run at once."""
        params = params or greedy(16)
        names = [f"r{len(self._ids) + i}" for i in range(len(prompts))]
        for name, prompt in zip(names, prompts, strict=True):
            self.add(name, prompt, params)
        self.drain()
        return [self.finished[name] for name in names]

    def check(self) -> None:
        """Invariants between two steps."""
        scheduler, lanes = self.scheduler, self.worker.runner.table.lanes
        running = {request.request_id for request in scheduler.running}
        owners = set(lanes._owner)
        assert running <= owners | {r.request_id for r in scheduler.running if r.num_computed_tokens == 0}
        assert len(owners) <= lanes.num_lanes
        assert len(set(lanes._owner.values())) == len(owners)
        assert sorted([*lanes._free, *lanes._owner.values()]) == list(range(1, lanes.num_lanes + 1))
        slots = scheduler.slot_manager.slots
        assert sorted([*slots._free, *slots._late, *slots.by_slot]) == list(range(1, slots.num_slots + 1))
        assert {c.slot for c in slots.by_key.values()} == {c.slot for c in slots.by_slot.values() if c.published}
        assert all(slots.by_key[c.key] is c and c.boundary % BLOCK_SIZE == 0 for c in slots.by_key.values())
        assert set(scheduler.slot_manager.req_to_blocks) <= set(scheduler.requests)
        assert set(scheduler.slot_manager._by_request) <= set(scheduler.requests)
        if isinstance(self.runtime, FakeRuntime):
            self.check_contents(self.runtime)

    def check_contents(self, runtime: FakeRuntime) -> None:
        """What is published under a hash was written, and is the same wherever it is held.

        In the fake runtime the state after a block and the last KV entry of the block are the same digest.
        """
        for block in self.scheduler.kv_cache_manager.block_pool.blocks:
            if block.block_hash is not None:
                held = int(runtime.kv[block.block_id, -1])
                assert self._contents.setdefault(get_block_hash(block.block_hash), held) == held
        for key, checkpoint in self.scheduler.slot_manager.slots.by_key.items():
            assert self._contents[key] == runtime.slots[checkpoint.slot]


def greedy(count: int, **more: Any) -> SamplingParams:
    """`count` tokens, the most likely ones, whatever they are."""
    return SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False, **more)


def greedy_of_transformers(folder: Path, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """The most likely tokens after each prompt, by transformers in fp32."""
    model = transformers_model(folder)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            full = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
            )
        outputs.append(full[0, len(prompt) :].tolist())
    return outputs
