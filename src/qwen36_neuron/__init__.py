"""Qwen3.6 on AWS Trainium2: configuration, network, hybrid cache, checkpoints and runtimes."""

__version__ = "0.1.0"
