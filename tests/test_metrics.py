"""Metrics against hand derivations, trec_eval, enumerated orders, and the laws they obey."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright import metrics
from rankwright.errors import ConfigError, DataError
from rankwright.metrics import (
    METRICS,
    Metric,
    has_positive,
    mean_metrics,
    offsets_from_flat_labels,
    parse_metric,
    parse_metrics,
    per_query_metrics,
    rank_order,
    ranking_metrics,
    tie_rate,
)

NAMES = [name + cut for name in METRICS for cut in ("", "@1", "@2", "@3", "@5", "@10")]


def one(name: str, scores: list[float], labels: list[float]) -> float:
    """The metric of a single query."""
    return float(per_query_metrics(scores, labels, [0, len(scores)], [name])[name][0])


def log2_discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)


# --- hand derivations: one test per entry, named test_hand_<entry> ---------------------------


def test_hand_mrr() -> None:
    """1 / rank of the first relevant document.

    Ranked labels 0 0 1 1: 1/3, also @3; @2 finds none: 0.
    Four tied, one relevant: (1 + 1/2 + 1/3 + 1/4) / 4 = 25/48; @2: (1 + 1/2) / 4 = 3/8.
    Four tied, two relevant: the first stands at place 1, 2, 3 in 3, 2, 1 of the 6 choices of two
    places: (3 + 2/2 + 1/3) / 6 = 13/18.
    One non-relevant above three tied, one relevant: (1/2 + 1/3 + 1/4) / 3 = 13/36; @3: 5/18.
    """
    assert one("mrr", [4, 3, 2, 1], [0, 0, 1, 1]) == pytest.approx(1 / 3, abs=1e-15)
    assert one("mrr@3", [4, 3, 2, 1], [0, 0, 1, 1]) == pytest.approx(1 / 3, abs=1e-15)
    assert one("mrr@2", [4, 3, 2, 1], [0, 0, 1, 1]) == 0
    assert one("mrr", [1, 1, 1, 1], [1, 0, 0, 0]) == pytest.approx(25 / 48, abs=1e-15)
    assert one("mrr@2", [1, 1, 1, 1], [0, 0, 0, 1]) == pytest.approx(3 / 8, abs=1e-15)
    assert one("mrr", [1, 1, 1, 1], [1, 1, 0, 0]) == pytest.approx(13 / 18, abs=1e-15)
    assert one("mrr", [2, 1, 1, 1], [0, 0, 1, 0]) == pytest.approx(13 / 36, abs=1e-15)
    assert one("mrr@3", [2, 1, 1, 1], [0, 0, 1, 0]) == pytest.approx(5 / 18, abs=1e-15)


def test_hand_ndcg() -> None:
    """Gain is the label, discount 1 / log2(rank + 1): 1, 0.6309..., 1/2.

    Ranked labels 0 1 3: (1 d2 + 3 d3) / (3 d1 + 1 d2); @1: 0 / 3 = 0; @2: d2 / (3 + d2).
    Three tied, labels 3 1 0: each place gains 4/3: (4/3)(d1 + d2 + d3) / (3 d1 + d2).
    The same @1: (4/3) / 3 = 4/9. A label of -2 gains nothing: ranked -2 1 is d2 / d1.
    """
    d1, d2, d3 = map(log2_discount, (1, 2, 3))
    assert one("ndcg", [3, 2, 1], [0, 1, 3]) == pytest.approx((d2 + 3 * d3) / (3 + d2), abs=1e-15)
    assert one("ndcg@1", [3, 2, 1], [0, 1, 3]) == 0
    assert one("ndcg@2", [3, 2, 1], [0, 1, 3]) == pytest.approx(d2 / (3 + d2), abs=1e-15)
    tied = 4 / 3 * (d1 + d2 + d3) / (3 + d2)
    assert one("ndcg", [0, 0, 0], [3, 1, 0]) == pytest.approx(tied, abs=1e-15)
    assert one("ndcg@1", [0, 0, 0], [0, 1, 3]) == pytest.approx(4 / 9, abs=1e-15)
    assert one("ndcg", [2, 1], [-2, 1]) == pytest.approx(d2, abs=1e-15)


def test_hand_map() -> None:
    """Precision at each relevant rank, summed, over all relevant documents.

    Ranked labels 1 0 2 0 1 (graded labels are only relevant or not): (1/1 + 2/3 + 3/5) / 3 = 34/45;
    @3: (1 + 2/3) / 3 = 5/9, the divisor stays 3.
    Three tied, two relevant: orders 110, 101, 011 give 1, 5/6, 7/12; their mean is 29/36.
    The same @1: the first place is relevant in 2 of 3: (2/3) 1 / 2 = 1/3.
    """
    assert one("map", [5, 4, 3, 2, 1], [1, 0, 2, 0, 1]) == pytest.approx(34 / 45, abs=1e-15)
    assert one("map@3", [5, 4, 3, 2, 1], [1, 0, 2, 0, 1]) == pytest.approx(5 / 9, abs=1e-15)
    assert one("map", [7, 7, 7], [1, 0, 1]) == pytest.approx(29 / 36, abs=1e-15)
    assert one("map@1", [7, 7, 7], [1, 0, 1]) == pytest.approx(1 / 3, abs=1e-15)


def test_hand_precision() -> None:
    """Relevant share of the first k; the divisor is k, or the list's length without one.

    Ranked labels 1 0 1: 2/3; @2: 1/2; @10: 2/10, though there are only 3 documents.
    One relevant above four tied, two of them relevant: @3: (1 + 2 (2/4)) / 3 = 2/3.
    """
    assert one("precision", [3, 2, 1], [1, 0, 1]) == pytest.approx(2 / 3, abs=1e-15)
    assert one("precision@2", [3, 2, 1], [1, 0, 1]) == 0.5
    assert one("precision@10", [3, 2, 1], [1, 0, 1]) == pytest.approx(0.2, abs=1e-15)
    assert one("precision@3", [2, 1, 1, 1, 1], [1, 1, 0, 1, 0]) == pytest.approx(2 / 3, abs=1e-15)


def test_hand_recall() -> None:
    """Relevant documents found in the first k, over all relevant ones.

    Ranked labels 1 0 1 1: @1: 1/3; @3: 2/3; without k: 1.
    One relevant above four tied, two of them relevant: @3: (1 + 2 (2/4)) / 3 = 2/3.
    """
    assert one("recall@1", [4, 3, 2, 1], [1, 0, 1, 1]) == pytest.approx(1 / 3, abs=1e-15)
    assert one("recall@3", [4, 3, 2, 1], [1, 0, 1, 1]) == pytest.approx(2 / 3, abs=1e-15)
    assert one("recall", [4, 3, 2, 1], [1, 0, 1, 1]) == 1
    assert one("recall@3", [2, 1, 1, 1, 1], [1, 1, 0, 1, 0]) == pytest.approx(2 / 3, abs=1e-15)


def test_hand_hit() -> None:
    """Whether the first k hold a relevant document.

    Ranked labels 0 1 0: @1: 0; @2: 1; without k: 1.
    Five tied, two relevant, @2: 1 - C(3,2)/C(5,2) = 1 - 3/10 = 7/10.
    One non-relevant above four tied, one relevant, @3: two of four places: 1/2.
    """
    assert one("hit@1", [3, 2, 1], [0, 1, 0]) == 0
    assert one("hit@2", [3, 2, 1], [0, 1, 0]) == 1
    assert one("hit", [3, 2, 1], [0, 1, 0]) == 1
    assert one("hit@2", [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]) == pytest.approx(0.7, abs=1e-15)
    assert one("hit@3", [2, 1, 1, 1, 1], [0, 1, 0, 0, 0]) == pytest.approx(0.5, abs=1e-15)


def test_every_metric_has_its_hand_derivation() -> None:
    for name, entry in METRICS.items():
        test = globals().get(f"test_hand_{name}")
        assert test is not None, f"write test_hand_{name}, its derivation in the docstring"
        assert len(test.__doc__.splitlines()) > 2
        assert entry.description
        assert entry.function.__doc__


# --- independent references ------------------------------------------------------------------

TREC_NAMES = {
    "mrr": "recip_rank",
    "ndcg": "ndcg",
    "map": "map",
    **{f"ndcg@{k}": f"ndcg_cut_{k}" for k in (1, 3, 10)},
    **{f"map@{k}": f"map_cut_{k}" for k in (1, 3, 10)},
    **{f"precision@{k}": f"P_{k}" for k in (1, 3, 10)},
    **{f"recall@{k}": f"recall_{k}" for k in (1, 3, 10)},
    **{f"hit@{k}": f"success_{k}" for k in (1, 3, 10)},
}
TREC_MEASURES = {
    "recip_rank",
    "ndcg",
    "map",
    "ndcg_cut.1,3,10",
    "map_cut.1,3,10",
    "P.1,3,10",
    "recall.1,3,10",
    "success.1,3,10",
}


@pytest.mark.parametrize("grades", [2, 5], ids=["binary", "graded"])
def test_equals_trec_eval_without_ties(grades: int) -> None:
    """300 random lists of 1 to 40 documents, labels from -1 up, some without a relevant one."""
    rng = np.random.default_rng(grades)
    sizes = rng.integers(1, 41, size=300)
    offsets = np.cumsum([0, *sizes])
    labels = rng.integers(-1, grades, size=offsets[-1])
    labels[rng.random(labels.size) < 0.5] = 0
    # distinct also in float32, in which trec_eval keeps scores
    scores = rng.permutation(offsets[-1]).astype(np.float64)
    bounds = list(itertools.pairwise(offsets.tolist()))
    qrels = {
        f"q{q}": {f"d{i}": int(labels[i]) for i in range(*bound)} for q, bound in enumerate(bounds)
    }
    run = {
        f"q{q}": {f"d{i}": float(scores[i]) for i in range(*bound)}
        for q, bound in enumerate(bounds)
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, TREC_MEASURES).evaluate(run)
    ours = per_query_metrics(scores, labels, offsets, list(TREC_NAMES))
    assert not has_positive(labels, offsets).all()
    for name, trec_name in TREC_NAMES.items():
        expected = [theirs[f"q{q}"][trec_name] for q in range(len(bounds))]
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-9, err_msg=name)


def metric_of_order(metric: Metric, ranked: list[float]) -> float:
    """The textbook value of one order: no ties, no vectors, nothing shared with the code tested."""
    k = metric.k or len(ranked)
    relevant = [label > 0 for label in ranked]
    total = sum(relevant)
    if not total:
        return 0.0
    if metric.name == "mrr":
        first = relevant.index(True) + 1
        return 1 / first if first <= k else 0.0
    if metric.name == "hit":
        return float(any(relevant[:k]))
    if metric.name == "precision":
        return sum(relevant[:k]) / k
    if metric.name == "recall":
        return sum(relevant[:k]) / total
    if metric.name == "map":
        return (
            sum(sum(relevant[:i]) / i for i in range(1, k + 1) if relevant[i - 1 : i] == [True])
            / total
        )
    gains = [max(label, 0.0) for label in ranked]
    ideal = sorted(gains, reverse=True)
    dcg, best = (
        sum(g * log2_discount(i) for i, g in enumerate(order[:k], start=1))
        for order in (gains, ideal)
    )
    return dcg / best


def mean_over_orders(scores: list[float], labels: list[float]) -> dict[str, float]:
    """Average over every order that the scores allow, each way of breaking ties once."""
    blocks = [
        [label for s, label in zip(scores, labels, strict=True) if s == score]
        for score in sorted(set(scores), reverse=True)
    ]
    orders = [
        list(itertools.chain.from_iterable(parts))
        for parts in itertools.product(*(itertools.permutations(block) for block in blocks))
    ]
    return {
        name: math.fsum(metric_of_order(parse_metric(name), order) for order in orders)
        / len(orders)
        for name in NAMES
    }


@st.composite
def small_lists(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    size = draw(st.integers(1, 6))
    scores = draw(st.lists(st.sampled_from([-1.5, 0.0, 2.0]), min_size=size, max_size=size))
    label = st.sampled_from([0.0, 0.0, 1.0, 2.0, 0.3, -1.0])
    return scores, draw(st.lists(label, min_size=size, max_size=size))


@settings(max_examples=60, deadline=None)
@given(small_lists())
def test_equals_the_mean_over_enumerated_orders(case: tuple[list[float], list[float]]) -> None:
    scores, labels = case
    ours = per_query_metrics(scores, labels, [0, len(scores)], NAMES)
    for name, expected in mean_over_orders(scores, labels).items():
        assert ours[name][0] == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("labels", [[1, 0, 0, 0, 0], [0, 1, 2, 0, 1], [0, 0, 0, 0, 1, 3]])
def test_constant_scorer_is_the_random_expectation(labels: list[float]) -> None:
    """It gets the mean over all D! orders of the list, wherever the positive stands."""
    orders = list(itertools.permutations(labels))
    ours = per_query_metrics([0.7] * len(labels), labels, [0, len(labels)], NAMES)
    for name in NAMES:
        metric = parse_metric(name)
        expected = math.fsum(metric_of_order(metric, list(o)) for o in orders) / len(orders)
        assert ours[name][0] == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("size", [8, 100, 5000])
def test_constant_scorer_in_closed_form(size: int) -> None:
    """One relevant document among D, all tied.

    Each rank has chance 1/D, so MRR = MAP = H_D / D, NDCG = (sum of discounts) / D, hit@5 = 5 / D.
    """
    harmonic = float(sum(Fraction(1, i) for i in range(1, size + 1)) / size)
    labels = [1] + [0] * (size - 1)
    means = ranking_metrics([3] * size, labels, [0, size], ["mrr", "map", "ndcg", "hit@5"])
    assert means["mrr"] == pytest.approx(harmonic, rel=1e-12)
    assert means["map"] == pytest.approx(harmonic, rel=1e-12)
    discounts = math.fsum(log2_discount(i) for i in range(1, size + 1))
    assert means["ndcg"] == pytest.approx(discounts / size, rel=1e-12)
    assert means["hit@5"] == pytest.approx(5 / size, rel=1e-12)


def test_constant_scorer_does_not_profit_from_positives_that_stand_first() -> None:
    """With the positive first of 8, a reader that keeps ties in place would answer 1.0."""
    means = ranking_metrics([0] * 8, [1] + [0] * 7, [0, 8], ["mrr", "ndcg"])
    assert means["mrr"] == pytest.approx(0.339732142857, abs=1e-12)
    assert means["ndcg"] < 0.5


def test_large_blocks_equal_exact_fractions() -> None:
    """s = 7 above, m = 200 tied, r = 3 relevant, k = 50, by exact binomials.

    P(first at place j) = C(m - j, r - 1) / C(m, r); P(none in 43 places) = C(m - 43, r) / C(m, r).
    """
    m, r, s, k = 200, 3, 7, 50
    labels = [0] * s + [1] * r + [0] * (m - r)
    scores = [2] * s + [1] * m
    ways = math.comb(m, r)
    mrr = sum(Fraction(math.comb(m - j, r - 1), ways * (s + j)) for j in range(1, k - s + 1))
    hit = 1 - Fraction(math.comb(m - (k - s), r), ways)
    assert one("mrr@50", scores, labels) == pytest.approx(float(mrr), rel=1e-13)
    assert one("hit@50", scores, labels) == pytest.approx(float(hit), rel=1e-13)


# --- laws ------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    total = sum(sizes)
    score = st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6, width=32))
    label = st.one_of(st.integers(-1, 4), st.floats(0, 1, width=32))
    scores = draw(st.lists(score, min_size=total, max_size=total))
    labels = draw(st.lists(label, min_size=total, max_size=total))
    return np.array(scores, float), np.array(labels, float), np.cumsum([0, *sizes])


@settings(max_examples=100, deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_the_input_never_matters(batch, random) -> None:
    scores, labels, offsets = batch
    order = []
    for start, end in itertools.pairwise(offsets.tolist()):
        part = list(range(start, end))
        random.shuffle(part)
        order += part
    before = per_query_metrics(scores, labels, offsets, NAMES)
    after = per_query_metrics(scores[order], labels[order], offsets, NAMES)
    for name in NAMES:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-12)
    assert tie_rate(scores[order], labels[order], offsets) == tie_rate(scores, labels, offsets)


@settings(max_examples=100, deadline=None)
@given(batches())
def test_only_the_order_of_the_scores_matters(batch) -> None:
    """Replacing each score by its dense rank is the most general increasing transform."""
    scores, labels, offsets = batch
    dense = np.unique(scores, return_inverse=True)[1].astype(float) * 3 - 5
    before = per_query_metrics(scores, labels, offsets, NAMES)
    after = per_query_metrics(dense, labels, offsets, NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(after[name], before[name])


@settings(max_examples=100, deadline=None)
@given(batches())
def test_values_lie_between_zero_and_one(batch) -> None:
    scores, labels, offsets = batch
    for name, values in per_query_metrics(scores, labels, offsets, NAMES).items():
        assert values.dtype == np.float64
        assert values.shape == (offsets.size - 1,)
        assert (values >= 0).all(), name
        assert (values <= 1).all(), name
    assert 0 <= tie_rate(scores, labels, offsets) <= 1


@settings(max_examples=50, deadline=None)
@given(batches())
def test_queries_do_not_touch_each_other(batch) -> None:
    scores, labels, offsets = batch
    together = per_query_metrics(scores, labels, offsets, NAMES)
    for q, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
        alone = per_query_metrics(scores[start:end], labels[start:end], [0, end - start], NAMES)
        for name in NAMES:
            assert together[name][q] == pytest.approx(alone[name][0], abs=1e-14)


def test_perfect_and_worst_order() -> None:
    """Ranked by its labels a list has 1 everywhere but in precision; reversed it has the minimum.

    Worst order of 0 0 1: MRR = MAP = 1/3, NDCG = d3 = 1/2, hit@2 = recall@2 = 0.
    """
    labels = [3, 2, 0.1, 0.1, 0.1, 0, 0]
    names = ["mrr", "ndcg", "ndcg@4", "map", "recall@5", "hit@1", "precision@5"]
    best = ranking_metrics(labels, labels, [0, 7], names)
    assert best == dict.fromkeys(names, 1.0)
    worst = ranking_metrics(
        [0, 1, 2], [1, 0, 0], [0, 3], ["mrr", "ndcg", "map", "hit@2", "recall@2"]
    )
    assert worst == pytest.approx(
        {"mrr": 1 / 3, "ndcg": 0.5, "map": 1 / 3, "hit@2": 0, "recall@2": 0}, abs=1e-15
    )


# --- means, ties, order ----------------------------------------------------------------------


def test_means_leave_out_queries_without_a_positive() -> None:
    """Values 1, 0 (nothing relevant), 1/2: the mean of the two defined ones is 3/4."""
    scores, labels, offsets = [2, 1, 2, 1, 2, 1], [1, 0, 0, 0, 0, 1], [0, 2, 4, 6]
    per_query = per_query_metrics(scores, labels, offsets, ["mrr"])
    assert per_query["mrr"].tolist() == [1, 0, 0.5]
    assert has_positive(labels, offsets).tolist() == [True, False, True]
    assert ranking_metrics(scores, labels, offsets, ["mrr"]) == {"mrr": 0.75}
    assert mean_metrics(per_query, has_positive(labels, offsets)) == {"mrr": 0.75}


def test_no_positive_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="none of the 2 queries has a document with a label above"):
        ranking_metrics([1, 2, 3], [0, 0, -1], [0, 2, 3], ["mrr"])


def test_tie_rate_by_hand() -> None:
    """Query 1, labels 1 0 0 0, scores 5 5 4 4: of three pairs 1-0 one is tied.

    The pair 4 = 4 has equal labels and does not count.

    Query 2, labels 2 1 0, scores 1 1 1: all three pairs are tied. Together 4 of 6.
    """
    scores, labels = [5, 5, 4, 4, 1, 1, 1], [1, 0, 0, 0, 2, 1, 0]
    assert tie_rate(scores[:4], labels[:4], [0, 4]) == pytest.approx(1 / 3)
    assert tie_rate(scores, labels, [0, 4, 7]) == pytest.approx(4 / 6)
    assert tie_rate([0.0, -0.0], [1, 0], [0, 2]) == 1
    assert tie_rate([1, 1], [1, 1], [0, 2]) == 0
    assert tie_rate([1, 1], [1, 0], [0, 1, 2]) == 0


def test_rank_order_keeps_queries_apart_and_ties_in_place() -> None:
    assert rank_order([1, 3, 2, 9, 9, 10], [0, 3, 6]).tolist() == [1, 2, 0, 5, 3, 4]
    assert rank_order([3, 2, 2, 9, 9, 1], [0, 3, 6]).tolist() == [0, 1, 2, 3, 4, 5]


# --- names -----------------------------------------------------------------------------------


def test_parse_metric() -> None:
    assert parse_metric("ndcg@10") == Metric("ndcg", 10)
    assert parse_metric("map") == Metric("map", None)
    assert [str(parse_metric(name)) for name in NAMES] == NAMES
    assert Metric("hit", 1)([1, 2], [1, 0], [0, 2]).tolist() == [0]


ALIASES = {
    "nDCG@10": "ndcg@10",
    "NDCG@3": "ndcg@3",
    "nDCG": "ndcg",
    "RR": "mrr",
    "MRR@10": "mrr@10",
    "RR@10": "mrr@10",
    "AP": "map",
    "MAP": "map",
    "AP@3": "map@3",
    "P@3": "precision@3",
    "Precision@10": "precision@10",
    "R@10": "recall@10",
    "Recall@3": "recall@3",
    "Success@3": "hit@3",
}


def test_ir_measures_names() -> None:
    """Each of its spellings is our metric, and has its value where no scores are tied.

    The two differ by design in tied scores (ours is the expectation over their orders) and in the
    mean (ours leaves out queries without a relevant document, theirs counts them as 0), so the
    values are compared query by query.
    """
    rng = np.random.default_rng(3)
    qrels, run, scores, labels, bounds = {}, {}, [], [], [0]
    for q in range(60):
        size = int(rng.integers(1, 25))
        grades = rng.integers(0, 4, size)
        values = rng.permutation(size) / 7.0
        qrels[f"q{q}"] = {f"d{i}": int(y) for i, y in enumerate(grades)}
        run[f"q{q}"] = {f"d{i}": float(x) for i, x in enumerate(values)}
        scores += values.tolist()
        labels += grades.tolist()
        bounds.append(bounds[-1] + size)
    names = list(ALIASES)
    ours = per_query_metrics(scores, labels, bounds, names)
    assert list(ours) == list(dict.fromkeys(ALIASES.values()))
    theirs = [ir_measures.parse_measure(name) for name in names]
    found = {
        (str(entry.measure), entry.query_id): entry.value
        for entry in ir_measures.iter_calc(list(set(theirs)), qrels, run)
    }
    for name, measure in zip(names, theirs, strict=True):
        expected = [found[str(measure), f"q{q}"] for q in range(60)]
        np.testing.assert_allclose(ours[ALIASES[name]], expected, rtol=0, atol=1e-9, err_msg=name)


def test_names_in_any_case() -> None:
    for name in ("ndcg@5", "NDCG@5", "nDCG@5"):
        assert parse_metric(name) == Metric("ndcg", 5)
    assert [str(parse_metric(n)) for n in ("rr", "ap", "p@5", "r@5", "s@5", "S@5")] == [
        "mrr",
        "map",
        "precision@5",
        "recall@5",
        "hit@5",
        "hit@5",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ngcd@10", r"'ngcd@10' is unknown; did you mean ndcg@10\? choose from mrr, ndcg, map"),
        ("NGCD@10", r"did you mean ndcg@10\?"),
        ("nDCG(dcg='exp-log2')@10", r"has parameters, which are not read; choose from mrr"),
        ("P(rel=2)@5", r"has parameters"),
        ("Rprec", r"'Rprec' is unknown"),
        ("P@0", r"has the cut '0'"),
        ("zzz", r"'zzz' is unknown; choose from mrr"),
        ("", r"'' is unknown"),
        ("ndcg@0", r"has the cut '0'; k must be a positive integer, as in ndcg@10"),
        ("ndcg@-1", r"'-1'; k must"),
        ("ndcg@", r"''; k must"),
        ("ndcg@1.5", r"'1.5'; k must"),
        ("ndcg@ten", r"'ten'; k must"),
        ("ndcg@10@5", r"'10@5'; k must"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ranking_metrics([1], [1], [0, 1], [name])
    assert "\n" not in str(caught.value)


def test_wrong_lists_of_names() -> None:
    with pytest.raises(ConfigError, match=r"the string 'mrr'; give a list, \['mrr'\]"):
        parse_metrics("mrr")
    with pytest.raises(ConfigError, match="no metric is named"):
        parse_metrics([])


# --- wrong input -----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite(bad: float) -> None:
    """The message names the query and the document's place in it."""
    scores, labels, offsets = [1, 2, 3, bad, 5], [1, 0, 1, 0, 0], [0, 2, 5]
    with pytest.raises(DataError, match=rf"query 1 has the score {bad} at document 1; scores must"):
        ranking_metrics(scores, labels, offsets, ["mrr"])
    with pytest.raises(DataError, match=r"query 'b' has the score"):
        per_query_metrics(scores, labels, offsets, ["mrr"], query_ids=["a", "b"])
    with pytest.raises(DataError, match=r"query 'b' has the score"):
        tie_rate(scores, labels, offsets, query_ids=["a", "b"])
    with pytest.raises(DataError, match=r"query 1 has the score"):
        rank_order(scores, offsets)
    for entry in METRICS.values():
        with pytest.raises(DataError, match=r"query 1 has the score"):
            entry.function(scores, labels, offsets, None)


