"""The model card and the texts that say how each tool loads and scores a model.

Names, templates and rows' file names come from users: all of it is escaped, and of local paths only
the last part is shown.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from rankwright.models.checkpoint import Loaded, ModelSpec

CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
# the rows of the table of metrics, as metrics.json names them
STAGES = {"first_stage": "first stage", "before": "before training", "after": "after training"}
# arguments that say nothing of the model: where it lay, how fast it went, what was shown
NOT_TOLD = re.compile(
    r"^(output_dir|cache_dir|logging_dir|run_name|report_to|hub_.*|push_to_hub|overwrite|resume.*|"
    r"dataset|val_dataset|model|trust_remote_code|use_hf|dataloader_.*|ddp_.*|deepspeed|fsdp.*|"
    r"eval_batch_tokens|dataset_num_proc|load_from_cache_file|template_.*|instruction|max_length|"
    r"positive_token|negative_token|.*_dir|.*_path|.*token)$"
)
OF_ADAPTERS = re.compile(r"^(lora_.*|merge_lora|target_modules|use_dora|quant_bits)$")
# after vLLM's model registry and adapters, and TEI's candle models, read in November 2026
VLLM_TYPES = ("bert", "modernbert", "roberta", "xlm-roberta", "qwen3", "qwen2", "llama", "mistral")
TEI_TYPES = ("bert", "modernbert", "roberta", "xlm-roberta", "camembert")
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Facts:
    """What the texts need to know of a model.

    Attributes:
        spec: template, length, kind.
        model_type: of its configuration.
        architecture: of its configuration, such as ``Qwen3ForCausalLM``.
        tokens: (positive, negative) tokens as the vocabulary spells them, for the generative kind.
        name: what it is loaded by: an id on a hub, or a folder.
    """

    spec: ModelSpec
    model_type: str
    architecture: str
    tokens: tuple[str, str] | None
    name: str

    @classmethod
    def of(cls, loaded: Loaded, name: str) -> Facts:
        """Those of a loaded model."""
        tokens = None
        if loaded.spec.kind == "generative" and loaded.model.token_ids is not None:
            yes, no = loaded.tokenizer.convert_ids_to_tokens(list(loaded.model.token_ids))
            tokens = (yes, no)
        hf = loaded.model.hf
        return cls(loaded.spec, hf.config.model_type, type(hf).__name__, tokens, name)

    @property
    def templated(self) -> bool:
        """Whether a pair is written as a prompt."""
        return self.spec.template_prefix is not None


def hub_id(name: str) -> str | None:
    """The name where it is an id on a hub; None for a path."""
    bare = name.split("#")[0]
    known = _HUB_ID.fullmatch(bare) and not Path(bare).exists()
    return bare if known and not PurePath(bare).suffix else None


def base_name(name: str) -> str:
    """The last part of a path, of either system; an id stays whole."""
    if hub_id(name):
        return name
    return PureWindowsPath(PurePath(name).name).name or name


def escape(value: object) -> str:
    """A text as one line of Markdown that shows it and does nothing else."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(line, quote=False))


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


# how to load it


def rankwright_usage(facts: Facts) -> str:
    """Python that scores with this package."""
    return f"""\
from rankwright import Reranker

reranker = Reranker.load({facts.name!r})
print(reranker.rank("a query", ["a document", "another"]))"""


