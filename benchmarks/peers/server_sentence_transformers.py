"""The opponent of ``serve.py``: a CrossEncoder of sentence-transformers behind a plain FastAPI app.

``documented``: the model as it is, ``predict`` with its defaults (sorted by length, batches of 32).
``best``: the fastest of a few batch sizes on the first requests; a generative model as a
``Qwen3ForSequenceClassification`` with one head row, which spares the vocabulary.

One request is computed at a time, on all threads: a tokenizer must not be used by two threads at
once, and two products side by side share the same cores.
"""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

SIZES = (4, 8, 16, 32)


class Body(BaseModel):
    """A request."""

    query: str
    documents: list[str]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--first", type=Path, help="requests to choose a batch size on")
    return parser.parse_args()


def fastest(model: Any, bodies: list[Body]) -> int:
    """The batch size that takes least time."""
    took = {}
    for size in (SIZES[-1], *SIZES):
        begin = time.perf_counter()
        for body in bodies:
            score(model, body, size)
        # the first one warms up, and is measured again
        took[size] = time.perf_counter() - begin
    return min(took, key=took.__getitem__)


def score(model: Any, body: Body, size: int) -> list[float]:
    """Logits of the documents."""
    pairs = [(body.query, document) for document in body.documents]
    found = model.predict(
        pairs, batch_size=size, activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    return [float(value) for value in found]


def main() -> None:
    """Serve until a signal."""
    options = parse()
    model = CrossEncoder(options.model, device="cpu")
    size = 32
    if options.first is not None:
        bodies = [Body(**row) for row in json.loads(options.first.read_text(encoding="utf-8"))]
        size = fastest(model, bodies)
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/rerank")
    def rerank(body: Body) -> dict[str, Any]:
        with lock:
            scores = score(model, body, size)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        results = [{"index": i, "relevance_score": scores[i]} for i in order]
        return {"results": results, "batch_size": size}

    with socket.create_server(("127.0.0.1", 0)) as listener:
        # as on the sockets that uvicorn opens itself
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
