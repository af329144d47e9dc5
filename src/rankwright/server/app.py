"""The endpoints.

Scores are probabilities, the sigmoid of the model's logit, unless logits are asked for; results are
ordered by the logit, so that what rounds to the same probability keeps its order.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from rankwright import __version__
from rankwright.errors import RankwrightError
from rankwright.server import schemas
from rankwright.server.batcher import Batcher, ClosedError, Encoded, Scorer, ScoringError
from rankwright.server.gate import Gate, Policy, RefusedError, stopping
from rankwright.types import Example, ScoredList

# Infinity's clients send it where no model was chosen
UNNAMED = ("", "default/not-specified")
WORK = ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score")
PUBLIC = ("/", "/health", "/openapi.json")


class EncodedRequest(Encoded, Protocol):
    """What the endpoints read of an encoded example."""

    @property
    def total(self) -> int:
        """Tokens of all pairs."""
        ...

    @property
    def truncated(self) -> Mapping[str, int]:
        """How many ``documents`` and ``queries`` were cut."""
        ...


class ServedScorer(Scorer, Protocol):
    """A model with its name; ``scorer.ModelScorer`` is one."""

    name: str

    @property
    def max_length(self) -> int:
        """Most tokens of a pair."""
        ...

    @property
    def reads_instruction(self) -> bool:
        """Whether an instruction changes its scores."""
        ...

    def about(self) -> dict[str, Any]:
        """What ``/info`` says of it."""
        ...

    def probabilities(self, scores: Sequence[float], *, calibrated: bool) -> list[float]:
        """Probabilities of logits; a ``ConfigError`` where there is no calibration."""
        ...

    def encode(
        self,
        example: Example,
        *,
        document_tokens: int | None = None,
        max_length: int | None = None,
        passages: int | None = None,
    ) -> EncodedRequest:
        """Encode a query with its documents, in any thread."""
        ...


class Service:
    """The server without its socket: an ASGI application.

    Args:
        scorers: the models, the first one is the default.
        policy: what is refused.
        aliases: further names of models.
        max_wait: seconds that a request waits at most for others to share its batch.

    Attributes:
        asgi: the application.
    """

    def __init__(
        self,
        scorers: Sequence[ServedScorer],
        policy: Policy | None = None,
        *,
        aliases: Mapping[str, str] | None = None,
        max_wait: float = 0.003,
    ) -> None:
        self.policy = policy or Policy()
        self.scorers = {scorer.name: scorer for scorer in scorers}
        self.aliases = dict(aliases or {})
        self.created = int(time.time())
        self.page, self.page_policy = _page()
        self.app = self._endpoints()
        self.asgi = Gate(
            self.app,
            self.policy,
            work=frozenset(WORK),
            public=frozenset(PUBLIC),
            seconds_to_drain=lambda: self.batcher.seconds_to_drain,
        )
        self.telemetry = self.asgi.telemetry
        self.batcher = Batcher(max_wait=max_wait, watch=self.telemetry.batch)
        self.telemetry.watch_queue(
            lambda: self.batcher.waiting_requests, lambda: self.batcher.waiting_tokens
        )

    def close(self) -> None:
        """Finish what waits, unless it was given up, and stop the threads."""
        self.asgi.stopping = True
        self.batcher.close(wait=not self.asgi.given_up)

    # --- one request ----------------------------------------------------------------------------

    def scorer(self, name: str | None) -> ServedScorer:
        """The model of a name.

        Raises:
            RefusedError: there is none.
        """
        if name is None or name in UNNAMED:
            return next(iter(self.scorers.values()))
        found = self.scorers.get(self.aliases.get(name, name))
        if found is None:
            raise RefusedError(
                404,
                f"model {name[:100]!r} is not served; choose from {', '.join(self.scorers)}, or "
                "leave it out",
                "model",
                "model",
            )
        return found

    async def score(
        self,
        scorer: ServedScorer,
        groups: Sequence[tuple[str, Sequence[str]]],
        *,
        field: str,
        instruction: str | None,
        whole: bool,
        document_tokens: int | None = None,
        max_length: int | None = None,
        passages: int | None = None,
    ) -> tuple[list[ScoredList], int, dict[str, int]]:
        """Score queries with their documents.

        Args:
            scorer: the model.
            groups: queries, each with its documents.
            field: the documents' name in the body.
            instruction: the task description.
            whole: refuse what would be cut.
            document_tokens: what is read of a document.
            max_length: of a pair, where less than the model's is wanted.
            passages: most passages of a document, where they are read.

        Returns:
            The documents with their logits, the tokens that were read, and how much was cut.

        Raises:
            RefusedError: too much, or the model failed.
        """
        count = sum(len(texts) for _, texts in groups)
        if count > self.policy.max_documents:
            raise RefusedError(
                413,
                f"{field} holds {count} documents; at most {self.policy.max_documents} are ranked "
                "at a time",
                "documents",
                field,
            )
        if max_length is not None and max_length < 0:
            max_length = None
        examples = [
            Example(query, list(texts), [0.0] * len(texts), instruction=instruction)
            for query, texts in groups
        ]
        try:
            encoded = await self.batcher.encode(
                lambda: [
                    scorer.encode(
                        example,
                        document_tokens=document_tokens,
                        max_length=max_length,
                        passages=passages,
                    )
                    for example in examples
                ]
            )
        except RankwrightError as error:
            named = "truncate_prompt_tokens" if max_length is not None else "instruction"
            message = str(error).replace("--max_length", "max_length")
            raise RefusedError(422, f"{named}: {message}", "body", named) from None
        tokens = sum(part.total for part in encoded)
        cut = {
            what: sum(part.truncated[what] for part in encoded) for what in ("documents", "queries")
        }
        if whole and any(cut.values()):
            raise RefusedError(
                413,
                f"longer than what is read at most: {_count(cut)}; a pair, or a passage of one, "
                f"has up to {min(max_length or scorer.max_length, scorer.max_length)} tokens",
                "tokens",
                field,
            )
        if tokens > self.policy.max_tokens:
            raise RefusedError(
                413,
                f"the request has {tokens} tokens; at most {self.policy.max_tokens} are read at a "
                "time",
                "tokens",
                field,
            )
        for what, number in cut.items():
            self.telemetry.truncated.labels(scorer.name, what).inc(number)
        try:
            scored = await self.batcher.score(scorer, encoded)
        except ScoringError as error:
            raise RefusedError(500, str(error), "model") from None
        except ClosedError:
            raise stopping() from None
        self.telemetry.pairs.labels(scorer.name).inc(count)
        self.telemetry.tokens.labels(scorer.name).inc(tokens)
        return scored, tokens, cut

    async def rerank(
        self, body: schemas.RerankBody, request: Request, version: str
    ) -> dict[str, Any]:
        """Answer a body with ``documents``."""
        scorer = self.scorer(body.model)
        _check_scale(scorer, bool(body.raw_scores), body.calibrated)
        (scored,), tokens, cut = await self.score(
            scorer,
            [(body.query, body.texts)],
            field="documents",
            instruction=body.task,
            whole=body.truncation is False,
            document_tokens=body.max_tokens_per_doc,
            max_length=body.truncate_prompt_tokens,
            passages=body.max_chunks_per_doc,
        )
        values = _values(scorer, scored.scores, bool(body.raw_scores), body.calibrated)
        results = []
        for index in scored.order[: body.top_n or None]:
            result = {"index": index, "relevance_score": values[index], **_passage(scored, index)}
            if body.return_documents:
                result["document"] = _given_back(body, index)
            results.append(result)
        meta: dict[str, Any] = {
            "api_version": {"version": version},
            "tokens": {"input_tokens": tokens},
        }
        warnings = []
        if any(cut.values()):
            warnings.append(f"cut to what is read at most: {_count(cut)}")
        if body.task is not None and not scorer.reads_instruction:
            warnings.append("the instruction has no effect: this model reads none")
        if warnings:
            meta["warnings"] = warnings
        return {
            "id": request.state.request_id,
            "object": "rerank",
            "created": int(time.time()),
            "model": scorer.name,
            "results": results,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": meta,
        }

    async def tei(self, body: schemas.TeiBody) -> list[dict[str, Any]]:
        """Answer a body with ``texts``."""
        scorer = self.scorer(body.model)
        _check_scale(scorer, bool(body.raw_scores), body.calibrated)
        (scored,), _, _ = await self.score(
            scorer,
            [(body.query, body.texts)],
            field="texts",
            instruction=body.task,
            whole=body.truncate is False,
        )
        values = _values(scorer, scored.scores, bool(body.raw_scores), body.calibrated)
        results = []
        for index in scored.order:
            result = {"index": index, "score": values[index], **_passage(scored, index)}
            if body.return_text:
                result["text"] = body.texts[index]
            results.append(result)
        return results

    async def pairs(self, body: schemas.ScoreBody, request: Request) -> dict[str, Any]:
        """Answer pairs."""
        scorer = self.scorer(body.model)
        _check_scale(scorer, body.logits, body.calibrated)
        groups, tokens, _ = await self.score(
            scorer,
            body.groups,
            field="pairs" if body.pairs is not None else "text_2",
            instruction=body.task,
            whole=body.truncation is False,
            max_length=body.truncate_prompt_tokens,
        )
        logits = [logit for scored in groups for logit in scored.scores]
        values = _values(scorer, logits, body.logits, body.calibrated)
        passages = [_passage(scored, i) for scored in groups for i in range(len(scored.scores))]
        return {
            "id": request.state.request_id,
            "object": "list",
            "created": int(time.time()),
            "model": scorer.name,
            "data": [
                {"index": index, "object": "score", "score": value, **passage}
                for index, (value, passage) in enumerate(zip(values, passages, strict=True))
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def info(self) -> dict[str, Any]:
        """What is served, and what is refused."""
        models = [scorer.about() for scorer in self.scorers.values()]
        first, policy = next(iter(self.scorers.values())), self.policy
        return {
            "model_id": first.name,
            "model_dtype": models[0]["dtype"],
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_concurrent_requests": policy.max_queue,
            "max_input_length": first.max_length,
            "max_batch_tokens": first.batch_tokens,
            "max_client_batch_size": policy.max_documents,
            "auto_truncate": True,
            "version": __version__,
            "models": models,
            "limits": {
                "documents": policy.max_documents,
                "bytes": policy.max_bytes,
                "tokens": policy.max_tokens,
                "queue": policy.max_queue,
                "timeout": policy.timeout,
            },
        }

    # --- endpoints ------------------------------------------------------------------------------

    def _endpoints(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> Any:
            yield
            self.close()

        app = FastAPI(
            title="Rankwright",
            version=__version__,
            summary="Rerank texts, in the forms of Cohere, Jina, vLLM, Infinity and TEI.",
            # their pages load scripts from elsewhere
            docs_url=None,
            redoc_url=None,
            lifespan=lifespan,
        )
        locked = self.policy.api_key is not None
        bearer = [Depends(HTTPBearer(auto_error=False))] if locked else []
        errors = _errors(schemas.ErrorAnswer)
        either = _errors(schemas.ErrorAnswer | schemas.TeiError)

        @app.post(
            "/rerank",
            response_model=schemas.RerankAnswer | list[schemas.Rank],
            responses=either,
            dependencies=bearer,
        )
        async def rerank(body: schemas.AnyRerankBody, request: Request) -> Response:
            """Rank documents: Cohere's form with ``documents``, TEI's with ``texts``."""
            if isinstance(body, schemas.TeiBody):
                try:
                    return _json(await self.tei(body))
                except RefusedError as refusal:
                    refusal.tei = True
                    raise
            return _json(await self.rerank(body, request, "1"))

        def versioned(version: str) -> Callable[..., Any]:
            async def rerank(body: schemas.RerankBody, request: Request) -> Response:
                """Rank documents, best first."""
                return _json(await self.rerank(body, request, version))

            return rerank

        for version in ("1", "2"):
            app.post(
                f"/v{version}/rerank",
                name=f"rerank_v{version}",
                response_model=schemas.RerankAnswer,
                responses=errors,
                dependencies=bearer,
            )(versioned(version))

        async def score(body: schemas.ScoreBody, request: Request) -> Response:
            """Score pairs, in their order."""
            return _json(await self.pairs(body, request))

        for path in ("/score", "/v1/score"):
            app.post(
                path,
                name=path.strip("/").replace("/", "_"),
                response_model=schemas.ScoreAnswer,
                responses=errors,
                dependencies=bearer,
            )(score)

        @app.get("/v1/models", response_model=schemas.ModelList, dependencies=bearer)
        async def models() -> Response:
            """The models; the first one is the default."""
            entries = [
                {"id": n, "object": "model", "created": self.created, "owned_by": "rankwright"}
                for n in self.scorers
            ]
            return _json({"object": "list", "data": entries})

        @app.get("/info", response_model=schemas.Info, dependencies=bearer)
        async def info() -> Response:
            """What is served, and what is refused."""
            return _json(self.info())

        @app.get(
            "/health", response_model=schemas.Health, responses={503: {"model": schemas.Health}}
        )
        async def health() -> Response:
            """Whether requests are taken."""
            status = "ok" if self.batcher.alive else "failed"
            status = "stopping" if self.asgi.stopping else status
            return _json({"status": status, "unix": time.time()}, 200 if status == "ok" else 503)

        @app.get(
            "/metrics",
            response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
            dependencies=bearer,
        )
        async def metrics() -> Response:
            """Figures for Prometheus."""
            return Response(self.telemetry.text(), media_type=CONTENT_TYPE_LATEST)

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            headers = {"content-security-policy": self.page_policy, "x-frame-options": "DENY"}
            return Response(self.page, media_type="text/html; charset=utf-8", headers=headers)

        def refused(request: Request, error: Any) -> Response:
            reason: RefusedError = error
            self.telemetry.errors.labels(reason.reason).inc()
            extra = {name.decode(): value.decode() for name, value in reason.headers()}
            return _json(reason.body(request.state.request_id), reason.status, extra)

        async def bad_body(request: Request, error: Any) -> Response:
            return refused(request, _bad_body(error))

        async def http_error(request: Request, error: Any) -> Response:
            if error.status_code == 400:
                # what the parser gave up on, such as a hundred thousand brackets
                return refused(request, RefusedError(422, "the body is not JSON", "body"))
            # quoted, since a path may hold any character
            message = f"{request.method} {quote(request.scope['path'])[:100]}: {error.detail}"
            return refused(request, RefusedError(error.status_code, message, "path"))

        async def mistake(request: Request, _: Any) -> Response:
            return refused(
                request, RefusedError(500, "the server made a mistake; see its log", "internal")
            )

        app.add_exception_handler(RefusedError, refused)
        app.add_exception_handler(RequestValidationError, bad_body)
        app.add_exception_handler(HTTPException, http_error)
        app.add_exception_handler(Exception, mistake)
        return app


def _check_scale(scorer: ServedScorer, raw: bool, calibrated: bool | None) -> None:
    """Refuse what cannot be answered, before anything is computed."""
    if not calibrated:
        return
    message = "logits are not calibrated; leave it out" if raw else None
    try:
        scorer.probabilities([0.0], calibrated=True)
    except RankwrightError:
        message = f"{scorer.name} has no calibration; fit one with rankwright calibrate"
    if message is not None:
        raise RefusedError(422, f"calibrated: {message}", "body", "calibrated")


def _values(
    scorer: ServedScorer, logits: Sequence[float], raw: bool, calibrated: bool | None
) -> list[float]:
    """What is answered: logits, or probabilities."""
    return list(logits) if raw else scorer.probabilities(logits, calibrated=bool(calibrated))


def _passage(scored: ScoredList, index: int) -> dict[str, Any]:
    """Where a document's best passage stands; nothing where it was read as one."""
    found = scored.passage(index)
    return {} if found is None else {"passage": {"start": found[0], "end": found[1]}}


