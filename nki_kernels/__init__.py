"""NKI kernels for Qwen3.6 on Trainium2, each beside its torch reference, and the interpreter that runs them on CPU."""

from .interpreter import install

install()
