"""mteb's own evaluation around our reranker, on tasks whose data are made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb", reason="extra mteb")

import mteb
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import CrossEncoderProtocol

from rankwright import cli, mteb_tasks
from rankwright.errors import ConfigError
from rankwright.mteb_tasks import (
    TaskReranker,
    evaluate_tasks,
    find_tasks,
    load_task,
    rankable,
)
from rankwright.ranking import Reranker
from tests import tiny

PROMPT = "find ships"
NAMES = ["ndcg@10", "mrr@10", "map@10", "recall@10", "precision@3", "hit@1", "map@100"]
THEIRS = {
    "ndcg@10": "ndcg_at_10",
    "mrr@10": "mrr_at_10",
    "map@10": "map_at_10",
    "recall@10": "recall_at_10",
    "precision@3": "precision_at_3",
    "hit@1": "hit_rate_at_1",
    "map@100": "map_at_100",
}


def made_task(kind: str = "Reranking", name: str = "Made", **metadata: Any) -> Any:
    """A task in memory: 8 queries, 12 candidates each of 30 documents, graded judgements.

    Of each query's four relevant documents one is not among the candidates, as where a first stage
    missed it.
    """
    rows = tiny.examples(8, documents=30, seed=5, longest=12)
    corpus = {f"d{i}": text for i, text in enumerate(rows[0].documents)}
    ids = list(corpus)
    judged = {
        f"q{q}": {ids[(3 * q + i) % 30]: 1 + i % 2 for i in range(4)} for q in range(len(rows))
    }
    listed = {
        query: [*list(relevant)[:3], *[d for d in ids if d not in relevant][: 9 + q % 2]]
        for q, (query, relevant) in enumerate(judged.items())
    }

    class Made(AbsTaskRetrieval):
        pass

    Made.metadata = TaskMetadata(
        name=name,
        type=kind,
        main_score="ndcg_at_10",
        description="made",
        reference="https://example.org",
        dataset={"path": "none/none", "revision": "1"},
        category="t2t",
        modalities=metadata.pop("modalities", ["text"]),
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2026-01-01", "2026-01-01"),
        domains=[],
        task_subtypes=[],
        license="cc-by-4.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
        **({"prompt": {"query": PROMPT}} | metadata),
    )
    task = Made()
    task.dataset = {
        "default": {
            "test": {
                "corpus": Dataset.from_list(
                    [{"id": i, "title": "", "text": text} for i, text in corpus.items()]
                ),
                "queries": Dataset.from_list(
                    [{"id": f"q{q}", "text": row.query} for q, row in enumerate(rows)]
                ),
                "relevant_docs": judged,
                "top_ranked": listed if kind == "Reranking" else None,
            }
        }
    }
    task.data_loaded = True
    return task


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tiny.save_base(tmp_path_factory.mktemp("decoder"), "qwen3")
    return Reranker.load(folder, max_length=512)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    return Reranker.load(tiny.save_base(tmp_path_factory.mktemp("encoder"), "bert"))


def scored(folder: Path, name: str = "Made") -> dict[str, dict[str, float]]:
    values = json.loads((folder / "predictions" / f"{name}_predictions.json").read_text())
    return values["default"]["test"]


def test_the_protocol(decoder: Reranker) -> None:
    assert isinstance(TaskReranker(decoder, "me/model"), CrossEncoderProtocol)


def test_mteb_agrees_with_our_metrics(decoder: Reranker, tmp_path: Path) -> None:
    """Without ties, each of mteb's means is ours, judgements outside of the list included."""
    task = made_task()
    judged = task.dataset["default"]["test"]["relevant_docs"]
    finished: list[int] = []

    class Progress:
        def __init__(self, _: str) -> None: ...
        def __enter__(self) -> Any:
            return finished.append

        def __exit__(self, *_: object) -> None: ...

    (result,) = evaluate_tasks(
        decoder,
        {"Made": [task]},
        NAMES,
        model_name="me/model",
        output=tmp_path,
        progress=Progress,
    )
    assert (result.task, result.split, result.subset) == ("Made", "test", "default")
    assert sum(finished) == 8
    assert result.ours.tie_rate == 0
    assert result.ours.missed == 8
    assert result.value == result.scores["ndcg_at_10"]
    assert 0.05 < result.value < 0.95
    for name, theirs in THEIRS.items():
        # mteb rounds to five places
        assert result.ours.metrics[name] == pytest.approx(result.scores[theirs], abs=1.1e-5), name
    lists = scored(tmp_path)
    assert [len(lists[q]) for q in judged] == [12, 13] * 4
    assert result.ours.queries == 8
    (saved,) = (tmp_path / "results" / "me__model").rglob("Made.json")
    assert json.loads(saved.read_text())["scores"]["test"][0]["main_score"] == pytest.approx(
        result.value
    )


