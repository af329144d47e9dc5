"""Sockets, signals and settings."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rankwright import cli
from rankwright.errors import ConfigError
from rankwright.server import runner
from rankwright.server.app import Service
from rankwright.server.gate import Policy
from rankwright.server.runner import is_loopback, listen
from tests import tiny
from tests.processes import ServerProcess, start
from tests.server.fakes import WordScorer, serving, until

# a server whose model waits until a line comes
HELD = """
import os, sys, threading
from rankwright.server import runner
from rankwright.server.app import Service
from tests.server.fakes import WordScorer

scorer = WordScorer()
scorer.hold.clear()
# not through sys.stdin, whose lock a thread must not hold when the process ends
threading.Thread(target=lambda: (os.read(0, 1), scorer.hold.set()), daemon=True).start()
with runner.listen("127.0.0.1", 0) as listener:
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    runner.run(Service([scorer]), listener)
"""


# a server that gives its clients one second
HURRIED = """
import sys
from rankwright.server import runner
from rankwright.server.app import Service
from rankwright.server.gate import Policy
from tests.server.fakes import WordScorer

with runner.listen("127.0.0.1", 0) as listener:
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    runner.run(Service([WordScorer()], Policy(timeout=1)), listener)
"""


@contextmanager
def held(pool: ThreadPoolExecutor, count: int) -> Iterator[tuple[ServerProcess, list[Any]]]:
    """A server with so many requests in flight, none of which ends by itself."""
    with start([sys.executable, "-c", HELD], PYTHONPATH=os.pathsep.join(sys.path)) as server:
        asked = [pool.submit(ask, server, f"{i} a") for i in range(count)]
        figure = f"rankwright_in_flight {count}.0"
        until(lambda: figure in httpx.get(f"{server.url}/metrics").text)
        yield server, asked


def ask(server: ServerProcess, text: str) -> httpx.Response:
    body = {"query": "q", "documents": [text], "raw_scores": True}
    return httpx.post(f"{server.url}/v1/rerank", json=body, timeout=60)


def test_sigterm_finishes_what_is_in_flight() -> None:
    """One request in the model's hands and two that wait: new ones are refused, these answered."""
    with ThreadPoolExecutor(3) as pool, held(pool, 3) as (server, asked):
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        refused = ask(server, "9")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert not any(one.done() for one in asked)
        assert server.process.poll() is None
        assert server.process.stdin is not None
        server.process.stdin.write(b"\n")
        server.process.stdin.flush()
        answers = [one.result() for one in asked]
        assert [a.json()["results"] for a in answers] == [
            [{"index": 0, "relevance_score": float(i)}] for i in range(3)
        ]
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            ask(server, "9")


def test_a_second_ctrl_c_waits_for_nothing() -> None:
    """The first one waits for what is in flight, here for ever; the second one answers it."""
    with ThreadPoolExecutor(1) as pool, held(pool, 1) as (server, asked):
        server.process.send_signal(signal.SIGINT)
        until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert asked[0].result().status_code == 503
        assert asked[0].result().json()["message"] == "the server is stopping; try another"
        assert server.process.wait(30) == 0


