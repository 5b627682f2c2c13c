"""The made tokenizer, read back as a user would read a published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qwen36_neuron.checkpoint.corpus import default_corpus
from qwen36_neuron.checkpoint.tokenizer import MARKER_TOKENS, SPECIAL_TOKENS, build_tokenizer
from qwen36_neuron.errors import ConfigError

VOCAB = 2048
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(default_corpus(), VOCAB).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def chat(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))


def test_size_and_order_of_tokens(tokenizer: Any) -> None:
    assert len(tokenizer) == VOCAB
    added = SPECIAL_TOKENS + MARKER_TOKENS
    assert tokenizer.convert_tokens_to_ids(list(added)) == list(range(VOCAB - len(added), VOCAB))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " leading and  double spaces \n\n",
        "Hello wörld, 中文 and 🙂 1234567",
        "\x00\x01 control",
        "<think>\nhm\n</think>\n\n<tool_call>",
        "def f(x):\n\treturn x**2\r\n",
    ],
)
def test_decoding_gives_the_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_are_left_out_of_text_but_markers_stay(tokenizer: Any) -> None:
    ids = tokenizer.encode("<|im_start|><think>a</think><tool_call>b</tool_call><|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think><tool_call>b</tool_call>"
    assert len(tokenizer.encode("<think>")) == len(tokenizer.encode("<tool_call>")) == 1


def test_digits_are_split_singly(tokenizer: Any) -> None:
    assert len(tokenizer.encode("7301")) == 4


def test_the_same_corpus_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    build_tokenizer(iter(default_corpus()), VOCAB).save_pretrained(tmp_path)
    names = {file.name for file in folder.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(("size", "problem"), [(200, "special tokens need more"), (1000, "the corpus gives only")])
def test_an_impossible_size_is_refused(size: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        build_tokenizer(["too short a text"], size)
    assert caught.value.field == "vocab_size"
    assert caught.value.value == size


def test_generation_prompt_by_mode(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert chat(tokenizer, messages, add_generation_prompt=True) == start
    assert chat(tokenizer, messages, add_generation_prompt=True, enable_thinking=True) == start
    assert chat(tokenizer, messages, add_generation_prompt=True, enable_thinking=False) == start + "\n</think>\n\n"


@pytest.mark.parametrize("inline", [True, False])
def test_past_reasoning_is_dropped(tokenizer: Any, inline: bool) -> None:
    answer = (
        {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nHello"}
        if inline
        else {"role": "assistant", "content": "Hello", "reasoning_content": "secret"}
    )
    messages = [{"role": "user", "content": "Hi"}, answer, {"role": "user", "content": "More"}]
    assert "<|im_start|>assistant\nHello<|im_end|>\n" in chat(tokenizer, messages)
    kept = "<|im_start|>assistant\n<think>\nsecret\n</think>\n\nHello<|im_end|>\n"
    assert kept in chat(tokenizer, messages, preserve_thinking=True)
    assert kept in chat(tokenizer, messages[:2])


def test_tools_and_calls(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "days": [1, 2]}}}
    text = chat(
        tokenizer,
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "reasoning_content": "call it", "tool_calls": [call, call]},
            {"role": "tool", "content": "sunny"},
            {"role": "tool", "content": "rain"},
        ],
        tools=[TOOL],
        add_generation_prompt=True,
    )
    system, rest = text.split("<|im_end|>\n", 1)
    assert system.startswith("<|im_start|>system\n# Tools")
    assert '\n<tools>\n{"type": "function", "function": {"name": "weather"' in system
    assert system.endswith("\n\nBe brief.")
    one = (
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>"
    )
    assert rest == (
        "<|im_start|>user\nWeather?<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\ncall it\n</think>\n\n{one}\n{one}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_text_parts_are_joined(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(tokenizer, [{"role": "user", "content": parts}]) == "<|im_start|>user\nab<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([{"role": "system", "content": "x"}], "no user message"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "must be the first"),
        ([{"role": "user", "content": "x"}, {"role": "judge", "content": "y"}], "Unknown message role: judge"),
        ([{"role": "user", "content": [{"type": "image", "image": "x"}]}], "Only text parts"),
        ([{"role": "user", "content": 3}], "must be a string or a list"),
    ],
)
def test_bad_conversations_are_refused(tokenizer: Any, messages: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        chat(tokenizer, messages)
