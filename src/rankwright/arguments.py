"""Typed arguments: command line, YAML file, environment and defaults, read once and validated.

Order of precedence: command line, then the YAML file, then the environment, then the defaults.
Names are flat and the ones users already type: those of ``transformers.TrainingArguments`` and
ms-swift's where they exist.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import difflib
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rankwright.errors import ConfigError
from rankwright.files import expanded

if TYPE_CHECKING:
    from rankwright.objective import Objective
    from rankwright.templates import Passages

logger = logging.getLogger(__name__)

T = TypeVar("T")

# name of the variable -> (argument, the loss it speaks of; None for all)
ENVIRONMENT: dict[str, tuple[str, str | None]] = {
    "GENERATIVE_RERANKER_POSITIVE_TOKEN": ("positive_token", None),
    "GENERATIVE_RERANKER_NEGATIVE_TOKEN": ("negative_token", None),
    "LISTWISE_RERANKER_TEMPERATURE": ("temperature", "listwise"),
    "LISTWISE_RERANKER_MIN_GROUP_SIZE": ("min_group_size", "listwise"),
    "LISTWISE_GENERATIVE_RERANKER_TEMPERATURE": ("temperature", "listwise_generative"),
    "LISTWISE_GENERATIVE_RERANKER_MIN_GROUP_SIZE": ("min_group_size", "listwise_generative"),
    "MAX_POSITIVE_SAMPLES": ("max_positive_samples", None),
    "MAX_NEGATIVE_SAMPLES": ("max_negative_samples", None),
    "USE_HF": ("use_hf", None),
}

# ms-swift's and older names -> ours
ALIASES: dict[str, str] = {
    "train_type": "tuner_type",
    "sft_type": "tuner_type",
    "model_revision": "revision",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "overwrite_output_dir": "overwrite",
}

# ms-swift's arguments that change nothing here -> why
WITHOUT_EFFECT: dict[str, str] = {
    "padding_free": "batches are always packed",
    "packing": "batches are always packed",
    "num_labels": "a reranker has one logit",
    "label_names": "labels travel with the rows",
    "truncation_strategy": "only the document is cut, then the query",
    "model_type": "the architecture is read from the checkpoint",
    "padding_side": "nothing is padded",
    "quant_method": "weights in four bits are those of bitsandbytes",
    "remove_unused_columns": "rows are read by their format",
    "use_chat_template": "the template belongs to the checkpoint",
    "dataset_shuffle": "groups are shuffled every epoch",
    "train_sampling_strategy": "groups are shuffled every epoch",
    "dataloader_in_order": "batches come in their order",
    "dataloader_multiprocessing_context": "workers start as is usual on the system",
    "include_num_input_tokens_seen": "tokens a second stand in the log",
    "bf16_full_eval": "validation computes as training does",
    "fp16_full_eval": "validation computes as training does",
}

TASK_TYPES = {
    "reranker": "classification",
    "classification": "classification",
    "generative_reranker": "generative",
    "generative": "generative",
}


# a field() with its help; ruff does not see through it where the default is a list (RUF009)
def _option(default: Any, text: str, **metadata: Any) -> Any:
    metadata["help"] = text
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    """The model and how a pair is written for it."""

    model: str = _option("", "local folder, or id on a hub (owner/name)")
    task_type: str | None = _option(
        None, "reranker (classification head) or generative_reranker; default: read off the model"
    )
    use_hf: bool = _option(True, "ids are on Hugging Face; false: on ModelScope [USE_HF]")
    revision: str | None = _option(None, "branch, tag or commit on the hub")
    torch_dtype: str = _option(
        "float32",
        "float32, bfloat16, float16 or auto (the checkpoint's own); full training keeps float32 "
        "weights, computes in bfloat16 or float16, and takes auto for float32",
    )
    trust_remote_code: bool = _option(False, "run code that the model's folder brings along")
    max_length: int | None = _option(
        None, "most tokens of a pair; default: the model's limit, at most 1024"
    )
    template: str | None = _option(
        None,
        "prompt: pair, qwen3, chat, mxbai-v2, bge-gemma, or a YAML or JSON file of prefix, suffix, "
        "instruction, positive_token, negative_token; default: the model's own",
    )
    template_prefix: str | None = _option(
        None, "text before the document, with {query} and optionally {instruction}"
    )
    template_suffix: str | None = _option(None, "text behind the document")
    instruction: str | None = _option(
        None,
        "task description, for models whose template has {instruction}; a row's or dataset's own "
        "wins; default: the model's rankwright.json, else the template's, which is 'Given a web "
        "search query, retrieve relevant passages that answer the query'",
    )
    positive_token: str | None = _option(
        None, "token that stands for relevant [GENERATIVE_RERANKER_POSITIVE_TOKEN, yes]"
    )
    negative_token: str | None = _option(
        None, "token that stands for irrelevant [GENERATIVE_RERANKER_NEGATIVE_TOKEN, no]"
    )
    dropout: float | None = _option(None, "dropout of every layer; default: the model's own")
    packed: bool = _option(True, "false: padded rows, through the model's own attention")
    attn_impl: str = _option(
        "auto",
        "attention back end: auto, varlen, flash_attention_2, flash_attention_3, cpu, sdpa, flex",
    )


@dataclass
class PassageArguments:
    """How documents that do not fit are read."""

    passages: str | None = _option(
        None,
        "read a document longer than --max_length leaves room for in passages; its score: max (the "
        "best passage), or mean3 (the mean of the best three); default: cut it",
    )
    passage_tokens: int | None = _option(
        None, "tokens of a passage; default: as many as fit behind the query"
    )
    passage_overlap: int | None = _option(
        None, "tokens that a passage shares with the one before it; default: an eighth"
    )
    max_passages: int | None = _option(
        None, "most passages of a document, from its start; what is left is counted as cut"
    )


@dataclass
class DataArguments:
    """The rows."""

    dataset: list[str] = _option(  # noqa: RUF009
        [], "files, folders or hub ids; a.jsonl#5000 takes 5000 rows of it"
    )
    instructions: list[str] = _option(  # noqa: RUF009
        [],
        "task description of each dataset's rows, one text for each in their order, '' for none; a "
        "row's own wins",
    )
    val_dataset: list[str] = _option([], "rows to validate on")  # noqa: RUF009
    val_instructions: list[str] = _option(  # noqa: RUF009
        [], "the same for each --val_dataset"
    )
    split_dataset_ratio: float = _option(
        0.0, "share of the rows to validate on, split off by query"
    )
    data_format: str | None = _option(None, "name of the row layout; default: by columns")
    max_positive_samples: int = _option(1, "positives of a query an epoch [MAX_POSITIVE_SAMPLES]")
    max_negative_samples: int = _option(7, "negatives of each positive [MAX_NEGATIVE_SAMPLES]")
    in_batch_negatives: int = _option(
        0,
        "documents of other queries of the batch that each group takes as further negatives; each "
        "is a pair more to compute: 8 documents and 8 of these take about twice the time",
    )
    group: str = _option("positive", "positive: a positive with its negatives; all: the whole row")
    batch_tokens: int | None = _option(
        None, "tokens in a batch, in place of --per_device_train_batch_size"
    )
    chunk_tokens: int | None = _option(
        None,
        "most tokens computed at a time: a larger batch is computed group by group, a larger group "
        "in chunks, twice (once where the loss takes each document by itself), with the same "
        "gradients in less memory; default: --batch_tokens",
    )
    share_prefix: bool = _option(
        True, "decoders: compute the prompt and query of a group once (exact)"
    )
    eval_batch_tokens: int | None = _option(
        None, "tokens in a batch of evaluation; default: 2048 on a CPU, 16384 elsewhere"
    )
    lazy_tokenize: bool | None = _option(
        None,
        "true: tokenise while training, only what is sampled; false: everything once, ahead, into "
        "the cache; default: ahead with --batch_tokens, which needs the lengths",
    )
    dataset_num_proc: int = _option(1, "processes that tokenise ahead")
    cache_dir: str | None = _option(
        None,
        "folder of rows and tokens kept between runs; default: $RANKWRIGHT_CACHE, else rankwright "
        "in $XDG_CACHE_HOME or ~/.cache",
    )
    load_from_cache_file: bool = _option(True, "false: read and tokenise the rows anew")


_ON_BAD_ROW = (
    "stop: a row that cannot be read ends the command; skip: it is left out, counted, and written "
    "to a .refused.jsonl beside the output with its line and the reason"
)
_MAX_BAD_ROWS = (
    "rows that may be skipped, one of several lines counted with all of them; one more ends the "
    "command"
)


@dataclass
class BadRowArguments:
    """Rows that cannot be read."""

    on_bad_row: str = _option("stop", _ON_BAD_ROW)
    max_bad_rows: int = _option(100, _MAX_BAD_ROWS)


@dataclass
class LossArguments:
    """The loss."""

    loss_type: str = _option(
        "listwise",
        "pointwise, listwise, listwise_generative, listnet, listmle, ranknet, lambda_loss, "
        "approx_ndcg, or, from a teacher's scores, kl, margin_mse, adr_mse; ms-swift's names are "
        "aliases. Several with weights: listwise+0.1*pointwise, where options of one alone stand "
        "in brackets: 'listwise(temperature=0.5)+kl(temperature=2)'",
    )
    temperature: float = _option(
        1.0,
        "what scores are divided by in listwise, listwise_generative, listnet, kl, approx_ndcg and "
        "adr_mse [LISTWISE_RERANKER_TEMPERATURE]",
    )
    teacher_temperature: float | None = _option(
        None, "what the teacher's scores are divided by in kl; default: --temperature"
    )
    min_group_size: int = _option(
        2,
        "documents a group needs in listwise, listwise_generative, listnet and kl "
        "[LISTWISE_RERANKER_MIN_GROUP_SIZE]",
    )
    pos_weight: float = _option(1.0, "weight of positives in the pointwise loss")
    sigma: float = _option(1.0, "scale of score differences in ranknet and lambda_loss")
    lambda_mu: float = _option(
        10.0, "weight of lambda_loss' NDCG-Loss2 beside LambdaRank's; 0: LambdaRank alone"
    )
    ndcg_cutoff: int | None = _option(
        None, "k of the NDCG@k that lambda_loss approaches; default: the whole list"
    )


@dataclass
class TunerArguments:
    """Full training or adapters."""

    tuner_type: str = _option("full", "full or lora")
    lora_rank: int = _option(8, "rank of the adapters")
    lora_alpha: int = _option(32, "scale of the adapters")
    lora_dropout: float = _option(0.05, "dropout before the adapters")
    target_modules: list[str] = _option(["all-linear"], "modules to adapt")  # noqa: RUF009
    use_dora: bool = _option(False, "decompose weights into magnitude and direction (DoRA)")
    quant_bits: int | None = _option(None, "4: load frozen weights in four bits (bitsandbytes)")
    merge_lora: bool = _option(True, "the final folder holds merged weights (and the adapter)")


@dataclass
class RunArguments:
    """The run as a whole."""

    metrics: list[str] = _option(["ndcg@10", "mrr@10", "map"], "metrics of evaluation")  # noqa: RUF009
    early_stopping_patience: int | None = _option(
        None, "evaluations without improvement after which the run ends"
    )
    calibrate: str = _option(
        "none",
        "platt or temperature: fit probabilities to the validation rows at the end, and save them "
        "with the model; rankwright calibrate does it later, with thresholds",
    )
    on_nan: str = _option(
        "stop",
        "a step whose scores, loss or gradients are NaN or infinite: stop ends the run, skip "
        "leaves the step out and goes on; either way its queries are named",
    )
    max_nan_steps: int = _option(10, "steps that --on_nan skip leaves out at most")
    resume: bool = _option(False, "go on from the last checkpoint in --output_dir")
    overwrite: bool = _option(False, "replace the run that --output_dir holds")


RETRIEVERS = ("bm25", "dense")
SAMPLINGS = ("top", "random")


@dataclass
class MiningArguments:
    """Queries in, queries with hard negatives out."""

    queries: list[str] = _option(  # noqa: RUF009
        [], "rows with positives (files, folders, hub ids; any row format), or a BEIR folder"
    )
    corpus: str | None = _option(
        None,
        "documents: rows of text with _id or id and title, or a BEIR folder; default: that of the "
        "BEIR folder in --queries, else all documents of the rows",
    )
    output: str = _option("", "rows to write: .jsonl, .parquet or .arrow")
    method: list[str] = _option(  # noqa: RUF009
        ["bm25"], "bm25, dense, or both: their lists are then fused by reciprocal rank (k = 60)"
    )
    number: int = _option(7, "negatives of a row")
    range_min: int = _option(
        0, "leave out the so many best documents of those that margins and score limits leave"
    )
    range_max: int | None = _option(
        None,
        "look at the so many best documents that are no positives; default: range_min + 10 x "
        "number, at least 100 beyond range_min",
    )
    absolute_margin: float | None = _option(
        None, "leave out what scores above the lowest positive's score minus this"
    )
    relative_margin: float | None = _option(
        None, "leave out what scores above the lowest positive's score minus this share of it"
    )
    max_score: float | None = _option(None, "leave out what scores above this")
    min_score: float | None = _option(None, "leave out what scores below this")
    sampling: str = _option("top", "top: the best that are left; random: any of them")
    seed: int = _option(42, "of --sampling random")
    teacher: str | None = _option(
        None, "reranker that scores positives and candidates and filters by its probability"
    )
    teacher_max: float | None = _option(
        None, "leave out what the teacher gives a probability above this"
    )
    teacher_absolute_margin: float | None = _option(
        None, "leave out probabilities above the lowest positive's minus this"
    )
    teacher_relative_margin: float | None = _option(
        None,
        "leave out probabilities above the lowest positive's minus this share of it; default 0.05 "
        "(TopK-PercPos, 95 %) where no other teacher limit is given",
    )
    teacher_max_length: int | None = _option(
        None, "most tokens of a pair for the teacher; default: its own"
    )
    keep_negatives: bool = _option(
        False, "keep the negatives of the rows beside the mined ones; false: replace them"
    )
    candidates: int | None = _option(
        None,
        "write the so many best documents of every query as found, labelled, in place of sampled "
        "negatives: rows for rankwright evaluate",
    )
    bm25_stopwords: str = _option(
        "en",
        "words that BM25 leaves out: none, or a list of bm25s by language (en, de, fr, ...)",
    )
    bm25_stemmer: str = _option("s", "s: takes off the English plural s (Harman 1991); none")
    bm25_k1: float = _option(1.5, "BM25: how soon repeated words stop to count")
    bm25_b: float = _option(0.75, "BM25: how much long documents are held back, 0 to 1")
    dense_model: str | None = _option(
        None, "sentence-transformers model of --method dense: folder or hub id"
    )
    query_prompt: str | None = _option(
        None, "text before every query for the dense model; default: its own"
    )
    document_prompt: str | None = _option(
        None, "text before every document for the dense model; default: its own"
    )
    dense_batch_size: int = _option(32, "texts that the dense model embeds at a time")
    work_dir: str | None = _option(
        None,
        "folder for finished pieces, kept for further runs; default: OUTPUT.part, from which a run "
        "that was stopped goes on, removed at the end",
    )
    data_format: str | None = _option(None, "row format; default: detected")
    split: str | None = _option(None, "which files of a folder or hub dataset; default: train")
    on_bad_row: str = _option("stop", _ON_BAD_ROW)
    max_bad_rows: int = _option(100, _MAX_BAD_ROWS)
    use_hf: bool = _option(True, "ids are on Hugging Face; false: on ModelScope")


def check_mining_arguments(given: MiningArguments) -> None:
    """Say what does not fit.

    Raises:
        ConfigError: a value is out of its range, or two do not go together.
    """
    if not given.queries:
        raise ConfigError("--queries is missing; give rows with positives, or a BEIR folder")
    if not given.output.endswith((".jsonl", ".parquet", ".arrow")):
        raise ConfigError(
            f"--output {given.output!r} has an ending that is not known; it must be .jsonl, "
            ".parquet or .arrow"
        )
    for name, allowed in (("method", RETRIEVERS), ("sampling", SAMPLINGS)):
        value = getattr(given, name)
        values = value if isinstance(value, list) else [value]
        unknown = [one for one in values if one not in allowed]
        if unknown or not values or len(set(values)) < len(values):
            shown = " ".join(unknown or values)
            raise ConfigError(f"--{name} {shown!r} is not known; choose from {', '.join(allowed)}")
    whole = {"number": 1, "range_min": 0, "range_max": 1, "candidates": 1, "dense_batch_size": 1}
    for name, least in whole.items():
        value = getattr(given, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value} is less than {least}")
    if given.range_max is not None and given.range_max < given.range_min + given.number:
        raise ConfigError(
            f"--range_max {given.range_max} leaves fewer than --number {given.number} documents "
            f"behind --range_min {given.range_min}; raise it"
        )
    for name in ("max_score", "min_score", "absolute_margin", "relative_margin", "bm25_k1"):
        value = getattr(given, name)
        if value is not None and (not math.isfinite(value) or (name == "bm25_k1" and value < 0)):
            raise ConfigError(f"--{name} {value} is no number that scores can be compared with")
    shares = ("teacher_max", "teacher_absolute_margin", "teacher_relative_margin", "bm25_b")
    for name in shares:
        value = getattr(given, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name} {value} is not between 0 and 1")
        if name.startswith("teacher") and value is not None and given.teacher is None:
            raise ConfigError(f"--{name} needs --teacher; name the reranker")
    if given.bm25_stemmer not in ("s", "none"):
        raise ConfigError(f"--bm25_stemmer {given.bm25_stemmer!r} is not known; give s or none")
    if ("dense" in given.method) != (given.dense_model is not None):
        raise ConfigError("--method dense and --dense_model belong together; give both or neither")
    if given.candidates is not None:
        names = ("range_max", "absolute_margin", "relative_margin", "max_score", "min_score")
        used = [name for name in names if getattr(given, name) is not None]
        used += [name for name in shares[:3] if getattr(given, name) is not None]
        used += [name for name in ("range_min", "keep_negatives") if getattr(given, name)]
        used += ["sampling"] if given.sampling != "top" else []
        if used:
            raise ConfigError(
                f"--candidates writes lists as they were found, and --{used[0]} would change them; "
                "leave one of them out"
            )


# DeepSpeed's stages by ms-swift's names; "auto" is filled in from the arguments by transformers
DEEPSPEED: dict[str, dict[str, Any]] = {
    "zero2": {
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": "auto",
            "allgather_partitions": True,
        },
    },
    "zero3": {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
        },
    },
}


GROUPS = (
    ModelArguments,
    DataArguments,
    LossArguments,
    TunerArguments,
    RunArguments,
    BadRowArguments,
)

# what transformers' defaults are replaced with, where the user says nothing
TRAINING_DEFAULTS: dict[str, Any] = {
    "output_dir": "output",
    "num_train_epochs": 1.0,
    "learning_rate": 2e-5,
    "warmup_steps": 0.1,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_total_limit": 2,
    "seed": 42,
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def unknown_argument(name: str, known: Sequence[str]) -> ConfigError:
    """The error for an unknown argument, with the nearest known one."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean --{near[0]}?" if near else "; see --help for all arguments"
    return ConfigError(f"--{name} is not an argument{hint}")