def test_a_port_in_use_is_said_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} cannot be listened on: .*in use"):
            listen("127.0.0.1", port)
        assert cli.main(["serve", "--model", "no-such-model", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"rankwright: --host 127.0.0.1 --port {port} cannot be listened on: Address already in "
        "use; name another\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--model is missing; give a folder or an id, or several"),
        ("--model m --host 0.0.0.0", "--host 0.0.0.0 is reached from other machines; give --api_"),
        ("--model m --host ::", "--host :: is reached from other machines; give --api_key, or --"),
        ("--model m --host example.org", "--host example.org is reached from other machines"),
        ("--model m --host 0.0.0.0 --api_key=", "--api_key is blank; give a key, or leave it out"),
        ("--model m --api_key=", "--api_key is blank; give a key, or leave it out"),
        ("--model m --host 192.0.2.1 --api_key k", "--host 192.0.2.1 --port 8000 cannot be listen"),
        ("--model m --port 65536", "--port 65536 is no port; give 0 to 65535"),
        ("--model m --port -1", "--port -1 is no port; give 0 to 65535"),
        ("--model m --max_queue 0", "--max_queue 0 is less than 1"),
        ("--model m --max_documents 0", "--max_documents 0 is less than 1"),
        ("--model m --max_bytes 0", "--max_bytes 0 is less than 1"),
        ("--model m --max_tokens -5", "--max_tokens -5 is less than 1"),
        ("--model m --timeout 0", "--timeout 0 is not within a day; give seconds"),
        ("--model m --timeout nan", "--timeout nan is not within a day; give seconds"),
        ("--model m --timeout inf", "--timeout inf is not within a day; give seconds"),
        ("--model m --max_wait_ms -1", "--max_wait_ms -1 is not between 0 and the --timeout of 60"),
        ("--model m --max_wait_ms inf", "--max_wait_ms inf is not between 0 and the --timeout of"),
        ("--model m --max_wait_ms nan", "--max_wait_ms nan is not between 0 and the --timeout of"),
        ("--model a b --served_model_name c", "--served_model_name names 1 and --model 2; give as"),
        ("--model a b --served_model_name c c", "two models are called the same (c, c); tell them"),
        ("--model m --prot 1", "--prot is not an argument; did you mean --port?"),
    ],
)
def test_settings_that_are_refused(
    words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and no key in it."""
    monkeypatch.delenv("RANKWRIGHT_API_KEY", raising=False)
    assert cli.main(["serve", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rankwright: {message}")
    assert error.count("\n") == 1


def test_a_blank_key_of_the_environment_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKWRIGHT_API_KEY", " ")
    assert cli.main(["serve", "--model", "m"]) == 2
    assert capsys.readouterr().err == (
        "rankwright: --api_key is blank; give a key, or leave it out\n"
    )


def test_a_name_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brackets are no markup, neither a model's nor those of an address."""
    monkeypatch.setattr(runner, "run", lambda service, _: service.close())
    # set by the command; so that it is taken back
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    folder = str(tiny.save_base(tmp_path, "bert"))
    name = "[/x] [bold]<b>" + "y" * 80
    assert cli.main(["serve", "--model", folder, "--served_model_name", name, "--port", "0"]) == 0
    assert f"serving {name} at http://127.0.0.1:" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "kept"), [(None, "64"), ("7", "7")])
def test_what_is_compiled_for_lengths_is_bounded(
    given: str | None, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a model is loaded; the user's own bound stays (``benchmarks/soak_serve.py``)."""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "")
    if given is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, given)
    found = []

    def load(_: object) -> None:
        found.append(os.environ.get(name))
        raise ConfigError("enough")

    monkeypatch.setattr("rankwright.commands.serve.load_reranker", load)
    assert cli.main(["serve", "--model", str(tmp_path), "--port", "0"]) == 2
    assert found == [kept]


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("2130706433", False),
    ],
)
def test_loopback_is_told_apart(host: str, local: bool) -> None:
    """What is not plainly this machine needs a key, whatever a name server makes of it."""
    assert is_loopback(host) is local


def test_clients_that_take_too_long_are_let_go() -> None:
    """A head that does not begin or end, an answer that nobody reads; an idle one may stay."""
    with start([sys.executable, "-c", HURRIED], PYTHONPATH=os.pathsep.join(sys.path)) as server:
        port = httpx.URL(server.url).port
        body = json.dumps(
            {"query": "q", "documents": ["1 " + "a" * 6_000_000], "return_documents": True}
        )
        head = f"POST /v1/rerank HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        head += "content-type: application/json\r\n"
        length = f"content-length: {len(body)}\r\n\r\n"
        with (
            httpx.Client() as idle,
            connected(port, "") as silent,
            connected(port, head) as endless,
            connected(port, head + length + body, window=2**17) as unread,
        ):
            assert idle.get(f"{server.url}/health").status_code == 200
            # bytes of the head buy no time
            with suppress(OSError):
                for _ in range(8):
                    time.sleep(0.2)
                    endless.sendall(b"x")
            assert rest(endless) == rest(silent) == 0
            # read before it is let go, it would be an answer that somebody reads
            mine, process = unread.getsockname()[1], psutil.Process(server.process.pid)
            until(lambda: all(c.raddr[1:] != (mine,) for c in process.net_connections("tcp")))
            assert 0 < rest(unread) < len(body)
            (kept,) = idle._transport._pool.connections  # type: ignore[attr-defined]
            assert idle.get(f"{server.url}/health").status_code == 200
            assert idle._transport._pool.connections == [kept]  # type: ignore[attr-defined]


