"""The command line: parse, call, exit code.

Exit codes: 0 done, 2 a user's mistake (one line on standard error), 130 stopped by Ctrl-C.

To add a command: write its module in ``commands/`` and add its row to ``COMMANDS``.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.errors import ConfigError, RankwrightError


@dataclass(frozen=True)
class Command:
    """A row of ``COMMANDS``; ``rankwright.commands`` has a module of its name.

    Attributes:
        summary: its line in the help.
        usage: what follows its name.
        epilog: what its help ends with.
    """

    summary: str
    usage: str
    epilog: str = ""


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "train a small reranker on this machine, on real rows, without any hub",
        "[--model M] [--output_dir DIR] [--seed N]",
    ),
    "train": Command(
        "train:     rankwright train --model M --dataset rows.jsonl --output_dir output",
        "[recipe.yaml] --model M --dataset FILE ... [arguments]",
        "All arguments of transformers.TrainingArguments work too, such as --learning_rate,\n"
        "--num_train_epochs, --per_device_train_batch_size (queries), --bf16, --report_to.",
    ),
    "evaluate": Command(
        "measure:   rankwright evaluate --model output --dataset test.jsonl",
        "--model M --dataset FILE ... [arguments]",
    ),
    "calibrate": Command(
        "fit probabilities and thresholds: rankwright calibrate --model output --dataset dev.jsonl",
        "--model M --dataset FILE ... [--method M] [--precision P ...] [--recall R ...] "
        "[arguments]",
        "Labels from 0 to 1 count as probabilities; if any is outside, above 0 is relevant.\n"
        "The probabilities hold for lists like those of the rows. rank --calibrated and\n"
        "--threshold apply them; sentence-transformers, vLLM and TEI do not know of them.",
    ),
    "rank": Command(
        'use:       rankwright rank --model output --query "..." --documents docs.txt',
        "--model M (--query Q --documents FILE | --input FILE | --dataset FILE ... "
        "--write_scores FILE) [arguments]",
    ),
    "export": Command(
        "other formats, checked: rankwright export --model output --to onnx --output onnx",
        "--model M --to FORMAT --output DIR [arguments]",
        "--torch_dtype is that of the weights that are written; default: the model's own.",
    ),
    "compare": Command(
        "is B better? rankwright compare A B --dataset test.jsonl",
        "A B --dataset FILE ... [arguments]",
        "A and B are models (folders or ids) or TREC run files; A may be first_stage, the order\n"
        "of the rows' own first-stage scores. Arguments of the model hold for both.",
    ),
    "mine": Command(
        "negatives: rankwright mine --queries rows.jsonl --corpus docs.jsonl --output mined.jsonl",
        "--queries FILE ... [--corpus FILE] --output FILE [arguments]",
        "Rows keep the first stage's scores and order; the report is written beside them.",
    ),
    "serve": Command(
        "serve:     rankwright serve --model output",
        "--model M [M ...] [--port N] [arguments]",
        "POST /rerank, /v1/rerank and /v2/rerank as clients of Cohere, Jina, vLLM, Infinity and\n"
        "Text Embeddings Inference send it, /score; /health, /info, /metrics, /v1/models; a page "
        "at /.",
    ),
    "report": Command(
        "a run as one HTML file, offline: rankwright report output",
        "RUN [--output report.html] [--compare_with OTHER_RUN] [--dataset FILE ...] [arguments]",
        "Arguments of the model matter with --dataset only.",
    ),
    "check": Command(
        "look at rows and models before training: rankwright check rows.jsonl --model M",
        "[FILE ...] [--model M] [arguments]",
    ),
}

# commands whose work the processes of torchrun and accelerate launch share
SHARED = ("train", "evaluate", "rank")

USAGE = f"""\
rankwright - train, evaluate and run text rerankers

usage: rankwright COMMAND [arguments]

commands:
{chr(10).join(f"  {name:<12} {command.summary}" for name, command in COMMANDS.items())}

rankwright COMMAND --help lists the command's arguments. rankwright --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words, default the process's.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from rankwright import __version__

        print(f"rankwright {__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            raise _unknown_command(words[0])
        if "-h" in words or "--help" in words:
            _print_help(words[0])
            return 0
        if words[0] not in SHARED:
            from rankwright.arguments import check_alone

            check_alone(words[0])
        _quiet()
        code: int = module(words[0]).run(words[1:])
        return code
    except RankwrightError as error:
        print(f"rankwright: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader of our output has gone; keep the interpreter from complaining on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # a full disk, a name that is too long: what no command has more to say about
        name = "" if error.filename is None else f" ({str(error.filename)[:200]!r})"
        print(f"rankwright: {error.strerror or error}{name}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"rankwright: {error or 'stopped'}", file=sys.stderr)
        return 130


def module(command: str) -> Any:
    """The module of a command: ``types()`` are its arguments, ``run(words)`` does it."""
    return importlib.import_module(f"rankwright.commands.{command}")


def _unknown_command(name: str) -> ConfigError:
    import difflib

    near = difflib.get_close_matches(name, list(COMMANDS), n=1)
    hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
    return ConfigError(f"{name!r} is not a command; {hint} from {', '.join(COMMANDS)}")


def _quiet() -> None:
    """Leave the screen to our own lines; warnings and errors of the libraries still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # threads that spin while they wait cost up to ten times on a machine that has other work, those
    # that sleep at once a fifth on one that has none: they spin for up to half a millisecond
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # PyTorch then asks for pages of 2 MiB, where Linux has them: a step's large tensors, above all
    # the gradient of the vocabulary, are otherwise made of thousands of small ones each time
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(level=logging.WARNING, format="rankwright: %(message)s", stream=sys.stderr)
    logging.getLogger("rankwright").setLevel(logging.INFO)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _print_help(command: str) -> None:
    """Print a command's arguments; nothing that takes long to import is needed for it."""
    print(f"usage: rankwright {command} {COMMANDS[command].usage}\n")
    for group in module(command).types():
        print(f"{(group.__doc__ or group.__name__).strip().splitlines()[0]}")
        for f in dataclasses.fields(group):
            text = str(f.metadata.get("help", "")).split("\n")[0]
            default = _default(f)
            print(f"  --{f.name:<34} {text}{f' (default {default})' if default else ''}")
        print()
    if COMMANDS[command].epilog:
        print(COMMANDS[command].epilog)


def _default(f: dataclasses.Field[Any]) -> str:
    value = f.default
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
    if value is None or value == [] or value == "":
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
