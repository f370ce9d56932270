"""The model against Hugging Face's, and what must hold for any shape: causality, packing, caching,
growth of tables, clear errors."""

import copy
import io
import math
import pickle
import subprocess
import sys
import warnings
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import minimind.attention as attention
import minimind.model as modeling
from minimind.attention import (
    Attention,
    Documents,
    KVCache,
    attend,
    attention_mask,
    document_mask,
    find_documents,
    naive_attention,
    suited_mask,
    varlen_obstacle,
)
from minimind.generate import generate
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


# ---- packed rows, their documents


class Operations(TorchDispatchMode):
    "Counts what reaches the kernels, by name; with `cast`, the sizes of what changes its dtype too."

    def __init__(self):
        super().__init__()
        self.calls, self.casts = Counter(), Counter()

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        name = f._schema.name.split("::")[1]
        self.calls[name] += 1
        if name == "_to_copy" and out.dtype != args[0].dtype:
            self.casts[tuple(out.shape)] += 1
        return out


@st.composite
def packed_rows(draw):
    "Segment ids `(B, T)`: documents one after another, numbers of any size, 0 for padding."
    T, rows = draw(st.integers(1, 14)), []
    for _ in range(draw(st.integers(1, 3))):
        numbers = draw(st.permutations([0, 1, 2, 5, 9]))
        cuts = sorted(draw(st.sets(st.integers(1, T), max_size=4)) - {T})
        bounds = zip([0, *cuts], [*cuts, T])
        rows.append([i for (a, b), i in zip(bounds, numbers) for _ in range(b - a)])
    return torch.tensor(rows)


@given(packed_rows())
def test_documents_are_the_mask(segments):
    documents, (B, T) = find_documents(segments), segments.shape
    mask = attention_mask(segments)
    assert torch.equal(documents.mask(B, T), mask)
    # independently: how far back the last token of each document sees
    sees = mask[:, 0].sum(-1).flatten().tolist()
    ends = [i for i in range(B * T) if i + 1 == B * T or sees[i + 1] == 1]
    assert documents.cu_seqlens.tolist() == [0, *(i + 1 for i in ends)]
    assert documents.cu_seqlens.dtype == torch.int32
    assert documents.lengths == tuple(sees[i] for i in ends)
    assert all(type(n) is int for n in documents.lengths)
    assert max(documents.lengths) <= documents.longest < 2 * max(documents.lengths)
    assert documents.longest.bit_count() == 1
    there = documents.to("meta")
    assert there.cu_seqlens.is_meta and there.lengths == documents.lengths


def test_no_documents_for_one_in_two_pieces():
    for rows in ([[1, 1, 2, 1]], [[1, 1, 1, 1], [0, 3, 0, 0]]):
        segments = torch.tensor(rows)
        assert find_documents(segments) is None
        assert torch.equal(document_mask(segments), attention_mask(segments))


def values_and_gradients(attending, tensors):
    out = attending(*tensors)
    seed = torch.Generator().manual_seed(9)
    probe = torch.randn(out.shape, generator=seed, dtype=torch.float64).to(out.dtype)
    return out.detach(), *torch.autograd.grad((out * probe).sum(), tensors)


def queries_keys_values(B, T, kv_heads, groups, Dh=8):
    torch.manual_seed(0)
    shapes = (B, T, kv_heads * groups, Dh), *2 * ((B, T, kv_heads, Dh),)
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def reference_kernel(q, k, v, cu_q, cu_k, max_q, max_k, **options):
    """What `varlen_attn` is documented to do, with its demands on the arguments, in float64 and
    with one softmax per document and head."""
    assert options == {"window_size": (-1, 0), "enable_gqa": q.shape[1] != k.shape[1]}
    assert q.ndim == k.ndim == v.ndim == 3 and cu_q is cu_k and max_q == max_k
    assert cu_q.dtype == torch.int32 and cu_q[0] == 0 and cu_q[-1] == len(q) == len(k) == len(v)
    assert cu_q.is_contiguous() and all(x.stride(-1) == 1 for x in (q, k, v))
    out = torch.empty_like(q)
    for a, b in zip(cu_q.tolist(), cu_q.tolist()[1:]):
        assert 0 < b - a <= max_q
        for head in range(q.shape[1]):
            shared = head * k.shape[1] // q.shape[1]
            one_q, one_k, one_v = q[a:b, head], k[a:b, shared], v[a:b, shared]
            scores = (one_q.double() @ one_k.double().T) / q.shape[2] ** 0.5
            future = torch.ones(b - a, b - a, dtype=torch.bool).triu(1)
            weights = scores.masked_fill(future, -math.inf).softmax(-1)
            out[a:b, head] = (weights @ one_v.double()).to(q.dtype)
    return out


