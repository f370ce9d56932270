"""LoRA against PEFT in both directions, merging, several adapters, 8 bits, exact resume, and every
adapter folder that can't be used."""

import json
import re
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from minimind import lora, sft
from minimind.hub import load_model, load_pretrained, read_tensors, save_pretrained, write_tensors
from minimind.core import read_json, sample
from minimind.data import JsonlReader
from minimind.evaluate import is_right
from minimind.generate import generate
from minimind.lora import (
    Adapter,
    LINEAR_LAYERS,
    LoRAConfig,
    LoRALinear,
    apply_lora,
    from_peft_config,
    load_lora,
    lora_adapters,
    lora_layers,
    lora_tensors,
    merge_lora,
    merged_model,
    quantize_base,
    quantize_rows,
    save_lora,
    set_adapter,
    to_peft_config,
    unmerge_lora,
    without_adapters,
)
from minimind.losses import causal_lm_loss, lm_loss
from minimind.model import MiniMind, ModelConfig
from minimind.optim import build_optimizer, parameter_groups
from minimind.tokenizer import Tokenizer
from minimind.log import read_metrics
from shared import COMPARED_SHAPE, kinds

SHAPE = COMPARED_SHAPE | dict(vocab_size=300)
IDS = torch.randint(0, SHAPE["vocab_size"], (2, 30), generator=torch.Generator().manual_seed(0))
exact = dict(rtol=0, atol=1e-5)


def base(qk_norm=True, tied=True, seed=0, **changes):
    torch.manual_seed(seed)
    model = MiniMind(
        ModelConfig(**SHAPE | dict(qk_norm=qk_norm, tie_word_embeddings=tied) | changes)
    ).eval()
    return model


def randomise(model, seed=1):
    "An adapter that has been somewhere: B is no longer zero."
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.05)
    return model


@torch.no_grad()
def logits(model, ids=IDS):
    return getattr(out := model(ids), "logits", out)


def theirs(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def close(a, b):
    torch.testing.assert_close(
        a, b, rtol=0, atol=1e-5 * float(b.abs().max())
    )  # logits of about 10; W + B A rounds otherwise than W x + B A x


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def plain_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "lora_" not in k}


# ---- against PEFT
@kinds
@pytest.mark.parametrize(
    "settings",
    [
        dict(r=4, alpha=16),
        dict(r=8, alpha=8, rslora=True, target_modules=("q_proj", "down_proj")),
        dict(r=1, alpha=3, target_modules=r".*layers\.1\..*proj"),
    ],
    ids=["plain", "rslora", "regex"],
)
def test_peft_opens_our_adapter(tmp_path, qk_norm, tied, settings):
    from peft import PeftModel

    model = base(qk_norm, tied)
    save_pretrained(model, None, tmp_path / "base")
    before = logits(model)
    randomise(apply_lora(model, **settings))
    save_lora(model, tmp_path / "adapter", tmp_path / "base")
    peft = PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(peft), logits(model), **exact)
    assert (logits(model) - before).abs().max() > 0.1, (
        "the adapter must matter, or nothing is compared"
    )
    close(logits(peft.merge_and_unload()), logits(merged_model(model)))


