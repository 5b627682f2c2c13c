"""`python -m qwen36_cli`: the same as `qwen36`."""

from .app import app

if __name__ == "__main__":
    app()
