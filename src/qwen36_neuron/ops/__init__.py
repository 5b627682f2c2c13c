"""The arithmetic behind the blocks: a folder an operation, a module a form, each with a clear torch form.

`kernels` chooses between that and the NKI kernels for what reads or writes a sequence's memory on a device. `numba`
holds what the compiled CPU forms share.
"""
