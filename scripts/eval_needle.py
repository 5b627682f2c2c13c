"""Hides one fact in a long text and asks a served model for it, at several lengths and depths; and looks for loops.

Any server with the OpenAI chat API will do. The text is made to the length in tokens that the server itself counts.

    python scripts/eval_needle.py --base-url http://127.0.0.1:8000 --lengths 1024,4096,8192,16384
    python scripts/eval_needle.py --base-url http://127.0.0.1:8000 --quick
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import matplotlib
import typer
from openai import BadRequestError, OpenAI
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qwen36_lab.demo.coherence import loops
from qwen36_lab.demo.evaluation import ANSWER_ROOM, RECALL
from qwen36_lab.demo.filler import sentence
from qwen36_neuron.provenance import provenance

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEED = 7
OPEN_QUESTIONS = ("What can you do?", "Tell me a story about a fox.", "Count from 1 to 30.")
MOST_TOKENS = 256
QUICK_LENGTHS, QUICK_DEPTHS = "512,1024", "0,0.5,1"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        kind: "needle", "table", or "open" for a question whose answer must only be free of loops.
        length: tokens that were aimed for.
        depth: of the fact in the text, 0 to 1.
        prompt_tokens: as the server counted them.
        passed: the value is there; or, for an open question, the answer came to an end and does not loop.
        text: the answer.
        expected: the value asked for.
    """

    kind: str
    length: int
    depth: float
    prompt_tokens: int
    passed: bool
    text: str
    expected: str


class Served:
    """One model behind an OpenAI chat API, asked greedily and without thinking."""

    def __init__(self, base_url: str, model: str | None, api_key: str) -> None:
        self.client = OpenAI(base_url=f"{base_url.rstrip('/')}/v1", api_key=api_key, timeout=600, max_retries=1)
        self.model = model or self.client.models.list().data[0].id
        random = Random(SEED)
        sample = " ".join(sentence(random) for _ in range(40))
        self.tokens_per_character = self.ask(sample, 1)[1] / len(sample)

    def ask(self, text: str, max_tokens: int) -> tuple[str, int, bool]:
        """The answer, the prompt's tokens, and whether it came to its own end."""
        reply = self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": text}],
            max_tokens=max_tokens,
            temperature=0,
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        )
        choice = reply.choices[0]
        assert reply.usage is not None
        return choice.message.content or "", reply.usage.prompt_tokens, choice.finish_reason == "stop"

    def recall(self, kind: str, length: int, depth: float, index: int) -> Answer:
        """Ask for one fact, in a text made shorter until the server counts no more than `length` tokens."""
        scale = self.tokens_per_character
        while True:
            random = Random(f"{SEED}/{kind}/{length}/{depth}/{index}")
            probe = RECALL[kind](random, length, depth, scale)
            try:
                text, prompt_tokens, _ = self.ask(probe.turn.said, ANSWER_ROOM)
            except BadRequestError as error:  # longer than the server takes at all
                if "context length" not in str(error):
                    raise
                prompt_tokens = round(1.1 * length)
            if prompt_tokens + ANSWER_ROOM <= length:
                return Answer(kind, length, depth, prompt_tokens, probe.value in text, text, probe.value)
            scale *= 1.02 * (prompt_tokens + ANSWER_ROOM) / length

    def open(self, length: int, question: str) -> Answer:
        """Ask an open question after a long text."""
        random = Random(f"{SEED}/{question}/{length}")
        lines: list[str] = []
        while (sum(map(len, lines)) + len(lines)) * self.tokens_per_character < length - MOST_TOKENS - 60:
            lines.append(sentence(random))
        text, prompt_tokens, ended = self.ask(f"{' '.join(lines)}\n\n{question}", MOST_TOKENS)
        return Answer("open", length, 0.0, prompt_tokens, ended and bool(text) and not loops(text), text, "")


