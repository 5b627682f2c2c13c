"""A quantised checkpoint beside the same weights in bfloat16 and in fp32, on this CPU, in one go.

A model of random weights is written in every form, opened in all of them, and decodes in turns, so that all see the
same machine. Bars: resident weights at most 0.3 of fp32's, a step at batch 1 no slower than fp32's.

    python scripts/bench_formats.py --out profile_artifacts/formats
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from qwen36_lab.formats import Form, fp8, int8, write
from qwen36_neuron.checkpoint.maker import CheckpointSpec, make_checkpoint
from qwen36_neuron.provenance import provenance
from qwen36_neuron.runtime import Output, Row, RuntimeConfig, Step, open_runtime
from qwen36_neuron.runtime.fused import FusedRuntime
from qwen36_neuron.runtime.held import held_bytes

GROUP, CONTEXT = 128, 64

FORMS = {
    "fp32": Form(None, lambda weight: {"weight": weight.float() * 1.0001}),
    "bf16": Form(None, lambda weight: {"weight": weight}),
    "INT8, groups of 128": int8(GROUP),
    "INT8, channels": int8(None),
    "block FP8": fp8(vocabulary=False),
    "block FP8 and vocabulary": fp8(vocabulary=True),
}
"""What is no bfloat16 is held in fp32: the fp32 side's numbers are a ten-thousandth off."""


class Side:
    """One form, opened."""

    def __init__(self, folder: Path) -> None:
        opened = open_runtime(RuntimeConfig(folder, kernels="fused", num_lanes=8, num_blocks=129, max_model_len=1024))
        assert isinstance(opened, FusedRuntime)
        self.runtime = opened
        self.runtime.warm_up()
        self.step(1)
        self.prefill()

    def step(self, batch: int) -> float:
        """Seconds of a decode step of so many sequences."""
        rows = [Row(str(n), n, [7], CONTEXT, (2 * n, 2 * n + 1), output=Output.TOKEN) for n in range(1, batch + 1)]
        for row in rows:
            self.runtime.run(Step((Row(row.request_id, row.lane, [5] * CONTEXT, 0, row.blocks),), (row.lane,)))
        start = time.perf_counter()
        self.runtime.run(Step(tuple(rows)))
        took = time.perf_counter() - start
        self.runtime.run(Step((), released_lanes=tuple(row.lane for row in rows)))
        return took

    def prefill(self) -> float:
        """Seconds of a prompt of 512 tokens."""
        start = time.perf_counter()
        self.runtime.run(Step((Row("prompt", 8, [5] * 512, 0, range(20, 29)),)))
        took = time.perf_counter() - start
        self.runtime.run(Step((), released_lanes=(8,)))
        return took

    def resident(self) -> int:
        """Bytes of weights in memory; a plain checkpoint's lie there as loaded and in panels."""
        program = self.runtime._program
        panels = [
            weight for layer in program.layers for weight in (layer.in_proj, layer.out_proj, layer.gate_up, layer.down)
        ]
        held = held_bytes(self.runtime.model)
        return held + sum(w.packed.nbytes for w in (*panels, program.head) if w.tensor is not None)


def main(
    hidden: Annotated[int, typer.Option(help="Hidden size.")] = 1024,
    layers: Annotated[int, typer.Option(help="Layers.")] = 8,
    rounds: Annotated[int, typer.Option(min=3, help="Steps of every form.")] = 15,
    out: Annotated[Path, typer.Option(help="Folder for formats.json.")] = Path("profile_artifacts/formats"),
) -> None:
    """Print memory and times of every form, and write formats.json."""
    spec = CheckpointSpec(layers, hidden, 3 * hidden + hidden // 2, hidden // 256, 2, hidden // 128, 3 * hidden // 128)
    with tempfile.TemporaryDirectory() as folder:
        source = make_checkpoint(Path(folder) / "source", spec)
        for name, form in FORMS.items():
            write(source, Path(folder) / name, form)
        sides = {name: Side(Path(folder) / name) for name in FORMS}
        times: dict[str, dict[str, list[float]]] = {name: {"1": [], "8": [], "prompt": []} for name in FORMS}
        for turn in range(rounds):
            for name, side in sides.items():
                times[name]["1"].append(side.step(1))
                times[name]["8"].append(side.step(8))
                if turn % 3 == 0:
                    times[name]["prompt"].append(side.prefill())
        parameters = sides["fp32"].runtime.config.model_config().num_parameters()
        results = {name: row(side, times[name], times["fp32"], parameters) for name, side in sides.items()}
    table = Table("form", "resident MiB", "of 4 bytes a number", "step ms", "of fp32's", "8 rows ms", "prompt ms")
    for name, found in results.items():
        table.add_row(name, *(f"{found[key]:.3g}" for key in COLUMNS))
    Console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "provenance": provenance("measured").as_dict(),
        "what": "measured on CPU",
        "command": ["python", *sys.argv],
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "forms": results,
    }
    (out / "formats.json").write_text(json.dumps(content, indent=2) + "\n")


COLUMNS = ("resident_mib", "resident_of_fp32", "step_ms", "step_of_fp32", "step_8_ms", "prompt_512_ms")


def row(side: Side, own: dict[str, list[float]], other: dict[str, list[float]], parameters: int) -> dict[str, float]:
    """The figures of one form: medians, and the median of each turn's ratio to fp32."""
    ratios = {key: statistics.median(a / b for a, b in zip(own[key], other[key], strict=True)) for key in own}
    return {
        "resident_mib": side.resident() / 2**20,
        "resident_of_fp32": side.resident() / (4 * parameters),
        "step_ms": 1e3 * statistics.median(own["1"]),
        "step_of_fp32": ratios["1"],
        "step_8_ms": 1e3 * statistics.median(own["8"]),
        "step_8_of_fp32": ratios["8"],
        "prompt_512_ms": 1e3 * statistics.median(own["prompt"]),
        "prompt_512_of_fp32": ratios["prompt"],
    }


if __name__ == "__main__":
    typer.run(main)
