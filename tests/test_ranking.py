"""Ranking: order kept, ties kept, batches of any size give the same scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from rankwright.errors import ConfigError, DataError
from rankwright.metrics import ranking_metrics
from rankwright.ranking import RankedDocument, Reranker
from tests import tiny


@pytest.fixture(scope="module", params=["modernbert", "qwen3", "deberta-v2"])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tiny.save_base(tmp_path_factory.mktemp("model"), request.param)
    return Reranker.load(folder, max_length=512)


def test_rank_sorts_and_keeps_the_places(reranker: Reranker) -> None:
    example = tiny.examples(1, documents=12)[0]
    scores = reranker.score([(example.query, d) for d in example.documents])
    ranked = reranker.rank(example.query, example.documents)
    assert [r.index for r in ranked] == sorted(range(12), key=lambda i: -scores[i])
    assert all(r.document == example.documents[r.index] for r in ranked)
    assert_close([r.score for r in ranked], sorted(scores, reverse=True), rtol=0, atol=1e-5)
    assert [r.index for r in reranker.rank(example.query, example.documents, 3)] == [
        r.index for r in ranked[:3]
    ]


def test_equal_documents_keep_their_order(reranker: Reranker) -> None:
    ranked = reranker.rank("the fox", ["a dog"] * 4)
    assert [r.index for r in ranked] == [0, 1, 2, 3]


@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_any_budget_gives_the_same_scores(reranker: Reranker, budget: int) -> None:
    """One document at a time, a few, or all at once: order restored, scores equal."""
    rows = tiny.examples(5, documents=7)
    expected = [s.scores for s in reranker.score_examples(rows)]
    small = Reranker(reranker.loaded, batch_tokens=budget)
    seen: list[int] = []
    found = [s.scores for s in small.score_examples(rows, seen.append)]
    assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)
    assert sum(seen) == 5


def test_windows_do_not_change_scores(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream in windows of 10 pairs equals one window."""
    rows = tiny.examples(6, documents=4)
    expected = [s.scores for s in reranker.score_examples(rows)]
    monkeypatch.setattr("rankwright.ranking.WINDOW", 10)
    found = [s.scores for s in reranker.iter_scores(iter(rows))]
    assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


def test_refusals(reranker: Reranker) -> None:
    with pytest.raises(DataError, match="the query is empty"):
        reranker.rank("  ", ["a"])
    with pytest.raises(DataError, match="documents is one text"):
        reranker.rank("q", "a text")
    with pytest.raises(DataError, match="document 1 is int"):
        reranker.rank("q", ["a", 3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="top_k 0"):
        reranker.rank("q", ["a"], 0)
    assert reranker.rank("q", []) == []
    assert reranker.score([]) == []


def test_a_broken_model_names_the_query(tmp_path: Path) -> None:
    broken = Reranker.load(tiny.save_base(tmp_path, "bert"))
    with torch.no_grad():
        broken.loaded.model.hf.classifier.bias.fill_(float("inf"))
    rows = tiny.examples(2)
    with pytest.raises(DataError, match="query 'q0' got a score that is not a finite number"):
        broken.score_examples(rows)


def test_truncation_is_counted(tmp_path: Path) -> None:
    reranker = Reranker.load(tiny.save_base(tmp_path, "bert"), max_length=24)
    reranker.rank("the fox", [" ".join(tiny.WORDS), "a dog"])
    assert reranker.truncated == {"documents": 1, "queries": 0}


def test_a_ranking_is_a_value() -> None:
    assert RankedDocument(0, 1.0, "a") == RankedDocument(0, 1.0, "a")


def test_a_constant_scorer_is_worth_chance() -> None:
    """One positive among D: E[MRR] = H_D / D. For D = 4: (1 + 1/2 + 1/3 + 1/4) / 4 = 25/48."""
    values = ranking_metrics([7.0] * 4, [0, 1, 0, 0], [0, 4], ["mrr"])
    assert values["mrr"] == pytest.approx(25 / 48)
