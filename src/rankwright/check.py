"""``rankwright check``: look at rows and at a model before any training; nothing is changed.

The report goes to standard output, progress to standard error. What is probably a mistake is listed
at the end, one line each, with what to do about it.
"""

from __future__ import annotations

import itertools
import logging
import random
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rankwright.arguments import (
    DataArguments,
    ModelArguments,
    TunerArguments,
    cache_folder,
    check_model_arguments,
    load_options,
)
from rankwright.data import readers
from rankwright.data.batches import BatchPlan, GroupDataset, Sampling
from rankwright.data.collate import Collator
from rankwright.data.groups import Leaks, leaks
from rankwright.data.outline import select
from rankwright.data.readers import BadRows, LoadedData
from rankwright.data.stats import DatasetStatistics, Spread, dataset_statistics
from rankwright.data.store import load_store
from rankwright.files import expanded
from rankwright.models.checkpoint import Loaded, LoadOptions, describe, model_limit
from rankwright.models.lora import add_adapters
from rankwright.models.memory import (
    activation_bytes,
    count_parameters,
    count_trainable,
    layer_shape,
    outline,
    requirements,
)
from rankwright.progress import tracked
from rankwright.ranking import collator
from rankwright.templates import PairEncoder, template_warnings
from rankwright.types import Example

# a sample of this size tells a share to about two points
SAMPLE_ROWS = 2000
SAMPLE_PAIRS = 20_000
# queries in a batch: the default of --per_device_train_batch_size
BATCH_QUERIES = 8
# instructions that are listed one by one
INSTRUCTIONS = 10
# tokens that are shown on each side of a join, and rows and documents whose joins are looked at
JOIN = 4
JOINED_ROWS, JOINED_DOCUMENTS = 50, 4
# characters of the shown row; the middle of a longer one is left out
SHOWN = 3000


def check_rows(
    dataset: list[str],
    val_dataset: list[str],
    data_format: str | None,
    model: ModelArguments,
    instructions: Sequence[str] = (),
    val_instructions: Sequence[str] = (),
    bad_rows: BadRows | None = None,
) -> None:
    """Print what rows hold, what is wrong with them, and one of them as the model will see it.

    Args:
        dataset: files, folders or hub ids.
        val_dataset: validation rows, compared with the others.
        data_format: name of the layout; None detects it.
        model: the model whose tokens are counted; without a name, lengths are in characters only.
        instructions: one for each dataset, or none.
        val_instructions: one for each validation dataset, or none.
        bad_rows: what is done about rows that cannot be read; None stops at the first.

    Raises:
        ConfigError: an unknown layout or model, or an option that does not fit it.
        DataError: a file or row that cannot be read.
        CheckpointError: the model's folder holds none.
    """
    loaded = _outline(model) if model.model else None
    bad_rows = bad_rows or BadRows()
    train = _load(dataset, instructions, data_format, "train", model.use_hf, bad_rows)
    val = None
    if val_dataset:
        val = _load(val_dataset, val_instructions, data_format, "eval", model.use_hf, bad_rows)
    parts = {"training": train} | ({"validation": val} if val is not None else {})
    out = _console()
    for name, data in parts.items():
        _print_sources(out, name, data)
    for line in bad_rows.report(shown=20):
        out.print(_plain(line), soft_wrap=True)
    statistics = {name: dataset_statistics(data.examples) for name, data in parts.items()}
    _print_statistics(out, statistics)
    for name in parts:
        _print_instructions(out, name, statistics[name], loaded)
    shared = leaks(train.examples, val.examples) if val is not None else None
    _print_leaks(out, shared)
    advice = [
        line for name, data in parts.items() for line in data_warnings(data, statistics[name], name)
    ]
    advice += leak_warnings(shared) if shared is not None else []
    if loaded is None:
        out.print("Lengths in tokens and the row as a model sees it need --model.\n")
    else:
        too_long: set[str] = set()
        for name in parts:
            lines, texts = instruction_warnings(statistics[name], loaded, name)
            advice += lines
            too_long |= texts
        usable = {name: _without(data.examples, too_long) for name, data in parts.items()}
        tokens = {name: _sampled_tokens(examples, loaded) for name, examples in usable.items()}
        _print_tokens(out, tokens, loaded)
        advice += token_warnings(tokens["training"], loaded)
        if usable["training"]:
            _print_row(out, usable["training"], loaded)
        advice += prompt_warnings(usable["training"], loaded)
    if advice:
        out.rule(f"{len(advice)} warning{'s' if len(advice) > 1 else ''}", align="left")
    for line in advice:
        out.print(f"- {_plain(line)}", soft_wrap=True)
    if not advice:
        out.print("No warnings.")


