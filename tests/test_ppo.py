"""PPO: advantages and losses against torchtune, verl and plain loops; a critic that is saved; a
stage that resumes exactly in the middle of a rollout."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from minimind import ppo, rewards, rollout
from minimind.checkpoint import checkpoints
from minimind.hub import load_pretrained, read_tensors, save_pretrained
from minimind.core import IGNORE
from minimind.model import MiniMind, ModelConfig
from minimind.ppo import (
    ActorCritic,
    PPOBatches,
    PPOConfig,
    actor_critic_loss,
    clipped_loss,
    gae,
    k3,
    ppo_loss,
    prepare_advantages,
    whiten,
)
from minimind.tokenizer import Tokenizer
from minimind.train import TrainConfig, compute_gradients
from minimind.log import read_metrics
from shared import SHAPE, number_prompts, write_lines


def example(seed=0, B=6, T=11, dtype=torch.float64, spread=0.4):
    """Numbers about drawn tokens; the masks have prompts, padding and holes (a tool's answer), one
    has a single token."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(B, T, generator=generator, dtype=dtype)

    old, ref = -normal().abs(), -normal().abs()
    logps, old_values, returns = (old + spread * normal()).requires_grad_(), normal(), normal()
    values = (old_values + 0.3 * normal()).requires_grad_()
    mask = torch.rand(B, T, generator=generator) < 0.6
    mask[0], mask[0, 4] = False, True
    return dict(
        logps=logps,
        old_logps=old,
        advantages=normal(),
        mask=mask,
        values=values,
        old_values=old_values,
        returns=returns,
        ref_logps=ref,
    )


def contiguous(mask):  # the same numbers of tokens, without holes: what torchtune knows
    return torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)


# --- advantages


def gae_by_hand(rewards, values, mask, gamma, lam):
    "The sum of the definition: A_t = Σ_k (γλ)^k δ_{t+k}, over the marked tokens only."
    advantages = [[0.0] * len(row) for row in mask]
    for b, row in enumerate(mask):
        at = [t for t, m in enumerate(row) if m]
        r, v = [rewards[b][t] for t in at], [values[b][t] for t in at] + [0.0]
        delta = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(at))]
        for i, t in enumerate(at):
            advantages[b][t] = math.fsum((gamma * lam) ** k * d for k, d in enumerate(delta[i:]))
    return advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_its_definition(gamma, lam):
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 8, 13, generator=generator, dtype=torch.float64)
    mask = torch.rand(8, 13, generator=generator) < 0.6
    mask[0] = False
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(
        advantages,
        torch.tensor(
            gae_by_hand(rewards.tolist(), values.tolist(), mask.tolist(), gamma, lam),
            dtype=torch.float64,
        ),
        rtol=1e-12,
        atol=1e-12,
    )
    assert not advantages[~mask].any() and not returns[~mask].any()
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])
    # what stands outside the mask does not matter, not even if it is no number
    wild = torch.where(mask, rewards, torch.nan), torch.where(mask, values, torch.nan)
    assert torch.equal(gae(*wild, mask, gamma, lam)[0], advantages)


def test_gae_of_a_reward_at_the_end():
    values, mask = torch.tensor([[0.2, 0.5, 0.4, 9.0]]), torch.tensor([[True, True, True, False]])
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    # the reward minus the estimate
    torch.testing.assert_close(
        gae(rewards, values, mask, 1.0, 1.0)[0], torch.tensor([[0.8, 0.5, 0.6, 0.0]])
    )
    # the next estimate minus this one
    torch.testing.assert_close(
        gae(rewards, values, mask, 1.0, 0.0)[0], torch.tensor([[0.3, -0.1, 0.6, 0.0]])
    )
    assert not gae(rewards, values, mask)[0].requires_grad


def test_gae_is_verls_and_torchtunes():
    generator = torch.Generator().manual_seed(2)
    rewards, values = torch.randn(2, 8, 13, generator=generator, dtype=torch.float64)
    holes, mask = torch.rand(8, 13, generator=generator) < 0.6, torch.ones(8, 13, dtype=torch.bool)
    compared = 0
    try:
        from verl.trainer.ppo.core_algos import compute_gae_advantage_return
    except ImportError:
        pass
    else:
        theirs, their_returns = compute_gae_advantage_return(
            rewards, values, holes.double(), 0.99, 0.95
        )
        advantages, returns = gae(rewards, values, holes, 0.99, 0.95)
        torch.testing.assert_close(
            whiten(advantages, holes)[holes], theirs[holes], rtol=1e-7, atol=1e-7
        )
        torch.testing.assert_close(returns[holes], their_returns[holes], rtol=1e-12, atol=1e-12)
        compared += 1
    try:
        from torchtune.rlhf.rewards import estimate_advantages
    except ImportError:
        pass
    else:
        _, their_returns = estimate_advantages(values, rewards, 0.99, 0.95, mask)
        torch.testing.assert_close(
            gae(rewards, values, mask, 0.99, 0.95)[1], their_returns, rtol=1e-12, atol=1e-12
        )
        compared += 1
    if not compared:
        pytest.skip("neither verl nor torchtune is a dependency; the definition is compared above")


