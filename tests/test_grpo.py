"""GRPO and its variants: losses and gradients against TRL, verl and plain loops; group advantages;
SPO's tracker; stages that resume exactly in the middle of a rollout."""

import importlib
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from minimind import grpo, ppo, rewards, rollout, train
from minimind.checkpoint import checkpoints
from minimind.hub import load_pretrained, read_tensors, save_pretrained
from minimind.core import IGNORE, sample
from minimind.data import JsonlReader
from minimind.grpo import (
    GRPO_LOSSES,
    GRPOConfig,
    PromptTracker,
    SPOConfig,
    group_advantages,
    grpo_loss,
    policy_loss,
    spo_advantages,
)
from minimind.model import MiniMind, ModelConfig
from minimind.ppo import PPOConfig
from minimind.tokenizer import Tokenizer
from minimind.train import TrainConfig, compute_gradients
from minimind.log import read_metrics
from shared import SHAPE, number_prompts, write_lines

EPSILON, HIGH, BETA, LONGEST = 0.2, 0.28, 0.07, 16


def example(seed=0, B=6, T=11, dtype=torch.float64, spread=0.4):
    """Log-probabilities that have moved, answers of unequal lengths (one of a single token), a
    prompt in front; float64."""
    generator = torch.Generator().manual_seed(seed)
    old, ref = (-2 * torch.rand(B, T, generator=generator, dtype=dtype) for _ in range(2))
    logps = (old + spread * torch.randn(B, T, generator=generator, dtype=dtype)).requires_grad_()
    begin, length = (
        torch.randint(0, 4, (B,), generator=generator),
        torch.randint(1, T - 3, (B,), generator=generator),
    )
    length[0] = 1
    at = torch.arange(T)
    mask = (at >= begin[:, None]) & (at < (begin + length)[:, None])
    return logps, old, ref, torch.randn(B, generator=generator, dtype=dtype), mask


def by_hand(logps, old, ref, advantages, mask, epsilon, high, beta, loss_type):
    "The same numbers one at a time, with Python's floats; the gradient by the chain rule."
    B, T = mask.shape
    lengths = mask.sum(1).tolist()
    sums, gradient = [0.0] * B, [[0.0] * T for _ in range(B)]
    for b in range(B):
        A, n = float(advantages[b]), lengths[b]
        tokens = [t for t in range(T) if mask[b, t]]
        x, y, z = ([float(v[b, t]) for t in range(T)] for v in (logps, old, ref))
        sequence = math.exp(sum(x[t] - y[t] for t in tokens) / n)
        for t in tokens:
            ratio = sequence if loss_type == "gspo" else math.exp(x[t] - y[t])
            if loss_type == "cispo":
                loss, slope = -min(ratio, high) * A * x[t], -min(ratio, high) * A
            else:
                inside = min(max(ratio, 1 - epsilon), 1 + high)
                loss, slope = (
                    (-ratio * A, -ratio * A) if ratio * A <= inside * A else (-inside * A, 0.0)
                )
            d = z[t] - x[t]
            sums[b] += loss + beta * (math.exp(d) - d - 1)
            gradient[b][t] += beta * (1 - math.exp(d))
            if loss_type == "gspo":
                for s in tokens:
                    gradient[b][s] += slope / n
            else:
                gradient[b][t] += slope
    weight = {
        "grpo": lambda b: 1 / (B * lengths[b]),
        "gspo": lambda b: 1 / (B * lengths[b]),
        "dr_grpo": lambda b: 1 / (B * LONGEST),
    }.get(loss_type, lambda b: 1 / sum(lengths))
    return sum(s * weight(b) for b, s in enumerate(sums)), [
        [g * weight(b) for g in row] for b, row in enumerate(gradient)
    ]


def ours(values, epsilon, high, beta, loss_type):
    logps, old, ref, advantages, mask = values
    loss, metrics = grpo_loss(
        logps,
        old,
        ref,
        advantages,
        mask,
        epsilon=epsilon,
        epsilon_high=high,
        beta=beta,
        loss_type=loss_type,
        max_completion_length=LONGEST,
    )
    return loss.detach(), torch.autograd.grad(loss, logps)[0], metrics


def bounds(
    loss_type,
):  # an absolute weight for cispo; the mean over an answer moves less than its tokens
    return {"cispo": (EPSILON, 1.3), "gspo": (0.03, 0.04)}.get(loss_type, (EPSILON, HIGH))


