"""mkdocs hook: tables and command references are written from the code when the site is built.

``<!-- generated: NAME -->`` on a line of its own is replaced by what ``GENERATORS[NAME]`` returns,
so the pages cannot say anything else than the code. An unknown name stops the build.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

# what a group must hold to be a term of a loss, by Loss.needs
NEEDS = {"one": "a document", "two": "two documents", "both": "different labels"}
PLACE = re.compile(r"^<!-- generated: (.+?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill a page's places; mkdocs calls this for every page."""
    return PLACE.sub(lambda found: generate(found[1]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark short code that begins with dashes, for the style sheet."""
    return re.sub(r"<code>(?=--[^<]{1,40}</code>)", '<code class="flag">', html)


def generate(name: str) -> str:
    """The Markdown that stands for a name."""
    if name not in GENERATORS:
        from mkdocs.exceptions import PluginError

        raise PluginError(f"<!-- generated: {name} --> is none of {', '.join(GENERATORS)}")
    return GENERATORS[name]()


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Plain text as Markdown that shows it: names of arguments as code, nothing else marked up."""
    parts = re.split(r"((?<![\w-])--[a-z]\w+)", " ".join(text.split()))
    return "".join(code(part) if i % 2 else _escaped(part) for i, part in enumerate(parts))


def code(text: str) -> str:
    """Text as code that may stand in a table."""
    return f"`{text}`".replace("|", "&#124;") if "|" not in text else f"<code>{_html(text)}</code>"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]{}])", r"\\\1", _html(text))


def _html(text: str) -> str:
    replaced = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
    return "".join(replaced.get(character, character) for character in text)


def commands() -> str:
    """Every command with its arguments; those that several commands take stand once, at the end."""
    from rankwright import cli

    types = {name: cli.module(name).types() for name in cli.COMMANDS}
    uses = Counter(kind for kinds in types.values() for kind in kinds)
    parts = []
    for name, command in cli.COMMANDS.items():
        parts.append(f"## {name}\n\n{plain(_sentence(command.summary))}\n")
        parts.append(f"```text\nrankwright {name} {command.usage}\n```\n")
        parts += [_arguments(kind) for kind in types[name] if uses[kind] == 1]
        shared = [kind for kind in types[name] if uses[kind] > 1]
        if shared:
            links = ", ".join(f"[{_title(kind)}](#{_anchor(kind)})" for kind in shared)
            parts.append(f"It also takes what stands under {links}.\n")
        if command.epilog:
            parts.append(f"{plain(command.epilog)}\n")
    for kind in [kind for kind, count in uses.items() if count > 1]:
        takers = ", ".join(f"`{name}`" for name in types if kind in types[name])
        parts.append(f"## {_title(kind)} {{ #{_anchor(kind)} }}\n\nTaken by {takers}.\n")
        parts.append(_arguments(kind, title=False))
    return "\n".join(parts)


def _sentence(summary: str) -> str:
    # the help leads with a label and an example: "train:     rankwright train --model M"
    text = re.sub(r"^\w+: +", "", summary)
    return text if text.startswith("rankwright ") else text[0].upper() + text[1:] + "."


def _title(kind: type) -> str:
    return (inspect.getdoc(kind) or kind.__name__).splitlines()[0].rstrip(".")


def _anchor(kind: type) -> str:
    return kind.__name__.lower()


def _arguments(kind: type, *, title: bool = True) -> str:
    from rankwright.cli import _default

    rows = []
    for field in dataclasses.fields(kind):
        default = _default(field)
        text = str(field.metadata.get("help", ""))
        rows.append([f"`--{field.name}`", code(default) if default else "", plain(text)])
    head = f"**{plain(_title(kind))}**\n\n" if title else ""
    return f"{head}{table(['argument', 'default', 'meaning'], rows)}\n"


def losses() -> str:
    """The losses."""
    from rankwright.losses import LOSSES

    rows = []
    for name, loss in LOSSES.items():
        rows.append(
            [
                f"`{name}`",
                plain(loss.summary),
                ", ".join(f"`--{option}`" for option in loss.options),
                NEEDS[loss.needs] + (", a teacher's scores" if loss.teacher else ""),
            ]
        )
    return table(["`--loss_type`", "what it is", "arguments", "a group needs"], rows)


def metrics() -> str:
    """The metrics."""
    from rankwright.metrics import METRICS

    rows = [[f"`{name}`", plain(entry.description)] for name, entry in METRICS.items()]
    return table(["metric", "of one query"], rows)


def formats() -> str:
    """The row formats."""
    from rankwright.data.readers import READERS

    rows = [[f"`{reader.name}`", plain(reader.description)] for reader in READERS.values()]
    return table(["`--data_format`", "a row"], rows)


def templates() -> str:
    """The templates."""
    from rankwright.templates import TEMPLATES

    rows = [[f"`{name}`", plain(entry.description)] for name, entry in TEMPLATES.items()]
    return table(["`--template`", "the prompt of, and its two tokens"], rows)


def environment() -> str:
    """The environment variables that are read, and the argument of each."""
    from rankwright.arguments import ENVIRONMENT

    defaults = _defaults() | {"positive_token": "yes", "negative_token": "no"}
    rows = []
    for variable, (name, loss) in ENVIRONMENT.items():
        losses = f"`{loss}`" if loss else "all"
        rows.append([f"`{variable}`", f"`--{name}`", f"`{defaults[name]}`".lower(), losses])
    return table(["variable", "argument, which wins over it", "default", "losses"], rows)


def aliases() -> str:
    """Arguments that have another name here."""
    from rankwright.arguments import ALIASES

    rows = [[f"`--{name}`", f"`--{ours}`"] for name, ours in ALIASES.items()]
    return table(["what you typed", "what it is here"], rows)


def without_effect() -> str:
    """Arguments that are accepted and change nothing."""
    from rankwright.arguments import WITHOUT_EFFECT

    rows = [[f"`--{name}`", plain(reason)] for name, reason in WITHOUT_EFFECT.items()]
    return table(["accepted without effect", "because"], rows)


def loss_names() -> str:
    """Names of losses that other projects use."""
    from rankwright.losses import ALIASES

    rows = [[f"`--loss_type {name}`", f"`--loss_type {ours}`"] for name, ours in ALIASES.items()]
    return table(["there", "here"], rows)


def _defaults() -> dict[str, Any]:
    from rankwright.arguments import GROUPS

    return {f.name: f.default for group in GROUPS for f in dataclasses.fields(group)}


GENERATORS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "losses": losses,
    "loss names": loss_names,
    "metrics": metrics,
    "formats": formats,
    "templates": templates,
    "environment": environment,
    "aliases": aliases,
    "without effect": without_effect,
}
