"""Lists that several processes score together, as a single process would.

Queries are dealt out in blocks of about ``BLOCK`` documents, in turn. A block is scored by itself
whoever does it, so that scores are the same to the last bit on any number of processes.

They come to the first process (``score_lists``), or into a file (``write_lines``): each process
writes its lines to a hidden file beside the target, behind its last whole block if a run was
stopped before; the first process puts the lines together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rankwright.arguments import process_numbers
from rankwright.data.cache import digest
from rankwright.errors import DataError
from rankwright.files import HeldError, locked, sync_names
from rankwright.ranking import WINDOW, Progress, Reranker
from rankwright.types import Example, ScoredList

# what is sorted by length at a time anyway
BLOCK = WINDOW
# what the libraries that carry messages say of a process that is gone
_LOST = re.compile(
    "[Cc]onnection (was )?(likely )?(closed|reset)|Broken pipe|remote process exited"
)


@dataclass(frozen=True)
class Processes:
    """The processes that share the work.

    Attributes:
        rank: number of this one.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def wait(self) -> None:
        """Wait until all of them are here."""
        if self.world > 1:
            with together():
                torch.distributed.barrier()

    def totals(self, counts: Sequence[int]) -> list[int]:
        """Sums over all processes."""
        sums = torch.tensor(counts)
        if self.world > 1:
            with together():
                torch.distributed.all_reduce(sums)
        return [int(total) for total in sums.tolist()]

    def gather(self, own: Any) -> list[Any]:
        """What each of them has, for the first one; nothing for the others."""
        found: list[Any] = [None] * self.world
        with together():
            torch.distributed.gather_object(own, None if self.rank else found)
        return [] if self.rank else found

    def agree(self, value: str, refused: Callable[[str], Exception]) -> None:
        """See to it that all have the same text.

        Args:
            value: this process's.
            refused: the error that all of them raise otherwise, by the texts that there are.

        Raises:
            DataError: another process has ended.
        """
        if self.world > 1:
            found: list[Any] = [None] * self.world
            with together():
                torch.distributed.all_gather_object(found, value)
            if len(set(found)) > 1:
                raise refused(", ".join(dict.fromkeys(found)))

    def agree_on_rows(self, digest: str) -> None:
        """See to it that all have read the same rows, by a digest of them; see ``agree``."""
        self.agree(
            digest,
            lambda _: DataError("the processes have read other rows; all must read the same ones"),
        )


