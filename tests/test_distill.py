"""Distillation: the formula, its gradients, the chunked and the cached form of it, and a stage that
resumes exactly and leaves its teacher alone."""

import json
import math
import os
import shutil
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from minimind import distill
from minimind.hub import load_pretrained, save_pretrained, to_hf_config, weights_sha256
from minimind.core import IGNORE
from minimind.data import JsonlReader, PackedBatches, build_store
from minimind.distill import (
    DIVERGENCES,
    DistillConfig,
    LiveTeacher,
    PlacedBatches,
    TeacherCache,
    bucket,
    cache_teacher,
    distill_loss,
    distill_sums,
    distillation,
    divergence,
    live_teacher,
    sample_teacher,
)
from minimind.losses import causal_lm_loss, lm_loss, shift
from minimind.model import MiniMind, ModelConfig
from minimind.sft import SFTConfig
from minimind.tokenizer import Tokenizer
from minimind.train import compute_gradients
from minimind.log import read_metrics

V = 310
TEACHER = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=64,
    vocab_size=V,
    max_position_embeddings=256,
)
STUDENT = {**TEACHER, "hidden_size": 32, "num_hidden_layers": 1}
kinds = pytest.mark.parametrize("kind", DIVERGENCES)


def by_hand(student, teacher, labels, alpha, T, kind):
    "The formula, written out with probabilities in float64, position by position."
    total, n = 0.0, 0
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1] - 1):
            if labels[b, t + 1] == IGNORE:
                continue
            p, q = (
                (teacher[b, t].double() / T).softmax(-1),
                (student[b, t].double() / T).softmax(-1),
            )
            m = (p + q) / 2
            apart = {
                "forward": (p * (p / q).log()).sum(),
                "reverse": (q * (q / p).log()).sum(),
                "jsd": ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2,
            }[kind]
            total = (
                total
                - alpha * student[b, t].double().softmax(-1)[labels[b, t + 1]].log()
                + (1 - alpha) * T**2 * apart
            )
            n += 1
    return total / n


def example(seed=0, B=2, T=5, V=11, dtype=torch.float64, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(B, T, V, generator=g, dtype=dtype) for _ in range(2))
    labels = torch.randint(0, V, (B, T), generator=g)
    labels[0, 2] = labels[-1, -1] = IGNORE
    return student, teacher, labels


@kinds
@pytest.mark.parametrize("alpha, T", [(0.5, 1.0), (0.0, 2.0), (1.0, 3.0), (0.3, 0.5)])
def test_the_formula(kind, alpha, T):
    student, teacher, labels = example()
    torch.testing.assert_close(
        distill_loss(student, teacher, labels, alpha, T, kind),
        by_hand(student, teacher, labels, alpha, T, kind),
        rtol=0,
        atol=1e-10,
    )
    single = distill_loss(student.float(), teacher.float(), labels, alpha, T, kind)
    assert (
        single.dtype == torch.float32
        and abs(float(single) - float(by_hand(student, teacher, labels, alpha, T, kind))) < 1e-5
    )
    # the sum of many exponentials is not made in bfloat16
    assert (
        distill_loss(student.bfloat16(), teacher.bfloat16(), labels, alpha, T, kind).dtype
        == torch.float32
    )


@given(
    seed=st.integers(0, 10_000),
    alpha=st.floats(0, 1),
    T=st.floats(0.3, 8),
    kind=st.sampled_from(DIVERGENCES),
    V=st.integers(2, 30),
)
def test_the_formula_for_any_shape(seed, alpha, T, kind, V):
    student, teacher, labels = example(seed, V=V)
    assert (
        abs(
            float(
                distill_loss(student, teacher, labels, alpha, T, kind)
                - by_hand(student, teacher, labels, alpha, T, kind)
            )
        )
        < 1e-6
    )


@kinds
def test_gradients_and_none_for_the_teacher(kind):
    student, teacher, labels = example()
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: distill_loss(s, teacher.detach(), labels, 0.3, 1.7, kind), student
    )
    distill_loss(student, teacher, labels, 0.3, 1.7, kind).backward()
    # last position; the next label is IGNORE
    assert (
        teacher.grad is None
        and student.grad[:, -1].abs().max() == 0
        and student.grad[0, 1].abs().max() == 0
    )
    student.grad, reference = None, student.grad
    by_hand(student, teacher.detach(), labels, 0.3, 1.7, kind).backward()
    torch.testing.assert_close(reference, student.grad, rtol=0, atol=1e-10)


