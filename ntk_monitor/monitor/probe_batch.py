"""The batch that all probes of a training are taken on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

from ntk_monitor.checks import require
from ntk_monitor.model import quiet
from ntk_monitor.model.batch.copies import fingerprint, keep_batch, on_cpu
from ntk_monitor.model.batch.structure import is_plain, size_of
from ntk_monitor.monitor.host import Host
from ntk_monitor.processes import ALONE, Processes

MOST_BYTES = 2**26
"""Size of the batches of all processes up to which a checkpoint keeps them."""


class ProbeBatch:
    """The probe batch: which one is wanted, and, once it has come, a copy of it; and a second one.

    Where several processes train together, each keeps its own.

    Attributes:
        choice: ``"train"``, ``"val"``, a batch, or a function that makes one.
        content: The copy, or None.
        second: A copy of another batch of the training; None where none has come, where all are
            alike, or where it would be larger than `MOST_BYTES`.
    """

    def __init__(self, choice: Any) -> None:  # noqa: ANN401
        """Begin without a batch."""
        self.choice = choice
        self.content: Any = None
        self.second: Any = None
        self._has_second = self._seen_alike = self._seen_others = False
        self._parts: list[Any] | None = None
        self._alike: bool | None = None
        self._error: Exception | None = None

    @property
    def source(self) -> Any:  # noqa: ANN401
        """A batch of the training, where the one that is probed is none."""
        return None if self._is("train") else self.second

    def wants(self, kind: str) -> bool:
        """Whether the first batch of a kind is still to be kept.

        Args:
            kind: ``"train"`` or ``"val"``.

        Returns:
            True if it is.
        """
        return (
            self._is(kind) and self.content is None and self._parts is None and self._error is None
        )

    def _is(self, kind: str) -> bool:
        return isinstance(self.choice, str) and self.choice == kind

    def keep(self, batch: Any) -> None:  # noqa: ANN401
        """Copy a batch; if that fails, the next probe fails of it, in all processes together.

        Args:
            batch: The batch.
        """
        self.fetch(lambda: batch)

    def fetch(self, make: Callable[[], Any]) -> None:
        """Make a batch and copy it; a failure is one of the next probe, as in `keep`.

        Args:
            make: Makes the batch.
        """
        try:
            self.content = keep_batch(make())
        except Exception as error:
            self._error = error

    def keep_second(self, batch: Any) -> None:  # noqa: ANN401
        """Copy one more batch of the training, once after each `renew_second`.

        Where all batches are the probe batch, so is this one.

        Args:
            batch: The batch; None, one that is too large and one that cannot be copied are not
                kept, nor is the probe batch where there are others.
        """
        if self._has_second or batch is None:
            return
        if self._is("train") and (self.content is None or batch is self.content):
            return
        self._has_second = True
        with suppress(Exception):  # what fails of the first batch is told of
            if fingerprint(batch) == fingerprint(self.content):
                # The first batch of a loop is the one that it was begun with.
                self._has_second, self._seen_alike = self._seen_alike, True
                if self._has_second and not self._seen_others:
                    self.second = self.content
            else:
                self._seen_others = True
                self.second = None if size_of(batch) > MOST_BYTES else keep_batch(batch)

    def renew_second(self) -> None:
        """Let the next batch of the training take the second one's place.

        What a step on the probed batch does to others is known the better the more of them it was
        tried on. A step that is made on the second batch goes on being made on that one.
        """
        if self._is("train"):
            self._has_second = False

    def discard(self) -> None:
        """Let another batch of the training be kept."""
        if self._is("train"):
            self.content = self._parts = self._alike = self._error = None

    @property
    def missing(self) -> str:
        """Why there is no batch to probe on, and what to do about it."""
        remedy = "or pass probe_batch='train', a batch, or a function that makes one"
        if self._is("val"):
            return f"not yet: no validation batch has come so far; wait for the first one, {remedy}"
        return f"not yet: there is no batch to probe on so far; wait for the next one, {remedy}"

    def for_probe(self, host: Host) -> tuple[Any, Processes]:
        """The batch, and the processes that measure it together.

        Args:
            host: The training.

        Returns:
            The batch, or None where one of the processes has none yet. This process alone where all
            have the same batch: together they would count each of its rows several times.
        """
        processes = host.processes
        with processes.together():
            if self.content is None:
                self.content = self._found(host)
            if not processes.all(self.content is not None):
                return None, ALONE
            if processes.size > 1 and self._alike is None:
                self._compare(host)
        return self.content, processes.within(None) if self._alike else processes

    def _found(self, host: Host) -> Any:  # noqa: ANN401
        """The batch, if it need not come from the training's own."""
        if self._error is not None:
            error, self._error = self._error, None  # the next batch is tried again
            raise error
        if self._parts is not None:  # of a checkpoint of as many processes
            parts, self._parts = self._parts, None
            everyone = host.processes.everyone
            return parts[everyone.index] if len(parts) == everyone.size else None
        if isinstance(self.choice, str):
            return None
        if not callable(self.choice):
            return keep_batch(self.choice)
        with quiet(host.module):
            return keep_batch(host.make_batch(self.choice))

    def _compare(self, host: Host) -> None:
        """See whether all processes have the same batch; if not, and they are small, share them."""
        processes = host.processes
        found = fingerprint(self.content)
        own = torch.tensor([-1 - processes.index if found is None else found], device="cpu")
        self._alike = len(set(processes.join(own).tolist())) == 1
        plain = is_plain(self.content)
        if not self._alike and self._is("train") and processes.all(plain):
            small = processes.total(size_of(self.content)) <= MOST_BYTES
            self._parts = host.gathered(on_cpu(self.content)) if small else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: of several processes, all that they measure."""
        several = self._alike is False
        kept = self._is("train") and not several
        second = self.second if not several and is_plain(self.second) else None
        return {
            "batch": self.content if kept and is_plain(self.content) else None,
            "batches": self._parts,
            "second": second,
            "has_second": self._has_second,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the batch of a checkpoint.

        Args:
            state: What `state_dict` gave.
        """
        parts = state.get("batches")
        require(parts is None or isinstance(parts, list), "batches", "a list, or None", parts)
        self.content, self._parts, self._alike = state["batch"], parts, None
        self.second = state.get("second")
        self._has_second = bool(state.get("has_second", self.second is not None))
