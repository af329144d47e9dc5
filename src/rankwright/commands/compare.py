"""``rankwright compare``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwright.commands.common import (
    RowArguments,
    ScoringArguments,
    check_rows_are_read,
    load_reranker,
    load_rows,
    make_folder,
    names_in_front,
    own,
    parse,
    report_truncation,
)
from rankwright.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rankwright.comparison import Comparison
    from rankwright.types import Example, ScoredList


@dataclass
class CompareArguments:
    """What to compare; A and B stand in front."""

    dataset: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "files, folders or hub ids of rows to rank"}
    )
    qrels: str | None = dataclasses.field(
        default=None, metadata={"help": "TREC judgements, in place of --dataset for two run files"}
    )
    metrics: list[str] = dataclasses.field(
        default_factory=lambda: ["ndcg@10", "mrr@10", "map"],
        metadata={
            "help": "mrr, ndcg, map, precision, recall, hit, each with @k; the first one chooses "
            "the queries that are shown"
        },
    )
    show: int = dataclasses.field(
        default=2, metadata={"help": "queries shown side by side: the largest gains and losses"}
    )
    top_k: int = dataclasses.field(
        default=5, metadata={"help": "documents shown of each of these queries"}
    )
    samples: int = dataclasses.field(
        default=10_000, metadata={"help": "resamples of the bootstrap and of the test"}
    )
    seed: int = dataclasses.field(default=42, metadata={"help": "of the resamples"})
    output: str | None = dataclasses.field(
        default=None,
        metadata={"help": "folder for comparison.json, per_query.csv, both runs and qrels.txt"},
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import BadRowArguments, ModelArguments, PassageArguments

    return [
        CompareArguments,
        RowArguments,
        BadRowArguments,
        ScoringArguments,
        ModelArguments,
        PassageArguments,
    ]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    names, words = names_in_front(words)
    given = parse("compare", types(), words)
    options = own(CompareArguments, given)
    _check(names, options, given)
    from rankwright.comparison import compare, differences_table
    from rankwright.metrics import parse_metrics
    from rankwright.progress import console

    options.metrics = " ".join(options.metrics).replace(",", " ").split()
    parse_metrics(options.metrics)
    if options.output is not None:
        # before the ranking, which may take hours
        make_folder(options.output)
    examples, runs = _rows(names, options, given)
    lists_a, lists_b = (_lists(name, examples, runs, given) for name in names)
    found = compare(
        lists_a,
        lists_b,
        options.metrics,
        name_a=names[0],
        name_b=names[1],
        seed=options.seed,
        samples=options.samples,
    )
    for letter, name in zip("AB", names, strict=True):
        console.print(f"{letter} is {name}")
    console.print(differences_table(found))
    console.print(_note(found))
    _show(found, options)
    if options.output is not None:
        written = found.save(options.output)
        console.print(f"written to {options.output}: {', '.join(written)}")
    return 0


def _check(names: list[str], options: CompareArguments, given: dict[str, Any]) -> None:
    if len(names) != 2 or given.get("model"):
        raise ConfigError(
            "name the two to compare in front, such as rankwright compare BASE output --dataset "
            f"test.jsonl; {len(names)} came"
            + (", and --model, which has no place here" if given.get("model") else "")
        )
    if names[1] == "first_stage":
        raise ConfigError("first_stage can only be A: compare first_stage MODEL --dataset FILE")
    if bool(options.dataset) == (options.qrels is not None):
        raise ConfigError(
            "give --dataset with the rows to rank, or --qrels for two TREC run files"
            + ("; not both" if options.dataset else "")
        )
    check_rows_are_read(given, options.dataset, types()[1:])
    for flag in ("show", "top_k"):
        if getattr(options, flag) < (0 if flag == "show" else 1):
            raise ConfigError(f"--{flag} {getattr(options, flag)} is too small")
    if options.samples < 1:
        raise ConfigError(f"--samples {options.samples} is less than 1")
    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} is below 0")
    for name in names:
        if options.qrels is not None and not Path(name).is_file():
            raise ConfigError(
                f"--qrels compares two TREC run files, and {name} is no file; give --dataset to "
                "rank its rows with a model"
            )


def _is_run(name: str) -> bool:
    return Path(name).is_file()


def _rows(
    names: list[str], options: CompareArguments, given: dict[str, Any]
) -> tuple[Sequence[Example], dict[str, dict[str, dict[str, float]]]]:
    """The rows, and what the run files hold."""
    from rankwright.comparison import judged_examples
    from rankwright.data.readers import read_trec_run
    from rankwright.evaluation import read_qrels
    from rankwright.progress import console

    runs = {name: read_trec_run(Path(name)) for name in names if _is_run(name)}
    if options.qrels is None:
        rows_file = None if options.output is None else Path(options.output) / "rows.jsonl"
        return load_rows(options.dataset, given, output=rows_file), runs
    qrels = read_qrels(options.qrels)
    without = {query for run in runs.values() for query in run} - set(qrels)
    if without:
        console.print(f"left out: {len(without)} ranked queries without a judgement")
    return judged_examples(qrels, *runs.values()), runs


def _lists(
    name: str,
    examples: Sequence[Example],
    runs: dict[str, dict[str, dict[str, float]]],
    given: dict[str, Any],
) -> Sequence[ScoredList]:
    from rankwright.comparison import FIRST_STAGE, ScoredRows, first_stage_lists, run_lists
    from rankwright.progress import console, tracked

    if name in runs:
        lists, counts = run_lists(runs[name], examples, name)
        if counts:
            parts = ", ".join(f"{count} {what}" for what, count in counts.items())
            console.print(f"{name}: {parts}")
        return lists
    if name == FIRST_STAGE and not Path(name).exists():
        return first_stage_lists(examples)
    try:
        reranker = load_reranker({**given, "model": name})
    except ConfigError as error:
        if Path(name).suffix in (".trec", ".run", ".txt", ".tsv"):
            raise DataError(f"the run {name} is not there; check the path") from error
        raise
    with tracked(f"ranking with {Path(name).name}", len(examples)) as advance:
        lists = ScoredRows(examples)
        for scored in reranker.iter_scores(examples, advance):
            lists.add(scored.scores)
    report_truncation(reranker.truncated, reranker, f" by {name}")
    return lists


def _note(found: Comparison) -> str:
    first = next(iter(found.differences.values()))
    how = (
        "all sign patterns"
        if first.exact
        else f"{found.samples} random sign patterns, seed {found.seed}"
    )
    text = (
        f"intervals: paired bootstrap, {found.samples} resamples; p: two-sided randomisation test, "
        f"{how}"
    )
    if len(found.differences) > 1:
        text += "; Holm corrects for the metrics compared here, for nothing else"
    return text


def _show(found: Comparison, options: CompareArguments) -> None:
    from rankwright.comparison import side_by_side
    from rankwright.progress import console

    metric = next(iter(found.differences))
    gains, losses = found.largest(metric, options.show)
    for what, chosen in (("gains", gains), ("losses", losses)):
        if chosen:
            console.print(f"\nthe largest {what} of B in {metric}", style="bold")
        for query in chosen:
            console.print(side_by_side(found, query, metric, options.top_k))
