"""Losses against hand derivations, the peers' formulas on the same scores, and their laws."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rankwright.arguments import LossArguments
from rankwright.errors import ConfigError
from rankwright.losses import ALIASES, LOSSES, OPTIONS, LossSum, find_loss, group_log_softmax

LOG2, LOG3 = math.log(2), math.log(3)
LISTWISE = ("listwise", "listwise_generative")


def run(
    name: str,
    groups: Sequence[Sequence[float]] | Tensor,
    labels: Sequence[Sequence[float]] | Tensor,
    offsets: Sequence[int] | None = None,
    teacher: Sequence[Sequence[float]] | None = None,
    **options: Any,
) -> LossSum:
    """The loss of groups written as lists, in float64."""
    if teacher is not None:
        options["teacher_P"] = _flat(teacher)
    if offsets is None:
        sizes = [len(group) for group in groups]
        offsets = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return LOSSES[name](_flat(groups), _flat(labels), torch.tensor(offsets), **options)


def _flat(values: Sequence[Sequence[float]] | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values
    return torch.tensor([v for group in values for v in group], dtype=torch.float64)


def batch(seed: int = 0, sizes: Sequence[int] = (3, 1, 5, 2, 4)) -> tuple[Tensor, Tensor, Tensor]:
    """Random scores and graded labels in [0, 1].

    The second group has one document, the fourth has no positive.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    scores_P = 3 * torch.randn(total, dtype=torch.float64, generator=generator)
    labels_P = torch.randint(0, 3, (total,), generator=generator).double() / 2
    offsets_Q = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    labels_P[offsets_Q[:-1]] = 1.0
    labels_P[offsets_Q[3] : offsets_Q[4]] = 0.0
    return scores_P, labels_P, offsets_Q


def teacher_of(scores_P: Tensor) -> Tensor:
    """Scores of a teacher, moved along with those they are made of."""
    return 2 * torch.sin(3 * scores_P.detach())


def compute(
    name: str, scores_P: Tensor, labels_P: Tensor, offsets_Q: Tensor, **options: Any
) -> LossSum:
    """The loss with a teacher, where it takes one."""
    options.setdefault("teacher_P", teacher_of(scores_P))
    return LOSSES[name](scores_P, labels_P, offsets_Q, **options)


# --- hand derivations: one test per entry, named test_hand_<entry> ---------------------------


def test_hand_pointwise() -> None:
    """-w y log sigmoid(s) - (1 - y) log(1 - sigmoid(s)).

    sigmoid(log 3) = 3/4, sigmoid(0) = 1/2.
    s = log 3, y = 1: log 4/3. s = 0, any y: log 2. s = log 3, y = 0: log 4. The sum of the three is
    log 4/3 + log 2 + log 4 = log 32/3, the count 3.
    With w = 3: the first is 3 log 4/3, the others (y = 0) stay.
    Soft y = 1/4 at s = log 3: (1/4) log 4/3 + (3/4) log 4 = log 4 - (1/4) log 3.
    """
    total, count = run("pointwise", [[LOG3, 0.0], [LOG3]], [[1, 0], [0]])
    assert total.item() == pytest.approx(math.log(32 / 3), abs=1e-14)
    assert count.item() == 3
    total, count = run("pointwise", [[LOG3, 0.0], [LOG3]], [[1, 0], [0]], pos_weight=3.0)
    assert total.item() == pytest.approx(3 * math.log(4 / 3) + math.log(8), abs=1e-14)
    assert count.item() == 3
    total, _ = run("pointwise", [[LOG3]], [[0.25]])
    assert total.item() == pytest.approx(math.log(4) - LOG3 / 4, abs=1e-14)


def test_hand_listwise() -> None:
    """-sum_d t_d log softmax(s / T)_d, t = y / sum y.

    s = (log 2, 0, 0): softmax 1/2, 1/4, 1/4. y = (1, 0, 0): log 2.
    y = (1, 0, 1), t = (1/2, 0, 1/2): (1/2) log 2 + (1/2) log 4 = (3/2) log 2.
    y = (3, 1, 0), t = (3/4, 1/4, 0): (3/4) log 2 + (1/4) log 4 = (5/4) log 2.
    s = (log 4, 0, 0) with T = 2 is the first again: log 2.
    Together with a group s = (0, 0), y = (0, 1), which is log 2: 2 log 2 over 2 terms.
    """
    s = [LOG2, 0.0, 0.0]
    for labels, expected in (([1, 0, 0], 1), ([1, 0, 1], 3 / 2), ([3, 1, 0], 5 / 4)):
        total, count = run("listwise", [s], [labels])
        assert total.item() == pytest.approx(expected * LOG2, abs=1e-14)
        assert count.item() == 1
    total, _ = run("listwise", [[2 * LOG2, 0, 0]], [[1, 0, 0]], temperature=2.0)
    assert total.item() == pytest.approx(LOG2, abs=1e-14)
    total, count = run("listwise", [s, [0, 0]], [[1, 0, 0], [0, 1]])
    assert total.item() == pytest.approx(2 * LOG2, abs=1e-14)
    assert count.item() == 2


