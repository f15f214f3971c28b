"""The paper's networks, as plain modules and as Lightning modules.

A network and its initialisation are separate: what gradient descent can learn is decided by the
activity at the start, so the initialisations are functions of their own.
"""

from ntk_monitor.models.gru import GRUNetwork, GRURegression
from ntk_monitor.models.initialization import plant_fixed_points_, xavier_

__all__ = ["GRUNetwork", "GRURegression", "plant_fixed_points_", "xavier_"]
