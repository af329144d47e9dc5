"""What every request passes before an endpoint sees it.

Host, API key, whether the server is stopping, how many are in flight, the body's size, the time
limit; and a client that leaves cancels its work. Refusals are answered here, in the same form as
the endpoints' errors.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rankwright.server.telemetry import Telemetry

logger = logging.getLogger(__name__)

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")
# what is read and thrown away of a body that is refused, so that the client reads the answer
# instead of a broken connection
DISCARD = 64 * 2**20
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
# status -> (vLLM's and OpenAI's type, TEI's type)
KINDS = {
    400: ("BadRequestError", "Validation"),
    401: ("AuthenticationError", "Validation"),
    404: ("NotFoundError", "Validation"),
    405: ("BadRequestError", "Validation"),
    408: ("TimeoutError", "Overloaded"),
    413: ("BadRequestError", "Validation"),
    415: ("BadRequestError", "Validation"),
    421: ("BadRequestError", "Validation"),
    422: ("BadRequestError", "Validation"),
    429: ("RateLimitError", "Overloaded"),
    500: ("InternalServerError", "Backend"),
    503: ("ServiceUnavailableError", "Unhealthy"),
    504: ("TimeoutError", "Overloaded"),
}


@dataclass
class RefusedError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        message: one line, without any text of the request beyond names.
        reason: a word for the figures.
        param: the field that is at fault.
        retry_after: seconds after which to try again.
        detail: Infinity's and FastAPI's account of the fields.
        tei: whether the client speaks TEI's form.
    """

    status: int
    message: str
    reason: str
    param: str | None = None
    retry_after: int | None = None
    detail: list[dict[str, Any]] | None = None
    tei: bool = False

    def body(self, request_id: str) -> dict[str, Any]:
        """The answer."""
        kind, tei_kind = KINDS.get(self.status, KINDS[500])
        if self.tei:
            return {"error": self.message, "error_type": tei_kind}
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        answer = {
            "id": request_id,
            "message": self.message,
            "error": error,
            "error_type": tei_kind,
        }
        return answer | ({"detail": self.detail} if self.detail is not None else {})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What goes with it."""
        found = []
        if self.retry_after is not None:
            found.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


def stopping() -> RefusedError:
    """What is answered while the server stops."""
    return RefusedError(503, "the server is stopping; try another", "stopping", retry_after=5)


@dataclass(frozen=True)
class Policy:
    """What is refused.

    Attributes:
        api_key: what clients must bring as a bearer token; None lets all in.
        hosts: names that a request may call this server by; None for any. Without a key it keeps
            web pages from reaching a server on loopback through a name of their own.
        max_documents: in a request.
        max_bytes: of a body.
        max_tokens: of all pairs of a request.
        max_queue: requests in flight.
        timeout: seconds for a request, from its first byte.
        access_log: log a line for each request: method, path, status and time.
    """

    api_key: str | None = None
    hosts: frozenset[str] | None = None
    max_documents: int = 1000
    max_bytes: int = 8 * 2**20
    max_tokens: int = 2**20
    max_queue: int = 128
    timeout: float = 60.0
    access_log: bool = False


class Gate:
    """ASGI middleware around the endpoints.

    Args:
        app: the endpoints.
        policy: what is refused.
        work: paths whose requests are work: they are limited, and refused when the server stops.
        public: paths that need no key.
        seconds_to_drain: how long what waits will take.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: Policy,
        *,
        work: frozenset[str],
        public: frozenset[str],
        seconds_to_drain: Callable[[], float],
    ) -> None:
        self.app = app
        self.policy = policy
        self.work = work
        self.public = public
        self.in_flight = 0
        self.stopping = False
        self.given_up = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.telemetry = Telemetry(lambda: self.in_flight)
        self._seconds_to_drain = seconds_to_drain
        self._key = _digest(policy.api_key.encode()) if policy.api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        exchange = _Exchange(send)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        working = scope["path"] in self.work and scope["method"] == "POST"
        try:
            await self._admit(scope, receive, exchange, working)
        except RefusedError as refusal:
            await exchange.refuse(refusal)
            self.telemetry.errors.labels(refusal.reason).inc()
        except asyncio.CancelledError:
            if not self.given_up:
                raise
            task.uncancel()
            await exchange.refuse(stopping())
        finally:
            self._tasks.discard(task)
            seconds = time.perf_counter() - begin
            # what nobody serves is one series, whatever clients think of
            path = getattr(scope.get("route"), "path", None) or "other"
            path = scope["path"] if working else path
            self.telemetry.requests.labels(path, exchange.status).inc()
            if working:
                self.telemetry.seconds.labels(path).observe(seconds)
            if self.policy.access_log:
                logger.info(
                    "%s %s %s %.1f ms", scope["method"], path, exchange.status, 1000 * seconds
                )

    def give_up(self) -> None:
        """Answer everything that is in flight with 503, now."""
        self.given_up = self.stopping = True
        for task in self._tasks:
            task.cancel()

    async def _admit(
        self, scope: Scope, receive: Receive, exchange: _Exchange, working: bool
    ) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers, working)
        declared = headers.get(b"content-length", "")
        # whatever else stands there, the body is counted as it comes
        size = int(declared) if re.fullmatch(r"[0-9]{1,18}", declared) else 0
        if refusal is None and size > self.policy.max_bytes:
            refusal = self._too_large()
        if refusal is not None:
            with suppress(TimeoutError, _LeftError):
                async with asyncio.timeout(self.policy.timeout):
                    await _read(receive, DISCARD, keep=False)
            raise refusal
        self.in_flight += working
        try:
            await self._answer(scope, receive, exchange)
        finally:
            self.in_flight -= working

    def _refusal(self, path: str, headers: dict[bytes, str], working: bool) -> RefusedError | None:
        policy = self.policy
        name = headers.get(b"host", "").rsplit(":", 1)
        host = name[0] if len(name) == 2 and name[1].isdigit() else ":".join(name)
        if policy.hosts is not None and host.lower() not in policy.hosts:
            return RefusedError(
                421,
                "this server answers to its own address only; start it with --api_key to serve "
                "other names",
                "host",
            )
        if self._key is not None and path not in self.public:
            scheme, _, token = headers.get(b"authorization", "").partition(" ")
            # of equal length whatever was sent, so that the time tells nothing
            known = hmac.compare_digest(_digest(token.strip().encode("latin-1")), self._key)
            if scheme.lower() != "bearer" or not known:
                return RefusedError(
                    401, "the API key is missing or wrong; send Authorization: Bearer KEY", "key"
                )
        if working and self.stopping:
            return stopping()
        if working and self.in_flight >= policy.max_queue:
            seconds = min(60, max(1, math.ceil(self._seconds_to_drain())))
            return RefusedError(
                429,
                f"{self.in_flight} requests are waiting, the most that do; try again later",
                "queue",
                retry_after=seconds,
            )
        return None

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, f"the body is larger than {self.policy.max_bytes} bytes; send less", "bytes"
        )

    async def _answer(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        """Read the body, run the endpoint, and stop it when time is up or the client leaves."""
        end = time.monotonic() + self.policy.timeout
        try:
            async with asyncio.timeout(self.policy.timeout):
                body = await _read(receive, self.policy.max_bytes, keep=True)
        except TimeoutError:
            raise RefusedError(
                408, f"the body did not come within {self.policy.timeout:g} s", "timeout"
            ) from None
        except _LeftError:
            exchange.status = 499
            self.telemetry.errors.labels("left").inc()
            return
        if body is None:
            raise self._too_large()
        rest = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            for message in rest:
                return message
            return await receive()

        work = asyncio.ensure_future(self.app(scope, replay, exchange.send))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait(
                {work, left},
                timeout=max(0.0, end - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not work.done() and not exchange.started:
                gone = left.done()
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work
                if gone:
                    exchange.status = 499
                    self.telemetry.errors.labels("left").inc()
                    return
                raise RefusedError(
                    504, f"no answer within {self.policy.timeout:g} s; send less", "timeout"
                )
            await work
        except RefusedError:
            raise
        except Exception as error:
            # the texts of a request may stand in the message, so the log gets the type alone
            logger.error("%s failed: %s", scope["path"], type(error).__name__)
            raise RefusedError(500, "the server made a mistake; see its log", "internal") from None
        finally:
            for task in (work, left):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task


class _LeftError(Exception):
    """The client has gone."""


class _Exchange:
    """One answer: adds headers, remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.request_id = uuid.uuid4().hex
        self.started = False
        self.status = 500

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            names = {name for name, _ in message["headers"]}
            extra = [(name, value) for name, value in HEADERS if name not in names]
            extra.append((b"x-request-id", self.request_id.encode()))
            message = {**message, "headers": [*message["headers"], *extra]}
        await self._send(message)

    async def refuse(self, refusal: RefusedError) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.started:
            return
        body = json.dumps(refusal.body(self.request_id)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *refusal.headers(),
        ]
        await self.send(
            {"type": "http.response.start", "status": refusal.status, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": body})


async def _read(receive: Receive, limit: int, *, keep: bool) -> bytes | None:
    """The body; None where it is larger than the limit (the rest is read, not kept)."""
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= limit + DISCARD:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _LeftError
        part = message.get("body", b"")
        size += len(part)
        if keep and size <= limit:
            parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts) if size <= limit else None


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
