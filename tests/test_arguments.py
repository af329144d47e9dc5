"""Arguments: who wins, what is refused, what is accepted without effect, what is saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from rankwright import trainer
from rankwright.arguments import (
    ALIASES,
    DEEPSPEED,
    ENVIRONMENT,
    GROUPS,
    WITHOUT_EFFECT,
    DataArguments,
    ModelArguments,
    TrainArguments,
    cache_folder,
    from_environment,
    load_options,
    parse,
    resolve,
)
from rankwright.errors import ConfigError

TYPES = [*GROUPS, TrainingArguments]
BASE = ("--model", "m", "--dataset", "rows.jsonl")


def read(*words: str, environ: Mapping[str, str] | None = None) -> TrainArguments:
    """Resolve a command line, in an empty environment."""
    return resolve(parse("rankwright train", TYPES, words, recipe=True), environ or {})


def refused(*words: str, environ: Mapping[str, str] | None = None) -> str:
    """The one line that a command line is refused with."""
    with pytest.raises(ConfigError) as error:
        read(*words, environ=environ)
    assert "\n" not in str(error.value)
    return str(error.value)


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- who wins ---------------------------------------------------------------------------------

# variable, loss, argument, default, and one value each for the environment, the YAML file, the flag
LADDER: list[tuple[str, str, str, Any, str, str, str]] = [
    *(
        (f"GENERATIVE_RERANKER_{side}_TOKEN", "listwise", f"{side.lower()}_token", None, *values)
        for side, values in (("POSITIVE", ("a", "b", "c")), ("NEGATIVE", ("d", "e", "f")))
    ),
    *(
        (f"{prefix}_RERANKER_{name.upper()}", loss, name, default, *values)
        for prefix, loss in (
            ("LISTWISE", "listwise"),
            ("LISTWISE_GENERATIVE", "listwise_generative"),
        )
        for name, default, values in (
            ("temperature", 1.0, ("0.5", "0.25", "2.0")),
            ("min_group_size", 2, ("3", "4", "5")),
        )
    ),
    ("MAX_POSITIVE_SAMPLES", "listwise", "max_positive_samples", 1, "2", "3", "4"),
    ("MAX_NEGATIVE_SAMPLES", "listwise", "max_negative_samples", 7, "2", "3", "4"),
    ("USE_HF", "listwise", "use_hf", True, "0", "true", "false"),
]


def test_the_ladder_has_every_variable() -> None:
    assert [row[0] for row in LADDER] == list(ENVIRONMENT)
    assert {row[0]: row[2] for row in LADDER} == {v: name for v, (name, _) in ENVIRONMENT.items()}


@pytest.mark.parametrize(
    ("variable", "loss", "name", "default", "environment", "yaml", "flag"),
    LADDER,
    ids=[row[0] for row in LADDER],
)
def test_flag_before_yaml_before_environment_before_default(
    tmp_path: Path,
    variable: str,
    loss: str,
    name: str,
    default: Any,
    environment: str,
    yaml: str,
    flag: str,
) -> None:
    def value(*words: str, environ: Mapping[str, str] | None = None) -> Any:
        return read(*words, *BASE, "--loss_type", loss, environ=environ).flat()[name]

    def typed(text: str) -> Any:
        if isinstance(default, bool):
            return text in ("1", "true")
        return type(default)(text) if default is not None else text

    file = recipe(tmp_path, f"{name}: {yaml}\n")
    outside = {variable: environment}
    assert value() == default
    assert value(environ=outside) == typed(environment)
    assert value(file, environ=outside) == typed(yaml)
    assert value(file, f"--{name}", flag, environ=outside) == typed(flag)
    # set to nothing is unset
    assert value(environ={variable: " "}) == default


def test_the_token_pair_defaults_to_yes_and_no() -> None:
    """None leaves the checkpoint's own pair in force; a base model has ``yes`` and ``no``."""
    from rankwright.models.checkpoint import ModelSpec

    spec = ModelSpec("generative", None, "", "")
    assert (spec.positive_token, spec.negative_token) == ("yes", "no")


