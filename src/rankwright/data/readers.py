"""From files, folders and hub datasets to examples.

A row layout is one entry of ``READERS``: the columns that give it away and a function from a row to
an ``Example``. Everything else (files, compression, places for messages, ids, empty documents,
grouping) is the same for all layouts and stands below. To add a layout, add one entry here and one
case to ``tests/data/test_readers.py``.

Nothing is guessed and nothing is skipped unasked: a row that does not fit stops the load with its
file and line, or is set aside by ``BadRows``, and what is left out on purpose is counted with its
reason in the ``LoadReport``. Whatever a file holds, a row takes bounded memory (``MAX_LINE``).
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import hashlib
import itertools
import json
import logging
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from rankwright.data.outline import BLOCK
from rankwright.errors import ConfigError, DataError
from rankwright.files import expanded, replacing
from rankwright.types import Example

logger = logging.getLogger(__name__)

# a row is a query with its documents; what is longer than this is no row, and stays unread
MAX_LINE = 32 * 2**20
# a .json file, and a compressed table, must be in memory as a whole
MAX_WHOLE = 2**30
# how the name of a file of refused rows ends; such a file holds no rows to read
REFUSED = ".refused.jsonl"
# characters of a refused row that are kept, and of a list of names in a message
KEPT_OF_ROW = 1000
_KEPT_OF_NAMES = 300
# columns that no layout reads are counted by name up to this many names, the others together
KEPT_COLUMNS = 1000

# to mine is to read what is judged, whatever run lies beside it
Purpose = Literal["train", "eval", "mine"]
Progress = Callable[[str, int], None]

BAD_ROW = "row that cannot be read"
EMPTY_DOCUMENT = "empty document"
CONTRADICTION = "negative that is also a positive"
NO_DOCUMENTS = "row without documents"
REPEATED_DOCUMENT = "document repeated in its row"
REPEATED_ID = "query id used twice"
POSITIVE_NOT_IN_RUN = "relevant document that the run does not hold"
NOT_IN_CORPUS = "document id that the corpus does not hold"
NOT_IN_QUERIES = "judged query that the queries file does not hold"
NOT_IN_RUN = "judged query that the run does not hold"
NOT_JUDGED = "query of the run without a judgement"
BEHIND = "document of the run behind --top_k"
JUDGED_ALONE = "query whose candidates are its judged documents alone, for want of a run"
NEGATIVE_JUDGEMENT = "judgement below 0 read as 0"
OTHER_COLUMNS = "any of the other columns"


# ----------------------------------------------------------------------------------- rows refused

OnBadRow = Literal["stop", "skip"]
ON_BAD_ROW: tuple[OnBadRow, ...] = ("stop", "skip")
MAX_BAD_ROWS = 100


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that could not be read.

    Attributes:
        path: its file, as messages show it.
        line: its line, or its number where there are no lines; None where it is the file itself.
        reason: what is wrong, and what to do.
        text: the row as it stands there, its first ``KEPT_OF_ROW`` characters.
        lines: how many lines it is; a quote of CSV that is not closed makes a row of many.
    """

    path: str
    line: int | None
    reason: str
    text: str
    lines: int = 1


class BadRows:
    """What is done about rows that cannot be read, and which these are.

    One of these goes through all that a command reads, so that the limit holds for the whole.

    Args:
        on_bad_row: ``stop`` at the first one with an error, or ``skip`` them.
        max_bad_rows: how many may be skipped, a row of several lines counted with all of them; one
            more is an error.

    Attributes:
        refused: the rows that were skipped.
        lines: how many lines these are.
        files: what was read, so that nothing is written over it.

    Raises:
        ConfigError: for another word, or a number below 1.
    """

    def __init__(self, on_bad_row: str = "stop", max_bad_rows: int = MAX_BAD_ROWS) -> None:
        if on_bad_row not in ON_BAD_ROW:
            raise ConfigError(
                f"--on_bad_row {on_bad_row!r} is unknown; choose from {', '.join(ON_BAD_ROW)}"
            )
        if max_bad_rows < 1:
            raise ConfigError(
                f"--max_bad_rows {max_bad_rows} is less than 1; --on_bad_row stop skips none"
            )
        self.on_bad_row = on_bad_row
        self.max_bad_rows = max_bad_rows
        self.refused: list[Refused] = []
        self.lines = 0
        self.files: list[Path] = []

    def go_back(self, count: int, then: Iterable[Refused] = ()) -> None:
        """Forget all but the first ``count`` rows that were skipped, and put others behind them."""
        self.refused[count:] = then
        self.lines = sum(row.lines for row in self.refused)

    def refuse(self, error: DataError, place: str, raw: Any, lines: int = 1) -> None:
        """Stop at a row, or set it aside.

        Args:
            error: what is wrong with it; its message begins with the place.
            place: of the row.
            raw: the row, as bytes, as text, or as the values that were read.
            lines: how many lines it is.

        Raises:
            DataError: where no more rows may be skipped.
        """
        if self.on_bad_row == "stop":
            raise error
        if self.lines + lines > self.max_bad_rows:
            what = "this is one" if lines == 1 else f"with these {lines:,} lines it is"
            raise DataError(
                f"{error} ({what} more than --max_bad_rows {self.max_bad_rows} allows; is it the "
                "right file and --data_format?)"
            ) from error
        self.lines += lines
        reason = str(error).removeprefix(f"{place}: ")
        path, number = place, re.fullmatch(r"(.*):(?:row )?([0-9]+)", place, re.DOTALL)
        if number:
            path = number[1]
        line = int(number[2]) if number else None
        text = _as_text(raw).rstrip("\r\n")[:KEPT_OF_ROW]
        self.refused.append(Refused(path, line, reason, text, lines))

    def check_rest(self, shown: str, before: int) -> None:
        """Stop at a file of which nothing could be read.

        Args:
            shown: its name.
            before: how many rows had been refused before it.

        Raises:
            DataError: all its rows were refused.
        """
        found = self.refused[before:]
        if found:
            raise DataError(
                f"{shown}: none of its rows can be read, of which the first says: {found[0].reason}"
            )

    def report(self, path: Path | None = None, *, shown: int = 3) -> list[str]:
        """Say what was refused, in lines to print; none where nothing was.

        Args:
            path: the file that the rows are written to, as JSON lines; one that an earlier run left
                there is deleted where there are none. None writes no file.
            shown: how many rows are named.

        Raises:
            DataError: ``path`` is one of the files that are read.
        """
        if path is not None and path.exists():
            if any(file.exists() and file.samefile(path) for file in self.files):
                raise DataError(
                    f"{path} is a file that is read, and refused rows would be written there; "
                    "rename it, or name another output"
                )
            path.unlink()
        if not self.refused:
            return []
        lines = [
            f"{row.path}{'' if row.line is None else f':{row.line}'}: {row.reason}"
            for row in self.refused[:shown]
        ]
        if path is not None:
            with replacing(path) as file:
                for row in self.refused:
                    # escapes what is no character: the file is UTF-8, whatever was refused
                    file.write(json.dumps(asdict(row)).encode() + b"\n")
        count = len(self.refused)
        rows = "1 row that cannot be read" if count == 1 else f"{count:,} rows that cannot be read"
        rows += f" ({self.lines:,} lines)" if self.lines > count else ""
        lines.insert(0, f"left out: {rows}{'' if path is None else f', written to {path}'}")
        return lines if count <= shown else [*lines, f"... and {count - shown:,} more"]


def refused_file(output: Path) -> Path:
    """Where the rows that were refused while a file was made are written: beside it."""
    return output.parent / f"{output.stem}{REFUSED}"


