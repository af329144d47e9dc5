"""A run that was stopped goes on as if it had not been: on as many processes, or on others.

Run as a module, this is what each of two processes does: all runs that need two, in one process
group.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankwright import run_folder
from rankwright import trainer as trainer_module
from rankwright.arguments import resolve
from rankwright.errors import ConfigError, DataError
from rankwright.models.reranker import RerankerModel
from rankwright.ranking import Reranker
from rankwright.run_folder import Progress, keep_steps
from rankwright.trainer import Interrupted, train_on
from tests import ranks, tiny
from tests.test_guards import log_of, spoil
from tests.test_trainer import assert_same_weights

# what its tests share is made once, by one worker
pytestmark = pytest.mark.xdist_group("resume")

# 22 rows in steps of 8: three steps an epoch, the last one of 6
ROWS = tiny.examples(22, documents=5)
VAL = tiny.examples(7, documents=5, seed=1)
RANK = int(os.environ.get("RANK", "0"))
# what of a log speaks of the time since a run began or went on
CLOCKS = ("_per_second", "runtime", "padding_saved")


def settings(folder: Path, output: Path, **given: Any) -> Any:
    base = folder / "base"
    if not base.exists():
        tiny.save_base(base, "bert")
    return resolve(
        {
            "model": str(base),
            "dataset": ["unused"],
            "output_dir": str(output),
            "use_cpu": True,
            "max_length": 512,
            "learning_rate": 1e-3,
            "num_train_epochs": 3,
            "gradient_accumulation_steps": 2,
            "logging_steps": 2,
            "eval_steps": 2,
            "save_steps": 2,
            "save_total_limit": None,
            "dropout": 0.1,
            "loss_type": "listwise+0.1*pointwise",
            **({} if "batch_tokens" in given else {"per_device_train_batch_size": 4}),
            **given,
        },
        {},
    )


def stop_at(patch: pytest.MonkeyPatch, at: int, where: str) -> None:
    """Send this process SIGTERM at the end of a step, or in the so manieth evaluation."""
    on_step_end, score_examples = trainer_module._Watcher.on_step_end, Reranker.score_examples
    calls = []

    def end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if where == "step" and state.global_step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        on_step_end(self, args, state, control, **kwargs)

    def score(self: Reranker, examples: Any, progress: Any = None) -> Any:
        calls.append(1)
        if where == "evaluation" and len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return score_examples(self, examples, progress)

    patch.setattr(trainer_module._Watcher, "on_step_end", end)
    patch.setattr(Reranker, "score_examples", score)


def go(
    folder: Path,
    name: str,
    *,
    at: int | None = None,
    where: str = "step",
    rank: int = 0,
    resume: bool = False,
    spoiled: str | None = None,
    **given: Any,
) -> str:
    """Train, or go on; returns how it ended. What each step saw is written beside the output."""
    output, seen = folder / name, defaultdict(list)
    args = settings(folder, output, **given)
    start = str(run_folder.last_whole(output)) if resume else None
    with pytest.MonkeyPatch.context() as patch:
        step = trainer_module._Trainer.training_step

        def training_step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
            if not inputs.filler:
                seen[self.state.global_step + 1] += inputs.query_ids
            return step(self, model, inputs, *rest)

        patch.setattr(trainer_module._Trainer, "training_step", training_step)
        if at is not None and rank == RANK:
            stop_at(patch, at, where)
        if spoiled is not None:
            spoil(patch, "scores", float("nan"), spoiled)
        try:
            train_on(args, ROWS, VAL, resume_from=start)
            ended = "done"
        except (Interrupted, DataError, ConfigError) as error:
            ended = str(error)
    path = folder / f"{name}-seen-{RANK}-{int(resume)}.json"
    path.write_text(json.dumps(seen))
    return ended


def seen_in(folder: Path, name: str) -> dict[int, list[str]]:
    """The queries of every step, over all processes; steps that were taken again, once."""
    found: dict[int, list[str]] = {}
    for resumed in (0, 1):
        steps = defaultdict(list)
        for path in sorted(folder.glob(f"{name}-seen-*-{resumed}.json")):
            for step, queries in json.loads(path.read_text()).items():
                steps[int(step)] += queries
        for step, queries in steps.items():
            assert found.setdefault(step, sorted(queries)) == sorted(queries), step
    return found


def record_of(output: Path) -> tuple[list[dict[str, Any]], Any, dict[str, Any]]:
    """A run's log, best step and metrics, without what a clock measured."""
    log = [
        {key: value for key, value in entry.items() if not any(c in key for c in CLOCKS)}
        for entry in log_of(output)
    ]
    state = json.loads((output / run_folder.STATE_FILE).read_text())
    best = (
        state["best_metric"],
        state["best_global_step"],
        Path(state["best_model_checkpoint"]).name,
    )
    metrics = json.loads((output / run_folder.METRICS_FILE).read_text())
    metrics.pop("seconds")
    return log, best, metrics


