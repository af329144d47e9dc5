"""Losses against sentence-transformers' own, values and gradients, where both mean the same.

Its losses are called themselves, over a stand-in for the CrossEncoder whose scores are given; they
compute in float32. What differs in meaning is shown by what makes the two equal.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rankwright.losses import LOSSES, LossSum

losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")

SIZES = (3, 2, 6, 4, 1)


class Scores(nn.Module):
    """Stands where the losses expect a CrossEncoder: the text of a document says its place."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores_P: Tensor) -> None:
        super().__init__()
        self.scores_P = scores_P

    def preprocess(self, pairs: Sequence[tuple[str, str]], **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        scores = self.scores_P[features["input_ids"]]
        return {"scores": scores if scores.ndim == 2 else scores[:, None]}


def build(name: str, scores_P: Tensor, **options: Any) -> nn.Module:
    """One of its losses; some constructors insist on a real CrossEncoder, which none needs."""
    loss = getattr(losses, name)
    module = sys.modules[loss.__module__]
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "CrossEncoder"):
            patch.setattr(module, "CrossEncoder", Scores)
        found: nn.Module = loss(Scores(scores_P), **options)
    return found


def lists(offsets_Q: Tensor) -> list[list[Any]]:
    """The inputs of its listwise losses."""
    bounds = list(itertools.pairwise(offsets_Q.tolist()))
    return [["q"] * len(bounds), [[str(p) for p in range(a, b)] for a, b in bounds]]


def split(values_P: Tensor, offsets_Q: Tensor) -> list[Tensor]:
    return list(values_P.split(offsets_Q.diff().tolist()))


def batch(sizes: Sequence[int] = SIZES, *, grades: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Scores without ties and labels from 0 to ``grades``, none alike in groups of two or more."""
    generator = torch.Generator().manual_seed(sum(sizes) + grades)
    scores_P = 2 * torch.randn(sum(sizes), generator=generator)
    labels = [torch.arange(size).remainder(grades + 1).flip(0) for size in sizes]
    labels = [label[torch.randperm(len(label), generator=generator)] for label in labels]
    offsets_Q = torch.tensor([0, *itertools.accumulate(sizes)])
    return scores_P.requires_grad_(), torch.cat(labels).float(), offsets_Q


def agree(scores_P: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Equal values, and equal gradients that are not zero."""
    assert_close(ours, theirs, rtol=2e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, scores_P)[0] for loss in (ours, theirs)]
    assert gradients[1].abs().max() > 1e-3
    assert_close(*gradients, rtol=2e-5, atol=1e-6)


def mean(loss: LossSum) -> Tensor:
    return loss.total / loss.count


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_binary_cross_entropy(weight: float) -> None:
    """Both are the mean over pairs, soft labels and the weight of positives included."""
    scores_P, _, offsets_Q = batch()
    labels_P = torch.linspace(0, 1, len(scores_P))
    theirs = build("BinaryCrossEntropyLoss", scores_P, pos_weight=torch.tensor(weight))
    inputs = [["q"] * len(scores_P), [str(p) for p in range(len(scores_P))]]
    ours = LOSSES["pointwise"](scores_P, labels_P, offsets_Q, pos_weight=weight)
    agree(scores_P, mean(ours), theirs(inputs, labels_P))


def test_cross_entropy() -> None:
    """Its classes of a pair: two with logits (0, s) are binary, the documents of a query a list."""
    scores_P, labels_P, offsets_Q = batch()
    logits_P2 = torch.stack([torch.zeros_like(scores_P), scores_P], dim=1)
    inputs = [["q"] * len(scores_P), [str(p) for p in range(len(scores_P))]]
    theirs = build("CrossEntropyLoss", logits_P2)(inputs, labels_P.long())
    agree(scores_P, mean(LOSSES["pointwise"](scores_P, labels_P, offsets_Q)), theirs)

    scores_QD = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    positive_Q = torch.tensor([0, 3, 4, 1])
    theirs = build("CrossEntropyLoss", scores_QD)([["q"] * 4, list("0123")], positive_Q)
    labels_P = torch.eye(5)[positive_Q].flatten()
    ours = LOSSES["listwise"](scores_QD.flatten(), labels_P, torch.arange(0, 21, 5))
    agree(scores_QD, mean(ours), theirs)


