"""Tokens made ahead: each prefix and each document once, kept on disk for the next run.

What stands here is what ``PairEncoder.encode`` gives for the chosen documents of a row, whichever
they are. The query is cut only where one of the documents does not fit beside it, so each row keeps
its prefix in both forms, and each document says whether it asks for the cut one.

Legend: ``N`` rows, ``D`` documents of one row.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from rankwright import templates
from rankwright.data.cache import (
    META,
    ArrowWriter,
    arrow_file,
    cached,
    digest,
)
from rankwright.data.outline import Outline, Ragged
from rankwright.data.store import ExampleStore, ragged
from rankwright.files import DamagedError, read_marker, write_marker
from rankwright.progress import tracked
from rankwright.templates import PairEncoder
from rankwright.types import Example, PairTokens

logger = logging.getLogger(__name__)

TOKENS = "tokens.arrow"
_IDS = ("prefix", "cut_prefix", "documents", "flags")
# rows that a worker encodes at a time
CHUNK = 64
# what a document says of itself
FORCES = 1  # does not fit beside the whole query, which is long: takes the cut prefix
CUT = 2  # was cut


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of ``N`` rows, to plan batches with.

    Attributes:
        prefixes: of the prefix with the whole query.
        cut_prefixes: of the prefix with the query cut; the same where it never is.
        documents: of each document, suffix included.
        flags: ``FORCES`` and ``CUT`` of each document.
        share_prefix: whether a group's prefix stands in a batch once.
    """

    prefixes: NDArray[np.int64]
    cut_prefixes: NDArray[np.int64]
    documents: Ragged
    flags: Ragged
    share_prefix: bool

    @property
    def plain(self) -> NDArray[np.bool_]:
        """Which rows have the same prefix for all documents."""
        return np.equal(self.prefixes, self.cut_prefixes)

    @property
    def longest(self) -> NDArray[np.int64]:
        """The most tokens that a document of each row takes behind any other query."""
        values = self.documents.values.astype(np.int64)
        # a document that was cut may be longer beside a shorter query
        prefixes = np.repeat(self.prefixes, self.documents.sizes)
        values += np.where(self.flags.values & CUT, prefixes, 0)
        found = np.zeros(len(self.prefixes), np.int64)
        filled = self.documents.sizes > 0
        starts = self.documents.offsets[:-1][filled]
        found[filled] = np.maximum.reduceat(values, starts) if len(starts) else 0
        return found

    def of(self, rows: NDArray[np.int64], chosen: Ragged) -> NDArray[np.int64]:
        """Tokens that groups take in a batch.

        Args:
            rows: the row of each group.
            chosen: its documents.
        """
        places = np.repeat(self.documents.offsets[rows], chosen.sizes) + chosen.values
        forces = Ragged(self.flags.values[places] & FORCES, chosen.offsets).sums() > 0
        prefixes = np.where(forces, self.cut_prefixes[rows], self.prefixes[rows])
        copies = np.ones(len(rows), np.int64) if self.share_prefix else chosen.sizes
        costs: NDArray[np.int64] = prefixes * copies
        costs += Ragged(self.documents.values[places], chosen.offsets).sums()
        return costs

    def of_all(self, rows: Outline) -> NDArray[np.int64]:
        """Tokens that the group of all distinct documents takes, for each row that is ``plain``."""
        starts = self.documents.offsets[:-1]
        totals = np.zeros(len(starts), np.int64)
        copies = np.zeros(len(starts), np.int64)
        for side in (rows.positives, rows.negatives):
            values = self.documents.values[np.repeat(starts, side.sizes) + side.values]
            totals += Ragged(values, side.offsets).sums()
            copies += side.sizes
        return totals + self.prefixes * (1 if self.share_prefix else copies)


