"""The activity of weight sites, site by site as a forward pass goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ntk_monitor.compat import without_torch_function
from ntk_monitor.model.batch.structure import first_tensor
from ntk_monitor.model.sites.activity import joined
from ntk_monitor.model.sites.operations.table import READERS, uses_in
from ntk_monitor.model.sites.operations.use import Use
from ntk_monitor.model.sites.placement import Placement
from ntk_monitor.model.sites.placing import PlacedUses
from ntk_monitor.model.sites.records import Record, layer_uses
from ntk_monitor.model.sites.registry import registered_uses
from ntk_monitor.model.sites.watch import Watch
from ntk_monitor.model.sites.weight_sites import WeightSite
from ntk_monitor.model.state.calls import RECURRENT, Call

Number = tuple[int, int]
"""Of a site: which of the placed uses, and which group of the weight."""
Visit = Callable[[Number, WeightSite], None]


class Collector(Watch):
    """Reads again, in a second pass, the uses that were placed after a first one.

    A site is complete with its last time step. It is shown, and its activity is let go; what stays
    is a site of the same shape without memory.

    Attributes:
        outputs: What submodules that are watched returned, call by call.
    """

    def __init__(self, placed: PlacedUses, visit: Visit, watched: Iterable[str] = ()) -> None:
        """Prepare for a pass.

        Args:
            placed: The uses.
            visit: Sees each site once, in the order in which they are complete, with its number.
            watched: Paths of submodules whose outputs are kept.
        """
        super().__init__()
        self._placed, self._visit = placed, visit
        self.outputs: dict[str, list[Tensor]] = {path: [] for path in watched}
        self._wanted: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        self._numbers: set[Any] = set()
        self._found: list[dict[int, Record]] = []
        self._sites: dict[int, list[WeightSite]] = {}
        self._calls: Counter[str] = Counter()
        for i, (uses, _) in enumerate(placed.uses):
            self._found.append({})
            for step, record in enumerate(uses):
                self._wanted.setdefault(record.key, []).append((i, step))
                self._numbers.add(record.key[0])

    @property
    def sites(self) -> dict[Number, WeightSite]:
        """All sites in their usual order, their activity all zeros in one number of memory.

        Raises:
            RuntimeError: If the pass was not the one in which they were placed.
        """
        for i, (uses, _) in enumerate(self._placed.uses):
            if i not in self._sites:
                raise RuntimeError(
                    f"a use of a weight, {uses[0].label}, was seen in one forward pass and not in "
                    "the next: a probe needs a forward pass that repeats itself"
                )
        ordered = sorted(self._sites.items())
        return {(i, g): site for i, sites in ordered for g, site in enumerate(sites)}

    def see(self, func: Any, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Call an operation, and read what is wanted of it."""
        output = func(*args, **kwargs)
        if name in READERS and number in self._numbers:
            with without_torch_function():
                for i, use in enumerate(uses_in(name, args, kwargs)):
                    self._take((number, i), use, None)
        return output

    def record_call(self, call: Call) -> None:
        """Read what is wanted of a submodule's call.

        Args:
            call: The call.
        """
        output = first_tensor(call.output)
        if call.path in self.outputs and isinstance(output, Tensor):
            self.outputs[call.path].append(output.detach())
        number = self._calls[call.path]
        self._calls[call.path] += 1
        if call.path not in self._numbers:
            return
        with without_torch_function():
            if isinstance(call.module, RECURRENT):
                for local, use, valid in layer_uses(call):
                    self._take((call.path, number, local), use, valid)
            for use in registered_uses(call.module, call.args, call.kwargs):
                self._take((call.path, number, use.place), use, None)

    def _take(self, key: tuple[Any, ...], use: Use, valid: Tensor | None) -> None:
        for i, step in self._wanted.pop(key, ()):
            uses, order = self._placed.uses[i]
            self._found[i][step] = replace(uses[step], use=use, valid=valid)
            if len(self._found[i]) == len(uses):
                complete, self._found[i] = self._found[i], {}
                in_order = [complete[number] for number in range(len(uses))]
                self._sites[i] = self._shown(i, in_order, order)

    def _shown(self, i: int, uses: Sequence[Record], order: Placement) -> list[WeightSite]:
        sites = joined(uses, self._placed.rows, order, self._placed.valid)
        for g, site in enumerate(sites):
            self._visit((i, g), site)
        return [site.without_activity() for site in sites]
