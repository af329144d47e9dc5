"""Token ids of the templates: pinned on the real tokenizers, lawful on any.

Where the folder of real data is absent, the same laws hold on tokenizers made here: byte-level
pairs cut by Qwen's pattern, and whole words in BERT's frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rankwright.data.collate import Collator
from rankwright.errors import ConfigError
from rankwright.models.reranker import score_token
from rankwright.templates import (
    DEFAULT_INSTRUCTION,
    MIN_ROOM,
    PAIR,
    QWEN3,
    PairEncoder,
    Template,
    check_template,
)
from rankwright.types import Example, Group
from tests import tiny

# the prompt of Qwen3-Reranker's model card, in one piece and apart from the code under test
PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: INSTRUCTION\n<Query>: QUERY\n<Document>: DOCUMENT<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
QUERY = "what is a lichen?"
DOCUMENT = "A fungus with algae."

# fmt: off
QWEN3_SYSTEM_IDS = [
    151644, 8948, 198, 60256, 3425, 279, 11789, 20027, 279, 8502, 3118, 389, 279, 11361, 323, 279,
    758, 1235, 3897, 13, 7036, 429, 279, 4226, 646, 1172, 387, 330, 9693, 1, 476, 330, 2152, 3263,
    151645, 198, 151644, 872, 198,
]
QWEN3_INSTRUCTION_IDS = [
    27, 641, 1235, 26818, 16246, 264, 3482, 2711, 3239, 11, 17179, 9760, 46769, 429, 4226, 279,
    3239, 198,
]
QWEN3_QUERY_IDS = [27, 2859, 26818, 1128, 374, 264, 326, 28324, 5267]  # 5267: "?\n"
QWEN3_DOCUMENT_FIELD_IDS = [75692, 26818]
QWEN3_SUFFIX_IDS = [151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
# fmt: on

# what lies on the seams: spaces, line breaks, punctuation, contractions, marks that compose,
# digits, other scripts, an emoji's sequence, special tokens in the text
TRICKY = [
    *(
        "",
        " ",
        "  x",
        "\n",
        "\n\nx",
        " \n",
        "\tx",
        "\r\nx",
        "(a)",
        "...",
        "'s",
        "\u2019s",
        "12",
        "-1",
    ),
    *("end ", "end\n", "end.\n\n", "end?", "é", "e\u0301", "\u0301x", "x\u0301", "\u00a0x", "ﬁ"),
    *(
        "\u3000x",
        "\u200bx",
        "\u2028x",
        "\ufeffx",
        "\x85",
        "你好",
        "مرحبا",
        "\U0001d518",
        "👩\u200d🚀",
    ),
    *("<|im_end|>", "<think>", "{query}", "{", "}}", "%s", "\\n", ": x", "<Document>: x"),
]
TEXTS = st.text(max_size=40) | st.sampled_from(TRICKY)
LONG_TEXTS = st.builds(
    lambda text, n: text * n, st.text(min_size=1, max_size=12), st.integers(1, 40)
)


def qwen_made() -> PreTrainedTokenizerFast:
    """Byte-level pairs learnt from the prompt, after Qwen's normal form and pattern."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=tiny.QWEN_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([PROMPT, " ".join(tiny.WORDS)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4096)


def pairs_made() -> PreTrainedTokenizerFast:
    """Whole words in the frame ``[CLS] q [SEP] d [SEP]`` with BERT's token types."""
    return tiny.encoder_tokenizer(token_types=True)


MADE: dict[str, Callable[[], Any]] = {"made_qwen": qwen_made, "made_pairs": pairs_made}
_cache: dict[str, Any] = {}


def tokenizer_of(request: pytest.FixtureRequest) -> Any:
    """A tokenizer by name: made here, or read from the folder of real data, which may be absent."""
    name = request.param
    if name not in MADE and not (request.getfixturevalue("shared") / "tokenizers").is_dir():
        pytest.skip("no real tokenizers here")
    if name not in _cache:
        if name in MADE:
            _cache[name] = MADE[name]()
        else:
            folder: Path = request.getfixturevalue("shared") / "tokenizers" / name
            _cache[name] = AutoTokenizer.from_pretrained(folder)
    return _cache[name]


@pytest.fixture(scope="module", params=["made_qwen", "qwen3"])
def prompter(request: pytest.FixtureRequest) -> Any:
    """A tokenizer for Qwen's prompt."""
    return tokenizer_of(request)


