"""Which ranks communicate among themselves."""

from collections.abc import Sequence

import numpy as np

from .context import refuse
from .errors import fail


class ReplicaGroup:
    """Lists of ranks that communicate among themselves, e.g. ``ReplicaGroup([[0, 1], [2, 3]])``.

    Attributes:
        groups: The lists; no rank is in two.

    Raises:
        KernelError: a list that is empty or no list of ranks, or a rank that is named twice.
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        refuse("replica-group", "ReplicaGroup", "groups", "a group is made inside the kernel")
        seen: set[int] = set()
        for ranks in groups:
            if not isinstance(ranks, (list, tuple)) or not ranks:
                fail("ReplicaGroup", "groups", f"{ranks!r} is not a list of ranks; give lists such as [[0, 1, 2, 3]]")
            for rank in ranks:
                if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)) or rank < 0:
                    fail("ReplicaGroup", "groups", f"{rank!r} is not a rank")
                if int(rank) in seen:
                    fail("ReplicaGroup", "groups", f"rank {rank} is named twice in {groups!r}")
                seen.add(int(rank))
        if not seen:
            fail("ReplicaGroup", "groups", "names no rank; give lists such as [[0, 1, 2, 3]]")
        self.groups = tuple(tuple(int(r) for r in ranks) for ranks in groups)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReplicaGroup) and self.groups == other.groups

    def __hash__(self) -> int:
        return hash(self.groups)

    def __repr__(self) -> str:
        return f"ReplicaGroup({[list(g) for g in self.groups]})"
