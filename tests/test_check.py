"""What ``rankwright check`` counts and prints; counts of weights and tokens are derived by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from rankwright import check
from rankwright.arguments import ModelArguments, TunerArguments
from rankwright.check import (
    Lengths,
    check_model,
    check_rows,
    data_warnings,
    leak_warnings,
    sample_rows,
    token_statistics,
    token_warnings,
)
from rankwright.cli import main
from rankwright.data.groups import leaks
from rankwright.data.readers import load_examples
from rankwright.data.stats import dataset_statistics
from rankwright.errors import CheckpointError, ConfigError
from rankwright.models.checkpoint import Loaded, LoadOptions, describe
from rankwright.models.lora import add_adapters
from rankwright.models.memory import (
    LayerShape,
    ParameterCount,
    activation_bytes,
    count_parameters,
    count_trainable,
    layer_shape,
    outline,
    requirements,
)
from rankwright.models.reranker import RerankerModel
from rankwright.ranking import collator
from rankwright.types import Example, PackedBatch
from tests.tiny import decoder_tokenizer, encoder_tokenizer, save_base, tokenizer_for

# hidden, layers, heads, feed-forward, tied: the published configurations
QWEN3 = {
    "0.6B": (1024, 28, 16, 3072, True),
    "4B": (2560, 36, 32, 9728, True),
    "8B": (4096, 36, 32, 12288, False),
}
VOCABULARY = 151_669


def qwen3_folder(folder: Path, size: str) -> Path:
    hidden, layers, heads, width, tied = QWEN3[size]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": width,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 40960,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    decoder_tokenizer().save_pretrained(folder)
    return folder


def built(folder: Path, **options: Any) -> Loaded:
    chosen = LoadOptions(**options)
    return outline(describe(folder, chosen, weights=False), chosen)


def config_folder(folder: Path, name: str, **sizes: Any) -> Path:
    """A folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    CONFIG_MAPPING[name](**sizes).save_pretrained(folder)
    tokenizer_for(name).save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("size", "total", "embedding", "adapters"),
    [
        ("0.6B", 595_776_512, 155_309_056, 5_046_272),
        ("4B", 4_021_784_576, 388_272_640, 16_515_072),
        ("8B", 8_188_548_096, 1_242_472_448, 21_823_488),
    ],
)
def test_qwen3_counts(tmp_path: Path, size: str, total: int, embedding: int, adapters: int) -> None:
    """With head size 128, 8 key heads (1024 wide) and A = 128 * heads, a layer holds

    q H x A and o A x H, k and v H x 1024, gate, up and down H x I, two norms of heads (128) and two
    of H. Embeddings are V x H, twice where they are not tied; a last norm holds H. An adapter of
    rank 8 on (in, out) holds 8 (in + out).
    """
    hidden, layers, heads, width, tied = QWEN3[size]
    a, k = 128 * heads, 1024
    layer = 2 * hidden * a + 2 * hidden * k + 3 * hidden * width + 2 * 128 + 2 * hidden
    tables = VOCABULARY * hidden * (1 if tied else 2)
    assert total == tables + layers * layer + hidden
    assert embedding == tables
    assert adapters == 8 * layers * (2 * (hidden + a) + 2 * (hidden + k) + 3 * (hidden + width))

    loaded = built(qwen3_folder(tmp_path, size))
    assert {p.device.type for p in loaded.model.parameters()} == {"meta"}
    assert count_parameters(loaded.model.hf) == ParameterCount(total, embedding)
    assert layer_shape(loaded.model.hf) == LayerShape(
        layers, hidden, a, k, width, gated=True, split_norm=True, head_norm=True
    )
    add_adapters(loaded, TunerArguments())
    assert count_trainable(loaded.model) == adapters


