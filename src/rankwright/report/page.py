"""Puts a report together: one HTML file, everything inline, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from rankwright.comparison import Comparison, places
from rankwright.errors import ConfigError
from rankwright.evaluation import write_text
from rankwright.records import Record
from rankwright.report import charts
from rankwright.report.charts import Chart, number
from rankwright.report.findings import Findings, find
from rankwright.report.folder import Run

WORST = 20
CHANGED = 5
DOCUMENTS = 10
CHARACTERS = 1500
# of arguments that would give something away
SECRET = re.compile(r"(?<!positive)(?<!negative)_token$|password|secret|api_key")


def write_report(run: Run, output: Path, other: Run | None = None) -> list[str]:
    """Write a run's report.

    Args:
        run: the run.
        output: the HTML file; an older one is replaced.
        other: another run to compare it with.

    Returns:
        The titles of what deserves a look.

    Raises:
        ConfigError: plotly is missing, or the file cannot be written.
        DataError: see ``findings.find``.
    """
    findings = find(run, other)
    write_text(output, render(run, findings, other))
    return [f"{advice.level}: {advice.title}" for advice in findings.advice]


def render(run: Run, findings: Findings, other: Run | None = None) -> str:
    """The page as text; see ``write_report``."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError(
            "the report is drawn by plotly; install the extra: pip install 'rankwright[report]'"
        ) from error
    parts = {
        "curves": charts.curves(run, findings),
        "distributions": charts.distributions(run, findings),
        "scores": charts.score_histograms(findings),
        "calibration": charts.calibration(run, findings),
        "lengths": charts.lengths(run),
        "other": [],
    }
    if findings.other is not None:
        parts["other"] = [
            charts.change_chart(
                "chart-other",
                findings.other,
                run.main_metric,
                "Change of each query against the other run",
                "this run",
            )
        ]
    plotly, script = get_plotlyjs(), _asset("page.js")
    # autoescape is for every value; what is marked safe below is ours
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    template = environment.from_string(_asset("page.html"))
    below = _below(run, findings)
    return template.render(
        run=run,
        findings=findings,
        other=other,
        parts=parts,
        tiles=_tiles(run, findings),
        sides=_sides(run, findings),
        saved=_saved(run),
        comparisons=_comparisons(findings),
        below=len(below),
        worst=_shown(run, findings, below, WORST) if below else [],
        lost=_lost(run, findings),
        facts=_facts(run, findings),
        arguments=_arguments(run),
        versions={**run.spec.get("versions", {})},
        style=Markup(_asset("page.css")),  # noqa: S704
        plotly=Markup(plotly),  # noqa: S704
        script=Markup(script),  # noqa: S704
        figures=Markup(_figures(parts)),  # noqa: S704
        policy=_policy(plotly, script),
    )