def _count(cut: Mapping[str, int]) -> str:
    names = {"documents": ("document", "documents"), "queries": ("query", "queries")}
    parts = [f"{n} {names[what][n != 1]}" for what, n in cut.items() if n]
    return " and ".join(parts)


def _given_back(body: schemas.RerankBody, index: int) -> dict[str, Any] | str:
    document = body.documents[index]
    if "raw_scores" in body.model_fields_set:
        return body.texts[index]
    if isinstance(document, str):
        return {"text": document}
    return {"text": body.text_of(document), **document.fields}


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    try:
        text = json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError) as error:
        # a field of a document that is to be given back
        reason = (
            "a number that is not finite; JSON has none"
            if isinstance(error, ValueError)
            else "fields that are nested too deep to be given back"
        )
        raise RefusedError(422, f"documents hold {reason}", "body", "documents") from None
    return Response(text, status, dict(headers or {}), media_type="application/json")


def _errors(model: Any) -> dict[int | str, dict[str, Any]]:
    reasons = {
        401: "the API key is missing or wrong",
        404: "the model is not served",
        408: "the body did not come in time",
        413: "too many documents, bytes or tokens",
        422: "a field is missing or wrong; the message names it",
        429: "too many requests wait; Retry-After says for how long",
        500: "the model failed",
        503: "the server is stopping",
        504: "no answer in time",
    }
    return {status: {"model": model, "description": reason} for status, reason in reasons.items()}


