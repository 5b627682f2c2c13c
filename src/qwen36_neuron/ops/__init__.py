"""The arithmetic behind the blocks: a file an operation, each with one clear torch form."""
