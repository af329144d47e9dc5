"""Examples and scores become per-query metrics, tables and TREC files.

Evaluation reads every query's full candidate list: nothing is sampled. Means are taken over the
queries that hold a relevant document (a label above 0); how many do not is reported beside them.

Where a row says which relevant documents its candidates lack (``Example.missed``, from the
judgements of a BEIR folder), these count as not found: recall and MAP divide by them too, and
NDCG's ideal holds them. The figures are then those of trec_eval on the complete judgements, which
papers and leaderboards quote.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from rich.table import Table

from rankwright.calibration import Calibration, figures, find_threshold, fit, held_out, targets
from rankwright.errors import ConfigError, DataError
from rankwright.files import replacing_text
from rankwright.metrics import (
    BoolArray,
    FloatArray,
    IntArray,
    has_positive,
    mean_metrics,
    parse_metric,
    parse_metrics,
    per_query_metrics,
    tied_pairs,
)
from rankwright.types import Example, ScoredList

#: Called with the number of examples finished since its last call.
Progress = Callable[[int], None]

# documents whose metrics are computed at a time
MEASURED_DOCUMENTS = 2**14

_JSON = json.JSONEncoder(ensure_ascii=False, indent=1, allow_nan=False)


class Scorer(Protocol):
    """What :func:`evaluate` needs of a reranker."""

    def score_examples(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[ScoredList]:
        """Score every document of every example, in the order of the examples."""
        ...


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The metrics of one order of the candidates and, where it is known, of the first stage's.

    Attributes:
        metrics: name -> mean over the queries with a relevant document, in [0, 1].
        per_query: name -> ``Q`` values; 0 where no document is relevant.
        query_ids: the ``Q`` ids, in the order of ``per_query``; the index where a row has none.
        has_positive: ``Q`` flags: which queries the means are taken over.
        tie_rate: share of the pairs to be told apart that are not, see :func:`metrics.tie_rate`.
        documents: all documents of all queries.
        first_stage_metrics: the same means for the retriever's scores; None unless every row has
            them.
        first_stage_per_query: the same values for the retriever's scores, or None.
        first_stage_tie_rate: the same rate for the retriever's scores, or None.
        without_first_stage: queries without first-stage scores; 0 where the comparison was not
            asked for.
        missed: relevant documents that are no candidates and count as not found.
    """

    metrics: dict[str, float]
    per_query: dict[str, FloatArray]
    query_ids: tuple[str, ...]
    has_positive: BoolArray
    tie_rate: float
    documents: int
    first_stage_metrics: dict[str, float] | None = None
    first_stage_per_query: dict[str, FloatArray] | None = None
    first_stage_tie_rate: float | None = None
    without_first_stage: int = 0
    missed: int = 0

    @property
    def queries(self) -> int:
        """``Q``."""
        return len(self.query_ids)

    @property
    def without_positive(self) -> int:
        """Queries without a relevant document, which the means leave out."""
        return int((~self.has_positive).sum())

    @property
    def row(self) -> dict[str, float]:
        """The means and the tie rate, as a row of :func:`metrics_table`."""
        return {**self.metrics, "tie rate": self.tie_rate}

    @property
    def first_stage_row(self) -> dict[str, float] | None:
        """The first stage's means and tie rate, or None."""
        if self.first_stage_metrics is None or self.first_stage_tie_rate is None:
            return None
        return {**self.first_stage_metrics, "tie rate": self.first_stage_tie_rate}

    def values(self, name: str) -> FloatArray:
        """The values that the mean of ``name`` is taken over, for a bootstrap to draw from."""
        return self.per_query[str(parse_metric(name))][self.has_positive]

    def gains(self, name: str) -> FloatArray | None:
        """Value minus first-stage value for the queries of :meth:`values`; None without one."""
        if self.first_stage_per_query is None:
            return None
        first_stage_Q = self.first_stage_per_query[str(parse_metric(name))]
        return self.values(name) - first_stage_Q[self.has_positive]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``json`` can write."""
        first_stage = None
        if self.first_stage_per_query is not None:
            first_stage = {
                "metrics": self.first_stage_metrics,
                "tie_rate": self.first_stage_tie_rate,
                "per_query": _plain(self.first_stage_per_query),
            }
        return {
            "metrics": self.metrics,
            "tie_rate": self.tie_rate,
            "queries": self.queries,
            "queries_without_positive": self.without_positive,
            "queries_without_first_stage": self.without_first_stage,
            "documents": self.documents,
            "missed": self.missed,
            "query_ids": list(self.query_ids),
            "has_positive": self.has_positive.tolist(),
            "per_query": _plain(self.per_query),
            "first_stage": first_stage,
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return _JSON.encode(self.to_dict())

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_json` to ``path``; missing folders are made."""
        write_json(path, self.to_dict())