@pytest.fixture(scope="module", params=["made_pairs", "bert-base-uncased", "modernbert"])
def pairer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer with a pair form."""
    return tokenizer_of(request)


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer of whole words, so that lengths are counted by hand."""
    return tiny.encoder_tokenizer(token_types=False)


@pytest.fixture(scope="module", params=["qwen3"])
def qwen3(request: pytest.FixtureRequest) -> Any:
    return tokenizer_of(request)


def whole_prompt(tokenizer: Any, query: str, document: str, instruction: str) -> list[int]:
    """The prompt as one string, tokenised in one go, as vLLM and transformers' users do."""
    # DOCUMENT first: a query may hold the word itself
    text = PROMPT.replace("DOCUMENT<", document + "<", 1)
    text = text.replace("INSTRUCTION\n<Query>: QUERY", f"{instruction}\n<Query>: {query}", 1)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- golden ids -------------------------------------------------------------------------------


def test_qwen3_prompt_is_pinned(qwen3: Any) -> None:
    """System turn, instruction, query, ``<Document>:``; the document with its space; the suffix.

    The last id, 271, is the line break pair after ``</think>`` (151668): the score is read there.
    """
    encoder = PairEncoder(qwen3, QWEN3, 512)
    tokens = encoder.encode(QUERY, [DOCUMENT, ""])
    assert tokens.prefix == (
        QWEN3_SYSTEM_IDS + QWEN3_INSTRUCTION_IDS + QWEN3_QUERY_IDS + QWEN3_DOCUMENT_FIELD_IDS
    )
    assert encoder.suffix == QWEN3_SUFFIX_IDS
    assert tokens.documents == [
        [362, 78802, 448, 67851, 13, *QWEN3_SUFFIX_IDS],
        [220, *QWEN3_SUFFIX_IDS],  # the space alone
    ]
    assert qwen3.convert_ids_to_tokens(QWEN3_SUFFIX_IDS[-3:]) == ["ĊĊ", "</think>", "ĊĊ"]
    assert DEFAULT_INSTRUCTION == (
        "Given a web search query, retrieve relevant passages that answer the query"
    )


def test_qwen3_answers_are_pinned(qwen3: Any) -> None:
    assert score_token(qwen3, "yes", "--positive_token") == 9693
    assert score_token(qwen3, "no", "--negative_token") == 2152


