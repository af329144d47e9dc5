"""Sockets and signals."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from rankwright.errors import ConfigError
from rankwright.server.app import Service

logger = logging.getLogger(__name__)


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
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened on: {reason}; name another"
        ) from error


class Server(uvicorn.Server):
    """A uvicorn that finishes what is in flight before it stops.

    On SIGTERM or SIGINT new work is answered with 503 (and ``/health`` with it) until the last
    answer has gone; a second signal stops at once.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                service.asgi,
                log_level="warning",
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_keep_alive=30,
            )
        )
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to stop; the second time, stop."""
        if self.service.asgi.stopping:
            self.force_exit = self.should_exit = True
            return
        logger.info("%s: finishing what is in flight", signal.Signals(sig).name)
        self.service.asgi.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Stop once nothing is in flight."""
        if self.service.asgi.stopping and not self.service.asgi.in_flight:
            self.should_exit = True
        stop: bool = await super().on_tick(counter)
        return stop


def run(service: Service, listener: socket.socket) -> None:
    """Serve until a signal."""
    server = Server(service)
    asyncio.run(_serve(server, listener))


async def _serve(server: Server, listener: Any) -> None:
    await server.serve(sockets=[listener])
