"""What every worker of ``speed.py`` shares: the gate between rounds, counters, memory, arguments.

Imported in three environments, so it needs the standard library, torch and transformers alone.

A worker writes one JSON object a line to a descriptor of its own (its printed output goes to a log
file) and reads ``go`` lines from its standard input:

    {"event": "ready", "startup": 9.1, "loss": 0.69}        the first step is done
    {"event": "round", "seconds": 4.2, "pairs": 80, ...}    one for each ``go``, or ``profile``
    {"event": "done", "peak_memory": 1234567}

The clock of a round runs from the ``go`` to the end of the round's last optimiser step (or of its
last ranked query), so that fetching, tokenising and collating stand inside of it.
"""

# ruff: noqa: ARG002 - the signatures are those of the libraries
from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

# batch sizes that a peer's ranking at its best chooses from
BATCHES = (4, 8, 16, 32, 64)


class Gate:
    """Speaks with the orchestrator, and counts tokens.

    Args:
        job: what the orchestrator wrote for this worker.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.out = os.fdopen(job["descriptor"], "w", buffering=1)
        self.real: torch.Tensor | int = 0
        self.computed = 0
        self.forwards = 0
        self.loss: torch.Tensor | float | None = None
        self.profiler: torch.profiler.profile | None = None

    def say(self, event: str, **values: Any) -> None:
        """Write one event."""
        self.out.write(json.dumps({"event": event, **values}) + "\n")

    def wait(self) -> None:
        """Block until the orchestrator says go; end the process when it is gone."""
        word = sys.stdin.readline().strip()
        if word not in ("go", "profile"):
            # the orchestrator is done with this worker: nothing is to be saved
            self.out.close()
            os._exit(0)
        if word == "profile":
            self.profiler = torch.profiler.profile()
            self.profiler.start()

    def count(self, real: torch.Tensor | int, computed: int) -> None:
        """Add the tokens of one forward pass: of its pairs, and of what was computed for them.

        A tensor is read at the end of the round, so that no accelerator is waited for.
        """
        self.real = self.real + real
        self.computed += computed
        self.forwards += 1

    def synchronise(self) -> None:
        """Wait for the accelerator, so that the clock reads work that is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def startup(self) -> float:
        """Seconds since this process was started, less those spent on choosing a batch size."""
        return time.time() - float(self.job["started"]) - float(self.job.get("excluded", 0.0))

    def peak_memory(self) -> int:
        """Bytes at the highest point: of a GPU where there is one, else of the process."""
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def report(self, began: float, pairs: int) -> None:
        """Say how a round went and start counting anew."""
        self.synchronise()
        seconds = time.perf_counter() - began
        loss = self.loss
        more: dict[str, Any] = {}
        if self.profiler is not None:
            self.profiler.stop()
            more["profile"] = shares(self.profiler)
            self.profiler = None
        self.say(
            "round",
            **more,
            seconds=seconds,
            pairs=pairs,
            loss=float(loss) if loss is not None else None,
            real_tokens=int(self.real),
            computed_tokens=self.computed,
            forwards=self.forwards,
            peak_memory=self.peak_memory(),
        )
        self.real = self.computed = self.forwards = 0


def shares(profiler: torch.profiler.profile) -> list[list[Any]]:
    """Operations with their share of the time that all of them took by themselves, and calls."""
    found = profiler.key_averages()
    kernels = any(event.self_device_time_total for event in found)
    name = "self_device_time_total" if kernels else "self_cpu_time_total"
    total = sum(getattr(event, name) for event in found) or 1
    rows = [[event.key, getattr(event, name) / total, event.count] for event in found]
    return sorted(rows, key=lambda row: -row[1])[:40]


