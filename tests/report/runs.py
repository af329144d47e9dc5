"""Run folders made up on the spot: what a training run leaves, with scores of our choosing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.evaluation import calibrate_lists
from rankwright.records import length_summary, read_records, write_records
from rankwright.types import Example
from tests.tiny import examples

Score = Callable[[np.random.Generator, Example], Sequence[float]]

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "\"'><svg onload=window.hacked=3>",
    "<!-- <script> ]]> {{ 7*7 }} {% raw %} \u2028\u2029 &lt;b&gt;",
    "javascript:window.hacked=4",
)


def noise(rng: np.random.Generator, example: Example) -> list[float]:
    """Scores that know nothing."""
    return rng.normal(0, 1, len(example.labels)).tolist()


def good(rng: np.random.Generator, example: Example) -> list[float]:
    """Scores that know a good deal."""
    return (rng.normal(0, 1, len(example.labels)) + 2 * np.array(example.labels) - 1).tolist()


def constant(rng: np.random.Generator, example: Example) -> list[float]:
    """A scorer that has collapsed."""
    return [0.25] * len(example.labels)


def high(rng: np.random.Generator, example: Example) -> list[float]:
    """Logits that are all so high that their probabilities are 1."""
    return (np.array(good(rng, example)) + 14).tolist()


def make_run(
    folder: Path,
    before: Score | None = noise,
    after: Score | None = good,
    *,
    rows: Sequence[Example] | None = None,
    count: int = 80,
    finished: bool = True,
    steps: int = 20,
    losses: Sequence[float] | None = None,
    seed: int = 0,
    **more: Any,
) -> Path:
    """Write a run's folder; ``more`` goes into ``metrics.json``."""
    rng = np.random.default_rng(seed)
    rows = examples(count, 6) if rows is None else rows
    folder.mkdir(parents=True, exist_ok=True)
    for name, score in (("before", before), ("after", after)):
        if score is not None:
            values = np.array([s for e in rows for s in score(rng, e)], np.float32)
            write_records(folder, name, rows, values)
    losses = np.linspace(1.6, 0.9, steps).tolist() if losses is None else list(losses)
    history: list[dict[str, Any]] = [{"step": 0, "eval_ndcg@10": 0.4, "eval_loss": 1.7}]
    for step, loss in enumerate(losses, 1):
        history.append(
            {"step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 0.5 + step / 10}
        )
        if step % 5 == 0:
            history.append({"step": step, "eval_ndcg@10": 0.4 + step / 100, "eval_loss": 1.5})
    place = folder if finished else folder / f"checkpoint-{steps}"
    place.mkdir(exist_ok=True)
    state = {"log_history": history, "global_step": steps, "best_global_step": steps}
    (place / "trainer_state.json").write_text(json.dumps(state))
    spec = {
        "kind": "classification",
        "max_length": 64,
        "training": {"model": "some/base", "loss_type": "listwise", "hub_token": "hf_abcdef"},
        "versions": {"rankwright": "0.1.0", "torch": "2.13.0"},
    }
    (place / "rankwright.json").write_text(json.dumps(spec))
    if finished:
        metrics = {
            "before": None if before is None else {"ndcg@10": 0.4, "mrr": 0.3},
            "after": None if after is None else {"ndcg@10": 0.6, "mrr": 0.5},
            "steps": steps,
            "seconds": 61.4,
            "train_loss": 1.2,
            "dropped": {},
            "truncated": {"documents": 3, "queries": 0},
            "lengths": length_summary(np.bincount([5, 9, 9, 20, 64], minlength=65)),
            "rows": {"train": {"rows": 100, "positives": 100, "negatives": 500}},
            "records": {"rows": len(rows), "kept": len(rows), "with_texts": len(rows)},
            **more,
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def calibrate(folder: Path, *goals: tuple[str, float]) -> Path:
    """Fit the run's model to its validation rows, as ``train --calibrate platt`` does."""
    lists = [record.scored() for record in read_records(folder, "after") or ()]
    path = folder / "rankwright.json"
    found = calibrate_lists(lists, "platt", goals).to_dict()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": found}))
    return folder


def hostile_rows(count: int = 12) -> list[Example]:
    """Rows whose every text tries to leave its place."""
    rows = []
    for i in range(count):
        text = HOSTILE[i % len(HOSTILE)]
        documents = [f"{text} document {d}" for d in range(4)]
        labels = [1.0, 0.0, 0.0, 0.0]
        rows.append(Example(f"{text} query", documents, labels, query_id=f"{text}{i}"))
    return rows
