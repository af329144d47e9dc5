"""The worker of ``speed.py`` that runs ms-swift: ``sft_main``, and its engine for ranking.

``documented``: the settings of its ``examples/train/reranker`` scripts that have a meaning on one
device without DeepSpeed: random batches, padded to the longest, padding on the left for generative
models.

``best``: ``--group_by_length``, over the whole file (transformers groups within 50 batches, which
in a file as short as one round would be no grouping). On CPUs one group at a time, with the same
groups an optimiser step by accumulation, which pads less. Where ``--attention`` names a flash
attention, that with ``--padding_free``; it refuses ``--padding_free`` with any other attention, so
on CPUs it always pads. Its head for generative models computes the rows of yes and no alone, at
every token.

Both with ``--gradient_checkpointing false``, which ms-swift turns on; without worker processes that
tokenise beside the threads that all systems are given; and with ``--check_model false``, without
which it asks its hub for some 20 s whether a local folder is the latest version.
"""

# ruff: noqa: ARG005 - the signatures are those of the libraries
from __future__ import annotations

import functools
import os
from typing import Any

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

# rows as few as one round's are not worth a pool of processes
MANY_ROWS = 1000


def names(job: dict[str, Any]) -> dict[str, Any]:
    """What ms-swift cannot tell from the folder."""
    if job["kind"] == "generative":
        return {"model_type": "qwen3_reranker", "template": "qwen3_reranker"}
    return {"model_type": "modern_bert_gte_reranker", "template": "bert"}


def task(job: dict[str, Any]) -> str:
    """Its name of the kind."""
    return "generative_reranker" if job["kind"] == "generative" else "reranker"


def train(gate: Gate) -> None:
    """Train as ``swift sft`` does."""
    job = gate.job
    best = job["configuration"] == "best"
    os.environ["MAX_NEGATIVE_SAMPLES"] = str(max(0, job["documents"] - 1))
    # imported after the environment is set
    from swift.callbacks import callbacks_map  # type: ignore[import-not-found]

    callbacks_map["pause"] = lambda args, trainer: Pause(gate, count_padded)
    remember_loss(gate)
    values = {
        **training_arguments(job),
        **names(job),
        "model": job["model"],
        "dataset": job["messages"],
        "task_type": task(job),
        "loss_type": f"{job['loss']}_reranker",
        "tuner_type": "full",
        "torch_dtype": "float32",
        "max_length": job["max_length"],
        "per_device_train_batch_size": job["groups_per_step"],
        "split_dataset_ratio": 0,
        "padding_side": "left" if job["kind"] == "generative" else "right",
        "gradient_checkpointing": False,
        "dataset_num_proc": job["threads"] if job["groups"] >= MANY_ROWS else 1,
        "load_from_cache_file": True,
        "label_names": "labels",
        "dataloader_drop_last": True,
        "attn_impl": "sdpa",
        "callbacks": "pause",
        "add_version": False,
        "check_model": False,
        "use_hf": True,
    }
    if best:
        import transformers.trainer_pt_utils as utils

        whole = functools.partial(utils.get_length_grouped_indices, mega_batch_mult=10**9)
        utils.get_length_grouped_indices = whole
        values["group_by_length"] = True
        if job["device"] == "cpu":
            values["per_device_train_batch_size"] = 1
            values["gradient_accumulation_steps"] = job["groups_per_step"]
        if job["attention"]:
            flash = "flash" in job["attention"]
            values |= {"attn_impl": job["attention"], "padding_free": flash}
    from swift.pipelines import sft_main  # type: ignore[import-not-found]

    words: list[str] = []
    for name, value in values.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    sft_main(words)


def rank(gate: Gate) -> None:
    """Rank one query after the other with its engine, as its ``infer.py`` example does.

    At its best the documents are sorted by length first, which its engine leaves to the caller, in
    batches of the fastest of a few sizes.
    """
    job = gate.job
    best = job["configuration"] == "best"
    # imported after the environment is set
    import torch
    from swift.infer_engine import (  # type: ignore[import-not-found]
        InferRequest,
        TransformersEngine,
    )

    named = names(job)
    engine = TransformersEngine(
        job["model"],
        task_type=task(job),
        model_type=named["model_type"],
        template_type=named["template"],
        torch_dtype=getattr(torch, job["dtype"]),
        attn_impl=job["attention"] if best and job["attention"] else None,
        max_batch_size=32,
        use_hf=True,
    )
    engine.template.max_length = job["max_length"]

    def once(query: str, documents: list[str], size: int | None = None) -> Any:
        if size:
            engine.max_batch_size = size
        if best:
            documents = sorted(documents, key=len)
        requests = [
            InferRequest(
                messages=[
                    {"role": "user", "content": query},
                    {"role": "assistant", "content": document},
                ]
            )
            for document in documents
        ]
        return engine.infer(requests, use_tqdm=False)

    def mean(found: Any) -> float:
        scores = [response.choices[0].message.content for response in found]
        return sum(float(s[0] if isinstance(s, list) else s) for s in scores) / len(scores)

    if best:
        engine.max_batch_size = choose_batch(gate, once)
    count_padded(gate, engine.model)
    rank_rounds(gate, once, mean)


if __name__ == "__main__":
    serve(lambda gate: (train if gate.job["task"] == "train" else rank)(gate))