@kinds
def test_a_student_that_agrees_has_nothing_to_learn(kind):
    student, _, labels = example()
    student.requires_grad_()
    # a constant added to all logits changes no probability
    loss = distill_loss(student, student.detach().clone() + 3, labels, 0.0, 2.0, kind)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-12 and student.grad.abs().max() < 1e-12


def test_pairs_that_are_made_already():
    student, teacher, labels = example()
    rows, targets = shift(student, labels)
    want = distill_loss(student, teacher, labels)
    torch.testing.assert_close(distill_loss(rows, shift(teacher, labels)[0], targets), want)
    # with rows that are not labelled, too
    flat = labels[:, 1:].flatten()
    torch.testing.assert_close(
        distill_loss(student[:, :-1].flatten(0, 1), teacher[:, :-1].flatten(0, 1), flat), want
    )


def test_alpha_one_is_cross_entropy():
    student, teacher, labels = example()
    rows, targets = shift(student, labels)
    torch.testing.assert_close(
        distill_loss(student, teacher, labels, 1.0, 4.0), F.cross_entropy(rows, targets)
    )


@given(seed=st.integers(0, 1000), V=st.integers(2, 40))
def test_hot_limit_is_half_the_mean_squared_difference_of_centred_logits(seed, V):
    """Hinton et al. 2015, section 2.1: their gradient (z − v)/(N T²) is that of Σ (z − v)²/2N once
    multiplied by T². The Jensen–Shannon divergence tends to a quarter of it."""
    student, teacher, labels = example(seed, V=V)
    (z, _), (v, _) = shift(student, labels), shift(teacher, labels)
    z, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
    want = ((z - v) ** 2).mean(-1).mean() / 2
    for kind, share in (("forward", 1), ("reverse", 1), ("jsd", 1 / 4)):
        near, far = (
            abs(float(distill_loss(student, teacher, labels, 0.0, T, kind)) - share * float(want))
            for T in (1e4, 1e2)
        )
        assert near < 2e-3 * float(want) and near <= far + 1e-6


def models(dtype=torch.float64, **changes):
    torch.manual_seed(1)
    teacher, student = (
        MiniMind(ModelConfig(**{**shape, **changes})).to(dtype) for shape in (TEACHER, STUDENT)
    )
    # or all distributions would be nearly even
    for p in [*teacher.parameters(), *student.parameters()]:
        p.data.mul_(4)
    return teacher.requires_grad_(False).eval(), student


def batch(seed=0, B=3, T=17):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (B, T), generator=g)
    labels = torch.where(torch.rand(B, T, generator=g) < 0.3, IGNORE, ids)
    return ids, labels


@kinds
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunked_is_whole(kind, chunk):
    teacher, student = models()
    ids, labels = batch()
    whole = distill_loss(student(ids), teacher(ids), labels, 0.4, 1.5, kind)
    whole.backward()
    want = {n: p.grad for n, p in student.named_parameters()}
    student.zero_grad()
    loss, weight, metrics = distillation(teacher, 0.4, 1.5, kind, chunk)(
        student, {"input_ids": ids, "labels": labels}
    )
    (loss / weight).backward()
    assert weight == int((labels[:, 1:] != IGNORE).sum()) and loss.dtype == torch.float64
    torch.testing.assert_close(loss.detach() / weight, whole.detach(), rtol=0, atol=1e-10)
    for n, p in student.named_parameters():
        torch.testing.assert_close(p.grad, want[n], rtol=0, atol=1e-10)
    torch.testing.assert_close(
        0.4 * metrics["lm_loss"] + 0.6 * 2.25 * metrics["divergence"], loss.detach()
    )
    torch.testing.assert_close(
        metrics["lm_loss"], lm_loss(student, labels, reduction="sum", input_ids=ids).detach()
    )
    assert all(p.grad is None for p in teacher.parameters())


class Largest(TorchDispatchMode):
    "The number of elements of the largest tensor that is made."

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


