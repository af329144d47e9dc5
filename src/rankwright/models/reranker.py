"""The model behind every score: one ``forward`` for training, evaluation, ranking and serving.

Shape legend: ``P`` pairs, ``T`` tokens of the packed row, ``H`` hidden size, ``L`` longest pair of
a padded batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rankwright.errors import ConfigError
from rankwright.models import attention, linear_cpu, rotary_cpu
from rankwright.models.families import FAMILIES
from rankwright.types import PackedBatch

KINDS = ("classification", "generative")


def score_token(tokenizer: Any, token: str, flag: str) -> int:
    """Return the id of the one token that ``token`` is.

    Raises:
        ConfigError: the tokenizer cuts it into several pieces.
    """
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise ConfigError(
            f"{flag} {token!r} is not a single token: the tokenizer cuts it into {pieces}; choose "
            "another word"
        )
    return int(ids[0])


class RerankerModel(nn.Module):
    """A transformers model that scores packed batches.

    Args:
        model: a sequence classification model with one logit, a causal language model, or either
            under PEFT.
        kind: ``classification`` or ``generative``.
        token_ids: (positive, negative) ids, for the generative kind.
        packed: False forces padded rows.
        attn_impl: a name of ``attention.BACKENDS``, or ``auto``.

    Raises:
        ConfigError: the kind or the back end is unknown, or the head has more than one logit.
    """

    def __init__(
        self,
        model: Any,
        kind: str,
        token_ids: tuple[int, int] | None = None,
        *,
        packed: bool = True,
        attn_impl: str = attention.AUTO,
    ) -> None:
        super().__init__()
        self.attn_impl = attention.find_backend(attn_impl)
        if kind not in KINDS:
            raise ConfigError(f"the kind {kind!r} is unknown; choose from {', '.join(KINDS)}")
        if kind == "generative" and (token_ids is None or token_ids[0] == token_ids[1]):
            raise ConfigError("the positive and the negative token must be two different tokens")
        self.model = model
        self.kind = kind
        self.token_ids = token_ids
        self.token_ids_2: Tensor
        # on the device, so that no step waits for a copy
        self.register_buffer("token_ids_2", torch.tensor(token_ids or (0, 0)), persistent=False)
        linear_cpu.use(self.hf)
        config = self.hf.config
        if kind == "classification" and config.num_labels != 1:
            raise ConfigError(
                f"a reranker's head has one logit; this model's has {config.num_labels}"
            )
        self.family = FAMILIES.get(config.model_type)
        known = self.family is not None and (kind == "classification" or self.family.generative)
        self.packed = packed and known
        if self.packed:
            self.hf.set_attn_implementation(attention.NAME)
            rotary_cpu.use(self.hf)
        if kind == "classification" and self.packed:
            # half-precision heads collapse scores into few values; a head is small, so it stays in
            # float32
            for module in self.head_modules():
                if next(module.parameters(), torch.empty(0)).dtype in (
                    torch.bfloat16,
                    torch.float16,
                ):
                    module.float()

    def tie_weights(self) -> None:
        """Tie the head to the embeddings again, where the model's configuration says so.

        accelerate asks for it when FSDP has put new weights in the place of each.
        """
        self.hf.tie_weights()

    @property
    def hf(self) -> Any:
        """The transformers model, with any adapter injected."""
        get_base = getattr(self.model, "get_base_model", None)
        return get_base() if get_base is not None else self.model

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.hf.config

    @property
    def causal(self) -> bool:
        """Whether documents of one query can share its prefix."""
        return self.packed and self.family is not None and self.family.causal

    @property
    def scored_last(self) -> bool:
        """Whether the score is read at the last token; otherwise at the first."""
        return self.kind == "generative" or (self.family is not None and self.family.causal)

    @property
    def position_offset(self) -> int:
        """Position of each sequence's first token."""
        return self.family.position_offset(self.config) if self.family is not None else 0

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, where they can be told apart."""
        return [
            m for m in self.hf.base_model.modules() if isinstance(m, GradientCheckpointingLayer)
        ]

    @property
    def _no_split_modules(self) -> list[str]:
        # accelerate reads here what FSDP gathers as one
        return sorted({type(block).__name__ for block in self.blocks})

    def head_modules(self) -> list[nn.Module]:
        """The modules beside the backbone."""
        backbone = self.hf.base_model
        return [child for child in self.hf.children() if child is not backbone]

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the backbone trades compute for memory."""
        return any(
            getattr(self.hf, name, False)
            # the second one in transformers before the rename
            for name in ("is_activation_checkpointing", "is_gradient_checkpointing")
        )

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Trade compute for memory in the backbone; the Trainer calls this."""
        enable = getattr(self.hf, "activation_checkpointing_enable", None)
        if enable is not None:
            enable(activation_checkpointing_kwargs=activation_checkpointing_kwargs, **options)
        else:  # transformers before the rename
            kwargs = activation_checkpointing_kwargs or {"use_reentrant": False}
            self.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        if self.model is not self.hf:
            # frozen embeddings give no gradient for the checkpoints to start from
            self.hf.enable_input_require_grads()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """The older name of ``activation_checkpointing_enable``."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def compile_blocks(self, backend: str = "inductor", mode: str | None = None) -> int:
        """Compile the layers, each by itself, for rows of any length.

        The length is a variable of the compiled code, so no row is padded and nothing is compiled
        anew after the first batches. Attention keeps its own kernels.

        Args:
            backend: of ``torch.compile``.
            mode: of ``torch.compile``.

        Returns:
            How many layers there are.

        Raises:
            ConfigError: the architecture has no layers that can be told apart, or the back end or
                mode is unknown.
        """
        if mode is not None and backend != "inductor":
            raise ConfigError(
                f"--torch_compile_mode {mode} is a mode of the back end inductor, not of "
                f"{backend}; leave one of the two out"
            )
        blocks = self.blocks
        if not blocks:
            raise ConfigError(
                f"--torch_compile: the layers of {self.config.model_type!r} are not known; leave "
                "it out"
            )
        try:
            _compile(blocks, backend=backend, mode=mode, dynamic=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"--torch_compile: {reason}") from error
        return len(blocks)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Score a batch.

        A batch that is cut into chunks is scored one chunk after the other. Of each only the scores
        are kept: the backward pass computes a chunk once more when it comes to it, with the same
        dropout, so gradients are exact for any loss while memory holds one chunk (Gao et al. 2021,
        GradCache).

        Args:
            batch: ``P`` pairs.

        Returns:
            scores_P: float32 logits (float64 for a float64 model).
        """
        if not batch.cuts and batch.calls == 1:
            return self._score(batch)
        score = self._score_twice if torch.is_grad_enabled() else self._score
        chunks = batch.chunks() or [batch]
        scores_P = torch.cat([score(chunk) for chunk in chunks])
        for _ in range(batch.calls - len(chunks)):
            scores_P = scores_P + score(chunks[0]).sum() * 0
        return scores_P

    def _score_twice(self, chunk: PackedBatch) -> Tensor:
        def score(input_ids_T: Tensor) -> Tensor:
            return self._score(replace(chunk, input_ids_T=input_ids_T))

        # the tensor tells it whose random state to keep for dropout
        scores_P: Tensor = checkpoint(score, chunk.input_ids_T, use_reentrant=False)
        return scores_P

    def _score(self, batch: PackedBatch) -> Tensor:
        """Score a batch at once."""
        if not self.packed:
            return self._score_padded(batch)
        inputs: dict[str, Any] = {
            "position_ids": batch.position_ids_T[None],
            "attention_mask": None,
            "packing": attention.Packing(batch.lengths, batch.parents, self.attn_impl),
        }
        if batch.token_type_ids_T is not None:
            inputs["token_type_ids"] = batch.token_type_ids_T[None]
        if self.causal:
            inputs["use_cache"] = False
        rows_2H: Tensor | None = None
        if self.kind == "generative" and self._tied():
            # looked up together with the text: indexing the head would cost a second gradient of
            # the whole vocabulary
            ids = torch.cat((batch.input_ids_T, self.token_ids_2))
            looked_up = self.hf.get_input_embeddings()(ids)
            inputs["inputs_embeds"], rows_2H = looked_up[None, :-2], looked_up[-2:]
        else:
            inputs["input_ids"] = batch.input_ids_T[None]
        hidden_TH: Tensor = self.hf.base_model(**inputs).last_hidden_state[0]
        with torch.autocast(hidden_TH.device.type, enabled=False):
            if self.kind == "generative":
                direction_H, bias = self._direction(rows_2H)
                hidden_PH = hidden_TH[batch.score_index_P].to(direction_H.dtype)
                scores_P: Tensor = hidden_PH @ direction_H + bias
                return scores_P
            assert self.family is not None
            logits_P1 = self.family.head(self.hf, _at_least_float32(hidden_TH), batch)
            return _at_least_float32(logits_P1)[:, 0]

    def _tied(self) -> bool:
        """Whether the head's rows are those of the input embeddings, and plainly looked up."""
        embeddings = self.hf.get_input_embeddings()
        return (
            type(embeddings) is nn.Embedding
            and embeddings.weight is self.hf.get_output_embeddings().weight
            and embeddings.max_norm is None
        )

    def _direction(self, rows_2H: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """w_yes - w_no in float32: half-precision logits subtracted would collapse near scores."""
        head = self.hf.get_output_embeddings()
        weight_2H = _at_least_float32(head.weight[self.token_ids_2] if rows_2H is None else rows_2H)
        bias = getattr(head, "bias", None)
        if bias is None:
            return weight_2H[0] - weight_2H[1], 0.0
        bias_2 = _at_least_float32(bias[self.token_ids_2])
        return weight_2H[0] - weight_2H[1], bias_2[0] - bias_2[1]

    def _score_padded(self, batch: PackedBatch) -> Tensor:
        """Score through the model's own forward, one padded row for each pair."""
        rows = [self._pair_slices(batch, pair) for pair in range(batch.num_pairs)]
        ids = [torch.cat([batch.input_ids_T[part] for part in row]) for row in rows]
        longest = max(len(row) for row in ids)
        pad = self.config.pad_token_id or 0
        left = self.kind == "generative"

        def stack(values: list[Tensor], fill: int) -> Tensor:
            gaps = [(longest - len(v), 0) if left else (0, longest - len(v)) for v in values]
            return torch.stack(
                [nn.functional.pad(v, gap, value=fill) for v, gap in zip(values, gaps, strict=True)]
            )

        inputs: dict[str, Any] = {
            "input_ids": stack(ids, pad),
            "attention_mask": stack([torch.ones_like(row) for row in ids], 0),
        }
        if batch.token_type_ids_T is not None:
            types = batch.token_type_ids_T
            inputs["token_type_ids"] = stack(
                [torch.cat([types[s] for s in row]) for row in rows], 0
            )
        if not left:
            return _at_least_float32(self.hf(**inputs).logits)[:, 0]
        assert self.token_ids is not None
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits_PV = self.hf(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
        yes, no = self.token_ids
        return _at_least_float32(logits_PV[:, yes]) - _at_least_float32(logits_PV[:, no])

    @staticmethod
    def _pair_slices(batch: PackedBatch, pair: int) -> list[slice]:
        """Where a pair's tokens stand in the packed row: its shared prefix, if any, and itself."""
        segment = int(batch.segment_P[pair])
        parent = batch.parents[segment]
        slices = []
        for index in (parent, segment) if parent >= 0 else (segment,):
            start = sum(batch.lengths[:index])
            slices.append(slice(start, start + batch.lengths[index]))
        return slices


def _compile(blocks: list[nn.Module], **options: Any) -> None:
    """Compile layers inside of their gradient checkpointing, which ends a graph.

    transformers 5.17 puts it around ``__call__``, which leaves the layer within to
    ``nn.Module.compile``; 5.23 around ``forward``, where nothing within would be compiled.
    """
    if "__call__" in vars(GradientCheckpointingLayer):
        for block in blocks:
            block.compile(**options)
        return
    compiled = {
        kind: _checkpointing(torch.compile(kind.forward.__wrapped__, **options))  # type: ignore[attr-defined]
        for kind in {type(block) for block in blocks}
    }
    for block in blocks:
        # a method, since a copy of the model has to call its own
        block.forward = MethodType(compiled[type(block)], block)


def _checkpointing(layer: Callable[..., Any]) -> Callable[..., Any]:
    """What transformers puts around a layer's ``forward``."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(partial(layer, self, **kwargs), *args)
        return layer(self, *args, **kwargs)

    return forward


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
