"""``rankwright evaluate`` on BEIR folders: candidates, splits, and trec_eval's figures of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval

from rankwright import cli
from rankwright.data.readers import load_examples, read_trec_run
from rankwright.retrieval import BM25, Analyzer, bm25_first_stage
from tests import tiny

METRICS = {"ndcg@10": "ndcg_cut_10", "mrr": "recip_rank", "map": "map", "recall@5": "recall_5"}


@pytest.fixture(autouse=True)
def _bm25s() -> None:
    pytest.importorskip("bm25s", reason="extra mine")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_base(tmp_path_factory.mktemp("evaluate") / "base", "bert"))


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_beir(
    folder: Path,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> Path:
    write_lines(folder / "corpus.jsonl", [{"_id": i, "text": t} for i, t in corpus.items()])
    write_lines(folder / "queries.jsonl", [{"_id": i, "text": t} for i, t in queries.items()])
    for split, judged in qrels.items():
        rows = [f"{q}\t{d}\t{y}" for q, labels in judged.items() for d, y in labels.items()]
        write_lines(folder / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *rows])
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> tuple[Path, dict[str, dict[str, dict[str, int]]]]:
    """Forty documents and twelve queries, graded judgements of eight for test and four for dev.

    A judged document of each query has none of its words: what BM25 does not find counts as not
    found. All documents differ in length, so no two have the same score.
    """
    random = np.random.default_rng(7)
    words = [f"{a}{b}" for a in ("red", "blue", "grey", "wet") for b in ("fox", "sea", "hill")]
    corpus = {f"d{n}": " ".join([*random.choice(words, 5 + n), f"w{n}"]) for n in range(40)}
    queries = {f"q{n}": " ".join(random.choice(words, 2, replace=False)) for n in range(12)}
    qrels: dict[str, dict[str, dict[str, int]]] = {"test": {}, "dev": {}}
    for n, (name, text) in enumerate(queries.items()):
        without = [d for d, t in corpus.items() if not set(text.split()) & set(t.split())]
        judged = {str(d): int(random.integers(0, 4)) for d in random.choice([*corpus], 4)}
        qrels["test" if n < 8 else "dev"][name] = {**judged, without[0]: 2}
    return write_beir(tmp_path / "beir", corpus, queries, qrels), qrels


def trec_eval(qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Any]) -> dict[str, float]:
    """The means of pytrec_eval over the queries of the run that have a relevant document."""
    judged = {q: dict(labels) for q, labels in qrels.items() if any(labels.values())}
    found = pytrec_eval.RelevanceEvaluator(judged, set(METRICS.values())).evaluate(dict(run))
    return {
        ours: float(np.mean([values[theirs] for values in found.values()]))
        for ours, theirs in METRICS.items()
    }


def evaluate(model: str, folder: Path, output: Path, *words: str) -> dict[str, Any]:
    given = ["--model", model, "--dataset", str(folder), "--metrics", *METRICS]
    assert cli.main(["evaluate", *given, "--output", str(output), *words]) == 0
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def check(
    found: dict[str, Any], qrels: Mapping[str, Mapping[str, int]], output: Path, first: Any
) -> None:
    """Ours on the candidates, and trec_eval's on the folder's own judgements."""
    run = read_trec_run(output / "run.trec")
    assert run.keys() == first.keys()
    assert all(run[q].keys() == first[q].keys() for q in run)
    assert found["tie_rate"] == 0
    assert found["metrics"] == pytest.approx(trec_eval(qrels, run), abs=1e-9)
    assert found["first_stage"]["tie_rate"] == 0
    assert found["first_stage"]["metrics"] == pytest.approx(trec_eval(qrels, first), abs=1e-9)


def test_candidates_of_bm25(
    model: str, beir: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 12 best of the whole corpus; what it misses lowers recall, MAP and NDCG."""
    folder, qrels = beir
    words = ["--split", "test", "--first_stage", "bm25", "--top_k", "12"]
    found = evaluate(model, folder, tmp_path / "out", *words)
    rows = read_lines(folder / "corpus.jsonl")
    index = BM25([row["text"] for row in rows], Analyzer())
    first = {}
    for query in read_lines(folder / "queries.jsonl"):
        scores = index.scores(query["text"])
        best = [n for n in np.argsort(-scores, kind="stable")[:12] if scores[n] > 0]
        if query["_id"] in qrels["test"]:
            first[query["_id"]] = {rows[n]["_id"]: float(scores[n]) for n in best}
    assert min(map(len, first.values())) > 5
    check(found, qrels["test"], tmp_path / "out", first)
    assert found["missed"] >= 8
    assert "8 queries" in capsys.readouterr().err