def build_parser(prog: str, types: Sequence[type]) -> argparse.ArgumentParser:
    """Build a parser for dataclasses; what is not given is absent from its result."""
    from transformers import HfArgumentParser

    kind = type("_HfParser", (_Parser, HfArgumentParser), {})
    parser: argparse.ArgumentParser = kind(
        list(types), prog=prog, add_help=False, allow_abbrev=False
    )
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return parser


def parse(
    prog: str,
    types: Sequence[type],
    argv: Sequence[str],
    *,
    recipe: bool = False,
) -> dict[str, Any]:
    """Parse a command line into the arguments that were given.

    Args:
        prog: name of the program, for messages.
        types: dataclasses whose fields are the arguments.
        argv: the words.
        recipe: whether a YAML file may stand first.

    Raises:
        ConfigError: an unknown or malformed argument.
    """
    words = list(argv)
    names = [f.name for t in types for f in dataclasses.fields(t)]
    parser = build_parser(prog, types)
    known = [*names, *(alias for alias, name in ALIASES.items() if name in names)]
    recipe_words: list[str] = []
    if recipe and words and not words[0].startswith("-"):
        path = Path(words.pop(0))
        for line, given in _recipe_lines(path):
            renamed = _rename(given)
            try:
                _parsed(parser, renamed, known)
            except ConfigError as error:
                raise ConfigError(f"{path}:{line}: {error}") from error
            recipe_words += renamed
    return _parsed(parser, [*recipe_words, *_rename(words)], known)


