"""``rankwright evaluate``."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwright.arguments import check_alone, check_output_file, check_read_by_all
from rankwright.commands.common import (
    RowArguments,
    ScoringArguments,
    load_reranker,
    load_rows,
    make_folder,
    model_arguments,
    own,
    parse,
    report_cuts,
    report_truncation,
)
from rankwright.errors import ConfigError

if TYPE_CHECKING:
    from rankwright.data.readers import FirstStage
    from rankwright.evaluation import EvaluationResult


@dataclass
class EvaluateArguments:
    """What to measure."""

    dataset: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "files, folders or hub ids of rows"}
    )
    metrics: list[str] = dataclasses.field(
        default_factory=lambda: ["ndcg@10", "mrr@10", "map"],
        metadata={
            "help": "mrr, ndcg, map, precision, recall, hit, each with @k; or RR, nDCG, AP, P, R, S"
        },
    )
    mteb_tasks: list[str] = dataclasses.field(
        default_factory=list,
        metadata={
            "help": "tasks or benchmarks of mteb in place of --dataset, such as SciDocsRR or "
            "NanoBEIR; their prompts are the instructions, unless --instructions gives others"
        },
    )
    first_stage: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "where candidates come from: bm25, or a TREC run for a BEIR folder (default: "
            "the run that it holds, else its judged documents), or a folder of mteb's predictions "
            "for --mteb_tasks (default: the task's own, else bm25)"
        },
    )
    top_k: int = dataclasses.field(
        default=100, metadata={"help": "candidates of a query that --first_stage gives"}
    )
    output: str | None = dataclasses.field(
        default=None, metadata={"help": "folder for metrics.json, run.trec and qrels.txt"}
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import BadRowArguments, ModelArguments, PassageArguments

    return [
        EvaluateArguments,
        RowArguments,
        BadRowArguments,
        ScoringArguments,
        ModelArguments,
        PassageArguments,
    ]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    given = parse("evaluate", types(), words)
    options = own(EvaluateArguments, given)
    if not options.dataset and not options.mteb_tasks:
        raise ConfigError("--dataset is missing; give rows to evaluate on, or --mteb_tasks")
    if options.dataset and options.mteb_tasks:
        raise ConfigError("--dataset and --mteb_tasks exclude each other; give one")
    if options.top_k < 1:
        raise ConfigError(f"--top_k {options.top_k} is less than 1")
    from rankwright.data.readers import named_paths
    from rankwright.evaluation import Evaluation, TrecFiles
    from rankwright.metrics import parse_metrics
    from rankwright.progress import console, tracked
    from rankwright.shares import score_lists, several

    options.metrics = " ".join(options.metrics).replace(",", " ").split()
    parse_metrics(options.metrics)
    if options.output is not None:
        # before the ranking, which may take hours
        make_folder(options.output)
    if options.mteb_tasks:
        check_alone("evaluate --mteb_tasks")
        return _run_tasks(given, options)
    check_read_by_all(options.dataset)
    rows_file = None
    if options.output is not None:
        rows_file = Path(options.output) / "rows.jsonl"
        read = named_paths([*options.dataset, *filter(None, [options.first_stage])])
        for name in ("metrics.json", "run.trec", "qrels.txt"):
            check_output_file("output", str(rows_file.with_name(name)), read)
    examples = load_rows(options.dataset, given, _first_stage(options), output=rows_file)
    evaluation = Evaluation(options.metrics)
    with several() as processes:
        reranker = load_reranker(given)
        # the lists come to the first process
        writes = options.output is not None and not processes.rank
        with TrecFiles.into(Path(options.output)) if writes else nullcontext() as trec:
            with tracked("ranking", len(examples)) as advance:
                for scored in score_lists(
                    reranker, examples, processes=processes, progress=advance
                ):
                    evaluation.add(scored)
                    if trec is not None:
                        trec.add(scored)
            if not processes.rank:
                result = evaluation.result()
                _print(result)
            report_cuts(reranker, processes)
            if trec is not None:
                folder = Path(options.output)
                result.save_json(folder / "metrics.json")
                written = ["metrics.json", *trec.write()]
                if "qrels.txt" not in written:
                    console.print(
                        "no qrels.txt: TREC's judgements are whole numbers, these labels are not"
                    )
                console.print(f"written to {folder}: {', '.join(written)}")
        # or a launcher ends the first one when another is done
        processes.wait()
    return 0


def _print(result: EvaluationResult) -> None:
    from rankwright.evaluation import metrics_table
    from rankwright.progress import console

    rows = {"model": result.row}
    if result.first_stage_row is not None:
        rows = {"first stage": result.first_stage_row, **rows}
    title = f"{result.queries} queries, {result.documents} documents"
    if result.missed:
        title += f"; {result.missed} relevant documents are no candidates and count as not found"
    if result.without_positive:
        title += f"; {result.without_positive} queries without a positive are left out of the means"
    console.print(metrics_table(rows, title))


def _first_stage(options: EvaluateArguments) -> FirstStage | None:
    """Where the candidates of a BEIR folder come from; None for what lies in it."""
    if options.first_stage is None:
        return None
    from rankwright.data.readers import run_file

    path = Path(options.first_stage).expanduser()
    if path.is_file():
        return run_file(path, options.top_k)
    if options.first_stage != "bm25":
        raise ConfigError(
            f"--first_stage {options.first_stage} is no file; give bm25, or a TREC run of the BEIR "
            "folder's queries"
        )
    from rankwright.retrieval import bm25_first_stage

    return bm25_first_stage(options.top_k)


def _run_tasks(given: dict[str, Any], options: Any) -> int:
    """Evaluate on tasks of mteb."""
    rows = own(RowArguments, given)
    for name in ("data_format", "split", "on_bad_row", "max_bad_rows"):
        if name in given:
            raise ConfigError(f"--{name} goes with --dataset; tasks of mteb know theirs")
    from rankwright.evaluation import metrics_table, write_json
    from rankwright.mteb_tasks import evaluate_tasks, find_tasks
    from rankwright.progress import console, tracked

    tasks = find_tasks(options.mteb_tasks)
    reranker = load_reranker(given)
    model = model_arguments(given)
    folder = Path(model.model)
    results = evaluate_tasks(
        reranker,
        tasks,
        options.metrics,
        model_name=f"rankwright/{folder.resolve().name}" if folder.exists() else model.model,
        revision=model.revision,
        instructions=rows.instructions,
        first_stage=options.first_stage,
        top_k=options.top_k,
        output=None if options.output is None else Path(options.output),
        progress=lambda name: tracked(f"ranking {name}", None),
    )
    table: dict[str, dict[str, float]] = {}
    for result in results:
        if result.ours.first_stage_row is not None:
            table[f"{result.name}: first stage"] = result.ours.first_stage_row
        table[result.name] = {f"mteb {result.main_score}": result.value, **result.ours.row}
    console.print(metrics_table(table, "Scores of mteb, and ours (ties by expectation)"))
    report_truncation(reranker.truncated, reranker)
    if options.output is not None:
        found = [
            {
                "task": result.task,
                "subset": result.subset,
                "split": result.split,
                "instruction": result.instruction,
                "main_score": result.main_score,
                "mteb": result.scores,
                "rankwright": result.ours.to_dict(),
            }
            for result in results
        ]
        write_json(Path(options.output) / "metrics.json", found)
        console.print(
            f"written to {options.output}: metrics.json; mteb's own files in results and "
            "predictions"
        )
    return 0
