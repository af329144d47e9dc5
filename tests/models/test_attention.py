"""Every back end of the attention gives what plain matrix products give, scores and gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rankwright.errors import ConfigError
from rankwright.models import attention, attention_cpu
from rankwright.models.attention import BACKENDS, Call, Packing, choose, find_backend
from tests.models.test_parity import groups, reranker, run

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# two groups behind shared prefixes with lone documents between them; without parents the same row
LENGTHS = (5, 7, 3, 1, 9, 4, 6, 2)
SHARED = (-1, 0, 0, -1, -1, -1, 5, 5)
ALONE = (-1,) * len(LENGTHS)

# (causal, window, parents): encoders, their sliding layers, decoders, Mistral's sliding decoder
CASES = [
    (False, None, ALONE),
    (False, 4, ALONE),
    (True, None, ALONE),
    (True, None, SHARED),
    (True, 4, SHARED),
    (True, 4, ALONE),
]


def tensors(
    dtype: torch.dtype = torch.float64, device: str = "cpu", size: int = 8
) -> tuple[Tensor, ...]:
    """Query with 4 heads, key and value with 2: grouped queries."""
    torch.manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(1, 4, total, size), (1, 2, total, size), (1, 2, total, size)]
    return tuple(
        torch.randn(s, dtype=torch.float64).to(device, dtype).requires_grad_() for s in shapes
    )


def may_see(parents: tuple[int, ...], causal: bool, window: int | None) -> Tensor:
    """The definition, token by token: own segment or its parent, by position."""
    segment = [s for s, n in enumerate(LENGTHS) for _ in range(n)]
    position = [
        i + (LENGTHS[parents[s]] if parents[s] >= 0 else 0)
        for s, n in enumerate(LENGTHS)
        for i in range(n)
    ]
    total = len(segment)
    allowed = torch.zeros(total, total, dtype=torch.bool)
    for i in range(total):
        for j in range(total):
            distance = position[i] - position[j]
            allowed[i, j] = (
                segment[j] in (segment[i], parents[segment[i]])
                and (not causal or distance >= 0)
                and (window is None or abs(distance) < window)
            )
    return allowed


def reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scaling: float) -> Tensor:
    """Softmax of masked products, written out; (1, T, N, E)."""
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    weights = (q @ k.transpose(-1, -2) * scaling).masked_fill(~allowed, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2)


def cumulative_kernel(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **opts: Any
) -> Tensor:
    """What flash kernels document: segments by offsets, last query at last key, inclusive window.

    Stands in for them where there is no GPU, so that what is handed to them is tested anywhere.
    """
    scaling = opts.get("scale", opts.get("softmax_scale"))
    left, right = opts["window_size"]
    assert opts.get("causal", right == 0) == (right == 0)
    assert cu_q.dtype == cu_k.dtype == torch.int32
    outputs = []
    for s in range(len(cu_q) - 1):
        q_s, k_s, v_s = (
            q[cu_q[s] : cu_q[s + 1]],
            k[cu_k[s] : cu_k[s + 1]],
            v[cu_k[s] : cu_k[s + 1]],
        )
        assert len(q_s) <= max_q
        assert len(k_s) <= max_k
        place = torch.arange(len(q_s))[:, None] + len(k_s) - len(q_s)
        distance = place - torch.arange(len(k_s))[None]
        allowed = torch.ones_like(distance, dtype=torch.bool)
        allowed &= (left < 0) | (distance <= left)
        allowed &= (right < 0) | (-distance <= right)
        heads = [t.transpose(0, 1)[None] for t in (q_s, k_s, v_s)]
        outputs.append(reference(*heads, allowed, scaling)[0])
    return torch.cat(outputs)


def flex_kernel(q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, scale: float, **_: Any) -> Any:
    """FlexAttention's meaning, from the mask function it is handed: it has no gradient on a CPU."""
    at = torch.arange(q.shape[2])
    zero = torch.tensor(0)
    allowed = block_mask.mask_mod(zero, zero, at[:, None], at[None, :])
    assert block_mask.shape[-2:] == (q.shape[2], q.shape[2])
    return reference(q, k, v, allowed, scale).transpose(1, 2)


