"""Where the tensors of a step come from: constants, logarithms, features, trained parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

PROBABILITIES = frozenset({"sigmoid", "softmax"})
"""Functions whose results are taken for probabilities."""
LOGARITHMS = frozenset({"log", "log_softmax", "logsigmoid", "log_sigmoid"})
"""Functions whose results are taken for log-probabilities."""
ARRANGING = frozenset({
    *("view", "reshape", "flatten", "unsqueeze", "squeeze", "permute", "transpose")
})
"""Functions that put the same numbers in another shape."""
FLATTENING = frozenset({"view", "reshape", "flatten", "ravel"})
"""Functions that may put rows and features into fewer axes."""
SELECTING = frozenset({"squeeze", "select", "narrow", "__getitem__"})
"""Functions that may take some of the features on the last axis."""
SPLITTING = frozenset({"unbind", "split", "chunk", "tensor_split"})
"""Functions that may take features apart."""
CONSTANT = frozenset({
    *("zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty"),
})
"""Functions whose results hold nothing of their arguments."""
SHAPED_LIKE = CONSTANT | {"rand_like", "randn_like", "randint_like", "new_tensor"}
"""Functions that take no more than a shape and a type of their arguments."""
CHOOSING = frozenset({
    *("__getitem__", "gather", "take_along_dim", "index_select", "masked_select", "masked_fill"),
})
"""Functions whose results hold numbers of their first argument, chosen by others."""
AS_THE_FIRST = frozenset({"type_as", "to", "expand_as", "view_as", "reshape_as"})
"""Functions whose results hold nothing of their arguments but the first."""
VARYING = frozenset({
    *("tensor", "as_tensor", "asarray", "from_numpy", "frombuffer", "from_dlpack"),
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "poisson", "multinomial"),
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_"),
})
"""Functions whose results are others at every batch, whatever their arguments."""


class Origins:
    """What is known of tensors that are still there: nothing is kept for this."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._constants: Any = WeakIdKeyDictionary()
        self._logarithms: Any = WeakIdKeyDictionary()
        self._probabilities: Any = WeakIdKeyDictionary()
        self._columns: Any = WeakIdKeyDictionary()
        self._wholes: Any = WeakIdKeyDictionary()
        self._flattened: Any = WeakIdKeyDictionary()
        self._trained: Any = WeakIdKeyDictionary()

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is known to be the same for every batch.

        Args:
            tensor: The tensor.

        Returns:
            True if it is.
        """
        return tensor in self._constants

    def is_logarithm(self, tensor: Tensor) -> bool:
        """Whether a tensor is taken for log-probabilities.

        Args:
            tensor: The tensor.

        Returns:
            True if it is.
        """
        return tensor in self._logarithms

    def is_probability(self, tensor: Tensor) -> bool:
        """Whether a tensor is taken for probabilities.

        Args:
            tensor: The tensor.

        Returns:
            True if it is.
        """
        return tensor in self._probabilities

    def is_column(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the features of another, which has one more axis.

        Args:
            tensor: The tensor.

        Returns:
            True if it is.
        """
        return tensor in self._columns

    def is_trained(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from what is trained, past a ``detach``, too.

        Args:
            tensor: The tensor.

        Returns:
            True if it was.
        """
        return tensor.requires_grad or tensor in self._trained

    def whole_of(self, tensor: Tensor) -> Any:  # noqa: ANN401
        """What a tensor is some features of, in the graph.

        Args:
            tensor: The tensor.

        Returns:
            None where it is not.
        """
        return self._wholes.get(tensor)

    def shape_before(self, tensor: Tensor) -> tuple[int, ...] | None:
        """The shape of a tensor before it was flattened.

        Args:
            tensor: The tensor.

        Returns:
            None if it was not.
        """
        found: tuple[int, ...] | None = self._flattened.get(tensor)
        return found

    def learn(self, name: str, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
        """Take note of what a call returned.

        Args:
            name: The function's name.
            args: Its positional arguments.
            kwargs: Its arguments by name.
            output: What it returned.
        """
        if output is None and name != "__setitem__":
            return
        inputs = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
        outputs = tensors_in((output,))
        inputs_that_count = inputs[:1] if name in AS_THE_FIRST else inputs
        constant = name in CONSTANT or (
            name not in VARYING
            and all(map(self.is_constant, inputs_that_count))
            and name != "__get__"
        )
        for t in outputs:
            if constant and not t.requires_grad:
                self._constants[t] = True
            else:
                self._constants.pop(t, None)
        if name == "__setitem__" and not all(map(self.is_constant, inputs)):
            self._constants.pop(args[0], None)
        self._learn_trained(name, inputs, outputs)
        if inputs and (name in SPLITTING or (name in SELECTING and isinstance(output, Tensor))):
            self._learn_parts(inputs[0], outputs)
        if not isinstance(output, Tensor):
            return
        if name in FLATTENING and inputs and output.ndim < inputs[0].ndim:
            self._flattened[output] = tuple(inputs[0].shape)
        kinds = ((LOGARITHMS, self._logarithms), (PROBABILITIES, self._probabilities))
        for names, known in kinds:
            if name in names or (name in ARRANGING and inputs and inputs[0] in known):
                known[output] = True

    def _learn_parts(self, whole: Tensor, parts: Sequence[Tensor]) -> None:
        """Take note of what is some features of a tensor, on all its rows."""
        rows = whole.shape[:-1]
        for part in parts:
            if part.shape == rows:
                self._columns[part] = True
            sliced = part.shape[:-1] == rows and part.ndim == whole.ndim
            if part.shape == rows or (sliced and part.shape[-1] < whole.shape[-1]):
                self._wholes[part] = whole.grad_fn

    def _learn_trained(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        """Take note of what was computed from what is trained; of choices, what is chosen from."""
        if name == "__setitem__":
            outputs = [*outputs, *inputs[:1]]
        counted = inputs[:1] if name in CHOOSING or name in AS_THE_FIRST else inputs
        counted = inputs[1:] if name == "where" and len(inputs) > 1 else counted
        if name not in SHAPED_LIKE and any(map(self.is_trained, counted)):
            for t in outputs:
                self._trained[t] = True


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some arguments, and in lists and tuples among these.

    Args:
        values: The arguments.

    Returns:
        The tensors.
    """
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found
