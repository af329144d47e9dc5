"""Linear layers by oneDNN give what plain products give, scores and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.testing import assert_close

from rankwright.models import linear_cpu
from rankwright.models.linear_cpu import Linear, use
from tests.models.test_parity import groups, reranker, run

pytestmark = pytest.mark.skipif(
    linear_cpu._product is None or not torch.backends.mkldnn.is_available(),
    reason="this PyTorch has no oneDNN",
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every product is one for oneDNN; what it was asked for."""
    found: list[str] = []

    def counted(name: str, product: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found.append(name)
            return product(*args)

        return call

    monkeypatch.setattr(linear_cpu, "faster", lambda: True)
    monkeypatch.setattr(linear_cpu, "LEAST_WORK", 0)
    monkeypatch.setattr(linear_cpu, "STEPS", (1, 1))
    monkeypatch.setattr(linear_cpu, "_product", counted("product", linear_cpu._product))
    monkeypatch.setattr(linear_cpu, "_weights", counted("weights", linear_cpu._weights))
    return found


def outcome(layer: nn.Linear, x: Tensor, weigh: Tensor) -> dict[str, Tensor]:
    """Output of a layer, and all gradients of a weighted sum."""
    layer.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    output = layer(x)
    found = {"output": output.detach()}
    if output.requires_grad:
        (output * weigh).sum().backward()
    values = {"x": x, **dict(layer.named_parameters())}
    return found | {n: v.grad.double() for n, v in values.items() if v.grad is not None}


# rows in one block, in one that is filled up, and in several
@pytest.mark.parametrize(("block", "step"), [(64, 8), (16, 8), (16, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(37, 24), (2, 3, 24), (24,)])
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("weight", "bias"), ("bias",)])
def test_a_layer_equals_its_double(
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    bias: bool,
    frozen: tuple[str, ...],
    block: int,
    step: int,
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(linear_cpu, "BLOCK", block)
    plain = nn.Linear(24, 16, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64).requires_grad_("x" not in frozen)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name not in frozen)
    weigh = torch.randn(*shape[:-1], 16, dtype=torch.float64)
    expected = outcome(plain, x, weigh)
    layer = copy.deepcopy(plain).float()
    use(layer)
    assert type(layer) is Linear
    rows = x.numel() // 24
    monkeypatch.setattr(linear_cpu, "STEPS", (min(step, rows),) * 2)
    found = outcome(layer, x.float().detach().requires_grad_(x.requires_grad), weigh.float())
    assert calls.count("product") >= -(-rows // block)
    assert ("weights" in calls) == ("weight" not in frozen)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name].double(), value, atol=2e-6, rtol=1e-5, msg=name)


def test_rows_that_do_not_lie_together(calls: list[str]) -> None:
    torch.manual_seed(0)
    layer, plain = nn.Linear(24, 16), nn.Linear(24, 16)
    plain.load_state_dict(layer.state_dict())
    use(layer)
    row = torch.randn(24, 37).t()
    weigh = torch.randn(16, 37).t()
    found, expected = outcome(layer, row, weigh), outcome(plain, row, weigh)
    assert calls
    for name, value in expected.items():
        assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=name)
    # the gradient of a sum is one number that stands everywhere
    assert_close(
        torch.autograd.grad(layer(row).sum(), layer.weight),
        torch.autograd.grad(plain(row).sum(), plain.weight),
    )


