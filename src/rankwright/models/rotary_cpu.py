"""Rotary positions on a CPU, in three operations in place of eight.

transformers turns queries and keys by ``q * cos + rotate_half(q) * sin``, which reads and writes
the packed row eight times, as many gradients do. Here it is ``q * cos``, to whose halves the turned
ones are added where they lie. What this wins stands in docs/log.md.

A product and its sum are rounded once in place of twice, so results differ in their last bits.

There are first derivatives alone: a second backward pass raises an error.

Shape legend: ``T`` tokens of the row, ``N`` heads, ``K`` key/value heads, ``E`` head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# what every architecture of transformers calls it
NAME = "apply_rotary_pos_emb"

Rotation = Callable[..., tuple[Tensor, Tensor]]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """``x * cos + sign * rotate_half(x) * sin``, in memory as (1, T, N, E)."""
    half = x.shape[-1] // 2
    batch, heads, tokens, size = x.shape
    out = x.new_empty(batch, tokens, heads, size).transpose(1, 2)
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


def _turn_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transposed of ``_turn``: the gradient of what was turned."""
    half = x.shape[-1] // 2
    swapped = torch.cat((sin[..., half:], sin[..., :half]), dim=-1)
    return _turn(x, cos, swapped, -1)


class _Rotate(torch.autograd.Function):
    """Queries and keys, turned; the angles get no gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turn(query, cos, sin, 1), _turn(key, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn_back(of_query, cos, sin), _turn_back(of_key, cos, sin), None, None


def rotate(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Turn queries and keys by their positions' angles (RoFormer, Su et al. 2021, equation 34).

    Args:
        query: (B, N, T, E), float32.
        key: (B, K, T, E).
        cos: (B or 1, T, E), of the angle of each pair of numbers ``i`` and ``i + E / 2``.
        sin: as ``cos``.
        unsqueeze_dim: where the heads stand.

    Returns:
        Both, turned.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    if torch.is_grad_enabled():
        found: tuple[Tensor, Tensor] = _Rotate.apply(query, key, cos, sin)  # type: ignore[no-untyped-call]
        return found
    return _turn(query, cos, sin, 1), _turn(key, cos, sin, 1)


def _fits(*tensors: Tensor) -> bool:
    """Whether these are plain float32 on a CPU."""
    return not torch.compiler.is_compiling() and all(
        type(tensor) is Tensor and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        for tensor in tensors
    )


def choosing(original: Rotation) -> Rotation:
    """A function that rotates as ``rotate`` does where it can, and elsewhere as ``original``."""

    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        plain = unsqueeze_dim == 1 and q.shape[-1] == cos.shape[-1]
        if plain and _fits(q, k, cos, sin) and not (cos.requires_grad or sin.requires_grad):
            return rotate(q, k, cos, sin)
        return original(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    return apply_rotary_pos_emb


@lru_cache(maxsize=64)
def is_known(original: Rotation) -> bool:
    """Whether a function does what ``rotate`` does; other architectures pair other numbers."""
    draw = torch.Generator("cpu").manual_seed(0)
    options: dict[str, Any] = {"generator": draw, "device": "cpu", "dtype": torch.float32}
    query, key = (torch.randn(1, heads, 3, 8, **options) for heads in (4, 2))
    cos, sin = (torch.randn(1, 3, 8, **options) for _ in range(2))
    try:
        found = original(query, key, cos, sin)
    except Exception:  # of another signature
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)
        for a, b in zip(found, rotate(query, key, cos, sin), strict=True)
    )


@lru_cache(maxsize=64)
def _forward(forward: FunctionType) -> FunctionType | None:
    """An attention's ``forward`` that calls ours in place of the rotation it knows, or None."""
    code = getattr(forward, "__code__", None)
    original = getattr(forward, "__globals__", {}).get(NAME)
    if code is None or NAME not in code.co_names or original is None or not is_known(original):
        return None
    names = {**forward.__globals__, NAME: choosing(original)}
    changed = FunctionType(code, names, forward.__name__, forward.__defaults__, forward.__closure__)
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


def use(model: nn.Module) -> None:
    """Let a model's attention layers rotate faster on a CPU.

    The layers' code is transformers'; only the name by which it calls the rotation means ours, in
    these layers alone. Modules whose rotation is another one are left alone.

    Args:
        model: any model.
    """
    for module in model.modules():
        changed = _forward(type(module).forward)
        if changed is not None and "forward" not in vars(module):
            module.forward = MethodType(changed, module)