def test_logits_are_never_whole():
    teacher, student = models(torch.float32)
    ids, labels = batch(B=8, T=64)
    with Largest() as seen:
        loss, _, _ = distillation(teacher, chunk=16)(student, {"input_ids": ids, "labels": labels})
        loss.backward()
    # tables and states, but not the logits of all labelled positions
    assert (
        seen.elements < 2 * max(V * 48, 8 * 64 * 64) < 8 * 63 * V * 0.6 and seen.elements >= 16 * V
    )
    with Largest() as whole:
        distill_loss(student(ids), teacher(ids), labels)
    assert whole.elements >= 8 * 64 * V


def test_chunked_in_float32_and_with_frozen_parts():
    teacher, student = models(torch.float32)
    ids, labels = batch()
    # tied: also the embedding
    student.lm_head.weight.requires_grad_(False)
    distill_loss(student(ids), teacher(ids), labels).backward()
    want = student.model.norm.weight.grad.clone()
    student.zero_grad()
    loss, weight, _ = distillation(teacher, chunk=5)(student, {"input_ids": ids, "labels": labels})
    (loss / weight).backward()
    torch.testing.assert_close(student.model.norm.weight.grad, want, rtol=1e-4, atol=1e-5)
    assert student.lm_head.weight.grad is None
    with torch.no_grad():
        assert not distillation(teacher)(student, {"input_ids": ids, "labels": labels})[
            0
        ].requires_grad


def test_a_scaled_loss_has_scaled_gradients():
    teacher, student = models()
    ids, labels = batch()
    hidden = student.hidden(ids).detach().requires_grad_()
    teach = live_teacher(shift(teacher.hidden(ids), labels)[0], teacher.lm_head.weight)
    (one,) = torch.autograd.grad(
        distill_sums(hidden, student.lm_head.weight, labels, teach)[0], hidden
    )
    (three,) = torch.autograd.grad(
        3 * distill_sums(hidden, student.lm_head.weight, labels, teach)[0], hidden
    )
    torch.testing.assert_close(three, 3 * one)


def test_bfloat16_autocast_is_near():
    teacher, student = models(torch.float32)
    ids, labels = batch()
    inputs = {"input_ids": ids, "labels": labels}
    exact, weight, _ = distillation(teacher)(student, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _, _ = distillation(teacher)(student, inputs)
    (rough / weight).backward()
    assert (
        rough.dtype == torch.float32
        and abs(float((rough - exact).detach())) / weight < 0.1
        and all(p.grad.isfinite().all() for p in student.parameters())
    )


@kinds
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12))
def test_a_bucket_is_a_lower_bound(kind, seed, k):
    student, teacher, _ = example(seed, V=12)
    p, q = teacher.flatten(0, 1).log_softmax(-1), student.flatten(0, 1).log_softmax(-1)
    ids = p.topk(k).indices
    merged = divergence(bucket(p, ids), bucket(q, ids), kind)
    whole = divergence(p, q, kind)
    assert (merged <= whole + 1e-12).all() and (merged >= -1e-12).all()
    torch.testing.assert_close(bucket(p, ids).exp().sum(-1), torch.ones(len(p), dtype=p.dtype))
    # nothing is merged, or a single token
    if k >= 11:
        torch.testing.assert_close(merged, whole)


