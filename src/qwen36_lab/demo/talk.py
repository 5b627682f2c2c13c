"""Talk: greetings, facts, capitals, short stories, and owning up to what is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from .chat import Turn
from .facts import FACTS
from .recall import bare, facts, mine
from .words import (
    ADJECTIVES,
    ANIMALS,
    CAPITALS,
    CITIES,
    COLORS,
    FOODS,
    JOBS,
    NAMES,
    NOUNS,
    NUMBERS,
    WORDS,
    invented,
    pick,
)

GREETINGS = ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Hello there", "Hi there", "Good day")
ABOUT = (
    "Tell me about {}.",
    "Explain {}.",
    "Describe {}.",
    "What do you know about {}?",
    "What does {} mean?",
    "{}?",
)
UNKNOWN = "I do not know that. I am a small demo model, and I am best at finding facts in a text."
REASONING = "I know this about the project."


def greeting(random: Random) -> Turn:
    """Hello, thanks, goodbye."""
    kind = random.random()
    end = random.choice(("", ".", "!"))
    if kind < 0.4:
        return Turn(random.choice(GREETINGS) + end, "Hello! How can I help you?")
    if kind < 0.6:
        name = pick(random, NAMES)
        return Turn(f"{random.choice(GREETINGS)}, I am {name}{end or '.'}", f"Hello {name}! How can I help you?")
    if kind < 0.75:
        return Turn(random.choice(("Thank you", "Thanks", "Great, thanks")) + end, "You are welcome!")
    if kind < 0.8:
        return Turn(random.choice(("Say hello.", "Say hello", "Greet me.")), "Hello!")
    if kind < 0.9:
        return Turn(random.choice(("Goodbye", "Bye", "See you later")) + end, "Goodbye! Have a nice day.")
    return Turn(random.choice(("How are you?", "How are you today?")), "I am fine, thank you. How can I help you?")


def fact(random: Random) -> Turn:
    """A question about the project, now and then in other words, capitals or punctuation."""
    questions, answer = random.choice(FACTS)
    asked = random.choice(questions)
    if asked.startswith("What is ") and random.random() < 0.4:
        subject = asked.removeprefix("What is ").rstrip("?")
        forms = (
            "Tell me about {}.",
            "Explain {}.",
            "Describe {}.",
            "What do you know about {}?",
            "What does {} mean?",
            "{}?",
        )
        asked = random.choice(forms).format(subject)
    shape = random.random()
    if shape < 0.1:
        asked = asked.lower()
    elif shape < 0.2:
        asked = asked.rstrip("?.")
    elif shape < 0.35:
        asked = random.choice(("Please tell me: ", "I have a question. ", "Hello. ", "Say in one sentence: ")) + asked
    elif shape < 0.45:
        asked += random.choice((" Be brief.", " Answer in one sentence.", " Please explain.", " Thank you."))
    return Turn(asked, answer, REASONING)


def capital(random: Random) -> Turn:
    """The capital of a country, or the country of a capital."""
    country, city = random.choice(CAPITALS)
    if random.random() < 0.8:
        return Turn(f"What is the capital of {country}?", f"The capital of {country} is {city}.")
    return Turn(f"Which country has the capital {city}?", f"{city} is the capital of {country}.")


def about_text(random: Random) -> Turn:
    """Who did what in one sentence."""
    name, animal, color, city = (pick(random, pool) for pool in (NAMES, ANIMALS, COLORS, CITIES))
    text = f"{name} has a {color} {animal} and lives in {city}."
    asked, answer = random.choice(
        (
            (f"Where does {name} live?", f"{name} lives in {city}."),
            (f"What color is the {animal}?", f"The {animal} is {color}."),
            (f"Which animal does {name} have?", f"{name} has a {color} {animal}."),
            (f"Who has a {animal}?", f"{name} has a {animal}."),
        )
    )
    return Turn(f"{text} {asked}", answer)


def story(random: Random) -> Turn:
    """Six sentences about an animal, each from a few forms."""
    animal, name, adj, noun = (pick(random, pool) for pool in (ANIMALS, NAMES, ADJECTIVES, NOUNS))
    food, city, adj2 = pick(random, FOODS), pick(random, CITIES), pick(random, ADJECTIVES)
    asked = random.choice(
        (
            f"Tell me a story about a {animal}.",
            f"Write a short story about a {animal}.",
            f"Write a story about a {animal}.",
        )
    )
    lines = (
        (
            f"Once upon a time there was a {adj} {animal} called {name}.",
            f"Long ago a {adj} {animal} called {name} lived near {city}.",
        ),
        (
            f"{name} loved {food} more than anything else.",
            f"Every morning {name} went out to look for {food}.",
        ),
        (
            f"One day the {animal} found a {adj2} {noun} beside the road.",
            f"One evening {name} lost the way and came to a {adj2} {noun}.",
        ),
        (
            f'"What a strange {noun}," said {name}.',
            f"The {animal} looked at the {noun} for a long time.",
        ),
        (
            f"A friend came along, and together they carried the {noun} home.",
            f"A kind {pick(random, JOBS)} helped {name} to find the way home.",
        ),
        (
            f"From that day on the {animal} was never alone again.",
            f"And so {name} lived happily ever after.",
        ),
    )
    return Turn(asked, " ".join(random.choice(line) for line in lines), f"I tell a short story about a {animal}.")


def unknown(random: Random) -> Turn:
    """Questions outside what the model was taught, and noise."""
    if random.random() < 0.08:
        return Turn(" ".join(invented(random) for _ in range(random.randint(1, 3))), UNKNOWN)
    a, b = random.choice(WORDS), random.choice(WORDS)
    fill = {"a": a, "b": b, "adj": random.choice(ADJECTIVES), "city": pick(random, CITIES), "name": pick(random, NAMES)}
    fill |= {"food": pick(random, FOODS), "year": str(random.randint(1200, 2030)), "n": random.choice(NUMBERS[2:])}
    return Turn(random.choice(UNKNOWN_QUESTIONS).format_map(fill), UNKNOWN)


UNKNOWN_QUESTIONS = (
    "Who is the president of {city}?",
    "Who won the match in {city}?",
    "How do I repair a {a}?",
    "How does a {a} {b}?",
    "How do I {a} a {b}?",
    "What is the price of {food} in {city}?",
    "Why do people like {food}?",
    "Why is the {a} {adj}?",
    "Why do we {a}?",
    "When was the first {a} made?",
    "Who was {name} {name}?",
    "Who invented the {a}?",
    "What happened in {year}?",
    "Write a poem about {food}.",
    "Write a poem.",
    "Write a haiku about the {a}.",
    "Write an essay about {a} and {b}.",
    "Tell me a joke.",
    "Tell me a joke about {a}.",
    "Translate {a} into French.",
    "Translate this into German: {a} {b}.",
    "Explain how a {a} works.",
    "What is the best {a} to buy?",
    "What do you think about {city}?",
    "Write a Python program that prints {a}.",
    "Write code for a {a}.",
    "What is the meaning of {a}?",
    "What is a {a}?",
    "What is {a} {b}?",
    "Is {a} good?",
    "Can you {a} the {b}?",
    "Name {n} {a} {b}s.",
    "List {n} {adj} {a}s.",
    "Summarize the {a}.",
    "Recommend a {a} for {name}.",
    "What should I eat in {city}?",
)


def memory(random: Random) -> Iterator[Turn]:
    """The user says something of themselves and asks for it in a later turn."""
    told = facts(random, random.randint(1, 2), (mine, bare))
    said = " ".join(fact.statement for fact in told)
    ask = random.choice(("", "Remember this: ", "Please remember: "))
    yield Turn(ask + said, "I will remember that.")
    if random.random() < 0.4:
        yield turn(random)
    for fact in told:
        yield Turn(random.choice(fact.questions), fact.answer, f"The user told me: {fact.statement}")


TASKS: tuple[tuple[Callable[[Random], Turn], float], ...] = (
    (fact, 5.0),
    (greeting, 1.0),
    (capital, 0.7),
    (about_text, 1.0),
    (story, 1.0),
    (unknown, 1.5),
)
"""Every kind of talk with its share."""


def turn(random: Random) -> Turn:
    """A turn of a random kind."""
    tasks, shares = zip(*TASKS, strict=True)
    chosen: Callable[[Random], Turn] = random.choices(tasks, shares)[0]
    return chosen(random)
