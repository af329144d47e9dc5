"""The same score everywhere: 50 real pairs by every route, and the largest difference of each.

For a trained classification model give ``--model``; the architectures are otherwise built from
their configurations with random weights (and real tokenizers, where ``--tokenizers`` names their
folder).

    python benchmarks/parity.py --rows dev.jsonl --tokenizers tokenizers --model output
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from rankwright.arguments import TunerArguments
from rankwright.data.readers import load_examples
from rankwright.models import checkpoint
from rankwright.models.lora import add_adapters
from rankwright.ranking import Reranker
from rankwright.types import Example

Pairs = list[tuple[str, str]]


def random_model(name: str, tokenizers: Path, folder: Path) -> Path:
    """Write a random model of a real architecture: 4 layers, real vocabulary."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_labels": 1,
        "initializer_range": 0.1,
    }
    source, auto = tokenizers / name, transformers.AutoModelForSequenceClassification
    options: dict[str, Any] = {}
    if name == "modernbert":
        sizes |= {"local_attention": 16, "classifier_pooling": "mean"}
        options = {"pad_token": "[PAD]"}
    if name == "qwen3":
        sizes |= {"vocab_size": 151669, "num_key_value_heads": 2, "head_dim": 32}
        sizes |= {"tie_word_embeddings": True, "pad_token_id": 151643}
        auto = transformers.AutoModelForCausalLM
    kind = "bert" if name.startswith("bert") else name
    auto.from_config(transformers.CONFIG_MAPPING[kind](**sizes)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, **options).save_pretrained(folder)
    return folder


def plain_transformers(folder: Path, pairs: Pairs) -> list[float]:
    """Score one pair at a time with transformers alone, the prompt as one string."""
    spec = json.loads((folder / "rankwright.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scores = []
    if spec["kind"] == "generative":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        words = [spec["positive_token"], spec["negative_token"]]
        yes, no = tokenizer.convert_tokens_to_ids(words)
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for query, document in pairs:
        if spec["template_prefix"] is None:
            limits = {"truncation": "only_second", "max_length": spec["max_length"]}
            inputs = tokenizer(query, document, return_tensors="pt", **limits)
        else:
            prompt = spec["template_prefix"].format(query=query, instruction=spec["instruction"])
            text = prompt + document + spec["template_suffix"]
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            logits = model(**inputs).logits
        if spec["kind"] == "generative":
            scores.append(float(logits[0, -1, yes] - logits[0, -1, no]))
        else:
            scores.append(float(logits[0, 0]))
    return scores


def training_forward(reranker: Reranker, pairs: Pairs) -> list[float]:
    """Score as a training step does: groups packed into one row, gradients on."""
    from rankwright.types import Group

    groups = [Group(Example(q, [d], [0.0]), (0,)) for q, d in pairs]
    model = reranker.loaded.model
    device = reranker.device
    scores_P: torch.Tensor = model(reranker.collator(groups).to(device))
    return scores_P.detach().tolist()


def routes(folder: Path, pairs: Pairs, work: Path) -> Iterator[tuple[str, float]]:
    """Yield (route, largest difference from the first route)."""
    reranker = Reranker.load(folder, device="cpu")
    reranker.save(work / "saved")
    reranker = Reranker.load(work / "saved", device="cpu")
    reference = torch.tensor(reranker.score(pairs))

    def difference(scores: list[float]) -> float:
        return float((torch.tensor(scores) - reference).abs().max())

    yield "spread of the scores (std)", float(reference.std())
    yield "training forward", difference(training_forward(reranker, pairs))
    padded = Reranker.load(work / "saved", device="cpu", packed=False)
    yield "padded", difference(padded.score(pairs))
    alone = Reranker.load(work / "saved", device="cpu", batch_tokens=1)
    yield "one at a time", difference(alone.score(pairs))
    yield "transformers", difference(plain_transformers(work / "saved", pairs))
    from sentence_transformers import CrossEncoder

    cross_encoder = CrossEncoder(str(work / "saved"), device="cpu")
    logits = cross_encoder.predict(pairs, activation_fn=torch.nn.Identity())
    yield "sentence-transformers", difference(logits.tolist())
    loaded = checkpoint.load(work / "saved")
    add_adapters(loaded, TunerArguments())
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    reference = torch.tensor(Reranker(loaded).score(pairs))
    checkpoint.save(loaded, work / "adapter")
    checkpoint.save(loaded, work / "merged", merge=True)
    yield "LoRA reloaded", difference(Reranker.load(work / "adapter", device="cpu").score(pairs))
    yield "LoRA merged", difference(Reranker.load(work / "merged", device="cpu").score(pairs))
    merged = CrossEncoder(str(work / "merged"), device="cpu")
    logits = merged.predict(pairs, activation_fn=torch.nn.Identity())
    yield "LoRA merged, sentence-transformers", difference(logits.tolist())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", required=True, help="rows to take the pairs from")
    parser.add_argument("--tokenizers", type=Path, help="folder of real tokenizers")
    parser.add_argument("--model", action="append", default=[], help="a model folder, repeatable")
    options = parser.parse_args()
    examples = load_examples(options.rows, purpose="eval").examples
    pairs = [(e.query, d) for e in examples for d in e.documents][:50]
    logging.disable(logging.WARNING)
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {Path(name).name: Path(name) for name in options.model}
        for name in ("modernbert", "bert-base-uncased", "qwen3") if options.tokenizers else ():
            folders[f"{name}, random"] = random_model(
                name, options.tokenizers, Path(temporary) / name
            )
        for name, folder in folders.items():
            with contextlib.redirect_stderr(io.StringIO()):
                work = Path(temporary) / f"work-{len(columns)}"
                columns[name] = dict(routes(folder, pairs, work))
    table = Table(title=f"largest difference over {len(pairs)} pairs, float32")
    table.add_column("route")
    for name in columns:
        table.add_column(name, justify="right")
    for route in next(iter(columns.values())):
        table.add_row(route, *(f"{values[route]:.1e}" for values in columns.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
