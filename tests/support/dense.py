"""Dense truth: every number of a snapshot by brute force, independent of the package's own code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Truth:
    """What brute force says of a model; ``J`` has shape ``(B, T, n, p)``."""

    J: Tensor
    V: Tensor
    numbers: dict[str, float]
    core_effective_rank: float
    temporal: Tensor
    gains: list[float]
    learned: list[float]
    overlaps: list[float]
    rates: list[float]


def state_of(module: nn.Module, path: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """State as (B, T, n), batch first, and outputs."""
    kept = []
    handle = module.get_submodule(path).register_forward_hook(lambda m, i, o: kept.append(o))
    y = module(x)
    handle.remove()
    h = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return (h.unsqueeze(1) if h.ndim == 2 else h), y


def rows_of_jacobian(output: Tensor, parameters: list[Tensor]) -> Tensor:
    """The Jacobian row by row, one backward pass each."""
    rows = []
    for entry in output.flatten():
        grads = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters)]  # noqa: B905
        rows.append(torch.cat([g.flatten() for g in parts]))
    return torch.stack(rows)


def unrolled_activity(module: nn.Module, x: Tensor) -> Tensor:
    """Site activity of a one-layer recurrent network, or of an MLP's layers behind the state."""
    if isinstance(module, nn.Sequential):
        hidden = torch.tanh(x @ module[0].weight.T + module[0].bias)
        one = torch.ones(len(x), 1, dtype=x.dtype)
        return torch.cat([x, one, hidden, one], dim=1).unsqueeze(1)
    rnn = module.rnn
    states = unroll(rnn, x)
    previous = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
    one = torch.ones_like(x[..., :1])
    parts = [x, one, previous, one] if rnn.bias else [x, previous]
    return torch.cat(parts, dim=-1)


def unroll(rnn: nn.RNNBase, x: Tensor) -> Tensor:
    """Hidden states of a one-layer RNN, GRU or LSTM, step by step from its equations."""
    n = rnn.hidden_size
    zero = torch.zeros(3 * n if isinstance(rnn, nn.GRU) else 4 * n, dtype=x.dtype)
    b_i = rnn.bias_ih_l0 if rnn.bias else zero[: len(rnn.weight_ih_l0)]
    b_h = rnn.bias_hh_l0 if rnn.bias else zero[: len(rnn.weight_hh_l0)]
    h = c = x.new_zeros(len(x), n)
    states = []
    for t in range(x.shape[1]):
        p = x[:, t] @ rnn.weight_ih_l0.T + b_i
        q = h @ rnn.weight_hh_l0.T + b_h
        if isinstance(rnn, nn.GRU):
            p_r, p_z, p_n = p.chunk(3, 1)
            q_r, q_z, q_n = q.chunk(3, 1)
            r, z = torch.sigmoid(p_r + q_r), torch.sigmoid(p_z + q_z)
            h = (1 - z) * torch.tanh(p_n + r * q_n) + z * h
        elif isinstance(rnn, nn.LSTM):
            i, f, g, o = (p + q).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        else:
            h = torch.tanh(p + q)
        states.append(h)
    return torch.stack(states, dim=1)


def participation(M: Tensor) -> float:
    return float(M.trace() ** 2 / M.square().sum())


def truth(module: nn.Module, path: str, batch: tuple[Tensor, Tensor], lr: float) -> Truth:
    """Everything, from dense matrices."""
    x, target = batch
    parameters = list(module.parameters())
    h, y = state_of(module, path, x)
    B, T, n = h.shape
    J = rows_of_jacobian(h, parameters).reshape(B * T, n, -1)
    J_y = rows_of_jacobian(y, parameters)
    A = torch.einsum("anp,bmp->anbm", J, J)
    temporal = torch.einsum("anbn->ab", A) / n
    spatial = torch.einsum("anam->nm", A) / (B * T)
    V = unrolled_activity(module, x).detach().flatten(0, 1)
    G = V @ V.T
    core = torch.einsum("ab,nm->anbm", G, torch.eye(n, dtype=G.dtype))
    flat = A.reshape(B * T * n, -1)
    numbers = {
        "trace": float(flat.trace()),
        "frobenius_norm": float(flat.norm()),
        "effective_rank": participation(flat),
        "temporal_effective_rank": participation(temporal),
        "spatial_effective_rank": participation(spatial),
        "core_cosine": float((A * core).sum() / (A.norm() * core.norm())),
        "temporal_core_cosine": float((temporal * G).sum() / (temporal.norm() * G.norm())),
    }
    J, J_y, A = J.detach(), J_y.detach(), A.detach()
    centred = target.reshape(B * T, -1) - target.reshape(B * T, -1).mean(0)
    U, sigma, Vh = torch.linalg.svd(centred, full_matrices=False)
    change = -lr * J_y @ (J_y.T @ (2 * (y.detach() - target) / y.numel()).flatten())
    gains, learned, overlaps, rates = [], [], [], []
    dy_dh = torch.autograd.functional.jacobian(lambda s: s @ readout(module).T, h.detach())
    for i in range(len(sigma)):
        e = torch.outer(U[:, i], Vh[i]).reshape(y.shape)
        q = torch.einsum("bto,btocdn->cdn", e.reshape(B, T, -1), dy_dh.reshape(B, T, -1, B, T, n))
        image = torch.einsum("kn,knp->p", q.reshape(B * T, n), J)
        gains.append(float(image.square().sum() / q.square().sum()))
        learned.append(float((y.detach() * e).sum() / sigma[i]))
        overlaps.append(float((V.T @ U[:, i]).square().sum() / torch.linalg.matrix_norm(V, 2) ** 2))
        rates.append(float(e.flatten() @ change / sigma[i]))
    return Truth(
        J=J.reshape(B, T, n, -1),
        V=V,
        numbers=numbers,
        core_effective_rank=participation(G),
        temporal=temporal,
        gains=gains,
        learned=learned,
        overlaps=overlaps,
        rates=rates,
    )


def readout(module: nn.Module) -> Tensor:
    """The weight of the linear readout."""
    layer = module[-1] if isinstance(module, nn.Sequential) else module.readout
    return layer.weight.detach()
