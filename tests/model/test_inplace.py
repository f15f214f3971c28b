"""Products in place: the numbers of a copy, and parameters that nobody writes to."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import CASES, Case
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ntk_monitor import Snapshot, linearize, probe
from ntk_monitor.estimators import draw_tangents
from ntk_monitor.model.derivatives import trial_gradients
from ntk_monitor.model.derivatives.substitution import Substitution
from ntk_monitor.model.parameters import pieces as parameter_pieces
from ntk_monitor.model.parameters.pieces import Direction, Gaussian, Given, inner, pieces
from ntk_monitor.model.parameters.sharding import Sharding, place_of

CPU = torch.device("cpu")


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


def spread_of(parameters: Sequence[Tensor]) -> Sharding:
    return Sharding([place_of(p) for p in parameters])


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
        ours.sampler(3).sample(range(4)), copied.sampler(3).sample(range(4)), rtol=1e-7, atol=1e-8
    )
    u = torch.randn(ours.state.shape, dtype=ours.state.dtype)
    pulled, wanted = ours.sampler(3).pull(u), copied.sampler(3).pull(u)
    torch.testing.assert_close(pulled, wanted)
    assert ours.sampler(3).inner(2, pulled) == pytest.approx(copied.sampler(3).inner(2, wanted))
    torch.testing.assert_close(
        ours.sampler(3).push(pulled), copied.sampler(3).push(wanted), rtol=1e-6, atol=1e-8
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
    drawn = []
    for number, cut in enumerate(cuts):
        read = Gaussian(7, 3, spread_of(cuts), CPU).reader(number, cut)
        drawn += [read(piece.start, piece.numbers.numel()) for piece in pieces([cut])]
    assert torch.equal(torch.cat(drawn), wanted)
    given = [torch.randn(len(cut), generator=torch.Generator().manual_seed(1)) for cut in cuts]
    product = inner(Gaussian(7, 3, spread_of(cuts), CPU), given, spread_of(cuts))
    assert product == pytest.approx(float(wanted.double() @ torch.cat(given).double()))


def test_pieces_cover_tensors_of_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameter_pieces, "PIECE", 4)
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


# Moved for the operations that use them.


def moving(
    parameters: Sequence[Tensor],
    direction: Direction,
    epsilon: float = 0.5,
    untrained: dict[str, int] | None = None,
    uses: dict[int, int] | None = None,
) -> Substitution:
    theta = {str(i): p for i, p in enumerate(parameters)}
    return Substitution(theta, untrained or {}, direction, epsilon, uses)


KINDS = {
    "usual": lambda x: x,
    "of many sizes": lambda x: x * 10 ** (-6 * torch.rand_like(x)),
    "not finite": lambda x: torch.where(x > 1, torch.nan, torch.where(x < -1, -torch.inf, x)),
    "transposed": lambda x: x.T,
    "channels last": lambda x: x.reshape(10, 4, 5, 6).to(memory_format=torch.channels_last),
    "one number": lambda x: x[0, 0].clone(),
    "none": lambda x: x[:0],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_operations_see_parameters_moved_and_nobody_else_does(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parameter_pieces, "PIECE", 200)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 30, generator=generator).to(dtype)
    parameters = [nn.Parameter(KINDS[kind](x)), nn.Parameter(x.clone())]
    numbers, before = [p.detach().clone() for p in parameters], bits(parameters)
    flat = draw_tangents(sum(p.numel() for p in parameters), range(1), 0)[0]
    directions = torch.split(flat, [p.numel() for p in parameters])
    for epsilon in (1e-7, 1e-3, 1.0, 300.0):
        with moving(parameters, tangent(parameters), epsilon) as substitution, torch.no_grad():
            seen = [p.clone() for p in parameters]
        substitution.require(substitution.theta)
        for p, g, now in zip(numbers, directions, seen, strict=True):
            change = (g.to(torch.promote_types(g.dtype, dtype)) * epsilon).to(dtype)
            wanted = p + change.reshape(p.shape)
            rounding = torch.finfo(dtype).eps * (1 + float(change.abs().max()) if len(g) else 1)
            torch.testing.assert_close(now, wanted, rtol=rounding, atol=rounding, equal_nan=True)
        assert bits(parameters) == before
    assert [p._version for p in parameters] == [0, 0]


def test_every_view_of_a_parameter_is_moved() -> None:
    parameters = [nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3))]
    given = Given([torch.randn(4, 6), torch.randn(3)], spread_of(parameters))
    kept = parameters[0].detach()[1:3].T  # made before, as a layer may keep it
    wanted = (parameters[0] + 0.5 * given.tensors[0]).detach()
    with moving(parameters, given), torch.no_grad():
        whole = parameters[0].data
        views = [kept.clone(), whole.T.clone(), parameters[0][2].clone(), torch.cat([whole, whole])]
        several = torch.stack([parameters[0], parameters[0]], dim=-1)
        turned, called = parameters[0].T.clone(), torch.ops.aten.mul(parameters[0], 2.0)
        assert parameters[0].shape == (4, 6)
    assert torch.equal(views[0], wanted[1:3].T)
    assert torch.equal(views[1], wanted.T)
    assert torch.equal(views[2], wanted[2])
    assert torch.equal(views[3], torch.cat([wanted, wanted]))
    assert torch.equal(several[..., 1], wanted)
    assert torch.equal(turned, wanted.T)
    assert torch.equal(called, 2 * wanted)


def test_a_distributed_parameter_is_moved_and_its_transpose(tmp_path: Path) -> None:
    """It has no memory of its own by which a view of it would be known."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        own, g = torch.randn(4, 6), torch.randn(4, 6)
        parameter = nn.Parameter(distribute_tensor(own, mesh, [Shard(0)]))
        given = Given([distribute_tensor(g, mesh, [Shard(0)])], spread_of([parameter]))
        with moving([parameter], given), torch.no_grad():
            found = parameter.clone(), parameter.T.clone()
        wanted = own + 0.5 * g
        assert torch.equal(found[0].full_tensor(), wanted)
        assert torch.equal(found[1].full_tensor(), wanted.T)
        assert torch.equal(parameter.full_tensor(), own)
    finally:
        dist.destroy_process_group()


