"""One score by every route: packed, prefix-shared, padded, alone; with the same gradients.

All in float64, so that only a real difference shows. Every family of FAMILIES is here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch._dynamo.utils import counters
from torch.testing import assert_close

from rankwright.data.collate import Collator
from rankwright.errors import ConfigError
from rankwright.losses import LOSSES, LossSum, listwise
from rankwright.models.families import FAMILIES
from rankwright.models.reranker import RerankerModel
from rankwright.ranking import Reranker
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


def reranker(name: str, *, packed: bool, **overrides: Any) -> tuple[RerankerModel, Collator]:
    model = tiny.build(name, **overrides).double()
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
    return [Group(example, (0, 1, 2, 3)) for example in tiny.taught(tiny.examples(3))]


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


DECODERS = [c for c in CASES if FAMILIES[c.split(":")[0]].causal]


def exact_norms(model: RerankerModel) -> None:
    """Let RMSNorm compute in the model's own precision: transformers' computes in float32."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(forward, module)


def both_ways(collate: Collator, rows: list[Group]) -> tuple[PackedBatch, PackedBatch]:
    """The same groups with shared prefixes, and without."""
    collate.share_prefix = True
    shared = collate(rows)
    assert max(shared.parents) >= 0
    collate.share_prefix = False
    separate = collate(rows)
    assert max(separate.parents) < 0
    assert shared.num_tokens < separate.num_tokens
    return shared, separate


@pytest.mark.parametrize("name", DECODERS)
def test_shared_prefix_equals_separate(name: str) -> None:
    """A group's prompt and query computed once: scores and gradients to 1e-10 in float64."""
    model, collate = reranker(name, packed=True)
    assert collate.share_prefix
    exact_norms(model)
    shared, separate = both_ways(collate, groups())
    found, expected = run(model, [shared]), run(model, [separate])
    assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    assert_same(found, expected, 1e-10)


@pytest.mark.parametrize("name", DECODERS)
def test_shared_prefix_in_float32(name: str) -> None:
    """As it is used: within 1e-6 of float64 by norm, or as near as the separate way comes."""
    model, collate = reranker(name, packed=True)
    exact_norms(model)
    shared, separate = both_ways(collate, groups())
    exact = run(model, [separate])
    plain, _ = reranker(name, packed=True)
    plain.float()

    def errors(batch: PackedBatch) -> tuple[float, float]:
        scores_P, grads = run(plain, [batch])
        off = [torch.norm(grads[n] - g) for n, g in exact[1].items()]
        size = [torch.norm(g) for g in exact[1].values()]
        return (
            float((scores_P - exact[0]).norm() / exact[0].norm()),
            float(torch.stack(off).norm() / torch.stack(size).norm()),
        )

    for found, plainly in zip(errors(shared), errors(separate), strict=True):
        assert found <= max(1e-6, 1.5 * plainly)


@pytest.mark.parametrize(
    ("optimizer_class", "rate", "tolerance", "checkpointing"),
    # AdamW makes whole steps of gradients that are zero but for their rounding
    [
        (torch.optim.SGD, 0.1, 1e-10, False),
        (torch.optim.AdamW, 1e-3, 1e-8, True),
        pytest.param(torch.optim.SGD, 0.1, 1e-10, True, marks=pytest.mark.slow),
        pytest.param(torch.optim.AdamW, 1e-3, 1e-8, False, marks=pytest.mark.slow),
    ],
)
def test_shared_prefix_over_several_steps_with_lora(
    checkpointing: bool, optimizer_class: Any, rate: float, tolerance: float
) -> None:
    """Four steps on adapters, three groups a step: gradients and parameters stay equal."""
    results = []
    for way in (0, 1):
        torch.manual_seed(0)
        model, collate = reranker("qwen3", packed=True)
        exact_norms(model)
        tuned = inject_adapter_in_model(
            LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), model.hf
        )
        for name, parameter in tuned.named_parameters():
            parameter.requires_grad_("lora_" in name)
            parameter.data = parameter.data.double()
        if checkpointing:
            model.activation_checkpointing_enable()
            model.hf.enable_input_require_grads()
            model.train()
        batch = both_ways(collate, groups())[way]
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer_class(trained, lr=rate)
        seen = [p.detach().clone() for p in trained]
        for _ in range(4):
            optimizer.zero_grad()
            listwise(model(batch), batch.labels_P, batch.offsets_Q).total.backward()
            seen += [p.grad.clone() for p in trained]
            optimizer.step()
            seen += [p.detach().clone() for p in trained]
        results.append(seen)
    assert len(results[0]) == (1 + 4 * 2) * 4 * 7 * 2
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=tolerance, atol=1e-10)
    first, last = results[0][: len(trained)], results[0][-len(trained) :]
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(first, last, strict=True))


def test_shared_prefix_with_a_hundred_documents() -> None:
    """Ranking a long list for one query: the same scores as one at a time."""
    model, collate = reranker("qwen3", packed=True)
    exact_norms(model)
    example = tiny.examples(1, documents=100)[0]
    shared, separate = both_ways(collate, [Group(example, tuple(range(100)))])
    with torch.inference_mode():
        assert_close(model(shared), model(separate), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["qwen3", "qwen3:seq"])
def test_ranking_a_hundred_documents_with_and_without_sharing(name: str, tmp_path: Path) -> None:
    """As a user ranks, in float32, in several rows: scores within 1e-6, in the same order."""
    base = tiny.save_base(tmp_path / "base", name)
    example = tiny.examples(1, documents=100)[0]
    found = []
    for share in (True, False):
        reranker = Reranker.load(base, device="cpu", share_prefix=share, batch_tokens=1500)
        assert reranker.collator.share_prefix is share
        found.append(torch.tensor(reranker.score_examples([example])[0].scores))
    assert found[0].std() > 1e-3
    assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["modernbert", "bert", "qwen3", "qwen3:seq"])
def test_the_head_sees_scored_tokens_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row for each pair, whatever the length of the packed row."""
    model, collate = reranker(name, packed=True)
    batch = collate(groups())
    rows: list[int] = []
    if model.kind == "generative":
        product = torch.Tensor.__matmul__

        def counted(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            rows.append(one.shape[0])
            return product(one, other)

        monkeypatch.setattr(torch.Tensor, "__matmul__", counted)
        model.hf.lm_head.register_forward_hook(lambda *_: pytest.fail("the whole vocabulary"))
    else:
        for module in model.head_modules():
            for layer in module.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.register_forward_hook(
                        lambda _, given, __: rows.append(given[0][..., 0].numel())
                    )
    scores_P = model(batch)
    assert batch.num_tokens > 3 * len(scores_P)
    assert rows
    assert set(rows) == {len(scores_P)}


def test_one_document_shares_nothing() -> None:
    """Sharing is automatic where it saves tokens: a lone document is one segment."""
    _, collate = reranker("qwen3", packed=True)
    batch = collate([Group(tiny.examples(1)[0], (2,))])
    assert batch.parents == (-1,)


def loss_of(name: str, scores_P: torch.Tensor, batch: PackedBatch) -> LossSum:
    return LOSSES[name](
        scores_P,
        batch.labels_P,
        batch.offsets_Q,
        teacher_P=batch.teacher_P,
        largest=batch.largest,
    )


# every loss for one model; the others differ in how they are cut, not in the loss
CUT_CASES = [("bert", loss) for loss in LOSSES]
CUT_CASES += [("modernbert", "kl"), ("qwen3", "lambda_loss"), ("deberta-v2", "listwise")]


@pytest.mark.parametrize(("name", "loss"), CUT_CASES)
def test_chunks_give_the_same_gradients(name: str, loss: str) -> None:
    """A batch over the limit is computed in chunks, for every loss, shared prefixes included."""
    model, collate = reranker(name, packed=True)
    exact_norms(model)
    whole = collate(groups())
    collate.chunk_tokens = whole.num_tokens // 5
    cut = collate(groups())
    assert len(cut.cuts) >= 5
    assert whole.labels_P.equal(cut.labels_P)
    assert whole.offsets_Q.equal(cut.offsets_Q)
    assert any(end.groups is None for end in cut.cuts), "a group is cut, too"
    found = []
    for batch in (whole, cut):
        model.zero_grad()
        scores_P = model(batch)
        loss_of(loss, scores_P, batch).total.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((scores_P.detach(), grads))
    assert_same(found[1], found[0], 1e-9)
    with torch.no_grad():
        assert_close(model(cut), found[0][0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "loss"), CUT_CASES)
@pytest.mark.parametrize("chunk_tokens", [None, 150])
def test_slices_add_up(name: str, loss: str, chunk_tokens: int | None) -> None:
    """Backward after each slice of whole groups: the gradients of the row at once.

    With a limit on chunks, some groups are slices of several chunks.
    """
    model, collate = reranker(name, packed=True)
    exact_norms(model)
    rows = [Group(example, (0, 1, 2)) for example in tiny.taught(tiny.examples(5))]
    rows[2] = Group(rows[2].example, (0, 1, 2, 3))
    whole = collate(rows)
    collate.slice_tokens, collate.chunk_tokens = whole.num_tokens // 2, chunk_tokens
    cut = collate(rows)
    slices = cut.slices()
    assert len(slices) > 1
    assert any(part.cuts for part in slices) == (chunk_tokens is not None)
    assert [i for part in slices for i in part.query_ids] == list(whole.query_ids)
    assert torch.cat([part.labels_P for part in slices]).equal(whole.labels_P)
    found = []
    for parts in ([whole], slices):
        model.zero_grad()
        scores, count = [], torch.tensor(0.0)
        for part in parts:
            scores_P = model(part)
            total = loss_of(loss, scores_P, part)
            total.total.backward()
            scores.append(scores_P.detach())
            count = count + total.count
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((torch.cat(scores), grads, count))
    assert found[0][2] == found[1][2]
    assert_same(found[1][:2], found[0][:2], 1e-9)


@pytest.mark.parametrize("name", ["modernbert", "qwen3"])
@pytest.mark.parametrize("chunk_tokens", [None, 100])
def test_slices_within_groups_add_up(name: str, chunk_tokens: int | None) -> None:
    """Documents by themselves: a large group becomes several within the limits, same outcome."""
    model, collate = reranker(name, packed=True)
    exact_norms(model)
    rows = groups()
    whole = collate(rows)
    largest = max(collate.cost(collate.encode(row)) for row in rows)
    collate.slice_tokens, collate.chunk_tokens = largest // 2, chunk_tokens
    assert len(collate(rows).query_ids) == len(rows)
    collate.by_document = True
    cut = collate(rows)
    slices = cut.slices()
    assert not any(part.cuts for part in slices)
    limit = min(largest // 2, chunk_tokens or largest)
    assert all(part.num_tokens <= limit or part.num_pairs == 1 for part in slices)
    assert len(cut.query_ids) == len(cut.offsets_Q) - 1 > len(rows)
    assert list(dict.fromkeys(cut.query_ids)) == list(whole.query_ids)
    assert cut.labels_P.equal(whole.labels_P)
    found = []
    for parts in ([whole], slices):
        model.zero_grad()
        scores = []
        for part in parts:
            scores.append(model(part))
            loss_of("pointwise", scores[-1], part).total.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((torch.cat(scores).detach(), grads))
    assert_same(found[1], found[0], 1e-9)


def test_chunks_are_within_the_limit_unless_a_pair_is_longer() -> None:
    for name in ("qwen3", "bert"):
        _, collate = reranker(name, packed=True)
        for limit in (1, 40, 150, 400):
            collate.chunk_tokens = limit
            batch = collate(groups())
            chunks = batch.chunks() or [batch]
            assert sum(chunk.num_pairs for chunk in chunks) == batch.num_pairs
            for chunk in chunks:
                assert chunk.num_tokens <= limit or chunk.num_pairs == 1


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_chunks_repeat_their_dropout(name: str) -> None:
    """The second pass of a chunk drops what the first dropped.

    Two chunks of one pair each, dropout on. The gradient that the chunks leave is compared with the
    one of the two pairs run in the same order from the same random state.
    """
    options = (
        {"attention_dropout": 0.3}
        if name == "qwen3"
        else {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    )
    model, collate = reranker(name, packed=True, **options)
    model.train()
    example = tiny.examples(1)[0]
    pairs = [collate([Group(example, (i,))]) for i in (0, 1)]
    collate.chunk_tokens = 1
    cut = collate([Group(example, (0, 1))])
    assert len(cut.cuts) == 2
    torch.manual_seed(5)
    expected = run(model, pairs)
    torch.manual_seed(5)
    found = run(model, [cut])
    assert_same(found, expected, 1e-9)
    torch.manual_seed(6)
    assert not torch.allclose(run(model, [cut])[0], found[0]), "dropout is on"


def kept(model: RerankerModel, batch: PackedBatch) -> int:
    """Numbers that autograd keeps between the passes."""
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch)
    return total


@pytest.mark.parametrize("name", ["modernbert", "bert", "qwen3"])
def test_checkpointing_holds_less_memory(name: str) -> None:
    """Of a layer its input is kept, and the rest made again."""
    model, collate = reranker(name, packed=True, num_hidden_layers=6)
    batch = collate(groups())
    whole = kept(model.train(), batch)
    model.activation_checkpointing_enable()
    assert kept(model, batch) < whole / 2


def test_chunks_hold_less_memory() -> None:
    """The scores' graph is kept, not the layers' activations."""
    model, collate = reranker("modernbert", packed=True)
    whole = collate(groups())
    collate.chunk_tokens = 64
    assert kept(model, collate(groups())) < kept(model, whole) / 50


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
    yes, no = tiny.tokenizer_for("qwen3").convert_tokens_to_ids(["yes", "no"])
    wrapped = RerankerModel(model, "generative", (yes, no))
    _, collate = reranker("qwen3", packed=True)
    example = tiny.examples(1, documents=600)[0]
    scores_P = wrapped(collate([Group(example, tuple(range(600)))]))
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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        ("modernbert", False),
        ("bert", True),
        ("qwen3", True),
        *(
            pytest.param(name, checkpointing, marks=pytest.mark.slow)
            for name, checkpointing in (("modernbert", True), ("bert", False), ("qwen3", False))
        ),
    ],
)
def test_compiled_layers_are_compiled_once(name: str, checkpointing: bool) -> None:
    """Batches of many shapes: the plain scores and gradients, and no graph after the first batch.

    The stand-in compiler runs the traced graphs as they are, so only the tracing is tested here.
    """
    torch._dynamo.reset()
    counters.clear()
    # more layers than PyTorch compiles anew before it gives up
    layers = torch._dynamo.config.recompile_limit + 1
    model, collate = reranker(name, packed=True, num_hidden_layers=layers)
    plain, _ = reranker(name, packed=True, num_hidden_layers=layers)
    assert model.compile_blocks(backend="eager") == layers
    if checkpointing:
        for one in (model, plain):
            for module in one.train().modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            one.activation_checkpointing_enable()
    rows = tiny.examples(6, documents=6)
    graphs = []
    for count in range(1, 5):
        batch = collate([Group(example, tuple(range(1 + count))) for example in rows[:count]])
        assert_same(run(model, [batch]), run(plain, [batch]), 1e-9)
        graphs.append(counters["stats"]["unique_graphs"])
    if checkpointing:
        unchecked, _ = reranker(name, packed=True, num_hidden_layers=layers)
        assert kept(model, batch) < kept(unchecked.train(), batch) / 2
    assert graphs[0] > 1, "nothing was compiled"
    assert graphs[1:] == graphs[:1] * 3
    assert not counters["recompile_limit"]
    torch._dynamo.reset()


def test_a_copy_of_compiled_layers_has_its_own() -> None:
    """As adapters are merged on a copy: each of the two computes with its own weights."""
    model, collate = reranker("modernbert", packed=True)
    model.compile_blocks(backend="eager")
    batch = collate(groups())
    with torch.no_grad():
        expected = model(batch)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(batch), expected)
        for block in twin.blocks:
            for parameter in block.parameters():
                parameter.mul_(0.5)
        assert not torch.equal(twin(batch), expected)
        assert torch.equal(model(batch), expected)
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["modernbert", "modernbert:cls", "bert", "qwen3", "qwen3:seq"])
def test_a_step_never_waits_for_the_device(name: str) -> None:
    """Forward, loss and backward in bfloat16, under CUDA's own watch for synchronising calls."""
    model, collate = reranker(name, packed=True)
    model.bfloat16().cuda()
    loss = LOSSES["listwise"].function
    batches = [collate(groups()).pin_memory() for _ in range(3)]
    for turn, batch in enumerate(batches):
        # the first step allocates and loads kernels
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        try:
            moved = batch.to("cuda", non_blocking=True)
            loss(model(moved), moved.labels_P, moved.offsets_Q).total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_wrong_compiler_is_one_line() -> None:
    model, _ = reranker("bert", packed=True)
    with pytest.raises(ConfigError, match=r"^--torch_compile: [^\n]*inducter[^\n]*$"):
        model.compile_blocks(backend="inducter")
    with pytest.raises(ConfigError, match=r"^--torch_compile: [^\n]*fast[^\n]*$"):
        model.compile_blocks(mode="fast")
    with pytest.raises(ConfigError, match="a mode of the back end inductor, not of eager"):
        model.compile_blocks(backend="eager", mode="max-autotune")


def test_every_family_has_its_case() -> None:
    assert {case.split(":")[0] for case in CASES} == set(FAMILIES)


def test_a_packed_model_refuses_a_plain_call() -> None:
    model, _ = reranker("bert", packed=True)
    with pytest.raises(RuntimeError, match="set up for packed rows"):
        model.hf(input_ids=torch.ones(1, 4, dtype=torch.long))
