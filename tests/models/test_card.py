"""The model card: valid for the hub, true of the run, and harmless whatever stands in the rows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from rankwright.evaluation import bootstrap_interval
from rankwright.export import export_model
from rankwright.models import card, checkpoint
from rankwright.models.card import Facts
from rankwright.models.checkpoint import LoadOptions, ModelSpec
from rankwright.ranking import Reranker
from rankwright.templates import QWEN3_PREFIX, QWEN3_SUFFIX
from rankwright.trainer import train
from tests import tiny

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECORD: dict[str, Any] = {
    "before": {"ndcg@10": 0.25},
    "after": {"ndcg@10": 0.5},
    "first_stage": {"ndcg@10": 0.125},
    "intervals": {"after": {"ndcg@10": [0.4, 0.6]}},
    "steps": 7,
    "dropped": {"no positive": 3},
    "rows": {
        "train": {"rows": 90, "positives": 91, "negatives": 92},
        "validation": {"rows": 10, "positives": 11, "negatives": 12},
    },
    "data": {
        "base_model": "owner/base",
        "hub_datasets": ["owner/rows"],
        "training_files": ["owner/rows", "mine.jsonl"],
        "validation_files": [],
    },
}


def facts(name: str = "owner/new", **training: Any) -> Facts:
    """Those of a made-up Qwen3 reranker."""
    spec = ModelSpec("generative", QWEN3_PREFIX, QWEN3_SUFFIX, "Find it", training=training)
    return Facts(spec, "qwen3", "Qwen3ForCausalLM", ("yes", "no"), name)


def parsed(text: str) -> ModelCard:
    """The card as huggingface_hub reads it, which raises where it is not valid."""
    return ModelCard(text, ignore_metadata_errors=False)


def test_metadata_is_what_the_hub_reads() -> None:
    text = card.card(facts(loss_type="listwise"), RECORD, license_name="apache-2.0")
    data = parsed(text).data
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "text-ranking"
    assert data.base_model == "owner/base"
    assert data.datasets == ["owner/rows"]
    assert data.license == "apache-2.0"
    assert {"reranker", "text-ranking", "loss:listwise"} <= set(data.tags)
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value) == ("ndcg@10", 0.5)
    assert result.task_type == "text-ranking"
    bare = parsed(card.card(facts(), {})).data.to_dict()
    assert set(bare) == {"library_name", "pipeline_tag", "tags"}


def test_the_text_says_what_the_run_was() -> None:
    text = card.card(facts(loss_type="listwise", learning_rate=2e-5, model="owner/base"), RECORD)
    assert "| first stage | 0.1250 |" in text
    assert "| before training | 0.2500 |" in text
    assert "| after training | 0.5000 (0.4000 to 0.6000) |" in text
    assert "owner/rows, mine.jsonl (90 queries, 91 positive and 92 negative documents)" in text
    assert "- Left out of training: 3 with no positive" in text
    assert "- learning\\_rate: 2e-05" in text
    assert "cut at 1024 tokens" in text
    assert f"{QWEN3_PREFIX}{{document}}{QWEN3_SUFFIX}".rstrip("\n") in text


def test_hostile_text_is_shown_and_does_nothing() -> None:
    """Names, instructions and arguments with Markdown, HTML, fences and YAML in them."""
    evil = "x](javascript:alert(1)) <script>alert(2)</script>\n---\nlicense: evil\n```\n# top"
    record = json.loads(json.dumps(RECORD))
    record["data"]["training_files"] = [evil]
    record["data"]["validation_files"] = [evil]
    record["after"] = {evil: 0.5}
    record["dropped"] = {evil: 1}
    bad = facts("owner/new", model=evil, loss_type=evil, seed=evil)
    bad.spec.instruction = evil + "\n````\nout"
    text = card.card(bad, record)
    found = parsed(text)
    assert found.data.license is None
    assert found.data.eval_results[0].metric_type == evil
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", found.text, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside
    assert "](" not in outside
    assert "out" not in outside.split("default instruction is")[1].split("## Use")[0]
    titles = [line for line in outside.splitlines() if line.startswith("#")]
    assert titles == [
        "# owner/new", "## Data", "## Validation", "## Input", "## Use", "## Training arguments",
    ]  # fmt: skip


def test_no_secret_and_no_path_of_this_machine() -> None:
    text = card.card(
        facts(
            "/home/me/models/mine",
            model="/home/me/base",
            dataset=["/home/me/secret/rows.jsonl", "C:\\me\\more.jsonl"],
            output_dir="/home/me/out",
            hub_token="hf_abc",
            hub_model_id="owner/new",
            lora_dropout=0.1,
            weight_decay=0.1,
            config="/home/me/zero.json",
        ),
        {"after": {"ndcg@10": 0.5}},
    )
    body = text.split("## Use")[0] + text.split("## Training arguments")[1]
    assert "/home" not in body
    assert "C:" not in body
    assert "hf_abc" not in text
    assert "rows.jsonl, more.jsonl" in text
    assert "from base (" in text
    assert "- config: zero.json" in text
    assert "- weight\\_decay: 0.1" in text
    assert "lora" not in text  # all weights were trained
    assert "- lora\\_dropout: 0.1" in card.card(facts(tuner_type="lora", lora_dropout=0.1), {})


def test_a_code_block_outlasts_its_backticks() -> None:
    assert card.fenced("a ``` b") == "````\na ``` b\n````"
    assert card.fenced("a\n", "bash") == "```bash\na\n```"


def test_commands_of_servers() -> None:
    """As vLLM's own examples write them; TEI has no decoders."""
    words = shlex.split(card.vllm_usage(facts("my model")) or "")
    assert words[:3] == ["vllm", "serve", "my model"]
    assert json.loads(words[words.index("--hf-overrides") + 1]) == {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    other = Facts(facts().spec, "llama", "LlamaForCausalLM", ("Ġyes", "Ġno"), "m")
    words = shlex.split(card.vllm_usage(other) or "")
    assert json.loads(words[words.index("--hf-overrides") + 1]) == {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": ["Ġno", "Ġyes"],
        "method": "from_2_way_softmax",
    }
    assert card.tei_usage(facts()) is None
    pair = Facts(ModelSpec("classification", None, "", ""), "bert", "B", None, "owner/new")
    assert shlex.split(card.tei_usage(pair) or "")[-2:] == ["--model-id", "owner/new"]
    assert card.vllm_usage(Facts(pair.spec, "deberta-v2", "D", None, "m")) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["modernbert", "qwen3", "qwen3:seq"])