def test_minilm_counts(tmp_path: Path) -> None:
    """BERT with H = 384, 6 layers, I = 1536 and one logit (biases in the second addends)."""
    h, width = 384, 1536
    tables = (30_522 + 512 + 2) * h
    layer = 4 * (h * h + h) + (h * width + width) + (width * h + h) + 4 * h
    total = tables + 2 * h + 6 * layer + (h * h + h) + (h + 1)
    assert (total, tables) == (22_713_601, 11_917_824)
    folder = config_folder(
        tmp_path,
        "bert",
        vocab_size=30_522,
        hidden_size=h,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=width,
        architectures=["BertModel"],
    )
    loaded = built(folder)
    assert loaded.spec.kind == "classification"
    assert count_parameters(loaded.model.hf) == ParameterCount(total, tables)
    # adapters on q, k, v, o and the two feed-forward layers; the classifier is trained whole
    add_adapters(loaded, TunerArguments())
    assert count_trainable(loaded.model) == 6 * 8 * (4 * 2 * h + 2 * (h + width)) + h + 1


def test_modernbert_counts(tmp_path: Path) -> None:
    """ModernBERT-base: no biases, fused q, k, v, a gated feed-forward layer, no first norm."""
    v, h, layers, width = 50_368, 768, 22, 1152
    layer = 4 * h * h + 3 * h * width
    norms = (1 + 2 * layers - 1 + 1) * h
    total = v * h + norms + layers * layer + (h * h + h) + (h + 1)
    assert total == 149_605_633
    loaded = built(config_folder(tmp_path, "modernbert", architectures=["ModernBertForMaskedLM"]))
    assert count_parameters(loaded.model.hf) == ParameterCount(total, v * h)
    shape = layer_shape(loaded.model.hf)
    assert shape == LayerShape(
        layers, h, h, h, width, gated=True, split_norm=False, head_norm=False
    )


def test_requirements_are_the_formulas() -> None:
    """N = 100 of which 30 are tables (M = 70), T = 10."""
    lines = {line.use: line.bytes for line in requirements(ParameterCount(100, 30), 10)}
    assert lines == {
        "inference, bf16": 200,
        "inference, fp32": 400,
        "full training, AdamW, fp32": 1600,
        "full training, AdamW, --bf16": 1740,
        "LoRA r=8, bf16 weights": 360,
        "LoRA r=8, fp32 weights": 560,
        "LoRA r=8, fp32 weights, --bf16": 700,
    }


# --------------------------------------------------------------------------------- activations


def test_activation_bytes_by_hand() -> None:
    """H = 2, A = 4, K = 1, I = 3, two layers, gated, RMSNorm, norms of heads.

    fp32: norms 4 H = 8, inputs 2 H = 4, attention 2 A + 2 K = 10, heads 2 (A + K) = 10, inner
    4 I = 12: 44 values, 176 bytes. Autocast: 4 * 8 + 2 * (5 H + 10 + 12) + 6 * 5 = 126.
    Checkpointing: 4 bytes of H in each of 2 layers = 16, and one layer.
    """
    shape = LayerShape(2, 2, 4, 1, 3, gated=True, split_norm=True, head_norm=True)
    assert activation_bytes(shape, 10) == 10 * 2 * 176
    assert activation_bytes(shape, 10, mixed=True) == 10 * 2 * 126
    assert activation_bytes(shape, 10, checkpointing=True) == 10 * (16 + 176)
    assert activation_bytes(shape, 10, mixed=True, checkpointing=True) == 10 * (16 + 126)


def test_activation_bytes_of_a_plain_layer_by_hand() -> None:
    """H = A = K = 2, I = 8: 2 H + 2 H + 4 H + 2 I = 32 values; 4 * 4 + 2 * (8 + 8 + 16) = 80."""
    shape = LayerShape(3, 2, 2, 2, 8, gated=False, split_norm=False, head_norm=False)
    assert activation_bytes(shape, 1) == 3 * 4 * 32
    assert activation_bytes(shape, 1, mixed=True) == 3 * 80


