"""Long documents: passages by hand through transformers, and the laws of pooling."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankwright import Passages, cli
from rankwright.errors import ConfigError
from rankwright.ranking import Reranker
from rankwright.templates import QWEN3_PREFIX, QWEN3_SUFFIX
from rankwright.types import Example, ScoredList
from tests import tiny

QUERY = "the quick fox"
KINDS = ("modernbert", "bert", "qwen3", "deberta-v2")


def text(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(tiny.WORDS, k=words))


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_base(tmp_path_factory.mktemp("model") / request.param, request.param)


def length_for(folder: Path) -> int:
    """Room for about forty tokens of a document."""
    return 116 if folder.name == "qwen3" else 48


def by_hand(folder: Path, parts: list[list[int]]) -> list[float]:
    """Score document parts (token ids) one at a time through plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    if folder.name == "qwen3":
        model = AutoModelForCausalLM.from_pretrained(folder)
        yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        instruction = "Given a web search query, retrieve relevant passages that answer the query"
        prompt = QWEN3_PREFIX.format(instruction=instruction, query=QUERY)
        # the space before the document is read with it
        before = tokenizer(prompt.rstrip(" "), add_special_tokens=False)["input_ids"]
        after = tokenizer(QWEN3_SUFFIX, add_special_tokens=False)["input_ids"]
        for part in parts:
            with torch.no_grad():
                logits = model(torch.tensor([before + part + after])).logits[0, -1]
            scores.append((logits[yes] - logits[no]).item())
        return scores
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    query = tokenizer(QUERY, add_special_tokens=False)["input_ids"]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    for part in parts:
        ids = [cls, *query, sep, *part, sep]
        inputs = {"input_ids": torch.tensor([ids])}
        if folder.name in ("bert", "deberta-v2"):
            kinds = [0] * (len(query) + 2) + [1] * (len(part) + 1)
            inputs["token_type_ids"] = torch.tensor([kinds])
        with torch.no_grad():
            scores.append(model(**inputs).logits[0, 0].item())
    return scores


@pytest.mark.parametrize("pooling", ["max", "mean2", "mean3"])
def test_equals_passages_made_by_hand(folder: Path, pooling: str) -> None:
    """Passages of 20 tokens, 5 of them shared: starts 0, 15, 30, ..., the last one moved back."""
    passages = Passages(20, 5, pooling)
    reranker = Reranker.load(folder, max_length=length_for(folder), passages=passages)
    documents = [text(200, 1), "a lazy dog", text(90, 2)]
    scores = reranker.score_examples([Example(QUERY, documents, [0.0] * 3)])[0].scores
    tokenizer = AutoTokenizer.from_pretrained(folder)
    best = {"max": 1, "mean2": 2, "mean3": 3}[pooling]
    for document, score in zip(documents, scores, strict=True):
        lead = " " if folder.name == "qwen3" else ""
        ids = tokenizer(lead + document, add_special_tokens=False)["input_ids"]
        starts = [*range(0, max(len(ids) - 20, 0), 15), max(len(ids) - 20, 0)]
        found = sorted(by_hand(folder, [ids[s : s + 20] for s in starts]), reverse=True)
        if document == "a lazy dog":
            assert len(found) == 1
        else:
            assert len(found) > 4
        expected = sum(found[:best]) / len(found[:best])
        assert score == pytest.approx(expected, abs=2e-5)


# --- laws -------------------------------------------------------------------------------------


def scored(folder: Path, documents: list[str], **options: Any) -> ScoredList:
    reranker = Reranker.load(folder, max_length=length_for(folder), **options)
    return reranker.score_examples([Example(QUERY, documents, [0.0] * len(documents))])[0]


def test_documents_that_fit_are_scored_as_before(folder: Path) -> None:
    """Bit-equal: the same tokens in the same batches."""
    documents = [text(n, n) for n in (1, 5, 2, 9)]
    plain = scored(folder, documents)
    found = scored(folder, documents, passages=Passages(8, 2, "mean3"))
    assert found.scores == plain.scores
    assert found.passages == [None] * 4
    assert plain.passages is None


def test_a_document_does_not_depend_on_the_others(folder: Path) -> None:
    """In any order, or alone, among long and short ones."""
    documents = [text(n, n) for n in (150, 3, 70, 200, 9)]
    passages = Passages(20, 5, "mean2")
    found = scored(folder, documents, passages=passages)
    order = [3, 0, 4, 2, 1]
    moved = scored(folder, [documents[i] for i in order], passages=passages)
    assert_close(moved.scores, [found.scores[i] for i in order], rtol=0, atol=2e-5)
    assert moved.passages == [found.passage(i) for i in order]
    alone = [scored(folder, [document], passages=passages).scores[0] for document in documents]
    assert_close(alone, found.scores, rtol=0, atol=2e-5)