@kinds
@pytest.mark.parametrize(
    "settings",
    [
        dict(r=4, lora_alpha=16),
        dict(r=8, lora_alpha=8, use_rslora=True, lora_dropout=0.2),
        dict(r=3, lora_alpha=6, init_lora_weights="gaussian"),
    ],
    ids=["plain", "rslora", "gaussian"],
)
def test_we_open_their_adapter(tmp_path, qk_norm, tied, settings):
    from peft import LoraConfig, get_peft_model

    save_pretrained(base(qk_norm, tied), None, tmp_path / "base")
    peft = randomise(
        get_peft_model(
            theirs(tmp_path / "base"),
            LoraConfig(
                target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **settings
            ),
        )
    ).eval()
    peft.save_pretrained(tmp_path / "adapter")
    model = load_lora(load_model(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(model), logits(peft), **exact)
    assert not any(m.training for m in model.modules()), (
        "an adapter's dropout must not wake in a model that answers"
    )


@kinds
def test_gradients_are_pefts(tmp_path, qk_norm, tied):
    "The same loss of the same adapter, through our chunked loss and through theirs."
    from peft import PeftModel

    model = base(qk_norm, tied)
    save_pretrained(model, None, tmp_path / "base")
    randomise(apply_lora(model, r=4))
    save_lora(model, tmp_path / "adapter")
    peft = PeftModel.from_pretrained(
        theirs(tmp_path / "base"), tmp_path / "adapter", is_trainable=True
    )
    loss, other = lm_loss(model, IDS, input_ids=IDS), peft(IDS, labels=IDS).loss
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-5)
    loss.backward()
    other.backward()
    their = {
        k.replace(".default", ""): p.grad for k, p in peft.named_parameters() if p.requires_grad
    }
    own = {
        f"base_model.model.{k.replace('.default', '')}": p.grad
        for k, p in model.named_parameters()
        if p.requires_grad
    }
    assert (
        own.keys() == their.keys()
        and all("lora_" in k for k in own)
        and all(g.abs().max() > 0 for g in own.values())
    )
    for k in own:
        torch.testing.assert_close(own[k], their[k], rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for k, p in model.named_parameters() if "lora_" not in k)


def test_both_begin_alike():
    "The first draw: PEFT's range, and an update of zero."
    from peft import LoraConfig, get_peft_model

    ours, other = (
        lora.LoRALinear(nn.Linear(500, 60, bias=False)),
        get_peft_model(
            nn.Sequential(nn.Linear(500, 60, bias=False)), LoraConfig(r=16, target_modules=["0"])
        ),
    )
    ours.add("default", Adapter(r=16))
    A, B = (
        ours.lora_A["default"].weight,
        next(p for n, p in other.named_parameters() if "lora_A" in n),
    )
    torch.testing.assert_close(A.std(), B.std(), rtol=0.05, atol=0)
    assert A.abs().max() <= 500**-0.5 and not ours.lora_B["default"].weight.any()


@pytest.mark.parametrize(
    "scale, changes", [(2.0, {}), (16 / 8**0.5, dict(rslora=True)), (0.5, dict(alpha=4))]
)
def test_scale(scale, changes):
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    spec = Adapter(**dict(r=8, alpha=16) | changes)
    other = Linear(
        nn.Linear(4, 4),
        "default",
        config=LoraConfig(r=8, lora_alpha=spec.alpha, use_rslora=spec.rslora),
        r=8,
        lora_alpha=spec.alpha,
    )
    assert spec.scale == pytest.approx(scale) == other.scaling["default"]


