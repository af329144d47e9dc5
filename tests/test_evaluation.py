"""Evaluation: the same numbers as trec_eval from the files it writes, counts, and wrong input."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from rich.console import Console

from rankwright.data.readers import read_trec_run
from rankwright.errors import ConfigError, DataError
from rankwright.evaluation import (
    Evaluation,
    Progress,
    TrecFiles,
    bootstrap_interval,
    evaluate,
    evaluate_scores,
    metrics_table,
    write_qrels,
    write_trec_run,
)
from rankwright.types import Example, ScoredList

NAMES = ["ndcg@10", "mrr", "map", "precision@5", "recall@5", "hit@1"]


def scored(
    labels: Sequence[float],
    scores: Sequence[float],
    *,
    first: Sequence[float] | None = None,
    query_id: str = "",
    document_ids: list[str] | None = None,
) -> ScoredList:
    example = Example(
        query="q",
        documents=[f"text {i}" for i in range(len(labels))],
        labels=list(labels),
        first_stage_scores=None if first is None else list(first),
        query_id=query_id,
        document_ids=document_ids,
        source="rows.jsonl:7",
    )
    return ScoredList(example, list(scores))


def random_lists(ties: bool) -> list[ScoredList]:
    """50 lists of 1 to 30 documents, graded; scores exact in float32, as a reranker's are."""
    rng = np.random.default_rng(5)
    lists = []
    for q in range(50):
        size = int(rng.integers(1, 31))
        labels = rng.integers(0, 4, size) * (rng.random(size) < 0.3)
        values = rng.integers(0, 4, size) if ties else rng.normal(size=size)
        lists.append(
            scored(labels.tolist(), values.astype(np.float32).tolist(), query_id=f"query{q}")
        )
    return lists


def pytrec_means(qrels: dict, run: dict) -> dict[str, float]:
    """Means over the queries that pytrec_eval finds a relevant document for."""
    names = {
        "ndcg@10": "ndcg_cut_10",
        "mrr": "recip_rank",
        "map": "map",
        "precision@5": "P_5",
        "recall@5": "recall_5",
        "hit@1": "success_1",
    }
    measures = {"ndcg_cut.10", "recip_rank", "map", "P.5", "recall.5", "success.1", "num_rel"}
    values = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    kept = [v for v in values.values() if v["num_rel"] > 0]
    return {ours: float(np.mean([v[theirs] for v in kept])) for ours, theirs in names.items()}


# --- numbers ---------------------------------------------------------------------------------


def test_result_by_hand() -> None:
    """Three queries, the last without a relevant document.

    MRR: ranks 1 and 2, so (1 + 1/2) / 2 = 3/4; first stage: ranks 2 and (tied) 1 or 2, so
    (1/2 + 3/4) / 2 = 5/8. First-stage tie rate: of 2 + 1 + 0 pairs to be told apart one is tied.
    """
    lists = [
        scored([1, 0, 0], [3, 2, 1], first=[2, 3, 1], query_id="a"),
        scored([1, 0], [1, 2], first=[1, 1], query_id="b"),
        scored([0, 0], [1, 2], first=[1, 1]),
    ]
    result = evaluate_scores(lists, ["mrr", "hit@1"])
    assert result.metrics == {"mrr": 0.75, "hit@1": 0.5}
    assert result.per_query["mrr"].tolist() == [1, 0.5, 0]
    assert result.values("mrr").tolist() == [1, 0.5]
    assert result.query_ids == ("a", "b", "2")
    assert result.has_positive.tolist() == [True, True, False]
    assert (result.queries, result.documents, result.without_positive) == (3, 7, 1)
    assert result.tie_rate == 0
    assert result.first_stage_metrics == {"mrr": 0.625, "hit@1": 0.25}
    assert result.first_stage_tie_rate == pytest.approx(1 / 3)
    assert result.gains("mrr").tolist() == [0.5, -0.25]
    assert result.without_first_stage == 0


def test_first_stage_needs_every_row() -> None:
    lists = [scored([1, 0], [2, 1], first=[1, 2]), scored([1, 0], [2, 1])]
    result = evaluate_scores(lists, ["mrr"])
    assert result.first_stage_metrics is None
    assert result.first_stage_per_query is None
    assert result.first_stage_tie_rate is None
    assert result.gains("mrr") is None
    assert result.without_first_stage == 1