def outcome(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, and the gradients of a sum that weighs each of its numbers differently."""
    result = function(*inputs)
    weight = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).to(result)
    grads = torch.autograd.grad((result * weight.reshape(result.shape)).sum(), inputs)
    return [result, *grads]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("causal", "window", "parents"), CASES)
def test_equals_the_definition(
    name: str,
    causal: bool,
    window: int | None,
    parents: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To 1e-12 in float64; the GPU kernels are replaced by their documented meaning."""
    for kernel in ("_varlen_kernel", "_flash_2_kernel", "_flash_3_kernel"):
        monkeypatch.setattr(attention, kernel, cumulative_kernel)
    monkeypatch.setattr(attention, "_flex_kernel", flex_kernel)
    call = Call(Packing(LENGTHS, parents), causal, window, 0.37, 0.0)
    found = outcome(lambda q, k, v: BACKENDS[name].function(q, k, v, call), tensors())
    allowed = may_see(parents, causal, window)
    expected = outcome(lambda q, k, v: reference(q, k, v, allowed, 0.37), tensors())
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("causal", "window", "parents"), CASES)
def test_blocks_of_long_segments_on_the_cpu(
    causal: bool,
    window: int | None,
    parents: tuple[int, ...],
    grouped: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of two queries, so that every segment of three tokens or more has several."""
    monkeypatch.setattr(attention_cpu, "WINDOW_BLOCK", 2)
    monkeypatch.setattr(attention_cpu, "CAUSAL_BLOCK", 2)
    monkeypatch.setattr(attention_cpu, "MASK_STEP", 4)
    attention_cpu._band.cache_clear()
    packing = Packing(LENGTHS, parents)
    inputs = tensors()
    if not grouped:
        inputs = (inputs[0], *(t.detach().repeat(1, 2, 1, 1).requires_grad_() for t in inputs[1:]))
    call = Call(packing, causal, window, None, 0.0)
    found = outcome(lambda q, k, v: attention_cpu.attend(q, k, v, call), inputs)
    attention_cpu._band.cache_clear()
    allowed = may_see(parents, causal, window)
    expected = outcome(lambda q, k, v: reference(q, k, v, allowed, 8**-0.5), inputs)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)
    blocked = len(packing.parts(causal, window)) > len(LENGTHS)
    assert blocked == (window is not None or parents is SHARED)


def test_a_window_wider_than_long_documents_on_the_cpu() -> None:
    """Documents of more than a window's block behind a prompt, all of it within the window.

    The window hides nothing, so the outcome is that without one.
    """
    packing = Packing((20, 300, 600), (-1, 0, 0))
    torch.manual_seed(0)
    inputs = tuple(
        torch.randn(1, heads, 920, 8, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2)
    )
    found, expected = (
        outcome(partial(attention_cpu.attend, call=call), inputs)
        for call in (Call(packing, True, window, None, 0.0) for window in (1024, None))
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_parts_of_a_window_on_the_cpu() -> None:
    """300 tokens, each sees 64 to either side: three blocks of 100.

    Their keys begin 64 before the first query and end 64 behind the last one: 0 to 164, 36 to 264,
    136 to 300, so 556 of 900 products a token and 100.
    """
    parts = Packing((300,), (-1,)).parts(False, 65)
    assert [p.queries for p in parts] == [slice(0, 100), slice(100, 200), slice(200, 300)]
    assert [p.keys for p in parts] == [(slice(0, 164),), (slice(36, 264),), (slice(136, 300),)]
    assert [p.ahead for p in parts] == [0, 64, 64]


def test_parts_behind_a_prefix_on_the_cpu() -> None:
    """A document of 1000 tokens behind a prompt of 10: two blocks, the first sees half of it.

    A row's first segment, the prompt, has no keys in front of its own.
    """
    parts = Packing((10, 1000), (-1, 0)).parts(True, None)
    assert parts[0] == attention_cpu.Part(slice(0, 10), (slice(0, 10),), None, True)
    assert parts[1].keys == (slice(0, 10), slice(10, 510))
    assert parts[2].keys == (slice(0, 10), slice(10, 1010))
    assert [p.ahead for p in parts[1:]] == [10, 510]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_on_the_cpu(dtype: torch.dtype) -> None:
    """Within the type's rounding of float64, gradients of a shared prefix included."""
    call = Call(Packing(LENGTHS, SHARED), True, None, 0.37, 0.0)
    inputs = tensors(dtype)
    found = outcome(lambda q, k, v: attention_cpu.attend(q, k, v, call), inputs)
    exact = tuple(t.detach().double().requires_grad_() for t in inputs)
    allowed = may_see(SHARED, True, None)
    expected = outcome(lambda q, k, v: reference(q, k, v, allowed, 0.37), exact)
    bound = 1e-5 if dtype == torch.float32 else 0.03
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert_close(one.double(), other, rtol=bound, atol=bound)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("causal", "window", "parents"), CASES)
def test_flex_itself(causal: bool, window: int | None, parents: tuple[int, ...]) -> None:
    """FlexAttention's own forward, not compiled, under the block mask."""
    from torch.nn.attention.flex_attention import flex_attention

    packing = Packing(LENGTHS, parents)
    q, k, v = (t.detach() for t in tensors())
    mask = packing.block_mask(causal, window, q.device)
    found = flex_attention(q, k, v, block_mask=mask, scale=0.37, enable_gqa=True)
    expected = reference(q, k, v, may_see(parents, causal, window), 0.37)
    assert_close(found.transpose(1, 2), expected, rtol=1e-10, atol=1e-12)


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("causal", "window", "parents"), CASES)
def test_on_the_gpu(name: str, causal: bool, window: int | None, parents: tuple[int, ...]) -> None:
    """The real kernels in bfloat16, within its rounding of float64."""
    # FlexAttention takes none below 16
    inputs = tensors(torch.bfloat16, "cuda", 64)
    reason = BACKENDS[name].refusal(inputs[0], 0.0)
    if reason is not None:
        pytest.skip(reason)
    call = Call(Packing(LENGTHS, parents), causal, window, 0.37, 0.0)
    found = outcome(lambda q, k, v: BACKENDS[name].function(q, k, v, call), inputs)
    exact = tuple(t.detach().double().cpu().requires_grad_() for t in inputs)
    allowed = may_see(parents, causal, window)
    expected = outcome(lambda q, k, v: reference(q, k, v, allowed, 0.37), exact)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double().cpu(), other, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", ["varlen", "flash_attention_2", "flash_attention_3", "flex"])
