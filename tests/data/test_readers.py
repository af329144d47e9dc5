"""Readers: every layout, every kind of file, every bad input with its message."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwright.data.readers import (
    CONTRADICTION,
    EMPTY_DOCUMENT,
    JUDGED_ALONE,
    KEPT_COLUMNS,
    NEGATIVE_JUDGEMENT,
    NO_DOCUMENTS,
    NOT_IN_CORPUS,
    NOT_IN_QUERIES,
    NOT_IN_RUN,
    NOT_JUDGED,
    OTHER_COLUMNS,
    POSITIVE_NOT_IN_RUN,
    READERS,
    REPEATED_DOCUMENT,
    REPEATED_ID,
    load_examples,
    read_rows,
)
from rankwright.errors import ConfigError, DataError
from rankwright.types import Example

ROW = {"query": "q", "positive": ["a"], "negative": ["b"]}


def write(path: Path, *rows: Any) -> Path:
    """Rows as JSON lines; bytes and text go in as they are."""
    lines = [
        row
        if isinstance(row, bytes)
        else (row if isinstance(row, str) else json.dumps(row)).encode()
        for row in rows
    ]
    content = b"".join(line + b"\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def message(call: Any, *args: Any, error: type[Exception] = DataError, **kwargs: Any) -> str:
    """The one line that a bad input is answered with."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------------ the layouts

# name -> (rows of one file, the examples they are), worked out by hand
CASES: dict[str, tuple[list[dict[str, Any]], list[Example]]] = {
    "rankwright": (
        [
            {
                "query": "q",
                "positive": ["a", "b"],
                "negative": ["c"],
                "positive_scores": [0.9, 0.8],
                "negative_scores": [-0.1],
                "instruction": "find",
                "id": 7,
            },
            {"query": "r", "positive": "x", "negative": "y", "source": "somewhere"},
            {"query": "s", "positive": None, "negative": ["z"]},
        ],
        [
            Example("q", ["a", "b", "c"], [1, 1, 0], None, [0.9, 0.8, -0.1], "find", "7"),
            Example("r", ["x", "y"], [1, 0], query_id="f:2"),
            Example("s", ["z"], [0], query_id="f:3"),
        ],
    ),
    "messages": (
        [
            {
                "messages": [
                    {"role": "system", "content": "find"},
                    {"role": "user", "content": "q"},
                ],
                "positive_messages": [
                    [{"role": "assistant", "content": "a"}],
                    [{"role": "user", "content": "b"}],
                ],
                "negative_messages": [{"role": "assistant", "content": "c"}],
            },
            {
                "messages": [{"role": "user", "content": "r"}],
                "negative_messages": [[{"role": "assistant", "content": "d"}]],
            },
        ],
        [
            Example("q", ["a", "b", "c"], [1, 1, 0], instruction="find", query_id="f:1"),
            Example("r", ["d"], [0], query_id="f:2"),
        ],
    ),
    "flagembedding": (
        [
            {
                "query": "q",
                "pos": ["a"],
                "neg": ["b", "c"],
                "pos_scores": [2],
                "neg_scores": [1, 0.5],
                "prompt": "find",
            },
            {"query": "r", "pos": ["a"], "neg": [], "pos_scores": [], "prompt": ""},
        ],
        [
            Example("q", ["a", "b", "c"], [1, 0, 0], None, [2, 1, 0.5], "find", "f:1"),
            Example("r", ["a"], [1], query_id="f:2"),
        ],
    ),
    "labels": (
        [
            {
                "query": "q",
                "documents": ["a", "b", "c"],
                "labels": [3, 0, 0.5],
                "scores": [9.5, -1, 8],
                "teacher_scores": [0, 1, 2],
                "document_ids": ["d1", 2, "d3"],
                "query_id": "q1",
            },
            {
                "query": "r",
                "documents": [{"id": "d1", "title": "T", "text": "a"}, {"id": 2, "text": "b"}],
                "labels": [True, False],
            },
        ],
        [
            Example(
                "q", ["a", "b", "c"], [3, 0, 0.5], [9.5, -1, 8], [0, 1, 2], None, "q1",
                ["d1", "2", "d3"],
            ),
            Example("r", ["T a", "b"], [1, 0], query_id="f:2", document_ids=["d1", "2"]),
        ],
    ),
    "pairs": (
        [
            {"query": "q", "document": "a", "label": 0, "score": 3},
            {"query": "r", "document": "x", "label": 1},
            {"query": "q", "document": "b", "label": 2, "score": 4},
        ],
        [
            Example("q", ["a", "b"], [0, 2], [3, 4], query_id="f:1"),
            Example("r", ["x"], [1], query_id="f:2"),
        ],
    ),
    "triplets": (
        [
            {"anchor": "q", "positive": "a", "negative": "b"},
            {"anchor": "r", "positive": "x", "negative": "y"},
            {"anchor": "q", "positive": "a", "negative": "c"},
        ],
        [
            Example("q", ["a", "b", "c"], [1, 0, 0], query_id="f:1"),
            Example("r", ["x", "y"], [1, 0], query_id="f:2"),
        ],
    ),
    "beir": ([], []),  # a folder: test_beir_folder
}  # fmt: skip


def test_every_layout_has_its_case() -> None:
    assert CASES.keys() == READERS.keys()
    for name, reader in READERS.items():
        assert reader.name == name
        assert "{" in reader.description
        assert "\n" not in reader.description


@pytest.mark.parametrize("name", [name for name in CASES if name != "beir"])
@pytest.mark.parametrize("named", [False, True])
def test_layout(name: str, named: bool, tmp_path: Path) -> None:
    rows, expected = CASES[name]
    path = write(tmp_path / "f.jsonl", *rows)
    data = load_examples(path, data_format=name if named else None)
    for example in expected:
        line = next(
            i for i, row in enumerate(rows, 1) if json.dumps(example.query) in json.dumps(row)
        )
        example.source = f"{path}:{line}"
    assert data.examples == expected
    assert [(s.name, s.data_format, s.examples) for s in data.sources] == [
        (str(path), name, len(expected))
    ]
    assert data.report.rows == len(rows)
    assert data.report.warnings == []


