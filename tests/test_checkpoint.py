"Model folders against transformers, exact resume, and every way a folder or a disk can be broken."

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minimind import checkpoint
from minimind.chat import encode_chat
from minimind.checkpoint import (
    Checkpointer,
    ModelFolder,
    SettingsChanged,
    checkpoint_bytes,
    checkpoints,
    refuse_changes,
    run_lock,
)
from minimind.stage import StageConfig, check_start, run_stage
from minimind.hub import (
    from_hf_config,
    load_config,
    load_model,
    load_pretrained,
    model_tensors,
    read_tensors,
    save_pretrained,
    to_hf_config,
    write_tensors,
)
from minimind.core import Stateful, atomic_path, read_json, sample, write_json
from minimind.data import Batches
from minimind.generate import generate
from minimind.losses import causal_lm_loss
from minimind.model import MiniMind, ModelConfig, stretch
from minimind.optim import build_optimizer
from minimind.tokenizer import Tokenizer
from minimind.train import fit
from minimind.log import read_metrics
from shared import COMPARED_SHAPE as SHAPE
from shared import kinds


@pytest.fixture(scope="module")
def tokenizer():
    lines = sample("pretrain_en.jsonl").read_text(encoding="utf-8").splitlines()[:150]
    return Tokenizer.train((json.loads(l)["text"] for l in lines), 500)


def model_of(tokenizer, qk_norm=True, tied=True, seed=0, **changes):
    torch.manual_seed(seed)
    model = MiniMind(
        ModelConfig(
            **SHAPE
            | dict(vocab_size=tokenizer.vocab_size, qk_norm=qk_norm, tie_word_embeddings=tied)
            | changes
        )
    )
    for name, p in model.named_parameters():
        # norm gains that a loader could not get right by default
        if p.ndim == 1:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    return model.eval()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def complaints(caplog):
    "What transformers says while a folder is loaded: nothing."
    from transformers.utils import logging

    logger = logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in caught] + [r.getMessage() for r in caplog.records]
    logger.removeHandler(caplog.handler)


# ---- Hugging Face folders
@kinds
def test_transformers_opens_our_folder(tmp_path, tokenizer, complaints, qk_norm, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = model_of(tokenizer, qk_norm, tied)
    save_pretrained(model, tokenizer, tmp_path)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert not any(info.values()) and complaints() == []
    assert (
        type(theirs).__name__ == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
        and theirs.dtype == torch.float32
    )
    ids = torch.randint(
        0, tokenizer.vocab_size, (2, 30), generator=torch.Generator().manual_seed(0)
    )
    # logits of about 10; float32 in another order
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-4)
    ours = generate(model, ids[0].tolist(), 24, temperature=0)
    assert theirs.generate(ids[:1], max_new_tokens=24, do_sample=False)[0, 30:].tolist() == ours
    assert [
        their_tokenizer.pad_token_id,
        their_tokenizer.bos_token_id,
        their_tokenizer.eos_token_id,
    ] == [0, 1, 2]
    for text in ("Hello, world!  3+4 = 7\n", "你好 👋 <think>"):
        assert their_tokenizer.encode(text, add_special_tokens=True) == tokenizer.encode(
            text, allow_special=True
        )
        assert their_tokenizer.decode(tokenizer.encode(text)) == text
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "3 + 4 ?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "你好"},
    ]
    for options in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        theirs_ids = their_tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, **options
        )["input_ids"]
        assert (
            theirs_ids
            == encode_chat(
                tokenizer,
                messages,
                thinking=options.get("enable_thinking"),
                add_generation_prompt=True,
            )[0]
        )


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shards", ["5GB", "30KB"])
def test_we_open_their_folder(tmp_path, tokenizer, qk_norm, tied, dtype, shards):
    import transformers

    own = model_of(tokenizer, qk_norm, tied).config
    settings = to_hf_config(own)
    kind = transformers.Qwen3Config if qk_norm else transformers.LlamaConfig
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(
        kind(
            **{
                k: settings[k]
                for k in (
                    *SHAPE,
                    "vocab_size",
                    "tie_word_embeddings",
                    "rms_norm_eps",
                    "max_position_embeddings",
                    "rope_parameters",
                )
            }
        )
    ).to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "30KB")
    # `.float()` would keep rotary tables rounded to 8 bits
    if dtype != torch.float32:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_model(tmp_path)
    assert replace(ours.config, pad_token_id=0, bos_token_id=1, eos_token_id=2) == own
    ids = torch.randint(0, tokenizer.vocab_size, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)


