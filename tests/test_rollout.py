"""Rollouts: sampled and scored alike, the same after a resume; rewards that fail say so; servers,
reward models, prompts that do not fit."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from minimind import rewards, rollout
from minimind.chat import encode_chat
from minimind.hub import load_model, read_tensors, save_pretrained
from minimind.core import IGNORE
from minimind.data import BadLine
from minimind.dpo import PairBatches, read_pairs
from minimind.evaluate import is_right
from minimind.generate import Request, complete, generate
from minimind.sampling import Draw, exponential_noise
from minimind.model import PRESETS, MiniMind
from minimind.rewards import (
    REWARDS,
    Judge,
    ModelReward,
    RewardError,
    RewardMix,
    RewardModel,
    load_reward_model,
    parse_reward,
    preference_reward_loss,
    reward_loss,
    save_reward_model,
)
from minimind.remote import EngineError, ServerEngine
from minimind.rollout import (
    Completion,
    InTurn,
    LocalEngine,
    RLConfig,
    RolloutBatches,
    completion_rows,
    cut_rows,
    measure_reward,
    read_prompts,
    reply_text,
    rollout_logps,
    score_rows,
)
from minimind.tokenizer import Tokenizer
from minimind.train import TrainConfig, fit
from minimind.optim import build_optimizer


@pytest.fixture(scope="module")
def tokenizer():
    import warnings

    texts = [
        "你好，世界。春眠不觉晓，处处闻啼鸟。",
        "What is 12 + 34? 2+4=6, 1+3=4. 12+34=46",
        "the answer is 7",
    ] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tokenizer.train(texts, vocab_size=400)


def build(tokenizer, shape="ci", seed=0, spread=2.0, **changes):
    """A model of a preset's shape that has opinions: its logits are spread, so that
    log-probabilities are of all sizes."""
    torch.manual_seed(seed)
    model = MiniMind(
        replace(
            PRESETS[shape],
            vocab_size=len(tokenizer),
            **(dict(max_position_embeddings=256, num_hidden_layers=2) | changes),
        )
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(spread)
    return model


def write_jsonl(path, rows):
    path.write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
    )
    return path


def question(a, b):
    return {
        "conversations": [
            {"role": "user", "content": f"{a} + {b} = ?"},
            {"role": "assistant", "content": "无"},
        ],
        "answer": str(a + b),
    }


@pytest.fixture(scope="module")
def prompts(tokenizer, tmp_path_factory):
    file = write_jsonl(
        tmp_path_factory.mktemp("prompts") / "sums.jsonl",
        [question(10 ** (i % 4), 7 * i) for i in range(10)],
    )
    return read_prompts([file], tokenizer, seq_len=96, max_new_tokens=12)


def config(**changes):
    return RLConfig(
        **(
            dict(prompts=3, group_size=4, max_new_tokens=12, seq_len=96, seed=1, reward=("length",))
            | changes
        )
    )


def batches_of(model, prompts, tokenizer, cfg, reference=None, **options):
    return RolloutBatches(
        prompts,
        LocalEngine(model),
        RewardMix(cfg.reward, cfg.reward_timeout),
        model,
        reference,
        cfg,
        tokenizer,
        **options,
    )


# ---- the sampler


@pytest.mark.parametrize("shape", ["ci", "ci-moe"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sampler_tells_what_the_learner_finds(tokenizer, shape, temperature):
    "Sampling: cache, left padding, one token at a time. Learning: whole rows, padded on the right."
    model = build(tokenizer, shape)
    prompts = [list(range(40, 40 + n)) for n in (1, 3, 17, 30)]
    groups = LocalEngine(model).sample(prompts, 5, 20, temperature, seed=3)
    batch = completion_rows([(p, c) for p, group in zip(prompts, groups) for c in group])
    mine = score_rows(model, batch, temperature, size=3)
    asked = batch["labels"][:, 1:] != IGNORE
    assert (
        (mine - batch["logps"])[asked].abs().max() < 1e-4
        and not mine[~asked].any()
        and not batch["logps"][~asked].any()
    )
    assert batch["logps"][asked].min() < -5 and asked.sum(1).tolist() == [
        len(c.ids) for group in groups for c in group
    ]
    with torch.enable_grad():
        again = rollout_logps(model, batch, temperature)
    assert torch.allclose(again, mine, atol=1e-5)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 2**40)
)
@settings(max_examples=15, deadline=None)
def test_one_prefill_for_all_copies(tokenizer, lengths, copies, seed):
    "A prompt that is computed once for its group gives what computing it for each row gives."
    model = build(tokenizer)
    prompts = [list(range(40 + 5 * i, 40 + 5 * i + n)) for i, n in enumerate(lengths)]
    together = LocalEngine(model).sample(prompts, copies, 12, 1.0, seed=seed)
    rows = [p for p in prompts for _ in range(copies)]
    seeds = rollout.row_seeds(seed, len(rows))
    alone = generate(model, rows, 12, temperature=1.0, top_p=1.0, seed=seeds)
    assert [c.ids for group in together for c in group] == alone


def test_a_long_prompt_is_computed_once_for_its_group(tokenizer):
    model, prompt = build(tokenizer), list(range(40, 80))
    told = complete(model, [Request(prompt, 5, temperature=1.0, seed=i) for i in range(8)])
    # but for the last token, whose state the first draw needs
    assert [events[0].cached for events in told] == [0] + 7 * [39]


def test_copies_may_use_the_context_that_is_left(tokenizer):
    model = build(tokenizer, max_position_embeddings=32)
    groups = LocalEngine(model).sample([[50] * 4, [60] * 28], 3, 100, 1.0, seed=0)
    assert all(len(c.ids) <= 28 for c in groups[0]) and all(len(c.ids) <= 4 for c in groups[1])
    with pytest.raises(ValueError, match="group_size=0"):
        LocalEngine(model).sample([[50]], 0, 5, 1.0, seed=0)


def test_draws_do_not_depend_on_the_batch(tokenizer):
    model, prompts = build(tokenizer), [[50, 51], [60] * 7, [70, 71, 72]]
    whole = LocalEngine(model).sample(prompts, 4, 15, 1.0, seed=9)
    pieces = LocalEngine(model, rows=4).sample(prompts, 4, 15, 1.0, seed=9)
    assert [[c.ids for c in g] for g in whole] == [[c.ids for c in g] for g in pieces]
    assert len({tuple(c.ids) for c in whole[0]}) > 1 and whole != LocalEngine(model).sample(
        prompts, 4, 15, 1.0, seed=10
    )


def test_no_two_rows_share_their_random_numbers():
    """torch's own generator looks at 32 bits of a seed: of a million rows a hundred pairs would
    draw with the same numbers."""
    assert torch.equal(
        *(torch.rand(3, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32))
    )
    for a, b in ((5, 5 + 2**32), (5 + 2**32, 5 + 2**33), (2**62 + 7, 2**61 + 7)):
        one, other = exponential_noise([Draw(a), Draw(b)], 20)
        assert not (one == other).any()
        assert set(rollout.row_seeds(a, 9)).isdisjoint(rollout.row_seeds(b, 9))
    seeds = [s for number in range(1000) for s in rollout.row_seeds(2**40 + number, 1000)]
    # int64 for every server, also when it counts on from one
    assert len(set(seeds)) == 10**6 and 2**61 < max(seeds) < 2**62 and min(seeds) >= 0
    u = (-exponential_noise([Draw(s) for s in seeds[:4000]], 5)).exp()
    assert 0 < u.min() and u.max() < 1
    # of 20,000 uniform numbers: four standard errors of mean and variance
    assert abs(float(u.mean()) - 0.5) < 0.01 and abs(float(u.var()) - 1 / 12) < 0.003
    assert abs(float(torch.corrcoef(u.T)[0, 1])) < 0.05


def test_whoever_draws_a_row_draws_the_same(tokenizer):
    model, prompts = build(tokenizer), [[50, 51], [60] * 7, [70, 71, 72]]
    whole, seeds = LocalEngine(model).sample(prompts, 2, 15, 1.0, seed=9), rollout.row_seeds(9, 6)
    assert [
        [c.ids for c in g] for g in LocalEngine(model).sample(prompts[1:], 2, 15, 1.0, seeds[2:])
    ] == [[c.ids for c in g] for g in whole[1:]]


def test_sampling_leaves_torchs_generator_alone(tokenizer):
    before = torch.get_rng_state()
    LocalEngine(build(tokenizer)).sample([[50]], 4, 5, 1.0, seed=0)
    torch.manual_seed(0)
    LocalEngine(m := build(tokenizer))
    state = torch.get_rng_state()
    LocalEngine(m).sample([[50]], 4, 5, 1.0, seed=0)
    assert torch.equal(state, torch.get_rng_state()) and len(before)


def test_logps_are_of_the_distribution_that_is_drawn_from(tokenizer):
    "Also with top-k: then they are higher than the untruncated ones, by the mass that was cut off."
    model, prompt = build(tokenizer), [50, 51, 52]
    ((event,),) = complete(model, [Request(prompt, 1, temperature=0.8, top_k=5, top_p=1.0, seed=1)])
    top = (model(torch.tensor([prompt]))[0, -1].detach() / 0.8).topk(5)
    place = top.indices.tolist().index(event.token)
    assert abs(event.logp - float(top.values.log_softmax(-1)[place])) < 1e-5
    (events,) = complete(model, [Request(prompt, 3, temperature=0)])
    assert all(event.logp == 0 for event in events)


def test_truncated_completions_are_marked(tokenizer):
    model = build(tokenizer, spread=1.0)
    done = [
        c
        for group in LocalEngine(model).sample([[50, 51], [60]], 200, 40, 1.0, seed=0)
        for c in group
    ]
    cut = [c for c in done if c.truncated]
    assert 0 < len(cut) < len(done) and all(len(c.ids) == 40 and 2 not in c.ids for c in cut)
    assert all(c.ids.index(2) == len(c.ids) - 1 for c in done if not c.truncated)
    at_the_last = next((c for c in done if len(c.ids) == 40 and c.ids[-1] == 2), None)
    assert at_the_last is None or not at_the_last.truncated
    assert not LocalEngine(model).sample([[50]], 1, 1, 1.0, seed=0)[0][0].ids == []
    rows = completion_rows([([50, 51], done[0]), ([60], done[-1])])
    assert rows["truncated"].tolist() == [done[0].truncated, done[-1].truncated]


def test_rewards_see_what_was_cut_off(tokenizer, prompts, monkeypatch):
    seen = []

    def watching(rows, replies):
        seen.extend(row["truncated"] for row in rows)
        return [0.0] * len(rows)

    monkeypatch.setitem(REWARDS, "watching", watching)
    batches = batches_of(
        build(tokenizer, spread=1.0),
        prompts,
        tokenizer,
        config(prompts=8, max_new_tokens=40, reward=("watching", "truncated=-0.5")),
    )
    batch = batches.at(0)
    assert (
        seen == batches.rollout["truncated"].tolist()
        and 0 < sum(seen) < len(seen)
        and all(type(cut) is bool for cut in seen)
    )
    assert (
        torch.equal(batch["rewards"], torch.where(batch["truncated"], -0.5, 0.0))
        and batches.numbers()["reward_truncated"] == batches.numbers()["truncated"]
    )
    # the row of the file stays as it is
    assert "truncated" not in prompts[0].row
    seen.clear()
    assert RewardMix(("watching", "truncated"))([{}] * 2, ["a", "b"])[0].tolist() == [
        0,
        0,
    ] and seen == [False, False]
    numbers = measure_reward(
        build(tokenizer, spread=1.0), tokenizer, prompts, RewardMix("truncated"), config()
    )
    assert numbers["reward"] == numbers["truncated"] > 0


@pytest.mark.parametrize("updates", [1, 2])
def test_what_was_cut_off_can_be_left_out_of_the_loss(tokenizer, prompts, updates):
    """Its labels go, nothing else: rewards and groups stay whole, and so does the rollout that a
    checkpoint keeps."""
    plain, masked = (
        batches_of(
            build(tokenizer, spread=1.0),
            prompts,
            tokenizer,
            config(
                prompts=10,
                group_size=8,
                max_new_tokens=40,
                updates=updates,
                mask_truncated_completions=mask,
            ),
        )
        for mask in (False, True)
    )
    for step in range(updates):
        a, b = plain.at(step), masked.at(step)
        cut = a["truncated"]
        assert 0 < cut.sum() < len(cut) and all(torch.equal(a[k], b[k]) for k in a if k != "labels")
        assert (
            (b["labels"][cut] == IGNORE).all()
            and torch.equal(a["labels"][~cut], b["labels"][~cut])
            and (a["labels"][cut] != IGNORE).any(1).all()
        )
    assert (
        torch.equal(plain.rollout["labels"], masked.rollout["labels"])
        and plain.numbers()["completion_tokens"] == masked.numbers()["completion_tokens"]
    )


def test_reply_text(tokenizer):
    ids = tokenizer.encode("你好 2")
    assert (
        reply_text(tokenizer, Completion([*ids, 2], [0.0] * (len(ids) + 1), False), {2})
        == reply_text(tokenizer, Completion(ids, [0.0] * len(ids), True), {2})
        == "你好 2"
    )


def test_rows_of_the_learner():
    batch = completion_rows(
        [([5, 6], Completion([7, 2], [-1.0, -2.0], False)), ([8], Completion([9], [None], True))],
        pad_id=0,
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [8, 9, 0, 0]] and batch[
        "segment_ids"
    ].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 7, 2], [IGNORE, 9, IGNORE, IGNORE]]
    assert (
        batch["logps"][0].tolist() == [0.0, -1.0, -2.0]
        and math.isnan(batch["logps"][1, 0])
        and batch["truncated"].tolist() == [False, True]
    )
    short = cut_rows(batch | {"advantages": torch.tensor([1.0, 2.0])}, torch.tensor([1]))
    assert (
        short["input_ids"].tolist() == [[8, 9]]
        and short["logps"].shape == (1, 1)
        and short["advantages"].tolist() == [2.0]
    )


# ---- rollouts


def test_what_a_batch_holds(tokenizer, prompts):
    model, reference = build(tokenizer), build(tokenizer, seed=5)
    cfg = config(updates=2, beta=0.1)
    seen = []

    def prepare(r):
        seen.append({k: tuple(v.shape) for k, v in r.items()})
        return {"advantages": r["rewards"] - r["rewards"].view(-1, 4).mean(1).repeat_interleave(4)}

    batches = batches_of(model, prompts, tokenizer, cfg, reference, prepare=prepare)
    first, second = batches.at(0), batches.at(1)
    assert (
        cfg.batch_size == 6
        and len(first["rewards"]) == len(second["rewards"]) == 6
        and len(seen) == 1
    )
    assert seen[0]["old_logps"] == seen[0]["ref_logps"] == seen[0]["logps"] and seen[0][
        "rewards"
    ] == (12,)
    # of whole groups
    assert abs(float(first["advantages"].sum() + second["advantages"].sum())) < 1e-5
    for batch in (first, second):
        asked = batch["labels"][:, 1:] != IGNORE
        # no column is all filling
        assert batch["segment_ids"].sum(1).max() == batch["segment_ids"].shape[1]
        assert (batch["old_logps"] - batch["logps"])[asked].abs().max() < 1e-4 and torch.allclose(
            batch["ref_logps"], rollout_logps(reference, batch), atol=1e-5
        )
    n = batches.numbers()
    assert (
        n["sampler_gap"] < 1e-5
        and 0 <= n["truncated"] <= 1
        and n["entropy"] > 0
        and n["rollout_tokens_per_second"] > 0
        and 1 <= n["completion_tokens"] <= 12
    )
    assert abs(n["reward"] - sum(len(r) / 100 for r in batches.maker.replies) / 12) < 1e-6
    assert [w.rsplit(":")[-1] for w in batches.sources(1)] == [
        prompts[i].where.rsplit(":")[-1] for i in second["prompt"].tolist()
    ]
    third = batches.at(2)
    assert len(seen) == 2 and set(third["prompt"].tolist()).isdisjoint(
        {*first["prompt"].tolist(), *second["prompt"].tolist()}
    )


def test_ratio_is_one_without_old_logps(tokenizer, prompts):
    batches = batches_of(build(tokenizer), prompts, tokenizer, config())
    batch = batches.at(0)
    assert (
        "old_logps" not in batch
        and "ref_logps" not in batch
        and batches.numbers()["sampler_gap"] < 1e-5
    )


def test_all_prompts_in_turn(tokenizer, prompts):
    cfg = config(prompts=4, group_size=2)
    batches, in_turn = batches_of(build(tokenizer), prompts, tokenizer, cfg), InTurn(10, cfg)
    drawn = [i for number in range(5) for i in in_turn(number)]
    assert (
        batches.steps_per_epoch == 3
        and sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
        and drawn[:10] != drawn[10:]
    )


def test_own_choice_of_prompts(tokenizer, prompts):
    batches = batches_of(
        build(tokenizer), prompts, tokenizer, config(), choose=lambda number: [number, 7, 7]
    )
    assert batches.at(0)["prompt"].unique().tolist() == [0, 7] and batches.at(1)[
        "prompt"
    ].unique().tolist() == [1, 7]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_draws_the_same(tokenizer, prompts, stop):
    """After each step the weights move; a second run begins in the middle, with the saved state and
    the weights of that moment."""

    def move(model, step):
        torch.manual_seed(100 + step)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * torch.randn_like(p))

    def steps(model, batches, first, last):
        out = []
        for step in range(first, last):
            out.append({k: v.clone() for k, v in batches.at(step).items()})
            out[-1]["numbers"] = {
                k: v for k, v in batches.numbers().items() if "per_second" not in k
            }
            move(model, step)
            # whatever others draw must not matter
            torch.rand(3)
        return out

    cfg = config(updates=2)
    model = build(tokenizer)
    whole = steps(model, batches_of(model, prompts, tokenizer, cfg), 0, 5)
    model = build(tokenizer)
    before = batches_of(model, prompts, tokenizer, cfg)
    steps(model, before, 0, stop)
    state = {k: v.clone() for k, v in before.state_tensors().items()}
    after = batches_of(model, prompts, tokenizer, cfg)
    after.load_state_tensors(state)
    for want, got in zip(whole[stop:], steps(model, after, stop, 5), strict=True):
        assert want.keys() == got.keys() and want["numbers"] == got["numbers"]
        assert all(torch.equal(want[k], got[k]) for k in want if k != "numbers")


def test_state_survives_a_checkpoint(tokenizer, prompts, tmp_path):
    from minimind.hub import read_tensors, write_tensors

    batches = batches_of(build(tokenizer), prompts, tokenizer, config(updates=3))
    write_tensors(tmp_path / "empty.safetensors", batches.state_tensors())
    batches.at(0)
    write_tensors(tmp_path / "rollout.safetensors", batches.state_tensors())
    other = batches_of(build(tokenizer, seed=3), prompts, tokenizer, config(updates=3))
    other.load_state_tensors(read_tensors(tmp_path / "empty.safetensors"))
    assert other.number == -1 and other.rollout == {}
    other.load_state_tensors(read_tensors(tmp_path / "rollout.safetensors"))
    a, b = batches.at(2), other.at(2)
    assert (
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) for k in a)
        and batches.numbers() == other.numbers()
    )


def test_groups_without_variance(tokenizer, prompts, monkeypatch):
    monkeypatch.setitem(
        REWARDS,
        "first",
        lambda rows, replies: [
            float(row["answer"] == rows[0]["answer"] and i) for i, row in enumerate(rows)
        ],
    )
    batches = batches_of(build(tokenizer), prompts, tokenizer, config(reward=("first",)))
    batches.at(0)
    assert abs(batches.numbers()["zero_variance"] - 2 / 3) < 1e-6
    alone = batches_of(build(tokenizer), prompts, tokenizer, config(group_size=1))
    alone.at(0)
    assert "zero_variance" not in alone.numbers()


def test_a_batch_of_experts(tokenizer, prompts):
    batches = batches_of(build(tokenizer, "ci-moe"), prompts, tokenizer, config(updates=2))
    batches.at(0)
    assert batches.numbers()["sampler_gap"] < 1e-5


# Processes that train together, real ones: what each draws and scores, what comes of it, and an
# error in one of them.
TOGETHER = """
import json, sys
import torch
import torch.distributed as dist
from minimind import remote, rewards, rollout
from minimind.hub import load_pretrained, write_tensors
from minimind.dist import leave