def assert_same_run(folder: Path, one: str, two: str) -> None:
    """Weights bit for bit, what each step saw, log, best step and metrics."""
    assert_same_weights(folder / one, folder / two)
    assert seen_in(folder, one) == seen_in(folder, two)
    for first, second in zip(record_of(folder / one), record_of(folder / two), strict=True):
        assert first == second


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the undisturbed run of each case lies, once one has been needed."""
    return {"folder": tmp_path_factory.mktemp("one")}


CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"tuner_type": "lora"},
    "tokens": {"batch_tokens": 250, "max_negative_samples": 2},
    "epochs": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    # each evaluation that is no better than the one before cuts the rate, and none is by so much
    "plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "threshold": 0.99},
        "logging_steps": 3,
    },
}


DEFAULT = [
    ("full", "step", 4),
    ("lora", "step", 3),
    ("tokens", "step", 7),
    ("epochs", "step", 6),
    ("plateau", "evaluation", 3),
]


@pytest.mark.parametrize(
    ("case", "where", "at"),
    [
        *DEFAULT,
        *(
            pytest.param(case, where, at, marks=pytest.mark.slow)
            for case in CASES
            for where in ("step", "evaluation")
            for at in (range(1, 10) if where == "step" else (2, 3, 4))
            if (case, where, at) not in DEFAULT
        ),
    ],
)
def test_one_process(whole: dict[str, Path], case: str, where: str, at: int) -> None:
    """Stopped within an epoch, at its end, where an evaluation was due, and during one.

    With accumulation, dropout, a loss of two parts, and a log that is written between the saves.
    """
    folder, given = whole["folder"], CASES[case]
    if case not in whole:
        whole[case] = folder / f"whole-{case}"
        assert go(folder, whole[case].name, **given) == "done"
    cut = f"cut-{case}-{where}-{at}"
    stopped = go(folder, cut, at=at, where=where, **given)
    assert stopped.startswith("stopped at step"), stopped
    assert go(folder, cut, resume=True, **given) == "done"
    assert_same_run(folder, whole[case].name, cut)
    if case == "plateau":
        rates = {e["learning_rate"] for e in log_of(whole[case]) if "learning_rate" in e}
        assert len(rates) >= 3
    shutil.rmtree(folder / cut)


def test_stopped_before_the_first_step(tmp_path: Path) -> None:
    """Nothing is left behind, so the same command begins again."""
    assert "before the first step" in go(tmp_path, "cut", at=1, where="evaluation")
    args = settings(tmp_path, tmp_path / "cut")
    assert run_folder.prepare(tmp_path / "cut", args) is None


def test_the_mean_loss_is_added_up_in_the_order_of_the_steps(tmp_path: Path) -> None:
    """In another order the last bits are other ones, once the sum is long.

    Here it is long at once: beside 2**55, whose neighbours are 8 apart, every loss is lost, and
    their sum would not be.
    """
    go(tmp_path, "run", at=3, logging_steps=1)
    marker = run_folder.last_whole(tmp_path / "run") / run_folder.MARKER
    values = json.loads(marker.read_text())
    found = values["progress"]["loss"]
    values["progress"]["loss"] = 2.0**55
    marker.write_text(json.dumps(values))
    assert go(tmp_path, "run", resume=True, logging_steps=1) == "done"
    log, _, metrics = record_of(tmp_path / "run")
    later = [entry["loss"] for entry in log if "loss" in entry and entry["step"] > 3]
    assert 0 < found < 12
    assert max(later) < 4 < sum(later)
    assert metrics["train_loss"] == 2.0**55 / metrics["steps"]


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> tuple[Path, dict[str, list[str]]]:
    """The runs of two processes, and what a single one makes of the same; how each ended."""
    folder = tmp_path_factory.mktemp("two")
    assert go(folder, "whole-1", **PLAIN) == "done"
    assert go(folder, "spoiled-1", spoiled="q3", on_nan="skip", **PLAIN) == "done"
    for name, given in (("up", {}), ("up-tokens", CASES["tokens"])):
        assert "step 4 of" in go(folder, name, at=4, **PLAIN, **given)
    assert go(folder, "whole-tokens", **PLAIN, **CASES["tokens"]) == "done"
    cases = ["full", "lora"] if pytestconfig.getoption("--slow") else []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        words = [sys.executable, "-m", "tests.test_resume", str(folder), *cases]
        processes.append(
            subprocess.Popen(
                words,
                env={**os.environ, **variables},
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
            )
        )
    errors = ranks.errors_of(processes, timeout=400)
    assert [process.returncode for process in processes] == [0, 0], "".join(errors)[-6000:]
    ends = [json.loads((folder / f"ends-{rank}.json").read_text()) for rank in range(2)]
    return folder, {name: [end[name] for end in ends] for name in ends[0]}


# given on two processes, so that their steps are those of one with the settings above
HALF = {"per_device_train_batch_size": 2}
PLACES = ("step", "evaluation")
# gradients that are zero but for rounding, as those of keys' biases, are whole steps to Adam
PLAIN = {"dropout": 0.0, "optim": "sgd", "learning_rate": 0.05}


def two_processes(folder: Path, cases: list[str]) -> dict[str, str]:
    """What one of two processes does: a name for each run, and how it ended."""
    ends = {}
    for case, where in (("full", "evaluation"), *((c, w) for c in cases for w in PLACES)):
        given, name = {**HALF, **CASES[case]}, f"{where}-{case}"
        if f"whole-{case}" not in ends:
            ends[f"whole-{case}"] = go(folder, f"whole-{case}", **given)
        if name not in ends:
            ends[name] = go(folder, name, at=3, where=where, rank=1, **given)
            ends[f"resumed-{name}"] = go(folder, name, resume=True, **given)
    # the same command as on one process
    ends["up"] = go(folder, "up", resume=True, **PLAIN)
    ends["up-tokens"] = go(folder, "up-tokens", resume=True, **PLAIN, **CASES["tokens"])
    ends["down"] = go(folder, "down", at=3, rank=1, **PLAIN, **HALF)
    given = {"spoiled": "q3", **PLAIN, **HALF}
    ends["stop"] = go(folder, "stop", **given)
    ends["skip"] = go(folder, "skip", on_nan="skip", **given)
    with pytest.MonkeyPatch.context() as patch:
        original = RerankerModel.forward

        def forward(self: RerankerModel, batch: Any) -> Any:
            scores_P = original(self, batch)
            # of the validation rows the second process has those with odd numbers
            broken = not self.training and RANK == 1
            return scores_P * float("nan") if broken else scores_P

        patch.setattr(RerankerModel, "forward", forward)
        ends["validation"] = go(folder, "validation", **HALF)
    return ends


@pytest.mark.parametrize(
    ("case", "where"),
    [
        ("full", "evaluation"),
        pytest.param("full", "step", marks=pytest.mark.slow),
        pytest.param("lora", "evaluation", marks=pytest.mark.slow),
        pytest.param("lora", "step", marks=pytest.mark.slow),
    ],
)
def test_two_processes(two: tuple[Path, dict[str, list[str]]], case: str, where: str) -> None:
    """SIGTERM reaches the second process alone, and both go on to the same end.

    Behind step 3 it stops them at the end of step 4, which an evaluation is due at; within the
    evaluation of step 4, there. That evaluation is done when the run goes on.
    """
    folder, ends = two
    told = "stopped at step 4 of 9; the same command with --resume goes on"
    assert ends[f"whole-{case}"] == ["done", "done"]
    assert ends[f"{where}-{case}"] == [told, told]
    assert ends[f"resumed-{where}-{case}"] == ["done", "done"]
    assert_same_run(folder, f"whole-{case}", f"{where}-{case}")


def test_from_one_process_to_two(two: tuple[Path, dict[str, list[str]]]) -> None:
    """The same command: the same queries in every step, the same weights in float32's rounding."""
    folder, ends = two
    for name, whole in (("up", "whole-1"), ("up-tokens", "whole-tokens")):
        assert ends[name] == ["done", "done"]
        assert seen_in(folder, name) == seen_in(folder, whole)
        assert_same_weights(folder / whole, folder / name, 1e-6)


