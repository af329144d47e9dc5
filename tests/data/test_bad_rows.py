"""Files in ruins: each is answered with one line that names its place, in bounded memory.

With ``--on_bad_row skip`` the rows that are whole are read, and the others are written down.
"""

from __future__ import annotations

import gzip
import json
import tracemalloc
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankwright import cli
from rankwright.data import readers
from rankwright.data.readers import (
    BAD_ROW,
    BadRows,
    iter_documents,
    iter_queries,
    load_examples,
    read_rows,
)
from rankwright.data.store import ExampleStore, load_store
from rankwright.errors import ConfigError
from tests.data.test_readers import LISTED, PAIR, ROW, collection, message, numbered, write

GOOD = json.dumps(ROW).encode()
DEEP = '{"query": ' + "[" * 100_000


# one line of f.jsonl, between two good rows -> what is said of it
RUINED_LINES: dict[str, tuple[bytes, str]] = {
    "cut": (GOOD[:20], "broken JSON (Unterminated string starting at column 16)"),
    "not UTF-8": (b'{"query": "caf\xe9"}', "not UTF-8 (byte 0xe9 at position 15)"),
    "UTF-16": ('{"query": "q"}'.encode("utf-16"), "not UTF-8 (byte 0xff at position 1)"),
    "null bytes": (b"\0" * 512, "broken JSON (Expecting value at column 1)"),
    "a null byte in a text": (b'{"query": "a\0b"}', "broken JSON (Invalid control character"),
    "deep": (DEEP.encode(), "the JSON is nested too deeply; a row is a flat object"),
    "deep and closed": (
        b'{"query": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "the JSON is nested too deeply; a row is a flat object",
    ),
    "a key twice": (
        b'{"query": "a", "query": "b", "positive": ["c"]}',
        "the key 'query' stands twice in one object; keep one",
    ),
    "a key twice within": (
        b'{"messages": [{"role": "user", "role": "system", "content": "q"}]}',
        "the key 'role' stands twice in one object; keep one",
    ),
    "a number of 10000 digits": (
        b'{"query": "q", "positive": ["a"], "id": ' + b"9" * 10_000 + b"}",
        "holds a whole number of more than 4300 digits, which is no label, score or id; write it "
        "as text, or leave it out",
    ),
    "a number of 4000 digits": (
        b'{"query": ' + b"9" * 4000 + b', "positive": ["a"], "negative": ["b"]}',
        f"'query' is the number {'9' * 37}...; it must be text",
    ),
    "infinity": (
        b'{"query": "q", "positive": ["a"], "negative": ["b"], "positive_scores": [Infinity], '
        b'"negative_scores": [0]}',
        "positive_scores[0] is inf; it must be a finite number",
    ),
    "1e999": (
        b'{"query": "q", "positive": ["a"], "negative": ["b"], "positive_scores": [1], '
        b'"negative_scores": [-1e999]}',
        "negative_scores[0] is -inf; it must be a finite number",
    ),
    "half a surrogate pair as a name": (
        b'{"query": "q", "positive": ["a"], "negative": ["b"], "\\ud800": 1}',
        "the name of a column holds half of a surrogate pair, which is no character (query, "
        "positive, negative, \\ud800)",
    ),
    "a name of two lines": (
        b'{"a\\nb": 1}',
        "'query' is missing (columns: a\\nb); every row needs it",
    ),
    "many names": (
        json.dumps({f"column {i}": 1 for i in range(5000)}).encode(),
        "'query' is missing (columns: column 0, column 1",
    ),
    "no object": (b"[1, 2]", "the row is a list; a row is an object with named columns"),
}


