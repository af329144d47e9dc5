"""Sockets and signals."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import ipaddress
import logging
import os
import signal
import socket
from collections import Counter
from contextlib import suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rankwright.errors import ConfigError
from rankwright.server.app import Service

logger = logging.getLogger(__name__)

# ticks of a tenth of a second between two times that unused memory is given back
TRIM_EVERY = 300
# seconds between two lines that warn of the same
WARNING_EVERY = 60


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        # the system's own words: those of the standard library repeat the address
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened on: {reason}; name another"
        ) from error
    # An answer is written in two parts, its head and its body; without this the second one waits
    # some 40 ms for the client's kernel to acknowledge the first. asyncio sees to it only for
    # sockets that it made itself; accepted ones inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class Protocol(H11Protocol):
    """Ends connections whose clients take too long where uvicorn and the gate do not look.

    These limit the time between requests, and that of a body and its answer's making. Beside that,
    a head that does not end would hold its connection for ever, and an answer that is not read its
    memory.

    Args:
        *args: as uvicorn gives them.
        limit: seconds for a head from its first byte (or the connection's begin), and for the
            client to read what waits for it.
        **kwargs: as uvicorn gives them.
    """

    def __init__(self, *args: Any, limit: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = limit
        self._head: asyncio.TimerHandle | None = None
        self._answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head."""
        super().connection_made(transport)
        # whatever is left unsent is told, not only what is above a mark
        transport.set_write_buffer_limits(high=0)
        self._head = self.loop.call_later(self.limit, transport.close)

    def data_received(self, data: bytes) -> None:
        """Go on waiting where the head has only begun."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            _cancel(self._head)
            self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(self.limit, self.transport.close)

    def pause_writing(self) -> None:
        """The client reads too slowly, or not at all."""
        super().pause_writing()
        self._answer = self.loop.call_later(self.limit, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        _cancel(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        _cancel(self._head)
        _cancel(self._answer)
        super().connection_lost(exc)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class FewWarnings(logging.Filter):
    """Lets a warning pass once a minute, with the number of those held back since then.

    uvicorn writes one for each malformed request: whoever reaches the port could fill the disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, float] = {}
        self.held_back: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        text = str(record.msg)
        if record.levelno != logging.WARNING:
            return True
        # a clock that was set back must not silence it
        if text in self.last and 0 <= record.created - self.last[text] < WARNING_EVERY:
            self.held_back[text] += 1
            return False
        if more := self.held_back.pop(text, 0):
            record.msg = f"{text} (and {more} more since the last such line)"
        self.last[text] = record.created
        return True


few_warnings = FewWarnings()


class Server(uvicorn.Server):
    """A uvicorn that finishes what is in flight before it stops.

    On SIGTERM or SIGINT new work is answered with 503 (and ``/health`` with it) until the last
    answer has gone; after a second signal what is in flight is answered with 503 too.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                service.asgi,
                log_level="warning",
                access_log=False,
                lifespan="on",
                server_header=False,
                http=functools.partial(Protocol, limit=service.asgi.policy.timeout),  # type: ignore[arg-type]
                timeout_keep_alive=30,
            )
        )
        # behind uvicorn's own set-up of its log; a second time changes nothing
        logging.getLogger("uvicorn.error").addFilter(few_warnings)
        self.service = service
        self.hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to stop; the second time, wait for nothing."""
        if self.service.asgi.stopping:
            self.hurried = True
            return
        logger.info("%s: finishing what is in flight", signal.Signals(sig).name)
        self.service.asgi.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Stop once nothing is in flight."""
        gate = self.service.asgi
        if self.hurried and not gate.given_up:
            gate.give_up()
        if gate.stopping and not gate.in_flight:
            self.should_exit = True
        if counter % TRIM_EVERY == TRIM_EVERY - 1:
            await asyncio.to_thread(_trim)
        stop: bool = await super().on_tick(counter)
        return stop


def _trim() -> None:
    """Give back what the C library keeps between batches of ever other lengths (docs/log.md)."""
    # other systems' libraries have no such function
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def run(service: Service, listener: socket.socket) -> None:
    """Serve until a signal."""
    server = Server(service)
    asyncio.run(_serve(server, listener))


async def _serve(server: Server, listener: Any) -> None:
    await server.serve(sockets=[listener])
