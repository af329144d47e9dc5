"""The charts of a report, as Plotly figures without colours: the page paints them to its theme.

A trace's ``meta.role`` names its colour (``--before`` in the style sheet), so light and dark are a
matter of the page alone. Nothing that comes from rows is put into a figure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from rankwright.calibration import BINS as CALIBRATION_BINS
from rankwright.calibration import figures, reliability, sigmoid
from rankwright.comparison import Comparison
from rankwright.errors import ConfigError
from rankwright.metrics import FloatArray
from rankwright.report.findings import Findings, Scores, series
from rankwright.report.folder import Run

Cell = str | int | float
BEFORE, AFTER, CALIBRATED = "before", "after", "calibrated"
# queries of a chart that has a bar for each; of more, evenly chosen ones are drawn
BARS = 300
# bins of a metric's distribution over queries
BINS = 10
SCORE_BINS = 40
MIDDLES = [(b + 0.5) / BINS for b in range(BINS)]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with what can be read in its place.

    Attributes:
        id: of its element.
        title: its heading.
        text: what it shows, in a sentence or two.
        figure: Plotly's JSON.
        head: names of the table's columns.
        rows: the numbers.
        height: in pixels.
        wide: whether it takes the whole width.
    """

    id: str
    title: str
    text: str
    figure: dict[str, Any]
    head: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    height: int = 320
    wide: bool = False


def _plotly() -> Any:
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ConfigError(
            "the report is drawn by plotly; install the extra: pip install 'rankwright[report]'"
        ) from error
    return go


def _figure(traces: Sequence[Any], x: str, y: str, **layout: Any) -> dict[str, Any]:
    go = _plotly()
    figure = go.Figure(list(traces))
    figure.update_layout(
        template="none",
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="closest",
        bargap=0.08,
        xaxis={"title": {"text": x, "standoff": 8}, "automargin": True, "zeroline": False},
        yaxis={"title": {"text": y, "standoff": 8}, "automargin": True, "zeroline": False},
    )
    figure.update_layout(**layout)
    found: dict[str, Any] = json.loads(figure.to_json())
    # the page gives the theme, and the default one is kilobytes in every figure
    found["layout"].pop("template", None)
    return found


def _line(x: Sequence[Any], y: Sequence[Any], name: str, role: str, **more: Any) -> Any:
    values: dict[str, Any] = {"mode": "lines", "line": {"width": 2}, **more}
    return _plotly().Scatter(x=list(x), y=list(y), name=name, meta={"role": role}, **values)


def _bars(x: Sequence[Any], y: Sequence[Any], name: str, role: str, **more: Any) -> Any:
    # the pattern tells them apart without colour, in print too
    shape = {BEFORE: "/", "negative": "/", CALIBRATED: "x"}.get(role, "")
    pattern = {"shape": shape, "solidity": 0.3, "size": 6}
    pattern["fillmode"] = "overlay"
    return _plotly().Bar(
        x=list(x),
        y=list(y),
        name=name,
        meta={"role": role},
        marker={"pattern": pattern, "line": {"width": 0}},
        **more,
    )


