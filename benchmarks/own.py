"""Somebody's own text and chats, each in one command: what becomes of 20 kB, of 200 kB, of 200
chats, with nothing but the defaults?

python benchmarks/own.py [--base runs/ci/pretrain] [--sizes 20 200] [--out FILE]

The text is Python's language reference, which comes with every Python (`pydoc_data.topics`). Each
size is trained on twice, from new weights and from the base model of `make run`, and measured on
the documents that the run itself kept out, beside a bigram model and `xz`, which both have seen
the training text. The chats are forty notes, each asked about in five ways; the questions that are
measured ask in a sixth. On two cores about twenty minutes."""

import argparse, contextlib, io, json, tempfile, time
from pathlib import Path

from bench import provenance, save

from minimind import pretrain, sft
from minimind.checkpoint import run_state
from minimind.data import open_store, read_documents
from minimind.evaluate import bits_per_byte, exact_match, ngram_bits_per_byte, text_ids
from minimind.evaluate import xz_bits_per_byte
from minimind.generate import chat, generate
from minimind.hub import load_pretrained
from minimind.pretrain import PretrainConfig, heldout_texts, sharing
from minimind.sft import SFTConfig

OPENING = "The statement is used to"
PLACES = "attic cellar kitchen shed garage hall study porch".split()
THINGS = "hammer lantern ladder kettle compass bicycle blanket violin rope map".split()
WAYS = (
    "Where is the {thing} of {who}?",
    "Where did {who} put the {thing}?",
    "I am looking for the {thing} of {who}.",
    "Do you know where the {thing} of {who} is?",
    "The {thing} of {who}, where is it?",
)
HELD_OUT_WAY = "Tell me where the {thing} of {who} is."
PEOPLE = "Anna", "Ben", "Clara", "David"


def reference() -> str:
    "Python's language reference, one topic after another."
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def own_text(path: Path, kilobytes: int) -> Path:
    "The first kilobytes of the reference, as a plain text file."
    raw = reference().encode()[: 1000 * kilobytes]
    path.write_bytes(raw.decode(errors="ignore").encode())
    return path


def own_chats(folder: Path) -> tuple[Path, Path]:
    "Forty notes as 200 chats, and as 40 questions that ask in another way."
    notes = [(thing, who) for thing in THINGS for who in PEOPLE]
    files = {"chats.jsonl": WAYS, "questions.jsonl": (HELD_OUT_WAY,)}
    for name, ways in files.items():
        lines = []
        for i, (thing, who) in enumerate(notes):
            place = PLACES[(i * 5 + i // 3) % len(PLACES)]
            for way in ways:
                question = way.format(thing=thing, who=who)
                answer = f"The {thing} of {who} is in the {place}."
                turns = [("user", question), ("assistant", answer)]
                row = {"conversations": [dict(role=r, content=c) for r, c in turns]}
                lines.append(json.dumps(row | {"must_contain": [place]}) + "\n")
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder / "chats.jsonl", folder / "questions.jsonl"


def timed(run, cfg) -> float:
    "Seconds of a run, whose words nobody hears."
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(cfg)
    return time.perf_counter() - start


def train_on_text(data: Path, out: Path, init: str) -> dict:
    "A run with nothing but defaults, and what it has learned."
    cfg = PretrainConfig(data=str(data), out=str(out), init=init, log_every=50)
    seconds = timed(pretrain.run, cfg)
    settings = run_state(out)["settings"]
    held = PretrainConfig(data=str(data), heldout_one_in=settings["heldout_one_in"])
    texts = heldout_texts(held, [data], [])["heldout"]
    train = list(read_documents([data], "train", **sharing(held)))
    model, tokenizer = load_pretrained(out)
    store = open_store(out / "store", tokenizer)
    prompt = [text_ids(tokenizer, OPENING)]
    ids = generate(model, prompt, 60, temperature=0.5, seed=1)[0]
    return dict(
        kilobytes=data.stat().st_size // 1000,
        begins="the base model" if init else "new weights",
        epochs=settings["epochs"],
        steps=run_state(out)["step"],
        seconds=round(seconds, 1),
        bits_per_byte=bits_per_byte(model, tokenizer, texts)["bits_per_byte"],
        bigram=ngram_bits_per_byte(store, tokenizer, texts)["bigram"],
        xz=xz_bits_per_byte(texts, train),
        heldout_bytes=sum(len(text.encode()) for text in texts),
        sample=OPENING + tokenizer.decode(ids, skip_special=True),
    )


def train_on_chats(folder: Path, out: Path, init: str) -> dict:
    "The same for chats, measured by questions."
    data, questions = own_chats(folder)
    seconds = timed(sft.run, SFTConfig(data=str(data), out=str(out), init=init, log_every=50))
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    model, tokenizer = load_pretrained(out)
    right = exact_match(model, tokenizer, rows)
    state = run_state(out)
    ask = rows[0]["conversations"][0]["content"]
    return dict(
        chats=200,
        epochs=state["settings"]["epochs"],
        steps=state["step"],
        seconds=round(seconds, 1),
        right=right["accuracy"],
        questions=right["n"],
        chance=1 / len(PLACES),
        sample=[ask, chat(model, tokenizer, ask, 40, temperature=0)],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="runs/ci/pretrain", help="the base model of `make run`")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 200], help="kB of text")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "own.json")
    args = parser.parse_args()
    start, texts = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for size in args.sizes:
            data = own_text(folder / f"own_{size}.txt", size)
            for init in ("", args.base):
                out = folder / f"run_{size}_{bool(init)}"
                texts.append(train_on_text(data, out, init))
                print(json.dumps(texts[-1]), flush=True)
        chats = train_on_chats(folder, folder / "chats", args.base)
        print(json.dumps(chats), flush=True)
    rows = [
        [
            f"{r['kilobytes']} kB from {r['begins']}",
            f"{r['steps']:,} ({r['epochs']:g} passes)",
            f"{r['seconds'] / 60:.1f}",
            f"{r['bits_per_byte']:.2f}",
            f"{r['bigram']:.2f}",
            f"{r['xz']:.2f}",
        ]
        for r in texts
    ]
    result = dict(
        **provenance(
            "Goal: with nothing but defaults, 200 kB of text become a model in ten minutes on two "
            "cores that guesses held-out text better than a bigram model does."
        ),
        minutes=round((time.perf_counter() - start) / 60, 1),
        columns=["", "steps", "minutes", "bits per byte", "bigram", "xz"],
        rows=rows,
        texts=texts,
        chats=chats,
    )
    save(args.out, result)


if __name__ == "__main__":
    main()
