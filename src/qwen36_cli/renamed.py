"""Earlier names of flags, taken for one more release; `qwen36 serve` has its own in its launcher."""

from __future__ import annotations

from collections.abc import Sequence

FLAGS = {
    "plan": {
        "--tp": "--tensor-parallel-size",
        "--kv-dtype": "--kv-cache-dtype",
        "--num-blocks": "--num-gpu-blocks-override",
    },
}
"""By command: the earlier name, and vLLM's, which is the one to write."""

VALUES = {"--kv-dtype": {"bf16": "bfloat16", "fp32": "float32"}}
"""Values that had other names too."""


def renamed(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line with today's names, and what the user should know about it.

    Args:
        words: what follows `qwen36`.
    """
    flags = FLAGS.get(words[0], {}) if words else {}
    found: list[str] = []
    notes: list[str] = []
    values: dict[str, str] = {}
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in flags:
            notes.append(f"{flag} is {flags[flag]} now; this name goes with the next release")
            values = VALUES.get(flag, {})
            found.append(flags[flag] + equals + values.get(value, value))
        else:
            found.append(values.get(word, word))
            values = {}
    return found, notes