@pytest.mark.parametrize(
    ("prompt", "given", "expected"),
    [
        ({"query": PROMPT}, [], PROMPT),
        (PROMPT, [], PROMPT),
        (None, [], None),
        ({"document": "of documents"}, [], None),
        ({"query": PROMPT}, ["find dogs"], "find dogs"),
        ({"query": PROMPT}, [""], None),
    ],
)
def test_instructions(
    decoder: Reranker, tmp_path: Path, prompt: Any, given: list[str], expected: str | None
) -> None:
    """The task's prompt is the instruction; --instructions wins; '' is the model's own."""
    task = made_task(prompt=prompt)
    data = task.dataset["default"]["test"]
    texts = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    query = data["queries"]["text"][0]
    (result,) = evaluate_tasks(
        decoder, {"Made": [task]}, ["map"], model_name="m", instructions=given, output=tmp_path
    )
    assert result.instruction == expected
    found = scored(tmp_path)["q0"]
    pairs = [(query, texts[document]) for document in found]
    assert list(found.values()) == pytest.approx(
        decoder.score(pairs, instruction=expected), abs=1e-5
    )


def test_a_querys_own_instruction(decoder: Reranker, encoder: Reranker, tmp_path: Path) -> None:
    """Of instruction tasks: it wins over the prompt; a pair of texts gets it as mteb joins it."""
    for reranker, spoken in ((decoder, True), (encoder, False)):
        task = made_task(kind="Reranking")
        data = task.dataset["default"]["test"]
        own = [f"find {i}" if i % 2 else "" for i in range(8)]
        data["queries"] = data["queries"].add_column("instruction", own)
        texts = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
        queries = data["queries"]["text"]
        evaluate_tasks(reranker, {"Made": [task]}, ["map"], model_name="m", output=tmp_path)
        for q in (0, 1):
            found = scored(tmp_path)[f"q{q}"]
            joined = queries[q] if spoken else f"{queries[q]} {own[q]}"
            pairs = [(joined, texts[document]) for document in found]
            said = (own[q] or PROMPT) if spoken else None
            assert list(found.values()) == pytest.approx(
                reranker.score(pairs, instruction=said), abs=1e-5
            )


def test_retrieval_tasks_get_candidates(decoder: Reranker, tmp_path: Path) -> None:
    """BM25 finds them, and its own figures stand beside; predictions in a folder do the same."""
    pytest.importorskip("Stemmer", reason="extra mteb")
    results = []
    for output, first_stage in (
        (tmp_path / "a", None),
        (tmp_path / "b", str(tmp_path / "a" / "predictions" / "bm25")),
    ):
        (result,) = evaluate_tasks(
            decoder,
            {"Made": [made_task("Retrieval")]},
            NAMES,
            model_name="m",
            first_stage=first_stage,
            top_k=10,
            output=output,
        )
        results.append(result)
        assert {len(found) for found in scored(output).values()} == {10}
        assert result.ours.first_stage_metrics is not None
        for name, theirs in THEIRS.items():
            expected = result.scores[theirs]
            assert result.ours.metrics[name] == pytest.approx(expected, abs=1.1e-5), name
    assert results[0].ours.metrics == results[1].ours.metrics
    before = json.loads((tmp_path / "a/predictions/bm25/Made_predictions.json").read_text())
    found = before["default"]["test"]["q0"]
    assert set(scored(tmp_path / "a")["q0"]) == set(sorted(found, key=lambda d: -found[d])[:10])


