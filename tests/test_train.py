"""The training loop: accumulation, clipping, the guard against NaN, the log, stopping and going on,
the plan."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from minimind.data import Batches
from minimind.losses import causal_lm_loss, lm_loss
from minimind.model import MiniMind, ModelConfig, num_parameters
from minimind.optim import build_optimizer, lr_factor
from minimind.train import (
    MAX_SKIPS,
    NonFinite,
    Saver,
    StepResult,
    TrainConfig,
    compute_gradients,
    fit,
    random_state,
    same_random_numbers,
    split_rows,
    stop_signals,
    total_steps,
    train_step,
)
from minimind.log import (
    MetricsLog,
    LogWindow,
    columns,
    count_tokens,
    format_line,
    format_seconds,
    odd_first_loss,
    odd_last_loss,
    read_metrics,
    sparkline,
    wrap,
)
from minimind.stage import format_plan, plan
from shared import TINY_SHAPE

TINY, V = ModelConfig(**TINY_SHAPE), TINY_SHAPE["vocab_size"]
cpu, f32 = torch.device("cpu"), torch.float32
root = Path(__file__).resolve().parents[1]


def tiny(seed=0):
    torch.manual_seed(seed)
    return MiniMind(TINY)


class Rows(Batches):
    """Batches as `PackedBatches` makes them, of random tokens: two documents in each row, some
    positions unlabelled, the last batch of an epoch short."""

    def __init__(self, rows=10, batch_size=4, T=12, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.batch_size, self.steps_per_epoch, self.fill = batch_size, -(-rows // batch_size), 1.0
        cut = torch.randint(2, T - 2, (rows, 1), generator=g)
        t = torch.arange(T).expand(rows, T)
        ids = torch.randint(0, V, (rows, T), generator=g)
        labels = torch.where(
            (torch.rand(rows, T, generator=g) < torch.rand(rows, 1, generator=g))
            & (t != 0)
            & (t != cut),
            ids,
            -100,
        )
        # at least one label a row
        labels[:, -1] = ids[:, -1]
        self.data = dict(
            input_ids=ids,
            labels=labels,
            position_ids=torch.where(t < cut, t, t - cut),
            segment_ids=1 + (t >= cut).long(),
        )
        self.tokens_per_epoch = rows * T

    def at(self, step):
        i = step % self.steps_per_epoch
        return {k: v[i * self.batch_size : (i + 1) * self.batch_size] for k, v in self.data.items()}

    def sources(self, step):
        i = step % self.steps_per_epoch
        n = len(self.at(step)["labels"])
        return [
            f"data.jsonl:{2 * (i * self.batch_size + r) + d + 1}"
            for r in range(n)
            for d in range(2)
        ]


class Memory(Saver):
    "A checkpointer that keeps its state in memory, and tells in which order it was called."

    def __init__(self, model, optimizers):
        self.model, self.optimizers, self.calls, self.saved, self.progress = (
            model,
            optimizers,
            [],
            {},
            {},
        )

    def load(self):
        if not self.saved:
            return 0
        step = max(self.saved)
        weights, moments, self.progress = self.saved[step]
        self.model.load_state_dict(weights)
        self.optimizers.load_state_tensors(moments)
        return step

    def save(self, step, progress):
        self.calls.append(("save", step))
        copy = lambda d: {k: v.clone() for k, v in d.items()}
        self.saved[step] = (
            copy(self.model.state_dict()),
            copy(self.optimizers.state_tensors()),
            json.loads(json.dumps(progress)),
        )

    def finish(self):
        pass

    def save_batch(self, batch):
        self.calls.append(("save_batch", batch))
        return "bad_batch.safetensors"

    def where(self):
        return f"saved in {self.out}; the same command goes on from here"


def config(tmp_path, **changes):
    return TrainConfig(
        **{
            "out": str(tmp_path),
            "steps": 6,
            "optimizer": "adamw",
            "lr": 1e-2,
            "warmup": 2,
            "log_every": 2,
            "save_every": 2,
            "micro_batch_size": 3,
            "device": "cpu",
        }
        | changes
    )


def train(
    tmp_path,
    model=None,
    batches=None,
    loss_fn=causal_lm_loss,
    saver=None,
    evaluate=None,
    speak=None,
    **changes,
):
    cfg = config(tmp_path, **changes)
    model = model or tiny()
    optimizers = build_optimizer(model, cfg.optimizer, cfg.lr)
    if saver:
        optimizers, saver.out = saver.optimizers, cfg.out
    return fit(
        model,
        batches or Rows(),
        loss_fn,
        optimizers,
        cfg,
        saver=saver,
        evaluate=evaluate,
        speak=speak,
    ), model


def weights(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- accumulation
def reference_gradients(model, batch):
    "The mean cross-entropy of the whole batch from full logits, by plain autograd."
    model.zero_grad()
    logits = model(batch["input_ids"], batch["position_ids"], batch["segment_ids"])
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    )
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    return loss.item(), grads


@given(
    rows=st.integers(1, 7), micro=st.integers(1, 8), seed=st.integers(0, 99), empty=st.booleans()
)
def test_accumulation_is_the_big_batch(rows, micro, seed, empty):
    model, batch = tiny(seed), Rows(rows, rows, seed=seed).at(0)
    # a micro-batch without anything to learn
    if empty and rows > micro:
        batch["labels"][:micro] = -100
    want, grads = reference_gradients(model, batch)
    loss, weight, _ = compute_gradients(
        model, batch, causal_lm_loss, TrainConfig(micro_batch_size=micro), cpu, f32
    )
    assert weight == int((batch["labels"][:, 1:] != -100).sum()) and loss == pytest.approx(
        want, rel=1e-5
    )
    for name, p in model.named_parameters():
        # of the largest entry: sums of 32-bit numbers in another order
        torch.testing.assert_close(
            p.grad, grads[name], rtol=1e-5, atol=1e-5 * float(grads[name].abs().max())
        )


def test_mean_of_means_is_not():
    """The test above has teeth: averaging the micro-batches' means misses by far more than its
    tolerance."""
    model, batch = tiny(), Rows(6, 6).at(0)
    _, grads = reference_gradients(model, batch)
    pieces = list(split_rows(batch, 2))
    for piece in pieces:
        (lm_loss(model, **piece) / len(pieces)).backward()
    assert (
        max(
            float((p.grad - grads[n]).norm() / grads[n].norm()) for n, p in model.named_parameters()
        )
        > 0.05
    )


def test_final_weights_do_not_depend_on_the_micro_batch(tmp_path):
    # batches of 4, 4, 2, 4, 4 rows
    runs = [weights(train(tmp_path / str(m), micro_batch_size=m, steps=5)[1]) for m in (1, 3, 4)]
    for other in runs[1:]:
        for k in other:
            torch.testing.assert_close(other[k], runs[0][k], rtol=1e-4, atol=1e-5)


def test_split_rows():
    batch = {"a": torch.arange(5), "b": torch.arange(10).view(5, 2)}
    pieces = list(split_rows(batch, 2))
    assert [len(p["a"]) for p in pieces] == [2, 2, 1] and torch.equal(
        torch.cat([p["b"] for p in pieces]), batch["b"]
    )


def test_metrics_are_means_over_the_weight():
    def loss_fn(model, batch):
        loss, weight, _ = causal_lm_loss(model, batch)
        return loss, weight, {"right": torch.tensor(3.0 * weight)}

    *_, metrics = compute_gradients(
        tiny(), Rows().at(0), loss_fn, TrainConfig(micro_batch_size=3), cpu, f32
    )
    assert metrics == {"right": pytest.approx(3.0)}


def test_bfloat16_gives_nearly_the_same_gradient():
    model, batch = tiny(), Rows().at(0)
    _, grads = reference_gradients(model, batch)
    loss, *_ = compute_gradients(model, batch, causal_lm_loss, TrainConfig(), cpu, torch.bfloat16)
    g = torch.cat([p.grad.flatten() for p in model.parameters()])
    want = torch.cat([grads[n].flatten() for n, _ in model.named_parameters()])
    # bfloat16 keeps 8 bits
    assert (
        g.dtype == f32
        and F.cosine_similarity(g, want, dim=0) > 0.99
        and loss == pytest.approx(math.log(V), abs=0.3)
    )


# ---- one step
class Recorder:
    "Optimizers that only look at the gradient they would use."

    def __init__(self, model):
        self.model, self.norms = model, []

    def step(self):
        self.norms.append(
            float(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm())
        )

    def zero_grad(self):
        self.model.zero_grad()


@pytest.mark.parametrize("clip", [0.1, 100.0, 0.0])
def test_clipping(clip):
    model = tiny()
    recorder = Recorder(model)
    raw = train_step(model, Rows().at(0), causal_lm_loss, recorder, TrainConfig(clip=clip)).norm
    assert raw > 0.3, "the reported norm is that before clipping"
    assert recorder.norms == [pytest.approx(min(raw, clip) if clip else raw, rel=1e-4)]


def test_fit_is_the_ten_line_loop(tmp_path):
    batches, model, steps = Rows(), tiny(), 10
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    for step in range(steps):
        for g in optimizer.param_groups:
            g["lr"] = 1e-2 * lr_factor(step, steps, 2, "cosine", 0.05)
        lm_loss(model, **batches.at(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    _, ours = train(tmp_path, steps=steps, micro_batch_size=4, final_lr=0.05)
    for k, v in ours.state_dict().items():
        torch.testing.assert_close(v, model.state_dict()[k], rtol=1e-4, atol=1e-6)


def test_repeated_runs_are_bit_identical(tmp_path):
    assert same(weights(train(tmp_path / "a")[1]), weights(train(tmp_path / "b")[1]))


def test_steps_come_from_epochs():
    batches = Rows(rows=10, batch_size=4)  # 3 steps an epoch
    assert [
        total_steps(TrainConfig(steps=s, epochs=e), batches)
        for s, e in ((5, 9.0), (0, 2.0), (0, 0.01))
    ] == [5, 6, 1]


# ---- the log
def test_log_counts_optimizer_steps(tmp_path):
    last, _ = train(tmp_path, steps=10, log_every=4, micro_batch_size=1)
    lines = read_metrics(tmp_path)
    assert [l["step"] for l in lines] == [4, 8, 10] and last == lines[-1]
    assert [l["lr"] for l in lines] == [
        1e-2 * lr_factor(s - 1, 10, 2, "cosine", 0.05) for s in (4, 8, 10)
    ]
    assert {"loss", "grad_norm", "tokens_per_second", "seconds"} <= lines[0].keys() and lines[0][
        "tokens_per_second"
    ] > 0


def test_a_short_run_reaches_its_learning_rate(tmp_path):
    train(tmp_path, steps=10, warmup=30, log_every=1)
    rates = [l["lr"] for l in read_metrics(tmp_path)]
    assert max(rates) == 1e-2 and rates[-1] < 2e-3, (
        "a warm-up longer than the run must not keep the rate near zero"
    )


def test_logged_loss_is_the_mean_over_tokens(tmp_path):
    "Batches of different weight: the mean over tokens is not the mean over steps."
    batches, model, cfg = Rows(), tiny(), config(tmp_path, steps=3, log_every=3)
    optimizers = build_optimizer(model, "adamw", cfg.lr)
    results = []
    for step in range(3):
        # a fifth of 3 steps is no warm-up
        optimizers.set_lr(lr_factor(step, 3, 0, "cosine", 0.05))
        results.append(train_step(model, batches.at(step), causal_lm_loss, optimizers, cfg))
    want = sum(r.loss * r.weight for r in results) / sum(r.weight for r in results)
    last, _ = train(tmp_path, steps=3, log_every=3)
    assert last["loss"] == pytest.approx(want, rel=1e-6) and last["loss"] != pytest.approx(
        sum(r.loss for r in results) / 3, rel=1e-6
    )


def test_metrics_log_drops_what_comes_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (2, 4, 6):
        log(step=step, loss=1.0, lr=0.1)
    # cut by a kill
    with open(path, "a") as f:
        f.write('{"step": 8, "lo')
    assert [l["step"] for l in read_metrics(tmp_path)] == [2, 4, 6], "a cut line is no line"
    MetricsLog(path, 4)(step=6, loss=2.0)
    assert [(l["step"], l["loss"]) for l in read_metrics(tmp_path)] == [
        (2, 1.0),
        (4, 1.0),
        (6, 2.0),
    ]
    MetricsLog(path)
    assert read_metrics(tmp_path) == [] and [f.name for f in tmp_path.iterdir()] == [
        "metrics.jsonl"
    ]


def test_metrics_are_json(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl")(step=1, loss=math.nan, grad_norm=math.inf)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "grad_norm": None}


def test_read_metrics_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        read_metrics(tmp_path)


def test_what_is_printed(tmp_path, capsys):
    train(tmp_path, evaluate=lambda: {"bpb": 1.23456}, eval_every=4)
    warmup, *out = capsys.readouterr().out.splitlines()
    assert warmup == "warm-up: 1 steps, a fifth of the run (--warmup 2 would be more)"
    assert [line.split("  ")[0] for line in out[:6]] == [
        "train step 1/6",
        "train step 2/6",
        "train step 4/6",
        "train: measuring …",
        "train step 4: bpb 1.235",
        "train step 6/6",
    ]
    assert out[0].startswith("train step 1/6  loss 4.") and out[0].endswith(" left")
    assert " nats  lr 1.0e-02  grad " in out[1] and " tok/s  0:0" in out[1]
    assert out[6:8] == ["train: measuring …", "train done: 6 steps"]
    assert out[8].startswith("  loss  4.") and out[8].endswith(" nats") and "▁" in out[8]
    assert out[9] == "  bpb   1.235" and len(out) == 10
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 4, 6, 6]


def test_the_end_says_what_changed(tmp_path, capsys):
    marks = iter([0.25, 0.75])
    changes = dict(eval_first=True, steps=4, sample_tokens=5, warmup=0)
    train(
        tmp_path, evaluate=lambda: {"bpb": next(marks)}, speak=lambda: "› Hi\n  Hello!", **changes
    )
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["train: measuring before the first step …", "train step 0: bpb 0.25"]
    assert out[-3:] == ["  bpb   0.25 → 0.75", "  › Hi", "  Hello!"]
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 2, 4, 4]


class Marked(TrainConfig):
    "A stage that is waited for because of its reward, and judges itself."

    shown = {"reward": ("reward", ".2f")}

    def verdict(self, before, after):
        return f"note: {after['reward']:.1f}"


class Rewarded(Rows):
    reward = 0.0

    def numbers(self):
        self.reward += 0.5
        return {"reward": self.reward}


def test_a_stage_names_the_numbers_that_matter(tmp_path, capsys):
    model, cfg = tiny(), Marked(out=str(tmp_path), steps=2, log_every=1, device="cpu", warmup=0)
    fit(model, Rewarded(), causal_lm_loss, build_optimizer(model, "adamw", 1e-3), cfg)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("train step 1/2  reward 0.50  loss 4.")
    assert out[3].startswith("  reward  0.50 ▁█ 1.00") and out[4].startswith("  loss    4.")
    assert out[-1] == "note: 1.0"


def test_a_run_that_learned_nothing_says_so(tmp_path, capsys):
    train(tmp_path / "good", steps=30, lr=3e-2)
    assert "warning" not in capsys.readouterr().out
    train(tmp_path / "wild", steps=8, lr=9.0, clip=0.0)
    out = capsys.readouterr().out
    assert "warning: the loss went from 4." in out and "--lr" in out.split("warning")[1]
    assert max(map(len, out.splitlines())) < 80
    train(tmp_path / "slow", steps=8, lr=1e-9)
    assert "warning: the loss has not fallen" in capsys.readouterr().out
    assert odd_last_loss(8.8, 4587.1, 6400) and odd_last_loss(2.0, 2.3, 6400)
    assert odd_last_loss(2.0, 1.5, 6400) is odd_last_loss(2.0, math.nan, 6400) is None


@given(st.integers(12, 90), st.floats(0, 1e5), st.floats(0, 1e8))
def test_a_line_fits(width, loss, speed):
    numbers = dict(step=1, loss=loss, lr=1e-3, grad_norm=2.0, tokens_per_second=speed, reward=0.5)
    line = format_line(numbers, "", {"reward": ("reward", ".2f")}, width)
    assert len(line) <= width and line.startswith("reward 0.50")


@given(st.text(), st.integers(4, 30))
def test_wrapped_text_fits_and_loses_nothing(text, width):
    lines = wrap(text, " ", width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    longest = max(map(columns, text.split()), default=0)
    assert all(columns(line) <= max(width, 1 + longest) for line in lines)


def test_a_curve_in_a_line():
    assert sparkline([8, 4, 2, 1]) == "█▄▂▁" and sparkline([None, math.inf]) == ""
    assert len(sparkline(range(100), 10)) == 10 and len(sparkline(range(7), 10)) == 7


def test_samples_and_measurements_change_nothing(tmp_path):
    def draw():
        torch.rand(3), random.random()
        return {"bpb": 1.0}

    def speak():
        return str(draw())

    _, plain = train(tmp_path / "plain")
    told = dict(evaluate=draw, speak=speak, eval_first=True, eval_every=1)
    _, asked = train(tmp_path / "asked", **told)
    assert same(weights(plain), weights(asked))


def test_format_seconds():
    assert [format_seconds(s) for s in (0, 59.6, 61, 3599, 3600, 90061)] == [
        "0:00",
        "1:00",
        "1:01",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]


def test_first_loss_is_checked(tmp_path, capsys):
    assert odd_first_loss(
        math.log(V) + 0.5, V
    ) is None and "worse than guessing blindly" in odd_first_loss(15.9, 6400)
    model = tiny()
    # sure of itself, and wrong
    with torch.no_grad():
        model.lm_head.weight.mul_(60)
    train(tmp_path, model, steps=1)
    assert "warning: the first loss is" in capsys.readouterr().out


# ---- going on
@pytest.mark.parametrize("died_at", [1, 3, 4, 5])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_gives_the_same_weights_and_the_same_log(tmp_path, died_at, optimizer):
    class Killed(BaseException):
        pass

    def dying(model, batch):
        # two micro-batches a step
        if len(calls) == died_at * 2:
            raise Killed
        calls.append(1)
        return causal_lm_loss(model, batch)

    options = dict(optimizer=optimizer, batches=Rows(8, 4), steps=7, log_every=4, save_every=3)
    last, whole = train(tmp_path / "whole", **options)
    model, calls = tiny(), []
    memory = Memory(model, build_optimizer(model, optimizer, 1e-2))
    with pytest.raises(Killed):
        train(tmp_path / "cut", model, loss_fn=dying, saver=memory, **options)
    again = tiny(seed=9)
    memory.model, memory.optimizers = again, build_optimizer(again, optimizer, 1e-2)
    # nothing saved yet: the run begins again
    if not memory.saved:
        again.load_state_dict(tiny().state_dict())
    last_again, _ = train(tmp_path / "cut", again, saver=memory, **options)
    assert same(weights(whole), weights(again))
    clock = {"seconds", "tokens_per_second", "data_seconds"}
    lines = [
        [{k: v for k, v in l.items() if k not in clock} for l in read_metrics(tmp_path / n)]
        for n in ("whole", "cut")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 2


def test_a_killed_run_that_is_measured_and_speaks_goes_on_exactly(tmp_path):
    """The first measurement is a line of step 0: it is kept when the run goes on, and made again
    when it begins again. Samples draw random numbers, and nobody notices."""

    def draw():
        return {"bpb": float(torch.rand(())) * 0 + 2.0}

    def speak():
        return f"{torch.rand(3)} {random.random()}"

    told = dict(batches=Rows(8, 4), evaluate=draw, speak=speak)
    told |= dict(eval_first=True, eval_every=2, save_every=2, steps=6)
    _, whole = train(tmp_path / "whole", **told)
    for saved in (0, 4):
        model, out = tiny(), tmp_path / f"cut{saved}"
        memory, calls = Memory(model, build_optimizer(model, "adamw", 1e-2)), []

        def dying(model, batch, calls=calls, saved=saved):
            calls.append(1)
            if len(calls) == 2 * (saved + 1) + 1:  # two micro-batches a step
                raise RuntimeError("killed")
            return causal_lm_loss(model, batch)

        with pytest.raises(RuntimeError, match="killed"):
            train(out, model, loss_fn=dying, saver=memory, **told)
        again = tiny(seed=0 if not saved else 9)
        memory.model, memory.optimizers = again, build_optimizer(again, "adamw", 1e-2)
        train(out, again, saver=memory, **told)
        assert same(weights(whole), weights(again))
        steps = [line["step"] for line in read_metrics(out)]
        assert steps == [line["step"] for line in read_metrics(tmp_path / "whole")]
        assert steps == [0, 2, 2, 4, 4, 6, 6]


def test_a_batch_that_cannot_be_had_costs_no_step(tmp_path):
    """A reward that fails in the middle: what was trained is saved, and the run goes on as if
    nothing had happened."""

    class Moody(Rows):
        broken = True

        def at(self, step):
            if step == 3 and self.broken:
                raise OSError("the reward server is gone")
            return super().at(step)

    options = dict(batches=Moody(8, 4), save_every=100)
    model = tiny()
    memory = Memory(model, build_optimizer(model, "adamw", 1e-2))
    with pytest.raises(OSError, match="reward server"):
        train(tmp_path / "cut", model, saver=memory, **options)
    assert list(memory.saved) == [3]
    # still gone: nothing new to save
    with pytest.raises(OSError, match="reward server"):
        train(tmp_path / "cut", model, saver=memory, **options)
    assert memory.calls == [("save", 3)]
    options["batches"].broken = False
    train(tmp_path / "cut", model, saver=memory, **options)
    _, whole = train(tmp_path / "whole", batches=Rows(8, 4), save_every=100)
    assert same(weights(whole), weights(model))


def test_what_batches_know_about_a_step_is_logged(tmp_path):
    class Telling(Rows):
        def at(self, step):
            self.told = {"reward": float(step)}
            return super().at(step)

        def numbers(self):
            return self.told

    last, _ = train(tmp_path, batches=Telling(8, 4), steps=4, log_every=2)
    assert [line["reward"] for line in read_metrics(tmp_path)] == pytest.approx(
        [0.5, 2.5], abs=0.05
    ) and last["reward"] == pytest.approx(2.5, abs=0.05)


def test_finished_run_returns_its_numbers(tmp_path, capsys):
    model = tiny()
    memory = Memory(model, build_optimizer(model, "adamw", 1e-2))
    evaluations = []

    def evaluate():
        evaluations.append(1)
        return {"bpb": 2.0}

    last, _ = train(tmp_path, model, saver=memory, evaluate=evaluate)
    text, before = (tmp_path / "metrics.jsonl").read_text(), weights(model)
    again, _ = train(tmp_path, model, saver=memory, evaluate=evaluate)
    assert again == last and again["step"] == 6 and again["bpb"] == 2.0 and again["loss"] > 0
    assert (
        (tmp_path / "metrics.jsonl").read_text() == text
        and same(before, weights(model))
        and len(evaluations) == 1
    )
    assert "all 6 steps are done" in capsys.readouterr().out


def test_saved_before_evaluated(tmp_path):
    model = tiny()
    memory = Memory(model, build_optimizer(model, "adamw", 1e-2))

    def evaluate():
        assert not model.training
        memory.calls.append(("evaluate", max(memory.saved)))
        return {"bpb": 2.0}

    train(tmp_path, model, saver=memory, evaluate=evaluate, steps=5, save_every=3, eval_every=2)
    assert (
        memory.calls
        == [
            ("save", 2),
            ("evaluate", 2),
            ("save", 3),
            ("save", 4),
            ("evaluate", 4),
            ("save", 5),
            ("evaluate", 5),
        ]
        and model.training
    )


def test_an_evaluation_that_died_is_made_up_for(tmp_path):
    model = tiny()
    memory = Memory(model, build_optimizer(model, "adamw", 1e-2))

    def out_of_memory():
        raise MemoryError

    with pytest.raises(MemoryError):
        train(tmp_path, model, saver=memory, evaluate=out_of_memory)
    last, _ = train(tmp_path, model, saver=memory, evaluate=lambda: {"bpb": 2.0})
    assert last["bpb"] == 2.0 and [l["step"] for l in read_metrics(tmp_path)] == [2, 4, 6, 6]


def test_evaluation_leaves_the_random_numbers_alone(tmp_path):
    def noisy(model, batch):  # a loss that draws
        loss, weight, _ = causal_lm_loss(model, batch)
        return loss * (1 + torch.rand(()) * 0.1 + random.random() * 0.1), weight, {}

    def evaluate():
        torch.rand(7)
        random.random()
        return {"x": 1.0}

    runs = []
    for name, every in (("none", 0), ("often", 1)):
        model = tiny()
        torch.manual_seed(5)
        random.seed(5)
        train(tmp_path / name, model, loss_fn=noisy, evaluate=evaluate, eval_every=every)
        runs.append(weights(model))
    assert same(*runs)


def test_same_random_numbers():
    torch.manual_seed(1)
    random.seed(1)
    before = random_state()
    with same_random_numbers():
        torch.rand(3)
        random.random()
    after = random_state()
    assert torch.equal(before[0]["cpu"], after[0]["cpu"]) and before[1] == after[1]


# ---- the guard against NaN
def poisoned(token):
    "A loss that is NaN for every row that holds the token."

    def loss_fn(model, batch):
        loss, weight, _ = causal_lm_loss(model, batch)
        return loss * (math.nan if bool((batch["input_ids"] == token).any()) else 1.0), weight, {}

    return loss_fn


def marked_rows(row=5):
    rows = Rows(12, 4)
    rows.data["input_ids"][rows.data["input_ids"] == 60] = 0
    rows.data["input_ids"][row, 3] = 60
    return rows


def test_nan_stops_and_names_the_documents(tmp_path):
    model, rows = tiny(), marked_rows(row=5)  # row 1 of step 2
    memory = Memory(model, build_optimizer(model, "adamw", 1e-2))
    with pytest.raises(NonFinite) as e:
        train(tmp_path, model, rows, poisoned(60), memory, save_every=1)
    message = str(e.value)
    assert (
        "step 2: loss nan" in message
        and "Documents: data.jsonl:11, data.jsonl:12." in message
        and "--on-nan skip" in message
        and "bad_batch.safetensors" in message
    )
    assert same(weights(model), memory.saved[1][0]), (
        "the weights, and the last checkpoint, are those before the bad step"
    )
    kept = dict(memory.calls)["save_batch"]
    assert all(torch.equal(v, rows.at(1)[k]) for k, v in kept.items())


def test_nan_in_a_few_rows_blames_their_documents_first(tmp_path):
    def cause(rows):
        model, batches = tiny(), Rows(12, 4)
        held = batches.data["input_ids"]
        held[held == 60] = 0
        held[rows, 3] = 60
        with pytest.raises(NonFinite) as e:
            train(tmp_path, model, batches, poisoned(60), micro_batch_size=1)
        return str(e.value)

    one, all_of_them = cause([5]), cause(range(12))
    assert "the documents named here" in one and "the documents named here" not in all_of_them


def test_nan_can_be_skipped(tmp_path, capsys):
    last, model = train(
        tmp_path, batches=marked_rows(), loss_fn=poisoned(60), on_nan="skip", steps=6, log_every=1
    )
    lines = {l["step"]: l for l in read_metrics(tmp_path)}
    assert (
        [s for s, l in lines.items() if l.get("skipped")] == [2, 5]
        and lines[2]["loss"] is None
        and lines[3]["loss"] > 0
        and last["step"] == 6
    )
    assert (
        all(torch.isfinite(p).all() for p in model.parameters())
        and "skipped step 2: loss nan" in capsys.readouterr().out
    )


def test_a_skipped_step_is_no_step(tmp_path):
    _, model = train(
        tmp_path / "a",
        batches=marked_rows(),
        loss_fn=poisoned(60),
        on_nan="skip",
        steps=2,
        schedule="constant",
        warmup=0,
    )
    _, want = train(
        tmp_path / "b",
        batches=marked_rows(),
        loss_fn=poisoned(60),
        steps=1,
        schedule="constant",
        warmup=0,
    )
    assert same(weights(model), weights(want))


def test_skipping_for_ever_is_refused(tmp_path):
    with pytest.raises(NonFinite, match=f"bad step {MAX_SKIPS + 1} in a row"):
        train(
            tmp_path,
            loss_fn=lambda m, b: (causal_lm_loss(m, b)[0] * math.inf, 1, {}),
            on_nan="skip",
            steps=50,
        )


@pytest.mark.parametrize(
    "case, why",
    [
        ("mask", "no position of the batch has a label"),
        ("weights", "the weights were broken before this step .model.layers.0"),
        ("late", "try a tenth of it"),
        ("early", "the data, or the weights the run began with"),
        ("gradient", "the gradient overflows"),
    ],
)
def test_nan_gets_a_likely_cause(tmp_path, case, why):
    model, rows = tiny(), Rows()
    if case == "mask":
        rows.data["labels"][:] = -100
    if case == "weights":
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    steps = []

    def loss_fn(model, batch):
        loss, weight, _ = causal_lm_loss(model, batch)
        steps.append(1)
        if case == "early" or case == "late" and len(steps) > 14:
            loss = loss * math.nan
        # the root has no slope at 0
        if case == "gradient" and len(steps) > 14:
            loss = loss + (model.lm_head.weight * 0).sqrt().sum()
        return loss, weight, {}

    with pytest.raises(NonFinite, match=why):
        train(tmp_path, model, rows, loss_fn, steps=20)


def test_nothing_is_named_when_no_row_stands_out(tmp_path):
    with pytest.raises(NonFinite, match="data.jsonl:1, data.jsonl:2, data.jsonl:3 and 5 more"):
        train(tmp_path, loss_fn=lambda m, b: (causal_lm_loss(m, b)[0] * math.nan, 1, {}))


def test_batches_without_sources(tmp_path):
    class Bare(Rows):
        sources = Batches.sources

    with pytest.raises(NonFinite, match="step 1"):
        train(
            tmp_path,
            batches=Bare(),
            loss_fn=lambda m, b: (causal_lm_loss(m, b)[0] * math.nan, 1, {}),
        )


# ---- stopping
@pytest.fixture
def ctrl_c():
    """Python's own handler for Ctrl-C, also where a shell started the tests in the background, with
    the signal ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def signalled(number, at, times=1):
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) == at:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return causal_lm_loss(model, batch)

    return loss_fn


