"""Hard negatives: what is taken, what is left out and why, and that a kill changes nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwright import cli, mining, retrieval
from rankwright.arguments import MiningArguments
from rankwright.data.readers import load_examples
from rankwright.errors import CheckpointError, ConfigError, DataError, RankwrightError
from rankwright.files import LOCK, locked
from rankwright.mining import (
    ABOVE,
    ABSOLUTE,
    BELOW,
    CONTRADICTION,
    DUPLICATE,
    EMPTY_DOCUMENT,
    NO_CANDIDATE,
    NO_NEGATIVE,
    NO_POSITIVE,
    NOT_NEEDED,
    OUTSIDE,
    OWN_NEGATIVE,
    POSITIVE,
    RELATIVE,
    REPEATED_DOCUMENT,
    REPEATED_POSITIVE,
    TEACHER_ABOVE,
    TEACHER_ABSOLUTE,
    TEACHER_RELATIVE,
    MiningResult,
    draw_order,
    first_stage_reasons,
    mine,
    teacher_reason,
)
from rankwright.retrieval import load_sentence_transformer
from rankwright.types import Example
from tests import tiny
from tests.test_security import hostile_pickle


@pytest.fixture(autouse=True)
def _bm25s() -> None:
    pytest.importorskip("bm25s", reason="extra mine")


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def negatives(row: dict[str, Any]) -> list[str]:
    return [t for t, y in zip(row["documents"], row["labels"], strict=True) if not y]


def assert_adds_up(result: MiningResult) -> None:
    """Every document that was retrieved is a negative or has its reason."""
    report = result.report
    assert report.considered == report.negatives + sum(report.dropped.values())
    assert sum(report.negatives_per_query.values()) == report.queries - report.rows_dropped.get(
        NO_POSITIVE, 0
    )
    assert report.negatives == sum(n * q for n, q in report.negatives_per_query.items())
    assert json.loads(result.report_file.read_text())["considered"] == report.considered


# one word a document, so that a query's words are its list: c0 (five times) scores highest
CORPUS = [
    {"_id": f"c{n}", "text": " ".join(["heron"] * (6 - n) + ["filler"] * (14 + n))}
    for n in range(6)
]


# ------------------------------------------------------------------------------------- the filters


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [None] * 6),
        ({"range_min": 2}, [OUTSIDE, OUTSIDE, None, None, None, None]),
        ({"range_min": 1, "range_max": 5, "number": 1}, [OUTSIDE, *[None] * 4, OUTSIDE]),
        # the limit itself is allowed
        ({"max_score": 0.8}, [ABOVE, None, None, None, None, None]),
        ({"min_score": 0.0}, [None, None, None, None, None, BELOW]),
        # positive 0.7: at most 0.5
        ({"absolute_margin": 0.2}, [ABSOLUTE, ABSOLUTE, ABSOLUTE, None, None, None]),
        # positive 0.7: at most 0.7 * 0.9 = 0.63
        ({"relative_margin": 0.1}, [RELATIVE, RELATIVE, None, None, None, None]),
        (
            {"max_score": 0.85, "relative_margin": 0.5, "min_score": 0.1},
            [ABOVE, RELATIVE, RELATIVE, RELATIVE, None, BELOW],
        ),
        # of what the margin leaves, the best two; the window ends at rank 5 all the same
        (
            {"range_min": 2, "range_max": 5, "relative_margin": 0.1, "number": 1},
            [RELATIVE, RELATIVE, OUTSIDE, OUTSIDE, None, OUTSIDE],
        ),
    ],
)
def test_hand_reasons(options: dict[str, Any], expected: list[str | None]) -> None:
    scores = [0.9, 0.8, 0.6, 0.4, 0.2, -0.5]
    keys = [bytes([n]) for n in range(6)]
    found = first_stage_reasons(scores, keys, 0.7, MiningArguments(**options))
    assert found == expected


def test_a_margin_below_zero_is_a_share_of_the_magnitude() -> None:
    """Positive −1, margin 0.1: at most −1.1, as in sentence-transformers since its issue 3819."""
    given = MiningArguments(relative_margin=0.1)
    found = first_stage_reasons([-1.0, -1.09, -1.11], [b"a", b"b", b"c"], -1.0, given)
    assert found == [RELATIVE, RELATIVE, None]


def test_the_second_of_equal_texts_is_left_out() -> None:
    given = MiningArguments()
    assert first_stage_reasons([3, 2, 1], [b"a", b"b", b"a"], 9, given) == [None, None, DUPLICATE]
    # also of one that --range_min skips, which would else come in by its copy
    given = MiningArguments(range_min=1)
    found = first_stage_reasons([3, 3, 2, 1], [b"a", b"a", b"b", b"c"], 9, given)
    assert found == [OUTSIDE, DUPLICATE, None, None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 95 % of the positive's 0.8 is 0.76
        ({}, [TEACHER_RELATIVE, TEACHER_RELATIVE, None]),
        ({"teacher_relative_margin": 0.5}, [TEACHER_RELATIVE] * 3),
        ({"teacher_max": 0.78}, [TEACHER_ABOVE, None, None]),
        ({"teacher_max": 1.0}, [None, None, None]),
        ({"teacher_absolute_margin": 0.1}, [TEACHER_ABSOLUTE, TEACHER_ABSOLUTE, None]),
    ],
)
def test_hand_teacher_reasons(options: dict[str, Any], expected: list[str | None]) -> None:
    given = MiningArguments(teacher="m", **options)
    assert [teacher_reason(p, 0.8, given) for p in (0.79, 0.77, 0.7)] == expected


def test_draws_depend_on_seed_and_query_alone() -> None:
    orders = [draw_order(20, seed, query) for seed in (1, 2) for query in ("a", "b")]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == draw_order(20, 1, "a")
    # every place is drawn first about as often: 2000 draws of 4, 3.9 standard deviations
    firsts = Counter(draw_order(4, 7, str(n))[0] for n in range(2000))
    assert all(abs(firsts[place] - 500) < 76 for place in range(4))


# ------------------------------------------------------------------------------------ whole runs


def test_a_small_corpus_by_hand(tmp_path: Path) -> None:
    """c0 to c5 hold "heron" six to once, in 20 words each, so BM25 ranks them in this order.

    The positive is c1 by its text (spaces aside); c6 is its copy, c7 a copy of c3, and c8 has no
    word of the query, so it is not retrieved.
    """
    corpus = [
        *CORPUS,
        {"_id": "c6", "text": CORPUS[1]["text"]},
        {"_id": "c7", "text": CORPUS[3]["text"].replace(" ", "  ")},
        {"_id": "c8", "text": "a stone " * 10},
    ]
    query = {"query": "Herons?", "positive": CORPUS[1]["text"].replace(" ", "\n"), "id": "q"}
    result = mine(
        queries=write(tmp_path / "rows.jsonl", query),
        corpus=write(tmp_path / "corpus.jsonl", *corpus),
        output=tmp_path / "mined.jsonl",
        number=2,
        range_min=1,
    )
    (row,) = lines(tmp_path / "mined.jsonl")
    # out: c0 (the best that is no positive), c1 and c6 (the positive), c7 (c3 again)
    assert row["document_ids"] == ["c1", "c2", "c3"]
    assert row["labels"] == [1, 0, 0]
    assert row["query_id"] == "q"
    assert row["scores"] == sorted(row["scores"], reverse=True)
    index = retrieval.BM25([d["text"] for d in corpus], retrieval.Analyzer())
    assert row["scores"] == [float(s) for s in index.scores("herons")[[1, 2, 3]]]
    report = result.report
    assert report.dropped == {OUTSIDE: 1, POSITIVE: 2, DUPLICATE: 1, NOT_NEEDED: 2}
    assert (report.considered, report.negatives, report.corpus) == (8, 2, 9)
    assert (report.positives, report.positives_in_corpus, report.positives_found) == (1, 1, 1)
    assert_adds_up(result)
    assert not (tmp_path / "mined.jsonl.part").exists()


def test_positives_by_id_outside_the_corpus_and_of_other_rows(tmp_path: Path) -> None:
    """q1's positive is c0 by id, cut short; q2's is nowhere; q3 asks the same as q1 with c2."""
    rows = [
        {"query": "heron", "query_id": "q1", "documents": ["heron"], "labels": [2],
         "document_ids": ["c0"]},
        {"query": "filler", "query_id": "q2", "documents": ["a text of its own"], "labels": [1],
         "document_ids": ["x"]},
        {"query": " heron", "query_id": "q3", "documents": [CORPUS[2]["text"]], "labels": [1],
         "document_ids": ["c2"]},
    ]  # fmt: skip
    result = mine(
        queries=write(tmp_path / "rows.jsonl", *rows),
        corpus=write(tmp_path / "corpus.jsonl", *CORPUS),
        output=tmp_path / "mined.jsonl",
    )
    first, second, third = lines(tmp_path / "mined.jsonl")
    assert first["documents"][0] == "heron"
    assert first["labels"][0] == 2
    assert first["document_ids"] == ["c0", "c1", "c3", "c4", "c5"]
    assert third["document_ids"] == ["c1", "c2", "c3", "c4", "c5"]
    assert len(second["document_ids"]) == 7
    # the positive that the corpus lacks has a score too: none of its words is the query's
    assert second["scores"][second["document_ids"].index("x")] == 0
    report = result.report
    assert (report.positives, report.positives_in_corpus) == (3, 2)
    assert report.positives_with_another_text == 1
    assert report.short == 3
    assert report.dropped == {POSITIVE: 4}
    assert_adds_up(result)


def test_rows_of_their_own_corpus_and_their_negatives(tmp_path: Path) -> None:
    """Without a corpus the rows' documents are one; ``keep_negatives`` adds to the rows' own."""
    texts = [document["text"] for document in CORPUS]
    rows = [
        {"query": "heron", "positive": [texts[1], texts[1]], "negative": [texts[0], texts[5]]},
        {"query": "heron", "positive": [texts[0]], "negative": [texts[2], texts[3], texts[4]]},
        {"query": "heron filler", "negative": [texts[2]]},
    ]
    queries = write(tmp_path / "rows.jsonl", *rows)
    replaced = mine(queries=queries, output=tmp_path / "mined.jsonl", number=2)
    for row, positive in zip(lines(tmp_path / "mined.jsonl"), (texts[1], texts[0]), strict=True):
        # what another row of the query calls a positive is no negative of this one
        assert sorted(row["documents"]) == sorted([positive, texts[2], texts[3]])
    assert replaced.report.rows_dropped == {NO_POSITIVE: 1, REPEATED_POSITIVE: 1}
    assert_adds_up(replaced)

    kept = mine(queries=queries, output=tmp_path / "kept.jsonl", number=2, keep_negatives=True)
    first, second = lines(tmp_path / "kept.jsonl")
    assert first["documents"] == [texts[1], texts[2], texts[3], texts[5]]
    assert second["documents"] == [texts[0], texts[2], texts[3], texts[4], texts[5]]
    assert kept.report.kept_negatives == 4
    assert kept.report.rows_dropped[CONTRADICTION] == 1
    assert kept.report.dropped[OWN_NEGATIVE] == 4
    assert kept.report.negatives_per_query == {1: 1, 2: 1}
    assert_adds_up(kept)


def test_rows_without_a_negative_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"query": "heron", "positive": CORPUS[0]["text"]},
        {"query": "unicorn", "positive": CORPUS[1]["text"]},
    ]
    queries = write(tmp_path / "rows.jsonl", *rows)
    corpus = write(tmp_path / "corpus.jsonl", *CORPUS)
    result = mine(queries=queries, corpus=corpus, output=tmp_path / "mined.jsonl", max_score=99)
    assert [row["query"] for row in lines(tmp_path / "mined.jsonl")] == ["heron"]
    assert result.report.rows_dropped == {NO_NEGATIVE: 1}
    assert result.report.negatives_per_query == {0: 1, 5: 1}
    assert result.report.short == 2
    assert_adds_up(result)


def test_a_beir_folder(tmp_path: Path) -> None:
    """Corpus, queries and judgements of the split; a run beside them does not hide positives."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{**document, "title": "On birds"} for document in CORPUS]
    write(folder / "corpus.jsonl", *corpus)
    write(folder / "queries.jsonl", {"_id": "q1", "text": "heron"}, {"_id": "q2", "text": "birds"})
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\tc4\t2\nq1\tc0\t0\n"
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\tc0\t1\n")
    (folder / "run.trec").write_text("q1 Q0 c0 1 9.5 bm25\n")
    result = mine(queries=folder, output=tmp_path / "mined.jsonl", number=3)
    (row,) = lines(tmp_path / "mined.jsonl")
    assert row["document_ids"] == ["c0", "c1", "c2", "c4"]
    assert row["labels"] == [0, 0, 0, 2]
    assert row["documents"][0] == f"On birds {CORPUS[0]['text']}"
    assert (result.report.corpus, result.report.positives_in_corpus) == (6, 1)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "arrow"])
