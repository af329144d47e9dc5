"""What a run leaves for its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwright import records
from rankwright.data.groups import sample_groups
from rankwright.errors import DataError
from rankwright.models import checkpoint
from rankwright.ranking import collator
from rankwright.records import Lengths, length_summary, read_records, write_records
from rankwright.types import Example
from tests import tiny


def rows(count: int, documents: int = 3) -> list[Example]:
    return tiny.examples(count, documents)


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    """float32 values, also those that no short decimal names; ids, labels and texts as well."""
    examples = rows(4)
    examples[1].first_stage_scores = [3.0, 2.0, 1.0]
    scores_P = np.random.default_rng(0).normal(size=12).astype(np.float32)
    count = write_records(tmp_path, "after", examples, scores_P)
    assert count == {"rows": 4, "kept": 4, "with_texts": 4}
    found = read_records(tmp_path, "after")
    assert found is not None
    assert np.array_equal(np.float32([s for r in found for s in r.scores]), scores_P)
    for example, record in zip(examples, found, strict=True):
        assert (record.query, record.documents) == (example.query, example.documents)
        assert (record.query_id, record.labels) == (example.query_id, example.labels)
        assert record.first_stage_scores == example.first_stage_scores
    assert read_records(tmp_path, "before") is None


def test_a_large_validation_set_keeps_some_rows_and_some_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 rows of 3 documents under a limit of 45 pairs: every second row; 4 texts, the worst."""
    monkeypatch.setattr(records, "MAX_PAIRS", 45)
    monkeypatch.setattr(records, "TEXT_ROWS", 4)
    examples = rows(30)
    scores_P = np.arange(90, dtype=np.float32)
    worst = list(range(29, -1, -1))
    assert write_records(tmp_path, "after", examples, scores_P, worst) == {
        "rows": 30,
        "kept": 15,
        "with_texts": 4,
    }
    found = read_records(tmp_path, "after")
    assert found is not None
    assert [r.row for r in found] == list(range(0, 30, 2))
    assert [r.row for r in found if r.documents is not None] == [22, 24, 26, 28]
    assert found[3].scores == [18.0, 19.0, 20.0]  # row 6
    write_records(tmp_path, "before", examples, scores_P)
    found = read_records(tmp_path, "before")
    assert found is not None
    assert [r.row for r in found if r.documents is not None] == [0, 8, 16, 24]


def test_long_texts_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "DOCUMENT_CHARACTERS", 5)
    monkeypatch.setattr(records, "TEXT_CHARACTERS", 12)
    examples = [Example("q", ["abcdefgh"], [1.0]) for _ in range(4)]
    write_records(tmp_path, "after", examples, np.zeros(4, np.float32))
    found = read_records(tmp_path, "after")
    assert found is not None
    # 6 characters each: the budget of 12 is spent after two
    assert [r.documents for r in found] == [["abcde"], ["abcde"], None, None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "after.jsonl:2 is no record"),
        ('{"row": 1}', "after.jsonl:2 is no record"),
        ('{"row": 1, "query_id": "a", "labels": [1, 0], "scores": [1]}', "different lengths"),
        ('{"row": 1, "query_id": "a", "labels": [], "scores": []}', "different lengths"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    write_records(tmp_path, "after", rows(1), np.zeros(3, np.float32))
    with open(tmp_path / "validation" / "after.jsonl", "a") as out:
        print(line, file=out)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path, "after")


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_lengths_are_those_of_the_pairs(tmp_path: Path, name: str) -> None:
    """With and without a shared prefix: prefix and document of each pair, counted one by one."""
    tiny.save_base(tmp_path, name)
    pack = collator(checkpoint.load(tmp_path))
    groups = [g for e in tiny.examples(3, 4) for g in sample_groups(e, seed=0, epoch=0)]
    encoded = [pack.encode(g) for g in groups]
    by_hand = [len(t.prefix) + len(d) for t in encoded for d in t.documents]
    lengths = Lengths(2048)
    batch = pack.pack(groups, encoded)
    lengths.add(batch)
    assert lengths.counts.tolist() == np.bincount(by_hand, minlength=2049).tolist()
    batch.filler = True
    lengths.add(batch)
    assert lengths.counts.sum() == len(by_hand)


def test_lengths_of_a_run_that_goes_on_with_a_lower_limit() -> None:
    """Those above 4 are counted at the limit, as `add` does: 1 + 2 + 3."""
    lengths = Lengths(4)
    lengths.take_up([0, 5, 0, 0, 1, 2, 3])
    lengths.take_up([0, 1])
    lengths.take_up([])
    assert lengths.counts.tolist() == [0, 6, 0, 0, 6]


def test_summary_of_lengths() -> None:
    """Lengths 2, 2, 3, 9 by hand: mean 4, half are at most 2, the greatest is the limit."""
    counts = np.bincount([2, 2, 3, 9], minlength=10)
    found = length_summary(counts)
    assert found is not None
    assert (found["mean"], found["median"], found["p95"], found["maximum"]) == (4.0, 2, 9, 9)
    assert found["at_limit"] == 1
    assert found["edges"] == list(range(11))
    assert found["counts"] == [0, 0, 2, 1, 0, 0, 0, 0, 0, 1]
    wide = length_summary(np.bincount([100, 1000], minlength=1025))
    assert wide is not None
    assert sum(wide["counts"]) == 2
    assert len(wide["edges"]) == len(wide["counts"]) + 1 <= records.LENGTH_BINS + 2
    assert length_summary(np.zeros(5, np.int64)) is None


def test_training_leaves_them(tmp_path: Path) -> None:
    """Before and after, the scores of the model in the folder, and the lengths of all pairs."""
    from rankwright.evaluation import evaluate_scores
    from rankwright.ranking import Reranker
    from tests.test_trainer import arguments, train_on

    examples = tiny.examples(16, 4)
    val = tiny.examples(6, 3, seed=1)
    run: Any = arguments(
        tmp_path, max_steps=6, per_device_train_batch_size=4, eval_steps=2, save_steps=2
    )
    result = train_on(run, examples, val)
    out = tmp_path / "out"
    before, after = read_records(out, "before"), read_records(out, "after")
    assert before is not None
    assert after is not None
    assert result.before is not None
    assert result.after is not None
    for found, measured in ((before, result.before), (after, result.after)):
        again = evaluate_scores([r.scored() for r in found], ["ndcg@10", "mrr@10", "map"])
        assert again.metrics == pytest.approx(measured.metrics)
    scored = Reranker.load(out, device="cpu").score_examples(val)
    for record, one in zip(after, scored, strict=True):
        assert record.scores == pytest.approx(one.scores, abs=1e-5)
    assert before[0].scores != after[0].scores
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["records"] == {"rows": 6, "kept": 6, "with_texts": 6}
    # 6 steps of 4 groups of 4 documents
    assert metrics["lengths"]["pairs"] == 6 * 4 * 4
    assert metrics["rows"] == {
        "train": {"rows": 16, "positives": 16, "negatives": 48},
        "validation": {"rows": 6, "positives": 6, "negatives": 12},
    }
