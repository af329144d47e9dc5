"""Calibration: by hand, against scikit-learn, and the laws that must hold for any rows."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright import calibration as cal
from rankwright.calibration import Calibration, Threshold
from rankwright.errors import CheckpointError, ConfigError, DataError


def made(count: int = 400, *, seed: int = 0, scale: float = 0.5, bias: float = -1.0) -> Any:
    """Scores whose labels are drawn with the probability sigmoid(scale * score + bias)."""
    rng = np.random.default_rng(seed)
    scores_P = rng.normal(1, 3, count)
    labels_P = (rng.random(count) < cal.sigmoid(scale * scores_P + bias)).astype(float)
    return scores_P, labels_P


def nll(logits: Any, labels: Any) -> float:
    return cal.figures(logits, labels)["nll"]


# --- fits -------------------------------------------------------------------------------------


def test_hand_temperature() -> None:
    """Scores 1, 1, 1 and -1 with labels 1, 1, 0 and 0.

    With x = 1/T the likelihood is -3 log(1 + e^-x) - log(1 + e^x): its derivative vanishes where
    sigmoid(x) = 3/4 (three of the four scores agree in sign with their label), so x = log 3.
    """
    found = cal.fit_temperature([1, 1, 1, -1], [1, 1, 0, 0])
    assert found.parameters["temperature"] == pytest.approx(1 / math.log(3), rel=1e-9)
    assert found.probabilities([1, -1]) == pytest.approx([3 / 4, 1 / 4])


def test_hand_platt() -> None:
    """Scores 0 and 1, one label of each kind at 0, three 1s and a 0 at 1.

    Two values and two parameters, so the probability at each is its mean target. N+ = 4 and
    N- = 2 give the targets 5/6 and 1/4. At 0: (5/6 + 1/4) / 2 = 13/24; at 1: (3 * 5/6 + 1/4) / 4 =
    11/16. So bias = log(13/11) and scale = log(11/5) - log(13/11).
    """
    found = cal.fit_platt([0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0])
    assert found.probabilities([0, 1]) == pytest.approx([13 / 24, 11 / 16], rel=1e-9)
    assert found.bias == pytest.approx(math.log(13 / 11), rel=1e-9)
    assert found.scale == pytest.approx(math.log(11 / 5) - math.log(13 / 11), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_platt_equals_scikit_learn(seed: int) -> None:
    """Its CalibratedClassifierCV around a classifier that is already fitted."""
    pytest.importorskip("sklearn", reason="comes with sentence-transformers")
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    scores_P, labels_P = made(300, seed=seed)
    model = CalibratedClassifierCV(FrozenEstimator(identity(scores_P, labels_P)), method="sigmoid")
    model.fit(scores_P[:, None], labels_P)
    found = cal.fit_platt(scores_P, labels_P)
    grid = np.linspace(-8, 8, 33)
    expected = model.predict_proba(grid[:, None])[:, 1]
    assert found.probabilities(grid) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_temperature_equals_scikit_learn(seed: int) -> None:
    """A logistic regression without penalty and intercept on the score: its slope is 1/T."""
    pytest.importorskip("sklearn", reason="comes with sentence-transformers")
    from sklearn.linear_model import LogisticRegression

    scores_P, labels_P = made(300, seed=seed)
    weights_P = np.random.default_rng(seed).integers(0, 4, 300).astype(float)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(scores_P[:, None], labels_P, sample_weight=weights_P)
    found = cal.fit_temperature(scores_P, labels_P, weights_P)
    assert found.scale == pytest.approx(float(model.coef_[0, 0]), rel=1e-5)


def identity(scores_P: Any, labels_P: Any) -> Any:
    """A classifier of scikit-learn whose decision function is its input."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(scores_P[:, None], labels_P)
    model.coef_, model.intercept_ = np.ones((1, 1)), np.zeros(1)
    return model


