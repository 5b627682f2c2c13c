"""Runs nki-library's own test suite on the interpreter: a pytest plugin with what its simulation mode imports.

The suite's ``--test-mode simulation`` asks for AWS's simulator, which is not published, and its framework imports
clients of services that a CPU run never calls. This gives it the interpreter for the one and empty modules for the
others, and mends two slips of the published sources. docs/kernels.md has the command.
"""

import builtins
import signal
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import MagicMock

import ml_dtypes
import numpy as np
import pytest

from nki_kernels import interpreter
from nki_kernels.interpreter import dtypes, launch

# Clients of services and of devices.
ABSENT = ("boto3", "botocore", "fabric2", "paramiko", "aws_embedded_metrics", "pytest_html", "plotext", "debugpy",
          "filelock", "invoke", "test.utils.scripts",
          "test.utils.perf_analysis_private")  # fmt: skip


class Absent(ModuleType):
    """A module of which every name is a mock."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Exception,), {}) if name.endswith(("Error", "Exception")) else MagicMock(name=name)
        setattr(self, name, made)
        return made


class AbsentFinder:
    """Finds what nothing else found, of the packages in ABSENT."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return (
            ModuleSpec(name, AbsentFinder, is_package=True)
            if any(name == a or name.startswith(f"{a}.") for a in ABSENT)
            else None
        )

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        """The module itself."""
        return Absent(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing to run."""


def _module(name: str, **names: Any) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    module.__dict__.update(names)
    sys.modules[name] = module
    return module


def numpy_dtype(kind: Any) -> np.dtype:
    """The numpy type of an ``nl`` type or of anything numpy takes."""
    return kind.numpy if isinstance(kind, dtypes.DType) else np.dtype(kind)


def static_cast(array: Any, dtype: Any) -> np.ndarray:
    """An array as another type."""
    return np.asarray(array).astype(numpy_dtype(dtype))


class Simulator:
    """``nki.cpu_simulate(kernel)[lnc](**inputs)``."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel if isinstance(kernel, launch.Kernel) else launch.Kernel(getattr(kernel, "func", kernel))

    def __getitem__(self, lnc: int) -> Any:
        return interpreter.launch.simulate(self.kernel[lnc], target=interpreter.Target("2.29", checks="compiler"))


def provide() -> None:
    """Put the stand-ins in place."""
    interpreter.install()
    import nki

    sys.meta_path.append(AbsentFinder)  # type: ignore[arg-type]
    vars(nki)["cpu_simulate"] = Simulator
    simulator = _module("nki_cpu_simulator", nki=nki)
    sys.modules["nki_cpu_simulator.nki"] = nki
    for name in [n for n in sys.modules if n.startswith("nki.")]:
        sys.modules[f"{simulator.__name__}.{name}"] = sys.modules[name]
    vars(nki)["builtin"] = _module("nki_cpu_simulator.nki.builtin")
    types = {str(d): d.numpy for d in dtypes.ALL if d.kind != "x"}
    types |= {str(d): d for d in dtypes.ALL if d.kind == "x"}
    _module(
        "neuron_dtypes", static_cast=static_cast, sizeinbytes=lambda kind: numpy_dtype(kind).itemsize,
        finfo=lambda kind: ml_dtypes.finfo(numpy_dtype(kind)),
        is_float_type=lambda kind: dtypes.as_dtype(numpy_dtype(kind)).is_float, **types,
    )  # fmt: skip
    for name in ("neuronxcc", "neuronxcc.starfish", "neuronxcc.starfish.support", "neuronxcc.nki"):
        _module(name)
    _module("neuronxcc.starfish.support.dtype", static_cast=static_cast)
    _module("neuronxcc.nki.typing", mutable_tensor=object, tensor=object)


provide()


class Mended(SourceFileLoader):
    """Loads the published ``core/mlp/mlp.py`` without the second half of its docstring, which ends up as code."""

    def get_data(self, path: str) -> bytes:
        """The file's text, shortened."""
        data = super().get_data(path)
        again = data.rfind(b"        TKG mode supports:")
        if path.endswith(".py") and again > data.find(b"        TKG mode supports:"):
            data = data[:again] + data[data.index(b'"""', again) + 3 :]
        return data


class MendedFinder:
    """Finds the one module that :class:`Mended` loads."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A spec for ``nkilib.core.mlp.mlp``."""
        if not name.endswith("nkilib.core.mlp.mlp") or not path:
            return None
        file = str(Path(next(iter(path))) / "mlp.py")
        return spec_from_file_location(name, file, loader=Mended(name, file))


sys.meta_path.insert(0, MendedFinder)  # type: ignore[arg-type]


class Hooks:
    """Hooks of plugins that the suite has and this run does not."""

    def pytest_configure_node(self, node: Any) -> None:
        """pytest-xdist's."""


def pytest_addhooks(pluginmanager: Any) -> None:
    """Make the hooks known."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_collection() -> None:
    """Mend what keeps the published suite from running: an attribute set only where it compiles, a missing import."""
    from test.utils.common_dataclasses import Platforms
    from test.utils.test_orchestrator import Orchestrator

    Orchestrator._compiled_kernel = None
    vars(builtins)["Platforms"] = Platforms


def pytest_addoption(parser: Any) -> None:
    """``--seconds N``."""
    parser.addoption("--seconds", type=int, default=0, help="skip a test that takes longer; 0: no limit")


class TooSlow(BaseException):
    """The time limit of a test has passed."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Any:
    """Stop a test that takes longer than asked."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(item.config.getoption("--seconds"))
    try:
        return (yield)
    except TooSlow:
        pytest.skip("takes longer than --seconds")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
