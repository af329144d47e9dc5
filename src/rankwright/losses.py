"""Ranking losses as pure functions of scores, labels and group offsets.

Shape legend: ``Q`` groups, ``P`` pairs; group ``q`` holds the pairs
``offsets_Q[q]:offsets_Q[q + 1]``.

A loss returns a **sum** and a **count**; the trainer divides by the count over the whole optimiser
step, all accumulation steps and all ranks, so the result does not depend on how the groups were
spread. The count depends on labels and offsets alone, never on the scores, and nothing here waits
for the device.

To add a loss: write the function, add its row to ``LOSSES``, and its hand-derived case to
``tests/test_losses.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from rankwright.errors import ConfigError


class LossSum(NamedTuple):
    """A loss before averaging: ``total / count`` is the mean.

    Attributes:
        total: scalar sum over the terms, float32 (float64 for float64 scores).
        count: scalar number of terms, same dtype; 0 where a batch holds none.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which a sum has no use for


def group_index(offsets_Q: Tensor, num_pairs: int) -> Tensor:
    """Return for each of the ``P`` pairs the group it belongs to, int64."""
    sizes_Q = offsets_Q[1:] - offsets_Q[:-1]
    index_Q = torch.arange(sizes_Q.shape[0], device=offsets_Q.device)
    return torch.repeat_interleave(index_Q, sizes_Q, output_size=num_pairs)


def group_sum(values_P: Tensor, group_P: Tensor, num_groups: int) -> Tensor:
    """Sum ``values_P`` within each group."""
    return values_P.new_zeros(num_groups).index_add(0, group_P, values_P)


def group_log_softmax(scores_P: Tensor, group_P: Tensor, num_groups: int) -> Tensor:
    """Log-softmax of ``scores_P`` within each group, without a loop and safe from overflow."""
    # the maximum only shifts the exponent, so no gradient needs to pass through it
    max_Q = scores_P.detach().new_full((num_groups,), float("-inf"))
    max_Q = max_Q.scatter_reduce(0, group_P, scores_P.detach(), "amax")
    shifted_P = scores_P - max_Q[group_P]
    log_norm_Q = group_sum(shifted_P.exp(), group_P, num_groups).log()
    return shifted_P - log_norm_Q[group_P]


def _full_precision(scores_P: Tensor) -> Tensor:
    return scores_P if scores_P.dtype == torch.float64 else scores_P.float()


def pointwise(
    scores_P: Tensor, labels_P: Tensor, offsets_Q: Tensor, *, pos_weight: float = 1.0
) -> LossSum:
    r"""Binary cross-entropy of each pair: :math:`-w\,y\log\sigma(s) - (1-y)\log(1-\sigma(s))`.

    Args:
        scores_P: logits.
        labels_P: targets in [0, 1], soft labels welcome; the trainer refuses grades above 1.
        offsets_Q: group offsets, not used: every pair is a term of its own.
        pos_weight: weight ``w`` of the positive part.

    Returns:
        The sum over pairs and their number.
    """
    del offsets_Q
    scores_P = _full_precision(scores_P)
    labels_P = labels_P.to(scores_P.dtype)
    total = F.binary_cross_entropy_with_logits(
        scores_P,
        labels_P,
        pos_weight=scores_P.new_tensor(pos_weight) if pos_weight != 1.0 else None,
        reduction="sum",
    )
    return LossSum(total, scores_P.new_tensor(float(scores_P.shape[0])))


def listwise(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    temperature: float = 1.0,
    min_group_size: int = 2,
) -> LossSum:
    r"""Softmax cross-entropy over each group's candidates (ListNet's top-one form).

    :math:`-\sum_d t_d \log\mathrm{softmax}(s/T)_d` with the target :math:`t = y / \sum y`: one
    positive is plain multi-class cross-entropy, several share the target, grades weigh it
    (Cao et al. 2007).

    Args:
        scores_P: logits.
        labels_P: non-negative labels.
        offsets_Q: group offsets.
        temperature: ``T``, above 0.
        min_group_size: groups with fewer documents are no terms. Nor are groups without a positive.

    Returns:
        The sum over groups and their number.
    """
    scores_P = _full_precision(scores_P)
    return _listwise(scores_P, labels_P, offsets_Q, temperature, min_group_size)


def listwise_generative(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    temperature: float = 1.0,
    min_group_size: int = 2,
) -> LossSum:
    r"""``listwise`` over log-probabilities: :math:`\log\sigma(s)` stands in place of :math:`s`.

    With :math:`s` = logit(yes) − logit(no), :math:`\sigma(s)` is the probability of "yes" among the
    two tokens. This is the form that ms-swift documented for ``listwise_generative_reranker``.
    """
    scores_P = F.logsigmoid(_full_precision(scores_P))
    return _listwise(scores_P, labels_P, offsets_Q, temperature, min_group_size)


def _listwise(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    temperature: float,
    min_group_size: int,
) -> LossSum:
    num_groups = offsets_Q.shape[0] - 1
    group_P = group_index(offsets_Q, scores_P.shape[0])
    labels_P = labels_P.to(scores_P.dtype)
    logp_P = group_log_softmax(scores_P / temperature, group_P, num_groups)
    mass_Q = group_sum(labels_P, group_P, num_groups)
    usable_Q = (mass_Q > 0) & (offsets_Q[1:] - offsets_Q[:-1] >= min_group_size)
    # a group without a positive has no target distribution; divided by 1 it is finite, then dropped
    target_P = labels_P / torch.where(usable_Q, mass_Q, 1.0)[group_P]
    loss_Q = -group_sum(target_P * logp_P, group_P, num_groups)
    return LossSum(torch.where(usable_Q, loss_Q, 0.0).sum(), usable_Q.sum().to(scores_P.dtype))


@dataclass(frozen=True)
class Loss:
    """A row of ``LOSSES``.

    Attributes:
        function: ``(scores_P, labels_P, offsets_Q, **options) -> LossSum``.
        options: names of the keyword options that the arguments may set.
        needs_both: whether a group must hold a positive and a negative to be a term.
        probability_labels: whether labels must lie in [0, 1].
        summary: one line for the help.
    """

    function: Callable[..., LossSum]
    options: tuple[str, ...]
    needs_both: bool
    probability_labels: bool
    summary: str


LOSSES: dict[str, Loss] = {
    "pointwise": Loss(
        pointwise,
        ("pos_weight",),
        False,
        True,
        "binary cross-entropy of each (query, document) pair",
    ),
    "listwise": Loss(
        listwise,
        ("temperature", "min_group_size"),
        True,
        False,
        "softmax cross-entropy over a query's candidates",
    ),
    "listwise_generative": Loss(
        listwise_generative,
        ("temperature", "min_group_size"),
        True,
        False,
        "listwise over log P(yes), as ms-swift documented it",
    ),
}

ALIASES: dict[str, str] = {
    "pointwise_reranker": "pointwise",
    "listwise_reranker": "listwise",
    "generative_reranker": "pointwise",
    "listwise_generative_reranker": "listwise_generative",
}


def find_loss(name: str) -> str:
    """Return the name in ``LOSSES`` that ``name`` means, aliases resolved.

    Raises:
        ConfigError: the name is unknown.
    """
    resolved = ALIASES.get(name, name)
    if resolved not in LOSSES:
        known = [*LOSSES, *ALIASES]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
        raise ConfigError(f"--loss_type {name!r} is unknown; {hint} from {', '.join(known)}")
    return resolved
