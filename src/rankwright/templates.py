"""How a query and a document become token ids.

A template gives three parts, each tokenised once: ``prefix(instruction, query)``, ``document`` and
``suffix``. The pair's tokens are their concatenation. Only the document is truncated, then the
query; what the template itself writes always survives, so the token the score is read at is always
the right one.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rankwright.errors import ConfigError
from rankwright.files import expanded
from rankwright.types import PairTokens as PairTokens

# the fewest tokens that query and document together must be left with
MIN_ROOM = 16

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

# Qwen3-Reranker's model card; ends in two newlines after </think>
QWEN3_PREFIX = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: "
)
QWEN3_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Template:
    """A prompt around a query and a document.

    Attributes:
        kind: ``classification`` or ``generative``; what the prompt was made for.
        prefix: text before the document, with ``{query}`` and optionally ``{instruction}``; None
            for the tokenizer's own pair form (``[CLS] q [SEP] d [SEP]``).
        suffix: text after the document.
        instruction: the default task description.
        positive_token: what stands for relevant in its answer; None says nothing of it.
        negative_token: what stands for irrelevant.
    """

    kind: str
    prefix: str | None = None
    suffix: str = ""
    instruction: str = DEFAULT_INSTRUCTION
    positive_token: str | None = None
    negative_token: str | None = None

    @property
    def reads_instruction(self) -> bool:
        """Whether an instruction changes the prompt."""
        return self.prefix is not None and any(
            name == "instruction" for _, name, _, _ in string.Formatter().parse(self.prefix)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what ``rankwright.json`` keeps."""
        return {"prefix": self.prefix, "suffix": self.suffix, "instruction": self.instruction}


@dataclass(frozen=True)
class Passages:
    """How a document that does not fit is read: in passages, each scored as a document.

    The document's score is that of its best passage (MaxP, Dai & Callan 2019) or the mean of its
    best few. A document that fits is read whole. The last passage is moved back to be as long as
    the others.

    Attributes:
        tokens: of a passage; None, and where a query leaves less room: what fits.
        overlap: tokens that a passage shares with the one before it, at most half of a passage;
            None: an eighth.
        pooling: ``max``, or ``mean3`` for the mean of the best three (of all where there are
            fewer).
        limit: most passages of a document, the first ones; None: no limit. What lies behind it is
            counted as cut.

    Raises:
        ConfigError: a value is out of its range.
    """

    tokens: int | None = None
    overlap: int | None = None
    pooling: str = "max"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"--passage_tokens {self.tokens} is less than 1")
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"--passage_overlap {self.overlap} is less than 0")
        if None not in (self.tokens, self.overlap) and 2 * self.overlap > self.tokens:  # type: ignore[operator]
            raise ConfigError(
                f"--passage_overlap {self.overlap} is more than half of --passage_tokens "
                f"{self.tokens}; lower it, since every token would be read more than twice"
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--max_passages {self.limit} is less than 1")
        if not re.fullmatch(r"max|mean[1-9][0-9]{0,8}", str(self.pooling)):
            raise ConfigError(
                f"--passages {self.pooling!r} is unknown; give max, or mean with the number of the "
                "best passages, such as mean3"
            )

    @property
    def best(self) -> int:
        """How many of the best passages' scores the mean is taken of; 1 for ``max``."""
        return 1 if self.pooling == "max" else int(self.pooling.removeprefix("mean"))

    def windows(self, length: int, room: int) -> list[tuple[int, int]]:
        """Begin and end of each passage of a document of ``length`` tokens; no limit applies."""
        if length <= room:
            return [(0, length)]
        size = min(self.tokens or room, room)
        overlap = size // 8 if self.overlap is None else min(self.overlap, size // 2)
        starts = [*range(0, length - size, size - overlap), length - size]
        return [(start, start + size) for start in starts]

    def pool(self, scores: Sequence[float]) -> float:
        """The document's score, from those of its passages."""
        best = sorted(scores, reverse=True)[: self.best]
        return sum(best) / len(best)


@dataclass(frozen=True)
class PassageTokens:
    """Token ids of one query with the passages of its documents.

    Attributes:
        tokens: prefix and passages; ``truncated_documents`` counts what ``Passages.limit`` cut.
        owners: for each passage the index of its document, in order.
        spans: for each passage its first character in the document and the one behind its last;
            None where the document is read whole.
    """

    tokens: PairTokens
    owners: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]


