"""What a training run leaves for its report: the validation lists before and after, and lengths.

``validation/before.jsonl`` and ``after.jsonl`` hold a line for each validation row, with its place
(``row``), ``query_id``, ``labels``, ``scores`` and, where there are some, ``first_stage_scores``;
``query`` and ``documents`` stand in at most ``TEXT_ROWS`` of them.

Shape legend: ``P`` pairs, ``Q`` queries, ``D`` documents of one query.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rankwright.errors import DataError
from rankwright.files import replacing
from rankwright.types import Example, PackedBatch, ScoredList

FOLDER = "validation"
NAMES = ("before", "after")
# of a larger validation set, evenly chosen rows are kept: 2 million scores are some 60 MB
MAX_PAIRS = 2_000_000
# the texts of these many rows, in these many characters, with documents cut at so many
TEXT_ROWS = 1000
TEXT_CHARACTERS = 20_000_000
DOCUMENT_CHARACTERS = 4000
LENGTH_BINS = 48


@dataclass(frozen=True, slots=True)
class Record:
    """One validation row with its scores.

    Attributes:
        row: its place among the validation rows.
        query_id: its id; the place where the row has none.
        labels: ``D`` labels.
        scores: ``D`` fp32 logits.
        first_stage_scores: ``D`` scores of the retriever, or None.
        query: the text, or None where it was not kept.
        documents: ``D`` texts, each cut at ``DOCUMENT_CHARACTERS``, or None.
    """

    row: int
    query_id: str
    labels: list[float]
    scores: list[float]
    first_stage_scores: list[float] | None = None
    query: str | None = None
    documents: list[str] | None = None

    def scored(self) -> ScoredList:
        """The same as a scored list; a text that was not kept is empty."""
        example = Example(
            self.query or "",
            self.documents or [""] * len(self.labels),
            self.labels,
            first_stage_scores=self.first_stage_scores,
            query_id=self.query_id,
        )
        return ScoredList(example, self.scores)


def write_records(
    folder: Path,
    name: str,
    examples: Sequence[Example],
    scores_P: npt.NDArray[np.float32],
    first: Sequence[int] | None = None,
) -> dict[str, int]:
    """Write ``validation/<name>.jsonl`` into an output folder.

    Args:
        folder: the output folder.
        name: one of ``NAMES``.
        examples: all validation rows.
        scores_P: their scores, row after row.
        first: rows by how much their texts matter, the most first; None spreads them evenly.

    Returns:
        How many ``rows`` there are, how many are ``kept``, and how many of these ``with_texts``.
    """
    rows = len(examples)
    stride = max(1, math.ceil(scores_P.size / MAX_PAIRS))
    order = range(0, rows, max(1, math.ceil(rows / TEXT_ROWS))) if first is None else first
    with_texts = set([row for row in order if row % stride == 0][:TEXT_ROWS])
    path = folder / FOLDER / f"{name}.jsonl"
    # the shortest decimal that is this float32 again: half the digits, and no new ties
    texts_P = scores_P.astype(str)
    start = kept = texts = characters = 0
    with replacing(path) as out:
        for row, example in enumerate(examples):
            end = start + len(example.labels)
            if row % stride == 0:
                line: dict[str, Any] = {
                    "row": row,
                    "query_id": example.query_id or str(row),
                    "labels": example.labels,
                    "scores": [float(text) for text in texts_P[start:end]],
                }
                if example.first_stage_scores is not None:
                    line["first_stage_scores"] = example.first_stage_scores
                if row in with_texts and characters < TEXT_CHARACTERS:
                    line["query"] = example.query
                    line["documents"] = [text[:DOCUMENT_CHARACTERS] for text in example.documents]
                    characters += len(example.query) + sum(map(len, line["documents"]))
                    texts += 1
                out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                kept += 1
            start = end
    return {"rows": rows, "kept": kept, "with_texts": texts}


def read_records(folder: Path, name: str) -> list[Record] | None:
    """Read ``validation/<name>.jsonl``; None where there is none.

    Raises:
        DataError: a line is broken; file and line are named.
    """
    path = folder / FOLDER / f"{name}.jsonl"
    if not path.is_file():
        return None
    records = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = Record(**json.loads(line))
                sizes = {len(record.labels), len(record.scores)}
                sizes |= {len(v) for v in (record.first_stage_scores, record.documents) if v}
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{path}:{number} is no record of a run ({error}); train again, or delete the "
                    "file to leave it out"
                ) from error
            if len(sizes) > 1 or not record.labels:
                raise DataError(
                    f"{path}:{number} has lists of different lengths; train again, or delete the "
                    "file to leave it out"
                )
            records.append(record)
    return records


class Lengths:
    """Counts the pairs of training by their length in tokens, as the model saw them.

    Args:
        max_length: the greatest length there can be.
    """

    def __init__(self, max_length: int) -> None:
        self.counts = np.zeros(max_length + 1, np.int64)

    def add(self, batch: PackedBatch) -> None:
        """Count a batch's pairs, on the host; fillers do not count."""
        if batch.filler:
            return
        lengths = np.asarray(batch.lengths, np.int64)
        parents = np.asarray(batch.parents, np.int64)
        whole = lengths + np.where(parents >= 0, lengths[parents], 0)
        found_P = whole[batch.segment_P.numpy()]
        limit = len(self.counts) - 1
        self.counts += np.bincount(np.minimum(found_P, limit), minlength=limit + 1)

    def take_up(self, counts: Sequence[int]) -> None:
        """Add what was counted before, perhaps with another greatest length."""
        limit = len(self.counts) - 1
        places = np.minimum(np.arange(len(counts)), limit)
        np.add.at(self.counts, places, np.asarray(counts, np.int64))


def length_summary(counts: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """Bins of the counted lengths, with mean, median, 95th percentile and maximum; None for none.

    Args:
        counts: how many pairs have each length, from 0.
    """
    total = int(counts.sum())
    if not total:
        return None
    reached = np.cumsum(counts) / total
    longest = int(np.flatnonzero(counts)[-1])
    width = max(1, math.ceil((longest + 1) / LENGTH_BINS))
    edges = list(range(0, longest + 1 + width, width))
    sizes = np.arange(len(counts))
    return {
        "pairs": total,
        "mean": round(float((sizes * counts).sum() / total), 2),
        "median": int(np.searchsorted(reached, 0.5)),
        "p95": int(np.searchsorted(reached, 0.95)),
        "maximum": longest,
        "at_limit": int(counts[-1]),
        "edges": edges,
        "counts": [int(counts[a : a + width].sum()) for a in edges[:-1]],
    }
