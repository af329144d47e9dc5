"""A scorer whose scores are known and whose time is the test's, and a server in a thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rankwright.errors import ConfigError
from rankwright.server.app import Service
from rankwright.server.runner import Server, listen
from rankwright.types import Example, ScoredList


@dataclass(frozen=True)
class Words:
    """An example in words."""

    example: Example
    units: tuple[int, ...]
    shared: int = 0
    truncated_documents: int = 0

    @property
    def total(self) -> int:
        return sum(self.units)

    @property
    def truncated(self) -> dict[str, int]:
        return {"documents": self.truncated_documents, "queries": 0}


class WordScorer:
    """A token is a word, and a document's score the number its text begins with, else its length.

    Attributes:
        batches: for each batch, for each part, its query and its documents.
        hold: a batch waits until it is set.
        log: its name for each batch; several scorers may share one.
        started: set when a batch begins.
    """

    def __init__(self, name: str = "words", batch_tokens: int = 100, limit: int = 50) -> None:
        self.name = name
        self.batch_tokens = batch_tokens
        self.max_length = limit
        self.batches: list[list[tuple[str, list[str]]]] = []
        self.log: list[str] = []
        self.threads: set[int] = set()
        self.hold = threading.Event()
        self.hold.set()
        self.started = threading.Event()

    reads_instruction = False

    def probabilities(self, scores: Sequence[float], *, calibrated: bool) -> list[float]:
        if calibrated:
            raise ConfigError("no calibration")
        return [1 / (1 + math.exp(-score)) for score in scores]

    def about(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": "classification",
            "architecture": "words",
            "dtype": "float32",
            "device": "cpu",
            "max_length": self.max_length,
            "instruction": None,
            "calibration": None,
            "passages": None,
        }

    def encode(
        self,
        example: Example,
        *,
        document_tokens: int | None = None,
        max_length: int | None = None,
        passages: int | None = None,
    ) -> Words:
        lengths = [max(1, len(text.split())) for text in example.documents]
        cut = sum(length > self.max_length for length in lengths)
        return Words(example, tuple(min(n, self.max_length) for n in lengths), 0, cut)

    def score(self, parts: Sequence[tuple[Words, Sequence[int]]]) -> list[list[float]]:
        self.threads.add(threading.get_ident())
        batch = [(e.example.query, [e.example.documents[i] for i in places]) for e, places in parts]
        self.batches.append(batch)
        self.log.append(self.name)
        self.started.set()
        assert self.hold.wait(30)
        if any("poison" in text for _, texts in batch for text in texts):
            raise RuntimeError("poison was read\nand more")
        return [[self.value(text) for text in texts] for _, texts in batch]

    @staticmethod
    def value(text: str) -> float:
        try:
            return float(text.split()[0])
        except (ValueError, IndexError):
            return float(len(text))

    def pool(self, encoded: Words, scores: Sequence[float]) -> ScoredList:
        return ScoredList(encoded.example, list(scores))


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The service on a free port of loopback; its address."""
    with listen("127.0.0.1", 0) as listener:
        server = Server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            service.close()
            assert not thread.is_alive()


def until(condition: Any) -> None:
    """Wait for a condition, at most 30 seconds."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