# ---- what must be true
@kinds
def test_merging(tmp_path, qk_norm, tied):
    model = base(qk_norm, tied)
    bare, state = logits(model), plain_state(model)
    apply_lora(model, r=4)
    assert torch.equal(logits(model), bare), "B = 0: a new adapter changes nothing"
    tuned = logits(randomise(model))
    plain = merged_model(model)
    assert same({k: v.clone() for k, v in plain_state(model).items()}, state), (
        "merged_model leaves the model alone"
    )
    assert (
        torch.equal(logits(model), tuned)
        and not lora_adapters(plain)
        and not [k for k in plain.state_dict() if "lora_" in k]
    )
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied and all(
        p.requires_grad for p in plain.parameters()
    )
    merge_lora(model)
    close(logits(model), tuned)
    close(logits(plain), tuned)
    assert torch.equal(logits(merged_model(model)), logits(model)), (
        "what is merged already is not added again"
    )
    for refused in (
        merge_lora,
        lambda m: set_adapter(m, None),
        lambda m: apply_lora(m, adapter="more"),
        quantize_base,
        lambda m: without_adapters(m).__enter__(),
    ):
        with pytest.raises(ValueError, match="'default' is merged into the weights"):
            refused(model)
    close(logits(model), tuned)
    unmerge_lora(model)
    close(logits(model), tuned)
    for k, v in plain_state(model).items():
        torch.testing.assert_close(v, state[k], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no adapter is merged"):
        unmerge_lora(model)
    save_pretrained(plain, None, tmp_path)
    torch.testing.assert_close(logits(theirs(tmp_path)), tuned, rtol=0, atol=1e-4)


def test_several_adapters():
    model, tuned = base(), {}
    bare = logits(model)
    for i, name in enumerate(("ward", "persona", "small")):
        apply_lora(
            model,
            r=2 + i,
            adapter=name,
            target_modules=("q_proj",) if name == "small" else LINEAR_LAYERS,
        )
        torch.manual_seed(i)
        for n, p in model.named_parameters():
            if f"lora_B.{name}." in n:
                nn.init.normal_(p, std=0.05)
        tuned[name] = logits(model)
    assert {n: a.r for n, a in lora_adapters(model).items()} == {
        "ward": 2,
        "persona": 3,
        "small": 4,
    }
    for name in (*tuned, None, *reversed(tuned)):
        set_adapter(model, name)
        assert torch.equal(logits(model), bare if name is None else tuned[name])
        assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == (
            {name} if name else set()
        )
    with without_adapters(model):
        assert torch.equal(logits(model), bare)
    assert torch.equal(logits(model), tuned["ward"])
    with pytest.raises(RuntimeError), without_adapters(model):
        raise RuntimeError
    assert torch.equal(logits(model), tuned["ward"]), "also after an error"
    set_adapter(model, "persona")
    merge_lora(model)
    close(logits(model), tuned["persona"])
    unmerge_lora(model)
    set_adapter(model, "small")
    merge_lora(model)
    unmerge_lora(model)
    set_adapter(model, "ward")
    close(logits(model), tuned["ward"])
    with pytest.raises(ValueError, match="no adapter 'cook'; there are ward, persona, small"):
        set_adapter(model, "cook")


def test_only_adapters_are_trained():
    model = base()
    before, total = plain_state(model), sum(p.numel() for p in model.parameters())
    apply_lora(model, r=2, dropout=0.1).train()
    assert {n: p for n, p in model.named_parameters() if "lora_" not in n and p.requires_grad} == {}
    groups = parameter_groups(model)
    assert (
        not groups["matrices"]
        and not groups["vectors"]
        and all("lora_" in n for n in groups["tables"])
    )
    # also when Muon is asked for: the factors of an update are no hidden matrices
    optimizers = build_optimizer(model, "muon", lr=1e-2)
    for _ in range(3):
        causal_lm_loss(model, dict(input_ids=IDS, labels=IDS))[0].backward()
        optimizers.step()
        optimizers.zero_grad()
    state = optimizers.state_tensors()
    assert (
        state
        and all("lora_" in k for k in state)
        and sum(v.numel() for v in state.values()) < total
    )
    assert same(plain_state(model), before), "not a bit of the base may move"
    assert all(m.lora_B["default"].weight.any() for m in lora_layers(model).values())


def test_generation_with_a_cache():
    model = randomise(apply_lora(base(), r=4))
    assert generate(model, IDS[0].tolist(), 16, temperature=0) == generate(
        merged_model(model), IDS[0].tolist(), 16, temperature=0
    )


def test_dropout_is_on_the_adapter_only():
    layer = LoRALinear(nn.Linear(64, 32).requires_grad_(False))
    layer.add("default", Adapter(dropout=0.5))
    layer.active = "default"
    x = torch.randn(5, 64)
    assert torch.equal(layer(x), layer(x)), "B = 0, and the base's input is whole"
    nn.init.normal_(layer.lora_B["default"].weight)
    assert not torch.equal(layer(x), layer(x)) and torch.equal(layer.eval()(x), layer(x))


# ---- 8 bits
@given(st.integers(1, 40), st.integers(1, 40), st.floats(-4, 4), st.integers(0, 100))
def test_rounding_is_bounded(rows, columns, size, seed):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10**size
    w[0] = 0
    q, scale = quantize_rows(w)
    assert q.dtype == torch.int8 and scale.shape == (rows,)
    assert (
        bool(((w - q * scale[:, None]).abs() <= scale[:, None] * (0.5 + 1e-4)).all())
        and not q[0].any()
    )


@kinds
def test_int8_base(tmp_path, qk_norm, tied):
    model = base(qk_norm, tied)
    embedding = model.model.embed_tokens.weight.clone()
    randomise(apply_lora(model, r=4))
    fine = logits(model)
    quantize_base(model)
    rounded = logits(model)
    assert 0 < (rounded - fine).norm() < 0.05 * fine.norm()
    assert all(
        m.weight is None and m.weight_int8.dtype == torch.int8 for m in lora_layers(model).values()
    ) and torch.equal(model.model.embed_tokens.weight, embedding)
    # again: there is nothing left to do
    quantize_base(model)
    plain = merged_model(model)
    torch.testing.assert_close(logits(plain), rounded, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="8 bits"):
        merge_lora(model)
    # the gradient of the input is that of the rounded weight
    x = torch.randn(3, 48, requires_grad=True)
    layer = next(iter(lora_layers(model).values()))
    layer.active = None
    layer(x).square().sum().backward()
    w = layer.weight_int8 * layer.weight_scale[:, None]
    off = (layer(x) - x @ base(qk_norm, tied).model.layers[0].self_attn.q_proj.weight.T).abs()
    assert bool((off <= layer.weight_scale / 2 * x.abs().sum(1, keepdim=True) + 1e-4).all()), (
        "half a step in each weight, at most"
    )
    torch.testing.assert_close(x.grad, 2 * (x @ w.T) @ w, rtol=1e-4, atol=1e-4)
    set_adapter(model, "default")
    save_lora(model, tmp_path)
    assert same(
        read_tensors(tmp_path / "adapter_model.safetensors"),
        {k: v.detach() for k, v in lora_tensors(model).items()},
    )
    apply_lora(model, r=2, adapter="second")
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"second"}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(logits(model)).all()


