"""Properties: whatever a file holds, it is examples or one line of error.

``tests/fuzz`` looks for counterexamples with a fuzzer that is guided by coverage.
"""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwright.data import readers
from rankwright.data.readers import BadRows, load_examples
from rankwright.data.store import ExampleStore, load_store
from rankwright.errors import DataError
from rankwright.types import Example
from tests.data.test_readers import CASES

# half a surrogate pair is a character of JSON and of no encoding
CHARACTERS = st.characters(exclude_categories=())
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**400, 10**401)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(CHARACTERS, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=6), inner)
    ),
    max_leaves=6,
)
VALID = [row for rows, _ in CASES.values() for row in rows]


@st.composite
def nearly_rows(draw: Any) -> Any:
    """A valid row with a value replaced, a column taken away or added, at any depth."""
    row: Any = copy.deepcopy(draw(st.sampled_from(VALID)))
    place = row
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return row
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and draw(st.booleans()):
            place = place[key]
            continue
        what = draw(st.sampled_from(["keep", "replace", "remove", "add"]))
        if what == "replace":
            place[key] = draw(JSON)
        elif what == "remove":
            del place[key]
        elif what == "add" and isinstance(place, dict):
            place[draw(st.sampled_from(sorted(row)) | st.text(CHARACTERS, max_size=6))] = draw(JSON)
        return row


SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check_example(example: Example) -> None:
    """What every part behind the readers counts on."""
    size = len(example.documents)
    assert size > 0
    assert example.query.strip()
    for values in (
        example.labels,
        example.first_stage_scores,
        example.teacher_scores,
        example.document_ids,
    ):
        assert values is None or len(values) == size
    assert all(0 <= label < float("inf") for label in example.labels)
    for score in (example.first_stage_scores or []) + (example.teacher_scores or []):
        assert abs(score) < float("inf")
    texts = [example.query, example.instruction or "", example.query_id, *example.documents]
    for text in texts + (example.document_ids or []):
        text.encode()
    assert all(document.strip() for document in example.documents)


def check_message(said: str) -> None:
    assert "\n" not in said
    assert 0 < len(said) < 2000


def check_file(path: Path) -> list[Example] | None:
    """Read a file, stopping at bad rows and skipping them; None where it is refused."""
    bad = BadRows("skip", 1000)
    try:
        found = load_examples(path, bad_rows=bad).examples
    except DataError as error:
        check_message(str(error))
        found = []
    for example in found:
        check_example(example)
    for row in bad.refused:
        check_message(row.reason)
        assert len(row.text) <= readers.KEPT_OF_ROW
    for line in bad.report():
        line.encode()
    said = ""
    try:
        strict = load_examples(path).examples
    except DataError as error:
        said, strict = str(error), []
        check_message(said)
    # what one way refuses, the other does not read
    if bad.refused:
        assert bad.refused[0].reason in said
        return None
    assert list(strict) == list(found)
    return None if said else list(found)


@SETTINGS
@given(rows=st.lists(JSON | nearly_rows() | st.sampled_from(VALID), min_size=1, max_size=4))
def test_any_json_is_an_example_or_one_line(rows: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = check_file(path)
    # the same rows, as one list
    whole = tmp_path / "f.json"
    whole.write_text(json.dumps(rows))
    listed = check_file(whole)
    assert (listed is None) == (found is None)
    if found is not None and listed is not None:
        assert [(e.query, e.documents, e.labels) for e in found] == [
            (e.query, e.documents, e.labels) for e in listed
        ]


@settings(SETTINGS, max_examples=40)
@given(rows=st.lists(nearly_rows() | st.sampled_from(VALID), min_size=1, max_size=6))
def test_what_is_read_survives_the_store(rows: list[Any], tmp_path: Path) -> None:
    """Texts to the last character, labels and scores to the last bit, ids, places, counts."""
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    in_memory, on_disk = BadRows("skip"), BadRows("skip")
    try:
        expected = load_examples(path, bad_rows=in_memory)
    except DataError:
        return
    found = load_store(path, tmp_path / "cache", rebuild=True, bad_rows=on_disk)
    # not the way out where it cannot be written
    assert isinstance(found.examples, ExampleStore)
    assert list(found.examples) == list(expected.examples)
    assert found.report == expected.report
    assert on_disk.refused == in_memory.refused


WHOLE: dict[str, bytes] = {}


def whole_file(kind: str, folder: Path) -> bytes:
    if kind not in WHOLE:
        # a table's column has one type
        rows = [CASES["labels"][0][0] | {"document_ids": ["d1", "d2", "d3"]}] * 3
        path = folder / f"whole.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif kind == "arrow":
            table = pa.Table.from_pylist(rows)
            with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        elif kind in ("csv", "tsv"):
            path.write_text('query,positive,negative\nq,"a\nb",c\nr,"d ""e""",f\n')
        else:
            text = "\n".join(map(json.dumps, rows)).encode()
            path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
        WHOLE[kind] = path.read_bytes()
    return WHOLE[kind]


@settings(SETTINGS, max_examples=200)
@given(
    kind=st.sampled_from(["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet", "arrow"]),
    start=st.floats(0, 1),
    size=st.integers(0, 30),
    put=st.binary(max_size=12)
    | st.sampled_from([b"\0" * 8, b"\xff" * 4, b'"', b"\r", b"[" * 2000]),
)
def test_any_damage_is_one_line(
    kind: str, start: float, size: int, put: bytes, tmp_path: Path
) -> None:
    """Bytes of a whole file are replaced by others, or go."""
    whole = whole_file(kind, tmp_path)
    place = int(start * len(whole))
    path = tmp_path / f"f.{kind}"
    path.write_bytes(whole[:place] + put + whole[place + size :])
    check_file(path)


@settings(SETTINGS, max_examples=100)
@given(
    kind=st.sampled_from(["jsonl", "json", "csv", "tsv", "jsonl.gz", "parquet", "arrow"]),
    content=st.binary(max_size=60) | st.text(CHARACTERS.filter(str.isprintable)).map(str.encode),
)
def test_any_bytes_are_one_line(kind: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"f.{kind}"
    path.write_bytes(content)
    check_file(path)
