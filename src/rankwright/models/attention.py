"""Attention over a packed row: every segment sees itself and its shared prefix, nothing else.

One function is registered with transformers' attention interface under the name ``rankwright``. It
reads the batch's segments from the ``packing`` keyword that the model's forward passes down, never
from position ids: ModernBERT ignores those in its mask, and Qwen3's detection of packed rows
misreads a shared prefix. It hands the work to a back end of ``BACKENDS``; all give the same result.

To add a back end: write the function, add its row to ``BACKENDS``, and its case to
``tests/models/test_attention.py``.

Shape legend: ``T`` tokens of the packed row, ``U`` keys of all segments with those of their parents
repeated, ``S`` segments, ``N`` heads, ``K`` key/value heads, ``E`` head size.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AttentionInterface

from rankwright.errors import ConfigError
from rankwright.models import attention_cpu

NAME = "rankwright"
AUTO = "auto"


@dataclass(frozen=True)
class Layout:
    """A packing on a device, for the kernels that read cumulative lengths.

    Attributes:
        cu_q: ``S + 1`` int32 offsets of the segments.
        cu_k: ``S + 1`` int32 offsets of each segment's keys.
        max_q: longest segment.
        max_k: longest segment with its parent.
        keys: ``U`` places in the row of each segment's keys, parent first; None where no segment
            has a parent, so that the keys are the row itself.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    keys: Tensor | None


class Packing:
    """Where the segments of a packed row lie; on the host, so that nothing waits for the device.

    Not a dataclass: torch.compile would look into one, and compile anew for every batch.

    Args:
        lengths: the ``S`` segment lengths, in row order.
        parents: for each segment the index of the segment it continues, or -1. A parent has no
            parent.
        backend: a name of ``BACKENDS``, or ``auto``.
    """

    def __init__(
        self, lengths: tuple[int, ...], parents: tuple[int, ...], backend: str = AUTO
    ) -> None:
        self.lengths = lengths
        self.parents = parents
        self.backend = backend
        self._made: dict[Any, Any] = {}

    def layout(self, device: torch.device) -> Layout:
        """The layout on a device; made once for all layers."""
        if device not in self._made:
            self._made[device] = self._layout(device)
        found: Layout = self._made[device]
        return found

    def _layout(self, device: torch.device) -> Layout:
        lengths, parents = np.array(self.lengths), np.array(self.parents)
        starts = np.cumsum(lengths) - lengths
        above = np.where(parents >= 0, lengths[parents], 0)
        keys = None
        if (parents >= 0).any():
            ranges = []
            for start, length, parent in zip(starts, lengths, parents, strict=True):
                if parent >= 0:
                    ranges.append(np.arange(starts[parent], starts[parent] + lengths[parent]))
                ranges.append(np.arange(start, start + length))
            keys = to_device(np.concatenate(ranges), device)
        return Layout(
            cu_q=to_device(np.append(0, np.cumsum(lengths)).astype(np.int32), device),
            cu_k=to_device(np.append(0, np.cumsum(lengths + above)).astype(np.int32), device),
            max_q=int(lengths.max()),
            max_k=int((lengths + above).max()),
            keys=keys,
        )

    def parts(self, causal: bool, window: int | None) -> list[attention_cpu.Part]:
        """What the CPU's back end computes at a time; made once for all layers of a kind."""
        made = ("parts", causal, window)
        if made not in self._made:
            self._made[made] = attention_cpu.make_parts(self, causal, window)
        found: list[attention_cpu.Part] = self._made[made]
        return found

    def block_mask(self, causal: bool, window: int | None, device: torch.device) -> Any:
        """FlexAttention's mask of the row; made once for all layers of a kind."""
        made = (causal, window, device)
        if made not in self._made:
            self._made[made] = self._block_mask(causal, window, device)
        return self._made[made]

    def _block_mask(self, causal: bool, window: int | None, device: torch.device) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        lengths, parents = np.array(self.lengths), np.array(self.parents)
        starts = np.cumsum(lengths) - lengths
        above = np.where(parents >= 0, lengths[parents], 0)
        segment_T = to_device(np.repeat(np.arange(len(lengths)), lengths), device)
        parent_T = to_device(np.repeat(parents, lengths), device)
        total = int(lengths.sum())
        position_T = to_device(np.arange(total) + np.repeat(above - starts, lengths), device)

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            allowed = (segment_T[q] == segment_T[k]) | (parent_T[q] == segment_T[k])
            distance = position_T[q] - position_T[k]
            if causal:
                allowed = allowed & (distance >= 0)
            if window is not None:
                allowed = allowed & (distance.abs() < window)
            return allowed

        # compiled, it never holds the whole square
        compiled = device.type == "cuda"
        return create_block_mask(sees, None, None, total, total, device=device, _compile=compiled)


def to_device(values: np.ndarray[Any, Any] | Tensor, device: torch.device) -> Tensor:
    """Copy numbers of the host to a device without waiting for it."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    # copies from page-locked memory do not wait for the device
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class _Repeat(torch.autograd.Function):
    """``index_select`` whose gradient is summed in float32: a prefix has a term for each document.

    bfloat16 sums of a hundred terms would lose half of their digits.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = values.shape
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        grad = grads[0]
        total = torch.zeros(
            ctx.shape, dtype=torch.promote_types(grad.dtype, torch.float32), device=grad.device
        )
        return total.index_add_(0, index, grad.to(total.dtype)).to(grad.dtype), None


