"""The arithmetic of benchmarks/serve.py, and that what differs or fails is not measured."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from rankwright.server.app import Service
from tests.documents import benchmark
from tests.server.fakes import WordScorer, serving

BODIES = [{"query": f"q{i}", "documents": [f"{i} a", "7 b", "3"]} for i in range(30)]


class Shifted(WordScorer):
    """Scores that are off by less or more than what is let pass."""

    shift = 0.0

    def score(self, parts: object) -> list[list[float]]:
        return [[s + self.shift for s in scores] for scores in super().score(parts)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    return benchmark("serve")


@pytest.fixture
def servers() -> Iterator[tuple[dict[str, str], WordScorer, Shifted]]:
    ours, theirs = WordScorer(), Shifted()
    with serving(Service([ours])) as one, serving(Service([theirs])) as other:
        yield {"rankwright": one, "peer": other}, ours, theirs


def test_servers_that_differ_are_not_measured(
    serve: ModuleType, servers: tuple[dict[str, str], WordScorer, Shifted]
) -> None:
    urls, _, theirs = servers
    assert serve.check(urls, BODIES[:3]) == 0.0
    theirs.shift = 5e-5
    assert serve.check(urls, BODIES[:3]) == pytest.approx(5e-5, abs=1e-7)
    theirs.shift = 2e-4
    with pytest.raises(serve.speed.SpeedError, match=r"peer scores differ by 2\.0e-04"):
        serve.check(urls, BODIES[:3])


def test_every_request_is_sent_once(
    serve: ModuleType,
    servers: tuple[dict[str, str], WordScorer, Shifted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one client each latency is a tick of the clock, and so is each pause between them."""
    urls, ours, _ = servers
    done = asyncio.run(serve.load(urls["rankwright"], BODIES, 4))
    sent = [query for batch in ours.batches for query, _ in batch]
    assert sorted(sent) == sorted(body["query"] for body in BODIES)
    assert len(done.latencies) == 30
    ticks = itertools.count()
    monkeypatch.setattr(serve, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    done = asyncio.run(serve.load(urls["rankwright"], BODIES, 1))
    assert (done.latencies, done.seconds) == ([1] * 30, 61)


def test_what_is_cut_or_fails_stops_the_run(
    serve: ModuleType, servers: tuple[dict[str, str], WordScorer, Shifted]
) -> None:
    urls = servers[0]
    with pytest.raises(serve.speed.SpeedError, match="a request was cut to what is read at most"):
        serve.check(urls, [{"query": "q", "documents": ["1 " + "w " * 60]}])
    with pytest.raises(serve.speed.SpeedError, match=r"500: .*the model failed"):
        asyncio.run(serve.load(urls["rankwright"], [{"query": "q", "documents": ["poison"]}], 1))


def test_the_table(serve: ModuleType) -> None:
    """30 requests in 2, 3 and 6 s beside 4, 6 and 6 s: 15, 10 and 5 a second, ratios 2, 2 and 1.

    Latencies 1 to 101 ms: the median is 51, and 99 of the 100 steps up is 100.
    """
    steps = [n / 1000 for n in range(1, 102)]
    outcomes = [
        serve.Outcome("m", 8, system, [serve.Round(s, steps) for s in seconds], 2**30)
        for system, seconds in (("peer", (4.0, 6.0, 6.0)), ("rankwright", (2.0, 3.0, 6.0)))
    ]
    assert list(serve.rows_of(outcomes, 30)) == [
        ["m", "8", "peer", "5.00 (5.00-7.50)", "2.00 (1.00-2.00)", "51 (51-51)", "100 (100-100)",
         "1.00"],
        ["m", "8", "rankwright", "10.00 (5.00-15.00)", "1", "51 (51-51)", "100 (100-100)", "1.00"],
    ]  # fmt: skip
