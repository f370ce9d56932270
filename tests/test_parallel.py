"""What `parallel` says before it begins, less memory by computing again, and layers that can or
can't be compiled. Real processes train in test_distributed."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from test_stages import config, flags, world  # noqa: F401  (a fixture)

from minimind.losses import causal_lm_loss
from minimind.model import MiniMind, ModelConfig
from minimind.parallel import deepspeed_settings, local_rows
from minimind.ppo import PPOConfig
from minimind.train import TrainConfig
from minimind.stage import format_ranks, memory_bytes
from minimind.dist import rank_and_size, sharded_state
from minimind.log import read_metrics

SHAPE = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=64,
    vocab_size=100,
)


@pytest.mark.parametrize(
    "shape",
    [{}, dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True)],
    ids=["dense", "experts"],
)
def test_activations_computed_again_give_the_same_gradient(shape):
    torch.manual_seed(0)
    model, rows = MiniMind(ModelConfig(**SHAPE | shape)), torch.randint(0, 100, (3, 40))
    batch = dict(input_ids=rows, labels=rows, segment_ids=torch.ones_like(rows))
    found = []
    for again in (False, True):
        model.model.gradient_checkpointing = again
        model.zero_grad()
        loss, *_ = causal_lm_loss(model, batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_flag_reaches_the_layers(world, tmp_path):  # noqa: F811
    runs = []
    for name, again in (("kept", False), ("again", True)):
        module, cfg = config(
            "sft", world, tmp_path / name, gradient_checkpointing=again, log_every=1
        )
        module.run(cfg)
        runs.append([line["loss"] for line in read_metrics(tmp_path / name) if "lr" in line])
    assert runs[0] == runs[1]
    c, cfg = ModelConfig(**SHAPE), TrainConfig(optimizer="adamw", seq_len=512)
    assert (
        memory_bytes(c, replace(cfg, gradient_checkpointing=True), torch.float32)["working"]
        < 0.8 * memory_bytes(c, cfg, torch.float32)["working"]
    )


def test_memory_is_shared_as_the_stages_of_zero_say(tmp_path):
    c, plain = ModelConfig(**SHAPE), TrainConfig(optimizer="adamw", seq_len=64)
    whole = memory_bytes(c, plain, torch.float32, size=4)
    for stage, shared in enumerate(
        ({"optimizer"}, {"optimizer", "gradients"}, {"optimizer", "gradients", "weights"}), 1
    ):
        (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        cfg = replace(plain, deepspeed=str(tmp_path / "ds.json"))
        assert sharded_state(cfg) == shared
        # and DeepSpeed's copy
        assert memory_bytes(c, cfg, torch.float32, size=4) == {
            k: v // 4 if k in shared else v
            for k, v in (whole | {"optimizer": whole["optimizer"] * 3 // 2}).items()
        }
    assert (
        sharded_state(replace(plain, parallel="fsdp")) == {"optimizer", "gradients", "weights"}
        and sharded_state(plain) == set()
    )


@pytest.mark.parametrize(
    "content,changes,message",
    [
        ({"fp16": {"enabled": True}}, {}, "fp16 is set by --dtype"),
        ({"bf16": {"enabled": True}}, {}, "float32"),
        ({"train_batch_size": 8}, {}, "--batch-size"),
        ({"optimizer": {"type": "AdamW"}}, {}, "--lr"),
        ({"gradient_clipping": 1.0}, {}, "--clip"),
        ({}, {"optimizer": "muon"}, "--optimizer adamw"),
    ],
)
def test_settings_that_contradict_a_flag(tmp_path, content, changes, message):
    (tmp_path / "ds.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        deepspeed_settings(tmp_path / "ds.json", TrainConfig(**{"optimizer": "adamw"} | changes))


def test_settings_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.json.*recipes/zero1.json"):
        deepspeed_settings(tmp_path / "no.json", TrainConfig(optimizer="adamw"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json"):
        deepspeed_settings(tmp_path / "bad.json", TrainConfig(optimizer="adamw"))
    with pytest.raises(ValueError, match="leave one of the two out"):
        TrainConfig(deepspeed="x.json", parallel="fsdp")
    with pytest.raises(ValueError, match="choose one of ddp, fsdp"):
        TrainConfig(parallel="tensor")
    with pytest.raises(ValueError, match="--target-kl 0"):
        PPOConfig(deepspeed="x.json", optimizer="adamw")


def test_what_a_file_leaves_out(tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"overlap_comm": False}}))
    cfg = TrainConfig(optimizer="adamw", deepspeed=str(tmp_path / "ds.json"))
    zero = deepspeed_settings(cfg.deepspeed, cfg)["zero_optimization"]
    assert (
        zero["stage"] == 2
        and zero["overlap_comm"] is False
        and zero["reduce_bucket_size"] < 1e8
        and sharded_state(cfg) == {"optimizer", "gradients"}
    )


def test_one_process_with_deepspeed_and_without_torchrun(world, tmp_path):  # noqa: F811
    "In bfloat16, with what a GPU would say of autocast: the engine must not switch it off."
    pytest.importorskip("deepspeed")
    (tmp_path / "ds.json").write_text("{}")
    code = "import sys, torch; torch.set_autocast_enabled(True); from minimind.cli import main; sys.exit(main(sys.argv[1:]))"
    found = {}
    for name, more in (
        ("plain", {}),
        ("engine", {"deepspeed": tmp_path / "ds.json"}),
        ("exact", {"dtype": "float32"}),
    ):
        argv = flags(
            "sft",
            world,
            tmp_path / name,
            **{
                "steps": 3,
                "log_every": 1,
                "optimizer": "adamw",
                "eval_rows": 0,
                "dtype": "bfloat16",
            }
            | more,
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = [line["loss"] for line in read_metrics(tmp_path / name) if "lr" in line]
    # the first loss has the same weights
    assert (
        found["engine"] == pytest.approx(found["plain"], abs=1e-4)
        and found["engine"][0] == found["plain"][0] != found["exact"][0]
    )


def test_a_dry_run_refuses_what_the_run_would(world, tmp_path):  # noqa: F811
    module, cfg = config(
        "sft", world, tmp_path / "run", deepspeed=str(tmp_path / "no.json"), optimizer="adamw"
    )
    with pytest.raises(FileNotFoundError, match="no.json"):
        module.run(cfg, dry_run=True)


def test_alone():
    x = torch.arange(6).view(3, 2)
    assert rank_and_size() == (0, 1) and torch.equal(local_rows(x), x)
    assert format_ranks(
        TrainConfig(batch_size=5, micro_batch_size=2), torch.device("cpu")
    ).endswith("cpu: 5 of 5 rows a step, 3 micro-batches")


# the command, and how many graphs were compiled and run
COUNTED = """
import sys, torch._dynamo.utils as dynamo
from minimind.cli import main
code = main(sys.argv[1:])
print("graphs compiled:", dynamo.counters["stats"]["unique_graphs"])
sys.exit(code)
"""


def compiled(world, out, **env):  # noqa: F811
    argv = flags("pretrain", world, out, steps=2, log_every=1) + ["--compile"]
    return subprocess.run(
        [sys.executable, "-c", COUNTED, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=500,
    )


def test_a_machine_without_a_compiler(world, tmp_path):  # noqa: F811
    done = compiled(
        world, tmp_path / "run", CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")
    )
    assert done.returncode == 0 and "compile: not possible here, going on without" in done.stdout, (
        done.stdout + done.stderr
    )
    assert len(read_metrics(tmp_path / "run")) == 3


@pytest.mark.slow
def test_compiled_layers_compute_the_same(world, tmp_path):  # noqa: F811
    done = compiled(world, tmp_path / "run")
    assert (
        done.returncode == 0
        and "going on without" not in done.stdout
        and int(re.search(r"graphs compiled: (\d+)", done.stdout)[1]) > 1
    ), done.stdout + done.stderr
    module, cfg = config("pretrain", world, tmp_path / "plain", steps=2, log_every=1)
    module.run(cfg)
    assert [
        line["loss"] for line in read_metrics(tmp_path / "run") if "lr" in line
    ] == pytest.approx(
        [line["loss"] for line in read_metrics(tmp_path / "plain") if "lr" in line], abs=1e-4
    )
