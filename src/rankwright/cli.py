"""The command line: parse, call, exit code.

Exit codes: 0 done, 2 a user's mistake (one line on standard error), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rankwright.errors import ConfigError, DataError, RankwrightError

USAGE = """\
rankwright - train, evaluate and run text rerankers

usage: rankwright COMMAND [arguments]

commands:
  quickstart   train a small reranker on this machine, on real rows, without any hub
  train        train:     rankwright train --model M --dataset rows.jsonl --output_dir output
  evaluate     measure:   rankwright evaluate --model output --dataset test.jsonl
  rank         use:       rankwright rank --model output --query "..." --documents docs.txt
  check        look at rows and models before training: rankwright check rows.jsonl --model M

rankwright COMMAND --help lists the command's arguments. rankwright --version prints the version.
"""


@dataclass
class EvaluateArguments:
    """What to measure."""

    dataset: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "files, folders or hub ids of rows"}
    )
    data_format: str | None = dataclasses.field(
        default=None, metadata={"help": "name of the row layout; default: by columns"}
    )
    split: str | None = dataclasses.field(
        default=None, metadata={"help": "which files of a folder or hub dataset"}
    )
    metrics: list[str] = dataclasses.field(
        default_factory=lambda: ["ndcg@10", "mrr@10", "map"],
        metadata={"help": "mrr, ndcg, map, precision, recall, hit, each with @k"},
    )
    batch_tokens: int | None = dataclasses.field(
        default=None,
        metadata={"help": "tokens scored at a time; default: 4096 on a CPU, 16384 elsewhere"},
    )
    output: str | None = dataclasses.field(
        default=None, metadata={"help": "folder for metrics.json, run.trec and qrels.txt"}
    )


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
    top_k: int | None = dataclasses.field(default=None, metadata={"help": "documents to return"})
    probability: bool = dataclasses.field(
        default=False, metadata={"help": "print sigmoid(score) instead of the logit"}
    )
    batch_tokens: int | None = dataclasses.field(
        default=None,
        metadata={"help": "tokens scored at a time; default: 4096 on a CPU, 16384 elsewhere"},
    )


@dataclass
class CheckArguments:
    """What to look at."""

    dataset: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "files, folders or hub ids of rows"}
    )
    val_dataset: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "validation rows, to look for leaks"}
    )
    data_format: str | None = dataclasses.field(
        default=None, metadata={"help": "name of the row layout; default: by columns"}
    )


@dataclass
class QuickstartArguments:
    """The quickstart."""

    model: str | None = dataclasses.field(
        default=None, metadata={"help": "base model; default: the packaged all-MiniLM-L6-v2"}
    )
    output_dir: str = dataclasses.field(
        default="quickstart", metadata={"help": "folder for the rows and the model"}
    )
    seed: int = dataclasses.field(default=42, metadata={"help": "of the split and the training"})
    max_steps: int = dataclasses.field(
        default=-1, metadata={"help": "stop after so many steps; default: the whole run"}
    )
    overwrite: bool = dataclasses.field(
        default=False, metadata={"help": "replace what the folder holds"}
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words, default the process's.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from rankwright import __version__

        print(f"rankwright {__version__}")
        return 0
    command = COMMANDS.get(words[0])
    try:
        if command is None:
            raise _unknown_command(words[0])
        if "-h" in words or "--help" in words:
            _print_help(words[0])
            return 0
        _quiet()
        return command(words[1:])
    except RankwrightError as error:
        print(f"rankwright: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader of our output has gone; keep the interpreter from complaining on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        print(f"rankwright: {error or 'stopped'}", file=sys.stderr)
        return 130


def _unknown_command(name: str) -> ConfigError:
    import difflib

    near = difflib.get_close_matches(name, list(COMMANDS), n=1)
    hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
    return ConfigError(f"{name!r} is not a command; {hint} from {', '.join(COMMANDS)}")


def _quiet() -> None:
    """Leave the screen to our own lines; warnings and errors of the libraries still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # threads that spin while they wait cost up to ten times on a machine that has other work, and
    # five per cent else
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(level=logging.WARNING, format="rankwright: %(message)s", stream=sys.stderr)
    logging.getLogger("rankwright").setLevel(logging.INFO)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _parse(command: str, types: Sequence[type], words: list[str], **options: Any) -> dict[str, Any]:
    from rankwright import arguments

    return arguments.parse(f"rankwright {command}", types, words, **options)


