"""A teacher's scores in rows, and that a student learns from them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from rankwright import cli
from rankwright.data.readers import READERS, load_examples
from rankwright.errors import ConfigError
from rankwright.ranking import Reranker
from rankwright.teacher import scored_row, write_scores
from rankwright.trainer import train_on
from rankwright.types import Example, ScoredList
from tests import tiny
from tests.data.test_readers import CASES, collection, write
from tests.test_trainer import arguments, write_rows


@pytest.mark.parametrize("name", READERS)
def test_every_layout_keeps_what_it_holds(name: str, tmp_path: Path) -> None:
    """Read, scored, written, read again: the same examples but for the scores and the place."""
    path = tmp_path / "f.jsonl"
    path = collection(tmp_path / "beir") if name == "beir" else write(path, *CASES[name][0])
    before = load_examples(path).examples
    scores = [[i - d / 8 for d in range(len(e.documents))] for i, e in enumerate(before)]
    lines = [scored_row(ScoredList(e, s)) for e, s in zip(before, scores, strict=True)]
    after = load_examples(write(tmp_path / "scored.jsonl", *lines)).examples
    assert [e.teacher_scores for e in after] == scores
    for one, two in zip(before, after, strict=True):
        for field in ("query", "documents", "labels", "first_stage_scores", "instruction"):
            assert getattr(one, field) == getattr(two, field)
        assert (one.query_id, one.document_ids) == (two.query_id, two.document_ids)


def test_lines_are_rows_with_the_scores(tmp_path: Path) -> None:
    """``tests/test_shares.py`` stops such runs and goes on with them."""
    reranker = Reranker.load(tiny.save_base(tmp_path / "base", "bert"), device="cpu")
    rows, path = tiny.examples(6), tmp_path / "deep" / "scored.jsonl"
    assert write_scores(reranker, rows, path) == 0
    expected = [scored_row(scored) for scored in reranker.score_examples(rows)]
    assert [json.loads(line) for line in path.read_text().splitlines()] == expected


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(tiny.save_base(tmp_path / "base", "bert"))
    rows = tiny.examples(4)
    rows[1].documents[2] = " "
    source = write_rows(tmp_path / "rows.jsonl", rows)
    scored = tmp_path / "scored.jsonl"
    words = ["rank", "--model", base, "--dataset", str(source), "--write_scores", str(scored)]
    assert cli.main(words) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "left out: 1 x empty document" in printed
    assert "4 rows with teacher_scores written" in printed
    found = load_examples(scored).examples
    expected = Reranker.load(base).score_examples(load_examples(source).examples)
    for one, two in zip(found, expected, strict=True):
        assert one.teacher_scores is not None
        assert_close(torch.tensor(one.teacher_scores), torch.tensor(two.scores))


def agreement(reranker: Reranker, rows: list[Example]) -> float:
    """The share of pairs of a row's documents that stand in the teacher's order."""
    same = [
        (s[i] - s[j]) * (t[i] - t[j]) > 0
        for row, s in zip(rows, (x.scores for x in reranker.score_examples(rows)), strict=True)
        for t in [row.teacher_scores or []]
        for i, j in combinations(range(len(t)), 2)
    ]
    return sum(same) / len(same)


@pytest.mark.parametrize("loss", ["kl", "margin_mse", "adr_mse"])
def test_a_student_learns_the_teachers_order(tmp_path: Path, loss: str) -> None:
    """On rows whose labels say nothing of it: the loss falls, and the order comes near.

    The teacher counts words that are in the query, and others against. All documents of a row but
    the first are labelled alike, so only its scores tell them apart.
    """
    rows = []
    for row in tiny.examples(32, documents=6, longest=10):
        words = set(row.query.split())
        teacher = [sum(w in words for w in d.split()) - 0.2 * len(d.split()) for d in row.documents]
        rows.append(
            Example(row.query, row.documents, row.labels, None, teacher, None, row.query_id)
        )
    before: list[float] = []
    given = {"loss_type": loss, "learning_rate": 3e-3, "num_train_epochs": 9, "seed": 1}
    given |= {"logging_steps": 6, "per_device_train_batch_size": 8}
    result = train_on(
        arguments(tmp_path, **given),
        rows,
        [],
        before_training=lambda reranker: before.append(agreement(reranker, rows)),
    )
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    after = agreement(result.reranker, rows)
    assert losses[-1] < 0.7 * losses[0]
    assert after > before[0] + 0.15


def test_rows_without_scores_are_refused(tmp_path: Path) -> None:
    rows = tiny.taught(tiny.examples(4))
    rows[2].teacher_scores = None
    with pytest.raises(
        ConfigError,
        match=r"made:2: query 'q2' has no teacher_scores, which --loss_type listwise\+0.5\*kl "
        r"learns from \(1 of 4 rows have none\); write them with rankwright rank --model TEACHER "
        "--dataset ROWS --write_scores FILE",
    ):
        train_on(arguments(tmp_path, loss_type="listwise+0.5*kl"), rows, [])
    # those to validate on may lack them: the loss is then that of the others, or none
    rows = tiny.taught(tiny.examples(4))
    train_on(arguments(tmp_path, loss_type="kl"), rows, tiny.examples(3))
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    evaluated = [entry for entry in state["log_history"] if "eval_ndcg@10" in entry]
    assert evaluated
    assert all("eval_loss" not in entry for entry in evaluated)
    with pytest.raises(ConfigError, match=r"validation rows .*teacher_scores"):
        train_on(
            arguments(
                tmp_path,
                loss_type="kl",
                metric_for_best_model="loss",
                output_dir=str(tmp_path / "two"),
            ),
            rows,
            tiny.examples(3),
        )
