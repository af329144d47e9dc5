"""Training: what a step computes, what a run leaves, and that it goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import transformers
from safetensors.torch import load_file
from torch.testing import assert_close

from rankwright import run_folder
from rankwright import trainer as trainer_module
from rankwright.arguments import resolve
from rankwright.data import readers, tokens
from rankwright.data.groups import sample_groups
from rankwright.data.readers import load_examples
from rankwright.errors import CheckpointError, ConfigError, DataError
from rankwright.losses import LOSSES
from rankwright.models import checkpoint
from rankwright.models.checkpoint import LoadOptions
from rankwright.models.reranker import RerankerModel
from rankwright.ranking import Reranker, collator
from rankwright.templates import PairEncoder
from rankwright.trainer import Interrupted, TrainResult, train, train_on
from rankwright.types import Example
from tests import tiny

ROWS = tiny.examples(24, documents=5)


def arguments(tmp_path: Path, name: str = "bert", **given: Any) -> Any:
    base = tmp_path / f"base-{name.replace(':', '-')}"
    if not base.exists():
        tiny.save_base(base, name)
    return resolve(
        {
            "model": str(base),
            "dataset": ["unused"],
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "dropout": 0.0,
            "max_length": 512,
            "learning_rate": 1e-3,
            **given,
        },
        {},
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, two: Path, tolerance: float = 0.0) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name in first:
        assert_close(first[name], second[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_a_step_is_the_gradient_of_the_mean(tmp_path: Path, loss: str) -> None:
    """Plain SGD by hand over the same groups: w - lr * d(total/count)/dw, for uneven groups."""
    rows = [
        Example(e.query, e.documents[: 2 + i % 4], e.labels[: 2 + i % 4], query_id=e.query_id)
        for i, e in enumerate(ROWS[:6])
    ]
    settings = {
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_steps": 1,
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "loss_type": loss,
    }
    train_on(arguments(tmp_path, per_device_train_batch_size=6, **settings), rows, [])
    loaded = checkpoint.load(tmp_path / "base-bert", LoadOptions(dropout=0.0, max_length=256))
    pack = collator(loaded)
    groups = [g for e in rows for g in sample_groups(e, seed=42, epoch=0)]
    batch = pack(groups)
    model = loaded.model.train()
    total, count = LOSSES[loss].function(model(batch), batch.labels_P, batch.offsets_Q)
    (total / count).backward()
    assert count == (sum(len(g.chosen) for g in groups) if loss == "pointwise" else 6)
    expected = {
        n: p.detach() - 0.1 * p.grad
        for n, p in loaded.model.hf.named_parameters()
        if p.grad is not None
    }
    found = weights(tmp_path / "out")
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_accumulation_equals_one_batch(tmp_path: Path, loss: str) -> None:
    """Normalised over the whole optimiser step: 8 queries at once, or 4 times 2."""
    rows = [
        Example(e.query, e.documents[: 2 + i % 4], e.labels[: 2 + i % 4], query_id=e.query_id)
        for i, e in enumerate(ROWS[:8])
    ]
    common = {"optim": "sgd", "learning_rate": 0.05, "num_train_epochs": 3, "loss_type": loss}
    for folder, size, steps in (("one", 8, 1), ("four", 2, 4)):
        train_on(
            arguments(
                tmp_path,
                output_dir=str(tmp_path / folder),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                **common,
            ),
            rows,
            [],
        )
    assert_same_weights(tmp_path / "one", tmp_path / "four", 2e-6)


def count_pieces(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows by each batch that is computed at a time."""
    pieces: list[Any] = []
    score = RerankerModel._score
    monkeypatch.setattr(
        RerankerModel, "_score", lambda self, batch: (pieces.append(batch), score(self, batch))[1]
    )
    return pieces


def set_slices(monkeypatch: pytest.MonkeyPatch, slice_tokens: int, *, inside: bool) -> None:
    """Cut rows at so many tokens; ``inside``: by an optimiser that steps in the backward pass."""
    monkeypatch.setitem(trainer_module.SLICE_TOKENS, "cpu", slice_tokens)
    monkeypatch.setattr(trainer_module, "_steps_inside", lambda args: inside)


