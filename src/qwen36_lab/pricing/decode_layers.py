"""Modelled prices of the fused kernels of a decode step: one rank of four of Qwen3.6-27B on two physical cores.

Those of a mixture of experts are of Qwen3.6-35B-A3B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from nki_kernels import examples, mixture_examples
from nki_kernels.interpreter import PriceList, Report, profile
from nki_kernels.profiling import Example

ROWS = ((1, 1), (1, 4), (8, 1), (8, 5))
"""Sequences and new tokens of each: 1, 4, 8 and 40 rows."""

HELD = (1024, 8192, 32768)
"""Tokens that each sequence has in the cache."""

BY_ROWS: dict[str, Callable[[int, bool], Example]] = {
    "norm_projection": examples.input_projection, "gated_norm_projection": examples.output_projection,
    "decode_mlp": examples.mlp_step, "decode_mlp_projection": examples.mlp_and_input,
    "decode_experts": mixture_examples.experts,
}  # fmt: skip
"""Kernels to which a row is a row."""

HEAD, VOCABULARY = "decode_head", 62080
"""The head, and a rank's part of the vocabulary."""

MIXER = "decode_delta_net"
"""Of one token a sequence."""

ROUTER = "decode_router"
"""Its weight is bfloat16 in every checkpoint."""

BOUND = 0.7
"""The part of the time that one resource is busy for from which on it, and not latency, binds."""


@dataclass(frozen=True)
class Layer:
    """One kernel at one size.

    Attributes:
        kernel: What runs.
        weights: bfloat16 or FP8.
        sequences, tokens: Rows are their product.
        held: Tokens in each sequence's cache; 0: the kernel reads none.
        make: Its arguments.
    """

    kernel: str
    weights: str
    sequences: int
    tokens: int
    held: int
    make: Callable[[], Example]


def layers() -> Iterator[Layer]:
    """Everything that is priced."""
    for weights in ("FP8", "bfloat16"):
        fp8 = weights == "FP8"
        for sequences, tokens in ROWS:
            for held in HELD:
                yield Layer(
                    "decode_attention", weights, sequences, tokens, held,
                    partial(examples.attention_layer, tokens, held, sequences, fp8),
                )  # fmt: skip
            for kernel, make in BY_ROWS.items():
                yield Layer(kernel, weights, sequences, tokens, 0, partial(make, sequences * tokens, fp8))
            if tokens == 1:
                yield Layer(MIXER, weights, sequences, 1, 0, partial(examples.delta_net, sequences, fp8))
            yield Layer(HEAD, weights, sequences, tokens, 0, partial(examples.head, sequences * tokens, fp8))
    for sequences, tokens in ROWS:
        make_router = partial(mixture_examples.router, sequences * tokens)
        yield Layer(ROUTER, "bfloat16", sequences, tokens, 0, make_router)


def price(layer: Layer, prices: PriceList) -> dict[str, Any]:
    """A row: us from the cheapest prices reordered, at the centre in program order, to the dearest; what binds."""
    report = _run(layer.make(), prices)
    return _named(layer) | figures(report, prices) | {"binds": binds(figures(report, prices))}


def price_head(layer: Layer, prices: PriceList) -> dict[str, Any]:
    """The same of the head, each of whose blocks of tokens takes as long as another: from an eighth and a quarter."""
    rows, fp8 = layer.sequences * layer.tokens, layer.weights == "FP8"
    one, two = (
        figures(_run(examples.head(rows, fp8, tokens=VOCABULARY // part), prices), prices) for part in (8, 4)
    )  # fmt: skip
    grown = {
        "us": {k: v + 7 * (two["us"][k] - v) for k, v in one["us"].items()},
        "busy_us": {k: v + 7 * (two["busy_us"][k] - v) for k, v in one["busy_us"].items()},
        "hbm_us": one["hbm_us"] + 7 * (two["hbm_us"] - one["hbm_us"]),
        "exchanges_us": {}, "sbuf_kib": two["sbuf_kib"],
    }  # fmt: skip
    return _named(layer) | grown | {"binds": binds(grown), "extrapolated": True}


def _named(layer: Layer) -> dict[str, Any]:
    return {
        "kernel": layer.kernel, "weights": layer.weights, "sequences": layer.sequences, "tokens": layer.tokens,
        "held": layer.held,
    }  # fmt: skip


def _run(example: Example, prices: PriceList) -> Report:
    _, report = profile(example.kernel, *example.args, prices=prices, world=example.ranks, **example.kwargs)
    return report


def figures(report: Report, prices: PriceList) -> dict[str, Any]:
    """us in all, of HBM's bytes for a core at the list's rate, of engines and of exchanges; SBUF's peak in KiB."""
    times = report.range_us
    return {
        "us": {"low": times["reordered_us"][0], "centre": report.time_us, "high": times["time_us"][1]},
        "hbm_us": (report.hbm_read + report.hbm_write) / report.lnc / prices.costs().hbm_bytes_ns / 1e3,
        "busy_us": report.busy_us, "exchanges_us": {e.op: e.us for e in report.exchanges},
        "sbuf_kib": report.sbuf_peak // 1024,
    }  # fmt: skip


def binds(row: dict[str, Any]) -> str:
    """What is busy longest until the exchange between ranks, or latency where nothing is busy for most of that."""
    names = {"DMA": "dma", "TensorE": "tensor", "VectorE": "vector"}
    busy = {"HBM": row["hbm_us"]} | {name: row["busy_us"][engine] for name, engine in names.items()}
    most, alone = max(busy, key=lambda name: busy[name]), row["exchanges_us"].get("all_reduce", 0.0)
    return most if busy[most] > BOUND * (row["us"]["centre"] - alone) else "latency"
