"""How prefixes are named.

A path is the keys of a sequence's full blocks: `path[i]` stands for the first (i + 1) * BLOCK_SIZE tokens, so that
equal keys mean equal prefixes. vLLM's chained block hashes are such keys.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Key = Hashable
Path = Sequence[Key]
