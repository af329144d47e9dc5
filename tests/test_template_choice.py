"""Templates by name and from files, on tokenizers and architectures that differ from Qwen3's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import rankwright
from rankwright import cli
from rankwright.arguments import resolve
from rankwright.errors import ConfigError
from rankwright.models.checkpoint import SPEC_FILE, LoadOptions, describe
from rankwright.ranking import Reranker
from rankwright.templates import (
    DEFAULT_INSTRUCTION,
    QWEN3,
    TEMPLATES,
    PairEncoder,
    Template,
    find_template,
    template_warnings,
)
from tests import tiny

TEXTS = ["ships sleep", " rain", "the (old) fox.", "dawn\n", "é: 12", "", "white  birds "]

GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ message.role }}\n{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentencepiece(scheme: str, *, specials: list[str], bos: str) -> PreTrainedTokenizerFast:
    """Pieces with a mark for the space and bytes for the rest, as in Llama 2 and Gemma.

    Args:
        scheme: ``first`` puts the mark before a text (Llama 2), ``never`` does not (Gemma).
        specials: special tokens.
        bos: the token that stands before a text.
    """
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n"]
    pieces += sorted({*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ.:,'()<>/-01"})
    merges = [
        ("y", "e"),
        ("ye", "s"),
        ("n", "o"),
        ("▁", "t"),
        ("s", "h"),
        ("▁", "yes"),
        ("▁", "no"),
    ]
    pieces += ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(
        models.BPE(
            {p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens([bos, *specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, pad_token="<unk>", model_max_length=2048
    )


def words() -> PreTrainedTokenizerFast:
    """Whole words and marks, without spaces."""
    marks = [".", ":", ",", "(", ")", "Query", "Document", "Relevant", "yes", "no"]
    vocabulary = ["[UNK]", *dict.fromkeys([*tiny.WORDS, *marks])]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]", model_max_length=2048
    )


def byte_level(chat: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = chat
    return tokenizer


def gemma(chat: str | None = GEMMA_CHAT) -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece("never", specials=["<start_of_turn>", "<end_of_turn>"], bos="<bos>")
    tokenizer.chat_template = chat
    return tokenizer


def llama() -> PreTrainedTokenizerFast:
    return sentencepiece("first", specials=["[INST]", "[/INST]"], bos="<s>")


def save(folder: Path, family: str, tokenizer: Any) -> Path:
    """A random model of an architecture with another tokenizer than tests/tiny.py gives it."""
    tiny.save_base(folder, family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    tokenizer.save_pretrained(folder)
    return folder


PLAIN = {
    "prefix": "Query: {query}\nTask: {instruction}\nDocument: ",
    "suffix": "\nRelevant:",
    "instruction": "find ships",
    "positive_token": "yes",
    "negative_token": "no",
}
MODELS: dict[str, tuple[str, Any, dict[str, str]]] = {
    # architecture, tokenizer, template file
    "bytes": ("qwen2", byte_level, PLAIN),
    "gemma": ("mistral", gemma, PLAIN | {"prefix": "<bos>" + PLAIN["prefix"]}),
    "words": ("gpt2", words, PLAIN),
    "llama": (
        "llama",
        llama,
        PLAIN | {"prefix": "<s>[INST] {query} {instruction} [/INST] ", "suffix": "[INST]"},
    ),
}


def template_file(folder: Path, values: dict[str, Any], name: str = "template.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_the_whole_prompt(name: str, tmp_path: Path) -> None:
    """On four tokenizers and architectures: the prompt's parts give what one string gives.

    And so the score is the model's own logit difference behind that string.
    """
    family, make, values = MODELS[name]
    folder = save(tmp_path / "model", family, make())
    path = template_file(tmp_path, values)
    reranker = Reranker.load(folder, template=str(path), max_length=512)
    tokenizer = reranker.loaded.tokenizer
    model = AutoModelForCausalLM.from_pretrained(folder)
    encoder = reranker.loaded.encoder()
    yes, no = (tokenizer(word, add_special_tokens=False).input_ids for word in ("yes", "no"))
    answers = (reranker.loaded.spec.positive_token, reranker.loaded.spec.negative_token)
    assert answers == ("yes", "no")
    for query in ("old ships", "what? the fox"):
        for instruction in (None, "find birds"):
            whole = [
                values["prefix"].format(query=query, instruction=instruction or "find ships")
                + text
                + values["suffix"]
                for text in TEXTS
            ]
            expected = [tokenizer(text, add_special_tokens=False).input_ids for text in whole]
            tokens = encoder.encode(query, TEXTS, instruction)
            assert [tokens.prefix + ids for ids in tokens.documents] == expected
            with torch.no_grad():
                logits = [model(torch.tensor([ids])).logits[0, -1] for ids in expected]
            pairs = [(query, text) for text in TEXTS]
            assert reranker.score(pairs, instruction=instruction) == pytest.approx(
                [(row[yes[-1]] - row[no[-1]]).item() for row in logits], abs=2e-4
            )


def test_a_mark_before_each_text_is_found(tmp_path: Path) -> None:
    """Llama 2's tokenizer begins every text with a space: behind a line break that is another id.

    Whole: ``\\n`` ``s`` ...; apart: ``▁`` ``s`` .... This must be an error and never a score.
    """
    tokenizer = llama()
    with pytest.raises(ConfigError, match="the tokenizer joins the template's text"):
        PairEncoder(tokenizer, Template("generative", "{query}\nDocument:\n", "[INST]"), 256)
    folder = save(tmp_path / "model", "llama", tokenizer)
    path = template_file(tmp_path, PLAIN)
    with pytest.raises(ConfigError, match="the tokenizer joins"):
        describe(folder, LoadOptions(template=str(path)))


def test_every_name_makes_a_template() -> None:
    tokenizer = byte_level(CHATML)
    assert list(TEMPLATES) == ["pair", "qwen3", "chat", "mxbai-v2", "bge-gemma"]
    for name in TEMPLATES:
        template, says = find_template(name, tokenizer)
        assert not says
        assert (template.prefix is None) == (name == "pair")
        assert template.reads_instruction == (name in ("qwen3", "chat"))
        if template.prefix is not None:
            assert template.positive_token
            assert template.negative_token


def test_mxbai_prompt() -> None:
    """mxbai_rerank_v2.py: prefix, query, line break, document, line break, task, suffix."""
    template, _ = find_template("mxbai-v2", byte_level())
    assert template.prefix is not None
    whole = template.prefix.format(query="Q") + "D" + template.suffix
    prefix = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n"
    )
    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. "
        "For each query-document pair, carefully analyze the semantic relationship between them, "
        "then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n"
    assert whole == prefix + "\n".join(["query: Q", "document: D", task]) + suffix
    assert (template.positive_token, template.negative_token) == ("1", "0")


def test_bge_gemma_prompt() -> None:
    """The model card: the start token, ``A: query``, ``B: passage`` and the question, on lines."""
    template, _ = find_template("bge-gemma", gemma())
    assert template.prefix is not None
    assert template.prefix.format(query="Q") + "D" + template.suffix == (
        "<bos>A: Q\nB: D\nGiven a query A and a passage B, determine whether the passage contains "
        "an answer to the query by providing a prediction of either 'Yes' or 'No'."
    )
    assert (template.positive_token, template.negative_token) == ("Yes", "No")


def test_chat_is_qwen3_on_qwen3(shared: Path) -> None:
    """The words in Qwen3's own chat format, its thinking off, are Qwen3-Reranker's prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen3")
    assert find_template("chat", tokenizer) == (QWEN3, False)


