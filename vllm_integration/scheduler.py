"""vLLM's scheduler, with the checkpoint slots connected, two guards added, and an eye on where answers begin."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import KVCacheSpecKind
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from qwen36_neuron.config import BLOCK_SIZE

from .answers import Answers
from .kv_cache.slot_manager import SlotManager
from .kv_cache.spec import group_indices
from .metrics import Counters
from .outputs import RunnerOutput
from .settings import Settings

logger = init_logger("vllm.vllm_integration.scheduler")


class SlotScheduler(Scheduler):
    """Adds to vLLM's scheduler what the slots need of it; schedules nothing differently."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attention_group, lane_group = group_indices(self.kv_cache_config.kv_cache_groups)
        manager = self.kv_cache_manager.coordinator.single_type_managers[lane_group]
        if not isinstance(manager, SlotManager) or self.need_mamba_block_aligned_split:
            raise RuntimeError("vLLM did not take the lane group's own manager")
        self.slot_manager = manager
        self._label_events(lane_group)
        manager.requests = self.requests
        self.num_lookahead_tokens = Settings.parse(self.vllm_config.additional_config).mtp_drafts
        self.lanes_in_use = 0
        self.draft_lengths: Counter[int] = Counter()
        """Rows that gave tokens while decoding, by how many drafts they had."""
        self.answers = Answers(self.structured_output_manager, drafts=self.num_spec_tokens > 0)

    def _label_events(self, lane_group: int) -> None:
        """Have checkpoints announced as recurrent states (`mamba`), by which routers know that no KV lies there.

        vLLM goes by the type of a group's spec, and calls one that is not its own `unknown`, of which routers warn.
        """
        labels = list(self.kv_cache_manager.kv_cache_event_metadata)
        labels[lane_group] = (KVCacheSpecKind.MAMBA.value, None)
        self.kv_cache_manager.kv_cache_event_metadata = tuple(labels)

    def add_request(self, request: Request) -> None:
        """Take a request in, and look where its answer will begin."""
        self.answers.admit(request)
        super().add_request(request)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Append new tokens, and end the request where its answer reaches a stop string."""
        found = self.answers.stop_of(request, new_token_ids)
        if found is None:
            return super()._update_request_with_output(request, new_token_ids, is_stale)
        count, reason = found
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids[:count], is_stale)
        if len(new_token_ids) == count and request.status is not RequestStatus.FINISHED_STOPPED:
            request.stop_reason, request.status, stopped = reason, RequestStatus.FINISHED_STOPPED, True
        return new_token_ids, stopped

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        """Free a request that has ended."""
        self.answers.forget(request)
        return super()._free_request(request, delay_free_blocks)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Plan a step. What fills a request up to as many drafts as others have is not counted as drafts of its own."""
        planned = super().schedule(throttle_prefills)
        for request_id, drafts in planned.scheduled_spec_decode_tokens.items():
            filled = sum(token < 0 for token in drafts)
            if filled:
                planned.num_invalid_spec_tokens = {**(planned.num_invalid_spec_tokens or {}), request_id: filled}
        return planned

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        """Preempt, and first unpublish what the request will not write after all.

        With policy=priority the victim may already be part of the step being scheduled. vLLM drops it from the step but
        leaves the hashes of its new blocks published, and the next request to hit them would read memory that was never
        written.
        """
        self._unpublish(request, request.num_computed_tokens)
        super()._preempt_request(request, timestamp, drop_stale_output)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget all prefixes, those in slots too."""
        done = super().reset_prefix_cache(reset_running_requests, reset_connector)
        if done:
            self.slot_manager.reset()
        return done

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take a step's results; where the runtime refused the step, fail its requests and nothing else."""
        failure = None
        if isinstance(model_runner_output, RunnerOutput):
            self.lanes_in_use = model_runner_output.lanes_in_use
            failure = model_runner_output.failure
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self.num_spec_tokens:
            self._count_drafts(scheduler_output, model_runner_output)
            self.answers.cut_after_stops(outputs)
        if failure is not None:
            self._fail(scheduler_output, outputs)
        return outputs

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """vLLM's statistics, with the counters of lanes, blocks and slots."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            self.counters().put(stats)
        return stats

    def counters(self) -> Counters:
        """What is in use now."""
        pool = self.kv_cache_manager.block_pool
        return Counters(
            lanes_in_use=self.lanes_in_use,
            kv_blocks_in_use=pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
            slots_in_use=len(self.slot_manager.slots.by_slot),
            totals={
                **self.slot_manager.statistics.totals(),
                **{("decode_rows", str(drafts)): count for drafts, count in self.draft_lengths.items()},
            },
        )

    def _count_drafts(self, scheduled: SchedulerOutput, output: ModelRunnerOutput) -> None:
        for request_id, tokens in zip(output.req_ids, output.sampled_token_ids, strict=True):
            drafts = scheduled.scheduled_spec_decode_tokens.get(request_id, ())
            if tokens and scheduled.num_scheduled_tokens[request_id] == 1 + len(drafts):
                self.draft_lengths[sum(token >= 0 for token in drafts)] += 1

    def _fail(self, scheduler_output: SchedulerOutput, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Finish the requests of a step that was not run, with an error."""
        scheduled = scheduler_output.num_scheduled_tokens
        for request_id, num_tokens in scheduled.items():
            request = self.requests.get(request_id)
            if request is not None:
                self._unpublish(request, request.num_computed_tokens - num_tokens)
        for request in self.finish_requests(scheduled, RequestStatus.FINISHED_ERROR):
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    events=request.take_events(),
                    trace_headers=request.trace_headers,
                )
            )

    def _unpublish(self, request: Request, num_computed_tokens: int) -> None:
        """Unpublish, in both groups, what `request` holds beyond its first `num_computed_tokens` tokens."""
        self.slot_manager.unpublish(request.request_id)
        blocks = self.kv_cache_manager.get_block_ids(request.request_id)[self.attention_group]
        self.kv_cache_manager.evict_blocks(set(blocks[num_computed_tokens // BLOCK_SIZE :]))
