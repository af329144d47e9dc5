"""One saved model, the same scores in every reader: ours, transformers, sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankwright.arguments import TunerArguments
from rankwright.errors import CheckpointError, ConfigError
from rankwright.models import checkpoint
from rankwright.models.checkpoint import LoadOptions, ModelSpec
from rankwright.models.lora import add_adapters
from rankwright.ranking import Reranker
from rankwright.templates import QWEN3_PREFIX, QWEN3_SUFFIX
from tests import tiny

KINDS = ["modernbert", "bert", "xlm-roberta", "qwen3", "qwen3:seq"]


def pairs() -> list[tuple[str, str]]:
    return [(e.query, d) for e in tiny.examples(10, documents=5) for d in e.documents]


def base(tmp_path: Path, name: str) -> Path:
    return tiny.save_base(tmp_path / "base", name)


def saved(tmp_path: Path, name: str) -> tuple[Path, list[float]]:
    reranker = Reranker.load(base(tmp_path, name), max_length=512)
    reranker.save(tmp_path / "saved")
    return tmp_path / "saved", reranker.score(pairs())


@pytest.mark.parametrize("name", KINDS)
def test_reload_scores_the_same(tmp_path: Path, name: str) -> None:
    folder, scores = saved(tmp_path, name)
    assert torch.tensor(scores).std() > 1e-3
    assert_close(Reranker.load(folder).score(pairs()), scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_plain_transformers_scores_the_same(tmp_path: Path, name: str) -> None:
    """As a user without Rankwright would: the pair form, or the prompt as one string."""
    folder, scores = saved(tmp_path, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    if name == "qwen3":
        model = AutoModelForCausalLM.from_pretrained(folder)
        yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.num_labels == 1
    spec = ModelSpec.load(folder)
    assert spec is not None
    for query, document in pairs():
        if spec.template_prefix is None:
            inputs = tokenizer(query, document, return_tensors="pt")
        else:
            text = (
                QWEN3_PREFIX.format(instruction=spec.instruction, query=query)
                + document
                + QWEN3_SUFFIX
            )
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            logits = model(**inputs).logits
        found.append(
            float(logits[0, -1, yes] - logits[0, -1, no])
            if name == "qwen3"
            else float(logits[0, 0])
        )
    assert_close(found, scores, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", KINDS)
def test_sentence_transformers_scores_the_same(tmp_path: Path, name: str) -> None:
    cross_encoder = pytest.importorskip("sentence_transformers", reason="extra dev").CrossEncoder
    folder, scores = saved(tmp_path, name)
    model = cross_encoder(str(folder), device="cpu")
    logits = model.predict(pairs(), activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    assert_close(logits.float().tolist(), scores, rtol=0, atol=1e-4)
    probabilities = model.predict(pairs(), convert_to_tensor=True)
    assert_close(probabilities.float(), torch.tensor(scores).sigmoid(), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_sentence_transformers_cuts_the_document_as_we_do(tmp_path: Path) -> None:
    """A pair over the limit loses the document's end in both."""
    cross_encoder = pytest.importorskip("sentence_transformers", reason="extra dev").CrossEncoder
    reranker = Reranker.load(base(tmp_path, "modernbert"), max_length=32)
    reranker.save(tmp_path / "saved")
    long = [("the quick brown fox", " ".join(tiny.WORDS))]
    expected = reranker.score(long)
    assert reranker.truncated["documents"] == 1
    model = cross_encoder(str(tmp_path / "saved"), device="cpu")
    found = model.predict(long, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    assert_close(found.float().tolist(), expected, rtol=0, atol=1e-4)


def adapted(tmp_path: Path, name: str, *, dora: bool = False) -> tuple[checkpoint.Loaded, Reranker]:
    """A model with adapters that have been moved away from their zero start, and its head too."""
    loaded = checkpoint.load(base(tmp_path, name), LoadOptions(max_length=512))
    add_adapters(loaded, TunerArguments(lora_rank=4, use_dora=dora))
    torch.manual_seed(1)
    trainable = [p for p in loaded.model.parameters() if p.requires_grad]
    assert trainable
    with torch.no_grad():
        for parameter in trainable:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return loaded, Reranker(loaded)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["modernbert", "bert", "xlm-roberta", "qwen3", "qwen3:seq"])
