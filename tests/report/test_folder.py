"""Reading a run's folder: whole, interrupted, broken, of an older version."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwright.errors import CheckpointError, DataError
from rankwright.records import Record
from rankwright.report.folder import METRICS, paired, rank_rows, read_run
from rankwright.types import Example, ScoredList
from tests.report.runs import make_run


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert run.finished
    assert run.name == "run"
    assert run.metric_names == ["ndcg@10", "mrr"]
    assert run.main_metric == "ndcg@10"
    assert run.training["model"] == "some/base"
    assert run.state["best_global_step"] == 20
    assert len(run.history) == 25
    assert run.before is not None
    assert run.after is not None
    assert len(run.before) == len(run.after) == 80


def test_an_interrupted_run_is_read_from_its_last_checkpoint(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", after=None, finished=False, steps=5)
    make_run(tmp_path / "run", after=None, finished=False, steps=15)
    run = read_run(folder)
    assert not run.finished
    assert run.state["global_step"] == 15
    assert run.metric_names == METRICS
    assert run.after is None


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        read_run(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"neither trainer_state.json nor rankwright.json"):
        read_run(tmp_path)
    folder = make_run(tmp_path / "run")
    for name, text in (("metrics.json", "{"), ("trainer_state.json", "[]")):
        kept = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(CheckpointError, match=name):
            read_run(folder)
        (folder / name).write_text(kept)
    (folder / "trainer_state.json").write_text('{"log_history": [1]}')
    with pytest.raises(CheckpointError, match="no list of logs"):
        read_run(folder)


def test_ranked_rows_take_the_place_of_the_runs(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    rows = [Example("q", ["a", "b"], [0.0, 1.0], query_id="x")]
    rank_rows(run, iter([ScoredList(rows[0], [1.0, 2.0])]), rows, ["rows.jsonl"])
    assert run.before is None
    assert run.after == [Record(0, "x", [0.0, 1.0], [1.0, 2.0], None, "q", ["a", "b"])]


def test_documents_of_the_worst_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1 is ranked wrongly, row 3 next to it; row 0 has nothing to find, row 2 is right."""
    monkeypatch.setattr("rankwright.report.folder.TEXT_ROWS", 2)
    run = read_run(make_run(tmp_path / "run"))
    labels = ([0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    rows = [Example(f"q{i}", ["a", "b", "c"], y) for i, y in enumerate(labels)]
    rank_rows(run, (ScoredList(row, [3.0, 2.0, 1.0]) for row in rows), rows, ["rows.jsonl"])
    assert run.after is not None
    assert [record.documents is not None for record in run.after] == [False, True, False, True]
    assert [record.query for record in run.after] == ["q0", "q1", "q2", "q3"]


def test_pairs_are_rows_that_stand_in_both() -> None:
    one = [Record(i, f"q{i}", [1.0, 0.0], [0.0, 0.0]) for i in range(4)]
    two = [Record(i, f"q{i}", [1.0, 0.0], [1.0, 0.0]) for i in (3, 1, 7)]
    two[1].labels[0] = 2.0
    assert paired(one, two, lambda record: record.query_id) == [(one[3], two[0])]
    with pytest.raises(DataError, match="no validation row in common"):
        paired(one, two[2:], lambda record: record.query_id)
