"""Graph networks on the batches of torch_geometric, as its Lightning examples have them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import FakeDataset, FakeHeteroDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GAE, GIN, MLP, GATConv, GCNConv, SAGEConv, global_add_pool, to_hetero
from torchmetrics import Accuracy

from outsiders.training import Training, usual

REQUIREMENTS = ("torch==2.13.0", "torch-geometric==2.8.1")
LIBRARY = "torch-geometric"


class GraphClassifier(pl.LightningModule):
    """examples/pytorch_lightning/gin.py."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.gnn = GIN(in_channels, 32, 3, dropout=0.5, jk="cat")
        self.classifier = MLP([32, 32, out_channels], norm="batch_norm", dropout=0.5)
        self.train_acc = Accuracy(task="multiclass", num_classes=out_channels)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.gnn(x, edge_index)
        return self.classifier(global_add_pool(x, batch))

    def training_step(self, data: Batch, batch_idx: int) -> Tensor:
        y_hat = self(data.x, data.edge_index, data.batch)
        loss = functional.cross_entropy(y_hat, data.y)
        self.train_acc(y_hat.softmax(dim=-1), data.y)
        self.log("train_acc", self.train_acc, prog_bar=True, batch_size=len(data.y))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def graphs() -> DataLoader:
    data = FakeDataset(num_graphs=128, avg_num_nodes=12, num_channels=16, num_classes=4)
    return DataLoader(data, batch_size=32, shuffle=True)


class NodeClassifier(pl.LightningModule):
    """Two convolutions on the whole graph; a mask says which nodes are for training."""

    def __init__(self, conv: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(16, 32), conv(32, 4)

    def forward(self, data: Data) -> Tensor:
        x, edge_index = data.x, data.edge_index
        x = functional.relu(self.conv1(x, edge_index))
        x = functional.dropout(x, training=self.training)
        return functional.log_softmax(self.conv2(x, edge_index), dim=1)

    def training_step(self, data: Data, batch_idx: int) -> Tensor:
        out = self(data)
        loss = functional.nll_loss(out[data.train_mask], data.y[data.train_mask])
        self.log("train_loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=5e-4)


def citations() -> DataLoader:
    data = FakeDataset(avg_num_nodes=200, avg_degree=4, num_channels=16, num_classes=4)[0]
    data.train_mask = torch.rand(data.num_nodes) < 0.5
    return DataLoader([data], batch_size=1)


class Attention(nn.Module):
    """Two heads side by side, as the examples on attention have them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.gat = GATConv(inputs, outputs // 2, heads=2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.gat(x, edge_index)


class GraphEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = GCNConv(16, 32), GCNConv(32, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class LinkPredictor(pl.LightningModule):
    """A graph autoencoder: edges that are there against edges drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.model = GAE(GraphEncoder())

    def training_step(self, data: Data, batch_idx: int) -> Tensor:
        z = self.model.encode(data.x, data.edge_index)
        loss = self.model.recon_loss(z, data.edge_index)
        self.log("loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Sage(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = SAGEConv((-1, -1), 16), SAGEConv((-1, -1), outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class RelationalClassifier(pl.LightningModule):
    """Nodes of several kinds, and parameters that the first call makes."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.model = to_hetero(Sage(4), data.metadata(), aggr="sum")
        with torch.no_grad():
            self.model(data.x_dict, data.edge_index_dict)

    def forward(self, x_dict: dict, edge_index_dict: dict) -> dict[str, Tensor]:
        return self.model(x_dict, edge_index_dict)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        y_hat = self(batch.x_dict, batch.edge_index_dict)["v0"]
        loss = functional.cross_entropy(y_hat, batch["v0"].y)
        self.log("train_loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def relational() -> tuple[RelationalClassifier, DataLoader]:
    data = FakeHeteroDataset(
        num_node_types=2,
        num_edge_types=3,
        avg_num_nodes=60,
        avg_degree=4,
        avg_num_channels=12,
        num_classes=4,
    )[0]
    return RelationalClassifier(data), DataLoader([data], batch_size=1)


TRAININGS = (
    Training(
        "gin, graphs",
        usual(lambda: (GraphClassifier(16, 4), graphs())),
        states=("gnn", "gnn.*", "classifier.lins.0", "classifier.norms.0*", "classifier.act"),
        targets="class labels of graphs, 4",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "gcn, nodes",
        usual(lambda: (NodeClassifier(GCNConv), citations())),
        states=("conv1*", "conv2.lin"),
        targets="class labels of the nodes under a mask, 4",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "gat, nodes",
        usual(lambda: (NodeClassifier(Attention), citations())),
        states=("conv1*", "conv2.gat.lin*"),
        targets="class labels of the nodes under a mask, 4",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "graph autoencoder",
        usual(lambda: (LinkPredictor(), citations())),
        states=("model.encoder*",),
        targets="none: edges against drawn ones",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "nodes of several kinds",
        usual(relational),
        states=("model.conv1*", "model.conv2.*.aggr_module"),
        targets="class labels of nodes of one kind, 4",
        modes=True,
        library=LIBRARY,
    ),
)