@pytest.mark.parametrize("method", cal.METHODS)
def test_a_fit_finds_what_made_the_labels(method: str) -> None:
    """100,000 draws: the parameters of the generator within a few standard errors."""
    bias = -1.0 if method == "platt" else 0.0
    found = cal.fit(method, *made(100_000, bias=bias))
    assert found.scale == pytest.approx(0.5, abs=0.02)
    assert found.bias == pytest.approx(bias, abs=0.05)


@pytest.mark.parametrize("method", cal.METHODS)
def test_the_fit_is_the_least(method: str) -> None:
    """No step away from the parameters lowers what they are the least of."""
    scores_P, labels_P = made()
    found = cal.fit(method, scores_P, labels_P)
    targets_P = labels_P
    if method == "platt":
        positive = labels_P.sum()
        high, low = (positive + 1) / (positive + 2), 1 / (len(labels_P) - positive + 2)
        targets_P = np.where(labels_P == 1, high, low)
    least = nll(found.logits(scores_P), targets_P)
    for scale, bias in ((1e-3, 0.0), (-1e-3, 0.0), (0.0, 1e-3), (0.0, -1e-3)):
        if method == "platt" or not bias:
            logits_P = (found.scale + scale) * scores_P + found.bias + bias
            assert nll(logits_P, targets_P) > least


@pytest.mark.parametrize("method", cal.METHODS)
def test_weights_are_repetitions(method: str) -> None:
    scores_P, labels_P = made(120)
    counts_P = np.random.default_rng(1).integers(0, 4, 120)
    weighted = cal.fit(method, scores_P, labels_P, counts_P)
    repeated = cal.fit(method, np.repeat(scores_P, counts_P), np.repeat(labels_P, counts_P))
    assert weighted.scale == pytest.approx(repeated.scale, rel=1e-9)
    assert weighted.bias == pytest.approx(repeated.bias, rel=1e-9)


def test_a_soft_label_is_a_share_of_two() -> None:
    """0.25 is a document that is relevant with weight 1/4 and irrelevant with weight 3/4."""
    scores_P = np.array([-2.0, 0.5, 1.0, 3.0])
    labels_P = np.array([0.25, 0.0, 0.75, 1.0])
    twice = np.concatenate([scores_P, scores_P])
    hard = np.concatenate([np.ones(4), np.zeros(4)])
    weights = np.concatenate([labels_P, 1 - labels_P])
    for method in cal.METHODS:
        soft = cal.fit(method, scores_P, labels_P)
        split = cal.fit(method, twice, hard, weights)
        assert soft.scale == pytest.approx(split.scale, rel=1e-8)
        assert soft.bias == pytest.approx(split.bias, rel=1e-8, abs=1e-9)
    assert cal.figures(scores_P, labels_P)["nll"] == pytest.approx(
        cal.figures(twice, hard, weights)["nll"]
    )


def test_graded_labels_count_as_relevant_above_zero() -> None:
    graded = [3, 0, 1, 0, -1, 2]
    assert cal.targets(graded).tolist() == [1, 0, 1, 0, 0, 1]
    assert cal.targets([0.2, 0, 1]).tolist() == [0.2, 0, 1]
    scores = [3, 1, 2, -1, 0, -2]
    assert cal.fit_platt(scores, graded) == cal.fit_platt(scores, [1, 0, 1, 0, 0, 1])


@pytest.mark.parametrize("method", cal.METHODS)
def test_perfect_separation_stays_finite(method: str) -> None:
    """The plain likelihood has no maximum; Platt's targets give one, and it is said."""
    found = cal.fit(method, [-30, -20, 25, 40], [0, 0, 1, 1])
    assert found.record["separated"] is True
    p = found.probabilities([-30, -20, 25, 40])
    assert 0.01 < p[0] < p[1] < 0.5 < p[2] < p[3] < 0.99


