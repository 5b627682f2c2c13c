"""Plausible English that carries nothing to recall: the text that needles hide in."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .words import ADJECTIVES, ANIMALS, CITIES, COLORS, DAYS, FOODS, JOBS, MONTHS, NAMES, NOUNS

TEMPLATES = (
    "The {adj} {noun} stood near the {adj2} {noun2} for many years.",
    "In {month} the {job} from {city} bought {n} boxes of {food}.",
    "{name} walked along the {adj} {noun} and saw a {color} {animal}.",
    "Every {day} the {animal} sleeps under the {adj} {noun}.",
    "It rained in {city} for {n} days, and then the sun came back.",
    "{name} and {name2} talked about the {noun} until late in the evening.",
    "A {adj} {animal} ran across the road and hid behind the {noun}.",
    "The train to {city} leaves at {n} minutes past nine.",
    "Nobody in {city} had seen such a {adj} {noun} before.",
    "The {job} painted the {noun} {color} and went home.",
    "On {day} the market sells {food}, {food2} and fresh bread.",
    "{name} likes {food} more than {food2}, but {name2} does not agree.",
    "The weather was {adj}, so the {job} stayed inside and read a book.",
    "There are {n} steps from the {noun} to the {noun2}.",
    "Some people say that a {color} {animal} brings good luck.",
    "The {noun} in the {adj} room was made in {city} by a {job}.",
    "When the {noun} was ready, {name} put it next to the {noun2}.",
    "The old {job} told {name} a long story about a {animal} and a {animal2}.",
    "Page {n} of the report describes the {adj} {noun} in detail.",
    "After lunch they carried the {noun} down to the {adj} {noun2}.",
    "The {animal} looked at the {animal2} and said nothing.",
    "It takes about {n} minutes to walk from the {noun} to the station.",
    "{name} wrote a letter to the {job} in {city} and waited for an answer.",
    "In winter the {adj} {noun} is covered with snow.",
    "The cache holds blocks of tokens, and each block waits for its turn.",
    "A scheduler decides which request runs next and which one waits.",
    "The engine reads the prompt once and then writes one token after another.",
    "Most of the time nothing happens near the {adj} {noun}.",
    "They counted {n} {animal} tracks beside the {noun}.",
    "The {color} {noun} belongs to a {job} who lives in {city}.",
    "If the {noun} is {adj}, the {job} will repair it on {day}.",
    "{name} opened the {adj} {noun}, looked inside and closed it again.",
)
CLASSIC = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_SLOTS: dict[str, Callable[[Random], object]] = {
    "adj": lambda r: r.choice(ADJECTIVES),
    "noun": lambda r: r.choice(NOUNS),
    "animal": lambda r: r.choice(ANIMALS),
    "food": lambda r: r.choice(FOODS),
    "name": lambda r: r.choice(NAMES),
    "city": lambda r: r.choice(CITIES),
    "color": lambda r: r.choice(COLORS),
    "day": lambda r: r.choice(DAYS),
    "month": lambda r: r.choice(MONTHS),
    "job": lambda r: r.choice(JOBS),
    "n": lambda r: r.randint(2, 900),
}


def _parse(template: str) -> tuple[str, tuple[tuple[str, Callable[[Random], object]], ...]]:
    names = [part.split("}")[0] for part in template.split("{")[1:]]
    return template, tuple((name, _SLOTS[name.rstrip("2")]) for name in names)


_PARSED = tuple(_parse(template) for template in TEMPLATES)


def sentence(random: Random) -> str:
    """One sentence."""
    template, blanks = _PARSED[int(random.random() * len(_PARSED))]
    return template.format_map({name: draw(random) for name, draw in blanks})


def sentences(random: Random, characters: int) -> list[str]:
    """Sentences of about so many characters in all, of one of the kinds: varied, or a few repeated over and over."""
    if random.random() < 0.15:
        repeated = CLASSIC if random.random() < 0.5 else " ".join(sentence(random) for _ in range(random.randint(2, 5)))
        return [repeated] * (characters // (len(repeated) + 1))
    made: list[str] = []
    while characters > 0:
        made.append(sentence(random))
        characters -= len(made[-1]) + 1
    return made


def paragraphs(random: Random, lines: list[str]) -> str:
    """Join sentences into running text with a paragraph break now and then."""
    breaks = random.random() < 0.5
    return "".join(
        ("" if not i else "\n\n" if breaks and random.random() < 0.12 else " ") + line for i, line in enumerate(lines)
    )