def _plain(per_query: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    return {name: values_Q.tolist() for name, values_Q in per_query.items()}


def evaluate_scores(
    lists: Iterable[ScoredList], names: Sequence[str], *, first_stage: bool = True
) -> EvaluationResult:
    """Compute the metrics of scored candidate lists.

    Args:
        lists: one per query, each with a score per document.
        names: metrics such as ``["ndcg@10", "mrr"]``.
        first_stage: also measure the rows' ``first_stage_scores``, if every row has them.

    Returns:
        The metrics, per query and as means.

    Raises:
        ConfigError: a metric's name is unknown.
        DataError: there is no list, a list is empty or its lengths differ, a score is not finite,
            or no query has a relevant document.
    """
    found = Evaluation(names, first_stage=first_stage)
    for scored in lists:
        found.add(scored)
    return found.result()


class Evaluation:
    """``evaluate_scores`` of lists that come one after the other: numbers stay, texts do not.

    Args:
        names: see there.
        first_stage: see there.
    """

    def __init__(self, names: Sequence[str], *, first_stage: bool = True) -> None:
        self._names = names
        self._first_stage = first_stage
        self._waiting: list[ScoredList] = []
        self._waiting_ids: list[str] = []
        self._waiting_documents = 0
        self._query_ids: list[str] = []
        self._kept: list[BoolArray] = []
        self._own = _Measured(names)
        self._before = _Measured(names)
        self._before_error: DataError | None = None
        self._documents = self._missed = self._without = 0

    def add(self, scored: ScoredList) -> None:
        """Take the next query's list.

        Raises:
            ConfigError: see ``evaluate_scores``.
            DataError: see there.
        """
        query_id = _query_id(scored.example, len(self._query_ids))
        _check_lengths(query_id, scored)
        self._query_ids.append(query_id)
        self._waiting_ids.append(query_id)
        self._waiting.append(scored)
        self._waiting_documents += len(scored.scores)
        if self._waiting_documents >= MEASURED_DOCUMENTS:
            self._measure()

    def result(self) -> EvaluationResult:
        """The metrics of all lists.

        Raises:
            ConfigError: see ``evaluate_scores``.
            DataError: see there.
        """
        if not self._query_ids:
            raise DataError(
                "there are no queries to evaluate; give at least one with its candidates"
            )
        self._measure()
        kept_Q = np.concatenate(self._kept)
        means, per_query, ties = self._own.result(kept_Q)
        before = None
        if self._first_stage and not self._without:
            if self._before_error is not None:
                raise self._before_error
            before = self._before.result(kept_Q)
        return EvaluationResult(
            metrics=means,
            per_query=per_query,
            query_ids=tuple(self._query_ids),
            has_positive=kept_Q,
            tie_rate=ties,
            documents=self._documents,
            first_stage_metrics=before[0] if before else None,
            first_stage_per_query=before[1] if before else None,
            first_stage_tie_rate=before[2] if before else None,
            without_first_stage=self._without,
            missed=self._missed,
        )

    def _measure(self) -> None:
        """Measure what waits, all of it at a time."""
        lists, query_ids = self._waiting, self._waiting_ids
        self._waiting, self._waiting_ids, self._waiting_documents = [], [], 0
        if not lists:
            return
        labels_P = np.concatenate([np.asarray(s.example.labels, np.float64) for s in lists])
        scores_P = np.concatenate([np.asarray(s.scores, np.float64) for s in lists])
        offsets_Q = np.cumsum([0] + [len(s.scores) for s in lists])
        kept_Q = has_positive(labels_P, offsets_Q, query_ids=query_ids)
        kept_Q |= np.array([any(y > 0 for y in _missed(s.example)) for s in lists], bool)
        found_Q = _found_shares(lists, self._names)
        self._own.add(scores_P, labels_P, offsets_Q, found_Q, query_ids)
        self._kept.append(kept_Q)
        self._documents += len(scores_P)
        self._missed += sum(y > 0 for s in lists for y in _missed(s.example))
        if not self._first_stage:
            return
        self._without += sum(s.example.first_stage_scores is None for s in lists)
        if self._without or self._before_error is not None:
            return
        retrieved_P = np.concatenate(
            [np.asarray(s.example.first_stage_scores, np.float64) for s in lists]
        )
        try:
            self._before.add(retrieved_P, labels_P, offsets_Q, found_Q, query_ids)
        except DataError as error:
            # said only if every row has such scores, which is known in the end
            self._before_error = DataError(f"in the first-stage scores: {error}")


class _Measured:
    """Metrics of one kind of scores."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._values: dict[str, list[FloatArray]] = {}
        self._tied = self._pairs = 0

    def add(
        self,
        scores_P: FloatArray,
        labels_P: FloatArray,
        offsets_Q: IntArray,
        found_Q: dict[str, FloatArray],
        query_ids: Sequence[str],
    ) -> None:
        values = per_query_metrics(scores_P, labels_P, offsets_Q, self._names, query_ids=query_ids)
        for name, values_Q in values.items():
            self._values.setdefault(name, []).append(values_Q * found_Q[name])
        tied, pairs = tied_pairs(scores_P, labels_P, offsets_Q)
        self._tied += tied
        self._pairs += pairs

    def result(self, kept_Q: BoolArray) -> tuple[dict[str, float], dict[str, FloatArray], float]:
        """Means, values per query, tie rate."""
        per_query = {name: np.concatenate(parts) for name, parts in self._values.items()}
        ties = self._tied / self._pairs if self._pairs else 0.0
        return mean_metrics(per_query, kept_Q), per_query, ties


def _missed(example: Example) -> list[float]:
    return list((example.missed or {}).values())


def _found_shares(lists: Sequence[ScoredList], names: Sequence[str]) -> dict[str, FloatArray]:
    """What each query's value is to be multiplied by, since it was divided by the list's share.

    Recall and MAP are sums over the relevant documents divided by their number, NDCG is one divided
    by the ideal's gain: neither divisor depends on the order, so the quotient of the list's divisor
    and the complete one is exact, for tied scores too.
    """
    shares = {str(metric): np.ones(len(lists)) for metric in parse_metrics(names)}
    for metric in parse_metrics(names):
        if metric.name not in ("ndcg", "recall", "map"):
            continue
        for index, scored in enumerate(lists):
            if scored.example.missed:
                listed = [float(y) for y in scored.example.labels if y > 0]
                judged = listed + [y for y in _missed(scored.example) if y > 0]
                if metric.name == "ndcg":
                    share = _ideal(listed, metric.k) / (_ideal(judged, metric.k) or 1.0)
                else:
                    share = len(listed) / (len(judged) or 1)
                shares[str(metric)][index] = share
    return shares


def _ideal(labels: Sequence[float], k: int | None) -> float:
    """The gain of the best order of the first ``k`` ranks."""
    best = sorted(labels, reverse=True)[:k]
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, 1))


def evaluate(
    reranker: Scorer,
    examples: Sequence[Example],
    names: Sequence[str],
    *,
    progress: Progress | None = None,
    first_stage: bool = True,
) -> EvaluationResult:
    """Score every candidate of every example and compute the metrics.

    Args:
        reranker: anything with ``score_examples``.
        examples: complete examples; nothing is sampled.
        names: metrics such as ``["ndcg@10", "mrr"]``; checked before anything is scored.
        progress: called with the number of examples finished since its last call.
        first_stage: also measure the rows' ``first_stage_scores``, if every row has them.

    Returns:
        The metrics, per query and as means.

    Raises:
        ConfigError: a metric's name is unknown.
        DataError: see :func:`evaluate_scores`.
    """
    parse_metrics(names)  # a typo must not cost an hour of scoring
    return evaluate_scores(
        reranker.score_examples(examples, progress=progress), names, first_stage=first_stage
    )


def calibrate_lists(
    lists: Iterable[ScoredList],
    method: str,
    goals: Sequence[tuple[str, float]] = (),
    *,
    folds: int = 5,
    settings: Mapping[str, Any] | None = None,
) -> Calibration:
    """Fit probabilities and thresholds to scored candidate lists.

    Args:
        lists: one per query, of rows that the model was not trained on; only their numbers are
            kept.
        method: a name in ``calibration.METHODS``.
        goals: wanted thresholds, such as ``("precision", 0.9)``.
        folds: parts of the queries for the held-out figures.
        settings: ``Reranker.settings`` that gave the scores, kept in the record.

    Returns:
        The calibration. Its ``record`` holds ``queries``, ``documents`` and ``relevant``; the
        figures ``before`` (plain sigmoid), ``after`` (on the same rows) and ``held_out`` (None
        where ``not_held_out`` says why); and whether the scores were ``separated``.

    Raises:
        ConfigError: the method is unknown, or a goal is out of its range.
        DataError: nothing can be fitted, or a goal is out of reach.
    """
    scores, labels, sizes = array("d"), array("d"), array("q")
    for scored in lists:
        scores.extend(scored.scores)
        labels.extend(scored.example.labels)
        sizes.append(len(scored.scores))
    scores_P, labels_P = np.array(scores), np.array(labels)
    queries_P = np.repeat(np.arange(len(sizes)), np.array(sizes))
    fitted = fit(method, scores_P, labels_P)
    thresholds = tuple(find_threshold(name, goal, scores_P, labels_P) for name, goal in goals)
    found: dict[str, Any] | None = None
    reason = ""
    try:
        found = held_out(method, scores_P, labels_P, queries_P, folds=folds, goals=goals)
    except DataError as error:
        reason = str(error)
    record = {
        **fitted.record,
        "queries": len(sizes),
        "documents": len(scores_P),
        "relevant": float(targets(labels_P).sum()),
        "before": figures(scores_P, labels_P),
        "after": figures(fitted.logits(scores_P), labels_P),
        "held_out": found,
        "not_held_out": reason,
        "settings": dict(settings or {}),
    }
    return replace(fitted, thresholds=thresholds, record=record)


def _query_id(example: Example, index: int) -> str:
    return example.query_id or str(index)


def _document_ids(example: Example, query_id: str) -> list[str]:
    if example.document_ids is None:
        return [f"{query_id}-{i}" for i in range(len(example.documents))]
    return example.document_ids


def _check_lengths(query_id: str, scored: ScoredList) -> None:
    """Refuse an empty list and lists of different lengths, naming the query."""
    example = scored.example
    count = len(example.documents)
    where = f" ({example.source})" if example.source else ""
    if not count:
        raise DataError(f"query {query_id!r}{where} has no documents; leave it out")
    for what, values in (
        ("scores", scored.scores),
        ("labels", example.labels),
        ("first-stage scores", example.first_stage_scores),
        ("document ids", example.document_ids),
    ):
        if values is not None and len(values) != count:
            raise DataError(
                f"query {query_id!r}{where} has {count} documents and {len(values)} {what}; "
                "give one for each document"
            )


def _token(text: str, what: str) -> str:
    """One field of a TREC line: white space and control characters become %XX, the rest stays."""
    if not text:
        raise DataError(f"a {what} is empty; a TREC file needs one in every line; give it an id")
    if text.isprintable() and " " not in text:
        return text  # no copy: a run holds millions of them
    return "".join(
        quote(char, safe="") if char.isspace() or not char.isprintable() else char for char in text
    )


class TrecIds:
    """Query and document ids as a TREC file spells them, list after list."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._count = 0

    def of(self, scored: ScoredList) -> tuple[str, list[str]]:
        """Query id and document ids of the next list.

        Raises:
            DataError: lengths differ, or an id is empty or occurs twice.
        """
        raw_id = _query_id(scored.example, self._count)
        self._count += 1
        _check_lengths(raw_id, scored)
        query_id = _token(raw_id, "query id")
        if query_id in self._seen:
            raise DataError(
                f"query id {query_id!r} occurs twice; a TREC file would merge the two; "
                "give each query its own query_id"
            )
        self._seen.add(query_id)
        documents = [_token(d, "document id") for d in _document_ids(scored.example, raw_id)]
        if len(set(documents)) != len(documents):
            twice = next(d for i, d in enumerate(documents) if d in documents[:i])
            raise DataError(
                f"query {query_id!r} lists document id {twice!r} twice; "
                "a TREC file allows it once; remove the duplicate"
            )
        return query_id, documents


def trec_ids(
    lists: Iterable[ScoredList],
) -> Iterator[tuple[str, list[str], ScoredList]]:
    """Yield query id, document ids and list, as a TREC file spells them.

    Raises:
        DataError: see ``TrecIds.of``.
    """
    ids = TrecIds()
    for scored in lists:
        yield *ids.of(scored), scored


def write_trec_run(path: str | Path, lists: Sequence[ScoredList], tag: str = "rankwright") -> None:
    """Write a TREC run: ``query Q0 document rank score tag``, one line per document.

    Documents stand by falling score, and tied ones by falling document id: the order that trec_eval
    makes of them whatever the file says, so that tools which trust the rank column see the same one
    (and not the order of the source, which often puts the positives first). Scores are written in
    full. A row without a query id is named by its index, a document without one ``{query
    id}-{index}``. White space and control characters in ids become ``%XX``, here as in
    :func:`write_qrels`.

    Args:
        path: the file; missing folders are made, an older file is replaced.
        lists: one per query.
        tag: the name of the run.

    Raises:
        ConfigError: the file cannot be written.
        DataError: lengths differ, a score is not finite, or an id is empty or occurs twice.
    """
    run_tag = _token(tag, "run tag")
    write_parts(path, (_run_text(*found, run_tag) for found in trec_ids(lists)))


def _run_text(query_id: str, documents: list[str], scored: ScoredList, tag: str) -> str:
    """A query's lines of a run."""
    if not all(math.isfinite(score) for score in scored.scores):
        raise DataError(
            f"query {query_id!r} has a score that is NaN or infinite; scores must be finite; "
            "look for an overflow in the model or its training"
        )
    ranked = sorted(zip(map(float, scored.scores), documents, strict=True), reverse=True)
    return "".join(
        f"{query_id} Q0 {document} {rank} {score!r} {tag}\n"
        for rank, (score, document) in enumerate(ranked, start=1)
    )


def read_qrels(path: str | Path) -> dict[str, dict[str, float]]:
    """Read TREC judgements into query id -> document id -> label; ids stay as they are written.

    Raises:
        DataError: the file cannot be read, or a line is no judgement (file and line are named).
    """
    qrels: dict[str, dict[str, float]] = {}
    for number, fields in _trec_lines(path, "judgements"):
        if len(fields) != 4:
            raise DataError(
                f"{path}:{number} has {len(fields)} columns; TREC judgements have 4: "
                "query 0 document label"
            )
        query_id, _, document, text = fields
        documents = qrels.setdefault(query_id, {})
        if document in documents:
            raise DataError(
                f"{path}:{number} judges document {document!r} of query {query_id!r} again; "
                "each may occur once; remove one of the lines"
            )
        documents[document] = _number(text, f"{path}:{number} has the label")
    if not qrels:
        raise DataError(f"{path} holds no judgement; give TREC qrels")
    return qrels


def _trec_lines(path: str | Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line that is not empty."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the {what} {path} ({_reason(error)}); give a TREC file in UTF-8"
        ) from None
    for number, line in enumerate(lines, start=1):
        if fields := line.split():
            yield number, fields


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{what} {text!r}; it must be a finite number")
    return value


def write_qrels(path: str | Path, lists: Sequence[ScoredList]) -> None:
    """Write the labels as TREC judgements, ``query 0 document label``, those missed included.

    Ids are spelt as in :func:`write_trec_run`.

    Raises:
        ConfigError: the file cannot be written.
        DataError: a label is no integer (trec_eval would cut 0.9 to 0), or as
            :func:`write_trec_run`.
    """
    write_parts(path, (_qrels_text(*found) for found in trec_ids(lists)))


def _qrels_text(query_id: str, documents: list[str], scored: ScoredList) -> str:
    """A query's judgements."""
    lines = []
    for document, label in zip(documents, scored.example.labels, strict=True):
        if not float(label).is_integer():
            raise DataError(
                f"query {query_id!r} has the label {label}; TREC judgements are integers; "
                "scale or round soft labels first"
            )
        lines.append(f"{query_id} 0 {document} {int(label)}\n")
    for document, label in (scored.example.missed or {}).items():
        lines.append(f"{query_id} 0 {_token(document, 'document id')} {int(label)}\n")
    return "".join(lines)


class TrecFiles:
    """``run.trec`` and ``qrels.txt`` of lists that come one after the other.

    What cannot be written as TREC does not keep the lists from being measured: it is an error in
    the end.

    Args:
        folder: where they are written, once all lists are there.
        run: a file for the run until then.
        qrels: one for the judgements.
    """

    def __init__(self, folder: Path, run: IO[str], qrels: IO[str]) -> None:
        self._folder = folder
        self._ids = TrecIds()
        self._run = run
        self._qrels = qrels
        self._whole_labels = True
        self._error: DataError | None = None

    @classmethod
    @contextmanager
    def into(cls, folder: Path) -> Iterator[Self]:
        """Files that are kept in the folder without a name until they are written."""
        options: dict[str, Any] = {"encoding": "utf-8", "newline": "\n", "dir": folder}
        with (
            tempfile.TemporaryFile("w+", **options) as run,
            tempfile.TemporaryFile("w+", **options) as qrels,
        ):
            yield cls(folder, run, qrels)

    def add(self, scored: ScoredList) -> None:
        """Take the next query's list."""
        if self._error is not None:
            return
        try:
            query_id, documents = self._ids.of(scored)
            self._run.write(_run_text(query_id, documents, scored, "rankwright"))
            self._whole_labels &= all(float(y).is_integer() for y in scored.example.labels)
            if self._whole_labels:
                self._qrels.write(_qrels_text(query_id, documents, scored))
        except DataError as error:
            self._error = error

    def write(self) -> list[str]:
        """Write the files.

        Returns:
            Their names; without the judgements where a label is no whole number.

        Raises:
            ConfigError: one cannot be written.
            DataError: see ``write_trec_run``.
        """
        if self._error is not None:
            raise self._error
        files = {"run.trec": self._run} | ({"qrels.txt": self._qrels} if self._whole_labels else {})
        for name, file in files.items():
            file.seek(0)
            write_parts(self._folder / name, file)
        return list(files)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8"


def write_text(path: str | Path, text: str) -> None:
    """Write a file that takes its name only when it is whole; missing folders are made.

    Raises:
        ConfigError: it cannot be written.
    """
    write_parts(path, [text])


def write_json(path: str | Path, value: Any) -> None:
    """:func:`write_text` of JSON, piece by piece: a million queries are some hundred megabytes."""
    write_parts(path, itertools.chain(_JSON.iterencode(value), ("\n",)))


def write_parts(path: str | Path, parts: Iterable[str]) -> None:
    """:func:`write_text` of a text in parts."""
    try:
        with replacing_text(Path(path)) as file:
            file.writelines(parts)
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({_reason(error)}); choose another path") from None


def metrics_table(rows: Mapping[str, Mapping[str, float]], title: str | None = None) -> Table:
    """Lay out one row per order ("first stage", "after training") and one column per metric.

    Args:
        rows: label -> metric -> value; columns keep the order in which they first occur, and a
            value that a row lacks is shown as a dash.
        title: a line above the table.

    Returns:
        A table for ``rich.print``, values with 4 decimals.
    """
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    table = Table(title=title)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for label, values in rows.items():
        table.add_row(label, *(f"{values[n]:.4f}" if n in values else "-" for n in names))
    return table


def bootstrap_interval(
    values: npt.ArrayLike, seed: int, samples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron & Tibshirani 1993, chapter 13).

    For a paired comparison of two systems, give the per-query differences, such as
    :meth:`EvaluationResult.gains`.

    Args:
        values: at least 2 finite values, one per query or per seed.
        seed: fixes the draws, so that the same values give the same interval.
        samples: number of resampled means, at least 1.
        level: share of the resampled means inside, in (0, 1).

    Returns:
        The lower and the upper end.

    Raises:
        ConfigError: ``samples`` or ``level`` is out of its range.
        DataError: there are fewer than 2 values, or one is not finite.
    """
    if samples < 1 or not 0 < level < 1:
        raise ConfigError(
            f"samples is {samples} and level {level}; "
            "samples must be at least 1 and level between 0 and 1"
        )
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all():
        raise DataError(
            f"the values have shape {array.shape}; an interval needs a flat list of at least 2 "
            "finite values"
        )
    rng = np.random.default_rng(seed)
    rows = max(1, 2**20 // array.size)  # bounds the memory of the drawn indices
    means = np.concatenate(
        [
            array[rng.integers(array.size, size=(min(rows, samples - done), array.size))].mean(1)
            for done in range(0, samples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