# ---- refused
@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(r=0), "r=0: the rank"),
        (dict(r=2.5), "whole number"),
        (dict(alpha=0), "alpha=0"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(target_modules=()), "is empty"),
        (dict(target_modules="("), "no regular expression"),
        (
            dict(target_modules=("q_proj", "q_porj")),
            "called 'q_porj'; there are down_proj, gate_proj, k_proj",
        ),
        (dict(target_modules="q_proj"), "called 'q_proj'"),
        (dict(target_modules=("lm_head",)), "lm_head, which can't have an adapter"),
        (dict(target_modules=("embed_tokens",)), "embed_tokens, which can't"),
        (dict(target_modules=".*"), "can't have an adapter"),
        (dict(adapter="a.b"), "adapter='a.b'"),
        (dict(adapter="keys"), "adapter='keys'"),
        (dict(adapter=""), "letters, digits"),
    ],
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_apply_refuses(tied, settings, message):
    model = base(tied=tied)
    with pytest.raises(ValueError, match=re.escape(message)):
        apply_lora(model, **settings)
    assert not lora_adapters(model) and all(p.requires_grad for p in model.parameters())
    apply_lora(model)
    with pytest.raises(ValueError, match="'default' already"):
        apply_lora(model)


def test_experts_have_no_linear_layer():
    for config in (
        dict(num_experts=4),
        dict(
            qk_norm=False,
            head_dim=12,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            shared_expert_intermediate_size=72,
        ),
    ):
        model = base(**config)
        with pytest.raises(
            ValueError,
            match="'gate_proj'; there are k_proj, o_proj, q_proj, v_proj; the experts' matrices "
            "are stacks",
        ):
            apply_lora(model)
        apply_lora(model, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
        assert len(lora_layers(model)) == 8


def test_peft_opens_an_adapter_of_a_mixture(tmp_path):
    from peft import PeftModel

    model = base(num_experts=4)
    save_pretrained(model, None, tmp_path / "base")
    randomise(apply_lora(model, target_modules=("q_proj", "o_proj")))
    save_lora(model, tmp_path / "adapter")
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "adapter").eval()),
        logits(model),
        **exact,
    )