def curves(run: Run, findings: Findings) -> list[Chart]:
    """Losses, metrics, learning rate and gradient norm by step."""
    charts = []
    steps, losses = series(run.history, "loss")
    eval_steps, eval_losses = series(run.history, "eval_loss")
    best = run.state.get("best_global_step")
    if losses or eval_losses:
        dots = "lines+markers" if len(losses) < 40 else "lines"
        traces = [_line(steps, losses, "training", AFTER, mode=dots)] if losses else []
        if eval_losses:
            more = {"mode": "lines+markers", "line": {"width": 2, "dash": "dash"}}
            traces.append(_line(eval_steps, eval_losses, "validation", BEFORE, **more))
        text = "Loss by optimiser step; lower is better."
        if len(losses) > 1:
            text += f" Training: from {losses[0]:.4f} to {losses[-1]:.4f}."
        charts.append(
            Chart(
                "chart-loss",
                "Loss",
                text + " Validation is measured over the full candidate lists, training over "
                "sampled groups, so their levels differ.",
                _figure(traces, "step", "loss", **_best(best, top=True)),
                ["step", "training", "validation"],
                _joined((steps, losses), (eval_steps, eval_losses)),
            )
        )
    found = {name: series(run.history, f"eval_{name}") for name in run.metric_names}
    found = {name: values for name, values in found.items() if values[0]}
    if found:
        dashes = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
        names = sorted(found, key=lambda name: name != run.main_metric)
        traces = [
            _line(
                *found[name],
                name,
                f"series-{i % 6 + 1}",
                mode="lines+markers",
                line={"width": 3 if name == run.main_metric else 2, "dash": dashes[i % 6]},
            )
            for i, name in enumerate(names)
        ]
        if findings.first_stage is not None:
            level = findings.first_stage.differences[run.main_metric].a
            ends = [min(found[names[0]][0]), max(found[names[0]][0])]
            more = {"line": {"width": 1.5, "dash": "dot"}}
            traces.append(
                _line(ends, [level] * 2, f"first stage, {run.main_metric}", "muted", **more)
            )
        values = found[names[0]][1]
        text = (
            f"Validation by optimiser step; higher is better. {names[0]}: from {values[0]:.4f} to "
            f"{values[-1]:.4f}"
        )
        text += f"; the best step is {best}." if best else "."
        charts.append(
            Chart(
                "chart-metrics",
                "Validation metrics",
                text,
                _figure(traces, "step", "mean over the queries", **_best(best, top=False)),
                ["step", *names],
                _joined(*(found[name] for name in names)),
            )
        )
    for name, title, text in (
        ("learning_rate", "Learning rate", "The schedule, warm-up first."),
        ("grad_norm", "Gradient norm", "Before clipping. Spikes come with unstable training."),
    ):
        at, values = series(run.history, name)
        if len(values) > 1:
            charts.append(
                Chart(
                    f"chart-{name.replace('_', '-')}",
                    title,
                    text,
                    _figure(
                        [_line(at, values, title.lower(), AFTER)],
                        "step",
                        title.lower(),
                        yaxis={
                            "title": {"text": title.lower(), "standoff": 8},
                            "automargin": True,
                            "zeroline": False,
                            "exponentformat": "e",
                            "rangemode": "tozero",
                        },
                    ),
                    ["step", title.lower()],
                    _joined((at, values)),
                    260,
                )
            )
    return charts


def _best(step: Any, *, top: bool) -> dict[str, Any]:
    """A vertical line at the step whose checkpoint is the final model."""
    if not isinstance(step, int):
        return {}
    line = {
        "type": "line", "name": "muted", "x0": step, "x1": step, "y0": 0, "y1": 1,
        "yref": "paper", "line": {"width": 1, "dash": "dot"},
    }  # fmt: skip
    label = {
        "text": "best", "x": step, "y": int(top), "yref": "paper", "xanchor": "right",
        "yanchor": "top" if top else "bottom",
        "showarrow": False, "name": "muted", "xshift": -3,
    }  # fmt: skip
    return {"shapes": [line], "annotations": [label]}


