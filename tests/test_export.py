"""Every export scores as transformers' own forward does on the model it was made from."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankwright import cli
from rankwright import export as room
from rankwright.arguments import TunerArguments
from rankwright.errors import CheckpointError, ConfigError
from rankwright.export import EXPORTS, OnnxScorer, Options, export_model
from rankwright.models import checkpoint
from rankwright.models.checkpoint import LoadOptions
from rankwright.models.lora import add_adapters
from rankwright.ranking import Reranker
from rankwright.templates import DEFAULT_INSTRUCTION, QWEN3_PREFIX, QWEN3_SUFFIX
from tests import tiny

# which models each format is tried on; a format without an entry fails the meta-test
CASES: dict[str, tuple[str, ...]] = {
    "merged": ("modernbert", "qwen3"),
    "seq-cls": ("qwen3", "qwen2", "llama", "mistral", "bert"),
    "sentence-transformers": ("modernbert", "qwen3"),
    "onnx": ("modernbert", "bert", "qwen3", "xlm-roberta"),
    "vllm": ("xlm-roberta", "qwen3"),
    "tei": ("modernbert",),
}
ONNX_TOOLS = ("onnx", "onnxscript", "onnxruntime")
NEEDS_ONNX = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ONNX_TOOLS)), reason="extra onnx"
)
# in one of the processes that run tests, so that each graph is traced once
ONE_PROCESS = pytest.mark.xdist_group("onnx")


def onnx_test(function: Any) -> Any:
    """Mark a test of ONNX graphs."""
    return NEEDS_ONNX(ONE_PROCESS(function))


def pairs() -> list[tuple[str, str]]:
    return [(e.query, d) for e in tiny.examples(6, documents=4, seed=3) for d in e.documents]


def prompt(query: str, document: str) -> str:
    """The Qwen3-Reranker prompt, written out."""
    return (
        QWEN3_PREFIX.format(instruction=DEFAULT_INSTRUCTION, query=query) + document + QWEN3_SUFFIX
    )


def reference(folder: Path) -> list[float]:
    """Scores by transformers' own forward on the model as it was, one pair at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    scores = []
    with torch.no_grad():
        if architecture.endswith("ForCausalLM"):
            model = AutoModelForCausalLM.from_pretrained(folder).double()
            yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
            for pair in pairs():
                inputs = tokenizer(prompt(*pair), add_special_tokens=False, return_tensors="pt")
                logits = model(**inputs).logits[0, -1]
                scores.append(float(logits[yes] - logits[no]))
        else:
            model = AutoModelForSequenceClassification.from_pretrained(folder).double()
            for pair in pairs():
                scores.append(float(model(**tokenizer(*pair, return_tensors="pt")).logits[0, 0]))
    return scores


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of base models by name, made when first asked for."""
    root = tmp_path_factory.mktemp("bases")
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in made:
            made[name] = tiny.save_base(root / name, name, num_hidden_layers=2)
        return made[name]

    return base


@pytest.fixture(scope="module")
def graphs(bases: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ONNX exports by name of the model, each made once: tracing takes seconds."""
    root = tmp_path_factory.mktemp("graphs")
    made: dict[str, room.ExportResult] = {}

    def graph(name: str) -> room.ExportResult:
        if name not in made:
            made[name] = export_model(bases(name), "onnx", root / name, max_length=512)
        return made[name]

    return graph


