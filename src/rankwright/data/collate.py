"""From groups to one packed row.

Shape legend: ``Q`` groups, ``P`` pairs, ``T`` tokens, ``S`` segments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

from rankwright.templates import PairEncoder, PairTokens, Passages, PassageTokens
from rankwright.types import Cut, Group, PackedBatch

_Piece = tuple[list[int], list[list[int]]]
"""A prefix and the documents behind it."""


class Collator:
    """Encodes groups and packs them.

    Args:
        encoder: the template with its tokenizer and maximum length.
        share_prefix: compute a group's instruction and query once; for causal models only.
        scored_last: the score is read at the pair's last token, otherwise at its first.
        position_offset: position of a sequence's first token.
        token_types: whether the model reads segment kinds.
        slice_tokens: tokens beyond which a row is cut between groups; a group is cut for it with
            ``by_document`` alone.
        chunk_tokens: most tokens that are computed at a time; a larger group is cut into chunks.
        by_document: every document is a term of the loss by itself, so where rows are cut, a group
            that is larger becomes several.

    Attributes:
        truncated: counts of cut ``documents`` and ``queries`` so far.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        *,
        share_prefix: bool,
        scored_last: bool,
        position_offset: int = 0,
        token_types: bool = False,
        slice_tokens: int | None = None,
        chunk_tokens: int | None = None,
        by_document: bool = False,
    ) -> None:
        self.encoder = encoder
        self.share_prefix = share_prefix
        self.scored_last = scored_last
        self.position_offset = position_offset
        self.token_types = token_types
        self.slice_tokens = slice_tokens
        self.chunk_tokens = chunk_tokens
        self.by_document = by_document
        self.truncated: Counter[str] = Counter()

    def __call__(self, groups: Sequence[Group]) -> PackedBatch:
        """Encode and pack ``Q`` groups."""
        return self.pack(groups, [self.encode(group) for group in groups])

    def encode(self, group: Group) -> PairTokens:
        """Encode one group."""
        tokens = group.tokens or self.encoder.encode(
            group.example.query, group.documents, group.example.instruction
        )
        self.truncated["documents"] += tokens.truncated_documents
        self.truncated["queries"] += tokens.truncated_query
        return tokens

    def encode_passages(self, group: Group, passages: Passages) -> PassageTokens:
        """Encode one group, documents that do not fit in passages."""
        found = self.encoder.encode_passages(
            group.example.query, group.documents, passages, group.example.instruction
        )
        self.truncated["documents"] += found.tokens.truncated_documents
        self.truncated["queries"] += found.tokens.truncated_query
        return found

    def cost(self, tokens: PairTokens) -> int:
        """Tokens that a group takes in the packed row."""
        documents = sum(map(len, tokens.documents))
        if self.share_prefix and len(tokens.documents) > 1:
            return len(tokens.prefix) + documents
        return len(tokens.prefix) * len(tokens.documents) + documents

    def pack(self, groups: Sequence[Group], encoded: Sequence[PairTokens]) -> PackedBatch:
        """Lay encoded groups into one row.

        Args:
            groups: the groups.
            encoded: their tokens.

        Returns:
            The batch, on the host; of more groups where ``by_document`` made several of one.
        """
        ids: list[int] = []
        positions: list[int] = []
        types: list[int] = []
        lengths: list[int] = []
        parents: list[int] = []
        score_index: list[int] = []
        segments: list[int] = []
        longest = 0
        first = self.position_offset

        def add(segment: list[int], start: int, kinds: list[int], parent: int) -> int:
            lengths.append(len(segment))
            parents.append(parent)
            ids.extend(segment)
            positions.extend(range(start, start + len(segment)))
            types.extend(kinds)
            return len(lengths) - 1

        owners = groups
        if self.by_document and self.slice_tokens is not None:
            owners, encoded = self._split(groups, encoded, self.slice_tokens)
        cuts: list[Cut] = []
        for chunk, whole_groups in self._chunks(encoded):
            for prefix, documents in chunk:
                # one document shares with nobody: two segments would only cost a second attention
                # call
                shared = self.share_prefix and len(documents) > 1
                parent = add(prefix, first, [0] * len(prefix), -1) if shared else -1
                for document in documents:
                    kinds = [self.encoder.document_types] * len(document)
                    begin = len(ids)
                    if shared:
                        segment = add(document, first + len(prefix), kinds, parent)
                    else:
                        segment = add(prefix + document, first, [0] * len(prefix) + kinds, -1)
                    segments.append(segment)
                    score_index.append(len(ids) - 1 if self.scored_last else begin)
                    longest = max(longest, len(prefix) + len(document))
            cuts.append(Cut(len(lengths), len(segments), len(ids), whole_groups))
        sizes = [len(tokens.documents) for tokens in encoded]
        taught = [group.teacher_scores for group in groups]
        teacher = [t for scores in taught if scores is not None for t in scores]
        return PackedBatch(
            input_ids_T=torch.tensor(ids, dtype=torch.long),
            position_ids_T=torch.tensor(positions, dtype=torch.long),
            lengths=tuple(lengths),
            parents=tuple(parents),
            score_index_P=torch.tensor(score_index, dtype=torch.long),
            segment_P=torch.tensor(segments, dtype=torch.long),
            labels_P=torch.tensor([y for g in groups for y in g.labels], dtype=torch.float32),
            offsets_Q=torch.tensor([0, *accumulate(sizes)], dtype=torch.long),
            teacher_P=torch.tensor(teacher, dtype=torch.float32) if all(taught) else None,
            largest=max(sizes, default=0),
            token_type_ids_T=torch.tensor(types, dtype=torch.long) if self.token_types else None,
            filler=any(group.filler for group in groups),
            query_ids=tuple(group.example.query_id for group in owners),
            padded_tokens=longest * len(segments),
            cuts=tuple(cuts) if len(cuts) > 1 else (),
        )

    def _split(
        self, groups: Sequence[Group], encoded: Sequence[PairTokens], slice_tokens: int
    ) -> tuple[list[Group], list[PairTokens]]:
        """Make several groups of each that is larger than what is computed at a time."""
        limit = min(slice_tokens, self.chunk_tokens or slice_tokens)
        owners: list[Group] = []
        found: list[PairTokens] = []
        for group, tokens in zip(groups, encoded, strict=True):
            parts = [tokens]
            if self.cost(tokens) > limit:
                pieces = self._parts(tokens, limit)
                parts = [PairTokens(*piece, 0, False) for piece in pieces]
            owners += [group] * len(parts)
            found += parts
        return owners, found

    def _chunks(self, encoded: Sequence[PairTokens]) -> Iterator[tuple[list[_Piece], int | None]]:
        """Cut the groups, in their order, into what is computed at a time.

        Yields:
            Pieces, and how many groups end with them; None where they end within a group.
        """
        sizes = [size for size in (self.slice_tokens, self.chunk_tokens) if size is not None]
        chunk: list[_Piece] = []
        used = 0
        for number, tokens in enumerate(encoded):
            cost = self.cost(tokens)
            if chunk and sizes and used + cost > min(sizes):
                yield chunk, number
                chunk, used = [], 0
            if self.chunk_tokens is not None and cost > self.chunk_tokens:
                *parts, last = self._parts(tokens, self.chunk_tokens)
                yield from (([part], None) for part in parts)
                yield [last], number + 1
                continue
            chunk.append((tokens.prefix, tokens.documents))
            used += cost
        if chunk:
            yield chunk, len(encoded)

    def _parts(self, tokens: PairTokens, limit: int) -> list[_Piece]:
        """Cut one group into pieces of at most ``limit`` tokens; a longer pair is one of its own.

        Each brings the prefix again.
        """
        parts: list[_Piece] = [(tokens.prefix, [])]
        used = 0
        for document in tokens.documents:
            taken = parts[-1][1]
            prefix = 0 if taken and self.share_prefix else len(tokens.prefix)
            if taken and used + prefix + len(document) > limit:
                parts.append((tokens.prefix, []))
                used, prefix = 0, len(tokens.prefix)
            parts[-1][1].append(document)
            used += prefix + len(document)
        return parts
