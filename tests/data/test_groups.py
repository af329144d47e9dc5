"""Groups: what is drawn, on what it depends, and how a dataset is split."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.data import outline as outlines
from rankwright.data.groups import (
    GROUP_MODES,
    NO_NEGATIVE,
    NO_POSITIVE,
    Leaks,
    borrow,
    leaks,
    sample_groups,
    split_examples,
    unusable,
    usable,
)
from rankwright.data.outline import fold, outline
from rankwright.data.readers import load_examples
from rankwright.errors import ConfigError, DataError
from rankwright.types import Example, Group


def example(positives: int, negatives: int, query_id: str = "q", query: str = "query") -> Example:
    return Example(
        query,
        [f"p{i}" for i in range(positives)] + [f"n{i}" for i in range(negatives)],
        [1.0] * positives + [0.0] * negatives,
        query_id=query_id,
    )


examples = st.builds(
    lambda pairs, query_id: Example(
        "query", [d for d, _ in pairs], [x for _, x in pairs], query_id=query_id
    ),
    st.lists(
        st.tuples(
            st.sampled_from("abcdefghij"),
            st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 3, allow_nan=False)),
        ),
        min_size=1,
        max_size=16,
    ),
    st.text(max_size=4),
)


@settings(deadline=None)
@given(
    row=examples,
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 100),
    max_positives=st.integers(1, 4),
    max_negatives=st.integers(0, 8),
    mode=st.sampled_from(GROUP_MODES),
    needs=st.sampled_from(["one", "two", "positive", "both"]),
)
def test_laws(
    row: Example,
    seed: int,
    epoch: int,
    max_positives: int,
    max_negatives: int,
    mode: Any,
    needs: Any,
) -> None:
    """Sizes as asked, one positive first, no text twice, the same draw again."""
    options: dict[str, Any] = {
        "seed": seed,
        "max_positives": max_positives,
        "max_negatives": max_negatives,
        "mode": mode,
        "needs": needs,
    }
    groups = sample_groups(row, epoch=epoch, **options)
    assert [g.chosen for g in groups] == [
        g.chosen for g in sample_groups(row, epoch=epoch, **options)
    ]
    assert len(groups) == len(sample_groups(row, epoch=epoch + 1, **options))

    best: dict[str, float] = {}
    for document, label in zip(row.documents, row.labels, strict=True):
        best[document] = max(label, best.get(document, 0.0))
    positives = {d for d, label in best.items() if label > 0}
    negatives = best.keys() - positives

    for group in groups:
        assert len(set(group.documents)) == len(group.documents) > 0
        assert group.labels == [best[d] for d in group.documents]
        is_positive = [d in positives for d in group.documents]
        assert is_positive == sorted(is_positive, reverse=True)
        if needs in ("positive", "both"):
            assert any(is_positive)
        if needs == "both":
            assert len(set(group.labels)) > 1
        assert len(group.documents) >= (2 if needs == "two" else 1)
    if mode == "all":
        fits = {
            "one": True,
            "two": len(best) > 1,
            "positive": bool(positives),
            "both": bool(positives) and len(set(best.values())) > 1,
        }
        assert [set(g.documents) for g in groups] == ([best.keys()] if fits[needs] else [])
        return
    drawn = min(max_negatives, len(negatives))
    if positives and (needs in ("one", "positive") or drawn):
        assert len(groups) == min(max_positives, len(positives))
        for group in groups:
            assert sum(d in positives for d in group.documents) == 1
            assert len(group.documents) == 1 + drawn
        assert len({g.documents[0] for g in groups}) == len(groups)
    elif not positives and drawn >= {"one": 1, "two": 2}.get(needs, 99):
        assert [len(g.documents) for g in groups] == [drawn]
    else:
        assert groups == []


def test_the_default_is_that_of_ms_swift() -> None:
    (group,) = sample_groups(example(3, 20), seed=1, epoch=0)
    assert group.labels == [1] + [0] * 7


def test_several_positives_draw_negatives_of_their_own() -> None:
    groups = sample_groups(example(3, 40), seed=1, epoch=0, max_positives=3)
    assert sorted(g.documents[0] for g in groups) == ["p0", "p1", "p2"]
    assert len({frozenset(g.documents[1:]) for g in groups}) == 3


def test_epochs_seeds_and_queries_draw_differently() -> None:
    """Of C(40, 7) = 18,643,560 sets of negatives, no two of 300 draws are expected to be equal."""
    draws = [
        frozenset(sample_groups(example(1, 40, str(q)), seed=seed, epoch=epoch)[0].documents)
        for q in range(10)
        for seed in range(3)
        for epoch in range(10)
    ]
    assert len(set(draws)) == 300


def test_every_document_is_drawn_equally_often() -> None:
    """7 of 10 negatives in 4000 epochs: 2800 times each, deviation sqrt(4000 x .7 x .3) = 29."""
    counts: Counter[str] = Counter()
    for epoch in range(4000):
        counts.update(sample_groups(example(2, 10), seed=0, epoch=epoch)[0].documents)
    for i in range(10):
        assert abs(counts[f"n{i}"] - 2800) < 5 * 29
    assert abs(counts["p0"] - 2000) < 5 * 32


def test_the_draw_is_pinned() -> None:
    """A resumed run of a later version draws what the earlier one would have."""
    row = example(3, 12, "f:1")
    groups = sample_groups(row, seed=42, epoch=0, max_positives=2, max_negatives=3)
    assert [g.chosen for g in groups] == PINNED


PINNED = [(2, 13, 6, 4), (1, 13, 4, 14)]


def test_graded_labels_are_positive_above_zero() -> None:
    row = Example("q", ["a", "b", "c", "d"], [0.0, 3.0, 0.25, 0.0], query_id="q")
    (whole,) = sample_groups(row, seed=0, epoch=0, mode="all")
    assert whole.chosen == (1, 2, 0, 3)
    assert whole.labels == [3, 0.25, 0, 0]
    firsts = {sample_groups(row, seed=0, epoch=e)[0].labels[0] for e in range(40)}
    assert firsts == {3.0, 0.25}


def test_a_text_counts_once_under_its_best_label() -> None:
    row = Example("q", ["a", "a", "b", "a", "b"], [0.0, 2.0, 0.0, 1.0, 0.0], query_id="q")
    (group,) = sample_groups(row, seed=0, epoch=0)
    assert group.chosen == (1, 2)


@pytest.mark.parametrize(("positives", "negatives"), [(2, 0), (0, 2)])
@pytest.mark.parametrize("mode", GROUP_MODES)
def test_rows_of_one_side(positives: int, negatives: int, mode: Any) -> None:
    row = example(positives, negatives)
    assert sample_groups(row, seed=0, epoch=0, mode=mode) == []
    sizes = {
        needs: [
            len(g.documents) for g in sample_groups(row, seed=0, epoch=0, mode=mode, needs=needs)
        ]
        for needs in ("one", "two", "positive")
    }
    alone = bool(positives) and mode == "positive"
    assert sizes["one"] == ([1] if alone else [2])
    assert sizes["two"] == ([] if alone else [2])
    assert sizes["positive"] == ([1 if alone else 2] if positives else [])


def test_usable() -> None:
    for row, reason in (
        (example(1, 1), None),
        (example(0, 2), NO_POSITIVE),
        (example(2, 0), NO_NEGATIVE),
    ):
        masks = unusable(outline([row]), "both")
        assert [name for name, mask in masks.items() if mask[0]] == ([reason] if reason else [])
        assert usable(row, "both") == reason
        assert usable(row, "one") is None
        assert usable(row, "two") is None
        assert usable(row, "positive") == (reason if reason == NO_POSITIVE else None)
        assert bool(sample_groups(row, seed=0, epoch=0)) == (reason is None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "some"}, "--group 'some' is unknown; choose from positive, all"),
        (
            {"max_positives": 0},
            "--max_positive_samples 0 is below 1; a group needs its positive: give 1 or more",
        ),
        ({"max_negatives": -1}, "--max_negative_samples -1 is below 0; give 0 or more"),
    ],
)
def test_bad_options(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sample_groups(example(1, 1), seed=0, epoch=0, **options)
    assert str(caught.value) == expected


# -------------------------------------------------------------------------- negatives of the batch


def group(query: str, positive: str, *negatives: str, more: str | None = None) -> Group:
    """A group of one positive; ``more`` is another of its row that was not drawn."""
    documents = [positive, *negatives, *([] if more is None else [more])]
    labels = [1.0, *[0.0] * len(negatives), *([] if more is None else [1.0])]
    row = Example(query, documents, labels, query_id=query)
    return Group(row, tuple(range(1 + len(negatives))), key=query)


@given(count=st.integers(1, 9), random=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_borrowed_documents(count: int, random: random.Random) -> None:
    """By hand, which texts each group may take; the order of the batch changes nothing.

    ``a`` may not take A2, its positive that was not drawn, nor A3, which the other row of the same
    query holds as one, nor what it has itself in other letters (``x`` and ``X ``).
    """
    groups = [
        group("a", "A1", "x", more="A2"),
        group("A ", "A3", "X "),
        group("b", "B", "y", "A2"),
        group("c", "A3", "z"),
    ]
    allowed = [{"B", "y", "z"}, {"B", "y", "z"}, {"A1", "A3", "x", "X ", "z"}]
    allowed.append({"A1", "A2", "B", "x", "X ", "y"})
    found = borrow(groups, count)
    for before, after, texts in zip(groups, found, allowed, strict=True):
        kinds = {text.casefold().strip() for text in texts}
        assert {text.casefold().strip() for text in after.borrowed} <= kinds
        assert len(after.borrowed) == len({*after.borrowed}) == min(count, len(kinds))
        assert after.documents == [*before.documents, *after.borrowed]
        assert after.labels == [*before.labels, *[0.0] * len(after.borrowed)]
    shuffled = list(range(4))
    random.shuffle(shuffled)
    moved = borrow([groups[i] for i in shuffled], count)
    assert [g.borrowed for g in moved] == [found[i].borrowed for i in shuffled]


# ----------------------------------------------------------------------------------------- splits


@settings(deadline=None)
@given(
    queries=st.lists(st.sampled_from(["a", "A", "b", " b", "c", "d", "e", "f"]), max_size=30),
    ratio=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
)
def test_split_laws(queries: list[str], ratio: float, seed: int) -> None:
    """Nothing lost, no query on both sides, at least as many as asked, whatever the order."""
    rows = [example(1, 1, str(i), query) for i, query in enumerate(queries)]
    try:
        train, dev = split_examples(rows, ratio, seed)
    except DataError:
        assert ratio > 0
        return
    assert sorted(e.query_id for e in train + dev) == sorted(e.query_id for e in rows)
    assert not leaks(train, dev).queries
    if ratio == 0 or not rows:
        assert dev == []
        return
    assert len(dev) >= max(1, round(ratio * len(rows)))
    assert [e.query_id for e in dev] == sorted((e.query_id for e in dev), key=int)
    shuffled = random.Random(seed).sample(rows, len(rows))
    again = split_examples(shuffled, ratio, seed)
    assert {e.query_id for e in again[1]} == {e.query_id for e in dev}


def test_split_sizes_and_seeds() -> None:
    rows = [example(1, 1, str(i), f"query {i}") for i in range(100)]
    assert [len(part) for part in split_examples(rows, 0.05, 42)] == [95, 5]
    assert [len(part) for part in split_examples(rows[:3], 0.01, 42)] == [2, 1]
    chosen = {tuple(e.query_id for e in split_examples(rows, 0.05, seed)[1]) for seed in range(20)}
    assert len(chosen) == 20


@pytest.mark.parametrize("ratio", [0.001, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_the_split_is_of_the_least_keys(
    ratio: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many rows are of one query, so that those looked at first may be too few."""
    monkeypatch.setattr(outlines, "BLOCK", 7)
    rows = [example(1, 1, str(i), f"query {max(0, i - 150)}") for i in range(400)]

    def key(row: Example) -> bytes:
        return hashlib.blake2b(f"{seed}:".encode() + fold(row.query)).digest()

    ordered = sorted(rows, key=key)
    last = key(ordered[max(1, round(ratio * len(rows))) - 1])
    expected = [row.query_id for row in rows if key(row) <= last]
    train, dev = split_examples(rows, ratio, seed)
    assert [row.query_id for row in dev] == expected
    assert len(train) == len(rows) - len(dev)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_bad_ratio(ratio: float) -> None:
    with pytest.raises(ConfigError) as caught:
        split_examples([example(1, 1)], ratio, 0)
    assert str(caught.value) == (
        f"--split_dataset_ratio {ratio} is not a share; give at least 0 (no split) and less than "
        "1, such as 0.05"
    )


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(DataError) as caught:
        split_examples([example(1, 1, "1"), example(1, 1, "2")], 0.05, 0)
    assert str(caught.value) == (
        "--split_dataset_ratio 0.05 leaves no row to train on: 2 rows hold 1 different queries; "
        "give more rows, or give the dev rows with --val_dataset and --split_dataset_ratio 0"
    )


