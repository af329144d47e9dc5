"""``rankwright quickstart``: the main job on real rows, on this machine, without any hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rankwright.arguments import resolve
from rankwright.errors import ConfigError
from rankwright.evaluation import EvaluationResult, bootstrap_interval, evaluate, metrics_table
from rankwright.progress import console, tracked
from rankwright.stdlib_rows import StdlibRows, packaged_minilm, stdlib_rows, write_rows
from rankwright.trainer import train_on

METRICS = ["ndcg@10", "mrr@10", "map"]
# the held-out lists that are ranked before and after; all of them would take as long as the
# training
HELD_OUT = 150
# random documents that join each training list: BM25's candidates alone teach too slowly to beat it
# in minutes
EASY_NEGATIVES = 6
# see docs/log.md for what else was tried; about five minutes on two cores
RECIPE: dict[str, Any] = {
    "loss_type": "listwise",
    "max_length": 96,
    "learning_rate": 1.5e-4,
    "per_device_train_batch_size": 8,
    "max_negative_samples": 5,
    "max_steps": 270,
    "warmup_steps": 0.05,
    "weight_decay": 0.01,
    "dropout": 0.0,
    "eval_strategy": "no",
    "save_strategy": "no",
}


def quickstart(
    *,
    model: str | None = None,
    output_dir: Path = Path("quickstart"),
    seed: int = 42,
    max_steps: int = -1,
    overwrite: bool = False,
) -> dict[str, EvaluationResult]:
    """Make rows from the standard library's documentation, train a reranker, measure and use it.

    Args:
        model: base model, default the packaged all-MiniLM-L6-v2.
        output_dir: folder for the rows and the model.
        seed: of the training; the rows and their split are always the same.
        max_steps: optimiser steps, -1 for the recipe's.
        overwrite: replace the run the folder holds.

    Returns:
        ``before`` and ``after``: evaluations on the held-out part.

    Raises:
        ConfigError: a missing extra, or a folder that holds another run.
    """
    base = model or str(packaged_minilm())
    name = Path(model).name if model else "all-MiniLM-L6-v2"
    if output_dir.exists() and any(output_dir.iterdir()) and not overwrite:
        raise ConfigError(
            f"--output_dir {output_dir} is not empty; choose another or add --overwrite"
        )
    console.print("1. rows from the documentation of Python's standard library")
    rows = stdlib_rows(easy_negatives=EASY_NEGATIVES)
    files = write_rows(rows, output_dir / "rows")
    # where BM25 missed the right document, it is the one least like the query in words: a list that
    # nobody would have to rank, and a wrong lesson
    added = set(rows.added)
    train_rows = [example for example in rows.train if example.query_id not in added]
    console.print(
        f"   {rows.documents} documents; {len(train_rows)} queries to train on, {len(rows.test)} "
        f"held out, of other modules; BM25's top 20 are their candidates ({output_dir / 'rows'})"
    )
    target = output_dir / "model"
    arguments = resolve(
        {
            **RECIPE,
            "model": base,
            # the recipe's length fits the packaged encoder; a prompt takes about 100 tokens by
            # itself
            **({"max_length": 256} if model else {}),
            "dataset": [str(files["train"])],
            "output_dir": str(target),
            "overwrite": overwrite,
            "metrics": METRICS,
            "seed": seed,
            **({"max_steps": max_steps} if max_steps > 0 else {}),
        },
        {name: value for name, value in os.environ.items() if name == "USE_HF"},
    )
    # the recipe was chosen on lists from the other end
    held_out = rows.test[-HELD_OUT:]
    console.print(f"2. training {name} listwise on {len(train_rows)} queries")
    results: dict[str, EvaluationResult] = {}

    def before(reranker: Any) -> None:
        with tracked("before training", len(held_out)) as advance:
            results["before"] = evaluate(reranker, held_out, METRICS, progress=advance)

    trained = train_on(arguments, train_rows, [], before_training=before)
    with tracked("after training", len(held_out)) as advance:
        results["after"] = evaluate(trained.reranker, held_out, METRICS, progress=advance)
    _show(rows, results, trained.seconds)
    _example(trained.reranker, held_out, results["after"])
    console.print(
        f"\n4. saved to {target}. Next, with your own rows of "
        '{"query": ..., "positive": [...], "negative": [...]}:\n'
        "   rankwright check rows.jsonl\n"
        f"   rankwright train --model {target} --dataset rows.jsonl --split_dataset_ratio 0.1 "
        "--output_dir output\n"
        "   rankwright evaluate --model output --dataset test.jsonl",
    )
    return results


def _show(rows: StdlibRows, results: dict[str, EvaluationResult], seconds: float) -> None:
    after, first_stage = results["after"], results["after"].first_stage_row
    assert first_stage is not None
    table = {
        "first stage (BM25)": first_stage,
        "before training": results["before"].row,
        "after training": after.row,
    }
    console.print(
        f"3. {after.queries} held-out queries, trained for {seconds:.0f} s. BM25 finds "
        f"the right document among its 20 for {rows.recall['test']:.0%} of the queries; these are "
        "ranked."
    )
    console.print(metrics_table(table))
    gains = after.gains("ndcg@10")
    assert gains is not None
    low, high = bootstrap_interval(gains, seed=0)
    console.print(
        f"   NDCG@10 against the first stage: {gains.mean():+.4f} (95 % interval {low:+.4f} to "
        f"{high:+.4f})"
    )


def _example(reranker: Any, held_out: list[Any], after: EvaluationResult) -> None:
    """Show the query whose ranking gained most."""
    gains = after.gains("ndcg@10")
    assert gains is not None
    example = held_out[int(gains.argmax())]
    console.print(f"\n   an example: {example.query}")
    for place, document in enumerate(reranker.rank(example.query, example.documents, 3), 1):
        mark = "right" if example.labels[document.index] > 0 else ""
        text = " ".join(document.document.split())[:80]
        console.print(
            f"   {place}. {document.score:+.2f}  was {document.index + 1:>2}  {text}  {mark}",
        )