def _as_text(raw: Any) -> str:
    if isinstance(raw, bytes):
        return raw[: 4 * KEPT_OF_ROW].decode("utf-8", "backslashreplace")
    if isinstance(raw, str):
        return raw
    try:
        return json.dumps(raw, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        return ""


# ---------------------------------------------------------------------------------------- a row


@dataclass(slots=True)
class Row:
    """One row of a file, with its place for messages.

    Attributes:
        values: the columns that hold something.
        columns: the names of all columns, empty ones too.
        place: such as ``train.jsonl:12``, or ``train.parquet:row 12`` where there are no lines.
        default_id: the query id of a row that brings none, such as ``train:12``.
        textual: whether every value is text (CSV), so that numbers and lists are to be parsed.
        raw: the row as it stands in its file; None where that is not at hand.
    """

    values: dict[str, Any]
    columns: tuple[str, ...]
    place: str
    default_id: str
    textual: bool = False
    raw: str | None = None

    def error(self, message: str) -> DataError:
        """An error at this row."""
        return DataError(f"{self.place}: {message}")

    def text(self, *columns: str) -> str:
        """The text of the first of these columns that is there; it may not be missing or empty."""
        for column in columns:
            if column in self.values:
                value = _checked_text(self, repr(column), self.values[column])
                if not value.strip():
                    raise self.error(f"{column!r} is empty; every row needs its text")
                return value
        names = " or ".join(map(repr, columns))
        found = _listed(self.columns) or "nothing"
        raise self.error(f"{names} is missing (columns: {found}); every row needs it")

    def optional_text(self, column: str) -> str | None:
        """The text of a column; None where it is missing or empty."""
        if column not in self.values:
            return None
        value = _checked_text(self, repr(column), self.values[column])
        return value if value.strip() else None

    def identifier(self, *columns: str) -> str:
        """The id in the first of these columns that is there, else an empty text."""
        for column in columns:
            if column in self.values:
                return _checked_id(self, repr(column), self.values[column])
        return ""

    def texts(self, column: str) -> list[str]:
        """A list of texts; one text is a list of one, a missing column an empty list."""
        value = self.listed(column)
        if value is None:
            return []
        if isinstance(value, str):
            return [_checked_text(self, repr(column), value)]
        if not isinstance(value, list):
            raise self.error(f"{column!r} is {_kind(value)}; give a list of texts, or one text")
        return [_checked_text(self, f"{column}[{i}]", item) for i, item in enumerate(value)]

    def numbers(self, column: str, *, label: bool) -> list[float] | None:
        """A list of numbers; one number is a list of one, a missing column None."""
        value = self.listed(column)
        if value is None:
            return None
        if not isinstance(value, list):
            return [_checked_number(self, repr(column), value, label=label)]
        return [
            _checked_number(self, f"{column}[{i}]", item, label=label)
            for i, item in enumerate(value)
        ]

    def listed(self, column: str) -> Any:
        """A column's value; a list that CSV holds as JSON text is parsed."""
        value = self.values.get(column)
        if not (self.textual and isinstance(value, str)):
            return value
        stripped = value.strip()
        if not (stripped.startswith("[") and stripped.endswith("]")):
            return value
        try:
            parsed = _DECODER.decode(stripped)
        except (ValueError, RecursionError):
            # a list as Python or pandas prints it would otherwise pass for one document
            if stripped.startswith(("['", '["', "[{")):
                raise self.error(
                    f"{column!r} looks like a list but is not JSON: {_cut(stripped)}; write lists "
                    'in CSV as JSON text, such as ["first", "second"]'
                ) from None
            return value
        return parsed


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        return f"the text {_cut(value)}"
    if isinstance(value, int | float):
        return f"the number {_cut(str(value), quote=False)}"
    return f"a {type(value).__name__}"


def _cut(text: str, width: int = 40, *, quote: bool = True) -> str:
    cut = text if len(text) <= width else text[: width - 3] + "..."
    return repr(cut) if quote else cut


def _listed(names: Iterable[Any]) -> str:
    """Names that a file brings, in one line of bounded length, and nothing in it but characters."""
    first = ", ".join(map(str, itertools.islice(names, _KEPT_OF_NAMES)))
    cut = _cut(first, _KEPT_OF_NAMES, quote=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _checked_text(row: Row, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise row.error(f"{name} is {_kind(value)}; it must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise row.error(
            f"{name} holds half of a surrogate pair ({_cut(value)}), which is no character; write "
            "the text again as UTF-8"
        ) from None
    return value


def _checked_id(row: Row, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise row.error(f"{name} is {_kind(value)}; an id is text or a whole number")
    return _checked_text(row, name, str(value))


def _checked_number(row: Row, name: str, value: Any, *, label: bool) -> float:
    if row.textual and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    allowed = "a finite number, 0 or above" if label else "a finite number"
    # true and false are labels, but never scores
    if not isinstance(value, int | float) or (isinstance(value, bool) and not label):
        raise row.error(f"{name} is {_kind(value)}; it must be {allowed}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (label and number < 0):
        raise row.error(f"{name} is {number}; it must be {allowed}")
    return number


# ------------------------------------------------------------------------------------ the layouts


@dataclass(frozen=True, slots=True)
class Reader:
    """One layout of rows.

    Attributes:
        name: what ``--data_format`` calls it.
        columns: the sets of columns that it is detected by; any one of them is enough. Empty for a
            layout of whole folders.
        description: one line, with an example.
        read: makes an example of a row.
        without: columns that show that a row is another layout's.
        also: sets of columns that are enough where the layout is named, but not to detect it.
        optional: the columns that it reads besides.
        grouped: a row holds a part of a query's candidates; rows of a query are put together.
        merge_repeats: a document that stands in several rows of a query was written again only
            because the layout asks for it, so it is kept once.
    """

    name: str
    columns: tuple[frozenset[str], ...]
    description: str
    read: Callable[[Row], Example]
    without: frozenset[str] = frozenset()
    also: tuple[frozenset[str], ...] = ()
    optional: frozenset[str] = frozenset()
    grouped: bool = False
    merge_repeats: bool = False


def _sides(
    row: Row, positive: str, negative: str, positive_scores: str, negative_scores: str
) -> tuple[list[str], list[float], list[float] | None]:
    """Documents, labels and teacher scores of a row with positives and negatives apart."""
    documents: list[str] = []
    labels: list[float] = []
    scores: list[float] = []
    scored: list[str] = []
    for column, score_column, label in (
        (positive, positive_scores, 1.0),
        (negative, negative_scores, 0.0),
    ):
        texts = row.texts(column)
        documents += texts
        labels += [label] * len(texts)
        # an empty list of scores says no more than a missing one
        side = row.numbers(score_column, label=False) or []
        if side and len(side) != len(texts):
            raise row.error(
                f"{column!r} holds {len(texts)} texts and {score_column!r} {len(side)} numbers; "
                "give one score for each text"
            )
        if side:
            scored.append(score_column)
        elif texts and scored:
            raise row.error(
                f"{scored[0]!r} is given and {score_column!r} is not; give the scores of both "
                "sides, or none"
            )
        scores += side
    if scored and len(scores) != len(documents):
        raise row.error(
            f"{negative_scores!r} is given and {positive_scores!r} is not; give the scores of both "
            "sides, or none"
        )
    return documents, labels, scores if scored else None


def _read_rankwright(row: Row) -> Example:
    documents, labels, teacher = _sides(
        row, "positive", "negative", "positive_scores", "negative_scores"
    )
    return Example(
        query=row.text("query"),
        documents=documents,
        labels=labels,
        teacher_scores=teacher,
        instruction=row.optional_text("instruction"),
        query_id=row.identifier("query_id", "id"),
    )


def _read_flagembedding(row: Row) -> Example:
    documents, labels, teacher = _sides(row, "pos", "neg", "pos_scores", "neg_scores")
    return Example(
        query=row.text("query"),
        documents=documents,
        labels=labels,
        teacher_scores=teacher,
        instruction=row.optional_text("prompt"),
        query_id=row.identifier("query_id", "id"),
    )


_MESSAGE = 'a message is {"role": ..., "content": text}'


def _message(row: Row, name: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise row.error(f"{name} is {_kind(value)}; {_MESSAGE}")
    if not isinstance(value.get("role"), str) or "content" not in value:
        raise row.error(f"{name} has the keys {_listed(value) or 'none'}; {_MESSAGE}")
    return value["role"], _checked_text(row, f"{name}.content", value["content"])


def _candidates(row: Row, column: str) -> list[str]:
    value = row.listed(column)
    if value is None:
        return []
    if not isinstance(value, list):
        raise row.error(f"{column!r} is {_kind(value)}; give a list of lists of one message each")
    documents = []
    for i, entry in enumerate(value):
        name = f"{column}[{i}]"
        if isinstance(entry, list):
            if len(entry) != 1:
                raise row.error(
                    f"{name} holds {len(entry)} messages; a document is a list of one message"
                )
            name, entry = f"{name}[0]", entry[0]
        documents.append(_message(row, name, entry)[1])
    return documents


def _read_messages(row: Row) -> Example:
    value = row.listed("messages")
    if not isinstance(value, list):
        what = "missing" if value is None else _kind(value)
        raise row.error(f"'messages' is {what}; give a list with one user message, the query")
    by_role: dict[str, list[str]] = {"system": [], "user": []}
    for i, item in enumerate(value):
        role, content = _message(row, f"messages[{i}]", item)
        if role not in by_role:
            raise row.error(
                f"messages[{i}] has the role {_cut(role)}; 'messages' may hold one system message "
                "(the instruction) and one user message (the query)"
            )
        by_role[role].append(content)
    if len(by_role["user"]) != 1 or len(by_role["system"]) > 1:
        raise row.error(
            f"'messages' holds {len(by_role['user'])} user and {len(by_role['system'])} system "
            "messages; give one user message (the query) and at most one system message (the "
            "instruction)"
        )
    query = by_role["user"][0]
    if not query.strip():
        raise row.error("the user message of 'messages' is empty; every row needs its text")
    positives, negatives = (
        _candidates(row, "positive_messages"),
        _candidates(row, "negative_messages"),
    )
    instruction = by_role["system"][0] if by_role["system"] else ""
    return Example(
        query=query,
        documents=positives + negatives,
        labels=[1.0] * len(positives) + [0.0] * len(negatives),
        instruction=instruction if instruction.strip() else None,
        query_id=row.identifier("query_id", "id"),
    )


def _titled(row: Row, name: str, title: Any, text: str) -> str:
    """A document as BEIR's own loaders read it: title, space, text."""
    if title is None or not _checked_text(row, name, title).strip():
        return text
    return f"{title} {text}"


def _read_labels(row: Row) -> Example:
    value = row.listed("documents")
    if not isinstance(value, list):
        what = "missing" if value is None else _kind(value)
        raise row.error(f"'documents' is {what}; give a list of texts")
    ids: list[str] | None = None
    if value and all(isinstance(item, dict) for item in value):
        documents = []
        found_ids = []
        for i, item in enumerate(value):
            if "text" not in item:
                keys = _listed(item) or "none"
                raise row.error(
                    f"documents[{i}] has the keys {keys}; a document is text, or an object with "
                    "'text' and, if you like, 'id' and 'title'"
                )
            text = _checked_text(row, f"documents[{i}].text", item["text"])
            documents.append(_titled(row, f"documents[{i}].title", item.get("title"), text))
            if item.get("id") is not None:
                found_ids.append(_checked_id(row, f"documents[{i}].id", item["id"]))
        if found_ids:
            ids = found_ids
    else:
        documents = [_checked_text(row, f"documents[{i}]", item) for i, item in enumerate(value)]
    raw_ids = row.listed("document_ids")
    if raw_ids is not None:
        if not isinstance(raw_ids, list):
            raise row.error(f"'document_ids' is {_kind(raw_ids)}; give a list")
        ids = [_checked_id(row, f"document_ids[{i}]", item) for i, item in enumerate(raw_ids)]
    labels = row.numbers("labels", label=True)
    if labels is None:
        raise row.error("'labels' is missing; give one number for each document")
    first_stage = row.numbers("scores", label=False)
    teacher = row.numbers("teacher_scores", label=False)
    for name, values in (
        ("labels", labels),
        ("scores", first_stage),
        ("teacher_scores", teacher),
        ("document_ids", ids),
    ):
        if values is not None and len(values) != len(documents):
            raise row.error(
                f"'documents' has {len(documents)} entries and {name!r} {len(values)}; give one "
                "for each document"
            )
    return Example(
        query=row.text("query"),
        documents=documents,
        labels=labels,
        first_stage_scores=first_stage,
        teacher_scores=teacher,
        instruction=row.optional_text("instruction"),
        query_id=row.identifier("query_id", "id"),
        document_ids=ids,
    )


def _number(row: Row, column: str, *, label: bool) -> float | None:
    if column not in row.values:
        return None
    return _checked_number(row, repr(column), row.values[column], label=label)


def _read_pairs(row: Row) -> Example:
    # the document may be empty (it is then left out and counted), so it is not read by row.text
    if "document" not in row.values and "document" not in row.columns:
        row.text("document")
    document = _checked_text(row, "'document'", row.values.get("document", ""))
    label = _number(row, "label", label=True)
    if label is None:
        raise row.error("'label' is missing; give a number, 0 or above")
    score = _number(row, "score", label=False)
    teacher = _number(row, "teacher_score", label=False)
    document_id = row.identifier("document_id")
    return Example(
        query=row.text("query"),
        documents=[document],
        labels=[label],
        first_stage_scores=None if score is None else [score],
        teacher_scores=None if teacher is None else [teacher],
        instruction=row.optional_text("instruction"),
        query_id=row.identifier("query_id"),
        document_ids=[document_id] if document_id else None,
    )


# Python refuses to read a number of thousands of digits
_NUMBERED_NEGATIVE = re.compile(r"negative_[0-9]{1,9}")


def _read_triplets(row: Row) -> Example:
    negatives = sorted(
        (name for name in row.values if name == "negative" or _NUMBERED_NEGATIVE.fullmatch(name)),
        key=lambda name: int(name.partition("_")[2] or 0),
    )
    positives = row.texts("positive")
    texts = [text for name in negatives for text in row.texts(name)]
    return Example(
        query=row.text("query", "anchor"),
        documents=positives + texts,
        labels=[1.0] * len(positives) + [0.0] * len(texts),
        instruction=row.optional_text("instruction"),
        query_id=row.identifier("query_id"),
    )


def _no_rows(row: Row) -> Example:
    raise row.error("the layout 'beir' is a folder (corpus, queries, qrels); name the folder")


def _columns(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(_names(names) for names in alternatives)


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader(
            "rankwright",
            _columns("query positive", "query negative"),
            'a query with its positives and negatives, lists or one text: {"query": "q", '
            '"positive": ["a"], "negative": ["b", "c"]}; also instruction, id, positive_scores, '
            "negative_scores",
            _read_rankwright,
            without=frozenset({"negative_1"}),
            optional=_names("positive negative instruction id query_id")
            | _names("positive_scores negative_scores"),
        ),
        Reader(
            "messages",
            _columns("messages positive_messages", "messages negative_messages"),
            'ms-swift\'s rows: {"messages": [{"role": "user", "content": "q"}], '
            '"positive_messages": [[{"role": "assistant", "content": "a"}]], '
            '"negative_messages": [[{"role": "assistant", "content": "b"}]]}; a system message is '
            "the instruction",
            _read_messages,
            optional=_names("positive_messages negative_messages id query_id"),
        ),
        Reader(
            "flagembedding",
            _columns("query pos", "query neg"),
            'FlagEmbedding\'s rows: {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": '
            '[0.9], "neg_scores": [0.1], "prompt": "..."}; the scores are a teacher\'s',
            _read_flagembedding,
            optional=_names("pos neg pos_scores neg_scores prompt id query_id"),
        ),
        Reader(
            "labels",
            _columns("query documents labels"),
            'candidates with graded or soft labels: {"query": "q", "documents": ["a", "b"], '
            '"labels": [2, 0]}; also scores (of the first stage), teacher_scores, document_ids',
            _read_labels,
            optional=_names("scores teacher_scores document_ids instruction id query_id"),
        ),
        Reader(
            "pairs",
            _columns("query document label"),
            'one document a row, grouped by query_id or query: {"query": "q", "document": "a", '
            '"label": 1}; also score (of the first stage), document_id',
            _read_pairs,
            optional=_names("score teacher_score document_id instruction query_id"),
            grouped=True,
        ),
        Reader(
            "triplets",
            _columns("anchor positive", "anchor negative", "query positive negative_1"),
            'one positive and its negatives a row, grouped by query: {"anchor": "q", "positive": '
            '"a", "negative": "b"}, or negative_1, negative_2, ...',
            _read_triplets,
            also=_columns("query positive", "query negative"),
            optional=_names("negative instruction query_id"),
            grouped=True,
            merge_repeats=True,
        ),
        Reader(
            "beir",
            (),
            "a folder: corpus.jsonl {_id, title, text}, queries.jsonl {_id, text}, "
            "qrels/<split>.tsv (query-id, corpus-id, score), maybe a TREC run (run.trec)",
            _no_rows,
        ),
    )
}


def _reader(data_format: str) -> Reader:
    if data_format not in READERS:
        raise ConfigError(
            f"--data_format {data_format!r} is unknown; choose from {', '.join(READERS)}"
        )
    return READERS[data_format]


def _layout(columns: tuple[str, ...]) -> list[str]:
    """The names of the readers that these columns fit."""
    names = frozenset(columns)
    return [
        reader.name
        for reader in READERS.values()
        if not names & reader.without and any(wanted <= names for wanted in reader.columns)
    ]


def _in_words(reader: Reader) -> str:
    return " or ".join("+".join(sorted(names, key=_column_order)) for names in reader.columns)


def _layouts_in_words() -> str:
    rows = (reader for reader in READERS.values() if reader.columns)
    return ", ".join(f"{reader.name} ({_in_words(reader)})" for reader in rows)


def _column_order(name: str) -> tuple[int, str]:
    leading = ("query", "anchor", "messages", "document", "documents")
    return (leading.index(name) if name in leading else len(leading), name)


def _detect(row: Row) -> Reader:
    # a column that is null in this row says nothing, unless nothing else fits
    fitting = _layout(tuple(row.values)) or _layout(row.columns)
    if len(fitting) == 1:
        return READERS[fitting[0]]
    found = _listed(row.columns) or "none"
    if fitting:
        raise row.error(
            f"the columns {found} fit several layouts: {', '.join(fitting)}; name one with "
            "--data_format"
        )
    raise row.error(
        f"the columns {found} fit no layout; there are {_layouts_in_words()}; rename the columns, "
        "or name the layout with --data_format"
    )


# ---------------------------------------------------------------------------------- files of rows

_TEXT_ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
_TABLE_ENDINGS = (".parquet", ".arrow")
ENDINGS: tuple[str, ...] = tuple(
    ending + packed for ending in _TEXT_ENDINGS + _TABLE_ENDINGS for packed in ("", ".gz")
)
_NOT_ROWS = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
    | {"configuration.json", "config.json"}
)
_ENDINGS_IN_WORDS = ".jsonl, .json, .csv, .tsv, .parquet or .arrow, each also .gz"


def _split_name(path: Path) -> tuple[str, str]:
    """The stem and the ending of a file, the ``.gz`` set aside: ``train``, ``.jsonl``."""
    name = path.name.removesuffix(".gz")
    for ending in _TEXT_ENDINGS + _TABLE_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], ending
    raise DataError(f"{path}: a file of rows ends in {_ENDINGS_IN_WORDS}; rename or convert it")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _one_line(error: BaseException) -> str:
    return _listed([" ".join(str(error).split()) or type(error).__name__])


_GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)


def _not_whole(place: str, error: BaseException) -> DataError:
    return DataError(
        f"{place}: not a whole gzip file ({_one_line(error)}); copy or compress it again"
    )


@contextlib.contextmanager
def _reading(shown: str) -> Iterator[None]:
    """Turn what the system says about a file into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{shown}: there is no such file; check the path") from error
    except _GZIP_ERRORS as error:
        raise _not_whole(shown, error) from error
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise DataError(f"{shown}: cannot be read ({reason}); check the file") from error


def read_rows(
    path: Path,
    *,
    shown: str | None = None,
    stem: str | None = None,
    bad_rows: BadRows | None = None,
) -> Iterator[Row]:
    """Read a file row by row.

    Args:
        path: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, or one of these as .gz.
        shown: the file's name in messages; None takes the path.
        stem: what the query ids of rows without one begin with; None takes the file's name without
            its ending.
        bad_rows: what is done about rows that cannot be read; None stops at the first.

    Yields:
        The rows, with the place of each.

    Raises:
        DataError: where the file or a row of it cannot be read, with its line.
    """
    shown = shown or str(path)
    bad_rows = bad_rows or BadRows()
    name, ending = _split_name(path)
    stem = re.sub(r"\s+", "_", stem or name)  # ids stand in run files, whose columns are spaces
    with _reading(shown):
        if path.is_dir():
            raise DataError(f"{shown}: is a folder; a file was expected")
        if ending == ".jsonl":
            yield from _jsonl_rows(path, shown, stem, bad_rows)
        elif ending == ".json":
            yield from _json_rows(path, shown, stem, bad_rows)
        elif ending in (".csv", ".tsv"):
            delimiter = "\t" if ending == ".tsv" else ","
            yield from _csv_rows(path, shown, stem, delimiter, bad_rows)
        else:
            yield from _table_rows(path, shown, stem, ending, bad_rows)


def _row(
    value: Any, place: str, default_id: str, *, textual: bool = False, raw: str | None = None
) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: the row is {_kind(value)}; a row is an object with named columns, such as "
            '{"query": ..., "positive": [...], "negative": [...]}'
        )
    columns = tuple(value)
    try:
        "".join(columns).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{place}: the name of a column holds half of a surrogate pair, which is no character "
            f"({_listed(columns)}); write the names again as UTF-8"
        ) from None
    return Row(
        {name: cell for name, cell in value.items() if cell is not None},
        columns,
        place,
        default_id,
        textual,
        raw,
    )


def _decoded(raw: bytes, place: str, *, bom: bool = True) -> str:
    try:
        return raw.decode("utf-8-sig" if bom else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{place}: not UTF-8 (byte 0x{byte:02x} at position {error.start + 1}); save the file "
            "as UTF-8"
        ) from None


class _RepeatedKeyError(ValueError):
    """An object names a key twice; JSON's readers would silently keep the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise _RepeatedKeyError(f"the key {_cut(twice)} stands twice in one object; keep one")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json(text: str, place: str, *, deep: str = "") -> Any:
    """Parse JSON; broken JSON goes on as a ``JSONDecodeError``, which knows its line."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise DataError(f"{place}: the JSON is nested too deeply{deep}") from None
    except json.JSONDecodeError:
        raise
    except _RepeatedKeyError as error:
        raise DataError(f"{place}: {error}") from None
    except ValueError:
        # Python refuses to read these, as the time to do so grows with the square of their length
        raise DataError(
            f"{place}: holds a whole number of more than {sys.get_int_max_str_digits()} digits, "
            "which is no label, score or id; write it as text, or leave it out"
        ) from None


def _what(error: json.JSONDecodeError) -> str:
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"


def _parsed(text: str, place: str, *, whole: bool = True) -> Any:
    """Parse a line; ``whole``: whether it ends in a line break."""
    try:
        return _json(text, place, deep="; a row is a flat object")
    except json.JSONDecodeError as error:
        advice = "a line holds one whole JSON object"
        if not whole:
            advice += "; the file ends within this one, so copy it again if it was cut"
        raise DataError(
            f"{place}: broken JSON ({_what(error)}): {_cut(text.strip())}; {advice}"
        ) from None


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a file, or what keeps it, or the rest of the file, from being read."""

    number: int
    place: str
    raw: bytes
    error: DataError | None = None

    def text(self, *, bom: bool = True) -> str:
        """The line as text.

        Raises:
            DataError: there is none.
        """
        if self.error is not None:
            raise self.error
        return _decoded(self.raw, self.place, bom=bom)


def _lines(path: Path, shown: str) -> Iterator[_Line]:
    """The lines of a file, of which none takes more memory than ``MAX_LINE``."""
    with _open(path) as file:
        for number in itertools.count(1):
            place = f"{shown}:{number}"
            raw = b""
            try:
                raw = file.readline(MAX_LINE + 1)
                if not raw:
                    return
                size = len(raw)
                if size > MAX_LINE:
                    raw, more = raw[: 4 * KEPT_OF_ROW], raw
                    while more and not more.endswith(b"\n"):
                        more = file.readline(2**20)
                        size += len(more)
                    error = DataError(
                        f"{place}: the line has {size:,} bytes, and a row has at most "
                        f"{MAX_LINE:,}: one query with its documents; write one row a line, and "
                        "fewer documents to a row"
                    )
                    yield _Line(number, place, raw, error)
                    continue
            except _GZIP_ERRORS as error:
                yield _Line(number, place, raw, _not_whole(place, error))
                return
            yield _Line(number, place, raw)


def _jsonl_rows(path: Path, shown: str, stem: str, bad_rows: BadRows) -> Iterator[Row]:
    for line in _lines(path, shown):
        place = line.place
        try:
            text = line.text().rstrip()
            if not text:  # a blank line, as many files have at their end, is no row
                continue
            value = _parsed(text, place, whole=line.raw.endswith(b"\n"))
            row = _row(value, place, f"{stem}:{line.number}", raw=text)
        except DataError as error:
            bad_rows.refuse(error, place, line.raw)
        else:
            yield row


def _whole(path: Path, shown: str, advice: str) -> bytes:
    with _open(path) as file:
        content = file.read(MAX_WHOLE + 1)
    if len(content) > MAX_WHOLE:
        raise DataError(
            f"{shown}: has more than {MAX_WHOLE:,} bytes and would be held in memory as a whole; "
            f"{advice}"
        )
    return content


def _json_rows(path: Path, shown: str, stem: str, bad_rows: BadRows) -> Iterator[Row]:
    try:
        text = _decoded(_whole(path, shown, "write one row a line, as .jsonl"), shown)
        if not text.strip():
            return
        try:
            value = _json(text, shown)
        except json.JSONDecodeError as error:
            if not (error.msg == "Extra data" and text.lstrip().startswith("{")):
                raise DataError(
                    f"{shown}:{error.lineno}: broken JSON ({_what(error)}); "
                    "the file holds one list of rows"
                ) from None
            value = None  # one object a line under the name .json, as many hubs have it
        if isinstance(value, dict):
            value = value["data"] if isinstance(value.get("data"), list) else [value]
        if value is not None and not isinstance(value, list):
            raise DataError(
                f"{shown}: the file holds {_kind(value)}; it must hold a list of rows, or "
                '{"data": [...]}'
            )
    except DataError as error:
        bad_rows.refuse(error, shown, "")
        return
    if value is None:
        del text
        yield from _jsonl_rows(path, shown, stem, bad_rows)
        return
    for number, item in enumerate(value, 1):
        place = f"{shown}:row {number}"
        try:
            row = _row(item, place, f"{stem}:{number}")
        except DataError as error:
            bad_rows.refuse(error, place, item)
        else:
            yield row


def _csv_rows(
    path: Path, shown: str, stem: str, delimiter: str, bad_rows: BadRows
) -> Iterator[Row]:
    # documents outgrow the default of 128 KiB
    csv.field_size_limit(MAX_LINE)
    # of the row that is being read: its first line, and what is wrong with one of its lines
    opening = ""
    problem: tuple[DataError, str] | None = None

    def lines() -> Iterator[str]:
        nonlocal opening, problem
        for line in _lines(path, shown):
            try:
                text = line.text(bom=line.number == 1)
            except DataError as error:
                problem = problem or (error, line.place)
                # its quotes still say where its row ends
                text = "" if line.error else line.raw.decode("utf-8", "replace")
            opening = opening or text[:KEPT_OF_ROW] or _as_text(line.raw)
            yield text

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    before = 0
    while True:
        number, opening, problem = before + 1, "", None
        place = f"{shown}:{number}"
        try:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                cells = []
                broken = DataError(
                    f"{place}: broken CSV ({_one_line(error)}); quote cells that hold quotes, the "
                    "separator or a line break"
                )
                problem = problem or (broken, place)
            before = reader.line_num
            # what is wrong with a line is wrong with its row, which may have lost a part of it
            if problem is not None:
                place = problem[1]
                raise problem[0]
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                names = [name.strip() for name in cells]
                twice = [name for name, count in Counter(names).items() if count > 1]
                if twice:
                    raise DataError(
                        f"{place}: the column {_cut(twice[0])} stands twice in the header; give "
                        "each column a name of its own"
                    )
                header = names
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{place}: {len(cells)} cells under {len(header)} columns; quote cells that "
                    "hold the separator or a line break"
                )
            values = {
                name: cell if cell else None for name, cell in zip(header, cells, strict=True)
            }
            row = _row(values, place, f"{stem}:{number}", textual=True)
        except DataError as error:
            if before > number:
                error = DataError(
                    f"{error}; lines {number} to {before} are one row, since line {number} opens a "
                    "quote that it does not close"
                )
            bad_rows.refuse(error, place, opening, before - number + 1)
            if header is None:
                return  # without its header, a table says nothing
        else:
            yield row


def _table_rows(path: Path, shown: str, stem: str, ending: str, bad_rows: BadRows) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        source: Any = path
        if path.name.endswith(".gz"):
            source = pa.BufferReader(_whole(path, shown, "decompress it"))
        elif not path.is_file():
            raise FileNotFoundError(path)
        for batch in _batches(pa, pq, source, ending):
            for value in _values(pa, batch):
                number += 1
                place = f"{shown}:row {number}"
                try:
                    if isinstance(value, Exception):
                        raise DataError(
                            f"{place}: cannot be read ({_one_line(value)}); write the file again"
                        )
                    row = _row(value, place, f"{stem}:{number}")
                except DataError as error:
                    bad_rows.refuse(error, place, "" if isinstance(value, Exception) else value)
                else:
                    yield row
    except FileNotFoundError:
        raise
    except _GZIP_ERRORS as error:
        bad_rows.refuse(_not_whole(shown, error), shown, "")
    # a ValueError is such as the name of a column that is not UTF-8
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's word on the file, not Arrow's on what is in it
        place = f"{shown}:row {number + 1}" if number else shown
        bad_rows.refuse(
            DataError(
                f"{place}: not a readable {ending[1:]} file ({_one_line(error)}); write it again"
            ),
            place,
            "",
        )


class _CutError(ValueError):
    """An Arrow stream has no end."""


def _values(pa: Any, batch: Any) -> Iterator[Any]:
    """The rows of a batch; in place of one that cannot be read, what is said of it."""
    try:
        # offsets and texts of a damaged file point anywhere, and nothing else looks at them
        batch.validate(full=True)
        yield from batch.to_pylist()
        return
    except (pa.ArrowException, ValueError, OverflowError):
        pass
    for i in range(batch.num_rows):
        one = batch.slice(i, 1)
        try:
            one.validate(full=True)
            yield from one.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            yield error


def _batches(pa: Any, pq: Any, source: Any, ending: str) -> Iterator[Any]:
    if ending == ".parquet":
        with pq.ParquetFile(source) as table:
            yield from table.iter_batches(batch_size=1024)
        return
    opened = source if isinstance(source, pa.BufferReader) else pa.memory_map(str(source))
    with opened:
        try:
            reader = pa.ipc.open_file(opened)
        except pa.ArrowInvalid:
            opened.seek(0)
            yield from pa.ipc.open_stream(opened)  # what datasets writes
            # Arrow takes a stream that was cut between two batches for a whole one
            opened.seek(max(0, opened.size() - 4))
            if opened.read(4) != b"\0\0\0\0":
                raise _CutError("the file was cut: it has no mark at its end") from None
            return
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


# ------------------------------------------------------------------------------ rows to examples


@dataclass(slots=True)
class LoadReport:
    """What happened to the rows on their way.

    Attributes:
        rows: rows read.
        dropped: what was left out, by reason.
        noted: what was kept and is worth knowing, by kind.
        ignored: rows that hold something in a column that their layout does not read, by column;
            behind ``KEPT_COLUMNS`` of them, as ``OTHER_COLUMNS``.
        warnings: what is probably a mistake, each with what to do; also logged.
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Source:
    """One file or folder that was read.

    Attributes:
        name: as messages show it.
        data_format: the layout it was read as.
        examples: how many examples it gave, before a sampling number.
    """

    name: str
    data_format: str
    examples: int


@dataclass(slots=True)
class LoadedData:
    """A dataset, in memory or on disk.

    Attributes:
        examples: in the order of the sources and of their rows; a list where they are in memory.
        report: what was left out, and why.
        sources: the files read.
    """

    examples: Sequence[Example]
    report: LoadReport = field(default_factory=LoadReport)
    sources: list[Source] = field(default_factory=list)


_ALIGNED = (
    "documents",
    "labels",
    "first_stage_scores",
    "teacher_scores",
    "document_ids",
)
_PER_DOCUMENT = {
    "first_stage_scores": "score",
    "teacher_scores": "teacher_score",
    "document_ids": "document_id",
}


def _keep(example: Example, indices: Sequence[int]) -> None:
    for name in _ALIGNED:
        values = getattr(example, name)
        if values is not None:
            setattr(example, name, [values[i] for i in indices])


def _count(counts: Counter[str], reason: str, number: int) -> None:
    if number:
        counts[reason] += number


def _clean(example: Example, report: LoadReport, *, merge_repeats: bool = False) -> bool:
    """Leave out what no score can be given to; say whether anything is left."""
    full = [i for i, text in enumerate(example.documents) if text.strip()]
    _count(report.dropped, EMPTY_DOCUMENT, len(example.documents) - len(full))
    # documents with ids are told apart by these: a candidate list stays what the retriever returned
    keys = example.document_ids or example.documents
    positives = {keys[i] for i in full if example.labels[i] > 0}
    kept = [i for i in full if example.labels[i] > 0 or keys[i] not in positives]
    _count(report.dropped, CONTRADICTION, len(full) - len(kept))
    if merge_repeats:
        first: dict[str, int] = {}
        for i in kept:
            first.setdefault(keys[i], i)
        kept = list(first.values())
    if len(kept) < len(example.documents):
        _keep(example, kept)
    repeated = len(example.documents) - len(set(example.documents))
    _count(report.noted, REPEATED_DOCUMENT, repeated)
    _count(report.dropped, NO_DOCUMENTS, not kept)
    return bool(kept)


def _fits(row: Row, reader: Reader) -> bool:
    names = frozenset(row.columns)
    return any(wanted <= names for wanted in reader.columns + reader.also)


def _read_row(row: Row, reader: Reader, first: Row, named: bool) -> Example:
    """Read a row in the layout of its file, and refuse one of another layout."""
    if _fits(row, reader) and (named or row.columns == first.columns):
        return reader.read(row)
    others = [] if named else _layout(tuple(row.values)) or _layout(row.columns)
    if others and reader.name not in others:
        raise row.error(
            f"another layout ({', '.join(others)}: {_listed(row.columns)}) than the first row's "
            f"({reader.name}: {_listed(first.columns)}); put rows of one layout in one file"
        )
    example = reader.read(row)  # says which column is missing, where that is what is wrong
    if not _fits(row, reader):
        raise row.error(
            f"the columns {_listed(row.columns) or 'none'} are not those of the layout "
            f"{reader.name!r}, which has {_in_words(reader)}"
        )
    return example


class _Ignored:
    """Counts the columns of a file that its layout does not read, in bounded memory.

    Args:
        reader: the layout.
        report: where they are counted; a near miss of a column that is read is a warning there.
    """

    def __init__(self, reader: Reader, report: LoadReport) -> None:
        self.reader = reader
        self.report = report
        self.known = reader.optional.union(*reader.columns, *reader.also)
        self.seen: set[str] = set()

    def count(self, row: Row) -> None:
        """Count a row's columns."""
        counts, others = self.report.ignored, False
        for column in row.values:
            if column in self.known or (
                self.reader.name == "triplets" and _NUMBERED_NEGATIVE.fullmatch(column)
            ):
                continue
            if column not in counts and (
                len(counts) >= KEPT_COLUMNS or len(column) > _KEPT_OF_NAMES
            ):
                others = True
                continue
            counts[column] += 1
            if column not in self.seen:
                self.seen.add(column)
                self._look_for_a_near_one(column, row)
        _count(counts, OTHER_COLUMNS, others)

    def _look_for_a_near_one(self, column: str, row: Row) -> None:
        missing = sorted(self.known.difference(row.columns))
        if near := difflib.get_close_matches(column, missing, 1, cutoff=0.85):
            _warn(
                self.report,
                f"{row.place}: the column {_cut(column)} is not read by the layout "
                f"{self.reader.name!r}; if {near[0]!r} is meant, rename it",
            )


def _warn(report: LoadReport, message: str) -> None:
    logger.warning(message)
    report.warnings.append(message)


def _file_examples(
    path: Path,
    shown: str,
    stem: str | None,
    named: Reader | None,
    report: LoadReport,
    bad_rows: BadRows,
    progress: Progress | None,
) -> tuple[str, Iterator[Example]]:
    """The name of a file's layout and its examples; the report fills while they are read."""
    rows = read_rows(path, shown=shown, stem=stem, bad_rows=bad_rows)
    before = len(bad_rows.refused)
    # the first row says what the others must look like
    first, reader = None, named
    for first in rows:
        try:
            reader = named or _detect(first)
            break
        except DataError as error:
            bad_rows.refuse(error, first.place, _raw(first))
            first = None
    if first is None or reader is None:
        bad_rows.check_rest(shown, before)
        _warn(report, f"{shown}: holds no row; is it the right file?")
        return named.name if named else "none", iter(())
    return reader.name, _read_rows_of(
        first, rows, shown, reader, named is not None, report, bad_rows, before, progress
    )


def _read_rows_of(
    first: Row,
    rows: Iterator[Row],
    shown: str,
    reader: Reader,
    named: bool,
    report: LoadReport,
    bad_rows: BadRows,
    before: int,
    progress: Progress | None,
) -> Iterator[Example]:
    """The examples of a file whose layout is known."""
    ignored = _Ignored(reader, report)

    def parts() -> Iterator[tuple[Example, Row]]:
        count = read = 0
        for count, row in enumerate(itertools.chain((first,), rows), 1):
            if progress and count % 1000 == 0:
                progress(shown, count)
            try:
                example = _read_row(row, reader, first, named)
            except DataError as error:
                bad_rows.refuse(error, row.place, _raw(row))
                continue
            read += 1
            example.source = row.place
            report.rows += 1
            ignored.count(row)
            yield example, row
        if progress:
            progress(shown, count)
        if not read:
            bad_rows.check_rest(shown, before)

    found: Iterable[tuple[Example, str]] = (
        _grouped(parts(), bad_rows)
        if reader.grouped
        else ((example, row.default_id) for example, row in parts())
    )
    for example, default_id in found:
        example.query_id = example.query_id or default_id
        if _clean(example, report, merge_repeats=reader.merge_repeats):
            yield example


def _raw(row: Row) -> Any:
    """What a refused row is shown as."""
    return row.values if row.raw is None else row.raw


def _grouped(parts: Iterator[tuple[Example, Row]], bad_rows: BadRows) -> list[tuple[Example, str]]:
    """Put the rows of each query together, in the order of each query's first row."""
    groups: dict[tuple[str, ...], tuple[Example, str]] = {}
    for part, row in parts:
        key = (
            ("id", part.query_id) if part.query_id else ("text", part.query, part.instruction or "")
        )
        whole = groups.setdefault(key, (part, row.default_id))[0]
        if whole is part:
            continue
        try:
            _check_part(part, whole)
        except DataError as error:
            bad_rows.refuse(error, row.place, _raw(row))
            continue
        for name in _ALIGNED:
            values, more = getattr(whole, name), getattr(part, name)
            if values is not None:
                values.extend(more)
    return list(groups.values())


def _check_part(part: Example, whole: Example) -> None:
    """Refuse a row that does not go with the first one of its query."""
    if whole.query != part.query or whole.instruction != part.instruction:
        what = "query" if whole.query != part.query else "instruction"
        raise DataError(
            f"{part.source}: the query id {_cut(part.query_id)} has another {what} than at "
            f"{whole.source}; one id is one query with one instruction"
        )
    for name in _ALIGNED:
        if (getattr(whole, name) is None) != (getattr(part, name) is None):
            raise DataError(
                f"{part.source}: {_PER_DOCUMENT[name]!r} is given in some rows of this query "
                f"and not in others (its first row is {whole.source}); give it in all or in "
                "none"
            )


# ---------------------------------------------------------------------------------- BEIR folders


def _parts(folder: Path, name: str) -> list[Path]:
    """The files of one part of a collection: ``corpus.jsonl`` or ``corpus/*.parquet``.

    The latter, with ``top_ranked`` in place of a run, is how MTEB lays its tasks out.
    """
    found = [path for path in _row_files(folder, deep=False) if _split_name(path)[0] == name]
    return found or (_row_files(folder / name) if (folder / name).is_dir() else [])


def _is_beir(folder: Path) -> bool:
    return bool(_parts(folder, "corpus") and _parts(folder, "queries"))


def _beir_id(row: Row, *names: str) -> str:
    value = row.identifier(*names)
    if not value:
        found = _listed(row.columns) or "nothing"
        raise row.error(
            f"{' or '.join(map(repr, names))} is missing (columns: {found}); every row of it needs "
            "its id"
        )
    return value


def _judgements(
    path: Path, shown: str, bad_rows: BadRows
) -> Iterator[tuple[Row, list[str] | None]]:
    """The rows of a table of judgements; of plain text, in its cells."""
    if _split_name(path)[1] != ".tsv":
        for row in read_rows(path, shown=shown, bad_rows=bad_rows):
            yield row, None
        return
    for row, cells in _separated(path, shown, bad_rows):
        if row.place.endswith(":1") and cells[0] in ("query-id", "query_id", "qid"):
            continue
        yield row, cells


def _judgement(row: Row, cells: list[str] | None) -> tuple[str, str, float]:
    """Query, document and score: of a BEIR table, or of a TREC qrels file (four columns)."""
    if cells is None:
        value = _number(row, "score", label=False)
        return (
            _beir_id(row, "query-id", "query_id"),
            _beir_id(row, "corpus-id", "corpus_id"),
            1.0 if value is None else value,
        )
    if len(cells) not in (3, 4):
        raise row.error(
            f"{len(cells)} columns; a judgement is query-id, corpus-id, score (BEIR) or "
            "query-id, 0, corpus-id, score (TREC)"
        )
    return cells[0], cells[-2], _checked_number(row, "the score", cells[-1], label=False)


Run = dict[str, dict[str, float]]
"""Query id -> document id -> score of a first stage."""


@dataclass(frozen=True, slots=True)
class FirstStage:
    """Where the candidates of a BEIR folder come from, in place of the run that it may hold.

    Attributes:
        search: from the folder and its judged queries (id -> text) to a run.
        top_k: documents kept of each query, the best ones; of equal ones those that come first.
        key: what the run depends on beside the folder's files.
    """

    search: Callable[[Path, Mapping[str, str]], Run]
    top_k: int
    key: tuple[Any, ...]


def run_file(path: Path, top_k: int) -> FirstStage:
    """A TREC run as first stage.

    Args:
        path: the file, which may be gzipped.
        top_k: see ``FirstStage``.
    """
    return FirstStage(lambda *_: read_trec_run(path), top_k, ("run", *file_stamp(path)))


def file_stamp(path: Path) -> tuple[str, str, int, int]:
    """What a file is known by between runs: its names, its size, the time of its change."""
    # its name, too: links of a hub's snapshot may change theirs, and splits are told by it
    status = path.stat()
    return str(path), str(path.resolve()), status.st_size, status.st_mtime_ns


def _first(ranked: Mapping[str, float], count: int) -> dict[str, float]:
    """The best documents of a query."""
    return dict(sorted(ranked.items(), key=lambda item: -item[1])[:count])


def _separated(path: Path, shown: str, bad_rows: BadRows) -> Iterator[tuple[Row, list[str]]]:
    """Lines whose cells stand apart by white space."""
    with _reading(shown):
        for line in _lines(path, shown):
            try:
                text = line.text()
            except DataError as error:
                bad_rows.refuse(error, line.place, line.raw)
                continue
            if cells := text.split():
                yield Row({}, (), line.place, "", textual=True, raw=text), cells


def _beir_qrels(
    files: list[Path], name: Callable[[Path], str], report: LoadReport, bad_rows: BadRows
) -> dict[str, dict[str, float]]:
    """The score of each judged document, by query; a negative one is 0."""
    qrels: dict[str, dict[str, float]] = {}
    for path in files:
        for row, cells in _judgements(path, name(path), bad_rows):
            try:
                query_id, document_id, score = _judgement(row, cells)
                known = qrels.get(query_id, {}).get(document_id)
                if known is not None and known != max(score, 0.0):
                    raise row.error(
                        f"document {_cut(document_id)} is judged twice for query "
                        f"{_cut(query_id)}, with different scores; keep one"
                    )
            except DataError as error:
                bad_rows.refuse(error, row.place, _raw(row))
                continue
            report.rows += 1
            _count(report.noted, NEGATIVE_JUDGEMENT, score < 0)
            qrels.setdefault(query_id, {})[document_id] = max(score, 0.0)
    return qrels


def read_trec_run(path: Path, *, shown: str | None = None, bad_rows: BadRows | None = None) -> Run:
    """Read a TREC run; ids stay as they are written.

    Args:
        path: the file, which may be gzipped.
        shown: the file's name in messages; None takes the path.
        bad_rows: what is done about lines that cannot be read; None stops at the first.

    Raises:
        DataError: the file cannot be read, or a line is not one of a run (file and line are named).
    """
    bad_rows = bad_rows or BadRows()
    run: Run = {}
    for row, cells in _separated(path, shown or str(path), bad_rows):
        try:
            if len(cells) != 6:
                raise row.error(
                    f"{len(cells)} columns; a line of a TREC run is: query-id Q0 document-id rank "
                    "score tag"
                )
            if cells[2] in run.get(cells[0], ()):
                raise row.error(
                    f"the run holds document {_cut(cells[2])} twice for query {_cut(cells[0])}; "
                    "keep one line for each"
                )
            score = _checked_number(row, "the score", cells[4], label=False)
        except DataError as error:
            bad_rows.refuse(error, row.place, _raw(row))
            continue
        run.setdefault(cells[0], {})[cells[2]] = score
    return run


def _is_run(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".trec", ".run"))


