"""What the fused operations share, which Numba compiles for a CPU at first use: all that lies between two projections
in one pass.

A decode step in plain torch is some 550 operations of one to three microseconds each, and reads every recurrent state
three times. Here a block's step is one call, and a state is read and written once. They compute in fp32, for the CPU
runtime alone (`kernels: fused`): a device's graphs never see them, and what they compute is defined by the plain torch
forms in `ops` and `model`.
"""
