"""What a user watches: rich progress bars, and plain lines where the output is no terminal."""

from __future__ import annotations

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

console = Console(stderr=True)


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
