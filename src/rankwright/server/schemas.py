"""The bodies that clients send and read.

Cohere (v1 and v2), Jina, vLLM and Infinity name ``documents``; TEI names ``texts``. Fields that one
of them knows and that change no score here (``priority``, ``user``, ``encoding_format``, ...) are
accepted without effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    model_validator,
)


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair, which is no character") from None
    return text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty; give a text")
    return text


Text = Annotated[str, AfterValidator(_whole)]


Query = Annotated[
    Text,
    AfterValidator(_not_empty),
    Field(
        min_length=1,
        description="the query",
        examples=["what is a lichen?"],
        json_schema_extra={"pattern": r"\S"},
    ),
]
Count = Annotated[int, Field(ge=1)]


def _right(side: Any) -> Any:
    if isinstance(side, str) and side.lower() == "left":
        raise ValueError(
            f"{side} is not supported, documents are cut at their end; leave it out, or refuse "
            "what would be cut (truncation, TEI's truncate: false)"
        )
    return side


Side = Annotated[Literal["Right", "right"], BeforeValidator(_right)]


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str | None = Field(
        None, description="name of a model, see /v1/models; absent: the first one"
    )
    instruction: Text | None = Field(
        None, description="task description, for models that read one; absent: the model's own"
    )
    instruct: Text | None = Field(None, description="the same as instruction")

    calibrated: StrictBool | None = Field(
        None, description="probabilities by the model's calibration instead of the plain sigmoid"
    )
    truncation_direction: Side | None = Field(
        None, description="TEI's; only Right, since documents are cut at their end"
    )
    truncation_side: Side | None = Field(None, description="vLLM's name for the same")

    @property
    def task(self) -> str | None:
        """The instruction, under whichever name."""
        return self.instruction or self.instruct or None


class TextDocument(BaseModel):
    """A document with fields; ``text`` is ranked unless ``rank_fields`` names others."""

    model_config = ConfigDict(extra="allow")

    text: Text | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """All of it, as it came."""
        text = {} if self.text is None else {"text": self.text}
        return text | (self.model_extra or {})


class RerankBody(Body):
    """Rerank, as Cohere (v1 and v2), Jina, vLLM and Infinity send it."""

    query: Query
    documents: list[Text | TextDocument] = Field(
        min_length=1, description="texts, or objects with text", examples=[["A fungus.", "A city."]]
    )
    top_n: Annotated[int, Field(ge=0)] | None = Field(
        None, description="how many results; 0 or absent: all"
    )
    return_documents: StrictBool | None = Field(None, description="give the documents back")
    max_tokens_per_doc: Count | None = Field(
        None, description="what is read of a document, at most, in tokens"
    )
    max_chunks_per_doc: Count | None = Field(
        None, description="passages read of a document, at most; without passages no effect"
    )
    rank_fields: list[str] | None = Field(
        None, min_length=1, description="fields of documents that are objects, joined by lines"
    )
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        None, description="most tokens of a pair; -1 or absent: the model's limit"
    )
    truncation: StrictBool | None = Field(
        None, description="false: refuse what does not fit instead of cutting it"
    )
    raw_scores: StrictBool | None = Field(
        None, description="logits for relevance_score; a body with it gets documents as plain texts"
    )

    @model_validator(mode="after")
    def _texts(self) -> RerankBody:
        for place, document in enumerate(self.documents):
            text = self.text_of(document)
            if text is None:
                wanted = " or ".join(map(repr, self.rank_fields or ["text"]))
                raise ValueError(f"documents.{place} has no text under {wanted[:200]}")
            try:
                _whole(text)
            except ValueError as error:
                raise ValueError(f"documents.{place} {error}") from None
        return self

    def text_of(self, document: str | TextDocument) -> str | None:
        """What is ranked of a document."""
        if isinstance(document, str):
            return document
        if not self.rank_fields:
            return document.text
        fields = document.fields
        texts = [fields[name] for name in self.rank_fields if isinstance(fields.get(name), str)]
        return "\n".join(texts) if texts else None

    @property
    def texts(self) -> list[str]:
        """All documents' texts."""
        return [self.text_of(document) or "" for document in self.documents]


class TeiBody(Body):
    """Rerank, as Text Embeddings Inference reads it."""

    query: Query
    texts: list[Text] = Field(min_length=1, examples=[["A fungus.", "A city."]])
    raw_scores: StrictBool | None = Field(None, description="logits instead of probabilities")
    return_text: StrictBool | None = Field(None, description="give the texts back")
    truncate: StrictBool | None = Field(
        None, description="false: refuse what does not fit; absent: cut it"
    )


def _form(body: Any) -> str:
    return TAGS[isinstance(body, dict) and "texts" in body]


TAGS = ("documents-form", "texts-form")
AnyRerankBody = Annotated[
    Annotated[RerankBody, Tag("documents-form")] | Annotated[TeiBody, Tag("texts-form")],
    Discriminator(_form),
]


