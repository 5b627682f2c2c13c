"""Questions with one right answer, by kind, length and depth: what every measurement of the demo checkpoint asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from transformers import PreTrainedTokenizerBase

from . import recall, skills, structured, talk
from .chat import Conversation, Turn, opening, turn_pieces
from .filler import paragraphs, sentence

ANSWER_ROOM = 64
"""Tokens of a length that are left for the answer."""
DISTRACTORS = 3
"""Facts of other keys in a needle's text."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question.

    Attributes:
        kind: needle, table, tool, json, ...
        length: tokens that the prompt was made for; 0 where length is not the point.
        depth: where in the text the fact is, 0 to 1.
        conversation: one turn; its answer is the expected one.
        value: what the answer must contain.
    """

    kind: str
    length: int
    depth: float
    conversation: Conversation
    value: str

    @property
    def turn(self) -> Turn:
        (turn,) = self.conversation.turns
        return turn

    def prompt(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids up to the reply."""
        head = opening(self.conversation, tokenizer)
        text = head + next(turn_pieces(self.turn)).text
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def reply(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the expected reply, the end of turn included."""
        pieces = list(turn_pieces(self.turn))
        ids: list[int] = tokenizer(pieces[1].text, add_special_tokens=False)["input_ids"]
        return ids


def needle(random: Random, length: int, depth: float, tokens_per_character: float) -> Probe:
    """One wanted fact at `depth` of a text of varied prose, with a few facts of other keys around it."""
    wanted, *others = recall.facts(random, 1 + DISTRACTORS)
    room = (length - ANSWER_ROOM - 60) / tokens_per_character - sum(len(fact.statement) + 1 for fact in others)
    lines: list[str] = []
    while sum(map(len, lines)) + len(lines) < room - len(wanted.statement):
        lines.extend(sentence(random) for _ in range(8))
    for fact in others:
        lines.insert(random.randint(0, len(lines)), fact.statement)
    lines.insert(round(depth * len(lines)), wanted.statement)
    said = f"{recall.OPENINGS[0]}\n\n{paragraphs(random, lines)}\n\n{wanted.questions[0]}"
    return Probe("needle", length, depth, Conversation([Turn(said, wanted.answer, "")]), wanted.value)


def table(random: Random, length: int, depth: float, tokens_per_character: float) -> Probe:
    """A key in a table that fills the whole length; the wanted entry is at `depth`."""
    room = (length - ANSWER_ROOM - 40) / tokens_per_character
    made = recall.table(random, max(2, int(room / recall.ENTRY_CHARACTERS)))
    wanted = made.facts[round(depth * (len(made.facts) - 1))]
    said = f"{recall.OPENINGS[0]}\n\n{made.text}\n\n{wanted.questions[0]}"
    return Probe("table", length, depth, Conversation([Turn(said, wanted.answer, "")]), wanted.value)


RECALL: dict[str, Callable[[Random, int, float, float], Probe]] = {"needle": needle, "table": table}


def recall_probes(
    tokenizer: PreTrainedTokenizerBase, kind: str, length: int, depths: list[float], each: int, seed: int
) -> Iterator[Probe]:
    """`each` probes at every depth, none longer than `length` with its answer."""
    prose = Random(seed)
    sample = " ".join(sentence(prose) for _ in range(200))
    per_character = len(tokenizer(sample)["input_ids"]) / len(sample)
    for depth in depths:
        for index in range(each):
            random, scale = Random(f"{seed}/{kind}/{length}/{depth}/{index}"), per_character
            while True:
                probe = RECALL[kind](random, length, depth, scale)
                if len(probe.prompt(tokenizer)) <= length - ANSWER_ROOM:
                    break
                scale *= 1.04
            yield probe


def skill_probes(count: int, seed: int) -> Iterator[Probe]:
    """`count` of each short kind, half of them with thinking: tools, JSON, facts about the project, sums, copies."""

    def json_probe(random: Random) -> Conversation:
        return Conversation([structured.json_turn(random)])

    def tool_probe(random: Random) -> Conversation:
        names = structured.choose_tools(random)
        schemas = [structured.TOOLS[name][0] for name in names]
        return Conversation([next(structured.tool_turns(random, names))], tools=schemas)

    kinds: dict[str, Callable[[Random], Conversation]] = {
        "tool": tool_probe,
        "json": json_probe,
        "fact": lambda random: Conversation([talk.fact(random)]),
        "sum": lambda random: Conversation([skills.sums(random)]),
        "copy": lambda random: Conversation([skills.copy(random)]),
        "count": lambda random: Conversation([skills.count_items(random)]),
    }
    for kind, make in kinds.items():
        for index in range(count):
            made = make(Random(f"{seed}/{kind}/{index}"))
            (turn,) = made.turns
            if index % 2:
                turn = replace(turn, reasoning="")
            yield Probe(kind, 0, 0.0, replace(made, turns=[turn]), turn.answer)