def _choose_run(folder: Path, split: str | None) -> Path | None:
    runs = [
        path
        for place in (folder, folder / "runs")
        if place.is_dir()
        for path in sorted(place.iterdir())
        if _is_run(path)
    ]
    if split and len(runs) > 1:
        runs = [path for path in runs if _has_word(path.name, split)] or runs
    if len(runs) > 1:
        raise DataError(
            f"{folder}: holds several runs ({', '.join(path.name for path in runs)}); keep one, or "
            "put the split's name into its file's name"
        )
    return runs[0] if runs else None


def _beir_examples(
    folder: Path,
    shown: str,
    split: str | None,
    purpose: Purpose,
    report: LoadReport,
    bad_rows: BadRows,
    progress: Progress | None,
    first_stage: FirstStage | None,
) -> Iterator[Example]:
    def name(path: Path) -> str:
        return f"{shown}/{path.relative_to(folder).as_posix()}"

    qrels_files = _parts(folder, "qrels")
    if not qrels_files:
        raise DataError(
            f"{shown}: holds a corpus and queries, but no qrels.tsv and no qrels/<split>.tsv; add "
            "the judgements"
        )
    qrels_files = _choose_split(qrels_files, folder, shown, split, purpose)
    qrels = _beir_qrels(qrels_files, name, report, bad_rows)
    split = split or _split_of(qrels_files[0], folder)
    queries = dict(_beir_texts(folder, "queries", set(qrels), name, bad_rows, progress))
    run: Run | None = None
    if first_stage is not None:
        found = first_stage.search(folder, {i: text for i, (text, _) in queries.items()})
        run = {query_id: _first(ranked, first_stage.top_k) for query_id, ranked in found.items()}
        cut = sum(len(found[i]) - len(ranked) for i, ranked in run.items() if i in qrels)
        _count(report.dropped, BEHIND, cut)
    elif purpose != "mine" and (chosen := _choose_run(folder, split)):
        run = read_trec_run(chosen, shown=name(chosen), bad_rows=bad_rows)
    scored = run is not None
    if run is None and purpose != "mine" and (top_ranked := _parts(folder, "top_ranked")):
        run = {}
        for path in _choose_split(top_ranked, folder, shown, split, purpose):
            for row in read_rows(path, shown=name(path), bad_rows=bad_rows):
                try:
                    ids, query_id = row.texts("corpus-ids"), _beir_id(row, "query-id")
                except DataError as error:
                    bad_rows.refuse(error, row.place, _raw(row))
                    continue
                run.setdefault(query_id, {}).update(dict.fromkeys(ids, 0.0))
    if run is not None:
        _count(report.dropped, NOT_JUDGED, sum(query_id not in qrels for query_id in run))
    candidates: dict[str, Mapping[str, float]] = {}
    for query_id, judged in qrels.items():
        if run is None:
            candidates[query_id] = judged
            _count(report.noted, JUDGED_ALONE, purpose == "eval")
        elif query_id in run:
            candidates[query_id] = run[query_id]
            missed = sum(score > 0 and d not in run[query_id] for d, score in judged.items())
            # never added: what the first stage missed, no reranker can find
            _count(report.noted, POSITIVE_NOT_IN_RUN, missed)
        else:
            _count(report.dropped, NOT_IN_RUN, 1)
    wanted = {document_id for ranked in candidates.values() for document_id in ranked}
    texts = dict(_beir_texts(folder, "corpus", wanted, name, bad_rows, progress))
    for query_id, ranked in candidates.items():
        if query_id not in queries:
            _count(report.dropped, NOT_IN_QUERIES, 1)
            continue
        query, place = queries[query_id]
        if not query.strip():
            empty = DataError(f"{place}: 'text' is empty; every query needs its text")
            bad_rows.refuse(empty, place, query)
            continue
        known = [document_id for document_id in ranked if document_id in texts]
        _count(report.dropped, NOT_IN_CORPUS, len(ranked) - len(known))
        judged = qrels[query_id]
        candidate_ids = set(known)
        example = Example(
            query=query,
            documents=[texts[document_id][0] for document_id in known],
            labels=[judged.get(document_id, 0.0) for document_id in known],
            first_stage_scores=[ranked[d] for d in known] if scored else None,
            query_id=query_id,
            document_ids=known,
            source=place,
            missed={
                document_id: score
                for document_id, score in judged.items()
                if score > 0 and run is not None and document_id not in candidate_ids
            }
            or None,
        )
        if _clean(example, report):
            yield example