def _types(command: str) -> list[type]:
    """The dataclasses whose fields are a command's own arguments."""
    from rankwright import arguments as room

    types: dict[str, list[type]] = {
        "quickstart": [QuickstartArguments],
        "train": list(room.GROUPS),
        "evaluate": [EvaluateArguments, room.ModelArguments],
        "rank": [RankArguments, room.ModelArguments],
        "check": [CheckArguments, room.ModelArguments],
    }
    return types[command]


def _print_help(command: str) -> None:
    """Print a command's arguments; nothing that takes long to import is needed for it."""
    types = _types(command)
    print(f"usage: rankwright {command} {HELP[command]}\n")
    for group in types:
        print(f"{(group.__doc__ or group.__name__).strip().splitlines()[0]}")
        for f in dataclasses.fields(group):
            text = str(f.metadata.get("help", "")).split("\n")[0]
            default = _default(f)
            print(f"  --{f.name:<34} {text}{f' (default {default})' if default else ''}")
        print()
    if command == "train":
        print("All arguments of transformers.TrainingArguments work too, such as --learning_rate,")
        print("--num_train_epochs, --per_device_train_batch_size (queries), --bf16, --report_to.")


def _default(f: dataclasses.Field[Any]) -> str:
    value = f.default
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
    if value is None or value == [] or value == "":
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _train(words: list[str]) -> int:
    from transformers import TrainingArguments

    from rankwright import arguments as room

    types = [*_types("train"), TrainingArguments]
    given = room.parse("rankwright train", types, words, recipe=True)
    resolved = room.resolve(given)
    from rankwright.evaluation import metrics_table
    from rankwright.progress import console
    from rankwright.trainer import train

    result = train(resolved)
    if result.after is not None:
        rows = {
            "first stage": result.after.first_stage_row,
            "before training": result.before.row if result.before is not None else None,
            "after training": result.after.row,
        }
        console.print(metrics_table({name: row for name, row in rows.items() if row is not None}))
    console.print(
        f"{result.steps} steps in {result.seconds:.0f} s, mean loss {result.train_loss:.4f}; "
        f"saved to {result.output_dir}"
    )
    _report_truncation(result.truncated, result.reranker, " in training")
    return 0


def _report_truncation(counts: dict[str, int], reranker: Any, when: str = "") -> None:
    from rankwright.progress import console

    cut = {name: count for name, count in counts.items() if count}
    if cut:
        parts = " and ".join(f"{count} {name}" for name, count in cut.items())
        console.print(
            f"{parts} were cut at {reranker.loaded.spec.max_length} tokens{when}; "
            "raise --max_length to keep more"
        )


def _model_arguments(given: dict[str, Any]) -> Any:
    """What was given about the model, above what the environment says of it."""
    from rankwright import arguments as room

    environment = room.from_environment(os.environ, "")
    if (Path(str(given.get("model", ""))) / "rankwright.json").is_file():
        # a checkpoint of ours knows its tokens; a variable left over must not change its scores
        environment = {name: value for name, value in environment.items() if name == "use_hf"}
    return _own(room.ModelArguments, {**environment, **given})


def _reranker(given: dict[str, Any], batch_tokens: int | None) -> Any:
    from rankwright import arguments as room
    from rankwright.ranking import Reranker

    model = _model_arguments(given)
    room.check_model_arguments(model)
    return Reranker.load(model.model, batch_tokens=batch_tokens, **room.load_options(model))


def _evaluate(words: list[str]) -> int:

    given = _parse("evaluate", _types("evaluate"), words)
    options = _own(EvaluateArguments, given)
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
        _make_folder(options.output)
    data = load_examples(
        options.dataset,
        data_format=options.data_format,
        split=options.split,
        use_hf=_model_arguments(given).use_hf,
        purpose="eval",
    )
    _report_dropped(data.report.dropped)
    reranker = _reranker(given, options.batch_tokens)
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
    _report_truncation(reranker.truncated, reranker)
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


def _own(kind: Callable[..., Any], given: dict[str, Any]) -> Any:
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if name in names})


def _report_dropped(dropped: dict[str, int]) -> None:
    from rankwright.progress import console

    if dropped:
        console.print("left out: " + ", ".join(f"{n} x {reason}" for reason, n in dropped.items()))


