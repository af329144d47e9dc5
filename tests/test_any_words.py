"""Properties of the command line: any words and any recipe are done, or one line and code 2."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from rankwright import arguments, cli
from rankwright.errors import ConfigError
from tests import tiny

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# a process cannot be given a null byte or half of a surrogate pair of its own
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
ODD = [
    "", " ", "-1", "nan", "1e999", "9" * 5000, "x" * 5000, "a/" * 3000, "~nobody/x", "a#b", "a#5",
    "owner/name", "/", ".", "..", "{", "{}", "[1]", "true", "None", "a\nb", "é", "%s", "{x}",
    "/proc/self/mem", "a:b:c", "a b c",
]  # fmt: skip
NASTY = st.sampled_from([*ODD, "-", "--", "inf", "~", "\ud7ff", "/dev/null"])
FLAGS = {
    command: sorted(f.name for kind in cli.module(command).types() for f in fields(kind))
    for command in cli.COMMANDS
    if command != "quickstart"  # needs nothing, so any words would train
}
RECIPE = [*arguments.GROUPS, TrainingArguments]
# transformers' own; one of them changes the environment, and compiling takes long
TRAINING = sorted(
    f.name
    for f in fields(TrainingArguments)
    if f.init and f.name != "full_determinism" and "compile" not in f.name
)


@st.composite
def command_lines(draw: Any) -> list[str]:
    command = draw(st.sampled_from(sorted(FLAGS)))
    words = [command]
    for _ in range(draw(st.integers(0, 5))):
        flag = draw(st.sampled_from(FLAGS[command]) | VALUES)
        words.append(f"--{flag}" + draw(st.sampled_from(["", "=", "=1"])))
        words += draw(st.lists(NASTY | VALUES, max_size=2))
    return words


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without models and rows, and a home and caches in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def check_message(said: str) -> None:
    assert "\n" not in said
    assert 0 < len(said) < 10_000


def check(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(words)
    said = capsys.readouterr()
    assert code in (0, 2)
    if code == 2:
        assert said.err.startswith("rankwright: ")
        assert said.err.endswith("\n")
        check_message(said.err[:-1])


@SETTINGS
@given(words=command_lines())
def test_any_words(words: list[str], nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(words, capsys)


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_with_every_nasty_value(
    command: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What names a file, a folder or a hub is looked for, with any name."""
    names = {
        "model", "dataset", "input", "documents", "output", "output_dir", "queries", "corpus",
        "val_dataset", "template", "write_scores", "compare_with", "qrels", "cache_dir",
        "work_dir", "deepspeed",
    }  # fmt: skip
    flags = [flag for flag in FLAGS[command] if flag in names]
    for flag in flags + (["output_dir", "deepspeed"] if command == "train" else []):
        for value in ("x" * 5000, "~nobody/x", "a/" * 3000, "a\nb", "%s", ""):
            base = [] if flag == "model" or command == "mine" else ["--model", "no/such/model"]
            if command in ("report", "compare"):
                base = ["x"] * (1 + (command == "compare"))
            if flag not in ("dataset", "queries") and command not in ("serve", "mine"):
                base += ["--dataset", "no.jsonl"] if "dataset" in FLAGS[command] else []
            if command == "mine" and flag != "queries":
                base += ["--queries", "no.jsonl"]
            if command == "mine" and flag != "output":
                base += ["--output", "no-out.jsonl"]
            check([command, *base, f"--{flag}", value], capsys)


# words that do their command's work, so that a value put among them is looked at
WORK = {
    "train": "train --model {base} --dataset {rows} --max_steps 1 --use_cpu true --report_to none",
    "evaluate": "evaluate --model {model} --dataset {rows}",
    "calibrate": "calibrate --model {model} --dataset {rows} --output calibrated",
    "rank one query": "rank --model {model} --query fox --documents {documents}",
    "rank a file": "rank --model {model} --input {queries} --output ranked.jsonl",
    "rank for a teacher": "rank --model {model} --dataset {rows} --write_scores scored.jsonl",
    "export": "export --model {model} --to seq-cls --output exported",
    "compare": "compare {base} {model} --dataset {rows}",
    "mine": "mine --queries {rows} --output mined.jsonl",
    "serve": "serve --model {model} --port 0",
    "report": "report {run} --output report.html",
    "check": "check {rows} --model {model}",
}
PLACES = ("a folder", "a file", "a socket", "a terminal", "a link to nothing")
# without /dev/null: were it replaced, it would be this machine's
LOOKED_AT = [
    *ODD, "0", "1", "0.5", "-inf", '{"a": 1}', "auto", "1,2", "ndcg@0",
    "ndcg@9999999999999999999999", *PLACES,
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model as a hub gives it, a run that trained it, its calibrated model, and rows."""
    folder = tmp_path_factory.mktemp("given")
    lines = {
        "rows": [
            {"query": f"fox {n}", "positive": ["a fox jumps"], "negative": ["rain falls", "a dog"]}
            for n in range(6)
        ],
        "queries": [{"query": "fox", "documents": ["a fox", "rain"]}],
        "documents": [{"text": "the quick fox"}, {"text": "rain"}],
    }
    names = {"base": str(tiny.save_base(folder / "base", "bert"))}
    for name, rows in lines.items():
        names[name] = str(folder / f"{name}.jsonl")
        Path(names[name]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    names |= {"run": str(folder / "run"), "model": str(folder / "model")}
    learned = "--max_steps 30 --learning_rate 1e-3 --output_dir {run}"
    for line in (
        f"{WORK['train']} {learned}",
        "calibrate --model {run} --dataset {rows} --output {model} --precision 0.5",
    ):
        assert cli.main(line.format(**names).split()) == 0
    return names


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is stopped before it listens."""

    async def stopped(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr("uvicorn.Server.serve", stopped)


@contextlib.contextmanager
def place(folder: Path) -> Iterator[None]:
    """Stand in a new folder in which each of ``PLACES`` is what its name says."""
    before = Path.cwd()
    folder.mkdir()
    os.chdir(folder)
    (folder / "a folder").mkdir()
    (folder / "a file").write_bytes(bytes(range(256)))
    (folder / "a link to nothing").symlink_to(folder / "nothing")
    here = socket.socket(socket.AF_UNIX)
    ours, theirs = os.openpty()
    (folder / "a terminal").symlink_to(os.ttyname(theirs))
    try:
        here.bind("a socket")
        yield
        # what is no file can be written to, and must not become one
        assert (folder / "a socket").is_socket()
        assert (folder / "a terminal").is_char_device()
        assert (folder / "a folder").is_dir()
    finally:
        here.close()
        os.close(ours)
        os.close(theirs)
        os.chdir(before)
        shutil.rmtree(folder)


def flags_of(name: str) -> list[str]:
    return FLAGS[WORK[name].split()[0]] + (TRAINING if name == "train" else [])


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).digest() for path in files}