def _parsed(
    parser: argparse.ArgumentParser, words: Sequence[str], known: Sequence[str]
) -> dict[str, Any]:
    given, rest = parser.parse_known_args(words)
    for word in rest:
        if word.startswith("--"):
            raise unknown_argument(word[2:].split("=")[0], known)
    if rest:
        raise ConfigError(f"{rest[0]!r} stands alone; arguments begin with --")
    return vars(given)


def _without_effect(name: str) -> bool:
    """Whether an argument changes nothing here; if so, the reason is logged."""
    if name in WITHOUT_EFFECT:
        logger.info("--%s has no effect: %s", name, WITHOUT_EFFECT[name])
    return name in WITHOUT_EFFECT


def _rename(words: list[str]) -> list[str]:
    """Resolve aliases and dashes, and take out the arguments without effect."""
    result: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--"):
            result.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if _without_effect(name):
            while position < len(words) and not words[position].startswith("--"):
                position += 1
            continue
        result.append(f"--{ALIASES.get(name, name)}{equals}{value}")
    return result


def _recipe_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a YAML file of flat names; yields the line of each name and its command line words."""
    import yaml

    loader = None
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} holds no names; write one 'name: value' a line")
        entries = [
            (key.start_mark.line + 1, str(key.value), loader.construct_object(value, deep=True))
            for key, value in root.value
        ]
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; give a YAML file or arguments") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a YAML file") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply; write one 'name: value' a line") from error
    # a ValueError is such as the 45th of a month, or a number of ten thousand digits
    except (yaml.YAMLError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        line = f":{place.line + 1}" if place else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{line} is not YAML: {problem}; correct it") from error
    finally:
        if loader is not None:
            loader.dispose()
    seen: dict[str, int] = {}
    for number, name, value in entries:
        if name in seen:
            raise ConfigError(f"{path}:{number}: {name} stands in line {seen[name]} too; drop one")
        seen[name] = number
        if "\0" in str(value):
            raise ConfigError(f"{path}:{number}: {name} holds a null byte; take it out")
        if value is not None:
            yield number, _words(name, value)


def _words(name: str, value: Any) -> list[str]:
    """Write one entry of a recipe as command line words."""
    if isinstance(value, list):
        return [f"--{name}", *(_word(entry) for entry in value)]
    return [f"--{name}={_word(value)}"]


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, default=str)  # YAML knows dates
    return str(value).lower() if isinstance(value, bool) else str(value)


def from_environment(environ: Mapping[str, str], losses: Collection[str]) -> dict[str, Any]:
    """Read the documented environment variables that speak of these losses.

    Args:
        environ: the environment.
        losses: resolved names.

    Raises:
        ConfigError: a value is malformed; the message names the variable.
    """
    from rankwright.hub import parse_use_hf

    convert: dict[str, Callable[[str], Any]] = {
        "temperature": float,
        "min_group_size": int,
        "max_positive_samples": int,
        "max_negative_samples": int,
        "use_hf": parse_use_hf,
    }
    values: dict[str, Any] = {}
    for variable, (name, only) in ENVIRONMENT.items():
        text = environ.get(variable)
        # a variable that is set to nothing counts as unset, as shells write it
        if text is None or not text.strip() or (only is not None and only not in losses):
            continue
        try:
            values[name] = convert.get(name, str)(text)
        except ValueError as error:
            raise ConfigError(
                f"{variable}={text!r} is not a number; correct or unset the variable"
            ) from error
        except ConfigError as error:
            raise ConfigError(f"{variable}: {error}") from error
    return values


def without_tokens(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's values without its tokens, where a template is given that has its own."""
    names = ("positive_token", "negative_token") if given.get("template") else ()
    return {name: value for name, value in values.items() if name not in names}


