"""Loading and saving: what stands beside the weights, so that every reader scores the same.

A checkpoint is a Hugging Face model directory plus ``rankwright.json`` (``ModelSpec``) and the
files that sentence-transformers, vLLM and Text Embeddings Inference (TEI) look for.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from rankwright.errors import CheckpointError, ConfigError
from rankwright.files import LOCK, publish, replacing, sync
from rankwright.guards import not_finite
from rankwright.hub import refuse_pickles, resolve_model
from rankwright.models.families import FAMILIES
from rankwright.models.reranker import RerankerModel, score_token
from rankwright.models.sharding import takes_whole_weights
from rankwright.templates import PAIR, QWEN3, PairEncoder, Template, check_template, find_template

logger = logging.getLogger(__name__)

SPEC_FILE = "rankwright.json"
ADAPTER_FILE = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.spm", "*.tiktoken", "tekken.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_AUTO: dict[str, Any] = {
    "generative": transformers.AutoModelForCausalLM,
    "classification": transformers.AutoModelForSequenceClassification,
}
# what configurations call their dropout rates
DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
    "pooler_dropout",
    "resid_pdrop",
    "seq_classif_dropout",
)
# what a checkpoint is made of, as patterns; what else lies in its folder is not ours
FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_LogitScore",
    "README.md",
    SPEC_FILE,
)
# a longer default would let one stray document take the memory; it is a flag, and cuts are counted
DEFAULT_MAX_LENGTH = 1024


@dataclass
class ModelSpec:
    """What ``rankwright.json`` says: all that a score depends on besides weights and tokenizer.

    Attributes:
        kind: ``classification`` or ``generative``.
        template_prefix: text before the document, None for the tokenizer's pair form.
        template_suffix: text behind the document.
        instruction: default task description.
        positive_token: its logit counts for the document (generative).
        negative_token: its logit counts against it (generative).
        max_length: most tokens of a pair.
        training: the arguments of the run that made it.
        versions: of the libraries that wrote it.
        calibration: what ``calibration.Calibration.to_dict`` gave, None without one.
    """

    kind: str
    template_prefix: str | None
    template_suffix: str
    instruction: str
    positive_token: str = "yes"  # noqa: S105 - a word of the vocabulary
    negative_token: str = "no"  # noqa: S105
    max_length: int = DEFAULT_MAX_LENGTH
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None

    @property
    def template(self) -> Template:
        """The template."""
        return Template(self.kind, self.template_prefix, self.template_suffix, self.instruction)

    def check(self) -> None:
        """Look at the values that a file brought.

        Raises:
            TypeError: one is of another type.
            ValueError: the kind is unknown.
        """
        if self.kind not in _AUTO:
            raise ValueError(f"kind is {self.kind!r}; it must be {' or '.join(_AUTO)}")
        types: dict[type, tuple[str, ...]] = {
            str: ("template_suffix", "instruction", "positive_token", "negative_token"),
            int: ("max_length",),
            dict: ("training", "versions"),
        }
        for kind, names in types.items():
            for name in names:
                if not isinstance(getattr(self, name), kind):
                    raise TypeError(f"{name} is no {kind.__name__}")
        if not isinstance(self.template_prefix, str | None):
            raise TypeError("template_prefix is no str")

    @classmethod
    def load(cls, folder: Path) -> ModelSpec | None:
        """Read a folder's ``rankwright.json``; None where there is none.

        Raises:
            CheckpointError: the file is broken.
        """
        path = folder / SPEC_FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            spec = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
            spec.check()
            return spec
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is broken ({error}); save the model again") from error


@dataclass
class LoadOptions:
    """What a user may set about a model; None takes the checkpoint's or the default.

    Attributes:
        kind: ``classification`` or ``generative``; None reads it off the checkpoint.
        use_hf: Hugging Face, otherwise ModelScope.
        revision: branch, tag or commit on the hub.
        dtype: one of ``DTYPES`` or ``auto`` (the checkpoint's).
        max_length: most tokens of a pair.
        template: a name of ``templates.TEMPLATES``, or a YAML or JSON file.
        template_prefix: text before the document.
        template_suffix: text behind the document.
        instruction: default task description.
        positive_token: its logit counts for the document.
        negative_token: its logit counts against it.
        trust_remote_code: allow code from the model's folder to run.
        dropout: of every layer; None keeps the configuration's.
        packed: False forces padded rows.
        attn_impl: a name of ``attention.BACKENDS``, or ``auto``.
        quantization: 4 loads the weights in four bits (bitsandbytes).
    """

    kind: str | None = None
    use_hf: bool = True
    revision: str | None = None
    dtype: str = "float32"
    max_length: int | None = None
    template: str | None = None
    template_prefix: str | None = None
    template_suffix: str | None = None
    instruction: str | None = None
    positive_token: str | None = None
    negative_token: str | None = None
    trust_remote_code: bool = False
    dropout: float | None = None
    packed: bool = True
    attn_impl: str = "auto"
    quantization: int | None = None


@dataclass
class Loaded:
    """A loaded model.

    Attributes:
        model: scores packed batches.
        tokenizer: its tokenizer.
        spec: what a score depends on besides them.
        new_modules: names of the modules whose weights the checkpoint did not hold.
        folder: where it was read from.
    """

    model: RerankerModel
    tokenizer: Any
    spec: ModelSpec
    new_modules: list[str]
    folder: Path

    def encoder(self) -> PairEncoder:
        """The encoder of pairs that the spec describes."""
        return PairEncoder(self.tokenizer, self.spec.template, self.spec.max_length)


def detect_kind(config: Any) -> str:
    """Read the kind off a configuration's architectures.

    A language model (``…ForCausalLM``, ``…LMHeadModel``) is generative; a sequence classification
    model, a masked language model or a bare encoder is (or becomes) a classification reranker.
    """
    names = list(config.architectures or [])
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    return "generative" if causal else "classification"


@dataclass
class Description:
    """What is known of a model before its weights are read.

    Attributes:
        config: the transformers configuration.
        tokenizer: its tokenizer.
        spec: what a score depends on besides them and the weights.
        folder: the folder that was named.
        base: the folder of the weights; another one where ``folder`` holds an adapter.
        adapter: ``folder`` where it holds an adapter.
    """

    config: Any
    tokenizer: Any
    spec: ModelSpec
    folder: Path
    base: Path
    adapter: Path | None


def describe(
    name: str | os.PathLike[str], options: LoadOptions | None = None, *, weights: bool = True
) -> Description:
    """Read configuration, tokenizer and spec of a model, and no weights.

    Args:
        name: as in ``load``.
        options: as in ``load``.
        weights: whether they are fetched from a hub.

    Raises:
        ConfigError: the name is unknown, or an option does not fit the model.
        CheckpointError: the folder holds no model.
    """
    options = options or LoadOptions()
    folder = resolve_model(
        str(name), use_hf=options.use_hf, revision=options.revision, weights=weights
    )
    spec = ModelSpec.load(folder)
    base, adapter = folder, None
    if (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file():
        adapter = folder
        base = _adapter_base(folder, spec, options, weights=weights)
    with _one_line(base, "configuration"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=options.trust_remote_code)
    kind = options.kind or (spec.kind if spec else detect_kind(config))
    if spec and options.kind and options.kind != spec.kind:
        raise ConfigError(
            f"--task_type says {options.kind}, but {folder} was trained as {spec.kind}; drop the "
            "flag"
        )
    if not any(found for pattern in TOKENIZER_FILES for found in base.glob(pattern)):
        # transformers would make an empty one, to which every word is unknown
        raise ConfigError(
            f"{base} holds no tokenizer (tokenizer.json, vocab.txt, ...); copy the files of its "
            "base model there"
        )
    with _one_line(base, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=options.trust_remote_code)
    spec = _spec(spec, options, kind, config, tokenizer)
    _check_prompt(tokenizer, spec)
    return Description(config, tokenizer, spec, folder, base, adapter)


def _adapter_base(
    folder: Path, spec: ModelSpec | None, options: LoadOptions, *, weights: bool
) -> Path:
    """The folder of the model that an adapter was trained on, by the run's hub and revision."""
    try:
        config = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        name = str(config["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder / ADAPTER_FILE} is broken ({error}); use another adapter"
        ) from error
    training = spec.training if spec else {}
    revision = options.revision or training.get("revision")
    return resolve_model(
        name,
        use_hf=options.use_hf and training.get("use_hf", True),
        revision=None if Path(name).exists() else revision,
        weights=weights,
    )


@contextmanager
def _one_line(folder: Path, what: str) -> Iterator[None]:
    """Say in one line what transformers says in several."""
    try:
        yield
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{folder}: the {what} does not load: {first} "
            "Give a folder or id of a transformers model"
        ) from error


def load(name: str | os.PathLike[str], options: LoadOptions | None = None) -> Loaded:
    """Load a model for training or scoring.

    Args:
        name: a local folder (a model, or a LoRA adapter that ``save`` wrote), or an id on a hub.
        options: what to set about it.

    Raises:
        ConfigError: the name is unknown, or an option does not fit the model.
        CheckpointError: the checkpoint is incomplete, or a weight is NaN or infinite.
    """
    options = options or LoadOptions()
    described = describe(name, options)
    folder, base, adapter = described.folder, described.base, described.adapter
    config, tokenizer, spec = described.config, described.tokenizer, described.spec
    kind = spec.kind
    _refuse_pickles(base, adapter, kind)
    hf, missing = _load_weights(base, kind, config, options)
    complain = bool(ModelSpec.load(folder)) and adapter is None
    if missing and complain:
        raise CheckpointError(
            f"{folder} lacks the weights {', '.join(missing[:4])}; it was not saved whole, use "
            "another one"
        )
    _ensure_pad_token(hf, tokenizer)
    if adapter is None:
        # what an adapter will name as its base: the id on the hub, or a path that holds elsewhere
        # too
        hf.name_or_path = str(Path(name).resolve()) if Path(name).exists() else str(name)
    if adapter is not None:
        from peft import PeftModel

        hf = PeftModel.from_pretrained(hf, adapter, is_trainable=True)
        missing = []
    if broken := not_finite(hf.named_parameters()):
        raise CheckpointError(
            f"{folder}: {broken} holds NaN or infinite values, so every score would; use another "
            "model, or an earlier checkpoint"
        )
    token_ids = None
    if kind == "generative":
        token_ids = (
            score_token(tokenizer, spec.positive_token, "--positive_token"),
            score_token(tokenizer, spec.negative_token, "--negative_token"),
        )
    model = RerankerModel(hf, kind, token_ids, packed=options.packed, attn_impl=options.attn_impl)
    return Loaded(model.eval(), tokenizer, spec, _modules(missing), folder)


def _refuse_pickles(base: Path, adapter: Path | None, kind: str) -> None:
    auto = _AUTO[kind].__name__
    refuse_pickles(base, f"{auto}.from_pretrained({str(base)!r}).save_pretrained({str(base)!r})")
    if adapter is not None:
        file = str(adapter / "adapter_model")
        refuse_pickles(
            adapter,
            f"safetensors.torch.save_file(torch.load({file + '.bin'!r}, weights_only=True), "
            f"{file + '.safetensors'!r})",
            # peft reads the pickle beside any other name
            "adapter_model.safetensors",
        )


def _spec(
    spec: ModelSpec | None, options: LoadOptions, kind: str, config: Any, tokenizer: Any
) -> ModelSpec:
    """Combine the checkpoint's spec, the defaults of its kind and the user's options."""
    limit = model_limit(config)
    named, says_instruction = None, False
    if options.template is not None:
        named, says_instruction = find_template(str(options.template), tokenizer)
    if spec is None:
        family = FAMILIES.get(config.model_type)
        # a decoder's tokenizer puts nothing between two texts, so even with a score head it needs a
        # prompt
        prompted = kind == "generative" or (family is not None and family.causal)
        template = named or (QWEN3 if prompted else PAIR)
        spec = ModelSpec(
            kind,
            template.prefix,
            template.suffix,
            template.instruction,
            max_length=min(DEFAULT_MAX_LENGTH, limit, int(tokenizer.model_max_length)),
        )
    trained = (spec.template_prefix, spec.template_suffix) if spec.training else None
    if named is not None:
        spec.template_prefix, spec.template_suffix = named.prefix, named.suffix
        if says_instruction:
            spec.instruction = named.instruction
        spec.positive_token = named.positive_token or spec.positive_token
        spec.negative_token = named.negative_token or spec.negative_token
    for name in (
        "template_prefix",
        "template_suffix",
        "instruction",
        "positive_token",
        "negative_token",
    ):
        if getattr(options, name) is not None:
            setattr(spec, name, getattr(options, name))
    if trained not in (None, (spec.template_prefix, spec.template_suffix)):
        logger.warning(
            "the model was trained with another template; its scores mean something else under "
            "this one until it is trained again"
        )
    check_template(spec.template)
    if options.instruction is not None and not spec.template.reads_instruction:
        logger.warning(
            "--instruction has no effect: the model's template has no place for it; give one with "
            "{instruction} (--template), or write it into the queries"
        )
    if options.max_length is not None:
        if options.max_length > limit:
            raise ConfigError(
                f"--max_length {options.max_length} is more than the model's {limit} positions; "
                "lower it"
            )
        spec.max_length = options.max_length
    return spec


def _check_prompt(tokenizer: Any, spec: ModelSpec) -> None:
    """Find whatever is wrong with a prompt before any weights are read."""
    PairEncoder(tokenizer, spec.template, spec.max_length)
    if spec.kind == "generative":
        positive = score_token(tokenizer, spec.positive_token, "--positive_token")
        negative = score_token(tokenizer, spec.negative_token, "--negative_token")
        if positive == negative:
            raise ConfigError(
                f"--positive_token {spec.positive_token!r} and --negative_token "
                f"{spec.negative_token!r} are one; the scores need two different tokens"
            )


def model_limit(config: Any) -> int:
    """The longest sequence a model's positions allow."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 1_000_000)
    family = FAMILIES.get(config.model_type)
    return positions - (family.position_offset(config) if family else 0)


def _load_weights(
    base: Path, kind: str, config: Any, options: LoadOptions
) -> tuple[Any, list[str]]:
    auto = _AUTO[kind]
    arguments: dict[str, Any] = {
        "dtype": "auto" if options.dtype == "auto" else DTYPES[options.dtype],
        "trust_remote_code": options.trust_remote_code,
        "output_loading_info": True,
        "use_safetensors": True,
    }
    if kind == "classification":
        arguments["num_labels"] = 1
    if options.dropout is not None:
        arguments |= {name: options.dropout for name in DROPOUTS if hasattr(config, name)}
    bits = options.quantization
    try:
        with _quiet_transformers(), _on_every_process():
            if bits is None:
                hf, info = auto.from_pretrained(base, **arguments)
            else:
                hf, info = _load_four_bits(auto, base, config, bits, arguments)
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{base} does not load as a {kind} reranker: {first} Check --task_type, or give "
            "another model"
        ) from error
    return hf, sorted(info["missing_keys"])


@contextmanager
def _on_every_process() -> Iterator[None]:
    """Read the weights on every process, under FSDP too.

    Where ``accelerate launch`` says so, transformers reads them on the first one alone and leaves
    the others' as memory was, for FSDP to fill. New heads are not filled so, and commands that do
    not train have no FSDP.
    """
    said = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if said is not None:
            os.environ["ACCELERATE_USE_FSDP"] = said


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back transformers' loading report and bars: what is missing is reported by us."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _load_four_bits(
    auto: Any, base: Path, config: Any, bits: int, arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Load the backbone's layers in four bits; heads and new modules, trained in full, keep all.

    Raises:
        ConfigError: another number of bits, no bitsandbytes, or a model that it does not fit.
    """
    import importlib.util

    if bits != 4:
        raise ConfigError(f"--quant_bits {bits} is not supported; give 4 or leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("--quant_bits 4 needs bitsandbytes; pip install 'rankwright[quant]'")
    with torch.device("meta"):
        sketch = auto.from_config(config, trust_remote_code=arguments["trust_remote_code"])
    kinds = {type(module) for module in sketch.modules()}
    if transformers.pytorch_utils.Conv1D in kinds or sketch.base_model is sketch:
        # the former's weights would come back transposed, the latter's layers are all heads
        raise ConfigError(
            f"--quant_bits 4 does not fit layers of {config.model_type!r}; leave it out"
        )
    whole = [name for name, child in sketch.named_children() if child is not sketch.base_model]
    if getattr(sketch.base_model, "pooler", None) is not None:  # only the head reads it
        whole.append(f"{sketch.base_model_prefix}.pooler")

    def load() -> tuple[Any, dict[str, Any]]:
        found: tuple[Any, dict[str, Any]] = auto.from_pretrained(
            base, quantization_config=_four_bits(whole), **arguments
        )
        return found

    hf, info = load()
    kept = tuple(f"{name}." for name in whole)
    new = [n for n in _modules(sorted(info["missing_keys"])) if not f"{n}.".startswith(kept)]
    if new:
        del hf
        whole += new
        hf, info = load()
    return hf, info


def _four_bits(whole: list[str]) -> Any:
    """How weights are loaded in four bits; ``whole``: modules that keep all of theirs."""
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=whole,  # it holds for four bits, too
    )


def _ensure_pad_token(hf: Any, tokenizer: Any) -> None:
    """Padded readers need a pad token; the end token serves where a model names none."""
    if tokenizer.pad_token_id is None:
        if hf.config.pad_token_id is not None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(hf.config.pad_token_id)
        elif tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
    if hf.config.pad_token_id is None:
        hf.config.pad_token_id = tokenizer.pad_token_id


def _modules(keys: list[str]) -> list[str]:
    return sorted({key.rsplit(".", 1)[0] for key in keys})


def save(loaded: Loaded, folder: str | os.PathLike[str], *, merge: bool = False) -> None:
    """Write a checkpoint: to a temporary folder beside it, synced, then renamed.

    Args:
        loaded: model, tokenizer and spec.
        folder: the target; an existing folder is replaced only after the new one is whole.
        merge: fold a LoRA adapter into the weights, so that any reader loads the result.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    with new_folder(Path(folder)) as temporary:
        write_files(loaded, temporary, merge=merge)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside ``target`` that is synced and takes its name when the block ends well.

    Args:
        target: an existing folder of a saved model is replaced then; any other is refused.

    Raises:
        CheckpointError: the target holds something else, or cannot be written.
    """
    named, target = target, Path(os.path.realpath(target))  # a link to a larger disk stays one
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{named} is a file; name a folder")
    if Path.cwd().is_relative_to(target):
        # it would be replaced, and nobody stand anywhere any more
        raise CheckpointError(f"{named} is the folder this runs in, or above it; name another")
    held = [path.name for path in target.iterdir()] if target.is_dir() else []
    held = [name for name in held if name != LOCK]
    run = any(name.startswith("checkpoint-") for name in held) or "adapter" in held
    if held and (SPEC_FILE not in held or run):
        raise CheckpointError(
            f"{named} holds {'a training run' if run else 'other files'}, which saving there "
            "would "
            "delete; choose another folder"
        )
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        temporary.chmod(0o755)
        yield temporary
        sync(temporary)
        publish(temporary, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {named}: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_calibration(folder: Path, calibration: dict[str, Any] | None) -> Path:
    """Put a calibration into a folder's ``rankwright.json``; every other file stays untouched.

    Args:
        folder: a checkpoint of ours.
        calibration: ``Calibration.to_dict()``; None takes it out.

    Returns:
        The file, replaced at once: it is the old one or the new one, never half of it.

    Raises:
        CheckpointError: the file is missing, broken or cannot be written.
    """
    path = folder / SPEC_FILE
    if ModelSpec.load(folder) is None:
        raise CheckpointError(f"{folder} holds no {SPEC_FILE}; save the model there first")
    if path.is_symlink():
        # a hub's cache, whose files have the names of their hashes
        raise CheckpointError(f"{path} is a link into a cache; save a copy of the model elsewhere")
    values = json.loads(path.read_text(encoding="utf-8")) | {"calibration": calibration}
    try:
        with replacing(path) as file:
            file.write(_json_text(values).encode())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    return path


def write_files(
    loaded: Loaded,
    folder: Path,
    *,
    merge: bool = False,
    state_dict: dict[str, Any] | None = None,
) -> None:
    """Write all files of a checkpoint into ``folder``, ``rankwright.json`` last.

    Args:
        loaded: model, tokenizer and spec.
        folder: an existing folder.
        merge: fold a LoRA adapter into the weights.
        state_dict: the weights, where they were gathered from shards.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    model = loaded.model.model
    adapted = model is not loaded.model.hf
    if adapted and not merge:
        _refuse_broken(model, state_dict, folder)
        # the vocabulary is never changed; peft would ask the hub whether it was
        model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
        # peft's card is empty but for the base model's path on this machine
        (folder / "README.md").unlink(missing_ok=True)
    else:
        hf = _merged(model) if adapted else model
        _refuse_broken(hf, state_dict, folder)
        if loaded.spec.kind == "classification":
            hf.config.id2label, hf.config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
        implementation = hf.config._attn_implementation
        hf.set_attn_implementation("sdpa" if hf._supports_sdpa else "eager")
        try:
            hf.save_pretrained(folder, state_dict=state_dict)
        finally:
            hf.set_attn_implementation(implementation)
        _complete_config(folder)
        _sentence_transformers_files(loaded, folder)
    write_input_files(loaded, folder)


def _refuse_broken(model: Any, state_dict: dict[str, Any] | None, folder: Path) -> None:
    weights = model.named_parameters() if state_dict is None else state_dict.items()
    if name := not_finite(weights):
        raise CheckpointError(
            f"{folder} is not written: {name} of the model holds NaN or infinite values; go back "
            "to an earlier checkpoint"
        )


def write_input_files(loaded: Loaded, folder: Path) -> None:
    """Write what says how a pair becomes tokens: tokenizer, chat template and spec."""
    loaded.tokenizer.chat_template = chat_template(loaded.spec) or loaded.tokenizer.chat_template
    loaded.tokenizer.save_pretrained(folder)
    _tokenizer_limit(folder, loaded.spec.max_length)
    loaded.spec.versions = _versions()
    _write_json(folder / SPEC_FILE, asdict(loaded.spec))


def load_weights(model: RerankerModel, folder: Path) -> None:
    """Load the weights of a checkpoint of the same run into a model, in place.

    Args:
        model: the model, with adapters if the checkpoint holds some.
        folder: a checkpoint that ``write_files`` wrote.

    Raises:
        CheckpointError: weights are missing or belong to another model.
    """
    from safetensors.torch import load_file

    if (folder / ADAPTER_FILE).is_file():
        from peft import load_peft_weights, set_peft_model_state_dict

        with _weights_fit(folder), takes_whole_weights(model):
            result = set_peft_model_state_dict(
                model.model, load_peft_weights(str(folder), device="cpu")
            )
        if result.unexpected_keys:
            raise CheckpointError(
                f"{folder} holds adapters for other modules ({result.unexpected_keys[0]}); give "
                "the flags of its run"
            )
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} holds no weights (*.safetensors); choose another checkpoint"
        )
    expected = set(model.hf.state_dict())
    tied = set(getattr(model.hf, "all_tied_weights_keys", None) or {})
    for path in files:
        with _weights_fit(path), takes_whole_weights(model):
            result = model.hf.load_state_dict(load_file(path, device="cpu"), strict=False)
        if result.unexpected_keys:
            raise CheckpointError(
                f"{path} holds weights of another model ({result.unexpected_keys[0]}); give the "
                "flags of its run"
            )
        expected &= set(result.missing_keys)
    if expected - tied:
        raise CheckpointError(
            f"{folder} lacks the weights {sorted(expected - tied)[:3]}; it is not whole"
        )


@contextmanager
def _weights_fit(path: Path) -> Iterator[None]:
    """Say in one line that a file of weights is cut off or belongs to another model."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} does not fit this model or is cut off ({detail}); give the flags of its run, "
            "or another checkpoint"
        ) from error


def _merged(peft_model: Any) -> Any:
    """A copy of the model with its adapter folded in; the one in training is left as it is."""
    import copy

    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if not getattr(peft_model, "is_loaded_in_4bit", False):
        return copy.deepcopy(peft_model).merge_and_unload()
    # folded into four bits, most of it would be lost in their rounding: the weights that it was
    # trained on are written out first, where there is room for eight times as much
    with _quiet_transformers():
        base = copy.deepcopy(peft_model).unload().to("cpu").dequantize()
    base.to(base.config.dtype)  # layers in four bits have turned their biases to bfloat16
    whole = get_peft_model(base, copy.deepcopy(peft_model.peft_config["default"]))
    # the vocabulary is never changed; peft would ask the hub whether it was
    adapter = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    set_peft_model_state_dict(whole, adapter)
    return whole.merge_and_unload()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("rankwright", "transformers", "torch", "peft")}


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(_json_text(value), encoding="utf-8")


