"""Longer texts than in training: train a `ci` model on rows of 128 bytes, then read up to 8 times
as far with RoPE as it is, and stretched in three ways.

python benchmarks/long_context.py [--seeds 3] [--steps 900] [--out
benchmarks/results/long_context.json]

Bytes are the tokens, so bits per token are bits per byte. Half of the training rows are English
prose. A quarter repeat a random word over and over, and a quarter are needles: random words hidden
in prose, to be said again at the end; without them a model this small does not learn to look
anything up. Measured on held-out prose: bits per byte by position, and the share of the needles'
letters that are right, by the distance to the needle."""

import argparse, json, math, random, time
from pathlib import Path

import torch
from bench import provenance, save

from minimind.core import sample
from minimind.losses import causal_lm_loss, token_logprobs
from minimind.model import STRETCHES, MiniMind, preset, stretch
from minimind.optim import build_optimizer, lr_factor
from minimind.train import TrainConfig, train_step

LENGTH, FACTORS = 128, (1, 2, 4, 8)
# letters of a needle, and how many of them are shown before the rest is asked for
SIZE, KEY = 10, 2


def documents(name):
    return [json.loads(line)["text"].encode() for line in open(sample(name), encoding="utf-8")]


def word(g, n):
    return bytes(g.choice(b"abcdefghijklmnopqrstuvwxyz") for _ in range(n))


def prose_row(g, text, length=LENGTH):
    start = g.randrange(len(text) - length)
    return text[start : start + length]


def repeat_row(g, length=LENGTH):
    one = b"<" + word(g, g.randrange(8, length // 2 - 2)) + b">"
    return (one * length)[:length]


def needle_row(g, text, length=LENGTH, where=None):
    """Prose with two words in angle brackets, one of them at the share `where` of the prose, and
    both again at the end, that one last."""
    words, room = [word(g, SIZE) for _ in range(2)], length - 4 * (SIZE + 2)
    prose, cuts = prose_row(g, text, room), sorted(g.randrange(room + 1) for _ in words)
    if where is not None:
        cuts[1] = round(where * room)
        cuts[0] = g.randrange(room + 1)
    marked = [b"<" + w + b">" for w in words]
    pieces, last = [], 0
    for cut, w in sorted(zip(cuts, marked)):
        pieces += [prose[last:cut], w]
        last = cut
    if where is None:
        g.shuffle(marked)
    return b"".join([*pieces, prose[last:], *marked])


def training_rows(g, text, rows=16):
    kinds = [
        lambda: needle_row(g, text),
        lambda: repeat_row(g),
        lambda: prose_row(g, text),
        lambda: prose_row(g, text),
    ]
    return torch.tensor([list(kinds[r % 4]()) for r in range(rows)])


def train(config, seed, steps, text):
    "A model trained on rows of `LENGTH` bytes."
    torch.manual_seed(seed)
    g, model, cfg = random.Random(seed), MiniMind(config), TrainConfig()
    optimizers = build_optimizer(model, "muon", lr=1e-2, muon_lr=0.02)
    for step in range(steps):
        optimizers.set_lr(lr_factor(step, steps, 30, "linear", 0.05))
        ids = training_rows(g, text)
        result = train_step(model, dict(input_ids=ids, labels=ids), causal_lm_loss, optimizers, cfg)
        if step % 100 == 99:
            print(f"seed {seed} step {step + 1}: loss {result.loss:.3f}", flush=True)
    return model.eval()


def stretched(model, way, factor):
    "The same weights, asked to read `factor` times as far."
    config = (
        model.config
        if way == "plain" or factor == 1
        else stretch(model.config, way, factor, LENGTH)
    )
    longer = MiniMind(config).eval()
    longer.load_state_dict(model.state_dict())
    return longer


@torch.no_grad()
def prose_bits(
    model, texts, length
):  # `(length - 1,)` bits per byte at each position, mean over the texts
    rows = torch.tensor([list(t[:length]) for t in texts])
    return -torch.cat([token_logprobs(model(part), part) for part in rows.split(8)]).mean(
        0
    ) / math.log(2)


@torch.no_grad()
def needle_share(model, text, length, where, rows=48, seed=0):
    """Share of the last needle's letters, after its first `KEY`, that the likeliest token gets
    right."""
    g = random.Random(seed)
    ids = torch.tensor([list(needle_row(g, text, length, where)) for _ in range(rows)])
    right = [model(part)[:, :-1].argmax(-1) == part[:, 1:] for part in ids.split(8)]
    return torch.cat(right)[:, -SIZE - 1 + KEY : -1].float().mean().item()


def measure(model, held):
    out, text = [], b"\n\n".join(held)
    for factor in FACTORS:
        for way in ("plain", *STRETCHES) if factor > 1 else ("plain",):
            longer, length = stretched(model, way, factor), factor * LENGTH
            bits = prose_bits(longer, held, length)
            # half a training length at a time
            parts = [b.mean().item() for b in bits.split(LENGTH // 2)]
            needles = [
                needle_share(longer, text, length, where) for where in (0.0, 0.25, 0.5, 0.75, 1.0)
            ]
            out.append(
                dict(
                    way=way,
                    factor=factor,
                    bits_per_byte=bits.mean().item(),
                    bits_by_half_length=parts,
                    needle=sum(needles) / len(needles),
                    needle_by_place=needles,
                )
            )
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "long_context.json"
    )
    args = parser.parse_args()
    held = [d for d in documents("pretrain_heldout_en.jsonl") if len(d) >= FACTORS[-1] * LENGTH]
    config, text, start = (
        preset("ci", vocab_size=256),
        b"\n\n".join(documents("pretrain_en.jsonl")),
        time.perf_counter(),
    )
    runs = [
        dict(seed=seed, results=measure(train(config, seed, args.steps, text), held))
        for seed in range(args.seeds)
    ]
    result = dict(
        **provenance(__doc__.split("\n")[0]),
        minutes=round((time.perf_counter() - start) / 60, 1),
        length=LENGTH,
        steps=args.steps,
        texts=len(held),
        model="ci, vocab_size=256",
        runs=runs,
    )
    save(args.out, result)
    for r in runs[0]["results"]:
        print(
            f"{r['way']:7} {r['factor']} × {LENGTH}: {r['bits_per_byte']:.3f} bits per byte, "
            f"needles {r['needle']:.0%}"
        )


if __name__ == "__main__":
    main()
