"""Do passages help on long documents? Cut, the best passage, and the mean of the best three.

    python benchmarks/passages.py MODEL --data medquad --queries 80

**Documents.** Pages of some hundred to two thousand words: all of MedQuAD's texts that answer
questions on one topic (a disease), in the order of its rows, as they once stood on a page of their
source.

**Queries.** Those of ``dev`` whose page has at least 400 words and whose answer is no part of its
first two texts: it lies behind what a model of 96 tokens sees of the page.

**Lists.** The first pages that BM25 finds for a query. Queries whose page it misses are counted and
left out of the means, as everywhere.

**Proof.** Passages of the first documents are also made by hand, from the tokenizer's ids, and
scored one at a time by plain transformers; the largest difference is printed, and nothing else is
if it is above 1e-4.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rankwright import Example, Passages, Reranker, load_examples
from rankwright.comparison import compare, differences_table, first_stage_lists
from rankwright.evaluation import evaluate_scores, metrics_table
from rankwright.progress import console
from rankwright.retrieval import BM25, Analyzer, best_documents
from rankwright.types import ScoredList

METRICS = ["ndcg@10", "mrr@10", "map"]
# words that say what is asked of a topic, not which topic: the form of MedQuAD's questions
FORM = """
    a about affected and are at being by can causes changes clinical diagnose do does done for
    genetic have how in information inherited is many of on or outlook people prevent related
    research risk s stages symptoms the there to treatments trials what who with you
"""
LONG, BEHIND = 400, 2
TOLERANCE = 1e-4


def main() -> None:
    """Rank the pages in three ways and print what each is worth."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", type=Path, help="a classification reranker's folder")
    parser.add_argument("--data", type=Path, required=True, help="medquad's folder")
    parser.add_argument("--queries", type=int, default=80)
    parser.add_argument("--candidates", type=int, default=10, help="pages of a list")
    parser.add_argument("--proof", type=int, default=20, help="documents scored by hand too")
    options = parser.parse_args()
    lists = page_lists(options.data, options.queries, options.candidates)
    words = sorted(len(page.split()) for example in lists for page in example.documents)
    console.print(
        f"{len(lists)} queries, {len(words)} pages of {words[0]} to {words[-1]} words (median "
        f"{words[len(words) // 2]})"
    )
    reader = Reranker.load(options.model, passages=Passages())
    prove(reader, options.model, lists, options.proof)
    scored: dict[str, Sequence[ScoredList]] = {"BM25": first_stage_lists(lists)}
    for name, passages in (
        ("cut", None),
        ("max", Passages()),
        ("mean3", Passages(pooling="mean3")),
    ):
        start = time.perf_counter()
        scored[name] = Reranker.load(options.model, passages=passages).score_examples(lists)
        console.print(f"{name}: {time.perf_counter() - start:.0f} s")
    table = {name: evaluate_scores(rows, METRICS).row for name, rows in scored.items()}
    console.print(metrics_table(table))
    for a, b in (("BM25", "cut"), ("BM25", "max"), ("cut", "max"), ("cut", "mean3")):
        console.print(f"A is {a}, B is {b}")
        found = compare(scored[a], scored[b], METRICS, name_a=a, name_b=b, seed=0)
        console.print(differences_table(found))


def topic(query: str) -> frozenset[str]:
    """What a question is about: its words without its form."""
    return frozenset(re.findall(r"[a-z0-9]+", query.lower())).difference(FORM.split())


def page_lists(folder: Path, queries: int, candidates: int) -> list[Example]:
    """The candidate lists over pages."""
    train, dev = (
        load_examples(next(folder.glob(f"{name}.jsonl*"))).examples for name in ("train", "dev")
    )
    parts: dict[frozenset[str], dict[str, None]] = defaultdict(dict)
    for example in [*train, *dev]:
        for text, label in zip(example.documents, example.labels, strict=True):
            if label > 0:
                parts[topic(example.query)][text] = None
    topics = list(parts)
    pages = ["\n".join(parts[t]) for t in topics]
    place = {t: i for i, t in enumerate(topics)}
    index = BM25(pages, Analyzer())
    lists = []
    for example in dev:
        asked = topic(example.query)
        answers = [t for t, y in zip(example.documents, example.labels, strict=True) if y > 0]
        first = set(list(parts[asked])[:BEHIND])
        if first & set(answers) or len(pages[place[asked]].split()) < LONG:
            continue
        scores_N = index.scores(example.query)
        found = best_documents(scores_N, candidates)
        # an answer may stand on the page of another topic too
        labels = [float(any(a in parts[topics[i]] for a in answers)) for i in found]
        lists.append(
            Example(
                example.query,
                [pages[i] for i in found],
                labels,
                query_id=example.query_id,
                first_stage_scores=scores_N[found].tolist(),
            )
        )
    reasons = Counter("found" if max(e.labels) else "missed" for e in lists)
    console.print(f"BM25 over {len(pages)} pages: {dict(reasons)}")
    return lists[:queries]


def prove(reranker: Reranker, folder: Path, lists: Sequence[Example], documents: int) -> None:
    """Score documents passage by passage through plain transformers, and compare."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pairs = [(e.query, page) for e in lists for page in e.documents][:documents]
    ours = reranker.score(pairs)
    largest, count = 0.0, 0
    for (query, page), score in zip(pairs, ours, strict=True):
        before = [tokenizer.cls_token_id, *ids_of(tokenizer, query), tokenizer.sep_token_id]
        ids = ids_of(tokenizer, page)
        room = reranker.loaded.spec.max_length - len(before) - 1
        step = room - room // 8
        starts = [*range(0, len(ids) - room, step), max(0, len(ids) - room)]
        count += len(starts)
        best = -torch.inf
        for start in starts:
            part = [*ids[start : start + room], tokenizer.sep_token_id]
            kinds = [0] * len(before) + [1] * len(part)
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([before + part]), token_type_ids=torch.tensor([kinds])
                ).logits
            best = max(best, logits.item())
        largest = max(largest, abs(best - float(score)))
    console.print(
        f"{len(pairs)} documents, {count} passages by hand: largest difference of a score "
        f"{largest:.1e}"
    )
    if not largest < TOLERANCE:
        raise SystemExit("the passages are not those made by hand; nothing was compared")


def ids_of(tokenizer: object, text: str) -> list[int]:
    """Token ids without the special ones."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    return ids


if __name__ == "__main__":
    main()