def scored_by_its_tool(to: str, folder: Path) -> list[float]:
    """Scores of an export by the tool that reads it, without a line of ours."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if to == "sentence-transformers":
        cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
        model = cross_encoder(str(folder), device="cpu")
        found = model.predict(pairs(), activation_fn=torch.nn.Identity(), convert_to_tensor=True)
        return [float(score) for score in found]
    templated = (folder / "chat_template.jinja").is_file()
    config = json.loads((folder / "config.json").read_text())
    causal = config["architectures"][0].endswith("ForCausalLM")
    if to == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(folder / "model.onnx"))
    else:
        auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        model = auto.from_pretrained(folder)
    scores = []
    for query, document in pairs():
        if templated:
            inputs = tokenizer(
                prompt(query, document), add_special_tokens=False, return_tensors="pt"
            )
        else:
            inputs = tokenizer(query, document, return_tensors="pt")
        if to == "onnx":
            names = [given.name for given in session.get_inputs()]
            values = {name: inputs[name].numpy() for name in names}
            scores.append(float(session.run(None, values)[0][0, 0]))
            continue
        with torch.no_grad():
            logits = model(**inputs).logits
        if causal:
            yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
            scores.append(float(logits[0, -1, yes] - logits[0, -1, no]))
        else:
            scores.append(float(logits[0, 0]))
    return scores


def test_every_format_has_its_case() -> None:
    assert set(CASES) == set(EXPORTS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("to", "name"),
    [
        pytest.param(
            to,
            name,
            marks=[
                *([NEEDS_ONNX, ONE_PROCESS] if to == "onnx" else []),
                *([pytest.mark.slow] if (to, name) == ("onnx", "xlm-roberta") else []),
            ],
        )
        for to, names in CASES.items()
        for name in names
    ],
)
def test_the_export_scores_as_the_original(
    to: str, name: str, bases: Any, graphs: Any, tmp_path: Path
) -> None:
    """The tool that reads the export, against a float64 forward of the original model."""
    if to == "onnx":
        result = graphs(name)
    else:
        result = export_model(bases(name), to, tmp_path / "out", max_length=512)
    expected = reference(bases(name))
    assert np.std(expected) > 1e-2
    assert_close(scored_by_its_tool(to, result.folder), expected, rtol=0, atol=1e-4)
    assert result.pairs == 50
    assert result.difference < 1e-4
    assert sum(result.sizes.values()) > 10_000
    # nothing is left of the temporary folder
    assert [path.name for path in result.folder.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_a_seq_cls_folder_is_a_classification_reranker_with_the_template(
    name: str, bases: Any, tmp_path: Path
) -> None:
    """One row, w_yes − w_no; our loader reads it as classification and writes the same prompt."""
    export_model(bases(name), "seq-cls", tmp_path / "out", max_length=512)
    again = Reranker.load(tmp_path / "out")
    assert again.loaded.spec.kind == "classification"
    assert again.loaded.spec.template.kind == "classification"
    assert again.loaded.spec.template_prefix == QWEN3_PREFIX
    assert_close(again.score(pairs()), reference(bases(name)), rtol=0, atol=1e-4)
    original = AutoModelForCausalLM.from_pretrained(bases(name))
    yes, no = again.loaded.tokenizer.convert_tokens_to_ids(["yes", "no"])
    head = original.get_output_embeddings().weight
    score = again.loaded.model.hf.score.weight
    assert score.shape == (1, head.shape[1])
    assert torch.equal(score[0], head[yes] - head[no])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["pad_token_id"] == again.loaded.tokenizer.pad_token_id


def test_an_adapter_is_merged(bases: Any, tmp_path: Path) -> None:
    """The folder of an adapter alone, whose base lies elsewhere."""
    loaded = checkpoint.load(bases("qwen3"), LoadOptions(max_length=512))
    add_adapters(loaded, TunerArguments(lora_rank=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    scores = Reranker(loaded).score(pairs())
    checkpoint.save(loaded, tmp_path / "adapter")
    result = export_model(tmp_path / "adapter", "seq-cls", tmp_path / "out")
    assert_close(scored_by_its_tool("seq-cls", result.folder), scores, rtol=0, atol=1e-4)
    plain = torch.tensor(reference(bases("qwen3")))
    assert (plain - torch.tensor(scores)).abs().max() > 1e-2


def test_half_precision_is_subtracted_before_it_is_rounded(bases: Any, tmp_path: Path) -> None:
    """w_yes and w_no share most of their bits, so rounding them first would lose the difference."""
    result = export_model(
        bases("llama"), "seq-cls", tmp_path / "out", Options(dtype="bfloat16", tolerance=10)
    )
    assert result.dtype == "bfloat16"
    score = AutoModelForSequenceClassification.from_pretrained(result.folder).score.weight[0]
    assert score.dtype == torch.bfloat16
    weight = AutoModelForCausalLM.from_pretrained(bases("llama")).lm_head.weight
    yes, no = AutoTokenizer.from_pretrained(bases("llama")).convert_tokens_to_ids(["yes", "no"])
    assert weight.dtype == torch.float32
    assert torch.equal(score, (weight[yes] - weight[no]).bfloat16())
    twice = weight.bfloat16()
    assert not torch.equal(score, (twice[yes].float() - twice[no].float()).bfloat16())


@onnx_test
@pytest.mark.parametrize(
    "name", ["bert", pytest.param("modernbert", marks=pytest.mark.slow), "qwen3"]
)
def test_onnx_takes_any_batch_and_length(name: str, graphs: Any, bases: Any) -> None:
    """Shapes other than the one that was traced, padded right and, for decoders, left."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = graphs(name).folder
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    names = [given.name for given in session.get_inputs()]
    assert [given.shape[1:] for given in session.get_inputs()] != [[37]] * len(names)
    scorer = OnnxScorer(folder)
    loaded = room.as_seq_cls(checkpoint.load(bases(name), LoadOptions(max_length=512)))
    loaded.model.hf.set_attn_implementation("eager")
    torch.manual_seed(0)
    sides = ("right", "left") if name == "qwen3" else ("right",)
    pad = int(loaded.tokenizer.pad_token_id)
    for batch, length in ((1, 1), (1, 5), (3, 200), (7, 64), (2, 37)):
        rows = [torch.randint(5, 30, (max(1, length - 3 * row),)) for row in range(batch)]
        with torch.no_grad():
            expected = [float(loaded.model.hf(input_ids=row[None]).logits[0, 0]) for row in rows]
        for side in sides:
            ids = np.full((batch, length), pad, np.int64)
            mask = np.zeros((batch, length), np.int64)
            for number, row in enumerate(rows):
                place = slice(0, len(row)) if side == "right" else slice(length - len(row), None)
                ids[number, place], mask[number, place] = row.numpy(), 1
            values = {
                "input_ids": ids,
                "attention_mask": mask,
                "token_type_ids": np.zeros_like(ids),
            }
            found = session.run(None, {key: values[key] for key in scorer.names})[0]
            assert found.shape == (batch, 1)
            assert_close(found[:, 0].tolist(), expected, rtol=0, atol=1e-4)