def main(
    base_url: Annotated[str, typer.Option(help="of the server, without /v1")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="name it is served under; the first one by default")] = None,
    lengths: Annotated[str, typer.Option(help="prompt and answer together, in tokens")] = "1024,4096,8192,16384",
    depths: Annotated[str, typer.Option(help="of the fact in the text")] = "0,0.25,0.5,0.75,1",
    each: Annotated[int, typer.Option(help="questions of each kind at each length and depth")] = 2,
    quick: Annotated[bool, typer.Option(help=f"lengths {QUICK_LENGTHS}, depths {QUICK_DEPTHS}, one each")] = False,
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("profile_artifacts/demo"),
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="if the server asks for one")] = "none",
    at_least: Annotated[float, typer.Option(help="exit with 1 if a smaller share passes")] = 0.0,
) -> None:
    """Print a table, and write needle.json and needle.png."""
    if quick:
        lengths, depths, each = QUICK_LENGTHS, QUICK_DEPTHS, 1
    at_lengths, at_depths = [int(n) for n in lengths.split(",")], [float(d) for d in depths.split(",")]
    served = Served(base_url, model, api_key)
    answers: list[Answer] = []
    with Progress() as progress:
        total = len(at_lengths) * (len(at_depths) * each * len(RECALL) + len(OPEN_QUESTIONS))
        task = progress.add_task("asking", total=total)
        for length in at_lengths:
            for kind in RECALL:
                for depth in at_depths:
                    for index in range(each):
                        answers.append(served.recall(kind, length, depth, index))
                        progress.advance(task)
            for question in OPEN_QUESTIONS:
                answers.append(served.open(length, question))
                progress.advance(task)

    shares = {f"{kind} {length}": share(answers, kind, length) for kind in (*RECALL, "open") for length in at_lengths}
    show(answers, at_lengths, at_depths)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"model": served.model, "lengths": at_lengths, "depths": at_depths, "each": each}
    source = provenance("measured").as_dict()
    result = {"provenance": source, "settings": settings, "shares": shares, "answers": [asdict(a) for a in answers]}
    (out / "needle.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    heat_map(
        answers, at_lengths, at_depths, f"{served.model}, {source['kind']} {source['date'][:10]}", out / "needle.png"
    )
    if min(shares.values()) < at_least:
        raise typer.Exit(1)


def share(answers: list[Answer], kind: str, length: int, depth: float | None = None) -> float:
    """The share of answers that passed; NaN where nothing was asked."""
    passed = [a.passed for a in answers if (a.kind, a.length) == (kind, length) and depth in (None, a.depth)]
    return sum(passed) / len(passed) if passed else math.nan


def show(answers: list[Answer], lengths: list[int], depths: list[float]) -> None:
    """Print shares by kind, length and depth."""
    table = Table("", "tokens", *(f"depth {depth:g}" for depth in depths), "all", title="Share of right answers")
    for kind in (*RECALL, "open"):
        for length in lengths:
            by_depth = [share(answers, kind, length, depth) if kind != "open" else math.nan for depth in depths]
            shown = ["" if math.isnan(value) else f"{value:.2f}" for value in by_depth]
            table.add_row(kind, f"{length:,}", *shown, f"{share(answers, kind, length):.2f}")
    Console().print(table)


def heat_map(answers: list[Answer], lengths: list[int], depths: list[float], caption: str, path: Path) -> None:
    """Draw the shares of every kind of recall over length and depth."""
    figure, panels = plt.subplots(1, len(RECALL), figsize=(5 * len(RECALL), 4.2), squeeze=False)
    for panel, kind in zip(panels[0], RECALL, strict=True):
        grid: list[list[Any]] = [[share(answers, kind, length, depth) for length in lengths] for depth in depths]
        panel.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        panel.set(title=kind, xlabel="tokens", ylabel="depth")
        panel.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        panel.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        for row, line in enumerate(grid):
            for column, value in enumerate(line):
                ink = "black" if 0.15 < value < 0.85 else "white"  # both ends of the colours are dark
                panel.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=9, color=ink)
    figure.text(0.01, 0.01, caption, fontsize=7)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
