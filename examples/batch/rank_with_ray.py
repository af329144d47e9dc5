"""Rank millions of lists on a Ray cluster.

Rows of ``query`` and ``documents`` go in; the same come out with ``scores`` and ``order`` (the
documents' places, best first).

    pip install 'rankwright[ray]'
    python examples/batch/rank_with_ray.py --model output --input rows.jsonl --output ranked

Ray Data streams the rows through one model for each worker and starts a worker that died anew.
``--address auto`` joins a running cluster; input and output may then be ``s3://`` and the like.
A Ray that starts here keeps its files below ``RAY_TMPDIR`` (default ``/tmp``) and sends no
statistics of its use.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import pyarrow as pa
import ray

from rankwright import Example, Reranker


class Ranker:
    """A model in a worker, loaded once."""

    def __init__(self, model: str) -> None:
        self.reranker = Reranker.load(model)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score a batch of rows; one call, so that documents of all of them share batches."""
        rows: list[dict[str, Any]] = batch.to_pylist()
        examples = [
            Example(row["query"], row["documents"], [0.0] * len(row["documents"])) for row in rows
        ]
        scored = self.reranker.score_examples(examples)
        batch = batch.append_column("scores", pa.array([found.scores for found in scored]))
        return batch.append_column("order", pa.array([found.order for found in scored]))


def main() -> None:
    """Read the arguments and rank."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder that every worker can read, or id")
    parser.add_argument("--input", required=True, help="JSON lines: file, folder or URL")
    parser.add_argument("--output", required=True, help="folder of JSON lines")
    parser.add_argument("--workers", type=int, default=1, help="models in memory")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker, 0 for the CPU")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a worker")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch")
    parser.add_argument("--address", help="of a cluster; default: start Ray on this machine")
    given = parser.parse_args()
    # Ray sends statistics of its use elsewhere, unless told not to
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(given.address)
    # files come out in the order of the input
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    rows = ray.data.read_json(given.input, lines=True).map_batches(
        Ranker,
        fn_constructor_args=(given.model,),
        batch_format="pyarrow",
        batch_size=given.batch,
        compute=ray.data.ActorPoolStrategy(size=given.workers),
        num_cpus=given.cpus,
        num_gpus=given.gpus,
    )
    rows.write_json(given.output)
    print(f"written to {given.output}")


if __name__ == "__main__":
    main()
