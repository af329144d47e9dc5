"""Does a training that is killed again and again end as one that nobody touched?

The same command trains a small model twice, side by side: once in peace, and once killed about
every ``--kill_every`` seconds and started again with ``--resume``, for ``--minutes``, and then left
alone. Both take as many steps as fill about that time on a machine with a core for each process;
``--steps`` sets another number. A killed one that ends before the time is up is compared, and the
next one begins. The kills take turns: SIGKILL
at any time, SIGKILL in the middle of a checkpoint's writing, SIGKILL while the run is starting,
SIGTERM and SIGINT; of several processes they reach one at random, and what is left of the others is
ended as a launcher would.

After each kill every checkpoint that has its name must be whole, and none may have got lost. What
may get lost is work: the steps since the last checkpoint, and after SIGTERM or SIGINT not even
those. In the end weights, log and metrics are compared, bit for bit.

    python benchmarks/soak_train.py --minutes 60 --kill_every 180 --output soak.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import surroundings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from rankwright import run_folder
from rankwright.errors import CheckpointError

KINDS = ("SIGKILL", "SIGKILL while saving", "SIGTERM", "SIGKILL while starting", "SIGINT")
STEP = re.compile(r"^step (\d+)/")
# how long a launcher waits before it ends the others, and a signalled process may take to save
GRACE = 60.0
# what two runs of the same steps differ in
TIMES = {
    "eval_runtime",
    "pairs_per_second",
    "seconds",
    "tokens_per_second",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
}
PLAIN = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
WORDS = [f"word{number}" for number in range(500)]


def make_inputs(folder: Path) -> dict[str, str]:
    """A small model, and rows whose positive repeats words of the query."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names)
    fast.save_pretrained(folder / "base")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(fast), num_hidden_layers=2, num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder / "base")
    draw = random.Random(0)
    for name, count in (("train", 400), ("val", 24)):
        rows = []
        for _ in range(count):
            query = draw.sample(WORDS, 4)
            documents = [draw.choices(WORDS, k=draw.randint(5, 60)) for _ in range(6)]
            positive = " ".join(query[:2] + documents[0])
            negative = [" ".join(words) for words in documents[1:]]
            row = {"query": " ".join(query), "positive": [positive], "negative": negative}
            rows.append(json.dumps(row))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {
        "model": str(folder / "base"),
        "dataset": str(folder / "train.jsonl"),
        "val_dataset": str(folder / "val.jsonl"),
        "cache_dir": str(folder / "cache"),
        "use_cpu": "true",
        "per_device_train_batch_size": "8",
        "dropout": "0.1",
        "logging_steps": "1",
        "save_total_limit": "3",
        "learning_rate": "1e-4",
    }


