"""The endpoints' answers and refusals, as each client's wire form has them."""

from __future__ import annotations

import hmac
import json
import logging
import math
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from rankwright.server import gate, schemas
from rankwright.server.app import Service
from rankwright.server.gate import Policy
from tests.server.fakes import WordScorer, serving, until

HALF = 1 / (1 + math.exp(-0.5))
TEXTS = ["1 a", "3 b", "0.5", "3 d"]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    policy = Policy(max_documents=20, max_bytes=4000, max_tokens=300)
    service = Service(
        [WordScorer("first"), WordScorer("second")], policy, aliases={"path/a": "first"}
    )
    with serving(service) as url, httpx.Client(base_url=url) as found:
        yield found


@pytest.fixture
def held() -> Iterator[tuple[Service, WordScorer]]:
    """A service whose model waits for the test."""
    scorer = WordScorer()
    scorer.hold.clear()
    service = Service([scorer], Policy(max_queue=2, timeout=0.5))
    yield service, scorer
    scorer.hold.set()


def refused(answer: httpx.Response, status: int, param: str | None = None) -> str:
    """The message of an error, once its form was checked."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    schemas.ErrorAnswer.model_validate(body)
    assert body["error"]["message"] == body["message"]
    assert body["error"]["code"] == status
    assert body["error"]["param"] == param
    assert "\n" not in body["message"]
    assert answer.headers["x-request-id"] == body["id"]
    message: str = body["message"]
    return message


# --- the forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_back_best_first(client: httpx.Client, path: str) -> None:
    """Scores 1, 3, 0.5, 3: equal ones keep their order; probabilities are sigmoids."""
    answer = client.post(path, json={"query": "q", "documents": TEXTS})
    body = answer.json()
    schemas.RerankAnswer.model_validate(body)
    found = [(r["index"], r["relevance_score"]) for r in body["results"]]
    expected = [(1, 3.0), (3, 3.0), (0, 1.0), (2, 0.5)]
    assert found == [(i, pytest.approx(1 / (1 + math.exp(-s)), abs=1e-12)) for i, s in expected]
    assert all(set(r) == {"index", "relevance_score"} for r in body["results"])
    assert body["model"] == "first"
    assert body["object"] == "rerank"
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    version = "2" if path.startswith("/v2") else "1"
    assert body["meta"] == {"api_version": {"version": version}, "tokens": {"input_tokens": 7}}
    assert body["id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (99, 4), (0, 4), (None, 4)])
def test_top_n(client: httpx.Client, top_n: int | None, count: int) -> None:
    body = {"query": "q", "documents": TEXTS, "top_n": top_n}
    assert len(client.post("/v1/rerank", json=body).json()["results"]) == count


def test_nulls_and_foreign_fields_are_accepted(client: httpx.Client) -> None:
    body = dict.fromkeys(
        ("model", "top_n", "return_documents", "max_tokens_per_doc", "max_chunks_per_doc",
         "rank_fields", "truncation", "instruction", "priority"),
    )  # fmt: skip
    body |= {"user": "me", "priority": 3}
    answer = client.post("/v2/rerank", json={"query": "q", "documents": TEXTS, **body})
    assert [r["index"] for r in answer.json()["results"]] == [1, 3, 0, 2]


def test_documents_that_are_objects_come_back_whole(client: httpx.Client) -> None:
    documents = [{"text": "1 a", "url": "x"}, "2 b", {"text": "0", "n": [1, None]}]
    body = {"query": "q", "documents": documents, "return_documents": True}
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert [r["document"] for r in results] == [{"text": "2 b"}, documents[0], documents[2]]


def test_documents_that_are_nested_deep(client: httpx.Client) -> None:
    """As deep as can be given back: so they come. By little deeper, and too deep to be read: 422.

    Where the one ends and the other begins is the interpreter's affair.
    """
    found = []
    for depth in (100, *range(900, 1000)):
        nested = "[" * depth + "]" * depth
        document = f'{{"text": "a", "x": {nested}}}'
        body = f'{{"query": "q", "documents": [{document}], "return_documents": true}}'
        headers = {"content-type": "application/json"}
        answer = client.post("/v1/rerank", content=body, headers=headers)
        assert answer.status_code == 422 or nested in answer.text.replace(" ", "")
        found.append(answer.status_code)
    assert (found[0], set(found)) == (200, {200, 422})


def test_rank_fields_are_joined(client: httpx.Client) -> None:
    """The text is "title, line, body": 5 and 7 are then the first words."""
    documents = [{"body": "9 b", "title": "5 a"}, {"title": "7 c"}]
    body = {
        "query": "q", "documents": documents, "rank_fields": ["title", "body"],
        "return_documents": True, "raw_scores": True,
    }  # fmt: skip
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert [(r["relevance_score"], r["document"]) for r in results] == [(7, "7 c"), (5, "5 a\n9 b")]


def test_infinity_s_form(client: httpx.Client) -> None:
    """Its clients always send raw_scores and a model of no name, and get texts as plain strings."""
    body = {
        "query": "q", "documents": TEXTS, "model": "default/not-specified",
        "raw_scores": False, "return_documents": True, "top_n": 1,
    }  # fmt: skip
    result = client.post("/rerank", json=body).json()["results"][0]
    assert result["document"] == "3 b"
    assert 0 < result["relevance_score"] < 1


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"raw_scores": True}, [(1, 3.0), (3, 3.0), (0, 1.0), (2, 0.5)]),
        ({}, [(1, None), (3, None), (0, None), (2, HALF)]),
        (
            {"truncate": True, "truncation_direction": "Right"},
            [(1, None), (3, None), (0, None), (2, HALF)],
        ),
    ],
)
def test_tei_s_form(client: httpx.Client, extra: dict[str, Any], expected: list[Any]) -> None:
    """A bare list, best first."""
    body = {"query": "q", "texts": TEXTS, "return_text": True, **extra}
    answer = client.post("/rerank", json=body).json()
    TypeAdapter(list[schemas.Rank]).validate_python(answer)
    assert [r["index"] for r in answer] == [index for index, _ in expected]
    assert [r["text"] for r in answer] == [TEXTS[index] for index, _ in expected]
    for result, (_, score) in zip(answer, expected, strict=True):
        assert score is None or result["score"] == pytest.approx(score, abs=1e-12)
    assert all(
        "text" not in r for r in client.post("/rerank", json=body | {"return_text": False}).json()
    )


@pytest.mark.parametrize(
    ("body", "scores"),
    [
        ({"text_1": "q", "text_2": "2 a"}, [2]),
        ({"text_1": "q", "text_2": ["2 a", "3"]}, [2, 3]),
        ({"text_1": ["q"], "text_2": ["2 a", "3"]}, [2, 3]),
        ({"text_1": ["q", "r"], "text_2": ["2 a", "3"]}, [2, 3]),
        ({"queries": "q", "documents": ["3", "2", "3"]}, [3, 2, 3]),
        ({"pairs": [["q", "4"], ["r", "1"], ["q", "2"]]}, [4, 1, 2]),
    ],
)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_score(client: httpx.Client, path: str, body: dict[str, Any], scores: list[float]) -> None:
    answer = client.post(path, json=body | {"use_activation": False}).json()
    schemas.ScoreAnswer.model_validate(answer)
    assert [(d["index"], d["score"]) for d in answer["data"]] == list(enumerate(scores))
    probabilities = [d["score"] for d in client.post(path, json=body).json()["data"]]
    assert probabilities == pytest.approx([1 / (1 + math.exp(-s)) for s in scores], abs=1e-12)


def test_models_are_chosen_by_name(client: httpx.Client) -> None:
    body = {"query": "q", "documents": TEXTS}
    for asked, served in (
        ("first", "first"),
        ("second", "second"),
        ("path/a", "first"),
        ("", "first"),
        (None, "first"),
    ):
        answer = client.post("/v1/rerank", json=body | {"model": asked})
        assert answer.json()["model"] == served
    message = refused(client.post("/v1/rerank", json=body | {"model": "third"}), 404, "model")
    assert message == "model 'third' is not served; choose from first, second, or leave it out"


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ("nonsense", None, "the body is not JSON"),
        ("[" * 100_000, None, "the body is"),
        ("[1]", None, "Input should be a valid dictionary"),
        ("", None, "Field required"),
        ('{"documents": ["a"]}', "query", "query: Field required"),
        ('{"query": 1, "documents": ["a"]}', "query", "query: Input should be a valid string"),
        ('{"query": " ", "documents": ["a"]}', "query", "query: it is empty; give a text"),
        ('{"query": "q"}', "documents", "documents: Field required"),
        ('{"query": "q", "documents": []}', "documents", "documents: List should have at least 1"),
        ('{"query": "q", "documents": "a"}', "documents", "documents: Input should be a valid"),
        ('{"query": "q", "documents": ["a", 2]}', "documents.1", "documents.1: give a text, or an"),
        ('{"query": "q", "documents": [{}]}', "documents.0", "documents.0: has no text under"),
        ('{"query": "q", "documents": ["\\ud800"]}', "documents.0", "documents.0: it has half of"),
        ('{"query": "\\udc00", "documents": ["a"]}', "query", "query: it has half of a surrogate"),
        ('{"query": "q", "documents": ["a"], "top_n": -1}', "top_n", "top_n: Input should be"),
        ('{"query": "q", "documents": ["a"], "top_n": "x"}', "top_n", "top_n: Input should be"),
        ('{"query": "q", "documents": ["a"], "calibrated": true}', "calibrated",
         "calibrated: first has no calibration"),
        ('{"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}', "max_tokens_per_doc",
         "max_tokens_per_doc: Input should be greater"),
        ('{"query": "q", "documents": [{"text": "a", "x": NaN}], "return_documents": true}',
         "documents", "documents hold a number that is not finite"),
    ],
)  # fmt: skip
def test_bad_bodies_name_the_field(
    client: httpx.Client, body: str, param: str | None, message: str
) -> None:
    client.headers["content-type"] = "application/json"
    if len(body) > 4000:
        body = body[:3000]
    found = refused(client.post("/v1/rerank", content=body), 422, param)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text_1": "q"}, "text_2"),
        ({"text_2": "q"}, "text_1"),
        ({"text_1": ["q", "r"], "text_2": ["a"]}, "text_1"),
        ({"text_1": [], "text_2": ["a"]}, "text_1"),
        ({"text_1": "q", "text_2": []}, "text_2"),
        ({"text_1": ["q", " "], "text_2": ["a", "b"]}, "text_1"),
        ({"text_1": 3, "text_2": "a"}, "text_1"),
        ({"pairs": []}, "pairs"),
        ({"pairs": [["q"]]}, "pairs.0.1"),
    ],
)
def test_bad_pairs_name_the_field(client: httpx.Client, body: Any, param: str) -> None:
    assert refused(client.post("/score", json=body), 422, param).startswith(f"{param}: ")


def test_details_as_infinity_and_fastapi_have_them_echo_no_text(client: httpx.Client) -> None:
    body = {"query": "secret query", "documents": ["secret text", 1], "top_n": -1}
    answer = client.post("/rerank", json=body)
    assert [entry["loc"] for entry in answer.json()["detail"]] == [
        ["body", "documents", 1],
        ["body", "top_n"],
    ]
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"query": "q", "texts": []}, 422, "Validation"),
        ({"query": "q", "texts": [1]}, 422, "Validation"),
        ({"query": "q", "texts": ["w " * 60], "truncate": False}, 413, "Validation"),
        ({"query": "q", "texts": ["a"] * 21}, 413, "Validation"),
        ({"query": "q", "texts": ["poison"]}, 500, "Backend"),
        ({"query": "q", "texts": ["a"], "model": "x"}, 404, "Validation"),
    ],
)
def test_tei_s_errors(client: httpx.Client, body: Any, status: int, kind: str) -> None:
    answer = client.post("/rerank", json=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error_type"] == kind


@pytest.mark.parametrize("name", ["truncation_direction", "truncation_side"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "q", "texts": ["a"]}),
        ("/rerank", {"query": "q", "documents": ["a"]}),
        ("/v2/rerank", {"query": "q", "documents": ["a"]}),
        ("/score", {"text_1": "q", "text_2": "a"}),
    ],
)
def test_documents_are_cut_at_their_end_or_not_at_all(
    client: httpx.Client, path: str, body: dict[str, Any], name: str
) -> None:
    """The other side is refused in every form, and never ignored."""
    for side in ("Right", "right", None):
        assert client.post(path, json=body | {name: side}).status_code == 200
    for side, message in (
        ("Left", f"{name}: Left is not supported, documents are cut at their end"),
        ("left", f"{name}: left is not supported, documents are cut at their end"),
        ("middle", f"{name}: Input should be 'Right' or 'right'"),
        (1, f"{name}: Input should be 'Right' or 'right'"),
    ):
        answer = client.post(path, json=body | {name: side})
        assert answer.status_code == 422
        found = answer.json()
        assert (found.get("message") or found["error"]).startswith(message)


def test_limits_on_documents_bytes_and_tokens(client: httpx.Client) -> None:
    message = refused(
        client.post("/v1/rerank", json={"query": "q", "documents": ["a"] * 21}), 413, "documents"
    )
    assert message == "documents holds 21 documents; at most 20 are ranked at a time"
    long = {"query": "q", "documents": ["w " * 40] * 8}
    assert "320 tokens" in refused(client.post("/v1/rerank", json=long), 413, "documents")
    large = json.dumps({"query": "q", "documents": ["x" * 5000]})
    assert "4000 bytes" in refused(client.post("/v1/rerank", content=large), 413)
    # in pieces, its length not said beforehand
    parts = (large[i : i + 500].encode() for i in range(0, len(large), 500))
    assert "4000 bytes" in refused(client.post("/v1/rerank", content=parts), 413)


def test_what_is_cut_is_said_or_refused(client: httpx.Client) -> None:
    """A text of 60 words against a limit of 50."""
    body: dict[str, Any] = {"query": "q", "documents": ["w " * 60, "1"]}
    answer = client.post("/v1/rerank", json=body).json()
    assert answer["meta"]["warnings"] == ["cut to what is read at most: 1 document"]
    answer = client.post("/v1/rerank", json=body | {"truncation": False})
    assert refused(answer, 413, "documents") == (
        "longer than what is read at most: 1 document; a pair, or a passage of one, has up to 50 "
        "tokens"
    )
    figures = client.get("/metrics").text
    assert 'rankwright_truncated_total{model="first",what="documents"}' in figures


def test_an_instruction_that_is_not_read_is_said(client: httpx.Client) -> None:
    body = {"query": "q", "documents": ["1"], "instruction": "find"}
    warnings = client.post("/v1/rerank", json=body).json()["meta"]["warnings"]
    assert warnings == ["the instruction has no effect: this model reads none"]


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert refused(client.get("/nothing"), 404) == "GET /nothing: Not Found"
    assert refused(client.get("/a%0Ab%22%C3%BC"), 404) == "GET /a%0Ab%22%C3%BC: Not Found"
    assert refused(client.get("/rerank"), 405).startswith("GET /rerank")


def test_a_model_that_fails_leaves_the_server_whole(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for text, message in (
        ("poison secret", "the model failed (RuntimeError); see the log"),
        ("nan", "the model gave a score that is not a finite number; it is broken"),
    ):
        body = {"query": "secret", "documents": ["1", text]}
        assert refused(client.post("/v1/rerank", json=body), 500).startswith(message)
    assert client.post("/v1/rerank", json={"query": "q", "documents": ["1"]}).status_code == 200
    assert "secret" not in caplog.text


# --- key, host, queue, time ---------------------------------------------------------------------


def test_the_key() -> None:
    service = Service([WordScorer()], Policy(api_key="s\u00e9cret"))
    with serving(service) as url, httpx.Client(base_url=url) as client:
        body = {"query": "q", "documents": ["1"]}
        good = "Bearer s\u00e9cret".encode()
        for wrong in (
            None,
            b"Bearer wrong",
            b"Bearer",
            b"Basic s\xc3\xa9cret",
            b"s\xc3\xa9cret",
            b"Bearer s\xe9cret",
        ):
            headers = {} if wrong is None else {b"authorization": wrong}
            for path in ("/info", "/metrics", "/v1/models"):
                refused(client.get(path, headers=headers), 401)
            answer = client.post("/v1/rerank", json=body, headers=headers)
            refused(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/rerank", json=body, headers={b"authorization": good}).is_success
        assert client.get("/info", headers={b"authorization": good}).is_success
        for path in ("/", "/health", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_the_time_of_an_answer_tells_nothing_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of one length are compared by the function that takes the same time for all."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(gate.hmac, "compare_digest", watched)
    service = Service([WordScorer()], Policy(api_key="secret"))
    with serving(service) as url, httpx.Client(base_url=url) as client:
        for key, status in (("x", 401), ("secre", 401), ("x" * 5000, 401), ("secret", 200)):
            headers = {"authorization": f"Bearer {key}"}
            assert client.get("/info", headers=headers).status_code == status
    assert len(compared) == 4
    assert {len(value) for pair in compared for value in pair} == {32}
    assert len({other for _, other in compared}) == 1


def test_foreign_names_do_not_reach_a_server_on_loopback() -> None:
    """A web page whose name was pointed at 127.0.0.1 sends its own name as the host."""
    policy = Policy(hosts=frozenset({"127.0.0.1", "localhost", "[::1]"}))
    with serving(Service([WordScorer()], policy)) as url, httpx.Client(base_url=url) as client:
        port = url.rsplit(":", 1)[1]
        for host in ("127.0.0.1", "localhost", f"LOCALHOST:{port}", f"[::1]:{port}", "[::1]"):
            assert client.get("/health", headers={"host": host}).status_code == 200
        for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example"):
            refused(client.get("/health", headers={"host": host}), 421)


def test_a_full_queue_says_when_to_come_back() -> None:
    scorer = WordScorer()
    scorer.hold.clear()
    service = Service([scorer], Policy(max_queue=2))
    body = {"query": "q", "documents": ["1"]}
    with serving(service) as url, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(httpx.post, f"{url}/rerank", json=body) for _ in range(2)]
        until(lambda: service.asgi.in_flight == 2)
        answer = httpx.post(f"{url}/v1/rerank", json=body)
        assert refused(answer, 429).startswith("2 requests are waiting")
        assert int(answer.headers["retry-after"]) >= 1
        # what is no work is answered all the same
        assert httpx.get(f"{url}/health").status_code == 200
        assert "rankwright_in_flight 2.0" in httpx.get(f"{url}/metrics").text
        scorer.hold.set()
        assert [one.result().status_code for one in both] == [200, 200]
        assert httpx.post(f"{url}/rerank", json=body).status_code == 200


def test_time_is_limited_and_the_work_is_given_up(held: tuple[Service, WordScorer]) -> None:
    """A request of two batches whose first does not end: 504, and the second is never computed."""
    service, scorer = held
    with serving(service) as url:
        body = {"query": "q", "documents": ["w " * 50] * 4}
        message = refused(httpx.post(f"{url}/rerank", json=body), 504)
        assert message == "no answer within 0.5 s; send less"
        assert service.batcher.waiting_requests == 0
        scorer.hold.set()
        assert httpx.post(f"{url}/rerank", json={"query": "q", "documents": ["1"]}).is_success
        assert len(scorer.batches) == 2


def test_a_body_that_does_not_come(held: tuple[Service, WordScorer]) -> None:
    """A client that sends half a body holds its place for the time limit, not for ever."""
    service, _ = held
    with serving(service) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                b"content-length: 100\r\n\r\n{"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert service.asgi.in_flight == 0


def test_a_client_that_leaves_frees_its_work() -> None:
    """Ten batches asked for, the client gone during the first: nine are never computed."""
    scorer = WordScorer(batch_tokens=50)
    scorer.hold.clear()
    service = Service([scorer])
    with serving(service) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"query": "q", "documents": ["w " * 50] * 10}).encode()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert scorer.started.wait(30)
            assert service.asgi.in_flight == 1
        until(lambda: service.asgi.in_flight == 0)
        assert service.batcher.waiting_requests == 0
        scorer.hold.set()
        assert httpx.post(f"{url}/rerank", json={"query": "r", "documents": ["1"]}).is_success
        figures = httpx.get(f"{url}/metrics").text
    assert [[query for query, _ in batch] for batch in scorer.batches] == [["q"], ["r"]]
    assert 'rankwright_requests_total{path="/v1/rerank",status="499"} 1.0' in figures
    assert 'rankwright_errors_total{reason="left"} 1.0' in figures


def test_clients_share_batches() -> None:
    """Twelve clients at once while the model is busy: one batch for all of them."""
    scorer = WordScorer()
    scorer.hold.clear()
    service = Service([scorer])
    with serving(service) as url, ThreadPoolExecutor(13) as pool:
        asked = [pool.submit(httpx.post, f"{url}/rerank", json={"query": "f", "documents": ["0"]})]
        assert scorer.started.wait(30)
        asked += [
            pool.submit(httpx.post, f"{url}/rerank", json={"query": str(i), "documents": [str(i)]})
            for i in range(1, 13)
        ]
        until(lambda: service.batcher.waiting_requests == 12)
        scorer.hold.set()
        scores = [one.result().json()["results"][0]["relevance_score"] for one in asked]
        figures = httpx.get(f"{url}/metrics").text
    assert scores == pytest.approx([1 / (1 + math.exp(-i)) for i in range(13)], abs=1e-12)
    assert [len(batch) for batch in scorer.batches] == [1, 12]
    assert 'rankwright_batch_requests_bucket{le="16.0"} 2.0' in figures
    assert 'rankwright_batch_requests_bucket{le="8.0"} 1.0' in figures
    assert "rankwright_batch_tokens_sum 13.0" in figures
    assert 'rankwright_pairs_total{model="words"} 13.0' in figures
    assert 'rankwright_tokens_total{model="words"} 13.0' in figures


# --- what it says of itself ---------------------------------------------------------------------


def test_info_models_and_health(client: httpx.Client) -> None:
    info = schemas.Info.model_validate(client.get("/info").json())
    assert (info.model_id, info.max_client_batch_size, info.max_input_length) == ("first", 20, 50)
    assert [model.name for model in info.models] == ["first", "second"]
    assert info.limits.bytes == 4000
    models = schemas.ModelList.model_validate(client.get("/v1/models").json())
    assert [model.id for model in models.data] == ["first", "second"]
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")


def test_stopping_refuses_new_work_and_says_so() -> None:
    service = Service([WordScorer()])
    with serving(service) as url, httpx.Client(base_url=url) as client:
        assert client.get("/health").status_code == 200
        service.asgi.stopping = True
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "stopping")
        answer = client.post("/rerank", json={"query": "q", "documents": ["1"]})
        assert refused(answer, 503) == "the server is stopping; try another"
        assert answer.headers["retry-after"] == "5"


def test_the_access_log_has_no_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(Service([WordScorer()], Policy(access_log=True))) as url:
        httpx.post(f"{url}/v1/rerank?q=secret", json={"query": "secret", "documents": ["secret"]})
        httpx.get(f"{url}/secret")
    lines = [r.getMessage() for r in caplog.records if r.name == "rankwright.server.gate"]
    assert [line.rsplit(" ", 2)[0] for line in lines] == ["POST /v1/rerank 200", "GET other 404"]
    caplog.clear()
    with serving(Service([WordScorer()])) as url:
        httpx.post(f"{url}/v1/rerank", json={"query": "secret", "documents": ["secret"]})
    assert [r for r in caplog.records if r.name.startswith("rankwright")] == []


def test_openapi_describes_bodies_answers_and_errors(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    named = document["components"]["schemas"]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"):
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["required"] is True
        assert {"200", "401", "404", "413", "422", "429", "500", "503", "504"} <= set(
            operation["responses"]
        )
        for status, response in operation["responses"].items():
            text = json.dumps(response)
            assert ("ErrorAnswer" in text) == (status != "200")
    forms = document["paths"]["/rerank"]["post"]["requestBody"]["content"]["application/json"]
    assert [one["$ref"].rsplit("/", 1)[1] for one in forms["schema"]["oneOf"]] == [
        "RerankBody",
        "TeiBody",
    ]
    assert "HTTPValidationError" not in named
    assert set(named["RerankBody"]["required"]) == {"query", "documents"}
    assert set(document["paths"]) == {
        "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/v1/models", "/info",
        "/health", "/metrics",
    }  # fmt: skip
    operations = [o["operationId"] for path in document["paths"].values() for o in path.values()]
    assert len(set(operations)) == len(operations)


def test_every_answer_forbids_guessing_and_caching(client: httpx.Client) -> None:
    for path in ("/", "/health", "/nothing", "/metrics"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_threads_end_with_the_service() -> None:
    before = threading.active_count()
    with serving(Service([WordScorer()])) as url:
        httpx.post(f"{url}/rerank", json={"query": "q", "documents": ["1"]})
    until(lambda: threading.active_count() <= before)