def transformers_usage(facts: Facts) -> str:
    """Python that scores with plain transformers."""
    auto = "SequenceClassification" if facts.spec.kind == "classification" else "CausalLM"
    lines = [
        "import torch",
        f"from transformers import AutoModelFor{auto}, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({facts.name!r})",
        f"model = AutoModelFor{auto}.from_pretrained({facts.name!r})",
    ]
    if facts.templated:
        lines += [
            "messages = [",
            '    {"role": "query", "content": "a query"},',
            '    {"role": "document", "content": "a document"},',
            "]",
            "text = tokenizer.apply_chat_template(messages, tokenize=False)",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
        ]
    else:
        lines += [
            'inputs = tokenizer("a query", "a document", truncation="only_second",',
            f'    max_length={facts.spec.max_length}, return_tensors="pt")',
        ]
    if facts.tokens is None:
        lines += ["with torch.no_grad():", "    print(model(**inputs).logits[0, 0].item())"]
    else:
        lines += [
            f"yes, no = tokenizer.convert_tokens_to_ids([{facts.tokens[0]!r}, "
            f"{facts.tokens[1]!r}])",
            "with torch.no_grad():",
            "    logits = model(**inputs).logits[0, -1]",
            "print((logits[yes] - logits[no]).item())",
        ]
    return "\n".join(lines)


def sentence_transformers_usage(facts: Facts) -> str:
    """Python that scores with sentence-transformers."""
    return f"""\
from sentence_transformers import CrossEncoder

model = CrossEncoder({facts.name!r})
print(model.predict([("a query", "a document")]))  # the sigmoid of the score"""


def onnx_usage(facts: Facts, file: str) -> str:
    """Python that scores with ONNX Runtime."""
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "from transformers import AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({facts.name!r})",
        f"session = onnxruntime.InferenceSession({facts.name + '/' + file!r})",
        'pairs = [("a query", "a document"), ("a query", "another")]',
    ]
    if facts.templated:
        lines += [
            "texts = [",
            "    tokenizer.apply_chat_template(",
            '        [{"role": "query", "content": q}, {"role": "document", "content": d}],',
            "        tokenize=False,",
            "    )",
            "    for q, d in pairs",
            "]",
            "encoded = tokenizer(",
            '    texts, add_special_tokens=False, padding=True, return_tensors="np"',
            ")",
        ]
    else:
        lines += [
            "encoded = tokenizer(",
            '    [q for q, d in pairs], [d for q, d in pairs], truncation="only_second",',
            f'    max_length={facts.spec.max_length}, padding=True, padding_side="right",',
            '    return_tensors="np",',
            ")",
        ]
    lines += [
        "names = [given.name for given in session.get_inputs()]",
        "inputs = {name: encoded[name].astype(np.int64) for name in names}",
        "print(session.run(None, inputs)[0][:, 0])",
    ]
    return "\n".join(lines)


def vllm_usage(facts: Facts) -> str | None:
    """The command that starts vLLM; None where it does not load the architecture."""
    if facts.model_type not in VLLM_TYPES:
        return None
    words = ["vllm", "serve", facts.name, "--runner", "pooling"]
    words += ["--max-model-len", str(facts.spec.max_length)]
    if facts.templated:
        words += ["--chat-template", f"{facts.name}/chat_template.jinja"]
    if facts.tokens is not None:
        overrides: dict[str, Any] = {
            "architectures": [
                facts.architecture.replace("ForCausalLM", "ForSequenceClassification")
            ],
            "classifier_from_token": [facts.tokens[1], facts.tokens[0]],
        }
        if facts.model_type == "qwen3":
            overrides["is_original_qwen3_reranker"] = True
        else:
            overrides["method"] = "from_2_way_softmax"
        words += ["--hf-overrides", json.dumps(overrides, ensure_ascii=False)]
    return shlex.join(words)


def tei_usage(facts: Facts) -> str | None:
    """The command that starts Text Embeddings Inference; None where it does not load the model."""
    if facts.model_type not in TEI_TYPES or facts.templated or facts.spec.kind != "classification":
        return None
    image = "ghcr.io/huggingface/text-embeddings-inference:cpu-1.9"
    if hub_id(facts.name):
        return shlex.join(["docker", "run", "-p", "8080:80", image, "--model-id", facts.name])
    volume = f'-v "$PWD"/{shlex.quote(facts.name)}:/model'
    return f"docker run -p 8080:80 {volume} {image} --model-id /model"


# the card


