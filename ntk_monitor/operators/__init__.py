"""Linear maps between tensor-shaped spaces.

An operator here knows its input and output shapes, its dtype and its device, and how to apply
itself and its adjoint to a batch of tensors; it knows nothing of models. Sums, compositions,
multiples, tensor products, direct sums and partial traces of operators are operators again, check
at construction that their parts fit, and print as the mathematics that they stand for.
"""

from ntk_monitor.operators.base import (
    Adjoint,
    Composition,
    LinearOperator,
    PartialTrace,
    Reshaped,
    Scaled,
    Sum,
)
from ntk_monitor.operators.blocks import BlockRow, DirectSum
from ntk_monitor.operators.dense import Dense
from ntk_monitor.operators.structured import Diagonal, Identity, OuterProduct
from ntk_monitor.operators.tensor_product import TensorProduct

__all__ = [
    "Adjoint",
    "BlockRow",
    "Composition",
    "Dense",
    "Diagonal",
    "DirectSum",
    "Identity",
    "LinearOperator",
    "OuterProduct",
    "PartialTrace",
    "Reshaped",
    "Scaled",
    "Sum",
    "TensorProduct",
]
