"""Numbers that go wrong in training: found, told with their queries, and kept out of the weights.

Scores and loss are looked at on the device. Where one is not finite, the gradients of that loss
become NaN; the processes add up their gradients anyway, so from the norm of the sum every process
learns the same, without a message and without waiting for the device.

Shape legend: ``Q`` groups, ``P`` pairs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rankwright.errors import DataError
from rankwright.types import PackedBatch

# so many steps in a row whose gradients overflow in fp16: from 65536, where the loss's scale
# begins, halving it each time has brought it below 1
OVERFLOWS = 20
SHOWN = 8
# what weights are stored in, unless they are quantised
_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# logits of one query that lie closer together than this order nothing
NO_SPREAD = 1e-3
# steps in a row whose scores, those of all their queries, lie as close together
FLAT_STEPS = 10
COLLAPSED = (
    "The model has collapsed to one value. Lower --learning_rate (a tenth), use "
    "--torch_dtype float32 for the weights with --bf16 true at most, look at the labels with "
    "rankwright check, and make sure that queries have negatives that differ from positives."
)

What = Literal["scores", "loss", "gradients"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What was not finite in a step.

    Attributes:
        what: the first of scores, loss and gradients that was not.
        value: ``nan``, ``inf`` or ``-inf``; of gradients that of their norm.
        query_ids: whose; of gradients all queries of the step.
    """

    what: What
    value: float
    query_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Slice:
    """One forward pass of a step."""

    scores_P: Tensor
    offsets_Q: Tensor
    loss: Tensor
    query_ids: tuple[str, ...]

    def fault(self) -> Fault | None:
        """What is wrong with it; this waits for the device."""
        scores_P = self.scores_P.float().cpu().numpy()
        if (wrong_P := ~np.isfinite(scores_P)).any():
            first = int(np.argmax(wrong_P))
            found_Q = np.logical_or.reduceat(wrong_P, self.offsets_Q.cpu().numpy()[:-1])
            ids = tuple(name for name, found in zip(self.query_ids, found_Q, strict=True) if found)
            return Fault("scores", float(scores_P[first]), ids)
        loss = float(self.loss)
        return None if math.isfinite(loss) else Fault("loss", loss, self.query_ids)


class _Late:
    """A value of the device that is copied when it is there, and read without draining the queue.

    To read a tensor is to wait for all work that was queued before the reading, the next step's
    forward among it; a copy that is queued now has its own place in the queue.
    """

    def __init__(self, value: Tensor) -> None:
        self._value, self._copied = value, None
        if value.device.type == "cuda":
            self._value = torch.empty_like(value, device="cpu", pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> float:
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._value)


@dataclass(frozen=True, slots=True)
class Step:
    """A step whose gradients were complete.

    Attributes:
        number: of the step.
        norm: of its gradients.
        slices: its forward passes on this process.
        spread: between the highest and the lowest of their scores; None of a single score.
    """

    number: int
    norm: _Late
    slices: list[_Slice]
    spread: _Late | None = None

    def fault(self) -> Fault | None:
        """What was not finite; processes agree on whether there is something, not on what."""
        norm = self.norm.read()
        if math.isfinite(norm):
            return None
        found = [fault for piece in self.slices if (fault := piece.fault()) is not None]
        if found:
            ids = dict.fromkeys(name for fault in found for name in fault.query_ids)
            return Fault(found[0].what, found[0].value, tuple(ids))
        ids = dict.fromkeys(name for piece in self.slices for name in piece.query_ids)
        return Fault("gradients", norm, tuple(ids))


