"""Models of the transformers library in a LightningModule, whole or with few trained weights."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    get_linear_schedule_with_warmup,
)

from outsiders.data import lengths, sentences
from outsiders.training import Training, usual


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=24, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    )


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=24,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        num_labels=3,
    )


class Wrapped(pl.LightningModule):
    """``self.model(**batch).loss``, as the tutorials have it."""

    def __init__(self, model: nn.Module, lr: float = 5e-4) -> None:
        super().__init__()
        self.model = model
        self.lr = lr

    def forward(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(**batch)
        loss = outputs.loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        no_decay = ["bias", "LayerNorm.weight"]
        decayed = [p for n, p in self.named_parameters() if not any(nd in n for nd in no_decay)]
        others = [p for n, p in self.named_parameters() if any(nd in n for nd in no_decay)]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
            lr=self.lr,
        )
        scheduler = get_linear_schedule_with_warmup(
            optimizer,
            num_warmup_steps=5,
            num_training_steps=self.trainer.estimated_stepping_batches,
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def rows(causal: bool = True, labelled: bool = False) -> DataLoader:
    tokens = sentences(length=12)
    ends = lengths(len(tokens), 12, 6)
    mask = (torch.arange(12) < ends[:, None]).long()
    tokens = tokens * mask
    entries = {"input_ids": tokens, "attention_mask": mask}
    if labelled:
        entries["labels"] = (tokens[:, 1] - tokens[:, 0]) % 23 - 1
    elif causal:
        entries["labels"] = tokens.masked_fill(mask == 0, -100)
    else:
        entries["labels"] = tokens.flip(1).masked_fill(mask.flip(1) == 0, -100)
    columns = [dict(zip(entries, row, strict=True)) for row in zip(*entries.values(), strict=True)]
    return DataLoader(columns, batch_size=16, shuffle=True)


class SentimentClassifier(pl.LightningModule):
    """An encoder, the first token, dropout, and a layer of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(bert_config(), add_pooling_layer=False)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(32, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        return self.out(self.drop(hidden.last_hidden_state[:, 0]))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch["input_ids"], batch["attention_mask"])
        loss = functional.cross_entropy(logits, batch["labels"])
        accuracy = (logits.argmax(-1) == batch["labels"]).float().mean()
        self.log("accuracy", accuracy)
        return {"loss": loss, "accuracy": accuracy}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-4)


class LoRALinear(nn.Module):
    def __init__(self, frozen: nn.Module, inputs: int, outputs: int, rank: int = 4) -> None:
        super().__init__()
        self.frozen = frozen
        self.lora_A = nn.Parameter(torch.randn(inputs, rank) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + x @ self.lora_A @ self.lora_B * 2.0


class LoRA(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = gpt2()
        self.model.requires_grad_(False)
        for block in self.model.transformer.h:
            block.attn.c_attn = LoRALinear(block.attn.c_attn, 32, 96)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-3)


class PromptTuning(pl.LightningModule):
    """Trained vectors before the embedded tokens of a frozen model."""

    def __init__(self, n_prompt: int = 4) -> None:
        super().__init__()
        self.lm = gpt2()
        for p in self.lm.parameters():
            p.requires_grad = False
        self.soft_prompt = nn.Parameter(torch.randn(n_prompt, 32) * 0.02)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        embeds = self.lm.transformer.wte(batch["input_ids"])
        count, (n, _) = len(embeds), self.soft_prompt.shape
        prompt = self.soft_prompt.unsqueeze(0).expand(count, -1, -1)
        ignored = torch.full((count, n), -100, device=self.device)
        seen = torch.ones(count, n, dtype=torch.long, device=self.device)
        loss = self.lm(
            inputs_embeds=torch.cat([prompt, embeds], dim=1),
            attention_mask=torch.cat([seen, batch["attention_mask"]], dim=1),
            labels=torch.cat([ignored, batch["labels"]], dim=1),
        ).loss
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.soft_prompt], lr=1e-2)


def t5() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=24,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


GPT2 = ("{0}.transformer", "{0}.transformer.h.*", "{0}.transformer.ln_f")
BERT = ("bert", "bert.encoder", "bert.encoder.layer.*")


def within(patterns: tuple[str, ...], path: str) -> tuple[str, ...]:
    return tuple(pattern.format(path) for pattern in patterns)


TRAININGS = (
    Training(
        "gpt-2 by batch",
        usual(lambda: (Wrapped(gpt2()), rows()), max_steps=40),
        states=within(GPT2, "model"),
        targets="the next token, 24 classes, shifted inside the model",
        modes=True,
    ),
    Training(
        "bert by batch",
        usual(
            lambda: (
                Wrapped(BertForSequenceClassification(bert_config())),
                rows(labelled=True),
            ),
            max_steps=40,
        ),
        states=("model.bert", "model.bert.encoder*", "model.bert.pooler*", "model.dropout"),
        targets="class labels, 3",
        modes=True,
    ),
    Training(
        "t5 by batch",
        usual(lambda: (Wrapped(t5()), rows(causal=False)), max_steps=40),
        states=("model.*coder", "model.*coder.block*", "model.*coder.final_layer_norm"),
        targets="target tokens, 24 classes, -100 does not count",
        modes=True,
    ),
    Training(
        "bert with a head",
        usual(lambda: (SentimentClassifier(), rows(labelled=True)), max_steps=40),
        states=(*BERT, "drop"),
        targets="class labels, 3",
        modes=True,
    ),
    Training(
        "lora",
        usual(lambda: (LoRA(), rows()), max_steps=40),
        states=within(GPT2, "model"),
        targets="the next token, 24 classes, shifted inside the model",
        modes=True,
    ),
    Training(
        "prompt tuning",
        usual(lambda: (PromptTuning(), rows()), max_steps=40),
        states=within(GPT2, "lm"),
        targets="the next token, 24 classes, shifted inside the model",
        modes=True,
    ),
)
