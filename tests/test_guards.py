"""Numbers that go wrong: found in their step, told with their queries, kept out of the weights."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from rankwright import guards, run_folder
from rankwright import trainer as trainer_module
from rankwright.errors import ConfigError, DataError
from rankwright.guards import OVERFLOWS, Fault, Guard, collapse, not_finite
from rankwright.models.reranker import RerankerModel
from rankwright.trainer import train_on
from rankwright.types import Example
from tests import tiny
from tests.test_trainer import ROWS, arguments, assert_same_weights


def spoil(monkeypatch: pytest.MonkeyPatch, where: str, value: float, *queries: str) -> None:
    """Let the scores or the gradients of some queries' batches become a value in training."""
    original = RerankerModel.forward

    def forward(self: RerankerModel, batch: Any) -> torch.Tensor:
        scores_P = original(self, batch)
        if not self.training:
            return scores_P
        for place, name in enumerate(batch.query_ids):
            if name in queries and where == "scores":
                start = int(batch.offsets_Q[place])
                mask_P = torch.arange(batch.num_pairs) == start
                scores_P = torch.where(mask_P, scores_P * 0 + value, scores_P)
            elif name in queries:
                scores_P.register_hook(lambda gradient: gradient * value)
        return scores_P

    monkeypatch.setattr(RerankerModel, "forward", forward)


def steps_of(output: Path) -> dict[int, tuple[dict[str, Any], Any]]:
    """Weights and optimiser of every checkpoint of a run, by step."""
    from safetensors.torch import load_file

    return {
        run_folder._step(folder): (
            load_file(folder / "model.safetensors"),
            torch.load(folder / "optimizer.pt", weights_only=True)["state"],
        )
        for folder in run_folder.checkpoints(output)
    }


