"""What a run's numbers say: distributions, calibration, and what deserves a look.

Shape legend: ``Q`` queries, ``P`` pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rankwright.calibration import figures, sigmoid, targets
from rankwright.comparison import Comparison, compare
from rankwright.evaluation import EvaluationResult, evaluate_scores
from rankwright.guards import collapse
from rankwright.metrics import BoolArray, FloatArray
from rankwright.records import Record
from rankwright.report.folder import Run, paired
from rankwright.types import ScoredList

# a probability beyond these is as good as certain
NEAR_ONE, NEAR_ZERO = 0.99, 0.01

Level = Literal["problem", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that deserves a look.

    Attributes:
        level: how bad it is.
        title: what was seen.
        text: the figures.
        todo: what to do.
    """

    level: Level
    title: str
    text: str
    todo: str


@dataclass(frozen=True, slots=True)
class Scores:
    """All scores of one side of the training.

    Attributes:
        records: the rows.
        scores_P: logits.
        relevant_P: whether the label is above 0.
        target_P: the label as a probability, see ``calibration``.
        result: the metrics.
    """

    records: list[Record]
    scores_P: FloatArray
    relevant_P: BoolArray
    target_P: FloatArray
    result: EvaluationResult


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything the report shows besides the logs.

    Attributes:
        before: scores before training, None where they are not known.
        after: scores of the final model.
        change: before against after.
        first_stage: the rows' own order against after.
        other: another run's final model (A) against this one's (B), on the rows they share.
        advice: what deserves a look, the worst first.
    """

    before: Scores | None
    after: Scores | None
    change: Comparison | None
    first_stage: Comparison | None
    other: Comparison | None
    advice: list[Advice]


def find(run: Run, other: Run | None = None) -> Findings:
    """Compute what a report shows.

    Args:
        run: the run.
        other: another one to compare it with.

    Raises:
        DataError: the validation lists cannot be measured, or share no row with the other's.
    """
    names = run.metric_names
    before = _scores(run.before, names)
    after = _scores(run.after, names)
    change = first_stage = rival = None
    if run.before and run.after:
        pairs = paired(run.before, run.after, lambda record: (record.row, record.query_id))
        change = _compare(pairs, names, "before training", "after training")
    if run.after and all(record.first_stage_scores is not None for record in run.after):
        scored = [record.scored() for record in run.after]
        retrieved = [
            ScoredList(s.example, list(s.example.first_stage_scores or ())) for s in scored
        ]
        first_stage = compare(
            retrieved, scored, names, name_a="first stage", name_b="after training"
        )
    if other is not None and other.after and run.after:
        pairs = paired(other.after, run.after, lambda record: (record.query_id, record.query))
        rival = _compare(pairs, names, other.name, run.name)
    found = Findings(before, after, change, first_stage, rival, [])
    order = {"problem": 0, "warning": 1, "note": 2}
    found.advice.extend(sorted(advise(run, found), key=lambda advice: order[advice.level]))
    return found


def _compare(
    pairs: Sequence[tuple[Record, Record]], names: list[str], name_a: str, name_b: str
) -> Comparison:
    lists_a = [one.scored() for one, _ in pairs]
    lists_b = [two.scored() for _, two in pairs]
    for one, two in zip(lists_a, lists_b, strict=True):
        one.example.query_id = two.example.query_id
    return compare(lists_a, lists_b, names, name_a=name_a, name_b=name_b)


def _scores(records: list[Record] | None, names: list[str]) -> Scores | None:
    if not records:
        return None
    result = evaluate_scores([record.scored() for record in records], names, first_stage=False)
    labels_P = np.concatenate([np.asarray(record.labels, np.float64) for record in records])
    return Scores(
        records,
        np.concatenate([np.asarray(record.scores, np.float64) for record in records]),
        labels_P > 0,
        targets(labels_P),
        result,
    )


def series(history: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one name of the log; what is logged again of a step wins."""
    found: dict[int, float] = {}
    for entry in history:
        value = entry.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            found[int(entry.get("step", 0))] = float(value)
    return list(found), list(found.values())


