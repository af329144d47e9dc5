"""Hard negatives: queries with positives and a corpus become rows to train on.

A retriever (BM25, a dense model, or both fused) lists the best documents for each query; what is
known as a positive is taken out, and filters leave out what may be one: the rank, the score, its
margin to the positive's score, and the same by a teacher reranker (positive-aware mining: Moreira
et al. 2024, NV-Retriever, arXiv 2407.15831; the margins are those of sentence-transformers'
``mine_hard_negatives``). Whatever is left out is counted by its reason.

**Resumable.** Finished pieces (corpus, index, embeddings, lists, rows) lie in a folder under names
that hold a digest of all they depend on; a run that was stopped goes on from them, and its result
is byte for byte that of an undisturbed one.

**The rank window.** ``range_max`` counts the documents that are no known positives; ``range_min``
those of them that the margins and score limits leave, so it skips the best of what could be taken.
Both are as in sentence-transformers; for one positive a query the two agree.

Shape legend: ``N`` documents of the corpus, ``D`` documents of one list, ``Q`` queries of a block,
``H`` size of an embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from rankwright import retrieval
from rankwright.arguments import (
    MiningArguments,
    check_mining_arguments,
    check_output_file,
    unknown_argument,
)
from rankwright.data import readers
from rankwright.data.cache import META, arrow_file, cached, digest
from rankwright.data.readers import BadRows, file_stamp
from rankwright.data.store import load_store
from rankwright.errors import ConfigError, DataError
from rankwright.files import LOCK, HeldError, locked, read_marker, replacing, write_marker
from rankwright.progress import console, tracked
from rankwright.retrieval import BM25, Analyzer, Dense, Floats, Ints
from rankwright.types import Example

logger = logging.getLogger(__name__)

# a piece of work that is kept: queries searched, documents embedded; what a kill can cost
QUERY_BLOCK = 512
DOCUMENT_BLOCK = 2048
# a teacher takes seconds for a query: its pieces are of about so many pairs
TEACHER_PAIRS = 1024

OUTSIDE = "outside the rank window"
POSITIVE = "known positive of the query"
OWN_NEGATIVE = "negative of the row already"
DUPLICATE = "text of another candidate"
ABOVE = "score above --max_score"
BELOW = "score below --min_score"
ABSOLUTE = "within --absolute_margin of the positive"
RELATIVE = "within --relative_margin of the positive"
TEACHER_ABOVE = "teacher: probability above --teacher_max"
TEACHER_ABSOLUTE = "teacher: within --teacher_absolute_margin of the positive"
TEACHER_RELATIVE = "teacher: within --teacher_relative_margin of the positive"
NOT_NEEDED = "enough negatives found without it"

EMPTY_DOCUMENT = "empty document of the corpus"
BAD_ROW = "row of the corpus that cannot be read"
REPEATED_DOCUMENT = "document of the corpus given twice"
NO_POSITIVE = "query without a positive"
NO_NEGATIVE = "query without a negative that is left"
CONTRADICTION = "negative of a row that is a positive of its query"
REPEATED_POSITIVE = "positive repeated in its row"

DEFAULT_TEACHER_MARGIN = 0.05


# -------------------------------------------------------------------------------------- the report


@dataclass(slots=True)
class MiningReport:
    """What came in, what was left out and why, what came out.

    Attributes:
        queries: rows read.
        rows: rows written.
        corpus: documents searched.
        positives: of the rows that were searched for.
        positives_in_corpus: of these, by id or text.
        positives_with_another_text: of these, found by their id, where the corpus's text differs.
        positives_found: of these, in the retrieved lists.
        considered: documents of all retrieved lists.
        dropped: of these, what did not become a negative, by reason.
        negatives: of these, what did; ``considered`` is their number and that of ``dropped``.
        kept_negatives: negatives that the rows brought along, with ``--keep_negatives``.
        negatives_per_query: number of mined negatives -> queries that have so many.
        short: queries with a positive and fewer than ``--number`` mined negatives.
        lists_without_positive: candidate lists in which no positive was found.
        rows_dropped: rows and documents left out before or after, by reason.
        candidates: whether lists were written, in place of sampled negatives.
        arguments: what was asked for, defaults filled in.
    """

    queries: int = 0
    rows: int = 0
    corpus: int = 0
    positives: int = 0
    positives_in_corpus: int = 0
    positives_with_another_text: int = 0
    positives_found: int = 0
    considered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    negatives: int = 0
    kept_negatives: int = 0
    negatives_per_query: dict[int, int] = field(default_factory=dict)
    short: int = 0
    lists_without_positive: int = 0
    rows_dropped: dict[str, int] = field(default_factory=dict)
    candidates: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    def table(self) -> Table:
        """The report for the screen."""
        table = Table(title="mining", show_header=False)
        table.add_column("")
        table.add_column("", justify="right")

        def row(name: str, value: int, whole: int | None = None) -> None:
            share = f"  ({value / whole:.1%})" if whole else ""
            table.add_row(name, f"{value:,}{share}")

        row("queries read", self.queries)
        row("documents of the corpus", self.corpus)
        row("positives", self.positives)
        row("  in the corpus", self.positives_in_corpus, self.positives)
        if self.positives_with_another_text:
            row("  by id, with another text", self.positives_with_another_text)
        row("  among the retrieved documents", self.positives_found, self.positives)
        row("rows written", self.rows)
        row("documents retrieved", self.considered)
        if self.candidates:
            row("lists without a positive", self.lists_without_positive, self.rows)
            return table
        row("  negatives", self.negatives, self.considered)
        for reason, number in sorted(self.dropped.items(), key=lambda item: -item[1]):
            row(f"  {reason}", number, self.considered)
        if self.kept_negatives:
            row("negatives kept from the rows", self.kept_negatives)
        row("queries with fewer than asked for", self.short)
        shown = sorted(self.negatives_per_query.items())
        for number, queries in shown if len(shown) <= 12 else [*shown[:6], *shown[-6:]]:
            row(f"  queries with {number} negatives", queries)
        return table


@dataclass(frozen=True, slots=True)
class MiningResult:
    """What ``mine`` wrote.

    Attributes:
        output: the rows.
        report_file: the report as JSON.
        report: the report.
    """

    output: Path
    report_file: Path
    report: MiningReport


# --------------------------------------------------------------------------------- pieces of work


def _piece(path: Path, make: Callable[[], Any]) -> Any:
    """An Arrow table that is made once."""
    import pyarrow as pa

    def read() -> Any:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()

    with contextlib.suppress(FileNotFoundError, pa.ArrowInvalid):
        return read()
    table = make()
    with replacing(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return read()


def _blocks(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _key(text: str) -> bytes:
    """What makes two texts the same: their words, whatever space is between them."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def _stamps(files: Iterable[Path]) -> list[tuple[str, str, int, int]]:
    return [file_stamp(path) for path in files]