def test_lora_round_trip(tmp_path: Path, name: str, dora: bool) -> None:
    """Save, reload, merge, reload the merged: the same scores, and far from the base's."""
    loaded, reranker = adapted(tmp_path, name, dora=dora)
    magnitudes = [n for n, _ in loaded.model.named_parameters() if "lora_magnitude_vector" in n]
    assert bool(magnitudes) == dora
    scores = torch.tensor(reranker.score(pairs()))
    checkpoint.save(loaded, tmp_path / "adapter")
    checkpoint.save(loaded, tmp_path / "merged", merge=True)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = Reranker.load(tmp_path / "adapter")
    merged = Reranker.load(tmp_path / "merged")
    plain = torch.tensor(Reranker.load(tmp_path / "base", max_length=512).score(pairs()))
    assert (plain - scores).abs().max() > 1e-2
    assert_close(torch.tensor(again.score(pairs())), scores, rtol=0, atol=1e-4)
    assert_close(torch.tensor(merged.score(pairs())), scores, rtol=0, atol=1e-4)
    assert_close(torch.tensor(reranker.score(pairs())), scores, rtol=0, atol=0)
    # what continues from the saved adapter can be trained
    assert {n for n, p in again.loaded.model.named_parameters() if p.requires_grad} == {
        n for n, p in loaded.model.named_parameters() if p.requires_grad
    }


def test_a_new_head_is_trained_and_saved_with_the_adapter(tmp_path: Path) -> None:
    """The base brings neither classifier nor pooler: both are random, so both must travel."""
    source = tiny.build("bert")
    folder = tmp_path / "base"
    source.bert.pooler = None
    source.bert.save_pretrained(folder)
    tiny.tokenizer_for("bert").save_pretrained(folder)
    loaded = checkpoint.load(folder, LoadOptions(max_length=256))
    assert loaded.new_modules == ["bert.pooler.dense", "classifier"]
    add_adapters(loaded, TunerArguments())
    scores = Reranker(loaded).score(pairs())
    checkpoint.save(loaded, tmp_path / "adapter")
    torch.manual_seed(99)
    assert_close(Reranker.load(tmp_path / "adapter").score(pairs()), scores, rtol=0, atol=1e-5)


