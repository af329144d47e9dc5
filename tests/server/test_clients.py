"""The clients that people have, against ``rankwright serve`` in a process of its own.

Every score is compared with ``Reranker.score``. Float32 keeps seven digits, and sums in another
order differ in the last of them: 1e-5 on logits below 10, a quarter of it on probabilities, whose
slope is at most a quarter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from rankwright.calibration import sigmoid
from rankwright.ranking import Reranker
from rankwright.templates import Passages
from tests import tiny
from tests.processes import ServerProcess, serve

# what its tests share is made once, by one worker
pytestmark = pytest.mark.xdist_group("clients")

cohere = pytest.importorskip("cohere", reason="extra dev")

KEY = "a-key-of-the-clients"
QUERY = "the quick fox"
LONG = " ".join(tiny.WORDS * 40)
TEXTS = ["a lazy dog", "the fox jumps over green hills", "", LONG, "dawn", "grey birds cry"]
LIMIT = 512


@dataclass(frozen=True)
class Served:
    """The server, and what it has to answer."""

    server: ServerProcess
    rerankers: dict[str, Reranker]

    @property
    def url(self) -> str:
        return self.server.url

    def logits(
        self, model: str, texts: Sequence[str], query: str = QUERY, **options: Any
    ) -> list[float]:
        return self.rerankers[model].score([(query, text) for text in texts], **options)

    def post(self, path: str, body: dict[str, Any], key: str = KEY) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An encoder and a generative model, long documents in at most three passages."""
    folder = tmp_path_factory.mktemp("models")
    models = {"encoder": "modernbert", "decoder": "qwen3"}
    folders = {name: tiny.save_base(folder / name, kind) for name, kind in models.items()}
    limits = ["--max_length", str(LIMIT), "--passages", "max", "--max_passages", "3"]
    more = ["--max_documents", "20", "--access_log", "true"]
    with serve(
        "--model", *map(str, folders.values()), *limits, *more, RANKWRIGHT_API_KEY=KEY
    ) as server:
        rerankers = {
            name: Reranker.load(folder, max_length=LIMIT, passages=Passages(limit=3))
            for name, folder in folders.items()
        }
        yield Served(server, rerankers)


