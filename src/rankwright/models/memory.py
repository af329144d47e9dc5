"""What a model takes in memory, computed from its shapes; nothing is allocated.

The model is built on PyTorch's meta device, where tensors have shapes and no storage.

Shape legend: ``H`` hidden size, ``A`` all query heads together, ``K`` all key heads together,
``I`` width of the feed-forward layer, ``L`` layers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from rankwright.errors import ConfigError
from rankwright.models.checkpoint import Description, Loaded, LoadOptions
from rankwright.models.reranker import RerankerModel, score_token


def outline(described: Description, options: LoadOptions) -> Loaded:
    """Build a described model on the meta device: shapes without weights.

    Args:
        described: configuration, tokenizer and spec.
        options: what was set about it.

    Returns:
        What ``load`` returns, of a model that cannot score.

    Raises:
        ConfigError: the architecture is no reranker of this kind, or the pair of tokens is bad.
    """
    spec = described.spec
    generative = spec.kind == "generative"
    token_ids = None
    if generative:
        token_ids = (
            score_token(described.tokenizer, spec.positive_token, "--positive_token"),
            score_token(described.tokenizer, spec.negative_token, "--negative_token"),
        )
    auto = (
        transformers.AutoModelForCausalLM
        if generative
        else transformers.AutoModelForSequenceClassification
    )
    config = copy.deepcopy(described.config)
    if not generative:
        config.num_labels = 1
    try:
        with torch.device("meta"):
            hf = auto.from_config(
                config, dtype=torch.float32, trust_remote_code=options.trust_remote_code
            )
    except (ValueError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{described.base} does not load as a {spec.kind} reranker: {first} "
            "Check --task_type, or give another model"
        ) from error
    model = RerankerModel(hf, spec.kind, token_ids, packed=options.packed)
    return Loaded(model.eval(), described.tokenizer, spec, [], described.folder)


@dataclass(frozen=True)
class ParameterCount:
    """How many weights a model has; tied ones count once.

    Attributes:
        total: all of them.
        embedding: those of the tables at both ends: words, positions, segments and an output
            embedding that is not tied.
    """

    total: int
    embedding: int

    @property
    def other(self) -> int:
        """Those of the layers and the head."""
        return self.total - self.embedding


def count_parameters(hf: Any) -> ParameterCount:
    """Count the weights of a transformers model."""
    tables = {
        parameter
        for module in hf.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    output = hf.get_output_embeddings()
    if output is not None:
        tables.update(output.parameters())
    return ParameterCount(
        sum(parameter.numel() for parameter in hf.parameters()),
        sum(parameter.numel() for parameter in tables),
    )


def count_trainable(model: nn.Module) -> int:
    """Count the weights that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Requirement:
    """One line of the memory table.

    Attributes:
        use: what the model is used for.
        formula: bytes; N all weights, M those outside of embeddings, T trained ones.
        bytes: what the formula gives.
    """

    use: str
    formula: str
    bytes: int


def requirements(parameters: ParameterCount, adapters: int) -> list[Requirement]:
    """What weights, gradients and optimiser states take, activations aside.

    AdamW keeps two fp32 states beside each fp32 weight and its fp32 gradient, 4 + 4 + 8 = 16 bytes.
    ``--bf16`` leaves all of them in fp32 and adds autocast's bf16 copy of every linear weight,
    which lives from the forward to the backward. Adapters are kept in fp32, whatever the weights
    below them are.

    Args:
        parameters: of the model.
        adapters: weights that LoRA trains, the head included.
    """
    n, m, t = parameters.total, parameters.other, adapters
    return [
        Requirement("inference, bf16", "2 N", 2 * n),
        Requirement("inference, fp32", "4 N", 4 * n),
        Requirement("full training, AdamW, fp32", "(4 + 4 + 8) N", 16 * n),
        Requirement("full training, AdamW, --bf16", "(4 + 4 + 8) N + 2 M", 16 * n + 2 * m),
        Requirement("LoRA r=8, bf16 weights", "2 N + 16 T", 2 * n + 16 * t),
        Requirement("LoRA r=8, fp32 weights", "4 N + 16 T", 4 * n + 16 * t),
        Requirement("LoRA r=8, fp32 weights, --bf16", "4 N + 16 T + 2 M", 4 * n + 16 * t + 2 * m),
    ]