def test_an_adapter_names_its_base_and_a_random_head_is_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path would not hold elsewhere; a head without weights is no reranker yet."""
    source = tiny.build("bert")
    source.bert.save_pretrained(tmp_path / "base")
    tiny.tokenizer_for("bert").save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    loaded = checkpoint.load("base")
    add_adapters(loaded, TunerArguments())
    checkpoint.save(loaded, "adapter")
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, two = (Reranker.load("base").score([("the fox", "a dog")]) for _ in range(2))
    assert "base brings no weights for classifier: they are random" in caplog.text
    # and the same whenever it is loaded, without touching the caller's random state
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)
    caplog.clear()
    Reranker.load("adapter")
    assert not caplog.text


def test_files_for_other_readers(tmp_path: Path) -> None:
    """What TEI and vLLM read that transformers 5 does not write."""
    folder, _ = saved(tmp_path, "modernbert")
    config = json.loads((folder / "config.json").read_text())
    assert config["global_rope_theta"] == 160000.0
    assert config["local_rope_theta"] == 10000.0
    assert config["global_attn_every_n_layers"] == 2
    assert config["classifier_activation"] == "gelu"
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["label2id"] == {"LABEL_0": 0}
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 512
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 512
    folder, _ = saved(tmp_path / "two", "qwen3")
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 10000.0
    score = json.loads((folder / "1_LogitScore" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert score["true_token_id"] == tokenizer.convert_tokens_to_ids("yes")


def test_chat_template_carries_the_instruction(tmp_path: Path) -> None:
    """The message of role system is the instruction; without one, the checkpoint's."""
    folder, _ = saved(tmp_path, "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    spec = ModelSpec.load(folder)
    assert spec is not None
    messages = [{"role": "query", "content": "a {q}"}, {"role": "document", "content": "d"}]
    for extra, instruction in (
        ([], spec.instruction),
        ([{"role": "system", "content": "Judge."}], "Judge."),
    ):
        text = tokenizer.apply_chat_template(extra + messages, tokenize=False)
        expected = QWEN3_PREFIX.format(instruction=instruction, query="a {q}") + "d" + QWEN3_SUFFIX
        assert text == expected


def test_kind_is_read_off_the_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load(base(tmp_path, "qwen3")).spec.kind == "generative"
    assert checkpoint.load(base(tmp_path / "b", "bert")).spec.kind == "classification"


def test_refusals(tmp_path: Path) -> None:
    """Each names what was found and what to do."""
    folder, _ = saved(tmp_path, "bert")
    with pytest.raises(ConfigError, match="was trained as classification; drop the flag"):
        checkpoint.load(folder, LoadOptions(kind="generative"))
    with pytest.raises(ConfigError, match=r"--max_length 4096 is more than the model's 1024"):
        checkpoint.load(folder, LoadOptions(max_length=4096))
    (folder / "rankwright.json").write_text("{")
    with pytest.raises(CheckpointError, match="is broken"):
        checkpoint.load(folder)
    qwen = tiny.save_base(tmp_path / "qwen", "qwen3")
    with pytest.raises(
        ConfigError, match=r"--positive_token 'relevant' is not a single token.*\['re', 'levant'"
    ):
        checkpoint.load(qwen, LoadOptions(positive_token="relevant"))
    with pytest.raises(ConfigError, match="two different tokens"):
        checkpoint.load(qwen, LoadOptions(positive_token="no"))


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    """Elsewhere the head would come back random and silently so."""
    from safetensors.torch import load_file, save_file

    folder, _ = saved(tmp_path, "bert")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(CheckpointError, match=r"lacks the weights classifier\.bias"):
        checkpoint.load(folder)


def test_save_replaces_only_when_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the former checkpoint as it was."""
    folder, scores = saved(tmp_path, "bert")
    other = Reranker.load(tiny.save_base(tmp_path / "other", "bert", initializer_range=0.5))

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "_write_json", fail)
    with pytest.raises(CheckpointError, match="no space left"):
        other.save(folder)
    monkeypatch.undo()
    assert_close(Reranker.load(folder).score(pairs()), scores, rtol=0, atol=1e-6)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """To a folder on a larger disk; what it points at is made, then replaced."""
    reranker = Reranker.load(tiny.save_base(tmp_path / "base", "bert"))
    link, disk = tmp_path / "link", tmp_path / "disk"
    disk.mkdir()
    link.symlink_to(disk / "model")
    for _ in range(2):
        reranker.save(link)
        assert link.is_symlink()
        assert [path.name for path in disk.iterdir()] == ["model"]
    assert_close(Reranker.load(link).score(pairs()), reranker.score(pairs()), rtol=0, atol=0)
    # a hub's cache: files named by their content stand behind the links of a folder
    (disk / "blob").write_bytes((link / checkpoint.SPEC_FILE).read_bytes())
    (link / checkpoint.SPEC_FILE).unlink()
    (link / checkpoint.SPEC_FILE).symlink_to(disk / "blob")
    with pytest.raises(CheckpointError, match="is a link into a cache; save a copy"):
        checkpoint.write_calibration(link, {"method": "platt"})


def test_the_folder_one_stands_in_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced by its name, it would leave the process and its shell in one that is deleted."""
    reranker = Reranker.load(tiny.save_base(tmp_path / "base", "bert"))
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for name in (".", "..", str(tmp_path / "here")):
        with pytest.raises(CheckpointError, match="is the folder this runs in, or above it; name"):
            reranker.save(name)
    reranker.save("model")
    assert Path.cwd() == tmp_path / "here" / "below"


def test_saving_deletes_no_work(tmp_path: Path) -> None:
    """A folder of something else, or of a training run, is refused and left as it was."""
    reranker = Reranker.load(tiny.save_base(tmp_path / "base", "bert"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="holds other files"):
        reranker.save(tmp_path / "mine")
    reranker.save(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-5").mkdir()
    with pytest.raises(CheckpointError, match="holds a training run"):
        reranker.save(tmp_path / "run")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "mine", "run"]


def test_an_adapter_remembers_hub_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.save_base(tmp_path / "base", "bert")
    asked = []

    def resolve(name: str, **options: object) -> Path:
        asked.append((name, options.get("use_hf"), options.get("revision")))
        return Path(name) if Path(name).exists() else base

    monkeypatch.setattr(checkpoint, "resolve_model", resolve)
    loaded = checkpoint.load("owner/name", LoadOptions(use_hf=False, revision="abc"))
    add_adapters(loaded, TunerArguments())
    loaded.spec.training = {"use_hf": False, "revision": "abc"}
    checkpoint.save(loaded, tmp_path / "adapter")
    asked.clear()
    checkpoint.load(tmp_path / "adapter")
    assert asked == [(str(tmp_path / "adapter"), True, None), ("owner/name", False, "abc")]


@pytest.mark.parametrize("name", ["bert", "modernbert", "distilbert", "qwen3", "gpt2"])
def test_dropout_is_that_of_every_layer(tmp_path: Path, name: str) -> None:
    """Two forwards in training differ with it, and are equal without."""
    base = tiny.save_base(tmp_path / "base", name)
    ids = torch.randint(5, 30, (2, 40), generator=torch.Generator().manual_seed(0))
    for rate, equal in ((0.3, False), (0.0, True)):
        options = LoadOptions(dropout=rate, packed=False)
        model = checkpoint.load(base, options).model.hf.train()
        with torch.no_grad():
            one, two = (model(input_ids=ids).logits for _ in range(2))
        assert torch.equal(one, two) == equal