def test_one_matrix_in_two_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="0.weight and 1.weight are one matrix"):
        apply_lora(model, target_modules=("1",))


def test_without_an_adapter():
    for f in (
        merge_lora,
        unmerge_lora,
        merged_model,
        quantize_base,
        lambda m: set_adapter(m, None),
        lambda m: save_lora(m, "nowhere"),
        lambda m: without_adapters(m).__enter__(),
    ):
        with pytest.raises(ValueError, match="the model has no adapter"):
            f(base())


FEATURES = [
    ("use_dora", True),
    ("bias", "all"),
    ("modules_to_save", ["lm_head"]),
    ("fan_in_fan_out", True),
    ("rank_pattern", {"q_proj": 2}),
    ("alpha_pattern", {"q_proj": 2}),
    ("layers_to_transform", [0]),
    ("init_lora_weights", "pissa"),
    ("lora_bias", True),
    ("target_parameters", ["x"]),
    ("peft_type", "IA3"),
    ("r", 0),
    ("target_modules", "("),
    ("lora_alpha", "much"),
    ("exclude_modules", ["x"]),
    ("invented", 3),
]


@pytest.fixture
def folder(tmp_path):
    save_lora(randomise(apply_lora(base(), r=4)), tmp_path, "runs/base")
    return tmp_path


