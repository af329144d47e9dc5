"""First stages: BM25 and dense retrieval over a corpus, with exact scores.

Neither depends on how the work is cut up: a query's list is the same whatever is searched beside
it, and equal scores stand in the order of the corpus.

Shape legend: ``N`` documents that are searched, ``D`` documents of one list, ``Q`` queries of a
block, ``H`` size of an embedding.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwright.data.readers import FirstStage, iter_documents
from rankwright.errors import CheckpointError, ConfigError
from rankwright.files import expanded
from rankwright.hub import refuse_pickles
from rankwright.progress import tracked

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# k of reciprocal rank fusion, from the paper
FUSION_K = 60

# the lists of bm25s by language
STOPWORDS = {
    "da": "STOPWORDS_DANISH",
    "de": "STOPWORDS_GERMAN",
    "en": "STOPWORDS_EN",
    "en_plus": "STOPWORDS_EN_PLUS",
    "es": "STOPWORDS_SPANISH",
    "fr": "STOPWORDS_FRENCH",
    "it": "STOPWORDS_ITALIAN",
    "ko": "STOPWORDS_KOREAN",
    "nl": "STOPWORDS_DUTCH",
    "no": "STOPWORDS_NORWEGIAN",
    "pt": "STOPWORDS_PORTUGUESE",
    "ru": "STOPWORDS_RUSSIAN",
    "sv": "STOPWORDS_SWEDISH",
    "tr": "STOPWORDS_TURKISH",
    "zh": "STOPWORDS_CHINESE",
}

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")


def s_stem(term: str) -> str:
    """Take off the plural s: Harman (1991), "How effective is suffixing?", without exceptions."""
    if term.endswith("ies") and len(term) > 4:
        return term[:-3] + "y"
    return term[:-1] if len(term) > 3 and term[-1] == "s" and term[-2] not in "su" else term


class Analyzer:
    """From a text to the terms that BM25 counts.

    Words of two characters or more and numbers, in lower case and compatibility form (NFKC);
    Chinese, Japanese and Korean as overlapping pairs of characters, as Lucene's CJK analyzer has
    them.

    Args:
        stopwords: a list of bm25s by language, such as ``en``; ``none`` for none.
        stemmer: ``s`` takes off the English plural s, ``none`` nothing.

    Raises:
        ConfigError: there is no such list or stemmer, or bm25s is not installed.
    """

    def __init__(self, stopwords: str = "en", stemmer: str = "s") -> None:
        if stemmer not in ("s", "none"):
            raise ConfigError(f"--bm25_stemmer {stemmer!r} is not known; give s or none")
        self.stem = s_stem if stemmer == "s" else None
        self.stopwords: frozenset[str] = frozenset()
        if stopwords != "none":
            if stopwords not in STOPWORDS:
                raise ConfigError(
                    f"--bm25_stopwords {stopwords!r} is not known; choose from none, "
                    f"{', '.join(STOPWORDS)}"
                )
            lists = import_bm25s("--method bm25", "mine").stopwords
            self.stopwords = frozenset(getattr(lists, STOPWORDS[stopwords]))

    def __call__(self, text: str) -> list[str]:
        """The terms of a text, in its order."""
        terms: list[str] = []
        for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower()):
            if _IS_CJK.match(word):
                terms += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
            elif word not in self.stopwords and (len(word) > 1 or word.isdigit()):
                terms.append(self.stem(word) if self.stem else word)
        return terms


def import_bm25s(why: str, extra: str) -> Any:
    """The package bm25s, quiet.

    Raises:
        ConfigError: it is not installed; the message says what for and which extra brings it.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ConfigError(
            f"{why} needs bm25s, which is not installed; run: pip install 'rankwright[{extra}]'"
        ) from error
    # on import it sets its logger to say every step
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


