"""Two rankings compared: by hand, against scipy, and by law."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rankwright import cli
from rankwright.comparison import (
    EXACT,
    Comparison,
    ScoredRows,
    compare,
    differences_table,
    first_stage_lists,
    holm,
    judged_examples,
    places,
    randomisation_test,
    run_lists,
    side_by_side,
)
from rankwright.data.readers import read_trec_run
from rankwright.errors import ConfigError, DataError
from rankwright.evaluation import (
    bootstrap_interval,
    read_qrels,
    write_qrels,
    write_trec_run,
)
from rankwright.types import Example, ScoredList
from tests.tiny import examples, save_base


def lists(*scores: list[float]) -> list[ScoredList]:
    """Queries of three documents, the first relevant."""
    return [
        ScoredList(
            Example(f"query {i}", ["good", "bad", "worse"], [1.0, 0.0, 0.0], query_id=f"q{i}"),
            values,
        )
        for i, values in enumerate(scores)
    ]


FIRST, SECOND, THIRD = [3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [1.0, 3.0, 2.0]


def test_hand_comparison() -> None:
    """MRR of A: 1, 1/2, 1/3, 1; of B: 1, 1, 1, 1/2. Differences 0, 1/2, 2/3, -1/2; mean 1/6.

    The three that are not 0 have 8 sign patterns. The sum that was found is 2/3; at least as far
    from 0 are ±(1/2 + 2/3 + 1/2), ±(1/2 + 2/3 - 1/2) and ±(-1/2 + 2/3 + 1/2): 6 of 8.
    """
    found = compare(lists(FIRST, SECOND, THIRD, FIRST), lists(FIRST, FIRST, FIRST, SECOND), ["mrr"])
    d = found.differences["mrr"]
    assert (d.a, d.b) == pytest.approx((17 / 24, 21 / 24))
    assert d.difference == pytest.approx(1 / 6)
    assert (d.wins, d.losses, d.ties) == (2, 1, 1)
    assert d.p_value == pytest.approx(6 / 8)
    assert d.exact
    assert found.per_query("mrr") == pytest.approx([0, 1 / 2, 2 / 3, -1 / 2])
    assert found.largest("mrr", 5) == ([2, 1], [3])
    assert found.largest("mrr", 1) == ([2], [3])


def test_p_value_by_counting() -> None:
    """All five differences are 1: only all plus and all minus reach the sum, 2 of 32 patterns."""
    assert randomisation_test([1.0] * 5, 0) == (2 / 32, True)
    # 1 and -1 sum to 0, and every pattern is as far from 0 as that
    assert randomisation_test([1.0, -1.0], 0) == (1.0, True)
    # differences of 0 change nothing
    assert randomisation_test([1.0] * 5 + [0.0] * 30, 0) == (2 / 32, True)


@pytest.mark.parametrize("count", [2, 5, 9, EXACT])
def test_exact_p_value_is_scipys(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).normal(0.3, 1, count)
    reference = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    found, exact = randomisation_test(values, 0)
    assert exact
    assert found == pytest.approx(reference.pvalue, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.4])
def test_sampled_p_value_is_scipys(shift: float) -> None:
    """Two independent draws of 20,000 patterns: apart by less than five standard errors."""
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(7).normal(shift, 1, 60)
    reference = stats.permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=False,
        random_state=np.random.default_rng(1),
    ).pvalue
    found, exact = randomisation_test(values, 2, 20_000)
    assert not exact
    error = np.sqrt(2 * max(reference * (1 - reference), 1e-4) / 20_000)
    assert abs(found - reference) < 5 * error
    assert randomisation_test(values, 2, 20_000) == (found, False)


def test_no_sampled_p_value_is_zero() -> None:
    assert randomisation_test(np.ones(40), 0, 99) == (1 / 100, False)


def test_interval_is_scipys_paired_bootstrap() -> None:
    """The interval of the differences against scipy's percentile bootstrap of the pairs."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    a, b = rng.uniform(size=80), rng.uniform(size=80) + 0.1
    reference = stats.bootstrap(
        (a, b),
        lambda x, y, axis: (y - x).mean(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(4),
    ).confidence_interval
    low, high = bootstrap_interval(b - a, 5, 20_000)
    assert low == pytest.approx(reference.low, abs=0.004)
    assert high == pytest.approx(reference.high, abs=0.004)


def test_holm_by_hand() -> None:
    """0.01 x 3, then max(0.03, 0.02 x 2), then max(0.04, 0.03 x 1)."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_identical_rankings() -> None:
    rng = np.random.default_rng(0)
    same = lists(*rng.normal(size=(30, 3)).tolist())
    found = compare(same, same, ["ndcg@10", "mrr", "map"])
    for d in found.differences.values():
        assert (d.difference, d.low, d.high, d.p_value, d.p_holm) == (0, 0, 0, 1, 1)
        assert (d.wins, d.losses, d.ties) == (0, 0, 30)
    assert found.largest("mrr", 3) == ([], [])


def test_swapping_turns_the_sign() -> None:
    rng = np.random.default_rng(1)
    one, two = (lists(*rng.normal(size=(12, 3)).tolist()) for _ in range(2))
    forth = compare(one, two, ["ndcg@10"]).differences["ndcg@10"]
    back = compare(two, one, ["ndcg@10"]).differences["ndcg@10"]
    assert back.difference == -forth.difference
    assert back.p_value == forth.p_value
    assert (back.wins, back.losses) == (forth.losses, forth.wins)
    assert back.low == pytest.approx(-forth.high)


def test_a_constant_scorer_gets_the_expectation() -> None:
    """Ties of three: MRR is (1 + 1/2 + 1/3) / 3 = 11/18, not that of the order in the file."""
    found = compare(lists([0.0, 0.0, 0.0]), lists(FIRST), ["mrr"])
    assert found.differences["mrr"].a == pytest.approx(11 / 18)
    assert found.a.tie_rate == 1
    # a single query has no interval, and two sign patterns
    assert (found.differences["mrr"].low, found.differences["mrr"].p_value) == (None, 1.0)
    assert places([0.0, 0.0, 0.0]) == ["1=", "1=", "1="]
    assert places([2.0, 1.0, 2.0, 3.0]) == ["2=", "4", "2=", "1"]


def test_the_means_leave_queries_without_a_positive_out() -> None:
    one, two = lists(FIRST, SECOND), lists(SECOND, SECOND)
    for part in (one, two):
        part.append(ScoredList(Example("none", ["a", "b"], [0.0, 0.0], query_id="q2"), [1.0, 2.0]))
    found = compare(one, two, ["mrr"])
    d = found.differences["mrr"]
    assert (d.a, d.b, d.wins + d.losses + d.ties) == (0.75, 0.5, 2)
    assert found.a.without_positive == 1


def test_different_rows_are_refused() -> None:
    with pytest.raises(DataError, match="A ranks 2 queries and B 1"):
        compare(lists(FIRST, FIRST), lists(FIRST), ["mrr"])
    other = lists(FIRST)
    other[0].example.labels = [0.0, 1.0, 0.0]
    with pytest.raises(DataError, match="labels differ"):
        compare(lists(FIRST), other, ["mrr"])


def made(count: int = 12) -> tuple[list[Example], list[ScoredList], list[ScoredList]]:
    rows = examples(count, 5)
    rng = np.random.default_rng(2)
    one = [ScoredList(e, rng.normal(size=5).tolist()) for e in rows]
    two = [ScoredList(e, (rng.normal(size=5) + np.array(e.labels)).tolist()) for e in rows]
    return rows, one, two


def test_written_runs_come_back(tmp_path: Path) -> None:
    """A saved comparison, read again as two runs over its qrels or its rows, is the same one."""
    rows, one, two = made()
    found = compare(one, two, ["ndcg@10", "map"])
    names = found.save(tmp_path / "out")
    assert set(names) == {p.name for p in (tmp_path / "out").iterdir()}
    runs = [read_trec_run(tmp_path / "out" / f"run_{x}.trec") for x in "ab"]
    judged = judged_examples(read_qrels(tmp_path / "out" / "qrels.txt"), *runs)
    for base in (rows, judged):
        again = compare(*(run_lists(run, base)[0] for run in runs), ["ndcg@10", "map"])
        for name, d in found.differences.items():
            assert again.differences[name].difference == pytest.approx(d.difference)
            assert again.differences[name].p_value == d.p_value
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert saved["metrics"]["map"]["p_holm"] == found.differences["map"].p_holm
    text = (tmp_path / "out" / "per_query.csv").read_text()
    table = list(csv.DictReader(text.splitlines()))
    changes = [float(row["ndcg@10 difference"]) for row in table]
    assert np.mean(changes) == pytest.approx(found.differences["ndcg@10"].difference)
    assert [row["query_id"] for row in table] == [e.query_id for e in rows]


def test_rows_whose_scores_alone_are_held() -> None:
    """The comparison is that of the lists, and each example is taken where it lies, when asked."""
    rows, one, two = made(20)
    asked = []

    class Stored(Sequence[Example]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return rows[index]

    held = []
    for lists in (one, two):
        held.append(ScoredRows(Stored()))
        for scored in lists:
            held[-1].add(scored.scores)
    assert not asked
    assert list(held[0]) == one
    assert held[1][-3:] == two[-3:]
    assert asked == [*range(20), 17, 18, 19]
    with pytest.raises(IndexError):
        held[0][20]
    assert compare(*held, ["ndcg@10"]).to_dict() == compare(one, two, ["ndcg@10"]).to_dict()


def test_metrics_over_qrels_are_trec_evals(tmp_path: Path) -> None:
    """Runs that rank all judged documents and unjudged ones besides, as ir_measures reads them."""
    ir_measures = pytest.importorskip("ir_measures")
    _, one, two = made(20)
    # every fifth document of each row is not judged
    write_qrels(tmp_path / "all.txt", one)
    lines = (tmp_path / "all.txt").read_text().splitlines(keepends=True)
    (tmp_path / "qrels.txt").write_text("".join(line for i, line in enumerate(lines) if i % 5 != 4))
    for name, part in (("a", one), ("b", two)):
        write_trec_run(tmp_path / f"{name}.trec", part)
    runs = [read_trec_run(tmp_path / f"{x}.trec") for x in "ab"]
    judged = judged_examples(read_qrels(tmp_path / "qrels.txt"), *runs)
    found = compare(*(run_lists(run, judged)[0] for run in runs), ["ndcg@3", "map", "mrr"])
    measures = {"ndcg@3": "nDCG@3", "map": "AP", "mrr": "RR"}
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.txt")))
    for letter in "ab":
        run = list(ir_measures.read_trec_run(str(tmp_path / f"{letter}.trec")))
        parsed = {name: ir_measures.parse_measure(m) for name, m in measures.items()}
        reference = ir_measures.calc_aggregate(parsed.values(), qrels, run)
        for name, measure in parsed.items():
            assert getattr(found.differences[name], letter) == pytest.approx(reference[measure])


def test_what_a_run_does_not_rank_is_counted() -> None:
    """Two unranked documents stand last, tied; a query that is left out is all ties."""
    rows = [scored.example for scored in lists(FIRST, FIRST)]
    run = {"q0": {"q0-1": 0.5, "other": 0.9}}
    found, counts = run_lists(run, rows)
    assert counts == {
        "queries without a ranking": 1,
        "documents not ranked": 2,
        "ranked documents that are no candidates": 1,
    }
    assert places(found[0].scores) == ["2=", "1", "2="]
    assert places(found[1].scores) == ["1=", "1=", "1="]
    with pytest.raises(DataError, match=r"ranks no document of these rows.*'x'.*'q0'"):
        run_lists({"x": {"y": 1.0}}, rows, "some.trec")


def test_first_stage() -> None:
    rows = [scored.example for scored in lists(FIRST, FIRST)]
    with pytest.raises(DataError, match="2 of 2 rows have no scores of a first stage"):
        first_stage_lists(rows)
    for row in rows:
        row.first_stage_scores = [1.0, 3.0, 2.0]
    assert [scored.scores for scored in first_stage_lists(rows)] == [[1.0, 3.0, 2.0]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q 0 d", "has 3 columns; TREC judgements have 4"),
        ("q 0 d x", "the label 'x'"),
        ("q 0 d 1\nq 0 d 0", "again"),
        ("\n", "holds no judgement"),
    ],
)
def test_broken_qrels(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "qrels.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_qrels(tmp_path / "qrels.txt")
    with pytest.raises(DataError, match="cannot read the judgements"):
        read_qrels(tmp_path / "absent.txt")


def shown(found: Comparison) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(differences_table(found))
    console.print(side_by_side(found, 0, "mrr", 2))
    return console.export_text()


def test_tables_name_ranks_and_labels() -> None:
    """A ranks good first, B second; markup in a text is printed as it is."""
    one, two = lists(FIRST), lists(SECOND)
    one[0].example.documents[0] = "[red]good[/]"
    text = shown(compare(one, two, ["mrr", "map"]))
    assert "p, Holm" in text
    assert "0/1/0" in text
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith(("│ 1 ", "│ 2 "))
    ]
    assert rows == [
        ["1", "1", "2", "[red]good[/]", "1", "0", "2", "bad"],
        ["2", "0", "1", "bad", "2", "1", "1", "good"],
    ]


def write_rows(path: Path, rows: list[Example], **more: Any) -> Path:
    lines = [{"query": e.query, "documents": e.documents, "labels": e.labels, **more} for e in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_command_models_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model against the rows' own order, against a run of itself, and two runs over qrels."""
    model = str(save_base(tmp_path / "model", "bert"))
    rows = examples(10, 4)
    data = str(write_rows(tmp_path / "rows.jsonl", rows, scores=[4.0, 3.0, 2.0, 1.0]))
    out = tmp_path / "out"
    words = ["--dataset", data, "--metrics", "mrr", "ndcg@3", "--samples", "200"]
    assert cli.main(["compare", "first_stage", model, *words, "--output", str(out)]) == 0
    saved = json.loads((out / "comparison.json").read_text())
    # the rows' positive stands first, and the retriever's scores put it there
    assert saved["metrics"]["mrr"]["a"] == 1.0
    assert saved["metrics"]["mrr"]["b"] < 1.0
    assert saved["metrics"]["mrr"]["losses"] > 0
    text = capsys.readouterr().err
    assert "the largest losses of B in mrr" in text
    run = str(out / "run_b.trec")
    assert cli.main(["compare", run, model, *words, "--output", str(out / "again")]) == 0
    again = json.loads((out / "again" / "comparison.json").read_text())
    assert again["metrics"]["mrr"]["difference"] == pytest.approx(0, abs=1e-9)
    assert again["metrics"]["mrr"]["p_value"] == 1.0
    runs = [str(out / "run_a.trec"), run, "--qrels", str(out / "qrels.txt"), "--metrics", "mrr"]
    assert cli.main(["compare", *runs, "--output", str(out / "third")]) == 0
    third = json.loads((out / "third" / "comparison.json").read_text())
    assert third["metrics"]["mrr"]["difference"] == saved["metrics"]["mrr"]["difference"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "name the two to compare in front"),
        (["a", "b", "--model", "c", "--dataset", "d"], "--model, which has no place here"),
        (["a", "b"], "give --dataset with the rows to rank, or --qrels"),
        (["a", "b", "--dataset", "d", "--qrels", "q"], "not both"),
        (["a", "first_stage", "--dataset", "d"], "first_stage can only be A"),
        (["a", "b", "--qrels", "q"], "a is no file"),
        (["a", "b", "--dataset", "d", "--samples", "0"], "--samples 0 is less than 1"),
        (["a", "b", "--dataset", "d", "--top_k", "0"], "--top_k 0 is too small"),
        (["a", "b", "--dataset", "d", "--metrics", "ndgc"], "metric 'ndgc' is unknown"),
    ],
)
def test_command_refuses(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *words]) == 2
    assert message in capsys.readouterr().err


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="samples is 0"):
        randomisation_test([1.0], 0, 0)
    with pytest.raises(DataError, match="flat list"):
        randomisation_test([np.nan], 0)
