"""The arithmetic of benchmarks/steps.py."""

from __future__ import annotations

import argparse
from types import ModuleType

import pytest

from tests.documents import benchmark

OPTIONS = argparse.Namespace(device="cpu", smoke=True, steps=1, warm_up=0, batch_tokens=800)


@pytest.fixture(scope="module")
def steps() -> ModuleType:
    return benchmark("steps")


def test_flops_of_shared_prefixes(steps: ModuleType) -> None:
    """Shared, a prefix of eight documents is computed once rather than eight times."""
    variant = steps.Variant("qwen3-0.6b", 10**6)
    model = steps.build(variant, OPTIONS)
    (batch,) = steps.batches_of(variant, OPTIONS)
    config, prefix = model.config, steps.PREFIX_TOKENS
    weights = sum(
        p.numel()
        for name, p in model.hf.named_parameters()
        if "layers." in name or ".norm." in name
    )
    once = 3 * (2.0 * weights * prefix + steps.speed.attention_flops(config, prefix))
    unique, pairs = (steps.flops_of(model, batch, shared=way) for way in (True, False))
    groups = len(batch.offsets_Q) - 1
    assert pairs - unique == pytest.approx(7 * groups * once, rel=1e-12)

    (alone,) = steps.batches_of(steps.Variant("qwen3-0.6b", 10**6, shared=False), OPTIONS)
    unique, pairs = (steps.flops_of(model, alone, shared=way) for way in (True, False))
    assert unique == pairs > 0


@pytest.mark.parametrize("lora", [0, 4])
def test_flops_by_hand(steps: ModuleType, lora: int) -> None:
    """Two tokens, then one that continues them: 2 + 1 tokens, and 1 + 2 + 3 pairs of attention.

    A layer has a query, key, value and output matrix of 64 x 8 heads of 8 (keys and values 64 x
    2 x 8), three of 64 x 128, four norms; the last norm stands behind two layers. Adapters of
    rank 4 add 4 rows and 4 columns to each of the seven.
    """
    model = steps.build(steps.Variant("qwen3-0.6b", 64, lora=lora), OPTIONS)
    config = model.config
    heads, keys, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    wide, narrow = heads * size, keys * size
    shapes = [(64, wide), (64, narrow), (64, narrow), (wide, 64), (64, 128), (64, 128), (128, 64)]
    layer = sum(a * b for a, b in shapes) + 2 * 64 + 2 * size
    weights = config.num_hidden_layers * layer + 64
    adapters = lora * config.num_hidden_layers * sum(a + b for a, b in shapes)
    trained = 3 * adapters + (2 if lora else 3) * weights
    batch = argparse.Namespace(lengths=(2, 1), parents=(-1, 0))
    seen = 4 * wide * config.num_hidden_layers * (1 + 2 + 3)
    assert steps.flops_of(model, batch, shared=True) == 2 * trained * 3 + 3 * seen
    # alone, the pair has three tokens, which are the same ones
    assert steps.flops_of(model, batch, shared=False) == 2 * trained * 3 + 3 * seen


def test_rows_of_the_table(steps: ModuleType) -> None:
    options = argparse.Namespace(slice_tokens=[8192], attention="auto")
    names = [v.name for v in steps.variants_of("qwen3-0.6b", options)]
    assert names == [
        "qwen3-0.6b, 8192 tokens",
        "qwen3-0.6b, 8192 tokens, not shared",
        "qwen3-0.6b, 8192 tokens, compiled",
    ]
    names = [v.name for v in steps.variants_of("qwen3-8b", options)]
    low = "qwen3-8b, 8192 tokens, bf16 weights, checkpointing, LoRA 8"
    assert names == [low, low.replace("tokens", "tokens, compiled")]