def cache_folder(data: DataArguments, environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder of what is kept between runs; None where there is no home for it.

    It is no part of the saved configuration unless it was given: it says nothing of the run.

    Args:
        data: whose ``cache_dir`` wins.
        environ: the environment, default the process's.
    """
    environ = os.environ if environ is None else environ
    if named := data.cache_dir or environ.get("RANKWRIGHT_CACHE"):
        return expanded(named)
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base) / "rankwright"
    try:
        return Path.home() / ".cache" / "rankwright"
    except RuntimeError:
        return None


def process_numbers(environ: Mapping[str, str] | None = None) -> tuple[int, int, int]:
    """Number of this process, of all, and on this machine, as torchrun and accelerate say them.

    Args:
        environ: the environment, default the process's.
    """
    environ = os.environ if environ is None else environ
    if not environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR"}:
        return 0, 1, 0
    return int(environ["RANK"]), int(environ["WORLD_SIZE"]), int(environ.get("LOCAL_RANK", 0))


def check_alone(command: str) -> None:
    """Refuse several processes for what none of them would share.

    Raises:
        ConfigError: a launcher has started several.
    """
    if (world := process_numbers()[1]) > 1:
        raise ConfigError(
            f"{command} runs in one process, and {world} were started (WORLD_SIZE); start it "
            "without torchrun or accelerate launch, or unset WORLD_SIZE"
        )


def check_read_by_all(names: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    """Refuse a pipe of rows where several processes would each read a part of it.

    Args:
        names: files, folders or hub ids.
        environ: the environment, default the process's.

    Raises:
        ConfigError: one of them is there, and is neither a file nor a folder.
    """
    if process_numbers(environ)[1] == 1:
        return
    for name in names:
        path = expanded(name)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(
                f"{name} is no file, and several processes read its rows, which come down a pipe "
                "once; save them to a file, or start one process"
            )


def check_output_file(
    flag: str,
    output: str,
    files: Sequence[Path],
    *,
    beside: Sequence[Path] = (),
    piece_by_piece: bool = False,
) -> None:
    """Refuse a file of results that is a folder, or that would replace what is read.

    Args:
        flag: the argument's name.
        output: its value.
        files: what is read.
        beside: what else is written, under names made of its own.
        piece_by_piece: it grows beside its place, from where a run that was stopped goes on, so it
            can be no pipe and no device.

    Raises:
        ConfigError: it is one.
    """
    path = Path(output)
    if path.is_dir() or (piece_by_piece and path.exists() and not path.is_file()):
        kind = "a folder" if path.is_dir() else "no file"
        raise ConfigError(f"--{flag} {output!r} is {kind}; name a file")
    for written in (path, *beside):
        if written.exists() and any(f.exists() and f.samefile(written) for f in files):
            what = "" if written is path else f": {written}, which is written beside it,"
            raise ConfigError(f"--{flag} {output}{what} is a file that is read; name another file")


def load_options(model: ModelArguments) -> dict[str, Any]:
    """What ``ModelArguments`` say to the loader, under its names."""
    return {
        "kind": TASK_TYPES[model.task_type] if model.task_type else None,
        "dtype": model.torch_dtype,
        **{
            name: getattr(model, name)
            for name in (
                "use_hf",
                "revision",
                "max_length",
                "template",
                "template_prefix",
                "template_suffix",
                "instruction",
                "positive_token",
                "negative_token",
                "trust_remote_code",
                "dropout",
                "packed",
                "attn_impl",
            )
        },
    }


def find_passages(options: PassageArguments) -> Passages | None:
    """How documents are cut into passages; None where they are not.

    Raises:
        ConfigError: a value is out of its range, or stands without ``--passages``.
    """
    from rankwright.templates import Passages

    sizes = (options.passage_tokens, options.passage_overlap, options.max_passages)
    if options.passages is not None:
        return Passages(sizes[0], sizes[1], options.passages, sizes[2])
    for name, value in zip(
        ("passage_tokens", "passage_overlap", "max_passages"), sizes, strict=True
    ):
        if value is not None:
            raise ConfigError(f"--{name} {value} needs --passages; give max, or mean3")
    return None


@dataclass
class TrainArguments:
    """Everything a training run was told, resolved.

    Attributes:
        model: the model.
        data: the rows.
        loss: the loss; ``loss_type`` is what ``parse_objective`` reads, its aliases resolved.
        tuner: full training or adapters.
        run: the run.
        training: keyword arguments for ``transformers.TrainingArguments``.
        bad_rows: what is done about rows that cannot be read.
    """

    model: ModelArguments
    data: DataArguments
    loss: LossArguments
    tuner: TunerArguments
    run: RunArguments
    training: dict[str, Any]
    bad_rows: BadRowArguments = field(default_factory=BadRowArguments)

    def flat(self) -> dict[str, Any]:
        """All arguments under their flat names, to be saved with the run; secrets are left out."""
        values: dict[str, Any] = {}
        for part in (self.model, self.data, self.loss, self.tuner, self.run, self.bad_rows):
            values.update(dataclasses.asdict(part))
        values.update(self.training)
        flat: dict[str, Any] = without_secrets(values)
        return flat


def without_secrets(value: Any) -> Any:
    """Leave out what may be a key or a password, however deep (DeepSpeed's configuration)."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            return without_secrets(json.loads(value))
    if isinstance(value, dict):
        return {
            name: without_secrets(inner)
            for name, inner in value.items()
            if not str(name).endswith(("hub_token", "api_key", "secret", "password"))
        }
    if isinstance(value, list):
        return [without_secrets(inner) for inner in value]
    return value


def resolve(given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> TrainArguments:
    """Turn what was given into the arguments of a run.

    Args:
        given: flat names and values, from ``parse`` or from Python.
        environ: the environment, default the process's.

    Raises:
        ConfigError: an unknown name, or a value that is not allowed.
    """
    from transformers import TrainingArguments

    from rankwright.objective import parse_objective

    given = {
        ALIASES.get(name, name): value for name, value in given.items() if not _without_effect(name)
    }
    training_names = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
    own = [f.name for group in GROUPS for f in dataclasses.fields(group)]
    for name in given:
        if name not in own and name not in training_names:
            raise unknown_argument(name, [*own, *training_names, *ALIASES])
    _check_types(given)
    environ = os.environ if environ is None else environ
    objective = parse_objective(given.get("loss_type", LossArguments.loss_type))
    _check_environment(environ, objective, given)
    values = {
        **without_tokens(from_environment(environ, objective.names), given),
        **given,
        "loss_type": str(objective),
    }
    arguments = TrainArguments(
        _filled(ModelArguments, values),
        _filled(DataArguments, values),
        _filled(LossArguments, values),
        _filled(TunerArguments, values),
        _filled(RunArguments, values),
        {**TRAINING_DEFAULTS, **{n: values[n] for n in training_names if n in values}},
        _filled(BadRowArguments, values),
    )
    _check(arguments, given)
    check_read_by_all([*arguments.data.dataset, *arguments.data.val_dataset], environ)
    return arguments


def _check_environment(
    environ: Mapping[str, str], objective: Objective, given: Mapping[str, Any]
) -> None:
    """Refuse a variable of one loss where another part of a combination has the same option."""
    for variable, (name, only) in ENVIRONMENT.items():
        if only not in objective.names or not environ.get(variable, "").strip() or name in given:
            continue
        others = [
            part.name
            for part in objective.parts
            if part.name != only and name in part.loss.options and name not in part.options
        ]
        if others:
            raise ConfigError(
                f"{variable} speaks of {only} alone, and {others[0]} has a {name}, too; unset the "
                f"variable and give --{name}, or each its own: {only}({name}=...)"
            )


def _check_types(given: Mapping[str, Any]) -> None:
    """Refuse a value of another type than its default's, as Python callers may give."""
    kinds: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "str": (str, os.PathLike),
    }
    for group in GROUPS:
        for f in dataclasses.fields(group):
            value = given.get(f.name)
            base = str(f.type).removesuffix(" | None")
            if value is None or base not in kinds:
                continue
            if not isinstance(value, kinds[base]) or (base != "bool" and isinstance(value, bool)):
                raise ConfigError(f"{f.name}={value!r} is {type(value).__name__}; give {base}")


def _filled(kind: type[T], values: Mapping[str, Any]) -> T:
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: values[name] for name in names if name in values})


