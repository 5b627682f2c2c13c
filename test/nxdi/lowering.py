"""Lowers every kind of graph to HLO with real torch_xla, looks at it, runs it on XLA's CPU backend, and compares.

    python test/nxdi/lowering.py --sources CLONES --checkpoint assets/demo-checkpoint --out profile_artifacts/hlo

Needs torch_xla 2.9 with a torch of the same release, which this project does not install: it is run by a Python of its
own (README.md says how to make one). Nothing here is neuronx-cc, and nothing says anything about speed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[2]
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA compiles for a minute a graph otherwise; how fast the graphs run is of no interest."""
DUMPS = tempfile.mkdtemp(prefix="hlo-")
os.environ.update(PJRT_DEVICE="CPU", NXD_CPU_MODE="1")
os.environ["XLA_FLAGS"] = f"--xla_dump_to={DUMPS} --xla_dump_hlo_as_text {FAST} {os.environ.get('XLA_FLAGS', '')}"
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch_xla  # noqa: E402  before the stand-ins, which take the place of what is not installed
import typer  # noqa: E402
from rig import custom_calls, stand_ins, work  # noqa: E402  NKI's interpreter among it

FORBIDDEN = {
    "custom-call": "a call that the compiler does not know",
    "while": "a loop",
    "conditional": "a branch on data",
    "infeed": "host data inside the graph",
    "outfeed": "host data inside the graph",
    "send": "host data inside the graph",
    "recv": "host data inside the graph",
    "rng": "a random state",
    "rng-bit-generator": "a random state",
    "rng-get-and-update-state": "a random state",
    "get-dimension-size": "a dynamic shape",
    "set-dimension-size": "a dynamic shape",
    "dynamic-reshape": "a dynamic shape",
}
"""Operations that no graph may have, and what they would mean."""

INSTRUCTION = re.compile(r"= (?:\([^=]*?\)|\S+) ([a-z][a-z0-9\-]*)\(")
OPTIMISED = "*cpu_after_optimizations.txt"
ALIAS = re.compile(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)")


def count_operations(hlo: str) -> Counter[str]:
    """How often each operation occurs, in all computations of the module."""
    return Counter(INSTRUCTION.findall(hlo))


def problems(hlo: str) -> list[str]:
    """What the module has that no graph may have; kernels are no problem."""
    counts = count_operations(hlo)
    counts["custom-call"] -= hlo.count(f'custom_call_target="{custom_calls.PREFIX}')
    found = [f"{name}: {meaning}" for name, meaning in FORBIDDEN.items() if counts[name]]
    if re.search(r"\[[^\]]*<=\d", hlo):
        found.append("a bounded dynamic dimension")
    return found


def options(checkpoint_dtype: str, kv_cache_dtype: str, kernels: str, weights: str) -> Any:
    """Sizes of the graphs that are lowered."""
    from qwen36_neuron.graph.buckets import Buckets
    from qwen36_neuron.graph.options import GraphOptions

    buckets = Buckets.grid((128, 256), (256,), (256, 512))
    return GraphOptions(
        max_model_len=257,
        num_lanes=4,
        num_blocks=17,
        buckets=buckets,
        num_slots=3,
        dtype=checkpoint_dtype,
        decode_rows=(1,),
        max_drafts=3,
        max_proposals=2,
        kv_cache_dtype=kv_cache_dtype,
        kernels=kernels,
        weights=weights,
    )


def application(checkpoint: Path, *of_options: str) -> Any:
    """The NxDI application, not loaded; scales of FP8 keys and values are 1/32, as the states are small."""
    from qwen36_neuron.checkpoint.kv_scales import KVScales, save_kv_scales
    from qwen36_neuron.config import ModelConfig
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    config = Qwen36InferenceConfig.from_checkpoint(checkpoint, options(*of_options))
    app = NeuronQwen36ForCausalLM(str(checkpoint), config)
    if app.options.fp8_kv:
        model = ModelConfig.from_pretrained(checkpoint)
        scale = torch.full((model.num_kv_heads,), 1 / 32)
        same = dict.fromkeys((*model.attention_layers, model.num_layers), scale)
        app.kv_scales = Path(tempfile.mkdtemp()) / "kv_scales.safetensors"
        save_kv_scales(KVScales(same, same, "lowering"), model, app.kv_scales, {})
    return app


def lower(app: Any, wrapper: Any, index: int) -> dict[str, Any]:
    """Lower one graph and look at it; one of plain operations is run too, and compared with the module run eagerly."""
    laid = work.inputs(app, wrapper, index)
    example = wrapper.input_generator()[index]
    assert [t.shape for t in laid] == [t.shape for t in example], "the work does not fall into this bucket"
    with custom_calls.custom_calls() as calls:
        instance = wrapper.get_model_instance()
        instance.load_module()
        module, _ = instance.get(index)
        module.load_state_dict(app.rank_state_dict(0), strict=False)
        generator = torch.Generator().manual_seed(0)
        for state in module.kv_mgr.states():
            state.data.copy_(torch.randn(state.shape, generator=generator) * 0.1)
        with torch.no_grad():
            expected = [output.clone() for output in module(*laid)]
        module.to(torch_xla.device())
        module, aliases = instance.get(index)  # the states are other parameters now
        given = [tensor.to(torch_xla.device()) for tensor in laid]
        torch_xla.sync()
        with torch.no_grad():
            outputs = module(*given)
    found = look_at(module, given, outputs)
    found |= {
        "tag": wrapper.tag,
        "bucket": [*wrapper.neuron_config.buckets[index]],
        "rows": len(laid[0]),
        "inputs": [[*tensor.shape] for tensor in laid],
        "outputs": len(outputs),
        "states": len(aliases),
    }
    if calls.results:  # nothing here runs them on an XLA device
        hlo = torch_xla._XLAC._get_xla_tensors_hlo(list(outputs))
        names = {id(p): name for name, p in module.named_parameters()}
        places = {names[id(state)]: place for state, place in aliases.items()}
        return found | {
            "kernels": dict(sorted(custom_calls.kernels(hlo).items())),
            "launched": dict(sorted(Counter(name for name, _ in calls.results).items())),
            "plain": dict(sorted(custom_calls.plain_operations(hlo).items())),
            "written_by": dict(sorted(custom_calls.writers(hlo, places).items())),
        }
    errors, aliased = execute(outputs, expected, aliases)
    agree = torch.equal(outputs[0].cpu(), expected[0])
    return found | {"aliased": aliased, "relative_error": errors, "tokens_agree": agree}