@pytest.mark.parametrize("key, value", FEATURES, ids=[f[0] for f in FEATURES])
def test_features_of_peft_that_we_do_not_compute(folder, key, value):
    d = read_json(folder / "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps(d | {key: value}))
    model = base()
    with pytest.raises(ValueError, match=rf"adapter_config.json: .*({key}|alpha=)"):
        load_lora(model, folder)
    assert not lora_adapters(model)


def test_weights_that_do_not_fit(folder):
    file, want = (
        folder / "adapter_model.safetensors",
        read_tensors(folder / "adapter_model.safetensors"),
    )
    first = min(want)

    def refused(tensors, message, model=None):
        if tensors is not None:
            write_tensors(file, tensors)
        model = model or base()
        with pytest.raises(ValueError, match=message):
            load_lora(model, folder)
        assert not lora_adapters(model)

    refused({k: v for k, v in want.items() if k != first}, f"missing {first}")
    refused(
        want | {"base_model.model.lm_head.lora_A.weight": want[first].clone()},
        "unknown base_model.model.lm_head",
    )
    refused(want | {first: want[first][:1].clone()}, rf"{first} is \(1, 80\), wanted \(4, 80\)")
    # another r
    refused(
        {k: torch.cat([v, v], 0 if "lora_A" in k else 1) for k, v in want.items()},
        r"is \(8, 48\), wanted \(4, 48\)",
    )
    refused(want, r"wanted \(4, 72\)", base(intermediate_size=72))
    refused(None, "missing .*layers.2", base(num_hidden_layers=3))
    file.write_bytes(file.read_bytes()[:-9])
    refused(None, "damaged or cut off")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_lora(base(), folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(FileNotFoundError, match="a pickle can run any code"):
        load_lora(base(), folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_lora(base(), folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="is not an adapter folder"):
        load_lora(base(), folder)


def test_round_trip(tmp_path):
    spec = dict(r=3, alpha=5.0, target_modules=("o_proj", "up_proj"), dropout=0.25, rslora=True)
    model = randomise(apply_lora(base(), **spec, adapter="mine"))
    save_lora(model, tmp_path, "runs/base")
    again = load_lora(base(), tmp_path, "yours")
    assert lora_adapters(again) == {"yours": Adapter(**spec)} and torch.equal(
        logits(again), logits(model)
    )
    assert read_json(tmp_path / "adapter_config.json")["base_model_name_or_path"] == "runs/base"
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    assert from_peft_config(json.loads(json.dumps(to_peft_config(Adapter(**spec), "")))) == Adapter(
        **spec
    )


def test_an_adapter_on_another_base_warns(tmp_path):
    "Of the same shape it would load without complaint; the base's own files are not needed for it."

    def said(model, folder=tmp_path):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_lora(model, folder)
        assert lora_adapters(model)
        return [str(w.message) for w in caught]

    save_lora(randomise(apply_lora(base(), r=2)), tmp_path, "runs/base")
    assert said(base()) == []
    [message] = said(base(seed=1))
    assert (
        "was trained on other weights than these, those of runs/base" in message
        and "its answers will be off" in message
    )
    replaced = base()
    replaced.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1e-3
    assert said(replaced)
    # what the base was before is what counts
    for change in (quantize_base, merge_lora, lambda m: apply_lora(m, adapter="second")):
        save_lora(
            change(randomise(apply_lora(base(), r=2))), tmp_path / "changed", "runs/base", "default"
        )
        assert said(base(), tmp_path / "changed") == []
    second = load_lora(base(), tmp_path)
    # beside another adapter
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_lora(second, tmp_path, "again")
    assert said(merged_model(second)), "a model with an adapter in its weights is another base"
    (tmp_path / "base.json").unlink()
    assert said(base(seed=1)) == [], "PEFT's folders say nothing about their base"


# ---- the stage
@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("lora")
    rows = [row for _, row in JsonlReader(sample("lora_ward.jsonl"))][:40]
    (world / "ward.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows[:32]), encoding="utf-8"
    )
    (world / "exam.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows[32:]), encoding="utf-8"
    )
    tokenizer = Tokenizer.train((m["content"] for r in rows for m in r["conversations"]), 400)
    torch.manual_seed(0)
    save_pretrained(
        MiniMind(ModelConfig(**SHAPE | dict(vocab_size=tokenizer.vocab_size))),
        tokenizer,
        world / "base",
    )
    return world


def config(world, out, **changes):
    return LoRAConfig(
        **dict(
            out=str(out),
            init=str(world / "base"),
            data=world / "ward.jsonl",
            heldout=world / "exam.jsonl",
            r=4,
            dropout=0.1,
            steps=8,
            seq_len=96,
            batch_size=8,
            micro_batch_size=4,
            lr=2e-2,
            warmup=1,
            log_every=2,
            save_every=2,
            eval_rows=4,
            device="cpu",
        )
        | changes
    )


def test_a_run_leaves_a_peft_folder_and_the_base_as_it_was(world, tmp_path):
    from peft import AutoPeftModelForCausalLM

    before = {f.name: f.read_bytes() for f in (world / "base").iterdir()}
    last = lora.run(config(world, tmp_path / "run"))
    losses = [m["loss"] for m in read_metrics(tmp_path / "run") if "loss" in m]
    assert losses[-1] < losses[0] and last["heldout_loss"] > 0 and 0 <= last["exact_match"] <= 1
    assert {f.name: f.read_bytes() for f in (world / "base").iterdir()} == before
    assert sorted(f.name for f in (tmp_path / "run").glob("*.*") if not f.name.startswith(".")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "metrics.jsonl",
    ]
    for step in (tmp_path / "run" / "trainer").iterdir():
        weights, optimizer = (
            read_tensors(step / "adapter_model.safetensors"),
            read_tensors(step / "optimizer.safetensors"),
        )
        assert all("lora_" in k for k in (*weights, *optimizer)) and sorted(
            f.name for f in step.iterdir()
        ) == [
            "adapter_model.safetensors",
            "optimizer.safetensors",
            "random.safetensors",
            "state.json",
        ]
    model, tokenizer = load_pretrained(world / "base")
    ids = torch.randint(0, tokenizer.vocab_size, (2, 20))
    bare = logits(model, ids)
    tuned = logits(load_lora(model, tmp_path / "run"), ids)
    assert (tuned - bare).abs().max() > 0.01
    torch.testing.assert_close(
        logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run").eval(), ids),
        tuned,
        **exact,
    )


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_resume_is_exact(world, tmp_path, monkeypatch, int8):
    "Stopped in the middle of a step, with dropout drawing random numbers all along."
    last = lora.run(config(world, tmp_path / "whole", int8=int8))
    calls = [0]

    def stops(*args):
        calls[0] += 1
        # in step 6; the last checkpoint is of step 4
        if calls[0] == 12:
            raise KeyboardInterrupt
        return causal_lm_loss(*args)

    monkeypatch.setattr(sft, "causal_lm_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        lora.run(config(world, tmp_path / "cut", int8=int8))
    monkeypatch.setattr(sft, "causal_lm_loss", causal_lm_loss)
    assert (
        0 < len(list((tmp_path / "cut" / "trainer").iterdir()))
        and "heldout_loss" not in read_metrics(tmp_path / "cut")[-1]
    )
    torch.manual_seed(99)
    again = lora.run(config(world, tmp_path / "cut", int8=int8))
    for name in ("adapter_model", "optimizer", "random"):
        file = f"trainer/step-00000008/{name}.safetensors"
        assert same(
            read_tensors(tmp_path / "whole" / file), read_tensors(tmp_path / "cut" / file)
        ), name
    assert {k: v for k, v in again.items() if "second" not in k} == {
        k: v for k, v in last.items() if "second" not in k
    }
    other = replace(config(world, tmp_path / "other", int8=int8), dropout=0.0)
    lora.run(other)
    assert not same(
        read_tensors(tmp_path / "other" / "adapter_model.safetensors"),
        read_tensors(tmp_path / "cut" / "adapter_model.safetensors"),
    ), "dropout must have an effect, or nothing was tested"


def test_a_resume_with_other_settings_is_refused(world, tmp_path):
    lora.run(config(world, tmp_path, steps=2))
    for changes, message in (
        (dict(r=2), "r was 4, is 2"),
        (dict(alpha=3.0), "alpha was 16.0"),
        (dict(target_modules=("q_proj",)), "target_modules was"),
        (dict(int8=True), "int8 was False"),
    ):
        with pytest.raises(ValueError, match=message):
            lora.run(
                config(world, tmp_path, steps=2)
                if not changes
                else replace(config(world, tmp_path, steps=2), **changes)
            )


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(r=0), "r=0"),
        (dict(dropout=1.5), "dropout=1.5"),
        (dict(target_modules=()), "is empty"),
        (dict(optimizer="muon"), "optimizer='muon' would have no effect"),
        (dict(muon_lr=0.5), "muon_lr=0.5 would have no effect"),
    ],
)
def test_a_config_that_cannot_be_is_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**changes)


