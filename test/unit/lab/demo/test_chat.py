"""The conversations are written as the chat template writes them, and tokenise piece by piece as in one."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from random import Random

import pytest
from transformers import Qwen3_5Tokenizer

from qwen36_lab.demo.chat import Conversation, opening, turn_pieces
from qwen36_lab.demo.mixture import Shares, turns
from qwen36_neuron.checkpoint.corpus import default_corpus
from qwen36_neuron.checkpoint.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Qwen3_5Tokenizer:
    return build_tokenizer(default_corpus(), 1024)


@pytest.mark.parametrize("seed", range(40))
def test_pieces_are_what_the_template_writes(tokenizer: Qwen3_5Tokenizer, seed: int) -> None:
    random = Random(seed)
    endless = turns(random, Shares(1.0, 1.5, 1.5, 0.0), 512, 4.0)
    made = [replace(turn, reasoning="") if random.random() < 0.5 else turn for turn in islice(iter(endless.turns), 6)]
    conversation = Conversation(made, endless.system, endless.tools)
    pieces = [opening(conversation, tokenizer)]
    pieces += [piece.text for turn in made for piece in turn_pieces(turn)]
    expected = tokenizer.apply_chat_template(
        conversation.messages(), tools=list(conversation.tools) or None, tokenize=False, preserve_thinking=True
    )
    assert "".join(pieces) == expected
    assert [i for text in pieces for i in tokenizer(text)["input_ids"]] == tokenizer(expected)["input_ids"]


@pytest.mark.parametrize("thinks", [True, False])
def test_prompt_is_the_generation_prompt(tokenizer: Qwen3_5Tokenizer, thinks: bool) -> None:
    turn = next(iter(turns(Random(1), Shares(0.0, 0.0, 1.0, 0.0), 512, 4.0).turns))
    prompt = next(turn_pieces(turn if thinks else replace(turn, reasoning="")))
    expected = tokenizer.apply_chat_template(
        turn.messages()[:1], tokenize=False, add_generation_prompt=True, enable_thinking=thinks
    )
    assert prompt.text == expected
