"""A fuzzer that is guided by coverage, over what reads bytes that nobody has looked at.

It is not part of the suite: it needs ``pip install atheris`` (Linux, Python 3.11 to 3.13).

    python tests/fuzz/fuzz.py readers -runs=200000
    python tests/fuzz/fuzz.py recipe -runs=20000
    python tests/fuzz/fuzz.py template -runs=50000
    python tests/fuzz/fuzz.py metrics -runs=20000

``readers``: files of every kind, through the properties of ``tests/data/test_any_rows.py``:
examples or one line, the same whether bad rows stop or are skipped. ``recipe``: YAML files of
arguments. ``template``: a prompt of any text is refused, or keeps its prefix and suffix at every
length. ``metrics``: lists of any scores and labels, through the properties of
``tests/test_metrics.py``. What follows the name goes to libFuzzer (``-runs``, ``-max_total_time``,
``-seed``, a folder of inputs). A counterexample is written to the folder it is started in and can
be given as an input again.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
from transformers import TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(
    include=[
        "rankwright.data.readers",
        "rankwright.arguments",
        "rankwright.templates",
        "rankwright.metrics",
        "json",
    ]
):
    from rankwright import arguments, templates
    from rankwright.data import readers
    from rankwright.errors import ConfigError
    from tests import test_metrics
    from tests.data import test_any_rows
    from tests.data.test_readers import CASES

KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl.gz")
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def readers_target(data: bytes) -> None:
    """The first byte is the kind of file, the rest its content."""
    kind = KINDS[data[0] % len(KINDS)] if data else "jsonl"
    path = FOLDER / f"f.{kind}"
    path.write_bytes(gzip.compress(data[1:], 1) if kind == "jsonl.gz" else data[1:])
    test_any_rows.check_file(path)


def reader_seeds() -> list[bytes]:
    """Whole files of every layout and kind."""
    found = []
    for rows, _ in CASES.values():
        lines = b"\n".join(json.dumps(row).encode() for row in rows)
        for kind in ("jsonl", "jsonl.gz", "json"):
            found.append(bytes([KINDS.index(kind)]) + lines)
        found.append(bytes([KINDS.index("json")]) + json.dumps(rows).encode())
    for kind in ("csv", "tsv", "parquet", "arrow"):
        found.append(bytes([KINDS.index(kind)]) + test_any_rows.whole_file(kind, FOLDER))
    return found


def recipe_target(data: bytes) -> None:
    """A recipe of any bytes is arguments or one line."""
    path = FOLDER / "recipe.yaml"
    path.write_bytes(data)
    try:
        types = [*arguments.GROUPS, TrainingArguments]
        given = arguments.parse("fuzz", types, [str(path)], recipe=True)
        arguments.resolve(given, {})
    except ConfigError as error:
        test_any_rows.check_message(str(error)[:1999])


@functools.cache
def prompter() -> Any:
    """A tokenizer of byte-level pairs."""
    from tests import tiny

    return tiny.decoder_tokenizer()


def template_target(data: bytes) -> None:
    """A prefix and a suffix of any text are refused, or stand around every document."""
    tokenizer = prompter()
    text = data.decode("utf-8", "replace")
    prefix, _, rest = text.partition("\x1f")
    suffix, _, document = rest.partition("\x1f")
    template = templates.Template("generative", prefix, suffix)
    try:
        templates.check_template(template)
        encoder = templates.PairEncoder(tokenizer, template, 64)
        endless = templates.PairEncoder(tokenizer, template, 100_000)
        cut, whole = encoder.encode("a query", [document]), endless.encode("a query", [document])
    except ConfigError as error:
        test_any_rows.check_message(str(error)[:1999])
        return
    assert cut.prefix == whole.prefix or cut.truncated_query
    assert cut.documents[0][len(cut.documents[0]) - len(encoder.suffix) :] == encoder.suffix
    assert len(cut.prefix) + len(cut.documents[0]) <= 64


def metrics_target(data: bytes) -> None:
    """Lists of any scores and labels, as Hypothesis makes them of the bytes."""
    for test in (
        test_metrics.test_equals_the_mean_over_enumerated_orders,
        test_metrics.test_order_of_the_input_never_matters,
        test_metrics.test_only_the_order_of_the_scores_matters,
        test_metrics.test_values_lie_between_zero_and_one,
        test_metrics.test_queries_do_not_touch_each_other,
    ):
        test.hypothesis.fuzz_one_input(data)


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "readers": (readers_target, reader_seeds),
    "recipe": (
        recipe_target,
        lambda: [
            b"model: m\ndataset: [a.jsonl, b.jsonl]\nlearning_rate: 1e-5\nbf16: true\n",
            b"model: m\ndataset: a\ndeepspeed: {zero_optimization: {stage: 2}}\nmetrics: ndcg@10\n",
            b"model: m\ndataset: a\nloss_type: listwise(temperature=0.5)+0.1*pointwise\n",
        ],
    ),
    "template": (
        template_target,
        lambda: [b"Q: {query}\nD: \x1f Answer:\x1fa document", b"{instruction}{query}\x1f"],
    ),
    "metrics": (metrics_target, lambda: [bytes(range(256)), bytes(400)]),
}


def main() -> None:
    """Fuzz the target that is named, in a process of its own.

    libFuzzer ends its process without Python's own end, so another one has to tidy up.
    """
    try:
        if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
            sys.exit(f"name a target: {', '.join(TARGETS)}")
        child = os.fork()
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    except BaseException:
        shutil.rmtree(FOLDER, ignore_errors=True)
        raise
    # a warning for each file would be all that is seen
    readers.logger.disabled = True
    target, seeds = TARGETS[sys.argv[1]]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:], "-max_len=4096", str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