def test_what_is_written_is_read_back_for_training(tmp_path: Path, ending: str) -> None:
    queries = {"query": "heron", "positive": CORPUS[2]["text"], "instruction": "find birds"}
    output = tmp_path / f"mined.{ending}"
    mine(
        queries=write(tmp_path / "rows.jsonl", queries),
        corpus=write(tmp_path / "corpus.jsonl", *CORPUS),
        output=output,
    )
    data = load_examples(output)
    (example,) = data.examples
    assert data.sources[0].data_format == "labels"
    assert example.labels == [0, 0, 1, 0, 0, 0]
    assert example.document_ids == [f"c{n}" for n in range(6)]
    assert example.instruction == "find birds"
    assert example.query_id == "rows:1"
    assert example.first_stage_scores is not None
    assert example.first_stage_scores == sorted(example.first_stage_scores, reverse=True)
    assert not data.report.ignored
    # the report beside it is no file of rows
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows.jsonl", "corpus.jsonl", output.name, "mined.report.json",
    }  # fmt: skip
    (tmp_path / "folder").mkdir()
    for name in (output.name, "mined.report.json"):
        (tmp_path / name).rename(tmp_path / "folder" / name)
    assert load_examples(tmp_path / "folder").examples == [
        Example(
            **{**vars_of(example), "source": f"{tmp_path}/folder/{output.name}:{place(ending)}"}
        )
    ]


