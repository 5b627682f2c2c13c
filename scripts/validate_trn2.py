"""Validates an installation: `qwen36 validate`, whose `--help` says what it takes."""

import sys

from qwen36_cli import app

if __name__ == "__main__":
    app(["validate", *sys.argv[1:]])
