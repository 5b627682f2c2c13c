"""One run of a kernel: arguments in, one or two programs a rank run by turns, results out."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import context
from .across import Across
from .arguments import Arguments, own_arrays, same_program
from .capacity import check_capacity, check_length
from .context import Core
from .dtypes import DType
from .enums import MemoryRegion
from .errors import DivergenceError, UndefinedReadError, fail
from .races import Contest, settle
from .rules import RULES, raise_broken, rules_of
from .storage import Storage, StorageInfo
from .target import Target, current_target
from .tensor import Tensor
from .turns import Turns


class Launch:
    """One run of a kernel on one or two cores of every rank. Programs never run at the same time: they take turns at
    each rendezvous, so a run is repeatable.

    Args:
        lnc: Programs a rank, 1 or 2; None: 1, and the launch names no number.
        target: What it is compiled for; None: what :func:`~.target.compiling_for` says.
        ranks: Ranks that run together.
        alike: All ranks have the same arguments: only the first runs, and what it brings to a collective stands for
            what each of them brings.
        across: This process runs one rank of them, and meets the others through it.

    Attributes:
        cores: State and traces of the programs that run, rank by rank, after the run.
        contests: By rank and tensor, what both cores have written since they last met.
    """

    def __init__(
        self,
        lnc: int | None,
        target: Target | None = None,
        ranks: int = 1,
        alike: bool = False,
        across: Across | None = None,
    ) -> None:
        self.lnc = lnc or 1
        self.target = target or current_target()
        self.rules = rules_of(self.target)
        self.ranks, self.alike, self.across = ranks, alike, across
        first, running = (across.rank, 1) if across else (0, 1 if alike else ranks)
        places = [(rank, c) for rank in range(first, first + running) for c in range(self.lnc)]
        self.cores = [Core(c, self.lnc, lnc is not None, self, rank, at) for at, (rank, c) in enumerate(places)]
        self._shared: list[list[Storage]] = [[] for _ in range(running)]
        self._arguments: frozenset[int] = frozenset()
        self.contests: defaultdict[int, dict[int, Contest]] = defaultdict(dict)
        self._turns = Turns([self._label(core) for core in self.cores])

    def _label(self, core: Core) -> str:
        return (f"rank {core.rank} " if self.ranks > 1 else "") + f"core {core.program_id}"

    def shared_tensor(self, core: Core, dims: tuple[int, ...], kind: DType, name: str) -> Tensor:
        """The next shared HBM allocation; the n-th one of a rank's programs is the same memory."""
        at, shared = core.shared_count, self._shared[core.index // self.lnc]
        core.shared_count += 1
        if at == len(shared):
            shared.append(Storage(dims, kind, MemoryRegion.shared_hbm, name, -1))
        storage = shared[at]
        if storage.shape != dims or storage.dtype is not kind:
            raise DivergenceError(
                "ndarray", name,
                f"shared HBM tensor {at} is {dims} {kind} here, {storage.shape} {storage.dtype} on the other core",
            )  # fmt: skip
        return Tensor.whole(storage)

    def rendezvous(self, core: Core, key: tuple[Any, ...], payload: Any) -> Any:
        """Meet the rank's other program; returns its payload.

        Raises:
            DivergenceError: it is at another rendezvous, or has ended.
        """
        values = self._turns.meet(core.index, self._pair(core), self._pair_members(core), key, payload)
        core.meetings += 1
        settle(self.contests[core.rank])
        return values[1 - core.program_id]

    def gather(self, core: Core, group: tuple[int, ...], both: bool, key: tuple[Any, ...], payload: Any) -> list[Any]:
        """Meet the other ranks of a group; returns what each brings, in the group's order.

        Args:
            both: Both cores of a rank take part, and bring the same; otherwise each core meets its like.

        Raises:
            DivergenceError: one of them is at something else, or will never come.
        """
        members = self._group_members(core, group, both)
        values = self._turns.meet(core.index, self._group(core, group, both), members, key, payload)
        if both and self.lnc == 2:
            core.meetings += 1
            settle(self.contests[core.rank])
            values = values[::2]
        if self.across is not None:
            return self.across.exchange(group, key, values[0])
        return values * len(group) if self.alike else values

    def is_argument(self, info: StorageInfo) -> bool:
        """Whether a tensor is an argument of the kernel."""
        return info.uid in self._arguments

    def place(self, core: Core, group: tuple[int, ...] | None = None, both: bool = False) -> dict[str, Any]:
        """What the trace says of the next rendezvous (``group`` None) or gathering: its name and how many come."""
        if group is None:
            return {"meet": self._turns.upcoming(core.index, self._pair(core)), "members": 2}
        members = len(self._group_members(core, group, both))
        return {"meet": self._turns.upcoming(core.index, self._group(core, group, both)), "members": members}

    def _pair(self, core: Core) -> tuple[Any, ...]:
        return ("pair", core.rank)

    def _pair_members(self, core: Core) -> tuple[int, ...]:
        first = core.index - core.program_id
        return tuple(first + c for c in range(self.lnc))

    def _group(self, core: Core, group: tuple[int, ...], both: bool) -> tuple[Any, ...]:
        return ("group", group, None if both else core.program_id)

    def _group_members(self, core: Core, group: tuple[int, ...], both: bool) -> tuple[int, ...]:
        cores = range(self.lnc) if both else (core.program_id,)
        here = (0,) if self.alike or self.across is not None else group
        return tuple(rank * self.lnc + c for rank in here for c in cores)

    def run(self, fn: Callable[..., Any], arguments: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        """Run ``fn`` and return each rank's results as its caller's kind of array; inputs it wrote to are updated in
        place.

        Args:
            arguments: (positional, keyword) arguments, one pair a rank that runs.
        """
        self._check_grid(fn)
        marshals = [Arguments(fn, args, kwargs, shared=self.lnc == 2) for args, kwargs in arguments]
        same_program(marshals)
        self._arguments = frozenset(uid for m in marshals for uid in m.uids())
        for marshal in marshals:
            if "nan-output" in self.rules:
                marshal.look_for_nan()
        results: list[Any] = [None] * len(self.cores)

        def program(index: int) -> None:
            core = self.cores[index]
            context.enter(core)
            try:
                marshal = marshals[index // self.lnc]
                results[index] = marshal.call()
                self._check_results(results[index], marshal)
            finally:
                context.enter(None)

        self._turns.run(program)
        for error in self._turns.errors:
            if error is not None:
                raise error
        for rank, marshal in enumerate(marshals):
            cores = slice(rank * self.lnc, (rank + 1) * self.lnc)
            self._check_rank(self.cores[cores], results[cores], marshal)
        for core in self.cores:
            check_length(core)
            check_capacity(core)
        own_arrays(marshals)
        for marshal in marshals:
            marshal.write_back()
        return [m.to_caller(results[rank * self.lnc]) for rank, m in enumerate(marshals)]

    def _check_rank(self, cores: list[Core], results: list[Any], marshal: Arguments) -> None:
        settle(self.contests[cores[0].rank])
        self._check_same_control_flow(cores, results)
        returned = self._returned(results[0])
        for storage in {id(s): s for s in [*returned, *marshal.written()]}.values():
            text = Tensor.whole(storage).undefined_text()
            if text:
                raise UndefinedReadError("return", storage.info.name, f"holds {text}")
        self._check_handles(cores, results[0], marshal)
        self._check_nan(results[0], marshal)
        for core in cores:
            for uid, (ins, operand) in core.collective.items():
                out = next((s for s in returned if s.info.uid == uid), None)
                if out is not None and "collective-io" in self.rules:
                    detail = f"'{out.info.name}' is a result of the kernel"
                    raise_broken(RULES["collective-io"], self.target, ins, operand, detail)

    def _check_grid(self, fn: Callable[..., Any]) -> None:
        rule, lnc = RULES["launch-grid"], self.target.lnc
        if lnc is not None and lnc != self.lnc and rule.id in self.rules:
            name = getattr(fn, "__name__", "kernel")
            raise_broken(rule, self.target, name, "", f"launched on {self.lnc} of a logical core's {lnc} cores")

    def _check_handles(self, cores: list[Core], value: Any, marshal: Arguments) -> None:
        """Every argument that was written is among the results."""
        returned = {s.info.uid for s in self._returned(value)}
        for storage in marshal.written():
            rule = RULES["returned-handles"]
            if storage.info.uid not in returned and rule.id in self.rules:
                writer = next(i for c in cores for i in c.trace if any(a[0] is storage.info for a in i.writes))
                detail = f"is written, first by {writer.name or writer.op}, and not returned"
                raise_broken(rule, self.target, "return", storage.info.name, detail)

    def _check_nan(self, value: Any, marshal: Arguments) -> None:
        rule = RULES["nan-output"]
        if rule.id not in self.rules or marshal.had_nan:
            return
        for storage in [*self._returned(value), *marshal.written()]:
            # 8-bit tensors also carry other types' bytes.
            wide = storage.dtype.is_float and storage.dtype.itemsize > 1
            if wide and bool(np.isnan(Tensor.whole(storage).array).any()):
                raise_broken(rule, self.target, "return", storage.info.name, "holds NaN, and no argument does")

    def _check_same_control_flow(self, cores: list[Core], results: list[Any]) -> None:
        if self.lnc == 1:
            return
        a, b = (c.events for c in cores)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            x, y = (e[at] if at < len(e) else "nothing" for e in (a, b))
            raise DivergenceError("LNC2", "", f"dynamic control flow differs: core 0 does {x}, core 1 does {y}")
        one, two = ([s.info.uid for s in self._returned(r)] for r in results)
        if one != two:
            raise DivergenceError("return", "", "the two programs return different tensors")
        if cores[0].shared_count != cores[1].shared_count:
            raise DivergenceError("ndarray", "", "the two programs allocate different numbers of shared HBM tensors")

    def _check_results(self, value: Any, marshal: Arguments) -> None:
        if isinstance(value, Tensor):
            if value.buffer is not MemoryRegion.shared_hbm and not marshal.is_input(value):
                fail("return", value.name, f"is in {value.buffer.value}; a kernel's outputs must be nl.shared_hbm")
        elif isinstance(value, (tuple, list)):
            for v in value:
                self._check_results(v, marshal)
        elif value is not None:
            fail("return", "", f"a kernel returns tensors, not {type(value).__name__}")

    def _returned(self, value: Any) -> list[Storage]:
        if isinstance(value, Tensor):
            return [value.storage]
        if isinstance(value, (tuple, list)):
            return [s for v in value for s in self._returned(v)]
        return []
