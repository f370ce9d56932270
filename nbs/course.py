"""What several lessons need and none of them teaches: small real texts, and a model that has read
them for some seconds. For the notebooks only; the package never imports it."""

import base64
import hashlib
import html
import io
import itertools
import json
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch.nn import functional as F

from minimind.core import sample
from minimind.model import MiniMind, ModelConfig
from minimind.tokenizer import Tokenizer

# a chapter shows the same numbers on every machine, whatever its processor is fastest at
os.environ.setdefault("MINIMIND_DTYPE", "float32")
# and tokenises for itself, not out of what other runs have left
_cache = tempfile.TemporaryDirectory()
os.environ.setdefault("MINIMIND_CACHE", _cache.name)


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
    things,  # (name, x, y, label, kind): where a box stands, what is in it, one of `KINDS`;
    # two more numbers are its own width and height
    arrows=(),  # (from, to, label); one more number bends it, e.g. 0.4 around what lies between
    title="",
    size=(1.62, 0.72),  # of a box, in units of x and y
    scale=0.8,  # inches a unit
    ax=None,
):  # the axes
    "Draw what is connected to what. Labels are arguments, so that they can be translated."
    import matplotlib.pyplot as plt

    place = {name: (x, y, *(own or size)) for name, x, y, _, _, *own in things}
    left, right = (f(x + s * w / 2 for x, _, w, _ in place.values()) for f, s in EDGES)
    below, above = (f(y + s * h / 2 for _, y, _, h in place.values()) for f, s in EDGES)
    if ax is None:
        width, height = right - left + 0.2, above - below + 0.3
        _, ax = plt.subplots(figsize=(scale * width, scale * height + 0.3 * bool(title)))
    ax.set(xlim=(left - 0.1, right + 0.1), ylim=(below - 0.15, above + 0.15), aspect="equal")
    for name, _, _, label, kind, *_ in things:
        _box(ax, *place[name], label, kind)
    for start, end, label, *bend in arrows:
        _arrow(ax, place[start], place[end], label, *bend)
    ax.set_title(title, loc="center", fontsize=10)
    ax.axis("off")
    return ax


EDGES = (min, -1), (max, 1)


def _box(ax, x, y, w, h, label, kind):
    from matplotlib.patches import FancyBboxPatch

    fill, edge = KINDS[kind]
    corner, look = (x - w / 2 + 0.08, y - h / 2 + 0.08), dict(boxstyle="round,pad=0.08")
    shape = FancyBboxPatch(corner, w - 0.16, h - 0.16, **look, fc=fill, ec=edge, linewidth=1.2)
    ax.add_patch(shape)
    ax.text(x, y, label, ha="center", va="center", fontsize=8.5, color="black")


def _arrow(ax, start, end, label, bend=0.0):
    "An arrow from the edge of one box to the edge of another, its label at its middle."
    (x0, y0, w0, h0), (x1, y1, w1, h1) = start, end
    if abs(x1 - x0) >= (w0 + w1) / 2:  # side by side: from a right edge to a left one, or back
        side = 1 if x1 > x0 else -1
        x0, x1 = x0 + side * w0 / 2, x1 - side * w1 / 2
    else:
        side = 1 if y1 > y0 else -1
        y0, y1 = y0 + side * h0 / 2, y1 - side * h1 / 2
    look = dict(arrowstyle="-|>", color="#555555", linewidth=1.1, shrinkA=1, shrinkB=1)
    look["connectionstyle"] = f"arc3,rad={bend}"
    ax.annotate("", (x1, y1), (x0, y0), arrowprops=look)
    if label:  # the curve's middle lies half of the bend beside the straight line's
        spot = (x0 + x1 + bend * (y1 - y0)) / 2, (y0 + y1 - bend * (x1 - x0)) / 2
        back = dict(facecolor="white", edgecolor="none", pad=0.6)
        ax.text(*spot, label, ha="center", va="center", fontsize=7.5, color="#333333", bbox=back)