@pytest.mark.parametrize(
    "number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_finishes_the_step_and_saves(tmp_path, capsys, ctrl_c, number, error):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    model = tiny()
    memory = Memory(model, build_optimizer(model, "adamw", 1e-2))
    # in the first half of step 3
    with pytest.raises(error) as e:
        train(tmp_path, model, saver=memory, loss_fn=signalled(number, at=5), save_every=100)
    assert e.type is error and (error is KeyboardInterrupt or e.value.code == 143)
    assert (
        list(memory.saved) == [3]
        and [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    )
    out = capsys.readouterr().out
    assert (
        f"train: {number.name} after step 3 of 6: saved in {tmp_path}; the same command goes on "
        "from here" in out
    )
    train(tmp_path, model, saver=memory, save_every=100)
    assert same(weights(model), weights(train(tmp_path / "whole")[1]))


def test_a_signal_during_a_save_waits_for_the_next_step(tmp_path, ctrl_c):
    "What is announced as saved is saved, whenever the signal comes."

    class Interrupting(Memory):
        def save(self, step, progress):
            super().save(step, progress)
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    model = tiny()
    memory = Interrupting(model, build_optimizer(model, "adamw", 1e-2))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model, saver=memory)
    assert max(memory.saved) == 3 and same(weights(model), memory.saved[3][0])


def test_a_signal_during_an_evaluation(tmp_path, ctrl_c):
    """The evaluation ends, and no further step is begun; also for one that is made up for at the
    start."""

    def evaluate():
        os.kill(os.getpid(), signal.SIGINT)
        return {"bpb": 2.0}

    model = tiny()
    memory = Memory(model, build_optimizer(model, "adamw", 1e-2))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model, saver=memory, evaluate=evaluate, eval_every=2)
    assert [l["step"] for l in read_metrics(tmp_path)] == [2, 2] and list(memory.saved) == [2]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    # as if it had died in the evaluation
    (tmp_path / "metrics.jsonl").write_text(lines[0])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model, saver=memory, evaluate=evaluate, eval_every=2)
    assert [l["step"] for l in read_metrics(tmp_path)] == [2, 2] and list(memory.saved) == [2]


