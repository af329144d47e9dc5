"""Does a server stay as it is under clients that vanish, send garbage, or are slow?

A real ``rankwright serve`` process with a small model, an API key and low limits, and for
``--minutes`` about ``--rate`` clients a second, of four sorts:

- **good** ones, in the forms of Cohere (v1, v2), Jina, TEI and ``/score``. Every answer is compared
  with the scores that the same pairs got in this process before: each document there once, in
  order, equal to 1e-5. In bursts they are more than the queue holds; who is told to come back (429)
  does, and has to be served then.
- those that **vanish**: in the head, in the body, before the answer, within it; half of them with a
  reset.
- **garbage**: no HTTP, no JSON, wrong types, nesting, sizes, keys, methods, lengths. It must be
  refused by a 4xx or a closed connection, soon.
- **slow** ones: a good body in small pieces, an answer read slowly (both must end well); a head or
  a body that never ends (must be ended by the server), a connection that idles.

Nothing may be lost, wrong or answered with 5xx. Every few seconds the process's memory, files and
threads are looked at; memory must not grow by more than ``--max_growth`` MiB an hour (a line fitted
to the last two thirds of the time, where it ran for ten minutes at least), and in the end it must
hold no more files than in the beginning, and no request. Then SIGTERM comes with requests in
flight, which must be answered; the exit code must be 0 and the log without a traceback.

    python benchmarks/soak_serve.py --minutes 60 --output soak.json
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from machine import surroundings
from soak_train import WORDS, make_inputs
from transformers import BertConfig, BertForSequenceClassification

from rankwright import Reranker

KEY = "a key for this soak"
SEND_BUFFERS = Path("/proc/sys/net/ipv4/tcp_wmem")


def _unsendable() -> int:
    """Bytes of which a socket keeps some if nobody reads: its largest buffer and more."""
    try:
        largest = int(SEND_BUFFERS.read_text(encoding="ascii").split()[-1])
    except OSError:
        largest = 2**22
    return largest + 2**20


LARGE = _unsendable()
LIMITS = {"max_documents": 64, "max_bytes": LARGE + 2**16, "max_tokens": 12_000, "max_queue": 24}
TIMEOUT = 10.0
# an answer or an end must have come by then: the server's time limit and some
PATIENCE = 45.0
TOLERANCE = 1e-5
BURST_EVERY = 45.0
SHARES = {"good": 0.72, "vanish": 0.1, "garbage": 0.12, "slow": 0.06}
# at once, of those that are not good
MOST = 48


@dataclass
class Query:
    """A query, its documents and what a model says of each."""

    text: str
    documents: list[str]
    logits: list[float]


@dataclass
class Tally:
    """What was seen."""

    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    told_to_wait: int = 0
    told_to_leave: int = 0
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Note what must not be."""
        self.problems.append(text)
        print(f"problem: {text}", flush=True)

    def status(self, kind: str, status: str) -> None:
        """Note how a client of a kind was answered."""
        self.statuses.setdefault(kind, Counter())[status] += 1


def make_queries(reranker: Any, draw: random.Random) -> list[Query]:
    """Queries with documents of many lengths and their logits, scored one by one."""
    found = []
    for _ in range(60):
        query = " ".join(draw.sample(WORDS, draw.randint(1, 8)))
        texts = [" ".join(draw.choices(WORDS, k=draw.choice((1, 8, 40, 150)))) for _ in range(40)]
        logits = [reranker.score([(query, text)])[0] for text in texts]
        found.append(Query(query, texts, logits))
    return found


def make_model(folder: Path) -> str:
    """The small model of ``soak_train.py``, its scores far enough apart to be told from another's.

    With the usual weights those of a query stand within 1e-3, most of them nearer than
    ``TOLERANCE`` to the next one, and an exchange of two would not be seen.
    """
    base = make_inputs(folder)["model"]
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(base, initializer_range=0.3)
    BertForSequenceClassification(config).save_pretrained(base)
    return base


def sigmoid(value: float) -> float:
    """Of a logit."""
    return 1 / (1 + math.exp(-value))


