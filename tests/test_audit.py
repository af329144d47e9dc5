"""The audit of the pins: what it finds, and that it says what it could not ask. No network."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# what pip writes to the file behind --report, and what pip-audit prints
FAKE = """#!{python}
import json, sys
from pathlib import Path
words = sys.argv[1:]
if "pip" in words:
    versions = "none" if {index} is None else "1.0, 3.0"
    if {index} in (None, '"gone"'):
        print("ERROR: Could not find a version that satisfies the requirement bad==2.0 (from "
              f"versions: {{versions}})", file=sys.stderr)
        sys.exit("ERROR: No matching distribution found for bad==2.0")
    assert "--dry-run" in words and words[words.index("--requirement") + 1] == {pins!r}
    Path(words[words.index("--report") + 1]).write_text({index})
else:
    print({services}.get(words[words.index("--vulnerability-service") + 1], "no answer"))
"""
INDEX = {
    "install": [
        {"metadata": {"name": "good", "version": "1.0"}, "is_yanked": False},
        {"metadata": {"name": "bad", "version": "2.0"}, "is_yanked": True},
        {"metadata": {"name": "plain", "version": "3.0"}},
    ]
}
KNOWN = {
    "dependencies": [
        {"name": "good", "version": "1.0", "vulns": []},
        {"name": "own", "skip_reason": "not on the index"},
        {
            "name": "bad",
            "version": "2.0",
            "vulns": [
                {"id": "CVE-1", "fix_versions": ["2.1", "3.0"]},
                {"id": "CVE-2", "fix_versions": []},
            ],
        },
    ]
}
SOUND = {"dependencies": [{"name": "good", "version": "1.0", "vulns": []}]}


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "audit.py"
    spec = importlib.util.spec_from_file_location("audit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PINS", tmp_path / "constraints.txt")
    return module


def answering(audit: ModuleType, index: Any, **services: Any) -> Path:
    """A Python whose pip and pip-audit answer so; None is an index that cannot be asked."""
    python: Path = audit.PINS.with_name("python")
    texts = {name: json.dumps(answer) for name, answer in services.items()}
    text = None if index is None else json.dumps(index)
    python.write_text(
        FAKE.format(python=sys.executable, pins=str(audit.PINS), index=repr(text), services=texts)
    )
    python.chmod(0o700)
    return python


def run(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    python: Path | None,
) -> tuple[int, list[str]]:
    monkeypatch.setattr(audit, "environment", lambda folder: python)
    code = audit.main()
    return code, capsys.readouterr().out.splitlines()


NO_INDEX = "withdrawn releases: NOT LOOKED FOR, since the package index could not be asked"
NO_SERVICE = "known vulnerabilities: NOT LOOKED FOR, since no service could be asked"


def test_what_is_found(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One release of three is withdrawn; two vulnerabilities in the two that the service knows."""
    python = answering(audit, INDEX, pypi=KNOWN)
    assert run(audit, monkeypatch, capsys, python) == (
        1,
        [
            "known vulnerabilities (pypi): 2 in 2 releases",
            "withdrawn releases: 1 of 3",
            "- bad 2.0 was withdrawn",
            "- bad 2.0: CVE-1, mended in 2.1, 3.0",
            "- bad 2.0: CVE-2, mended in no release",
        ],
    )


def test_a_release_that_is_gone(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deleted from the index, where no withdrawn release is left to be asked about."""
    code, lines = run(audit, monkeypatch, capsys, answering(audit, "gone", osv=SOUND))
    assert code == 1
    assert lines[1:] == ["withdrawn releases: 1 of 1", "- bad==2.0 is gone: withdrawn"]


def test_nothing_is_found(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second service is asked where the first does not answer."""
    python = answering(audit, {"install": INDEX["install"][:1]}, osv=SOUND)
    assert run(audit, monkeypatch, capsys, python) == (
        0,
        ["known vulnerabilities (osv): 0 in 1 releases", "withdrawn releases: 0 of 1"],
    )


def test_what_cannot_be_asked_is_said(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No environment; an index and services that do not answer."""
    assert run(audit, monkeypatch, capsys, None) == (0, [NO_INDEX, NO_SERVICE])
    python = answering(audit, None)
    assert run(audit, monkeypatch, capsys, python) == (0, [NO_INDEX, NO_SERVICE])


def test_an_environment_that_cannot_be_filled(audit: ModuleType, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    for code, found in ((1, None), (0, python)):
        python.write_text(f"#!/bin/sh\nexit {code}\n")
        python.chmod(0o700)
        assert audit.environment(tmp_path) == found
