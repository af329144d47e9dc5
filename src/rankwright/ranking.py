"""Ranking: a query and its documents in, an order out.

Evaluation, ranking and serving all score here.

Shape legend: ``P`` pairs, ``D`` documents of one query.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rankwright.calibration import Calibration, sigmoid
from rankwright.data.collate import Collator
from rankwright.errors import ConfigError, DataError
from rankwright.models import checkpoint
from rankwright.models.checkpoint import Loaded, LoadOptions
from rankwright.templates import Passages as Passages
from rankwright.types import Example, Group, PackedBatch, PairTokens, ScoredList

logger = logging.getLogger(__name__)

# pairs (passages count) that are encoded and sorted by length at a time: memory stays constant,
# batches fill well
WINDOW = 4096
# what a CPU makes of such a row stays in its caches, or nearly (docs/log.md)
BATCH_TOKENS, CPU_BATCH_TOKENS = 16384, 2048
NEW_HEAD_SEED = 42

Progress = Callable[[int], None]


@dataclass(frozen=True)
class RankedDocument:
    """One document in its place.

    Attributes:
        index: its place in the list that was given.
        score: fp32 logit; ``sigmoid`` of it is a probability.
        document: the text.
        passage: where its best passage stands, ``document[passage[0]:passage[1]]``; None where the
            document was read as one.
    """

    index: int
    score: float
    document: str
    passage: tuple[int, int] | None = None


class EncodedList(NamedTuple):
    """An example's tokens: its documents, or their passages.

    Attributes:
        example: the texts.
        tokens: of its documents, or of their passages.
        owners: for each of them the index of its document, in order.
        spans: where a passage stands in its document; None where the document was read as one.
    """

    example: Example
    tokens: PairTokens
    owners: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]

    def pooled(self, scores: Sequence[float], passages: Passages | None) -> ScoredList:
        """One score for each document, from those of its passages."""
        if passages is None:
            return ScoredList(self.example, list(scores))
        pooled: list[float] = []
        best: list[tuple[int, int] | None] = []
        for _, group in groupby(range(len(scores)), key=self.owners.__getitem__):
            places = list(group)
            pooled.append(passages.pool([scores[p] for p in places]))
            # the first of equal ones
            best.append(self.spans[max(places, key=scores.__getitem__)])
        return ScoredList(self.example, pooled, best)


class _Piece(NamedTuple):
    """What is packed as one: passages of one query."""

    cost: int
    place: int
    chosen: tuple[int, ...]
    group: Group
    tokens: PairTokens


class Reranker:
    """A model that ranks documents for a query.

    Args:
        loaded: model, tokenizer and what belongs to them.
        batch_tokens: tokens scored at a time; default: 2048 on a CPU, 16384 elsewhere.
        share_prefix: compute prompt and query of decoders once for all documents (exact).
        passages: read documents that do not fit in passages; None cuts them.

    Raises:
        ConfigError: an option does not fit.

    Example:
        >>> reranker = Reranker.load("output")  # doctest: +SKIP
        >>> reranker.rank("what is a lichen?", ["A fungus with algae.", "A city."], top_k=1)  #
        doctest: +SKIP [RankedDocument(index=0, score=4.2, document='A fungus with algae.')]
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        batch_tokens: int | None = None,
        share_prefix: bool = True,
        passages: Passages | None = None,
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise ConfigError(f"batch_tokens {batch_tokens} is less than 1")
        self.loaded = loaded
        self._batch_tokens = batch_tokens
        self.collator = collator(loaded, share_prefix=share_prefix)
        room = self.collator.encoder.room
        if passages is not None and passages.tokens is not None and passages.tokens > room:
            raise ConfigError(
                f"--passage_tokens {passages.tokens} is more than the {room} that --max_length "
                f"{loaded.spec.max_length} leaves; lower it"
            )
        self.passages = passages
        self._warned: set[str] = set()
        self._warned_of_instructions = False

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        batch_tokens: int | None = None,
        share_prefix: bool = True,
        passages: Passages | None = None,
        **options: Any,
    ) -> Reranker:
        """Load a reranker from a folder or a hub.

        Args:
            name: a local folder, or an id such as ``owner/name``.
            device: default: CUDA, then MPS, then the CPU.
            batch_tokens: see the class.
            share_prefix: see the class.
            passages: see the class.
            **options: fields of ``LoadOptions`` (``max_length``, ``dtype``, ``instruction``, …).

        Raises:
            ConfigError: the name or an option does not fit.
            CheckpointError: the folder is incomplete.
        """
        # a head that is new is random: the same one in every process, and whenever it is loaded
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(NEW_HEAD_SEED)
            loaded = checkpoint.load(name, LoadOptions(**options))
        if loaded.spec.calibration is not None:
            Calibration.from_dict(loaded.spec.calibration)
        if loaded.new_modules:
            logger.warning(
                "%s brings no weights for %s: they are random, and so are its scores until it is "
                "trained",
                name,
                ", ".join(loaded.new_modules),
            )
        loaded.model.to(device or default_device())
        return cls(loaded, batch_tokens=batch_tokens, share_prefix=share_prefix, passages=passages)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.loaded.model.parameters()).device

    @property
    def batch_tokens(self) -> int:
        """Tokens scored at a time."""
        if self._batch_tokens is not None:
            return self._batch_tokens
        return CPU_BATCH_TOKENS if self.device.type == "cpu" else BATCH_TOKENS

    @property
    def truncated(self) -> dict[str, int]:
        """How many documents and queries were cut so far; with passages, those at their limit."""
        return dict(self.collator.truncated)

    @property
    def calibration(self) -> Calibration | None:
        """How its scores become probabilities that can be believed; None where it was not fitted.

        Raises:
            CheckpointError: what the model was saved with is broken.
        """
        saved = self.loaded.spec.calibration
        return None if saved is None else Calibration.from_dict(saved)

    def probabilities(self, scores: Sequence[float], *, calibrated: bool = False) -> list[float]:
        """Turn scores into probabilities, in their order.

        Args:
            scores: logits, as ``score`` and ``rank`` give them.
            calibrated: by the model's calibration, otherwise by the plain sigmoid.

        Raises:
            ConfigError: the model has no calibration.
        """
        if not calibrated:
            return list(map(float, sigmoid(list(scores))))
        return list(map(float, self._calibrated().probabilities(list(scores))))

    def threshold(self, name: str) -> float:
        """The score from which on documents count as relevant, by a goal such as ``precision@0.9``.

        Raises:
            ConfigError: the model was saved without such a threshold.
        """
        return self._calibrated().threshold(name).score

    @property
    def settings(self) -> dict[str, Any]:
        """What scores depend on besides the weights and the texts."""
        spec = self.loaded.spec
        names = ("max_length", "template_prefix", "template_suffix", "instruction")
        passages = None if self.passages is None else asdict(self.passages)
        return {**{name: getattr(spec, name) for name in names}, "passages": passages}

    def _calibrated(self) -> Calibration:
        calibration = self.calibration
        if calibration is None:
            raise ConfigError(
                f"{self.loaded.folder} holds no calibration; fit one with rankwright calibrate "
                "--model M --dataset FILE"
            )
        fitted = calibration.record.get("settings") or {}
        for name, value in self.settings.items():
            before = fitted.get(name, value)
            if before != value and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "the model was calibrated with %s %r and is used with %r, so its probabilities "
                    "and thresholds may be off; use the same, or fit again with rankwright "
                    "calibrate",
                    name,
                    before,
                    value,
                )
        return calibration

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        instruction: str | None = None,
    ) -> list[RankedDocument]:
        """Order documents by relevance, best first; equal scores keep the given order.

        Args:
            query: the query.
            documents: ``D`` texts.
            top_k: how many to return, default all.
            instruction: task description, default the model's.

        Returns:
            At most ``top_k`` documents with their scores.

        Raises:
            DataError: the query is empty, or a document is not a text.
        """
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k {top_k} is less than 1")
        example = _example(query, documents, instruction)
        if not documents:
            return []
        scored = self.score_examples([example])[0]
        return [
            RankedDocument(i, scored.scores[i], documents[i], scored.passage(i))
            for i in scored.order[:top_k]
        ]

    def score(
        self, pairs: Sequence[tuple[str, str]], *, instruction: str | None = None
    ) -> list[float]:
        """Score (query, document) pairs.

        Returns:
            One fp32 logit for each pair, in their order.

        Raises:
            DataError: a query is empty, or a text is missing.
        """
        examples = [_example(query, [document], instruction) for query, document in pairs]
        return [scored.scores[0] for scored in self.score_examples(examples)]

    def score_examples(
        self, examples: Iterable[Example], progress: Progress | None = None
    ) -> list[ScoredList]:
        """Score all candidates of each example.

        Args:
            examples: the examples.
            progress: called with the number of examples finished since its last call.

        Returns:
            One list for each example, in their order.

        Raises:
            DataError: a score is not finite; the message names the query.
        """
        return list(self.iter_scores(examples, progress))

    def iter_scores(
        self, examples: Iterable[Example], progress: Progress | None = None
    ) -> Iterator[ScoredList]:
        """``score_examples`` as a stream, in constant memory."""
        window: list[EncodedList] = []
        pairs = with_instruction = 0
        for example in examples:
            with_instruction += example.instruction is not None
            window.append(self._encode(example))
            pairs += len(window[-1].owners)
            if pairs >= WINDOW:
                yield from self._score_window(window, progress)
                window, pairs = [], 0
        yield from self._score_window(window, progress)
        self._warn_of_instructions(with_instruction)

    def _warn_of_instructions(self, queries: int) -> None:
        """Say once how many instructions changed nothing."""
        if not queries or self._warned_of_instructions or self._reads_instruction:
            return
        self._warned_of_instructions = True
        logger.warning(
            "%d quer%s an instruction, which has no effect: the model's template has no place for "
            "it; give one with {instruction} (--template), or write it into the query",
            queries,
            "y came with" if queries == 1 else "ies came with",
        )

    @property
    def _reads_instruction(self) -> bool:
        return self.loaded.spec.template.reads_instruction

    def _encode(self, example: Example) -> EncodedList:
        everything = Group(example, tuple(range(len(example.documents))))
        if self.passages is None:
            tokens = self.collator.encode(everything)
            return EncodedList(example, tokens, everything.chosen, (None,) * len(tokens.documents))
        found = self.collator.encode_passages(everything, self.passages)
        return EncodedList(example, found.tokens, found.owners, found.spans)

    @torch.no_grad()
    def _score_window(
        self, window: list[EncodedList], progress: Progress | None
    ) -> Iterator[ScoredList]:
        scores_of = [[0.0] * len(encoded.owners) for encoded in window]
        waiting = [len(encoded.owners) for encoded in window]
        model = self.loaded.model
        was_training = model.training
        model.eval()
        try:
            for batch, places in self._batches(window):
                scores = model(batch.to(self.device)).float().cpu().tolist()
                finished = 0
                for (index, passage), score in zip(places, scores, strict=True):
                    scores_of[index][passage] = score
                    waiting[index] -= 1
                    finished += waiting[index] == 0
                if progress is not None:
                    progress(finished)
        finally:
            model.train(was_training)
        for encoded, scores in zip(window, scores_of, strict=True):
            if not all(abs(score) < float("inf") for score in scores):
                example = encoded.example
                raise DataError(
                    f"query {example.query_id or example.query!r} got a score that is not a "
                    "finite number; the model is broken, or its half-precision weights overflow "
                    "(try float32)"
                )
        for encoded, scores in zip(window, scores_of, strict=True):
            yield encoded.pooled(scores, self.passages)

    def _batches(
        self, window: list[EncodedList]
    ) -> Iterator[tuple[PackedBatch, list[tuple[int, int]]]]:
        """Packed batches of similar lengths, longest first, with each passage's place."""
        pieces: list[_Piece] = []
        for index, encoded in enumerate(window):
            tokens = encoded.tokens
            for chosen in self._chunks(tokens):
                part = PairTokens(tokens.prefix, [tokens.documents[d] for d in chosen], 0, False)
                group = Group(encoded.example, tuple(encoded.owners[d] for d in chosen))
                pieces.append(_Piece(self.collator.cost(part), index, chosen, group, part))
        # longest first: if memory runs out, it does so at once
        pieces.sort(key=lambda piece: (-piece.cost, piece.place))
        batch: list[_Piece] = []
        used = 0
        for piece in pieces:
            if batch and used + piece.cost > self.batch_tokens:
                yield self._pack(batch)
                batch, used = [], 0
            batch.append(piece)
            used += piece.cost
        if batch:
            yield self._pack(batch)

    def _chunks(self, tokens: PairTokens) -> Iterator[tuple[int, ...]]:
        """Cut a query's documents up: one each, or as many as fit behind a shared prefix."""
        order = sorted(range(len(tokens.documents)), key=lambda d: -len(tokens.documents[d]))
        if not self.collator.share_prefix:
            yield from ((d,) for d in order)
            return
        chunk: list[int] = []
        used = len(tokens.prefix)
        for d in order:
            if chunk and used + len(tokens.documents[d]) > self.batch_tokens:
                yield tuple(chunk)
                chunk, used = [], len(tokens.prefix)
            chunk.append(d)
            used += len(tokens.documents[d])
        if chunk:
            yield tuple(chunk)

    def _pack(self, batch: list[_Piece]) -> tuple[PackedBatch, list[tuple[int, int]]]:
        places = [(piece.place, d) for piece in batch for d in piece.chosen]
        packed = self.collator.pack([piece.group for piece in batch], [p.tokens for p in batch])
        return packed, places

    def save(self, folder: str | os.PathLike[str], *, merge: bool = True) -> Path:
        """Write a checkpoint that this class, transformers and sentence-transformers load.

        Args:
            folder: the target.
            merge: fold a LoRA adapter into the weights.
        """
        checkpoint.save(self.loaded, folder, merge=merge)
        return Path(folder)


def collator(
    loaded: Loaded,
    *,
    share_prefix: bool = True,
    slice_tokens: int | None = None,
    chunk_tokens: int | None = None,
    by_document: bool = False,
) -> Collator:
    """The collator that fits a model; see ``Collator`` for the options."""
    model = loaded.model
    return Collator(
        loaded.encoder(),
        share_prefix=share_prefix and model.causal,
        scored_last=model.scored_last,
        position_offset=model.position_offset,
        token_types=getattr(model.config, "type_vocab_size", 0) > 1,
        slice_tokens=slice_tokens,
        chunk_tokens=chunk_tokens,
        by_document=by_document,
    )


def default_device() -> torch.device:
    """CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _example(query: str, documents: Sequence[str], instruction: str | None) -> Example:
    if not isinstance(query, str) or not query.strip():
        raise DataError("the query is empty; give a text")
    if isinstance(documents, str):
        raise DataError("documents is one text; give a list of texts")
    for place, document in enumerate(documents):
        if not isinstance(document, str):
            raise DataError(f"document {place} is {type(document).__name__}; give texts")
    return Example(query, list(documents), [0.0] * len(documents), instruction=instruction)