WAYS = {
    "documents": lambda q, k, v, documents: attend(q, k, v, documents),
    "varlen": lambda q, k, v, documents: attention._attend_varlen(q, k, v, documents),
    "bool mask": lambda q, k, v, documents: attend(q, k, v, documents.mask(*q.shape[:2])),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("groups", [1, 3])
@given(packed_rows())
@settings(max_examples=15)
def test_packed_attention_is_the_masked_definition(way, groups, segments):
    "Values and gradients of every form, shared keys or not, against the naive version."
    tensors = queries_keys_values(*segments.shape, 2, groups)
    mask, documents = attention_mask(segments), find_documents(segments)
    want = values_and_gradients(lambda q, k, v: naive_attention(q, k, v, mask)[0], tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_kernel", reference_kernel)
        got = values_and_gradients(lambda q, k, v: WAYS[way](q, k, v, documents), tensors)
    # gradients of some units, in float32: seven digits, and a few additions in another order
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_kernel_gets_what_it_documents():
    "The real function's checks and shapes, without a GPU: on the meta device it computes no number."
    documents = find_documents(torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])).to("meta")
    for groups in (1, 2):
        q, *others = (
            x.detach().bfloat16().to("meta") for x in queries_keys_values(2, 6, 2, groups)
        )
        out = attend(q.requires_grad_(), *others, documents)
        assert out.shape == q.shape and out.dtype == torch.bfloat16
        out.sum().backward()
        assert q.grad.shape == q.shape
    # float32: a mask instead, made from the documents
    tensors = [x.detach().to("meta") for x in queries_keys_values(2, 6, 2, 2)]
    with Operations() as operations:
        attend(*tensors, documents)
    assert not any("varlen" in name for name in operations.calls)


def test_the_kernel_is_one_operation_of_a_compiled_program():
    "Traced as for CUDA; nothing is computed, for a CPU has no such kernel."
    found = []

    def backend(graph, inputs):
        found.append([str(node.target) for node in graph.graph.nodes])
        return lambda *args: (torch.zeros(2, 6, 4, 8, dtype=torch.bfloat16),)

    torch._dynamo.reset()
    q, k, v = (x.detach().bfloat16() for x in queries_keys_values(2, 6, 2, 2))
    program = torch.compile(attention._attend_varlen, backend=backend, fullgraph=True)
    for rows in (
        [[1, 1, 2, 2, 2, 0], [1] * 6],
        [[1, 2, 3, 3, 3, 3], [1] * 6],
        [[1, 1, 1, 2, 2, 2]] * 2,
    ):
        program(q, k, v, find_documents(torch.tensor(rows)))
    assert len(found) <= 2
    assert all(sum("varlen" in name for name in names) == 1 for names in found)