def test_candidates_of_a_run(
    model: str, beir: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gzipped TREC run of both splits, cut at 6; the folder's own run has no say then."""
    folder, qrels = beir
    write_lines(folder / "run.trec", ["q0 Q0 d0 1 1 own"])
    random = np.random.default_rng(1)
    run = {
        f"q{n}": {f"d{d}": float(random.random()) for d in random.permutation(40)[:9]}
        for n in range(12)
    }
    path = tmp_path / "bm25.run.gz"
    with gzip.open(path, "wt") as file:
        for query, ranked in run.items():
            for document, score in ranked.items():
                file.write(f"{query} Q0 {document} 0 {score!r} tag\n")
    for split, count in (("test", 8), ("dev", 4)):
        output = tmp_path / split
        words = ["--first_stage", str(path), "--top_k", "6", "--split", split]
        found = evaluate(model, folder, output, *words)
        said = " ".join(capsys.readouterr().err.split())
        assert f"{12 - count} x query of the run without a judgement" in said
        assert f"{3 * count} x document of the run behind --top_k" in said
        assert found["queries"] == count
        best = {
            q: dict(sorted(run[q].items(), key=lambda pair: -pair[1])[:6]) for q in qrels[split]
        }
        check(found, qrels[split], output, best)
    # the folder's own, of one query
    own = evaluate(model, folder, tmp_path / "own", "--split", "test")
    assert own["query_ids"] == ["q0"]


def test_without_a_run_the_judged_documents_are_said_to_be_all(
    model: str,
    beir: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of several splits dev is taken unasked, and both are said."""
    folder, qrels = beir
    found = evaluate(model, folder, tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    assert "4 x query whose candidates are its judged documents alone" in said
    assert "reading the 1 dev file(s), leaving out 1 other(s); --split chooses" in caplog.text
    assert found["query_ids"] == [*qrels["dev"]]
    assert found["missed"] == 0


def test_a_query_of_the_corpus_does_not_find_itself(tmp_path: Path) -> None:
    """As in ArguAna: the same id and text, a title in front; a document of the same id alone stays.

    And a query without a word of the corpus is left out, as one that the run does not hold.
    """
    folder = tmp_path / "beir"
    write_lines(
        folder / "corpus.jsonl",
        [
            {"_id": "a", "title": "Birds", "text": "a heron eats fish"},
            {"_id": "b", "text": "a heron nests"},
            {"_id": "c", "text": "fish swim"},
        ],
    )
    queries = {"a": "a heron eats fish", "b": "heron", "x": "crane"}
    write_lines(folder / "queries.jsonl", [{"_id": i, "text": t} for i, t in queries.items()])
    write_lines(folder / "qrels.tsv", ["a 0 b 1", "b 0 b 1", "x 0 c 1"])
    data = load_examples(folder, purpose="eval", first_stage=bm25_first_stage(10))
    assert [(e.query_id, set(e.document_ids or ())) for e in data.examples] == [
        ("a", {"b", "c"}),
        ("b", {"a", "b"}),
    ]
    assert data.report.dropped == {"judged query that the run does not hold": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--first_stage", "no.trec"],
            "--first_stage no.trec is no file; give bm25, or a TREC",
        ),
        (["--first_stage", "bm25", "--top_k", "0"], "--top_k 0 is less than 1"),
        (
            ["--split", "train"],
            "has no file of the split 'train' (it holds qrels/dev.tsv, qrels",
        ),
    ],
)
def test_mistakes(
    beir: Any, model: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "--model", model, "--dataset", str(beir[0]), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_rows_have_their_candidates(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"query": "q", "positive": "a", "negative": "b"}])
    words = ["--model", model, "--dataset", str(rows), "--first_stage", "bm25"]
    assert cli.main(["evaluate", *words]) == 2
    assert "--first_stage goes with BEIR folders" in capsys.readouterr().err.splitlines()[-1]


def test_real_rows_as_a_beir_folder(model: str, shared: Path, tmp_path: Path) -> None:
    """Medical questions over all their documents, BM25's best 20: trec_eval's figures."""
    rows = read_lines(shared / "data/medquad_small/test.jsonl")
    texts = dict.fromkeys(t for row in rows for t in [*row["positive"], *row["negative"]])
    ids = {text: f"d{n}" for n, text in enumerate(texts)}
    queries = {f"q{n}": row["query"] for n, row in enumerate(rows[:25])}
    judged = {f"q{n}": {ids[t]: 1 for t in row["positive"]} for n, row in enumerate(rows[:25])}
    corpus = {identifier: text for text, identifier in ids.items()}
    folder = write_beir(tmp_path / "beir", corpus, queries, {"test": judged})
    words = ["--first_stage", "bm25", "--top_k", "20", "--max_length", "64"]
    found = evaluate(model, folder, tmp_path / "out", *words)
    examples = load_examples(folder, purpose="eval", first_stage=bm25_first_stage(20)).examples
    first = {
        e.query_id: dict(zip(e.document_ids or (), e.first_stage_scores or (), strict=True))
        for e in examples
    }
    check(found, judged, tmp_path / "out", first)
    assert found["first_stage"]["metrics"]["mrr"] > 0.3