def _rank(words: list[str]) -> int:

    given = _parse("rank", _types("rank"), words)
    options = _own(RankArguments, given)
    one = options.query is not None or options.documents is not None
    if one == (options.input is not None):
        raise ConfigError(
            "give --query with --documents FILE, or --input FILE of {query, documents} lines"
        )
    if options.top_k is not None and options.top_k < 1:
        raise ConfigError(f"--top_k {options.top_k} is less than 1")
    if one and (options.query is None or options.documents is None):
        raise ConfigError("--query and --documents belong together; give both")
    if one:
        documents = _read_documents(Path(options.documents))
        reranker = _reranker(given, options.batch_tokens)
        ranked = reranker.rank(options.query, documents, options.top_k)
        with _writer(options.output) as out:
            for place, document in enumerate(ranked, 1):
                score = _sigmoid(document.score) if options.probability else document.score
                if options.output is None:
                    print(
                        f"{place:>3}  {score:9.4f}  [{document.index}] {document.document}",
                        file=out,
                    )
                else:
                    entry = {"index": document.index, "score": score, "document": document.document}
                    print(json.dumps(entry, ensure_ascii=False), file=out)
        return 0
    return _rank_stream(given, options)


def _rank_stream(given: dict[str, Any], options: Any) -> int:
    from rankwright.data.readers import iter_queries
    from rankwright.progress import tracked

    examples: Iterable[Any] = iter_queries(options.input)
    reranker = _reranker(given, options.batch_tokens)
    with tracked("ranking", None) as advance, _writer(options.output, options.input) as out:
        for scored in reranker.iter_scores(examples, advance):
            order = sorted(range(len(scored.scores)), key=lambda i: -scored.scores[i])
            results = []
            for i in order[: options.top_k]:
                score = _sigmoid(scored.scores[i]) if options.probability else scored.scores[i]
                results.append(
                    {"index": i, "score": score, "document": scored.example.documents[i]}
                )
            line: dict[str, Any] = {"query": scored.example.query, "results": results}
            if scored.example.query_id:
                line = {"query_id": scored.example.query_id, **line}
            print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    return 0


def _sigmoid(score: float) -> float:
    import math

    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def _make_folder(output: str) -> None:
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error


def _writer(output: str | None, source: str | None = None) -> Any:
    """Standard output, or a file that takes its name only when it is whole."""
    if output is None:
        return nullcontext(sys.stdout)
    if source is not None and Path(output).exists() and Path(source).exists():
        same = os.path.samefile(source, output)
        if same:
            raise ConfigError(f"--output {output} is the input; name another file")
    return _whole_file(Path(output))


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", encoding="utf-8") as handle:
            yield handle
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written: {error.strerror}") from error


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
        except ValueError as error:
            raise DataError(f"{path}:{number}: broken JSON ({error}); correct the line") from error
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise DataError(
                f'{path}:{number}: expected a text or {{"text": ...}}; correct the line'
            )
        yield text


def _check(words: list[str]) -> int:

    files = []
    while words and not words[0].startswith("-"):
        files.append(words.pop(0))
    if files:
        words = ["--dataset", *files, *words]
    given = _parse("check", _types("check"), words)
    options = _own(CheckArguments, given)
    model = _model_arguments(given)
    if not options.dataset and not model.model:
        raise ConfigError(
            "give rows to look at, --model, or both: rankwright check rows.jsonl --model M"
        )
    from rankwright.check import check_model, check_rows

    if model.model:
        check_model(model)
    if options.dataset:
        check_rows(options.dataset, options.val_dataset, options.data_format, model)
    return 0


def _quickstart(words: list[str]) -> int:
    options = _own(QuickstartArguments, _parse("quickstart", _types("quickstart"), words))
    from rankwright.quickstart import quickstart

    quickstart(
        model=options.model,
        output_dir=Path(options.output_dir),
        seed=options.seed,
        max_steps=options.max_steps,
        overwrite=options.overwrite,
    )
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "quickstart": _quickstart,
    "train": _train,
    "evaluate": _evaluate,
    "rank": _rank,
    "check": _check,
}

HELP = {
    "quickstart": "[--model M] [--output_dir DIR] [--seed N]",
    "train": "[recipe.yaml] --model M --dataset FILE ... [arguments]",
    "evaluate": "--model M --dataset FILE ... [arguments]",
    "rank": "--model M (--query Q --documents FILE | --input FILE) [arguments]",
    "check": "[FILE ...] [--model M] [arguments]",
}
