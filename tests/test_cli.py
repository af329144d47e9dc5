"""The command line: help is quick, a user's mistake is one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwright import __version__, cli
from rankwright.errors import DataError
from tests import tiny

ROWS = [
    {"query": "fox jumps", "positive": ["the quick fox jumps"], "negative": ["rain falls"]},
    {"query": "old ships", "positive": ["old ships sleep"], "negative": ["white birds", "a dog"]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT, as a hub would give it."""
    return str(tiny.save_base(tmp_path_factory.mktemp("cli") / "bert", "bert"))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write(tmp_path, "rows.jsonl", *map(json.dumps, ROWS))


def write(folder: Path, name: str, *lines: str) -> str:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on standard error that a command ends with, its exit code being 2."""
    capsys.readouterr()
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("rankwright: ")
    assert "Traceback" not in err
    return err.removeprefix("rankwright: ").rstrip("\n")


# --- help and version -------------------------------------------------------------------------


def test_top_level_help_and_version_import_nothing_heavy() -> None:
    """In a fresh interpreter: neither torch nor transformers nor numpy is loaded."""
    script = (
        "import sys; from rankwright.cli import COMMANDS, main; codes = [main(['--help']), "
        "main(['-h']), main([]), main(['--version'])] + [main([c, '--help']) for c in COMMANDS]; "
        "print(set(codes), {'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "{0} set()"
    assert done.stdout.startswith(cli.USAGE)
    assert f"rankwright {__version__}\n" in done.stdout


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_lists_its_flags(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import fields

    for words in ([command, "--help"], [command, "-h"], [command, "--model", "m", "--help"]):
        assert cli.main(words) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith(f"usage: rankwright {command} {cli.COMMANDS[command].usage}\n")
        for kind in cli.module(command).types():
            for f in fields(kind):
                assert f"  --{f.name} " in out


def test_the_module_and_its_exit_code() -> None:
    """``python -m rankwright``, in its own process: code 2, one line, nothing else."""
    words = [sys.executable, "-m", "rankwright", "trian"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "rankwright: 'trian' is not a command; did you mean 'train'? "
        f"Choose from {', '.join(cli.COMMANDS)}\n"
    )


# --- where results go -------------------------------------------------------------------------


@pytest.fixture
def ranking(tmp_path: Path) -> dict[str, str]:
    """A query's documents, and lines of queries."""
    line = json.dumps({"query": "fox", "documents": ["a fox", "rain"]})
    return {
        "documents": write(tmp_path, "docs.txt", "a fox", "rain"),
        "input": write(tmp_path, "in.jsonl", line),
    }