def _check(arguments: TrainArguments, given: Mapping[str, Any]) -> None:
    model, data = arguments.model, arguments.data
    for name in ("dataset", "val_dataset"):
        value = getattr(data, name)
        # one path, from Python; it may hold spaces
        names = [value] if isinstance(value, (str, os.PathLike)) else value
        setattr(data, name, [os.fspath(entry) for entry in names])
    for name in ("instructions", "val_instructions"):
        value = getattr(data, name)
        texts = [value] if isinstance(value, str) else list(value)
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{name}={value!r} holds something else than texts; give texts")
        setattr(data, name, texts)
    if data.val_instructions and not data.val_dataset:
        raise ConfigError(
            "--val_instructions needs --val_dataset; rows that are split off keep the instruction "
            "of --instructions"
        )
    for part, name in ((arguments.tuner, "target_modules"), (arguments.run, "metrics")):
        value = getattr(part, name)
        words = value if isinstance(value, str) else " ".join(value)
        setattr(part, name, words.replace(",", " ").split())
    if not data.dataset:
        raise ConfigError("--dataset is missing; give files, folders or ids of rows to train on")
    check_model_arguments(model)
    _choice("on_bad_row", arguments.bad_rows.on_bad_row, ["stop", "skip"])
    _choice("group", data.group, ["positive", "all"])
    _choice("tuner_type", arguments.tuner.tuner_type, ["full", "lora"])
    if not 0 <= data.split_dataset_ratio < 1:
        raise ConfigError(f"--split_dataset_ratio {data.split_dataset_ratio} is not in [0, 1)")
    if data.val_dataset and data.split_dataset_ratio:
        raise ConfigError("--val_dataset and --split_dataset_ratio exclude each other; give one")
    _choice("calibrate", arguments.run.calibrate, ["none", "platt", "temperature"])
    if arguments.run.calibrate != "none" and not (data.val_dataset or data.split_dataset_ratio):
        raise ConfigError(
            "--calibrate needs validation rows; give --val_dataset or --split_dataset_ratio"
        )
    _choice("on_nan", arguments.run.on_nan, ["stop", "skip"])
    # its default stands in the settings that a run saved
    if arguments.run.max_nan_steps != RunArguments.max_nan_steps and arguments.run.on_nan == "stop":
        raise ConfigError("--max_nan_steps needs --on_nan skip; add it, or leave this out")
    _check_loss(arguments)
    for name, value, least in (
        ("max_positive_samples", data.max_positive_samples, 1),
        ("max_negative_samples", data.max_negative_samples, 0),
        ("in_batch_negatives", data.in_batch_negatives, 0),
        ("batch_tokens", data.batch_tokens, 1),
        ("chunk_tokens", data.chunk_tokens, 1),
        ("max_length", model.max_length, 1),
        ("eval_batch_tokens", data.eval_batch_tokens, 1),
        ("dataset_num_proc", data.dataset_num_proc, 1),
        ("max_bad_rows", arguments.bad_rows.max_bad_rows, 1),
        ("lora_rank", arguments.tuner.lora_rank, 1),
        ("max_nan_steps", arguments.run.max_nan_steps, 1),
        ("per_device_train_batch_size", arguments.training.get("per_device_train_batch_size"), 1),
        ("gradient_accumulation_steps", arguments.training.get("gradient_accumulation_steps"), 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value} is less than {least}")
    _check_numbers(arguments.training)
    if arguments.training["num_train_epochs"] <= 0:
        raise ConfigError(
            f"--num_train_epochs {arguments.training['num_train_epochs']} is not above 0"
        )
    if data.batch_tokens is not None and "per_device_train_batch_size" in given:
        raise ConfigError(
            "--batch_tokens and --per_device_train_batch_size exclude each other; give one"
        )
    if data.lazy_tokenize and data.batch_tokens is not None:
        raise ConfigError(
            "--lazy_tokenize true and --batch_tokens exclude each other, since batches of tokens "
            "need the lengths ahead; give one"
        )
    if arguments.run.resume and arguments.run.overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; give one")
    if arguments.tuner.quant_bits is not None and arguments.tuner.tuner_type == "full":
        raise ConfigError(
            "--quant_bits freezes the weights, so there is nothing to train; add --tuner_type lora"
        )
    _resolve_deepspeed(arguments)
    if arguments.tuner.tuner_type == "lora" and "learning_rate" not in given:
        # adapters start at zero and train a fraction of the weights; ms-swift's default is the same
        arguments.training["learning_rate"] = 1e-4
    _master_weights(arguments)


# of transformers' arguments: the least, and what they must stay below
_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, math.inf),
    "seed": (0, 2**32),
    "data_seed": (0, 2**32),
    "dataloader_num_workers": (0, math.inf),
}