def check_model(model: ModelArguments, *, alone: bool = True) -> None:
    """Print what a model is and what memory it takes, from its shapes alone.

    Args:
        model: the model and how a pair is written for it.
        alone: also show a pair as the model sees it; where there are rows, one of them is shown.

    Raises:
        ConfigError: an unknown model, one that is no reranker, or an option that does not fit it.
        CheckpointError: the folder holds no model.
    """
    loaded = _outline(model)
    # refuses a maximum length that the template fills
    loaded.encoder()
    out = _console()
    hf = loaded.model.hf
    parameters = count_parameters(hf)
    table = _table("Model", ["", ""])
    for name, value in _facts(loaded, model):
        table.add_row(name, _plain(value))
    table.add_row("parameters", f"{parameters.total:,}")
    table.add_row("  in embeddings", f"{parameters.embedding:,}")
    table.add_row("  in layers and head", f"{parameters.other:,}")
    out.print(table)
    if alone:
        example = Example("query", ["A document."], [1.0])
        _print_row(out, [example], loaded, "A pair as the model sees it:")
        for advice in prompt_warnings([example], loaded):
            out.print(f"- {_plain(advice)}", soft_wrap=True)
    shape = layer_shape(hf)
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5 renamed
        warnings.simplefilter("ignore", FutureWarning)
        add_adapters(loaded, TunerArguments())
    adapters = count_trainable(loaded.model)
    table = _table("Memory", ["for", "bytes", "takes"], right=("takes",))
    for line in requirements(parameters, adapters):
        table.add_row(line.use, line.formula, _memory(line.bytes))
    out.print(table)
    out.print(
        f"N = {parameters.total:,} weights, M = {parameters.other:,} outside of embeddings, "
        f"T = {adapters:,} trained by LoRA (all-linear, the head included). 4 + 4 + 8: weight, "
        "gradient, AdamW's two states.\n",
        soft_wrap=True,
    )
    if shape is None:
        out.print("Activations: the configuration does not say the layers' sizes.")
        return
    table = _table(
        "Activations for 1,000 tokens of a training batch (an estimate)",
        ["", "fp32", "--bf16"],
        right=("fp32", "--bf16"),
    )
    for name, checkpointing in (("kept", False), ("kept, --gradient_checkpointing", True)):
        sizes = [
            activation_bytes(shape, 1000, mixed=mixed, checkpointing=checkpointing)
            for mixed in (False, True)
        ]
        table.add_row(name, *map(_memory, sizes))
    out.print(table)
    out.print(
        f"Per token and layer ({shape.layers} layers), in values: {_activation_formula(loaded)}. "
        "Left out: dropout's masks, gradients in flight, workspaces"
        + ("." if loaded.model.packed else ", and the attention matrices of padded rows."),
        soft_wrap=True,
    )


def _outline(model: ModelArguments) -> Loaded:
    check_model_arguments(model)
    options = LoadOptions(**load_options(model))
    return outline(describe(model.model, options, weights=False), options)