class TokenStore:
    """The tokens of examples; see ``token_store``.

    Args:
        file: an Arrow file that ``token_store`` wrote, or its bytes.
        positions: where the tokens of each example stand in it; None for the file's own order.

    Raises:
        DamagedError: the file is not whole.
    """

    def __init__(self, file: Path | bytes, positions: NDArray[np.int64] | None = None) -> None:
        import pyarrow as pa
        from datasets import Dataset as Table

        self.file = file
        try:
            if isinstance(file, bytes):
                self._table = Table.from_buffer(pa.py_buffer(file))
            else:
                self._table = Table.from_file(str(file))
            self._ids = self._table.select_columns(list(_IDS))
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"tokens: {error}") from error
        self._positions = np.arange(len(self._table)) if positions is None else positions

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.file, self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def select(self, indices: NDArray[np.int64]) -> TokenStore:
        """The tokens of some of the examples."""
        return TokenStore(self.file, self._positions[indices])

    def pairs(self, index: int, groups: Sequence[Sequence[int]]) -> list[PairTokens]:
        """The tokens of one example with the chosen documents, as ``PairEncoder.encode`` has them.

        Args:
            index: the example.
            groups: indices of documents, once for each group.

        Returns:
            One for each group.
        """
        row = _Row(self._ids.data.fast_slice(int(self._positions[index]), 1))
        return [row.pair(chosen) for chosen in groups]

    def lengths(self, *, share_prefix: bool) -> Lengths:
        """How many tokens there are, without reading them."""
        columns = {name: self._table.data.column(name) for name in _schema().names}
        if not np.array_equal(self._positions, np.arange(len(self._table))):
            columns = {
                name: columns[name].take(self._positions)
                for name in ("prefix_length", "cut_prefix_length", "lengths", "flags")
            }
        return Lengths(
            columns["prefix_length"].to_numpy().astype(np.int64),
            columns["cut_prefix_length"].to_numpy().astype(np.int64),
            ragged(columns["lengths"]),
            ragged(columns["flags"]),
            share_prefix,
        )


class _Row:
    """One row of the file; of its documents only those asked for become lists."""

    def __init__(self, table: Any) -> None:
        prefix, cut_prefix, documents, flags = (
            table.column(name).chunk(0).flatten() for name in _IDS
        )
        self.prefix: list[int] = prefix.to_numpy().tolist()
        self.cut_prefix: list[int] = cut_prefix.to_numpy().tolist()
        self.ids = documents.values.to_numpy()
        self.offsets: list[int] = documents.offsets.to_numpy().tolist()
        self.flags: list[int] = flags.to_numpy().tolist()

    def pair(self, chosen: Sequence[int]) -> PairTokens:
        flags = [self.flags[i] for i in chosen]
        forced = any(flag & FORCES for flag in flags)
        return PairTokens(
            self.cut_prefix if forced else self.prefix,
            [self.ids[self.offsets[i] : self.offsets[i + 1]].tolist() for i in chosen],
            sum(bool(flag & CUT) for flag in flags),
            forced,
        )


def _schema() -> Any:
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    return pa.schema(
        {
            "prefix": ids,
            "cut_prefix": ids,
            "documents": pa.list_(ids),
            "flags": ids,
            "prefix_length": pa.int32(),
            "cut_prefix_length": pa.int32(),
            "lengths": ids,
        }
    )


def encode_row(encoder: PairEncoder, example: Example) -> dict[str, Any]:
    """Encode all documents of an example, so that the tokens of any of them can be told.

    Args:
        encoder: the template with its tokenizer and maximum length.
        example: the example.

    Returns:
        A row of the file.
    """
    query, instruction = example.query, example.instruction
    tokens = encoder.encode(query, example.documents, instruction)
    flags = [0] * len(example.documents)
    prefix, cut_prefix, documents = tokens.prefix, None, tokens.documents
    if tokens.truncated_query or tokens.truncated_documents:
        # rare; a document on its own says whether it was cut and whether it asks for a cut query
        single = [encoder.encode(query, [text], instruction) for text in example.documents]
        flags = [FORCES * one.truncated_query + CUT * one.truncated_documents for one in single]
        documents = [one.documents[0] for one in single]
        if tokens.truncated_query:
            prefix, cut_prefix = encoder.encode(query, [], instruction).prefix, tokens.prefix
    return {
        "prefix": prefix,
        "cut_prefix": cut_prefix,
        "documents": documents,
        "flags": flags,
        "prefix_length": len(prefix),
        "cut_prefix_length": len(prefix if cut_prefix is None else cut_prefix),
        "lengths": [len(ids) for ids in documents],
    }


