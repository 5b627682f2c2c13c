"""The arithmetic behind the blocks: a folder an operation, a module a form, each with a clear torch form.

`kernels` chooses between torch (`torch_kernels`) and NKI (`nki_kernels`) for what a graph runs. `numba` holds what the
compiled CPU forms share.
"""
