"""What several lessons need and none of them teaches: small real texts, and a model that has read
them for some seconds. For the notebooks only; the package never imports it."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch.nn import functional as F

from minimind.core import sample
from minimind.model import MiniMind, ModelConfig
from minimind.tokenizer import Tokenizer


def read_sample(name):  # a file in data_samples/, with a "text" in each line
    "The texts of a shipped sample."
    with open(sample(name), encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def bible():
    "Passages of an English Bible, 290,000 characters."
    texts = read_sample("pretrain_en.jsonl")
    return [text for text in texts if "Yahweh" in text or "Jesus" in text]


def poems(name="pretrain_zh.jsonl"):
    "Short Chinese poems; those of `pretrain_heldout_zh.jsonl` are not among the others."
    return [text for text in read_sample(name) if len(text) < 300 and text.count("\n") >= 3]


TINY = dict(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=320,
)


def learn(texts, vocab_size, steps=220):
    """A model of about half a million parameters and its tokenizer, trained for some seconds. It is
    the shortest training that works: what its lines mean is the subject of chapters 12 to 16."""
    tokenizer = Tokenizer.train(texts, vocab_size)
    documents = tokenizer.encode_batch(texts)
    ids = [i for doc in documents for i in (tokenizer.bos_id, *doc, tokenizer.eos_id)]
    ids = torch.tensor(ids)
    torch.manual_seed(0)
    model = MiniMind(ModelConfig(**TINY, vocab_size=len(tokenizer)))
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    optimizers = [
        (torch.optim.Muon(matrices, weight_decay=0.0), 0.02),
        (torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0), 0.005),
    ]
    for step in range(steps):
        rows = torch.stack([ids[i : i + 128] for i in torch.randint(len(ids) - 128, (4,))])
        loss = F.cross_entropy(model(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        for optimizer, lr in optimizers:
            optimizer.param_groups[0]["lr"] = lr * min((step + 1) / 20, 1.05 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
    return model.eval(), tokenizer


def repetition(rows, n=4):  # lists of ids
    "Share of n-grams that are repeats of an earlier one in their row."
    grams = [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in rows]
    return 1 - sum(len(set(g)) for g in grams) / sum(map(len, grams))


def quietly(f, *args, **options):
    "Call `f` without showing what it prints."
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        return f(*args, **options)


def write_rows(path, rows):
    "Write a jsonl file."
    path = Path(path)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def parity_rows(name):  # a file of short exercises in data_samples/
    "Its questions, in English, whether a number is odd or even; with the right answers."
    with open(sample(name), encoding="utf-8") as lines:
        rows = list(map(json.loads, lines))
    return [row for row in rows if row["skill"] == "parity" and row["lang"] == "en"]


def answering_model(work):  # a folder, in which `base` and `sft` are made
    """A model and its tokenizer that have read English for some seconds and then learned to say
    whether a number is odd or even; stopped early, so that they are right now and then only. What
    the lines mean is the subject of chapters 21 and 22."""
    from minimind import pretrain, sft
    from minimind.hub import load_pretrained, to_hf_config

    work, shape = Path(work), ModelConfig(**TINY | {"intermediate_size": 352})
    (work / "shape").mkdir()
    (work / "shape" / "config.json").write_text(json.dumps(to_hf_config(shape)))
    documents = pretrain.read_documents([sample("pretrain_en.jsonl")])
    texts = ({"text": text} for text in pretrain.take_bytes(documents, 200_000))
    small = dict(seq_len=128, batch_size=8, micro_batch_size=8, lr=1e-2)
    base = pretrain.PretrainConfig(
        out=str(work / "base"),
        data=write_rows(work / "text.jsonl", texts),
        model=str(work / "shape"),
        vocab_size=1024,
        heldout_one_in=50,
        steps=30,
        warmup=10,
        eval_bytes=0,
        **small,
    )
    tuned = sft.SFTConfig(
        out=str(work / "sft"),
        init=base.out,
        data=write_rows(work / "practice.jsonl", parity_rows("sft_skills.jsonl")),
        steps=50,
        warmup=5,
        eval_rows=0,
        **small,
    )
    quietly(pretrain.run, base)
    quietly(sft.run, tuned)
    return load_pretrained(tuned.out)


# what a box stands for, as a colour that can be read on white, on dark and in grey print
KINDS = {
    "data": ("#dbe9f6", "#2166ac"),
    "model": ("#fde3cf", "#b35806"),
    "step": ("#d9f0e3", "#1b7837"),
    "frozen": ("#e6e6e6", "#666666"),
}


def boxes(
    things,  # (name, x, y, label, kind): where a box stands, what is in it, one of `KINDS`
    arrows=(),  # (from, to, label)
    title="",
    size=(1.62, 0.72),  # of a box, in units of x and y
    scale=0.8,  # inches a unit
    ax=None,
):  # the axes
    "Draw what is connected to what. Labels are arguments, so that they can be translated."
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    (w, h), place = size, {name: (x, y) for name, x, y, *_ in things}
    xs, ys = zip(*place.values())
    if ax is None:
        width, height = max(xs) - min(xs) + w + 0.2, max(ys) - min(ys) + h + 0.3
        _, ax = plt.subplots(figsize=(scale * width, scale * height + 0.3 * bool(title)))
    ax.set(xlim=(min(xs) - w / 2 - 0.1, max(xs) + w / 2 + 0.1), aspect="equal")
    ax.set_ylim(min(ys) - h / 2 - 0.15, max(ys) + h / 2 + 0.15)
    for name, x, y, label, kind in things:
        fill, edge = KINDS[kind]
        shape = FancyBboxPatch(
            (x - w / 2 + 0.08, y - h / 2 + 0.08),
            w - 0.16,
            h - 0.16,
            boxstyle="round,pad=0.08",
            facecolor=fill,
            edgecolor=edge,
            linewidth=1.2,
        )
        ax.add_patch(shape)
        ax.text(x, y, label, ha="center", va="center", fontsize=8.5, color="black")
    for start, end, label in arrows:
        _arrow(ax, place[start], place[end], label, w, h)
    ax.set_title(title, loc="center", fontsize=10)
    ax.axis("off")
    return ax


def _arrow(ax, start, end, label, w, h):
    "An arrow from the edge of one box to the edge of another, its label at its middle."
    (x0, y0), (x1, y1) = start, end
    if abs(x1 - x0) >= w:  # side by side: from a right edge to a left one, or back
        side = 1 if x1 > x0 else -1
        x0, x1 = x0 + side * w / 2, x1 - side * w / 2
    else:
        side = 1 if y1 > y0 else -1
        y0, y1 = y0 + side * h / 2, y1 - side * h / 2
    look = dict(arrowstyle="-|>", color="#555555", linewidth=1.1, shrinkA=1, shrinkB=1)
    ax.annotate("", (x1, y1), (x0, y0), arrowprops=look)
    if label:
        spot = (x0 + x1) / 2, (y0 + y1) / 2
        back = dict(facecolor="white", edgecolor="none", pad=0.6)
        ax.text(*spot, label, ha="center", va="center", fontsize=7.5, color="#333333", bbox=back)