def look_at(module: torch.nn.Module, given: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> dict[str, Any]:
    """What the graph of the outputs is made of, and what of the module it does not read."""
    states = [(name, p) for name, p in module.named_parameters() if name.startswith("kv_mgr.")]
    weights = [(name, p) for name, p in module.named_parameters() if not name.startswith("kv_mgr.")]
    hlo = torch_xla._XLAC._get_xla_tensors_hlo(list(outputs))
    ids, data = torch_xla._XLAC._get_tensors_xla_device_data_node(list(outputs))
    used = set(ids)

    def unused(tensors: Sequence[tuple[str, torch.Tensor]]) -> list[str]:
        return [name for name, tensor in tensors if torch_xla._XLAC._xla_get_tensor_id(tensor) not in used]

    places = [(f"input {place}", tensor) for place, tensor in enumerate(given)]
    known = {torch_xla._XLAC._xla_get_tensor_id(tensor) for _, tensor in (*states, *weights, *places)}
    lifted = [tuple(tensor.shape) for number, tensor in zip(ids, data, strict=True) if number not in known]
    return {
        "parameters": {"inputs": len(given), "states": len(states), "weights": len(weights), "lifted": len(lifted)},
        "unused": unused([*places, *states, *weights]),
        "constants": sorted(shape for shape in lifted if shape),
        "problems": problems(hlo),
        "operations": dict(sorted(count_operations(hlo).items())),
        "instructions": sum(count_operations(hlo).values()),
    }


def execute(
    outputs: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    aliases: Mapping[Any, int],
) -> tuple[dict[str, float], int]:
    """Run the graph with its states written back, as on a device.

    Returns:
        Largest errors, as parts of the largest value of the same tensor; how many outputs XLA gave a state's buffer.
    """
    before = set(Path(DUMPS).glob(OPTIMISED))
    with torch.no_grad():
        for state, place in aliases.items():
            state.copy_(outputs[place])
    torch_xla.sync()
    headers = [file.read_text().split("\n", 1)[0] for file in set(Path(DUMPS).glob(OPTIMISED)) - before]
    aliased = max((len(ALIAS.findall(header)) for header in headers), default=0)
    by_place = {place: state for state, place in aliases.items()}

    def error(place: int) -> float:
        found = by_place[place] if place in by_place else outputs[place]
        return float((found.cpu().float() - expected[place].float()).abs().max() / expected[place].float().abs().max())

    return {"logits": error(1), "states": max(error(place) for place in by_place)}, aliased


def commits(sources: Path) -> dict[str, str]:
    """Which commit of each clone was used."""

    def of(folder: Path) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()

    return {name.split("/")[0]: of(sources / name.split("/")[0]) for name in stand_ins.SOURCES}


def main(
    sources: Annotated[Path, typer.Option(help="Folder with the clones of NxD, NxDI and nki-library.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write hlo.json to.")],
    dtype: Annotated[str, typer.Option(help="float32, to compare closely, or bfloat16.")] = "float32",
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, or fp8.")] = "auto",
    kernels: Annotated[str, typer.Option(help="torch, nki, or fused, which wants bfloat16.")] = "torch",
    weights: Annotated[str, typer.Option(help="bf16, or the number format that the checkpoint is in.")] = "bf16",
    first_of_each: Annotated[
        bool,
        typer.Option(help="One graph of each kind: no prefix, a prefix, four rows, one row, the same for drafts."),
    ] = False,
) -> None:
    """Lower every graph and write what was found."""
    stand_ins.install(sources)
    from neuronx_distributed.parallel_layers.parallel_state import initialize_model_parallel

    from qwen36_neuron.provenance import provenance

    rendezvous = Path(tempfile.mkdtemp()) / "store"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", world_size=1, rank=0)
    initialize_model_parallel(tensor_model_parallel_size=1, skip_collective_init=True)
    app = application(checkpoint, dtype, kv_cache_dtype, kernels, weights)
    graphs = []
    for wrapper in app.models:
        pairs = wrapper.neuron_config.buckets
        each = [0, 1] if wrapper.is_prefill else [4, 6] if wrapper.drafts else [0, 2]  # of two drafts, not one
        for index in each if first_of_each else range(len(pairs)):
            graphs.append(lower(app, wrapper, index))
            shown = ("tag", "bucket", "instructions", "relative_error", "kernels", "problems")
            print(json.dumps({name: graphs[-1][name] for name in shown if name in graphs[-1]}), flush=True)
    packages = {"torch": torch.__version__, "torch_xla": torch_xla.__version__}
    result = {
        "provenance": provenance("measured").as_dict(),
        "sources": commits(sources),
        "packages": packages,
        "checkpoint": checkpoint.name,
        "options": app.options.to_json(),
        "graphs": graphs,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "hlo.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