class ScoreBody(Body):
    """Score pairs, as vLLM reads it: one text and many, or as many of each; or a list of pairs."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["text_1", "text_2"]},
                {"required": ["queries", "documents"]},
                {"required": ["pairs"]},
            ]
        }
    )

    text_1: Text | list[Text] | None = Field(None, description="query or queries")
    text_2: Text | list[Text] | None = Field(None, description="document or documents")
    queries: Text | list[Text] | None = Field(None, description="the same as text_1")
    documents: Text | list[Text] | None = Field(None, description="the same as text_2")
    pairs: list[tuple[Text, Text]] | None = Field(
        None, min_length=1, description="instead of both: [[query, document], ...]"
    )
    activation: StrictBool | None = Field(None, description="false: logits")
    use_activation: StrictBool | None = Field(None, description="the same as activation")
    raw_scores: StrictBool | None = Field(None, description="true: logits")
    truncation: StrictBool | None = Field(
        None, description="false: refuse what does not fit instead of cutting it"
    )
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = Field(
        None, description="most tokens of a pair; -1 or absent: the model's limit"
    )

    @model_validator(mode="after")
    def _sides(self) -> ScoreBody:
        for query, _ in self.groups:
            if not query.strip():
                raise ValueError("text_1 holds an empty query; give texts")
        return self

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """Queries, each with its documents: one with many, or one with one."""
        if self.pairs is not None:
            return [(query, [document]) for query, document in self.pairs]
        left, right = self._side("text_1", "queries"), self._side("text_2", "documents")
        if len(left) not in (1, len(right)):
            raise ValueError(
                f"text_1 has {len(left)} texts and text_2 has {len(right)}; give one and many, or "
                "as many of each"
            )
        if len(left) == 1:
            return [(left[0], right)]
        return [(query, [document]) for query, document in zip(left, right, strict=True)]

    def _side(self, *names: str) -> list[str]:
        for name in names:
            value = getattr(self, name)
            if value is not None:
                if not value and isinstance(value, list):
                    raise ValueError(f"{name} is empty; give at least one text")
                return [value] if isinstance(value, str) else list(value)
        raise ValueError(f"{names[0]} is missing; give a text or a list of texts")

    @property
    def logits(self) -> bool:
        """Whether the scores are logits."""
        return bool(self.raw_scores) or self.activation is False or self.use_activation is False


FIELDS = frozenset(name for body in (RerankBody, TeiBody, ScoreBody) for name in body.model_fields)


class ResultDocument(BaseModel):
    """A document that is given back."""

    model_config = ConfigDict(extra="allow")

    text: str


class PassagePlace(BaseModel):
    """Where a document's best passage stands in the text that was ranked."""

    start: int = Field(description="its first character, counted in Unicode code points from 0")
    end: int = Field(description="the character behind its last one")


BestPassage = Annotated[
    PassagePlace | None,
    Field(description="of documents that were read in passages; absent for those that fit"),
]


class RerankResult(BaseModel):
    """One document in its place."""

    index: int = Field(description="its place in the request")
    relevance_score: float = Field(description="probability, or logit if raw_scores was asked for")
    passage: BestPassage = None
    document: ResultDocument | str | None = None


class Usage(BaseModel):
    """Tokens that were read: all pairs, each with its prompt and query."""

    prompt_tokens: int
    total_tokens: int


class ApiVersion(BaseModel):
    """Of the endpoint."""

    version: str


class MetaTokens(BaseModel):
    """Tokens that were read."""

    input_tokens: int


class Meta(BaseModel):
    """Cohere's account of the request."""

    api_version: ApiVersion
    tokens: MetaTokens
    warnings: list[str] | None = Field(None, description="what was cut")


class RerankAnswer(BaseModel):
    """The documents, best first; equal scores keep the given order."""

    id: str
    object: Literal["rerank"] = "rerank"
    created: int
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: Meta


class Rank(BaseModel):
    """TEI's result."""

    index: int
    score: float
    passage: BestPassage = None
    text: str | None = None


class Score(BaseModel):
    """One pair's score."""

    index: int
    object: Literal["score"] = "score"
    score: float
    passage: BestPassage = None


class ScoreAnswer(BaseModel):
    """Scores in the order of the pairs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: Usage


class ErrorDetail(BaseModel):
    """vLLM's and OpenAI's part of an error."""

    message: str
    type: str
    param: str | None
    code: int


class FieldError(BaseModel):
    """What is wrong with a field."""

    loc: list[str | int]
    msg: str
    type: str


class ErrorAnswer(BaseModel):
    """An error, as each client looks for it: Cohere, vLLM, and for 422 Infinity's detail."""

    id: str
    message: str
    error: ErrorDetail
    error_type: str
    detail: list[FieldError] | None = None


class TeiError(BaseModel):
    """An error in TEI's form, for bodies with ``texts``."""

    error: str
    error_type: str


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok", "stopping", "failed"]
    unix: float


class ModelEntry(BaseModel):
    """A model, in OpenAI's form."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rankwright"


class ModelList(BaseModel):
    """The models; the first one is the default."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ModelInfo(BaseModel):
    """What a model reads."""

    name: str
    kind: str
    architecture: str
    dtype: str
    device: str
    max_length: int
    instruction: str | None = Field(description="its own; null where it reads none")
    calibration: str | None = Field(description="the method; null: calibrated is refused")
    passages: str | None = Field(
        description="max or mean of the best: how documents that do not fit are read; null: cut"
    )


class Limits(BaseModel):
    """What is refused beyond."""

    documents: int
    bytes: int
    tokens: int
    queue: int
    timeout: float


class Info(BaseModel):
    """The server; the names up to ``version`` are TEI's, of the first model."""

    model_id: str
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool = True
    version: str
    models: list[ModelInfo]
    limits: Limits
