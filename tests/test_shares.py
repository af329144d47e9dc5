"""What processes share, stopped and gone on with, equals one process's file to the last byte."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwright import cli, shares
from rankwright.errors import DataError
from rankwright.ranking import Reranker
from rankwright.shares import Processes, blocks, score_lists, together, write_lines
from rankwright.types import ScoredList
from tests import tiny

ROWS = tiny.examples(11, documents=3)


class Simulated(Processes):
    """One of several processes that run one after the other, the first one last."""

    def wait(self) -> None:
        pass

    def agree(self, value: str, complaint: str) -> None:
        pass


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_base(tmp_path_factory.mktemp("model") / "base", "bert", num_hidden_layers=2)


@pytest.fixture(scope="module")
def reranker(base: Path) -> Reranker:
    return Reranker.load(base, device="cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "BLOCK", 6)


def line(scored: ScoredList) -> str:
    return json.dumps([scored.example.query_id, scored.scores])


def write(reranker: Reranker, path: Path, world: int, *, key: Any = 1) -> list[int]:
    """What each process kept of a former run, the first one's last."""
    return [
        write_lines(reranker, ROWS, path, line, key=key, processes=Simulated(rank, world))
        for rank in reversed(range(world))
    ]


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*"))


def test_blocks() -> None:
    """Cut behind the query that fills them: 6 documents are two queries of 3."""
    assert [[e.query_id for e in block] for block in blocks(ROWS[:5])] == [
        ["q0", "q1"],
        ["q2", "q3"],
        ["q4"],
    ]
    assert list(blocks([])) == []