def test_triplets_with_several_negatives(tmp_path: Path) -> None:
    row = {"query": "q", "positive": "a", "negative_2": "c", "negative_1": "b", "negative_10": "d"}
    data = load_examples(write(tmp_path / "f.jsonl", row))
    assert data.sources[0].data_format == "triplets"
    assert data.examples[0].documents == ["a", "b", "c", "d"]
    assert not data.report.ignored


def test_a_column_numbered_beyond_what_is_read(tmp_path: Path) -> None:
    """Python refuses to read 5000 digits as a number: it is a column that no layout reads."""
    name = "negative_" + "1" * 5000
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"anchor": "q", "positive": "a", "negative": "b", name: "c"}))
    data = load_examples(path)
    assert data.examples[0].documents == ["a", "b"]
    # nor is its name kept, which may be as long as a row
    assert data.report.ignored == Counter({OTHER_COLUMNS: 1})


def test_a_row_of_many_columns(tmp_path: Path) -> None:
    """Each is looked at once, whatever the others are: minutes if not."""
    columns = {f"column {i}": 1 for i in range(100_000)}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"query": "q", "positive": "a", "negative": "b", **columns}))
    first = [f"column {i}" for i in range(KEPT_COLUMNS)]
    assert load_examples(path).report.ignored == Counter([*first, OTHER_COLUMNS])


def test_columns_with_a_new_name_in_every_row(tmp_path: Path) -> None:
    """The names that are kept do not grow with the rows; the rows of the others are counted."""
    path = tmp_path / "rows.jsonl"
    rows = KEPT_COLUMNS + 500
    with path.open("w") as file:
        for i in range(rows):
            row = {"query": f"q{i}", "positive": "a", "negative": "b", f"a{i}": 1, f"b{i}": 1}
            file.write(json.dumps({**row, "source": "s"} if i % 2 == 0 else row) + "\n")
    ignored = load_examples(path).report.ignored
    assert len(ignored) == KEPT_COLUMNS + 1
    assert ignored["source"] == rows / 2
    # beside "source" there is place for both names of 499 rows and for one of the next
    assert ignored[OTHER_COLUMNS] == rows - (KEPT_COLUMNS - 1) // 2


def test_a_row_of_query_positive_negative_is_a_triplet_only_when_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f.jsonl",
        {"query": "q", "positive": "a", "negative": "b"},
        {"query": "q", "positive": "a", "negative": "c"},
    )
    assert [e.documents for e in load_examples(path).examples] == [["a", "b"], ["a", "c"]]
    named = load_examples(path, data_format="triplets").examples
    assert [e.documents for e in named] == [["a", "b", "c"]]


def test_pairs_are_grouped_by_id_where_there_is_one(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f.jsonl",
        {"query_id": "1", "query": "q", "document": "a", "label": 1, "document_id": "x"},
        {"query_id": "2", "query": "q", "document": "b", "label": 1, "document_id": "y"},
        {"query_id": "1", "query": "q", "document": "c", "label": 0, "document_id": "z"},
    )
    found = load_examples(path).examples
    assert [(e.query_id, e.documents, e.document_ids) for e in found] == [
        ("1", ["a", "c"], ["x", "z"]),
        ("2", ["b"], ["y"]),
    ]


def test_instructions_keep_pairs_apart(tmp_path: Path) -> None:
    row = {"query": "q", "document": "a", "label": 1}
    path = write(tmp_path / "f.jsonl", row | {"instruction": "i"}, row, row | {"instruction": "i"})
    found = load_examples(path).examples
    assert [(e.instruction, len(e.documents)) for e in found] == [("i", 2), (None, 1)]


texts = st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda text: text.strip() != "")  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            texts,
            st.lists(
                st.tuples(texts, st.floats(0, 4, allow_nan=False)),
                min_size=1,
                max_size=5,
                unique_by=lambda pair: pair[0],
            ),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[0],
    ),
    kind=st.sampled_from(["jsonl", "jsonl.gz", "json", "csv", "parquet", "pairs.csv"]),
)
def test_rows_keep_every_document_and_label(
    rows: list[tuple[str, list[tuple[str, float]]]], kind: str, tmp_path: Path
) -> None:
    """Whatever the file, what comes out is what went in: order, text to the last space, labels."""
    table = [
        {"query": query, "documents": [d for d, _ in pairs], "labels": [x for _, x in pairs]}
        for query, pairs in rows
    ]
    path = tmp_path / f"f.{kind}"
    if kind == "json":
        path.write_text(json.dumps(table, indent=1), encoding="utf-8")
    elif kind == "csv":
        cells = [{k: v if k == "query" else json.dumps(v) for k, v in row.items()} for row in table]
        write_csv(path, cells)
    elif kind == "pairs.csv":
        write_csv(
            path,
            [{"query": q, "document": d, "label": repr(x)} for q, pairs in rows for d, x in pairs],
        )
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        write(path, *table)
    found = load_examples(path).examples
    assert [(e.query, list(zip(e.documents, e.labels, strict=True))) for e in found] == rows
    assert len({e.query_id for e in found}) == len(found)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