folder = sys.argv[1]
dist.init_process_group("gloo")
rank = dist.get_rank()
drawn, scored, judged = [], [], []

class Counting(rollout.LocalEngine):
    def sample(self, prompts, *args):
        drawn.append(len(prompts))
        return super().sample(prompts, *args)

score = rollout.score_rows
def counted(model, batch, *args):
    scored.append(len(batch["labels"]))
    return score(model, batch, *args)

rollout.score_rows = counted

@rewards.reward("judge")
def judge(rows, replies):
    judged.append(len(rows))
    return [float(len(r)) for r in replies]

policy, tokenizer = load_pretrained(folder + "/model")
prompts = rollout.read_prompts([folder + "/prompts.jsonl"], tokenizer, 96, 12)
SETTINGS = dict(prompts=3, group_size=4, max_new_tokens=12, seq_len=96, seed=1, reward=("judge",))

def batches(engine, **changes):
    cfg = rollout.RLConfig(**SETTINGS | dict(updates=2, beta=0.1) | changes)
    mix = rewards.RewardMix(cfg.reward)
    return rollout.RolloutBatches(prompts, engine, mix, policy, policy, cfg, tokenizer)

both = batches(Counting(policy))
both.at(0)
tensors = {k: v.float() for k, v in both.rollout.items()}
write_tensors(f"{folder}/rollout.{rank}.safetensors", tensors)
mix = rewards.RewardMix("judge")
numbers = rollout.measure_reward(policy, tokenizer, prompts, mix, both.cfg)