@onnx_test
@pytest.mark.parametrize("name", ["bert", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_the_onnx_card_shows_how_to_score(
    name: str,
    graphs: Any,
    bases: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its one Python block, as it stands there, prints our scores of its two pairs."""
    folder = graphs(name).folder
    monkeypatch.chdir(folder.parent)
    text = (folder / "README.md").read_text()
    assert ModelCard(text).data.library_name == "onnx"
    [block] = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    found = [float(word) for word in capsys.readouterr().out.strip(" []\n").split()]
    ours = Reranker.load(bases(name), max_length=512).score(
        [("a query", "a document"), ("a query", "another")]
    )
    assert_close(found, ours, rtol=0, atol=1e-4)


@onnx_test
def test_the_full_vocabulary_is_no_part_of_the_graph(graphs: Any, bases: Any) -> None:
    """What reads the matrix of the vocabulary's size is the look-up of embeddings alone."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(graphs("qwen3").folder / "model.onnx").graph
    vocabulary = json.loads((bases("qwen3") / "config.json").read_text())["vocab_size"]
    wide = {tensor.name for tensor in graph.initializer if vocabulary in tensor.dims}
    users = {node.op_type for node in graph.node if wide & set(node.input)}
    assert users == {"Gather"}


def rows_file(folder: Path, count: int = 12) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"query": e.query, "positive": e.documents[:1], "negative": e.documents[1:]})
            + "\n"
            for e in tiny.examples(count, documents=5, seed=5)
        )
    )
    return path


