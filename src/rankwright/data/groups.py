"""From complete examples to the groups of one epoch, and from one dataset to two.

Every choice here depends only on a seed, an epoch and a query, never on the order of the rows, on
the rank, the worker or the step: a resumed or differently distributed run sees the same groups.

Legend: ``D`` documents of one query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from rankwright.data.outline import (
    Outline,
    as_numbers,
    blocks,
    distinct,
    distinct_keys,
    fold,
    folds,
    highest,
    lowest,
    outline,
    select,
)
from rankwright.errors import ConfigError, DataError
from rankwright.types import Example, Group

GroupMode = Literal["positive", "all"]
GROUP_MODES: tuple[GroupMode, ...] = ("positive", "all")
# what a group must hold: a document, two documents, a positive, or a positive and a negative
# (with mode "all" also documents of different grades)
Needs = Literal["one", "two", "positive", "both"]

NO_POSITIVE = "no positive document"
NO_NEGATIVE = "no negative document"
EQUAL_LABELS = "equal labels"
ONE_DOCUMENT = "fewer than two documents"


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
    needs: Needs = "both",
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
        needs: what a group must hold. ``both`` (listwise and pairwise losses): a positive and a
            negative, or, with ``mode="all"``, a positive and another label. ``positive``: a
            positive, whose negatives are borrowed from other groups. ``two`` documents
            (distillation). ``one`` (pointwise losses): also positives alone and negatives alone.

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
        needs=needs,
        graded=highest(example) > lowest(example, positives, negatives),
    )
    key = f"{seed}:{epoch}:{example.query_id}"
    return [Group(example, indices, key=key) for indices in chosen]


def draw_groups(
    positives: Sequence[int],
    negatives: Sequence[int],
    key: str,
    *,
    max_positives: int,
    max_negatives: int,
    mode: GroupMode,
    needs: Needs,
    graded: bool,
) -> list[tuple[int, ...]]:
    """Draw the documents of each group; see ``sample_groups``.

    Args:
        positives: indices of the distinct positives.
        negatives: indices of the distinct negatives.
        key: what the choice depends on.
        max_positives: see ``sample_groups``, as the others.
        max_negatives: see there.
        mode: see there.
        needs: see there.
        graded: whether the labels of the documents differ.

    Returns:
        The indices of each group.
    """
    if needs in ("both", "positive") and not positives:
        return []
    if mode == "all":
        chosen = (*positives, *negatives)
        enough = graded if needs == "both" else len(chosen) >= (2 if needs == "two" else 1)
        return [chosen] if enough else []

    random = _generator(key)

    def draw(indices: Sequence[int], count: int) -> list[int]:
        return [indices[k] for k in random.permutation(len(indices))[:count].tolist()]

    if not positives:
        drawn = draw(negatives, max_negatives)
        return [tuple(drawn)] if len(drawn) >= (2 if needs == "two" else 1) else []
    groups: list[tuple[int, ...]] = []
    for positive in draw(positives, max_positives):
        drawn = draw(negatives, max_negatives)
        if drawn or needs in ("one", "positive"):
            groups.append((positive, *drawn))
    return groups


def count_groups(
    rows: Outline, *, max_positives: int, max_negatives: int, mode: GroupMode, needs: Needs
) -> NDArray[np.int64]:
    """How many groups ``sample_groups`` draws from each row, in any epoch."""
    positives, negatives = rows.positives.sizes, rows.negatives.sizes
    least = 2 if needs == "two" else 1
    if mode == "all":
        enough = rows.highest > rows.lowest if needs == "both" else positives + negatives >= least
        counts = enough.astype(np.int64)
    else:
        drawn = np.minimum(negatives, max_negatives)
        alone = needs in ("one", "positive")
        counts = np.where((drawn > 0) | alone, np.minimum(positives, max_positives), 0)
        counts = np.where(positives == 0, drawn >= least, counts)
    return np.where((positives > 0) | (needs in ("one", "two")), counts, 0)


def usable(example: Example, needs: Needs, mode: GroupMode = "positive") -> str | None:
    """``unusable`` for one example: the reason against it, or None."""
    masks = unusable(outline([example]), needs, mode)
    return next((reason for reason, mask in masks.items() if mask[0]), None)


def unusable(
    rows: Outline, needs: Needs, mode: GroupMode = "positive"
) -> dict[str, NDArray[np.bool_]]:
    """Say which rows a loss cannot use, and why.

    Args:
        rows: the rows.
        needs: what a group must hold, see ``sample_groups``.
        mode: how groups are drawn, see there.

    Returns:
        For each reason, to be counted and reported, a mask of the rows that it holds for; a row has
        one reason at most.
    """
    positives, negatives = rows.positives.sizes, rows.negatives.sizes
    if needs == "one":
        return {}
    if needs == "two":
        return {ONE_DOCUMENT: positives + negatives < 2}
    reasons = {NO_POSITIVE: positives == 0}
    if needs == "positive":
        return reasons
    no_negative = (positives > 0) & (negatives == 0)
    if mode == "all":
        return {**reasons, EQUAL_LABELS: no_negative & (rows.highest <= rows.lowest)}
    return {**reasons, NO_NEGATIVE: no_negative}


def borrow(groups: Sequence[Group], count: int) -> list[Group]:
    """Give each group of a batch documents of the others as further negatives.

    A document is not borrowed where it is a positive of the same query, in any of the groups' rows,
    or stands in the group already (case and white space aside). The choice depends on the group's
    ``key`` and on which documents the batch holds, not on their order.

    Args:
        groups: of one batch.
        count: how many each borrows at most.

    Returns:
        The groups, in their order; their tokens are left out where they borrow.
    """
    pool: dict[bytes, str] = {}
    own: list[set[bytes]] = []
    positives: dict[bytes, set[bytes]] = {}
    for group in groups:
        texts = {fold(text): text for text in group.documents}
        own.append(set(texts))
        for key, text in texts.items():
            # of texts that differ in case or white space alone, whichever batch order they have
            pool[key] = min(text, pool.get(key, text))
        example = group.example
        relevant = zip(example.documents, example.labels, strict=True)
        positives.setdefault(fold(example.query), set()).update(
            fold(text) for text, label in relevant if label > 0
        )
    keys = sorted(pool)
    found: list[Group] = []
    for group, held in zip(groups, own, strict=True):
        excluded = held | positives[fold(group.example.query)]
        # several groups of one query borrow differently
        random = _generator(f"{group.key}:borrow:{group.chosen[0]}")
        order = (keys[i] for i in random.permutation(len(keys)).tolist())
        borrowed = islice((pool[key] for key in order if key not in excluded), count)
        chosen = tuple(borrowed)
        found.append(replace(group, borrowed=chosen, tokens=None) if chosen else group)
    return found


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
        return examples, []
    wanted = max(1, round(ratio * len(examples)))
    share, found = 0.0, 0
    # those of the least keys; more than enough at first, so that it is looked for once
    while found < wanted and share < 1:
        share = min(1.0, max(1.5 * ratio + 10 / len(examples), 2 * share))
        rows, keys = _least_keys(examples, f"{seed}:".encode(), share)
        found = len(rows)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    last = np.flatnonzero((keys[order] == keys[order[wanted - 1]]).all(1))[-1]
    is_train = np.ones(len(examples), np.bool_)
    is_train[rows[order[: last + 1]]] = False
    if not is_train.any():
        queries, _ = distinct_keys(folds(examples))
        raise DataError(
            f"--split_dataset_ratio {ratio} leaves no row to train on: {len(examples)} rows hold "
            f"{len(queries)} different queries; give more rows, or give the dev rows with "
            "--val_dataset and --split_dataset_ratio 0"
        )
    return select(examples, np.flatnonzero(is_train)), select(examples, np.flatnonzero(~is_train))


def _least_keys(
    examples: Sequence[Example], salt: bytes, share: float
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The rows whose keys are in the lowest ``share`` of all that there could be.

    Args:
        examples: the rows.
        salt: what a key depends on beside the query.
        share: above 0, 1 for every row.

    Returns:
        The rows, and the key of each as two numbers; rows of one query have the same.
    """
    places, found = [np.empty(0, np.int64)], [as_numbers(b"")]
    for start, part in blocks(examples):
        digests = bytearray()
        for query in folds(part).astype(">u8"):
            # the first 16 bytes are order enough
            digests += hashlib.blake2b(salt + query.tobytes()).digest()[:16]
        keys = as_numbers(digests)
        low = np.ones(len(keys), np.bool_) if share == 1 else keys[:, 0] < int(share * 2**64)
        places.append(start + np.flatnonzero(low))
        found.append(keys[low])
    return np.concatenate(places), np.concatenate(found)


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


