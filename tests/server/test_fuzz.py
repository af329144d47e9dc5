"""Whatever comes, the answer is one that the OpenAPI document describes, and never a 5xx.

Requests are made from the document itself (schemathesis: such as it allows, and such as it does
not), and from JSON and bytes that know only the fields' names. The models are real ones: an
encoder, and a generative model that reads long documents in passages.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rankwright.ranking import Reranker
from rankwright.server import schemas
from rankwright.server.app import WORK, Service
from rankwright.server.gate import Policy
from rankwright.server.scorer import ModelScorer
from rankwright.templates import Passages
from tests import tiny
from tests.server.fakes import serving

FEW, MANY = 15, 300


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("models")
    encoder = Reranker.load(tiny.save_base(folder / "e", "modernbert"), max_length=64)
    decoder = Reranker.load(
        tiny.save_base(folder / "d", "qwen3"), max_length=400, passages=Passages(16, limit=3)
    )
    return Service(
        [ModelScorer(encoder, "encoder"), ModelScorer(decoder, "decoder")],
        Policy(max_documents=20, max_tokens=20_000),
        # short names come up more often
        aliases={"0": "decoder"},
    )


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with serving(service) as url, httpx.Client(base_url=url, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def document(service: Service) -> Any:
    """The OpenAPI document, as schemathesis reads it from the application itself."""
    schemathesis = pytest.importorskip("schemathesis", reason="extra dev")
    return schemathesis.openapi.from_asgi("/openapi.json", service.asgi)


def thorough(count: int, times: int = 1) -> settings:
    """So many examples; the few of every day are always the same ones."""
    return settings(
        max_examples=count * times,
        derandomize=count == FEW,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


amounts = pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)


@pytest.fixture
def tried(capsys: pytest.CaptureFixture[str]) -> Iterator[list[int]]:
    """Statuses of the answers; how many of each is printed."""
    found: list[int] = []
    yield found
    with capsys.disabled():
        print(f" {len(found)} requests:", {s: found.count(s) for s in sorted(set(found))}, end="")


# --- from the document --------------------------------------------------------------------------


@amounts
@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("path", WORK)
def test_requests_made_from_the_document(
    document: Any, path: str, allowed: bool, count: int, tried: list[int]
) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]

    mode = GenerationMode.POSITIVE if allowed else GenerationMode.NEGATIVE

    @thorough(count)
    @given(case=document[path]["POST"].as_strategy(mode))
    def run(case: Any) -> None:
        tried.append(case.call_and_validate(checks=wanted).status_code)

    run()
    assert len(tried) >= count // 2
    if allowed:
        assert 200 in tried


# --- from the fields' names ---------------------------------------------------------------------

WORDS = ["yes no", "the fox", "", " ", "\ud800", "\x00", "\ufeff", "😀" * 9, "word " * 300, "0"]
TEXTS = st.sampled_from(WORDS) | st.text(max_size=20)
NUMBERS = st.sampled_from(
    [0, -1, 1, 2**63, -(2**64), 10**400, 1e308, float("nan"), float("inf"), 0.5]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
QUERIES = st.sampled_from(["the fox", "yes no", "😀"]) | TEXTS
LISTS = st.lists(TEXTS, min_size=1, max_size=5)
DOCUMENTS = st.lists(
    TEXTS | st.fixed_dictionaries({"text": TEXTS}, optional={"a": ANYTHING, "b": TEXTS}),
    min_size=1,
    max_size=5,
)
# where to, and a body that is mostly answered, before others' fields and values are put into it
REQUESTS = st.one_of(
    st.tuples(
        st.sampled_from(WORK[:3]),
        st.fixed_dictionaries({"query": QUERIES, "documents": DOCUMENTS}),
    ),
    st.tuples(st.just("/rerank"), st.fixed_dictionaries({"query": QUERIES, "texts": LISTS})),
    st.tuples(
        st.sampled_from(WORK[3:]),
        st.fixed_dictionaries({"text_1": QUERIES, "text_2": TEXTS | LISTS})
        | st.fixed_dictionaries({"pairs": st.lists(st.tuples(QUERIES, TEXTS), min_size=1)}),
    ),
)
CHANGES = st.dictionaries(
    st.sampled_from(sorted(schemas.FIELDS)),
    st.booleans() | st.integers(-1, 70) | st.sampled_from(["", "0", "a"]) | NUMBERS | ANYTHING,
    max_size=2,
)


def well_formed(path: str, answer: httpx.Response) -> None:
    """The answer's form, by the path and by what was asked."""
    assert answer.status_code < 500, answer.text
    body = answer.json()
    if answer.status_code != 200:
        TypeAdapter(schemas.ErrorAnswer | schemas.TeiError).validate_python(body)
        message = body.get("message") or body["error"]
        assert message
        assert "\n" not in message
        return
    kind: Any = schemas.ScoreAnswer if "score" in path else schemas.RerankAnswer
    TypeAdapter(list[schemas.Rank] if isinstance(body, list) else kind).validate_python(body)


def send(client: httpx.Client, path: str, body: bytes, tried: list[int]) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    tried.append(answer.status_code)
    well_formed(path, answer)


@amounts
def test_any_value_in_any_field(client: httpx.Client, count: int, tried: list[int]) -> None:
    @thorough(count, 5)
    @given(request=REQUESTS, changes=CHANGES)
    def run(request: tuple[str, dict[str, Any]], changes: dict[str, Any]) -> None:
        path, body = request
        send(client, path, json.dumps(body | changes).encode(), tried)

    run()
    assert {200, 422} <= set(tried)


@amounts
def test_any_bytes(client: httpx.Client, count: int, tried: list[int]) -> None:
    """Bytes, and JSON of which a piece was cut out or replaced."""

    @thorough(count, 5)
    @given(
        request=REQUESTS,
        cut=st.tuples(st.integers(0, 60), st.integers(0, 60)),
        piece=st.binary(max_size=10),
    )
    def run(request: tuple[str, Any], cut: tuple[int, int], piece: bytes) -> None:
        path, body = request[0], json.dumps(request[1]).encode()
        send(client, path, body[: min(cut)] + piece + body[max(cut) :], tried)

    run()
    assert 422 in tried


GARBAGE = [
    b"\x00" * 100,
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",  # a browser that expects TLS
    b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
    b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-length: \xb2\r\n\r\n",
    b"POST /rerank HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /rerank HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET /%00%ff%0a HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: \xff\r\nauthorization: \xff\xfe\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET http://other/ HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
]


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_what_is_no_http(client: httpx.Client, number: int) -> None:
    """Refused or cut off; the next one is served."""
    host, port = str(client.base_url.host), client.base_url.port
    # the page, asked for in odd ways, may be given
    page = GARBAGE[number].startswith((b"GET / HTTP", b"GET http"))
    allowed = (b"HTTP/1.1 4", b"HTTP/1.1 200")[: 1 + page]
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(GARBAGE[number])
        connection.shutdown(socket.SHUT_WR)
        # the server may hang up before it has read all
        with suppress(ConnectionError):
            first = connection.recv(100)
            assert not first or first.startswith(allowed)
    assert client.get("/health").status_code == 200
