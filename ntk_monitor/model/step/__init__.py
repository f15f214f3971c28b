"""What training minimises: the step function, and what its loss compares."""

from ntk_monitor.model.step.comparison import Comparison, Head
from ntk_monitor.model.step.functions import (
    ForwardStep,
    LossFn,
    SkippedBatchError,
    StepError,
    StepFunction,
    TrainingStep,
    step_function,
)

__all__ = [
    "Comparison",
    "ForwardStep",
    "Head",
    "LossFn",
    "SkippedBatchError",
    "StepError",
    "StepFunction",
    "TrainingStep",
    "step_function",
]
