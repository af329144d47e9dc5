"""What is never run, never read and never written, whatever a file or an environment holds.

Paths that hubs list are in test_hub.py, the page and its texts in test_page.py and test_browser.py
(report) and test_card.py (model card), the server's gate in tests/server.
"""

from __future__ import annotations

import ast
import importlib
import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwright
from rankwright import cli
from rankwright.arguments import resolve
from rankwright.errors import CheckpointError, ConfigError
from rankwright.files import write_marker
from rankwright.models import checkpoint
from rankwright.models.checkpoint import LoadOptions, ModelSpec
from rankwright.models.memory import outline
from rankwright.run_folder import MARKER
from rankwright.trainer import train_on
from tests import tiny

SOURCE = Path(rankwright.__file__).parent
CANARY = "canary-7f3a9e51c2d84b60"


class Hostile:
    """A pickle that, when it is read, writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


# ---------------------------------------------------------------------------- what the code calls


def forbidden(tree: ast.AST) -> list[str]:
    """Calls and imports that would run what a file or a text says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
                found.append(name)
            if name.endswith(("yaml.load", "yaml.unsafe_load", "yaml.full_load")):
                found.append(name)
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append(name)
            if name == "np.load" and given.get("allow_pickle", "False") != "False":
                found.append(name)
            if given.get("shell", "False") != "False":
                found.append(f"{name} with shell")
            if name.endswith("extractall") or name == "shutil.unpack_archive":
                found.append(name)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            # the error of torch's own reader is no reader
            if name != "pickle.UnpicklingError" and name.split(".")[0] in (
                "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
            ):  # fmt: skip
                found.append(name)
            if "UnsafeLoader" in name or "FullLoader" in name:
                found.append(name)
    return found