class dial:
    """A figure to turn: a slider for each option of `draw`. Where a kernel and ipywidgets are at
    hand, every turn draws anew; elsewhere (a page of the site, a saved notebook) the same sliders
    choose among the pictures of all values, drawn beforehand."""

    def __init__(
        self,
        draw,  # `(**chosen)` draws one figure; what it returns is left alone
        start=None,  # {option: value} at the beginning; without it the first of each
        **values,  # for each option the few values that its slider has
    ):
        first = {name: options[0] for name, options in values.items()} | (start or {})
        self.draw, self.values, self.start = draw, values, first

    def _repr_mimebundle_(self, **_):
        bundle = {"text/plain": f"a dial for {', '.join(self.values)}", "text/html": self.page()}
        try:
            from ipywidgets import SelectionSlider, interactive
        except ImportError:
            return bundle
        sliders = {
            name: SelectionSlider(options=[(_shown(v), v) for v in options], value=self.start[name])
            for name, options in self.values.items()
        }
        return bundle | interactive(self._turn, **sliders)._repr_mimebundle_()

    def _turn(self, **chosen):
        import matplotlib.pyplot as plt

        self.draw(**chosen)
        plt.show()

    def page(self):
        "The sliders and the pictures as HTML, which needs nothing else."
        choices = [dict(zip(self.values, c)) for c in itertools.product(*self.values.values())]
        pictures = [_picture(self.draw, choice) for choice in choices]
        name = "dial-" + hashlib.sha256("".join(pictures).encode()).hexdigest()[:10]
        sliders = [
            SLIDER.format(
                name=option,
                last=len(options) - 1,
                at=options.index(self.start[option]),
                shown=_shown(self.start[option]),
                values=html.escape(json.dumps(list(map(_shown, options))), quote=True),
            )
            for option, options in self.values.items()
        ]
        shown = choices.index(self.start)
        images = [
            IMAGE.format(data=data, hidden="" if i == shown else "hidden", words=_words(choice))
            for i, (data, choice) in enumerate(zip(pictures, choices))
        ]
        parts = [f'<div class="dial" id="{name}"><div>', *sliders, "</div>", *images, "</div>"]
        return "\n".join([*parts, SCRIPT.replace("NAME", name)])


SLIDER = (
    '<label style="display:inline-block;margin-right:1.5em">{name} <input type="range" min="0" '
    'max="{last}" value="{at}" data-values="{values}"> <output>{shown}</output></label>'
)
IMAGE = '<img src="data:image/png;base64,{data}" alt="{words}" style="max-width:100%" {hidden}>'
# the last slider's values follow each other fastest in the list of pictures
SCRIPT = """<script>(() => {
  const box = document.getElementById("NAME"), sliders = [...box.querySelectorAll("input")]
  const turn = () => {
    let at = 0
    for (const s of sliders) {
      const values = JSON.parse(s.dataset.values)
      at = at * values.length + Number(s.value)
      s.parentNode.querySelector("output").textContent = values[s.value]
    }
    box.querySelectorAll("img").forEach((img, i) => { img.hidden = i !== at })
  }
  sliders.forEach(s => s.addEventListener("input", turn))
})()</script>"""


def _shown(value):  # of an option
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(choice):  # {option: value}
    return html.escape(", ".join(f"{k} {_shown(v)}" for k, v in choice.items()), quote=True)


def _picture(draw, choice):
    "One figure as a small PNG of few colours, in base64."
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    draw(**choice)
    figure, raw = plt.gcf(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=80, bbox_inches="tight")
    for number in set(plt.get_fignums()) - before:
        plt.close(number)
    return base64.b64encode(few_colours(raw.getvalue(), 32)).decode()


def few_colours(png, colours):  # bytes, and how many
    "The same PNG with at most so many colours: a third of the bytes or less."
    from PIL import Image

    small, image = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(colours).save(small, format="png", optimize=True)
    return small.getvalue()


# who takes part in the methods of alignment, and where each stands in the picture
PLAYERS = {
    "prompts": (0, 1.1, "data"),
    "pairs": (0, 1.1, "data"),
    "policy": (2.2, 1.1, "model"),
    "group": (4.4, 1.1, "data"),
    "completion": (4.4, 1.1, "data"),
    "reference": (2.2, -1.1, "frozen"),
    "teacher": (2.2, -1.1, "frozen"),
    "critic": (4.4, -0.1, "model"),
    "reward": (6.6, 1.1, "step"),
    "compared": (6.6, 1.1, "step"),
    "loss": (6.6, -0.1, "step"),
}
SAYS = {
    "prompts": "prompts",
    "pairs": "pairs: better,\nworse reply",
    "policy": "policy\n(it learns)",
    "group": "group of replies,\nhow likely each",
    "completion": "reply, and how\nlikely it is",
    "reference": "reference\n(frozen copy)",
    "teacher": "teacher\n(frozen)",
    "critic": "critic\n(it learns)",
    "reward": "reward",
    "compared": "reward minus\nthe group's mean",
    "loss": "loss",
}
LINE_UPS = {
    "DPO": "pairs>policy pairs>reference policy>loss reference>loss",
    "PPO": "prompts>policy policy>completion completion>reward completion>critic reward>loss "
    "critic>loss completion>loss completion>reference reference>loss",
    "GRPO": "prompts>policy policy>group group>compared compared>loss group>loss group>reference "
    "reference>loss",
    "distillation": "prompts>policy prompts>teacher policy>loss teacher>loss",
}


