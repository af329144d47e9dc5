"""``rankwright train``."""

from __future__ import annotations

from rankwright.commands.common import parse, report_truncation


def types() -> list[type]:
    """The command's arguments."""
    from rankwright import arguments

    return list(arguments.GROUPS)


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    from transformers import TrainingArguments

    from rankwright import arguments as room

    given = parse("train", [*types(), TrainingArguments], words, recipe=True)
    resolved = room.resolve(given)
    from rankwright.evaluation import metrics_table
    from rankwright.progress import console
    from rankwright.trainer import train

    result = train(resolved)
    if result.after is not None:
        rows = {
            "first stage": result.after.first_stage_row,
            "before training": result.before.row if result.before is not None else None,
            "after training": result.after.row,
        }
        console.print(metrics_table({name: row for name, row in rows.items() if row is not None}))
    console.print(
        f"{result.steps} steps in {result.seconds:.0f} s, mean loss {result.train_loss:.4f}; "
        f"saved to {result.output_dir}"
    )
    report_truncation(result.truncated, result.reranker, " in training")
    return 0