def vars_of(example: Example) -> dict[str, Any]:
    return {name: getattr(example, name) for name in Example.__slots__}


def place(ending: str) -> str:
    return "1" if ending == "jsonl" else "row 1"


def test_candidate_lists_are_what_was_found(tmp_path: Path) -> None:
    """The first three, labelled; a positive that is not among them is not put there."""
    rows = [
        {"query": "heron", "query_id": "q1", "documents": ["heron"], "labels": [2],
         "document_ids": ["c1"]},
        {"query": "heron", "query_id": "q2", "documents": ["heron"], "labels": [1],
         "document_ids": ["c5"]},
        {"query": "unicorn", "query_id": "q3", "documents": ["heron"], "labels": [1],
         "document_ids": ["c5"]},
    ]  # fmt: skip
    rows[1]["query"] = "heron heron"
    result = mine(
        queries=write(tmp_path / "rows.jsonl", *rows),
        corpus=write(tmp_path / "corpus.jsonl", *CORPUS),
        output=tmp_path / "lists.jsonl",
        candidates=3,
    )
    first, second = lines(tmp_path / "lists.jsonl")
    assert first["document_ids"] == second["document_ids"] == ["c0", "c1", "c2"]
    assert (first["labels"], second["labels"]) == ([0, 2, 0], [0, 0, 0])
    assert first["documents"][1] == CORPUS[1]["text"]
    report = result.report
    assert (report.rows, report.lists_without_positive, report.positives_found) == (2, 2, 1)
    assert report.rows_dropped == {NO_CANDIDATE: 1}


