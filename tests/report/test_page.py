"""The page as text: whole, escaped, and honest about what a folder lacks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rankwright import cli
from rankwright.report.findings import find
from rankwright.report.folder import read_run
from rankwright.report.page import render
from rankwright.types import Example
from tests.report.runs import calibrate, good, hostile_rows, make_run, noise
from tests.tiny import examples, save_base

pytest.importorskip("plotly", reason="extra report")


class Page(HTMLParser):
    """Elements, links and texts of a page, the scripts apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path, other: Path | None = None) -> tuple[str, Page]:
    run = read_run(folder)
    rival = read_run(other) if other else None
    text = render(run, find(run, rival), rival)
    return text, Page(text)


def test_a_saved_calibration_is_shown(tmp_path: Path) -> None:
    """Its parameters, its held-out figures, its thresholds, and its curve beside the sigmoid's."""
    folder = make_run(tmp_path / "run")
    _, page = page_of(folder)
    assert "keeps a calibration" not in page.text
    calibrate(folder, ("recall", 0.9))
    _, page = page_of(folder)
    saved = json.loads((folder / "rankwright.json").read_text())["calibration"]
    assert f"platt: scale {saved['parameters']['scale']:.4f}, bias" in page.text
    assert f"calibration error {saved['record']['held_out']['ece']:.4f}" in page.text
    assert "80 queries, 480 documents" in page.text
    assert f"recall {saved['thresholds'][0]['recall']:.4f}" in page.text
    assert "after training: expected calibration error" in page.text
    assert "calibrated: expected calibration error" in page.text


