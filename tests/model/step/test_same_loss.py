"""One loss, written in several ways, gives one answer: modes, rates, steps to learn, forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntk_monitor import Snapshot, probe

F = nn.functional
B, M, N, C = 12, 3, 6, 3
EXACT: dict[str, Any] = {"method": "exact", "dtype": None, "learning_rate": 0.5, "modes": 3}
Loss = Callable[[Tensor], Tensor]


def net(outputs: int = C) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(M, N), nn.Tanh(), nn.Linear(N, outputs)).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


X, VALUES = draw(B, M), draw(B, C, seed=1)


def of_loss(loss: Loss, model: nn.Module | None = None, x: Tensor = X) -> Snapshot:
    return probe(model or net(), x, loss_fn=lambda module, x: loss(module(x)), **EXACT)


def numbers(found: Snapshot) -> list[float]:
    """All that the modes and the forecast say."""
    assert found.forecast is not None
    said = [found.forecast.loss_in(steps) for steps in (1, 10, 30)]
    for m in found.target_modes:
        said += [m.singular_value, m.learned, m.rate, m.gain, m.share, m.steps_to_learn]
    return [float(x) for x in said]


def same(found: Snapshot, wanted: Snapshot, rel: float = 1e-6) -> None:
    assert len(found.target_modes) == len(wanted.target_modes) > 0
    assert numbers(found) == pytest.approx(numbers(wanted), rel=rel, abs=1e-8)
    assert found.remarks == wanted.remarks


@pytest.mark.parametrize(
    ("plain", "swapped"),
    [
        (lambda y: F.mse_loss(y, VALUES), lambda y: F.mse_loss(VALUES, y)),
        (lambda y: F.mse_loss(y, VALUES), lambda y: F.mse_loss(target=y, input=VALUES)),
        (lambda y: F.l1_loss(y, VALUES), lambda y: nn.L1Loss()(VALUES, y)),
        (lambda y: F.smooth_l1_loss(y, VALUES), lambda y: nn.SmoothL1Loss()(VALUES, y)),
        (lambda y: F.huber_loss(y, VALUES), lambda y: nn.HuberLoss()(VALUES, y)),
    ],
    ids=["mse_loss", "by name", "l1_loss", "smooth_l1_loss", "huber_loss"],
)
def test_a_symmetric_loss_may_be_given_the_target_first(plain: Loss, swapped: Loss) -> None:
    same(of_loss(swapped), of_loss(plain))


CLASSES = torch.tensor([0, 1, 2, 0, 1, 0, 0, 2, 1, 0, 1, 0])
ONE_HOT = F.one_hot(CLASSES, C)
SOFT = VALUES.softmax(-1)
ROWS = torch.arange(B)
LOG: Loss = lambda y: y.log_softmax(-1)  # noqa: E731
CROSS_ENTROPIES: dict[str, Loss] = {
    "nll_loss": lambda y: F.nll_loss(LOG(y), CLASSES),
    "kl_div": lambda y: F.kl_div(LOG(y), ONE_HOT.double(), reduction="batchmean"),
    "gathered": lambda y: -LOG(y).gather(1, CLASSES[:, None]).mean(),
    "taken along": lambda y: -LOG(y).take_along_dim(CLASSES[:, None], dim=1).mean(),
    "picked": lambda y: -LOG(y)[torch.arange(B), CLASSES].mean(),
    "weighed": lambda y: -(LOG(y) * ONE_HOT).sum(1).mean(),
    "weighed the other way": lambda y: -(ONE_HOT.double() * LOG(y)).sum(1).mean(),
    "log of softmax": lambda y: -y.softmax(-1).log().gather(1, CLASSES[:, None]).mean(),
    "log of what is picked": lambda y: -y.softmax(-1)[torch.arange(B), CLASSES].log().mean(),
    "log of what is gathered": lambda y: -y.softmax(1).gather(1, CLASSES[:, None]).log().mean(),
    "with another axis": lambda y: -LOG(y)[None].gather(2, CLASSES[None, :, None]).mean(),
    "in a product, limited": lambda y: -(ONE_HOT * y.softmax(-1).clamp(1e-30).log()).sum() / B,
}


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_cross_entropy_by_hand_is_cross_entropy(name: str) -> None:
    same(of_loss(CROSS_ENTROPIES[name]), of_loss(lambda y: F.cross_entropy(y, CLASSES)))


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: -(LOG(y) * SOFT).sum(1).mean(),
        lambda y: F.kl_div(LOG(y), SOFT, reduction="batchmean") - (SOFT * SOFT.log()).sum() / B,
    ],
    ids=["weighed", "kl_div"],
)
def test_so_it_is_of_distributions(loss: Loss) -> None:
    same(of_loss(loss), of_loss(lambda y: F.cross_entropy(y, SOFT)))


T = 5
STEPS, LABELS = draw(B, T, M), (torch.arange(B * T) % 7 % C).reshape(B, T)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(M, N, batch_first=True), nn.Linear(N, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: -LOG(y).gather(2, LABELS[..., None]).mean(),
        lambda y: -LOG(y).flatten(0, 1).gather(1, LABELS.view(-1, 1)).mean(),
        lambda y: -LOG(y.flatten(0, 1))[torch.arange(B * T), LABELS.flatten()].mean(),
        lambda y: -LOG(y).transpose(0, 1).gather(2, LABELS.T[..., None]).mean(),
        lambda y: (
            -y.transpose(1, 2).log_softmax(1).movedim(1, 2).gather(2, LABELS[..., None]).mean()
        ),
        lambda y: -(LOG(y).transpose(1, 2) * F.one_hot(LABELS, C).transpose(1, 2)).sum(1).mean(),
        lambda y: F.nll_loss(LOG(y).movedim(-1, 1), LABELS),
    ],
    ids=["steps", "flat", "first flat", "steps first", "classes second", "weighed", "nll_loss"],
)  # fmt: skip
def test_so_it_is_of_every_step(loss: Loss) -> None:
    plain: Loss = lambda y: F.cross_entropy(y.flatten(0, 1), LABELS.flatten())  # noqa: E731
    same(of_loss(loss, Sequences().double(), STEPS), of_loss(plain, Sequences().double(), STEPS))


def test_steps_that_are_left_out_behind_the_logarithm_do_not_count() -> None:
    def shifted(y: Tensor) -> Tensor:
        return -LOG(y)[:, :-1].gather(2, LABELS[:, 1:, None]).mean()

    def plain(y: Tensor) -> Tensor:
        return F.cross_entropy(y[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())

    found = of_loss(shifted, Sequences().double(), STEPS)
    wanted = of_loss(plain, Sequences().double(), STEPS)
    for left, right in zip(found.target_modes, wanted.target_modes, strict=True):
        exact = [(m.singular_value, m.learned, m.rate, m.gain) for m in (left, right)]
        assert exact[0] == pytest.approx(exact[1])
        # The outputs that do not count are in the forecast's few directions, too.
        assert left.steps_to_learn == pytest.approx(right.steps_to_learn, rel=0.05)


def test_an_entropy_bonus_is_forecast_with_it() -> None:
    """All that is computed from the logits is computed anew from those to come."""

    def loss(y: Tensor) -> Tensor:
        log = LOG(y)
        bonus = -(y.softmax(-1) * y.log_softmax(-1)).sum(1).mean()
        return -log.gather(1, CLASSES[:, None]).mean() - 0.2 * bonus

    found, model = of_loss(loss), net()
    assert found.forecast is not None
    for _ in range(10):
        gradients = torch.autograd.grad(loss(model(X)), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.sub_(g, alpha=0.5)
    assert found.forecast.loss_in(10) == pytest.approx(float(loss(model(X)).detach()), rel=0.05)


BITS = (VALUES > 0.3).double()


def no_and_yes(yes: Tensor, no: Tensor) -> Tensor:
    return -(BITS * yes + (1 - BITS) * no).mean()


def of_a_chance(p: Tensor) -> Tensor:
    return no_and_yes(p.log(), torch.sub(1, p).log())


BINARY: dict[str, Loss] = {
    "of probabilities": lambda y: F.binary_cross_entropy(y.sigmoid(), BITS),
    "as a module": lambda y: nn.BCELoss()(nn.Sigmoid()(y), BITS),
    "in another shape": lambda y: F.binary_cross_entropy(
        y.sigmoid().flatten().unsqueeze(0).squeeze(), BITS.flatten()
    ),
    "of probabilities, limited": lambda y: F.binary_cross_entropy(
        torch.sigmoid(y).clamp(1e-12, 1 - 1e-12), BITS
    ),
    "of a no": lambda y: F.binary_cross_entropy(torch.sigmoid(-y), 1 - BITS),
    "by hand": lambda y: no_and_yes(y.sigmoid().log(), (1 - y.sigmoid()).log()),
    "by hand, the no first": lambda y: (
        -((1 - y.sigmoid()).log() * (1 - BITS)).mean() - (torch.log(y.sigmoid()) * BITS).mean()
    ),
    "by hand, with what keeps from zero": lambda y: no_and_yes(
        (y.sigmoid() + 1e-12).log(), (1 - y.sigmoid() + 1e-12).log()
    ),
    "by hand, limited": lambda y: of_a_chance(y.sigmoid().clamp(1e-12, 1 - 1e-12)),
    "by logarithms of sigmoids": lambda y: no_and_yes(F.logsigmoid(y), F.logsigmoid(-y)),
    "by log1p": lambda y: no_and_yes(y.sigmoid().log(), torch.log1p(-y.sigmoid())),
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
def test_binary_cross_entropy_in_other_ways_is_that_of_logits(name: str) -> None:
    wanted = of_loss(lambda y: F.binary_cross_entropy_with_logits(y, BITS))
    same(of_loss(BINARY[name]), wanted)


@pytest.mark.parametrize("name", ["by hand", "of probabilities"])
def test_so_it_is_of_one_column(name: str) -> None:
    bits = BITS[:, 0]
    loss: dict[str, Loss] = {
        "by hand": lambda p: -(bits * p.log() + (1 - bits) * (1 - p).log()).mean(),
        "of probabilities": lambda p: F.binary_cross_entropy(p, bits),
    }
    found = of_loss(lambda y: loss[name](y.sigmoid().squeeze(-1)), net(1))
    wanted = of_loss(lambda y: F.binary_cross_entropy_with_logits(y.squeeze(-1), bits), net(1))
    same(found, wanted)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: -(BITS * y.sigmoid().log()).mean() - (BITS * (1 - y.sigmoid()).log()).mean(),
        lambda y: -(BITS * (1 / (1 + (-y).exp())).log()).mean(),
        lambda y: -(BITS * y.sigmoid().log()).mean() + (y**2).mean(),
    ],
    ids=["no target", "another sigmoid", "one half"],
)
def test_products_that_are_no_loss_that_is_known_have_no_modes(loss: Loss) -> None:
    found = of_loss(loss)
    assert found.target_modes == ()
    assert "there are no target modes" in found.remarks[0]


class Two(nn.Module):
    """A readout that matters, another one, and a codebook."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.out, self.again = nn.Linear(M, N), nn.Linear(N, C), nn.Linear(N, M)
        self.codes = nn.Embedding(8, N)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.body(x).tanh()
        return h, self.out(h), self.again(h)