def _joined(*columns: tuple[Sequence[int], Sequence[float]]) -> list[list[Cell]]:
    """One row for each step of any column; at most 200, evenly chosen."""
    maps = [dict(zip(*column, strict=True)) for column in columns]
    steps = sorted({step for column in maps for step in column})
    stride = max(1, -(-len(steps) // 200))
    chosen = [step for i, step in enumerate(steps) if i % stride == 0 or i == len(steps) - 1]
    return [[step, *(number(column.get(step)) for column in maps)] for step in chosen]


def number(value: float | None) -> str:
    """A number as the tables show it; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"


def distributions(run: Run, findings: Findings) -> list[Chart]:
    """Histograms of each metric over the queries, before and after, and the change of each."""
    charts = []
    sides = [(BEFORE, findings.before), (AFTER, findings.after)]
    known = [(name, scores) for name, scores in sides if scores is not None]
    edges = np.linspace(0, 1, BINS + 1)
    labels = [f"{a:.1f} to {b:.1f}" for a, b in pairwise(edges)]
    for i, metric in enumerate(run.metric_names if known else []):
        traces, counts, texts = [], [], []
        for side, scores in known:
            values = scores.result.values(metric)
            found = np.histogram(values, edges)[0].tolist()
            counts.append(found)
            traces.append(_bars(MIDDLES, found, f"{side} training", side, **_named(labels)))
            texts.append(
                f"{side}: mean {values.mean():.4f}, median {np.median(values):.4f}, "
                f"{(values == 0).sum()} at 0, {(values >= 1).sum()} at 1"
            )
        rows: list[list[Cell]] = [
            [label, *(column[b] for column in counts)] for b, label in enumerate(labels)
        ]
        charts.append(
            Chart(
                f"chart-distribution-{i}",
                metric,
                f"Queries by their {metric}. {'; '.join(texts)}.",
                _figure(traces, metric, "queries", barmode="group", xaxis=_unit(metric)),
                [metric, *(f"{side} training" for side, _ in known)],
                rows,
                280,
            )
        )
    if findings.change is not None:
        charts.append(
            change_chart(
                "chart-change", findings.change, run.main_metric, "Change of each query", "training"
            )
        )
    return charts


def _unit(title: str) -> dict[str, Any]:
    """An axis from 0 to 1."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "zeroline": False,
        "range": [-0.02, 1.02],
        "tick0": 0,
        "dtick": 0.2,
    }


def _named(labels: Sequence[str]) -> dict[str, Any]:
    """What is shown of a bar that is pointed at: its bin, not its middle."""
    return {"customdata": list(labels), "hovertemplate": "%{customdata}: %{y}<extra></extra>"}


def change_chart(id: str, found: Comparison, metric: str, title: str, what: str) -> Chart:
    """A bar for each query, from the greatest gain to the greatest loss."""
    change = found.per_query(metric)[found.a.has_positive]
    ordered = np.sort(change)[::-1]
    chosen = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), BARS)).astype(int))
    traces = []
    for name, role, sign in (("better", "positive", 1), ("worse", "negative", -1)):
        kept = [int(i) for i in chosen if (ordered[i] >= 0) == (sign > 0)]
        values = [float(ordered[i]) for i in kept]
        traces.append(_bars([i + 1 for i in kept], values, name, role))
    d = found.differences[metric]
    text = (
        f"{metric} with {what} minus without, one bar for each query, from the greatest gain to "
        f"the greatest loss: {d.wins} better, {d.losses} worse, {d.ties} equal."
    )
    if len(chosen) < len(ordered):
        text += f" {len(chosen)} of {len(ordered)} queries are drawn, evenly chosen."
    levels = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
    return Chart(
        id,
        title,
        text,
        _figure(traces, "queries, best gain first", f"change of {metric}", bargap=0),
        ["share of the queries", "change at least"],
        [[f"{level:.0%}", number(float(np.quantile(change, 1 - level)))] for level in levels],
        280,
        True,
    )


def score_histograms(findings: Findings) -> list[Chart]:
    """Scores of relevant and other documents, before and after."""
    charts = []
    for side, scores in ((BEFORE, findings.before), (AFTER, findings.after)):
        if scores is not None:
            charts.append(_score_histogram(side, scores))
    return charts


