"""Every argument of vLLM's engine is done or refused by name; none is new to us, and none is accepted and ignored."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from qwen36_neuron.errors import ConfigError
from vllm_integration.engine_flags import FLAGS, Done, check_flags

REFUSED = sorted(name for name, flag in FLAGS.items() if flag.done is Done.REFUSED)


class Other:
    """A value that no argument has by default."""

    def __repr__(self) -> str:
        return "something else"


@pytest.fixture(scope="module")
def parser() -> FlexibleArgumentParser:
    return AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())


def given(**changes: Any) -> EngineArgs:
    """Arguments as they are before vLLM looks at any: changed past its own checks."""
    arguments = EngineArgs(model="nowhere/at-all", skip_tokenizer_init=True)
    for name, value in changes.items():
        setattr(arguments, name, value)
    return arguments


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which would look for the model's files


def test_every_argument_of_the_engine_is_in_one_group() -> None:
    names = {field.name for kind in (EngineArgs, AsyncEngineArgs) for field in fields(kind)}
    assert names - set(FLAGS) == set(), "new to this plugin: say in engine_flags.py what becomes of them"
    assert set(FLAGS) - names == set(), "vLLM has them no more"


def test_every_flag_of_the_command_line_is_one_of_them(parser: FlexibleArgumentParser) -> None:
    flags = {action.dest for action in parser._actions if not isinstance(action, argparse._HelpAction)}
    assert flags - set(FLAGS) == set()


def test_what_is_not_given_is_accepted(parser: FlexibleArgumentParser) -> None:
    check_flags(given())
    check_flags(AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", "nowhere/at-all"])))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}=something else: .+\. .+\.$") as caught:
        check_flags(given(**{name: Other()}))
    assert caught.value.field == name
    for also in FLAGS[name].also:
        check_flags(given(**{name: also}))


def test_an_argument_that_a_later_vllm_adds_is_refused_once_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FLAGS, "moe_backend")
    check_flags(given())
    with pytest.raises(ConfigError, match="moe_backend='triton': is not known to this plugin"):
        check_flags(given(moe_backend="triton"))


def test_no_default_is_among_the_values_that_are_refused() -> None:
    for field in fields(EngineArgs):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        assert FLAGS[field.name].accepts(default, default)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--kv-cache-dtype-skip-layers 3", "kv_cache_dtype_skip_layers"),
        ("--mamba-ssm-cache-dtype bfloat16", "mamba_ssm_cache_dtype"),
        ("--load-format dummy", "load_format"),
        ("--cpu-offload-gb 4", "cpu_offload_gb"),
        ("--gpu-memory-utilization 0.5", "gpu_memory_utilization"),
        ("--async-scheduling", "async_scheduling"),
        ("--runner pooling", "runner"),
        ("--data-parallel-size 2", "data_parallel_size"),
        ('--compilation-config {"mode":3}', "compilation_config"),
        ("-O3", "optimization_level"),
        ("--scheduler-cls a.B", "scheduler_cls"),
        ("--no-enable-chunked-prefill", "enable_chunked_prefill"),
        ('--profiler-config {"profiler":"torch","torch_profiler_dir":"/tmp/x"}', "profiler_config"),
        ('--limit-mm-per-prompt {"image":2}', "limit_mm_per_prompt"),
        ("--enable-sleep-mode", "enable_sleep_mode"),
    ],
)
def test_flags_as_they_are_typed(parser: FlexibleArgumentParser, line: str, name: str) -> None:
    arguments = AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", "nowhere/at-all", *line.split()]))
    with pytest.raises(ConfigError) as caught:
        check_flags(arguments)
    assert caught.value.field == name


@pytest.mark.parametrize(
    "line",
    [
        "--no-async-scheduling",
        "--mamba-ssm-cache-dtype float32",
        "--load-format safetensors",
        "--runner generate",
        "--distributed-executor-backend uni",
        "--enforce-eager",
        "--block-size 64",
        "--gpu-memory-utilization 0.92",
        "--language-model-only",
        "--kv-cache-memory-bytes 1000000000",
        "--scheduling-policy priority",
    ],
)
def test_flags_that_say_what_happens_anyway(parser: FlexibleArgumentParser, line: str) -> None:
    check_flags(AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", "nowhere/at-all", *line.split()])))