class Good:
    """A request in one of the forms, and what its answer must be."""

    FORMS = ("cohere v1", "cohere v2", "jina", "tei", "score")

    def __init__(self, queries: list[Query], draw: random.Random, most: int = 30) -> None:
        self.form = draw.choice(self.FORMS)
        self.query = draw.choice(queries)
        count = draw.randint(1, most)
        self.places = draw.sample(range(len(self.query.documents)), count)
        self.top_n = draw.choice((None, None, 1, draw.randint(1, count)))
        texts = [self.query.documents[place] for place in self.places]
        body: dict[str, Any] = {"query": self.query.text}
        if self.form == "tei":
            self.path, self.top_n = "/rerank", None
            body |= {"texts": texts, "raw_scores": draw.random() < 0.5}
        elif self.form == "score":
            self.path, self.top_n = "/score", None
            body = {"text_1": self.query.text, "text_2": texts, "activation": False}
        else:
            self.path = {"cohere v1": "/v1/rerank", "cohere v2": "/v2/rerank"}.get(
                self.form, "/v1/rerank"
            )
            named = [{"text": text} for text in texts]
            body |= {"documents": named if self.form == "jina" else texts}
            body |= {"return_documents": draw.random() < 0.3}
            if self.top_n is not None:
                body["top_n"] = self.top_n
        self.body = body
        self.logits_asked = bool(body.get("raw_scores")) or self.form == "score"

    def fault(self, answer: Any) -> str | None:
        """What is wrong with the answer."""
        if self.form == "tei":
            found = [(entry["index"], entry["score"]) for entry in answer]
        elif self.form == "score":
            found = [(entry["index"], entry["score"]) for entry in answer["data"]]
        else:
            found = [(entry["index"], entry["relevance_score"]) for entry in answer["results"]]
        wanted = [self.query.logits[place] for place in self.places]
        if not self.logits_asked:
            wanted = [sigmoid(value) for value in wanted]
        indices = [index for index, _ in found]
        if self.top_n is None and sorted(indices) != list(range(len(wanted))):
            return f"documents {indices} of {len(wanted)}"
        if not len(set(indices)) == len(indices) == min(self.top_n or len(wanted), len(wanted)):
            return f"{len(indices)} results"
        worst = max(abs(score - wanted[index]) for index, score in found)
        if worst > TOLERANCE:
            return f"a score differs by {worst:.1e}"
        scores = [score for _, score in found]
        if self.form != "score":
            if any(after > before for before, after in itertools.pairwise(scores)):
                return "not in order"
            left_out = [wanted[i] for i in range(len(wanted)) if i not in indices]
            if left_out and max(left_out) > min(scores) + TOLERANCE:
                return "not the best"
        return None