def test_a_losses_variables_speak_of_that_loss_alone() -> None:
    environ = {
        "LISTWISE_RERANKER_TEMPERATURE": "0.5",
        "LISTWISE_GENERATIVE_RERANKER_TEMPERATURE": "0.25",
    }
    expected = {
        "listwise_reranker": 0.5,
        "listwise_generative_reranker": 0.25,
        "pointwise_reranker": 1.0,
        "generative_reranker": 1.0,
    }
    for name, temperature in expected.items():
        arguments = read(*BASE, "--loss_type", name, environ=environ)
        assert arguments.loss.temperature == temperature


def test_the_processs_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_NEGATIVE_SAMPLES", "3")
    assert resolve({"model": "m", "dataset": "rows.jsonl"}).data.max_negative_samples == 3


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("MAX_NEGATIVE_SAMPLES", "many", "MAX_NEGATIVE_SAMPLES='many' is not a number; correct"),
        ("MAX_NEGATIVE_SAMPLES", "-1", "--max_negative_samples -1 is less than 0"),
        ("MAX_POSITIVE_SAMPLES", "0", "--max_positive_samples 0 is less than 1"),
        ("LISTWISE_RERANKER_TEMPERATURE", "hot", "LISTWISE_RERANKER_TEMPERATURE='hot' is not a"),
        ("LISTWISE_RERANKER_TEMPERATURE", "0", "--temperature 0.0 is not a number above 0"),
        ("LISTWISE_RERANKER_MIN_GROUP_SIZE", "2.5", "LISTWISE_RERANKER_MIN_GROUP_SIZE='2.5' is"),
        ("USE_HF", "perhaps", "USE_HF: use_hf 'perhaps' is neither true nor false"),
    ],
)
def test_a_malformed_variable_is_refused(variable: str, value: str, complaint: str) -> None:
    assert refused(*BASE, environ={variable: value}).startswith(complaint)


def test_commands_without_a_loss_read_what_speaks_of_the_model() -> None:
    environ = {"USE_HF": "0", "LISTWISE_RERANKER_TEMPERATURE": "no number"}
    assert from_environment(environ, "") == {"use_hf": False}


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--train_type", "lora"], "tuner_type", "lora"),
        (["--sft_type", "lora"], "tuner_type", "lora"),
        (["--model_revision", "v2"], "revision", "v2"),
        (["--evaluation_strategy", "epoch"], "eval_strategy", "epoch"),
        (["--warmup_ratio", "0.05"], "warmup_steps", 0.05),
        (["--overwrite_output_dir", "true"], "overwrite", True),
        (["--max-length", "64"], "max_length", 64),
        (["--max_length=64"], "max_length", 64),
        (["--loss_type", "generative_reranker"], "loss_type", "pointwise"),
    ],
)
def test_aliases(words: list[str], name: str, value: Any) -> None:
    assert read(*BASE, *words).flat()[name] == value
    key = words[0].partition("=")[0][2:]
    if key in ALIASES:
        assert resolve({"model": "m", "dataset": ["r"], key: value}, {}).flat()[name] == value


