"""Probing without a trace: the quiet context, object state, kernels, writes, memory and time."""