def test_a_second_signal_ends_at_once(tmp_path, ctrl_c):
    model = tiny()
    memory = Memory(model, build_optimizer(model, "adamw", 1e-2))
    with pytest.raises(KeyboardInterrupt):
        train(
            tmp_path,
            model,
            saver=memory,
            loss_fn=signalled(signal.SIGINT, at=3, times=2),
            save_every=100,
        )
    assert not memory.saved


def test_without_a_checkpointer_a_signal_says_so(tmp_path, capsys, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss_fn=signalled(signal.SIGINT, at=1))
    assert "nothing is saved" in capsys.readouterr().out


def test_ignored_signals_stay_ignored():
    # as `nohup` does, and a shell for its background jobs
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as seen:
            os.kill(os.getpid(), signal.SIGINT)
        assert not seen
    finally:
        signal.signal(signal.SIGINT, old)


def test_training_works_outside_the_main_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path)[0]["step"]))
    thread.start()
    thread.join()
    assert done == [6]


# ---- settings and plan
@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", -1),
        ("epochs", math.nan),
        ("epochs", 0.0),
        ("seq_len", 0),
        ("micro_batch_size", 0),
        ("batch_size", -3),
        ("keep", 0),
        ("save_every", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("muon_lr", 20.0),
        ("clip", -1.0),
        ("clip", math.inf),
        ("weight_decay", math.nan),
        ("final_lr", 1.5),
        ("schedule", "cosin"),
        ("optimizer", "adam"),
        ("on_nan", "ignore"),
        ("on_bad_line", ""),
    ],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}".replace("(", ".")):
        TrainConfig(**{field: value})


def test_plan(tmp_path):
    model, batches, cfg = tiny(), Rows(), config(tmp_path, optimizer="muon")
    before = weights(model)
    numbers = plan(model, batches, cfg, cpu, f32, causal_lm_loss, timed=True)
    assert same(before, weights(model)) and all(p.grad is None for p in model.parameters()), (
        "a timed plan changes nothing"
    )
    assert (
        numbers["parameters"] == num_parameters(TINY)
        and numbers["steps"] == 6
        and numbers["epochs"] == 2
        and numbers["tokens"] == 240
        and 0 < numbers["seconds"] < 60
    )
    text = format_plan(numbers)
    assert (
        f"{numbers['parameters']:,} parameters on cpu in float32" in text
        and "6 steps = 2.00 epochs = 240 tokens" in text
        and "\nabout 0:" in text
    )
    assert "seconds" not in plan(model, batches, cfg, cpu, f32, causal_lm_loss)


def test_plan_of_rows_without_a_length():
    "Rows that are yet to be sampled: no tokens, no operations, but a time."

    class Sampled(Batches):
        steps_per_epoch = 3

        def at(self, step):
            return dict(
                input_ids=torch.zeros(4, 2, 6, dtype=torch.int64),
                labels=torch.zeros(4, 2, 6, dtype=torch.int64),
            )

    model = MiniMind(TINY)
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name)

    def loss_fn(model, batch):
        return causal_lm_loss(model, {k: v.flatten(0, 1) for k, v in batch.items()})

    p = plan(
        model,
        Sampled(),
        TrainConfig(steps=6, micro_batch_size=2),
        torch.device("cpu"),
        torch.float32,
        loss_fn,
        timed=True,
    )
    assert "tokens" not in p and p["seconds"] > 0 and p["trained"] < p["parameters"]
    assert "of them trained" in format_plan(p) and "FLOPs" not in format_plan(p)


