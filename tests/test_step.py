"""A step on a device: nothing waits for it, filling is not computed, batches are made beforehand,
float16 is scaled, gradients of several processes are one's."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import minimind.train as training
from minimind.core import IGNORE
from minimind.data import Batches
from minimind.distill import LiveTeacher, distillation
from minimind.dpo import DPOConfig, preference_loss
from minimind.grpo import GRPO_LOSSES, GRPOConfig, policy_loss
from minimind.losses import Located, causal_lm_loss, final_states, located
from minimind.model import MiniMind, preset
from minimind.optim import build_optimizer
from minimind.ppo import ActorCritic, PPOConfig, actor_critic_loss
from minimind.rewards import RewardModel, preference_reward_loss
from shared import TINY_SHAPE
from minimind.train import LossScaler, TrainConfig, compute_gradients, fit, portion_of, train_step

SHAPE, V = TINY_SHAPE, TINY_SHAPE["vocab_size"]
cpu, f32 = torch.device("cpu"), torch.float32


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return MiniMind(preset("ci", **SHAPE | changes))


def filled(*shape, seed=0):
    "Rows of tokens of random length, filled on the right; the second half of each is learned."
    g = torch.Generator().manual_seed(seed)
    ids, T = torch.randint(0, V, shape, generator=g), shape[-1]
    length = torch.randint(4, T // 2, (*shape[:-1], 1), generator=g)
    length[0] = T
    at = torch.arange(T).expand(shape)
    return dict(
        input_ids=torch.where(at < length, ids, 0),
        labels=torch.where((at >= length // 2) & (at < length), ids, IGNORE),
        segment_ids=(at < length).long(),
    )


def rollout(seed=0, N=8, T=24):
    batch, g = filled(N, T, seed=seed), torch.Generator().manual_seed(seed)
    per_token = {k: torch.randn(N, T - 1, generator=g) - 3 for k in ("old_logps", "ref_logps")}
    per_token |= {k: torch.randn(N, T - 1, generator=g) for k in ("values", "returns")}
    return batch | per_token | dict(advantages=torch.randn(N, generator=g))


def packed(B=6, T=24):
    "Full rows of two documents each."
    ids, at = torch.randint(0, V, (B, T)), torch.arange(T).expand(B, T)
    return dict(
        input_ids=ids,
        labels=torch.where(at % 10 == 0, IGNORE, ids),
        position_ids=at % 10,
        segment_ids=1 + at // 10,
    )


RL = dict(init="", prompts=2, group_size=4)


class Going:
    "Of `PPOBatches`: the policy goes on with its rollout, or is done with it."

    def __init__(self, stopped):
        self.stopped = stopped


def of_ppo(stopped):
    cfg = PPOConfig(**RL)
    batch = rollout() | dict(advantages=rollout()["values"])
    return ActorCritic(tiny()), batch, partial(actor_critic_loss, cfg=cfg, batches=Going(stopped))


def stages():
    "A model, a batch and the loss, for every kind of loss in the course."
    pairs = filled(4, 2, 24) | dict(ref_logps=torch.randn(4, 2))
    teacher = tiny(1).eval()
    yield "packed rows", tiny(), packed(), causal_lm_loss
    yield "filled rows", tiny(), filled(6, 24), causal_lm_loss
    yield "distill", tiny(), packed(), distillation(LiveTeacher(teacher), 0.5, 2.0)
    for kind, lengths in (("sigmoid", 1.0), ("ipo", 0.0)):
        cfg = DPOConfig(init="", loss_type=kind, sft_weight=lengths)
        yield f"dpo {kind}", tiny(), pairs, partial(preference_loss, cfg=cfg)
    yield "reward model", RewardModel(tiny()), pairs, preference_reward_loss
    for kind in GRPO_LOSSES:
        cfg = GRPOConfig(**RL, loss_type=kind, beta=0.1)
        yield f"grpo {kind}", tiny(), rollout(), partial(policy_loss, cfg=cfg)
    for stopped in (False, True):
        yield f"ppo {'stopped' * stopped}", *of_ppo(stopped)


STAGES = {name: parts for name, *parts in stages()}
stage = pytest.mark.parametrize("name", STAGES)


class Waits(TorchDispatchMode):
    """Counts operations for which a GPU's queue must be empty: those that give Python a number, and
    those whose result has a shape that depends on numbers."""

    NAMES = "_local_scalar_dense nonzero masked_select unique _unique2 unique_dim equal is_nonzero"

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f.name().split("::")[1].split(".")[0]
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in self.NAMES.split() or by_mask:
            self.seen.append(name)
        return f(*args, **kwargs or {})


@pytest.fixture
def looks(monkeypatch):
    "How often a tensor was made a list: on a CPU no operation, on a GPU a wait."
    seen, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: seen.append(1) or tolist(x))
    return seen


@stage
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_waits_for_the_device_once(name, optimizer, looks, monkeypatch):
    # positions on a processor are looked at, those on a device are not
    monkeypatch.setattr("minimind.model._table_length", lambda positions, limit: limit)
    model, batch, loss_fn = STAGES[name]
    cfg = TrainConfig(micro_batch_size=2, optimizer=optimizer, batch_size=8)
    optimizers = build_optimizer(model, optimizer, 1e-4, 1e-4)
    train_step(model, batch, loss_fn, optimizers, cfg)  # makes the optimizer's state
    portion = portion_of(batch, cfg)
    assert len(portion.micros) > 1
    looks.clear()
    with Waits() as waits:
        result = train_step(model, portion, loss_fn, optimizers, cfg)
    assert result.finite and waits.seen == [] and len(looks) == 1


def test_waits_are_seen(looks):
    x = torch.arange(4)
    with Waits() as waits:
        x[x > 2], x.nonzero(), float(x.sum()), bool(x.any()), torch.equal(x, x), x.tolist()
    assert len(waits.seen) == 5 and len(looks) == 1


# ---- filling is not computed


@stage
def test_filling_left_out_changes_no_gradient(name, monkeypatch):
    "In double precision: the same numbers, to its rounding."
    model, batch, loss_fn = STAGES[name]
    model = model.double()
    cfg, found = TrainConfig(micro_batch_size=3), []
    for full in (0.9, 0.0):  # with 0 nothing is ever left out
        monkeypatch.setattr("minimind.losses.FULL", full)
        model.zero_grad()
        numbers = compute_gradients(model, batch, loss_fn, cfg, cpu, f32)
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        found.append((numbers, grads))
    model.float()
    (ours, grads), (plain, want) = found
    assert ours[:2] == pytest.approx(plain[:2], rel=1e-9)
    assert ours[2] == pytest.approx(plain[2], rel=1e-6, abs=1e-9)
    for g, w in zip(grads, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g, w, rtol=1e-7, atol=1e-9)


def test_only_real_positions_are_computed(monkeypatch):
    "Rows that are half filling give the model half as many tokens; full ones stay as they are."
    model, seen = tiny(), []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda ids, **kw: seen.append(ids.shape) or hidden(ids, **kw)
    )
    batch = filled(6, 24)
    real = int(batch["segment_ids"].sum())
    final_states(lambda input_ids, **kw: model.hidden(input_ids, **kw), located(batch))
    assert seen == [(1, real)] and real < 0.9 * 6 * 24
    assert located(packed()).real is None


def test_a_batch_of_filling_only_is_a_sum_of_nothing():
    model, batch = tiny(), filled(2, 24)
    batch |= dict(labels=torch.full((2, 24), IGNORE), segment_ids=torch.zeros(2, 24, dtype=int))
    loss, weight, _ = causal_lm_loss(model, batch)
    assert loss == 0 and weight == 0
    loss.backward()


def test_what_was_found_travels_with_the_batch():
    batch = located(filled(3, 24))
    small = batch.each(lambda v: v.int() if v.dtype == torch.int64 else v)
    assert small.learned.dtype == small["labels"].dtype == torch.int32
    back = small.to(cpu)
    assert isinstance(back, Located) and back.here is small and back["labels"].dtype == torch.int64
    for a, b in ((back.learned, batch.learned), (back.real, batch.real)):
        assert torch.equal(a, b) and a.dtype == torch.int64
    assert back.documents.lengths == batch.documents.lengths
    # who knows nothing of it sees a dict
    assert list(batch) == ["input_ids", "labels", "segment_ids"]


# ---- batches made beforehand


class Slow(Batches):
    "Batches that take a while, and note in which thread and when they were made."

    steps_per_epoch, ahead = 4, True

    def __init__(self, fails_at=None):
        self.made, self.fails_at = [], fails_at

    def at(self, step, rank=0, world_size=1):
        self.made.append((step, threading.current_thread() is threading.main_thread()))
        if step == self.fails_at:
            raise OSError("the disk is gone")
        time.sleep(0.05)
        return packed(4)


def go(tmp_path, batches, steps=4, loss_fn=causal_lm_loss, **more):
    cfg = TrainConfig(
        **(dict(out=str(tmp_path), steps=steps, log_every=1, optimizer="adamw") | more)
    )
    model = tiny()
    return fit(model, batches, loss_fn, build_optimizer(model, "adamw", 1e-3), cfg)


def test_the_next_batch_is_made_while_the_step_computes(tmp_path):
    batches, waited = Slow(), []

    def loss_fn(model, batch):
        time.sleep(0.15)
        waited.append(len(batches.made))
        return causal_lm_loss(model, batch)

    go(tmp_path, batches, loss_fn=loss_fn)
    # the coming batch was there before the step was over, and none was made for nothing
    assert waited == [2, 3, 4, 4] and batches.made == [(i, False) for i in range(4)]
    lines = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert lines[0]["data_seconds"] > 0.04 and lines[-1]["data_seconds"] < 0.04


def test_batches_that_depend_on_the_run_are_made_in_turn(tmp_path):
    batches = Slow()
    batches.ahead = False
    go(tmp_path, batches)
    assert batches.made == [(i, True) for i in range(4)]


def test_an_error_in_the_thread_is_the_runs(tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        go(tmp_path, Slow(fails_at=2))
    assert len(open(tmp_path / "metrics.jsonl").readlines()) == 2
    assert not any(t.name.startswith("batches") for t in threading.enumerate())


def test_a_short_warmup_is_said(tmp_path, capsys):
    go(tmp_path, Slow(), warmup=3, steps=10)
    assert (
        "warm-up: 2 steps, a fifth of the run (--warmup 3 would be more)" in capsys.readouterr().out
    )
    go(tmp_path / "long", Slow(), warmup=2, steps=10)
    assert "warm-up" not in capsys.readouterr().out


# ---- float16


def test_the_scale_moves_as_pytorchs_does():
    "The same decisions as `torch.amp.GradScaler` on the same overflows."
    theirs = torch.amp.GradScaler("cpu", growth_interval=5)
    ours, weight = LossScaler(), torch.nn.Parameter(torch.ones(1))
    ours.growth_interval = 5
    optimizer = torch.optim.SGD([weight], 0.0)
    for finite in [False, False, *[True] * 7, False, *[True] * 11]:
        weight.grad = torch.tensor([1.0 if finite else math.inf])
        theirs.scale(torch.ones(()))  # makes its state
        theirs.unscale_(optimizer)
        theirs.step(optimizer)
        theirs.update()
        ours.after(finite)
        assert ours.scale == theirs.get_scale()


def test_the_scale_is_saved():
    scaler, other = LossScaler(), LossScaler()
    for finite in (False, True, True):
        scaler.after(finite)
    other.load_state_tensors(scaler.state_tensors())
    assert (other.scale, other.good) == (2.0**15, 2)


@pytest.mark.parametrize("micro", [2, 8])
def test_scaling_changes_no_gradient(micro):
    "By a power of two: in float32 the gradients differ by the order of a division."
    found, batch = [], packed(8)
    for scaler in (None, LossScaler(2.0**10)):
        model = tiny()
        strategy = training.DataParallel(model)
        strategy.scaler = scaler
        cfg = TrainConfig(micro_batch_size=micro)
        compute_gradients(model, batch, causal_lm_loss, cfg, cpu, f32, strategy)
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found):
        assert float((a - b).norm() / b.norm()) < 1e-6


def test_float16_trains_like_bfloat16(tmp_path):
    "On the processor; the overflows of the first steps are left out, and nobody is alarmed."
    last = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model, batch = tiny(3), Repeat(packed(8))
        cfg = TrainConfig(
            out=str(tmp_path / str(dtype)), steps=60, log_every=1, optimizer="adamw", warmup=0
        )
        optimizers = build_optimizer(model, "adamw", 1e-2)
        strategy = training.DataParallel(model, optimizers)
        strategy.compute_in(dtype, cfg.micro_batch_size * 24)
        fit(model, batch, causal_lm_loss, optimizers, cfg, dtype, strategy=strategy)
        lines = [json.loads(line) for line in open(tmp_path / str(dtype) / "metrics.jsonl")]
        last[dtype] = lines[-1]["loss"]
    skipped = sum(line.get("skipped", 0) for line in lines)
    assert strategy.scaler.scale == 2.0**16 / 2**9 / 2**skipped and skipped <= 2
    assert last[torch.float32] < 1.5
    assert last[torch.float16] == pytest.approx(last[torch.bfloat16], abs=0.15)


class Repeat(Batches):
    steps_per_epoch = 1

    def __init__(self, batch):
        self.batch = batch

    def at(self, step, rank=0, world_size=1):
        return self.batch


def test_a_loss_that_is_nan_is_no_overflow(tmp_path):
    "The scale is for gradients; a loss that is not a number ends a run in float16 too."
    model, batch = tiny(), packed(4)
    optimizers = build_optimizer(model, "adamw", 1e-2)
    strategy = training.DataParallel(model, optimizers)
    strategy.compute_in(torch.float16)

    def broken(model, batch):
        loss, weight, metrics = causal_lm_loss(model, batch)
        return loss * math.nan, weight, metrics

    args = model, batch, broken, optimizers, TrainConfig(), torch.float16, strategy
    result = train_step(*args)
    assert not result.finite and not result.overflow


# ---- several processes

DDP_SCRIPT = """
import json, os, sys, torch
from minimind.dist import leave, main_process_done, process_group, rank_and_size
from minimind.model import MiniMind, preset
from minimind.losses import causal_lm_loss
from minimind.parallel import DDP
from minimind.train import DataParallel, TrainConfig, compute_gradients, micro_batches

