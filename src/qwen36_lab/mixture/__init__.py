"""A mixture of experts on a CPU beside transformers': its feed-forward block alone, and a whole model."""