def test_hand_listwise_generative() -> None:
    """log sigmoid(s) in place of s: softmax(log p / T) is p^(1/T) over its sum.

    s = (log 3, 0, -log 3): p = 3/4, 1/2, 1/4, softmax = 1/2, 1/3, 1/6.
    y = (1, 0, 0): log 2. y = (0, 0, 1): log 6. y = (0, 1, 1): (log 3 + log 6) / 2.
    T = 1/2: p^2 = 9/16, 4/16, 1/16, softmax = 9/14, 4/14, 1/14; y = (1, 0, 0): log 14/9.
    """
    s = [LOG3, 0.0, -LOG3]
    cases: list[tuple[list[float], float, float]] = [
        ([1, 0, 0], 1.0, 2.0),
        ([0, 0, 1], 1.0, 6.0),
        ([0, 1, 1], 1.0, math.sqrt(18)),
        ([1, 0, 0], 0.5, 14 / 9),
    ]
    for labels, temperature, odds in cases:
        total, count = run("listwise_generative", [s], [labels], temperature=temperature)
        assert total.item() == pytest.approx(math.log(odds), abs=1e-14)
        assert count.item() == 1


def test_hand_listnet() -> None:
    """-sum_d softmax(y)_d log softmax(s / T)_d.

    y = (log 2, 0, 0): softmax 1/2, 1/4, 1/4. s = (0, log 2, 0): softmax 1/4, 1/2, 1/4.
    (1/2) log 4 + (1/4) log 2 + (1/4) log 4 = (7/4) log 2. At s = y: the entropy, (3/2) log 2.
    s = (0, log 4, 0) with T = 2 is the first again. Equal labels are no term.
    """
    y = [LOG2, 0.0, 0.0]
    total, count = run("listnet", [[0, LOG2, 0]], [y])
    assert total.item() == pytest.approx(7 / 4 * LOG2, abs=1e-14)
    assert count.item() == 1
    assert run("listnet", [y], [y]).total.item() == pytest.approx(3 / 2 * LOG2, abs=1e-14)
    total, count = run("listnet", [[0, 2 * LOG2, 0], [1, 2]], [y, [1, 1]], temperature=2.0)
    assert total.item() == pytest.approx(7 / 4 * LOG2, abs=1e-14)
    assert count.item() == 1
    assert run("listnet", [y], [y], min_group_size=4) == (0, 0)


def test_hand_kl() -> None:
    """T^2 sum_d p_d (log p_d - log softmax(s / T)_d), p = softmax(t / T_t).

    t = (log 2, 0, 0): p = 1/2, 1/4, 1/4. s = (0, log 2, 0): 1/4, 1/2, 1/4.
    (1/2) log 2 + (1/4) log(1/2) + 0 = (1/4) log 2. At s = t, or t plus a constant, it is 0.
    Both doubled with T = 2: 4 times (1/4) log 2 = log 2. With T = 2 and T_t = 1 for the first t and
    s = (0, log 4, 0): the same log 2. One document is no term.
    """
    t, s = [LOG2, 0.0, 0.0], [0.0, LOG2, 0.0]
    none = [[0.0] * 3]
    total, count = run("kl", [s], none, teacher=[t])
    assert total.item() == pytest.approx(LOG2 / 4, abs=1e-14)
    assert count.item() == 1
    assert run("kl", [[5 + LOG2, 5, 5]], none, teacher=[t]).total.item() == pytest.approx(
        0, abs=1e-14
    )
    doubled = [0, 2 * LOG2, 0]
    for teacher, options in (([2 * LOG2, 0, 0], {}), (t, {"teacher_temperature": 1.0})):
        total, _ = run("kl", [doubled], none, teacher=[teacher], temperature=2.0, **options)
        assert total.item() == pytest.approx(LOG2, abs=1e-14)
    total, count = run("kl", [s, [3.0]], [[0.0] * 3, [1]], teacher=[t, [1.0]])
    assert total.item() == pytest.approx(LOG2 / 4, abs=1e-14)
    assert count.item() == 1
    assert run("kl", [s, [3.0]], [[0.0] * 3, [1]], teacher=[t, [1.0]], min_group_size=1).count == 2


def test_hand_ranknet() -> None:
    """-log sigmoid(sigma (s_i - s_j)) over pairs with y_i > y_j.

    s = (log 3, 0, 0), y = (1, 0, 0): two pairs of -log 3/4: 2 log 4/3.
    y = (0, 1, 2), s = (log 3, 0, 0): (2 over 1) at difference 0: log 2; (2 over 0) and (1 over 0)
    at -log 3: -log 1/4 each. Together log 2 + 2 log 4 = 5 log 2 over 3 pairs.
    With sigma 2 and half the scores: the same. Equal labels are no pair.
    """
    total, count = run("ranknet", [[LOG3, 0, 0], [1, 2]], [[1, 0, 0], [1, 1]])
    assert total.item() == pytest.approx(2 * math.log(4 / 3), abs=1e-14)
    assert count.item() == 2
    total, count = run("ranknet", [[LOG3 / 2, 0, 0]], [[0, 1, 2]], sigma=2.0)
    assert total.item() == pytest.approx(5 * LOG2, abs=1e-14)
    assert count.item() == 3


def test_hand_margin_mse() -> None:
    """((s_i - s_j) - (t_i - t_j))^2 over pairs with y_i > y_j.

    s = (3, 1, 0), t = (5, 4, -1), y = (1, 0, 0): (2 - 1)^2 + (3 - 6)^2 = 10 over 2 pairs.
    y = (2, 1, 0) adds the pair of the last two: (1 - 5)^2 = 16, 26 over 3.
    """
    s, t = [[3.0, 1.0, 0.0]], [[5.0, 4.0, -1.0]]
    assert run("margin_mse", s, [[1, 0, 0]], teacher=t) == (10, 2)
    assert run("margin_mse", s, [[2, 1, 0]], teacher=t) == (26, 3)
    assert run("margin_mse", s, [[1, 1, 1]], teacher=t) == (0, 0)


