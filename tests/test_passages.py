"""Long documents: passages by hand through transformers, and the laws of pooling."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankwright import Passages
from rankwright.ranking import Reranker
from rankwright.templates import QWEN3_PREFIX, QWEN3_SUFFIX
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
    return 420 if folder.name == "qwen3" else 48


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
    scores = reranker.score_examples([tiny.Example(QUERY, documents, [0.0] * 3)])[0].scores
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