@given(st.integers(0, 1000), st.floats(-10, 10), st.floats(0.1, 10))
def test_whitening(seed, shift, scale):
    generator = torch.Generator().manual_seed(seed)
    x, mask = (
        torch.randn(4, 7, generator=generator, dtype=torch.float64),
        torch.rand(4, 7, generator=generator) < 0.5,
    )
    mask[0, :3] = True
    white = whiten(x * scale + shift, mask)
    assert (
        not white[~mask].any()
        and abs(float(white[mask].mean())) < 1e-9
        and float(white[mask].std()) == pytest.approx(1, rel=1e-5)
    )
    torch.testing.assert_close(white, whiten(x, mask), rtol=1e-5, atol=1e-6)
    assert torch.equal(white, whiten(torch.where(mask, x * scale + shift, torch.nan), mask))


def test_whitening_of_little():
    one = torch.zeros(2, 3, dtype=torch.bool)
    assert not whiten(torch.randn(2, 3), one).any()
    one[0, 0] = True
    assert (
        not whiten(torch.randn(2, 3), one).any() and not whiten(torch.full((2, 3), 7.0), ~one).any()
    )


# --- losses


def by_hand(x, epsilon, value_epsilon, value_coef, beta):
    "The same numbers one at a time, with Python's floats; gradients by the chain rule."
    at = x["mask"].nonzero().tolist()
    total, n = 0.0, len(at)
    slopes = {k: torch.zeros(x["mask"].shape, dtype=torch.float64) for k in ("logps", "values")}
    for b, t in at:
        lp, old, A, v, v_old, R, ref = (
            x[k][b, t].item()
            for k in (
                "logps",
                "old_logps",
                "advantages",
                "values",
                "old_values",
                "returns",
                "ref_logps",
            )
        )
        ratio = math.exp(lp - old)
        inside = min(max(ratio, 1 - epsilon), 1 + epsilon)
        pushed = ratio * A <= inside * A
        total += -ratio * A if pushed else -inside * A
        slopes["logps"][b, t] = (-ratio * A if pushed else 0.0) + beta * (1 - math.exp(ref - lp))
        near = v_old + min(max(v - v_old, -value_epsilon), value_epsilon)
        whole = (v - R) ** 2 >= (near - R) ** 2
        total += value_coef * 0.5 * max((v - R) ** 2, (near - R) ** 2) + beta * (
            math.exp(ref - lp) - (ref - lp) - 1
        )
        slopes["values"][b, t] = value_coef * (v - R) if whole else 0.0
    return total / n, {k: s / n for k, s in slopes.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.0, 0.07])