@pytest.mark.parametrize("name", RUINED_LINES)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_ruined_line(name: str, ending: bytes, tmp_path: Path) -> None:
    """It stops the load with its place in one line, or is set aside with what it holds."""
    line, expected = RUINED_LINES[name]
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ending.join((GOOD, line, GOOD)) + ending)
    said = message(load_examples, path)
    assert said.startswith(f"{path}:2: {expected}")
    assert len(said) < 700
    bad = BadRows("skip")
    data = load_examples(path, bad_rows=bad)
    assert [example.source for example in data.examples] == [f"{path}:1", f"{path}:3"]
    assert data.report.dropped == {BAD_ROW: 1}
    (row,) = bad.refused
    assert (row.path, row.line) == (str(path), 2)
    assert f"{path}:2: {row.reason}" == said
    # what cannot be decoded is escaped
    assert row.text.startswith(line.decode("utf-8", "backslashreplace")[:200])
    assert len(row.text) <= readers.KEPT_OF_ROW
    # ASCII, whatever was refused
    bad.report(tmp_path / "rows.refused.jsonl")
    written = json.loads((tmp_path / "rows.refused.jsonl").read_bytes().decode("ascii"))
    assert tuple(written.values()) == astuple(row)


def test_a_file_that_ends_within_a_line(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(GOOD + b"\n" + GOOD[:-3])
    assert message(load_examples, path).endswith(
        "a line holds one whole JSON object; the file ends within this one, so copy it again if it "
        "was cut"
    )


def test_a_line_of_100_megabytes(tmp_path: Path) -> None:
    """Neither the line nor the text of it is ever in memory as a whole; the next line is read."""
    path = tmp_path / "f.jsonl"
    size = 100 * 2**20
    with path.open("wb") as file:
        file.write(GOOD + b"\n")
        file.truncate(file.tell() + size)
        file.seek(0, 2)
        file.write(b"\n" + GOOD + b"\n")
    tracemalloc.start()
    try:
        bad = BadRows("skip")
        assert len(load_examples(path, bad_rows=bad).examples) == 2
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * readers.MAX_LINE < size
    assert bad.refused[0].line == 2
    assert bad.refused[0].reason.startswith(f"the line has {size + 1:,} bytes, and a row has at")


@pytest.mark.parametrize("name", ["f.jsonl", "f.csv", "qrels.tsv"])
def test_a_long_line_of_every_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 1000)
    if name == "qrels.tsv":
        folder = collection(tmp_path)
        (folder / "qrels" / "test.tsv").unlink()
        write(folder / name, "q1 0 d1 1", "q1 0 d2 " + "0" * 2000, "q1 0 d3 0")
        path: Path = folder
    elif name == "f.csv":
        path = write(tmp_path / name, "query,positive", "a,b", f'"c","{"d" * 2000}"', "e,f")
    else:
        path = write(tmp_path / name, ROW, ROW | {"positive": "d" * 2000}, ROW)
    assert "bytes, and a row has at most 1,000" in message(load_examples, path)
    bad = BadRows("skip")
    found = load_examples(path, bad_rows=bad).examples
    assert [row.line for row in bad.refused] == [2 if name != "f.csv" else 3]
    assert sum(len(example.documents) for example in found) == 2 * (1 + (name == "f.jsonl"))


def table(rows: int) -> pa.Table:
    return pa.Table.from_pylist([ROW | {"query": f"q{i}"} for i in range(rows)])


def arrow_stream(path: Path, rows: int = 3000) -> bytes:
    with path.open("wb") as file, pa.ipc.new_stream(file, table(1).schema) as writer:
        writer.write_table(table(rows), max_chunksize=1000)
    return path.read_bytes()


def arrow_of_file(path: Path, rows: int = 3000) -> bytes:
    with path.open("wb") as file, pa.ipc.new_file(file, table(1).schema) as writer:
        writer.write_table(table(rows), max_chunksize=1000)
    return path.read_bytes()


def parquet(path: Path, rows: int = 3000) -> bytes:
    pq.write_table(table(rows), path)
    return path.read_bytes()


