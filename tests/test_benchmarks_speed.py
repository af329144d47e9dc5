"""The arithmetic of benchmarks/speed.py."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest
import transformers

from tests.documents import benchmark


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    return benchmark("speed")


def test_causal_attention_flops(speed: ModuleType) -> None:
    """Each of 3 tokens sees 1, 2, 3 keys: 6 pairs; times 2 products, 2 FLOPs, 2 heads of 8, 5
    layers.
    """
    config = transformers.Qwen3Config(num_attention_heads=2, head_dim=8, num_hidden_layers=5)
    assert speed.attention_flops(config, 3) == 6 * 2 * 2 * 16 * 5


@pytest.mark.parametrize("length", [1, 5, 9, 40])
def test_windowed_attention_flops(speed: ModuleType, length: int) -> None:
    """Local layers see |i - j| <= window / 2; counted here on the mask itself."""
    config = transformers.ModernBertConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=4, local_attention=8
    )
    places = np.arange(length)
    seen = int((abs(places[:, None] - places[None]) <= 4).sum())
    layers = config.layer_types.count("full_attention")
    expected = layers * length**2 + (4 - layers) * seen
    assert speed.attention_flops(config, length) == 4 * 32 * expected


def test_lengths_are_log_normal_and_capped(speed: ModuleType) -> None:
    lengths = speed.log_normal_lengths(np.random.default_rng(0), 20_000)
    assert np.median(lengths) == pytest.approx(120, rel=0.03)
    assert max(lengths) == 512
    # P(X > 512) = P(Z > ln(512 / 120) / 0.7) = P(Z > 2.072) = 0.0191
    assert lengths.count(512) / len(lengths) == pytest.approx(0.0191, abs=0.003)


def test_rows_are_the_same_for_every_reader(speed: ModuleType) -> None:
    rows = list(speed.synthetic_rows(3, 4, seed=1))
    assert rows == list(speed.synthetic_rows(3, 4, seed=1))
    assert len({row["query"] for row in rows}) == 3
    for row in rows:
        assert [len(row["positive"]), len(row["negative"])] == [1, 3]
        message = json.loads(json.dumps(speed.as_messages(row)))
        assert [m[0]["content"] for m in message["negative_messages"]] == row["negative"]


def test_a_system_that_computes_less_is_seen(speed: ModuleType) -> None:
    case = speed.Case("modernbert-small", "listwise", "log-normal", 2, 8)
    whole = speed.Outcome("a", rounds=[{"real_tokens": 70}, {"real_tokens": 70}])
    product = speed.Outcome(speed.MATMUL, rounds=[{"seconds": 1.0}])
    speed.same_work(case, 70, {"a": whole, speed.MATMUL: product})
    less = speed.Outcome("b", rounds=[{"real_tokens": 70}, {"real_tokens": 69}])
    with pytest.raises(speed.SpeedError, match="b computed 69 tokens of a round's 70"):
        speed.same_work(case, 70, {"a": whole, "b": less})


def test_fixed_lengths(speed: ModuleType) -> None:
    (row,) = speed.synthetic_rows(1, 2, tokens=7)
    assert [len(text.split()) for text in row["positive"] + row["negative"]] == [7, 7]


def test_spread(speed: ModuleType) -> None:
    assert speed.spread([3.0, 1.0, 2.0]) == "2.00 (1.00-3.00)"
    assert speed.spread([]) == "-"


def test_a_system_that_differs_stops_the_run(speed: ModuleType) -> None:
    case = speed.Case("qwen3-small", "listwise")
    options = speed.argparse.Namespace(device="cpu")
    speed.same(options, case, "first loss", {"rankwright": 2.0, "peer": 2.0001})
    with pytest.raises(speed.SpeedError, match="first loss differs"):
        speed.same(options, case, "first loss", {"rankwright": 2.0, "peer": 2.001})


@pytest.mark.parametrize(("step", "at_once", "kept"), [(16, 4, 4), (3, 4, None), (3, 2, None)])
def test_a_step_is_a_whole_number_of_batches(
    speed: ModuleType, step: int, at_once: int, kept: int | None
) -> None:
    """The first losses are compared on 3 groups, which 2 or 4 do not divide."""
    case = speed.Case("qwen3-small", "listwise", groups=32)
    job = speed.training_job(case, {"groups_at_once": at_once, "rounds": 2}, step)
    assert job["groups_at_once"] == kept
    assert job["steps"] == 2 * -(-32 // step)
