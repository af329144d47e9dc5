"""Folders that are made once and read many times, and the Arrow files in them.

A folder is named by a digest of everything it depends on, made under another name and renamed into
place, so that it is whole or absent, whoever else makes it at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from rankwright.files import DamagedError, locked, publish

T = TypeVar("T")

META = "meta.json"
# an Arrow batch is the least that is laid out at a time: rows of it, or bytes of text, whatever
# comes first; lists in it have 32-bit offsets, and a reader holds some kilobytes for each batch
BATCH_ROWS = 2**15
BATCH_BYTES = 16 * 2**20
# rows that wait as Python's objects, which take several times as much memory
WAITING_ROWS = 1024


def digest(value: Any) -> str:
    """A name for a value of JSON."""
    text = json.dumps(value, sort_keys=True)
    # file names hold bytes that are no UTF-8 as lone surrogates
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class ArrowWriter:
    """Writes rows to an Arrow stream in constant memory.

    Args:
        file: opened for writing.
        schema: a schema of pyarrow.

    Attributes:
        rows: how many were written.
    """

    def __init__(self, file: IO[bytes], schema: Any) -> None:
        import pyarrow as pa

        self.rows = 0
        self._pa = pa
        self._schema = schema
        self._stream = pa.ipc.new_stream(file, schema)
        self._waiting: list[dict[str, Any]] = []
        self._batches: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, row: dict[str, Any], size: int = 0) -> None:
        """Add a row of about ``size`` bytes."""
        self._waiting.append(row)
        if len(self._waiting) == WAITING_ROWS:
            self._lay_out()
        self._add(1, size)

    def write_batch(self, batch: Any) -> None:
        """Add rows that are an Arrow batch already."""
        self._batches.append(batch)
        self._add(batch.num_rows, batch.nbytes)

    def close(self) -> None:
        """Write what is left and the end."""
        self._flush()
        self._stream.close()

    def _add(self, rows: int, size: int) -> None:
        self.rows += rows
        self._rows += rows
        self._bytes += size
        if self._rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def _lay_out(self) -> None:
        self._batches.append(self._pa.RecordBatch.from_pylist(self._waiting, self._schema))
        self._waiting = []

    def _flush(self) -> None:
        if self._waiting:
            self._lay_out()
        if self._batches:
            table = self._pa.Table.from_batches(self._batches).combine_chunks()
            self._stream.write_table(table)
        self._batches = []
        self._rows = self._bytes = 0


@contextlib.contextmanager
def arrow_file(path: Path, schema: Any) -> Iterator[ArrowWriter]:
    """Write an Arrow file; what went wrong leaves it unfinished."""
    with path.open("wb") as file:
        writer = ArrowWriter(file, schema)
        yield writer
        writer.close()


def cached(
    folder: Path,
    make: Callable[[Path], None],
    read: Callable[[Path], T],
    *,
    rebuild: bool = False,
) -> T:
    """Read a folder, and make it before that where it is absent or damaged.

    Args:
        folder: its name holds a digest of all that it depends on.
        make: fills an empty folder.
        read: opens the folder; raises ``DamagedError`` where it is not whole.
        rebuild: make it anew.

    Returns:
        What ``read`` gives.

    Raises:
        OSError: the folder cannot be written.
    """
    before = _identity(folder)
    if not rebuild:
        with contextlib.suppress(DamagedError):
            return read(folder)
    # rows may be nobody else's business
    folder.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.parent.mkdir(exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")) as alone:
        # of several processes the first one makes it, and the others have waited here
        if not rebuild or _identity(folder) not in (None, before):
            with contextlib.suppress(DamagedError):
                return read(folder)
        if alone:  # what a process that was killed left
            for left in folder.parent.glob(f".{folder.name}.*.part"):
                shutil.rmtree(left, ignore_errors=True)
        work = _empty(folder)
        try:
            make(work)
            publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    try:
        return read(folder)
    except DamagedError as error:
        raise OSError(str(error)) from error


def _identity(folder: Path) -> tuple[int, int] | None:
    """Tells a folder from the one that takes its place; no clock is as fine as that."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _empty(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(".part", f".{folder.name}.", folder.parent))
