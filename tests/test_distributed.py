"""Several processes on this machine (gloo) end where one ends."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from safetensors.torch import load_file
from torch.testing import assert_close

import rankwright
from rankwright import cli, run_folder, shares, trainer
from rankwright.errors import ConfigError
from rankwright.losses import LOSSES
from rankwright.teacher import scored_row
from rankwright.types import ScoredList
from tests import ranks, tiny
from tests.test_guards import log_of, spoil
from tests.test_trainer import difference, write_rows

# what its tests share is made once, by one worker
pytestmark = pytest.mark.xdist_group("distributed")

# every loss at once: each is averaged over its own terms, and a wrong one shows in the weights
EVERY = "+".join(name for name in LOSSES if name != "listwise_generative")
# steps of 4 groups: an epoch of 17 ends with a single one, so other processes have none
SIZES = (2, 5, 3, 7, 4, 2, 6, 3, 5, 4, 2, 3, 8, 2, 3, 4, 5)
WORLDS = [2, pytest.param(4, marks=pytest.mark.slow)]
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"fsdp": True},
    "zero2": {"deepspeed": "zero2"},
    "zero3": {"deepspeed": "zero3"},
}
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
ZERO = [pytest.param(n, marks=[pytest.mark.slow, needs_deepspeed]) for n in ("zero2", "zero3")]
RESUMED = "classification-lora"
CASES = ("classification", "generative", "classification-lora", "generative-lora")
SAVED = ("checkpoint-10", "checkpoint-20", ".")


def taught_rows(path: Path) -> Path:
    """Rows of 2 to 8 documents with the scores of a teacher."""
    made = [tiny.examples(1, documents=n, seed=i, longest=20)[0] for i, n in enumerate(SIZES)]
    rows = tiny.taught([replace(row, query_id=f"q{i}") for i, row in enumerate(made)])
    lines = [scored_row(ScoredList(row, row.teacher_scores or [])) for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What is trained, with 4 groups in a step (8 where two batches are accumulated)."""
    folder = tmp_path_factory.mktemp("inputs")
    models = {
        name: str(tiny.save_base(folder / name, name, num_hidden_layers=2))
        for name in ("modernbert", "qwen3")
    }
    untied = {"num_hidden_layers": 2, "tie_word_embeddings": False}
    models["untied"] = str(tiny.save_base(folder / "untied", "qwen3", **untied))
    common = {
        "dataset": [str(taught_rows(folder / "rows.jsonl"))],
        # fewer queries than processes
        "val_dataset": [str(write_rows(folder / "val.jsonl", tiny.examples(3, 5, seed=99)))],
        "use_cpu": True,
        "optim": "sgd",
        "learning_rate": 0.05,
        "max_grad_norm": 0.5,
        "dropout": 0.0,
        "lora_dropout": 0.0,
        "max_length": 256,
        "max_steps": 20,
        "save_steps": 10,
        "eval_steps": 10,
        "load_best_model_at_end": False,
        "report_to": "none",
    }
    short = {"model": models["qwen3"], "template_prefix": "{query}: ", "template_suffix": "?"}
    return {
        "classification": {**common, "model": models["modernbert"], "loss_type": EVERY},
        "generative": {
            **common,
            **short,
            "loss_type": f"{EVERY}+listwise_generative",
            "gradient_accumulation_steps": 2,
            # some groups are cut into several chunks, others are not
            "chunk_tokens": 400,
        },
        "classification-lora": {
            **common,
            "model": models["modernbert"],
            "loss_type": "pointwise",
            "tuner_type": "lora",
            "optim": "adamw_torch_fused",
            "learning_rate": 1e-3,
            "logging_steps": 7,
            # groups are cut: into groups of their own, with cut weights into chunks
            "chunk_tokens": 60,
            "load_best_model_at_end": True,
        },
        # its head is read past the head's own forward, and no part of the embeddings
        "generative-lora": {
            **common,
            **short,
            "model": models["untied"],
            "tuner_type": "lora",
            "gradient_checkpointing": True,
        },
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, cases: dict[str, dict[str, Any]]) -> Any:
    """Train a case on one process, once."""
    folder = tmp_path_factory.mktemp("one")

    @cache
    def trained(name: str) -> Path:
        output = folder / name
        rankwright.train(**cases[name], output_dir=str(output), per_device_train_batch_size=4)
        return output

    return trained