def test_a_cut_gzip_file_gives_what_stands_before_the_cut(tmp_path: Path) -> None:
    """Only the place of the cut is known, not what stood behind it: that is said."""
    lines = [json.dumps(ROW | {"query": f"q{i}"}) for i in range(3000)]
    for name, header in (("f.jsonl.gz", []), ("f.csv.gz", ["query,positive,negative"])):
        rows = lines if not header else [*header, *(f"q{i},a,b" for i in range(3000))]
        whole = gzip.compress("\n".join(rows).encode())
        path = tmp_path / name
        path.write_bytes(whole[: len(whole) // 2])
        said = message(load_examples, path)
        assert "not a whole gzip file (Compressed file ended before the end-of-stream" in said
        bad = BadRows("skip")
        found = load_examples(path, bad_rows=bad).examples
        assert 100 < len(found) < 3000
        assert [e.query for e in found] == [f"q{i}" for i in range(len(found))]
        (row,) = bad.refused
        assert row.line == len(found) + len(header) + 1
        assert said == f"{path}:{row.line}: {row.reason}"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("make", [parquet, arrow_of_file, arrow_stream])
def test_a_cut_table(make: Any, share: float, tmp_path: Path) -> None:
    """A table that lost its end is never taken for a shorter one."""
    path = tmp_path / ("f.parquet" if make is parquet else "f.arrow")
    whole = make(path)
    assert len(load_examples(path).examples) == 3000
    path.write_bytes(whole[: int(len(whole) * share)])
    said = message(load_examples, path)
    assert said.startswith(f"{path}:")
    assert f"not a readable {path.suffix[1:]} file" in said
    bad = BadRows("skip")
    if share < 0.1 or "row 1:" in said or ":row" not in said:
        assert message(load_examples, path, bad_rows=bad).startswith(
            f"{path}: none of its rows can be read, of which the first says: not a readable"
        )
    else:
        found = load_examples(path, bad_rows=bad).examples
        assert len(found) in (1000, 2000, 3000)
        assert [e.query for e in found] == [f"q{i}" for i in range(len(found))]
    assert len(bad.refused) == 1


def test_a_stream_cut_between_two_batches(tmp_path: Path) -> None:
    """Arrow itself takes it for the end."""
    path = tmp_path / "f.arrow"
    with path.open("wb") as file, pa.ipc.new_stream(file, table(1).schema) as writer:
        writer.write_table(table(2000), max_chunksize=1000)
        size = file.tell()
        writer.write_table(table(1000))
    path.write_bytes(path.read_bytes()[:size])
    with pa.memory_map(str(path)) as source:
        assert sum(batch.num_rows for batch in pa.ipc.open_stream(source)) == 2000
    assert message(load_examples, path) == (
        f"{path}:row 2001: not a readable arrow file (the file was cut: it has no mark at its "
        "end); write it again"
    )


def test_texts_of_a_table_that_are_not_utf8(tmp_path: Path) -> None:
    """Of a batch, the row that is broken is refused alone."""
    values = [b"q0", b"q\xff", b"q2"]
    query = pa.Array.from_buffers(pa.string(), 3, pa.array(values, pa.binary()).buffers())
    columns = {"query": query, "positive": ["a"] * 3, "negative": ["b"] * 3}
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table(columns), path)
    said = f"{path}:row 2: cannot be read (In column 0: Invalid: Invalid UTF8 sequence"
    assert message(load_examples, path).startswith(said)
    bad = BadRows("skip")
    found = load_examples(path, bad_rows=bad).examples
    assert [e.query for e in found] == ["q0", "q2"]
    assert [row.line for row in bad.refused] == [2]


def test_a_column_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """Found by the fuzzer: the name is read before anything else."""
    path = tmp_path / "f.parquet"
    whole = parquet(path, 3)
    path.write_bytes(whole.replace(b"query", b"quer\xff"))
    assert message(load_examples, path).startswith(f"{path}: not a readable parquet file ('utf-8'")


def test_offsets_that_point_anywhere_do_not_end_the_process(tmp_path: Path) -> None:
    """Arrow reads what a damaged file's offsets say, in memory that is not its own."""
    path = tmp_path / "f.arrow"
    texts = [f"query number {i:05d}" for i in range(1000)]
    with path.open("wb") as file, pa.ipc.new_stream(file, pa.schema({"query": pa.string()})) as w:
        w.write_table(pa.table({"query": texts}))
    whole = path.read_bytes()
    offset = (18 * 500).to_bytes(4, "little")
    assert whole.count(offset) == 1
    path.write_bytes(whole.replace(offset, (2**31 - 8).to_bytes(4, "little")))
    bad = BadRows("skip")
    found = [row.values["query"] for row in read_rows(path, bad_rows=bad)]
    assert found == texts[:499] + texts[501:]
    assert [row.line for row in bad.refused] == [500, 501]


def test_broken_csv_rows(tmp_path: Path) -> None:
    """A row of several lines is refused with all of them; the rows behind it are read."""
    path = write(
        tmp_path / "f.csv",
        "query,positive,negative",
        "q1,a,b",
        "q2,a",
        'q3,"a\nb,c',
        b'q4",caf\xe9,b',
        "q5,a,b",
        'q6,"a" b,c',
        "q7,a,b",
    )
    bad = BadRows("skip")
    found = load_examples(path, bad_rows=bad).examples
    assert [e.query for e in found] == ["q1", "q5", "q7"]
    assert [(row.line, row.reason.split(";")[0]) for row in bad.refused] == [
        (3, "2 cells under 3 columns"),
        (6, "not UTF-8 (byte 0xe9 at position 8)"),
        (8, "broken CSV (',' expected after '\"')"),
    ]
    assert [row.lines for row in bad.refused] == [1, 3, 1]
    assert bad.report()[0] == "left out: 3 rows that cannot be read (5 lines)"
    path = write(tmp_path / "h.csv", b"query,positiv\xe9", "q1,a")
    assert message(load_examples, path, bad_rows=BadRows("skip")).startswith(
        f"{path}: none of its rows can be read, of which the first says: not UTF-8"
    )


def test_a_quote_that_is_not_closed(tmp_path: Path) -> None:
    """Every line that it takes along counts as a row that is skipped, and is named."""
    path = tmp_path / "f.csv"
    end = "lines 3 to 53 are one row, since line 3 opens a quote that it does not close"
    write(path, "query,positive", "q1,a", 'q2,"b', *["q,c"] * 50)
    said = message(load_examples, path)
    assert said == (
        f"{path}:3: broken CSV (unexpected end of data); quote cells that hold quotes, the "
        f"separator or a line break; {end}"
    )
    assert message(load_examples, path, bad_rows=BadRows("skip", 50)) == (
        f"{said} (with these 51 lines it is more than --max_bad_rows 50 allows; is it the right "
        "file and --data_format?)"
    )
    bad = BadRows("skip", 51)
    assert [e.query for e in load_examples(path, bad_rows=bad).examples] == ["q1"]
    (row,) = bad.refused
    assert (row.line, row.lines, row.text) == (3, 51, 'q2,"b')
    # up to the next quote, which cannot end a cell, or ends one of a row with too few of them
    for line, reason in (('q,"c"', "broken CSV (',' expected"), ('q"', "1 cells under 2 columns")):
        write(path, "query,positive", "q1,a", '"q2,b', "q3,c", line, "q4,d")
        bad = BadRows("skip", 3)
        assert [e.query for e in load_examples(path, bad_rows=bad).examples] == ["q1", "q4"]
        (row,) = bad.refused
        assert row.reason.startswith(reason)
        assert row.reason.endswith(end.replace("53", "5"))
        assert "--max_bad_rows 2 allows" in (
            message(load_examples, path, bad_rows=BadRows("skip", 2))
        )
    # found in the cache, they count again
    cache, bad = tmp_path / "cache", BadRows("skip", 6)
    for lines in (3, 6):
        load_store(path, cache, bad_rows=bad)
        assert bad.lines == lines
    assert "--max_bad_rows 6 allows" in message(load_store, path, cache, bad_rows=bad)


def test_whole_files_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_WHOLE", 1000)
    bomb = json.dumps([ROW | {"query": " " * 5000 + "q"}]).encode()
    path = tmp_path / "f.json.gz"
    path.write_bytes(gzip.compress(bomb))
    assert message(load_examples, path) == (
        f"{path}: has more than 1,000 bytes and would be held in memory as a whole; write one row "
        "a line, as .jsonl"
    )
    path = tmp_path / "f.parquet.gz"
    path.write_bytes(gzip.compress(parquet(tmp_path / "g.parquet")))
    assert message(load_examples, path).endswith("as a whole; decompress it")


def test_a_json_list_with_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps([ROW, 5, ROW | {"query": None}, ROW]))
    bad = BadRows("skip")
    assert len(load_examples(path, bad_rows=bad).examples) == 2
    assert [(row.line, row.text) for row in bad.refused] == [
        (2, "5"),
        (3, '{"positive": ["a"], "negative": ["b"]}'),
    ]


