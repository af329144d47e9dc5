"""What training minimises: a loss, or a weighted sum of several, as ``--loss_type`` writes it.

Shape legend: ``N`` parts; the others are those of ``losses``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwright.errors import ConfigError
from rankwright.losses import LOSSES, OPTIONS, Loss, Needs, find_loss


@dataclass(frozen=True)
class Part:
    """One loss of an objective.

    Attributes:
        name: in ``LOSSES``.
        weight: above 0.
        options: set for this part.
    """

    name: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> Loss:
        """Its row of ``LOSSES``."""
        return LOSSES[self.name]

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f"{_number(self.weight)}*"
        options = ",".join(f"{name}={_number(value)}" for name, value in self.options.items())
        return f"{weight}{self.name}" + (f"({options})" if options else "")


class Sums(NamedTuple):
    """The parts of an objective before averaging; ``N`` parts.

    Attributes:
        totals_N: sum over the terms of each part.
        counts_N: number of terms of each part.
    """

    totals_N: Tensor
    counts_N: Tensor


@dataclass(frozen=True)
class Objective:
    """What training minimises: the weighted sum of the means of one or several losses.

    Attributes:
        parts: the losses.
    """

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts."""
        return tuple(part.name for part in self.parts)

    @property
    def needs(self) -> Needs:
        """What a group must hold to be a term of at least one part."""
        found = {part.loss.needs for part in self.parts}
        return next(needs for needs in ("one", "two", "both") if needs in found)

    @property
    def by_document(self) -> bool:
        """Whether every document is a term by itself, so that a group may be cut anywhere."""
        return all(part.loss.by_document for part in self.parts)

    @property
    def teacher(self) -> bool:
        """Whether a part takes the teacher's scores."""
        return any(part.loss.teacher for part in self.parts)

    @property
    def probability_labels(self) -> tuple[str, ...]:
        """The parts that read labels as probabilities."""
        return tuple(part.name for part in self.parts if part.loss.probability_labels)

    def with_options(self, values: Mapping[str, Any]) -> Objective:
        """Fill in the options that the parts do not set themselves."""
        return Objective(
            tuple(
                replace(
                    part, options={n: part.options.get(n, values[n]) for n in part.loss.options}
                )
                for part in self.parts
            )
        )

    def __call__(
        self,
        scores_P: Tensor,
        labels_P: Tensor,
        offsets_Q: Tensor,
        *,
        teacher_P: Tensor | None = None,
        largest: int | None = None,
    ) -> Sums:
        """Compute every part; see ``Loss``."""
        sums = [
            part.loss(
                scores_P,
                labels_P,
                offsets_Q,
                teacher_P=teacher_P,
                largest=largest,
                **part.options,
            )
            for part in self.parts
        ]
        return Sums(torch.stack([s.total for s in sums]), torch.stack([s.count for s in sums]))

    def means(self, totals_N: Tensor, counts_N: Tensor) -> Tensor:
        """The mean of each part, 0 where it has no terms; the weights are not in it."""
        return totals_N / counts_N.to(totals_N.dtype).clamp(min=1)

    def weighted(self, means_N: Tensor) -> Tensor:
        """The objective's value: the parts' means by their weights."""
        # numbers of the host take part one by one: a tensor of them would wait for the device
        return torch.stack([part.weight * means_N[i] for i, part in enumerate(self.parts)]).sum()


_PART = re.compile(
    r"\s*(?:(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*)?"
    r"(?P<name>[\w.-]+)\s*(?:\((?P<options>[^()]*)\))?\s*"
)


def parse_objective(text: str) -> Objective:
    """Read a loss or a combination such as ``listwise+0.1*pointwise``.

    A part is ``name``, ``weight*name`` or ``name(option=value,...)``; its options stand above the
    arguments of these names.

    Raises:
        ConfigError: the text cannot be read, or names no loss, twice the same, a weight that is not
            above 0, an option that the loss does not have, or one twice.
    """
    parts: list[Part] = []
    place = 0
    while True:
        match = _PART.match(text, place)
        if match is None:
            raise _unread(text, place)
        parts.append(_part(text, match))
        place = match.end()
        if place == len(text):
            break
        if text[place] != "+":
            raise _unread(text, place)
        place += 1
    names = [part.name for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"--loss_type {text!r} names {twice} twice; give it once, with one weight"
        )
    return Objective(tuple(parts))


def _unread(text: str, place: int) -> ConfigError:
    rest = repr(text[place:]) if text[place:].strip() else "its end"
    return ConfigError(
        f"--loss_type {text!r} cannot be read at {rest}; write a loss, or losses joined by + with "
        "a weight before each, such as listwise+0.1*pointwise"
    )


def _part(text: str, match: re.Match[str]) -> Part:
    name = find_loss(match["name"])
    weight = float(match["weight"] or 1)
    if not 0 < weight < math.inf:
        raise ConfigError(f"--loss_type {text!r}: the weight {match['weight']} is not above 0")
    options: dict[str, Any] = {}
    for entry in filter(None, (match["options"] or "").split(",")):
        option, _, value = (word.strip() for word in entry.partition("="))
        if option not in LOSSES[name].options:
            has = ", ".join(LOSSES[name].options) or "none"
            raise ConfigError(
                f"--loss_type {text!r}: {name} has no option {option!r}; it has {has}"
            )
        if option in options:
            raise ConfigError(f"--loss_type {text!r} gives {option} twice; give it once")
        kind = OPTIONS[option].kind
        try:
            options[option] = kind(value)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(f"--loss_type {text!r}: {option}={value!r} is not {what}") from None
        if problem := OPTIONS[option].problem(options[option]):
            raise ConfigError(f"--loss_type {text!r}: {option} {value} {problem}")
    return Part(name, weight, options)


def _number(value: float) -> str:
    return str(value).removesuffix(".0")
