"""A run's output folder: which checkpoints are whole, where to resume, what may be deleted.

``checkpoint-N`` is written as ``.saving/checkpoint-N``, synced, given its marker last and renamed,
so whatever kills a run leaves the checkpoints before it as they are.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from rankwright.arguments import TrainArguments
from rankwright.errors import CheckpointError, ConfigError
from rankwright.files import DamagedError, publish, read_marker, sync, sync_names, write_marker
from rankwright.models import checkpoint
from rankwright.records import FOLDER, NAMES

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
METRICS_FILE = "metrics.json"
ADAPTER_FOLDER = "adapter"
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


def finish_checkpoint(output: Path, name: str) -> Path:
    """Make a checkpoint out of what stands in ``staging``: synced, its marker last, then renamed.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    work = staging(output) / name
    write_marker(work, MARKER, {})
    # the name comes after all of it is on the disk, so one sync does
    sync(work)
    publish(work, output / name)
    return output / name


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


def damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint; None where it is whole."""
    try:
        read_marker(folder, MARKER)
    except (DamagedError, PermissionError) as error:
        return str(error)
    return None


def prepare(output: Path, arguments: TrainArguments) -> str | None:
    """Refuse a folder that holds another run, or find the checkpoint to resume from.

    Nothing is deleted here: ``clear`` does that once rows and model are known to be good.
    """
    named = arguments.training.get("resume_from_checkpoint")
    if isinstance(named, str) and named.lower() not in ("true", "false"):
        if not (Path(named) / STATE_FILE).is_file():
            raise CheckpointError(
                f"--resume_from_checkpoint {named} holds no {STATE_FILE}; name a checkpoint-N "
                "folder"
            )
        if (reason := damage(Path(named))) is not None:
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
    if not (output.is_dir() and any(output.iterdir())):
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
        reason = damage(folder)
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
    """Whether a folder holds a run of Rankwright."""
    places = (folder, *checkpoints(folder))
    return any((place / checkpoint.SPEC_FILE).is_file() for place in places)


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
        ADAPTER_FOLDER,
        SAVING,
        LEFT,
    ):
        for path in output.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