def test_from_two_processes_to_one(two: tuple[Path, dict[str, list[str]]]) -> None:
    folder, ends = two
    assert [end.split(";")[0] for end in ends["down"]] == ["stopped at step 4 of 9"] * 2
    assert go(folder, "down", resume=True, **PLAIN, **HALF) == "done"
    assert seen_in(folder, "down") == seen_in(folder, "whole-1")
    assert_same_weights(folder / "whole-1", folder / "down", 1e-6)


def test_one_process_has_a_nan(two: tuple[Path, dict[str, list[str]]]) -> None:
    """Neither goes on alone: both stop with its queries, or leave the same steps out."""
    folder, ends = two
    assert ends["stop"][0] == ends["stop"][1]
    assert ends["stop"][0].startswith("the scores became nan at step")
    assert "on the queries q3; lower" in ends["stop"][0]
    assert ends["skip"] == ["done", "done"]
    skipped = [log_of(folder / name)[-1] for name in ("skip", "spoiled-1")]
    assert skipped[0]["step"] == skipped[1]["step"] == 9
    for name in ("skip", "spoiled-1"):
        record = json.loads((folder / name / run_folder.METRICS_FILE).read_text())
        assert record["skipped_steps"] == 3
    assert_same_weights(folder / "spoiled-1", folder / "skip", 1e-6)
    assert ends["validation"][0] == ends["validation"][1]
    assert "got a score that is not a finite number" in ends["validation"][0]


