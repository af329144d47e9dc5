"""A run's output folder: which checkpoints are whole, where to resume, what may be deleted.

``checkpoint-N`` is written as ``.saving/checkpoint-N``, synced, given its marker last and renamed,
so whatever kills a run leaves the checkpoints before it as they are.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from rankwright.arguments import TrainArguments, cache_folder
from rankwright.data.readers import REFUSED
from rankwright.errors import CheckpointError, ConfigError
from rankwright.files import (
    LOCK,
    DamagedError,
    HeldError,
    locked,
    publish,
    read_marker,
    sync,
    sync_names,
    write_marker,
)
from rankwright.models import checkpoint
from rankwright.progress import console
from rankwright.records import FOLDER, NAMES

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
METRICS_FILE = "metrics.json"
ADAPTER_FOLDER = "adapter"
REFUSED_FILE = f"rows{REFUSED}"
MARKER = "complete.json"
SAVING = ".saving"
# what a process that was killed while it replaced a checkpoint left
LEFT = ".checkpoint-*.part"


def clean(output: Path) -> None:
    """Delete what processes that were killed while they wrote have left."""
    for path in (staging(output), *output.glob(LEFT)):
        shutil.rmtree(path, ignore_errors=True)


def staging(output: Path) -> Path:
    """The folder that a checkpoint is written in."""
    return output / SAVING


@dataclass
class Progress:
    """What a checkpoint knows beside the Trainer's own state; its marker holds it.

    Attributes:
        processes: how many take part; 0 where a checkpoint does not say.
        batch: queries of a process's batch; 1 where a budget of tokens fills it.
        batch_tokens: that budget.
        accumulation: batches of each process in a step.
        asked: what the arguments said of ``batch`` and ``accumulation``, which may be meant for
            another number of processes.
        skipped: steps left out because their numbers were not finite.
        overflows: steps that a loss scaler left out.
        loss: sum of the loss over the steps before the last log.
        loss_since: the same since then.
        parts_since: the same of each part of the loss.
        logged: the step of the last log; None where a checkpoint does not say.
        left_out_before: how many steps had been left out by then.
        truncated: documents and queries that were cut.
        lengths: how many pairs had each length, from 0.
        seconds: time spent in training.
        owes_evaluation: whether a signal came before the evaluation of this step was done.
        intervals: of the metrics before the first step.
    """

    processes: int = 0
    batch: int = 0
    batch_tokens: int | None = None
    accumulation: int = 0
    asked: list[int] = field(default_factory=list)
    skipped: int = 0
    overflows: int = 0
    loss: float = 0.0
    loss_since: float = 0.0
    parts_since: list[float] = field(default_factory=list)
    logged: int | None = None
    left_out_before: int = 0
    truncated: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    seconds: float = 0.0
    owes_evaluation: bool = False
    intervals: dict[str, list[float]] = field(default_factory=dict)


def keep_steps(
    before: Progress, now: Progress, *, drop_last: bool, borrows: bool
) -> dict[str, int]:
    """What to change so that each step of a run that is resumed takes the groups it would have.

    Args:
        before: of the checkpoint.
        now: what this command says.
        drop_last: whether batches that are not full are left out.
        borrows: whether groups borrow documents of their batch.

    Returns:
        Training arguments to replace: none, unless the number of processes is another one.

    Raises:
        ConfigError: the steps would hold other groups.
    """
    if not before.processes:
        return {}

    def size(of: Progress) -> int:
        return of.processes * of.batch * of.accumulation

    # the last batches of an epoch are left out by the step of all processes, so that must stay
    exact = drop_last and now.batch_tokens is None
    if before.batch_tokens == now.batch_tokens:
        if (
            size(before) == size(now)
            and (not borrows or before.batch == now.batch)
            and (not exact or before.accumulation == now.accumulation)
        ):
            return {}
        each, rest = divmod(size(before), now.processes)
        # no batch larger than it was, which the memory may not hold
        fitting = [
            batch
            for batch in range(before.batch, 0, -1)
            if not rest
            and each % batch == 0
            and (not borrows or batch == before.batch)
            and (not exact or each // batch == before.accumulation)
        ]
        # on as many processes the same command says other steps where a resume has replaced some
        if fitting and before.asked == now.asked:
            found = {"gradient_accumulation_steps": each // fitting[0]}
            if now.batch_tokens is None:
                found["per_device_train_batch_size"] = fitting[0]
            others = before.processes != now.processes
            console.print(
                f"resumed on {now.processes} processes"
                f"{f' in place of {before.processes}' if others else ', as before'}: "
                + " ".join(f"--{name} {value}" for name, value in found.items())
                + " keeps the steps as they were"
            )
            return found
    raise ConfigError(
        f"--resume: the run's steps are of {_describe(before)}, here they would be of "
        f"{_describe(now)}: other rows would be seen; give what makes them equal, or begin a new "
        "run from the checkpoint with --model"
    )


def _describe(of: Progress) -> str:
    name = f"--per_device_train_batch_size {of.batch}"
    if of.batch_tokens is not None:
        name = f"--batch_tokens {of.batch_tokens}"
    return (
        f"{of.processes} {'process' if of.processes == 1 else 'processes'} with {name} "
        f"--gradient_accumulation_steps {of.accumulation}"
    )


def read_progress(folder: Path) -> Progress:
    """What a checkpoint's marker says; a checkpoint of before it said anything is silent."""
    values = read_marker(folder, MARKER).get("progress", {})
    return Progress(**{f.name: values[f.name] for f in fields(Progress) if f.name in values})


