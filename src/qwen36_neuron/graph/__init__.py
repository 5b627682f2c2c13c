"""Static graphs without an SDK: their buckets, inputs, options and memory, and the profiles that they are compiled by.

Plain torch and Python, used alike by the runtime on interpreted kernels, by the lowering to HLO and by NxDI, and the
part that a backend without NxDI would use as it is.
"""
