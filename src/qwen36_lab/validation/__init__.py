"""What `qwen36 validate` asks of an installation: its kernels, its memory, its server."""
