"""How fast are training and ranking here, beside sentence-transformers and ms-swift?

One command builds the peers' environments, makes the models and the rows, checks that all systems
compute the same loss on the first step, runs them in turn and prints a table:

    python benchmarks/speed.py --work DIR --tokenizers DIR --output results.json

What makes the comparison fair:

- **Real trainers.** Every system runs its own trainer on its own reading of the same rows, in a
  process and an environment of its own (``peers/``, versions pinned). A callback stops it between
  rounds, so that one works while the others wait: A B C A B C (``--alone``: one after the other,
  each beside the matrix product, where a GPU's memory does not hold them all). The clock of a round
  includes fetching, tokenising, collating, forward, backward, clipping and optimiser.
- **The same work.** A round is one epoch over the same groups, so every system trains on the same
  pairs in every round, in whatever order its sampler likes. The same pairs an optimiser step, fused
  AdamW, learning rate, clipping, threads and precision; no gradient checkpointing, dropout,
  evaluation, saving or logging for any. No pair is cut. The first round warms up.
- **The same loss.** One step on one batch of a few groups: all must report the same loss to 1e-4,
  or nothing is measured. When ranking, the mean probability of a query's documents.
- **Two configurations of each peer**: as its documentation starts a user off, and at its best. The
  docstrings in ``peers/`` say what each is. Ours runs with its defaults. Large pages of memory,
  which our command asks for, are given to peers at their best, too.
- **Ratio**: seconds of the peer over ours in the same round; median and range over the rounds.
- **Start-up**: from the start of the process to the first step, while nothing else runs. Hubs are
  switched off for all.
- **Peak memory**: the process's highest resident memory, or of a GPU what was allocated.
- **Useful FLOPs**: those of the pairs without padding (weights and attention; three times the
  forward when training), over the round's seconds, as a share of a large matrix product's rate,
  which is measured in the same rounds in a process of its own. For decoders once for all tokens of
  the pairs and once for those that are left when a group's prompt and query are computed once.

The models have random weights; neither speed nor memory depends on them.

Examples:
    python benchmarks/speed.py --work w --tokenizers t --cases modernbert-small:listwise
    python benchmarks/speed.py --work w --tokenizers t --sweep rows --cases qwen3-small:listwise
    python benchmarks/speed.py --work w --tokenizers t --device cuda --attention flash_attention_2 \
        --groups-per-step 32 --groups-per-round 320 --cases qwen3-0.6b:listwise
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import platform
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import transformers
from rich.console import Console

from rankwright.data.collate import Collator
from rankwright.data.readers import load_examples
from rankwright.errors import ConfigError, RankwrightError
from rankwright.models import checkpoint
from rankwright.models.checkpoint import LoadOptions
from rankwright.templates import QWEN3_PREFIX, QWEN3_SUFFIX, PairEncoder
from rankwright.types import Group

PEERS = Path(__file__).resolve().parent / "peers"
OURS, MATMUL = "rankwright", "matmul"
SYSTEMS = {
    OURS: ("rankwright", "default"),
    "rankwright:compiled": ("rankwright", "compiled"),
    "sentence-transformers:documented": ("sentence_transformers", "documented"),
    "sentence-transformers:best": ("sentence_transformers", "best"),
    "ms-swift:documented": ("ms_swift", "documented"),
    "ms-swift:best": ("ms_swift", "best"),
}
# compiling pays on GPUs
DEFAULT_SYSTEMS = [name for name in SYSTEMS if name != "rankwright:compiled"]
TOLERANCE = 1e-4
CHECK_GROUPS = 3
RANKED_DOCUMENTS = 100
START_TIMEOUT, ROUND_TIMEOUT = 1800.0, 7200.0
# dense, from the maker's data sheet
PEAK_BF16 = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
}

MODERNBERT_BASE = {
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
}
QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}
QWEN3_LARGE = {
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}
MODELS: dict[str, dict[str, Any]] = {
    "modernbert-small": {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    },
    "modernbert-base": MODERNBERT_BASE,
    "qwen3-small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 40960,
    },
    "qwen3-0.6b": QWEN3_06B,
    "qwen3-4b": {**QWEN3_LARGE, "hidden_size": 2560, "intermediate_size": 9728},
    "qwen3-8b": {**QWEN3_LARGE, "hidden_size": 4096, "intermediate_size": 12288},
}
# made and written in half precision, on the device
LARGE = ("qwen3-4b", "qwen3-8b")
UNTIED = ("qwen3-8b",)
SMOKE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
TASKS = ("pointwise", "listwise", "rank")
DEFAULT_CASES = [
    f"{model}:{task}" for model in ("modernbert-small", "qwen3-small") for task in TASKS
]

# common words, one token each behind a space in both vocabularies
_WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city community name president team minute idea kid body information back "
    "parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education"
)
WORDS = _WORDS.split()

console = Console(width=None if sys.stdout.isatty() else 160)


class SpeedError(RankwrightError):
    """The systems cannot be compared."""


# what is measured


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        model: name in ``MODELS``.
        task: ``pointwise``, ``listwise`` or ``rank``.
        rows: what the rows are: ``log-normal``, ``medquad`` or ``fixed``.
        groups: groups (or queries) in a round.
        documents: documents of a group.
        tokens: tokens of a document, for ``fixed``.
    """

    model: str
    task: str
    rows: str = "log-normal"
    groups: int = 10
    documents: int = 8
    tokens: int = 0

    @property
    def kind(self) -> str:
        """Kind of the model."""
        return "generative" if self.model.startswith("qwen3") else "classification"

    @property
    def name(self) -> str:
        """What the table calls it."""
        parts = [self.model, self.task, self.rows]
        if self.tokens:
            parts.append(f"{self.tokens} tokens")
        return f"{', '.join(parts)}, {self.groups} groups of {self.documents}"


