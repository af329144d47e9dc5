"""What is printed beside the results."""

from __future__ import annotations

import pytest
from rich.table import Table

from rankwright.progress import console


def test_texts_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names may hold brackets, which rich would read as markup, and be longer than a line."""
    monkeypatch.delenv("COLUMNS", raising=False)
    line = f"written to runs[red]/[/]{'x' * 300}/metrics.json"
    console.print(line)
    assert capsys.readouterr().err == f"{line}\n"


def test_tables_are_not_folded_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table(*("a column of some width" for _ in range(5)))
    table.add_row(*("x" * 22 for _ in range(5)))
    console.print(table)
    assert capsys.readouterr().err.count("x" * 22) == 5
    monkeypatch.setenv("COLUMNS", "60")
    console.print(table)
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 60


def test_one_of_several_processes_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    console.print("once")
    assert not capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    console.print("once")
    assert capsys.readouterr().err == "once\n"