def test_labels_must_be_finite() -> None:
    with pytest.raises(DataError, match=r"query 0 has the label nan at document 1; labels must"):
        ranking_metrics([1, 2], [1, math.nan], [0, 2], ["mrr"])
    with pytest.raises(DataError, match=r"query 0 has the label nan at document 1; labels must"):
        has_positive([1, math.nan], [0, 2])


@pytest.mark.parametrize(
    ("scores", "labels", "offsets", "message"),
    [
        ([1, 2], [1], [0, 2], "2 scores and 1 labels"),
        (
            [1, 2],
            [1, 0],
            [0, 1],
            "run from 0 to 1; they must run from 0 to the number of scores, 2",
        ),
        ([1, 2], [1, 0], [1, 2], "run from 1 to 2"),
        ([1, 2], [1, 0], [0, 2, 2], "query 1 runs from 2 to 2; every query needs at least one"),
        ([1, 2, 3], [1, 0, 0], [0, 2, 1, 3], "query 1 runs from 2 to 1"),
        ([], [], [0], r"Q \+ 1 integers"),
        ([], [], [0, 0], "query 0 runs from 0 to 0"),
        ([1, 2], [1, 0], [0.0, 2.0], r"Q \+ 1 integers"),
        ([1, 2], [1, 0], [[0, 2]], r"Q \+ 1 integers"),
        ([[1, 2]], [1, 0], [0, 2], r"the scores have shape \(1, 2\)"),
        ([1, 2], [[1], [0]], [0, 2], r"the labels have shape \(2, 1\)"),
        (["a", "b"], [1, 0], [0, 2], "the scores are not a list of numbers"),
        ([[1], [2, 3]], [1, 0], [0, 2], "the scores are not a list of numbers"),
        ([1, 2], [1, 0], [[0], [1, 2]], r"Q \+ 1 integers"),
    ],
)
def test_wrong_shapes(scores, labels, offsets, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ranking_metrics(scores, labels, offsets, ["mrr"])
    assert "\n" not in str(caught.value)


def test_one_id_per_query() -> None:
    with pytest.raises(DataError, match="1 query ids for 2 queries"):
        per_query_metrics([1, 2], [1, 0], [0, 1, 2], ["mrr"], query_ids=["a"])


# --- flat labels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "offsets"),
    [
        ([1, 0, 0, 1, 0, 0, 0], [0, 3, 7]),
        ([1, 1, 0], [0, 3]),
        ([1, 1, 0, 0, 1, 1, 0], [0, 4, 7]),
        ([1], [0, 1]),
        ([1, 0, 1], [0, 2, 3]),
        ([1.0, 0.0], [0, 2]),
        ([True, False, True, False], [0, 2, 4]),
        (np.array([1, 0, 1, 0], dtype=np.float32), [0, 2, 4]),
    ],
)
def test_flat_labels(labels, offsets: list[int]) -> None:
    """A query starts at the first label and at each 1 after a 0; `[1, 1, 0]` is one query."""
    found = offsets_from_flat_labels(labels)
    assert found == offsets
    assert all(type(offset) is int for offset in found)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0], "starts with 0"),
        ([], "is empty"),
        ([1, 0, 2], "flat label 2 is 2; only 0 and 1"),
        ([1, 0.5], "flat label 1 is 0.5"),
        ([1, math.nan], "flat label 1 is nan"),
        ([[1, 0]], "shape"),
    ],
)
def test_wrong_flat_labels(labels, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        offsets_from_flat_labels(labels)
    assert "\n" not in str(caught.value)


def test_needs_no_torch() -> None:
    assert not hasattr(metrics, "torch")


@pytest.mark.timeout(60)
def test_fast_enough_for_a_million_pairs() -> None:
    """10,000 queries of 100 documents take about a second, tied or not."""
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 1_000_001, 100)
    labels = (rng.random(1_000_000) < 0.05).astype(float)
    for scores in (rng.random(1_000_000), np.zeros(1_000_000)):
        values = ranking_metrics(scores, labels, offsets, ["mrr@10", "ndcg@10", "map", "hit@3"])
        assert 0 < values["ndcg@10"] < 0.2
