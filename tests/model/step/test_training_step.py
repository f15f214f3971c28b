"""A LightningModule's training step, called as training calls it, and without any effect."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MeanSquaredError

from ntk_monitor import NTKMonitor, probe
from ntk_monitor.model.step import StepError, TrainingStep, standins
from ntk_monitor.model.step.standins import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
F = nn.functional
B, M, N = 8, 3, 5
FAST: dict[str, Any] = {"max_products": 24, "max_overhead": None, "figures": False}


def data(batches: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(batches * B, width, generator=generator) for width in (M, 2))
    return DataLoader(TensorDataset(x, y), batch_size=B)


class Plain(pl.LightningModule):
    """Has a step and no forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(M, N), nn.Tanh())
        self.out = nn.Linear(N, 2)
        self.metric, self.mean = MeanSquaredError(), MeanMetric()
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        y = self.out(self.body(batch[0]))
        self.calls += 1
        self.metric(y, batch[1])
        self.mean.update(y.mean())
        self.log("mean", self.mean)
        self.log_dict({"metric": self.metric, "first": y.mean()})
        return F.mse_loss(y, batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Manual(Plain):
    """Does all by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self.toggle_optimizer(optimizer)
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.5)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        scheduler.step()


class Talkative(Plain):
    """Uses its Trainer and its loggers."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.print("a step")
        self.logger.experiment.log_metrics({"own": 1.0}, step=self.calls)
        self.logger.log_metrics({"other": 2.0}, step=self.calls)
        self.trainer.save_checkpoint("a checkpoint")
        self.trainer.callback_metrics["own"] = torch.ones(())
        if self.trainer.current_epoch == self.current_epoch and self.trainer.num_training_batches:
            return {"loss": super().training_step(batch, batch_idx), "more": batch_idx}
        return None


STEPS: dict[str, Callable[[], pl.LightningModule]] = {
    "plain": Plain,
    "manual": Manual,
    "talkative": Talkative,
}


class Watch(pl.Callback):
    """Notes, after every batch, what a step could have changed."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note(trainer, pl_module)

    def note(self, trainer: Any, module: Any) -> None:
        results = trainer._results
        metrics = {k: v for k, v in trainer.callback_metrics.items() if "/" not in k}
        self.notes.append(
            copy.deepcopy({
                "weights": [p.detach() for p in module.parameters()],
                "calls": module.calls,
                "metric states": [m.metric_state for m in (module.metric, module.mean)],
                "metric counts": [m.update_count for m in (module.metric, module.mean)],
                "logged": sorted(results) if results is not None else [],
                "metrics": metrics,
                "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
                "optimizers": [o.state_dict() for o in trainer.optimizers],
                "rates": [g["lr"] for o in trainer.optimizers for g in o.param_groups],
                "attributes": sorted(vars(module)),
                "requires_grad": [p.requires_grad for p in module.parameters()],
            })
        )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) or bool(torch.equal(a.isnan(), b.isnan()) and a.isnan().any())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def fit(kind: str, callbacks: list[pl.Callback], path: Any) -> tuple[pl.LightningModule, Watch]:
    watch = Watch()
    module = STEPS[kind]()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=CSVLogger(path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[*callbacks, watch],
    )
    trainer.fit(module, data())
    return module, watch


def differing(a: Watch, b: Watch) -> set[str]:
    return {
        key for key in a.notes[0] if not same([n[key] for n in a.notes], [n[key] for n in b.notes])
    }


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_is_probed_without_a_trace(
    kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", lambda _, path: saved.append(path))
    _, alone = fit(kind, [], tmp_path / "alone")
    monitor = NTKMonitor(1, on_error="raise", **FAST)
    once = len(saved)
    _, watched = fit(kind, [monitor], tmp_path / "watched")
    assert differing(alone, watched) == set()
    assert len(saved) == 2 * once
    assert monitor.snapshot is not None
    assert monitor.snapshot.state == ("body.1",)
    assert monitor.snapshot.step == f"{STEPS[kind].__name__}.training_step"
    assert len(monitor.snapshot.target_modes) == 2


def leave_out(*names: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Let methods of the module be the real ones, and its Trainer's results, in a probe."""

    def break_it(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(standins, "_results_like", lambda results: results)
        init = Training.__init__

        def without(self: Training, module: nn.Module) -> None:
            init(self, module)
            for name in names:
                self._instead.pop(name)

        monkeypatch.setattr(Training, "__init__", without)

    return break_it


def real(kind: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Let the stand-in for an optimizer or a scheduler be the thing itself."""

    def break_it(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(standins, kind, lambda thing: thing)

    return break_it


def forget_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not put back what modules hold, metrics among them."""
    monkeypatch.setattr(
        "ntk_monitor.model.isolation.object_state.ObjectState.put_back", lambda _: None
    )


def real_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "_trainer", lambda self, real, several: real)


MUTATIONS: dict[str, tuple[str, str, Callable[[pytest.MonkeyPatch], None]]] = {
    # what is broken: in which training it shows, and where
    "log calls": ("plain", "logged", leave_out("log", "log_dict")),
    "metric objects": ("plain", "metric states", forget_modules),
    "counters": ("plain", "calls", forget_modules),
    "scheduler": ("manual", "schedulers", real("_Scheduler")),
    "trainer": ("talkative", "metrics", real_trainer),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", MUTATIONS)
def test_each_guard_is_needed(what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", lambda _, path: None)
    kind, where, break_it = MUTATIONS[what]
    _, alone = fit(kind, [], tmp_path / "alone")
    break_it(monkeypatch)
    _, watched = fit(kind, [NTKMonitor(1, **FAST)], tmp_path / "watched")
    assert where in differing(alone, watched)


def test_a_step_of_an_optimizer_goes_nowhere() -> None:
    module = Manual()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    stand_in = standins._Optimizer(optimizer)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in module.parameters()]
    assert stand_in.step(closure=lambda: 7) == 7
    stand_in.step()
    stand_in.zero_grad()
    stand_in.param_groups[0]["lr"] = 5.0
    stand_in.lasting = True
    assert all(map(torch.equal, before, [p.detach() for p in module.parameters()]))
    assert all(p.grad is not None for p in module.parameters())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not hasattr(optimizer, "lasting")
    assert isinstance(stand_in, torch.optim.SGD)
    assert not optimizer.state


def batch() -> list[Tensor]:
    return next(iter(data()))


def step(function: Callable[..., Any], *, automatic: bool = True) -> pl.LightningModule:
    module = Plain()
    module.automatic_optimization = automatic
    module.__class__ = type("Own", (Plain,), {"training_step": function})
    return module


def loss_of(self: Any, batch: Any) -> Tensor:
    return F.mse_loss(self.out(self.body(batch[0])), batch[1])


RETURNS: dict[str, Callable[..., Any]] = {
    "a tensor": lambda self, batch, batch_idx: loss_of(self, batch),
    "a dictionary": lambda self, batch, batch_idx: {"loss": loss_of(self, batch), "x": 1},
    "one argument": loss_of,
    "another name": lambda self, data, number: loss_of(self, data) + 0 * number,
    "a loader's number": lambda self, batch, batch_idx, dataloader_idx=0: loss_of(self, batch),
    "any arguments": lambda self, *args: loss_of(self, args[0]) + 0 * args[1],
    "by name": lambda self, batch, *, batch_idx: loss_of(self, batch) + 0 * batch_idx,
    "a tuple": lambda self, batch, batch_idx: (loss_of(self, batch), None),
    "one number": lambda self, batch, batch_idx: loss_of(self, batch)[None],
}


@pytest.mark.parametrize("name", RETURNS)
def test_a_step_may_take_and_return_what_lightning_allows(name: str) -> None:
    found = probe(step(RETURNS[name]), batch(), learning_rate=0.1)
    wanted = probe(
        Plain(),
        batch(),
        forward_fn=lambda m, b: m.out(m.body(b[0])),
        learning_rate=0.1,
        state="body.1",
    )
    assert found.step == "Own.training_step"
    assert found.trace == wanted.trace
    for left, right in zip(found.target_modes, wanted.target_modes, strict=True):
        assert left.learned == pytest.approx(right.learned, rel=1e-6)
        assert left.gain == pytest.approx(right.gain, rel=1e-6)
        assert left.steps_to_learn == pytest.approx(right.steps_to_learn, rel=1e-6)


def _backward(self: Any, batch: Any, batch_idx: int) -> None:
    optimizer = self.optimizers()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(self, batch)
        self.manual_backward(loss)
        return loss

    optimizer.step(closure=closure)


def _own_backward(self: Any, batch: Any, batch_idx: int) -> None:
    loss = loss_of(self, batch)
    loss.backward()
    self.optimizers().step()
    torch.autograd.backward([loss_of(self, batch)])


def _penalty(self: Any, batch: Any, batch_idx: int) -> Tensor:
    x = batch[0].requires_grad_()
    y = self.out(self.body(x))
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return F.mse_loss(y, batch[1]) + slope.square().mean()


@pytest.mark.parametrize(
    ("function", "automatic"),
    [(_backward, False), (_own_backward, False), (_penalty, True)],
    ids=["closure", "backward by itself", "gradient penalty"],
)
def test_a_step_may_go_backward_by_itself(function: Any, automatic: bool) -> None:
    module = step(function, automatic=automatic)
    before = copy.deepcopy(module.state_dict())
    found = probe(module, batch(), learning_rate=0.1, method="finite-difference")
    assert len(found.target_modes) == 2
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in before.items())


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "nothing": (
        lambda self, batch, batch_idx: None,
        "Own.training_step returned None for the kept batch, which training skips",
    ),
    "no loss": (
        lambda self, batch, batch_idx: {"y": batch[0]},
        "returned a dict without a loss, where a scalar tensor, a mapping with 'loss'.*loss_fn=",
    ),
    "no gradient": (
        lambda self, batch, batch_idx: loss_of(self, batch).detach(),
        r"depends on no studied parameter in this call \(does it run under torch.no_grad",
    ),
    "its own loader": (
        lambda self, dataloader_iter: None,
        "takes a dataloader_iter and fetches its batches itself.*forward_fn=",
    ),
    "a Trainer": (
        lambda self, batch, batch_idx: (
            loss_of(self, batch) / self.trainer.estimated_stepping_batches
        ),
        "asks its Trainer for 'estimated_stepping_batches', and there is no Trainer: pass loss_fn",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_probed_is_told_with_the_remedy(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(StepError, match=message):
        probe(step(function), batch())


def test_a_step_that_hands_no_loss_to_manual_backward_says_so() -> None:
    module = step(lambda self, batch, batch_idx: loss_of(self, batch), automatic=False)
    with pytest.raises(StepError, match="handed no loss to manual_backward"):
        probe(module, batch())


def test_a_step_that_does_not_repeat_itself_is_told_with_what_differs() -> None:
    outside = iter(range(100))

    def drawn(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.out(self.body(batch[0])), batch[1] * next(outside))

    with pytest.raises(StepError, match=r"the target differs by .* two calls of Own.training_step"):
        probe(step(drawn), batch())

    def moved(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return loss_of(self, [batch[0] * next(outside), batch[1]])

    with pytest.raises(ValueError, match=r"the state differs .*forward_fn=lambda module, batch"):
        probe(step(moved), batch())


def test_a_loss_that_is_not_finite_is_told_and_all_else_is_measured() -> None:
    module = step(lambda self, batch, batch_idx: loss_of(self, batch) * torch.inf)
    found = probe(module, batch())
    assert found.trace.is_finite
    assert "the loss of Own.training_step is inf on the kept batch" in found.remarks


def test_a_target_network_may_be_brought_up_to_date_in_the_step() -> None:
    def function(self: Any, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = self.slow(batch[0])
        loss = F.mse_loss(self.out(self.body(batch[0])), target)
        self.slow.load_state_dict(nn.Sequential(*self.body, self.out).state_dict())
        return loss

    module = step(function)
    module.slow = nn.Sequential(nn.Linear(M, N), nn.Tanh(), nn.Linear(N, 2)).requires_grad_(False)
    with torch.no_grad():
        target = module.slow(batch()[0])
        wanted = torch.linalg.svdvals(target - target.mean(0))
    before = copy.deepcopy(module.state_dict())
    found = probe(module, batch())
    assert [m.singular_value for m in found.target_modes] == pytest.approx(
        wanted.tolist(), rel=1e-5
    )
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in before.items())
    with pytest.raises(RuntimeError, match="writes into parameters of the model"):
        probe(module, batch(), method="in-place")
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in before.items())


def test_without_a_training_step_the_forward_pass_is_probed() -> None:
    class Bare(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(M, N), nn.Tanh(), nn.Linear(N, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    found = probe(Bare(), tuple(batch()))
    assert found.step == "Bare.forward"
    assert len(found.target_modes) == 2


def test_a_step_keeps_its_name() -> None:
    assert TrainingStep(Plain(), Training(Plain())).name == "Plain.training_step"
