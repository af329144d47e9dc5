"""A run's folder: whatever is killed, filled up or damaged, what was whole before stays."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from rankwright import run_folder, trainer
from rankwright.arguments import resolve
from rankwright.errors import CheckpointError, ConfigError, DataError
from rankwright.files import LOCK, HeldError, locked
from rankwright.models import checkpoint
from rankwright.run_folder import MARKER, Progress, damage, last_whole, rotate
from rankwright.shares import Processes
from rankwright.trainer import train_on
from tests import ranks, tiny

ROWS = tiny.examples(8, documents=4)
STEPS = 3


def arguments(base: Path, output: Path, **given: Any) -> Any:
    if not base.exists():
        tiny.save_base(base, "bert")
    settings: dict[str, Any] = {
        "model": str(base),
        "dataset": ["unused"],
        "output_dir": str(output),
        "use_cpu": True,
        "max_length": 512,
        "max_steps": STEPS,
        "save_steps": 1,
        "per_device_train_batch_size": 2,
    }
    return resolve(settings | given, {})


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# what Python asks of a file system; native code writes the bytes of weights between two of them
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def _child(base: Path, output: Path, kill_at: int) -> None:
    """Train, and be killed at the file system's ``kill_at``-th event after the first checkpoint."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in EVENTS or not (output / "checkpoint-1").exists():
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        if str(output) not in str(arguments[0]):
            return
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    train_on(arguments(base, output), ROWS, [])


