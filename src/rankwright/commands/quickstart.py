"""``rankwright quickstart``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rankwright.commands.common import own, parse


@dataclass
class QuickstartArguments:
    """The quickstart."""

    model: str | None = dataclasses.field(
        default=None, metadata={"help": "base model; default: the packaged all-MiniLM-L6-v2"}
    )
    output_dir: str = dataclasses.field(
        default="quickstart", metadata={"help": "folder for the rows and the model"}
    )
    seed: int = dataclasses.field(default=42, metadata={"help": "of the split and the training"})
    max_steps: int = dataclasses.field(
        default=-1, metadata={"help": "stop after so many steps; default: the whole run"}
    )
    overwrite: bool = dataclasses.field(
        default=False, metadata={"help": "replace what the folder holds"}
    )


def types() -> list[type]:
    """The command's arguments."""
    return [QuickstartArguments]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    options = own(QuickstartArguments, parse("quickstart", types(), words))
    from rankwright.quickstart import quickstart

    quickstart(
        model=options.model,
        output_dir=Path(options.output_dir),
        seed=options.seed,
        max_steps=options.max_steps,
        overwrite=options.overwrite,
    )
    return 0
