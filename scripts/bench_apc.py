"""What prefix caching reuses, and what that is worth: `qwen36 bench apc`, whose `--help` says what it takes."""

import sys

from qwen36_cli import app

if __name__ == "__main__":
    app(["bench", "apc", *sys.argv[1:]])