@kinds
def test_round_trip(tmp_path, tokenizer, qk_norm, tied):
    model = model_of(
        tokenizer, qk_norm, tied, rope_theta=5e5, max_position_embeddings=777, rms_norm_eps=3e-5
    )
    save_pretrained(model, tokenizer, tmp_path)
    again, tok = load_pretrained(tmp_path)
    assert (
        again.config == model.config
        and same(again.state_dict(), model.state_dict())
        and not again.training
    )
    assert (
        tok.fingerprint == tokenizer.fingerprint
        and (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    )
    assert ("lm_head.weight" in read_tensors(tmp_path / "model.safetensors")) == (not tied)
    assert {oct(f.stat().st_mode & 0o777) for f in tmp_path.iterdir()} == {"0o644"}, (
        "others may read a model"
    )


MIXTURES = {
    "Qwen3Moe-top1": dict(num_experts=4),
    "Qwen3Moe-top2": dict(
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        moe_intermediate_size=56,
        tied=False,
    ),
    "GraniteMoeShared": dict(
        qk_norm=False,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        shared_expert_intermediate_size=72,
        head_dim=12,
    ),
    "Qwen3Moe-yarn": dict(
        num_experts=3,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        max_position_embeddings=64,
    ),
    "Qwen3-yarn": dict(
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 16.0,
            "attention_factor": 1.0,
        },
        max_position_embeddings=64,
    ),
    "Llama-linear": dict(qk_norm=False, rope_scaling={"rope_type": "linear", "factor": 2.0}),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_scaled_rope_both_ways(tmp_path, tokenizer, complaints, name):
    """Their class opens our folder and says nothing; we open theirs, whole and in shards, and get
    every weight back."""
    from transformers import AutoModelForCausalLM

    model = model_of(tokenizer, **MIXTURES[name])
    save_pretrained(model, tokenizer, tmp_path / "ours")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert (
        not any(info.values())
        and complaints() == []
        and type(theirs).__name__ == f"{name.split('-')[0]}ForCausalLM"
    )
    # no padding tokens: `generate` would take them for padding
    ids = torch.randint(3, tokenizer.vocab_size, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-4)
    assert theirs.generate(ids[:1, :20], max_new_tokens=12, do_sample=False)[
        0, 20:
    ].tolist() == generate(model, ids[0, :20].tolist(), 12, temperature=0)
    for size in ("5GB", "40KB"):
        theirs.save_pretrained(tmp_path / size, max_shard_size=size)
        again = load_model(tmp_path / size)
        assert again.config == model.config and same(again.state_dict(), model.state_dict())


def test_yarn_switched_on_by_hand(tmp_path, tokenizer):
    """A `rope_scaling` written into a finished folder's config.json, as people do, means to us what
    it means to transformers."""
    from transformers import AutoModelForCausalLM

    save_pretrained(model_of(tokenizer, max_position_embeddings=64), tokenizer, tmp_path)
    write_json(
        tmp_path / "config.json",
        read_json(tmp_path / "config.json")
        | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    )
    ours, ids = load_model(tmp_path), torch.randint(0, tokenizer.vocab_size, (1, 50))
    assert ours.config.rope_scaling["rope_type"] == "yarn"
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, ours(ids), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize(
    "changes",
    [
        dict(num_experts=2, shared_expert_intermediate_size=8),
        dict(qk_norm=False, num_experts=2),
        dict(qk_norm=False, num_experts=2, num_experts_per_tok=2, norm_topk_prob=True, head_dim=16),
    ],
)
def test_a_mixture_that_could_not_be_saved_is_not_trained(tmp_path, tokenizer, changes):
    model = model_of(tokenizer, **changes)
    with pytest.raises(ValueError, match="no architecture of Hugging Face"):
        run_stage(settings(tmp_path), model, tokenizer, Rows(tokenizer.vocab_size), causal_lm_loss)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_position_of_experts_is_checked(tmp_path, tokenizer):
    model = model_of(tokenizer, num_experts=2)
    save_pretrained(model, None, tmp_path)
    damage(tmp_path, lambda t: t.pop("model.layers.1.mlp.experts.1.up_proj.weight"))
    with pytest.raises(
        ValueError, match="missing weights model.layers.1.mlp.experts.1.up_proj.weight"
    ):
        load_model(tmp_path)


def test_a_stretched_model_is_loaded_from_the_same_folder(tmp_path, tokenizer):
    save_pretrained(model_of(tokenizer, max_position_embeddings=32), tokenizer, tmp_path)
    longer, _ = load_pretrained(tmp_path, config=stretch(load_config(tmp_path), "yarn", 4))
    with torch.no_grad():
        longer(torch.zeros(1, 128, dtype=torch.long))


# ---- starts that are refused
def test_a_finished_model_without_a_run_is_not_overwritten(tmp_path, tokenizer):
    save_pretrained(model_of(tokenizer), tokenizer, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a model, but no run"):
        train(tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before and not (
        tmp_path / "trainer"
    ).exists()
    assert train(tokenizer, tmp_path, fresh=True)[0]["step"] == 6


def test_a_changed_shape_is_noticed(tmp_path, tokenizer):
    "A config.json edited between start and resume, or a preset that an upgrade changed."
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, tmp_path, loss_fn=stops_after(5))
    other = model_of(tokenizer, rope_theta=1e4).train()
    with pytest.raises(SettingsChanged, match="config was"):
        run_stage(settings(tmp_path), other, tokenizer, Rows(tokenizer.vocab_size), causal_lm_loss)


def test_where_nothing_can_be_locked_it_warns(tmp_path, monkeypatch):
    import filelock

    def no_locks(self, *args, **kw):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    with pytest.warns(UserWarning, match="can't be locked"), run_lock(tmp_path):
        pass


def test_names_of_files_are_no_names_for_parts(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="random"):
        Checkpointer(ModelFolder(model_of(tokenizer), None), {"random": None}, settings(tmp_path))


@pytest.mark.parametrize(
    "extra",
    [
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}},
        {"pad_token_id": None},
    ],
)
def test_keys_of_published_models(extra):
    d = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 300,
    }
    c = from_hf_config(d | extra)
    assert (c.pad_token_id, c.bos_token_id, c.eos_token_id) == (None, None, None) and to_hf_config(
        c
    )["eos_token_id"] is None
    with pytest.raises(ValueError, match="'llama3'.*not computed here"):
        from_hf_config(d | {"rope_scaling": {"rope_type": "llama3", "factor": 32.0}})
    yarn = from_hf_config(
        d
        | {
            "max_position_embeddings": 40960,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        }
    )
    assert yarn.max_position_embeddings == 131072


def test_one_process_at_a_time(tmp_path):
    with run_lock(tmp_path):
        with pytest.raises(ValueError, match="another process is training"):
            with run_lock(tmp_path):
                pass
        code = f"from minimind.checkpoint import run_lock\nwith run_lock({str(tmp_path)!r}): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is training" in done.stderr
    with run_lock(tmp_path):
        pass


