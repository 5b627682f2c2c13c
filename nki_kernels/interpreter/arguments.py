"""Kernel arguments: arrays of the caller become HBM tensors, and go back."""

import inspect
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .dtypes import as_dtype
from .enums import MemoryRegion
from .errors import fail
from .replica_group import ReplicaGroup
from .storage import Storage
from .tensor import Tensor

_TORCH_BITS = {"torch.bfloat16": ("int16", ml_dtypes.bfloat16), "torch.float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
               "torch.float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn)}  # fmt: skip


def _is_torch(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def _torch_to_numpy(value: Any) -> np.ndarray:
    import torch

    value = value.detach().cpu()
    bits = _TORCH_BITS.get(str(value.dtype))
    if bits is None:
        return np.asarray(value.contiguous().numpy())
    return np.asarray(value.contiguous().view(getattr(torch, bits[0])).numpy().view(bits[1]))


def _numpy_to_torch(value: np.ndarray) -> Any:
    import torch

    for name, (bits, kind) in _TORCH_BITS.items():
        if value.dtype == kind:
            raw = np.ascontiguousarray(value).view(bits)
            return torch.from_numpy(raw.copy()).view(getattr(torch, name.split(".")[1]))
    if value.dtype == ml_dtypes.float8_e4m3:
        # torch has no IEEE-like e4m3: the bytes, as they are.
        return torch.from_numpy(np.ascontiguousarray(value).view(np.uint8).copy())
    return torch.from_numpy(np.array(value, order="C"))


class Arguments:
    """The arguments of one launch.

    Args:
        fn: Kernel function.
        args, kwargs: numpy arrays, torch tensors (CPU) and compile-time constants. Tuples and kernel configuration
            objects may hold arrays. Lists are refused: the compiler takes tuples.
        shared: Inputs are in shared HBM (LNC2).
    """

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], shared: bool) -> None:
        self.fn = fn
        self._buffer = MemoryRegion.shared_hbm if shared else MemoryRegion.private_hbm
        self._inputs: list[tuple[Any, Storage]] = []
        self._by_id: dict[int, Storage] = {}
        self._constants: list[tuple[str, Any]] = []
        self._torch = False
        self.had_nan = False
        names = list(inspect.signature(fn).parameters)
        self._args = [self._convert(a, names[i] if i < len(names) else f"arg{i}") for i, a in enumerate(args)]
        self._kwargs = {k: self._convert(v, k) for k, v in kwargs.items()}
        self._check_ranks()

    def call(self) -> Any:
        """Run the kernel function on the calling thread's core."""
        return self.fn(*self._args, **self._kwargs)

    def is_input(self, t: Tensor) -> bool:
        """Whether ``t`` is a view of an argument."""
        return any(t.storage is s for _, s in self._inputs)

    def _convert(self, value: Any, name: str) -> Any:
        if isinstance(value, list):
            fail("launch", name, "a list is not a kernel argument; use a tuple")
        if isinstance(value, tuple):
            items = [self._convert(v, f"{name}[{i}]") for i, v in enumerate(value)]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if _is_torch(value):
            self._torch = True
            return self._tensor(value, _torch_to_numpy(value), name)
        if isinstance(value, np.ndarray):
            return self._tensor(value, value, name)
        if type(value).__module__.startswith("jax"):
            return self._tensor(value, np.asarray(value), name)
        held = getattr(value, "__dict__", None)
        if held and getattr(type(value), "_nki_object", False):
            self._constants.append((name, type(value)))
            self._constants.extend((f"{name}.{k}", v) for k, v in held.items() if isinstance(v, list))
            new = {k: self._convert(v, f"{name}.{k}") for k, v in held.items() if not isinstance(v, list)}
            if any(new[k] is not held[k] for k in new):
                clone = object.__new__(type(value))
                clone.__dict__.update(held)
                clone.__dict__.update(new)
                return clone
            return value
        self._constants.append((name, value))
        return value

    def _check_ranks(self) -> None:
        """A kernel that is told how many ranks there are, in an argument ``ranks``, is told the size of its groups.

        It cannot ask: AWS publishes nothing that a kernel could read of a ReplicaGroup.
        """
        told = inspect.signature(self.fn).parameters.get("ranks")
        if told is None:
            return
        constants = dict(self._constants)
        ranks = constants.get("ranks", told.default)
        for name, value in constants.items():
            for group in value.groups if isinstance(value, ReplicaGroup) else ():
                if len(group) != ranks:
                    members = f"the group {list(group)} of {name} has {len(group)}"
                    fail("launch", "ranks", f"is {ranks}, {members}: give their number, or other groups")

    def program(self) -> list[tuple[str, Any]]:
        """What the program is compiled for: (argument, its shape and type, or the constant's value)."""
        tensors = [(s.info.name, (s.shape, str(s.dtype))) for _, s in self._inputs]
        return tensors + self._constants

    def uids(self) -> list[int]:
        """Names of the arguments' memory."""
        return [s.info.uid for _, s in self._inputs]

    def sources_written(self) -> dict[int, str]:
        """The caller's arrays that the kernel wrote to, by identity, with the argument's name."""
        return {id(source): s.info.name for source, s in self._inputs if s.info.first >= 0}

    def _tensor(self, source: Any, data: np.ndarray, name: str) -> Tensor:
        try:
            kind = as_dtype(data.dtype)
        except TypeError as error:
            fail("launch", name, str(error))
        if data.ndim == 0 or data.size == 0:
            fail("launch", name, f"shape {data.shape}: a kernel tensor has at least one dimension and one element")
        storage = self._by_id.get(id(source))
        if storage is None:
            storage = Storage(tuple(data.shape), kind, self._buffer, name, -1, data)
            self._by_id[id(source)] = storage
            self._inputs.append((source, storage))
        return Tensor.whole(storage)

    def look_for_nan(self) -> None:
        """Note whether an argument holds NaN."""
        self.had_nan = any(s.dtype.is_float and bool(np.isnan(Tensor.whole(s).array).any()) for _, s in self._inputs)

    def written(self) -> list[Storage]:
        """Arguments that the kernel wrote to."""
        return [s for _, s in self._inputs if s.info.first >= 0]

    def write_back(self) -> None:
        """Copy inputs that the kernel wrote to back into the caller's arrays."""
        for source, storage in self._inputs:
            if storage.info.first < 0:
                continue
            data = Tensor.whole(storage).array
            if _is_torch(source):
                source.detach().copy_(_numpy_to_torch(data))
            elif isinstance(source, np.ndarray):
                if not source.flags.writeable:
                    fail("launch", storage.info.name, "the kernel writes to this input, but the array is read-only")
                source[...] = data

    def to_caller(self, value: Any) -> Any:
        """Results as torch tensors if any argument was one, else as numpy arrays."""
        if isinstance(value, Tensor):
            array = value.array.copy()
            return _numpy_to_torch(array) if self._torch else array
        if isinstance(value, (tuple, list)):
            return tuple(self.to_caller(v) for v in value)
        return value


def same_program(ranks: list[Arguments]) -> None:
    """Refuse ranks whose arguments differ in more than the values of arrays: they run one compiled program.

    Raises:
        KernelError: naming the first argument that differs, and how.
    """
    first = ranks[0].program()
    for rank, other in enumerate(ranks[1:], 1):
        for (name, a), (other_name, b) in zip(first, other.program(), strict=False):
            if name != other_name or (a is not b and a != b):
                fail("ranks", name, f"is {a} on rank 0 and {b} ('{other_name}') on rank {rank}: ranks run one program")
        if len(first) != len(other.program()):
            fail("ranks", "arguments", f"rank 0 has {len(first)} and rank {rank} {len(other.program())}")


def own_arrays(ranks: list[Arguments]) -> None:
    """Refuse one array of the caller's that two ranks have written: each rank has its own memory."""
    seen: dict[int, int] = {}
    for rank, marshal in enumerate(ranks):
        for source, name in marshal.sources_written().items():
            if seen.setdefault(source, rank) != rank:
                fail("ranks", name, f"is written by ranks {seen[source]} and {rank}: give each an array of its own")
