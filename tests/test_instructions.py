"""Instructions from the row to the prompt: in training, evaluation, ranking and Python."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import rankwright
from rankwright import cli
from rankwright.arguments import resolve
from rankwright.data.outline import instructions, select
from rankwright.data.readers import iter_queries, load_examples
from rankwright.data.store import ExampleStore, load_store
from rankwright.data.tokens import token_store
from rankwright.errors import ConfigError
from rankwright.models.checkpoint import SPEC_FILE
from rankwright.ranking import Reranker
from rankwright.templates import DEFAULT_INSTRUCTION, PAIR, QWEN3, PairEncoder
from tests import tiny

ROW = {"query": "old ships", "positive": ["ships sleep"], "negative": ["cold rivers", "rain falls"]}
OTHER = {"query": "grey seas", "positive": ["seas cry"], "negative": ["a lazy dog", "green hills"]}
OWN = "find ships"
DATASET = "find birds"
RUN = "find dogs"


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_base(tmp_path_factory.mktemp("decoder"), "qwen3"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_base(tmp_path_factory.mktemp("encoder"), "bert"))


def prompt(reranker: Reranker, example: Any) -> str:
    tokens = reranker.loaded.encoder().encode(example.query, ["x"], example.instruction)
    return str(reranker.loaded.tokenizer.decode(tokens.prefix))


def test_precedence(decoder: str, tmp_path: Path) -> None:
    """Row, then dataset, then run, then the model's rankwright.json, then the template's default.

    Each of the lower ones is given too, so what is found won against all of them.
    """
    saved = Reranker.load(decoder).save(tmp_path / "saved")
    spec = json.loads((saved / SPEC_FILE).read_text())
    assert spec["instruction"] == DEFAULT_INSTRUCTION
    (saved / SPEC_FILE).write_text(json.dumps(spec | {"instruction": "find seas"}))
    own = write(tmp_path / "own.jsonl", ROW | {"instruction": OWN})
    plain = write(tmp_path / "plain.jsonl", ROW)
    told, untold = Reranker.load(saved, instruction=RUN), Reranker.load(saved)
    row, dataset = load_examples([own, plain], instructions=[DATASET, DATASET]).examples
    (bare,) = load_examples(plain).examples
    for reranker, example, expected in (
        (told, row, OWN),
        (told, dataset, DATASET),
        (told, bare, RUN),
        (untold, bare, "find seas"),
        (Reranker.load(decoder), bare, DEFAULT_INSTRUCTION),
    ):
        assert f"<Instruct>: {expected}\n<Query>: old ships\n" in prompt(reranker, example)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (ROW | {"instruction": OWN}, OWN),
        ({"query": "q", "pos": ["a"], "neg": ["b"], "prompt": OWN}, OWN),
        ({"query": "q", "documents": ["a", "b"], "labels": [1, 0], "instruction": OWN}, OWN),
        ({"query": "q", "document": "a", "label": 1, "instruction": OWN}, OWN),
        ({"anchor": "q", "positive": "a", "negative": "b", "instruction": OWN}, OWN),
        (
            {
                "messages": [
                    {"role": "system", "content": OWN},
                    {"role": "user", "content": "q"},
                ],
                "positive_messages": [[{"role": "assistant", "content": "a"}]],
                "negative_messages": [[{"role": "assistant", "content": "b"}]],
            },
            OWN,
        ),
        (ROW | {"instruction": "  "}, DATASET),
        (ROW, DATASET),
    ],
)
def test_every_layout(tmp_path: Path, row: dict[str, Any], found: str) -> None:
    path = write(tmp_path / "rows.jsonl", row)
    (example,) = load_examples(path, instructions=DATASET).examples
    assert example.instruction == found


def test_datasets_and_instructions_pair_in_order(tmp_path: Path) -> None:
    """A text for each dataset; an empty one leaves rows without; a sample of one keeps its own."""
    a = write(tmp_path / "a.jsonl", ROW, OTHER)
    b = write(tmp_path / "b.jsonl", OTHER)
    found = load_examples([f"{a}#3", b, b], instructions=["one", "", "three"]).examples
    assert [e.instruction for e in found] == ["one"] * 3 + [None, "three"]
    # one string of several names is several datasets
    found = load_examples(f"{a} {b}", instructions=["one", "two"]).examples
    assert [e.instruction for e in found] == ["one", "one", "two"]


@pytest.mark.parametrize("texts", [["x"], ["x", "y", "z"]])
def test_counts_must_agree(tmp_path: Path, texts: list[str]) -> None:
    names = [write(tmp_path / name, ROW) for name in ("a.jsonl", "b.jsonl")]
    message = rf"^{len(texts)} instructions? for 2 datasets \(.*a.jsonl, .*b.jsonl\); give one text"
    with pytest.raises(ConfigError, match=message):
        load_examples(names, instructions=texts)
    with pytest.raises(ConfigError, match=message):
        load_store(names, tmp_path / "cache", instructions=texts)
    with pytest.raises(ConfigError, match=message):
        rankwright.train(model="m", dataset=names, instructions=texts, output_dir=tmp_path / "o")
    with pytest.raises(ConfigError, match="--val_instructions needs --val_dataset"):
        resolve({"model": "m", "dataset": names, "val_instructions": texts}, {})


def test_command_lines_agree(
    decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong count is one line from every command that takes datasets."""
    rows = write(tmp_path / "a.jsonl", ROW)
    for words in (
        ["train", "--output_dir", str(tmp_path / "o"), "--dataset", rows],
        ["evaluate", "--dataset", rows],
        ["check", rows],
    ):
        code = cli.main([*words, "--model", decoder, "--instructions", "x", "y"])
        assert code == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith("rankwright: 2 instructions for 1 datasets")


