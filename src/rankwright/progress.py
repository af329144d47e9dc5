"""What a user watches: rich progress bars, and plain lines where the output is no terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# of several processes the first one speaks; torchrun and accelerate number them in RANK
console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


def bar() -> Progress:
    """A bar with count, time spent, time left and free text; silent where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def tracked(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar; the function that is yielded advances it."""
    with bar() as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda steps: progress.advance(task, steps)