def test_files_that_were_moved_are_told_by_their_content(tmp_path):
    was, now = (
        {"data": ["/nowhere/a.jsonl"], "lr": 1.0},
        {"data": [str(tmp_path / "a.jsonl")], "lr": 1.0},
    )
    refuse_changes("run", was, now, settings(tmp_path))
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(SettingsChanged, match="data was"):
        refuse_changes(
            "run",
            {"data": [str(tmp_path / "b.jsonl")], "lr": 1.0},
            now,
            settings(tmp_path),
        )


def made(run, step):
    (run / "trainer" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(
    "then, now, says",
    [
        (dict(epochs=2.0), dict(epochs=5.0), ""),
        (dict(steps=20), dict(steps=50), ""),
        (dict(steps=20), dict(epochs=9.0), ""),
        # a stretch that is planned shorter, but not than what was made
        (dict(steps=40), dict(steps=20), ""),
        (dict(steps=40), dict(steps=19), "It can be given more steps than it has made"),
        # a warm-up that was cut to a fifth must stay as it was
        (dict(steps=20, warmup=30), dict(steps=50, warmup=30), "with --warmup 4 as it had"),
        (dict(steps=20, warmup=30), dict(steps=50, warmup=4), ""),
        (dict(steps=20, warmup=3), dict(steps=50, warmup=3), ""),
        (dict(steps=20, warmup=3), dict(steps=20, warmup=2), "Use the same settings"),
        (dict(steps=20), dict(steps=50, lr=0.5), "Use the same settings"),
        # what falls towards its end can't have another end
        (dict(steps=20, schedule="cosine"), dict(steps=50, schedule="cosine"), "--init .*a --out"),
        (dict(epochs=2.0, schedule="linear"), dict(epochs=3.0, schedule="linear"), "--init .*a"),
    ],
)
def test_a_finished_run_can_be_longer_where_its_past_would_be_the_same(tmp_path, then, now, says):
    run, usual = tmp_path / "a", dict(steps=0, epochs=1.0, warmup=0, schedule="constant")
    made(run, 20)
    was, cfg = (settings(run, **usual | changes) for changes in (then, now))
    before, after = (checkpoint.run_settings(c, steps_per_epoch=10) for c in (was, cfg))
    if says:
        with pytest.raises(SettingsChanged, match=says):
            refuse_changes(run, before, after, cfg)
    else:
        refuse_changes(run, before, after, cfg)
        assert checkpoint.run_total(after) >= 20


def test_another_numpy_counts_only_if_it_draws_another_order(tmp_path):
    cfg = settings(tmp_path)
    now = checkpoint.run_settings(cfg)
    order, version = now["numpy_order"].split(" ", 1)
    assert version == f"(numpy {np.__version__})"
    refuse_changes("run", now | {"numpy_order": f"{order} (numpy 1.26.4)"}, now, cfg)
    with pytest.raises(SettingsChanged, match="numpy_order was 'f00 .numpy 1.26.4.', is '"):
        refuse_changes("run", now | {"numpy_order": "f00 (numpy 1.26.4)"}, now, cfg)
    # an older run, which did not remember it, goes on
    refuse_changes("run", {k: v for k, v in now.items() if k != "numpy_order"}, now, cfg)


def test_the_order_of_the_data_is_what_is_remembered(monkeypatch):
    "If numpy drew other permutations, the digest would be another one."
    was = checkpoint.numpy_order()

    class Other:
        def __init__(self, seed):
            self.drawn = np.random.Generator(np.random.MT19937(0))

        def __getattr__(self, name):
            return getattr(self.drawn, name)

    monkeypatch.setattr(np.random, "default_rng", Other)
    assert checkpoint.numpy_order().split()[0] != was.split()[0]


def test_a_fingerprint_of_an_older_version_does_not_stop_a_run(tmp_path):
    cfg, now = settings(tmp_path), {"tokenizer_fingerprint": "v2:" + "a" * 64}
    refuse_changes("run", {"tokenizer_fingerprint": "b" * 64}, now, cfg)
    with pytest.raises(SettingsChanged, match="tokenizer_fingerprint was 'v2:bbbbbbbb…', is"):
        refuse_changes("run", {"tokenizer_fingerprint": "v2:" + "b" * 64}, now, cfg)
    with pytest.raises(SettingsChanged, match="tokenizer_fingerprint was"):
        refuse_changes("run", {"tokenizer_fingerprint": "v2:" + "b" * 64}, {}, cfg)


def test_more_end_tokens_than_an_older_version_kept_are_the_same_model(tmp_path):
    cfg, shape = settings(tmp_path), {"hidden_size": 8, "eos_token_id": 2}
    refuse_changes("run", {"config": shape}, {"config": shape | {"eos_token_id": [2, 7]}}, cfg)
    for other in ({"eos_token_id": [3, 7]}, {"eos_token_id": [2, 7], "hidden_size": 9}):
        with pytest.raises(SettingsChanged, match="config was"):
            refuse_changes("run", {"config": shape}, {"config": shape | other}, cfg)


def test_a_copy_kept_under_another_name_is_left_alone(tmp_path, tokenizer):
    train(tokenizer, tmp_path, steps=2)
    shutil.copytree(
        tmp_path / "trainer" / "step-00000002", tmp_path / "trainer" / "step-00000002-best"
    )
    shutil.copytree(tmp_path / "trainer" / "step-00000002", tmp_path / "trainer" / "step-backup")
    assert train(tokenizer, tmp_path, steps=2)[0]["step"] == 2
    assert {"step-00000002-best", "step-backup"} <= {
        f.name for f in (tmp_path / "trainer").iterdir()
    }


def test_bfloat16_folder(tmp_path, tokenizer):
    model = model_of(tokenizer)
    save_pretrained(model, tokenizer, tmp_path, dtype=torch.bfloat16)
    d = read_json(tmp_path / "config.json")
    assert d["dtype"] == d["torch_dtype"] == "bfloat16" and (
        tmp_path / "model.safetensors"
    ).stat().st_size < 0.6 * 4 * sum(t.numel() for t in model_tensors(model).values())
    assert all(
        torch.equal(v, model.state_dict()[k].bfloat16().float())
        for k, v in load_model(tmp_path).state_dict().items()
    )


def test_config_in_the_style_of_transformers_4():
    d = {
        "_name_or_path": "x",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
        "use_cache": True,
        "vocab_size": 300,
    }
    c = from_hf_config(d)
    assert (
        c.rope_theta,
        c.qk_norm,
        c.tie_word_embeddings,
        c.eos_token_id,
        c.head_dim,
        c.rms_norm_eps,
    ) == (5e5, False, True, (2, 7), 16, 1e-5)


def test_absent_keys_mean_what_they_mean_to_transformers():
    d = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 300,
    }
    llama, qwen = (
        from_hf_config(d | {"model_type": "llama"}),
        from_hf_config(d | {"model_type": "qwen3", "num_key_value_heads": 2}),
    )
    assert (
        llama.tie_word_embeddings,
        llama.num_key_value_heads,
        llama.rope_theta,
        llama.head_dim,
        llama.max_position_embeddings,
    ) == (False, 4, 1e4, 16, 2048)
    assert (qwen.tie_word_embeddings, qwen.head_dim, qwen.rope_theta, qwen.rms_norm_eps) == (
        False,
        128,
        1e4,
        1e-6,
    )


