"""Estimates as numbers for programs and as tables for people."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from .dense import PROMPT, QWEN3_8B, QWEN3_32B
from .estimate import Estimate
from .mixture_report import mixture_json
from .plan import Plan, PlanRequest
from .rates import Phase, Rates, roofline
from .speculation import HIGH, LOW, Speculation

PROMPTS = (512, 1024, 4096, 8192, 16384, 32768, 65536, 131008)
CAVEAT = (
    "The delta rule of prompts is a kernel's price by the interpreter's cost model; with kernels: nki attention and "
    "the states of decode steps are too, with kernels: fused also their feed-forward blocks, attention layers and "
    "DeltaNet projections, and the head. What is left are plain operations, at rates that others were measured with. "
    "The roofline has what must be read and multiplied alone, both at the chip's peak and at once. Host and server are "
    "in no figure but in what plain operations of a step take, and a decode step computes every row of its graph, in "
    "use or not. Ranges are those of the kernels' price list alone: the kernels and the collectives."
)
CONTEXTS = (1024, 8192, 32768, 131072)
SWEEP_BATCHES, MIXTURE_BATCHES, SWEEP_CONTEXTS = (
    (1, 2, 4, 8, 16, 32),
    (64, 128),
    (1024, 4096, 8192, 32768, 131072, 262144),
)
DRAFTS = (1, 2, 3, 4)
ACCEPTANCE = (
    "With drafts: every row has that many in every round. Ranges are those of published acceptance on GPUs, 2.8 to 3.5 "
    "tokens a round with 3 drafts at 1K tokens of context, 1.6 to 2.6 from 32K on; on this machine nobody has measured "
    "any. A round with drafts is worth it where it gives more tokens than the last figure."
)


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Prompts and decode steps of an estimate, with a roofline beside each."""
    options, rates = estimate.profile.options, estimate.rates
    low, high = estimate.at("low"), estimate.at("high")
    longest = options.max_model_len
    return {
        "modelled": True,
        "profile": estimate.profile.name,
        "weights": str(estimate.profile.weights),
        "kernels": options.to_json()["kernels"],
        "delta_rule": estimate.delta_rule.name,
        "rates_of_a_rank": asdict(estimate.rates),
        "prefill": [
            {
                "prompt": prompt,
                "first_token_s": estimate.first_token(prompt),
                "first_token_range_s": [low.first_token(prompt), high.first_token(prompt)],
                "tokens_per_s": prompt / estimate.first_token(prompt),
                **roofline_json(prompt, estimate.prompt_phases(prompt), rates),
                "phases": phases_json(estimate.prompt_phases(prompt), rates),
            }
            for prompt in PROMPTS
            if prompt < longest
        ],
        "decode": [
            {
                "batch": batch,
                "context": context,
                "token_s": estimate.token(batch, context),
                "token_range_s": [low.token(batch, context), high.token(batch, context)],
                "tokens_per_s": batch / estimate.token(batch, context),
                **roofline_json(batch, estimate.token_phases(batch, context), rates),
                "phases": phases_json(estimate.decode_phases(batch, context), rates),
            }
            for context in CONTEXTS
            if context <= longest
            for batch in sorted({1, options.num_lanes})
        ],
        "speculation": [
            entry
            for context in CONTEXTS
            if context <= longest
            for batch in sorted({1, options.num_lanes})
            for entry in speculation_json(estimate, batch, context)
        ],
        "any_size": [
            sweep_json(estimate, batch, context)
            for context in SWEEP_CONTEXTS
            for batch in (*SWEEP_BATCHES, *(MIXTURE_BATCHES if estimate.model.moe else ()))
            if context <= estimate.model.max_position_embeddings
        ],
        "validation": validation_json(rates),
    } | mixture_json(estimate)


def roofline_json(tokens: int, phases: list[Phase], rates: Rates) -> dict[str, Any]:
    """Tokens a second that nothing can exceed, and what sets that."""
    seconds, bound = roofline(phases, rates)
    return {"roofline_tokens_per_s": tokens / seconds, "roofline_bound": bound}


def sweep_json(estimate: Estimate, batch: int, context: int) -> dict[str, Any]:
    """A decode step of graphs made for just so many rows and tokens, and whether the machine holds as many."""
    options, phases = estimate.profile.options, estimate.step_phases(batch, context)
    times = [
        sum(phase.seconds(side.rates) for phase in side.step_phases(batch, context))
        for side in (estimate.at("low"), estimate, estimate.at("high"))
    ]
    request = PlanRequest(
        context, batch, 0, options.tp_degree, estimate.profile.weights, options.torch_dtype, mtp=options.draft_layer
    )
    slowest = max(phases, key=lambda phase: phase.seconds(estimate.rates))
    return {
        "batch": batch,
        "context": context,
        "token_s": times[1],
        "token_range_s": [times[0], times[2]],
        "tokens_per_s": batch / times[1],
        **roofline_json(batch, phases, estimate.rates),
        "largest_phase": slowest.name,
        "bound": slowest.bound(estimate.rates),
        "fits": Plan(estimate.model, request).fits,
    }