def test_count_tokens():
    batch = Rows().at(0)
    batch["segment_ids"][0] = 0  # a row of padding
    assert count_tokens(batch) == 36 and count_tokens({"input_ids": torch.zeros(2, 5)}) == 10


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux's /proc"
)
def test_memory_estimate():
    """Against the peak of a fresh process, which gives freed memory back at once (glibc's
    settings), at preset `ci`."""
    code = """
import torch
from minimind.losses import causal_lm_loss
from minimind.model import MiniMind, PRESETS
from minimind.optim import build_optimizer
from minimind.train import TrainConfig, train_step
from minimind.stage import memory_bytes
def peak(): return 1024*int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))
def batch(rows): ids = torch.randint(0, 6400, (rows, 256)); return dict(input_ids=ids, labels=ids)
cfg = TrainConfig(batch_size=8, micro_batch_size=8, seq_len=256)
train_step(small := MiniMind(PRESETS["ci"]), batch(1), causal_lm_loss, build_optimizer(small, "adamw"), cfg)     # torch's own buffers
del small
before = peak()
model = MiniMind(PRESETS["ci"])
optimizers = build_optimizer(model)
for _ in range(2): train_step(model, batch(8), causal_lm_loss, optimizers, cfg)
print((peak() - before)/sum(memory_bytes(PRESETS["ci"], cfg, torch.float32).values()))
"""
    env = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 0.6 < float(done.stdout) < 1.4, f"measured / estimated = {done.stdout}"