def test_hand_lambda_loss() -> None:
    """(rho + mu delta) (y_i - y_j) / maxDCG * log2(1 + exp(-(s_i - s_j))) over y_i > y_j.

    D_1 = log2 2 = 1, D_3 = log2 4 = 2; write d = 1/log2 3 = 1/D_2.
    s = (0, log 3, -log 3), y = (1, 0, 0): places 2, 1, 3; maxDCG = 1.
    With the second: rho = |d - 1|, delta of distance 1 = 1 - d, log2(1 + 3) = 2.
    With the third: rho = |d - 1/2|, delta = 1 - d, log2(1 + 1/3) = log2 4/3.
    mu = 0: 2 (1 - d) + (d - 1/2) log2 4/3; mu = 10 adds 10 (1 - d) (2 + log2 4/3).
    Cut at k = 1 only the pair with the document in the first place is left.
    y = (2, 1, 0), s = (0, 0, 0): all share place 2, so rho = 0, distances count as 1,
    maxDCG = 2 + d: mu (1 - d) (1 + 2 + 1) / (2 + d) times log2 2 = 1.
    """
    d = 1 / math.log2(3)
    s, y = [[0.0, LOG3, -LOG3]], [[1, 0, 0]]
    pairs = (2 * (1 - d), (d - 0.5) * math.log2(4 / 3))
    total, count = run("lambda_loss", s, y, lambda_mu=0.0)
    assert total.item() == pytest.approx(sum(pairs), abs=1e-14)
    assert count.item() == 1
    extra = 10 * (1 - d) * (2 + math.log2(4 / 3))
    assert run("lambda_loss", s, y).total.item() == pytest.approx(sum(pairs) + extra, abs=1e-13)
    total, count = run("lambda_loss", s, y, lambda_mu=0.0, ndcg_cutoff=1)
    assert total.item() == pytest.approx(pairs[0], abs=1e-14)
    assert count.item() == 1
    tied = run("lambda_loss", [[0.0, 0, 0]], [[2, 1, 0]], lambda_mu=3.0)
    assert tied.total.item() == pytest.approx(3 * (1 - d) * 4 / (2 + d), abs=1e-14)
    # each of the tied may be the first, so the cut leaves all of their pairs
    cut = run("lambda_loss", [[0.0, 0, 0]], [[2, 1, 0]], lambda_mu=3.0, ndcg_cutoff=1)
    assert cut.total.item() == pytest.approx(3 * (1 - d) * 4 / 2, abs=1e-14)


def test_hand_listmle() -> None:
    """sum_i log(1 + sum_{y_j < y_i} exp(s_j - s_i)).

    s = (log 2, 0, log 3), y = (2, 1, 0): the first before all, 2/6; then the second of two, 1/4;
    the last alone, 1: log 3 + log 4. y = (1, 0, 0): the first before all, log 3, and no more.
    y = (1, 1, 0): the first before the last, 2/5, the second before the last, 1/4: log 10.
    """
    s = [[LOG2, 0.0, LOG3]]
    for labels, odds in (([2, 1, 0], 12), ([1, 0, 0], 3), ([1, 1, 0], 10)):
        total, count = run("listmle", s, [labels])
        assert total.item() == pytest.approx(math.log(odds), abs=1e-14)
        assert count.item() == 1
    assert run("listmle", s, [[1, 1, 1]]) == (0, 0)


def test_hand_approx_ndcg() -> None:
    """1 - sum_i y_i / log2(1 + pi_i) / maxDCG, pi_i = 1 + sum_j sigmoid((s_j - s_i) / T).

    s = (log 3, 0), y = (1, 0): pi = 1 + 1/4, 1 - 1/log2(9/4). y = (0, 1): pi = 1 + 3/4.
    Equal scores of three: pi = 2 each; y = (2, 1, 0): 1 - (2 + 1) d / (2 + d), d = 1/log2 3.
    T = 2 with twice the scores is the first again.
    """
    d = 1 / math.log2(3)
    for s, labels, options, expected in (
        ([LOG3, 0], [1, 0], {}, 1 - 1 / math.log2(9 / 4)),
        ([LOG3, 0], [0, 1], {}, 1 - 1 / math.log2(11 / 4)),
        ([2 * LOG3, 0], [1, 0], {"temperature": 2.0}, 1 - 1 / math.log2(9 / 4)),
        ([1, 1, 1], [2, 1, 0], {}, 1 - 3 * d / (2 + d)),
    ):
        total, count = run("approx_ndcg", [s], [labels], **options)
        assert total.item() == pytest.approx(expected, abs=1e-14)
        assert count.item() == 1
    assert run("approx_ndcg", [[1, 2]], [[1, 1]]) == (0, 0)


def test_hand_adr_mse() -> None:
    """(1/D) sum_i (r_i - pi_i)^2 / log2(1 + r_i), pi_i = 1 + sum_j sigmoid((s_j - s_i) / T).

    t = (9, 7), s = (log 3, 0): r = 1, 2 and pi = 5/4, 7/4: (1/16 + 1/16 / log2 3) / 2.
    s = (0, log 3): pi = 7/4, 5/4: (9/16)(1 + 1/log2 3) / 2. T = 2 with twice the scores: the same.
    Equal t: r = 3/2 twice, reached by equal scores: 0. One document is no term.
    """
    d = 1 / math.log2(3)
    none = [[0.0, 0.0]]
    for s, options, expected in (
        ([LOG3, 0], {}, (1 + d) / 32),
        ([0, LOG3], {}, 9 * (1 + d) / 32),
        ([0, 2 * LOG3], {"temperature": 2.0}, 9 * (1 + d) / 32),
    ):
        total, count = run("adr_mse", [s], none, teacher=[[9, 7]], **options)
        assert total.item() == pytest.approx(expected, abs=1e-14)
        assert count.item() == 1
    assert run("adr_mse", [[1, 1]], none, teacher=[[4, 4]]) == (0, 1)
    assert run("adr_mse", [[1]], [[0]], teacher=[[4]]) == (0, 0)