def of_two(loss: Callable[..., Tensor]) -> Snapshot:
    model = Two().double()
    return probe(model, X, loss_fn=lambda module, x: loss(*module(x)), **EXACT)


def outputs_of(found: Snapshot) -> list[tuple[str, str]]:
    return [(output.name, output.loss) for output in found.outputs]


@pytest.mark.parametrize(
    ("plain", "by_hand"),
    [
        (lambda y: F.mse_loss(y, VALUES), lambda y: ((y - VALUES) ** 2).mean()),
        (lambda y: F.cross_entropy(y, CLASSES), CROSS_ENTROPIES["gathered"]),
        (lambda y: F.cross_entropy(y, CLASSES), CROSS_ENTROPIES["weighed"]),
        (lambda y: F.binary_cross_entropy_with_logits(y, BITS), BINARY["by hand"]),
    ],
    ids=["difference", "gathered", "weighed", "bits"],
)
def test_a_loss_by_hand_counts_beside_one_of_torch(plain: Loss, by_hand: Loss) -> None:
    found, wanted = (
        of_two(lambda h, y, z, loss=loss: loss(y) + 1e-2 * F.l1_loss(z, X))
        for loss in (by_hand, plain)
    )
    assert [name for name, _ in outputs_of(found)] == ["out", "again"]
    same(found, wanted)


