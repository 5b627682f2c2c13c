"""Runs where NxDI can be imported, or its sources are at hand; see README.md."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SOURCES = os.environ.get("QWEN36_NXDI_SOURCES")
AVAILABLE = SOURCES is not None or importlib.util.find_spec("neuronx_distributed_inference") is not None

if not AVAILABLE:
    collect_ignore_glob = ["test_[!e]*.py"]  # all but test_enabled.py, which says so
else:
    os.environ.setdefault("NXD_CPU_MODE", "1")
    import nki_kernels  # noqa: F401  # brings NKI's interpreter, before anything else stands in for NKI

    if SOURCES is not None:
        from .rig import stand_ins

        stand_ins.install(Path(SOURCES))

BUCKETS = (128, 256, 512)


@pytest.fixture(scope="module")
def parallel_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """NxD's process groups, of one process. A vLLM engine that ends takes torch's groups with it."""
    import torch.distributed as dist
    from neuronx_distributed.parallel_layers.parallel_state import destroy_model_parallel, initialize_model_parallel

    rendezvous = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", world_size=1, rank=0)
    initialize_model_parallel(tensor_model_parallel_size=1, skip_collective_init=True)
    yield
    destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def make_options() -> Callable[..., Any]:
    """GraphOptions of the tests' artifact, with changes."""
    from qwen36_neuron.graph.buckets import Buckets
    from qwen36_neuron.graph.options import GraphOptions

    def make(**changes: Any) -> GraphOptions:
        settings: dict[str, Any] = {
            "max_model_len": 512,
            "num_lanes": 4,
            "num_blocks": 65,
            "num_slots": 4,
            "dtype": "float32",
            "buckets": Buckets.grid(BUCKETS, BUCKETS, BUCKETS),
        }
        return GraphOptions(**(settings | changes))

    return make


@pytest.fixture
def make_app(
    parallel_state: None, tiny_checkpoint: Path, demo_checkpoint: Path, make_options: Callable[..., Any]
) -> Callable[..., Any]:
    """An application, not loaded. With several ranks it is of the larger checkpoint, whose heads can be split."""
    from qwen36_neuron.nxdi.application import NeuronQwen36ForCausalLM
    from qwen36_neuron.nxdi.config import Qwen36InferenceConfig

    def make(**changes: Any) -> NeuronQwen36ForCausalLM:
        checkpoint = demo_checkpoint if changes.get("tp_degree", 1) > 1 else tiny_checkpoint
        config = Qwen36InferenceConfig.from_checkpoint(checkpoint, make_options(**changes))
        return NeuronQwen36ForCausalLM(str(checkpoint), config)

    return make


@pytest.fixture
def load(make_app: Callable[..., Any]) -> Callable[..., Any]:
    """A container that an application has been loaded into."""
    from .rig.container import CpuContainer

    def load(**changes: Any) -> CpuContainer:
        return CpuContainer(make_app(**changes))

    return load


@pytest.fixture
def artifact(
    parallel_state: None,
    tiny_checkpoint: Path,
    make_options: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder like a compiled one, of the tests' options."""
    from .support import save_artifact

    save_artifact(tiny_checkpoint, make_options(), tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def cpu(tiny_checkpoint: Path) -> Any:
    """The CPU runtime of the same sizes."""
    from qwen36_neuron.runtime import RuntimeConfig, open_runtime

    return open_runtime(
        RuntimeConfig(tiny_checkpoint, max_model_len=512, num_lanes=4, num_blocks=65, num_slots=4, kernels="torch")
    )


@pytest.fixture
def tokens() -> list[int]:
    """A sequence as long as the longest allowed."""
    ids: list[int] = torch.randint(0, 4000, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    return ids
