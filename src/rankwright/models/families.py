"""The ``FAMILIES`` table: how each architecture's hidden states become one logit.

A family is looked up by ``config.model_type``. One that is not listed is scored on padded rows
through the model's own forward: slower, never wrong.

To add a family: add its row, and its name to the parity cases of ``tests/models/test_parity.py``.

Shape legend: ``P`` pairs, ``T`` tokens of the packed row, ``H`` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwright.models.attention import to_device
from rankwright.types import PackedBatch

Head = Callable[[Any, Tensor, PackedBatch], Any]


def first_token(hidden_TH: Tensor, batch: PackedBatch) -> Tensor:
    """Hidden state of each pair's first token, (P, H)."""
    return hidden_TH[batch.score_index_P]


def mean_tokens(hidden_TH: Tensor, batch: PackedBatch) -> Tensor:
    """Mean hidden state of each pair's tokens, (P, H)."""
    lengths_S = to_device(np.array(batch.lengths), hidden_TH.device)
    segment_T = torch.repeat_interleave(
        torch.arange(len(batch.lengths), device=hidden_TH.device),
        lengths_S,
        output_size=hidden_TH.shape[0],
    )
    total_SH = hidden_TH.new_zeros(len(batch.lengths), hidden_TH.shape[1])
    total_SH = total_SH.index_add(0, segment_T, hidden_TH)
    return (total_SH / lengths_S[:, None])[batch.segment_P]


def modernbert_head(model: Any, hidden_TH: Tensor, batch: PackedBatch) -> Any:
    """Cls or mean pooling as the configuration says, dense, activation, norm, linear."""
    pool = first_token if model.config.classifier_pooling == "cls" else mean_tokens
    return model.classifier(model.drop(model.head(pool(hidden_TH, batch))))


def bert_head(model: Any, hidden_TH: Tensor, batch: PackedBatch) -> Any:
    """First token, dense and tanh, linear."""
    pooler = model.base_model.pooler
    # the pooler belongs to the backbone, which may be in half precision; the last projection never
    # is
    first_PH = first_token(hidden_TH, batch).to(next(pooler.parameters()).dtype)
    pooled_PH = pooler(first_PH[:, None]).to(hidden_TH.dtype)
    return model.classifier(model.dropout(pooled_PH))


def roberta_head(model: Any, hidden_TH: Tensor, batch: PackedBatch) -> Any:
    """The family's classification head, which reads the first token of each row."""
    return model.classifier(first_token(hidden_TH, batch)[:, None])


def distilbert_head(model: Any, hidden_TH: Tensor, batch: PackedBatch) -> Any:
    """First token, dense and ReLU, linear."""
    pooled_PH = nn.functional.relu(model.pre_classifier(first_token(hidden_TH, batch)))
    return model.classifier(model.dropout(pooled_PH))


def decoder_head(model: Any, hidden_TH: Tensor, batch: PackedBatch) -> Any:
    """Last token, linear."""
    return model.score(hidden_TH[batch.score_index_P])


@dataclass(frozen=True)
class Family:
    """A row of ``FAMILIES``.

    Attributes:
        head: (model, hidden (T, H), batch) -> logits (P, 1) of the sequence classification model.
        causal: whether it is a decoder: scored at the last token, and able to share prefixes.
        padded_positions: whether positions start behind the padding index (RoBERTa).
        generative: whether its language-model logits are plainly ``hidden @ lm_head``: no scale, no
            cap.
    """

    head: Head
    causal: bool = False
    padded_positions: bool = False
    generative: bool = False

    def position_offset(self, config: Any) -> int:
        """Position of a sequence's first token."""
        return int(config.pad_token_id) + 1 if self.padded_positions else 0


_DECODER = Family(decoder_head, causal=True, generative=True)
_ROBERTA = Family(roberta_head, padded_positions=True)

FAMILIES: dict[str, Family] = {
    "modernbert": Family(modernbert_head),
    "bert": Family(bert_head),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family(roberta_head),
    "distilbert": Family(distilbert_head),
    "qwen3": _DECODER,
    "qwen2": _DECODER,
    "llama": _DECODER,
    "mistral": _DECODER,
}