def test_multiple_negatives() -> None:
    """Every other document of the batch as a negative: listwise over the whole table of scores.

    Theirs puts a sigmoid and a scale of 10 before the softmax unless told otherwise; a scale is one
    over our temperature. Documents of a query are its positive and a hard negative.
    """
    queries = 4
    scores = torch.randn(queries, 2 * queries, generator=torch.Generator().manual_seed(2))
    scores.requires_grad_()
    theirs = build(
        "MultipleNegativesRankingLoss", scores, num_negatives=None, scale=4, activation_fn=None
    )
    theirs.call_model_with_pairs = lambda pairs, **kwargs: torch.stack(
        [scores[int(query), int(document)] for query, document in pairs]
    )
    columns = [[str(q) for q in range(a, a + queries)] for a in (0, queries)]
    value = theirs([[str(q) for q in range(queries)], *columns], torch.tensor([]))
    # what is not in a query's list there: the other positives and hard negatives are, all of them
    labels_P = torch.eye(queries, 2 * queries).flatten()
    offsets_Q = torch.arange(0, scores.numel() + 1, 2 * queries)
    ours = LOSSES["listwise"](scores.flatten(), labels_P, offsets_Q, temperature=0.25)
    agree(scores, mean(ours), value)


@pytest.mark.parametrize("grades", [1, 3])
def test_list_net(grades: int) -> None:
    """The same target, softmax(y). Theirs also counts groups of equal labels, here one of one."""
    scores_P, labels_P, offsets_Q = batch(grades=grades)
    theirs = build("ListNetLoss", scores_P)(lists(offsets_Q), split(labels_P, offsets_Q))
    ours = LOSSES["listnet"](scores_P, labels_P, offsets_Q)
    assert ours.count == len(SIZES) - 1
    agree(scores_P, ours.total / len(SIZES), theirs)


def test_listwise_is_list_net_of_logarithms() -> None:
    """softmax(log t) = t: with these labels its target is ours, y / sum y."""
    scores_P, labels_P, offsets_Q = batch(grades=3)
    ours = LOSSES["listwise"](scores_P, labels_P, offsets_Q)
    # the last group, of one document without a positive, is no term of ours
    targets = [label / label.sum() for label in split(labels_P, offsets_Q)[:-1]]
    theirs = build("ListNetLoss", scores_P)(
        lists(offsets_Q[:-1]), [target.log() for target in targets]
    )
    agree(scores_P, mean(ours), theirs)


def test_list_mle() -> None:
    """The Plackett-Luce likelihood where all labels of a group differ.

    Theirs takes the row's order for the labels' unless told otherwise, and counts a group of one.
    """
    scores_P, labels_P, offsets_Q = batch(grades=9)
    theirs = build("ListMLELoss", scores_P, respect_input_order=False)
    ours = LOSSES["listmle"](scores_P, labels_P, offsets_Q)
    value = theirs(lists(offsets_Q), split(labels_P, offsets_Q))
    assert ours.count == len(SIZES) - 1
    agree(scores_P, ours.total / len(SIZES), value)


def test_list_mle_of_ties() -> None:
    """One positive, first in the row: theirs also has the negatives follow in the row's order.

    Without what it gives for the negatives alone it is ours.
    """
    scores_P, _, _ = batch((5,))
    labels_P, offsets_Q = torch.tensor([1.0, 0, 0, 0, 0]), torch.tensor([0, 5])
    theirs = build("ListMLELoss", scores_P)
    whole = theirs(lists(offsets_Q), [labels_P])
    rest = theirs([["q"], [["1", "2", "3", "4"]]], [labels_P[1:]])
    ours = LOSSES["listmle"](scores_P, labels_P, offsets_Q)
    assert rest > 0.1
    agree(scores_P, mean(ours), whole - rest)


@pytest.mark.parametrize("grades", [1, 3])
@pytest.mark.parametrize("sigma", [1.0, 0.6])
def test_rank_net(grades: int, sigma: float) -> None:
    """The mean over the batch's pairs with y_i > y_j; its logarithm is to base 2 unless told."""
    scores_P, labels_P, offsets_Q = batch(grades=grades)
    given = lists(offsets_Q), split(labels_P, offsets_Q)
    for options, scale in (({"reduction_log": "natural"}, 1.0), ({}, math.log(2))):
        theirs = build("RankNetLoss", scores_P, sigma=sigma, **options)(*given)
        ours = LOSSES["ranknet"](scores_P, labels_P, offsets_Q, sigma=sigma)
        agree(scores_P, mean(ours), scale * theirs)


