"""The server's scores are those of ``Reranker.rank``, whoever shares the batch.

In float64 they are the same number, so nothing but rounding can differ. In float32 sums in another
order differ in the seventh digit: a row of another width, or another batch, is summed in other
blocks. Measured: up to 2e-6 on padded families, whose logits are below 10; the limit is 1e-5, as
in the ranker's own tests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rankwright.errors import ConfigError
from rankwright.ranking import Reranker
from rankwright.server.batcher import Batcher
from rankwright.server.scorer import ModelScorer
from rankwright.templates import Passages
from rankwright.types import Example, ScoredList
from tests import tiny

# packed, packed with token types, packed with shared prefixes, padded (an encoder, a decoder)
FAMILIES = ("modernbert", "bert", "qwen3", "deberta-v2", "gpt2")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_base(tmp_path_factory.mktemp("model") / request.param, request.param)


def scorer(folder: Path, *, double: bool = False, **options: Any) -> ModelScorer:
    reranker = Reranker.load(folder, **({"max_length": 512} | options))
    if double:
        reranker.loaded.model.double()
    return ModelScorer(reranker, "m")


def served(scorer: ModelScorer, rows: Sequence[Example], **options: Any) -> list[ScoredList]:
    """Each row as a request of its own, all at once."""

    async def ask(batcher: Batcher, row: Example) -> ScoredList:
        encoded = await batcher.encode(lambda: [scorer.encode(row, **options)])
        (found,) = await batcher.score(scorer, encoded)
        return found

    async def run() -> list[ScoredList]:
        batcher = Batcher(max_wait=0.05)
        try:
            return list(await asyncio.gather(*(ask(batcher, row) for row in rows)))
        finally:
            await asyncio.to_thread(batcher.close)

    return asyncio.run(run())


def equal(found: Sequence[ScoredList], expected: Sequence[ScoredList], **tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.example is other.example
        assert one.scores == pytest.approx(other.scores, **tolerance)
        assert one.passages == other.passages


@pytest.mark.parametrize(("budget", "double"), [(1, True), (400, True), (4096, True), (400, False)])
def test_scores_are_the_ranker_s(folder: Path, budget: int, double: bool) -> None:
    """Six requests at once, of 1 to 9 documents: one unit a batch, some, or all of them.

    The one rounding in float64 is that of the answer to float32: a unit in its last place.
    """
    rows = [tiny.examples(1, documents=n, seed=n)[0] for n in (1, 9, 4, 7, 2, 5)]
    model = scorer(folder, double=double, batch_tokens=budget)
    tolerance = {"rel": 1.2e-7, "abs": 0.0} if double else {"rel": 0.0, "abs": 1e-5}
    score, requests = model.score, []

    def watched(parts: Any) -> Any:
        requests.append(len({id(encoded) for encoded, _ in parts}))
        return score(parts)

    model.score = watched  # type: ignore[method-assign]
    equal(served(model, rows), model.reranker.score_examples(rows), **tolerance)
    # with 400 tokens it depends on the length of the prompt
    assert max(requests) == 1 or budget > 1
    assert max(requests) > 1 or budget < 4096


def test_passages_are_the_ranker_s(folder: Path) -> None:
    """Documents of 3 to 120 words, some of them in passages: scores, and where the best stands."""
    words = random.Random(0)
    documents = [" ".join(words.choices(tiny.WORDS, k=k)) for k in (3, 120, 60)]
    rows = [Example("the quick fox", documents[i:], [0.0] * (3 - i)) for i in range(2)]
    passages = Passages(20, 5, "mean2", 4)
    # room for some forty tokens of a document
    length = 116 if folder.name.split(":")[0] in (*tiny.DECODERS, "gpt2") else 48
    model = scorer(folder, double=True, passages=passages, max_length=length, batch_tokens=900)
    found, expected = served(model, rows), model.reranker.score_examples(rows)
    equal(found, expected, rel=1.2e-7, abs=0.0)
    assert found[0].passages is not None
    assert found[0].passages[1] is not None
    # a request may ask for fewer passages, never for more
    few = Reranker(model.reranker.loaded, passages=Passages(20, 5, "mean2", 2))
    equal(served(model, rows, passages=2), few.score_examples(rows), rel=1.2e-7, abs=0.0)
    equal(served(model, rows, passages=99), expected, rel=1.2e-7, abs=0.0)


def test_a_request_s_own_limits(folder: Path) -> None:
    """Tokens of a document, and of a pair: what a ranker with such texts or such a limit gives."""
    row = tiny.examples(1, documents=6, longest=60)[0]
    model = scorer(folder, double=True)
    encoder = model.reranker.loaded.encoder()
    short = Example(row.query, [encoder.cut(text, 5) for text in row.documents], row.labels)
    assert short.documents != row.documents
    found = served(model, [row], document_tokens=5)[0].scores
    assert found == pytest.approx(model.reranker.score_examples([short])[0].scores, rel=1.2e-7)

    frame = len(model.encode(row).whole.tokens.prefix)
    limit = frame + 30
    less = scorer(folder, double=True, max_length=limit)
    expected = less.reranker.score_examples([row])
    equal(served(model, [row], max_length=limit), expected, rel=1.2e-7, abs=0.0)
    encoded = model.encode(row, max_length=limit)
    assert encoded.truncated == less.reranker.truncated
    assert encoded.truncated["documents"] > 0
    # more than the model's own is the model's own
    equal(
        served(model, [row], max_length=9999),
        model.reranker.score_examples([row]),
        rel=1.2e-7,
        abs=0.0,
    )
    with pytest.raises(ConfigError):
        model.encode(row, max_length=1)


def test_tokens_are_counted_as_they_are_read(folder: Path) -> None:
    """Every pair's tokens, by the encoder's own count; a shared prefix is set apart."""
    row = tiny.examples(1, documents=5)[0]
    model = scorer(folder)
    encoded = model.encode(row)
    tokens = model.reranker.loaded.encoder().encode(row.query, row.documents)
    pairs = [len(tokens.prefix) + len(ids) for ids in tokens.documents]
    assert encoded.total == sum(pairs)
    shares = model.reranker.collator.share_prefix
    assert encoded.shared == (len(tokens.prefix) if shares else 0)
    assert [encoded.shared + unit for unit in encoded.units] == pairs


def test_units_may_be_scored_in_any_order_and_apart(folder: Path) -> None:
    """What the batcher asks for: some documents of one list, some of another, then the rest."""
    rows = tiny.examples(2, documents=5)
    model = scorer(folder, double=True)
    expected = [found.scores for found in model.reranker.score_examples(rows)]
    one, other = (model.encode(row) for row in rows)
    first = model.score([(one, [4, 0]), (other, [1])])
    second = model.score([(other, [3, 0, 2, 4]), (one, [2]), (one, [3, 1])])
    assert first == [
        pytest.approx([expected[0][4], expected[0][0]], rel=1.2e-7),
        pytest.approx([expected[1][1]], rel=1.2e-7),
    ]
    assert second == [
        pytest.approx([expected[1][i] for i in (3, 0, 2, 4)], rel=1.2e-7),
        pytest.approx([expected[0][2]], rel=1.2e-7),
        pytest.approx([expected[0][i] for i in (3, 1)], rel=1.2e-7),
    ]


@pytest.mark.parametrize("name", ["deberta-v2", "gpt2"])
def test_padded_rows_hold_to_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A padded row counts its width: pairs x longest; only a single pair may be above."""
    model = scorer(tiny.save_base(tmp_path, name), batch_tokens=1200)
    collator = model.reranker.collator
    sizes: list[tuple[int, int]] = []
    pack = collator.pack

    def watched(groups: Any, tokens: Any) -> Any:
        lengths = [len(t.prefix) + len(ids) for t in tokens for ids in t.documents]
        sizes.append((len(lengths), max(lengths)))
        return pack(groups, tokens)

    monkeypatch.setattr(collator, "pack", watched)
    encoded = model.encode(tiny.examples(1, documents=40, longest=60)[0])
    found = model.score([(encoded, list(range(40)))])
    assert sum(count for count, _ in sizes) == 40
    assert len(sizes) > 1
    assert all(count * longest <= 1200 or count == 1 for count, longest in sizes)
    monkeypatch.undo()
    expected = model.reranker.score_examples([encoded.whole.example])[0].scores
    assert found == [pytest.approx(expected, rel=0, abs=1e-5)]


def test_an_instruction(folder: Path) -> None:
    """It changes the scores of a model whose template reads one, and no other's."""
    row = tiny.examples(1)[0]
    asked = Example(row.query, row.documents, row.labels, instruction="find ships at dawn")
    model = scorer(folder, double=True)
    plain, other = served(model, [row, asked])
    expected = model.reranker.score_examples([asked])[0].scores
    assert other.scores == pytest.approx(expected, rel=1.2e-7)
    assert model.reads_instruction == (plain.scores != pytest.approx(other.scores, abs=1e-6))


def test_threads_encode_with_tokenizers_of_their_own(folder: Path) -> None:
    model = scorer(folder)
    rows = tiny.examples(40, documents=8)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(model.encode, rows))
    assert [one.whole.tokens for one in found] == [model.encode(row).whole.tokens for row in rows]


def test_what_info_says(folder: Path) -> None:
    model = scorer(folder, passages=Passages(pooling="mean3"))
    about = model.about()
    assert about["architecture"] == model.reranker.loaded.model.config.model_type
    assert about["kind"] == model.reranker.loaded.spec.kind
    assert (about["dtype"], about["device"], about["max_length"]) == ("float32", "cpu", 512)
    assert (about["instruction"] is not None) == model.reads_instruction
    assert (about["calibration"], about["passages"]) == (None, "mean3")