class Full(Exception):  # can't be pickled: it needs two words
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")

def failing(error, where):
    class Engine(rollout.LocalEngine):
        def sample(self, *args):
            if rank == where:
                raise error
            return super().sample(*args)
    try:
        batches(Engine(policy), prompts=5).at(0)
    except Exception as e:
        return [type(e).__name__, str(e)]

few = batches(Counting(policy), prompts=1, group_size=1, updates=1, beta=0.)
few.at(0)  # one row for two processes
errors = [
    failing(remote.EngineError("no answer"), 1),
    failing(Full("memory", "full"), 1),
    failing(ValueError("broken weights"), 0),
]
seen = dict(drawn=drawn, scored=scored, judged=judged, errors=errors, numbers=numbers)
json.dump(seen, open(f"{folder}/seen.{rank}.json", "w"))
dist.barrier()
leave(0)
"""


def test_processes_share_the_work_of_a_rollout(tokenizer, prompts, tmp_path, monkeypatch):
    model = build(tokenizer)
    save_pretrained(model, tokenizer, tmp_path / "model")
    write_jsonl(tmp_path / "prompts.jsonl", [p.row for p in prompts])
    (tmp_path / "driver.py").write_text(TOGETHER)
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(tmp_path / "driver.py"),
            str(tmp_path),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"seen.{rank}.json").read_text()) for rank in range(2))
    # three prompts and then one, by two processes
    assert first["drawn"] == [2, 1] and second["drawn"] == [1, 0]
    # twelve rows twice, by reference and policy; then a single one
    assert first["scored"] == [6, 6, 1] and second["scored"] == [6, 6]
    # judged by one: a rollout, the held-out prompts, the single row
    assert first["judged"] == [12, 10, 1] and second["judged"] == []
    assert (
        first["errors"]
        == second["errors"]
        == [
            ["EngineError", "no answer"],
            ["RuntimeError", "Full: memory full"],
            ["ValueError", "broken weights"],
        ]
    )
    monkeypatch.setitem(REWARDS, "judge", lambda rows, replies: [float(len(r)) for r in replies])
    alone = batches_of(
        model, prompts, tokenizer, config(reward=("judge",), updates=2, beta=0.1), model
    )
    alone.at(0)
    one, two = (read_tensors(tmp_path / f"rollout.{rank}.safetensors") for rank in range(2))
    for k, v in alone.rollout.items():
        assert torch.equal(one[k], two[k])
        torch.testing.assert_close(one[k], v.float(), atol=1e-4, rtol=1e-4)
    assert (
        first["numbers"]
        == second["numbers"]
        == pytest.approx(measure_reward(model, tokenizer, prompts, RewardMix("judge"), alone.cfg))
    )


def test_half_precision(tokenizer, prompts):
    """Sampler and learner round at other places; both are told the precision, and the gap stays at
    its rounding."""
    cfg, model = config(updates=2), build(tokenizer, spread=1.5)
    batches = RolloutBatches(
        prompts,
        LocalEngine(model, torch.bfloat16),
        RewardMix("length"),
        model,
        None,
        cfg,
        tokenizer,
        dtype=torch.bfloat16,
    )
    batch = batches.at(0)
    assert (
        batch["old_logps"].dtype == torch.float32 and 1e-6 < batches.numbers()["sampler_gap"] < 0.05
    )


def test_measure_reward(tokenizer, prompts):
    model, cfg = build(tokenizer), config(reward=("length", "repetition=-1"))
    numbers = measure_reward(model, tokenizer, prompts, RewardMix(cfg.reward), cfg)
    assert numbers == measure_reward(model, tokenizer, prompts, RewardMix(cfg.reward), cfg)
    assert abs(numbers["reward"] - numbers["reward_length"] + numbers["reward_repetition"]) < 1e-6


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(updates=5), "12 rows"),
        (dict(group_size=0), "group_size=0"),
        (dict(temperature=0), "temperature=0"),
        (dict(beta=-1), "beta=-1"),
        (dict(max_new_tokens=96), "no room for a prompt"),
        (dict(engine="localhost:8000"), "URL"),
        (dict(reward=("answer=x=0",)), "answer=x=0"),
        (dict(reward_timeout=0), "reward_timeout=0"),
    ],
)
def test_refused_settings(change, message):
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_batch_size_follows():
    assert (
        RLConfig().batch_size == 128 and replace(config(), group_size=6, updates=3).batch_size == 6
    )
    assert (
        RLConfig(reward="answer").reward == ("answer",)
        and not next(f for f in fields(RLConfig) if f.name == "batch_size").init
    )


# ---- prompts


def test_read_prompts(tokenizer, tmp_path):
    rows = [question(1, 2), {"messages": [{"role": "user", "content": "你好"}]}]
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    prompts = read_prompts([file], tokenizer, 64, 16)
    assert prompts == read_prompts(str(file), tokenizer, 64, 16)  # a lone name will do
    assert (
        prompts[0].ids
        == encode_chat(
            tokenizer, [{"role": "user", "content": "1 + 2 = ?"}], add_generation_prompt=True
        )[0]
    )
    assert (
        prompts[1].row == rows[1]
        and prompts[1].where == f"{file}:2"
        and "2 prompts" in str(prompts)
    )


def test_a_prompt_that_does_not_fit_is_refused(tokenizer, tmp_path):
    file = write_jsonl(tmp_path / "long.jsonl", [question(1, 2), question(1, 10**60)])
    n = len(read_prompts([file], tokenizer, 400, 16)[1].ids)
    assert len(read_prompts([file], tokenizer, n + 16, 16)) == 2
    with pytest.raises(
        BadLine,
        match=rf"long.jsonl:2: prompt too long: {n} tokens.*max_new_tokens=16.*seq_len={n + 15}.*raise seq_len to {n + 16}",
    ):
        read_prompts([file], tokenizer, n + 15, 16)
    skipped = read_prompts([file], tokenizer, n + 15, 16, on_bad_line="skip")
    assert (
        len(skipped) == 1 and sum(skipped.skipped.values()) == 1 and "left out: 1" in str(skipped)
    )


@pytest.mark.parametrize(
    "row, message",
    [
        ({"conversations": []}, "list of messages"),
        ({"conversations": [{"role": "assistant", "content": "a"}]}, "no prompt"),
        ({"text": "a"}, "conversation"),
    ],
)
def test_rows_that_ask_nothing(tokenizer, tmp_path, row, message):
    with pytest.raises(BadLine, match=f"bad.jsonl:1: .*{message}"):
        read_prompts([write_jsonl(tmp_path / "bad.jsonl", [row])], tokenizer, 64, 16)


def test_held_out_prompts(tokenizer, tmp_path):
    file = write_jsonl(tmp_path / "many.jsonl", [question(i, i) for i in range(200)])
    train, held = (read_prompts([file], tokenizer, 64, 16, split=s) for s in ("train", "heldout"))
    assert len(train) + len(held) == 200 and 0 < len(held) < 20 and train.other_split == len(held)
    assert not {p.where for p in train} & {p.where for p in held}


def test_no_prompts(tokenizer, prompts):
    with pytest.raises(ValueError, match="no prompt is left"):
        batches_of(build(tokenizer), rollout.Prompts(), tokenizer, config())
    with pytest.raises(ValueError, match="reference"):
        batches_of(build(tokenizer), prompts, tokenizer, config(beta=0.1))


# ---- rewards


def scores(name, *replies, row=None):
    return REWARDS[name]([row or {}] * len(replies), list(replies))


@given(
    st.sampled_from(["46", "-3", "偶数", "d", "7, 8"]),
    st.sampled_from(
        [
            "46",
            "2+4=6. 12+34=46.",
            "4是偶数，所以544是偶数。",
            "the answer is 7 , 8",
            "-3",
            "3",
            "",
            "d d",
            "D",
        ]
    ),
)
def test_answer_is_what_the_evaluation_says(answer, reply):
    assert scores("answer", reply, row={"answer": answer}) == [float(is_right(reply, answer))]


def test_answer_needs_an_answer():
    assert scores("answer", "a fox", "a dog", row={"must_contain": ["fox"]}) == [1, 0]
    with pytest.raises(
        RewardError, match="'answer' raised ValueError: the row has no 'answer'.*p.jsonl:2"
    ):
        RewardMix(["answer"])([{"answer": "1"}, {}], ["1", "1"], ["p.jsonl:1", "p.jsonl:2"])


def test_what_a_reward_needs_is_asked_of_the_rows(tokenizer, tmp_path):
    "A row that can't be judged is found when it is read, with its line, not when it is drawn."
    talk = [{"role": "user", "content": "1+2?"}]
    rows = [{"conversations": talk, "answer": "3"}, {"conversations": talk, "answer": 3}]
    file = write_jsonl(tmp_path / "p.jsonl", [*rows, {"conversations": talk}])
    read = partial(read_prompts, [file], tokenizer, 64, 16)
    assert len(read(check_row=RewardMix("length=-1").check_row)) == 3
    check = RewardMix(("length=-1", "answer")).check_row
    with pytest.raises(
        BadLine, match=":2: row without what the reward answer needs:.*it is 3; --rew"
    ):
        read(check_row=check)
    found = read(check_row=check, on_bad_line="skip")
    assert len(found) == 1 and str(found).endswith(
        "left out: 2 × row without what the reward answer needs"
    )
    with pytest.raises(ValueError, match="has no 'answer', but 'conversations'"):
        check({"conversations": talk})
    with pytest.raises(
        ValueError, match="reward reasoning_gym needs: the row has no metadata.source"
    ):
        RewardMix("reasoning_gym").check_row(rows[0])


def test_a_judge_may_refuse_rows(monkeypatch):
    class Critic(Judge):
        def __call__(self, rows, replies):
            return [float(row["taste"]) for row in rows]

        def check_row(self, row):
            if "taste" not in row:
                raise ValueError("the row has no taste")

    monkeypatch.setitem(REWARDS, "critic", Critic())
    mix = RewardMix("critic")
    mix.check_row({"taste": 1})
    with pytest.raises(ValueError, match="what the reward critic needs: the row has no taste"):
        mix.check_row({})


def test_a_reward_is_registered_anew_with_its_check(monkeypatch):
    monkeypatch.setattr(rewards, "REWARDS", dict(REWARDS))
    monkeypatch.setattr(rewards, "ROW_CHECKS", dict(rewards.ROW_CHECKS))
    rewards.reward("answer")(lambda rows, replies: [1.0] * len(rows))
    RewardMix("answer").check_row({})


@pytest.mark.parametrize(
    "rows,replies", [({"answer": "1"}, ["1"]), ([{}], "1"), ([{}], ["1", "2"])]
)
def test_rows_and_replies_are_two_lists(rows, replies):
    with pytest.raises(ValueError, match="two lists: for each reply the row"):
        RewardMix("length")(rows, replies)


def test_format():
    good = "<think>\n6+4=10\n</think>\n<answer>\n30\n</answer>"
    assert scores(
        "format",
        good,
        good.removeprefix("<think>\n"),
        "30",
        good + good,
        good.replace("30", ""),
        "<answer>30</answer><think>a</think>",
        good + "!",
        "<think>a</think>",
    ) == [1, 1, 0, 0, 0, 0, 0, 0]


def test_repetition_sees_chinese():
    chinese, english, fresh = scores(
        "repetition", "我" * 500, "the cat " * 50, "春眠不觉晓，处处闻啼鸟。"
    )
    assert (
        chinese > 0.98
        and english > 0.9
        and fresh == 0
        and scores("repetition", "", "abc") == [0, 0]
    )
    assert scores("repetition", "共舞共舞共舞共舞共舞")[0] > 0.7


def test_metre():
    poem = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
    assert scores(
        "metre",
        poem,
        "白日依山尽，黄河入海流很远。",
        "春眠不觉晓，" * 4,
        "春眠不觉晓",
        "a, b",
        "",
        "好，好，好",
    ) == [1, 0.5, 0.25, 0, 0, 0, 0]


def test_reasoning_gym(monkeypatch):
    row = {"answer": "4", "metadata": {"source_dataset": "chain_sum"}}
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RewardError, match="pip install reasoning-gym"):
        RewardMix("reasoning_gym")([row], ["4"])
    monkeypatch.setitem(
        sys.modules,
        "reasoning_gym",
        SimpleNamespace(
            get_score_answer_fn=lambda name: (
                lambda answer, entry: 0.9 * (name == "chain_sum" and answer == entry["answer"])
            )
        ),
    )
    assert scores(
        "reasoning_gym",
        "<think>2+2</think> <answer> 4 </answer>",
        "<think>5</think>4",
        "5",
        row=row,
    ) == [0.9, 0.9, 0]
    with pytest.raises(RewardError, match="source_dataset"):
        RewardMix("reasoning_gym")([{"answer": "4"}], ["4"])


def test_the_real_reasoning_gym():
    gym = pytest.importorskip("reasoning_gym")
    rows = list(gym.create_dataset("chain_sum", size=5, seed=1))
    assert RewardMix("reasoning_gym")(rows, [r["answer"] for r in rows])[0].tolist() == [1.0] * 5


def test_weights():
    assert (
        parse_reward("answer") == ("answer", 1)
        and parse_reward("repetition=-0.2") == ("repetition", -0.2)
        and parse_reward("model:runs/a=b") == ("model:runs/a=b", 1)
    )
    assert parse_reward("model:runs/a=b=2") == ("model:runs/a=b", 2)
    total, each = RewardMix(("answer", "length=-0.5"))([{"answer": "7"}] * 2, ["7", "x" * 100])
    assert (
        total.tolist() == pytest.approx([1 - 0.005, -0.5])
        and each["length"].tolist() == pytest.approx([0.01, 1])
        and each["answer"].tolist() == [1, 0]
    )
    for bad, message in {
        "": "NAME",
        "answer=0": "other than 0",
        "answer=nan": "NAME",
        "nobody": "choose one of answer",
        "no_such_module:f": "no_such_module",
        "json:nothing": "nothing",
        "math:pi": "not a function",
    }.items():
        with pytest.raises(ValueError, match=message):
            RewardMix([bad])
    with pytest.raises(ValueError, match="twice"):
        RewardMix(["answer", "answer=2"])


def test_a_users_own_function(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def politeness(rows, replies): return ['please' in r for r in replies]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert RewardMix("my_rewards:politeness=2")([{}] * 2, ["please", "now"])[0].tolist() == [2, 0]


def broken_in_the_middle(rows, replies):
    return [1 / (len(r) - 3) for r in replies]


@pytest.mark.parametrize(
    "function, message",
    [
        (
            broken_in_the_middle,
            r"reward 'mine' raised ZeroDivisionError: division by zero \(for f:2, the reply 'abc'\)",
        ),
        (lambda rows, replies: [0.0, math.nan, 1.0], r"'mine' returned nan \(for f:2"),
        (lambda rows, replies: [0.0, 1.0, math.inf], r"'mine' returned inf \(for f:3"),
        (lambda rows, replies: [0.0], r"'mine' returned 1 numbers for 3 replies"),
        (lambda rows, replies: 1.0, r"'mine' returned float, not a list"),
        (
            lambda rows, replies: [0.0, "1", 2.0],
            r"'mine' returned '1', which is no number, \(for f:2",
        ),
        (lambda rows, replies: [0.0, None, 2.0], r"'mine' returned None, which is no number"),
        (
            lambda rows, replies: time.sleep(20),
            r"'mine' took longer than 0.2 s for 3 replies \(the first: f:1\): it hangs",
        ),
        (lambda: None, r"'mine' raised TypeError"),
        (lambda rows, replies: sys.exit("no judge"), r"'mine' raised SystemExit: no judge"),
    ],
)
def test_a_reward_that_fails_says_so(monkeypatch, function, message):
    monkeypatch.setitem(REWARDS, "mine", function)
    start = time.perf_counter()
    with pytest.raises(RewardError, match=message):
        RewardMix(["length", "mine"], timeout=0.2)(
            [{}] * 3, ["a", "abc", "b"], ["f:1", "f:2", "f:3"]
        )
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1.0, 0.0]),
        (1, 0),
        [True, False],
        torch.tensor([1.0, 0.0]).numpy(),
        [torch.tensor(1.0), 0],
    ],
)
def test_numbers_of_any_kind(monkeypatch, values):
    monkeypatch.setitem(REWARDS, "mine", lambda rows, replies: values)
    assert RewardMix("mine")([{}] * 2, ["", ""])[0].tolist() == [1, 0]


def test_a_failing_reward_costs_no_step(tokenizer, prompts, tmp_path, monkeypatch):
    "The steps before it are saved, and the run goes on when the reward is mended."
    from minimind.checkpoint import Checkpointer, ModelFolder, checkpoints

    calls = []

    def fails_at_the_third(rows, replies):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("judge not found")
        return [float(len(r)) for r in replies]

    monkeypatch.setitem(REWARDS, "judge", fails_at_the_third)
    cfg = config(reward=("judge",), out=str(tmp_path / "run"), steps=4, lr=1e-3, log_every=1)

    def train():
        model = build(tokenizer)
        batches = batches_of(model, prompts, tokenizer, cfg)
        optimizers = build_optimizer(model, "adamw", cfg.lr)

        def loss(model, batch):
            logps, n = rollout_logps(model, batch), len(batch["rewards"])
            return -(logps.sum(1) * (batch["rewards"] - 2)).sum(), n, {}

        checkpointer = Checkpointer(
            ModelFolder(model, tokenizer), {"optimizer": optimizers, "rollout": batches}, cfg
        )
        return fit(model, batches, loss, optimizers, cfg, saver=checkpointer)

    with pytest.raises(RewardError, match="judge not found"):
        train()
    assert [c.name for c in checkpoints(cfg.out)] == ["step-00000002"]
    last = train()
    assert last["step"] == 4 and last["completion_tokens"] >= 1 and "sampler_gap" in last


# ---- reward models


def pair(a, b, wrong):
    def said(text):
        return [
            {"role": "user", "content": f"{a} + {b} = ?"},
            {"role": "assistant", "content": text},
        ]

    return {"chosen": said(f"{a}+{b}={a + b}"), "rejected": said(wrong)}


@pytest.fixture(scope="module")
def judge(tokenizer, tmp_path_factory):
    "Trained on pairs in which the better answer shows the sum."
    folder = tmp_path_factory.mktemp("judge")
    rows = [pair(a, b, str(a + b)) for a in range(3, 21) for b in range(2, 11)]
    train, held = (
        write_jsonl(folder / "train.jsonl", rows[::2] + rows[1:80:2]),
        write_jsonl(folder / "held.jsonl", rows[81::2]),
    )
    model = RewardModel(build(tokenizer, spread=1.0))
    batches = PairBatches(read_pairs([train], tokenizer, 96), 16)
    cfg = TrainConfig(out=str(folder / "run"), steps=30, optimizer="adamw", lr=2e-3, warmup=5)
    fit(model, batches, preference_reward_loss, build_optimizer(model, "adamw", cfg.lr), cfg)
    save_reward_model(model.eval(), tokenizer, folder / "model")
    return folder / "model", model, read_pairs([held], tokenizer, 96)


def test_reward_loss():
    loss, metrics = reward_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    assert (
        float(loss) == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2)
        and float(metrics["accuracy"]) == 0.5
        and float(metrics["margin"]) == -0.5
    )


def test_a_new_reward_model_has_no_opinion(tokenizer):
    assert RewardModel(build(tokenizer))(torch.randint(3, 300, (3, 9))).tolist() == [0, 0, 0]


def test_the_reward_model_prefers_the_better_answer(judge):
    "On pairs that it has not seen."
    _, model, held = judge
    batch = PairBatches(held, len(held)).at(0)
    with torch.no_grad():
        loss, n, metrics = preference_reward_loss(model, batch)
    assert n == len(held) > 30 and float(metrics["accuracy"]) / n > 0.95 and float(loss) / n < 0.3


def test_a_saved_reward_model_judges_alike(judge, tokenizer):
    path, model, held = judge
    again, same_tokenizer = load_reward_model(path)
    assert same_tokenizer.fingerprint == tokenizer.fingerprint and all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    rows = [question(5, 6), question(17, 4)]
    better, each = RewardMix(f"model:{path}")(rows, ["5+6=11", "17+4=21"])
    worse, _ = RewardMix(f"model:{path}")(rows, ["11", "21"])
    assert (better > worse).all() and list(each) == [f"model:{path}"]
    alone = [
        ModelReward(path)([row], [reply])[0] for row, reply in zip(rows, ["5+6=11", "17+4=21"])
    ]
    # filling changes nothing
    assert better.tolist() == pytest.approx(alone, abs=1e-4)


def test_a_reply_that_was_cut_off_has_no_end_for_the_reward_model(judge, tokenizer):
    """It is read as far as it goes: the same tokens, without the mark of an end that the model
    never wrote."""
    path, model, _ = judge
    row, reply = question(5, 6), "5+6=1"
    whole = encode_chat(
        tokenizer, [row["conversations"][0], {"role": "assistant", "content": reply}]
    )[0]
    end = len(whole) - whole[::-1].index(2) - 1
    assert (
        tokenizer.decode(whole[:end]).endswith(reply)
        and ModelReward(path).ids(row | {"truncated": True}, reply) == whole[:end]
    )
    mix = RewardMix(f"model:{path}")
    ended, cut = (
        float(mix([row], [reply], truncated=[truncated])[0]) for truncated in (False, True)
    )
    with torch.no_grad():
        assert cut == pytest.approx(
            float(model(torch.tensor([whole[:end]]))), abs=1e-4
        ) and ended == pytest.approx(float(model(torch.tensor([whole]))), abs=1e-4)
    assert abs(ended - cut) > 0.1


def test_the_content_of_a_reward_model_belongs_to_the_run(judge, tokenizer, prompts, tmp_path):
    path, model, _ = judge

    def identity(folder):
        return batches_of(
            build(tokenizer), prompts, tokenizer, config(reward=("length", f"model:{folder}=0.5"))
        ).fingerprint()

    names = list(identity(path)["reward_sha256"][f"model:{path}"])
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] and identity(path) == identity(path)
    save_reward_model(model, tokenizer, tmp_path / "judge")
    before = identity(tmp_path / "judge")
    with torch.no_grad():
        model.value_head.weight.mul_(1.5)
    try:
        save_reward_model(model, tokenizer, tmp_path / "judge")
    finally:
        with torch.no_grad():
            model.value_head.weight.div_(1.5)
    assert identity(tmp_path / "judge") != before
    assert (
        "reward_sha256"
        not in batches_of(build(tokenizer), prompts, tokenizer, config()).fingerprint()
    )


@pytest.mark.parametrize("shape", ["ci", "ci-moe", "minimind2-small"])
def test_transformers_loads_our_reward_model(tokenizer, tmp_path, shape):
    from transformers import AutoModelForSequenceClassification

    small = dict(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        head_dim=16,
    )
    model = RewardModel(
        build(
            tokenizer, shape, **small, **({"moe_intermediate_size": 48} if "moe" in shape else {})
        )
    ).eval()
    torch.nn.init.normal_(model.value_head.weight)
    save_reward_model(model, tokenizer, tmp_path)
    hf = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.randint(3, 300, (3, 9))
    ids[1, 6:] = 0
    with torch.no_grad():
        torch.testing.assert_close(
            hf(input_ids=ids, attention_mask=(ids > 0).long()).logits[:, 0],
            model(ids, (ids > 0).long()),
            atol=1e-4,
            rtol=1e-4,
        )
    assert load_reward_model(tmp_path)[0](ids).shape == (3,)


def test_any_classifier_of_transformers(tokenizer, tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    save_reward_model(RewardModel(build(tokenizer)), tokenizer, tmp_path / "tokens")
    AutoTokenizer.from_pretrained(tmp_path / "tokens").save_pretrained(tmp_path / "gpt2")
    hf = GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, num_labels=1, pad_token_id=0
        )
    ).eval()
    hf.save_pretrained(tmp_path / "gpt2")
    judge = ModelReward(tmp_path / "gpt2")
    row, replies = question(5, 6), ["5+6=11", "eleven, I think"]
    ids = encode_chat(
        tokenizer, [row["conversations"][0], {"role": "assistant", "content": replies[1]}]
    )[0]
    with torch.no_grad():
        want = float(hf(torch.tensor([ids])).logits[0, 0])
    assert judge([row] * 2, replies)[1] == pytest.approx(want, abs=1e-4)
    end = len(ids) - ids[::-1].index(2) - 1
    with torch.no_grad():
        want = float(hf(torch.tensor([ids[:end]])).logits[0, 0])
    assert judge([row | {"truncated": True}], replies[1:]) == [pytest.approx(want, abs=1e-4)]
    GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, num_labels=3, pad_token_id=0
        )
    ).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="3 numbers"):
        ModelReward(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="no config.json"):
        RewardMix(f"model:{tmp_path / 'nothing'}")


# ---- servers


class FakeServer:
    """A server of completions on this machine, over real HTTP: it holds its own copy of the model,
    and loads the folder when told to."""

    def __init__(self, model, kind="openai", **lies):
        self.model, self.kind, self.lies, self.requests = model, kind, lies, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                self.reply(
                    {} if outer.kind == "sglang" and self.path == "/get_model_info" else None
                )

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, body))
                self.reply(outer.answer(self.path, body))

            def reply(self, answer):
                text = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(
                    404
                    if answer is None
                    else answer.get("status", 200)
                    if isinstance(answer, dict)
                    else 200
                )
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path, body):
        lies = self.lies
        if path in lies:
            return lies[path]
        if path == "/collective_rpc" and self.kind == "openai":
            assert body == {"method": "reload_weights"}
            self.model = load_model(self.folder)
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {}
        if path == "/update_weights_from_disk" and self.kind == "sglang":
            self.model = load_model(body["model_path"])
            return {"success": True, "message": ""}
        if path == "/v1/completions" and self.kind == "openai":
            done = LocalEngine(self.model).sample(
                [body["prompt"]], body["n"], body["max_tokens"], body["temperature"], body["seed"]
            )[0]

            def choice(i, c):
                ids = c.ids[:-1] if lies.get("hides_the_end") and not c.truncated else c.ids
                tokens = {"token_ids": ids} if not lies.get("old") else {}
                return {
                    "index": i,
                    "text": "…",
                    "finish_reason": "length" if c.truncated else "stop",
                    **tokens,
                    "logprobs": {
                        "tokens": [f"token_id:{t}" if not lies.get("texts") else "x" for t in ids],
                        "token_logprobs": c.logps[: len(ids)],
                    },
                }

            return {
                "object": "text_completion",
                "choices": [choice(i, c) for i, c in enumerate(done)][::-1],
            }
        if path == "/generate" and self.kind == "sglang":
            # as with --enable-deterministic-inference: n copies of a request are copies of its
            # seed, so that they say the same
            many = isinstance(body["input_ids"][0], list)
            requests = [
                (ids, o)
                for ids, o in (
                    zip(body["input_ids"], body["sampling_params"], strict=True)
                    if many
                    else [(body["input_ids"], body["sampling_params"])]
                )
                for _ in range(o.get("n", 1))
            ]
            assert all(
                0 <= o["sampling_seed"] < 2**63
                and (o["top_p"], o["top_k"], o["min_p"], o["repetition_penalty"]) == (1, -1, 0, 1)
                for _, o in requests
            )
            done = [
                LocalEngine(self.model).sample(
                    [ids], 1, o["max_new_tokens"], o["temperature"], [o["sampling_seed"]]
                )[0][0]
                for ids, o in requests
            ]
            return [
                {
                    "text": "…",
                    "meta_info": {
                        "finish_reason": {"type": "length" if c.truncated else "stop"},
                        "output_token_logprobs": [[v, i, None] for v, i in zip(c.logps, c.ids)],
                    },
                }
                for c in done
            ]
        return None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    "kind, lies",
    [
        ("openai", {}),
        ("openai", {"old": True}),
        ("openai", {"hides_the_end": True}),
        ("sglang", {}),
    ],
)
def test_completions_from_a_server(tokenizer, prompts, tmp_path, kind, lies):
    """The server begins with other weights; after `sync` it draws from ours, and tells
    log-probabilities that the learner finds again."""
    model, cfg = build(tokenizer), config()
    with FakeServer(build(tokenizer, seed=7), kind, **lies) as server:
        server.folder = tmp_path / "policy"
        engine = ServerEngine(server.url + "/v1", model, tokenizer, server.folder)
        batches = RolloutBatches(prompts, engine, RewardMix("length"), model, None, cfg, tokenizer)
        batch = batches.at(0)
        asked = batch["labels"][:, 1:] != IGNORE
        assert (
            batches.numbers()["sampler_gap"] < 1e-5
            and (batch["logps"] - batch["old_logps"])[asked].abs().max() < 1e-4
        )
        ended = [row[row != IGNORE][-1].item() == 2 for row in batch["labels"]]
        assert ended == [not t for t in batch["truncated"].tolist()]
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
        batches.at(1)
        assert (
            batches.numbers()["sampler_gap"] < 1e-5
            and len(
                [
                    p
                    for p, _ in server.requests
                    if p in ("/collective_rpc", "/update_weights_from_disk")
                ]
            )
            == 2
        )
        stale = ServerEngine(server.url, model, tokenizer, tmp_path / "other")
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        stale.sync = lambda step: None
        unsynchronised = RolloutBatches(
            prompts, stale, RewardMix("length"), model, None, cfg, tokenizer
        )
        unsynchronised.at(0)
        # this is what the number is for
        assert unsynchronised.numbers()["sampler_gap"] > 0.01


@pytest.mark.parametrize("kind", ["openai", "sglang"])
def test_a_server_gives_each_completion_its_own_draws(tokenizer, tmp_path, kind):
    """Two copies of one prompt, four completions each: eight different ones, the same again for the
    same seed."""
    model = build(tokenizer)
    with FakeServer(model, kind) as server:
        engine = ServerEngine(server.url, model, tokenizer, tmp_path / "policy")

        def draw(seed):
            return [
                [tuple(c.ids) for c in group]
                for group in engine.sample([[50, 51], [50, 51]], 4, 12, 1.0, seed=seed)
            ]

        a = draw(5)
        assert (
            len({*a[0], *a[1]}) == 8
            and a == draw(5)
            and not {*a[0], *a[1]} & {c for group in draw(6) for c in group}
        )
        # the very same seeds
        if kind == "sglang":
            assert a == [
                [tuple(c.ids) for c in group]
                for group in LocalEngine(model).sample([[50, 51], [50, 51]], 4, 12, 1.0, seed=5)
            ]
        else:
            options = server.requests[-1][1]
            assert (
                [
                    options[k]
                    for k in ("top_p", "top_k", "min_p", "repetition_penalty", "temperature")
                ]
                == [1, -1, 0, 1, 1]
                and options["prompt"] == [50, 51]
                and options["n"] == 4
                and 0 <= options["seed"] < 2**63 - 4
            )


@pytest.mark.parametrize(
    "kind, lies, message",
    [
        (
            "openai",
            {"/v1/completions": {"status": 500, "error": "out of memory"}},
            "HTTP 500: .*out of memory",
        ),
        ("openai", {"/v1/completions": {"choices": "none"}}, "does not answer as OpenAI's"),
        (
            "openai",
            {"/v1/completions": {"choices": []}},
            "0 completions for a prompt, 2 were asked for",
        ),
        (
            "openai",
            {
                "/v1/completions": {
                    "choices": [{"token_ids": [5000], "finish_reason": "length"}] * 2
                }
            },
            "the policy does not know",
        ),
        (
            "openai",
            {
                "/v1/completions": {
                    "choices": [{"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0]}}] * 2
                }
            },
            "1 log-probabilities for 2 tokens",
        ),
        (
            "openai",
            {"/v1/completions": {"choices": [{"token_ids": [], "logprobs": {"tokens": []}}] * 2}},
            "no token ids",
        ),
        ("openai", {"old": True, "texts": True}, "text can't be turned back"),
        ("sglang", {"/generate": {"text": "a"}}, "does not answer as SGLang's"),
    ],
)
def test_a_server_that_answers_badly(tokenizer, tmp_path, kind, lies, message):
    model = build(tokenizer)
    with FakeServer(model, kind, **lies) as server, pytest.raises(EngineError, match=message):
        ServerEngine(server.url, model, tokenizer, tmp_path / "policy").sample(
            [[50, 51]], 2, 12, 1.0, seed=5
        )


def test_weights_that_can_not_be_renewed(tokenizer, tmp_path):
    model = build(tokenizer)
    with (
        FakeServer(model, "other") as server,
        pytest.raises(EngineError, match="no route for new weights.*VLLM_SERVER_DEV_MODE"),
    ):
        ServerEngine(server.url, model, tokenizer, tmp_path / "policy").sync(0)
    with (
        FakeServer(
            model,
            "sglang",
            **{"/update_weights_from_disk": {"success": False, "message": "wrong shape"}},
        ) as server,
        pytest.raises(EngineError, match="wrong shape"),
    ):
        ServerEngine(server.url, model, tokenizer, tmp_path / "policy").sync(0)


def test_a_server_that_is_not_there(tokenizer, tmp_path):
    with pytest.raises(EngineError, match="is the server running"):
        ServerEngine("http://127.0.0.1:9", build(tokenizer), tokenizer, tmp_path / "policy").sample(
            [[50]], 1, 4, 1.0, 0
        )
