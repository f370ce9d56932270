"""Side-by-side benchmarks: two ways of doing one thing, interleaved in one run, compared by the
ratio of medians.

python benchmarks/bench.py [NAME …] # or `minimind bench`, or `make bench`

Each result goes to benchmarks/results/NAME.json with the machine, the commit and the date."""

import argparse, json, os, platform, statistics, subprocess, sys, threading, time
from datetime import date
from functools import partial
from pathlib import Path
import numpy as np
import torch
from minimind.core import IGNORE, get_device, get_dtype
from minimind.log import text_table
from minimind.losses import causal_lm_loss
from minimind.model import MiniMind, num_parameters, preset
from minimind.optim import build_optimizer
from minimind.train import TrainConfig, compute_gradients, train_step

HERE, CPU = Path(__file__).resolve().parent, torch.device("cpu")
BENCHMARKS = {}


def benchmark(function):
    "Register a function that returns a table, its columns and rows; its docstring states the goal."
    BENCHMARKS[function.__name__] = function
    return function


def interleaved(ways, rounds, warmup=2):
    """Median seconds of each way: `{name: function}`, called in turn so that a slow moment of the
    machine hits all of them."""
    times = {name: [] for name in ways}
    for r in range(warmup + rounds):
        for name, call in ways.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if r >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def trainer(model, device, dtype, optimizer="adamw"):
    """One optimizer step of this library as a function of a batch (by AdamW where the other side
    has no Muon, so that both do the same arithmetic)."""
    cfg = TrainConfig(optimizer=optimizer, batch_size=10_000, micro_batch_size=10_000)
    optimizers = build_optimizer(model, optimizer, lr=1e-4, muon_lr=1e-4)

    def step(batch):
        loss, *_ = compute_gradients(model, batch, causal_lm_loss, cfg, device, dtype)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step()
        optimizers.zero_grad()
        return float(loss.detach() if torch.is_tensor(loss) else loss)

    return step


def hf_model(config):
    "Hugging Face's model of the same shape, with random weights, on the CPU."
    from transformers import AutoConfig, AutoModelForCausalLM
    from minimind.hub import to_hf_config

    settings = to_hf_config(config)
    theirs = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return AutoModelForCausalLM.from_config(theirs, attn_implementation="sdpa")