def test_every_alias_is_tested_and_means_a_known_name() -> None:
    names = {f for kind in TYPES for f in kind.__dataclass_fields__}
    assert set(ALIASES.values()) <= names
    assert not set(ALIASES) & {f for kind in GROUPS for f in kind.__dataclass_fields__}
    marks = test_aliases.pytestmark[0].args[1]
    assert set(ALIASES) <= {words[0].partition("=")[0][2:] for words, _, _ in marks}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_has_no_effect_is_accepted_and_logged(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = read(*BASE).flat()
    for words in ([f"--{name}", "x", "y"], [f"--{name}=x"], [f"--{name}"]):
        caplog.clear()
        with caplog.at_level(logging.INFO, "rankwright"):
            assert read(*words, *BASE).flat() == plain
        assert caplog.messages == [f"--{name} has no effect: {WITHOUT_EFFECT[name]}"]
    caplog.clear()
    with caplog.at_level(logging.INFO, "rankwright"):
        assert resolve({"model": "m", "dataset": ["rows.jsonl"], name: "x"}, {}).flat() == plain
    assert caplog.messages == [f"--{name} has no effect: {WITHOUT_EFFECT[name]}"]


def test_an_unknown_flag_names_the_nearest() -> None:
    assert refused(*BASE, "--lerning_rate", "1") == (
        "--lerning_rate is not an argument; did you mean --learning_rate?"
    )
    assert refused(*BASE, "--tuner-typ=lora") == (
        "--tuner_typ is not an argument; did you mean --tuner_type?"
    )
    assert refused(*BASE, "--zzz") == "--zzz is not an argument; see --help for all arguments"
    with pytest.raises(ConfigError, match="--lerning_rate is not an argument; did you mean"):
        resolve({"model": "m", "dataset": "rows.jsonl", "lerning_rate": 1.0}, {})
    # a prefix is no abbreviation
    assert refused(*BASE, "--learning", "1").startswith("--learning is not an argument; did you")
    assert (
        refused("stray.yaml", *BASE) == "stray.yaml does not exist; give a YAML file or arguments"
    )
    assert "'-x' stands alone" in refused(*BASE, "-x")


MS_SWIFT = """
    --model m --task_type generative_reranker --loss_type generative_reranker --tuner_type full
    --dataset MTEB/scidocs-reranking --split_dataset_ratio 0.05 --eval_strategy steps
    --output_dir output --eval_steps 100 --num_train_epochs 1 --save_steps 200
    --per_device_train_batch_size 2 --per_device_eval_batch_size 2
    --gradient_accumulation_steps 8 --dataset_num_proc 8 --learning_rate 6e-6
    --label_names labels --dataloader_drop_last true --load_from_cache_file true
    --torch_dtype bfloat16 --max_length 4096 --warmup_ratio 0.05 --lora_rank 8 --lora_alpha 32
    --target_modules all-linear --attn_impl flash_attn --padding_free true
    --dataloader_num_workers 8 --logging_steps 5 --save_total_limit 2 --deepspeed zero2
"""


@pytest.mark.parametrize("tuner", ["--tuner_type", "--train_type"])
def test_every_flag_of_the_documented_scripts_is_read(tuner: str) -> None:
    """The union of ms-swift's reranker scripts, word for word."""
    arguments = read(*MS_SWIFT.replace("--tuner_type", tuner).split())
    flat = arguments.flat()
    expected = {
        "model": "m",
        "task_type": "generative_reranker",
        "loss_type": "pointwise",
        "tuner_type": "full",
        "dataset": ["MTEB/scidocs-reranking"],
        "split_dataset_ratio": 0.05,
        "eval_strategy": "steps",
        "output_dir": "output",
        "eval_steps": 100,
        "num_train_epochs": 1,
        "save_steps": 200,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "dataset_num_proc": 8,
        "load_from_cache_file": True,
        "learning_rate": 6e-6,
        "dataloader_drop_last": True,
        "torch_dtype": "float32",
        "max_length": 4096,
        "warmup_steps": 0.05,
        "lora_rank": 8,
        "lora_alpha": 32,
        "target_modules": ["all-linear"],
        "dataloader_num_workers": 8,
        "logging_steps": 5,
        "save_total_limit": 2,
        "deepspeed": DEEPSPEED["zero2"],
        "bf16": True,
    }
    assert {name: flat[name] for name in expected} == expected
    assert flat["attn_impl"] == "flash_attn"  # which means: the fastest that runs here
    assert not {"label_names", "padding_free"} & set(flat)
    assert load_options(arguments.model)["kind"] == "generative"


# --- YAML -------------------------------------------------------------------------------------


def test_a_recipe_holds_lists_booleans_numbers_and_dicts(tmp_path: Path) -> None:
    """1e-5 is a text to YAML 1.1 and a number to us; an empty value leaves the default."""
    file = recipe(
        tmp_path,
        "# a recipe\n"
        "model: m\n"
        "dataset: [a.jsonl, 'with space.jsonl']\n"
        "val_dataset:\n  - b.jsonl\n"
        "packed: false\n"
        "bf16: no\n"
        "learning_rate: 1e-5\n"
        "max_length:\n"
        "train_type: lora\n"
        "lr_scheduler_kwargs: {min_lr: 1.0e-7}\n"
        'template_prefix: "Q: {query}\\nD: "\n'
        "load_from_cache_file: true\n",
    )
    arguments = read(file, "--tuner_type", "full")
    assert arguments.data.dataset == ["a.jsonl", "with space.jsonl"]
    assert arguments.data.val_dataset == ["b.jsonl"]
    assert arguments.model.packed is False
    assert arguments.training["bf16"] is False
    assert arguments.training["learning_rate"] == 1e-5
    assert arguments.model.max_length is None
    assert arguments.tuner.tuner_type == "full"
    assert arguments.model.template_prefix == "Q: {query}\nD: "
    made = TrainingArguments(**{**arguments.training, "output_dir": str(tmp_path)})
    assert made.lr_scheduler_kwargs == {"min_lr": 1e-7}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", " holds no names; write one 'name: value' a line"),
        ("- model\n", " holds no names; write one"),
        ("model\n", " holds no names; write one"),
        ("model: m\ndataset: [a\nbf16: true\n", ":3 is not YAML: expected ',' or ']', but got"),
        ("model: m\n\tbf16: true\n", ":2 is not YAML: found character '\\t'"),
        ("model: m\n\nlerning_rate: 1\n", ":3: --lerning_rate is not an argument; did you mean"),
        ("model: m\non: 1\n", ":2: --on is not an argument"),
        ("model: m\nbf16: true\nmodel: n\n", ":3: model stands in line 1 too; drop one"),
        ("model: m\nlearning_rate: fast\n", ":2: argument --learning_rate/--learning-rate: inv"),
        ("model: m\ndataset: []\n", ":2: argument --dataset: expected at least one argument"),
        ("model: m\npacked: perhaps\n", ":2: argument --packed: Truthy value expected"),
    ],
)
def test_a_broken_recipe_is_refused_with_its_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = recipe(tmp_path, text)
    assert refused(file).startswith(f"{file}{complaint}")


