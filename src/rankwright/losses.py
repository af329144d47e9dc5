"""Ranking losses as pure functions of scores, labels and group offsets.

Shape legend: ``Q`` groups, ``P`` pairs, ``D`` documents of the largest group; group ``q`` holds the
pairs ``offsets_Q[q]:offsets_Q[q + 1]``. ``s`` are scores, ``y`` labels, ``t`` a teacher's scores.

A loss returns a **sum** and a **count**; the trainer divides by the count over the whole optimiser
step, all accumulation steps and all ranks, so the result does not depend on how the groups were
spread. The count depends on labels and offsets alone, never on the scores, and nothing here waits
for the device.

Losses over the pairs of documents of a group hold them as ``(P, D)``: each document against the
``D`` of its group, ``D`` being the size of the largest one. It is handed in as ``largest``, since
reading it off the offsets would wait for the device; without it ``P`` stands in, which gives the
same values in more memory.

To add a loss: write the function, add its row to ``LOSSES``, and its hand-derived case to
``tests/test_losses.py``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
        pos_weight=scores_P.new_full((), pos_weight) if pos_weight != 1.0 else None,
        reduction="sum",
    )
    return LossSum(total, scores_P.new_full((), scores_P.shape[0]))


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


def listnet(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    temperature: float = 1.0,
    min_group_size: int = 2,
) -> LossSum:
    r"""Cross-entropy between the top-one probabilities of labels and of scores (ListNet).

    :math:`-\sum_d \mathrm{softmax}(y)_d \log\mathrm{softmax}(s/T)_d` (Cao et al. 2007). A label of
    0 keeps its share of the target: of labels 1, 0, 0 the negatives hold 42 %, so this suits graded
    labels from about 3 up; ``listwise`` gives them none.

    Args:
        scores_P: logits.
        labels_P: any finite labels, graded or soft; their differences count.
        offsets_Q: group offsets.
        temperature: ``T`` of the scores, above 0.
        min_group_size: groups with fewer documents are no terms. Nor are groups of equal labels.

    Returns:
        The sum over groups and their number.
    """
    scores_P = _full_precision(scores_P)
    labels_P = labels_P.to(scores_P.dtype)
    num_groups = offsets_Q.shape[0] - 1
    group_P = group_index(offsets_Q, scores_P.shape[0])
    target_P = group_log_softmax(labels_P, group_P, num_groups).exp()
    logp_P = group_log_softmax(scores_P / temperature, group_P, num_groups)
    highest_Q = labels_P.new_full((num_groups,), float("-inf"))
    highest_Q = highest_Q.scatter_reduce(0, group_P, labels_P, "amax")
    lowest_Q = labels_P.new_full((num_groups,), float("inf"))
    lowest_Q = lowest_Q.scatter_reduce(0, group_P, labels_P, "amin")
    usable_Q = (highest_Q > lowest_Q) & (offsets_Q[1:] - offsets_Q[:-1] >= min_group_size)
    return _over_groups(-group_sum(target_P * logp_P, group_P, num_groups), usable_Q)


def kl(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    teacher_P: Tensor,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    min_group_size: int = 2,
) -> LossSum:
    r"""Divergence of the scores' distribution over a group from the teacher's (distillation).

    :math:`T^2 \sum_d p_d (\log p_d - \log\mathrm{softmax}(s/T)_d)` with
    :math:`p = \mathrm{softmax}(t/T_t)`. With :math:`T_t = T` this is the soft part of Hinton et al.
    2015, whose factor :math:`T^2` keeps the size of the gradient when :math:`T` changes; it differs
    from their cross-entropy by the entropy of the target, which has no gradient.

    Args:
        scores_P: logits.
        labels_P: not used, so rows without any judgement will do.
        offsets_Q: group offsets.
        teacher_P: the teacher's logits.
        temperature: ``T``, above 0.
        teacher_temperature: ``T_t``, above 0; None takes ``temperature``. For a teacher whose
            logits lie on another scale.
        min_group_size: groups with fewer documents are no terms.

    Returns:
        The sum over groups and their number.
    """
    del labels_P
    scores_P = _full_precision(scores_P)
    teacher_P = teacher_P.to(scores_P.dtype)
    if teacher_temperature is None:
        teacher_temperature = temperature
    num_groups = offsets_Q.shape[0] - 1
    group_P = group_index(offsets_Q, scores_P.shape[0])
    target_P = group_log_softmax(teacher_P / teacher_temperature, group_P, num_groups)
    logp_P = group_log_softmax(scores_P / temperature, group_P, num_groups)
    loss_Q = group_sum(target_P.exp() * (target_P - logp_P), group_P, num_groups)
    usable_Q = offsets_Q[1:] - offsets_Q[:-1] >= min_group_size
    return _over_groups(temperature**2 * loss_Q, usable_Q)


class _Pairs(NamedTuple):
    """Each document against the documents of its group.

    Attributes:
        other_PD: index of the other document.
        valid_PD: whether there is one; a document meets itself, too.
        group_P: the group of each document.
        num_groups: ``Q``.
    """

    other_PD: Tensor
    valid_PD: Tensor
    group_P: Tensor
    num_groups: int

    def differences(self, values_P: Tensor) -> Tensor:
        """Of each document's value and the other's; finite where there is none."""
        return values_P[:, None] - values_P[self.other_PD]

    def better(self, labels_P: Tensor) -> Tensor:
        """Where the document's label is above the other's."""
        return self.valid_PD & (labels_P[:, None] > labels_P[self.other_PD])

    def any(self, chosen_PD: Tensor) -> Tensor:
        """The groups that hold a chosen pair."""
        return group_sum(chosen_PD.sum(1), self.group_P, self.num_groups) > 0

    def ranks(self, values_P: Tensor) -> Tensor:
        """Places by falling value, from 1; equal values share the mean of their places."""
        others_PD = values_P[self.other_PD]
        above_P = (self.valid_PD & (others_PD > values_P[:, None])).sum(1)
        tied_P = (self.valid_PD & (others_PD == values_P[:, None])).sum(1)
        return (above_P + (tied_P + 1) / 2).to(values_P.dtype)

    def soft_ranks(self, scores_P: Tensor, temperature: float) -> Tensor:
        """``ranks`` with a sigmoid in place of the step (Qin et al. 2010, equation 11)."""
        steps_PD = torch.sigmoid(-self.differences(scores_P) / temperature)
        # a document meets itself with sigmoid(0) = 1/2
        return 0.5 + torch.where(self.valid_PD, steps_PD, 0.0).sum(1)

    def ideal_dcg(self, gains_P: Tensor, cutoff: int | None) -> Tensor:
        """The best DCG that each group can have; 1 where it is 0."""
        others_PD = gains_P[self.other_PD]
        place_P = torch.arange(gains_P.shape[0], device=gains_P.device)
        # whichever of several equal gains comes first, their sum is the same
        first_PD = (others_PD == gains_P[:, None]) & (self.other_PD < place_P[:, None])
        first_PD |= others_PD > gains_P[:, None]
        rank_P = 1 + (self.valid_PD & first_PD).sum(1)
        terms_P = gains_P / torch.log2(1 + rank_P.to(gains_P.dtype))
        if cutoff is not None:
            terms_P = torch.where(rank_P <= cutoff, terms_P, 0.0)
        ideal_Q = group_sum(terms_P, self.group_P, self.num_groups)
        return torch.where(ideal_Q > 0, ideal_Q, 1.0)


def _pairs(offsets_Q: Tensor, num_pairs: int, largest: int | None) -> _Pairs:
    group_P = group_index(offsets_Q, num_pairs)
    starts_P1 = offsets_Q[:-1][group_P][:, None]
    ends_P1 = offsets_Q[1:][group_P][:, None]
    width = num_pairs if largest is None else largest
    other_PD = starts_P1 + torch.arange(width, device=offsets_Q.device)
    valid_PD = other_PD < ends_P1
    # what is no document stands for the group's first, whose differences are finite
    other_PD = torch.where(valid_PD, other_PD, starts_P1)
    return _Pairs(other_PD, valid_PD, group_P, offsets_Q.shape[0] - 1)


def _over_groups(loss_Q: Tensor, usable_Q: Tensor) -> LossSum:
    return LossSum(torch.where(usable_Q, loss_Q, 0.0).sum(), usable_Q.sum().to(loss_Q.dtype))


def ranknet(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    largest: int | None = None,
    sigma: float = 1.0,
) -> LossSum:
    r"""Cross-entropy of each pair's order (RankNet): :math:`-\log\sigma(\sigma_0(s_i - s_j))`.

    A term is a pair of documents of one group with :math:`y_i > y_j` (Burges et al. 2005 with
    target probability 1). Pairs of equal labels, to which they give the target 1/2, are left out.

    Args:
        scores_P: logits.
        labels_P: any labels, graded or soft; only their order counts.
        offsets_Q: group offsets.
        largest: documents of the largest group, see the module.
        sigma: :math:`\sigma_0`, the scale of score differences, above 0.

    Returns:
        The sum over ordered pairs of documents and their number.
    """
    scores_P = _full_precision(scores_P)
    pairs = _pairs(offsets_Q, scores_P.shape[0], largest)
    better_PD = pairs.better(labels_P)
    loss_PD = -F.logsigmoid(sigma * pairs.differences(scores_P))
    total = torch.where(better_PD, loss_PD, 0.0).sum()
    return LossSum(total, better_PD.sum().to(scores_P.dtype))


def margin_mse(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    teacher_P: Tensor,
    largest: int | None = None,
) -> LossSum:
    r"""Squared error of each margin against the teacher's: :math:`((s_i - s_j) - (t_i - t_j))^2`.

    A term is a pair of documents of one group with :math:`y_i > y_j`: every positive with every
    negative, and higher grades with lower ones (Hofstätter et al. 2020, whose training examples
    hold one such pair each).

    Args:
        scores_P: logits.
        labels_P: any labels, graded or soft; only their order counts.
        offsets_Q: group offsets.
        teacher_P: the teacher's logits, on the scale that the scores are to have.
        largest: documents of the largest group, see the module.

    Returns:
        The sum over ordered pairs of documents and their number.
    """
    scores_P = _full_precision(scores_P)
    pairs = _pairs(offsets_Q, scores_P.shape[0], largest)
    better_PD = pairs.better(labels_P)
    errors_PD = pairs.differences(scores_P - teacher_P.to(scores_P.dtype))
    total = torch.where(better_PD, errors_PD.square(), 0.0).sum()
    return LossSum(total, better_PD.sum().to(scores_P.dtype))


def lambda_loss(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    largest: int | None = None,
    sigma: float = 1.0,
    lambda_mu: float = 10.0,
    ndcg_cutoff: int | None = None,
) -> LossSum:
    r"""Pairs weighted by what their order is worth in NDCG (LambdaLoss, NDCG-Loss2++).

    :math:`\sum_{y_i > y_j} (\rho_{ij} + \mu\,\delta_{ij}) \frac{y_i - y_j}{\mathrm{maxDCG}}
    \log_2(1 + e^{-\sigma_0 (s_i - s_j)})` with :math:`\rho_{ij} = |1/D_{r_i} - 1/D_{r_j}|`,
    :math:`\delta_{ij} = |1/D_{|r_i - r_j|} - 1/D_{|r_i - r_j| + 1}|`,
    :math:`D_r = \log_2(1 + r)` and ``r`` the places by the present scores, through which no
    gradient passes (Wang et al. 2018, section 5). ``lambda_mu=0`` gives LambdaRank's weights
    (Burges et al. 2006).

    The gain is the label itself, as in our ``ndcg``; the paper's is :math:`2^y - 1`, the same for
    labels 0 and 1. Documents of equal scores share the mean of their places, so the value does not
    depend on the order of the row.

    Args:
        scores_P: logits.
        labels_P: non-negative labels, graded or soft.
        offsets_Q: group offsets.
        largest: documents of the largest group, see the module.
        sigma: :math:`\sigma_0`, the scale of score differences, above 0.
        lambda_mu: :math:`\mu`, 0 or above.
        ndcg_cutoff: ``k`` of NDCG@k: only pairs with a document in the first ``k`` places count
            (the paper's equation 18), and maxDCG is that of ``k`` places. None for all.

    Returns:
        The sum over groups that hold different labels, and their number.
    """
    scores_P = _full_precision(scores_P)
    labels_P = labels_P.to(scores_P.dtype)
    pairs = _pairs(offsets_Q, scores_P.shape[0], largest)
    better_PD = pairs.better(labels_P)
    fixed_P = scores_P.detach()
    rank_P = pairs.ranks(fixed_P)
    gain_P = labels_P / pairs.ideal_dcg(labels_P, ndcg_cutoff)[pairs.group_P]
    distance_PD = pairs.differences(rank_P).abs().clamp(min=1)
    weight_PD = pairs.differences(1 / torch.log2(1 + rank_P)).abs()
    weight_PD = weight_PD + lambda_mu * (
        1 / torch.log2(1 + distance_PD) - 1 / torch.log2(2 + distance_PD)
    )
    weight_PD = weight_PD * pairs.differences(gain_P)
    counted_PD = better_PD
    if ndcg_cutoff is not None:
        # of tied documents each may be the first
        above_PD = pairs.valid_PD & (pairs.differences(fixed_P) < 0)
        within_P = above_PD.sum(1) < ndcg_cutoff
        counted_PD = better_PD & (within_P[:, None] | within_P[pairs.other_PD])
    loss_PD = -F.logsigmoid(sigma * pairs.differences(scores_P)) / math.log(2)
    loss_P = torch.where(counted_PD, weight_PD * loss_PD, 0.0).sum(1)
    loss_Q = group_sum(loss_P, pairs.group_P, pairs.num_groups)
    return _over_groups(loss_Q, pairs.any(better_PD))


def listmle(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    largest: int | None = None,
) -> LossSum:
    r"""Negative log-likelihood of the labels' order under the scores (ListMLE).

    :math:`\sum_i \log(1 + \sum_{y_j < y_i} e^{s_j - s_i})`: each document comes first among itself
    and all documents of lower labels. Where all labels differ this is the Plackett-Luce likelihood
    of Xia et al. 2008. Documents of equal labels do not compete with each other, so the order of
    the row does not matter; the value is then an upper bound of the negative log-likelihood that
    every document stands above those of lower labels, in whatever order among its equals.

    Args:
        scores_P: logits.
        labels_P: any labels, graded or soft; only their order counts.
        offsets_Q: group offsets.
        largest: documents of the largest group, see the module.

    Returns:
        The sum over groups that hold different labels, and their number.
    """
    scores_P = _full_precision(scores_P)
    pairs = _pairs(offsets_Q, scores_P.shape[0], largest)
    better_PD = pairs.better(labels_P)
    below_PD = torch.where(better_PD, -pairs.differences(scores_P), float("-inf"))
    itself_P1 = scores_P.new_zeros((scores_P.shape[0], 1))
    loss_P = torch.logsumexp(torch.cat([itself_P1, below_PD], dim=1), dim=1)
    loss_Q = group_sum(loss_P, pairs.group_P, pairs.num_groups)
    return _over_groups(loss_Q, pairs.any(better_PD))


def approx_ndcg(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    largest: int | None = None,
    temperature: float = 1.0,
) -> LossSum:
    r"""One minus a smooth NDCG (ApproxNDCG).

    :math:`1 - \frac{1}{\mathrm{maxDCG}} \sum_i \frac{y_i}{\log_2(1 + \pi_i)}` with
    :math:`\pi_i = 1 + \sum_{j \ne i} \sigma((s_j - s_i)/T)` (Qin et al. 2010, whose :math:`\alpha`
    is :math:`1/T`). The gain is the label itself, as in our ``ndcg``; theirs is :math:`2^y - 1`.

    Args:
        scores_P: logits.
        labels_P: non-negative labels, graded or soft.
        offsets_Q: group offsets.
        largest: documents of the largest group, see the module.
        temperature: ``T``, above 0; the lower, the nearer to NDCG and the smaller the gradients of
            documents far apart.

    Returns:
        The sum over groups that hold different labels, and their number.
    """
    scores_P = _full_precision(scores_P)
    labels_P = labels_P.to(scores_P.dtype)
    pairs = _pairs(offsets_Q, scores_P.shape[0], largest)
    dcg_P = labels_P / torch.log2(1 + pairs.soft_ranks(scores_P, temperature))
    dcg_Q = group_sum(dcg_P, pairs.group_P, pairs.num_groups)
    loss_Q = 1 - dcg_Q / pairs.ideal_dcg(labels_P, None)
    return _over_groups(loss_Q, pairs.any(pairs.better(labels_P)))


def adr_mse(
    scores_P: Tensor,
    labels_P: Tensor,
    offsets_Q: Tensor,
    *,
    teacher_P: Tensor,
    largest: int | None = None,
    temperature: float = 1.0,
) -> LossSum:
    r"""Squared error of smooth ranks against the teacher's ranks, discounted (ADR-MSE).

    :math:`\frac{1}{D} \sum_i \frac{(r_i - \pi_i)^2}{\log_2(1 + r_i)}` with ``r`` the places by the
    teacher's scores and :math:`\pi_i = 1 + \sum_{j \ne i} \sigma((s_j - s_i)/T)` (Schlatt et al.
    2025, Rank-DistiLLM). Documents of equal teacher scores share the mean of their places.

    Args:
        scores_P: logits.
        labels_P: not used, so rows without any judgement will do.
        offsets_Q: group offsets.
        teacher_P: the teacher's scores, or any numbers in its order; only the order counts.
        largest: documents of the largest group, see the module.
        temperature: ``T``, above 0.

    Returns:
        The sum over groups of at least two documents, and their number.
    """
    del labels_P
    scores_P = _full_precision(scores_P)
    pairs = _pairs(offsets_Q, scores_P.shape[0], largest)
    target_P = pairs.ranks(teacher_P.to(scores_P.dtype))
    error_P = (target_P - pairs.soft_ranks(scores_P, temperature)).square()
    size_Q = offsets_Q[1:] - offsets_Q[:-1]
    loss_Q = group_sum(error_P / torch.log2(1 + target_P), pairs.group_P, pairs.num_groups)
    return _over_groups(loss_Q / size_Q.clamp(min=1), size_Q >= 2)


Needs = Literal["one", "two", "both"]


@dataclass(frozen=True)
class Loss:
    """A row of ``LOSSES``.

    Attributes:
        function: ``(scores_P, labels_P, offsets_Q, **options) -> LossSum``.
        options: names of the keyword options that the arguments may set, see ``OPTIONS``.
        needs: what a group must hold to be a term: a document, two of them, or a positive and a
            negative (of graded labels two that differ).
        summary: one line for the help.
        probability_labels: whether labels must lie in [0, 1].
        teacher: whether it takes ``teacher_P``.
        pairs: whether it takes ``largest``, the documents of the largest group.
        by_document: whether each document is a term by itself, whatever its group holds.
    """

    function: Callable[..., LossSum]
    options: tuple[str, ...]
    needs: Needs
    summary: str
    probability_labels: bool = False
    teacher: bool = False
    pairs: bool = False
    by_document: bool = False

    def __call__(
        self,
        scores_P: Tensor,
        labels_P: Tensor,
        offsets_Q: Tensor,
        *,
        teacher_P: Tensor | None = None,
        largest: int | None = None,
        **options: Any,
    ) -> LossSum:
        """Compute the loss; what the function does not take is left aside."""
        if self.teacher:
            assert teacher_P is not None
            options["teacher_P"] = teacher_P
        if self.pairs:
            options["largest"] = largest
        return self.function(scores_P, labels_P, offsets_Q, **options)


LOSSES: dict[str, Loss] = {
    "pointwise": Loss(
        pointwise,
        ("pos_weight",),
        "one",
        "binary cross-entropy of each (query, document) pair",
        probability_labels=True,
        by_document=True,
    ),
    "listwise": Loss(
        listwise,
        ("temperature", "min_group_size"),
        "both",
        "softmax cross-entropy over a query's candidates",
    ),
    "listwise_generative": Loss(
        listwise_generative,
        ("temperature", "min_group_size"),
        "both",
        "listwise over log P(yes), as ms-swift documented it",
    ),
    "listnet": Loss(
        listnet,
        ("temperature", "min_group_size"),
        "both",
        "softmax of scores against softmax of graded labels",
    ),
    "listmle": Loss(listmle, (), "both", "likelihood of the labels' order", pairs=True),
    "ranknet": Loss(ranknet, ("sigma",), "both", "cross-entropy of each pair's order", pairs=True),
    "lambda_loss": Loss(
        lambda_loss,
        ("sigma", "lambda_mu", "ndcg_cutoff"),
        "both",
        "ranknet weighted by what a pair's order is worth in NDCG",
        pairs=True,
    ),
    "approx_ndcg": Loss(approx_ndcg, ("temperature",), "both", "a smooth NDCG", pairs=True),
    "kl": Loss(
        kl,
        ("temperature", "teacher_temperature", "min_group_size"),
        "two",
        "divergence from the teacher's softmax over a query's candidates",
        teacher=True,
    ),
    "margin_mse": Loss(
        margin_mse,
        (),
        "both",
        "squared error of each margin against the teacher's",
        teacher=True,
        pairs=True,
    ),
    "adr_mse": Loss(
        adr_mse,
        ("temperature",),
        "two",
        "squared error of smooth ranks against the teacher's",
        teacher=True,
        pairs=True,
    ),
}

ALIASES: dict[str, str] = {
    "pointwise_reranker": "pointwise",
    "listwise_reranker": "listwise",
    "generative_reranker": "pointwise",
    "listwise_generative_reranker": "listwise_generative",
}


@dataclass(frozen=True)
class Option:
    """What an option of a loss may be.

    Attributes:
        kind: float, or int.
        least: its least value.
        open: whether the least value itself is too low.
    """

    kind: type[int] | type[float]
    least: float
    open: bool = False

    def problem(self, value: float) -> str | None:
        """What is wrong with a value, in words; None where it is allowed."""
        if self.kind is int:
            return None if value >= self.least else f"is less than {self.least:g}"
        fits = value > self.least if self.open else value >= self.least
        if fits and value < math.inf:
            return None
        return f"is not a number above {self.least:g}" + ("" if self.open else " or equal to it")


OPTIONS: dict[str, Option] = {
    "temperature": Option(float, 0, open=True),
    "teacher_temperature": Option(float, 0, open=True),
    "min_group_size": Option(int, 1),
    "pos_weight": Option(float, 0, open=True),
    "sigma": Option(float, 0, open=True),
    "lambda_mu": Option(float, 0),
    "ndcg_cutoff": Option(int, 1),
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