# ----------------------------------------------------------------------------------------- dense


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random static embeddings of the tiny words: a real sentence-transformers model, at once."""
    st = pytest.importorskip("sentence_transformers", reason="extra mine")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = tiny.encoder_tokenizer(token_types=False).backend_tokenizer
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 16))
    module = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    folder = tmp_path_factory.mktemp("static")
    st.SentenceTransformer(modules=[module], device="cpu").save(str(folder))
    return str(folder)


def test_pickled_weights_of_a_dense_model_are_refused(dense: str, tmp_path: Path) -> None:
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(dense, folder)
    load_sentence_transformer(folder)
    (weights,) = folder.rglob("*.safetensors")
    weights.unlink()
    hostile_pickle(weights.with_name("pytorch_model.bin"), marker)
    with pytest.raises(ConfigError, match="has pickled weights only"):
        load_sentence_transformer(folder)
    assert not marker.exists()


@pytest.fixture
def made(tmp_path: Path) -> tuple[str, str]:
    """Twenty queries with a positive each, and 60 documents."""
    examples = tiny.examples(20, documents=3, seed=5, longest=12)
    texts = list(dict.fromkeys(text for example in examples for text in example.documents))
    queries = write(
        tmp_path / "rows.jsonl",
        *({"query": e.query, "positive": e.documents[0], "id": e.query_id} for e in examples),
    )
    corpus = ({"_id": f"d{n}", "text": text} for n, text in enumerate(texts))
    return queries, write(tmp_path / "corpus.jsonl", *corpus)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"range_min": 5, "range_max": 12},
        {"relative_margin": 0.2},
        {"absolute_margin": 0.15},
        {"max_score": 0.4, "min_score": 0.1},
        {"relative_margin": 0.05, "max_score": 0.5},
        {"range_min": 3, "relative_margin": 0.2},
        {"range_min": 2, "absolute_margin": 0.05, "max_score": 0.5, "min_score": 0.1},
    ],
    ids=str,
)
def test_equals_sentence_transformers(
    dense: str, made: tuple[str, str], tmp_path: Path, options: dict[str, Any]
) -> None:
    """The same negatives and scores as ``mine_hard_negatives`` for one positive a query."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    limits = {"range_max": 40, **options}
    result = mine(
        queries=made[0],
        corpus=made[1],
        output=tmp_path / "mined.jsonl",
        method="dense",
        dense_model=dense,
        number=4,
        **limits,
    )
    ours = {}
    for row in lines(tmp_path / "mined.jsonl"):
        pairs = dict(zip(row["documents"], row["scores"], strict=True))
        (positive,) = (t for t, y in zip(row["documents"], row["labels"], strict=True) if y)
        for text in negatives(row):
            ours[row["query"], positive, text] = (pairs[positive], pairs[text])
    rows = lines(Path(made[0]))
    theirs = mine_hard_negatives(
        Dataset.from_dict({k: [r[k] for r in rows] for k in ("query", "positive")}),
        SentenceTransformer(dense, device="cpu"),
        corpus=[document["text"] for document in lines(Path(made[1]))],
        num_negatives=4,
        output_format="triplet",
        output_scores=True,
        verbose=False,
        **limits,
    )
    expected = {
        (row["query"], row["positive"], row["negative"]): tuple(row["scores"]) for row in theirs
    }
    assert ours.keys() == expected.keys()
    assert len(ours) > 10
    for key, scores in ours.items():
        assert scores == pytest.approx(expected[key], abs=1e-6)
    assert_adds_up(result)


