"""Ranking metrics per query, with ties by expectation; numpy float64 and nothing else.

Shape legend: ``Q`` queries, ``P`` (query, document) pairs, ``B`` blocks of tied documents (a
document whose score nobody shares is a block of one). ``offsets_Q`` holds ``Q + 1`` indices into
the pairs: query ``q`` owns the pairs ``offsets_Q[q]`` to ``offsets_Q[q + 1]``. Queries are data,
never inferred from labels.

Conventions, those of trec_eval:

* A document is relevant where its label is above 0. Only NDCG reads the grade: the gain is the
  label itself (linear), a label below 0 gains 0, and the discount at rank ``i`` is ``1 / log2(i +
  1)``.
* What can be found is what the list holds: recall, MAP and the ideal of NDCG count the list's
  documents.
* ``@k`` keeps the first ``k`` ranks. ``precision@k`` divides by ``k`` even where the list is
  shorter, ``map@k`` and ``recall@k`` by all relevant documents, and the ideal of ``ndcg@k`` is cut
  at ``k``.
* A query without a relevant document has the value 0. Means leave such queries out (they would say
  how many there are, not how well the others are ranked); their number belongs beside the mean.

Tied scores name no order, so every metric is its expectation over all orders of the tied documents,
each equally likely (McSherry & Najork, "Computing Information Retrieval Performance Measures
Efficiently in the Presence of Tied Scores", ECIR 2008). A constant scorer therefore gets what a
random one gets on average, and the order of the input never matters. trec_eval instead breaks ties
by document id.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rankwright.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The pairs in ranked order, cut into blocks of equal scores.

    Attributes:
        labels_P: labels in ranked order.
        rank_P: rank within the query, from 1.
        place_P: place within the block, from 1.
        block_P: the block of each pair.
        start_B: index of each block's first pair.
        size_B: documents in the block, at least 1.
        relevant_B: relevant documents in the block.
        relevant_before_B: relevant documents of the same query in higher blocks.
        query_B: the query of each block.
        relevant_Q: relevant documents of the query.
        offsets_Q: as given, checked.
    """

    labels_P: FloatArray
    rank_P: IntArray
    place_P: IntArray
    block_P: IntArray
    start_B: IntArray
    size_B: IntArray
    relevant_B: IntArray
    relevant_before_B: IntArray
    query_B: IntArray
    relevant_Q: IntArray
    offsets_Q: IntArray

    def sum_by_query(self, values_P: FloatArray) -> FloatArray:
        """Sum over each query's pairs (no query is empty, which reduceat needs)."""
        return np.add.reduceat(values_P, self.offsets_Q[:-1])

    def within(self, k: int | None) -> BoolArray:
        """Which pairs stand at rank ``k`` or higher."""
        return np.ones(self.rank_P.shape, np.bool_) if k is None else self.rank_P <= k


def rank_order(scores: npt.ArrayLike, offsets: npt.ArrayLike) -> IntArray:
    """Indices that list each query's documents from the highest score to the lowest.

    Tied documents stay in their input order, so this is for showing and writing; the metrics do not
    depend on it.

    Args:
        scores: ``P`` finite scores, higher is better.
        offsets: ``Q + 1`` query boundaries.

    Returns:
        ``P`` indices into the pairs; query ``q`` still owns ``offsets[q]`` to ``offsets[q + 1]``.

    Raises:
        DataError: a score is NaN or infinite, or the offsets do not fit.
    """
    scores_P, _, offsets_Q = _checked(scores, None, offsets, None)
    return _order(scores_P, offsets_Q)


def _order(scores_P: FloatArray, offsets_Q: IntArray) -> IntArray:
    falls_P = scores_P[1:] <= scores_P[:-1]
    falls_P[offsets_Q[1:-1] - 1] = True
    if falls_P.all():  # ranked already: per_query_metrics sorts once for all its metrics
        return np.arange(scores_P.size, dtype=np.int64)
    return np.lexsort((-scores_P, _query_index(offsets_Q))).astype(np.int64, copy=False)