def test_leaks() -> None:
    """Row 1 shares its query, row 2 a positive, row 3 only a negative, row 4 nothing."""
    train = [Example("What is it?", ["a", "b", "n"], [1, 1, 0])]
    dev = [
        Example("what  IS it?", ["A", "x"], [1, 0]),
        Example("other", ["b", "y"], [2, 0]),
        Example("third", ["z", "n"], [1, 0]),
        Example("fourth", ["z"], [1]),
    ]
    found = leaks(train, dev)
    assert found.queries == ("what  IS it?",)
    assert (found.positives, found.documents, found.pairs, found.dev_rows) == (2, 3, 1, 4)
    assert found
    clean = leaks(train, dev[2:])
    assert not clean
    assert (clean.positives, clean.documents) == (0, 1)


def test_leaks_keep_nothing_of_the_rows_trained_on() -> None:
    """These may be millions: keys of 10,000 documents would be more than 1 MB."""
    dev = [Example("q7", ["d7", "e7"], [1, 0])]
    tracemalloc.start()
    try:
        train = (Example(f"q{i}", [f"d{i}", f"e{i}"], [1, 1]) for i in range(5000))
        found = leaks(train, dev)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == Leaks(("q7",), 1, 1, 1, 1)
    assert peak < 100_000


def test_real_rows_share_no_question(shared: Path) -> None:
    folder = shared / "data" / "medquad_small"
    parts = [load_examples(folder / f"{name}.jsonl").examples for name in ("train", "dev", "test")]
    assert leaks(parts[0], parts[1]).queries == ()
    assert leaks(parts[0], parts[2]).queries == ()
    for row in parts[0]:
        (group,) = sample_groups(row, seed=42, epoch=0)
        assert sorted(group.labels) == [0, 0, 0, 0, 1]
        (whole,) = sample_groups(row, seed=42, epoch=0, mode="all")
        assert sorted(whole.chosen) == list(range(len(row.documents)))
