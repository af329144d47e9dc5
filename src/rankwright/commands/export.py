"""``rankwright export``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.commands.common import (
    RowArguments,
    bad_rows_policy,
    check_rows_are_read,
    model_arguments,
    own,
    parse,
    report_dropped,
    report_refused,
)
from rankwright.errors import ConfigError


@dataclass
class ExportArguments:
    """What to write."""

    to: str = dataclasses.field(
        default="",
        metadata={"help": "merged, seq-cls, sentence-transformers, onnx, vllm or tei"},
    )
    output: str = dataclasses.field(
        default="", metadata={"help": "folder to write; an older export there is replaced"}
    )
    dataset: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "rows whose first 50 pairs are scored by both; default: built-in pairs"},
    )
    tolerance: float | None = dataclasses.field(
        default=None,
        metadata={
            "help": "largest difference of a score; default: 0.001 for float32 weights, 0.01 for "
            "float16, 0.1 for bfloat16"
        },
    )
    quantize: str | None = dataclasses.field(
        default=None, metadata={"help": "int8: smaller ONNX weights; needs --dataset"}
    )
    max_ndcg_loss: float = dataclasses.field(
        default=0.01, metadata={"help": "most NDCG@10 that int8 may cost on the rows"}
    )
    push_to_hub: str | None = dataclasses.field(
        default=None, metadata={"help": "owner/name on Hugging Face to upload the result to"}
    )
    public: bool = dataclasses.field(
        default=False, metadata={"help": "the repository may be read by all; default: private"}
    )


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import BadRowArguments, ModelArguments

    return [ExportArguments, RowArguments, BadRowArguments, ModelArguments]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    given = parse("export", types(), words)
    arguments = own(ExportArguments, given)
    for name in ("to", "output"):
        if not getattr(arguments, name):
            raise ConfigError(f"--{name} is missing; see rankwright export --help")
    if arguments.public and arguments.push_to_hub is None:
        raise ConfigError("--public goes with --push_to_hub owner/name; leave it out or give both")
    rows = own(RowArguments, given)
    if rows.instructions and arguments.quantize is None:
        raise ConfigError(
            "--instructions goes with --quantize int8, whose NDCG@10 is measured with them; the "
            "pairs are scored without, as the tools know the model's own alone; leave it out"
        )
    from rankwright import arguments as room
    from rankwright import hub
    from rankwright.export import Options, export_model, find_export

    check_rows_are_read(given, arguments.dataset, (RowArguments, room.BadRowArguments))
    find_export(arguments.to)
    model = model_arguments(given)
    room.check_model_arguments(model)
    load = room.load_options(model)
    load.pop("dtype")
    target = None
    if arguments.push_to_hub is not None:
        target = hub.prepare_push(arguments.push_to_hub, private=not arguments.public)
    bad_rows = bad_rows_policy(given)
    options = Options(
        dtype=given.get("torch_dtype", "auto"),
        quantize=arguments.quantize,
        max_ndcg_loss=arguments.max_ndcg_loss,
        tolerance=arguments.tolerance,
        dataset=arguments.dataset,
        instructions=rows.instructions,
        data_format=rows.data_format,
        split=rows.split,
        bad_rows=bad_rows,
        name=target.name if target else None,
    )
    result = export_model(model.model, arguments.to, arguments.output, options, **load)
    _report(result)
    # beside the folder: what is in it may be pushed
    report_refused(bad_rows, Path(arguments.output))
    if target is not None:
        from rankwright.progress import console

        url = hub.push_folder(
            result.folder, target, message=f"rankwright export --to {arguments.to}"
        )
        seen = "public" if arguments.public else "private"
        console.print(f"pushed to {target.name} ({seen}): {url}")
    return 0


def _report(result: Any) -> None:
    """Print what was written and how near its scores are."""
    from rankwright.progress import console

    def line(text: str) -> None:
        console.print(text)

    report_dropped(result.dropped)
    for name, size in result.sizes.items():
        line(f"{name}: {size / 2**20:.1f} MiB ({result.dtype})")
    allowed = "" if result.tolerance is None else f" (at most {result.tolerance:g} is allowed)"
    line(
        f"{result.pairs} pairs scored by {result.checked_with}: largest difference to our score "
        f"{result.difference:.2g}{allowed}"
    )
    if result.ndcg is not None:
        ours, theirs = result.ndcg
        line(f"NDCG@10 {ours:.4f}, with int8 {theirs:.4f} ({theirs - ours:+.4f})")
    line(f"saved to {result.folder}")
    if result.to in ("vllm", "tei"):
        line(f"{result.folder}/serve.md has the commands; the server itself was not run")