def test_cache_tells_instructions_apart(tmp_path: Path) -> None:
    """Rows and tokens made under one instruction are never read under another."""
    rows = write(tmp_path / "rows.jsonl", ROW, OTHER)
    cache = tmp_path / "cache"
    encoder = PairEncoder(tiny.decoder_tokenizer(), QWEN3, 512)

    def tokens(*texts: str) -> tuple[Path, Any]:
        store = load_store(rows, cache, instructions=list(texts)).examples
        assert isinstance(store, ExampleStore)
        pair = token_store(store, encoder, cache).pairs(0, [(0,)])[0]
        again = encoder.encode(store[0].query, [store[0].documents[0]], store[0].instruction)
        assert pair == again
        return store.folder, pair.prefix

    made = [tokens(), tokens("one"), tokens("two"), tokens("one"), tokens("")]
    assert made[1] == made[3]
    assert made[0] == made[4]
    assert len({folder for folder, _ in made}) == 3
    assert len({tuple(prefix) for _, prefix in made}) == 3
    assert len(list((cache / "tokens").iterdir())) >= 3
    # the run's own is part of the template, and so of the tokens' key
    told = PairEncoder(
        encoder.tokenizer, QWEN3.__class__("generative", QWEN3.prefix, QWEN3.suffix, "two"), 512
    )
    store = load_store(rows, cache).examples
    assert token_store(store, told, cache).pairs(0, [(0,)])[0].prefix == made[2][1]


def test_counts_of_a_store_and_of_a_list(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW | {"instruction": OWN}, OTHER, ROW, OTHER)
    held = load_examples(path).examples
    store = load_store(path, tmp_path / "cache").examples
    assert instructions(held) == instructions(store) == {OWN: (1, 0)}
    assert (
        instructions(select(store, [3, 0])) == instructions(select(held, [3, 0])) == {OWN: (1, 1)}
    )
    assert instructions(select(store, [1, 2])) == {}


def trained(decoder: str, output: Path, **given: Any) -> float:
    result = rankwright.train(
        model=decoder,
        output_dir=str(output),
        max_steps=1,
        report_to="none",
        max_length=512,
        eval_strategy="no",
        **given,
    )
    return result.train_loss


