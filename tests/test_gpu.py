"""What a graphics card must do as a processor does. Each test runs on both: on the CPU with every
`make test`, so that it is known to run at all, and on CUDA, marked `gpu`, with `make test-gpu`."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from minimind import pretrain
from minimind.attention import attend, attention_mask, find_documents, naive_attention
from minimind.attention import varlen_obstacle
from minimind.checkpoint import Checkpointer, ModelFolder
from minimind.core import DTYPES, has_bfloat16, read_json, seed_everything
from minimind.data import Batches
from minimind.generate import generate
from minimind.log import read_metrics
from minimind.losses import causal_lm_loss
from minimind.model import MiniMind, ModelConfig
from minimind.optim import build_optimizer
from minimind.parallel import FSDP
from minimind.pretrain import PretrainConfig
from minimind.tokenizer import Tokenizer
from minimind.train import DataParallel, TrainConfig, add_up, compute_gradients, fit
from minimind.train import portion_of, random_state, set_random_state, train_step
from shared import SHAPE

root = Path(__file__).resolve().parents[1]
cpu, f32 = torch.device("cpu"), torch.float32
V = SHAPE["vocab_size"]
EXPERTS = dict(num_experts=4, num_experts_per_tok=1, norm_topk_prob=False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param, 0) if request.param == "cuda" else cpu


def half(device):  # the format of 16 bits that it multiplies fastest
    return torch.bfloat16 if device == cpu or has_bfloat16(device) else torch.float16


def build(seed=0, **changes):
    torch.manual_seed(seed)
    # weights large enough that a mistake shows
    return MiniMind(ModelConfig(**SHAPE | {"initializer_range": 0.1} | changes))


# rows of several documents; the second ends in filling, the third is one document
LENGTHS = ((5, 20, 23), (16, 9), (48,))
T = sum(LENGTHS[0])


def packed_rows():
    "A batch as `PackedBatches` makes them."
    # a generator of its own: a run makes its rows in a thread, while it draws other numbers
    ids = torch.randint(V, (len(LENGTHS), T), generator=torch.Generator().manual_seed(1))
    names = "segment_ids", "position_ids", "labels"
    batch = {"input_ids": ids} | {k: torch.zeros_like(ids) for k in names}
    batch["labels"] -= 100
    for r, lengths in enumerate(LENGTHS):
        at = 0
        for number, n in enumerate(lengths, 1):
            cut = r, slice(at, at + n)
            batch["segment_ids"][cut] = number
            batch["position_ids"][cut] = torch.arange(n)
            batch["labels"][cut] = batch["input_ids"][cut]
            batch["labels"][r, at] = -100
            at += n
    return batch


class Packed(Batches):
    "The same rows at every step."

    steps_per_epoch, ahead = 4, True

    def at(self, step, rank=0, world_size=1):
        return {k: v[rank::world_size] for k, v in packed_rows().items()}


def distance(a, b):
    "How far tensors are from others, as a share of their size."
    a, b = (torch.cat([x.detach().cpu().float().flatten() for x in xs]) for xs in (a, b))
    return float((a - b).norm() / b.norm())


# ---- attention
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_packed_attention(device, dtype, heads, kv_heads):
    """Documents laid end to end give what the naive version gives with a bool mask: values and
    gradients. Filling is nobody's business, so it is not compared."""
    dtype = DTYPES[dtype]
    if dtype == torch.bfloat16 and not has_bfloat16(device) and device != cpu:
        pytest.skip("this card has no bfloat16")
    segments = packed_rows()["segment_ids"]
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(3, T, h, 32) for h in (heads, kv_heads, kv_heads, heads))
    g *= (segments > 0)[..., None, None]

    def value_and_gradients(q, k, v, g, attention):
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attention(*inputs)
        out.backward(g.to(out))
        real = segments.to(out.device) > 0
        return [out[real], *(x.grad[real] for x in inputs)]

    mask = attention_mask(segments)
    expected = value_and_gradients(q, k, v, g, lambda *x: naive_attention(*x, mask)[0])
    there = [x.to(device, dtype) for x in (q, k, v)]
    documents = find_documents(segments).to(device)
    if device != cpu and dtype != f32 and torch.cuda.get_device_capability(device)[0] >= 8:
        assert varlen_obstacle(device, dtype, 32) is None, "the kernel is to be tried"
    for form in (documents, mask.to(device)):
        ours = value_and_gradients(*there, g, lambda *x: attend(*x, form))
        # 24, 8 and 11 significant bits
        near = {f32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]
        assert [distance([a], [b]) < near for a, b in zip(ours, expected)] == [True] * 4