def _asset(name: str) -> str:
    return (files("rankwright.report") / "assets" / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """A content security policy: these scripts run, no other does, and nothing is fetched."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _figures(parts: dict[str, list[Chart]]) -> str:
    """All figures as JSON that cannot end the element it stands in."""
    found = {chart.id: chart.figure for group in parts.values() for chart in group}
    text = json.dumps(found, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _tiles(run: Run, findings: Findings) -> list[dict[str, str]]:
    """The figures to see first."""
    tiles = []
    metric = run.main_metric

    def against(found: Comparison | None, what: str) -> str:
        if found is None:
            return ""
        d = found.differences[metric]
        interval = "" if d.low is None else f" ({d.low:+.4f} to {d.high:+.4f})"
        return f"{d.difference:+.4f}{interval} against {what}"

    if findings.after is not None:
        value = findings.after.result.metrics[metric]
        note = against(findings.change, "before training")
        tiles.append({"name": f"{metric} after training", "value": f"{value:.4f}", "note": note})
    if findings.before is not None:
        value = findings.before.result.metrics[metric]
        tiles.append({"name": f"{metric} before training", "value": f"{value:.4f}", "note": ""})
    if findings.first_stage is not None:
        value = findings.first_stage.differences[metric].a
        note = "after training: " + against(findings.first_stage, "it")
        tiles.append(
            {"name": f"{metric} of the first stage", "value": f"{value:.4f}", "note": note}
        )
    if findings.change is not None:
        d = findings.change.differences[metric]
        note = f"{d.ties} equal; p = {d.p_value:.2g} (randomisation test)"
        tiles.append(
            {"name": "queries better / worse", "value": f"{d.wins} / {d.losses}", "note": note}
        )
    if findings.after is not None:
        rate = findings.after.result.tie_rate
        note = "pairs that the scores do not tell apart"
        tiles.append({"name": "tie rate", "value": f"{rate:.4f}", "note": note})
    steps = run.metrics.get("steps", run.state.get("global_step"))
    if steps is not None:
        seconds = run.metrics.get("seconds")
        note = "" if seconds is None else f"in {_duration(seconds)}"
        tiles.append({"name": "optimiser steps", "value": f"{steps}", "note": note})
    return tiles


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value)[:20] or "0 s"


def _sides(run: Run, findings: Findings) -> list[dict[str, Any]]:
    """Rows of the table of means and quartiles."""
    rows = []
    for metric in run.metric_names:
        for name, scores in (("before", findings.before), ("after", findings.after)):
            if scores is not None:
                values = charts.percentiles(scores.result.values(metric))
                rows.append({"metric": metric, "side": name, "values": values})
    return rows


def _saved(run: Run) -> list[tuple[str, str]]:
    """What the saved calibration is, what it was fitted on and what it is worth elsewhere."""
    if run.calibration is None:
        return []
    record = run.calibration.record
    parameters = ", ".join(f"{n} {number(v)}" for n, v in run.calibration.parameters.items())
    found = [("method", f"{run.calibration.method}: {parameters}")]
    if {"queries", "documents"} <= set(record):
        found.append(("fitted on", f"{record['queries']} queries, {record['documents']} documents"))
    held = record.get("held_out")
    if isinstance(held, dict) and {"ece", "brier", "folds"} <= set(held):
        text = f"calibration error {number(held['ece'])}, Brier score {number(held['brier'])}"
        found.append((f"held out ({held['folds']} folds)", text))
    for threshold in run.calibration.thresholds:
        text = (
            f"score {number(threshold.score)}, probability "
            f"{number(float(run.calibration.probabilities([threshold.score])[0]))}: precision "
            f"{number(threshold.precision)}, recall {number(threshold.recall)}"
        )
        found.append((threshold.name, text))
    return found


def _comparisons(findings: Findings) -> list[dict[str, Any]]:
    """The tables of differences that are known."""
    found = (
        ("change", "After training against before", findings.change),
        ("first-stage", "After training against the first stage", findings.first_stage),
    )
    return [
        {"id": name, "title": title, "found": comparison}
        for name, title, comparison in found
        if comparison is not None
    ]


def _below(run: Run, findings: Findings) -> list[int]:
    """The queries that are not ranked perfectly, the lowest metric first."""
    if findings.after is None:
        return []
    result = findings.after.result
    values = result.per_query[run.main_metric]
    # the expectation over ties is a sum that may miss 1 by rounding
    below = (q for q in range(result.queries) if result.has_positive[q] and values[q] < 1 - 1e-9)
    return sorted(below, key=lambda q: values[q])


def _lost(run: Run, findings: Findings) -> list[dict[str, Any]]:
    """The queries that training made worse, the greatest loss first."""
    if findings.change is None or findings.after is None:
        return []
    _, losses = findings.change.largest(run.main_metric, findings.change.a.queries)
    ids = {query_id: q for q, query_id in enumerate(findings.after.result.query_ids)}
    order = [ids[findings.change.b.query_ids[q]] for q in losses]
    return _shown(run, findings, order, CHANGED)


def _shown(run: Run, findings: Findings, order: list[int], count: int) -> list[dict[str, Any]]:
    assert findings.after is not None
    before = {r.row: r for r in findings.before.records} if findings.before else {}
    found = []
    for q in order:
        record = findings.after.records[q]
        if record.documents is None or record.query is None:
            continue
        values = {
            name: (
                _value(findings, name, q, before.get(record.row)),
                float(findings.after.result.per_query[name][q]),
            )
            for name in run.metric_names
        }
        documents = _documents(record, before.get(record.row))
        found.append(
            {
                "query": record.query,
                "id": record.query_id,
                "main": values[run.main_metric],
                "values": values,
                "documents": documents,
                "more": len(record.labels) - len(documents),
            }
        )
        if len(found) == count:
            break
    return found


def _value(findings: Findings, metric: str, q: int, before: Record | None) -> float | None:
    if findings.change is None or findings.after is None or before is None:
        return None
    ids = findings.change.a.query_ids
    query_id = findings.after.result.query_ids[q]
    if query_id not in ids:
        return None
    return float(findings.change.a.per_query[metric][ids.index(query_id)])


def _documents(record: Record, before: Record | None) -> list[dict[str, Any]]:
    """The first documents of a ranking, and every relevant one below."""
    assert record.documents is not None
    now = places(record.scores)
    then = places(before.scores) if before is not None else None
    first = places(record.first_stage_scores) if record.first_stage_scores else None
    order = sorted(range(len(record.scores)), key=lambda i: -record.scores[i])
    kept = [i for n, i in enumerate(order) if n < DOCUMENTS or record.labels[i] > 0]
    return [
        {
            "rank": now[i],
            "before": then[i] if then else "-",
            "first": first[i] if first else None,
            "label": f"{record.labels[i]:g}",
            "relevant": record.labels[i] > 0,
            "score": f"{record.scores[i]:.3f}",
            "text": record.documents[i][:CHARACTERS],
            "cut": len(record.documents[i]) > CHARACTERS,
        }
        for i in kept[: 3 * DOCUMENTS]
    ]


def _facts(run: Run, findings: Findings) -> list[tuple[str, str]]:
    """What is known of the rows and the run."""
    rows, cut = run.metrics.get("rows") or {}, run.metrics.get("truncated") or {}
    speeds = [e["pairs_per_second"] for e in run.history if "pairs_per_second" in e]
    kept = run.metrics.get("records") or {}
    facts: list[tuple[str, Any]] = [
        ("base model", run.training.get("model")),
        ("kind", run.spec.get("kind")),
        ("loss", run.training.get("loss_type")),
        ("tuner", run.training.get("tuner_type")),
    ]
    for name, part in rows.items():
        if part.get("rows"):
            facts.append(
                (
                    f"{name} rows",
                    f"{part['rows']} with {part['positives']} positive and {part['negatives']} "
                    "negative documents",
                )
            )
    if run.rows_from:
        facts.append(("ranked now", ", ".join(run.rows_from)))
    if findings.after is not None:
        result = findings.after.result
        facts.append(("queries in this report", f"{result.queries}, {result.documents} documents"))
        if kept and kept.get("kept") != kept.get("rows") and not run.rows_from:
            facts.append(
                ("kept of the validation", f"{kept['kept']} of {kept['rows']} rows, evenly chosen")
            )
    for reason, count in (run.metrics.get("dropped") or {}).items():
        facts.append(("left out of training", f"{count} {reason}"))
    for name, count in cut.items():
        facts.append((f"{name} cut in training", count))
    facts.append(("mean training loss", run.metrics.get("train_loss")))
    if speeds:
        facts.append(("pairs per second", f"{sorted(speeds)[len(speeds) // 2]:g} (median)"))
    shown: Callable[[Any], str] = lambda v: f"{v:.4f}" if isinstance(v, float) else str(v)  # noqa: E731
    return [(name, shown(value)) for name, value in facts if value is not None and value != ""]


def _arguments(run: Run) -> list[tuple[str, str]]:
    """The arguments of the run, those that would give a secret away without their value."""
    found = []
    for name, value in sorted(run.training.items()):
        if value is None or value == "" or value == []:
            continue
        shown = "(not shown)" if SECRET.search(name) else value
        text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
        found.append((name, text))
    return found
