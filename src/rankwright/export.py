"""Other formats: what servers and runtimes load, written, loaded back and compared.

Every format is a row of ``EXPORTS``. An export is written to a temporary folder, scored there by
the tool that will read it, and takes its name only if its scores are those of ``Reranker.score``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from rankwright import hub
from rankwright.data.readers import BadRows, load_examples
from rankwright.errors import CheckpointError, ConfigError
from rankwright.evaluation import evaluate_scores
from rankwright.models import card, checkpoint
from rankwright.models.checkpoint import DTYPES, Loaded, LoadOptions, ModelSpec
from rankwright.models.families import FAMILIES
from rankwright.models.reranker import RerankerModel
from rankwright.progress import console, tracked
from rankwright.ranking import Reranker
from rankwright.templates import PairEncoder
from rankwright.types import Example, ScoredList

logger = logging.getLogger(__name__)

Pair = tuple[str, str]

#: How many pairs an export is checked on.
PAIRS = 50
# by the dtype of the weights that are written: they are read back and computed in float32, so what
# is left is the rounding of the weights themselves
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}
METRIC = "ndcg@10"
ONNX_FILE, ONNX_INT8_FILE, SERVE_FILE = "model.onnx", "model_int8.onnx", "serve.md"
# the newest that torch's exporter converts to without loss; ONNX Runtime reads far newer ones
OPSET = 20
# protobuf ends at 2 GiB; above this, weights stand in a file of their own
INLINE_BYTES = 1 << 30
CHECK_BATCH = 8
# of metrics.json, what goes on with the model: neither its rows nor how fast it was trained
RECORD = (
    "before", "after", "first_stage", "intervals", "tie_rate", "train_loss", "steps", "dropped",
    "rows", "data",
)  # fmt: skip


@dataclass
class Options:
    """What a user may set about an export.

    Attributes:
        dtype: of the weights that are written: ``auto`` (the model's own) or one of ``DTYPES``.
        quantize: None, or ``int8`` for ONNX.
        max_ndcg_loss: how much NDCG@10 int8 may cost on the rows.
        tolerance: largest difference of a score; None for ``TOLERANCES``.
        dataset: rows to check on; without, pairs that are built in.
        instructions: of each dataset's rows, '' for none; the pairs are scored without, since the
            tools know the model's alone, and NDCG@10 is measured with them.
        data_format: their layout.
        split: which of their files.
        bad_rows: what is done about those that cannot be read.
        name: what the model card calls the result; default the folder's name.
    """

    dtype: str = "auto"
    quantize: str | None = None
    max_ndcg_loss: float = 0.01
    tolerance: float | None = None
    dataset: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    data_format: str | None = None
    split: str | None = None
    bad_rows: BadRows = field(default_factory=BadRows)
    name: str | None = None


@dataclass(frozen=True)
class ExportResult:
    """What an export leaves.

    Attributes:
        folder: where it lies.
        to: its format.
        dtype: of its weights.
        pairs: how many pairs were scored by both.
        difference: the largest difference between the tool's score and ours.
        tolerance: what was allowed; None where int8 is judged by its NDCG.
        checked_with: the tool that loaded it, with its version.
        sizes: file -> bytes, of the weights.
        ndcg: (ours, the export's) NDCG@10 on the rows; None without ``--quantize``.
        dropped: rows of the dataset that were left out, by reason.
    """

    folder: Path
    to: str
    dtype: str
    pairs: int
    difference: float
    tolerance: float | None
    checked_with: str
    sizes: dict[str, int]
    ndcg: tuple[float, float] | None = None
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """A row of ``EXPORTS``.

    Attributes:
        summary: its line in the help.
        write: (model, folder) writes all its files; the dtype is set already.
        score: (folder, pairs) scores with the tool that reads it.
        tool: the package that is, for the report.
        refuse: (model) raises ConfigError for a model that the format cannot hold.
        extra: of this package that brings the tool; None where it is always there.
        as_seq_cls: a generative model is written as :func:`as_seq_cls` makes it.
    """

    summary: str
    write: Callable[[Loaded, Path], None]
    score: Callable[[Path, Sequence[Pair]], list[float]]
    tool: str
    refuse: Callable[[Loaded], None] | None = None
    extra: str | None = None
    as_seq_cls: bool = False


def export_model(
    model: str | Path,
    to: str,
    output: str | Path,
    options: Options | None = None,
    **load: Any,
) -> ExportResult:
    """Write a model in another format, load it back with its tool and compare the scores.

    Args:
        model: a folder (a model, or a LoRA adapter) or an id on a hub.
        to: a name of ``EXPORTS``.
        output: the folder to write; an older export there is replaced, anything else refused.
        options: see there.
        **load: fields of ``LoadOptions`` (``max_length``, ``instruction``, ``use_hf``, …).

    Returns:
        What was written, and how far its scores are from ours.

    Raises:
        ConfigError: the format cannot hold this model, its tool is not installed, or its scores
            differ; nothing is written then.
        CheckpointError: the model is incomplete, or the folder cannot be written.

    Example:
        >>> export_model("output", "onnx", "output-onnx").difference  # doctest: +SKIP
        1.2e-06
    """
    options = options or Options()
    kind = find_export(to)
    _check_options(to, options)
    if kind.extra is not None:
        _need(kind.tool, kind.extra)
    source, target = str(model), Path(output)
    _check_target(source, target)
    examples, dropped = _examples(options, bool(load.get("use_hf", True)))
    loaded, stored = _load(source, load)
    if kind.refuse is not None:
        kind.refuse(loaded)
    dtype = "float32" if to == "onnx" else stored if options.dtype == "auto" else options.dtype
    reranker = Reranker(loaded)
    pairs = fitting(pairs_of(examples) if examples else built_in_pairs(), loaded.encoder())
    with tracked("scoring", None):
        ours = reranker.score(pairs)
    before = None
    if options.quantize:
        with tracked("ranking", len(examples)) as advance:
            before = reranker.score_examples(examples, advance)
    record = _record(loaded.folder)
    license_name = card.known_license(loaded.folder)
    merge(loaded)
    with checkpoint.new_folder(target) as folder:
        loaded.spec.training = hub.without_paths(loaded.spec.training)
        # before the cast, so that the difference of two rows is rounded once
        written = as_seq_cls(loaded) if kind.as_seq_cls else loaded
        written.model.to(DTYPES[dtype])
        with tracked("writing", None):
            kind.write(written, folder)
            if options.quantize:
                _quantize(folder)
        _finish(loaded, folder, to, options.name or target.name, record, license_name)
        theirs = _score_back(kind, to, folder, pairs)
        difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        tolerance = None if options.quantize else options.tolerance or TOLERANCES[dtype]
        if tolerance is not None and not difference <= tolerance:
            raise ConfigError(
                f"--to {to}: scored by {kind.tool}, a pair differs by {difference:.2g} from our "
                f"score, more than {tolerance:g} ({dtype}); nothing was written. Raise --tolerance "
                "if that is fine, or report the model"
            )
        ndcg = None
        if before is not None:
            ndcg = _ndcg_loss(before, OnnxScorer(folder, ONNX_INT8_FILE), examples, options)
        sizes = {
            path.name: path.stat().st_size
            for path in sorted(folder.iterdir())
            if path.name.endswith((".safetensors", ".onnx", ".onnx.data"))
        }
    return ExportResult(
        target, to, "int8" if options.quantize else dtype, len(pairs), difference, tolerance,
        f"{kind.tool} {_version(kind.tool)}", sizes, ndcg, dropped,
    )  # fmt: skip


def _score_back(kind: Export, to: str, folder: Path, pairs: Sequence[Pair]) -> list[float]:
    try:
        with tracked(f"scoring with {kind.tool}", None):
            return kind.score(folder, pairs)
    except Exception as error:  # of another library, in whatever form
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise ConfigError(
            f"--to {to}: {kind.tool} cannot load or score what was written "
            f"({type(error).__name__}: {reason}); nothing was written. Use another format"
        ) from error


def find_export(name: str) -> Export:
    """Look a format up.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in EXPORTS:
        import difflib

        near = difflib.get_close_matches(name, EXPORTS, n=1)
        hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
        raise ConfigError(f"--to {name!r} is no format; {hint} from {', '.join(EXPORTS)}")
    return EXPORTS[name]


def _check_options(to: str, options: Options) -> None:
    if options.dtype not in ("auto", *DTYPES):
        raise ConfigError(
            f"--torch_dtype {options.dtype!r} is unknown; choose from auto, {', '.join(DTYPES)}"
        )
    if options.quantize not in (None, "int8"):
        raise ConfigError(f"--quantize {options.quantize!r} is unknown; give int8 or leave it out")
    if options.quantize and to != "onnx":
        raise ConfigError(f"--quantize int8 goes with --to onnx, not --to {to}; leave it out")
    if options.quantize and not options.dataset:
        raise ConfigError(
            "--quantize int8 needs --dataset: rows to measure on what it costs in NDCG@10"
        )
    if to == "onnx" and options.dtype not in ("auto", "float32"):
        raise ConfigError(
            f"--torch_dtype {options.dtype}: ONNX files are written in float32; leave it out, or "
            "use --quantize int8 for smaller ones"
        )
    if options.tolerance is not None and not options.tolerance > 0:
        raise ConfigError(f"--tolerance {options.tolerance} is not above 0")
    if not 0 <= options.max_ndcg_loss <= 1:
        raise ConfigError(f"--max_ndcg_loss {options.max_ndcg_loss} is not in [0, 1]")


def _need(package: str, extra: str) -> None:
    modules = {"onnxruntime": ("onnx", "onnxruntime", "onnxscript")}.get(
        package, (package.replace("-", "_"),)
    )
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        what = f"pip install 'rankwright[{extra}]'" if extra else f"pip install {package}"
        raise ConfigError(f"this export needs {', '.join(missing)}; {what}")


def _check_target(source: str, target: Path) -> None:
    if target.exists() and Path(source).exists() and target.resolve() == Path(source).resolve():
        raise ConfigError(f"--output {target} is the model itself; choose another folder")


def _load(source: str, load: dict[str, Any]) -> tuple[Loaded, str]:
    """Load in float32, so that rounding happens once, and say in which dtype it is stored."""
    described = checkpoint.describe(source, LoadOptions(**load), weights=False)
    stored = getattr(described.config, "quantization_config", None)
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
        raise ConfigError(
            f"{source} holds quantised weights ({method}), which are not exported; give the model "
            "they were made from, or an adapter, which is merged into it"
        )
    loaded = checkpoint.load(source, LoadOptions(**{**load, "dtype": "float32"}))
    if loaded.new_modules:
        raise CheckpointError(
            f"{source} brings no weights for {', '.join(loaded.new_modules)}, so its scores are "
            "random; train it first"
        )
    adapted = loaded.model.model is not loaded.model.hf
    if adapted and loaded.spec.training.get("quant_bits"):
        console.print(
            "the adapter was trained on weights in four bits and is merged into the full ones: "
            "scores differ a little from those of the training"
        )
    dtype = str(described.config.dtype or "float32").removeprefix("torch.")
    return loaded, dtype if dtype in DTYPES else "float32"


def merge(loaded: Loaded) -> None:
    """Fold a LoRA adapter into the weights, in place."""
    model = loaded.model
    if model.model is not model.hf:
        merged = model.model.merge_and_unload()
        model.model = merged


def _record(folder: Path) -> dict[str, Any]:
    """What the run wrote of itself into ``metrics.json``; empty where there is none."""
    path = folder / card.METRICS_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: record[name] for name in RECORD if name in record}


def _finish(
    loaded: Loaded,
    folder: Path,
    to: str,
    name: str,
    record: dict[str, Any],
    license_name: str | None,
) -> None:
    """Write the card, what it was made from, and how to serve it."""
    spec = ModelSpec.load(folder)
    assert spec is not None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = card.Facts.of(loaded, name)
    if spec.kind != loaded.spec.kind:  # converted
        facts = replace(facts, spec=spec, architecture=config["architectures"][0], tokens=None)
    text = card.card(facts, record, license_name=license_name)
    if to == "onnx":
        text = _onnx_card(facts, folder, text)
    (folder / card.CARD_FILE).write_text(text, encoding="utf-8")
    if record:
        (folder / card.METRICS_FILE).write_text(
            json.dumps(record, indent=2) + "\n", encoding="utf-8"
        )
    if to in SERVERS:
        (folder / SERVE_FILE).write_text(SERVERS[to](facts), encoding="utf-8")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


# pairs to check on


def _examples(options: Options, use_hf: bool) -> tuple[list[Example], dict[str, int]]:
    if not options.dataset:
        return [], {}
    data = load_examples(
        options.dataset,
        instructions=options.instructions,
        data_format=options.data_format,
        split=options.split,
        use_hf=use_hf,
        purpose="eval",
        bad_rows=options.bad_rows,
    )
    return list(data.examples), dict(data.report.dropped)


def pairs_of(examples: Sequence[Example], count: int = PAIRS) -> list[Pair]:
    """Pairs of many queries rather than of few: the first document of each, then the second, …."""
    deepest = max(len(example.documents) for example in examples)
    everything = (
        (example.query, example.documents[place])
        for place in range(deepest)
        for example in examples
        if place < len(example.documents)
    )
    return [pair for pair, _ in zip(everything, range(count), strict=False)]


# ruff: noqa: RUF001
_QUERIES = (
    "what does a heron eat?",
    "how do I reset a forgotten password",
    "capital of France",
    "¿Cuándo florece el almendro?",
    "Wie hoch ist die Zugspitze?",
    "東京の人口は何人ですか",
    "как приготовить борщ",
    "ما هي عاصمة مصر؟",
    "error: undefined reference to `main'",
    "a",
)
_DOCUMENTS = (
    "Herons eat fish, frogs and sometimes small mammals, which they catch in shallow water.",
    " ",
    "42",
    "Die Zugspitze ist mit 2962 Metern der höchste Berg Deutschlands; auf ihr liegt ein Gletscher.",
    "El almendro florece entre enero y marzo, antes que casi todos los demás árboles frutales.",
    "東京都の人口は約1400万人で、日本で最も多い。",
    "Борщ варят из свёклы, капусты, моркови и картофеля; подают со сметаной. 🍲",
    'int main(void) { return 0; }\n\n/* <html> & "quotes" */\n',
    "The linker looks for `main` in the objects it is given. " * 12,
    "Paris is the capital of France and stands on the Seine, in the north of the country. " * 60,
)


def built_in_pairs() -> list[Pair]:
    """Fifty pairs of several languages: long, short, nearly empty, with code and with marks."""
    return [
        (query, _DOCUMENTS[(number * 3 + step) % len(_DOCUMENTS)])
        for number, query in enumerate(_QUERIES)
        for step in range(5)
    ]


def fitting(pairs: Sequence[Pair], encoder: PairEncoder) -> list[Pair]:
    """Cut documents so that no pair is cut by a tool, each of which does it in its own way."""
    result = []
    for query, document in pairs:
        if not document:
            document = " "
        tokens = encoder.encode(query, [document])
        if tokens.truncated_query:
            query = query[: max(1, len(query) // 4)]
            tokens = encoder.encode(query, [document])
        while tokens.truncated_documents and len(document) > 1:
            document = document[: max(1, int(len(document) * 0.9))]
            tokens = encoder.encode(query, [document])
        result.append((query, document))
    return result


# what is written


def _write_files(loaded: Loaded, folder: Path) -> None:
    checkpoint.write_files(loaded, folder)


def score_direction(loaded: Loaded) -> Tensor:
    """w_yes − w_no in float32, (H,): what a generative model's score is a product with.

    Raises:
        ConfigError: the head adds a bias, or changes its logits in another way.
    """
    hf, model = loaded.model.hf, loaded.model
    head = hf.get_output_embeddings()
    family = FAMILIES.get(hf.config.model_type)
    assert model.token_ids is not None
    if head is None or family is None or not family.generative:
        known = ", ".join(name for name, f in FAMILIES.items() if f.generative)
        raise ConfigError(
            f"the score of a {hf.config.model_type} model is not known to be one row of weights; "
            f"this format takes {known} (and any classification model)"
        )
    yes, no = model.token_ids
    weight_2H = head.weight.detach()[[yes, no]].float()
    bias = getattr(head, "bias", None)
    added = 0.0 if bias is None else float((bias[yes] - bias[no]).detach())
    if added != 0.0:
        raise ConfigError(
            f"the head of this {hf.config.model_type} model adds {added:.3g} to every score, which "
            "a score head without a bias cannot hold; use --to merged"
        )
    direction_H: Tensor = weight_2H[0] - weight_2H[1]
    return direction_H


def as_seq_cls(loaded: Loaded) -> Loaded:
    """A generative model as a sequence classification model of the same backbone.

    Its ``score`` head is the one row w_yes − w_no, so its logit is the generative score
    (huggingface.co/Qwen/Qwen3-Reranker-0.6B/discussions/3). The backbone is shared, not copied.
    """
    if loaded.spec.kind == "classification":
        return loaded
    hf = loaded.model.hf
    direction_H = score_direction(loaded)
    mapping = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(hf.config) not in mapping:
        raise ConfigError(
            f"transformers has no sequence classification model of {hf.config.model_type}; use "
            "--to merged"
        )
    suffix = loaded.encoder().suffix
    pad = hf.config.pad_token_id
    if suffix and suffix[-1] == pad:
        raise ConfigError(
            "the template ends in the padding token, and transformers reads the score at the last "
            "token that is none; give the tokenizer another padding token"
        )
    config = hf.config  # shared like the backbone, whose attention is chosen there
    config.id2label, config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
    with torch.device("meta"):
        model = mapping[type(hf.config)](config)
    setattr(model, model.base_model_prefix, hf.base_model)
    weight = direction_H[None].to(hf.dtype)
    model.score = nn.Linear(weight.shape[1], 1, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        model.score.weight.copy_(weight)
    converted = RerankerModel(model.eval(), "classification", packed=loaded.model.packed)
    converted.to(hf.dtype)
    spec = replace(loaded.spec, kind="classification")
    return Loaded(converted, loaded.tokenizer, spec, [], loaded.folder)


# ONNX


class _OneLogit(nn.Module):
    """The graph that is exported: token ids and mask in, one logit a pair out."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.hf = loaded.model.hf
        self.last = loaded.model.scored_last and loaded.model.family is not None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Score padded pairs.

        Args:
            input_ids: (P, L).
            attention_mask: (P, L), 1 for tokens and 0 for padding.
            token_type_ids: (P, L), for the families that mark the second text.

        Returns:
            logits, (P, 1).
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if not self.last:
            logits: Tensor = self.hf(**inputs).logits
            return logits
        # padding may stand on either side
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        hidden_PLH = self.hf.base_model(
            **inputs, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        places_L = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
        last_P = (attention_mask * places_L).argmax(-1)
        rows_P = torch.arange(input_ids.shape[0], device=input_ids.device)
        scores: Tensor = self.hf.score(hidden_PLH[rows_P, last_P])
        return scores


def _write_onnx(loaded: Loaded, folder: Path) -> None:
    _export_graph(loaded, folder / ONNX_FILE)
    loaded.model.config.save_pretrained(folder)
    checkpoint.write_input_files(loaded, folder)


def _export_graph(loaded: Loaded, path: Path) -> None:
    """Trace the model with torch.export and write it as ONNX, for any batch and any length."""
    hf = loaded.model.hf
    # ours reads how a row is packed; these read masks
    hf.set_attn_implementation("sdpa" if hf._supports_sdpa else "eager")
    graph = _OneLogit(loaded).eval()
    names = ["input_ids", "attention_mask"]
    types = "token_type_ids" in loaded.tokenizer.model_input_names
    if types and getattr(loaded.model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    # neither 1 nor a size that is a constant of the model, which torch.export would take for fixed
    ids = torch.full((2, 37), int(loaded.model.config.pad_token_id or 0) + 1, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 29:] = 0
    inputs = dict(zip(names, (ids, mask, torch.zeros_like(ids)), strict=False))
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    quiet = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [log.level for log in quiet]
    try:
        for log in quiet:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (),
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(names, axes),
                input_names=names,
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=size > INLINE_BYTES)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise ConfigError(
            f"--to onnx: torch cannot export this {loaded.model.config.model_type} model "
            f"({reason}); use another format"
        ) from error
    finally:
        for log, level in zip(quiet, levels, strict=True):
            log.setLevel(level)


def _quantize(folder: Path) -> None:
    """Put an int8 graph in the place of the float32 one.

    Weights have a scale for each column; activations are quantised as they come.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = folder / ONNX_FILE
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)  # it advises to run tools that the exporter has run
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(
                str(source),
                str(folder / ONNX_INT8_FILE),
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=source.with_name(source.name + ".data").exists(),
                extra_options={"DefaultTensorType": 1},
            )
    finally:
        root.setLevel(level)
    for file in folder.glob(f"{ONNX_FILE}*"):
        file.unlink()


class OnnxScorer:
    """Scores with ONNX Runtime and our tokens.

    Args:
        folder: an export.
        file: which of its graphs; default: the one that is there.
        batch_tokens: tokens scored at a time, padding included.
    """

    def __init__(self, folder: Path, file: str | None = None, *, batch_tokens: int = 4096) -> None:
        import onnxruntime

        spec = ModelSpec.load(folder)
        assert spec is not None
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.encoder = PairEncoder(self.tokenizer, spec.template, spec.max_length)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(folder / (file or onnx_file(folder))), options, providers=["CPUExecutionProvider"]
        )
        self.names = [given.name for given in self.session.get_inputs()]
        self.batch_tokens = batch_tokens

    def score_examples(
        self, examples: Iterable[Example], progress: Callable[[int], None] | None = None
    ) -> list[ScoredList]:
        """Score all candidates of each example."""
        results = []
        for example in examples:
            tokens = self.encoder.encode(example.query, example.documents, example.instruction)
            rows = [
                (
                    tokens.prefix + document,
                    [0] * len(tokens.prefix) + [self.encoder.document_types] * len(document),
                )
                for document in tokens.documents
            ]
            order = sorted(range(len(rows)), key=lambda d: len(rows[d][0]))
            scores = [0.0] * len(rows)
            for batch in self._batches(order, rows):
                found = self._run([rows[d] for d in batch])
                for d, score in zip(batch, found, strict=True):
                    scores[d] = score
            results.append(ScoredList(example, scores))
            if progress is not None:
                progress(1)
        return results

    def _batches(
        self, order: list[int], rows: list[tuple[list[int], list[int]]]
    ) -> Iterator[list[int]]:
        batch: list[int] = []
        for d in order:
            if batch and (len(batch) + 1) * len(rows[d][0]) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(d)
        if batch:
            yield batch

    def _run(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        longest = max(len(ids) for ids, _ in rows)
        pad = int(self.tokenizer.pad_token_id or 0)

        def stack(values: list[list[int]], fill: int) -> Any:
            return np.array([v + [fill] * (longest - len(v)) for v in values], np.int64)

        columns = {
            "input_ids": stack([ids for ids, _ in rows], pad),
            "attention_mask": stack([[1] * len(ids) for ids, _ in rows], 0),
            "token_type_ids": stack([types for _, types in rows], 0),
        }
        found = self.session.run(None, {name: columns[name] for name in self.names})[0]
        scores: list[float] = found[:, 0].astype(float).tolist()
        return scores


def onnx_file(folder: Path) -> str:
    """The graph that a folder holds."""
    return ONNX_INT8_FILE if (folder / ONNX_INT8_FILE).is_file() else ONNX_FILE


def _ndcg_loss(
    before: Sequence[ScoredList],
    scorer: OnnxScorer,
    examples: Sequence[Example],
    options: Options,
) -> tuple[float, float]:
    """NDCG@10 of our scores and of int8; refused where it costs too much."""
    with tracked("ranking with int8", len(examples)) as advance:
        after = scorer.score_examples(examples, advance)
    ours = evaluate_scores(before, [METRIC], first_stage=False).metrics[METRIC]
    theirs = evaluate_scores(after, [METRIC], first_stage=False).metrics[METRIC]
    if ours - theirs > options.max_ndcg_loss:
        raise ConfigError(
            f"--quantize int8 costs {ours - theirs:.4f} NDCG@10 on {len(examples)} queries "
            f"({ours:.4f} to {theirs:.4f}), more than --max_ndcg_loss {options.max_ndcg_loss:g}; "
            "nothing was written. Export without --quantize, or raise the limit"
        )
    return ours, theirs


def _onnx_card(facts: card.Facts, folder: Path, text: str) -> str:
    """The card with how to run the graph in place of how to load weights that are not there."""
    file = onnx_file(folder)
    usage = card.onnx_usage(facts, file)
    head, _, rest = text.partition("## Use\n")
    _, _, arguments = rest.partition("\n## Training arguments")
    side = "either side" if facts.templated else "the right"
    body = (
        f"{head}## Use\n\nONNX Runtime; inputs are int64 of any batch and length, padding stands "
        f"on {side}:\n\n{card.fenced(usage, 'python')}\n"
    )
    if arguments:
        body += "\n## Training arguments" + arguments
    return body.replace("library_name: sentence-transformers", "library_name: onnx", 1)


# how each tool scores, as its users would


def _batched(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    for start in range(0, len(pairs), CHECK_BATCH):
        yield pairs[start : start + CHECK_BATCH]


def _inputs(tokenizer: Any, spec: ModelSpec, pairs: Sequence[Pair], **how: Any) -> Any:
    """Tokens of pairs by the tokenizer alone: its pair form, or the chat template's text."""
    if spec.template_prefix is None:
        queries, documents = zip(*pairs, strict=True)
        return tokenizer(list(queries), list(documents), padding=True, **how)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "query", "content": query}, {"role": "document", "content": document}],
            tokenize=False,
        )
        for query, document in pairs
    ]
    return tokenizer(texts, add_special_tokens=False, padding=True, **how)


