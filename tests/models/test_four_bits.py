"""``--quant_bits 4``: adapters on weights in four bits, and what is left of them in the files."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rankwright
from rankwright.errors import ConfigError
from rankwright.models import checkpoint
from rankwright.ranking import Reranker
from tests import tiny

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install -c constraints.txt bitsandbytes",
)
ROWS = tiny.examples(8, documents=4)
PAIRS = [(row.query, document) for row in ROWS[:3] for document in row.documents]


def train(base: Path, output: Path, **given: Any) -> rankwright.TrainResult:
    rows = output.parent / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps(
                {"query": row.query, "positive": row.documents[:1], "negative": row.documents[1:]}
            )
            + "\n"
            for row in ROWS
        )
    )
    return rankwright.train(
        **{
            "model": str(base),
            "dataset": [str(rows)],
            "output_dir": str(output),
            "split_dataset_ratio": 0,
            "use_cpu": True,
            "tuner_type": "lora",
            "quant_bits": 4,
            "max_length": 512,
            "max_steps": 3,
            "save_steps": 1,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 2,
            **given,
        }
    )


def take_out(base: Path, *beginnings: str) -> None:
    """Leave out the weights whose names begin so, as a base has them that lacks these modules."""
    file = base / "model.safetensors"
    weights = load_file(file)
    rest = {name: value for name, value in weights.items() if not name.startswith(beginnings)}
    assert len(rest) < len(weights)
    save_file(rest, file, {"format": "pt"})


def in_four_bits(reranker: Reranker) -> list[str]:
    """The layers' names; from here on they compute in float32."""
    found = []
    for name, module in reranker.loaded.model.hf.named_modules():
        if type(module).__name__ == "Linear4bit" and "lora" not in name:
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("name", "dora"),
    [
        ("bert", False),
        ("modernbert", False),
        ("distilbert", False),
        ("qwen3", False),
        ("qwen3", True),
    ],
)
def test_the_final_model_is_what_was_trained(tmp_path: Path, name: str, dora: bool) -> None:
    """All of it: merged into four bits, an adapter is lost in their rounding.

    The trained model is also scored by its own forward, since a head that is in four bits, or one
    that is fed in their type, would be wrong on packed rows alone.
    """
    result = train(tiny.save_base(tmp_path / "base", name), tmp_path / "out", use_dora=dora)
    trained, model = result.reranker, result.reranker.loaded.model
    layers = in_four_bits(trained)
    assert len(layers) >= 6
    assert all(layer.startswith(model.hf.base_model_prefix) for layer in layers)
    assert not any("pooler" in layer for layer in layers)
    scores_P = torch.tensor(trained.score(PAIRS))
    assert scores_P.std() > 1e-3
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    final = Reranker(checkpoint.load(str(tmp_path / "out")))
    torch.testing.assert_close(torch.tensor(final.score(PAIRS)), scores_P, rtol=0, atol=2e-5)
    assert model.packed
    model.packed = False
    model.hf.set_attn_implementation("sdpa")
    torch.testing.assert_close(torch.tensor(trained.score(PAIRS)), scores_P, rtol=0, atol=2e-5)


def test_a_new_module_is_not_cut_to_four_bits(tmp_path: Path) -> None:
    """A base without one of its layers: it is new, trained in full and saved with the adapter."""
    base = tiny.save_base(tmp_path / "base", "bert")
    take_out(base, "bert.encoder.layer.1.output.dense")
    result = train(base, tmp_path / "out")
    assert not any("layer.1.output" in layer for layer in in_four_bits(result.reranker))
    final = Reranker(checkpoint.load(str(tmp_path / "out")))
    expected_P = torch.tensor(result.reranker.score(PAIRS))
    torch.testing.assert_close(torch.tensor(final.score(PAIRS)), expected_P, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("gpt2", {}, "--quant_bits 4 does not fit layers of 'gpt2'; leave it out"),
        ("bert", {"quant_bits": 8}, "--quant_bits 8 is not supported; give 4 or leave it out"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, name: str, given: dict[str, Any], told: str) -> None:
    base = tiny.save_base(tmp_path / "base", name)
    with pytest.raises(ConfigError, match=told):
        train(base, tmp_path / "out", **given)


@pytest.mark.parametrize("name", ["bert", "modernbert", "roberta"])
def test_a_new_head_needs_no_second_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Heads that the base lacks keep all their bits from the beginning."""
    base = tiny.save_base(tmp_path / "base", name)
    take_out(base, "classifier.", "head.", f"{name}.pooler.")
    read: list[Any] = []
    four_bits = checkpoint._four_bits
    monkeypatch.setattr(
        checkpoint, "_four_bits", lambda whole: (read.append(list(whole)), four_bits(whole))[1]
    )
    train(base, tmp_path / "out", max_steps=1)
    assert len(read) == 1


def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "qwen3")
    train(base, tmp_path / "whole", save_total_limit=None)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in (tmp_path / "cut").iterdir():
        if path.name != "checkpoint-2":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(base, tmp_path / "cut", save_total_limit=None, resume=True)
    files = [tmp_path / run / "model.safetensors" for run in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
