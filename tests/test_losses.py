"""The losses against PyTorch's and Hugging Face's, over shapes, chunks and precisions; and what
must hold of gradients, sums and memory."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional as F

from minimind.core import IGNORE
from minimind.losses import (
    add_router_loss,
    _ChunkedCrossEntropy,
    _ChunkedLogprobs,
    causal_lm_loss,
    lm_logprobs,
    lm_loss,
    router_loss,
    shift,
    token_logprobs,
)
from minimind.model import MiniMind, ModelConfig

TINY = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=48,
)


def error(ours, theirs):  # relative, in the norm
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def setup(B=3, T=11, D=16, V=53, dtype=torch.float32, masked=0.4, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, T, D, generator=g, dtype=dtype).requires_grad_()
    head = (0.5 * torch.randn(V, D, generator=g, dtype=dtype)).requires_grad_()
    labels = torch.randint(0, V, (B, T), generator=g)
    labels[torch.rand(B, T, generator=g) < masked] = IGNORE
    return hidden, head, labels


def reference(hidden, head, labels, reduction="mean"):  # whole logits, PyTorch's own loss
    logits = hidden[:, :-1] @ head.T
    return F.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction=reduction
    )


def value_and_grads(loss, *inputs):
    return loss.detach(), *torch.autograd.grad(loss, inputs)


@given(
    B=st.integers(1, 4),
    T=st.integers(2, 17),
    D=st.integers(1, 20),
    V=st.integers(2, 70),
    chunk=st.integers(1, 40),
    seed=st.integers(0, 999),
    reduction=st.sampled_from(["mean", "sum"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_cross_entropy(B, T, D, V, chunk, seed, reduction, dtype):
    hidden, head, labels = setup(B, T, D, V, dtype, seed=seed)
    labels[0, 1] = 0  # a mean needs one label
    ours = value_and_grads(
        lm_loss(hidden, labels, head, chunk=chunk, reduction=reduction), hidden, head
    )
    theirs = value_and_grads(reference(hidden, head, labels, reduction), hidden, head)
    for a, b in zip(ours, theirs):
        assert a.dtype == b.dtype == dtype
        # softmax - 1 cancels
        torch.testing.assert_close(
            a,
            b,
            **(
                dict(rtol=1e-11, atol=1e-12)
                if dtype == torch.float64
                else dict(rtol=2e-5, atol=2e-6)
            ),
        )


@pytest.mark.parametrize("chunk", [1024, 1000, 128, 5000])
def test_equals_cross_entropy_at_real_size(chunk):
    torch.manual_seed(0)
    hidden, head = (
        torch.randn(2, 1025, 64, requires_grad=True),
        (0.1 * torch.randn(6400, 64)).requires_grad_(),
    )
    labels = torch.randint(0, 6400, (2, 1025))
    ours = value_and_grads(lm_loss(hidden, labels, head, chunk=chunk), hidden, head)
    theirs = value_and_grads(reference(hidden, head, labels), hidden, head)
    assert max(map(error, ours, theirs)) < 2e-6


def test_gradcheck():
    g = torch.Generator().manual_seed(0)
    h, w = (
        torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True)
        for s in ((7, 5), (11, 5))
    )
    t = torch.randint(0, 11, (7,), generator=g)
    for chunk in (1, 3, 7, 100):
        assert torch.autograd.gradcheck(_ChunkedCrossEntropy.apply, (h, w, t, chunk, True))


def test_huge_logits_stay_finite():
    hidden, head, labels = setup(masked=0)
    loss, *grads = value_and_grads(lm_loss(hidden * 1e4, labels, head), hidden, head)
    assert torch.isfinite(loss) and loss > 1000 and all(g.isfinite().all() for g in grads)
    torch.testing.assert_close(loss, reference(hidden * 1e4, head, labels).detach())


def test_autocast_bfloat16():
    hidden, head, labels = setup(4, 65, 64, 500)
    exact = value_and_grads(reference(hidden, head, labels), hidden, head)
    with torch.autocast("cpu", torch.bfloat16):
        ours = lm_loss(hidden, labels, head, chunk=50)
        theirs = reference(hidden, head, labels)
    assert ours.dtype == torch.float32
    ours, theirs = value_and_grads(ours, hidden, head), value_and_grads(theirs, hidden, head)
    for o, t, e in zip(ours, theirs, exact):
        assert o.dtype == torch.float32
        # as near to the exact result as PyTorch's own way in bfloat16
        assert error(o, e) < max(1.2 * error(t, e), 1e-4)
        assert error(o, e) < 0.01  # bfloat16 has 8 bits


def test_bfloat16_weights():
    hidden, head, labels = setup(4, 65, 64, 500)
    exact = value_and_grads(reference(hidden, head, labels), hidden, head)
    h, w = (x.detach().bfloat16().requires_grad_() for x in (hidden, head))
    loss, gh, gw = value_and_grads(lm_loss(h, labels, w, chunk=33), h, w)
    assert loss.dtype == torch.float32 and gh.dtype == gw.dtype == torch.bfloat16
    assert (
        error(loss, exact[0]) < 0.01
        and error(gh.float(), exact[1]) < 0.02
        and error(gw.float(), exact[2]) < 0.02
    )


def test_bfloat16_sums_over_chunks_in_float32():
    # 512 equal terms of 1/256: a bfloat16 sum stops growing at 1, a float32 sum does not
    hidden, head = (
        torch.ones(1, 513, 1, dtype=torch.bfloat16),
        torch.zeros(256, 1, dtype=torch.bfloat16, requires_grad=True),
    )
    lm_loss(
        hidden, torch.zeros(1, 513, dtype=torch.int64), head, chunk=1, reduction="sum"
    ).backward()
    assert abs(head.grad[1, 0].float() - 2) < 0.02


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_one_side_needs_a_gradient(needs):
    hidden, head, labels = setup()
    full = torch.autograd.grad(lm_loss(hidden, labels, head), [hidden, head])
    h, w = hidden.detach().requires_grad_(needs[0]), head.detach().requires_grad_(needs[1])
    lm_loss(h, labels, w).backward()
    for x, need, g in zip((h, w), needs, full):
        if need:
            torch.testing.assert_close(x.grad, g, rtol=0, atol=0)
        else:
            assert x.grad is None


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    "Counts the matrix products that run inside."

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.count += any(name in f.name() for name in ("aten::mm", "aten::addmm"))
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "hidden_needs, head_needs, grad, products",
    [(1, 1, 1, 3), (1, 0, 1, 2), (0, 1, 1, 2), (0, 0, 1, 1), (1, 1, 0, 1)],
)
def test_no_product_that_is_not_needed(hidden_needs, head_needs, grad, products):
    hidden, head, labels = setup()
    hidden, head = (
        hidden.detach().requires_grad_(bool(hidden_needs)),
        head.detach().requires_grad_(bool(head_needs)),
    )
    with torch.set_grad_enabled(bool(grad)), Products() as counted:
        loss = lm_loss(hidden, labels, head, chunk=1000)
    assert counted.count == products
    assert loss.requires_grad == bool(grad and (hidden_needs or head_needs))


def test_sum_over_nothing_is_a_connected_zero():
    hidden, head, labels = setup()
    loss = lm_loss(hidden, torch.full_like(labels, IGNORE), head, reduction="sum")
    assert loss == 0 and loss.requires_grad
    for g in torch.autograd.grad(loss, [hidden, head]):
        assert g is not None and not g.any()


def test_mean_over_nothing_is_refused():
    hidden, head, labels = setup()
    # the first token of a row is never a target
    labels[:, 1:] = IGNORE
    with pytest.raises(ValueError, match=r"no labelled position.*\(3, 11\)"):
        lm_loss(hidden, labels, head)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(reduction="none"), "reduction='none'"),
        (dict(chunk=0), "chunk=0"),
        (dict(head=None), "head=model.lm_head.weight"),
    ],
)
def test_wrong_arguments_are_named(change, says):
    hidden, head, labels = setup()
    with pytest.raises(ValueError, match=says):
        lm_loss(**(dict(model_or_hidden=hidden, labels=labels, head=head) | change))


def test_labels_that_were_shifted_already_are_refused():
    hidden, head, labels = setup()
    with pytest.raises(ValueError, match="aligned"):
        lm_loss(hidden, labels[:, 1:], head)
    with pytest.raises(ValueError, match="aligned"):
        token_logprobs(hidden @ head.T, labels[:, 1:])


def test_a_label_outside_the_vocabulary_is_an_error():
    hidden, head, labels = setup()
    for wrong in (53, -1):
        labels[0, 3] = wrong
        with pytest.raises(RuntimeError):
            lm_loss(hidden, labels, head)


def test_shift_pairs_each_state_with_the_next_token():
    states = torch.arange(10.0).reshape(1, 5, 2)
    rows, targets = shift(states, torch.tensor([[7, 8, IGNORE, 9, 6]]))
    assert rows[:, 0].tolist() == [0, 4, 6] and targets.tolist() == [8, 9, 6]


def test_a_copying_model_is_wrong_and_a_prophet_is_right():
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    onehot = 50 * torch.eye(10)
    copy, prophet = onehot[ids], onehot[ids.roll(-1, 1)]
    assert lm_loss(copy, ids, torch.eye(10)) > 40 and lm_loss(prophet, ids, torch.eye(10)) < 1e-6


def test_unlabelled_states_get_no_gradient_and_cannot_matter():
    hidden, head, labels = setup()
    keep = F.pad(labels[:, 1:] != IGNORE, (0, 1))
    (grad,) = torch.autograd.grad(lm_loss(hidden, labels, head), hidden)
    assert not grad[~keep].any() and (grad[keep].abs().sum(-1) > 0).all()
    spoilt = torch.where(keep[..., None], hidden, torch.nan)
    assert lm_loss(spoilt, labels, head) == lm_loss(hidden, labels, head)


def test_two_backwards_with_retain_graph():
    hidden, head, labels = setup()
    loss = lm_loss(hidden, labels, head)
    first = torch.autograd.grad(3 * loss, [hidden, head], retain_graph=True)
    second = torch.autograd.grad(loss, [hidden, head])
    for a, b in zip(first, second):
        torch.testing.assert_close(a, 3 * b)


def test_a_second_derivative_is_an_error():
    hidden, head, labels = setup()
    scale = torch.ones((), requires_grad=True)
    (grad,) = torch.autograd.grad(scale * lm_loss(hidden, labels, head), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def allocated(step):  # most bytes held at one moment
    from torch.profiler import profile
    import json, tempfile

    with profile(profile_memory=True) as prof:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        prof.export_chrome_trace(f.name)
        events = [e for e in json.load(open(f.name))["traceEvents"] if e["name"] == "[memory]"]
    return int(
        torch.tensor([e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])])
        .cumsum(0)
        .max()
    )


def test_memory_does_not_grow_with_the_logits():
    head = torch.randn(6400, 8, requires_grad=True)

    def run(rows):
        hidden, labels = (
            torch.randn(1, rows + 1, 8, requires_grad=True),
            torch.randint(0, 6400, (1, rows + 1)),
        )
        return allocated(lambda: lm_loss(hidden, labels, head, chunk=128).backward())

    run(128)
    one_chunk = 128 * 6400 * 4
    # one buffer of logits, not two
    assert one_chunk < run(512) < 1.6 * one_chunk
    # eight times the positions: only states and gradients of 8 features more
    assert run(4096) < run(512) + 0.4 * one_chunk


def test_token_logprobs():
    hidden, head, labels = setup()
    logits = hidden @ head.T
    logps = token_logprobs(logits, labels)
    want = -F.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORE, reduction="none"
    )
    assert logps.shape == (3, 10) and logps.dtype == torch.float32
    torch.testing.assert_close(logps, want)
    assert (logps[labels[:, 1:] == IGNORE] == 0).all() and (
        logps[labels[:, 1:] != IGNORE] < 0
    ).all()
    torch.testing.assert_close(-logps.sum(), lm_loss(hidden, labels, head, reduction="sum"))
    (ours,) = torch.autograd.grad(-logps.sum(), hidden, retain_graph=True)
    torch.testing.assert_close(
        ours,
        torch.autograd.grad(lm_loss(hidden, labels, head, reduction="sum"), hidden)[0],
        rtol=2e-5,
        atol=2e-6,
    )


def test_token_logprobs_of_bfloat16_logits_are_taken_in_float32():
    logits, labels = torch.randn(2, 5, 6400).bfloat16(), torch.randint(0, 6400, (2, 5))
    torch.testing.assert_close(
        token_logprobs(logits, labels), token_logprobs(logits.float(), labels), rtol=0, atol=0
    )


def batch(seed=0, rows=4, length=12):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 97, (rows, length), generator=g)
    segments = torch.ones_like(ids)
    segments[:, length // 2 :] = 2
    positions = torch.arange(length).expand(rows, length) % (length // 2)
    labels = torch.where(torch.rand(rows, length, generator=g) < 0.4, IGNORE, ids)
    labels[:, :: length // 2] = IGNORE
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "segment_ids": segments}


def labels_of(B, T, V, seed):
    torch.manual_seed(seed)
    labels = torch.randint(0, V, (B, T))
    return torch.where(torch.rand(B, T) < 0.3, IGNORE, labels)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0])
def test_lm_logprobs_equal_those_of_whole_logits(chunk, temperature):
    labels = labels_of(3, 11, 40, 0)
    hidden, head, factors = (
        torch.randn(3, 11, 8, requires_grad=True),
        torch.randn(40, 8, requires_grad=True),
        torch.randn(3, 10),
    )
    ours, theirs = (
        lm_logprobs(hidden, labels, head, temperature, chunk),
        token_logprobs(hidden @ head.T / temperature, labels),
    )
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        *(torch.autograd.grad((x * factors).sum(), [hidden, head]) for x in (ours, theirs))
    ):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_lm_logprobs_gradcheck():
    x = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((7, 4), (9, 4))]
    assert torch.autograd.gradcheck(_ChunkedLogprobs.apply, (*x, torch.randint(0, 9, (7,)), 0.7, 3))


def test_lm_logprobs_sum_to_the_loss():
    labels = labels_of(2, 9, 30, 1)
    hidden, head = torch.randn(2, 9, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    a, b = -lm_logprobs(hidden, labels, head).sum(), lm_loss(hidden, labels, head, reduction="sum")
    torch.testing.assert_close(a, b)
    for x, y in zip(*(torch.autograd.grad(v, [hidden, head]) for v in (a, b))):
        torch.testing.assert_close(x, y)


def test_lm_logprobs_under_autocast():
    labels = labels_of(2, 9, 30, 2)
    hidden, head = (
        torch.randn(2, 9, 16, requires_grad=True),
        torch.randn(30, 16, requires_grad=True),
    )
    with torch.autocast("cpu", torch.bfloat16):
        half = lm_logprobs(hidden, labels, head)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, lm_logprobs(hidden, labels, head), atol=0.1, rtol=0.02)
    assert [g.dtype for g in torch.autograd.grad(half.sum(), [hidden, head])] == [torch.float32] * 2


def test_lm_logprobs_of_nothing_is_a_connected_zero():
    hidden, head = torch.randn(2, 9, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    nothing = lm_logprobs(hidden, torch.full((2, 9), IGNORE), head)
    assert not nothing.any() and all(
        not g.any() for g in torch.autograd.grad(nothing.sum(), [hidden, head])
    )


def test_lm_logprobs_refuses():
    with pytest.raises(ValueError, match="chunk=-1"):
        lm_logprobs(
            torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(5, 4), chunk=-1
        )
    with pytest.raises(ValueError, match="temperature=0"):
        lm_logprobs(
            torch.zeros(1, 3, 4),
            torch.zeros(1, 3, dtype=torch.int64),
            torch.zeros(5, 4),
            temperature=0,
        )
    with pytest.raises(ValueError, match="head="):
        lm_logprobs(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64))


def test_causal_lm_loss_of_parts_adds_up_to_the_whole():
    torch.manual_seed(0)
    model, b = MiniMind(TINY), batch()
    whole, weight, metrics = causal_lm_loss(model, b)
    assert weight == int((b["labels"] != IGNORE).sum()) and metrics == {}
    want = torch.autograd.grad(whole / weight, list(model.parameters()))
    parts = [
        causal_lm_loss(model, {k: v[cut] for k, v in b.items()})
        for cut in (slice(0, 1), slice(1, 4))
    ]
    assert sum(w for _, w, _ in parts) == weight
    for g, w in zip(
        torch.autograd.grad(sum(s for s, _, _ in parts) / weight, list(model.parameters())), want
    ):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-7)


def test_causal_lm_loss_of_padding_is_a_connected_zero():
    b = batch()
    b["labels"][:] = IGNORE
    model = MiniMind(TINY)
    loss, weight, _ = causal_lm_loss(model, b)
    assert loss == 0 and weight == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, list(model.parameters())))


def test_model_and_states_agree_and_documents_stay_apart():
    torch.manual_seed(0)
    model, b = MiniMind(TINY), batch()
    inputs = {k: v for k, v in b.items() if k != "labels"}
    loss = lm_loss(model, b["labels"], **inputs)
    torch.testing.assert_close(
        loss, lm_loss(model.hidden(**inputs), b["labels"], model.lm_head.weight)
    )
    halves = [
        lm_loss(model, b["labels"][:, cut], reduction="sum", input_ids=b["input_ids"][:, cut])
        for cut in (slice(0, 6), slice(6, 12))
    ]
    torch.testing.assert_close(loss, sum(halves) / (b["labels"] != IGNORE).sum())


# ---- experts
def moe(**changes):
    torch.manual_seed(0)
    return MiniMind(
        ModelConfig(
            **dict(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=24,
                num_experts=4,
                router_aux_loss_coef=0.1,
            )
            | changes
        )
    )


def batch_with_padding():
    torch.manual_seed(1)
    ids = torch.randint(0, 40, (2, 10))
    segments = torch.ones_like(ids)
    segments[0, 6:] = 0
    return dict(
        input_ids=ids,
        labels=torch.where(segments > 0, ids, IGNORE),
        position_ids=torch.arange(10).expand(2, -1),
        segment_ids=segments,
    )


def test_the_routers_loss_is_in_the_total():
    model, batch = moe(router_z_loss_coef=0.01), batch_with_padding()
    total, weight, metrics = causal_lm_loss(model, batch)
    routers = []
    model.hidden(**{k: v for k, v in batch.items() if k != "labels"}, routers=routers)
    keep, extra = batch["segment_ids"] > 0, 0.0
    for logits in routers:
        probs = logits[keep].softmax(-1)
        share = F.one_hot(probs.argmax(-1), 4).float().mean(0)
        # the mean of two layers
        extra = (
            extra
            + (
                0.1 * 4 * (share * probs.mean(0)).sum()
                + 0.01 * logits[keep].logsumexp(-1).square().mean()
            )
            / 2
        )
    torch.testing.assert_close(total, metrics["lm_loss"] + weight * extra)
    grads = torch.autograd.grad(
        total, [b.mlp.gate.weight for b in model.model.layers], retain_graph=True
    )
    plain = torch.autograd.grad(
        lm_loss(
            model,
            batch["labels"],
            reduction="sum",
            **{k: v for k, v in batch.items() if k != "labels"},
        ),
        [b.mlp.gate.weight for b in model.model.layers],
    )
    assert all((g - p).abs().max() > 1e-4 and p.abs().max() > 1e-6 for g, p in zip(grads, plain)), (
        "both verdicts reach the router"
    )


def test_padding_does_not_count_for_the_routers():
    model, batch = moe(), batch_with_padding()
    other = dict(batch, input_ids=torch.where(batch["segment_ids"] > 0, batch["input_ids"], 7))
    for a, b in zip(
        causal_lm_loss(model, batch)[2].values(), causal_lm_loss(model, other)[2].values()
    ):
        torch.testing.assert_close(a, b)


def test_the_balance_loss_is_hugging_faces():
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    model, batch = moe(num_hidden_layers=1, router_aux_loss_coef=1.0), batch_with_padding()
    routers = []
    model.hidden(**{k: v for k, v in batch.items() if k != "labels"}, routers=routers)
    theirs = load_balancing_loss_func(
        tuple(r.flatten(0, 1) for r in routers), 4, 1, (batch["segment_ids"] > 0).long()
    )
    torch.testing.assert_close(
        router_loss(model.config, routers, batch["segment_ids"] > 0)[0], theirs
    )


def test_a_dense_model_has_no_routers_loss():
    assert router_loss(moe(num_experts=0).config, []) == (0.0, {})
    assert causal_lm_loss(moe(num_experts=0), batch_with_padding())[2] == {}


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("weight", [1, 7])
def test_a_mean_and_a_sum_take_the_routers_loss_alike(weight, segments):
    model, batch = moe(router_z_loss_coef=0.01), batch_with_padding()
    if not segments:
        del batch["segment_ids"]
    routers = []
    model.hidden(**{k: v for k, v in batch.items() if k != "labels"}, routers=routers)
    keep = batch["segment_ids"] > 0 if segments else None
    extra, measured = router_loss(model.config, routers, keep)
    loss, seen = torch.tensor(3.0), {"nll": torch.tensor(2.0)}
    total, metrics = add_router_loss(loss, seen, model.config, routers, batch, weight, "without")
    assert torch.equal(total, loss + weight * extra)
    assert list(metrics) == ["without", "nll", "balance", "busiest"] and metrics["without"] == 3
    assert all(torch.equal(metrics[k], weight * v) for k, v in measured.items())
    # what is logged already under that name stays
    seen["without"] = torch.tensor(1.0)
    again = add_router_loss(loss, seen, model.config, routers, batch, log_as="without")[1]
    assert again["without"] == 1
    assert list(add_router_loss(loss, {}, model.config, routers, batch)[1]) == list(measured)


def test_pairs_are_padding_where_their_segments_are():
    "A batch of pairs `(P, 2, T)` goes through the model as `(2P, T)`."
    model, batch = moe(), batch_with_padding()
    routers = []
    model.hidden(**{k: v for k, v in batch.items() if k != "labels"}, routers=routers)
    paired = {"segment_ids": batch["segment_ids"].unflatten(0, (-1, 2))}
    loss = torch.tensor(0.0)
    one = add_router_loss(loss, {}, model.config, routers, batch)[0]
    assert torch.equal(one, add_router_loss(loss, {}, model.config, routers, paired)[0])


def test_a_dense_loss_comes_back_as_it_is():
    loss, metrics = torch.tensor(3.0), {"nll": torch.tensor(2.0)}
    config = moe(num_experts=0).config
    total, same = add_router_loss(loss, metrics, config, [], {}, 5, "without")
    assert total is loss and same is metrics == {"nll": torch.tensor(2.0)}


def test_hugging_face_gives_the_same_loss_and_gradients():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    hf = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=48,
        )
    )
    b = batch()
    theirs = hf(input_ids=b["input_ids"], labels=b["labels"]).loss
    ours = lm_loss(
        hf.model(b["input_ids"]).last_hidden_state, b["labels"], hf.lm_head.weight, chunk=7
    )
    torch.testing.assert_close(ours, theirs)
    for a, t in zip(*(torch.autograd.grad(loss, list(hf.parameters())) for loss in (ours, theirs))):
        torch.testing.assert_close(a, t, rtol=1e-4, atol=1e-6)
