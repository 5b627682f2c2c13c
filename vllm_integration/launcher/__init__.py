"""The launcher: `qwen36 serve`, which starts vLLM with this project's plugin and the chat proxy, and supervises both.

`options` says what can be asked for, `parse` reads a command line into it, `launch` checks and completes it, `commands`
writes the two command lines, `machine` looks at ports, devices and the artifact, `supervision` starts and stops. The
process imports neither torch nor vLLM: it is up at once and stays small.
"""

from .main import main

__all__ = ["main"]
