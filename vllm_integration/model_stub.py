"""What vLLM's model registry sees of the model: its interface flags, and nothing else.

The network runs behind the step contract, in a runtime that vLLM knows nothing of, so this class is inspected and never
built. It declares neither inner state nor hybrid layers: those flags switch on vLLM's own Mamba handling (block sizes,
chunk splitting), which the checkpoint slots replace.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn


class QwenStub(nn.Module):
    """A text-generation model, as far as vLLM's registry can tell."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self._refuse()

    def embed_input_ids(self, input_ids: Any) -> Any:
        """vLLM takes a class with these three methods for a text-generation model."""
        self._refuse()

    def forward(self, input_ids: Any, positions: Any) -> Any:
        """Never run."""
        self._refuse()

    def compute_logits(self, hidden_states: Any) -> Any:
        """Never run."""
        self._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise RuntimeError("the model runs in the runtime opened by vllm_integration.worker.Worker, not through vLLM")
