"""What `scripts/validate_trn2.py` asks of an installation: its kernels, its memory, its server."""
