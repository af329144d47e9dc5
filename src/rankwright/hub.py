"""From a name to a folder: a local path as it is, a Hugging Face id or a ModelScope id downloaded.

Each hub is reached through its own library, so its cache, its log-in, its mirrors and its progress
bars are the ones users know. Two things are ours: what is fetched (safetensors, never pickled
weights; rows, never scripts) and what is said when it fails (one line).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hf_errors

from rankwright.errors import CheckpointError, ConfigError, DataError
from rankwright.files import expanded

# Reading a pickle runs what it says, so pickled weights are never fetched; neither is Python code,
# nor another format of the same weights.
_CONFIG_PATTERNS = ("*.json", "*.txt", "*.jinja", "*.model", "*.spm", "*.tiktoken")
_WEIGHT_PATTERNS = ("*.safetensors",)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# second copies of the weights, which transformers does not read, and a run's older checkpoints
_MODEL_IGNORED = (
    "onnx/*",
    "openvino/*",
    "original/*",
    "consolidated*.safetensors",
    "checkpoint-*/*",
)

_DATA_ENDINGS = tuple(
    ending + packed
    for ending in (".json", ".jsonl", ".csv", ".tsv", ".parquet")
    for packed in ("", ".gz")
)
# JSON that describes a dataset and holds no rows
_DATA_IGNORED = (
    *(
        f"{folder}{file}"
        for folder in ("", "*/")
        for file in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
    ),
    "configuration.json",
)

# modelscope-hub 0.5.1 joins a listed path to the cache folder without looking at it, so a listing
# could name a file outside; huggingface_hub refuses such names itself.
_OUTSIDE = ("/*", "../*", "*/../*", "*\\*")

# huggingface_hub lets its HTTP client's errors through (httpx in 1.x, httpx2 in 2.x), some without
# the socket's error as their cause; it imports their base class under this name
_UNREACHABLE = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    hf_errors.HTTPError,  # type: ignore[attr-defined]
)

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)

_PATH = re.compile(r"(/|~[^/]*/|\.\.?[/\\]|[A-Za-z]:[/\\])")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def parse_use_hf(value: str) -> bool:
    """Read the text of ``USE_HF`` or ``--use_hf``.

    Args:
        value: 1, true, yes or on; 0, false, no or off; in any case.

    Returns:
        True for Hugging Face, our default; False for ModelScope, ms-swift's.

    Raises:
        ConfigError: for any other text.
    """
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigError(
        f"use_hf {value!r} is neither true nor false; give true (1, yes, on) for Hugging Face ids "
        "or false (0, no, off) for ModelScope ids"
    )


def resolve_model(
    name: str,
    *,
    use_hf: bool = True,
    revision: str | None = None,
    token: str | None = None,
    weights: bool = True,
) -> Path:
    """Find a model's folder: the local one of that name, else the hub's, downloaded.

    Args:
        name: a local folder or an id ``owner/name``; an existing folder wins.
        use_hf: where an id is looked up: True, our default, for Hugging Face; False, ms-swift's
            default, for ModelScope.
        revision: a branch, tag or commit of the hub's repository; None takes its main branch.
        token: for private and gated repositories; None takes the one that the hub's log-in saved.
        weights: False fetches the configuration and the tokenizer only.

    Returns:
        The folder, with a ``config.json`` (or an adapter's ``adapter_config.json``) in it.

    Raises:
        CheckpointError: the local folder is missing or holds no model.
        ConfigError: the hub does not have it, does not give it, or has no safetensors of it.
    """
    path = _local(name, revision)
    if path is not None:
        return _local_model(name, path)
    if not _ID.fullmatch(name):
        raise CheckpointError(
            f"model {name!r}: there is no such folder, and it is no hub id; check the path, or "
            "give an id, which looks like owner/name (Qwen/Qwen3-Reranker-0.6B)"
        )
    repo = _Repo("model", name, use_hf, revision, token)
    wanted = _CONFIG_PATTERNS + (_WEIGHT_PATTERNS if weights else ())
    folder = _download(repo, wanted, _MODEL_IGNORED)
    if weights and not any(folder.glob("*.safetensors")):
        raise _no_safetensors(repo)
    if not _has_config(folder):
        raise ConfigError(
            f"{repo} has no config.json, so it is no transformers model; "
            "give the id of one, or a local folder"
        )
    return folder


def refuse_pickles(folder: Path, conversion: str, weights: str = "*.safetensors") -> None:
    """Refuse a folder whose weights are pickled; reading them would run what they say.

    Args:
        folder: of a model or an adapter.
        conversion: what turns them into safetensors, once, where they are trusted.
        weights: pattern of the names that are read in place of pickles where they are there.

    Raises:
        ConfigError: it holds pickles and no safetensors.
    """
    if any(folder.glob(weights)):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.name.endswith(_PICKLED))
    if pickled:
        raise ConfigError(
            f"{folder} has pickled weights only ({', '.join(pickled[:3])}), which can run code and "
            f"are never loaded; convert them once where you trust them: {conversion}"
        )


def resolve_dataset(
    name: str, *, use_hf: bool = True, revision: str | None = None, token: str | None = None
) -> Path:
    """Find a dataset's rows: the local file or folder of that name, else the hub's, downloaded.

    Only files of rows are fetched (.json, .jsonl, .csv, .tsv and .parquet, each also .gz), no
    loading script.

    Args:
        name: a local file or folder or an id ``owner/name``; what exists locally wins.
        use_hf: where an id is looked up: True, our default, for Hugging Face; False, ms-swift's
            default, for ModelScope.
        revision: a branch, tag or commit of the hub's repository; None takes its main branch.
        token: for private and gated repositories; None takes the one that the hub's log-in saved.

    Returns:
        The folder of the downloaded rows, or the local file or folder as it is.

    Raises:
        DataError: a local path that does not exist.
        ConfigError: the hub does not have it, does not give it, or has no file of rows in it.
    """
    path = _local(name, revision)
    if path is not None:
        return path
    # data/train.jsonl has the form of an id, but is a file with a typing error in its path
    if not _ID.fullmatch(name) or name.endswith(_DATA_ENDINGS):
        raise DataError(
            f"dataset {name!r}: there is no such file or folder, and it is no hub id; check the "
            "path, or give an id, which looks like owner/name (MTEB/scidocs-reranking)"
        )
    repo = _Repo("dataset", name, use_hf, revision, token)
    folder = _download(repo, tuple(f"*{ending}" for ending in _DATA_ENDINGS), _DATA_IGNORED)
    if not any(file.name.endswith(_DATA_ENDINGS) for file in folder.rglob("*")):
        raise ConfigError(
            f"{repo} has no file of rows (.json, .jsonl, .csv, .tsv or .parquet, each also .gz); "
            "save its rows as one of these and give the file"
        )
    return folder


# files of ours that name folders of the machine that wrote them
_TOLD_PATHS = ("rankwright.json", "adapter_config.json")


@dataclass(frozen=True)
class Target:
    """A repository on Hugging Face that is ready to take a model.

    Attributes:
        name: its id, ``owner/name``.
        revision: the branch to push to; None for the main one.
        token: None for the one that the hub's log-in saved.
    """

    name: str
    revision: str | None = None
    token: str | None = None


def prepare_push(
    name: str, *, private: bool = True, revision: str | None = None, token: str | None = None
) -> Target:
    """Make the repository that a model will be pushed to, or check the one that is there.

    Done before the work, so that a wrong name or a missing log-in costs nothing.

    Args:
        name: ``owner/name``, or ``name`` for the account that is logged in.
        private: False allows a public repository; True refuses one that is there already.
        revision: a branch; made where it is missing.
        token: for the hub; None takes the one that its log-in saved.

    Raises:
        ConfigError: the hub refuses, cannot be reached, or has a public repository of that name.
    """
    if not _ID.fullmatch(name if "/" in name else f"owner/{name}"):
        raise ConfigError(
            f"--push_to_hub {name!r} is no name of a repository; it looks like owner/name"
        )
    repo = _Repo("model", name, True, revision, token)
    api = huggingface_hub.HfApi(token=token)
    try:
        full = api.create_repo(name, private=private, exist_ok=True).repo_id
        if private and not api.model_info(full).private:
            raise ConfigError(
                f"{repo} is public, so what is pushed can be read by all; say so with --public "
                "(in training: --hub_private_repo false), or choose another name"
            )
        if revision:
            api.create_branch(full, branch=revision, exist_ok=True)
    except ConfigError:
        raise
    except Exception as error:
        raise _push_refusal(repo, error) from error
    return Target(full, revision, token)


def push_folder(
    folder: Path, target: Target, *, patterns: Sequence[str] | None = None, message: str
) -> str:
    """Upload a model's folder in one commit.

    Files arrive as they are, but for paths of this machine in ``rankwright.json`` and
    ``adapter_config.json``, of which the last part is left.

    Args:
        folder: the folder.
        target: from ``prepare_push``.
        patterns: what belongs to the model; default: everything.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the hub refuses or cannot be reached.
    """
    repo = _Repo("model", target.name, True, target.revision, target.token)
    with tempfile.TemporaryDirectory(prefix=".push-", dir=folder.parent) as staged:
        _stage(folder, Path(staged), patterns)
        try:
            commit = huggingface_hub.HfApi(token=target.token).upload_folder(
                repo_id=target.name,
                folder_path=staged,
                revision=target.revision,
                commit_message=message,
            )
        except Exception as error:
            raise _push_refusal(repo, error) from error
    return str(commit.commit_url)


def _stage(folder: Path, staged: Path, patterns: Sequence[str] | None) -> None:
    """Lay out what is pushed: links to the files, and copies of those that are changed."""
    if patterns is None:
        chosen = set(folder.rglob("*"))
    else:
        matches = {path for pattern in patterns for path in folder.glob(pattern)}
        inside = {inner for path in matches if path.is_dir() for inner in path.rglob("*")}
        chosen = matches | inside
    for path in sorted(chosen):
        if not path.is_file():
            continue
        place = staged / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.name in _TOLD_PATHS:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text)
            cut = without_paths(values)
            if cut != values:
                text = json.dumps(cut, indent=2, ensure_ascii=False) + "\n"
            place.write_text(text, encoding="utf-8")
            continue
        try:
            os.link(path.resolve(), place)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, place)


def without_paths(value: Any) -> Any:
    """Of each absolute path, or one through the home folder, only the last part; inside lists too.

    A prompt may begin with a slash, so a text of several lines or words stays as it is.
    """
    if isinstance(value, dict):
        return {name: without_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    if isinstance(value, str) and _PATH.match(value) and "\n" not in value:
        return PureWindowsPath(PurePath(value).name).name or value
    return value


@dataclass(frozen=True)
class _Repo:
    """What is asked of which hub; its text is the subject of every message."""

    kind: str
    name: str
    use_hf: bool
    revision: str | None
    token: str | None

    @property
    def hub(self) -> str:
        return "Hugging Face" if self.use_hf else "ModelScope"

    @property
    def other_hub(self) -> str:
        if self.use_hf:
            return "--use_hf false asks ModelScope"
        return "--use_hf true asks Hugging Face"

    @property
    def log_in(self) -> str:
        if self.use_hf:
            return "`hf auth login` (or set HF_TOKEN)"
        return "`modelscope login` (or set MODELSCOPE_API_TOKEN)"

    def __str__(self) -> str:
        at = f" at revision {self.revision!r}" if self.revision else ""
        return f"{self.kind} {self.name!r}{at} on {self.hub}"


def _local(name: str, revision: str | None) -> Path | None:
    """The path of that name if something is there."""
    if not name.strip():
        raise ConfigError(
            "the name is empty; give a local path or an id, which looks like owner/name"
        )
    path = expanded(name)
    if not path.exists():
        return None
    if revision:
        raise ConfigError(
            f"revision {revision!r} was given for the local path {name!r}; only a hub's "
            "repository has revisions: leave it out, or move the path away if the id was meant"
        )
    return path


def _has_config(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))


def _local_model(name: str, path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(
            f"model {name!r} is a file; give the folder that holds its config.json"
        )
    if not _has_config(path):
        found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise CheckpointError(
            f"model {name!r}: the folder has no config.json (it holds {shown or 'nothing'}); "
            "give the folder that a model was saved in"
        )
    return path


def _download(repo: _Repo, wanted: tuple[str, ...], ignored: tuple[str, ...]) -> Path:
    """Fetch the wanted files through the hub's own library."""
    try:
        if repo.use_hf:
            return Path(
                huggingface_hub.snapshot_download(
                    repo.name,
                    repo_type=repo.kind,
                    revision=repo.revision,
                    token=repo.token,
                    allow_patterns=list(wanted),
                    ignore_patterns=list(ignored),
                )
            )
        try:
            from modelscope.hub.snapshot_download import snapshot_download
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{repo} needs the modelscope package, which is not installed; "
                "pip install 'rankwright[modelscope]', or use --use_hf true to ask Hugging Face"
            ) from error
        return Path(
            snapshot_download(
                repo.name,
                repo_type=repo.kind,
                revision=repo.revision,
                allow_patterns=list(wanted),
                ignore_patterns=[*ignored, *_OUTSIDE],
                **({"token": repo.token} if repo.token else {}),
            )
        )
    except ConfigError:
        raise
    except Exception as error:
        # both libraries let the errors of several HTTP clients through, in several versions
        raise _refusal(repo, error) from error