def test_an_unreadable_recipe_is_refused(tmp_path: Path) -> None:
    assert refused(str(tmp_path)) == f"{tmp_path} cannot be read (Is a directory); give a YAML file"
    (tmp_path / "latin.yaml").write_bytes("model: é".encode("latin-1"))
    assert "is not YAML: 'utf-8' codec" in refused(str(tmp_path / "latin.yaml"))


# --- what excludes what, and what is allowed --------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--val_dataset v --split_dataset_ratio 0.1", "--val_dataset and --split_dataset_ratio ex"),
        (
            "--batch_tokens 512 --per_device_train_batch_size 8",
            "--batch_tokens and --per_device_train_batch_size exclude each other; give one",
        ),
        ("--resume true --overwrite true", "--resume and --overwrite exclude each other"),
        ("--quant_bits 4", "--quant_bits freezes the weights, so there is nothing to train; add"),
        ("--split_dataset_ratio 1", "--split_dataset_ratio 1.0 is not in [0, 1)"),
        ("--split_dataset_ratio nan", "--split_dataset_ratio nan is not in [0, 1)"),
        ("--temperature nan", "--temperature nan is not a number above 0"),
        ("--temperature inf", "--temperature inf is not a number above 0"),
        ("--pos_weight -1", "--pos_weight -1.0 is not a number above 0"),
        ("--max_length 0", "--max_length 0 is less than 1"),
        ("--lora_rank 0", "--lora_rank 0 is less than 1"),
        ("--batch_tokens 0", "--batch_tokens 0 is less than 1"),
        ("--min_group_size 0", "--min_group_size 0 is less than 1"),
        ("--task_type rerank", "--task_type 'rerank' is unknown; did you mean 'reranker'? Choose"),
        ("--torch_dtype int8", "--torch_dtype 'int8' is unknown; choose from float32, bfloat16"),
        ("--tuner_type qlora", "--tuner_type 'qlora' is unknown; did you mean 'lora'? Choose"),
        ("--group some", "--group 'some' is unknown; choose from positive, all"),
        ("--loss_type hinge", "--loss_type 'hinge' is unknown; choose from pointwise"),
        ("--use_hf perhaps", "argument --use_hf/--use-hf: Truthy value expected"),
        ("--learning_rate", "argument --learning_rate/--learning-rate: expected one argument"),
    ],
)
def test_what_does_not_fit_is_refused(words: str, complaint: str) -> None:
    assert refused(*BASE, *words.split()).startswith(complaint)


