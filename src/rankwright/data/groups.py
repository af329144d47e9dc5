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
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from rankwright.data.outline import Outline, distinct, fold, folds, outline, select
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
    positives, negatives = distinct(example)
    chosen = draw_groups(
        positives,
        negatives,
        f"{seed}:{epoch}:{example.query_id}",
        max_positives=max_positives,
        max_negatives=max_negatives,
        mode=mode,
        keep_unpaired=keep_unpaired,
    )
    return [Group(example, indices) for indices in chosen]


def draw_groups(
    positives: Sequence[int],
    negatives: Sequence[int],
    key: str,
    *,
    max_positives: int,
    max_negatives: int,
    mode: GroupMode,
    keep_unpaired: bool,
) -> list[tuple[int, ...]]:
    """Draw the documents of each group; see ``sample_groups``.

    Args:
        positives: indices of the distinct positives.
        negatives: indices of the distinct negatives.
        key: what the choice depends on.
        max_positives: see ``sample_groups``, as the others.
        max_negatives: see there.
        mode: see there.
        keep_unpaired: see there.

    Returns:
        The indices of each group.
    """
    if not keep_unpaired and not (positives and negatives):
        return []
    if mode == "all":
        chosen = (*positives, *negatives)
        return [chosen] if chosen else []

    random = _generator(key)

    def draw(indices: Sequence[int], count: int) -> list[int]:
        return [indices[k] for k in random.permutation(len(indices))[:count].tolist()]

    if not positives:
        drawn = draw(negatives, max_negatives)
        return [tuple(drawn)] if drawn else []
    groups: list[tuple[int, ...]] = []
    for positive in draw(positives, max_positives):
        drawn = draw(negatives, max_negatives)
        if drawn or keep_unpaired:
            groups.append((positive, *drawn))
    return groups


def count_groups(
    rows: Outline, *, max_positives: int, max_negatives: int, mode: GroupMode, keep_unpaired: bool
) -> NDArray[np.int64]:
    """How many groups ``sample_groups`` draws from each row, in any epoch."""
    positives, negatives = rows.positives.sizes, rows.negatives.sizes
    if mode == "all":
        counts = np.minimum(positives + negatives, 1)
    else:
        drawn = np.minimum(negatives, max_negatives) > 0
        counts = np.where(drawn | keep_unpaired, np.minimum(positives, max_positives), 0)
        counts = np.where(positives == 0, drawn, counts)
    return counts if keep_unpaired else np.where((positives > 0) & (negatives > 0), counts, 0)


def usable(example: Example, needs_both: bool) -> str | None:
    """``unusable`` for one example: the reason against it, or None."""
    masks = unusable(outline([example]), needs_both)
    return next((reason for reason, mask in masks.items() if mask[0]), None)


def unusable(rows: Outline, needs_both: bool) -> dict[str, NDArray[np.bool_]]:
    """Say which rows a loss cannot use, and why.

    Args:
        rows: the rows.
        needs_both: whether the loss compares positives with negatives (listwise and pairwise
            losses), so that a row that lacks one of them teaches it nothing.

    Returns:
        For each reason, to be counted and reported, a mask of the rows that it holds for; a row has
        one reason at most.
    """
    if not needs_both:
        return {}
    no_positive = rows.positives.sizes == 0
    return {NO_POSITIVE: no_positive, NO_NEGATIVE: ~no_positive & (rows.negatives.sizes == 0)}


@overload
def split_examples(
    examples: list[Example], ratio: float, seed: int
) -> tuple[list[Example], list[Example]]: ...


@overload
def split_examples(
    examples: Sequence[Example], ratio: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]: ...


def split_examples(
    examples: Sequence[Example], ratio: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
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
        return select(examples, range(len(examples))), []
    queries = folds(examples)
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
    train = [i for i, query in enumerate(queries) if query not in dev_queries]
    dev = [i for i, query in enumerate(queries) if query in dev_queries]
    if not train:
        raise DataError(
            f"--split_dataset_ratio {ratio} leaves no row to train on: {len(examples)} rows hold "
            f"{len(rows)} different queries; give more rows, or give the dev rows with "
            "--val_dataset and --split_dataset_ratio 0"
        )
    return select(examples, train), select(examples, dev)


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
        query = fold(example.query)
        queries.add(query)
        for document, label in zip(example.documents, example.labels, strict=True):
            text = fold(document)
            documents.add(text)
            if label > 0:
                positives.add(text)
                pairs.add(query + text)
    shared_queries: dict[str, None] = {}
    shared_positives = shared_documents = shared_pairs = dev_rows = 0
    for example in dev:
        dev_rows += 1
        query = fold(example.query)
        if query in queries:
            shared_queries[example.query] = None
        texts = [fold(document) for document in example.documents]
        positive = [t for t, label in zip(texts, example.labels, strict=True) if label > 0]
        shared_positives += any(text in positives for text in positive)
        shared_documents += any(text in documents for text in texts)
        shared_pairs += sum(query + text in pairs for text in positive)
    return Leaks(tuple(shared_queries), shared_positives, shared_documents, shared_pairs, dev_rows)
