"""The model against Hugging Face's, and what must hold for any shape: causality, packing, caching,
growth of tables, clear errors."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from minimind.attention import attend
from minimind.model import (
    PRESETS,
    MiniMind,
    ModelConfig,
    flops_per_token,
    learnable,
    num_parameters,
    preset,
    stretch,
)

EXACT = {
    "ci": 2_803_648,
    "minimind2-small": 25_829_888,
    "minimind2": 104_030_976,
    "minimind-3": 63_912_192,
    "ci-moe": 6_345_664,
    "minimind2-moe": 145_029_760,
    "minimind-3-moe": 198_416_640,
}
ACTIVE = {"minimind2-moe": 91_945_600, "minimind-3-moe": 63_936_768}


def tiny(**changes):
    return ModelConfig(
        **(
            dict(
                vocab_size=61,
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=40,
                max_position_embeddings=128,
            )
            | changes
        )
    )


def build(config, seed=0):
    "A model with weights that are far from their initial values, norms too."
    torch.manual_seed(seed)
    model = MiniMind(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def theirs(c):
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    ours = {
        "qk_norm",
        "rope_theta",
        "rope_scaling",
        "shared_expert_intermediate_size",
        "router_z_loss_coef",
    }
    experts = (
        set()
        if c.num_experts
        else {
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
            "router_aux_loss_coef",
        }
    )
    shape = {k: v for k, v in c.to_dict().items() if k not in ours | experts} | {
        "rope_parameters": {
            "rope_theta": c.rope_theta,
            **(c.rope_scaling or {"rope_type": "default"}),
        }
    }
    # their grouped product wants multiples of 16 bytes
    if c.num_experts:
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, experts_implementation="eager")).eval()
    return (
        Qwen3ForCausalLM(Qwen3Config(**shape))
        if c.qk_norm
        else LlamaForCausalLM(LlamaConfig(**shape))
    ).eval()


@st.composite
def configs(draw):
    kv, ratio, half = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    qk_norm = draw(st.booleans())
    # Hugging Face's Llama wants the width to be a multiple of the heads even where head_dim is
    # given
    width = draw(st.integers(1, 40)) if qk_norm else kv * ratio * draw(st.integers(1, 5))
    experts, more = draw(st.integers(0, 5)) if qk_norm else 0, {}
    if experts:
        k = draw(st.integers(1, experts))
        more = dict(
            num_experts=experts,
            num_experts_per_tok=k,
            norm_topk_prob=k > 1 and draw(st.booleans()),
            moe_intermediate_size=draw(st.integers(1, 30)),
        )
    scaling = draw(
        st.sampled_from(
            [
                None,
                None,
                {"rope_type": "linear", "factor": 3.0},
                {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            ]
        )
    )
    return ModelConfig(
        vocab_size=draw(st.integers(3, 70)),
        hidden_size=width,
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=kv * ratio,
        num_key_value_heads=kv,
        head_dim=2 * half,
        intermediate_size=draw(st.integers(1, 50)),
        qk_norm=qk_norm,
        max_position_embeddings=300,
        tie_word_embeddings=draw(st.booleans()),
        rope_theta=draw(st.sampled_from([1e4, 1e6])),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_scaling=scaling,
        **more,
    )


# ---- counts


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_exact_size(name):
    with torch.device("meta"):
        model = MiniMind(PRESETS[name])
    assert (
        num_parameters(PRESETS[name]) == sum(p.numel() for p in model.parameters()) == EXACT[name]
    )
    assert (
        num_parameters(PRESETS[name], active=True) == ACTIVE.get(name, EXACT[name])
        or name == "ci-moe"
    )


@given(configs())
@settings(max_examples=40)
def test_parameter_formula(config):
    with torch.device("meta"):
        model = MiniMind(config)
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())


def test_flops_are_those_of_the_kernels():
    from torch.utils.flop_counter import FlopCounterMode

    for c in (tiny(), tiny(tie_word_embeddings=False, qk_norm=False)):
        with FlopCounterMode(display=False) as counter:
            MiniMind(c)(torch.zeros(1, 32, dtype=torch.long)).sum().backward()
        matrices = counter.get_flop_counts()["Global"][torch.ops.aten.mm] / 32
        norms = sum(p.numel() for p in MiniMind(c).parameters() if p.ndim == 1)
        assert flops_per_token(c, 0) == matrices + 6 * norms
        # a causal token sees half the context: 2 (q·k) + 2 (p·v) operations a feature, forward;
        # twice that again backward
        assert (
            flops_per_token(c, 32) - flops_per_token(c, 0)
            == 3 * c.num_hidden_layers * 4 * c.num_attention_heads * c.head_dim * 16
        )


# ---- configuration


def test_config_round_trip():
    for c in [*PRESETS.values(), tiny(head_dim=10)]:
        assert ModelConfig.from_dict(c.to_dict()) == c
    assert preset("ci", vocab_size=99).vocab_size == 99 and PRESETS["ci"].vocab_size == 6400
    with pytest.raises(AttributeError):
        PRESETS["ci"].vocab_size = 1  # frozen


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocabsize": 5}, "unknown config keys.*vocabsize"),
        ({"dim": 5, "n_layers": 3}, "dim.*n_layers"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4.*num_key_value_heads=3"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size=24.*5.*head_dim"),
        ({"head_dim": 7}, "head_dim=7.*even"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"hidden_size": -8}, "hidden_size=-8"),
        ({"hidden_size": "24"}, "hidden_size='24'"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(tiny().to_dict() | {"head_dim": None} | change)


def test_incomplete_config():
    with pytest.raises(ValueError, match="num_hidden_layers"):
        ModelConfig.from_dict({"hidden_size": 8})
    with pytest.raises(ValueError, match="no preset 'nope'.*minimind-3"):
        preset("nope")


# ---- against Hugging Face


@given(configs(), st.integers(1, 33), st.integers(0, 99))
@settings(max_examples=25)
def test_logits_are_hugging_faces_both_ways(config, T, seed):
    ours, hf = build(config, seed), theirs(config)
    ids = torch.randint(config.vocab_size, (2, T))
    # strict: the same names, none left over
    hf.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), hf(ids).logits, atol=1e-4, rtol=1e-4)
        for p in hf.parameters():
            p.add_(0.1 * torch.randn_like(p))
        ours.load_state_dict(hf.state_dict())
        torch.testing.assert_close(ours(ids), hf(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(qk_norm=False),
        dict(num_experts=4),
        dict(num_experts=4, num_experts_per_tok=2, norm_topk_prob=True),
    ],
    ids=["qwen3", "llama", "top-1", "top-2"],
)
def test_gradients_are_hugging_faces(changes):
    config = tiny(**changes)
    ours, hf = build(config), theirs(config)
    hf.load_state_dict(ours.state_dict())
    # theirs gives the padding token's row no gradient (`padding_idx`); ours never sees padding as
    # text
    ids = torch.randint(1, 61, (3, 17))
    F.cross_entropy(ours(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    hf(ids, labels=ids).loss.backward()
    reference = dict(hf.named_parameters())
    assert reference.keys() == dict(ours.named_parameters()).keys()
    for name, p in ours.named_parameters():
        torch.testing.assert_close(
            p.grad, reference[name].grad, atol=1e-5, rtol=1e-4, msg=lambda m: f"{name}: {m}"
        )


# ---- longer texts


def test_stretch():
    config = tiny()
    yarn, linear, ntk = (stretch(config, kind, 4, 32) for kind in ("yarn", "linear", "ntk"))
    assert (
        all(c.max_position_embeddings == 128 for c in (yarn, linear, ntk))
        and stretch(config, "yarn", 2).max_position_embeddings == 256
    )
    assert (
        yarn.rope_scaling["original_max_position_embeddings"] == 32
        and linear.rope_scaling == {"rope_type": "linear", "factor": 4.0}
        and ntk.rope_scaling is None
        and ntk.rope_theta > config.rope_theta
    )
    model = MiniMind(yarn)
    model(torch.zeros(1, 128, dtype=torch.long))
    with pytest.raises(ValueError, match="position 128 is beyond max_position_embeddings=128"):
        model(torch.zeros(1, 129, dtype=torch.long))
    for wrong, message in (
        ((config, "yran", 4), "choose one of yarn"),
        ((config, "yarn", 0.5), "factor=0.5"),
        ((config, "ntk", 0.5), "factor=0.5"),
        ((yarn, "yarn", 2), "stretched already"),
    ):
        with pytest.raises(ValueError, match=message):
            stretch(*wrong)


# ---- experts


def test_routers_are_handed_out_once_per_layer():
    model, ids = build(tiny(num_experts=3)), torch.randint(61, (2, 5))
    routers = []
    torch.testing.assert_close(model.lm_head(model.hidden(ids, routers=routers)), model(ids))
    assert [tuple(r.shape) for r in routers] == [(2, 5, 3)] * 2
    dense = []
    build(tiny()).hidden(ids, routers=dense)
    assert dense == []


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_experts=-1), "num_experts=-1"),
        (dict(num_experts=2, num_experts_per_tok=3), "top_k"),
        (dict(num_experts=2, router_aux_loss_coef=-1.0), "router_aux_loss_coef=-1.0"),
        (dict(rope_scaling={"rope_type": "yarn"}), "lacks factor"),
    ],
)
def test_bad_experts_and_scaling(changes, message):
    with pytest.raises(ValueError, match=message):
        MiniMind(tiny(**changes))


def test_normalised_top_1_is_run_but_not_trained():
    config = tiny(num_experts=2, norm_topk_prob=True)
    assert all(block.mlp.normalize for block in MiniMind(config).model.layers)
    with pytest.raises(ValueError, match="no gradient"):
        learnable(config)
    assert learnable(tiny(num_experts=2)) and learnable(
        tiny(num_experts=2, num_experts_per_tok=2, norm_topk_prob=True)
    )


# ---- what must be true


@given(configs(), st.data())
@settings(max_examples=25)
def test_no_token_hears_a_later_one(config, data):
    T = data.draw(st.integers(2, 20))
    t = data.draw(st.integers(1, T - 1))
    model, ids = build(config), torch.randint(config.vocab_size, (1, T))
    changed = ids.clone()
    changed[0, t:] = (changed[0, t:] + 1) % config.vocab_size
    with torch.no_grad():
        a, b = model(ids), model(changed)
    # an expert's product over another number of rows may round otherwise
    if config.num_experts:
        torch.testing.assert_close(a[:, :t], b[:, :t], atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(a[:, :t], b[:, :t])
    # `hidden` may be equal by accident when the model is one number wide, so only wide ones must
    # notice
    if config.hidden_size > 8 and config.vocab_size > 8:
        assert not torch.equal(a[:, t:], b[:, t:])


@given(configs(), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 4))
@settings(max_examples=25)
def test_packed_is_alone(config, lengths, padding):
    model = build(config)
    docs = [torch.randint(config.vocab_size, (1, n)) for n in lengths]
    parts = [*docs, torch.zeros(1, padding, dtype=torch.long)]
    segments = torch.cat([torch.full_like(p, i) for i, p in enumerate(parts, 1)], 1)
    segments[segments == len(parts)] = 0  # padding
    positions = torch.cat([torch.arange(p.shape[1])[None] for p in parts], 1)
    with torch.no_grad():
        packed = model(torch.cat(parts, 1), positions, segments)
        # positions that go on: only differences count
        counted_on = model(torch.cat(parts, 1), None, segments)
        for row in (packed, counted_on):
            for got, doc in zip(row.split([p.shape[1] for p in parts], 1), docs):
                torch.testing.assert_close(got, model(doc), atol=1e-4, rtol=1e-4)


@given(configs(), st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 3))
@settings(max_examples=25)
def test_cached_is_uncached(config, pieces, spare):
    model, T = build(config), sum(pieces)
    ids = torch.randint(config.vocab_size, (3, T))
    cache = model.new_cache(3, T + spare)
    with torch.no_grad():
        got = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, 1)], 1)
        torch.testing.assert_close(got, model(ids), atol=1e-4, rtol=1e-4)
    assert cache.length == T


@given(configs(), st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 4))
@settings(max_examples=25)
def test_left_padded_is_alone(config, lengths, new):
    "A ragged batch, then a few more tokens through the cache, is each row by itself."
    model, width = build(config), max(lengths)
    rows = [torch.randint(config.vocab_size, (n + new,)) for n in lengths]
    ids = torch.stack([F.pad(r[:n], (width - n, 0)) for r, n in zip(rows, lengths)])
    real = torch.stack([torch.arange(width) >= width - n for n in lengths])
    positions = (real.cumsum(1) - 1).clamp(min=0)
    cache = model.new_cache(len(rows), width + new)
    with torch.no_grad():
        got = [model(ids, positions, real.long(), cache)]
        for t in range(new):
            at = torch.tensor([[n + t] for n in lengths])
            got.append(
                model(
                    torch.stack([r[n + t : n + t + 1] for r, n in zip(rows, lengths)]),
                    at,
                    torch.ones_like(at),
                    cache,
                )
            )
        for i, (row, n) in enumerate(zip(rows, lengths)):
            torch.testing.assert_close(
                torch.cat(got, 1)[i, width - n :], model(row[None])[0], atol=1e-4, rtol=1e-4
            )


def test_first_loss_is_the_logarithm_of_the_vocabulary():
    for seed, c in enumerate(
        [
            PRESETS["ci"],
            preset("ci", hidden_size=384, num_hidden_layers=1),
            preset("ci", tie_word_embeddings=False),
        ]
    ):
        torch.manual_seed(seed)
        ids = torch.randint(6400, (4, 129))
        with torch.no_grad():
            loss = F.cross_entropy(
                MiniMind(c)(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            ).item()
        assert abs(loss - math.log(6400) - 0.02**2 * c.hidden_size / 2) < 0.05


def test_initial_weights():
    torch.manual_seed(0)
    # a router has too few numbers to judge
    both = (
        p
        for name in ("ci", "ci-moe")
        for p in MiniMind(preset(name, initializer_range=0.03)).named_parameters()
        if ".gate.weight" not in p[0]
    )
    for name, p in both:
        if p.ndim >= 2:
            assert abs(p.std().item() - 0.03) < 0.001 and abs(p.mean().item()) < 0.001, name
        else:
            assert (p == 1).all(), name


def test_gradient_reaches_every_parameter():
    for changes in (
        dict(tie_word_embeddings=True),
        dict(tie_word_embeddings=False),
        dict(num_experts=3),
        dict(
            num_experts=3,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            shared_expert_intermediate_size=20,
        ),
    ):
        model = build(tiny(**changes))
        ids = torch.randint(61, (2, 40))
        F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        for name, p in model.named_parameters():
            assert p.grad.abs().max() > 0, name


# ---- rotary tables


def test_tables_grow_and_stay_out_of_the_state():
    model = build(tiny(max_position_embeddings=1000))
    assert (
        model.model.rotary.kept == {}
        and not [k for k in model.state_dict() if "rot" in k or "cos" in k]
        and not list(model.buffers())
    )
    sizes = []
    for length in (1, 200, 257, 600, 5):
        with torch.no_grad():
            model(torch.zeros(1, length, dtype=torch.long))
        sizes.append(len(model.model.rotary.kept[torch.device("cpu")][0]))
    # by doubling, never beyond the limit, never shorter again
    assert sizes == [256, 256, 512, 1000, 1000]
    assert all(
        t.dtype == torch.float32
        for t in copy.deepcopy(model).bfloat16().model.rotary(8, torch.device("cpu"))
    )


def test_beyond_the_last_position():
    model = build(tiny())
    with torch.no_grad():
        model(torch.zeros(1, 128, dtype=torch.long))
    one = torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="position 128 .*max_position_embeddings=128"):
        model(torch.zeros(1, 129, dtype=torch.long))
    with pytest.raises(ValueError, match="position 500 .*max_position_embeddings=128"):
        model(one, one + 500)
    with pytest.raises(ValueError, match="position -3"):
        model(one, one - 3)
    cache = model.new_cache(1, 200)
    with torch.no_grad():
        model(torch.zeros(1, 128, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="max_position_embeddings=128"):
        model(one, cache=cache)


@pytest.mark.parametrize("shape", [(5,), (1, 0), (0, 5), (1, 2, 3)])
def test_bad_input_shape(shape):
    with pytest.raises(ValueError, match="input_ids has shape"):
        build(tiny())(torch.zeros(shape, dtype=torch.long))


def test_heads_that_do_not_divide():
    q, k = torch.randn(1, 5, 4, 8), torch.randn(1, 5, 3, 8)
    with pytest.raises(ValueError, match="num_kv_heads=3 does not divide num_heads=4"):
        attend(q, k, k)


def test_full_cache():
    model = build(tiny())
    cache = model.new_cache(1, 4)
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="max_len=4"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)


def test_made_on_meta():
    config = tiny()
    source, ids = build(config), torch.randint(61, (2, 9))
    with torch.device("meta"):
        model = MiniMind(config)
    assert all(p.is_meta for p in model.parameters())
    model = model.to_empty(device="cpu")
    # `to_empty` makes the two ends two tensors
    model.lm_head.weight = model.model.embed_tokens.weight
    model.load_state_dict(source.state_dict())
    assert torch.equal(model(ids), source(ids)) and not any(
        t.is_meta for t in model.model.rotary(3, torch.device("cpu"))
    )


def test_trains_after_inference_mode():
    "Tables made inside `inference_mode` would be refused by autograd for ever after."
    model, ids = build(tiny()), torch.randint(61, (2, 9))
    with torch.inference_mode():
        model(ids)
    model(ids).sum().backward()


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_stay_tied_and_separate(how):
    model, ids = build(tiny()), torch.randint(61, (2, 9))
    before = model(ids).detach()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight and torch.equal(twin(ids), before)
    with torch.no_grad():
        twin.lm_head.weight.add_(1)
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("arguments", [1, 2, 3])
def test_compiles_to_one_graph(arguments):
    """Traced, not compiled to machine code: that takes minutes on a CPU. A wait for a number
    (`.item()`) would break the graph, and a GPU's stride."""
    torch._dynamo.reset()
    model, ids = build(tiny()), torch.randint(61, (2, 12))
    positions, segments = (
        torch.arange(12).remainder(7).expand(2, -1),
        (torch.arange(12) >= 7).long().expand(2, -1) + 1,
    )
    args = (ids, positions, segments)[:arguments]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    # the second call meets the tables that the first one made
    for _ in range(2):
        torch.testing.assert_close(compiled(*args), model(*args), atol=1e-5, rtol=1e-5)
    compiled(*args).sum().backward()


def test_bfloat16():
    model, ids = build(tiny()), torch.randint(61, (2, 30))
    exact = model(ids).detach()
    half = copy.deepcopy(model).bfloat16()
    cache = half.new_cache(2, 30)
    assert cache.k.dtype == torch.bfloat16
    with torch.no_grad():
        out, cached = (
            half(ids),
            torch.cat([half(p, cache=cache) for p in ids.split([11, 1, 18], 1)], 1),
        )
        with torch.autocast("cpu", torch.bfloat16):
            auto = model(ids)
    half(ids).sum().backward()
    assert out.dtype == torch.bfloat16 and all(
        p.grad.dtype == torch.bfloat16 for p in half.parameters()
    )
    scale = exact.std()
    # 8 significant bits, through two layers
    for approx in (out, cached, auto):
        assert (approx.float() - exact).abs().max() < 0.15 * scale


@pytest.mark.gpu
def test_training_forward_never_waits_for_the_gpu():
    model = build(preset("ci")).cuda()
    ids = torch.randint(6400, (2, 64), device="cuda")
    positions = torch.arange(64, device="cuda").expand(2, -1)
    model(ids, positions)  # lays out the tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(ids, positions).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