def test_malformed_requests_do_not_fill_the_log() -> None:
    """Each is answered with 400, an upgrade to an unknown protocol as any; a line of the log."""
    upgrade = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    with start([sys.executable, "-c", HURRIED], PYTHONPATH=os.pathsep.join(sys.path)) as server:
        for text, status in (("no HTTP\r\n\r\n", b"400"), (upgrade, b"200")):
            for _ in range(5):
                with connected(httpx.URL(server.url).port, text) as client:
                    assert client.recv(100).startswith(b"HTTP/1.1 " + status)
        assert server.log.count("Invalid HTTP request received.") == 1
        assert server.log.count("Unsupported upgrade request.") == 1


def test_warnings_of_the_server_are_counted() -> None:
    """A line a minute for each, which says how many there were since; errors are left alone."""
    few = runner.FewWarnings()

    def written(second: float, text: str = "bad", level: int = logging.WARNING) -> str | None:
        record = logging.makeLogRecord({"msg": text, "created": second, "levelno": level})
        return record.getMessage() if few.filter(record) else None

    assert written(1000) == "bad"
    assert [written(1000 + second) for second in (0, 30, 59.9)] == [None] * 3
    assert written(1030, "another") == "another"
    assert written(1031, level=logging.ERROR) == "bad"
    assert written(1060) == "bad (and 3 more since the last such line)"
    assert written(1119.9) is None
    assert written(1121) == "bad (and 1 more since the last such line)"
    assert written(1200) == "bad"
    assert written(500) == "bad"


def test_a_little_that_nobody_reads_does_not_keep_the_server_from_stopping() -> None:
    """Answers of which the kernel takes all but less than the 64 KiB that asyncio tells nobody of.

    What it takes is measured on a connection of the same kind; one answer at least falls in the
    gap. ``serving`` asserts that the server ends while its clients are still there.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        reader = stack.enter_context(connected(listener.getsockname()[1], "", window=4096))
        writer = stack.enter_context(listener.accept()[0])
        writer.setblocking(False)
        taken = writer.send(b"x" * 2**24)
        assert 2**10 < taken < 2**23
        assert reader
        with serving(Service([WordScorer()], Policy(timeout=1, max_bytes=2**24))) as url:
            port = httpx.URL(url).port
            for more in range(0, 2**16, 2**14):
                text = "1 " + "a" * (taken + more)
                body = json.dumps({"query": "q", "documents": [text], "return_documents": True})
                head = f"POST /v1/rerank HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
                head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                stack.enter_context(connected(port, head + body, window=4096))
            figure = 'rankwright_requests_total{path="/v1/rerank",status="200"} 4.0'
            until(lambda: figure in httpx.get(f"{url}/metrics").text)


def rest(client: socket.socket) -> int:
    """Bytes that still come until the connection ends."""
    count = 0
    with suppress(ConnectionResetError):
        while part := client.recv(2**20):
            count += len(part)
    return count


@contextmanager
def connected(port: int | None, text: str, window: int | None = None) -> Iterator[socket.socket]:
    """A connection that has sent a text, with a receive buffer of a size."""
    with socket.socket() as client:
        if window is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        client.sendall(text.encode())
        yield client


def test_answers_are_not_held_back() -> None:
    """Small packets go out at once on what is accepted, which is where answers are written."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_listener_is_where_it_was_asked_for() -> None:
    """On loopback alone: another address of this machine finds nothing there."""
    with listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with socket.create_connection((host, port), timeout=5):
            pass
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass
