"""One score by every route: packed, prefix-shared, padded, alone; with the same gradients.

All in float64, so that only a real difference shows. Every family of FAMILIES is here.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rankwright.data.collate import Collator
from rankwright.models.families import FAMILIES
from rankwright.models.reranker import RerankerModel
from rankwright.templates import PAIR, QWEN3, PairEncoder
from rankwright.types import Group, PackedBatch
from tests import tiny

CASES = [
    "modernbert",
    "modernbert:cls",
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "distilbert",
    "qwen3",
    "qwen3:seq",
    "qwen2",
    "llama",
    "mistral",
    "mistral:seq",
]
UNLISTED = ["deberta-v2", "gpt2"]


def reranker(name: str, *, packed: bool) -> tuple[RerankerModel, Collator]:
    model = tiny.build(name).double()
    generative = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    tokenizer = tiny.tokenizer_for(name)
    tokens = tuple(tokenizer.convert_tokens_to_ids(["yes", "no"])) if generative else None
    wrapped = RerankerModel(
        model, "generative" if generative else "classification", tokens, packed=packed
    )
    encoder = PairEncoder(tokenizer, QWEN3 if generative or name.endswith(":seq") else PAIR, 512)
    collate = Collator(
        encoder,
        share_prefix=wrapped.causal,
        scored_last=wrapped.scored_last,
        position_offset=wrapped.position_offset,
        token_types="token_type_ids" in tokenizer.model_input_names,
    )
    return wrapped, collate


def groups() -> list[Group]:
    return [Group(example, (0, 1, 2, 3)) for example in tiny.examples(3)]


def run(
    model: RerankerModel, batches: list[PackedBatch]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores, and the gradients of a sum that weighs every score differently."""
    model.zero_grad()
    scores_P = torch.cat([model(batch) for batch in batches])
    (scores_P * torch.linspace(-1, 1.3, len(scores_P), dtype=scores_P.dtype)).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return scores_P.detach(), grads


def assert_same(
    found: tuple[torch.Tensor, dict], expected: tuple[torch.Tensor, dict], grad: float
) -> None:
    assert_close(found[0], expected[0], rtol=1e-9, atol=1e-10)
    # a route may touch a parameter with gradient zero that another does not touch
    for name, gradient in expected[1].items():
        other = found[1].get(name, torch.zeros_like(gradient))
        assert_close(other, gradient, rtol=grad, atol=grad, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_packed_equals_padded_and_alone(name: str) -> None:
    """The padded route is transformers' own forward with its own attention: the reference."""
    model, collate = reranker(name, packed=True)
    assert model.packed
    collate.share_prefix = False
    whole = run(model, [collate(groups())])
    alone = run(model, [collate([Group(g.example, (i,))]) for g in groups() for i in g.chosen])
    plain, _ = reranker(name, packed=False)
    padded = run(plain, [collate(groups())])
    assert padded[0].std() > 1e-3, "scores that hardly differ would hide a leak"
    assert_same(whole, padded, 1e-9)
    assert_same(alone, padded, 1e-9)


@pytest.mark.parametrize("name", [c for c in CASES if FAMILIES[c.split(":")[0]].causal])
def test_shared_prefix_equals_separate(name: str) -> None:
    """A group's prompt and query computed once: same scores, same gradients.

    RMSNorm computes in float32 whatever the dtype, so gradients that sum over documents before it
    differ in the eighth digit; scores do not.
    """
    model, collate = reranker(name, packed=True)
    assert collate.share_prefix
    shared = collate(groups())
    assert max(shared.parents) >= 0
    collate.share_prefix = False
    separate = collate(groups())
    assert shared.num_tokens < separate.num_tokens
    assert_same(run(model, [shared]), run(model, [separate]), 1e-5)


@pytest.mark.parametrize("name", UNLISTED)
def test_an_unlisted_family_is_padded(name: str) -> None:
    """It scores in any batch as it does alone, whatever the padding."""
    model, collate = reranker(name, packed=True)
    assert not model.packed
    together = run(model, [collate(groups())])
    alone = run(model, [collate([Group(g.example, (i,))]) for g in groups() for i in g.chosen])
    assert_same(together, alone, 1e-8)


@pytest.mark.parametrize("name", ["modernbert", "bert", "qwen3"])
def test_other_documents_do_not_change_a_score(name: str) -> None:
    """The row's neighbours are changed; the pair's score is the same to the last bits."""
    model, collate = reranker(name, packed=True)
    one, two = tiny.examples(2)
    first = model(collate([Group(one, (0, 1))]))
    both = model(collate([Group(two, (2, 3)), Group(one, (0, 1)), Group(two, (0,))]))
    assert_close(both[2:4], first, rtol=1e-9, atol=1e-10)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, collate = reranker("qwen3", packed=True)
    batch = collate(groups())
    plain = run(model, [batch])
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.train()
    assert_same(run(model, [batch]), plain, 1e-9)


def test_half_precision_scores_stay_apart() -> None:
    """bf16 logits subtracted have 8 bits; the float32 direction keeps close documents apart."""
    model = tiny.build("qwen3").to(torch.bfloat16)
    wrapped = RerankerModel(model, "generative", (257, 258))
    _, collate = reranker("qwen3", packed=True)
    example = tiny.examples(1, documents=100)[0]
    scores_P = wrapped(collate([Group(example, tuple(range(100)))]))
    assert scores_P.dtype == torch.float32
    distinct = len(set(scores_P.tolist()))
    logits = scores_P.to(torch.bfloat16)
    assert distinct > 2 * len(set(logits.tolist()))


@pytest.mark.parametrize("name", CASES)
def test_half_precision_weights_give_float32_scores(name: str) -> None:
    """bfloat16 weights: within their rounding of the float64 scores; the projection in float32."""
    exact, collate = reranker(name, packed=True)
    batch = collate(groups())
    generative = exact.kind == "generative"
    half = RerankerModel(
        tiny.build(name).to(torch.bfloat16), exact.kind, exact.token_ids if generative else None
    )
    scores_P = half(batch)
    assert scores_P.dtype == torch.float32
    spread = exact(batch).detach().std()
    assert (scores_P.double() - exact(batch)).abs().max() < 0.5 * spread + 0.1
    assert len(set(scores_P.tolist())) == len(scores_P)
    scores_P.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in half.parameters() if p.grad is not None)


def test_every_family_has_its_case() -> None:
    assert {case.split(":")[0] for case in CASES} == set(FAMILIES)


def test_a_packed_model_refuses_a_plain_call() -> None:
    model, _ = reranker("bert", packed=True)
    with pytest.raises(RuntimeError, match="set up for packed rows"):
        model.hf(input_ids=torch.ones(1, 4, dtype=torch.long))
