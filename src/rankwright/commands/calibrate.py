"""``rankwright calibrate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.commands.common import (
    RowArguments,
    ScoringArguments,
    load_reranker,
    load_rows,
    own,
    parse,
    report_truncation,
)
from rankwright.errors import ConfigError


@dataclass
class CalibrateArguments:
    """What to fit, and to which rows."""

    dataset: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "rows with labels that the model was not trained on"},
    )
    method: str = dataclasses.field(
        default="platt",
        metadata={"help": "platt: sigmoid(a * score + b); temperature: sigmoid(score / T)"},
    )
    precision: list[float] = dataclasses.field(
        default_factory=list,
        metadata={"help": "save thresholds at which this share of the kept is relevant"},
    )
    recall: list[float] = dataclasses.field(
        default_factory=list,
        metadata={"help": "save thresholds that keep this share of the relevant"},
    )
    folds: int = dataclasses.field(
        default=5, metadata={"help": "parts of the queries for the held-out figures"}
    )
    output: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "folder for a copy of the model with its calibration; default: the model's own "
            "rankwright.json is changed, and nothing else"
        },
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import BadRowArguments, ModelArguments, PassageArguments

    return [
        CalibrateArguments,
        RowArguments,
        BadRowArguments,
        ScoringArguments,
        ModelArguments,
        PassageArguments,
    ]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    given = parse("calibrate", types(), words)
    options = own(CalibrateArguments, given)
    if not options.dataset:
        raise ConfigError("--dataset is missing; give rows with labels to fit to")
    from rankwright.calibration import METHODS, check_goals
    from rankwright.progress import console, tracked

    if options.method not in METHODS:
        raise ConfigError(
            f"--method {options.method!r} is unknown; choose from {', '.join(METHODS)}"
        )
    goals = check_goals(options.precision, options.recall)
    if options.folds < 2:
        raise ConfigError(f"--folds {options.folds} is less than 2")
    examples = load_rows(options.dataset, given)
    reranker = load_reranker(given)
    if options.output is None:
        _check_folder(reranker)
    from rankwright.evaluation import calibrate_lists

    with tracked("ranking", len(examples)) as advance:
        calibration = calibrate_lists(
            reranker.iter_scores(examples, advance),
            options.method,
            goals,
            folds=options.folds,
            settings=reranker.settings,
        )
    report_truncation(reranker.truncated, reranker)
    _report(calibration, console)
    folder = save(reranker, calibration, options.output)
    console.print(f"saved in {folder}")
    return 0


def save(reranker: Any, calibration: Any, output: str | None) -> Path:
    """Keep a calibration with its model: in its own folder, or in a copy of it."""
    from rankwright.models import checkpoint

    reranker.loaded.spec.calibration = calibration.to_dict()
    if output is not None:
        return Path(reranker.save(output))
    return checkpoint.write_calibration(reranker.loaded.folder, calibration.to_dict())


def _check_folder(reranker: Any) -> None:
    """Refuse to change a folder that is not ours, or that flags have made another model of."""
    from rankwright.models.checkpoint import SPEC_FILE, ModelSpec
    from rankwright.run_folder import MARKER

    folder, spec = reranker.loaded.folder, reranker.loaded.spec
    if (folder / MARKER).is_file():
        raise ConfigError(
            f"{folder} is a checkpoint to resume from ({MARKER} seals it); give --output FOLDER "
            "for a copy of the model"
        )
    saved = ModelSpec.load(folder)
    if saved is None:
        raise ConfigError(
            f"{folder} holds no {SPEC_FILE}, so a calibration cannot be kept there; give --output "
            "FOLDER for a copy of the model"
        )
    if (folder / SPEC_FILE).is_symlink():
        raise ConfigError(
            f"{folder} is a hub's cache, which holds links; give --output FOLDER for a copy of the "
            "model"
        )
    for f in dataclasses.fields(ModelSpec):
        before, now = getattr(saved, f.name), getattr(spec, f.name)
        if before != now:
            raise ConfigError(
                f"{folder} was saved with {f.name} {before!r}, not {now!r}, and a calibration "
                "holds for one of them; drop the flag, or give --output FOLDER for a copy of the "
                "model"
            )


def _report(calibration: Any, console: Any) -> None:
    from rich.table import Table

    from rankwright.evaluation import metrics_table

    record = calibration.record
    values = "  ".join(f"{name} {value:.4f}" for name, value in calibration.parameters.items())
    title = (
        f"{calibration.method}: {values}\n{record['queries']} queries, {record['documents']} "
        f"documents, {record['relevant']:g} relevant"
    )
    rows = {"sigmoid(score)": record["before"], "calibrated": record["after"]}
    held = record["held_out"]
    if held is not None:
        names = ("nll", "ece", "brier")
        rows[f"held out ({held['folds']} folds)"] = {name: held[name] for name in names}
    console.print(metrics_table(rows, title))
    if record["not_held_out"]:
        console.print(f"no held-out figures: {record['not_held_out']}")
    if record["separated"]:
        console.print(
            "the scores tell relevant from irrelevant without a mistake, so these rows cannot say "
            "how steep the curve is: Platt's targets bound it; give more rows"
        )
    if not calibration.thresholds:
        return
    # narrow enough for 80 columns
    table = Table(title="documents at or above a threshold", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in ("score", "probability", "precision", "recall", "kept", "95 % interval"):
        table.add_column(name, justify="right")
    for place, threshold in enumerate(calibration.thresholds):
        low, high = threshold.interval
        table.add_row(
            threshold.name,
            f"{threshold.score:.4f}",
            f"{calibration.probabilities([threshold.score])[0]:.4f}",
            f"{threshold.precision:.4f}",
            f"{threshold.recall:.4f}",
            str(threshold.kept),
            f"{low:.2f} to {high:.2f}",
        )
        if held is not None:
            found = held["thresholds"][place]
            precision, recall, kept = (found[name] for name in ("precision", "recall", "kept"))
            table.add_row(
                "  held out",
                "",
                "",
                "-" if precision is None else f"{precision:.4f}",
                "-" if recall is None else f"{recall:.4f}",
                "-" if kept is None else str(kept),
            )
    console.print(table)
