"""How fast is a training step on a GPU, in how much memory, and which kernels take its time?

    python benchmarks/steps.py qwen3-0.6b modernbert-base --output steps.json

One process, our model alone, random weights and random tokens in the lengths of ``speed.py``: a
prompt and query of 90 tokens, 8 documents of log-normal length. A step is forward, listwise loss,
backward, clipping and fused AdamW, under autocast to bfloat16 with float32 weights as
``--bf16 true`` trains; a slice of a batch is ``--slice-tokens`` long, as the trainer cuts it.

- **MFU** is the FLOPs of the model over those of the card's data sheet: weights and attention, of
  unique and unpadded tokens, three times the forward (frozen weights twice: they have no gradient).
  Recomputed activations do not count.
- **of pairs** counts the prompt and query for every document, as without sharing.
- Times are the median over ``--steps`` steps, each on a batch of its own, between two waits for the
  device. Compiled layers must not compile anything in them, or the row says so.

``--profile`` prints the kernels that take most of a step's time, and the share of it in which none
ran. Where a model does not fit, the row says so and the next one is tried.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np
import speed
import torch
import transformers
from peft import LoraConfig, get_peft_model

from rankwright.data.collate import Collator
from rankwright.losses import LOSSES
from rankwright.models.reranker import RerankerModel
from rankwright.templates import PairTokens
from rankwright.types import Example, Group, PackedBatch

PREFIX_TOKENS, SUFFIX_TOKENS = 90, 14
VOCABULARY = 50_000


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        model: name in ``speed.MODELS``.
        slice_tokens: tokens computed at a time.
        compiled: whether the layers are.
        shared: whether a group's prompt and query are computed once.
        half: weights in bfloat16, and the optimiser's state with them.
        checkpointing: activations are computed again in the backward pass.
        lora: rank of adapters on all linear layers; 0 for full training.
        attention: back end.
    """

    model: str
    slice_tokens: int
    compiled: bool = False
    shared: bool = True
    half: bool = False
    checkpointing: bool = False
    lora: int = 0
    attention: str = "auto"

    @property
    def name(self) -> str:
        """What the table calls it."""
        parts = [self.model, f"{self.slice_tokens} tokens"]
        parts += ["compiled"] if self.compiled else []
        parts += [] if self.shared or not self.decoder else ["not shared"]
        parts += ["bf16 weights"] if self.half else []
        parts += ["checkpointing"] if self.checkpointing else []
        parts += [f"LoRA {self.lora}"] if self.lora else []
        parts += [] if self.attention == "auto" else [self.attention]
        return ", ".join(parts)

    @property
    def decoder(self) -> bool:
        """Whether it is generative."""
        return self.model.startswith("qwen3")


def variants_of(model: str, options: argparse.Namespace) -> Iterator[Variant]:
    """The rows that are measured of a model."""
    first = Variant(model, options.slice_tokens[0], attention=options.attention)
    if model in speed.LARGE:
        low = replace(first, slice_tokens=min(options.slice_tokens), checkpointing=True)
        if model == "qwen3-8b":
            low = replace(low, half=True, lora=8)
        yield low
        yield replace(low, compiled=True)
        return
    for size in options.slice_tokens:
        yield replace(first, slice_tokens=size)
    if first.decoder:
        yield replace(first, shared=False)
    for size in options.slice_tokens:
        yield replace(first, slice_tokens=size, compiled=True)


def build(variant: Variant, options: argparse.Namespace) -> RerankerModel:
    """A model with random weights on the device."""
    half = variant.half or bool(variant.lora)
    dtype = torch.bfloat16 if half else torch.float32
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForSequenceClassification
    if variant.decoder:
        auto = transformers.AutoModelForCausalLM
    config = speed.config_of(options, variant.model)
    with torch.device(options.device):
        model = auto.from_config(config, dtype=dtype)
    if variant.lora:
        adapters = LoraConfig(r=variant.lora, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapters)
    kind, ids = ("generative", (9693, 2152)) if variant.decoder else ("classification", None)
    found = RerankerModel(model, kind, ids, attn_impl=variant.attention)
    found.to(options.device).train()
    if variant.checkpointing:
        found.activation_checkpointing_enable()
    if variant.compiled:
        found.compile_blocks()
    return found