def test_what_is_no_file_is_written_to(model: str, ranking: dict[str, str], tmp_path: Path) -> None:
    """Renamed into place, results would make a file of /dev/null, and of a pipe."""
    words = ["rank", "--model", model, "--query", "fox", "--documents", ranking["documents"]]
    ours, theirs = os.openpty()
    try:
        (tmp_path / "link").symlink_to(os.ttyname(theirs))
        assert cli.main([*words, "--output", str(tmp_path / "link")]) == 0
        assert (tmp_path / "link").is_char_device()
        assert json.loads(os.read(ours, 10_000).splitlines()[0])["index"] in (0, 1)
    finally:
        os.close(ours)
        os.close(theirs)
    # a link to a file stays a link
    (tmp_path / "file").write_text("old")
    (tmp_path / "other").symlink_to(tmp_path / "file")
    assert cli.main([*words, "--output", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other").is_symlink()
    assert len((tmp_path / "file").read_text().splitlines()) == 2


def test_lines_that_grow_need_a_file(
    model: str,
    rows: str,
    ranking: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.mkfifo(tmp_path / "pipe")
    commands = {
        "output": ["rank", "--model", model, "--input", ranking["input"]],
        "write_scores": ["rank", "--model", model, "--dataset", rows],
    }
    for flag, words in commands.items():
        for value, kind in (
            (str(tmp_path / "pipe"), "no file"),
            ("", "a folder"),
            ("/", "a folder"),
        ):
            line = mistake(capsys, *words, f"--{flag}={value}")
            assert line == f"--{flag} {value!r} is {kind}; name a file"
    # from Python
    from rankwright import Reranker, shares

    with pytest.raises(DataError, match="is no file, so lines cannot grow beside it"):
        shares.write_lines(Reranker.load(model), [], tmp_path / "pipe", str)
    assert (tmp_path / "pipe").is_fifo()


def test_what_is_read_is_not_written_over(
    model: str,
    rows: str,
    ranking: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("bm25s", reason="extra mine")
    files = {**ranking, "dataset": rows, "queries": rows}
    before = {path: Path(path).read_text() for path in files.values()}
    rank = ["rank", "--model", model]
    for read, written, words in (
        ("documents", "output", [*rank, "--query", "fox"]),
        ("input", "output", rank),
        ("dataset", "write_scores", rank),
        ("queries", "output", ["mine"]),
    ):
        path = files[read]
        line = mistake(capsys, *words, f"--{read}", path, f"--{written}", path)
        assert line == f"--{written} {path} is a file that is read; name another file"
        # what is written beside the output has a name made of its own
        beside = ["x.refused.jsonl"] if read in ("input", "dataset", "queries") else []
        for name in [*beside, *(["x.report.json"] if read == "queries" else [])]:
            taken, output = tmp_path / name, str(tmp_path / "x.jsonl")
            taken.write_text(before[path])
            line = mistake(capsys, *words, f"--{read}", str(taken), f"--{written}", output)
            assert line == (
                f"--{written} {output}: {taken}, which is written beside it, is a file that is "
                "read; name another file"
            )
            assert taken.read_text() == before[path]
    # beside a pipe the other names count as they do without one
    os.mkfifo(tmp_path / "pipe")
    line = mistake(capsys, *rank, "--dataset", str(tmp_path / "pipe"), rows, "--write_scores", rows)
    assert line == f"--write_scores {rows} is a file that is read; name another file"
    assert {path: Path(path).read_text() for path in files.values()} == before


def test_a_file_that_is_read_is_no_place_for_refused_rows(
    model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no row is refused: one that an earlier run left there would be deleted."""
    output = tmp_path / "out"
    output.mkdir()
    taken = output / "rows.refused.jsonl"
    taken.write_text(Path(rows).read_text())
    words = ["--model", model, "--dataset", str(taken)]
    told = f"{taken} is a file that is read, and refused rows would be written there; rename it"
    assert mistake(capsys, "evaluate", *words, "--output", str(output)).startswith(told)
    more = ["--use_cpu", "true", "--max_steps", "1", "--output_dir", str(output)]
    assert mistake(capsys, "train", *words, *more).startswith(told)
    assert taken.read_text() == Path(rows).read_text()
    run = output / "run.trec"
    run.write_text("q0 Q0 d0 1 1.0 x\n")
    line = mistake(
        capsys, "evaluate", "--model", model, "--dataset", rows, "--first_stage", str(run),
        "--output", str(output),
    )  # fmt: skip
    assert line == f"--output {run} is a file that is read; name another file"
    assert run.read_text() == "q0 Q0 d0 1 1.0 x\n"


@pytest.mark.parametrize("command", [c for c in cli.COMMANDS if c not in cli.SHARED])
def test_what_is_not_shared_runs_in_one_process(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    told = "runs in one process, and 4 were started (WORLD_SIZE)"
    assert mistake(capsys, command).startswith(f"{command} {told}")
    assert cli.main([command, "--help"]) == 0
    capsys.readouterr()
    tasks = mistake(capsys, "evaluate", "--model", "m", "--mteb_tasks", "SciDocsRR")
    assert tasks.startswith(f"evaluate --mteb_tasks {told}")


def test_what_is_set_for_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own value wins; PyTorch reads it with its first tensor, so in a new process."""
    for given in (None, "0"):
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "")  # or it would be left behind
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
        if given is not None:
            monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given)
        assert cli.main(["train"]) == 2
        assert os.environ["THP_MEM_ALLOC_ENABLE"] == (given or "1")
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for policy, count, expected in (
        (None, None, ("PASSIVE", "10000")),
        ("ACTIVE", None, ("ACTIVE", None)),
        (None, "5", ("PASSIVE", "5")),
    ):
        for name, value in zip(names, (policy, count), strict=True):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
            if value is not None:
                monkeypatch.setenv(name, value)
        assert cli.main(["train"]) == 2
        assert tuple(map(os.environ.get, names)) == expected


# --- mistakes in the words --------------------------------------------------------------------


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "summon").startswith("'summon' is not a command; ")
    assert mistake(capsys, "xyz") == (
        f"'xyz' is not a command; choose from {', '.join(cli.COMMANDS)}"
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_unknown_flag_names_the_nearest(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import fields

    name = max((f.name for kind in cli.module(command).types() for f in fields(kind)), key=len)
    assert mistake(capsys, command, f"--{name}x", "m") == (
        f"--{name}x is not an argument; did you mean --{name}?"
    )


@pytest.mark.parametrize("command", ["train", "evaluate", "rank"])
def test_missing_model(
    command: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write(tmp_path, "docs.txt", "a text")
    words = ["--query", "q", "--documents", texts] if command == "rank" else ["--dataset", rows]
    line = mistake(capsys, command, *words)
    assert line == "--model is missing; give a local folder or an id such as owner/name"


def test_missing_dataset(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "train", "--model", model).startswith("--dataset is missing; give files")
    assert mistake(capsys, "evaluate", "--model", model).startswith(
        "--dataset is missing; give row"
    )
    assert mistake(capsys, "check").startswith("give rows to look at, --model, or both")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--query", "q"], "--query and --documents belong together; give both"),
        ([], "give --query with --documents FILE, or --input FILE of"),
        (["--query", "q", "--documents", "d", "--input", "i"], "give --query with --documents"),
        (
            ["--input", "i", "--split", "test"],
            "--instructions, --data_format and --split are of the",
        ),
        (
            ["--query", "q", "--documents", "d", "--on_bad_row", "skip"],
            "--on_bad_row is of the lines of --input and of the rows of --dataset, and there are",
        ),
        (["--query", "q", "--documents", "d", "--top_k", "0"], "--top_k 0 is less than 1"),
        (["--query", "q", "--documents", "d", "--top_k", "x"], "argument --top_k/--top-k: invalid"),
        (["--query", "q", "--documents", "gone.txt"], "--documents gone.txt: No such file"),
        (["--input", "gone.jsonl"], "gone.jsonl"),
    ],
)
def test_rank_words(
    model: str, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mistake(capsys, "rank", "--model", model, *words).startswith(complaint)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["report", "run", "--data_format", "pairs"], "data_format"),
        (["report", "run", "--max_bad_rows", "7"], "max_bad_rows"),
        (["report", "run", "--max_length", "64"], "max_length"),
        (["export", "--model", "m", "--to", "merged", "--output", "o", "--split", "a"], "split"),
        (
            ["export", "--model", "m", "--to", "merged", "--output", "o", "--on_bad_row", "skip"],
            "on_bad_row",
        ),
        (["compare", "a", "b", "--qrels", "q", "--instructions", "x"], "instructions"),
        (["check", "--model", "m", "--val_dataset", "v.jsonl"], "val_dataset"),
        (["check", "--model", "m", "--on_bad_row", "skip"], "on_bad_row"),
        (["evaluate", "--model", "m", "--mteb_tasks", "T", "--on_bad_row", "skip"], "on_bad_row"),
    ],
)
def test_what_is_said_of_rows_that_are_not_read(
    words: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mistake(capsys, *words).startswith(f"--{flag} goes with --dataset")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_bad_metric_name(
    command: str, model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--dataset", rows, "--metrics", "ndgc@10"]
    if command == "train":
        words += ["--output_dir", str(tmp_path / "out")]
    line = mistake(capsys, command, *words)
    assert "ndgc" in line
    assert "ndcg" in line


# --- mistakes in the rows ---------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "evaluate", "check"])
@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (None, "rows.jsonl"),
        ([], "rows.jsonl"),
        ([json.dumps(ROWS[0]), '{"query": '], "rows.jsonl:2"),
        ([json.dumps(ROWS[0]), '{"positive": ["a"], "negative": ["b"]}'], "rows.jsonl:2"),
        (['{"colour": "red"}'], "rows.jsonl:1"),
    ],
    ids=["missing", "empty", "broken JSON", "no query", "unknown layout"],
)
def test_rows_that_cannot_be_read(
    command: str,
    lines: list[str] | None,
    complaint: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(tmp_path / "rows.jsonl")
    if lines is not None:
        write(tmp_path, "rows.jsonl", *lines)
    words = ["--dataset", path]
    if command != "check":
        words += ["--model", model]
    if command == "train":
        words += ["--output_dir", str(tmp_path / "out")]
    assert complaint in mistake(capsys, command, *words)
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_skipped_where_that_is_asked_for(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other rows are used; the file beside the output has the refused ones, and goes again."""
    lines = [json.dumps(row) for row in ROWS]
    bad = write(tmp_path, "bad.jsonl", lines[0], '{"query": 5}', lines[1])
    lists = [json.dumps({"query": row["query"], "documents": row["negative"]}) for row in ROWS]
    queries = write(tmp_path, "queries.jsonl", lists[0], "{", lists[1])
    skip = ("--on_bad_row", "skip")
    out = tmp_path / "out"
    train = ("train", "--model", model, "--max_steps", "1", "--cache_dir", str(tmp_path / "cache"))
    calls: dict[str, tuple[tuple[str, ...], str]] = {
        "train": (
            (*train, "--dataset", bad, "--output_dir", str(out / "run")),
            "run/rows.refused.jsonl",
        ),
        "evaluate": (
            ("evaluate", "--model", model, "--dataset", bad, "--output", str(out / "e")),
            "e/rows.refused.jsonl",
        ),
        "compare": (
            ("compare", model, model, "--dataset", bad, "--output", str(out / "c")),
            "c/rows.refused.jsonl",
        ),
        "rank": (
            ("rank", "--model", model, "--input", queries, "--output", str(out / "r.jsonl")),
            "r.refused.jsonl",
        ),
        "scores": (
            ("rank", "--model", model, "--dataset", bad, "--write_scores", str(out / "s.jsonl")),
            "s.refused.jsonl",
        ),
        "mine": (
            ("mine", "--queries", bad, "--number", "1", "--output", str(out / "m.jsonl")),
            "m.refused.jsonl",
        ),
        "export": (
            (
                *("export", "--model", model, "--to", "merged", "--dataset", bad),
                *("--output", str(out / "x")),
            ),
            "x.refused.jsonl",
        ),
    }
    out.mkdir()
    for name, (words, file) in calls.items():
        place = f"{queries if name == 'rank' else bad}:2: "
        said = mistake(capsys, *words)
        assert said.startswith(place)
        assert cli.main((*words, *skip)) == 0, name
        shown = " ".join(capsys.readouterr().err.split())
        assert f"left out: 1 row that cannot be read, written to {out / file} {said}" in shown
        (line,) = (out / file).read_text().splitlines()
        refused = json.loads(line)
        assert place + refused["reason"] == said
        assert refused["text"] == ("{" if name == "rank" else '{"query": 5}')
    assert (out / "run" / "rankwright.json").is_file()
    flat = json.loads((out / "run" / "rankwright.json").read_text())["training"]
    assert (flat["on_bad_row"], flat["max_bad_rows"]) == ("skip", 100)
    # none left: the file of an earlier run would be a lie
    write(tmp_path, "bad.jsonl", *lines)
    for name in ("evaluate", "train"):
        words, file = calls[name]
        again = ("--overwrite", "true") if name == "train" else ()
        assert cli.main((*words, *skip, *again)) == 0
        assert not (out / file).exists()


def test_zero_rows_left(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows without a negative are none for a listwise loss; one line says what was left out."""
    path = write(tmp_path, "rows.jsonl", '{"query": "q", "positive": ["a"], "negative": []}')
    words = ["train", "--model", model, "--dataset", path, "--output_dir", str(tmp_path / "out")]
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line[:76] for line in lines] == [
        "rankwright: no row is left to train on: 1 with no negative document; a listw"
    ]
    assert not (tmp_path / "out").exists()


def test_documents_that_cannot_be_read(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write(tmp_path, "empty.txt")
    broken = write(tmp_path, "broken.jsonl", '"a"', "{")
    wrong = write(tmp_path, "wrong.jsonl", '"a"', "3")
    for path, complaint in (
        (empty, f"--documents {empty} holds no text; give one document a line"),
        (broken, f"{broken}:2: broken JSON"),
        (wrong, f'{wrong}:2: expected a text or {{"text": ...}}'),
        (str(tmp_path), f"--documents {tmp_path}: Is a directory"),
    ):
        words = ["rank", "--model", model, "--query", "q", "--documents", path]
        assert mistake(capsys, *words).startswith(complaint)


# --- mistakes in the folders ------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "evaluate", "rank"])
def test_missing_model_folder(
    command: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / "gone")
    texts = write(tmp_path, "docs.txt", "a text")
    words = ["--query", "q", "--documents", texts] if command == "rank" else ["--dataset", rows]
    if command == "train":
        words += ["--output_dir", str(tmp_path / "out")]
    assert gone in mistake(capsys, command, "--model", gone, *words)
    assert not (tmp_path / "out").exists()


def test_model_folder_without_a_model(
    rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert str(folder) in mistake(capsys, "evaluate", "--model", str(folder), "--dataset", rows)


def test_output_folders(
    model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run, someone's files, a file, and nothing to resume: refused, nothing is touched."""
    base = ["train", "--model", model, "--dataset", rows, "--output_dir"]
    run = tmp_path / "run"
    run.mkdir()
    write(run, "rankwright.json", "{}")
    line = mistake(capsys, *base, str(run))
    assert line.startswith(f"--output_dir {run} is not empty; choose another, go on with --resume")
    line = mistake(capsys, *base, str(run), "--resume", "true")
    assert line == f"--resume: {run} holds no whole checkpoint; leave out --resume"
    line = mistake(capsys, *base, str(tmp_path / "new"), "--resume", "true")
    assert "holds no whole checkpoint" in line
    other = tmp_path / "other"
    other.mkdir()
    write(other, "thesis.txt", "irreplaceable")
    line = mistake(capsys, *base, str(other), "--overwrite", "true")
    assert "holds files but no run of Rankwright; nothing was deleted" in line
    assert (other / "thesis.txt").is_file()
    assert mistake(capsys, *base, rows) == f"--output_dir {rows} is a file; name a folder"
    words = ["evaluate", "--model", model, "--dataset", rows, "--output", f"{rows}/in/a/file"]
    assert (
        mistake(capsys, *words) == f"--output {rows}/in/a/file cannot be written: Not a directory"
    )


# --- what it does -----------------------------------------------------------------------------


def test_rank_and_evaluate(
    model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines for one query, the stream of many, and the table agree with the model's scores."""
    from rankwright.ranking import Reranker

    documents = ["the quick fox jumps", "rain falls", "grey seas"]
    expected = Reranker.load(model).rank("fox", documents)
    texts = write(tmp_path, "docs.txt", *documents)
    base = ["rank", "--model", model]
    assert cli.main([*base, "--query", "fox", "--documents", texts, "--top_k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[1].strip() for line in lines] == [r.document for r in expected[:2]]

    source = write(
        tmp_path, "in.jsonl", json.dumps({"query": "fox", "documents": documents, "query_id": "7"})
    )
    out = tmp_path / "out.jsonl"
    words = ["--input", source, "--output", str(out), "--probability", "true"]
    assert cli.main([*base, *words]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["query"] == "fox"
    assert [entry["index"] for entry in found["results"]] == [r.index for r in expected]
    scores = [entry["score"] for entry in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)

    folder = tmp_path / "measured"
    words = ["--metrics", "mrr,ndcg@3", "--output", str(folder)]
    assert cli.main(["evaluate", "--model", model, "--dataset", rows, *words]) == 0
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "run.trec", "qrels.txt"}


def test_rows_come_from_the_hub_that_use_hf_names(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """USE_HF speaks of rows as of models; the flag wins over it."""
    from rankwright.data import store
    from rankwright.errors import DataError

    seen = []

    def load_store(*args: Any, **options: Any) -> Any:
        seen.append(options["use_hf"])
        raise DataError("stop here")

    monkeypatch.setattr(store, "load_store", load_store)
    base = ["evaluate", "--model", model, "--dataset", "owner/rows"]
    mistake(capsys, *base)
    monkeypatch.setenv("USE_HF", "0")
    mistake(capsys, *base)
    mistake(capsys, *base, "--use_hf", "true")
    assert seen == [True, False, True]


def test_a_teacher_writes_scores_and_a_student_learns_them(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows come back with all that they held, and each document's logit beside it."""
    from rankwright import Reranker, load_examples

    rows = [
        {
            "query_id": f"q{n}",
            "query": f"fox and hills {n}",
            "documents": ["rain falls", "green hills", "a lazy dog"],
            "document_ids": ["x", "y", "z"],
            "labels": [0, 2, 1],
            "scores": [3.5, 2.5, 1.5],
            "instruction": "find animals",
        }
        for n in range(4)
    ]
    source, target = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["rank", "--model", model, "--dataset", str(source), "--write_scores", str(target)]
    assert cli.main(words) == 0
    assert "4 rows with teacher_scores written" in capsys.readouterr().err
    before, after = load_examples(source).examples, load_examples(target).examples
    scored = Reranker.load(model).score_examples(before)
    for one, two, expected in zip(before, after, scored, strict=True):
        assert two.teacher_scores == pytest.approx(expected.scores, abs=1e-6)
        for name in ("query_id", "query", "documents", "document_ids", "labels", "instruction"):
            assert getattr(one, name) == getattr(two, name)
        assert one.first_stage_scores == two.first_stage_scores
    student = ["--loss_type", "kl", "--group", "all", "--max_steps", "1", "--use_cpu", "true"]
    out = ["--output_dir", str(tmp_path / "student")]
    assert cli.main(["train", "--model", model, "--dataset", str(target), *student, *out]) == 0
    assert mistake(capsys, *words[:-1], str(source)) == (
        f"--write_scores {source} is a file that is read; name another file"
    )
    assert mistake(capsys, *words[:-2]).startswith("--dataset and --write_scores belong together")
    assert mistake(capsys, *words, "--top_k", "2").startswith("--write_scores writes the logits of")
    assert mistake(capsys, *words, "--input", "-").startswith("--write_scores writes the rows of")
