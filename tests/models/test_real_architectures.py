"""The real shapes of the documented models, with random weights and their real tokenizers.

Configurations as published on the model cards' ``config.json``; no weights are needed.
"""

from __future__ import annotations

import math
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertConfig,
    Qwen3Config,
)

from rankwright.arguments import resolve
from rankwright.data.readers import load_examples
from rankwright.models.reranker import RerankerModel
from rankwright.ranking import Reranker
from rankwright.trainer import train_on

QWEN3_SIZES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
}


def qwen3(size: str) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151669,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=151643,
        eos_token_id=151645,
        pad_token_id=151643,
        **QWEN3_SIZES[size],
    )


def rows(shared: Path, count: int) -> Any:
    return load_examples(str(shared / "data" / "medquad_small" / "train.jsonl")).examples[:count]


def train(base: Path, examples: Any, out: Path, **given: Any) -> list[float]:
    """Train some steps and return the losses."""
    settings = {
        "model": str(base),
        "dataset": ["unused"],
        "output_dir": str(out),
        "use_cpu": True,
        "max_length": 192,
        "logging_steps": 1,
        "save_strategy": "no",
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        **given,
    }
    losses: list[float] = []

    import rankwright.trainer as room

    original = room._Trainer.log

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            losses.append(logs["loss"])
        original(self, logs, start_time)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room._Trainer, "log", log)
        train_on(resolve(settings, {}), examples, [])
    return losses


@pytest.mark.slow
def test_modernbert_base_trains_a_step(tmp_path: Path, shared: Path) -> None:
    """149 M parameters, 22 layers, windows of 128: gte-reranker-modernbert-base's shape."""
    folder = shared / "tokenizers" / "modernbert"
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token="[PAD]")
    config = ModernBertConfig(num_labels=1, classifier_pooling="mean")
    model = AutoModelForSequenceClassification.from_config(config)
    # embeddings 50368 x 768; a layer: Wqkv, Wo, Wi, Wo and two norms (the first layer has one);
    # final norm;
    # head dense and norm; classifier
    layer = 768 * 3 * 768 + 768 * 768 + 768 * 2 * 1152 + 1152 * 768 + 2 * 768
    expected = 50368 * 768 + 768 + 22 * layer - 768 + 768 + 768 * 768 + 768 + 768 + 1
    assert sum(p.numel() for p in model.parameters()) == expected
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    losses = train(
        tmp_path / "base",
        rows(shared, 2),
        tmp_path / "out",
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-4,
    )
    # one positive among five: chance is log 5
    assert losses[0] == pytest.approx(math.log(5), abs=1.0)
    assert losses[1] != losses[0]


@pytest.mark.slow
def test_qwen3_0_6b_trains(tmp_path: Path, shared: Path) -> None:
    """596 M parameters, full fine-tuning in float32, a few steps on two queries: the loss falls."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen3")
    model = AutoModelForCausalLM.from_config(qwen3("0.6B"))
    layer = 1024 * 128 * (16 + 8 + 8) + 16 * 128 * 1024 + 3 * 1024 * 3072 + 2 * 128 + 2 * 1024
    assert sum(p.numel() for p in model.parameters()) == 151669 * 1024 + 28 * layer + 1024
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    del model
    losses = train(
        tmp_path / "base",
        rows(shared, 2),
        tmp_path / "out",
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-5,
        max_negative_samples=3,
    )
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_qwen3_4b_scores_in_bfloat16(shared: Path) -> None:
    """One forward of the 4B shape, 8 GB of weights, over a group with a shared prefix."""
    from rankwright.data.collate import Collator
    from rankwright.templates import QWEN3, PairEncoder
    from rankwright.types import Group

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen3")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(qwen3("4B"), dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    # one block of noise, repeated: drawing four billion numbers takes minutes and shows nothing
    # more
    noise = (torch.randn(1 << 22) * 0.02).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
                continue
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), noise.numel()):
                part = flat[start : start + noise.numel()]
                part.copy_(noise[: part.numel()])
        rotary = model.model.rotary_emb
        rotary.inv_freq.copy_(1.0 / 1e6 ** (torch.arange(0, 128, 2).float() / 128))
    wrapped = RerankerModel(model.eval(), "generative", (9693, 2152))
    collate = Collator(PairEncoder(tokenizer, QWEN3, 192), share_prefix=True, scored_last=True)
    example = rows(shared, 1)[0]
    with torch.inference_mode():
        scores_P = wrapped(collate([Group(example, (0, 1))]))
    assert scores_P.dtype == torch.float32
    assert torch.isfinite(scores_P).all()
    assert scores_P[0] != scores_P[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"scores {scores_P.tolist()}, peak memory {peak:.1f} GB")


def test_bge_and_deberta_shapes_load_from_their_folders(tmp_path: Path, shared: Path) -> None:
    """XLM-R (bge-reranker) packed, DeBERTa padded: both rank through the public class."""
    from tests import tiny

    for name in ("xlm-roberta", "deberta-v2"):
        folder = tiny.save_base(tmp_path / name, name)
        reranker = Reranker.load(folder)
        assert reranker.loaded.model.packed == (name == "xlm-roberta")
        assert len(reranker.rank("the fox", ["a dog", "the sea"])) == 2