def _query_index(offsets_Q: IntArray) -> IntArray:
    return np.repeat(np.arange(offsets_Q.size - 1, dtype=np.int64), np.diff(offsets_Q))


def _blocks(scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike) -> _Blocks:
    scores_P, labels_P, offsets_Q = _checked(scores, labels, offsets, None)
    order_P = _order(scores_P, offsets_Q)
    scores_P, labels_P = scores_P[order_P], labels_P[order_P]
    query_P = _query_index(offsets_Q)
    index_P = np.arange(scores_P.size, dtype=np.int64)
    starts_P = np.empty(scores_P.shape, np.bool_)
    starts_P[1:] = scores_P[1:] != scores_P[:-1]
    starts_P[offsets_Q[:-1]] = True
    start_B = np.flatnonzero(starts_P).astype(np.int64, copy=False)
    block_P = np.cumsum(starts_P, dtype=np.int64) - 1
    query_B = query_P[start_B]
    relevant_B = np.add.reduceat((labels_P > 0).astype(np.int64), start_B)
    before_B = np.cumsum(relevant_B) - relevant_B
    first_block_Q = block_P[offsets_Q[:-1]]
    return _Blocks(
        labels_P=labels_P,
        rank_P=index_P - offsets_Q[query_P] + 1,
        place_P=index_P - start_B[block_P] + 1,
        block_P=block_P,
        start_B=start_B,
        size_B=np.diff(start_B, append=scores_P.size),
        relevant_B=relevant_B,
        relevant_before_B=before_B - before_B[first_block_Q][query_B],
        query_B=query_B,
        relevant_Q=np.add.reduceat(relevant_B, first_block_Q),
        offsets_Q=offsets_Q,
    )


def _divide(numerator: FloatArray, denominator: npt.NDArray[np.float64 | np.int64]) -> FloatArray:
    """Divide, with 0 where the denominator is 0 (a query without a relevant document)."""
    out = np.zeros_like(numerator)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _first_relevant(blocks: _Blocks, k: int | None) -> tuple[FloatArray, FloatArray]:
    """Expected 1/rank of the first relevant document, and the chance that none is found.

    Only the highest block with a relevant document matters. With ``m`` documents, ``r`` relevant,
    below ``s`` others, the chance that its first ``j`` places hold none is the product over ``t =
    1..j`` of ``(m - r - t + 1) / (m - t + 1)``; the first relevant one stands at place ``j`` with
    that product up to ``j - 1`` times ``r / (m - j + 1)``. All terms are positive, so nothing
    cancels.

    Returns:
        ``Q`` values of E[1/rank; rank <= k] and ``Q`` values of P(rank > k).
    """
    num_queries = blocks.offsets_Q.size - 1
    reciprocal_Q, missing_Q = np.zeros(num_queries), np.ones(num_queries)
    with_relevant_B = np.flatnonzero(blocks.relevant_B)
    query_A, first_A = np.unique(blocks.query_B[with_relevant_B], return_index=True)
    block_A = with_relevant_B[first_A]
    size_A, relevant_A = blocks.size_B[block_A], blocks.relevant_B[block_A]
    rank_A = blocks.rank_P[blocks.start_B[block_A]]
    place = 1  # one step per place of the largest block: a single one where nothing is tied
    while True:
        active_A = place <= size_A - relevant_A + 1
        if k is not None:
            active_A &= rank_A + (place - 1) <= k
        if not active_A.any():
            return reciprocal_Q, missing_Q
        query_A, size_A, relevant_A, rank_A = (
            values_A[active_A] for values_A in (query_A, size_A, relevant_A, rank_A)
        )
        left_A = size_A - place + 1
        reciprocal_Q[query_A] += missing_Q[query_A] * relevant_A / left_A / (rank_A + (place - 1))
        missing_Q[query_A] *= (left_A - relevant_A) / left_A
        place += 1


