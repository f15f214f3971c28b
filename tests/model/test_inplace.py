"""Products in place: the numbers of a copy, and parameters that are what they were to the bit."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest
import torch
from conftest import CASES, Case
from torch import Tensor, nn

from ntk_monitor import Snapshot, linearize, probe
from ntk_monitor.estimators import draw_tangents
from ntk_monitor.model import by_trial, displacement, shards
from ntk_monitor.model.displacement import Displacement
from ntk_monitor.model.shards import Gaussian, Given, inner, pieces, portions
from ntk_monitor.model.spread import Spread, place_of

CPU = torch.device("cpu")


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


def spread_of(parameters: Sequence[Tensor]) -> Spread:
    return Spread([place_of(p) for p in parameters])


def tangent(parameters: list[Tensor], seed: int = 0) -> Gaussian:
    return Gaussian(seed, 0, spread_of(parameters), CPU)


def vectors(net: nn.Module, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(net.parameters()).dtype
    return tuple(torch.randn(6, n, generator=generator, dtype=dtype) for n in (3, 2))


def small(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)]
    return nn.Sequential(*layers).to(dtype)


# The numbers.


def _of_the_state(scalars: dict[str, float]) -> dict[str, float]:
    """Without what is said of the coming steps, which takes a copy of the parameters."""
    steps = ("loss", "gradient", "update", "rate", "transfer", "transfer_stderr", "steps_to_learn")
    return {tag: value for tag, value in scalars.items() if not {*tag.split("/")} & {*steps}}


def compare(found: Snapshot, wanted: Snapshot) -> None:
    """The same numbers; where rounding decides when deflation ends, within their errors."""
    scalars, others = found.scalars(), wanted.scalars()
    scalars, others = _of_the_state(scalars), _of_the_state(others)
    assert scalars.keys() == others.keys()
    for tag, value in scalars.items():
        if tag == "ntk/probe_seconds" or tag.endswith("_stderr"):
            continue
        errors = [s.get(f"{tag}_stderr", 0.0) for s in (scalars, others)]
        gap = 3 * sum(errors) if "deflated" in {found.scheme, wanted.scheme} else 0.0
        assert value == pytest.approx(others[tag], rel=1e-7, abs=gap), tag
    assert found.coverage == wanted.coverage
    assert found.products == wanted.products
    torch.testing.assert_close(found.core_spectrum, wanted.core_spectrum)


def test_a_probe_in_place_has_the_numbers_of_one_of_a_copy(case: Case) -> None:
    """Its tangents are the same; dense truth is in test_probe_truth."""
    settings = {"state": case.state, "dtype": None}
    module, batch = case.make_model(), case.make_batch()
    before = bits(list(module.parameters()))
    ours, copied = (
        linearize(module, batch, method=method, **settings)
        for method in ("in-place", "finite-difference")
    )
    torch.testing.assert_close(
        ours.factor(3).sample(range(4)), copied.factor(3).sample(range(4)), rtol=1e-7, atol=1e-8
    )
    u = torch.randn(ours.state.shape, dtype=ours.state.dtype)
    pulled, wanted = ours.factor(3).pull(u), copied.factor(3).pull(u)
    torch.testing.assert_close(torch.cat([x.flatten() for x in pulled]), wanted)
    assert ours.factor(3).inner(2, pulled) == pytest.approx(copied.factor(3).inner(2, wanted))
    torch.testing.assert_close(
        ours.factor(3).push(pulled), copied.factor(3).push(wanted), rtol=1e-6, atol=1e-8
    )
    settings |= {"learning_rate": 0.1, "tolerance": 0.0, "max_products": 60}
    found = probe(module, batch, method="in-place", **settings)
    compare(found, probe(module, batch, method="finite-difference", **settings))
    assert found.method == "in-place"
    assert bits(list(module.parameters())) == before


@pytest.mark.parametrize("tier", ["core", "modes", "kernel"])
def test_every_tier_in_place(tier: str) -> None:
    case = CASES["gru"]
    module, batch = case.make_model(), case.make_batch()
    settings = {"state": case.state, "dtype": None, "learning_rate": 0.1, "max_products": 30}
    found, wanted = (
        probe(module, batch, method=method, tier=tier, **settings)
        for method in ("in-place", "finite-difference")
    )
    assert found.target_modes
    for mode, other in zip(found.target_modes, wanted.target_modes, strict=True):
        assert mode.gain == pytest.approx(other.gain, rel=1e-9, nan_ok=True)
        assert mode.steps_to_learn == other.steps_to_learn or tier != "core"
        if mode.steps_to_learn is not None:
            assert mode.steps_to_learn == pytest.approx(other.steps_to_learn, rel=1e-9)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 2**16 - 1, 2**16 + 15, 2**16 + 16, 3 * 2**16 + 5])
def test_tangents_drawn_piece_by_piece_are_those_drawn_at_once(size: int) -> None:
    wanted = draw_tangents(size, range(3, 4), 7)[0]
    cuts = [t.clone() for t in torch.tensor_split(torch.zeros(size), 3)]
    read = Gaussian(7, 3, spread_of(cuts), CPU).reader()
    assert torch.equal(torch.cat([read([piece]) for piece in pieces(cuts)]), wanted)
    read = Gaussian(7, 3, spread_of(cuts), CPU).reader()
    assert torch.equal(torch.cat([read(portion.pieces) for portion in portions(cuts)]), wanted)
    given = [torch.randn(len(cut), generator=torch.Generator().manual_seed(1)) for cut in cuts]
    product = inner(Gaussian(7, 3, spread_of(cuts), CPU), given, spread_of(cuts))
    assert product == pytest.approx(float(wanted.double() @ torch.cat(given).double()))


def test_pieces_cover_tensors_of_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PIECE", 4)
    numbers = torch.arange(60.0)
    whole = [
        numbers.reshape(3, 20),
        numbers.reshape(5, 3, 2, 2).to(memory_format=torch.channels_last),
        numbers.reshape(6, 10).T,
        torch.tensor(3.0),
        torch.empty(0, 3),
        numbers.reshape(1, 1, 60),
    ]
    for i, tensor in enumerate(whole):
        found = [piece for piece in pieces(whole) if piece.parameter == i]
        flat = [x for piece in found for x in piece.numbers.flatten().tolist()]
        assert flat == tensor.flatten().tolist()
        starts = [piece.start for piece in found]
        assert starts == [sum(p.numbers.numel() for p in found[:j]) for j in range(len(found))]
        assert all(piece.numbers.numel() <= 4 for piece in found)
    together = list(portions(whole))
    flat = torch.cat([portion.read() for portion in together])
    assert flat.tolist() == torch.cat([tensor.flatten() for tensor in whole]).tolist()
    assert all(sum(portion.sizes) <= 4 for portion in together)
    assert len(together) < sum(len(portion.pieces) for portion in together)
    apart = [tensor.clone() for tensor in whole]  # of the same layouts
    for portion in portions(apart):
        portion.write(portion.read() + 1)
    for before, after in zip(whole, apart, strict=True):
        assert torch.equal(after, before + 1)


# The way back.

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "usual": lambda x: x,
    "zeros": torch.zeros_like,
    "negative zeros": lambda x: -torch.zeros_like(x),
    "tiny": lambda x: x * torch.finfo(x.dtype).tiny,
    "of many sizes": lambda x: x * 10 ** (-6 * torch.rand_like(x)),
    "huge": lambda x: x * 1e4,
    "not finite": lambda x: torch.where(x > 1, torch.nan, torch.where(x < -1, -torch.inf, x)),
    "transposed": lambda x: x.T,
    "one number": lambda x: x[0, 0],
    "none": lambda x: x[:0],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_come_back_to_the_bit(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "PIECE", 200)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 30, generator=generator).to(dtype)
    parameters = [nn.Parameter(KINDS[kind](x)), nn.Parameter(x.clone())]
    before, numbers = bits(parameters), [p.detach().clone() for p in parameters]
    moved = Displacement(parameters)
    flat = draw_tangents(sum(p.numel() for p in parameters), range(1), 0)[0]
    directions = torch.split(flat, [p.numel() for p in parameters])
    for epsilon in (1e-7, 1e-3, 1.0, 300.0):
        seen: list[list[Tensor]] = []

        def value(seen: list[list[Tensor]] = seen) -> Tensor:
            seen.append([p.detach().clone() for p in parameters])
            return torch.zeros(1)

        moved.difference(tangent(parameters), epsilon, value)
        assert bits(parameters) == before
        for sign, there in zip((1, -1), seen, strict=True):
            for p, g, now in zip(numbers, directions, there, strict=True):
                change = (g.to(torch.promote_types(g.dtype, dtype)) * epsilon).to(dtype)
                torch.testing.assert_close(
                    now, p + sign * change.reshape(p.shape), rtol=0, atol=0, equal_nan=True
                )
    assert [p._version for p in parameters] == [0, 0]


def test_little_is_kept_to_come_back() -> None:
    parameter = nn.Parameter(torch.randn(500, 1000, generator=torch.Generator().manual_seed(0)))
    moved, kept = Displacement([parameter]), 0

    def value() -> Tensor:
        nonlocal kept
        for lost in moved._lost:
            if lost is not None:
                assert lost.places is not None
                kept += lost.places.size + lost.values.size
        return torch.zeros(1)

    moved.difference(tangent([parameter]), 3e-3, value)
    assert 0 < kept / 2 < 0.03 * parameter.numel() * 4


def test_a_direction_in_memory_moves_as_far_as_it_says() -> None:
    parameters = [nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(3))]
    tensors = [torch.randn(7, 5), torch.randn(3)]
    given = Given(tensors, spread_of(tensors))
    flat = torch.cat([t.flatten() for t in given.tensors])
    assert given.length == pytest.approx(float(flat.norm()))
    seen: list[Tensor] = []
    moved = Displacement(parameters, {0: slice(10, 15)})

    def value() -> Tensor:
        seen.append(parameters[0].detach().clone())
        return parameters[0].detach()

    before = parameters[0].detach().clone()
    change = moved.difference(given, 0.5, value)
    wanted = given.tensors[0].clone()
    wanted[2] = 0  # is not to be moved
    torch.testing.assert_close(change, wanted)
    assert torch.equal(seen[0][2], before[2])


class Interrupted:
    """Raises an interruption at the n-th line that is executed in the module under test."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        del arg
        if frame.f_code.co_filename != displacement.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def test_an_interruption_at_any_line_leaves_the_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "PIECE", 8)
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 5, generator=generator) ** 5)]
    before, was = bits(parameters), sys.gettrace()
    raised, line = 0, 0
    while True:
        line += 1
        moved, interrupt = Displacement(parameters), Interrupted(line)
        try:
            sys.settrace(interrupt)
            moved.difference(tangent(parameters), 0.3, lambda: torch.zeros(1))
        except KeyboardInterrupt:
            raised += 1
        finally:
            sys.settrace(was)
        assert bits(parameters) == before, line
        if interrupt.left > 0:
            break
    assert raised == line - 1 > 200


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("when", [1, 2, 3, 5, 6, 7, 12])
def test_a_forward_pass_that_fails_leaves_the_parameters(
    error: type[BaseException], when: int
) -> None:
    class Failing(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Failing.calls += 1
            if Failing.calls == when:
                raise error("no more")
            return super().forward(x)

    net = Failing(*small())
    before = bits(list(net.parameters()))
    with pytest.raises(error, match="no more"):
        probe(net, vectors(net), method="in-place", forward_fn=lambda m, b: m(b[0]))
    assert Failing.calls >= when
    assert bits(list(net.parameters())) == before
    assert [p._version for p in net.parameters()] == [
        p._version for p in Failing(*small()).parameters()
    ]


# Without a trace.


def test_a_graph_that_training_keeps_stays_valid() -> None:
    net = small()
    x, y = vectors(net)
    optimizer = torch.optim.Adam(net.parameters())
    versions = [p._version for p in net.parameters()]
    loss = nn.functional.mse_loss(net(x), y)
    loss.backward(retain_graph=True)
    wanted = [p.grad.clone() for p in net.parameters()]
    kept = [p.grad for p in net.parameters()]
    assert probe(net, (x, y), method="in-place", max_products=40).trace.is_finite
    assert [p._version for p in net.parameters()] == versions
    assert all(p.grad is g for p, g in zip(net.parameters(), kept, strict=True))
    loss.backward()
    for p, g in zip(net.parameters(), wanted, strict=True):
        assert torch.equal(p.grad, 2 * g)
    assert not optimizer.state


def test_hooks_of_parameters_are_not_called_and_stay() -> None:
    net = small()
    calls: list[str] = []
    net[0].weight.register_hook(lambda g: calls.append("gradient"))
    net[2].weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    probe(net, vectors(net), method="in-place", max_products=40, learning_rate=0.1)
    assert calls == []
    net(vectors(net)[0]).sum().backward()
    assert sorted(calls) == ["accumulated", "gradient"]


class Counting(nn.Module):
    """Writes to its buffers at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("missing", torch.full((2,), torch.nan))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scale.mul_(1.5)
        return torch.tanh(self.layer(x)) * self.scale


def test_buffers_that_forward_writes_are_put_back_after_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_trial, "FEWEST_GROUPS", 10**6)  # by samples alone, as in place
    torch.manual_seed(0)
    net = Counting()
    x = torch.randn(6, 3)
    kept = (net.layer(x) * net.scale).sum()  # a graph that saved the buffer
    before, versions = bits(list(net.buffers())), [b._version for b in net.buffers()]
    whole = nn.Sequential(net)
    found = probe(whole, x, state="0", method="in-place", max_products=30, modes=0, tolerance=0.0)
    assert bits(list(net.buffers())) == before
    assert [b._version for b in net.buffers()] == versions
    kept.backward()
    wanted = probe(
        whole, x, state="0", method="finite-difference", max_products=30, modes=0, tolerance=0.0
    )
    assert found.trace.value == pytest.approx(wanted.trace.value, rel=1e-3)


def test_tied_parameters_are_moved_once() -> None:
    net = nn.Sequential(*small())
    net[2] = nn.Linear(5, 5)
    net.append(nn.Linear(5, 5))
    net = nn.Sequential(
        net[0], net[1], net[2], nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)
    )
    net[4].weight = net[2].weight
    net = net.double()
    images = [
        linearize(net, vectors(net), dtype=None, method=method).factor(0).sample(range(2))
        for method in ("in-place", "forward-ad")
    ]
    torch.testing.assert_close(*images, rtol=1e-6, atol=1e-8)


def test_compiled_models_and_hooks_of_the_user() -> None:
    net = small(torch.float64)
    net[0].register_forward_hook(lambda m, args, output: 2 * output)
    settings = {"dtype": None, "max_products": 40, "tolerance": 0.0}
    wanted = probe(net, vectors(net), method="finite-difference", **settings)
    for module in (net, torch.compile(net, backend="eager")):
        compare(probe(module, vectors(net), method="in-place", **settings), wanted)


def test_a_forward_pass_that_writes_to_parameters_is_reported() -> None:
    class Clamped(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self[0].weight.data.clamp_(-0.2, 0.2)
            return super().forward(x)

    net = Clamped(*small())
    with pytest.raises(RuntimeError, match="the step writes into parameters of the model"):
        probe(net, vectors(net), method="in-place")


def test_parameters_changed_since_are_noticed() -> None:
    net = small()
    lin = linearize(net, vectors(net), method="in-place")
    with torch.no_grad():
        net[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="linearize again"):
        lin.factor(0).sample(range(1))


def test_what_does_not_go_is_refused() -> None:
    net = small(torch.bfloat16)
    with pytest.raises(ValueError, match=r"is of torch\.bfloat16, and dtype=torch\.float32"):
        probe(net, vectors(net), method="in-place")
    net = small()
    with pytest.raises(ValueError, match="does not go with others"):
        linearize(net, vectors(net), method=["in-place", "forward-ad"])
    net[2].bias = nn.Parameter(net[0].bias.data[:4])
    with pytest.raises(ValueError, match=r"'2.bias' and '0.bias' share memory"):
        linearize(net, vectors(net), method="in-place")
    net = small()
    net[0].bias = nn.Parameter(torch.zeros(1).expand(5))
    with pytest.raises(ValueError, match=r"'0.bias' and '0.bias' share memory"):
        linearize(net, vectors(net), method="in-place")
    case = CASES["gru"]
    lin = linearize(
        case.make_model(), case.make_batch(), state=case.state, dtype=None, method="in-place"
    )
    with pytest.raises(ValueError, match="linearize with another method"):
        lin.parameter_operator.matvec(torch.zeros_like(lin.state))


def test_automatic_methods_never_work_in_place() -> None:
    net = small()
    for method in ("auto", "exact"):
        assert probe(net, vectors(net), method=method).method != "in-place"
    assert "in-place" not in linearize(net, vectors(net)).jacobian._methods


def test_a_forward_pass_that_does_not_repeat_itself_is_refused() -> None:
    class Growing(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Growing.calls += 1
            return super().forward(Growing.calls * x)

    net = Growing(*small())
    before = bits(list(net.parameters()))
    with pytest.raises(ValueError, match="a forward pass that repeats itself"):
        probe(net, vectors(net), method="in-place")
    assert bits(list(net.parameters())) == before