def test_prompts_reach_the_model(dense: str, made: tuple[str, str], tmp_path: Path) -> None:
    """A prompt of known words moves the embeddings as the same words in the texts do."""
    rows, corpus = lines(Path(made[0])), lines(Path(made[1]))
    prompted = mine(
        queries=made[0],
        corpus=made[1],
        output=tmp_path / "prompted.jsonl",
        method="dense",
        dense_model=dense,
        query_prompt="fox ",
        document_prompt="rain hills ",
    )
    plain = mine(
        queries=write(
            tmp_path / "rows2.jsonl",
            *({**r, "query": "fox " + r["query"], "positive": "rain hills " + r["positive"]}
              for r in rows),
        ),
        corpus=write(
            tmp_path / "corpus2.jsonl",
            *({**d, "text": "rain hills " + d["text"]} for d in corpus),
        ),
        output=tmp_path / "plain.jsonl",
        method="dense",
        dense_model=dense,
    )  # fmt: skip
    found, expected = (lines(result.output) for result in (prompted, plain))
    assert [row["document_ids"] for row in found] == [row["document_ids"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row["scores"] == pytest.approx(other["scores"], abs=1e-6)


def test_both_methods_are_fused(dense: str, made: tuple[str, str], tmp_path: Path) -> None:
    """Each row's scores are those of ``fuse`` over the two lists alone."""
    options: dict[str, Any] = {"queries": made[0], "corpus": made[1]}
    lists = {}
    for name, method in (("bm25", ["bm25"]), ("dense", ["dense"]), ("both", ["bm25", "dense"])):
        model = {"dense_model": dense} if "dense" in method else {}
        count = 15 if name == "both" else 16
        output = tmp_path / f"{name}.jsonl"
        result = mine(output=output, method=method, candidates=count, **options, **model)
        lists[name] = {row["query_id"]: row for row in lines(result.output)}
    assert len(lists["both"]) == 20
    for query, row in lists["both"].items():
        expected: dict[str, float] = {}
        for name in ("bm25", "dense"):
            found = lists[name].get(query, {"document_ids": [], "labels": []})
            # 15 that are no positives are retrieved, so one more where the positive is among them
            length = 16 if any(found["labels"][:15]) else 15
            for rank, document in enumerate(found["document_ids"][:length], 1):
                expected[document] = expected.get(document, 0.0) + 1 / (60 + rank)
        best = sorted(expected.values(), reverse=True)[:15]
        assert row["scores"] == pytest.approx(best, abs=1e-12)
        assert [expected[name] for name in row["document_ids"]] == pytest.approx(best, abs=1e-12)


# --------------------------------------------------------------------------------------- teacher


class Teacher:
    """A reranker whose logit is a document's number of foxes, less three."""

    calls = 0
    pairs = 0

    @classmethod
    def load(cls, name: str, **options: Any) -> Teacher:
        return cls()

    def score_examples(self, examples: list[Example]) -> list[Any]:
        from rankwright.types import ScoredList

        type(self).calls += 1
        type(self).pairs += sum(len(e.documents) for e in examples)
        assert all(example.instruction == "find" for example in examples)
        return [
            ScoredList(e, [float(text.count("fox") - 3) for text in e.documents]) for e in examples
        ]


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_the_teacher_filters_until_there_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    """30 documents, the n-th with "heron" and n % 5 foxes; the positive has 3: probability 0.5.

    With the margin of 5 % what has 3 or 4 foxes is left out, so 18 of 30 pass.
    """
    monkeypatch.setattr("rankwright.ranking.Reranker", Teacher)
    monkeypatch.setattr(Teacher, "pairs", 0)
    base = tiny.save_base(tmp_path / "teacher", "bert")
    corpus = [
        {"_id": f"d{n}", "text": " ".join(["heron"] * (40 - n) + ["fox"] * (n % 5) + [f"w{n}"])}
        for n in range(30)
    ]
    rows = {"query": "heron", "positive": "heron fox fox fox", "instruction": "find", "id": "q"}
    result = mine(
        queries=write(tmp_path / "rows.jsonl", rows),
        corpus=write(tmp_path / "corpus.jsonl", *corpus),
        output=tmp_path / "mined.jsonl",
        teacher=base,
        number=8,
        sampling=sampling,
        seed=3,
    )
    (row,) = lines(tmp_path / "mined.jsonl")
    assert row["teacher_scores"] == [float(text.count("fox") - 3) for text in row["documents"]]
    taken = [int(name[1:]) for name in row["document_ids"] if name.startswith("d")]
    order = retrieval.best_documents(
        retrieval.BM25([d["text"] for d in corpus] + ["heron fox fox fox"], str.split).scores(
            "heron"
        )[:30]
    ).tolist()
    if sampling == "random":
        order = [order[i] for i in draw_order(30, 3, "q")]
    expected = [n for n in order if n % 5 < 3][:8]
    assert sorted(taken) == sorted(expected)
    dropped = order.index(expected[-1]) + 1 - 8
    assert dropped > 0
    assert result.report.dropped == {TEACHER_RELATIVE: dropped, NOT_NEEDED: 22 - dropped}
    assert result.report.arguments["teacher_relative_margin"] == 0.05
    assert_adds_up(result)
    # not all 30 were scored, and the positive was scored once
    assert 1 + 8 + dropped <= Teacher.pairs < 31


def test_a_real_teacher_scores_as_the_reranker_does(made: tuple[str, str], tmp_path: Path) -> None:
    from rankwright.ranking import Reranker

    base = tiny.save_base(tmp_path / "teacher", "bert")
    options: dict[str, Any] = {"queries": made[0], "corpus": made[1], "teacher": base}
    listed = mine(output=tmp_path / "lists.jsonl", candidates=5, **options)
    found = [score for row in lines(listed.output) for score in row["teacher_scores"]]
    limit = float(1 / (1 + np.exp(-np.median(found))))
    mined = mine(output=tmp_path / "mined.jsonl", number=3, teacher_max=limit, **options)
    reranker = Reranker.load(base)
    for result in (mined, listed):
        rows = lines(result.output)
        assert rows
        for row in rows:
            pairs = [(row["query"], text) for text in row["documents"]]
            assert row["teacher_scores"] == pytest.approx(reranker.score(pairs), abs=1e-4)
    assert mined.report.dropped[TEACHER_ABOVE] > 0
    for row in lines(mined.output):
        for score, label in zip(row["teacher_scores"], row["labels"], strict=True):
            assert label or 1 / (1 + np.exp(-score)) <= limit
    assert_adds_up(mined)


# -------------------------------------------------------------------------- resume, determinism


def test_blocks_change_nothing(
    dense: str, made: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for query_block, document_block in ((512, 2048), (3, 7), (1, 60)):
        monkeypatch.setattr(mining, "QUERY_BLOCK", query_block)
        monkeypatch.setattr(mining, "DOCUMENT_BLOCK", document_block)
        result = mine(
            queries=made[0],
            corpus=made[1],
            output=tmp_path / "mined.jsonl",
            method=["bm25", "dense"],
            dense_model=dense,
            # or the batches differ, and with them the last digits of embeddings
            dense_batch_size=1,
            sampling="random",
        )
        found.add((result.output.read_bytes(), result.report_file.read_bytes()))
    assert len(found) == 1


def test_the_seed_decides_what_is_drawn(made: tuple[str, str], tmp_path: Path) -> None:
    def drawn(seed: int) -> bytes:
        output = tmp_path / "mined.jsonl"
        mine(queries=made[0], corpus=made[1], output=output, sampling="random", seed=seed, number=2)
        return output.read_bytes()

    assert drawn(1) == drawn(1) != drawn(2)


KILLED = """
import os, signal, sys
from rankwright import mining
mining.QUERY_BLOCK, mining.DOCUMENT_BLOCK = 3, 7
real, pieces = mining._piece, []
def piece(path, make):
    pieces.append(path)
    if len(pieces) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, make)
mining._piece = piece
mining.mine(queries=sys.argv[2], corpus=sys.argv[3], output=sys.argv[4], dense_model=sys.argv[5],
            method=["bm25", "dense"])
"""


def test_one_run_at_a_time_uses_a_folder(made: tuple[str, str], tmp_path: Path) -> None:
    """The first to end would remove the pieces that the second one still reads."""
    queries, corpus = made
    given = {"queries": queries, "corpus": corpus, "output": str(tmp_path / "mined.jsonl")}
    work = tmp_path / "mined.jsonl.part"
    work.mkdir()
    told = r"--output .*mined.jsonl: another run is using .*.part; wait"
    with locked(work / LOCK), pytest.raises(ConfigError, match=told):
        mine(**given)
    mine(**given)
    assert not work.exists()


@pytest.mark.parametrize("pieces", [3, pytest.param(12, marks=pytest.mark.slow), 40])
def test_a_killed_run_goes_on(
    dense: str,
    made: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pieces: int,
) -> None:
    """SIGKILL among BM25's lists, the embeddings, the dense lists; then the same command again.

    Seven blocks of queries and nine of documents: 7 lists of BM25, then 9 + 7 embeddings, 7 lists.
    """
    output = tmp_path / "mined.jsonl"
    words = [str(pieces), *made, str(output), dense]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True)
    assert done.returncode == -9
    assert not output.exists()
    work = tmp_path / "mined.jsonl.part"
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.arrow")}
    assert len(before) > 3

    monkeypatch.setattr(mining, "QUERY_BLOCK", 3)
    monkeypatch.setattr(mining, "DOCUMENT_BLOCK", 7)
    embedded: list[str] = []
    embed = retrieval.embed

    def counted(model: Any, texts: Any, **options: Any) -> Any:
        embedded.extend(texts)
        return embed(model, texts, **options)

    monkeypatch.setattr(retrieval, "embed", counted)
    removed: list[dict[Path, int]] = []
    rmtree = mining.shutil.rmtree

    def kept(folder: Path, **options: Any) -> None:
        if folder == work:
            removed.append({path: path.stat().st_mtime_ns for path in work.rglob("*.arrow")})
        rmtree(folder, **options)

    monkeypatch.setattr(mining.shutil, "rmtree", kept)
    options: dict[str, Any] = {"queries": made[0], "corpus": made[1], "dense_model": dense}
    mine(output=output, method=["bm25", "dense"], **options)
    # no piece was made twice
    assert before.items() <= removed[0].items()
    texts = 20 + len(lines(Path(made[1])))
    assert len(embedded) == {3: texts, 12: texts - 4 * 7, 40: 0}[pieces]
    other = mine(output=tmp_path / "undisturbed.jsonl", method=["bm25", "dense"], **options)
    assert output.read_bytes() == other.output.read_bytes()
    assert not work.exists()


KILLED_TEACHER = """
import os, signal, sys
from rankwright import mining
from rankwright.ranking import Reranker
mining.QUERY_BLOCK, mining.TEACHER_PAIRS = 5, 10
real, lists = Reranker.iter_scores, []
def iter_scores(self, *args, **options):
    for scored in real(self, *args, **options):
        lists.append(scored)
        if len(lists) == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield scored
Reranker.iter_scores = iter_scores
mining.mine(queries=sys.argv[2], corpus=sys.argv[3], output=sys.argv[4], teacher=sys.argv[5],
            number=3, teacher_relative_margin=0.0)
"""


def test_a_run_killed_while_its_teacher_scores_goes_on(
    made: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at the 30th list that the teacher scores: whole pieces stay as they are.

    At first 5 candidates are asked for, so that 10 pairs are two queries; a block of five has
    pieces of 2, 2 and 1. Queries of which too few passed are asked for again.
    """
    from rankwright.ranking import Reranker

    base = tiny.save_base(tmp_path / "teacher", "bert")
    output = tmp_path / "mined.jsonl"
    words = ["30", *made, str(output), base]
    done = subprocess.run([sys.executable, "-c", KILLED_TEACHER, *words], capture_output=True)
    assert done.returncode == -9
    assert not output.exists()
    kept = sorted((tmp_path / "mined.jsonl.part" / "mined").rglob("*.arrow"))
    starts = [0, 2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20]
    assert [int(path.stem) for path in kept] == starts[: len(kept)]
    assert len(kept) > 3

    monkeypatch.setattr(mining, "QUERY_BLOCK", 5)
    monkeypatch.setattr(mining, "TEACHER_PAIRS", 10)
    asked: list[str] = []
    real = Reranker.score_examples

    def counted(self: Reranker, examples: Any, **options: Any) -> Any:
        asked.extend(example.query_id for example in examples)
        return real(self, examples, **options)

    monkeypatch.setattr(Reranker, "score_examples", counted)
    options: dict[str, Any] = {"queries": made[0], "corpus": made[1], "teacher": base}
    options |= {"number": 3, "teacher_relative_margin": 0.0}
    result = mine(output=output, **options)
    queries = [row["id"] for row in lines(Path(made[0]))]
    assert set(asked) == set(queries[starts[len(kept)] :])
    other = mine(output=tmp_path / "undisturbed.jsonl", **options)
    assert output.read_bytes() == other.output.read_bytes()
    assert result.report.dropped == other.report.dropped
    assert result.report.dropped[TEACHER_RELATIVE] > 0


def test_a_work_folder_is_kept_for_other_settings(
    dense: str, made: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another margin nothing is embedded or searched again; with another corpus all is."""
    options: dict[str, Any] = {"queries": made[0], "method": "dense", "dense_model": dense}
    options |= {"output": tmp_path / "mined.jsonl", "work_dir": tmp_path / "work"}
    mine(corpus=made[1], **options)
    first = (tmp_path / "mined.jsonl").read_bytes()
    calls: list[int] = []
    embed = retrieval.embed

    def counted(model: Any, texts: Any, **given: Any) -> Any:
        calls.append(len(texts))
        return embed(model, texts, **given)

    monkeypatch.setattr(retrieval, "embed", counted)
    mine(corpus=made[1], relative_margin=0.3, **options)
    assert not calls
    assert (tmp_path / "mined.jsonl").read_bytes() != first
    with open(made[1], "a", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "new", "text": "white birds cry"}) + "\n")
    mine(corpus=made[1], **options)
    assert sum(calls) == len(lines(Path(made[1])))


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": []}, "--queries is missing"),
        ({"output": "mined.txt"}, "--output 'mined.txt' has an ending that is not known"),
        ({"method": ["bm25", "splade"]}, "--method 'splade' is not known; choose from bm25, dense"),
        ({"method": ["bm25", "bm25"]}, "--method 'bm25 bm25' is not known"),
        ({"sampling": "all"}, "--sampling 'all' is not known; choose from top, random"),
        ({"number": 0}, "--number 0 is less than 1"),
        ({"range_min": 5, "range_max": 8}, "--range_max 8 leaves fewer than --number 7"),
        ({"max_score": float("nan")}, "--max_score nan is no number"),
        ({"bm25_b": 1.5}, "--bm25_b 1.5 is not between 0 and 1"),
        ({"bm25_k1": -1.0}, "--bm25_k1 -1.0 is no number"),
        ({"teacher_max": 0.5}, "--teacher_max needs --teacher"),
        ({"teacher": "m", "teacher_max": 3.0}, "--teacher_max 3.0 is not between 0 and 1"),
        ({"method": ["dense"]}, "--method dense and --dense_model belong together"),
        ({"dense_model": "m"}, "--method dense and --dense_model belong together"),
        ({"candidates": 5, "relative_margin": 0.1}, "--relative_margin would change them"),
        ({"candidates": 5, "sampling": "random"}, "--sampling would change them"),
        ({"bm25_stopwords": "xx"}, "--bm25_stopwords 'xx' is not known"),
        ({"bm25_stemmer": "porter"}, "--bm25_stemmer 'porter' is not known"),
        ({"numbr": 3}, "--numbr is not an argument; did you mean --number?"),
        ({"corpus": "nowhere.jsonl"}, "there is no such file"),
        ({"dense_model": "nowhere", "method": ["dense"]}, "there is no such folder"),
        ({"teacher": "nowhere"}, "there is no such folder"),
    ],
    ids=str,
)
def test_bad_arguments(made: tuple[str, str], options: dict[str, Any], message: str) -> None:
    folder = Path(made[0]).parent
    given = {"queries": made[0], "corpus": made[1], "output": str(folder / "mined.jsonl")}
    with pytest.raises(
        (ConfigError, DataError, CheckpointError), match=re.escape(message)
    ) as found:
        mine(**{**given, **options})
    assert "\n" not in str(found.value)
    assert not (folder / "mined.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "a"}', "corpus.jsonl:3: 'text' is missing (columns: _id)"),
        ('{"_id": "a", "text": 5}', "corpus.jsonl:3: 'text' is the number 5; it must be text"),
        ('{"_id": [], "text": "b"}', "corpus.jsonl:3: '_id' is an empty list; an id is text"),
        ('{"_id": "a", "title": 3, "text": "b"}', "corpus.jsonl:3: 'title' is the number 3"),
        ('"a text"', "corpus.jsonl:3: the row is the text 'a text'"),
        ("{", "corpus.jsonl:3: broken JSON"),
        ('{"_id": "c1", "text": "b"}', "corpus.jsonl:3: the document id 'c1' stands at another"),
    ],
)
def test_bad_lines_of_the_corpus(tmp_path: Path, line: str, message: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    write(corpus, *CORPUS[:2])
    corpus.write_text(corpus.read_text() + line + "\n")
    queries = write(tmp_path / "rows.jsonl", {"query": "heron", "positive": "heron"})
    with pytest.raises(DataError, match=re.escape(message)):
        mine(queries=queries, corpus=corpus, output=tmp_path / "mined.jsonl")


def test_what_is_left_out_of_the_corpus_is_counted(tmp_path: Path) -> None:
    corpus = [*CORPUS, {"_id": "e", "text": "  "}, CORPUS[3], {"text": "heron without an id"}]
    queries = write(tmp_path / "rows.jsonl", {"query": "heron", "positive": CORPUS[0]["text"]})
    result = mine(
        queries=queries,
        corpus=write(tmp_path / "corpus.jsonl", *corpus),
        output=tmp_path / "mined.jsonl",
    )
    assert result.report.rows_dropped == {EMPTY_DOCUMENT: 1, REPEATED_DOCUMENT: 1}
    assert result.report.corpus == 7
    (row,) = lines(tmp_path / "mined.jsonl")
    assert "corpus:9" in row["document_ids"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"query": "heron", "negative": "a"}], "none of the 1 queries has a positive"),
        ([{"query": "", "positive": "a"}], "rows.jsonl:1: 'query' is empty"),
        ([], "no row is left of 0 read"),
    ],
)
def test_bad_queries(tmp_path: Path, rows: list[Any], message: str) -> None:
    queries = write(tmp_path / "rows.jsonl", *rows)
    corpus = write(tmp_path / "corpus.jsonl", *CORPUS)
    with pytest.raises(DataError, match=re.escape(message)):
        mine(queries=queries, corpus=corpus, output=tmp_path / "mined.jsonl")