def advise(run: Run, found: Findings) -> list[Advice]:
    """What deserves a look, in no order."""
    advice: list[Advice] = []
    if not run.finished:
        advice.append(
            Advice(
                "problem",
                "The run did not come to its end",
                "There is no metrics.json; the curves end at its last checkpoint.",
                "Give the same command with --resume to go on.",
            )
        )
    if found.after is None:
        advice.append(
            Advice(
                "note",
                "There are no validation rows",
                "The folder holds no scores of the final model, so most of this report is empty.",
                "Train with --val_dataset or --split_dataset_ratio 0.1, or make the report with "
                "--dataset FILE.",
            )
        )
    else:
        advice += [*_collapse(found.after), *_saturation(run, found.after)]
        advice += _calibration(run, found.after)
        advice += _validation(found.after)
    advice += _gains(run, found)
    advice += _curves(run)
    advice += _cuts(run)
    return advice


def _collapse(after: Scores) -> list[Advice]:
    ties = after.result.tie_rate
    if found := collapse((record.scores for record in after.records), ties):
        return [Advice("problem", found.title, found.text, found.todo)]
    if ties > 0.01:
        return [
            Advice(
                "warning",
                "Many documents share a score",
                f"{ties:.1%} of the pairs of a relevant and another document are tied.",
                "Look for documents that occur twice (rankwright check), for documents cut to the "
                "same text (raise --max_length), and for half-precision weights "
                "(--torch_dtype float32).",
            )
        ]
    return []


def _saturation(run: Run, after: Scores) -> list[Advice]:
    probabilities_P = sigmoid(after.scores_P)
    high = float((probabilities_P > NEAR_ONE).mean())
    low = float((probabilities_P < NEAR_ZERO).mean())
    positives_P = probabilities_P[after.relevant_P]
    listwise = "pointwise" not in str(run.training.get("loss_type", "listwise"))
    reason = (
        "A listwise loss only learns differences within a query, so the level of its scores means "
        "nothing: read the order, or train with --loss_type pointwise. "
        if listwise
        else "Lower --learning_rate or the number of epochs, and give more negatives. "
    )
    todo = reason + "Calibration on validation rows makes probabilities of the same order."
    if high >= 0.9:
        title, share = "Nearly all probabilities are near 1", f"{high:.0%} are above {NEAR_ONE}"
    elif low >= 0.9 and positives_P.size and float(np.median(positives_P)) < NEAR_ZERO:
        title, share = "Nearly all probabilities are near 0", f"{low:.0%} are below {NEAR_ZERO}"
    else:
        return []
    return [
        Advice("problem", title, f"{share}, for relevant documents and others alike.", todo),
    ]


def _calibration(run: Run, after: Scores) -> list[Advice]:
    saved = run.calibration
    logits_P = after.scores_P if saved is None else saved.logits(after.scores_P)
    error = figures(logits_P, after.target_P)["ece"]
    if error <= 0.1:
        return []
    text = (
        f"The expected calibration error is {error:.3f}: on average, the share of relevant "
        "documents lies that far from the probability."
    )
    if saved is not None:
        return [
            Advice(
                "warning",
                "The saved calibration does not fit these rows",
                text,
                "Fit it again with rankwright calibrate, on rows that look like those it is for.",
            )
        ]
    return [
        Advice(
            "note",
            "The probabilities cannot be taken at their word",
            text,
            "The order is not affected. Fit rankwright calibrate on rows that were not trained on "
            "before you use a fixed threshold or show probabilities.",
        )
    ]


def _validation(after: Scores) -> list[Advice]:
    advice = []
    measured = after.result.queries - after.result.without_positive
    if measured < 50:
        advice.append(
            Advice(
                "warning",
                "Few validation queries",
                f"The means are taken over {measured} queries, so their intervals are wide.",
                "Validate on some hundred queries before you trust a small difference.",
            )
        )
    if after.result.without_positive:
        advice.append(
            Advice(
                "note",
                "Validation queries without a relevant document",
                f"{after.result.without_positive} of {after.result.queries} are left out of the "
                "means.",
                "Look at them with rankwright check.",
            )
        )
    return advice