@pytest.mark.parametrize(
    "device, dtype, head_dim, capability, words",
    [
        ("cpu", torch.bfloat16, 64, (9, 0), "CUDA, not on cpu"),
        ("cuda", torch.float32, 64, (9, 0), "not in float32"),
        ("cuda", torch.float16, 64, (7, 5), "7.5"),
        ("cuda", torch.bfloat16, 12, (9, 0), "not of 12"),
        ("cuda", torch.bfloat16, 264, (9, 0), "not of 264"),
        ("cuda", torch.bfloat16, 96, (8, 6), None),
        ("cuda", torch.float16, 256, (12, 0), None),
    ],
)
def test_where_the_kernel_can_not_be_had(monkeypatch, device, dtype, head_dim, capability, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    why = varlen_obstacle(torch.device(device), dtype, head_dim)
    assert why is None if words is None else words in why


def test_a_mask_instead_is_told_once(monkeypatch):
    attention._warn_of_mask.cache_clear()
    documents = find_documents(torch.tensor([[1, 1, 2]]))
    there = documents.to("meta")
    with pytest.warns(UserWarning, match="varlen_attn runs on CUDA, not on meta"):
        mask = suited_mask(there, 1, 3, torch.bfloat16, 16)
    assert mask.shape == (1, 1, 3, 3) and mask.dtype == torch.bool
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        suited_mask(there, 1, 3, torch.bfloat16, 16)
        assert suited_mask(documents, 1, 3, torch.float32, 12) is documents
    monkeypatch.setattr(attention, "varlen_obstacle", lambda *where: None)
    assert suited_mask(there, 1, 3, torch.bfloat16, 16) is there


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_keys_are_repeated_where_no_kernel_shares_them(monkeypatch, masked, dtype):
    "On CUDA only FlashAttention does, and it takes neither a mask nor float32."
    asked, real = [], F.scaled_dot_product_attention

    def listen(q, k, v, **options):
        asked.append((k.shape[1], options["enable_gqa"]))
        return real(q, k, v, **options)

    there = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
    mask = torch.ones(5, 5).tril().bool() if masked else None
    repeats = attention._repeats_heads(there, mask)
    assert repeats == (masked or dtype == torch.float32)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", listen)
    tensors = queries_keys_values(1, 5, 2, 3)
    plain = torch.ones(5, 5).tril().bool()
    want = values_and_gradients(lambda q, k, v: naive_attention(q, k, v, plain)[0], tensors)
    monkeypatch.setattr(attention, "_repeats_heads", lambda q, mask: repeats)
    got = values_and_gradients(lambda q, k, v: attend(q, k, v, mask), tensors)
    assert asked == [(6, False) if repeats else (2, True)]
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


def packed_batch(B=3, T=20, vocab=61, seed=0):
    g = torch.Generator().manual_seed(seed)
    segments = torch.randint(0, 5, (B, T), generator=g).sort(1).values + 1
    new = torch.ones(B, T, dtype=torch.bool)
    new[:, 1:] = segments.diff(dim=1) != 0
    columns = torch.arange(T).expand(B, T)
    positions = columns - torch.where(new, columns, 0).cummax(1).values
    return torch.randint(1, vocab, (B, T), generator=g), positions, segments


@pytest.mark.parametrize("changes", [{}, dict(num_experts=3), dict(qk_norm=False)])
def test_documents_say_what_segments_say(changes):
    model, (ids, positions, segments) = build(tiny(**changes)), packed_batch()
    want = model.hidden(ids, positions, segments)
    got = model.hidden(ids, positions, documents=find_documents(segments))
    both = model.hidden(
        ids, positions, torch.zeros_like(segments), documents=find_documents(segments)
    )
    masked = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(lambda m, args: masked.append(args[3]))
    model.hidden(ids, positions, segments)
    assert torch.equal(got, want) and torch.equal(both, want)
    assert all(isinstance(m, Documents) for m in masked)
    cache = model.new_cache(3, 20)
    for wrong in (
        dict(input_ids=ids[:2], documents=find_documents(segments)),
        dict(input_ids=ids, documents=find_documents(segments), cache=cache),
    ):
        with pytest.raises(ValueError, match="documents of 60 tokens for . rows of 20"):
            model.hidden(**wrong)


@pytest.mark.parametrize("varlen", [True, False])
@pytest.mark.parametrize("again", [False, True])
def test_a_packed_pass_looks_at_no_device(monkeypatch, varlen, again):
    """The meta device has no numbers, so whatever would wait for one raises there. Both forms of
    the mask, forward and backward, with gradient checkpointing and without."""
    for module in (attention, modeling):  # autocast knows no meta device
        monkeypatch.setattr(module, "compute_dtype", lambda x: x.dtype)
    if varlen:
        monkeypatch.setattr(attention, "varlen_obstacle", lambda *where: None)
    batch = packed_batch()
    documents = find_documents(batch[2]).to("meta")
    model = build(tiny(head_dim=8)).bfloat16().to("meta")
    model.model.gradient_checkpointing = again
    ids, positions, segments = (t.to("meta") for t in batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Operations() as operations:
            model.hidden(ids, positions, segments, documents=documents).sum().backward()
    assert operations.calls["_varlen_attn"] == (2 * (1 + again) if varlen else 0)
    # and the kernel needs no mask: nothing grows with the square of a row
    assert operations.calls["tril"] == (0 if varlen else 1)
    assert not {"_local_scalar_dense", "nonzero", "aminmax", "unique"} & set(operations.calls)
    with pytest.raises((NotImplementedError, RuntimeError)):
        model.hidden(ids, positions, segments)  # finding the documents is to look


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_on_cuda(groups, dtype):
    segments = packed_batch(4, 333)[2]
    tensors = queries_keys_values(4, 333, 2, groups, Dh=96)
    mask = attention_mask(segments)
    want = values_and_gradients(lambda q, k, v: naive_attention(q, k, v, mask)[0], tensors)
    there = [t.detach().cuda().to(dtype).requires_grad_() for t in tensors]
    why = varlen_obstacle(there[0].device, dtype, 96)
    if why is not None:
        pytest.skip(f"varlen_attn {why}")
    documents = find_documents(segments).to("cuda")
    for m in (documents, documents.mask(4, 333)):
        out = attend(*there, m)
        seed = torch.Generator().manual_seed(9)
        probe = torch.randn(out.shape, generator=seed, dtype=torch.float64).to(out)
        got = out, *torch.autograd.grad((out * probe).sum(), there)
        for ours, theirs in zip(got, want):
            assert (ours.detach().cpu().float() - theirs).norm() < 0.01 * theirs.norm()


# ---- compiled twins, for training only


def compiled(model):
    "Blocks that dynamo traces and nothing compiles; a list that counts the graphs that ran."
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ran = []

    def backend(graph, inputs):
        def run(*args):
            ran.append(1)
            return graph(*args)

        return run

    model.model.compiled = [torch.compile(block, backend=backend) for block in model.model.layers]
    return ran


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("first", ["training", "rollout"])
def test_rollouts_and_evaluation_use_up_no_graph(first):
    model = build(tiny(num_hidden_layers=4))
    ran, ids = compiled(model), torch.randint(3, 61, (4, 20))

    def train():
        before = len(ran)
        model.hidden(ids).sum().backward()
        return len(ran) - before

    def others():
        before = len(ran)
        for prompts in ([[1, 4, 5], [1, 6, 7, 8]], [[1] * 9], [[1, 4, 5, 9, 9]] * 3):
            generate(model, prompts, 12, temperature=0, eos_token_id=())
        cache = model.new_cache(4, 9)
        for part in ids[:, :9].split([5, 1, 3], 1):  # with gradients, that is, by mistake
            model(part, cache=cache)
        with torch.no_grad():
            for T in range(2, 14):
                model(ids[:, :T])
        return len(ran) - before

    if first == "rollout":
        assert others() == 0
    assert [(train(), others()) for _ in range(3)] == [(4, 0)] * 3
    assert graphs() == 1


def test_packed_rows_of_changing_documents_do_not_recompile():
    model = build(tiny())
    ran, seen = compiled(model), []
    for step in range(12):
        ids, positions, segments = packed_batch(4, 24, seed=step)
        segments = segments.clamp(max=1 + step % 5)
        before = len(ran)
        documents = find_documents(segments) if step % 2 else None
        model.hidden(ids, positions, segments, documents=documents).sum().backward()
        seen.append((len(ran) - before, graphs()))
    # once for the first number of documents, once for any other
    assert seen == [(2, 1)] + [(2, 2)] * 11


def test_rows_of_changing_size_compile_thrice():
    "As RL has them: for the first size, for any other length, and for any other number of rows."
    model = build(tiny())
    ran, seen = compiled(model), []
    for step, (B, T) in enumerate([(4, 24), (4, 17), (3, 30), (5, 9), (2, 11), (7, 40), (4, 24)]):
        ids, positions, segments = packed_batch(B, T, seed=step)
        before = len(ran)
        model.hidden(ids, positions, documents=find_documents(segments)).sum().backward()
        seen.append((len(ran) - before, graphs()))
    ran_of, graphs_of = map(list, zip(*seen))
    assert ran_of == [2] * 7 and graphs_of[2:] == [graphs_of[2]] * 5 and graphs_of[2] <= 3


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("changes", [{}, dict(num_experts=3)])
def test_compiled_twins_compute_the_same(again, changes):
    "Values, router logits and gradients, with gradient checkpointing too; the parameters are shared."
    model, (ids, positions, segments) = build(tiny(**changes)), packed_batch()
    model.model.gradient_checkpointing = again

    def run():
        routers = []
        hidden = model.hidden(ids, positions, segments, routers=routers)
        loss = hidden.square().sum() + sum(r.square().sum() for r in routers)
        return hidden, *routers, *torch.autograd.grad(loss, list(model.model.parameters()))

    want, ran = run(), compiled(model)
    for _ in range(3):
        before = len(ran)
        torch.testing.assert_close(run(), want, atol=1e-4, rtol=1e-4)
        assert len(ran) - before >= 2
    assert not any("compiled" in name or "_orig_mod" in name for name in model.state_dict())


varlen_calls: list[int] = []


@torch.library.custom_op("minimind_tests::varlen", mutates_args=())
def varlen_op(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int
) -> torch.Tensor:
    assert longest >= ends.diff().max()
    varlen_calls.append(longest)
    options = dict(window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1])
    return reference_kernel(q, k, v, ends, ends, longest, longest, **options)


varlen_op.register_fake(lambda q, k, v, ends, longest: torch.empty_like(q))
varlen_op.register_autograd(
    lambda ctx, grad: (grad, grad[:, :2], grad[:, :2], None, None),
    setup_context=lambda ctx, inputs, output: None,
)


def test_the_kernel_compiles_once(monkeypatch):
    """As on CUDA: the kernel is one opaque operation, and neither the number of documents nor the
    longest of them is compiled in. Its gradient here is nonsense; only the graphs count."""
    monkeypatch.setattr(
        attention,
        "_kernel",
        lambda q, k, v, ends, _, longest, __, **options: varlen_op(q, k, v, ends, longest),
    )
    monkeypatch.setattr(attention, "attend", attention._attend_varlen)
    model = build(tiny())
    varlen_calls.clear()
    ran, seen = compiled(model), []
    for step in range(16):
        # the last ones of another size
        ids, positions, segments = packed_batch(
            *((4, 24) if step < 10 else (16 - step, 33)), seed=step
        )
        # and rows that are one document, whose longest is another
        segments = torch.ones_like(segments) if step % 3 == 2 else segments
        documents, before = find_documents(segments), len(ran)
        model.hidden(ids, positions, documents=documents).sum().backward()
        seen.append((len(ran) - before, graphs()))
    assert len(varlen_calls) == 2 * 16
    assert {n for n, _ in seen} == {2} and seen[9][1] <= 2 and seen[-1][1] <= 5


def test_the_compiler_is_imported_only_by_its_users():
    "It takes seconds, which a command that only wants to say something would lose."
    code = "import sys, minimind.generate; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_no_compiled_twins(how):
    "They would compute with the original's weights."
    model, ids = build(tiny()), torch.randint(61, (2, 9))
    ran = compiled(model)
    twin = how(model)
    with torch.no_grad():
        twin.model.layers[0].mlp.down_proj.weight.zero_()
    assert twin.model.compiled is None and model.model.compiled is not None
    assert not torch.equal(twin(ids), model(ids)) and len(ran) == 2
    assert twin.state_dict().keys() == model.state_dict().keys()


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cache_is_in_the_dtype_of_the_products(dtype, monkeypatch):
    "Under autocast: else every layer would cast the whole cache, in every step."
    model, ids = build(tiny()).eval(), torch.randint(61, (2, 9))
    met, real = set(), F.scaled_dot_product_attention

    def listen(q, k, v, **options):
        met.add((q.dtype, k.dtype, v.dtype))
        return real(q, k, v, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", listen)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        cache = model.new_cache(2, 12)
        assert cache.k.dtype == cache.v.dtype == dtype
        model(ids, cache=cache)
        with Operations() as operations:
            model(ids[:, :1], cache=cache)
        generate(model, [[1, 2], [3, 4, 5]], 3, temperature=0, eos_token_id=())
    assert met == {(dtype,) * 3}
    assert not any(len(shape) == 4 and 10 in shape for shape in operations.casts)
    assert model.new_cache(1, 4).k.dtype == torch.float32


def test_a_norm_is_rounded_once_for_all_its_products():
    layer, x = Attention(24, 4, 2, 6), torch.randn(2, 7, 24)
    with torch.autocast("cpu", torch.bfloat16), Operations() as operations:
        rounded = layer(x)
    assert operations.casts[2, 7, 24] == 1
    # what three roundings gave, to the last bit
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = (f(x).unflatten(-1, (-1, 6)) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
        q, k = layer.q_norm(q).to(v.dtype), layer.k_norm(k).to(v.dtype)
        assert torch.equal(layer.o_proj(attend(q, k, v).flatten(2)), rounded)
    with Operations() as operations:
        layer(x)
    assert not operations.casts


def test_a_cache_layer_is_its_part_of_the_cache():
    cache = KVCache(3, 2, 5, num_kv_heads=2, head_dim=4)
    k, v = torch.randn(2, 2, 3, 2, 4)
    got_k, got_v = cache.layer(1).update(k, v)
    assert torch.equal(got_k, k) and torch.equal(got_v, v)
    assert torch.equal(cache.k[1, :, :, :3].transpose(1, 2), k)
    assert not cache.k[[0, 2]].any() and not cache.v[[0, 2]].any()
    cache.advance(3)
    got_k, _ = cache.layer(1).update(k[:, :1], v[:, :1])
    assert torch.equal(got_k, torch.cat([k, k[:, :1]], 1))
    with pytest.raises(ValueError, match="max_len=5"):
        cache.layer(0).update(k, v)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_forward_never_waits_for_the_gpu(precision):
    model = build(preset("ci")).cuda()
    ids, positions, segments = (t.cuda() for t in packed_batch(2, 64, vocab=6400))
    documents = find_documents(segments.cpu()).to("cuda")
    dtype = getattr(torch, precision)
    for mode in ("default", "error"):  # the first lays out the tables
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                model.hidden(ids, positions).sum().backward()
                model.hidden(ids, positions, segments, documents=documents).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
