"""The worker of ``speed.py`` that measures a large matrix product, as the yardstick of the rest.

It is PyTorch's own, ``a @ b``. On a CPU the same product by oneDNN is noted beside it: there are
processors on which it is more than twice as fast.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gate import Gate, serve

REPEATS = 3


def best(gate: Gate, product: Callable[[], Any], repeats: int) -> float:
    """Seconds of a product, the least of a few."""
    times = []
    for _ in range(repeats):
        gate.synchronise()
        began = time.perf_counter()
        product()
        gate.synchronise()
        times.append(time.perf_counter() - began)
    return min(times)


def run(gate: Gate) -> None:
    """Time the product of two square matrices, the best of a few; ``pairs`` holds its FLOPs."""
    job = gate.job
    size = job["matrix"]
    dtype = getattr(torch, job["dtype"])
    a, b = (torch.randn(size, size, device=job["device"]).to(dtype) for _ in range(2))
    gate.say("ready", startup=gate.startup(), loss=None, peak_memory=gate.peak_memory())
    on_cpu = job["device"] == "cpu"
    repeats = REPEATS if on_cpu else 20 * REPEATS
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if on_cpu else None
    ratios = []
    for number in range(job["rounds"]):
        gate.wait()
        seconds = best(gate, lambda: a @ b, repeats)
        if onednn is not None:
            other = best(gate, lambda: onednn(a, b, None, "none", [], ""), repeats)
            ratios.append(seconds / other)
            if number == job["rounds"] - 1:
                gate.say("note", text=f"by oneDNN {statistics.median(ratios):.2f} times as fast")
        gate.say("round", seconds=seconds, pairs=2 * size**3, loss=None)


if __name__ == "__main__":
    serve(run)