def _complete_config(folder: Path) -> None:
    """Add the keys that readers other than transformers 5 look for in ``config.json``.

    transformers 5 writes ``rope_parameters`` alone; TEI reads ModernBERT's two thetas, and vLLM and
    older transformers read a decoder's ``rope_theta`` at the top and assume 10000 where it is
    missing.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope or "sliding_attention" in rope:
        config["global_rope_theta"] = rope["full_attention"]["rope_theta"]
        config["local_rope_theta"] = rope["sliding_attention"]["rope_theta"]
    elif "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if config["model_type"] == "modernbert":
        types = config["layer_types"]
        full = [i for i, kind in enumerate(types) if kind == "full_attention"]
        config["global_attn_every_n_layers"] = full[1] - full[0] if len(full) > 1 else len(types)
    _write_json(path, config)


def _tokenizer_limit(folder: Path, max_length: int) -> None:
    """Let readers that truncate on their own do it at the length of the training."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_max_length"] = max_length
    _write_json(path, config)


def _sentence_transformers_files(loaded: Loaded, folder: Path) -> None:
    module = "sentence_transformers.base.modules.transformer.Transformer"
    modules = [{"idx": 0, "name": "0", "path": "", "type": module}]
    generative = loaded.spec.kind == "generative"
    transformer: dict[str, Any] = {
        "transformer_task": "text-generation" if generative else "sequence-classification",
        "max_seq_length": loaded.spec.max_length,
        "do_lower_case": False,
    }
    if loaded.spec.template_prefix is not None:
        # pairs become messages, which the chat template lays out
        way = {"method": "forward", "method_output_name": "logits"}
        transformer |= {
            "modality_config": {"text": way, "message": {**way, "format": "flat"}},
            "module_output_name": "causal_logits" if generative else "scores",
        }
    if generative:
        assert loaded.model.token_ids is not None
        name = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
        modules.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": name})
        score = folder / "1_LogitScore"
        score.mkdir(exist_ok=True)
        yes, no = loaded.model.token_ids
        _write_json(
            score / "config.json",
            {"true_token_id": yes, "false_token_id": no, "module_input_name": "causal_logits"},
        )
    _write_json(folder / "sentence_bert_config.json", transformer)
    _write_json(folder / "modules.json", modules)
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {"transformers": transformers.__version__},
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.activation.Sigmoid",
            "prompts": {},
            "default_prompt_name": None,
        },
    )


def chat_template(spec: ModelSpec) -> str | None:
    """The Jinja form of a prompt template, as sentence-transformers and vLLM read it.

    They pass one message each with the roles ``query`` and ``document``, and the instruction as
    ``system``.
    """
    if spec.template_prefix is None:
        return None
    import string

    parts = []
    for text, name, _, _ in string.Formatter().parse(spec.template_prefix):
        if text:
            parts.append("{{ " + json.dumps(text, ensure_ascii=False) + " }}")
        if name == "query":
            parts.append(_message("query"))
        elif name == "instruction":
            parts.append(
                "{{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | "
                "first"
                f" | default({json.dumps(spec.instruction, ensure_ascii=False)}, true) }}}}"
            )
    parts.append(_message("document"))
    if spec.template_suffix:
        parts.append("{{ " + json.dumps(spec.template_suffix, ensure_ascii=False) + " }}")
    return "".join(parts)


def _message(role: str) -> str:
    chosen = f"messages | selectattr('role', 'eq', '{role}') | map(attribute='content') | first"
    return "{{ " + chosen + " }}"
