"""What a loss compares, for every loss function of torch and for losses by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional import mean_squared_error

from ntk_monitor import linearize, probe
from ntk_monitor.model.step.losses import LOSSES

B, M, N, C = 12, 3, 6, 4
EXACT: dict[str, Any] = {"method": "exact", "dtype": None, "learning_rate": 0.1}
F = functional


def net(outputs: int = C, *last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(M, N), nn.Tanh(), nn.Linear(N, outputs), *last
    return nn.Sequential(*layers).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


X, VALUES = draw(B, M), draw(B, C, seed=1)
CLASSES = torch.arange(B) % C
BITS = (VALUES > 0).double()
ONE_HOT = F.one_hot(CLASSES, C).double()
LISTS = torch.tensor([[0, 2, -1, 1], [3, -1, -1, -1], [1, 2, 3, -1], [2, -1, 0, 0]])
LISTS = LISTS.repeat(B // 4, 1)
LISTED = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 0]]).double()
LISTED = LISTED.repeat(B // 4, 1)

Case = tuple[Callable[[Tensor], Tensor], Tensor, Callable[[Tensor], Tensor]]
LOG = lambda y: y.log_softmax(-1)  # noqa: E731
CASES: dict[str, Case] = {
    # a loss of the outputs; what they should be; what of them should be that
    "mse_loss": (lambda y: F.mse_loss(y, VALUES), VALUES, lambda y: y),
    "l1_loss": (lambda y: F.l1_loss(y, VALUES), VALUES, lambda y: y),
    "smooth_l1_loss": (lambda y: nn.SmoothL1Loss()(y, VALUES), VALUES, lambda y: y),
    "huber_loss": (lambda y: F.huber_loss(y, target=VALUES), VALUES, lambda y: y),
    "gaussian_nll_loss": (
        lambda y: F.gaussian_nll_loss(y, VALUES, torch.ones_like(y)), VALUES, lambda y: y
    ),
    "poisson_nll_loss": (lambda y: F.poisson_nll_loss(y, VALUES.exp()), VALUES.exp(), torch.exp),
    "cross_entropy": (
        lambda y: F.cross_entropy(y, CLASSES, label_smoothing=0.1),
        ONE_HOT,
        lambda y: y.softmax(-1),
    ),
    "nll_loss": (lambda y: F.nll_loss(LOG(y), CLASSES), ONE_HOT, lambda y: y.softmax(-1)),
    "multi_margin_loss": (
        lambda y: F.multi_margin_loss(y, CLASSES, margin=50.0), ONE_HOT, lambda y: y.softmax(-1)
    ),
    "kl_div": (
        lambda y: F.kl_div(LOG(y), VALUES.softmax(-1), reduction="batchmean"),
        VALUES.softmax(-1),
        lambda y: y.softmax(-1),
    ),
    "kl_div, logarithms": (
        lambda y: F.kl_div(LOG(y), LOG(VALUES), reduction="sum", log_target=True),
        VALUES.softmax(-1),
        lambda y: y.softmax(-1),
    ),
    "binary_cross_entropy": (
        lambda y: F.binary_cross_entropy(y.sigmoid(), BITS), BITS, torch.sigmoid
    ),
    "binary_cross_entropy_with_logits": (
        lambda y: nn.BCEWithLogitsLoss()(y, BITS), BITS, torch.sigmoid
    ),
    "multilabel_soft_margin_loss": (
        lambda y: F.multilabel_soft_margin_loss(y, BITS), BITS, torch.sigmoid
    ),
    "soft_margin_loss": (lambda y: F.soft_margin_loss(y, 2 * BITS - 1), BITS, torch.sigmoid),
    "multilabel_margin_loss": (
        lambda y: F.multilabel_margin_loss(50 * y, LISTS), LISTED, lambda y: (50 * y).sigmoid()
    ),
    "linear_cross_entropy": (
        lambda y: F.linear_cross_entropy(y, torch.eye(C).double(), CLASSES),
        ONE_HOT,
        lambda y: y.softmax(-1),
    ),
    "a squared difference": (lambda y: ((y - VALUES) ** 2).mean(), VALUES, lambda y: y),
    "the reverse, in place": (lambda y: (VALUES - y).abs_().mean(), VALUES, lambda y: y),
    "log-probabilities by index": (
        lambda y: -LOG(y)[torch.arange(B), CLASSES].mean(), ONE_HOT, lambda y: y.softmax(-1)
    ),
    "log-probabilities gathered": (
        lambda y: -LOG(y).gather(1, CLASSES[:, None]).mean(), ONE_HOT, lambda y: y.softmax(-1)
    ),
    "log-probabilities weighed": (
        lambda y: -(ONE_HOT * LOG(y)).sum(), ONE_HOT, lambda y: y.softmax(-1)
    ),
    "a Gaussian's likelihood": (
        lambda y: -torch.distributions.Normal(y, 0.7).log_prob(VALUES).mean(),
        VALUES,
        lambda y: y,
    ),
    "overlap": (
        lambda y: 1 - 2 * (y.sigmoid() * BITS).sum() / (y.sigmoid().sum() + BITS.sum()),
        BITS,
        torch.sigmoid,
    ),
}  # fmt: skip
if not hasattr(F, "linear_cross_entropy"):  # in torch 2.9
    del CASES["linear_cross_entropy"]
SOFT = {"kl_div", "kl_div, logarithms"}


def learned(reached: Tensor, target: Tensor, name: str) -> list[float]:
    """``<reached, e_i> / sigma_i`` by numpy's own decomposition."""
    centred = target - target.mean(0)
    if target is ONE_HOT and name not in SOFT:  # a class is a mode, the largest first
        return [
            float(centred[:, c] @ reached[:, c] / centred[:, c].square().sum()) for c in range(3)
        ]
    U, sigma, V = torch.linalg.svd(centred, full_matrices=False)
    return [float((U[:, i] @ reached @ V[i]) / sigma[i]) for i in range(3)]


