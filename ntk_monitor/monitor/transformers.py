"""`NTKTrainerCallback` under its documented name of version 0.1."""

from ntk_monitor.monitor.integrations.transformers import NTKTrainerCallback

__all__ = ["NTKTrainerCallback"]
