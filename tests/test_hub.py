"""Ids become folders through both hubs' own libraries, against a hub on the loopback interface.

The server speaks what `snapshot_download` of either library asks for, as found in the sources of
huggingface_hub 2.4 and modelscope-hub 0.5; only addresses and folders of the libraries are changed.
"""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from rankwright import cli
from rankwright.arguments import from_environment
from rankwright.errors import CheckpointError, ConfigError, DataError
from rankwright.hub import (
    parse_use_hf,
    prepare_push,
    resolve_dataset,
    resolve_model,
    without_paths,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "the-right-token"  # of the private repository on the loopback hub
ROWS = [{"query": "capital of France", "positive": ["Paris"], "negative": ["Lyon", "Nice"]}]
REFUSED = f"[Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}"
BOTH = pytest.mark.parametrize("use_hf", [True, False], ids=["huggingface", "modelscope"])


# ------------------------------------------------------------------------------ the loopback hub


@dataclass
class Repo:
    """One repository: its files, and what stands between them and a client."""

    files: dict[str, bytes]
    private: bool = False
    gated: bool = False
    broken: int = 0
    branches: set[str] = field(default_factory=lambda: {"main"})
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """The state of the server: repositories by (kind, id), and the requests it got."""

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)
    refuse_writing: int = 0
    url: str = ""

    def add(self, kind: str, name: str, files: dict[str, bytes], **how: Any) -> None:
        self.repos[kind, name] = Repo(files, **how)

    def asked_for(self, file: str) -> bool:
        return any(file in unquote(request) for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    """Both protocols on one port; ModelScope's paths all begin with /api/v1/."""

    hub: Hub

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[:2] == ["api", "v1"]:
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            self.modelscope(parts[2:], query)
        else:
            self.hugging_face(parts)

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def open(self, kind: str, name: str) -> Repo | None:
        """The repository, or None after the refusal is sent."""
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            message = {"error": "Repository not found", "Message": "not found", "Code": 10010205001}
            self.answer(message, 404, X_Error_Code="RepoNotFound")
        elif repo.broken:
            self.answer({"error": "down", "Message": "down"}, repo.broken)
        elif repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password.", "Message": "log in"}, 401)
        else:
            return repo
        return None

    # what is written: create_repo, validate-yaml, preupload and commit of huggingface_hub 2.4

    def do_POST(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        assert parts[0] == "api", self.path
        if self.hub.refuse_writing:
            status = self.hub.refuse_writing
            self.answer({"error": "Invalid username or password."}, status)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif parts[1:] == ["repos", "create"]:
            self.create(json.loads(body))
        elif parts[1:] == ["validate-yaml"]:
            self.hub.cards.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif parts[1] == "models" and parts[4] == "branch":
            self.hub.repos["models", f"{parts[2]}/{parts[3]}"].branches.add(parts[5])
            self.answer({})
        elif parts[1] == "models" and parts[4] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        else:
            assert parts[1] == "models", self.path
            assert parts[4] == "commit", self.path
            self.commit(f"{parts[2]}/{parts[3]}", parts[5], body)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if ("models", name) in self.hub.repos:
            self.answer({"error": "You already created this model repo", "url": url}, 409)
            return
        self.hub.add("models", name, {}, private=asked.get("visibility") == "private")
        self.answer({"url": url, "name": name, "id": "1"})

    def commit(self, name: str, branch: str, body: bytes) -> None:
        repo = self.hub.repos["models", name]
        assert branch in repo.branches
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                repo.commits.append(entry["value"]["summary"])
                continue
            assert entry["key"] == "file", entry["key"]
            assert entry["value"]["encoding"] == "base64"
            repo.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def hugging_face(self, parts: list[str]) -> None:
        if parts[0] == "api" and len(parts) == 4 and parts[1] == "models":
            name = f"{parts[2]}/{parts[3]}"
            repo = self.open("models", name)
            if repo is not None:
                self.answer({"id": name, "private": repo.private, "tags": [], "siblings": []})
            return
        if parts[0] == "api" and len(parts) >= 6 and parts[1] in ("models", "datasets"):
            name, what, revision = f"{parts[2]}/{parts[3]}", parts[4], parts[5]
            repo = self.open(parts[1], name)
            if repo is None:
                return
            if revision not in ("main", COMMIT):
                self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            elif what == "revision":
                siblings = [{"rfilename": file} for file in repo.files]
                self.answer({"id": name, "sha": COMMIT, "tags": [], "siblings": siblings})
            else:
                self.answer(
                    [
                        {
                            "type": "file",
                            "path": file,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for file, data in repo.files.items()
                    ]
                )
            return
        kind = "datasets" if parts[0] == "datasets" else "models"
        owner, name, resolve, _, *file = parts[kind == "datasets" :]
        assert resolve == "resolve", self.path
        repo = self.open(kind, f"{owner}/{name}")
        if repo is None:
            return
        if repo.gated:
            self.answer({"error": "Access is restricted"}, 403, X_Error_Code="GatedRepo")
            return
        data = repo.files["/".join(file)]
        etag = hashlib.sha1(data).hexdigest()
        self.answer(data, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    def modelscope(self, parts: list[str], query: dict[str, str]) -> None:
        if parts == ["repos", "internalAccelerationInfo"]:
            self.answer({"Code": 200, "Data": {}})
            return
        kind, owner, name, *what = parts
        repo = self.open(kind, f"{owner}/{name}")
        if repo is None:
            return
        if query.get("Revision", "master") != "master":
            self.answer({"Code": 404, "Message": "no such revision"}, 404)
        elif what in (["repo", "files"], ["repo", "tree"]):
            files = [
                {
                    "Path": file,
                    "Size": len(data),
                    "Sha256": hashlib.sha256(data).hexdigest(),
                    "Type": "blob",
                }
                for file, data in repo.files.items()
            ]
            self.answer({"Code": 200, "Data": {"Files": files}})
        elif repo.gated:
            self.answer({"Code": 403, "Message": "ask for access"}, 403)
        else:
            assert what == ["repo"], self.path
            self.answer(repo.files[query["FilePath"]])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on 127.0.0.1 that both libraries take for theirs, with caches under tmp_path."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    point_at(hub.url, tmp_path, monkeypatch)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
    huggingface_hub.close_session()


def point_at(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `url` the address of both hubs, with empty caches and nobody logged in."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # conftest's, read at import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "hf_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    huggingface_hub.close_session()  # the next client sees NO_PROXY

    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(folder / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(folder / "ms_home"))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)


def need(use_hf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip a ModelScope case where its library is absent; ask each listing once, not four times."""
    if use_hf:
        return
    pytest.importorskip("modelscope", reason="the extra 'modelscope' is not installed")
    pytest.importorskip("modelscope_hub", reason="this modelscope has its client built in")
    monkeypatch.setattr("modelscope_hub.config._default_config", None)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)


# -------------------------------------------------------------------------------- the tiny model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A BERT of two layers with random weights and a WordPiece tokenizer, and its files."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "capital", "of", "france", "par", "##is", "lyon"]
    vocabulary = {word: i for i, word in enumerate(words)}
    wordpiece = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.Lowercase()
    wordpiece.pre_tokenizer = pre_tokenizers.Whitespace()
    wordpiece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=wordpiece,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=1,
    )
    model = BertForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "model.safetensors" in files
    return SimpleNamespace(model=model, folder=folder, files=files)


# ------------------------------------------------------------------------------------ downloading


@BOTH
def test_a_model_by_id_has_the_weights_and_tokens_of_the_hubs(
    hub: Hub, tiny: SimpleNamespace, use_hf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is served is what transformers loads; nothing but safetensors and text is fetched."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    need(use_hf, monkeypatch)
    unwanted = {
        "pytorch_model.bin": b"\x80\x04N.",
        "optimizer.pt": b"\x80\x04N.",
        "modeling_tiny.py": b"raise SystemExit('code from a hub was run')",
        "model.gguf": b"GGUF",
        "onnx/model.onnx": b"\x08",
        "onnx/config.json": b"{}",
        "checkpoint-9/model.safetensors": b"older",
        "README.md": b"# tiny",
    }
    hub.add("models", "owner/tiny", {**tiny.files, **unwanted})

    folder = resolve_model("owner/tiny", use_hf=use_hf)

    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == set(tiny.files)
    for file in unwanted:
        assert not hub.asked_for(file), file
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(hub.requests) == asked
    expected = tiny.model.state_dict()
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert tokenizer("capital of France", "Paris")["input_ids"] == [2, 4, 5, 6, 3, 7, 8, 3]


@BOTH
def test_without_weights_only_configuration_and_tokenizer_are_fetched(
    hub: Hub, tiny: SimpleNamespace, use_hf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(use_hf, monkeypatch)
    hub.add("models", "owner/tiny", tiny.files)
    folder = resolve_model("owner/tiny", use_hf=use_hf, weights=False)
    assert {path.name for path in folder.iterdir()} == set(tiny.files) - {"model.safetensors"}
    assert not hub.asked_for("model.safetensors")
    assert (resolve_model("owner/tiny", use_hf=use_hf) / "model.safetensors").is_file()


@BOTH
def test_a_dataset_by_id(hub: Hub, use_hf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of rows arrive byte for byte; scripts and JSON about the dataset do not."""
    need(use_hf, monkeypatch)
    rows = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode(), mtime=0)
    others = {
        "rows.py": b"raise SystemExit",
        "dataset_infos.json": b"{}",
        "data/dataset_info.json": b"{}",
        "README.md": b"# rows",
        "rows.pkl": b"\x80\x04N.",
    }
    hub.add("datasets", "owner/rows", {"test.jsonl.gz": rows, "data/train.csv": b"q\n", **others})

    folder = resolve_dataset("owner/rows", use_hf=use_hf)

    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {"test.jsonl.gz", "data/train.csv"}
    with gzip.open(folder / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        assert [json.loads(line) for line in lines] == ROWS


def test_the_mirror_of_the_environment_and_then_the_cache_alone(
    hub: Hub, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """In a process of its own: HF_ENDPOINT is asked, and offline the same folder comes again."""
    hub.add("models", "owner/tiny", tiny.files)
    code = "import sys, rankwright.hub as hub; print(hub.resolve_model(sys.argv[1]))"

    def run(name: str, offline: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": offline}
        environ |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        environ.pop("HF_HUB_CACHE", None)
        command = [sys.executable, "-c", code, name]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    online = run("owner/tiny", "0")
    assert online.returncode == 0, online.stderr
    folder = Path(online.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home")
    assert (folder / "model.safetensors").read_bytes() == tiny.files["model.safetensors"]
    asked = len(hub.requests)
    assert run("owner/tiny", "1").stdout == online.stdout
    other = run("owner/other", "1").stderr.strip().splitlines()[-1]
    assert len(hub.requests) == asked
    assert other == (
        "rankwright.errors.ConfigError: model 'owner/other' on Hugging Face is not, or not wholly, "
        "in the cache, and HF_HUB_OFFLINE=1 forbids to download it; unset HF_HUB_OFFLINE, or give "
        "a local path"
    )


@BOTH
def test_a_listed_path_cannot_leave_the_folder(
    hub: Hub,
    tiny: SimpleNamespace,
    tmp_path: Path,
    use_hf: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hostile listing names files outside; none is written, whichever way it is refused."""
    need(use_hf, monkeypatch)
    evil = b'{"evil": true}'
    paths = ["../../../../evil.json", "a/../../../../../evil.json", str(tmp_path / "evil.json")]
    hub.add("models", "owner/tiny", {**tiny.files, **dict.fromkeys(paths, evil)})
    if use_hf:
        with pytest.raises(ConfigError, match="could not be downloaded"):
            resolve_model("owner/tiny")
    else:
        resolve_model("owner/tiny", use_hf=False)
    assert not list(tmp_path.rglob("evil.json"))


# ---------------------------------------------------------------------------------- the refusals


def refusal(call: Any, *args: Any, **options: Any) -> str:
    """The message of the ConfigError, which is one line."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@BOTH
def test_an_unknown_id(hub: Hub, use_hf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    need(use_hf, monkeypatch)
    this, other = ("Hugging Face", "--use_hf false asks ModelScope")
    if not use_hf:
        this, other = ("ModelScope", "--use_hf true asks Hugging Face")
    for kind, call in (("model", resolve_model), ("dataset", resolve_dataset)):
        assert refusal(call, "owner/none", use_hf=use_hf) == (
            f"{kind} 'owner/none' on {this} does not exist (404), and there is no local path of "
            f"that name; check the name, give a local path, or look elsewhere: {other}"
        )


@BOTH
def test_a_private_repository_opens_with_its_token_alone(
    hub: Hub, tiny: SimpleNamespace, use_hf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(use_hf, monkeypatch)
    hub.add("models", "owner/private", tiny.files, private=True)
    this, log_in = ("Hugging Face", "`hf auth login` (or set HF_TOKEN)")
    if not use_hf:
        this, log_in = ("ModelScope", "`modelscope login` (or set MODELSCOPE_API_TOKEN)")
    expected = (
        f"model 'owner/private' on {this} was refused (401): it is private or gated, or does not "
        f"exist; check the name, log in with {log_in}, or give a local path"
    )
    assert refusal(resolve_model, "owner/private", use_hf=use_hf) == expected
    assert refusal(resolve_model, "owner/private", use_hf=use_hf, token="wrong") == expected
    folder = resolve_model("owner/private", use_hf=use_hf, token=TOKEN)
    assert (folder / "model.safetensors").read_bytes() == tiny.files["model.safetensors"]


@BOTH
def test_a_gated_repository(
    hub: Hub, tiny: SimpleNamespace, use_hf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated repository is listed to everyone; its files are refused."""
    need(use_hf, monkeypatch)
    hub.add("models", "owner/gated", tiny.files, gated=True)
    expected = (
        "model 'owner/gated' on Hugging Face is gated; ask for access on its page, then log in "
        "with `hf auth login` (or set HF_TOKEN), or give a local path"
    )
    if not use_hf:
        expected = (
            "model 'owner/gated' on ModelScope was refused (403): it is private or gated, or does "
            "not exist; check the name, log in with `modelscope login` (or set "
            "MODELSCOPE_API_TOKEN), or give a local path"
        )
    assert refusal(resolve_model, "owner/gated", use_hf=use_hf) == expected


def test_an_id_that_hugging_face_does_not_allow(hub: Hub) -> None:
    message = refusal(resolve_model, "owner/a--b")
    assert message.startswith("model 'owner/a--b' on Hugging Face cannot exist (")
    assert message.endswith("'owner/a--b'); check the name, or give a local path")
    assert not hub.requests


@BOTH
def test_an_unknown_revision(
    hub: Hub, tiny: SimpleNamespace, use_hf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(use_hf, monkeypatch)
    hub.add("models", "owner/tiny", tiny.files)
    expected = (
        "model 'owner/tiny' at revision 'v9' on Hugging Face was not found: the repository is "
        "there, the revision is not; check the revision, or leave it out for the main branch"
    )
    if not use_hf:  # which of the two is missing, ModelScope does not say
        expected = (
            "model 'owner/tiny' at revision 'v9' on ModelScope does not exist (404), and there is "
            "no local path of that name; check the name, give a local path, or look elsewhere: "
            "--use_hf true asks Hugging Face"
        )
    assert refusal(resolve_model, "owner/tiny", use_hf=use_hf, revision="v9") == expected


@BOTH
def test_a_hub_that_is_down(tmp_path: Path, use_hf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was free a moment ago refuses the connection."""
    need(use_hf, monkeypatch)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
    point_at(f"http://127.0.0.1:{port}", tmp_path, monkeypatch)
    this, other = ("Hugging Face", "--use_hf false asks ModelScope")
    if not use_hf:
        this, other = ("ModelScope", "--use_hf true asks Hugging Face")
    assert refusal(resolve_model, "owner/tiny", use_hf=use_hf) == (
        f"model 'owner/tiny' on {this} cannot be reached ({REFUSED}); "
        f"check the network, give a local path, or look elsewhere: {other}"
    )
    huggingface_hub.close_session()


@BOTH
def test_a_hub_in_trouble(hub: Hub, use_hf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    need(use_hf, monkeypatch)
    hub.add("models", "owner/tiny", {}, broken=503)
    message = refusal(resolve_model, "owner/tiny", use_hf=use_hf)
    assert "was not given: the hub answered 503; try again later" in message


@BOTH
def test_pickled_weights_alone_are_refused(
    hub: Hub, tiny: SimpleNamespace, use_hf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named and never fetched."""
    need(use_hf, monkeypatch)
    files = {file: data for file, data in tiny.files.items() if file != "model.safetensors"}
    hub.add("models", "owner/old", {**files, "pytorch_model.bin": b"\x80\x04N."})
    this = "Hugging Face" if use_hf else "ModelScope"
    assert refusal(resolve_model, "owner/old", use_hf=use_hf) == (
        f"model 'owner/old' on {this} has pickled weights only (pytorch_model.bin), which can run "
        "code and are never loaded; convert it once where you trust it, "
        "AutoModelForSequenceClassification.from_pretrained('owner/old').save_pretrained(FOLDER) "
        "and the same with AutoTokenizer, and give FOLDER"
    )
    assert not hub.asked_for("pytorch_model.bin")
    assert resolve_model("owner/old", use_hf=use_hf, weights=False).is_dir()

    hub.add("models", "owner/gguf", {**files, "model.gguf": b"GGUF"})
    assert refusal(resolve_model, "owner/gguf", use_hf=use_hf) == (
        f"model 'owner/gguf' on {this} has no safetensors weights, which are the only ones loaded; "
        "give the id of a model that has them, or a local folder"
    )


@BOTH
def test_repositories_with_nothing_to_read(
    hub: Hub, tiny: SimpleNamespace, use_hf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(use_hf, monkeypatch)
    hub.add("models", "owner/bare", {"model.safetensors": tiny.files["model.safetensors"]})
    assert "has no config.json" in refusal(resolve_model, "owner/bare", use_hf=use_hf)
    hub.add("datasets", "owner/script", {"rows.py": b"", "rows.zip": b"PK"})
    assert "has no file of rows (.json, .jsonl," in refusal(
        resolve_dataset, "owner/script", use_hf=use_hf
    )


def test_modelscope_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("modelscope", "modelscope.hub", "modelscope.hub.snapshot_download"):
        monkeypatch.setitem(sys.modules, module, None)
    assert refusal(resolve_model, "owner/tiny", use_hf=False) == (
        "model 'owner/tiny' on ModelScope needs the modelscope package, which is not installed; "
        "pip install 'rankwright[modelscope]', or use --use_hf true to ask Hugging Face"
    )


# ------------------------------------------------------------------------------------ pushing


@pytest.fixture
def logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The loopback hub with a token in the usual place."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return hub


def model_folder(folder: Path) -> Path:
    """A base model whose rankwright.json tells of this machine."""
    from rankwright.ranking import Reranker
    from tests import tiny as small

    reranker = Reranker.load(small.save_base(folder / "base", "bert"))
    reranker.loaded.spec.training = {"model": str(folder / "base"), "dataset": ["/home/me/a.jsonl"]}
    reranker.save(folder / "model")
    return folder / "model"


def test_an_export_arrives_byte_for_byte_in_a_private_repository(
    logged_in: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder(tmp_path)
    words = ["export", "--model", str(model), "--to", "merged", "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--push_to_hub", "owner/new"]) == 0, capsys.readouterr().err
    repo = logged_in.repos["models", "owner/new"]
    assert repo.private
    assert repo.commits == ["rankwright export --to merged"]
    written = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert repo.files == written
    assert {"model.safetensors", "README.md", "rankwright.json", "config.json"} <= set(written)
    told = b"".join(data for name, data in written.items() if not name.endswith("safetensors"))
    assert str(tmp_path).encode() not in told
    assert b"/home/me" not in told
    assert b"Reranker.load('owner/new')" in written["README.md"]
    # the hub was asked about the card's metadata before anything was sent
    assert logged_in.cards == [written["README.md"].decode()]
    assert "pushed to owner/new (private): http" in capsys.readouterr().err
    # what was pushed is what is scored
    folder = resolve_model("owner/new", token=TOKEN)
    assert (folder / "model.safetensors").read_bytes() == written["model.safetensors"]


def test_a_public_repository_must_be_asked_for(
    logged_in: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that exists and is public is refused before any work; --public makes one."""
    model = model_folder(tmp_path)
    words = ["export", "--model", str(model), "--to", "merged", "--output", str(tmp_path / "out")]
    logged_in.add("models", "owner/open", {})
    assert cli.main([*words, "--push_to_hub", "owner/open"]) == 2
    told = capsys.readouterr().err.strip()
    assert "model 'owner/open' on Hugging Face is public, so what is pushed can be read" in told
    assert not (tmp_path / "out").exists()
    assert not logged_in.repos["models", "owner/open"].files
    assert cli.main([*words, "--push_to_hub", "owner/wide", "--public", "true"]) == 0
    assert not logged_in.repos["models", "owner/wide"].private
    assert "config.json" in logged_in.repos["models", "owner/wide"].files


def test_training_pushes_the_final_model_alone(
    logged_in: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checkpoint, no row and no path of this machine; the repository exists from the start."""
    from tests import tiny as small

    small.save_base(tmp_path / "base", "qwen3")
    rows = small.examples(12, documents=3)
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"query": e.query, "positive": e.documents[:1], "negative": e.documents[1:]})
            + "\n"
            for e in rows
        )
    )
    out = tmp_path / "run"
    words = ["train", "--model", str(tmp_path / "base"), "--dataset", str(tmp_path / "rows.jsonl")]
    words += ["--split_dataset_ratio", "0.3", "--output_dir", str(out), "--max_steps", "2"]
    words += ["--tuner_type", "lora", "--save_steps", "1", "--eval_steps", "1", "--use_cpu", "true"]
    words += ["--max_length", "512", "--push_to_hub", "true"]
    assert cli.main([*words, "--hub_strategy", "every_save"]) == 2
    assert "--hub_strategy every_save would push checkpoints" in capsys.readouterr().err
    assert cli.main([*words, "--hub_token", TOKEN]) == 0, capsys.readouterr().err
    assert list(out.glob("checkpoint-*"))
    repo = logged_in.repos["models", "somebody/run"]
    assert repo.private
    assert repo.commits == ["rankwright train"]
    assert {file.split("/")[0] for file in repo.files if "/" in file} == {"1_LogitScore", "adapter"}
    assert "adapter/adapter_model.safetensors" in repo.files
    local = {file: (out / file).read_bytes() for file in repo.files}
    changed = {file for file in local if local[file] != repo.files[file]}
    assert changed == {
        "rankwright.json",
        "adapter/rankwright.json",
        "adapter/adapter_config.json",
    }
    told = b"".join(d for name, d in repo.files.items() if not name.endswith("safetensors"))
    assert str(tmp_path).encode() not in told
    assert TOKEN.encode() not in told
    assert all(e.documents[0].encode() not in told for e in rows)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "was refused (401): nobody is logged in, or the token is not valid; log in with"),
        (403, "was refused (403): the token may not write there; check the owner, or log in"),
        (404, "was not found (404), or the token may not see it; check owner and name"),
        (500, ": the hub answered 500"),
    ],
)
def test_a_push_that_is_refused_is_one_line(logged_in: Hub, status: int, message: str) -> None:
    logged_in.refuse_writing = status
    told = refusal(prepare_push, "owner/new")
    assert told.startswith(f"model 'owner/new' on Hugging Face{'' if status == 500 else ' '}")
    assert message in told


def test_a_push_without_a_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody logged in, offline, a port that refuses, and a name that cannot be one."""
    assert "(401): nobody is logged in" in refusal(prepare_push, "owner/new")
    assert "'a b/c' is no name of a repository" in refusal(prepare_push, "a b/c")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert refusal(prepare_push, "owner/new", token=TOKEN).endswith(
        "HF_HUB_OFFLINE=1 forbids to push; unset it"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
    point_at(f"http://127.0.0.1:{port}", tmp_path, monkeypatch)
    assert refusal(prepare_push, "owner/new", token=TOKEN) == (
        f"model 'owner/new' on Hugging Face cannot be reached ({REFUSED}); check the network and "
        "try again"
    )


def test_only_paths_are_cut() -> None:
    """Names on a hub, instructions and prompts of several lines stay whole."""
    kept: dict[str, Any] = {
        "model": "owner/name",
        "instruction": "Given a query / find it",
        "suffix": "/end\n",
        "numbers": [1, 0.5, None, True],
    }
    assert without_paths(kept) == kept
    paths = ["/home/me/rows.jsonl", "../x/rows.jsonl", "~/d/rows.jsonl", "C:\\me\\rows.jsonl"]
    assert without_paths({"dataset": paths}) == {"dataset": ["rows.jsonl"] * 4}


# ------------------------------------------------------------------------------------ local paths


def test_a_local_folder_is_returned_as_it_is(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model(str(tiny.folder)) == tiny.folder
    # a folder wins over an id of the same name
    folder = tmp_path / "owner" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("owner/tiny") == Path("owner/tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/owner/tiny", use_hf=False) == folder
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert resolve_dataset("rows.jsonl") == Path("rows.jsonl")
    assert resolve_dataset(str(tmp_path)) == tmp_path


def test_a_local_adapter_counts_as_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "name", ["./output/model", "/nowhere/model", "~/nowhere", "../model", "a/b/c", "bert", "a b/c"]
)
def test_a_missing_local_path_is_not_asked_for_at_a_hub(name: str) -> None:
    """Without any hub there: a name that cannot be an id is answered at once."""
    with pytest.raises(CheckpointError) as caught:
        resolve_model(name)
    assert str(caught.value) == (
        f"model {name!r}: there is no such folder, and it is no hub id; check the path, or give an "
        "id, which looks like owner/name (Qwen/Qwen3-Reranker-0.6B)"
    )


@pytest.mark.parametrize("name", ["./rows.jsonl", "data/train.jsonl", "data/test.csv.gz", "rows"])
def test_a_missing_local_dataset_is_not_asked_for_at_a_hub(name: str) -> None:
    with pytest.raises(DataError) as caught:
        resolve_dataset(name)
    assert str(caught.value) == (
        f"dataset {name!r}: there is no such file or folder, and it is no hub id; check the path, "
        "or give an id, which looks like owner/name (MTEB/scidocs-reranking)"
    )


def test_local_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve_model(str(tmp_path))
    assert str(caught.value) == (
        f"model {str(tmp_path)!r}: the folder has no config.json (it holds nothing); "
        "give the folder that a model was saved in"
    )
    (tmp_path / "checkpoint-7").mkdir()
    file = tmp_path / "log.txt"
    file.write_text("")
    with pytest.raises(CheckpointError, match=r"\(it holds checkpoint-7/, log\.txt\)"):
        resolve_model(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"is a file; give the folder"):
        resolve_model(str(file))


def test_names_and_revisions_that_mean_nothing(tmp_path: Path) -> None:
    assert "the name is empty" in refusal(resolve_model, " ")
    assert refusal(resolve_dataset, str(tmp_path), revision="v1") == (
        f"revision 'v1' was given for the local path {str(tmp_path)!r}; only a hub's repository "
        "has revisions: leave it out, or move the path away if the id was meant"
    )


# ----------------------------------------------------------------------------------------- use_hf


def test_use_hf_is_read_in_every_usual_spelling() -> None:
    assert all(parse_use_hf(value) for value in ("1", "true", "True", "YES", " on "))
    assert not any(parse_use_hf(value) for value in ("0", "false", "False", "NO", "off"))
    assert refusal(parse_use_hf, "maybe") == (
        "use_hf 'maybe' is neither true nor false; give true (1, yes, on) for Hugging Face ids or "
        "false (0, no, off) for ModelScope ids"
    )


def test_hugging_face_is_the_default() -> None:
    assert from_environment({}, "").get("use_hf", True) is True
    assert from_environment({"USE_HF": ""}, "").get("use_hf", True) is True
    assert from_environment({"USE_HF": "1"}, "").get("use_hf", True) is True
    assert from_environment({"USE_HF": "0"}, "").get("use_hf", True) is False
