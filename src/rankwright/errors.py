"""The three errors a user can cause.

Each message is one line: what came, what is allowed, what to do.
"""

from __future__ import annotations

# characters of a message
LONGEST = 2000


class RankwrightError(Exception):
    """Base of every error raised on purpose; the command line prints it and exits with 2."""

    def __str__(self) -> str:
        # a name or a value that it repeats may hold line breaks, and be of any length
        line = " ".join(super().__str__().splitlines())
        return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-500:]}"


class ConfigError(RankwrightError):
    """An argument, a model or a combination of them cannot be used."""


class DataError(RankwrightError):
    """A file, a row or a score is not what the contract says."""


class CheckpointError(RankwrightError):
    """A checkpoint is missing, incomplete or belongs to something else."""
