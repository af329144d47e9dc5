"""Weights that are cut over the processes (FSDP2, ZeRO-3): scored in step, gathered, put back.

A forward of such a model is a collective act: each layer gathers its weights from all processes,
so all of them must call the model equally often, whatever each has to score.

``P`` pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn

from rankwright.types import PackedBatch


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of some weights."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or _is_zero_3(p) for p in model.parameters())


def _is_zero_3(parameter: Any) -> bool:
    """Whether it is one of those that DeepSpeed cuts: empty but for the moment of its use."""
    return hasattr(parameter, "ds_id")


def _put_away(model: nn.Module) -> None:
    """Let ZeRO-3 cut again what it has gathered ahead of its use."""
    zero: Any = next((p for p in model.parameters() if _is_zero_3(p)), None)
    if zero is not None:
        zero._z3_optimizer.empty_partition_cache()


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
    _put_away(model)
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

    if _is_zero_3(value):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([value]):
            return value.detach().clone()
    return value.full_tensor() if isinstance(value, DTensor) else value


def _part(value: Tensor, like: Any) -> Tensor:
    """This process's part of a tensor that all of them hold."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    value = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _taken(value: Tensor, own: Any) -> Any:
    """What to load in place of a whole tensor, where the model holds its part of it."""
    if not _is_zero_3(own):
        return _part(value, own)
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([own], modifier_rank=0), torch.no_grad():
        if value.shape != own.shape:
            return value  # the loading will complain
        own.copy_(value)
    return own.detach()


@contextmanager
def takes_whole_weights(model: nn.Module) -> Iterator[None]:
    """Let ``load_state_dict`` take whole tensors where the model holds its parts of them."""

    def cut(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, own in module.named_parameters(recurse=False):
            if prefix + name in state:
                state[prefix + name] = _taken(state[prefix + name], own)

    handles = []
    if is_sharded(model):
        _put_away(model)
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
        optimizer: of a model whose weights or whose optimiser's states are cut.
        keep: whether this process gets it.
    """
    if (zero := _zero(optimizer)) is not None:
        return _gather_zero(zero, keep=keep)
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
        optimizer: of a model whose weights or whose optimiser's states are cut.
        state: the whole.
    """
    if (zero := _zero(optimizer)) is not None:
        _load_zero(zero, state)
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        number: {
            name: _part(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def _zero(optimizer: Any) -> Any:
    """DeepSpeed's ZeRO optimiser under accelerate's; None where there is none.

    It lays the parameters of a group one behind the other and gives each process a stretch of
    that row. The optimiser proper, its ``optimizer``, knows these stretches only.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if hasattr(inner, "bit16_groups") or hasattr(inner, "fp16_groups") else None


def _zero_parameters(zero: Any) -> list[list[Any]]:
    """The parameters of each group in the order in which one process's optimiser has them."""
    if hasattr(zero, "bit16_groups"):
        return [list(group) for group in zero.bit16_groups]
    found: list[list[Any]] = [[] for _ in zero.param_groups]
    for number, group in enumerate(zero.fp16_groups):  # ZeRO-3 cuts large ones
        found[zero.sub_group_to_group_id[number]] += group
    return found


def _zero_stretches(zero: Any) -> list[Any]:
    """This process's stretches."""
    if hasattr(zero, "bit16_groups"):
        return list(zero.single_partition_of_fp32_groups)
    return list(zero.fp32_partitioned_groups_flat)


def _link_zero(zero: Any) -> None:
    """Tell ZeRO-2 where each parameter's states lie; it does so itself for the first group only."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if hasattr(zero, "bit16_groups"):
        for group, stretch in zip(zero.bit16_groups, _zero_stretches(zero), strict=True):
            lazy_init_hp_params_optimizer_state(group, stretch, zero.optimizer.state)


def _gather_zero(zero: Any, *, keep: bool) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_optimizer_state

    groups = _zero_parameters(zero)
    _link_zero(zero)
    values = zero.optimizer.state[_zero_stretches(zero)[0]]
    found: dict[int, dict[str, Any]] = {}
    for number, parameter in enumerate(chain(*groups) if values else ()):
        whole = {}
        for name, value in values.items():
            if _is_stretch(value):
                value = safe_get_full_optimizer_state(parameter, name)
            whole[name] = value.cpu().clone() if isinstance(value, Tensor) else value
        if keep:
            found[number] = whole
    numbers = count()
    settings = [
        {**group, "params": [next(numbers) for _ in parameters]}
        for group, parameters in zip(zero.param_groups, groups, strict=True)
    ]
    return {"state": found, "param_groups": settings}


def _load_zero(zero: Any, state: dict[str, Any]) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    for group, saved in zip(zero.param_groups, state["param_groups"], strict=True):
        group |= {name: value for name, value in saved.items() if name != "params"}
    if not state["state"]:
        return
    for stretch in _zero_stretches(zero):
        # a fused optimiser counts its steps on the device
        device = stretch.device if zero.optimizer.defaults.get("fused") else None
        zero.optimizer.state[stretch] = {
            name: torch.zeros_like(stretch) if _is_stretch(value) else _copied(value, device)
            for name, value in state["state"][0].items()
        }
    _link_zero(zero)
    for number, parameter in enumerate(chain(*_zero_parameters(zero))):
        for name, value in state["state"][number].items():
            if not _is_stretch(value):
                continue
            if _is_zero_3(parameter):
                safe_set_local_optimizer_state(parameter, _flat_part(value, parameter), name)
            else:
                safe_set_full_optimizer_state(parameter, value, name)


def _flat_part(value: Tensor, like: Any) -> Tensor:
    """This process's values of a tensor that all of them hold, as many as ZeRO-3 gives it."""
    size = like.ds_tensor.numel()
    begin = size * torch.distributed.get_rank(like.ds_process_group)
    part = value.flatten()[begin : begin + size]
    return nn.functional.pad(part, (0, size - len(part)))


def _copied(value: Any, device: torch.device | None) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def _is_stretch(value: Any) -> bool:
    """Whether it is a value for each weight, not one for all of them such as a count of steps."""
    return isinstance(value, Tensor) and value.dim() > 0
