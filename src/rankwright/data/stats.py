"""What a dataset looks like, in numbers: for ``rankwright check`` and for the log of a run."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwright.data.outline import as_numbers, distinct_keys
from rankwright.types import Example

# soft labels may all be different, and only the most frequent ones are told
KEPT_LABELS = 10_000


@dataclass(frozen=True, slots=True)
class Spread:
    """The least, the middle and the greatest of some numbers, and their sum; 0 for none."""

    minimum: float
    median: float
    maximum: float
    total: float

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """Summarise numbers."""
        if not len(values):
            return cls(0, 0, 0, 0)
        numbers = np.asarray(values, np.int64)
        return cls(
            int(numbers.min()), float(np.median(numbers)), int(numbers.max()), int(numbers.sum())
        )


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
        repeated_rows: examples that are an earlier one again: same query, documents and labels.
        repeated_queries: examples whose query stands in an earlier one.
        repeated_documents: documents that stand earlier in their own example.
        contradictions: negatives whose text is also a positive of their example. The readers leave
            these out and count them, unless the two have ids that differ.
        contradictions_across: negatives whose text is a positive of another example of the same
            query.
        graded: whether some label is neither 0 nor 1.
        labels: the different labels, with their counts, the most frequent ten of the first
            ``KEPT_LABELS``.
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
    repeated_rows: int
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
    """Count what a dataset holds, with some numbers a row in memory and no texts.

    Args:
        examples: as a reader gave them.

    Returns:
        The counts.
    """
    documents, positives, negatives = array("q"), array("q"), array("q")
    query_characters, document_characters = array("q"), array("q")
    queries, rows = bytearray(), bytearray()
    contradictions = repeated_documents = first_stage = teacher = 0
    labels: Counter[float] = Counter()
    instructions: Counter[str] = Counter()
    for example in examples:
        positive = sum(label > 0 for label in example.labels)
        documents.append(len(example.documents))
        positives.append(positive)
        negatives.append(len(example.documents) - positive)
        query_characters.append(len(example.query))
        document_characters.extend(map(len, example.documents))
        queries += _digest([example.query])
        rows += _digest(
            [example.query, *example.documents, *(repr(y + 0.0) for y in example.labels)]
        )
        for label in example.labels:
            if label in labels or len(labels) < KEPT_LABELS:
                labels[label] += 1
        relevant = set(_relevant(example))
        contradictions += sum(text in relevant for text in _irrelevant(example))
        repeated_documents += len(example.documents) - len(set(example.documents))
        first_stage += example.first_stage_scores is not None
        teacher += example.teacher_scores is not None
        if example.instruction:
            instructions[example.instruction] += 1
    different_queries, query_N = distinct_keys(as_numbers(queries))
    different_rows, _ = distinct_keys(as_numbers(rows))
    repeated_N = np.flatnonzero(np.bincount(query_N)[query_N] > 1)
    return DatasetStatistics(
        rows=len(examples),
        documents=Spread.of(documents),
        positives=Spread.of(positives),
        negatives=Spread.of(negatives),
        without_positive=positives.count(0),
        without_negative=negatives.count(0),
        repeated_rows=len(examples) - len(different_rows),
        repeated_queries=len(examples) - len(different_queries),
        repeated_documents=repeated_documents,
        contradictions=contradictions,
        contradictions_across=_contradictions_across(examples, repeated_N),
        graded=any(label not in (0.0, 1.0) for label in labels),
        labels=tuple(labels.most_common(10)),
        first_stage=first_stage,
        teacher=teacher,
        instructions=tuple(instructions.most_common()),
        query_characters=Spread.of(query_characters),
        document_characters=Spread.of(document_characters),
    )


def _relevant(example: Example) -> Iterator[str]:
    return (d for d, y in zip(example.documents, example.labels, strict=True) if y > 0)


def _irrelevant(example: Example) -> Iterator[str]:
    return (d for d, y in zip(example.documents, example.labels, strict=True) if not y > 0)


def _contradictions_across(examples: Sequence[Example], places: NDArray[np.int64]) -> int:
    """Negatives that are a positive of another of these rows of the same query, not of their own.

    Args:
        examples: all rows.
        places: those whose query stands in several.
    """
    positives_of: dict[str, set[str]] = {}
    for place in places.tolist():
        example = examples[place]
        positives_of.setdefault(example.query, set()).update(_relevant(example))
    found = 0
    for place in places.tolist():
        example = examples[place]
        # a row's own contradictions are counted by themselves
        elsewhere = positives_of[example.query].difference(_relevant(example))
        found += sum(text in elsewhere for text in _irrelevant(example))
    return found


def _digest(texts: list[str]) -> bytes:
    """16 bytes that stand for some texts."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
