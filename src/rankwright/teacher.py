"""A teacher's scores, written into rows that a student learns from.

Legend: ``D`` documents of one row.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwright.data.cache import digest
from rankwright.files import sync_names
from rankwright.ranking import Progress, Reranker
from rankwright.types import Example, ScoredList


def scored_row(scored: ScoredList) -> dict[str, Any]:
    """A row of the layout ``labels``, with all that the example holds and the scores.

    Args:
        scored: the example with the teacher's ``D`` scores, which replace any it has.
    """
    example = scored.example
    row: dict[str, Any] = {
        "query_id": example.query_id,
        "query": example.query,
        "documents": example.documents,
        "labels": example.labels,
        "teacher_scores": scored.scores,
        "scores": example.first_stage_scores,
        "document_ids": example.document_ids,
        "instruction": example.instruction,
    }
    return {name: value for name, value in row.items() if value is not None}


def write_scores(
    reranker: Reranker,
    examples: Sequence[Example],
    path: Path,
    *,
    key: Any = None,
    progress: Progress | None = None,
) -> int:
    """Score every candidate of every example and write the rows, one a line.

    The rows grow in a hidden file beside ``path``, which takes its name when it is whole. Where a
    run that was stopped left one for the same ``key``, its rows are kept and the next ones follow.

    Args:
        reranker: the teacher.
        examples: the rows.
        path: where the lines go.
        key: what the scores depend on, a value of JSON; None never goes on.
        progress: called with the number of rows finished since its last call.

    Returns:
        How many rows a former run had written already.

    Raises:
        OSError: the file cannot be written.
        DataError: a score is not finite, see ``Reranker.score_examples``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, key_file = (path.with_name(f".{path.name}.{end}") for end in ("part", "key"))
    written = digest(key)
    done = 0
    left = part.is_file() and key_file.is_file() and key_file.read_text(encoding="utf-8")
    if key is not None and left == written:
        done = _whole_lines(part)
    if not done:
        part.unlink(missing_ok=True)
        key_file.write_text(written, encoding="utf-8")
    if progress is not None:
        progress(done)
    with part.open("a", encoding="utf-8") as file:
        for scored in reranker.iter_scores(examples[done:], progress):
            file.write(json.dumps(scored_row(scored), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    with contextlib.suppress(OSError):
        key_file.unlink()
    sync_names(path.parent)
    return done


def _whole_lines(path: Path) -> int:
    """Count the lines that were written to their end, and cut off what is behind them."""
    count = end = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
        file.truncate(end)
    return count
