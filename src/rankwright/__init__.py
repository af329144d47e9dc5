"""Rankwright trains, evaluates and runs text rerankers.

>>> import rankwright
>>> result = rankwright.train(model="base", dataset="rows.jsonl")  # doctest: +SKIP
>>> rankwright.Reranker.load("output").rank("a query", ["one", "another"])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankwright.errors import CheckpointError, ConfigError, DataError, RankwrightError
from rankwright.types import Example

if TYPE_CHECKING:
    from rankwright.calibration import Calibration
    from rankwright.data.readers import load_examples
    from rankwright.evaluation import EvaluationResult, evaluate
    from rankwright.export import ExportResult, export_model
    from rankwright.metrics import offsets_from_flat_labels, ranking_metrics
    from rankwright.mining import MiningResult, mine
    from rankwright.ranking import RankedDocument, Reranker
    from rankwright.templates import Passages
    from rankwright.trainer import TrainResult, train

__version__ = "0.1.0"

# torch and transformers take seconds to import, so what needs them is imported when it is first
# asked for
_LAZY = {
    "Calibration": "rankwright.calibration",
    "EvaluationResult": "rankwright.evaluation",
    "ExportResult": "rankwright.export",
    "MiningResult": "rankwright.mining",
    "Passages": "rankwright.templates",
    "RankedDocument": "rankwright.ranking",
    "Reranker": "rankwright.ranking",
    "TrainResult": "rankwright.trainer",
    "evaluate": "rankwright.evaluation",
    "export_model": "rankwright.export",
    "load_examples": "rankwright.data.readers",
    "mine": "rankwright.mining",
    "offsets_from_flat_labels": "rankwright.metrics",
    "ranking_metrics": "rankwright.metrics",
    "train": "rankwright.trainer",
}

__all__ = [
    "Calibration",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EvaluationResult",
    "Example",
    "ExportResult",
    "MiningResult",
    "Passages",
    "RankedDocument",
    "RankwrightError",
    "Reranker",
    "TrainResult",
    "__version__",
    "evaluate",
    "export_model",
    "load_examples",
    "mine",
    "offsets_from_flat_labels",
    "ranking_metrics",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rankwright' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