def test_the_best_passage_scores_what_its_document_does(folder: Path) -> None:
    """With max, the text of the span alone gets the document's score."""
    documents = [text(150, 1), text(90, 2), "a lazy dog"]
    reranker = Reranker.load(folder, max_length=length_for(folder), passages=Passages(20, 5))
    ranked = reranker.rank(QUERY, documents)
    assert sorted(r.index for r in ranked) == [0, 1, 2]
    for document in ranked:
        if document.index == 2:
            assert document.passage is None
            continue
        start, end = document.passage or (0, 0)
        assert 0 <= start < end <= len(document.document)
        if folder.name == "qwen3":
            continue  # the span may start or end within a word, whose bytes join otherwise
        part = document.document[start:end]
        assert len(part.split()) == 20
        again = reranker.score([(QUERY, part)])[0]
        assert again == pytest.approx(document.score, abs=2e-5)


def test_max_never_falls_with_more_passages(folder: Path) -> None:
    """Passages without overlap of a text and of the text with more behind it: the first stay."""
    document = text(60, 4)
    scores = [
        scored(folder, [document + " " + text(20 * n, 9)], passages=Passages(20, 0)).scores[0]
        for n in (0, 1, 2, 5)
    ]
    if folder.name != "qwen3":  # bytes: the passage that is moved back differs
        assert all(later >= earlier - 2e-5 for earlier, later in pairwise(scores))
    few, many = (
        scored(folder, [text(200, 1)], passages=Passages(20, 5, limit=n)).scores[0] for n in (2, 6)
    )
    assert many >= few - 2e-5


def test_mean_of_one_is_max_and_means_fall(folder: Path) -> None:
    documents = [text(150, 1)]
    by = {
        pooling: scored(folder, documents, passages=Passages(20, 5, pooling)).scores[0]
        for pooling in ("max", "mean1", "mean2", "mean4", "mean999")
    }
    assert by["max"] == by["mean1"]
    assert by["max"] >= by["mean2"] >= by["mean4"] >= by["mean999"]


@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_any_budget_and_window_give_the_same_scores(
    folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Example(QUERY, [text(150, i), text(5, i)], [0.0] * 2) for i in range(4)]
    passages = Passages(20, 5, "mean2")
    plain = Reranker.load(folder, max_length=length_for(folder), passages=passages)
    expected = [s.scores for s in plain.score_examples(rows)]
    sizes: list[int] = []
    small = Reranker(plain.loaded, batch_tokens=budget, passages=passages)
    score_window = small._score_window

    def watched(window: Any, progress: Any) -> Any:
        sizes.append(sum(len(encoded.owners) for encoded in window))
        return score_window(window, progress)

    monkeypatch.setattr(small, "_score_window", watched)
    monkeypatch.setattr("rankwright.ranking.WINDOW", 10)
    found = [s.scores for s in small.iter_scores(iter(rows))]
    assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=2e-5)
    # passages fill a window, not documents: 8 of those would have gone into one
    assert len(sizes) > 2


def test_shared_prefixes_change_nothing(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "qwen3", "qwen3")
    documents = [text(150, 1), text(40, 2)]
    shared, apart = (
        scored(folder, documents, passages=Passages(20, 5), share_prefix=share)
        for share in (True, False)
    )
    assert_close(shared.scores, apart.scores, rtol=0, atol=2e-5)
    assert shared.passages == apart.passages


def test_twenty_thousand_tokens(tmp_path: Path) -> None:
    """200 words of the kind that this model likes best, deep among those it likes least.

    Cut, the document is the same without them; in passages, the best one lies in them.
    """
    folder = tiny.save_base(tmp_path / "modernbert", "modernbert")
    plain = Reranker.load(folder, max_length=128)
    passages = Reranker.load(folder, max_length=128, passages=Passages())
    room = 128 - len(QUERY.split()) - 3
    words = sorted(set(tiny.WORDS))
    each = plain.score([(QUERY, " ".join([word] * room)) for word in words])
    (low, worst), *_, (high, best) = sorted(zip(each, words, strict=True))
    before = " ".join([worst] * 9_900)
    document = " ".join([before, *[best] * 200, *[worst] * 9_900])
    assert plain.score([(QUERY, document)])[0] == pytest.approx(low, abs=2e-5)
    assert plain.truncated["documents"] == 1
    (found,) = passages.rank(QUERY, [document])
    assert found.score > high - 2e-5
    assert passages.truncated == {"documents": 0, "queries": 0}
    assert found.passage is not None
    assert best in document[slice(*found.passage)].split()
    assert found.passage[1] > len(before)
    windows = Passages().windows(20_000, room)
    assert windows[0] == (0, room)
    assert windows[-1] == (20_000 - room, 20_000)
    assert {end - start for start, end in windows} == {room}


def test_only_a_query_counts_as_cut(tmp_path: Path) -> None:
    """The query is cut as without passages: to half of the room, where documents need the rest."""
    folder = tiny.save_base(tmp_path / "bert", "bert")
    reranker = Reranker.load(folder, max_length=43, passages=Passages())
    reranker.score([(text(35, 1), text(60, 2)), (QUERY, text(60, 2))])
    assert reranker.truncated == {"documents": 0, "queries": 1}
    # 43 - 3 of the frame: 20 for the query, 20 for each passage, 2 of them shared
    found = reranker.collator.encoder.encode_passages(text(35, 1), [text(60, 2)], Passages())
    assert len(found.tokens.prefix) == 22
    assert [len(ids) for ids in found.tokens.documents] == [21, 21, 21, 21]


def test_passages_shrink_to_the_room_of_a_query() -> None:
    """Of 20 tokens with 8 shared, 10 fit: they share at most half."""
    assert Passages(20, 8).windows(30, 10) == [(0, 10), (5, 15), (10, 20), (15, 25), (20, 30)]
    assert Passages(20, 8).windows(44, 40) == [(0, 20), (12, 32), (24, 44)]
    assert Passages(20, 8).windows(40, 40) == [(0, 40)]
    # default overlap: an eighth
    assert Passages(16).windows(41, 20) == [(0, 16), (14, 30), (25, 41)]
    assert Passages(1, 0).windows(3, 2) == [(0, 1), (1, 2), (2, 3)]


@given(
    st.integers(0, 500),
    st.integers(1, 60),
    st.one_of(st.none(), st.integers(1, 80)),
    st.one_of(st.none(), st.integers(0, 40)),
)
def test_windows_cover_every_token(
    length: int, room: int, tokens: int | None, overlap: int | None
) -> None:
    if tokens is not None and overlap is not None and 2 * overlap > tokens:
        overlap = tokens // 2
    windows = Passages(tokens, overlap).windows(length, room)
    assert {i for start, end in windows for i in range(start, end)} == set(range(length))
    assert all(end - start <= room for start, end in windows)
    assert len({end - start for start, end in windows}) == 1
    assert windows == sorted(set(windows))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"pooling": "sum"}, "--passages 'sum' is unknown; give max, or mean with the number"),
        ({"pooling": "mean"}, "--passages 'mean' is unknown"),
        ({"pooling": "mean0"}, "--passages 'mean0' is unknown"),
        ({"tokens": 0}, "--passage_tokens 0 is less than 1"),
        ({"overlap": -1}, "--passage_overlap -1 is less than 0"),
        ({"tokens": 10, "overlap": 6}, "--passage_overlap 6 is more than half of --passage_tokens"),
        ({"limit": 0}, "--max_passages 0 is less than 1"),
    ],
)
def test_refusals(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(complaint)}"):
        Passages(**values)


def test_passages_longer_than_the_room_are_refused(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "bert", "bert")
    with pytest.raises(ConfigError, match="--passage_tokens 64 is more than the 45 that --max_len"):
        Reranker.load(folder, max_length=48, passages=Passages(64))


# --- commands ---------------------------------------------------------------------------------


def test_rank_and_evaluate_in_passages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.save_base(tmp_path / "bert", "bert")
    documents = [text(100, 1), "a lazy dog", text(30, 2)]
    flags = ["--max_length", "24", "--passages", "mean2", "--passage_tokens", "12"]
    flags += ["--passage_overlap", "3"]
    reranker = Reranker.load(folder, max_length=24, passages=Passages(12, 3, "mean2"))
    expected = reranker.rank(QUERY, documents)
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"query": QUERY, "documents": documents}) + "\n")
    out = tmp_path / "out.jsonl"
    rank = ["rank", "--model", str(folder), *flags]
    assert cli.main([*rank, "--input", str(source), "--output", str(out)]) == 0
    assert "cut" not in capsys.readouterr().err
    results = json.loads(out.read_text())["results"]
    assert [entry["index"] for entry in results] == [r.index for r in expected]
    for entry, document in zip(results, expected, strict=True):
        assert entry["score"] == pytest.approx(document.score, abs=1e-5)
        span = None if document.passage is None else list(document.passage)
        assert entry.get("passage") == span
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{document}\n" for document in documents))
    words = ["--query", QUERY, "--documents", str(texts), "--max_passages", "2", "--output"]
    assert cli.main([*rank, *words, str(out)]) == 0
    assert "2 documents were cut at 2 passages; raise --max_passages" in capsys.readouterr().err
    assert [json.loads(line).get("passage") is None for line in out.read_text().splitlines()].count(
        True
    ) == 1

    rows = tmp_path / "rows.jsonl"
    row = {"query": QUERY, "positive": documents[:1], "negative": documents[1:]}
    rows.write_text(json.dumps(row) + "\n")
    assert cli.main(["evaluate", "--model", str(folder), "--dataset", str(rows), *flags]) == 0
    assert "cut" not in capsys.readouterr().err
    plain = ["evaluate", "--model", str(folder), "--dataset", str(rows), "--max_length", "24"]
    assert cli.main(plain) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "2 documents were cut at 24 tokens; raise --max_length to keep more, or give" in error
    assert cli.main([*plain, "--passage_tokens", "5"]) == 2
    assert "--passage_tokens 5 needs --passages; give max, or mean3" in capsys.readouterr().err
