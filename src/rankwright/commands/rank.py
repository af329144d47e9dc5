"""``rankwright rank``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.arguments import check_output_file, check_read_by_all, process_numbers
from rankwright.commands.common import (
    RowArguments,
    ScoringArguments,
    bad_rows_policy,
    load_reranker,
    model_arguments,
    own,
    parse,
    report_cuts,
    report_dropped,
    report_refused,
    writer,
)
from rankwright.errors import ConfigError, DataError


@dataclass
class RankArguments:
    """What to rank."""

    query: str | None = dataclasses.field(default=None, metadata={"help": "one query"})
    documents: str | None = dataclasses.field(
        default=None,
        metadata={"help": "its documents: a text file, one a line, or .jsonl of texts or {text}"},
    )
    input: str | None = dataclasses.field(
        default=None,
        metadata={"help": "JSONL of {query, documents} instead; - for standard input"},
    )
    output: str | None = dataclasses.field(
        default=None, metadata={"help": "where JSONL goes; default standard output"}
    )
    dataset: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "with --write_scores: files, folders or hub ids of training rows"},
    )
    write_scores: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "JSONL for the rows of --dataset with this model's logits as teacher_scores, "
            "to train another on with --loss_type kl; a run that was stopped goes on where it was"
        },
    )
    top_k: int | None = dataclasses.field(default=None, metadata={"help": "documents to return"})
    probability: bool = dataclasses.field(
        default=False, metadata={"help": "print sigmoid(score) instead of the logit"}
    )
    calibrated: bool = dataclasses.field(
        default=False,
        metadata={"help": "print probabilities by the calibration that the model was saved with"},
    )
    threshold: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "keep documents at or above: a number on the scale that is printed, or a goal "
            "that the model was calibrated for, such as precision@0.9 or recall@0.95"
        },
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import BadRowArguments, ModelArguments, PassageArguments

    return [
        RankArguments,
        RowArguments,
        BadRowArguments,
        ScoringArguments,
        ModelArguments,
        PassageArguments,
    ]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    given = parse("rank", types(), words)
    options = own(RankArguments, given)
    one = options.query is not None or options.documents is not None
    if options.dataset or options.write_scores is not None:
        return _write_scores(given, options, others=one or options.input is not None)
    if one == (options.input is not None):
        raise ConfigError(
            "give --query with --documents FILE, or --input FILE of {query, documents} lines"
        )
    if own(RowArguments, given) != RowArguments():
        raise ConfigError(
            "--instructions, --data_format and --split are of the rows of --dataset; lines of "
            "--input have their own instruction, others take --instruction"
        )
    if options.top_k is not None and options.top_k < 1:
        raise ConfigError(f"--top_k {options.top_k} is less than 1")
    if one and (options.query is None or options.documents is None):
        raise ConfigError("--query and --documents belong together; give both")
    for name in ("on_bad_row", "max_bad_rows"):
        if one and name in given:
            raise ConfigError(
                f"--{name} is of the lines of --input and of the rows of --dataset, and there are "
                "none; leave it out"
            )
    number = _number(options.threshold)
    if process_numbers()[1] > 1 and (options.output is None or options.input in (None, "-")):
        raise ConfigError(
            "several processes share the rows of a file: give --input FILE and --output FILE, or "
            "start one process"
        )
    check_read_by_all([] if options.input is None else [options.input])
    if options.output is not None:
        from rankwright.data.readers import refused_file

        source, output = Path(options.documents if one else options.input), Path(options.output)
        check_output_file(
            "output",
            options.output,
            [source],
            beside=[] if one else [refused_file(output)],
            piece_by_piece=not one,
        )
    documents = _read_documents(Path(options.documents)) if one else None
    from rankwright.shares import several

    bad_rows = bad_rows_policy(given)
    with several() as processes:
        reranker = load_reranker(given)
        edge = _Edge(reranker, options, number)
        if documents is not None:
            _rank_one(reranker, options, edge, documents)
        elif options.output is None:
            _rank_stream(reranker, options, edge, bad_rows)
        else:
            _rank_file(reranker, given, options, edge, processes, bad_rows)
        edge.report(processes)
        report_cuts(reranker, processes)
    if documents is None:
        report_refused(bad_rows, None if options.output is None else Path(options.output))
    return 0


def _write_scores(given: dict[str, Any], options: Any, *, others: bool) -> int:
    """Write rows back with a teacher's scores."""
    if not options.dataset or options.write_scores is None:
        raise ConfigError("--dataset and --write_scores belong together; give both")
    if others or options.output is not None:
        raise ConfigError(
            "--write_scores writes the rows of --dataset; leave out --query, --documents, --input "
            "and --output"
        )
    if options.probability or options.calibrated or options.threshold or options.top_k:
        raise ConfigError(
            "--write_scores writes the logits of all documents; leave out --probability, "
            "--calibrated, --threshold and --top_k"
        )
    from rankwright.arguments import DataArguments, cache_folder
    from rankwright.data.readers import refused_file, source_files
    from rankwright.data.store import ExampleStore, load_store
    from rankwright.progress import console, tracked
    from rankwright.shares import several
    from rankwright.teacher import write_scores

    check_read_by_all(options.dataset)
    path, model = Path(options.write_scores), model_arguments(given)
    read_files, _ = source_files(options.dataset, use_hf=model.use_hf)
    check_output_file(
        "write_scores",
        options.write_scores,
        read_files,
        beside=[refused_file(path)],
        piece_by_piece=True,
    )
    read = own(RowArguments, given)
    bad_rows = bad_rows_policy(given)
    data = load_store(
        options.dataset,
        cache_folder(DataArguments()),
        instructions=read.instructions or None,
        data_format=read.data_format,
        split=read.split,
        use_hf=model.use_hf,
        bad_rows=bad_rows,
    )
    report_dropped(data.report.dropped)
    report_refused(bad_rows, path)
    rows, key = len(data.examples), None
    if isinstance(data.examples, ExampleStore):
        key = _key(given, data.examples.folder.name, path)
    with several() as processes:
        reranker = load_reranker(given)
        try:
            with tracked("scoring", rows if processes.world == 1 else None) as advance:
                done = write_scores(
                    reranker, data.examples, path, key=key, processes=processes, progress=advance
                )
        except OSError as error:
            raise ConfigError(
                f"--write_scores {path} cannot be written: {error.strerror}"
            ) from error
        report_cuts(reranker, processes)
        (done,) = processes.totals([done])
    console.print(f"{rows} rows with teacher_scores written to {path}{_again(done)}")
    return 0