def test_rows_that_are_not_trained_stay() -> None:
    parameters = [nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(3))]
    tensors = [torch.randn(7, 5), torch.randn(3)]
    given = Given(tensors, spread_of(tensors))
    flat = torch.cat([t.flatten() for t in given.tensors])
    assert given.length == pytest.approx(float(flat.norm()))
    with moving(parameters, given, untrained={"0": 2}), torch.no_grad():
        seen = parameters[0].clone()
    change = seen - parameters[0].detach()
    wanted = 0.5 * given.tensors[0].clone()
    wanted[2] = 0
    torch.testing.assert_close(change, wanted)
    assert torch.equal(seen[2], parameters[0][2])


def test_a_moved_parameter_is_made_once_and_let_go_of_after_its_last_use() -> None:
    parameters = [nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3))]
    theta = {str(i): p for i, p in enumerate(parameters)}

    def use() -> tuple[Tensor, Tensor]:
        found = parameters[0].sum(), parameters[0].sum()
        parameters[1].sum()
        return found

    with Substitution(theta, {}) as counting, torch.no_grad():
        assert use()[0] == parameters[0].sum()
    assert dict(counting.uses) == {0: 3, 1: 1}
    made = moving(parameters, tangent(parameters), uses={0: 2, 1: 1})
    with made, torch.no_grad():
        first, second = parameters[0].sum(), [*made._made]
        assert second == [0]
        assert torch.equal(first, parameters[0].sum())
        parameters[1].sum()
    assert not made._made  # all had their last use


@pytest.mark.parametrize("count", [5, 100])
def test_of_an_embedding_only_the_rows_that_are_looked_up_are_moved(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parameter_pieces, "PIECE", 64)
    monkeypatch.setattr(Substitution, "_make", pytest.fail)  # the whole table
    parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(700, 6))]
    indices = torch.randint(700, (2, count), generator=torch.Generator().manual_seed(1))
    indices[0, :2] = 4
    uses = {0: 1, 1: 1}
    with moving(parameters, tangent(parameters), untrained={"1": 4}, uses=uses) as made:
        with torch.no_grad():
            found = nn.functional.embedding(indices, parameters[1], padding_idx=0)
        assert made.uses == {1: 1}
    g = draw_tangents(3 + 4200, range(1), 0)[0, 3:].view(700, 6)
    g[4] = 0
    torch.testing.assert_close(found, (parameters[1] + 0.5 * g)[indices])


def test_what_no_operation_shows_is_refused() -> None:
    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(3, 4), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layer(x)
            with torch._C.DisableTorchFunction():  # as a kernel of one's own reads it
                return torch.tanh(hidden * self.scale)

    net = nn.Sequential(Past(), nn.Linear(4, 2))
    lin = linearize(net, torch.randn(6, 3), state="0", method="finite-difference")
    assert set(lin.parameters) == {"0.layer.weight", "0.layer.bias", "0.scale"}
    with pytest.raises(RuntimeError, match=r"no operation of PyTorch.s was seen to use 0\.scale"):
        linearize(net, torch.randn(6, 3), state="0", method="in-place").sampler(0).sample(range(1))


class NoWrites(TorchDispatchMode):
    """Makes every write to a parameter an error."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._addresses = {p.untyped_storage().data_ptr() for p in parameters}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._require(given)
        for argument in func._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and argument.name in (kwargs or {}):
                self._require(kwargs[argument.name])
        return func(*args, **(kwargs or {}))

    def _require(self, given: Any) -> None:
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor):
                assert tensor.untyped_storage().data_ptr() not in self._addresses


@pytest.mark.parametrize("method", ["auto", "exact", "finite-difference", "in-place"])
def test_nothing_ever_writes_to_a_parameter(case: Case, method: str) -> None:
    module, batch = case.make_model(), case.make_batch()
    settings = {"state": case.state, "dtype": None, "learning_rate": 0.1, "max_products": 40}
    with pytest.raises(AssertionError), NoWrites(module.parameters()), torch.no_grad():
        next(module.parameters()).detach().mul_(1)
    with NoWrites(module.parameters()):
        assert probe(module, batch, method=method, **settings).trace.is_finite


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
    monkeypatch.setattr(trial_gradients, "FEWEST_GROUPS", 10**6)  # by samples alone, as in place
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


def test_tied_parameters_are_moved_together() -> None:
    net = nn.Sequential(*small())
    net[2] = nn.Linear(5, 5)
    net.append(nn.Linear(5, 5))
    net = nn.Sequential(
        net[0], net[1], net[2], nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)
    )
    net[4].weight = net[2].weight
    net = net.double()
    images = [
        linearize(net, vectors(net), dtype=None, method=method).sampler(0).sample(range(2))
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
        lin.sampler(0).sample(range(1))


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