def test_model_and_dataset_are_needed() -> None:
    assert refused("--dataset", "a").startswith("--model is missing; give a local folder or an id")
    assert refused("--model", "m").startswith("--dataset is missing; give files, folders or ids")


def test_lora_has_its_own_learning_rate() -> None:
    """1e-4 for adapters, as in ms-swift; 2e-5 for full training; what is given wins."""
    assert read(*BASE).training["learning_rate"] == 2e-5
    assert read(*BASE, "--tuner_type", "lora").training["learning_rate"] == 1e-4
    given = read(*BASE, "--tuner_type", "lora", "--learning_rate", "3e-5")
    assert given.training["learning_rate"] == 3e-5


def test_lists_from_python_and_from_flags() -> None:
    """One path may be given as such, spaces and all; names may be joined by commas."""
    arguments = resolve(
        {
            "model": "m",
            "dataset": "my rows.jsonl",
            "val_dataset": Path("a") / "b.jsonl",
            "metrics": "ndcg@10, map",
            "target_modules": ["q_proj,v_proj"],
        },
        {},
    )
    assert arguments.data.dataset == ["my rows.jsonl"]
    assert arguments.data.val_dataset == [str(Path("a") / "b.jsonl")]
    assert arguments.run.metrics == ["ndcg@10", "map"]
    assert arguments.tuner.target_modules == ["q_proj", "v_proj"]
    assert read(*BASE, "--metrics", "ndcg@10,map").run.metrics == ["ndcg@10", "map"]
    assert read("--model", "m", "--dataset", "a", "b").data.dataset == ["a", "b"]
    # defaults are not shared between runs
    assert DataArguments().dataset is not DataArguments().dataset


