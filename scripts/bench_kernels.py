"""Modelled price of the NKI kernels: `qwen36 bench kernels`, whose `--help` says what it takes."""

import sys

from qwen36_cli import app

if __name__ == "__main__":
    app(["bench", "kernels", *sys.argv[1:]])
