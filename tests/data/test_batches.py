"""The plan of batches: the same count every epoch, every group once, on any number of processes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.data.batches import FILLER, BatchPlan, GroupDataset, Item, Sampling
from rankwright.errors import DataError
from rankwright.types import Group
from tests import tiny


def dataset(count: int, **sampling: object) -> GroupDataset:
    return GroupDataset(tiny.examples(count, documents=6), Sampling(**sampling))  # type: ignore[arg-type]


def length(group: Group) -> int:
    return sum(len(document.split()) for document in group.documents)


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
@given(count=st.integers(6, 30), budget=st.integers(240, 900), world=st.integers(1, 3))
def test_a_budget_is_kept_and_nothing_lost(count: int, budget: int, world: int) -> None:
    """Every group of every epoch stands in one batch, none is over the budget, counts stay."""
    data = dataset(count, max_positives=1, max_negatives=3)
    plan = BatchPlan(data, tokens=budget, cost=length, epochs=3, world=world)
    for epoch in range(3):
        batches = plan.plan(epoch)
        assert len(batches) == plan.total
        assert sorted(i for _, i, number in flat(batches) if number != FILLER) == list(range(count))
        for batch in batches:
            assert batch
            assert sum(length(g) for item in batch for g in data[item]) <= budget


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
