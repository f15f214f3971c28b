"""The measurement without Lightning, in a loop of one's own.

python examples/plain_pytorch_loop.py
"""

import torch
from torch import nn

from ntk_monitor import probe

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
x = torch.linspace(-1, 1, 64).unsqueeze(1)
y = torch.sin(3 * x) + 0.3 * torch.sin(20 * x)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for step in range(501):
    loss = nn.functional.mse_loss(model(x), y)
    if step % 100 == 0:
        snapshot = probe(model, (x, y), modes=1, learning_rate=0.1)  # the model is left as it was
        (mode,) = snapshot.target_modes
        print(
            f"step {step}: loss {loss:.3f}, effective rank {snapshot.effective_rank}, learned "
            f"{mode.learned:.2f}, steps to learn {mode.steps_to_learn:.0f}"
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