def files(folder: Path) -> set[str]:
    """Names of the files below a folder, the random states of the processes aside."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "rng_state" not in name}


def assert_same_weights(found: Path, expected: Path, tolerance: float = 1e-6) -> None:
    """Same tensors in the weights' files of two folders."""
    paths = list(expected.glob("*.safetensors"))
    assert paths
    for path in paths:
        ours, theirs = load_file(found / path.name), load_file(path)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_close(ours[key], theirs[key], rtol=0, atol=tolerance)


def assert_same_norms(found: Path, expected: Path) -> None:
    """Same norms of gradients in the logs of two runs."""
    norms = [
        [entry["grad_norm"] for entry in log_of(folder) if "grad_norm" in entry]
        for folder in (found, expected)
    ]
    assert norms[0]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def moved(base: Path, run: Path) -> float:
    """How far training has moved the weight that it moved most."""
    start, end = (load_file(folder / "model.safetensors") for folder in (base, run))
    return difference(end, start)


def assert_same_run(found: Path, expected: Path, base: Path) -> None:
    """Same files, same tensors to 1e-6, same metrics and validation lists."""
    assert files(found) == files(expected)
    for place in SAVED:
        assert_same_weights(found / place, expected / place)
    assert moved(base, expected) > 1e-3
    # weights cannot tell the scale of clipped gradients
    assert_same_norms(found, expected)
    metrics, wanted = (json.loads((f / "metrics.json").read_text()) for f in (found, expected))
    assert metrics["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-5)
    for name in ("before", "after", "intervals", "tie_rate", "steps", "lengths", "truncated"):
        assert metrics[name] == wanted[name], name
    for name in ("before", "after"):
        texts = [(f / "validation" / f"{name}.jsonl").read_text() for f in (found, expected)]
        rows, others = ([json.loads(line) for line in text.splitlines()] for text in texts)
        assert [row["query_id"] for row in rows] == [row["query_id"] for row in others]
    for place in SAVED[:-1]:
        path = Path(place) / "optimizer.pt"
        state, other = (torch.load(f / path, weights_only=True) for f in (found, expected))
        assert_close(state["state"], other["state"], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def many(
    tmp_path_factory: pytest.TempPathFactory, cases: dict[str, dict[str, Any]], one: Any
) -> Any:
    """Train all cases on several processes with two engines, once."""

    @cache
    def trained(world: int, deepspeed: bool = False) -> Path:
        engines = ("zero2", "zero3") if deepspeed else ("ddp", "fsdp")
        folder = tmp_path_factory.mktemp(f"many-{world}")
        shared = {"per_device_train_batch_size": 4 // world}
        given = {
            f"{engine}-{name}": {**case, **shared, **ENGINES[engine]}
            for engine in engines
            for name, case in cases.items()
        }
        for engine in engines if deepspeed else ("fsdp",):
            cut = {**shared, **ENGINES[engine]}
            _copy_started(one(RESUMED), folder / f"{engine}-resumed")
            given[f"{engine}-resumed"] = {**cases[RESUMED], **cut, "resume": True}
            if world == 2:
                given[f"{engine}-stopped"] = {**cases[RESUMED], **cut, "stopped": 7}
            half = {**cut, "bf16": True, "max_steps": 2}
            for name in ("classification", "generative") if world == 2 else ():
                given[f"{engine}-bf16-{name}"] = {**cases[name], **half}
            spoiled = {**cases["classification"], **cut, "spoiled": "q3"}
            given[f"{engine}-spoiled"] = spoiled
            if not deepspeed:
                skipped = {**cases[RESUMED], **cut, "spoiled": "q3", "on_nan": "skip"}
                given[f"{engine}-skipped"] = skipped
        if deepspeed:
            offloaded = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
            own = {"stage-1": {"stage": 1}, "offloaded": offloaded} if world == 2 else {}
            for name, zero in own.items():
                settings = {"deepspeed": {"zero_optimization": zero}}
                given[name] = {**cases[RESUMED], **shared, **settings}
            ranks.train_cases(folder / "cases.json", given, world, DS_ACCELERATOR="cpu")
            return folder
        # tied embeddings, and an adapter
        for name in ("fsdp-generative", "fsdp-resumed"):
            given[name]["fsdp_config"] = {"cpu_ram_efficient_loading": True}
        # ZeRO-2's way: layers stay whole between forward and backward pass
        given["fsdp-classification"]["fsdp_config"] = {"reshard_after_forward": False}
        # the tests tell accelerate that these are no CPUs; where nobody does
        refused = "--fsdp works on accelerators: on CPUs every process would hold all weights"
        given["refused"] = {**cases["classification"], "fsdp": True, "refused": refused}
        rows = cases["classification"]["dataset"][0]
        words = ["rank", "--model", cases["classification"]["model"]]
        commands = [
            [*words, "--input", rows, "--output", str(folder / "ranked.jsonl")],
            [*words, "--dataset", rows, "--write_scores", str(folder / "scored.jsonl")],
            ["evaluate", *words[1:], "--dataset", rows, "--output", str(folder / "evaluated")],
        ]
        ranks.train_cases(folder / "cases.json", given, world, commands)
        return folder

    return trained


def _copy_started(run: Path, target: Path) -> None:
    """What a run leaves that was killed behind its first checkpoint."""
    shutil.copytree(run / "checkpoint-10", target / "checkpoint-10")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["ddp", "fsdp", *ZERO])
@pytest.mark.parametrize("world", WORLDS)
def test_processes_equal_one(
    cases: dict[str, dict[str, Any]], one: Any, many: Any, world: int, engine: str, case: str
) -> None:
    """All losses, both kinds, full and LoRA, accumulation, chunks, best checkpoint, files."""
    folder, base = many(world, engine in ("zero2", "zero3")), Path(cases[case]["model"])
    assert_same_run(folder / f"{engine}-{case}", one(case), base)


@pytest.fixture(scope="module")
def single(
    tmp_path_factory: pytest.TempPathFactory, cases: dict[str, dict[str, Any]]
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Each loss by itself on two processes: all weights, cut; adapters, accumulated, not cut."""
    folder = tmp_path_factory.mktemp("single")
    given: dict[str, dict[str, Any]] = {}
    for loss in LOSSES:
        kind = "generative" if loss == "listwise_generative" else "classification"
        # clipped gradients would hide a factor
        plain = {
            **cases[kind],
            "loss_type": loss,
            "max_grad_norm": 1e9,
            "gradient_checkpointing": False,
            "max_steps": 6,
            "save_steps": 6,
            "eval_steps": 6,
            "chunk_tokens": None,
            "learning_rate": 0.01,
        }
        given[f"{loss}-full"] = {**plain, "gradient_accumulation_steps": 1}
        adapters = {"tuner_type": "lora", "gradient_accumulation_steps": 2}
        given[f"{loss}-lora"] = {**plain, **adapters}
    two = {"per_device_train_batch_size": 2}
    ways = {"lora": {}, "full": ENGINES["fsdp"]}
    shared = {
        f"{loss}-{way}": {**given[f"{loss}-{way}"], **two, **engine}
        for way, engine in ways.items()
        for loss in LOSSES
    }
    ranks.train_cases(folder / "cases.json", shared, 2)
    return folder, given


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_by_itself(
    tmp_path: Path, single: tuple[Path, dict[str, dict[str, Any]]], loss: str, way: str
) -> None:
    """In a sum of all, a large one would hide a small one."""
    folder, given = single
    case = given[f"{loss}-{way}"]
    rankwright.train(**case, output_dir=str(tmp_path), per_device_train_batch_size=4)
    found = folder / f"{loss}-{way}"
    assert_same_weights(found, tmp_path)
    assert moved(Path(case["model"]), tmp_path) > 1e-5
    assert_same_norms(found, tmp_path)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("name", ["stage-1", "offloaded"])
def test_deepspeed_by_its_settings(
    cases: dict[str, dict[str, Any]], one: Any, many: Any, name: str
) -> None:
    """ZeRO-1, and ZeRO-3 whose optimiser's states lie and are stepped on the host."""
    assert_same_run(many(2, True) / name, one(RESUMED), Path(cases[RESUMED]["model"]))


@pytest.mark.parametrize("engine", ["fsdp", *ZERO])
@pytest.mark.parametrize("world", WORLDS)
def test_cut_weights_resume_one_process(one: Any, many: Any, world: int, engine: str) -> None:
    """From one process's checkpoint; FSDP with weights that the first process hands on."""
    assert_same_weights(many(world, engine != "fsdp") / f"{engine}-resumed", one(RESUMED))


@pytest.mark.parametrize("engine", ["fsdp", *ZERO])
def test_a_signal_stops_cut_weights(one: Any, many: Any, engine: str) -> None:
    """SIGTERM reaches one process of two in step 7; both save step 8 and go on from there."""
    assert_same_weights(many(2, engine != "fsdp") / f"{engine}-stopped", one(RESUMED))


def test_cut_weights_leave_a_step_out(
    tmp_path: Path, cases: dict[str, dict[str, Any]], many: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of one query, whose scores are NaN on the process that has it."""
    spoil(monkeypatch, "scores", math.nan, "q3")
    case = {**cases[RESUMED], "on_nan": "skip", "per_device_train_batch_size": 4}
    rankwright.train(**case, output_dir=str(tmp_path))
    found = many(2, False) / "fsdp-skipped"
    for place in SAVED:
        # Adam makes more of rounding; a step is 1e-3
        assert_same_weights(found / place, tmp_path / place, 1e-5)
    records = [json.loads((folder / "metrics.json").read_text()) for folder in (found, tmp_path)]
    assert records[0]["skipped_steps"] == records[1]["skipped_steps"] > 1


@pytest.mark.parametrize("engine", ["fsdp", *ZERO])
def test_one_process_resumes_cut_weights(
    tmp_path: Path, cases: dict[str, dict[str, Any]], one: Any, many: Any, engine: str
) -> None:
    """Their checkpoints are one process's, the optimiser's state included."""
    _copy_started(many(2, engine != "fsdp") / f"{engine}-{RESUMED}", tmp_path / "run")
    more = {"per_device_train_batch_size": 4, "resume": True, "output_dir": str(tmp_path / "run")}
    rankwright.train(**cases[RESUMED], **more)
    assert_same_weights(tmp_path / "run", one(RESUMED))


@pytest.mark.parametrize("world", WORLDS)
def test_scoring_is_shared(
    tmp_path: Path,
    cases: dict[str, dict[str, Any]],
    many: Any,
    world: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The files of ``rank`` and ``evaluate`` are one process's to the last byte."""
    monkeypatch.setattr(shares, "BLOCK", 8)
    rows = cases["classification"]["dataset"][0]
    words = ["--model", cases["classification"]["model"]]
    ranked, scored = tmp_path / "ranked.jsonl", tmp_path / "scored.jsonl"
    measured = tmp_path / "evaluated"
    assert cli.main(["rank", *words, "--input", rows, "--output", str(ranked)]) == 0
    assert cli.main(["rank", *words, "--dataset", rows, "--write_scores", str(scored)]) == 0
    assert cli.main(["evaluate", *words, "--dataset", rows, "--output", str(measured)]) == 0
    names = sorted(path.name for path in measured.iterdir())
    assert names == ["metrics.json", "qrels.txt", "run.trec"]
    for path in (ranked, scored, *(measured / name for name in names)):
        found = many(world) / path.relative_to(tmp_path)
        assert found.read_bytes() == path.read_bytes(), path.name
    for path in (ranked, scored):
        assert len(path.read_bytes().splitlines()) == len(SIZES)


@pytest.mark.parametrize("case", ["classification", "generative"])
@pytest.mark.parametrize("engine", ["fsdp", *ZERO])
def test_cut_weights_in_half_precision(
    cases: dict[str, dict[str, Any]], one: Any, many: Any, engine: str, case: str
) -> None:
    """Layers are computed in bfloat16; scores and weights stay float32.

    accelerate's own policy for FSDP and DeepSpeed's half precision would round them.
    """
    folder = many(2, engine != "fsdp") / f"{engine}-bf16-{case}"
    first, exact = (
        [
            score
            for line in (run / "validation" / "before.jsonl").read_text().splitlines()
            for score in json.loads(line)["scores"]
        ]
        for run in (folder, one(case))
    )
    assert 1e-4 < max(abs(a - b) for a, b in zip(first, exact, strict=True)) < 0.1
    lines = (folder / "validation" / "after.jsonl").read_text().splitlines()
    scores = torch.tensor([score for line in lines for score in json.loads(line)["scores"]])
    assert not torch.equal(scores.bfloat16().float(), scores)
    end = load_file(folder / "model.safetensors")
    assert all(end[key].dtype == torch.float32 for key in end)
    assert 1e-3 < moved(Path(cases[case]["model"]), folder) < 0.1


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"fsdp": True}, "--fsdp cuts the weights over processes; start with torchrun"),
        ({"fsdp": "full_shard"}, "--fsdp 'full_shard' is not known; give true"),
        ({"deepspeed": '{"zero_optimization": {"stage": 0}}'}, "zero_optimization.stage is 0; gi"),
        ({"deepspeed": "{}"}, "zero_optimization.stage is None; give 1, 2 or 3, or leave"),
        (
            {"deepspeed": '{"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}'},
            "its setting optimizer is not supported; leave it out, --optim, --learning_rate",
        ),
        (
            {"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}},
            "offloading to nvme is not supported; offload to cpu",
        ),
        ({"deepspeed": "zero2", "fp16": True}, "--fp16 and --deepspeed exclude each other; use"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}},
            "--fp16 and --deepspeed exclude each other; use --bf16 true",
        ),
        (
            {"deepspeed": "zero3", "optim": "adafactor"},
            "--deepspeed and --optim adafactor exclude each other; choose from adamw_torch, ",
        ),
        (
            {"deepspeed": "zero3", "tuner_type": "lora", "quant_bits": 4},
            "--deepspeed with ZeRO-3 and --quant_bits exclude each other",
        ),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2}, "comet": {"api_key": "a key"}}},
            "--deepspeed holds a key or a password, which trackers would write down",
        ),
        ({"deepspeed": '{"zero'}, r"--deepspeed cannot be read \(Unterminated .*; give a file of"),
        ({"fsdp": True, "deepspeed": "zero2"}, "--fsdp and --deepspeed exclude each other"),
        (
            {"fsdp": True, "tuner_type": "lora", "quant_bits": 4},
            "--fsdp and --quant_bits exclude each other",
        ),
        ({"fsdp": True, "fsdp_config": {"fsdp_version": 1}}, "only FSDP version 2"),
        ({"fsdp": True, "fsdp_config": "none.json"}, "--fsdp_config none.json cannot be read"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, cases: dict[str, dict[str, Any]], more: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        rankwright.train(**(cases["classification"] | more), output_dir=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("said", "more", "complaint"),
    [
        ("--fsdp", {}, "works on accelerators: on CPUs every process would hold all weights"),
        ("accelerate", {}, "FSDP, which accelerate launch says to use, works on accelerators"),
        ("accelerate", {"world_size": 1}, "FSDP, which accelerate launch says to use, cuts the we"),
        ("accelerate", {"deepspeed": "zero2"}, "and --deepspeed exclude each other; leave one of"),
    ],
)
def test_fsdp_is_refused_where_there_would_be_none(
    said: str, more: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate leaves it out on CPUs, without a word."""
    if said == "accelerate":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    state = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    plain = {"fsdp": said == "--fsdp", "deepspeed": None, "world_size": 2}
    args = SimpleNamespace(**{**plain, **more}, distributed_state=state)
    arguments = SimpleNamespace(tuner=SimpleNamespace(quant_bits=None))
    assert trainer._fsdp(args)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=complaint):
        trainer._check_fsdp(args, arguments)  # type: ignore[arg-type]
    state.distributed_type = DistributedType.MULTI_GPU
    if not more:
        trainer._check_fsdp(args, arguments)  # type: ignore[arg-type]


def test_processes_are_read_side_by_side() -> None:
    """The first ends when the second does, which writes more than a pipe holds."""
    codes = ("import sys; sys.stdin.read()", "import sys; sys.stderr.write('x' * 1_000_000)")
    end, start = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], **{name: pipe}, stderr=subprocess.PIPE, text=True
        )
        for code, name, pipe in zip(codes, ("stdin", "stdout"), (end, start), strict=True)
    ]
    os.close(end)
    os.close(start)
    assert list(map(len, ranks.errors_of(processes, timeout=60))) == [0, 1_000_000]


def test_deepspeed_is_there_and_starts_or_says_why_not(
    tmp_path: Path, cases: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU accelerate would leave it out, and the run would be another one."""
    told = r"pip install 'rankwright\[deepspeed\]'"
    if find_spec("deepspeed") is not None:
        told = "--deepspeed works on accelerators and in processes that a launcher starts"
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name in ("zero2", "zero3"):
        given = {**cases["classification"], "deepspeed": name}
        with pytest.raises(ConfigError, match=told):
            rankwright.train(**given, output_dir=str(tmp_path / "run"))


@pytest.mark.slow
def test_two_machines(tmp_path: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Two torchrun agents on two addresses of the loopback device, as on two machines."""
    case = {**cases["classification"], "max_steps": 4, "save_steps": 4}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(case))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    rankwright.train(**case, output_dir=str(alone), per_device_train_batch_size=4)
    port = ranks.free_port()
    agents = []
    for node in range(2):
        words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        words += ["--nproc_per_node", "1", "--node_rank", str(node), "--rdzv_backend", "c10d"]
        words += ["--rdzv_endpoint", f"127.0.0.1:{port}", "--local_addr", f"127.0.0.{1 + node}"]
        words += ["-m", "tests.ranks", "train", str(recipe), "--output_dir", str(shared)]
        words += ["--per_device_train_batch_size", "2", "--fsdp", "true"]
        words += ["--accelerator_config", '{"use_configured_state": true}']
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        agents.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
    errors = ranks.errors_of(agents, timeout=200)
    assert [agent.returncode for agent in agents] == [0, 0], errors
    assert "".join(errors).count("saved to") == 1
    assert_same_weights(shared, alone)
    assert files(shared) == files(alone)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_accelerate_launch(tmp_path: Path, cases: dict[str, dict[str, Any]], engine: str) -> None:
    """Two processes that ``accelerate launch`` starts; FSDP by its configuration alone."""
    case = {**cases["generative"], "max_steps": 4, "save_steps": 4}
    recipe, config = tmp_path / "recipe.yaml", tmp_path / "accelerate.yaml"
    recipe.write_text(json.dumps(case))
    # what `accelerate config` writes; this launcher has no DDP of CPU processes but under this name
    settings: dict[str, Any] = {"distributed_type": "MULTI_GPU"}
    if engine == "fsdp":
        wrap = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
        settings = {"distributed_type": "FSDP", "fsdp_config": wrap}
    settings |= {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2}
    config.write_text(json.dumps({**settings, "mixed_precision": "no", "machine_rank": 0}))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    rankwright.train(**case, output_dir=str(alone), per_device_train_batch_size=4)
    words = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    words += ["--main_process_port", str(ranks.free_port()), "-m"]
    words += ["rankwright"] if engine == "ddp" else ["tests.ranks"]
    words += ["train", str(recipe), "--output_dir", str(shared)]
    if engine == "fsdp":
        words += ["--accelerator_config", '{"use_configured_state": true}']
    errors = ranks.run([*words, "--per_device_train_batch_size", "2"])
    assert errors.count("saved to") == 1
    assert_same_weights(shared, alone)
    assert files(shared) == files(alone)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["agent", "all"])
def test_a_launcher_is_told_to_stop(
    tmp_path: Path, cases: dict[str, dict[str, Any]], to: str
) -> None:
    """torchrun passes SIGTERM on; Slurm and a terminal send it to its processes as well."""
    case = {**cases["classification"], "max_steps": 400, "save_steps": 1000, "logging_steps": 1}
    recipe, output, log = (tmp_path / name for name in ("recipe.yaml", "out", "log"))
    recipe.write_text(json.dumps(case))
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    words += ["--master_port", str(ranks.free_port()), "-m", "rankwright", "train", str(recipe)]
    words += ["--output_dir", str(output), "--per_device_train_batch_size", "2"]
    with log.open("w") as file:
        agent = subprocess.Popen(
            words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=file
        )
        try:
            for _ in range(1200):
                if "step 3/" in log.read_text() or agent.poll() is not None:
                    break
                time.sleep(0.1)
            children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            assert len(children) == 2, log.read_text()
            for number in [*map(int, children), agent.pid] if to == "all" else [agent.pid]:
                os.kill(number, signal.SIGTERM)
            agent.wait(60)
        finally:
            agent.kill()
    (checkpoint,) = output.glob("checkpoint-*")
    assert run_folder.damage(checkpoint) is None
    step = int(checkpoint.name.rsplit("-", 1)[1])
    assert 3 <= step < 400
    assert f"stopped at step {step} of 400; the same command with --resume" in log.read_text()