# --- brute force: the definitions once more, as loops in numpy --------------------------------


def _sigmoid(x: float) -> float:
    return float(scipy.special.expit(x))


def _ranks(values: Any) -> Any:
    return scipy.stats.rankdata(-np.asarray(values), method="average")


def _soft_ranks(s: Any, temperature: float) -> list[float]:
    return [
        1 + sum(_sigmoid((s[j] - s[i]) / temperature) for j in range(len(s)) if j != i)
        for i in range(len(s))
    ]


def _dcg(gains: Sequence[float], ranks: Sequence[float]) -> float:
    return sum(g / math.log2(1 + r) for g, r in zip(gains, ranks, strict=True))


def _ordered(y: Any) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(y)) for j in range(len(y)) if y[i] > y[j]]


def _brute(name: str, s: Any, y: Any, t: Any) -> tuple[float, int]:
    """Total and count of one group, at the options of ``BRUTE``."""
    pairs = _ordered(y)
    ideal = sorted(y, reverse=True)
    places = range(1, len(y) + 1)
    if name == "listnet":
        if len(y) < 2 or not pairs:
            return 0.0, 0
        return float(-(scipy.special.softmax(y) * scipy.special.log_softmax(s / 0.7)).sum()), 1
    if name == "kl":
        if len(y) < 2:
            return 0.0, 0
        p, q = scipy.special.softmax(t / 1.3), scipy.special.softmax(s / 0.7)
        return float(0.49 * scipy.stats.entropy(p, q)), 1
    if name == "ranknet":
        return sum(-math.log(_sigmoid(0.6 * (s[i] - s[j]))) for i, j in pairs), len(pairs)
    if name == "margin_mse":
        return sum((s[i] - s[j] - t[i] + t[j]) ** 2 for i, j in pairs), len(pairs)
    if name == "lambda_loss":
        if not pairs:
            return 0.0, 0
        ranks, top = _ranks(s), _dcg(ideal[:3], list(places)[:3])
        value = 0.0
        for i, j in pairs:
            if min(1 + sum(s > s[i]), 1 + sum(s > s[j])) > 3:
                continue
            far = max(1, abs(ranks[i] - ranks[j]))
            rho = abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j]))
            delta = 1 / math.log2(1 + far) - 1 / math.log2(2 + far)
            cost = math.log2(1 + math.exp(-0.6 * (s[i] - s[j])))
            value += (rho + 4 * delta) * (y[i] - y[j]) / top * cost
        return value, 1
    if name == "listmle":
        if not pairs:
            return 0.0, 0
        value = 0.0
        for i in range(len(y)):
            below = sum(math.exp(s[j]) for j in range(len(y)) if y[j] < y[i])
            value -= math.log(math.exp(s[i]) / (math.exp(s[i]) + below))
        return value, 1
    if name == "approx_ndcg":
        if not pairs:
            return 0.0, 0
        return 1 - _dcg(y, _soft_ranks(s, 0.7)) / _dcg(ideal, list(places)), 1
    assert name == "adr_mse"
    if len(y) < 2:
        return 0.0, 0
    errors = [
        (r - soft) ** 2 / math.log2(1 + r)
        for r, soft in zip(_ranks(t), _soft_ranks(s, 0.7), strict=True)
    ]
    return sum(errors) / len(errors), 1


BRUTE: dict[str, dict[str, Any]] = {
    "listnet": {"temperature": 0.7},
    "kl": {"temperature": 0.7, "teacher_temperature": 1.3},
    "ranknet": {"sigma": 0.6},
    "margin_mse": {},
    "lambda_loss": {"sigma": 0.6, "lambda_mu": 4.0, "ndcg_cutoff": 3},
    "listmle": {},
    "approx_ndcg": {"temperature": 0.7},
    "adr_mse": {"temperature": 0.7},
}


