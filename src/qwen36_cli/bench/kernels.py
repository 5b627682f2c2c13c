"""Modelled price of the kernels on one physical Trainium2 core, against the bars and against other solves.

Runs every form in the NKI interpreter and schedules its instructions by a price list, the published one unless told
otherwise: nothing here is measured on hardware. Writes JSON with provenance and ranges, Perfetto timelines and plots.

    qwen36 bench kernels --out profile_artifacts/kernels --nki-library PATH

PATH is a checkout of aws-neuron/nki-library of SDK 2.33 or later: its chunked prefill of the gated delta rule is priced
beside the fused one, and both are held against the fp64 recurrence. Without it all else is done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from nki_kernels import examples
from nki_kernels.interpreter import PriceList, Report, profile
from nki_kernels.profiling import Example
from qwen36_lab.pricing import alternatives, gdn_cte
from qwen36_lab.pricing.gdn_cte_errors import DTYPES, errors
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.provenance import provenance

from ..interpreter import require_interpreter

TOKENS, TILE = 512, 128


@dataclass(frozen=True)
class Form:
    """One kernel at one size.

    Attributes:
        name: key in the results.
        example: kernel and arguments.
        calls: launches, one after another, that do the whole work.
        timeline: whether to keep its timeline and plot.
    """

    name: str
    example: Example
    calls: int = 1
    timeline: bool = False


def forms() -> list[Form]:
    """Everything that is priced."""
    inputs = examples.prefill(TOKENS).args[:6]
    chunks = TOKENS // 64
    return [
        Form("prefill_fused", examples.prefill(TOKENS), timeline=True),
        # As graphs call it: any chunk may be followed by a checkpoint, the call says which are.
        Form("prefill_in_a_graph", examples.prefill(TOKENS, every=True), timeline=True),
        Form("prefill_in_a_graph_checkpoint_at_the_end", examples.prefill(TOKENS, (chunks,), every=True)),
        Form("prefill_in_a_graph_checkpoint_inside_the_last_tile", examples.prefill(TOKENS, (chunks - 1,), every=True)),
        Form("prefill_in_a_graph_two_checkpoints", examples.prefill(TOKENS, (chunks // 2 - 1, chunks - 1), every=True)),
        Form(
            "prefill_in_a_graph_checkpoint_every_chunk",
            examples.prefill(TOKENS, tuple(range(1, chunks + 1)), every=True),
        ),
        Form("prefill_fused_1024_tokens", examples.prefill(2 * TOKENS)),
        Form("prefill_fused_float32", examples.prefill(TOKENS, dtype=np.float32)),
        Form("prefill_one_chunk_a_call", examples.chunk(), calls=TOKENS // TILE * examples.HEADS),
        Form("prefill_32_leaf_doubling", Example(alternatives.prefill_by_doubling, inputs), timeline=True),
        Form("prefill_row_by_row", Example(alternatives.prefill_by_rows, inputs)),
        Form("prefill_row_by_row_heads_together", Example(alternatives.prefill_by_rows_together, inputs)),
        Form("decode_batch_1", examples.decode(1), timeline=True),
        Form("decode_batch_8", examples.decode(8), timeline=True),
        Form("decode_batch_1_three_drafts", examples.decode(1, 4)),
        # As graphs call it, any token may be followed by a checkpoint; here by none, and by one in every sequence.
        Form("decode_in_a_graph_batch_1", examples.decode(1, checkpoints=0)),
        Form("decode_in_a_graph_batch_8", examples.decode(8, checkpoints=0)),
        Form("decode_in_a_graph_batch_1_checkpoint", examples.decode(1, checkpoints=1)),
        Form("decode_in_a_graph_batch_8_checkpoints", examples.decode(8, checkpoints=8)),
        # Of the most that a round of speculation is: a token and drafts, behind as many drafts that were right.
        *(
            Form(f"verify_batch_{batch}_{drafts}_drafts", examples.verify(batch, 1 + drafts))
            for batch in (1, 8)
            for drafts in (1, 3, 4)
        ),
        Form("verify_batch_8_3_drafts_checkpoint", examples.verify(8, 4, 1)),
        Form("attention_512_tokens_over_3584", examples.attention(512, 3584)),
        Form("attention_decode_over_4096", examples.attention(1, 4096)),
        Form("attention_decode_over_4096_batch_8", examples.attention(1, 4096, batch=8)),
        Form("fp8_mlp_1_token", examples.mlp(1)),
        Form("fp8_mlp_512_tokens", examples.mlp(512)),
        Form("causal_conv1d", examples.conv()),
        Form("causal_conv1d_step_batch_8", examples.conv_step()),
        Form("causal_conv1d_step_batch_1", examples.conv_step(1)),
        *(
            Form(f"causal_conv1d_verify_batch_{batch}_{drafts}_drafts", examples.conv_verify(batch, 1 + drafts))
            for batch in (1, 8)
            for drafts in (1, 3, 4)
        ),
        Form("gated_rms_norm", examples.norm()),
        Form("qk_l2norm", examples.l2norm()),
        Form("state_copy", examples.copy()),
    ]


def price(form: Form, out: Path, prices: PriceList) -> Report:
    """Run one form, keep what it says, print a line."""
    _, report = profile(form.example.kernel, *form.example.args, prices=prices, **form.example.kwargs)
    report.name = form.name
    if form.timeline:
        report.to_chrome_trace(out / f"{form.name}.trace.json")
        report.plot(out / f"{form.name}.png")
    low, high = report.range_us["reordered_us"][0], report.range_us["time_us"][1]
    busy = "  ".join(f"{k} {report.busy_us.get(k, 0.0):7.2f}" for k in ("tensor", "vector", "scalar", "gpsimd", "dma"))
    print(
        f"{form.name:<44}{report.time_us * form.calls:>10.2f} us   reordered {report.reordered_us * form.calls:>9.2f}"
        f"   {low * form.calls:>8.2f} to {high * form.calls:>9.2f}"
        f"   roofline {report.roofline_us * form.calls:>8.2f} by {report.roofline_by:<7} busy: {busy}"
        + (f"   ({form.calls} calls)" if form.calls > 1 else "")
    )
    return report


def bars(us: dict[str, float], fused: Report) -> list[dict[str, object]]:
    """The bars with the modelled figure beside each."""
    base, graph = us["prefill_fused"], us["prefill_in_a_graph"]
    busy = max(fused.busy_us["tensor"], fused.busy_us["vector"]) / fused.time_us
    one, eight = us["decode_in_a_graph_batch_1"], us["decode_in_a_graph_batch_8"]
    rows = [
        ("fused prefill, us", base, "<=", 70.0),
        ("fused prefill, us (aim)", base, "<=", 55.0),
        ("row by row / fused, x", us["prefill_row_by_row"] / base, ">=", 20.0),
        ("32-leaf doubling / fused, x", us["prefill_32_leaf_doubling"] / base, ">=", 1.0),
        ("busier of TensorE and VectorE, share of the time", busy, ">=", 0.6),
        ("decode, batch 1, us", us["decode_batch_1"], "<=", 10.0),
        ("decode, batch 8 / batch 1, x", us["decode_batch_8"] / us["decode_batch_1"], "<=", 3.5),
        (
            "a checkpoint in 64 decoded tokens adds, batch 1",
            (us["decode_in_a_graph_batch_1_checkpoint"] / one - 1) / 64,
            "<=",
            0.03,
        ),
        (
            "a checkpoint in 64 decoded tokens adds, batch 8",
            (us["decode_in_a_graph_batch_8_checkpoints"] / eight - 1) / 64,
            "<=",
            0.03,
        ),
        ("a checkpoint at the end adds", us["prefill_in_a_graph_checkpoint_at_the_end"] / graph - 1, "<=", 0.03),
        (
            "a checkpoint inside the last tile adds",
            us["prefill_in_a_graph_checkpoint_inside_the_last_tile"] / graph - 1,
            "<=",
            0.03,
        ),
        ("two checkpoints add", us["prefill_in_a_graph_two_checkpoints"] / graph - 1, "<=", 0.03),
        ("attention, 1 token over 4,096, us", us["attention_decode_over_4096"], "<=", 30.0),
        ("attention, 512 tokens over 3,584, us", us["attention_512_tokens_over_3584"], "<=", 120.0),
    ]
    return [
        {"what": what, "modelled": value, "bar": f"{sign} {bar:g}",
         "met": value <= bar if sign == "<=" else value >= bar}
        for what, value, sign, bar in rows
    ]  # fmt: skip


LEAST = 2.0
"""How many times the fused prefill's time AWS's kernel is to take."""


def beside_library(checkout: Path, prices: PriceList) -> dict[str, object]:
    """AWS's chunked prefill beside the fused one at the same size, priced by one list; prints what it finds."""
    schur = gdn_cte.load(checkout / "src" / "nkilib_src")
    sizes = (("bfloat16", TOKENS), ("bfloat16", 2 * TOKENS), ("float32", TOKENS))
    priced: list[dict[str, Any]] = [
        {"dtype": dtype, "tokens": tokens} | gdn_cte.compare(gdn_cte.traces(schur, tokens, DTYPES[dtype][1]), prices)
        for dtype, tokens in sizes
    ]
    judged = []
    for found in priced:
        size = f"{found['dtype']}, {found['tokens']} tokens"
        for launch, us in found["us"]["centre"].items():
            print(f"{size}, {launch:<12}" + "   ".join(f"{order} {us[order]:8.2f} us" for order in gdn_cte.ORDERS))
        for what, order, ratio in ((w, o, r) for w, orders in found["ratios"].items() for o, r in orders.items()):
            text = f"AWS's schur kernel / fused prefill, {size}, {what}, {order}, x"
            (low, high), met = ratio["likely"], ratio["centre"] >= LEAST
            verdict = ""
            if (found["dtype"], found["tokens"]) == sizes[0]:  # what is served, and what the bar is for
                verdict = "met" if met else "NOT MET"
                row = {"what": text, "modelled": ratio["centre"], "range": (low, high), "bar": f">= {LEAST:g}"}
                judged.append(row | {"met": met})
            ends = f"{low:.2f} to {high:.2f}; all prices low {ratio['low']:.2f}, high {ratio['high']:.2f}"
            print(f"{verdict:<8}{text:<97}{ratio['centre']:>6.2f}   {ends}")
    wrong = errors(schur, TOKENS)
    for row in wrong:
        print(f"{row['inputs']:<60}{row['dtype']:<10}" + "   ".join(
            f"{k} {v['o']:.1e} {v['state']:.1e}" for k, v in row.items() if isinstance(v, dict)))  # fmt: skip
    return {
        "kernel": {"name": f"{gdn_cte.PACKAGE}.gdn_cte_schur", "sdk": gdn_cte.TARGET.sdk, "syntax_sha256": schur.code},
        "includes": gdn_cte.INCLUDES, "bars": judged, "sizes": priced,
        "errors": {"of": "o and the last state, largest, relative to the largest value, by the fp64 recurrence",
                   "families": wrong},
    }  # fmt: skip