@pytest.mark.parametrize(
    ("name", "prefix", "document", "types"),
    [
        (
            "modernbert",
            [50281, 5371, 310, 247, 8374, 864, 32, 50282],
            [34, 39565, 342, 39341, 15, 50282],
            0,
        ),
        (
            "bert-base-uncased",
            [101, 2054, 2003, 1037, 5622, 8661, 1029, 102],
            [1037, 16622, 2007, 18670, 1012, 102],
            1,
        ),
    ],
)
def test_pair_form_is_pinned(
    shared: Path, name: str, prefix: list[int], document: list[int], types: int
) -> None:
    """``[CLS] q [SEP]`` then ``d [SEP]``; BERT marks the second text with type 1."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    encoder = PairEncoder(tokenizer, PAIR, 64)
    tokens = encoder.encode(QUERY, [DOCUMENT])
    assert tokens.prefix == prefix
    assert tokens.documents == [document]
    assert encoder.document_types == types
    batch = Collator(encoder, share_prefix=False, scored_last=False, token_types=True)(
        [Group(Example(QUERY, [DOCUMENT], [1.0]), (0,))]
    )
    assert batch.input_ids_T.tolist() == prefix + document
    assert batch.token_type_ids_T is not None
    assert batch.token_type_ids_T.tolist() == [0] * len(prefix) + [types] * len(document)


# --- the parts are the whole ------------------------------------------------------------------


def test_prompt_parts_are_the_whole_on_every_seam(prompter: Any) -> None:
    encoder = PairEncoder(prompter, QWEN3, 4096)
    for text in TRICKY:
        for query, document in ((text, DOCUMENT), (QUERY, text), (text, text)):
            tokens = encoder.encode(query, [document])
            whole = whole_prompt(prompter, query, document, DEFAULT_INSTRUCTION)
            assert tokens.prefix + tokens.documents[0] == whole, (query, document)


@given(query=TEXTS, document=TEXTS, instruction=TEXTS)
@settings(max_examples=60, deadline=None)
def test_prompt_parts_are_the_whole(
    prompter: Any, query: str, document: str, instruction: str
) -> None:
    encoder = PairEncoder(prompter, QWEN3, 4096)
    tokens = encoder.encode(query, [document], instruction)
    whole = whole_prompt(prompter, query, document, instruction or DEFAULT_INSTRUCTION)
    assert tokens.prefix + tokens.documents[0] == whole


@given(query=TEXTS, documents=st.lists(TEXTS, max_size=4))
@settings(max_examples=60, deadline=None)
def test_pair_parts_are_the_tokenizers_own_pair(
    pairer: Any, query: str, documents: list[str]
) -> None:
    encoder = PairEncoder(pairer, PAIR, 4096)
    tokens = encoder.encode(query, documents)
    assert len(tokens.documents) == len(documents)
    for document, ids in zip(documents, tokens.documents, strict=True):
        own = pairer([(query, document)])
        assert tokens.prefix + ids == own["input_ids"][0]
        if "token_type_ids" in own:
            types = [0] * len(tokens.prefix) + [encoder.document_types] * len(ids)
            assert types == own["token_type_ids"][0]


def test_an_instruction_of_the_row_takes_the_templates_place(prompter: Any) -> None:
    encoder = PairEncoder(prompter, QWEN3, 4096)
    own = encoder.encode(QUERY, [DOCUMENT], "Find the answer")
    assert own.prefix + own.documents[0] == whole_prompt(
        prompter, QUERY, DOCUMENT, "Find the answer"
    )
    assert encoder.encode(QUERY, [DOCUMENT], None) == encoder.encode(
        QUERY, [DOCUMENT], DEFAULT_INSTRUCTION
    )


# --- truncation -------------------------------------------------------------------------------


def check_truncation(
    encoder: PairEncoder, query: str, documents: list[str], max_length: int
) -> None:
    """What must hold of any pair at any length, against the same pair without a limit."""
    endless = PairEncoder(encoder.tokenizer, encoder.template, 100_000)
    free, frame = endless.encode(query, documents), endless.encode("", [])
    tokens = encoder.encode(query, documents)
    suffix = encoder.suffix
    room = max_length - len(frame.prefix) - len(suffix)
    for cut, whole in zip(tokens.documents, free.documents, strict=True):
        assert len(tokens.prefix) + len(cut) <= max_length
        assert cut[len(cut) - len(suffix) :] == suffix
        kept = cut[: len(cut) - len(suffix)]
        assert kept == whole[: len(kept)]
        # a cut document fills what is left of the length
        assert len(cut) == len(whole) or len(tokens.prefix) + len(cut) == max_length
        assert len(kept) > 0 or len(whole) == len(suffix)
    assert tokens.truncated_documents == sum(
        len(cut) < len(whole) for cut, whole in zip(tokens.documents, free.documents, strict=True)
    )
    if not tokens.truncated_query:
        assert tokens.prefix == free.prefix
        return
    # only a query that takes more than half of the room is cut, to a beginning of itself
    assert len(free.prefix) - len(frame.prefix) > room - room // 2
    assert tokens.prefix in (endless.encode(query[:n], []).prefix for n in range(len(query)))


@given(
    query=TEXTS | LONG_TEXTS,
    documents=st.lists(TEXTS | LONG_TEXTS, max_size=3),
    extra=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_prompt_truncation(prompter: Any, query: str, documents: list[str], extra: int) -> None:
    fixed = len(PairEncoder(prompter, QWEN3, 4096).encode("", [""]).prefix) + len(
        PairEncoder(prompter, QWEN3, 4096).suffix
    )
    max_length = fixed + MIN_ROOM + extra
    check_truncation(PairEncoder(prompter, QWEN3, max_length), query, documents, max_length)


@given(
    query=TEXTS | LONG_TEXTS,
    documents=st.lists(TEXTS | LONG_TEXTS, max_size=3),
    extra=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_pair_truncation(pairer: Any, query: str, documents: list[str], extra: int) -> None:
    max_length = 3 + MIN_ROOM + extra
    check_truncation(PairEncoder(pairer, PAIR, max_length), query, documents, max_length)


def test_a_query_of_half_the_room_stays_and_one_above_is_cut(words: Any) -> None:
    """``[CLS] q [SEP] d [SEP]`` at 27 leaves 24 tokens: 12 for the query, 12 for the document.

    12 words: nothing to cut from the query; the document of 13 is cut to 12.
    13 words: the query is cut to 12, the document to 12. A document of 11 fits 24 - 13, so beside
    it nothing is cut.
    """
    encoder = PairEncoder(words, PAIR, 27)
    fox, dog = words.convert_tokens_to_ids(["fox", "dog"])
    cls, sep = 2, 3

    tokens = encoder.encode("fox " * 12, ["dog " * 13, "dog " * 12])
    assert tokens.prefix == [cls, *[fox] * 12, sep]
    assert tokens.documents == [[*[dog] * 12, sep], [*[dog] * 12, sep]]
    assert (tokens.truncated_documents, tokens.truncated_query) == (1, False)

    tokens = encoder.encode("fox " * 13, ["dog " * 13, "dog " * 3])
    assert tokens.prefix == [cls, *[fox] * 12, sep]
    assert tokens.documents == [[*[dog] * 12, sep], [*[dog] * 3, sep]]
    assert (tokens.truncated_documents, tokens.truncated_query) == (1, True)

    tokens = encoder.encode("fox " * 13, ["dog " * 11])
    assert tokens.prefix == [cls, *[fox] * 13, sep]
    assert tokens.documents == [[*[dog] * 11, sep]]
    assert (tokens.truncated_documents, tokens.truncated_query) == (0, False)

    # a query as long as the whole length still leaves the document its half
    tokens = encoder.encode("fox " * 500, ["dog " * 500])
    assert len(tokens.prefix) == 14
    assert len(tokens.documents[0]) == 13


def test_cuts_are_counted(words: Any) -> None:
    """Three groups at 27: one document cut; one document and the query cut; nothing cut."""
    collate = Collator(PairEncoder(words, PAIR, 27), share_prefix=False, scored_last=False)
    rows = [
        ("fox", ["dog " * 24, "dog " * 23]),
        ("fox " * 13, ["dog " * 13, "dog"]),
        ("fox", ["dog"]),
    ]
    groups = [
        Group(Example(query, documents, [0.0] * len(documents)), tuple(range(len(documents))))
        for query, documents in rows
    ]
    batch = collate(groups)
    assert collate.truncated == {"documents": 2, "queries": 1}
    assert max(batch.lengths) == 27


def test_the_scored_token_is_the_suffixs_last_at_any_length(prompter: Any) -> None:
    """Qwen's score is read behind ``</think>``, and the prompt before the document is whole."""
    free = PairEncoder(prompter, QWEN3, 4096)
    fixed = len(free.encode("", []).prefix) + len(free.suffix)
    encoder = PairEncoder(prompter, QWEN3, fixed + MIN_ROOM)
    group = Group(Example("lichen " * 100, ["algae " * 200, "x"], [1.0, 0.0]), (0, 1))
    for share in (False, True):
        batch = Collator(encoder, share_prefix=share, scored_last=True)([group])
        for place in batch.score_index_P.tolist():
            start = place + 1 - len(encoder.suffix)
            assert batch.input_ids_T[start : place + 1].tolist() == encoder.suffix
    prefix = encoder.encode("lichen " * 100, ["algae " * 200]).prefix
    head, tail = PROMPT.split("INSTRUCTION")[0], "\n<Document>:"
    assert prompter.decode(prefix).startswith(head)
    assert prompter.decode(prefix).endswith(tail)


