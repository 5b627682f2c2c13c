"""How large the keys and values of a model get over a text, which is what scales of FP8 ones are made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..checkpoint.files import CheckpointFiles
from ..config import BLOCK_SIZE, ModelConfig
from ..devices import DType
from ..step import Output, Row, Step
from . import open_runtime
from .config import RuntimeConfig
from .cpu import CpuRuntime

LANE, FIRST = 1, 1
"""The lane and the first block that are used."""
CHUNK = 512
"""Tokens of a step."""

Largest = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Of keys and of values by layer, fp32 [kv heads]."""


def has_draft_layer(folder: Path, model: ModelConfig) -> bool:
    """Whether a checkpoint holds a multi-token-prediction layer, whose keys and values need scales too."""
    if model.num_mtp_layers != 1:
        return False
    with CheckpointFiles(folder) as files:
        return files.holds("mtp.fc.weight")


class KVObserver:
    """Runs text through a model on CPU and looks at what its cache then holds.

    Keys and values are in the number format of the model, whatever the checkpoint declares.

    Attributes:
        largest: magnitudes so far.
    """

    def __init__(self, folder: Path, window: int, dtype: DType = "float32", draft_layer: bool = False) -> None:
        """Load the model.

        Args:
            window: tokens of context at most.
            draft_layer: look at the multi-token-prediction layer's too.
        Raises:
            ConfigError: it cannot be loaded, or a size cannot be used.
        """
        runtime = open_runtime(
            RuntimeConfig(
                folder,
                dtype=dtype,
                max_model_len=window,
                max_step_tokens=CHUNK,
                num_lanes=1,
                num_blocks=-(-window // BLOCK_SIZE) + FIRST,
                num_slots=1,  # with slots a lane that ends leaves its draft layer's entries complete
                max_drafts=int(draft_layer),
                max_proposals=int(draft_layer),
                kv_cache_dtype=dtype,
            )
        )
        assert isinstance(runtime, CpuRuntime)
        self.runtime, self.window = runtime, window
        heads = runtime.cache.spec.kv_shape[2]
        self.largest: Largest = {
            layer: (torch.zeros(heads), torch.zeros(heads)) for layer in runtime.cache.spec.kv_layers
        }

    def observe(self, tokens: Sequence[int]) -> Iterator[int]:
        """Run a text in windows, and give out the tokens done."""
        for first in range(0, len(tokens), self.window):
            part = tokens[first : first + self.window]
            blocks = range(FIRST, FIRST - (-len(part) // BLOCK_SIZE))
            for start in range(0, len(part), CHUNK):
                piece = part[start : start + CHUNK]
                self.runtime.run(Step((Row("calibrate", LANE, piece, start, blocks, output=Output.NOTHING),)))
                yield first + start + len(piece)
            self.runtime.run(Step((), released_lanes=(LANE,)))
            self._look(len(part))

    def _look(self, count: int) -> None:
        held = slice(FIRST * BLOCK_SIZE, FIRST * BLOCK_SIZE + count)
        for layer, before in self.largest.items():
            now = (half[held].float().abs().amax((0, 2)) for half in self.runtime.cache.positions(layer))
            keys, values = (torch.maximum(a, b) for a, b in zip(before, now, strict=True))
            self.largest[layer] = keys, values