def card(facts: Facts, record: dict[str, Any], *, license_name: str | None = None) -> str:
    """The model card, with valid metadata for the hub.

    Args:
        facts: of the model.
        record: what ``metrics.json`` says of its training; empty where it is not known.
        license_name: the base model's, where it is known.

    Returns:
        Markdown behind a block of YAML.
    """
    spec = facts.spec
    training = spec.training
    if facts.tokens is not None:
        reads = (
            "a causal language model; its score is logit(yes) - logit(no) at the last position, "
            f"with the tokens {escape(spec.positive_token)} and {escape(spec.negative_token)}"
        )
    elif facts.templated:
        reads = "a causal model with a score head; one logit is read at the last position"
    else:
        reads = "a sequence classification model with one logit"
    title = escape(base_name(facts.name)) or "Reranker"
    parts = [
        f"---\n{metadata(facts, record, license_name)}\n---",
        f"# {title}",
        f"A text reranker: {reads}. Higher is more relevant; `sigmoid` of it is between 0 and 1."
        + (" " + _origin(record, training) if training else ""),
    ]
    if training:
        parts += ["## Data", _data(record, training), "## Validation", _validation(record)]
    parts += ["## Input", _input(facts), "## Use", _usage(facts)]
    if training:
        parts += ["## Training arguments", _arguments(spec)]
    return "\n\n".join(parts) + "\n"