def test_the_page_is_whole(tmp_path: Path) -> None:
    """No element names anything outside; each script that runs is in the policy by its hash."""
    _, page = page_of(make_run(tmp_path / "run"))
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,")), (tag, value)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    kinds = [attributes.get("type") for attributes in page.all("script")]
    assert kinds == ["application/json", None, None]
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    style = re.search(r"<style>(.*?)</style>", page_of(tmp_path / "run")[0], re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_charts_have_texts_and_tables(tmp_path: Path) -> None:
    """Every figure has its element, its label, its sentence and its numbers; ids occur once."""
    _, page = page_of(make_run(tmp_path / "run"))
    figures = json.loads(page.scripts[0])
    drawn = [a for a in page.all("div") if a.get("class") == "chart"]
    assert {a["id"] for a in drawn} == set(figures)
    assert len(figures) == 12
    for attributes in drawn:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 20
    assert page.text.count("The numbers of this chart") == len(figures)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    # headings go down one level at a time
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    targets = {(a.get("href") or "")[1:] for a in page.all("a")}
    assert targets <= set(ids)


def test_figures_hold_the_numbers(tmp_path: Path) -> None:
    """The counts of a histogram are those of the queries; the curve is the log's."""
    folder = make_run(tmp_path / "run")
    _, page = page_of(folder)
    figures = json.loads(page.scripts[0])
    for trace in figures["chart-distribution-0"]["data"]:
        assert sum(trace["y"]) == 80
    loss = figures["chart-loss"]["data"][0]
    assert loss["x"] == list(range(1, 21))
    assert loss["y"][0] == pytest.approx(1.6)
    assert loss["y"][-1] == pytest.approx(0.9)
    change = figures["chart-change"]["data"]
    assert sum(len(trace["y"]) for trace in change) == 80
    assert all(y >= 0 for y in change[0]["y"])
    assert all(y < 0 for y in change[1]["y"])
    assert sum(figures["chart-lengths"]["data"][0]["y"]) == 5


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    """They make no element, and no script is longer than ours; what they say can be read."""
    plain = page_of(make_run(tmp_path / "plain", rows=examples(12, 4)))[1]
    folder = make_run(tmp_path / "<script><img src=x>", rows=hostile_rows())
    text, page = page_of(folder)
    assert len(page.scripts) == len(plain.scripts) == 3
    assert page.scripts[1:] == plain.scripts[1:]
    assert not page.all("img") + page.all("svg")
    assert "</script><script>window.hacked = 1</script> query" in page.text
    assert "{{ 7*7 }}" in page.text
    # nothing of rows stands in the figures
    assert "hacked" not in page.scripts[0]
    assert "<" not in page.scripts[0]
    assert "hf_abcdef" not in text
    assert "(not shown)" in page.text


def test_worst_queries(tmp_path: Path) -> None:
    """By hand: of two queries the second ranks its positive last; ranks before beside it."""
    rows = [
        Example("first", ["right", "wrong"], [1.0, 0.0], query_id="a"),
        Example("second", ["right", "wrong"], [1.0, 0.0], query_id="b"),
    ]
    scores = iter([[1.0, 0.0], [2.0, 1.0], [5.0, 4.0], [1.0, 3.0]])
    folder = make_run(tmp_path / "run", lambda *_: next(scores), lambda *_: next(scores), rows=rows)
    _, page = page_of(folder)
    words = " ".join(page.text.split())
    assert "1 query has ndcg@10 below 1 after training; here is 1, the lowest first" in words
    worst = words.split("shared by tied documents.")[1]
    # the first has nothing wrong
    assert "second" in worst
    assert "first" not in worst.split("Worse than before training")[0]
    assert "ndcg@10 1.0000 → 0.6309" in worst
    assert "rank 1 before 2 label 0 score 3.000 wrong" in worst
    assert "rank 2 before 1 relevant, label 1 score 1.000 right" in worst
    assert "Worse than before training" in worst


def test_no_query_is_bad(tmp_path: Path) -> None:
    """Two positives above one negative, and a query with nothing to find."""
    rows = [
        Example("first", ["right", "true", "wrong"], [1.0, 1.0, 0.0], query_id="a"),
        Example("second", ["wrong", "false", "no"], [0.0, 0.0, 0.0], query_id="b"),
    ]
    folder = make_run(tmp_path / "run", None, lambda *_: [2.0, 2.0, 1.0], rows=rows)
    _, page = page_of(folder)
    words = " ".join(page.text.split())
    assert "Every query with a relevant document has ndcg@10 1 after training." in words
    assert not any(tags.get("id") == "worst-list" for _, tags in page.tags)


def test_ties_share_a_rank(tmp_path: Path) -> None:
    rows = [Example("q", ["a", "b", "c"], [1.0, 0.0, 0.0], query_id="q")]
    folder = make_run(tmp_path / "run", None, lambda *_: [1.0, 1.0, 2.0], rows=rows)
    _, page = page_of(folder)
    words = " ".join(page.text.split())
    assert words.count("rank 2= before -") == 2


@pytest.mark.parametrize(
    ("scores", "more", "said"),
    [
        ((None, good), {}, "this folder has no validation/before.jsonl"),
        ((None, None), {}, "This folder has no validation lists"),
        ((noise, good), {"lengths": None}, "This folder has no lengths"),
        ((noise, None), {"finished": False}, "The run did not come to its end"),
    ],
)
def test_what_a_folder_lacks_is_said(
    tmp_path: Path, scores: Any, more: dict[str, Any], said: str
) -> None:
    _, page = page_of(make_run(tmp_path / "run", *scores, **more))
    assert said in " ".join(page.text.split())


def test_an_old_folder_without_logs(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "trainer_state.json").unlink()
    (folder / "metrics.json").unlink()
    _, page = page_of(folder)
    assert "This folder has no log of its training" in page.text
    (folder / "rankwright.json").unlink()
    assert cli.main(["report", str(folder)]) == 2


def test_other_run(tmp_path: Path) -> None:
    rows = examples(40, 5)
    one = make_run(tmp_path / "one", rows=rows)
    two = make_run(tmp_path / "<b>two", noise, noise, rows=rows)
    text, page = page_of(one, two)
    assert "Against <b>two" in page.text
    assert "<b>two" not in text
    assert "chart-other" in json.loads(page.scripts[0])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into the run's folder or elsewhere; twice the same bytes; what deserves a look is printed."""
    folder = make_run(tmp_path / "run", noise, noise)
    assert cli.main(["report", str(folder)]) == 0
    first = (folder / "report.html").read_bytes()
    printed = capsys.readouterr().err
    assert "warning:" in printed or "problem:" in printed
    out = tmp_path / "deep" / "page.html"
    assert cli.main(["report", str(folder), "--output", str(out)]) == 0
    assert out.read_bytes() == first
    words = ["report", str(folder), "--compare_with", str(folder), "--output", str(out)]
    assert cli.main(words) == 0
    assert b"Against run" in out.read_bytes()


def test_command_ranks_rows(tmp_path: Path) -> None:
    """A folder without validation lists: --dataset fills in what is after."""
    folder = save_base(tmp_path / "run", "bert")
    make_run(folder, None, None)
    (folder / "rankwright.json").unlink()  # it is not this model's
    rows = tmp_path / "rows.jsonl"
    lines = [
        {"query": e.query, "positive": e.documents[:1], "negative": e.documents[1:]}
        for e in examples(6, 4, longest=8)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "page.html"
    words = ["report", str(folder), "--dataset", str(rows), "--output", str(out)]
    assert cli.main(words) == 0
    page = Page(out.read_text())
    assert "What was measured before training is not known for the rows that were ranked now" in (
        " ".join(page.text.split())
    )
    figures = json.loads(page.scripts[0])
    assert sum(figures["chart-distribution-0"]["data"][0]["y"]) == 6
    assert lines[0]["query"] in page.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the output folder of one training run"),
        (["a", "b"], "2 came"),
        (["a", "--model", "m"], "--model, which has no place here"),
        (["absent"], "absent is no folder"),
        (["."], "holds neither"),
        (["a", "--output", "."], "'.' is no name of a page; end it in .html"),
        (["a", "--output", "rows.jsonl"], "'rows.jsonl' is no name of a page; end it in .html"),
    ],
)
def test_command_refuses(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
