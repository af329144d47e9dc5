"""From a corpus to a server: every step a command of rankwright, printed as one would type it.

    python examples/lifecycle/corpus_to_server.py medquad --output lifecycle

DATA is a folder with ``train.jsonl`` and ``dev.jsonl`` (or ``.jsonl.gz``), rows of queries with
positives and negatives in any layout that Rankwright reads. Only the queries, their positives and
all documents as the corpus are used; the negatives are mined anew. The README beside this file says
what each step does and what came out.

**No held-out query leaks.** The queries of ``dev`` are validation and test. A training query is
left out if it asks for the same as one of them, once the words that every fiftieth query has
("what", "symptoms") are taken away, or if half of an answer of its own, in runs of eight words,
also stands in one of theirs. No held-out answer is searched for negatives of training. Held-out
lists are what BM25 finds in the whole corpus; where it finds no answer there is nothing to rank,
and the list is counted and left out of the means.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rankwright import Example, cli, load_examples
from rankwright.data.readers import read_trec_run
from rankwright.progress import console
from rankwright.stdlib_rows import packaged_minilm


@dataclass(frozen=True)
class Size:
    """How much of the data is used, and how long is trained; ``FULL`` fits 12 minutes of 2 cores.

    Attributes:
        train: queries that the teacher learns from.
        distil: other queries, whose candidates the teacher scores for the student.
        validation: held-out queries for the report and the calibration.
        test: held-out queries for everything that is compared.
        candidates: documents of a held-out list, the first of BM25.
        negatives: of a training query, drawn from as many.
        teacher_steps: optimiser steps of ``queries`` queries.
        student_steps: the same for the student.
        queries: of a step.
        teacher_length: tokens of a pair that the teacher reads: about half of an answer.
        student_length: the same for the student, which is faster by as much.
        corpus: whether all documents are searched, or those of the chosen queries alone.
        forms: what is exported.
    """

    train: int = 1280
    distil: int = 320
    validation: int = 64
    test: int = 150
    candidates: int = 20
    negatives: int = 7
    teacher_steps: int = 160
    student_steps: int = 40
    queries: int = 8
    teacher_length: int = 80
    student_length: int = 48
    corpus: bool = True
    forms: tuple[str, ...] = ("sentence-transformers", "onnx")


FULL = Size()
DRY_RUN = Size(12, 8, 6, 6, 5, 3, 2, 2, 2, 48, 36, False, ("sentence-transformers",))

# of all queries that have a word which says how is asked, not for what
FORM = 0.02
RUN_OF_WORDS = 8
WORD = re.compile(r"[a-z0-9]+")
# see docs/log.md for what else was tried
RECIPE = ["--dropout", "0", "--warmup_steps", "0.05", "--weight_decay", "0.01"]


class Clock:
    """Wall and processor seconds of each step, its children included."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float]] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Head a step, and time it."""
        say(f"\n== {name}")
        wall, used = time.monotonic(), processor_seconds()
        yield
        self.rows.append((name, time.monotonic() - wall, processor_seconds() - used))

    def report(self) -> None:
        """Print all steps and their sum."""
        total = ("total", sum(row[1] for row in self.rows), sum(row[2] for row in self.rows))
        for name, wall, used in [*self.rows, total]:
            say(f"{name:<12} {wall:6.0f} s, {used:6.0f} s of processors")