@pytest.mark.parametrize("name", [pytest.param("bert", marks=pytest.mark.slow), "qwen3"])
def test_slices_and_chunks_train_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step computed at once, group by group, and in chunks of a group: the same weights.

    An optimiser that steps within the backward pass has to see the whole: no slices then, and
    nothing is computed twice.
    """
    pieces = count_pieces(monkeypatch)
    calls = {}
    for folder, slice_tokens, chunk_tokens in (
        ("whole", 10**6, None),
        ("slices", 1, None),
        ("inside", 1, None),
        ("chunks", 10**6, 100),
    ):
        set_slices(monkeypatch, slice_tokens, inside=folder == "inside")
        pieces.clear()
        given = {"chunk_tokens": chunk_tokens} if chunk_tokens else {}
        run = arguments(
            tmp_path,
            name,
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=3,
            optim="sgd",
            learning_rate=0.05,
            **given,
        )
        train_on(run, ROWS, [])
        calls[folder] = len(pieces)
    assert calls["whole"] == calls["inside"] == 6
    assert calls["slices"] == 24
    assert calls["chunks"] > 48
    for folder in ("slices", "inside", "chunks"):
        assert_same_weights(tmp_path / "whole", tmp_path / folder, 1e-5)


@pytest.mark.parametrize("name", [pytest.param("bert", marks=pytest.mark.slow), "qwen3"])
def test_pointwise_is_computed_document_by_document(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are cut anywhere and nothing is computed twice: the same weights, loss and lengths.

    A part that compares documents leaves groups whole, an engine that needs all at once the batch.
    """
    pieces = count_pieces(monkeypatch)
    calls, losses = {}, {}
    for folder, loss, slice_tokens, more in (
        ("whole", "pointwise", 10**6, {}),
        ("alone", "pointwise", 1, {}),
        ("chunks", "pointwise", 10**6, {"chunk_tokens": 1}),
        ("both", "pointwise+listwise", 1, {}),
        ("inside", "pointwise", 1, {}),
    ):
        set_slices(monkeypatch, slice_tokens, inside=folder == "inside")
        pieces.clear()
        run = arguments(
            tmp_path,
            name,
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=4,
            max_steps=3,
            optim="sgd",
            learning_rate=0.05,
            loss_type=loss,
            **more,
        )
        losses[folder] = train_on(run, ROWS, []).train_loss
        calls[folder] = len(pieces)
    # 3 steps of 4 groups of 5 documents
    assert calls == {"whole": 3, "alone": 60, "chunks": 60, "both": 12, "inside": 3}
    expected = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    for folder in ("alone", "chunks"):
        assert losses[folder] == pytest.approx(losses["whole"], rel=1e-5)
        found = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert found["lengths"] == expected["lengths"]
        assert_same_weights(tmp_path / "whole", tmp_path / folder, 1e-5)


def test_token_budget_sees_every_group(tmp_path: Path) -> None:
    """Accumulated over the whole epoch: one big batch's step, however the budget cuts it."""
    common = {"optim": "sgd", "learning_rate": 0.05, "num_train_epochs": 2}
    train_on(
        arguments(
            tmp_path, output_dir=str(tmp_path / "one"), per_device_train_batch_size=24, **common
        ),
        ROWS,
        [],
    )
    train_on(
        arguments(
            tmp_path,
            output_dir=str(tmp_path / "many"),
            batch_tokens=600,
            gradient_accumulation_steps=100,
            **common,
        ),
        ROWS,
        [],
    )
    assert_same_weights(tmp_path / "one", tmp_path / "many", 2e-6)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("bert", "pointwise"),
        ("modernbert", "listwise"),
        ("qwen3", "pointwise"),
        pytest.param("qwen3", "listwise", marks=pytest.mark.slow),
        pytest.param("qwen3", "listwise_generative_reranker", marks=pytest.mark.slow),
        pytest.param("qwen3:seq", "listwise", marks=pytest.mark.slow),
        ("deberta-v2", "listwise"),
    ],
)
def test_training_learns_and_the_folder_scores_the_same(
    tmp_path: Path, name: str, loss: str
) -> None:
    """Both kinds and losses: the ranking improves, and what is saved is what was measured."""
    rows = tiny.examples(48, documents=5, longest=12)
    result = train_on(
        arguments(
            tmp_path,
            name,
            loss_type=loss,
            num_train_epochs=6,
            learning_rate=3e-3,
            per_device_train_batch_size=8,
            eval_steps=0.25,
        ),
        rows,
        rows[:24],
    )
    assert result.before is not None
    assert result.after is not None
    assert result.after.metrics["ndcg@10"] > result.before.metrics["ndcg@10"] + 0.05
    again = Reranker.load(tmp_path / "out")
    for scored, kept in zip(
        again.score_examples(rows[:8]), result.reranker.score_examples(rows[:8]), strict=True
    ):
        assert_close(scored.scores, kept.scores, rtol=0, atol=1e-5)
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {
        "config.json",
        "rankwright.json",
        "README.md",
        "metrics.json",
        "tokenizer.json",
    } <= files
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["after"]["ndcg@10"] == pytest.approx(result.after.metrics["ndcg@10"])
    spec = json.loads((tmp_path / "out" / "rankwright.json").read_text())
    assert spec["training"]["max_negative_samples"] == 7


@pytest.mark.parametrize(("name", "dora"), [("modernbert", False), ("qwen3", True)])
def test_lora_trains_only_adapters_and_leaves_a_merged_folder(
    tmp_path: Path, name: str, dora: bool
) -> None:
    run = arguments(
        tmp_path,
        name,
        tuner_type="lora",
        use_dora=dora,
        learning_rate=1e-2,
        num_train_epochs=2,
    )
    result = train_on(run, ROWS, ROWS[:8])
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in key for key in adapter) == dora
    scores = [s.scores for s in result.reranker.score_examples(ROWS[:4])]
    for folder in (tmp_path / "out", tmp_path / "out" / "adapter"):
        again = [s.scores for s in Reranker.load(folder).score_examples(ROWS[:4])]
        assert_close(torch.tensor(again), torch.tensor(scores), rtol=0, atol=1e-4)
    base = weights(tmp_path / f"base-{name}")
    merged = weights(tmp_path / "out")
    embedding = next(k for k in base if "embed" in k)
    assert_close(merged[embedding], base[embedding], rtol=0, atol=0)
    changed = [k for k in base if not torch.equal(base[k], merged[k])]
    assert any("Wqkv" in k or "q_proj" in k for k in changed)


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGINT at the end of a step, as Ctrl-C does."""
    original = trainer_module._Watcher.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(trainer_module._Watcher, "on_step_end", on_step_end)


def test_a_late_signal_without_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the last step nothing is saved for it, so --resume is not promised."""

    def late(self: Any, *args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer_module._Watcher, "on_train_end", late)
    given = {"save_strategy": "no", "max_steps": 1}
    with pytest.raises(
        Interrupted, match=r"^stopped at step 1 of 1, without a checkpoint; with --overwrite it"
    ):
        train_on(arguments(tmp_path, **given), ROWS[:4], ROWS[4:6])
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        run_folder.prepare(tmp_path / "out", arguments(tmp_path, resume=True, **given))
    again = arguments(tmp_path, overwrite=True, **given)
    assert run_folder.prepare(tmp_path / "out", again) is None


