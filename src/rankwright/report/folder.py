"""Reads what a training run left in its output folder; what is missing is told, not guessed."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.calibration import Calibration
from rankwright.errors import CheckpointError, DataError
from rankwright.evaluation import evaluate_scores
from rankwright.records import TEXT_ROWS, Record, read_records
from rankwright.types import Example, ScoredList

STATE_FILE = "trainer_state.json"
METRICS_FILE = "metrics.json"
SPEC_FILE = "rankwright.json"
METRICS = ["ndcg@10", "mrr@10", "map"]


@dataclass
class Run:
    """A training run, as far as its folder tells.

    Attributes:
        folder: the output folder.
        metrics: ``metrics.json``; empty where there is none.
        history: the trainer's log, in order.
        state: the rest of ``trainer_state.json``.
        spec: ``rankwright.json``.
        before: validation rows with the scores before training, None where they are not known.
        after: the same with those of the final model.
        finished: whether the run came to its end.
        rows_from: the files that ``after`` was ranked from now; empty where the run left it.
        written: when the run ended, or when its last checkpoint was written.
        calibration: what the model keeps of ``--calibrate`` or ``rankwright calibrate``.
    """

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    before: list[Record] | None = None
    after: list[Record] | None = None
    finished: bool = True
    rows_from: list[str] = field(default_factory=list)
    written: datetime.datetime | None = None
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.folder.resolve().name

    @property
    def training(self) -> dict[str, Any]:
        """The arguments of the run."""
        found = self.spec.get("training")
        return found if isinstance(found, dict) else {}

    @property
    def metric_names(self) -> list[str]:
        """The metrics that were measured; the usual ones where none was."""
        for found in (self.metrics.get("after"), self.metrics.get("before")):
            if isinstance(found, dict) and found:
                return list(found)
        return METRICS

    @property
    def main_metric(self) -> str:
        """NDCG@10, or the first one that was measured."""
        names = self.metric_names
        return "ndcg@10" if "ndcg@10" in names else names[0]


def read_run(folder: Path) -> Run:
    """Read an output folder of ``rankwright train``, also one that was interrupted.

    Raises:
        CheckpointError: it is no such folder, or one of its files is broken.
        DataError: a validation list is broken.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; name the output folder of a training run")
    places = [folder, *sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)]
    state_place = next((p for p in places if (p / STATE_FILE).is_file()), None)
    spec_place = next((p for p in places if (p / SPEC_FILE).is_file()), None)
    if state_place is None and spec_place is None:
        raise CheckpointError(
            f"{folder} holds neither {STATE_FILE} nor {SPEC_FILE}; name the output folder of a "
            "training run"
        )
    state = _json(state_place / STATE_FILE) if state_place else {}
    history = state.pop("log_history", [])
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise CheckpointError(f"{state_place}/{STATE_FILE} has no list of logs; train again")
    found = (folder / METRICS_FILE).is_file()
    newest = folder / METRICS_FILE if found else (state_place or spec_place or folder)
    spec = _json(spec_place / SPEC_FILE) if spec_place else {}
    saved = spec.get("calibration")
    return Run(
        folder=folder,
        metrics=_json(folder / METRICS_FILE) if found else {},
        history=history,
        state=state,
        spec=spec,
        before=read_records(folder, "before"),
        after=read_records(folder, "after"),
        finished=found,
        written=datetime.datetime.fromtimestamp(newest.stat().st_mtime, datetime.UTC),
        calibration=None if saved is None else Calibration.from_dict(saved),
    )


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is broken ({error}); train again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no object; train again")
    return values


def rank_rows(
    run: Run, lists: Iterable[ScoredList], examples: Sequence[Example], sources: list[str]
) -> None:
    """Put rows that were ranked now in the place of the run's own validation rows.

    What was measured before training is of other rows, and is left out. Documents are kept of the
    ``TEXT_ROWS`` rows with the lowest main metric, which are more than are shown.

    Args:
        run: the run.
        lists: the scores of the rows, in their order.
        examples: the rows.
        sources: where they come from.

    Raises:
        DataError: they cannot be measured, see ``evaluate_scores``.
    """
    records = [
        Record(
            row,
            scored.example.query_id or str(row),
            scored.example.labels,
            scored.scores,
            scored.example.first_stage_scores,
            scored.example.query,
        )
        for row, scored in enumerate(lists)
    ]
    measured = evaluate_scores(
        (record.scored() for record in records), [run.main_metric], first_stage=False
    )
    (values_Q,) = measured.per_query.values()
    # those without a relevant document are not shown, so they are the last
    order = np.lexsort((values_Q, ~measured.has_positive))
    for row in order[:TEXT_ROWS].tolist():
        records[row] = replace(records[row], documents=examples[row].documents)
    run.after = records
    run.before = None
    run.rows_from = sources


def paired(
    one: Sequence[Record], two: Sequence[Record], key: Callable[[Record], Any]
) -> list[tuple[Record, Record]]:
    """The rows that stand in both, with the same labels.

    Raises:
        DataError: none does.
    """
    others = {key(record): record for record in one}
    found = []
    for record in two:
        other = others.get(key(record))
        if other is not None and other.labels == record.labels:
            found.append((other, record))
    if not found:
        raise DataError("the two have no validation row in common; give runs on the same rows")
    return found