@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 7), min_size=4, max_size=6),
    ties=st.booleans(),
    soft=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_equals_loops_over_documents(seed: int, sizes: list[int], ties: bool, soft: bool) -> None:
    """Graded and soft labels, tied scores, uneven groups; whatever bound on their size is given."""
    scores_P, labels_P, offsets_Q = batch(seed, sizes)
    if ties:
        scores_P = scores_P.round()
    if soft:
        labels_P = torch.rand(
            len(labels_P), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
    teacher_P = teacher_of(scores_P)
    arrays = [x.numpy() for x in (scores_P, labels_P, teacher_P)]
    bounds = list(itertools.pairwise(offsets_Q.tolist()))
    for name, options in BRUTE.items():
        expected = np.sum([_brute(name, *(x[a:b] for x in arrays)) for a, b in bounds], axis=0)
        for largest in (None, max(sizes), max(sizes) + 3):
            found = compute(name, scores_P, labels_P, offsets_Q, largest=largest, **options)
            np.testing.assert_allclose([x.item() for x in found], expected, rtol=1e-11, atol=1e-12)


def test_listmle_bounds_the_likelihood_of_the_order() -> None:
    """Over all orders of five documents: the Plackett-Luce probability of those that agree.

    Equal where labels differ; where they are tied our value is above minus its logarithm, and
    nearer than with the tied documents competing (Breslow's form).
    """
    generator = np.random.default_rng(5)
    for labels in ([4, 3, 2, 1, 0], [1, 1, 0, 0, 0], [2, 2, 1, 1, 0], [1, 0, 0, 0, 0]):
        s = generator.normal(size=5)
        probability = 0.0
        for order in itertools.permutations(range(5)):
            if any(labels[a] < labels[b] for a, b in itertools.pairwise(order)):
                continue
            weights = np.exp(s[list(order)])
            probability += float(np.prod(weights / weights[::-1].cumsum()[::-1]))
        exact = -math.log(probability)
        found = run("listmle", [s.tolist()], [labels]).total.item()
        lowest = min(labels)
        breslow = sum(
            math.log(sum(math.exp(s[j] - s[i]) for j in range(5) if labels[j] <= labels[i]))
            for i in range(5)
            if labels[i] > lowest
        )
        if sum(label > lowest for label in labels) == len({*labels} - {lowest}):
            assert found == pytest.approx(exact, abs=1e-12)
        else:
            assert exact < found < breslow


def test_kl_is_hintons_gradient() -> None:
    """d/ds = T (softmax(s / T) - softmax(t / T)), equation 2 of Hinton et al. 2015 times T^2."""
    s = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.3, 1.5, -1.0], dtype=torch.float64)
    for temperature in (0.5, 1.0, 4.0):
        total = LOSSES["kl"](
            s, torch.zeros(3), torch.tensor([0, 3]), teacher_P=t, temperature=temperature
        ).total
        (grad,) = torch.autograd.grad(total, s)
        difference = (s / temperature).softmax(0) - (t / temperature).softmax(0)
        assert_close(grad, temperature * difference.detach())


def test_teacher_losses_are_least_at_the_teachers_scores() -> None:
    """Nothing is left to learn: the loss is 0 with no gradient at s = t (or at a shift of it)."""
    scores_P, labels_P, offsets_Q = batch()
    for name in ("kl", "margin_mse"):
        leaf_P = scores_P.clone().requires_grad_()
        found = LOSSES[name](leaf_P, labels_P, offsets_Q, teacher_P=scores_P + 3)
        assert abs(found.total.item()) < 1e-10
        (grad_P,) = torch.autograd.grad(found.total, leaf_P)
        assert grad_P.abs().max() < 1e-12


def test_smooth_ranks_become_ranks() -> None:
    """As T falls, approx_ndcg becomes 1 - NDCG by our own metric, and adr_mse the squared error."""
    from rankwright.metrics import ndcg

    scores_P, labels_P, offsets_Q = batch(3)
    expected = ndcg(scores_P.numpy(), labels_P.numpy(), offsets_Q.numpy())
    found = compute("approx_ndcg", scores_P, labels_P, offsets_Q, temperature=1e-4)
    kept = [
        q
        for q, (a, b) in enumerate(itertools.pairwise(offsets_Q))
        if labels_P[a:b].unique().numel() > 1
    ]
    assert found.count == len(kept)
    assert found.total.item() == pytest.approx(sum(1 - expected[q] for q in kept), abs=1e-9)
    found = compute(
        "adr_mse", scores_P, labels_P, offsets_Q, teacher_P=scores_P * 2, temperature=1e-4
    )
    assert found.total.item() == pytest.approx(0, abs=1e-9)


def test_lambda_loss_weighs_a_pair_by_its_swap() -> None:
    """LambdaRank (mu = 0): the change of our own NDCG where the two documents change places."""
    from rankwright.metrics import ndcg

    s, y = np.array([2.0, 1.0, 0.5, -1.0]), np.array([0.0, 2.0, 1.0, 3.0])
    offsets = np.array([0, 4])
    value = 0.0
    for i, j in _ordered(y):
        swapped = s.copy()
        swapped[[i, j]] = s[[j, i]]
        change = abs(ndcg(swapped, y, offsets)[0] - ndcg(s, y, offsets)[0])
        value += change * math.log2(1 + math.exp(-(s[i] - s[j])))
    found = run("lambda_loss", [s.tolist()], [y.tolist()], lambda_mu=0.0).total.item()
    assert found == pytest.approx(value, abs=1e-12)