def test_the_snippets_of_a_card_run_and_agree(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every Python block of a card, as it stands there: one score, three tools."""
    pytest.importorskip("sentence_transformers", reason="extra dev")
    monkeypatch.chdir(tmp_path)
    base = tiny.save_base(Path("base"), name)
    result = export_model(base, "merged", "model", max_length=512)
    ours = Reranker.load("model").score([("a query", "a document")])[0]
    blocks = PYTHON.findall((result.folder / "README.md").read_text())
    assert len(blocks) == 3
    printed = []
    for block in blocks:
        capsys.readouterr()
        exec(compile(block, "README.md", "exec"), {})
        printed.append(capsys.readouterr().out)
    score = float(re.findall(r"index=0, score=(-?[\d.]+)", printed[0])[0])
    assert score == pytest.approx(ours, abs=1e-4)
    assert float(printed[1].strip(" []\n")) == pytest.approx(1 / (1 + np.exp(-ours)), abs=1e-4)
    assert float(printed[2]) == pytest.approx(ours, abs=1e-4)


def test_a_run_writes_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and intervals are those of the run's own validation."""
    monkeypatch.chdir(tmp_path)
    tiny.save_base(Path("base"), "bert")
    Path("rows.jsonl").write_text(
        "".join(
            json.dumps({"query": e.query, "positive": e.documents[:1], "negative": e.documents[1:]})
            + "\n"
            for e in tiny.examples(16, documents=3)
        )
    )
    result = train(
        model="base",
        dataset="rows.jsonl",
        split_dataset_ratio=0.5,
        output_dir="out",
        max_steps=1,
        use_cpu=True,
    )
    text = Path("out/README.md").read_text()
    data = parsed(text).data
    assert data.base_model is None  # a local folder is no model of the hub
    assert data.datasets is None
    assert result.after is not None
    values = result.after.values("ndcg@10")
    low, high = bootstrap_interval(values, seed=0)
    assert f"| after training | {values.mean():.4f} ({low:.4f} to {high:.4f}) |" in text
    assert "- Training rows: rows.jsonl (8 queries, 8 positive and 16 negative documents)" in text
    assert text.splitlines()[[*text.splitlines()].index("---", 1) + 2] == "# out"
    # an export of it knows all that again
    exported = export_model("out", "sentence-transformers", "exported").folder
    assert f"({low:.4f} to {high:.4f})" in (exported / "README.md").read_text()
    assert "seconds" not in json.loads((exported / "metrics.json").read_text())


def test_a_license_goes_on(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "bert")
    assert card.known_license(base) is None
    (base / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    assert card.known_license(base) == "mit"
    folder = export_model(base, "merged", tmp_path / "out").folder
    assert parsed((folder / "README.md").read_text()).data.license == "mit"
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    assert card.known_license(base) is None


def test_facts_spell_tokens_as_the_vocabulary_does(tmp_path: Path) -> None:
    """A byte-level vocabulary writes a space as Ġ, and vLLM looks tokens up as they are written."""
    base = tiny.save_base(tmp_path / "base", "qwen3")
    loaded = checkpoint.load(base, LoadOptions(positive_token=" the"))
    assert Facts.of(loaded, "m").tokens == ("Ġthe", "no")