class BM25:
    """BM25 in Lucene's form (Kamphuis et al. 2020), computed by bm25s in float32.

    The score of a document is the sum over the query's terms, repeated ones repeatedly, of
    ``idf · f / (f + k1 · (1 − b + b · length / mean length))`` with ``idf = ln(1 + (N − n + 0.5) /
    (n + 0.5))``, where ``f`` is the term's count in the document and ``n`` the documents with it.

    Args:
        documents: the ``N`` texts, read once.
        terms: from a text to its terms.
        k1: how soon repeated terms stop to count.
        b: how much long documents are held back.
        why: what needs it, for the message where bm25s is missing.
        extra: the extra that brings bm25s.

    Raises:
        ConfigError: bm25s is not installed.
    """

    def __init__(
        self,
        documents: Iterable[str],
        terms: Callable[[str], list[str]],
        *,
        k1: float = 1.5,
        b: float = 0.75,
        why: str = "--method bm25",
        extra: str = "mine",
    ) -> None:
        bm25s = import_bm25s(why, extra)
        self.terms = terms
        vocabulary: dict[str, int] = {}
        ids = [
            [vocabulary.setdefault(term, len(vocabulary)) for term in terms(text)]
            for text in documents
        ]
        self.size = len(ids)
        # documents without any term have nothing to index
        if not vocabulary:
            vocabulary[""] = 0
            ids[0].append(0)
        self.index: Any = bm25s.BM25(k1=k1, b=b)
        self.index.index((ids, vocabulary), show_progress=False)

    @classmethod
    def load(cls, folder: Path, terms: Callable[[str], list[str]]) -> BM25:
        """Read what ``save`` wrote."""
        found = cls.__new__(cls)
        found.terms = terms
        found.index = import_bm25s("--method bm25", "mine").BM25.load(folder, show_progress=False)
        found.size = found.index.scores["num_docs"]
        return found

    def save(self, folder: Path) -> None:
        """Write the index into a folder."""
        self.index.save(folder, show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        """The scores of all ``N`` documents."""
        known = [term for term in self.terms(query) if term in self.index.vocab_dict]
        if not known:
            return np.zeros(self.size, np.float32)
        result: NDArray[np.float32] = self.index.get_scores(known)
        return result


def best_documents(scores_N: NDArray[np.float32], k: int | None = None) -> Ints:
    """The documents with a score above 0, best first; equal scores in the order of the corpus.

    Args:
        scores_N: scores.
        k: how many at most; None for all.

    Returns:
        Their indices.
    """
    floor = np.float32(0)
    if k is not None and k < len(scores_N):
        floor = np.partition(scores_N, -k)[-k]
    found = np.flatnonzero((scores_N > 0) & (scores_N >= floor))
    order: Ints = found[np.argsort(-scores_N[found], kind="stable")][:k]
    return order


def bm25_first_stage(top_k: int) -> FirstStage:
    """BM25 over the corpus of a BEIR folder, as ``Analyzer`` and ``BM25`` have it by default.

    A query that stands in the corpus itself, with its id and text, is not found by itself (ArguAna,
    Quora; BEIR and MTEB leave it out, too).

    Args:
        top_k: documents of a query.

    Raises:
        ConfigError: bm25s is not installed.
    """
    import_bm25s("--first_stage bm25", "mine")

    def search(folder: Path, queries: Mapping[str, str]) -> dict[str, dict[str, float]]:
        ids: list[str] = []
        itself: dict[str, int] = {}

        def texts() -> Iterator[str]:
            with tracked("indexing for BM25", None) as advance:
                for identifier, text, _ in iter_documents(folder):
                    advance(1)
                    # behind its title, where it has one
                    if text.endswith(queries.get(identifier, "\0")):
                        itself[identifier] = len(ids)
                    ids.append(identifier)
                    yield text

        index = BM25(texts(), Analyzer())
        run: dict[str, dict[str, float]] = {}
        with tracked("BM25", len(queries)) as advance:
            for query_id, query in queries.items():
                scores_N = index.scores(query)
                if query_id in itself:
                    scores_N[itself[query_id]] = 0
                best = best_documents(scores_N, top_k).tolist()
                if best:
                    run[query_id] = {ids[n]: float(scores_N[n]) for n in best}
                advance(1)
        return run

    code = inspect.getsource(sys.modules[__name__])
    return FirstStage(search, top_k, ("bm25", code, version("bm25s"), version("PyStemmer")))


def dense_folder(name: str, *, use_hf: bool = True) -> Path:
    """The folder of a sentence-transformers model, by folder or id.

    Raises:
        ConfigError: the hub does not have it.
        CheckpointError: the folder is missing or holds no model.
    """
    from rankwright.hub import resolve_model

    # one without a transformer, such as static embeddings, has no config.json for it
    folder = expanded(name)
    return folder if (folder / "modules.json").is_file() else resolve_model(name, use_hf=use_hf)


def load_sentence_transformer(folder: Path) -> Any:
    """A sentence-transformers model.

    Raises:
        ConfigError: sentence-transformers is not installed, or the model's similarity is neither
            cosine nor dot.
        CheckpointError: the folder cannot be read.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            "--method dense needs sentence-transformers, which is not installed; run: pip install "
            "'rankwright[mine]'"
        ) from error
    refuse_pickles(folder, f"SentenceTransformer({str(folder)!r}).save({str(folder)!r})")
    quiet = logging.getLogger("sentence_transformers")
    level = quiet.level
    # a folder of plain transformers gets mean pooling, as sentence-transformers itself does it
    quiet.setLevel(logging.ERROR)
    try:
        model = SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"--dense_model {folder} cannot be loaded ({' '.join(str(error).split())}); give a "
            "folder that sentence-transformers wrote"
        ) from error
    finally:
        quiet.setLevel(level)
    similarity = str(model.similarity_fn_name)
    if similarity not in ("cosine", "dot"):
        raise ConfigError(
            f"--dense_model {folder} compares embeddings by {similarity}; only cosine and dot "
            "products are searched"
        )
    return model


def embed(
    model: Any, texts: Sequence[str], *, queries: bool, prompt: str | None, batch_size: int
) -> NDArray[np.float32]:
    """Embeddings of texts, of length 1 where the model compares by cosine.

    Args:
        model: of sentence-transformers.
        texts: the texts.
        queries: whether they are queries; models may have a prompt of their own for each side.
        prompt: text before each, in place of the model's own.
        batch_size: texts at a time.

    Returns:
        One row of ``H`` for each.
    """
    encode = model.encode_query if queries else model.encode_document
    found: NDArray[np.float32] = encode(
        list(texts),
        prompt=prompt,
        batch_size=batch_size,
        show_progress_bar=False,
        normalize_embeddings=str(model.similarity_fn_name) == "cosine",
        convert_to_numpy=True,
    )
    return np.asarray(found, np.float32)


def grid(longest: float) -> float:
    """The step that embeddings of at most this length are rounded to, see ``Dense``."""
    return 2.0 ** (math.ceil(math.log2(longest)) - 25) if longest > 0 else 1.0


def on_grid(values: NDArray[np.float32], step: float) -> Floats:
    """Embeddings rounded to multiples of a step."""
    rounded: Floats = np.round(values.astype(np.float64) / step) * step
    return rounded


class Dense:
    """Exact search by dot product, in blocks.

    Embeddings are rounded to multiples of 2⁻²⁵ of the longest one's length (rounded up to a power
    of two), finer than float32 holds the larger half of them. Products of two of these, and their
    sums, are then whole multiples of 2⁻⁵⁰ below 1: float64 holds them without rounding, in whatever
    order they are added. So scores depend neither on the blocks nor on the library that multiplies.

    Args:
        blocks: the embeddings of the documents, in blocks of rows, read anew for each search.
        longest: the length of the longest of them.
        device: of torch, where products are computed.
    """

    def __init__(
        self,
        blocks: Callable[[], Iterable[NDArray[np.float32]]],
        longest: float,
        device: str = "cpu",
    ) -> None:
        self.blocks = blocks
        self.step = grid(longest)
        # Apple's GPUs have no float64
        self.device = "cpu" if device.startswith("mps") else device

    def search(
        self, queries_QH: Floats, depths_Q: Ints, own: Sequence[Ints], size: int
    ) -> list[tuple[Ints, Floats, Floats]]:
        """Search a block of queries.

        Args:
            queries_QH: embeddings on their grid.
            depths_Q: how many documents each query is to have.
            own: documents whose scores are wanted besides, for each query.
            size: documents from this one on are not listed, only scored where they are ``own``.

        Returns:
            For each query its documents, best first, their scores, and the scores of ``own``.
        """
        import torch

        k = int(depths_Q.max(initial=1))
        count = len(queries_QH)
        queries = torch.from_numpy(queries_QH).to(self.device)
        rows, documents = np.zeros(0, np.int64), np.zeros(0, np.int64)
        scores = np.zeros(0)
        floors = torch.full((count, 1), -math.inf, dtype=torch.float64, device=self.device)
        own_scores = [np.zeros(len(ids)) for ids in own]
        start = 0
        for block in self.blocks():
            block_DH = on_grid(block, self.step)
            for row, ids in enumerate(own):
                here = (ids >= start) & (ids < start + len(block))
                if here.any():
                    own_scores[row][here] = block_DH[ids[here] - start] @ queries_QH[row]
            block_DH = block_DH[: max(0, size - start)]
            if len(block_DH):
                found_QD = queries @ torch.from_numpy(block_DH).to(self.device).T
                lowest = found_QD.topk(min(k, found_QD.shape[1])).values[:, -1:]
                hits = found_QD >= torch.maximum(floors, lowest)
                places = hits.nonzero().cpu().numpy()
                rows = np.concatenate([rows, places[:, 0]])
                documents = np.concatenate([documents, places[:, 1] + start])
                scores = np.concatenate([scores, found_QD[hits].cpu().numpy()])
                # equal scores by the order of the corpus
                order = np.lexsort((documents, -scores, rows))
                rows, documents, scores = rows[order], documents[order], scores[order]
                firsts = np.searchsorted(rows, np.arange(count))
                kept = np.arange(len(rows)) - firsts[rows] < k
                rows, documents, scores = rows[kept], documents[kept], scores[kept]
                ends = np.searchsorted(rows, np.arange(count), side="right")
                firsts = np.searchsorted(rows, np.arange(count))
                full = ends - firsts == k
                last = np.where(full, scores[ends - 1], -math.inf)
                floors = torch.from_numpy(last[:, None]).to(self.device)
            start += len(block)
        bounds = np.searchsorted(rows, np.arange(count + 1))
        results = []
        for row in range(count):
            part = slice(bounds[row], min(bounds[row + 1], bounds[row] + depths_Q[row]))
            results.append((documents[part], scores[part], own_scores[row]))
        return results


def cut_behind(documents: Ints, known: Collection[int], depth: int) -> int:
    """How long a list is that ends with the ``depth``-th document that is not known.

    Args:
        documents: a list, best first.
        known: documents that do not count.
        depth: how many others are wanted.

    Returns:
        The number of documents; all where there are not as many.
    """
    others = 0
    for place, document in enumerate(documents.tolist()):
        others += document not in known
        if others == depth:
            return place + 1
    return len(documents)


def fuse(
    lists: Sequence[tuple[Ints, Floats, Floats]], own: Ints, *, k: int = FUSION_K
) -> tuple[Ints, Floats, Floats]:
    """Reciprocal rank fusion (Cormack, Clarke & Büttcher 2009): ``Σ 1 / (k + rank)`` over lists.

    A document that a list lacks gets nothing from it. One of ``own`` that is no document of the
    corpus takes the rank that its score would have.

    Args:
        lists: documents, best first, their scores and those of ``own``, of each retriever.
        own: documents whose scores are wanted besides.
        k: of the formula.

    Returns:
        The union, best first (equal scores in the order of the corpus), its scores and those of
        ``own``.
    """
    sums: dict[int, float] = {}
    own_sums = np.zeros(len(own))
    for documents, scores, own_scores in lists:
        ranks = {document: rank for rank, document in enumerate(documents.tolist(), 1)}
        for document, rank in ranks.items():
            sums[document] = sums.get(document, 0.0) + 1 / (k + rank)
        for place, (document, score) in enumerate(zip(own.tolist(), own_scores, strict=True)):
            rank = ranks.get(document) or 1 + int((scores >= score).sum())
            if document in ranks or rank <= len(documents):
                own_sums[place] += 1 / (k + rank)
    fused = np.fromiter(sums, np.int64, len(sums))
    values = np.fromiter(sums.values(), np.float64, len(sums))
    order = np.lexsort((fused, -values))
    return fused[order], values[order], own_sums
