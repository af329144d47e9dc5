"""Files and folders that are whole or absent, whatever is killed while they are written.

A folder is filled under another name, synced, given its marker last and renamed into place; the
marker holds the sizes of the other files, so a folder that lost some is told from a whole one, and
their checksums where it is asked for them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

# the file of a folder's lock, which is no part of what the folder holds
LOCK = ".lock"


class DamagedError(Exception):
    """A folder is not what was written."""


class HeldError(Exception):
    """Another process holds a lock."""


def expanded(name: str | os.PathLike[str]) -> Path:
    """A path with ``~`` read as the home folder, and as it stands where there is none."""
    path = Path(name)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def write_marker(
    folder: Path, name: str, values: dict[str, Any], *, checksums: bool = False
) -> None:
    """Write a folder's last file: some values, and the sizes of the other files, however deep.

    Args:
        folder: the folder.
        name: of the file.
        values: what else it holds.
        checksums: also the CRC-32 of the others, for which all of them are read again.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != name)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    values = {**values, "sizes": {name: path.stat().st_size for name, path in names.items()}}
    if checksums:
        values["crc32"] = checksums_of(names)
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def checksums_of(files: Mapping[str, Path]) -> dict[str, int]:
    """CRC-32 of each file: not against forgery, but against what disks do."""
    with ThreadPoolExecutor(4) as threads:  # zlib lets others run
        return dict(zip(files, threads.map(_crc32, files.values()), strict=True))


def _crc32(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while piece := file.read(2**22):
            total = zlib.crc32(piece, total)
    return total


def read_marker(folder: Path, name: str, *, checksums: bool = False) -> dict[str, Any]:
    """Read the values again.

    Args:
        folder: the folder.
        name: of the file.
        checksums: compare them, where the marker holds some; this reads all files.

    Raises:
        DamagedError: the marker or a file of the folder is missing, or has another size or
            checksum.
        PermissionError: the folder belongs to somebody else.
    """
    try:
        values: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        found = {file: (folder / file).stat().st_size for file in values["sizes"]}
        sums = dict(values.get("crc32", {})) if checksums else {}
    except PermissionError:
        raise  # another user's: not damaged, and not ours to replace
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / name}: {error}") from error
    for file, size in values["sizes"].items():
        if found[file] != size:
            raise DamagedError(f"{folder / file} has {found[file]} bytes in place of {size}")
    try:
        now = checksums_of({file: folder / file for file in sums})
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder}: a file cannot be read ({error})") from error
    for file, expected in sums.items():
        if now[file] != expected:
            raise DamagedError(f"{folder / file} does not hold what was written (CRC-32)")
    return values


def sync(folder: Path) -> None:
    """Bring a folder's files, and the names of them, onto the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync_names(path)


def sync_names(folder: Path) -> None:
    """Bring the names in a folder onto the disk, where the system has a way to."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(work: Path, target: Path) -> None:
    """Rename a folder into place, in place of one that may be there.

    Whoever reads the old one keeps its files open. Where another process was faster, its folder
    stays.
    """
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(".part", f".{target.name}.", target.parent))
        with contextlib.suppress(FileNotFoundError):  # another process moves it away, too
            os.rename(target, old / "old")
    try:
        os.rename(work, target)
    except OSError:
        if not target.exists():
            if old is not None and (old / "old").exists():
                os.rename(old / "old", target)
            raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    sync_names(target.parent)


@contextlib.contextmanager
def locked(path: Path, *, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock, which ends with the process; False where the file system has none.

    Args:
        path: its file; gone afterwards, but for what a killed process leaves.
        timeout: how many seconds to wait for another process, default as long as it takes.

    Raises:
        HeldError: another process still holds it.
    """
    path = Path(os.path.abspath(path))
    # a file in place of a lock would outlive a process that is killed on another machine; and
    # whoever may write the folder may have to take the file that one has left
    lock = FileLock(path, timeout, mode=0o666, fallback_to_soft=False)
    try:
        lock.acquire()
        own = path.stat()
    except Timeout as error:
        raise HeldError(str(path)) from error
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        # the folder may have vanished with it, and another process have made both anew
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), own):
                path.unlink()
        lock.release()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that takes its name only when it is whole and on disk.

    A link keeps pointing where it does, and what it points at is replaced. What is there and is no
    file, such as a pipe or ``/dev/null``, is written to: a file in its place would be its end.

    Args:
        path: the file; missing folders are made.

    Yields:
        The file, opened for bytes.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as there:
            yield there
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            # a temporary file is its owner's alone; this one is to be as if opened by its name
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_names(path.parent)


@contextlib.contextmanager
def replacing_text(path: Path) -> Iterator[IO[str]]:
    """``replacing``, opened for text in UTF-8."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        yield text
        text.flush()
        text.detach()  # or it would close the file before it is synced