@dataclass
class Outcome:
    """What one system did in one case.

    Attributes:
        system: its name.
        rounds: events of the measured rounds.
        startup: seconds to the first step.
        peak_memory: bytes.
        first_loss: of the check.
        failed: why there is nothing.
        notes: what the worker chose.
        profile: of the last round, operations with their share of the time and their calls.
    """

    system: str
    rounds: list[dict[str, Any]] = field(default_factory=list)
    startup: float | None = None
    peak_memory: int | None = None
    first_loss: float | None = None
    failed: str | None = None
    notes: list[str] = field(default_factory=list)
    profile: list[list[Any]] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Seconds by round."""
        return [event["seconds"] for event in self.rounds]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for environments, models and rows")
    add("--tokenizers", type=Path, required=True, help="folder that holds modernbert/ and qwen3/")
    add("--medquad", type=Path, help="file of real rows (.jsonl or .jsonl.gz), measured too")
    add("--systems", nargs="+", default=DEFAULT_SYSTEMS, choices=list(SYSTEMS), metavar="SYSTEM")
    add("--cases", nargs="+", default=DEFAULT_CASES, help="MODEL:TASK, see MODELS and TASKS")
    add("--sweep", choices=list(SWEEPS), help="cost against one size, in place of the cases' own")
    add("--rounds", type=int, default=5, help="measured rounds")
    add("--groups-per-round", type=int, help="default: 40 for small models, 10 for the others")
    add("--groups-per-step", type=int, default=2, help="groups of one optimiser step")
    add("--groups-at-once", type=int, help="the peers accumulate gradients beyond; on GPUs")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1))
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--attention", help="the peers' attention at their best, such as flash_attention_2")
    add("--profile", type=int, default=0, metavar="N", help="our N longest operations, at the end")
    add("--max-length", type=int, help="default: what holds every pair whole")
    add("--pairwise", action="store_true", help="ours beside one peer at a time: less memory")
    add(
        "--alone",
        action="store_true",
        help="one system after the other, where their memory together is more than a GPU's",
    )
    add("--no-check", action="store_true", help="skip the comparison of the first loss")
    add("--lora", type=int, metavar="RANK", help="adapters on all linear layers; ours alone")
    add(
        "--here",
        action="store_true",
        help="run the peers from this interpreter's environment, where none can be built",
    )
    add("--prepare-only", action="store_true", help="build environments and models, then stop")
    add("--smoke", action="store_true", help=argparse.SUPPRESS)
    add("--output", type=Path, help="file for the raw numbers (JSON)")
    options = parser.parse_args()
    for name in ("rounds", "groups_per_round", "groups_per_step", "groups_at_once", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is less than 1")
    if options.smoke:
        options.groups_per_round, options.rounds = 2, min(options.rounds, 2)
        options.groups_per_step, options.groups_at_once = 1, None
    if (options.groups_per_round or 40) % options.groups_per_step:
        parser.error("--groups-per-round is not a multiple of --groups-per-step")
    if options.groups_per_step % (options.groups_at_once or 1):
        parser.error("--groups-per-step is not a multiple of --groups-at-once")
    for case in options.cases:
        model, _, task = case.partition(":")
        if model not in MODELS or task not in TASKS:
            parser.error(
                f"--cases {case}: give MODEL:TASK with {', '.join(MODELS)} and {', '.join(TASKS)}"
            )
    if options.lora is not None and options.systems != [OURS]:
        parser.error(f"--lora is measured for one system: give --systems {OURS}")
    if options.output is not None and not options.output.parent.is_dir():
        parser.error(f"--output {options.output}: there is no folder {options.output.parent}")
    options.dtype = "float32" if options.device == "cpu" else "bfloat16"
    return options


# environments, models, rows


def environment(options: argparse.Namespace, worker: str) -> str:
    """The interpreter of a system; its environment is built where it is missing or outdated."""
    if options.here or worker in ("rankwright", "matmul"):
        return sys.executable
    name = worker.replace("_", "-")
    pins, folder = PEERS / f"{name}.txt", options.work / f"venv-{name}"
    python, stamp = folder / "bin" / "python", folder / "pins.txt"
    if stamp.is_file() and stamp.read_text() == pins.read_text():
        return str(python)
    console.print(f"building {folder} (some minutes)", highlight=False)
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    found = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-r", pins],
        check=False,
        capture_output=True,
        text=True,
    )
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise SpeedError(f"{folder} cannot be built: {reason}")
    shutil.copy(pins, stamp)
    return str(python)


def config_of(options: argparse.Namespace, name: str) -> Any:
    """A model's configuration."""
    sizes = {**MODELS[name], **(SMOKE if options.smoke else {})}
    if name.startswith("qwen3"):
        return transformers.Qwen3Config(
            **sizes,
            vocab_size=151669,
            tie_word_embeddings=name not in UNTIED,
            pad_token_id=151643,
        )
    return transformers.ModernBertConfig(
        **sizes, num_labels=1, max_position_embeddings=8192, classifier_pooling="mean"
    )