def test_a_dry_run_counts_the_adapter(world, tmp_path, capsys):
    lora.run(config(world, tmp_path / "dry", target_modules="q_proj"), dry_run=True)
    assert (
        f"{2 * 4 * (48 + 64):,} of them trained" in capsys.readouterr().out
        and not (tmp_path / "dry").exists()
    )


# ---- the data
def rows(name):
    return [row for _, row in JsonlReader(sample(name))]


def test_no_held_out_problem_is_trained_on():
    "Neither on the ward nor in the skills that the base model was tuned on, whatever the words."
    train, held = rows("lora_ward.jsonl"), rows("lora_ward_heldout.jsonl")
    assert len(train) == 540 and len(held) == 120
    problems = {r["problem"] for r in held}
    assert not problems & {r["problem"] for r in train + rows("sft_skills.jsonl")}
    for r in train + held:
        operation, *numbers = r["problem"].split()
        a, b = map(int, numbers)
        assert r["answer"] == str(a + b if operation == "add" else a - b) and is_right(
            r["conversations"][1]["content"], r["answer"]
        )
        assert all(n in r["conversations"][0]["content"] for n in numbers)
    asked = {r["conversations"][0]["content"] for r in rows("lora_identity.jsonl")}
    assert not asked & {
        r["conversations"][0]["content"] for r in rows("lora_identity_heldout.jsonl")
    }