def _kept_bytes(name: str, layers: int, mixed: bool) -> int:
    """Bytes that autograd keeps of a forward of 256 tokens in two segments, weights aside."""
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "num_labels": 1,
        "pad_token_id": 0,
    }
    if name == "qwen3":
        sizes |= {"num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True}
    if name == "bert":
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if name == "modernbert":
        sizes |= {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    generative = name == "qwen3"
    auto = AutoModelForCausalLM if generative else AutoModelForSequenceClassification
    hf = auto.from_config(CONFIG_MAPPING[name](**sizes))
    kind, ids = ("generative", (1, 2)) if generative else ("classification", None)
    model = RerankerModel(hf, kind, ids).train()
    batch = PackedBatch(
        torch.zeros(256, dtype=torch.long),
        torch.arange(128).repeat(2),
        (128, 128),
        (-1, -1),
        torch.tensor([127, 255]),
        torch.tensor([0, 1]),
        torch.zeros(2),
        torch.tensor([0, 2]),
    )
    known = {t.untyped_storage().data_ptr() for t in (*hf.parameters(), *hf.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        model(batch)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("name", "tolerance"), [("qwen3", 0.03), ("bert", 0.03), ("modernbert", 0.15)]
)
def test_activation_bytes_are_what_autograd_keeps(name: str, tolerance: float, mixed: bool) -> None:
    """Two more layers of 256 tokens; autocast's copies of weights are counted with the weights.

    ModernBERT keeps its fused projection beside the rotated queries and keys, 12% more.
    """
    measured = _kept_bytes(name, 4, mixed) - _kept_bytes(name, 2, mixed)
    h, width = 128, 384
    a = 256 if name == "qwen3" else h
    weights = {
        "qwen3": 2 * h * a + 2 * h * 128 + 3 * h * width,
        "bert": 4 * h * h + 2 * h * width,
        "modernbert": 4 * h * h + 3 * h * width,
    }[name]
    if mixed:
        measured -= 2 * 2 * weights
    shape = LayerShape(
        layers=2,
        hidden=h,
        query=a,
        key=128,
        feed_forward=width,
        gated=name != "bert",
        split_norm=name == "qwen3",
        head_norm=name == "qwen3",
    )
    assert activation_bytes(shape, 256, mixed=mixed) == pytest.approx(measured, rel=tolerance)


# ---------------------------------------------------------------------------------- the model


def test_check_model_prints_the_4b_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 * 4,021,784,576 = 64,348,553,216 bytes = 59.93 GiB; 2 N = 7.49 GiB."""
    check_model(ModelArguments(model=str(qwen3_folder(tmp_path, "4B"))))
    out = capsys.readouterr().out
    for words in (
        "generative",
        "Qwen3ForCausalLM (model_type qwen3)",
        "none in this folder",
        "'yes', id ",
        "'no', id ",
        "1,024 tokens (the model reads 40,960)",
        "packed, without padding, a group's prompt computed once",
        "4,021,784,576",
        "388,272,640",
        "3,633,511,936",
        "T = 16,515,072",
        "an estimate",
    ):
        assert words in " ".join(out.split()), words
    takes = {
        line.split("  ")[1].strip(): line.split("  ")[-2].strip()
        for line in out.splitlines()
        if line.rstrip().endswith("GiB")
    }
    assert takes["inference, bf16"] == f"{2 * 4_021_784_576 / 2**30:.2f} GiB" == "7.49 GiB"
    assert takes["full training, AdamW, fp32"] == "59.93 GiB"


def test_check_model_of_the_real_tokenizer(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    qwen3_folder(tmp_path, "8B")
    for path in tmp_path.glob("*token*"):
        path.unlink()
    for path in (shared / "tokenizers" / "qwen3").iterdir():
        shutil.copy(path, tmp_path / path.name)
    check_model(ModelArguments(model=str(tmp_path)))
    out = " ".join(capsys.readouterr().out.split())
    assert "'yes', id 9693" in out
    assert "'no', id 2152" in out
    assert "8,188,548,096" in out


def test_check_model_of_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_base(tmp_path / "bert", "bert")
    check_model(ModelArguments(model=str(folder)))
    out = " ".join(capsys.readouterr().out.split())
    assert "BertForSequenceClassification (model_type bert)" in out
    assert "1 file" in out
    assert "packed, without padding" in out
    assert "positive token" not in out


def test_check_model_says_padded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_base(tmp_path / "deberta", "deberta-v2")
    check_model(ModelArguments(model=str(folder)))
    out = " ".join(capsys.readouterr().out.split())
    assert "padded: no packed attention for it yet" in out
    assert "attention matrices of padded rows" in out


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        check_model(ModelArguments(model=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="--model is missing"):
        check_model(ModelArguments())


def test_a_model_that_is_no_reranker_is_an_error(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "bert", "bert")
    config = CONFIG_MAPPING["vit"](hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    config.save_pretrained(folder)
    with pytest.raises(ConfigError, match="does not load as a classification reranker") as caught:
        check_model(ModelArguments(model=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "{", '{"model_type": "nothing-of-that-name"}'])
def test_a_configuration_that_does_not_load_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="the configuration does not load") as caught:
        check_model(ModelArguments(model=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    CONFIG_MAPPING["bert"](num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="tokenizer") as caught:
        check_model(ModelArguments(model=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_bad_pair_of_tokens_is_an_error(tmp_path: Path) -> None:
    folder = str(qwen3_folder(tmp_path, "0.6B"))
    with pytest.raises(ConfigError, match="'maybe' is not a single token"):
        check_model(ModelArguments(model=folder, positive_token="maybe"))
    with pytest.raises(ConfigError, match="two different tokens"):
        check_model(ModelArguments(model=folder, positive_token="no"))


def test_bad_options_are_errors(tmp_path: Path) -> None:
    folder = str(qwen3_folder(tmp_path, "0.6B"))
    with pytest.raises(ConfigError, match="--task_type"):
        check_model(ModelArguments(model=folder, task_type="rerank"))
    with pytest.raises(ConfigError, match="--max_length 10 is too small"):
        check_model(ModelArguments(model=folder, max_length=10))
    with pytest.raises(ConfigError, match="40960 positions"):
        check_model(ModelArguments(model=folder, max_length=50_000))


# ------------------------------------------------------------------------------------ the rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS: list[dict[str, Any]] = [
    {"query": "quick fox", "positive": ["the quick fox"], "negative": ["a lazy dog", "rain falls"]},
    {"query": "quick fox", "positive": ["the quick fox"], "negative": ["a lazy dog", "rain falls"]},
    {"query": "quick fox", "positive": ["rain falls"], "negative": ["cold rivers"]},
    {"query": "lazy dog", "positive": [], "negative": ["grey seas", "grey seas"]},
    {"query": "old ships", "positive": ["old ships sleep"], "negative": []},
    {"query": "white birds", "positive": ["birds cry"], "negative": ["birds cry", "green hills"]},
]


def test_rows_are_counted_and_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 2 is row 1; row 3 asks row 1's query, and its positive is a negative of rows 1 and 2;
    row 4 has no positive and a document twice; row 5 has no negative; row 6 contradicts itself.
    """
    check_rows([write_rows(tmp_path / "rows.jsonl", ROWS)], [], None, ModelArguments())
    out = capsys.readouterr().out
    counts = {}
    for line in out.splitlines():
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        if len(cells) == 2:
            counts[cells[0]] = cells[1]
    assert counts["rows"] == "6"
    # 3 + 3 + 2 + 2 + 1 + 2, since the readers leave the contradiction out
    assert counts["documents"] == "13"
    assert counts["documents of a row"] == "1 / 2 / 3"
    assert counts["positives of a row"] == "0 / 1 / 1"
    assert counts["negatives of a row"] == "0 / 1.5 / 2"
    assert counts["rows without positive"] == "1"
    assert counts["rows without negative"] == "1"
    assert counts["rows that stand twice"] == "1"
    assert counts["rows of an earlier query"] == "2"
    assert counts["documents twice in a row"] == "1"
    assert counts["query, characters"] == "8 / 9 / 11"
    assert "rankwright" in out
    assert "left out: 1 x negative that is also a positive" in out
    assert "need --model" in out
    assert "looked for with --val_dataset" in out
    for warning in (
        "training: 1 x row without positive",
        "training: 1 x row without negative",
        "training: 1 x row that stands twice",
        "training: 1 x row with the query of an earlier row",
        "training: 1 x document twice in its row",
        "training: 1 x negative that is also a positive of its row; it was left out",
        "training: 2 x negative that is a positive in another row of the same query",
    ):
        assert any(line.startswith(f"- {warning}") for line in out.splitlines()), warning


def test_clean_rows_give_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_rows([write_rows(tmp_path / "rows.jsonl", ROWS[:1])], [], None, ModelArguments())
    assert capsys.readouterr().out.rstrip().endswith("No warnings.")


def test_leaks_are_counted_and_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation repeats a query in capitals with its positive; a row shares the positive alone."""
    val = [
        {"query": "Quick  Fox", "positive": ["the quick fox"], "negative": ["x"]},
        {"query": "who runs?", "positive": ["The quick fox"], "negative": ["y"]},
        {"query": "what falls?", "positive": ["snow"], "negative": ["rain falls"]},
        {"query": "new", "positive": ["new"], "negative": ["newer"]},
    ]
    train = write_rows(tmp_path / "train.jsonl", ROWS[:1])
    check_rows([train], [write_rows(tmp_path / "dev.jsonl", val)], None, ModelArguments())
    out = " ".join(capsys.readouterr().out.split())
    assert "(query, positive) pairs 1" in out
    assert "rows with a shared positive 2 of 4 rows" in out
    assert "rows with a shared document 3 of 4 rows" in out
    assert (
        "leak: 1 x validation query that stands in the training rows, such as 'Quick Fox'"
        in out.replace("'Quick  Fox'", "'Quick Fox'")
    )
    assert "leak: 2 x validation row with a positive that is a positive of a training row" in out


def test_no_leak_is_no_warning() -> None:
    one, other = Example("a", ["b"], [1.0]), Example("c", ["d"], [1.0])
    assert leak_warnings(leaks([one], [other])) == []


def test_warnings_of_the_readers_are_listed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A column that is nearly one that is read is a warning; it is listed, not also logged."""
    rows = [{"query": "a", "positive": ["b"], "negative": ["c"], "instructions": "d"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    data = load_examples(path)
    if not data.report.warnings:
        pytest.skip("the readers do not warn of this")
    caplog.clear()
    check_rows([path], [], None, ModelArguments())
    assert data.report.warnings[0] in capsys.readouterr().out
    assert caplog.messages == []


def test_repeated_rows_differ_in_nothing() -> None:
    row = Example("q", ["a", "b"], [1.0, 0.0])
    swapped = Example("q", ["a", "b"], [0.0, 1.0])
    assert dataset_statistics([row, swapped]).repeated_rows == 0
    again = dataset_statistics([row, swapped, Example("q", ["a", "b"], [1.0, 0.0])])
    assert again.repeated_rows == 1


def test_data_warnings_of_clean_rows_are_none(tmp_path: Path) -> None:
    data = load_examples(write_rows(tmp_path / "rows.jsonl", ROWS[:1]))
    assert data_warnings(data, dataset_statistics(data.examples), "training") == []


# ---------------------------------------------------------------------------------- the tokens


@pytest.fixture
def encoder(tmp_path: Path) -> Loaded:
    """BERT with a tokenizer of one token a word; 512 positions."""
    folder = config_folder(
        tmp_path / "encoder",
        "bert",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(encoder_tokenizer(token_types=True)),
        architectures=["BertModel"],
    )
    return built(folder, max_length=32)


def words(count: int) -> str:
    return " ".join(["dog"] * count)


def test_tokens_are_counted_by_hand(encoder: Loaded) -> None:
    """One token a word, and [CLS] q [SEP] d [SEP] adds three; the limit is 32.

    Row 1: query 2, documents 5 and 15: pairs 10 and 20, none cut.
    Row 2: query 4, documents 30 and 10: pairs 37 (cut to 32) and 17.
    Row 3: query 40, document 1: the query is cut, though the document would fit.
    """
    rows = [
        Example(words(2), [words(5), words(15)], [1.0, 0.0]),
        Example(words(4), [words(30), words(10)], [1.0, 0.0]),
        Example(words(40), [words(1)], [1.0]),
    ]
    tokens = token_statistics(rows, collator(encoder), of_rows=3)
    assert (tokens.rows, tokens.pairs, tokens.of_rows) == (3, 5, 3)
    assert tokens.query == Lengths(2, 4, 40, 40)
    assert tokens.document == Lengths(1, 10, 30, 30)
    assert tokens.pair == Lengths(10, 20, 44, 44)
    assert tokens.cut_queries == 1
    assert tokens.cut_pairs == 2
    # groups of rows 1 and 2 in one batch (row 3 has no negative): 10 + 20 + 32 + 17 of 4 * 32
    assert tokens.padding == pytest.approx(1 - 79 / 128)
    assert tokens.shared == 0
    lines = token_warnings(tokens, encoder)
    assert lines[0].startswith("40.0% of the pairs are cut at max_length 32: raise --max_length")
    assert "44 tokens, the model reads 512" in lines[0]
    assert lines[1].startswith("1 x query cut")


def test_no_warning_where_nothing_is_cut(encoder: Loaded) -> None:
    rows = [Example(words(2), [words(5), words(15)], [1.0, 0.0])]
    assert token_warnings(token_statistics(rows, collator(encoder), of_rows=1), encoder) == []


def test_sharing_the_prompt_is_counted_by_hand(tmp_path: Path) -> None:
    """A letter is a token, since "xq" and the documents hold no pair: the prompt of F + 2 tokens
    stands in front of two documents of 3 and 5 with a suffix of S.
    """
    loaded = built(qwen3_folder(tmp_path, "0.6B"), max_length=900)
    pairs_of = collator(loaded)
    frame = len(pairs_of.encoder._prefix_ids("", loaded.spec.instruction))
    suffix = len(pairs_of.encoder.suffix)
    lead = 1  # the space before the document is a token of its own
    rows = [Example("xq", ["zzz", "zzzzz"], [1.0, 0.0])]
    tokens = token_statistics(rows, pairs_of, of_rows=1)
    prompt = frame + 2
    lengths = [prompt + lead + 3 + suffix, prompt + lead + 5 + suffix]
    assert tokens.query == Lengths(2, 2, 2, 2)
    assert tokens.document == Lengths(lead + 3, lead + 4, lead + 5, lead + 5)
    assert tokens.pair == Lengths(lengths[0], sum(lengths) / 2, lengths[1], lengths[1])
    assert tokens.shared == pytest.approx(prompt / sum(lengths))
    assert tokens.padding == pytest.approx(1 - sum(lengths) / (2 * lengths[1]))


def test_percentile_is_the_nearest_rank() -> None:
    """19 of 20 values are at most the 19th."""
    assert Lengths.of(range(1, 21)) == Lengths(1, 10.5, 19, 20)
    assert Lengths.of([]) == Lengths(0, 0, 0, 0)


def test_samples_are_bounded_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Example(str(i), ["a", "b"], [1.0, 0.0]) for i in range(100)]
    assert sample_rows(rows) == rows
    monkeypatch.setattr(check, "SAMPLE_ROWS", 10)
    ten = [int(row.query) for row in sample_rows(rows)]
    assert len(set(ten)) == 10
    assert ten == sorted(ten)
    assert ten != list(range(10))
    monkeypatch.setattr(check, "SAMPLE_PAIRS", 7)
    assert len(sample_rows(rows)) == 3
    monkeypatch.setattr(check, "SAMPLE_PAIRS", 1)
    assert len(sample_rows(rows)) == 1


def test_a_sample_is_said_to_be_one(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    encoder: Loaded,
) -> None:
    monkeypatch.setattr(check, "SAMPLE_ROWS", 2)
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    check_rows([path], [], None, ModelArguments(model=str(encoder.folder)))
    assert "counted on a sample of 2 of 6 rows" in capsys.readouterr().out


# ------------------------------------------------------------------------------- the shown row


def test_the_row_is_shown_as_an_encoder_sees_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: Loaded
) -> None:
    """2 + 3 words and three special tokens; the first row has its positive last."""
    rows = [{"query": "quick fox", "documents": ["a dog", "the quick fox"], "labels": [0, 2]}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    check_rows([path], [], None, ModelArguments(model=str(encoder.folder), max_length=32))
    out = capsys.readouterr().out
    assert "[CLS] quick fox [SEP] the quick fox [SEP]\n" in out
    assert f"(label 2, {path}:1)" in out
    assert "8 tokens; the score is read at the first token, '[CLS]'." in out
    assert "0 of 2 pairs (0.0%) are cut at max_length 32" in out


def test_the_row_is_shown_as_a_decoder_sees_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = qwen3_folder(tmp_path / "model", "0.6B")
    rows = [{"query": "[bold]q\x1b[31m", "positive": ["d"], "negative": ["e"]}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    check_rows([path], [], None, ModelArguments(model=str(folder), instruction="Judge"))
    out = capsys.readouterr().out
    assert "<Instruct>: Judge\n<Query>: [bold]q\\x1b[31m\n<Document>: d<|im_end|>\n" in out
    assert "\x1b[31m" not in out
    assert "the score is logit(yes) - logit(no) at the last token, number" in out
    assert "computing a group's prompt once saves" in out


def test_a_long_row_is_shortened_in_the_middle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: Loaded, monkeypatch: Any
) -> None:
    monkeypatch.setattr(check, "SHOWN", 20)
    rows = [{"query": "quick fox", "positive": [words(60)], "negative": ["a"]}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    check_rows([path], [], None, ModelArguments(model=str(encoder.folder), max_length=32))
    out = capsys.readouterr().out
    assert "characters ...]" in out
    assert "32 tokens, the document cut;" in out


def test_mean_pooling_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_base(tmp_path / "modernbert", "modernbert:mean")
    path = write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    check_rows([path], [], None, ModelArguments(model=str(folder)))
    assert "the score is read at the mean of all tokens" in capsys.readouterr().out


def test_padded_models_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_base(tmp_path / "deberta", "deberta-v2")
    path = write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    check_rows([path], [], None, ModelArguments(model=str(folder)))
    out = capsys.readouterr().out
    assert "this model needs padded rows" in out
    assert "the logit of the model's own head" in out


# ----------------------------------------------------------------------------- the command line


def test_the_command_ends_well_and_prints_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: Loaded
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    assert main(["check", path, "--model", str(encoder.folder)]) == 0
    captured = capsys.readouterr()
    assert "Memory" in captured.out
    assert "Sources: training" in captured.out
    assert captured.err == ""


def test_a_bad_row_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "a", "positive": ["b"]}\n{broken\n')
    assert main(["check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"rankwright: {path}:2: ")
    assert captured.err.count("\n") == 1
