"""Attention over a packed row: every segment sees itself and its shared prefix, nothing else.

One function is registered with transformers' attention interface under the name ``rankwright``. It
reads the batch's segments from the ``packing`` keyword that the model's forward passes down, never
from position ids:
ModernBERT ignores those in its mask, and Qwen3's detection of packed rows misreads a shared prefix.

Shape legend: ``T`` tokens of the packed row, ``S`` segments, ``N`` heads, ``K`` key/value heads,
``E`` head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AttentionInterface

NAME = "rankwright"


@dataclass(frozen=True)
class Packing:
    """Where the segments of a packed row lie; on the host, so that nothing waits for the device.

    Attributes:
        lengths: the ``S`` segment lengths, in row order.
        parents: for each segment the index of the segment it continues, or -1. A parent has no
            parent.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]


@lru_cache(maxsize=64)
def _mask(
    queries: int, keys: int, causal: bool, window: int | None, device: torch.device
) -> Tensor | None:
    """Boolean mask (queries, keys), True where a query may look; None where it may look everywhere.

    The queries are the last of the keys, as a document stands at the end of its prefix.
    """
    position_q = torch.arange(keys - queries, keys, device=device)[:, None]
    position_k = torch.arange(keys, device=device)[None, :]
    distance = position_q - position_k
    if causal:
        allowed = distance >= 0
        if window is not None:
            allowed &= distance < window
        return allowed
    if window is None or keys <= window:
        return None
    return distance.abs() < window


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within the segments of a packed row.

    Args:
        module: the attention module; ``is_causal`` is read from it.
        query: (1, N, T, E).
        key: (1, K, T, E) with K a divisor of N.
        value: as ``key``.
        attention_mask: must be None; the segments are the mask.
        scaling: factor on the products, default ``E ** -0.5``.
        dropout: probability on the attention weights.
        sliding_window: a token sees those at a distance below it.
        is_causal: overrides the module's.
        packing: the segments.
        **kwargs: what other back ends read.

    Returns:
        The result (1, T, N, E), and None for the weights.

    Raises:
        RuntimeError: the model was called outside of a packed forward.
    """
    if packing is None or attention_mask is not None or query.shape[0] != 1:
        raise RuntimeError(
            "this model is set up for packed rows; call it through rankwright, or first "
            "model.set_attn_implementation('sdpa')"
        )
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    grouped = query.shape[1] != key.shape[1]
    # split's backward is one concatenation; slicing would write a row of zeros for every segment
    queries, keys, values = (
        torch.split(tensor, list(packing.lengths), dim=2) for tensor in (query, key, value)
    )
    outputs = []
    for q, k, v, parent in zip(queries, keys, values, packing.parents, strict=True):
        if parent >= 0:
            k = torch.cat((keys[parent], k), dim=2)
            v = torch.cat((values[parent], v), dim=2)
        plain_causal = (
            causal and parent < 0 and (sliding_window is None or q.shape[2] <= sliding_window)
        )
        mask = (
            None
            if plain_causal
            else _mask(q.shape[2], k.shape[2], causal, sliding_window, q.device)
        )
        outputs.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=plain_causal,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
