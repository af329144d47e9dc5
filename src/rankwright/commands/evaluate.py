"""``rankwright evaluate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rankwright.commands.common import (
    load_reranker,
    make_folder,
    model_arguments,
    own,
    parse,
    report_dropped,
    report_truncation,
)
from rankwright.errors import ConfigError


@dataclass
class EvaluateArguments:
    """What to measure."""

    dataset: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "files, folders or hub ids of rows"}
    )
    instructions: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "task description of each dataset's rows, '' for none; a row's own wins"},
    )
    data_format: str | None = dataclasses.field(
        default=None, metadata={"help": "name of the row layout; default: by columns"}
    )
    split: str | None = dataclasses.field(
        default=None, metadata={"help": "which files of a folder or hub dataset"}
    )
    metrics: list[str] = dataclasses.field(
        default_factory=lambda: ["ndcg@10", "mrr@10", "map"],
        metadata={
            "help": "mrr, ndcg, map, precision, recall, hit, each with @k; or RR, nDCG, AP, P, R, S"
        },
    )
    batch_tokens: int | None = dataclasses.field(
        default=None,
        metadata={"help": "tokens scored at a time; default: 4096 on a CPU, 16384 elsewhere"},
    )
    output: str | None = dataclasses.field(
        default=None, metadata={"help": "folder for metrics.json, run.trec and qrels.txt"}
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import ModelArguments, PassageArguments

    return [EvaluateArguments, ModelArguments, PassageArguments]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    given = parse("evaluate", types(), words)
    options = own(EvaluateArguments, given)
    if not options.dataset:
        raise ConfigError("--dataset is missing; give rows to evaluate on")
    from rankwright.data.readers import load_examples
    from rankwright.evaluation import evaluate_scores, metrics_table, write_qrels, write_trec_run
    from rankwright.metrics import parse_metrics
    from rankwright.progress import console, tracked

    options.metrics = " ".join(options.metrics).replace(",", " ").split()
    parse_metrics(options.metrics)
    if options.output is not None:
        # before the ranking, which may take hours
        make_folder(options.output)
    data = load_examples(
        options.dataset,
        instructions=options.instructions,
        data_format=options.data_format,
        split=options.split,
        use_hf=model_arguments(given).use_hf,
        purpose="eval",
    )
    report_dropped(data.report.dropped)
    reranker = load_reranker(given, options.batch_tokens)
    with tracked("ranking", len(data.examples)) as advance:
        lists = reranker.score_examples(data.examples, advance)
    result = evaluate_scores(lists, options.metrics)
    rows = {"model": result.row}
    if result.first_stage_row is not None:
        rows = {"first stage": result.first_stage_row, **rows}
    title = f"{result.queries} queries, {result.documents} documents"
    if result.without_positive:
        title += f"; {result.without_positive} queries without a positive are left out of the means"
    console.print(metrics_table(rows, title))
    report_truncation(reranker.truncated, reranker)
    if options.output is not None:
        folder = Path(options.output)
        result.save_json(folder / "metrics.json")
        write_trec_run(folder / "run.trec", lists)
        written = "metrics.json, run.trec"
        if all(float(y).is_integer() for scored in lists for y in scored.example.labels):
            write_qrels(folder / "qrels.txt", lists)
            written += ", qrels.txt"
        else:
            console.print("no qrels.txt: TREC's judgements are whole numbers, these labels are not")
        console.print(f"written to {folder}: {written}")
    return 0