def log_of(output: Path) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = json.loads(
        (output / run_folder.STATE_FILE).read_text(), parse_constant=pytest.fail
    )["log_history"]
    return log


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("scores", math.nan, r"the scores became nan at step \d on the queries q3; lower"),
        ("scores", -math.inf, r"the scores became -inf at step \d on the queries q3; lower"),
        ("gradients", math.inf, r"the gradients became (inf|nan) at step \d on the queries .*q3"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_stop_names_what_it_was_and_whose(
    tmp_path: Path, where: str, value: float, told: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score of -inf alone gives a finite listwise loss, and is told all the same.

    Nothing of that step is saved, also where the verdict is read a step later, as on a GPU.
    """
    spoil(monkeypatch, where, value, "q3")
    monkeypatch.setattr(trainer_module, "_is_late", lambda device: late)
    run = arguments(
        tmp_path,
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        save_steps=1,
        save_total_limit=None,
    )
    with pytest.raises(DataError, match=told) as error:
        train_on(run, ROWS, [])
    step = int(re.findall(r"at step (\d)", str(error.value))[0])
    saved = {path.name for path in run_folder.checkpoints(tmp_path / "run")}
    assert saved == {f"checkpoint-{number}" for number in range(1, step)}


@pytest.mark.parametrize("can_skip", [True, False])
def test_only_what_can_be_done_is_advised(can_skip: bool) -> None:
    """With DeepSpeed no step can be left out."""
    guard = Guard(skip=False, limit=1, can_skip=can_skip)
    step = guards.Step(3, guards._Late(torch.tensor(math.nan)), [])
    with pytest.raises(DataError) as told:
        guard.judge(step, [Fault("loss", math.nan, ("q",))])
    assert ("--on_nan skip" in str(told.value)) == can_skip


def test_a_teacher_beyond_float32_is_told(tmp_path: Path) -> None:
    """1e39 is finite where rows are read and infinite where losses are computed."""
    rows = tiny.taught(ROWS[:6])
    rows[2].teacher_scores = [1e39, *(rows[2].teacher_scores or [])[1:]]
    with pytest.raises(DataError, match=r"the loss became nan at step 1 on the queries .*q2"):
        train_on(arguments(tmp_path, loss_type="kl", per_device_train_batch_size=6), rows, [])


def test_gradients_that_overflow_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A billion times the gradient is finite in float32 weights and infinite in float16 ones."""
    spoil(monkeypatch, "gradients", 1e9, "q0")
    given = {"tuner_type": "lora", "per_device_train_batch_size": 24, "max_steps": 2}
    train_on(arguments(tmp_path, **given), ROWS, [])
    given |= {"torch_dtype": "float16", "output_dir": str(tmp_path / "half")}
    with pytest.raises(DataError, match=r"the gradients became (inf|nan) at step 1 on the queries"):
        train_on(arguments(tmp_path, **given), ROWS, [])


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch", "adafactor"])
def test_a_step_that_is_left_out_changes_nothing(
    tmp_path: Path,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither weights nor optimiser; its queries, the count and the loss of the others are told.

    Once as on a CPU, where the verdict is there at once, and once as on an accelerator, where it is
    read a step later: the same weights.
    """
    spoil(monkeypatch, "scores", math.nan, "q5")
    for late in (False, True):
        monkeypatch.setattr(trainer_module, "_is_late", lambda device, late=late: late)
        output = tmp_path / str(late)
        caplog.clear()
        run = arguments(
            tmp_path,
            output_dir=str(output),
            on_nan="skip",
            optim=optimizer,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            save_steps=1,
            save_total_limit=None,
            logging_steps=1,
            weight_decay=0.1,
            loss_type="listwise+0.1*pointwise",
        )
        with caplog.at_level(logging.WARNING):
            train_on(run, ROWS, [])
        log = log_of(output)
        losses = {entry["step"]: entry.get("loss") for entry in log if "learning_rate" in entry}
        skipped = [step for step, loss in losses.items() if loss is None]
        assert len(losses) == 6
        assert len(skipped) == 2, "once an epoch"
        for step in skipped:
            assert f"the scores became nan at step {step} on the queries q5: left" in caplog.text
        assert "left out (2 of at most 10)" in caplog.text
        found = steps_of(output)
        for step in range(2, 7):
            (w0, o0), (w1, o1) = found[step - 1], found[step]
            same = all(torch.equal(w0[name], w1[name]) for name in w0)
            assert same == (step in skipped), step
            if step in skipped:
                assert_close(o1, o0, rtol=0, atol=0)
        record = json.loads((output / "metrics.json").read_text())
        assert record["skipped_steps"] == 2
        kept = [loss for loss in losses.values() if loss is not None]
        assert record["train_loss"] == pytest.approx(sum(kept) / 4, rel=1e-3)
    assert_same_weights(tmp_path / "False", tmp_path / "True")


def test_the_loss_of_an_interval_is_that_of_the_steps_that_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At learning rate zero every step has the same model: six steps in one entry of the log."""
    given = {
        "learning_rate": 0.0,
        "logging_first_step": False,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "loss_type": "listwise+2*pointwise",
    }
    every = arguments(tmp_path, output_dir=str(tmp_path / "each"), logging_steps=1, **given)
    train_on(every, ROWS, [])
    each = [entry for entry in log_of(tmp_path / "each") if "loss" in entry]
    spoil(monkeypatch, "scores", math.inf, "q7")
    output = tmp_path / "one"
    given |= {"logging_steps": 6, "on_nan": "skip"}
    train_on(arguments(tmp_path, output_dir=str(output), **given), ROWS, [])
    (entry,) = [entry for entry in log_of(output) if "loss" in entry]
    assert entry["skipped_steps"] == 1
    means = []
    for name in ("loss", "loss_listwise", "loss_pointwise"):
        total = sum(values[name] for values in each)
        # one of the six is missing; which, its loss says
        missing = total - 5 * entry[name]
        means.append(min(abs(missing - values[name]) for values in each))
    assert max(means) < 5e-4


def test_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "scores", math.nan, "q1", "q2", "q3", "q4", "q5")
    run = arguments(tmp_path, on_nan="skip", max_nan_steps=2, per_device_train_batch_size=1)
    with pytest.raises(
        DataError, match=r"on the queries q\d, and 2 such steps were left out before; .*raise --max"
    ):
        train_on(run, ROWS, [])
    with pytest.raises(ConfigError, match="--max_nan_steps needs --on_nan skip"):
        arguments(tmp_path, max_nan_steps=3)
    with pytest.raises(ConfigError, match="--on_nan 'skp' is unknown; did you mean 'skip'"):
        arguments(tmp_path, on_nan="skp")


def test_optimisers_that_step_within_the_backward_pass_cannot_skip(tmp_path: Path) -> None:
    run = arguments(tmp_path, on_nan="skip", optim="galore_adamw_layerwise")
    with pytest.raises(ConfigError, match="--on_nan skip and --optim galore_adamw_layerwise excl"):
        train_on(run, ROWS, [])


class _Reads(TorchDispatchMode):
    """Counts the values that the host asks the device for, outside of ``_Late``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.late = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")
        self.count += not self.late and func.name().split("::")[1].split(".")[0] in names
        return func(*args, **(kwargs or {}))


def test_a_step_asks_the_device_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps and the same twelve: no reading is added, other than those of a step before."""
    monkeypatch.setattr(trainer_module, "_is_late", lambda device: True)
    read, reads = guards._Late.read, []

    def late(self: Any) -> float:
        reads.append(1)
        modes[-1].late = True
        try:
            return read(self)
        finally:
            modes[-1].late = False

    monkeypatch.setattr(guards._Late, "read", late)
    counts, modes = [], []
    for steps in (6, 12):
        run = arguments(
            tmp_path,
            output_dir=str(tmp_path / str(steps)),
            max_steps=steps,
            per_device_train_batch_size=2,
            logging_steps=100,
            save_strategy="no",
        )
        modes.append(_Reads())
        with modes[-1]:
            train_on(run, ROWS, [])
        counts.append(modes[-1].count)
    # the norm of the gradients and the spread of the scores
    assert len(reads) == 2 * (6 + 12)
    assert counts[0] == counts[1] > 0


class _Watch(TrainerCallback):  # type: ignore[misc]
    """CUDA's own watch for synchronising calls, from the end of one step to that of another."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.ends = first, last, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        watched = self.first <= state.global_step < self.last
        self.ends += watched
        torch.cuda.set_sync_debug_mode("error" if watched else "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trainer_s_step_never_waits_for_the_device(tmp_path: Path, accumulation: int) -> None:
    """Also between the steps: the counts of a step's terms, clipping, the optimizer, the guard."""
    run = arguments(
        tmp_path,
        use_cpu=False,
        bf16=True,
        max_steps=8,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        logging_steps=100,
        save_strategy="no",
    )
    watch = _Watch(3, 7)
    try:
        train_on(run, ROWS, [], callbacks=[watch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.ends == 4


def test_the_overflows_of_a_loss_scaler() -> None:
    """They are its own business, unless no scale is small enough; a NaN score is not."""
    guard = Guard(skip=False, limit=1, scaled=True)
    batch = tiny_batch()

    def step(number: int, score: float, norm: float) -> list[Fault] | None:
        scores_P = torch.tensor([score, 0.0, 1.0])
        guard.watch(scores_P.sum(), scores_P, batch)
        assert bool(guard.close(torch.tensor(norm), number)) == (not math.isfinite(norm))
        due = guard.due(0)
        assert due is not None
        fault = due.fault()
        faults = None if fault is None else [fault]
        assert guard.judge(due, faults) is None
        return faults

    for number in range(OVERFLOWS - 1):
        assert step(number, 0.5, math.inf) == [Fault("gradients", math.inf, ("a", "b"))]
    assert step(100, 0.5, 1.0) is None
    for number in range(OVERFLOWS - 1):
        step(number, 0.5, math.inf)
    assert guard.counts == {"fp16_overflows": 2 * (OVERFLOWS - 1)}
    with pytest.raises(DataError, match=f"for the {OVERFLOWS}th step in a row: they overflow in"):
        step(7, 0.5, math.inf)
    with pytest.raises(DataError, match="the scores became inf at step 8 on the queries a; lower"):
        step(8, math.inf, math.nan)


def tiny_batch() -> Any:
    class Batch:
        query_ids = ("a", "b")
        offsets_Q = torch.tensor([0, 1, 3])

    return Batch()


def test_a_scorer_that_collapses_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four evaluations after the first, which is of the untrained model: one warning."""
    original = RerankerModel.forward
    monkeypatch.setattr(
        RerankerModel, "forward", lambda self, batch: original(self, batch) * 0 + 0.25
    )
    run = arguments(tmp_path, per_device_train_batch_size=6, max_steps=4, eval_steps=1)
    with caplog.at_level(logging.WARNING):
        train_on(run, ROWS, ROWS[:6])
    told = [r.getMessage() for r in caplog.records if "collapsed" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("step 1: The scores are nearly all equal. 100% of the pairs")
    assert "Lower --learning_rate" in told[0]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_scores_of_training_that_collapse_are_told_with_their_queries(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    late: bool,
    accumulation: int,
) -> None:
    """Without any validation: 10 steps in a row, not 9, and once."""
    original, flat = RerankerModel.forward, []

    def forward(self: Any, batch: Any) -> torch.Tensor:
        # the fourth step still orders something
        flat.append(len(flat) // accumulation != 3)
        return original(self, batch) * (1e-6 if flat[-1] else 1.0) + 0.25

    monkeypatch.setattr(RerankerModel, "forward", forward)
    monkeypatch.setattr(trainer_module, "_is_late", lambda device: late)
    for steps, count in ((13, 0), (26, 1)):
        run = arguments(
            tmp_path,
            output_dir=str(tmp_path / str(steps)),
            max_steps=steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            save_strategy="no",
        )
        caplog.clear()
        flat.clear()
        with caplog.at_level(logging.WARNING):
            train_on(run, ROWS, [])
        told = [r.getMessage() for r in caplog.records if "collapsed" in r.getMessage()]
        assert len(told) == count
    assert re.match(
        r"the scores of the last 10 steps, at step 14 those on the queries "
        rf"(q\d+(, )?){{{2 * accumulation}}}, lie within 0\.001 of each other\. The model has",
        told[0],
    )


def test_what_a_collapse_is() -> None:
    """Half of the queries within 1e-3, or half of the pairs tied; a query of one says nothing."""
    assert collapse([[0.0, 1.0], [0.5, 0.5 + 1e-6]], 0.0) is None
    hardly = collapse([[0.0, 1.0], [0.5, 0.5 + 1e-6], [2.0, 2.0 + 1e-6]], 0.0)
    assert hardly is not None
    assert hardly.text == "Half of the queries have scores within 1e-06 of each other."
    assert collapse([[3.0], [3.0]], 0.0) is None
    assert collapse([[0.0, 1.0]], 0.49) is None
    assert collapse([[0.0, 1.0]], 0.5) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_not_finite_names_the_first(dtype: torch.dtype) -> None:
    fine, ids = torch.ones(3, 5, dtype=dtype), torch.tensor([1])
    for value in (math.nan, math.inf, -math.inf):
        wrong = fine.clone()
        wrong[2, 1] = value
        tensors = [("ids", ids), ("none", fine[:0]), ("a", fine), ("b", wrong), ("c", wrong)]
        assert not_finite(tensors) == "b"
        assert not_finite(tensors[:3]) is None


def test_validation_scores_that_are_not_finite_name_the_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RerankerModel.forward

    def forward(self: RerankerModel, batch: Any) -> torch.Tensor:
        scores_P = original(self, batch)
        return scores_P if self.training else scores_P * math.nan

    monkeypatch.setattr(RerankerModel, "forward", forward)
    with pytest.raises(DataError, match="query 'q0' got a score that is not a finite number; the"):
        train_on(arguments(tmp_path), ROWS, [Example("q", ["a", "b"], [1.0, 0.0], query_id="q0")])
