"""Threads on a machine that others use too: how many there are, and what waiting ones find in their environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen36_neuron.openmp import openmp_environment
from qwen36_neuron.runtime.threads import PERIOD, CoreUse, ThreadGovernor, usable_cores

CORES = sorted(os.sched_getaffinity(0))
TICK = 1 / os.sysconf("SC_CLK_TCK")


def test_waiting_is_chosen_unless_the_user_has_chosen() -> None:
    assert int(openmp_environment({})["GOMP_SPINCOUNT"]) > 0
    assert openmp_environment({"OMP_WAIT_POLICY": "passive"}) == {}
    assert openmp_environment({"GOMP_SPINCOUNT": "7", "PATH": "x"}) == {}


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("line", "inner", "outer", "cores"),
    [
        ("0::/a/b", {"cpu__max": "max 100000"}, {"cpu__max": "max 100000"}, 8),
        ("0::/a/b", {"cpu__max": "250000 100000"}, {}, 2),
        ("0::/a/b", {"cpu__max": "max 100000"}, {"cpu__max": "300000 100000"}, 3),
        ("0::/a/b", {"cpu__max": "50000 100000"}, {"cpu__max": "300000 100000"}, 1),
        ("0::/a/b", {}, {}, 8),
        ("5:cpu,cpuacct:/a/b", {"cpu__cfs_quota_us": "400000", "cpu__cfs_period_us": "100000"}, {}, 4),
        ("5:cpu:/a/b", {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, {}, 8),
        ("7:cpuset:/a/b", {"cpu__cfs_quota_us": "100000", "cpu__cfs_period_us": "100000"}, {}, 8),
    ],
)
def test_a_quota_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, inner: dict[str, str], outer: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cgroup").write_text(f"12:devices:/\n{line}\n")
    root = tmp_path if line.startswith("0:") else tmp_path / "cpu"
    group(root / "a" / "b", **inner)
    group(root / "a", **outer)
    assert usable_cores(tmp_path / "cgroup", tmp_path) == cores


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path) == len(CORES)


def stat(file: Path, busy: int, idle: int) -> None:
    """Of each core of this process `busy` ticks of every kind that counts; of others, many."""
    lines = ["cpu  1 2 3 4 5 6 7 8 9 10", "cpu99999 9999999 0 0 0 0 0 0 0 0 0"]
    lines += [f"cpu{core} {busy} {busy} {busy} {idle} {idle} {busy} {busy} {busy} 77 77" for core in CORES]
    file.write_text("\n".join([*lines, "intr 5 5 5", "ctxt 9"]) + "\n")


def test_what_others_take_is_the_cores_time_without_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = 5.0
    monkeypatch.setattr("time.process_time", lambda: own)
    stat(tmp_path / "stat", 100, 1000)
    use = CoreUse(tmp_path / "stat")
    stat(tmp_path / "stat", 110, 4000)
    busy = 6 * 10 * TICK * len(CORES)
    own += busy / 4
    assert use.others(2.0) == pytest.approx(busy * 3 / 4 / 2)
    own += 1.0
    assert use.others(2.0) == 0.0, "the kernel counts in ticks: never less than nothing"


class Machine:
    """Others that take so many cores, and a clock."""

    def __init__(self, cores: int, most: int) -> None:
        self.taken, self.now, self.applied = 0.0, 0.0, []
        self.governor = ThreadGovernor(most, cores, self, lambda: self.now, self.applied.append)

    def others(self, seconds: float) -> float:
        assert seconds >= PERIOD
        return self.taken

    def after(self, taken: float, seconds: float = PERIOD) -> int:
        self.taken, self.now = taken, self.now + seconds
        self.governor.before_step()
        return self.governor.threads


def test_threads_are_given_up_and_come_back() -> None:
    machine = Machine(cores=2, most=2)
    found = [machine.after(taken) for taken in (0.0, 0.4, 0.6, 1.0, 0.4, 0.3, 0.2, 0.4, 0.9, 1.9, 0.0)]
    assert found == [2, 2, 1, 1, 1, 1, 2, 2, 1, 1, 2]
    assert machine.applied == [1, 2, 1, 2], "torch is told of changes alone"


def test_on_many_cores_as_many_as_others_leave() -> None:
    machine = Machine(cores=8, most=6)
    assert [machine.after(taken) for taken in (0.0, 1.9, 2.6, 3.0, 2.6, 2.2, 8.5, 0.1)] == [6, 6, 5, 5, 5, 6, 1, 6]


def test_between_two_measurements_nothing_is_asked() -> None:
    machine = Machine(cores=2, most=2)
    assert machine.after(1.0, PERIOD / 2) == 2
    assert machine.after(1.0, PERIOD / 2) == 1


def test_one_thread_is_left_alone() -> None:
    machine = Machine(cores=4, most=1)
    assert machine.after(4.0) == 1
    assert machine.after(0.0) == 1
    assert machine.applied == []


def test_all_threads_are_there_again_at_the_end() -> None:
    machine = Machine(cores=2, most=2)
    machine.after(1.0)
    machine.governor.release()
    machine.governor.release()
    assert machine.applied == [1, 2]


def test_this_machine_can_be_asked() -> None:
    assert 0.0 <= CoreUse().others(1.0) <= len(CORES)
