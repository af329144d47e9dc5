"""Queries and keys rotated by our function equal transformers' own, gradients too."""

from __future__ import annotations

import copy
import importlib
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rankwright.models import rotary_cpu
from rankwright.models.families import FAMILIES
from rankwright.models.rotary_cpu import choosing, is_known, rotate
from tests.models.test_parity import groups, reranker, run

ROTARY = ["modernbert", "qwen3", "qwen2", "llama", "mistral"]


def original(family: str) -> Any:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    return module.apply_rotary_pos_emb


def tensors(dtype: torch.dtype = torch.float64, size: int = 8) -> tuple[Tensor, ...]:
    """Queries, keys as the projections leave them, and angles whose halves differ."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(2, 5, 4, size), (2, 5, 2, size), (2, 5, size), (2, 5, size)]
    query, key, cos, sin = (torch.randn(s, generator=draw, dtype=dtype) for s in shapes)
    return query.transpose(1, 2), key.transpose(1, 2), cos, sin


def outcome(function: Any, given: tuple[Tensor, ...]) -> list[Tensor]:
    """Both results, and the gradients of a sum that weighs each number differently."""
    query, key = (tensor.detach().requires_grad_() for tensor in given[:2])
    results = function(query, key, *given[2:])
    total = sum(
        (r * torch.linspace(-1, 2, r.numel(), dtype=r.dtype).view_as(r)).sum() for r in results
    )
    return [*(r.detach() for r in results), *torch.autograd.grad(total, (query, key))]


@pytest.mark.parametrize("size", [2, 8, 64])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_it_equals_the_architecture_s_own(family: str, size: int) -> None:
    given = tensors(size=size)
    for found, expected in zip(
        outcome(rotate, given), outcome(original(family), given), strict=True
    ):
        assert_close(found, expected, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        assert_close(rotate(*given), original(family)(*given), rtol=1e-13, atol=1e-13)


def test_a_quarter_turn() -> None:
    """By hand: pairs (1, 3) and (2, 4), each turned by 90 degrees, are (-3, 1) and (-4, 2)."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    found, _ = rotate(x, x, torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
    assert found.flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What ours was asked for."""
    asked: list[torch.dtype] = []

    def call(query: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(query.dtype)
        return rotate(query, *rest)

    monkeypatch.setattr(rotary_cpu, "rotate", call)
    return asked


@pytest.mark.parametrize("name", [*ROTARY, "qwen3:seq", "bert", "distilbert"])
def test_a_model_s_scores_and_gradients_stay(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, collate = reranker(name, packed=True)
    asked = counted(monkeypatch)
    model.float()
    batch = collate(groups())
    found = run(model, [batch])
    layers = model.config.num_hidden_layers if name.split(":")[0] in ROTARY else 0
    assert asked == [torch.float32] * layers
    for module in model.modules():
        vars(module).pop("forward", None)
    expected = run(model, [batch])
    assert len(asked) == layers, "the plain way was ours, too"
    assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)
    largest = max(g.abs().max() for g in expected[1].values())
    for key, gradient in expected[1].items():
        assert (found[1][key] - gradient).abs().max() < 1e-5 * largest, key


def test_every_family_that_rotates_is_known() -> None:
    for family in FAMILIES:
        module = importlib.import_module(
            f"transformers.models.{family.replace('-', '_')}.modeling_{family.replace('-', '_')}"
        )
        function = getattr(module, rotary_cpu.NAME, None)
        assert (function is not None) == (family in ROTARY)
        assert function is None or is_known(function)


def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of neighbours, as GPT-J turns them."""

    def turn(x: Tensor) -> Tensor:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos[:, None] + turned * sin[:, None]

    return turn(q), turn(k)


def of_one(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + sin


@pytest.mark.parametrize("other", [interleaved, of_one])
def test_another_rotation_is_left_alone(other: Any) -> None:
    assert not is_known(other)

    def forward(self: Any, *given: Tensor) -> Any:
        return apply_rotary_pos_emb(*given)  # type: ignore[name-defined]  # noqa: F821

    names = {**forward.__globals__, rotary_cpu.NAME: other}
    layer = type("Layer", (torch.nn.Module,), {"forward": FunctionType(forward.__code__, names)})()
    rotary_cpu.use(layer)
    assert "forward" not in vars(layer)
    names[rotary_cpu.NAME] = original("qwen3")
    layer = type("Layer", (torch.nn.Module,), {"forward": FunctionType(forward.__code__, names)})()
    rotary_cpu.use(layer)
    assert "forward" in vars(layer)


@pytest.mark.parametrize("what", ["float64", "bfloat16", "meta", "angles learn", "part of a head"])
def test_what_does_not_fit_is_the_architecture_s_own(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    asked = counted(monkeypatch)
    query, key, cos, sin = tensors(torch.float32)
    if what in ("float64", "bfloat16"):
        query, key = query.to(getattr(torch, what)), key.to(getattr(torch, what))
    elif what == "meta":
        query, key, cos, sin = (t.to("meta") for t in (query, key, cos, sin))
    elif what == "angles learn":
        cos.requires_grad_()
    calls = []

    def own(*given: Any, **more: Any) -> Any:
        calls.append(given)
        return given[:2]

    if what == "part of a head":
        cos, sin = cos[..., :4], sin[..., :4]
    choosing(own)(query, key, cos, sin)
    assert len(calls) == 1
    assert asked == []
    choosing(own)(*tensors(torch.float32))
    assert len(calls) == len(asked) == 1


def test_a_compiled_layer_has_the_architecture_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted(monkeypatch)
    function = choosing(original("qwen3"))
    given = tensors(torch.float32)
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert_close(compiled(*given), function(*given), rtol=1e-5, atol=1e-6)
    assert len(asked) == 1


def test_looking_draws_no_random_numbers() -> None:
    is_known.cache_clear()
    before = torch.get_rng_state()
    assert is_known(original("qwen3"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_is_its_own() -> None:
    model, collate = reranker("qwen3", packed=True)
    other = copy.deepcopy(model)
    attention = [m for m in other.modules() if "forward" in vars(m)]
    assert len(attention) == model.config.num_hidden_layers
    assert all(vars(m)["forward"].__self__ is m for m in attention)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
        batch = collate(groups())
        assert not torch.allclose(model(batch), other(batch))


def test_the_padded_way_is_the_architecture_s_own() -> None:
    model, _ = reranker("qwen3", packed=False)
    assert not any("forward" in vars(m) for m in model.modules())
