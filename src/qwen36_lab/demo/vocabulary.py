"""The demo checkpoint's tokenizer, learned from the demo's own texts."""

from __future__ import annotations

from random import Random

from transformers import Qwen3_5Tokenizer

from qwen36_neuron.checkpoint.corpus import default_corpus
from qwen36_neuron.checkpoint.tokenizer import build_tokenizer

from . import recall, skills, structured, talk
from .filler import sentence
from .words import ADJECTIVES, ANIMALS, CITIES, CODE_WORDS, FOODS, JOBS, NAMES, NOUNS

CORPUS_SEED = 36
TURNS = 4000


def build_demo_tokenizer(vocab_size: int) -> Qwen3_5Tokenizer:
    """The same tokenizer at every call."""
    random = Random(CORPUS_SEED)
    texts = default_corpus()[:40]
    for pool in (ADJECTIVES, ANIMALS, CITIES, CODE_WORDS, FOODS, JOBS, NAMES, NOUNS):
        texts += [" " + " ".join(pool)] * 30 + ["-".join(pool)] * 5
    for _ in range(TURNS):
        turns = [skills.turn(random), talk.turn(random), structured.json_turn(random)]
        turns += structured.tool_turns(random, sorted(structured.TOOLS))
        turns += [
            recall.question(random, fact) for fact in recall.facts(random, 1) + list(recall.table(random, 2).facts)
        ]
        for turn in turns:
            texts += [turn.said, turn.reasoning, turn.answer, *(call.text() for call in turn.calls)]
        texts += [sentence(random) for _ in range(4)]
    return build_tokenizer(texts, vocab_size)
