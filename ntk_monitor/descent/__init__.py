"""What the coming steps of a training do: the update, its rates, its forecast, its transfer."""

from ntk_monitor.descent.optimizers import (
    NO_CLIPPING,
    Clipping,
    Descent,
    descent_of,
    plain_descent,
    plain_optimizer,
)
from ntk_monitor.descent.prediction import Predicted, Setting, predict
from ntk_monitor.descent.schedules import Ahead, Scheduled, read_ahead
from ntk_monitor.descent.times import crossing
from ntk_monitor.descent.velocity import Velocity

__all__ = [
    "NO_CLIPPING",
    "Ahead",
    "Clipping",
    "Descent",
    "Predicted",
    "Scheduled",
    "Setting",
    "Velocity",
    "crossing",
    "descent_of",
    "plain_descent",
    "plain_optimizer",
    "predict",
    "read_ahead",
]