@pytest.mark.parametrize("rows", [37, 40, 100])
def test_results_can_be_changed_in_place(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """One block that is filled up, one that is not, and several."""
    monkeypatch.setattr(linear_cpu, "STEPS", (8, 8))
    monkeypatch.setattr(linear_cpu, "BLOCK", 64)
    layer = nn.Linear(24, 16)
    x = torch.randn(rows, 24)
    expected = torch.relu(layer(x)[None] + 1)
    expected.sum().backward()
    wanted, layer.weight.grad = layer.weight.grad, None
    use(layer)
    found = layer(x[None]).add_(1).relu_()
    found.sum().backward()
    assert calls[0] == "product"
    assert_close(found, expected)
    assert_close(layer.weight.grad, wanted)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_weights_keep_no_input(calls: list[str], frozen: bool) -> None:
    layer = nn.Linear(24, 16).requires_grad_(not frozen)
    use(layer)
    x = torch.randn(37, 24).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert calls == ["product"]
    assert any(t.shape == x.shape for t in kept) != frozen


def bfloat16(layer: nn.Linear, x: Tensor) -> Tensor:
    return copy.deepcopy(layer).bfloat16()(x.bfloat16())


def autocast(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(x)


def switched_off(layer: nn.Linear, x: Tensor) -> Tensor:
    torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        return layer(x)
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True)


def exported(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.export.export(layer, (x,)).module()(x)


def compiled(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.compile(layer, backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize("way", [bfloat16, autocast, switched_off, exported, compiled])
def test_what_is_left_to_pytorch(calls: list[str], way: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(24, 16), torch.randn(37, 24)
    layer = copy.deepcopy(plain)
    use(layer)
    with torch.no_grad():
        assert torch.equal(way(layer, x), way(plain, x))
        assert not calls
        layer(x)
    assert calls == ["product"]


def test_small_products_are_left_to_pytorch(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Linear(24, 16)
    use(layer)
    monkeypatch.setattr(linear_cpu, "LEAST_WORK", 37 * 24 * 16)
    with torch.no_grad():
        layer(torch.randn(36, 24))
        assert not calls
        layer(torch.randn(37, 24))
        assert calls == ["product"]
        monkeypatch.setattr(linear_cpu, "STEPS", (38, 64))
        layer(torch.randn(37, 24))
    assert calls == ["product"]


def test_few_lengths_are_compiled(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """oneDNN keeps what it compiles for each length."""
    lengths = set()

    def product(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        lengths.add(len(x))
        return x @ weight.T

    monkeypatch.setattr(linear_cpu, "_product", product)
    monkeypatch.setattr(linear_cpu, "BLOCK", 64)
    monkeypatch.setattr(linear_cpu, "FEW", 24)
    monkeypatch.setattr(linear_cpu, "STEPS", (8, 32))
    layer = nn.Linear(2, 3, bias=False)
    use(layer)
    for count in range(8, 300):
        x = torch.randn(count, 2)
        assert_close(layer(x), x @ layer.weight.T)
    assert lengths == {8, 16, 24, 32, 64}


@pytest.mark.parametrize("name", ["modernbert", "bert", "qwen3", "qwen3:seq"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_keeps_its_scores_and_gradients(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, name: str, checkpointing: bool
) -> None:
    monkeypatch.setattr(linear_cpu, "faster", lambda: False)
    plain, collate = reranker(name, packed=True)
    batches = [collate(groups())]
    expected = run(plain, batches)
    assert not calls
    monkeypatch.setattr(linear_cpu, "faster", lambda: True)
    model, _ = reranker(name, packed=True)
    model.load_state_dict(plain.state_dict())
    model.float()
    if checkpointing:
        # the layers look whether the model trains; dropout would differ
        for module in model.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.gradient_checkpointing_enable()
    scores_P, gradients = run(model, batches)
    assert {"product", "weights"} <= set(calls)
    # float32 sums in another order on every processor; these scores are of order 1
    assert_close(scores_P.double(), expected[0], atol=5e-6, rtol=1e-5)
    assert gradients.keys() == expected[1].keys()
    for key, value in expected[1].items():
        most = 1e-6 + 1e-5 * float(value.abs().max())
        assert_close(gradients[key].double(), value, atol=most, rtol=0, msg=key)
    again = run(model, batches)
    assert torch.equal(again[0], scores_P)
    assert all(torch.equal(again[1][key], value) for key, value in gradients.items())


def test_adapters_and_names_stay(calls: list[str]) -> None:
    model, collate = reranker("modernbert", packed=True)
    model.float()
    names = [*model.state_dict()]
    batch = collate(groups())
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["Wqkv", "Wo"]), model.hf)
    model.requires_grad_(True)
    assert any("lora_A" in name for name in model.state_dict())
    model(batch).sum().backward()
    assert {"product", "weights"} <= set(calls)
    assert sum(type(module) is Linear for module in model.modules()) > 4
    plain, _ = reranker("modernbert", packed=True)
    assert [*plain.state_dict()] == names


@pytest.mark.parametrize(
    ("lines", "capability", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n", "AVX512", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX512_VNNI", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False),
        ("CPU implementer\t: 0x41\n", "SVE256", False),
        ("processor\t: 0\n", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_the_processors_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    lines: str | None,
    capability: str,
    expected: bool,
) -> None:
    info = tmp_path / "cpuinfo"
    if lines is not None:
        info.write_text(lines)
    monkeypatch.setattr(linear_cpu, "CPU_INFO", info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    linear_cpu.faster.cache_clear()
    layer = nn.Linear(2, 2)
    use(layer)
    linear_cpu.faster.cache_clear()
    assert (type(layer) is Linear) == expected