@pytest.mark.parametrize("family", ["modernbert", "qwen3", "mistral"])
def test_a_whole_model_scores_the_same(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sliding windows, grouped queries, normalised queries and keys, several layers and groups."""
    for kernel in ("_varlen_kernel", "_flash_2_kernel", "_flash_3_kernel"):
        monkeypatch.setattr(attention, kernel, cumulative_kernel)
    monkeypatch.setattr(attention, "_flex_kernel", flex_kernel)
    monkeypatch.setattr(attention, "choose", lambda name, q, dropout: BACKENDS[name])
    model, collate = reranker(family, packed=True)
    batch = collate(groups())
    model.attn_impl = "sdpa"
    expected = run(model, [batch])
    model.attn_impl = name
    found = run(model, [batch])
    assert_close(found[0], expected[0], rtol=1e-6, atol=1e-7)
    for parameter, gradient in expected[1].items():
        assert_close(found[1][parameter], gradient, rtol=1e-5, atol=1e-6)


def test_varlen_of_both_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 takes grouped queries without a flag, later releases with one."""
    module = pytest.importorskip("torch.nn.attention.varlen")
    found: list[dict[str, Any]] = []

    def old(*args: Any, scale: float | None = None, window_size: Any = (-1, -1)) -> Tensor:
        found.append({"scale": scale, "window_size": window_size})
        return args[0]

    def new(*args: Any, enable_gqa: bool = False, **options: Any) -> Tensor:
        found.append({"enable_gqa": enable_gqa, **options})
        return args[0]

    call = Call(Packing(LENGTHS, SHARED), True, None, 0.37, 0.0)
    plain = {"scale": 0.37, "window_size": (-1, 0)}
    for kernel, expected in ((old, plain), (new, plain | {"enable_gqa": True})):
        monkeypatch.setattr(module, "varlen_attn", kernel)
        attention._asks_for_groups.cache_clear()
        q, k, v = tensors()
        attention.varlen(q, k, v, call)
        assert found[-1] == expected
    attention._asks_for_groups.cache_clear()


def test_a_prefix_gradient_is_summed_in_float32() -> None:
    """512 documents each send 1 + 2**-7 back to a bfloat16 prefix.

    The sum is 516. bfloat16 numbers there are 4 apart, so 516 is exact, but a running bfloat16 sum
    stops growing at 256: 256 + 1.0078 rounds back to 256.
    """
    values = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    repeated = attention._Repeat.apply(values, torch.zeros(512, dtype=torch.long))
    repeated.backward(torch.full_like(repeated, 1 + 2**-7))
    assert values.grad is not None
    assert values.grad.item() == 516


def test_layout_is_made_once() -> None:
    packing = Packing(LENGTHS, SHARED)
    layout = packing.layout(torch.device("cpu"))
    assert packing.layout(torch.device("cpu")) is layout
    assert layout.cu_q.tolist() == [0, 5, 12, 15, 16, 25, 29, 35, 37]
    # 5, 5+7, 5+3, 1, 9, 4, 4+6, 4+2
    assert layout.cu_k.tolist() == [0, 5, 17, 25, 26, 35, 39, 49, 55]
    assert (layout.max_q, layout.max_k) == (9, 12)
    assert layout.keys is not None
    assert layout.keys[5:17].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert layout.keys[17:25].tolist() == [0, 1, 2, 3, 4, 12, 13, 14]
    assert Packing(LENGTHS, ALONE).layout(torch.device("cpu")).keys is None


def test_auto_on_the_cpu() -> None:
    """The CPU's own; sdpa where weights are dropped, or where it cannot run."""
    assert choose("auto", tensors()[0], 0.0) is BACKENDS["cpu"]
    assert choose("auto", tensors()[0], 0.1) is BACKENDS["sdpa"]
    assert choose("auto", tensors()[0].to("meta"), 0.0) is BACKENDS["sdpa"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("varlen", "it needs CUDA, the model is on cpu"),
        ("flex", "it needs CUDA, the model is on cpu"),
        ("flash_attention_2", "flash-attn is not installed, or does not load"),
        ("flash_attention_3", "flash_attn_interface"),
    ],
)
def test_a_forced_back_end_that_cannot_run_says_why(name: str, reason: str) -> None:
    if "flash" in name and importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash-attn is installed here")
    with pytest.raises(ConfigError, match=f"--attn_impl {name} cannot run: .*{reason}.*auto"):
        choose(name, tensors()[0], 0.0)


