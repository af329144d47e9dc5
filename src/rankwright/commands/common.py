"""What several commands share."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rankwright.errors import ConfigError
from rankwright.files import replacing_text

if TYPE_CHECKING:
    from rankwright.data.readers import FirstStage


@dataclass
class RowArguments:
    """How rows are read."""

    instructions: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "task description of each dataset's rows, '' for none; a row's own wins"},
    )
    data_format: str | None = dataclasses.field(
        default=None, metadata={"help": "name of the row layout; default: by columns"}
    )
    split: str | None = dataclasses.field(
        default=None, metadata={"help": "which files of a folder or hub dataset"}
    )


@dataclass
class ScoringArguments:
    """How much is scored at a time."""

    batch_tokens: int | None = dataclasses.field(
        default=None,
        metadata={"help": "tokens scored at a time; default: 2048 on a CPU, 16384 elsewhere"},
    )


def parse(command: str, types: Sequence[type], words: list[str], **options: Any) -> dict[str, Any]:
    """Flat names and values of a command's words; see ``arguments.parse``."""
    from rankwright import arguments

    return arguments.parse(f"rankwright {command}", types, words, **options)


def own(kind: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The values of one dataclass, out of all that was given."""
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if name in names})


def model_arguments(given: dict[str, Any]) -> Any:
    """What was given about the model, above what the environment says of it."""
    from rankwright import arguments as room

    environment = room.without_tokens(room.from_environment(os.environ, ()), given)
    if (Path(str(given.get("model", ""))) / "rankwright.json").is_file():
        # a checkpoint of ours knows its tokens; a variable left over must not change its scores
        environment = {name: value for name, value in environment.items() if name == "use_hf"}
    return own(room.ModelArguments, {**environment, **given})


def load_reranker(given: dict[str, Any]) -> Any:
    """Load the model that the arguments name."""
    from rankwright import arguments as room
    from rankwright.ranking import Reranker, default_device

    model = model_arguments(given)
    room.check_model_arguments(model)
    passages = room.find_passages(own(room.PassageArguments, given))
    scoring = own(ScoringArguments, given)
    _, world, place = room.process_numbers()
    device = f"cuda:{place}" if world > 1 and default_device().type == "cuda" else None
    return Reranker.load(
        model.model,
        device=device,
        batch_tokens=scoring.batch_tokens,
        passages=passages,
        **room.load_options(model),
    )


def names_in_front(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before the first flag, and those from it on."""
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:count], words[count:]


def check_rows_are_read(
    given: dict[str, Any], dataset: Sequence[str], kinds: Sequence[type[Any]]
) -> None:
    """Refuse what is said of rows where none are read.

    Args:
        given: all that was given.
        dataset: the value of ``--dataset``.
        kinds: the dataclasses that are about its rows.

    Raises:
        ConfigError: something was given and no rows were.
    """
    about = {f.name for kind in kinds for f in dataclasses.fields(kind)} - {"dataset"}
    if not dataset and (found := sorted(about & set(given))):
        raise ConfigError(
            f"--{found[0]} goes with --dataset, and no rows were given; give them, or leave it out"
        )


def load_rows(
    dataset: list[str],
    given: dict[str, Any],
    first_stage: FirstStage | None = None,
    *,
    output: Path | None = None,
) -> Any:
    """Read the rows of ``--dataset`` to rank them, and print what was left out.

    Args:
        dataset: files, folders or hub ids.
        given: all that was given.
        first_stage: where the candidates of a BEIR folder come from.
        output: a file of the command's results, beside which refused rows are written.
    """
    from rankwright.arguments import DataArguments, cache_folder
    from rankwright.data.readers import JUDGED_ALONE
    from rankwright.data.store import load_store
    from rankwright.progress import console

    rows, bad_rows = own(RowArguments, given), bad_rows_policy(given)
    data = load_store(
        dataset,
        cache_folder(DataArguments()),
        instructions=rows.instructions,
        data_format=rows.data_format,
        split=rows.split,
        use_hf=model_arguments(given).use_hf,
        purpose="eval",
        first_stage=first_stage,
        bad_rows=bad_rows,
    )
    report_dropped(data.report.dropped)
    report_refused(bad_rows, output)
    if alone := data.report.noted[JUDGED_ALONE]:
        console.print(f"{alone} x {JUDGED_ALONE}; see rankwright evaluate --first_stage")
    return data.examples


def bad_rows_policy(given: dict[str, Any]) -> Any:
    """What is done about rows that cannot be read."""
    from rankwright.arguments import BadRowArguments
    from rankwright.data.readers import BadRows

    options = own(BadRowArguments, given)
    return BadRows(options.on_bad_row, options.max_bad_rows)


def report_refused(bad_rows: Any, output: Path | None) -> None:
    """Print which rows were refused, and write them beside a file of the results, if any.

    Of several processes the first one does it.
    """
    from rankwright.arguments import process_numbers
    from rankwright.data.readers import refused_file
    from rankwright.progress import console

    if process_numbers()[0]:
        return
    path = None if output is None else refused_file(output)
    for line in bad_rows.report(path):
        console.print(line)


def report_dropped(dropped: dict[str, int]) -> None:
    """Print how many rows were left out, and why."""
    from rankwright.progress import console

    if dropped:
        console.print("left out: " + ", ".join(f"{n} x {reason}" for reason, n in dropped.items()))


def report_truncation(counts: dict[str, int], reranker: Any, when: str = "") -> None:
    """Print how much was cut."""
    from rankwright.progress import console

    counts = {name: count for name, count in counts.items() if count}
    passages = reranker.passages
    if passages is not None and counts.get("documents"):
        console.print(
            f"{counts.pop('documents')} documents were cut at {passages.limit} passages{when}; "
            "raise --max_passages to keep more"
        )
    if counts:
        parts = " and ".join(f"{count} {name}" for name, count in counts.items())
        more = "" if passages is not None or when else ", or give --passages max"
        console.print(
            f"{parts} were cut at {reranker.loaded.spec.max_length} tokens{when}; "
            f"raise --max_length to keep more{more}"
        )


def report_cuts(reranker: Any, processes: Any) -> None:
    """Print how much was cut by all processes that share the work."""
    counts = reranker.truncated
    totals = processes.totals(list(counts.values()))
    report_truncation(dict(zip(counts, totals, strict=True)), reranker)


def make_folder(output: str) -> None:
    """Make a folder, or say that it cannot be made."""
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error


def writer(output: str | None) -> Any:
    """Standard output, or a file that takes its name only when it is whole."""
    if output is None:
        return nullcontext(sys.stdout)
    return _whole_file(output)


@contextmanager
def _whole_file(output: str) -> Iterator[IO[str]]:
    try:
        with replacing_text(Path(output)) as file:
            yield file
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error
