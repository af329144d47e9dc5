"""The page at /, in a real browser: what is asked, what is shown, and that texts stay texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rankwright.server.app import Service
from rankwright.server.gate import Policy
from rankwright.types import ScoredList
from tests.server.fakes import Words, WordScorer, serving

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


class Opposite(WordScorer):
    """The other order."""

    @staticmethod
    def value(text: str) -> float:
        return -WordScorer.value(text)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two models that disagree."""
    with serving(Service([WordScorer("first"), Opposite("second")])) as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """A fresh page; nothing but the server is asked, and no script fails."""
    yield from opened(browser, url)


def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**options)
    found = context.new_page()
    asked: list[str] = []
    broken: list[str] = []
    found.on("request", lambda request: asked.append(request.url))
    found.on("pageerror", lambda error: broken.append(str(error)))
    found.goto(url)
    found.locator("#model option").first.wait_for(state="attached")
    yield found
    assert all(one.startswith((url, "data:")) for one in asked)
    assert broken == []
    context.close()


def ranked(page: Any, query: str, documents: str) -> list[list[str]]:
    """Fill the form in, press the button, and read each column's texts."""
    page.get_by_label("Query").fill(query)
    page.get_by_label("Documents", exact=True).fill(documents)
    page.get_by_role("button", name="Rank").click()
    # both columns are drawn at once
    page.locator("li, #error:not([hidden])").first.wait_for()
    return [
        [item.inner_text() for item in column.locator(".text").all()]
        for column in page.locator(".column").all()
    ]


def test_two_models_side_by_side(page: Any) -> None:
    """Scores 1, 3, 2 and their opposites: the orders are mirrored and the moves say so."""
    assert ranked(page, "q", "1 a\n3 b\n2 c") == [["3 b", "2 c", "1 a"], ["1 a", "2 c", "3 b"]]
    columns = page.locator(".column").all()
    moves = [[mark.inner_text() for mark in c.locator(".moved").all()] for c in columns]
    assert moves == [["▲2", "=", "▼2"], ["▲2", "=", "▼2"]]
    assert page.get_by_label("2 places higher than with the other model").count() == 2
    scores = [[float(s.inner_text()) for s in c.locator(".score").all()] for c in columns]
    assert scores == [[0.9526, 0.8808, 0.7311], [0.2689, 0.1192, 0.0474]]
    widths = [
        float(w.evaluate("e => e.style.width.slice(0, -1)")) for w in page.locator(".fill").all()
    ]
    assert widths == pytest.approx([100 * s for column in scores for s in column], abs=0.01)
    places = [p.inner_text() for p in columns[0].locator(".place").all()]
    assert places == ["1", "2", "3"]


def test_one_model_and_logits(page: Any) -> None:
    page.get_by_label("Compare with").select_option("")
    page.get_by_label("Scores").select_option("logit")
    assert ranked(page, "q", "-1 a\n3 b") == [["3 b", "-1 a"]]
    assert [s.inner_text() for s in page.locator(".score").all()] == ["3.0000", "-1.0000"]
    assert page.locator(".moved").count() == 0


def test_texts_are_never_markup(page: Any) -> None:
    """Markup in the query, in documents and in what the server says of them."""
    columns = ranked(page, HOSTILE, f"5 {HOSTILE}\n1 <b>bold</b>")
    assert columns[0] == [f"5 {HOSTILE}", "1 <b>bold</b>"]
    assert page.locator("#results").locator("img, script, b").count() == 0
    page.get_by_label("Documents", exact=True).fill('["' + "<img src=x onerror=alert(1)>" + '", 1]')
    page.get_by_role("button", name="Rank").click()
    page.locator("#error").wait_for()
    assert page.locator("#error img").count() == 0
    assert page.title() == "Rankwright"


class Hostile(WordScorer):
    """A model whose every word is markup."""

    reads_instruction = True

    def about(self) -> dict[str, Any]:
        return super().about() | {"instruction": HOSTILE, "architecture": HOSTILE}


def test_names_of_models_and_files_and_errors_are_never_markup(
    browser: Any, tmp_path: Path
) -> None:
    """Markup in the models' names, their instruction, a file's name and text, a server's error."""
    path = tmp_path / (HOSTILE.replace("/", "") + ".jsonl")
    path.write_text(HOSTILE)
    names = [f"{HOSTILE} one", f"{HOSTILE} two"]
    with serving(Service([Hostile(name) for name in names])) as url:
        for page in opened(browser, url):
            options = page.locator("#model option").all()
            assert [option.text_content() for option in options] == names
            assert page.get_by_label("Instruction").get_attribute("placeholder") == HOSTILE
            assert ranked(page, "q", "1 a\n2 b") == [["2 b", "1 a"]] * 2
            assert [h.inner_text() for h in page.locator("h2").all()] == names
            page.locator("#file").set_input_files(path)
            page.locator("#error").wait_for()
            error = page.get_by_role("alert").inner_text()
            assert error.startswith(f"{path.name}: Line 1 is not JSON")
            assert "<img" in error.removeprefix(path.name)
            page.route(
                "**/v1/rerank",
                lambda route: route.fulfill(status=500, json={"message": HOSTILE}),
            )
            assert ranked(page, "q", "1 a") == []
            assert page.get_by_role("alert").inner_text() == f"500: {HOSTILE}"
            assert page.locator("body").locator("img, b, script:not(main ~ script)").count() == 0
            assert page.title() == "Rankwright"


