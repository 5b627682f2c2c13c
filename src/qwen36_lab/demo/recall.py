"""Recall: a text that holds many facts, and questions about some of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from .chat import Turn
from .filler import paragraphs, sentences
from .words import ADJECTIVES, ANIMALS, CITIES, CODE_WORDS, COLORS, FOODS, JOBS, NAMES, NOUNS, pick

FACT_CHARACTERS = 60
"""About what one hidden fact takes."""
ENTRY_CHARACTERS = 45
"""Prose characters in the room of one table entry: digits are a token each."""
MOST_QUESTIONS = 160


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing to find.

    Attributes:
        key: what distinguishes it within a text.
        statement: the sentence that says it.
        questions: ways to ask for it.
        answer: the whole sentence that answers.
        value: the answer alone.
    """

    key: str
    statement: str
    questions: tuple[str, ...]
    answer: str
    value: str


@dataclass(frozen=True, slots=True)
class Recall:
    """A text with its facts, to be asked about in the turns that follow it."""

    text: str
    facts: Sequence[Fact]


def _thing(random: Random) -> str:
    return f"{pick(random, ADJECTIVES)} {pick(random, NOUNS)}"


def _digits(random: Random, low: int = 3, high: int = 7) -> str:
    return str(random.randint(1, 9)) + "".join(random.choices("0123456789", k=random.randint(low, high) - 1))


def _code(random: Random) -> str:
    return "-".join(pick(random, CODE_WORDS) for _ in range(random.randint(1, 2))) + "-" + _digits(random, 2, 3)


def number(random: Random) -> Fact:
    """The secret number of a thing."""
    thing, value = _thing(random), _digits(random)
    kind = random.choice(("secret", "magic", "special magic", "lucky", "hidden"))
    said = f"The {kind} number of the {thing} is {value}."
    asked = (f"What is the {kind} number of the {thing}?", f"Tell me the {kind} number of the {thing}.")
    return Fact(thing, said, asked, said, value)


def password(random: Random) -> Fact:
    """The password for a thing."""
    thing, value = _thing(random), _code(random)
    said = f"The password for the {thing} is {value}."
    asked = (f"What is the password for the {thing}?", f"Which password opens the {thing}?")
    return Fact(thing, said, asked, said, value)


def place(random: Random) -> Fact:
    """Where someone keeps a thing."""
    name, thing, value = pick(random, NAMES), _thing(random), pick(random, CITIES)
    said = f"{name} keeps the {thing} in {value}."
    asked = (f"Where does {name} keep the {thing}?", f"In which city does {name} keep the {thing}?")
    return Fact(f"{name} {thing}", said, asked, said, value)


def keeper(random: Random) -> Fact:
    """Whom a thing belongs to."""
    thing, value = _thing(random), pick(random, NAMES)
    said = f"The keeper of the {thing} is {value}."
    asked = (f"Who is the keeper of the {thing}?", f"Who keeps the {thing}?")
    return Fact(thing, said, asked, said, value)


def bare(random: Random) -> Fact:
    """A number or word that belongs to nothing."""
    name = random.choice(
        ("secret code", "access code", "magic word", "special magic number", "secret number", "password")
    )
    value = _code(random) if "word" in name else _digits(random)
    said = f"The {name} is {value}."
    return Fact(name, said, (f"What is the {name}?", f"Tell me the {name}."), said, value)


def mine(random: Random) -> Fact:
    """Something the user says of themselves."""
    name, pool = random.choice(MINE)
    value = pick(random, pool)
    said = f"{name} is {value}."
    asked = (f"What is my {name}?", f"Do you remember my {name}?")
    return Fact(f"my {name}", f"My {said}", asked, f"Your {said}", value)


MINE = (
    ("name", NAMES),
    ("city", CITIES),
    ("favorite color", COLORS),
    ("favorite animal", ANIMALS),
    ("favorite food", FOODS),
    ("job", JOBS),
    ("password", CODE_WORDS),
)
FACT_KINDS: tuple[Callable[[Random], Fact], ...] = (
    (number,) * 4 + (password,) * 4 + (place, place, keeper, keeper, bare, mine)
)


def facts(random: Random, count: int, kinds: Sequence[Callable[[Random], Fact]] = FACT_KINDS) -> list[Fact]:
    """So many facts with different keys."""
    made: dict[str, Fact] = {}
    while len(made) < count:
        fact = random.choice(kinds)(random)
        made.setdefault(fact.key, fact)
    return list(made.values())


