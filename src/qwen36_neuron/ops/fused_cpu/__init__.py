"""Fused operations for a CPU, compiled at first use by Numba: all that lies between two projections in one pass.

A decode step in plain torch is some 550 operations of one to three microseconds each, and reads every recurrent state
three times. Here a block's step is one call, and a state is read and written once. They compute in fp32, and only what
`kernels: fused` of the CPU runtime asks for: a device's graphs never see them, and the plain torch forms in `ops` remain
the definition that they are tested against.
"""