def test_chat_formats() -> None:
    """With a system message, and without one where the format refuses it; braces stay text."""
    template, _ = find_template("chat", byte_level(CHATML))
    assert template.prefix == QWEN3.prefix
    assert template.suffix == "<|im_end|>\n<|im_start|>assistant\n"
    template, _ = find_template("chat", gemma())
    assert template.prefix is not None
    assert template.prefix.startswith("<bos><start_of_turn>user\nJudge whether the Document")
    assert template.prefix.endswith(
        '"no".\n\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: '
    )
    assert template.suffix == "<end_of_turn>\n<start_of_turn>model\n"
    braces, _ = find_template("chat", byte_level("{{ '{a}' }}" + CHATML))
    assert braces.prefix is not None
    assert braces.prefix.format(query="q", instruction="i").startswith("{a}<|im_start|>system")


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (None, "needs a tokenizer with a chat template, and this one has none"),
        ("{{ raise_exception('never') }}", r"refuses a question \(never\)"),
        ("{{ messages[0].content | upper }}", "does not keep its messages as they are"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "does not keep"),
    ],
)
def test_chat_that_does_not_do(chat: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_template("chat", byte_level(chat))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prefix: '{query}'\nsufix: x\n", r"'sufix' is not part of a template; did you mean 'suf"),
        ("prefix: '{query}'\npositive_token: yes\n", r"positive_token is True, which is no text; "),
        ("prefix: '{query}'\npositive_token: 1\n", r"positive_token is 1, which is no text; put"),
        ("suffix: x\n", r"prefix is missing"),
        ("prefix: ''\n", r"prefix is empty"),
        ("prefix: 'Q: '\n", r"prefix has the fields \[\]; it needs \{query\} exactly once"),
        ("prefix: '{query} {document}'\n", r"prefix has the fields .*document"),
        ("prefix: '{query'\n", r"prefix has unbalanced braces"),
        ("- a\n", r"holds no names; a template has prefix, suffix, instruction, positive_token"),
        ("", r"holds no names"),
        ("prefix: [\n", r"template.yaml:2 is not YAML or JSON"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        find_template(str(path), byte_level())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen", r"neither a file nor a name; did you mean 'qwen3'\? Give a YAML or JSON file, or"),
        ("none.yaml", r"neither a file nor a name; Give .*one of pair, qwen3, chat"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_template(name, byte_level())


def test_files_in_yaml_and_json(tmp_path: Path) -> None:
    """The same template; a file without an instruction leaves the model its own."""
    import yaml

    a = template_file(tmp_path, PLAIN)
    b = tmp_path / "template.yaml"
    b.write_text(yaml.safe_dump(PLAIN))
    expected = Template("generative", *PLAIN.values())
    assert find_template(str(a), byte_level()) == (expected, True)
    assert find_template(str(b), byte_level()) == (expected, True)
    c = template_file(tmp_path, {"prefix": "{query}\n"}, "short.json")
    assert find_template(str(c), byte_level()) == (Template("generative", "{query}\n"), False)


def test_what_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags over the template, the template over rankwright.json and over the environment."""
    folder = tiny.save_base(tmp_path / "base", "qwen3")
    saved = Reranker.load(folder, instruction="old", positive_token="a").save(tmp_path / "saved")
    whole = str(template_file(tmp_path, PLAIN))
    part = str(template_file(tmp_path, {"prefix": "{query} {instruction}\n"}, "part.json"))

    def spec(model: Path, **options: Any) -> Any:
        return describe(model, LoadOptions(**options)).spec

    assert spec(saved).positive_token == "a"
    assert spec(saved, template=whole).instruction == "find ships"
    assert spec(saved, template=whole).positive_token == "yes"
    assert spec(saved, template=part).instruction == "old"
    assert spec(saved, template=part).positive_token == "a"
    assert spec(saved, template="qwen3").instruction == "old"
    assert spec(folder, template=part).instruction == DEFAULT_INSTRUCTION
    found = spec(saved, template=whole, template_suffix="\n", instruction="x", negative_token="b")
    assert (found.template_suffix, found.instruction) == ("\n", "x")
    assert (found.positive_token, found.negative_token) == ("yes", "b")

    monkeypatch.setenv("GENERATIVE_RERANKER_POSITIVE_TOKEN", "c")
    resolved = resolve({"model": "m", "dataset": "d", "template": whole})
    assert resolved.model.positive_token is None
    resolved = resolve({"model": "m", "dataset": "d"})
    assert resolved.model.positive_token == "c"


def test_training_keeps_the_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a file said stands in rankwright.json; the file is not needed again."""
    folder = save(tmp_path / "base", "mistral", gemma())
    path = template_file(tmp_path, PLAIN | {"prefix": "<bos>" + PLAIN["prefix"]})
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"query": "old ships", "positive": ["ships sleep"], "negative": ["rain falls"]}\n' * 2
    )
    rankwright.train(
        model=str(folder),
        template=str(path),
        dataset=str(rows),
        output_dir=str(tmp_path / "out"),
        max_steps=1,
    )
    spec = json.loads((tmp_path / "out" / SPEC_FILE).read_text())
    assert spec["template_prefix"] == "<bos>" + PLAIN["prefix"]
    assert (spec["instruction"], spec["positive_token"]) == ("find ships", "yes")
    path.unlink()
    assert Reranker.load(tmp_path / "out").score([("a", "b")])
    assert not [m for m in caplog.messages if "another template" in m]
    Reranker.load(tmp_path / "out", template="bge-gemma", positive_token="yes", negative_token="no")
    assert [m for m in caplog.messages if m.startswith("the model was trained with another")]


def test_mistakes_are_found_before_rows_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder has no weights and the rows are none, and still the template is what is named."""
    folder = tiny.save_base(tmp_path / "base", "qwen3")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("no rows\n")
    for values, message in (
        (PLAIN | {"positive_token": "relevant"}, "--positive_token 'relevant' is not a single tok"),
        (PLAIN | {"negative_token": "yes"}, "two different tokens"),
        (PLAIN | {"prefix": "{query}Document"}, "the tokenizer joins the template's text"),
        (PLAIN | {"suffix": "\n" + "x " * 1000}, "--max_length 1024 is too small"),
    ):
        path = str(template_file(tmp_path, values))
        words = ["--model", str(folder), "--template", path]
        for command in (
            ["train", "--dataset", str(rows), "--output_dir", str(tmp_path / "out"), *words],
            ["check", *words],
        ):
            assert cli.main(command) == 2
            assert message in capsys.readouterr().err


def test_warnings() -> None:
    """Another model's special tokens, a missing start token, an answer that joins the prompt."""
    assert template_warnings(byte_level(), QWEN3, ("yes", "no")) == []
    lines = template_warnings(gemma(), QWEN3)
    assert len(lines) == 2
    assert "<|im_start|> (12), <|im_end|> (10)" in lines[0]
    assert lines[1].startswith("the tokenizer puts <bos> before every text")
    good = Template("generative", "<bos>{query}\n", "<end_of_turn>\n")
    assert template_warnings(gemma(), good, ("yes", "no")) == []
    # behind "ye", the word "s" is the end of the token "yes"
    (line,) = template_warnings(
        byte_level(), Template("generative", "{query}\n", " ye"), ("s", "n")
    )
    assert line.startswith("behind the prompt the model would write 's' with other tokens")
    assert (
        template_warnings(tiny.encoder_tokenizer(token_types=True), TEMPLATES["pair"].make(None))
        == []
    )


def test_check_shows_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exact prompt, the ids around the document, the scored token and both answers."""
    folder = save(tmp_path / "model", "mistral", gemma())
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    values = PLAIN | {"prefix": "<bos>" + PLAIN["prefix"]}
    path = template_file(tmp_path, values)
    tokenizer = gemma()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    assert cli.main(["check", "--model", str(folder), "--template", str(path)]) == 0
    out = capsys.readouterr().out
    prompt = values["prefix"].format(query="query", instruction="find ships")
    assert f"{prompt}A document.\nRelevant:" in out
    assert f"'yes', id {yes}" in out
    assert f"'no', id {no}" in out
    ids = tokenizer(f"{prompt}A document.\nRelevant:", add_special_tokens=False).input_ids
    assert " ".join(map(str, ids[-4:])) in out
    assert f"{len(ids)} tokens; the score is logit(yes) - logit(no) at the last token" in out
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "fox", "positive": ["ships sleep"], "negative": ["rain"]}\n')
    words = ["check", str(rows), "--model", str(folder), "--template"]
    assert cli.main([*words, str(path)]) == 0
    out = capsys.readouterr().out
    assert "Query: fox\nTask: find ships\nDocument: ships sleep\nRelevant:" in out
    assert cli.main([*words, "qwen3"]) == 0
    assert "what look like special tokens" in capsys.readouterr().out