def make_model(options: argparse.Namespace, name: str) -> dict[str, str]:
    """Write a model with random weights; its folder, and for decoders that of the one-row form."""
    decoder = name.startswith("qwen3")
    folder = options.work / "models" / (f"{name}-smoke" if options.smoke else name)
    one_row = folder.with_name(f"{folder.name}-classifier")
    # only the peers read the second form
    twice = decoder and options.systems != [OURS]
    folders = {"model": str(folder), "classifier": str(one_row) if twice else ""}
    if (folder / checkpoint.SPEC_FILE).is_file() and (not twice or one_row.is_dir()):
        return folders
    torch.manual_seed(0)
    raw = folder.with_name(f"{folder.name}-raw")
    large = name in LARGE and not options.smoke
    precision = torch.bfloat16 if large else torch.float32
    config = config_of(options, name)
    if decoder:
        source, padding = options.tokenizers / "qwen3", {}
        with torch.device(options.device if large else "cpu"):
            model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=precision)
    else:
        source, padding = options.tokenizers / "modernbert", MODERNBERT_SPECIAL
        model = transformers.ModernBertForSequenceClassification(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **padding)
    limit = 8192 + 512 if decoder else 8192
    model.save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    kind = "generative" if decoder else "classification"
    opened = LoadOptions(kind=kind, max_length=limit, dtype="auto")
    checkpoint.save(checkpoint.load(raw, opened), folder)
    if twice:
        yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        config.num_labels = 1
        head = transformers.Qwen3ForSequenceClassification(config)
        head.model.load_state_dict(model.model.state_dict())
        rows = model.lm_head.weight
        head.score.weight.data = (rows[yes] - rows[no])[None].detach().clone()
        shutil.rmtree(raw)
        head.save_pretrained(raw)
        tokenizer.save_pretrained(raw)
        prompt = LoadOptions(
            kind="classification",
            max_length=limit,
            template_prefix=QWEN3_PREFIX,
            template_suffix=QWEN3_SUFFIX,
        )
        checkpoint.save(checkpoint.load(raw, prompt), one_row)
    shutil.rmtree(raw)
    return folders


MODERNBERT_SPECIAL = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
    "unk_token": "[UNK]",
}


def log_normal_lengths(
    generator: np.random.Generator, count: int, *, median: float = 120, sigma: float = 0.7
) -> list[int]:
    """Lengths of documents in words, from 4 to 512."""
    drawn = generator.lognormal(np.log(median), sigma, count)
    lengths: list[int] = np.clip(np.rint(drawn), 4, 512).astype(int).tolist()
    return lengths


