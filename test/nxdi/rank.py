"""One rank of a tensor-parallel run: python rank.py SOURCES CHECKPOINT RANKS RANK RENDEZVOUS RESULT DTYPE KERNELS.

Where kernels sum over the ranks, each process's interpreter meets the others'.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["NXD_CPU_MODE"] = "1"
sources, checkpoint, ranks, rank, rendezvous, result, dtype, kernels = sys.argv[1:]
import nki_kernels  # noqa: E402, F401  # brings NKI's interpreter, before anything else stands in for NKI

if sources:
    from rig import stand_ins

    stand_ins.install(Path(sources))

from typing import Any  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from neuronx_distributed.parallel_layers.parallel_state import initialize_model_parallel  # noqa: E402
from rig.container import CpuContainer  # noqa: E402
from rows import before_drafts, drafted, rows  # noqa: E402

from nki_kernels.interpreter import Across, running_across  # noqa: E402
from qwen36_neuron.graph.buckets import Buckets  # noqa: E402
from qwen36_neuron.graph.options import GraphOptions  # noqa: E402
from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM  # noqa: E402
from qwen36_neuron.nxdi.config import Qwen36InferenceConfig  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    count, mine = int(ranks), int(rank)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", world_size=count, rank=mine)
    initialize_model_parallel(tensor_model_parallel_size=count, skip_collective_init=True)
    buckets = Buckets.grid((128, 256), (128, 512), (512,))
    settings: dict[str, Any] = {"max_drafts": 3, "max_proposals": 3, "logical_cores": 1}
    settings |= {"dtype": dtype, "kernels": kernels}
    options = GraphOptions(512, 2, 17, buckets, num_slots=2, tp_degree=count, **settings)
    app = NeuronQwen36ForCausalLM(checkpoint, Qwen36InferenceConfig.from_checkpoint(checkpoint, options))
    CpuContainer(app, mine)
    with running_across(Across(mine, count, every)):
        torch.save(run(app), result)


def every(brought: object) -> list[object]:
    """What every rank brings."""
    found: list[object] = [None] * int(ranks)
    dist.all_gather_object(found, brought)
    return found


def run(app: NeuronQwen36ForCausalLM) -> dict[str, torch.Tensor]:
    """All rows."""
    tokens = torch.randint(0, 4000, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    answers = [app.prefill(row) if len(row.tokens) > 1 else next(app.decode([row])) for row in rows(tokens)]
    logits = torch.cat([answer.logits.fetch() for answer in answers])
    found = {"tokens": torch.tensor([answer.token for answer in answers]), "logits": logits}
    made, behind = app.draft(before_drafts(tokens)), []
    for row, accepted, drafting in drafted(tokens):
        behind.append((next(app.verify([row], [accepted])), 1 + len(row.drafts)))
        made += app.draft([drafting])
    found["made"] = torch.tensor(made)
    found["drafted"] = torch.cat([torch.tensor(answer.tokens[:places]) for answer, places in behind])
    found["drafted logits"] = torch.cat([answer.logits.fetch()[:places] for answer, places in behind])
    return found


if __name__ == "__main__":
    main()