def test_renormalising_is_no_bound():
    """Why the rest has a bucket: two students that agree on the ratios among the kept tokens, one
    of which gives the rest ten times too much, look the same without it."""
    p = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    q = torch.tensor([[0.06, 0.03, 0.455, 0.455]]).log()
    ids = torch.tensor([[0, 1]])
    kept = lambda x: x.gather(-1, ids).log_softmax(-1)
    assert (
        divergence(kept(p), kept(q)).abs() < 1e-6 < 1 < divergence(bucket(p, ids), bucket(q, ids))
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("distill")
    words = "one two three four five six seven eight nine ten".split()

    def write(name, rows):
        (world / name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")

    chats = [
        {
            "conversations": [
                {"role": "user", "content": f"Say {a} {b}."},
                {"role": "assistant", "content": f"{a} {b}!"},
            ],
            "answer": f"{a} {b}!",
        }
        for a in words
        for b in words
    ]
    write("chats.jsonl", chats[:-10])
    write("held_chats.jsonl", chats[-10:])
    write(
        "texts.jsonl",
        [{"text": f"{a} and {b} and {c}"} for a in words for b in words for c in words[:2]],
    )
    write("held_texts.jsonl", [{"text": f"{a} or {a}"} for a in words])
    tokenizer = Tokenizer.train([json.dumps(c) for c in chats], V)
    torch.manual_seed(0)
    save_pretrained(MiniMind(ModelConfig(**TEACHER)), tokenizer, world / "teacher")
    save_pretrained(MiniMind(ModelConfig(**STUDENT)), tokenizer, world / "student")
    save_pretrained(
        MiniMind(ModelConfig(**STUDENT)),
        Tokenizer.train(["quite another text " + w for w in words], V),
        world / "stranger",
    )
    save_pretrained(
        MiniMind(ModelConfig(**{**STUDENT, "vocab_size": V + 6})), tokenizer, world / "wider"
    )
    for name, shape in (
        ("shape", STUDENT),
        ("experts", {**STUDENT, "num_experts": 3, "router_aux_loss_coef": 0.01}),
    ):
        (world / name).mkdir()
        (world / name / "config.json").write_text(json.dumps(to_hf_config(ModelConfig(**shape))))
    return world


def config(world, out, **changes):
    return DistillConfig(
        **{
            **dict(
                out=str(out),
                teacher=str(world / "teacher"),
                model=str(world / "shape"),
                data=str(world / "chats.jsonl"),
                heldout=str(world / "held_chats.jsonl"),
                steps=8,
                seq_len=48,
                batch_size=4,
                micro_batch_size=2,
                warmup=2,
                log_every=2,
                eval_rows=8,
                save_every=4,
                device="cpu",
            ),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def rows(world):  # teacher, student, batches of each kind
    teacher, tokenizer = load_pretrained(world / "teacher")
    torch.manual_seed(3)
    student = MiniMind(ModelConfig(**STUDENT))
    for p in [*teacher.parameters(), *student.parameters()]:
        p.data.mul_(3)

    def batches(kind, seed=0, seq_len=44):
        store = build_store(
            [world / ("chats.jsonl" if kind == "sft" else "texts.jsonl")],
            tokenizer,
            world / f"store-{kind}",
            kind=kind,
            progress=False,
        )
        return PackedBatches(store, seq_len, 5, seed, on_bad_line="skip")

    return teacher.requires_grad_(False), student, batches


class Rounded(LiveTeacher):
    "A live teacher whose log-probabilities are rounded to float16, as those of a cache are."

    def teach(self, batch, temperature):
        whole = super().teach(batch, temperature)
        return lambda some: (whole(some)[0].half().float().log_softmax(-1), None)


@kinds
@pytest.mark.parametrize("data", ["sft", "pretrain"])
def test_a_cache_of_everything_is_the_live_teacher(rows, tmp_path, kind, data):
    teacher, student, batches = rows
    cache = cache_teacher(teacher, batches(data), tmp_path / "cache", k=V, temperature=1.5)
    # in whatever rows and order
    for seed in (0, 7):
        placed = PlacedBatches(batches(data, seed))
        for step in (0, placed.steps_per_epoch - 1, placed.steps_per_epoch + 1):
            results = []
            for source in (Rounded(teacher), cache):
                student.zero_grad()
                loss, weight, metrics = distillation(source, 0.3, 1.5, kind, chunk=16)(
                    student, placed.at(step)
                )
                (loss / weight).backward()
                results.append(
                    (loss.detach() / weight, [p.grad.clone() for p in student.parameters()])
                )
            torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_long_documents_are_found_in_their_pieces(rows, tmp_path):
    "Rows of 6 tokens: each text lies in several, and each piece's context begins with it."
    teacher, student, batches = rows
    placed = PlacedBatches(batches("pretrain", seq_len=6))
    cache = cache_teacher(teacher, placed.batches, tmp_path / "cache", k=V)
    live, stored = (
        distillation(source)(student, placed.at(1))[0].detach()
        for source in (Rounded(teacher), cache)
    )
    torch.testing.assert_close(live, stored, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="knows nothing of token"):
        distillation(cache_teacher(teacher, batches("sft", seq_len=40), tmp_path / "other", k=4))(
            student, PlacedBatches(batches("sft", seq_len=48)).at(0)
        )


@kinds
def test_rounding_changes_next_to_nothing(rows, tmp_path, kind):
    """The loss from a cache of float16 is that from the exact distributions, and so is the
    gradient; a student that agrees with the teacher still has nothing to learn."""
    teacher, student, batches = rows
    placed = PlacedBatches(batches("pretrain"))
    cache = cache_teacher(teacher, placed.batches, tmp_path / "cache", k=V)
    losses, gradients = [], []
    for source in (teacher, cache):
        loss, weight, _ = distillation(source, 0.0, kind=kind)(student, placed.at(0))
        slopes = torch.autograd.grad(loss / weight, list(student.parameters()))
        losses.append(float(loss.detach()) / weight)
        gradients.append(torch.cat([g.flatten() for g in slopes]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert (gradients[1] - gradients[0]).norm() < 2e-3 * gradients[0].norm()
    loss, weight, _ = distillation(cache, 0.0, kind=kind)(teacher, placed.at(0))
    assert 0 <= float(loss) / weight < 1e-6


def test_an_impossible_token_is_finite(rows, tmp_path):
    "At a temperature near 0 log-probabilities are below what float16 holds: not -inf, never NaN."
    teacher, student, batches = rows
    placed = PlacedBatches(batches("pretrain"))
    cache = cache_teacher(teacher, placed.batches, tmp_path / "cold", k=4, temperature=1e-6)
    kept = cache._map("logprobs")
    assert np.isfinite(kept).all() and kept.min() == np.finfo(np.float16).min
    loss, _, _ = distillation(cache, 0.0, 1e-6)(student, placed.at(0))
    assert loss.isfinite() and all(
        g.isfinite().all() for g in torch.autograd.grad(loss, list(student.parameters()))
    )


def test_the_files_are_read_once_for_a_batch(rows, tmp_path, monkeypatch):
    "Ahead of the chunks, not within their loop."
    teacher, student, batches = rows
    placed = PlacedBatches(batches("sft"))
    cache = cache_teacher(teacher, placed.batches, tmp_path / "cache", k=8)
    opened, read = [], TeacherCache._map
    monkeypatch.setattr(
        TeacherCache, "_map", lambda self, name: opened.append(name) or read(self, name)
    )
    teach = cache.teach(placed.at(0), 1.0)
    assert sorted(opened) == ["ids", "index", "logprobs"]
    # from here on nothing is read any more
    monkeypatch.setattr(np, "memmap", None)
    logprobs, ids = teach(slice(0, 3))
    assert logprobs.dtype == torch.float32 and ids.dtype == torch.int64
    assert logprobs.shape == (3, 9) and ids.shape == (3, 8)


def test_a_cache_of_an_older_version_is_made_again(rows, tmp_path):
    teacher, student, batches = rows
    path = tmp_path / "cache"
    cache_teacher(teacher, batches("sft"), path, k=4)
    meta = json.loads((path / "meta.json").read_text())
    meta["key"]["version"] = 1
    (path / "meta.json").write_text(json.dumps(meta))
    # as those files were: four bytes a number
    (path / "logprobs.bin").write_bytes(2 * (path / "logprobs.bin").read_bytes())
    with pytest.raises(ValueError, match="another version of minimind: make it again"):
        TeacherCache(path)
    assert cache_teacher(teacher, batches("sft"), path, k=4).meta["key"]["version"] == 2


def test_places_are_the_stores_own_tokens(rows):
    _, _, batches = rows
    placed = PlacedBatches(batches("sft"))
    b = placed.at(0)
    real = b["segment_ids"] > 0
    assert (
        torch.equal(
            torch.from_numpy(placed.store.tokens[b["places"][real].numpy()].astype("int64")),
            b["input_ids"][real],
        )
        and (b["places"][~real] == -1).all()
    )
    # five rows for seven processes: two get a row of padding
    shares = [placed.at(0, rank, 7)["places"] for rank in range(7)]
    assert torch.equal(torch.cat(shares[:5]), b["places"]) and all(
        (share == -1).all() and share.shape == shares[0].shape for share in shares[5:]
    )
    assert (
        placed.sources(0) == placed.batches.sources(0)
        and placed.fingerprint() == placed.batches.fingerprint()
    )


def test_a_small_cache_is_a_lower_bound_and_is_used_again(rows, tmp_path, monkeypatch):
    teacher, student, batches = rows
    placed = PlacedBatches(batches("sft"))

    def apart(source):
        return float(distillation(source, 0.0)(student, placed.at(0))[0].detach())

    steps = [
        apart(cache_teacher(teacher, placed.batches, tmp_path / f"k{k}", k=k)) for k in (1, 8, 64)
    ] + [apart(teacher)]
    assert all(a <= b + 1e-4 for a, b in zip(steps, steps[1:])) and steps[0] < steps[-1]
    size = (tmp_path / "k8" / "logprobs.bin").stat().st_size + (
        tmp_path / "k8" / "ids.bin"
    ).stat().st_size
    assert size == TeacherCache(tmp_path / "k8").meta["positions"] * (2 * 9 + 2 * 8)

    def never(*a, **kw):
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(distill, "_write_cache", never)
    # another order of the same rows
    cache_teacher(teacher, batches("sft", seed=5), tmp_path / "k8", k=8)
    # what a killed process left, if nobody writes to it any more
    for age in (0, 3600):
        left = tmp_path / f".k8.{age}.tmp"
        left.mkdir()
        os.utime(left, (time.time() - age,) * 2)
    for change in (dict(k=9), dict(temperature=2.0)):
        with pytest.raises(AssertionError):
            cache_teacher(teacher, placed.batches, tmp_path / "k8", **{"k": 8, **change})
    other = MiniMind(teacher.config)
    with pytest.raises(AssertionError):
        cache_teacher(other, placed.batches, tmp_path / "k8", k=8)
    # what failed left the old one, and no rubbish
    assert TeacherCache(tmp_path / "k8").meta["k"] == 8 and [
        f.name for f in tmp_path.glob(".*")
    ] == [".k8.0.tmp"]


def test_a_damaged_cache_is_named(rows, tmp_path):
    teacher, _, batches = rows
    cache_teacher(teacher, batches("sft"), tmp_path / "cache", k=4)
    with open(tmp_path / "cache" / "ids.bin", "ab") as f:
        f.write(b"x")
    with pytest.raises(ValueError, match="damaged: ids.bin"):
        TeacherCache(tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="no meta.json"):
        TeacherCache(tmp_path)
    with pytest.raises(ValueError, match="holds other files"):
        cache_teacher(teacher, batches("sft"), tmp_path, k=4)


@pytest.mark.parametrize("source", ["live", "cached"])
def test_micro_batches_change_nothing(rows, tmp_path, source):
    teacher, student, batches = rows
    placed = PlacedBatches(batches("sft"))
    loss_fn = distillation(
        teacher
        if source == "live"
        else cache_teacher(teacher, placed.batches, tmp_path / "c", k=16),
        0.5,
    )
    gradients = []
    for size in (1, 2, 16):
        student.zero_grad()
        loss, _, metrics = compute_gradients(
            student,
            placed.at(0),
            loss_fn,
            SFTConfig(micro_batch_size=size),
            torch.device("cpu"),
            torch.float32,
        )
        gradients.append((loss, metrics, [p.grad.clone() for p in student.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, rtol=1e-4, atol=1e-5)


def test_refusals(rows, world, tmp_path):
    student, teacher, labels = example()
    for settings, name in (
        (dict(alpha=1.5), "alpha=1.5"),
        (dict(temperature=0), "temperature=0"),
        (dict(temperature=math.inf), "temperature"),
        (dict(kind="backward"), "kind='backward'"),
    ):
        with pytest.raises(ValueError, match=name):
            distill_loss(student, teacher, labels, **settings)
        with pytest.raises(ValueError, match=name):
            DistillConfig(**settings)
    with pytest.raises(ValueError, match="student has 11 logits a position and the teacher 9"):
        distill_loss(student, teacher[..., :9], labels)
    with pytest.raises(ValueError, match="no labelled position"):
        distill_loss(student, teacher, torch.full_like(labels, IGNORE))
    with pytest.raises(ValueError, match="not shifted"):
        distill_loss(student, teacher, labels[:, 1:])
    with pytest.raises(ValueError, match="differ"):
        distill_loss(student, teacher[:1], labels)
    with pytest.raises(ValueError, match="5 rows of logits and 4 labels"):
        distill_loss(student[0], teacher[0], labels[0, 1:])
    big, small, batches = rows
    with pytest.raises(ValueError, match="student has 40 logits a position and the teacher 310"):
        distillation(big)(
            MiniMind(ModelConfig(**{**STUDENT, "vocab_size": 40})), batches("sft").at(0)
        )
    for k in (0, V + 1):
        with pytest.raises(ValueError, match=f"k={k}"):
            cache_teacher(big, batches("sft"), tmp_path / "c", k=k)
    cache = cache_teacher(big, batches("sft"), tmp_path / "c", k=2)
    with pytest.raises(ValueError, match="temperature=2.0"):
        distillation(cache, temperature=2.0)
    with pytest.raises(ValueError, match="no effect with alpha=1"):
        DistillConfig(cache_k=8, alpha=1.0)
    with pytest.raises(ValueError, match="no effect without cache_k"):
        DistillConfig(cache="x")
    with pytest.raises(ValueError, match="model='minimind2' would have no effect"):
        DistillConfig(init="x", model="minimind2")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(init="stranger", model="ci"), ValueError, "different tokenizers"),
        (dict(init="wider", model="ci"), ValueError, "316 logits a position and the teacher 310"),
        (dict(teacher="nowhere"), FileNotFoundError, "not a model folder"),
        (dict(model="nothing"), ValueError, "neither a preset"),
        (dict(seq_len=300), ValueError, "max_position_embeddings=256"),
        (
            dict(cache_k=9999),
            ValueError,
            "cache_k=9,999: the teacher's vocabulary has only 310 tokens",
        ),
        (dict(cache_k=4, cache="student"), ValueError, "cache='.*student' holds other files"),
        (dict(data=("chats.jsonl", "texts.jsonl")), ValueError, "one kind at a time"),
        (dict(out="teacher"), ValueError, "would be overwritten"),
    ],
)
def test_a_run_says_what_is_wrong(world, tmp_path, changes, error, message):
    settings = {
        k: tuple(str(world / f) for f in v)
        if isinstance(v, tuple)
        else str(world / v)
        if isinstance(v, str) and v != "ci"
        else v
        for k, v in changes.items()
    }
    before = sorted(p.name for p in (world / "teacher").iterdir())
    with pytest.raises(error, match=message):
        distill.run(
            config(world, tmp_path / "run", **settings)
            if "out" not in settings
            else config(world, **settings)
        )
    assert (
        not (tmp_path / "run" / "store").exists()
        and sorted(p.name for p in (world / "teacher").iterdir()) == before
    )


@pytest.mark.parametrize("changes", [dict(cache_k=9999), dict(cache_k=4, cache="student")])
def test_a_cache_that_cannot_be_is_refused_before_anything_is_read(
    world, tmp_path, monkeypatch, changes
):
    def never(*a, **kw):
        raise AssertionError("too late")

    for name in ("load_init", "split_batches", "read_questions", "cache_teacher"):
        monkeypatch.setattr(distill, name, never)
    with pytest.raises(ValueError, match="cache"):
        distill.run(
            config(
                world,
                tmp_path / "run",
                **changes | ({"cache": str(world / "student")} if "cache" in changes else {}),
            )
        )


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(cache_k=8, kind="jsd", temperature=2.0),
        dict(data="texts.jsonl", heldout="held_texts.jsonl", kind="reverse"),
        dict(model="experts"),
        dict(init="student", model="ci", alpha=0.0),
    ],
    ids=["live", "cached", "text", "experts", "goes on"],
)
def test_a_run_learns_resumes_exactly_and_leaves_the_teacher_alone(world, tmp_path, changes):
    settings = {
        k: str(world / v) if isinstance(v, str) and (world / v).exists() else v
        for k, v in changes.items()
    }
    before = contents(world / "teacher")
    cfg = config(world, tmp_path / "run", **settings)
    last = distill.run(cfg)
    assert (
        last["step"] == 8
        and {"loss", "lm_loss", "divergence", "heldout_loss"} <= last.keys()
        and ("exact_match" in last) == ("data" not in changes)
    )
    assert ("balance" in last) == (changes.get("model") == "experts")
    lines = [m for m in read_metrics(cfg.out) if "lm_loss" in m]
    assert lines[-1]["lm_loss"] < lines[0]["lm_loss"] - (0.02 if "init" in changes else 0.2)
    whole, metrics = (
        contents(tmp_path / "run")["model.safetensors"],
        [
            {
                k: v
                for k, v in m.items()
                if k not in ("seconds", "tokens_per_second", "data_seconds")
            }
            for m in read_metrics(cfg.out)
        ],
    )
    # as if it had been killed after step 4
    shutil.rmtree(tmp_path / "run" / "trainer" / "step-00000008")
    distill.run(cfg)
    assert contents(tmp_path / "run")["model.safetensors"] == whole
    assert [
        {k: v for k, v in m.items() if k not in ("seconds", "tokens_per_second", "data_seconds")}
        for m in read_metrics(cfg.out)
    ] == metrics
    assert contents(world / "teacher") == before
    student, tokenizer = load_pretrained(cfg.out)
    assert (
        tokenizer.fingerprint == load_pretrained(world / "teacher")[1].fingerprint
        and student.config.vocab_size == V
    )


def test_a_run_with_another_teacher_is_not_resumed(world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "teacher")
    cfg = config(world, tmp_path / "run", teacher=str(tmp_path / "teacher"), steps=2)
    distill.run(cfg)
    tokenizer = load_pretrained(tmp_path / "teacher")[1]
    # other weights under the same name
    save_pretrained(MiniMind(ModelConfig(**TEACHER)), tokenizer, tmp_path / "teacher")
    with pytest.raises(ValueError, match="teacher_sha256"):
        distill.run(cfg)


def test_a_dry_run_leaves_nothing(world, tmp_path, capsys):
    assert (
        distill.run(
            config(world, tmp_path / "run", cache_k=8, cache=str(tmp_path / "cache")), dry_run=True
        )
        == {}
    )
    assert not list(tmp_path.iterdir()) and "teacher: " in capsys.readouterr().out


def test_alpha_one_trains_as_without_a_teacher(world, tmp_path):
    teacher, student = models(torch.float32)
    ids, labels = batch()
    inputs = {"input_ids": ids, "labels": labels}
    loss, weight, metrics = distillation(teacher, alpha=1.0)(student, inputs)
    torch.testing.assert_close(loss, causal_lm_loss(student, inputs)[0])
    assert "divergence" not in metrics and weight == causal_lm_loss(student, inputs)[1]


def test_the_weights_tell_who_a_teacher_is(world):
    (a, _), (b, _), (c, _) = (
        load_pretrained(world / name) for name in ("teacher", "teacher", "student")
    )
    assert weights_sha256(a) == weights_sha256(b) != weights_sha256(c)
    b.model.norm.weight.data[0] += 1e-6
    assert weights_sha256(a) != weights_sha256(b)


def test_what_a_teacher_writes_can_be_trained_on(world, tmp_path):
    "A teacher that has learned the ten words well enough to end its replies."
    from minimind import sft

    sft.run(
        SFTConfig(
            out=str(tmp_path / "sft"),
            init=str(world / "teacher"),
            data=str(world / "chats.jsonl"),
            steps=40,
            seq_len=48,
            batch_size=8,
            warmup=2,
            eval_rows=0,
            lr=1e-2,
            device="cpu",
        )
    )
    teacher, tokenizer = load_pretrained(tmp_path / "sft")
    questions = [
        "Say one two.",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say two."}],
        "Say six seven.",
    ] * 4
    counts = sample_teacher(
        teacher,
        tokenizer,
        questions,
        tmp_path / "replies.jsonl",
        max_new_tokens=24,
        seed=1,
    )
    rows = [row for _, row in JsonlReader(tmp_path / "replies.jsonl")]
    assert counts["written"] == len(rows) > 0 and sum(counts.values()) == 12
    assert all(
        r["conversations"][-1]["role"] == "assistant"
        and "<|im_end|>" not in r["conversations"][-1]["content"]
        for r in rows
    )
    path = tmp_path / "again.jsonl"
    again = sample_teacher(teacher, tokenizer, questions, path, max_new_tokens=24, seed=1)
    assert again == counts and path.read_bytes() == (tmp_path / "replies.jsonl").read_bytes()
    assert build_store(
        [tmp_path / "replies.jsonl"],
        tokenizer,
        tmp_path / "store",
        kind="sft",
        dedup=False,
        progress=False,
    ).meta["documents"] == len(rows)
    cut = sample_teacher(teacher, tokenizer, questions, tmp_path / "short.jsonl", max_new_tokens=1)
    assert cut["unfinished"] + cut["empty"] == 12 and (tmp_path / "short.jsonl").read_text() == ""