def test_an_empty_corpus_and_one_of_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queries = write(tmp_path / "rows.jsonl", {"query": "heron", "positive": "of no corpus"})
    corpus = write(tmp_path / "empty.jsonl", {"_id": "a", "text": ""})
    with pytest.raises(DataError, match="holds no document with a text"):
        mine(queries=queries, corpus=corpus, output=tmp_path / "mined.jsonl")
    corpus = write(tmp_path / "corpus.jsonl", *CORPUS)
    mine(queries=queries, corpus=corpus, output=tmp_path / "mined.jsonl")
    assert "none of the 1 positives stands in the corpus" in caplog.text


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    queries = write(tmp_path / "rows.jsonl", {"query": "heron", "positive": CORPUS[0]["text"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .* cannot be written \(Not a directory\)"):
        mine(queries=queries, output=tmp_path / "file" / "mined.jsonl")


# ------------------------------------------------------------------------------- the command line


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", {"query": "heron", "positive": CORPUS[0]["text"]})
    corpus = write(tmp_path / "corpus.jsonl", *CORPUS)
    output = tmp_path / "mined.parquet"
    words = ["mine", "--queries", rows, "--corpus", corpus, "--output", str(output)]
    assert cli.main([*words, "--number", "2", "--relative-margin", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "written to" in err
    assert re.search(r"negatives +│ +2 ", err)
    assert len(load_examples(output).examples[0].documents) == 3
    assert cli.main([*words, "--number", "0"]) == 2
    assert capsys.readouterr().err == "rankwright: --number 0 is less than 1\n"


@pytest.mark.parametrize("method", ["bm25", "dense"])
def test_real_rows(shared: Path, tmp_path: Path, method: str) -> None:
    """Medical questions: what is mined looks like its query more than other texts do."""
    from rankwright.stdlib_rows import packaged_minilm

    rows = lines(shared / "data" / "medquad_small" / "dev.jsonl")[:40]
    options: dict[str, Any] = {}
    if method == "dense":
        pytest.importorskip("sentence_transformers", reason="extra mine")
        try:
            options["dense_model"] = str(packaged_minilm())
        except RankwrightError as error:
            pytest.skip(str(error))
    result = mine(
        queries=write(tmp_path / "rows.jsonl", *rows),
        output=tmp_path / "mined.jsonl",
        method=method,
        number=4,
        **options,
    )
    mined = lines(tmp_path / "mined.jsonl")
    assert len(mined) == 40
    assert all(len(negatives(row)) == 4 for row in mined)
    for row, source in zip(mined, rows, strict=True):
        assert not {" ".join(t.split()) for t in negatives(row)} & {
            " ".join(t.split()) for t in source["positive"]
        }
    assert result.report.positives_found > 0.8 * result.report.positives
    assert_adds_up(result)
