"""Where and when a benchmark's numbers were made, for its raw results."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def surroundings(script: str, threads: int) -> dict[str, Any]:
    """Command, date, commit and hardware.

    Args:
        script: its file's name.
        threads: those it computes with.
    """
    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "src", "benchmarks")),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": threads,
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load_average_at_start": os.getloadavg(),
            "accelerator": torch.cuda.get_device_name() if cuda else None,
            "system": platform.platform(),
        },
    }


def _git(*words: str) -> str | None:
    found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