def test_every_entry_has_its_hand_derivation() -> None:
    here = globals()
    assert set(LOSSES) == {n.removeprefix("test_hand_") for n in here if n.startswith("test_hand_")}
    arguments = {f.name: f.default for f in dataclasses.fields(LossArguments)}
    for name, loss in LOSSES.items():
        assert here[f"test_hand_{name}"].__doc__
        assert loss.function.__doc__
        parameters = inspect.signature(loss.function).parameters
        named = {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert loss.teacher == (named.pop("teacher_P", None) is not None)
        assert loss.pairs == (named.pop("largest", None) is not None)
        assert tuple(named) == loss.options
        for option, parameter in named.items():
            assert option in OPTIONS
            assert arguments[option] == parameter.default
    assert arguments.keys() == OPTIONS.keys() | {"loss_type"}


# --- equality to the peers' formulas ----------------------------------------------------------


def test_ms_swift_pointwise_is_mean_bce_over_documents() -> None:
    scores_P, labels_P, offsets_Q = batch()
    total, count = LOSSES["pointwise"].function(scores_P, labels_P, offsets_Q)
    assert_close(total / count, F.binary_cross_entropy_with_logits(scores_P, labels_P))
    weight = torch.tensor(2.5, dtype=torch.float64)
    total, count = LOSSES["pointwise"].function(scores_P, labels_P, offsets_Q, pos_weight=2.5)
    expected = F.binary_cross_entropy_with_logits(scores_P, labels_P, pos_weight=weight)
    assert_close(total / count, expected)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("least", [2, 4])
def test_ms_swift_listwise_is_mean_cross_entropy_over_groups(
    temperature: float, least: int
) -> None:
    """One positive first in each group; groups of fewer than MIN documents are skipped."""
    generator = torch.Generator().manual_seed(1)
    groups = [torch.randn(n, dtype=torch.float64, generator=generator) for n in (8, 3, 1, 5)]
    labels = [F.one_hot(torch.tensor(0), len(g)).double() for g in groups]
    zero = torch.tensor([0])
    for name, form in (("listwise", lambda s: s), ("listwise_generative", F.logsigmoid)):
        terms = [
            F.cross_entropy(form(g)[None] / temperature, zero) for g in groups if len(g) >= least
        ]
        total, count = LOSSES[name].function(
            torch.cat(groups),
            torch.cat(labels),
            torch.tensor([0, 8, 11, 12, 17]),
            temperature=temperature,
            min_group_size=least,
        )
        assert count.item() == len(terms)
        assert_close(total / count, torch.stack(terms).mean())


def test_listwise_generative_is_the_probability_of_yes_among_yes_and_no() -> None:
    """log softmax((yes, no))[yes] = log sigmoid(yes - no), from two columns of logits."""
    generator = torch.Generator().manual_seed(2)
    logits_P2 = 4 * torch.randn(6, 2, dtype=torch.float64, generator=generator)
    log_yes_P = logits_P2.log_softmax(-1)[:, 0]
    expected = F.cross_entropy(log_yes_P.reshape(2, 3) / 0.7, torch.tensor([1, 0]))
    total, count = run(
        "listwise_generative",
        logits_P2[:, 0] - logits_P2[:, 1],
        torch.tensor([0.0, 1, 0, 1, 0, 0]),
        [0, 3, 6],
        temperature=0.7,
    )
    assert_close(total / count, expected)


def test_flagembedding_group_cross_entropy() -> None:
    """FlagEmbedding: scores viewed as (queries, group size), the positive first, target zeros."""
    scores_QD = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels_QD = torch.zeros_like(scores_QD)
    labels_QD[:, 0] = 1
    expected = F.cross_entropy(scores_QD, torch.zeros(4, dtype=torch.long))
    total, count = run("listwise", scores_QD.view(-1), labels_QD.view(-1), list(range(0, 33, 8)))
    assert_close(total / count, expected)


# --- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(name: str) -> None:
    scores_P, labels_P, offsets_Q = batch()
    given = {"pos_weight": 2.0, "temperature": 0.7, "teacher_temperature": 1.3, "sigma": 0.6}
    given |= {"ndcg_cutoff": 2}
    options = {n: given[n] for n in LOSSES[name].options if n in given}
    options["teacher_P"] = teacher_of(scores_P)
    assert torch.autograd.gradcheck(
        lambda s: compute(name, s, labels_P, offsets_Q, **options).total, scores_P.requires_grad_()
    )


def test_listwise_gradient_in_closed_form() -> None:
    """d loss / d s = (softmax(s / T) - t) / T; it is 0 where a group is dropped."""
    scores_P, labels_P, offsets_Q = batch()
    scores_P.requires_grad_()
    LOSSES["listwise"].function(scores_P, labels_P, offsets_Q, temperature=0.5).total.backward()
    assert scores_P.grad is not None
    for q, (a, b) in enumerate(itertools.pairwise(offsets_Q.tolist())):
        expected = ((scores_P[a:b] / 0.5).softmax(0) - labels_P[a:b] / labels_P[a:b].sum()) / 0.5
        if q in (1, 3):  # one document; no positive
            expected = torch.zeros_like(expected)
        assert_close(scores_P.grad[a:b], expected)


@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 6), min_size=4, max_size=7))
@settings(max_examples=25, deadline=None)
def test_order_of_documents_and_of_groups_does_not_matter(seed: int, sizes: list[int]) -> None:
    scores_P, labels_P, offsets_Q = batch(seed, sizes)
    generator = torch.Generator().manual_seed(seed)
    order: list[Tensor] = []
    for q in torch.randperm(len(sizes), generator=generator).tolist():
        order.append(offsets_Q[q] + torch.randperm(sizes[q], generator=generator))
    moved_P = torch.cat(order)
    moved_Q = torch.tensor([0, *torch.tensor([len(o) for o in order]).cumsum(0).tolist()])
    # scores that are equal, too: whoever stands first must not matter
    for scores in (scores_P, scores_P.round()):
        for name in LOSSES:
            before = compute(name, scores, labels_P, offsets_Q)
            after = compute(name, scores[moved_P], labels_P[moved_P], moved_Q)
            assert_close(after, before)