ADVANTAGES = VALUES[:, 0].abs() + 0.1


@pytest.mark.parametrize(
    "other",
    [
        lambda y: -(LOG(y).gather(1, CLASSES[:, None])[:, 0] * ADVANTAGES).mean(),
        lambda y: -(y.softmax(-1)[torch.arange(B), CLASSES] * ADVANTAGES).mean(),
        lambda y: (
            -((LOG(y).gather(1, CLASSES[:, None])[:, 0] - VALUES[:, 1]).exp() * VALUES[:, 0]).mean()
        ),
        lambda y: 1 - (y.sigmoid() * BITS).sum() / (y.sigmoid() + BITS).sum(),
        lambda y: (y**2 + y.exp() - y).mean(),
        lambda y: (y - y.detach().roll(1, 0)).square().mean(),
        lambda y: F.cosine_embedding_loss(y[:6], y[6:], torch.ones(6)),
    ],
    ids=["policy", "expected", "ratio", "overlap", "norm", "slowness", "contrastive"],
)
def test_what_compares_no_data_is_no_output_beside_one_that_does(other: Loss) -> None:
    found = of_two(lambda h, y, z: F.mse_loss(z, X) + other(y))
    assert outputs_of(found) == [("again", "mse_loss")]


def test_weights_of_a_loss_that_are_made_by_its_target_are_no_second_one() -> None:
    def focal(y: Tensor) -> Tensor:
        chance = y.softmax(-1).gather(1, CLASSES[:, None])[:, 0]
        return ((1 - chance) ** 2 * F.cross_entropy(y, CLASSES, reduction="none")).mean()

    assert outputs_of(of_loss(focal)) == [("2", "cross_entropy")]