sys.path.insert(0, os.path.dirname(sys.argv[0]))
shape = json.load(open("shape.json"))
cpu = torch.device("cpu")

def batch(rows, rank, size):
    torch.manual_seed(1)
    ids = torch.randint(0, 61, (rows, 24))
    labels = torch.where(torch.rand(rows, 24) < 0.3, -100, ids)
    from minimind.dist import rows_of_rank
    own, idle = rows_of_rank(torch.arange(rows), rank, size)
    return dict(input_ids=ids[own], labels=labels[own]) | idle

out = {}
with process_group(cpu):
    assert rank_and_size()[0] == 0 or int(os.environ["RANK"]) > 0
    main_process_done()
    rank, size = rank_and_size()
    for moe in (0, 4):
        for rows, micro in ((8, 2), (5, 2), (8, 8), (1, 2)):
            found = []
            for kind in (DataParallel, DDP):
                torch.manual_seed(0)
                model = MiniMind(preset("ci-moe" if moe else "ci", **shape))
                strategy = kind(model)
                cfg = TrainConfig(micro_batch_size=micro)
                numbers = compute_gradients(
                    model, batch(rows, rank, size), causal_lm_loss, cfg, cpu, torch.float32, strategy
                )
                found.append((numbers, [p.grad for p in model.parameters()]))
            (a, ours), (b, theirs) = found
            apart = max(float((x - y).norm() / x.norm()) for x, y in zip(theirs, ours))
            out[f"{moe} {rows} {micro}"] = dict(loss=a[0], other=b[0], weight=a[1], apart=apart)
    if rank == 0:
        json.dump(out, open("found.json", "w"))
