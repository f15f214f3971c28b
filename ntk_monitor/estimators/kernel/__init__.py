"""The engine that measures a kernel: samples, deflation, trials, and the core beside them."""
