"""What a user watches: rich progress bars, and plain lines where the output is no terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# of a file or a pipe, which has no width of its own: tables need not be folded
PLAIN_WIDTH = 160


class _Console(Console):
    """Standard error, with texts as they are: brackets are no markup, lines are not broken.

    Of several processes the first one speaks; torchrun and accelerate number them in ``RANK``.
    """

    @property
    def quiet(self) -> bool:
        """Whether nothing is shown."""
        return os.environ.get("RANK", "0") != "0"

    @quiet.setter
    def quiet(self, value: bool) -> None:
        """Nothing; it is the environment's."""

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        found = super().size
        columns = os.environ.get("COLUMNS", "")
        if columns.isdigit():
            return ConsoleDimensions(int(columns), found.height)
        return found if self.is_terminal else ConsoleDimensions(PLAIN_WIDTH, found.height)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, or tables and what else is drawn."""
        if all(isinstance(text, str) for text in objects):
            options = {"markup": False, "highlight": False, "soft_wrap": True} | options
        super().print(*objects, **options)


console = _Console(stderr=True)


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