def plot(us: dict[str, float], path: Path) -> None:
    """The prefill forms side by side, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [n for n in us if n.startswith("prefill") and "1024" not in n]
    figure = Figure(figsize=(9, 4.5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.barh(names, [us[n] for n in names])
    axes.bar_label(drawn, labels=[f"{us[n]:.0f}" for n in names], padding=3)
    axes.set_xscale("log")
    axes.set_xlim(right=3 * max(us[n] for n in names))
    axes.invert_yaxis()
    axes.set_xlabel("us, modelled, one physical core, 512 tokens of 6 value heads")
    figure.tight_layout()
    figure.savefig(path)


def kernels(
    out: Annotated[Path, typer.Option(help="Folder for kernels.json, timelines and plots.")] = Path(
        "profile_artifacts/kernels"
    ),
    prices: Annotated[Path | None, typer.Option(help="Price list (JSON) in place of the published one.")] = None,
    nki_library: Annotated[
        Path | None, typer.Option(help="Checkout of nki-library, whose gdn_cte is priced as well.")
    ] = None,
) -> None:
    """Modelled price of the kernels on one physical Trainium2 core, against the bars and against other solves."""
    if prices is not None and not prices.is_file():
        raise ConfigError("prices", str(prices), "no such file", "Give what qwen36 kernels calibrate wrote")
    if nki_library is not None and not nki_library.is_dir():
        raise ConfigError("nki-library", str(nki_library), "no such folder", "Give a checkout of nki-library")
    require_interpreter("bench kernels")
    listed = PriceList.load(prices) if prices else PriceList()
    out.mkdir(parents=True, exist_ok=True)
    print("Modelled, not measured.")
    origin = provenance("modelled").as_dict()  # before anything is written, which would be a change to the sources
    reports = {form.name: (form, price(form, out, listed)) for form in forms()}
    us = {name: form.calls * report.time_us for name, (form, report) in reports.items()}
    judged = bars(us, reports["prefill_fused"][1])
    for row in judged:
        print(f"{'met    ' if row['met'] else 'NOT MET'} {row['what']:<52}{row['modelled']:>10.4g}   bar {row['bar']}")
    result = {
        "provenance": origin,
        "bars": judged,
        "prices": listed.to_dict(),
        "total_us": us,
        "forms": {
            name: {"calls": form.calls, "note": form.example.note} | report.to_dict()
            for name, (form, report) in reports.items()
        },
    }
    (out / "kernels.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    plot(us, out / "prefill.png")
    print(f"wrote {out.name}/kernels.json, prefill.png, and timelines")
    if nki_library is not None:
        beside = {"provenance": origin, "prices": listed.name} | beside_library(nki_library, listed)
        (out / "gdn_cte.json").write_text(json.dumps(beside, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {out.name}/gdn_cte.json")
