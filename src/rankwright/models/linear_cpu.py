"""Linear layers on processors for which PyTorch's own product is slow.

PyTorch multiplies float32 matrices with MKL, which chooses its code by the maker of the processor:
one that is not Intel's gets that of 2013 (AVX2), although it could do twice as much at a time.
oneDNN, which is part of PyTorch too, looks at what the processor can do. Measured on an AMD EPYC of
the fifth generation, 3,700 x 256 by 256 x 768: 107 GFLOP/s a core with MKL and 238 with oneDNN.

Sums are added in another order, so results differ in their last bits.

oneDNN compiles a product for each of its shapes and keeps the last 1,024 of them, half a mebibyte
each. Packed rows are of any length, so they are multiplied in blocks of few lengths.

There are first derivatives alone: ``torch.func`` and a second backward pass raise an error.

Shape legend: ``R`` rows of the input, ``I`` and ``O`` features in and out.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CPU_INFO = Path("/proc/cpuinfo")
# multiplications from which it is faster, for as many rows as a block has at least
LEAST_WORK = 2**22
# rows of a block at most; a CPU's rows are no longer, unless one group is
BLOCK = 4096
# the last block is filled up with zeros to a multiple of the first up to so many rows, then of the
# second: 28 lengths in all
FEW = 1024
STEPS = (64, 256)

# None in a PyTorch without them
_product: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_weights: Any = getattr(torch.ops.aten, "mkldnn_linear_backward_weights", None)


@cache
def faster() -> bool:
    """Whether oneDNN's product is the faster one here: AVX-512, and not made by Intel."""
    there = _product is not None and _weights is not None
    if not there or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    makers = {line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")}
    return bool(makers) and "GenuineIntel" not in makers


def _blocks(x_RN: Tensor) -> list[Tensor]:
    """Cut rows into blocks; the last one is filled up."""
    *blocks, last = x_RN.split(BLOCK)  # type: ignore[no-untyped-call]
    missing = -len(last) % STEPS[len(last) > FEW]
    # pad copies even where nothing is missing
    return [*blocks, nn.functional.pad(last, (0, 0, 0, missing)) if missing else last]


def _multiply(blocks: list[Tensor], count: int, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` for the ``count`` rows that were cut into these blocks."""
    if len(blocks) == 1:
        output: Tensor = _product(blocks[0], weight_OI, bias_O, "none", [], "")
        # no view, since autograd forbids to change what is one of a function's result
        return output.resize_(count, output.shape[1])
    output_RO = weight_OI.new_empty(count, len(weight_OI))
    outputs = output_RO.split(BLOCK)  # type: ignore[no-untyped-call]
    for rows, block in zip(outputs, blocks, strict=True):
        rows.copy_(_product(block, weight_OI, bias_O, "none", [], "")[: len(rows)])
    return output_RO


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias`` and its gradients, by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        # as PyTorch does: frozen weights need no input
        ctx.save_for_backward(x_RI if ctx.needs_input_grad[1] else None, weight_OI)
        ctx.biased = bias_O is not None
        return _multiply(_blocks(x_RI), len(x_RI), weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_RO: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, weight_OI = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        gradients = _blocks(gradient_RO)
        if ctx.needs_input_grad[0]:
            of_x = _multiply(gradients, len(gradient_RO), weight_OI.t(), None)
        if ctx.needs_input_grad[1]:
            for gradient, x in zip(gradients, _blocks(x_RI), strict=True):
                found = _weights(gradient.to_mkldnn(), x.to_mkldnn(), weight_OI, False)[0]
                of_weight = found if of_weight is None else of_weight.add_(found)
        if ctx.biased and ctx.needs_input_grad[2]:
            of_bias = gradient_RO.sum(0)
        return of_x, of_weight, of_bias


class Linear(nn.Linear):
    """``torch.nn.Linear``, computed by oneDNN where that is the faster way."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``input @ weight.T + bias``."""
        weight, bias = self.weight, self.bias
        if not _fits(input, weight, bias):
            return super().forward(input)
        rows = input.reshape(-1, weight.shape[1])
        if torch.is_grad_enabled():
            found: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        else:
            found = _multiply(_blocks(rows), len(rows), weight, bias)
        return found.view(*input.shape[:-1], weight.shape[0])


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this product is one for oneDNN: plain float32 on a CPU, and large."""
    # a copy may have been sent to another machine
    if torch.compiler.is_compiling() or not faster():
        return False
    rows = x.numel() // weight.shape[1]
    return (
        rows >= STEPS[0]
        and rows * weight.numel() >= LEAST_WORK
        and all(
            type(value) in (Tensor, nn.Parameter)
            and value.dtype == torch.float32
            and value.device.type == "cpu"
            for value in (x, weight, *(() if bias is None else (bias,)))
        )
        and weight.is_contiguous()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def use(model: nn.Module) -> None:
    """Let the plain linear layers of a model choose the faster product.

    Weights and names stay as they are, and ``isinstance`` finds an ``nn.Linear``.
    ``torch.backends.mkldnn.flags(enabled=False)`` switches it off.

    Args:
        model: any model; layers of other classes, such as quantized ones, are left alone.
    """
    if faster():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear
