"""The published two scenarios against any deployment: `qwen36 bench scenarios`, whose `--help` says what it takes."""

import sys

from qwen36_cli import app

if __name__ == "__main__":
    app(["bench", "scenarios", *sys.argv[1:]])
