"""Counts of a dataset, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwright.data.readers import load_examples
from rankwright.data.stats import DatasetStatistics, Spread, dataset_statistics
from rankwright.types import Example


def test_spread() -> None:
    assert Spread.of([3, 1, 2, 10]) == Spread(1, 2.5, 10, 16)
    assert Spread.of([]) == Spread(0, 0, 0, 0)


def test_counts() -> None:
    """q stands twice; "b" is repeated in row 1, both positive and negative in row 3, and a negative
    of row 2 is a positive of row 1."""
    rows = [
        Example("q", ["a", "b", "b"], [1.0, 0.0, 0.0], first_stage_scores=[1, 2, 3]),
        Example("q", ["a"], [0.0], instruction="find"),
        Example("rr", ["b", "b", "cccc"], [2.0, 0.0, 0.5], teacher_scores=[1, 2, 3]),
        Example("s", ["d"], [1.0]),
    ]
    assert dataset_statistics(rows) == DatasetStatistics(
        rows=4,
        documents=Spread(1, 2, 3, 8),
        positives=Spread(0, 1, 2, 4),
        negatives=Spread(0, 1, 2, 4),
        without_positive=1,
        without_negative=1,
        repeated_rows=0,
        repeated_queries=1,
        repeated_documents=2,
        contradictions=1,
        contradictions_across=1,
        graded=True,
        labels=((0.0, 4), (1.0, 2), (2.0, 1), (0.5, 1)),
        first_stage=1,
        teacher=1,
        instructions=(("find", 1),),
        query_characters=Spread(1, 1, 2, 5),
        document_characters=Spread(1, 1, 4, 11),
    )


def test_labels_that_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of them does not grow with the rows; those that came first are counted on."""
    monkeypatch.setattr("rankwright.data.stats.KEPT_LABELS", 3)
    found = dataset_statistics([Example("q", list("abcdef"), [0.1, 0.2, 0.3, 0.4, 0.2, 0.4])])
    assert found.labels == ((0.2, 2), (0.1, 1), (0.3, 1))
    assert found.graded


def test_no_rows() -> None:
    empty = dataset_statistics([])
    assert empty.rows == 0
    assert empty.documents == Spread(0, 0, 0, 0)
    assert not empty.graded


def test_real_rows(shared: Path) -> None:
    """500 rows of 4 negatives; 427 with one positive, 49 with two, 24 with three."""
    found = dataset_statistics(load_examples(shared / "data" / "medquad_small").examples)
    assert found.rows == 500
    assert found.negatives == Spread(4, 4, 4, 2000)
    assert found.positives == Spread(1, 1, 3, 427 + 2 * 49 + 3 * 24)
    assert found.labels == ((0.0, 2000), (1.0, 597))
    assert not found.graded
    assert found.repeated_queries == found.repeated_documents == found.contradictions == 0