def _files(repo: _Repo) -> list[str]:
    """The repository's own list of files; empty where the hub cannot be asked."""
    try:
        if repo.use_hf:
            api = huggingface_hub.HfApi(token=repo.token)
            return sorted(
                api.list_repo_files(repo.name, repo_type=repo.kind, revision=repo.revision)
            )
        from modelscope.hub.api import HubApi

        listing = HubApi().get_model_files(repo.name, revision=repo.revision, recursive=True)
        return sorted(str(entry["Path"]) for entry in listing)
    except Exception:  # it only adds detail to an error that is raised in any case
        return []


def _no_safetensors(repo: _Repo) -> ConfigError:
    pickled = [file for file in _files(repo) if "/" not in file and file.endswith(_PICKLED)]
    if not pickled:
        return ConfigError(
            f"{repo} has no safetensors weights, which are the only ones loaded; "
            "give the id of a model that has them, or a local folder"
        )
    return ConfigError(
        f"{repo} has pickled weights only ({', '.join(pickled[:3])}), which can run code and are "
        "never loaded; convert it once where you trust it, AutoModelForSequenceClassification"
        f".from_pretrained({repo.name!r}).save_pretrained(FOLDER) and the same with AutoTokenizer, "
        "and give FOLDER"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it, to the first."""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        # modelscope-hub's FileDownloadError carries its causes, one for each file, in an attribute
        failed = getattr(current, "failed_files", None)
        if failed:
            current = next(iter(failed.values()))
        elif current.__cause__ is not None or current.__suppress_context__:
            current = current.__cause__
        else:
            current = current.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that the hub answered, if it answered."""
    for link in _chain(error):
        for holder in (link, getattr(link, "response", None)):
            status = getattr(holder, "status_code", None)
            if isinstance(status, int):
                return status
    return None


def _push_refusal(repo: _Repo, error: Exception) -> ConfigError:
    """Turn what the library raised while pushing into one line."""
    links = list(_chain(error))
    status = _status(error)
    if any(isinstance(link, hf_errors.OfflineModeIsEnabled) for link in links):
        return ConfigError(f"{repo}: HF_HUB_OFFLINE=1 forbids to push; unset it")
    if any(isinstance(link, hf_errors.LocalTokenNotFoundError) for link in links) or status == 401:
        return ConfigError(
            f"{repo} was refused (401): nobody is logged in, or the token is not valid; log in "
            f"with {repo.log_in}"
        )
    if status == 403:
        return ConfigError(
            f"{repo} was refused (403): the token may not write there; check the owner, or log in "
            f"with a token that may write, {repo.log_in}"
        )
    if status == 404:
        return ConfigError(
            f"{repo} was not found (404), or the token may not see it; check owner and name"
        )
    if status is not None:
        reason = " ".join(str(getattr(error, "server_message", None) or "").split())
        why = f" ({reason})" if reason else ""
        return ConfigError(f"{repo}: the hub answered {status}{why}; try again later")
    reason = " ".join(str(links[-1]).split()) or type(links[-1]).__name__
    if any(isinstance(link, _UNREACHABLE) for link in links):
        return ConfigError(f"{repo} cannot be reached ({reason}); check the network and try again")
    return ConfigError(f"{repo} was not pushed ({type(links[-1]).__name__}: {reason}); try again")


def _refusal(repo: _Repo, error: Exception) -> ConfigError:
    """Turn what the library raised into one line: what came, what to do."""
    links = list(_chain(error))
    if any(isinstance(link, hf_errors.OfflineModeIsEnabled) for link in links):
        return ConfigError(
            f"{repo} is not, or not wholly, in the cache, and HF_HUB_OFFLINE=1 forbids to download "
            "it; unset HF_HUB_OFFLINE, or give a local path"
        )
    if any(isinstance(link, hf_errors.GatedRepoError) for link in links):
        return ConfigError(
            f"{repo} is gated; ask for access on its page, then log in with {repo.log_in}, "
            "or give a local path"
        )
    if any(isinstance(link, hf_errors.RevisionNotFoundError) for link in links):
        return ConfigError(
            f"{repo} was not found: the repository is there, the revision is not; "
            "check the revision, or leave it out for the main branch"
        )
    status = _status(error)
    if status == 404:
        return ConfigError(
            f"{repo} does not exist (404), and there is no local path of that name; "
            f"check the name, give a local path, or look elsewhere: {repo.other_hub}"
        )
    if status in (401, 403):
        return ConfigError(
            f"{repo} was refused ({status}): it is private or gated, or does not exist; "
            f"check the name, log in with {repo.log_in}, or give a local path"
        )
    if status is not None:
        return ConfigError(
            f"{repo} was not given: the hub answered {status}; "
            f"try again later, give a local path, or look elsewhere: {repo.other_hub}"
        )
    reason = " ".join(str(links[-1]).split()) or type(links[-1]).__name__
    if isinstance(error, hf_errors.HFValidationError):
        return ConfigError(
            f"{repo} cannot exist ({reason.rstrip('.')}); check the name, or give a local path"
        )
    if any(isinstance(link, _UNREACHABLE) for link in links):
        return ConfigError(
            f"{repo} cannot be reached ({reason}); "
            f"check the network, give a local path, or look elsewhere: {repo.other_hub}"
        )
    return ConfigError(
        f"{repo} could not be downloaded ({type(links[-1]).__name__}: {reason}); "
        "try again, or give a local path"
    )
