"""Rows on disk: read once by the readers, then mapped into memory from an Arrow file.

A start with a store that is there already reads no row, and a run's memory does not grow with the
rows: ``ExampleStore`` makes an ``Example`` when it is asked for one.

Legend: ``N`` rows, ``D`` documents of one row.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from rankwright.data import outline as outlines
from rankwright.data import readers
from rankwright.data.cache import (
    META,
    arrow_file,
    cached,
    digest,
)
from rankwright.data.outline import (
    BLOCK,
    Outline,
    Ragged,
    Rows,
    as_numbers,
    distinct,
    fold,
    highest,
    lowest,
)
from rankwright.data.readers import (
    BadRows,
    FirstStage,
    LoadedData,
    LoadReport,
    Progress,
    Purpose,
    Refused,
    Source,
    count_repeated_ids,
    dataset_instructions,
    file_stamp,
    id_key,
    id_keys,
    iter_datasets,
    load_examples,
    repeated_ids,
    source_files,
    taken,
)
from rankwright.files import DamagedError, read_marker, write_marker
from rankwright.types import Example

Number = TypeVar("Number", np.int64, np.uint64)

logger = logging.getLogger(__name__)

ROWS = "rows.arrow"
ENTRIES = "entries.arrow"
_TEXTS = tuple(field.name for field in dataclasses.fields(Example) if field.name != "query_id")
_COUNTS = ("dropped", "noted", "ignored")


def _schemas() -> tuple[Any, Any]:
    """The rows as they were read, with what planning needs of them; and which are used how."""
    import pyarrow as pa

    numbers = pa.list_(pa.float64())
    rows = pa.schema(
        {
            "query": pa.string(),
            "documents": pa.list_(pa.string()),
            "labels": numbers,
            "first_stage_scores": numbers,
            "teacher_scores": numbers,
            "instruction": pa.string(),
            "document_ids": pa.list_(pa.string()),
            "source": pa.string(),
            "missed": pa.string(),
            "id": pa.string(),
            "positives": pa.list_(pa.int32()),
            "negatives": pa.list_(pa.int32()),
            "highest": pa.float64(),
            "lowest": pa.float64(),
            "fold": pa.binary(),
        }
    )
    return rows, pa.schema({"row": pa.int64(), "query_id": pa.string()})


class ExampleStore(Rows):
    """Examples in a folder that ``load_store`` made.

    A view of some of them, by a slice or ``select``, copies nothing. Pickled, it is a path and the
    indices.

    Args:
        folder: the folder.
        indices: which of its examples; None for all.

    Raises:
        DamagedError: the folder is not whole.
    """

    def __init__(self, folder: Path, indices: NDArray[np.integer[Any]] | None = None) -> None:
        from datasets import Dataset

        self.folder = folder
        self.meta = read_marker(folder, META)
        try:
            self._table = Dataset.from_file(str(folder / ROWS))
            self._texts = self._table.select_columns(list(_TEXTS))
            entries = Dataset.from_file(str(folder / ENTRIES)).data
            self._all_rows = entries.column("row")
            self._query_ids = entries.column("query_id")
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"{folder}: {error}") from error
        # which entries these are; None for all, which costs no memory
        self._indices = indices

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleStore, (self.folder, self._indices)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of the file behind each example; a row may stand behind several."""
        rows = self._all_rows if self._indices is None else _taken(self._all_rows, self._indices)
        found: NDArray[np.int64] = rows.to_numpy()
        return found

    def __len__(self) -> int:
        return len(self._all_rows) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> ExampleStore: ...

    def __getitem__(self, index: int | slice) -> Example | ExampleStore:
        if isinstance(index, slice):
            return self.select(np.arange(*index.indices(len(self))))
        entry = range(len(self))[index] if self._indices is None else int(self._indices[index])
        values = self._texts[self._all_rows[entry].as_py()]
        if values["missed"] is not None:
            values["missed"] = json.loads(values["missed"])
        return Example(query_id=self._query_ids[entry].as_py(), **values)

    def select(self, indices: NDArray[np.int64]) -> ExampleStore:
        """These examples, in this order, without a copy."""
        # not by copy.copy, which would open the files anew: they may be gone, and are open here
        view = object.__new__(ExampleStore)
        view.__dict__.update(self.__dict__)
        chosen = indices if self._indices is None else self._indices[indices]
        # what is kept for each row of a part
        view._indices = chosen.astype(np.min_scalar_type(len(self._all_rows)))
        return view

    def outline(self) -> Outline:
        """The examples without their texts."""
        return Outline(
            _Strings(self._query_ids, self._indices),
            self._lists("positives"),
            self._lists("negatives"),
            self._column("highest").to_numpy(),
            self._column("lowest").to_numpy(),
            self._column("teacher_scores").is_valid().to_numpy(),
        )

    def folds(self) -> NDArray[np.uint64]:
        """``fold`` of each query, as two numbers."""
        parts = [_bytes_of(chunk) for chunk in self._column("fold").chunks]
        return np.concatenate([as_numbers(b""), *map(as_numbers, parts)])

    def instructions(self) -> dict[str, tuple[int, int]]:
        """Each instruction of theirs: how many have it, and the first of them."""
        import pyarrow.compute as pc

        column = self._column("instruction")
        found = column.value_counts().to_pylist()
        counts = {entry["values"]: entry["counts"] for entry in found}
        counts.pop(None, None)
        return {text: (n, pc.index(column, text).as_py()) for text, n in counts.items()}

    def _column(self, name: str) -> Any:
        return _taken(self._table.data.column(name), self.rows)

    def _lists(self, name: str) -> Ragged:
        return ragged(self._column(name))