def validation_json(rates: Rates) -> list[dict[str, Any]]:
    """What the rates of plain operations say of dense models that others have measured."""
    return [
        {
            "model": model.name,
            "token_ms": 1e3 * model.token(PROMPT),
            "published_token_ms": 1e3 * model.token_s,
            "prompt": PROMPT,
            "first_token_s": model.prompt(PROMPT),
            "published_first_token_s": model.prompt_s,
        }
        for model in (replace(one, rates=rates) for one in (QWEN3_32B, QWEN3_8B))
    ]


def speculation_json(estimate: Estimate, batch: int, context: int) -> list[dict[str, Any]]:
    """Rounds of 1 to 4 drafts a row; none of a model without a draft layer."""
    if estimate.model.num_mtp_layers != 1:
        return []
    rounds = [Speculation(estimate, drafts) for drafts in DRAFTS]
    return [
        {
            "batch": batch,
            "context": context,
            "drafts": one.drafts,
            "round_s": one.round(batch, context),
            "each_draft_s": sum(phase.seconds(estimate.rates) for phase in estimate.draft_phases(batch, context)),
            "tokens_per_round": [curve.tokens(one.drafts, context) for curve in (LOW, HIGH)],
            "tokens_per_s": [one.rate(batch, context, curve) for curve in (LOW, HIGH)],
            "tokens_needed": one.needed(batch, context),
        }
        for one in rounds
    ]


def phases_json(phases: list[Phase], rates: Rates) -> dict[str, dict[str, Any]]:
    """Seconds of each phase, and what binds it, over all chunks; the bound is that of the longest chunk."""
    found: dict[str, dict[str, Any]] = {}
    longest: dict[str, float] = {}
    for phase in phases:
        seconds = phase.seconds(rates)
        entry = found.setdefault(phase.name, {"seconds": 0.0, "bound": ""})
        entry["seconds"] += seconds
        if seconds >= longest.get(phase.name, 0.0):
            longest[phase.name], entry["bound"] = seconds, phase.bound(rates)
    return found


def prefill_table(result: dict[str, Any]) -> Table:
    """Time to first token by length of the prompt."""
    title = f"{result['profile']}, {result['weights']}, {result['delta_rule']}: prefill, modelled"
    rows = [
        ([str(entry["prompt"]), f"{entry['first_token_s']:.2f}", _range(entry["first_token_range_s"])], entry)
        for entry in result["prefill"]
    ]
    return _table(title, ["prompt", "first token, s", "range"], rows)


def decode_table(result: dict[str, Any]) -> Table:
    """Time a token by sequences and context."""
    title = f"{result['profile']}, {result['weights']}: decode, modelled"
    rows = [
        (
            [
                f"{entry['batch']} x {entry['context']}",
                f"{1e3 * entry['token_s']:.1f}",
                _range([1e3 * s for s in entry["token_range_s"]], 1),
            ],
            entry,
        )
        for entry in result["decode"]
    ]
    return _table(title, ["sequences x context", "ms a token", "range"], rows)


def speculation_table(result: dict[str, Any]) -> Table:
    """Tokens a second by sequences, context and drafts a row; after the slash, tokens that a round must give."""
    table = Table(title=f"{result['profile']}, {result['weights']}: decode with drafts of the model's layer, modelled")
    table.add_column("sequences x context", justify="right")
    for drafts in (0, *DRAFTS):
        table.add_column(f"{drafts} drafts" if drafts != 1 else "1 draft", justify="right")
    for plain in result["decode"]:
        same = [e for e in result["speculation"] if all(e[key] == plain[key] for key in ("batch", "context"))]
        cells = [f"{_range(e['tokens_per_s'], 0)} / {e['tokens_needed']:.2f}" for e in same]
        table.add_row(f"{plain['batch']} x {plain['context']}", f"{plain['tokens_per_s']:.0f}", *cells)
    return table


def _range(ends: list[float], digits: int = 2) -> str:
    return f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def _table(title: str, first: list[str], rows: list[tuple[list[str], dict[str, Any]]]) -> Table:
    """Rows that start with `first` and end with rates, and the three largest phases with what binds them."""
    table = Table(title=title)
    for column in (*first, "tokens/s", "roofline"):
        table.add_column(column, justify="right")
    table.add_column("where the time goes (bound by)")
    for start, entry in rows:
        total = sum(phase["seconds"] for phase in entry["phases"].values())
        largest = sorted(entry["phases"].items(), key=lambda item: -item[1]["seconds"])[:3]
        shares = ", ".join(f"{name} {100 * p['seconds'] / total:.0f} % ({p['bound']})" for name, p in largest)
        table.add_row(*start, f"{entry['tokens_per_s']:.0f}", f"{entry['roofline_tokens_per_s']:.0f}", shares)
    return table