def _key(given: dict[str, Any], rows: Any, output: Path) -> list[Any]:
    """What a line depends on: the code, the rows, the files of the model and the arguments."""
    from rankwright import __version__
    from rankwright.data.readers import file_stamp, refused_file
    from rankwright.hub import resolve_model

    model = model_arguments(given)
    folder = resolve_model(model.model, use_hf=model.use_hf, revision=model.revision)
    # what this run writes there is no part of the model, nor are the lines that grow
    output = Path(os.path.realpath(output))
    written = (output, refused_file(output))
    stamps = [
        file_stamp(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not file.name.startswith(".")
        and Path(os.path.realpath(file)) not in written
    ]
    known = {name: value for name, value in given.items() if name != "batch_tokens"}
    return [__version__, rows, stamps, known]


def _again(done: int) -> str:
    return f", {done} of them by the run that was stopped" if done else ""


def _number(threshold: str | None) -> float | None:
    """The number of ``--threshold``; None for a goal."""
    if threshold is None or "@" in threshold:
        return None
    try:
        number = float(threshold)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ConfigError(
            f"--threshold {threshold!r} is neither a number nor a goal such as precision@0.9"
        )
    return number


class _Edge:
    """What is printed of scores, and which documents are."""

    def __init__(self, reranker: Any, options: Any, number: float | None) -> None:
        self.reranker, self.options, self.number = reranker, options, number
        named = options.threshold is not None and number is None
        self.score = reranker.threshold(options.threshold) if named else None
        # documents that were left out, and all
        self.counts = [0, 0]
        if options.calibrated:
            reranker.probabilities([], calibrated=True)  # says at once that there is none

    def shown(self, scores: list[float]) -> list[float]:
        """The numbers to print."""
        if self.options.calibrated or self.options.probability:
            found: list[float] = self.reranker.probabilities(
                scores, calibrated=self.options.calibrated
            )
            return found
        return scores

    def kept(self, scores: list[float], shown: list[float]) -> int:
        """How many of the documents, best first, are at or above the threshold."""
        kept = len(scores)
        if self.score is not None:
            kept = sum(score >= self.score for score in scores)
        elif self.number is not None:
            kept = sum(value >= self.number for value in shown)
        self.counts[0] += len(scores) - kept
        self.counts[1] += len(scores)
        return kept

    def report(self, processes: Any) -> None:
        """Say how many documents the threshold left out."""
        from rankwright.progress import console

        left_out, seen = processes.totals(self.counts)
        if left_out:
            console.print(
                f"{left_out} of {seen} documents are below the threshold "
                f"{self.options.threshold} and left out"
            )


def _rank_one(reranker: Any, options: Any, edge: _Edge, documents: list[str]) -> None:
    ranked = reranker.rank(options.query, documents)
    scores = [document.score for document in ranked]
    shown = edge.shown(scores)
    kept = edge.kept(scores, shown)
    with writer(options.output) as out:
        for place, document in enumerate(ranked[:kept][: options.top_k]):
            if options.output is None:
                print(
                    f"{place + 1:>3}  {shown[place]:9.4f}  [{document.index}] {document.document}",
                    file=out,
                )
            else:
                entry = _entry(document.index, shown[place], document.document, document.passage)
                print(json.dumps(entry, ensure_ascii=False), file=out)


def _rank_stream(reranker: Any, options: Any, edge: _Edge, bad_rows: Any) -> None:
    from rankwright.data.readers import iter_queries
    from rankwright.progress import tracked

    with tracked("ranking", None) as advance:
        for scored in reranker.iter_scores(iter_queries(options.input, bad_rows), advance):
            print(_line(scored, options, edge), flush=True)


def _rank_file(
    reranker: Any,
    given: dict[str, Any],
    options: Any,
    edge: _Edge,
    processes: Any,
    bad_rows: Any,
) -> None:
    from rankwright.data.readers import file_stamp, iter_queries
    from rankwright.progress import console, tracked
    from rankwright.shares import write_lines

    source, output = Path(options.input), Path(options.output)
    # what comes down a pipe cannot be read again
    key = _key(given, file_stamp(source), output) if source.is_file() else None
    try:
        with tracked("ranking", None) as advance:
            done = write_lines(
                reranker,
                iter_queries(options.input, bad_rows),
                output,
                lambda scored: _line(scored, options, edge),
                key=key,
                counts=edge.counts,
                processes=processes,
                progress=advance,
            )
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error
    (done,) = processes.totals([done])
    if done:
        console.print(f"{done} queries were ranked by the run that was stopped")


def _line(scored: Any, options: Any, edge: _Edge) -> str:
    """A query with its documents, best first, as JSON."""
    scores = [scored.scores[i] for i in scored.order]
    shown = edge.shown(scores)
    best = scored.order[: edge.kept(scores, shown)][: options.top_k]
    results = [
        _entry(i, shown[place], scored.example.documents[i], scored.passage(i))
        for place, i in enumerate(best)
    ]
    line: dict[str, Any] = {"query": scored.example.query, "results": results}
    if scored.example.query_id:
        line = {"query_id": scored.example.query_id, **line}
    return json.dumps(line, ensure_ascii=False)


def _entry(
    index: int, score: float, document: str, passage: tuple[int, int] | None
) -> dict[str, Any]:
    entry: dict[str, Any] = {"index": index, "score": score, "document": document}
    return entry if passage is None else {**entry, "passage": passage}


def _read_documents(path: Path) -> list[str]:
    """Texts of a file: one a line, or JSONL of texts or objects with ``text``."""
    try:
        # splitlines would also cut at form feeds and Unicode line separators within a text
        lines = path.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise DataError(f"--documents {path}: {error.strerror}; give a file of texts") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--documents {path} is not UTF-8; convert it") from error
    documents = list(_texts(path, lines))
    if not documents:
        raise DataError(f"--documents {path} holds no text; give one document a line")
    return documents


def _texts(path: Path, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            yield line
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: broken JSON ({error}); correct the line") from error
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise DataError(
                f'{path}:{number}: expected a text or {{"text": ...}}; correct the line'
            )
        yield text
