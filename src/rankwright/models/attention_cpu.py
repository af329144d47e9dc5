"""Attention over a packed row on a CPU: PyTorch's own kernel, segment by segment, in place.

``torch.nn.functional.scaled_dot_product_attention`` once for each segment computes the same, but
its inputs are cut out of the row and its outputs and gradients put together again, every mask is
turned from booleans into numbers, and a sliding window costs as much as the whole square. Here the
kernel below it reads the row where it lies, gradients are written where they belong, and long
segments are computed in blocks of queries, each against the keys that it may see. What this wins
with long documents, and that it wins nothing with short ones, stands in docs/log.md.

Shape legend: ``T`` tokens of the packed row, ``N`` heads, ``K`` key/value heads, ``E`` head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rankwright.models.attention import Call, Packing

# queries of a block: few enough that most keys of a block are seen, enough for the kernel to pay
WINDOW_BLOCK = 128
CAUSAL_BLOCK = 512
# what a mask's width is rounded up to, so that few widths are made
MASK_STEP = 1024

# None in a PyTorch without them
_kernel = "_scaled_dot_product_flash_attention_for_cpu"
_forward: Any = getattr(torch.ops.aten, _kernel, None)
_backward: Any = getattr(torch.ops.aten, f"{_kernel}_backward", None)


def missing() -> bool:
    """Whether this PyTorch lacks the kernel."""
    return _forward is None or _backward is None


@dataclass(frozen=True)
class Part:
    """Queries that are computed at a time, and their keys.

    Attributes:
        queries: their places in the row.
        keys: places of the keys in the row, those of the shared prefix first.
        ahead: keys in front of the one that stands at the first query's position; None where
            ``causal`` or nothing at all is the mask.
        causal: the kernel's own causal mask fits: the first query stands at the first key.
        block: most queries of a part that is cut like this one, so the rows of its mask.
    """

    queries: slice
    keys: tuple[slice, ...]
    ahead: int | None
    causal: bool
    block: int = 0


def make_parts(packing: Packing, causal: bool, window: int | None) -> list[Part]:
    """Cut the segments of a packing into parts."""
    starts = [0]
    for length in packing.lengths:
        starts.append(starts[-1] + length)
    parts = []
    for segment, (length, parent) in enumerate(zip(packing.lengths, packing.parents, strict=True)):
        start = starts[segment]
        prefix = packing.lengths[parent] if parent >= 0 else 0
        sees_all = window is None or prefix + length <= window
        if sees_all and (not causal or not prefix):
            whole = slice(start, start + length)
            parts.append(Part(whole, (whole,), None, causal))
            continue
        # a segment that a window holds as a whole is cut as if there were none
        block = CAUSAL_BLOCK if sees_all else WINDOW_BLOCK
        count = -(-length // block)
        for number in range(count):
            first, last = length * number // count, length * (number + 1) // count
            # positions count from the prefix's first token
            low = 0 if window is None else max(0, prefix + first - window + 1)
            high = prefix + last
            if not causal:
                assert window is not None
                high = min(prefix + length, high + window - 1)
            keys = [slice(start + max(0, low - prefix), start + high - prefix)]
            if low < prefix:
                keys.insert(0, slice(starts[parent] + low, starts[parent] + prefix))
            queries = slice(start + first, start + last)
            parts.append(Part(queries, tuple(keys), prefix + first - low, False, block))
    return parts


@lru_cache(maxsize=8)
def _band(causal: bool, window: int | None, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """What is added to the products: 0 where a query may look, else minus infinity.

    Row ``i`` and column ``x`` are at a distance of ``i - x + width``, so a mask for queries that
    stand ``ahead`` keys behind their first key begins at column ``width - ahead``.
    """
    behind = 0 if causal or window is None else window - 1
    distance = torch.arange(rows)[:, None] - torch.arange(width + rows + behind)[None] + width
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal:
        hidden |= distance < 0
    if window is not None:
        hidden |= distance.abs() >= window
    return torch.zeros(distance.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _mask(part: Part, keys: int, call: Call, dtype: torch.dtype) -> Tensor | None:
    if part.ahead is None:
        return None
    width = -(-max(1, part.ahead) // MASK_STEP) * MASK_STEP
    band = _band(call.causal, call.window, part.block, width, dtype)
    first = width - part.ahead
    return band[: part.queries.stop - part.queries.start, first : first + keys]


def _take(tensor: Tensor, places: tuple[slice, ...], heads: int) -> Tensor:
    """Keys or values of a part, (1, N, keys, E)."""
    taken = [tensor[:, :, place] for place in places]
    found = taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)
    return found if found.shape[1] == heads else found.repeat_interleave(heads // found.shape[1], 1)


class _Attention(torch.autograd.Function):
    """All parts of a row; the backward pass calls the kernel's own, with the forward's results."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        heads, tokens, size = query.shape[1:]
        out = query.new_empty(1, tokens, heads, size)
        exact = torch.promote_types(query.dtype, torch.float32)
        normaliser = query.new_empty(1, tokens, heads, dtype=exact)
        for part in call.packing.parts(call.causal, call.window):
            k, v = (_take(tensor, part.keys, heads) for tensor in (key, value))
            mask = _mask(part, k.shape[2], call, query.dtype)
            found, sums = _forward(
                query[:, :, part.queries],
                k,
                v,
                0.0,
                part.causal,
                attn_mask=mask,
                scale=call.scaling,
            )
            out[:, part.queries] = found.transpose(1, 2)
            normaliser[:, part.queries] = sums.transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, normaliser)
        ctx.call = call
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, normaliser = ctx.saved_tensors
        call, grad, heads = ctx.call, grads[0], query.shape[1]
        # (1, T, N, E) in memory, as the projections in front of the attention read them
        shape = (1, query.shape[2], heads, query.shape[3])
        grad_query = query.new_empty(shape).transpose(1, 2)
        # a prefix has a term for each document: bfloat16 sums would lose half of their digits. The
        # kernel's backward pass in bfloat16 takes up to four times as long as that in float32, too
        exact = torch.promote_types(key.dtype, torch.float32)
        shape = (1, key.shape[2], key.shape[1], key.shape[3])
        sums = [key.new_zeros(shape, dtype=exact).transpose(1, 2) for _ in range(2)]
        for part in call.packing.parts(call.causal, call.window):
            k, v = (_take(tensor, part.keys, heads) for tensor in (key, value))
            given = (
                grad[:, part.queries].transpose(1, 2),
                query[:, :, part.queries],
                k,
                v,
                out[:, part.queries].transpose(1, 2),
                normaliser[:, part.queries].transpose(1, 2),
            )
            found = _backward(
                *(tensor.to(exact) for tensor in given),
                0.0,
                part.causal,
                attn_mask=_mask(part, k.shape[2], call, exact),
                scale=call.scaling,
            )
            grad_query[:, :, part.queries] = found[0]
            for total, terms in zip(sums, found[1:], strict=True):
                if terms.shape[1] != total.shape[1]:
                    terms = terms.unflatten(1, (total.shape[1], -1)).sum(2)
                begun = 0
                for place in part.keys:
                    length = place.stop - place.start
                    total[:, :, place] += terms[:, :, begun : begun + length]
                    begun += length
        return grad_query, sums[0].to(key.dtype), sums[1].to(value.dtype), None


def attend(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Attend within the segments of a packed row.

    Args:
        query: (1, N, T, E).
        key: (1, K, T, E).
        value: as ``key``.
        call: the rest; its dropout is 0.

    Returns:
        (1, T, N, E).
    """
    result: Tensor = _Attention.apply(query, key, value, call)  # type: ignore[no-untyped-call]
    return result
