"""Rows on disk are the rows in memory, read once."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwright.data import cache as cache_module
from rankwright.data import outline as outlines
from rankwright.data import readers, store
from rankwright.data.batches import BatchPlan, GroupDataset, Sampling
from rankwright.data.groups import split_examples
from rankwright.data.readers import READERS, load_examples
from rankwright.data.store import ExampleStore, load_store
from rankwright.errors import DataError
from rankwright.files import locked
from rankwright.types import Example
from tests.data.test_readers import BAD_ROWS, CASES, ROW, collection, numbered, write


def assert_same_outline(rows: Any, examples: list[Example]) -> None:
    one, two = outlines.outline(rows), outlines.outline(examples)
    assert list(one.query_ids) == two.query_ids
    for name in ("highest", "lowest", "taught"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for name in ("positives", "negatives"):
        for array in ("values", "offsets"):
            found = [getattr(getattr(each, name), array) for each in (one, two)]
            np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(outlines.folds(rows), outlines.folds(examples))


@pytest.mark.parametrize("name", READERS)
def test_every_layout_comes_back(name: str, tmp_path: Path) -> None:
    """Examples, report and sources, when made and when found again."""
    path = tmp_path / "f.jsonl"
    path = collection(tmp_path / "beir") if name == "beir" else write(path, *CASES[name][0])
    expected = load_examples(path)
    for _ in range(2):
        found = load_store(path, tmp_path / "cache")
        assert isinstance(found.examples, ExampleStore)
        assert list(found.examples) == expected.examples
        assert found.report == expected.report
        assert found.sources == expected.sources
        assert_same_outline(found.examples, expected.examples)


def test_views_are_the_lists_parts(tmp_path: Path) -> None:
    path = numbered(tmp_path / "rows.jsonl", 30)
    rows, examples = load_store(path, tmp_path / "cache").examples, load_examples(path).examples
    assert rows[-1] == examples[-1]
    assert list(rows[3::4]) == examples[3::4]
    assert len(rows[:0]) == 0
    picked = outlines.select(rows, [7, 2, 2])
    assert list(picked) == [examples[i] for i in (7, 2, 2)]
    assert_same_outline(picked, [examples[i] for i in (7, 2, 2)])
    again = pickle.loads(pickle.dumps(picked))
    assert list(again[1:]) == [examples[2]] * 2
    with pytest.raises(IndexError):
        rows[30]
    for one, two in zip(
        split_examples(rows, 0.2, 1), split_examples(examples, 0.2, 1), strict=True
    ):
        assert list(one) == two


@pytest.fixture
def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are written, and planned with, at a time."""
    monkeypatch.setattr(cache_module, "BATCH_ROWS", 3)
    monkeypatch.setattr(cache_module, "BATCH_BYTES", 40)
    for module in (outlines, readers, store):
        monkeypatch.setattr(module, "BLOCK", 4)


