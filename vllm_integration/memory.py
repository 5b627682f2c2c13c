"""What a configuration takes of the host's memory, and whether it fits at all."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from qwen36_neuron.checkpoint.files import INDEX, SINGLE
from qwen36_neuron.checkpoint.load import is_quantised, stored_bytes
from qwen36_neuron.config import BLOCK_SIZE, ModelConfig
from qwen36_neuron.errors import ConfigError

REMEDIES = {
    "weights": ("model", "Use a machine with more memory, or --dtype bfloat16"),
    "lanes": ("max_num_seqs", "Lower --max-num-seqs, or num_slots and cache_gib in --additional-config"),
    "blocks": ("kv_cache_memory_bytes", "Lower it, or cache_gib in --additional-config, or --num-gpu-blocks-override"),
    "slots": ("num_slots", "Lower num_slots in --additional-config"),
}
"""By the part that takes most: the setting that makes it, and what to do."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of all ranks together."""

    weights: int
    lanes: int
    blocks: int
    slots: int

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        element: int,
        lanes: int,
        blocks: int,
        slots: int,
        draft_layer: bool = False,
        weights: int | None = None,
        kv_element: int | None = None,
    ) -> Memory:
        """Of so many running sequences, KV blocks and checkpoint slots.

        Args:
            element: bytes of an element of weights and convolution windows.
            draft_layer: hold the multi-token-prediction layer, its KV and the last hidden state of each checkpoint.
            weights: bytes of weights that are held in another number format; None for `element` a number.
            kv_element: bytes of an element of KV; None for `element`.
        """
        lane = model.state_bytes_per_lane(1, element)
        slot = lane + model.hidden_size * element if draft_layer else lane
        block = model.kv_bytes_per_token(kv_element or element, draft_layer) * BLOCK_SIZE
        weights = model.num_parameters(draft_layer) * element if weights is None else weights
        return cls(weights, lanes * lane, blocks * block, slots * slot)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name) / 2**20:.1f} MiB" for field in fields(self))

    @staticmethod
    def of_stored(model: ModelConfig, folder: Path, kernels: str | None) -> int | None:
        """Bytes of weights where the runtime holds them as they are stored: quantised ones, and those of a mixture.

        Args:
            folder: of the checkpoint; it may lack its files, for a runtime that needs none.
            kernels: what the CPU runtime is run by.
        """
        if kernels != "fused" or not any((folder / name).is_file() for name in (INDEX, SINGLE)):
            return None
        return stored_bytes(folder) if model.moe is not None or is_quantised(folder) else None

    def check(self, host: int, settings: dict[str, object]) -> None:
        """Refuse what cannot fit at all.

        Args:
            host: bytes of the machine.
            settings: the values of the settings in REMEDIES, for the message.
        Raises:
            ConfigError: naming the setting whose part is the largest.
        """
        if self.total <= host:
            return
        largest = max(fields(self), key=lambda field: getattr(self, field.name)).name
        name, remedy = REMEDIES[largest]
        raise ConfigError(name, settings[name], f"{self} do not fit in {host / 2**30:.1f} GiB", remedy)