def test_presets_survive_their_config():
    from minimind.model import PRESETS

    assert all(
        from_hf_config(json.loads(json.dumps(to_hf_config(c)))) == c for c in PRESETS.values()
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"n_routed_experts": 4}, "unknown config keys .'n_routed_experts'."),
        ({"hidden_act": "gelu"}, "hidden_act is not 'silu'"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "yarn"}}, "lacks factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is not 1.0",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "48"}, "."),
    ],
)
def test_a_config_we_cannot_follow_is_refused(tmp_path, tokenizer, change, message):
    save_pretrained(model_of(tokenizer), tokenizer, tmp_path)
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | change)
    with pytest.raises(ValueError, match=message) as e:
        load_pretrained(tmp_path)
    assert (
        "config.json" in str(e.value)
        and e.value.__cause__ is None
        and (e.value.__suppress_context__ or e.value.__context__ is None)
    )


def test_saving_over_another_model(tmp_path, tokenizer):
    "Nothing of the model that was there before may be read afterwards, by us or by transformers."
    import transformers

    torch.manual_seed(1)
    other = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=300,
        )
    )
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "chat_template.jinja").write_text("nonsense")
    model = model_of(tokenizer)
    save_pretrained(model, tokenizer, tmp_path)
    again, tok = load_pretrained(tmp_path)
    assert same(again.state_dict(), model.state_dict()) and "im_start" in tok.chat_template


# ---- broken folders
def only_error(e):
    return e.value.__cause__ is None and (
        e.value.__suppress_context__ or e.value.__context__ is None
    )


def damage(path, change):
    tensors = read_tensors(path / "model.safetensors")
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors)
    write_tensors(path / "model.safetensors", tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.pop("model.norm.weight"),
            "missing weights model.norm.weight, unknown weights none",
        ),
        (lambda t: t.update(x=torch.ones(2)), "missing weights none, unknown weights x"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(7)}),
            r"model.norm.weight is \(7,\), wanted \(48,\)",
        ),
        (lambda t: t.clear() or t.update(a=torch.ones(1)), "and 20 more, unknown weights a"),
        (
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
            "lm_head.weight of its own",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, tokenizer, change, message):
    save_pretrained(model_of(tokenizer), tokenizer, tmp_path)
    damage(tmp_path, change)
    with pytest.raises(ValueError, match=message) as e:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(e.value) and only_error(e)


