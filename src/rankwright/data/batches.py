"""Which groups stand in which batch: a plan that depends on seed and epoch alone.

Every epoch has the same number of batches, so step counts, schedules and a resumed run agree; every
rank takes its share of the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset, Sampler

from rankwright.data.groups import GroupMode, sample_groups
from rankwright.errors import ConfigError, DataError
from rankwright.types import Example, Group

Item = tuple[int, int, int | None]
"""(epoch, example, group): None for all groups, ``FILLER`` for a process without work."""
FILLER = -1


@dataclass(frozen=True)
class Sampling:
    """How groups are drawn from examples.

    Attributes:
        seed: of the run.
        max_positives: positives of a query an epoch.
        max_negatives: negatives of each positive.
        mode: ``positive`` or ``all``.
        keep_unpaired: also draw groups of positives alone and of negatives alone (pointwise).
    """

    seed: int = 42
    max_positives: int = 1
    max_negatives: int = 7
    mode: GroupMode = "positive"
    keep_unpaired: bool = False

    def groups(self, example: Example, epoch: int) -> list[Group]:
        """Draw the groups of one example for one epoch."""
        return sample_groups(
            example,
            seed=self.seed,
            epoch=epoch,
            max_positives=self.max_positives,
            max_negatives=self.max_negatives,
            mode=self.mode,
            keep_unpaired=self.keep_unpaired,
        )


class GroupDataset(Dataset[list[Group]]):
    """Examples as a map from plan items to groups; workers draw them, so nothing is drawn ahead."""

    def __init__(self, examples: Sequence[Example], sampling: Sampling) -> None:
        self.examples = examples
        self.sampling = sampling

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: Item) -> list[Group]:
        epoch, index, number = item
        groups = self.sampling.groups(self.examples[index], epoch)
        if number is None:
            return groups
        if number == FILLER:
            return [replace(groups[0], filler=True)]
        return [groups[number]]


class BatchPlan(Sampler[list[Item]]):
    """The batches of each epoch, in order; the DataLoader's batch sampler.

    Args:
        dataset: the examples.
        queries: queries in a batch; None where ``tokens`` is given.
        tokens: token budget of a batch; None where ``queries`` is given.
        cost: tokens that a group takes; needed for ``tokens``.
        epochs: how many epochs are planned; needed for ``tokens``.
        rank: of this process.
        world: number of processes.
        drop_last: leave out a last batch of fewer queries.

    Raises:
        ConfigError: a group is over the budget.
        DataError: no batch is left.
    """

    def __init__(
        self,
        dataset: GroupDataset,
        *,
        queries: int | None = None,
        tokens: int | None = None,
        cost: Callable[[Group], int] | None = None,
        epochs: int = 1,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.queries = queries
        self.tokens = tokens
        self.cost = cost
        self.rank = rank
        self.world = world
        self.drop_last = drop_last
        self.epoch = 0
        self._plans: dict[int, list[list[Item]]] = {}
        if tokens is None:
            count = len(self._by_queries(0))
        else:
            self._plans = {epoch: self._by_tokens(epoch) for epoch in range(epochs)}
            count = max(map(len, self._plans.values()))
        # a multiple of the processes, so that each takes the same number of steps
        self.total = -(-count // world) * world
        if drop_last and count >= world:
            self.total = count // world * world if tokens is None else self.total
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
        yield from self.plan(self.epoch)[self.rank :: self.world]

    def plan(self, epoch: int) -> list[list[Item]]:
        """All batches of an epoch, over all processes."""
        if self.tokens is None:
            batches = self._by_queries(epoch)[: self.total]
            # all but the last step stay as one process would take them
            whole = len(batches) // self.world * self.world
            return batches[:whole] + _split_to(batches[whole:], self.total - whole)
        return _split_to(self._plans.get(epoch) or self._by_tokens(epoch), self.total)

    def _order(self, epoch: int) -> list[int]:
        generator = np.random.default_rng((self.dataset.sampling.seed, epoch))
        order: list[int] = generator.permutation(len(self.dataset)).tolist()
        return order

    def _by_queries(self, epoch: int) -> list[list[Item]]:
        assert self.queries is not None
        order = self._order(epoch)
        chunks = [order[i : i + self.queries] for i in range(0, len(order), self.queries)]
        if self.drop_last and chunks and len(chunks[-1]) < self.queries:
            chunks.pop()
        return [[(epoch, index, None) for index in chunk] for chunk in chunks]

    def _by_tokens(self, epoch: int) -> list[list[Item]]:
        assert self.tokens is not None
        assert self.cost is not None
        batches: list[list[Item]] = []
        current: list[Item] = []
        used = 0
        for index in self._order(epoch):
            groups = self.dataset.sampling.groups(self.dataset.examples[index], epoch)
            for number, group in enumerate(groups):
                cost = self.cost(group)
                if cost > self.tokens:
                    raise ConfigError(
                        f"{group.example.source or group.example.query_id}: a group of "
                        f"{len(group.chosen)} documents takes {cost} tokens, more than "
                        "--batch_tokens "
                        f"{self.tokens}; raise it, or lower --max_length or --max_negative_samples"
                    )
                if current and used + cost > self.tokens:
                    batches.append(current)
                    current, used = [], 0
                current.append((epoch, index, number))
                used += cost
        if current:
            batches.append(current)
        return batches


def _split_to(batches: list[list[Item]], total: int) -> list[list[Item]]:
    """Make ``total`` batches of fewer: halve the largest; if none can be halved, add fillers.

    A filler repeats a group for a process that would otherwise have no batch while the others take
    a step; its loss counts nothing.
    """
    batches = list(batches)
    while len(batches) < total:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batch = batches[largest]
        if len(batch) < 2:
            epoch, index, _ = batch[0]
            batches.append([(epoch, index, FILLER)])
            continue
        half = len(batch) // 2
        batches[largest : largest + 1] = [batch[:half], batch[half:]]
    return batches
