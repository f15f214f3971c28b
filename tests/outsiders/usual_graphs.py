"""A graph network written by hand, on batches of a class of its own."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from outsiders.data import source
from outsiders.training import Training, usual


class GraphBatch:
    """Graphs side by side; moves itself to a device."""

    def __init__(self, nodes: Tensor, edges: Tensor, graph: Tensor, y: Tensor) -> None:
        self.nodes, self.edges, self.graph, self.y = nodes, edges, graph, y

    @property
    def num_graphs(self) -> int:
        return len(self.y)

    def to(self, device: Any, **_: Any) -> GraphBatch:
        parts = (self.nodes, self.edges, self.graph, self.y)
        return GraphBatch(*(part.to(device) for part in parts))


class GraphConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.own, self.neighbours = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        messages = self.neighbours(x)[edges[0]]
        return self.own(x) + torch.zeros_like(self.own(x)).index_add(0, edges[1], messages)


class GraphNet(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GraphConv(4, 16), GraphConv(16, 16)
        self.readout = nn.Linear(16, 1)
        self.loss = nn.L1Loss()

    def forward(self, batch: GraphBatch) -> Tensor:
        x = torch.relu(self.conv1(batch.nodes, batch.edges))
        x = torch.relu(self.conv2(x, batch.edges))
        pooled = torch.zeros(batch.num_graphs, 16, device=x.device).index_add(0, batch.graph, x)
        return self.readout(pooled).squeeze(-1)

    def training_step(self, batch: GraphBatch, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch), batch.y)
        self.log("train_mae", loss, batch_size=batch.num_graphs)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def side_by_side(graphs: list[tuple[Tensor, Tensor, Tensor]]) -> GraphBatch:
    offset, edges = 0, []
    for x, e, _ in graphs:
        edges.append(e + offset)
        offset += len(x)
    return GraphBatch(
        torch.cat([x for x, _, _ in graphs]),
        torch.cat(edges, dim=1),
        torch.cat([torch.full((len(x),), i) for i, (x, _, _) in enumerate(graphs)]),
        torch.stack([y for _, _, y in graphs]),
    )


def graphs() -> DataLoader:
    random = source()
    made = []
    for _ in range(256):
        count = int(torch.randint(4, 9, (), generator=random))
        nodes = torch.randn(count, 4, generator=random)
        edges = torch.randint(count, (2, 2 * count), generator=random)
        made.append((nodes, edges, nodes[edges[0], 0].sum() / count))
    return DataLoader(made, batch_size=16, shuffle=True, collate_fn=side_by_side)


TRAININGS = (
    Training(
        "graphs by hand",
        usual(lambda: (GraphNet(), graphs())),
        states=("conv[12]", "conv[12].*"),
        targets="1 value a graph",
        modes=True,
    ),
)
