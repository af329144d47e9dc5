"""What a dataset looks like, in numbers: for ``rankwright check`` and for the log of a run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rankwright.types import Example


@dataclass(frozen=True, slots=True)
class Spread:
    """The least, the middle and the greatest of some numbers, and their sum; 0 for none."""

    minimum: float
    median: float
    maximum: float
    total: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise numbers."""
        if not values:
            return cls(0, 0, 0, 0)
        return cls(min(values), statistics.median(values), max(values), sum(values))


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """The counts of one dataset. A document is positive when its label is above 0.

    Attributes:
        rows: the number of examples.
        documents: candidates of an example.
        positives: positives of an example.
        negatives: negatives of an example.
        without_positive: examples that hold none.
        without_negative: examples that hold none.
        repeated_queries: examples whose query stands in an earlier one.
        repeated_documents: documents that stand earlier in their own example.
        contradictions: negatives whose text is also a positive of their example. The readers leave
            these out and count them, unless the two have ids that differ.
        contradictions_across: negatives whose text is a positive of another example of the same
            query.
        graded: whether some label is neither 0 nor 1.
        labels: the different labels, with their counts, the most frequent ten.
        first_stage: examples with scores of a first stage.
        teacher: examples with scores of a teacher.
        instructions: the different instructions, with the rows that have them, the most frequent
            first; rows without one are left out.
        query_characters: lengths of the queries.
        document_characters: lengths of the documents.
    """

    rows: int
    documents: Spread
    positives: Spread
    negatives: Spread
    without_positive: int
    without_negative: int
    repeated_queries: int
    repeated_documents: int
    contradictions: int
    contradictions_across: int
    graded: bool
    labels: tuple[tuple[float, int], ...]
    first_stage: int
    teacher: int
    instructions: tuple[tuple[str, int], ...]
    query_characters: Spread
    document_characters: Spread


def dataset_statistics(examples: Sequence[Example]) -> DatasetStatistics:
    """Count what a dataset holds.

    Args:
        examples: as a reader gave them.

    Returns:
        The counts.
    """
    positives_of: dict[str, set[str]] = {}
    positives: list[int] = []
    contradictions = repeated_documents = 0
    labels: Counter[float] = Counter()
    for example in examples:
        labels.update(example.labels)
        pairs = list(zip(example.documents, example.labels, strict=True))
        relevant = {document for document, label in pairs if label > 0}
        positives_of.setdefault(example.query, set()).update(relevant)
        positives.append(sum(label > 0 for label in example.labels))
        contradictions += sum(not label > 0 and document in relevant for document, label in pairs)
        repeated_documents += len(pairs) - len(set(example.documents))
    # of the queries that stand in several rows, since a row's own contradictions are counted above
    any_contradictions = sum(
        not label > 0 and document in positives_of[example.query]
        for example in examples
        for document, label in zip(example.documents, example.labels, strict=True)
    )
    counts = [len(example.documents) for example in examples]
    negatives = [count - positive for count, positive in zip(counts, positives, strict=True)]
    return DatasetStatistics(
        rows=len(examples),
        documents=Spread.of(counts),
        positives=Spread.of(positives),
        negatives=Spread.of(negatives),
        without_positive=positives.count(0),
        without_negative=negatives.count(0),
        repeated_queries=len(examples) - len(positives_of),
        repeated_documents=repeated_documents,
        contradictions=contradictions,
        contradictions_across=any_contradictions - contradictions,
        graded=any(label not in (0.0, 1.0) for label in labels),
        labels=tuple(labels.most_common(10)),
        first_stage=sum(example.first_stage_scores is not None for example in examples),
        teacher=sum(example.teacher_scores is not None for example in examples),
        instructions=tuple(Counter(e.instruction for e in examples if e.instruction).most_common()),
        query_characters=Spread.of([len(example.query) for example in examples]),
        document_characters=Spread.of(
            [len(document) for example in examples for document in example.documents]
        ),
    )
