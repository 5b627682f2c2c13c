"""A tokenizer of any size that behaves as Qwen3.6's own: same splitting, special tokens and chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import Qwen3_5Tokenizer

from ..errors import ConfigError

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"

SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Control tokens, left out of decoded text. They follow the learned vocabulary, in the published order."""

MARKER_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
"""One token each, yet kept in decoded text: the reasoning and tool parsers read them there."""

BYTES = 256


def chat_template() -> str:
    """The Jinja chat template that every made checkpoint gets."""
    return (files(__package__) / "chat_template.jinja").read_text(encoding="utf-8")


def build_tokenizer(corpus: Iterable[str], vocab_size: int) -> Qwen3_5Tokenizer:
    """Train byte-level BPE on `corpus` inside transformers' own Qwen3.5 pipeline.

    The result is a transformers tokenizer, written with `save_pretrained(folder)` and read back with `AutoTokenizer`.
    The same corpus and size always give the same file.

    Args:
        corpus: texts to learn the merges from.
        vocab_size: tokens in all, special ones included; exactly so many are made.

    Raises:
        ConfigError: `vocab_size` cannot hold the bytes and the special tokens, or is more than the corpus can fill.
    """
    added = len(SPECIAL_TOKENS) + len(MARKER_TOKENS)
    if vocab_size < BYTES + added:
        raise ConfigError(
            "vocab_size",
            vocab_size,
            f"{BYTES} bytes and {added} special tokens need more",
            f"Use {BYTES + added} or more",
        )
    backend = Qwen3_5Tokenizer().backend_tokenizer
    backend.train_from_iterator(
        corpus,
        BpeTrainer(
            vocab_size=vocab_size - added,
            min_frequency=1,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    model = json.loads(backend.to_str())["model"]
    if len(model["vocab"]) + added != vocab_size:
        raise ConfigError(
            "vocab_size",
            vocab_size,
            f"the corpus gives only {len(model['vocab']) + added} tokens",
            f"Use {len(model['vocab']) + added} or less, or a larger corpus",
        )
    tokenizer = Qwen3_5Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        model_max_length=262144,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL_TOKENS[1:])})
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKER_TOKENS])
    tokenizer.eos_token = END_OF_TURN
    tokenizer.chat_template = chat_template()
    return tokenizer