def test_a_folder_of_mixed_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whole, empty, cut and of another layout: each is read as far as it can be."""
    folder = tmp_path / "shards"
    write(folder / "a.jsonl", ROW, GOOD[:9], ROW)
    (folder / "b.jsonl").write_bytes(b"")
    whole = gzip.compress(b"".join(GOOD + b"\n" for _ in range(100)))
    (folder / "c.jsonl.gz").write_bytes(whole[:-9])
    write(folder / "d.jsonl", LISTED, PAIR)
    parquet(folder / "e.parquet", 5)
    bad = BadRows("skip")
    data = load_examples(folder, bad_rows=bad)
    shown = [(source.name.rpartition("/")[2], source.examples) for source in data.sources]
    assert shown[:2] + shown[3:] == [
        ("a.jsonl", 2), ("b.jsonl", 0), ("d.jsonl", 1), ("e.parquet", 5),
    ]  # fmt: skip
    assert [Path(row.path).name for row in bad.refused] == ["a.jsonl", "c.jsonl.gz", "d.jsonl"]
    assert data.report.dropped == {BAD_ROW: 3}
    assert f"{folder}/b.jsonl: holds no row; is it the right file?" in data.report.warnings
    # the file of refused rows is not read for rows
    bad.report(folder / "rows.refused.jsonl")
    assert [s.name for s in load_examples(folder, bad_rows=BadRows("skip")).sources] == [
        s.name for s in data.sources
    ]


def test_a_broken_file_does_not_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", *["{"] * 5)
    assert message(load_examples, path, bad_rows=BadRows("skip")).startswith(
        f"{path}: none of its rows can be read, of which the first says: broken JSON"
    )
    rows = [ROW, *["{"] * 5]
    write(path, *rows)
    said = message(load_examples, path, bad_rows=BadRows("skip", 4))
    assert said.startswith(f"{path}:6: broken JSON")
    assert said.endswith(
        "(this is one more than --max_bad_rows 4 allows; is it the right file and --data_format?)"
    )
    assert len(load_examples(path, bad_rows=BadRows("skip", 5)).examples) == 1
    # the limit is that of all that is read
    bad = BadRows("skip", 9)
    load_examples(path, bad_rows=bad)
    assert "--max_bad_rows 9 allows" in message(load_examples, path, bad_rows=bad)
    # wrong columns in every row
    write(path, *[{"a": 1}] * 3)
    assert "none of its rows can be read" in message(load_examples, path, bad_rows=BadRows("skip"))


def test_wrong_words() -> None:
    assert message(BadRows, "ignore", error=ConfigError) == (
        "--on_bad_row 'ignore' is unknown; choose from stop, skip"
    )
    assert message(BadRows, "skip", 0, error=ConfigError) == (
        "--max_bad_rows 0 is less than 1; --on_bad_row stop skips none"
    )


def test_a_part_of_a_query_that_does_not_fit(tmp_path: Path) -> None:
    """It is refused before anything of it has been added to its query."""
    path = write(
        tmp_path / "f.jsonl",
        PAIR | {"query_id": "1", "score": 1},
        PAIR | {"query_id": "1", "query": "other", "score": 1},
        PAIR | {"query_id": "1", "document": "b"},
        PAIR | {"query_id": "1", "document": "c", "score": 3},
    )
    bad = BadRows("skip")
    (example,) = load_examples(path, bad_rows=bad).examples
    assert example.documents == ["a", "c"]
    assert example.first_stage_scores == [1, 3]
    assert [row.line for row in bad.refused] == [2, 3]


def test_collections(tmp_path: Path) -> None:
    """Corpus, queries, judgements and run of a BEIR folder."""
    folder = collection(tmp_path)
    with (folder / "corpus.jsonl").open("ab") as file:
        file.write(b'{"_id": "d5"\n{"text": "no id"}\n')
    with (folder / "queries.jsonl").open("ab") as file:
        file.write(b'{"_id": "q4", "text": " "}\n[]\n')
    with (folder / "qrels" / "test.tsv").open("ab") as file:
        file.write(b"q4\td1\t1\nq1\td1\t1\nq1\td1\nq1\td3\tx\n\xff\n")
    with (folder / "run.trec").open("wb") as file:
        file.write(b"q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\nq1 d2\nq1 Q0 d3 3 nan x\n")
        file.write(b"q2 Q0 d3 1 1 x\nq4 Q0 d1 1 1 x\n")
    bad = BadRows("skip")
    data = load_examples(folder, bad_rows=bad)
    assert [(e.query_id, e.document_ids) for e in data.examples] == [("q1", ["d1"]), ("q2", ["d3"])]
    found = [(Path(row.path).name, row.line) for row in bad.refused]
    assert found == [
        *(("test.tsv", n) for n in (9, 10, 11, 12)),
        ("queries.jsonl", 5), *(("run.trec", n) for n in (2, 3, 4)),
        ("corpus.jsonl", 5), ("corpus.jsonl", 6), ("queries.jsonl", 4),
    ]  # fmt: skip
    assert data.report.dropped[BAD_ROW] == len(found)


def test_queries_and_documents(tmp_path: Path) -> None:
    """The two streams beside examples: what ``rank --input`` and ``mine --corpus`` read."""
    path = write(tmp_path / "f.jsonl", LISTED, {"query": "q"}, "{", LISTED | {"query": "r"})
    bad = BadRows("skip")
    assert [e.query for e in iter_queries(str(path), bad)] == ["q", "r"]
    assert [row.line for row in bad.refused] == [2, 3]
    write(path, {"query": "q"}, "{")
    assert "none of its rows" in message(lambda: list(iter_queries(str(path), BadRows("skip"))))
    write(path, {"_id": 1, "text": "a"}, {"_id": 2}, {"_id": [], "text": "b"}, {"text": "c"})
    bad = BadRows("skip")
    assert [d[:2] for d in iter_documents(path, bad_rows=bad)] == [("1", "a"), ("f:4", "c")]
    assert [row.line for row in bad.refused] == [2, 3]


def test_a_store_says_again_what_it_left_out(tmp_path: Path) -> None:
    """Found in the cache, the refused rows count, and are written down, as when they were read."""
    path = numbered(tmp_path / "f.jsonl", 5)
    with path.open("ab") as file:
        file.write(b"{\n[]\n")
    cache = tmp_path / "cache"
    said = message(load_store, path, cache)
    first, second = BadRows("skip"), BadRows("skip")
    for bad in (first, second):
        data = load_store(path, cache, bad_rows=bad)
        assert isinstance(data.examples, ExampleStore)
        assert len(data.examples) == 5
        assert data.report.dropped == {BAD_ROW: 2}
    assert first.refused == second.refused
    assert [row.line for row in first.refused] == [6, 7]
    # neither serves who stops at the first, nor who allows fewer
    assert message(load_store, path, cache) == said
    assert "--max_bad_rows 1 allows" in message(
        load_store, path, cache, bad_rows=BadRows("skip", 1)
    )
    # where nothing can be kept, nothing is counted twice
    (tmp_path / "file").write_text("")
    bad = BadRows("skip")
    assert len(load_store(path, tmp_path / "file" / "x", bad_rows=bad).examples) == 5
    assert bad.refused == first.refused


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: Any) -> tuple[int, str]:
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_check_lists_what_it_skips(tmp_path: Path, shell: Any) -> None:
    path = numbered(tmp_path / "f.jsonl", 5)
    with path.open("ab") as file:
        file.write(b'{"query": "[red]a[/red]", "positive": 7}\n')
    code, said = shell("check", path)
    assert code == 2
    assert f"{path}:6: 'positive' is the number 7" in said
    code, said = shell("check", path, "--on_bad_row", "skip")
    assert code == 0
    assert "left out: 1 row that cannot be read" in said
    assert f"{path}:6: 'positive' is the number 7" in " ".join(said.split())
    code, said = shell("check", path, "--on_bad_row", "never")
    assert (code, said) == (
        2,
        "rankwright: --on_bad_row 'never' is unknown; choose from stop, skip\n",
    )
