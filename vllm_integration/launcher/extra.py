"""The flags after `--`, which go to `vllm serve` as they are: none of them may contradict the launcher's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import Refusal

_OWN = (
    "--host",
    "--port",
    "--model",
    "--revision",
    "--served-model-name",
    "--dtype",
    "--max-model-len",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--tensor-parallel-size",
    "--kv-cache-memory-bytes",
    "--kv-cache-dtype",
    "--api-key",
    "--additional-config",
    "--speculative-config",
    "--spec-method",
    "--spec-model",
    "--spec-tokens",
    "--enable-prefix-caching",
    "--no-enable-prefix-caching",
)
"""Flags of vLLM that the launcher writes itself, or that are flags of its own."""

BLOCKS = "--num-gpu-blocks-override"

_SHORT = {"-tp": "--tensor-parallel-size", "-sc": "--speculative-config"}


def check(rest: Sequence[str], *, blocks_are_chosen: str | None) -> None:
    """Refuse a flag that the launcher gives vLLM itself.

    Args:
        rest: what follows `--`.
        blocks_are_chosen: what decides the number of KV blocks already, if anything does.
    Raises:
        Refusal: naming the flag.
    """
    for word, flag in flags_of(rest):
        for own in _OWN:
            if own == flag or (own.startswith(flag) and len(flag) > len("--m")):
                raise Refusal(f"{own} after -- would contradict the launcher's own{where(word)}; use its options")
        if flag == BLOCKS and blocks_are_chosen:
            raise Refusal(f"{word}: {blocks_are_chosen}")


def where(word: str) -> str:
    """The file that a flag was in, in brackets; nothing for one of the command line."""
    return f" ({word})" if word.endswith((".yaml", ".yml")) else ""


def flags_of(rest: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every flag as it was written, and as vLLM will read it: with hyphens, without its value or a key inside it."""
    for place, word in enumerate(rest):
        if not word.startswith("-"):
            continue
        flag = word.split("=", 1)[0]
        flag = _SHORT.get(flag, flag)
        if flag.startswith("--"):
            flag = "--" + flag[2:].split(".", 1)[0].replace("_", "-")
        if flag == "--config":
            file = word.split("=", 1)[1] if "=" in word else "".join(rest[place + 1 : place + 2])
            yield from _of_file(file)
        yield word, flag


def _of_file(file: str) -> Iterator[tuple[str, str]]:
    """The flags of a YAML file of vLLM's flags."""
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise Refusal(f"--config {file}: {error}") from error
    if not isinstance(content, dict):
        raise Refusal(f"--config {file} holds no mapping of flags to values")
    for key in content:
        yield file, "--" + str(key).split(".", 1)[0].replace("_", "-")
