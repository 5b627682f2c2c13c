"""Our engine beside transformers on this machine: `qwen36 bench serving`, whose `--help` says what it takes."""

import sys

from qwen36_cli import app

if __name__ == "__main__":
    app(["bench", "serving", *sys.argv[1:]])