def _check_numbers(training: Mapping[str, Any]) -> None:
    """Refuse numbers that training would only fail of later."""
    for name, value in training.items():
        # without a limit, a norm is logged and nothing is cut
        if name == "max_grad_norm" and value == math.inf:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name} {value} is not finite; give a number")
        least, below = _RANGES.get(name, (-math.inf, math.inf))
        if isinstance(value, int | float) and not least <= value < below:
            limit = f" and below {below:.0f}" if below < math.inf else ""
            raise ConfigError(f"--{name} {value} is not allowed; give at least {least:.0f}{limit}")


def _check_loss(arguments: TrainArguments) -> None:
    from rankwright.losses import OPTIONS
    from rankwright.objective import parse_objective

    for name, option in OPTIONS.items():
        value = getattr(arguments.loss, name)
        if value is not None and (problem := option.problem(value)):
            raise ConfigError(f"--{name} {value} {problem}")
    data, objective = arguments.data, parse_objective(arguments.loss.loss_type)
    if not data.in_batch_negatives:
        return
    if objective.teacher:
        raise ConfigError(
            f"--in_batch_negatives and --loss_type {arguments.loss.loss_type} exclude each other: "
            "a teacher has not scored other queries' documents; give one"
        )
    if arguments.training.get("per_device_train_batch_size") == 1:
        raise ConfigError(
            "--in_batch_negatives needs other queries in the batch; raise "
            "--per_device_train_batch_size above 1"
        )