def test_nothing_that_runs_what_files_say() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 60
    found = {
        file.name: calls
        for file in files
        if (calls := forbidden(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')", "exec(text)", "import pickle", "from pickle import loads", "torch.load(path)",
        "torch.load(path, weights_only=False)", "yaml.load(text, Loader=yaml.FullLoader)",
        "subprocess.run(text, shell=True)", "archive.extractall()", "np.load(f, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_search_finds_it(line: str) -> None:
    assert forbidden(ast.parse(line))


# ----------------------------------------------------------------------------------------- pickles


def hostile_pickle(path: Path, marker: Path) -> None:
    """A file of torch with something else than tensors in it."""
    torch.save({"weight": Hostile(marker)}, path)
    # it does what it says: read without care, it runs
    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_pickled_weights_are_refused(kind: str, tmp_path: Path) -> None:
    """In one line with the way to convert them; the conversion is one that works."""
    folder = tiny.save_base(tmp_path / "model", kind)
    weights = checkpoint.load(folder).model
    marker = tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    hostile_pickle(folder / "pytorch_model.bin", marker)
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(folder)
    said = str(caught.value)
    assert said.startswith(f"{folder} has pickled weights only (pytorch_model.bin), which can run ")
    assert "\n" not in said
    assert not marker.exists()
    assert cli.main(["evaluate", "--model", str(folder), "--dataset", "no.jsonl"]) == 2
    # the same folder with an honest pickle, by the way that the message names
    torch.save(weights.hf.state_dict(), folder / "pytorch_model.bin")
    convert = said.rpartition("trust them: ")[2]
    auto, _, rest = convert.partition(".")
    assert rest == f"from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    loader = getattr(importlib.import_module("transformers"), auto)
    loader.from_pretrained(str(folder)).save_pretrained(str(folder))
    again = checkpoint.load(folder).model
    for one, two in zip(weights.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    base = tiny.save_base(tmp_path / "base", "bert")
    model = checkpoint.load(base).model.hf
    config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    folder, marker = tmp_path / "adapter", tmp_path / "marker"
    get_peft_model(model, config).save_pretrained(folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    values["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(values))
    weights = load_file(folder / "adapter_model.safetensors")
    checkpoint.load(folder)
    (folder / "adapter_model.safetensors").unlink()
    hostile_pickle(folder / "adapter_model.bin", marker)
    # another name than the one that peft looks for changes nothing
    save_file(weights, folder / "other.safetensors")
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(folder)
    assert not marker.exists()
    file = str(folder / "adapter_model")
    assert str(caught.value).endswith(
        f"trust them: safetensors.torch.save_file(torch.load({file + '.bin'!r}, "
        f"weights_only=True), {file + '.safetensors'!r})"
    )
    torch.save(weights, folder / "adapter_model.bin")
    save_file(torch.load(f"{file}.bin", weights_only=True), f"{file}.safetensors")
    checkpoint.load(folder)


def mark_again(folder: Path) -> None:
    """Sizes and checksums of a checkpoint's files as whoever changed it would write them."""
    values = json.loads((folder / MARKER).read_text())
    write_marker(folder, MARKER, {"progress": values["progress"]}, checksums=True)
    assert json.loads((folder / MARKER).read_text()).keys() == values.keys()


def test_a_hostile_checkpoint_does_not_run_on_resume(tmp_path: Path) -> None:
    """Optimizer, schedule and generators are files of torch; only tensors are read of them."""
    rows = tiny.examples(8, documents=4)
    base = tiny.save_base(tmp_path / "base", "bert")

    def arguments(steps: int) -> Any:
        given = {
            "model": str(base), "dataset": ["unused"], "output_dir": str(tmp_path / "out"),
            "use_cpu": True, "max_length": 512, "max_steps": steps, "save_steps": 1,
            "per_device_train_batch_size": 2,
        }  # fmt: skip
        return resolve(given, {})

    train_on(arguments(1), rows, [])
    whole = tmp_path / "out" / "checkpoint-1"
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    assert {*names} <= {path.name for path in whole.iterdir()}
    for name in (*names, "training_args.bin"):
        marker, folder = tmp_path / "marker", tmp_path / "hostile" / "checkpoint-1"
        shutil.copytree(whole, folder)
        hostile_pickle(folder / name, marker)
        mark_again(folder)
        if name in names:
            with pytest.raises(CheckpointError, match=r"holds more than tensors and numbers, whic"):
                train_on(arguments(2), rows, [], resume_from=str(folder))
        else:
            # nothing reads it
            train_on(arguments(2), rows, [], resume_from=str(folder))
        assert not marker.exists(), name
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------ code of the model


def test_code_of_a_models_folder_runs_only_when_asked(tmp_path: Path) -> None:
    """``auto_map`` names Python files of the folder, for the configuration and the tokenizer."""
    marker = tmp_path / "marker"
    folder = tiny.save_base(tmp_path / "model", "bert")
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (folder / "own.py").write_text(
        f"{code}from transformers import BertConfig, PreTrainedTokenizerFast\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own-bert'\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    own = config | {"model_type": "own-bert", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer |= {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    tokenizer["tokenizer_class"] = "OwnTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    try:
        checkpoint.load(folder)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right, as long as nothing runs
    assert not marker.exists()
    # it would have run
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(ConfigError):
        checkpoint.load(folder, LoadOptions(trust_remote_code=True))
    assert marker.exists()


def test_code_of_a_model_runs_only_when_asked(tmp_path: Path) -> None:
    """A class of the folder's own for an architecture that transformers has, too."""
    marker = tmp_path / "marker"
    folder = tiny.save_base(tmp_path / "model", "bert")
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import BertForSequenceClassification\n"
        "class OwnModel(BertForSequenceClassification):\n    pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    assert type(checkpoint.load(folder).model.hf).__name__ == "BertForSequenceClassification"
    outline(checkpoint.describe(str(folder), LoadOptions()), LoadOptions())
    assert not marker.exists()
    options = LoadOptions(trust_remote_code=True)
    assert type(checkpoint.load(folder, options).model.hf).__name__ == "OwnModel"
    assert marker.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "other"}, "kind is 'other'; it must be"),
        ({"max_length": "many"}, "max_length is no int"),
        ({"template_prefix": 5}, "template_prefix is no str"),
        ({"instruction": None}, "instruction is no str"),
        ({"training": []}, "training is no dict"),
    ],
)
def test_a_hostile_rankwright_json_is_one_line(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    values = {
        "kind": "classification", "template_prefix": None, "template_suffix": "", "instruction": "",
    }  # fmt: skip
    file = tmp_path / "rankwright.json"
    file.write_text(json.dumps(values))
    assert ModelSpec.load(tmp_path) == ModelSpec(**values)
    file.write_text(json.dumps(values | change))
    with pytest.raises(CheckpointError, match=f"rankwright.json is broken .{said}"):
        ModelSpec.load(tmp_path)
    for text in ("[" * 100_000, "[]", "5", '{"kind": 1}'):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"rankwright\.json is broken"):
            ModelSpec.load(tmp_path)


# ----------------------------------------------------------------------------------------- secrets

SECRET_VARIABLES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "RANKWRIGHT_API_KEY",
    "WANDB_API_KEY", "COMET_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY",
)  # fmt: skip


def holding_the_canary(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    )


def test_a_secret_is_written_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By argument, in a recipe, in DeepSpeed's configuration or in the environment."""
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, CANARY)
    caplog.set_level(logging.DEBUG)
    base = tiny.save_base(tmp_path / "base", "bert")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"query": e.query, "documents": e.documents, "labels": e.labels}) + "\n"
            for e in tiny.examples(8, documents=4)
        )
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"hub_token: {CANARY}\nreport_to: tensorboard\n")
    out = tmp_path / "out"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(out / "logs"))
    words = [
        "train", str(recipe), "--model", str(base), "--dataset", str(rows), "--output_dir",
        str(out), "--split_dataset_ratio", "0.3", "--max_steps", "2", "--save_steps", "1",
        "--cache_dir", str(tmp_path / "cache"), "--use_cpu", "true",
    ]  # fmt: skip
    assert cli.main(words) == 0
    assert cli.main(["report", str(out)]) == 0
    words = ["evaluate", "--model", str(out), "--dataset", str(rows), "--output", str(out / "e")]
    assert cli.main(words) == 0
    assert (out / "report.html").is_file()
    assert (out / "checkpoint-1").is_dir()
    assert any((out / "logs").rglob("events*"))
    shutil.rmtree(tmp_path / "base")
    recipe.unlink()
    assert holding_the_canary(tmp_path) == []
    captured = capfd.readouterr()
    assert CANARY not in captured.out + captured.err + caplog.text
    # the search would find one
    (out / "e" / "x").write_bytes(b"a" + CANARY.encode())
    assert holding_the_canary(tmp_path) == ["out/e/x"]