def test_window_survives_json():
    window = LogWindow()
    window.update(steps=2, tokens=10, seconds=0.1, weight=3.0, loss=7.0)
    again = LogWindow(json.loads(json.dumps(dict(window))))
    assert (
        again == window
        and again.line(2, 0.1, 1.0)["loss"] == 7 / 3
        and "no good step"
        in format_line(LogWindow(steps=1, tokens=1, seconds=1.0, skipped=1).line(1, 0.1, 1.0))
    )


def test_a_number_that_not_every_step_has_is_a_mean_of_those_that_do():
    window = LogWindow()
    window.add(StepResult(1.0, 10.0, 0.0, {"kl": 4.0}), {"reward": 1.0})
    window.add(StepResult(2.0, 90.0, 0.0, {}), {"reward": 0.0})
    window.update(steps=2, tokens=2, seconds=1.0)
    line = window.line(2, 0.1, 1.0)
    assert (line["loss"], line["kl"], line["reward"]) == (1.9, 4.0, 0.5) and not any(
        k.startswith("weight") for k in line
    )


def test_a_metric_may_not_take_a_name_of_the_log(tmp_path):
    def loss_fn(model, batch):
        loss, weight, _ = causal_lm_loss(model, batch)
        return loss, weight, {"loss": loss.detach()}

    with pytest.raises(ValueError, match="may not be called loss"):
        fit(tiny(), Rows(), loss_fn, build_optimizer(tiny()), config(tmp_path))


@pytest.mark.parametrize("numbers", [None, 3.0, {"step": 1}])
def test_an_evaluation_returns_numbers_by_name(tmp_path, numbers):
    with pytest.raises(ValueError, match="evaluate must return a dict"):
        fit(
            model := tiny(),
            Rows(),
            causal_lm_loss,
            build_optimizer(model),
            config(tmp_path),
            evaluate=lambda: numbers,
        )