@onnx_test
def test_int8_is_smaller_and_measured(
    bases: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its NDCG is that of its own scores; past the limit nothing is written."""
    from rankwright.data.readers import load_examples
    from rankwright.evaluation import evaluate

    rows = rows_file(tmp_path)
    with rows.open("a") as file:
        file.write(json.dumps({"query": "of what?", "positive": [], "negative": []}) + "\n")
    words = ["export", "--model", str(bases("bert")), "--to", "onnx", "--dataset", str(rows)]
    words += ["--quantize", "int8", "--output", str(tmp_path / "int8")]
    assert cli.main([*words, "--max_ndcg_loss", "1"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    folder = tmp_path / "int8"
    assert (folder / "model_int8.onnx").is_file()
    assert not (folder / "model.onnx").exists()
    examples = load_examples(rows).examples
    ours = evaluate(Reranker.load(bases("bert")), examples, ["ndcg@10"]).metrics["ndcg@10"]
    theirs = evaluate(OnnxScorer(folder), examples, ["ndcg@10"]).metrics["ndcg@10"]
    assert "left out: 1 x row without" in told
    assert f"NDCG@10 {ours:.4f}, with int8 {theirs:.4f} ({theirs - ours:+.4f})" in told
    small = (folder / "model_int8.onnx").stat().st_size
    assert f"model_int8.onnx: {small / 2**20:.1f} MiB (int8)" in told
    # the same with weights in a file of their own, as graphs above 1 GiB have them, and
    # a limit that any loss is past: the figure of the loss is held to 4 digits, so take it apart
    monkeypatch.setattr(room, "evaluate_scores", worse(ours))
    monkeypatch.setattr(room, "INLINE_BYTES", 0)
    words[words.index("--output") + 1] = str(tmp_path / "refused")
    assert cli.main([*words, "--max_ndcg_loss", "0.05"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "--quantize int8 costs 0.1000 NDCG@10 on 12 queries" in told
    assert "more than --max_ndcg_loss 0.05; nothing was written" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "rows.jsonl"]


@onnx_test
def test_onnx_weights_in_a_file_of_their_own(
    bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As graphs above 1 GiB have them."""
    monkeypatch.setattr(room, "INLINE_BYTES", 0)
    folder = export_model(bases("bert"), "onnx", tmp_path / "out").folder
    assert (folder / "model.onnx.data").stat().st_size > 100_000
    found = scored_by_its_tool("onnx", folder)
    assert_close(found, reference(bases("bert")), rtol=0, atol=1e-4)


def worse(ours: float) -> Any:
    """Metrics of the first call as they are, of the second lower by 0.1."""
    values = iter([ours, ours - 0.1])
    return lambda *args, **options: SimpleNamespace(metrics={"ndcg@10": next(values)})


def test_rows_are_measured_with_their_instructions(tmp_path: Path) -> None:
    rows = rows_file(tmp_path, 2)
    options = room.Options(dataset=[str(rows)], instructions=["find birds"])
    examples, dropped = room._examples(options, True)
    assert [example.instruction for example in examples] == ["find birds"] * 2
    assert dropped == {}


# pairs


def test_the_built_in_pairs_are_fifty_and_fit(bases: Any) -> None:
    """Long ones are cut before they are compared, so that no tool cuts in its own way."""
    found = room.built_in_pairs()
    assert len(found) == len(set(found)) == room.PAIRS == 50
    assert all(query.strip() for query, _ in found)
    assert min(len(d.strip()) for _, d in found) == 0
    assert max(len(d) for _, d in found) > 5000
    encoder = checkpoint.load(bases("qwen3"), LoadOptions(max_length=500)).encoder()
    assert sum(encoder.encode(q, [d]).truncated_documents for q, d in found) >= 10
    fitting = room.fitting(found, encoder)
    assert [q for q, _ in fitting] == [q for q, _ in found]
    for (query, document), (_, whole) in zip(fitting, found, strict=True):
        tokens = encoder.encode(query, [document])
        assert tokens.truncated_documents == 0
        assert whole.startswith(document)
    assert max(len(encoder.encode(q, [d]).documents[0]) for q, d in fitting) > 30


def test_pairs_of_rows_come_from_many_queries() -> None:
    examples = tiny.examples(30, documents=3)
    found = room.pairs_of(examples, 50)
    assert len(found) == 50
    assert [q for q, _ in found[:30]] == [e.query for e in examples]
    assert found[30:] == [(e.query, e.documents[1]) for e in examples[:20]]
    assert len(room.pairs_of(examples[:2])) == 6


# refusals


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["export", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("rankwright: ")
    return lines[-1].removeprefix("rankwright: ")


def test_refusals_of_the_command(
    bases: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    model = ["--model", str(bases("qwen3")), "--output", out]
    for words, message in (
        (["--model", "m", "--output", out], "--to is missing; see rankwright export --help"),
        (["--model", "m", "--to", "merged"], "--output is missing; see rankwright export --help"),
        (["--to", "merged", "--output", out], "--model is missing; give a local folder or an id"),
        (
            [*model, "--to", "seqcls"],
            "--to 'seqcls' is no format; did you mean 'seq-cls'? Choose from merged, seq-cls,",
        ),
        ([*model, "--to", "merged", "--quantize", "int8"], "--quantize int8 goes with --to onnx"),
        ([*model, "--to", "onnx", "--quantize", "int8"], "--quantize int8 needs --dataset"),
        ([*model, "--to", "onnx", "--instructions", "x"], "--instructions goes with --quantize"),
        ([*model, "--to", "onnx", "--quantize", "int4"], "--quantize 'int4' is unknown; give int8"),
        ([*model, "--to", "onnx", "--torch_dtype", "bfloat16"], "--torch_dtype bfloat16: ONNX"),
        ([*model, "--to", "merged", "--tolerance", "0"], "--tolerance 0.0 is not above 0"),
        ([*model, "--to", "onnx", "--max_ndcg_loss", "-1"], "--max_ndcg_loss -1.0 is not in"),
        ([*model, "--to", "merged", "--public", "true"], "--public goes with --push_to_hub"),
        (
            [*model, "--to", "tei"],
            "--to tei: Text Embeddings Inference does not rerank with qwen3 models; it takes bert",
        ),
    ):
        assert refused(words, capsys).startswith(message)
    assert not Path(out).exists()


def test_a_folder_of_something_else_is_left_alone(
    bases: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    words = ["--model", str(bases("bert")), "--to", "merged", "--output"]
    told = refused([*words, str(tmp_path / "mine")], capsys)
    assert told.endswith("choose another folder")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    told = refused([*words, str(bases("bert"))], capsys)
    assert told == f"--output {bases('bert')} is the model itself; choose another folder"


def test_a_difference_past_the_tolerance_writes_nothing(
    bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a tool that reads another token: its scores are ours and a tenth."""
    kind = EXPORTS["merged"]
    wrong = room.replace(kind, score=lambda f, p: [s + 0.1 for s in kind.score(f, p)])
    monkeypatch.setitem(EXPORTS, "merged", wrong)
    with pytest.raises(
        ConfigError,
        match=r"scored by transformers, a pair differs by 0\.1 from our score, more than 0\.001",
    ):
        export_model(bases("bert"), "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    result = export_model(bases("bert"), "merged", tmp_path / "out", Options(tolerance=0.2))
    assert result.difference == pytest.approx(0.1, abs=1e-3)


def test_a_tool_that_fails_is_one_line(
    bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path, pairs: Any) -> list[float]:
        raise RuntimeError("first line\nsecond line")

    kind = EXPORTS["merged"]
    monkeypatch.setitem(EXPORTS, "merged", room.replace(kind, score=broken))
    with pytest.raises(
        ConfigError, match=r"transformers cannot load or score .* \(RuntimeError: first line\);"
    ):
        export_model(bases("bert"), "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_exported(
    bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantised weights, random heads, a head with a bias, a prompt that ends in padding."""
    import shutil

    four = shutil.copytree(bases("bert"), tmp_path / "four")
    config = json.loads((four / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (four / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"holds quantised weights \(bitsandbytes\)"):
        export_model(four, "merged", tmp_path / "out")
    headless = tmp_path / "headless"
    tiny.build("bert").bert.save_pretrained(headless)
    tiny.tokenizer_for("bert").save_pretrained(headless)
    with pytest.raises(CheckpointError, match=r"brings no weights for classifier.*train it first"):
        export_model(headless, "merged", tmp_path / "out")
    gpt = tiny.save_base(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ConfigError, match="a gpt2 model is not known to be one row of weights"):
        export_model(gpt, "seq-cls", tmp_path / "out", kind="generative")
    with pytest.raises(ConfigError, match="the template ends in the padding token"):
        export_model(bases("qwen3"), "seq-cls", tmp_path / "out", template_suffix="<|endoftext|>")
    loaded = checkpoint.load(bases("llama"))
    head = loaded.model.hf.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
    assert torch.isfinite(room.score_direction(loaded)).all()
    with torch.no_grad():
        head.bias[loaded.model.token_ids[0]] = 0.5
    with pytest.raises(ConfigError, match=r"adds 0\.5 to every score"):
        room.score_direction(loaded)
    assert not (tmp_path / "out").exists()


def test_a_missing_tool_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
    )
    with pytest.raises(ConfigError, match=r"needs onnxscript; pip install 'rankwright\[onnx\]'"):
        room._need("onnxruntime", "onnx")


# servers


@pytest.mark.parametrize(
    ("to", "name"), [("vllm", "qwen3"), ("vllm", "modernbert"), ("tei", "bert")]
)
def test_the_servers_files_and_commands(
    to: str, name: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command names files that are there, and the page says that nothing was run."""
    monkeypatch.chdir(tmp_path)
    export_model(bases(name), to, "served model", max_length=512)
    text = (tmp_path / "served model" / "serve.md").read_text()
    assert "This server was not run on these files" in text
    command = next(line for line in text.splitlines() if line.startswith(("vllm", "docker")))
    words = shlex.split(command)
    if to == "tei":
        assert words[-2:] == ["--model-id", "/model"]
        assert "$PWD/served model:/model" in words
        return
    assert words[:5] == ["vllm", "serve", "served model", "--runner", "pooling"]
    assert words[words.index("--max-model-len") + 1] == "512"
    assert "--hf-overrides" not in words  # the folder is a converted one
    assert ("--chat-template" in words) == (name == "qwen3")
    if name == "qwen3":
        assert Path(words[words.index("--chat-template") + 1]).is_file()