def test_an_old_result_is_not_shown_again(
    decoder: Reranker, encoder: Reranker, tmp_path: Path
) -> None:
    """mteb keeps results by name; a model trained again has the same name and other scores."""
    found = [
        evaluate_tasks(
            reranker, {"Made": [made_task()]}, ["ndcg@10"], model_name="same", output=tmp_path
        )[0]
        for reranker in (decoder, encoder)
    ]
    assert found[0].value != found[1].value
    assert found[1].ours.metrics["ndcg@10"] == pytest.approx(found[1].value, abs=1.1e-5)


def test_names() -> None:
    found = find_tasks(["SciDocsRR", "NanoBEIR"])
    assert [task.metadata.name for task in found["SciDocsRR"]] == ["SciDocsRR"]
    assert len(found["NanoBEIR"]) == 13
    assert "NanoNQRetrieval" in {task.metadata.name for task in found["NanoBEIR"]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SciDocRR", r"'SciDocRR' is no task or benchmark of mteb; near ones are SciDocsRR"),
        ("zzzzzzzzz", r"no task or benchmark of mteb; see"),
        ("STSBenchmark", r"STSBenchmark is a STS task, which has no documents to rank; give"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_tasks([name])
    assert "\n" not in str(caught.value)


def test_tasks_of_images_are_refused() -> None:
    task = made_task(modalities=["text", "image"])
    with pytest.raises(ConfigError, match="is of text and image; give a task of texts"):
        rankable(task)


def test_data_that_cannot_be_fetched(encoder: Reranker, capsys: pytest.CaptureFixture[str]) -> None:
    """Offline, as here: one line that names the task and its data."""
    with pytest.raises(ConfigError, match=r"SciDocsRR: its data \(mteb/SciDocsRR\) cannot be"):
        load_task(find_tasks(["SciDocsRR"])["SciDocsRR"][0])
    words = ["evaluate", "--model", str(encoder.loaded.folder), "--mteb_tasks", "SciDocsRR"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rankwright: --mteb_tasks SciDocsRR: its data")


def test_the_command(
    encoder: Reranker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mteb, "get_task", lambda _: made_task())
    words = ["evaluate", "--model", str(encoder.loaded.folder), "--mteb_tasks", "Made"]
    assert cli.main([*words, "--metrics", "nDCG@10", "--output", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().err.split())
    assert "mteb ndcg_at_10" in out
    text = (tmp_path / "metrics.json").read_text()
    (entry,) = json.loads(text, parse_constant=pytest.fail)
    assert entry["task"] == "Made"
    assert entry["rankwright"]["metrics"]["ndcg@10"] == pytest.approx(
        entry["mteb"]["ndcg_at_10"], abs=1.1e-5
    )
    for flags, message in (
        (["--dataset", "x"], "--dataset and --mteb_tasks exclude each other"),
        (["--split", "test"], "--split goes with --dataset"),
        (["--instructions", "a", "b"], "2 instructions for 1 tasks (Made)"),
        (["--first_stage", str(tmp_path)], "holds no Made_predictions.json; give bm25"),
        (["--top_k", "0"], "--top_k 0 is less than 1"),
    ):
        assert cli.main([*words, *flags]) == 2
        assert message in capsys.readouterr().err


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ConfigError, match=r"needs the package mteb .*rankwright\[mteb\]"):
        mteb_tasks.import_mteb()
