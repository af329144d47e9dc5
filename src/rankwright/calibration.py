"""Calibration: from scores to probabilities that can be believed, and to thresholds.

A reranker's score orders the documents of a query; its sigmoid need not be the share of documents
like it that are relevant. Two numbers fitted on judged rows mend that without changing any order:
temperature scaling (Guo et al. 2017) or Platt scaling (Platt 1999). Thresholds for a wanted
precision or recall are read off the same rows.

Both speak of documents as the rows hold them: where one document in five is relevant there and one
in a hundred elsewhere, the probabilities are too high elsewhere.

Labels from 0 to 1 are used as they are, as probabilities; if any label is outside (graded), a
document counts as relevant where its label is above 0.

Shape legend: ``P`` pairs, ``F`` fitted parameters, ``B`` bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from rankwright.errors import CheckpointError, ConfigError, DataError

FloatArray = npt.NDArray[np.float64]

# Guo et al. 2017 take 15 bins
BINS = 15
# of the normal distribution, for 95 %
Z = 1.959963984540054
PARAMETERS = {"temperature": ("temperature",), "platt": ("scale", "bias")}


@dataclass(frozen=True)
class Threshold:
    """A score from which on documents are kept, and what that gave on the rows it was read off.

    Attributes:
        metric: ``precision`` or ``recall``.
        goal: the value that was asked for.
        score: documents at or above it are kept. It lies midway to the next lower score of the
            rows, so that rounding does not decide.
        precision: share of the kept that are relevant.
        recall: share of the relevant that are kept.
        kept: documents kept.
        documents: documents in all.
        relevant: sum of the targets: relevant documents in all.
        interval: 95 % Wilson interval of ``metric``. It takes the documents to be independent;
            those of one query are not quite, so it is a little too narrow.
    """

    metric: str
    goal: float
    score: float
    precision: float
    recall: float
    kept: int
    documents: int
    relevant: float
    interval: tuple[float, float]

    @property
    def name(self) -> str:
        """Such as ``precision@0.9``."""
        return f"{self.metric}@{self.goal:g}"

    @classmethod
    def from_dict(cls, values: Any) -> Threshold:
        """Read what ``dataclasses.asdict`` wrote.

        Raises:
            CheckpointError: it is anything else.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise _broken(f"a threshold holds {_shown(values)}, not {', '.join(sorted(names))}")
        interval = values["interval"]
        if not isinstance(interval, (list, tuple)) or len(interval) != 2:
            raise _broken(f"the interval of a threshold is {interval!r}")
        numbers = {n: v for n, v in values.items() if n not in ("metric", "interval")}
        for name, value in (*numbers.items(), ("interval", interval[0]), ("interval", interval[1])):
            if not _is_number(value):
                raise _broken(f"{name} of a threshold is {value!r}")
        if values["metric"] not in ("precision", "recall"):
            raise _broken(f"a threshold is for {values['metric']!r}, not precision or recall")
        low, high = interval
        return cls(**{**values, "interval": (float(low), float(high))})


