"""`qwen36 gate`: may traffic go to this deployment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qwen36_lab.gate.ask import Answer, Server
from qwen36_lab.gate.suite import Suite
from qwen36_lab.gate.verdict import judge
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance

KEY = "VLLM_API_KEY"


def gate(
    candidate: Annotated[str, typer.Option(help="Base URL of the deployment that is looked at.")],
    suite: Annotated[Path, typer.Option(help="Prompts, checks, limits and envelope, in YAML or JSON.")],
    reference: Annotated[
        str | None,
        typer.Option(
            help="What answers are compared with: a base URL, a checkpoint folder, which is served on this CPU in "
            "float32, or the result of an earlier gate."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of the candidate. [default: its first one]")] = None,
    reference_model: Annotated[
        str | None, typer.Option(help="Of a reference that is a server. [default: its first one]")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Requests that are in flight.")] = 4,
    out: Annotated[Path, typer.Option(help="File for the result, which qwen36 serve --envelope takes.")] = Path(
        "gate.json"
    ),
) -> None:
    """Ask a deployment a suite of prompts: exit with 0 if it is accepted, with 1 if not.

    The API key of both servers, where they ask for one, is in VLLM_API_KEY.
    """
    asked = Suite.load(suite)
    if reference is None and asked.limits.agreement is not None:
        raise ConfigError("reference", None, "is what limits.agreement is measured against", "Give --reference")
    if reference_model is not None and not _is_url(reference):
        problem = "chooses among the models of a server, and the reference is none"
        raise ConfigError("reference_model", reference_model, problem, "Leave it out, or give --reference a base URL")
    console = Console(width=max(110, Console().width))
    deployment = Server(candidate, os.environ.get(KEY), model)
    try:
        expected = None if reference is None else _reference(reference, reference_model, asked, at_once, console)
        answers = _ask(deployment, asked, at_once, console, "candidate")
    finally:
        deployment.close()
    result = judge(asked, answers, expected)
    stated = {
        "provenance": provenance("measured").as_dict(),
        "candidate": {"url": deployment.url, "model": deployment.model},
        "reference": reference,
        **result,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(stated, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result, console)
    console.print(f"written: {out}")
    if not result["accepted"]:
        raise typer.Exit(1)


def _is_url(reference: str | None) -> bool:
    return reference is not None and reference.startswith(("http://", "https://"))


def _ask(server: Server, suite: Suite, at_once: int, console: Console, whose: str) -> dict[str, Answer]:
    with Progress(console=console) as progress:
        task = progress.add_task(whose, total=len(suite.rows))
        return server.answers(suite, at_once, lambda *_: progress.advance(task))


def _reference(name: str, model: str | None, suite: Suite, at_once: int, console: Console) -> dict[str, Answer]:
    """The reference's answers, from wherever they come."""
    if _is_url(name):
        server = Server(name, os.environ.get(KEY), model)
        try:
            return _ask(server, suite, at_once, console, "reference")
        finally:
            server.close()
    path = Path(name)
    if path.is_file():
        return _recorded(path, suite)
    if not (path / "config.json").is_file():
        problem = "is no URL, no folder of a checkpoint and no file"
        raise ConfigError("reference", name, problem, "Give one of these")
    from qwen36_lab.serving.http import HttpServer  # brings the engine
    from qwen36_lab.serving.sides import SideConfig

    length = suite.prompt_tokens + suite.completion_tokens
    config = SideConfig(path, torch.get_num_threads(), length, at_once, max(2048, at_once))
    console.print(f"serving {name} on this CPU")
    served = HttpServer(config)
    try:
        return _reference(served.url, None, suite, at_once, console)
    finally:
        served.close()


def _recorded(file: Path, suite: Suite) -> dict[str, Answer]:
    """The answers that an earlier gate had of the same suite."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        known, rows = result["suite_sha256"], result["rows"]
        answers = {str(row["id"]): Answer(**row["answer"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("reference", str(file), f"is no result of a gate ({error})", "Give another") from error
    if known != suite.digest:
        raise ConfigError("reference", str(file), "is of another suite", "Give a result of this one")
    return answers


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print what was measured, each row that did not pass, and the verdict."""
    measured = result["measured"]
    table = Table(title=f"{result['suite']}: {'accepted' if result['accepted'] else 'not accepted'}")
    for title in ("", "measured", "limit"):
        table.add_column(title, justify="left" if not title else "right")
    limits = result["limits"]
    table.add_row("rows that ran", f"{measured['ran']} of {measured['rows']}", f"{limits['skipped']} skipped")
    table.add_row("hard rows", f"{measured['hard_failures']} of {measured['hard_rows']} failed", "")
    for name in ("pass_rate", "agreement", "coverage"):
        share, limit = measured[name], limits[name]
        if share is not None or limit is not None:
            table.add_row(
                name, "unknown" if share is None else f"{share:.3f}", "" if limit is None else f">= {limit:g}"
            )
    for label, shares in measured["labels"].items():
        for name in ("precision", "recall"):
            if shares[name] is not None:
                limit = limits[name]
                table.add_row(f"{name} of {label}", f"{shares[name]:.3f}", "" if limit is None else f">= {limit:g}")
    envelope = result["envelope"]
    table.add_row("prompt tokens", f"{measured['longest_prompt']:,} at most", f"{envelope['prompt_tokens']:,}")
    table.add_row("answer tokens", f"{measured['longest_completion']:,} at most", f"{envelope['completion_tokens']:,}")
    console.print(table)
    for row in result["rows"]:
        if row["state"] != "passed":
            console.print(f"{row['id']} {row['state']}: {'; '.join(row['failures'])}", markup=False, highlight=False)
    for failure in result["failures"]:
        console.print(f"not accepted: {failure}", markup=False, highlight=False)