def _beir_texts(
    folder: Path,
    part: str,
    wanted: set[str],
    name: Callable[[Path], str],
    bad_rows: BadRows,
    progress: Progress | None,
) -> Iterator[tuple[str, tuple[str, str]]]:
    """The wanted texts of the corpus or of the queries: (id, (text, place))."""
    for path in _parts(folder, part):
        count = 0
        rows = read_rows(path, shown=name(path), bad_rows=bad_rows)
        for count, row in enumerate(rows, 1):
            if progress and count % 1000 == 0:
                progress(name(path), count)
            try:
                identifier = _beir_id(row, "_id", "id")
                if identifier not in wanted:
                    continue
                text = _checked_text(row, "'text'", row.values.get("text", ""))
                text = _titled(row, "'title'", row.values.get("title"), text)
            except DataError as error:
                bad_rows.refuse(error, row.place, _raw(row))
                continue
            yield identifier, (text, row.place)
        if progress:
            progress(name(path), count)


# ----------------------------------------------------------------------- names of datasets, splits

_SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val", "eval"),
    "test": ("test",),
}

# Public test sets that papers and leaderboards report: (pattern of owner/name, what it is).
BENCHMARKS: tuple[tuple[str, str], ...] = (
    (r"(c-)?mteb/.*(rerank|scidocsrr|dupquestions|mind_?small).*", "an MTEB reranking task"),
    (
        r"mteb/(arguana|climate-fever|dbpedia|fever|fiqa|hotpotqa|msmarco|nfcorpus|nq|quora|scidocs"
        r"|scifact|touche2020|trec-covid)",
        "an MTEB retrieval task",
    ),
    (r"beir/.*", "a BEIR collection"),
    (
        r".*/nano(beir.*|arguana|climatefever|dbpedia|fever|fiqa2018|hotpotqa|msmarco|nfcorpus|nq"
        r"|quoraretrieval|scidocs|scifact|touche2020)",
        "a NanoBEIR collection",
    ),
)


