"""Batches, targets and masks of every usual kind."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from zoo.layers import reals

from ntk_monitor import linearize, probe
from ntk_monitor.model import default_target
from ntk_monitor.model.batch.copies import fingerprint, on_cpu
from ntk_monitor.model.batch.structure import size_of

B, T, M, N = 3, 4, 2, 5
EXACT: dict[str, Any] = {"method": "exact", "dtype": None}


class Net(nn.Module):
    """Takes a padded or a packed sequence, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.readout = nn.GRU(M, N, batch_first=True), nn.Linear(N, 2)

    def forward(self, x: Any) -> Tensor:
        h = self.rnn(x)[0]
        if isinstance(h, PackedSequence):
            h = pad_packed_sequence(h, batch_first=True)[0]
        return self.readout(h)


@dataclass
class Items:
    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def pair() -> tuple[Tensor, Tensor]:
    both = reals(B, T, M + 2)
    return both[..., :M], both[..., M:]


@pytest.mark.parametrize(
    "kind",
    [
        lambda x, y: [x, y],
        lambda x, y: {"x": x, "y": y, "name": "other"},
        lambda x, y: {"x": x, "labels": y},
        lambda x, y: (x, (y, torch.ones(B))),
        Items,
        Pair,
    ],
    ids=["list", "mapping", "labels", "target with weights", "dataclass", "named tuple"],
)
def test_every_kind_of_batch_gives_the_same_snapshot(kind: Any) -> None:
    x, y = pair()
    net = Net().double()
    wanted = probe(net, (x, y), **EXACT)
    found = probe(net, kind(x, y), **EXACT)
    assert found.trace.value == pytest.approx(wanted.trace.value, rel=1e-12)
    assert len(found.target_modes) == 2
    for ours, theirs in zip(found.target_modes, wanted.target_modes, strict=True):
        assert (ours.index, ours.output) == (theirs.index, theirs.output)
        for name in ("singular_value", "gain", "learned", "core_overlap", "share", "readout"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-12)


def test_a_forward_of_two_arguments_gets_the_first_two_of_a_tuple() -> None:
    class Two(Net):
        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            return super().forward(x) * gain

    x, _ = pair()
    net = Two().double()
    found = linearize(net, (x, torch.ones(2).double(), 0), dtype=None)
    torch.testing.assert_close(found.state, linearize(Net().double(), x, dtype=None).state)


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_a_packed_batch_is_what_its_mask_would_make_of_it(*, enforce_sorted: bool) -> None:
    x, y = pair()
    lengths = torch.tensor([4, 2, 1] if enforce_sorted else [2, 4, 1])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=enforce_sorted)
    target = pack_padded_sequence(y, lengths, batch_first=True, enforce_sorted=enforce_sorted)
    net = Net().double()
    wanted = probe(net, (x, y), mask_fn=lambda _: lengths, **EXACT)
    for batch in (packed, (packed, target)):
        found = probe(net, batch, **EXACT)
        assert found.state_shape == (B, T, N)
        assert found.trace.value == pytest.approx(wanted.trace.value)
        assert found.core_effective_rank == pytest.approx(wanted.core_effective_rank)
    for left, right in zip(found.target_modes, wanted.target_modes, strict=True):
        assert left.gain == pytest.approx(right.gain)
        assert left.learned == pytest.approx(right.learned)


def test_the_target_is_found_by_name_or_place() -> None:
    y = torch.zeros(2)
    assert default_target({"input_ids": y + 1, "label": y}) is y
    assert default_target((y + 1, y)) is y
    assert default_target((y + 1, [(y, None)])) is y
    for none in (y, {"x": y}, (y,), "text", (y, None)):
        assert default_target(none) is None


def test_a_target_in_a_usual_place_that_does_not_fit_is_left_aside() -> None:
    net, (x, _) = Net().double(), pair()
    with pytest.warns(RuntimeWarning, match="the batch's target is left aside"):
        found = probe(net, (x, torch.zeros(B, 7)), **EXACT)
    assert found.target_modes == ()
    assert found.trace.is_finite
    with pytest.raises(ValueError, match="the target must have the shape of the outputs"):
        probe(net, x, target_fn=lambda _: torch.zeros(B, 7), **EXACT)


def test_rows_of_a_negative_class_do_not_count() -> None:
    net, (x, _) = Net().double(), pair()
    classes = torch.tensor([[0, 1, 1, 0]] * B)
    padded = classes.clone()
    padded[:, 2:] = -100
    found = probe(net, (x, padded), learning_rate=0.1, **EXACT)
    assert not found.target_patterns[:, :, 2:].any()
    assert found.target_patterns[:, :, :2].any()
    flat = probe(net, x, target_fn=lambda _: padded.flatten(), learning_rate=0.1, **EXACT)
    assert flat.target_modes == found.target_modes
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\), or be negative"):
        probe(net, x, target_fn=lambda _: classes + 1, **EXACT)


def test_learned_classes_are_told_by_probabilities() -> None:
    """Logits of any size, probabilities and log-probabilities: solved is one, and no more."""
    classes = torch.arange(6) % 3
    x = torch.nn.functional.one_hot(classes, 3).double()
    for last in (nn.Identity(), nn.Softmax(-1), nn.LogSoftmax(-1)):
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), last).double()
        with torch.no_grad():
            net[0].weight.copy_(torch.eye(3))
            net[1].weight.copy_(30 * torch.eye(3))
        found = probe(net, (x, classes), state="0", **EXACT)
        assert [mode.learned for mode in found.target_modes] == pytest.approx([1, 1, 1], abs=1e-6)


def test_a_lazy_module_before_its_first_batch_is_refused() -> None:
    net = nn.Sequential(nn.LazyLinear(3), nn.Tanh())
    with pytest.raises(ValueError, match=r"0\.weight.*not initialised yet.*one batch"):
        probe(net, torch.zeros(2, 4))


class Opaque:
    """Tensors where nobody looks."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


@pytest.mark.parametrize("wrap", [tuple, list, lambda xs: {"x": xs[0], "y": xs[1]}, Opaque])
def test_a_fingerprint_tells_batches_apart(wrap: Any) -> None:
    x, y = pair()
    other = x.clone()
    other[0, 0, 0] += 1e-6
    found = fingerprint(wrap((x.clone(), y.clone())))
    assert found is not None
    assert found == fingerprint(wrap((x.clone(), y.clone())))
    assert found != fingerprint(wrap((other, y.clone())))
    assert fingerprint((x.bool(), y.bfloat16(), x.new_zeros(()))) is not None
    assert fingerprint((lambda: 0,)) is None  # which cannot be pickled


def test_the_size_of_a_batch_is_that_of_its_tensors() -> None:
    x, y = pair()
    assert size_of({"x": x, "more": [y], "name": "other"}) == x.nbytes + y.nbytes
    assert on_cpu((x, "name"))[1] == "name"
