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