def test_loss_and_gradients_are_those_of_plain_loops(seed, beta):
    x = example(seed)
    want, slopes = by_hand(x, 0.2, 0.25, 0.6, beta)
    loss, metrics = ppo_loss(**x, epsilon=0.2, value_epsilon=0.25, value_coef=0.6, beta=beta)
    gradients = torch.autograd.grad(loss, [x["logps"], x["values"]])
    assert float(loss.detach()) == pytest.approx(want, rel=1e-9)
    for got, wanted in zip(gradients, slopes.values()):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert (
        0 < float(metrics["clip_fraction"]) < 1
        and float(metrics["kl"]) > 0
        and metrics.keys()
        == {"policy_loss", "clip_fraction", "ratio", "kl_step", "value_loss", "value", "kl"}
    )
    single = {
        k: v.detach().float().requires_grad_(k in slopes) if v.dtype == torch.float64 else v
        for k, v in x.items()
    }
    loss32, _ = ppo_loss(**single, epsilon=0.2, value_epsilon=0.25, value_coef=0.6, beta=beta)
    assert float(loss32.detach()) == pytest.approx(want, abs=1e-6)
    for got, wanted in zip(
        torch.autograd.grad(loss32, [single["logps"], single["values"]]), slopes.values()
    ):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_loss_and_gradients_are_torchtunes():
    rlhf = pytest.importorskip(
        "torchtune.rlhf.loss.ppo",
        reason="torchtune is no dependency; the loops above are compared always",
        exc_type=ImportError,
    )
    x = example(4)
    x["mask"] = contiguous(x["mask"])
    theirs, policy_loss, value_loss, *_ = rlhf.PPOLoss(0.2, 0.25, 0.6)(
        x["old_logps"],
        x["logps"],
        x["advantages"],
        x["old_values"],
        x["values"],
        x["returns"],
        x["mask"],
        x["mask"],
    )
    loss, metrics = ppo_loss(**x, epsilon=0.2, value_epsilon=0.25, value_coef=0.6)
    torch.testing.assert_close(loss, theirs, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(metrics["policy_loss"], policy_loss, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(metrics["value_loss"], value_loss, rtol=1e-8, atol=1e-8)
    for key in ("logps", "values"):
        ours, wanted = (
            torch.autograd.grad(v, x[key], retain_graph=True)[0] for v in (loss, theirs)
        )
        torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-8)


def test_loss_and_gradients_are_verls():
    algorithms = pytest.importorskip(
        "verl.trainer.ppo.core_algos",
        reason="verl is no dependency; the loops above are compared always",
        exc_type=ImportError,
    )
    x = example(5)
    config = algorithms.ActorConfig(
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        clip_ratio_c=100.0,
        rollout_n=1,
        strategy="fsdp",
        use_dynamic_bsz=True,
    )
    policy_loss, _ = algorithms.compute_policy_loss_vanilla(
        x["old_logps"], x["logps"], x["advantages"], x["mask"].double(), config=config
    )
    value_loss, _ = algorithms.compute_value_loss(
        x["values"], x["returns"], x["old_values"], x["mask"].double(), 0.25
    )
    kl = algorithms.kl_penalty(x["logps"], x["ref_logps"], "k3")
    theirs = policy_loss + 0.6 * value_loss + 0.07 * (kl * x["mask"]).sum() / x["mask"].sum()
    loss, _ = ppo_loss(**x, epsilon=0.2, value_epsilon=0.25, value_coef=0.6, beta=0.07)
    torch.testing.assert_close(loss, theirs, rtol=1e-6, atol=1e-8)
    for key in ("logps", "values"):
        ours, wanted = (
            torch.autograd.grad(v, x[key], retain_graph=True)[0] for v in (loss, theirs)
        )
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-8)


def test_what_lies_outside_the_mask_does_not_matter():
    x = example(6)
    want, _ = ppo_loss(**x, beta=0.1)
    wild = {
        k: torch.where(x["mask"], v, 1e30).detach().requires_grad_(k in ("logps", "values"))
        if k != "mask"
        else v
        for k, v in x.items()
    }
    got, _ = ppo_loss(**wild, beta=0.1)
    torch.testing.assert_close(got, want)
    assert all(
        torch.isfinite(g).all() for g in torch.autograd.grad(got, [wild["logps"], wild["values"]])
    )


FILLINGS = [-1e30, 200.0, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("which", [k for k in example() if k != "mask"])
def test_no_filling_reaches_a_gradient(which, filling):
    """Filling that is far apart in a single tensor: an exponential or a product of it would be
    infinite, and 0 times infinity is NaN on the way back."""
    for old in ("old_logps", None):
        x = example(8)
        x = x if old else x | dict(old_logps=None)
        if x[which] is None:
            continue
        wild = x | {which: torch.where(x["mask"], x[which], filling)}
        wild |= {k: wild[k].detach().requires_grad_() for k in ("logps", "values")}
        results = []
        for values in (x, wild):
            # raises for a NaN anywhere on the way back, also where it is cut off again
            with torch.autograd.set_detect_anomaly(True):
                loss, metrics = ppo_loss(**values, beta=0.1)
                gradients = torch.autograd.grad(loss, [values["logps"], values["values"]])
            results.append((loss.detach(), gradients, metrics))
        (want, gradients, metrics), (got, wild_gradients, wild_metrics) = results
        assert torch.equal(got, want) and all(map(torch.equal, gradients, wild_gradients))
        assert all(torch.equal(metrics[k], wild_metrics[k]) for k in metrics)
        assert not any(g[~x["mask"]].any() for g in wild_gradients)


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("which", ["values", "old_values", "returns"])
def test_no_filling_reaches_the_critic(which, filling):
    "The same for the value loss alone: what is used when the policy is done with a rollout."
    x = example(9)
    numbers = {k: x[k] for k in ("values", "old_values", "returns", "mask")}
    wild = numbers | {which: torch.where(x["mask"], x[which], filling)}
    wild["values"] = wild["values"].detach().requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        want, got = (ppo.value_loss(**v) for v in (numbers, wild))
        (slope,), (wild_slope,) = (
            torch.autograd.grad(loss, v["values"]) for loss, v in ((want, numbers), (got, wild))
        )
    assert torch.equal(want, got) and torch.equal(slope, wild_slope)


@given(st.floats(-2, 2), st.floats(-3, 3))
def test_the_clip_only_ever_takes_the_worse_view(log_ratio, advantage):
    ratio = torch.tensor(log_ratio, dtype=torch.float64).exp()
    loss, clipped = clipped_loss(ratio, advantage, 0.2, 0.3)
    assert float(loss) >= float(-advantage * ratio) - 1e-12 and bool(clipped) == (
        (advantage > 0 and float(ratio) > 1.3) or (advantage < 0 and float(ratio) < 0.8)
    )
    assert float(loss) == pytest.approx(
        float(max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.3)))
    )


