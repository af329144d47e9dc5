"""First stages against their formulas and brute force; nothing depends on how work is cut up."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from rankwright.errors import ConfigError
from rankwright.retrieval import (
    BM25,
    STOPWORDS,
    Analyzer,
    Dense,
    best_documents,
    cut_behind,
    fuse,
    grid,
    on_grid,
    s_stem,
)

DOCUMENTS = [
    "heron eats fish fish",
    "crane lifts loads",
    "heron nests in tall trees near water",
    "stone",
]


@pytest.fixture(autouse=True)
def _bm25s() -> None:
    pytest.importorskip("bm25s", reason="extra mine")


def bm25_by_hand(query: list[str], k1: float, b: float) -> list[float]:
    """The formula of the docstring, in float64 and plain Python."""
    terms = [text.split() for text in DOCUMENTS]
    mean = sum(map(len, terms)) / len(terms)
    scores = []
    for words in terms:
        score = 0.0
        for term in query:
            n = sum(term in other for other in terms)
            f = words.count(term)
            if n and f:
                idf = math.log(1 + (len(terms) - n + 0.5) / (n + 0.5))
                score += idf * f / (f + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (1.2, 0.0)])
def test_hand_bm25(k1: float, b: float) -> None:
    """Four documents of 4, 3, 7 and 1 words; a query with a repeated and an unknown word."""
    index = BM25(DOCUMENTS, str.split, k1=k1, b=b)
    found = index.scores("heron fish fish unicorn")
    by_hand = bm25_by_hand(["heron", "fish", "fish", "unicorn"], k1, b)
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert by_hand[0] > by_hand[2] > by_hand[1] == by_hand[3] == 0
    # written out once: "stone" is in one document of 4, once, of length 1 where the mean is 15 / 4
    one = math.log(1 + 3.5 / 1.5) / (1 + k1 * (1 - b + b / 3.75))
    np.testing.assert_allclose(index.scores("stone"), [0, 0, 0, one], rtol=1e-6)


def test_bm25_saved_and_loaded(tmp_path: Path) -> None:
    index = BM25(DOCUMENTS, str.split)
    index.save(tmp_path / "index")
    loaded = BM25.load(tmp_path / "index", str.split)
    assert (loaded.scores("heron fish") == index.scores("heron fish")).all()
    assert loaded.size == 4
    assert (loaded.scores("unicorn") == 0).all()


def test_bm25_without_any_term() -> None:
    index = BM25(["...", "!"], Analyzer())
    assert index.scores("a heron").tolist() == [0, 0]
    assert best_documents(index.scores("a heron"), 5).tolist() == []


def test_terms() -> None:
    """Lower case, no stop words, no single letters but digits, no plural s; CJK as bigrams."""
    terms = Analyzer()
    assert terms("The Herons of Type 2 eat a fish's bodies") == [
        "heron", "type", "2", "eat", "fish", "body",
    ]  # fmt: skip
    # full-width letters are their ordinary forms, and scripts are told apart without spaces
    assert terms("\uff21\uff22\uff23東京都x湖") == ["abc", "東京", "京都", "湖"]
    assert Analyzer("none", "none")("The Herons of") == ["the", "herons", "of"]
    assert Analyzer("de", "none")("Der Reiher und die Fische") == ["reiher", "fische"]
    assert [s_stem(word) for word in ("cats", "glass", "bus", "ponies", "is")] == [
        "cat", "glass", "bus", "pony", "is",
    ]  # fmt: skip


@pytest.mark.parametrize("language", STOPWORDS)
def test_every_list_of_stop_words_is_there(language: str) -> None:
    assert Analyzer(language).stopwords


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--bm25_stopwords 'xx' is not known; choose from none, "):
        Analyzer("xx")
    with pytest.raises(ConfigError, match="--bm25_stemmer 'porter' is not known; give s or none"):
        Analyzer("en", "porter")
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match=r"--method bm25 needs .* 'rankwright\[mine\]'"):
        BM25(DOCUMENTS, str.split)


def test_best_documents_break_ties_by_the_order_of_the_corpus() -> None:
    scores = np.array([0, 2, 1, 2, 0, 1, 1, 3], np.float32)
    assert best_documents(scores).tolist() == [7, 1, 3, 2, 5, 6]
    for k in range(1, 10):
        assert best_documents(scores, k).tolist() == [7, 1, 3, 2, 5, 6][:k]


@pytest.mark.parametrize("longest", [1.0, 3.7])
@pytest.mark.parametrize("block", [1, 7, 40, 200])
def test_dense_equals_brute_force_in_any_blocks(block: int, longest: float) -> None:
    """Ranks, ties and scores are those of the whole product, to the last bit."""
    random = np.random.default_rng(0)
    documents = random.normal(size=(100, 16)).astype(np.float32)
    documents[50:60] = documents[10:20]  # ties
    documents *= longest / np.linalg.norm(documents, axis=1).max()
    queries = random.normal(size=(9, 16)).astype(np.float32)
    index = Dense(
        lambda: (documents[start : start + block] for start in range(0, 100, block)), longest
    )
    queries_QH = on_grid(queries, grid(float(np.linalg.norm(queries, axis=1).max())))
    depths = np.array([1, 2, 3, 5, 8, 13, 40, 90, 500])
    own = [np.array([row, 99, 50]) for row in range(9)]
    exact_QN = queries_QH @ on_grid(documents, index.step).T
    for row, (found, scores, own_scores) in enumerate(index.search(queries_QH, depths, own, 95)):
        order = np.argsort(-exact_QN[row, :95], kind="stable")[: depths[row]]
        assert found.tolist() == order.tolist()
        assert (scores == exact_QN[row, order]).all()
        assert (own_scores == exact_QN[row, own[row]]).all()
        np.testing.assert_allclose(scores, (documents @ queries[row])[order], atol=2e-5)


def test_scores_on_the_grid_are_exact() -> None:
    """Sums in any order give the same number: they are whole multiples of the product of steps."""
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, 4096)).astype(np.float32)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    products = on_grid(a, grid(1.0)) * on_grid(b, grid(1.0))
    sums = {float(products[random.permutation(4096)].cumsum()[-1]) for _ in range(50)}
    assert sums == {math.fsum(products)}
    # which float32 does not give
    plain = (a * b).astype(np.float32)
    assert len({float(plain[random.permutation(4096)].cumsum()[-1]) for _ in range(50)}) > 1


def test_cut_behind() -> None:
    """Known documents do not count: 4 and 2 are, so two others end at the fourth place."""
    documents = np.array([4, 0, 2, 1, 3])
    assert [cut_behind(documents, {4, 2}, depth) for depth in (1, 2, 3, 4)] == [2, 4, 5, 5]


def test_hand_fusion() -> None:
    """k = 60. Document 1: ranks 1 and 2; 0: ranks 2 and 1; 2: rank 3 in one list.

    1 and 0 tie at 1/61 + 1/62 and stand in the order of the corpus. Of the own documents, 2 has its
    rank, 9 is no document of the corpus: its scores would put it first and behind the last.
    """
    first = (np.array([1, 0, 2]), np.array([3.0, 2.0, 1.0]), np.array([1.0, 5.0]))
    second = (np.array([0, 1]), np.array([0.9, 0.8]), np.array([0.1, 0.2]))
    documents, scores, own = fuse([first, second], np.array([2, 9]))
    assert documents.tolist() == [0, 1, 2]
    np.testing.assert_allclose(scores, [1 / 61 + 1 / 62, 1 / 61 + 1 / 62, 1 / 63], rtol=1e-15)
    np.testing.assert_allclose(own, [1 / 63, 1 / 61], rtol=1e-15)