@dataclass(frozen=True)
class Call:
    """What one layer asks for.

    Attributes:
        packing: the segments.
        causal: a token sees none behind it.
        window: a token sees those at a distance below it; None for all.
        scaling: factor on the products; None for ``E ** -0.5``.
        dropout: probability on the attention weights.
    """

    packing: Packing
    causal: bool
    window: int | None
    scaling: float | None
    dropout: float


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


def sdpa(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """PyTorch's attention, once for each segment: runs anywhere, in any precision.

    Args:
        query: (1, N, T, E).
        key: (1, K, T, E).
        value: as ``key``.
        call: the rest.

    Returns:
        (1, T, N, E).
    """
    packing, causal, window = call.packing, call.causal, call.window
    # split's backward is one concatenation; slicing would write a row of zeros for every segment
    queries, keys, values = (
        torch.split(tensor, list(packing.lengths), dim=2) for tensor in (query, key, value)
    )
    outputs = []
    for q, k, v, parent in zip(queries, keys, values, packing.parents, strict=True):
        if parent >= 0:
            k = torch.cat((keys[parent], k), dim=2)
            v = torch.cat((values[parent], v), dim=2)
        plain_causal = causal and parent < 0 and (window is None or q.shape[2] <= window)
        mask = None if plain_causal else _mask(q.shape[2], k.shape[2], causal, window, q.device)
        outputs.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=call.dropout,
                scale=call.scaling,
                is_causal=plain_causal,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _cumulative(
    kernel: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: Call,
    **options: Any,
) -> Tensor:
    """Call a kernel that reads cumulative lengths: (T, N, E), (U, K, E), … and a window.

    Such kernels align the last query with the last key, as a document stands at the end of its
    prefix; a window of ``(left, right)`` tokens is inclusive.
    """
    layout = call.packing.layout(query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if layout.keys is not None:
        k, v = (_Repeat.apply(t, layout.keys) for t in (k, v))  # type: ignore[no-untyped-call]
    side = -1 if call.window is None else call.window - 1
    window = (side, 0 if call.causal else side)
    lengths = (layout.cu_q, layout.cu_k, layout.max_q, layout.max_k)
    result = kernel(q, k, v, *lengths, window_size=window, **options)
    # some releases of FlashAttention return the log-sum-exp beside it
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out[None]


@lru_cache(maxsize=1)
def _asks_for_groups() -> bool:
    """Whether grouped queries are a flag; torch 2.11 has none, and hands them to its kernel."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _varlen_kernel(*args: Any, enable_gqa: bool, **options: Any) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    if _asks_for_groups():
        options["enable_gqa"] = enable_gqa
    return varlen_attn(*args, **options)


def varlen(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """``torch.nn.attention.varlen``: one kernel for the row, without flash-attn installed."""
    grouped = query.shape[1] != key.shape[1]
    return _cumulative(
        _varlen_kernel, query, key, value, call, scale=call.scaling, enable_gqa=grouped
    )


@lru_cache(maxsize=4)
def _installed(module: str) -> Any:
    """The kernel of a package, or None where it is missing or built for another torch."""
    try:
        return importlib.import_module(module).flash_attn_varlen_func
    except (ImportError, OSError, AttributeError):
        return None


def _flash_2_kernel(*args: Any, **options: Any) -> Any:
    return _installed("flash_attn")(*args, **options)


def _flash_3_kernel(*args: Any, **options: Any) -> Any:
    return _installed("flash_attn_interface")(*args, **options)


def flash_attention_2(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """flash-attn 2.1 or later: as ``varlen``, and with dropout."""
    options = {"softmax_scale": call.scaling, "causal": call.causal, "dropout_p": call.dropout}
    return _cumulative(_flash_2_kernel, query, key, value, call, **options)


def flash_attention_3(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """FlashAttention 3 (Hopper)."""
    options = {"softmax_scale": call.scaling, "causal": call.causal}
    return _cumulative(_flash_3_kernel, query, key, value, call, **options)


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex_kernel(*args: Any, **options: Any) -> Any:
    return _compiled_flex()(*args, **options)


def flex(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """FlexAttention over a block mask: one compiled kernel for the row, in any precision."""
    result: Tensor = _flex_kernel(
        query,
        key,
        value,
        block_mask=call.packing.block_mask(call.causal, call.window, query.device),
        scale=call.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result.transpose(1, 2).contiguous()


def _needs_cuda(query: Tensor) -> str | None:
    if query.device.type != "cuda":
        return f"it needs CUDA, the model is on {query.device.type}"
    return None


def _needs_half_on_cuda(query: Tensor) -> str | None:
    if query.device.type != "cuda":
        return _needs_cuda(query)
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bfloat16 or float16, the model computes in {str(query.dtype)[6:]}"
    if query.shape[-1] > 256 or query.shape[-1] % 8:
        return f"it takes heads of a multiple of 8 up to 256, the model's are {query.shape[-1]}"
    if torch.version.hip is None and torch.cuda.get_device_capability(query.device)[0] < 8:
        return "it needs an Ampere GPU or a later one"
    return None


def _no_cpu(query: Tensor, dropout: float) -> str | None:
    if query.device.type != "cpu":
        return f"the model is on {query.device.type}"
    if dropout:
        return "it has no dropout on attention weights (give --dropout 0)"
    if attention_cpu.missing():
        return f"torch {torch.__version__} lacks its kernel"
    return None


def _no_sdpa(query: Tensor, dropout: float) -> str | None:
    return None


def _no_varlen(query: Tensor, dropout: float) -> str | None:
    if dropout:
        return "it has no dropout on attention weights (give --dropout 0)"
    return _needs_half_on_cuda(query)


def _no_flash_2(query: Tensor, dropout: float) -> str | None:
    if _installed("flash_attn") is None:
        return "the package flash-attn is not installed, or does not load"
    return _needs_half_on_cuda(query)


def _no_flash_3(query: Tensor, dropout: float) -> str | None:
    if _installed("flash_attn_interface") is None:
        return "FlashAttention 3 (flash_attn_interface) is not installed, or does not load"
    if query.device.type == "cuda" and torch.cuda.get_device_capability(query.device)[0] != 9:
        return "it needs a Hopper GPU"
    return _no_varlen(query, dropout)


def _no_flex(query: Tensor, dropout: float) -> str | None:
    if dropout:
        return "it has no dropout on attention weights (give --dropout 0)"
    if query.device.type == "cuda" and query.shape[-1] < 16:
        return f"it takes heads of 16 or more, the model's are {query.shape[-1]}"
    return _needs_cuda(query)


@dataclass(frozen=True)
class Backend:
    """A row of ``BACKENDS``.

    Attributes:
        function: ``(query, key, value, call) -> (1, T, N, E)``.
        refusal: ``(query, dropout)`` -> why it cannot run, or None.
        automatic: whether ``auto`` may choose it.
        summary: one line for the help.
    """

    function: Callable[[Tensor, Tensor, Tensor, Call], Tensor]
    refusal: Callable[[Tensor, float], str | None]
    automatic: bool
    summary: str


# auto takes the first that can run
BACKENDS: dict[str, Backend] = {
    "varlen": Backend(varlen, _no_varlen, True, "CUDA, half precision, nothing to install"),
    "flash_attention_3": Backend(
        flash_attention_3, _no_flash_3, True, "Hopper, half precision, FlashAttention 3 installed"
    ),
    "flash_attention_2": Backend(
        flash_attention_2, _no_flash_2, True, "CUDA, half precision, flash-attn installed"
    ),
    "cpu": Backend(attention_cpu.attend, _no_cpu, True, "a CPU, any precision"),
    "sdpa": Backend(sdpa, _no_sdpa, True, "anywhere, once for each document"),
    "flex": Backend(flex, _no_flex, False, "CUDA, any precision, compiled"),
}
# what other tools write where they mean "a fast one" or "a plain one"
ALIASES = {"flash_attn": AUTO, "eager": AUTO, "flex_attention": "flex"}


def find_backend(name: str) -> str:
    """Return the name in ``BACKENDS`` that ``name`` means, or ``auto``.

    Raises:
        ConfigError: the name is unknown.
    """
    resolved = ALIASES.get(name, name)
    if resolved != AUTO and resolved not in BACKENDS:
        known = ", ".join([AUTO, *BACKENDS, *ALIASES])
        raise ConfigError(f"--attn_impl {name!r} is unknown; choose from {known}")
    return resolved


def choose(name: str, query: Tensor, dropout: float) -> Backend:
    """Return the back end for a query.

    Raises:
        ConfigError: the named one cannot run here.
    """
    if name == AUTO:
        return next(
            backend
            for backend in BACKENDS.values()
            if backend.automatic and backend.refusal(query, dropout) is None
        )
    reason = BACKENDS[name].refusal(query, dropout)
    if reason is not None:
        raise ConfigError(f"--attn_impl {name} cannot run: {reason}; or give --attn_impl auto")
    return BACKENDS[name]


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, in its precision: decoders' norms and rotations give float32 queries."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


# the segments differ from batch to batch: what stands around is compiled, this is called
@torch.compiler.disable  # type: ignore[untyped-decorator]
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
        **kwargs: what other implementations read.

    Returns:
        The result (1, T, N, E), and None for the weights.

    Raises:
        RuntimeError: the model was called outside of a packed forward.
        ConfigError: the back end that was asked for cannot run here.
    """
    if packing is None or attention_mask is not None or query.shape[0] != 1:
        raise RuntimeError(
            "this model is set up for packed rows; call it through rankwright, or first "
            "model.set_attn_implementation('sdpa')"
        )
    query, key, value = _autocast(query, key, value)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    call = Call(packing, causal, sliding_window, scaling, dropout)
    return choose(packing.backend, query, dropout).function(query, key, value, call), None


AttentionInterface.register(NAME, packed_attention)