# --- DeepSpeed --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_by_name(name: str, stage: int) -> None:
    """The name becomes a configuration, of which a run may change its own copy only."""
    training = read(*BASE, "--deepspeed", name).training
    assert training["deepspeed"]["zero_optimization"]["stage"] == stage
    assert training["deepspeed"] == DEEPSPEED[name]
    training["deepspeed"]["zero_optimization"]["stage"] = 0
    assert DEEPSPEED[name]["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize("name", DEEPSPEED)
def test_transformers_fills_every_auto(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro batch 2 × accumulation 8 on one process: a train batch of 16, and no "auto" is left.

    DeepSpeed itself is not needed to fill its configuration in.
    """
    from types import SimpleNamespace

    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers.integrations import deepspeed

    class Filled(deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
        """transformers' class, over accelerate's even where it found no DeepSpeed."""

    monkeypatch.setattr(deepspeed, "dep_version_check", lambda package: None)
    monkeypatch.setattr(deepspeed, "set_hf_deepspeed_config", lambda config: None)
    words = "--per_device_train_batch_size 2 --gradient_accumulation_steps 8 --torch_dtype bfloat16"
    given = read(*BASE, *words.split(), "--deepspeed", name)
    training = given.training
    training["deepspeed"] = trainer._deepspeed_config(training, given)
    values = Filled(training.pop("deepspeed"))
    arguments = TrainingArguments(**{**training, "output_dir": "unused", "use_cpu": True})
    values.trainer_config_process(arguments)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=64))
    values.trainer_config_finalize(arguments, model, 100)
    assert "auto" not in str(values.config)
    assert values.config["train_batch_size"] == 16
    assert values.config["train_micro_batch_size_per_gpu"] == 2
    assert values.config["gradient_clipping"] == arguments.max_grad_norm == 1.0
    assert arguments.bf16
    assert not {"bf16", "fp16"} & set(values.config)  # the trainer's autocast is around it
    assert values.config["zero_optimization"]["reduce_bucket_size"] == 64 * 64


def test_deepspeed_by_file_dict_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text("{}")
    assert read(*BASE, "--deepspeed", str(path)).training["deepspeed"] == str(path)
    text = '{"zero_optimization": {"stage": 1}}'
    assert read(*BASE, "--deepspeed", text).training["deepspeed"] == text
    own = {"model": "m", "dataset": ["r"], "deepspeed": {"zero_optimization": {"stage": 1}}}
    assert resolve(own, {}).training["deepspeed"] == own["deepspeed"]
    file = recipe(tmp_path, "deepspeed: zero3\n")
    assert "deepspeed" not in read(file, *BASE, "--deepspeed", "none").training
    assert refused(*BASE, "--deepspeed", "zero_2") == (
        "--deepspeed 'zero_2' is neither a file nor a name; did you mean 'zero2'? "
        "Give a file or one of zero2, zero3"
    )


def test_full_training_keeps_float32_weights() -> None:
    """In bfloat16 (8 bits) a step of 6e-6 on a weight of 0.02 is lost in the rounding."""
    for dtype, flag in (("bfloat16", "bf16"), ("float16", "fp16")):
        for engine in ("none", "zero2"):
            full = read(*BASE, "--torch_dtype", dtype, "--deepspeed", engine)
            assert (full.model.torch_dtype, full.training[flag]) == ("float32", True)
        lora = read(*BASE, "--torch_dtype", dtype, "--tuner_type", "lora")
        assert lora.model.torch_dtype == dtype
        assert flag not in lora.training
    # of a checkpoint in bfloat16
    assert read(*BASE, "--torch_dtype", "auto").model.torch_dtype == "float32"
    auto = read(*BASE, "--torch_dtype", "auto", "--tuner_type", "lora")
    assert auto.model.torch_dtype == "auto"


# --- what is saved ----------------------------------------------------------------------------


def test_flat_holds_everything_but_secrets() -> None:
    """What rankwright.json keeps: resolved names, the environment's part, never a hub token."""
    arguments = read(
        *BASE,
        *("--hub_token", "hf_secret"),
        *("--batch_tokens", "512", "--loss_type", "listwise_reranker"),
        environ={
            "GENERATIVE_RERANKER_POSITIVE_TOKEN": "true",
            "LISTWISE_RERANKER_TEMPERATURE": "0.5",
        },
    )
    flat = arguments.flat()
    assert "hf_secret" not in str(flat)
    own = {f for kind in GROUPS for f in kind.__dataclass_fields__}
    assert own <= set(flat)
    assert flat["positive_token"] == "true"
    assert flat["batch_tokens"] == 512
    assert flat["temperature"] == 0.5
    assert flat["loss_type"] == "listwise"
    # a saved run, given back, is the same run
    again = resolve(flat, {})
    assert again.flat() == flat


def test_every_option_of_the_loader_is_an_argument() -> None:
    from dataclasses import fields

    from rankwright.models.checkpoint import LoadOptions

    options = load_options(ModelArguments(model="m", task_type="generative_reranker"))
    LoadOptions(**options)
    assert {f.name for f in fields(LoadOptions)} - set(options) <= {"quantization"}


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument, the variable, XDG's, the home; none without a home. It is not saved."""
    home = {"HOME": "/h"}
    xdg = {"XDG_CACHE_HOME": "/x"}
    ours = {"RANKWRIGHT_CACHE": "/r"}
    assert cache_folder(DataArguments(cache_dir="/c"), ours | xdg) == Path("/c")
    assert cache_folder(DataArguments(), ours | xdg) == Path("/r")
    assert cache_folder(DataArguments(), xdg | {"RANKWRIGHT_CACHE": ""}) == Path("/x/rankwright")
    monkeypatch.setenv("HOME", home["HOME"])
    assert cache_folder(DataArguments(), {}) == Path("/h/.cache/rankwright")

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder(DataArguments(), {}) is None
    assert read(*BASE, environ=ours).flat()["cache_dir"] is None


def test_lazy_tokenize() -> None:
    assert read(*BASE).data.lazy_tokenize is None
    assert read(*BASE, "--lazy_tokenize", "false").data.lazy_tokenize is False
    assert read(*BASE, "--lazy_tokenize", "true").data.lazy_tokenize is True
    read(*BASE, "--lazy_tokenize", "false", "--batch_tokens", "900")
    assert refused(*BASE, "--lazy_tokenize", "true", "--batch_tokens", "900").startswith(
        "--lazy_tokenize true and --batch_tokens exclude each other"
    )
    assert refused(*BASE, "--dataset_num_proc", "0") == "--dataset_num_proc 0 is less than 1"