@contextmanager
def together() -> Iterator[None]:
    """Say what it means where the others cannot be reached any more.

    Raises:
        DataError: one of them has ended. Other errors of what is done here are raised as they are.
    """
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise DataError(
            "another process has ended; what it says stands in its own line "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


@contextmanager
def several() -> Iterator[Processes]:
    """The processes that torchrun or accelerate started; otherwise this one alone."""
    rank, world, _ = process_numbers()
    if world == 1:
        yield Processes()
        return
    # one may be hours behind the others
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield Processes(rank, world)
    finally:
        torch.distributed.destroy_process_group()


def blocks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Cut queries into blocks of at least ``BLOCK`` documents."""
    block: list[Example] = []
    documents = 0
    for example in examples:
        block.append(example)
        documents += len(example.documents)
        if documents >= BLOCK:
            yield block
            block, documents = [], 0
    if block:
        yield block


def score_lists(
    reranker: Reranker,
    examples: Sequence[Example],
    *,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> Iterator[ScoredList]:
    """Score every candidate of every example.

    Args:
        reranker: the model.
        examples: the queries; all of them for every process.
        processes: who shares the work, default this process alone.
        progress: called with the number of queries finished since its last call, by anyone.

    Yields:
        The lists in the order of the examples, to the first process; nothing to the others.

    Raises:
        DataError: a score is not finite, see ``Reranker.score_examples``; or another process has
            read other rows.
    """
    processes = processes or Processes()
    if processes.world > 1:
        read = hashlib.sha256()
        _add_rows(read, examples)
        processes.agree_on_rows(read.hexdigest())
    found = blocks(examples)
    while turn := list(islice(found, processes.world)):
        yield from _score_turn(reranker, turn, processes, progress)


def _add_rows(read: Any, examples: Iterable[Example]) -> None:
    for example in examples:
        read.update(repr((example.query, example.documents)).encode())


def _score_turn(
    reranker: Reranker, turn: list[list[Example]], processes: Processes, progress: Progress | None
) -> Iterator[ScoredList]:
    """One block for each process."""
    if processes.world == 1:
        yield from reranker.iter_scores(turn[0], progress)
        return
    own = turn[processes.rank] if processes.rank < len(turn) else []
    scored = [(one.scores, one.passages) for one in reranker.iter_scores(own)]
    found = processes.gather(scored)
    for block, part in zip(turn, found, strict=False):
        for example, (scores, passages) in zip(block, part, strict=True):
            yield ScoredList(example, scores, passages)
        if progress is not None:
            progress(len(block))


def write_lines(
    reranker: Reranker,
    examples: Iterable[Example],
    path: Path,
    line: Callable[[ScoredList], str],
    *,
    key: Any = None,
    counts: list[int] | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> int:
    """Score every candidate of every example and write one line for each, in their order.

    The lines grow in hidden files beside ``path``, which takes its name when it is whole. Where a
    run that was stopped left some for the same ``key`` and number of processes, those of whole
    blocks are kept and the next ones follow. One run at a time writes a file.

    Args:
        reranker: the model.
        examples: the queries; all of them for every process.
        path: where the lines go.
        line: what is written of a scored list.
        key: what the lines depend on, a value of JSON; None never goes on.
        counts: numbers that ``line`` adds to, at first 0; they cover the lines that are kept, too.
        processes: who shares the work, default this process alone.
        progress: called with the number of queries finished since its last call.

    Returns:
        How many lines of this process a former run had written.

    Raises:
        OSError: a file cannot be written.
        DataError: a score is not finite, see ``Reranker.score_examples``; another process has read
            other rows, or its lines are not there; another run writes the file; or ``path`` is a
            folder, a pipe or a device.
    """
    processes, counts = processes or Processes(), [] if counts is None else counts
    if path.exists() and not path.is_file():
        raise DataError(f"{str(path)!r} is no file, so lines cannot grow beside it; name a file")
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # the first process's keeps every other run away, each one's those of as many processes, also
    # where the first is gone and the others are not yet
    locks = {_hidden(path, processes, "lock")}
    if processes.rank == 0:
        locks.add(_hidden(path, Processes(), "lock"))
    try:
        with ExitStack() as held:
            for lock in locks:
                held.enter_context(locked(lock, timeout=0))
            processes.wait()
            return _write_lines(reranker, examples, path, line, key, counts, processes, progress)
    except HeldError as error:
        raise DataError(
            f"another run is writing {path}; wait until it has ended, or end it"
        ) from error


def _write_lines(
    reranker: Reranker,
    examples: Iterable[Example],
    path: Path,
    line: Callable[[ScoredList], str],
    key: Any,
    counts: list[int],
    processes: Processes,
    progress: Progress | None,
) -> int:
    part, key_file = _part(path, processes, processes.rank), _hidden(path, processes, "key")
    counts_file = _hidden(path, processes, "counts")
    written = digest(key)
    left = part.is_file() and key_file.is_file() and key_file.read_text(encoding="utf-8")
    if key is None or left != written:
        part.unlink(missing_ok=True)
        counts_file.unlink(missing_ok=True)
        key_file.write_text(written, encoding="utf-8")
    sizes: list[int] = []
    kept = whole = 0
    read = hashlib.sha256()
    with part.open("ab") as file, counts_file.open("ab") as tally:
        # what the counts were behind each whole block
        ends, tallies = _line_ends(part), _line_ends(counts_file)
        former = counts_file.read_bytes().splitlines()

        def go_on() -> None:
            file.truncate(ends[kept - 1] if kept else 0)
            tally.truncate(tallies[whole - 1] if whole else 0)
            if whole:
                counts[:] = json.loads(former[whole - 1])

        before = True
        for number, block in enumerate(blocks(examples)):
            sizes.append(len(block))
            if processes.world > 1:
                _add_rows(read, block)
            if number % processes.world != processes.rank:
                continue
            if before and whole < len(tallies) and kept + len(block) <= len(ends):
                kept += len(block)
                whole += 1
                if progress is not None:
                    progress(len(block))
                continue
            if before:
                go_on()
                before = False
            for scored in reranker.iter_scores(block, progress):
                file.write((line(scored) + "\n").encode())
            file.flush()
            tally.write((json.dumps(counts) + "\n").encode())
            tally.flush()
        if before:
            go_on()
        os.fsync(file.fileno())
    # all have written their lines then, too
    processes.agree_on_rows(read.hexdigest())
    if processes.rank == 0:
        _put_together(path, processes, sizes)
    processes.wait()
    return kept


def _hidden(path: Path, processes: Processes, end: str, rank: int | None = None) -> Path:
    rank = processes.rank if rank is None else rank
    which = f".{rank}-of-{processes.world}" if processes.world > 1 else ""
    return path.with_name(f".{path.name}{which}.{end}")


def _part(path: Path, processes: Processes, rank: int) -> Path:
    return _hidden(path, processes, "part", rank)


def _line_ends(path: Path) -> list[int]:
    """Where the lines that were written to their end do end."""
    ends: list[int] = []
    place = 0
    with path.open("rb") as file:
        for line in file:
            place += len(line)
            if line.endswith(b"\n"):
                ends.append(place)
    return ends


def _put_together(path: Path, processes: Processes, sizes: Sequence[int]) -> None:
    """Give the file its name; the lines of several processes go into it block by block."""
    world = processes.world
    parts = [_part(path, processes, rank) for rank in range(world)]
    if world > 1:
        whole = path.with_name(f".{path.name}.whole")
        with ExitStack() as stack:
            out = stack.enter_context(whole.open("wb"))
            try:
                files = [stack.enter_context(part.open("rb")) for part in parts]
            except FileNotFoundError as error:
                raise DataError(
                    f"{error.filename} is not there; all processes must write to one file system"
                ) from error
            for number, size in enumerate(sizes):
                lines = list(islice(files[number % world], size))
                if len(lines) < size:
                    raise DataError(
                        f"{parts[number % world]} is too short; all processes must read the same "
                        "rows"
                    )
                out.writelines(lines)
            for part, file in zip(parts, files, strict=True):
                if file.readline():
                    raise DataError(f"{part} is too long; leave its writing to one run")
            out.flush()
            os.fsync(out.fileno())
    else:
        whole = parts[0]
    os.replace(whole, path)
    # those of a run on another number of processes, too; not those of a file whose name begins so
    ours = re.compile(rf"\.{re.escape(path.name)}(\.[0-9]+-of-[0-9]+)?\.(part|key|counts|lock)")
    with suppress(OSError):
        for left in path.parent.iterdir():
            if ours.fullmatch(left.name):
                left.unlink()
    sync_names(path.parent)