def processor_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def say(text: str) -> None:
    """Print a line where Rankwright prints its own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def rankwright(*words: object) -> None:
    """Run a command of Rankwright in this process."""
    given = [str(word) for word in words]
    say(f"$ rankwright {shlex.join(given)}")
    if code := cli.main(given):
        raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> None:
    """Go from the corpus to the server."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train.jsonl and dev.jsonl (or .gz)")
    parser.add_argument("--output", type=Path, default=Path("lifecycle"), help="a new folder")
    parser.add_argument("--model", default=None, help="default: the packaged all-MiniLM-L6-v2")
    parser.add_argument("--dry_run", action="store_true", help="a few rows and steps")
    options = parser.parse_args(argv)
    train, held_out = rows_of(options.data, "train"), rows_of(options.data, "dev")
    out: Path = options.output
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"--output {out} is not empty; choose another or remove it")
    try:
        import cohere  # noqa: F401 - of the last step; better missed before the first one
    except ImportError:
        raise SystemExit("the last step asks with cohere; run: pip install cohere") from None
    size = DRY_RUN if options.dry_run else FULL
    base = options.model or str(packaged_minilm())
    clock = Clock()
    with clock.step("split"):
        split(train, held_out, out / "rows", size)
    with clock.step("mine"):
        mine(out, size)
    with clock.step("check"):
        rankwright(
            *("check", out / "train.jsonl", out / "distil.jsonl"),
            *("--val_dataset", out / "validation.jsonl", out / "test.jsonl"),
            *("--model", base, "--max_length", size.teacher_length),
        )
    with clock.step("before"):
        rankwright(
            *("evaluate", "--model", base, "--max_length", size.teacher_length),
            *("--dataset", out / "test.jsonl", "--output", out / "results" / "before"),
        )
    with clock.step("teacher"):
        rankwright(
            *("train", "--model", base, "--dataset", out / "train.jsonl"),
            *("--loss_type", "listwise", "--max_negative_samples", 4),
            *("--max_length", size.teacher_length, "--max_steps", size.teacher_steps),
            *training(out, size, size.teacher_steps, "2e-4"),
            *("--output_dir", out / "teacher"),
        )
    with clock.step("scores"):
        rankwright(
            *("rank", "--model", out / "teacher", "--dataset", out / "distil.jsonl"),
            *("--write_scores", out / "scored.jsonl"),
        )
    with clock.step("student"):
        rankwright(
            *("train", "--model", out / "teacher", "--dataset", out / "scored.jsonl"),
            *("--loss_type", "kl", "--group", "all"),
            *("--max_length", size.student_length, "--max_steps", size.student_steps),
            *training(out, size, size.student_steps, "5e-5"),
            *("--output_dir", out / "student"),
        )
    with clock.step("compare"):
        compare(out, size)
    with clock.step("calibrate"):
        rankwright(
            *("calibrate", "--model", out / "student", "--dataset", out / "validation.jsonl"),
            *("--recall", 0.9),
        )
    with clock.step("report"):
        for name in ("teacher", "student"):
            rankwright("report", out / name, "--output", out / f"{name}.html")
    with clock.step("export"):
        for form in size.forms:
            rankwright(
                *("export", "--model", out / "student", "--to", form),
                *("--dataset", out / "test.jsonl", "--output", out / form),
            )
    with clock.step("serve, ask"), served(out / "student", out / "teacher") as address:
        ask(address, out)
    say("")
    summary(out)
    clock.report()


def training(out: Path, size: Size, steps: int, rate: str) -> list[object]:
    """What the training of teacher and student have in common."""
    return [
        *("--val_dataset", out / "validation.jsonl", "--eval_steps", steps),
        *("--learning_rate", rate, "--per_device_train_batch_size", size.queries),
        *(*RECIPE, "--save_steps", steps),
    ]


# ---------------------------------------------------------------------------------------- the rows


def rows_of(folder: Path, name: str) -> list[Example]:
    """The rows of a file of the data's folder."""
    for file in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if file.is_file():
            return list(load_examples(file).examples)
    raise SystemExit(
        f"{folder} holds no {name}.jsonl and no {name}.jsonl.gz; give the folder of MedQuAD's "
        "rows, or of others with queries and positives"
    )


def positives(example: Example) -> list[str]:
    """The documents that answer."""
    labelled = zip(example.documents, example.labels, strict=True)
    return [document for document, label in labelled if label > 0]


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """Every run of eight words, whatever their case and signs."""
    words = WORD.findall(text.lower())
    count = max(1, len(words) - RUN_OF_WORDS + 1)
    return {tuple(words[i : i + RUN_OF_WORDS]) for i in range(count)}


def split(train: list[Example], held_out: list[Example], folder: Path, size: Size) -> None:
    """Write the queries of each part and the corpora, without what would leak."""
    rng = random.Random(0)
    rng.shuffle(held_out)
    held_out = held_out[: size.validation + size.test]
    words_of = {e.query: frozenset(WORD.findall(e.query.lower())) for e in [*train, *held_out]}
    counts = Counter(word for words in words_of.values() for word in words)
    form = {word for word, count in counts.items() if count > FORM * len(words_of)}
    asked = {words_of[e.query] - form for e in held_out}
    answers = {text for e in held_out for text in positives(e)}
    held_runs = set().union(*map(runs_of_words, answers))

    def known(text: str) -> bool:
        runs = runs_of_words(text)
        return len(runs & held_runs) > len(runs) / 2

    same_question = [e for e in train if words_of[e.query] - form in asked]
    rest = [e for e in train if words_of[e.query] - form not in asked]
    learnt = [e for e in rest if not any(map(known, positives(e)))]
    say(
        f"{len(train)} training queries: {len(same_question)} left out that ask for what a "
        f"held-out one asks for, {len(rest) - len(learnt)} with an answer that is half a held-out "
        "one"
    )
    rng.shuffle(learnt)
    learnt = learnt[: size.train + size.distil]
    chosen = [*train, *held_out] if size.corpus else [*learnt, *held_out]
    corpus = list(dict.fromkeys(document for e in chosen for document in e.documents))
    searched = [text for text in corpus if text not in answers]
    parts = {
        "train": learnt[: size.train],
        "distil": learnt[size.train :],
        "validation": held_out[: size.validation],
        "test": held_out[size.validation :],
    }
    # the reason for all this, checked on what is written
    assert not answers & {text for e in learnt for text in positives(e)}
    folder.mkdir(parents=True)
    for name, examples in parts.items():
        lines = ({"query": e.query, "positive": positives(e)} for e in examples)
        write(folder / f"{name}.jsonl", lines)
    ids = {text: str(i) for i, text in enumerate(corpus)}
    for name, texts in (("corpus", corpus), ("corpus-train", searched)):
        write(folder / f"{name}.jsonl", ({"_id": ids[text], "text": text} for text in texts))
    found = ", ".join(f"{len(examples)} {name}" for name, examples in parts.items())
    say(f"queries: {found}; {len(corpus)} documents, {len(searched)} to mine negatives from")


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows, one a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def mine(out: Path, size: Size) -> None:
    """Negatives to learn from, and whole lists to measure on."""
    hard = ("--number", size.negatives, "--range_max", size.candidates, "--sampling", "random")
    # the corpus and its index are kept for the second call
    whole = ("--candidates", size.candidates)
    for corpus, names, number in (
        ("corpus-train", ("train", "distil"), hard),
        ("corpus", ("validation", "test"), whole),
    ):
        for name in names:
            rankwright(
                *("mine", "--queries", out / "rows" / f"{name}.jsonl"),
                *("--corpus", out / "rows" / f"{corpus}.jsonl", *number),
                *("--work_dir", out / "mining", "--output", out / f"{name}.jsonl"),
            )