def test_a_length_that_leaves_no_room_is_refused(prompter: Any, words: Any) -> None:
    """The message names the least length, and that one works."""
    encoder = PairEncoder(prompter, QWEN3, 4096)
    fixed = len(encoder.encode("", []).prefix) + len(encoder.suffix)
    with pytest.raises(ConfigError) as error:
        PairEncoder(prompter, QWEN3, fixed + MIN_ROOM - 1)
    assert str(error.value) == (
        f"--max_length {fixed + MIN_ROOM - 1} is too small: the template alone takes {fixed} "
        f"tokens; give at least {fixed + MIN_ROOM}"
    )
    PairEncoder(prompter, QWEN3, fixed + MIN_ROOM)
    with pytest.raises(ConfigError, match="the template alone takes 3 tokens; give at least 19"):
        PairEncoder(words, PAIR, 18)


def test_an_instruction_that_leaves_no_room_is_refused(prompter: Any) -> None:
    encoder = PairEncoder(prompter, QWEN3, 256)
    with pytest.raises(ConfigError, match=r"leaves no room within --max_length 256; shorten it"):
        encoder.encode(QUERY, [DOCUMENT], "lichen " * 300)


# --- tokens that stand for an answer ----------------------------------------------------------


def test_an_answer_of_several_tokens_is_refused_with_its_pieces() -> None:
    """The made tokenizer knows ``yes`` and ``no``; ``nose`` falls into ``no``, ``s`` and ``e``."""
    tokenizer = tiny.decoder_tokenizer()
    ids = [score_token(tokenizer, word, "--positive_token") for word in ("yes", "no")]
    assert tokenizer.convert_ids_to_tokens(ids) == ["yes", "no"]
    with pytest.raises(ConfigError) as error:
        score_token(tokenizer, "nose", "--negative_token")
    assert str(error.value) == (
        "--negative_token 'nose' is not a single token: the tokenizer cuts it into "
        "['no', 's', 'e']; choose another word"
    )
    with pytest.raises(ConfigError, match=r"--positive_token '' is not a single token"):
        score_token(tokenizer, "", "--positive_token")