def _score_histogram(side: str, scores: Scores) -> Chart:
    low, high = float(scores.scores_P.min()), float(scores.scores_P.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    # an empty bin at either end closes the outline
    width = (high - low) / (SCORE_BINS - 2)
    edges = np.linspace(low - width, high + width, SCORE_BINS + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    traces, shares, texts = [], [], []
    for name, role, mask, dash in (
        ("relevant", "positive", scores.relevant_P, "solid"),
        ("not relevant", "negative", ~scores.relevant_P, "dash"),
    ):
        values = scores.scores_P[mask]
        if not values.size:
            shares.append([0.0] * SCORE_BINS)
            continue
        share = (np.histogram(values, edges)[0] / values.size).tolist()
        shares.append(share)
        line = {"width": 2, "shape": "hvh", "dash": dash}
        traces.append(_line(middles, share, name, role, line=line, fill="tozeroy"))
        texts.append(
            f"{name}: {values.size} documents, mean {values.mean():.3f}, from {values.min():.3f} "
            f"to {values.max():.3f}"
        )
    text = f"Share of the documents by score (logit) {side} training. {'; '.join(texts)}."
    chance = separation(scores)
    if chance is not None:
        text += (
            f" A relevant document scores above another one, of whatever query, with the chance "
            f"{chance:.3f} (0.5 is guessing)."
        )
    return Chart(
        f"chart-scores-{side}",
        f"Scores {side} training",
        text,
        _figure(traces, "score (logit)", "share of the documents"),
        ["score", "relevant", "not relevant"],
        [
            [f"{a:.3f} to {b:.3f}", number(shares[0][i]), number(shares[1][i])]
            for i, (a, b) in enumerate(pairwise(edges))
        ],
    )


def separation(scores: Scores) -> float | None:
    """Area under the ROC curve over all documents, ties counting half; None without both kinds.

    By ranks, as the Mann-Whitney statistic (Hanley & McNeil 1982).
    """
    count = int(scores.relevant_P.sum())
    others = scores.relevant_P.size - count
    if not count or not others:
        return None
    _, group_P, sizes = np.unique(scores.scores_P, return_inverse=True, return_counts=True)
    ranks_P = (np.cumsum(sizes) - (sizes - 1) / 2)[group_P]
    found = ranks_P[scores.relevant_P].sum() - count * (count + 1) / 2
    return float(found / (count * others))


def calibration(run: Run, findings: Findings) -> list[Chart]:
    """The reliability diagram and how many documents stand behind each of its points.

    With a saved calibration also that of the probabilities which it gives.
    """
    known: list[tuple[str, str, Scores, FloatArray]] = [
        (f"{side} training", side, scores, scores.scores_P)
        for side, scores in ((BEFORE, findings.before), (AFTER, findings.after))
        if scores is not None
    ]
    if not known:
        return []
    if run.calibration is not None and findings.after is not None:
        logits_P = run.calibration.logits(findings.after.scores_P)
        known.append(("calibrated", CALIBRATED, findings.after, logits_P))
    perfect = _line([0, 1], [0, 1], "perfect", "muted", line={"width": 1, "dash": "dot"})
    traces, bars, texts = [perfect], [], []
    rows: list[list[Cell]] = []
    for name, role, scores, logits_P in known:
        bins = reliability(sigmoid(logits_P), scores.target_P)
        dash = {BEFORE: "dash", AFTER: "solid", CALIBRATED: "dashdot"}[role]
        symbol = "diamond" if role == CALIBRATED else "circle"
        traces.append(
            _line(
                [part.confidence for part in bins],
                [part.frequency for part in bins],
                name,
                role,
                mode="lines+markers",
                line={"width": 2, "dash": dash},
                marker={"size": 8, "symbol": symbol},
            )
        )
        places = [f"{part.low:.2f} to {part.high:.2f}" for part in bins]
        middles = [(part.low + part.high) / 2 for part in bins]
        counts = [int(part.count) for part in bins]
        bars.append(_bars(middles, counts, name, role, **_named(places)))
        rows += [
            [name, place, count, number(part.confidence), number(part.frequency)]
            for place, count, part in zip(places, counts, bins, strict=True)
        ]
        found = figures(logits_P, scores.target_P)
        texts.append(
            f"{name}: expected calibration error {found['ece']:.4f}, Brier score "
            f"{found['brier']:.4f}"
        )
    return [
        Chart(
            "chart-reliability",
            "Reliability",
            f"Of the documents with a probability in one of {CALIBRATION_BINS} bins, the share "
            f"that is relevant; on the dotted line the two are equal. {'; '.join(texts)}.",
            _figure(traces, "", "", xaxis=_unit("mean probability"), yaxis=_unit("share relevant")),
            ["", "probability", "documents", "mean probability", "share relevant"],
            rows,
            380,
        ),
        Chart(
            "chart-probabilities",
            "Documents by probability",
            "How many documents stand behind each point of the reliability diagram.",
            _figure(bars, "", "documents", barmode="group", xaxis=_unit("probability"), bargap=0.2),
            ["", "probability", "documents"],
            [row[:3] for row in rows],
            380,
        ),
    ]


def lengths(run: Run) -> list[Chart]:
    """The lengths of the pairs of training."""
    found = run.metrics.get("lengths")
    if not isinstance(found, dict) or not found.get("counts"):
        return []
    edges, counts = found["edges"], found["counts"]
    limit = run.spec.get("max_length")
    go = _plotly()
    width = edges[1] - edges[0]
    bars = go.Bar(
        x=[edge + width / 2 for edge in edges[:-1]],
        y=counts,
        width=[width * 0.92] * len(counts),
        name="pairs",
        meta={"role": AFTER},
        marker={"line": {"width": 0}},
    )
    text = (
        f"Tokens of the {found['pairs']} pairs of training, as the model saw them: mean "
        f"{found['mean']:g}, median {found['median']}, 95 % at most {found['p95']}, the longest "
        f"{found['maximum']}; the limit is {limit}, and {found['at_limit']} pairs reach it."
    )
    return [
        Chart(
            "chart-lengths",
            "Lengths in training",
            text,
            _figure([bars], "tokens of a pair", "pairs"),
            ["tokens", "pairs"],
            [[f"{a} to {a + width - 1}", n] for a, n in zip(edges[:-1], counts, strict=True)],
            280,
            True,
        )
    ]


def percentiles(values: FloatArray) -> list[str]:
    """Mean, quartiles and extremes, for a table."""
    return [
        number(float(x))
        for x in (
            values.mean(),
            values.min(),
            *np.quantile(values, [0.25, 0.5, 0.75]),
            values.max(),
        )
    ]