@dataclass(frozen=True)
class Calibration:
    """A map from scores to probabilities that keeps their order.

    Attributes:
        method: ``temperature``: ``sigmoid(score / temperature)``; ``platt``:
            ``sigmoid(scale * score + bias)``.
        parameters: ``temperature``, or ``scale`` and ``bias``.
        thresholds: read off the same rows.
        record: what it was fitted on and how good it is there, for people to read.

    Raises:
        ConfigError: the method is unknown, or a parameter does not fit.
    """

    method: str
    parameters: dict[str, float]
    thresholds: tuple[Threshold, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in PARAMETERS:
            raise ConfigError(
                f"calibration method {self.method!r} is unknown; choose from "
                f"{', '.join(PARAMETERS)}"
            )
        if set(self.parameters) != set(PARAMETERS[self.method]):
            raise ConfigError(
                f"{self.method} scaling has the parameters {', '.join(PARAMETERS[self.method])}, "
                f"not {_shown(self.parameters)}"
            )
        for name, value in self.parameters.items():
            if not _is_number(value) or (name != "bias" and value <= 0):
                raise ConfigError(
                    f"the {name} of {self.method} scaling is {value!r}; it must be a number"
                    + ("" if name == "bias" else " above 0, or the order would change")
                )

    @property
    def scale(self) -> float:
        """What a score is multiplied by."""
        if self.method == "temperature":
            return 1 / self.parameters["temperature"]
        return self.parameters["scale"]

    @property
    def bias(self) -> float:
        """What is added then."""
        return self.parameters.get("bias", 0.0)

    def logits(self, scores: npt.ArrayLike) -> FloatArray:
        """``scale * score + bias``: the logit of each probability."""
        return self.scale * np.asarray(scores, np.float64) + self.bias

    def probabilities(self, scores: npt.ArrayLike) -> FloatArray:
        """The probability that a document of such a score is relevant."""
        return sigmoid(self.logits(scores))

    def threshold(self, name: str) -> Threshold:
        """Find a threshold by its name, such as ``precision@0.9``.

        Raises:
            ConfigError: there is none of this name.
        """
        metric, _, goal = name.partition("@")
        for threshold in self.thresholds:
            if threshold.metric == metric and _number(goal) == threshold.goal:
                return threshold
        names = ", ".join(threshold.name for threshold in self.thresholds)
        known = f"it has {names}" if names else "it has none"
        flag = metric if metric in ("precision", "recall") else "precision"
        raise ConfigError(
            f"the model was saved without a threshold {name!r} ({known}); make it with "
            f"rankwright calibrate --{flag} {goal or '0.9'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what ``rankwright.json`` keeps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """Read what ``to_dict`` wrote.

        Raises:
            CheckpointError: it is anything else.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not {"method", "parameters"} <= set(values) <= names:
            raise _broken(f"it holds {_shown(values)}, not {', '.join(sorted(names))}")
        parameters, record = values["parameters"], values.get("record", {})
        thresholds = values.get("thresholds", ())
        if not isinstance(parameters, dict) or not isinstance(record, dict):
            raise _broken("its parameters and its record must be objects")
        if not isinstance(thresholds, (list, tuple)):
            raise _broken("its thresholds must be a list")
        try:
            found = tuple(Threshold.from_dict(threshold) for threshold in thresholds)
            return cls(str(values["method"]), dict(parameters), found, dict(record))
        except ConfigError as error:
            raise _broken(str(error)) from error


@dataclass(frozen=True)
class Bin:
    """Documents of similar probability.

    Attributes:
        low: the bin's lower edge, not inside (but 0 is).
        high: its upper edge, inside.
        count: weight of its documents; their number where no weights were given.
        confidence: mean probability.
        frequency: share that is relevant.
    """

    low: float
    high: float
    count: float
    confidence: float
    frequency: float


def sigmoid(logits: npt.ArrayLike) -> FloatArray:
    """``1 / (1 + exp(-x))``, without overflow."""
    z = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1 / (1 + small), small / (1 + small)), np.float64)


def targets(labels: npt.ArrayLike) -> FloatArray:
    """Probabilities from labels: those in [0, 1] as they are, otherwise ``label > 0``."""
    labels_P = np.asarray(labels, np.float64)
    if labels_P.size and (labels_P.min() < 0 or labels_P.max() > 1):
        return (labels_P > 0).astype(np.float64)
    return labels_P


