"""What README, CONTRIBUTING and the guides have in common as texts: blocks, commands, a place."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rankwright import cli
from tests.processes import serve
from tests.tiny import examples, save_base

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(?:<!-- ([^\n]+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# where the texts find the server
SERVED = "http://127.0.0.1:8000"
# programs that a shell block names without being run here
OUTSIDE = {"make", "pip", "vllm", "docker", "curl", "git", "torchrun", "python"}


class Block(NamedTuple):
    """A fenced block; ``mark`` is the comment in the line above it.

    ``run``: commands of ours, or curl, which are run. ``serve``: one command that starts a server,
    which answers until the text ends. ``needs: MODULE``: Python that is run where the module is
    installed.
    """

    language: str
    text: str
    mark: str


def benchmark(name: str) -> ModuleType:
    """A script of ``benchmarks``, as a module that finds its folder's other modules."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a text, in order."""
    for mark, language, content in FENCE.findall(text):
        yield Block(language, content, mark)


def prose(text: str) -> str:
    """A text without its fenced blocks."""
    return FENCE.sub("", text)


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def known_arguments() -> set[str]:
    """Every argument of every command, and the names that are accepted for one."""
    from transformers import TrainingArguments

    from rankwright.arguments import ALIASES, WITHOUT_EFFECT

    ours = [kind for name in cli.COMMANDS for kind in cli.module(name).types()]
    known = {f.name for kind in (*ours, TrainingArguments) for f in dataclasses.fields(kind)}
    return known | set(ALIASES) | set(WITHOUT_EFFECT) | {"help", "version"}


def write_files(folder: Path) -> None:
    """Put the models and files that the texts name into a folder, tiny."""
    save_base(folder / "Alibaba-NLP" / "gte-reranker-modernbert-base", "modernbert")
    save_base(folder / "Qwen" / "Qwen3-Reranker-0.6B", "qwen3")
    for name, count, seed in (("rows.jsonl", 20, 0), ("test.jsonl", 4, 1)):
        lines = [
            {"query": e.query, "positive": e.documents[:1], "negative": e.documents[1:]}
            for e in examples(count, seed=seed, longest=12)
        ]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "documents.txt").write_text("fish and frogs\na crane\nbirds sleep\na ship\n")
    queries = [{"query": e.query, "documents": e.documents} for e in examples(3, longest=8)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))


def run_blocks(text: str, name: str, errors: Callable[[], str]) -> int:
    """Run every marked shell block and every Python block, top to bottom, in this folder.

    Args:
        text: the document.
        name: its name, for tracebacks.
        errors: what was written to standard error since the last call.

    Returns:
        How many commands and Python blocks ran.
    """
    namespace: dict[str, Any] = {}
    ran = 0
    url = SERVED
    with contextlib.ExitStack() as stack:
        for block in blocks(text):
            needed = block.mark.removeprefix("needs: ")
            if block.language == "python" and (needed == block.mark or _installed(needed)):
                exec(compile(block.text.replace(SERVED, url), name, "exec"), namespace)
                ran += 1
            if block.mark not in ("run", "serve"):
                continue
            assert block.language == "bash"
            for words in commands(block.text):
                if block.mark == "serve":
                    url = stack.enter_context(_served(words))
                elif words[0] == "curl":
                    _curl([word.replace(SERVED, url) for word in words])
                else:
                    assert words[0] == "rankwright"
                    code = cli.main(words[1:])
                    assert code == 0, f"{shlex.join(words)}\n{errors()}"
                ran += 1
    with warnings.catch_warnings():
        # clients of other packages leave their sockets to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        namespace.clear()
        gc.collect()
    return ran


@contextlib.contextmanager
def _served(words: list[str]) -> Iterator[str]:
    """Start a server by its command, on a free port; its address."""
    assert words[:2] == ["rankwright", "serve"]
    with serve(*words[2:]) as server:
        yield server.url


def _curl(words: list[str]) -> None:
    if shutil.which("curl") is not None:
        subprocess.run([*words, "--fail", "--silent", "--show-error"], check=True)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
