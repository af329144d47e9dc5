"""What judges in benchmarks/soak_serve.py and benchmarks/soak_train.py: each fault is seen."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rankwright import run_folder
from tests.documents import ROOT, benchmark

LOGITS = [1.5, -0.5, 0.25, 3.0, -2.0]


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    return benchmark("soak_serve")


@pytest.fixture(scope="module")
def train() -> ModuleType:
    return benchmark("soak_train")


def request_of(serve: ModuleType, form: str, top_n: int | None = None) -> Any:
    """All five documents, from the last to the first."""
    query = serve.Query("q", [f"d{i}" for i in range(5)], LOGITS)
    for seed in range(1000):
        found = serve.Good([query], random.Random(seed), most=5)
        if found.form == form and found.top_n == top_n and len(found.places) == 5:
            found.places = [4, 3, 2, 1, 0]
            return found
    raise AssertionError(form)


def answer_to(serve: ModuleType, request: Any) -> list[tuple[int, float]]:
    """The right answer, as places in the request and scores."""
    values = [LOGITS[place] for place in request.places]
    if not request.logits_asked:
        values = [serve.sigmoid(value) for value in values]
    ordered = sorted(enumerate(values), key=lambda pair: -pair[1])
    if request.form == "score":
        return list(enumerate(values))
    return ordered[: request.top_n]


def wrap(request: Any, found: list[tuple[int, float]]) -> Any:
    """As the server's JSON."""
    if request.form == "tei":
        return [{"index": i, "score": s} for i, s in found]
    if request.form == "score":
        return {"data": [{"index": i, "score": s} for i, s in found]}
    return {"results": [{"index": i, "relevance_score": s} for i, s in found]}


Found = list[tuple[int, float]]
FAULTS: dict[str, Callable[[Found], Found]] = {
    r"documents \[.*\] of 5": lambda found: found[:-1],
    r"documents \[.*, .*\] of 5": lambda found: [*found[:-1], found[0]],
    "a score differs by [0-9.]+e[-+]0": lambda found: [
        (i, s) for (i, _), (_, s) in zip(found, [*found[1:], found[0]], strict=True)
    ],
    "a score differs by 2.0e-05": lambda found: [(found[0][0], found[0][1] + 2e-5), *found[1:]],
}


@pytest.mark.parametrize("form", ["cohere v1", "cohere v2", "jina", "tei", "score"])
def test_a_wrong_answer_is_seen(serve: ModuleType, form: str) -> None:
    request = request_of(serve, form)
    right = answer_to(serve, request)
    assert request.fault(wrap(request, right)) is None
    for fault, spoil in FAULTS.items():
        assert re.match(fault, request.fault(wrap(request, spoil(right))) or "right")
    if form != "score":
        assert request.fault(wrap(request, right[::-1])) == "not in order"


def test_the_best_are_asked_for(serve: ModuleType) -> None:
    request = request_of(serve, "cohere v2", top_n=1)
    assert request.fault(wrap(request, answer_to(serve, request))) is None
    second = [(4, serve.sigmoid(LOGITS[0]))]
    assert request.fault(wrap(request, second)) == "not the best"


def test_growth_is_that_of_the_last_two_thirds(serve: ModuleType) -> None:
    """900 MiB in the first minute are the start; then 1 MiB in 30 seconds, which is 120 an hour."""
    start = [{"seconds": 30.0 * i, "anonymous": 450.0 * i} for i in range(3)]
    rest = [{"seconds": 30.0 * i, "anonymous": 900.0 + i} for i in range(3, 9)]
    assert serve.growth(start + rest) == pytest.approx(120)
    assert serve.growth(rest[:1]) == 0


def test_a_request_in_flight_that_is_sent_away_is_seen(serve: ModuleType) -> None:
    """20 waited and 15 of them were inside: 5 may be told that the server stops, the sixth not."""
    soak = serve.Soak(1, [], 0)
    soak.tally.told_to_leave = 5
    soak.judge_leaving(20, 15.0)
    assert soak.tally.problems == []
    soak.tally.told_to_leave = 6
    soak.judge_leaving(20, 15.0)
    assert len(soak.tally.problems) == 1


def final(folder: Path, **changes: Any) -> Path:
    """A final folder as ``differences`` reads it."""
    folder.mkdir()
    loss, weights, metric = (changes.get(name, 1) for name in ("loss", "weights", "metric"))
    (folder / "model.safetensors").write_bytes(bytes([weights]))
    log = [{"step": 1, "loss": loss, "pairs_per_second": changes.get("seconds", 1)}]
    log[0]["learning_rate"] = changes.get("rate", 1)
    (folder / run_folder.STATE_FILE).write_text(json.dumps({"log_history": log}))
    record = {"ndcg@10": metric, "seconds": changes.get("seconds", 1)}
    record |= {"more": 1} if changes.get("more") else {}
    (folder / run_folder.METRICS_FILE).write_text(json.dumps(record))
    return folder


def test_a_training_that_ends_otherwise_is_seen(train: ModuleType, tmp_path: Path) -> None:
    one = final(tmp_path / "one")
    assert train.differences(one, final(tmp_path / "same", seconds=2)) == []
    assert train.differences(one, final(tmp_path / "w", weights=2)) == ["weights"]
    assert train.differences(one, final(tmp_path / "l", loss=2)) == ["log"]
    assert train.differences(one, final(tmp_path / "r", rate=2)) == ["log"]
    assert train.differences(one, final(tmp_path / "m", metric=2)) == ["metrics.json: ndcg@10"]
    more = final(tmp_path / "more", more=True)
    for pair in ((one, more), (more, one)):
        assert train.differences(*pair) == ["metrics.json: more"]


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_signal_that_ends_nothing_is_seen(train: ModuleType, tmp_path: Path, kind: str) -> None:
    tally = train.Tally()
    run = SimpleNamespace(reached=0)
    tally.look(tmp_path, kind, run, [0, -9])
    assert tally.problems == (
        [] if kind == "SIGKILL" else [f"{kind} at step 0: no end within 60 s"]
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "words",
    [
        ["soak_serve.py", "--minutes", "0.5", "--sample", "2"],
        ["soak_train.py", "--minutes", "1.5", "--kill_every", "20"],
    ],
    ids=lambda words: words[0],
)
def test_a_short_soak(words: list[str], tmp_path: Path) -> None:
    script, *rest = words
    output = tmp_path / "soak.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *rest, "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["problems"] == []
    assert found["kills"] if "kills" in found else sum(found["answered"].values()) > 50
