"""The worker of ``speed.py`` that runs sentence-transformers: its CrossEncoder and its trainer.

``documented``: as its training examples set it: random batches, padded to the longest; ListNetLoss
in parts of 16 pairs (its training_ms_marco_listnet.py); Qwen3 as a language model with a
``LogitScore`` module.

``best``: batches of similar length (its ``batch_sampler`` argument). Pointwise: pairs sorted by
length; on CPUs 8 at a time, with the same pairs an optimiser step by accumulation, which pads less.
Listwise: rows sorted by their longest document, and within a row the documents by length,
in parts of 4 pairs (the loss does not depend on their order, nor on the parts); on GPUs
in the fastest of a few sizes. Qwen3 as a
``Qwen3ForSequenceClassification`` whose one head row is w_yes - w_no: the same scores and gradients
of the layers, without the vocabulary. Where ``--attention`` names one, that attention.

Its path without padding is refused for models with a head (``Transformer._can_flatten_inputs``
wants the bare model) and needs flash attention, so neither kind can take it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from datasets import load_dataset
from gate import (
    Gate,
    Pause,
    choose_batch,
    count_padded,
    rank_rounds,
    remember_loss,
    serve,
    training_arguments,
)
from sentence_transformers import CrossEncoder
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss

MICRO_BATCH = 8
PARTS = {"documented": 16, "best": 4}


class SortedBatches(DefaultBatchSampler):  # type: ignore[misc]
    """Rows of similar length together, the batches in random order."""

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last)
        sizes = [
            max(map(len, document)) if isinstance(document, list) else len(document)
            for document in dataset["document"]
        ]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        self.batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.generator = torch.Generator().manual_seed(options.get("seed") or 0)

    def __iter__(self) -> Iterator[list[int]]:
        for place in torch.randperm(len(self.batches), generator=self.generator).tolist():
            yield self.batches[place]

    def __len__(self) -> int:
        return len(self.batches)


def load(job: dict[str, Any]) -> CrossEncoder:
    """Load the model, in float32 for training and in the case's precision for ranking."""
    dtype = torch.float32 if job["task"] == "train" else getattr(torch, job["dtype"])
    options: dict[str, Any] = {"dtype": dtype}
    if job["configuration"] == "best" and job["attention"]:
        options["attn_implementation"] = job["attention"]
    folder = job["model"]
    if job["configuration"] == "best" and job["classifier"]:
        folder = job["classifier"]
    return CrossEncoder(
        folder, max_length=job["max_length"], device=job["device"], model_kwargs=options
    )


def pairs(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Lay groups out as labelled pairs."""
    rows = [
        (query, document, label)
        for query, positive, negative in zip(
            batch["query"], batch["positive"], batch["negative"], strict=True
        )
        for documents, label in ((positive, 1.0), (negative, 0.0))
        for document in documents
    ]
    names = ("query", "document", "label")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def lists(row: dict[str, Any], *, by_length: bool) -> dict[str, Any]:
    """Lay a group out as ListNetLoss' row.

    Its target is softmax(labels); log(labels / sum) makes that labels / sum, as in the other
    systems.
    """
    negative = [(document, -math.inf) for document in row["negative"]]
    share = -math.log(len(row["positive"]))
    found = [(document, share) for document in row["positive"]] + negative
    if by_length:
        found.sort(key=lambda pair: len(pair[0]))
    return {
        "query": row["query"],
        "document": [document for document, _ in found],
        "label": [label for _, label in found],
    }


def choose_parts(gate: Gate, model: CrossEncoder, rows: Any, batch: int) -> int:
    """The size of ListNetLoss' parts with which two batches are fastest; no start-up is counted."""
    began = time.perf_counter()
    rows = sorted(rows, key=lambda row: max(map(len, row["document"])))
    times = {}
    model.train()
    for size in (4, 8, 16, 32):
        loss = ListNetLoss(model, mini_batch_size=size)
        for _ in range(2):  # the first one warms up
            gate.synchronise()
            start = time.perf_counter()
            for place in range(0, len(rows), batch):
                some = rows[place : place + batch]
                with torch.autocast(gate.job["device"], getattr(torch, gate.job["dtype"])):
                    value = loss(
                        [[row["query"] for row in some], [row["document"] for row in some]],
                        [torch.tensor(row["label"], device=model.device) for row in some],
                    )
                value.backward()
            gate.synchronise()
            times[size] = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    gate.job["excluded"] = time.perf_counter() - began
    best = min(times, key=times.__getitem__)
    gate.say("note", text=f"parts of {best} pairs")
    return best


def train(gate: Gate) -> None:
    """Train as a user would."""
    job = gate.job
    best = job["configuration"] == "best"
    model = load(job)
    rows = load_dataset("json", data_files=job["rows"], split="train")
    on_cpu = job["device"] == "cpu"
    at_once = job["groups_at_once"] or job["groups_per_step"]
    loss: torch.nn.Module
    chosen: dict[str, Any] = {"batch_sampler": SortedBatches} if best else {}
    if job["loss"] == "pointwise":
        rows = rows.map(pairs, batched=True, remove_columns=rows.column_names)
        loss, whole = BinaryCrossEntropyLoss(model), job["groups_per_step"] * job["documents"]
        small = best and on_cpu and whole % MICRO_BATCH == 0
        batch = MICRO_BATCH if small else at_once * job["documents"]
    else:
        options = {"by_length": best}
        rows = rows.map(lists, fn_kwargs=options, remove_columns=rows.column_names)
        whole, batch = job["groups_per_step"], at_once
        parts = PARTS[job["configuration"]]
        if best and not on_cpu:
            parts = choose_parts(gate, model, rows.select(range(min(len(rows), 2 * batch))), batch)
        loss = ListNetLoss(model, mini_batch_size=parts)
    if whole % batch:
        raise ValueError(f"{whole} rows a step are no whole number of batches of {batch}")
    remember_loss(gate)
    chosen |= {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": whole // batch,
    }
    arguments = CrossEncoderTrainingArguments(**(training_arguments(job) | chosen))
    CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=loss,
        callbacks=[Pause(gate, lambda gate, _: count_padded(gate, model[0].model))],
    ).train()


def rank(gate: Gate) -> None:
    """Rank one query after the other; at its best with the fastest of a few batch sizes."""
    model = load(gate.job)
    batch = 32

    def once(query: str, documents: list[str], size: int | None = None) -> Any:
        return model.rank(query, documents, batch_size=size or batch, show_progress_bar=False)

    if gate.job["configuration"] == "best":
        batch = choose_batch(gate, once)
    count_padded(gate, model[0].model)
    rank_rounds(gate, once, lambda found: sum(float(d["score"]) for d in found) / len(found))


if __name__ == "__main__":
    serve(lambda gate: (train if gate.job["task"] == "train" else rank)(gate))