def mrr(
    scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike, k: int | None = None
) -> FloatArray:
    """Reciprocal rank of the first relevant document; 0 where it stands below rank ``k``.

    Source: Voorhees, "The TREC-8 Question Answering Track Report", 1999; ties as McSherry & Najork
        2008.

    Args:
        scores: ``P`` finite scores, higher is better.
        labels: ``P`` finite labels; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries.
        k: the last rank that counts; None for the whole list.

    Returns:
        ``Q`` values in [0, 1].

    Raises:
        DataError: scores, labels or offsets are not as above.
    """
    return _first_relevant(_blocks(scores, labels, offsets), k)[0]


def hit(
    scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike, k: int | None = None
) -> FloatArray:
    """Whether a relevant document stands in the first ``k`` ranks (trec_eval's ``success_k``).

    Under ties it is the chance of that: one minus the hypergeometric chance of drawing none.

    Args:
        scores: ``P`` finite scores, higher is better.
        labels: ``P`` finite labels; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries.
        k: the last rank that counts; None for the whole list.

    Returns:
        ``Q`` values in [0, 1].

    Raises:
        DataError: scores, labels or offsets are not as above.
    """
    return 1.0 - _first_relevant(_blocks(scores, labels, offsets), k)[1]


def _expected_found(blocks: _Blocks, k: int | None) -> FloatArray:
    """Expected relevant documents in the first ``k`` ranks; each place of a block holds r/m."""
    share_B = blocks.relevant_B / blocks.size_B
    # whole blocks are added as integers, so that only a block cut by k brings rounding
    inside_B = blocks.size_B
    if k is not None:
        inside_B = np.clip(k + 1 - blocks.rank_P[blocks.start_B], 0, blocks.size_B)
    found_B = np.where(inside_B == blocks.size_B, blocks.relevant_B, inside_B * share_B)
    first_block_Q = blocks.block_P[blocks.offsets_Q[:-1]]
    return np.add.reduceat(found_B, first_block_Q)


def precision(
    scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike, k: int | None = None
) -> FloatArray:
    """Share of relevant documents in the first ``k`` ranks; the divisor is ``k`` in any list.

    Args:
        scores: ``P`` finite scores, higher is better.
        labels: ``P`` finite labels; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries.
        k: the last rank that counts, and the divisor; None for each list's own length.

    Returns:
        ``Q`` values in [0, 1].

    Raises:
        DataError: scores, labels or offsets are not as above.
    """
    blocks = _blocks(scores, labels, offsets)
    return _expected_found(blocks, k) / (np.diff(blocks.offsets_Q) if k is None else k)


def recall(
    scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike, k: int | None = None
) -> FloatArray:
    """Share of the list's relevant documents that stand in the first ``k`` ranks.

    Args:
        scores: ``P`` finite scores, higher is better.
        labels: ``P`` finite labels; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries.
        k: the last rank that counts; None for the whole list (then 1 wherever anything is
            relevant).

    Returns:
        ``Q`` values in [0, 1].

    Raises:
        DataError: scores, labels or offsets are not as above.
    """
    blocks = _blocks(scores, labels, offsets)
    return _divide(_expected_found(blocks, k), blocks.relevant_Q)


def average_precision(
    scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike, k: int | None = None
) -> FloatArray:
    """Precision at the rank of each relevant document, summed, over all relevant documents.

    Place ``j`` of a block of ``m`` documents, ``r`` relevant, stands at rank ``i`` and holds a
    relevant document with chance ``r / m``; if it does, the ranks up to ``i`` hold it, the relevant
    ones of higher blocks, and ``(j - 1) (r - 1) / (m - 1)`` expected from its own block. Labels are
    read as relevant or not; ``k`` cuts the sum but not the divisor (trec_eval's ``map_cut_k``).

    Source: Buckley & Voorhees, "Evaluating Evaluation Measure Stability", SIGIR 2000; ties as
        McSherry &
    Najork 2008.

    Args:
        scores: ``P`` finite scores, higher is better.
        labels: ``P`` finite labels; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries.
        k: the last rank that counts; None for the whole list.

    Returns:
        ``Q`` values in [0, 1].

    Raises:
        DataError: scores, labels or offsets are not as above.
    """
    blocks = _blocks(scores, labels, offsets)
    share_B = blocks.relevant_B / blocks.size_B
    # the max() only spares a block of one its 0 / 0: there place - 1 is 0
    beside_B = (blocks.relevant_B - 1) / np.maximum(blocks.size_B - 1, 1)
    found_P = (
        blocks.relevant_before_B[blocks.block_P]
        + 1
        + (blocks.place_P - 1) * beside_B[blocks.block_P]
    )
    terms_P = share_B[blocks.block_P] * found_P / blocks.rank_P
    terms_P[~blocks.within(k)] = 0.0
    return np.minimum(_divide(blocks.sum_by_query(terms_P), blocks.relevant_Q), 1.0)