def test_every_loss_of_torch_is_known() -> None:
    compare_nothing = {
        *("cosine_embedding_loss", "ctc_loss", "hinge_embedding_loss", "margin_ranking_loss"),
        *("triplet_margin_loss", "triplet_margin_with_distance_loss"),
    }
    losses = {
        name
        for name in dir(functional)
        if (name.endswith("_loss") or "cross_entropy" in name or name == "kl_div")
        and not name.startswith("_")
    }
    known = {name for name in LOSSES if hasattr(F, name)}
    assert losses == compare_nothing | known
    assert known <= CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_target_are_what_the_loss_compares(name: str) -> None:
    loss, target, reached = CASES[name]
    model = net()
    found = probe(model, X, loss_fn=lambda module, x: loss(module(x)), **EXACT)
    assert found.state == ("1",)
    assert found.loss == pytest.approx(float(loss(model(X)).detach()))
    assert len(found.target_modes) == 3
    wanted = learned(reached(model(X)).detach(), target, name)
    if name == "cross_entropy":  # whose labels are smoothed: less is asked for
        wanted = [value / 0.9 for value in wanted]
    assert sorted(m.learned for m in found.target_modes) == pytest.approx(sorted(wanted), abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_a_network_that_has_solved_it_has_learned_all(name: str) -> None:
    """Outputs that are the target, or as near as the link allows."""
    loss, target, _ = CASES[name]
    smoothed = math.log(0.925 / 0.025) / 2
    scale = {"multilabel_margin_loss": 1.0, "cross_entropy": smoothed}.get(name, 60.0)
    solved = {
        "poisson_nll_loss": VALUES,
        "kl_div": VALUES,
        "kl_div, logarithms": VALUES,
    }.get(name, target if target is VALUES else scale * (2 * target - 1))

    class Solved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = nn.Linear(M, N).double(), nn.Linear(N, C).double()

        def forward(self, x: Tensor) -> Tensor:
            y = self.out(self.body(x).tanh())
            return y - y.detach() + solved

    found = probe(Solved(), X, loss_fn=lambda module, x: loss(module(x)), **EXACT)
    assert [m.learned for m in found.target_modes] == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: F.triplet_margin_loss(y[:4], y[4:8], y[8:]),
        lambda y: F.cosine_embedding_loss(y[:6], y[6:], torch.ones(6)),
        lambda y: F.margin_ranking_loss(y[:6], y[6:], torch.ones(6, C).double()),
        lambda y: F.cross_entropy(y @ y.T, torch.arange(B)),
        lambda y: F.binary_cross_entropy_with_logits(y, torch.ones_like(y)),
        lambda y: F.mse_loss(y, 0.9 * torch.ones(B, C, device=y.device).type_as(y)),
        lambda y: -(LOG(y)[torch.arange(B), CLASSES] * VALUES[:, 0]).mean(),
        lambda y: (y * VALUES).mean(),
        lambda y: ((y - VALUES).exp() * VALUES.roll(1, 0)).mean(),
        lambda y: (y - y.detach().amax(1, keepdim=True)).exp().sum(1).log().mean() + y[:, 0].mean(),
        lambda y: y.square().mean(),
    ],
    ids=[
        *("triplet", "cosine", "ranking", "contrastive", "adversarial", "smoothed ones"),
        *("policy gradient", "weights", "ratio", "stabilised", "norm"),
    ],
)
def test_a_loss_that_compares_no_data_has_no_target_modes_and_says_so(
    loss: Callable[[Tensor], Tensor],
) -> None:
    found = probe(net(), X, loss_fn=lambda module, x: loss(module(x)), **EXACT)
    assert found.target_modes == ()
    assert found.trace.value > 0
    (remark,) = found.remarks
    assert "there are no target modes; all else is measured" in remark
    assert "forward_fn and target_fn" in remark