class Soak:
    """The clients of one server.

    Args:
        port: where it listens, on loopback.
        queries: what good clients ask.
        seed: of everything that is drawn.
    """

    def __init__(self, port: int, queries: list[Query], seed: int) -> None:
        self.port = port
        self.queries = queries
        self.draw = random.Random(seed)
        self.tally = Tally()
        self.begin = time.monotonic()
        self.headers = {"authorization": f"Bearer {KEY}"}
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=8)
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers=self.headers,
            timeout=httpx.Timeout(PATIENCE, pool=None),
            limits=limits,
        )
        self.room = asyncio.Semaphore(MOST)

    # good clients

    async def good(self, request: Good | None = None, *, stopping: bool = False) -> None:
        """Ask until answered; whatever is not right is a problem."""
        request = request or Good(self.queries, self.draw)
        kind, begin = request.form, time.monotonic()
        self.tally.asked[kind] += 1
        while True:
            asked = time.monotonic()
            try:
                answer = await self.client.post(request.path, json=request.body)
            except httpx.HTTPError as error:
                self.tally.problem(f"{kind}: lost, {type(error).__name__} {error}")
                return
            if answer.status_code != 429 or asked - begin > 300:
                break
            self.tally.told_to_wait += 1
            await asyncio.sleep(float(answer.headers["retry-after"]) * self.draw.uniform(0.2, 1))
        if stopping and answer.status_code == 503:
            self.tally.told_to_leave += 1
        elif answer.status_code != 200:
            self.tally.problem(f"{kind}: lost, {answer.status_code} {answer.text[:200]}")
        elif fault := request.fault(answer.json()):
            self.tally.problem(f"{kind}: wrong, {fault}")
        else:
            self.tally.answered[kind] += 1
            if not stopping:
                self.tally.latencies.append((asked - self.begin, time.monotonic() - asked))

    # raw connections

    def head(self, path: str, size: int | None, *, method: str = "POST", more: str = "") -> bytes:
        """A request's head."""
        length = "" if size is None else f"content-length: {size}\r\n"
        return (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n{length}{more}\r\n"
        ).encode("latin-1")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection with a small window for what comes back."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=plain, limit=2**16)

    def whole(self) -> tuple[Good, bytes]:
        """A good request as bytes."""
        request = Good(self.queries, self.draw)
        body = json.dumps(request.body).encode()
        return request, self.head(request.path, len(body)) + body

    async def status(self, reader: asyncio.StreamReader) -> str:
        """The status of what is answered, or ``closed``; ``nothing`` after a long wait."""
        try:
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
        except TimeoutError:
            return "nothing"
        except OSError:
            return "closed"
        found = re.match(rb"HTTP/1\.[01] ([0-9]{3}) ", line)
        return found[1].decode() if found else "closed"

    def large(self) -> bytes:
        """A good request whose answer is more than the sockets between them hold."""
        document = {"text": WORDS[0], "note": "x" * LARGE}
        request = {"query": "a", "documents": [document], "return_documents": True}
        body = json.dumps(request).encode()
        return self.head("/v1/rerank", len(body)) + body

    async def answer_head(self, reader: asyncio.StreamReader) -> tuple[str, int]:
        """Status, and the size of the body that follows."""
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"content-length: ([0-9]+)", head)[1])  # type: ignore[index]
        return head.split(b" ", 2)[1].decode(), size

    async def answer(self, reader: asyncio.StreamReader, pause: float) -> tuple[str, bytes]:
        """Status and body, read in pieces."""
        status, size = await self.answer_head(reader)
        body = b""
        while len(body) < size:
            piece = await reader.read(min(512, size - len(body)))
            if not piece:
                raise EOFError
            body += piece
            await asyncio.sleep(pause)
        return status, body

    async def left_unread(self, reader: asyncio.StreamReader) -> str:
        """What came of a large answer that was left unread for longer than the server waits."""
        status, left = await self.answer_head(reader)
        if status != "200":
            if status != "429":
                self.tally.problem(f"slow (answer not read): {status}")
            return status
        try:
            while left and (piece := await reader.read(2**16)):
                left -= len(piece)
        except OSError:
            return "cut"
        if not left:
            self.tally.problem("slow (answer not read): the server held it and waited")
        return "cut" if left else "whole"

    async def vanish(self) -> None:
        """Leave in the middle."""
        kind = self.draw.choice(("in the head", "in the body", "before the answer", "within it"))
        reader, writer = await self.connect()
        _, request = self.whole()
        end = request.index(b"\r\n\r\n") + 4
        if kind == "within it":
            # the sockets between them would hold the whole of a small one
            request = self.large()
        cut = {
            "in the head": self.draw.randint(1, end - 1),
            "in the body": self.draw.randint(end, len(request) - 1),
        }.get(kind, len(request))
        writer.write(request[:cut])
        await writer.drain()
        if kind == "within it":
            await reader.read(20)
        else:
            await asyncio.sleep(self.draw.choice((0, 0.01, 0.1)))
        reset = self.draw.random() < 0.5
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort() if reset else writer.close()
        self.tally.status(f"vanish {kind}", "reset" if reset else "closed by the client")

    def rubbish(self) -> tuple[str, bytes]:
        """Something no server can answer, and what it is called."""
        draw = self.draw
        documents = ["a text"] * (LIMITS["max_documents"] + 1)
        long = " ".join(draw.choices(WORDS, k=300))
        bodies: dict[str, bytes] = {
            "bytes for JSON": draw.randbytes(200),
            "half of a JSON": b'{"query": "a", "documents": ["b"',
            "wrong types": json.dumps({"query": 3, "documents": {"a": None}}).encode(),
            "no documents": json.dumps({"query": "a", "documents": []}).encode(),
            "nesting": b"[" * 100_000,
            "not UTF-8": b'{"query": "\xff\xfe", "documents": ["b"]}',
            "half a surrogate pair": b'{"query": "a", "documents": ["\\ud800"]}',
            "huge numbers": b'{"query": "a", "documents": ["b"], "top_n": 1e999}',
            "too many documents": json.dumps({"query": "a", "documents": documents}).encode(),
            "too many tokens": json.dumps({"query": "a", "documents": [long] * 60}).encode(),
            "too many bytes": b" " * (LIMITS["max_bytes"] + 1),
        }
        kinds = [
            *bodies, "no HTTP", "a huge head", "no key", "another key", "another method",
            "another path", "a length below 0", "two lengths", "a body that ends too soon",
            "chunks of no size",
        ]  # fmt: skip
        kind = draw.choice(kinds)
        if kind in bodies:
            path = draw.choice(("/rerank", "/v1/rerank", "/v2/rerank"))
            return kind, self.head(path, len(bodies[kind])) + bodies[kind]
        body = b'{"query": "a", "documents": ["b"]}'
        plain = self.head("/rerank", len(body)) + body
        bearer = f"authorization: Bearer {KEY}\r\n".encode()
        return kind, {
            "no HTTP": draw.randbytes(draw.randint(1, 3000)).replace(b"\n", b" ") + b"\n\n",
            "a huge head": self.head("/rerank", 2, more=f"x: {'y' * 300_000}\r\n") + b"{}",
            "no key": plain.replace(bearer, b""),
            "another key": plain.replace(bearer, b"authorization: Bearer \xe9\r\n"),
            "another method": self.head("/rerank", 0, method=draw.choice(("PUT", "BREW"))),
            "another path": self.head("/" + "%00../" * draw.randint(1, 20), 0),
            "a length below 0": self.head("/rerank", -1) + body,
            "two lengths": self.head("/rerank", 3, more="content-length: 4\r\n") + body,
            "a body that ends too soon": self.head("/rerank", 2 * len(body)) + body,
            "chunks of no size": self.head("/rerank", None, more="transfer-encoding: chunked\r\n")
            + b"zz\r\n",
        }[kind]

    async def garbage(self) -> None:
        """Send what cannot be answered; it must be refused."""
        kind, data = self.rubbish()
        reader, writer = await self.connect()
        try:
            writer.write(data)
            # it may be refused before all of it is there
            try:
                await writer.drain()
                if kind == "a body that ends too soon":
                    writer.write_eof()
            except OSError:
                pass
            status = await self.status(reader)
        finally:
            writer.close()
        self.tally.status(kind, status)
        if status != "closed" and not status.startswith("4"):
            self.tally.problem(f"garbage ({kind}): {status}")

    async def slow(self) -> None:
        """Take long, within what is allowed or beyond it."""
        kind = self.draw.choice(
            (
                *("body in pieces", "answer in pieces", "answer not read"),
                *("endless head", "endless body", "idle"),
            )
        )
        reader, writer = await self.connect()
        request, data = self.whole()
        end = data.index(b"\r\n\r\n") + 4
        status = "right"
        try:
            async with asyncio.timeout(2 * PATIENCE):
                if kind in ("body in pieces", "answer in pieces"):
                    pieces = 20 if kind == "body in pieces" else 1
                    step = -(-len(data) // pieces)
                    for start in range(0, len(data), step):
                        writer.write(data[start : start + step])
                        await asyncio.sleep(TIMEOUT / 3 / pieces)
                    got, body = await self.answer(reader, 0.2 if pieces == 1 else 0)
                    if got == "429":
                        status = got
                    elif got != "200":
                        status = "lost"
                        self.tally.problem(f"slow ({kind}): {got} {body[:200]!r}")
                    elif fault := request.fault(json.loads(body)):
                        status = "wrong"
                        self.tally.problem(f"slow ({kind}): {fault}")
                elif kind == "answer not read":
                    writer.write(self.large())
                    await asyncio.sleep(2 * TIMEOUT)
                    status = await self.left_unread(reader)
                elif kind == "idle":
                    writer.write(self.head("/health", None, method="GET"))
                    await self.answer(reader, 0)
                    status = "closed" if await reader.read(1) == b"" else "more"
                else:
                    first, last = (1, end - 2) if kind == "endless head" else (end, len(data) - 1)
                    writer.write(data[: self.draw.randint(first, last)])
                    more = b"x" if kind == "endless head" else b" "
                    asked = asyncio.ensure_future(self.status(reader))
                    while not asked.done():
                        await asyncio.sleep(1)
                        if kind == "endless head":
                            writer.write(more)
                    status = await asked
                    if status == "nothing" or status.startswith(("2", "5")):
                        self.tally.problem(f"slow ({kind}): {status} within {PATIENCE:g} s")
        except TimeoutError:
            status = "nothing"
            self.tally.problem(f"slow ({kind}): neither an answer nor an end")
        except (OSError, EOFError) as error:
            status = "closed"
            if kind in ("body in pieces", "answer in pieces"):
                self.tally.problem(f"slow ({kind}): lost, {type(error).__name__}")
        finally:
            writer.close()
        self.tally.status(f"slow: {kind}", status)

    # the load

    async def bounded(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Let a bad client work when there is room for it."""
        async with self.room:
            try:
                await work()
            except OSError as error:
                self.tally.status(name, type(error).__name__)

    async def run(self, minutes: float, rate: float, process: int, every: float) -> None:
        """Send clients at random times, with bursts, and look at the process."""
        end = self.begin + 60 * minutes
        waiting: set[asyncio.Task[None]] = set()
        next_burst, next_sample = self.begin + BURST_EVERY / 3, self.begin
        bad = {"vanish": self.vanish, "garbage": self.garbage, "slow": self.slow}

        def send(work: Any) -> None:
            task = asyncio.ensure_future(work)
            waiting.add(task)
            task.add_done_callback(waiting.discard)

        while (now := time.monotonic()) < end:
            if now >= next_sample:
                self.tally.samples.append({"seconds": now - self.begin, **state(process)})
                next_sample += every
            if now >= next_burst:
                next_burst += BURST_EVERY
                for _ in range(2 * LIMITS["max_queue"]):
                    send(self.good())
            name = self.draw.choices(list(SHARES), list(SHARES.values()))[0]
            send(self.good() if name == "good" else self.bounded(bad[name], name))
            await asyncio.sleep(self.draw.expovariate(rate))
        while waiting:
            await asyncio.wait(set(waiting))

    async def rest(self, process: int) -> None:
        """Nothing may be left once all clients have gone."""
        first = self.tally.samples[0]["files"]
        await self.client.aclose()
        for _ in range(100):
            await asyncio.sleep(0.5)
            if state(process)["files"] <= first:
                break
        else:
            self.tally.problem(f"{state(process)['files']:.0f} files are open, {first:.0f} before")
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", headers=self.headers, timeout=PATIENCE
        )
        if held := await self.in_flight():
            self.tally.problem(f"{held:.0f} requests are in flight, and no client is there")

    async def in_flight(self) -> float:
        """Requests that the server says it has."""
        text = (await self.client.get("/metrics")).text
        found = re.search(r"^rankwright_in_flight ([0-9.]+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def judge_leaving(self, waiting: int, inside: float) -> None:
        """Those that had not reached the server when it was told to stop may be sent away."""
        if self.tally.told_to_leave > waiting - inside:
            self.tally.problem(
                f"{self.tally.told_to_leave} of {waiting} were sent away, of which {inside:.0f} "
                f"were in flight when the server was told to stop"
            )

    async def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM with requests in flight; the exit code."""
        count = LIMITS["max_queue"] - 4
        for _ in range(20):
            tasks = [
                asyncio.ensure_future(
                    self.good(Good(self.queries, self.draw, most=40), stopping=True)
                )
                for _ in range(count)
            ]
            while (done := sum(task.done() for task in tasks)) < count:
                if (inside := await self.in_flight()) >= count / 2:
                    process.send_signal(signal.SIGTERM)
                    await asyncio.gather(*tasks)
                    self.judge_leaving(count - done, inside)
                    return await asyncio.to_thread(process.wait, 60)
        self.tally.problem("the server was too fast to be stopped with requests in flight")
        process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(process.wait, 60)


def state(process: int) -> dict[str, float]:
    """Memory in MiB, open files and threads of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")

    def mebibytes(name: str) -> float:
        found = re.search(rf"^{name}:\s+([0-9]+) kB", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else math.nan

    threads = re.search(r"^Threads:\s+([0-9]+)", status, re.MULTILINE)
    return {
        "anonymous": mebibytes("RssAnon"),
        "resident": mebibytes("VmRSS"),
        "files": len(os.listdir(f"/proc/{process}/fd")),
        "threads": int(threads[1]) if threads else 0,
    }


def growth(samples: list[dict[str, float]]) -> float:
    """MiB an hour: the slope of a line through the last two thirds of the samples."""
    last = samples[len(samples) // 3 :]
    seconds = [sample["seconds"] for sample in last]
    if len(last) < 2:
        return 0.0
    return float(3600 * np.polyfit(seconds, [sample["anonymous"] for sample in last], 1)[0])


def start(base: str, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server that listens, and its port.

    Raises:
        SystemExit: it does not.
    """
    words = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "rankwright", "serve", "--model", base, "--port", "0"),
                *("--api_key", KEY, "--timeout", str(TIMEOUT), *words),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    for _ in range(1200):
        found = re.search(r"http://127\.0\.0\.1:([0-9]+)", log.read_text(encoding="utf-8"))
        if found:
            return process, int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the server did not start: {log.read_text(encoding='utf-8')}")


def report(tally: Tally, options: argparse.Namespace) -> dict[str, Any]:
    """Print the tables; the figures."""
    asked, answered = sum(tally.asked.values()), sum(tally.answered.values())
    print(
        f"\n{asked} good requests, {answered} answered right; {tally.told_to_wait} times one was "
        f"told to come back, and did; {tally.told_to_leave} came when the server was stopping"
    )
    for form in Good.FORMS:
        print(f"  {form:<12}{tally.asked[form]:>8}{tally.answered[form]:>8}")
    print(f"\n{'client':<34}{'times':>7}  answers")
    for kind, counts in sorted(tally.statuses.items()):
        parts = ", ".join(f"{status} {count}" for status, count in counts.most_common())
        print(f"{kind:<34}{sum(counts.values()):>7}  {parts}")
    quarters = []
    print(f"\n{'of the time':<14}{'requests':>9}{'p50, ms':>9}{'p99, ms':>9}{'most, ms':>10}")
    span = options.minutes * 60 / 4
    for number, name in enumerate(("first quarter", "second", "third", "last")):
        taken = [1000 * t for at, t in tally.latencies if number <= at / span < number + 1]
        if taken:
            p50, p99 = np.percentile(taken, [50, 99])
            print(f"{name:<14}{len(taken):>9}{p50:>9.1f}{p99:>9.1f}{max(taken):>10.1f}")
            quarters.append([len(taken), float(p50), float(p99), max(taken)])
    slope = growth(tally.samples)
    memory = [sample["anonymous"] for sample in tally.samples]
    files = [sample["files"] for sample in tally.samples]
    print(
        f"\nanonymous memory {memory[0]:.0f} MiB first, {max(memory):.0f} at most, "
        f"{memory[-1]:.0f} last; {slope:+.1f} MiB an hour over the last two thirds\n"
        f"open files {files[0]:.0f} first, {max(files):.0f} at most; threads "
        f"{tally.samples[0]['threads']:.0f} first, "
        f"{max(sample['threads'] for sample in tally.samples):.0f} at most"
    )
    if options.minutes >= 10 and slope > options.max_growth:
        tally.problem(f"memory grows by {slope:.1f} MiB an hour, more than {options.max_growth:g}")
    return {
        "asked": tally.asked,
        "answered": tally.answered,
        "told_to_wait": tally.told_to_wait,
        "told_to_leave": tally.told_to_leave,
        "statuses": tally.statuses,
        "requests_p50_p99_most_ms_by_quarter": quarters,
        "growth_mib_an_hour": slope,
        "samples": tally.samples,
        "problems": tally.problems,
    }


async def soak(options: argparse.Namespace, base: str, log: Path) -> Tally:
    """Everything that is done to one server."""
    queries = make_queries(Reranker.load(base, device="cpu"), random.Random(options.seed))
    process, port = start(base, log)
    try:
        clients = Soak(port, queries, options.seed)
        for _ in range(20):
            await clients.good()
        clients.tally.latencies.clear()
        clients.begin = time.monotonic()
        await clients.run(options.minutes, options.rate, process.pid, options.sample)
        await clients.rest(process.pid)
        code = await clients.stop(process)
        await clients.client.aclose()
    finally:
        process.kill()
    if code:
        clients.tally.problem(f"the exit code after SIGTERM is {code}")
    text = log.read_text(encoding="utf-8", errors="replace")
    if "Traceback" in text or " failed: " in text:
        clients.tally.problem(f"the log: {text[-2000:]}")
    return clients.tally


def main() -> int:
    """Load a server, print what came of it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=15, help="clients a second, about")
    parser.add_argument("--sample", type=float, default=5, help="seconds between looks at memory")
    parser.add_argument(
        "--max_growth", type=float, default=16, help="MiB an hour that memory may grow"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="raw results, JSON")
    options = parser.parse_args()
    about = surroundings("soak_serve.py", 1)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        base = make_model(Path(folder))
        tally = asyncio.run(soak(options, base, Path(folder) / "log"))
    found = report(tally, options)
    if options.output is not None:
        options.output.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(tally.problems)} problems" if tally.problems else "\nnothing lost")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
