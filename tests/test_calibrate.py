"""``rankwright calibrate``, and what ``rank``, ``train`` and saving make of a calibration."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwright import Calibration, Passages, cli
from rankwright import calibration as cal
from rankwright.errors import CheckpointError, ConfigError
from rankwright.models import checkpoint
from rankwright.ranking import Reranker
from rankwright.trainer import train
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT, as a hub would give it."""
    return tiny.save_base(tmp_path_factory.mktemp("calibrate") / "base", "bert")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """The same, saved by us."""
    return Reranker.load(base).save(tmp_path / "model")


@pytest.fixture(scope="module")
def rows(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve queries whose labels are drawn by sigmoid(2 (score - mean)) of the model itself."""
    reranker = Reranker.load(base)
    random = np.random.default_rng(0)
    lists = reranker.score_examples(tiny.examples(12, 8))
    mean = np.mean([scored.scores for scored in lists])
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as out:
        for scored in lists:
            p_D = cal.sigmoid(2 * (np.array(scored.scores) - mean))
            row = {
                "query": scored.example.query,
                "documents": scored.example.documents,
                "labels": (random.random(len(p_D)) < p_D).astype(int).tolist(),
            }
            print(json.dumps(row), file=out)
    return path


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The last line on standard error of a command that ends with exit code 2."""
    capsys.readouterr()
    assert cli.main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("rankwright: ")
    return line.removeprefix("rankwright: ")


def calibrate(model: Path, rows: Path, *words: str) -> list[str]:
    return ["calibrate", "--model", str(model), "--dataset", str(rows), *words]


def test_instructions_of_datasets(
    model: Path,
    tmp_path: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They reach what is scored, of each dataset its own; a row's own wins, as in evaluate."""
    own = tmp_path / "own.jsonl"
    row = {"query": "q", "positive": "a", "negative": "b"}
    own.write_text(
        "".join(json.dumps({**row, **more}) + "\n" for more in ({}, {"instruction": "I"}))
    )
    seen: list[Any] = []

    def iter_scores(self: Reranker, examples: Any, progress: Any = None) -> Any:
        seen.extend(example.instruction for example in examples)
        raise ConfigError("seen")

    monkeypatch.setattr(Reranker, "iter_scores", iter_scores)
    words = ["--instructions", "find birds", "find ships"]
    assert mistake(capsys, *calibrate(model, rows, str(own), *words)) == "seen"
    assert seen == ["find birds"] * 12 + ["find ships", "I"]


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_it_is_fitted_and_kept(
    method: str, model: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands in rankwright.json is the fit to the model's own scores; no other file moves."""
    before = written(model)
    words = ["--method", method, "--precision", "0.6", "--recall", "0.9", "1"]
    assert cli.main(calibrate(model, rows, *words)) == 0
    shown = capsys.readouterr().err
    for text in ("12 queries, 96 documents", "held out (5 folds)", "recall@0.9", "precision@0.6"):
        assert text in shown
    after = written(model)
    assert {n for n in after if after[n] != before.get(n)} == {"rankwright.json"}
    assert set(after) == set(before)
    spec, old = json.loads(after["rankwright.json"]), json.loads(before["rankwright.json"])
    assert {n for n in spec if spec[n] != old[n]} == {"calibration"}

    reranker = Reranker.load(model)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    scores = [s for x in lines for s in reranker.score([(x["query"], d) for d in x["documents"]])]
    labels = [y for x in lines for y in x["labels"]]
    found = reranker.calibration
    assert found is not None
    expected = cal.fit(method, scores, labels)
    assert (found.method, found.scale) == (method, pytest.approx(expected.scale, rel=1e-3))
    assert found.bias == pytest.approx(expected.bias, abs=1e-3)
    assert [t.name for t in found.thresholds] == ["precision@0.6", "recall@0.9", "recall@1"]
    record = found.record
    assert (record["queries"], record["documents"]) == (12, 96)
    assert record["relevant"] == sum(labels)
    assert record["after"]["nll"] < record["before"]["nll"]
    # rows that were fitted to flatter
    assert record["after"]["nll"] < record["held_out"]["nll"]
    assert record["settings"]["max_length"] == reranker.loaded.spec.max_length
    assert reranker.threshold("recall@1") == found.thresholds[2].score
    assert reranker.probabilities([0.0, 1.0]) == pytest.approx([0.5, 0.7310586])
    assert reranker.probabilities([0.0], calibrated=True) == pytest.approx(
        [float(cal.sigmoid(found.bias))]
    )
    assert reranker.probabilities([]) == []


def test_saving_keeps_it(model: Path, rows: Path, tmp_path: Path) -> None:
    """--output makes a copy with it; so do save and another load."""
    before = written(model)
    copy = tmp_path / "copy"
    assert cli.main(calibrate(model, rows, "--output", str(copy), "--max_length", "64")) == 0
    assert written(model) == before
    reranker = Reranker.load(copy)
    assert reranker.loaded.spec.max_length == 64
    again = Reranker.load(reranker.save(tmp_path / "again"))
    assert again.calibration == reranker.calibration
    assert isinstance(again.calibration, Calibration)


def test_a_folder_that_is_not_ours(
    base: Path,
    model: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A hub's model, flags that make another model of it, a sealed checkpoint: --output."""
    line = mistake(capsys, *calibrate(base, rows))
    assert line.startswith(f"{base} holds no rankwright.json, so a calibration cannot be kept")
    line = mistake(capsys, *calibrate(model, rows, "--max_length", "64"))
    assert line.startswith(f"{model} was saved with max_length 512, not 64, and a calibration")
    (model / "complete.json").write_text("{}")
    line = mistake(capsys, *calibrate(model, rows))
    assert "is a checkpoint to resume from (complete.json seals it); give --output" in line


def test_mistakes(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(model)
    assert mistake(capsys, "calibrate", "--model", str(model)).startswith("--dataset is missing")
    for words, complaint in (
        (["--method", "isotonic"], "--method 'isotonic' is unknown; choose from temperature, pla"),
        (["--precision", "90"], "--precision 90 is not above 0 and at most 1"),
        (["--recall", "0"], "--recall 0 is not above 0 and at most 1"),
        (["--folds", "1"], "--folds 1 is less than 2"),
        (["--precision", "1"], "no threshold reaches a precision of 1 on these rows; the highes"),
    ):
        # nothing is above the document that is irrelevant
        source = rows
        if words[0] == "--precision" and words[1] == "1":
            source = without_the_best(model, rows, tmp_path)
        assert mistake(capsys, *calibrate(model, source, *words)).startswith(complaint)
    same = tmp_path / "same.jsonl"
    same.write_text(json.dumps({"query": "fox", "positive": ["a fox"], "negative": []}) + "\n")
    line = mistake(capsys, *calibrate(model, same))
    assert line.startswith("all 1 documents are relevant; calibration needs relevant and")
    assert written(model) == before


def without_the_best(model: Path, rows: Path, folder: Path) -> Path:
    """The same rows, but the document of the highest score of all is irrelevant."""
    reranker = Reranker.load(model)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    tops = []
    for row in lines:
        scores = reranker.score([(row["query"], d) for d in row["documents"]])
        tops.append((max(scores), row, int(np.argmax(scores))))
    _, row, place = max(tops, key=lambda top: top[0])
    row["labels"][place] = 0
    path = folder / "without.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_one_query_is_not_held_out(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = tiny.examples(1, 8)[0]
    order = [r.index for r in Reranker.load(model).rank(example.query, example.documents)]
    best = [example.documents[order[place]] for place in (0, 2, 3)]
    others = [document for document in example.documents if document not in best]
    one = tmp_path / "one.jsonl"
    one.write_text(
        json.dumps({"query": example.query, "positive": best, "negative": others}) + "\n"
    )
    code = cli.main(calibrate(model, one))
    shown = capsys.readouterr().err
    assert (code, "held out" in shown) == (0, False)
    assert "no held-out figures: there is one query" in shown


def test_rank_applies_it(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probabilities by the saved curve; what is below a number or a goal is left out."""
    texts = tmp_path / "texts.txt"
    documents = tiny.examples(1, 10)[0].documents
    texts.write_text("".join(f"{document}\n" for document in documents))
    out = tmp_path / "out.jsonl"
    rank = ["rank", "--model", str(model), "--query", "fox", "--documents", str(texts)]
    rank += ["--output", str(out)]

    def entries(*words: str) -> list[dict[str, Any]]:
        assert cli.main([*rank, *words]) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    line = mistake(capsys, *rank, "--calibrated", "true")
    assert line.startswith(f"{model} holds no calibration; fit one with rankwright calibrate")
    line = mistake(capsys, *rank, "--threshold", "recall@0.9")
    assert line.startswith(f"{model} holds no calibration")
    assert cli.main(calibrate(model, rows, "--recall", "0.9", "0.5")) == 0
    reranker = Reranker.load(model)
    assert reranker.calibration is not None

    raw = entries()
    scores = [entry["score"] for entry in raw]
    probable = entries("--calibrated", "true")
    assert [entry["index"] for entry in probable] == [entry["index"] for entry in raw]
    assert [entry["score"] for entry in probable] == pytest.approx(
        reranker.calibration.probabilities(scores).tolist(), abs=1e-6
    )
    middle = (scores[3] + scores[4]) / 2
    capsys.readouterr()
    assert entries("--threshold", str(middle)) == raw[:4]
    shown = " ".join(capsys.readouterr().err.split())
    assert f"6 of 10 documents are below the threshold {middle} and left out" in shown
    edge = (probable[3]["score"] + probable[4]["score"]) / 2
    assert entries("--calibrated", "true", "--threshold", str(edge)) == probable[:4]
    assert entries("--threshold", str(middle), "--top_k", "2") == raw[:2]
    for goal in ("recall@0.5", "recall@0.9"):
        kept = sum(score >= reranker.threshold(goal) for score in scores)
        assert entries("--threshold", goal) == raw[:kept]
        assert entries("--calibrated", "true", "--threshold", goal) == probable[:kept]
    assert entries("--threshold", "1e9") == []

    source = tmp_path / "in.jsonl"
    source.write_text(2 * (json.dumps({"query": "fox", "documents": documents}) + "\n"))
    stream = ["rank", "--model", str(model), "--input", str(source), "--output", str(out)]
    capsys.readouterr()
    assert cli.main([*stream, "--threshold", str(middle)]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(line["results"]) for line in found] == [4, 4]
    assert "12 of 20 documents are below" in " ".join(capsys.readouterr().err.split())

    for value in ("high", "nan", "inf"):
        line = mistake(capsys, *rank, "--threshold", value)
        assert line == f"--threshold {value!r} is neither a number nor a goal such as precision@0.9"
    line = mistake(capsys, *rank, "--threshold", "precision@0.9")
    assert "without a threshold 'precision@0.9' (it has recall@0.9, recall@0.5)" in line


def test_other_settings_than_it_was_fitted_under(
    model: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Warned of once each: another length, passages."""
    assert cli.main(calibrate(model, rows)) == 0
    other = Reranker.load(model, max_length=64, passages=Passages())
    with caplog.at_level(logging.WARNING, "rankwright"):
        other.probabilities([0.0])
        assert not caplog.messages
        other.probabilities([0.0], calibrated=True)
        other.probabilities([0.0], calibrated=True)
        Reranker.load(model).probabilities([0.0], calibrated=True)
    assert [message.split(" is used")[0] for message in caplog.messages] == [
        "the model was calibrated with max_length 512 and",
        "the model was calibrated with passages None and",
    ]


def test_a_broken_calibration_is_found_at_once(model: Path, rows: Path) -> None:
    assert cli.main(calibrate(model, rows)) == 0
    path = model / "rankwright.json"
    values = json.loads(path.read_text())
    values["calibration"]["parameters"]["scale"] = -1
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"the calibration in rankwright\.json is broken"):
        Reranker.load(model)


def test_writing_is_all_or_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, base: Path
) -> None:
    """A disk that is full as the new file is written leaves the old one, and nothing beside it."""
    before = written(model)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            checkpoint.write_calibration(model, {"method": "platt"})
    assert written(model) == before
    with pytest.raises(CheckpointError, match=r"holds no rankwright\.json"):
        checkpoint.write_calibration(base, None)
    checkpoint.write_calibration(model, {"method": "platt"})
    checkpoint.write_calibration(model, None)
    assert json.loads((model / "rankwright.json").read_text())["calibration"] is None


def test_training_drops_it_and_fits_its_own(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a calibrated model; with --calibrate the final folder holds that of its own scores."""
    assert cli.main(calibrate(model, rows)) == 0
    options: dict[str, Any] = {
        "model": str(model),
        "dataset": str(rows),
        "val_dataset": str(rows),
        "max_steps": 2,
        "use_cpu": True,
        "learning_rate": 1e-6,
        "save_strategy": "no",
        "load_best_model_at_end": False,
    }
    capsys.readouterr()
    train(**options, output_dir=str(tmp_path / "plain"))
    assert "the calibration of the model does not hold" in " ".join(capsys.readouterr().err.split())
    assert Reranker.load(tmp_path / "plain").calibration is None
    result = train(**options, output_dir=str(tmp_path / "fitted"), calibrate="platt")
    assert "calibrated (platt): negative log-likelihood" in capsys.readouterr().err
    found = Reranker.load(tmp_path / "fitted", device="cpu")
    assert found.calibration is not None
    assert result.reranker.calibration == found.calibration
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    scores = [s for x in lines for s in found.score([(x["query"], d) for d in x["documents"]])]
    expected = cal.fit_platt(scores, [y for x in lines for y in x["labels"]])
    assert found.calibration.scale == pytest.approx(expected.scale, rel=1e-3)
    assert found.calibration.bias == pytest.approx(expected.bias, abs=1e-3)


def test_training_refuses_at_once(rows: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match="--calibrate needs validation rows; give --val_dataset"):
        train(model=str(base), dataset=str(rows), calibrate="platt")
    with pytest.raises(ConfigError, match="--calibrate 'plat' is unknown; did you mean 'platt'"):
        train(model=str(base), dataset=str(rows), calibrate="plat")


def test_a_run_does_not_fail_where_nothing_can_be_fitted(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The order of the labels reversed: the model is saved, and the line says why it is not."""
    turned = tmp_path / "turned.jsonl"
    with turned.open("w") as out:
        for line in rows.read_text().splitlines():
            row = json.loads(line)
            row["labels"] = [1 - y for y in row["labels"]]
            print(json.dumps(row), file=out)
    train(
        model=str(base),
        dataset=str(rows),
        val_dataset=str(turned),
        max_steps=1,
        use_cpu=True,
        learning_rate=1e-7,
        output_dir=str(tmp_path / "out"),
        calibrate="platt",
    )
    shown = " ".join(capsys.readouterr().err.split())
    assert "--calibrate platt: not calibrated: higher scores do not go with relevance" in shown
    assert Reranker.load(tmp_path / "out").calibration is None