def _bad_body(error: RequestValidationError) -> RefusedError:
    """One line that names the first field; the detail names all, and echoes no text."""
    detail: list[dict[str, Any]] = []
    for found in error.errors()[:20]:
        parts = [part for part in found["loc"] if part not in (*schemas.TAGS, "body")]
        # the rest are names of types that a text may have
        place = [part for part in parts if isinstance(part, int) or part in schemas.FIELDS]
        message = str(found["msg"]).removeprefix("Value error, ")
        if found["type"] == "json_invalid":
            reason = (found.get("ctx") or {}).get("error", "")
            place, message = [], f"the body is not JSON ({reason}); correct it"
        elif found["type"] == "value_error" and not place:
            # of the body as a whole: the message begins with the field
            name, _, message = message.partition(" ")
            place = [int(part) if part.isdigit() else part for part in name.split(".")]
        elif len(parts) > len(place) and found["type"] != "value_error":
            texts = place[:1] == ["documents"] and len(place) > 1
            message = "give a text, or an object with text" if texts else "give a text or texts"
        entry = {"loc": ["body", *place], "msg": message, "type": found["type"]}
        if entry["loc"] not in [known["loc"] for known in detail]:
            detail.append(entry)
    first = detail[0]
    name = ".".join(map(str, first["loc"][1:]))
    text = f"{name}: {first['msg']}" if name else first["msg"]
    if len(detail) > 1:
        text += f" (and {len(detail) - 1} more)"
    tei = isinstance(error.body, dict) and "texts" in error.body
    return RefusedError(422, text, "body", name or None, detail=detail, tei=tei)


def _page() -> tuple[str, str]:
    """The page, and a policy that lets nothing run or load but what stands in it."""
    text = importlib.resources.files("rankwright.server").joinpath("page.html").read_text("utf-8")

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [hashlib.sha256(part.encode()).digest() for part in found]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy
