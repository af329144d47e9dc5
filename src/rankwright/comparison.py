"""Two rankings of the same candidates, compared query by query.

The difference is always that of ``B`` to ``A``: above 0 where ``B`` is better.

Shape legend: ``Q`` queries, ``N`` queries that hold a relevant document, ``S`` samples.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from rankwright.errors import ConfigError, DataError
from rankwright.evaluation import (
    EvaluationResult,
    bootstrap_interval,
    evaluate_scores,
    trec_ids,
    write_json,
    write_parts,
    write_qrels,
    write_trec_run,
)
from rankwright.metrics import FloatArray
from rankwright.types import Example, ScoredList

FIRST_STAGE = "first_stage"
SAMPLES = 10_000
# so many differences have all their 65,536 sign patterns computed; more are sampled
EXACT = 16
# values that differ by less are the rounding of one sum in two orders
ROUNDING = 1e-12


class _Echo:
    """A file for ``csv`` whose rows come back from ``writerow``."""

    def write(self, text: str) -> str:
        return text


class ScoredRows(Sequence[ScoredList]):
    """The lists of many examples, of which only the scores are held.

    A list is put together when it is asked for, so rows that lie in the store stay there.

    Args:
        examples: the examples.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self.scores = array("d")
        self.ends = array("q", [0])

    def add(self, scores: Sequence[float]) -> None:
        """Take the scores of the next example."""
        self.scores.extend(scores)
        self.ends.append(len(self.scores))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> ScoredList: ...
    @overload
    def __getitem__(self, index: slice) -> list[ScoredList]: ...
    def __getitem__(self, index: int | slice) -> ScoredList | list[ScoredList]:
        """A list, or those of a slice."""
        if isinstance(index, slice):
            return [self._list(i) for i in range(len(self))[index]]
        return self._list(range(len(self))[index])

    def _list(self, index: int) -> ScoredList:
        scores = self.scores[self.ends[index] : self.ends[index + 1]]
        return ScoredList(self.examples[index], scores.tolist())


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of both rankings over the ``N`` queries that hold a relevant document.

    Attributes:
        a: mean of ``A``.
        b: mean of ``B``.
        difference: mean of ``B`` minus ``A``.
        low: lower end of the paired bootstrap's 95 % interval; None for a single query.
        high: upper end.
        p_value: of the two-sided randomisation test.
        exact: whether all sign patterns were computed rather than sampled.
        p_holm: the p-value after Holm's correction over the metrics that are compared together.
        wins: queries on which ``B`` is better.
        losses: queries on which ``A`` is better.
        ties: queries on which they are equal.
    """

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p_value: float
    exact: bool
    p_holm: float
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What :func:`compare` finds.

    Attributes:
        name_a: what ``A`` is called.
        name_b: what ``B`` is called.
        a: the metrics of ``A``.
        b: the metrics of ``B``.
        differences: metric -> its difference.
        lists_a: the ``Q`` lists with the scores of ``A``.
        lists_b: the same lists with the scores of ``B``.
        seed: of the bootstrap and the test.
        samples: resamples of each.
    """

    name_a: str
    name_b: str
    a: EvaluationResult
    b: EvaluationResult
    differences: dict[str, Difference]
    lists_a: Sequence[ScoredList]
    lists_b: Sequence[ScoredList]
    seed: int
    samples: int

    def per_query(self, metric: str) -> FloatArray:
        """``Q`` differences, 0 where no document is relevant."""
        found: FloatArray = self.b.per_query[metric] - self.a.per_query[metric]
        return np.where(np.abs(found) <= ROUNDING, 0.0, found)

    def largest(self, metric: str, count: int) -> tuple[list[int], list[int]]:
        """The queries on which ``B`` gains most and loses most, each at most ``count``.

        Returns:
            Indices of the queries, the largest change first.
        """
        change_Q = self.per_query(metric)
        order = np.argsort(-change_Q, kind="stable").tolist()
        gains = [q for q in order if change_Q[q] > 0][:count]
        losses = [q for q in reversed(order) if change_Q[q] < 0][:count]
        return gains, losses

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``json`` can write."""
        return {
            "a": self.name_a,
            "b": self.name_b,
            "queries": self.a.queries,
            "queries_without_positive": self.a.without_positive,
            "documents": self.a.documents,
            "difference_is": "b minus a",
            "interval": {"method": "paired percentile bootstrap", "level": 0.95},
            "test": {"method": "paired randomisation (sign flips), two-sided", "holm": "p_holm"},
            "seed": self.seed,
            "samples": self.samples,
            "tie_rate": {"a": self.a.tie_rate, "b": self.b.tie_rate},
            "metrics": {name: asdict(found) for name, found in self.differences.items()},
            "query_ids": list(self.a.query_ids),
            "has_positive": self.a.has_positive.tolist(),
            "per_query": {
                name: {
                    "a": self.a.per_query[name].tolist(),
                    "b": self.b.per_query[name].tolist(),
                }
                for name in self.differences
            },
        }

    def to_csv(self) -> str:
        """A row for each query: its id, and of each metric both values and the difference."""
        return "".join(self._csv_lines())

    def _csv_lines(self) -> Iterator[str]:
        table = csv.writer(_Echo(), lineterminator="\n")
        names = list(self.differences)
        head = [f"{name} {part}" for name in names for part in ("a", "b", "difference")]
        yield table.writerow(["query_id", "has_positive", *head])
        changes = {name: self.per_query(name) for name in names}
        for q, query_id in enumerate(self.a.query_ids):
            values = [
                value
                for name in names
                for value in (
                    self.a.per_query[name][q].item(),
                    self.b.per_query[name][q].item(),
                    changes[name][q].item(),
                )
            ]
            yield table.writerow([query_id, int(self.a.has_positive[q]), *values])

    def save(self, folder: str | Path) -> list[str]:
        """Write everything into a folder.

        Returns:
            The names of the files: ``comparison.json``, ``per_query.csv``, both rankings as TREC
            runs, and the labels as qrels where they are whole numbers.

        Raises:
            ConfigError: a file cannot be written.
            DataError: the ids cannot stand in a TREC file.
        """
        target = Path(folder)
        write_json(target / "comparison.json", self.to_dict())
        write_parts(target / "per_query.csv", self._csv_lines())
        write_trec_run(target / "run_a.trec", self.lists_a, "a")
        write_trec_run(target / "run_b.trec", self.lists_b, "b")
        names = ["comparison.json", "per_query.csv", "run_a.trec", "run_b.trec"]
        labels = (label for scored in self.lists_a for label in scored.example.labels)
        if all(float(label).is_integer() for label in labels):
            write_qrels(target / "qrels.txt", self.lists_a)
            names.append("qrels.txt")
        return names


def compare(
    lists_a: Sequence[ScoredList],
    lists_b: Sequence[ScoredList],
    names: Sequence[str],
    *,
    name_a: str = "A",
    name_b: str = "B",
    seed: int = 42,
    samples: int = SAMPLES,
) -> Comparison:
    """Compare two rankings of the same candidates.

    Args:
        lists_a: the lists with the scores of ``A``.
        lists_b: the lists of the same queries, in the same order, with the scores of ``B``.
        names: metrics such as ``["ndcg@10", "mrr"]``.
        name_a: what ``A`` is called.
        name_b: what ``B`` is called.
        seed: of the bootstrap and the test.
        samples: resamples of each, at least 1.

    Raises:
        ConfigError: a metric's name is unknown.
        DataError: the two do not rank the same documents, or see ``evaluation.evaluate_scores``.
    """
    if len(lists_a) != len(lists_b):
        raise DataError(
            f"A ranks {len(lists_a)} queries and B {len(lists_b)}; give both the same rows"
        )
    for one, two in zip(lists_a, lists_b, strict=True):
        same = one.example.query_id == two.example.query_id
        if not same or one.example.labels != two.example.labels:
            raise DataError(
                f"A has query {one.example.query_id!r} with {len(one.example.labels)} labels where "
                f"B has {two.example.query_id!r} with {len(two.example.labels)}, or the labels "
                "differ; give both the same rows"
            )
    a = evaluate_scores(lists_a, names, first_stage=False)
    b = evaluate_scores(lists_b, names, first_stage=False)
    found = {name: _difference(a.values(name), b.values(name), seed, samples) for name in a.metrics}
    corrected = holm([values["p_value"] for values in found.values()])
    differences = {
        name: Difference(**values, p_holm=p)
        for (name, values), p in zip(found.items(), corrected, strict=True)
    }
    return Comparison(name_a, name_b, a, b, differences, lists_a, lists_b, seed, samples)


def _difference(a_N: FloatArray, b_N: FloatArray, seed: int, samples: int) -> dict[str, Any]:
    change_N = b_N - a_N
    change_N = np.where(np.abs(change_N) <= ROUNDING, 0.0, change_N)
    low = high = None
    if change_N.size > 1:
        low, high = bootstrap_interval(change_N, seed, samples)
    p_value, exact = randomisation_test(change_N, seed, samples)
    return {
        "a": float(a_N.mean()),
        "b": float(b_N.mean()),
        "difference": float(change_N.mean()),
        "low": low,
        "high": high,
        "p_value": p_value,
        "exact": exact,
        "wins": int((change_N > 0).sum()),
        "losses": int((change_N < 0).sum()),
        "ties": int((change_N == 0).sum()),
    }


def randomisation_test(
    differences: npt.ArrayLike, seed: int, samples: int = SAMPLES
) -> tuple[float, bool]:
    """Two-sided paired randomisation test of a mean difference.

    If the two systems were one, each query's difference would have had either sign with the same
    chance. The p-value is the share of sign patterns whose mean is as far from 0 as the one that
    was found, or farther. Up to ``EXACT`` differences that are not 0 all patterns are computed; of
    more, ``samples`` are drawn, and the one that was found counts among them, so that no p-value is
    0.

    Source: Smucker, Allan & Carterette, "A Comparison of Statistical Significance Tests for
        Information Retrieval Evaluation", CIKM 2007.

    Args:
        differences: ``N`` finite per-query differences.
        seed: of the draws.
        samples: how many are drawn, at least 1.

    Returns:
        The p-value, and whether it is exact.

    Raises:
        ConfigError: ``samples`` is less than 1.
        DataError: the differences are not a flat list of finite numbers.
    """
    if samples < 1:
        raise ConfigError(f"samples is {samples}; it must be at least 1")
    values_N = np.asarray(differences, dtype=np.float64)
    if values_N.ndim != 1 or not values_N.size or not np.isfinite(values_N).all():
        raise DataError(
            f"the differences have shape {values_N.shape}; a test needs a flat list of finite ones"
        )
    # a difference of 0 is the same under both signs
    values_N = np.abs(values_N[values_N != 0])
    found = abs(float(np.asarray(differences, dtype=np.float64).sum()))
    # sums of the same numbers in another order differ in their last digits
    least = found - 1e-10 * float(values_N.sum())
    if values_N.size <= EXACT:
        patterns = np.arange(2**values_N.size)[:, None] >> np.arange(values_N.size) & 1
        sums_S = (2 * patterns - 1) @ values_N
        return float((np.abs(sums_S) >= least).mean()), True
    rng = np.random.default_rng(seed)
    rows = max(1, 2**20 // values_N.size)  # bounds the memory of the drawn signs
    extreme = 0
    for done in range(0, samples, rows):
        shape = (min(rows, samples - done), values_N.size)
        signs = 2 * rng.integers(2, size=shape, dtype=np.int8) - 1
        extreme += int((np.abs(signs @ values_N) >= least).sum())
    return (extreme + 1) / (samples + 1), False


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that hold for several tests together.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.

    Args:
        p_values: one for each test.

    Returns:
        The corrected ones, in the same order, at most 1.
    """
    corrected = [0.0] * len(p_values)
    greatest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = greatest
    return corrected


def first_stage_lists(examples: Sequence[Example]) -> ScoredRows:
    """The order in which the retriever found the candidates.

    Raises:
        DataError: a row has no scores of a first stage.
    """
    lists = ScoredRows(examples)
    without = 0
    where = ""
    for example in examples:
        if example.first_stage_scores is None:
            where = where or example.source or example.query_id
            without += 1
        lists.add(example.first_stage_scores or ())
    if without:
        raise DataError(
            f"{without} of {len(examples)} rows have no scores of a first stage (the first: "
            f"{where}); name a model or a run in place of {FIRST_STAGE}, or add the scores"
        )
    return lists


def run_lists(
    run: Mapping[str, Mapping[str, float]], examples: Sequence[Example], name: str = "the run"
) -> tuple[ScoredRows, dict[str, int]]:
    """Give examples the scores of a TREC run.

    A document that the run does not rank stands below all that it ranks, tied with the others of
    its kind: metrics take the expectation over their orders. So does every document of a query that
    the run leaves out.

    Args:
        run: query id -> document id -> score, of ``readers.read_trec_run``.
        examples: the rows; a document without an id is called ``{query id}-{index}``, as
            ``rankwright evaluate`` writes it.
        name: of the run, for messages.

    Returns:
        The lists, and how many ``queries without a ranking``, ``documents not ranked`` and ``ranked
        documents that are no candidates`` there were.

    Raises:
        DataError: the run ranks none of the documents.
    """
    lists = ScoredRows(examples)
    counts = {
        "queries without a ranking": 0,
        "documents not ranked": 0,
        "ranked documents that are no candidates": 0,
    }
    matched = 0
    for query_id, documents, _ in trec_ids(ScoredList(e, e.labels) for e in examples):
        ranked = run.get(query_id, {})
        candidates = set(documents)
        matched += sum(d in ranked for d in documents)
        counts["queries without a ranking"] += not ranked
        counts["documents not ranked"] += sum(d not in ranked for d in documents) if ranked else 0
        counts["ranked documents that are no candidates"] += sum(
            d not in candidates for d in ranked
        )
        below = math.nextafter(min(ranked.values(), default=0.0), -math.inf)
        lists.add([ranked.get(d, below) for d in documents])
    if not matched:
        query = next(iter(run), "none")
        raise DataError(
            f"{name} ranks no document of these rows: its first query is {query!r} with the "
            f"documents {', '.join(list(run.get(query, {}))[:3])!r}, the rows' first is "
            f"{_first_ids(examples)}; give the run of these rows"
        )
    return lists, {what: count for what, count in counts.items() if count}


def _first_ids(examples: Sequence[Example]) -> str:
    query_id, documents, _ = next(trec_ids([ScoredList(e, e.labels) for e in examples[:1]]))
    return f"{query_id!r} with {', '.join(documents[:3])!r}"


def judged_examples(
    qrels: Mapping[str, Mapping[str, float]], *runs: Mapping[str, Mapping[str, float]]
) -> list[Example]:
    """Rows without texts: for each judged query its judged documents and those of the runs.

    A document without a judgement has the label 0, as in trec_eval.

    Args:
        qrels: query id -> document id -> label.
        runs: as :func:`run_lists` takes them.
    """
    examples = []
    for query_id, judged in qrels.items():
        ids = dict.fromkeys(judged)
        for run in runs:
            ids |= dict.fromkeys(run.get(query_id, {}))
        documents = list(ids)
        examples.append(
            Example(
                query_id,
                documents,
                [judged.get(d, 0.0) for d in documents],
                query_id=query_id,
                document_ids=documents,
            )
        )
    return examples


def places(scores: Sequence[float]) -> list[str]:
    """Each document's rank as it is shown: ``3``, or ``3=`` where it is tied with others."""
    values = np.asarray(scores, np.float64)
    ordered = np.sort(values)
    above = values.size - np.searchsorted(ordered, values, side="right")
    equal = np.searchsorted(ordered, values, side="right") - np.searchsorted(ordered, values)
    return [f"{r + 1}{'=' if n > 1 else ''}" for r, n in zip(above, equal, strict=True)]