# --- losses and gradients


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("loss_type", GRPO_LOSSES)
def test_loss_and_gradient_are_those_of_plain_loops(loss_type, beta, seed):
    values = example(seed)
    want, gradient = by_hand(*(v.detach() for v in values), *bounds(loss_type), beta, loss_type)
    loss, got, metrics = ours(values, *bounds(loss_type), beta, loss_type)
    assert float(loss) == pytest.approx(want, rel=1e-9)
    torch.testing.assert_close(
        got, torch.tensor(gradient, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    assert (
        not got[~values[-1]].any()
        and 0 < float(metrics["clip_fraction"]) < 1
        and float(metrics["kl"]) > 0
        and float(metrics["kl_step"]) > 0
    )
    single = [v.float() if v.dtype == torch.float64 else v for v in values]
    single[0] = values[0].detach().float().requires_grad_()
    loss32, got32, _ = ours(single, *bounds(loss_type), beta, loss_type)
    assert float(loss32) == pytest.approx(want, abs=1e-6)
    torch.testing.assert_close(got32.double(), got, rtol=1e-5, atol=1e-6)


def trl_loss(trainer, values, epsilon, high, beta, loss_type):
    "TRL's own method, on an object that has the attributes which it reads."
    logps, old, ref, advantages, mask = values
    accelerator = SimpleNamespace(
        device="cpu",
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction=None: x,
    )
    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    me = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        args=args,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=beta,
        importance_sampling_level="sequence" if loss_type == "gspo" else "token",
        loss_type="grpo" if loss_type == "gspo" else loss_type,
        epsilon_low=epsilon,
        epsilon_high=high,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    me._get_per_token_logps_and_entropies = lambda *a, **k: (logps, torch.zeros_like(logps), None)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = dict(
        prompt_ids=ids,
        prompt_mask=ids,
        completion_ids=ids,
        completion_mask=mask.long(),
        advantages=advantages,
        old_per_token_logps=old,
        ref_per_token_logps=ref,
        num_items_in_batch=mask.sum(),
    )
    loss = trainer._compute_loss(me, None, inputs)
    return loss.detach(), torch.autograd.grad(loss, logps)[0]


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("loss_type", GRPO_LOSSES)
def test_losses_and_gradients_are_those_of_trl_itself(loss_type, beta):
    trl = pytest.importorskip(
        "trl", minversion="1.16", reason="TRL is no dependency; the loops above are compared always"
    )
    trainer = importlib.import_module("trl.trainer.grpo_trainer").GRPOTrainer
    values = example(7, B=12, T=20)
    try:
        want, gradient = trl_loss(trainer, values, *bounds(loss_type), beta, loss_type)
    except AttributeError as e:
        pytest.skip(f"TRL {trl.__version__} reads other attributes: {e}")
    loss, got, _ = ours(values, *bounds(loss_type), beta, loss_type)
    torch.testing.assert_close(loss, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "loss_type, name, aggregation",
    [
        ("grpo", "vanilla", "seq-mean-token-mean"),
        ("dapo", "vanilla", "token-mean"),
        ("bnpo", "vanilla", "token-mean"),
        ("gspo", "gspo", "seq-mean-token-mean"),
        ("dr_grpo", "vanilla", "seq-mean-token-sum-norm"),
        ("cispo", "cispo", "token-mean"),
    ],
)
def test_losses_and_gradients_are_those_of_verl(loss_type, name, aggregation):
    algorithms = pytest.importorskip(
        "verl.trainer.ppo.core_algos",
        reason="verl is no dependency; the loops above are compared always",
        exc_type=ImportError,
    )
    logps, old, ref, advantages, mask = values = example(8, B=12, T=20, spread=0.2)
    # verl's dual clip is put out of reach; its CISPO weight has a lower end too, put out of reach
    # as well, and its high end counts from 1
    low, high = (1.0, bounds("cispo")[1] - 1) if name == "cispo" else bounds(loss_type)
    config = algorithms.ActorConfig(
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=100.0,
        rollout_n=1,
        strategy="fsdp",
        use_dynamic_bsz=True,
        ppo_micro_batch_size_per_gpu=1,
    )
    config.global_batch_info["loss_scale_factor"] = LONGEST
    loss, *_ = algorithms.get_policy_loss_fn(name)(
        old,
        logps,
        advantages[:, None].expand_as(logps),
        mask.double(),
        loss_agg_mode=aggregation,
        config=config,
    )
    mine, got, _ = ours(values, *bounds(loss_type), 0.0, loss_type)
    # verl spreads a sequence ratio's gradient over the tokens by their own log-probabilities: the
    # same sum over an answer, and the same here, where all tokens share an advantage
    torch.testing.assert_close(mine, loss.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got, torch.autograd.grad(loss, logps)[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss_type", GRPO_LOSSES)
def test_at_the_first_update_the_ratio_is_one_and_the_gradient_plain(loss_type):
    logps, _, _, advantages, mask = example(3)
    for old in (None, logps.detach()):
        loss, metrics = grpo_loss(logps, old, None, advantages, mask, loss_type=loss_type)
        assert (
            float(metrics["ratio"]) == 1
            and float(metrics["clip_fraction"]) == 0
            and float(metrics["kl_step"]) == 0
            and "kl" not in metrics
        )
        gradient = torch.autograd.grad(loss, logps)[0]
        lengths = mask.sum(1, keepdim=True).double()
        weight = {
            "grpo": 1 / (len(mask) * lengths),
            "gspo": 1 / (len(mask) * lengths),
            "dr_grpo": 1 / mask.numel(),
        }.get(loss_type, 1 / mask.double().sum())
        # REINFORCE with a baseline
        torch.testing.assert_close(
            gradient, -advantages[:, None] * mask * weight, rtol=1e-12, atol=1e-14
        )


def test_what_lies_outside_the_mask_does_not_matter():
    logps, old, ref, advantages, mask = example(4)
    for loss_type in GRPO_LOSSES:
        want, *_ = ours((logps, old, ref, advantages, mask), EPSILON, None, BETA, loss_type)
        wild = [
            torch.where(mask, v, 1e30).detach().requires_grad_(i == 0)
            for i, v in enumerate((logps, old, ref))
        ]
        got, gradient, _ = ours((*wild, advantages, mask), EPSILON, None, BETA, loss_type)
        torch.testing.assert_close(got, want)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("filling", [-1e30, 200.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("loss_type", GRPO_LOSSES)
def test_no_filling_reaches_a_gradient(loss_type, filling):
    """Filling that is far apart in a single tensor: an exponential or a product of it would be
    infinite, and 0 times infinity is NaN on the way back."""
    *numbers, mask = example(7)
    numbers[3] = numbers[3][:, None] * torch.ones_like(numbers[0])  # an advantage for each token
    want, gradient, metrics = ours((*numbers, mask), *bounds(loss_type), BETA, loss_type)
    for which in range(4):
        wild = [
            torch.where(mask, v, filling if i == which else 0.0).detach().requires_grad_(i == 0)
            for i, v in enumerate(numbers)
        ]
        # raises for a NaN anywhere on the way back, also where it is cut off again
        with torch.autograd.set_detect_anomaly(True):
            got, slope, wild_metrics = ours((*wild, mask), *bounds(loss_type), BETA, loss_type)
        assert torch.equal(got, want) and torch.equal(slope, gradient)
        assert not slope[~mask].any()
        assert all(torch.equal(metrics[k], wild_metrics[k]) for k in metrics)


def test_token_advantages_and_empty_answers():
    logps, old, ref, advantages, mask = example(5)
    for loss_type in GRPO_LOSSES:
        if loss_type == "gspo":
            continue
        spread = ours(
            (logps, old, ref, advantages[:, None].expand_as(logps), mask),
            EPSILON,
            None,
            BETA,
            loss_type,
        )
        torch.testing.assert_close(
            spread[0], ours((logps, old, ref, advantages, mask), EPSILON, None, BETA, loss_type)[0]
        )
        nothing = ours(
            (logps, old, ref, advantages, torch.zeros_like(mask)), EPSILON, None, BETA, loss_type
        )
        assert float(nothing[0]) == 0 and not nothing[1].any()


def test_cispo_never_stops_learning_where_the_clip_does():
    logps, advantages, mask = (
        torch.tensor([[0.0]], requires_grad=True),
        torch.ones(1),
        torch.ones(1, 1),
    )
    # e³ times as likely as when it was drawn
    old = torch.tensor([[-3.0]])
    assert (
        float(torch.autograd.grad(grpo_loss(logps, old, None, advantages, mask)[0], logps)[0]) == 0
    )
    assert (
        float(
            torch.autograd.grad(
                grpo_loss(logps, old, None, advantages, mask, loss_type="cispo")[0], logps
            )[0]
        )
        == -5
    )
    assert (
        float(
            torch.autograd.grad(
                grpo_loss(logps, old, None, advantages, mask, loss_type="cispo", epsilon_high=2.0)[
                    0
                ],
                logps,
            )[0]
        )
        == -2
    )


@pytest.mark.parametrize(
    "wrong, message",
    [(dict(loss_type="ppo"), "choose one of grpo"), (dict(beta=0.1), "give ref_logps")],
)
def test_wrong_arguments(wrong, message):
    logps, old, _, advantages, mask = example()
    with pytest.raises(ValueError, match=message):
        grpo_loss(logps, old, None, advantages, mask, **wrong)


# --- advantages of groups


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5),
    st.sampled_from(["group", "none", "batch"]),
)
def test_group_advantages(groups, scale):
    got = group_advantages(torch.tensor(groups, dtype=torch.float64).flatten(), 4, scale).view(
        -1, 4
    )
    everything = statistics.stdev(r for g in groups for r in g)
    for group, advantages in zip(groups, got.tolist()):
        mean = math.fsum(group) / 4
        divisor = {"group": statistics.stdev(group) + 1e-4, "batch": everything + 1e-4, "none": 1}[
            scale
        ]
        if len(set(group)) == 1:
            assert advantages == [0] * 4
        else:
            assert advantages == pytest.approx(
                [(r - mean) / divisor for r in group], rel=1e-9, abs=1e-9
            )


def test_group_advantages_are_verls():
    algorithms = pytest.importorskip(
        "verl.trainer.ppo.core_algos",
        reason="verl is no dependency; the formula is compared above",
        exc_type=ImportError,
    )
    rewards = torch.rand(24, generator=torch.Generator().manual_seed(0))
    for scale in (True, False):
        theirs, _ = algorithms.compute_grpo_outcome_advantage(
            rewards[:, None].clone(),
            torch.ones(24, 1),
            np.repeat(np.arange(6), 4),
            epsilon=1e-4,
            norm_adv_by_std_in_grpo=scale,
        )
        torch.testing.assert_close(
            group_advantages(rewards, 4, "group" if scale else "none"),
            theirs[:, 0],
            rtol=1e-6,
            atol=1e-6,
        )


def test_equal_rewards_are_exactly_nothing():
    # the mean of seven times 0.1 is not 0.1
    for value in (0.1, 1 / 3, 0.7, 1e8):
        assert not group_advantages(torch.full((14,), value), 7).any()
    for wrong in (dict(group_size=5), dict(group_size=1), dict(group_size=4, scale="std")):
        with pytest.raises(ValueError):
            group_advantages(torch.zeros(12), **wrong)


# --- SPO's tracker


def test_the_tracker_counts_and_forgets():
    tracker = PromptTracker(3, half_life=0.06, least=0.875, most=0.96, first=0.25)
    # a guess counts as one answer
    assert (
        torch.equal(
            tracker.value(torch.tensor([0, 2])), torch.full((2,), 0.25, dtype=torch.float64)
        )
        and float(tracker.alpha[0] + tracker.beta[0]) == 1
    )
    assert tracker.keep(torch.tensor([0.0, 0.006, 0.06, 9.0])).tolist() == pytest.approx(
        [0.96, 2**-0.1, 0.875, 0.875]
    )
    tracker.update(torch.tensor([1]), torch.tensor([1.0]), torch.tensor([0.0]))
    assert tracker.alpha.tolist() == pytest.approx(
        [0.25, 0.25 * 0.96 + 1, 0.25]
    ) and tracker.beta.tolist() == pytest.approx([0.75, 0.75 * 0.96, 0.75])
    # twice in a batch: forgets once, counts both
    tracker.update(torch.tensor([2, 2]), torch.tensor([1.0, 0.25]), torch.tensor([9.0, 9.0]))
    assert float(tracker.alpha[2]) == pytest.approx(0.25 * 0.875 + 1.25) and float(
        tracker.beta[2]
    ) == pytest.approx(0.75 * 0.875 + 0.75)


@given(st.floats(0.02, 0.98), st.floats(0, 0.2), st.integers(0, 99))
def test_the_tracker_finds_the_chance_and_stays_between_0_and_1(chance, drift, seed):
    tracker, generator = PromptTracker(200), torch.Generator().manual_seed(seed)
    everything = torch.arange(200)
    for _ in range(60):
        tracker.update(
            everything,
            (torch.rand(200, generator=generator) < chance).double(),
            torch.full((200,), drift),
        )
    value = tracker.value(everything)
    assert ((value > 0) & (value < 1)).all() and abs(float(value.mean()) - chance) < 0.05
    memory = tracker.alpha + tracker.beta
    # between 1/(1 - least) and 1/(1 - most)
    assert (memory <= 25 + 1e-6).all() and (memory >= 8 - 1e-2).all()


def test_the_tracker_follows_a_policy_that_gets_better():
    steady, drifting = PromptTracker(1), PromptTracker(1)
    for tracker, drift in ((steady, 0.0), (drifting, 0.2)):
        for right in [0.0] * 30 + [1.0] * 10:
            tracker.update(torch.tensor([0]), torch.tensor([right]), torch.tensor([drift]))
    assert float(drifting.value(torch.tensor([0]))) > float(steady.value(torch.tensor([0]))) + 0.15


def test_prompts_that_are_coins_come_most():
    tracker = PromptTracker(3, first=0.5)
    for _ in range(40):
        tracker.update(torch.tensor([0, 2]), torch.tensor([1.0, 0.0]), torch.zeros(2))
    weights = tracker.weights(0.05)
    assert (
        weights.argmax() == 1
        and float(weights[1]) == pytest.approx(0.55)
        and (weights > 0.05).all()
    )


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.01, 0.99)), min_size=2, max_size=30
    )
)
def test_spo_advantages(pairs):
    rewards, baseline = torch.tensor(pairs, dtype=torch.float64).T
    got = spo_advantages(rewards, baseline).double()
    surprise = rewards - baseline
    assert abs(float(got.mean())) < 1e-4
    if float(surprise.std()) > 1e-2:
        torch.testing.assert_close(
            got, (surprise - surprise.mean()) / surprise.std(), rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(
        spo_advantages(rewards.float(), baseline + 0.0),
        spo_advantages(rewards, baseline),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_tracker_refuses_what_is_no_share():
    for outside in ([1.5], [-0.1]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            PromptTracker(2).update(torch.tensor([0]), torch.tensor(outside), torch.zeros(1))
    for wrong in (dict(least=0.0), dict(least=0.97), dict(half_life=0.0), dict(first=1.0)):
        with pytest.raises(ValueError):
            PromptTracker(2, **wrong)
    with pytest.raises(ValueError, match="knows 3 prompts, the data have 2"):
        PromptTracker(2).load_state_tensors(PromptTracker(3).state_tensors())


# --- the stages

KINDS = {
    "grpo": (GRPOConfig, {}),
    "cispo": (GRPOConfig, dict(loss_type="cispo", scale_rewards="batch")),
    "gspo": (GRPOConfig, dict(loss_type="gspo", epsilon=3e-4, epsilon_high=4e-4)),
    "ppo": (PPOConfig, dict(updates=4, passes=2)),
    "ppo, early stop": (PPOConfig, dict(updates=4, passes=2, target_kl=1e-5)),
    "spo": (SPOConfig, dict(prompts=12, group_size=1)),
}


@rewards.reward("e_share")
def e_share(rows, replies):
    "A reward that every reply has some of: the share of its letters that are e."
    return [sum(c in "eE" for c in reply) / max(len(reply), 1) for reply in replies]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A folder with a model, prompts and held-out prompts."
    world = tmp_path_factory.mktemp("rl")
    texts = [
        row["text"][:600]
        for _, row in zip(range(40), (row for _, row in JsonlReader(sample("pretrain_en.jsonl"))))
    ]
    tokenizer = Tokenizer.train(texts, SHAPE["vocab_size"])
    torch.manual_seed(0)
    save_pretrained(MiniMind(ModelConfig(**SHAPE)), tokenizer, world / "init")
    rows = number_prompts(40)
    for name, part in (("prompts", rows[:32]), ("held", rows[32:])):
        write_lines(world / f"{name}.jsonl", part)
    return world


def config(kind, world, out, **changes):
    cls, own = KINDS[kind]
    settings = dict(
        out=str(out),
        init=str(world / "init"),
        data=world / "prompts.jsonl",
        heldout=world / "held.jsonl",
        steps=12,
        seq_len=64,
        prompts=4,
        group_size=3,
        max_new_tokens=7,
        updates=3,
        beta=0.05,
        reward=("e_share", "length=-0.01"),
        micro_batch_size=5,
        warmup=2,
        log_every=1,
        lr=3e-3,
        device="cpu",
        save_every=100,
    )
    if kind == "spo":
        settings["reward_low"] = -1.0
    return cls(**settings | own | changes)


def run(cfg, **options):
    return (ppo if isinstance(cfg, PPOConfig) else grpo).run(cfg, **options)


@pytest.fixture(scope="module")
def finished(world):
    runs = {}

    def get(kind):
        if kind not in runs:
            cfg = config(kind, world, world / "runs" / kind)
            runs[kind] = cfg, run(cfg)
        return runs[kind]

    return get


def everything(
    folder, step
):  # the tensors of a checkpoint, all of them: weights, critic, optimizer, tracker, rollout, generators
    timed = ("numbers.rollout_tokens_per_second", "numbers.update_tokens_per_second")
    return {
        (f.name, k): v
        for f in sorted((folder / "trainer" / f"step-{step:08d}").glob("*.safetensors"))
        for k, v in read_tensors(f).items()
        if k not in timed
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_says_what_happened(kind, finished):
    cfg, last = finished(kind)
    lines = [line for line in read_metrics(cfg.out) if "loss" in line]
    always = {
        "reward",
        "reward_std",
        "reward_e_share",
        "reward_length",
        "truncated",
        "completion_tokens",
        "entropy",
        "sampler_gap",
        "rollout_tokens_per_second",
        "update_tokens_per_second",
        "kl",
        "kl_step",
        "clip_fraction",
        "ratio",
    }
    assert all(always <= line.keys() for line in lines if not line.get("stopped")) and all(
        ("zero_variance" in line) == (kind != "spo") for line in lines
    )
    # the policy is still the one that drew, and the reference
    first = lines[0]
    assert (
        first["ratio"] == 1
        and first["kl_step"] == 0
        and first["clip_fraction"] == 0
        and first["kl"] == pytest.approx(0, abs=1e-6)
        and first["sampler_gap"] < 1e-4
    )
    stopped = [line for line in lines if line.get("stopped")]
    assert bool(stopped) == (kind == "ppo, early stop") and all(
        "ratio" not in line for line in stopped
    )
    lines = [line for line in lines if line not in stopped]
    assert lines[-1]["kl"] > 1e-5 and max(line["kl_step"] for line in lines) > 1e-7
    assert {
        "heldout_reward",
        "heldout_reward_e_share",
        "heldout_truncated",
        "heldout_completion_tokens",
        "exact_match",
    } <= last.keys()
    assert ("ppo" in kind) == ("value_loss" in first and "stopped" in first)


@pytest.mark.parametrize("kind", KINDS)
def test_used_once_the_ratio_is_exactly_one(kind, world, tmp_path):
    cfg = config(
        kind,
        world,
        tmp_path / "run",
        updates=1,
        steps=3,
        **({"passes": 1} if "ppo" in kind else {}),
    )
    run(cfg)
    assert all(
        line["ratio"] == 1 and line["clip_fraction"] == 0 and line["kl_step"] == 0
        for line in read_metrics(cfg.out)
        if "loss" in line
    )


@pytest.mark.parametrize("kind, at", [(kind, at) for kind in KINDS for at in (5, 7)])
def test_interrupted_in_the_middle_of_a_rollout_it_goes_on_exactly(
    kind, at, world, finished, tmp_path, monkeypatch
):
    whole, last = finished(kind)
    cfg = config(kind, world, tmp_path / "run")
    assert at % cfg.updates
    factor = train.lr_factor

    def interrupting(step, *args):
        if step == at - 1:
            signal.raise_signal(signal.SIGINT)
        return factor(step, *args)

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as m:
            m.setattr(train, "lr_factor", interrupting)
            with pytest.raises(KeyboardInterrupt):
                run(cfg)
    finally:
        signal.signal(signal.SIGINT, old)
    assert checkpoints(cfg.out)[-1].name == f"step-{at:08d}"
    # what the process did in between must not matter
    torch.manual_seed(999)
    resumed = run(cfg)
    want, got = everything(Path(whole.out), 12), everything(Path(cfg.out), 12)
    assert want.keys() == got.keys() and {f for f, _ in want} >= {
        "model.safetensors",
        "optimizer.safetensors",
        "rollout.safetensors",
        "random.safetensors",
    } | {"ppo": {"critic.safetensors"}, "spo": {"tracker.safetensors"}}.get(kind[:3], set())
    assert all(torch.equal(want[k], got[k]) for k in want), [
        k for k in want if not torch.equal(want[k], got[k])
    ]
    timeless = lambda numbers: {k: v for k, v in numbers.items() if "second" not in k}
    assert timeless(resumed) == timeless(last)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_it_goes_on_from_the_checkpoint_in_the_middle_of_a_rollout(
    kind, world, finished, tmp_path, monkeypatch
):
    whole, _ = finished(kind)
    cfg = config(kind, world, tmp_path / "run", save_every=5)
    factor = train.lr_factor

    class Killed(BaseException):
        "Like a signal that can't be caught: nothing is saved on the way out."

    def killing(step, *args):
        if step == 8:
            raise Killed
        return factor(step, *args)

    with monkeypatch.context() as m:
        m.setattr(train, "lr_factor", killing)
        with pytest.raises(Killed):
            run(cfg)
    assert checkpoints(cfg.out)[-1].name == "step-00000005" and 5 % cfg.updates
    run(cfg)
    want, got = everything(Path(whole.out), 12), everything(Path(cfg.out), 12)
    assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want), [
        k for k in want if not torch.equal(want[k], got[k])
    ]


JUDGE = """
import os, time
calls = 0
def letters(rows, replies):
    "The share of e's. At the call that JUDGE_HOLDS names it says so, and waits to be killed."
    global calls
    calls += 1
    if str(calls) == os.environ.get("JUDGE_HOLDS"):
        open("holding", "w").close()
        time.sleep(300)
    return [sum(c in "eE" for c in reply)/max(len(reply), 1) for reply in replies]
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_9_in_the_middle_of_a_rollout(world, tmp_path):
    """A real process, `minimind grpo`, is killed twice while its answers are judged: they are
    drawn, and lost. What it ends with are the bits of a run that was left alone."""
    (tmp_path / "judge.py").write_text(JUDGE)
    argv = [
        sys.executable,
        "-m",
        "minimind",
        "grpo",
        "--init",
        str(world / "init"),
        "--data",
        str(world / "prompts.jsonl"),
        "--heldout",
        str(world / "held.jsonl"),
        "--reward",
        "judge:letters",
        "--steps",
        "12",
        "--prompts",
        "4",
        "--group-size",
        "3",
        "--updates",
        "3",
        "--max-new-tokens",
        "7",
        "--seq-len",
        "64",
        "--beta",
        "0.05",
        "--lr",
        "3e-3",
        "--warmup",
        "2",
        "--log-every",
        "1",
        "--save-every",
        "5",
        "--device",
        "cpu",
        "--no-eval-first",
    ]

    def start(out, holds=""):
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "JUDGE_HOLDS": str(holds),
            "PYTHONPATH": os.pathsep.join(
                [str(tmp_path), str(Path(__file__).resolve().parents[1])]
            ),
        }
        return subprocess.Popen(
            [*argv, "--out", str(out)],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(out):
        process = start(out)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said[-3000:]

    finish(tmp_path / "whole")
    # the rollout of steps 6 to 8; then, from step 5 on, the one of steps 9 to 11
    for holds in (3, 2):
        process = start(tmp_path / "run", holds)
        try:
            until = time.monotonic() + 120
            while not (tmp_path / "holding").exists():
                assert process.poll() is None and time.monotonic() < until, process.communicate()[
                    0
                ][-3000:]
                time.sleep(0.02)
        finally:
            process.kill()  # SIGKILL
        assert process.wait() == -signal.SIGKILL
        (tmp_path / "holding").unlink()
        # itself in the middle of a rollout
        assert checkpoints(tmp_path / "run")[-1].name == "step-00000005"
    finish(tmp_path / "run")
    want, got = (everything(tmp_path / out, 12) for out in ("whole", "run"))
    assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want), [
        k for k in want if not torch.equal(want[k], got[k])
    ]
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "model.safetensors"
    ).read_bytes()
    clocks = {
        "seconds",
        "tokens_per_second",
        "data_seconds",
        "rollout_tokens_per_second",
        "update_tokens_per_second",
    }
    assert [
        {k: v for k, v in line.items() if k not in clocks}
        for line in read_metrics(tmp_path / "run")
    ] == [
        {k: v for k, v in line.items() if k not in clocks}
        for line in read_metrics(tmp_path / "whole")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_but_cut_off_answers_the_weights_stay(kind, world, tmp_path):
    """One token is allowed, so every answer is cut off; all are masked, and a mean over nothing is
    no NaN."""
    cfg = config(
        kind,
        world,
        tmp_path / "run",
        steps=6,
        max_new_tokens=1,
        beta=0.0,
        mask_truncated_completions=True,
        reward="e_share",
    )
    run(cfg)
    (start, _), (end, _) = (load_pretrained(folder) for folder in (world / "init", cfg.out))
    lines = [line for line in read_metrics(cfg.out) if "loss" in line]
    if any(line["truncated"] < 1 for line in lines):
        pytest.skip("an end token was drawn at once")
    assert (
        all(line["loss"] == 0 and line["grad_norm"] == 0 for line in lines)
        and max(line["reward"] for line in lines) > 0
    )
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True))
    assert checkpoints(cfg.out)


def test_another_reward_model_is_another_run(world, tmp_path):
    tokenizer = load_pretrained(world / "init")[1]
    torch.manual_seed(1)
    judge = rewards.RewardModel(MiniMind(ModelConfig(**SHAPE)))
    torch.nn.init.normal_(judge.value_head.weight)
    rewards.save_reward_model(judge, tokenizer, tmp_path / "judge")
    cfg = config("grpo", world, tmp_path / "run", steps=6, reward=(f"model:{tmp_path / 'judge'}",))
    run(cfg)
    # the same one: nothing is left to do
    run(cfg)
    with torch.no_grad():
        judge.value_head.weight.mul_(-1)
    rewards.save_reward_model(judge, tokenizer, tmp_path / "judge")
    with pytest.raises(ValueError, match="reward_sha256 was .*model.safetensors"):
        run(cfg)


def test_spo_draws_prompts_by_what_there_is_to_learn_from_them(world, tmp_path):
    model, tokenizer = load_pretrained(world / "init")

    def chosen(floor):
        single = grpo.SinglePrompts(32, model, config("spo", world, tmp_path / "none", floor=floor))
        # all but the last are always or never solved
        for _ in range(40):
            single.tracker.update(
                torch.arange(31), (torch.arange(31) % 2).double(), torch.zeros(31)
            )
        return [i for number in range(200) for i in single.choose(number)], single

    for floor, least, most in ((0.02, 0.2, 1.01), (100.0, 0.0, 0.12)):
        drawn, single = chosen(floor)
        weights = single.tracker.weights(floor).numpy()
        # twelve of 32 a rollout, without repetition
        shares = np.bincount(drawn, minlength=32) / 200
        assert (
            least < shares[31] - np.median(shares[:31]) < most
            and abs(shares.sum() - 12) < 1e-9
            and (shares[31] == shares.max() or floor > 1)
        )
        assert (
            drawn[:12] == single.choose(0) != drawn[12:24]
            and len(set(drawn[:12])) == 12
            and len(weights) == 32
        )


def raises(rows, replies):
    raise KeyError("no such field")


def is_nan(rows, replies):
    return [math.nan if i == 2 else 0.5 for i in range(len(rows))]


def hangs(rows, replies):
    time.sleep(30)


@pytest.mark.parametrize(
    "broken, message",
    [
        (raises, "raised KeyError: 'no such field'"),
        (is_nan, "returned nan"),
        (hangs, "took longer than 0.5 s"),
    ],
)
@pytest.mark.parametrize("kind", ["grpo", "ppo", "spo"])
def test_a_reward_that_fails_costs_nothing(
    kind, broken, message, world, finished, tmp_path, monkeypatch
):
    whole, _ = finished(kind)
    cfg = config(kind, world, tmp_path / "run", reward_timeout=0.5, eval_first=False)
    calls = []

    def fails_later(rows, replies):
        calls.append(len(rows))
        return e_share(rows, replies) if len(calls) < 3 else broken(rows, replies)

    with monkeypatch.context() as m:
        m.setitem(rewards.REWARDS, "e_share", fails_later)
        with pytest.raises(rewards.RewardError, match="reward 'e_share' .*" + message):
            run(cfg)
    done = 2 * cfg.updates
    assert checkpoints(cfg.out)[-1].name == f"step-{done:08d}"
    # mended, and the clock may be slow here
    monkeypatch.setattr(
        rewards.RewardMix,
        "__init__",
        lambda self, specs, timeout, device, real=rewards.RewardMix.__init__: real(
            self, specs, 60.0, device
        ),
    )
    run(cfg)
    want, got = everything(Path(whole.out), 12), everything(Path(cfg.out), 12)
    assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want)


def test_the_reference_is_the_model_it_began_from_or_the_run_stops(world, tmp_path):
    shutil.copytree(world / "init", tmp_path / "init")
    cfg = config("grpo", world, tmp_path / "run", init=str(tmp_path / "init"), steps=12)
    run(cfg)
    torch.manual_seed(5)
    _, tokenizer = load_pretrained(world / "init")
    # other weights under the same name
    save_pretrained(MiniMind(ModelConfig(**SHAPE)), tokenizer, tmp_path / "init")
    with pytest.raises(ValueError, match="init_sha256 was"):
        run(cfg)


@pytest.mark.parametrize("loss_type", GRPO_LOSSES)
def test_micro_batches_change_nothing(loss_type, world):
    cfg = config("grpo", world, world / "none", loss_type=loss_type, updates=1)
    model, tokenizer = load_pretrained(world / "init")
    prompts = rollout.read_prompts([world / "prompts.jsonl"], tokenizer, 64, 7)

    def prepare(drawn):
        return {"advantages": group_advantages(drawn["rewards"], 3)}

    batches = rollout.RolloutBatches(
        prompts,
        rollout.LocalEngine(model),
        rewards.RewardMix(cfg.reward),
        model,
        model,
        cfg,
        tokenizer,
        prepare,
    )
    batch = batches.at(0)
    mask = batch["labels"][:, 1:] != IGNORE
    # as if the policy had moved
    batch["old_logps"] = torch.where(
        mask,
        batch["logps"] + 0.3 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)),
        0.0,
    )

    def gradients(size):
        loss, weight, metrics = compute_gradients(
            model,
            batch,
            lambda m, b: policy_loss(m, b, cfg),
            TrainConfig(micro_batch_size=size),
            torch.device("cpu"),
            torch.float32,
        )
        grads = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return loss, weight, metrics, grads

    whole = gradients(12)
    for size in (1, 5):
        loss, weight, metrics, grads = gradients(size)
        assert (
            loss == pytest.approx(whole[0], rel=1e-4, abs=1e-6)
            and weight == whole[1]
            and metrics == pytest.approx(whole[2], rel=1e-4, abs=1e-6)
        )
        for a, b in zip(grads, whole[3]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "kind, least", [("grpo", 0.05), ("cispo", 0.05), ("ppo", 0.05), ("spo", 0.02)]
)
def test_learns(kind, least, world, tmp_path):
    cfg = config(
        kind,
        world,
        tmp_path / "run",
        steps=36,
        prompts=16 if kind != "spo" else 48,
        beta=0.0,
        reward="e_share",
        lr=6e-3,
        updates=2,
        **({"passes": 1} if kind == "ppo" else {}),
        log_every=6,
        micro_batch_size=64,
        **({"reward_low": 0.0} if kind == "spo" else {}),
    )
    run(cfg)
    rewards = [line["reward"] for line in read_metrics(cfg.out) if "loss" in line]
    assert rewards[-1] > rewards[0] + least, rewards


def test_spo_refuses_rewards_outside_their_bounds(world, tmp_path):
    with pytest.raises(ValueError, match="reward_low=0.0 and reward_high=1.0: set them"):
        run(config("spo", world, tmp_path / "run", reward=("e_share", "length=-9"), reward_low=0.0))


@pytest.mark.parametrize(
    "kind, wrong, message",
    [
        ("grpo", dict(loss_type="ppo"), "choose one of grpo"),
        ("grpo", dict(group_size=1, prompts=3), "a group needs 2 or more"),
        ("grpo", dict(scale_rewards="std"), "choose group, batch or none"),
        ("grpo", dict(epsilon=-1.0), "zero or positive"),
        ("spo", dict(group_size=2), "one answer for each prompt"),
        ("spo", dict(reward_high=-2.0), "must be below"),
        ("spo", dict(floor=0.0), "must be positive"),
        ("ppo", dict(passes=3), "divide updates=4"),
        ("ppo", dict(lam=1.5), "between 0 and 1"),
        ("ppo", dict(target_kl=-1.0), "zero or positive"),
    ],
)
def test_a_wrong_setting_is_refused(kind, wrong, message, world):
    with pytest.raises(ValueError, match=message):
        config(kind, world, world / "none", **wrong)


def test_the_policy_is_what_is_published(world, finished):
    for kind in KINDS:
        cfg, _ = finished(kind)
        model, _ = load_pretrained(cfg.out)
        start, _ = load_pretrained(world / "init")
        assert isinstance(model, MiniMind) and not torch.equal(
            model.model.embed_tokens.weight, start.model.embed_tokens.weight
        )
