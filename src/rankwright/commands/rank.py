"""``rankwright rank``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.commands.common import load_reranker, own, parse, report_truncation, writer
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
    top_k: int | None = dataclasses.field(default=None, metadata={"help": "documents to return"})
    probability: bool = dataclasses.field(
        default=False, metadata={"help": "print sigmoid(score) instead of the logit"}
    )
    batch_tokens: int | None = dataclasses.field(
        default=None,
        metadata={"help": "tokens scored at a time; default: 4096 on a CPU, 16384 elsewhere"},
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import ModelArguments, PassageArguments

    return [RankArguments, ModelArguments, PassageArguments]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    given = parse("rank", types(), words)
    options = own(RankArguments, given)
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
        reranker = load_reranker(given, options.batch_tokens)
        ranked = reranker.rank(options.query, documents, options.top_k)
        with writer(options.output) as out:
            for place, document in enumerate(ranked, 1):
                score = _sigmoid(document.score) if options.probability else document.score
                if options.output is None:
                    print(
                        f"{place:>3}  {score:9.4f}  [{document.index}] {document.document}",
                        file=out,
                    )
                else:
                    entry = {"index": document.index, "score": score, "document": document.document}
                    if document.passage is not None:
                        entry["passage"] = document.passage
                    print(json.dumps(entry, ensure_ascii=False), file=out)
        report_truncation(reranker.truncated, reranker)
        return 0
    return _rank_stream(given, options)


def _rank_stream(given: dict[str, Any], options: Any) -> int:
    from rankwright.data.readers import iter_queries
    from rankwright.progress import tracked

    examples: Iterable[Any] = iter_queries(options.input)
    reranker = load_reranker(given, options.batch_tokens)
    with tracked("ranking", None) as advance, writer(options.output, options.input) as out:
        for scored in reranker.iter_scores(examples, advance):
            results = []
            for i in scored.order[: options.top_k]:
                score = _sigmoid(scored.scores[i]) if options.probability else scored.scores[i]
                entry = {"index": i, "score": score, "document": scored.example.documents[i]}
                if scored.passage(i) is not None:
                    entry["passage"] = scored.passage(i)
                results.append(entry)
            line: dict[str, Any] = {"query": scored.example.query, "results": results}
            if scored.example.query_id:
                line = {"query_id": scored.example.query_id, **line}
            print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    report_truncation(reranker.truncated, reranker)
    return 0


def _sigmoid(score: float) -> float:
    import math

    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


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
