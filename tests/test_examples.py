"""Every script and YAML recipe of ``examples/`` runs, on a tiny model and few rows."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from rankwright import Reranker, cli, load_examples
from rankwright.arguments import GROUPS, WITHOUT_EFFECT, parse, resolve
from rankwright.losses import find_loss
from tests.tiny import examples, save_base

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDER = EXAMPLES / "train" / "reranker"
NAMES = sorted(path.stem for path in FOLDER.glob("*.sh"))
DOCUMENTED = (
    "train_reranker",
    "train_generative_reranker",
    "train_reranker_listwise",
    "train_generative_reranker_listwise",
    "train_generative_reranker_lora",
)


def words_of(script: Path) -> list[str]:
    """The words of the script's ``rankwright train`` command, without the closing ``"$@"``."""
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    words = shlex.split(text, comments=True)
    start = words.index("train") + 1
    assert words[start - 2] == "rankwright"
    assert words[-1] == "$@", "flags given to a script must win, so they stand last"
    return words[start:-1]


def flags_of(words: list[str]) -> dict[str, str]:
    """Names and values; every flag of the examples has one value."""
    names, values = words[::2], words[1::2]
    assert all(name.startswith("--") for name in names)
    assert len(names) == len(values) == len(set(names))
    return {name[2:]: value for name, value in zip(names, values, strict=True)}


def parsed(words: list[str]) -> dict[str, Any]:
    return parse("rankwright train", [*GROUPS, TrainingArguments], words, recipe=True)


def test_the_documented_scripts_are_there_with_a_twin_each() -> None:
    assert sorted(DOCUMENTED) == NAMES == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    for name in NAMES:
        assert os.access(FOLDER / f"{name}.sh", os.X_OK)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_and_its_twin_say_the_same(name: str) -> None:
    """Same names, same values, once parsed; every name is known, or the parser would raise."""
    words = words_of(FOLDER / f"{name}.sh")
    recipe = FOLDER / f"{name}.yaml"
    script, twin = parsed(words), parsed([str(recipe)])
    assert script == twin
    # what the parser takes out is compared as written
    raw = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert list(flags_of(words)) == list(raw)
    for flag in set(raw) & set(WITHOUT_EFFECT):
        assert flags_of(words)[flag] == str(raw[flag])
    assert resolve(script, {}).flat() == resolve(twin, {}).flat()


