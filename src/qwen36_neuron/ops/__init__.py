"""The arithmetic behind the blocks: a file an operation, each with one clear torch form.

`kernels` chooses between that and the NKI kernels for what reads or writes a sequence's memory on a device.
"""
