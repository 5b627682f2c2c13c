"""Converts a checkpoint to FP8 and compiles it: `qwen36 compile`, whose `--help` says what it takes."""

import sys

from qwen36_cli import app

if __name__ == "__main__":
    app(["compile", *sys.argv[1:]])
