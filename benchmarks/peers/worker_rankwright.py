"""The worker of ``speed.py`` that runs Rankwright, through its public functions, with defaults.

``compiled``: with ``--torch_compile true``.
"""

# ruff: noqa: ARG001 - the signatures are those of the libraries
from __future__ import annotations

import math
from typing import Any

import torch
from gate import Gate, Pause, rank_rounds, remember_loss, serve, training_arguments

import rankwright


def count_packed(gate: Gate, model: torch.nn.Module) -> None:
    """Count the tokens of the pairs, and those computed: shared prefixes are computed once."""

    def before(module: Any, args: Any) -> None:
        batch = args[0]
        # on the host, so that no accelerator is waited for; a prefix is no pair's own segment
        lengths, parents = batch.lengths, batch.parents
        prefixes = set(parents)
        real = sum(
            length + (lengths[parent] if parent >= 0 else 0)
            for number, (length, parent) in enumerate(zip(lengths, parents, strict=True))
            if number not in prefixes
        )
        gate.count(real, batch.num_tokens)

    model.register_forward_pre_hook(before)


def train(gate: Gate) -> None:
    """Train as a user would from Python."""
    job = gate.job
    remember_loss(gate)
    adapters: dict[str, Any] = {}
    if job["lora"]:
        adapters = {"tuner_type": "lora", "lora_rank": job["lora"], "torch_dtype": job["dtype"]}
    rankwright.train(
        callbacks=[Pause(gate, count_packed)],
        model=job["model"],
        dataset=job["rows"],
        loss_type=job["loss"],
        max_length=job["max_length"],
        max_negative_samples=max(0, job["documents"] - 1),
        per_device_train_batch_size=job["groups_per_step"],
        overwrite=True,
        torch_compile=job["configuration"] == "compiled",
        **adapters,
        **training_arguments(job),
    )


def rank(gate: Gate) -> None:
    """Rank one query after the other."""
    job = gate.job
    reranker = rankwright.Reranker.load(
        job["model"], device=job["device"], dtype=job["dtype"], max_length=job["max_length"]
    )
    count_packed(gate, reranker.loaded.model)

    def mean(found: Any) -> float:
        return sum(1 / (1 + math.exp(-document.score)) for document in found) / len(found)

    rank_rounds(gate, reranker.rank, mean)


if __name__ == "__main__":
    serve(lambda gate: (train if gate.job["task"] == "train" else rank)(gate))
