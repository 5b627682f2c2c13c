"""The import surface: ``nki`` and its submodules, when the real package is not there."""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from . import collectives, dtypes, elementwise, isa, language, launch
from .alu import OPS
from .enums import MemoryRegion
from .isa.vector_reduce import FP32_MIN
from .registers import Register, dynamic_range, fori_loop, while_loop
from .tensor import Tensor

MARK = "__nki_interpreter__"


class TensorType:
    """``nt.tensor[128, 2, 128]``: an annotation."""

    def __class_getitem__(cls, shape: Any) -> type["TensorType"]:
        return cls


def _language() -> dict[str, Any]:
    names: dict[str, Any] = {str(d): d for d in dtypes.ALL}
    names |= elementwise.FUNCTIONS
    names |= OPS
    names |= {
        "ndarray": Tensor, "tensor": Tensor, "NkiTensor": Tensor, "dtype": dtypes.DType,
        "tile_size": language.TargetTileSize(),
        "NKIObject": language.NKIObject, "MemoryRegion": MemoryRegion,
        "sbuf": MemoryRegion.sbuf, "psum": MemoryRegion.psum, "hbm": MemoryRegion.private_hbm,
        "private_hbm": MemoryRegion.private_hbm, "shared_hbm": MemoryRegion.shared_hbm,
        "dynamic_range": dynamic_range, "fori_loop": fori_loop, "while_loop": while_loop, "VirtualRegister": Register,
        "affine_range": language.static_range, "sequential_range": language.static_range,
        "static_range": language.static_range, "range": language.static_range, "bool": dtypes.bool_,
        "fp32": SimpleNamespace(min=FP32_MIN),
    }  # fmt: skip
    for name in (
        "zeros", "ones", "full", "zeros_like", "empty_like", "shared_constant", "shared_identity_matrix", "ds",
        "program_id", "num_programs", "program_ndim", "no_reorder", "device_print", "load", "store", "is_hbm",
        "is_sbuf", "is_psum", "is_on_chip", "load_transpose2d",
    ):  # fmt: skip
        names[name] = getattr(language, name)
    return names


def _module(name: str, contents: dict[str, Any], package: bool = False) -> ModuleType:
    module = ModuleType(name, "Provided by the NKI interpreter of nki_kernels.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=package)
    if package:
        module.__path__ = []
    module.__dict__.update(contents)
    setattr(module, MARK, True)
    return module


def real_nki_present() -> bool:
    """Whether a real ``nki`` with a compiler behind it can be imported (an empty placeholder does not count)."""
    loaded = sys.modules.get("nki")
    if loaded is not None:
        return not hasattr(loaded, MARK)
    try:
        return importlib.util.find_spec("nki.isa") is not None
    except (ImportError, ValueError, AttributeError):
        return False


def install() -> bool:
    """Provide ``nki`` and its submodules through ``sys.modules``, unless the real package is there.

    Returns:
        True if the interpreter's modules are in place after the call, False if the real package is used untouched.
    """
    if getattr(sys.modules.get("nki"), MARK, False):
        return True
    if real_nki_present():
        return False
    surface = dict(isa.SURFACE)
    typing_names = {"tensor": TensorType, "mutable_tensor": TensorType}
    parts: dict[str, ModuleType] = {
        "nki.language": _module("nki.language", _language()),
        "nki.isa": _module("nki.isa", surface, package=True),
        "nki.isa.constants": _module("nki.isa.constants", dict(isa.ENUMS)),
        "nki.typing": _module("nki.typing", typing_names),
        "nki.collectives": _module("nki.collectives", dict(collectives.SURFACE)),
        "nki.compiler": _module("nki.compiler", {}),
        "nki.dtype": _module("nki.dtype", {str(d): d for d in dtypes.ALL}),
        "nki.tensor": _module("nki.tensor", {"Tensor": Tensor}),
        "nki.language.dtypes": _module("nki.language.dtypes", {str(d): d for d in dtypes.ALL}),
    }
    top = _module("nki", {"jit": launch.jit, "simulate": launch.simulate}, package=True)
    top.__dict__["__version__"] = "0.6.0+interpreter"
    sys.modules["nki"] = top
    for name, module in parts.items():
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        setattr(sys.modules[parent] if parent != "nki" else top, leaf, module)
    parts["nki.isa"].__dict__["constants"] = parts["nki.isa.constants"]
    return True


def uninstall() -> None:
    """Take the interpreter's modules away again (tests)."""
    for name in [n for n in sys.modules if n == "nki" or n.startswith("nki.")]:
        if hasattr(sys.modules[name], MARK):
            del sys.modules[name]
