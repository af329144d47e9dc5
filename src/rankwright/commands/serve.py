"""``rankwright serve``."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.arguments import ModelArguments, PassageArguments
from rankwright.commands.common import ScoringArguments, load_reranker, own, parse
from rankwright.errors import ConfigError

# oneDNN keeps what it compiled for the last 1024 shapes. Every batch has another length, so it is
# of little use and lies scattered between the batches' memory, which then grows for hours
ONEDNN_CACHE = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


@dataclass
class ServeArguments:
    """The server."""

    host: str = dataclasses.field(
        default="127.0.0.1",
        metadata={"help": "address to listen on; beyond this machine only with --api_key"},
    )
    port: int = dataclasses.field(
        default=8000, metadata={"help": "port to listen on; 0 for a free one, which is printed"}
    )
    api_key: str | None = dataclasses.field(
        default=None,
        metadata={"help": "key that clients send as a bearer token [RANKWRIGHT_API_KEY]"},
    )
    allow_anonymous: bool = dataclasses.field(
        default=False, metadata={"help": "serve other machines without a key"}
    )
    served_model_name: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "names for --model, in its order; default: the folder's name or the id"},
    )
    max_wait_ms: float = dataclasses.field(
        default=3.0,
        metadata={"help": "milliseconds that a request waits at most for others to share a batch"},
    )
    max_documents: int = dataclasses.field(
        default=1000, metadata={"help": "most documents of a request (413 beyond)"}
    )
    max_bytes: int = dataclasses.field(
        default=8 * 2**20, metadata={"help": "most bytes of a request (413 beyond)"}
    )
    max_tokens: int = dataclasses.field(
        default=2**20, metadata={"help": "most tokens of a request's pairs (413 beyond)"}
    )
    max_queue: int = dataclasses.field(
        default=128, metadata={"help": "most requests in flight (429 beyond)"}
    )
    timeout: float = dataclasses.field(
        default=60.0, metadata={"help": "seconds that a request may take (504 beyond)"}
    )
    access_log: bool = dataclasses.field(
        default=False,
        metadata={"help": "a line for each request: path, status and time, never its texts"},
    )


@dataclass
class ServedModelArguments(ModelArguments):
    """The models, and how a pair is written for them."""

    model: list[str] = dataclasses.field(  # type: ignore[assignment]
        default_factory=list,
        metadata={"help": "folders or ids; the page compares two, the first one is the default"},
    )


def types() -> list[type]:
    """The command's arguments."""
    return [ServeArguments, ScoringArguments, ServedModelArguments, PassageArguments]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    given = parse("serve", types(), words)
    options = own(ServeArguments, given)
    models = given.get("model") or []
    if not models:
        raise ConfigError("--model is missing; give a folder or an id, or several")
    _check(options)
    names = _names(models, options.served_model_name)
    try:
        from rankwright.server import runner
        from rankwright.server.app import Service
        from rankwright.server.gate import LOCAL_NAMES, Policy
        from rankwright.server.scorer import ModelScorer
    except ImportError as error:
        raise ConfigError(
            f"the server needs {error.name}; run: pip install 'rankwright[serve]'"
        ) from error
    from rich.markup import escape

    from rankwright.progress import console

    key = options.api_key
    if key is None:
        key = os.environ.get("RANKWRIGHT_API_KEY") or None
    if key is not None and not key.strip():
        raise ConfigError("--api_key is blank; give a key, or leave it out")
    local = runner.is_loopback(options.host)
    if not local and key is None and not options.allow_anonymous:
        raise ConfigError(
            f"--host {options.host} is reached from other machines; give --api_key, or "
            "--allow_anonymous true to let everyone in"
        )
    # read by oneDNN at its first operation
    os.environ.setdefault(*ONEDNN_CACHE)
    # taken before the models are loaded, which takes longer
    with runner.listen(options.host, options.port) as listener:
        scorers: list[Any] = []
        for name, model in zip(names, models, strict=True):
            with console.status(escape(f"loading {name}")):
                reranker = load_reranker({**given, "model": model})
                # the first call of a model takes longer than the next ones
                reranker.rank("a query", ["a document", "another document"])
            scorers.append(ModelScorer(reranker, name))
        policy = Policy(
            api_key=key,
            hosts=frozenset(LOCAL_NAMES) if local and key is None else None,
            **{
                f.name: getattr(options, f.name)
                for f in dataclasses.fields(Policy)
                if f.name not in ("api_key", "hosts")
            },
        )
        aliases = dict(zip(models, names, strict=True))
        service = Service(scorers, policy, aliases=aliases, max_wait=options.max_wait_ms / 1000)
        port = listener.getsockname()[1]
        host = f"[{options.host}]" if ":" in options.host else options.host
        console.print(
            f"serving {', '.join(names)} at http://{host}:{port} (Ctrl-C stops)",
        )
        runner.run(service, listener)
    return 0


def _check(options: ServeArguments) -> None:
    for name in ("max_documents", "max_bytes", "max_tokens", "max_queue"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)} is less than 1")
    if not 0 < options.timeout <= 86400:
        raise ConfigError(f"--timeout {options.timeout:g} is not within a day; give seconds")
    if not 0 <= options.max_wait_ms <= 1000 * options.timeout:
        raise ConfigError(
            f"--max_wait_ms {options.max_wait_ms:g} is not between 0 and the --timeout of "
            f"{options.timeout:g} s"
        )
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port {options.port} is no port; give 0 to 65535")


def _names(models: list[str], names: list[str]) -> list[str]:
    """What requests call the models."""
    if names and len(names) != len(models):
        raise ConfigError(
            f"--served_model_name names {len(names)} and --model {len(models)}; give as many"
        )
    found = names or [Path(m).resolve().name if Path(m).exists() else m for m in models]
    if len(set(found)) < len(found):
        raise ConfigError(
            f"two models are called the same ({', '.join(found)}); tell them apart with "
            "--served_model_name"
        )
    return found