# ---------------------------------------------------------------------------------- kinds of file


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "stream.arrow"]
)
def test_kinds_of_file(kind: str, packed: str, tmp_path: Path) -> None:
    rows = [ROW, {"query": "r", "positive": ["x", "y"], "negative": []}]
    path = tmp_path / f"f.{kind}"
    table = pa.Table.from_pylist(rows)
    if kind == "jsonl":
        write(path, *rows)
    elif kind == "json":
        path.write_text(json.dumps({"data": rows}))
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            writer.writerow(rows[0])
            writer.writerow(["q", "a", "b"])
            writer.writerow(["r", '["x", "y"]', ""])
    elif kind == "parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_stream if "stream" in kind else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    if packed:
        (tmp_path / f"f.{kind}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / f"f.{kind}.gz"
    found = load_examples(path).examples
    assert [(e.query, e.documents, e.labels) for e in found] == [
        ("q", ["a", "b"], [1, 0]),
        ("r", ["x", "y"], [1, 1]),
    ]
    first = {"jsonl": "1", "csv": "2", "tsv": "2"}.get(kind, "row 1")
    assert found[0].source == f"{path}:{first}"
    assert found[0].query_id == f"{kind.replace(kind.rpartition('.')[2], 'f')}:{first[-1]}".replace(
        "stream.f", "f.stream"
    )


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    path = write(tmp_path / "f.json", ROW, ROW | {"query": "r"})
    assert [e.source for e in load_examples(path).examples] == [f"{path}:1", f"{path}:2"]
    one = write(tmp_path / "one.json", ROW)
    assert [e.query for e in load_examples(one).examples] == ["q"]


def test_blank_lines_are_no_rows_and_keep_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", "", ROW, "   ", ROW | {"query": "r"}, "")
    assert [e.source for e in load_examples(path).examples] == [f"{path}:2", f"{path}:4"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", b"\xef\xbb\xbf" + json.dumps(ROW).encode())
    assert load_examples(path).examples[0].query == "q"


def test_csv_lines_are_counted_where_rows_begin(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text('query,document,label\nq,"a\nb",1\nr,c,0.5\n')
    found = load_examples(path).examples
    assert [(e.source, e.documents, e.labels) for e in found] == [
        (f"{path}:2", ["a\nb"], [1]),
        (f"{path}:4", ["c"], [0.5]),
    ]


def test_documents_longer_than_the_csv_default(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text(f"query,document,label\nq,{'a' * 200_000},1\n")
    assert len(load_examples(path).examples[0].documents[0]) == 200_000


def test_a_document_in_brackets_stays_a_document(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("query,positive,negative\nq,[sic],[1] see there\n")
    assert load_examples(path).examples[0].documents == ["[sic]", "[1] see there"]


def test_progress_is_called_with_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", *[ROW] * 2500)
    calls: list[tuple[str, int]] = []
    load_examples(path, progress=lambda name, rows: calls.append((name, rows)))
    assert calls == [(str(path), 1000), (str(path), 2000), (str(path), 2500)]


# -------------------------------------------------------------------------- what is left out, kept


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f.jsonl",
        {"query": "q", "positive": ["a", " "], "negative": ["", "b", "a", "b"]},
        {"query": "r", "positive": [], "negative": ["\n"]},
        {"query": "s", "positive": [], "negative": []},
        {"query": "t", "positive": ["x"], "negative": []},
    )
    data = load_examples(path)
    assert [(e.query, e.documents, e.labels) for e in data.examples] == [
        ("q", ["a", "b", "b"], [1, 0, 0]),
        ("t", ["x"], [1]),
    ]
    assert data.report.rows == 4
    assert data.report.dropped == Counter({EMPTY_DOCUMENT: 3, CONTRADICTION: 1, NO_DOCUMENTS: 2})
    assert data.report.noted == Counter({REPEATED_DOCUMENT: 1})


def test_scores_and_ids_leave_with_their_document(tmp_path: Path) -> None:
    row = {
        "query": "q",
        "documents": ["a", "", "c"],
        "labels": [1, 1, 0],
        "scores": [1, 2, 3],
        "teacher_scores": [4, 5, 6],
        "document_ids": ["x", "y", "z"],
    }
    example = load_examples(write(tmp_path / "f.jsonl", row)).examples[0]
    assert example.documents == ["a", "c"]
    assert example.labels == [1, 0]
    assert example.first_stage_scores == [1, 3]
    assert example.teacher_scores == [4, 6]
    assert example.document_ids == ["x", "z"]


def test_equal_texts_under_two_ids_stay_two_candidates(tmp_path: Path) -> None:
    row = {"query": "q", "documents": ["a", "a"], "labels": [1, 0], "document_ids": ["x", "y"]}
    data = load_examples(write(tmp_path / "f.jsonl", row))
    assert data.examples[0].documents == ["a", "a"]
    assert data.report.noted == Counter({REPEATED_DOCUMENT: 1})


def test_unread_columns_are_counted_and_near_misses_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"query": "q", "positive": ["a"], "negatives": ["b"], "source": "s"}
    path = write(tmp_path / "f.jsonl", row, row)
    with caplog.at_level(logging.WARNING):
        report = load_examples(path).report
    warning = (
        f"{path}:1: the column 'negatives' is not read by the layout 'rankwright'; if 'negative' "
        "is meant, rename it"
    )
    assert report.warnings == [warning]
    assert caplog.messages == [warning]
    assert report.ignored == Counter({"negatives": 2, "source": 2})


def test_ids_are_unique(tmp_path: Path) -> None:
    rows = [ROW | {"id": "1"}, ROW | {"id": "1"}, ROW | {"id": "1~2"}]
    data = load_examples(write(tmp_path / "f.jsonl", *rows))
    assert [e.query_id for e in data.examples] == ["1", "1~3", "1~2"]
    assert data.report.noted[REPEATED_ID] == 1
    write(tmp_path / "other" / "f.jsonl", ROW)
    both = load_examples([write(tmp_path / "f.jsonl", ROW), tmp_path / "other" / "f.jsonl"])
    assert [e.query_id for e in both.examples] == ["f:1", "f:1~2"]


# --------------------------------------------------------------------- several files, how many rows


def numbered(path: Path, count: int) -> Path:
    return write(
        path, *[{"query": f"q{i}", "positive": "a", "negative": "b"} for i in range(count)]
    )


def test_several_files_in_one_text_or_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    numbered(Path("a.jsonl"), 2)
    numbered(Path("b c.jsonl"), 3)
    assert len(load_examples("a.jsonl a.jsonl").examples) == 4
    assert len(load_examples(["a.jsonl", "b c.jsonl"]).examples) == 5
    assert len(load_examples("b c.jsonl").examples) == 3


def test_sampling_number(tmp_path: Path) -> None:
    """7 of 3 rows: two whole passes and one more row, each repetition with an id of its own."""
    path = numbered(tmp_path / "a.jsonl", 10)

    def queries(take: str, seed: int = 42) -> list[str]:
        return [e.query for e in load_examples(f"{path}#{take}", seed=seed).examples]

    assert len(set(queries("4"))) == 4
    assert queries("4") == queries("4")
    assert queries("4") != queries("4", seed=1)
    assert queries("10") == [f"q{i}" for i in range(10)]
    few = numbered(tmp_path / "few.jsonl", 3)
    found = load_examples([f"{few}#7", path]).examples
    counts = Counter(e.query for e in found[:7])
    assert sorted(counts.values()) == [2, 2, 3]
    assert len({e.query_id for e in found}) == 17


def test_sampling_counts_queries_where_rows_are_grouped(tmp_path: Path) -> None:
    rows = [{"query": f"q{i % 3}", "document": f"d{i}", "label": 1} for i in range(9)]
    found = load_examples(f"{write(tmp_path / 'a.jsonl', *rows)}#2").examples
    assert [len(e.documents) for e in found] == [3, 3]


def test_a_file_whose_name_holds_a_hash(tmp_path: Path) -> None:
    assert len(load_examples(str(numbered(tmp_path / "a#5.jsonl", 2))).examples) == 2


@pytest.mark.parametrize("number", ["0", "-1", "x", "", "1.5", "²"])
def test_bad_sampling_number(number: str, tmp_path: Path) -> None:
    assert message(load_examples, f"a.jsonl#{number}", error=ConfigError) == (
        f"dataset {f'a.jsonl#{number}'!r}: {number!r} after # is not a number of rows; give a "
        "whole number above 0, such as train.jsonl#5000"
    )


@pytest.mark.parametrize("dataset", ["", " ", []])
def test_no_dataset(dataset: Any) -> None:
    assert message(load_examples, dataset, error=ConfigError) == (
        "no dataset is named; give a file, a folder or a hub id (owner/name)"
    )


# ------------------------------------------------------------------------------ folders and splits


def test_folder(tmp_path: Path) -> None:
    numbered(tmp_path / "b.jsonl", 1)
    numbered(tmp_path / "a.jsonl.gz", 2)
    write(tmp_path / "dataset_info.json", {"features": {}})
    write(tmp_path / "README.md", "# rows")
    numbered(tmp_path / "converted" / "a.jsonl", 9)
    data = load_examples(f"{tmp_path}/")
    assert [(s.name, s.examples) for s in data.sources] == [
        (f"{tmp_path}/a.jsonl.gz", 2),
        (f"{tmp_path}/b.jsonl", 1),
    ]
    assert [e.query_id for e in data.examples] == ["a:1", "a:2", "b:1"]


def test_folder_of_folders(tmp_path: Path) -> None:
    numbered(tmp_path / "x" / "train.jsonl", 1)
    numbered(tmp_path / "y" / "train.jsonl", 1)
    numbered(tmp_path / ".cache" / "train.jsonl", 1)
    assert [e.query_id for e in load_examples(tmp_path).examples] == ["x/train:1", "y/train:1"]


@pytest.mark.parametrize(
    ("split", "purpose", "expected"),
    [
        (None, "train", ["train_1.jsonl", "train_2.jsonl"]),
        (None, "eval", ["validation-00000-of-00001.jsonl"]),
        ("test", "eval", ["test.jsonl"]),
        ("dev", "train", ["validation-00000-of-00001.jsonl"]),
        ("train_2", "train", ["train_2.jsonl"]),
    ],
)
def test_split_of_a_folder(split: Any, purpose: Any, expected: list[str], tmp_path: Path) -> None:
    for name in ("train_1", "train_2", "validation-00000-of-00001", "test", "latest"):
        numbered(tmp_path / f"{name}.jsonl", 1)
    data = load_examples(tmp_path, split=split, purpose=purpose)
    assert [Path(s.name).name for s in data.sources] == expected


def test_missing_split(tmp_path: Path) -> None:
    numbered(tmp_path / "test.jsonl", 1)
    assert message(load_examples, tmp_path, split="train") == (
        f"{tmp_path}: has no file of the split 'train' (it holds test.jsonl); give a split that is "
        "in a file's name"
    )


def test_folder_without_rows(tmp_path: Path) -> None:
    assert message(load_examples, tmp_path) == (
        f"{tmp_path}: the folder holds no file of rows (.jsonl, .json, .csv, .tsv, .parquet or "
        ".arrow, each also .gz); give another"
    )


# ---------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Any]]:
    """A hub that answers every id with one folder, and what it was asked."""
    asked: list[Any] = []
    folder = tmp_path / "snapshot"
    folder.mkdir()

    def resolve(name: str, **options: Any) -> Path:
        asked.append((name, options))
        return folder

    monkeypatch.setattr("rankwright.hub.resolve_dataset", resolve)
    return folder, asked


def test_hub_dataset(hub: tuple[Path, list[Any]], caplog: pytest.LogCaptureFixture) -> None:
    folder, asked = hub
    numbered(folder / "test.jsonl.gz", 2)
    numbered(folder / "mteb--scidocs-reranking" / "json-test.jsonl", 2)  # the converted copy
    with caplog.at_level(logging.WARNING):
        data = load_examples("MTEB/scidocs-reranking#1", use_hf=False, revision="main")
    assert asked == [("MTEB/scidocs-reranking", {"use_hf": False, "revision": "main"})]
    assert data.sources[0].name == "MTEB/scidocs-reranking/test.jsonl.gz"
    assert len(data.examples) == 1
    warning = (
        "MTEB/scidocs-reranking: test.jsonl.gz is the test split of an MTEB reranking task; "
        "results on it mean nothing after training on it: train on other rows, or do not report it"
    )
    assert data.report.warnings == caplog.messages == [warning]
    caplog.clear()
    assert load_examples("MTEB/scidocs-reranking", purpose="eval").report.warnings == []
    assert caplog.messages == []


@pytest.mark.parametrize(
    "name",
    [
        "mteb/askubuntudupquestions-reranking",
        "mteb/stackoverflowdupquestions-reranking",
        "mteb/mind_small",
        "mteb/SciDocsRR",
        "BeIR/scifact",
        "mteb/nfcorpus",
        "zeta-alpha-ai/NanoSciFact",
        "C-MTEB/T2Reranking",
    ],
)
def test_known_benchmarks(name: str, hub: tuple[Path, list[Any]]) -> None:
    numbered(hub[0] / "test.jsonl", 1)
    assert len(load_examples(name).report.warnings) == 1
    numbered(hub[0] / "train.jsonl", 1)
    assert load_examples(name).report.warnings == []
    assert len(load_examples(name, split="test").report.warnings) == 1


def test_own_datasets_are_no_benchmarks(hub: tuple[Path, list[Any]]) -> None:
    numbered(hub[0] / "test.jsonl", 1)
    assert load_examples("someone/nanotechnology").report.warnings == []


def test_hub_subset(hub: tuple[Path, list[Any]]) -> None:
    folder, asked = hub
    numbered(folder / "en" / "train.jsonl", 1)
    numbered(folder / "de" / "train.jsonl", 2)
    assert len(load_examples("owner/name:de").examples) == 2
    assert asked[-1][0] == "owner/name"
    assert message(load_examples, "owner/name:fr") == (
        "owner/name:fr: nothing in it is named 'fr' (it holds de, en); give a subset that is in a "
        "file's or folder's name"
    )


def test_missing_file() -> None:
    assert message(load_examples, "no/such/train.jsonl") == (
        "dataset 'no/such/train.jsonl': there is no such file or folder, and it is no hub id; "
        "check the path, or give an id, which looks like owner/name (MTEB/scidocs-reranking)"
    )


# ------------------------------------------------------------------------------------- BEIR folders


def collection(folder: Path, *, packed: str = "") -> Path:
    write(
        folder / f"corpus.jsonl{packed}",
        {"_id": "d1", "title": "One", "text": "first"},
        {"_id": "d2", "title": "", "text": "second"},
        {"_id": "d3", "text": "third"},
        {"_id": "d4", "title": "Four", "text": ""},
    )
    write(
        folder / f"queries.jsonl{packed}",
        {"_id": "q1", "text": "query one"},
        {"_id": "q2", "text": "query two"},
        {"_id": "q3", "text": "query three"},
    )
    write(
        folder / "qrels" / f"test.tsv{packed}",
        "query-id\tcorpus-id\tscore",
        "q1\td1\t2",
        "q1\td2\t0",
        "q1\td9\t1",
        "q2\td3\t1",
        "q2\td1\t-1",
        "q9\td1\t1",
    )
    return folder


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("data_format", [None, "beir"])
def test_beir_folder(packed: str, data_format: str | None, tmp_path: Path) -> None:
    """Without a run the candidates are the judged documents; a title stands before its text."""
    folder = collection(tmp_path, packed=packed)
    data = load_examples(folder, data_format=data_format, purpose="eval")
    assert data.examples == [
        Example(
            "query one", ["One first", "second"], [2, 0], query_id="q1",
            document_ids=["d1", "d2"], source=f"{folder}/queries.jsonl{packed}:1",
        ),
        Example(
            "query two", ["third", "One first"], [1, 0], query_id="q2",
            document_ids=["d3", "d1"], source=f"{folder}/queries.jsonl{packed}:2",
        ),
    ]  # fmt: skip
    assert data.report.dropped == Counter({NOT_IN_CORPUS: 1, NOT_IN_QUERIES: 1})
    assert data.report.noted == Counter({NEGATIVE_JUDGEMENT: 1, JUDGED_ALONE: 3})
    assert load_examples(folder).report.noted == Counter({NEGATIVE_JUDGEMENT: 1})
    assert [(s.data_format, s.examples) for s in data.sources] == [("beir", 2)]


@pytest.mark.parametrize("where", ["run.trec", "runs/test.trec", "runs/bm25.test.run.gz"])
def test_beir_run(where: str, tmp_path: Path) -> None:
    """A run is the candidate list: what it misses is not added, what nobody judged has label 0."""
    folder = collection(tmp_path)
    write(
        folder / where,
        "q1 Q0 d3 1 9.5 bm25",
        "q1 Q0 d2 2 7 bm25",
        "q1 Q0 d4 3 6 bm25",
        "q3 Q0 d1 1 1 bm25",
    )
    data = load_examples(folder, purpose="eval")
    assert data.examples == [
        Example(
            "query one", ["third", "second", "Four "], [0, 0, 0], [9.5, 7, 6], query_id="q1",
            document_ids=["d3", "d2", "d4"], source=f"{folder}/queries.jsonl:1",
            missed={"d1": 2.0, "d9": 1.0},
        )
    ]  # fmt: skip
    assert data.report.noted == Counter({POSITIVE_NOT_IN_RUN: 2, NEGATIVE_JUDGEMENT: 1})
    assert data.report.dropped == Counter({NOT_IN_RUN: 2, NOT_JUDGED: 1})


def test_beir_takes_the_split_and_its_run(tmp_path: Path) -> None:
    folder = collection(tmp_path)
    write(folder / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore", "q3\td1\t1")
    write(folder / "runs" / "test.trec", "q1 Q0 d2 1 1 x")
    write(folder / "runs" / "train.trec", "q3 Q0 d1 1 1 x")
    assert [e.query_id for e in load_examples(folder).examples] == ["q3"]
    assert [e.query_id for e in load_examples(folder, split="test").examples] == ["q1"]


def test_trec_qrels_have_four_columns_and_no_header(tmp_path: Path) -> None:
    folder = collection(tmp_path)
    (folder / "qrels" / "test.tsv").unlink()
    write(folder / "qrels.tsv", "q1 0 d1 1", "q1 0 d2 0")
    assert load_examples(folder).examples[0].labels == [1, 0]


def test_mteb_layout(tmp_path: Path) -> None:
    """corpus/, queries/, qrels/ and top_ranked/ of Parquet files."""
    tables = {
        "corpus": [{"_id": f"d{i}", "title": "", "text": f"text {i}"} for i in range(4)],
        "queries": [{"_id": "q", "text": "query"}],
        "qrels": [{"query-id": "q", "corpus-id": "d2", "score": 1}],
        "top_ranked": [{"query-id": "q", "corpus-ids": ["d3", "d2", "d0"]}],
    }
    for name, rows in tables.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "test-00000-of-00001.parquet")
    example = load_examples(tmp_path, purpose="eval").examples[0]
    assert example.documents == ["text 3", "text 2", "text 0"]
    assert example.labels == [0, 1, 0]
    assert example.first_stage_scores is None


@pytest.mark.parametrize(
    ("file", "lines", "expected"),
    [
        (
            "qrels/test.tsv",
            ["q1 d1"],
            "qrels/test.tsv:1: 2 columns; a judgement is query-id, corpus-id, score (BEIR) or "
            "query-id, 0, corpus-id, score (TREC)",
        ),
        (
            "qrels/test.tsv",
            ["query-id\tcorpus-id\tscore", "q1\td1\tx"],
            "qrels/test.tsv:2: the score is the text 'x'; it must be a finite number",
        ),
        (
            "qrels/test.tsv",
            ["q1\td1\t1", "q1\td1\t0"],
            "qrels/test.tsv:2: document 'd1' is judged twice for query 'q1', with different "
            "scores; keep one",
        ),
        (
            "run.trec",
            ["q1 Q0 d1 1 0.5"],
            "run.trec:1: 5 columns; a line of a TREC run is: query-id Q0 document-id rank score "
            "tag",
        ),
        (
            "run.trec",
            ["q1 Q0 d1 1 nan x"],
            "run.trec:1: the score is nan; it must be a finite number",
        ),
        (
            "run.trec",
            ["q1 Q0 d1 1 2 x", "q1 Q0 d1 2 1 x"],
            "run.trec:2: the run holds document 'd1' twice for query 'q1'; keep one line for each",
        ),
        (
            "queries.jsonl",
            [{"_id": "q1", "text": " "}],
            "queries.jsonl:1: 'text' is empty; every query needs its text",
        ),
        (
            "corpus.jsonl",
            [{"text": "a"}],
            "corpus.jsonl:1: '_id' or 'id' is missing (columns: text); every row of it needs its "
            "id",
        ),
    ],
)
def test_bad_beir_files(file: str, lines: list[Any], expected: str, tmp_path: Path) -> None:
    folder = collection(tmp_path)
    write(folder / file, *lines)
    assert message(load_examples, folder) == f"{folder}/{expected}"


def test_beir_folder_with_parts_missing(tmp_path: Path) -> None:
    folder = collection(tmp_path)
    (folder / "qrels" / "test.tsv").unlink()
    assert message(load_examples, folder) == (
        f"{folder}: holds a corpus and queries, but no qrels.tsv and no qrels/<split>.tsv; add the "
        "judgements"
    )
    (folder / "queries.jsonl").unlink()
    assert message(load_examples, folder, data_format="beir") == (
        f"{folder}: the layout 'beir' needs a corpus and queries in the folder (corpus.jsonl, "
        "queries.jsonl)"
    )
    file = folder / "corpus.jsonl"
    assert message(load_examples, file, data_format="beir") == (
        f"{file}: the layout 'beir' is a folder, and this is a file; give the folder"
    )


def test_several_runs(tmp_path: Path) -> None:
    folder = collection(tmp_path)
    for name in ("a", "b"):
        write(folder / f"{name}.trec", "q1 Q0 d1 1 1 x")
    assert message(load_examples, folder) == (
        f"{folder}: holds several runs (a.trec, b.trec); keep one, or put the split's name into "
        "its file's name"
    )


# -------------------------------------------------------------------------------------- wrong input

LAYOUTS = (
    "rankwright (query+positive or query+negative), messages (messages+positive_messages or "
    "messages+negative_messages), flagembedding (query+pos or query+neg), labels "
    "(query+documents+labels), pairs (query+document+label), triplets (anchor+positive or "
    "anchor+negative or query+negative_1+positive)"
)
LISTED = {"query": "q", "documents": ["a", "b"], "labels": [1, 0]}
PAIR = {"query": "q", "document": "a", "label": 1}
TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}], "positive_messages": []}

# rows of f.jsonl -> (line of the error, its message)
BAD_ROWS: dict[str, tuple[list[Any], int, str]] = {
    "broken JSON": (
        [ROW, ROW, '{"query": "q", "positive": ["a"'],
        3,
        "broken JSON (Expecting ',' delimiter at column 32): '{\"query\": \"q\", \"positive\": "
        "[\"a\"'; a line holds one whole JSON object",
    ),
    "two objects in a line": (
        ['{"a": 1}{"b": 2}'],
        1,
        "broken JSON (Extra data at column 9): '{\"a\": 1}{\"b\": 2}'; a line holds one whole JSON "
        "object",
    ),
    "nested": (["[" * 200_000], 1, "the JSON is nested too deeply; a row is a flat object"),
    "no object": (
        [ROW, '["q", "a"]'],
        2,
        'the row is a list; a row is an object with named columns, such as {"query": ..., '
        '"positive": [...], "negative": [...]}',
    ),
    "not UTF-8": (
        [ROW, b'{"query": "caf\xe9"}'],
        2,
        "not UTF-8 (byte 0xe9 at position 15); save the file as UTF-8",
    ),
    "query missing": (
        [ROW, {"positive": ["a"], "negative": ["b"]}],
        2,
        "'query' is missing (columns: positive, negative); every row needs it",
    ),
    "query null": (
        [ROW | {"query": None}],
        1,
        "'query' is missing (columns: query, positive, negative); every row needs it",
    ),
    "query empty": ([ROW | {"query": " \n"}], 1, "'query' is empty; every row needs its text"),
    "query a number": ([ROW | {"query": 5}], 1, "'query' is the number 5; it must be text"),
    "positive an object": (
        [ROW | {"positive": {"text": "a"}}],
        1,
        "'positive' is an object; give a list of texts, or one text",
    ),
    "positive holds a number": (
        [ROW | {"positive": ["a", 7]}],
        1,
        "positive[1] is the number 7; it must be text",
    ),
    "negative holds null": (
        [ROW | {"negative": [None]}],
        1,
        "negative[0] is null; it must be text",
    ),
    "half a surrogate pair": (
        ['{"query": "q", "positive": "\\ud83d"}'],
        1,
        "'positive' holds half of a surrogate pair ('\\ud83d'), which is no character; write the "
        "text again as UTF-8",
    ),
    "an id that is a list": (
        [ROW | {"id": [1]}],
        1,
        "'id' is a list; an id is text or a whole number",
    ),
    "instruction a number": (
        [ROW | {"instruction": 1}],
        1,
        "'instruction' is the number 1; it must be text",
    ),
    "label NaN": (
        ['{"query": "q", "documents": ["a"], "labels": [NaN]}'],
        1,
        "labels[0] is nan; it must be a finite number, 0 or above",
    ),
    "label infinite": (
        ['{"query": "q", "documents": ["a"], "labels": [1e999]}'],
        1,
        "labels[0] is inf; it must be a finite number, 0 or above",
    ),
    "label too large": (
        [LISTED | {"labels": [10**400, 0]}],
        1,
        "labels[0] is inf; it must be a finite number, 0 or above",
    ),
    "label negative": (
        [PAIR, PAIR | {"label": -1}],
        2,
        "'label' is -1.0; it must be a finite number, 0 or above",
    ),
    "label a text": (
        [PAIR | {"label": "1"}],
        1,
        "'label' is the text '1'; it must be a finite number, 0 or above",
    ),
    "label missing": ([PAIR | {"label": None}], 1, "'label' is missing; give a number, 0 or above"),
    "score true": (
        [LISTED | {"scores": [True, 1]}],
        1,
        "scores[0] is true; it must be a finite number",
    ),
    "lengths of documents and labels": (
        [LISTED | {"labels": [1]}],
        1,
        "'documents' has 2 entries and 'labels' 1; give one for each document",
    ),
    "lengths of documents and scores": (
        [LISTED | {"scores": [1, 2, 3]}],
        1,
        "'documents' has 2 entries and 'scores' 3; give one for each document",
    ),
    "ids of some documents": (
        [LISTED | {"documents": [{"id": 1, "text": "a"}, {"text": "b"}]}],
        1,
        "'documents' has 2 entries and 'document_ids' 1; give one for each document",
    ),
    "document without text": (
        [LISTED | {"documents": [{"id": 1}, {"text": "b"}]}],
        1,
        "documents[0] has the keys id; a document is text, or an object with 'text' and, if you "
        "like, 'id' and 'title'",
    ),
    "documents a text": (
        [LISTED | {"documents": "a"}],
        1,
        "'documents' is the text 'a'; give a list of texts",
    ),
    "lengths of teacher scores": (
        [ROW | {"positive_scores": [1, 2], "negative_scores": [1]}],
        1,
        "'positive' holds 1 texts and 'positive_scores' 2 numbers; give one score for each text",
    ),
    "positive scores alone": (
        [ROW | {"positive_scores": [1]}],
        1,
        "'positive_scores' is given and 'negative_scores' is not; give the scores of both sides, "
        "or none",
    ),
    "negative scores alone": (
        [ROW | {"negative_scores": [1]}],
        1,
        "'negative_scores' is given and 'positive_scores' is not; give the scores of both sides, "
        "or none",
    ),
    "mixed layouts": (
        [ROW, PAIR],
        2,
        "another layout (pairs: query, document, label) than the first row's (rankwright: query, "
        "positive, negative); put rows of one layout in one file",
    ),
    "mixed columns": (
        [ROW, {"query": "q", "postive": ["a"]}],
        2,
        "the columns query, postive are not those of the layout 'rankwright', which has "
        "query+positive or query+negative",
    ),
    "unknown layout": (
        [{"question": "q", "contexts": ["a"]}],
        1,
        f"the columns question, contexts fit no layout; there are {LAYOUTS}; rename the columns, "
        "or name the layout with --data_format",
    ),
    "no columns": (
        [{}],
        1,
        f"the columns none fit no layout; there are {LAYOUTS}; rename the columns, or name the "
        "layout with --data_format",
    ),
    "several layouts": (
        [ROW | LISTED],
        1,
        "the columns query, positive, negative, documents, labels fit several layouts: rankwright, "
        "labels; name one with --data_format",
    ),
    "scores of some pairs": (
        [PAIR | {"score": 1}, PAIR],
        2,
        "'score' is given in some rows of this query and not in others (its first row is "
        "{path}:1); give it in all or in none",
    ),
    "one id, two queries": (
        [PAIR | {"query_id": "1"}, PAIR | {"query_id": "1", "query": "r"}],
        2,
        "the query id '1' has another query than at {path}:1; one id is one query with one "
        "instruction",
    ),
    "no user message": (
        [TALK | {"messages": []}],
        1,
        "'messages' holds 0 user and 0 system messages; give one user message (the query) and at "
        "most one system message (the instruction)",
    ),
    "an answer among the messages": (
        [TALK | {"messages": [{"role": "assistant", "content": "a"}]}],
        1,
        "messages[0] has the role 'assistant'; 'messages' may hold one system message (the "
        "instruction) and one user message (the query)",
    ),
    "messages a text": (
        [TALK | {"messages": "q"}],
        1,
        "'messages' is the text 'q'; give a list with one user message, the query",
    ),
    "user message empty": (
        [TALK | {"messages": [{"role": "user", "content": ""}]}],
        1,
        "the user message of 'messages' is empty; every row needs its text",
    ),
    "message without content": (
        [TALK | {"positive_messages": [[{"role": "assistant"}]]}],
        1,
        'positive_messages[0][0] has the keys role; a message is {"role": ..., "content": text}',
    ),
    "message a text": (
        [TALK | {"positive_messages": ["a"]}],
        1,
        "positive_messages[0] is the text 'a'; a message is {\"role\": ..., \"content\": text}",
    ),
    "content of parts": (
        [TALK | {"positive_messages": [[{"role": "user", "content": [{"type": "image"}]}]]}],
        1,
        "positive_messages[0][0].content is a list; it must be text",
    ),
    "document of two messages": (
        [TALK | {"negative_messages": [TALK["messages"] * 2]}],
        1,
        "negative_messages[0] holds 2 messages; a document is a list of one message",
    ),
    "candidates a text": (
        [TALK | {"positive_messages": "a"}],
        1,
        "'positive_messages' is the text 'a'; give a list of lists of one message each",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row(name: str, tmp_path: Path) -> None:
    rows, line, expected = BAD_ROWS[name]
    path = write(tmp_path / "f.jsonl", *rows)
    assert message(load_examples, path) == f"{path}:{line}: {expected.replace('{path}', str(path))}"


def test_named_layout_that_does_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", ROW)
    assert message(load_examples, path, data_format="pairs") == (
        f"{path}:1: 'document' is missing (columns: query, positive, negative); every row needs it"
    )
    path = write(tmp_path / "f.jsonl", PAIR)
    assert message(load_examples, path, data_format="rankwright") == (
        f"{path}:1: the columns query, document, label are not those of the layout 'rankwright', "
        "which has query+positive or query+negative"
    )


def test_unknown_layout_name(tmp_path: Path) -> None:
    assert message(load_examples, tmp_path, data_format="pair", error=ConfigError) == (
        "--data_format 'pair' is unknown; choose from rankwright, messages, flagembedding, labels, "
        "pairs, triplets, beir"
    )


def test_nothing_left(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", {"query": "q", "positive": [""], "negative": []})
    assert message(load_examples, path) == (
        f"{path}: no row is left of 1 read (1 x empty document, 1 x row without documents); give a "
        "dataset with rows"
    )
    for name in ("empty.jsonl", "empty.json", "empty.csv"):
        path = write(tmp_path / name)
        expected = f"{path}: no row is left of 0 read; give a dataset with rows"
        assert message(load_examples, path) == expected


def bad_file(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return message(load_examples, path).removeprefix(f"{path}:")


def test_bad_files(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps(ROW) + "\n" for _ in range(3000)).encode())
    assert bad_file(tmp_path / "f.jsonl.gz", whole[: len(whole) // 2]).endswith(
        ": not a whole gzip file (Compressed file ended before the end-of-stream marker was "
        "reached); copy or compress it again"
    )
    assert bad_file(tmp_path / "f.jsonl.gz", b"{}") == (
        "1: not a whole gzip file (Not a gzipped file (b'{}')); copy or compress it again"
    )
    assert bad_file(tmp_path / "f.csv.gz", b"{}") == (
        "1: not a whole gzip file (Not a gzipped file (b'{}')); copy or compress it again"
    )
    assert bad_file(tmp_path / "f.json", b'[{"query": "q"},\n {"query" "q"}]') == (
        "2: broken JSON (Expecting ':' delimiter at column 11); the file holds one list of rows"
    )
    assert bad_file(tmp_path / "f.json", b'"rows"') == (
        " the file holds the text 'rows'; it must hold a list of rows, or {\"data\": [...]}"
    )
    assert bad_file(tmp_path / "f.json", b"[1]") == (
        'row 1: the row is the number 1; a row is an object with named columns, such as {"query": '
        '..., "positive": [...], "negative": [...]}'
    )
    assert bad_file(tmp_path / "f.csv", b"query,document,label\nq,a\n") == (
        "2: 2 cells under 3 columns; quote cells that hold the separator or a line break"
    )
    assert bad_file(tmp_path / "f.csv", b'query,document,label\nq,a,1\nq,"a,1\n') == (
        "3: broken CSV (unexpected end of data); quote cells that hold quotes, the separator or a "
        "line break"
    )
    assert bad_file(tmp_path / "f.csv", b"query,query\nq,a\n") == (
        "1: the column 'query' stands twice in the header; give each column a name of its own"
    )
    assert bad_file(tmp_path / "f.csv", b"query,positive\nq,\"['a', 'b']\"\n") == (
        "2: 'positive' looks like a list but is not JSON: \"['a', 'b']\"; write lists in CSV as "
        'JSON text, such as ["first", "second"]'
    )
    assert bad_file(tmp_path / "f.csv", b"query,document,label\nq,a,high\n") == (
        "2: 'label' is the text 'high'; it must be a finite number, 0 or above"
    )
    assert bad_file(tmp_path / "f.csv", b"query,document,label\nq,a,nan\n") == (
        "2: 'label' is nan; it must be a finite number, 0 or above"
    )
    assert bad_file(tmp_path / "f.csv", b"query,document,label\nq,caf\xe9,1\n") == (
        "2: not UTF-8 (byte 0xe9 at position 6); save the file as UTF-8"
    )
    parquet = bad_file(tmp_path / "f.parquet", b"no parquet at all")
    assert parquet.startswith(" not a readable parquet file (Parquet magic bytes not found")
    assert parquet.endswith("; write it again")
    assert bad_file(tmp_path / "f.arrow", b"no arrow").startswith(" not a readable arrow file (")
    assert bad_file(tmp_path / "f.txt", b"q") == (
        " a file of rows ends in .jsonl, .json, .csv, .tsv, .parquet or .arrow, each also .gz; "
        "rename or convert it"
    )


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "f.jsonl", ROW)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rankwright.data.readers._open", refuse)
    assert message(load_examples, path) == (
        f"{path}: cannot be read (Permission denied); check the file"
    )


def test_read_rows_of_a_missing_file(tmp_path: Path) -> None:
    for name in ("f.jsonl", "f.csv", "f.parquet", "f.arrow"):
        path = tmp_path / name
        expected = f"{path}: there is no such file; check the path"
        assert message(lambda p=path: list(read_rows(p))) == expected


# ---------------------------------------------------------------------------------------- real rows


def test_real_rows(shared: Path) -> None:
    """The counts that the folder's README states."""
    small = shared / "data" / "medquad_small"
    train = load_examples(small)
    assert len(train.examples) == 500
    assert not train.report.dropped
    assert not train.report.noted
    assert train.report.ignored == Counter({"source": 500})
    assert sum(label == 0 for e in train.examples for label in e.labels) == 2000
    assert len(load_examples(small, purpose="eval").examples) == 80
    assert len(load_examples(f"{small}/dev.jsonl {small}/test.jsonl#200").examples) == 280

    whole = load_examples(shared / "data" / "medquad" / "train.jsonl.gz")
    assert len(whole.examples) == 12_511
    assert Counter(int(sum(e.labels)) for e in whole.examples) == {1: 11_255, 2: 1000, 3: 256}
    assert len({e.query_id for e in whole.examples}) == 12_511
    for row, example in zip(read_rows(small / "train.jsonl"), train.examples, strict=True):
        assert example.documents == row.values["positive"] + row.values["negative"]