def _folder_stamps(folder: Path) -> list[tuple[str, str, int, int]]:
    return _stamps(path for path in sorted(folder.rglob("*")) if path.is_file())


class _Corpus:
    """The documents, mapped into memory.

    Args:
        folder: what ``_write_corpus`` filled.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self.meta = read_marker(folder, META)
        with pa.memory_map(str(folder / "documents.arrow")) as source:
            table = pa.ipc.open_stream(source).read_all()
        self._ids, self._texts = table.column("id"), table.column("text")

    def __len__(self) -> int:
        return len(self._ids)

    def id(self, index: int) -> str:
        found: str = self._ids[index].as_py()
        return found

    def text(self, index: int) -> str:
        found: str = self._texts[index].as_py()
        return found

    def texts(self, block: range) -> list[str]:
        found: list[str] = self._texts.slice(block.start, len(block)).to_pylist()
        return found

    def ids(self, block: range) -> list[str]:
        found: list[str] = self._ids.slice(block.start, len(block)).to_pylist()
        return found


def _write_corpus(
    folder: Path, documents: Iterable[tuple[str, str, str]], bad_rows: BadRows
) -> None:
    import pyarrow as pa

    first_refused = len(bad_rows.refused)

    schema = pa.schema({"id": pa.string(), "text": pa.string()})
    seen: dict[str, bytes] = {}
    counts: Counter[str] = Counter()
    with (
        arrow_file(folder / "documents.arrow", schema) as writer,
        tracked("reading the corpus", None) as advance,
    ):
        for identifier, text, place in documents:
            advance(1)
            if not text.strip():
                counts[EMPTY_DOCUMENT] += 1
                continue
            key = _key(text)
            before = seen.setdefault(identifier, key)
            if before is not key:
                if before != key:
                    error = DataError(
                        f"{place}: the document id {identifier!r} stands at another text before; "
                        "give each document an id of its own"
                    )
                    bad_rows.refuse(error, place, text)
                    continue
                counts[REPEATED_DOCUMENT] += 1
                continue
            writer.write({"id": identifier, "text": text}, len(text))
    refused = [dataclasses.astuple(row) for row in bad_rows.refused[first_refused:]]
    counts[BAD_ROW] += len(refused)
    write_marker(folder, META, {"counts": dict(+counts), "refused": refused})


def _documents_of(examples: Sequence[Example]) -> Iterator[tuple[str, str, str]]:
    """The documents of the rows, each once, by id where they have ids."""
    seen: set[str] = set()
    for example in examples:
        ids = example.document_ids or [f"text:{_key(text).hex()}" for text in example.documents]
        for identifier, text in zip(ids, example.documents, strict=True):
            if identifier not in seen:
                seen.add(identifier)
                yield identifier, text, example.source


# ------------------------------------------------------------------- which documents are positives


@dataclass(slots=True)
class _Asked:
    """A query that is searched for.

    Attributes:
        example: its place among the examples.
        positions: its own documents (positives, kept negatives): their places in the example.
        own: the same as documents of the corpus, or of what was added behind it.
        known: documents of the corpus that are positives of this query, in any row -> label.
        positive_keys: texts of all positives of this query.
    """

    example: int
    positions: list[int]
    own: Ints
    known: dict[int, float]
    positive_keys: frozenset[bytes]


@dataclass(slots=True)
class _Links:
    """All queries that are searched for, and the texts that are only scored.

    Attributes:
        asked: the queries with a positive.
        extra: documents of the rows that the corpus lacks.
        extra_ids: their ids.
        counts: fields of ``MiningReport``.
        dropped: by reason.
    """

    asked: list[_Asked]
    extra: list[str]
    extra_ids: list[str]
    counts: Counter[str]
    dropped: Counter[str]


@dataclass(slots=True)
class _Own:
    """A document of a row: where it stands, what it is."""

    position: int
    id: str | None
    key: bytes
    label: float


def _link(examples: Sequence[Example], corpus: _Corpus, keep_negatives: bool) -> _Links:
    """Find the documents of the rows in the corpus: by id where they have ids, else by text."""
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    rows: list[tuple[int, bytes, list[_Own]]] = []
    positives_of: dict[bytes, list[_Own]] = {}
    for number, example in enumerate(examples):
        ids_D: Sequence[str | None] = example.document_ids or [None] * len(example.documents)
        texts = zip(ids_D, example.documents, example.labels, strict=True)
        own = [
            _Own(place, identifier, _key(text), label)
            for place, (identifier, text, label) in enumerate(texts)
            if label > 0 or keep_negatives
        ]
        if not any(document.label > 0 for document in own):
            dropped[NO_POSITIVE] += 1
            continue
        query = _key(example.query)
        rows.append((number, query, own))
        pool = positives_of.setdefault(query, [])
        pool += (document for document in own if document.label > 0)
    ids: dict[str, tuple[int, bytes]] = {}
    by_text: dict[bytes, list[int]] = {}
    wanted_ids = {document.id for _, _, own in rows for document in own if document.id is not None}
    wanted_keys = {document.key for _, _, own in rows for document in own}
    for block in _blocks(len(corpus), DOCUMENT_BLOCK):
        for index, identifier, text in zip(
            block, corpus.ids(block), corpus.texts(block), strict=True
        ):
            key = _key(text)
            if key in wanted_keys:
                by_text.setdefault(key, []).append(index)
            if identifier in wanted_ids:
                ids[identifier] = (index, key)

    extra: dict[bytes, int] = {}
    extra_texts: list[str] = []
    extra_ids: list[str] = []

    def target(document: _Own, example: Example) -> int:
        if document.id in ids:
            return ids[document.id][0]
        if document.key in by_text:
            return by_text[document.key][0]
        if document.key not in extra:
            extra[document.key] = len(corpus) + len(extra_texts)
            extra_texts.append(example.documents[document.position])
            extra_ids.append(document.id or f"not-in-corpus:{len(extra_texts)}")
        return extra[document.key]

    asked = []
    for number, query, own in rows:
        example = examples[number]
        known: dict[int, float] = {}
        for document in positives_of[query]:
            places = list(by_text.get(document.key, ()))
            if document.id in ids:
                places.append(ids[document.id][0])
            for place in places:
                known[place] = max(known.get(place, 0.0), document.label)
        keys = frozenset(document.key for document in positives_of[query])
        chosen: dict[int, int] = {}
        for document in own:
            place = target(document, example)
            negative = not document.label > 0
            if negative and (place in known or document.key in keys):
                dropped[CONTRADICTION] += 1
                continue
            if place in chosen:
                dropped[REPEATED_POSITIVE] += not negative
                continue
            chosen[place] = document.position
            if negative:
                counts["kept_negatives"] += 1
                continue
            counts["positives"] += 1
            counts["positives_in_corpus"] += place < len(corpus)
            if document.id in ids and ids[document.id][1] != document.key:
                counts["positives_with_another_text"] += 1
        asked.append(
            _Asked(number, list(chosen.values()), np.fromiter(chosen, np.int64), known, keys)
        )
    return _Links(asked, extra_texts, extra_ids, counts, dropped)


# ------------------------------------------------------------------------------------ the filters


def first_stage_reasons(
    scores: Sequence[float], keys: Sequence[bytes], positive: float, given: MiningArguments
) -> list[str | None]:
    """Why candidates are left out.

    Args:
        scores: of the ``D`` documents that are no known positives, best first.
        keys: what their texts are told apart by.
        positive: the lowest score of the row's positives.
        given: the limits.

    Returns:
        A reason for each, or None.
    """
    limits = (
        (ABOVE, given.max_score),
        (ABSOLUTE, None if given.absolute_margin is None else positive - given.absolute_margin),
        (
            RELATIVE,
            # a share of the magnitude, since scores may be below 0
            None
            if given.relative_margin is None
            else positive - abs(positive) * given.relative_margin,
        ),
    )
    seen: set[bytes] = set()
    found: list[str | None] = []
    skipped = 0
    for rank, (score, key) in enumerate(zip(scores, keys, strict=True)):
        if rank >= _range_max(given):
            found.append(OUTSIDE)
            continue
        reason = next((why for why, most in limits if most is not None and score > most), None)
        if reason is None and given.min_score is not None and score < given.min_score:
            reason = BELOW
        if key in seen:
            reason = DUPLICATE
        seen.add(key)
        if reason is None and skipped < given.range_min:
            skipped += 1
            reason = OUTSIDE
        found.append(reason)
    return found


def teacher_reason(probability: float, positive: float, given: MiningArguments) -> str | None:
    """Why the teacher leaves a candidate out.

    Args:
        probability: sigmoid of the teacher's score.
        positive: the lowest of the row's positives.
        given: the limits.

    Returns:
        A reason, or None.
    """
    if given.teacher_max is not None and probability > given.teacher_max:
        return TEACHER_ABOVE
    absolute, relative = given.teacher_absolute_margin, _teacher_margin(given)
    if absolute is not None and probability > positive - absolute:
        return TEACHER_ABSOLUTE
    if relative is not None and probability > positive * (1 - relative):
        return TEACHER_RELATIVE
    return None


def _range_max(given: MiningArguments) -> int:
    if given.range_max is not None:
        return given.range_max
    return given.range_min + max(100, 10 * given.number)


def _teacher_margin(given: MiningArguments) -> float | None:
    if given.teacher is None or given.candidates is not None:
        return None
    if given.teacher_relative_margin is None and (
        given.teacher_max is None and given.teacher_absolute_margin is None
    ):
        return DEFAULT_TEACHER_MARGIN
    return given.teacher_relative_margin


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def draw_order(count: int, seed: int, query_id: str) -> list[int]:
    """A random order that depends on the seed and the query alone."""
    number = hashlib.blake2b(f"{seed}:{query_id}".encode(), digest_size=8).digest()
    order = np.random.default_rng(int.from_bytes(number, "big")).permutation(count)
    return [int(place) for place in order]


# ---------------------------------------------------------------------------------------- the run


@dataclass(slots=True)
class _Query:
    """A query on its way through the filters."""

    asked: _Asked
    example: Example
    own_scores: list[float]
    queue: list[tuple[int, float]]
    taken: list[tuple[int, float]] = field(default_factory=list)
    teacher: dict[int, float] = field(default_factory=dict)
    floor: float = 0.0
    next: int = 0


class _Run:
    """One call of ``mine``."""

    def __init__(self, given: MiningArguments, work: Path) -> None:
        self.given = given
        self.work = work
        self.bad_rows = BadRows(given.on_bad_row, given.max_bad_rows)
        self.depth = given.candidates or _range_max(given)
        self.code = [inspect.getsource(module) for module in (retrieval, inspect.getmodule(_Run))]  # type: ignore[arg-type]
        data = load_store(
            given.queries,
            work,
            data_format=given.data_format,
            split=given.split,
            use_hf=given.use_hf,
            purpose="mine",
            bad_rows=self.bad_rows,
        )
        self.examples = data.examples
        self.read_report = data.report
        self.queries_key = self._queries_key()
        self.corpus_key, self.corpus = self._corpus()
        self.links = _link(self.examples, self.corpus, given.keep_negatives)
        if not self.links.asked:
            raise DataError(
                f"none of the {len(self.examples)} queries has a positive, so nothing can be "
                "mined; give rows with positives"
            )
        self.texts_key = digest([self.corpus_key, [_key(text).hex() for text in self.links.extra]])

    # --- inputs

    def _queries_key(self) -> str:
        total = hashlib.blake2b(digest_size=16)
        for example in self.examples:
            values = dataclasses.asdict(example)
            del values["source"]  # where they lie changes nothing
            total.update(json.dumps(values).encode())
        return total.hexdigest()

    def _corpus(self) -> tuple[str, _Corpus]:
        given = self.given
        source = given.corpus or readers.corpus_of(given.queries, use_hf=given.use_hf)
        documents: Iterable[tuple[str, str, str]]
        if source is None:
            key = digest([self.code, self.queries_key])
            documents = _documents_of(self.examples)
        else:
            files, complete = readers.source_files([source], use_hf=given.use_hf)
            if not complete:
                raise ConfigError(
                    f"--corpus {source} is neither a file nor a folder; save it to a file"
                )
            key = digest([self.code, source, _stamps(files)])
            documents = readers.iter_documents(source, use_hf=given.use_hf, bad_rows=self.bad_rows)
        bad, before = self.bad_rows, len(self.bad_rows.refused)
        skipped = bad.on_bad_row == "skip" and bad.max_bad_rows - bad.lines
        folder = self.work / "corpus" / digest([key, skipped])
        corpus = cached(folder, lambda part: _write_corpus(part, documents, bad), _Corpus)
        bad.go_back(before, (readers.Refused(*row) for row in corpus.meta["refused"]))
        if not len(corpus):
            raise DataError(f"--corpus {source} holds no document with a text; give another")
        return key, corpus

    def _all_texts(self, block: range) -> list[str]:
        """Documents of the corpus and, behind them, those that it lacks."""
        size = len(self.corpus)
        inside = range(block.start, min(block.stop, size))
        behind = self.links.extra[max(0, block.start - size) : max(0, block.stop - size)]
        return (self.corpus.texts(inside) if inside else []) + behind

    @property
    def _total(self) -> int:
        return len(self.corpus) + len(self.links.extra)

    # --- retrieval

    def lists(self, method: str) -> Path:
        """Search with one retriever; the folder of its lists, a file for each block of queries."""
        return self._bm25() if method == "bm25" else self._dense()

    def _lists_folder(self, method: str, key: Any) -> Path:
        values = [self.code, key, self.texts_key, self.queries_key, self.depth, QUERY_BLOCK]
        return self.work / method / digest([*values, self.given.keep_negatives])

    def _bm25(self) -> Path:
        given = self.given
        options = [given.bm25_stopwords, given.bm25_stemmer, given.bm25_k1, given.bm25_b]
        retrieval.import_bm25s("--method bm25", "mine")
        terms = Analyzer(given.bm25_stopwords, given.bm25_stemmer)

        def make(folder: Path) -> None:
            with tracked("indexing for BM25", self._total) as advance:

                def texts() -> Iterator[str]:
                    for block in _blocks(self._total, DOCUMENT_BLOCK):
                        yield from self._all_texts(block)
                        advance(len(block))

                BM25(texts(), terms, k1=given.bm25_k1, b=given.bm25_b).save(folder)
            write_marker(folder, META, {})

        def read(folder: Path) -> BM25:
            read_marker(folder, META)
            return BM25.load(folder, terms)

        index = cached(
            self.work / "bm25-index" / digest([self.code, self.texts_key, options]), make, read
        )
        folder = self._lists_folder("bm25", options)
        size = len(self.corpus)

        def search(block: range) -> list[tuple[Ints, Floats, Floats]]:
            found = []
            for asked in (self.links.asked[i] for i in block):
                scores = index.scores(self.examples[asked.example].query)
                best = retrieval.best_documents(scores[:size], self.depth + len(asked.known))
                found.append((best, scores[best].astype(float), scores[asked.own].astype(float)))
            return found

        self._search(folder, "BM25", search)
        return folder

    def _dense(self) -> Path:
        given = self.given
        model_folder = retrieval.dense_folder(str(given.dense_model), use_hf=given.use_hf)
        model = retrieval.load_sentence_transformer(model_folder)
        stamps = _folder_stamps(model_folder)
        options = [stamps, given.dense_batch_size, DOCUMENT_BLOCK, QUERY_BLOCK]
        documents_key = digest([self.code, self.texts_key, options, given.document_prompt])
        queries_key = digest([self.code, self.queries_key, options, given.query_prompt])

        def embedded(
            key: str, what: str, block: range, texts: Callable[[], list[str]]
        ) -> np.ndarray[Any, np.dtype[np.float32]]:
            import pyarrow as pa

            def make() -> Any:
                found = retrieval.embed(
                    model,
                    texts(),
                    queries=what == "queries",
                    prompt=given.query_prompt if what == "queries" else given.document_prompt,
                    batch_size=given.dense_batch_size,
                )
                if not np.isfinite(found).all():
                    raise DataError(
                        f"--dense_model {given.dense_model} gives embeddings that are no finite "
                        "numbers; the model is broken"
                    )
                flat = pa.array(found.reshape(-1))
                values = pa.FixedSizeListArray.from_arrays(flat, found.shape[1])
                return pa.table({"embedding": values})

            path = self.work / f"embedded-{what}" / key / f"{block.start:09d}.arrow"
            column = _piece(path, make).column("embedding").combine_chunks()
            flat: np.ndarray[Any, np.dtype[np.float32]] = column.flatten().to_numpy()
            return flat.reshape(len(block), -1)

        def of_documents(block: range) -> np.ndarray[Any, np.dtype[np.float32]]:
            return embedded(documents_key, "documents", block, lambda: self._all_texts(block))

        def of_queries(block: range) -> np.ndarray[Any, np.dtype[np.float32]]:
            def texts() -> list[str]:
                return [self.examples[self.links.asked[i].example].query for i in block]

            return embedded(queries_key, "queries", block, texts)

        document_blocks = _blocks(self._total, DOCUMENT_BLOCK)
        query_blocks = _blocks(len(self.links.asked), QUERY_BLOCK)
        longest: dict[str, float] = {}
        for what, blocks, get, total in (
            ("documents", document_blocks, of_documents, self._total),
            ("queries", query_blocks, of_queries, len(self.links.asked)),
        ):
            with tracked(f"embedding {what}", total) as advance:
                norms = []
                for block in blocks:
                    norms.append(float(np.linalg.norm(get(block).astype(float), axis=1).max()))
                    advance(len(block))
            longest[what] = max(norms)
        index = Dense(
            lambda: map(of_documents, document_blocks), longest["documents"], str(model.device)
        )
        step = retrieval.grid(longest["queries"])
        folder = self._lists_folder(
            "dense", [documents_key, queries_key, longest["queries"], longest["documents"]]
        )

        def search(block: range) -> list[tuple[Ints, Floats, Floats]]:
            asked = [self.links.asked[i] for i in block]
            depths = np.array([self.depth + len(one.known) for one in asked])
            queries = retrieval.on_grid(of_queries(block), step)
            return index.search(queries, depths, [one.own for one in asked], len(self.corpus))

        self._search(folder, "dense search", search)
        return folder

    def _search(
        self,
        folder: Path,
        title: str,
        search: Callable[[range], list[tuple[Ints, Floats, Floats]]],
    ) -> None:
        import pyarrow as pa

        def table(block: range) -> Any:
            columns: tuple[list[Any], ...] = ([], [], [])
            for i, (documents, scores, own) in zip(block, search(block), strict=True):
                end = retrieval.cut_behind(documents, self.links.asked[i].known, self.depth)
                for column, values in zip(
                    columns, (documents[:end], scores[:end], own), strict=True
                ):
                    column.append(values)
            kinds = (pa.int64(), pa.float64(), pa.float64())
            arrays = [
                pa.array(column, pa.list_(kind))
                for column, kind in zip(columns, kinds, strict=True)
            ]
            return pa.table(arrays, names=["documents", "scores", "own"])

        with tracked(title, len(self.links.asked)) as advance:
            for block in _blocks(len(self.links.asked), QUERY_BLOCK):
                _piece(folder / f"{block.start:09d}.arrow", lambda block=block: table(block))  # type: ignore[misc]
                advance(len(block))

    # --- rows

    def rows(self, folders: Sequence[Path]) -> Iterator[Any]:
        """The rows as Arrow tables, their counts in the schema's metadata."""
        given = self.given
        names = {f.name for f in dataclasses.fields(given)} - {"output", "work_dir", "queries"}
        teacher_stamps: list[Any] = []
        size = QUERY_BLOCK
        if given.teacher is not None:
            from rankwright.hub import resolve_model

            teacher_stamps = _folder_stamps(resolve_model(given.teacher, use_hf=given.use_hf))
            size = min(size, max(1, TEACHER_PAIRS // (given.candidates or _at_once(given.number))))
        key = digest(
            [
                self.code,
                [folder.name for folder in folders],
                {name: getattr(given, name) for name in sorted(names)},
                teacher_stamps,
                size,
            ]
        )
        score: Callable[[Sequence[Example]], list[list[float]]] | None = None

        def teacher(examples: Sequence[Example]) -> list[list[float]]:
            nonlocal score
            if score is None:
                score = _load_teacher(given)
            return score(examples)

        title = "choosing" if given.teacher is None else "scoring with the teacher"
        with tracked(title, len(self.links.asked)) as advance:
            for whole in _blocks(len(self.links.asked), QUERY_BLOCK):
                for start in range(0, len(whole), size):
                    block = whole[start : start + size]
                    path = self.work / "mined" / key / f"{block.start:09d}.arrow"
                    yield _piece(
                        path,
                        lambda block=block: self._rows_of(block, folders, teacher),  # type: ignore[misc]
                    )
                    advance(len(block))

    def _rows_of(
        self,
        block: range,
        folders: Sequence[Path],
        teacher: Callable[[Sequence[Example]], list[list[float]]],
    ) -> Any:
        import pyarrow as pa

        counts: Counter[str] = Counter()
        # a piece of the lists holds QUERY_BLOCK queries
        first = block.start % QUERY_BLOCK
        found = [
            [
                tuple(np.array(row[name]) for name in ("documents", "scores", "own"))
                for row in _read_piece(
                    folder / f"{block.start - first:09d}.arrow", first, len(block)
                )
            ]
            for folder in folders
        ]
        queries = []
        for place, i in enumerate(block):
            asked = self.links.asked[i]
            lists: list[Any] = [method[place] for method in found]
            documents, scores, own = (
                lists[0] if len(lists) == 1 else retrieval.fuse(lists, asked.own)
            )
            queries.append(
                _Query(
                    asked,
                    self.examples[asked.example],
                    own.tolist(),
                    list(zip(documents.tolist(), scores.tolist(), strict=True)),
                )
            )
        if self.given.candidates is not None:
            self._take_lists(queries, counts)
        else:
            self._filter(queries, counts)
        if self.given.teacher is not None:
            self._ask_teacher(queries, teacher, counts)
        rows = []
        for query in queries:
            row = self._row(query, counts)
            if row is not None:
                rows.append(row)
        schema = _schema(self.given.teacher is not None)
        return pa.Table.from_pylist(
            rows, schema=schema.with_metadata({"counts": json.dumps(counts)})
        )

    def _take_lists(self, queries: Sequence[_Query], counts: Counter[str]) -> None:
        for query in queries:
            query.taken = query.queue[: self.given.candidates]
            query.queue = []
            counts["considered"] += len(query.taken)
            found = {document for document, _ in query.taken}
            positives = query.asked.own[self._is_positive(query)].tolist()
            counts["positives_found"] += sum(document in found for document in positives)

    def _is_positive(self, query: _Query) -> list[bool]:
        return [query.example.labels[position] > 0 for position in query.asked.positions]

    def _filter(self, queries: Sequence[_Query], counts: Counter[str]) -> None:
        """Leave in the queue what may become a negative, in the order in which it is taken."""
        given = self.given
        for query in queries:
            counts["considered"] += len(query.queue)
            asked = query.asked
            positive = self._is_positive(query)
            listed = {document for document, _ in query.queue}
            counts["positives_found"] += sum(
                document in listed for document in asked.own[positive].tolist()
            )
            others = [pair for pair in query.queue if pair[0] not in asked.known]
            counts[f"dropped:{POSITIVE}"] += len(query.queue) - len(others)
            keys = [_key(self.corpus.text(document)) for document, _ in others]
            lowest = min(
                score for score, yes in zip(query.own_scores, positive, strict=True) if yes
            )
            reasons = first_stage_reasons([score for _, score in others], keys, lowest, given)
            own = {
                _key(query.example.documents[position])
                for position, yes in zip(asked.positions, positive, strict=True)
                if not yes
            }
            passing = []
            for pair, key, reason in zip(others, keys, reasons, strict=True):
                if reason is None and (key in own or pair[0] in asked.own):
                    reason = OWN_NEGATIVE
                if reason is None:
                    passing.append(pair)
                else:
                    counts[f"dropped:{reason}"] += 1
            if given.sampling == "random":
                order = draw_order(len(passing), given.seed, query.example.query_id)
                passing = [passing[i] for i in order]
            query.queue = passing
            if given.teacher is None:
                query.taken = passing[: given.number]
                counts[f"dropped:{NOT_NEEDED}"] += len(passing) - len(query.taken)

    def _ask_teacher(
        self,
        queries: Sequence[_Query],
        teacher: Callable[[Sequence[Example]], list[list[float]]],
        counts: Counter[str],
    ) -> None:
        """Score candidates in their order until there are enough that pass."""
        given = self.given
        first = True
        while True:
            waiting: list[tuple[_Query, list[int]]] = []
            examples = []
            for query in queries:
                missing = given.number - len(query.taken)
                wanted = query.queue[query.next : query.next + _at_once(missing)]
                asked = [document for document, _ in wanted]
                if given.candidates is not None:
                    asked = [document for document, _ in query.taken]
                elif missing <= 0:
                    asked = []
                own = query.asked.positions if first and given.candidates is None else []
                if not asked and not own:
                    continue
                texts = [query.example.documents[position] for position in own]
                texts += [self.corpus.text(document) for document in asked]
                waiting.append((query, asked))
                examples.append(
                    Example(
                        query.example.query,
                        texts,
                        [0.0] * len(texts),
                        instruction=query.example.instruction,
                        query_id=query.example.query_id,
                    )
                )
            if not waiting:
                break
            for (query, asked), scores in zip(waiting, teacher(examples), strict=True):
                if first and given.candidates is None:
                    own_scores = scores[: len(query.asked.positions)]
                    for position, score in zip(query.asked.positions, own_scores, strict=True):
                        query.teacher[-1 - position] = score
                    query.floor = min(
                        _sigmoid(score)
                        for score, yes in zip(own_scores, self._is_positive(query), strict=True)
                        if yes
                    )
                    scores = scores[len(query.asked.positions) :]
                query.teacher.update(zip(asked, scores, strict=True))
                if given.candidates is None:
                    self._pass(query, len(asked), counts)
            if given.candidates is not None:
                break
            first = False
        for query in queries:
            counts[f"dropped:{NOT_NEEDED}"] += len(query.queue) - query.next

    def _pass(self, query: _Query, scored: int, counts: Counter[str]) -> None:
        for pair in query.queue[query.next : query.next + scored]:
            if len(query.taken) == self.given.number:
                return
            query.next += 1
            probability = _sigmoid(query.teacher[pair[0]])
            reason = teacher_reason(probability, query.floor, self.given)
            if reason is None:
                query.taken.append(pair)
            else:
                counts[f"dropped:{reason}"] += 1

    def _row(self, query: _Query, counts: Counter[str]) -> dict[str, Any] | None:
        """A row in the layout ``labels``, in the order of the first stage."""
        example, asked = query.example, query.asked
        size = len(self.corpus)
        parts: list[tuple[float, str, float, str, float | None]] = []
        if self.given.candidates is None:
            for position, target, score in zip(
                asked.positions, asked.own.tolist(), query.own_scores, strict=True
            ):
                name = (
                    self.corpus.id(target) if target < size else self.links.extra_ids[target - size]
                )
                label = example.labels[position]
                parts.append(
                    (
                        score,
                        example.documents[position],
                        label,
                        name,
                        query.teacher.get(-1 - position),
                    )
                )
            counts["negatives"] += len(query.taken)
            counts[f"negatives_per_query:{len(query.taken)}"] += 1
            counts["short"] += len(query.taken) < self.given.number
            if not query.taken and all(part[2] > 0 for part in parts):
                counts[f"rows_dropped:{NO_NEGATIVE}"] += 1
                return None
        for document, score in query.taken:
            label = asked.known.get(document, 0.0)
            parts.append(
                (
                    score,
                    self.corpus.text(document),
                    label,
                    self.corpus.id(document),
                    query.teacher.get(document),
                )
            )
        if self.given.candidates is not None:
            counts["lists_without_positive"] += not any(part[2] > 0 for part in parts)
            if not parts:
                counts[f"rows_dropped:{NO_CANDIDATE}"] += 1
                return None
        parts.sort(key=lambda part: -part[0])
        counts["rows"] += 1
        return {
            "query_id": example.query_id,
            "query": example.query,
            "instruction": example.instruction,
            "documents": [part[1] for part in parts],
            "labels": [part[2] for part in parts],
            "scores": [part[0] for part in parts],
            "teacher_scores": [part[4] for part in parts],
            "document_ids": [part[3] for part in parts],
        }

    def report(self, counts: Mapping[str, int]) -> MiningReport:
        """Put together what was counted."""
        links = self.links
        report = MiningReport(
            queries=len(self.examples),
            corpus=len(self.corpus),
            candidates=self.given.candidates is not None,
            arguments=dataclasses.asdict(self.given)
            | {"range_max": None if self.given.candidates else _range_max(self.given)}
            | {"teacher_relative_margin": _teacher_margin(self.given)},
        )
        plain = Counter(links.counts)
        rows_dropped = Counter(self.read_report.dropped) + links.dropped
        rows_dropped += Counter(self.corpus.meta["counts"])
        dropped: Counter[str] = Counter()
        per_query: Counter[int] = Counter()
        for name, number in counts.items():
            kind, _, rest = name.partition(":")
            if kind == "dropped":
                dropped[rest] += number
            elif kind == "rows_dropped":
                rows_dropped[rest] += number
            elif kind == "negatives_per_query":
                per_query[int(rest)] += number
            else:
                plain[name] += number
        for name, number in plain.items():
            setattr(report, name, number)
        report.dropped = {reason: n for reason, n in sorted(dropped.items()) if n}
        report.rows_dropped = {reason: n for reason, n in sorted(rows_dropped.items()) if n}
        report.negatives_per_query = dict(sorted(per_query.items()))
        return report


NO_CANDIDATE = "query for which nothing was found"


def _at_once(missing: int) -> int:
    """Candidates that a teacher scores for negatives that are missing; some will not pass."""
    return missing + missing // 2 + 1


def _read_piece(path: Path, first: int, count: int) -> list[dict[str, Any]]:
    """Some of the rows."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        rows: list[dict[str, Any]] = table.slice(first, count).to_pylist()
    return rows


def _schema(teacher: bool) -> Any:
    import pyarrow as pa

    numbers, texts = pa.list_(pa.float64()), pa.list_(pa.string())
    columns = {
        "query_id": pa.string(),
        "query": pa.string(),
        "instruction": pa.string(),
        "documents": texts,
        "labels": numbers,
        "scores": numbers,
        "teacher_scores": numbers,
        "document_ids": texts,
    }
    if not teacher:
        del columns["teacher_scores"]
    return pa.schema(columns)


def _load_teacher(given: MiningArguments) -> Callable[[Sequence[Example]], list[list[float]]]:
    from rankwright.ranking import Reranker

    assert given.teacher is not None
    options: dict[str, Any] = (
        {} if given.teacher_max_length is None else {"max_length": given.teacher_max_length}
    )
    reranker = Reranker.load(given.teacher, use_hf=given.use_hf, **options)

    def score(examples: Sequence[Example]) -> list[list[float]]:
        return [scored.scores for scored in reranker.score_examples(examples)]

    return score


# -------------------------------------------------------------------------------------- the output


def _write_rows(path: Path, tables: Iterable[Any], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(path) as file:
        if path.suffix == ".jsonl":
            for table in tables:
                for row in table.to_pylist():
                    values = {name: value for name, value in row.items() if value is not None}
                    values["labels"] = [int(y) if y.is_integer() else y for y in values["labels"]]
                    file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
            return
        writer: Any
        if path.suffix == ".arrow":
            writer = pa.ipc.new_stream(file, schema)  # as datasets writes it
        else:
            writer = pq.ParquetWriter(file, schema)
        with writer:
            for table in tables:
                if len(table):
                    writer.write_table(table.replace_schema_metadata(None))


def mine(arguments: MiningArguments | None = None, /, **given: Any) -> MiningResult:
    """Mine hard negatives.

    Args:
        arguments: all arguments; or give them by name:
        **given: the command line's arguments, such as ``queries=["rows.jsonl"]``,
            ``corpus="corpus.jsonl"``, ``output="mined.jsonl"``, ``number=7``; a single name of
            ``queries`` or ``method`` need not be a list.

    Returns:
        Where the rows and the report lie, and the report. Rows have the layout ``labels``: the
        row's positives and its negatives with ``scores`` of the first stage, in its order, their
        ids and, with a teacher, ``teacher_scores`` (logits).

    Raises:
        ConfigError: an argument is unknown or does not fit.
        DataError: rows or documents cannot be read.
        CheckpointError: a model cannot be read.

    Example:
        >>> result = mine(queries="rows.jsonl", output="mined.jsonl")  # doctest: +SKIP
        >>> result.report.negatives  # doctest: +SKIP
        7000
    """
    if arguments is None:
        known = [f.name for f in dataclasses.fields(MiningArguments)]
        for name in given:
            if name not in known:
                raise unknown_argument(name, known)
        for name in ("queries", "method"):
            if isinstance(given.get(name), str | Path):
                given[name] = [str(given[name])]
        plain: dict[str, Any] = {n: str(v) if isinstance(v, Path) else v for n, v in given.items()}
        arguments = MiningArguments(**plain)
    check_mining_arguments(arguments)
    output = Path(arguments.output)
    report_file = output.parent / f"{output.stem}.report.json"
    # what lies in a folder that is read may be the result of the run before
    files = readers.named_paths(arguments.queries)
    if arguments.corpus:
        files += readers.named_paths([arguments.corpus])
    check_output_file(
        "output", arguments.output, files, beside=[report_file, readers.refused_file(output)]
    )
    work = Path(arguments.work_dir or f"{output}.part")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with locked(work / LOCK, timeout=0):
            report = _mine(arguments, work, report_file)
            if arguments.work_dir is None:
                shutil.rmtree(work, ignore_errors=True)
        if not report.positives_in_corpus:
            logger.warning(
                "none of the %d positives stands in the corpus, by id or text: their twins in it "
                "may become negatives; check that the corpus is the one they come from",
                report.positives,
            )
    except OSError as error:
        raise ConfigError(
            f"--output {output}: {error.filename or work} cannot be written "
            f"({error.strerror or error}); choose another place"
        ) from error
    except HeldError as error:
        raise ConfigError(
            f"--output {output}: another run is using {work}; wait until it has ended, or choose "
            "another --output or --work_dir"
        ) from error
    return MiningResult(output, report_file, report)


def _mine(arguments: MiningArguments, work: Path, report_file: Path) -> MiningReport:
    """Find, write and report."""
    output = Path(arguments.output)
    run = _Run(arguments, work)
    folders = [run.lists(method) for method in arguments.method]
    counts: Counter[str] = Counter()

    def tables() -> Iterator[Any]:
        for table in run.rows(folders):
            counts.update(json.loads(table.schema.metadata[b"counts"]))
            yield table

    _write_rows(output, tables(), _schema(arguments.teacher is not None))
    for line in run.bad_rows.report(readers.refused_file(output)):
        console.print(line)
    report = run.report(counts)
    with replacing(report_file) as file:
        text = json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=1)
        file.write(text.encode() + b"\n")
    return report