class Guard:
    """Watches the steps of a run and counts those that are left out.

    Args:
        skip: leave out a step whose numbers are not finite, instead of ending the run.
        limit: most steps that are left out.
        scaled: whether a loss scaler of fp16 runs. Gradients alone that overflow are its business
            then: it leaves the step out and lowers its scale.
        can_skip: whether a step can be left out with this optimiser.
    """

    def __init__(
        self, *, skip: bool, limit: int, scaled: bool = False, can_skip: bool = True
    ) -> None:
        self.skip = skip
        self.limit = limit
        self.scaled = scaled
        self.can_skip = can_skip
        self.skipped = 0
        self.overflows = 0
        self.collapse_told = False
        self._in_a_row = 0
        self._flat = 0
        self._ordered = False
        self._slices: list[_Slice] = []
        self._steps: deque[Step] = deque()

    @property
    def left_out(self) -> int:
        """Steps that changed nothing, for whatever reason."""
        return self.skipped + self.overflows

    @property
    def counts(self) -> dict[str, int]:
        """What was left out, by its name in the log; empty where nothing was."""
        found = {"skipped_steps": self.skipped, "fp16_overflows": self.overflows}
        return {name: count for name, count in found.items() if count}

    def watch(self, loss: Tensor, scores_P: Tensor, batch: PackedBatch) -> Tensor:
        """Look at a forward pass; the loss that is returned has NaN gradients if it is not finite.

        Args:
            loss: a scalar.
            scores_P: the scores it was made of.
            batch: theirs.
        """
        scores_P, value = scores_P.detach(), loss.detach()
        self._slices.append(_Slice(scores_P, batch.offsets_Q, value, batch.query_ids))
        fine = torch.isfinite(value) & torch.isfinite(scores_P).all()
        # by a factor: torch.where over two losses has NaN gradients wherever one of them has
        return loss * torch.where(fine, 1.0, math.nan)

    def close(self, norm: Tensor | float | None, number: int) -> Tensor:
        """End a step: its gradients are complete, and the optimiser has not taken it.

        Args:
            norm: of the gradients over all processes; None where it is not known.
            number: of the step.

        Returns:
            On the device, whether the step is to be left out.
        """
        device = self._slices[0].loss.device
        if norm is None:
            fine = [torch.isfinite(s.loss) & torch.isfinite(s.scores_P).all() for s in self._slices]
            norm = torch.where(torch.stack(fine).all(), 0.0, math.nan)
        norm = torch.as_tensor(norm, device=device).detach()
        scores = [piece.scores_P.float() for piece in self._slices]
        spread = None
        if sum(map(len, scores)) > 1:
            highest, lowest = (
                torch.stack([f(s) for s in scores]) for f in (torch.amax, torch.amin)
            )
            spread = _Late(highest.max() - lowest.min())
        self._steps.append(Step(number, _Late(norm), self._slices, spread))
        self._slices = []
        return ~torch.isfinite(norm)

    def due(self, keep: int) -> Step | None:
        """The next step to judge, if more than ``keep`` wait for it."""
        return self._steps.popleft() if len(self._steps) > keep else None

    def judge(self, step: Step, faults: Sequence[Fault] | None) -> str | None:
        """Count a step.

        Args:
            step: one from ``due``.
            faults: those of every process; None where there were none.

        Returns:
            What is to be told of it; None where nothing is.

        Raises:
            DataError: the run is to end; every process raises it.
        """
        if not faults:
            self._in_a_row = 0
            return self._flatness(step)
        told = _tell(step.number, faults)
        if self.scaled and all(fault.what == "gradients" for fault in faults):
            self.overflows += 1
            self._in_a_row += 1
            if self._in_a_row >= OVERFLOWS:
                raise DataError(
                    f"{told}, for the {OVERFLOWS}th step in a row: they overflow in fp16 at any "
                    "scale; use --bf16 true, or lower --learning_rate"
                )
            return None
        advice = "lower --learning_rate, check their labels, or use --torch_dtype float32"
        if not self.skip:
            other = "; --on_nan skip leaves such a step out" if self.can_skip else ""
            raise DataError(f"{told}; {advice}{other}")
        self.skipped += 1
        if self.skipped > self.limit:
            raise DataError(
                f"{told}, and {self.limit} such {_steps(self.limit)} left out before; {advice}, or "
                "raise --max_nan_steps"
            )
        return f"{told}: left out ({self.skipped} of at most {self.limit})"

    def _flatness(self, step: Step) -> str | None:
        """Say once that the scores of training have become one value."""
        if step.spread is None:
            return None
        flat = step.spread.read() < NO_SPREAD
        self._flat = self._flat + 1 if flat else 0
        # a model that has yet to begin to order may well be flat while its learning rate rises
        self._ordered |= not flat
        if self._flat != FLAT_STEPS or not self._ordered or self.collapse_told:
            return None
        self.collapse_told = True
        ids = _shown([name for piece in step.slices for name in piece.query_ids])
        return (
            f"the scores of the last {FLAT_STEPS} steps, at step {step.number} those on the "
            f"queries {ids}, lie within {NO_SPREAD:g} of each other. {COLLAPSED}"
        )


def _shown(names: Iterable[str]) -> str:
    """The first of some query ids, and how many there are."""
    ids = list(dict.fromkeys(names))
    more = f", … ({len(ids)} in all)" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def _steps(count: int) -> str:
    return "step was" if count == 1 else "steps were"


def _tell(number: int, faults: Sequence[Fault]) -> str:
    order: tuple[What, ...] = ("scores", "loss", "gradients")
    what = min((fault.what for fault in faults), key=order.index)
    found = [fault for fault in faults if fault.what == what]
    ids = _shown(name for fault in found for name in fault.query_ids)
    return f"the {what} became {found[0].value} at step {number} on the queries {ids}"


@dataclass(frozen=True, slots=True)
class Collapse:
    """Scores that order nothing.

    Attributes:
        title: what was seen.
        text: the figures.
        todo: what to do.
    """

    title: str
    text: str
    todo: str


def collapse(score_lists: Iterable[Sequence[float]], ties: float) -> Collapse | None:
    """Say whether a model gives nearly the same score to everything.

    Args:
        score_lists: the logits of each query.
        ties: share of the pairs of a relevant and another document with the same score.
    """
    if ties >= 0.5:
        return Collapse(
            "The scores are nearly all equal",
            f"{ties:.0%} of the pairs of a relevant and another document have the same score.",
            COLLAPSED,
        )
    spread_Q = [max(scores) - min(scores) for scores in score_lists if len(scores) > 1]
    if spread_Q and (middle := float(np.median(spread_Q))) < NO_SPREAD:
        return Collapse(
            "The scores hardly differ",
            f"Half of the queries have scores within {middle:.1g} of each other.",
            COLLAPSED,
        )
    return None


def not_finite(tensors: Iterable[tuple[str, Any]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinite value; None if none does."""
    for name, tensor in tensors:
        if tensor.dtype not in _PLAIN or not tensor.numel() or tensor.is_meta:
            continue
        # a minimum and a maximum are NaN where anything is: one pass, and no copy
        low, high = torch.aminmax(tensor.detach())
        if not (math.isfinite(low) and math.isfinite(high)):
            return name
    return None