def test_separated_says_what_is() -> None:
    assert cal.fit_platt(*made()).record == {"separated": False}
    # separable by a shifted threshold, which a temperature does not have
    assert cal.fit_platt([1, 2, 4], [0, 0, 1]).record == {"separated": True}
    assert cal.fit_temperature([-1, 2, 4], [0, 0, 1]).record == {"separated": False}


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_units_of_the_score_do_not_matter(factor: float) -> None:
    scores_P, labels_P = made()
    for method in cal.METHODS:
        found = cal.fit(method, scores_P * factor, labels_P)
        assert found.scale * factor == pytest.approx(cal.fit(method, scores_P, labels_P).scale)


@pytest.mark.parametrize("method", cal.METHODS)
def test_refusals(method: str) -> None:
    for labels, kind in (([1, 1, 1], "relevant"), ([0, 0, 0], "irrelevant"), ([], "irrelevant")):
        with pytest.raises(DataError, match=f"all {len(labels)} documents are {kind}; calibration"):
            cal.fit(method, [1.0, 2.0, 3.0][: len(labels)], labels)
    with pytest.raises(DataError, match="a score is not a finite number"):
        cal.fit(method, [1.0, math.nan], [0, 1])
    with pytest.raises(DataError, match="a label is not a finite number"):
        cal.fit(method, [1.0, 2.0], [0, math.inf])
    with pytest.raises(DataError, match=r"shapes \(2,\), \(3,\)"):
        cal.fit(method, [1.0, 2.0], [0, 1, 1])
    with pytest.raises(DataError, match="the weight -1 is below 0"):
        cal.fit(method, [1.0, 2.0], [0, 1], [1, -1])
    with pytest.raises(ConfigError, match="method 'isotonic' is unknown; choose from temperature"):
        cal.fit("isotonic", [1.0, 2.0], [0, 1])


def test_an_order_is_never_reversed() -> None:
    with pytest.raises(DataError, match=r"the fitted slope is -\d.*would reverse the order"):
        cal.fit_platt([3, 2, 1, 0], [0, 0, 1, 1])
    with pytest.raises(DataError, match=r"no temperature fits: .*use --method platt"):
        cal.fit_temperature([3, 2, -1, -2], [0, 0, 1, 1])
    # a good order whose scores are all high: a shift is needed
    with pytest.raises(DataError, match="too high"):
        cal.fit_temperature([9, 7, 6, 5], [1, 0, 0, 0])
    assert cal.fit_platt([9, 7, 6, 5], [1, 0, 0, 0]).scale > 0
    with pytest.raises(DataError, match="every score is the same"):
        cal.fit_platt([2, 2, 2], [0, 1, 0])


pairs = st.lists(
    st.tuples(st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, 0.5, 1.0])),
    min_size=2,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(pairs, st.sampled_from(sorted(cal.METHODS)))
def test_any_fit_keeps_the_order_and_is_finite(rows: Any, method: str) -> None:
    """Whatever the rows: refused in a line, or finite, rising, and inside [0, 1]."""
    scores, labels = zip(*rows, strict=True)
    try:
        found = cal.fit(method, scores, labels)
    except DataError:
        return
    p = found.probabilities(np.sort(scores))
    assert np.isfinite([found.scale, found.bias]).all()
    assert found.scale > 0
    assert (np.diff(p) >= 0).all()
    assert 0 <= p.min() <= p.max() <= 1
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# --- thresholds -------------------------------------------------------------------------------

SCORES = [5.0, 4.0, 3.0, 3.0, 2.0, 1.0, 0.0, -1.0]
LABELS = [1, 1, 0, 1, 0, 1, 0, 0]