def test_parameters_that_are_held_near_what_they_were_are_no_outputs() -> None:
    before = draw(C * N, seed=5)
    model = Two().double()

    def loss(module: Any, x: Tensor) -> Tensor:
        flat = torch.cat([module.out.weight.flatten()])
        return F.mse_loss(module(x)[1], VALUES) + ((flat - before) ** 2).mean()

    assert outputs_of(probe(model, X, loss_fn=loss, **EXACT)) == [("out", "mse_loss")]


def test_a_target_that_is_trained_itself_is_none_beside_data() -> None:
    model = Two().double()

    def loss(module: Any, x: Tensor, *, with_data: bool = True) -> Tensor:
        h, _, z = module(x)
        q = module.codes(torch.cdist(h, module.codes.weight).argmin(1))
        found = F.mse_loss(q, h.detach()) + F.mse_loss(h, q.detach())
        return found + F.mse_loss(z, x) if with_data else found

    assert outputs_of(probe(model, X, loss_fn=loss, **EXACT)) == [("again", "mse_loss")]
    alone = probe(model, X, loss_fn=lambda m, x: loss(m, x, with_data=False), **EXACT)
    assert len(alone.outputs) == 2


SHARED = draw(T, C, seed=4)
WHOLE = torch.arange(B * C).reshape(B, C) % 5 - 2


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: ((y - SHARED) ** 2).mean(),
        lambda y: ((SHARED[None] - y) ** 2).mean(),
        lambda y: (y - SHARED).abs().square().mean(),
    ],
    ids=["less axes", "one trial", "reversed"],
)
def test_a_target_that_all_trials_share_is_one(loss: Loss) -> None:
    plain: Loss = lambda y: F.mse_loss(y, SHARED.expand(B, T, C))  # noqa: E731
    same(of_loss(loss, Sequences().double(), STEPS), of_loss(plain, Sequences().double(), STEPS))


def test_what_all_rows_share_is_no_target() -> None:
    found = of_loss(lambda y: ((y - VALUES[:1]) ** 2).mean() + (y**2).mean())
    assert found.target_modes == ()
    assert len(found.remarks) == 1


def test_a_target_of_whole_numbers_is_one() -> None:
    same(
        of_loss(lambda y: ((y - WHOLE) ** 2).mean()),
        of_loss(lambda y: F.mse_loss(y, WHOLE.double())),
    )