def test_the_echo_of_a_signal_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher passes on what its processes got themselves; later it is asked for once more."""
    clock = [100.0]
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    with trainer_module._signals(stop):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            assert stop.is_set()
            clock[0] += 4.9
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def progress(processes: int, batch: int, accumulation: int, **given: Any) -> Progress:
    return Progress(processes, batch, None, accumulation, [batch, accumulation], **given)


@pytest.mark.parametrize(
    ("before", "now", "options", "expected"),
    [
        # the same, or a command that was made for the new number of processes
        ((1, 4, 2), (1, 4, 2), {}, {}),
        ((1, 4, 2), (2, 4, 1), {}, {}),
        ((1, 4, 2), (2, 2, 2), {}, {}),
        # the same command: first accumulation gives way, then the batch
        ((1, 4, 2), (2, 4, 2), {}, (4, 1)),
        ((1, 4, 1), (2, 4, 1), {}, (2, 1)),
        ((1, 6, 1), (4, 6, 1), {}, None),
        ((2, 4, 1), (1, 4, 1), {}, (4, 2)),
        ((8, 4, 1), (6, 4, 1), {}, None),
        ((8, 3, 1), (6, 3, 1), {}, (2, 2)),
        # where it must be the batch, or must not
        ((1, 4, 2), (2, 4, 2), {"drop_last": True}, (2, 2)),
        ((2, 4, 1), (1, 4, 1), {"drop_last": True}, None),
        # of 3 batches one process takes all in two steps, two processes would leave the last out
        ((1, 4, 2), (2, 4, 1), {"drop_last": True}, None),
        ((1, 4, 2), (2, 2, 2), {"drop_last": True}, {}),
        ((1, 4, 2), (2, 4, 2), {"borrows": True}, (4, 1)),
        ((1, 4, 1), (2, 4, 1), {"borrows": True}, None),
        ((1, 4, 2), (2, 2, 2), {"borrows": True}, None),
        # another command
        ((1, 4, 2), (1, 8, 2), {}, None),
        ((1, 4, 2), (2, 3, 2), {}, None),
    ],
)
def test_steps_are_kept_on_other_numbers_of_processes(
    before: tuple[int, int, int],
    now: tuple[int, int, int],
    options: dict[str, bool],
    expected: dict[str, int] | tuple[int, int] | None,
) -> None:
    """(processes, batch, accumulation) before and now, and what they are to be."""
    options = {"drop_last": False, "borrows": False, **options}
    if expected is None:
        with pytest.raises(ConfigError, match=r"--resume: the run's steps are of .* other rows"):
            keep_steps(progress(*before), progress(*now), **options)
        return
    found = keep_steps(progress(*before), progress(*now), **options)
    if isinstance(expected, tuple):
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        assert tuple(found[name] for name in names) == expected
        assert now[0] * expected[0] * expected[1] == before[0] * before[1] * before[2]
    else:
        assert found == expected


def test_a_second_resume_on_other_numbers_of_processes() -> None:
    """The same command once more: what the first one replaced stays, though it says otherwise.

    On one process it was 4 x 2, so on two it became 4 x 1; back on one it is 4 x 2 again.
    """
    before = Progress(2, 4, None, 1, asked=[4, 2])
    options = {"drop_last": False, "borrows": False}
    assert keep_steps(before, progress(2, 4, 2), **options) == {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }
    assert keep_steps(before, progress(1, 4, 2), **options) == {}
    tokens = Progress(2, 1, 300, 1, asked=[1, 2])
    assert keep_steps(tokens, Progress(2, 1, 300, 2, asked=[1, 2]), **options) == {
        "gradient_accumulation_steps": 1
    }


def test_a_resume_with_other_batches_is_refused(tmp_path: Path) -> None:
    assert "step 2 of" in go(tmp_path, "cut", at=2)
    for given, told in (
        ({"per_device_train_batch_size": 8}, "1 process with --per_device_train_batch_size 8 --gr"),
        (
            {"batch_tokens": 300},
            "1 process with --batch_tokens 300 --gradient_accumulation_steps 2",
        ),
    ):
        assert told in go(tmp_path, "cut", resume=True, **given)


def test_a_resume_with_another_loss_is_refused(tmp_path: Path) -> None:
    """Sums of two parts stand in the checkpoint."""
    assert "step 2 of" in go(tmp_path, "cut", at=2)
    told = go(tmp_path, "cut", resume=True, loss_type="listwise")
    assert told.startswith("--resume: the run's loss has 2 parts, --loss_type listwise has 1; give")


if __name__ == "__main__":
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    where_to = Path(sys.argv[1])
    found = two_processes(where_to, sys.argv[2:])
    (where_to / f"ends-{RANK}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
