"""Adapters (LoRA, DoRA) whose checkpoints hold everything that was trained, the head included."""

from __future__ import annotations

from typing import Any, Protocol

from rankwright.errors import ConfigError
from rankwright.models.checkpoint import Loaded
from rankwright.models.reranker import RerankerModel


class TunerOptions(Protocol):
    """What is read of the arguments."""

    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    target_modules: list[str]
    use_dora: bool


def add_adapters(loaded: Loaded, options: TunerOptions) -> None:
    """Put LoRA adapters on a model, in place.

    The head of a classification model, and every module whose weights the base did not hold, is
    trained in full and saved with the adapter: a head left out would come back random.

    Args:
        loaded: a model without adapters.
        options: rank, scale, dropout and modules.

    Raises:
        ConfigError: a module to adapt does not exist.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    hf = loaded.model.hf
    whole = _trained_whole(loaded, hf)
    targets: Any = options.target_modules
    if list(targets) == ["all-linear"]:
        targets = _linear_modules(loaded.model, whole)
    if getattr(hf, "is_loaded_in_4bit", False):
        hf = prepare_model_for_kbit_training(hf, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets,
        use_dora=options.use_dora,
        modules_to_save=whole or None,
        task_type="CAUSAL_LM" if loaded.spec.kind == "generative" else "SEQ_CLS",
    )
    try:
        loaded.model.model = get_peft_model(hf, config)
    except ValueError as error:
        raise ConfigError(
            f"--target_modules {' '.join(options.target_modules)}: {error}"
        ) from error


def _trained_whole(loaded: Loaded, hf: Any) -> list[str]:
    """Names of the modules that are trained and saved in full."""
    names = {name for name in loaded.new_modules if name}
    if loaded.spec.kind == "classification":
        backbone = hf.base_model
        for name, child in hf.named_children():
            if child is not backbone and any(True for _ in child.parameters()):
                names.add(name)
    # a module within another one of the list is saved with it
    return sorted(n for n in names if not any(n != m and n.startswith(m + ".") for m in names))


def _linear_modules(model: RerankerModel, whole: list[str]) -> list[str]:
    """Full names of the backbone's linear layers, those trained in full left out."""
    from torch import nn

    backbone = model.hf.base_model
    prefix = model.hf.base_model_prefix + "."
    return [
        prefix + name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear)
        and not any((prefix + name).startswith(w) for w in whole)
        and not name.startswith("pooler")
    ]
