"""What every test shares: offline, one thread, and where the real data lies if it is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# the tests run side by side, so each keeps to one thread; two that spin on one core would crawl
os.environ.setdefault("OMP_NUM_THREADS", "1")
# no test reads or leaves rows in the user's own cache
os.environ["RANKWRIGHT_CACHE"] = tempfile.mkdtemp(prefix="rankwright-tests-")
# nor copies of models' code
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="rankwright-modules-")

import pytest

SHARED = Path(os.environ.get("RANKWRIGHT_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_unconfigure() -> None:
    for name in ("RANKWRIGHT_CACHE", "HF_MODULES_CACHE"):
        shutil.rmtree(os.environ[name], ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real rows and tokenizers; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the folder of real data is not here ({SHARED}); set RANKWRIGHT_SHARED")
    return SHARED


CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# nothing but the page under test is to be asked for
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium under playwright's sync API; the test is skipped where there is none.

    Its event loop runs for as long as the fixture lives, so a module that uses it starts no other.
    """
    api = pytest.importorskip("playwright.sync_api", reason="extra dev")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUM)} is installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield found
        found.close()
