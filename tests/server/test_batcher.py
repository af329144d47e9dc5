"""Batches across requests: order, budget, fairness, cancelled and failed work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rankwright.server.batcher import Batcher, ClosedError, ScoringError
from rankwright.types import Example
from tests.server.fakes import Words, WordScorer, until


@contextmanager
def batching(**options: Any) -> Iterator[Batcher]:
    batcher = Batcher(**options)
    try:
        yield batcher
    finally:
        batcher.close()


def texts(*documents: str, query: str = "q") -> Example:
    return Example(query, list(documents), [0.0] * len(documents))


async def ask(batcher: Batcher, scorer: WordScorer, *examples: Example) -> list[list[float]]:
    encoded = await batcher.encode(lambda: [scorer.encode(example) for example in examples])
    return [scored.scores for scored in await batcher.score(scorer, encoded)]


def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """All at once in a new event loop; errors are results."""

    async def run() -> list[Any]:
        return list(await asyncio.gather(*work, return_exceptions=True))

    return asyncio.run(run())


def test_each_request_gets_its_own_scores_in_its_own_order() -> None:
    """40 requests of random sizes at once: every score is that of its own document."""
    random_ = random.Random(0)
    asked = [
        [f"{random_.randint(0, 999)} {'w ' * random_.randint(0, 30)}" for _ in range(n)]
        for n in (random_.randint(1, 40) for _ in range(40))
    ]
    scorer = WordScorer()
    with batching() as batcher:
        found = together(
            *(ask(batcher, scorer, texts(*a, query=str(i))) for i, a in enumerate(asked))
        )
    assert found == [[[float(t.split()[0]) for t in a]] for a in asked]
    assert len(scorer.threads) == 1


def test_batches_hold_to_the_budget_and_mix_requests() -> None:
    """25 requests of 8 words with a budget of 100: while one batch is held the rest queue up, so
    each later batch holds 12 of them.
    """
    scorer, seen = WordScorer(batch_tokens=100), []
    scorer.hold.clear()

    async def run() -> None:
        first = asyncio.ensure_future(ask(batcher, scorer, texts("0")))
        await asyncio.to_thread(scorer.started.wait)
        rest = [
            asyncio.ensure_future(ask(batcher, scorer, texts(f"{i} b c d e f g h")))
            for i in range(25)
        ]
        while batcher.waiting_requests < 25:
            await asyncio.sleep(0.001)
        assert batcher.waiting_tokens == 25 * 8
        scorer.hold.set()
        await first
        assert [await one for one in rest] == [[[float(i)]] for i in range(25)]

    with batching(watch=seen.append) as batcher:
        asyncio.run(run())
    assert [(s.tokens, s.units, s.requests) for s in seen] == [
        (1, 1, 1),
        (96, 12, 12),
        (96, 12, 12),
        (8, 1, 1),
    ]


def test_a_small_request_overtakes_a_large_one() -> None:
    """1000 documents of 10 words fill 100 batches of 100; what comes while the first is computed is
    in the second, beside a part of the large one.
    """
    scorer = WordScorer(batch_tokens=100)
    scorer.hold.clear()
    finished: list[str] = []

    async def named(name: str, example: Example) -> None:
        await ask(batcher, scorer, example)
        finished.append(name)

    async def run() -> None:
        large = asyncio.ensure_future(named("large", texts(*["w " * 10] * 1000, query="large")))
        await asyncio.to_thread(scorer.started.wait)
        small = asyncio.ensure_future(named("small", texts("a", "b", query="small")))
        while batcher.waiting_requests < 2:
            await asyncio.sleep(0.001)
        scorer.hold.set()
        await asyncio.gather(large, small)

    with batching() as batcher:
        asyncio.run(run())
    assert finished == ["small", "large"]
    assert [query for query, _ in scorer.batches[1]] == ["large", "small"]
    assert sum(len(part) for batch in scorer.batches for q, part in batch if q == "large") == 1000


def test_many_large_requests_take_turns() -> None:
    """Two requests of 40 documents: neither finishes before the other has begun its last batch."""
    scorer = WordScorer(batch_tokens=40)
    scorer.hold.clear()

    async def run() -> None:
        first = asyncio.ensure_future(ask(batcher, scorer, texts("0")))
        await asyncio.to_thread(scorer.started.wait)
        both = [
            asyncio.ensure_future(ask(batcher, scorer, texts(*["w " * 10] * 40, query=query)))
            for query in "ab"
        ]
        while batcher.waiting_requests < 2:
            await asyncio.sleep(0.001)
        scorer.hold.set()
        await asyncio.gather(first, *both)

    with batching() as batcher:
        asyncio.run(run())
    shares = [{q: len(part) for q, part in batch} for batch in scorer.batches[1:]]
    assert shares == [{"a": 2, "b": 2}] * 20


def test_a_document_above_the_budget_is_a_batch_of_its_own() -> None:
    scorer = WordScorer(batch_tokens=10, limit=50)
    with batching() as batcher:
        found = together(ask(batcher, scorer, texts("1 " + "w " * 29, "2", "3 " + "w " * 19)))
    assert found == [[[1.0, 2.0, 3.0]]]
    assert [len(part) for batch in scorer.batches for _, part in batch] == [1, 1, 1]


def test_a_shared_prefix_is_paid_once_for_each_batch() -> None:
    """Prefix 30, documents of 10, budget 100: 7 fit; a turn (25) is less than one with the prefix,
    so the first turn takes one and each later turn two more.
    """
    scorer = WordScorer(batch_tokens=100)
    example = texts(*["1"] * 14)
    with batching() as batcher:
        ((found,),) = together(batcher.score(scorer, [Words(example, (10,) * 14, shared=30)]))
    assert found.scores == [1.0] * 14
    assert [len(part) for batch in scorer.batches for _, part in batch] == [7, 7]


def test_several_examples_of_one_request() -> None:
    scorer = WordScorer()
    with batching() as batcher:
        found = together(ask(batcher, scorer, texts("1", "2 b c"), texts("3"), texts("4 b", "5")))
    assert found == [[[1.0, 2.0], [3.0], [4.0, 5.0]]]
    assert len(scorer.batches) == 1


def test_models_take_turns() -> None:
    """A batch is one model's; a model with much to do does not keep the other from working."""
    one, other = WordScorer("one", 10), WordScorer("other", 10)
    one.hold.clear()
    one.log = other.log

    async def run() -> None:
        first = asyncio.ensure_future(ask(batcher, one, texts(*["1 w w w w"] * 20)))
        await asyncio.to_thread(one.started.wait)
        second = asyncio.ensure_future(ask(batcher, other, texts("7")))
        while batcher.waiting_requests < 2:
            await asyncio.sleep(0.001)
        one.hold.set()
        assert await second == [[7.0]]
        await first

    with batching() as batcher:
        asyncio.run(run())
    # the large job went to the back before the small one came, and is first once more
    assert other.log == ["one", "one", "other"] + ["one"] * 8