def look_at(
    name: str, flag: str, value: str, inputs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Give a flag a value among words that do their work; what is refused is named."""
    words = [word.format(**inputs) for word in WORK[name].split()]
    if f"--{flag}" in words:
        del words[words.index(f"--{flag}") : words.index(f"--{flag}") + 2]
    before = content(Path(inputs["run"]).parent)
    with place(Path("here").resolve()):
        code = cli.main([*words, f"--{flag}={value}"])
    assert content(Path(inputs["run"]).parent) == before
    said = capsys.readouterr().err
    assert code in (0, 2)
    if code == 2:
        line = said[said.rindex("rankwright: ") :]
        check_message(line[:-1])
        # a value of many words may have one that is to blame
        parts = [word[:50] for cut in (None, ",", "#") for word in value.split(cut) if word]
        shown = [flag, *parts, *(repr(word)[1:-1] for word in parts)]
        assert not value.strip() or any(word in line for word in shown)


@pytest.mark.parametrize("name", WORK)
def test_words_that_do_their_work(
    name: str, inputs: dict[str, str], nowhere: Path, served: None, capsys: Any
) -> None:
    """Or the next two would look at nothing."""
    assert cli.main(WORK[name].format(**inputs).split()) == 0, capsys.readouterr().err


@settings(SETTINGS, max_examples=100)
@given(data=st.data())
def test_any_value_is_looked_at(
    data: Any, inputs: dict[str, str], nowhere: Path, served: None, capsys: Any
) -> None:
    name = data.draw(st.sampled_from(list(WORK)))
    flag = data.draw(st.sampled_from(flags_of(name)))
    look_at(name, flag, data.draw(st.sampled_from(LOOKED_AT) | VALUES), inputs, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", WORK)
def test_every_value_is_looked_at(
    name: str, inputs: dict[str, str], nowhere: Path, served: None, capsys: Any
) -> None:
    problems = []
    for flag in flags_of(name):
        for value in LOOKED_AT[:: 4 if flag in TRAINING else 1]:
            try:
                look_at(name, flag, value, inputs, capsys)
            except Exception as error:
                problems.append(f"--{flag} {value[:30]!r}: {error!r}")
    assert not problems, "\n".join(problems)


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | VALUES | NASTY | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(VALUES, inner, max_size=3),
    max_leaves=4,
)


@settings(SETTINGS, max_examples=25)
@given(
    content=st.dictionaries(
        st.sampled_from(FLAGS["train"] + TRAINING) | VALUES, YAML, max_size=4
    ).map(lambda values: yaml.safe_dump({"model": "m", "dataset": "a", **values}).encode())
    | st.binary(max_size=40)
    | st.text(max_size=40).map(str.encode)
    | st.sampled_from(
        [
            b"a: &a [*a]", b"a: !!python/object/apply:os.getcwd []", b"- 1",
            b"? [1]\n: 2", b"a: 1\na: 2", b"\xff", b"<<: {model: m}", b"a: !!binary =",
            b'model: "a\\0b"', b"a: &a x\nb: *a", b"a: 2001-13-45",
            b"a: " + b"9" * 5000,
        ]
    )
)  # fmt: skip
def test_any_recipe(content: bytes, nowhere: Path) -> None:
    """Parsed and resolved, or one line; nothing in it is run."""
    path = nowhere / "recipe.yaml"
    path.write_bytes(content)
    try:
        given = arguments.parse("rankwright train", RECIPE, [str(path)], recipe=True)
        arguments.resolve(given, {})
    except ConfigError as error:
        check_message(str(error))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: " + b"{" * 600, "is nested too deeply; write one 'name: value' a line"),
        (b"a: 2001-13-45", "is not YAML: month must be in 1..12; correct it"),
        (b"a: " + b"9" * 5000, "is not YAML: Exceeds the limit (4300 digits)"),
        (b'model: "a\\0b"', ":1: model holds a null byte; take it out"),
    ],
)
def test_what_the_recipes_found(
    content: bytes, said: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nowhere / "r.yaml").write_bytes(content)
    assert cli.main(["train", "r.yaml"]) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_runs_nothing(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = nowhere / "marker"
    (nowhere / "r.yaml").write_text(
        f"model: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path "
        f"['{marker}']]\n"
    )
    assert cli.main(["train", "r.yaml"]) == 2
    assert "is not YAML" in capsys.readouterr().err
    assert not marker.exists()


def test_a_pipe_is_no_folder(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that exists and is neither file nor folder is said to be so, and not waited for."""
    os.mkfifo(nowhere / "pipe")
    check(["train", "--model", "pipe", "--dataset", "x"], capsys)