def _load(
    dataset: list[str],
    instructions: Sequence[str],
    data_format: str | None,
    purpose: Any,
    use_hf: bool,
    bad_rows: BadRows,
) -> LoadedData:
    with tracked("reading", None) as advance, _unlogged(readers.logger):
        read = 0

        def progress(_: str, rows: int) -> None:
            nonlocal read
            advance(max(rows - read, 0))
            read = rows

        return load_store(
            dataset,
            cache_folder(DataArguments()),
            instructions=instructions,
            data_format=data_format,
            use_hf=use_hf,
            purpose=purpose,
            bad_rows=bad_rows,
            progress=progress,
        )


def _without(examples: Sequence[Example], instructions: set[str]) -> Sequence[Example]:
    """The rows that have none of these instructions."""
    if not instructions:
        return examples
    kept = [i for i, example in enumerate(examples) if example.instruction not in instructions]
    return select(examples, kept)


@contextmanager
def _unlogged(logger: logging.Logger) -> Iterator[None]:
    """Hold back warnings that the report itself lists."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# ------------------------------------------------------------------------------------- the rows


def _print_sources(out: Console, name: str, data: LoadedData) -> None:
    table = _table(f"Sources: {name}", ["file", "layout", "rows"], right=("rows",))
    for source in data.sources:
        table.add_row(_plain(source.name), source.data_format, f"{source.examples:,}")
    out.print(table)
    report = data.report
    for title, counts in (
        ("left out", report.dropped),
        ("noted", report.noted),
        ("rows with a column that their layout does not read", report.ignored),
    ):
        if counts:
            listed = ", ".join(f"{count:,} x {reason}" for reason, count in counts.items())
            out.print(f"{title}: {_plain(listed)}", soft_wrap=True)
    if report.dropped or report.noted or report.ignored:
        out.print()


def _print_statistics(out: Console, statistics: dict[str, DatasetStatistics]) -> None:
    names = list(statistics)
    table = _table("Rows (minimum / median / maximum)", ["", *names], right=names)

    def line(title: str, value: Any) -> None:
        table.add_row(title, *(value(name) for name in names))

    line("rows", lambda n: f"{statistics[n].rows:,}")
    line("documents", lambda n: f"{statistics[n].documents.total:,.0f}")
    line("documents of a row", lambda n: _spread(statistics[n].documents))
    line("positives of a row", lambda n: _spread(statistics[n].positives))
    line("negatives of a row", lambda n: _spread(statistics[n].negatives))
    line("rows without positive", lambda n: f"{statistics[n].without_positive:,}")
    line("rows without negative", lambda n: f"{statistics[n].without_negative:,}")
    line("rows that stand twice", lambda n: f"{statistics[n].repeated_rows:,}")
    line("rows of an earlier query", lambda n: f"{statistics[n].repeated_queries:,}")
    line("documents twice in a row", lambda n: f"{statistics[n].repeated_documents:,}")
    line("labels", lambda n: ", ".join(f"{y:g}: {c:,}" for y, c in statistics[n].labels[:4]))
    line("rows with first-stage scores", lambda n: f"{statistics[n].first_stage:,}")
    line("rows with teacher scores", lambda n: f"{statistics[n].teacher:,}")
    line("different instructions", lambda n: f"{len(statistics[n].instructions):,}")
    line("query, characters", lambda n: _spread(statistics[n].query_characters))
    line("document, characters", lambda n: _spread(statistics[n].document_characters))
    out.print(table)


def _print_instructions(
    out: Console, name: str, statistics: DatasetStatistics, loaded: Loaded | None
) -> None:
    """Which instructions the rows have, and how often."""
    if not statistics.instructions:
        return
    table = _table(f"Instructions: {name}", ["", "rows"], right=("rows",))
    for text, rows in statistics.instructions[:INSTRUCTIONS]:
        table.add_row(_plain(_short(text, 100)), f"{rows:,}")
    rest = statistics.instructions[INSTRUCTIONS:]
    if rest:
        table.add_row(f"{len(rest):,} others", f"{sum(rows for _, rows in rest):,}")
    without = statistics.rows - sum(rows for _, rows in statistics.instructions)
    if without:
        run = "" if loaded is None else f", so {_short(loaded.spec.instruction, 100)}"
        table.add_row(_plain(f"none of their own{run}"), f"{without:,}")
    out.print(table)


def instruction_warnings(
    statistics: DatasetStatistics, loaded: Loaded, part: str
) -> tuple[list[str], set[str]]:
    """What is wrong with one part's instructions under a model's template.

    Args:
        statistics: their counts.
        loaded: the model.
        part: what to call the rows.

    Returns:
        Lines with what to do, and the instructions that leave no room for a pair.
    """
    rows_of = dict(statistics.instructions)
    if rows_of and not loaded.spec.template.reads_instruction:
        line = (
            f"{part}: {sum(rows_of.values()):,} x row with an instruction, which the model's "
            "template has no place for, so it has no effect: give a template with {instruction} "
            "(--template), or write it into the query"
        )
        return [line], set()
    encoder = loaded.encoder()
    too_long = encoder.too_long(rows_of)
    lines = [
        f"{part}: {rows_of[text]:,} x row with the instruction {_short(text)}, which brings the "
        f"template to {tokens:,} tokens and leaves no room within max_length "
        f"{encoder.max_length}; training stops there: shorten it, or raise --max_length"
        for text, tokens in too_long.items()
    ]
    return lines, set(too_long)


def _print_leaks(out: Console, shared: Leaks | None) -> None:
    if shared is None:
        out.print("Leaks between training and validation are looked for with --val_dataset.\n")
        return
    table = _table("Shared by training and validation", ["", "validation"], right=("validation",))
    table.add_row("queries", f"{len(shared.queries):,}")
    table.add_row("(query, positive) pairs", f"{shared.pairs:,}")
    rows = f"of {shared.dev_rows:,} rows"
    table.add_row("rows with a shared positive", f"{shared.positives:,} {rows}")
    table.add_row("rows with a shared document", f"{shared.documents:,} {rows}")
    out.print(table)


def data_warnings(data: LoadedData, statistics: DatasetStatistics, part: str) -> list[str]:
    """What is probably wrong with one part of the rows, each with what to do.

    Args:
        data: the rows.
        statistics: their counts.
        part: what to call them.
    """
    dropped = data.report.dropped
    again = statistics.repeated_rows
    candidates = [
        (
            statistics.without_positive,
            "row without positive; a listwise loss skips it and metrics leave it out: add "
            "positives, or train with --loss_type pointwise",
        ),
        (
            statistics.without_negative,
            "row without negative; a listwise loss skips it and every order of it is perfect: add "
            "negatives, or train with --loss_type pointwise",
        ),
        (again, "row that stands twice; it weighs twice: remove the copies"),
        (
            statistics.repeated_queries - again,
            "row with the query of an earlier row and other documents; one row's positive may be "
            "another's negative: put the documents of a query into one row",
        ),
        (
            statistics.repeated_documents,
            "document twice in its row; training draws each text once, evaluation ranks both: "
            "remove the copies",
        ),
        (
            dropped[readers.CONTRADICTION],
            "negative that is also a positive of its row; it was left out: correct its label",
        ),
        (
            statistics.contradictions,
            "negative with the text of a positive of its row under another id: correct its label",
        ),
        (
            statistics.contradictions_across,
            "negative that is a positive in another row of the same query: put the query's "
            "documents into one row",
        ),
    ]
    lines = [f"{part}: {count:,} x {text}" for count, text in candidates if count > 0]
    return [*(f"{part}: {line}" for line in data.report.warnings), *lines]


def leak_warnings(shared: Leaks) -> list[str]:
    """What training and validation share that makes a measurement too good, with what to do."""
    lines = []
    if shared.queries:
        lines.append(
            f"leak: {len(shared.queries):,} x validation query that stands in the training rows, "
            f"such as {_short(shared.queries[0])}: remove it from one side, or let "
            "--split_dataset_ratio split one file by query"
        )
    if shared.positives:
        lines.append(
            f"leak: {shared.positives:,} x validation row with a positive that is a positive of a "
            "training row: where their queries mean the same, remove it from one side"
        )
    return lines


# ----------------------------------------------------------------------------------- the tokens


@dataclass(frozen=True)
class Lengths:
    """The least, the middle, the 95th percentile and the greatest of some lengths."""

    minimum: int
    median: float
    p95: int
    maximum: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Lengths:
        """Summarise lengths; the percentile is one of them (nearest rank)."""
        if not values:
            return cls(0, 0, 0, 0)
        array = np.asarray(values)
        p95 = np.quantile(array, 0.95, method="inverted_cdf")
        return cls(int(array.min()), float(np.median(array)), int(p95), int(array.max()))


@dataclass(frozen=True)
class TokenStatistics:
    """What rows are in tokens.

    Attributes:
        rows: rows counted.
        pairs: (query, document) pairs counted.
        of_rows: rows that there are.
        query: lengths of the queries, uncut.
        document: lengths of the documents, uncut.
        pair: lengths of the pairs with their template, uncut.
        cut_pairs: pairs that lose something at the maximum length.
        cut_queries: queries that are cut.
        padding: the share of a padded batch that is padding.
        shared: the share of a packed batch that is saved by computing a group's prompt once.
    """

    rows: int
    pairs: int
    of_rows: int
    query: Lengths
    document: Lengths
    pair: Lengths
    cut_pairs: int
    cut_queries: int
    padding: float
    shared: float


def sample_rows(examples: Sequence[Example]) -> list[Example]:
    """Draw at most ``SAMPLE_ROWS`` rows with at most ``SAMPLE_PAIRS`` documents, in their order."""
    order = list(range(len(examples)))
    random.Random(42).shuffle(order)
    chosen: list[int] = []
    pairs = 0
    for index in order[:SAMPLE_ROWS]:
        pairs += len(examples[index].documents)
        if chosen and pairs > SAMPLE_PAIRS:
            break
        chosen.append(index)
    return [examples[index] for index in sorted(chosen)]


def _sampled_tokens(examples: Sequence[Example], loaded: Loaded) -> TokenStatistics:
    sample = sample_rows(examples)
    with tracked("counting tokens", len(sample)) as advance:
        return token_statistics(sample, collator(loaded), of_rows=len(examples), advance=advance)


def token_statistics(
    examples: Sequence[Example],
    pairs_of: Collator,
    *,
    of_rows: int,
    advance: Any = lambda _: None,
) -> TokenStatistics:
    """Count the tokens of rows.

    Args:
        examples: the rows.
        pairs_of: encodes pairs as the model's own collator does.
        of_rows: rows that there are, of which these may be a sample.
        advance: called with the number of rows finished.
    """
    encoder = pairs_of.encoder
    uncut = PairEncoder(encoder.tokenizer, encoder.template, 2**31)
    suffix = len(encoder.suffix)
    queries: list[int] = []
    documents: list[int] = []
    pairs: list[int] = []
    cut_pairs = cut_queries = 0
    kept: dict[int, tuple[int, list[int]]] = {}
    for example in examples:
        whole = uncut.encode(example.query, example.documents, example.instruction)
        lengths = [len(whole.prefix) + len(ids) for ids in whole.documents]
        queries.append(len(encoder.tokenizer(example.query, add_special_tokens=False).input_ids))
        documents += [len(ids) - suffix for ids in whole.documents]
        pairs += lengths
        tokens = whole
        if max(lengths, default=0) > encoder.max_length:
            tokens = encoder.encode(example.query, example.documents, example.instruction)
            cut_queries += tokens.truncated_query
            # a cut query is missing in every pair of its row
            every = len(lengths) if tokens.truncated_query else tokens.truncated_documents
            cut_pairs += every
        kept[id(example)] = (len(tokens.prefix), [len(ids) for ids in tokens.documents])
        advance(1)
    padding, shared = _batch_shares(examples, kept, pairs_of.share_prefix)
    return TokenStatistics(
        rows=len(examples),
        pairs=len(pairs),
        of_rows=of_rows,
        query=Lengths.of(queries),
        document=Lengths.of(documents),
        pair=Lengths.of(pairs),
        cut_pairs=cut_pairs,
        cut_queries=cut_queries,
        padding=padding,
        shared=shared,
    )


def _batch_shares(
    examples: Sequence[Example], kept: dict[int, tuple[int, list[int]]], share_prefix: bool
) -> tuple[float, float]:
    """The shares of padding and of shared prompts, over the batches of a first epoch."""
    if not examples:
        return 0.0, 0.0
    dataset = GroupDataset(examples, Sampling())
    real = padded = saved = 0
    for batch in BatchPlan(dataset, queries=BATCH_QUERIES).plan(0):
        lengths = []
        for item in batch:
            for group in dataset[item]:
                prefix, documents = kept[id(group.example)]
                lengths += [prefix + documents[d] for d in group.chosen]
                saved += prefix * (len(group.chosen) - 1) if share_prefix else 0
        real += sum(lengths)
        padded += max(lengths, default=0) * len(lengths)
    return (1 - real / padded, saved / real) if real else (0.0, 0.0)


def _print_tokens(out: Console, parts: dict[str, TokenStatistics], loaded: Loaded) -> None:
    table = _table(
        "Lengths in tokens, before any cut",
        ["", "minimum", "median", "95%", "maximum"],
        right=("minimum", "median", "95%", "maximum"),
    )
    for name, tokens in parts.items():
        for title, lengths in (
            ("query", tokens.query),
            ("document", tokens.document),
            ("pair with template", tokens.pair),
        ):
            values = (lengths.minimum, lengths.median, lengths.p95, lengths.maximum)
            table.add_row(f"{title}, {name}", *map(_number, values))
    out.print(table)
    for name, tokens in parts.items():
        if tokens.rows < tokens.of_rows:
            out.print(
                f"{name}: counted on a sample of {tokens.rows:,} of {tokens.of_rows:,} rows "
                f"({tokens.pairs:,} pairs).",
                soft_wrap=True,
            )
        line = (
            f"{name}: {tokens.cut_pairs:,} of {tokens.pairs:,} pairs "
            f"({_share(tokens.cut_pairs, tokens.pairs)}) are cut at max_length "
            f"{loaded.spec.max_length}; {tokens.cut_queries:,} of {tokens.rows:,} queries are cut."
        )
        out.print(line, soft_wrap=True)
    tokens = parts["training"]
    line = (
        f"Padding would be {tokens.padding:.0%} of padded batches of {BATCH_QUERIES} queries (a "
        "positive and up to 7 negatives each)"
    )
    line += "; packed ones have none" if loaded.model.packed else "; this model needs padded rows"
    if tokens.shared:
        line += f", and computing a group's prompt once saves {tokens.shared:.0%} of their tokens"
    out.print(f"{line}.\n", soft_wrap=True)


def token_warnings(tokens: TokenStatistics, loaded: Loaded) -> list[str]:
    """What is probably wrong with lengths, each with what to do."""
    lines = []
    limit = model_limit(loaded.model.config)
    if tokens.pairs and tokens.cut_pairs > 0.05 * tokens.pairs:
        line = (
            f"{_share(tokens.cut_pairs, tokens.pairs)} of the pairs are cut at max_length "
            f"{loaded.spec.max_length}: "
        )
        line += (
            "raise --max_length"
            f" (95% of pairs have at most {tokens.pair.p95:,} tokens, the model reads {limit:,})"
            if loaded.spec.max_length < limit
            else "the model reads no more; split the documents, or take a longer model"
        )
        lines.append(line)
    if tokens.cut_queries:
        lines.append(
            f"{tokens.cut_queries:,} x query cut: raise --max_length, or shorten the queries"
        )
    return lines


def _print_row(
    out: Console, examples: Sequence[Example], loaded: Loaded, title: str | None = None
) -> None:
    """One pair as the model will see it."""
    example = next((e for e in examples if any(y > 0 for y in e.labels)), examples[0])
    which = max(range(len(example.labels)), key=lambda d: example.labels[d] > 0)
    tokens = loaded.encoder().encode(example.query, [example.documents[which]], example.instruction)
    ids = tokens.prefix + tokens.documents[0]
    text = loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if len(text) > SHOWN:
        left = len(text) - SHOWN
        text = f"{text[: SHOWN // 2]} [... {left:,} characters ...] {text[-SHOWN // 2 :]}"
    place = f", {_plain(example.source)}" if example.source else ""
    out.print(
        title or f"A row as the model sees it (label {example.labels[which]:g}{place}):",
        style="bold",
        soft_wrap=True,
    )
    out.rule()
    out.print(_plain(text), soft_wrap=True)
    out.rule()
    cut = ", the document cut" if tokens.truncated_documents else ""
    out.print(f"{len(ids):,} tokens{cut}; {_score_place(loaded, ids)}.\n", soft_wrap=True)
    _print_joins(out, tokens.prefix, tokens.documents[0], loaded)


def _print_joins(out: Console, prefix: list[int], document: list[int], loaded: Loaded) -> None:
    """The token ids where template, document and template meet."""
    if loaded.spec.template_prefix is None:
        return
    suffix = loaded.encoder().suffix
    body = document[: len(document) - len(suffix)]
    table = _table("Token ids around the document", ["", "text", "ids"])
    for title, ids in (
        ("before it", prefix[-JOIN:]),
        ("its first", body[:JOIN]),
        ("its last", body[-JOIN:]),
        ("behind it", suffix[:JOIN]),
        ("the end", suffix[-JOIN:]),
    ):
        text = repr(loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        table.add_row(title, _plain(text), " ".join(map(str, ids)))
    out.print(table)


def prompt_warnings(examples: Sequence[Example], loaded: Loaded) -> list[str]:
    """What is probably wrong with the prompt of a model, each with what to do.

    Args:
        examples: rows, a few of which are compared with their whole prompt as one string.
        loaded: the model.
    """
    spec, tokenizer = loaded.spec, loaded.tokenizer
    answers = (spec.positive_token, spec.negative_token) if spec.kind == "generative" else ()
    lines = template_warnings(tokenizer, spec.template, answers)
    if spec.template_prefix is None:
        return lines
    uncut = PairEncoder(tokenizer, spec.template, 2**31)
    pairs = different = 0
    for example in itertools.islice(examples, JOINED_ROWS):
        chosen = example.documents[:JOINED_DOCUMENTS]
        tokens = uncut.encode(example.query, chosen, example.instruction)
        prompt = spec.template_prefix.format(
            query=example.query, instruction=example.instruction or spec.instruction
        )
        for text, ids in zip(chosen, tokens.documents, strict=True):
            whole = tokenizer(prompt + text + spec.template_suffix, add_special_tokens=False)
            pairs += 1
            different += list(whole["input_ids"]) != tokens.prefix + ids
    if different:
        lines.append(
            f"{different:,} of {pairs:,} x pair whose tokens are not those of its whole prompt as "
            "one string: their texts join the template's at an end; begin and end the document's "
            "place with a line break or a special token"
        )
    return lines


def _score_place(loaded: Loaded, ids: Sequence[int]) -> str:
    """Where the score is read, in words."""
    model, spec = loaded.model, loaded.spec

    def token(place: int) -> str:
        return _plain(repr(loaded.tokenizer.decode([ids[place]])))

    if spec.kind == "generative":
        assert model.token_ids is not None
        return (
            f"the score is logit({spec.positive_token}) - logit({spec.negative_token}) at the last "
            f"token, number {len(ids)}, {token(-1)}"
        )
    if not model.packed:
        return "the score is the logit of the model's own head"
    if model.scored_last:
        return f"the score is read at the last token, number {len(ids)}, {token(-1)}"
    if getattr(model.config, "classifier_pooling", "cls") == "mean":
        return "the score is read at the mean of all tokens"
    return f"the score is read at the first token, {token(0)}"


# ------------------------------------------------------------------------------------ the model


def _facts(loaded: Loaded, model: ModelArguments) -> Iterator[tuple[str, str]]:
    """Name and value of what is known about a model."""
    spec, reranker = loaded.spec, loaded.model
    config = reranker.config
    yield "model", model.model
    yield "kind", spec.kind
    yield "architecture", f"{type(reranker.hf).__name__} (model_type {config.model_type})"
    yield "weights", _weights(loaded.folder, model.model)
    if spec.template_prefix is None:
        pair = loaded.encoder().encode("query", ["document"])
        text = loaded.tokenizer.decode(pair.prefix + pair.documents[0])
        yield "template", f"{text} (the tokenizer's own pair of texts)"
    else:
        yield "template, before", repr(spec.template_prefix)
        yield "template, behind", repr(spec.template_suffix)
        if "{instruction}" in spec.template_prefix:
            yield "instruction", spec.instruction
    if reranker.token_ids is not None:
        yes, no = reranker.token_ids
        yield "positive token", f"{spec.positive_token!r}, id {yes}"
        yield "negative token", f"{spec.negative_token!r}, id {no}"
    yield "max_length", f"{spec.max_length:,} tokens (the model reads {model_limit(config):,})"
    if reranker.packed:
        shared = ", a group's prompt computed once" if reranker.causal else ""
        yield "rows", f"packed, without padding{shared}"
    else:
        yield "rows", "padded" + ("" if not model.packed else ": no packed attention for it yet")


def _weights(folder: Path, name: str) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        size = sum(path.stat().st_size for path in files)
        number = f"{len(files)} file{'s' if len(files) > 1 else ''}"
        return f"{number}, {_memory(size)}; not read here"
    if expanded(name).exists():
        return "none in this folder; only configuration and tokenizer were read"
    return "not fetched; only configuration and tokenizer were"


def _activation_formula(loaded: Loaded) -> str:
    shape = layer_shape(loaded.model.hf)
    assert shape is not None
    terms = [
        f"{4 if shape.split_norm else 2} H for norms",
        "2 H for the linear layers' inputs",
        "3 A + 2 K for attention",
        *(["2 (A + K) for norms of heads"] if shape.head_norm else []),
        f"{4 if shape.gated else 2} I for the feed-forward layer",
    ]
    sizes = (
        f"H = {shape.hidden}, A = {shape.query}, K = {shape.key}, I = {shape.feed_forward}; "
        "checkpointing keeps H of each layer and one whole layer"
    )
    return f"{', '.join(terms)}; {sizes}"


# --------------------------------------------------------------------------------------- output


def _console() -> Console:
    # made when it is used, since standard output may have been replaced; rows are not markup
    return Console(file=sys.stdout, markup=False, emoji=False, highlight=False)


def _table(title: str, columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE, show_header=any(columns)
    )
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=False
        )
    return table


def _plain(text: str) -> str:
    """Text without characters that steer a terminal."""
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def _short(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _spread(spread: Spread) -> str:
    return " / ".join(map(_number, (spread.minimum, spread.median, spread.maximum)))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


def _memory(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return (
                f"{size / scale:,.2f} {unit}" if scale == 2**30 else f"{size / scale:,.1f} {unit}"
            )
    return f"{size / 2**10:,.1f} KiB"