def test_the_best_checkpoint_is_the_result(tmp_path: Path) -> None:
    """A learning rate that ruins the model: what is left is the evaluation that was best."""
    rows = tiny.examples(24, documents=5, longest=12)
    result = train_on(
        arguments(
            tmp_path,
            "bert",
            learning_rate=0.5,
            optim="sgd",
            num_train_epochs=4,
            max_grad_norm=0.0,
            per_device_train_batch_size=8,
            eval_steps=2,
            save_steps=2,
            seed=3,
        ),
        rows,
        rows[:12],
    )
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    history = [
        e["eval_ndcg@10"] for e in state["log_history"] if "eval_ndcg@10" in e and e["step"] > 0
    ]
    assert result.after is not None
    assert result.after.metrics["ndcg@10"] == pytest.approx(max(history))
    found = [s.scores for s in Reranker.load(tmp_path / "out").score_examples(rows[:12])]
    kept = Path(state["best_model_checkpoint"])
    best = [s.scores for s in Reranker.load(kept).score_examples(rows[:12])]
    assert_close(torch.tensor(found), torch.tensor(best), rtol=0, atol=1e-5)


def test_early_stopping(tmp_path: Path) -> None:
    """At learning rate zero nothing improves: two evaluations after the first end the run."""
    result = train_on(
        arguments(
            tmp_path,
            learning_rate=0.0,
            num_train_epochs=10,
            per_device_train_batch_size=4,
            eval_steps=2,
            save_steps=2,
            early_stopping_patience=2,
        ),
        ROWS,
        ROWS[:8],
    )
    assert result.steps == 6