def metadata(facts: Facts, record: dict[str, Any], license_name: str | None) -> str:
    """The card's YAML, as huggingface_hub writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    training = facts.spec.training
    data = record.get("data") or {}
    base = data.get("base_model") or hub_id(str(training.get("model") or ""))
    results = [
        EvalResult(
            task_type="text-ranking",
            task_name="Reranking",
            dataset_type="validation",
            dataset_name=", ".join(data.get("validation_files") or []) or "validation rows",
            metric_type=name,
            metric_name=name,
            metric_value=round(float(value), 6),
        )
        for name, value in (record.get("after") or {}).items()
    ]
    tags = ["reranker", "cross-encoder", "rankwright", "text-ranking"]
    loss = training.get("loss_type")
    values = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="text-ranking",
        tags=[*tags, *([f"loss:{loss}"] if loss else [])],
        license=license_name,
        base_model=base,
        datasets=data.get("hub_datasets") or None,
        model_name=base_name(facts.name) if results else None,
        eval_results=results or None,
    )
    return str(values.to_yaml())


def _origin(record: dict[str, Any], training: dict[str, Any]) -> str:
    base = escape(base_name(str(training.get("model") or "an unnamed model")))
    steps = record.get("steps")
    how = [f"{escape(training.get('loss_type', ''))} loss", escape(training.get("tuner_type", ""))]
    if steps is not None:
        how.append(f"{steps} steps")
    return f"It was trained with Rankwright from {base} ({', '.join(h for h in how if h)})."


def _data(record: dict[str, Any], training: dict[str, Any]) -> str:
    data = record.get("data") or {}

    def names(key: str, argument: str) -> str:
        found = data.get(key) or [base_name(str(n)) for n in training.get(argument) or []]
        return ", ".join(map(escape, found)) or "split off the training rows"

    lines = [f"- Training rows: {names('training_files', 'dataset')}{_count(record, 'train')}"]
    if record.get("after"):
        held = names("validation_files", "val_dataset")
        lines.append(f"- Validation rows: {held}{_count(record, 'validation')}")
    dropped = record.get("dropped") or {}
    if dropped:
        parts = ", ".join(f"{count} with {escape(reason)}" for reason, count in dropped.items())
        lines.append(f"- Left out of training: {parts}")
    return "\n".join(lines)


def _count(record: dict[str, Any], part: str) -> str:
    counts = (record.get("rows") or {}).get(part)
    if not counts:
        return ""
    rows, positives, negatives = (counts[name] for name in ("rows", "positives", "negatives"))
    return f" ({rows} queries, {positives} positive and {negatives} negative documents)"


def _validation(record: dict[str, Any]) -> str:
    after = record.get("after") or {}
    if not after:
        return "Not validated."
    intervals = record.get("intervals") or {}
    lines = [
        f"| | {' | '.join(map(escape, after))} |",
        f"|---|{'---|' * len(after)}",
    ]
    for stage, title in STAGES.items():
        values = record.get(stage)
        if not values:
            continue
        cells = []
        for name in after:
            low, high = (intervals.get(stage) or {}).get(name) or (None, None)
            shown = "-" if name not in values else f"{values[name]:.4f}"
            cells.append(shown if low is None else f"{shown} ({low:.4f} to {high:.4f})")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    note = (
        "Means over the full candidate lists of the validation rows; ties count as the expectation "
        "over random orders."
    )
    if intervals:
        note += " In brackets: 95 % bootstrap intervals over queries (10,000 draws)."
    return note + "\n\n" + "\n".join(lines)


def _input(facts: Facts) -> str:
    spec = facts.spec
    lines = [f"Pairs are cut at {spec.max_length} tokens: first the document, then the query."]
    if facts.templated:
        prompt = f"{spec.template_prefix}{{document}}{spec.template_suffix}"
        lines += ["A pair is written as", fenced(prompt)]
        if "{instruction}" in (spec.template_prefix or ""):
            lines += ["The default instruction is", fenced(spec.instruction)]
    else:
        lines.append("A pair is written as the tokenizer's own pair of texts.")
    return "\n\n".join(lines)


def _usage(facts: Facts) -> str:
    parts = [
        "Rankwright:",
        fenced(rankwright_usage(facts), "python"),
        "sentence-transformers:",
        fenced(sentence_transformers_usage(facts), "python"),
        "transformers:",
        fenced(transformers_usage(facts), "python"),
    ]
    vllm, tei = vllm_usage(facts), tei_usage(facts)
    if vllm:
        parts += ["vLLM:", fenced(vllm, "bash")]
    if tei:
        parts += ["Text Embeddings Inference:", fenced(tei, "bash")]
    name = shlex.quote(facts.name)
    onnx = f"rankwright export --model {name} --to onnx --output onnx"
    parts += ["ONNX Runtime, after:", fenced(onnx, "bash")]
    parts.append(
        "Rankwright, sentence-transformers and transformers are tested to give the same score; the "
        "commands for servers follow their documentation and were not run."
    )
    return "\n\n".join(parts)


def _arguments(spec: ModelSpec) -> str:
    adapters = spec.training.get("tuner_type") == "lora"
    told = {
        name: value
        for name, value in sorted(spec.training.items())
        if not NOT_TOLD.match(name)
        and value not in (None, "", [], {})
        and (adapters or not OF_ADAPTERS.match(name))
    }
    lines = [f"- {escape(name)}: {escape(_shown(value))}" for name, value in told.items()]
    versions = ", ".join(f"{escape(k)} {escape(v)}" for k, v in spec.versions.items())
    if versions:
        lines.append(f"- versions: {versions}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """A value of an argument; of what may be a path the last part."""
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return base_name(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(entry) for entry in value)
    return str(value)


def write_card(
    loaded: Loaded,
    folder: Path,
    record: dict[str, Any],
    *,
    name: str | None = None,
    license_name: str | None = None,
) -> None:
    """Write ``README.md`` into a model's folder.

    Args:
        loaded: the model.
        folder: its folder.
        record: what ``metrics.json`` says.
        name: what it will be loaded by, default the folder's name.
        license_name: the base model's.
    """
    text = card(Facts.of(loaded, name or folder.name), record, license_name=license_name)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def known_license(folder: Path) -> str | None:
    """The license that a folder's own card names, where there is one."""
    from huggingface_hub import ModelCard

    path = folder / CARD_FILE
    if not path.is_file():
        return None
    try:
        found = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except Exception:  # a card of another tool may hold anything
        return None
    value = found.get("license")
    return value if isinstance(value, str) else None
