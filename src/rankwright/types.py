"""The values that travel between the rooms.

Shape legend: ``Q`` queries (groups) in a batch, ``P`` (query, document) pairs, ``T`` tokens in the
packed row, ``S`` segments of the packed row, ``D`` documents of one query.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class Example:
    """One query and **all** its candidates, as a reader found them; nothing is sampled yet.

    Attributes:
        query: the query text, never empty.
        documents: the ``D`` candidate texts, in the order of the source.
        labels: ``D`` relevance values; 1 and 0 from ``positive`` and ``negative``, graded or soft
            values welcome.
        first_stage_scores: ``D`` scores of the retriever that found the candidates, higher is
            better.
        teacher_scores: ``D`` scores of a teacher model.
        instruction: the task description for models that read one; None takes the run's.
        query_id: unique within one dataset.
        document_ids: ``D`` ids; None where the source has none.
        source: where it came from, for messages, such as ``train.jsonl:12``.
        missed: labels by id of the documents that were judged relevant and are no candidates, where
            the source tells. No reranker can find them; metrics count them as not found.
    """

    query: str
    documents: list[str]
    labels: list[float]
    first_stage_scores: list[float] | None = None
    teacher_scores: list[float] | None = None
    instruction: str | None = None
    query_id: str = ""
    document_ids: list[str] | None = None
    source: str = ""
    missed: dict[str, float] | None = None


@dataclass(frozen=True)
class PairTokens:
    """Token ids of one query with its documents.

    Attributes:
        prefix: what stands before every document: instruction and query, the same for a group.
        documents: the document's part of each pair, suffix included.
        truncated_documents: how many documents were cut.
        truncated_query: whether the query was cut.
    """

    prefix: list[int]
    documents: list[list[int]]
    truncated_documents: int
    truncated_query: bool


@dataclass(slots=True)
class Group:
    """What one loss term sees: the documents of one example chosen for this epoch.

    Attributes:
        example: the complete example.
        chosen: indices into ``example.documents``, positives first.
        filler: repeated only so that every process has a batch; its loss counts nothing.
        tokens: those of all its documents, where they were made ahead.
        borrowed: documents of other groups that stand behind its own as negatives.
        key: what random choices about it depend on.
    """

    example: Example
    chosen: tuple[int, ...]
    filler: bool = False
    tokens: PairTokens | None = None
    borrowed: tuple[str, ...] = ()
    key: str = ""

    @property
    def documents(self) -> list[str]:
        """The chosen texts and the borrowed ones."""
        return [*(self.example.documents[i] for i in self.chosen), *self.borrowed]

    @property
    def labels(self) -> list[float]:
        """Their labels."""
        return [*(self.example.labels[i] for i in self.chosen), *([0.0] * len(self.borrowed))]

    @property
    def teacher_scores(self) -> list[float] | None:
        """Their scores by the teacher; None where it did not score all of them."""
        scores = self.example.teacher_scores
        return None if scores is None or self.borrowed else [scores[i] for i in self.chosen]


class Cut(NamedTuple):
    """The end of a chunk, counted from the start of the row.

    Attributes:
        segments: segments before it.
        pairs: pairs before it.
        tokens: tokens before it.
        groups: groups before it; None where it lies within a group.
    """

    segments: int
    pairs: int
    tokens: int
    groups: int | None


@dataclass(slots=True)
class PackedBatch:
    """All documents of all groups in one row without padding.

    The row is cut into ``S`` segments. A segment attends to itself and, where ``parents`` names
    another segment (the shared prefix of a causal model), to all of that one; never to anything
    else.

    Attributes:
        input_ids_T: token ids.
        position_ids_T: positions; a segment with a parent continues the parent's.
        lengths: the ``S`` segment lengths, on the host, so that no attention call waits for the
            device.
        parents: for each segment the index of its shared prefix, or -1.
        score_index_P: index into the row of the token each pair's score is read at.
        segment_P: the segment that holds each pair (its document's part).
        labels_P: float32 labels.
        offsets_Q: ``Q + 1`` int64 offsets of the groups into the pairs.
        teacher_P: float32 scores of a teacher; None unless it scored all pairs.
        largest: documents of the largest group, on the host, so that no loss waits for the device;
            a part of a batch may keep the whole's.
        token_type_ids_T: segment kinds for the families that use them.
        query_ids: ids of the ``Q`` groups, for messages.
        filler: whether the loss counts nothing, see ``Group``.
        padded_tokens: what a padded batch of the same pairs would hold, for the padding share
            saved.
        truncated_documents: documents that were cut, fillers aside.
        truncated_queries: groups whose query was cut, fillers aside.
        cuts: where the chunks that are computed one after the other end; empty where the row is
            computed at once.
        calls: how many chunks are computed at least: processes whose weights are cut over them call
            the layers equally often, so one with fewer chunks computes some again, for nothing.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    score_index_P: torch.Tensor
    segment_P: torch.Tensor
    labels_P: torch.Tensor
    offsets_Q: torch.Tensor
    teacher_P: torch.Tensor | None = None
    largest: int | None = None
    token_type_ids_T: torch.Tensor | None = None
    query_ids: tuple[str, ...] = ()
    filler: bool = False
    padded_tokens: int = 0
    truncated_documents: int = 0
    truncated_queries: int = 0
    cuts: tuple[Cut, ...] = ()
    calls: int = 1

    def to(self, device: Any, non_blocking: bool = False) -> PackedBatch:
        """Return the batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if f.name[-2:] in ("_T", "_P", "_Q") and getattr(self, f.name) is not None
        }
        return replace(self, **moved)

    def pin_memory(self) -> PackedBatch:
        """Return the batch in page-locked memory (called by the DataLoader)."""
        moved: dict[str, Any] = {
            f.name: getattr(self, f.name).pin_memory()
            for f in fields(self)
            if f.name[-2:] in ("_T", "_P", "_Q") and getattr(self, f.name) is not None
        }
        return replace(self, **moved)

    def chunks(self) -> list[PackedBatch]:
        """The row's chunks, each a batch of its own pairs that shares this one's memory.

        Their groups are this batch's: a chunk may end within one.
        """
        ends = (Cut(0, 0, 0, 0), *self.cuts)
        return [self._between(start, end) for start, end in pairwise(ends)]

    def slices(self) -> list[PackedBatch]:
        """The row cut wherever a chunk ends with a group: batches of whole groups.

        A loss that sums over groups may be computed on one after the other.
        """
        found = []
        start, inner = Cut(0, 0, 0, 0), []
        for cut in self.cuts:
            inner.append(cut)
            if cut.groups is None:
                continue
            assert start.groups is not None
            part = self._between(start, cut)
            part.offsets_Q = self.offsets_Q[start.groups : cut.groups + 1] - start.pairs
            part.query_ids = self.query_ids[start.groups : cut.groups]
            part.padded_tokens = 0
            part.truncated_documents = part.truncated_queries = 0
            if len(inner) > 1:
                part.cuts = tuple(
                    Cut(
                        end.segments - start.segments,
                        end.pairs - start.pairs,
                        end.tokens - start.tokens,
                        None if end.groups is None else end.groups - start.groups,
                    )
                    for end in inner
                )
            found.append(part)
            start, inner = cut, []
        return found or [self]

    def _between(self, start: Cut, end: Cut) -> PackedBatch:
        types, teacher = self.token_type_ids_T, self.teacher_P
        pairs = slice(start.pairs, end.pairs)
        tokens, segments = slice(start.tokens, end.tokens), slice(start.segments, end.segments)
        return replace(
            self,
            input_ids_T=self.input_ids_T[tokens],
            position_ids_T=self.position_ids_T[tokens],
            lengths=self.lengths[segments],
            parents=tuple(p if p < 0 else p - start.segments for p in self.parents[segments]),
            score_index_P=self.score_index_P[pairs] - start.tokens,
            segment_P=self.segment_P[pairs] - start.segments,
            labels_P=self.labels_P[pairs],
            teacher_P=None if teacher is None else teacher[pairs],
            token_type_ids_T=None if types is None else types[tokens],
            cuts=(),
        )

    @property
    def num_pairs(self) -> int:
        """``P``."""
        return int(self.score_index_P.shape[0])

    @property
    def num_tokens(self) -> int:
        """``T``."""
        return int(self.input_ids_T.shape[0])


@dataclass(slots=True)
class ScoredList:
    """One query's candidates with their scores, in the order of the example.

    Attributes:
        example: the complete example.
        scores: ``D`` fp32 logits, higher is better.
        passages: for each document the characters of its best passage, None where it was read as
            one; None where no document was read in passages.
    """

    example: Example
    scores: list[float] = field(default_factory=list)
    passages: list[tuple[int, int] | None] | None = None

    @property
    def order(self) -> list[int]:
        """The documents' places, best first; equal scores keep the given order."""
        return sorted(range(len(self.scores)), key=lambda i: -self.scores[i])

    def passage(self, document: int) -> tuple[int, int] | None:
        """First character of a document's best passage and the one behind its last, or None."""
        return self.passages[document] if self.passages is not None else None