def test_hand_thresholds() -> None:
    """From the top (equal scores together): 1/1, 2/2, 3/4, 3/5, 4/6, 4/7, 4/8 are relevant.

    Precision 0.75 is reached last with four kept; 0.6 with six kept (4/6), although five give 0.6.
    Recall 0.75 needs three of the four: the cut behind the tie.
    """
    found = cal.threshold_for_precision(SCORES, LABELS, 0.75)
    assert (found.score, found.kept, found.documents, found.relevant) == (2.5, 4, 8, 4)
    assert (found.precision, found.recall, found.name) == (0.75, 0.75, "precision@0.75")
    assert found.interval == cal.wilson_interval(3, 4)
    assert cal.threshold_for_precision(SCORES, LABELS, 0.6).kept == 6
    assert cal.threshold_for_precision(SCORES, LABELS, 1.0).score == 3.5
    # everything is kept: there is no lower score to stand midway to
    assert cal.threshold_for_precision(SCORES, LABELS, 0.5).score == -1.0
    found = cal.threshold_for_recall(SCORES, LABELS, 0.75)
    assert (found.score, found.kept, found.precision, found.recall) == (2.5, 4, 0.75, 0.75)
    assert found.interval == cal.wilson_interval(3, 4)
    assert cal.threshold_for_recall(SCORES, LABELS, 1.0).score == 0.5
    assert cal.threshold_for_recall(SCORES, LABELS, 0.01).kept == 1


def test_a_goal_out_of_reach() -> None:
    with pytest.raises(
        DataError,
        match=r"precision of 0.9 .*; the highest is 0.6667, with the best 3 of 4 documents; ask",
    ):
        cal.threshold_for_precision([4, 3, 2, 1], [0, 1, 1, 0], 0.9)
    for goal in (0, -1, 1.5, math.nan):
        with pytest.raises(ConfigError, match="is not above 0 and at most 1"):
            cal.threshold_for_recall(SCORES, LABELS, goal)
    with pytest.raises(ConfigError, match="--precision 90 is not above 0"):
        cal.check_goals([0.9, 90.0])
    assert cal.check_goals([0.9, 0.9], [0.5]) == [("precision", 0.9), ("recall", 0.5)]


@settings(max_examples=150, deadline=None)
@given(pairs, st.floats(0.05, 1))
def test_thresholds_do_what_they_say(rows: Any, goal: float) -> None:
    """Kept, precision and recall counted anew at the score; every cut beyond it misses the goal."""
    scores_P, labels_P = map(np.array, zip(*rows, strict=True))
    for metric in ("precision", "recall"):
        shares = {}
        for cut in np.unique(scores_P):
            kept = labels_P[scores_P >= cut]
            shares[cut] = kept.sum() / (len(kept) if metric == "precision" else labels_P.sum() or 1)
        reached = [cut for cut, share in shares.items() if share >= goal - 1e-9]
        try:
            found = cal.find_threshold(metric, goal, scores_P, labels_P)
        except DataError:
            assert not reached or labels_P.max() == 0 or labels_P.min() == 1
            continue
        kept_P = scores_P >= found.score
        assert found.kept == kept_P.sum()
        assert found.precision == pytest.approx(labels_P[kept_P].mean())
        assert found.recall == pytest.approx(labels_P[kept_P].sum() / labels_P.sum())
        expected = min(reached) if metric == "precision" else max(reached)
        assert found.kept == (scores_P >= expected).sum()


def test_wilson() -> None:
    """Of 10 all 10: z^2 = 3.8415, so from 10 / 13.8415 = 0.7225 to 1; of 10 none is its mirror."""
    assert cal.wilson_interval(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)
    assert cal.wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    stats = pytest.importorskip("scipy.stats", reason="comes with sentence-transformers")
    for hits, count in ((3, 4), (50, 71), (1, 200)):
        expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert cal.wilson_interval(hits, count) == pytest.approx((expected.low, expected.high))


# --- measures ---------------------------------------------------------------------------------


def test_hand_reliability() -> None:
    """Two bins: 0.1, 0.3 and 0.5 (the edge belongs below) with labels 0, 0, 1; 0.9 and 0.7: 1, 1.

    Means 0.3 and 0.8, frequencies 1/3 and 1, so ECE = 3/5 (1/3 - 0.3) + 2/5 (1 - 0.8) = 0.1.
    """
    p, labels = [0.1, 0.9, 0.3, 0.5, 0.7], [0, 1, 0, 1, 1]
    low, high = cal.reliability(p, labels, 2)
    assert (low.low, low.high, low.count) == (0, 0.5, 3)
    assert (low.confidence, low.frequency) == pytest.approx((0.3, 1 / 3))
    assert (high.count, high.confidence, high.frequency) == pytest.approx((2, 0.8, 1))
    assert cal.expected_calibration_error(p, labels, 2) == pytest.approx(0.1)
    # empty bins are left out
    assert len(cal.reliability(p, labels, 1000)) == 5
    assert [b.count for b in cal.reliability(p, labels, 5, equal_mass=True)] == [1] * 5


@pytest.mark.parametrize("equal_mass", [False, True])
def test_reliability_equals_scikit_learn(equal_mass: bool) -> None:
    pytest.importorskip("sklearn", reason="comes with sentence-transformers")
    from sklearn.calibration import calibration_curve

    # no quantile falls on a score, where rounding would decide its bin
    scores_P, labels_P = made(398)
    p_P = cal.sigmoid(scores_P)
    strategy = "quantile" if equal_mass else "uniform"
    frequency, confidence = calibration_curve(labels_P, p_P, n_bins=15, strategy=strategy)
    found = cal.reliability(p_P, labels_P, 15, equal_mass=equal_mass)
    assert [b.frequency for b in found] == pytest.approx(frequency.tolist())
    assert [b.confidence for b in found] == pytest.approx(confidence.tolist())
    assert sum(b.count for b in found) == len(p_P)


def test_figures_equal_scikit_learn() -> None:
    pytest.importorskip("sklearn", reason="comes with sentence-transformers")
    from sklearn.metrics import brier_score_loss, log_loss

    scores_P, labels_P = made()
    weights_P = np.random.default_rng(3).random(len(scores_P))
    found = cal.figures(scores_P, labels_P, weights_P)
    p_P = cal.sigmoid(scores_P)
    assert found["nll"] == pytest.approx(log_loss(labels_P, p_P, sample_weight=weights_P))
    assert found["brier"] == pytest.approx(brier_score_loss(labels_P, p_P, sample_weight=weights_P))


def test_saturated_scores_have_a_finite_likelihood() -> None:
    """At a score of 1000 sigmoid is 1 in any float; the likelihood of label 0 is still 1000."""
    assert nll([1000.0, 1000.0], [1, 0]) == pytest.approx(500)
    assert cal.sigmoid([-1000.0, 0, 1000]).tolist() == [0, 0.5, 1]


def test_measures_refuse() -> None:
    with pytest.raises(DataError, match=r"not from 0 to 1; give sigmoid\(score\)"):
        cal.reliability([1.2], [1])
    with pytest.raises(ConfigError, match="bins 0 is less than 1"):
        cal.reliability([0.2], [1], 0)
    with pytest.raises(DataError, match="give flat lists of one length"):
        cal.expected_calibration_error([0.2], [1, 0])
    with pytest.raises(DataError, match="give flat lists of one length"):
        cal.reliability([], [])


# --- held-out figures -------------------------------------------------------------------------