def batches_of(variant: Variant, options: argparse.Namespace) -> list[PackedBatch]:
    """One batch for every step, and those of the warm-up."""
    generator = np.random.default_rng(0)
    collate = Collator(
        SimpleNamespace(document_types=0),  # type: ignore[arg-type]
        share_prefix=variant.decoder and variant.shared,
        scored_last=variant.decoder,
        slice_tokens=variant.slice_tokens,
    )
    documents = 8
    found = []
    suffix = SUFFIX_TOKENS if variant.decoder else 1
    prefix = PREFIX_TOKENS if variant.decoder else 22

    def ids(length: int) -> list[int]:
        drawn: list[int] = generator.integers(1000, VOCABULARY, length).tolist()
        return drawn

    for _ in range(options.steps + options.warm_up):
        groups: list[Group] = []
        encoded: list[PairTokens] = []
        used = 0
        example = Example("q", [""] * documents, [1.0] + [0.0] * (documents - 1))
        while not encoded or used + collate.cost(encoded[-1]) <= options.batch_tokens:
            lengths = speed.log_normal_lengths(generator, documents)
            texts = [ids(length + suffix) for length in lengths]
            encoded.append(PairTokens(ids(prefix), texts, 0, False))
            groups.append(Group(example, tuple(range(documents))))
            used += collate.cost(encoded[-1])
        found.append(collate.pack(groups, encoded).to(options.device))
    return found


def flops_of(model: RerankerModel, batch: PackedBatch, *, shared: bool) -> float:
    """FLOPs of a training step; of every pair in full where not ``shared``."""
    config = model.config
    head = {id(p) for m in model.head_modules() for p in m.parameters()}
    passes = 0  # over a token's weights, of 2 FLOPs each
    for name, p in model.hf.named_parameters():
        if id(p) not in head and "embed" not in name:
            passes += p.numel() * (3 if p.requires_grad else 2)
    total, tokens = 0.0, 0
    for length, parent in zip(batch.lengths, batch.parents, strict=True):
        before = batch.lengths[parent] if parent >= 0 else 0
        whole = speed.attention_flops(config, before + length)
        total += whole - (speed.attention_flops(config, before) if shared else 0.0)
        tokens += length + (0 if shared else before)
    if not shared:
        # the prefixes' own segments are in their documents' already
        for parent in {p for p in batch.parents if p >= 0}:
            total -= speed.attention_flops(config, batch.lengths[parent])
            tokens -= batch.lengths[parent]
    return float(2.0 * passes * tokens + 3 * total)


