"""Stand-ins for the Neuron packages that have no public source, so that NxD's and NxDI's Python can be imported.

Anything below the packages in `PACKAGES` imports as a module whose every attribute exists. The few functions whose
results matter have a CPU meaning, in `MEANINGS`. Real packages win: the finder is asked last.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers.generation

SOURCES = ("neuronx-distributed/src", "neuronx-distributed-inference/src", "nki-library/src/nkilib_src")
"""Where the packages are below the folder that the three repositories were cloned into."""

PACKAGES = ("torch_xla", "torch_neuronx", "libneuronxla", "neuronxcc", "nki", "transformers.utils.fx")
"""Neuron's own, and a module that transformers 5 dropped. Each is taken from where it is installed, if it is."""

UNUSED = ("blobfile", "boto3", "botocore", "scipy", "tenacity")
"""For cloud storage and one kernel: imported by NxD and nkilib, reached by no test."""

DROPPED = ("SampleDecoderOnlyOutput", "SampleEncoderDecoderOutput")
"""Names that NxDI imports from transformers.generation and that transformers 5 dropped."""

BROKEN = ("nkilib.core.mlp.mlp",)
"""Published as a file that does not parse."""


class _AnyType(type):
    """Type of the stand-in classes: they can be subscripted, combined, compared and used as decorators."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return anything(f"{cls.__name__}.{name}")

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType):
            return args[0]
        return super().__call__(*args, **kwargs)

    def __getitem__(cls, _: object) -> Any:
        return cls

    def __or__(cls, _: object) -> Any:
        return cls

    __ror__ = __or__

    def __number(cls, *_: object) -> int:
        return 1

    __int__ = __index__ = __mul__ = __rmul__ = __add__ = __radd__ = __sub__ = __rsub__ = __number
    __floordiv__ = __rfloordiv__ = __number


class _Anything(metaclass=_AnyType):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]
        raise RuntimeError(f"{type(self).__name__} has no meaning on a CPU")

    def __getattr__(self, name: str) -> Any:
        return getattr(type(self), name)


def anything(name: str) -> type:
    """A class that stands for `name`."""
    return _AnyType(name, (_Anything,), {})


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = anything(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> Any:
        if any(name == package or name.startswith(f"{package}.") for package in self.packages):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        module.__dict__["__version__"] = "2.9.0"
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        for name, value in MEANINGS.get(module.__name__, {}).items():
            setattr(module, name, value)


def _identity(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function if function is not None else _identity


class _Argmax:
    @staticmethod
    def apply(tensor: torch.Tensor, dim: int, keepdim: bool) -> torch.Tensor:
        return tensor.argmax(dim, keepdim)


class _TopK:
    @staticmethod
    def apply(tensor: torch.Tensor, k: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.topk(tensor, k, dim)


MEANINGS: dict[str, dict[str, Any]] = {
    "torch_xla.core.xla_model": {
        "mark_step": lambda *_, **__: None,
        "xla_device": lambda *_, **__: torch.device("cpu"),
        "get_ordinal": lambda *_, **__: 0,
        "is_master_ordinal": lambda *_, **__: True,
        "xrt_world_size": lambda *_, **__: 1,
        "REDUCE_SUM": "sum",
        "REDUCE_MAX": "max",
        "REDUCE_MIN": "min",
    },
    "torch_xla.runtime": {"global_ordinal": lambda: 0, "world_size": lambda: 1, "device_type": lambda: "CPU"},
    "torch_neuronx.utils": {"get_platform_target": lambda *_, **__: "trn2"},
    "torch_neuronx.utils.utils": {"get_platform_target": lambda *_, **__: "trn2"},
    "torch_neuronx.xla_impl.ops": {"nki_jit": _identity, "xla_hlo_call": _identity, "Argmax": _Argmax, "TopK": _TopK},
    "torch_neuronx.xla_impl.base": {"xla_hlo_call": _identity, "xla_call": _identity},
    "nki": {"jit": _identity},
    "neuronxcc.nki": {"jit": _identity},
}


def install(sources: Path) -> None:
    """Make NxD, NxDI and nkilib importable from the clones below `sources`.

    Raises:
        FileNotFoundError: a clone is not there.
    """
    for part in SOURCES:
        if not (sources / part).is_dir():
            raise FileNotFoundError(f"{sources / part}: clone the repository there")
        sys.path.append(str(sources / part))
    os.environ.setdefault("NXD_CPU_MODE", "1")
    sys.meta_path.insert(0, _Finder(BROKEN))
    sys.meta_path.append(_Finder(PACKAGES + UNUSED))
    torch.classes.neuron = _Module("torch.classes.neuron")
    for name in DROPPED:
        if not hasattr(transformers.generation, name):
            setattr(transformers.generation, name, anything(name))