def ndcg(
    scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike, k: int | None = None
) -> FloatArray:
    """Discounted cumulative gain over the best possible one, both cut at rank ``k``.

    Gain is the label (0 below 0), discount ``1 / log2(rank + 1)``, as trec_eval's ``ndcg_cut_k``.
    Each place of a tied block is expected to gain the block's mean.

    Source: Järvelin & Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", TOIS 2002,
        with the
    discount of Burges et al. 2005; ties as McSherry & Najork 2008.

    Args:
        scores: ``P`` finite scores, higher is better.
        labels: ``P`` finite labels, graded or soft; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries.
        k: the last rank that counts; None for the whole list.

    Returns:
        ``Q`` values in [0, 1].

    Raises:
        DataError: scores, labels or offsets are not as above.
    """
    blocks = _blocks(scores, labels, offsets)
    gain_P = np.maximum(blocks.labels_P, 0.0)
    mean_gain_B = np.add.reduceat(gain_P, blocks.start_B) / blocks.size_B
    discount_P = 1.0 / np.log2(blocks.rank_P + 1.0)
    discount_P[~blocks.within(k)] = 0.0
    ideal_P = gain_P[_order(gain_P, blocks.offsets_Q)]
    dcg_Q = blocks.sum_by_query(mean_gain_B[blocks.block_P] * discount_P)
    # min(): the mean of equal gains may round up, and a perfect list is 1, not 1 + 2e-16
    return np.minimum(_divide(dcg_Q, blocks.sum_by_query(ideal_P * discount_P)), 1.0)


class MetricEntry(NamedTuple):
    """One row of :data:`METRICS`.

    Attributes:
        function: ``(scores_P, labels_P, offsets_Q, k) -> values_Q``.
        description: one line for help texts.
    """

    function: Callable[[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, int | None], FloatArray]
    description: str


