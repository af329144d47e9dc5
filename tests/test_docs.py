"""The guides: the site builds offline and asks for nothing, what they show runs and exists."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib
import logging
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from rankwright import cli
from rankwright.arguments import ALIASES, ENVIRONMENT, WITHOUT_EFFECT
from rankwright.data.readers import READERS
from rankwright.losses import ALIASES as LOSS_ALIASES
from rankwright.losses import LOSSES
from rankwright.metrics import METRICS
from rankwright.objective import parse_objective
from rankwright.templates import TEMPLATES
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

DOCS = ROOT / "docs"
GUIDES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("guides/*.md"))
PAGES = ["index.md", *GUIDES]


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser asks for when it shows a page, and the page's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.parts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "edit"):
            self.requests.append(given["href"])
        if tag != "a" and "src" in given:
            self.requests.append(given["src"])

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; any warning of mkdocs is an error."""
    pytest.importorskip("mkdocs", reason="extra docs")
    pytest.importorskip("material", reason="extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    folder = tmp_path_factory.mktemp("site")
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    heard: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(listener)
    try:
        with contextlib.suppress(Abort):  # strict: a warning aborts
            build(config)
    finally:
        logging.getLogger("mkdocs").removeHandler(listener)
    assert not heard
    return folder


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The mkdocs hook, as a module."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(site: Path, page: str) -> str:
    return Page((site / page).with_suffix(".html").read_text(encoding="utf-8")).text


def test_every_page_is_built_and_asks_for_nothing_outside(site: Path) -> None:
    """No script, style, font, image or worker comes from another host."""
    pages = list(site.rglob("*.html"))
    assert {path.relative_to(site).as_posix() for path in pages} >= {
        page.replace(".md", ".html") for page in [*PAGES, "papers.md", "log.md"]
    }
    for path in pages:
        requests = Page(path.read_text(encoding="utf-8")).requests
        assert requests
        for target in requests:
            assert not re.match(r"(\w+:)?//", target), f"{path.name}: {target}"
            if path.name != "404.html" and not target.startswith("data:"):
                assert (path.parent / target.partition("?")[0]).exists(), target
    for path in site.rglob("*.css"):
        urls = re.findall(r"url\(([^)]*)\)", path.read_text(encoding="utf-8"))
        assert not [url for url in urls if re.match(r"[\"']?(https?:)?//", url)]


def test_an_unknown_place_stops_the_build(hooks: ModuleType) -> None:
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match=r"spelling.*commands"):
        hooks.on_page_markdown("a\n\n<!-- generated: spelling -->\n")


