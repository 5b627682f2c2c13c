"""Measures the demo checkpoint offline, on CPU: through the project's own runtime and through transformers.

Recall at several lengths and depths, tools, JSON and small skills, and the drafts of the multi-token-prediction layer.

    python scripts/eval_demo.py --model assets/demo-checkpoint --out profile_artifacts/demo
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer

from qwen36_lab.demo.drafting import acceptance
from qwen36_lab.demo.evaluation import Probe, recall_probes, skill_probes
from qwen36_lab.demo.measure import OwnRuntime, Transformers, score
from qwen36_lab.demo.trainable import TrainableModel
from qwen36_neuron.provenance import provenance

SCORES = ("right", "exact", "valid")
SEED = 2026
"""Other than that of the training, so that every text is new."""
DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
DRAFTS = 3
PLAN = "1024:4,4096:4,8192:4,16384:2"


def main(
    model: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("assets/demo-checkpoint"),
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("profile_artifacts/demo"),
    lengths: Annotated[
        str, typer.Option(help="LENGTH:QUESTIONS at each depth, in order")
    ] = "1024:8,4096:4,8192:4,16384:2",
    skills: Annotated[int, typer.Option(help="questions of each short kind")] = 40,
    agree_every: Annotated[int, typer.Option(help="ask transformers about every n-th recall question")] = 4,
    threads: Annotated[int, typer.Option(help="of torch")] = 2,
) -> None:
    """Print a table and write evaluation.json."""
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model)
    plan = [(int(length), int(each)) for length, each in (part.split(":") for part in lengths.split(","))]
    own, reference = OwnRuntime(model, plan[-1][0]), Transformers(model)
    with torch.no_grad():
        network = TrainableModel.from_pretrained(model).assemble()
    groups: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(list))

    def probes() -> Iterator[tuple[str, Probe, bool]]:
        for probe in skill_probes(skills, SEED):
            yield probe.kind, probe, True
        for length, each in plan:
            for kind in ("needle", "table"):
                for index, probe in enumerate(recall_probes(tokenizer, kind, length, DEPTHS, each, SEED)):
                    yield f"{kind} {length}", probe, index % agree_every == 0

    for group, probe, ask_reference in track(list(probes()), description="asking"):
        prompt = probe.prompt(tokenizer)
        answer = own.answer(prompt)
        scored, found = score(probe, answer, tokenizer), groups[group]
        for name in SCORES:
            found[name].append(getattr(scored, name))
        found["prompt_tokens"].append(len(prompt))
        if not scored.right:
            found["wrong"].append({"depth": probe.depth, "expected": probe.value, "said": scored.text})
        if ask_reference:
            found["agrees"].append(reference.agrees(prompt, answer))
        if not probe.length and len(answer) > 1:
            counted = acceptance(network, prompt, answer, DRAFTS)
            found["steps"].append(counted.steps)
            found["drafted_tokens"].append(counted.tokens)

    summary = {group: _summary(found) for group, found in groups.items()}
    table = Table("what", "asked", *SCORES, "transformers agrees", f"tokens a step, {DRAFTS} drafts")
    for group, line in summary.items():
        shares = (f"{line[name]:.3f}" for name in SCORES)
        drafted = f"{line['tokens_a_step']:.2f}" if "tokens_a_step" in line else ""
        table.add_row(group, str(line["asked"]), *shares, f"{line['agreed']} of {line['compared']}", drafted)
    steps, tokens = (sum(sum(found[n]) for found in groups.values()) for n in ("steps", "drafted_tokens"))
    Console().print(table, f"over all replies: {tokens / steps:.2f} tokens a step with {DRAFTS} drafts")
    result = {"provenance": provenance("measured").as_dict(), "tokens_a_step": tokens / steps, "groups": summary}
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"asked": len(found["right"]), "longest_prompt": max(found["prompt_tokens"])}
    line |= {name: sum(found[name]) / len(found[name]) for name in SCORES}
    line |= {"agreed": sum(found["agrees"]), "compared": len(found["agrees"])}
    if found["steps"]:
        line["tokens_a_step"] = sum(found["drafted_tokens"]) / sum(found["steps"])
    return line | {"wrong": found["wrong"]}


if __name__ == "__main__":
    typer.run(main)
