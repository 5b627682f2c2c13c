"""Made-up request traces, shaped by the chat template: what arrives at a server, as token ids.

Every trace is a list of requests in order of arrival and is a function of its seed alone. Contents are random ids, so
two texts are equal only where a trace says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

Tokens = tuple[int, ...]

MESSAGE_START, MESSAGE_END, NEWLINE, THINK, THINK_END = 1, 2, 3, 4, 5
SYSTEM, USER, ASSISTANT = (10,), (11,), (12,)
FIRST_CONTENT, VOCABULARY = 1000, 248_320
NUM_REQUESTS = 240


@dataclass(frozen=True, slots=True)
class Request:
    """One call to the server: the prompt that arrived, and what the model then wrote."""

    prompt: Tokens
    output: Tokens


class Writer:
    """Makes up texts and puts them into the chat template's form."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def text(self, low: int, high: int | None = None) -> Tokens:
        """Random content of `low` to `high` tokens."""
        length = low if high is None else self.random.randint(low, high)
        return tuple(self.random.choices(range(FIRST_CONTENT, VOCABULARY), k=length))

    @staticmethod
    def message(role: Tokens, content: Tokens) -> Tokens:
        """A message of the conversation so far."""
        return (MESSAGE_START, *role, NEWLINE, *content, MESSAGE_END, NEWLINE)

    @staticmethod
    def ask(history: Tokens) -> Tokens:
        """The prompt for the next answer: the history, and the opening of an answer that begins with reasoning."""
        return (*history, MESSAGE_START, *ASSISTANT, NEWLINE, THINK, NEWLINE)

    @staticmethod
    def answer(reasoning: Tokens, content: Tokens) -> Tokens:
        """What the model writes to `ask`."""
        return (*reasoning, NEWLINE, THINK_END, NEWLINE, *content, MESSAGE_END)

    @classmethod
    def said(cls, reasoning: Tokens | None, content: Tokens) -> Tokens:
        """A past answer in the history: with its reasoning, or without where the template leaves it out."""
        thought = () if reasoning is None else (THINK, NEWLINE, *reasoning, NEWLINE, THINK_END, NEWLINE)
        return cls.message(ASSISTANT, (*thought, *content))


Session = Iterator[Request]
"""The requests of one user, in order."""


def interleave(random: Random, waiting: list[Session], active: int, requests: int) -> list[Request]:
    """Let `active` sessions at a time take turns at random; a session that ends makes room for the next one waiting."""
    queue = list(reversed(waiting))
    running: list[Session] = []
    arrived: list[Request] = []
    while len(arrived) < requests and (queue or running):
        while queue and len(running) < active:
            running.append(queue.pop())
        session = random.choice(running)
        request = next(session, None)
        if request is None:
            running.remove(session)
        else:
            arrived.append(request)
    return arrived


# ---- sessions --------------------------------------------------------------------------------------------------------


def single(write: Writer, system: Tokens, question: tuple[int, int], output: tuple[int, int]) -> Session:
    """One question under a system message."""
    history = write.message(SYSTEM, system) + write.message(USER, write.text(*question))
    yield Request(write.ask(history), write.answer(write.text(*output), write.text(*output)))