def hf_trainer(config, device, dtype):
    """The same step with Hugging Face's model of the same shape, its own loss, and torch's fused
    AdamW."""
    model = hf_model(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step(batch):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(
                input_ids=batch["input_ids"].to(device),
                labels=batch["labels"].to(device),
                use_cache=False,
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach() if torch.is_tensor(loss) else loss)

    return step


@benchmark
def train_speed(device, dtype):
    """Goal: tokens trained on per second ≥ 1.2 × Hugging Face's model of the same shape at `ci`
    size, ≥ 1.0 × at 26M."""
    lines = []
    for name, rows, length, rounds in (("ci", 16, 256, 12), ("minimind2-small", 4, 340, 8)):
        config = preset(name)
        ids = torch.randint(3, config.vocab_size, (rows, length))
        batch = dict(input_ids=ids, labels=ids)
        ours, theirs = (
            trainer(MiniMind(config).to(device), device, dtype),
            hf_trainer(config, device, dtype),
        )
        seconds = interleaved(
            {"minimind": lambda: ours(batch), "transformers": lambda: theirs(batch)}, rounds
        )
        lines.append(
            [
                name,
                f"{num_parameters(config):,}",
                f"{rows} × {length}",
                *(f"{rows * length / seconds[k]:,.0f}" for k in ("minimind", "transformers")),
                f"{seconds['transformers'] / seconds['minimind']:.2f}",
            ]
        )
    return [
        "shape",
        "parameters",
        "batch",
        "minimind, tokens/s",
        "transformers, tokens/s",
        "ratio",
    ], lines


@benchmark
def packing(device, dtype):
    """Goal: useful tokens per second ≥ 1.5 × padding to the maximum, on documents that fill 60 % of
    a padded row."""
    rng, length, rows = np.random.default_rng(0), 340, 16
    lengths = np.clip(rng.lognormal(np.log(195), 0.55, 400).astype(int), 8, length)
    # a row of each length, as in the whole set
    shown = np.argsort(lengths)[np.arange(rows) * 400 // rows + 200 // rows]
    lengths = np.concatenate([lengths[shown], np.sort(np.delete(lengths, shown))[::-1]])
    documents = [torch.from_numpy(rng.integers(3, 6400, n)) for n in lengths]
    padded = dict(
        input_ids=torch.zeros(rows, length, dtype=torch.long),
        labels=torch.full((rows, length), IGNORE),
    )
    for r, d in enumerate(documents[:rows]):
        padded["input_ids"][r, : len(d)] = d
        padded["labels"][r, : len(d)] = d
    from minimind.data import pack_lengths

    packed = {
        k: torch.full((rows, length), v, dtype=torch.long)
        for k, v in dict(input_ids=0, labels=IGNORE, position_ids=0, segment_ids=0).items()
    }
    where, used, segment = (
        pack_lengths(lengths, length),
        np.zeros(len(lengths), int),
        np.zeros(len(lengths), int),
    )
    for d, row in zip(documents, where):
        if row < rows:
            cut = slice(used[row], used[row] + len(d))
            used[row] += len(d)
            segment[row] += 1
            packed["input_ids"][row, cut] = d
            packed["labels"][row, cut] = d
            packed["labels"][row, cut.start] = IGNORE
            packed["position_ids"][row, cut] = torch.arange(len(d))
            packed["segment_ids"][row, cut] = int(segment[row])
    ours, theirs = (
        trainer(MiniMind(preset("ci")).to(device), device, dtype),
        hf_trainer(preset("ci"), device, dtype),
    )
    ways = {
        "padded, transformers": (padded, theirs),
        "padded, minimind": (padded, ours),
        "packed, minimind": (packed, ours),
    }
    seconds = interleaved(
        {name: lambda b=batch, s=step: s(b) for name, (batch, step) in ways.items()}, 12
    )
    useful = {name: int((batch["input_ids"] > 0).sum()) for name, (batch, _) in ways.items()}
    rate = {name: useful[name] / seconds[name] for name in ways}
    return ["rows", "full", "useful tokens/s", *(f"to {name}" for name in list(ways)[:2])], [
        [
            name,
            f"{useful[name] / (rows * length):.0%}",
            f"{rate[name]:,.0f}",
            *(f"{rate[name] / rate[other]:.2f}" for other in list(ways)[:2]),
        ]
        for name in ways
    ]


@benchmark
def muon_cost(device, dtype):
    "Goal: a step with Muon costs ≤ 1.15 × a step with AdamW at `ci` size."
    model, ids = MiniMind(preset("ci")).to(device), torch.randint(3, 6400, (16, 256))
    cfg, batch = TrainConfig(), dict(input_ids=ids, labels=ids)
    both = {name: build_optimizer(model, name, lr=1e-4, muon_lr=1e-4) for name in ("adamw", "muon")}

    def step(optimizers):
        compute_gradients(model, batch, causal_lm_loss, cfg, device, dtype)
        optimizers.step()
        optimizers.zero_grad()

    seconds = interleaved({name: lambda o=o: step(o) for name, o in both.items()}, 10)
    return ["optimizer", "seconds a step", "ratio"], [
        [k, f"{s:.3f}", f"{s / seconds['adamw']:.2f}"] for k, s in seconds.items()
    ]


@benchmark
def moe_step(device, dtype):
    """Goal: a training step with four experts, one for a token, costs ≤ 1.15 × the dense model of
    equal active size, at `ci` and at 64M."""
    lines = []
    for dense, experts, rows, length, rounds, optimizer in (
        ("ci", "ci-moe", 16, 256, 12, "adamw"),
        ("ci", "ci-moe", 16, 256, 12, "muon"),
        ("minimind-3", "minimind-3-moe", 12, 340, 4, "adamw"),
        ("minimind-3", "minimind-3-moe", 12, 340, 4, "muon"),
    ):
        ids = torch.randint(3, preset(dense).vocab_size, (rows, length))
        batch = dict(input_ids=ids, labels=ids)
        ways = {
            name: partial(
                trainer(MiniMind(preset(name)).to(device), device, dtype, optimizer), batch
            )
            for name in (dense, experts)
        }
        if optimizer == "adamw":
            ways["transformers"] = partial(hf_trainer(preset(experts), device, dtype), batch)
        seconds = interleaved(ways, rounds)
        lines.append(
            [
                f"{experts}, {optimizer}",
                f"{rows} × {length}",
                *(f"{s:.3f}" for s in seconds.values()),
                *([""] if optimizer != "adamw" else []),
                f"{seconds[experts] / seconds[dense]:.2f}",
            ]
        )
    return [
        "shape",
        "batch",
        "dense, s",
        "experts, s",
        "experts of transformers, s",
        "experts / dense",
    ], lines


@benchmark
def checkpointing(device, dtype):
    """What a checkpoint each 200 steps costs (weights and AdamW's state, synced to the disk),
    written at once or by a thread from a copy. Goal: below 1 % of the time; the last columns say
    which steps are too short for that."""
    from tempfile import TemporaryDirectory
    from minimind.checkpoint import Checkpointer, ModelFolder

    lines = []
    for name in ("ci", "minimind2-small", "minimind-3"):
        config = preset(name)
        model, ids = MiniMind(config).to(device), torch.randint(3, config.vocab_size, (8, 340))
        optimizers = build_optimizer(model, "adamw", lr=1e-4)
        cfg = TrainConfig(optimizer="adamw", batch_size=8, micro_batch_size=8, keep=1)
        step = partial(
            train_step,
            model,
            dict(input_ids=ids, labels=ids),
            causal_lm_loss,
            optimizers,
            cfg,
            dtype,
        )
        # AdamW has a state from here on
        step()
        with TemporaryDirectory() as folder:
            saver = {
                beside: Checkpointer(
                    ModelFolder(model, None),
                    {"optimizer": optimizers},
                    TrainConfig(out=f"{folder}/{beside}", keep=1, async_checkpoint=beside),
                )
                for beside in (False, True)
            }
            counter = iter(range(1, 1000))
            both = {
                "save": lambda: saver[False].save(next(counter)),
                "copy": lambda: saver[True].save(next(counter)),
                "step beside": step,
                "wait": saver[True].finish,
                "step": step,
            }  # in this order: the first step is taken while the thread writes
            seconds = interleaved(both, 5, 1)
            size = sum(f.stat().st_size for f in saver[False].steps()[-1].iterdir())
        # what the run is longer for a checkpoint, if the next step is the last
        still = (
            seconds["copy"] + max(0.0, seconds["step beside"] - seconds["step"]) + seconds["wait"]
        )
        lines.append(
            [
                name,
                f"{size / 2**20:,.0f}",
                f"{seconds['save']:.2f}",
                f"{seconds['copy']:.2f}",
                f"{still:.2f}",
                f"{4 * seconds['step']:.2f}",
                f"{seconds['save'] / (200 * 4 * seconds['step']):.2%}",
                f"{1000 * seconds['save'] / 2:,.0f}",
                f"{1000 * seconds['copy'] / 2:,.0f}",
            ]
        )
    return [
        "size",
        "MiB",
        "save, s",
        "copy, s",
        "copy, and slower steps beside, s",
        "step of 32 × 340, s",
        "share of the time",
        "over 1 % below, ms a step",
        "the same, copying",
    ], lines


def rollout_requests(prompts, copies, most, stop, seed):
    "One for each completion, the completions of a prompt one after another."
    from minimind.generate import Request
    from minimind.sampling import spread_seed

    rows = [p for p in prompts for _ in range(copies)]
    how = dict(temperature=1.0, top_p=1.0, eos_token_id=tuple(stop))
    seeds = spread_seed(seed, len(rows))
    return [Request(p, most, seed=s, **how) for p, s in zip(rows, seeds)]


def rollout_way(model, hf, prompts, copies, most, stop, device):
    """Two functions that draw a rollout from the same model, ours and `transformers`' with nothing
    but temperature 1; each returns tokens drawn, an end token included, and columns of the longest.
    """
    from minimind.generate import complete

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    marks = torch.tensor(stop, device=device)

    def ours(seed):
        told = complete(model, rollout_requests(prompts, copies, most, stop, seed))
        return sum(map(len, told)), max(map(len, told))

    def theirs(seed):
        torch.manual_seed(seed)
        new = hf.generate(
            ids,
            attention_mask=real,
            max_new_tokens=most,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=copies,
            eos_token_id=stop,
            pad_token_id=0,
        )[:, width:]
        ended = torch.isin(new, marks)
        return int(
            torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1]).sum()
        ), new.shape[1]

    return ours, theirs