class Passage(WordScorer):
    """The best passage of each long text begins at its fifth character and has three."""

    def pool(self, encoded: Words, scores: Sequence[float]) -> ScoredList:
        spans = [(4, 7) if len(text) > 6 else None for text in encoded.example.documents]
        return ScoredList(encoded.example, list(scores), spans)


def test_the_best_passage_is_marked(browser: Any) -> None:
    """Counted in characters: a face before it is one, though a script's string has two."""
    with serving(Service([Passage("only")])) as url:
        for page in opened(browser, url):
            (texts,) = ranked(page, "q", "3 \N{GRINNING FACE} fox <b>runs\n1 dog")
            assert texts == ["3 \N{GRINNING FACE} fox <b>runs", "1 dog"]
            assert [m.inner_text() for m in page.locator("mark").all()] == ["fox"]
            hints = [hint.inner_text() for hint in page.locator("li .hint").all()]
            assert hints == ["document 1, best passage: characters 5 to 7", "document 2"]


def test_the_policy_lets_no_foreign_script_run(page: Any) -> None:
    """Were markup to get in, nothing in it would run or load."""
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = \"document.title='owned'\"; "
        "document.body.append(s)"
    )
    page.evaluate(
        "const d = document.createElement('div'); d.innerHTML = "
        "'<img src=x onerror=\"document.title=1\">'; document.body.append(d)"
    )
    page.wait_for_timeout(100)
    assert page.title() == "Rankwright"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "1 a\n\n3 b\r\n2 c\n"),
        ("a.jsonl", '{"text": "1 a"}\n"3 b"\n{"document": "2 c", "id": 4}\n'),
        ("a.json", json.dumps(["1 a", {"text": "3 b"}, {"content": "2 c"}])),
        ("a.csv", 'id,text\n1,"1 a"\n2,3 b\n3,2 c\n'),
        ("a.csv", "1 a\n3 b\n2 c"),
    ],
)
def test_uploads(page: Any, tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    page.locator("#file").set_input_files(path)
    page.get_by_text("3 documents", exact=True).wait_for()
    page.get_by_label("Query").fill("q")
    page.get_by_role("button", name="Rank").click()
    page.locator("li").first.wait_for()
    texts = [t.inner_text() for t in page.locator(".column").first.locator(".text").all()]
    assert texts == ["3 b", "2 c", "1 a"]


def test_a_csv_keeps_quotes_commas_and_lines(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,more\n"2 say ""a, b""\nand c",x\n1 d,y\n')
    page.locator("#file").set_input_files(path)
    page.get_by_text("2 documents", exact=True).wait_for()
    assert json.loads(page.get_by_label("Documents", exact=True).input_value()) == [
        '2 say "a, b"\nand c',
        "1 d",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{', "a.jsonl: Line 2 is not JSON"),
        ("a.json", b'{"a": 1}', "a.json: Expected a JSON list of documents."),
        (
            "a.jsonl",
            b'{"title": "a"}',
            'a.jsonl: Line 1: expected a text, or an object with "text"',
        ),
        ("a.txt", b"\xff\xfe", "a.txt: it is not UTF-8 text."),
        ("a.csv", b"a,b\n1,2", "a.csv: The CSV has no column named text"),
    ],
)
def test_files_that_cannot_be_read(
    page: Any, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    page.locator("#file").set_input_files(path)
    page.locator("#error").wait_for()
    assert page.get_by_role("alert").inner_text().startswith(message)


def test_the_server_s_refusals_are_shown(page: Any) -> None:
    assert ranked(page, "q", "1 a\npoison") == []
    assert page.get_by_role("alert").inner_text() == (
        "500: the model failed (RuntimeError); see the log"
    )
    # and the next one works
    assert ranked(page, "q", "1 a")[0] == ["1 a"]
    assert page.get_by_role("alert").count() == 0


def test_long_texts_are_folded(page: Any) -> None:
    ranked(page, "q", "1 " + "word " * 200)
    more = page.get_by_role("button", name="show all").first
    text = page.locator(".text").first
    folded = text.bounding_box()["height"]
    more.click()
    assert text.bounding_box()["height"] > 2 * folded
    assert page.get_by_role("button", name="show less").count() == 1


def test_every_control_has_a_name(page: Any) -> None:
    names = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')].map(e => "
        "[e.id, e.labels && e.labels.length ? e.labels[0].textContent : e.textContent])"
    )
    assert [identity for identity, name in names if not name.strip()] == []


@pytest.mark.parametrize("width", [320, 800, 1280])
def test_nothing_overflows(browser: Any, url: str, width: int) -> None:
    """No horizontal scrolling, long words and narrow screens included."""
    for page in opened(browser, url, viewport={"width": width, "height": 700}):
        ranked(page, "q", f"1 {'verylongword' * 40}\n2 b")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_key_is_asked_for(browser: Any) -> None:
    service = Service([WordScorer("only")], Policy(api_key="secret"))
    with serving(service) as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_label("API key").wait_for()
        assert "wants an API key" in page.get_by_role("alert").inner_text()
        page.get_by_label("API key").fill("wrong")
        page.get_by_label("API key").press("Tab")
        page.get_by_text("The API key is wrong.").wait_for()
        page.get_by_label("API key").fill("secret")
        page.get_by_label("API key").press("Tab")
        page.get_by_text("serving only").wait_for()
        assert ranked(page, "q", "1 a\n2 b") == [["2 b", "1 a"]]
        page.close()