leave(0)
"""


def test_ddp_is_the_sum_by_hand(tmp_path):
    """Gradients of PyTorch's `DistributedDataParallel` in our loop, and of the sum that the chapter
    writes by hand; unequal shares and a process without a row included."""
    (tmp_path / "ddp.py").write_text(DDP_SCRIPT)
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "2", "ddp.py"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 8
    for case in found.values():
        assert case["apart"] < 1e-6 and case["loss"] == pytest.approx(case["other"], rel=1e-6)


# ---- the log and the machine


def test_the_log_of_a_card(monkeypatch, tmp_path):
    "MFU by the formula of PaLM's appendix B, and the memory: of a card that is only pretended."
    from minimind.model import flops_per_token

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 4090")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 29)
    model, cfg = tiny(), TrainConfig(seq_len=100)
    machine = training.Machine(model, cfg, torch.bfloat16)
    assert machine.numbers(1e6) == {}

    class Card:
        "A model whose weights say that they are on a card."

        config = model.config

        def parameters(self):
            card = torch.device("cuda", 0)
            return [type("P", (), dict(device=card, requires_grad=True))()]

    found = training.Machine(Card(), cfg, torch.bfloat16).numbers(1e6)
    assert found["peak_gib"] == 1.5
    assert found["mfu"] == pytest.approx(flops_per_token(model.config, 100) * 1e6 / 165.2e12)
    old = training.GPUS["T4"]
    assert old.rate("bfloat16") == 0 and old.rate("float16") == 65
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some other card")
    assert "mfu" not in training.Machine(Card(), cfg, torch.bfloat16).numbers(1e6)


# ---- what a reader of the code found


def test_a_copy_of_a_located_batch_is_looked_through_again():
    "FSDP on a card makes a new dict of every argument: with the tensors, without what was found."
    batch = located(filled(4, 24))
    copy = type(batch)(batch.items())
    assert copy.learned is None
    (a, n, _), (b, m, _) = (causal_lm_loss(tiny(), x) for x in (batch, copy))
    assert n == m and float(a.detach()) == pytest.approx(float(b.detach()), rel=1e-6)


def test_the_first_scale_fits_a_sum(monkeypatch):
    """As large for a mean as PyTorch's; an overflow is one as long as the scale may fall: to what
    would be 1 for a mean."""
    strategy = training.DataParallel(tiny())
    strategy.compute_in(torch.float16, 16 * 256)
    assert strategy.scale * 4096 == 2.0**16 and strategy.scaler.least * 4096 == 1
    falls = 0
    while strategy.scale > strategy.scaler.least:
        strategy.scaler.after(False)
        falls += 1
    assert falls == 16


def test_rows_that_are_all_broken_are_still_named(monkeypatch):
    "Of two processes one has nothing but bad rows: it is that one whose documents are named."
    model, two = tiny(), dict(filled(2, 24), segment_ids=torch.ones(2, 24, dtype=int))
    broken = lambda model, batch: (causal_lm_loss(model, batch)[0] * math.nan, 1, {})
    mine, others = ["a:1", "a:2"], ["b:1", "b:2"]
    monkeypatch.setattr(training, "gather_objects", lambda make: [make(), ([], others)])
    assert training.bad_sources(model, two, broken, mine) == mine
    assert training.bad_sources(model, two, causal_lm_loss, mine) == mine + others