# ---- a training step
@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("kind", ["float32", "half"])
def test_a_packed_step_has_the_gradients_of_the_processor(device, kind, experts):
    dtype = f32 if kind == "float32" else half(device)
    reference, cfg = build(**experts), TrainConfig(micro_batch_size=2)
    model = copy.deepcopy(reference).to(device)
    plain = packed_rows()
    # by a bool mask, each row by itself
    expected = []
    for row in range(len(LENGTHS)):
        one = {k: v[row : row + 1] for k, v in plain.items()}
        states = reference.hidden(
            one["input_ids"], one["position_ids"], one["segment_ids"], documents=None
        )
        learned = one["labels"][:, 1:] != -100
        logits = reference.lm_head(states[:, :-1][learned])
        expected.append(F.cross_entropy(logits, one["labels"][:, 1:][learned], reduction="sum"))
    weight = sum(int((r["labels"][1:] != -100).sum()) for r in rows_of(plain))
    (sum(expected) / weight).backward()
    loss, w, _ = compute_gradients(model, plain, causal_lm_loss, cfg, device, dtype)
    assert w == weight
    # the loss has the routers' part, which is judged within a micro-batch
    near = dict(rel=1e-5 if dtype == f32 else 0.01)
    if not experts:
        assert loss == pytest.approx(float(sum(expected).detach()) / weight, **near)
        grads = [[p.grad for p in m.parameters()] for m in (model, reference)]
        assert distance(*grads) < (2e-5 if dtype == f32 else 0.05)
        return
    again = copy.deepcopy(reference)
    again.zero_grad()
    told = compute_gradients(again, plain, causal_lm_loss, cfg, cpu, f32)
    assert loss == pytest.approx(told[0], **near)
    if dtype == f32:  # in fewer bits some tokens go to another expert
        grads = [[p.grad for p in m.parameters()] for m in (model, again)]
        assert distance(*grads) < 2e-5


def rows_of(batch):
    for row in range(len(batch["labels"])):
        yield {k: v[row] for k, v in batch.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_waits_for_the_card_once(experts, optimizer):
    """Whatever waits for the card raises, or is counted: nothing in the micro-batches and in
    clipping, one look at loss and norm, and the update."""
    device = torch.device("cuda", 0)
    if experts and torch.cuda.get_device_capability(device)[0] < 9:
        pytest.skip("the experts of this card are computed one after another")
    model = build(**experts).to(device)
    optimizers = build_optimizer(model, optimizer)
    cfg, dtype = TrainConfig(micro_batch_size=2, optimizer=optimizer), half(device)
    strategy = DataParallel(model, optimizers)
    # lays out tables and states
    for _ in range(2):
        train_step(model, packed_rows(), causal_lm_loss, optimizers, cfg, dtype, strategy)
    portion = portion_of(packed_rows(), cfg)
    torch.cuda.set_sync_debug_mode("error")
    try:
        totals = add_up(portion, causal_lm_loss, device, dtype, strategy)
        norm = strategy.clip(1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert totals.read(norm)[1] > 0
    strategy.update(False)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as seen:
            train_step(model, portion, causal_lm_loss, optimizers, cfg, dtype, strategy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in seen if "synchroniz" in str(w.message)]
    assert 1 <= len(waits) <= 2


# ---- runs
@pytest.fixture(scope="module")
def text(tmp_path_factory):
    "A folder with a tokenizer and some text."
    folder = tmp_path_factory.mktemp("text")
    sentences = [
        f"The {a} {b} sees {n} hats.\n"
        for a in "red old".split()
        for b in "cat dog".split()
        for n in range(30)
    ]
    (folder / "a.txt").write_text("\n".join(sentences))
    Tokenizer.train(sentences, 300).save(folder / "tokenizer.json")
    return folder


def losses(text, out, device, dtype, **changes):
    "The losses of a short pretraining on packed rows."
    shape = folder_of_shape(text)
    pretrain.run(
        PretrainConfig(
            out=str(out),
            data=(str(text / "a.txt"),),
            tokenizer=str(text / "tokenizer.json"),
            model=str(shape),
            **dict(steps=16, warmup=2, seq_len=64, batch_size=8, micro_batch_size=4),
            **dict(log_every=1, eval_bytes=0, sample_tokens=0, device=str(device), dtype=dtype),
            **changes,
        )
    )
    return [line["loss"] for line in read_metrics(out) if "lr" in line]


def folder_of_shape(text):
    "A folder with the config of a small model."
    from minimind.hub import save_pretrained

    folder = text / "shape"
    if not folder.exists():
        tokenizer = Tokenizer.from_file(text / "tokenizer.json")
        save_pretrained(build(vocab_size=len(tokenizer)), tokenizer, folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_packed_run_learns_as_on_the_processor(device, dtype, text, tmp_path):
    if dtype == "bfloat16" and device != cpu and not has_bfloat16(device):
        pytest.skip("this card has no bfloat16")
    expected = losses(text, tmp_path / "exact", cpu, "float32")
    ours = losses(text, tmp_path / "ours", device, dtype)
    # it has learned something, and the same
    assert expected[-1] < expected[0] - 1
    if dtype != "float16":
        near = 1e-3 if dtype == "float32" else 0.06
        assert ours == pytest.approx(expected, abs=near)
        return
    # its first steps may be too much for float16 and left out, until the scale fits
    assert None not in ours[3:] and ours[-1] == pytest.approx(expected[-1], abs=0.5)


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)],
    indirect=True,
)
def test_a_compiled_run_learns_the_same(device, text, tmp_path, capfd):
    dtype = str(half(device)).removeprefix("torch.")
    plain = losses(text, tmp_path / "plain", device, dtype)
    compiled = losses(text, tmp_path / "compiled", device, dtype, compile=True)
    said = capfd.readouterr().out
    assert "compiled: 2 of 2 layers" in said and "compile: " not in said
    assert compiled == pytest.approx(plain, abs=0.06)


