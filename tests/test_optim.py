"""The optimisers against PyTorch's and against plain double precision; groups, named state and
schedules."""

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from minimind.losses import lm_loss
from minimind.model import PRESETS, MiniMind, ModelConfig
from minimind.optim import (
    NS_COEFFICIENTS,
    SCHEDULES,
    Muon,
    Optimizers,
    build_optimizer,
    cosine_schedule,
    lr_factor,
    newton_schulz,
    parameter_groups,
)

TINY = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=48,
)


def error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def naive_newton_schulz(G, steps=5):  # one matrix, in double precision, by the formula
    a, b, c = NS_COEFFICIENTS
    X = G.double() / max(float(G.double().norm()), 1e-7)
    for _ in range(steps):
        X = a * X + b * X @ X.T @ X + c * X @ X.T @ X @ X.T @ X
    return X


# ---- Newton–Schulz
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    n=st.integers(1, 24),
    m=st.integers(1, 24),
    seed=st.integers(0, 999),
    steps=st.integers(0, 7),
)
def test_batched_newton_schulz_equals_the_formula(batch, n, m, seed, steps):
    G = torch.randn(
        *batch, n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    ours = newton_schulz(G, steps)
    assert ours.shape == G.shape and ours.dtype == G.dtype
    for one, g in zip(ours.reshape(-1, n, m), G.reshape(-1, n, m)):
        torch.testing.assert_close(one, naive_newton_schulz(g, steps), rtol=1e-8, atol=1e-10)


@given(
    n=st.integers(2, 40),
    m=st.integers(2, 40),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_directions_stay_and_sizes_become_one(n, m, scale, seed):
    g = torch.Generator().manual_seed(seed)
    U, V = (
        torch.linalg.qr(torch.randn(n, n, generator=g))[0],
        torch.linalg.qr(torch.randn(m, m, generator=g))[0],
    )
    k = min(n, m)
    s = torch.rand(k, generator=g) * 0.95 + 0.05
    S = torch.zeros(n, m)
    S[:k, :k] = torch.diag(s)
    out = U.T @ newton_schulz(scale * U @ S @ V) @ V.T
    assert out.diagonal().min() > 0.6 and out.diagonal().max() < 1.25
    assert (out - torch.zeros(n, m).diagonal_scatter(out.diagonal())).abs().max() < 1e-3


@pytest.mark.parametrize(
    "dtype, steps, bound",
    [
        *((torch.float32, n, 1e-4) for n in (1, 5, 6)),
        *((torch.float64, n, 1e-10) for n in (1, 5, 12)),
    ],
)
def test_rounds_on_the_small_side_alone(dtype, steps, bound):
    """Long matrices take a shorter way to the same result, also where the matrix is nearly
    singular, as gradients are."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    for G in (
        normal(3, 16, 64),
        normal(64, 16),
        normal(24, 3) @ normal(3, 80) + 1e-5 * normal(24, 80),
        normal(20, 2) @ normal(2, 90),
        torch.zeros(4, 16, dtype=dtype),
    ):
        for one, exact in ((newton_schulz(G, steps), G), (newton_schulz(G.mT, steps).mT, G)):
            exact = torch.stack(
                [naive_newton_schulz(x, steps) for x in exact.reshape(-1, *G.shape[-2:])]
            ).reshape(G.shape)
            assert (one - exact).abs().max() < bound * max(1, float(exact.abs().max())), G.shape


def test_many_rounds_do_not_explode():
    # rounding makes its zero singular values a little negative when they are squared
    G = torch.randn(24, 3) @ torch.randn(3, 80)
    assert torch.linalg.svdvals(newton_schulz(G, 30)).max() < 1.25


def test_newton_schulz_of_zero_and_in_bfloat16():
    assert not newton_schulz(torch.zeros(3, 4, 5)).any()
    G = torch.randn(2, 20, 30)
    half = newton_schulz(G, dtype=torch.bfloat16)
    assert half.dtype == torch.float32 and 1e-4 < error(half, newton_schulz(G)) < 0.05


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (3, 40, 8)])
def test_products_are_made_on_the_shorter_side(shape):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Shapes(TorchDispatchMode):
        seen = set()

        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            if "bmm" in f.name():
                self.seen.add(tuple(out.shape[-2:]))
            return out

    with Shapes() as shapes:
        newton_schulz(torch.randn(shape))
    assert shapes.seen <= {(8, 8), (8, 40)}


# ---- Muon
SHAPES = [(24, 16), (16, 24), (16, 24), (8, 8), (40, 8)]


def run(make, dtype=torch.float32, steps=6, skip=()):  # movements of the parameters
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in SHAPES]
    start, o = [p.detach().clone() for p in params], make(params)
    for step in range(steps):
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, generator=g).to(dtype)
            p.grad = None if (step, i) in skip else grad
        o.step()
    return [(p.detach() - s).double() for p, s in zip(params, start)]


def naive_muon(lr, momentum, weight_decay):
    class Naive:
        def __init__(self, params):
            self.params, self.M = params, [torch.zeros_like(p) for p in params]

        def step(self):
            for i, p in enumerate(self.params):
                if p.grad is None:
                    continue
                self.M[i] = momentum * self.M[i] + (1 - momentum) * p.grad
                O = naive_newton_schulz((1 - momentum) * p.grad + momentum * self.M[i])
                p.data = (1 - lr * weight_decay) * p.data - lr * max(
                    1, p.shape[0] / p.shape[1]
                ) ** 0.5 * O

    return Naive


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(lr=0.02, momentum=0.95, weight_decay=0.0),
        dict(lr=0.1, momentum=0.8, weight_decay=0.3),
        dict(lr=0.01, momentum=0.0, weight_decay=0.1),
    ],
)
def test_muon_equals_the_naive_one(kwargs):
    # parameters without a gradient are left alone
    skip = {(2, 1), (3, 0), (0, 3)}
    exact = run(naive_muon(**kwargs), torch.float64, skip=skip)
    for o, e in zip(
        run(lambda p: Muon(p, **kwargs, ns_dtype=torch.float64), torch.float64, skip=skip), exact
    ):
        assert error(o, e) < 1e-9
    for o, e in zip(run(lambda p: Muon(p, **kwargs), skip=skip), exact):
        assert error(o, e) < 1e-4


@pytest.mark.parametrize(
    "kwargs",
    [dict(lr=0.02, momentum=0.95, weight_decay=0.0), dict(lr=0.1, momentum=0.8, weight_decay=0.3)],
)
def test_muon_equals_torch(kwargs):
    theirs = run(lambda p: torch.optim.Muon(p, **kwargs))  # always bfloat16 inside
    for ours in (
        run(lambda p: Muon(p, **kwargs, ns_dtype=torch.bfloat16)),
        run(lambda p: Muon(p, **kwargs)),
    ):
        for o, t in zip(ours, theirs):
            assert error(o, t) < 0.025


def test_muon_equals_torch_in_double_precision(monkeypatch):
    import torch.optim._muon as theirs

    monkeypatch.setattr(
        theirs,
        "_zeropower_via_newtonschulz",
        lambda g, coefficients, steps, eps: naive_newton_schulz(g, steps),
    )
    # all but the rounding is compared: momentum, decay, the rule for tall matrices
    kwargs = dict(lr=0.1, momentum=0.8, weight_decay=0.3)
    for o, t in zip(
        run(lambda p: Muon(p, **kwargs, ns_dtype=torch.float64), torch.float64),
        run(lambda p: torch.optim.Muon(p, **kwargs), torch.float64),
    ):
        assert error(o, t) < 1e-9


def test_muon_groups_have_their_own_settings():
    a, b, c = (nn.Parameter(torch.ones(4, 6)) for _ in range(3))
    o = Muon([dict(params=[a], lr=0.5), dict(params=[b])], lr=0.1)
    for p in (a, b, c):
        p.grad = torch.eye(4, 6)
    o.step()
    torch.testing.assert_close(1 - a.detach(), 5 * (1 - b.detach()))
    assert (c == 1).all()


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"\[\(3,\), \(\)\]"):
        Muon([torch.zeros(2, 2), torch.zeros(3), torch.zeros(())])
    with pytest.raises(ValueError, match="matrices only"):
        Muon([dict(params=[torch.zeros(3)])])


def test_muon_takes_a_stack_of_matrices_as_its_members():
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 5, 4))
    single = [nn.Parameter(m.detach().clone()) for m in stack]
    together, apart = (
        Muon([stack], lr=0.1, weight_decay=0.1),
        Muon(single, lr=0.1, weight_decay=0.1),
    )
    for _ in range(3):
        stack.grad = torch.randn_like(stack)
        for p, g in zip(single, stack.grad):
            p.grad = g.clone()
        together.step(), apart.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in single]))


def test_an_idle_expert_stays_where_it_is():
    "Newton–Schulz would make a full step of its old momentum."
    stack = nn.Parameter(torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)))
    o = Muon([stack], lr=0.1)
    stack.grad = torch.ones_like(stack) + torch.eye(8)
    o.step()
    before = stack.detach().clone()
    stack.grad[1] = 0
    o.step()
    assert torch.equal(stack[1], before[1]) and not torch.equal(stack[0], before[0])


def test_small_tables_are_known_by_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("gate", "lora_A", "value_head", "gate_proj"):
                self.add_module(name, nn.Linear(3, 2, bias=False))

    groups = parameter_groups(nn.ModuleDict({"mlp": Model()}))
    assert set(groups["matrices"]) == {"mlp.gate_proj.weight"} and len(groups["tables"]) == 3


# ---- groups
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_one_group(tied):
    model = MiniMind(ModelConfig.from_dict(TINY.to_dict() | {"tie_word_embeddings": tied}))
    groups = parameter_groups(model)
    assert set(groups["tables"]) == {"model.embed_tokens.weight"} | (
        set() if tied else {"lm_head.weight"}
    )
    assert (
        len(groups["matrices"]) == 14
        and all(p.ndim == 2 for p in groups["matrices"].values())
        and all(p.ndim == 1 for p in groups["vectors"].values())
    )
    for kind in ("muon", "adamw"):
        o = build_optimizer(model, kind, weight_decay=0.1)
        held = [id(p) for g in o.groups for p in g["params"]]
        assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}
        for g in o.groups:
            assert (
                g["weight_decay"] == (0.0 if g["params"][0].ndim < 2 else 0.1)
                and len({p.ndim < 2 for p in g["params"]}) == 1
            )
        muon = {
            id(p)
            for i in o.optimizers
            if isinstance(i, Muon)
            for g in i.param_groups
            for p in g["params"]
        }
        assert muon == ({id(p) for p in groups["matrices"].values()} if kind == "muon" else set())


def test_settings_reach_the_optimizers():
    o = build_optimizer(MiniMind(TINY), lr=0.004, muon_lr=0.03, betas=(0.8, 0.9), weight_decay=0.2)
    muon, adamw = o.optimizers
    assert muon.param_groups[0]["lr"] == 0.03 and all(
        g["lr"] == 0.004 and g["betas"] == (0.8, 0.9) for g in adamw.param_groups
    )
    # a factor of the base rate, not of the last one
    o.set_lr(0.5)
    o.set_lr(0.25)
    assert [g["lr"] for g in o.groups] == [0.03 * 0.25, 0.001, 0.001]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("keep", ["matrices", "tables", "vectors"])
def test_part_of_a_model_can_be_trained(kind, keep):
    model = MiniMind(TINY)
    kept = {id(p) for p in parameter_groups(model)[keep].values()}
    for p in model.parameters():
        p.requires_grad_(id(p) in kept)
    o = build_optimizer(model, kind)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step(model, o)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(parameter_groups(model)[keep])


def test_wrong_requests_are_named():
    model = MiniMind(TINY)
    with pytest.raises(ValueError, match="'sgd': choose muon or adamw"):
        build_optimizer(model, "sgd")
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(model.requires_grad_(False))


# ---- steps and state
def step(model, optimizers, seed=0):
    ids = torch.randint(0, TINY.vocab_size, (2, 12), generator=torch.Generator().manual_seed(seed))
    lm_loss(model, ids, input_ids=ids).backward()
    optimizers.step()
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def fresh(kind="muon", seed=0):
    torch.manual_seed(seed)
    model = MiniMind(TINY)
    return model, build_optimizer(model, kind, weight_decay=0.1)


def test_adamw_part_equals_torch():
    model, o = fresh("adamw")
    twin = copy.deepcopy(model)
    decayed = [p for p in twin.parameters() if p.ndim == 2]
    reference = torch.optim.AdamW(
        [
            dict(params=decayed, weight_decay=0.1),
            dict(params=[p for p in twin.parameters() if p.ndim == 1], weight_decay=0.0),
        ],
        lr=3e-3,
        betas=(0.9, 0.95),
        foreach=False,
    )
    wrapped = Optimizers([reference], {p: n for n, p in twin.named_parameters()})
    for s in range(4):
        step(model, o, s)
        step(twin, wrapped, s)
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_round_trip_is_exact(kind, tmp_path):
    from safetensors.torch import load_file, save_file

    straight, o = fresh(kind)
    for s in range(6):
        step(straight, o, s)
    first, o = fresh(kind)
    for s in range(3):
        step(first, o, s)
    save_file(o.state_tensors(), tmp_path / "o.safetensors")
    resumed, o2 = fresh(kind, seed=1)
    # what it held before must not matter
    step(resumed, o2, 9)
    resumed.load_state_dict(first.state_dict())
    o2.load_state_tensors(load_file(tmp_path / "o.safetensors"))
    a, b = o.state_tensors(), o2.state_tensors()
    assert a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype and a[k].device == b[k].device
        for k in a
    )
    for s in range(3, 6):
        step(resumed, o2, s)
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), resumed.parameters()))
    # the loaded state was a copy
    for k, v in o.state_tensors().items():
        assert torch.equal(v, a[k])


def test_loading_replaces_the_state_with_a_copy():
    model, o = fresh()
    step(model, o)
    saved = {k: v.clone() for k, v in o.state_tensors().items()}
    kept = {k: v.clone() for k, v in saved.items()}
    o.load_state_tensors(saved)
    step(model, o, 1)
    assert all(torch.equal(saved[k], kept[k]) for k in kept) and not torch.equal(
        o.state_tensors()["model.norm.weight/exp_avg"], kept["model.norm.weight/exp_avg"]
    )
    o.load_state_tensors({})
    assert o.state_tensors() == {}


def test_state_names_are_parameter_names():
    model, o = fresh()
    assert o.state_tensors() == {}
    o.load_state_tensors({})  # a checkpoint of step 0
    step(model, o)
    names = {n: p for n, p in model.named_parameters()}
    state = o.state_tensors()
    assert {k.rpartition("/")[0] for k in state} == set(names)
    assert (
        "model.layers.1.mlp.up_proj.weight/momentum_buffer" in state
        and "model.norm.weight/exp_avg_sq" in state
    )
    assert sum(k.endswith("/momentum_buffer") for k in state) == 14


def test_a_foreign_state_is_refused_and_changes_nothing():
    model, o = fresh()
    step(model, o)
    good = {k: v.clone() for k, v in o.state_tensors().items()}
    q = "model.layers.0.self_attn.q_proj.weight"
    for bad, says in (
        (good | {"other.weight/exp_avg": torch.zeros(2)}, "no parameter 'other.weight'"),
        (
            good | {f"{q}/momentum_buffer": torch.zeros(3, 3)},
            r"shape \(3, 3\), the parameter \(32, 32\)",
        ),
        ({f"{q}/exp_avg": torch.zeros(32, 32)}, "trained by Muon"),
        ({"model.norm.weight/momentum_buffer": torch.zeros(32)}, "trained by AdamW"),
    ):
        with pytest.raises(ValueError, match=says):
            o.load_state_tensors(bad)
        assert all(torch.equal(v, good[k]) for k, v in o.state_tensors().items()) and len(
            o.state_tensors()
        ) == len(good)


@pytest.mark.parametrize("fused, device", [(True, "meta"), (False, "cpu")])
def test_the_count_of_steps_goes_where_torch_wants_it(
    fused, device
):  # a fused kernel on CUDA reads it there; "meta" stands in for the GPU
    p = nn.Parameter(torch.zeros(3, device="meta"))
    o = torch.optim.AdamW([p], fused=False)
    o.defaults["fused"] = fused
    Optimizers([o], {p: "w"}).load_state_tensors(
        {"w/step": torch.tensor(4.0), "w/exp_avg": torch.zeros(3), "w/exp_avg_sq": torch.zeros(3)}
    )
    assert o.state[p]["step"].device.type == device and o.state[p]["exp_avg"].device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_resume_on_cuda(kind):
    model, o = fresh(kind)
    model.cuda()
    o = build_optimizer(model, kind)
    ids = torch.randint(0, 61, (2, 12), device="cuda")

    def go():
        lm_loss(model, ids, input_ids=ids).backward()
        o.step()
        o.zero_grad()

    go()
    o.load_state_tensors({k: v.cpu().clone() for k, v in o.state_tensors().items()})
    go()


@settings(max_examples=10)
@given(steps=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_step_on_equal_batches_lowers_the_loss(steps, seed):
    for kind in ("muon", "adamw"):
        model, o = fresh(kind, seed)
        ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            before = lm_loss(model, ids, input_ids=ids)
        for _ in range(steps):
            step(model, o, seed)
        with torch.no_grad():
            assert lm_loss(model, ids, input_ids=ids) < before


# ---- schedules
runs = dict(
    total=st.integers(1, 300),
    warmup=st.integers(0, 100),
    schedule=st.sampled_from(SCHEDULES),
    final=st.floats(0, 1),
)


@given(**runs)
def test_schedule_rises_then_falls(total, warmup, schedule, final):
    f = [lr_factor(t, total, warmup, schedule, final) for t in range(total)]
    assert all(0 < x <= 1 for x in f)  # no step is wasted
    top = min(max(warmup - 1, 0), total - 1)
    assert all(a < b for a, b in zip(f[:top], f[1 : top + 1]))
    assert all(a >= b for a, b in zip(f[top:], f[top + 1 :]))
    if warmup <= total:
        assert f[top] == 1.0
    if warmup:
        assert f[0] == 1 / warmup
    # beyond the end it stays there
    assert lr_factor(10 * total + warmup, total, warmup, schedule, final) == (
        1 if schedule == "constant" else pytest.approx(final)
    )


@given(total=st.integers(2, 300), final=st.floats(0, 1))
def test_ends_of_the_schedules(total, final):
    last = {s: lr_factor(total - 1, total, 0, s, final) for s in SCHEDULES}
    assert last["constant"] == 1
    assert last["linear"] == pytest.approx(final + (1 - final) / total)
    # 1 - cos x ≤ x²/2
    assert final <= last["cosine"] <= final + (1 - final) * (1.5708 / total) ** 2 + 1e-12


def test_values_by_hand():
    assert [lr_factor(t, 10, 4) for t in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(5, 10, 0, "linear", 0.0) == 0.5 and lr_factor(
        5, 10, 0, "cosine", 0.2
    ) == pytest.approx(0.6)
    assert cosine_schedule(30, 100, 10, 0.3) == lr_factor(30, 100, 10, "cosine", 0.3)
    # MiniMind's formula
    assert [cosine_schedule(t, 8) for t in range(9)] == pytest.approx(
        [0.1 + 0.45 * (1 + torch.cos(torch.tensor(torch.pi * t / 8)).item()) for t in range(9)]
    )


@pytest.mark.parametrize(
    "kwargs, says",
    [
        (dict(schedule="step"), "choose one of cosine, linear, constant"),
        (dict(final=1.5), "final=1.5"),
        (dict(final=-0.1), "final=-0.1"),
    ],
)
def test_wrong_schedules_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        lr_factor(0, 10, **kwargs)


def test_muon_shares_of_the_preset_ci():
    groups = parameter_groups(MiniMind(PRESETS["ci"]))
    assert {k: sum(p.numel() for p in g.values()) for k, g in groups.items()} == {
        "matrices": 1_572_864,
        "tables": 1_228_800,
        "vectors": 1_984,
    }