def test_training_reads_them(decoder: str, tmp_path: Path) -> None:
    """One instruction gives one loss, wherever it is said; another gives another."""
    plain = write(tmp_path / "plain.jsonl", ROW, OTHER)
    own = write(tmp_path / "own.jsonl", *({**row, "instruction": OWN} for row in (ROW, OTHER)))
    by_row = trained(decoder, tmp_path / "1", dataset=own, instruction=RUN)
    by_dataset = trained(decoder, tmp_path / "2", dataset=plain, instructions=OWN, instruction=RUN)
    by_run = trained(decoder, tmp_path / "3", dataset=plain, instruction=OWN)
    ahead = trained(decoder, tmp_path / "4", dataset=own, lazy_tokenize=False)
    assert by_row == by_dataset == by_run == ahead
    assert abs(trained(decoder, tmp_path / "5", dataset=plain) - by_run) > 1e-6
    spec = json.loads((tmp_path / "3" / SPEC_FILE).read_text())
    assert spec["instruction"] == OWN
    assert json.loads((tmp_path / "2" / SPEC_FILE).read_text())["instruction"] == RUN


def test_training_recipe(decoder: str, tmp_path: Path) -> None:
    """The YAML form, with validation rows of their own instruction."""
    a = write(tmp_path / "a.jsonl", ROW, OTHER)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {decoder}\ndataset: [{a}, {a}]\ninstructions: ['', {OWN}]\n"
        f"val_dataset: [{a}]\nval_instructions: [{DATASET}]\n"
        f"output_dir: {tmp_path / 'out'}\nmax_steps: 1\nmax_length: 512\n"
    )
    assert cli.main(["train", str(recipe)]) == 0
    saved = json.loads((tmp_path / "out" / SPEC_FILE).read_text())["training"]
    assert saved["instructions"] == ["", OWN]
    assert saved["val_instructions"] == [DATASET]


def test_evaluation_ranking_and_python_agree(decoder: str, tmp_path: Path) -> None:
    """The same pair under the same instruction has the same score everywhere."""
    reranker = Reranker.load(decoder, max_length=512)
    documents = ROW["positive"] + ROW["negative"]
    pairs = [(ROW["query"], document) for document in documents]
    expected = reranker.score(pairs, instruction=OWN)
    assert max(abs(a - b) for a, b in zip(expected, reranker.score(pairs), strict=True)) > 1e-4
    ranked = reranker.rank(ROW["query"], documents, instruction=OWN)
    assert {r.index: pytest.approx(r.score, abs=1e-6) for r in ranked} == dict(enumerate(expected))

    rows = write(tmp_path / "rows.jsonl", ROW)
    words = ["--model", decoder, "--max_length", "512"]
    evaluated = ["--dataset", rows, "--instructions", OWN, "--output", str(tmp_path / "results")]
    assert cli.main(["evaluate", *words, *evaluated]) == 0
    lines = (tmp_path / "results" / "run.trec").read_text().splitlines()
    scores = {line.split()[2]: float(line.split()[4]) for line in lines}
    assert sorted(scores.values()) == pytest.approx(sorted(expected), abs=1e-5)

    queries = write(
        tmp_path / "queries.jsonl",
        {"query": ROW["query"], "documents": documents, "instruction": OWN},
        {"query": ROW["query"], "documents": documents},
    )
    assert [e.instruction for e in iter_queries(queries)] == [OWN, None]
    for flags, second in (([], reranker.score(pairs)), (["--instruction", OWN], expected)):
        out = tmp_path / "ranked.jsonl"
        assert cli.main(["rank", *words, *flags, "--input", queries, "--output", str(out)]) == 0
        found = [json.loads(line)["results"] for line in out.read_text().splitlines()]
        for results, scores_D in zip(found, (expected, second), strict=True):
            by_index = {entry["index"]: entry["score"] for entry in results}
            assert [by_index[i] for i in range(3)] == pytest.approx(scores_D, abs=1e-5)


