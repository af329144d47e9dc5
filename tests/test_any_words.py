"""Properties of the command line: any words and any recipe are done, or one line and code 2."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwright import arguments, cli
from rankwright.errors import ConfigError

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# a process cannot be given a null byte or half of a surrogate pair of its own
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
NASTY = st.sampled_from(
    [
        "", " ", "-", "--", "-1", "nan", "inf", "1e999", "9" * 5000, "x" * 5000, "a/" * 3000, "~",
        "~nobody/x", "a#b", "a#5", "owner/name", "/", ".", "..", "{", "{}", "[1]", "true", "None",
        "a\nb", "\ud7ff", "é", "%s", "{x}", "/dev/null", "/proc/self/mem", "a:b:c", "a b c",
    ]
)  # fmt: skip
FLAGS = {
    command: sorted(f.name for kind in cli.module(command).types() for f in fields(kind))
    for command in cli.COMMANDS
    if command != "quickstart"  # needs nothing, so any words would train
}


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


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | VALUES | NASTY | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(VALUES, inner, max_size=3),
    max_leaves=4,
)


@settings(SETTINGS, max_examples=25)
@given(
    content=st.dictionaries(st.sampled_from(FLAGS["train"]) | VALUES, YAML, max_size=4).map(
        lambda values: yaml.safe_dump(values).encode()
    )
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
        types = list(arguments.GROUPS)
        given = arguments.parse("rankwright train", types, [str(path)], recipe=True)
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
