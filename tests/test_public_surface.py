"""What users type and import is frozen here; changing it is a line in the CHANGELOG."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

import rankwright
from rankwright import cli
from rankwright.arguments import GROUPS

# fmt: off
NAMES = [
    "Calibration", "CheckpointError", "ConfigError", "DataError", "EvaluationResult", "Example",
    "ExportResult", "MiningResult", "Passages", "RankedDocument", "RankwrightError", "Reranker",
    "TrainResult", "__version__", "evaluate", "export_model", "load_examples", "mine",
    "offsets_from_flat_labels", "ranking_metrics", "train",
]
MODEL_FLAGS = {
    "model", "task_type", "use_hf", "revision", "torch_dtype", "trust_remote_code", "max_length",
    "template", "template_prefix", "template_suffix", "instruction", "positive_token",
    "negative_token", "dropout", "packed", "attn_impl",
}
BAD_ROW_FLAGS = {"on_bad_row", "max_bad_rows"}
PASSAGE_FLAGS = {"passages", "passage_tokens", "passage_overlap", "max_passages"}
FLAGS = {
    "quickstart": {"model", "output_dir", "seed", "max_steps", "overwrite"},
    "train": MODEL_FLAGS | BAD_ROW_FLAGS | {
        # rows
        "dataset", "instructions", "val_dataset", "val_instructions", "split_dataset_ratio",
        "data_format", "max_positive_samples",
        "max_negative_samples", "in_batch_negatives", "group", "batch_tokens", "chunk_tokens",
        "share_prefix", "eval_batch_tokens",
        "lazy_tokenize", "dataset_num_proc", "cache_dir", "load_from_cache_file",
        # loss
        "loss_type", "temperature", "teacher_temperature", "min_group_size", "pos_weight", "sigma",
        "lambda_mu", "ndcg_cutoff",
        # tuner
        "tuner_type", "lora_rank", "lora_alpha", "lora_dropout", "target_modules", "use_dora",
        "quant_bits", "merge_lora",
        # run
        "metrics", "early_stopping_patience", "calibrate", "on_nan", "max_nan_steps", "resume",
        "overwrite",
    },
    "evaluate": MODEL_FLAGS | PASSAGE_FLAGS | BAD_ROW_FLAGS | {
        "dataset", "instructions", "data_format", "split", "metrics", "batch_tokens", "output",
        "mteb_tasks", "first_stage", "top_k",
    },
    "rank": MODEL_FLAGS | PASSAGE_FLAGS | BAD_ROW_FLAGS | {
        "query", "documents", "input", "output", "top_k", "probability", "batch_tokens",
        "calibrated", "threshold", "dataset", "instructions", "data_format", "split",
        "write_scores",
    },
    "calibrate": MODEL_FLAGS | PASSAGE_FLAGS | BAD_ROW_FLAGS | {
        "dataset", "instructions", "data_format", "split", "method", "precision", "recall", "folds",
        "batch_tokens", "output",
    },
    "compare": MODEL_FLAGS | PASSAGE_FLAGS | BAD_ROW_FLAGS | {
        "dataset", "qrels", "instructions", "data_format", "split", "metrics", "show", "top_k",
        "samples", "seed", "batch_tokens", "output",
    },
    "export": MODEL_FLAGS | BAD_ROW_FLAGS | {
        "to", "output", "dataset", "instructions", "data_format", "split", "tolerance", "quantize",
        "max_ndcg_loss", "push_to_hub", "public",
    },
    "serve": MODEL_FLAGS | PASSAGE_FLAGS | {
        "host", "port", "api_key", "allow_anonymous", "served_model_name", "batch_tokens",
        "max_wait_ms", "max_documents", "max_bytes", "max_tokens", "max_queue", "timeout",
        "access_log",
    },
    "report": MODEL_FLAGS | PASSAGE_FLAGS | BAD_ROW_FLAGS | {
        "output", "compare_with", "dataset", "instructions", "data_format", "split",
        "batch_tokens",
    },
    "check": MODEL_FLAGS | BAD_ROW_FLAGS | {
        "dataset", "instructions", "val_dataset", "val_instructions", "data_format",
    },
    "mine": BAD_ROW_FLAGS | {
        "queries", "corpus", "output", "data_format", "split", "use_hf", "work_dir",
        "method", "bm25_stopwords", "bm25_stemmer", "bm25_k1", "bm25_b",
        "dense_model", "query_prompt", "document_prompt", "dense_batch_size",
        "number", "range_min", "range_max", "absolute_margin", "relative_margin", "max_score",
        "min_score", "sampling", "seed", "keep_negatives", "candidates",
        "teacher", "teacher_max", "teacher_absolute_margin", "teacher_relative_margin",
        "teacher_max_length",
    },
}
# fmt: on


def test_all_is_frozen_and_importable() -> None:
    assert rankwright.__all__ == NAMES
    for name in NAMES:
        assert getattr(rankwright, name) is not None
    assert dir(rankwright) == sorted(NAMES)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = rankwright.trian  # type: ignore[attr-defined]


def test_commands_are_frozen() -> None:
    assert set(cli.COMMANDS) == set(FLAGS)
    for name in FLAGS:
        assert f"\n  {name} " in cli.USAGE


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_frozen(command: str) -> None:
    found: list[Any] = [f for kind in cli.module(command).types() for f in fields(kind)]
    assert {f.name for f in found} == FLAGS[command]
    # no name stands in two groups, and each has its line of help
    assert len(found) == len(FLAGS[command])
    for f in found:
        assert f.metadata["help"]


def test_training_arguments_are_not_shadowed() -> None:
    """Ours beside those of transformers: one name, one meaning."""
    from transformers import TrainingArguments

    own = {f.name for kind in GROUPS for f in fields(kind)}
    assert not own & {f.name for f in fields(TrainingArguments)}
