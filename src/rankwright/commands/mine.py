"""``rankwright mine``."""

from __future__ import annotations

from rankwright.commands.common import own, parse, report_dropped


def types() -> list[type]:
    """The command's arguments."""
    from rankwright.arguments import MiningArguments

    return [MiningArguments]


def run(words: list[str]) -> int:
    """Run the command and return its exit code."""
    from rankwright.arguments import MiningArguments

    given = parse("mine", types(), words)
    arguments = own(MiningArguments, given)
    from rankwright.mining import mine
    from rankwright.progress import console

    result = mine(arguments)
    report_dropped(result.report.rows_dropped)
    console.print(result.report.table())
    console.print(f"written to {result.output}; the report to {result.report_file}")
    return 0