def _gains(run: Run, found: Findings) -> list[Advice]:
    advice = []
    metric = run.main_metric
    if found.after is not None and found.after.result.metrics[metric] >= 0.999:
        advice.append(
            Advice(
                "warning",
                f"{metric} is perfect",
                "Every relevant document stands on top.",
                "Look for a leak: rankwright check TRAIN --val_dataset VALIDATION; or give harder "
                "negatives in the validation rows.",
            )
        )
    for comparison, what in ((found.change, "before training"), (found.first_stage, "first stage")):
        if comparison is None:
            continue
        d = comparison.differences[metric]
        interval = "" if d.low is None else f" (95 % interval {d.low:+.4f} to {d.high:+.4f})"
        text = f"{metric} is {d.b:.4f} after {d.a:.4f}, {d.difference:+.4f}{interval}."
        if d.difference <= 0:
            advice.append(
                Advice(
                    "problem",
                    f"Not better than {'the ' if what == 'first stage' else ''}{what}",
                    text,
                    "Train longer or with more rows, try --learning_rate 5e-5 and 1e-5, and look "
                    "at the worst queries below: wrong labels show there.",
                )
            )
        elif d.low is not None and d.low <= 0:
            advice.append(
                Advice(
                    "warning",
                    f"The gain over {'the ' if what == 'first stage' else ''}{what} is not certain",
                    text,
                    "The interval holds 0: validate on more queries, or train on more rows.",
                )
            )
    return advice


def _curves(run: Run) -> list[Advice]:
    advice = []
    steps, losses = series(run.history, "loss")
    if len(losses) >= 8:
        part = max(2, len(losses) // 5)
        first, last = float(np.mean(losses[:part])), float(np.mean(losses[-part:]))
        if last > first * 1.02:
            advice.append(
                Advice(
                    "problem",
                    "The training loss went up",
                    f"From {first:.4f} over the first steps to {last:.4f} over the last.",
                    "Lower --learning_rate, lengthen --warmup_steps, and check the labels.",
                )
            )
        elif last > first * 0.99:
            advice.append(
                Advice(
                    "warning",
                    "The training loss hardly moved",
                    f"{first:.4f} over the first steps, {last:.4f} over the last.",
                    "Raise --learning_rate, train longer, and check the labels.",
                )
            )
    steps, values = series(run.history, f"eval_{run.main_metric}")
    if len(values) >= 4:
        best = int(np.argmax(values))
        fallen = values[best] - values[-1]
        if best < len(values) - 1 and fallen > 0.01:
            kept = run.state.get("best_global_step") == steps[best]
            advice.append(
                Advice(
                    "note" if kept else "warning",
                    "The best step was not the last one",
                    f"{run.main_metric} was {values[best]:.4f} at step {steps[best]} and "
                    f"{values[-1]:.4f} at the end."
                    + (" The best checkpoint was kept." if kept else ""),
                    "Train for fewer epochs, with a lower --learning_rate or with more rows"
                    + ("." if kept else "; --load_best_model_at_end true keeps the best."),
                )
            )
        elif best == len(values) - 1 and values[-1] - values[-2] > 0.005:
            advice.append(
                Advice(
                    "note",
                    "It was still improving",
                    f"{run.main_metric} rose by {values[-1] - values[-2]:.4f} in the last part.",
                    "Train longer: raise --num_train_epochs.",
                )
            )
    return advice


def _cuts(run: Run) -> list[Advice]:
    advice = []
    lengths = run.metrics.get("lengths") or {}
    cut = run.metrics.get("truncated") or {}
    pairs = lengths.get("pairs") or 0
    if pairs and cut.get("documents", 0) > 0.05 * pairs:
        advice.append(
            Advice(
                "warning",
                "Many documents were cut",
                f"{cut['documents']} of {pairs} pairs in training were longer than "
                f"{run.spec.get('max_length', 'the limit')} tokens.",
                "Raise --max_length if the memory allows, and rank long documents with "
                "--passages max.",
            )
        )
    if cut.get("queries"):
        advice.append(
            Advice(
                "warning",
                "Queries were cut",
                f"{cut['queries']} queries in training did not fit.",
                "Raise --max_length: a cut query may have lost its question.",
            )
        )
    dropped = run.metrics.get("dropped") or {}
    if dropped:
        parts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        advice.append(
            Advice(
                "note",
                "Rows were left out of training",
                f"{parts}.",
                "rankwright check shows them; --loss_type pointwise needs no negatives.",
            )
        )
    return advice
