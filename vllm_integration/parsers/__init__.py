"""Our reasoning parser and tool parser, registered with vLLM under one name.

One rule decides where reasoning is: it is open if the last think tag of the prompt is an opening one, and not
otherwise. The answer begins after the first `</think>` then, and with the first character where reasoning was not open.
Nothing else about the request or its mode is asked, so a continued message, a completion and an answer without
reasoning all come out right.
"""

from __future__ import annotations

NAME = "qwen36"
"""What `--reasoning-parser` and `--tool-call-parser` call these parsers."""


def register() -> None:
    """Name the parsers to vLLM; their modules are imported when they are asked for."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    ReasoningParserManager.register_lazy_module(NAME, f"{__name__}.reasoning", "QwenReasoningParser")
    ToolParserManager.register_lazy_module(NAME, f"{__name__}.tools", "QwenToolParser")