class Run:
    """One start of the command, on one process or several."""

    def __init__(self, words: list[str], processes: int) -> None:
        self.reached = 0
        self.lines: list[str] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for rank in range(processes):
            several = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "rankwright", "train", *words],
                    env={**os.environ, **(several if processes > 1 else {}), **PLAIN},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in self.processes:
            threading.Thread(target=self._read, args=(process.stderr,), daemon=True).start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.lines.append(line)
            if found := STEP.match(line):
                self.reached = int(found[1])

    @property
    def ended(self) -> bool:
        """Whether a process has come to its end."""
        return any(process.poll() is not None for process in self.processes)

    def until(self, condition: Any, seconds: float) -> bool:
        """Wait for a condition, the end of a process, or the time; whether it was the first."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended:
            if condition():
                return True
            time.sleep(0.002)
        return False

    def wait(self, seconds: float | None) -> list[int]:
        """Let it end, or end it as a launcher would; the exit codes."""
        end = None if seconds is None else time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(None if end is None else max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self.processes]


@dataclass
class Kill:
    """One kill and what it cost."""

    kind: str
    reached: int
    kept: int
    codes: list[int]

    @property
    def lost(self) -> int:
        """Steps that were done and have to be done again."""
        return max(0, self.reached - self.kept)


@dataclass
class Tally:
    """What was seen of the checkpoints."""

    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    whole: int = 0

    def look(self, output: Path, kind: str, run: Run, codes: list[int]) -> None:
        """Look at the folder a kill left."""
        for folder in run_folder.checkpoints(output):
            if (reason := run_folder.damage(folder)) is not None:
                self.problems.append(f"{folder.name} has its name and is not whole: {reason}")
        try:
            kept = run_folder._step(run_folder.last_whole(output))
        except CheckpointError:
            kept = 0
        if kept < self.whole:
            self.problems.append(f"checkpoint-{self.whole} was whole and is gone")
        self.whole = kept
        kill = Kill(kind, run.reached, kept, codes)
        if kind in ("SIGTERM", "SIGINT"):
            if kill.lost:
                self.problems.append(f"{kind} at step {run.reached} kept only step {kept}")
            if -signal.SIGKILL in codes:
                self.problems.append(f"{kind} at step {run.reached}: no end within {GRACE:g} s")
        self.kills.append(kill)
        print(f"{kind} at step {run.reached}: goes on from step {kept}", flush=True)


def words_of(given: dict[str, str], **more: str) -> list[str]:
    """Arguments as words of a command line."""
    return [word for name, value in (given | more).items() for word in (f"--{name}", value)]


def disturbed(
    given: dict[str, str], output: Path, tally: Tally, end: float, options: argparse.Namespace
) -> None:
    """Train once, killed until ``end`` and then left alone."""
    draw = random.Random(f"{options.seed} {len(tally.kills)}")
    tally.whole = 0
    while True:
        resumed = {"resume": "true"} if tally.whole else {"overwrite": "true"}
        run = Run(words_of(given, output_dir=str(output), **resumed), options.processes)
        kind = KINDS[len(tally.kills) % len(KINDS)]
        start = tally.whole
        pause = options.kill_every * draw.uniform(0.3, 1.7)
        if time.monotonic() + pause > end:
            codes = run.wait(None)
            if any(codes):
                tally.problems.append(f"the last run ended with {codes}: {''.join(run.lines[-5:])}")
            return
        if kind == "SIGKILL while starting":
            run.until(lambda: False, draw.uniform(0.5, 12))
        else:
            run.until(lambda run=run, start=start: run.reached > start, 600)
            run.until(lambda: False, pause)
        if kind == "SIGKILL while saving":
            run.until((run_folder.staging(output)).exists, 120)
            time.sleep(draw.uniform(0, 0.05))
        if run.ended:
            codes = run.wait(GRACE)
            if any(codes):
                tally.problems.append(f"ended by itself with {codes}: {''.join(run.lines[-5:])}")
            return
        number = signal.Signals[kind.split()[0]]
        draw.choice(run.processes).send_signal(number)
        codes = run.wait(GRACE if options.processes == 1 or number != signal.SIGKILL else 5)
        tally.look(output, kind, run, codes)


def differences(one: Path, two: Path) -> list[str]:
    """What of the final folders is not equal."""
    found = []
    if (one / "model.safetensors").read_bytes() != (two / "model.safetensors").read_bytes():
        found.append("weights")
    logs, metrics = [], []
    for folder in (one, two):
        state = json.loads((folder / run_folder.STATE_FILE).read_text(encoding="utf-8"))
        logs.append(
            [{k: v for k, v in entry.items() if k not in TIMES} for entry in state["log_history"]]
        )
        record = json.loads((folder / run_folder.METRICS_FILE).read_text(encoding="utf-8"))
        metrics.append({name: value for name, value in record.items() if name != "seconds"})
    if logs[0] != logs[1]:
        found.append("log")
    names = sorted({*metrics[0], *metrics[1]})
    found += [
        f"metrics.json: {name}" for name in names if metrics[0].get(name) != metrics[1].get(name)
    ]
    return found


def main() -> int:
    """Train twice, compare, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="how long it is killed")
    parser.add_argument("--kill_every", type=float, default=180, help="seconds, about")
    parser.add_argument("--processes", type=int, default=1, help="of each of the two runs")
    parser.add_argument("--steps", type=int, help="of both runs (default: what fills the time)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills' times")
    parser.add_argument("--output", type=Path, help="raw results, JSON")
    options = parser.parse_args()
    about = surroundings("soak_train.py", options.processes)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        given = make_inputs(folder)
        # as many steps as take about the time
        trial = Run(
            words_of(given, output_dir=str(folder / "trial"), max_steps="40"), options.processes
        )
        if any(trial.wait(None)):
            print("".join(trial.lines), file=sys.stderr)
            return 1
        seconds = json.loads((folder / "trial" / "metrics.json").read_text())["seconds"]
        steps = options.steps or max(40, int(options.minutes * 60 / seconds * 40))
        every = max(1, int(steps * options.kill_every / (options.minutes * 60) / 4))
        given |= {"max_steps": str(steps), "save_steps": str(every), "eval_steps": str(every)}
        print(f"{steps} steps, a checkpoint every {every}", flush=True)
        peace = Run(words_of(given, output_dir=str(folder / "peace")), options.processes)
        tally, unequal, trainings = Tally(), [], 0
        end = time.monotonic() + options.minutes * 60
        try:
            while not trainings or (time.monotonic() < end and not tally.problems):
                shutil.rmtree(folder / "war", ignore_errors=True)
                disturbed(given, folder / "war", tally, end, options)
                if any(peace.wait(None)):
                    print("".join(peace.lines), file=sys.stderr)
                    return 1
                trainings += 1
                if not tally.problems:
                    unequal += differences(folder / "peace", folder / "war")
                    print(f"{trainings} trainings compared: {unequal or 'equal'}", flush=True)
        finally:
            peace.wait(0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lost = defaultdict(list)
    for kill in tally.kills:
        lost[kill.kind].append(kill.lost)
    print(f"\n{'kill':<24}{'times':>7}{'steps done again: most':>26}{'in all':>8}")
    for kind in KINDS:
        if lost[kind]:
            worst, total = max(lost[kind]), sum(lost[kind])
            print(f"{kind:<24}{len(lost[kind]):>7}{worst:>26}{total:>8}")
    for problem in tally.problems:
        print(f"problem: {problem}")
    equal = not unequal and not tally.problems
    print(
        f"{len(tally.kills)} kills, {trainings} trainings of {steps} steps; weights, log and "
        "metrics equal those of the undisturbed one"
        if equal
        else f"different: {', '.join(unequal) or 'not compared'}"
    )
    if options.output is not None:
        results = {
            "trainings": trainings,
            "steps": steps,
            "checkpoint_every": every,
            "kills": [vars(kill) | {"lost": kill.lost} for kill in tally.kills],
            "problems": tally.problems,
            "different": unequal,
        }
        options.output.write_text(json.dumps({**about, **results}, indent=1) + "\n")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