class _Strings(Sequence[str]):
    """An Arrow column of texts, or some of them."""

    def __init__(self, column: Any, indices: NDArray[np.integer[Any]] | None) -> None:
        self.column = column
        self.indices = indices

    def __len__(self) -> int:
        return len(self.column) if self.indices is None else len(self.indices)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> _Strings: ...

    def __getitem__(self, index: int | slice) -> str | _Strings:
        if isinstance(index, slice):
            every = np.arange(len(self.column)) if self.indices is None else self.indices
            return _Strings(self.column, every[index])
        return _text_at(self.column, index if self.indices is None else int(self.indices[index]))


def _taken(column: Any, places: NDArray[np.integer[Any]]) -> Any:
    """Entries of an Arrow column, in this order, without looking at what lies around them."""
    if not len(places):
        return column.slice(0, 0)
    least, most = int(places.min()), int(places.max())
    part = column.slice(least, most - least + 1)
    as_it_is = len(part) == len(places) and bool((np.diff(places) == 1).all())
    return part if as_it_is else part.take(places - least)


def _bytes_of(array: Any) -> memoryview:
    """The bytes of an Arrow array of binaries, without a copy."""
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset :][: len(array) + 1]
    return memoryview(array.buffers()[2])[int(offsets[0]) : int(offsets[-1])]


def ragged(column: Any) -> Ragged:
    """An Arrow column of lists of int32 as arrays."""
    # batch by batch, so that nothing is held twice
    size = sum(len(chunk.flatten()) for chunk in column.chunks)
    values, offsets = np.empty(size, np.int32), np.zeros(len(column) + 1, np.int64)
    row = place = 0
    for chunk in column.chunks:
        numbers = chunk.flatten().to_numpy()
        values[place : place + len(numbers)] = numbers
        ends = chunk.offsets.to_numpy()[1:]
        offsets[row + 1 : row + 1 + len(chunk)] = ends - chunk.offsets[0].as_py() + place
        row, place = row + len(chunk), place + len(numbers)
    return Ragged(values, offsets)


def _text_at(column: Any, index: int) -> str:
    text: str = column[index].as_py()
    return text


def load_store(
    dataset: str | Path | Sequence[str | Path],
    cache: Path | None,
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
    rebuild: bool = False,
) -> LoadedData:
    """``load_examples`` with the rows on disk.

    Args:
        dataset: see there, as the others that are not named here.
        cache: folder of what is kept between runs; None for none.
        instructions: see there.
        data_format: see there.
        split: see there.
        seed: see there.
        use_hf: see there.
        revision: see there.
        purpose: see there.
        bad_rows: see there.
        progress: see there.
        first_stage: see there.
        rebuild: read the rows anew.

    Returns:
        The examples, an ``ExampleStore``, with the report of the time when they were read, whose
        warnings are logged again. Where the folder cannot be written, a warning is logged and the
        examples are in memory.

    Raises:
        ConfigError: see there.
        DataError: see there.
    """
    options: dict[str, Any] = {
        "instructions": [text or "" for _, text in dataset_instructions(dataset, instructions)],
        "data_format": data_format,
        "split": split,
        "use_hf": use_hf,
        "revision": revision,
        "purpose": purpose,
    }

    bad_rows = bad_rows or BadRows()
    before = len(bad_rows.refused)

    def in_memory() -> LoadedData:
        bad_rows.go_back(before)
        return load_examples(
            dataset,
            seed=seed,
            bad_rows=bad_rows,
            progress=progress,
            first_stage=first_stage,
            **options,
        )

    files, complete = source_files(dataset, use_hf=use_hf, revision=revision)
    bad_rows.files += files
    if cache is None or not complete:
        return in_memory()
    names = [str(name) for name in ([dataset] if isinstance(dataset, str | Path) else dataset)]
    key = {
        "code": [inspect.getsource(module) for module in (readers, outlines)],
        "schemas": [str(schema) for schema in _schemas()],
        "dataset": names,
        "files": [file_stamp(path) for path in files],
        "options": options,
        "first_stage": first_stage and [first_stage.key, first_stage.top_k],
        # what was skipped is written down again, and counts again
        "skipped": bad_rows.on_bad_row == "skip" and bad_rows.max_bad_rows - bad_rows.lines,
        # it only chooses samples
        "seed": seed if any("#" in name for name in names) else None,
    }
    made = False

    def make(folder: Path) -> None:
        nonlocal made
        made = True
        report, sources = LoadReport(), list[Source]()
        bad_rows.go_back(before)
        found = iter_datasets(
            dataset,
            report,
            sources,
            bad_rows=bad_rows,
            progress=progress,
            first_stage=first_stage,
            **options,
        )
        _write(folder, found, report, seed)
        values = {
            **{name: dict(getattr(report, name)) for name in _COUNTS},
            "rows": report.rows,
            "warnings": report.warnings,
            "sources": [dataclasses.astuple(source) for source in sources],
            "refused": [dataclasses.astuple(row) for row in bad_rows.refused[before:]],
        }
        write_marker(folder, META, values)

    try:
        store = cached(cache / "rows" / digest(key), make, ExampleStore, rebuild=rebuild)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        logger.warning(
            "rows cannot be kept in %s (%s), so they are read into memory; name another folder "
            "with --cache_dir",
            cache,
            reason,
        )
        return in_memory()
    meta = store.meta
    bad_rows.go_back(before, (Refused(*row) for row in meta["refused"]))
    report = LoadReport(
        rows=meta["rows"],
        warnings=meta["warnings"],
        **{name: Counter(meta[name]) for name in _COUNTS},
    )
    for message in () if made else report.warnings:
        readers.logger.warning(message)
    return LoadedData(store, report, [Source(*source) for source in meta["sources"]])