def noisy(model, batch):
    "A loss with dropout: random numbers of the device the model is on."
    states = F.dropout(model.hidden(batch["input_ids"]), 0.3)
    logits = model.lm_head(states[:, :-1]).float()
    targets = batch["input_ids"][:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return loss, targets.numel(), {}


def test_random_numbers_of_the_device_go_on(device):
    torch.rand(3, device=device)
    state = copy.deepcopy(random_state())
    first = torch.rand(5, device=device)
    assert not torch.equal(torch.rand(5, device=device), first)
    set_random_state(*state)
    assert torch.equal(torch.rand(5, device=device), first)


def test_a_stopped_run_goes_on_with_the_same_random_numbers(device, tmp_path):
    def start(out, calls=99, seed=0):
        left = [calls]

        def loss_fn(model, batch):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return noisy(model, batch)

        cfg = TrainConfig(
            out=str(tmp_path / out), steps=6, save_every=2, micro_batch_size=3, lr=1e-3
        )
        model = build(seed).to(device).train()
        optimizers = build_optimizer(model, "adamw", 1e-3)
        saver = Checkpointer(ModelFolder(model, None), {"optimizer": optimizers}, cfg)
        seed_everything(seed)
        fit(model, Packed(), loss_fn, optimizers, cfg, saver=saver)
        return list(model.parameters())

    whole, other = start("whole"), start("other", seed=1)
    with pytest.raises(KeyboardInterrupt):
        start("cut", calls=4)
    resumed = start("cut", seed=9)
    # sums on a card may come in any order
    assert distance(resumed, whole) <= (0 if device == cpu else 1e-5)
    assert distance(other, whole) > 1e-2


# ---- writing
@torch.no_grad()
def test_greedy_tokens_are_those_of_the_processor(device):
    model = build(tie_word_embeddings=False)
    prompts = [[5], [7, 8, 9, 10, 11, 12], list(range(20, 60))]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(24):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    assert len(set(sum(expected, []))) > 20, "not the same word for ever"
    there = copy.deepcopy(model).to(device)
    assert generate(there, prompts, 24, temperature=0, eos_token_id=()) == expected
    assert generate(there, prompts[1], 24, temperature=0, eos_token_id=()) == expected[1]


# ---- several processes, of which this is the only one
@pytest.fixture
def group(device):
    "A group of one."
    backend = "gloo" if device == cpu else "nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield device
    dist.destroy_process_group()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fsdp_in_one_process_is_plain_training(group, optimizer):
    device, batch = group, packed_rows()
    cfg = TrainConfig(micro_batch_size=2, optimizer=optimizer, lr=1e-3, muon_lr=2e-3)
    plain, shared = (build().to(device).train() for _ in range(2))
    ways = DataParallel.build(plain, cfg), FSDP.build(shared, cfg)
    results = []
    for way in ways:
        how = causal_lm_loss, way.optimizers, cfg, f32, way
        results.append([train_step(way.model, batch, *how)[:3] for _ in range(3)])
    for ours, theirs in zip(results[1], results[0]):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert results[0][2][0] < results[0][0][0]
    with ways[1].unsharded():
        assert distance(shared.parameters(), plain.parameters()) < 1e-4


# ---- what is measured
def test_the_benchmark_of_a_card_runs_without_one(tmp_path):
    script = root / "benchmarks/gpu.py"
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    none = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    said = "minimind bench gpu: torch finds no CUDA device here, so there is nothing to measure\n"
    assert none.returncode == 1 and none.stderr == said
    command = [sys.executable, script, "--dry", "--out", str(tmp_path)]
    subprocess.run(command, check=True, env=env)
    [file] = tmp_path.iterdir()
    result = read_json(file)
    assert file.name == "gpu-cpu.json"
    assert {"machine", "date", "commit", "title", "columns", "rows", "parts"} <= result.keys()
    [run] = result["runs"]
    assert run["model"] == "ci" and run["tokens_per_second"] > 0 and run["peak_bytes"] > 1e8
    assert "mfu" not in run and "MFU" not in result["columns"]
    parts = {part["name"]: part for part in result["parts"]}
    assert list(parts) == ["packed", "experts", "decode", "random numbers"]
    for part in parts.values():
        assert part["rows"] and "error" not in part
        assert all(len(row) == len(part["columns"]) for row in part["rows"])