def test_weights_that_are_not_finite_are_neither_read_nor_written(tmp_path: Path) -> None:
    """The tensor is named; as a whole model and as the base of adapters."""
    from safetensors.torch import save_file

    args = arguments(tmp_path)
    path = tmp_path / "base-bert" / "model.safetensors"
    loaded = checkpoint.load(path.parent)
    tensors = load_file(path)
    tensors["classifier.weight"][0, 3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    for given in (args, arguments(tmp_path, tuner_type="lora")):
        with pytest.raises(CheckpointError, match=r"classifier.weight holds NaN or infinite v"):
            train_on(given, ROWS, [])
    loaded.model.hf.classifier.weight.data[0, 3] = float("inf")
    with pytest.raises(CheckpointError, match=r"written: classifier.weight of the model holds"):
        checkpoint.save(loaded, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_rows_a_loss_cannot_use_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listwise needs both sides; pointwise takes negatives alone."""
    rows = [
        *ROWS[:6],
        Example("only negatives", ["a", "b"], [0.0, 0.0], query_id="n"),
        Example("only positives", ["a"], [1.0], query_id="p"),
    ]
    result = train_on(arguments(tmp_path), rows, [])
    assert result.dropped == {"no positive document": 1, "no negative document": 1}
    assert "left out of training: 1 with no positive document" in " ".join(
        capsys.readouterr().err.split()
    )
    result = train_on(
        arguments(tmp_path, loss_type="pointwise", output_dir=str(tmp_path / "two")), rows, []
    )
    assert result.dropped == {}
    with pytest.raises(DataError, match="no row is left to train on"):
        train_on(arguments(tmp_path, output_dir=str(tmp_path / "three")), rows[6:], [])


def test_grades_and_the_pointwise_loss(tmp_path: Path) -> None:
    rows = [Example("q", ["a", "b"], [3.0, 0.0], query_id="q", source="rows.jsonl:1")]
    with pytest.raises(ConfigError, match=r"rows.jsonl:1: label 3.0 is above 1.*listwise"):
        train_on(arguments(tmp_path, loss_type="pointwise"), rows, [])


def write_rows(path: Path, rows: list[Example]) -> Path:
    lines = [
        {"query": e.query, "positive": e.documents[:1], "negative": e.documents[1:]} for e in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_from_python_and_from_files(tmp_path: Path) -> None:
    """rankwright.train with the documented rows, a split, and what the output folder refuses."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    base = tiny.save_base(tmp_path / "base", "bert")
    given = {
        "model": str(base),
        "dataset": str(rows),
        "split_dataset_ratio": 0.25,
        "use_cpu": True,
        "output_dir": str(tmp_path / "out"),
        "max_length": 128,
    }
    result: TrainResult = train(**given)
    assert result.after is not None
    assert result.after.queries == 6
    with pytest.raises(ConfigError, match="is not empty; choose another, go on with --resume"):
        train(**given)
    assert train(**given, overwrite=True).steps == result.steps
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="no run of Rankwright; nothing was deleted"):
        train(**{**given, "output_dir": str(tmp_path / "mine")}, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        train(**{**given, "output_dir": str(tmp_path / "new")}, resume=True)


def test_only_what_is_sampled_is_tokenised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 documents a query a step sees a positive and two negatives."""
    rows = tiny.examples(8, documents=12)
    encoded: list[int] = []
    encode = PairEncoder.encode

    def counted(self: Any, query: str, documents: Any, *rest: Any) -> Any:
        encoded.append(len(documents))
        return encode(self, query, documents, *rest)

    monkeypatch.setattr(PairEncoder, "encode", counted)
    run = arguments(
        tmp_path,
        max_steps=6,
        per_device_train_batch_size=2,
        max_positive_samples=1,
        max_negative_samples=2,
        save_strategy="no",
    )
    train_on(run, rows, [])
    assert set(encoded) == {3}
    # 6 steps of 2 queries, of which some may have been made ahead
    assert 12 <= len(encoded) <= 16


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="queries"),
        pytest.param({"batch_tokens": 300}, id="tokens", marks=pytest.mark.slow),
    ],
)
def test_where_rows_and_tokens_come_from_changes_nothing(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    """Lists or files, tokens lazily or ahead, workers or none: bit-equal losses and weights.

    Twelve words to a document and 24 tokens to a pair, so documents and queries are cut; a worker's
    cuts are counted once.
    """
    rows = [
        Example("fox " * (3 if i % 2 else 20), e.documents, e.labels, query_id=e.query_id)
        for i, e in enumerate(tiny.examples(16, documents=10, longest=20))
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    variants: dict[str, dict[str, Any]] = {
        "list": {},
        "file": {},
        "ahead": {"lazy_tokenize": False},
        "workers": {"dataloader_num_workers": 2},
        # into a cache of its own, or it would find what "ahead" has left
        "both": {
            "lazy_tokenize": False,
            "dataloader_num_workers": 2,
            "dataset_num_proc": 2,
            "cache_dir": str(tmp_path / "other cache"),
        },
    }
    found = []
    for name, options in variants.items():
        args = arguments(
            tmp_path,
            dataset=[str(path)],
            output_dir=str(tmp_path / name),
            max_length=24,
            num_train_epochs=2,
            max_negative_samples=4,
            logging_steps=1,
            **(given or {"per_device_train_batch_size": 4}),
            **{"cache_dir": str(tmp_path / "cache"), **options},
        )
        if name == "list":
            train_on(args, load_examples(path).examples, [])
        else:
            train(args)
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        truncated = json.loads((tmp_path / name / "metrics.json").read_text())["truncated"]
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        found.append((losses, truncated))
        assert_same_weights(tmp_path / "list", tmp_path / name)
    assert all(each == found[0] for each in found)
    assert len(found[0][0]) > 4
    # of 32 groups, each of five documents, half have a query of 20 tokens
    assert found[0][1]["queries"] == 16
    assert 32 < found[0][1]["documents"] < 160


def test_a_second_run_reads_and_tokenises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another seed and another learning rate, over the same rows and tokens."""
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    given = {"dataset": [str(path)], "cache_dir": str(tmp_path / "cache"), "batch_tokens": 300}
    given["max_steps"] = 2
    train(arguments(tmp_path, **given))

    def nothing(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("read or tokenised")

    monkeypatch.setattr(readers, "read_rows", nothing)
    monkeypatch.setattr(tokens, "encode_row", nothing)
    given |= {"output_dir": str(tmp_path / "two"), "learning_rate": 1e-4, "seed": 7}
    train(arguments(tmp_path, **given))
    with pytest.raises(AssertionError, match="read or tokenised"):
        train(arguments(tmp_path, **{**given, "overwrite": True, "load_from_cache_file": False}))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"fp16": True}, r"--fp16 \(or --torch_dtype float16\) works on accelerators; use --bf16"),
        ({"torch_dtype": "float16"}, r"--torch_dtype float16\) works on accelerators"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor has no place in these losses"),
        ({"optim": "schedule_free_adamw"}, "--optim schedule_free_adamw is not supported"),
        ({"neftune_noise_alpha": 5.0}, "--neftune_noise_alpha is not supported: its noise goes"),
        ({"use_liger_kernel": True}, "--use_liger_kernel is not supported: the loss"),
        ({"auto_find_batch_size": True}, "--auto_find_batch_size is not supported: it would begin"),
        ({"save_on_each_node": True}, "--save_on_each_node is not supported: all processes share"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    tmp_path: Path, given: dict[str, Any], complaint: str
) -> None:
    """transformers and accelerate would go on without it, in silence."""
    with pytest.raises(ConfigError, match=complaint):
        train_on(arguments(tmp_path, **given), ROWS, [])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"learning_rate": -1.0}, r"^--learning_rate -1.0 is not allowed; give at least 0$"),
        ({"learning_rate": float("nan")}, "^--learning_rate nan is not finite; give a number$"),
        ({"adam_beta2": 1.0}, "^--adam_beta2 1.0 is not allowed; give at least 0 and below 1$"),
        ({"seed": 2**32}, "^--seed 4294967296 is not allowed; .* and below 4294967296$"),
        ({"eval_on_start": True}, "^--eval_on_start needs validation rows"),
        (
            {"optim_args": "x"},
            "^--optim adamw_torch_fused cannot be made: .*; look at --optim_args",
        ),
        ({"optim": "lomo"}, "^--optim lomo cannot be made: .* install"),
        # the schedule's own function, behind the warm-up
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}},
            "^--lr_scheduler_type cosine cannot be made: .*; look at --lr_scheduler_kwargs",
        ),
        (
            {
                "learning_rate": 0.0,
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 1e-6},
            },
            "^--lr_scheduler_type cosine_with_min_lr cannot be made: .* zero; look at",
        ),
        (
            {"lr_scheduler_kwargs": {"min_lr": 0}},
            "^--lr_scheduler_type linear cannot be made: .* 'min_lr'; look at --lr_scheduler_kw",
        ),
    ],
)
def test_what_training_would_fail_of(tmp_path: Path, given: dict[str, Any], complaint: str) -> None:
    """One line; a run that was to be replaced is still there."""
    before = arguments(tmp_path)
    train_on(before, ROWS, [])
    held = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(ConfigError, match=complaint):
        train_on(arguments(tmp_path, **given, overwrite=True), ROWS, [])
    assert sorted((tmp_path / "out").rglob("*")) == held


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "max"),
        ({"metric_for_best_model": "loss"}, "min"),
        ({"lr_scheduler_kwargs": '{"mode": "min", "patience": 3}'}, "min"),
    ],
)
def test_plateau_knows_which_way_is_better(
    tmp_path: Path, given: dict[str, Any], mode: str
) -> None:
    """NDCG rises where it gets better; torch's default is for a loss."""
    words = {"lr_scheduler_type": "reduce_lr_on_plateau", **given}
    args = trainer_module._training_arguments(
        arguments(tmp_path, **words), has_validation=True, resumed=False
    )
    patience = {"patience": 3} if "lr_scheduler_kwargs" in given else {}
    assert args.lr_scheduler_kwargs == {"mode": mode, **patience}