def test_every_generated_table_is_used(hooks: ModuleType) -> None:
    texts = [path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")]
    used = {name for text in texts for name in hooks.PLACE.findall(text)}
    assert used == set(hooks.GENERATORS)


def test_the_reference_is_the_code(site: Path) -> None:
    """Every command, argument, default and help text stands in the built page, as it is."""
    text = text_of(site, "reference/commands.md")
    for name, command in cli.COMMANDS.items():
        assert f"rankwright {name} {command.usage}" in text
        for kind in cli.module(name).types():
            for f in dataclasses.fields(kind):
                words = [f"--{f.name}", cli._default(f), str(f.metadata.get("help", ""))]
                assert " ".join(" ".join(words).split()) in text, f"{name}: {words}"


def test_the_tables_are_the_code(site: Path) -> None:
    text = text_of(site, "reference/tables.md")
    for name, loss in LOSSES.items():
        assert f"{name} {loss.summary}" in text
    for name, entry in METRICS.items():
        assert f"{name} {entry.description}" in text
    for name, reader in READERS.items():
        assert f"{name} {reader.description}" in text
    for name, template in TEMPLATES.items():
        assert f"{name} {template.description}" in text
    for variable, (argument, _) in ENVIRONMENT.items():
        assert f"{variable} --{argument}" in text


def test_the_guide_from_ms_swift_is_complete(site: Path) -> None:
    """Every name that is accepted for ms-swift's sake is explained to who comes from there."""
    text = text_of(site, "guides/from-ms-swift.md")
    for name, ours in ALIASES.items():
        assert f"--{name} --{ours}" in text
    for name, reason in WITHOUT_EFFECT.items():
        assert f"--{name} {reason}" in text
    for name, ours in LOSS_ALIASES.items():
        assert f"--loss_type {name} --loss_type {ours}" in text
    for variable, (argument, _) in ENVIRONMENT.items():
        assert f"{variable} --{argument}" in text
    for script in (ROOT / "examples" / "train" / "reranker").glob("*.sh"):
        assert script.name in text


def test_the_guide_from_ms_swift_answers_its_document(site: Path, shared: Path) -> None:
    """Its page on rerankers: each variable, model, script and metric it names is in the guide."""
    texts = [path.read_text(encoding="utf-8") for path in shared.glob("*.txt")]
    source = next((text for text in texts if text.startswith("# Reranker Training")), None)
    if source is None:
        pytest.skip("ms-swift's page is not here")
    text = text_of(site, "guides/from-ms-swift.md")
    names = set(re.findall(r"`([A-Z][A-Z_]+)`", source)) | set(re.findall(r"\w+\.sh", source))
    names |= set(re.findall(r"/(Qwen3-Reranker-[\w.]+|gte-reranker-[\w-]+)\)", source))
    assert len(names) > 12
    for name in names | {"[1,0,0,1,0,0,0]", "MTEB/scidocs-reranking", "MRR", "NDCG"}:
        assert name in text, name


@pytest.mark.parametrize("page", PAGES)
def test_every_argument_that_is_named_exists(page: str) -> None:
    """Of ours; in the guides for who comes from elsewhere the first column holds their names."""
    known = known_arguments() | {"nproc_per_node", "num_processes", "multi_gpu"}
    text = prose(read(page))
    if "/from-" in page:
        text = re.sub(r"^\|.*?\|(?= )", "|", text, flags=re.MULTILINE)
    for name in re.findall(r"(?<![\w-])--([a-z][a-z0-9_]+)(?![\w-])", text):
        assert name in known, f"{page}: --{name}"
    for name in re.findall(r"--loss_type ([\w*.+]+)", text):
        parse_objective(name)


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_are_what_they_seem(page: str) -> None:
    """What is not run here is no command of ours."""
    for block in blocks(read(page)):
        if block.language != "bash" or block.mark in ("run", "serve"):
            continue
        for words in commands(block.text):
            assert words[0] in OUTSIDE, f"mark the block with <!-- run -->: {shlex.join(words)}"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_commands_and_snippets_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every marked shell block and every Python block of a guide, in a folder of its own."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_blocks(read(page), page, lambda: capsys.readouterr().err)


def test_papers_lead_to_every_loss_and_metric() -> None:
    """Each has a row that names its function, and the tests that a row names exist."""
    text = read("papers.md")
    tables = {"## Losses": LOSSES, "## Metrics": METRICS}
    for heading, table in tables.items():
        section = re.split(r"^## ", text.split(f"{heading}\n")[1], flags=re.MULTILINE)[0]
        rows = re.findall(r"^\|.*\|$", section, flags=re.MULTILINE)
        for name, entry in table.items():
            row = [row for row in rows if f"| `{entry.function.__name__}`" in row]
            assert row, f"{heading}: {name} has no row"
            assert f"`test_hand_{name}`" in row[0], f"{heading}: {name} names no hand derivation"
    defined = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"[`:](test_\w+)`", text))
    assert len(named) > 40
    assert not {name for name in named if f"def {name}(" not in defined}


def test_html_entities_of_the_hook(hooks: ModuleType) -> None:
    """Markup in a help text is shown, not obeyed."""
    assert hooks.plain("a|b <i> *c* [D] --max_length") == (
        "a&#124;b &lt;i&gt; \\*c\\* \\[D\\] `--max_length`"
    )
    assert html.unescape(hooks.code("a|b")) == "<code>a|b</code>"
