"""Manual optimisation: several optimizers, several backward passes, steps of one's own."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from outsiders.data import images, loader, table, waves
from outsiders.training import Training, usual


class Generator(nn.Module):
    def __init__(self, latent_dim: int, img_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.img_shape = img_shape
        self.model = nn.Sequential(
            nn.Linear(latent_dim, 32),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(32, 64),
            nn.BatchNorm1d(64, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(64, int(torch.tensor(img_shape).prod())),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.model(z).view(z.size(0), *self.img_shape)


class Discriminator(nn.Module):
    def __init__(self, img_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(int(torch.tensor(img_shape).prod()), 48),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(48, 24),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(24, 1),
            nn.Sigmoid(),
        )

    def forward(self, img: Tensor) -> Tensor:
        return self.model(img.view(img.size(0), -1))


class GAN(pl.LightningModule):
    """Lightning's tutorial."""

    def __init__(self, latent_dim: int = 16, lr: float = 2e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Generator(latent_dim, (1, 8, 8))
        self.discriminator = Discriminator((1, 8, 8))

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def adversarial_loss(self, y_hat: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy(y_hat, y)

    def training_step(self, batch: Any) -> None:
        imgs, _ = batch
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(imgs.shape[0], self.hparams.latent_dim)
        z = z.type_as(imgs)

        self.toggle_optimizer(optimizer_g)
        self.generated_imgs = self(z)
        valid = torch.ones(imgs.size(0), 1)
        valid = valid.type_as(imgs)
        g_loss = self.adversarial_loss(self.discriminator(self(z)), valid)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real_loss = self.adversarial_loss(self.discriminator(imgs), valid)
        fake = torch.zeros(imgs.size(0), 1)
        fake = fake.type_as(imgs)
        fake_loss = self.adversarial_loss(self.discriminator(self(z).detach()), fake)
        d_loss = (real_loss + fake_loss) / 2
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        lr, betas = self.hparams.lr, (0.5, 0.999)
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=lr, betas=betas)
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=betas)
        return [opt_g, opt_d], []


class TruncatedBPTT(pl.LightningModule):
    """The loop over chunks of Lightning's documentation."""

    def __init__(self, truncated_bptt_steps: int = 10) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.truncated_bptt_steps = truncated_bptt_steps
        self.my_rnn = nn.LSTM(2, 24, batch_first=True)
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor, hiddens: Any) -> tuple[Tensor, Any]:
        out, hiddens = self.my_rnn(x, hiddens)
        return self.head(out), hiddens

    def split_batch(self, batch: Any, split_size: int) -> list[list[Tensor]]:
        (series,) = batch
        x, y = series[:, :-1], series[:, 1:]
        return [
            [x[:, t : t + split_size], y[:, t : t + split_size]]
            for t in range(0, x.size(1), split_size)
        ]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        hiddens = None
        for x, y in self.split_batch(batch, self.truncated_bptt_steps):
            y_hat, hiddens = self(x, hiddens)
            loss = functional.mse_loss(y_hat, y)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            hiddens = [h.detach() for h in hiddens]
        self.log("train_loss", loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Accumulating(pl.LightningModule):
    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.n = n
        self.layers = nn.Sequential(
            nn.Linear(12, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def compute_loss(self, batch: Any) -> Tensor:
        x, y = batch
        return functional.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        opt = self.optimizers()
        loss = self.compute_loss(batch) / self.n
        self.manual_backward(loss)
        if (batch_idx + 1) % self.n == 0:
            self.clip_gradients(opt, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            opt.step()
            opt.zero_grad()

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        opt = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [opt], [torch.optim.lr_scheduler.ExponentialLR(opt, 0.95)]


class SAM(torch.optim.Optimizer):
    """Sharpness-aware: the gradient where the loss is worst nearby, applied here."""

    def __init__(self, params: Any, lr: float, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})

    def gradients(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm() for p in self.gradients()]).norm()
        for p in self.gradients():
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * self.defaults["rho"] / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.gradients():
            p.copy_(self.state[p]["old"]).sub_(p.grad, alpha=self.defaults["lr"])
        self.zero_grad()

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()
        return loss


class SharpnessAware(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.fc1, self.fc2 = nn.Linear(12, 32), nn.Linear(32, 32)
        self.fc3 = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        x = torch.tanh(self.fc2(x))
        return self.fc3(x)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(self(x), y)
            self.manual_backward(loss)
            self.log("train_loss", loss)
            return loss

        optimizer.step(closure=closure)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return SAM(self.parameters(), lr=0.1)


class LBFGS(pl.LightningModule):
    """Automatic, but the optimizer calls the step many times."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(12, 24), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(torch.sigmoid(self.l1(x))).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = ((self(x) - y.float()) ** 2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


TRAININGS = (
    Training(
        "gan",
        usual(lambda: (GAN(), loader(*images())), max_steps=120),
        states=("generator.model.[0-4]", "discriminator.model.[0-3]"),
        targets="none: adversarial",
        modes=False,
    ),
    Training(
        "truncated bptt",
        usual(lambda: (TruncatedBPTT(), loader(waves(length=31)))),
        states=("my_rnn",),
        targets="the next value, 2 values, in 3 chunks",
        modes=True,
    ),
    Training(
        "accumulation by hand",
        usual(lambda: (Accumulating(), loader(*table())), max_steps=40),
        states=("layers.[0-3]",),
        targets="class labels, 4",
        modes=True,
    ),
    Training(
        "sharpness-aware",
        usual(lambda: (SharpnessAware(), loader(*table()))),
        states=("fc[12]",),
        targets="class labels, 4",
        modes=True,
    ),
    Training(
        "lbfgs",
        usual(lambda: (LBFGS(), loader(*table(classes=2)))),
        states=("l1",),
        targets="0 or 1 as values, 1",
        modes=True,
    ),
)