def test_noise_that_the_step_draws_is_a_target() -> None:
    def loss(module: nn.Module, x: Tensor) -> Tensor:
        noise = torch.randn(B, C, dtype=torch.float64)
        return F.mse_loss(module(x), noise)

    found = probe(net(), X, loss_fn=loss, **EXACT)
    assert len(found.target_modes) == 3


def test_what_is_compared_for_the_record_alone_is_no_target() -> None:
    def loss(module: nn.Module, x: Tensor) -> Tensor:
        y = module(x)
        F.l1_loss(y.exp(), VALUES)  # a metric
        return F.mse_loss(y, VALUES)

    found = probe(net(), X, loss_fn=loss, **EXACT)
    assert [output.loss for output in found.outputs] == ["mse_loss"]


MASK = torch.ones(B, C).double()
MASK[::3], MASK[1, 2] = 0, 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: (MASK * (y - VALUES) ** 2).sum() / MASK.sum(),
        lambda y: (F.mse_loss(y, VALUES, reduction="none") * MASK).sum(),
        lambda y: F.mse_loss(y, VALUES, reduction="none")[MASK.bool()].mean(),
        lambda y: torch.where(MASK.bool(), (y - VALUES).abs(), 0).mean(),
    ],
    ids=["by hand", "weights", "selection", "where"],
)
def test_entries_that_the_loss_leaves_out_do_not_count(loss: Callable[[Tensor], Tensor]) -> None:
    """Nor do they have a part in the mean that the best constant output reaches."""

    found = probe(net(), X, loss_fn=lambda module, x: loss(module(x)), **EXACT)
    mean = (VALUES * MASK).sum(0) / MASK.sum(0)
    U, sigma, V = torch.linalg.svd((VALUES - mean) * MASK, full_matrices=False)
    assert [m.singular_value for m in found.target_modes] == pytest.approx(sigma[:3].tolist())
    reached = net()(X).detach() * MASK
    wanted = [float(U[:, i] @ reached @ V[i] / sigma[i]) for i in range(3)]
    assert [m.learned for m in found.target_modes] == pytest.approx(wanted)


