"""The report in a real browser: drawn, in both themes, narrow, on paper, and never hacked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rankwright.report.folder import read_run
from rankwright.report.page import write_report
from tests.report.runs import calibrate, constant, hostile_rows, make_run

# what its tests share is made once, by one worker
pytestmark = pytest.mark.xdist_group("report_browser")

pytest.importorskip("plotly", reason="extra report")

FIRST_BAR = "#chart-distribution-0 .trace.bars .point path"


def write(folder: Path, **more: Any) -> Path:
    output = folder / "report.html"
    write_report(read_run(make_run(folder, **more)), output)
    return output


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with a saved calibration and thresholds."""
    folder = make_run(tmp_path_factory.mktemp("run"))
    calibrate(folder, ("precision", 0.6), ("recall", 0.9))
    write_report(read_run(folder), folder / "report.html")
    return folder / "report.html"


class Opened:
    """A page that was opened, with all that went wrong and all that it asked for."""

    def __init__(self, browser: Any, path: Path, scheme: str = "light", width: int = 1280) -> None:
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("dialog", lambda d: (self.errors.append(d.message), d.dismiss()))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn]")

    def style(self, selector: str, name: str) -> str:
        found: str = self.page.eval_on_selector(
            selector, f"e => getComputedStyle(e).getPropertyValue('{name}')"
        )
        return found


@pytest.fixture(scope="module")
def shown(browser: Any, report: Path) -> Iterator[Opened]:
    found = Opened(browser, report)
    yield found
    found.context.close()


@pytest.fixture
def opened(shown: Opened) -> Opened:
    """One page for several tests; each leaves it as it was."""
    shown.errors.clear()
    return shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn_and_nothing_is_fetched(
    browser: Any, report: Path, scheme: str
) -> None:
    found = Opened(browser, report, scheme)
    page = found.page
    assert page.get_attribute("html", "data-drawn") == scheme
    charts = page.query_selector_all(".chart")
    assert len(charts) == 12
    for chart in charts:
        assert chart.query_selector("svg.main-svg") is not None
        assert chart.query_selector_all(".trace")
    # 80 queries each before and after; the heights of the bars are theirs
    counts = page.evaluate(
        "document.getElementById('chart-distribution-0').data.map(t => t.y.reduce((a, b) => a + b))"
    )
    assert counts == [80, 80]
    bars = page.query_selector_all(FIRST_BAR)
    assert len(bars) == 20
    lines = page.query_selector_all("#chart-loss .scatterlayer .trace path.js-line")
    assert len(lines) == 2
    points = page.query_selector_all("#chart-loss .scatterlayer .trace .points path")
    assert len(points) == 20 + 5
    assert found.errors == []
    assert [url for url in found.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [url for url in found.requests if url.startswith("file:")] == [report.as_uri()]
    found.context.close()


def luminance(color: str) -> float:
    """Relative luminance of ``rgb(...)`` (WCAG 2.2)."""
    values = [int(v) / 255 for v in re.findall(r"\d+", color)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_follows_the_system_and_can_be_read(browser: Any, report: Path) -> None:
    """Texts 4.5 to 1 against what is behind them, lines and bars 3 to 1 (WCAG 2.2, AA)."""
    found = Opened(browser, report)
    assert_contrast(found)
    light = found.style("#chart-loss .xtitle", "fill")
    found.page.emulate_media(color_scheme="dark")
    found.page.wait_for_selector("html[data-drawn=dark]")
    assert luminance(found.style("#chart-loss .xtitle", "fill")) > 0.5 > luminance(light)
    assert_contrast(found)
    found.context.close()


def assert_contrast(found: Opened) -> None:
    names = ["text", "muted", "accent", "before", "after", "positive", "negative", "page", "card"]
    names += [f"series-{i}" for i in range(1, 7)]
    levels = ["problem", "warning", "note", "good"]
    colors: dict[str, str] = found.page.evaluate(
        """names => Object.fromEntries(names.map(name => {
            const e = document.createElement("i");
            e.style.color = `var(--${name})`;
            document.body.append(e);
            const color = getComputedStyle(e).color;
            e.remove();
            return [name, color];
        }))""",
        [*names, *levels, *(f"{level}-soft" for level in levels)],
    )
    for name in ("text", "muted", "accent"):
        for behind in ("page", "card"):
            assert contrast(colors[name], colors[behind]) >= 4.5, (name, behind)
    for name in ("before", "after", "positive", "negative", *(f"series-{i}" for i in range(1, 7))):
        assert contrast(colors[name], colors["card"]) >= 3, name
    for level in levels:
        assert contrast(colors["text"], colors[f"{level}-soft"]) >= 4.5
        assert contrast(colors[level], colors[f"{level}-soft"]) >= 4.5, level
    # what plotly drew: the labels of the axes and the bars
    card = found.style("section", "background-color")
    assert contrast(found.style("#chart-loss .xtick text", "fill"), card) >= 4.5
    assert contrast(found.style("#chart-loss .xtitle", "fill"), card) >= 4.5


def test_the_switch_changes_page_and_charts(opened: Opened) -> None:
    page = opened.page
    light = [opened.style("body", "background-color"), opened.style("#chart-loss .xtitle", "fill")]
    lines = opened.style("#chart-loss path.js-line", "stroke")
    page.click("#theme")
    page.wait_for_selector("html[data-drawn=dark]")
    dark = [opened.style("body", "background-color"), opened.style("#chart-loss .xtitle", "fill")]
    assert luminance(dark[0]) < 0.05 < luminance(light[0])
    assert luminance(light[1]) < 0.05 < luminance(dark[1])
    assert opened.style("#chart-loss path.js-line", "stroke") != lines
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    assert page.inner_text("#theme") == "Light"
    page.click("#theme")
    page.wait_for_selector("html[data-drawn=light]")
    assert opened.style("#chart-loss path.js-line", "stroke") == lines
    # the system changes its mind: the page keeps to what was chosen by hand
    page.emulate_media(color_scheme="dark")
    assert page.get_attribute("html", "data-drawn") == "light"
    page.emulate_media(color_scheme="light")
    assert opened.errors == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (400, "dark")])