PAIR = Template(kind="classification")
QWEN3 = Template("generative", QWEN3_PREFIX, QWEN3_SUFFIX, DEFAULT_INSTRUCTION, "yes", "no")

# mixedbread-ai/mxbai-rerank: mxbai_rerank_v2.py, without its optional instruction
MXBAI = Template(
    "generative",
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\nquery: {query}\ndocument: ",
    "\nYou are a search relevance expert who evaluates how well documents match search queries. "
    "For each query-document pair, carefully analyze the semantic relationship between them, then "
    "provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    "<|im_end|>\n<|im_start|>assistant\n",
    DEFAULT_INSTRUCTION,
    "1",
    "0",
)
# the model card of BAAI/bge-reranker-v2-gemma, which scores with logit(Yes) alone
BGE_GEMMA_SUFFIX = (
    "\nGiven a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)


def _bge_gemma(tokenizer: Any) -> Template:
    start = _doubled(str(tokenizer.bos_token or ""))
    prefix = start + "A: {query}\nB: "
    return Template("generative", prefix, BGE_GEMMA_SUFFIX, DEFAULT_INSTRUCTION, "Yes", "No")


# stand-ins for the texts while a chat template is rendered; no template changes or repeats them
_INSTRUCTION, _QUERY, _DOCUMENT = "RANKWRIGHTINSTRUCTION", "RANKWRIGHTQUERY", "RANKWRIGHTDOCUMENT"


def _chat(tokenizer: Any) -> Template:
    """Qwen3-Reranker's words in the model's own chat format."""
    import jinja2

    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "--template chat needs a tokenizer with a chat template, and this one has none; give "
            "a template file"
        )
    opening, _, user = QWEN3_PREFIX.partition("<|im_end|>\n<|im_start|>user\n")
    system = opening.removeprefix("<|im_start|>system\n")
    user = user.format(instruction=_INSTRUCTION, query=_QUERY) + _DOCUMENT

    def render(messages: list[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                # of models that think first: the answer comes at once
                enable_thinking=False,
            )
        )

    def places(text: str) -> bool:
        return all(text.count(word) == 1 for word in (system, _INSTRUCTION, _QUERY, _DOCUMENT))

    text = ""
    with contextlib.suppress(jinja2.TemplateError):
        text = render([{"role": "system", "content": system}, {"role": "user", "content": user}])
    if not places(text):
        # no system message, as Gemma
        try:
            text = render([{"role": "user", "content": f"{system}\n\n{user}"}])
        except jinja2.TemplateError as error:
            raise ConfigError(
                f"--template chat: the tokenizer's chat template refuses a question ({error}); "
                "give a template file"
            ) from error
    if not places(text):
        raise ConfigError(
            "--template chat: the tokenizer's chat template does not keep its messages as they "
            "are; give a template file"
        )
    before, _, suffix = text.partition(_DOCUMENT)
    prefix = _doubled(before).replace(_INSTRUCTION, "{instruction}").replace(_QUERY, "{query}")
    return Template("generative", prefix, suffix, DEFAULT_INSTRUCTION, "yes", "no")


def _doubled(text: str) -> str:
    """Text whose braces are no fields."""
    return text.replace("{", "{{").replace("}", "}}")


class TemplateEntry(NamedTuple):
    """One row of :data:`TEMPLATES`.

    Attributes:
        make: from a tokenizer to the template.
        description: one line for help texts.
    """

    make: Callable[[Any], Template]
    description: str


TEMPLATES: dict[str, TemplateEntry] = {
    "pair": TemplateEntry(lambda _: PAIR, "the tokenizer's own pair of texts, as encoders have it"),
    "qwen3": TemplateEntry(lambda _: QWEN3, "Qwen3-Reranker; yes and no"),
    "chat": TemplateEntry(_chat, "Qwen3-Reranker's words in the model's own chat format"),
    "mxbai-v2": TemplateEntry(lambda _: MXBAI, "mxbai-rerank-base-v2 and -large-v2; 1 and 0"),
    "bge-gemma": TemplateEntry(
        _bge_gemma, "bge-reranker-v2-gemma; Yes and No (its card scores with Yes alone)"
    ),
}
_FIELDS = ("prefix", "suffix", "instruction", "positive_token", "negative_token")


