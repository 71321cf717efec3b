"""A small GPT-2 made here: tokenizer and weights from the E2E training references as plain text, from its own seed, once."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from vera.config import Source
from vera.errors import DataError, ModelError
from vera.io.cache import make_folder
from vera.io.rows import read_csv
from vera.models.base import Architecture
from vera.models.gpt2 import Gpt2
from vera.models.tiny import END, Pretraining, bytes_of, causal_tokenizer, check_keys
from vera.records import screen
from vera.records.sources import PRETRAINED
from vera.seeds import forked, generator, threads

log = logging.getLogger(__name__)

CORPUS = "trainset.csv"
RECIPE = 2  # raised when the pretraining below changes
THREADS = 2  # inside the pretraining, on every machine: those that made the backbone of the tracked records


class LanguagePretraining(Pretraining):
    """vocabulary: size of the tokenizer; window: tokens of one training example; bf16: autocast."""

    vocabulary: Annotated[int, Field(ge=257)]
    window: Annotated[int, Field(ge=2)]
    bf16: bool


class Gpt2Mini(Gpt2):
    """data_dir: a folder with the challenge's trainset.csv; by default the task's own. `architecture` and `pretrain` decide the
    weights together with that file; a finished model is cached in a folder."""

    data_dir: Annotated[str | None, Source]
    architecture: Architecture
    pretrain: LanguagePretraining

    def source(self, cache_dir: Path) -> str:
        if self.size == "tiny" or self.path is not None:
            return super().source(cache_dir)
        if self.data_dir is None:
            raise ModelError(f"model {self.name} is pretrained on the E2E training references; give task.data_dir=/path/to/e2e")
        try:
            documents = read_documents(Path(self.data_dir) / CORPUS)
        except DataError as error:
            raise ModelError(
                f"model {self.name} is pretrained on the E2E training references (model.data_dir): {error}"
            ) from None
        check_keys("gpt2", self.architecture, "model.architecture")
        key = json.dumps([self.architecture, self.pretrain, RECIPE, documents], sort_keys=True)

        def make(folder: Path) -> None:
            log.info("pretraining a small GPT-2 on the E2E training references (once; some minutes)")
            with forked(self.pretrain["seed"], "pretrain"):
                loss = pretrain(documents, self.architecture, self.pretrain, folder)
            log.info("pretrained: %.3f nats a token on held-out references", loss)

        name = hashlib.sha256(key.encode()).hexdigest()[:8]
        return str(make_folder(Path(cache_dir) / self.name / name, "config.json", make))

    def _notes(self, source: str) -> dict[str, Any]:
        return {} if self.size == "tiny" or self.path else {PRETRAINED: Path(source).name}  # named after recipe and references

    def _public(self, source: str) -> str:
        return super()._public(source) if self.size == "tiny" or self.path else "pretrained on E2E training references"


def read_documents(path: Path) -> list[list[str]]:
    """The references of each meaning representation: texts that say the same. The representation itself is left out."""
    groups: dict[str, list[str]] = {}
    for _, (mr, ref) in read_csv(path, ("mr", "ref")):
        groups.setdefault(mr, []).append(" ".join(ref.split()))
    return list(groups.values())


def train_tokenizer(documents: list[list[str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer (byte-level BPE, one special token), of the documents' own words."""
    tokenizer = bytes_of([END])
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" " + text for texts in documents for text in texts), trainer)
    return causal_tokenizer(tokenizer)


@threads(THREADS)
def pretrain(documents: list[list[str]], architecture: dict[str, Any], settings: dict[str, Any], folder: Path) -> float:
    """Train a language model on nineteen of twenty documents; save it to `folder`; return nats a token on the others.

    A document's texts follow each other, each with a leading space and an end token, so that a model learns to say again what
    it has read; documents in an order of each epoch's own are cut into windows.
    """
    tokenizer = train_tokenizer(documents, settings["vocabulary"])
    end, window, seed = tokenizer.eos_token_id, settings["window"], settings["seed"]
    streams = []
    for texts in documents:
        ids = tokenizer([" " + text for text in texts])["input_ids"]
        streams.append(torch.tensor([token for text in ids for token in [*text, end]]))
    order = torch.randperm(len(streams), generator=generator(seed, "pretrain")).tolist()
    held_out, train = order[: len(order) // 20], order[len(order) // 20 :]

    def windows(chosen: list[int]) -> torch.Tensor:
        joined = torch.cat([streams[index] for index in chosen])
        count = len(joined) // window
        if count == 0:
            raise ModelError(f"the references are fewer than model.pretrain.window={window} tokens")
        return joined[: count * window].view(count, window)

    config = GPT2Config(
        vocab_size=len(tokenizer),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        **architecture,
    )
    model = GPT2LMHeadModel(config)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["bf16"]):
            logits = model(input_ids=batch).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())

    size, epochs = settings["batch_size"], settings["epochs"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    steps = epochs * -(-len(windows(train)) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["lr"], total_steps=steps, pct_start=0.1)
    done = itertools.count()
    for epoch in range(epochs):
        draws = generator(seed, "pretrain", 1 + epoch)
        found = windows([train[index] for index in torch.randperm(len(train), generator=draws).tolist()])
        for rows in torch.randperm(len(found), generator=draws).split(size):
            screen.doing("pretraining", next(done), steps)
            loss = loss_of(found[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        losses = [loss_of(batch) for batch in windows(held_out).split(size)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return torch.stack(losses).mean().item()