def _master_weights(arguments: TrainArguments) -> None:
    """Train half-precision models in full on float32 weights with mixed precision.

    A step at 1e-5 is lost in the rounding of bfloat16 weights (8 bits): nearly all would stand
    still. Adapters are float32 on frozen weights.
    """
    dtype = arguments.model.torch_dtype
    if arguments.tuner.tuner_type == "full":
        arguments.model.torch_dtype = "float32"
        if dtype in ("bfloat16", "float16"):
            arguments.training.setdefault("bf16" if dtype == "bfloat16" else "fp16", True)


def _resolve_deepspeed(arguments: TrainArguments) -> None:
    """Replace a name such as ``zero2`` by its configuration; a file stays a file."""
    value = arguments.training.get("deepspeed")
    if not value or value == "none":
        # "none" is how a command line takes back what its script or YAML file says
        arguments.training.pop("deepspeed", None)
        return
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        if value in DEEPSPEED:
            arguments.training["deepspeed"] = copy.deepcopy(DEEPSPEED[value])
        elif not Path(value).is_file():
            near = difflib.get_close_matches(value, DEEPSPEED, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise ConfigError(
                f"--deepspeed {value!r} is neither a file nor a name{hint} "
                f"Give a file or one of {', '.join(DEEPSPEED)}"
            )


def check_model_arguments(model: ModelArguments) -> None:
    """Refuse values that no model takes.

    Raises:
        ConfigError: an unknown task type or dtype, or no model.
    """
    if not model.model:
        raise ConfigError("--model is missing; give a local folder or an id such as owner/name")
    if model.dropout is not None and not 0 <= model.dropout < 1:
        raise ConfigError(f"--dropout {model.dropout} is not in [0, 1)")
    _choice("task_type", model.task_type, [None, *TASK_TYPES])
    _choice("torch_dtype", model.torch_dtype, ["float32", "bfloat16", "float16", "auto"])


def _choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        names = [a for a in allowed if a is not None]
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
        raise ConfigError(f"--{name} {value!r} is unknown; {hint} from {', '.join(names)}")
