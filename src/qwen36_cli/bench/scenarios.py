"""The published two scenarios against any deployment, by aiperf in an environment of its own.

    qwen36 bench scenarios --base-url http://127.0.0.1:8000 --tokenizer assets/demo-checkpoint

Every deployment has the same prompts in every run. With several, runs take turns, so that a machine that slows down
slows all of them:

    qwen36 bench scenarios --base-url cached=http://127.0.0.1:8000 --base-url uncached=http://127.0.0.1:8002 ...
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from qwen36_lab.serving import scenarios as lab
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance

ENVIRONMENT = Path.home() / ".cache" / "qwen36-neuron" / f"aiperf-{lab.AIPERF}"
COLUMNS = {
    "first token, ms": "ttft",
    "chunk, ms": "itl_chunk",
    "token, ms": "itl_token",
    "whole, ms": "e2e",
}


def scenarios(
    base_url: Annotated[list[str], typer.Option(help="URL of a deployment, or NAME=URL; as often as there are.")],
    tokenizer: Annotated[str, typer.Option(help="Checkpoint folder, with whose tokenizer prompts are made.")],
    system_prompt_tokens: Annotated[int, typer.Option(min=80, help="Prompts with one system prompt.")] = 8000,
    dialogue_tokens: Annotated[int, typer.Option(min=80, help="Prompts of dialogues, on average.")] = 17500,
    turns: Annotated[int, typer.Option(min=1, help="Turns of a dialogue.")] = 6,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a run.")] = 240,
    concurrency: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 4,
    output_tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each scenario.")] = 3,
    only: Annotated[str | None, typer.Option(help="system-prompt or dialogue; both if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="Served name; the first of /v1/models if not given.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="If they ask for one; aiperf gets it as an argument.")
    ] = None,
    aiperf: Annotated[
        Path | None, typer.Option(help="aiperf's program; if not given it is installed below ~/.cache.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for scenarios.json.")] = Path("profile_artifacts/scenarios"),
) -> None:
    """Prompts that share a system prompt, and dialogues, by aiperf against deployments: print and write the figures."""
    load = lab.Load(requests, concurrency, output_tokens)
    wanted = [lab.system_prompt(system_prompt_tokens), lab.dialogue(dialogue_tokens, output_tokens, turns)]
    names = [scenario.name for scenario in wanted]
    if only is not None and only not in names:
        raise ConfigError("only", only, "is no scenario", f"Use {' or '.join(names)}")
    wanted = [scenario for scenario in wanted if only in (None, scenario.name)]
    deployments = [find(given, model, api_key) for given in base_url]
    if len({each.name for each in deployments}) < len(deployments):
        raise ConfigError("base_url", base_url, "gives a name twice", "Write NAME=URL")
    console = Console(width=max(120, Console().width))
    program = aiperf or lab.install(ENVIRONMENT, console.print)
    for scenario in wanted:  # before anything runs
        lab.command(program, deployments[0], scenario, load, tokenizer, out)
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        scenario.name: {each.name: [] for each in deployments} for scenario in wanted
    }
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for scenario in wanted:
                for each in deployments:
                    place = Path(folder) / f"{number}-{scenario.name}-{deployments.index(each)}"
                    found = lab.run(program, each, scenario, load, tokenizer, place, api_key)
                    runs[scenario.name][each.name].append(found)
                    done = f"{found['requests']:.0f} of {requests}, first token {found['ttft_ms']:.0f} ms"
                    console.print(f"run {number + 1} of {rounds}, {scenario.name}, {each.name}: {done}")
    means = {name: {of: lab.summary(each) for of, each in found.items()} for name, found in runs.items()}
    for scenario in wanted:
        console.print(_table(scenario, means[scenario.name], requests))
    result = {
        "provenance": provenance("measured").as_dict(),
        "aiperf": lab.AIPERF if aiperf is None else str(aiperf),
        "load": {**asdict(load), "rounds": rounds, "load_average_before": busy},
        "scenarios": {scenario.name: {**asdict(scenario), "means": means[scenario.name]} for scenario in wanted},
        "runs": runs,
        "published": lab.PUBLISHED,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "scenarios.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written: {out / 'scenarios.json'}")


def find(given: str, model: str | None, key: str | None) -> lab.Deployment:
    """A deployment as it was given, with the name of its model.

    Raises:
        ConfigError: nothing answers there, or without a model.
    """
    name, _, url = given.rpartition("=")
    url = url.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        raise ConfigError("base_url", given, "is no URL", "Write http://HOST:PORT, or NAME=http://HOST:PORT")
    if model is None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=10, trust_env=False)
            model = str(answer.raise_for_status().json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError) as error:
            problem = f"does not say which model it serves: {error}"
            raise ConfigError("base_url", given, problem, "Start the deployment first, or give --model") from error
    return lab.Deployment(name or url, url, model)


def _of(figure: dict[str, float]) -> str:
    digits = 0 if figure["mean"] >= 100 else 1
    return f"{figure['mean']:,.{digits}f} ± {figure['spread']:,.{digits}f}"


def _table(scenario: lab.Scenario, means: dict[str, dict[str, dict[str, float]]], requests: int) -> Table:
    table = Table(title=f"{scenario.name}: mean ± half the spread of runs, p90 below")
    for title in ("", "prompt", "cached", *COLUMNS, "out tok/s", "in + out", "answered"):
        table.add_column(title, justify="left" if not title else "right")
    for deployment, found in means.items():
        cells = [f"{_of(found[f'{name}_ms'])}\n{_of(found[f'{name}_p90_ms'])}" for name in COLUMNS.values()]
        rates = (f"{found[of]['mean']:,.0f}" for of in ("decode_tokens_per_s", "tokens_per_s"))
        share, answered = f"{found['cached_share']['mean']:.0%}", f"{found['requests']['mean']:.0f} of {requests}"
        table.add_row(deployment, f"{found['prompt_tokens']['mean']:,.0f}", share, *cells, *rates, answered)
    theirs: Any = lab.PUBLISHED[scenario.name]
    latencies = [f"{theirs[f'{of}_ms']:,.1f}" if f"{of}_ms" in theirs else "" for of in COLUMNS.values()]
    rates = (f"{theirs[of]:,.0f}" for of in ("decode_tokens_per_s", "tokens_per_s"))
    size = "8,000" if scenario.name == "system-prompt" else "17,500"
    table.add_row("published, 27B in W8A8\non 8 x Ascend 910B4", size, "off", *latencies, *rates, "240 of 240")
    return table