def test_held_out_is_the_loop_over_folds() -> None:
    """Leave one query out: fitted to the others, measured on it, all together."""
    scores_P, labels_P = made(60)
    queries_P = np.repeat(np.arange(12), 5)
    goals = [("precision", 0.7), ("recall", 0.9)]
    found = cal.held_out("platt", scores_P, labels_P, queries_P, folds=99, goals=goals)
    logits_P = np.empty(60)
    kept_P = np.zeros(60, bool)
    for query in range(12):
        rest, inside = queries_P != query, queries_P == query
        fitted = cal.fit_platt(scores_P[rest], labels_P[rest])
        logits_P[inside] = fitted.logits(scores_P[inside])
        edge = cal.threshold_for_precision(scores_P[rest], labels_P[rest], 0.7)
        kept_P[inside] = scores_P[inside] >= edge.score
    assert found["folds"] == 12
    assert {n: found[n] for n in ("nll", "ece", "brier")} == pytest.approx(
        cal.figures(logits_P, labels_P)
    )
    precision, recall = found["thresholds"]
    assert precision["name"] == "precision@0.7"
    assert precision["kept"] == kept_P.sum()
    assert precision["precision"] == pytest.approx(labels_P[kept_P].mean())
    assert precision["recall"] == pytest.approx(labels_P[kept_P].sum() / labels_P.sum())
    assert recall["recall"] > 0.7


def test_held_out_refuses() -> None:
    with pytest.raises(DataError, match="there is one query"):
        cal.held_out("platt", [1, 2, 3], [0, 1, 1], ["q"] * 3)
    with pytest.raises(ConfigError, match="--folds 1 is less than 2"):
        cal.held_out("platt", [1, 2], [0, 1], [0, 1], folds=1)


# --- as a value -------------------------------------------------------------------------------


def example() -> Calibration:
    edge = cal.threshold_for_precision(SCORES, LABELS, 0.75)
    return Calibration("platt", {"scale": 2.0, "bias": -1.0}, (edge,), {"queries": 3})


def test_round_trip_and_lookup() -> None:
    value = example()
    again = Calibration.from_dict(json.loads(json.dumps(value.to_dict())))
    assert again == value
    assert isinstance(again.thresholds[0], Threshold)
    assert again.threshold("precision@0.75") is again.thresholds[0]
    assert again.threshold("precision@0.750").score == 2.5
    with pytest.raises(ConfigError, match=r"without a threshold 'recall@0.5' \(it has precision@"):
        again.threshold("recall@0.5")
    with pytest.raises(ConfigError, match=r"\(it has none\); make it with .* --precision 0.9"):
        Calibration("temperature", {"temperature": 2.0}).threshold("precision@0.9")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"method": "isotonic"}, "method 'isotonic' is unknown"),
        ({"method": "temperature"}, "has the parameters temperature, not scale, bias"),
        ({"parameters": {"scale": 1.0}}, "has the parameters scale, bias, not scale"),
        ({"parameters": {"scale": -1.0, "bias": 0.0}}, "scale of platt scaling is -1.0; it must"),
        ({"parameters": {"scale": 1.0, "bias": math.nan}}, "bias of platt scaling is nan"),
        ({"parameters": {"scale": True, "bias": 0.0}}, "scale of platt scaling is True"),
        ({"parameters": [1, 2]}, "must be objects"),
        ({"record": 3}, "must be objects"),
        ({"thresholds": 3}, "its thresholds must be a list"),
        ({"thresholds": [3]}, "a threshold holds 3"),
        ({"thresholds": [{}]}, "a threshold holds nothing"),
        ({"colour": "red"}, "it holds .*colour"),
    ],
)
def test_what_is_no_calibration(change: dict[str, Any], complaint: str) -> None:
    values = example().to_dict() | change
    with pytest.raises(CheckpointError, match=f"rankwright.json is broken: .*{complaint}"):
        Calibration.from_dict(values)


@pytest.mark.parametrize(
    "change",
    [{"score": "high"}, {"metric": "f1"}, {"interval": [0.5]}, {"interval": [0.5, None]}],
)
def test_what_is_no_threshold(change: dict[str, Any]) -> None:
    values = example().to_dict()
    values["thresholds"] = [values["thresholds"][0] | change]
    with pytest.raises(CheckpointError, match=r"rankwright\.json is broken: "):
        Calibration.from_dict(values)
    with pytest.raises(CheckpointError, match="it holds None"):
        Calibration.from_dict(None)