def test_cancelled_work_is_not_computed() -> None:
    """A request of ten batches that is cancelled during its first gives up the other nine."""
    scorer = WordScorer(batch_tokens=10)
    scorer.hold.clear()

    async def run() -> None:
        doomed = asyncio.ensure_future(ask(batcher, scorer, texts(*["w " * 10] * 10, query="d")))
        await asyncio.to_thread(scorer.started.wait)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert batcher.waiting_tokens == 0
        scorer.hold.set()
        assert await ask(batcher, scorer, texts("5", query="next")) == [[5.0]]

    with batching() as batcher:
        asyncio.run(run())
    assert [[query for query, _ in batch] for batch in scorer.batches] == [["d"], ["next"]]


def test_a_failure_is_its_own_request_s_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A batch of three with one that breaks the model: the two others are answered; the log has one
    line, and none of the request's text.
    """
    scorer = WordScorer()
    scorer.hold.clear()

    async def run() -> list[Any]:
        first = asyncio.ensure_future(ask(batcher, scorer, texts("0")))
        await asyncio.to_thread(scorer.started.wait)
        asked = [texts("1"), texts("2", "poison here"), texts("3")]
        rest = [asyncio.ensure_future(ask(batcher, scorer, example)) for example in asked]
        while batcher.waiting_requests < 3:
            await asyncio.sleep(0.001)
        scorer.hold.set()
        await first
        return list(await asyncio.gather(*rest, return_exceptions=True))

    with batching() as batcher:
        one, broken, three = asyncio.run(run())
        assert (one, three) == ([[1.0]], [[3.0]])
        assert isinstance(broken, ScoringError)
        assert str(broken) == "the model failed (RuntimeError); see the log"
        assert together(ask(batcher, scorer, texts("9"))) == [[[9.0]]]
    assert [record.getMessage() for record in caplog.records] == [
        "the model failed: RuntimeError: poison was read"
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_score_that_is_no_number_fails_its_request(value: str) -> None:
    scorer = WordScorer()
    with batching() as batcher:
        broken, whole = together(
            ask(batcher, scorer, texts("1", value)), ask(batcher, scorer, texts("2"))
        )
    assert whole == [[2.0]]
    assert isinstance(broken, ScoringError)
    assert "not a finite number" in str(broken)


def test_closing_finishes_what_waits_and_takes_no_more() -> None:
    scorer = WordScorer()
    scorer.hold.clear()
    batcher = Batcher()

    async def run() -> None:
        asked = [asyncio.ensure_future(ask(batcher, scorer, texts(str(i)))) for i in range(5)]
        await asyncio.to_thread(scorer.started.wait)
        while sum(len(batch) for batch in scorer.batches) + batcher.waiting_requests < 5:
            await asyncio.sleep(0.001)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        await asyncio.to_thread(until, lambda: batcher._closed)
        with pytest.raises(ClosedError):
            await batcher.score(scorer, [scorer.encode(texts("6"))])
        scorer.hold.set()
        await closing
        assert [await one for one in asked] == [[[float(i)]] for i in range(5)]

    asyncio.run(run())
    assert not batcher.alive


def test_one_client_never_waits_and_many_wait_for_each_other() -> None:
    """The wait is for those that are being encoded, or came with the last batch; here it would
    never end.
    """
    scorer = WordScorer()
    with batching(max_wait=3600.0) as batcher:
        for i in range(3):
            assert together(ask(batcher, scorer, texts(str(i)))) == [[[float(i)]]]
        # two at once: whichever comes first waits for the other, which is being encoded
        scorer.batches.clear()
        gathered = together(*(ask(batcher, scorer, texts(str(i))) for i in range(2)))
        assert gathered == [[[0.0]], [[1.0]]]
        assert sorted(query for batch in scorer.batches for query, _ in batch) == ["q", "q"]
        batcher.max_wait = 0.0


def test_an_empty_request() -> None:
    scorer = WordScorer()
    with batching() as batcher:
        assert together(ask(batcher, scorer, texts())) == [[[]]]
    assert scorer.batches == []
