"""Tiny random models of the real architectures, with tokenizers made on the spot."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rankwright.templates import DEFAULT_INSTRUCTION, QWEN3_PREFIX, QWEN3_SUFFIX
from rankwright.types import Example

TEXT = (
    "the quick brown fox jumps over a lazy dog while rain falls on green hills and cold rivers run "
    "to grey seas where old ships sleep under white birds that cry at dawn yes no"
)
WORDS = TEXT.split()
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]

ENCODERS = ("modernbert", "bert", "roberta", "xlm-roberta", "electra", "distilbert", "camembert")
DECODERS = ("qwen3", "qwen2", "llama", "mistral")
PADDED = ("deberta-v2", "gpt2")


def encoder_tokenizer(*, token_types: bool) -> PreTrainedTokenizerFast:
    """Words with the frame ``[CLS] q [SEP] d [SEP]``."""
    vocabulary = {
        w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    second = 1 if token_types else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if token_types else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
        model_input_names=names,
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and of words ``yes``, ``no`` and ``the`` alone."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("y", "e"), ("ye", "s"), ("n", "o"), ("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokens = [*alphabet, *("".join(merge) for merge in merges)]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    return _with_specials(_byte_level(model))


def decoder_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs as in Qwen, with ``yes`` and ``no`` as single tokens.

    They are learned from the prompt and our words: of bytes alone a prompt would be four times as
    long, and most of the tests' time attention's.
    """
    tokenizer = _byte_level(models.BPE())
    texts = [QWEN3_PREFIX, DEFAULT_INSTRUCTION, QWEN3_SUFFIX, TEXT, "yes", "no"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_specials(tokenizer)


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_specials(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(QWEN_SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=2048,
    )


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family."""
    family = name.split(":")[0]
    if family in (*DECODERS, "gpt2"):
        return decoder_tokenizer()
    return encoder_tokenizer(token_types=family in ("bert", "electra", "deberta-v2"))


def build(name: str, **overrides: Any) -> Any:
    """Build a random model.

    Args:
        name: a family, with ``:seq`` for a decoder with a score head, ``:cls`` for ModernBERT's cls
            pooling.
        **overrides: of the configuration.
    """
    torch.manual_seed(0)
    family, _, variant = name.partition(":")
    tokenizer = tokenizer_for(name)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 1,
        "max_position_embeddings": 1024,
        # far from its default: tiny random models otherwise give nearly constant scores
        "initializer_range": 0.3,
    }
    if family == "modernbert":
        # windows far shorter than the documents, so that sliding layers differ from global ones
        sizes |= {
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "classifier_pooling": variant or "mean",
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
    if family == "distilbert":
        sizes = {
            "dim": 32,
            "hidden_dim": 64,
            "n_layers": 3,
            "n_heads": 4,
            "vocab_size": len(tokenizer),
            "pad_token_id": 0,
            "num_labels": 1,
            "max_position_embeddings": 1024,
            "initializer_range": 0.3,
        }
    if family in DECODERS:
        sizes |= {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
        sizes["initializer_range"] = 0.1
    if family == "qwen3":
        sizes |= {"head_dim": 8, "tie_word_embeddings": True}
    if family == "mistral":
        sizes |= {"sliding_window": 24}
    if family == "gpt2":
        sizes = {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 1024,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": None,
            "initializer_range": 0.1,
        }
    config = CONFIG_MAPPING[family](**(sizes | overrides))
    generative = family in (*DECODERS, "gpt2") and variant != "seq"
    auto = AutoModelForCausalLM if generative else AutoModelForSequenceClassification
    model = auto.from_config(config)
    # biases and norms start at constants that hide mistakes
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def save_base(folder: Path, name: str, **overrides: Any) -> Path:
    """Write a random base model with its tokenizer, as a hub would give it."""
    folder.mkdir(parents=True, exist_ok=True)
    build(name, **overrides).save_pretrained(folder)
    tokenizer_for(name).save_pretrained(folder)
    return folder


def examples(count: int, documents: int = 4, *, seed: int = 0, longest: int = 40) -> list[Example]:
    """Rows whose positive repeats words of the query, so that there is something to learn."""
    random_ = random.Random(seed)
    rows = []
    for number in range(count):
        topic = random_.sample(WORDS, 3)
        texts = [
            " ".join(random_.choices(WORDS, k=random_.randint(1, longest)))
            for _ in range(documents)
        ]
        texts[0] = " ".join([*topic, texts[0]])
        labels = [1.0] + [0.0] * (documents - 1)
        rows.append(
            Example(" ".join(topic), texts, labels, query_id=f"q{number}", source=f"made:{number}")
        )
    return rows


def taught(rows: list[Example], *, seed: int = 0) -> list[Example]:
    """Rows with the scores of a teacher, who mostly agrees with the labels."""
    random_ = random.Random(seed)
    return [
        replace(row, teacher_scores=[3 * y + random_.gauss(0, 1.5) for y in row.labels])
        for row in rows
    ]