def release_unused() -> None:
    """Give back what Arrow keeps for later: planning takes some numbers a row for a moment."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def _write(folder: Path, datasets: Any, report: LoadReport, seed: int) -> None:
    from datasets import Dataset

    schema, entry_schema = _schemas()
    parts: list[tuple[int, int, int | None]] = []
    with arrow_file(folder / ROWS, schema) as writer:
        for take, examples in datasets:
            start = writer.rows
            for example in examples:
                positives, negatives = distinct(example)
                row = {name: getattr(example, name) for name in _TEXTS}
                row |= {
                    "missed": None if example.missed is None else json.dumps(example.missed),
                    "id": example.query_id,
                    "positives": positives,
                    "negatives": negatives,
                    "highest": highest(example),
                    "lowest": lowest(example, positives, negatives),
                    "fold": fold(example.query),
                }
                writer.write(row, len(example.query) + sum(map(len, example.documents)))
            parts.append((start, writer.rows, take))
    # ids are made unique once all of them are known, first within each dataset and then among all;
    # 8 bytes stand for each until then
    column = Dataset.from_file(str(folder / ROWS)).data.column("id")
    key_N = _on_disk(folder, (id_keys(chunk.to_pylist()) for chunk in column.chunks), np.uint64)
    ordered_N = _on_disk(folder, [key_N], np.uint64)
    new: dict[int, str] = {}
    for start, end, _ in parts:
        part = column.slice(start, end - start)
        found = repeated_ids(key_N[start:end], partial(_text_at, part), ordered_N[start:end])
        count_repeated_ids(report, len(found))
        new |= {start + i: query_id for i, query_id in found.items()}
    for i, query_id in new.items():
        key_N[i] = id_key(query_id)
    row_N = _on_disk(folder, _chosen_rows(parts, seed), np.int64)

    def id_of(place: int) -> str:
        row = int(row_N[place])
        return new[row] if row in new else _text_at(column, row)

    chosen_N = _on_disk(
        folder, (key_N[row_N[i : i + BLOCK]] for i in range(0, len(row_N), BLOCK)), np.uint64
    )
    last = repeated_ids(chosen_N, id_of, _on_disk(folder, [chosen_N], np.uint64))
    with arrow_file(folder / ENTRIES, entry_schema) as writer:
        for place in range(len(row_N)):
            query_id = last[place] if place in last else id_of(place)
            writer.write({"row": int(row_N[place]), "query_id": query_id})


def _chosen_rows(
    parts: Sequence[tuple[int, int, int | None]], seed: int
) -> Iterator[NDArray[np.int64]]:
    """The rows of each dataset, or as many as it is to give."""
    for start, end, take in parts:
        if take is None:
            for low in range(start, end, BLOCK):
                yield np.arange(low, min(low + BLOCK, end))
        else:
            yield start + taken(end - start, take, seed)


def _on_disk(folder: Path, parts: Iterable[NDArray[Any]], kind: type[Number]) -> NDArray[Number]:
    """Numbers in a file without a name, which the system need not keep in memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        # written before it is mapped: in a file with holes a full disk would be a signal (SIGBUS),
        # not an error
        for part in parts:
            file.write(part.data)
        file.flush()
        return np.memmap(file, kind, "r+") if file.tell() else np.empty(0, kind)
