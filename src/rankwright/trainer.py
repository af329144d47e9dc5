"""The one trainer: transformers' Trainer over packed batches.

Ours are the batch plan, the loss with its normalisation by groups or pairs over the whole optimiser
step and all processes, evaluation over full candidate lists, and the saving. No Trainer type is
seen outside this file.

Shape legend: ``Q`` groups, ``P`` pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from accelerate import DistributedType
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rankwright import hub, run_folder
from rankwright.arguments import (
    TrainArguments,
    cache_folder,
    load_options,
    process_numbers,
    resolve,
    without_secrets,
)
from rankwright.data.batches import BatchPlan, GroupDataset, Sampling
from rankwright.data.collate import Collator
from rankwright.data.groups import Needs, borrow, split_examples, unusable
from rankwright.data.outline import blocks, folds, instructions, outline, select
from rankwright.data.readers import BadRows, LoadedData, Purpose, dataset_instructions
from rankwright.data.store import load_store, release_unused
from rankwright.data.tokens import allow_forks, quiet_tokenizers, token_store
from rankwright.errors import CheckpointError, ConfigError, DataError
from rankwright.evaluation import (
    EvaluationResult,
    bootstrap_interval,
    calibrate_lists,
    evaluate_scores,
)
from rankwright.guards import Guard, collapse
from rankwright.metrics import parse_metric, parse_metrics
from rankwright.models import checkpoint
from rankwright.models.attention import to_device
from rankwright.models.card import base_name, hub_id, write_card
from rankwright.models.checkpoint import Loaded, LoadOptions
from rankwright.models.lora import add_adapters
from rankwright.models.sharding import (
    gather,
    gather_optimizer,
    in_step,
    is_sharded,
    load_optimizer,
)
from rankwright.objective import Objective, Sums, parse_objective
from rankwright.progress import bar, console, tracked
from rankwright.ranking import Reranker, collator
from rankwright.records import Lengths, length_summary, write_records
from rankwright.run_folder import Progress
from rankwright.shares import Processes, together
from rankwright.templates import PairEncoder, template_warnings
from rankwright.types import Example, Group, PackedBatch, ScoredList

logger = logging.getLogger(__name__)

FloatArray32 = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
# Rows of this length keep a device as busy as longer ones, in less memory, and gradients of slices
# add up. On a GPU that is counted, not measured: adding up moves 12 bytes a parameter, some percent
# of the time that 16,384 tokens take.
SLICE_TOKENS = {"cpu": 4096, "cuda": 16384}
# a signal within so many seconds of the first is its echo: launchers pass on what a terminal, or
# Slurm, has sent to their processes as well; Python sees it when the operation that runs has ended
SIGNAL_ECHO = 10.0
# validation lists whose loss is computed at a time; losses compare the documents of a list in pairs
LISTS = 64
OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after its checkpoint was written."""


@dataclass
class TrainResult:
    """What a run leaves.

    Attributes:
        output_dir: the folder of the final model (the best one where there was validation).
        before: validation before the first step, None without validation rows.
        after: validation of the final model.
        steps: optimiser steps done in all.
        train_loss: mean loss of the run.
        seconds: duration of the training loop.
        dropped: rows the loss could not use, by reason.
        truncated: ``documents`` and ``queries`` that were cut in training, over all epochs.
        reranker: the final model, ready to rank; with weights that are cut over the processes
            (FSDP) on the first one only.
    """

    output_dir: Path
    before: EvaluationResult | None
    after: EvaluationResult | None
    steps: int
    train_loss: float
    seconds: float
    dropped: dict[str, int]
    truncated: dict[str, int]
    reranker: Reranker


