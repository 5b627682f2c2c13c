"""Which running sequence owns which running-state lane."""

from __future__ import annotations

import heapq


class LaneAllocator:
    """Lanes 1 .. num_lanes, lowest free one first. Lane 0 is scratch and never given out.

    A lane that was given back is announced to the runtime once, in the `released` lanes of the next step that runs.
    """

    def __init__(self, num_lanes: int) -> None:
        self.num_lanes = num_lanes
        self._free = list(range(1, num_lanes + 1))
        self._owner: dict[str, int] = {}
        self._released: list[int] = []

    @property
    def in_use(self) -> int:
        """Lanes that sequences own now."""
        return len(self._owner)

    @property
    def released(self) -> tuple[int, ...]:
        """Lanes given back since `announced`."""
        return tuple(self._released)

    def acquire(self, request_id: str) -> int:
        """Give `request_id` a lane.

        Raises:
            RuntimeError: it has one, or none is free, which means that more than num_lanes sequences run.
        """
        if request_id in self._owner:
            raise RuntimeError(f"request {request_id} already owns lane {self._owner[request_id]}")
        if not self._free:
            raise RuntimeError(
                f"request {request_id} needs a lane and all {self.num_lanes} are owned: more run than max_num_seqs"
            )
        lane = self._owner[request_id] = heapq.heappop(self._free)
        return lane

    def release(self, request_id: str) -> None:
        """Take the lane of `request_id` back; nothing happens if it has none."""
        lane = self._owner.pop(request_id, None)
        if lane is not None:
            heapq.heappush(self._free, lane)
            self._released.append(lane)

    def announced(self) -> None:
        """The runtime has been told of the lanes in `released`."""
        self._released.clear()