def test_the_scripts_hold_the_documented_hyperparameters() -> None:
    """From ms-swift's documentation of its four scripts, and what those leave to chance."""
    generative = {
        "model": "Qwen/Qwen3-Reranker-4B",
        "task_type": "generative_reranker",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
    }
    classification = {
        "model": "Alibaba-NLP/gte-reranker-modernbert-base",
        "task_type": "reranker",
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
    }
    adapters = {"lora_rank": 8, "lora_alpha": 32, "target_modules": ["all-linear"]}
    for name in NAMES:
        given = parsed(words_of(FOLDER / f"{name}.sh"))
        lora = name.endswith("lora")
        expected: dict[str, Any] = {
            "dataset": ["MTEB/scidocs-reranking"],
            "num_train_epochs": 1.0,
            "learning_rate": 5e-5 if lora else 6e-6,
            "split_dataset_ratio": 0.05,
            "eval_steps": 100.0,
            "save_steps": 200.0,
            "dataloader_drop_last": True,
            "bf16": True,
            "max_length": 4096 if lora else 1024,
            "tuner_type": "lora" if lora else "full",
            **(generative if "generative" in name else classification),
            **(adapters | {"warmup_steps": 0.05} if lora else {}),
            **({"deepspeed": "zero2"} if "generative" in name and not lora else {}),
        }
        assert {key: given[key] for key in expected} == expected
        assert find_loss(given["loss_type"]) == ("listwise" if "listwise" in name else "pointwise")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of each kind and rows in the documented format."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = folder / "rows.jsonl"
    lines = [
        {"query": e.query, "positive": e.documents[:1], "negative": e.documents[1:]}
        for e in examples(40, longest=12)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {
        "rows": str(rows),
        "reranker": str(save_base(folder / "modernbert", "modernbert")),
        "generative_reranker": str(
            # as many positions as the examples' --max_length asks for
            save_base(folder / "qwen3", "qwen3", max_position_embeddings=4096)
        ),
    }


def overrides(name: str, tiny: dict[str, str], output: Path) -> list[str]:
    """A dry run: the example's own arguments, but for size, place and precision."""
    kind = "generative_reranker" if "generative" in name else "reranker"
    replaced = {
        "model": tiny[kind],
        "dataset": tiny["rows"],
        "output_dir": str(output),
        "max_steps": "2",
        "eval_steps": "1",
        "save_steps": "2",
        "per_device_train_batch_size": "2",
        "gradient_accumulation_steps": "2",
        "bf16": "false",
        "torch_dtype": "float32",
        "use_cpu": "true",
        "deepspeed": "none",
    }
    return [word for flag, value in replaced.items() for word in (f"--{flag}", value)]


def check_output(output: Path) -> None:
    """The folder holds a model that ranks, and the record of its run."""
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 2
    assert 0 < metrics["before"]["ndcg@10"] <= 1
    assert 0 < metrics["after"]["ndcg@10"] <= 1
    assert (output / "checkpoint-2").is_dir()
    ranked = Reranker.load(output, device="cpu").rank("brown fox", ["a brown fox", "cold rivers"])
    assert sorted(document.index for document in ranked) == [0, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_script_runs(name: str, tiny: dict[str, str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        # the scripts call rankwright and torchrun by name
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "NPROC_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    words = ["bash", str(FOLDER / f"{name}.sh"), *overrides(name, tiny, tmp_path / "output")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_output(tmp_path / "output")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs(name: str, tiny: dict[str, str], tmp_path: Path) -> None:
    words = ["train", str(FOLDER / f"{name}.yaml"), *overrides(name, tiny, tmp_path / "output")]
    assert cli.main(words) == 0
    check_output(tmp_path / "output")


@pytest.fixture
def lifecycle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script from a corpus to a server, as a module."""
    file = EXAMPLES / "lifecycle" / "corpus_to_server.py"
    spec = importlib.util.spec_from_file_location("corpus_to_server", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # where dataclasses look for their annotations
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_from_a_corpus_to_a_server(
    lifecycle: Any, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every step, on real rows; the script itself stops where the server's order is another one."""
    for extra in ("bm25s", "cohere", "fastapi", "plotly", "sentence_transformers"):
        pytest.importorskip(extra)
    base = save_base(tmp_path / "bert", "bert")
    data, out = shared / "data" / "medquad", tmp_path / "life"
    lifecycle.main([str(data), "--output", str(out), "--model", str(base), "--dry_run"])
    report, shown = capsys.readouterr()
    used = set(re.findall(r"^\$ rankwright (\w+)", shown, flags=re.MULTILINE))
    assert used == set(cli.COMMANDS) - {"quickstart"}
    assert "6 lists asked for, each in the order of evaluate" in shown
    # what check finds: the two parts share documents that nobody was asked for, and nothing else
    assert re.search(r"queries +0 *\n.*pairs +0 *\n.*shared positive +0 of 12 rows", report)
    for name in ("teacher", "student"):
        assert "</html>" in (out / f"{name}.html").read_text(encoding="utf-8")
    held_out = load_examples([out / "test.jsonl", out / "validation.jsonl"], purpose="eval")
    assert {len(example.documents) for example in held_out.examples} == {5}
    answers = {
        text
        for name in ("test", "validation")
        for example in load_examples(out / "rows" / f"{name}.jsonl").examples
        for text in example.documents
    }
    trained_on = load_examples([out / "train.jsonl", out / "scored.jsonl"])
    assert len(trained_on.examples) == 20
    assert not answers & {text for e in trained_on.examples for text in e.documents}
    assert all(e.teacher_scores for e in trained_on.examples[12:])
    with pytest.raises(SystemExit, match="is not empty; choose another or remove it"):
        lifecycle.main([str(data), "--output", str(out)])


def test_a_corpus_without_held_out_texts(lifecycle: Any, tmp_path: Path) -> None:
    """A query that differs in its form, and one whose answer is more than half a held-out one."""
    words = [f"w{i}" for i in range(40)]
    held_text = " ".join(words[:20])
    rows = {
        "what causes gout": "fresh text of an answer",
        "what causes flu": " ".join(words[:16]),
        "treatments for flu": " ".join(words[:13] + words[20:32]),
        "what causes colds": "cold air",
        "treatments for colds": "warm tea",
    }
    train = [lifecycle.Example(q, [d, "other"], [1.0, 0.0]) for q, d in rows.items()]
    held_out = [lifecycle.Example("treatments for gout", [held_text, "other"], [1.0, 0.0])]
    # of six queries: more than twice is form, and every topic stands twice
    lifecycle.FORM = 0.4
    size = lifecycle.Size(train=5, distil=0, validation=0, test=1)
    lifecycle.split(train, held_out, tmp_path / "rows", size)
    kept = {example.query for example in load_examples(tmp_path / "rows" / "train.jsonl").examples}
    # gout is what the held-out query asks for; all nine runs of the second text are held-out ones,
    # and 6 of the 18 of the third
    assert kept == {"treatments for flu", "what causes colds", "treatments for colds"}
    searched = (tmp_path / "rows" / "corpus-train.jsonl").read_text(encoding="utf-8")
    assert held_text not in searched
    assert words[30] in searched


def test_a_folder_without_rows_is_named(lifecycle: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no train.jsonl and no train.jsonl.gz; give the"):
        lifecycle.main([str(tmp_path)])


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_rank_with_ray(tmp_path: Path) -> None:
    """On a Ray of this machine: every row once, in order, with the model's scores."""
    base = save_base(tmp_path / "base", "bert", num_hidden_layers=2)
    rows = examples(20, documents=3)
    source = tmp_path / "rows.jsonl"
    texts = [{"query": row.query, "documents": row.documents} for row in rows]
    source.write_text("".join(json.dumps(text) + "\n" for text in texts))
    script = Path(__file__).parents[1] / "examples" / "batch" / "rank_with_ray.py"
    words = [sys.executable, str(script), "--model", str(base), "--input", str(source)]
    words += ["--output", str(tmp_path / "out"), "--workers", "2", "--batch", "4"]
    # a short path, as sockets lie below it
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "RAY_OVERRIDE_RESOURCES": '{"CPU": 3}',
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    files = sorted((tmp_path / "out").iterdir())
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [row["query"] for row in found] == [row.query for row in rows]
    expected = Reranker.load(base, device="cpu").score_examples(rows)
    for row, scored in zip(found, expected, strict=True):
        assert row["documents"] == scored.example.documents
        assert row["scores"] == pytest.approx(scored.scores, abs=1e-5)
        assert row["order"] == scored.order