def _has_word(text: str, word: str) -> bool:
    pattern = rf"(?<![a-z0-9]){re.escape(word.lower())}(?![a-z0-9])"
    return re.search(pattern, text.lower()) is not None


def _in_split(path: Path, folder: Path, split: str) -> bool:
    relative = path.relative_to(folder).as_posix()
    same = next((words for words in _SPLITS.values() if split.lower() in words), (split,))
    return any(_has_word(relative, word) for word in same)


def _split_of(path: Path, folder: Path) -> str | None:
    return next((split for split in _SPLITS if _in_split(path, folder, split)), None)


def _row_files(folder: Path, *, deep: bool = True) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.name.lower().endswith(ENDINGS)
        and path.name not in _NOT_ROWS
        and not path.name.endswith((".report.json", REFUSED))
        and not any(
            part.startswith(".") or part.endswith(".part")
            for part in path.relative_to(folder).parts
        )
        and path.is_file()
    )


def _choose_split(
    files: list[Path], folder: Path, shown: str, split: str | None, purpose: Purpose
) -> list[Path]:
    """The files of a split; without one, the usual split of the purpose, else all files."""
    by_split = {path: _split_of(path, folder) for path in files}
    if split:
        chosen = [path for path in files if _in_split(path, folder, split)]
        if not chosen and any(by_split.values()):
            names = [path.relative_to(folder).as_posix() for path in files]
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise DataError(
                f"{shown}: has no file of the split {split!r} (it holds {listed}); give a split "
                "that is in a file's name"
            )
        return chosen or files
    for usual in ("train",) if purpose != "eval" else ("dev", "test"):
        chosen = [path for path in files if by_split[path] == usual]
        if chosen and len(chosen) < len(files):
            left_out = len(files) - len(chosen)
            logger.info(
                "%s: reading the %d %s file(s), leaving out %d other(s); --split chooses",
                shown,
                len(chosen),
                usual,
                left_out,
            )
        if chosen:
            return chosen
    return files


