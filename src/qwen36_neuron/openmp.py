"""How threads wait for each other on a machine that others use too: what OpenMP is told, before it is loaded.

Threads of OpenMP meet at the end of every parallel loop, some forty times a decode step of eight layers. One that
waits there spins for some milliseconds before it sleeps, in case the others are about to arrive. Where another process
keeps a core busy they are not: one of them does not run at all, and those that spin keep the core that it could run on.
Told never to spin (`OMP_WAIT_POLICY=passive`) they sleep forty times a step instead, and waking takes longer than most
loops. So they spin for a fraction of a millisecond: longer than they wait for each other where all of them run, and
less than the kernel gives a process before its next turn.

libgomp reads this once, when it is loaded, which is when torch is imported and, of Numba's copy (the system's, where
torch brings its own), at the first parallel loop.
"""

from __future__ import annotations

from collections.abc import Mapping

SPINS = 100_000
"""Turns for which a thread looks again before it sleeps: 1 to 4 ms, by processor. libgomp's own is 300,000."""


def openmp_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to an environment, for processes that will load OpenMP; nothing where the user has chosen already."""
    if "GOMP_SPINCOUNT" in environment or "OMP_WAIT_POLICY" in environment:
        return {}
    return {"GOMP_SPINCOUNT": str(SPINS)}