def test_secrets_are_left_out_of_the_saved_arguments() -> None:
    """Every argument of transformers and ours that may hold one, and DeepSpeed's nested ones."""
    from dataclasses import fields

    from transformers import TrainingArguments

    given: dict[str, Any] = {"model": "m", "dataset": ["d"], "hub_token": CANARY}
    given["deepspeed"] = {"monitor": {"wandb": {"api_key": CANARY, "secret": CANARY}}}
    assert CANARY not in json.dumps(resolve(given, {}).flat())
    given["deepspeed"]["monitor"]["more"] = [{"api_key": CANARY}]
    assert CANARY not in json.dumps(resolve(given, {}).flat())
    given["deepspeed"] = json.dumps(given["deepspeed"])
    assert CANARY not in json.dumps(resolve(given, {}).flat())
    # a new argument of transformers that may hold a secret must be looked at
    words = ("token", "key", "secret", "password", "credential")
    names = {f.name for f in fields(TrainingArguments) if any(w in f.name for w in words)}
    assert names == {"hub_token", "include_num_input_tokens_seen", "average_tokens_across_devices"}


def test_errors_do_not_repeat_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["serve", "--api_key", CANARY],
        ["serve", f"--api_key={CANARY}", "--model", "no/such", "--port", "x"],
        ["train", "--hub_token", CANARY, "--model", "/no/such"],
        ["train", f"--hub_token={CANARY}", "--dataset", "/no/such", "--model", "/no/such"],
        ["serve", f"--api-kex={CANARY}"],
    ):
        assert cli.main(words) == 2
        said = capsys.readouterr()
        assert CANARY not in said.out + said.err


def test_rows_kept_between_runs_are_the_owners(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("modes are posix's")
    from rankwright.data.store import load_store

    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"query": "q", "positive": ["a"], "negative": ["b"]}) + "\n")
    load_store(rows, tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_the_hostile_pickle_is_one() -> None:
    """It is no tensor, so torch's careful reader refuses it."""
    with pytest.raises(pickle.UnpicklingError):
        torch.load(_bytes(), weights_only=True)


def _bytes() -> Any:
    import io

    file = io.BytesIO()
    torch.save(Hostile(Path("never")), file)
    file.seek(0)
    return file