def fit_temperature(
    scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Calibration:
    """Fit ``sigmoid(score / T)`` by least negative log-likelihood (Guo et al. 2017).

    One number cannot move the score at which the probability is 1/2; where all scores are high, as
    listwise losses may leave them, no temperature fits and ``fit_platt`` does.

    Where the sign of the score tells relevant from irrelevant without a mistake, the likelihood
    grows for ever as ``T`` falls; Platt's targets are used then, which keep it finite.

    Args:
        scores: ``P`` logits.
        labels: ``P`` labels, see the module.
        weights: ``P`` weights, default 1.

    Raises:
        DataError: nothing can be fitted to the rows; the message says why.
    """
    scores_P, targets_P, weights_P = _pairs(scores, labels, weights)
    separated = bool(np.all((targets_P == (scores_P > 0)) & (scores_P != 0)))
    if separated:
        targets_P = _smoothed(targets_P, weights_P)
    # the derivative of the likelihood at 1/T = 0: its one maximum lies on this side
    if not float((weights_P * (targets_P - 0.5) * scores_P).sum()) > 0:
        raise DataError(
            "no temperature fits: the scores are too high (or too low) throughout, or do not go "
            "with relevance; use --method platt, which shifts them too"
        )
    unit = math.sqrt(float((weights_P * scores_P**2).sum() / weights_P.sum()))
    (scale,) = _newton((scores_P / unit)[:, None], targets_P, weights_P, np.zeros(1)) / unit
    return Calibration(
        "temperature", {"temperature": float(1 / scale)}, record={"separated": separated}
    )


def fit_platt(
    scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Calibration:
    """Fit ``sigmoid(scale * score + bias)`` (Platt 1999).

    The targets are Platt's, ``(N+ + 1) / (N+ + 2)`` and ``1 / (N- + 2)`` in place of 1 and 0, so
    the parameters are finite even where a score tells relevant from irrelevant without a mistake.

    Args:
        scores: ``P`` logits.
        labels: ``P`` labels, see the module.
        weights: ``P`` weights, default 1.

    Raises:
        DataError: nothing can be fitted to the rows, or the order would be reversed.
    """
    scores_P, targets_P, weights_P = _pairs(scores, labels, weights)
    relevant, others = targets_P > 0, targets_P < 1
    separated = bool(
        not (relevant & others).any() and scores_P[relevant].min() > scores_P[others].max()
    )
    total = weights_P.sum()
    mean = float((weights_P * scores_P).sum() / total)
    unit = math.sqrt(float((weights_P * (scores_P - mean) ** 2).sum() / total))
    if not unit > 1e-12 * (1 + abs(mean)):
        raise DataError("every score is the same, so nothing can be fitted; train the model first")
    positive = float((weights_P * targets_P).sum())
    start = np.array([0.0, math.log((positive + 1) / (float(total) - positive + 1))])
    design_PF = np.stack([(scores_P - mean) / unit, np.ones_like(scores_P)], 1)
    slope, offset = _newton(design_PF, _smoothed(targets_P, weights_P), weights_P, start)
    scale = float(slope / unit)
    if scale <= 0:
        raise DataError(
            f"higher scores do not go with relevance on these rows (the fitted slope is "
            f"{scale:.3g}), so calibration would reverse the order; look at the labels, or train "
            "the model first"
        )
    return Calibration(
        "platt",
        {"scale": scale, "bias": float(offset - scale * mean)},
        record={"separated": separated},
    )


METHODS: dict[str, Callable[..., Calibration]] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
}


def fit(
    method: str,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
) -> Calibration:
    """Fit by the name of a method; see ``fit_temperature`` and ``fit_platt``.

    Raises:
        ConfigError: the method is unknown.
        DataError: nothing can be fitted.
    """
    if method not in METHODS:
        raise ConfigError(
            f"calibration method {method!r} is unknown; choose from {', '.join(METHODS)}"
        )
    return METHODS[method](scores, labels, weights)


def _pairs(
    scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scores, targets and weights, checked."""
    scores_P = np.asarray(scores, np.float64)
    labels_P = np.asarray(labels, np.float64)
    weights_P = np.ones_like(scores_P) if weights is None else np.asarray(weights, np.float64)
    if scores_P.ndim != 1 or not scores_P.shape == labels_P.shape == weights_P.shape:
        raise DataError(
            f"scores, labels and weights have the shapes {scores_P.shape}, {labels_P.shape} and "
            f"{weights_P.shape}; give flat lists of one length"
        )
    for what, values in (("score", scores_P), ("label", labels_P), ("weight", weights_P)):
        if not np.isfinite(values).all():
            raise DataError(f"a {what} is not a finite number; correct it")
    if (weights_P < 0).any():
        raise DataError(f"the weight {weights_P.min():g} is below 0; give weights from 0 on")
    targets_P = targets(labels_P)
    kept = weights_P > 0
    scores_P, targets_P, weights_P = scores_P[kept], targets_P[kept], weights_P[kept]
    if not (targets_P > 0).any() or not (targets_P < 1).any():
        which = "relevant" if targets_P.size and targets_P.min() == 1 else "irrelevant"
        raise DataError(
            f"all {scores_P.size} documents are {which}; calibration needs relevant and "
            "irrelevant ones"
        )
    return scores_P, targets_P, weights_P


def _smoothed(targets_P: FloatArray, weights_P: FloatArray) -> FloatArray:
    """Platt's targets; a soft target lies as far between them as it did between 0 and 1."""
    positive = float((weights_P * targets_P).sum())
    negative = float(weights_P.sum()) - positive
    high, low = (positive + 1) / (positive + 2), 1 / (negative + 2)
    return np.asarray(low + targets_P * (high - low), np.float64)


def _newton(
    design_PF: FloatArray, targets_P: FloatArray, weights_P: FloatArray, start_F: FloatArray
) -> FloatArray:
    """Least negative log-likelihood of a logistic model: convex, so Newton with halved steps.

    The likelihood is written without a logarithm of a probability, as in Lin, Lin & Weng 2007.
    """

    def loss(parameters_F: FloatArray) -> float:
        z_P = design_PF @ parameters_F
        return float((weights_P * (np.logaddexp(0, z_P) - targets_P * z_P)).sum())

    parameters_F, value = start_F, loss(start_F)
    for _ in range(100):
        p_P = sigmoid(design_PF @ parameters_F)
        gradient_F = design_PF.T @ (weights_P * (p_P - targets_P))
        hessian_FF = (design_PF.T * (weights_P * p_P * (1 - p_P))) @ design_PF
        hessian_FF += 1e-12 * weights_P.sum() * np.eye(len(parameters_F))
        step_F = np.linalg.solve(hessian_FF, gradient_F)
        size = 1.0
        # at the end the sum's rounding is larger than what a step gains
        while size > 1e-10 and loss(parameters_F - size * step_F) > value + 1e-12 * (1 + value):
            size /= 2
        if size <= 1e-10:
            break
        parameters_F = parameters_F - size * step_F
        value = loss(parameters_F)
        if np.abs(size * step_F).max() <= 1e-12 * (1 + np.abs(parameters_F).max()):
            break
    return parameters_F


def threshold_for_precision(
    scores: npt.ArrayLike, labels: npt.ArrayLike, precision: float
) -> Threshold:
    """The lowest threshold at which this share of the kept documents is relevant.

    Args:
        scores: ``P`` scores.
        labels: ``P`` labels, see the module; with soft ones precision is its expectation.
        precision: in (0, 1].

    Raises:
        ConfigError: the goal is out of its range.
        DataError: no threshold reaches it.
    """
    _check_goal("precision", precision)
    cuts = _Cuts(scores, labels)
    reached = np.flatnonzero(cuts.hits_C >= precision * cuts.kept_C - 1e-9)
    if not len(reached):
        shares_C = cuts.hits_C / cuts.kept_C
        best = int(np.argmax(shares_C))
        raise DataError(
            f"no threshold reaches a precision of {precision:g} on these rows; the highest is "
            f"{shares_C[best]:.4f}, with the best {cuts.kept_C[best]} of {cuts.kept_C[-1]} "
            "documents; ask for less"
        )
    return cuts.threshold(int(reached[-1]), "precision", precision)


def threshold_for_recall(scores: npt.ArrayLike, labels: npt.ArrayLike, recall: float) -> Threshold:
    """The highest threshold that keeps this share of the relevant documents.

    Args:
        scores: ``P`` scores.
        labels: ``P`` labels, see the module; with soft ones recall is its expectation.
        recall: in (0, 1].

    Raises:
        ConfigError: the goal is out of its range.
        DataError: there is no relevant document.
    """
    _check_goal("recall", recall)
    cuts = _Cuts(scores, labels)
    reached = np.flatnonzero(cuts.hits_C >= recall * cuts.hits_C[-1] - 1e-9)
    return cuts.threshold(int(reached[0]), "recall", recall)


def check_goals(
    precision: Sequence[float] = (), recall: Sequence[float] = ()
) -> list[tuple[str, float]]:
    """Name wanted thresholds, each once: ``[("precision", 0.9), ("recall", 0.95)]``.

    Raises:
        ConfigError: a goal is out of its range.
    """
    goals = [("precision", goal) for goal in precision] + [("recall", goal) for goal in recall]
    for name, goal in goals:
        _check_goal(name, goal)
    return list(dict.fromkeys(goals))


def _check_goal(name: str, goal: float) -> None:
    if not 0 < goal <= 1:
        raise ConfigError(f"--{name} {goal:g} is not above 0 and at most 1")


class _Cuts:
    """Every place between two scores, from the top: how many are kept, how many are relevant."""

    def __init__(self, scores: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        scores_P, targets_P, _ = _pairs(scores, labels, None)
        order = np.argsort(-scores_P, kind="stable")
        scores_P = scores_P[order]
        # equal scores are kept together
        last_C = np.flatnonzero(np.append(scores_P[1:] != scores_P[:-1], True))
        self.scores_C = scores_P[last_C]
        self.kept_C = last_C + 1
        self.hits_C = np.cumsum(targets_P[order])[last_C]

    def threshold(self, cut: int, metric: str, goal: float) -> Threshold:
        score = float(self.scores_C[cut])
        if cut + 1 < len(self.scores_C):
            below = float(self.scores_C[cut + 1])
            middle = score / 2 + below / 2
            score = middle if below < middle else score
        kept, hits, relevant = int(self.kept_C[cut]), float(self.hits_C[cut]), self.hits_C[-1]
        return Threshold(
            metric,
            float(goal),
            score,
            precision=hits / kept,
            recall=float(hits / relevant),
            kept=kept,
            documents=int(self.kept_C[-1]),
            relevant=float(relevant),
            interval=wilson_interval(hits, kept if metric == "precision" else float(relevant)),
        )


def wilson_interval(hits: float, count: float, z: float = Z) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), inside [0, 1] however few there are."""
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = share * (1 - share) / count + z * z / (4 * count * count)
    half = z * math.sqrt(max(spread, 0.0)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def reliability(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    bins: int = BINS,
    *,
    equal_mass: bool = False,
    weights: npt.ArrayLike | None = None,
) -> list[Bin]:
    """Group documents by probability: what a reliability diagram shows.

    Args:
        probabilities: ``P`` probabilities.
        labels: ``P`` labels, see the module.
        bins: how many bins; empty ones are left out.
        equal_mass: as many documents in each, as far as ties allow; otherwise equal widths.
        weights: ``P`` weights, default 1.

    Raises:
        ConfigError: there is less than one bin.
        DataError: a probability is not in [0, 1], or the lengths differ.
    """
    if bins < 1:
        raise ConfigError(f"bins {bins} is less than 1")
    p_P = np.asarray(probabilities, np.float64)
    targets_P = targets(labels)
    weights_P = np.ones_like(p_P) if weights is None else np.asarray(weights, np.float64)
    if p_P.ndim != 1 or not p_P.shape == targets_P.shape == weights_P.shape or not p_P.size:
        raise DataError(
            f"probabilities, labels and weights have the shapes {p_P.shape}, {targets_P.shape} and "
            f"{weights_P.shape}; give flat lists of one length"
        )
    if not ((p_P >= 0) & (p_P <= 1)).all():
        raise DataError("a probability is not from 0 to 1; give sigmoid(score)")
    edges_B = np.linspace(0, 1, bins + 1)
    if equal_mass:
        edges_B = np.quantile(p_P, edges_B)
    bin_P = np.searchsorted(edges_B[1:-1], p_P)
    found = []
    for b in range(bins):
        inside = bin_P == b
        mass = float(weights_P[inside].sum())
        if mass > 0:
            share_P = weights_P[inside] / mass
            confidence = float((share_P * p_P[inside]).sum())
            frequency = float((share_P * targets_P[inside]).sum())
            edges = float(edges_B[b]), float(edges_B[b + 1])
            found.append(Bin(*edges, mass, confidence, frequency))
    return found


def expected_calibration_error(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    bins: int = BINS,
    *,
    equal_mass: bool = False,
    weights: npt.ArrayLike | None = None,
) -> float:
    """ECE: mean over the documents of ``|frequency - confidence|`` of their bin.

    See ``reliability`` for the arguments. It is that of the probability of relevance, not of the
    more likely class.
    """
    found = reliability(probabilities, labels, bins, equal_mass=equal_mass, weights=weights)
    total = sum(b.count for b in found)
    return sum(b.count * abs(b.frequency - b.confidence) for b in found) / total


def figures(
    logits: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> dict[str, float]:
    """How good probabilities are: ``nll``, ``ece`` and ``brier``, each lower is better.

    Args:
        logits: ``P`` logits of the probabilities; saturated ones still have a finite ``nll``.
        labels: ``P`` labels, see the module.
        weights: ``P`` weights, default 1.
    """
    z_P, targets_P = np.asarray(logits, np.float64), targets(labels)
    weights_P = np.ones_like(z_P) if weights is None else np.asarray(weights, np.float64)
    p_P, share_P = sigmoid(z_P), weights_P / weights_P.sum()
    return {
        "nll": float((share_P * (np.logaddexp(0, z_P) - targets_P * z_P)).sum()),
        "ece": expected_calibration_error(p_P, targets_P, weights=weights_P),
        "brier": float((share_P * (p_P - targets_P) ** 2).sum()),
    }


def held_out(
    method: str,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    queries: npt.ArrayLike,
    *,
    folds: int = 5,
    seed: int = 0,
    goals: Sequence[tuple[str, float]] = (),
) -> dict[str, Any]:
    """Measure a method on rows that it was not fitted to: k-fold cross-validation over queries.

    Args:
        method: a name in ``METHODS``.
        scores: ``P`` scores.
        labels: ``P`` labels, see the module.
        queries: ``P`` numbers or ids; the documents of a query stay together.
        folds: parts, at most as many as there are queries.
        seed: of the order in which queries are dealt to the parts.
        goals: thresholds to measure too, such as ``("precision", 0.9)``.

    Returns:
        ``figures`` of the held-out probabilities; and ``thresholds``: for each goal the precision,
        the recall and the kept documents that thresholds of the other parts gave; None where a
        part's rest does not reach the goal.

    Raises:
        ConfigError: there are fewer than two folds.
        DataError: there are fewer than two queries, or a part's rest cannot be fitted.
    """
    if folds < 2:
        raise ConfigError(f"--folds {folds} is less than 2")
    scores_P, labels_P = np.asarray(scores, np.float64), targets(labels)
    unique, query_P = np.unique(np.asarray(queries), return_inverse=True)
    if len(unique) < 2:
        raise DataError("there is one query; cross-validation needs two or more")
    folds = min(folds, len(unique))
    fold_P = (np.random.default_rng(seed).permutation(len(unique)) % folds)[query_P]
    logits_P = np.empty_like(scores_P)
    kept_GP = np.zeros((len(goals), len(scores_P)), bool)
    reached_G = np.ones(len(goals), bool)
    for fold in range(folds):
        inside = fold_P == fold
        rest = scores_P[~inside], labels_P[~inside]
        logits_P[inside] = fit(method, *rest).logits(scores_P[inside])
        for g, (metric, goal) in enumerate(goals):
            try:
                edge = find_threshold(metric, goal, *rest).score
            except DataError:
                reached_G[g] = False
                continue
            kept_GP[g, inside] = scores_P[inside] >= edge
    thresholds = []
    for (metric, goal), kept_P, reached in zip(goals, kept_GP, reached_G, strict=True):
        kept, hits = int(kept_P.sum()), float(labels_P[kept_P].sum())
        thresholds.append(
            {
                "name": f"{metric}@{goal:g}",
                "kept": kept if reached else None,
                "precision": hits / kept if reached and kept else None,
                "recall": hits / float(labels_P.sum()) if reached else None,
            }
        )
    return {**figures(logits_P, labels_P), "folds": folds, "thresholds": thresholds}


def find_threshold(
    metric: str, goal: float, scores: npt.ArrayLike, labels: npt.ArrayLike
) -> Threshold:
    """``threshold_for_precision`` or ``threshold_for_recall``, by name."""
    found = {"precision": threshold_for_precision, "recall": threshold_for_recall}
    return found[metric](scores, labels, goal)


def _broken(what: str) -> CheckpointError:
    return CheckpointError(
        f"the calibration in rankwright.json is broken: {what}; fit it again with rankwright "
        "calibrate"
    )


def _shown(values: Any) -> str:
    return ", ".join(map(str, values)) or "nothing" if isinstance(values, Mapping) else repr(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