@dataclass
class _Work:
    """What was processed since the last log."""

    pairs: int = 0
    tokens: int = 0
    padded: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, batch: PackedBatch) -> None:
        self.pairs += batch.num_pairs
        self.tokens += batch.num_tokens
        self.padded += batch.padded_tokens

    def rates(self, world: int) -> dict[str, float]:
        """Pairs/s, tokens/s, and the share of a padded batch that packing did not compute."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        saved = 1 - self.tokens / self.padded if self.padded else 0.0
        return {
            "pairs_per_second": round(self.pairs * world / seconds, 2),
            "tokens_per_second": round(self.tokens * world / seconds, 1),
            "padding_saved": round(saved, 4),
        }


class _Loader(DataLoader[Any]):
    """A DataLoader that hands the epoch on to its plan."""

    def set_epoch(self, epoch: int) -> None:
        plan = self.batch_sampler
        assert isinstance(plan, BatchPlan)
        plan.set_epoch(epoch)


class _StopEvaluationError(Exception):
    """A signal came while evaluating."""


def _collate(collate: Collator, borrowed: int, items: Sequence[list[Group]]) -> PackedBatch:
    groups = [group for drawn in items for group in drawn]
    if borrowed:
        groups = borrow(groups, borrowed)
    encoded = [collate.encode(group) for group in groups]
    batch = collate.pack(groups, encoded)
    # counted in the batch, since a worker's own counts stay in the worker
    trained = [tokens for group, tokens in zip(groups, encoded, strict=True) if not group.filler]
    batch.truncated_documents = sum(tokens.truncated_documents for tokens in trained)
    batch.truncated_queries = sum(tokens.truncated_query for tokens in trained)
    return batch


class _Trainer(transformers.Trainer):  # type: ignore[misc]
    """transformers' Trainer with our batches, loss, evaluation and files."""

    control: transformers.TrainerControl
    _tr_loss: Tensor

    def __init__(
        self,
        loaded: Loaded,
        args: TrainingArguments,
        plan: BatchPlan,
        collate: Collator,
        objective: Objective,
        reranker: Reranker,
        val_examples: Sequence[Example],
        metrics: list[str],
        callbacks: list[TrainerCallback],
        guard: Guard,
        before: Progress,
    ) -> None:
        self.loaded = loaded
        self.plan = plan
        self.packer = collate
        self.objective = objective
        self.reranker = reranker
        self.val_examples = val_examples
        self.metric_names = metrics
        self.stop_requested = threading.Event()
        self.stop_agreed = False
        self.work = _Work()
        self.truncated = {"documents": 0, "queries": 0}
        self.lengths = Lengths(loaded.spec.max_length)
        self.results: dict[int, EvaluationResult] = {}
        # of the best step and the last one, on the process that writes them
        self.scores: dict[int, FloatArray32] = {}
        # the parts' values since the last log, and the step of that
        self.parts_N = torch.zeros(len(objective.parts), device=args.device)
        self.parts_since = 0
        self.guard = guard
        self.before = before
        self.started = time.perf_counter()
        # whether a signal came before this step was evaluated
        self.owes_evaluation = before.owes_evaluation
        # the sums above as they were before the step that is under way
        self._kept: tuple[Tensor, Tensor] | None = None
        self.left_out_before = 0
        super().__init__(
            model=loaded.model,
            args=args,
            train_dataset=plan.dataset,
            eval_dataset=val_examples or None,
            processing_class=loaded.tokenizer,
            data_collator=partial(_collate, collate, plan.dataset.sampling.borrowed),
            callbacks=callbacks,
        )
        # compute_loss divides by the count of the whole optimiser step itself
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True  # the same for transformers before that attribute
        if self.is_fsdp_enabled:
            self._set_up_fsdp()
        self.remove_callback(transformers.PrinterCallback)
        self.remove_callback(transformers.trainer_callback.ProgressCallback)

    def _set_up_fsdp(self) -> None:
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ValueError("FSDP 1 is not supported; set fsdp_version to 2")
        if not (self.args.bf16 or self.args.fp16):
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # accelerate would round gradients and scores, too
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype, reduce_dtype=torch.float32
        )
        if self.loaded.spec.kind == "classification" and self.loaded.model.packed:
            for head in self.loaded.model.head_modules():
                if any(True for _ in head.parameters()):
                    fully_shard(head)  # in float32, as everywhere

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """The optimizer; of some kinds only this says that their library is missing."""
        with _refusals(f"--optim {self.args.optim.value}", "optim_args", self.args):
            made: torch.optim.Optimizer = super().create_optimizer(*args)
            return made

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        if not self.is_deepspeed_enabled:
            found: tuple[Any, Any] = super()._prepare_for_training(
                max_steps, train_dataloader, resume_from_checkpoint
            )
            return found
        model = self.loaded.model
        # the base class would read a checkpoint that DeepSpeed wrote; ours hold whole weights,
        # which DeepSpeed cuts as it takes the model
        if resume_from_checkpoint is not None:
            checkpoint.load_weights(model, Path(resume_from_checkpoint))
        try:
            found = super()._prepare_for_training(max_steps, train_dataloader, None)
        except (ValueError, AssertionError) as error:
            raise ConfigError(f"--deepspeed: {' '.join(str(error).split())}") from error
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        if self.args.bf16:
            # as accelerate does with every other engine; a cache would keep all gathered weights
            autocast = torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=False)
            model.forward = autocast(model.forward)  # type: ignore[method-assign]
        return found

    def leave_mixed_precision(self) -> None:
        """Take away what was put around the forward; what is saved is scored without it."""
        if self.is_deepspeed_enabled:
            vars(self.loaded.model).pop("forward", None)
        else:
            self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)

    @property
    def sharded(self) -> bool:
        """Whether each process holds only its part of the weights."""
        return is_sharded(self.loaded.model)

    # batches

    def get_train_dataloader(self) -> _Loader:
        workers = self.args.dataloader_num_workers
        if workers:
            allow_forks()
        return _Loader(
            self.plan.dataset,
            batch_sampler=self.plan,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            worker_init_fn=quiet_tokenizers,
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # the base class would do one step more from a checkpoint that is at the end already, or
        # where the evaluation before the first step ends the run
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # the base class adds up its own process's
        self._tr_loss.fill_(self._everywhere(self._tr_loss).mean())
        return super()._finalize_training(*args, **kwargs)

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        queries = self.plan.queries or max(1, len(self.plan.dataset) // max(1, len(self.plan)))
        return int(queries * args.gradient_accumulation_steps * args.world_size)

    def num_examples(self, dataloader: Any) -> int:
        return len(self.plan.dataset)

    def _prepare_inputs(self, inputs: PackedBatch) -> PackedBatch:
        return inputs.to(self.args.device, non_blocking=True)

    def floating_point_ops(self, inputs: PackedBatch) -> int:
        return 0

    def _track_num_input_tokens(self, inputs: PackedBatch) -> None:
        self.work.add(inputs)
        self.truncated["documents"] += inputs.truncated_documents
        self.truncated["queries"] += inputs.truncated_queries
        self.lengths.add(inputs)

    def _everywhere(self, value: Tensor) -> Tensor:
        """A value of each process, stacked."""
        if self.args.world_size == 1:
            return value[None]
        found: Tensor = self.accelerator.gather(value[None])
        return found

    def any_process(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        return bool(self._everywhere(torch.tensor(flag, device=self.args.device).int()).any())

    def truncated_everywhere(self) -> dict[str, int]:
        """How many documents and queries were cut in training, over all processes."""
        counts = torch.tensor(list(self.truncated.values()), device=self.args.device)
        return dict(zip(self.truncated, self._everywhere(counts).sum(0).tolist(), strict=True))

    def lengths_everywhere(self) -> IntArray:
        """How many pairs of training had each length, over all processes."""
        counts = torch.tensor(self.lengths.counts, device=self.args.device)
        return self._everywhere(counts).sum(0).cpu().numpy()

    # progress

    def take_up(self) -> None:
        """Go on counting where the checkpoint stopped."""
        before, self.work = self.before, _Work()  # the clock starts now
        self.started = time.perf_counter()
        if before.logged is not None:
            self._globalstep_last_logged = before.logged
        self.parts_since = self._globalstep_last_logged
        self.guard.skipped, self.guard.overflows = before.skipped, before.overflows
        self._tr_loss.fill_(before.loss_since)
        # added to from here on, in the order of the steps, so that the sum is the undisturbed run's
        self._total_loss_scalar = before.loss
        if before.parts_since:
            self.parts_N.copy_(torch.tensor(before.parts_since))
        self.left_out_before = before.left_out_before
        if self.is_world_process_zero():
            self.truncated |= before.truncated
            self.lengths.take_up(before.lengths)
        self._find_best()

    def _find_best(self) -> None:
        """Name the best checkpoint where it lies now: the run may be under another path."""
        state = self.state
        if not state.best_global_step:
            return
        here, named = self._checkpoint_folder(state.best_global_step), state.best_model_checkpoint
        # the base class forgets one that is not where it was
        if here.is_dir() and (named is None or Path(named).resolve() == here.resolve()):
            state.best_model_checkpoint = str(here)
        # or some would ask the others in the end whether to load it, and some would not
        if self.any_process(state.best_model_checkpoint is None):
            state.best_model_checkpoint = None

    def progress(self) -> Progress:
        """What a checkpoint is to know beside the base class's state; on every process."""
        lengths = np.trim_zeros(self.lengths_everywhere(), "b").tolist()
        return dataclasses.replace(
            self.before,
            skipped=self.guard.skipped,
            overflows=self.guard.overflows,
            loss=float(self._total_loss_scalar),
            loss_since=float(self._everywhere(self._tr_loss).mean()),
            parts_since=self._everywhere(self.parts_N).mean(0).tolist(),
            logged=self.parts_since,
            left_out_before=self.left_out_before,
            truncated=self.truncated_everywhere(),
            lengths=lengths,
            seconds=self.seconds,
            owes_evaluation=self.owes_evaluation,
        )

    @property
    def seconds(self) -> float:
        """Duration of the training, with that before the checkpoint."""
        return self.before.seconds + time.perf_counter() - self.started

    @property
    def train_loss(self) -> float:
        """Mean over the steps that counted."""
        counted = int(self.state.global_step) - self.guard.left_out
        return float(self._total_loss_scalar) / max(1, counted)

    # loss

    def training_step(
        self, model: Any, inputs: PackedBatch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward, slice by slice: a loss sums over groups, so gradients add up."""
        inputs = self._prepare_inputs(inputs)
        *slices, last = [inputs] if _at_once(self.args) else inputs.slices()
        step: Callable[..., Tensor] = super().training_step
        total: Tensor | None = None
        for part in slices:
            with self.accelerator.no_sync(model):
                loss = step(model, part, num_items_in_batch)
            total = loss if total is None else total + loss
        loss = step(model, last, num_items_in_batch)
        return loss if total is None else total + loss

    def _get_num_items_in_batch(
        self, batch_samples: list[PackedBatch], device: torch.device
    ) -> Tensor | None:
        """Terms of each part in the whole optimiser step, over all processes."""
        self._kept = (self._tr_loss.clone(), self.parts_N.clone())
        counts = [self._sums(b.labels_P.new_zeros(b.num_pairs), b).counts_N for b in batch_samples]
        if not counts:
            return None
        counts_N = to_device(torch.stack(counts).sum(0), device)
        if self.sharded:
            self._agree_on_calls(batch_samples, device)
        if self.args.world_size > 1:
            # a signal that reached one process stops all of them, at the same step
            stop_1 = counts_N.new_full((1,), float(self.stop_requested.is_set()))
            both = self.accelerator.gather(torch.cat((counts_N, stop_1))[None]).sum(0)
            counts_N = both[:-1]
            self.stop_agreed = bool(both[-1] > 0)
        return counts_N

    def _agree_on_calls(self, batches: list[PackedBatch], device: torch.device) -> None:
        """Let every process compute as many chunks of each batch as the one that has most."""
        own = torch.tensor([[max(1, len(batch.cuts)) for batch in batches]], device=device)
        most = self.accelerator.gather(own).amax(0).tolist()
        for batch, calls in zip(batches, most, strict=True):
            batch.calls = calls

    @property
    def stopping(self) -> bool:
        """Whether to stop at the end of this step: all processes answer alike."""
        return self.stop_agreed if self.args.world_size > 1 else self.stop_requested.is_set()

    def _sums(self, scores_P: Tensor, batch: PackedBatch) -> Sums:
        totals_N, counts_N = self.objective(
            scores_P,
            batch.labels_P,
            batch.offsets_Q,
            teacher_P=batch.teacher_P,
            largest=batch.largest,
        )
        return Sums(totals_N * 0, counts_N * 0) if batch.filler else Sums(totals_N, counts_N)

    def compute_loss(
        self,
        model: Any,
        inputs: PackedBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        scores_P: Tensor = model(inputs)
        totals_N = self._sums(scores_P, inputs).totals_N
        assert isinstance(num_items_in_batch, Tensor)
        # gradients are averaged over processes, so each counts its share once more
        means_N = self.objective.means(totals_N * self.args.world_size, num_items_in_batch)
        self.parts_N += means_N.detach()
        return self.guard.watch(self.objective.weighted(means_N), scores_P, inputs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # the last thing the base class asks for before the optimiser's step
        norm = super()._get_grad_norm(model, grad_norm)
        self._judge(norm)
        return norm

    def _judge(self, norm: Tensor | float | None) -> None:
        """Leave a step out whose numbers are not finite; an accelerator is not waited for.

        A fused optimiser (the default) leaves it out on the device. Its verdict is read one step
        later, when it has long been there. Other optimisers have to be told here, so
        ``--on_nan skip`` waits for the device with them; with ``stop`` nothing is to be saved.
        """
        whole = getattr(norm, "full_tensor", None)
        bad = self.guard.close(whole() if whole else norm, self.state.global_step + 1)
        assert self._kept is not None
        for total, before in zip((self._tr_loss, self.parts_N), self._kept, strict=True):
            total.copy_(torch.where(bad, before, total))
        inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        fused = bool(getattr(inner, "_step_supports_amp_scaling", False))
        if fused and not self.guard.scaled:
            inner.found_inf = bad.float()
        late = _is_late(bad.device) and (fused or self.guard.scaled or not self.guard.skip)
        self.settle(keep=int(late))

    def settle(self, keep: int = 0) -> None:
        """Judge the steps that were left unread, but for the last ``keep``.

        Raises:
            DataError: the loss, its scores or its gradients are not finite, and the run is to end;
                the message names the step and its queries.
        """
        while (step := self.guard.due(keep)) is not None:
            fault = step.fault()
            faults: list[Any] | None = None if fault is None else [fault]
            if fault is not None and self.args.world_size > 1:
                # the norm is that of all processes, so all of them are here
                faults = [None] * self.args.world_size
                torch.distributed.all_gather_object(faults, fault)
            told = self.guard.judge(step, faults)
            if told is not None and self.is_world_process_zero():
                logger.warning("%s", told)
            if fault is not None and not keep:
                # an optimiser passes over parameters without gradients, whatever it is
                self.model.zero_grad(set_to_none=True)

    # evaluation

    def _evaluate(self, trial: Any, ignore_keys: Any, skip_scheduler: bool = False) -> Any:
        owed, step = self.owes_evaluation, self.state.global_step
        try:
            metrics = super()._evaluate(trial, ignore_keys, skip_scheduler and not owed)
        except _StopEvaluationError:
            self.owes_evaluation = True
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self.owes_evaluation = False
        if owed and self._determine_best_metric(metrics, trial):
            # the checkpoint was written before it was known to be the best
            self.state.best_model_checkpoint = str(self._checkpoint_folder(step))
        return metrics

    def _checkpoint_folder(self, step: int) -> Path:
        name = f"{transformers.trainer_utils.PREFIX_CHECKPOINT_DIR}-{step}"
        return Path(self.args.output_dir) / name

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Rank the full candidate lists of the validation rows."""
        self.settle()
        started = time.perf_counter()
        result, losses = self._evaluate_lists()
        metrics = {f"eval_{name}": value for name, value in result.metrics.items()}
        metrics["eval_tie_rate"] = result.tie_rate
        metrics |= losses
        metrics["eval_runtime"] = round(time.perf_counter() - started, 2)
        self.results[self.state.global_step] = result
        if self.state.global_step == 0:
            values = {name: result.values(name) for name in result.metrics}
            self.before = dataclasses.replace(self.before, intervals=_bootstrap(values))
        if self.state.global_step == 0 and self.args.should_save:
            # written at once: a run that is resumed never sees it again
            write_records(Path(self.args.output_dir), "before", self.val_examples, self.scores[0])
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        # time spent here is not training time
        self.work.started += time.perf_counter() - started
        return metrics

    def _evaluate_lists(self) -> tuple[EvaluationResult, dict[str, float]]:
        rank, world = self.args.process_index, self.args.world_size

        def advance(steps: int) -> None:
            show(steps)
            if self.stop_requested.is_set():
                raise _StopEvaluationError

        mine = self.val_examples[rank::world]
        found: list[ScoredList] | Exception
        with tracked("evaluating", len(mine)) as show, in_step(self.loaded.model, self._small):
            try:
                found = self.reranker.score_examples(mine, advance)
            except (_StopEvaluationError, DataError) as error:
                found = error
        lists = self._gather_lists(found)
        if self.args.should_save:
            step, best = self.state.global_step, self.state.best_global_step
            self.scores = {s: v for s, v in self.scores.items() if s in (step, best)}
            self.scores[step] = np.array([x for found in lists for x in found.scores], np.float32)
        result = evaluate_scores(lists, self.metric_names)
        self._warn_of_collapse(lists, result.tie_rate)
        return result, self._validation_loss(lists)

    def _small(self) -> PackedBatch:
        """A small batch for a process that has nothing to score while the others have."""
        group = Group(self.val_examples[0], (0,))
        return self.packer.pack([group], [self.packer.encode(group)]).to(self.args.device)

    def _warn_of_collapse(self, lists: list[ScoredList], ties: float) -> None:
        """Say once that the scores have become one value; before training they may well be."""
        if self.guard.collapse_told or not self.state.global_step:
            return
        found = collapse((scored.scores for scored in lists), ties)
        if found is not None and self.is_world_process_zero():
            self.guard.collapse_told = True
            step = self.state.global_step
            logger.warning("step %d: %s. %s %s", step, found.title, found.text, found.todo)

    def _gather_lists(self, found: list[ScoredList] | Exception) -> list[ScoredList]:
        """Every process's lists in the order of the rows; what ended one of them ends all."""
        world = self.args.world_size
        mine = found if isinstance(found, Exception) else [scored.scores for scored in found]
        parts: list[Any] = [mine]
        if world > 1:
            parts = [None] * world
            torch.distributed.all_gather_object(parts, mine)
        errors = [part for part in parts if isinstance(part, Exception)]
        for error in sorted(errors, key=lambda error: isinstance(error, _StopEvaluationError)):
            self.stop_agreed = True
            raise error
        if not isinstance(found, Exception) and world == 1:
            return found
        return [
            ScoredList(example, parts[i % world][i // world])
            for i, example in enumerate(self.val_examples)
        ]

    def _validation_loss(self, lists: list[ScoredList]) -> dict[str, float]:
        """The objective over full lists, and its parts; empty where the teacher scored none."""
        if self.objective.teacher:
            lists = [scored for scored in lists if scored.example.teacher_scores is not None]
        if not lists:
            return {}
        parts = len(self.objective.parts)
        totals_N, counts_N = torch.zeros(2, parts, dtype=torch.float64)
        for begin in range(0, len(lists), LISTS):
            found = _list_sums(self.objective, lists[begin : begin + LISTS])
            totals_N, counts_N = totals_N + found.totals_N, counts_N + found.counts_N
        means_N = self.objective.means(totals_N, counts_N)
        return self._named("eval_loss", float(self.objective.weighted(means_N)), means_N)

    def _named(self, name: str, loss: float, means_N: Tensor) -> dict[str, float]:
        """A value with those of its parts, unweighted, where there are several."""
        values = {name: loss}
        if len(self.objective.parts) > 1:
            for part, mean in zip(self.objective.names, means_N.tolist(), strict=True):
                values[f"{name}_{part}"] = mean
        return values

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # an evaluation that was stopped by a signal has no metrics and is no candidate
        return bool(metrics) and bool(super()._determine_best_metric(metrics, trial))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.settle()
            self._log_parts(logs)
            logs.update(self.work.rates(self.args.world_size))
            self.work = _Work()
        if "train_loss" in logs:
            # the base class's is that since the run began or went on
            logs["train_loss"] = self.train_loss
        super().log(logs, start_time)

    def _log_parts(self, logs: dict[str, float]) -> None:
        """Means over the steps since the last log that counted, the loss's and its parts'."""
        steps = self.state.global_step - self.parts_since
        counted = steps - (self.guard.left_out - self.left_out_before)
        if counted != steps:
            logs["loss"] *= steps / max(1, counted)
        if len(self.objective.parts) > 1:
            parts_N = self._everywhere(self.parts_N).mean(0)
            logs.update(self._named("loss", logs["loss"], parts_N / max(1, counted)))
        if not counted:
            for name in [name for name in logs if name.startswith("loss")]:
                del logs[name]
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            del logs["grad_norm"]
        logs |= self.guard.counts
        self.parts_N.zero_()
        self.parts_since = self.state.global_step
        self.left_out_before = self.guard.left_out

    # files

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): value for name, value in state_dict.items()}
        checkpoint.write_files(self.loaded, folder, state_dict=state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model as one process would."""
        if not (self.sharded or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call=_internal_call)
            return
        self._save(output_dir, gather(self.loaded.model, keep=self.args.should_save))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gather_optimizer(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_FILE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if checkpoint is None or not (Path(checkpoint) / OPTIMIZER_FILE).is_file():
            return
        load_optimizer(self.optimizer, _states(Path(checkpoint) / OPTIMIZER_FILE))
        self.lr_scheduler.load_state_dict(_states(Path(checkpoint) / SCHEDULER_FILE))

    def _get_output_dir(self, trial: Any) -> str:
        # where the base class writes checkpoints; `_save_checkpoint` renames them once they are
        # whole
        return str(run_folder.staging(Path(self.args.output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that is whole or absent, then delete those over the limit.

        Raises:
            CheckpointError: it cannot be written; those before it are as they were.
        """
        output, args, state = Path(self.args.output_dir), self.args, self.state
        name = self._checkpoint_folder(state.global_step).name
        work = run_folder.staging(output)
        best = state.best_model_checkpoint
        self.settle()
        try:
            if args.should_save:
                if not output.is_dir():
                    logger.warning(
                        "%s has vanished, and the checkpoints before step %d with it; it is made "
                        "again",
                        output,
                        state.global_step,
                    )
                run_folder.clean(output)
            progress = self.progress()
            super()._save_checkpoint(model, trial)
            self._wait()  # every process has written its part
            if state.best_global_step == state.global_step:
                best = str(output / name)
            # the base class named it by the folder it wrote in
            state.best_model_checkpoint = best
            if args.should_save:
                state.save_to_json(str(work / name / run_folder.STATE_FILE))
                run_folder.finish_checkpoint(output, name, progress)
                kept = {output / name, *([Path(best)] if best else [])}
                run_folder.rotate(output, args.save_total_limit, kept)
                run_folder.clean(output)
            self._wait()
        except (OSError, SafetensorError, RuntimeError) as error:
            if args.should_save:
                run_folder.clean(output)
            cut_short = isinstance(error, RuntimeError)
            # torch's writer of files tells no more than where it stands
            if cut_short and not re.search("PytorchStreamWriter|inline_container", str(error)):
                raise
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            if cut_short:
                reason = "a file was cut short, as by a full disk"
            raise CheckpointError(
                f"{output / name} cannot be written ({reason}); the checkpoints before it are "
                "whole: make room, then go on with --resume"
            ) from error

    def _wait(self) -> None:
        if self.args.world_size > 1:
            self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.load_weights(self.loaded.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if self.any_process(not best.is_dir()):
            if self.is_world_process_zero():
                logger.warning(
                    "%s, the best checkpoint, has vanished: the final model is that of the last "
                    "step",
                    best,
                )
            self.state.best_model_checkpoint = self.state.best_global_step = None
            return
        checkpoint.load_weights(self.loaded.model, best)


def _is_late(device: torch.device) -> bool:
    """Whether to read a value means to wait for work that was queued."""
    return device.type != "cpu"


def _steps_inside(args: TrainingArguments) -> bool:
    """Whether the optimiser steps within the backward pass: DeepSpeed, and some others."""
    name = str(args.optim).lower()
    return bool(args.deepspeed) or "layerwise" in name or "lomo" in name


def _fsdp(args: TrainingArguments) -> bool:
    """Whether FSDP cuts the weights: asked for by ``--fsdp``, or by ``accelerate launch``."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _at_once(args: TrainingArguments) -> bool:
    """Whether slices of a batch cannot be computed one by one, their gradients added up."""
    return _fsdp(args) or _steps_inside(args)


@contextmanager
def _engine_variables() -> Iterator[None]:
    """Leave the variables of accelerate as they were.

    Its engines set some for the whole process, and the next training would have FSDP, too.
    """
    names = ("ACCELERATE_", "FSDP_")
    kept = {name: value for name, value in os.environ.items() if name.startswith(names)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(names)]:
            del os.environ[name]
        os.environ.update(kept)


def _states(path: Path) -> dict[str, Any]:
    """The state of an optimiser or a schedule."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return state


def _list_sums(objective: Objective, lists: Sequence[ScoredList]) -> Sums:
    """An objective's sums over full lists."""
    examples = [scored.example for scored in lists]
    sizes = [len(scored.scores) for scored in lists]
    teacher = [t for e in examples for t in e.teacher_scores or ()]
    return objective(
        torch.tensor([s for scored in lists for s in scored.scores]),
        torch.tensor([y for example in examples for y in example.labels]),
        torch.tensor([0, *sizes]).cumsum(0),
        teacher_P=torch.tensor(teacher),
        largest=max(sizes),
    )


class _Watcher(TrainerCallback):  # type: ignore[misc]
    """The progress bar, the plain lines, early stopping's message and the stop at a signal."""

    def __init__(self) -> None:
        self.trainer: _Trainer | None = None
        self.progress: Any = None
        self.task: Any = None
        self.note: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer is not None:
            self.trainer.take_up()
        if not state.is_world_process_zero:
            return
        self.progress = bar()
        self.progress.start()
        self.task = self.progress.add_task(
            "training", total=state.max_steps, completed=state.global_step, note=""
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)
        if self.trainer is not None and self.trainer.stopping:
            self.trainer.owes_evaluation = control.should_evaluate
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # the base class ends an epoch that a signal cut short like any other
        if self.trainer is not None and self.trainer.stopping:
            owed = control.should_evaluate and float(state.epoch).is_integer()
            self.trainer.owes_evaluation |= owed
            control.should_save, control.should_evaluate = owed, False

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if self.progress is None or not logs:
            return
        if "loss" in logs:
            self.note["loss"] = f"loss {logs['loss']:.4f}"
            self.note["speed"] = (
                f"{logs['pairs_per_second']:.0f} pairs/s {logs['tokens_per_second']:.0f} tokens/s "
                f"padding saved {logs['padding_saved']:.0%}"
            )
        for name, value in logs.items():
            if name.startswith("eval_") and "@" in name and "metric" not in self.note:
                self.note["metric"] = f"{name.removeprefix('eval_')} {value:.4f}"
        self.progress.update(self.task, note=" · ".join(self.note.values()))
        if not console.is_terminal and "loss" in logs:
            console.print(
                f"step {state.global_step}/{state.max_steps} {' · '.join(self.note.values())}"
            )

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, float] | None = None,
        **kw: Any,
    ) -> None:
        if self.progress is None or not metrics:
            return
        shown = {
            name.removeprefix("eval_"): value
            for name, value in metrics.items()
            if name != "eval_runtime"
        }
        first = next(iter(shown.items()))
        self.note["metric"] = f"{first[0]} {first[1]:.4f}"
        values = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        console.print(f"step {state.global_step}: {values}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar down."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def train(
    arguments: TrainArguments | None = None,
    /,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    **given: Any,
) -> TrainResult:
    """Train a reranker.

    Args:
        arguments: resolved arguments; or give them by name:
        callbacks: ``transformers.TrainerCallback`` objects, called beside our own.
        **given: the command line's arguments, such as ``model="owner/name"``,
            ``dataset="rows.jsonl"``, ``loss_type="listwise"``, and those of
            ``transformers.TrainingArguments``.

    Returns:
        The result; its ``output_dir`` is a checkpoint that transformers and sentence-transformers
        load.

    Raises:
        ConfigError: an argument is unknown or does not fit.
        DataError: the rows cannot be used, or scores, loss or gradients are not finite.
        CheckpointError: a checkpoint cannot be read or written.
        Interrupted: a signal stopped the run; its checkpoint was saved.

    Example:
        >>> result = train(model="base", dataset="rows.jsonl")  # doctest: +SKIP
        >>> result.reranker.rank("query", ["one", "another"])  # doctest: +SKIP
    """
    arguments = arguments or resolve(given)
    output = Path(arguments.training["output_dir"])
    # from the first look to the last file
    with run_folder.held(output) if process_numbers()[0] == 0 else nullcontext():
        resume_from = run_folder.prepare(output, arguments)
        if any((arguments.model.template, arguments.model.template_prefix)):
            # before an hour of reading rows
            options = LoadOptions(**load_options(arguments.model))
            checkpoint.describe(arguments.model.model, options, weights=False)
        transformers.set_seed(arguments.training["seed"])
        bad_rows = BadRows(arguments.bad_rows.on_bad_row, arguments.bad_rows.max_bad_rows)
        train_examples, val_examples, dropped = _load_rows(arguments, bad_rows)
        return train_on(
            arguments,
            train_examples,
            val_examples,
            dropped,
            resume_from,
            callbacks=callbacks,
            bad_rows=bad_rows,
        )


@_engine_variables()
def train_on(
    arguments: TrainArguments,
    train_examples: Sequence[Example],
    val_examples: Sequence[Example],
    dropped: dict[str, int] | None = None,
    resume_from: str | None = None,
    before_training: Callable[[Reranker], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    bad_rows: BadRows | None = None,
) -> TrainResult:
    """Train on examples that are already in memory; see ``train``.

    Args:
        arguments: resolved arguments.
        train_examples: rows to train on.
        val_examples: rows to validate on, may be empty.
        dropped: what the reader left out, for the record.
        resume_from: a checkpoint folder to go on from.
        before_training: called with the untrained reranker.
        callbacks: see ``train``.
        bad_rows: rows that could not be read, to be written down.
    """
    output = Path(arguments.training["output_dir"])
    objective = parse_objective(arguments.loss.loss_type)
    objective = objective.with_options(dataclasses.asdict(arguments.loss))
    train_examples, reasons = _usable(train_examples, objective, arguments)
    dropped = dict(Counter(dropped or {}) + Counter(reasons))
    resumed = resume_from is not None
    args = _training_arguments(arguments, has_validation=bool(val_examples), resumed=resumed)
    progress = now = _step_sizes(arguments, args)
    if resume_from is not None:
        progress = run_folder.read_progress(Path(resume_from))
        parts = len(objective.parts)
        if len(progress.parts_since) not in (0, parts):
            raise ConfigError(
                f"--resume: the run's loss has {len(progress.parts_since)} parts, --loss_type "
                f"{arguments.loss.loss_type} has {parts}; give the same, or begin a new run from "
                "the checkpoint with --model"
            )
        changed = run_folder.keep_steps(
            progress,
            now,
            drop_last=args.dataloader_drop_last,
            borrows=arguments.data.in_batch_negatives > 0,
        )
        if changed:
            training = arguments.training | changed
            arguments = dataclasses.replace(arguments, training=training)
            args = _training_arguments(arguments, has_validation=bool(val_examples), resumed=True)
        args.eval_on_start = progress.owes_evaluation and args.eval_strategy != "no"
        sizes = _step_sizes(arguments, args)
        progress = dataclasses.replace(
            progress,
            processes=sizes.processes,
            batch=sizes.batch,
            batch_tokens=sizes.batch_tokens,
            accumulation=sizes.accumulation,
            asked=now.asked,
        )
    if (
        objective.teacher
        and val_examples
        and not any(outline(part).taught.any() for _, part in blocks(val_examples))
    ):
        if str(args.metric_for_best_model).removeprefix("eval_") == "loss":
            raise ConfigError(
                "--metric_for_best_model loss: the validation rows have no teacher_scores, which "
                f"--loss_type {arguments.loss.loss_type} needs; choose a metric such as ndcg@10"
            )
        console.print("no loss of the validation rows is reported: they have no teacher_scores")
    transformers.set_seed(args.seed)
    loaded = _load_model(arguments)
    _introduce(loaded)
    _compile(loaded, arguments.training)
    reranker = Reranker(
        loaded,
        batch_tokens=arguments.data.eval_batch_tokens,
        share_prefix=arguments.data.share_prefix,
    )
    # nothing is written before all have seen the folder as it was: ``run_folder.prepare`` of a
    # process that is behind would take it for another run's
    _agree_on_start(args, resume_from, train_examples, val_examples)
    try:
        run_folder.try_out(output)
    except OSError as error:
        raise ConfigError(
            f"--output_dir {output} cannot be written ({error.strerror}); choose another"
        ) from error
    collate = collator(
        loaded,
        share_prefix=arguments.data.share_prefix,
        # a row that is cut and not computed slice by slice would be computed twice
        slice_tokens=None if _at_once(args) else SLICE_TOKENS.get(args.device.type),
        chunk_tokens=arguments.data.chunk_tokens or arguments.data.batch_tokens,
        by_document=objective.by_document,
    )
    _check_instructions(train_examples, val_examples, collate.encoder)
    plan = _plan(arguments, args, train_examples, collate)
    release_unused()
    watcher = _Watcher()
    hooks: list[TrainerCallback] = [watcher, *callbacks]
    if arguments.run.early_stopping_patience is not None:
        if not val_examples or args.eval_strategy == "no":
            raise ConfigError(
                "--early_stopping_patience needs validation rows; give --val_dataset or "
                "--split_dataset_ratio"
            )
        hooks.append(transformers.EarlyStoppingCallback(arguments.run.early_stopping_patience))
    guard = Guard(
        skip=arguments.run.on_nan == "skip",
        limit=arguments.run.max_nan_steps,
        scaled=args.fp16,
        can_skip=not _steps_inside(args),
    )
    try:
        trainer = _Trainer(
            loaded,
            args,
            plan,
            collate,
            objective,
            reranker,
            val_examples,
            arguments.run.metrics,
            hooks,
            guard,
            progress,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        # such as --report_to with a tracker that is unknown or not installed
        raise ConfigError(str(error).strip().splitlines()[0]) from error
    _forget_deepspeed()
    # a wrong name or a missing log-in shows before the training, not behind it
    target = _push_target(arguments) if args.process_index == 0 else None
    if arguments.run.overwrite and run_folder.is_run(output) and args.process_index == 0:
        # only here is every argument known to be good
        run_folder.clear(output)
    if bad_rows is not None and args.process_index == 0:
        for line in bad_rows.report(output / run_folder.REFUSED_FILE):
            console.print(line)
    watcher.trainer = trainer
    if before_training is not None:
        before_training(reranker)
    loaded.spec.training = arguments.flat()
    try:
        with (
            _signals(trainer.stop_requested),
            together() if args.world_size > 1 else nullcontext(),
        ):
            trainer.train(resume_from_checkpoint=resume_from)
            stopped = trainer.any_process(trainer.stop_requested.is_set() or trainer.stop_agreed)
    except UnpicklingError as error:
        # torch reads the optimizer's and the generators' state as tensors and plain values alone
        raise CheckpointError(
            f"{resume_from} holds more than tensors and numbers, which would run as code and is "
            "not read; resume from a checkpoint that this run wrote"
        ) from error
    finally:
        watcher.close()
    # all have agreed; what reaches one of them alone from now on is too late to stop it
    trainer.stop_requested.clear()
    seconds = trainer.seconds
    if stopped and not trainer.state.global_step:
        raise Interrupted("stopped before the first step; the same command begins again")
    if stopped:
        place = f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}"
        # a signal behind the last step finds none where --save_strategy asks for none
        if not run_folder.checkpoints(output):
            raise Interrupted(f"{place}, without a checkpoint; with --overwrite it begins again")
        raise Interrupted(f"{place}; the same command with --resume goes on")
    trainer.settle()
    loaded.model.eval()
    if args.bf16 or args.fp16:
        trainer.leave_mixed_precision()
        trainer.results = {0: trainer.results[0]} if 0 in trainer.results else {}
    before = trainer.results.get(0)
    after = _final_result(trainer)
    result = TrainResult(
        output,
        before,
        after,
        trainer.state.global_step,
        trainer.train_loss,
        seconds,
        dropped,
        trainer.truncated_everywhere(),
        reranker,
    )
    lengths = length_summary(trainer.lengths_everywhere())
    if trainer.sharded:
        _make_whole(trainer, arguments)
        result.reranker = trainer.reranker
    if args.should_save:
        _calibrate(trainer, arguments.run.calibrate)
        rows = {"train": _row_counts(train_examples), "validation": _row_counts(val_examples)}
        more = {"lengths": lengths, "rows": rows, "data": _data_names(arguments)}
        name = target.name if target is not None else output.name
        _save_final(trainer, arguments, result, more, name)
    # what follows may read the folder; a push may take longer than others wait
    with together():
        trainer._wait()
    if target is not None:
        _push(output, target)
    return result


def _push_target(arguments: TrainArguments) -> hub.Target | None:
    """The repository that ``--push_to_hub`` names, made or found; None without the flag."""
    given = arguments.training
    if not given.get("push_to_hub"):
        return None
    strategy = given.get("hub_strategy", "end")
    if str(getattr(strategy, "value", strategy)) != "end":
        raise ConfigError(
            f"--hub_strategy {strategy} would push checkpoints; only the final model is pushed, "
            "so leave it out"
        )
    private = given.get("hub_private_repo")
    return hub.prepare_push(
        given.get("hub_model_id") or Path(given["output_dir"]).absolute().name,
        private=True if private is None else bool(private),
        revision=given.get("hub_revision"),
        token=given.get("hub_token"),
    )


def _push(output: Path, target: hub.Target) -> None:
    """Upload the final model: neither checkpoints, nor rows, nor what the run logged."""
    patterns = (*checkpoint.FILES, run_folder.ADAPTER_FOLDER, run_folder.METRICS_FILE)
    try:
        url = hub.push_folder(output, target, patterns=patterns, message="rankwright train")
    except ConfigError as error:
        raise ConfigError(
            f"{error}. The model is saved in {output}; rankwright export --model {output} --to "
            f"merged --output DIR --push_to_hub {target.name} pushes it later"
        ) from error
    console.print(f"pushed to {target.name}: {url}")


def _data_names(arguments: TrainArguments) -> dict[str, Any]:
    """What the model card says of the rows and the base model; of local paths the last part."""
    data = arguments.data
    names = [*data.dataset, *data.val_dataset]
    return {
        "base_model": hub_id(arguments.model.model),
        "hub_datasets": list(dict.fromkeys(filter(None, map(hub_id, names)))),
        "training_files": [base_name(name) for name in data.dataset],
        "validation_files": [base_name(name) for name in data.val_dataset],
    }


def _calibrate(trainer: _Trainer, method: str) -> None:
    """Fit the final model's probabilities to the validation rows; a run never fails for it."""
    if method == "none":
        return
    scores = iter(trainer.scores[_final_step(trainer)].tolist())
    lists = [
        ScoredList(example, list(islice(scores, len(example.documents))))
        for example in trainer.val_examples
    ]
    try:
        found = calibrate_lists(lists, method, settings=trainer.reranker.settings)
    except DataError as error:
        console.print(f"--calibrate {method}: not calibrated: {error}")
        return
    trainer.loaded.spec.calibration = found.to_dict()
    before, after = found.record["before"], found.record["held_out"] or found.record["after"]
    console.print(
        f"calibrated ({method}): negative log-likelihood {before['nll']:.4f} to "
        f"{after['nll']:.4f}, calibration error {before['ece']:.4f} to {after['ece']:.4f}"
    )


def _make_whole(trainer: _Trainer, arguments: TrainArguments) -> None:
    """Put the trained weights together on the process that saves; the others keep their parts."""
    weights = gather(trainer.loaded.model, keep=trainer.args.should_save)
    if not trainer.args.should_save:
        return
    whole = _load_model(arguments)
    whole.model.load_state_dict(weights)
    whole.spec = trainer.loaded.spec
    trainer.loaded = whole
    trainer.reranker = Reranker(
        whole,
        batch_tokens=arguments.data.eval_batch_tokens,
        share_prefix=arguments.data.share_prefix,
    )


def _row_counts(examples: Sequence[Example]) -> dict[str, int]:
    """What the report says of rows, counted without reading their texts."""
    counts = {"rows": len(examples), "positives": 0, "negatives": 0}
    for _, part in blocks(examples):
        rows = outline(part)
        counts["positives"] += len(rows.positives.values)
        counts["negatives"] += len(rows.negatives.values)
    return counts


def _final_step(trainer: _Trainer) -> int:
    """The step whose weights are the final model's."""
    if trainer.args.load_best_model_at_end and trainer.state.best_global_step:
        return int(trainer.state.best_global_step)
    return int(trainer.state.global_step)


def _final_result(trainer: _Trainer) -> EvaluationResult | None:
    if not trainer.val_examples:
        return None
    step = _final_step(trainer)
    if step not in trainer.results:
        trainer.scores.clear()
        trainer.results[step], _ = trainer._evaluate_lists()
        # the weights are that step's, whatever the trainer's count says
        for scores_P in list(trainer.scores.values()):
            trainer.scores = {step: scores_P}
    return trainer.results[step]


def _load_rows(
    arguments: TrainArguments, bad_rows: BadRows
) -> tuple[Sequence[Example], Sequence[Example], dict[str, int]]:
    data, seed = arguments.data, arguments.training["seed"]
    # before an hour of reading
    dataset_instructions(data.dataset, data.instructions)
    if data.val_dataset:
        dataset_instructions(data.val_dataset, data.val_instructions)

    def load(dataset: list[str], instructions: list[str], purpose: Purpose) -> LoadedData:
        with tracked("reading rows", None) as advance:
            read: Counter[str] = Counter()

            def progress(file: str, count: int) -> None:
                advance(count - read[file])
                read[file] = count

            return load_store(
                dataset,
                cache_folder(data),
                instructions=instructions,
                data_format=data.data_format,
                seed=seed,
                use_hf=arguments.model.use_hf,
                purpose=purpose,
                bad_rows=bad_rows,
                progress=progress,
                rebuild=not data.load_from_cache_file,
            )

    loaded = load(data.dataset, data.instructions, "train")
    dropped = Counter(loaded.report.dropped)
    if data.val_dataset:
        val = load(data.val_dataset, data.val_instructions, "eval").examples
        return loaded.examples, val, dropped
    examples, val = split_examples(loaded.examples, data.split_dataset_ratio, seed)
    return examples, val, dropped


def _needs(objective: Objective, in_batch_negatives: int) -> Needs:
    """What a group must hold when it is drawn."""
    return "positive" if objective.needs == "both" and in_batch_negatives else objective.needs


def _usable(
    examples: Sequence[Example], objective: Objective, arguments: TrainArguments
) -> tuple[Sequence[Example], dict[str, int]]:
    """Take out what the loss cannot use, counted by reason."""
    data, needs = arguments.data, _needs(objective, arguments.data.in_batch_negatives)
    reasons, over = Counter[str](), list[int]()
    untaught, first_untaught = 0, 0
    fits = np.ones(len(examples), bool)
    for start, part in blocks(examples):
        rows = outline(part)
        fit = fits[start : start + len(part)]
        for reason, mask in unusable(rows, needs, data.group).items():  # type: ignore[arg-type]
            reasons[reason] += int(mask.sum())
            fit &= ~mask
        if objective.teacher and not rows.taught.all():
            first_untaught = first_untaught if untaught else start + int(np.argmin(rows.taught))
            untaught += int((~rows.taught).sum())
        over += (start + np.flatnonzero(fit & (rows.highest > 1))[:1]).tolist()
    if untaught:
        first = examples[first_untaught]
        raise ConfigError(
            f"{first.source or 'a row'}: query {first.query_id!r} has no teacher_scores, which "
            f"--loss_type {arguments.loss.loss_type} learns from ({untaught} of "
            f"{len(examples)} rows have none); write them with rankwright rank --model TEACHER "
            "--dataset ROWS --write_scores FILE"
        )
    if objective.probability_labels and over:
        first = examples[over[0]]
        raise ConfigError(
            f"{first.source or first.query_id}: label {max(first.labels)} is above 1, which the "
            f"{objective.probability_labels[0]} loss cannot read as a probability; use --loss_type "
            "listwise or scale the labels"
        )
    kept = examples if fits.all() else select(examples, np.flatnonzero(fits))
    reasons = +reasons
    parts = ", ".join(f"{count} with {reason}" for reason, count in reasons.items())
    if not kept:
        raise DataError(
            f"no row is left to train on: {parts or 'there are none'}; a listwise loss needs a "
            "positive and a negative for each query, --loss_type pointwise does not"
        )
    if reasons:
        console.print(f"left out of training: {parts}")
    return kept, reasons


def _check_instructions(
    train_examples: Sequence[Example], val_examples: Sequence[Example], encoder: PairEncoder
) -> None:
    """Refuse instructions that leave no room, and count those that change nothing."""
    for examples in (val_examples, train_examples):
        found = instructions(examples)
        for text, tokens in encoder.too_long(found).items():
            rows, first = found[text]
            raise ConfigError(
                f"{examples[first].source or examples[first].query_id}: its instruction (that of "
                f"{rows:,} rows) brings the template to {tokens} tokens, which leaves no room "
                f"within --max_length {encoder.max_length}; shorten it or raise --max_length"
            )
    if found and not encoder.template.reads_instruction:
        # those of the validation rows are counted where they are scored
        rows = sum(count for count, _ in found.values())
        console.print(
            f"{rows:,} rows have an instruction, which has no effect: the template has no place "
            "for it; give one with {instruction}, or write it into the queries"
        )


def _load_model(arguments: TrainArguments) -> Loaded:
    model = arguments.model
    _forget_deepspeed()
    loaded = checkpoint.load(
        model.model,
        LoadOptions(**load_options(model), quantization=arguments.tuner.quant_bits),
    )
    names = parse_objective(arguments.loss.loss_type).names
    if "listwise_generative" in names and loaded.spec.kind != "generative":
        raise ConfigError(
            "--loss_type listwise_generative_reranker needs a generative model; use "
            "listwise_reranker"
        )
    if arguments.tuner.tuner_type == "lora" and loaded.model.model is loaded.model.hf:
        add_adapters(loaded, arguments.tuner)
    elif arguments.tuner.tuner_type == "full" and loaded.model.model is not loaded.model.hf:
        raise ConfigError(
            f"{model.model} is a LoRA adapter; go on with --tuner_type lora, or merge it first"
        )
    return loaded


def _forget_deepspeed() -> None:
    """Take back what DeepSpeed's arguments set for the whole process.

    Every model that transformers reads later would be cut as it is read, which all processes have
    to do together; the engine takes whole ones.
    """
    unset_hf_deepspeed_config()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def _introduce(loaded: Loaded) -> None:
    """Say what is new, dropped or doubtful about the model that training starts from."""
    if loaded.spec.calibration is not None:
        console.print(
            "the calibration of the model does not hold for what training makes of it: dropped; "
            "fit it again with rankwright calibrate, or --calibrate"
        )
        loaded.spec.calibration = None
    spec = loaded.spec
    answers = (spec.positive_token, spec.negative_token) if spec.kind == "generative" else ()
    for line in template_warnings(loaded.tokenizer, spec.template, answers):
        logger.warning("%s", line)
    if loaded.new_modules:
        console.print(f"new weights, to be learnt: {', '.join(loaded.new_modules)}")


_COMPILE = ("torch_compile", "torch_compile_backend", "torch_compile_mode")


def _compile(loaded: Loaded, training: dict[str, Any]) -> None:
    """Compile the layers, if the arguments ask for it: a back end or a mode does so, too."""
    wanted, backend, mode = (training.get(name) for name in _COMPILE)
    if not (wanted or ((backend or mode) and wanted is None)):
        return
    layers = loaded.model.compile_blocks(backend or "inductor", mode)
    console.print(f"{layers} layers are compiled in the first steps, which take longer")


def _training_arguments(
    arguments: TrainArguments, *, has_validation: bool, resumed: bool
) -> TrainingArguments:
    """Fill in our defaults; validation, if there is any, decides the best checkpoint."""
    values = dict(arguments.training)
    metrics = [str(m) for m in parse_metrics(arguments.run.metrics)]
    values.pop("resume_from_checkpoint", None)
    for name in [name for name in values if name == "push_to_hub" or name.startswith("hub_")]:
        # the Trainer would push every checkpoint, and publicly; see _push
        values.pop(name)
    values.setdefault("report_to", "none")
    values["remove_unused_columns"] = False
    values["logging_nan_inf_filter"] = False
    values["disable_tqdm"] = True
    # early stopping counts on where it stood
    values["restore_callback_states_from_checkpoint"] = resumed
    on_gpu = torch.cuda.is_available() and not values.get("use_cpu")
    values.setdefault("dataloader_pin_memory", on_gpu)
    # on a CPU, workers would take the cores from the step
    if values.setdefault("dataloader_num_workers", 2 if on_gpu else 0):
        values.setdefault("dataloader_persistent_workers", True)
        values.setdefault("dataloader_prefetch_factor", 4)
    if arguments.data.batch_tokens is None:
        values.setdefault("per_device_train_batch_size", 8)
    else:
        values["per_device_train_batch_size"] = 1
    if has_validation:
        _evaluation_times(values)
        if values["eval_strategy"] != "no":
            values.setdefault("eval_on_start", not resumed)
            best = values.setdefault(
                "metric_for_best_model", "ndcg@10" if "ndcg@10" in metrics else metrics[0]
            )
            best = best.removeprefix("eval_")
            with suppress(ConfigError):
                best = values["metric_for_best_model"] = str(parse_metric(best))
            if best not in [*metrics, "loss"]:
                raise ConfigError(
                    f"--metric_for_best_model {best!r} is not measured; choose from "
                    f"{', '.join(metrics)}, loss, "
                    "or add it to --metrics"
                )
            values.setdefault("greater_is_better", best != "loss")
            _follow_metric(values)
    elif values.get("eval_strategy", "no") != "no":
        console.print("no validation rows: --eval_strategy has no effect")
        values["eval_strategy"] = "no"
    if not has_validation:
        if values.get("load_best_model_at_end"):
            raise ConfigError(
                "--load_best_model_at_end needs validation rows; give --val_dataset or "
                "--split_dataset_ratio"
            )
        values.setdefault("save_steps", 0.2)
    if values.get("label_smoothing_factor"):
        raise ConfigError(
            "--label_smoothing_factor has no place in these losses; leave it out, and give soft "
            "labels in the rows"
        )
    if values.get("eval_on_start") and not has_validation:
        raise ConfigError(
            "--eval_on_start needs validation rows; give --val_dataset or --split_dataset_ratio"
        )
    if values.get("auto_find_batch_size"):
        raise ConfigError(
            "--auto_find_batch_size is not supported: it would begin again with the weights that "
            "it has, and on one process of several; give --batch_tokens or a smaller "
            "--per_device_train_batch_size"
        )
    if values.get("save_on_each_node"):
        raise ConfigError(
            "--save_on_each_node is not supported: all processes share --output_dir; leave it out"
        )
    if values.get("neftune_noise_alpha") is not None:
        raise ConfigError(
            "--neftune_noise_alpha is not supported: its noise goes by the length of a padded "
            "batch, and batches are packed here; leave it out"
        )
    if values.get("use_liger_kernel"):
        raise ConfigError(
            "--use_liger_kernel is not supported: the loss that it fuses is that of language "
            "models; leave it out"
        )
    if str(values.get("optim", "")).startswith("schedule_free"):
        raise ConfigError(
            f"--optim {values['optim']} is not supported: its weights are other ones while it "
            "trains than those to evaluate and save; use adamw_torch_fused"
        )
    for name in _COMPILE:
        # the Trainer would compile the model as a whole, anew for every batch; see _compile
        values.pop(name, None)
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    for suffix in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        if old in values and new in known:
            values[new] = values.pop(old)
    _check_sharding(values)
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if not {"bf16", "fp16"} & values.keys() and precision in ("bf16", "fp16"):
        values[precision] = True  # said by accelerate launch
    if values.get("deepspeed"):
        values["deepspeed"] = _deepspeed_config(values, arguments)
        if find_spec("deepspeed") is None:
            raise ConfigError("--deepspeed needs deepspeed; pip install 'rankwright[deepspeed]'")
    try:
        args = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(str(error).strip().splitlines()[0]) from error
    # where both are false, transformers would ask accelerate's variable once more
    args.mixed_precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    if arguments.run.on_nan == "skip" and _steps_inside(args):
        name = "--deepspeed" if args.deepspeed else f"--optim {values['optim']}"
        raise ConfigError(
            f"--on_nan skip and {name} exclude each other: it takes its step within the backward "
            "pass, so no step can be left out; use --on_nan stop"
        )
    if args.deepspeed_plugin is not None:
        _check_deepspeed(args)
    if args.fp16 and args.device.type == "cpu":
        # accelerate would train in float32, without a word
        raise ConfigError(
            "--fp16 (or --torch_dtype float16) works on accelerators; use --bf16 true on a CPU"
        )
    if _fsdp(args):
        _check_fsdp(args, arguments)
    if args.n_gpu > 1:
        # one process would wrap the model in DataParallel, which cannot split a packed row
        console.print(
            f"one of {args.n_gpu} GPUs is used; start with torchrun --nproc_per_node {args.n_gpu} "
            "-m rankwright train ... for all"
        )
        args._n_gpu = 1
    _try_out_optimizer(args)
    return args


# what optimizers and schedules say of arguments, and of libraries that are missing
_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _try_out_optimizer(args: TrainingArguments) -> None:
    """Make optimizer and schedule for a single number: what they refuse is told at once.

    A run to be replaced is still there then.
    """
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer: Any = torch.optim.SGD([weight], lr=args.learning_rate)
    with _refusals(f"--optim {args.optim.value}", "optim_args", args):
        try:
            kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(args)
        except ValueError as error:
            # of some no more can be said without the model than that their library is there
            if "need to pass a" not in str(error):
                raise
            kind, options = None, {}
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            optimizer = kind([weight], **options)
    schedule = args.lr_scheduler_type
    with _refusals(f"--lr_scheduler_type {schedule.value}", "lr_scheduler_kwargs", args):
        transformers.get_scheduler(
            schedule,
            optimizer,
            # behind the warm-up, where what it was given is used
            num_warmup_steps=0,
            num_training_steps=2,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )


@contextmanager
def _refusals(what: str, options: str, args: TrainingArguments) -> Iterator[None]:
    """Say in one line which argument is to blame for what cannot be made."""
    try:
        yield
    except _REFUSALS as error:
        line = " ".join(str(error).split())
        value = getattr(args, options)
        more = f"; look at --{options} {value}" if value else ""
        raise ConfigError(f"{what} cannot be made: {line}{more}") from error


def _step_sizes(arguments: TrainArguments, args: TrainingArguments) -> Progress:
    """What the arguments say of a step, where nothing has been done yet."""
    return Progress(
        processes=args.world_size,
        batch=args.per_device_train_batch_size,
        batch_tokens=arguments.data.batch_tokens,
        accumulation=args.gradient_accumulation_steps,
        asked=[args.per_device_train_batch_size, args.gradient_accumulation_steps],
    )


def _evaluation_times(values: dict[str, Any]) -> None:
    """Evaluate when checkpoints are written and the other way round, where only one is said."""
    save = values.get("save_strategy")
    values.setdefault("eval_strategy", save if save in ("steps", "epoch") else "steps")
    evaluate = values["eval_strategy"]
    if evaluate == "no":
        return
    values.setdefault("save_strategy", evaluate)
    values.setdefault("eval_steps", values.get("save_steps", 0.1))
    values.setdefault("save_steps", values["eval_steps"])
    ratio = values["save_steps"] / values["eval_steps"]
    # a fraction of the run and a number of steps cannot be compared
    same_kind = (values["save_steps"] < 1) == (values["eval_steps"] < 1)
    fits = evaluate == "epoch" or (same_kind and ratio >= 1 and abs(ratio - round(ratio)) < 1e-9)
    values.setdefault("load_best_model_at_end", values["save_strategy"] == evaluate and fits)


def _follow_metric(values: dict[str, Any]) -> None:
    """Let a schedule that follows the metric know which way is better; its default is a loss's."""
    if values.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy"):
        given = _json_setting("--lr_scheduler_kwargs", values.get("lr_scheduler_kwargs"))
        mode = "max" if values["greater_is_better"] else "min"
        values["lr_scheduler_kwargs"] = {"mode": mode, **given}


def _check_sharding(values: dict[str, Any]) -> None:
    """Read ``--fsdp`` and refuse what is not supported.

    Raises:
        ConfigError: FSDP 1, an unknown word, or a file that is no JSON.
    """
    word = str(values.pop("fsdp", "none")).lower()
    config = values.pop("fsdp_config", None)
    if word not in ("none", "false", "true", "fsdp2"):
        raise ConfigError(
            f"--fsdp {word!r} is not known; give true, and settings in --fsdp_config FILE"
        )
    if word in ("true", "fsdp2"):
        if values.get("deepspeed"):
            raise ConfigError("--fsdp and --deepspeed exclude each other; give one")
        values["fsdp"], values["fsdp_config"] = True, _fsdp_config(config)


# DeepSpeed lays all weights in one row and cuts it anywhere, so a weight's states are its own
DEEPSPEED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


def _deepspeed_config(values: dict[str, Any], arguments: TrainArguments) -> dict[str, Any]:
    """DeepSpeed's settings, with what the arguments say filled in by transformers.

    DeepSpeed is to compute in float32, under our own autocast: its half precision would round the
    head and what is saved.

    Raises:
        ConfigError: the settings are not JSON, or hold what is not supported.
    """
    config = _json_setting("--deepspeed", values["deepspeed"])
    if without_secrets(config) != config:
        raise ConfigError(
            "--deepspeed holds a key or a password, which trackers would write down; give it by "
            "an environment variable, such as COMET_API_KEY"
        )
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (1, 2, 3):
        raise ConfigError(
            f"--deepspeed: zero_optimization.stage is {stage}; give 1, 2 or 3, or leave "
            "--deepspeed out"
        )
    offload = "zero_force_ds_cpu_optimizer"
    for name in ("optimizer", "scheduler", "amp", "torch_autocast", offload):
        if config.get(name):
            raise ConfigError(
                f"--deepspeed: its setting {name} is not supported; leave it out, --optim, "
                "--learning_rate, --lr_scheduler_type and --bf16 say it"
            )
    if "nvme" in json.dumps(zero):
        raise ConfigError("--deepspeed: offloading to nvme is not supported; offload to cpu")
    halves = {name: config.get(name) for name in ("bf16", "fp16")}
    on = {n for n, half in halves.items() if isinstance(half, dict) and half.get("enabled") is True}
    if values.get("fp16") or "fp16" in on:
        raise ConfigError(
            "--fp16 and --deepspeed exclude each other; use --bf16 true, or --torch_dtype float32"
        )
    if "bf16" in on:
        values.setdefault("bf16", True)
    optimizer = values.get("optim", DEEPSPEED_OPTIMIZERS[0])
    if optimizer not in DEEPSPEED_OPTIMIZERS:
        raise ConfigError(
            f"--deepspeed and --optim {optimizer} exclude each other; choose from "
            f"{', '.join(DEEPSPEED_OPTIMIZERS)}"
        )
    if arguments.tuner.quant_bits and stage == 3:
        raise ConfigError(
            "--deepspeed with ZeRO-3 and --quant_bits exclude each other: weights in four bits are "
            "not cut over processes; use zero2, or leave --quant_bits out"
        )
    sizes = ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size")
    filled = dict.fromkeys((*sizes, "train_micro_batch_size_per_gpu"), "auto")
    given = {name: value for name, value in config.items() if name not in halves}
    return {**filled, **given, offload: False}


def _check_fsdp(args: TrainingArguments, arguments: TrainArguments) -> None:
    """Refuse FSDP where it cannot be, and where accelerate would train without it in silence."""
    name = "--fsdp" if args.fsdp else "FSDP, which accelerate launch says to use,"
    if arguments.tuner.quant_bits:
        raise ConfigError(
            f"{name} and --quant_bits exclude each other: weights in four bits are not cut over "
            "processes; leave one of the two out"
        )
    if args.deepspeed:
        raise ConfigError(f"{name} and --deepspeed exclude each other; leave one of the two out")
    if args.world_size == 1:
        raise ConfigError(
            f"{name} cuts the weights over processes; start with torchrun --nproc_per_node N -m "
            "rankwright train ..., or leave it out"
        )
    if args.distributed_state.distributed_type == DistributedType.MULTI_CPU:
        raise ConfigError(
            f"{name} works on accelerators: on CPUs every process would hold all weights; leave it "
            "out"
        )


def _check_deepspeed(args: TrainingArguments) -> None:
    """Refuse to train without DeepSpeed where it was asked for, or with settings not read here."""
    if not args.deepspeed:
        raise ConfigError(
            "accelerate launch says to use DeepSpeed; leave that to --deepspeed zero2|zero3|FILE"
        )
    state = args.distributed_state
    if state.distributed_type != DistributedType.DEEPSPEED or state.backend is None:
        raise ConfigError(
            "--deepspeed works on accelerators and in processes that a launcher starts; start with "
            "torchrun --nproc_per_node N -m rankwright train ..., or leave it out"
        )
    # the Trainer hands this on, and DeepSpeed would turn its own half precision on
    args.mixed_precision = "no"


def _json_setting(name: str, given: Any) -> dict[str, Any]:
    """What an argument holds that is a mapping, JSON, a file of JSON, or nothing."""
    if isinstance(given, dict):
        return given
    text, shown = str(given or "{}"), name
    try:
        if not text.lstrip().startswith("{"):
            shown = f"{name} {given}"
            text = Path(text).read_text(encoding="utf-8")
        return dict(json.loads(text))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{shown} cannot be read ({error}); give a file of JSON") from error


def _fsdp_config(given: Any) -> dict[str, Any]:
    """The settings of FSDP: a mapping, JSON, or a file of JSON."""
    found = _json_setting("--fsdp_config", given)
    config = {str(name).removeprefix("fsdp_"): value for name, value in found.items()}
    if str(config.get("version", 2)) != "2" or config.get("xla"):
        raise ConfigError("--fsdp_config: only FSDP version 2 is supported; leave out version, xla")
    if config.pop("state_dict_type", "FULL_STATE_DICT") != "FULL_STATE_DICT":
        console.print(
            "--fsdp_config: state_dict_type has no effect: checkpoints hold whole weights"
        )
    return config


def _plan(
    arguments: TrainArguments,
    args: TrainingArguments,
    examples: Sequence[Example],
    collate: Collator,
) -> BatchPlan:
    data = arguments.data
    sampling = Sampling(
        seed=args.data_seed if args.data_seed is not None else args.seed,
        max_positives=data.max_positive_samples,
        max_negatives=data.max_negative_samples,
        mode=data.group,  # type: ignore[arg-type]
        needs=_needs(parse_objective(arguments.loss.loss_type), data.in_batch_negatives),
        borrowed=data.in_batch_negatives,
    )
    drawn = np.concatenate([sampling.counts(outline(part)) > 0 for _, part in blocks(examples)])
    if not drawn.any():
        raise DataError(
            "no row gives a group to train on; raise --max_negative_samples, or give rows with "
            "positive and negative documents"
        )
    if not drawn.all():
        console.print(f"left out of training: {(~drawn).sum()} without any group")
        examples = select(examples, np.flatnonzero(drawn))
    ahead = data.batch_tokens is not None if data.lazy_tokenize is None else not data.lazy_tokenize
    tokens = None
    if ahead:
        tokens = token_store(
            examples,
            collate.encoder,
            cache_folder(data),
            workers=data.dataset_num_proc,
            rebuild=not data.load_from_cache_file,
        )
    dataset = GroupDataset(examples, sampling, tokens)
    shared = {
        "rank": args.process_index,
        "world": args.world_size,
        "drop_last": args.dataloader_drop_last,
    }
    if data.batch_tokens is None:
        return BatchPlan(dataset, queries=args.per_device_train_batch_size, **shared)
    assert tokens is not None
    return BatchPlan(
        dataset,
        tokens=data.batch_tokens,
        lengths=tokens.lengths(share_prefix=collate.share_prefix),
        epochs=math.ceil(args.num_train_epochs),
        batches=args.max_steps * args.gradient_accumulation_steps if args.max_steps > 0 else None,
        **shared,
    )


def _agree_on_start(
    args: Any,
    resume_from: str | None,
    train_examples: Sequence[Example],
    val_examples: Sequence[Example],
) -> None:
    """Refuse to go on from several checkpoints: one process may have found a file damaged.

    And on other queries and labels: a file may be changed, or a hub out of reach, between two
    processes' reading.

    Raises:
        CheckpointError: the processes have chosen others; all of them raise it.
        DataError: they have read others.
    """
    processes = Processes(args.process_index, args.world_size)
    processes.agree(
        Path(resume_from).name if resume_from else "none",
        lambda found: CheckpointError(
            f"--resume: the processes found other checkpoints whole ({found}); the same command "
            "again, or --resume_from_checkpoint with the one that all of them can read"
        ),
    )
    if processes.world > 1:
        read = hashlib.sha256()
        for _, part in chain(blocks(train_examples), blocks(val_examples)):
            rows = outline(part)
            read.update(f"{len(rows)} {list(rows.query_ids)}".encode())
            read.update(folds(part).tobytes())
            for numbers in (rows.positives, rows.negatives):
                read.update(numbers.values.tobytes() + numbers.offsets.tobytes())
            for values in (rows.highest, rows.lowest, rows.taught):
                read.update(values.tobytes())
        processes.agree_on_rows(read.hexdigest())


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a stop at the next step; another one, later, ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: float | None = None

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        now = time.monotonic()
        if asked is not None and now - asked > SIGNAL_ECHO:
            raise KeyboardInterrupt
        if asked is None:
            asked = now
            stop.set()
            console.print(
                "stopping after this step and saving a checkpoint; once more, after "
                f"{SIGNAL_ECHO:g} seconds, to end at once"
            )

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _logged_before(trainer: _Trainer) -> dict[str, float] | None:
    """The first evaluation of a run that was resumed, from its log."""
    names = [str(metric) for metric in parse_metrics(trainer.metric_names)]
    for entry in trainer.state.log_history:
        if entry["step"] == 0 and all(f"eval_{name}" in entry for name in names):
            return {name: entry[f"eval_{name}"] for name in names}
    return None


def _intervals(trainer: _Trainer, after: EvaluationResult | None) -> dict[str, Any]:
    """Bootstrap intervals over queries, by stage and metric; none of a single query."""
    found: dict[str, Any] = {}
    if trainer.before.intervals:
        found["before"] = trainer.before.intervals
    if after is not None:
        found["after"] = _bootstrap({name: after.values(name) for name in after.metrics})
    if after is not None and after.first_stage_per_query is not None:
        per_query = after.first_stage_per_query.items()
        found["first_stage"] = _bootstrap({n: v_Q[after.has_positive] for n, v_Q in per_query})
    return found


def _bootstrap(values: dict[str, npt.NDArray[np.float64]]) -> dict[str, list[float]]:
    return {
        name: list(bootstrap_interval(values_Q, seed=0))
        for name, values_Q in values.items()
        if len(values_Q) > 1
    }


def _save_final(
    trainer: _Trainer,
    arguments: TrainArguments,
    result: TrainResult,
    more: dict[str, Any],
    name: str,
) -> None:
    """Put the final model into the output folder itself, beside the checkpoints."""
    folder = result.output_dir
    work = run_folder.staging(folder)
    try:
        run_folder.clean(folder)
        work.mkdir(parents=True)
        _write_final(trainer, arguments, result, more, name, work)
        run_folder.finish_files(work, folder, checkpoint.SPEC_FILE)
    except (OSError, SafetensorError) as error:
        run_folder.clean(folder)
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"the final model cannot be written to {folder} ({reason}); make room, then the same "
            "command with --resume writes it"
        ) from error


def _write_final(
    trainer: _Trainer,
    arguments: TrainArguments,
    result: TrainResult,
    more: dict[str, Any],
    name: str,
    folder: Path,
) -> None:
    adapted = trainer.loaded.model.model is not trainer.loaded.model.hf
    merge = adapted and arguments.tuner.merge_lora
    if merge:
        adapter = folder / run_folder.ADAPTER_FOLDER
        adapter.mkdir(parents=True, exist_ok=True)
        checkpoint.write_files(trainer.loaded, adapter)
    checkpoint.write_files(trainer.loaded, folder, merge=merge)
    trainer.state.save_to_json(str(folder / run_folder.STATE_FILE))
    metrics = {
        "before": result.before.metrics if result.before else _logged_before(trainer),
        "after": result.after.metrics if result.after else None,
        "first_stage": result.after.first_stage_metrics if result.after else None,
        "intervals": _intervals(trainer, result.after),
        "tie_rate": result.after.tie_rate if result.after else None,
        "train_loss": result.train_loss,
        "steps": result.steps,
        **trainer.guard.counts,
        "seconds": round(result.seconds, 2),
        "dropped": result.dropped,
        "truncated": result.truncated,
        **more,
    }
    if result.after is not None:
        main = next(iter(result.after.per_query.values()))
        # no metric is defined without a positive, so such a query is not among the worst
        worst = np.lexsort((main, ~result.after.has_positive)).tolist()
        scores_P = trainer.scores[_final_step(trainer)]
        metrics["records"] = write_records(
            result.output_dir, "after", trainer.val_examples, scores_P, worst
        )
    text = json.dumps(metrics, indent=2) + "\n"
    (folder / run_folder.METRICS_FILE).write_text(text, encoding="utf-8")
    write_card(trainer.loaded, folder, metrics, name=name)
