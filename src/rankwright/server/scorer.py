"""A ranker in the two steps that the batcher needs: texts to tokens, tokens to scores.

The scores are those of ``Reranker.rank`` for the same query and documents, whoever shares the
batch: a request is encoded as a whole, as ``rank`` does, and only then cut.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rankwright.ranking import EncodedList, Reranker
from rankwright.templates import PairEncoder
from rankwright.types import Example, Group, PairTokens, ScoredList


@dataclass(frozen=True)
class EncodedExample:
    """One query and its documents in tokens; each document, or passage of one, is a unit.

    Attributes:
        whole: all of it.
        shared: see ``batcher.Encoded``.
        units: see ``batcher.Encoded``.
    """

    whole: EncodedList
    shared: int
    units: tuple[int, ...]

    @property
    def total(self) -> int:
        """Tokens of all pairs, each with its prompt and query."""
        return sum(self.units) + self.shared * len(self.units)

    @property
    def truncated(self) -> dict[str, int]:
        """How many documents and queries were cut."""
        return {
            "documents": self.whole.tokens.truncated_documents,
            "queries": int(self.whole.tokens.truncated_query),
        }


class ModelScorer:
    """Encodes in any thread, scores in one.

    Args:
        reranker: the model.
        name: what requests call it.
    """

    def __init__(self, reranker: Reranker, name: str) -> None:
        self.reranker = reranker
        self.name = name
        self._model = reranker.loaded.model.eval()
        self._local = threading.local()
        self._copying = threading.Lock()

    @property
    def batch_tokens(self) -> int:
        """Tokens scored at a time."""
        return self.reranker.batch_tokens

    @property
    def reads_instruction(self) -> bool:
        """Whether an instruction changes its scores."""
        return self.reranker.loaded.spec.template.reads_instruction

    def probabilities(self, scores: Sequence[float], *, calibrated: bool) -> list[float]:
        """Probabilities of logits.

        Raises:
            ConfigError: the model has no calibration.
        """
        return self.reranker.probabilities(scores, calibrated=calibrated)

    def about(self) -> dict[str, Any]:
        """What ``/info`` says of it."""
        spec, model = self.reranker.loaded.spec, self.reranker.loaded.model
        calibration = self.reranker.calibration
        return {
            "name": self.name,
            "kind": spec.kind,
            "architecture": model.config.model_type,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "device": str(self.reranker.device),
            "max_length": spec.max_length,
            "instruction": spec.instruction if self.reads_instruction else None,
            "calibration": calibration.method if calibration else None,
            "passages": self.reranker.passages.pooling if self.reranker.passages else None,
        }

    @property
    def max_length(self) -> int:
        """Most tokens of a pair."""
        return self.reranker.loaded.spec.max_length

    def _encoder(self, max_length: int | None) -> PairEncoder:
        """This thread's own encoder: a tokenizer must not be used by two threads at once."""
        spec = self.reranker.loaded.spec
        if not hasattr(self._local, "encoder"):
            with self._copying:
                tokenizer = copy.deepcopy(self.reranker.loaded.tokenizer)
            self._local.encoder = PairEncoder(tokenizer, spec.template, spec.max_length)
        encoder: PairEncoder = self._local.encoder
        if max_length is None or max_length >= spec.max_length:
            return encoder
        return PairEncoder(encoder.tokenizer, spec.template, max_length)

    def encode(
        self,
        example: Example,
        *,
        document_tokens: int | None = None,
        max_length: int | None = None,
        passages: int | None = None,
    ) -> EncodedExample:
        """Encode a query with its documents.

        Args:
            example: the texts.
            document_tokens: what is kept of each document, at most.
            max_length: of a pair, where less than the model's is wanted.
            passages: most passages of a document, where they are read.

        Raises:
            ConfigError: the instruction or the length leaves no room.
        """
        encoder = self._encoder(max_length)
        documents = example.documents
        if document_tokens is not None:
            documents = [encoder.cut(document, document_tokens) for document in documents]
        how = self.reranker.passages
        if how is None:
            tokens = encoder.encode(example.query, documents, example.instruction)
            count = len(documents)
            whole = EncodedList(example, tokens, tuple(range(count)), (None,) * count)
        else:
            if passages is not None and (how.limit is None or passages < how.limit):
                how = replace(how, limit=passages)
            found = encoder.encode_passages(example.query, documents, how, example.instruction)
            whole = EncodedList(example, found.tokens, found.owners, found.spans)
        shares = self.reranker.collator.share_prefix
        prefix = len(whole.tokens.prefix)
        return EncodedExample(
            whole,
            shared=prefix if shares else 0,
            units=tuple(len(ids) + (0 if shares else prefix) for ids in whole.tokens.documents),
        )

    @torch.inference_mode()
    def score(self, parts: Sequence[tuple[EncodedExample, Sequence[int]]]) -> list[list[float]]:
        """Score the chosen documents of each example, in one packed row."""
        scores: list[list[float]] = [[0.0] * len(chosen) for _, chosen in parts]
        for batch in self._rows(parts):
            groups, tokens = [], []
            for part, places in batch:
                whole, chosen = parts[part][0].whole, parts[part][1]
                ids = [whole.tokens.documents[chosen[place]] for place in places]
                owners = tuple(whole.owners[chosen[place]] for place in places)
                groups.append(Group(whole.example, owners))
                tokens.append(PairTokens(whole.tokens.prefix, ids, 0, False))
            packed = self.reranker.collator.pack(groups, tokens).to(self.reranker.device)
            found = iter(self._model(packed).float().cpu().tolist())
            for part, places in batch:
                for place in places:
                    scores[part][place] = next(found)
        return scores

    def _rows(
        self, parts: Sequence[tuple[EncodedExample, Sequence[int]]]
    ) -> list[list[tuple[int, list[int]]]]:
        """What is computed at a time: everything, or rows of like lengths where they are padded."""
        if self._model.packed:
            return [[(part, list(range(len(chosen)))) for part, (_, chosen) in enumerate(parts)]]
        pairs = sorted(
            (-encoded.units[unit], part, place)
            for part, (encoded, chosen) in enumerate(parts)
            for place, unit in enumerate(chosen)
        )
        rows: list[list[tuple[int, list[int]]]] = []
        longest = 0
        for length, part, place in pairs:
            if not rows or (len(rows[-1]) + 1) * longest > self.batch_tokens:
                rows.append([])
                longest = -length
            rows[-1].append((part, [place]))
        return rows

    def pool(self, encoded: EncodedExample, scores: Sequence[float]) -> ScoredList:
        """One score for each document, from those of its passages."""
        return encoded.whole.pooled(scores, self.reranker.passages)
