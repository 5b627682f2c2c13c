"""Small skills that can be checked exactly: copying, counting, arithmetic, lists."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .chat import Turn
from .filler import sentence
from .words import ADJECTIVES, ANIMALS, CITIES, CODE_WORDS, COLORS, GROUPS, NAMES, NOUNS, NUMBERS, OPPOSITES, pick

POOLS = (ANIMALS, CITIES, CODE_WORDS, COLORS, NAMES, NOUNS, ADJECTIVES)


def copy(random: Random) -> Turn:
    """Repeat a text."""
    text = random.choice((sentence, _words, _digits))(random)
    ask = random.choice(("Repeat exactly:", "Copy this text:", "Say this again:", "Repeat after me:", "Echo:"))
    return Turn(f"{ask} {text}", text)


def _words(random: Random) -> str:
    return " ".join(pick(random, random.choice(POOLS)) for _ in range(random.randint(2, 12)))


def _items(random: Random, count: int) -> list[str]:
    pool = random.choice(POOLS)
    items: dict[str, None] = {}
    while len(items) < count:
        items.setdefault(pick(random, pool))
    return list(items)


def _digits(random: Random) -> str:
    return "".join(random.choices("0123456789", k=random.randint(3, 12)))


def count_up(random: Random) -> Turn:
    """Count from one number to another."""
    start = random.choice((1, 1, 1, random.randint(0, 150)))
    longest = random.choice((10, 10, 20, 100))
    end = start + random.choice((longest, random.randint(1, longest))) - (start == 1)
    if random.random() < 0.15:
        numbers, asked = range(end, start - 1, -1), f"Count down from {end} to {start}."
    else:
        numbers = range(start, end + 1)
        asked = random.choice((f"Count from {start} to {end}.", f"Count up from {start} to {end}."))
    return Turn(asked, ", ".join(str(n) for n in numbers) + ".")


def count_items(random: Random) -> Turn:
    """How many items, or how often one occurs, with the count written out while thinking."""
    items = random.choices(_items(random, random.randint(2, 4)), k=random.randint(2, 10))
    listed = ", ".join(items)
    if random.random() < 0.5:
        counted = ", ".join(f"{i} {item}" for i, item in enumerate(items, start=1))
        answer = f"There are {len(items)} items in the list."
        return Turn(f"How many items are in this list: {listed}?", answer, reasoning=f"I count them: {counted}.")
    wanted = random.choice(items)
    seen = 0
    steps: list[str] = []
    for item in items:
        seen += item == wanted
        steps.append(f"{item} {seen}")
    asked = f"How many times does {wanted} occur in this list: {listed}?"
    times = "1 time" if seen == 1 else f"{seen} times"
    return Turn(asked, f"{wanted} occurs {times}.", reasoning=f"I go through the list: {', '.join(steps)}.")


def sums(random: Random) -> Turn:
    """Addition and subtraction; with thinking, digit by digit."""
    size = random.choice((10, 10, 100, 100, 1000))
    a, b = random.randrange(size), random.randrange(size)
    plus = random.random() < 0.6
    if not plus and b > a:
        a, b = b, a
    result = a + b if plus else a - b
    sign, word = ("+", "plus") if plus else ("-", "minus")
    asked = random.choice((f"What is {a} {sign} {b}?", f"Calculate {a} {sign} {b}.", f"What is {a} {word} {b}?"))
    asked = random.choice((asked, asked, f"{a} {sign} {b} ="))
    answer = f"{a} {sign} {b} = {result}"
    if (size > 10 and random.random() < 0.7) or random.random() < 0.3:
        return Turn(asked, answer, reasoning=_columns(a, b, plus))
    return Turn(asked, answer)


def _columns(a: int, b: int, plus: bool) -> str:
    """The school method, from the ones up."""
    carry, steps, digits = 0, [], []
    width = len(str(max(a, b)))
    for name, place in zip(("ones", "tens", "hundreds"), range(width), strict=False):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry if plus else x - y - carry
        shown = f"{x} {'+' if plus else '-'} {y}" + (f" {'+' if plus else '-'} 1" if carry else "")
        carry = int(total > 9 or total < 0)
        digit = total % 10
        digits.append(str(digit))
        note = (", carry 1" if plus else ", borrow 1") if carry else ""
        steps.append(f"{name}: {shown} = {total}, write {digit}{note}")
    if carry:
        digits.append("1")
        steps.append("then 1")
    return "; ".join(steps) + f". Together {int(''.join(reversed(digits)))}."


def times(random: Random) -> Turn:
    """The multiplication table up to 12, and owning up beyond it."""
    most = 12 if random.random() < 0.85 else 99
    a, b = random.randint(0, most), random.randint(0, most)
    asked = random.choice((f"What is {a} * {b}?", f"What is {a} times {b}?", f"Calculate {a} * {b}."))
    if max(a, b) > 12:
        return Turn(asked, "That is too hard for me. I know the table up to 12.", f"{max(a, b)} is more than 12.")
    answer = f"{a} * {b} = {a * b}"
    return Turn(asked, answer, f"From the table of {a}: {answer}.")


def larger(random: Random) -> Turn:
    """Compare two numbers."""
    a, b = random.sample(range(random.choice((20, 100, 1000))), 2)
    big = random.random() < 0.5
    word, result = ("larger", max(a, b)) if big else ("smaller", min(a, b))
    return Turn(f"Which number is {word}, {a} or {b}?", f"{result} is {word}.")


def lists(random: Random) -> Turn:
    """Reverse, sort, first or last of a list."""
    items = _items(random, random.randint(2, 6))
    listed = ", ".join(items)
    kind = random.randrange(5)
    if kind == 0:
        return Turn(f"Reverse this list: {listed}.", ", ".join(reversed(items)))
    if kind == 1:
        return Turn(f"What is the first item of this list: {listed}?", f"The first item is {items[0]}.")
    if kind == 2:
        return Turn(f"What is the last item of this list: {listed}?", f"The last item is {items[-1]}.")
    if kind == 3:
        bullets = "\n".join(f"- {item}" for item in items)
        return Turn(f"Write this as a bullet list: {listed}.", bullets)
    at = random.randrange(min(len(items), 5))
    word = ("first", "second", "third", "fourth", "fifth")[at]
    return Turn(f"What is the {word} item of this list: {listed}?", f"The {word} item is {items[at]}.")


def opposites(random: Random) -> Turn:
    """The opposite of a word."""
    pair = random.choice(OPPOSITES)
    a, b = random.choice((pair, pair[::-1]))
    return Turn(f"What is the opposite of {a}?", f"The opposite of {a} is {b}.")


def groups(random: Random) -> Turn:
    """What kind of thing a word is, or some of a kind."""
    kind, members = random.choice(list(GROUPS.items()))
    article = "an" if kind[0] in "aeiou" else "a"
    if random.random() < 0.5:
        word = random.choice(members)
        return Turn(f"What kind of thing is {word}?", f"{word.capitalize()} is {article} {kind}.")
    number = random.randint(2, 5)
    word = NUMBERS[number]
    asked = random.choice((f"Name {word} {kind}s.", f"List {word} {kind}s.", f"Give me {word} {kind}s."))
    return Turn(asked, f"Here are {word} {kind}s: {', '.join(sorted(members)[:number])}.")


TASKS: tuple[tuple[Callable[[Random], Turn], float], ...] = (
    (copy, 2.0),
    (count_up, 1.5),
    (count_items, 1.5),
    (sums, 4.0),
    (times, 1.5),
    (larger, 0.7),
    (lists, 1.5),
    (opposites, 0.7),
    (groups, 0.5),
)
"""Every skill with its share."""


def turn(random: Random) -> Turn:
    """A turn of a random skill."""
    tasks, shares = zip(*TASKS, strict=True)
    chosen: Callable[[Random], Turn] = random.choices(tasks, shares)[0]
    return chosen(random)
