"""Watching the operations of a forward pass: where weights multiply activity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.weak import WeakIdKeyDictionary

from ntk_monitor.compat import tree_leaves, tree_map, without_torch_function
from ntk_monitor.model.batch.structure import first_tensor, tensors_of
from ntk_monitor.model.isolation.interception import Function
from ntk_monitor.model.isolation.memory import address_of
from ntk_monitor.model.sites.operations.table import READERS, uses_in
from ntk_monitor.model.sites.operations.use import Use, layout
from ntk_monitor.model.sites.records import REGISTERED, Origin, Record, has_copies, layer_uses
from ntk_monitor.model.sites.registry import registered_uses
from ntk_monitor.model.sites.row_tracking import MOVING, Operation, RowTracker
from ntk_monitor.model.sites.saved_tensors import Sketch, TooLargeError
from ntk_monitor.model.sites.watch import Watch
from ntk_monitor.model.state.calls import RECURRENT, Call
from ntk_monitor.model.state.finding import recurrent_source
from ntk_monitor.model.state.row_labels import change_all, fits
from ntk_monitor.model.state.sources import read_rows, replaced

OUTSIDE = frozenset({
    *("add", "add_", "sub", "sub_", "subtract", "rsub", "mul", "mul_", "multiply", "div", "div_"),
    *("true_divide", "pow", "lerp", "addcmul", "addcdiv", "maximum", "minimum", "clamp", "exp"),
    *("softmax", "sigmoid", "tanh", "relu", "prelu", "rrelu", "layer_norm", "rms_norm"),
    *("group_norm", "batch_norm", "instance_norm", "normalize", "cat", "concat", "concatenate"),
    *("stack", "expand", "expand_as", "repeat", "tile", "repeat_interleave", "where"),
    *("masked_fill", "masked_fill_", "masked_scatter", "masked_scatter_", "index_put"),
    *("index_put_", "index_add", "scatter", "__setitem__", "copy_", "fill_", "cumsum", "sum"),
    *("mean", "flip", "_grouped_mm", "grouped_mm"),
})
"""Operations without a weight site on the state's rows by nature: they scale, shift, normalise or
place, or their rows are sorted by expert."""
COPYING = frozenset({"repeat", "tile", "repeat_interleave"})
"""Operations after which an entry of a parameter stands in several places."""
DRAWING = frozenset({
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "poisson", "multinomial"),
    *("rand_like", "randn_like", "randint_like", "normal_", "uniform_", "random_", "bernoulli_"),
    *("exponential_", "cauchy_", "log_normal_", "geometric_"),
})
"""Operations whose results are data, whatever they are given."""
ADDING = frozenset({"add", "add_", "sub", "sub_", "subtract", "rsub"})
SCALING = {
    **dict.fromkeys(("mul", "mul_", "multiply", "__mul__", "__rmul__"), 1),
    **dict.fromkeys(("div", "div_", "divide", "true_divide", "__truediv__"), -1),
    **dict.fromkeys(("neg", "neg_", "negative", "__neg__"), 0),
}
"""Operations that multiply with a number, and the power in which it comes in."""
IN_PLACE = frozenset({
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "hardtanh", "hardswish", "hardsigmoid"),
    *("silu", "mish", "rrelu", "threshold", "dropout", "alpha_dropout", "feature_alpha_dropout"),
    *("dropout1d", "dropout2d", "dropout3d"),
})
"""Functions that write into their first argument if they are asked to."""


class Recorder(Watch):
    """Records the uses of studied parameters while it is entered; nothing is changed.

    A tensor that depends on no data but on parameters counts as them: a transposed, masked or
    normalised weight is still a weight.

    Attributes:
        calls: The calls of submodules that `record_call` was told of.
        records: The uses, in order.
        theta: The studied parameters as they were given.
        sketch: Makes stand-ins for what is returned, or None.
        met: For parameters that meet data in another operation, the name of one such operation.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        constants: Iterable[Tensor],
        held: Iterable[Tensor] = (),
        sketch: Sketch | None = None,
        room: float = math.inf,
    ) -> None:
        """Start with what is known.

        Args:
            parameters: The studied parameters, as the model will see them.
            constants: Tensors that depend on neither parameters nor data.
            held: Tensors of which this is not known, that the module holds in other ways.
            sketch: Makes stand-ins for what is returned; None to keep tensors and activity.
            room: Bytes that what is kept may take.
        """
        super().__init__()
        self.theta = dict(parameters)
        self.calls: list[Call] = []
        self.records: list[Record] = []
        self.met: dict[str, str] = {}
        self.sketch, self._room = sketch, room
        self._leaves: dict[int, tuple[str, Tensor]] = {}
        self._layer_calls: Counter[str] = Counter()
        self._origins: dict[int, Origin] = {}
        self._spans: dict[int, list[tuple[int, int, Origin]]] = {}
        self._alive: list[Tensor] = []  # so that no address is used twice
        self._unread: dict[int, list[_Once]] = {}
        self._returned: dict[int, list[int]] = {}
        self._expansions: Any = WeakIdKeyDictionary()
        self.rows = RowTracker()
        for tensor in held:
            self._learn(tensor, Origin(is_held=True))
        for constant in constants:
            self._learn(constant, Origin())
        for name, parameter in parameters.items():
            self.learn_parameter(name, parameter)

    def learn_parameter(self, name: str, tensor: Tensor) -> None:
        """From now on a tensor is a studied parameter.

        Args:
            name: The parameter.
            tensor: The tensor that is in its place, which is a leaf of the graph.
        """
        self._leaves[id(tensor)] = (name, tensor)
        address = address_of(tensor)
        if not address:
            return
        origin, begin = Origin((name,)), tensor.data_ptr()
        spans = self._spans.setdefault(address, [])
        spans.append((begin, begin + tensor.numel() * tensor.element_size(), origin))
        self._learn(tensor, origin)

    def forget_parameter(self, address: int) -> None:
        """From now on no parameter is in some place.

        Args:
            address: Where the memory of one was, or of several.
        """
        self._spans.pop(address, None)
        self._origins.pop(address, None)

    def knows(self, address: int) -> bool:
        """Whether a parameter is in some place.

        Args:
            address: Of its memory.

        Returns:
            True if one is.
        """
        return address in self._spans

    def reaching(self, graph: Container[Any]) -> set[str]:
        """The studied parameters in a graph.

        Args:
            graph: Its nodes, and its leaves by id.

        Returns:
            Their names.
        """
        return {name for leaf, (name, _) in self._leaves.items() if leaf in graph}

    def see(self, func: Function, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Call an operation and look at what it did."""
        if _writes(name, args, kwargs):
            self._keep_before_writing(args[0])
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        origins = [self.origin(t) for t in inputs]
        output = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        origins = _met_by(name, inputs, origins, outputs)
        is_data = partial(self._is_data, constants=name in READERS)
        depends = partial(self._is_data, constants=False)
        operation = Operation(name, func, args, kwargs, outputs, is_data, depends)
        if name == "__setitem__":
            outputs.append(args[0])
        with without_torch_function(), torch.no_grad():
            self.rows.see(operation)
        if not outputs or name == "__get__":
            return output
        if name not in DRAWING and None not in origins:
            self._learn_constants(operation, inputs, number)
            return output
        studied = any(o is not None and o.names for o in origins)
        if name not in DRAWING and studied and outputs[0].requires_grad:
            self._meet(name, self._read(operation, number), origins)
        for t in outputs:
            self._forget(t)  # what data was written into, in place, is a constant no more
        return output

    def _learn_constants(self, operation: Operation, inputs: Sequence[Tensor], number: int) -> None:
        """What is made of parameters and constants alone: where it comes from."""
        name, args, outputs = operation.name, operation.args, operation.outputs
        pairs = [(t, o) for t in inputs if (o := self.origin(t)) is not None]
        origins = [o for _, o in pairs]
        names = tuple(dict.fromkeys(n for o in origins for n in o.names))
        pending = [r for o in origins for r in o.pending]
        copies = {n for t, o in pairs if has_copies(t) for n in o.names}
        copies = copies if len(copies) < len(names) else set()
        constant = any(not o.names for o in origins)
        if names and (constant or copies) and name not in ADDING:
            read = [_in_place_of_pending(record) for record in self._read(operation, number)]
            pending += [r for r in read if not (copies and has_copies(r.use.weight))]
            for n in copies:  # a learned first state of all trials: no weight, but what one acts on
                self.met.setdefault(n, name)
        if names and name in COPYING and not self._expanded(inputs, outputs[0]):
            self._meet(name, [], origins)  # what comes out counts as data
            return
        held = not names and any(o.is_held for o in origins)
        made = Origin(names, derived=bool(names), pending=tuple(pending), is_held=held)
        if len(names) == 1 and not pending:
            made = self._scaled(name, args) or made
            made = replace(made, is_scaled=True) if name in COPYING else made
        if names:
            parts = tuple((o.names, o.part, layout(t)) for t, o in pairs if o.names)
            made = replace(made, part=hash(parts))
        first = args[0] if args else None
        if name in MOVING and isinstance(first, Tensor) and first in self._expansions:
            self._expansions[outputs[0]] = operation.again(self._expansions[first])
        for t in outputs:
            if _tells_more(made, self._origins.get(address_of(t) or 0)):
                self._learn(t, made)

    def _expanded(self, inputs: Sequence[Tensor], output: Tensor) -> bool:
        """Whether a copied parameter is one that could be expanded; it is read as such."""
        if len(inputs) != 1:
            return False
        with without_torch_function():
            if not fits(inputs[0].shape, output.shape):
                return False
            self._expansions[output] = inputs[0].expand(output.shape)
        return True

    def _as_expanded(self, value: Any) -> Any:  # noqa: ANN401
        """A copied parameter as an expanded one; all else as it is."""
        return self._expansions.get(value, value) if isinstance(value, Tensor) else value

    def _scaled(self, name: str, args: Sequence[Any]) -> Origin | None:
        """A parameter times a number; None where an operation does something else."""
        if name not in SCALING:
            return None
        with without_torch_function():
            factor, found = 1.0 if SCALING[name] else -1.0, []
            for i, each in enumerate(args):
                origin = self.origin(each) if isinstance(each, Tensor) else None
                if origin is not None and origin.names:
                    found.append(origin)
                    if i and SCALING[name] < 0:
                        return None
                elif isinstance(each, bool) or (isinstance(each, Tensor) and each.ndim):
                    return None
                else:
                    factor *= float(each) ** SCALING[name]
        if len(found) != 1 or found[0].is_computed:
            return None
        return replace(found[0], derived=True, is_scaled=True, scale=found[0].scale * factor)

    def _meet(self, name: str, read: list[Record], origins: Iterable[Origin | None]) -> None:
        """Parameters meet data: in a use, or in another way that is noted."""
        weights = [o for r in read for o in (r.weight, r.bias) if o is not None]
        for origin in origins:
            if origin is None or not origin.names:
                continue
            if name in ADDING or origin not in weights:
                self.records.extend(origin.pending)
                if origin.pending:
                    continue
            if origin not in weights:
                for n in origin.names:
                    self.met.setdefault(n, name)
        self.records.extend(r for r in read if not (name in ADDING and r.is_pending))

    def _is_data(self, tensor: Tensor, *, constants: bool) -> bool:
        """Whether a tensor has rows of its own: data, or a constant that meets a weight."""
        origin = self.origin(tensor)
        return origin is None or origin.is_held or (constants and not origin.names)

    def origin(self, tensor: Tensor) -> Origin | None:
        """Where a tensor comes from.

        Args:
            tensor: The tensor.

        Returns:
            Its origin; None if it depends on data.
        """
        address = address_of(tensor)
        if address is None:
            return None
        found = self._origins.get(address) if address else Origin()
        spans = self._spans.get(address, ())
        if len(spans) > 1:  # parameters that share a storage, each with a part of it
            at = tensor.data_ptr()
            found = next((o for begin, end, o in spans if begin <= at < end), found)
        if found is not None and found.names and not tensor.requires_grad:
            return Origin()  # detached
        return found

    def untrained(self, name: str) -> int | None:
        """The row of a parameter that no gradient reaches, as the padding of an embedding.

        Args:
            name: The parameter.

        Returns:
            The row, or None. Forward derivatives would see what training does not change.
        """
        uses = [r for r in self.records if r.weight is not None and name in r.weight.names]
        rows = {None if r.weight is None or r.weight.derived else r.use.untrained for r in uses}
        return rows.pop() if len(rows) == 1 and name not in self.met else None

    def record_call(self, call: Call) -> None:
        """Take note of a submodule's call, and of the uses inside a recurrent layer.

        Args:
            call: The call.
        """
        with without_torch_function():
            kept = call if self.sketch is None else self.sketch.of(call)
            found = tensors_of(call.output)
            first = first_tensor(call.output)
            first = first.data if isinstance(first, PackedSequence) else first
            self.calls.append(
                replace(
                    kept,
                    uses=len(self.records),
                    nodes=tuple(t.grad_fn for t in found if t.grad_fn is not None),
                    node=None if first is None else first.grad_fn,
                    varies=not all(self._studied(t) for t in found),
                    rows=self.rows.of(first),
                )
            )
            output = first_tensor(kept.output)
            if self.sketch is None and isinstance(output, Tensor):
                self._spend(output.numel() * output.element_size())
                if at := address_of(output):
                    self._returned.setdefault(at, []).append(len(self.calls) - 1)
            number = self._layer_calls[call.path]
            self._layer_calls[call.path] += 1
            if isinstance(call.module, RECURRENT):
                self._read_layer(call, number)
            for use in registered_uses(call.module, call.args, call.kwargs):
                self._read_registered(call, number, use)

    def _keep_before_writing(self, tensor: Any) -> None:  # noqa: ANN401
        """Copy what is in a tensor that will be written to, where it is still to be read."""
        address = address_of(tensor) if isinstance(tensor, Tensor) else None
        if not address:
            return
        with without_torch_function():
            for activity in self._unread.pop(address, ()):
                activity.read_now()
            for number in self._returned.pop(address, ()):
                call = self.calls[number]
                old = first_tensor(call.output)
                assert isinstance(old, Tensor)
                self.calls[number] = replace(call, output=replaced(call.output, old, old.clone()))

    def _read_registered(self, call: Call, number: int, use: Use) -> None:
        output = first_tensor(call.output)
        if isinstance(output, Tensor):
            self.records += self._of_call(call, (number, use.place), use, (output,), REGISTERED)

    def _read_layer(self, call: Call, number: int) -> None:
        output, last = call.output
        source = recurrent_source(call)
        output = output if isinstance(output, Tensor) else output.data
        rows = change_all(
            self.rows.of(output), lambda x: read_rows(source, call.output[0], x)[..., 0].flatten()
        )
        returned = (output, *(last if isinstance(last, tuple) else (last,)))
        for local, use, valid in layer_uses(call):
            for record in self._of_call(call, (number, local), use, returned, number):
                self.rows.used[record.key] = rows
                self.records.append(replace(record, path=call.path, local=local, valid=valid))

    def _of_call(
        self, call: Call, at: tuple[int, Any], use: Use, returned: tuple[Tensor, ...], number: int
    ) -> list[Record]:
        """The use of a studied weight in a call of a submodule, or none."""
        origins = self._studied(use.weight), self._studied(use.bias)
        if not any(origins) or not returned[0].requires_grad:
            return []
        key, reads = (call.path, *at), tensors_of((call.args, call.kwargs))
        if number == REGISTERED:
            self._follow(use, key, returned[0])
        return [self._record(use, origins, key, returned, (call.path, at[1]), number, reads)]

    def _record(
        self,
        use: Use,
        origins: tuple[Origin | None, Origin | None],
        key: tuple[Any, ...],
        returned: tuple[Tensor, ...],
        label: tuple[Any, ...],
        call: int,
        reads: Iterable[Tensor],
    ) -> Record:
        """What is kept of a use; ``reads`` are tensors that its activity is read off."""
        output: Tensor | None = returned[0]
        if self.sketch is not None:
            use, output = replace(use, read=_no_tensor), None
        else:
            self._spend(use.activity_bytes(returned[0].element_size()))
            once = _Once(use.read)
            use = replace(use, read=once)
            for address in {address_of(t) for t in reads}:
                self._unread.setdefault(address or 0, []).append(once)
        # A view is in the graph no more where it is written to; what it is a view of is.
        both = (t for t in (*returned, *(t._base for t in returned)) if t is not None)
        nodes = tuple(t.grad_fn for t in both if t.grad_fn is not None)
        return Record(use, *origins, key, output, nodes, label, call)

    def _follow(self, use: Use, key: tuple[Any, ...], returned: Tensor) -> None:
        """Note the rows of a use, which are those of what the operation returned."""
        count = prod(use.rows)
        numbers = use.laid_out(torch.arange(count, device=returned.device))
        if numbers.shape != returned.shape:  # a cell returns fewer features than are weighed
            numbers = numbers[..., :1]
        if fits(numbers.shape, returned.shape):
            self.rows.use(key, returned, numbers, count)

    def _read(self, operation: Operation, number: int) -> list[Record]:
        """The uses of studied parameters in one operation."""
        name, output = operation.name, operation.outputs[0]
        if name not in READERS:
            return []
        with without_torch_function():
            args, kwargs = tree_map(self._as_expanded, (operation.args, operation.kwargs))
            uses = uses_in(name, args, kwargs)
        reads = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        found: list[Record] = []
        places: set[int] = set()
        # Where either factor could be the weight, one that is studied goes before a studied bias.
        for i, use in sorted(enumerate(uses), key=lambda x: self._studied(x[1].weight) is None):
            weight, bias = self._studied(use.weight), self._studied(use.bias)
            if weight is None and (bias is None or use.place in places):
                continue
            places.add(use.place)
            key, origins = (number, i), (weight, bias)
            parts = (o and (o.names, o.part, p) for o, p in zip(origins, use.part, strict=True))
            self._follow(use, key, output)
            label = (name, use.place, *parts)
            found.append(self._record(use, origins, key, (output,), label, number, reads))
        return found

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise TooLargeError("what a pass keeps takes more memory than it may")

    def _studied(self, tensor: Tensor | None) -> Origin | None:
        origin = None if tensor is None else self.origin(tensor)
        return origin if origin is not None and origin.names else None

    def _learn(self, tensor: Tensor, origin: Origin) -> None:
        address = address_of(tensor)
        if address:
            self._origins[address] = origin
            self._alive.append(tensor.detach())

    def _forget(self, tensor: Tensor) -> None:
        address = address_of(tensor)
        origin = None if address is None else self._origins.get(address)
        if address and origin is not None and not (origin.names and not origin.derived):
            del self._origins[address]


def _tells_more(made: Origin, known: Origin | None) -> bool:
    """Whether what came out is more than what is known of its memory, which was written to then."""
    if known is None:
        return True
    if made.is_held:  # written into a constant
        return not (known.names or known.is_held)
    return set(known.names) < set(made.names) and (known.derived or not known.names)


def _met_by(
    name: str,
    inputs: Sequence[Tensor],
    origins: Sequence[Origin | None],
    outputs: Sequence[Tensor],
) -> list[Origin | None]:
    """Where arguments come from; what the module holds is data where it makes no weight."""
    pairs = zip(inputs, origins, strict=True)
    shapes = {t.shape for t, o in pairs if o is not None and o.names}
    if not shapes or (name not in READERS and all(t.shape in shapes for t in outputs)):
        return list(origins)
    return [None if o is not None and o.is_held else o for o in origins]


def _in_place_of_pending(record: Record) -> Record:
    """A use of a weight that is a product with a constant, in which that may be the weight."""
    pending = () if record.weight is None else record.weight.pending
    return replace(record, instead=frozenset(each.key for each in pending))


class _Once:
    """Reads an activity when it is asked for, or before that is written to."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __call__(self) -> Tensor:
        return self._read()

    def read_now(self) -> None:
        """Keep a copy."""
        found = self._read().detach().clone()
        self._read = lambda: found


def _no_tensor() -> Tensor:
    """Refuse to read activity in a pass that does not keep it; raises a RuntimeError."""
    raise RuntimeError("activity is not kept in this pass")


def _writes(name: str, args: Any, kwargs: Any) -> bool:  # noqa: ANN401
    """Whether an operation writes into its first argument."""
    if name in IN_PLACE:
        return bool(args) and (bool(kwargs.get("inplace")) or any(a is True for a in args[1:]))
    by_name = name.endswith("_") and not name.startswith("_")
    return bool(args) and (by_name or name in {"__setitem__", "set_"})
