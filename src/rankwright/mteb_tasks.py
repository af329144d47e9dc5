"""MTEB's reranking and retrieval tasks, NanoBEIR among them, evaluated by ``mteb`` itself.

``mteb`` loads a task's data, asks for a score of every pair of a query and a candidate, and
computes its own metrics; only the scores are ours. The same lists are then measured with our
metrics. The two agree where no scores are tied: ``mteb`` breaks ties by document id, ours are the
expectation over all orders.

A reranking task brings its candidates along. A retrieval task has none: they come from BM25
(``mteb/baseline-bm25s``), or from predictions that ``mteb`` wrote for another model.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rankwright.errors import ConfigError
from rankwright.evaluation import EvaluationResult, evaluate_scores
from rankwright.files import expanded
from rankwright.ranking import Progress, Reranker
from rankwright.types import Example, ScoredList

BM25 = "bm25"
BASELINE = "mteb/baseline-bm25s"
# pairs that mteb hands over at a time
BATCH_PAIRS = 512
EXTRA = "pip install 'rankwright[mteb]'"


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What one split of one subset of a task gave.

    Attributes:
        task: the task's name.
        subset: of its data, often a language; ``default`` where there is one only.
        split: of its data.
        main_score: the name of the score that MTEB reports, such as ``ndcg_at_10``.
        value: that score, computed by ``mteb``.
        scores: all of ``mteb``'s scores; None where one is not defined for so few queries.
        ours: our metrics of the same lists; queries are named by their ids, texts are left out.
        instruction: the task description that was given to the model; None for its own.
    """

    task: str
    subset: str
    split: str
    main_score: str
    value: float
    scores: dict[str, Any]
    ours: EvaluationResult
    instruction: str | None

    @property
    def name(self) -> str:
        """The task, with subset and split where these are not the usual ones."""
        subset = "" if self.subset == "default" else f", {self.subset}"
        return f"{self.task}{subset}"


class TaskReranker:
    """A reranker as ``mteb`` asks for one (its ``CrossEncoderProtocol``).

    Args:
        reranker: scores the pairs.
        name: what ``mteb`` calls the model, ``owner/name``.
        revision: of the model.
        instructions: task description by task name, in place of the prompt that the task's
            metadata say; an empty one leaves the model its own.

    Example:
        >>> import mteb  # doctest: +SKIP
        >>> model = TaskReranker(Reranker.load("output"), "me/output")  # doctest: +SKIP
        >>> mteb.evaluate(model, mteb.get_task("SciDocsRR"))  # doctest: +SKIP
    """

    def __init__(
        self,
        reranker: Reranker,
        name: str,
        revision: str | None = None,
        *,
        instructions: Mapping[str, str] | None = None,
    ) -> None:
        from mteb.models.model_meta import ModelMeta

        self.reranker = reranker
        self.instructions = dict(instructions or {})
        self.progress: Progress | None = None
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name,
                "revision": revision or "no_revision_available",
                "model_type": ["cross-encoder"],
                "framework": ["PyTorch"],
            }
        )

    def predict(
        self,
        inputs1: Any,
        inputs2: Any,
        *,
        task_metadata: Any,
        **_: Any,
    ) -> npt.NDArray[np.float32]:
        """Score pairs.

        Args:
            inputs1: batches of queries, one for each pair.
            inputs2: batches of documents.
            task_metadata: of the task; its prompt is the instruction.
            **_: what ``mteb`` says besides.

        Returns:
            ``P`` fp32 logits.
        """
        instruction = self.instruction(task_metadata)
        examples = self._examples(inputs1, inputs2, instruction)
        scores_P: list[float] = []
        for scored in self.reranker.iter_scores(examples, self.progress):
            scores_P += scored.scores
        return np.asarray(scores_P, np.float32)

    def instruction(self, task_metadata: Any) -> str | None:
        """The task description for a task's queries; None takes the model's own."""
        if not self._reads_instruction:
            return None
        if task_metadata.name in self.instructions:
            return self.instructions[task_metadata.name].strip() or None
        prompt = task_metadata.prompt
        if isinstance(prompt, Mapping):
            prompt = prompt.get("query")
        return prompt or None

    @property
    def _reads_instruction(self) -> bool:
        return self.reranker.loaded.spec.template.reads_instruction

    def _examples(self, queries: Any, documents: Any, instruction: str | None) -> Iterator[Example]:
        """Neighbouring pairs of one query as one example, so that its prompt is computed once."""
        pairs = (
            (asked, document)
            for asked_batch, batch in zip(queries, documents, strict=True)
            for asked, document in zip(
                self._queries(asked_batch, instruction), batch["text"], strict=True
            )
        )
        for (query, own), group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            texts = [document for _, document in group]
            yield Example(query, texts, [0.0] * len(texts), instruction=own)

    def _queries(
        self, batch: Mapping[str, Any], instruction: str | None
    ) -> Iterator[tuple[str, str | None]]:
        """Each query with its instruction; a model that reads none gets both as one text."""
        if not self._reads_instruction:
            yield from ((text, None) for text in batch["text"])
            return
        own = batch.get("instruction") or [None] * len(batch["text"])
        texts = batch["query"] if "query" in batch else batch["text"]
        for text, said in zip(texts, own, strict=True):
            yield text, said or instruction


