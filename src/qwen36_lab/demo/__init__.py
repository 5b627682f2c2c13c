"""The demo checkpoint: the data it learns from, its training, and how well it does."""