def test_first_stage_not_asked_for() -> None:
    result = evaluate_scores([scored([1, 0], [2, 1], first=[1, 2])], ["mrr"], first_stage=False)
    assert result.first_stage_metrics is None
    assert result.without_first_stage == 0


@pytest.mark.parametrize("first_stage", [True, False])
def test_lists_measured_in_pieces_are_measured_alike(
    monkeypatch: pytest.MonkeyPatch, first_stage: bool
) -> None:
    """To the last bit, whatever the pieces; only numbers of each query stay in memory."""
    lists = random_lists(ties=True)
    rng = np.random.default_rng(6)
    for one in lists:
        one.example.first_stage_scores = rng.normal(size=len(one.scores)).tolist()
        one.example.missed = {"gone": 1.0} if len(one.scores) % 3 == 0 else None
    if not first_stage:
        lists[-1].example.first_stage_scores = None
    whole = evaluate_scores(lists, NAMES)
    monkeypatch.setattr("rankwright.evaluation.MEASURED_DOCUMENTS", 7)
    found = Evaluation(NAMES)
    for one in lists:
        found.add(one)
        assert sum(len(held.scores) for held in found._waiting) < 7
    pieces = found.result()
    assert pieces.to_dict() == whole.to_dict()
    assert (whole.first_stage_metrics is not None) == first_stage
    assert pieces.missed == whole.missed > 0


def test_a_broken_first_stage_matters_only_where_it_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rankwright.evaluation.MEASURED_DOCUMENTS", 1)
    broken = scored([1, 0], [2, 1], first=[math.nan, 0], query_id="a")
    with pytest.raises(DataError, match=r"in the first-stage scores: .*'a'"):
        evaluate_scores([broken, scored([1, 0], [2, 1], first=[1, 0])], NAMES)
    result = evaluate_scores([broken, scored([1, 0], [2, 1])], NAMES)
    assert (result.without_first_stage, result.first_stage_metrics) == (1, None)


