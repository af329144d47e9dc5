"""The worker of ``speed.py`` that measures a large matrix product, as the yardstick of the rest."""

from __future__ import annotations

import time

import torch
from gate import Gate, serve

REPEATS = 3


def run(gate: Gate) -> None:
    """Time the product of two square matrices, the best of a few; ``pairs`` holds its FLOPs."""
    job = gate.job
    size = job["matrix"]
    dtype = getattr(torch, job["dtype"])
    a, b = (torch.randn(size, size, device=job["device"]).to(dtype) for _ in range(2))
    gate.say("ready", startup=gate.startup(), loss=None, peak_memory=gate.peak_memory())
    repeats = REPEATS if job["device"] == "cpu" else 20 * REPEATS
    for _ in range(job["rounds"]):
        gate.wait()
        times = []
        for _ in range(repeats):
            gate.synchronise()
            began = time.perf_counter()
            a @ b
            gate.synchronise()
            times.append(time.perf_counter() - began)
        gate.say("round", seconds=min(times), pairs=2 * size**3, loss=None)


if __name__ == "__main__":
    serve(run)
