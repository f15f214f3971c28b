"""Tasks that generate their own data, as Lightning data modules.

Each is a workload of the paper: small, reproducible from a seed, and with a known answer to the
question what gradient descent can learn on it.
"""

from ntk_monitor.tasks.memory_pro import MemoryProDataModule, memory_pro_trials

__all__ = ["MemoryProDataModule", "memory_pro_trials"]