# completions a prompt; their longest; one token in so many is declared an end token
ROLLOUT = dict(copies=8, most=96, one_in=32)


def rollout_task(name):
    "A model with random weights, prompts of unequal lengths, and the tokens that end a completion."
    model = MiniMind(preset(name)).eval()
    prompts = [
        torch.randint(3, model.config.vocab_size, (n,)).tolist()
        for n in np.random.default_rng(0).integers(16, 65, 16)
    ]
    return (
        model,
        prompts,
        list(
            range(
                model.config.vocab_size - model.config.vocab_size // ROLLOUT["one_in"],
                model.config.vocab_size,
            )
        ),
    )


def added_memory(name, what, device):
    """MiB that one rollout, or one update on as many rows, adds at its peak. To be called in a
    fresh process, for what is freed is not given back to the system at once."""
    from minimind.generate import complete
    from minimind.rollout import Completion, completion_rows, rollout_logps

    model, prompts, stop = rollout_task(name)
    model.to(device)
    dtype, copies, most = get_dtype(device), ROLLOUT["copies"], ROLLOUT["most"]

    def sampling():
        complete(model, rollout_requests(prompts, copies, most, stop, 0), dtype=dtype)

    lengths = (
        np.random.default_rng(1)
        .geometric(1 / ROLLOUT["one_in"], (len(prompts), copies))
        .clip(max=most)
    )
    batch = completion_rows(
        [
            (p, Completion([5] * n, [0.0] * n, False))
            for p, row in zip(prompts, lengths)
            for n in row
        ]
    )
    cfg = TrainConfig(optimizer="adamw", batch_size=lengths.size, micro_batch_size=32)

    def updating():
        optimizers = build_optimizer(model, "adamw", lr=1e-6)
        compute_gradients(
            model,
            batch,
            lambda m, b: (-rollout_logps(m, b).sum(), len(b["labels"]), {}),
            cfg,
            device,
            dtype,
        )
        optimizers.step()

    call = {"sampling": sampling, "updating": updating}[what]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    page, statm, most_seen, done = (
        os.sysconf("SC_PAGE_SIZE"),
        Path("/proc/self/statm"),
        [0],
        threading.Event(),
    )

    def resident():
        return int(statm.read_text().split()[1]) * page

    def watch():
        while not done.wait(0.002):
            most_seen[0] = max(most_seen[0], resident())

    before, watcher = resident(), threading.Thread(target=watch, daemon=True)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return (most_seen[0] - before) / 2**20


