"""What planning reads of rows, without their texts.

Which rows are usable, how they are split, how many groups each gives and what those cost is decided
from a few numbers a row, so that a start reads no text where the rows lie on disk.

Legend: ``N`` rows, ``D`` documents of one row.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwright.types import Example

# rows that planning looks at together; of ten million it holds the numbers of these alone
BLOCK = 2**17


@dataclass(frozen=True, slots=True)
class Ragged:
    """``N`` lists of numbers in one array.

    Attributes:
        values: all numbers, row after row.
        offsets: where each row begins, and the end; ``N + 1`` of them.
    """

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Lay lists into one array."""
        return cls.flat(list(chain.from_iterable(rows)), [len(row) for row in rows])

    @classmethod
    def flat(cls, values: Sequence[int], sizes: Sequence[int]) -> Ragged:
        """Cut one list into rows of these sizes."""
        offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        return cls(np.array(values, np.int32), offsets)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The length of each row."""
        return np.diff(self.offsets)

    def sums(self) -> NDArray[np.int64]:
        """The sum of each row."""
        ends = np.concatenate(([0], self.values.cumsum(dtype=np.int64)))
        return ends[self.offsets[1:]] - ends[self.offsets[:-1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True, slots=True)
class Outline:
    """``N`` rows without their texts.

    Attributes:
        query_ids: their ids.
        positives: indices of the distinct documents above 0, see ``distinct``.
        negatives: indices of the other distinct documents.
        highest: the greatest label of each row.
        lowest: the least label of its distinct documents.
        taught: whether it brings a teacher's scores.
    """

    query_ids: Sequence[str]
    positives: Ragged
    negatives: Ragged
    highest: NDArray[np.float64]
    lowest: NDArray[np.float64]
    taught: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.highest)


class Rows(Sequence[Example]):
    """Examples that need not be in memory, with what planning reads of them apart."""

    @abstractmethod
    def outline(self) -> Outline:
        """The rows without their texts."""

    @abstractmethod
    def folds(self) -> NDArray[np.uint64]:
        """``fold`` of each query, as two numbers."""

    @abstractmethod
    def instructions(self) -> dict[str, tuple[int, int]]:
        """Each instruction of theirs: how many have it, and the first of them."""

    @abstractmethod
    def select(self, indices: NDArray[np.int64]) -> Rows:
        """These rows, in this order, without a copy."""


def outline(examples: Sequence[Example]) -> Outline:
    """Read rows' outline, or make it where they are plain examples."""
    if isinstance(examples, Rows):
        return examples.outline()
    sides = [distinct(example) for example in examples]
    return Outline(
        [example.query_id for example in examples],
        Ragged.of([positives for positives, _ in sides]),
        Ragged.of([negatives for _, negatives in sides]),
        np.array([highest(example) for example in examples], np.float64),
        np.array([lowest(e, *side) for e, side in zip(examples, sides, strict=True)], np.float64),
        np.array([example.teacher_scores is not None for example in examples], np.bool_),
    )


def blocks(examples: Sequence[Example]) -> Iterator[tuple[int, Sequence[Example]]]:
    """``BLOCK`` rows at a time, in their order, with the place of the first of them."""
    for start in range(0, len(examples), BLOCK):
        yield start, examples[start : start + BLOCK]


def instructions(examples: Sequence[Example]) -> dict[str, tuple[int, int]]:
    """Count the rows' own instructions.

    Returns:
        For each the number of rows that have it, and the index of the first.
    """
    found: dict[str, tuple[int, int]] = {}
    for start, part in blocks(examples):
        texts: dict[str, tuple[int, int]] = {}
        if isinstance(part, Rows):
            texts = part.instructions()
        else:
            for index, example in enumerate(part):
                if example.instruction:
                    count, first = texts.get(example.instruction, (0, index))
                    texts[example.instruction] = (count + 1, first)
        for text, (more, index) in texts.items():
            count, first = found.get(text, (0, start + index))
            found[text] = (count + more, first)
    return found


def folds(examples: Sequence[Example]) -> NDArray[np.uint64]:
    """``fold`` of each query, as two numbers, which are in the order of the bytes."""
    if isinstance(examples, Rows):
        return examples.folds()
    return as_numbers(b"".join(fold(example.query) for example in examples))


def as_numbers(keys: bytes | bytearray | memoryview) -> NDArray[np.uint64]:
    """Keys of 16 bytes, one behind the other, as two numbers each."""
    return np.frombuffer(keys, ">u8").reshape(-1, 2).astype(np.uint64)


def distinct_keys(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The distinct keys, in order, and which of them each is."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    first = np.ones(len(keys), np.bool_)
    first[1:] = (ordered[1:] != ordered[:-1]).any(1)
    which = np.empty(len(keys), np.int64)
    which[order] = np.cumsum(first) - 1
    return ordered[first], which


def select(examples: Sequence[Example], indices: ArrayLike) -> Sequence[Example]:
    """Take some of the rows, in the order of the indices."""
    if isinstance(examples, Rows):
        return examples.select(np.asarray(indices, np.int64))
    return [examples[i] for i in np.asarray(indices, np.int64).tolist()]


def distinct(example: Example) -> tuple[list[int], list[int]]:
    """Indices of positives and of negatives: each text once, under its best label."""
    best: dict[str, int] = {}
    for i, (document, label) in enumerate(zip(example.documents, example.labels, strict=True)):
        j = best.get(document)
        if j is None or label > example.labels[j]:
            best[document] = i
    indices = sorted(best.values())
    positives = [i for i in indices if example.labels[i] > 0]
    negatives = [i for i in indices if not example.labels[i] > 0]
    return positives, negatives


def highest(example: Example) -> float:
    """The greatest label; 0 where there is none."""
    return max(example.labels, default=0.0)


def lowest(example: Example, positives: Sequence[int], negatives: Sequence[int]) -> float:
    """The least label of the documents that ``distinct`` found; 0 where there is none."""
    return min((example.labels[i] for i in (*positives, *negatives)), default=0.0)


def fold(text: str) -> bytes:
    """A key for a text, case and white space aside."""
    # 16 bytes a text, so that comparing two large collections does not hold both twice
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()