def leaks(train: Iterable[Example], dev: Sequence[Example]) -> Leaks:
    """Compare two parts of a dataset, after folding case and white space.

    Only what dev holds is kept in memory, as keys; the rows trained on may be many more.

    Args:
        train: the rows trained on.
        dev: the rows measured on.

    Returns:
        What dev shares with train. Shared negatives are usual, since candidates come from one
        collection; shared queries are a leak; shared positives may be one.
    """
    sought = _Keys(set(), set(), set(), set())
    for example in dev:
        for mine, keys in zip(sought, _keys(example), strict=True):
            mine.update(keys)
    shared = _Keys(set(), set(), set(), set())
    for example in train:
        for found, mine, keys in zip(shared, sought, _keys(example), strict=True):
            found.update(mine & keys)
    shared_queries: dict[str, None] = {}
    shared_positives = shared_documents = shared_pairs = 0
    for example in dev:
        row = _keys(example)
        if row.queries <= shared.queries:
            shared_queries[example.query] = None
        shared_positives += not row.positives.isdisjoint(shared.positives)
        shared_documents += not row.documents.isdisjoint(shared.documents)
        (query,) = row.queries
        shared_pairs += sum(
            query + fold(document) in shared.pairs
            for document, label in zip(example.documents, example.labels, strict=True)
            if label > 0
        )
    return Leaks(tuple(shared_queries), shared_positives, shared_documents, shared_pairs, len(dev))


class _Keys(NamedTuple):
    """A row's texts, its positives and its (query, positive) pairs, by ``fold``."""

    queries: set[bytes]
    documents: set[bytes]
    positives: set[bytes]
    pairs: set[bytes]


def _keys(example: Example) -> _Keys:
    query, texts = fold(example.query), [fold(document) for document in example.documents]
    positives = {text for text, label in zip(texts, example.labels, strict=True) if label > 0}
    return _Keys({query}, set(texts), positives, {query + text for text in positives})