def finish_checkpoint(output: Path, name: str, progress: Progress) -> Path:
    """Make a checkpoint out of what stands in ``staging``: synced, its marker last, then renamed.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    work = staging(output) / name
    write_marker(work, MARKER, {"progress": asdict(progress)}, checksums=True)
    # the name comes after all of it is on the disk, so one sync does
    sync(work)
    publish(work, output / name)
    return output / name


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Keep other runs from a folder, with a lock that ends with the process.

    Folders that had to be made and were left empty are removed again. One that cannot be made is
    nobody's; ``try_out`` says so.

    Raises:
        ConfigError: another run holds it.
    """
    here = Path(os.path.abspath(output))
    made = [place for place in (here, *here.parents) if not place.exists()]
    with suppress(OSError):
        here.mkdir(parents=True, exist_ok=True)
    try:
        with locked(here / LOCK, timeout=0):
            yield
    except HeldError as error:
        raise ConfigError(
            f"--output_dir {output}: another run is writing there; choose another, or wait until "
            "it has ended"
        ) from error
    finally:
        with suppress(OSError):
            for place in made:
                place.rmdir()


def try_out(output: Path) -> None:
    """Make a folder and write into it, to learn at once what the first checkpoint would.

    Raises:
        OSError: it cannot be made or written.
    """
    output.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryDirectory(prefix=".checkpoint-", suffix=".part", dir=output).cleanup()