def counted(scores_P: Tensor, labels_P: Tensor, offsets_Q: Tensor, cutoff: int | None) -> int:
    """Pairs with y_i > y_j of which one stands in the first ``cutoff`` places."""
    number = 0
    for s, y in zip(split(scores_P, offsets_Q), split(labels_P, offsets_Q), strict=True):
        rank = 1 + (s[None] > s[:, None]).sum(1)
        within = rank <= (cutoff or len(s))
        number += int(((y[:, None] > y[None]) & (within[:, None] | within[None])).sum())
    return number


@pytest.mark.parametrize("cutoff", [None, 2])
@pytest.mark.parametrize("scheme", ["LambdaRank", "NDCGLoss2", "NDCGLoss2PP"])
@pytest.mark.parametrize("grades", [1, 3])
def test_lambda_loss(grades: int, scheme: str, cutoff: int | None) -> None:
    """NDCG-Loss2++ is rho + mu delta, LambdaRank rho alone, NDCG-Loss2 delta alone.

    Theirs has the gain 2^y - 1, so ours is given these as labels, whose order is the same. Theirs
    divides the sum by the number of pairs in the batch, ours by that of groups.
    """
    scores_P, labels_P, offsets_Q = batch(grades=grades)
    options = {"mu": 7.0} if scheme == "NDCGLoss2PP" else {}
    weights = getattr(losses, f"{scheme}Scheme")(**options)
    theirs = build("LambdaLoss", scores_P, weighting_scheme=weights, k=cutoff, sigma=0.6)
    value = theirs(lists(offsets_Q), split(labels_P, offsets_Q))

    def ours(mu: float) -> Tensor:
        gains_P = 2**labels_P - 1
        return LOSSES["lambda_loss"](
            scores_P, gains_P, offsets_Q, sigma=0.6, lambda_mu=mu, ndcg_cutoff=cutoff
        ).total

    total = {"LambdaRank": ours(0), "NDCGLoss2": ours(1) - ours(0), "NDCGLoss2PP": ours(7)}[scheme]
    agree(scores_P, total, value * counted(scores_P, labels_P, offsets_Q, cutoff))


def test_margin_mse() -> None:
    """One positive and its negatives, the teacher's scores as labels: the mean over all margins."""
    scores_P, _, _ = batch((4,) * 3)
    teacher_P = torch.randn(12, generator=torch.Generator().manual_seed(4))
    labels_P = torch.tensor([1.0, 0, 0, 0] * 3)
    ours = LOSSES["margin_mse"](
        scores_P, labels_P, torch.tensor([0, 4, 8, 12]), teacher_P=teacher_P
    )
    columns = [[str(4 * q + d) for q in range(3)] for d in range(4)]
    theirs = build("MarginMSELoss", scores_P)
    agree(scores_P, mean(ours), theirs([["q"] * 3, *columns], list(teacher_P.view(3, 4))))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_adr_mse(alpha: float, ties: bool) -> None:
    """Its alpha is one over our temperature; tied teacher scores share their places in both.

    Theirs is the mean over the documents of the batch, ours over those of a group, then over
    groups: weighed by the sizes they are the same.
    """
    sizes = (3, 2, 6)
    scores_P, _, offsets_Q = batch(sizes)
    teacher_P = torch.randn(11, generator=torch.Generator().manual_seed(5))
    teacher_P = teacher_P.round() if ties else teacher_P
    assert (len(set(teacher_P[5:].tolist())) < 6) == ties
    theirs = build("ADRMSELoss", scores_P, alpha=alpha)
    value = theirs(lists(offsets_Q), split(teacher_P, offsets_Q))
    total = torch.zeros(())
    for size, start in zip(sizes, offsets_Q.tolist(), strict=False):
        part = slice(start, start + size)
        ours = LOSSES["adr_mse"](
            scores_P[part],
            torch.zeros(size),
            torch.tensor([0, size]),
            teacher_P=teacher_P[part],
            temperature=1 / alpha,
        )
        total = total + size * ours.total
    agree(scores_P, total / sum(sizes), value)