PARTS: dict[str, Loss] = {
    "columns": lambda y: sum(F.mse_loss(y[:, i], VALUES[:, i]) for i in range(C)) / C,
    "any axis": lambda y: sum(F.mse_loss(y[..., i], VALUES[..., i]) for i in range(C)) / C,
    "slices": lambda y: (
        sum(F.mse_loss(y[:, i : i + 1], VALUES[:, i : i + 1]) for i in range(C)) / C
    ),
    "by hand": lambda y: sum((y[:, i] - VALUES[:, i]).square().mean() for i in range(C)) / C,
    "selected": lambda y: sum(F.mse_loss(y.select(1, i), VALUES[:, i]) for i in range(C)) / C,
}


@pytest.mark.parametrize("name", PARTS)
def test_outputs_that_are_compared_one_by_one_are_compared_together(name: str) -> None:
    same(of_loss(PARTS[name]), of_loss(lambda y: F.mse_loss(y, VALUES)))


@pytest.mark.parametrize("by_hand", [False, True], ids=["mse_loss", "by hand"])
def test_so_they_are_at_every_step(by_hand: bool) -> None:
    targets = draw(B, T, C, seed=6)
    one = (lambda a, b: ((a - b) ** 2).mean()) if by_hand else F.mse_loss
    found = of_loss(
        lambda y: sum(one(y[..., i], targets[..., i]) for i in range(C)) / C,
        Sequences().double(),
        STEPS,
    )
    same(found, of_loss(lambda y: F.mse_loss(y, targets), Sequences().double(), STEPS))


def test_columns_that_are_steps_stay_steps() -> None:
    targets = draw(B, T, seed=7)

    def outputs(y: Tensor) -> Tensor:
        return y[..., 0]

    found = of_loss(
        lambda y: sum(F.mse_loss(outputs(y)[:, t], targets[:, t]) for t in range(T)) / T,
        Sequences().double(),
        STEPS,
    )
    wanted = of_loss(
        lambda y: F.mse_loss(y[..., :1], targets[..., None]), Sequences().double(), STEPS
    )
    same(found, wanted)
    assert found.target_patterns.shape == (1, B, T)


FEW, ONE = torch.full((B,), 1), torch.full((B, C), 0.1).double()


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: F.cross_entropy(y, FEW),
        lambda y: -LOG(y).gather(1, FEW[:, None]).mean(),
        lambda y: F.mse_loss(y, ONE),
        lambda y: ((y - ONE) ** 2).mean(),
        lambda y: F.binary_cross_entropy_with_logits(y, ONE.ceil()),
    ],
    ids=["one class", "by hand", "one number", "one number by hand", "yes alone"],
)
def test_a_batch_with_one_target_has_no_modes_and_says_why(loss: Loss) -> None:
    found = of_loss(loss)
    assert found.target_modes == ()
    (remark,) = found.remarks
    assert "the target of '2' is the same wherever it counts in this batch" in remark
    assert "probe another batch (probe_batch)" in remark


@pytest.mark.parametrize("name", ["gathered", "weighed", "nll_loss"])
def test_rows_that_are_left_out_do_not_count_though_a_bonus_has_them(name: str) -> None:
    kept = torch.arange(B) % 3 > 0

    def loss(y: Tensor) -> Tensor:
        log = LOG(y)
        each = {
            "gathered": lambda: -log.gather(1, CLASSES[:, None])[:, 0],
            "weighed": lambda: -(log * ONE_HOT).sum(1),
            "nll_loss": lambda: F.nll_loss(log, CLASSES, reduction="none"),
        }[name]()
        return (each * kept).sum() / kept.sum() + 0.1 * (log.exp() * log).sum(1).mean()

    def plain(y: Tensor) -> Tensor:
        target = ONE_HOT.double() if name == "weighed" else CLASSES
        return (F.cross_entropy(y, target, reduction="none") * kept).sum() / kept.sum()

    found, wanted = of_loss(loss), of_loss(plain)
    for left, right in zip(found.target_modes, wanted.target_modes, strict=True):
        assert left.singular_value == pytest.approx(right.singular_value)
        assert left.learned == pytest.approx(right.learned)
