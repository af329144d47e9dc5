"""Audit the pinned versions of ``constraints.txt``: withdrawn releases, known vulnerabilities.

Releases that their authors withdrew are found through pip and the package index alone. Known
vulnerabilities are asked of a vulnerability service by ``pip-audit``, in an environment of its own
(``build/audit``). Where one of them cannot be asked, that is said, and is no failure.

Run: ``make audit``. Exit code 1 where something was found.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "constraints.txt"
PIP_AUDIT = "pip-audit==2.10.1"


def environment(folder: Path) -> Path | None:
    """The Python of an environment with ``pip-audit``; None where it cannot be had."""
    python = folder / "bin" / "python"
    try:
        if not python.exists():
            venv.create(folder, with_pip=True)
        words = [str(python), "-m", "pip", "install", "--quiet", PIP_AUDIT]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return python


def withdrawn(python: Path, pins: Path) -> tuple[int, list[str]]:
    """How many releases the index has, and those of them that were withdrawn."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = [
            str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps",
            "--ignore-installed", "--requirement", str(pins), "--report", str(report),
        ]  # fmt: skip
        done = subprocess.run(words, check=False, stderr=subprocess.PIPE, text=True)
        # pip names the first one and stops; it finds no versions at all where no index answers
        if gone := re.search(r"the requirement (\S+) \(from versions: (?!none)", done.stderr):
            return 1, [f"{gone[1]} is gone: withdrawn"]
        if done.returncode:
            return 0, []
        releases = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = [
        f"{release['metadata']['name']} {release['metadata']['version']} was withdrawn"
        for release in releases
        if release.get("is_yanked")
    ]
    return len(releases), found


def vulnerable(found: dict[str, Any]) -> tuple[int, list[str]]:
    """How many releases a service knows, and the vulnerabilities of them.

    Args:
        found: what ``pip-audit --format json`` wrote.
    """
    known = [entry for entry in found["dependencies"] if "skip_reason" not in entry]
    lines = []
    for entry in known:
        for one in entry["vulns"]:
            fixed = ", ".join(one["fix_versions"]) or "no release"
            lines.append(f"{entry['name']} {entry['version']}: {one['id']}, mended in {fixed}")
    return len(known), lines


def ask(python: Path, pins: Path, service: str) -> dict[str, Any] | None:
    """What ``pip-audit`` says; None where it cannot ask."""
    words = [
        str(python), "-m", "pip_audit", "--requirement", str(pins), "--no-deps",
        "--disable-pip", "--format", "json",
        "--vulnerability-service", service, "--timeout", "10", "--progress-spinner", "off",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return None
    return found


def main() -> int:
    """Print what was found."""
    python = environment(ROOT / "build" / "audit")
    count = asked = 0
    problems: list[str] = []
    if python is not None:
        count, problems = withdrawn(python, PINS)
        for service in ("pypi", "osv"):
            answer = ask(python, PINS, service)
            asked, lines = vulnerable(answer) if answer is not None else (0, [])
            if asked:
                print(f"known vulnerabilities ({service}): {len(lines)} in {asked} releases")
                problems += lines
                break
    if count:
        print(f"withdrawn releases: {sum('withdrawn' in line for line in problems)} of {count}")
    else:
        print("withdrawn releases: NOT LOOKED FOR, since the package index could not be asked")
    if not asked:
        print("known vulnerabilities: NOT LOOKED FOR, since no service could be asked")
    for problem in problems:
        print(f"- {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
