"""Sampling on the host beside vLLM's: `qwen36 bench sampling`, whose `--help` says what it takes."""

import sys

from qwen36_cli import app

if __name__ == "__main__":
    app(["bench", "sampling", *sys.argv[1:]])