def test_qwen3_refuses_words_of_several_tokens(qwen3: Any) -> None:
    with pytest.raises(ConfigError, match=r"cuts it into \['def', 'initely'\]"):
        score_token(qwen3, "definitely", "--positive_token")


# --- templates of users -----------------------------------------------------------------------


def test_a_users_template_is_its_text(prompter: Any) -> None:
    """Query, instruction and doubled braces are filled in; the document follows with its space."""
    template = Template("generative", "{{task}} {instruction}\nQ: {query}\nD: ", " Relevant:")
    tokens = PairEncoder(prompter, template, 512).encode("a fox", ["a dog", "the sea"], "find")
    for document, ids in zip(("a dog", "the sea"), tokens.documents, strict=True):
        text = f"{{task}} find\nQ: a fox\nD: {document} Relevant:"
        assert tokens.prefix + ids == prompter(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("prefix", "complaint"),
    [
        ("no field at all ", r"has the fields \[\]; it needs \{query\} exactly once"),
        ("{instruction} ", r"has the fields \['instruction'\]"),
        ("{query} {query} ", r"has the fields \['query', 'query'\]"),
        ("{query} {document} ", r"has the fields \['query', 'document'\]"),
        ("{} {query} ", r"has the fields \['', 'query'\]"),
        ("{query.upper} ", r"has the fields \['query.upper'\]"),
        ("{query!r} ", r"has the fields \['query!r'\]"),
        ("{query:>{width}} ", r"has the fields \['query:>\{width\}'\]"),
        ('{"q": {query} ', r"has unbalanced braces|has the fields"),
        ("{query ", r"has unbalanced braces \(.*\); double them"),
        ("query} ", r"has unbalanced braces \(.*\); double them"),
    ],
)
def test_a_template_with_wrong_fields_is_refused(prefix: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"^--template_prefix {complaint}"):
        check_template(Template("generative", prefix))


def test_a_suffix_without_a_prefix_is_refused(words: Any) -> None:
    with pytest.raises(ConfigError, match="--template_suffix needs --template_prefix"):
        PairEncoder(words, Template("classification", None, "</s>"), 64)


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("Q: {query} a", " R:"),  # "a" grows with the word behind it
        ("{query}", " R:"),  # so does the query's last word
        ("Q: {query}\nD: ", "R:"),  # the document's last word grows into "R"
    ],
)
def test_a_template_that_meets_a_document_within_a_word_is_refused(
    prompter: Any, prefix: str, suffix: str
) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer joins the template's text .* 'word'"):
        PairEncoder(prompter, Template("generative", prefix, suffix), 512)


@pytest.mark.parametrize(
    ("prefix", "suffix", "probe"),
    [
        ("Q: {query}\nD:", " R:", "'The'"),  # ":The" is one token
        ("Q: {query}\nD: ", "\nR:", r"'\(a\)'"),  # ")" and the line break are one token
    ],
)
def test_qwen3_joins_punctuation_too(qwen3: Any, prefix: str, suffix: str, probe: str) -> None:
    with pytest.raises(ConfigError, match=f"joins the template's text .* such as {probe}; end"):
        PairEncoder(qwen3, Template("generative", prefix, suffix), 512)


def test_a_tokenizer_without_a_pair_form_is_refused() -> None:
    """A tokenizer that drops every letter it does not know cannot show where two texts begin."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "x": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Replace("a", "")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    with pytest.raises(ConfigError, match="does not encode a pair of texts; give --template_pre"):
        PairEncoder(fast, PAIR, 64)


def test_a_text_beyond_the_model_s_limit_brings_no_warning() -> None:
    """It is cut here; transformers' own warning, once a tokenizer, would be of no use."""
    tokenizer = tiny.tokenizer_for("bert")
    long = "fox " * 600
    heard: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.WARNING)
    try:
        encoder = PairEncoder(tokenizer, PAIR, max_length=48)
        assert encoder.encode("q", [long]).truncated_documents == 1
        assert heard == []
        tokenizer(long)
        assert len(heard) == 1
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