def synthetic_rows(
    groups: int, documents: int, *, tokens: int = 0, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield groups: a query of 20 words, a positive and ``documents`` - 1 negatives."""
    generator = np.random.default_rng(seed)
    for number in range(groups):
        lengths = [tokens] * documents if tokens else log_normal_lengths(generator, documents)
        texts = [" ".join(generator.choice(WORDS, length)) for length in lengths]
        # the number keeps queries apart, whose rows a reader would otherwise join
        query = f"{' '.join(generator.choice(WORDS, 19))} {number}"
        yield {"query": query, "positive": texts[:1], "negative": texts[1:]}


def real_rows(file: Path, groups: int) -> Iterator[dict[str, Any]]:
    """Yield an even sample of a file's rows, in its order."""
    text = file.read_bytes()
    lines = (gzip.decompress(text) if file.suffix == ".gz" else text).splitlines()
    rows = [json.loads(line) for line in lines]
    # all rows of a round have the same number of documents, so that all batches hold as many pairs
    most = statistics.mode(len(row["negative"]) for row in rows)
    rows = [row for row in rows if len(row["negative"]) == most and row["positive"]]
    for index in np.linspace(0, len(rows) - 1, groups).astype(int).tolist():
        row = rows[index]
        yield {name: row[name] for name in ("query", "negative")} | {
            "positive": row["positive"][:1]
        }


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """Write a row as ms-swift reads it."""

    def answers(documents: list[str]) -> list[list[dict[str, str]]]:
        return [[{"role": "assistant", "content": document}] for document in documents]

    return {
        "messages": [{"role": "user", "content": row["query"]}],
        "positive_messages": answers(row["positive"]),
        "negative_messages": answers(row["negative"]),
    }


def write_rows(options: argparse.Namespace, case: Case, *, check: bool = False) -> dict[str, str]:
    """Write the rows of a case, for us and for ms-swift."""
    groups = CHECK_GROUPS if check else case.groups
    documents = min(case.documents, 8) if check else case.documents
    folder = options.work / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{case.rows}-{groups}-{documents}-{case.tokens}"
    files = {"rows": folder / f"{stem}.jsonl", "messages": folder / f"{stem}.messages.jsonl"}
    rows: Iterator[dict[str, Any]]
    if case.rows == "medquad":
        rows = real_rows(options.medquad, groups)
    else:
        rows = synthetic_rows(groups, documents, tokens=case.tokens)
    with files["rows"].open("w") as ours, files["messages"].open("w") as theirs:
        for row in rows:
            ours.write(json.dumps(row) + "\n")
            theirs.write(json.dumps(as_messages(row)) + "\n")
    return {name: str(path) for name, path in files.items()}


# the amount of work


@dataclass
class Work:
    """The tokens and FLOPs of one round, counted without padding.

    Attributes:
        pairs: number of pairs.
        tokens: of all pairs.
        unique: of them when a group's shared prefix counts once; the same for encoders.
        longest: tokens of the longest pair.
        flops: of the pairs, forward and (in training) backward.
        unique_flops: of the unique tokens.
    """

    pairs: int
    tokens: int
    unique: int
    longest: int
    flops: float
    unique_flops: float


def attention_flops(config: Any, length: int) -> float:
    """FLOPs of the attention products of one sequence, forward.

    Two products of 2 · length · context · width for each layer; the context is half the sequence
    on average where the model is causal, and a window in ModernBERT's local layers.
    """
    heads = config.num_attention_heads
    width = int(heads * getattr(config, "head_dim", config.hidden_size // heads))
    if config.model_type == "qwen3":
        return 4.0 * width * int(config.num_hidden_layers) * length * (length + 1) / 2
    window = config.local_attention // 2
    total = 0.0
    for layer in config.layer_types:
        context = length * length
        if layer == "sliding_attention":
            reach = min(window, length - 1)
            context = length * (2 * reach + 1) - reach * (reach + 1)
        total += 4.0 * width * context
    return total


def count_work(case: Case, model: str, rows: str) -> Work:
    """Count the tokens of a round as the model sees them, and their FLOPs."""
    described = checkpoint.describe(model)
    config = described.config
    with torch.device("meta"):
        auto = transformers.AutoModel.from_config(config)
    parameters = sum(
        value.numel() for name, value in auto.named_parameters() if "embeddings." not in name
    ) - sum(v.numel() for n, v in auto.named_parameters() if n == "embed_tokens.weight")
    spec, decoder = described.spec, config.model_type == "qwen3"
    encoder = PairEncoder(described.tokenizer, spec.template, spec.max_length)
    collate = Collator(encoder, share_prefix=decoder, scored_last=decoder)
    pairs = tokens = unique = longest = 0
    attention = shared_attention = 0.0
    memo = functools.cache(functools.partial(attention_flops, config))
    for example in load_examples(rows, purpose="eval").examples:
        encoded = collate.encode(Group(example, tuple(range(len(example.documents)))))
        prefix = len(encoded.prefix)
        sizes = [prefix + len(document) for document in encoded.documents]
        own = [memo(size) for size in sizes]
        pairs += len(sizes)
        tokens += sum(sizes)
        unique += collate.cost(encoded)
        longest = max(longest, *sizes)
        attention += sum(own)
        saved = (len(sizes) - 1) * memo(prefix) if collate.cost(encoded) < sum(sizes) else 0.0
        shared_attention += sum(own) - saved
    passes = 1 if case.task == "rank" else 3
    return Work(
        pairs,
        tokens,
        unique,
        longest,
        passes * (2.0 * parameters * tokens + attention),
        passes * (2.0 * parameters * unique + shared_attention),
    )


# running


class Worker:
    """One system in its own process, stopped between rounds."""

    def __init__(
        self, options: argparse.Namespace, system: str, job: dict[str, Any], name: str
    ) -> None:
        worker, configuration = SYSTEMS.get(system, ("matmul", "default"))
        self.outcome = Outcome(system)
        folder = options.work / "runs" / name / system.replace(":", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        python = environment(options, worker)
        reading, writing = os.pipe()
        job = {
            **job,
            "configuration": configuration,
            "descriptor": writing,
            "output": str(folder / "output"),
        }
        self.log = folder / "log.txt"
        script = PEERS / f"worker_{worker}.py"
        with self.log.open("w") as log:
            job["started"] = time.time()
            (folder / "job.json").write_text(json.dumps(job, indent=1))
            self.process = subprocess.Popen(
                [python, str(script), str(folder / "job.json")],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=surrounding(options, configuration),
                pass_fds=(writing,),
            )
        os.close(writing)
        self.events = os.fdopen(reading)

    def event(self, timeout: float) -> dict[str, Any]:
        """Wait for the next event; notes are kept and passed over."""
        while True:
            ready, _, _ = select.select([self.events], [], [], timeout)
            line = self.events.readline() if ready else ""
            if not line:
                what = "ended" if ready else f"said nothing for {timeout:.0f} s"
                last = (self.log.read_text(errors="replace").strip().splitlines() or [""])[-1]
                reason = f"{what} ({last[:200]}); see {self.log}"
                found = {"event": "failed", "reason": reason}
            else:
                found = json.loads(line)
            if found["event"] == "note":
                self.outcome.notes.append(found["text"])
                continue
            if found["event"] == "failed":
                self.outcome.failed = found["reason"]
                self.stop()
            return found

    def start(self) -> bool:
        """Wait for the first step; False where it failed."""
        found = self.event(START_TIMEOUT)
        if found["event"] != "ready":
            return False
        self.outcome.startup = found["startup"]
        self.outcome.first_loss = found["loss"]
        self.outcome.peak_memory = found["peak_memory"]
        return True

    def round(self, *, measured: bool, word: str = "go") -> None:
        """Let it do one round."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self.outcome.failed = f"ended; see {self.log}"
            return
        found = self.event(ROUND_TIMEOUT)
        self.outcome.profile = found.get("profile", [])
        if found["event"] == "round" and measured:
            self.outcome.rounds.append(found)
            self.outcome.peak_memory = found.get("peak_memory")

    def stop(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def surrounding(options: argparse.Namespace, configuration: str) -> dict[str, str]:
    """The environment variables of a worker: offline, and as many threads as all others."""
    threads = str(options.threads)
    # our command asks for large pages; a peer at its best has them, too
    pages = {} if configuration == "documented" else {"THP_MEM_ALLOC_ENABLE": "1"}
    caches = options.work / "caches"
    return {
        **{
            name: value
            for name, value in os.environ.items()
            # where all run from one environment, this may be how it finds our package
            if not name.startswith("PYTHON") or (options.here and name == "PYTHONPATH")
        },
        **pages,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # a worker that waits must not spin for long; as our command has it
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(caches / "huggingface"),
        "MODELSCOPE_CACHE": str(caches / "modelscope"),
        "USE_HF": "1",
        "PYTHONUNBUFFERED": "1",
    }


def job_of(options: argparse.Namespace, case: Case, folders: dict[str, str]) -> dict[str, Any]:
    """What every worker of a case is told."""
    return {
        **folders,
        "task": "rank" if case.task == "rank" else "train",
        "loss": case.task,
        "kind": case.kind,
        "device": options.device,
        "dtype": options.dtype,
        "threads": options.threads,
        "rounds": options.rounds + 1 + bool(options.profile),
        "attention": options.attention,
        "lora": options.lora,
        "groups_at_once": options.groups_at_once,
        "learning_rate": 2e-5,
        "matrix": 512 if options.smoke else 4096 if options.device == "cpu" else 8192,
    }


def training_job(case: Case, job: dict[str, Any], step: int) -> dict[str, Any]:
    """Add the sizes of rounds and steps."""
    per_round = -(-case.groups // step)
    return {
        **job,
        "groups": case.groups,
        "documents": case.documents,
        "groups_per_step": step,
        "groups_at_once": job["groups_at_once"]
        if step % (job["groups_at_once"] or 1) == 0
        else None,
        "steps_per_round": per_round,
        "pairs_per_round": case.groups * case.documents,
        "steps": per_round * job["rounds"],
    }


def begin(
    options: argparse.Namespace,
    systems: Sequence[str],
    job: dict[str, Any],
    name: str,
    *,
    together: bool = False,
) -> Iterator[Worker]:
    """Start the systems, one by one or all at once, and wait for the first step of each."""
    workers = (Worker(options, system, job, name) for system in systems)
    for worker in list(workers) if together else workers:
        worker.start()
        yield worker


def check_losses(
    options: argparse.Namespace, case: Case, folders: dict[str, str], systems: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """First losses of all systems on one batch of the same groups; also who failed, and why.

    Raises:
        SpeedError: they differ.
    """
    files = write_rows(options, case, check=True)
    documents = len(_documents(files["rows"]))
    small = Case(case.model, case.task, case.rows, CHECK_GROUPS, documents, case.tokens)
    longest = count_work(small, folders["model"], files["rows"]).longest
    job = training_job(small, job_of(options, small, folders), CHECK_GROUPS)
    job |= {**files, "max_length": options.max_length or longest + 8}
    losses: dict[str, float] = {}
    failed: dict[str, str] = {}
    # a few pairs, and nothing is timed
    together = options.device == "cuda"
    for worker in begin(options, systems, job, f"check {case.name}", together=together):
        outcome = worker.outcome
        if outcome.failed is None and outcome.first_loss is not None:
            losses[outcome.system] = outcome.first_loss
        else:
            failed[outcome.system] = outcome.failed or "no loss"
        worker.stop()
    same(options, case, "first loss", losses)
    return losses, failed


def same(options: argparse.Namespace, case: Case, what: str, values: dict[str, float]) -> None:
    """Print what every system computed.

    Raises:
        SpeedError: the values differ.
    """
    shown = ", ".join(f"{name} {value:.6f}" for name, value in values.items())
    console.print(f"{what}: {shown}", highlight=False, soft_wrap=True)
    if not values:
        return
    reference = values.get(OURS, next(iter(values.values())))
    # half precision rounds differently in every attention
    bound = TOLERANCE if options.device == "cpu" else 2e-2
    if any(abs(value - reference) > bound * abs(reference) for value in values.values()):
        raise SpeedError(f"{case.name}: the {what} differs ({shown}); nothing is measured")


def same_work(case: Case, tokens: int, outcomes: dict[str, Outcome]) -> None:
    """Look whether every system computed all tokens of all pairs in each round.

    Raises:
        SpeedError: one did not.
    """
    for system, outcome in outcomes.items():
        for event in outcome.rounds:
            if system != MATMUL and event["real_tokens"] != tokens:
                raise SpeedError(
                    f"{case.name}: {system} computed {event['real_tokens']} tokens of a round's "
                    f"{tokens}; nothing can be compared"
                )


def _documents(rows: str) -> list[str]:
    with Path(rows).open(encoding="utf-8") as lines:
        row = json.loads(lines.readline())
    return [*row["positive"], *row["negative"]]


def run_case(options: argparse.Namespace, case: Case, folders: dict[str, str]) -> dict[str, Any]:
    """Check, run the rounds in turn, and collect."""
    console.rule(case.name)
    losses: dict[str, float] = {}
    failed: dict[str, str] = {}
    if case.task != "rank" and not options.no_check:
        losses, failed = check_losses(options, case, folders, options.systems)
    files = write_rows(options, case)
    work = count_work(case, folders["model"], files["rows"])
    step = min(options.groups_per_step, case.groups)
    job = training_job(case, job_of(options, case, folders), step)
    job |= {**files, "max_length": options.max_length or work.longest + 8}
    systems = [system for system in options.systems if system not in failed]
    turns = [[system] for system in systems] if options.alone else [systems]
    if options.pairwise and OURS in systems:
        turns = [[OURS, other] for other in systems if other != OURS] or [[OURS]]
    found: dict[str, Outcome] = {name: Outcome(name, failed=why) for name, why in failed.items()}
    ratios: dict[str, list[float]] = {}
    for turn in turns:
        outcomes = interleave(options, case, job, [*turn, MATMUL])
        same_work(case, work.tokens, outcomes)
        ours = outcomes.get(OURS, found.get(OURS))
        for system, outcome in outcomes.items():
            if ours is not None:
                pairs = zip(outcome.seconds, ours.seconds, strict=False)
                ratios[system] = [theirs / own for theirs, own in pairs]
            found.setdefault(system, outcome)
    if options.alone and case.task == "rank":
        firsts = {n: o.first_loss for n, o in found.items() if o.first_loss is not None}
        same(options, case, "mean probability", firsts)
    for system, loss in losses.items():
        if system in found:
            found[system].first_loss = loss
    return {
        "case": asdict(case),
        "name": case.name,
        "work": asdict(work),
        "job": job,
        "systems": {name: asdict(outcome) for name, outcome in found.items()},
        "ratios": ratios,
    }


def interleave(
    options: argparse.Namespace, case: Case, job: dict[str, Any], systems: Sequence[str]
) -> dict[str, Outcome]:
    """Start the systems, then let them work in turn."""
    workers: list[Worker] = []
    outcomes: dict[str, Outcome] = {}
    try:
        for worker in begin(options, systems, job, case.name):
            outcomes[worker.outcome.system] = worker.outcome
            workers.append(worker)
        if case.task == "rank" and not options.alone:
            firsts = {n: o.first_loss for n, o in outcomes.items() if o.first_loss is not None}
            same(options, case, "mean probability", firsts)
        for number in range(options.rounds + 1):
            for worker in workers:
                if worker.outcome.failed is None:
                    worker.round(measured=number > 0)
        if options.profile and workers[0].outcome.system == OURS:
            workers[0].round(measured=False, word="profile")
            for name, share, calls in workers[0].outcome.profile[: options.profile]:
                console.print(f"{share:6.1%} {calls:7} x {name[:90]}", highlight=False)
    finally:
        for worker in workers:
            worker.stop()
    for outcome in outcomes.values():
        if outcome.failed:
            console.print(f"{outcome.system}: {outcome.failed}", highlight=False, markup=False)
    return outcomes


# sweeps


def groups_per_round(options: argparse.Namespace, model: str) -> int:
    """Groups of a round; more for small models, so that sorting by length can pay for the peers."""
    return options.groups_per_round or (40 if model.endswith("small") else 10)


def whole_steps(options: argparse.Namespace, groups: int) -> int:
    """Round down to whole optimiser steps, at least one: none may be short, or left out."""
    step: int = options.groups_per_step
    return max(step, groups // step * step)


def _documents_sweep(options: argparse.Namespace, model: str, task: str) -> list[Case]:
    pairs = groups_per_round(options, model) * 8
    sizes = (1, 4) if options.smoke else (1, 8, 32, 128)
    return [
        Case(model, task, groups=whole_steps(options, pairs // size), documents=size)
        for size in sizes
        if size > 1 or task != "listwise"
    ]


def _rows_sweep(options: argparse.Namespace, model: str, task: str) -> list[Case]:
    sizes = (10, 20) if options.smoke else (1_000, 10_000, 100_000)
    return [Case(model, task, groups=size) for size in sizes]


def _length_sweep(options: argparse.Namespace, model: str, task: str) -> list[Case]:
    sizes = (32, 64) if options.smoke else (128, 512, 2048, 8000)
    budget = 2 * max(sizes) * options.groups_per_step
    return [
        Case(model, task, "fixed", whole_steps(options, budget // (2 * size)), 2, size)
        for size in sizes
    ]


SWEEPS = {"documents": _documents_sweep, "rows": _rows_sweep, "length": _length_sweep}


def start_twice(options: argparse.Namespace, case: Case, folders: dict[str, str]) -> dict[str, Any]:
    """Start-up and memory up to the first step, on a first and on a second start."""
    console.rule(f"{case.name}: start-up")
    files = write_rows(options, case)
    job = training_job(case, job_of(options, case, folders), options.groups_per_step)
    job |= {**files, "max_length": options.max_length or 1024}
    found: dict[str, list[dict[str, Any]]] = {}
    for system in options.systems:
        shutil.rmtree(options.work / "caches", ignore_errors=True)
        for start in ("first", "second"):
            worker = Worker(options, system, job, f"{case.name} {start}")
            worker.start()
            worker.stop()
            found.setdefault(system, []).append(asdict(worker.outcome))
    return {"case": asdict(case), "name": case.name, "starts": found}


# results


def median(values: Sequence[float]) -> float:
    """Median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Write a median with its range."""
    if not values:
        return "-"
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def rows_of(result: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the table's rows of one case."""
    work, systems = result["work"], result["systems"]
    reference = best_rate(result)
    for name, outcome in systems.items():
        if name == MATMUL:
            continue
        if not outcome["rounds"]:
            yield [result["name"], name, f"failed: {outcome['failed']}", *["-"] * 8]
            continue
        rounds = outcome["rounds"]
        seconds = [event["seconds"] for event in rounds]
        real = sum(event["real_tokens"] for event in rounds)
        computed = sum(event["computed_tokens"] for event in rounds)
        flops = work["flops"] / median(seconds)
        unique = work["unique_flops"] / median(seconds)
        peak = outcome["peak_memory"]
        loss = outcome["first_loss"]
        yield [
            result["name"],
            name,
            spread([work["pairs"] / value for value in seconds], ".1f"),
            "1" if name == OURS else spread(result["ratios"].get(name, [])),
            f"{peak / 2**30:.2f}" if peak else "-",
            f"{max(0.0, 1 - real / computed):.0%}" if computed else "-",
            f"{computed / real:.2f}" if real else "-",
            f"{outcome['startup']:.1f}" if outcome["startup"] is not None else "-",
            f"{flops / reference:.0%}" if reference else "-",
            f"{unique / reference:.0%}" if reference else "-",
            f"{loss:.5f}" if loss is not None else "-",
        ]


def best_rate(result: dict[str, Any]) -> float:
    """FLOP/s of the large matrix product, median over the rounds; 0 where it was not measured."""
    rounds = result["systems"].get(MATMUL, {}).get("rounds", [])
    return median([event["pairs"] / event["seconds"] for event in rounds]) if rounds else 0.0


def peak_rate() -> float:
    """The accelerator's FLOP/s by its data sheet; 0 where there is none, or it is not listed."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate for model, rate in PEAK_BF16.items() if model in name), 0.0)


COLUMNS = [
    "case",
    "system",
    "pairs/s",
    "times slower than ours",
    "peak GiB",
    "padding",
    "computed/real tokens",
    "start-up s",
    "useful FLOPs",
    "of unique tokens",
    "first loss (mean probability)",
]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print what was measured."""
    timed = [result for result in results if "systems" in result]
    if timed:
        rows = [row for result in timed for row in rows_of(result)]
        print(markdown(COLUMNS, rows))
        rates = ", ".join(f"{best_rate(result) / 1e9:.0f}" for result in timed)
        print(f"\nThe large matrix product, by case: {rates} GFLOP/s.")
        peak = peak_rate()
        for result in timed:
            for name, outcome in result["systems"].items():
                if peak and outcome["rounds"] and name != MATMUL:
                    seconds = median([event["seconds"] for event in outcome["rounds"]])
                    pairs, unique = (
                        result["work"][kind] / seconds / peak for kind in ("flops", "unique_flops")
                    )
                    print(
                        f"{result['name']}: {name}: {pairs:.1%} of {peak / 1e12:.0f} TFLOP/s, of "
                        f"unique tokens {unique:.1%}."
                    )
                for note in outcome["notes"]:
                    print(f"{result['name']}: {name}: {note}.")
    started = [result for result in results if "starts" in result]
    if started:
        names = ["case", "system", "first start s", "second start s", "peak GiB"]
        rows = []
        for result in started:
            for system, outcomes in result["starts"].items():
                cells = [
                    f"{o['startup']:.1f}" if o["startup"] is not None else f"failed: {o['failed']}"
                    for o in outcomes
                ]
                peaks = [o["peak_memory"] or 0 for o in outcomes]
                rows.append([result["name"], system, *cells, f"{max(peaks) / 2**30:.2f}"])
        print(markdown(names, rows))


def versions(options: argparse.Namespace) -> dict[str, Any]:
    """What is installed in each environment."""
    found = {}
    for worker in dict.fromkeys(SYSTEMS[system][0] for system in options.systems):
        python = environment(options, worker)
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
            capture_output=True,
            text=True,
            check=False,
        )
        packages = json.loads(listed.stdout or "[]")
        found[worker] = {entry["name"]: entry["version"] for entry in packages}
    return found


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    """When, where and with what the numbers were made."""
    return machine.surroundings("speed.py", options.threads) | {
        "versions": versions(options) | {"python": platform.python_version()},
    }


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The cases that the command line names."""
    found = []
    for name in options.cases:
        model, _, task = name.partition(":")
        if options.sweep:
            found += SWEEPS[options.sweep](options, model, task)
            continue
        documents = 8
        groups = groups_per_round(options, model)
        if task == "rank":
            documents = 12 if options.smoke else RANKED_DOCUMENTS
            groups = max(1, groups // 10)
        found.append(Case(model, task, groups=groups, documents=documents))
        if options.medquad and task != "rank":
            found.append(Case(model, task, "medquad", groups, 5))
    return found


def main() -> int:
    """Prepare, measure, print, write; return the exit code."""
    options = parse()
    options.work = options.work.resolve()
    try:
        (options.work / "models").mkdir(parents=True, exist_ok=True)
        cases = cases_of(options)
        models = {case.model: make_model(options, case.model) for case in cases}
        for worker in {SYSTEMS[system][0] for system in options.systems}:
            environment(options, worker)
        if options.prepare_only:
            return 0
        about = surroundings(options)
        results: list[dict[str, Any]] = []
        for case in cases:
            run = start_twice if options.sweep == "rows" else run_case
            results.append(run(options, case, models[case.model]))
            if options.output is not None:
                # after every case, so that an interruption loses little
                text = json.dumps({**about, "results": results}, indent=1)
                options.output.write_text(text + "\n", encoding="utf-8")
        show(results)
    except (SpeedError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
