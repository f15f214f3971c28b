"""Regression, density and reconstruction: losses that authors write into the training step."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from outsiders.data import curves, images, loader, source
from outsiders.training import Training, usual


class LitAutoEncoder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        x = x.view(x.size(0), -1)
        z = self.encoder(x)
        x_hat = self.decoder(z)
        loss = functional.mse_loss(x_hat, x)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class VAE(pl.LightningModule):
    def __init__(self, latent_dim: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.fc_mu = nn.Linear(48, latent_dim)
        self.fc_var = nn.Linear(48, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 48), nn.ReLU(), nn.Linear(48, 64))
        self.log_scale = nn.Parameter(torch.tensor([0.0]))

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def gaussian_likelihood(self, x_hat: Tensor, x: Tensor) -> Tensor:
        dist = torch.distributions.Normal(x_hat, torch.exp(self.log_scale))
        return dist.log_prob(x.flatten(1)).sum(dim=1)

    def kl_divergence(self, z: Tensor, mu: Tensor, std: Tensor) -> Tensor:
        p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(std))
        q = torch.distributions.Normal(mu, std)
        return (q.log_prob(z) - p.log_prob(z)).sum(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        x_encoded = self.encoder(x)
        mu, log_var = self.fc_mu(x_encoded), self.fc_var(x_encoded)
        std = torch.exp(log_var / 2)
        z = torch.distributions.Normal(mu, std).rsample()
        recon_loss = self.gaussian_likelihood(self(z), x)
        kl = self.kl_divergence(z, mu, std)
        elbo = (kl - recon_loss).mean()
        self.log_dict({"elbo": elbo, "kl": kl.mean(), "recon_loss": recon_loss.mean()})
        return elbo

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class MDN(pl.LightningModule):
    def __init__(self, n_hidden: int = 32, n_gaussians: int = 4) -> None:
        super().__init__()
        self.z_h = nn.Sequential(nn.Linear(3, n_hidden), nn.Tanh())
        self.z_pi = nn.Linear(n_hidden, n_gaussians)
        self.z_mu = nn.Linear(n_hidden, n_gaussians)
        self.z_sigma = nn.Linear(n_hidden, n_gaussians)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_h = self.z_h(x)
        pi = functional.softmax(self.z_pi(z_h), -1)
        return pi, self.z_mu(z_h), torch.exp(self.z_sigma(z_h))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        pi, mu, sigma = self(x)
        density = torch.exp(-0.5 * ((y - mu) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        loss = -torch.log((pi * density).sum(1) + 1e-8).mean()
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class QuantileRegression(pl.LightningModule):
    def __init__(self, quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)) -> None:
        super().__init__()
        self.quantiles = quantiles
        self.layers = nn.Sequential(
            nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, len(quantiles))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def quantile_loss(self, preds: Tensor, target: Tensor) -> Tensor:
        losses = []
        for i, q in enumerate(self.quantiles):
            errors = target[:, 0] - preds[:, i]
            losses.append(torch.max((q - 1) * errors, q * errors).unsqueeze(1))
        return torch.mean(torch.sum(torch.cat(losses, dim=1), dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.quantile_loss(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class HeatPINN(pl.LightningModule):
    """u_t = 0.1 u_xx, with u given at the boundary."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t], dim=1))

    def residual(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        t = t.clone().requires_grad_(True)
        u = self(x, t)
        ones = torch.ones_like(u)
        u_t = torch.autograd.grad(u, t, grad_outputs=ones, create_graph=True)[0]
        u_x = torch.autograd.grad(u, x, grad_outputs=ones, create_graph=True)[0]
        u_xx = torch.autograd.grad(u_x, x, grad_outputs=ones, create_graph=True)[0]
        return u_t - 0.1 * u_xx

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x_f, t_f, x_b, t_b, u_b = batch
        loss_pde = self.residual(x_f, t_f).pow(2).mean()
        loss_boundary = functional.mse_loss(self(x_b, t_b), u_b)
        self.log("loss_pde", loss_pde)
        self.log("loss_boundary", loss_boundary)
        return loss_pde + 10 * loss_boundary

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def heat() -> DataLoader:
    random = source()
    x, t, t_b = (torch.rand(512, 1, generator=random) for _ in range(3))
    x_b = torch.rand(512, 1, generator=random).round()
    t_b[::2] = 0
    x_b[::2] = torch.rand(256, 1, generator=random)
    u = torch.sin(math.pi * x_b) * torch.exp(-0.1 * math.pi**2 * t_b)
    return loader(x, t, x_b, t_b, u)


class Coupling(nn.Module):
    def __init__(self, dim: int, hidden: int, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.s = nn.Sequential(
            nn.Linear(dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, dim), nn.Tanh()
        )
        self.t = nn.Sequential(nn.Linear(dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = x * self.mask
        s = self.s(kept) * (1 - self.mask)
        t = self.t(kept) * (1 - self.mask)
        return kept + (1 - self.mask) * (x * torch.exp(s) + t), s.sum(dim=1)


class RealNVP(pl.LightningModule):
    def __init__(self, dim: int = 4, hidden: int = 32, n_layers: int = 4) -> None:
        super().__init__()
        mask = torch.arange(dim) % 2
        self.layers = nn.ModuleList(
            Coupling(dim, hidden, (mask if i % 2 else 1 - mask).float()) for i in range(n_layers)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, delta = layer(x)
            log_det = log_det + delta
        return x, log_det

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        z, log_det = self(x)
        log_prob = -0.5 * (z**2 + math.log(2 * math.pi)).sum(dim=1) + log_det
        loss = -log_prob.mean()
        self.log("train_nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class DDPM(pl.LightningModule):
    def __init__(self, n_steps: int = 100) -> None:
        super().__init__()
        self.n_steps = n_steps
        betas = torch.linspace(1e-4, 0.02, n_steps)
        self.register_buffer("alpha_bar", torch.cumprod(1 - betas, dim=0))
        self.time_embed = nn.Sequential(nn.Embedding(n_steps, 16), nn.Linear(16, 16), nn.SiLU())
        self.inp = nn.Conv2d(1, 16, 3, padding=1)
        self.mid = nn.Sequential(
            nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU()
        )
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.inp(x) + self.time_embed(t)[:, :, None, None]
        return self.out(h + self.mid(h))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        x = 2 * x - 1
        t = torch.randint(0, self.n_steps, (x.shape[0],), device=self.device)
        noise = torch.randn_like(x)
        a = self.alpha_bar[t][:, None, None, None]
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        loss = functional.mse_loss(self(noisy, t), noise)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-4)


def points() -> DataLoader:
    x, y = curves()
    return loader(torch.cat([x, y], dim=1))


TRAININGS = (
    Training(
        "autoencoder without forward",
        usual(lambda: (LitAutoEncoder(), loader(*images()))),
        states=("encoder*", "decoder.[01]"),
        targets="x itself, 64 values",
        modes=True,
    ),
    Training(
        "vae",
        usual(lambda: (VAE(), loader(*images()))),
        states=("encoder*", "decoder.[01]"),
        targets="x itself, 64 values, by a Gaussian's log-likelihood",
        modes=True,
    ),
    Training(
        "mixture density network",
        usual(lambda: (MDN(), loader(*curves()))),
        states=("z_h*",),
        targets="y, 1 value, by a mixture's likelihood with 4 means",
        modes=True,
    ),
    Training(
        "quantile regression",
        usual(lambda: (QuantileRegression(), loader(*curves()))),
        states=("layers.[0-3]",),
        targets="y, 1 value, for 3 outputs",
        modes=True,
    ),
    Training(
        "physics-informed network",
        usual(lambda: (HeatPINN(), heat())),
        states=("net.[0-3]",),
        targets="u at the boundary, 1 value; the residual has no target",
        modes=True,
    ),
    Training(
        "normalizing flow",
        usual(lambda: (RealNVP(), points())),
        states=("layers.[0-2]", "layers.[0-3].[st].[0-2]"),
        targets="none: likelihood of x",
        modes=False,
    ),
    Training(
        "diffusion",
        usual(lambda: (DDPM(), loader(*images()))),
        states=("inp", "mid", "mid.*"),
        targets="the noise that the step draws, 64 values",
        modes=True,
    ),
)