def line_up(method, says=SAYS, title="", ax=None):  # a key of `LINE_UPS`
    "Who takes part in a method of alignment. All of its pictures put the same one at one place."
    steps = [step.split(">") for step in LINE_UPS[method].split()]
    names = [name for name in PLAYERS if any(name in step for step in steps)]
    things = [(name, *PLAYERS[name][:2], says[name], PLAYERS[name][2]) for name in names]
    arrows = [(a, b, "", 0.15 if b == "loss" and PLAYERS[a][0] < 4 else 0.0) for a, b in steps]
    return boxes(things, arrows, title or method, ax=ax)


def complaint(f, *args, **options):
    "What an error says, without the folder of this page, which has another name each time."
    import re
    import tempfile

    try:
        f(*args, **options)
    except (ValueError, OSError) as error:
        return re.sub(re.escape(tempfile.gettempdir()) + r"/[^/\s]+/", "", str(error))


def larger(a, b, reply="?"):  # two digits
    "A question for the larger of two digits, with its right answer."
    ask = {"role": "user", "content": f"Larger: {a} or {b}?"}
    answer = {"role": "assistant", "content": reply}
    return {"conversations": [ask, answer], "answer": str(max(a, b))}


def guessing_model(work):  # a folder, in which `sft` is made
    """Pairs of digits to practise on and for an exam, none in both, either way round; and a small
    model that was fine-tuned on what somebody said of the former who did not know which is larger:
    one of the two by a coin, now and then both."""
    import random

    from minimind import sft
    from minimind.hub import save_pretrained

    coin, pairs = random.Random(0), [(a, b) for a in range(10) for b in range(a)]
    coin.shuffle(pairs)
    practised, kept = (
        [p for a, b in part for p in ((a, b), (b, a))] for part in (pairs[:33], pairs[33:])
    )

    def guess(a, b):
        return larger(a, b, f"{a} or {b}" if coin.random() < 0.15 else str(coin.choice((a, b))))

    guesses = [guess(a, b) for _ in range(27) for a, b in coin.sample(practised, len(practised))]
    tokenizer = Tokenizer.train([json.dumps(row) for row in guesses[:180]], 300)
    torch.manual_seed(0)
    shape = TINY | dict(hidden_size=64, intermediate_size=176, max_position_embeddings=256)
    model = MiniMind(ModelConfig(**shape, vocab_size=tokenizer.vocab_size))
    save_pretrained(model, tokenizer, work / "init")
    how = dict(steps=120, seq_len=128, batch_size=8, lr=1e-2, eval_rows=0, init=str(work / "init"))
    data = write_rows(work / "examples.jsonl", guesses)
    quietly(sft.run, sft.SFTConfig(out=str(work / "sft"), data=data, **how))
    return practised, kept


def table(head, *rows):  # cells each
    "Print rows under a head, in aligned columns. (`text_table` is at home in chapter 15.)"
    from minimind.log import text_table

    print(text_table([head, *rows]))


def token_boxes(
    tokenizer,
    ids,
    learned=None,  # 0 or 1 a token: green is learned, grey only read; None: the colours take turns
):  # an HTML object
    "A box for each token, with a frame if it is special; a part of a character as its bytes."
    from IPython.display import HTML

    spans = []
    for n, i in enumerate(map(int, ids)):
        fill = ("#cfe8f7", "#fbe3c0", "#d5efe4")[n % 3]
        data, text = tokenizer.token_bytes(i), None
        if i in tokenizer.partial_ids:
            fill, text = "#dddddd", data.hex(" ")
        if learned is not None:
            fill = "#b7e4c7" if learned[n] else "#e5e5e5"
        text = html.escape(text or data.decode()).replace(" ", "&nbsp;").replace("\n", "⏎<br>")
        frame = ";border:1px solid" if i in tokenizer.special_ids else ""
        look = f"background:{fill};border-radius:3px;padding:1px;margin:1px{frame}"
        spans.append(f'<span style="{look}">{text}</span>')
    look = "color:black;font-family:monospace;line-height:1.9"
    return HTML(f'<div style="{look}">{"<wbr>".join(spans)}</div>')


def word_table(numbers, rows, columns=None, digits=2):  # a matrix, and a word for each of its rows
    "Print a small matrix with words in front of its rows and above its columns."
    columns = range(numbers.shape[1]) if columns is None else columns
    cells = ([f"{n: .{digits}f}" for n in row] for row in numbers.tolist())
    table(["", *columns], *([word, *row] for word, row in zip(rows, cells)))