@benchmark
def rollout(device, dtype):
    """Goal: 16 prompts × 8 completions of unequal lengths, tokens drawn per second ≥ 3 × Hugging
    Face's `generate` at `ci` size and ≥ 2 × at 26M; at its peak a rollout adds ≤ 1.5 × the memory
    that the update on its rows adds."""
    # Random weights never end a text. So that they do, in both libraries alike, one token in 32 is
    # declared an end token: lengths are then geometric, as uneven as those of a model that answers,
    # and cut at 96, as a rollout's are. Which share of the columns that makes useful is shown.
    lines, copies = [], ROLLOUT["copies"]
    for name, rounds in (("ci", 5), ("minimind2-small", 3)):
        model, prompts, stop = rollout_task(name)
        model.to(device)
        hf = hf_model(model.config).to(device).eval()
        hf.load_state_dict(model.state_dict())
        drawn, seeds = {"minimind": [], "transformers": []}, iter(range(1000))
        ours, theirs = rollout_way(model, hf, prompts, copies, ROLLOUT["most"], stop, device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            seconds = interleaved(
                {
                    "minimind": lambda: drawn["minimind"].append(ours(next(seeds))),
                    "transformers": lambda: drawn["transformers"].append(theirs(next(seeds))),
                },
                rounds,
                warmup=1,
            )
        rate = {
            way: statistics.mean(n for n, _ in d[1:]) / seconds[way] for way, d in drawn.items()
        }
        useful = statistics.mean(
            n / (copies * len(prompts) * columns) for n, columns in drawn["transformers"][1:]
        )
        added = {
            what: float(
                subprocess.run(
                    [
                        sys.executable,
                        __file__,
                        "--added-memory",
                        name,
                        what,
                        "--device",
                        str(device),
                    ],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
            for what in ("sampling", "updating")
        }
        lines.append(
            [
                name,
                f"{useful:.0%}",
                *(f"{r:,.0f}" for r in rate.values()),
                f"{rate['minimind'] / rate['transformers']:.2f}",
                *(f"{m:,.0f}" for m in added.values()),
                f"{added['sampling'] / added['updating']:.2f}",
            ]
        )
    return [
        "shape",
        "useful columns",
        "minimind, tokens/s",
        "transformers, tokens/s",
        "ratio",
        "sampling adds, MiB",
        "update adds, MiB",
        "ratio",
    ], lines


def many_chats(path, size):
    "A file of conversations, short ones and ones of six long turns, no two of them alike."
    from minimind.core import sample

    short = [json.loads(line) for line in open(sample("sft_skills.jsonl"), encoding="utf-8")]
    text = " ".join(t["content"] for row in short for t in row["conversations"])
    words = np.array(text.split())  # an array, or `choice` would make one each time
    rng, done, n = np.random.default_rng(0), 0, 0
    with open(path, "w", encoding="utf-8") as f:
        while done < size:
            turns = [dict(t) for t in short[n % len(short)]["conversations"]]
            if n % 2:
                long = zip(("user", "assistant") * 3, (60, 200) * 3)
                turns = [dict(role=r, content=" ".join(rng.choice(words, k))) for r, k in long]
            turns[0]["content"] += f" {n}"
            line = json.dumps({"conversations": turns}, ensure_ascii=False) + "\n"
            done += f.write(line)
            n += 1


def one_chat_after_another(path, tokenizer):
    "Chats to tokens as it was before: one process, each chat by itself."
    from minimind.chat import encode_chat
    from minimind.data import JsonlReader, chat_row, chat_text

    n = 0
    for _, row in JsonlReader(path):
        messages, tools = chat_row(row)
        ids, mask = encode_chat(tokenizer, messages, tools)
        chat_text(messages, tools).encode()
        n += len(np.array(ids, np.uint16).tobytes()) + len(bytes(mask))
    return n


def data_row(what, one, other, rounds, size=None, warmup=0):
    "A line of `data_speed`: two ways in turn; the ratio is the median of the rounds' ratios."
    times = []
    for r in range(warmup + rounds):
        pair = []
        for way in (one, other):
            start = time.perf_counter()
            way()
            pair.append(time.perf_counter() - start)
        times += [pair] if r >= warmup else []
    medians = np.median(times, axis=0)
    shown = [f"{size / s / 1e6:.2f} MB/s" if size else f"{1e3 * s:,.1f} ms" for s in medians]
    return [what, *shown, f"{np.median([a / b for a, b in times]):.2f}"]


@benchmark
def data_speed(device, dtype):
    """Goals: text to tokens ≥ 0.9 × the library's own batches; chats to tokens on two cores ≥ 1.8 ×
    one chat after another; one of 8 processes' rows ≥ 6 × as quick as all; a second run ≥ 20 ×."""
    from itertools import count
    from tempfile import TemporaryDirectory
    from minimind.core import sample
    from minimind.data import PackedBatches, build_store, open_texts
    from minimind.tokenizer import Tokenizer

    os.environ.pop("TOKENIZERS_PARALLELISM", None)
    samples = [sample("pretrain_en.jsonl"), sample("pretrain_zh.jsonl")]
    texts = [text for file in samples for _, text in open_texts(file)]
    size, tokenizer = sum(len(t.encode()) for t in texts), Tokenizer.train(texts, 6400)
    with TemporaryDirectory() as folder:
        folder, number = Path(folder), count()
        chats = folder / "chats.jsonl"
        many_chats(chats, 32_000_000)
        quiet = dict(progress=False, cache=folder / "cache")
        fresh = lambda files, **kw: build_store(
            files, tokenizer, folder / str(next(number)), progress=False, **kw
        )
        # what `encode_batch` of ours calls, without making lists of what it gives
        library = tokenizer._plain.encode_batch_fast
        rows = [
            data_row(
                "text: the library alone, a store",
                lambda: library(texts, add_special_tokens=False),
                lambda: fresh(samples),
                5,
                size,
                1,
            ),
            data_row(
                "chats: one after another, a store",
                lambda: one_chat_after_another(chats, tokenizer),
                lambda: fresh([chats], kind="sft"),
                2,
                chats.stat().st_size,
            ),
        ]
        store = build_store(samples, tokenizer, **quiet)
        batches, steps = PackedBatches(store, 340, 256), count()
        turn = lambda *rank: batches.at(next(steps) % (batches.steps_per_epoch - 1), *rank)
        rows.append(
            data_row("a step of 256 rows: all, an eighth", turn, lambda: turn(0, 8), 40, None, 4)
        )
        rows.append(
            data_row(
                "a run's tokens: the first, the second",
                lambda: fresh(samples),
                lambda: build_store(samples, tokenizer, **quiet),
                5,
                None,
                1,
            )
        )
    return ["what: one way, another", "one", "another", "ratio"], rows


def uneven_rollout(rows=128, longest=160):
    "Rows as a rollout leaves them, 35 % full: most replies are short, one is as long as may be."
    g, at = torch.Generator().manual_seed(0), torch.arange(longest).expand(rows, longest)
    length = (torch.rand(rows, 1, generator=g) ** 1.8 * longest).long().clamp(min=12)
    length[0] = longest
    ids = torch.randint(3, 6400, (rows, longest), generator=g)
    return dict(
        input_ids=torch.where(at < length, ids, 0),
        labels=torch.where((at >= 10) & (at < length), ids, IGNORE),
        segment_ids=(at < length).long(),
        advantages=torch.randn(rows, generator=g),
    )


@benchmark
def update_speed(device, dtype):
    """Goal: the gradient of a step of RL and of DPO ≥ 1.7 × as quick without what is filling as with
    it, and the same to 1e-5. (Pairs are the shipped ones, a step of `minimind run`'s.)"""
    import minimind.losses
    from minimind.core import sample
    from minimind.dpo import DPOConfig, PairBatches, preference_loss, read_pairs
    from minimind.grpo import GRPOConfig, policy_loss
    from minimind.tokenizer import Tokenizer

    texts = [line for line in open(sample("dpo.jsonl"), encoding="utf-8")]
    pairs = read_pairs([sample("dpo.jsonl")], Tokenizer.train(texts, 6400), 256)
    pairs = PairBatches(pairs, 16)
    rl = GRPOConfig(init="", prompts=16, group_size=8)
    dpo = DPOConfig(init="", sft_weight=1.0)
    cases = {
        "rl, 128 × 160": ([uneven_rollout()], partial(policy_loss, cfg=rl), rl),
        "dpo, 16 pairs": ([pairs.at(i) for i in range(4)], partial(preference_loss, cfg=dpo), dpo),
    }
    lines = []
    for name, (batches, loss_fn, cfg) in cases.items():
        model, gradients = MiniMind(preset("ci")).to(device), {}

        def step(full):
            minimind.losses.FULL = full
            model.zero_grad()
            for batch in batches:
                compute_gradients(model, batch, loss_fn, cfg, device, dtype)
            gradients[full] = torch.cat([p.grad.flatten() for p in model.parameters()])

        usual = minimind.losses.FULL
        # 0: nothing is ever left out
        ways = {"all": lambda: step(0.0), "real": lambda: step(usual)}
        seconds = interleaved(ways, 6)
        minimind.losses.FULL = usual
        apart = float((gradients[usual] - gradients[0.0]).norm() / gradients[0.0].norm())
        tokens = [b["segment_ids"] for b in batches]
        full = sum(int((t > 0).sum()) for t in tokens) / sum(t.numel() for t in tokens)
        ratio = seconds["all"] / seconds["real"]
        both = [f"{seconds[k]:.2f} s" for k in ("all", "real")]
        lines.append([name, f"{full:.0%}", *both, f"{ratio:.2f}", f"{apart:.0e}"])
    return ["step", "full", "all positions", "real ones", "ratio", "gradients apart"], lines


@benchmark
def precision_speed(device, dtype):
    """Goal: training in bfloat16 ≥ 1.5 × as quick as in float32, on processors that compute it."""
    lines = []
    for name, rows, length, rounds in (("ci", 16, 256, 10), ("minimind2-small", 4, 340, 6)):
        ids = torch.randint(3, 6400, (rows, length))
        steps = {
            kind: trainer(MiniMind(preset(name)).to(device), device, kind)
            for kind in (torch.float32, torch.bfloat16)
        }
        batch = dict(input_ids=ids, labels=ids)
        ways = {kind: partial(step, batch) for kind, step in steps.items()}
        seconds = interleaved(ways, rounds)
        speeds = [rows * length / seconds[kind] for kind in steps]
        told = [f"{speed:,.0f}" for speed in speeds]
        lines.append([name, f"{rows} × {length}", *told, f"{speeds[1] / speeds[0]:.2f}"])
    return ["shape", "batch", "float32, tokens/s", "bfloat16, tokens/s", "ratio"], lines


# trains for some seconds and prints tokens per second
BESIDE = """
import time, torch
from minimind.losses import causal_lm_loss
from minimind.model import MiniMind
from minimind.optim import build_optimizer
from minimind.train import TrainConfig, train_step
torch.manual_seed(0)
model, cfg = MiniMind("ci"), TrainConfig(batch_size=16, micro_batch_size=16)
ids = torch.randint(3, 6400, (16, 256))
args = model, dict(input_ids=ids, labels=ids), causal_lm_loss, build_optimizer(model, "muon"), cfg
for _ in range(2):
    train_step(*args)
steps, start = 0, time.perf_counter()
while time.perf_counter() - start < 5:
    train_step(*args)
    steps += 1
print(steps * ids.numel() / (time.perf_counter() - start))
"""


@benchmark
def beside_others(device, dtype):
    """Goal: training at `ci` size, tokens/s with the program's own setting of waiting threads and
    with OpenMP's: ≥ 1.4 × beside one busy process, ≥ 2 × beside two, ≥ 0.95 × on a quiet machine."""
    from minimind.__main__ import SPINS

    def speed(setting):
        env = {
            k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")
        }
        env |= {"GOMP_SPINCOUNT": str(setting)} if setting else {}
        done = subprocess.run(
            [sys.executable, "-c", BESIDE], env=env, capture_output=True, text=True
        )
        return float(done.stdout)

    lines = []
    for others in range(3):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            pairs = [(speed(None), speed(SPINS)) for _ in range(3)]
        finally:
            for process in busy:
                process.kill()
        usual, own = (statistics.median(side) for side in zip(*pairs))
        ratio = statistics.median(b / a for a, b in pairs)
        lines.append([others, f"{usual:,.0f}", f"{own:,.0f}", f"{ratio:.2f}"])
    return ["busy processes beside", "OpenMP's, tokens/s", f"{SPINS:,} turns", "ratio"], lines


def machine(device, dtype):
    "One line: what it ran on."
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        models = (
            [
                l.split(":")[1].strip()
                for l in cpuinfo.read_text().splitlines()
                if l.startswith("model name")
            ]
            if cpuinfo.exists()
            else []
        )
        name = f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"
    return f"{name}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}, Python {platform.python_version()}"


def provenance(title, device=CPU, dtype=torch.float32):
    "What every result begins with: what it is, where, when and with which code it was measured."
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    return dict(
        title=title, machine=machine(device, dtype), date=date.today().isoformat(), commit=commit
    )


def save(path, result):
    "Write a result as JSON."
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--device", default="auto")
    # how `rollout` asks a fresh process
    parser.add_argument("--added-memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.added_memory:
        print(added_memory(*args.added_memory, get_device(args.device)))
        return
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    device = get_device(args.device)
    dtype = get_dtype(device)
    # the commit as it is before results are written
    start = provenance("", device, dtype)
    torch.manual_seed(0)
    for name in args.names or BENCHMARKS:
        columns, rows = BENCHMARKS[name](device, dtype)
        print(f"\n{name}. {BENCHMARKS[name].__doc__}\n{text_table([columns, *rows])}", flush=True)
        save(
            HERE / "results" / f"{name}{'' if device.type == 'cpu' else '-' + device.type}.json",
            start | dict(title=BENCHMARKS[name].__doc__, columns=columns, rows=rows),
        )


if __name__ == "__main__":
    main()