@pytest.mark.parametrize("family", ["modernbert", "bert", "qwen3", "llama", "mistral"])
def test_under_autocast_the_back_end_sees_half_precision(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 weights, bfloat16 autocast, as in full training: a decoder's own q and k are float32.

    A back end for half precision would otherwise refuse them, on the GPU alone.
    """
    seen = set()

    def look(name: str, query: Tensor, dropout: float) -> Any:
        seen.add(query.dtype)

        def function(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
            seen.update((q.dtype, k.dtype, v.dtype))
            return attention.sdpa(q, k, v, call)

        return SimpleNamespace(function=function)

    monkeypatch.setattr(attention, "choose", look)
    model, collate = reranker(family, packed=True)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        model(collate(groups()))
    assert seen == {torch.bfloat16}


def test_flex_takes_no_small_heads() -> None:
    """Its compiled kernel multiplies blocks of 16."""

    def query(size: int) -> Any:
        return SimpleNamespace(device=torch.device("cuda"), shape=(1, 4, 9, size))

    assert BACKENDS["flex"].refusal(query(8), 0.0) == (
        "it takes heads of 16 or more, the model's are 8"
    )
    assert BACKENDS["flex"].refusal(query(16), 0.0) is None


def test_dropout_on_weights_is_refused_where_a_kernel_has_none() -> None:
    for name in ("varlen", "flex", "cpu"):
        assert "--dropout 0" in str(BACKENDS[name].refusal(tensors()[0], 0.1))


def test_names() -> None:
    assert find_backend("flash_attn") == "auto"
    assert find_backend("flex_attention") == "flex"
    with pytest.raises(
        ConfigError, match="--attn_impl 'fast' is unknown; choose from auto, varlen"
    ):
        find_backend("fast")