@pytest.mark.parametrize(
    ("said", "given", "expected"),
    [
        ("bf16", {}, (True, False)),
        ("no", {}, (False, False)),
        ("bf16", {"bf16": False}, (False, False)),
        ("fp16", {"bf16": True}, (True, False)),
    ],
)
def test_accelerates_precision_is_taken_up(
    tmp_path: Path,
    said: str,
    given: dict[str, Any],
    expected: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``accelerate launch`` says it by a variable; the arguments stand above it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
    args = trainer_module._training_arguments(
        arguments(tmp_path, **given), has_validation=False, resumed=False
    )
    assert (args.bf16, args.fp16) == expected
    # what the Trainer hands to accelerate
    assert args.mixed_precision == ("bf16" if expected[0] else "no")


def test_workers_are_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ahead of an accelerator's step, unless the user says otherwise; never beside a CPU's."""

    def found(**given: Any) -> tuple[Any, ...]:
        args = trainer_module._training_arguments(
            arguments(tmp_path, **given), has_validation=False, resumed=False
        )
        return (
            args.dataloader_num_workers,
            args.dataloader_pin_memory,
            args.dataloader_persistent_workers,
            args.dataloader_prefetch_factor,
        )

    assert found() == (0, False, False, None)
    assert found(dataloader_num_workers=3) == (3, False, True, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert found() == (0, False, False, None)  # --use_cpu
    given = {"use_cpu": False, "dataloader_prefetch_factor": 7}
    values: dict[str, Any] = {}
    monkeypatch.setattr(trainer_module, "TrainingArguments", _Recorded(values))
    with pytest.raises(ConfigError, match="recorded"):
        found(**given)
    names = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor")
    assert [values[f"dataloader_{name}"] for name in names] == [2, True, True, 7]


class _Recorded:
    """In place of TrainingArguments, which would look for the accelerator."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.__dataclass_fields__ = transformers.TrainingArguments.__dataclass_fields__

    def __call__(self, **given: Any) -> Any:
        self.values |= given
        raise ValueError("recorded")


@dataclass
class Steps:
    """A few steps: what they logged, and what was seen of the model while they were computed."""

    rates: list[float]
    weights: dict[str, torch.Tensor]
    autocast: set[bool]
    shared: set[bool]
    checkpointed: set[bool]
    dtypes: set[tuple[bool, torch.dtype]]


def few_steps(tmp_path: Path, name: str, folder: str, **given: Any) -> Steps:
    """Three steps of four queries, by plain SGD: every difference of a gradient is seen."""
    seen = Steps([], {}, set(), set(), set(), set())
    score = RerankerModel._score

    def watched(self: RerankerModel, batch: Any) -> torch.Tensor:
        seen.autocast.add(torch.is_autocast_enabled("cpu"))
        seen.shared.add(any(parent >= 0 for parent in batch.parents))
        seen.checkpointed.add(self.is_activation_checkpointing)
        seen.dtypes |= {(p.requires_grad, p.dtype) for p in self.parameters()}
        return score(self, batch)

    settings = {
        "optim": "sgd",
        "learning_rate": 0.05,
        "max_grad_norm": 0.0,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": str(tmp_path / folder),
    }
    rows = tiny.examples(12, documents=5, longest=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RerankerModel, "_score", watched)
        train_on(arguments(tmp_path, name, **settings | given), rows, [])
    state = json.loads((tmp_path / folder / "trainer_state.json").read_text())
    seen.rates = [e["learning_rate"] for e in state["log_history"] if "learning_rate" in e]
    seen.weights = weights(tmp_path / folder)
    return seen


def difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest of any weight."""
    return max(float((one[key] - two[key]).abs().max()) for key in two)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("modernbert", {"bf16": True}),
        ("qwen3", {"torch_dtype": "bfloat16"}),
    ],
)
def test_mixed_precision(tmp_path: Path, name: str, given: dict[str, Any]) -> None:
    """Computed in bfloat16 on float32 weights, which move as they do in float32."""
    plain = few_steps(tmp_path, name, "plain")
    found = few_steps(tmp_path, name, "mixed", **given)
    assert (plain.autocast, found.autocast) == ({False}, {True})
    assert found.dtypes == {(True, torch.float32)}
    assert {weight.dtype for weight in found.weights.values()} == {torch.float32}
    moved = difference(plain.weights, weights(tmp_path / f"base-{name}"))
    assert 1e-6 < difference(plain.weights, found.weights) < 0.1 * moved


def test_adapters_on_half_precision(tmp_path: Path) -> None:
    """Frozen bfloat16 weights, float32 adapters."""
    found = few_steps(tmp_path, "qwen3", "out", torch_dtype="bfloat16", tuner_type="lora")
    assert found.dtypes == {(False, torch.bfloat16), (True, torch.float32)}
    plain = few_steps(tmp_path, "qwen3", "plain", tuner_type="lora")
    assert plain.dtypes == {(False, torch.float32), (True, torch.float32)}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "given", "other"),
    [
        ("qwen3", {"tuner_type": "lora"}, {"gradient_checkpointing": True}),
        ("bert", {"lr_scheduler_type": "cosine"}, {"dataloader_num_workers": 1}),
        ("qwen3", {"group": "all"}, {"share_prefix": False}),
        ("modernbert", {}, {"torch_compile": True, "torch_compile_backend": "eager"}),
    ],
)
def test_other_ways_to_the_same_weights(
    tmp_path: Path, name: str, given: dict[str, Any], other: dict[str, Any]
) -> None:
    counters = torch._dynamo.utils.counters["stats"]
    plain = few_steps(tmp_path, name, "plain", warmup_steps=0, **given)
    graphs = counters["unique_graphs"]
    found = few_steps(tmp_path, name, "other", warmup_steps=0, **given, **other)
    assert difference(plain.weights, found.weights) < 1e-6
    assert difference(plain.weights, weights(tmp_path / f"base-{name}")) > 1e-4
    assert found.checkpointed == {"gradient_checkpointing" in other}
    assert plain.checkpointed == {False}
    if "share_prefix" in other:
        assert (plain.shared, found.shared) == ({True}, {False})
    assert (counters["unique_graphs"] > graphs) == ("torch_compile" in other)
    if "lr_scheduler_type" in given:
        # 0.025 (1 + cos(pi step / 3))
        assert found.rates == pytest.approx([0.05, 0.0375, 0.0125])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path: Path) -> None:
    """The Trainer's trackers get the loss, the speed and the metrics."""
    pytest.importorskip("tensorboard", reason="extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(logs))
        train_on(arguments(tmp_path, report_to="tensorboard", eval_steps=1), ROWS, ROWS[:6])
    events = EventAccumulator(str(logs))
    events.Reload()
    assert {"eval/ndcg@10", "train/loss", "train/pairs_per_second"} <= set(events.Tags()["scalars"])


def test_early_stopping_counts_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At learning rate zero the run ends at step 6; stopped at 5, it must still take that step."""
    given = {
        "learning_rate": 0.0,
        "num_train_epochs": 10,
        "per_device_train_batch_size": 4,
        "eval_steps": 2,
        "save_steps": 2,
        "early_stopping_patience": 2,
    }
    _interrupt_at(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train_on(arguments(tmp_path, **given), ROWS, ROWS[:8])
    monkeypatch.undo()
    args = arguments(tmp_path, resume=True, **given)
    found = run_folder.prepare(tmp_path / "out", args)
    assert train_on(args, ROWS, ROWS[:8], resume_from=found).steps == 6


def test_overwrite_deletes_late_and_only_its_own(tmp_path: Path) -> None:
    """A typo costs nothing; files of others stay; what the run reads is never deleted."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:6])
    base = tiny.save_base(tmp_path / "base", "bert")
    out = tmp_path / "out"
    given = {"model": str(base), "dataset": str(rows), "use_cpu": True, "output_dir": str(out)}
    train(**given)
    (out / "notes.txt").write_text("mine")
    before = weights(out)
    with pytest.raises(DataError, match="no such file"):
        train(**{**given, "dataset": str(tmp_path / "typo.jsonl")}, overwrite=True)
    for mistake in ({"early_stopping_patience": 2}, {"report_to": "tensorbord"}):
        with pytest.raises(ConfigError):
            train(**given, **mistake, overwrite=True)
    assert_close(weights(out), before)
    with pytest.raises(ConfigError, match=r"--overwrite would delete .*out, which this run reads"):
        train(**{**given, "model": str(out)}, overwrite=True)
    train(**given, overwrite=True, learning_rate=1e-2, num_train_epochs=3)
    assert (out / "notes.txt").read_text() == "mine"
    assert not torch.equal(weights(out)["classifier.weight"], before["classifier.weight"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("steps", 0.1, "steps", 0.1, True)),
        ({"save_steps": 5}, ("steps", 5, "steps", 5, True)),
        ({"eval_steps": 3}, ("steps", 3, "steps", 3, True)),
        ({"eval_steps": 2, "save_steps": 4}, ("steps", 2, "steps", 4, True)),
        ({"eval_steps": 3, "save_steps": 4}, ("steps", 3, "steps", 4, False)),
        ({"save_strategy": "epoch"}, ("epoch", 0.1, "epoch", 0.1, True)),
        ({"save_strategy": "no"}, ("steps", 0.1, "no", 0.1, False)),
    ],
)
def test_evaluation_and_saving_agree(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """What is said of one holds for the other; the best is kept only where it can be."""
    values = dict(given)
    trainer_module._evaluation_times(values)
    names = ("eval_strategy", "eval_steps", "save_strategy", "save_steps", "load_best_model_at_end")
    assert tuple(values[name] for name in names) == expected


def test_rows_without_any_group(tmp_path: Path) -> None:
    """A text on both sides is a positive alone; without negatives listwise has no group."""
    odd = Example("q", ["a", "a"], [1.0, 0.0], query_id="odd")
    result = train_on(arguments(tmp_path, per_device_train_batch_size=1), [odd, *ROWS[:3]], [])
    assert result.dropped == {"no negative document": 1}
    with pytest.raises(DataError, match="no row gives a group to train on; raise --max_negative"):
        train_on(
            arguments(tmp_path, output_dir=str(tmp_path / "two"), max_negative_samples=0), ROWS, []
        )


def test_mixed_precision_reports_what_the_folder_gives(tmp_path: Path) -> None:
    """Autocast is off once training is over: the record and the reloaded folder agree."""
    result = train_on(arguments(tmp_path, bf16=True, num_train_epochs=2), ROWS, ROWS[:8])
    again = Reranker.load(tmp_path / "out").score_examples(ROWS[:8])
    for scored, kept in zip(again, result.reranker.score_examples(ROWS[:8]), strict=True):
        assert_close(scored.scores, kept.scores, rtol=0, atol=1e-5)


def test_another_models_checkpoint_is_one_line(tmp_path: Path) -> None:
    """Weights of another shape, and a file that was cut off."""
    loaded = checkpoint.load(tiny.save_base(tmp_path / "base", "bert"))
    other = tiny.save_base(tmp_path / "other", "bert", hidden_size=16)
    with pytest.raises(CheckpointError, match="does not fit this model or is cut off"):
        checkpoint.load_weights(loaded.model, other)
    path = tmp_path / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="does not fit this model or is cut off"):
        checkpoint.load_weights(loaded.model, tmp_path / "base")
    with pytest.raises(ConfigError, match="does not load as a classification reranker"):
        checkpoint.load(tmp_path / "base")


MIXED = "listwise(temperature=0.5)+0.3*pointwise+0.5*kl+2*ranknet"


def uneven(count: int) -> list[Example]:
    """Rows of 2 to 5 documents with a teacher's scores; the second has no positive."""
    rows = tiny.taught(
        [
            Example(e.query, e.documents[: 2 + i % 4], e.labels[: 2 + i % 4], query_id=e.query_id)
            for i, e in enumerate(ROWS[:count])
        ]
    )
    rows[1].labels[0] = 0.0
    return rows


def plain(batch: Any, scores_P: torch.Tensor) -> torch.Tensor:
    """``MIXED`` by torch's own functions, group after group: each part's mean by its weight."""
    groups = list(itertools.pairwise(batch.offsets_Q.tolist()))
    lists, kls, pairs = [], [], []
    for a, b in groups:
        s, y, t = scores_P[a:b], batch.labels_P[a:b], batch.teacher_P[a:b]
        if y.any():
            lists.append(-((s / 0.5).log_softmax(0) * y / y.sum()).sum())
        kls.append((t.softmax(0) * (t.log_softmax(0) - s.log_softmax(0))).sum())
        pairs += [
            (1 + (s[j] - s[i]).exp()).log()
            for i in range(b - a)
            for j in range(b - a)
            if y[i] > y[j]
        ]
    points = torch.nn.functional.binary_cross_entropy_with_logits(scores_P, batch.labels_P)
    means = [torch.stack(part).mean() for part in (lists, kls, pairs)]
    assert (len(lists), len(kls)) == (len(groups) - 1, len(groups))
    return means[0] + 0.3 * points + 0.5 * means[1] + 2 * means[2]


def test_a_combination_is_the_sum_of_the_means(tmp_path: Path) -> None:
    """Two steps of SGD by hand over uneven groups, however a step is cut: batches that are
    accumulated, rows computed group by group, or chunks within a group."""
    rows = uneven(8)
    given = {
        "optim": "sgd",
        "learning_rate": 0.05,
        "max_steps": 2,
        "warmup_steps": 0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "loss_type": MIXED,
        "logging_steps": 1,
    }
    cuts: dict[str, dict[str, Any]] = {
        "one": {"per_device_train_batch_size": 8},
        "four": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        "tokens": {"batch_tokens": 60, "gradient_accumulation_steps": 99},
        "chunks": {"per_device_train_batch_size": 8, "chunk_tokens": 40},
    }
    for name, cut in cuts.items():
        folder = tmp_path / name
        train_on(arguments(tmp_path, output_dir=str(folder), **given, **cut), rows, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trainer_module.SLICE_TOKENS, "cpu", 1)
        folder = tmp_path / "slices"
        train_on(arguments(tmp_path, output_dir=str(folder), **given, **cuts["one"]), rows, rows)

    loaded = checkpoint.load(tmp_path / "base-bert", LoadOptions(dropout=0.0, max_length=512))
    model, pack = loaded.model.train(), collator(loaded)
    losses = []
    for epoch in range(2):
        batch = pack([g for e in rows for g in sample_groups(e, seed=42, epoch=epoch, needs="one")])
        model.zero_grad()
        loss = plain(batch, model(batch))
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
    expected = dict(loaded.model.hf.named_parameters())
    for name in (*cuts, "slices"):
        for key, value in weights(tmp_path / name).items():
            assert_close(value, expected[key].detach(), rtol=1e-5, atol=2e-6)
        log = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        steps = [entry for entry in log if "loss" in entry]
        assert [entry["loss"] for entry in steps] == pytest.approx(losses, abs=2e-4)
        evaluations = [entry for entry in log if "eval_loss" in entry]
        assert len(evaluations) >= 2
        for entries, prefix in ((steps, "loss"), (evaluations, "eval_loss")):
            for entry in entries:
                parts = {
                    n: entry[f"{prefix}_{n}"] for n in ("listwise", "pointwise", "kl", "ranknet")
                }
                total = parts["listwise"] + 0.3 * parts["pointwise"] + 0.5 * parts["kl"]
                assert total + 2 * parts["ranknet"] == pytest.approx(entry[prefix], abs=2e-4)
        spec = json.loads((tmp_path / name / "rankwright.json").read_text())
        assert spec["training"]["loss_type"] == MIXED


def test_validation_loss_in_parts_is_that_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is added up over a few lists at a time; groups of one list, and all at once."""
    found = []
    for number in (1, 100):
        monkeypatch.setattr(trainer_module, "LISTS", number)
        folder = tmp_path / str(number)
        train_on(arguments(tmp_path, output_dir=str(folder), loss_type=MIXED), uneven(6), uneven(8))
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        found.append([v for e in log for k, v in e.items() if k.startswith("eval_loss")])
    assert len(found[0]) >= 10
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_combination_refuses_what_a_part_cannot_use(tmp_path: Path) -> None:
    rows = [Example("q", ["a", "b"], [3.0, 0.0], query_id="q", source="rows.jsonl:1")]
    with pytest.raises(ConfigError, match=r"rows.jsonl:1: label 3.0 is above 1, which the pointw"):
        train_on(arguments(tmp_path, loss_type="listwise+0.1*pointwise"), rows, [])
    with pytest.raises(ConfigError, match="needs a generative model"):
        train_on(arguments(tmp_path, loss_type="listwise+listwise_generative"), ROWS, [])


def test_graded_rows_without_a_zero(tmp_path: Path) -> None:
    """Of grades 2 and 1 the whole row is a group of two; a positive with its negatives is not."""
    rows = [Example(f"q{i}", ["a b", "c"], [2.0, 1.0], query_id=f"q{i}") for i in range(4)]
    rows.append(Example("same", ["a b", "c"], [1.0, 1.0], query_id="same"))
    with pytest.raises(DataError, match="5 with no negative document"):
        train_on(arguments(tmp_path, loss_type="lambda_loss"), rows, [])
    given = {"loss_type": "lambda_loss", "group": "all", "num_train_epochs": 8}
    result = train_on(arguments(tmp_path, **given), rows, [])
    assert result.dropped == {"equal labels": 1}
    assert result.steps == 8
    for scored in result.reranker.score_examples(rows[:4]):
        assert scored.scores[0] > scored.scores[1]


@pytest.mark.parametrize("given", [{}, {"batch_tokens": 300}], ids=["queries", "tokens"])
def test_negatives_of_the_batch(tmp_path: Path, given: dict[str, Any], monkeypatch: Any) -> None:
    """Rows of positives alone learn from each other's; a budget of tokens holds with them."""
    rows = [
        Example(e.query, e.documents[:1], [1.0], query_id=e.query_id)
        for e in tiny.examples(32, documents=2, longest=8)
    ]
    seen = []
    original = trainer_module._collate
    monkeypatch.setattr(
        trainer_module,
        "_collate",
        lambda *args: (seen.append(original(*args)), seen[-1])[1],
    )
    settings = {"in_batch_negatives": 3, "num_train_epochs": 6, "learning_rate": 3e-3}
    settings |= given or {"per_device_train_batch_size": 8}
    with pytest.raises(DataError, match="32 with no negative document"):
        train_on(arguments(tmp_path, **given), rows, [])
    lists = [
        Example(
            e.query,
            [e.documents[0], *(r.documents[0] for r in rows[:5] if r is not e)],
            [1.0, *[0.0] * (4 + (i > 4))],
            query_id=e.query_id,
        )
        for i, e in enumerate(rows)
    ]
    result = train_on(arguments(tmp_path, **settings), rows, lists)
    assert result.before is not None
    assert result.after is not None
    assert result.after.metrics["ndcg@10"] > result.before.metrics["ndcg@10"] + 0.05
    assert max(batch.largest or 0 for batch in seen) == 4
    assert sum(len(batch.query_ids) for batch in seen) == 6 * 32
    for batch in seen:
        if given:
            assert batch.num_tokens <= 300
        elif len(batch.query_ids) == 8:
            assert batch.offsets_Q.diff().tolist() == [4] * 8
        assert batch.labels_P.sum() == len(batch.query_ids)


def test_negatives_of_the_batch_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    for given, message in (
        ({"loss_type": "kl"}, "--in_batch_negatives and --loss_type kl exclude each other"),
        ({"per_device_train_batch_size": 1}, "raise --per_device_train_batch_size above 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            arguments(tmp_path, in_batch_negatives=2, **given)