def test_a_tied_head_that_was_saved_is_fine(tmp_path, tokenizer):
    model = model_of(tokenizer)
    save_pretrained(model, tokenizer, tmp_path)
    damage(
        tmp_path,
        lambda t: t.update(
            {
                "lm_head.weight": t["model.embed_tokens.weight"].clone(),
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
            }
        ),
    )
    assert same(load_model(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_truncated_weights(tmp_path, tokenizer, length):
    save_pretrained(model_of(tokenizer), tokenizer, tmp_path)
    file = tmp_path / "model.safetensors"
    os.truncate(file, length if length >= 0 else file.stat().st_size - 1)
    with pytest.raises(ValueError, match="model.safetensors is damaged or cut off") as e:
        load_pretrained(tmp_path)
    assert only_error(e)


def test_missing_files(tmp_path, tokenizer):
    def complaint(error):
        with pytest.raises(error) as e:
            load_pretrained(tmp_path)
        assert only_error(e)
        return str(e.value)

    assert "not a model folder" in complaint(FileNotFoundError)
    save_pretrained(model_of(tokenizer), tokenizer, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in complaint(ValueError)
    (tmp_path / "config.json").write_text("[]")
    assert "is not supported" in complaint(ValueError)
    save_pretrained(model_of(tokenizer), tokenizer, tmp_path)
    os.rename(tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
    assert "no model.safetensors; pytorch_model.bin can't be read" in complaint(FileNotFoundError)
    write_json(
        tmp_path / "model.safetensors.index.json",
        {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
    )
    assert "model-00001-of-00002.safetensors: no such file" in complaint(FileNotFoundError)


# ---- atomic writes
def test_atomic_path_replaces_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"old": "值"})
    assert read_json(file) == {"old": "值"}
    with pytest.raises(KeyboardInterrupt):
        with atomic_path(file) as tmp:
            tmp.write_text("half")
            raise KeyboardInterrupt
    assert read_json(file) == {"old": "值"} and os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(
        OSError, match="could not write .*a.json.*what was there before is unchanged"
    ) as e:
        with atomic_path(file) as tmp:
            tmp.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (
        e.value.errno == errno.ENOSPC
        and only_error(e)
        and read_json(file) == {"old": "值"}
        and os.listdir(tmp_path) == ["a.json"]
    )


def limited(code, folder, limit):
    """Run code in a process that may not write files beyond a size: what a full disk does, without
    being root."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n" + code
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )


@pytest.mark.skipif(os.name == "nt", reason="limits of resources are Unix")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(3)})
    done = limited(
        """
import sys, torch
from pathlib import Path
from minimind.hub import write_tensors
from minimind.core import write_json
folder = Path(sys.argv[1])
for write in (lambda: write_tensors(folder/"a.safetensors", {"w": torch.zeros(100_000)}), lambda: write_json(folder/"b.json", "x"*100_000)):
    try: write()
    except OSError as e: print(e.errno, e)
""",
        tmp_path,
        50_000,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert (
        first.startswith(str(errno.EFBIG))
        and "could not write" in first
        and "a.safetensors: File too large; what was there before is unchanged" in first
        and "b.json" in second
    )
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors"] and torch.equal(
        read_tensors(tmp_path / "a.safetensors")["w"], torch.ones(3)
    )


# ---- resume
@dataclass(frozen=True)
class Settings(StageConfig):
    data: tuple = ("a.jsonl",)


class Rows(Batches):
    "The same random rows for every run; a pure function of the step."

    steps_per_epoch, fill = 3, 1.0

    def __init__(self, V, rows=4):
        self.V, self.rows, self.tokens_per_epoch = V, rows, 3 * rows * 16

    def fingerprint(self):
        return {"data_sha256": f"that of {self.rows} rows"}

    def at(self, step, rank=0, world_size=1):
        ids = torch.randint(
            0, self.V, (self.rows, 16), generator=torch.Generator().manual_seed(step % 3)
        )
        ids = ids[rank::world_size]
        return dict(input_ids=ids, labels=ids)


def settings(out, **changes):
    return Settings(
        **{
            "out": str(out),
            "steps": 6,
            "warmup": 1,
            "save_every": 2,
            "log_every": 3,
            "device": "cpu",
            "micro_batch_size": 2,
        }
        | changes
    )


def train(tokenizer, out, start=0, loss_fn=causal_lm_loss, rows=4, evaluate=None, **changes):
    model = model_of(tokenizer, seed=start).train()
    return run_stage(
        settings(out, **changes),
        model,
        tokenizer,
        Rows(tokenizer.vocab_size, rows),
        loss_fn,
        evaluate,
    ), model


def stops_after(calls):
    left = [calls]

    def loss_fn(model, batch):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return causal_lm_loss(model, batch)

    return loss_fn


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resume_is_exact(tmp_path, tokenizer, optimizer):
    last, whole = train(tokenizer, tmp_path / "whole", optimizer=optimizer)
    # in step 5, between its micro-batches
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, tmp_path / "cut", optimizer=optimizer, loss_fn=stops_after(9))
    assert [s.name for s in sorted((tmp_path / "cut" / "trainer").iterdir())] == [
        "step-00000002",
        "step-00000004",
    ]
    # from other weights: the checkpoint's count
    again_last, again = train(tokenizer, tmp_path / "cut", optimizer=optimizer, start=7)
    assert same(whole.state_dict(), again.state_dict()) and last["loss"] == again_last["loss"]
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "cut" / "model.safetensors"
    ).read_bytes()
    assert same(load_model(tmp_path / "cut").state_dict(), whole.state_dict())


def test_random_numbers_go_on(tmp_path, tokenizer):
    import random

    def noisy(model, batch):
        loss, weight, _ = causal_lm_loss(model, batch)
        return loss * (1 + 0.1 * torch.rand(()) + 0.1 * random.random()), weight, {}

    def start(out, calls=99):
        inner = stops_after(calls)

        def loss_fn(model, batch):
            inner(model, batch)
            return noisy(model, batch)

        return train(tokenizer, out, loss_fn=loss_fn)[1]

    random.seed(3)
    whole = start(tmp_path / "whole")
    random.seed(3)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "cut", 9)
    random.seed(77)
    assert same(start(tmp_path / "cut").state_dict(), whole.state_dict())


def test_run_folder(tmp_path, tokenizer):
    train(tokenizer, tmp_path, keep=2)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "metrics.jsonl",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer",
    ]
    steps = sorted((tmp_path / "trainer").iterdir())
    assert [s.name for s in steps] == ["step-00000004", "step-00000006"], (
        "only `keep` checkpoints stay"
    )
    assert sorted(f.name for f in steps[1].iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]
    assert os.path.samefile(steps[1] / "model.safetensors", tmp_path / "model.safetensors"), (
        "one copy of the weights on the disk"
    )


def test_without_hard_links(tmp_path, tokenizer, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    _, model = train(tokenizer, tmp_path)
    assert same(load_model(tmp_path).state_dict(), model.state_dict())


def test_finished_run_returns_at_once(tmp_path, tokenizer):
    last, model = train(tokenizer, tmp_path, evaluate=lambda m: {"bpb": 2.0})

    def never(model, batch):
        raise AssertionError("a finished run computes nothing")

    again, loaded = train(
        tokenizer, tmp_path, start=7, loss_fn=never, evaluate=lambda m: never(m, 0)
    )
    assert (
        again == last
        and again["step"] == 6
        and again["bpb"] == 2.0
        and same(loaded.state_dict(), model.state_dict())
    )


def test_an_unpublished_checkpoint_is_published(tmp_path, tokenizer):
    "Killed between the checkpoint of the last step and the model folder."
    _, model = train(tokenizer, tmp_path)
    shutil.copyfile(tmp_path / "trainer" / "step-00000004" / "model.safetensors", tmp_path / "old")
    os.replace(tmp_path / "old", tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    train(tokenizer, tmp_path)
    assert same(load_model(tmp_path).state_dict(), model.state_dict())


def test_fresh_starts_again(tmp_path, tokenizer):
    train(tokenizer, tmp_path, lr=1e-3)
    last, model = train(tokenizer, tmp_path, fresh=True, steps=3)
    assert (
        last["step"] == 3
        and [l["step"] for l in read_metrics(tmp_path)] == [3]
        and [s.name for s in sorted((tmp_path / "trainer").iterdir())]
        == ["step-00000002", "step-00000003"]
    )
    assert same(model.state_dict(), train(tokenizer, tmp_path / "other", steps=3)[1].state_dict())


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(lr=1e-4), "lr was [0-9.]+, is 0.0001"),
        (dict(steps=9, seed=1), "seed was 42, is 1; steps was 6, is 9"),
        (dict(data=(__file__, "b.jsonl")), "data was .'.*a.jsonl'., is .'.*py', '.*b.jsonl'."),
        (dict(rows=5), "data_sha256 was 'that of 4 rows', is 'that of 5 rows'"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, tokenizer, changes, message):
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, tmp_path, loss_fn=stops_after(5))
    with pytest.raises(SettingsChanged, match=message) as e:
        train(tokenizer, tmp_path, **changes)
    assert "--fresh" in str(e.value) and "damaged" not in str(e.value) and only_error(e)


def test_settings_that_change_nothing_may_change(tmp_path, tokenizer):
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, tmp_path / "a", loss_fn=stops_after(5))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    last, _ = train(
        tokenizer,
        tmp_path / "b",
        log_every=1,
        save_every=1,
        keep=1,
        on_nan="skip",
        micro_batch_size=4,
        data=("a.jsonl",),
    )
    assert last["step"] == 6


# ---- broken checkpoints
def state(change):
    def apply(folder):
        d = read_json(folder / "state.json")
        change(d)
        write_json(folder / "state.json", d)

    return apply


@pytest.mark.parametrize(
    "breakage, message",
    [
        (
            lambda f: os.truncate(f / "model.safetensors", 1000),
            "model.safetensors is damaged or cut off .1,000 bytes.",
        ),
        (
            lambda f: os.truncate(f / "optimizer.safetensors", 1000),
            "optimizer.safetensors is damaged or cut off",
        ),
        (
            lambda f: os.truncate(f / "random.safetensors", 3),
            "random.safetensors is damaged or cut off",
        ),
        (lambda f: (f / "optimizer.safetensors").unlink(), "optimizer.safetensors: no such file"),
        (lambda f: (f / "state.json").write_text('{"step": 6, '), "state.json is damaged"),
        (lambda f: (f / "state.json").write_text("[1]"), "can't be used"),
        (lambda f: (f / "state.json").unlink(), "state.json"),
        (state(lambda d: d.pop("python_random")), "lacks 'python_random'"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_resumes(
    tmp_path, tokenizer, breakage, message
):
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, tmp_path, loss_fn=stops_after(9))
    newest = tmp_path / "trainer" / "step-00000004"
    breakage(newest)
    with pytest.raises(ValueError, match=message) as e:
        train(tokenizer, tmp_path)
    assert (
        f"Delete {newest} to go on from step-00000002" in str(e.value)
        and only_error(e)
        and not isinstance(e.value, SettingsChanged)
    )
    shutil.rmtree(newest)
    _, model = train(tokenizer, tmp_path, start=7)
    assert same(model.state_dict(), train(tokenizer, tmp_path / "whole")[1].state_dict())


def test_the_only_checkpoint_is_damaged(tmp_path, tokenizer):
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, tmp_path, loss_fn=stops_after(5))
    (tmp_path / "trainer" / "step-00000002" / "state.json").write_text("")
    with pytest.raises(ValueError, match="Delete .*step-00000002 to start again"):
        train(tokenizer, tmp_path)


def test_leftovers_of_a_killed_process_are_removed(tmp_path, tokenizer):
    train(tokenizer, tmp_path, steps=2)
    (tmp_path / "trainer" / ".step-00000004.tmp").mkdir()
    (tmp_path / "trainer" / ".step-00000004.tmp" / "model.safetensors").write_text("half")
    (tmp_path / "trainer" / ".step-00000001.old").mkdir()
    (tmp_path / ".model.safetensors.123.tmp").write_text("half")
    (tmp_path / "trainer" / ".tmpAb12cd").write_text("half")
    (tmp_path / "notes.tmp").write_text("mine")
    (tmp_path / ".tmp_cache").mkdir()
    train(tokenizer, tmp_path, steps=2)
    assert (tmp_path / "notes.tmp").exists(), "other people's files are not ours to remove"
    assert [f.name for f in tmp_path.rglob("*") if f.name.startswith(".")] == [".tmp_cache"] and [
        s.name for s in (tmp_path / "trainer").iterdir()
    ] == ["step-00000002"]


def test_nan_keeps_the_last_checkpoint_and_the_batch(tmp_path, tokenizer):
    def loss_fn(model, batch):
        calls.append(1)
        loss, weight, _ = causal_lm_loss(model, batch)
        return loss * (float("nan") if len(calls) == 9 else 1.0), weight, {}

    calls = []
    from minimind.train import NonFinite

    with pytest.raises(NonFinite, match="step 5: loss nan.*trainer.bad_batch.safetensors"):
        train(tokenizer, tmp_path, loss_fn=loss_fn)
    assert same(
        read_tensors(tmp_path / "trainer" / "bad_batch.safetensors"),
        Rows(tokenizer.vocab_size).at(4),
    )
    # the cause is gone: it goes on from step 4
    _, model = train(tokenizer, tmp_path, start=7)
    assert same(model.state_dict(), train(tokenizer, tmp_path / "whole")[1].state_dict())


# ---- a full disk in the middle of training
TRAIN = """
import sys
sys.path.insert(0, "tests")
import torch
from test_checkpoint import Rows, model_of, settings
from minimind.stage import run_stage
from minimind.losses import causal_lm_loss
from minimind.tokenizer import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1] + ".tokenizer.json")
run_stage(settings(sys.argv[1], async_checkpoint=BESIDE), model_of(tokenizer).train(), tokenizer, Rows(tokenizer.vocab_size), causal_lm_loss)
"""


def stopped_by_full_disk(done, out):
    "One clear error, of one kind; the checkpoint before is whole."
    assert (
        done.returncode != 0
        and done.stderr.count("Traceback") == 1
        and "During handling" not in done.stderr
    ), done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert (
        error.startswith("OSError: [Errno ")
        and "the last good one is" in error
        and "Make room, then give the same command again" in error
    ), error
    assert [f.name for f in (out / "trainer").iterdir() if f.name.startswith(".")] == []
    return error


def resumes(tokenizer, out, reference):
    _, model = train(tokenizer, out, start=7)
    assert same(model.state_dict(), train(tokenizer, reference)[1].state_dict())


@pytest.mark.skipif(os.name == "nt", reason="limits of resources are Unix")
@pytest.mark.parametrize("beside", [False, True])
def test_a_file_that_cannot_grow_during_training(tmp_path, tokenizer, beside):
    out = tmp_path / "run"
    tokenizer.save(tmp_path / "run.tokenizer.json")
    # a good checkpoint of step 2
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, out, loss_fn=stops_after(5))
    size = (out / "trainer" / "step-00000002" / "optimizer.safetensors").stat().st_size
    # the weights are written, the optimizer's state is not
    error = stopped_by_full_disk(limited(TRAIN.replace("BESIDE", str(beside)), out, size - 1), out)
    assert "File too large" in error and "no checkpoint of step 4" in error
    resumes(tokenizer, out, tmp_path / "whole")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"),
    reason="mounting a small disk needs root",
)
def test_a_really_full_disk_during_training(tmp_path, tokenizer):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        out = disk / "run"
        tokenizer.save(disk / "run.tokenizer.json")
        done = subprocess.run(
            [sys.executable, "-c", TRAIN.replace("BESIDE", "False"), str(out)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )
        error = stopped_by_full_disk(done, out)
        assert (
            "No space left on device" in error and len(list((out / "trainer").glob("step-*"))) >= 1
        )
        # the published model opens
        assert same(load_model(out).state_dict(), load_model(out).state_dict())
        # where there is room
        shutil.copytree(out, tmp_path / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
    resumes(tokenizer, tmp_path / "run", tmp_path / "whole")


def test_a_disk_that_will_be_full_is_seen_before_the_first_step(
    tmp_path, tokenizer, monkeypatch, capsys
):
    cfg, Usage = settings(tmp_path / "run", steps=2, keep=2), namedtuple("Usage", "total used free")
    needed = checkpoint_bytes(cfg, ModelFolder(model_of(tokenizer), None))
    for free, warned in ((needed - 1, True), (needed, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(2**40, 0, free))
        run_stage(
            replace(cfg, fresh=True),
            model_of(tokenizer),
            tokenizer,
            Rows(tokenizer.vocab_size),
            causal_lm_loss,
        )
        assert ("MiB of free disk" in capsys.readouterr().out) == warned
    taken = sum(
        f.stat().st_size
        for step in checkpoints(tmp_path / "run")
        for f in step.rglob("*.safetensors")
    )
    # what was asked for is about what one checkpoint takes
    assert needed / 3 >= 0.8 * taken


def test_fit_works_with_a_checkpointer_of_its_own(tmp_path, tokenizer):
    "The parts that `run_stage` puts together can be used alone."
    model, cfg = model_of(tokenizer).train(), settings(tmp_path, steps=2)
    optimizers = build_optimizer(model)
    checkpointer = Checkpointer(ModelFolder(model, None), {"optimizer": optimizers}, cfg)
    assert (
        fit(
            model,
            Rows(tokenizer.vocab_size),
            causal_lm_loss,
            optimizers,
            cfg,
            saver=checkpointer,
        )["step"]
        == 2
    )
    assert load_config(tmp_path) == model.config


def test_a_checkpoint_beside_the_training(tmp_path, tokenizer, monkeypatch, capsys):
    """What is written is what was, however much the training changes meanwhile; the next save
    waits; an error of the thread is raised by the next call."""
    model, cfg = model_of(tokenizer), settings(tmp_path, async_checkpoint=True)
    optimizers = build_optimizer(model)
    checkpointer = Checkpointer(ModelFolder(model, None), {"optimizer": optimizers}, cfg)
    may, write, was = (
        threading.Event(),
        checkpoint.write_tensors,
        {k: t.clone() for k, t in model.state_dict().items()},
    )
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *args: (may.wait(30), write(*args)))
    # comes back although nothing may be written yet
    checkpointer.save(2)
    assert checkpoints(tmp_path) == []
    with torch.no_grad():
        [p.add_(1) for p in model.parameters()]
    may.set()
    checkpointer.finish()
    assert [f.name for f in checkpoints(tmp_path)] == ["step-00000002"] and same(
        load_model(tmp_path).state_dict(), was
    )
    may.clear()
    checkpointer.save(4)
    threading.Timer(0.2, may.set).start()
    # waits for the one of step 4
    checkpointer.save(6)
    checkpointer.finish()
    assert [f.name for f in checkpoints(tmp_path)] == ["step-00000004", "step-00000006"]

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    checkpointer.save(8)
    with pytest.raises(
        OSError, match="no checkpoint of step 8, the last good one is .*step-00000006.*Make room"
    ):
        checkpointer.save(10)
    # it was said once
    checkpointer.finish()

    def broken():
        raise ValueError("the real cause")

    def later(*args):
        time.sleep(0.3)
        full()

    monkeypatch.setattr(checkpoint, "write_tensors", later)
    with pytest.raises(ValueError, match="the real cause"):
        fit(
            model,
            Rows(tokenizer.vocab_size),
            causal_lm_loss,
            optimizers,
            replace(cfg, steps=8, eval_every=7, save_every=100),
            saver=checkpointer,
            evaluate=broken,
        )
    # … and the late one is told too
    assert "warning: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="async_checkpoint=True: with --parallel fsdp"):
        replace(cfg, parallel="fsdp")


class Tracker(Batches, Stateful):
    "Batches with a memory of their own: what they give depends on what was given before."

    steps_per_epoch = 4

    def __init__(self, vocab):
        self.rows, self.seen = Rows(vocab), torch.zeros(())

    def at(self, step, rank=0, world_size=1):
        self.seen += 1
        batch = self.rows.at(step, rank, world_size)
        return {k: v.roll(int(self.seen), 1) for k, v in batch.items()}

    def state_tensors(self):
        return {"seen": self.seen}

    def load_state_tensors(self, tensors):
        self.seen = tensors["seen"].clone()


def test_parts_with_a_state_are_saved_and_restored(tmp_path, tokenizer):
    def run(name, steps, **more):
        batches = Tracker(tokenizer.vocab_size)
        run_stage(
            settings(tmp_path / name, steps=8, save_every=3, **more),
            model_of(tokenizer).train(),
            tokenizer,
            _Until(batches, steps),
            causal_lm_loss,
            stateful={"tracker": batches},
        )

    run("whole", 8)
    with pytest.raises(KeyboardInterrupt):
        run("halves", 5)
    run("halves", 8)
    assert same(
        load_model(tmp_path / "whole").state_dict(), load_model(tmp_path / "halves").state_dict()
    )


class _Until(Batches):
    "Batches that die at a step."

    def __init__(self, batches, steps):
        self.batches, self.steps, self.steps_per_epoch = batches, steps, batches.steps_per_epoch

    def at(self, step, rank=0, world_size=1):
        if step >= self.steps:
            raise KeyboardInterrupt
        return self.batches.at(step, rank, world_size)


def test_another_kind_of_folder(tmp_path, tokenizer):
    "A stage that trains only a part saves and publishes only that part."

    class Norms(ModelFolder):
        weights = "norms.safetensors"

        def tensors(self):
            return {k: v for k, v in self.model.state_dict().items() if "norm" in k}

        def load(self, tensors, source):
            self.model.load_state_dict(tensors, strict=False)

        def write(self, path, put_weights):
            put_weights(path / self.weights)

    model = model_of(tokenizer).train()
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name)
    run_stage(
        settings(tmp_path / "norms", steps=3),
        model,
        tokenizer,
        Rows(tokenizer.vocab_size),
        causal_lm_loss,
        folder=Norms(model, tokenizer),
    )
    assert sorted(f.name for f in (tmp_path / "norms").iterdir()) == [
        "metrics.jsonl",
        "norms.safetensors",
        "trainer",
    ]
    assert (
        read_tensors(tmp_path / "norms" / "norms.safetensors").keys()
        == Norms(model, tokenizer).tensors().keys()
    )
    again = model_of(tokenizer).train()
    run_stage(
        settings(tmp_path / "norms", steps=3),
        again,
        tokenizer,
        Rows(tokenizer.vocab_size),
        causal_lm_loss,
        folder=Norms(again, tokenizer),
    )
    assert same(Norms(again, None).tensors(), Norms(model, None).tensors())


def test_changed_settings_are_refused_before_anything_else(tmp_path, tokenizer):
    cfg = settings(tmp_path, steps=2)
    # nothing there yet
    check_start(cfg)
    run_stage(
        cfg, model_of(tokenizer).train(), tokenizer, Rows(tokenizer.vocab_size), causal_lm_loss
    )
    (
        check_start(cfg),
        check_start(replace(cfg, log_every=7)),
        check_start(replace(cfg, lr=0.5, fresh=True)),
    )
    with pytest.raises(SettingsChanged, match="lr was"):
        check_start(replace(cfg, lr=0.5))


def test_init_and_out_must_differ(tmp_path, tokenizer):
    from minimind import sft

    train(tokenizer, tmp_path, steps=2)
    before = (tmp_path / "model.safetensors").read_bytes()
    rows = tmp_path / "chats.jsonl"
    rows.write_text(
        '{"conversations": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]}\n'
        * 4
    )
    with pytest.raises(ValueError, match="init and out"):
        sft.run(
            sft.SFTConfig(
                init=str(tmp_path), out=str(tmp_path), data=str(rows), steps=1, eval_rows=0
            )
        )
    assert (tmp_path / "model.safetensors").read_bytes() == before