@given(seed=st.integers(0, 10_000), cut=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_parts_add_up_to_the_whole(seed: int, cut: int) -> None:
    """Accumulation steps and ranks: totals, counts and gradients of two parts add up."""
    scores_P, labels_P, offsets_Q = batch(seed)
    pair = int(offsets_Q[cut])
    for name in LOSSES:
        scores_P = scores_P.detach().requires_grad_()
        whole = compute(name, scores_P, labels_P, offsets_Q)
        (whole_grad,) = torch.autograd.grad(whole.total, scores_P)
        left = compute(name, scores_P[:pair], labels_P[:pair], offsets_Q[: cut + 1], largest=5)
        right = compute(name, scores_P[pair:], labels_P[pair:], offsets_Q[cut:] - pair, largest=9)
        assert_close(left.total + right.total, whole.total)
        assert_close(left.count + right.count, whole.count, rtol=0, atol=0)
        (parts_grad,) = torch.autograd.grad(left.total + right.total, scores_P)
        assert_close(parts_grad, whole_grad)


@pytest.mark.parametrize("name", LOSSES)
def test_count_does_not_depend_on_scores(name: str) -> None:
    scores_P, labels_P, offsets_Q = batch()
    counts = {
        float(compute(name, s, labels_P, offsets_Q).count)
        for s in (scores_P, -scores_P, torch.zeros_like(scores_P), scores_P * 1e4)
    }
    groups = [labels_P[a:b].tolist() for a, b in itertools.pairwise(offsets_Q.tolist())]
    ordered = sum(x > y for group in groups for x, y in itertools.product(group, group))
    expected = {
        "pointwise": 15,
        "listwise": 3,
        "listwise_generative": 3,
        "kl": 4,
        "adr_mse": 4,
        "ranknet": ordered,
        "margin_mse": ordered,
    }
    different = sum(len(set(group)) > 1 for group in groups)
    assert counts == {expected.get(name, different)}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits_for_the_device(name: str) -> None:
    """A meta tensor has no values: reading one on the host, to branch or to count, would raise."""
    scores_P, labels_P, offsets_Q = (t.to("meta") for t in batch())
    total, count = compute(name, scores_P, labels_P, offsets_Q, largest=5)
    assert total.shape == count.shape == ()
    assert total.device.type == "meta"


def test_comparing_losses_do_not_see_a_shift_of_a_group() -> None:
    """softmax(s + c) = softmax(s), and differences stay; each group with its own c.

    The two losses that read a score as a probability do see it.
    """
    scores_P, labels_P, offsets_Q = batch()
    shift_P = torch.repeat_interleave(
        torch.tensor([5.0, -3.0, 100.0, 0.0, -40.0], dtype=torch.float64), offsets_Q.diff()
    )
    teacher_P = teacher_of(scores_P)
    for name in LOSSES:
        before = compute(name, scores_P, labels_P, offsets_Q, teacher_P=teacher_P).total
        for teacher in (teacher_P, teacher_P + shift_P):
            after = compute(name, scores_P + shift_P, labels_P, offsets_Q, teacher_P=teacher).total
            seen = name in ("pointwise", "listwise_generative")
            assert torch.isclose(after, before) == (not seen)


@pytest.mark.parametrize("name", LISTWISE)
def test_what_is_no_term(name: str) -> None:
    """Groups below the minimum and groups without a positive: no total, no count, no gradient."""
    scores_P = torch.tensor([2.0, -1.0, 3.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    labels_P = torch.tensor([1.0, 0, 1, 0, 0, 0])
    offsets_Q = torch.tensor([0, 2, 3, 5, 6])  # a pair, one positive alone, two negatives, one
    function = LOSSES[name].function
    kept = function(scores_P[:2], labels_P[:2], offsets_Q[:2])
    leaf_P = scores_P.clone().requires_grad_()
    total, count = function(leaf_P, labels_P, offsets_Q)
    assert_close(total, kept.total)
    assert count.item() == 1
    (grad_P,) = torch.autograd.grad(total, leaf_P)
    assert (grad_P[2:] == 0).all()
    assert (grad_P[:2] != 0).all()
    # with a minimum of one the lone positive is a term of -log 1 = 0
    alone = function(scores_P, labels_P, offsets_Q, min_group_size=1)
    assert_close(alone.total, kept.total)
    assert alone.count.item() == 2
    # with a minimum of three nothing is left
    assert function(scores_P, labels_P, offsets_Q, min_group_size=3) == (0, 0)


@pytest.mark.parametrize("name", LISTWISE)
def test_several_positives_are_the_mean_over_single_ones(name: str) -> None:
    """t = (1/2, 1/2, 0, 0) is linear in the target: the mean of the losses of either positive."""
    s = [[1.0, -0.5, 0.3, 2.0]]
    both = run(name, s, [[1, 1, 0, 0]]).total
    single = [run(name, s, [labels]).total for labels in ([1, 0, 0, 0], [0, 1, 0, 0])]
    assert_close(both, (single[0] + single[1]) / 2)
    # grades weigh it, and only their ratio counts
    graded = run(name, s, [[3, 1, 0, 0]]).total
    assert_close(graded, (3 * single[0] + single[1]) / 4)
    assert_close(run(name, s, [[0.75, 0.25, 0, 0]]).total, graded)


@given(y=st.floats(0, 1), s=st.floats(-30, 30))
@settings(max_examples=40, deadline=None)
def test_soft_labels_mix_the_hard_ones(y: float, s: float) -> None:
    """Binary cross-entropy is linear in y; its gradient is sigmoid(s) - y, so it is least there."""
    hard = [run("pointwise", [[s]], [[label]]).total for label in (0, 1)]
    assert_close(run("pointwise", [[s]], [[y]]).total, (1 - y) * hard[0] + y * hard[1])
    leaf = torch.tensor([s], dtype=torch.float64, requires_grad=True)
    run("pointwise", leaf, [[y]], [0, 1]).total.backward()
    assert leaf.grad is not None
    assert leaf.grad.item() == pytest.approx(1 / (1 + math.exp(-s)) - y, abs=1e-12)


def test_pos_weight_weighs_positives_alone() -> None:
    """w scales the y part only: equal to repeating each positive w times, count aside."""
    weighted = run("pointwise", [[0.3, -1.2, 2.0]], [[1, 0, 1]], pos_weight=3.0)
    repeated = run("pointwise", [[0.3] * 3 + [-1.2] + [2.0] * 3], [[1] * 3 + [0] + [1] * 3])
    assert_close(weighted.total, repeated.total)
    assert weighted.count.item() == 3


# --- numbers at their limits ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_finite_at_extreme_scores(name: str, dtype: torch.dtype) -> None:
    """Scores of ±1e4, for and against the positive; the sum itself is float32.

    The middle group, s = (-1e4, 1e4, 1e4), y = (1, 0, 1): sigmoid(s) - y = (-1, 1, 0); softmax - t
    = (0, 1/2, 1/2) - (1/2, 0, 1/2) = (-1/2, 1/2, 0); times d log sigmoid = sigmoid(-s) = (1, 0, 0)
    in the generative form: (-1/2, 0, 0).
    """
    scores_P = torch.tensor([1e4, -1e4, 0, -1e4, 1e4, 1e4, 1e4, -1e4], dtype=dtype)
    if name == "margin_mse" and dtype == torch.float16:
        scores_P /= 10  # twice an error of 2e4 is more than float16 holds
    labels_P = torch.tensor([1.0, 0, 0, 1, 0, 1, 1, 0])
    leaf_P = scores_P.requires_grad_()
    offsets_Q = torch.tensor([0, 3, 6, 8])
    total, count = compute(name, leaf_P, labels_P, offsets_Q, teacher_P=-scores_P.detach())
    assert total.dtype == count.dtype == torch.float32
    assert torch.isfinite(total)
    total.backward()
    assert leaf_P.grad is not None
    assert leaf_P.grad.dtype == dtype
    assert torch.isfinite(leaf_P.grad).all()
    middle = {
        "pointwise": [-1, 1, 0],
        "listwise": [-0.5, 0.5, 0],
        "listwise_generative": [-0.5, 0, 0],
    }
    if name in middle:
        assert leaf_P.grad[3:6].tolist() == middle[name]


def test_extreme_scores_by_hand() -> None:
    """Positive at -1e4 against 1e4: 2e4 listwise, -log sigmoid(-1e4) = 1e4 both other ways."""
    for name, expected in (("listwise", 2e4), ("listwise_generative", 1e4), ("pointwise", 2e4)):
        total, _ = run(name, [[-1e4, 1e4]], [[1, 0]])
        assert total.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_float64_stays_float64_and_labels_take_any_type(name: str) -> None:
    scores_P, _, offsets_Q = batch()
    whole_P = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1])
    expected = compute(name, scores_P, whole_P.double(), offsets_Q)
    assert expected.total.dtype == expected.count.dtype == torch.float64
    for labels_P in (whole_P, whole_P.bool(), whole_P.bfloat16()):
        assert_close(compute(name, scores_P, labels_P, offsets_Q), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]])
