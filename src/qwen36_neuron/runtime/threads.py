"""How many threads compute on a CPU that others use too: as many as there are cores that they leave.

`openmp` says why a thread that has no core holds up all the others, and what is done while one has none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

PERIOD = 0.25
"""Seconds over which the use of the cores is measured: 25 ticks of the kernel's clock, by which it counts."""

LEAVE, RETURN = 0.5, 0.25
"""Of a core: with more than the first taken by others a thread is given up, with less than the second it comes back."""


def usable_cores(groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole cores that this process may use: those of its affinity, or fewer by the quota of its control group."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _quota(groups, mounts))))


def _quota(groups: Path, mounts: Path) -> float:
    """Cores by the strictest quota of the control groups that this process is in, of either version."""
    found = [float("inf")]
    for line in _read(groups).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        inner = Path(name.lstrip("/"))
        for group in (inner, *inner.parents):
            if controllers:
                folder = mounts / "cpu" / group
                quota = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}".split()
            else:
                quota = _read(mounts / group / "cpu.max").split()
            if len(quota) == 2 and quota[0] not in ("max", "-1"):
                found.append(int(quota[0]) / int(quota[1]))
    return min(found)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


class CoreUse:
    """What other processes take of the cores that this one may use."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._busy, self._own = self._now()

    def others(self, seconds: float) -> float:
        """Cores taken by others since the last call, that long ago; time that a hypervisor took counts as theirs."""
        busy, own = self._now()
        taken = (busy - self._busy) - (own - self._own)
        self._busy, self._own = busy, own
        return max(0.0, taken / seconds)

    def _now(self) -> tuple[float, float]:
        """Seconds for which the cores were busy, all together, and for which this process ran."""
        cores, ticks = {f"cpu{core}" for core in os.sched_getaffinity(0)}, 0
        for line in _read(self._stat).splitlines():
            name, *counts = line.split()
            if name in cores:
                user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, counts[:8])
                ticks += user + nice + system + interrupts + soft + stolen
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


class ThreadGovernor:
    """Keeps the number of torch's threads at what other processes leave free. To be asked before every step.

    Numba's threads follow torch's, step by step. What the fused operations compute does not depend on their number, to
    the bit; what a matrix library computes may, within rounding.

    Args:
        most: threads where nobody else runs.
        cores: that this process may run on.
    """

    def __init__(
        self,
        most: int,
        cores: int | None = None,
        use: CoreUse | None = None,
        clock: Callable[[], float] = time.monotonic,
        apply: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self.threads = self.most = most
        self._cores = cores or len(os.sched_getaffinity(0))
        self._use = use or CoreUse()
        self._clock, self._apply = clock, apply
        self._since = clock()

    def before_step(self) -> None:
        """Measure, if it is time, and set torch's threads if their number changes."""
        if self.most == 1:
            return
        now = self._clock()
        passed = now - self._since
        if passed < PERIOD:
            return
        threads, self._since = self._wanted(self._use.others(passed)), now
        if threads != self.threads:
            self.threads = threads
            self._apply(threads)

    def release(self) -> None:
        """Set as many threads as there were at first, for whoever computes in this process next."""
        if self.threads != self.most:
            self.threads = self.most
            self._apply(self.most)

    def _wanted(self, taken: float) -> int:
        free = self._cores - taken
        fewer, more = int(free + 1 - LEAVE), int(free + RETURN)
        return max(1, min(self.most, max(more, min(self.threads, fewer))))