def test_narrow_screens(browser: Any, report: Path, width: int, scheme: str) -> None:
    """Nothing sticks out, and the charts are as wide as the screen allows."""
    found = Opened(browser, report, scheme, width)
    page = found.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for box in page.eval_on_selector_all(
        ".chart svg.main-svg", "es => es.map(e => e.getBoundingClientRect().toJSON())"
    ):
        assert box["left"] >= 0
        assert box["right"] <= width
    # texts of the axis do not run into each other
    for id in ("chart-loss", "chart-distribution-0", "chart-reliability"):
        ticks = page.eval_on_selector_all(
            f"#{id} .xtick text", "es => es.map(e => e.getBoundingClientRect().toJSON())"
        )
        ticks.sort(key=lambda box: box["left"])
        assert len(ticks) > 1
        assert all(a["right"] <= b["left"] for a, b in pairwise(ticks))
    found.context.close()


def test_worst_queries_open(opened: Opened) -> None:
    page = opened.page
    first = page.locator("#worst-list details").first
    assert not first.locator("li").first.is_visible()
    first.locator("summary").click()
    assert first.locator("li").first.is_visible()
    assert first.locator("li").count() == 6
    page.click("button.all")
    every = page.locator("#worst-list details").count()
    assert page.locator("#worst-list details[open]").count() == every > 1
    assert page.get_attribute("button.all", "aria-expanded") == "true"
    page.click("button.all")
    assert page.locator("#worst-list details[open]").count() == 0
    # by keyboard too
    page.focus("#worst-list details summary")
    page.keyboard.press("Enter")
    assert page.locator("#worst-list details[open]").count() == 1
    page.keyboard.press("Enter")
    assert page.locator("#worst-list details[open]").count() == 0
    page.locator("#chart-loss ~ details summary").click()
    assert page.locator("#chart-loss ~ details table").is_visible()


def test_hostile_texts_do_nothing(browser: Any, tmp_path: Path) -> None:
    """In queries, documents, ids, arguments and the name of the folder: read, never run."""
    folder = tmp_path / "<img src=x onerror=window.hacked=5>"
    found = Opened(browser, write(folder, rows=hostile_rows(), after=constant))
    page = found.page
    page.click("button.all")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#worst-list img, #worst-list svg, #worst-list script").count() == 0
    assert page.locator("script").count() == 3
    text = page.inner_text("#worst-list")
    for part in ("</script><script>window.hacked = 1</script> query", "{{ 7*7 }}", "&lt;b&gt;"):
        assert part in text
    assert page.inner_text("h1") == folder.name
    # were some script to get in, the policy would still keep it from running
    page.evaluate(
        """() => {
            const s = document.createElement("script");
            s.textContent = "window.hacked = 6";
            document.body.append(s);
        }"""
    )
    assert page.evaluate("window.hacked") is None
    assert [e for e in found.errors if "Content Security Policy" not in e] == []
    assert len(found.errors) == 1
    found.context.close()


def test_the_policy_lets_nothing_out(opened: Opened) -> None:
    blocked = opened.page.evaluate(
        """async () => {
            try {
                await fetch("http://127.0.0.1:9/");
                return "sent";
            } catch {
                return "blocked";
            }
        }"""
    )
    assert blocked == "blocked"
    assert any("Content Security Policy" in e for e in opened.errors)


def test_print(browser: Any, report: Path) -> None:
    """On paper: light, the queries open, the switch gone; afterwards all is as it was."""
    found = Opened(browser, report, "dark")
    page = found.page
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.get_attribute("html", "data-drawn") == "light"
    every = page.locator("#worst-list details").count()
    assert page.locator("#worst-list details[open]").count() == every > 1
    assert not page.is_visible("#theme")
    page.emulate_media(media="screen", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.get_attribute("html", "data-drawn") == "dark"
    assert page.locator("#worst-list details[open]").count() == 0
    assert page.pdf()[:5] == b"%PDF-"
    found.context.close()


def test_without_scripts_the_numbers_stand(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("noscript").count() == 1
    page.locator("#chart-loss ~ details summary").click()
    assert page.locator("#chart-loss ~ details table tbody tr").count() == 21
    context.close()