@pytest.mark.usefixtures("in_small_blocks")
def test_several_batches_and_samples(tmp_path: Path) -> None:
    """Ids that repeat within and across files, numbers above and below the rows."""
    one, two = numbered(tmp_path / "one.jsonl", 10), numbered(tmp_path / "two.jsonl", 7)
    three = write(tmp_path / "three.jsonl", *[ROW | {"id": i // 2} for i in range(8)])
    names = [f"{one}#25", f"{two}#3", str(three), str(three)]
    expected = load_examples(names, seed=5)
    found = load_store(names, tmp_path / "cache", seed=5)
    assert list(found.examples) == expected.examples
    assert found.report == expected.report
    other = load_store(names, tmp_path / "cache", seed=6)
    assert [e.source for e in other.examples] != [e.source for e in expected.examples]


def test_a_store_that_vanishes_is_still_there_for_who_has_opened_it(tmp_path: Path) -> None:
    """Its files are mapped; the report at the end of a training counts by blocks."""
    path = numbered(tmp_path / "rows.jsonl", 9)
    rows = load_store(path, tmp_path / "cache").examples
    expected = list(rows)
    shutil.rmtree(tmp_path / "cache")
    for _, part in outlines.blocks(rows):
        assert_same_outline(part, expected)
    assert list(rows[2:5]) == expected[2:5]


@pytest.mark.usefixtures("in_small_blocks")
def test_planning_reads_a_few_rows_at_a_time(tmp_path: Path) -> None:
    """Of the rows, of some of them, and of a sample in which rows repeat."""
    path = numbered(tmp_path / "rows.jsonl", 30)
    whole = load_store(path, tmp_path / "cache").examples
    sample = load_store(f"{path}#70", tmp_path / "cache").examples
    for rows in (whole, whole[3:26], outlines.select(whole, [1, 2, 3, 9, 17, 29]), sample):
        places = []
        for start, part in outlines.blocks(rows):
            places += range(start, start + len(part))
            assert len(part) <= 4
            assert_same_outline(part, list(rows)[start : start + 4])
        assert places == list(range(len(rows)))
        for one, two in zip(
            split_examples(rows, 0.2, 1), split_examples(list(rows), 0.2, 1), strict=True
        ):
            assert list(one) == two


@pytest.mark.usefixtures("in_small_blocks")
def test_instructions_are_counted_block_by_block(tmp_path: Path) -> None:
    texts = ["", "one", "one", "", "one", "one", "two", "two", "one", "one"]
    path = write(tmp_path / "rows.jsonl", *[ROW | {"instruction": text} for text in texts])
    rows = load_store(path, tmp_path / "cache").examples
    expected = {"one": (6, 1), "two": (2, 6)}
    assert outlines.instructions(rows) == outlines.instructions(list(rows)) == expected


def test_planning_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per row the order of an epoch, and what marks a row as usable; no outline of all rows."""
    count = 20_000
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            f'{{"query": "q{i}", "positive": ["p{i}"], "negative": ["n", "m"]}}\n'
            for i in range(count)
        )
    )
    for module in (outlines, readers, store):
        monkeypatch.setattr(module, "BLOCK", 500)
    load_store(path, tmp_path / "cache")
    tracemalloc.start()
    try:
        rows = load_store(path, tmp_path / "cache").examples
        plan = BatchPlan(GroupDataset(rows, Sampling()), queries=64)
        drawn = np.concatenate(
            [
                plan.dataset.sampling.counts(outlines.outline(part)) > 0
                for _, part in outlines.blocks(rows)
            ]
        )
        batches = sum(1 for _ in plan)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan._order(0)[1].dtype == np.uint16
    assert drawn.all()
    assert batches == -(-count // 64)
    # 500 rows of a block take some 100 bytes each
    assert peak < 10 * count + 400_000


def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_rows(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the rows are read")

    monkeypatch.setattr(readers, "read_rows", read_rows)


def test_a_second_start_reads_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And it warns of what the first one warned of."""
    path = write(tmp_path / "rows.jsonl", ROW | {"instructions": "x"})
    first = load_store(path, tmp_path / "cache")
    warned = [r.message for r in caplog.records]
    assert warned == first.report.warnings
    assert len(warned) == 1
    caplog.clear()
    unreadable(monkeypatch)
    assert list(load_store(path, tmp_path / "cache").examples) == list(first.examples)
    assert [r.message for r in caplog.records] == warned
    with pytest.raises(AssertionError, match="the rows are read"):
        load_store(path, tmp_path / "cache", rebuild=True)


@pytest.mark.parametrize("change", ["text", "time", "option", "name", "file"])
def test_what_changes_the_rows_is_read_again(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.jsonl", ROW)
    names, options = [str(path)], dict[str, Any]()
    load_store(names, tmp_path / "cache")
    if change == "text":
        write(path, ROW | {"query": "another"})
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "option":
        options = {"purpose": "eval"}
    elif change == "name":
        monkeypatch.chdir(tmp_path)  # messages say what was typed
        names = ["rows.jsonl"]
    else:
        names.append(str(write(tmp_path / "more.jsonl", ROW)))
    found = load_store(names, tmp_path / "cache", **options)
    assert list(found.examples) == load_examples(names).examples
    assert len(list((tmp_path / "cache" / "rows").glob("[!.]*"))) == 2
    unreadable(monkeypatch)
    load_store(names, tmp_path / "cache", **options)


@pytest.mark.parametrize("damage", ["cut", "gone", "meta", "garbage", "empty"])
def test_a_damaged_cache_is_made_anew(damage: str, tmp_path: Path) -> None:
    path = numbered(tmp_path / "rows.jsonl", 20)
    expected = list(load_store(path, tmp_path / "cache").examples)
    [folder] = (tmp_path / "cache" / "rows").glob("[!.]*")
    rows = folder / store.ROWS
    if damage == "cut":
        rows.write_bytes(rows.read_bytes()[:-200])
    elif damage == "gone":
        (folder / store.ENTRIES).unlink()
    elif damage == "meta":
        (folder / cache_module.META).write_text("{")
    elif damage == "garbage":
        rows.write_bytes(b"x" * rows.stat().st_size)
    else:
        for file in folder.iterdir():
            file.unlink()
    for _ in range(2):
        assert list(load_store(path, tmp_path / "cache").examples) == expected
    assert [p.name for p in (tmp_path / "cache" / "rows").glob("[!.]*")] == [folder.name]
    assert not list((tmp_path / "cache" / "rows").glob("*.part"))


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file in its place, and a disk that fills up: one warning, and the rows in memory."""
    path = numbered(tmp_path / "rows.jsonl", 5)
    expected = load_examples(path).examples
    (tmp_path / "file").write_text("")
    found = load_store(path, tmp_path / "file")
    assert found.examples == expected
    assert len(caplog.records) == 1
    assert "so they are read into memory; name another folder with --cache_dir" in caplog.text
    caplog.clear()

    def write_row(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.ArrowWriter, "write", write_row)
    assert load_store(path, tmp_path / "full").examples == expected
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "(No space left on device)" in caplog.text
    assert not list((tmp_path / "full" / "rows").glob("[!.]*"))
    assert not list((tmp_path / "full" / "rows").glob(".*.part"))
    assert load_store(path, None).examples == expected


def test_errors_are_the_readers(tmp_path: Path) -> None:
    """The same line, and nothing is left."""
    rows, _, _ = next(iter(BAD_ROWS.values()))
    path = write(tmp_path / "bad.jsonl", *rows)
    with pytest.raises(DataError) as one:
        load_examples(path)
    with pytest.raises(DataError) as two:
        load_store(path, tmp_path / "cache")
    assert str(one.value) == str(two.value)
    assert not list((tmp_path / "cache" / "rows").glob("[!.]*"))
    with pytest.raises(DataError, match="no such file"):
        load_store(tmp_path / "typo.jsonl", tmp_path / "cache")


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file takes the lock's place: it would outlive a killed process, and all would wait."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / "lock").touch()
    with locked(tmp_path / "lock") as alone:
        assert not alone
    path = numbered(tmp_path / "rows.jsonl", 50)
    assert len(load_store(path, tmp_path / "cache").examples) == 50


def test_two_at_once_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is second waits and finds it, even where it was told to make it anew."""
    from threading import Barrier, Thread

    path = numbered(tmp_path / "rows.jsonl", 50)
    load_store(path, tmp_path / "cache")
    made: list[str] = []
    original = store._write
    barrier = Barrier(2)

    def _write(folder: Path, *args: Any) -> None:
        made.append(folder.name)
        original(folder, *args)

    locked = cache_module.locked

    def _locked(path: Path) -> Any:
        barrier.wait(timeout=60)  # both have seen the old one before either makes a new one
        return locked(path)

    monkeypatch.setattr(store, "_write", _write)
    monkeypatch.setattr(cache_module, "locked", _locked)
    found: list[int] = []

    def start() -> None:
        found.append(len(load_store(path, tmp_path / "cache", rebuild=True).examples))

    threads = [Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [50, 50]
    assert len(made) == 1