def dialogue(write: Writer, system: Tokens, turns: int, grow: int, keep_reasoning: bool) -> Session:
    """A conversation in which a turn adds about `grow` tokens to the history.

    With `keep_reasoning` the history holds all that the model wrote (the template's `preserve_thinking`), so that a
    turn goes on where the last one ended. Without it, as by default, past reasoning is left out of the next prompt.
    """
    history = write.message(SYSTEM, system)
    for _ in range(turns):
        history += write.message(USER, write.text(grow // 5, grow // 3))
        reasoning = write.text(grow // 4)
        content = write.text(grow // 3, grow // 2)
        yield Request(write.ask(history), write.answer(reasoning, content))
        history += write.said(reasoning if keep_reasoning else None, content)


def retrieval(write: Writer, system: Tokens, documents: list[Tokens], weights: list[float], picks: int) -> Session:
    """One question after a few of the shared documents, the likelier ones mostly first. Nothing marks a document."""
    left = list(range(len(documents)))
    chosen = []
    for _ in range(picks):
        pick = write.random.choices(left, [weights[index] for index in left])[0]
        left.remove(pick)
        chosen.append(pick)
    context = tuple(token for index in chosen for token in documents[index])
    history = write.message(SYSTEM, system) + write.message(USER, context + write.text(30, 90))
    yield Request(write.ask(history), write.answer(write.text(40, 120), write.text(60, 160)))


def agent(write: Writer, system: Tokens, tasks: int, steps: tuple[int, int]) -> Session:
    """Tasks in which the model calls tools in a loop. Reasoning stays within a task and is left out after it."""
    history = write.message(SYSTEM, system)
    for _ in range(tasks):
        history += write.message(USER, write.text(60, 250))
        with_reasoning = without = history
        for _ in range(write.random.randint(*steps)):
            reasoning, call = write.text(60, 240), write.text(30, 120)
            yield Request(write.ask(with_reasoning), write.answer(reasoning, call))
            result = write.message(USER, write.text(100, 1500))
            with_reasoning += write.said(reasoning, call) + result
            without += write.said(None, call) + result
        reasoning, content = write.text(60, 240), write.text(80, 300)
        yield Request(write.ask(with_reasoning), write.answer(reasoning, content))
        history = without + write.said(None, content)


def completion(write: Writer, shared: Tokens, tail: tuple[int, int]) -> Session:
    """A prompt without any template: a shared beginning that nothing marks, and an end of its own."""
    yield Request(shared + write.text(*tail), write.text(20, 80))


# ---- traces ----------------------------------------------------------------------------------------------------------


def system_prompt(seed: int) -> list[Request]:
    """One 8K system prompt, and 200 tokens of question that are never the same."""
    write = Writer(seed)
    system = write.text(8192)
    return [request for _ in range(NUM_REQUESTS) for request in single(write, system, (200, 200), (40, 100))]


def dialogues(seed: int) -> list[Request]:
    """12 conversations of 20 turns that grow to about 17.5K tokens each and keep all that was written."""
    write = Writer(seed)
    system = write.text(500)
    sessions = [dialogue(write, system, 20, 900, keep_reasoning=True) for _ in range(12)]
    return interleave(write.random, sessions, 12, NUM_REQUESTS)


def thinking_dialogues(seed: int) -> list[Request]:
    """The same with past reasoning left out, as by default: a turn does not begin where the last one ended."""
    write = Writer(seed)
    system = write.text(500)
    sessions = [dialogue(write, system, 20, 1150, keep_reasoning=False) for _ in range(12)]
    return interleave(write.random, sessions, 12, NUM_REQUESTS)


def rag(seed: int) -> list[Request]:
    """Four of 20 shared documents in changing order, some asked for far more often than others."""
    write = Writer(seed)
    system, documents = write.text(1000), [write.text(600, 2400) for _ in range(20)]
    weights = [1 / (rank + 1) for rank in range(len(documents))]
    return [r for _ in range(NUM_REQUESTS) for r in retrieval(write, system, documents, weights, 4)]


def agents(seed: int) -> list[Request]:
    """Agents of two kinds, each with 6K tokens of instructions and tools, four at work at a time."""
    write = Writer(seed)
    systems = [write.text(6000), write.text(6000)]
    sessions = [agent(write, systems[i % 2], tasks=3, steps=(3, 7)) for i in range(24)]
    return interleave(write.random, sessions, 4, NUM_REQUESTS)


def unmarked(seed: int) -> list[Request]:
    """16 shared beginnings of 1K to 16K tokens that no message boundary marks, some far more popular than others."""
    write = Writer(seed)
    shared = [write.text(1024, 16_384) for _ in range(16)]
    weights = [1 / (rank + 1) for rank in range(len(shared))]
    return [
        request
        for beginning in write.random.choices(shared, weights, k=NUM_REQUESTS)
        for request in completion(write, beginning, (50, 500))
    ]


def mix(seed: int) -> list[Request]:
    """All of it at once, with unrelated short requests in between: more than few slots can hold."""
    write = Writer(seed)
    system, tools, instructions = write.text(8192), write.text(6000), write.text(500)
    documents = [write.text(600, 2400) for _ in range(12)]
    weights = [1 / (rank + 1) for rank in range(len(documents))]
    sessions: list[Session] = []
    for index in range(40):
        sessions.append(
            dialogue(write, instructions, 12, 900, keep_reasoning=index % 2 == 0)
            if index % 4 == 0
            else agent(write, tools, tasks=2, steps=(2, 5))
            if index % 4 == 1
            else iter([r for _ in range(6) for r in single(write, system, (200, 200), (40, 100))])
            if index % 4 == 2
            else iter([r for _ in range(6) for r in retrieval(write, instructions, documents, weights, 3)])
        )
        sessions.append(iter([r for _ in range(4) for r in single(write, write.text(20), (50, 800), (20, 100))]))
    return interleave(write.random, sessions, 10, 2 * NUM_REQUESTS)


TRACES: dict[str, Callable[[int], list[Request]]] = {
    "system": system_prompt,
    "dialogue": dialogues,
    "dialogue-thinking": thinking_dialogues,
    "rag": rag,
    "agent": agents,
    "unmarked": unmarked,
    "mix": mix,
}
"""Traces by name, each a function of a seed."""
