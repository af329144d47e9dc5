"""Rows on disk: read once by the readers, then mapped into memory from an Arrow file.

A start with a store that is there already reads no row, and a run's memory does not grow with the
rows: ``ExampleStore`` makes an ``Example`` when it is asked for one.

Legend: ``N`` rows, ``D`` documents of one row.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

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
from rankwright.data.outline import Outline, Ragged, Rows, distinct, fold, highest, lowest
from rankwright.data.readers import (
    LoadedData,
    LoadReport,
    Progress,
    Purpose,
    Source,
    count_repeated_ids,
    dataset_instructions,
    iter_datasets,
    load_examples,
    source_files,
    taken,
    unique_ids,
)
from rankwright.files import DamagedError, read_marker, write_marker
from rankwright.types import Example

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

    def __init__(self, folder: Path, indices: NDArray[np.int64] | None = None) -> None:
        from datasets import Dataset

        self.folder = folder
        self.meta = read_marker(folder, META)
        try:
            self._table = Dataset.from_file(str(folder / ROWS))
            self._texts = self._table.select_columns(list(_TEXTS))
            entries = Dataset.from_file(str(folder / ENTRIES)).data
            self._all_rows = entries.column("row").to_numpy()
            self._query_ids = entries.column("query_id")
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"{folder}: {error}") from error
        self._indices = np.arange(len(self._all_rows)) if indices is None else indices

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleStore, (self.folder, self._indices)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of the file behind each example; a row may stand behind several."""
        found: NDArray[np.int64] = self._all_rows[self._indices]
        return found

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> ExampleStore: ...

    def __getitem__(self, index: int | slice) -> Example | ExampleStore:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        entry = int(self._indices[index])
        values = self._texts[int(self._all_rows[entry])]
        if values["missed"] is not None:
            values["missed"] = json.loads(values["missed"])
        return Example(query_id=self._query_ids[entry].as_py(), **values)

    def select(self, indices: NDArray[np.int64]) -> ExampleStore:
        """These examples, in this order, without a copy."""
        view = copy.copy(self)
        view._indices = self._indices[indices]
        return view

    def outline(self) -> Outline:
        """The examples without their texts."""
        return Outline(
            _Strings(self._query_ids.take(self._indices)),
            self._lists("positives"),
            self._lists("negatives"),
            self._column("highest").to_numpy(),
            self._column("lowest").to_numpy(),
            self._column("teacher_scores").is_valid().to_numpy(),
        )

    def folds(self) -> list[bytes]:
        """``fold`` of each query."""
        found: list[bytes] = self._column("fold").to_pylist()
        return found

    def instructions(self) -> dict[str, tuple[int, int]]:
        """Each instruction of theirs: how many have it, and the first of them."""
        import pyarrow.compute as pc

        column = self._column("instruction")
        found = column.value_counts().to_pylist()
        counts = {entry["values"]: entry["counts"] for entry in found}
        counts.pop(None, None)
        return {text: (n, pc.index(column, text).as_py()) for text, n in counts.items()}

    def _column(self, name: str) -> Any:
        column = self._table.data.column(name)
        rows = self.rows
        whole = len(rows) == len(column) and bool((rows == np.arange(len(rows))).all())
        return column if whole else column.take(rows)

    def _lists(self, name: str) -> Ragged:
        return ragged(self._column(name))


class _Strings(Sequence[str]):
    """An Arrow column of texts."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> _Strings: ...

    def __getitem__(self, index: int | slice) -> str | _Strings:
        if isinstance(index, slice):
            return _Strings(self.column.take(np.arange(len(self))[index]))
        text: str = self.column[index].as_py()
        return text


def ragged(column: Any) -> Ragged:
    """An Arrow column of lists of int32 as arrays."""
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy()[offsets[0] : offsets[-1]] if len(offsets) else array.values
    return Ragged(np.asarray(values, np.int32), offsets - offsets[0])


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
    progress: Progress | None = None,
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
        progress: see there.
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

    def in_memory() -> LoadedData:
        return load_examples(dataset, seed=seed, progress=progress, **options)

    files = source_files(dataset, use_hf=use_hf, revision=revision)
    if cache is None or files is None:
        return in_memory()
    names = [str(name) for name in ([dataset] if isinstance(dataset, str | Path) else dataset)]
    key = {
        "code": [inspect.getsource(module) for module in (readers, outlines)],
        "schemas": [str(schema) for schema in _schemas()],
        "dataset": names,
        "files": [file_stamp(path) for path in files],
        "options": options,
        # it only chooses samples
        "seed": seed if any("#" in name for name in names) else None,
    }
    made = False

    def make(folder: Path) -> None:
        nonlocal made
        made = True
        report, sources = LoadReport(), list[Source]()
        found = iter_datasets(dataset, report, sources, progress=progress, **options)
        _write(folder, found, report, seed)
        values = {
            **{name: dict(getattr(report, name)) for name in _COUNTS},
            "rows": report.rows,
            "warnings": report.warnings,
            "sources": [dataclasses.astuple(source) for source in sources],
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
    report = LoadReport(
        rows=meta["rows"],
        warnings=meta["warnings"],
        **{name: Counter(meta[name]) for name in _COUNTS},
    )
    for message in () if made else report.warnings:
        readers.logger.warning(message)
    return LoadedData(store, report, [Source(*source) for source in meta["sources"]])


def file_stamp(path: Path) -> tuple[str, str, int, int]:
    """What a file is known by between runs: its names, its size, the time of its change."""
    # its name, too: links of a hub's snapshot may change theirs, and splits are told by it
    status = path.stat()
    return str(path), str(path.resolve()), status.st_size, status.st_mtime_ns


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
    # ids are made unique once all of them are known; they are the one thing held in memory
    column = Dataset.from_file(str(folder / ROWS)).data.column("id")
    rows: list[int] = []
    ids: list[str] = []
    for start, end, take in parts:
        found, repeated = unique_ids(column.slice(start, end - start).to_pylist())
        count_repeated_ids(report, repeated)
        indices = range(end - start) if take is None else taken(end - start, take, seed)
        rows += [start + i for i in indices]
        ids += [found[i] for i in indices]
    ids, _ = unique_ids(ids)
    with arrow_file(folder / ENTRIES, entry_schema) as writer:
        for row_number, query_id in zip(rows, ids, strict=True):
            writer.write({"row": row_number, "query_id": query_id})