class _Chunks(Dataset[Any]):
    """Chunks of examples, encoded where they are asked for: in a worker."""

    def __init__(self, examples: Sequence[Example], encoder: PairEncoder) -> None:
        self.examples = examples
        self.encoder = encoder

    def __len__(self) -> int:
        return -(-len(self.examples) // CHUNK)

    def __getitem__(self, chunk: int) -> Any:
        import pyarrow as pa

        indices = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.examples)))
        try:
            rows = [encode_row(self.encoder, self.examples[i]) for i in indices]
        except Exception as error:  # a worker's traceback would hide what it says
            return error
        return pa.RecordBatch.from_pylist(rows, schema=_schema())


def _encode(
    writer: ArrowWriter, examples: Sequence[Example], encoder: PairEncoder, workers: int
) -> None:
    loader: Any = DataLoader(
        _Chunks(examples, encoder),
        batch_size=None,
        num_workers=workers if workers > 1 else 0,
        collate_fn=_as_it_is,
        worker_init_fn=quiet_tokenizers,
    )
    if workers > 1:
        allow_forks()
    with tracked("tokenising", len(examples)) as advance:
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            writer.write_batch(batch)
            advance(batch.num_rows)


def _as_it_is(batch: Any) -> Any:
    # the loader's own way would look at every number
    return batch


def allow_forks() -> None:
    """Say that tokenizers may be forked, before they are; see ``quiet_tokenizers``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def quiet_tokenizers(worker: int) -> None:
    """In a worker: tokenise in one thread, since the parent's are not there after a fork.

    Args:
        worker: its number.
    """
    del worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def token_store(
    examples: Sequence[Example],
    encoder: PairEncoder,
    cache: Path | None,
    *,
    workers: int = 1,
    rebuild: bool = False,
) -> TokenStore:
    """Make the tokens of examples, or find them where a former run made them.

    Args:
        examples: the examples; those that are not in an ``ExampleStore`` are encoded into memory.
        encoder: the template with its tokenizer and maximum length.
        cache: folder of what is kept between runs; None for none.
        workers: processes that encode.
        rebuild: make them anew.

    Returns:
        The tokens, in the order of the examples. Where the folder cannot be written, a warning is
        logged and they are in memory.

    Raises:
        ConfigError: an instruction leaves no room, see ``PairEncoder.encode``.
    """

    def in_memory() -> TokenStore:
        file = io.BytesIO()
        writer = ArrowWriter(file, _schema())
        _encode(writer, examples, encoder, workers)
        writer.close()
        return TokenStore(file.getvalue())

    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if cache is None or backend is None or not isinstance(examples, ExampleStore):
        return in_memory()
    # a row that a sample holds several times is encoded once
    rows, first, positions = np.unique(examples.rows, return_index=True, return_inverse=True)
    key = {
        "code": [inspect.getsource(module) for module in (templates, sys.modules[__name__])],
        "schema": str(_schema()),
        "rows": examples.folder.name,
        "chosen": hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest(),
        "tokenizer": [type(encoder.tokenizer).__name__, backend.to_str()],
        "template": encoder.template.to_dict(),
        "max_length": encoder.max_length,
    }

    def make(folder: Path) -> None:
        with arrow_file(folder / TOKENS, _schema()) as writer:
            _encode(writer, examples.select(first), encoder, workers)
        write_marker(folder, META, {})

    def read(folder: Path) -> TokenStore:
        read_marker(folder, META)
        return TokenStore(folder / TOKENS, positions)

    try:
        return cached(cache / "tokens" / digest(key), make, read, rebuild=rebuild)
    except OSError as error:
        logger.warning(
            "tokens cannot be kept in %s (%s), so they are made in memory; name another folder "
            "with --cache_dir",
            cache,
            error.strerror or error,
        )
        return in_memory()
