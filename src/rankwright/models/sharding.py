"""Weights that are cut over the processes (FSDP2): scored in step, gathered, put back.

A forward of such a model is a collective act: each layer gathers its weights from all processes,
so all of them must call the model equally often, whatever each has to score.

``P`` pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankwright.types import PackedBatch


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of some weights."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def in_step(model: nn.Module, filler: Callable[[], PackedBatch]) -> Iterator[None]:
    """Let every process call the model as often as the one that calls it most.

    Before each call all processes say whether they make one; who has none left scores
    ``filler`` until nobody has. Nothing happens where the weights are whole.

    Args:
        model: scores packed batches; only called, without gradients, by the block.
        filler: makes a small batch on the model's device.
    """
    if not is_sharded(model):
        yield
        return
    small = filler()
    flag = torch.zeros(1, device=small.input_ids_T.device)

    def others(mine: bool) -> bool:
        flag.fill_(float(mine))
        torch.distributed.all_reduce(flag)
        return bool(flag.item() > 0)

    handle = model.register_forward_pre_hook(lambda *_: others(True) and None, prepend=True)
    try:
        yield
    finally:
        handle.remove()
    while others(False):
        with torch.no_grad():
            model(small)


def gather(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Put the weights together, one after the other; all processes take part.

    Args:
        model: a model whose weights may be cut.
        keep: whether this process gets them.

    Returns:
        The state dict in the CPU's memory; empty without ``keep``.
    """
    found: dict[str, Tensor] = {}
    # tied weights are one tensor under two names, and stay so
    seen: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            whole = _whole(value).detach()
            seen[id(value)] = whole.cpu() if keep else whole.new_empty(0)
        if keep:
            found[name] = seen[id(value)]
    return found


def _whole(value: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def _part(value: Tensor, like: Any) -> Tensor:
    """This process's part of a tensor that all of them hold."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    value = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def takes_whole_weights(model: nn.Module) -> Iterator[None]:
    """Let ``load_state_dict`` take whole tensors where the model holds its parts of them."""

    def cut(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, own in module.named_parameters(recurse=False):
            if prefix + name in state:
                state[prefix + name] = _part(state[prefix + name], own)

    handles = []
    if is_sharded(model):
        model.state_dict()  # FSDP lays its parts back in
        for module in model.modules():
            handles.append(module.register_load_state_dict_pre_hook(cut))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gather_optimizer(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """An optimiser's state as one process would save it; all processes take part.

    Args:
        optimizer: of a model whose weights are cut.
        keep: whether this process gets it.
    """
    state: dict[str, Any] = optimizer.state_dict()
    found: dict[Any, dict[str, Any]] = {}
    for number, values in state["state"].items():
        whole = {name: _whole(value) for name, value in values.items()}
        if keep:
            found[number] = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in whole.items()}
    return {**state, "state": found}


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Give each process its part of a state that one process saved, or ``gather_optimizer`` gave.

    Args:
        optimizer: of a model whose weights are cut.
        state: the whole.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        number: {
            name: _part(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})
