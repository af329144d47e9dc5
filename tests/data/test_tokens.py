"""Tokens made ahead are those made while training, for any documents that are chosen."""

from __future__ import annotations

import json
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwright.data import tokens as tokens_module
from rankwright.data.collate import Collator
from rankwright.data.outline import Ragged
from rankwright.data.store import load_store
from rankwright.data.tokens import TokenStore, token_store
from rankwright.errors import ConfigError
from rankwright.templates import PAIR, PairEncoder, Template
from rankwright.types import Example, Group
from tests import tiny

PROMPT = Template("generative", "Task: {instruction}\nQuery: {query}\n\n", "<|im_end|>\n")
WORD = "the fox "
# lengths around every limit: whole pairs, cut documents, cut queries, no token at all
ROWS = [
    Example(
        WORD * query,
        [WORD * 1, WORD * 5, WORD * 13, WORD * 60, "", WORD * 9, "the " * 37],
        [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        query_id=f"q{query}-{instruction}",
        instruction=instruction,
    )
    for query in (1, 6, 10, 12, 14, 16, 18, 20, 24, 40)
    for instruction in (None, "find it")
]


def encoder(kind: str, length: int) -> PairEncoder:
    if kind == "pair":
        return PairEncoder(tiny.encoder_tokenizer(token_types=True), PAIR, length)
    return PairEncoder(tiny.byte_tokenizer(), PROMPT, length)


@pytest.mark.parametrize(("kind", "length"), [("pair", 48), ("pair", 24), ("prompt", 200)])
def test_any_choice_is_encoded_alike(kind: str, length: int) -> None:
    """All pairs and all single documents of rows with short and long queries, and their cost."""
    encode = encoder(kind, length)
    made = token_store(ROWS, encode, None)
    seen = set()
    for share in (False, True):
        lengths = made.lengths(share_prefix=share)
        collate = Collator(encode, share_prefix=share, scored_last=True)
        for index, row in enumerate(ROWS):
            documents = range(len(row.documents))
            choices = [tuple(documents), *combinations(documents, 2), *((i,) for i in documents)]
            costs = lengths.of(np.full(len(choices), index), Ragged.of(choices))
            pairs = made.pairs(index, choices)
            for chosen, found, cost in zip(choices, pairs, costs, strict=True):
                group = Group(row, chosen)
                expected = encode.encode(row.query, group.documents, row.instruction)
                assert found == expected
                assert cost == collate.cost(expected)
                seen.add((expected.truncated_query, bool(expected.truncated_documents)))
                group.tokens = found
                assert collate.encode(group) is found
    assert (False, False) in seen
    assert (True, True) in seen or length > 48
    assert len(seen) > 2 or length > 48


def stored(tmp_path: Path, rows: list[Example] = ROWS) -> Any:
    path = tmp_path / "rows.jsonl"
    lines = [
        {
            "query": row.query,
            "documents": [document or "x" for document in row.documents],
            "labels": row.labels,
            "id": row.query_id,
            "instruction": row.instruction,
        }
        for row in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_store(path, tmp_path / "cache").examples


def unencodable(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_row(*args: Any) -> Any:
        raise AssertionError("rows are tokenised")

    monkeypatch.setattr(tokens_module, "encode_row", encode_row)


def every(made: TokenStore, rows: Any) -> list[Any]:
    return [made.pairs(i, [range(len(row.documents))])[0] for i, row in enumerate(rows)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_made_once_whatever_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "CHUNK", 3)
    rows, encode = stored(tmp_path), encoder("pair", 48)
    expected = [encode.encode(row.query, row.documents, row.instruction) for row in rows]
    two = token_store(rows, encode, tmp_path / "two", workers=2)
    one = token_store(rows, encode, tmp_path / "one")
    for made in (one, two):
        assert every(made, rows) == expected
    unencodable(monkeypatch)
    again = token_store(rows, encode, tmp_path / "one")
    assert every(pickle.loads(pickle.dumps(again)), rows) == expected
    with pytest.raises(AssertionError, match="rows are tokenised"):
        token_store(rows, encode, tmp_path / "one", rebuild=True)


def test_views_and_repeated_rows(tmp_path: Path) -> None:
    """A part of the rows, some of them several times, is encoded once each, in its own order."""
    rows, encode = stored(tmp_path), encoder("pair", 48)
    part = rows.select(np.array([7, 2, 11, 2, 7]))
    made = token_store(part, encode, tmp_path / "cache")
    assert every(made, part) == [encode.encode(e.query, e.documents, e.instruction) for e in part]
    [folder] = (tmp_path / "cache" / "tokens").glob("[!.]*")
    assert len(TokenStore(folder / tokens_module.TOKENS)) == 3
    lengths = made.lengths(share_prefix=True)
    whole = token_store(rows, encode, None).lengths(share_prefix=True)
    chosen = Ragged.of([(0, 3)] * 5)
    np.testing.assert_array_equal(
        lengths.of(np.arange(5), chosen), whole.of(np.array([7, 2, 11, 2, 7]), chosen)
    )


@pytest.mark.parametrize("change", ["tokenizer", "template", "instruction", "max_length", "rows"])
def test_what_changes_the_tokens_makes_them_anew(change: str, tmp_path: Path) -> None:
    rows, encode = stored(tmp_path), encoder("prompt", 200)
    token_store(rows, encode, tmp_path / "cache")
    tokenizer, template, length = encode.tokenizer, PROMPT, 200
    if change == "tokenizer":
        tokenizer.add_tokens(["fox"])
    elif change == "template":
        template = Template("generative", "{query}\n\n{instruction}\n", "<|im_end|>\n")
    elif change == "instruction":
        template = Template("generative", PROMPT.prefix, PROMPT.suffix, "judge")
    elif change == "max_length":
        length = 150
    else:
        rows = rows[1:]
    other = PairEncoder(tokenizer, template, length)
    expected = [other.encode(e.query, e.documents, e.instruction) for e in rows]
    assert every(token_store(rows, other, tmp_path / "cache"), rows) == expected
    assert len(list((tmp_path / "cache" / "tokens").glob("[!.]*"))) == 2


def test_damaged_or_unwritable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, encode = stored(tmp_path), encoder("pair", 48)
    expected = every(token_store(rows, encode, tmp_path / "cache"), rows)
    [folder] = (tmp_path / "cache" / "tokens").glob("[!.]*")
    file = folder / tokens_module.TOKENS
    file.write_bytes(file.read_bytes()[:-100])
    assert every(token_store(rows, encode, tmp_path / "cache"), rows) == expected
    assert not caplog.records
    (tmp_path / "file").write_text("")
    made = token_store(rows, encode, tmp_path / "file")
    assert every(made, rows) == expected
    assert every(pickle.loads(pickle.dumps(made)), rows) == expected
    assert len(caplog.records) == 1
    assert "so they are made in memory" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_worker_is_one_line(workers: int, tmp_path: Path) -> None:
    row = Example(WORD * 9, [WORD * 9], [1.0], query_id="q", instruction=WORD * 200)
    with pytest.raises(ConfigError, match=r"^an instruction that brings the template to \d+"):
        token_store([row], encoder("prompt", 200), None, workers=workers)
