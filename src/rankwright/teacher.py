"""A teacher's scores, written into rows that a student learns from.

Legend: ``D`` documents of one row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwright.ranking import Progress, Reranker
from rankwright.shares import Processes, write_lines
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
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> int:
    """Score every candidate of every example and write the rows, one a line.

    Args:
        reranker: the teacher.
        examples: the rows.
        path: where the lines go.
        key: what the scores depend on, see ``shares.write_lines``.
        processes: who shares the work, default this process alone.
        progress: called with the number of rows finished since its last call.

    Returns:
        How many rows of this process a former run had written already.

    Raises:
        OSError: the file cannot be written.
        DataError: a score is not finite, see ``Reranker.score_examples``.
    """
    return write_lines(
        reranker, examples, path, _line, key=key, processes=processes, progress=progress
    )


def _line(scored: ScoredList) -> str:
    return json.dumps(scored_row(scored), ensure_ascii=False)
