"""``rankwright report``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.arguments import check_output_file
from rankwright.commands.common import (
    RowArguments,
    ScoringArguments,
    check_rows_are_read,
    load_reranker,
    load_rows,
    names_in_front,
    own,
    parse,
    report_truncation,
)
from rankwright.errors import ConfigError


@dataclass
class ReportArguments:
    """What to report; RUN, the output folder of a training run, stands in front."""

    output: str | None = dataclasses.field(
        default=None, metadata={"help": "the HTML file; default: report.html in the run's folder"}
    )
    compare_with: str | None = dataclasses.field(
        default=None, metadata={"help": "another run's folder, to compare the final models"}
    )
    dataset: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "rows to rank with the model now, in place of the run's validation rows"},
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import BadRowArguments, ModelArguments, PassageArguments

    return [
        ReportArguments,
        RowArguments,
        BadRowArguments,
        ScoringArguments,
        ModelArguments,
        PassageArguments,
    ]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    names, words = names_in_front(words)
    given = parse("report", types(), words)
    options = own(ReportArguments, given)
    if len(names) != 1 or given.get("model"):
        raise ConfigError(
            "name the output folder of one training run in front, such as rankwright report "
            f"output; {len(names)} came"
            + (", and --model, which has no place here" if given.get("model") else "")
        )
    check_rows_are_read(given, options.dataset, types()[1:])
    folder = Path(names[0])
    output = Path(options.output) if options.output is not None else folder / "report.html"
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output {options.output!r} is no name of a page; end it in .html")
    check_output_file("output", str(output), ())
    from rankwright.progress import console
    from rankwright.report.folder import read_run
    from rankwright.report.page import write_report

    found = read_run(folder)
    other = read_run(Path(options.compare_with)) if options.compare_with is not None else None
    if options.dataset:
        examples = load_rows(options.dataset, given)
        for one in (found, *([other] if other else [])):
            _rank(one, examples, options, given)
    advice = write_report(found, output, other)
    for line in advice:
        console.print(line)
    console.print(f"written to {output}; open it in a browser")
    return 0


def _rank(found: Any, examples: Any, options: ReportArguments, given: dict[str, Any]) -> None:
    """Rank the rows of ``--dataset`` with the final model."""
    from rankwright.progress import tracked
    from rankwright.report.folder import rank_rows

    reranker = load_reranker({**given, "model": str(found.folder)})
    with tracked(f"ranking with {found.name}", len(examples)) as advance:
        scored = reranker.iter_scores(examples, advance)
        rank_rows(found, scored, examples, list(options.dataset))
    report_truncation(reranker.truncated, reranker, f" by {found.name}")
