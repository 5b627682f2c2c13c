"""From a checked profile and a checkpoint to a folder that a server can be started with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from nki_kernels.interpreter.install import real_nki_present

from ..checkpoint.conversion import FORMATS, Conversion
from ..checkpoint.fp8 import Scales
from ..checkpoint.kv_scales import FILE as KV_SCALES
from ..checkpoint.kv_scales import KVScales, load_kv_scales, save_kv_scales
from ..checkpoint.quantiser import MANIFEST as FP8_MANIFEST
from ..checkpoint.quantiser import Quantiser, read_manifest, verify
from ..checkpoint.weight_format import WeightFormat
from ..devices import NeuronKernels
from ..errors import ConfigError
from ..graph.stages import StageKernels
from .check import Checked, check
from .manifest import weights_format, write_manifest

SDK = ("neuronxcc", "torch_neuronx", "neuronx_distributed", "neuronx_distributed_inference")
"""Modules of Neuron's SDK that compiling needs."""


def missing_sdk() -> list[str]:
    """Those that cannot be imported here."""
    return [name for name in SDK if find_spec(name) is None]


def require_sdk(kernels: NeuronKernels | StageKernels) -> None:
    """Raises ConfigError unless graphs with these kernels can be compiled here."""
    if kernels != "torch" and not real_nki_present():
        problem = "the NKI compiler is not installed, and what is interpreted cannot be compiled into a graph"
        raise ConfigError("kernels", str(kernels), problem, "Run this on a Neuron image with nki, or use kernels=torch")
    missing = missing_sdk()
    if missing:
        raise ConfigError(
            "compile",
            f"without {', '.join(missing)}",
            "graphs are compiled with Neuron's SDK, which is not installed here",
            "Run this on a Neuron image, or use --dry-run or --weights-only",
        )


def quantiser(source: Path, target: Path, weights: WeightFormat, scales: Scales | None) -> Quantiser | None:
    """What has to be done for a checkpoint in `weights`; None if `source` is one already.

    Raises:
        ConfigError: `source` was converted to something else, or is published in a format that is not served.
    """
    if weights_format(source) == weights:
        return None
    if (source / FP8_MANIFEST).is_file():
        raise ConfigError("model", str(source), f"is {weights_format(source)}, not {weights}", "Give the original")
    return Quantiser(Conversion(source, FORMATS[weights], scales), target)


def convert(work: Quantiser, progress: Callable[[int], None]) -> Path:
    """Carry out a conversion, or find it done; gives the checkpoint's folder.

    Raises:
        ConfigError: a finished conversion is damaged or is of something else, or a new one fails.
    """
    if (work.target / FP8_MANIFEST).is_file():
        if read_manifest(work.target)["identity"] != work.identity:
            raise ConfigError("out", str(work.target), "holds another conversion", "Give another folder, or remove it")
        damaged = verify(work.target)
        if damaged:
            raise ConfigError("out", str(work.target), f"has damaged files: {', '.join(damaged)}", "Remove the folder")
        progress(work.total_bytes)
        return work.target
    work.run(progress)
    return work.target


def compile_artifact(checked: Checked, checkpoint: Path, artifact: Path, kv_scales: KVScales | None = None) -> Path:
    """Compile every graph of the profile, and write the manifest beside them; gives the manifest.

    Args:
        kv_scales: of FP8 keys and values; None for those in the checkpoint's folder. They are put beside the graphs.
    Raises:
        ConfigError: the SDK is not installed, the profile cannot be compiled, or the checkpoint is in another format.
    """
    require_sdk(checked.profile.options.kernels)
    profile = checked.profile
    found = weights_format(checkpoint)
    if found != profile.weights:
        raise ConfigError("model", str(checkpoint), f"is {found}", f"Convert it to {profile.weights}")
    if profile.weights is not WeightFormat.BF16:
        scales = read_manifest(checkpoint)["scales"]
        profile = replace(profile, options=replace(profile.options, scales=scales))
        checked = check(profile, checked.model)
    checked.require()
    from ..nxdi.application import NeuronQwen36ForCausalLM
    from ..nxdi.config import Qwen36InferenceConfig

    config = Qwen36InferenceConfig.from_checkpoint(checkpoint, profile.options)
    artifact.mkdir(parents=True, exist_ok=True)
    app = NeuronQwen36ForCausalLM(str(checkpoint), config)
    if profile.options.fp8_kv:
        scales = kv_scales or load_kv_scales(checkpoint, checked.model, profile.options.draft_layer)
        app.kv_scales = artifact / KV_SCALES
        save_kv_scales(scales, checked.model, app.kv_scales, {"source": scales.source})
    app.compile(str(artifact))
    return write_manifest(checked, checkpoint, artifact)