def finish_files(work: Path, output: Path, last: str) -> None:
    """Move files of a folder into another one, ``last`` when all others are there.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    sync(work)
    # without its last file the old result is no checkpoint any more, so no mixture is ever read
    (output / last).unlink(missing_ok=True)
    names = sorted(path.name for path in work.iterdir() if path.name != last)
    for name in (*names, last):
        if (output / name).is_dir():
            shutil.rmtree(output / name)
        os.replace(work / name, output / name)
    sync_names(output)
    work.rmdir()


def damage(folder: Path, *, contents: bool = False) -> str | None:
    """Say what is wrong with a checkpoint; None where it is whole.

    Args:
        folder: the checkpoint.
        contents: whether all of it is read, or only names and sizes.
    """
    try:
        read_marker(folder, MARKER, checksums=contents)
    except (DamagedError, PermissionError) as error:
        return str(error)
    return None


def prepare(output: Path, arguments: TrainArguments) -> str | None:
    """Refuse a folder that holds another run, or find the checkpoint to resume from.

    What may stand in a folder that is free: refused rows, which alone are those of a run that was
    stopped before its first step, a run's lock, and the cache, if it is to lie there.

    Nothing is deleted here: ``clear`` does that once rows and model are known to be good.
    """
    named = arguments.training.get("resume_from_checkpoint")
    if isinstance(named, str) and named.lower() not in ("true", "false"):
        if not (Path(named) / STATE_FILE).is_file():
            raise CheckpointError(
                f"--resume_from_checkpoint {named} holds no {STATE_FILE}; name a checkpoint-N "
                "folder"
            )
        if (reason := damage(Path(named), contents=True)) is not None:
            raise CheckpointError(
                f"--resume_from_checkpoint {named} is not whole ({reason}); name an earlier "
                "checkpoint, or use --resume, which finds the last whole one"
            )
        return named
    for place in (output, *output.parents):
        if place.exists() and not place.is_dir():
            where = "" if place == output else f": {place}"
            raise ConfigError(f"--output_dir {output}{where} is a file; name a folder")
    if arguments.run.resume or str(named).lower() == "true":
        return str(last_whole(output))
    free = {REFUSED_FILE, LOCK}
    if cache := cache_folder(arguments.data):
        whole = os.path.realpath(output)
        if os.path.realpath(cache) == whole:
            raise ConfigError(
                f"--cache_dir {cache} is --output_dir; choose a folder in it, or another one"
            )
        if os.path.realpath(cache.parent) == whole:
            free.add(cache.name)
    if not (output.is_dir() and any(path.name not in free for path in output.iterdir())):
        return None
    if not arguments.run.overwrite:
        raise ConfigError(
            f"--output_dir {output} is not empty; choose another, go on with --resume, or replace "
            "it with --overwrite"
        )
    if not is_run(output):
        raise ConfigError(
            f"--overwrite: {output} holds files but no run of Rankwright; nothing was deleted, "
            "choose another folder"
        )
    inputs = (arguments.model.model, *arguments.data.dataset, *arguments.data.val_dataset)
    for name in inputs:
        path = Path(name.split("#")[0])
        if path.exists() and path.resolve().is_relative_to(output.resolve()):
            raise ConfigError(
                f"--overwrite would delete {path}, which this run reads; choose another "
                "--output_dir"
            )
    return None


def last_whole(output: Path) -> Path:
    """The last checkpoint that is whole; what is skipped is logged.

    Raises:
        CheckpointError: there is none.
    """
    found = sorted(checkpoints(output), key=_step, reverse=True)
    for folder in found:
        reason = damage(folder, contents=True)
        if reason is None:
            return folder
        logger.warning("%s is skipped: it is not whole (%s)", folder, reason)
    raise CheckpointError(f"--resume: {output} holds no whole checkpoint; leave out --resume")


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, whole or not."""
    return [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]


def rotate(output: Path, limit: int | None, kept: set[Path]) -> None:
    """Delete checkpoints over a limit: broken ones first, then the oldest; never those ``kept``."""
    if not limit or limit < 0:
        return
    found = sorted(checkpoints(output), key=lambda p: (damage(p) is None, _step(p)))
    excess = len(found) - limit
    for folder in [path for path in found if path not in kept][: max(excess, 0)]:
        # its name first: a deletion that is cut short leaves nothing that looks like a checkpoint
        gone = staging(output) / folder.name
        gone.parent.mkdir(exist_ok=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _step(folder: Path) -> int:
    return int(folder.name.rsplit("-", 1)[1])


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of Rankwright, be it one that came to no checkpoint."""
    begun = [folder / FOLDER / f"{name}.jsonl" for name in NAMES]
    places = [place / checkpoint.SPEC_FILE for place in (folder, *checkpoints(folder))]
    return staging(folder).is_dir() or any(path.is_file() for path in (*places, *begun))


def clear(output: Path) -> None:
    """Delete a former run: its checkpoints and the files that a run writes, nothing else."""
    for path in checkpoints(output):
        shutil.rmtree(path)
    lists = [f"{FOLDER}/{name}.jsonl" for name in NAMES]
    for pattern in (
        *lists,
        *checkpoint.FILES,
        STATE_FILE,
        METRICS_FILE,
        REFUSED_FILE,
        ADAPTER_FOLDER,
        SAVING,
        LEFT,
    ):
        for path in output.glob(pattern):
            # another process may just have tried out the folder
            with suppress(FileNotFoundError):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