def test_encoders_count_what_they_ignore(
    encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    """A pair of texts has no place for an instruction: the score stays, and a warning counts."""
    rows = write(tmp_path / "rows.jsonl", ROW | {"instruction": OWN}, OTHER)
    reranker = Reranker.load(encoder)
    pairs = [(ROW["query"], "cold rivers")]
    assert reranker.score(pairs, instruction=OWN) == reranker.score(pairs)
    messages = [m for m in caplog.messages if "instruction" in m]
    assert len(messages) == 1
    assert messages[0].startswith("1 query came with an instruction, which has no effect")
    reranker.score(pairs, instruction=OWN)
    assert len([m for m in caplog.messages if "came with an instruction" in m]) == 1

    trained(encoder, tmp_path / "out", dataset=rows)
    assert "1 rows have an instruction, which has no effect" in " ".join(
        capsys.readouterr().err.split()
    )
    caplog.clear()
    assert cli.main(["evaluate", "--model", encoder, "--dataset", rows, "--instructions", "x"]) == 0
    assert [m for m in caplog.messages if m.startswith("2 queries came with an instruction")]


def test_run_instruction_without_a_place(encoder: str, caplog: pytest.LogCaptureFixture) -> None:
    Reranker.load(encoder, instruction=RUN)
    assert [m for m in caplog.messages if m.startswith("--instruction has no effect")]


def test_long_instructions_stop_training_at_once(decoder: str, tmp_path: Path) -> None:
    """They are found before the first step, with their place and number."""
    long = "find " * 200
    rows = write(tmp_path / "rows.jsonl", OTHER, *[ROW | {"instruction": long}] * 2)
    with pytest.raises(
        ConfigError, match=r"rows.jsonl:2: its instruction \(that of 2 rows\) brings"
    ):
        trained(decoder, tmp_path / "out", dataset=rows)


def test_too_long_is_exact() -> None:
    """An instruction leaves MIN_ROOM tokens exactly when its frame says so."""
    encoder = PairEncoder(tiny.decoder_tokenizer(), QWEN3, 600)
    encoder.max_length = limit = encoder.frame("") + 100
    texts = ["n" * n for n in range(1, 200)]
    found = encoder.too_long(texts)
    assert found == {t: encoder.frame(t) for t in texts if encoder.frame(t) > limit - 16}
    assert 0 < len(found) < len(texts)
    encoder.encode("q" * 500, ["d" * 500], next(t for t in texts[::-1] if t not in found))
    with pytest.raises(ConfigError, match="leaves no room"):
        encoder.encode("q" * 500, ["d" * 500], next(iter(found)))
    pair = PairEncoder(tiny.encoder_tokenizer(token_types=True), PAIR, 32)
    assert pair.too_long(["x" * 100]) == {}


def test_check_lists_and_warns(decoder: str, encoder: str, tmp_path: Path, capsys: Any) -> None:
    long = "find " * 200
    rows = write(
        tmp_path / "rows.jsonl",
        OTHER,
        *[ROW | {"instruction": OWN}] * 3,
        ROW | {"instruction": long},
    )
    words = ["check", rows, "--instructions", "", "--max_length", "512"]
    assert cli.main([*words, "--model", decoder]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Instructions: training" in out
    assert f"'{OWN}' 3" in out
    assert "none of their own, so 'Given a web search query," in out
    assert "1 x row with the instruction 'find find" in out
    assert "leaves no room within max_length 512; training stops there" in out
    assert cli.main(["check", rows, "--model", encoder]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 x row with an instruction, which the model's template has no place for" in out
    assert cli.main(["check", rows, rows, "--instructions", "a", "b"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert Counter(w for w in out.split() if w in ("'a'", "'b'")) == {"'a'": 1, "'b'": 1}
