"""How many requests does the server answer, and how soon, beside sentence-transformers' model?

One command makes the models, starts the servers, checks that they give the same scores in the same
order, lets them work in turn and prints a table:

    python benchmarks/serve.py --work DIR --tokenizers DIR --output results.json

What makes the comparison fair:

- **The same work.** ``rankwright serve`` with its defaults, and a CrossEncoder of the same weights
  behind a plain FastAPI app (``peers/server_sentence_transformers.py``), both on uvicorn, on
  loopback, with as many threads, in float32. Requests have a query of 20 words and documents of
  log-normal lengths; none is cut.
- **The same scores.** On the first requests all give the same logits to 1e-4 and so the same order
  (logits that near may change places), or nothing is measured.
- **A closed loop.** So many clients, each of which sends its next request when the last one is
  answered, over a connection that stays open. A round is a fixed number of requests, the same ones
  for every server in every round. An answer that is not 200 stops the run.
- **Rounds take turns**: A B C A B C; the others wait meanwhile. The first round warms up.
- **Two configurations of the peer**: its defaults, and at its best.
- **Ratio**: seconds of the peer's round over ours; median and range over the rounds. Latencies p50
  and p99 are of one round's requests; median and range over the rounds.

The models have random weights; speed does not depend on them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import machine
import numpy as np
import speed

OURS = "rankwright"
PEER = Path(__file__).resolve().parent / "peers" / "server_sentence_transformers.py"
SYSTEMS = (OURS, "sentence-transformers:documented", "sentence-transformers:best")
TOLERANCE = 1e-4
CHECKED = 5


@dataclass
class Round:
    """One round of one server.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: seconds of each request.
    """

    seconds: float
    latencies: list[float]

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of the requests was answered."""
        return 1000 * float(np.percentile(self.latencies, share))


