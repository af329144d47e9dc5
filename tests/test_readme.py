"""What the README says: its commands and snippets run, its tables are the code's."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from rankwright.arguments import ENVIRONMENT, GROUPS
from rankwright.data.readers import READERS, load_examples
from rankwright.losses import LOSSES
from rankwright.metrics import METRICS
from tests.documents import (
    OUTSIDE,
    ROOT,
    blocks,
    commands,
    known_arguments,
    prose,
    run_blocks,
    write_files,
)
from tests.tiny import save_base

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def table(title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    rows: list[list[str]] = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines
    ]
    return rows[2:]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models and files that the README names, tiny."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_commands_and_snippets_run_in_order(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every marked shell block and every Python block, top to bottom, in one folder."""
    pytest.importorskip("sentence_transformers", reason="extra dev")
    assert run_blocks(README, "README.md", lambda: capsys.readouterr().err)
    ranked = [json.loads(line) for line in (place / "ranked.jsonl").read_text().splitlines()]
    assert [len(line["results"]) for line in ranked] == [4, 4, 4]
    for name in ("metrics.json", "run.trec", "qrels.txt"):
        assert (place / "results" / name).is_file()
    assert (place / "output-qwen3" / "adapter").is_dir()
    # what the vLLM command names
    assert (place / "output-qwen3" / "chat_template.jinja").is_file()


def test_the_generative_snippet_prints_our_score(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain transformers through the chat template, as the README shows it, and ours."""
    import rankwright

    save_base(place / "base", "qwen3")
    rankwright.Reranker.load("base", device="cpu").save("output-qwen3")
    snippet = next(
        b.text for b in blocks(README) if b.language == "python" and "CausalLM" in b.text
    )
    exec(compile(snippet, "README.md", "exec"), {})
    found = float(capsys.readouterr().out.split()[-1])
    reranker = rankwright.Reranker.load("output-qwen3", device="cpu")
    ours = reranker.score([("what does a heron eat?", "Fish and frogs.")])[0]
    assert found == pytest.approx(ours, abs=1e-4)


def test_other_commands_are_what_they_seem() -> None:
    """What is not run here is no command of ours, and each make target exists."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = set()
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    texts = [b.text for b in blocks(README) if b.language == "bash" and b.mark != "run"]
    for text in [*texts, *(block.text for block in blocks(contributing))]:
        for words in commands(text):
            assert words[0] in OUTSIDE, f"mark the block with <!-- run -->: {shlex.join(words)}"
            seen.add(words[0])
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets
    assert {"make", "pip"} <= seen


def test_row_formats(tmp_path: Path) -> None:
    """Every reader has its line, and each line is read by the reader it is listed under."""
    rows = table("Your own rows in one minute")
    names = [row[0].split("`")[1] for row in rows]
    assert names == list(READERS)
    for name, row in zip(names, rows, strict=True):
        if not READERS[name].columns:
            continue
        file = tmp_path / f"{name}.jsonl"
        file.write_text(row[1].strip("`") + "\n")
        data = load_examples(file)
        assert [source.data_format for source in data.sources] == [name]
        assert data.examples[0].query == "q"
        assert "a" in data.examples[0].documents


def test_losses_metrics_and_variables() -> None:
    """The tables hold the code's names and defaults, all of them."""
    text = section("What works")
    assert re.findall(r"^\| `(\w+)`:", text, re.MULTILINE) == list(LOSSES)
    metrics = text.split("Metrics: ", 1)[1].split(", each", 1)[0]
    assert re.findall(r"`(\w+)`", metrics) == list(METRICS)
    defaults = {f.name: f.default for group in GROUPS for f in dataclasses.fields(group)}
    defaults |= {"positive_token": "yes", "negative_token": "no"}
    rows = [[cell.strip("`") for cell in row] for row in table("Coming from ms-swift")]
    assert rows == [
        [variable, str(defaults[name]).lower(), f"--{name}"]
        for variable, (name, _) in ENVIRONMENT.items()
    ]


def test_every_argument_that_is_named_exists() -> None:
    for name in re.findall(r"--([a-z][a-z0-9_]+)", prose(README)):
        assert name in known_arguments() | {"nproc_per_node"}, name


def test_the_tree_is_the_repository() -> None:
    """Every path of the annotated tree exists, and every module stands in it."""
    tree = next(block.text for block in blocks(README) if block.language == "text")
    folder: dict[int, Path] = {-2: ROOT}
    found = set()
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        for word in re.split(r"\s{2,}", line.strip()):
            if not re.fullmatch(r"[\w./]+(\.py|\.md|/)", word):
                continue
            path = folder[depth - 2] / word
            assert path.exists(), word
            found.add(path)
            if word.endswith("/"):
                folder[depth] = path
    modules = set((ROOT / "src").rglob("*.py"))
    assert {path for path in modules - found if path.name != "__init__.py"} == set()


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
