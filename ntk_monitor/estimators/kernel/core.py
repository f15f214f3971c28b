"""The core's factor: the Gram matrix of site activity, never formed larger than it must be."""

from __future__ import annotations

from collections.abc import Sequence

import scipy.linalg
import torch
from torch import Tensor

from ntk_monitor.estimators.formulas import at_least_float32, participation_ratio
from ntk_monitor.processes import ALONE, Processes

PIECE, NARROWEST = 2**20, 64
"""Numbers of site activity that are converted to float64 at a time, and the fewest rows or columns
of it."""
ROUNDING = 4
"""Rounding units of the largest eigenvalue within which an eigenvalue may be zero."""


class Activities:
    """The columns of ``V``, shown site by site; what a `CoreGram` needs of them is kept.

    That is the columns themselves while they are no more than the rows, and then their ``V V*``:
    at most the memory of a matrix of rows by rows.

    Attributes:
        processes: The processes over which the rows are spread.
        kept: The columns, in float32 at least; none once there is a matrix.
        gram: This process's share of the rows of ``V V*``, in float64; None while columns are kept.
        own: Where this process's rows are among all.
        dtype: Arithmetic of the columns.
    """

    own: slice
    dtype: torch.dtype

    def __init__(self, processes: Processes = ALONE) -> None:
        """Start without columns.

        Args:
            processes: The processes over which the rows are spread.
        """
        self.processes = processes
        self.kept: list[Tensor] = []
        self.gram: Tensor | None = None
        self._counts: list[int] = []
        self._rows, self._columns = 0, 0

    def add(self, V: Tensor, gram: Tensor | None = None) -> None:
        """Take the columns of one site.

        Args:
            V: Shape ``(k_r, m_l)``.
            gram: ``V V*`` in float64, of columns that are more than the rows of a single process.
        """
        V = at_least_float32(V)
        if not self._rows:
            self._counts, self.dtype = self.processes.counts(len(V)), V.dtype
            self.own, self._rows = self.processes.own(self._counts), sum(self._counts)
        self._columns += V.shape[1]
        if self.gram is None and self._columns > self._rows:
            share = self.processes.share(self._rows)
            self.gram = V.new_zeros(share.stop - share.start, self._rows, dtype=torch.float64)
            for earlier in self.kept:
                self._multiply(self.gram, earlier)
            self.kept = []
        if self.gram is None:
            self.kept.append(V)
        elif gram is not None:
            self.gram += gram
        else:
            self._multiply(self.gram, V)

    def _multiply(self, gram: Tensor, V: Tensor) -> None:
        for piece in torch.split(V, max(PIECE // self._rows, NARROWEST), dim=1):
            wide = self.processes.join(piece, counts=self._counts).double()
            gram += wide[self.processes.share(self._rows)] @ wide.T


class CoreGram:
    r"""The Gram matrix :math:`G = V V^*` of site activity, all of it exact.

    Of ``V`` nothing is kept but a factor of ``G``, which has few columns where the spectrum of
    ``G`` decays fast. The rows of ``V`` may be spread over processes; then all have the same
    spectrum, and each its own rows of the factor.

    Attributes:
        spectrum: Eigenvalues of ``G`` that can differ from zero, descending, shape
            ``(min(k, m),)``; nan where the activity is not finite.
        factor: This process's rows of ``F``, shape ``(k_r, r)``, ``r <= m``, with ``F F* = G`` up
            to rounding: directions are left out whose eigenvalues cannot be told from zero in the
            arithmetic of ``V``, or in float32 if that is of 16 bits.
        norm_squared: ``||G||_F^2``.
        trace: ``tr G``.
        is_finite: Whether the activity is.
        processes: The processes.
    """

    def __init__(self, *activities: Tensor, processes: Processes = ALONE) -> None:
        """Take the Gram matrix.

        Args:
            activities: The columns of ``V``, site by site, each of shape ``(k_r, m_l)``.
            processes: The processes over which the rows are spread.
        """
        parts = Activities(processes)
        for V in activities:
            parts.add(V)
        self._take(parts)

    @classmethod
    def of(cls, parts: Activities) -> CoreGram:
        """Take the Gram matrix of activities that were shown one after the other.

        Args:
            parts: The activities.

        Returns:
            The Gram matrix.
        """
        gram = cls.__new__(cls)
        gram._take(parts)
        return gram

    def _take(self, parts: Activities) -> None:
        self.processes = processes = parts.processes
        by_columns = parts.gram is None
        if parts.gram is None:
            small = processes.sum(_columns_gram(parts.kept))
        else:
            small = processes.join(parts.gram)
        self.norm_squared = small.square().sum()
        self.is_finite = bool(torch.isfinite(self.norm_squared))
        self.trace = small.trace()
        dtype = parts.dtype
        if self.is_finite:
            values, vectors = processes.first(*_eigh(small.to(dtype)))
        else:
            vectors = torch.full_like(small, torch.nan)
            values = vectors.diagonal()
        self.spectrum = values.flip(0).clamp(min=0).double().cpu()
        kept = ~(values <= ROUNDING * torch.finfo(dtype).eps * values[-1:])
        vectors = vectors[:, kept]
        if by_columns:
            split = torch.split(vectors.to(dtype), [V.shape[1] for V in parts.kept])
            self.factor = parts.kept[0] @ split[0]
            for V, part in zip(parts.kept[1:], split[1:], strict=True):
                self.factor += V @ part
        else:
            self.factor = (vectors[parts.own] * values[kept].sqrt()).to(dtype)

    @property
    def effective_rank(self) -> float:
        """``(tr G)^2 / ||G||_F^2``; nan for ``G = 0``."""
        return float(participation_ratio(self.trace.square(), self.norm_squared))

    def overlap(self, q: Tensor) -> float:
        r"""How much of the core's largest gain a direction gets.

        .. math:: \|V^* q\|_F^2 / (\|V\|_{op}^2 \|q\|_F^2) \in [0, 1]

        Args:
            q: Direction over the state's rows, this process's part, shape ``(k_r,)`` or
                ``(k_r, n)``.

        Returns:
            The overlap; nan when ``V`` or ``q`` is zero.
        """
        image, size = self.processes.sums(
            self.factor.double().T @ q.double(), q.double().square().sum()
        )
        largest = self.spectrum[0].to(q.device) if len(self.spectrum) else q.new_zeros(())
        return float(image.square().sum() / (largest * size))


def _eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, also where LAPACK's faster way does not come to an end."""
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:  # many eigenvalues alike, as of units that are all dead
        found = scipy.linalg.eigh(symmetric.double().cpu().numpy(), driver="ev")
        values, vectors = (torch.from_numpy(x).to(symmetric) for x in found)
    return values, vectors


def _columns_gram(activities: Sequence[Tensor]) -> Tensor:
    """``V* V`` in float64."""
    columns = sum(V.shape[1] for V in activities)
    gram = activities[0].new_zeros(columns, columns, dtype=torch.float64)
    rows = max(PIECE // max(columns, 1), NARROWEST)
    for pieces in zip(*(torch.split(V, rows) for V in activities), strict=True):
        wide = torch.cat(pieces, dim=1).double()
        gram += wide.T @ wide
    return gram