@pytest.mark.parametrize("ignored", [-100, 255, 1])
def test_classes_that_are_ignored_do_not_count(ignored: int) -> None:
    classes = CLASSES.where(torch.arange(B) % 3 > 0, ignored)

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(module(x), classes, ignore_index=ignored)

    found = probe(net(), X, loss_fn=loss, modes=4, **EXACT)
    counts = torch.bincount(classes[classes != ignored], minlength=C).double()
    counts = counts[counts > 0]
    sizes = sorted((counts * (1 - counts / counts.sum())).sqrt().tolist(), reverse=True)
    assert [m.singular_value for m in found.target_modes] == pytest.approx(sizes)


def test_classes_of_weight_zero_do_not_count() -> None:
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(module(x), CLASSES, weight=weight)

    assert len(probe(net(), X, loss_fn=loss, modes=4, **EXACT).target_modes) == 3


class Sequences(nn.Module):
    """Logits at every step, and how a loss may take them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(M, N, batch_first=True), nn.Linear(N, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


T = 5
STEPS, LABELS = draw(B, T, M), (torch.arange(B * T) % C).reshape(B, T)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: F.cross_entropy(y.flatten(0, 1), LABELS.flatten()),
        lambda y: F.cross_entropy(y.reshape(-1, C), LABELS.reshape(-1)),
        lambda y: F.cross_entropy(y.transpose(1, 2), LABELS),
        lambda y: F.cross_entropy(y.transpose(1, 2), F.one_hot(LABELS, C).double().transpose(1, 2)),
        lambda y: sum(F.cross_entropy(y[:, t], LABELS[:, t]) for t in range(T)),
        lambda y: F.nll_loss(LOG(y).movedim(-1, 1), LABELS, reduction="sum"),
    ],
    ids=["flattened", "reshaped", "classes second", "distributions", "step by step", "nll"],
)
def test_one_loss_in_several_layouts_has_the_same_modes(loss: Callable[[Tensor], Tensor]) -> None:
    model = Sequences().double()
    wanted = probe(model, STEPS, target_fn=lambda _: LABELS, modes=C, **EXACT)
    found = probe(model, STEPS, loss_fn=lambda module, x: loss(module(x)), modes=C, **EXACT)
    assert found.state == ("rnn",)
    pairs = zip(found.target_modes, wanted.target_modes, strict=True)
    for left, right in pairs:
        assert left.singular_value == pytest.approx(right.singular_value)
    assert {round(m.learned, 9) for m in found.target_modes} == {
        round(m.learned, 9) for m in wanted.target_modes
    }


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: F.mse_loss(y.flatten(), VALUES.flatten()),
        lambda y: ((y.reshape(-1) - VALUES.reshape(-1)) ** 2).mean(),
        lambda y: mean_squared_error(y, VALUES),
        lambda y: F.mse_loss(y[:, None], VALUES[:, None]),
    ],
    ids=["flattened", "by hand", "torchmetrics", "another axis"],
)
def test_one_function_in_several_shapes_has_the_same_modes(
    loss: Callable[[Tensor], Tensor],
) -> None:
    wanted = probe(net(), X, loss_fn=lambda module, x: F.mse_loss(module(x), VALUES), **EXACT)
    found = probe(net(), X, loss_fn=lambda module, x: loss(module(x)), **EXACT)
    for left, right in zip(found.target_modes, wanted.target_modes, strict=True):
        assert left.singular_value == pytest.approx(right.singular_value)
        assert left.learned == pytest.approx(right.learned)
        assert left.gain == pytest.approx(right.gain)


def test_labels_that_the_loss_shifts_are_shifted() -> None:
    model = Sequences().double()

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(module(x)[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())

    found = probe(model, STEPS, loss_fn=loss, modes=C, **EXACT)
    assert found.target_patterns.shape == (C, B, T - 1)
    counts = torch.bincount(LABELS[:, 1:].flatten()).double()
    shares = counts / counts.sum()
    sizes = sorted((counts * (1 - shares)).sqrt().tolist(), reverse=True)
    assert [m.singular_value for m in found.target_modes] == pytest.approx(sizes)
    chances = model(STEPS)[:, :-1].softmax(-1).detach()
    per_class = [
        float(chances[LABELS[:, 1:] == c][:, c].mean() - chances[LABELS[:, 1:] != c][:, c].mean())
        for c in range(C)
    ]
    assert sorted(m.learned for m in found.target_modes) == pytest.approx(sorted(per_class))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(M, N), nn.Tanh(), nn.Linear(N, N), nn.Tanh())
        self.kind, self.size = nn.Linear(N, C), nn.Sequential(nn.Linear(N, N), nn.Linear(N, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"kind": self.kind(h), "size": self.size(h)}


def test_several_losses_have_modes_under_the_names_of_their_heads() -> None:
    def loss(module: nn.Module, x: Tensor) -> Tensor:
        y = module(x)
        return F.cross_entropy(y["kind"], CLASSES) + 0.1 * F.mse_loss(y["size"], VALUES[:, :2])

    found = probe(Heads().double(), X, loss_fn=loss, modes=6, **EXACT)
    assert found.state == ("trunk.3",)
    assert {(o.name, o.loss) for o in found.outputs} == {
        ("kind", "cross_entropy"),
        ("size", "mse_loss"),
    }
    shares = [m.share for m in found.target_modes]
    assert shares == sorted(shares, reverse=True)
    for name in ("kind", "size"):
        assert sum(m.share for m in found.target_modes if m.output == name) == pytest.approx(1)
    alone = probe(
        Heads().double(),
        X,
        forward_fn=lambda module, x: module(x)["size"],
        target_fn=lambda _: VALUES[:, :2],
        state="trunk.3",
        **EXACT,
    )
    sizes = [m for m in found.target_modes if m.output == "size"]
    for left, right in zip(sizes, alone.target_modes, strict=True):
        assert left.gain == pytest.approx(right.gain)
        assert left.learned == pytest.approx(right.learned)


def test_one_logit_has_learned_nothing_at_chance_and_all_when_it_is_right() -> None:
    bits = (X[:, :1] > 0).double()

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(module(x).squeeze(-1), bits.squeeze(-1))

    model = net(1)
    with torch.no_grad():
        model[2].weight.zero_()
    (mode,) = probe(model, X, loss_fn=loss, **EXACT).target_modes
    assert mode.learned == pytest.approx(0, abs=1e-12)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(400):
        optimizer.zero_grad()
        loss(model, X).backward()
        optimizer.step()
    (mode,) = probe(model, X, loss_fn=loss, **EXACT).target_modes
    assert mode.learned == pytest.approx(1, abs=0.02)


def test_the_outputs_of_a_linearisation_are_what_the_loss_compares() -> None:
    model = net()
    lin = linearize(model, X, loss_fn=lambda m, x: F.mse_loss(m(x)[:, 1:], VALUES[:, 1:].to(x)))
    torch.testing.assert_close(lin.outputs, model(X)[:, 1:].detach().float(), rtol=1e-5, atol=1e-6)
    assert lin.loss == pytest.approx(float(F.mse_loss(model(X).detach()[:, 1:], VALUES[:, 1:])))


def test_a_loss_fn_stands_alone() -> None:
    with pytest.raises(ValueError, match="loss_fn must be left out where forward_fn or target_fn"):
        probe(net(), X, loss_fn=lambda *_: None, target_fn=lambda _: VALUES)


def test_the_loss_that_a_module_returns_is_its_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            y = self.net(x)
            return {"other": y.exp(), "loss": F.cross_entropy(y, labels.flip(0))}

    found = probe(Own(), {"x": X, "labels": CLASSES}, **EXACT)
    reference = probe(
        net(), X, loss_fn=lambda m, x: F.cross_entropy(m(x), CLASSES.flip(0)), **EXACT
    )
    assert [m.learned for m in found.target_modes] == [m.learned for m in reference.target_modes]