def differences_table(found: Comparison) -> Table:
    """A row for each metric."""
    title = f"{found.a.queries} queries, {found.a.documents} documents"
    if found.a.without_positive:
        title += f"; {found.a.without_positive} without a positive are left out"
    table = Table(title=title)
    table.add_column("")
    several = len(found.differences) > 1
    heads = ["A", "B", "B - A", "95 % interval", "p", *(["p, Holm"] if several else [])]
    for head in (*heads, "wins/losses/ties"):
        table.add_column(head, justify="right")
    for name, d in found.differences.items():
        interval = "-" if d.low is None else f"{d.low:+.4f} to {d.high:+.4f}"
        p = [_p(d.p_value), *([_p(d.p_holm)] if several else [])]
        counts = f"{d.wins}/{d.losses}/{d.ties}"
        table.add_row(
            name, f"{d.a:.4f}", f"{d.b:.4f}", f"{d.difference:+.4f}", interval, *p, counts
        )
    table.add_row("tie rate", f"{found.a.tie_rate:.4f}", f"{found.b.tie_rate:.4f}")
    return table


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1g}"


def side_by_side(found: Comparison, query: int, metric: str, top_k: int) -> Table:
    """Both rankings of one query: labels, ranks in the other list, and texts."""
    one, two = found.lists_a[query], found.lists_b[query]
    a, b = found.a.per_query[metric][query], found.b.per_query[metric][query]
    text = escape(" ".join(one.example.query.split()))
    title = f"[bold]{text[:200]}[/]\n{metric} {a:.4f} -> {b:.4f}"
    table = Table(title=title, title_justify="left", expand=True)
    for head, other in (("A", "B"), ("B", "A")):
        table.add_column(head, justify="right", no_wrap=True)
        table.add_column("label", justify="right", no_wrap=True)
        table.add_column(f"in {other}", justify="right", no_wrap=True)
        table.add_column("document", ratio=1, no_wrap=True, overflow="ellipsis")
    ranks_a, ranks_b = places(one.scores), places(two.scores)
    order_a = sorted(range(len(one.scores)), key=lambda i: -one.scores[i])[:top_k]
    order_b = sorted(range(len(two.scores)), key=lambda i: -two.scores[i])[:top_k]
    for i, j in zip(order_a, order_b, strict=True):
        table.add_row(
            *_cells(one.example, i, ranks_a, ranks_b), *_cells(two.example, j, ranks_b, ranks_a)
        )
    return table


def _cells(example: Example, i: int, here: list[str], there: list[str]) -> list[str]:
    document = escape(" ".join(example.documents[i].split())[:200])
    label = f"{example.labels[i]:g}"
    if example.labels[i] > 0:
        label, document = f"[green]{label}[/]", f"[green]{document}[/]"
    return [here[i], label, there[i], document]
