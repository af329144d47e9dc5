"""Which groups stand in which batch: a plan that depends on seed and epoch alone.

Every epoch has the same number of batches, so step counts, schedules and a resumed run agree; every
rank takes its share of the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from rankwright.data.groups import GroupMode, Needs, count_groups, draw_groups, sample_groups
from rankwright.data.outline import Outline, Ragged, outline
from rankwright.data.tokens import Lengths, TokenStore
from rankwright.errors import DataError
from rankwright.types import Example, Group

Item = tuple[int, int, int | None]
"""(epoch, example, group): None for all groups, ``FILLER`` for a process without work."""
FILLER = -1
# groups of similar costs are sought within this many batches: enough to find them, and few enough
# that a batch stays a random part of the epoch
WINDOW = 50


@dataclass(frozen=True)
class Sampling:
    """How groups are drawn from examples.

    Attributes:
        seed: of the run.
        max_positives: positives of a query an epoch.
        max_negatives: negatives of each positive.
        mode: ``positive`` or ``all``.
        needs: what a group must hold, see ``sample_groups``.
        borrowed: documents that each group borrows of its batch at most, see ``groups.borrow``.
    """

    seed: int = 42
    max_positives: int = 1
    max_negatives: int = 7
    mode: GroupMode = "positive"
    needs: Needs = "both"
    borrowed: int = 0

    @property
    def _limits(self) -> dict[str, Any]:
        return {
            "max_positives": self.max_positives,
            "max_negatives": self.max_negatives,
            "mode": self.mode,
            "needs": self.needs,
        }

    def groups(self, example: Example, epoch: int) -> list[Group]:
        """Draw the groups of one example for one epoch."""
        return sample_groups(example, seed=self.seed, epoch=epoch, **self._limits)

    def counts(self, rows: Outline) -> NDArray[np.int64]:
        """How many groups each row gives, in any epoch."""
        return count_groups(rows, **self._limits)

    def costs(self, rows: Outline, lengths: Lengths, epoch: int) -> NDArray[np.int64]:
        """Tokens of each group of an epoch, row after row.

        A row that is drawn whole, as most are, is not drawn to know its cost.
        """
        counts = self.counts(rows)
        every = self.mode == "all"
        whole = lengths.plain & (counts == 1)
        if not every:
            whole &= (rows.positives.sizes <= 1) & (rows.negatives.sizes <= self.max_negatives)
        costs = np.repeat(lengths.of_all(rows), counts)
        drawn = ~whole & (counts > 0)
        chosen: list[int] = []
        sizes: list[int] = []
        for row in np.flatnonzero(drawn).tolist():
            for indices in draw_groups(
                rows.positives[row].tolist(),
                rows.negatives[row].tolist(),
                f"{self.seed}:{epoch}:{rows.query_ids[row]}",
                graded=bool(rows.highest[row] > rows.lowest[row]),
                **self._limits,
            ):
                chosen += indices
                sizes.append(len(indices))
        of = np.repeat(np.flatnonzero(drawn), counts[drawn])
        costs[np.repeat(drawn, counts)] = lengths.of(of, Ragged.flat(chosen, sizes))
        return costs


class GroupDataset(Dataset[list[Group]]):
    """Examples as a map from plan items to groups; workers draw them, so nothing is drawn ahead.

    Args:
        examples: the examples.
        sampling: how groups are drawn.
        tokens: the tokens of these examples, where they were made ahead.
    """

    def __init__(
        self, examples: Sequence[Example], sampling: Sampling, tokens: TokenStore | None = None
    ) -> None:
        self.examples = examples
        self.sampling = sampling
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: Item) -> list[Group]:
        epoch, index, number = item
        groups = self.sampling.groups(self.examples[index], epoch)
        if number == FILLER:
            groups = [replace(groups[0], filler=True)]
        elif number is not None:
            groups = [groups[number]]
        if self.tokens is None:
            return groups
        chosen = self.tokens.pairs(index, [group.chosen for group in groups])
        return [replace(g, tokens=tokens) for g, tokens in zip(groups, chosen, strict=True)]


@dataclass(frozen=True)
class _Batches:
    """One epoch's batches: cuts through an order of items.

    Attributes:
        rows: the example of each item.
        numbers: the group of each item; None where items are whole examples.
        bounds: begin and end of each batch; an empty one is a filler of the item it begins at.
    """

    rows: NDArray[np.int64]
    numbers: NDArray[np.int64] | None
    bounds: NDArray[np.int64]

    def batch(self, epoch: int, place: int) -> list[Item]:
        begin, end = self.bounds[place].tolist()
        if begin == end:
            return [(epoch, int(self.rows[begin]), FILLER)]
        rows = self.rows[begin:end].tolist()
        if self.numbers is None:
            return [(epoch, row, None) for row in rows]
        numbers = self.numbers[begin:end].tolist()
        return [(epoch, row, number) for row, number in zip(rows, numbers, strict=True)]


class BatchPlan(Sampler[list[Item]]):
    """The batches of each epoch, in order; the DataLoader's batch sampler.

    With a token budget, groups of similar cost stand in one batch and the batches are in random
    order; which groups an epoch sees is the same as without. A group over the budget is a batch of
    its own.

    Args:
        dataset: the examples.
        queries: queries in a batch; None where ``tokens`` is given.
        tokens: token budget of a batch; None where ``queries`` is given.
        lengths: of the examples' tokens; needed for ``tokens``.
        epochs: how many epochs are planned; needed for ``tokens``.
        batches: batches that each process takes in all, in place of ``epochs``.
        rank: of this process.
        world: number of processes.
        drop_last: leave out a last batch of fewer queries.

    Raises:
        DataError: no batch is left.
    """

    def __init__(
        self,
        dataset: GroupDataset,
        *,
        queries: int | None = None,
        tokens: int | None = None,
        lengths: Lengths | None = None,
        epochs: int = 1,
        batches: int | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.queries = queries
        self.tokens = tokens
        self.lengths = lengths
        self.rank = rank
        self.world = world
        self.drop_last = drop_last
        self.epoch = 0
        self._plans: dict[int, _Batches] = {}
        if tokens is None:
            assert queries is not None
            whole, rest = divmod(len(dataset), queries)
            count = whole + (rest > 0 and not drop_last)
        else:
            self._rows = outline(dataset.examples)
            self._plans[0] = self._by_tokens(0)
            if batches is not None:
                # of how many epochs does not depend on the number of processes
                epochs = math.ceil(batches * world / max(1, len(self._plans[0].bounds)))
            self._plans |= {epoch: self._by_tokens(epoch) for epoch in range(1, epochs)}
            count = max(len(plan.bounds) for plan in self._plans.values())
        # a multiple of the processes, so that each takes the same number of steps
        self.total = -(-count // world) * world
        if drop_last and count >= world:
            self.total = count // world * world if tokens is None else self.total
        self.count = min(count, self.total)
        if self.total == 0:
            raise DataError(
                "no batch is left: fewer queries than --per_device_train_batch_size; lower it or "
                "leave out "
                "--dataloader_drop_last"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total // self.world

    def __iter__(self) -> Iterator[list[Item]]:
        epoch, plan = self.epoch, self._plan(self.epoch)
        for place in range(self.rank, len(plan.bounds), self.world):
            yield plan.batch(epoch, place)

    def plan(self, epoch: int) -> list[list[Item]]:
        """All batches of an epoch, over all processes."""
        plan = self._plan(epoch)
        return [plan.batch(epoch, place) for place in range(len(plan.bounds))]

    def _plan(self, epoch: int) -> _Batches:
        plan = self._plans.get(epoch)
        if plan is None:
            plan = self._by_queries(epoch) if self.tokens is None else self._by_tokens(epoch)
        bounds = plan.bounds[: self.total]
        # as many as every epoch has, and all but the last step as one process would take them
        if len(bounds) < self.count:
            bounds = _split_to(bounds, self.count)
        whole = len(bounds) // self.world * self.world
        bounds = np.concatenate((bounds[:whole], _split_to(bounds[whole:], self.total - whole)))
        return replace(plan, bounds=bounds)

    def _order(self, epoch: int) -> tuple[np.random.Generator, NDArray[np.int64]]:
        generator = np.random.default_rng((self.dataset.sampling.seed, epoch))
        count = len(self.dataset)
        # of an epoch this is what is kept for each row, so it is no wider than it has to be
        order = np.arange(count, dtype=np.min_scalar_type(count))
        generator.shuffle(order)
        return generator, order

    def _by_queries(self, epoch: int) -> _Batches:
        assert self.queries is not None
        _, order = self._order(epoch)
        begins = np.arange(0, len(order), self.queries)
        ends = np.minimum(begins + self.queries, len(order))
        if self.drop_last:
            begins, ends = (
                begins[ends - begins == self.queries],
                ends[ends - begins == self.queries],
            )
        return _Batches(order, None, np.stack((begins, ends), 1))

    def _by_tokens(self, epoch: int) -> _Batches:
        assert self.tokens is not None
        assert self.lengths is not None
        sampling = self.dataset.sampling
        generator, order = self._order(epoch)
        counts = sampling.counts(self._rows)
        costs = sampling.costs(self._rows, self.lengths, epoch)
        # the groups of each row, row after row, and then in the order of the epoch
        starts = np.cumsum(counts) - counts
        rows = np.repeat(order, counts[order])
        numbers = np.arange(len(rows)) - np.repeat(
            np.cumsum(counts[order]) - counts[order], counts[order]
        )
        costs = costs[starts[rows] + numbers]
        windows = np.cumsum(costs) // (self.tokens * WINDOW)
        # every other window falls, so that where two meet the costs are near as well
        near = np.lexsort((np.where(windows % 2, -costs, costs), windows))
        bounds = _fill(costs[near], self.tokens)
        if sampling.borrowed:
            own = self.lengths.prefixes[rows] * (not self.lengths.share_prefix)
            longest = self.lengths.longest[rows]
            bounds = _fill_borrowing(
                costs[near], own[near], longest[near], sampling.borrowed, self.tokens
            )
        return _Batches(rows[near], numbers[near], generator.permutation(bounds))


def _fill(costs: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Begin and end of batches within the budget; what is above it stands alone."""
    ends = np.cumsum(costs)
    bounds: list[tuple[int, int]] = []
    begin, used = 0, 0
    while begin < len(costs):
        end = max(int(np.searchsorted(ends, used + budget, side="right")), begin + 1)
        bounds.append((begin, end))
        begin, used = end, int(ends[end - 1])
    return np.array(bounds, np.int64).reshape(-1, 2)


