"""The `qwen36` command, above everything else: it may import the library, the plugin, the laboratory and the kernels.

A command is a module here. `app` imports the one that is asked for and no other, so that each starts with what it
needs: `serve` takes no torch, and `plan` no vLLM.
"""

from .app import app

__all__ = ["app"]