@dataclass(frozen=True)
class LayerShape:
    """What the activations of a transformer layer depend on.

    Attributes:
        layers: ``L``.
        hidden: ``H``.
        query: ``A``.
        key: ``K``.
        feed_forward: ``I``.
        gated: whether the feed-forward layer multiplies two branches.
        split_norm: whether norms are several operations (RMSNorm in transformers), not one.
        head_norm: whether queries and keys are normalised.
    """

    layers: int
    hidden: int
    query: int
    key: int
    feed_forward: int
    gated: bool
    split_norm: bool
    head_norm: bool


def layer_shape(hf: Any) -> LayerShape | None:
    """Read the layers' shape off a model; None where its configuration does not say it."""
    config = hf.config.get_text_config()
    hidden = getattr(config, "hidden_size", None)
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    if not (
        isinstance(hidden, int) and isinstance(heads, int) and isinstance(layers, int) and layers
    ):
        return None
    size = getattr(config, "head_dim", None) or hidden // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    width = next(
        (
            value
            for name in ("intermediate_size", "hidden_dim", "n_inner")
            if (value := getattr(config, name, None))
        ),
        4 * hidden,
    )
    modules = dict(hf.base_model.named_modules())
    into = sum(
        module.out_features
        for module in modules.values()
        if isinstance(module, nn.Linear)
        and module.in_features == hidden
        and module.out_features in (width, 2 * width)
    )
    return LayerShape(
        layers=layers,
        hidden=hidden,
        query=heads * size,
        key=keys * size,
        feed_forward=width,
        gated=into >= 2 * width * layers,
        split_norm=not any(isinstance(module, nn.LayerNorm) for module in modules.values()),
        head_norm=any(name.endswith("q_norm") for name in modules),
    )


def activation_bytes(
    shape: LayerShape, tokens: int, *, mixed: bool = False, checkpointing: bool = False
) -> int:
    """Estimate what autograd keeps from the forward to the backward.

    For each token and layer, in values: each of two norms its input (RMSNorm also the normalised
    value); the inputs of the linear layers that read it; queries, keys, values and the attention's
    output, which the back end ``sdpa`` copies once more; norms of heads their input and result; the
    feed-forward layer's values between its linear layers (two, or four where it is gated). The
    attention matrix is not kept, and of the vocabulary nothing is computed.

    Under autocast the norms stay in fp32, the rest is bf16, and each linear layer keeps its own
    cast of its input. With checkpointing: the fp32 input of each layer, and one layer's values
    while it is computed again. Dropout's masks, the gradients in flight and the kernels' workspaces
    are left out.

    The accounting follows Korthikanti et al. 2022, "Reducing Activation Recomputation in Large
    Transformer Models", section 4, and is tested against what autograd keeps.

    Args:
        shape: of the layers.
        tokens: in the batch.
        mixed: autocast to bf16 (``--bf16``), otherwise fp32.
        checkpointing: gradient checkpointing.
    """
    norms = (4 if shape.split_norm else 2) * shape.hidden
    attention = 2 * shape.query + 2 * shape.key
    inner = (4 if shape.gated else 2) * shape.feed_forward
    heads = shape.query + shape.key if shape.head_norm else 0
    if mixed:
        inputs = (5 if shape.gated else 4) * shape.hidden
        layer = 4 * norms + 2 * (inputs + attention + inner) + 6 * heads
    else:
        layer = 4 * (norms + 2 * shape.hidden + attention + inner + 2 * heads)
    if checkpointing:
        return tokens * (4 * shape.layers * shape.hidden + layer)
    return tokens * shape.layers * layer
