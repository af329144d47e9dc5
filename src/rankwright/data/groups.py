"""From complete examples to the groups of one epoch, and from one dataset to two.

Every choice here depends only on a seed, an epoch and a query, never on the order of the rows, on
the rank, the worker or the step: a resumed or differently distributed run sees the same groups.

Legend: ``D`` documents of one query.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rankwright.errors import ConfigError, DataError
from rankwright.types import Example, Group

GroupMode = Literal["positive", "all"]
GROUP_MODES: tuple[GroupMode, ...] = ("positive", "all")

NO_POSITIVE = "no positive document"
NO_NEGATIVE = "no negative document"


def _generator(key: str) -> np.random.Generator:
    # a keyed hash, because Python's own hash() differs from one process to the next
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _distinct(example: Example) -> tuple[list[int], list[int]]:
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


def sample_groups(
    example: Example,
    *,
    seed: int,
    epoch: int,
    max_positives: int = 1,
    max_negatives: int = 7,
    mode: GroupMode = "positive",
    keep_unpaired: bool = False,
) -> list[Group]:
    """Choose the groups that one example contributes to one epoch.

    A document is positive when its label is above 0. A text that stands in the row more than once
    is used once, under its best label, so no group holds a text twice.

    Args:
        example: the complete example.
        seed: the run's seed.
        epoch: the epoch, counted from 0.
        max_positives: with ``mode="positive"``, how many positives are drawn, each for a group of
            its own.
        max_negatives: with ``mode="positive"``, how many negatives are drawn for each group,
            without replacement and anew for each group. 0 takes none.
        mode: ``positive`` for groups of one positive and its negatives, as in ms-swift; ``all``
            for one group of every document, whatever the two limits say.
        keep_unpaired: also return groups of positives alone and of negatives alone, which pointwise
            losses can use and listwise ones cannot.

    Returns:
        The groups, positives first in each; empty where the example has none that is usable.

    Raises:
        ConfigError: for an unknown mode or a limit below 1 (positives) or 0 (negatives).
    """
    if mode not in GROUP_MODES:
        raise ConfigError(f"--group {mode!r} is unknown; choose from {', '.join(GROUP_MODES)}")
    if max_positives < 1:
        raise ConfigError(
            f"--max_positive_samples {max_positives} is below 1; a group needs its positive: "
            "give 1 or more"
        )
    if max_negatives < 0:
        raise ConfigError(f"--max_negative_samples {max_negatives} is below 0; give 0 or more")
    positives, negatives = _distinct(example)
    if not keep_unpaired and not (positives and negatives):
        return []
    if mode == "all":
        chosen = (*positives, *negatives)
        return [Group(example, chosen)] if chosen else []

    random = _generator(f"{seed}:{epoch}:{example.query_id}")

    def draw(indices: list[int], count: int) -> list[int]:
        return [indices[k] for k in random.permutation(len(indices))[:count]]

    if not positives:
        drawn = draw(negatives, max_negatives)
        return [Group(example, tuple(drawn))] if drawn else []
    groups = []
    for positive in draw(positives, max_positives):
        drawn = draw(negatives, max_negatives)
        if drawn or keep_unpaired:
            groups.append(Group(example, (positive, *drawn)))
    return groups


def usable(example: Example, needs_both: bool) -> str | None:
    """Say why a loss cannot use an example.

    Args:
        example: the complete example.
        needs_both: whether the loss compares positives with negatives (listwise and pairwise
            losses), so that a row that lacks one of them teaches it nothing.

    Returns:
        The reason, to be counted and reported, or None where the example is usable.
    """
    if not needs_both:
        return None
    positives, negatives = _distinct(example)
    if not positives:
        return NO_POSITIVE
    return None if negatives else NO_NEGATIVE


def split_examples(
    examples: Sequence[Example], ratio: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Set a part of the rows aside for validation.

    Rows of the same query text (case and white space aside) stay on one side, so the dev part may
    hold a few rows more than asked. Which queries are set aside depends on the seed and on the
    query texts, not on the order of the rows.

    Args:
        examples: the rows.
        ratio: the share of the dev part, at least 0 and below 1; above 0 it holds at least one row.
        seed: the run's seed.

    Returns:
        The train part and the dev part, each in the order of the rows.

    Raises:
        ConfigError: for a ratio outside [0, 1).
        DataError: where nothing would be left to train on.
    """
    if not 0 <= ratio < 1:
        raise ConfigError(
            f"--split_dataset_ratio {ratio} is not a share; give at least 0 (no split) and less "
            "than 1, such as 0.05"
        )
    if ratio == 0 or not examples:
        return list(examples), []
    queries = [_fold(example.query) for example in examples]
    rows = Counter(queries)
    wanted = max(1, round(ratio * len(examples)))
    salt = f"{seed}:".encode()
    order = sorted(rows, key=lambda query: hashlib.blake2b(salt + query).digest())
    dev_queries: set[bytes] = set()
    taken = 0
    for query in order:
        if taken >= wanted:
            break
        dev_queries.add(query)
        taken += rows[query]
    train: list[Example] = []
    dev: list[Example] = []
    for query, example in zip(queries, examples, strict=True):
        (dev if query in dev_queries else train).append(example)
    if not train:
        raise DataError(
            f"--split_dataset_ratio {ratio} leaves no row to train on: {len(examples)} rows hold "
            f"{len(rows)} different queries; give more rows, or give the dev rows with "
            "--val_dataset and --split_dataset_ratio 0"
        )
    return train, dev


@dataclass(frozen=True, slots=True)
class Leaks:
    """What the dev rows share with the train rows.

    Attributes:
        queries: query texts that stand on both sides, in dev's order, each once.
        positives: dev rows of which at least one positive is a positive of a train row.
        documents: dev rows of which at least one document, of any label, is in a train row.
        pairs: (query, positive) pairs that stand on both sides.
        dev_rows: the number of dev rows, to read the counts against.
    """

    queries: tuple[str, ...]
    positives: int
    documents: int
    pairs: int
    dev_rows: int

    def __bool__(self) -> bool:
        return bool(self.queries or self.positives)


def leaks(train: Iterable[Example], dev: Iterable[Example]) -> Leaks:
    """Compare two parts of a dataset, after folding case and white space.

    Args:
        train: the rows trained on.
        dev: the rows measured on.

    Returns:
        What dev shares with train. Shared negatives are usual, since candidates come from one
        collection; shared queries are a leak; shared positives may be one.
    """
    queries: set[bytes] = set()
    positives: set[bytes] = set()
    documents: set[bytes] = set()
    pairs: set[bytes] = set()
    for example in train:
        query = _fold(example.query)
        queries.add(query)
        for document, label in zip(example.documents, example.labels, strict=True):
            text = _fold(document)
            documents.add(text)
            if label > 0:
                positives.add(text)
                pairs.add(query + text)
    shared_queries: dict[str, None] = {}
    shared_positives = shared_documents = shared_pairs = dev_rows = 0
    for example in dev:
        dev_rows += 1
        query = _fold(example.query)
        if query in queries:
            shared_queries[example.query] = None
        texts = [_fold(document) for document in example.documents]
        positive = [t for t, label in zip(texts, example.labels, strict=True) if label > 0]
        shared_positives += any(text in positives for text in positive)
        shared_documents += any(text in documents for text in texts)
        shared_pairs += sum(query + text in pairs for text in positive)
    return Leaks(tuple(shared_queries), shared_positives, shared_documents, shared_pairs, dev_rows)


def _fold(text: str) -> bytes:
    # 16 bytes a text, so that comparing two large collections does not hold both twice
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()