def _score_transformers(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    spec = ModelSpec.load(folder)
    assert spec is not None
    generative = spec.kind == "generative"
    auto = (
        transformers.AutoModelForCausalLM
        if generative
        else transformers.AutoModelForSequenceClassification
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    side = "left" if generative else "right"
    scores: list[float] = []
    for batch in _batched(pairs):
        inputs = _inputs(tokenizer, spec, batch, padding_side=side, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits
        if generative:
            yes, no = (
                int(tokenizer(token, add_special_tokens=False)["input_ids"][0])
                for token in (spec.positive_token, spec.negative_token)
            )
            found = logits[:, -1, yes] - logits[:, -1, no]
        else:
            found = logits[:, 0]
        scores += found.float().tolist()
    return scores


def _score_sentence_transformers(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        found = model.predict(
            list(pairs), activation_fn=nn.Identity(), batch_size=CHECK_BATCH, convert_to_tensor=True
        )
    scores: list[float] = found.float().tolist()
    return scores


def _score_onnx(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    spec = ModelSpec.load(folder)
    assert spec is not None
    scorer = OnnxScorer(folder)
    scores: list[float] = []
    for batch in _batched(pairs):
        encoded = _inputs(scorer.tokenizer, spec, batch, padding_side="right", return_tensors="np")
        inputs = {name: encoded[name].astype(np.int64) for name in scorer.names}
        scores += scorer.session.run(None, inputs)[0][:, 0].astype(float).tolist()
    return scores


# servers


def _refuse_vllm(loaded: Loaded) -> None:
    kind = loaded.model.config.model_type
    if kind not in card.VLLM_TYPES:
        raise ConfigError(
            f"--to vllm: vLLM is not known to score {kind} models; it takes "
            f"{', '.join(card.VLLM_TYPES)}. Use --to onnx or rankwright serve"
        )


def _refuse_tei(loaded: Loaded) -> None:
    kind = loaded.model.config.model_type
    if kind not in card.TEI_TYPES or loaded.spec.kind != "classification":
        raise ConfigError(
            f"--to tei: Text Embeddings Inference does not rerank with {kind} models; it takes "
            f"{', '.join(card.TEI_TYPES)}. Use --to vllm, --to onnx or rankwright serve"
        )
    if loaded.spec.template_prefix is not None:
        raise ConfigError(
            "--to tei: Text Embeddings Inference writes a pair in the tokenizer's own form, and "
            "this model was trained with a template; use --to vllm or --to onnx"
        )


NOT_RUN = (
    "This server was not run on these files: they and the commands follow its documentation and "
    "source. Compare a few scores with `rankwright rank` before you rely on it."
)


def _serve_vllm(facts: card.Facts) -> str:
    command = card.vllm_usage(facts)
    assert command is not None
    template = (
        "`--chat-template` is needed: vLLM does not apply a tokenizer's own template to pairs. "
        if facts.templated
        else ""
    )
    cut = (
        "vLLM refuses a prompt over `--max-model-len`. `truncate_prompt_tokens` in a request would "
        "cut its end, where the score is read: send shorter documents, or "
        "`max_tokens_per_doc` where your version knows it."
        if facts.templated
        else "vLLM refuses a pair over `--max-model-len` unless a request gives "
        "`truncate_prompt_tokens`."
    )
    return f"""# vLLM

{NOT_RUN}

{card.fenced(command, "bash")}

{template}Run it in the folder that holds `{card.escape(facts.name)}`.

{card.fenced(_curl("8000", "/v1/rerank", facts.name, "documents"), "bash")}

`relevance_score` is the sigmoid of Rankwright's score (vLLM's default for one label). {cut}
"""


def _serve_tei(facts: card.Facts) -> str:
    command = card.tei_usage(facts)
    assert command is not None
    return f"""# Text Embeddings Inference

{NOT_RUN}

{card.fenced(command, "bash")}

Run it in the folder that holds `{card.escape(facts.name)}`.

{card.fenced(_curl("8080", "/rerank", None, "texts"), "bash")}

`score` is the sigmoid of Rankwright's score; `"raw_scores": true` gives the score itself. Pairs of
more than {facts.spec.max_length} tokens are refused unless a request gives `"truncate": true` (or
the server `--auto-truncate`), which cuts the longer of the two texts; Rankwright cuts the document.
On a GPU take the image for it; there weights are read in float16, so scores are rounded.
"""


def _curl(port: str, path: str, model: str | None, key: str) -> str:
    body: dict[str, Any] = {"query": "q", key: ["a", "b"]}
    if model is not None:
        body = {"model": model, **body}
    import shlex

    head = f"curl http://127.0.0.1:{port}{path} -H 'Content-Type: application/json'"
    return f"{head} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"


SERVERS: dict[str, Callable[[card.Facts], str]] = {"vllm": _serve_vllm, "tei": _serve_tei}

EXPORTS: dict[str, Export] = {
    "merged": Export(
        "the model's own kind, LoRA adapters merged",
        _write_files,
        _score_transformers,
        "transformers",
    ),
    "seq-cls": Export(
        "a generative model as a sequence classification model of one logit",
        _write_files,
        _score_transformers,
        "transformers",
        as_seq_cls=True,
    ),
    "sentence-transformers": Export(
        "a CrossEncoder's folder",
        _write_files,
        _score_sentence_transformers,
        "sentence-transformers",
        extra="mine",
    ),
    "onnx": Export(
        "one graph for ONNX Runtime; with --quantize int8 a smaller one",
        _write_onnx,
        _score_onnx,
        "onnxruntime",
        extra="onnx",
        as_seq_cls=True,
    ),
    "vllm": Export(
        "files and command for vLLM",
        _write_files,
        _score_transformers,
        "transformers",
        refuse=_refuse_vllm,
        as_seq_cls=True,
    ),
    "tei": Export(
        "files and command for Text Embeddings Inference",
        _write_files,
        _score_transformers,
        "transformers",
        refuse=_refuse_tei,
    ),
}