@dataclass
class Outcome:
    """What one server did with so many clients.

    Attributes:
        model: name in ``speed.MODELS``.
        clients: how many asked at once.
        system: its name.
        rounds: those that were measured.
        peak_memory: bytes, of its process so far.
    """

    model: str
    clients: int
    system: str
    rounds: list[Round] = field(default_factory=list)
    peak_memory: int = 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for models; that of speed.py will do")
    add("--tokenizers", type=Path, required=True, help="folder that holds modernbert/ and qwen3/")
    add("--models", nargs="+", default=["modernbert-small", "qwen3-small"], choices=speed.MODELS)
    add("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, metavar="SYSTEM")
    add("--clients", nargs="+", type=int, default=[1, 8], help="how many ask at once")
    add("--requests", type=int, default=100, help="of a round, shared by the clients")
    add("--documents", type=int, default=10, help="of a request")
    add("--rounds", type=int, default=5, help="measured rounds")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1))
    add("--output", type=Path, help="file for the raw numbers (JSON)")
    options = parser.parse_args()
    for name in ("requests", "documents", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is less than 1")
    if min(options.clients) < 1:
        parser.error("--clients holds a number less than 1")
    if options.output is not None and not options.output.parent.is_dir():
        parser.error(f"--output {options.output}: there is no folder {options.output.parent}")
    options.smoke = False
    return options


@contextmanager
def started(options: argparse.Namespace, system: str, folders: dict[str, str]) -> Iterator[Any]:
    """A server that answers: its address and its process."""
    words = ["-m", "rankwright", "serve", "--model", folders["model"], "--port", "0"]
    if system != OURS:
        words = [str(PEER), "--model", folders["model"]]
    if system.endswith(":best"):
        model = folders["classifier"] or folders["model"]
        words = [str(PEER), "--model", model, "--first", str(options.work / "requests.json")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            lines = []
            for line in process.stdout or ():
                lines.append(line)
                address = next((w for w in line.split() if w.startswith("http://")), None)
                if address is not None:
                    yield address, process
                    break
            else:
                raise speed.SpeedError(f"{system} did not start: {''.join(lines).strip()}")
        finally:
            process.terminate()


def requests(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The bodies of a round."""
    rows = speed.synthetic_rows(options.requests, options.documents)
    return [
        {"query": row["query"], "documents": [*row["positive"], *row["negative"]]} for row in rows
    ]


def ask(url: str, body: dict[str, Any]) -> dict[int, float]:
    """Logits by document, in the order of the answer."""
    answer = httpx.post(f"{url}/rerank", json=body | {"raw_scores": True}, timeout=600)
    if answer.status_code != 200:
        raise speed.SpeedError(f"{url}: {answer.status_code}: {answer.text[:200]}")
    found = answer.json()
    if found.get("meta", {}).get("warnings"):
        raise speed.SpeedError(f"a request was {'; '.join(found['meta']['warnings'])}")
    return {result["index"]: result["relevance_score"] for result in found["results"]}


def check(urls: dict[str, str], bodies: Sequence[dict[str, Any]]) -> float:
    """The largest difference of a logit between the servers.

    Raises:
        SpeedError: it is above ``TOLERANCE``, or an order differs by more.
    """
    largest = 0.0
    for body in bodies:
        answers = {system: ask(url, body) for system, url in urls.items()}
        reference = next(iter(answers.values()))
        for system, found in answers.items():
            if found.keys() != reference.keys():
                raise speed.SpeedError(f"{system} did not answer all documents")
            largest = max(largest, *(abs(found[i] - reference[i]) for i in reference))
            ranked = [reference[i] for i in found]
            fallen = max((b - a for a, b in itertools.pairwise(ranked)), default=0.0)
            if largest > TOLERANCE or fallen > TOLERANCE:
                raise speed.SpeedError(
                    f"{system} scores differ by {largest:.1e} and its order by {fallen:.1e}, more "
                    f"than {TOLERANCE:g}; nothing is measured"
                )
    return largest


async def load(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> Round:
    """Let clients send the bodies, each its next one when the last was answered."""
    waiting = iter(bodies)
    latencies: list[float] = []

    async def work(client: httpx.AsyncClient) -> None:
        for body in waiting:
            begin = time.perf_counter()
            answer = await client.post(f"{url}/rerank", json=body)
            latencies.append(time.perf_counter() - begin)
            if answer.status_code != 200:
                raise speed.SpeedError(f"{url}: {answer.status_code}: {answer.text[:200]}")

    async with httpx.AsyncClient(timeout=600) as client:
        begin = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        return Round(time.perf_counter() - begin, latencies)


def peak_memory(process: subprocess.Popen[str]) -> int:
    """The highest resident memory of a process so far, in bytes; 0 where it is not known."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def measure(options: argparse.Namespace, name: str, bodies: list[dict[str, Any]]) -> list[Outcome]:
    """Start the servers of a model, check them, and let them work in turn."""
    folders = speed.make_model(options, name)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        servers = {
            system: stack.enter_context(started(options, system, folders))
            for system in options.systems
        }
        urls = {system: url for system, (url, _) in servers.items()}
        print(f"{name}: logits differ by at most {check(urls, bodies[:CHECKED]):.1e}", flush=True)
        for clients in options.clients:
            found = {system: Outcome(name, clients, system) for system in urls}
            for number in range(options.rounds + 1):
                for system, url in urls.items():
                    done = asyncio.run(load(url, bodies, clients))
                    found[system].rounds += [done] if number else []
            for system, (_, process) in servers.items():
                found[system].peak_memory = peak_memory(process)
            outcomes += found.values()
    return outcomes


COLUMNS = [
    "model",
    "clients",
    "system",
    "requests/s",
    "times slower than ours",
    "p50 ms",
    "p99 ms",
    "peak GiB",
]


def rows_of(outcomes: Sequence[Outcome], requests: int) -> Iterator[list[str]]:
    """Yield the table's rows."""
    ours = {(o.model, o.clients): o.rounds for o in outcomes if o.system == OURS}
    for outcome in outcomes:
        reference = ours.get((outcome.model, outcome.clients), [])
        pairs = zip(outcome.rounds, reference, strict=False)
        ratios = [theirs.seconds / our.seconds for theirs, our in pairs]
        yield [
            outcome.model,
            str(outcome.clients),
            outcome.system,
            speed.spread([requests / done.seconds for done in outcome.rounds]),
            "1" if outcome.system == OURS else speed.spread(ratios),
            speed.spread([done.percentile(50) for done in outcome.rounds], ".0f"),
            speed.spread([done.percentile(99) for done in outcome.rounds], ".0f"),
            f"{outcome.peak_memory / 2**30:.2f}",
        ]


def main() -> int:
    """Prepare, measure, print, write; return the exit code."""
    options = parse()
    options.work = options.work.resolve()
    try:
        (options.work / "models").mkdir(parents=True, exist_ok=True)
        bodies = requests(options)
        first = json.dumps(bodies[:CHECKED])
        (options.work / "requests.json").write_text(first, encoding="utf-8")
        about = machine.surroundings("serve.py", options.threads)
        outcomes: list[Outcome] = []
        for name in options.models:
            outcomes += measure(options, name, bodies)
            if options.output is not None:
                # after every model, so that an interruption loses little
                results = [asdict(outcome) for outcome in outcomes]
                text = json.dumps({**about, "requests": len(bodies), "results": results}, indent=1)
                options.output.write_text(text + "\n", encoding="utf-8")
        print(speed.markdown(COLUMNS, list(rows_of(outcomes, len(bodies)))))
    except speed.SpeedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