class Step:
    """A training step of a variant.

    Args:
        variant: which.
        options: the command line.
    """

    def __init__(self, variant: Variant, options: argparse.Namespace) -> None:
        self.model = build(variant, options)
        self.device = options.device
        self.mixed = not variant.half or bool(variant.lora)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self.trained if variant.lora else []:
            parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)

    def __call__(self, batch: PackedBatch) -> None:
        """Forward and backward of every slice, clipping, optimiser."""
        loss = LOSSES["listwise"].function
        for part in batch.slices():
            with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
                scores_P = self.model(part)
            total = loss(scores_P, part.labels_P, part.offsets_Q).total
            total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def wait(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def compilations() -> int:
    """How many graphs were compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def measure(variant: Variant, options: argparse.Namespace) -> dict[str, Any]:
    """Time the steps of a variant."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    before = compilations()
    batches = batches_of(variant, options)
    step = Step(variant, options)
    for batch in batches[: options.warm_up]:
        step(batch)
    wait(options.device)
    ready, graphs = time.perf_counter() - started, compilations()
    if variant.compiled and graphs == before:
        raise RuntimeError("nothing was compiled")
    seconds = []
    for batch in batches[options.warm_up :]:
        began = time.perf_counter()
        step(batch)
        wait(options.device)
        seconds.append(time.perf_counter() - began)
    timed = batches[options.warm_up :]
    unique = statistics.mean(flops_of(step.model, b, shared=True) for b in timed)
    pairs = statistics.mean(flops_of(step.model, b, shared=False) for b in timed)
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
    if options.profile:
        profile(step, batches[-1], options)
    median = statistics.median(seconds)
    return {
        "name": variant.name,
        "seconds": seconds,
        "pairs": statistics.mean(b.num_pairs for b in timed),
        "tokens": statistics.mean(b.num_tokens for b in timed),
        "pairs_per_second": statistics.mean(b.num_pairs for b in timed) / median,
        "unique_flops": unique,
        "flops": pairs,
        "mfu": unique / median / options.peak if options.peak else None,
        "of_pairs": pairs / median / options.peak if options.peak else None,
        "ready": ready,
        "graphs": graphs - before,
        "compiled_while_timed": compilations() - graphs,
        "peak_memory": peak,
    }


def profile(step: Step, batch: PackedBatch, options: argparse.Namespace) -> None:
    """Print the kernels by their time, and the share of the step in which none ran."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    cuda = options.device == "cuda"
    activities += [ProfilerActivity.CUDA] if cuda else []
    with torch.profiler.profile(activities=activities) as found:
        began = time.perf_counter()
        step(batch)
        wait(options.device)
        seconds = time.perf_counter() - began
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    kernels = [
        (getattr(event, key), event.count, event.key)
        for event in found.key_averages()
        # annotations cover kernels that are counted themselves
        if not cuda or ("CUDA" in str(event.device_type) and not event.is_user_annotation)
    ]
    total = sum(time for time, _, _ in kernels)
    idle = max(0.0, 1 - total / 1e6 / seconds)
    print(f"profiled step {seconds * 1e3:.1f} ms, kernels {total / 1e3:.1f} ms, idle {idle:.0%}")
    for taken, count, name in sorted(kernels, reverse=True)[: options.profile]:
        print(f"{taken / 1e3:9.2f} ms {taken / total:5.1%} {count:6d} x {name[:140]}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="+", choices=list(speed.MODELS), metavar="MODEL")
    add("--batch-tokens", type=int, default=32768, help="tokens of an optimiser step")
    add("--slice-tokens", type=int, nargs="+", default=[8192], help="tokens computed at a time")
    add("--attention", default="auto", help="back end, see --attn_impl")
    add("--steps", type=int, default=6, help="timed steps of each row")
    add("--warm-up", type=int, default=3, help="steps before them")
    add("--only", nargs="*", default=[], help="words that a row's name holds, or it is left out")
    add("--peak", type=float, help="the card's TFLOP/s, where its data sheet is not known here")
    add("--profile", type=int, default=0, metavar="N", help="print the N longest kernels")
    add("--device", default="cuda", choices=["cpu", "cuda"])
    add("--smoke", action="store_true", help=argparse.SUPPRESS)
    add("--output", type=Path, help="file for the raw numbers (JSON)")
    options = parser.parse_args()
    options.peak = options.peak * 1e12 if options.peak else speed.peak_rate()
    if options.smoke:
        options.batch_tokens, options.slice_tokens = 1024, [512]
        options.steps, options.warm_up = 1, 1
    return options


def main() -> int:
    """Measure, print, write; return the exit code."""
    options = parse()
    about = machine.surroundings("steps.py", torch.get_num_threads()) | {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__}
    }
    results: list[dict[str, Any]] = []
    for model in options.models:
        for variant in variants_of(model, options):
            if not all(word in variant.name for word in options.only):
                continue
            try:
                found = measure(variant, options)
            except Exception as error:  # the rows that follow are still worth having
                reason = " ".join(str(error).split())[:300]
                found = {"name": variant.name, "failed": f"{type(error).__name__}: {reason}"}
            results.append(found)
            print(row(found), flush=True)
            torch._dynamo.reset()  # holds the compiled layers
            gc.collect()
            torch.cuda.empty_cache()
            if options.output is not None:
                text = json.dumps({**about, "results": results}, indent=1)
                options.output.write_text(text + "\n", encoding="utf-8")
    # layers that are compiled anew after they were warm make the times worthless
    wrong = [found for found in results if "failed" in found or found["compiled_while_timed"]]
    return 1 if wrong else 0


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    if "failed" in found:
        return f"| {found['name']} | {found['failed']} |"
    median = statistics.median(found["seconds"])
    cells = [
        found["name"],
        f"{median * 1e3:.1f} ms",
        f"{found['pairs_per_second']:.0f} pairs/s",
        f"MFU {found['mfu']:.1%}" if found["mfu"] else "MFU -",
        f"of pairs {found['of_pairs']:.1%}" if found["of_pairs"] else "of pairs -",
        f"{found['peak_memory'] / 2**30:.1f} GiB",
        f"ready {found['ready']:.0f} s",
    ]
    if found["compiled_while_timed"]:
        cells.append(f"compiled {found['compiled_while_timed']} graphs while timed")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