METRICS: dict[str, MetricEntry] = {
    "mrr": MetricEntry(mrr, "1 / rank of the first relevant document"),
    "ndcg": MetricEntry(ndcg, "discounted gain over the ideal order's; reads graded labels"),
    "map": MetricEntry(average_precision, "mean precision at the relevant documents"),
    "precision": MetricEntry(precision, "share of the first k that is relevant"),
    "recall": MetricEntry(recall, "share of the relevant documents found in the first k"),
    "hit": MetricEntry(hit, "whether the first k hold a relevant document"),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and its cut: ``str(Metric("ndcg", 10)) == "ndcg@10"``.

    Attributes:
        name: a key of :data:`METRICS`.
        k: the last rank that counts, at least 1; None for the whole list.
    """

    name: str
    k: int | None = None

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name}@{self.k}"

    def __call__(
        self, scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike
    ) -> FloatArray:
        """Values of the ``Q`` queries; see the function named in :data:`METRICS`."""
        return METRICS[self.name].function(scores, labels, offsets, self.k)


# the names of ir_measures (MacAvaney et al., ECIR 2022) in lower case, where they differ from ours
IR_MEASURES: dict[str, str] = {
    "rr": "mrr",
    "ap": "map",
    "p": "precision",
    "r": "recall",
    "success": "hit",
    "s": "hit",
}


def parse_metric(text: str) -> Metric:
    """Read ``ndcg@10`` or ``map``, or an alias of ``ir_measures`` such as ``nDCG@10`` or ``AP``.

    Upper and lower case make no difference. Whatever the spelling, the metric has our name, so that
    results of two runs stand under the same one.

    Raises:
        ConfigError: the name is not in :data:`METRICS`, or ``k`` is not a positive integer.
    """
    given, at, cut = text.partition("@")
    name = IR_MEASURES.get(given.lower(), given.lower())
    if name not in METRICS:
        if "(" in text:
            raise ConfigError(
                f"metric {text!r} has parameters, which are not read; choose from "
                f"{', '.join(METRICS)}, each with an optional @k such as ndcg@10"
            )
        near = difflib.get_close_matches(name.strip(), METRICS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}{at}{cut}? " if near else ""
        raise ConfigError(
            f"metric {text!r} is unknown; {hint}choose from {', '.join(METRICS)}, "
            "each with an optional @k such as ndcg@10"
        )
    if not at:
        return Metric(name)
    if not re.fullmatch(r"[1-9][0-9]*", cut):
        raise ConfigError(
            f"metric {text!r} has the cut {cut!r}; k must be a positive integer, as in {name}@10"
        )
    return Metric(name, int(cut))


def per_query_metrics(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    offsets: npt.ArrayLike,
    names: Sequence[str],
    *,
    query_ids: Sequence[str] | None = None,
) -> dict[str, FloatArray]:
    """Compute the metrics of every query.

    Args:
        scores: ``P`` finite scores, higher is better.
        labels: ``P`` finite labels; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries, no query empty.
        names: metrics such as ``["ndcg@10", "mrr"]``.
        query_ids: ``Q`` ids for the messages; None names a query by its index, from 0.

    Returns:
        For each name ``Q`` values in [0, 1]; 0 for a query without a relevant document, as
        trec_eval.

    Raises:
        ConfigError: a name is unknown.
        DataError: a score or label is not finite (the message names the query), or the offsets do
            not fit.
    """
    metrics = parse_metrics(names)
    scores_P, labels_P, offsets_Q = _checked(scores, labels, offsets, query_ids)
    order_P = _order(scores_P, offsets_Q)
    scores_P, labels_P = scores_P[order_P], labels_P[order_P]
    return {str(metric): metric(scores_P, labels_P, offsets_Q) for metric in metrics}


def has_positive(
    labels: npt.ArrayLike, offsets: npt.ArrayLike, *, query_ids: Sequence[str] | None = None
) -> BoolArray:
    """Which of the ``Q`` queries hold a relevant document: those that the means are taken over.

    Args:
        labels: ``P`` finite labels; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries, no query empty.
        query_ids: ``Q`` ids for the messages.

    Raises:
        DataError: a label is not finite, or the offsets do not fit.
    """
    labels_P, _, offsets_Q = _checked(labels, None, offsets, query_ids, what="label")
    return np.logical_or.reduceat(labels_P > 0, offsets_Q[:-1])


def ranking_metrics(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    offsets: npt.ArrayLike,
    names: Sequence[str],
    *,
    query_ids: Sequence[str] | None = None,
) -> dict[str, float]:
    """Compute the means of the metrics over the queries that hold a relevant document.

    Args:
        scores: ``P`` finite scores, higher is better.
        labels: ``P`` finite labels; above 0 is relevant.
        offsets: ``Q + 1`` query boundaries, no query empty.
        names: metrics such as ``["ndcg@10", "mrr"]``.
        query_ids: ``Q`` ids for the messages; None names a query by its index, from 0.

    Returns:
        For each name a value in [0, 1]; nothing else.

    Raises:
        ConfigError: a name is unknown.
        DataError: a score or label is not finite (the message names the query), the offsets do not
            fit, or no query holds a relevant document.

    Example:
        >>> ranking_metrics([0.9, 0.2, 0.5], [0, 0, 1], [0, 3], ["mrr", "hit@1"])
        {'mrr': 0.5, 'hit@1': 0.0}
    """
    values = per_query_metrics(scores, labels, offsets, names, query_ids=query_ids)
    return mean_metrics(values, has_positive(labels, offsets))


def mean_metrics(
    per_query: Mapping[str, FloatArray], has_positive_Q: BoolArray
) -> dict[str, float]:
    """Average per-query values over the queries that hold a relevant document.

    Args:
        per_query: name -> ``Q`` values, from :func:`per_query_metrics`.
        has_positive_Q: ``Q`` flags, from :func:`has_positive`.

    Raises:
        DataError: no query holds a relevant document.
    """
    if not has_positive_Q.any():
        raise DataError(
            f"none of the {has_positive_Q.size} queries has a document with a label above 0, "
            "so no metric is defined; check the labels"
        )
    return {name: float(values_Q[has_positive_Q].mean()) for name, values_Q in per_query.items()}


def tie_rate(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    query_ids: Sequence[str] | None = None,
) -> float:
    """Share of the pairs of documents to be told apart that the scores do not tell apart.

    A pair is two documents of one query with different labels (for 1 and 0: a relevant and a
    non-relevant one); it is tied where their scores are equal. Documents with equal labels are left
    out, since their order changes nothing. Pairs are pooled over all queries.

    Args:
        scores: ``P`` finite scores.
        labels: ``P`` finite labels.
        offsets: ``Q + 1`` query boundaries.
        query_ids: ``Q`` ids for the messages.

    Returns:
        A value in [0, 1]: 0 without such a tie (or without such a pair), 1 for a constant scorer.

    Raises:
        DataError: scores, labels or offsets are not as above.
    """
    tied, total = tied_pairs(scores, labels, offsets, query_ids=query_ids)
    return tied / total if total else 0.0


def tied_pairs(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    query_ids: Sequence[str] | None = None,
) -> tuple[int, int]:
    """The pairs that :func:`tie_rate` counts: how many are tied, of how many."""
    scores_P, labels_P, offsets_Q = _checked(scores, labels, offsets, query_ids)
    blocks = _blocks(scores_P, labels_P, offsets_Q)
    tied = _pairs(blocks.size_B) - _pairs(_run_lengths(blocks.block_P, blocks.labels_P))
    total = _pairs(np.diff(offsets_Q)) - _pairs(_run_lengths(_query_index(offsets_Q), labels_P))
    return tied, total


def _pairs(counts: IntArray) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _run_lengths(part_P: IntArray, labels_P: FloatArray) -> IntArray:
    """Sizes of the sets of pairs that share both part and label."""
    order_P = np.lexsort((labels_P, part_P))
    part_P, labels_P = part_P[order_P], labels_P[order_P]
    changes_P = (part_P[1:] != part_P[:-1]) | (labels_P[1:] != labels_P[:-1])
    bounds = np.concatenate(([0], np.flatnonzero(changes_P) + 1, [part_P.size]))
    return np.diff(bounds).astype(np.int64, copy=False)


def offsets_from_flat_labels(labels: npt.ArrayLike) -> list[int]:
    """Turn a flat list of 1 and 0 into query boundaries.

    The list must be written query by query, each query its positives first and then its negatives.
    A query then starts at the first element and at every 1 that follows a 0; two positives in a row
    belong to the same query, so ``[1, 1, 0]`` is one query with two positives (ms-swift reads it as
    two queries, the first without a negative). Two queries in a row of which the first has no
    negative cannot be told apart this way: pass offsets instead. Nothing else in Rankwright infers
    queries from labels.

    Args:
        labels: ``P`` values, each 0 or 1, the first of them 1.

    Returns:
        ``Q + 1`` boundaries, from 0 to ``P``.

    Raises:
        DataError: the list is empty or not flat, starts with 0, or holds another value.

    Example:
        >>> offsets_from_flat_labels([1, 0, 0, 1, 0, 0, 0])
        [0, 3, 7]
    """
    values_P = _floats(labels, "labels")
    if not values_P.size:
        raise DataError("the flat label list is empty; it needs at least one query, such as [1, 0]")
    other_P = np.flatnonzero((values_P != 0) & (values_P != 1))
    if other_P.size:
        raise DataError(
            f"flat label {other_P[0]} is {values_P[other_P[0]]:g}; only 0 and 1 mark queries; "
            "give graded labels together with offsets"
        )
    if values_P[0] != 1:
        raise DataError(
            "the flat label list starts with 0; each query must start with its positives; "
            "give offsets for lists in another order"
        )
    starts = np.flatnonzero((values_P[1:] == 1) & (values_P[:-1] == 0)) + 1
    return [0, *starts.tolist(), values_P.size]


def parse_metrics(names: Sequence[str]) -> list[Metric]:
    """Read several names with :func:`parse_metric`.

    Raises:
        ConfigError: a name is unknown, there is none, or one string is given for the list.
    """
    if isinstance(names, str):
        raise ConfigError(f"the metric names are the string {names!r}; give a list, [{names!r}]")
    if not len(names):
        raise ConfigError(f"no metric is named; choose from {', '.join(METRICS)}")
    return [parse_metric(name) for name in names]


def _floats(values: npt.ArrayLike, what: str) -> FloatArray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the {what} are not a list of numbers ({error}); give one each") from None
    if array.ndim != 1:
        raise DataError(f"the {what} have shape {array.shape}; they must be one flat list of pairs")
    return array


def _checked(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike | None,
    offsets: npt.ArrayLike,
    query_ids: Sequence[str] | None,
    *,
    what: str = "score",
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Convert and check; ``labels`` None stands for zeros."""
    scores_P = _floats(scores, f"{what}s")
    labels_P = np.zeros_like(scores_P) if labels is None else _floats(labels, "labels")
    try:
        given = np.asarray(offsets)
    except ValueError:  # a ragged list
        given = np.asarray(None)
    if given.ndim != 1 or given.size < 2 or given.dtype.kind not in "iu":
        raise DataError(
            f"the offsets have shape {given.shape} and type {given.dtype}; "
            "they must be a flat list of Q + 1 integers such as [0, 3, 7]"
        )
    offsets_Q = given.astype(np.int64, copy=False)
    num_queries = offsets_Q.size - 1
    if query_ids is not None and len(query_ids) != num_queries:
        raise DataError(
            f"there are {len(query_ids)} query ids for {num_queries} queries; give one each"
        )

    def name(query: int) -> str:
        return f"query {query}" if query_ids is None else f"query {query_ids[query]!r}"

    if labels_P.size != scores_P.size:
        raise DataError(
            f"there are {scores_P.size} scores and {labels_P.size} labels; "
            "give one of each per document"
        )
    if offsets_Q[0] != 0 or offsets_Q[-1] != scores_P.size:
        raise DataError(
            f"the offsets run from {offsets_Q[0]} to {offsets_Q[-1]}; "
            f"they must run from 0 to the number of {what}s, {scores_P.size}"
        )
    steps_Q = np.diff(offsets_Q)
    if (steps_Q <= 0).any():
        query = int(np.argmax(steps_Q <= 0))
        raise DataError(
            f"{name(query)} runs from {offsets_Q[query]} to {offsets_Q[query + 1]}; "
            "every query needs at least one document; leave out empty ones"
        )
    for kind, values_P in ((what, scores_P), ("label", labels_P)):
        if not np.isfinite(values_P).all():
            pair = int(np.argmin(np.isfinite(values_P)))
            query = int(np.searchsorted(offsets_Q, pair, side="right")) - 1
            advice = (
                "look for an overflow in the model or its training"
                if kind == "score"
                else "correct the row"
            )
            raise DataError(
                f"{name(query)} has the {kind} {values_P[pair]} at document "
                f"{pair - offsets_Q[query]}; {kind}s must be finite; {advice}"
            )
    return scores_P, labels_P, offsets_Q