@dataclass(frozen=True, slots=True)
class _Spec:
    """One entry of ``--dataset``: a name, and how many examples of it."""

    name: str
    take: int | None


def _specs(dataset: str | Path | Sequence[str | Path]) -> list[_Spec]:
    entries = [dataset] if isinstance(dataset, str | Path) else list(dataset)
    names: list[str] = []
    for entry in entries:
        if isinstance(entry, Path) or (entry and expanded(entry).exists()):
            names.append(str(entry))
        else:
            names += entry.split()
    if not names:
        raise ConfigError("no dataset is named; give a file, a folder or a hub id (owner/name)")
    return [_spec(name) for name in names]


def _spec(name: str) -> _Spec:
    if "#" not in name or expanded(name).exists():
        return _Spec(name, None)
    base, _, number = name.rpartition("#")
    if not (number.isascii() and number.isdigit() and int(number) > 0 and base):
        raise ConfigError(
            f"dataset {name!r}: {number!r} after # is not a number of rows; give a whole number "
            "above 0, such as train.jsonl#5000"
        )
    return _Spec(base, int(number))


_HUB_NAME = re.compile(r"([A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?::([\w.-]+))?", re.ASCII)


def _locate(name: str, use_hf: bool, revision: str | None) -> tuple[Path, str | None]:
    """The file or folder of a dataset's name, and the subset asked of a hub dataset."""
    from rankwright.hub import resolve_dataset

    match = None if expanded(name).exists() else _HUB_NAME.fullmatch(name)
    repo, subset = match.groups() if match else (name, None)
    return resolve_dataset(repo, use_hf=use_hf, revision=revision), subset