def test_trec_files_of_a_stream(tmp_path: Path) -> None:
    """The same bytes as of lists at once; what TREC cannot hold is said in the end."""
    lists = random_lists(ties=False)
    write_trec_run(tmp_path / "whole.trec", lists)
    write_qrels(tmp_path / "whole.txt", lists)
    with TrecFiles.into(tmp_path) as files:
        for one in lists:
            files.add(one)
        assert files.write() == ["run.trec", "qrels.txt"]
    assert (tmp_path / "run.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()
    assert (tmp_path / "qrels.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()
    (other := tmp_path / "other").mkdir()
    with TrecFiles.into(other) as files:
        files.add(scored([0.5, 0], [2, 1], query_id="a"))
        assert files.write() == ["run.trec"]
    (twice := tmp_path / "twice").mkdir()
    with TrecFiles.into(twice) as files:
        for _ in range(2):
            files.add(scored([1, 0], [2, 1], query_id="a"))
        with pytest.raises(DataError, match="query id 'a' occurs twice"):
            files.write()
    assert not list(twice.iterdir())


def test_json_holds_everything(tmp_path: Path) -> None:
    lists = [
        scored([1, 0], [1, 2], first=[2, 1], query_id="é"),
        scored([0, 0], [1, 1], first=[1, 1]),
    ]
    result = evaluate_scores(lists, ["mrr"])
    path = tmp_path / "new" / "metrics.json"
    result.save_json(path)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == json.loads(result.to_json()) == result.to_dict()
    assert path.read_text(encoding="utf-8") == result.to_json() + "\n"
    assert read == {
        "metrics": {"mrr": 0.5},
        "tie_rate": 0.0,
        "queries": 2,
        "queries_without_positive": 1,
        "queries_without_first_stage": 0,
        "documents": 4,
        "missed": 0,
        "query_ids": ["é", "1"],
        "has_positive": [True, False],
        "per_query": {"mrr": [0.5, 0.0]},
        "first_stage": {"metrics": {"mrr": 1.0}, "tie_rate": 0.0, "per_query": {"mrr": [1.0, 0.0]}},
    }


class Lengths:
    """A scorer that prefers short texts."""

    def score_examples(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[ScoredList]:
        lists = [ScoredList(e, [-float(len(d)) for d in e.documents]) for e in examples]
        if progress is not None:
            progress(len(examples))
        return lists


def test_evaluate_scores_and_measures() -> None:
    examples = [Example("q", ["long text", "text", "longest text"], [1, 0, 0])]
    seen: list[int] = []
    result = evaluate(Lengths(), examples, ["mrr"], progress=seen.append)
    assert result.metrics == {"mrr": 0.5}
    assert seen == [1]


def test_evaluate_checks_the_names_before_it_scores() -> None:
    class Never:
        def score_examples(self, examples, progress=None):
            raise AssertionError("scored")

    with pytest.raises(ConfigError, match="did you mean ndcg@10"):
        evaluate(Never(), [Example("q", ["d"], [1])], ["ndgc@10"])


# --- TREC files ------------------------------------------------------------------------------


def test_run_and_qrels_files_give_trec_eval_the_same_numbers(tmp_path: Path) -> None:
    lists = random_lists(ties=False)
    write_trec_run(tmp_path / "run.trec", lists, "mine")
    write_qrels(tmp_path / "qrels", lists)
    with (tmp_path / "run.trec").open() as run, (tmp_path / "qrels").open() as qrels:
        theirs = pytrec_means(pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run))
    result = evaluate_scores(lists, NAMES)
    assert result.without_positive > 0
    for name in NAMES:
        assert result.metrics[name] == pytest.approx(theirs[name], abs=1e-9), name


def test_run_file_is_exact(tmp_path: Path) -> None:
    """Scores come back bit by bit, for floats that float32 or a few decimals cannot hold."""
    lists = [scored([1, 0, 0], [0.1, 1e-300, -1 / 3], query_id="q")]
    write_trec_run(tmp_path / "run", lists)
    assert read_trec_run(tmp_path / "run") == {"q": {"q-0": 0.1, "q-1": 1e-300, "q-2": -1 / 3}}


def test_run_file_lines(tmp_path: Path) -> None:
    """Ties stand by falling document id (as trec_eval orders them), not as the source had them."""
    lists = [
        scored([1, 0, 0], [1, 1, 2], query_id="a", document_ids=["x", "y", "z"]),
        scored([1], [-0.5]),
    ]
    write_trec_run(tmp_path / "run", lists, "tag")
    assert (tmp_path / "run").read_text() == (
        "a Q0 z 1 2.0 tag\na Q0 y 2 1.0 tag\na Q0 x 3 1.0 tag\n1 Q0 1-0 1 -0.5 tag\n"
    )
    write_qrels(tmp_path / "qrels", lists)
    assert (tmp_path / "qrels").read_text() == "a 0 x 1\na 0 y 0\na 0 z 0\n1 0 1-0 1\n"


def test_rank_column_is_trec_evals_own_order(tmp_path: Path) -> None:
    """Replacing each tied score by minus its rank changes nothing for trec_eval."""
    lists = random_lists(ties=True)
    write_trec_run(tmp_path / "run", lists)
    write_qrels(tmp_path / "qrels", lists)
    by_rank: dict[str, dict[str, float]] = {}
    for line in (tmp_path / "run").read_text().splitlines():
        query_id, _, document, rank, _, _ = line.split()
        by_rank.setdefault(query_id, {})[document] = -float(rank)
    with (tmp_path / "qrels").open() as file:
        qrels = pytrec_eval.parse_qrel(file)
    by_score = pytrec_means(qrels, read_trec_run(tmp_path / "run"))
    assert pytrec_means(qrels, by_rank) == by_score


def test_white_space_in_ids_is_encoded(tmp_path: Path) -> None:
    lists = [scored([1, 0], [1, 2], query_id="how to", document_ids=["a\tb", "100%\u00a0é"])]
    write_trec_run(tmp_path / "run", lists, "my run")
    write_qrels(tmp_path / "qrels", lists)
    assert (tmp_path / "run").read_text(encoding="utf-8") == (
        "how%20to Q0 100%%C2%A0é 1 2.0 my%20run\nhow%20to Q0 a%09b 2 1.0 my%20run\n"
    )
    assert (tmp_path / "qrels").read_text(encoding="utf-8") == (
        "how%20to 0 a%09b 1\nhow%20to 0 100%%C2%A0é 0\n"
    )


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([scored([1], [1], query_id="a")] * 2, "query id 'a' occurs twice"),
        ([scored([1], [1], query_id="1"), scored([1], [1])], "query id '1' occurs twice"),
        ([scored([1, 0], [1, 2], document_ids=["d", "d"])], "lists document id 'd' twice"),
        ([scored([1, 0], [1, 2], document_ids=["d", ""])], "a document id is empty"),
        ([scored([1, 0], [1, math.nan])], "query '0' has a score that is NaN or infinite"),
        ([scored([1, 0], [1])], r"query '0' \(rows.jsonl:7\) has 2 documents and 1 scores"),
    ],
)
def test_what_a_run_cannot_hold(tmp_path: Path, lists: list[ScoredList], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        write_trec_run(tmp_path / "run", lists)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_qrels_hold_integers_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"query 'a' has the label 0.9; TREC judgements are"):
        write_qrels(tmp_path / "qrels", [scored([2.0, 0.9], [1, 2], query_id="a")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a Q0 d 1 2.0 tag\na Q0 e 2 1.0\n", ":2: 5 columns; a line of a TREC run is: query-id Q0"),
        ("\na Q0 d 1 high tag\n", ":2: the score is the text 'high'; it must be a finite number"),
        ("a Q0 d 1 nan tag\n", ":1: the score is nan; it must be a finite number"),
        ("a Q0 d 1 2 t\na Q0 d 2 1 t\n", ":2: the run holds document 'd' twice for query 'a'"),
        (b"\xff", ":1: not UTF-8"),
        (None, "there is no such file"),
    ],
)
def test_wrong_run_files(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "run"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_trec_run(path)
    assert "\n" not in str(caught.value)


def test_unwritable_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*; choose another path"):
        write_trec_run(tmp_path / "file" / "run", [scored([1], [1])])


# --- wrong input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([], "there are no queries"),
        ([scored([], [])], r"query '0' \(rows.jsonl:7\) has no documents"),
        ([scored([1, 0], [1])], "has 2 documents and 1 scores"),
        ([scored([1, 0], [1, 2], first=[1])], "has 2 documents and 1 first-stage scores"),
        ([scored([1, 0], [1, 2], document_ids=["a"])], "has 2 documents and 1 document ids"),
        ([scored([0, 0], [1, 2])], "none of the 1 queries has a document with a label above 0"),
        (
            [scored([1, 0], [1, math.nan], query_id="x")],
            "query 'x' has the score nan at document 1",
        ),
        (
            [scored([1, math.nan], [1, 2], query_id="x")],
            "query 'x' has the label nan at document 1",
        ),
        (
            [scored([1, 0], [1, 2], first=[1, math.inf], query_id="x")],
            "in the first-stage scores: query 'x' has the score inf",
        ),
    ],
)
def test_wrong_lists(lists: list[ScoredList], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate_scores(lists, ["mrr"])
    assert "\n" not in str(caught.value)


# --- table and interval ----------------------------------------------------------------------


def test_metrics_table() -> None:
    """Columns in the order in which they first occur, 4 decimals, a dash for what is missing."""
    table = metrics_table(
        {"first stage": {"mrr": 0.5}, "after training": {"mrr": 2 / 3, "tie rate": 0}}
    )
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    lines = [line.split("│")[1:-1] for line in text.splitlines() if "│" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["first stage", "0.5000", "-"],
        ["after training", "0.6667", "0.0000"],
    ]
    assert [column.header for column in table.columns] == ["", "mrr", "tie rate"]


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    """For the mean of 400 values the central limit gives mean ± 1.96 s / sqrt(400)."""
    values = np.random.default_rng(1).exponential(size=400)
    low, high = bootstrap_interval(values, seed=0)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    narrow = bootstrap_interval(values, seed=0, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_bootstrap_laws() -> None:
    """The seed fixes it; it moves and scales with the values; equal values leave no doubt."""
    values = [0.1, 0.5, 0.9, 0.4]
    low, high = bootstrap_interval(values, seed=3, samples=500)
    assert (low, high) == bootstrap_interval(values, seed=3, samples=500)
    assert (low, high) != bootstrap_interval(values, seed=4, samples=500)
    moved = bootstrap_interval([2 * v - 1 for v in values], seed=3, samples=500)
    assert moved == pytest.approx((2 * low - 1, 2 * high - 1), abs=1e-12)
    assert bootstrap_interval([0.25, 0.25], seed=0, samples=10) == (0.25, 0.25)


def test_bootstrap_of_two_values_by_hand() -> None:
    """Resamples of (0, 1) have the means 0, 1/2, 1 with chances 1/4, 1/2, 1/4.

    So the central 40 % lie at 1/2 alone, and the central 95 % reach from 0 to 1.
    """
    assert bootstrap_interval([0, 1], seed=0, level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0, 1], seed=0) == (0, 1)


def test_wrong_bootstrap_input() -> None:
    with pytest.raises(DataError, match="at least 2"):
        bootstrap_interval([0.5], seed=0)
    with pytest.raises(DataError, match="finite"):
        bootstrap_interval([0.5, math.nan], seed=0)
    with pytest.raises(ConfigError, match="level 95"):
        bootstrap_interval([0, 1], seed=0, level=95)
    with pytest.raises(ConfigError, match="samples is 0"):
        bootstrap_interval([0, 1], seed=0, samples=0)


def test_missed_documents_are_those_of_trec_eval(tmp_path: Path) -> None:
    """Candidates that lack relevant documents: trec_eval on the complete judgements, every metric.

    The files we write hold these judgements too, so that trec_eval finds the same in them.
    """
    rng = np.random.default_rng(11)
    names = ["ndcg", "ndcg@3", "ndcg@10", "map", "map@5", "recall@5", "recall@100", "mrr", "hit@3"]
    theirs_of = {
        "ndcg": "ndcg",
        "ndcg@3": "ndcg_cut_3",
        "ndcg@10": "ndcg_cut_10",
        "map": "map",
        "map@5": "map_cut_5",
        "recall@5": "recall_5",
        "recall@100": "recall_100",
        "mrr": "recip_rank",
        "hit@3": "success_3",
    }
    lists = []
    for q in range(40):
        size = int(rng.integers(1, 15))
        missed = {f"m{i}": float(rng.integers(1, 4)) for i in range(int(rng.integers(0, 5)))}
        labels = [float(y) for y in rng.integers(0, 4, size)] if q % 5 else [0.0] * size
        ids = [f"d{i}" for i in range(size)]
        example = Example(
            f"query {q}",
            ids,
            labels,
            query_id=f"q{q}",
            document_ids=ids,
            first_stage_scores=[float(x) for x in rng.permutation(size)],
            missed=missed or None,
        )
        lists.append(ScoredList(example, [float(x) for x in rng.permutation(size)]))
    result = evaluate_scores(lists, names)
    write_qrels(tmp_path / "qrels.txt", lists)
    qrels: dict[str, dict[str, int]] = {}
    for line in (tmp_path / "qrels.txt").read_text().splitlines():
        query, _, document, label = line.split()
        qrels.setdefault(query, {})[document] = int(label)
    assert sum(d.startswith("m") for judged in qrels.values() for d in judged) == result.missed > 0
    measures = {"ndcg", "ndcg_cut.3,10", "map", "map_cut.5", "recall.5,100", "recip_rank"}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, measures | {"success.3"})
    relevant = [any(y > 0 for y in qrels[f"q{q}"].values()) for q in range(40)]
    assert result.has_positive.tolist() == relevant
    # a query whose every relevant document was missed counts, with 0
    assert any(
        kept and not any(scored.example.labels)
        for kept, scored in zip(relevant, lists, strict=True)
    )
    for found, scores_of in (
        (result.per_query, lambda scored: scored.scores),
        (result.first_stage_per_query, lambda scored: scored.example.first_stage_scores),
    ):
        assert found is not None
        run = {
            scored.example.query_id: dict(
                zip(scored.example.document_ids or (), scores_of(scored), strict=True)
            )
            for scored in lists
        }
        theirs = evaluator.evaluate(run)
        for name in names:
            expected = [theirs[f"q{q}"][theirs_of[name]] for q in range(40)]
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-9, err_msg=name)


def test_missed_documents_and_ties() -> None:
    """Two tied documents, one relevant, and one more relevant that is missed.

    Of the two orders, DCG is 1 and 1 / log2(3), so half their sum, over the ideal 1 + 1 / log2(3).
    """
    example = Example("q", ["a", "b"], [1.0, 0.0], query_id="q", missed={"c": 1.0})
    result = evaluate_scores([ScoredList(example, [0.0, 0.0])], ["ndcg", "map", "recall", "mrr"])
    half = 1 / math.log2(3)
    assert result.metrics["ndcg"] == pytest.approx((1 + half) / 2 / (1 + half))
    assert result.metrics["map"] == pytest.approx((1 + 0.5) / 2 / 2)
    assert result.metrics["recall"] == pytest.approx(0.5)
    assert result.metrics["mrr"] == pytest.approx(0.75)
    assert result.to_dict()["missed"] == 1