@given(st.floats(-8, 0), st.floats(-8, 0))
def test_k3_is_never_negative(logp, ref):
    value = float(
        k3(torch.tensor(logp, dtype=torch.float64), torch.tensor(ref, dtype=torch.float64))
    )
    assert value >= 0 and (abs(logp - ref) < 1e-4 or value > 0)


def test_k3_estimates_the_divergence():
    policy, ref = (
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64),
    )
    assert float((policy * k3(policy.log(), ref.log())).sum()) == pytest.approx(
        float((policy * (policy / ref).log()).sum()), rel=1e-12
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(beta=0.1, ref_logps=None), "give ref_logps"),
        (dict(returns=None), "needs old_values and returns"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        ppo_loss(**example() | wrong)


def test_without_old_numbers_the_ratio_is_one():
    x = example()
    loss, metrics = ppo_loss(x["logps"], None, x["advantages"], x["mask"])
    assert (
        float(metrics["ratio"]) == 1
        and float(metrics["clip_fraction"]) == 0
        and float(metrics["kl_step"]) == 0
        and metrics.keys() == {"policy_loss", "clip_fraction", "ratio", "kl_step"}
    )
    torch.testing.assert_close(
        torch.autograd.grad(loss, x["logps"])[0], -x["advantages"] * x["mask"] / x["mask"].sum()
    )


# --- actor and critic (that the stage resumes exactly is tested in test_grpo.py, together with the
# others)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("ppo")
    tokenizer = Tokenizer.train(["some words for a small vocabulary, and more of them"] * 20, 300)
    torch.manual_seed(0)
    config = ModelConfig(**SHAPE | dict(vocab_size=300))
    save_pretrained(MiniMind(config), tokenizer, world / "init")
    write_lines(world / "prompts.jsonl", number_prompts(24))
    return world


def config(world, out, **changes):
    settings = dict(
        out=str(out),
        init=str(world / "init"),
        data=world / "prompts.jsonl",
        eval_rows=0,
        steps=8,
        seq_len=64,
        prompts=4,
        group_size=3,
        max_new_tokens=7,
        updates=4,
        passes=2,
        reward="length",
        micro_batch_size=5,
        warmup=1,
        log_every=1,
        lr=3e-3,
        device="cpu",
        save_every=100,
    )
    return PPOConfig(**settings | changes)


def parts(world, cfg):  # model, batches
    policy, tokenizer = load_pretrained(world / "init")
    model = ActorCritic(policy)
    prompts = rollout.read_prompts([world / "prompts.jsonl"], tokenizer, 64, cfg.max_new_tokens)
    return model, PPOBatches(
        prompts,
        rollout.LocalEngine(policy),
        rewards.RewardMix(cfg.reward),
        policy,
        policy,
        cfg,
        tokenizer,
        lambda drawn: prepare_advantages(drawn, model, cfg),
    )


def test_the_critic_knows_only_what_was_said(world):
    model, _ = parts(world, config(world, "none"))
    torch.nn.init.normal_(model.critic.value_head.weight)
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    values = model.values(ids)
    changed = ids.clone()
    # token 5 is the action of position 4
    changed[:, 5] = (ids[:, 5] + 1) % 300
    assert (
        values.shape == (2, 8)
        and torch.equal(model.values(changed)[:, :5], values[:, :5])
        and not torch.equal(model.values(changed)[:, 5:], values[:, 5:])
    )
    assert model.critic.model is not model.policy.model and not {
        id(p) for p in model.critic.parameters()
    } & {id(p) for p in model.policy.parameters()}


def test_advantages_of_a_rollout(world):
    cfg = config(world, "none", gamma=0.9, lam=0.8)
    model, batches = parts(world, cfg)
    torch.nn.init.normal_(model.critic.value_head.weight)
    drawn, _ = batches.maker.make(0)
    mask = drawn["labels"][:, 1:] != IGNORE
    for row in range(len(mask)):  # each answer by itself
        at = mask[row].nonzero()[:, 0]
        values = model.values(drawn["input_ids"][row : row + 1, : at[-1] + 2])[:, at]
        torch.testing.assert_close(drawn["values"][row, at], values[0], rtol=1e-4, atol=1e-5)
        rewards = torch.zeros(1, len(at))
        rewards[0, -1] = drawn["rewards"][row]
        torch.testing.assert_close(
            drawn["returns"][row, at],
            gae(rewards, values, torch.ones(1, len(at), dtype=torch.bool), 0.9, 0.8)[1][0],
            rtol=1e-4,
            atol=1e-5,
        )
    advantages = drawn["advantages"]
    assert (
        not advantages[~mask].any()
        and abs(float(advantages[mask].mean())) < 1e-5
        and float(advantages[mask].std()) == pytest.approx(1, abs=1e-4)
    )


def test_each_row_is_used_once_a_pass(world):
    cfg = config(world, "none", prompts=4, group_size=3, updates=6, passes=2)
    _, batches = parts(world, cfg)
    assert cfg.batch_size == 4
    seen = []
    for step in range(6):
        batches.at(step)
        seen.append(batches.rows_of(step).tolist())
    assert [sorted(sum(seen[i : i + 3], [])) for i in (0, 3)] == [list(range(12))] * 2 and seen[
        :3
    ] != seen[3:]
    assert len(batches.sources(5)) == 4


def test_micro_batches_change_nothing(world):
    cfg = config(world, "none", updates=2, passes=1, beta=0.05)
    model, batches = parts(world, cfg)
    torch.nn.init.normal_(model.critic.value_head.weight, std=0.1)
    # the first step is the sampler's own
    assert "old_logps" not in batches.at(0)
    batch = batches.at(1)
    mask = batch["labels"][:, 1:] != IGNORE

    def noise(seed):
        return torch.where(
            mask, 0.3 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)), 0.0
        )

    # as if both had moved
    batch |= {"old_logps": batch["old_logps"] + noise(0), "values": batch["values"] + noise(1)}

    def gradients(size):
        loss, weight, metrics = compute_gradients(
            model,
            batch,
            lambda m, b: actor_critic_loss(m, b, cfg, batches),
            TrainConfig(micro_batch_size=size),
            torch.device("cpu"),
            torch.float32,
        )
        grads = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return loss, weight, metrics, grads

    whole = gradients(6)
    for size in (1, 4):
        loss, weight, metrics, grads = gradients(size)
        assert (
            loss == pytest.approx(whole[0], rel=1e-4, abs=1e-6)
            and weight == whole[1] == int(mask.sum())
            and metrics == pytest.approx(whole[2], rel=1e-4, abs=1e-6)
        )
        for a, b in zip(grads, whole[3]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_policy_that_has_moved_too_far_waits_for_the_next_rollout(world, tmp_path):
    """From the second step of a rollout on only the critic learns; with the bound out of reach both
    do."""

    def weights(step, folder):
        tensors = {
            name: read_tensors(
                Path(folder) / "trainer" / f"step-{step:08d}" / f"{name}.safetensors"
            )
            for name in ("model", "critic")
        }
        return {
            name: torch.cat([v.flatten() for _, v in sorted(t.items())])
            for name, t in tensors.items()
        }

    for target, moves in ((1e-9, False), (1e9, True)):
        cfg = config(
            world, tmp_path / f"run{moves}", target_kl=target, save_every=1, keep=20, lr=1e-2
        )
        ppo.run(cfg)
        stopped = [line["stopped"] for line in read_metrics(cfg.out)]
        # the first step's ratio is 1: it shows at the second that the policy has moved
        assert stopped == ([0, 0, 0, 0] * 2 if moves else [0, 0, 1, 1] * 2), stopped
        then, now = weights(2, cfg.out), weights(4, cfg.out)
        assert torch.equal(then["model"], now["model"]) != moves and not torch.equal(
            then["critic"], now["critic"]
        )
        assert len(checkpoints(cfg.out)) == 8


def test_the_critic_learns_what_to_expect(world, tmp_path, monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "always", lambda rows, replies: [1.0] * len(rows))
    cfg = config(world, tmp_path / "run", steps=40, reward="always", lr=5e-3, log_every=4)
    ppo.run(cfg)
    lines = read_metrics(cfg.out)
    assert (
        lines[0]["value_loss"] > 0.2
        and lines[-1]["value_loss"] < 0.02
        and abs(lines[-1]["value"] - 1) < 0.2
    )