def find_template(name: str, tokenizer: Any) -> tuple[Template, bool]:
    """The template of a name or of a file.

    Args:
        name: a key of :data:`TEMPLATES`, or a YAML or JSON file with ``prefix`` and, where wanted,
            ``suffix``, ``instruction``, ``positive_token`` and ``negative_token``.
        tokenizer: the model's.

    Returns:
        The template, and whether it is a file that says an instruction.

    Raises:
        ConfigError: neither a name nor a file, or the file is no template.
    """
    if name in TEMPLATES:
        return TEMPLATES[name].make(tokenizer), False
    path = expanded(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, TEMPLATES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(
            f"--template {name!r} is neither a file nor a name{hint} "
            f"Give a YAML or JSON file, or one of {', '.join(TEMPLATES)}"
        )
    values = _template_values(path)
    template = Template("generative", **values)
    try:
        check_template(template)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).replace('--template_', '')}") from error
    return template, "instruction" in values


def _template_values(path: Path) -> dict[str, str]:
    import yaml

    try:
        # JSON is YAML
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--template {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f":{place.line + 1}" if place else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{line} is not YAML or JSON: {problem}; correct it") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no names; a template has {', '.join(_FIELDS)}")
    for name, value in values.items():
        if name not in _FIELDS:
            near = difflib.get_close_matches(str(name), _FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise ConfigError(
                f"{path}: {name!r} is not part of a template{hint} it has {', '.join(_FIELDS)}"
            )
        if not isinstance(value, str):
            raise ConfigError(
                f"{path}: {name} is {value!r}, which is no text; put it in quotes (YAML reads yes "
                "and no as true and false)"
            )
        if name != "suffix" and not value:
            raise ConfigError(f"{path}: {name} is empty; give its text, or leave it out")
    if "prefix" not in values:
        raise ConfigError(f"{path}: prefix is missing; give the text before the document")
    return values


def check_template(template: Template) -> None:
    """Check a user's template.

    Raises:
        ConfigError: the query's place is missing, a field is unknown, or a suffix stands alone.
    """
    if template.prefix is None:
        if template.suffix:
            raise ConfigError("--template_suffix needs --template_prefix; give both or neither")
        return
    try:
        fields = [
            # a format or a conversion ({query!r}) counts as part of the name, so it is refused
            f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
            for _, name, form, conversion in string.Formatter().parse(template.prefix)
            if name is not None
        ]
    except ValueError as error:
        raise ConfigError(
            f"--template_prefix has unbalanced braces ({error}); double them"
        ) from error
    unknown = [name for name in fields if name not in ("query", "instruction")]
    if unknown or fields.count("query") != 1:
        raise ConfigError(
            f"--template_prefix has the fields {fields}; it needs {{query}} exactly once and may "
            "have {instruction} (double any other brace); the document follows it"
        )


# how special tokens are written in the prompts of the usual families
_SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|>|</?s>|<(?:bos|eos)>|<(?:start|end)_of_turn>|\[/?INST\]|\[(?:CLS|SEP)\]"
)


def template_warnings(tokenizer: Any, template: Template, answers: Sequence[str] = ()) -> list[str]:
    """What is probably wrong with a prompt under a tokenizer, each with what to do.

    Args:
        tokenizer: the model's.
        template: the template.
        answers: the words that the score is read at; none for a score head.
    """
    if template.prefix is None:
        return []
    lines = []

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    written = template.prefix + template.suffix
    cut = {
        token: len(ids(token))
        for token in dict.fromkeys(_SPECIAL.findall(written))
        if len(ids(token)) > 1
    }
    if cut:
        listed = ", ".join(f"{token} ({count})" for token, count in cut.items())
        lines.append(
            f"the template has what look like special tokens and this tokenizer cuts into several: "
            f"{listed}; it was made for another model: give one of this model's, such as "
            "--template chat"
        )
    whole = list(tokenizer("a")["input_ids"])
    start = tokenizer.bos_token_id
    prompt = template.prefix.format(query="q", instruction="i")
    if start is not None and whole[:1] == [start] and ids(prompt)[:1] != [start]:
        lines.append(
            f"the tokenizer puts {tokenizer.bos_token} before every text, and the template does "
            "not; models of this kind often need it: begin the prefix with it"
        )
    text = f"{prompt}document{template.suffix}"
    for answer in answers:
        if ids(text + answer) != [*ids(text), *ids(answer)]:
            lines.append(
                f"behind the prompt the model would write {answer!r} with other tokens than its "
                "own, so the score is read at a token that it never writes: end the suffix with a "
                "line break or a special token, or choose another word"
            )
    return lines