def _files(
    path: Path, name: str, subset: str | None, split: str | None, purpose: Purpose
) -> list[Path]:
    # a hub's repository often holds a second copy of its rows, converted, in a folder below
    files = (not subset and _row_files(path, deep=False)) or _row_files(path)
    if not files:
        raise DataError(
            f"{name}: the folder holds no file of rows ({_ENDINGS_IN_WORDS}); give another"
        )
    if subset:
        chosen = [file for file in files if _has_word(file.relative_to(path).as_posix(), subset)]
        if not chosen:
            names = sorted({file.relative_to(path).parts[0] for file in files})
            raise DataError(
                f"{name}: nothing in it is named {subset!r} (it holds {', '.join(names[:10])}); "
                "give a subset that is in a file's or folder's name"
            )
        files = chosen
    return _choose_split(files, path, name, split, purpose)


def _warn_of_benchmark(name: str, files: list[Path], root: Path, report: LoadReport) -> None:
    repo = "/".join(Path(name.partition(":")[0]).parts[-2:]).lower()
    what = next((what for pattern, what in BENCHMARKS if re.fullmatch(pattern, repo)), None)
    if what is None:
        return
    untouched = [path for path in files if _split_of(path, root) not in ("train", "dev")]
    if untouched:
        warning = (
            f"{name}: {untouched[0].name} is the test split of {what}; results on it mean nothing "
            "after training on it: train on other rows, or do not report it"
        )
        _warn(report, warning)


