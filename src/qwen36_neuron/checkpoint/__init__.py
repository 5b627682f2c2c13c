"""Hugging Face checkpoints: reading them into runtime weights, and making small ones."""
