"""The quickstart's whole path, with few steps and lists; its figures are in the README."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from rankwright import quickstart as room
from rankwright import stdlib_rows
from rankwright.cli import main
from rankwright.ranking import Reranker

pytest.importorskip("bm25s", reason="extra quickstart")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = stdlib_rows.stdlib_sources
    # whole, the library takes ten seconds, and is read by its own tests
    monkeypatch.setattr(stdlib_rows, "stdlib_sources", lambda: islice(sources(), 0, None, 3))
    monkeypatch.setattr(room, "HELD_OUT", 6)
    monkeypatch.setitem(room.RECIPE, "per_device_train_batch_size", 2)


def test_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        room.packaged_minilm()
    except Exception as error:
        pytest.skip(f"the packaged model is not installed ({error})")
    out = tmp_path / "quickstart"
    assert main(["quickstart", "--output_dir", str(out), "--max_steps", "2"]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    for text in (
        "first stage (BM25)",
        "before training",
        "after training",
        "ndcg@10",
        "tie rate",
        "an example:",
        "rankwright train --model",
    ):
        assert text in shown
    assert len(Reranker.load(out / "model").rank("a query", ["one", "two"])) == 2
    assert (out / "rows" / "train.jsonl").is_file()
    assert main(["quickstart", "--output_dir", str(out)]) == 2
    assert "is not empty; choose another or add --overwrite" in capsys.readouterr().err