def _fill_borrowing(
    costs: NDArray[np.int64],
    prefixes: NDArray[np.int64],
    longest: NDArray[np.int64],
    borrowed: int,
    budget: int,
) -> NDArray[np.int64]:
    """``_fill`` where each group of a batch of several borrows documents of the others.

    What they are is known only once the batch is, so each is taken to be as long as the longest.

    Args:
        costs: of the groups.
        prefixes: what each borrowed document takes beside its own tokens.
        longest: the longest document of each group.
        borrowed: how many documents each borrows.
        budget: of a batch.
    """
    bounds: list[tuple[int, int]] = []
    begin = used = top = 0
    for place, (cost, prefix, length) in enumerate(
        zip(costs.tolist(), (borrowed * prefixes).tolist(), longest.tolist(), strict=True)
    ):
        total, most = used + cost + prefix, max(top, length)
        if place > begin and total + borrowed * most * (place + 1 - begin) > budget:
            bounds.append((begin, place))
            begin, total, most = place, cost + prefix, length
        used, top = total, most
    if len(costs):
        bounds.append((begin, len(costs)))
    return np.array(bounds, np.int64).reshape(-1, 2)


def _split_to(bounds: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Make ``total`` batches of fewer: halve the largest; if none can be halved, add fillers.

    A filler repeats a group for a process that would otherwise have no batch while the others take
    a step; its loss counts nothing.
    """
    batches: list[tuple[int, int]] = [(begin, end) for begin, end in bounds.tolist()]
    while len(batches) < total:
        largest = max(range(len(batches)), key=lambda i: batches[i][1] - batches[i][0])
        begin, end = batches[largest]
        if end - begin < 2:
            batches.append((begin, begin))
            continue
        half = begin + (end - begin) // 2
        batches[largest : largest + 1] = [(begin, half), (half, end)]
    return np.array(batches, np.int64).reshape(-1, 2)