# ------------------------------------------------------------------------------------- the figures

PAIRS = (
    ("first_stage", "before"),
    ("first_stage", "teacher"),
    ("teacher", "cut"),
    ("cut", "student"),
    ("teacher", "student"),
    ("first_stage", "student"),
)


def compare(out: Path, size: Size) -> None:
    """Measure on the test lists, and compare query by query.

    ``cut`` is the teacher itself, reading no more than the student does.
    """
    measured = {
        "teacher": (out / "teacher", size.teacher_length),
        "cut": (out / "teacher", size.student_length),
        "student": (out / "student", size.student_length),
    }
    for name, (model, length) in measured.items():
        rankwright(
            *("evaluate", "--model", model, "--max_length", length),
            *("--dataset", out / "test.jsonl", "--output", out / "results" / name),
        )
    for a, b in PAIRS:
        rankwright(
            "compare",
            *(n if n == "first_stage" else out / "results" / n / "run.trec" for n in (a, b)),
            *("--dataset", out / "test.jsonl", "--show", int((a, b) == PAIRS[-1])),
            *("--output", out / "results" / f"{b}-against-{a}"),
        )


def summary(out: Path) -> None:
    """One line for each comparison, from the files that ``compare`` wrote."""
    for a, b in PAIRS:
        text = (out / "results" / f"{b}-against-{a}" / "comparison.json").read_text(
            encoding="utf-8"
        )
        found = json.loads(text)["metrics"]["ndcg@10"]
        interval = "" if found["low"] is None else f" ({found['low']:+.4f} to {found['high']:+.4f})"
        say(
            f"NDCG@10 {a} {found['a']:.4f}, {b} {found['b']:.4f}: "
            f"{found['difference']:+.4f}{interval}"
        )


# -------------------------------------------------------------------------------------- the server


@contextlib.contextmanager
def served(*models: Path) -> Iterator[str]:
    """A server of the models on a free port, stopped as in production; its address."""
    words = ["serve", "--model", *map(str, models), "--port", "0"]
    say(f"$ rankwright {shlex.join(words)}")
    command = [sys.executable, "-m", "rankwright", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                say(line.rstrip())
                if found := re.search(r"http://[\w.:]+", line):
                    yield found[0]
                    break
            else:
                raise SystemExit("the server did not start")
        finally:
            process.terminate()
            process.communicate()
    if process.returncode:
        raise SystemExit(f"the server ended with {process.returncode}")


def ask(address: str, out: Path) -> None:
    """Ask for the order of test lists with cohere's client; it must be that of ``evaluate``."""
    import cohere

    measured = read_trec_run(out / "results" / "student" / "run.trec")
    lists = load_examples(out / "test.jsonl", purpose="eval").examples[:20]
    start = time.monotonic()
    with cohere.ClientV2("none", base_url=address) as client:
        for example in lists:
            answer = client.rerank(
                model="student", query=example.query, documents=example.documents
            )
            assert example.document_ids is not None
            got = [example.document_ids[result.index] for result in answer.results]
            scores = measured[example.query_id]
            # float32 sums in another order may swap what is all but equal
            behind = [scores[b] - scores[a] for a, b in pairwise(got)]
            if sorted(got) != sorted(example.document_ids) or max(behind) > 1e-3:
                raise SystemExit(f"the server ranks {example.query!r} otherwise than evaluate")
    seconds = (time.monotonic() - start) / len(lists)
    say(f"{len(lists)} lists asked for, each in the order of evaluate; {seconds:.2f} s a list")
    say(f"\n{example.query}")
    for result in answer.results[:3]:
        mark = "right" if example.labels[result.index] > 0 else ""
        text = " ".join(example.documents[result.index].split())[:70]
        say(f"  {result.relevance_score:.4f}  was {result.index + 1:>2}  {text}  {mark}")


if __name__ == "__main__":
    main()