def taken(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """ms-swift's sampling: whole passes, then a sample of the rest without replacement."""
    passes, rest = divmod(count, rows)
    # in the order of the rows: the trainer shuffles anyway, and a subset stays readable
    sample = np.sort(np.random.default_rng(seed).permutation(rows)[:rest])
    return np.concatenate((np.tile(np.arange(rows), passes), sample))


def id_key(query_id: str) -> int:
    """64 bits that stand for an id, so that ten million of them are compared in 80 MB."""
    return int.from_bytes(hashlib.blake2b(query_id.encode(), digest_size=8).digest(), "little")


def id_keys(ids: Sequence[str]) -> NDArray[np.uint64]:
    """``id_key`` of each."""
    return np.fromiter(map(id_key, ids), np.uint64, len(ids))


def repeated_ids(
    keys: NDArray[np.uint64],
    id_of: Callable[[int], str],
    ordered: NDArray[np.uint64] | None = None,
) -> dict[int, str]:
    """Number the ids that stood before.

    Args:
        keys: ``id_key`` of each.
        id_of: the id at a place; asked for repeated ones only.
        ordered: where to put the keys in order; anew in memory by default.

    Returns:
        New ids by their place; the others are unique as they are.
    """
    if ordered is None:
        ordered = np.empty_like(keys)
    ordered[:] = keys
    ordered.sort()
    starts = range(0, len(keys), BLOCK)
    repeated = [ordered[:0]]
    for start in starts:
        block = ordered[start : start + BLOCK + 1]
        repeated.append(block[1:][block[1:] == block[:-1]])
    sought = np.unique(np.concatenate(repeated))
    if not len(sought):
        return {}
    places = (np.flatnonzero(_among(keys[i : i + BLOCK], sought)) + i for i in starts)
    seen: dict[str, int] = {}
    given: set[str] = set()
    found: dict[int, str] = {}
    for place in itertools.chain.from_iterable(part.tolist() for part in places):
        query_id = id_of(place)
        times = seen.get(query_id, 0) + 1
        seen[query_id] = times
        if times == 1:
            continue
        while (new := f"{query_id}~{times}") in given or _holds(ordered, new):
            times += 1
        seen[query_id] = times
        given.add(new)
        found[place] = new
    return found


def _holds(ordered: NDArray[np.uint64], query_id: str) -> bool:
    return bool(_among(id_keys([query_id]), ordered)[0])


def _among(keys: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which keys are among those in order, of which there is one at least."""
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.equal(ordered[places], keys)


def unique_ids(ids: list[str]) -> tuple[list[str], int]:
    """Make ids unique by numbering those that stood before; also returns how many these are."""
    new = repeated_ids(id_keys(ids), ids.__getitem__)
    return [new.get(place, query_id) for place, query_id in enumerate(ids)], len(new)


def dataset_instructions(
    dataset: str | Path | Sequence[str | Path], instructions: str | Sequence[str] | None
) -> list[tuple[str, str | None]]:
    """Put each dataset's name beside the instruction of its rows.

    Args:
        dataset: see ``load_examples``.
        instructions: see there.

    Returns:
        (name, instruction) of each dataset; None where it has none.

    Raises:
        ConfigError: there are more or fewer instructions than datasets.
    """
    names = [spec.name for spec in _specs(dataset)]
    texts = [instructions] if isinstance(instructions, str) else list(instructions or ())
    if texts and len(texts) != len(names):
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ConfigError(
            f"{len(texts)} instruction{'s' if len(texts) > 1 else ''} for {len(names)} datasets "
            f"({listed}); give one text for each, in their order, and '' where it has none"
        )
    texts = texts or [""] * len(names)
    return [(name, text if text.strip() else None) for name, text in zip(names, texts, strict=True)]


def load_examples(
    dataset: str | Path | Sequence[str | Path],
    *,
    instructions: str | Sequence[str] | None = None,
    data_format: str | None = None,
    split: str | None = None,
    seed: int = 42,
    use_hf: bool = True,
    revision: str | None = None,
    purpose: Purpose = "train",
    bad_rows: BadRows | None = None,
    progress: Progress | None = None,
    first_stage: FirstStage | None = None,
) -> LoadedData:
    """Read datasets into examples.

    Args:
        dataset: files, folders, BEIR folders or hub ids (``owner/name``, ``owner/name:subset``),
            as a list or separated by white space. ``train.jsonl#5000`` takes 5000 examples of it: a
            sample without replacement, or, where it has fewer, whole passes and a sample.
        instructions: the task description of the rows of each dataset, one text for each in their
            order, an empty one for none. A row's own wins over it.
        data_format: a name in ``READERS``; None detects the layout of each file by its columns.
        split: which files of a folder or hub dataset: those with this word in their path. None
            takes the ``train`` files for training and the ``dev`` (else ``test``) files for
            evaluation, so that no model is chosen on test rows unasked, and all files where there
            are none. A file given by name is always read.
        seed: of the sampling number.
        use_hf: the hub of an id: Hugging Face, or ModelScope.
        revision: of hub datasets.
        purpose: what the rows are for; ``train`` and ``mine`` warn of a known benchmark's test
            split, and ``mine`` reads all that is judged in a BEIR folder, whatever run it holds.
        bad_rows: what is done about rows that cannot be read; None stops at the first.
        progress: called with a file's name and the rows read so far, now and then.
        first_stage: where the candidates of BEIR folders come from, in place of their own runs.

    Returns:
        The examples, with query ids that are unique among them, what was left out, and the sources.

    Raises:
        ConfigError: an unknown layout, a bad sampling number, a hub dataset that cannot be had, a
            first stage for what is no BEIR folder.
        DataError: a file or row that cannot be read, more of them than ``bad_rows`` allows, or
            nothing left of a dataset.
    """
    data = LoadedData([])
    examples: list[Example] = []
    for take, found in iter_datasets(
        dataset,
        data.report,
        data.sources,
        instructions=instructions,
        data_format=data_format,
        split=split,
        use_hf=use_hf,
        revision=revision,
        purpose=purpose,
        bad_rows=bad_rows,
        progress=progress,
        first_stage=first_stage,
    ):
        rows = list(found)
        ids, repeated = unique_ids([example.query_id for example in rows])
        count_repeated_ids(data.report, repeated)
        for example, query_id in zip(rows, ids, strict=True):
            example.query_id = query_id
        # a copy, because a repeated row becomes a query of its own, with negatives of its own
        indices = () if take is None else taken(len(rows), take, seed).tolist()
        examples += rows if take is None else [replace(rows[i]) for i in indices]
    ids, _ = unique_ids([example.query_id for example in examples])
    for example, query_id in zip(examples, ids, strict=True):
        example.query_id = query_id
    data.examples = examples
    return data


def count_repeated_ids(report: LoadReport, number: int) -> None:
    """Note how many rows of a dataset have an id that stood before."""
    _count(report.noted, REPEATED_ID, number)


def iter_datasets(
    dataset: str | Path | Sequence[str | Path],
    report: LoadReport,
    sources: list[Source],
    *,
    instructions: str | Sequence[str] | None = None,
    data_format: str | None = None,
    split: str | None = None,
    use_hf: bool = True,
    revision: str | None = None,
    purpose: Purpose = "train",
    bad_rows: BadRows | None = None,
    progress: Progress | None = None,
    first_stage: FirstStage | None = None,
) -> Iterator[tuple[int | None, Iterator[Example]]]:
    """Read datasets as streams; see ``load_examples``.

    Args:
        dataset: see there, as the others.
        report: filled while the examples are read.
        sources: filled while the examples are read.
        instructions: see there.
        data_format: see there.
        split: see there.
        use_hf: see there.
        revision: see there.
        purpose: see there.
        bad_rows: see there.
        progress: see there.
        first_stage: see there.

    Yields:
        For each dataset the number that is to be taken of it, if any, and all its examples, with
        ids that may repeat.
    """
    named = None if data_format is None else _reader(data_format)
    texts = dataset_instructions(dataset, instructions)
    refusing = bad_rows or BadRows()
    for spec, (_, text) in zip(_specs(dataset), texts, strict=True):
        path, subset = _locate(spec.name, use_hf, revision)

        def examples(
            spec: _Spec, path: Path, subset: str | None, text: str | None
        ) -> Iterator[Example]:
            before = report.rows
            dropped, bad = report.dropped.copy(), len(refusing.refused)
            count = 0
            for shown, layout, found in _read_source(
                path,
                spec.name,
                subset,
                named,
                split,
                purpose,
                report,
                refusing,
                progress,
                first_stage,
            ):
                start = count
                for example in found:
                    count += 1
                    example.instruction = example.instruction or text
                    yield example
                sources.append(Source(shown, layout, count - start))
            _count(report.dropped, BAD_ROW, len(refusing.refused) - bad)
            if not count:
                reasons = report.dropped - dropped
                listed = ", ".join(f"{number} x {reason}" for reason, number in reasons.items())
                raise DataError(
                    f"{spec.name}: no row is left of {report.rows - before} read"
                    f"{f' ({listed})' if listed else ''}; give a dataset with rows"
                )

        yield spec.take, examples(spec, path, subset, text)


def named_paths(dataset: str | Path | Sequence[str | Path]) -> list[Path]:
    """What the names of ``load_examples`` are on this machine, whether it is there or not."""
    return [expanded(spec.name) for spec in _specs(dataset)]


def source_files(
    dataset: str | Path | Sequence[str | Path], *, use_hf: bool = True, revision: str | None = None
) -> tuple[list[Path], bool]:
    """The files that ``load_examples`` may read.

    Args:
        dataset: see there.
        use_hf: see there.
        revision: see there.

    Returns:
        Them, and whether they are all that it reads: a name may also be that of a pipe.
    """
    files: list[Path] = []
    complete = True
    for spec in _specs(dataset):
        path, _ = _locate(spec.name, use_hf, revision)
        if path.is_dir():
            files += _row_files(path)
            files += (p for p in sorted(path.rglob("*")) if _is_run(p) and p.is_file())
        elif path.is_file():
            files.append(path)
        else:
            complete = False
    return files, complete


def _read_source(
    path: Path,
    name: str,
    subset: str | None,
    named: Reader | None,
    split: str | None,
    purpose: Purpose,
    report: LoadReport,
    bad_rows: BadRows,
    progress: Progress | None,
    first_stage: FirstStage | None,
) -> Iterator[tuple[str, str, Iterator[Example]]]:
    """The files of one dataset: (name, layout, examples)."""
    folder = path / subset if subset and (path / subset).is_dir() else path
    if folder.is_dir() and (_is_beir(folder) if named is None else named.name == "beir"):
        if not _is_beir(folder):
            raise DataError(
                f"{name}: the layout 'beir' needs a corpus and queries in the folder "
                "(corpus.jsonl, queries.jsonl)"
            )
        if purpose != "eval":
            qrels = _parts(folder, "qrels")
            chosen = _choose_split(qrels, folder, name, split, purpose) if qrels else []
            _warn_of_benchmark(name, chosen, folder, report)
        found = _beir_examples(
            folder, name, split, purpose, report, bad_rows, progress, first_stage
        )
        yield name, "beir", found
        return
    if first_stage is not None:
        raise ConfigError(
            f"--first_stage goes with BEIR folders (corpus.jsonl, queries.jsonl, qrels) and with "
            f"--mteb_tasks; the rows of {name} have their candidates"
        )
    if not path.is_dir():
        if named is not None and named.name == "beir":
            raise DataError(
                f"{name}: the layout 'beir' is a folder, and this is a file; give the folder"
            )
        if purpose != "eval":
            _warn_of_benchmark(str(path.parent), [path], path.parent, report)
        yield name, *_file_examples(path, name, None, named, report, bad_rows, progress)
        return
    files = _files(path, name, subset, split, purpose)
    if purpose != "eval":
        _warn_of_benchmark(name, files, path, report)
    for file in files:
        relative = file.relative_to(path)
        shown = f"{name.rstrip('/')}/{relative.as_posix()}"
        stem = (relative.parent / _split_name(file)[0]).as_posix()
        yield shown, *_file_examples(file, shown, stem, named, report, bad_rows, progress)


def iter_queries(source: str, bad_rows: BadRows | None = None) -> Iterator[Example]:
    """Stream queries to rank: rows of ``query`` and ``documents``, labels neither needed nor read.

    Args:
        source: a file that ``read_rows`` reads, or ``-`` for JSON lines on standard input.
        bad_rows: what is done about rows that cannot be read; None stops at the first.

    Yields:
        One example for each row, its labels all 0.

    Raises:
        DataError: a row that cannot be read, with its line, or no row at all.
    """
    bad_rows = bad_rows or BadRows()
    if source == "-":
        rows = _jsonl_rows(Path("/dev/stdin"), "standard input", "stdin", bad_rows)
    else:
        rows = read_rows(Path(source), bad_rows=bad_rows)
    found = False
    for row in rows:
        try:
            documents = row.texts("documents")
            if not documents:
                raise row.error("'documents' is missing or empty; give a list of texts to rank")
            example = Example(
                row.text("query"),
                documents,
                [0.0] * len(documents),
                instruction=row.optional_text("instruction"),
                query_id=row.identifier("query_id", "id"),
                source=row.place,
            )
        except DataError as error:
            bad_rows.refuse(error, row.place, _raw(row))
            continue
        found = True
        yield example
    if not found:
        bad_rows.check_rest(source, 0)
        raise DataError(f"{source}: no row was found; give rows of query and documents")


def corpus_of(dataset: Sequence[str], *, use_hf: bool = True) -> str | None:
    """The name of the dataset if it is one BEIR folder, which brings its corpus along, else None.

    Args:
        dataset: as ``load_examples`` takes it.
        use_hf: the hub of an id.
    """
    specs = _specs(dataset)
    path, subset = _locate(specs[0].name, use_hf, None)
    if subset and (path / subset).is_dir():
        path /= subset
    return specs[0].name if len(specs) == 1 and path.is_dir() and _is_beir(path) else None


def iter_documents(
    source: str | Path,
    *,
    use_hf: bool = True,
    revision: str | None = None,
    bad_rows: BadRows | None = None,
) -> Iterator[tuple[str, str, str]]:
    """Stream the documents of a corpus: rows of ``text`` with an ``_id`` or ``id`` and a ``title``.

    Args:
        source: a file that ``read_rows`` reads, a folder of such files, a BEIR folder or a hub id.
        use_hf: the hub of an id: Hugging Face, or ModelScope.
        revision: of a hub dataset.
        bad_rows: what is done about rows that cannot be read; None stops at the first.

    Yields:
        Id, text and place of each document. The text is title, space, text, as BEIR has it, and may
        be empty; a row without an id has the file's name and its line for one.

    Raises:
        ConfigError: a hub dataset cannot be had.
        DataError: a file or row cannot be read, with its line, or there is no file.
    """
    name, bad_rows = str(source), bad_rows or BadRows()
    path, subset = _locate(name, use_hf, revision)
    if path.is_dir():
        folder = path / subset if subset else path
        files = _parts(folder, "corpus") or _row_files(folder)
        if not files:
            raise DataError(
                f"{name}: the folder holds no file of documents ({_ENDINGS_IN_WORDS}); give another"
            )
        shown = {file: f"{name}/{file.relative_to(path).as_posix()}" for file in files}
    else:
        shown = {path: name}
    for file, file_name in shown.items():
        for row in read_rows(file, shown=file_name, bad_rows=bad_rows):
            try:
                if "text" not in row.columns:
                    row.text("text")
                text = _checked_text(row, "'text'", row.values.get("text", ""))
                document = (
                    row.identifier("_id", "id") or row.default_id,
                    _titled(row, "'title'", row.values.get("title"), text),
                    row.place,
                )
            except DataError as error:
                bad_rows.refuse(error, row.place, _raw(row))
                continue
            yield document
