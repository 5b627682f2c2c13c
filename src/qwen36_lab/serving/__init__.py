"""The serving benchmark: its sides, each in a process of its own, the FLOPs that it counts, and its plot."""