def import_mteb() -> Any:
    """The package ``mteb``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import mteb
    except ImportError as error:
        raise ConfigError(f"--mteb_tasks needs the package mteb ({error}); run: {EXTRA}") from error
    return mteb


def find_tasks(names: Sequence[str]) -> dict[str, list[Any]]:
    """The tasks of names of tasks and benchmarks.

    Args:
        names: such as ``SciDocsRR`` or ``NanoBEIR``.

    Returns:
        For each name its tasks, their data not loaded.

    Raises:
        ConfigError: a name is unknown, or of something that is no list of texts to rank.
    """
    mteb = import_mteb()
    found: dict[str, list[Any]] = {}
    for name in names:
        tasks: list[Any] = []
        for get in (
            lambda name: [mteb.get_task(name)],
            lambda name: mteb.get_benchmark(name).tasks,
        ):
            with contextlib.suppress(KeyError):
                tasks = tasks or list(get(name))
        if not tasks:
            known = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)]
            known += [benchmark.name for benchmark in mteb.get_benchmarks()]
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"near ones are {', '.join(near)}" if near else "see mteb.get_tasks()"
            raise ConfigError(f"--mteb_tasks {name!r} is no task or benchmark of mteb; {hint}")
        found[name] = [part for task in tasks for part in rankable(task)]
    return found


def rankable(task: Any) -> list[Any]:
    """The task, or its parts, if a text reranker can do it.

    Raises:
        ConfigError: it cannot.
    """
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    if isinstance(task, AbsTaskAggregate):
        return [part for inner in task.metadata.tasks for part in rankable(inner)]
    metadata = task.metadata
    if not isinstance(task, AbsTaskRetrieval):
        raise ConfigError(
            f"--mteb_tasks {metadata.name} is a {metadata.type} task, which has no documents to "
            "rank; give reranking or retrieval tasks, such as SciDocsRR or NanoBEIR"
        )
    if list(metadata.modalities) != ["text"]:
        raise ConfigError(
            f"--mteb_tasks {metadata.name} is of {' and '.join(metadata.modalities)}; give a task "
            "of texts"
        )
    return [task]


def load_task(task: Any) -> None:
    """Load a task's data.

    Raises:
        ConfigError: they cannot be had, such as without a network.
    """
    try:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    except Exception as error:  # the hub, its cache and each task's own code raise what they like
        data = task.metadata.dataset
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ConfigError(
            f"--mteb_tasks {task.metadata.name}: its data ({data.get('path')}) cannot be loaded: "
            f"{reason}; connect to the hub once, or point HF_HOME to a cache that holds them"
        ) from error


def without_candidates(task: Any) -> bool:
    """Whether a loaded task leaves the search for candidates to the model."""
    return any(not data["top_ranked"] for _, _, data in _parts(task))


def _parts(task: Any) -> Iterator[tuple[str, str, Any]]:
    for subset, splits in task.dataset.items():
        for split, data in splits.items():
            yield subset, split, data


def find_candidates(task: Any, first_stage: str | None, top_k: int, work: Path) -> Path | None:
    """Give a loaded task its candidates.

    Args:
        task: the task.
        first_stage: ``bm25``; a folder of predictions that ``mteb`` wrote; None takes the task's
            own candidates, and BM25 where it has none.
        top_k: candidates of a query.
        work: a folder for the predictions of BM25.

    Returns:
        The folder of the first stage's predictions; None where the task's own list is taken.

    Raises:
        ConfigError: the folder does not hold the task's predictions, or a package is missing.
    """
    if first_stage is None and not without_candidates(task):
        return None
    folder = work if first_stage in (None, BM25) else expanded(first_stage)
    if first_stage in (None, BM25):
        mteb = import_mteb()
        try:
            import bm25s  # noqa: F401
            import Stemmer  # noqa: F401

            model = mteb.get_model(BASELINE)
        except ImportError as error:
            raise ConfigError(
                f"{task.metadata.name} needs BM25 for its candidates ({error}); run: {EXTRA}, or "
                "give predictions with --first_stage FOLDER"
            ) from error
        own = {(subset, split): data["top_ranked"] for subset, split, data in _parts(task)}
        for _, _, data in _parts(task):
            data["top_ranked"] = None
        try:
            _run(mteb, model, task, folder, None)
        finally:
            for subset, split, data in _parts(task):
                data["top_ranked"] = own[subset, split]
    elif not (folder / task.prediction_file_name).is_file():
        raise ConfigError(
            f"--first_stage {folder} holds no {task.prediction_file_name}; give bm25, or a folder "
            "that mteb.evaluate(..., prediction_folder=...) filled"
        )
    try:
        task.convert_to_reranking(folder, top_k=top_k)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / task.prediction_file_name} is no file of mteb's predictions for this task "
            f"({type(error).__name__}: {error}); give another"
        ) from error
    return folder


def _run(mteb: Any, model: Any, task: Any, predictions: Path, cache: Any) -> Any:
    """``mteb.evaluate`` of one task, quietly and always anew."""
    # a result that lies there may be another state's of the model, under the same name
    return mteb.evaluate(
        model,
        task,
        cache=cache,
        overwrite_strategy="always",
        prediction_folder=predictions,
        encode_kwargs={"batch_size": BATCH_PAIRS, "show_progress_bar": False},
        show_progress_bar=False,
        co2_tracker=False,
    ).task_results[0]


def evaluate_task(
    model: TaskReranker,
    task: Any,
    names: Sequence[str],
    *,
    output: Path,
    first_stage: str | None = None,
    top_k: int = 100,
) -> list[TaskResult]:
    """Evaluate a reranker on one task.

    Args:
        model: the reranker.
        task: of ``mteb``; its data are loaded where they are not yet.
        names: our metrics.
        output: ``mteb``'s results and predictions go there, in its own layout.
        first_stage: see ``find_candidates``.
        top_k: candidates of a query, where they are searched for.

    Returns:
        One result for each subset and split.

    Raises:
        ConfigError: the data or the candidates cannot be had.
    """
    mteb = import_mteb()
    load_task(task)
    predictions = output / "predictions"
    # a file of an earlier evaluation would be added to
    for folder in (predictions, predictions / BM25):
        (folder / task.prediction_file_name).unlink(missing_ok=True)
    retrieved = find_candidates(task, first_stage, top_k, predictions / BM25)
    found = _run(mteb, model, task, predictions, mteb.ResultCache(output))
    scored = _read(predictions / task.prediction_file_name)
    before = {} if retrieved is None else _read(retrieved / task.prediction_file_name)
    results = []
    for split, entries in found.scores.items():
        for entry in entries:
            subset = entry["hf_subset"]
            lists = _lists(
                task,
                task.dataset[subset][split]["relevant_docs"],
                scored[subset][split],
                before.get(subset, {}).get(split),
            )
            results.append(
                TaskResult(
                    task.metadata.name,
                    subset,
                    split,
                    task.metadata.main_score,
                    float(entry["main_score"]),
                    {name: _defined(value) for name, value in entry.items()},
                    evaluate_scores(lists, names, first_stage=retrieved is not None),
                    model.instruction(task.metadata),
                )
            )
    return results


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _lists(
    task: Any,
    judged: Mapping[str, Mapping[str, int]],
    scored: Mapping[str, Mapping[str, float]],
    before: Mapping[str, Mapping[str, float]] | None,
) -> list[ScoredList]:
    """The lists that ``mteb`` measured, with what was judged relevant and is not on them."""
    lists = []
    for query_id, scores in scored.items():
        relevant = judged.get(query_id)
        ranked = sorted(scores.items(), key=lambda item: -item[1])[int(task.skip_first_result) :]
        kept = {d: s for d, s in ranked if not (task.ignore_identical_ids and d == query_id)}
        if not relevant or not kept:
            continue
        ids = list(kept)
        example = Example(
            query_id,
            ids,
            [float(relevant.get(document, 0)) for document in ids],
            query_id=query_id,
            document_ids=ids,
            first_stage_scores=None if before is None else [before[query_id][d] for d in ids],
            missed={d: float(y) for d, y in relevant.items() if y > 0 and d not in kept},
        )
        lists.append(ScoredList(example, list(kept.values())))
    return lists


def evaluate_tasks(
    reranker: Reranker,
    tasks: Mapping[str, Sequence[Any]],
    names: Sequence[str],
    *,
    model_name: str,
    revision: str | None = None,
    instructions: Sequence[str] = (),
    first_stage: str | None = None,
    top_k: int = 100,
    output: Path | None = None,
    progress: Callable[[str], Any] | None = None,
) -> list[TaskResult]:
    """Evaluate a reranker on tasks of ``mteb``.

    Args:
        reranker: the reranker.
        tasks: from ``find_tasks``.
        names: our metrics.
        model_name: what the results call the model.
        revision: of the model.
        instructions: task description, one for each name in ``tasks``; none: the tasks' own.
        first_stage: see ``find_candidates``.
        top_k: candidates of a query, where they are searched for.
        output: folder for ``mteb``'s results and predictions; None keeps none.
        progress: called with a task's name, gives a context of a function to be called with the
            number of queries finished.

    Returns:
        One result for each subset and split of each task, in their order.

    Raises:
        ConfigError: instructions and names differ in number, or see ``evaluate_task``.
    """
    if instructions and len(instructions) != len(tasks):
        raise ConfigError(
            f"{len(instructions)} instruction{'s' if len(instructions) > 1 else ''} for "
            f"{len(tasks)} tasks ({', '.join(tasks)}); give one text for each, in their order, and "
            "'' for the model's own"
        )
    said = {
        task.metadata.name: text
        for group, text in zip(tasks.values(), instructions, strict=False)
        for task in group
    }
    model = TaskReranker(reranker, model_name, revision, instructions=said)
    results: list[TaskResult] = []
    with tempfile.TemporaryDirectory() as temporary, _quiet_datasets():
        folder = Path(temporary) if output is None else output
        for task in [task for group in tasks.values() for task in group]:
            with (progress or _no_progress)(task.metadata.name) as advance:
                model.progress = advance
                results += evaluate_task(
                    model, task, names, output=folder, first_stage=first_stage, top_k=top_k
                )
            task.unload_data()
    return results


@contextmanager
def _no_progress(_: str) -> Iterator[None]:
    yield None


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Take down the bars of each table that is changed."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
