"""What the report computes and warns of: by hand, against scikit-learn and scipy where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwright.calibration import reliability, sigmoid
from rankwright.errors import CheckpointError
from rankwright.report import charts
from rankwright.report.charts import score_histograms, separation
from rankwright.report.findings import Advice, find, series
from rankwright.report.folder import Run, read_run
from rankwright.types import Example
from tests.report.runs import calibrate, constant, good, high, make_run, noise
from tests.tiny import examples


def run_of(tmp_path: Path, *scores: Any, **more: Any) -> Run:
    return read_run(make_run(tmp_path / "run", *scores, **more))


def titles(run: Run, level: str | None = None) -> list[str]:
    return [a.title for a in find(run).advice if level in (None, a.level)]


def test_reliability_is_that_of_calibrate(tmp_path: Path) -> None:
    """The same bins and figures as ``rankwright calibrate`` prints, soft labels as they are."""
    rows = examples(40, 6)
    for row in rows:
        row.labels[1] = 0.5
    folder = calibrate(make_run(tmp_path / "run", rows=rows))
    run = read_run(folder)
    assert run.calibration is not None
    chart, bars = charts.calibration(run, find(run))
    record = run.calibration.record
    for name, kind in (("after training", "before"), ("calibrated", "after")):
        ece, brier = (record[kind][figure] for figure in ("ece", "brier"))
        assert (
            f"{name}: expected calibration error {ece:.4f}, Brier score {brier:.4f}" in chart.text
        )
    assert record["after"]["ece"] < record["before"]["ece"]
    assert run.after is not None
    scores_P = np.array([score for one in run.after for score in one.scores])
    labels_P = np.array([label for one in run.after for label in one.labels])
    bins = reliability(run.calibration.probabilities(scores_P), labels_P)
    found = [row for row in chart.rows if row[0] == "calibrated"]
    assert [row[2] for row in found] == [part.count for part in bins]
    assert [row[4] for row in found] == [charts.number(part.frequency) for part in bins]
    assert bars.rows == [row[:3] for row in chart.rows]


def test_a_saved_calibration_is_judged_in_place_of_the_sigmoid(tmp_path: Path) -> None:
    """Logits far too high: a note says so until a calibration is saved, and again if it is off."""
    folder = make_run(tmp_path / "run", noise, high)
    plain, off = "The probabilities cannot be taken at their word", "The saved calibration does not"
    assert plain in titles(read_run(folder), "note")
    calibrate(folder)
    assert not [title for title in titles(read_run(folder)) if title.startswith((plain, off))]
    path = folder / "rankwright.json"
    spec = json.loads(path.read_text())
    spec["calibration"]["parameters"]["bias"] += 5
    path.write_text(json.dumps(spec))
    assert [title for title in titles(read_run(folder), "warning") if title.startswith(off)]
    spec["calibration"]["method"] = "guess"
    path.write_text(json.dumps(spec))
    with pytest.raises(CheckpointError, match="the calibration in rankwright"):
        read_run(folder)


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_separation_is_the_area_under_the_curve(tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores = find(run_of(tmp_path)).after
    assert scores is not None
    expected = metrics.roc_auc_score(scores.relevant_P, scores.scores_P)
    assert separation(scores) == pytest.approx(expected)
    tied = find(run_of(tmp_path, noise, constant)).after
    assert tied is not None
    assert separation(tied) == 0.5


def test_series_takes_the_last_value_of_a_step() -> None:
    """A run that was resumed logs a step again; NaN and text are no values."""
    history = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "loss": 1.5},
        {"step": 3, "loss": float("nan")},
        {"step": 4, "loss": "x"},
        {"step": 5, "eval_loss": 1.0},
    ]
    assert series(history, "loss") == ([1, 2], [3.0, 1.5])


def test_a_good_run_has_nothing_to_complain_of(tmp_path: Path) -> None:
    """A gain, losses that fall, probabilities that are not far off: no problem, no warning."""
    run = run_of(tmp_path, truncated={"documents": 0, "queries": 0})
    assert titles(run, "problem") == titles(run, "warning") == []


def test_collapse(tmp_path: Path) -> None:
    run = run_of(tmp_path, noise, constant)
    assert titles(run, "problem")[0] == "The scores are nearly all equal"
    found = find(run)
    assert found.after is not None
    assert found.after.result.tie_rate == 1
    assert "collapsed" in found.advice[0].todo


def test_nearly_equal_scores(tmp_path: Path) -> None:
    """Within 1e-4 of each other, but no two the same."""
    run = run_of(tmp_path, noise, lambda rng, e: (np.array(good(rng, e)) * 1e-5).tolist())
    assert "The scores hardly differ" in titles(run, "problem")


def test_some_ties(tmp_path: Path) -> None:
    run = run_of(tmp_path, noise, lambda rng, e: np.round(good(rng, e), 0).tolist())
    assert "Many documents share a score" in titles(run, "warning")


def test_saturation(tmp_path: Path) -> None:
    run = run_of(tmp_path, noise, high)
    assert "Nearly all probabilities are near 1" in titles(run, "problem")
    advice = next(a for a in find(run).advice if "near 1" in a.title)
    assert "only learns differences within a query" in advice.todo
    low = run_of(tmp_path, noise, lambda rng, e: (np.array(good(rng, e)) - 14).tolist())
    assert "Nearly all probabilities are near 0" in titles(low, "problem")


def test_a_confident_model_that_is_right_is_not_saturated(tmp_path: Path) -> None:
    run = run_of(tmp_path, noise, lambda rng, e: (20 * np.array(e.labels) - 10).tolist())
    assert not [t for t in titles(run) if "near" in t]
    assert "ndcg@10 is perfect" in titles(run, "warning")


def test_no_gain(tmp_path: Path) -> None:
    assert "Not better than before training" in titles(run_of(tmp_path, good, noise), "problem")
    unsure = run_of(
        tmp_path,
        noise,
        lambda rng, e: (np.array(noise(rng, e)) + 0.5 * np.array(e.labels)).tolist(),
    )
    found = find(unsure)
    assert found.change is not None
    d = found.change.differences["ndcg@10"]
    assert d.low is not None
    assert d.low < 0 < d.difference
    assert "The gain over before training is not certain" in titles(unsure, "warning")


def test_worse_than_the_first_stage(tmp_path: Path) -> None:
    rows = examples(60, 6)
    for row in rows:
        row.first_stage_scores = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]  # the positive stands first
    run = run_of(tmp_path, rows=rows)
    assert "Not better than the first stage" in titles(run, "problem")
    found = find(run).first_stage
    assert found is not None
    assert found.differences["ndcg@10"].a == 1


@pytest.mark.parametrize(
    ("losses", "title"),
    [
        ([1.0, 1.1, 1.0, 1.2, 1.3, 1.2, 1.5, 1.6, 1.7, 1.8], "The training loss went up"),
        ([1.6] * 12, "The training loss hardly moved"),
    ],
)
def test_losses(tmp_path: Path, losses: list[float], title: str) -> None:
    assert title in titles(run_of(tmp_path, losses=losses, steps=len(losses)))


def test_overfitting_and_more_to_come(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert "It was still improving" in titles(run, "note")
    for step, value in ((25, 0.55), (30, 0.52)):
        run.history.append({"step": step, "eval_ndcg@10": value})
    assert "The best step was not the last one" in titles(run, "note")
    run.state["best_global_step"] = None
    assert "The best step was not the last one" in titles(run, "warning")


def test_cuts_drops_and_few_queries(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        count=20,
        truncated={"documents": 3, "queries": 2},
        dropped={"no positive": 7},
    )
    found = titles(run)
    assert {
        "Many documents were cut",  # 3 of 5 pairs
        "Queries were cut",
        "Rows were left out of training",
        "Few validation queries",
    } <= set(found)


def test_no_validation_and_an_interrupted_run(tmp_path: Path) -> None:
    run = run_of(tmp_path, None, None, finished=False)
    found = find(run)
    assert found.before is found.after is found.change is None
    assert titles(run, "problem") == ["The run did not come to its end"]
    assert "There are no validation rows" in titles(run, "note")


def test_the_worst_comes_first(tmp_path: Path) -> None:
    levels = [a.level for a in find(run_of(tmp_path, noise, constant, count=20)).advice]
    order = ["problem", "warning", "note"]
    assert levels == sorted(levels, key=order.index)
    assert len(set(levels)) > 1


def test_every_advice_says_what_to_do(tmp_path: Path) -> None:
    """And names only flags and commands that exist."""
    import re
    from dataclasses import fields

    from transformers import TrainingArguments

    from rankwright import cli

    runs = [
        run_of(tmp_path, *scores, **more)
        for scores, more in (
            ((good, constant), {"count": 20, "truncated": {"documents": 9, "queries": 9}}),
            ((noise, high), {"losses": [1.6] * 12, "steps": 12, "dropped": {"x": 1}}),
            ((None, None), {"finished": False}),
            ((good, lambda rng, e: np.round(noise(rng, e), 0).tolist()), {}),
        )
    ]
    advice: list[Advice] = [a for run in runs for a in find(run).advice]
    assert len({a.title for a in advice}) > 10
    kinds = [TrainingArguments, *(k for name in cli.COMMANDS for k in cli.module(name).types())]
    known = {f.name for kind in kinds for f in fields(kind)}
    for a in advice:
        assert a.todo.strip()
        for flag in re.findall(r"--([a-z_0-9]+)", a.todo):
            assert flag in known, flag
        for command in re.findall(r"rankwright ([a-z]+)", a.todo):
            assert command in cli.COMMANDS, command


def test_other_run_on_shared_rows(tmp_path: Path) -> None:
    rows = examples(60, 6)
    one = read_run(make_run(tmp_path / "one", rows=rows, seed=1))
    two = read_run(make_run(tmp_path / "two", noise, noise, rows=rows[10:], seed=2))
    found = find(one, two).other
    assert found is not None
    assert found.a.queries == 50
    assert (found.name_a, found.name_b) == ("two", "one")
    assert found.differences["ndcg@10"].difference > 0.1
    same = find(one, one).other
    assert same is not None
    assert same.differences["ndcg@10"].difference == 0


def test_histograms_hold_every_document(tmp_path: Path) -> None:
    """The shares of each kind sum to 1, also where all scores are equal."""
    rows = examples(30, 5)
    rows.append(Example("none", ["a", "b"], [0.0, 0.0], query_id="none"))
    for scores in ((noise, good), (noise, constant)):
        for chart in score_histograms(find(run_of(tmp_path, *scores, rows=rows))):
            for trace in chart.figure["data"]:
                assert sum(trace["y"]) == pytest.approx(1)
