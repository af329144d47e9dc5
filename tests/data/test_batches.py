"""The plan of batches: the same count every epoch, every group once, on any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.data.batches import FILLER, BatchPlan, GroupDataset, Item, Sampling
from rankwright.data.outline import Ragged, outline
from rankwright.data.tokens import Lengths
from rankwright.errors import DataError
from rankwright.types import Example, Group
from tests import tiny


def dataset(count: int, **sampling: object) -> GroupDataset:
    return GroupDataset(tiny.examples(count, documents=6), Sampling(**sampling))  # type: ignore[arg-type]


def length(group: Group) -> int:
    return sum(len(document.split()) for document in group.documents)


def lengths(data: GroupDataset) -> Lengths:
    """Words as tokens, without any prefix."""
    rows = [[len(document.split()) for document in e.documents] for e in data.examples]
    none = np.zeros(len(rows), np.int64)
    flags = Ragged.of([[0] * len(row) for row in rows])
    return Lengths(none, none, Ragged.of(rows), flags, share_prefix=True)


def flat(plan: list[list[Item]]) -> list[Item]:
    return [item for batch in plan for item in batch]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(4, 30),
    queries=st.integers(1, 9),
    world=st.integers(1, 3),
    epoch=st.integers(0, 4),
)
def test_every_query_once(count: int, queries: int, world: int, epoch: int) -> None:
    """The processes' shares are disjoint, equally long, and together the epoch."""
    plans = [BatchPlan(dataset(count), queries=queries, rank=r, world=world) for r in range(world)]
    for plan in plans:
        plan.set_epoch(epoch)
    shares = [list(plan) for plan in plans]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == len(plans[0])
    items = [item for share in shares for batch in share for item in batch]
    seen = sorted(index for _, index, number in items if number != FILLER)
    assert seen == list(range(count))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(6, 30), budget=st.integers(60, 900), world=st.integers(1, 3))
def test_a_budget_is_kept_and_nothing_lost(count: int, budget: int, world: int) -> None:
    """Every group of every epoch stands in one batch, none is over the budget, counts stay."""
    data = dataset(count, max_positives=1, max_negatives=3)
    plan = BatchPlan(data, tokens=budget, lengths=lengths(data), epochs=3, world=world)
    for epoch in range(3):
        batches = plan.plan(epoch)
        assert len(batches) == plan.total
        assert sorted(i for _, i, number in flat(batches) if number != FILLER) == list(range(count))
        for batch in batches:
            assert batch
            # what is above the budget stands alone
            assert len(batch) == 1 or sum(length(g) for i in batch for g in data[i]) <= budget


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=1, max_size=9), min_size=1),
    positives=st.integers(1, 3),
    negatives=st.integers(0, 4),
    mode=st.sampled_from(["positive", "all"]),
    needs=st.sampled_from(["one", "two", "positive", "both"]),
    epoch=st.integers(0, 2),
    share=st.booleans(),
)
def test_counts_and_costs_are_those_of_the_groups(
    rows: list[list[float]],
    positives: int,
    negatives: int,
    mode: Any,
    needs: Any,
    epoch: int,
    share: bool,
) -> None:
    """What is planned from the outline is what is drawn; texts stand twice here and there."""
    examples = [
        Example("q", ["x" * (i % 5 + 1) for i in range(len(row))], row, query_id=f"q{n}")
        for n, row in enumerate(rows)
    ]
    sampling = Sampling(7, positives, negatives, mode, needs)
    flags = [[(n + i) % 3 == 0 for i in range(len(row))] for n, row in enumerate(rows)]
    prefixes = np.arange(len(rows)) + 10
    found = Lengths(
        prefixes,
        np.where(prefixes % 2, prefixes, 4),
        Ragged.of([[len(d) for d in e.documents] for e in examples]),
        Ragged.of(flags),
        share_prefix=share,
    )
    groups = [sampling.groups(example, epoch) for example in examples]
    assert sampling.counts(outline(examples)).tolist() == list(map(len, groups))
    expected = []
    for row, drawn in enumerate(groups):
        for group in drawn:
            forced = prefixes[row] % 2 == 0 and any(flags[row][i] for i in group.chosen)
            prefix = 4 if forced else prefixes[row]
            copies = 1 if share else len(group.chosen)
            expected.append(prefix * copies + sum(map(len, group.documents)))
    assert sampling.costs(outline(examples), found, epoch).tolist() == expected


def test_similar_costs_stand_together_in_a_random_order() -> None:
    """Twenty sizes of groups: within a batch of at least five groups they are near; a budget of
    one batch's mean leaves the order of the batches random, and the next epoch's another."""
    rows = [
        Example("q", ["x " * (n % 20 + 1), "y"], [1.0, 0.0], query_id=f"q{n}") for n in range(2000)
    ]
    data = GroupDataset(rows, Sampling())
    plan = BatchPlan(data, tokens=120, lengths=lengths(data), epochs=2)
    spread, means = [], []
    for batch in plan.plan(0):
        sizes = [index % 20 for _, index, _ in batch]
        spread.append(max(sizes) - min(sizes))
        means.append(float(np.mean(sizes)))
    assert np.mean(spread) < 1
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    assert flat(plan.plan(0)) != [(0, i, n) for _, i, n in flat(plan.plan(1))]


def test_a_group_over_the_budget_stands_alone() -> None:
    data = dataset(8)
    batches = BatchPlan(data, tokens=1, lengths=lengths(data)).plan(0)
    assert [len(batch) for batch in batches] == [1] * 8


def test_the_plan_reaches_as_many_batches_as_asked() -> None:
    """In place of a number of epochs: 8 batches an epoch, 20 batches are three epochs."""
    data = dataset(8)
    plan = BatchPlan(data, tokens=1, lengths=lengths(data), batches=20)
    assert len(plan) == 8
    assert sorted(plan._plans) == [0, 1, 2]


def test_epochs_differ_and_repeat() -> None:
    one, two = BatchPlan(dataset(20), queries=4), BatchPlan(dataset(20), queries=4)
    assert one.plan(0) == two.plan(0)
    assert [i for _, i, _ in flat(one.plan(0))] != [i for _, i, _ in flat(one.plan(1))]


def test_several_positives_are_several_groups() -> None:
    """ms-swift's MAX_POSITIVE_SAMPLES: one query with two positives is two groups of one batch."""
    data = dataset(4, max_positives=2, max_negatives=2)
    for example in data.examples:
        example.labels[1] = 1.0
    groups = data[(0, 0, None)]
    assert [len(g.chosen) for g in groups] == [3, 3]
    assert {g.chosen[0] for g in groups} == {0, 1}
    assert data[(0, 0, 1)] == groups[1:]


def test_drop_last() -> None:
    """10 queries in fours: two batches, the rest is left out; over 2 processes one each."""
    plan = BatchPlan(dataset(10), queries=4, drop_last=True)
    assert [len(b) for b in plan.plan(0)] == [4, 4]
    assert len(BatchPlan(dataset(10), queries=4, drop_last=True, world=2)) == 1
    with pytest.raises(DataError, match="no batch is left"):
        BatchPlan(dataset(3), queries=4, drop_last=True)


def test_a_process_without_work_gets_a_filler() -> None:
    """2 queries over 4 processes: two batches of one, and two that repeat a group for nothing."""
    data = dataset(2)
    plan = BatchPlan(data, queries=1, world=4)
    batches = plan.plan(0)
    assert [number for _, _, number in flat(batches)] == [None, None, FILLER, FILLER]
    assert [g.filler for item in flat(batches) for g in data[item]] == [False, False, True, True]