class PairEncoder:
    """Turns queries and documents into token ids under one template and one maximum length.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: the template.
        max_length: the most tokens a pair may have, template included.

    Attributes:
        room: what the template leaves to query and document.

    Raises:
        ConfigError: the template alone leaves no room for text.
    """

    def __init__(self, tokenizer: Any, template: Template, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.document_types = 0
        self._lead = ""
        check_template(template)
        if template.prefix is None:
            self._init_pair_form()
        else:
            self._init_prompt_form(template.prefix)
        fixed = self.frame(template.instruction)
        self.room = max_length - fixed
        if self.room < MIN_ROOM:
            raise ConfigError(
                f"--max_length {max_length} is too small: the template alone takes {fixed} tokens; "
                f"give at least {fixed + MIN_ROOM}"
            )

    def _init_prompt_form(self, prefix: str) -> None:
        # byte-level tokenizers join a space to the word behind it, so spaces before the document
        # are encoded with it: the ids are then those of the whole prompt as one string
        self._prompt = prefix.rstrip(" ")
        self._lead = prefix[len(self._prompt) :]
        self.suffix = self._ids(self.template.suffix)
        # where two words meet, some documents join them and some do not, so no probe settles it
        words_meet = not self._lead and self._fill("q", "i")[-1:].isalnum()
        words_meet = words_meet or self.template.suffix[:1].isalnum()
        for probe in ("word", "The", "(a)", "1", "é"):
            split = self._prefix_ids("q", "i") + self._ids(self._lead + probe) + self.suffix
            text = self._fill("q", "i") + self._lead + probe + self.template.suffix
            if words_meet or split != self._ids(text):
                raise ConfigError(
                    f"the tokenizer joins the template's text with a document such as {probe!r}; "
                    "end --template_prefix with a space, a line break or a special token, and "
                    "start --template_suffix with a space or a special token"
                )

    def frame(self, instruction: str) -> int:
        """Tokens of a pair that are neither query nor document."""
        return len(self._prefix_ids("", instruction)) + len(self.suffix)

    def too_long(self, instructions: Iterable[str]) -> dict[str, int]:
        """The instructions that leave less than ``MIN_ROOM`` tokens for query and document.

        Returns:
            For each of them the tokens that it brings the template to.
        """
        if not self.template.reads_instruction:
            return {}
        # no text has more tokens than bytes, and most are far from the limit
        spare = self.max_length - MIN_ROOM - self.frame("")
        doubtful = [text for text in instructions if len(text.encode()) + 8 > spare]
        frames = {text: self.frame(text) for text in doubtful}
        return {text: n for text, n in frames.items() if n > self.max_length - MIN_ROOM}

    def _fill(self, query: str, instruction: str) -> str:
        return self._prompt.format(query=query, instruction=instruction)

    def _prefix_ids(self, query: str, instruction: str) -> list[int]:
        if self.template.prefix is None:
            return [*self._before, *self._ids(query), *self._between]
        return self._ids(self._fill(query, instruction))

    def _init_pair_form(self) -> None:
        """Read the frame off the tokenizer: what it puts before, between and behind two texts."""
        word = self._ids("a")
        encoded = self.tokenizer("a", "a", add_special_tokens=True)
        ids = list(encoded["input_ids"])
        first = _find(ids, word, 0)
        second = _find(ids, word, first + len(word)) if first >= 0 else -1
        if not word or second < 0:
            raise ConfigError(
                "the tokenizer does not encode a pair of texts; give --template_prefix and "
                "--template_suffix"
            )
        self._before = ids[:first]
        self._between = ids[first + len(word) : second]
        self.suffix = ids[second + len(word) :]
        types = encoded.get("token_type_ids")
        # 1 where the family marks the second text (BERT), 0 where it does not (ModernBERT, RoBERTa)
        self.document_types = int(types[second]) if types is not None else 0

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(
        self, query: str, documents: Sequence[str], instruction: str | None = None
    ) -> PairTokens:
        """Encode one query with its documents.

        A query that would leave a document less than half of the room is cut to half of it, then
        the documents take what is left.

        Args:
            query: the query text.
            documents: the document texts.
            instruction: the task description, default the template's.

        Returns:
            The tokens; ``prefix + documents[d]`` has at most ``max_length`` of them.

        Raises:
            ConfigError: the instruction alone leaves no room.
        """
        texts = [self._lead + document for document in documents]
        encoded: list[list[int]] = []
        if texts:
            # the warning of a text longer than the model's limit does not apply: it is cut here
            found = self.tokenizer(texts, add_special_tokens=False, verbose=False)
            encoded = found["input_ids"]
        prefix, room, cut_query = self._frame(query, encoded, instruction)
        cut = sum(len(ids) > room for ids in encoded)
        parts = [list(ids[:room]) + self.suffix for ids in encoded]
        return PairTokens(prefix, parts, cut, cut_query)

    def encode_passages(
        self,
        query: str,
        documents: Sequence[str],
        passages: Passages,
        instruction: str | None = None,
    ) -> PassageTokens:
        """Encode one query with its documents, those that do not fit in passages.

        The prefix is that of ``encode``, so a document that fits gives the same tokens.

        Args:
            query: the query text.
            documents: the document texts.
            passages: how they are cut.
            instruction: the task description, default the template's.

        Raises:
            ConfigError: the instruction alone leaves no room.
        """
        texts = [self._lead + document for document in documents]
        encoded, offsets = [], []
        if texts:
            found = self.tokenizer(
                texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            encoded, offsets = found["input_ids"], found["offset_mapping"]
        prefix, room, cut_query = self._frame(query, encoded, instruction)
        parts: list[list[int]] = []
        owners: list[int] = []
        spans: list[tuple[int, int] | None] = []
        cut = 0
        for owner, ids in enumerate(encoded):
            windows = passages.windows(len(ids), room)
            taken = windows[: passages.limit]
            cut += len(taken) < len(windows)
            for start, end in taken:
                parts.append(list(ids[start:end]) + self.suffix)
                owners.append(owner)
                if len(windows) == 1:
                    spans.append(None)
                    continue
                lead = len(self._lead)
                first, last = offsets[owner][start][0] - lead, offsets[owner][end - 1][1] - lead
                spans.append((max(first, 0), last))
        tokens = PairTokens(prefix, parts, cut, cut_query)
        return PassageTokens(tokens, tuple(owners), tuple(spans))

    def _frame(
        self, query: str, encoded: Sequence[Sequence[int]], instruction: str | None
    ) -> tuple[list[int], int, bool]:
        """The prefix, the room it leaves to a document, and whether the query was cut for it."""
        instruction = instruction or self.template.instruction
        prefix = self._prefix_ids(query, instruction)
        longest = max((len(ids) for ids in encoded), default=0)
        room = self.max_length - len(prefix) - len(self.suffix)
        if room >= longest:
            return prefix, room, False
        frame = self.frame(instruction)
        half = (self.max_length - frame) // 2
        if half < MIN_ROOM // 2:
            raise ConfigError(
                f"an instruction that brings the template to {frame} tokens leaves no room "
                f"within --max_length {self.max_length}; shorten it or raise --max_length"
            )
        if room >= half:
            return prefix, room, False
        kept = self.cut(query, half)
        prefix = self._prefix_ids(kept, instruction)
        return prefix, self.max_length - len(prefix) - len(self.suffix), len(kept) < len(query)

    def cut(self, text: str, tokens: int) -> str:
        """Return what the first ``tokens`` tokens hold of a text."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        if len(offsets) <= tokens:
            return text
        # a character of several byte tokens that the cut falls into goes as a whole
        return text[: min(offsets[tokens - 1][1], offsets[tokens][0])]


def _find(ids: list[int], word: list[int], start: int) -> int:
    for i in range(start, len(ids) - len(word) + 1):
        if ids[i : i + len(word)] == word:
            return i
    return -1
