"""``rankwright check``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rankwright.commands.common import (
    bad_rows_policy,
    check_rows_are_read,
    model_arguments,
    names_in_front,
    own,
    parse,
)
from rankwright.errors import ConfigError


@dataclass
class CheckArguments:
    """What to look at."""

    dataset: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "files, folders or hub ids of rows"}
    )
    instructions: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "task description of each dataset's rows, '' for none"},
    )
    val_dataset: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "validation rows, to look for leaks"}
    )
    val_instructions: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "the same for each --val_dataset"}
    )
    data_format: str | None = dataclasses.field(
        default=None, metadata={"help": "name of the row layout; default: by columns"}
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import BadRowArguments, ModelArguments

    return [CheckArguments, BadRowArguments, ModelArguments]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    files, words = names_in_front(words)
    if files:
        words = ["--dataset", *files, *words]
    given = parse("check", types(), words)
    options = own(CheckArguments, given)
    model = model_arguments(given)
    if not options.dataset and not model.model:
        raise ConfigError(
            "give rows to look at, --model, or both: rankwright check rows.jsonl --model M"
        )
    from rankwright.arguments import BadRowArguments
    from rankwright.check import check_model, check_rows

    check_rows_are_read(given, options.dataset, (CheckArguments, BadRowArguments))
    if model.model:
        check_model(model, alone=not options.dataset)
    if options.dataset:
        check_rows(
            options.dataset,
            options.val_dataset,
            options.data_format,
            model,
            options.instructions,
            options.val_instructions,
            bad_rows=bad_rows_policy(given),
        )
    return 0