@pytest.fixture(params=["v1", "v2"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Any]:
    """Cohere's, of either version."""
    kind = cohere.Client if request.param == "v1" else cohere.ClientV2
    with httpx.Client() as connection:
        yield kind(KEY, base_url=served.url, httpx_client=connection)


def check(found: Sequence[tuple[int, float]], logits: Sequence[float]) -> None:
    """The best, in order, each once and with the sigmoid of its logit."""
    places = [place for place, _ in found]
    assert len(set(places)) == len(places)
    best = sorted(logits, reverse=True)[: len(found)]
    assert [logits[place] for place in places] == pytest.approx(best, rel=0, abs=1e-5)
    expected = list(sigmoid([logits[place] for place in places]))
    assert [score for _, score in found] == pytest.approx(expected, rel=0, abs=2.5e-6)


# --- Cohere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_cohere(served: Served, client: Any, model: str) -> None:
    answer = client.rerank(model=model, query=QUERY, documents=TEXTS)
    check([(r.index, r.relevance_score) for r in answer.results], served.logits(model, TEXTS))
    assert len(answer.results) == len(TEXTS)
    assert answer.id
    assert answer.meta.api_version.version == ("1" if type(client) is cohere.Client else "2")
    assert answer.meta.tokens.input_tokens > 0
    first = client.rerank(model=model, query=QUERY, documents=TEXTS, top_n=2)
    check([(r.index, r.relevance_score) for r in first.results], served.logits(model, TEXTS))
    assert len(first.results) == 2


def test_cohere_shows_the_best_passage(served: Served, client: Any) -> None:
    """Only of what was read in passages; the place is that of ``Reranker.rank``."""
    answer = client.rerank(model="encoder", query=QUERY, documents=TEXTS)
    expected = {r.index: r.passage for r in served.rerankers["encoder"].rank(QUERY, TEXTS)}
    assert [i for i, passage in expected.items() if passage is not None] == [3]
    for result in answer.results:
        place = getattr(result, "passage", None)
        found = None if place is None else (place["start"], place["end"])
        assert found == expected[result.index]
    assert answer.meta.warnings == ["cut to what is read at most: 1 document"]


def test_cohere_v1_s_documents(served: Served) -> None:
    """Documents as objects, the fields that are ranked chosen, the documents given back."""
    documents = [{"title": "a fox", "body": "runs"}, {"title": "a dog", "body": "sleeps", "n": "1"}]
    with httpx.Client() as connection:
        client = cohere.Client(KEY, base_url=served.url, httpx_client=connection)
        answer = client.rerank(
            query=QUERY,
            documents=documents,
            rank_fields=["title", "body"],
            return_documents=True,
            max_chunks_per_doc=1,
        )
    texts = ["a fox\nruns", "a dog\nsleeps"]
    check([(r.index, r.relevance_score) for r in answer.results], served.logits("encoder", texts))
    for result in answer.results:
        assert result.document.text == texts[result.index]
        assert result.document.title == documents[result.index]["title"]


def test_cohere_v2_s_limit_of_a_document(served: Served) -> None:
    """Three words are three tokens of the encoder's tokenizer."""
    with httpx.Client() as connection:
        client = cohere.ClientV2(KEY, base_url=served.url, httpx_client=connection)
        answer = client.rerank(model="encoder", query=QUERY, documents=TEXTS, max_tokens_per_doc=3)
    texts = [" ".join(text.split()[:3]) for text in TEXTS]
    check([(r.index, r.relevance_score) for r in answer.results], served.logits("encoder", texts))


def test_cohere_s_errors(served: Served, client: Any) -> None:
    def failed(kind: type[Exception], **request: Any) -> Any:
        with pytest.raises(kind) as raised:
            client.rerank(**{"model": "encoder", "query": QUERY, "documents": ["a"], **request})
        return raised.value.body["message"]  # type: ignore[attr-defined]

    assert failed(cohere.NotFoundError, model="rerank-v3.5") == (
        "model 'rerank-v3.5' is not served; choose from encoder, decoder, or leave it out"
    )
    assert failed(cohere.UnprocessableEntityError, documents=[]).startswith("documents: List sho")
    assert failed(cohere.UnprocessableEntityError, query=" ") == "query: it is empty; give a text"
    message = failed(cohere.core.api_error.ApiError, documents=["a"] * 21)
    assert message == "documents holds 21 documents; at most 20 are ranked at a time"
    with httpx.Client() as connection:
        other = type(client)("another-key", base_url=served.url, httpx_client=connection)
        with pytest.raises(cohere.UnauthorizedError) as raised:
            other.rerank(model="encoder", query=QUERY, documents=["a"])
    assert "key is missing or wrong" in raised.value.body["message"]


def test_cohere_s_concurrent_requests_get_their_own_scores(served: Served) -> None:
    """Twelve at once, of both models and of many lengths, while they share batches."""
    rows = tiny.examples(12, documents=7, longest=60)
    models = ["encoder", "decoder"] * 6

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(timeout=60) as connection:
            client = cohere.AsyncClientV2(KEY, base_url=served.url, httpx_client=connection)
            requests = [
                client.rerank(model=model, query=row.query, documents=row.documents)
                for model, row in zip(models, rows, strict=True)
            ]
            return list(await asyncio.gather(*requests))

    answers = asyncio.run(ask())
    for model, row, answer in zip(models, rows, answers, strict=True):
        logits = served.logits(model, row.documents, row.query)
        check([(r.index, r.relevance_score) for r in answer.results], logits)


# --- LangChain ----------------------------------------------------------------------------------


def test_langchain(served: Served) -> None:
    pytest.importorskip("langchain_cohere", reason="extra dev")
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    compressor = CohereRerank(model="decoder", cohere_api_key=KEY, base_url=served.url, top_n=3)
    try:
        documents = [Document(text, metadata={"place": i}) for i, text in enumerate(TEXTS)]
        found = compressor.compress_documents(documents, QUERY)
    finally:
        compressor.client._client_wrapper.httpx_client.httpx_client.close()
    assert [document.page_content for document in found] == [
        TEXTS[document.metadata["place"]] for document in found
    ]
    places = [(d.metadata["place"], d.metadata["relevance_score"]) for d in found]
    check(places, served.logits("decoder", TEXTS))
    assert len(found) == 3


# --- Infinity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_infinity(served: Served, raw: bool) -> None:
    pytest.importorskip("infinity_client", reason="extra dev")
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    with AuthenticatedClient(base_url=served.url, token=KEY) as client:
        body = RerankInput(QUERY, TEXTS, return_documents=True, raw_scores=raw, top_n=4)
        answer = rerank.sync(client=client, body=body)
        assert answer is not None
        # a list of results; the texts as they were given
        logits = served.logits("encoder", TEXTS)
        found = [(r.index, r.relevance_score) for r in answer.results]
        if raw:
            assert [s for _, s in found] == pytest.approx([logits[i] for i, _ in found], abs=1e-5)
            found = [(place, sigmoid([score])[0]) for place, score in found]
        check(found, logits)
        assert len(found) == 4
        assert [r.document for r in answer.results] == [TEXTS[i] for i, _ in found]
        assert answer.usage.total_tokens > 0
        assert answer.model == "encoder"

        refused = rerank.sync(client=client, body=RerankInput(QUERY, []))
        assert [(d.loc, d.type) for d in refused.detail] == [(["body", "documents"], "too_short")]
        answered = rerank.sync_detailed(client=client, body=RerankInput(QUERY, ["a"], model="no"))
        assert (answered.status_code, answered.parsed) == (404, None)


# --- vLLM's /score ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["encoder", "decoder"])
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_vllm_s_score(served: Served, path: str, model: str) -> None:
    """One and many, many and many, and the places of passages; logits where no activation."""
    body = {
        "model": model, "text_1": QUERY, "text_2": TEXTS, "encoding_format": "float", "user": "me",
        "priority": 0, "truncation_side": "right",
    }  # fmt: skip
    answer = served.post(path, body).json()
    logits = served.logits(model, TEXTS)
    assert [d["index"] for d in answer["data"]] == list(range(len(TEXTS)))
    scores = [d["score"] for d in answer["data"]]
    assert scores == pytest.approx(list(sigmoid(logits)), rel=0, abs=2.5e-6)
    assert answer["model"] == model
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    expected = {r.index: r.passage for r in served.rerankers[model].rank(QUERY, TEXTS)}
    places = [d.get("passage") and tuple(d["passage"].values()) for d in answer["data"]]
    assert places == [expected[i] for i in range(len(TEXTS))]
    assert places[3] is not None

    queries = [QUERY, "a dog", QUERY]
    body = {"model": model, "text_1": queries, "text_2": TEXTS[:3], "use_activation": False}
    answer = served.post(path, body).json()
    pairs = list(zip(queries, TEXTS[:3], strict=True))
    assert [d["score"] for d in answer["data"]] == pytest.approx(
        served.rerankers[model].score(pairs), rel=0, abs=1e-5
    )


def test_an_instruction_is_read_by_the_model_that_reads_one(served: Served) -> None:
    body = {"model": "decoder", "text_1": QUERY, "text_2": TEXTS[:3], "raw_scores": True}
    scores = {}
    for instruction in (None, "find ships"):
        answer = served.post("/score", body | {"instruction": instruction}).json()
        scores[instruction] = [d["score"] for d in answer["data"]]
        expected = served.logits("decoder", TEXTS[:3], instruction=instruction)
        assert scores[instruction] == pytest.approx(expected, rel=0, abs=1e-5)
    assert scores[None] != pytest.approx(scores["find ships"], abs=1e-3)


# --- TEI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_tei(served: Served, model: str) -> None:
    body = {"model": model, "query": QUERY, "texts": TEXTS}
    logits = served.logits(model, TEXTS)
    answer = served.post("/rerank", body | {"truncation_direction": "Right"}).json()
    check([(r["index"], r["score"]) for r in answer], logits)
    assert [set(r) - {"passage"} for r in answer] == [{"index", "score"}] * len(TEXTS)
    answer = served.post("/rerank", body | {"raw_scores": True, "return_text": True}).json()
    for result in answer:
        assert result["text"] == TEXTS[result["index"]]
        assert result["score"] == pytest.approx(logits[result["index"]], rel=0, abs=1e-5)
    expected = {r.index: r.passage for r in served.rerankers[model].rank(QUERY, TEXTS)}
    for result in answer:
        place = result.get("passage")
        assert (place and (place["start"], place["end"])) == expected[result["index"]]


@pytest.mark.parametrize(
    ("extra", "status", "message"),
    [
        ({"texts": []}, 422, "texts: List should have at least 1 item"),
        ({"texts": ["a"] * 21}, 413, "texts holds 21 documents"),
        (
            {"texts": [LONG], "truncate": False},
            413,
            "longer than what is read at most: 1 document; a",
        ),
        ({"truncation_direction": "Left"}, 422, "truncation_direction: Left is not supported"),
        ({"query": ""}, 422, "query: "),
        ({"raw_scores": "yes"}, 422, "raw_scores: Input should be a valid boolean"),
    ],
)
def test_tei_s_errors(served: Served, extra: dict[str, Any], status: int, message: str) -> None:
    answer = served.post("/rerank", {"query": QUERY, "texts": ["a"], **extra})
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error"].startswith(message)
    assert answer.json()["error_type"] == "Validation"


# --- the key ------------------------------------------------------------------------------------


def test_the_key_is_nowhere_to_be_read(served: Served) -> None:
    """Neither in what the server says of itself nor in its log, nor are wrong keys or texts."""
    wrong = "a-key-that-is-wrong"
    assert (
        served.post("/rerank", {"query": QUERY, "documents": ["a"]}, key=wrong).status_code == 401
    )
    headers = {"authorization": f"Bearer {KEY}"}
    for path in ("/info", "/metrics", "/v1/models", "/health", "/openapi.json", "/"):
        answer = httpx.get(f"{served.url}{path}?key={KEY}", headers=headers)
        assert answer.status_code == 200
        for secret in (KEY, wrong, QUERY):
            assert secret not in answer.text + str(answer.headers)
    log = served.server.log
    assert "POST /rerank 401" in log
    for secret in (KEY, wrong, QUERY):
        assert secret not in log