@pytest.mark.parametrize("world", [2, 3, 8])
def test_lists_come_to_the_first(
    reranker: Reranker, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one process has them, bit for bit; each scores its own blocks and no others."""
    sent: dict[int, list[Any]] = {rank: [] for rank in range(world)}
    rank = 0

    def gather(own: Any, found: list[Any] | None) -> None:
        sent[rank].append(own)
        if found is not None:
            turn = len(sent[0]) - 1
            found[:] = [sent[other][turn] for other in range(world)]

    monkeypatch.setattr(torch.distributed, "gather_object", gather)
    expected = list(score_lists(reranker, ROWS))
    assert [one.example for one in expected] == ROWS
    done: list[int] = []
    for rank in reversed(range(world)):
        found = list(
            score_lists(reranker, ROWS, processes=Simulated(rank, world), progress=done.append)
        )
        assert found == ([] if rank else expected)
    assert sum(done) == len(ROWS)
    parts = list(blocks(ROWS))
    for rank, turns in sent.items():
        own = [example for block in parts[rank::world] for example in block]
        scores = [scores for turn in turns for scores, _ in turn]
        assert scores == [one.scores for one in expected if one.example in own]


def test_other_rows_of_another_process_are_told(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is scored: with fewer rows one would wait for ever."""
    told: list[str] = []

    def all_gather(found: list[Any], own: str) -> None:
        told.append(own)
        found[:] = [told[0], own]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    monkeypatch.setattr(torch.distributed, "gather_object", lambda own, found: pytest.fail("late"))
    for rows in (ROWS[:-1], [*ROWS[:-1], ROWS[0]]):
        told[:] = ["of the whole rows"]
        with pytest.raises(DataError, match="the processes have read other rows"):
            list(score_lists(reranker, rows, processes=Processes(1, 2)))
    assert len(set(told)) == 2


def test_what_is_said_when_another_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> None:
        raise RuntimeError("[gloo] Connection closed by peer\n[127.0.0.1]:9")

    for name in ("barrier", "all_reduce", "gather_object", "all_gather_object"):
        monkeypatch.setattr(torch.distributed, name, lost)
    processes = Processes(0, 2)
    for use in (
        processes.wait,
        lambda: processes.totals([1]),
        lambda: processes.gather(1),
        lambda: processes.agree("a", DataError),
    ):
        with pytest.raises(DataError, match=r"^another process has ended; [^\n]*closed by peer"):
            use()


@pytest.mark.parametrize(
    "text", ["NCCL error: Duplicate GPU detected : rank 1 and rank 0", "shape mismatch"]
)
def test_other_errors_are_raised_as_they_are(text: str) -> None:
    with pytest.raises(RuntimeError, match=text), together():
        raise RuntimeError(text)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_shared_equals_alone(reranker: Reranker, tmp_path: Path, world: int) -> None:
    """11 queries are 6 blocks; of 8 processes two have none."""
    write(reranker, tmp_path / "one.jsonl", 1)
    write(reranker, tmp_path / "many.jsonl", world)
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    ids = [json.loads(text)[0] for text in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert ids == [row.query_id for row in ROWS]
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("world", [1, 2])
def test_a_stopped_run_goes_on(
    reranker: Reranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """Killed within a line: whole blocks stay, the block it was in is scored again."""
    write(reranker, tmp_path / "one.jsonl", 1)
    path = tmp_path / "out.jsonl"
    original, scored = Reranker.iter_scores, []

    def stopped(self: Reranker, examples: Any, progress: Any = None) -> Any:
        for found in original(self, examples, progress):
            if len(scored) == 4:
                raise KeyboardInterrupt
            scored.append(found)
            yield found

    monkeypatch.setattr(Reranker, "iter_scores", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(reranker, path, world)
    monkeypatch.setattr(Reranker, "iter_scores", original)
    assert not path.exists()
    (part,) = tmp_path.glob(".out.jsonl*.part")
    left = part.read_bytes()
    part.write_bytes(left[:-9])  # 3 whole lines: a block of two and a half of one
    kept = write(reranker, path, world)
    assert kept[0] == 2
    assert path.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert hidden(tmp_path) == []
    # what depends on something else, or on nothing that is known, begins anew
    for key in (2, None):
        part.write_bytes(left)
        part.with_suffix(".key").write_text(shares.digest(1))
        assert write(reranker, path, world, key=key) == [0] * world
        assert path.read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_one_run_at_a_time_writes_a_file(reranker: Reranker, tmp_path: Path) -> None:
    """Another one would cut off lines that this one has written, and both would add theirs."""
    path, told = tmp_path / "out.jsonl", []

    def meanwhile(scored: Any) -> str:
        if not told:
            with pytest.raises(
                DataError, match=r"another run is writing .*out.jsonl; wait"
            ) as found:
                write(reranker, path, 1)
            told.append(found)
        return line(scored)

    write_lines(reranker, ROWS, path, meanwhile, key=1)
    write(reranker, tmp_path / "one.jsonl", 1)
    assert told
    assert path.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert hidden(tmp_path) == []


def test_parts_of_another_file_stay(reranker: Reranker, tmp_path: Path) -> None:
    """One whose name begins with this one's, and that may be written at this time."""
    theirs = [".out.jsonl.part", ".out.jsonl.0-of-2.key"]
    ours = [".out.part", ".out.1-of-3.part", ".out.1-of-3.key", ".out.1-of-3.lock"]
    for name in (*theirs, *ours):
        (tmp_path / name).touch()
    write(reranker, tmp_path / "out", 1)
    assert hidden(tmp_path) == sorted(theirs)


def test_parts_that_are_not_there(reranker: Reranker, tmp_path: Path) -> None:
    """Another file system, or other rows, on another machine."""
    path = tmp_path / "out.jsonl"
    first, second = (Simulated(rank, 2) for rank in range(2))
    with pytest.raises(DataError, match=r"1-of-2.part is not there; .* one file system"):
        write_lines(reranker, ROWS, path, line, processes=first)
    write_lines(reranker, ROWS[:2], path, line, processes=second)
    with pytest.raises(DataError, match=r"1-of-2.part is too short; .* the same rows"):
        write_lines(reranker, ROWS, path, line, processes=first)
    assert not path.exists()


def test_rank_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command: the same rows go on, changed ones begin anew; counts cover all rows."""
    rows = tmp_path / "rows.jsonl"
    texts = [{"query": row.query, "documents": row.documents} for row in ROWS]
    rows.write_text("".join(json.dumps(text) + "\n" for text in texts))
    words = ["rank", "--model", str(base), "--input", str(rows), "--output"]
    assert cli.main([*words, str(tmp_path / "one.jsonl")]) == 0
    lines = (tmp_path / "one.jsonl").read_text().splitlines()
    # of each query the best document stays
    worst = min(json.loads(text)["results"][0]["score"] for text in lines)
    words = [*words[:-1], "--threshold", str(worst), "--top_k", "1", "--output"]
    found = [entry["score"] for text in lines for entry in json.loads(text)["results"]]
    below = sum(score < worst for score in found)
    assert below > 2
    assert cli.main([*words, str(tmp_path / "one.jsonl")]) == 0
    original, apart = Reranker.iter_scores, tmp_path / "out.jsonl"
    blocks_left = [2]

    def stopped(self: Reranker, examples: Any, progress: Any = None) -> Any:
        if not blocks_left[0]:
            raise KeyboardInterrupt
        blocks_left[0] -= 1
        yield from original(self, examples, progress)

    # in the model's own folder, too, of whose files the lines depend
    inside = base / "ranked.jsonl"
    for path, again, kept in ((apart, False, 4), (apart, True, 0), (inside, False, 4)):
        blocks_left[0] = 2
        monkeypatch.setattr(Reranker, "iter_scores", stopped)
        assert cli.main([*words, str(path)]) == 130
        monkeypatch.setattr(Reranker, "iter_scores", original)
        if again:
            rows.write_text(rows.read_text() + "\n")
        capsys.readouterr()
        assert cli.main([*words, str(path)]) == 0
        told = capsys.readouterr().err
        assert (f"{kept} queries were ranked by the run" in told) == bool(kept)
        assert f"{below} of {len(found)} documents are below the threshold" in told
        assert path.read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.parametrize(
    "words", [["--query", "a", "--documents", "rows.txt"], ["--input", "rows.jsonl"]]
)
def test_what_cannot_be_shared(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    """Asked before a model is read, and before the processes wait for each other."""
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("a b\n")
    Path("rows.jsonl").write_text("")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    assert cli.main(["rank", "--model", str(base), *words]) == 2
    assert "several processes share the rows of a file" in capsys.readouterr().err
    os.mkfifo("pipe.jsonl")
    for more in (
        ["rank", "--input", "pipe.jsonl", "--output", "out.jsonl"],
        ["rank", "--dataset", "pipe.jsonl", "--write_scores", "out.jsonl"],
        ["train", "--dataset", "rows.jsonl", "--val_dataset", "pipe.jsonl"],
    ):
        assert cli.main([*more, "--model", str(base)]) == 2
        assert capsys.readouterr().err == (
            "rankwright: pipe.jsonl is no file, and several processes read its rows, which come "
            "down a pipe once; save them to a file, or start one process\n"
        )
