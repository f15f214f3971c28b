"""Sequences: language models, recurrent networks, and transformers with a head of their own."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from outsiders.data import lengths, loader, sentences, table, waves
from outsiders.training import Training, usual


class PositionalEncoding(nn.Module):
    def __init__(self, d_model: int, max_len: int = 64) -> None:
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, d_model)
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[: x.size(1)]


class TransformerLM(pl.LightningModule):
    """Shifted labels, flattened."""

    def __init__(self, vocab: int = 24, d_model: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, d_model)
        self.pos = PositionalEncoding(d_model)
        layer = nn.TransformerEncoderLayer(d_model, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(d_model, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        x = self.pos(self.embed(tokens) * math.sqrt(self.embed.embedding_dim))
        return self.head(self.encoder(x, mask=mask, is_causal=True))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (tokens,) = batch
        logits = self(tokens[:, :-1])
        loss = functional.cross_entropy(
            logits.reshape(-1, logits.size(-1)), tokens[:, 1:].reshape(-1)
        )
        self.log("train_loss", loss)
        self.log("perplexity", loss.exp())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


class Seq2Seq(pl.LightningModule):
    """Teacher forcing and a loop over time that adds up the loss."""

    def __init__(self, vocab: int = 24, hidden: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, 16)
        self.encoder = nn.LSTM(16, hidden, batch_first=True)
        self.decoder = nn.LSTMCell(16, hidden)
        self.fc_out = nn.Linear(hidden, vocab)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        src, trg = batch
        _, (h, c) = self.encoder(self.embedding(src))
        h, c = h[0], c[0]
        token = trg[:, 0]
        loss = torch.zeros((), device=self.device)
        for t in range(1, trg.size(1)):
            h, c = self.decoder(self.embedding(token), (h, c))
            output = self.fc_out(h)
            loss += self.criterion(output, trg[:, t])
            teacher_force = torch.rand(1).item() < 0.5
            token = trg[:, t] if teacher_force else output.argmax(1)
        loss = loss / (trg.size(1) - 1)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def reversed_sentences() -> DataLoader:
    tokens = sentences(length=10)
    start = torch.zeros(len(tokens), 1, dtype=torch.long)
    return loader(tokens, torch.cat([start, tokens.flip(1)], dim=1))


class PackedTagger(pl.LightningModule):
    """Packed sequences, and a loss over what is not padding."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, 2)

    def forward(self, x: Tensor, x_lens: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, x_lens.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = self.rnn(packed)
        output, _ = pad_packed_sequence(output, batch_first=True)
        return self.out(output)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, x_lens = batch
        y_hat = self(x, x_lens)
        mask = (torch.arange(y_hat.size(1))[None] < x_lens[:, None]).unsqueeze(-1)
        loss = ((y_hat - y) ** 2 * mask).sum() / mask.sum()
        self.log("train_loss", loss, batch_size=len(x))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def pad(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    x, y = zip(*rows, strict=True)
    return (
        pad_sequence(list(x), batch_first=True),
        pad_sequence(list(y), batch_first=True),
        torch.tensor([len(row) for row in x]),
    )


def ragged() -> DataLoader:
    series = waves(length=21)
    ends = lengths(len(series), 20).tolist()
    rows = [(row[:end], row[1 : end + 1]) for row, end in zip(series, ends, strict=True)]
    return DataLoader(rows, batch_size=32, shuffle=True, collate_fn=pad)


class StockLSTM(pl.LightningModule):
    """The last output of an LSTM predicts the next value."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 32, num_layers=2, dropout=0.2, batch_first=True)
        self.linear = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        lstm_out, _ = self.lstm(x)
        return self.linear(lstm_out[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.smooth_l1_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def prices() -> DataLoader:
    series = waves()
    return loader(series[:, :-1], series[:, -1])


class FTTransformer(pl.LightningModule):
    """Columns as tokens, a class token, and the head on the class token."""

    def __init__(self, columns: int = 12, dim: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(columns, dim) * 0.1)
        self.bias = nn.Parameter(torch.zeros(columns, dim))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.attention = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 32), nn.GELU(), nn.Linear(32, dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(-1) * self.weight + self.bias
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], dim=1)
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.mlp(self.norm2(tokens))
        return self.head(tokens[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        log_probs = functional.log_softmax(self(x), dim=-1)
        loss = functional.nll_loss(log_probs, y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


TRAININGS = (
    Training(
        "transformer language model",
        usual(lambda: (TransformerLM(), loader(sentences()))),
        states=("encoder", "encoder.layers.*"),
        targets="the next token, 24 classes",
        modes=True,
    ),
    Training(
        "seq2seq with teacher forcing",
        usual(lambda: (Seq2Seq(), reversed_sentences()), max_steps=40),
        states=("encoder", "decoder"),
        targets="the next token at each of 10 calls, 24 classes",
        modes=True,
    ),
    Training(
        "packed sequences, masked loss",
        usual(lambda: (PackedTagger(), ragged())),
        states=("rnn",),
        targets="the next value of each sequence, 2 values, padding does not count",
        modes=True,
    ),
    Training(
        "lstm, last output",
        usual(lambda: (StockLSTM(), prices())),
        states=("lstm",),
        targets="the next value, 2 values a sequence",
        modes=True,
    ),
    Training(
        "columns as tokens",
        usual(lambda: (FTTransformer(), loader(*table()))),
        states=("attention*", "norm[12]", "mlp", "mlp.*"),
        targets="class labels, 4",
        modes=True,
    ),
)