def test_empty_batch(name: str, offsets: list[int]) -> None:
    """No pairs, with no groups or with empty ones: 0 of 0, and a gradient to add to others."""
    scores_P = torch.zeros(0, requires_grad=True)
    total, count = compute(name, scores_P, torch.zeros(0), torch.tensor(offsets))
    assert total.item() == 0
    assert count.item() == 0
    (grad_P,) = torch.autograd.grad(total, scores_P)
    assert grad_P.shape == (0,)


def test_an_empty_group_among_others() -> None:
    scores_P, labels_P, offsets_Q = batch()
    offsets_with_empty_Q = torch.cat([offsets_Q[:2], offsets_Q[1:]])
    for name in LOSSES:
        leaf_P = scores_P.clone().requires_grad_()
        total, count = compute(name, leaf_P, labels_P, offsets_with_empty_Q)
        assert_close((total, count), tuple(compute(name, scores_P, labels_P, offsets_Q)))
        (grad_P,) = torch.autograd.grad(total, leaf_P)
        assert torch.isfinite(grad_P).all()


def test_group_log_softmax_is_torch_log_softmax_of_each_group() -> None:
    scores_P, _, offsets_Q = batch()
    group_P = torch.repeat_interleave(torch.arange(5), offsets_Q.diff())
    expected = torch.cat([s.log_softmax(0) for s in scores_P.split(offsets_Q.diff().tolist())])
    assert_close(group_log_softmax(scores_P, group_P, 5), expected)


# --- names ------------------------------------------------------------------------------------


def test_names_and_aliases() -> None:
    assert {name: find_loss(name) for name in LOSSES} == {name: name for name in LOSSES}
    expected = {
        "pointwise_reranker": "pointwise",
        "listwise_reranker": "listwise",
        "generative_reranker": "pointwise",
        "listwise_generative_reranker": "listwise_generative",
    }
    assert expected == ALIASES
    for alias, name in ALIASES.items():
        assert find_loss(alias) == name


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as near:
        find_loss("listwize")
    assert str(near.value) == (
        "--loss_type 'listwize' is unknown; did you mean 'listwise'? Choose from "
        f"{', '.join(LOSSES)}, pointwise_reranker, listwise_reranker, "
        "generative_reranker, listwise_generative_reranker"
    )
    with pytest.raises(ConfigError, match=r"'xyz' is unknown; choose from pointwise, listwise"):
        find_loss("xyz")
