"""The mixture of experts: every dispatch against the naive one, gradients included; the router's
gradient; the losses and the block against Hugging Face's."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeSparseMoeBlock,
    load_balancing_loss_func,
)

from minimind.layers import SwiGLU
from minimind.moe import (
    MoE,
    _can_group,
    dispatch_grouped,
    dispatch_naive,
    dispatch_sorted,
    expert_load,
    load_balance_loss,
    route,
    sort_by_expert,
    z_loss,
)


def tensors(N, D, hidden, E, k, dtype=torch.float32, seed=0, experts=None):
    g = torch.Generator().manual_seed(seed)
    x, gate_up, down = (
        torch.randn(s, generator=g, dtype=dtype) / s[-1] ** 0.5
        for s in ((N, D), (E, 2 * hidden, D), (E, D, hidden))
    )
    weights, chosen, _ = route(torch.randn(N, E, generator=g, dtype=dtype), k)
    return [
        t.requires_grad_() for t in (x, weights, gate_up, down)
    ], chosen if experts is None else experts


def value_and_grads(dispatch, inputs, experts):
    x, weights, gate_up, down = inputs
    y = dispatch(x, weights, experts, gate_up, down)
    target = torch.randn(
        y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(y.dtype)
    return y.detach(), *torch.autograd.grad((y * target).sum(), inputs)


def agree(dispatch, inputs, experts, atol=1e-5):
    for name, ours, theirs in zip(
        ("y", "x", "weights", "gate_up", "down"),
        value_and_grads(dispatch, inputs, experts),
        value_and_grads(dispatch_naive, inputs, experts),
    ):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, name
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=atol, msg=lambda m: f"{name}: {m}")


@given(
    N=st.integers(1, 40),
    D=st.integers(1, 17),
    hidden=st.integers(1, 19),
    E=st.integers(1, 7),
    k=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_sorted_equals_naive(N, D, hidden, E, k, seed):
    agree(dispatch_sorted, *tensors(N, D, hidden, E, min(k, E), seed=seed))


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("dispatch", [dispatch_sorted, dispatch_grouped])
def test_dispatch_equals_naive(dispatch, k):  # row lengths that the grouped product takes
    agree(dispatch, *tensors(67, 24, 40, 5, k))


@pytest.mark.parametrize("dispatch", [dispatch_sorted, dispatch_grouped])
def test_one_expert_takes_all(dispatch):
    inputs, experts = tensors(31, 8, 12, 4, 1, experts=torch.full((31, 1), 2))
    agree(dispatch, inputs, experts)
    *_, gate_up, down = value_and_grads(dispatch, inputs, experts)
    for grad in (gate_up, down):
        assert (grad[2] != 0).any() and (grad[[0, 1, 3]] == 0).all()


def test_naive_is_the_definition():
    (x, weights, gate_up, down), experts = tensors(9, 8, 12, 4, 2)
    mlps = []
    for e in range(4):
        mlps.append(SwiGLU(8, 12))
        mlps[e].load_state_dict(
            {
                "gate_proj.weight": gate_up[e, :12].detach(),
                "up_proj.weight": gate_up[e, 12:].detach(),
                "down_proj.weight": down[e].detach(),
            }
        )
    expected = torch.stack(
        [sum(weights[n, j] * mlps[experts[n, j]](x[n]) for j in range(2)) for n in range(9)]
    )
    torch.testing.assert_close(
        dispatch_naive(x, weights, experts, gate_up, down), expected, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("k", [1, 2, 4])
def test_gradcheck(k):
    inputs, experts = tensors(6, 3, 5, 4, k, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: dispatch_sorted(*t[:2], experts, *t[2:]), inputs)


def test_no_second_derivative_in_silence():
    inputs, experts = tensors(6, 3, 5, 4, 1)
    (grad,) = torch.autograd.grad(
        dispatch_sorted(*inputs[:2], experts, *inputs[2:]).square().sum(),
        inputs[0],
        create_graph=True,
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_backward_twice_gives_the_same():
    inputs, experts = tensors(20, 8, 12, 4, 2)
    loss = dispatch_sorted(*inputs[:2], experts, *inputs[2:]).square().sum()
    first, second = (torch.autograd.grad(loss, inputs, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_frozen_experts():  # as when only adapters are trained
    (x, weights, gate_up, down), experts = tensors(20, 8, 12, 4, 2)
    expected = torch.autograd.grad(
        dispatch_naive(x, weights, experts, gate_up, down).sum(), (x, weights)
    )
    ours = torch.autograd.grad(
        dispatch_sorted(x, weights, experts, gate_up.detach(), down.detach()).sum(), (x, weights)
    )
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_no_tokens():
    inputs, _ = tensors(3, 8, 12, 4, 2)
    x, weights, experts = (
        torch.zeros(0, 8, requires_grad=True),
        torch.zeros(0, 2),
        torch.zeros(0, 2, dtype=torch.int64),
    )
    y = dispatch_sorted(x, weights, experts, *inputs[2:])
    grads = torch.autograd.grad(y.sum(), (x, *inputs[2:]))
    assert y.shape == (0, 8) and all((g == 0).all() for g in grads)


@given(N=st.integers(0, 50), E=st.integers(1, 8), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_sort_by_expert(N, E, k, seed):
    experts = torch.randint(0, E, (N, k), generator=torch.Generator().manual_seed(seed))
    order, inverse, ends = sort_by_expert(experts, E)
    flat = experts.flatten()
    # Python's sort is stable
    assert order.tolist() == sorted(range(N * k), key=lambda a: int(flat[a]))
    assert (
        torch.equal(order[inverse], torch.arange(N * k))
        and ends.tolist() == flat.bincount(minlength=E).cumsum(0).tolist()
    )


def test_route():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 6)
    weights, experts, probs = route(logits, 2)
    # over all experts
    torch.testing.assert_close(probs, logits.flatten(0, 1).softmax(-1))
    torch.testing.assert_close(weights, probs.gather(1, experts))
    assert (
        weights.dtype == probs.dtype == torch.float32
        and experts.dtype == torch.int64
        and (weights[:, 0] >= weights[:, 1]).all()
    )
    assert route(logits.bfloat16(), 2)[0].dtype == torch.float32
    torch.testing.assert_close(
        route(logits, 2, normalize=True)[0], weights / weights.sum(-1, keepdim=True)
    )


@pytest.mark.parametrize("top_k", [0, -1, 5])
def test_top_k_must_fit(top_k):
    for call in (lambda: route(torch.zeros(3, 4), top_k), lambda: MoE(8, 8, 4, top_k)):
        with pytest.raises(ValueError, match=f"top_k={top_k}: .* 4 experts"):
            call()


def test_top_1_renormalised_is_refused():
    with pytest.raises(ValueError, match="router.*normalize=False"):
        MoE(8, 8, 4, 1, normalize=True)
    # one expert: there is nothing to route
    MoE(8, 8, 1, 1, normalize=True)


@pytest.mark.parametrize(
    "k, normalize, reaches", [(1, False, True), (1, True, False), (2, False, True), (2, True, True)]
)
def test_what_reaches_the_router(k, normalize, reaches):
    torch.manual_seed(0)
    gate, (x, _, gate_up, down) = nn.Linear(8, 4, bias=False), tensors(64, 8, 12, 4, 1)[0]
    weights, experts, _ = route(gate(x), k, normalize)
    for dispatch in (dispatch_naive, dispatch_sorted):
        loss = dispatch(x, weights, experts, gate_up, down).square().mean()
        (grad,) = torch.autograd.grad(loss, gate.weight, retain_graph=True)
        assert (grad.abs().max() > 1e-4) if reaches else (grad.abs().max() < 1e-7)


@pytest.mark.parametrize("k, normalize", [(1, False), (2, True), (2, False), (6, True)])
def test_equals_transformers(k, normalize):
    torch.manual_seed(0)
    ours = MoE(24, 40, 6, k, normalize, init_std=0.2)
    theirs = Qwen3MoeSparseMoeBlock(
        Qwen3MoeConfig(
            hidden_size=24,
            moe_intermediate_size=40,
            num_experts=6,
            num_experts_per_tok=k,
            norm_topk_prob=normalize,
            experts_implementation="eager",
        )
    )
    # strict: names and shapes are the same
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 17, 24, requires_grad=True)
    y, expected = ours(x)[0], theirs(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    inputs = lambda m: (x, m.gate.weight, m.experts.gate_up_proj, m.experts.down_proj)
    for a, b in zip(
        torch.autograd.grad(y.square().sum(), inputs(ours)),
        torch.autograd.grad(expected.square().sum(), inputs(theirs)),
    ):
        # sums over 51 tokens, in another order
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("k, normalize", [(1, False), (2, True)])
def test_one_token_is_as_many(k, normalize):  # decoding
    torch.manual_seed(0)
    layer, x = MoE(24, 40, 6, k, normalize, shared_dim=8, init_std=0.2), torch.randn(2, 9, 24)
    with torch.inference_mode():
        y, logits = layer(x)
        for b in range(2):
            for t in range(9):
                one, one_logits = layer(x[b : b + 1, t : t + 1])
                torch.testing.assert_close(one[0, 0], y[b, t], atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(one_logits[0, 0], logits[b, t], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("T", [1, 30])
def test_unvisited_experts_get_zeros(T):
    layer = MoE(24, 40, 4, 1)
    with torch.no_grad():
        layer.gate.weight.copy_(torch.tensor([[0.0], [1.0], [0.0], [0.0]]))
    y, _ = layer(torch.rand(1, T, 24))
    y.square().sum().backward()
    for p in layer.parameters():
        assert p.grad is not None and p.grad.shape == p.shape
    for p in layer.experts.parameters():
        assert (p.grad[1] != 0).any() and (p.grad[[0, 2, 3]] == 0).all()


@pytest.mark.parametrize("T", [1, 30])
@pytest.mark.parametrize("shared", [0, 16])
def test_bfloat16_autocast(T, shared):
    torch.manual_seed(0)
    layer, x = (
        MoE(24, 40, 4, 2, normalize=True, shared_dim=shared, init_std=0.2),
        torch.randn(2, T, 24),
    )
    y, logits = layer(x)
    exact = torch.autograd.grad(y.square().sum(), tuple(layer.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        low, low_logits = layer(x)
    # the router works in float32
    assert low.dtype == torch.bfloat16 and torch.equal(low_logits, logits)
    assert (low - y).norm() < 0.02 * y.norm()
    for p, ours, theirs in zip(
        layer.parameters(),
        torch.autograd.grad(low.float().square().sum(), tuple(layer.parameters())),
        exact,
    ):
        assert ours.dtype == p.dtype and (ours - theirs).norm() < 0.05 * theirs.norm()


def test_dispatches_agree_in_bfloat16():
    inputs, experts = tensors(67, 24, 40, 5, 2, dtype=torch.bfloat16)
    expected = dispatch_naive(
        *(t.detach().float() for t in inputs[:2]),
        experts,
        *(t.detach().float() for t in inputs[2:]),
    )
    for dispatch in (dispatch_naive, dispatch_sorted):
        y = dispatch(inputs[0], inputs[1].float(), experts, *inputs[2:])
        assert y.dtype == torch.bfloat16 and (y - expected).norm() < 0.01 * expected.norm()


def test_whole_layer_in_bfloat16():  # a model loaded for inference
    layer, x = (
        MoE(24, 40, 4, 2, normalize=True, shared_dim=8).bfloat16(),
        torch.randn(2, 5, 24, dtype=torch.bfloat16),
    )
    y, logits = layer(x)
    assert y.dtype == logits.dtype == torch.bfloat16 and y.shape == x.shape


def test_shared_experts_are_one_wider():
    torch.manual_seed(0)
    layer, x = MoE(24, 40, 4, 2, normalize=True, shared_dim=3 * 16), torch.randn(2, 7, 24)
    parts = [SwiGLU(24, 16) for _ in range(3)]
    with torch.no_grad():
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            getattr(layer.shared_expert, name).weight.copy_(
                torch.cat([getattr(p, name).weight for p in parts], dim)
            )
    routed = layer.experts(x.flatten(0, 1), *route(layer.gate(x), 2, True)[:2]).view(x.shape)
    torch.testing.assert_close(layer(x)[0], routed + sum(p(x) for p in parts), atol=1e-6, rtol=1e-5)


def test_state_and_initialisation():
    torch.manual_seed(0)
    layer = MoE(64, 96, 8, 2)
    assert {n: tuple(p.shape) for n, p in layer.state_dict().items()} == {
        "gate.weight": (8, 64),
        "experts.gate_up_proj": (8, 192, 64),
        "experts.down_proj": (8, 64, 96),
    }
    for std in (0.02, 0.5):
        layer.reset_parameters(std)
        for p in layer.experts.parameters():
            assert abs(p.std() / std - 1) < 0.02 and abs(p.mean()) < 0.02 * std
    assert {n for n in MoE(64, 96, 8, 2, shared_dim=32).state_dict()} - set(layer.state_dict()) == {
        f"shared_expert.{n}_proj.weight" for n in ("gate", "up", "down")
    }


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_load_balance_equals_transformers(k, layers, masked):
    torch.manual_seed(0)
    logits, mask = (
        [3 * torch.randn(4 * 11, 6, requires_grad=True) for _ in range(layers)],
        torch.rand(4, 11) < 0.6,
    )
    routed = [route(x, k) for x in logits]
    ours = load_balance_loss(
        torch.cat([p for *_, p in routed]),
        torch.cat([e for _, e, _ in routed]),
        mask.flatten().repeat(layers) if masked else None,
    )
    theirs = load_balancing_loss_func(tuple(logits), 6, k, mask.long() if masked else None)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)):
        torch.testing.assert_close(a, b)


def test_load_balance_values():
    probs = torch.rand(40, 8).softmax(-1)
    for k in (1, 2, 4):
        experts = (torch.arange(40)[:, None] + torch.arange(k)) % 8
        torch.testing.assert_close(load_balance_loss(probs, experts), torch.tensor(float(k)))
        torch.testing.assert_close(expert_load(experts, 8), torch.full((8,), 1 / 8))
    certain = F.one_hot(torch.zeros(40, dtype=torch.int64), 8).float()
    assert load_balance_loss(certain, torch.zeros(40, 1, dtype=torch.int64)) == 8


def test_padding_does_not_count():
    torch.manual_seed(0)
    logits, keep = torch.randn(2, 20, 5), torch.rand(2, 20) < 0.5
    # whatever stands there
    logits[~keep] = float("nan")
    real = route(logits[keep], 2)
    _, experts, probs = route(logits, 2)
    torch.testing.assert_close(
        load_balance_loss(probs, experts, keep), load_balance_loss(real[2], real[1])
    )
    torch.testing.assert_close(expert_load(experts, 5, keep), expert_load(real[1], 5))
    torch.testing.assert_close(z_loss(logits, keep), z_loss(logits[keep]))
    nothing = torch.zeros(40, dtype=torch.bool)
    assert load_balance_loss(probs, experts, nothing) == z_loss(logits, nothing) == 0


def test_z_loss():
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(z_loss(logits), logits.exp().sum(-1).log().pow(2).mean())
    assert z_loss(torch.full((2, 4), 100.0, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    "capability, dtype, width, grouped",
    [
        ((8, 0), torch.bfloat16, 64, False),
        ((8, 9), torch.bfloat16, 64, False),
        ((9, 0), torch.bfloat16, 64, True),
        ((10, 3), torch.bfloat16, 64, True),
        ((12, 0), torch.bfloat16, 64, False),
        ((9, 0), torch.float32, 64, False),
        ((9, 0), torch.float16, 64, False),
        ((9, 0), torch.bfloat16, 60, False),
    ],
)
def test_grouped_only_where_it_is_one_kernel(monkeypatch, capability, dtype, width, grouped):
    "Elsewhere `F.grouped_mm` loops over the experts and waits for the host (pytorch #186620)."
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    x = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(8, width))
    assert _can_group(x, torch.empty(4, 128, width), torch.empty(4, width, 64)) == grouped
    assert not _can_group(torch.empty(8, 64, dtype=dtype), *torch.empty(2, 4, 64, 64))


@pytest.mark.parametrize("k", [1, 2])
def test_a_forward_casts_each_matrix_once(k):
    "And the backward pass none: under autocast it uses what the forward pass rounded."
    layer, x, cast = MoE(24, 40, 4, k), torch.randn(2, 9, 24), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            if f._schema.name == "aten::_to_copy" and out.dtype == torch.bfloat16:
                cast.append(tuple(out.shape))
            return out

    with Casts():
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = layer(x)
        matrices = [(4, 80, 24), (4, 24, 40)]
        assert sorted(s for s in cast if s in matrices) == sorted(matrices)
        y.sum().backward()
    assert sorted(s for s in cast if s in matrices) == sorted(matrices)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 2])
def test_grouped_on_cuda(k):
    # expert 3 gets nothing
    inputs, experts = tensors(512, 64, 128, 4, k, experts=torch.randint(0, 3, (512, k)))
    expected = value_and_grads(dispatch_sorted, inputs, experts)
    there = [t.detach().cuda().bfloat16().requires_grad_() for t in inputs]
    if not _can_group(there[0], *there[2:]):
        pytest.skip("on this card the grouped product is a loop")
    experts_there = experts.cuda()
    # a wait for the device raises
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = dispatch_grouped(*there[:2], experts_there, *there[2:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (y.cpu().float() - expected[0]).norm() < 0.02 * expected[0].norm()
    for ours, theirs in zip(
        value_and_grads(dispatch_grouped, there, experts_there)[1:], expected[1:]
    ):
        assert (ours.cpu().float() - theirs).norm() < 0.03 * theirs.norm()
    assert (value_and_grads(dispatch_grouped, there, experts_there)[3][3] == 0).all()


# ---- several processes
DDP = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from minimind.losses import causal_lm_loss
from minimind.model import MiniMind, ModelConfig
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
model = MiniMind(ModelConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24, num_experts=4))
with torch.no_grad():
    for block in model.model.layers:      # one of the first two scores is always positive, the others are 0: experts 2 and 3 get nothing
        block.mlp.gate.weight[1] = -block.mlp.gate.weight[0]
        block.mlp.gate.weight[2:] = 0

class Loss(torch.nn.Module):
    def __init__(self): super().__init__(); self.model = model
    def forward(self, ids): return causal_lm_loss(self.model, dict(input_ids=ids, labels=ids))[0]

ids = torch.randint(0, 40, (4, 12), generator=torch.Generator().manual_seed(1))
wrapped = DistributedDataParallel(Loss())                                  # waits for every parameter: one without a gradient would hang it or raise
for _ in range(2):
    model.zero_grad(set_to_none=True)
    wrapped(ids[2*rank:2*rank + 2]).backward()
if rank == 0: torch.save({n: p.grad for n, p in model.named_parameters()}, f"{folder}/grads.pt")
sys.stdout.flush(); os._exit(0)                                           # see train.leave
"""


def test_an_idle_expert_is_no_error_with_ddp(tmp_path):
    "Two gloo processes, half of the batch each; two experts of every layer get no token in either."
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DDP, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    assert [p.wait(timeout=100) for p in ranks] == [0, 0], [p.stderr.read()[-2000:] for p in ranks]
    grads = torch.load(tmp_path / "grads.pt")
    assert all(g is not None for g in grads.values())
    idle = [g[2:] for n, g in grads.items() if "experts." in n]
    assert (
        idle
        and not any(g.any() for g in idle)
        and any(g.abs().max() > 0 for n, g in grads.items() if ".gate.weight" in n)
    )
