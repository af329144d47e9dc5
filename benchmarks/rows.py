"""How long does a start take, and how much memory, with ten million rows?

Rows are written as gzipped JSONL shards (a query, a positive and three negatives of some ten words
each) and trained on with a tiny BERT, one step, each start in a process of its own: the first one
reads every row into the store, the second one finds it there. Of each the time until the first step
is done, the anonymous memory at that moment and at its highest until then (``RssAnon`` of
``/proc/self/status``, looked at every 20 ms: what is mapped from files is not counted, since the
system takes it back whenever it is needed elsewhere), and the disk that the store takes.

``--split 0.001`` also sets rows aside for validation, by query. ``--commands check evaluate
calibrate compare`` measures these commands, to their end, on the same rows; ``compare`` ranks them
twice with the one model. With several numbers of rows, the bytes of memory that each row adds are
printed.

Run: ``python benchmarks/rows.py --rows 100000 1000000 10000000 --work work --output rows.json``
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

SHARD = 250_000
COMMANDS = ("train", "check", "evaluate", "calibrate", "compare")
TEXT = (
    "the quick brown fox jumps over a lazy dog while rain falls on green hills and cold rivers run "
    "to grey seas where old ships sleep under white birds that cry at dawn"
)
WORDS = TEXT.split()


def write_shards(folder: Path, rows: int) -> int:
    """Write the rows, if they are not there yet; returns their size on disk."""
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        generator = random.Random(rows)
        for start in range(0, rows, SHARD):
            path = folder / f"train-{start // SHARD:05d}.jsonl.gz"
            with gzip.open(path, "wt", compresslevel=1, encoding="ascii") as file:
                for number in range(start, min(start + SHARD, rows)):
                    texts = [" ".join(generator.choices(WORDS, k=10)) for _ in range(5)]
                    row = {
                        "query": f"{texts[0]} {number}",
                        "positive": texts[1:2],
                        "negative": texts[2:],
                    }
                    file.write(json.dumps(row) + "\n")
        done.touch()
    return size_of(folder)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tiny_bert(folder: Path) -> None:
    """A BERT of one layer with a word for each of ours."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=128,
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)


def anonymous() -> int:
    """Bytes of memory that no file stands behind."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon; this measures on Linux only")


class Watch(threading.Thread):
    """Looks at the anonymous memory until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = 0
        self.done = threading.Event()

    def run(self) -> None:
        """Look until the event is set."""
        while not self.done.wait(0.02):
            self.highest = max(self.highest, anonymous())


def start(options: argparse.Namespace) -> None:
    """Run a command, of training one step; print time and memory as a line of JSON."""
    import transformers

    import rankwright
    from rankwright import cli

    def measured() -> None:
        watch.done.set()
        now = anonymous()
        found = {
            "seconds": round(time.perf_counter() - begin, 2),
            "at_end": now,
            "highest": max(watch.highest, now),
        }
        print(json.dumps(found), flush=True)

    class FirstStep(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            measured()

    (command,) = options.commands
    watch = Watch()
    base = anonymous()
    print(json.dumps({"imports": base}), flush=True)
    watch.start()
    begin = time.perf_counter()
    if command != "train":
        model = options.work / "model"
        words = [command, *([model, model] if command == "compare" else ["--model", model])]
        words += ["--dataset", options.work / f"rows-{options.rows[0]}"]
        words += [] if command == "check" else ["--output", options.work / "out"]
        words += ["--samples", 100] if command == "compare" else []
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            code = cli.main([str(word) for word in words])
        if code:
            raise SystemExit(code)
        measured()
        return
    rankwright.train(
        callbacks=[FirstStep()],
        model=str(options.work / "model"),
        dataset=[str(options.work / f"rows-{options.rows[0]}")],
        output_dir=str(options.work / "out"),
        split_dataset_ratio=options.split,
        eval_strategy="no",
        max_steps=1,
        per_device_train_batch_size=16,
        use_cpu=True,
        overwrite=True,
        **({"batch_tokens": options.batch_tokens} if options.batch_tokens else {}),
    )


def starts(options: argparse.Namespace, command: str, rows: int) -> Iterator[dict[str, Any]]:
    """Start twice, in processes of their own, and look at the store."""
    cache = options.work / f"cache-{rows}-{command}"
    for name in ("first", "second"):
        shutil.rmtree(options.work / "out", ignore_errors=True)
        words = [
            sys.executable, __file__, "--start", "--work", str(options.work), "--rows", str(rows),
            "--split", str(options.split), "--commands", command,
            *(["--batch_tokens", str(options.batch_tokens)] if options.batch_tokens else []),
        ]  # fmt: skip
        environment = {**os.environ, "RANKWRIGHT_CACHE": str(cache)}
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found: dict[str, Any] = {"command": command, "rows": rows, "start": name}
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                found |= json.loads(line)
        yield {**found, "store": size_of(cache)}
    if not options.keep:
        shutil.rmtree(cache)


def growth(results: list[dict[str, Any]]) -> Iterator[str]:
    """What each row adds to the memory, between two numbers of rows."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for found in results:
        kinds.setdefault((found["command"], found["start"]), []).append(found)
    for (command, name), several in kinds.items():
        for less, more in pairwise(sorted(several, key=lambda found: found["rows"])):
            at_end, highest = (
                (more[key] - less[key]) / (more["rows"] - less["rows"])
                for key in ("at_end", "highest")
            )
            yield (
                f"{command}, {name} start, {less['rows']:,} to {more['rows']:,} rows: "
                f"{at_end:,.0f} bytes a row at the end, {highest:,.0f} at the highest"
            )


def main() -> None:
    """Measure each number of rows, print a table and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--work", type=Path, required=True, help="folder for rows and stores")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=["train"])
    parser.add_argument("--split", type=float, default=0.0, help="--split_dataset_ratio")
    parser.add_argument("--batch_tokens", type=int, default=0, help="also tokenise ahead")
    parser.add_argument("--keep", action="store_true", help="leave rows and stores there")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(options)
        return
    import torch
    from machine import surroundings

    tiny_bert(options.work / "model")
    results = []
    print(
        "| command | rows | start | s | at its end, MiB | highest, MiB | shards, MiB | store, MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rows in options.rows:
        shards = write_shards(options.work / f"rows-{rows}", rows)
        for command in options.commands:
            for found in starts(options, command, rows):
                results.append({**found, "shards": shards})
                cells = [command, f"{rows:,}", found["start"], str(found["seconds"])]
                sizes = (found["at_end"], found["highest"], shards, found["store"])
                cells += [f"{value / 2**20:,.0f}" for value in sizes]
                print(f"| {' | '.join(cells)} |", flush=True)
        if not options.keep:
            shutil.rmtree(options.work / f"rows-{rows}")
    print("", *growth(results), sep="\n")
    if options.output:
        raw = {**surroundings("rows.py", torch.get_num_threads()), "results": results}
        options.output.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
