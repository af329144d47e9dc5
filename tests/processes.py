"""Servers in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers.

    Attributes:
        url: its address.
        process: what runs it; its standard input is open.
        output: the file of its standard error.
    """

    url: str
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.output.read_text("utf-8")


@contextmanager
def start(command: list[str], **environment: str) -> Iterator[ServerProcess]:
    """Start a server that writes its address; SIGTERM ends it, with code 0 and no traceback."""
    with tempfile.NamedTemporaryFile() as file:
        output = Path(file.name)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=file, env={**os.environ, **environment}
        )
        with process:
            try:
                while not (found := re.search(r"http://[\w.:]+(?=\s)", output.read_text("utf-8"))):
                    assert process.poll() is None, output.read_text("utf-8")
                    time.sleep(0.05)
                yield ServerProcess(found[0], process, output)
            finally:
                process.terminate()
                try:
                    code = process.wait(60)
                finally:
                    # one that does not end must not outlive its test
                    process.kill()
        text = output.read_text("utf-8")
        assert (code, "Traceback" in text) == (0, False), text


def serve(*words: str, **environment: str) -> AbstractContextManager[ServerProcess]:
    """``rankwright serve`` on a free port."""
    command = [sys.executable, "-m", "rankwright", "serve", *words, "--port", "0"]
    return start(command, **environment)