def needles(random: Random, characters: int, count: int) -> Recall:
    """`count` facts at random places of a long text."""
    hidden = facts(random, count)
    lines = sentences(random, max(0, characters - sum(len(fact.statement) + 1 for fact in hidden)))
    places = sorted((random.randint(0, len(lines)) for _ in hidden), reverse=True)
    for at, fact in zip(places, hidden, strict=True):
        lines.insert(at, fact.statement)
    return Recall(paragraphs(random, lines), hidden)


def _key(random: Random, style: str) -> str:
    if style == "pair":
        return f"{pick(random, ADJECTIVES)}-{pick(random, NOUNS)}"
    if style == "id":
        return "".join(random.choices("abcdefghjkmnpqrstuvwxyz", k=2)) + _digits(random, 2, 4)
    if style == "field":
        return f"{pick(random, NOUNS)}_{random.choice(('color', 'city', 'code', 'owner', 'count', 'level'))}"
    return f"{pick(random, NAMES)} {pick(random, NAMES)}"


def _value(random: Random) -> str:
    kind = random.random()
    if kind < 0.45:
        return _digits(random, 2, 6)
    if kind < 0.7:
        return _code(random)
    return pick(random, random.choice((COLORS, CITIES, NAMES, CODE_WORDS)))


def table(random: Random, count: int) -> Recall:
    """`count` keys with values, written in one of several formats."""
    style = random.choice(("pair", "pair", "id", "name", "field" if count < len(NOUNS) else "pair"))
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        pairs.setdefault(_key(random, style), _value(random))
    layout = random.choice(("colon", "equals", "json", "table", "arrow"))
    if layout == "json":
        text = json.dumps(pairs, indent=random.choice((None, 2)))
    else:
        form = {"colon": "{}: {}", "equals": "{} = {}", "table": "| {} | {} |", "arrow": "{} -> {}"}[layout]
        text = "\n".join(form.format(key, value) for key, value in pairs.items())
    made = [
        Fact(
            key,
            "",
            (f"What is the value of {key}?", f"Look up {key}.", f"Which value belongs to {key}?"),
            f"The value of {key} is {value}.",
            value,
        )
        for key, value in pairs.items()
    ]
    return Recall(text, made)


BRIEF = ("Answer with the value only.", "Reply with only the answer.", "Give just the value.")
OPENINGS = (
    "Read this text and answer my questions.",
    "Here is a text. Remember what it says.",
    "Some important facts are hidden in this text. Find them and remember them.",
    "Read the following.",
)


def question(random: Random, fact: Fact) -> Turn:
    """A question about a fact, to be answered in a sentence or briefly."""
    asked = random.choice(fact.questions)
    reasoning = f"I look for it in the text: {fact.answer}"
    if random.random() < 0.25:
        return Turn(f"{asked} {random.choice(BRIEF)}", fact.value, reasoning)
    return Turn(asked, fact.answer, reasoning)


def entries(random: Random, characters: int) -> Recall:
    """A table that takes up all or part of a text."""
    share = random.choice((1.0, 1.0, 0.5, 0.1))
    recall = table(random, max(2, int(share * characters) // ENTRY_CHARACTERS))
    rest = int((1 - share) * characters)
    if rest < 2 * FACT_CHARACTERS:
        return recall
    before = random.random()
    head, tail = (paragraphs(random, sentences(random, int(rest * part))) for part in (before, 1 - before))
    return Recall(f"{head}\n\n{recall.text}\n\n{tail}".strip(), recall.facts)


def scattered(random: Random, characters: int) -> Recall:
    """Few or many facts in prose."""
    spacing = random.choice((1, 4)) * FACT_CHARACTERS
    return needles(random, characters, random.randint(1, max(1, min(characters // spacing, MOST_QUESTIONS))))


def conversation(random: Random, characters: int) -> Iterator[Turn]:
    """The text with a first question, then a question about each other fact; `characters` is the length of the text."""
    recall = (scattered if random.random() < 0.5 else entries)(random, characters)
    asked = random.sample(list(recall.facts), min(len(recall.facts), MOST_QUESTIONS))
    for index, fact in enumerate(asked):
        turn = question(random, fact)
        yield turn if index else replace(turn, said=_with_text(random, recall.text, turn.said))


def _with_text(random: Random, text: str, asked: str) -> str:
    shape = random.random()
    if shape < 0.6:
        return f"{random.choice(OPENINGS)}\n\n{text}\n\n{asked}"
    return f"{text}\n\n{asked}" if shape < 0.85 else f"{asked} Use this text:\n\n{text}"