def kill_everywhere(folder: Path, stride: int) -> int:
    """Kill one run after the other at later and later events; returns how many were killed."""
    base = folder / "base"
    arguments(base, folder)
    for kill_at in range(1, 10_000, stride):
        output = folder / f"out-{kill_at}"
        child = os.fork()
        if not child:
            code = 1
            try:
                _child(base, output, kill_at)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        found = last_whole(output)
        checkpoint.load(found)  # its weights can be read
        for path in run_folder.checkpoints(output):
            assert damage(path) is None, "a checkpoint that has its name is whole"
        if (output / checkpoint.SPEC_FILE).is_file():
            checkpoint.load(output)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            assert found.name == f"checkpoint-{STEPS}"
            return kill_at // stride
        assert os.WTERMSIG(status) == signal.SIGKILL
        if kill_at % (3 * stride) == 1:
            print("resume", output.name, found.name, flush=True)
        else:
            shutil.rmtree(output)
    raise AssertionError("never finished")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_stage_of_a_write(tmp_path: Path, stride: int) -> None:
    """The last whole checkpoint is read, and resumed to the end it is the undisturbed run's."""
    code = (
        "import sys; from pathlib import Path; from tests.test_run_folder import kill_everywhere; "
        "print('killed', kill_everywhere(Path(sys.argv[1]), int(sys.argv[2])))"
    )
    words = [sys.executable, "-c", code, str(tmp_path), str(stride)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert int(lines[-1].split()[1]) * stride > 40, "the events of two checkpoints and a model"
    train_on(arguments(tmp_path / "base", tmp_path / "whole"), ROWS, [])
    resumed = [line.split()[1:] for line in lines if line.startswith("resume ")]
    assert resumed
    for name, found in resumed[:: max(1, len(resumed) // 4)]:
        output = tmp_path / name
        given = arguments(tmp_path / "base", output, resume=True)
        start = run_folder.prepare(output, given)
        assert start == str(output / found)
        train_on(given, ROWS, [], resume_from=start)
        assert weights(output) == weights(tmp_path / "whole")
        assert not run_folder.staging(output).exists()


@pytest.mark.parametrize("place", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_full_disk(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; what was written is taken away again, and the run goes on from before it."""
    original = getattr(transformers.Trainer, place)

    def full(self: Any, output_dir: str) -> None:
        if self.state.global_step == 2:
            (Path(output_dir) / "half").write_bytes(b"x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, output_dir)

    monkeypatch.setattr(transformers.Trainer, place, full)
    output = tmp_path / "out"
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2 cannot be written \(No space left on device\); the"
    ):
        train_on(arguments(tmp_path / "base", output), ROWS, [])
    monkeypatch.undo()
    assert [path.name for path in output.iterdir()] == ["checkpoint-1"]
    given = arguments(tmp_path / "base", output, resume=True)
    start = run_folder.prepare(output, given)
    assert train_on(given, ROWS, [], resume_from=start).steps == STEPS


class _Full(transformers.TrainerCallback):  # type: ignore[misc]
    """Lets no file grow above a size from a step on: what writes sees what a full disk is."""

    def __init__(self, step: int, size: int) -> None:
        self.step = step
        self.size = size

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            limit(self.size)


def limit(size: int) -> None:
    """Bytes that a file of this process may have; Python turns the signal into an error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("share", "step", "reason"),
    [
        (
            0.5,
            2,
            r"checkpoint-2 cannot be written \(Error while serializing: I/O error: File",
        ),
        (
            1.5,
            2,
            r"checkpoint-2 cannot be written \(a file was cut short, as by a full disk\);",
        ),
        (0.5, 9, r"the final model cannot be written to .*out \(Error while serializing: I/O err"),
    ],
)
def test_a_full_disk_as_the_writers_see_it(
    tmp_path: Path, share: float, step: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit below the weights, and one below the optimiser's state, which is twice as large."""
    given = arguments(tmp_path / "base", tmp_path / "out")
    size = round((tmp_path / "base" / "model.safetensors").stat().st_size * share)
    if step == 9:  # none: behind the last checkpoint
        final = trainer._write_final
        monkeypatch.setattr(trainer, "_write_final", lambda *args: (limit(size), final(*args))[1])
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CheckpointError, match=reason) as error:
            train_on(given, ROWS, [], callbacks=[_Full(step, size)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    output = tmp_path / "out"
    whole = {"checkpoint-1"} if step == 2 else {f"checkpoint-{n}" for n in (2, 3)}
    assert {path.name for path in output.iterdir()} == whole
    given = arguments(tmp_path / "base", output, resume=True)
    start = run_folder.prepare(output, given)
    assert train_on(given, ROWS, [], resume_from=start).steps == STEPS


def test_a_full_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The final model is written from the last checkpoint by the same command once more."""

    def full(*args: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output = tmp_path / "out"
    monkeypatch.setattr("rankwright.trainer.write_card", full)
    with pytest.raises(CheckpointError, match=r"the final model cannot be written to .*out \(No s"):
        train_on(arguments(tmp_path / "base", output), ROWS, [])
    monkeypatch.undo()
    assert {path.name for path in output.iterdir()} == {f"checkpoint-{n}" for n in (2, 3)}
    given = arguments(tmp_path / "base", output, resume=True)
    start = run_folder.prepare(output, given)
    assert train_on(given, ROWS, [], resume_from=start).steps == STEPS
    assert weights(output) == weights(output / "checkpoint-3")


def apart(function: str, *words: object) -> list[str]:
    """Call a function of this module in a process of its own; returns the lines that it prints."""
    code = f"import sys; from tests import test_run_folder as here; here.{function}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def two_with_a_full_disk(folder: str, rank: str) -> None:
    """Train on two processes; then again, one's disk being full at step 2; then go on."""
    base, own = Path(folder) / "base", transformers.Trainer._save_rng_state

    def train(output: Path, name: str, **given: Any) -> None:
        settings = arguments(base, output, per_device_train_batch_size=1, **given)
        start = run_folder.prepare(output, settings)
        try:
            ended = f"done {train_on(settings, ROWS, [], resume_from=start).steps}"
        except (CheckpointError, DataError) as error:
            ended = str(error)
        (Path(folder) / f"{name}-{os.environ['RANK']}").write_text(ended)

    def full(self: Any, output_dir: str) -> None:
        if self.state.global_step == 2 and os.environ["RANK"] == rank:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(self, output_dir)

    whole, cut = Path(folder) / "whole", Path(folder) / "cut"
    assert ranks.fork(2, lambda: train(whole, "first")) == 0
    transformers.Trainer._save_rng_state = full
    assert ranks.fork(2, lambda: train(cut, "stopped")) == 0
    transformers.Trainer._save_rng_state = own
    assert ranks.fork(2, lambda: train(cut, "resumed", resume=True)) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_process_of_two(tmp_path: Path, rank: int) -> None:
    """It says so; the other one, that it is alone. Both go on, and end as if nothing had been."""
    arguments(tmp_path / "base", tmp_path)
    apart("two_with_a_full_disk", tmp_path, rank)

    def ends(name: str) -> list[str]:
        return [(tmp_path / f"{name}-{each}").read_text() for each in range(2)]

    assert ends("first") == ["done 3"] * 2
    stopped = ends("stopped")
    assert "checkpoint-2 cannot be written (No space left on device); the" in stopped[rank]
    assert stopped[1 - rank].startswith("another process has ended; what it says stands in its own")
    assert ends("resumed") == ["done 3"] * 2
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert not run_folder.staging(tmp_path / "cut").exists()


class _Close(transformers.TrainerCallback):
    """Takes the right to write in the output folder away, before a checkpoint is due."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            Path(args.output_dir).chmod(0o500)


def closed_at_the_second_step(folder: str) -> None:
    """Without root's rights, which no mode of a folder holds back."""
    if not os.geteuid():
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        except OSError:  # a container that knows no other user
            print("root alone")
            return
    given = arguments(Path(folder) / "base", Path(folder) / "open" / "out")
    try:
        train_on(given, ROWS, [], callbacks=[_Close()])
    except CheckpointError as error:
        print(error)


def test_a_folder_that_is_closed_between_checkpoints() -> None:
    """One line; the checkpoint before stays, and once it is open again the run goes on."""
    # not pytest's folders, which only their owner may enter
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        (path / "open").mkdir()
        (path / "open").chmod(0o777)
        train_on(arguments(path / "base", path / "whole"), ROWS, [])
        for file in (path / "base").iterdir():
            file.chmod(0o644)
        output = path / "open" / "out"
        told = apart("closed_at_the_second_step", folder)
        if told == ["root alone"]:
            pytest.skip("needs a user without root's rights")
        output.chmod(0o700)
        assert told[-1].startswith(f"{output}/checkpoint-2 cannot be written (Permission denied);")
        assert [path.name for path in run_folder.checkpoints(output)] == ["checkpoint-1"]
        given = arguments(path / "base", output, resume=True)
        start = run_folder.prepare(output, given)
        assert train_on(given, ROWS, [], resume_from=start).steps == STEPS
        assert weights(output) == weights(path / "whole")


class _Vanish(transformers.TrainerCallback):
    """Deletes the output folder when the checkpoint of a step has been written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            shutil.rmtree(args.output_dir)


def test_a_folder_that_vanishes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is made again; what is lost is what stood in it, and the run ends as it would have."""
    base = tmp_path / "base"
    train_on(arguments(base, tmp_path / "whole"), ROWS, [])
    output = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        train_on(arguments(base, output), ROWS, [], callbacks=[_Vanish(1)])
    (told,) = [r.getMessage() for r in caplog.records if "vanished" in r.getMessage()]
    assert told == (
        f"{output} has vanished, and the checkpoints before step 2 with it; it is made again"
    )
    assert {path.name for path in run_folder.checkpoints(output)} == {
        "checkpoint-2",
        "checkpoint-3",
    }
    assert weights(output) == weights(tmp_path / "whole")


def test_the_best_checkpoint_vanishes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The final model is the last step's, and the figures beside it are measured on it."""
    base = tmp_path / "base"
    last = arguments(base, tmp_path / "last", eval_steps=1, load_best_model_at_end=False)
    expected = train_on(last, ROWS, ROWS[:4])
    output = tmp_path / "out"
    given = arguments(base, output, eval_steps=1, load_best_model_at_end=True)
    with caplog.at_level(logging.WARNING):
        found = train_on(given, ROWS, ROWS[:4], callbacks=[_Vanish(STEPS)])
    assert "the best checkpoint, has vanished: the final model is that of the last step" in (
        caplog.text
    )
    assert weights(output) == weights(tmp_path / "last")
    assert found.after is not None
    assert expected.after is not None
    assert found.after.metrics == expected.after.metrics


@pytest.mark.parametrize("how", ["moved", "named by its whole path"])
def test_the_best_checkpoint_under_another_path(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on finds it where it lies: it is kept, and is the final model.

    The best is the one of the greatest loss here, so that it is the first.
    """
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {
        "eval_steps": 1,
        "metric_for_best_model": "loss",
        "greater_is_better": True,
        "learning_rate": 1e-3,
    }
    base, output = tmp_path / "base", Path("out")
    train_on(arguments(base, output, save_total_limit=None, **given), ROWS, ROWS[:4])
    output = output.rename("moved") if how == "moved" else output.absolute()
    resumed = arguments(base, output, save_total_limit=1, **given)
    train_on(resumed, ROWS, ROWS[:4], resume_from=str(output / "checkpoint-2"))
    state = json.loads((output / run_folder.STATE_FILE).read_text())
    assert state["best_global_step"] == 1
    assert Path(state["best_model_checkpoint"]) == output / "checkpoint-1"
    assert {path.name for path in run_folder.checkpoints(output)} == {
        "checkpoint-1",
        "checkpoint-3",
    }
    assert weights(output) == weights(output / "checkpoint-1")
    assert weights(output) != weights(output / "checkpoint-3")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the first step, not by the first checkpoint."""

    def read_only(*args: Any, **named: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    given = arguments(tmp_path / "base", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.tempfile, "mkdtemp", read_only)
        with pytest.raises(
            ConfigError, match=r"out cannot be written \(Read-only file system\); ch"
        ):
            train_on(given, ROWS, [])


def test_a_run_that_came_to_no_checkpoint_is_replaced(tmp_path: Path) -> None:
    """Killed between its first evaluation and its first checkpoint: its files are a run's."""
    output = tmp_path / "out"
    (output / "validation").mkdir(parents=True)
    (output / "validation" / "before.jsonl").write_text("{}\n")
    given = arguments(tmp_path / "base", output, overwrite=True)
    assert run_folder.prepare(output, given) is None
    train_on(given, ROWS, [])
    assert not (output / "validation" / "before.jsonl").exists()
    (output / "thesis").mkdir()
    assert run_folder.prepare(output, given) is None
    with pytest.raises(ConfigError, match="no run of Rankwright; nothing was deleted"):
        run_folder.prepare(tmp_path, arguments(tmp_path / "base", tmp_path, overwrite=True))


def test_refused_rows_alone_are_no_run(tmp_path: Path) -> None:
    """They are written before the first step: a command that was stopped there begins again."""
    output = tmp_path / "out"
    output.mkdir()
    (output / run_folder.REFUSED_FILE).write_text("{}\n")
    given = arguments(tmp_path / "base", output)
    assert run_folder.prepare(output, given) is None
    (output / "thesis").mkdir()
    with pytest.raises(ConfigError, match="out is not empty; choose another"):
        run_folder.prepare(output, given)


def flip(path: Path, place: int) -> None:
    """One bit of a file, as a disk may."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", ["cut", "lost", "no marker", "broken marker", "a bit", "zeros"])
def test_a_damaged_checkpoint_is_skipped(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    train_on(arguments(tmp_path / "base", output), ROWS, [])
    last = output / "checkpoint-3"
    if damaged == "cut":
        os.truncate(last / "optimizer.pt", 100)
        reason = "optimizer.pt has 100 bytes in place of "
    elif damaged == "lost":
        (last / "rng_state.pth").unlink()
        reason = "rng_state.pth is missing"
    elif damaged == "no marker":
        (last / MARKER).unlink()
        reason = f"{MARKER} is missing"
    elif damaged == "a bit":
        flip(last / "model.safetensors", -1)
        reason = "model.safetensors does not hold what was written"
    elif damaged == "zeros":
        size = (last / "optimizer.pt").stat().st_size
        (last / "optimizer.pt").write_bytes(bytes(size))
        reason = "optimizer.pt does not hold what was written"
    else:
        (last / MARKER).write_text('{"sizes"')
        reason = MARKER
    given = arguments(tmp_path / "base", output, resume=True)
    with caplog.at_level(logging.WARNING):
        start = run_folder.prepare(output, given)
    assert start == str(output / "checkpoint-2")
    assert f"{last} is skipped: it is not whole" in caplog.text
    assert reason in caplog.text
    named = arguments(tmp_path / "base", output, resume_from_checkpoint=str(last))
    with pytest.raises(CheckpointError, match=r"is not whole .*; name an earlier checkpoint"):
        run_folder.prepare(output, named)
    assert train_on(given, ROWS, [], resume_from=start).steps == STEPS
    assert damage(last) is None, "written anew in its place"


def test_what_a_checkpoint_had_before_it_had_checksums(tmp_path: Path) -> None:
    """Their names and sizes are looked at, as before."""
    (tmp_path / "a").write_bytes(b"ab")
    run_folder.write_marker(tmp_path, MARKER, {})
    flip(tmp_path / "a", 0)
    assert damage(tmp_path, contents=True) is None
    # CRC-32 of "123456789" is 0xCBF43926, the check value of its definition
    (tmp_path / "a").write_bytes(b"123456789")
    run_folder.write_marker(tmp_path, MARKER, {}, checksums=True)
    assert run_folder.read_marker(tmp_path, MARKER)["crc32"] == {"a": 0xCBF43926}
    flip(tmp_path / "a", 0)
    assert damage(tmp_path) is None
    assert "a does not hold what was written" in str(damage(tmp_path, contents=True))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and folder of it is synced behind the last byte written, then it is renamed.

    SIGKILL leaves what the system has in memory, so only a machine that loses its power would show.
    """
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(source: Any, target: Any) -> None:
        events.append(("rename", str(target)))
        rename(source, target)

    work, output = run_folder.staging(tmp_path) / "checkpoint-1", tmp_path
    (work / "deep").mkdir(parents=True)
    for name in ("model.safetensors", "deep/part"):
        (work / name).write_bytes(b"weights")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    run_folder.finish_checkpoint(output, "checkpoint-1", Progress(1, 1, None, 1, [1, 1]))
    at = events.index(("rename", str(output / "checkpoint-1")))
    before = {name for what, name in events[:at] if what == "sync"}
    names = ("", "/deep", "/deep/part", "/model.safetensors", f"/{MARKER}")
    assert before >= {f"{work}{name}" for name in names}
    assert ("sync", str(output)) in events[at:], "nor is the name there without the folder's own"
    assert damage(output / "checkpoint-1", contents=True) is None


def test_processes_go_on_from_one_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may have read a file wrongly; each alone would go on from its own."""

    def all_gather(found: list[Any], own: Any) -> None:
        found[:] = [own, "checkpoint-20" if own.startswith("checkpoint") else own]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    two = SimpleNamespace(process_index=0, world_size=2)
    trainer._agree_on_start(two, "/node-1/out/checkpoint-20", [], [])
    with pytest.raises(CheckpointError, match=r"\(checkpoint-10, checkpoint-20\); the same"):
        trainer._agree_on_start(two, "/out/checkpoint-10", [], [])
    one = SimpleNamespace(process_index=0, world_size=1)
    trainer._agree_on_start(one, "/out/checkpoint-10", [], [])


def test_processes_train_on_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may be changed between the reading of two of them."""
    told: list[str] = []

    def all_gather(found: list[Any], own: str) -> None:
        told.append(own)
        found[:] = [own, told[1] if len(told) % 2 == 0 else own]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    two = SimpleNamespace(process_index=0, world_size=2)
    rows = tiny.examples(5)
    trainer._agree_on_start(two, None, rows[:3], rows[3:])
    trainer._agree_on_start(two, None, rows[:3], rows[3:])
    other = dataclasses.replace(rows[1], labels=[0.0, 1.0, *rows[1].labels[2:]])
    for changed in (rows[:2], [rows[0], other, rows[2]], rows[2::-1]):
        with pytest.raises(DataError, match="the processes have read other rows; all must"):
            trainer._agree_on_start(two, None, changed, rows[3:])


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """Of two in one folder the second is refused, whatever it was told to do, also at the end."""
    base, output = tiny.save_base(tmp_path / "base", "bert"), tmp_path / "runs" / "out"
    dataset, tried = str(tmp_path / "rows.jsonl"), []
    rows = [
        {"query": e.query, "positive": e.documents[:1], "negative": e.documents[1:]}
        for e in tiny.examples(4)
    ]
    Path(dataset).write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Second(transformers.TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with pytest.raises(HeldError), locked(output / LOCK, timeout=0):
                pass
            tried.append(state.global_step)

    with pytest.raises(CheckpointError, match=r"--resume: .* holds no whole checkpoint"):
        trainer.train(arguments(base, output, dataset=[dataset], resume=True))
    assert not output.parent.exists()
    trainer.train(arguments(base, output, dataset=[dataset]), callbacks=[Second()])
    assert tried == list(range(1, STEPS + 1))
    before = sorted(output.rglob("*"))
    assert output / LOCK not in before
    told = r"--output_dir .*out: another run is writing there; choose another"
    with locked(output / LOCK), pytest.raises(ConfigError, match=told):
        trainer.train(arguments(base, output, dataset=[dataset], overwrite=True))
    assert sorted(output.rglob("*")) == before


def test_a_lock_of_another_process_stays(tmp_path: Path) -> None:
    """Where the folder has vanished with the first one's, and was made anew."""
    output = tmp_path / "out"
    output.mkdir()
    with locked(output / LOCK, timeout=0):
        shutil.rmtree(output)
        output.mkdir()
        (output / LOCK).touch()
    assert (output / LOCK).exists()


def test_what_a_killed_run_leaves_in_a_free_folder(tmp_path: Path) -> None:
    """Its lock, and the cache, if it was to lie there, are no run."""
    output = tmp_path / "out"
    (output / "kept" / "rows").mkdir(parents=True)
    (output / LOCK).touch()
    (tmp_path / "link").symlink_to(tmp_path)
    base = tmp_path / "base"
    for cache in (output / "kept", tmp_path / "link" / "out" / "kept"):
        given = arguments(base, output, cache_dir=str(cache))
        assert run_folder.prepare(output, given) is None
    with pytest.raises(ConfigError, match="is not empty"):
        run_folder.prepare(output, arguments(base, output))
    with pytest.raises(ConfigError, match=r"--cache_dir .*out is --output_dir; choose a folder in"):
        run_folder.prepare(output, arguments(base, output, cache_dir=str(output)))


def test_nothing_is_written_before_all_have_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is behind would take the first one's folder for another run's."""
    base, output = tiny.save_base(tmp_path / "base", "bert"), tmp_path / "out"
    seen = []

    def agree(processes: Processes, value: str, refused: Any) -> None:
        seen.append((value, sorted(path.name for path in output.glob("*"))))

    monkeypatch.setattr(Processes, "agree", agree)
    rows = tiny.examples(4)
    train_on(arguments(base, output), rows, [])
    before = sorted(path.name for path in output.iterdir())
    (output / "rows.refused.jsonl").write_text("{}\n")
    train_on(arguments(base, output, overwrite=True), rows, [])
    assert seen == [("none", []), ("none", sorted([*before, "rows.refused.jsonl"]))]
    assert not (output / "rows.refused.jsonl").exists()


def test_nothing_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(CheckpointError, match=r"--resume: .* holds no whole checkpoint; leave out"):
        last_whole(tmp_path)


def test_rotation_keeps_the_best_and_what_is_whole(tmp_path: Path) -> None:
    """A broken checkpoint of a later step does not push a whole one out."""
    for step in (1, 2, 3, 4, 9):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step != 9:
            (folder / MARKER).write_text('{"sizes": {}}')
    kept = {tmp_path / "checkpoint-1", tmp_path / "checkpoint-4"}
    for limit in (2, 1):
        rotate(tmp_path, limit, kept)
        assert set(run_folder.checkpoints(tmp_path)) == kept
    run_folder.clean(tmp_path)
    assert set(tmp_path.iterdir()) == kept


def test_the_limit_and_the_best_of_a_run(tmp_path: Path) -> None:
    output = tmp_path / "out"
    given = arguments(tmp_path / "base", output, save_total_limit=1, eval_steps=1, max_steps=5)
    train_on(given, ROWS, ROWS[:4])
    state = json.loads((output / run_folder.STATE_FILE).read_text())
    best = Path(state["best_model_checkpoint"])
    assert best == output / f"checkpoint-{state['best_global_step']}"
    assert {path.name for path in run_folder.checkpoints(output)} == {best.name, "checkpoint-5"}
    inner = json.loads((output / "checkpoint-5" / run_folder.STATE_FILE).read_text())
    assert inner["best_model_checkpoint"] == str(best)