class Pause(transformers.TrainerCallback):  # type: ignore[misc]
    """Lets a trainer run one round at a time.

    The first step holds the first loss and ends the start-up; what is left of the first round warms
    up.

    Args:
        gate: to the orchestrator.
        count: called with gate and model before the first step, to count tokens.
    """

    def __init__(self, gate: Gate, count: Callable[[Gate, torch.nn.Module], None]) -> None:
        self.gate = gate
        self.count = count
        self.began = 0.0
        self.startup = 0.0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Count what the model is given."""
        self.count(self.gate, model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the start-up."""
        self.gate.loss = None
        if state.global_step == 0:
            self.startup = self.gate.startup()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a round, and wait for the next."""
        gate, job = self.gate, self.gate.job
        if state.global_step == 1:
            gate.synchronise()
            gate.say(
                "ready",
                startup=self.startup,
                loss=float(gate.loss) if gate.loss is not None else None,
                peak_memory=gate.peak_memory(),
            )
            gate.wait()
            self.began = time.perf_counter()
        if state.global_step % job["steps_per_round"] == 0:
            gate.report(self.began, job["pairs_per_round"])
            gate.wait()
            self.began = time.perf_counter()


def remember_loss(gate: Gate) -> None:
    """Keep what every trainer's steps return: the loss, of which logs show a rounded mean.

    With accumulation each is a share, and their sum the optimiser step's loss.
    """
    original = transformers.Trainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        gate.loss = loss if gate.loss is None else gate.loss + loss
        return loss

    transformers.Trainer.training_step = training_step


def count_padded(gate: Gate, model: torch.nn.Module) -> None:
    """Count what a padded (or flattened) model is given.

    Its ``forward`` is wrapped: sentence-transformers calls it directly, past any hook.
    """
    forward = model.forward

    @functools.wraps(forward)
    def counting(*args: Any, **kwargs: Any) -> Any:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None and args:
            ids = args[0]
        if ids is not None:
            real = ids.numel() if mask is None or mask.dim() != 2 else mask.sum()
            gate.count(real, ids.numel())
        return forward(*args, **kwargs)

    model.forward = counting


def training_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What every trainer is told, under transformers' names."""
    return {
        "output_dir": job["output"],
        "seed": 42,
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1,
        "bf16": job["dtype"] == "bfloat16",
        "fp16": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": job["device"] == "cuda",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": job["device"] == "cpu",
    }


def serve(main: Callable[[Gate], None]) -> None:
    """Read the job named on the command line, run it, and say how it ended."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    gate = Gate(job)
    torch.set_num_threads(job["threads"])
    try:
        main(gate)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        gate.say("failed", reason=f"{type(error).__name__}: {first}"[:400])
        raise
    gate.say("done", peak_memory=gate.peak_memory())


def read_rows(path: str) -> list[dict[str, Any]]:
    """Read JSON lines."""
    with Path(path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def choose_batch(gate: Gate, rank: Callable[[str, list[str], int], Any]) -> int:
    """The fastest batch size for the first query's documents; choosing it is no start-up."""
    row = read_rows(gate.job["rows"])[0]
    query, texts = row["query"], (row["positive"] + row["negative"])[:64]
    times = {}
    chosen = time.perf_counter()
    for batch in BATCHES:
        rank(query, texts[:8], batch)
        began = time.perf_counter()
        rank(query, texts, batch)
        times[batch] = time.perf_counter() - began
    gate.job["excluded"] = time.perf_counter() - chosen
    best = min(times, key=times.__getitem__)
    gate.say("note", text=f"batch size {best}")
    return best


def rank_rounds(
    gate: Gate, rank: Callable[[str, list[str]], Any], mean: Callable[[Any], float]
) -> None:
    """Rank all documents of a few queries, again for every ``go``.

    Args:
        gate: to the orchestrator.
        rank: ranks one query's documents.
        mean: mean probability in what ``rank`` returned, by which the systems are compared.
    """
    rows = read_rows(gate.job["rows"])
    queries = [(row["query"], row["positive"] + row["negative"]) for row in rows]
    first = queries[0]
    startup = gate.startup()
    found = mean(rank(first[0], first[1][:8]))
    gate.say("ready", startup=startup, loss=found, peak_memory=gate.peak_memory())
    gate.real = gate.computed = gate.forwards = 0
    for _ in range(gate.job["rounds"]):
        gate.wait()
        began = time.perf_counter()
        for query, documents in queries:
            rank(query, documents)
        gate.report(began, sum(len(documents) for _, documents in queries))
